"""Sensitivity pruning (Molchanov et al., 2019, arXiv:1906.10771): weights whose removal the gradient calls harmless.

To first order, the loss changes by -g * w when a weight w of gradient g becomes 0. A weight's score is the running
average of the size of that, |g * w|, or of its square, as in the paper. The gradient is the training step's own,
so that no pass is added. The average starts as a plain mean, and forgets once it looks back on 1 / (1 - decay) steps.
"""

from typing import Any

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of sensitivity."""

    decay: float = option(0.999, "The weight of the past in a score's average, per step.", 0, 1)
    power: int = option(1, "The power of the size of g w that is averaged, 1 or 2.", 1, 2)
    signed: bool = option(False, "Whether -g w is averaged as it is, so that what the loss would fall by goes first.")


def first_orders(info: StepInfo) -> Any:
    """-g * w of every gated kernel at the weights before the step, float32, a tree like gates; 0 where closed."""
    grads, weights = (gates_lib.kernels(tree, info.gates) for tree in (info.grads, info.params_before))
    return jax.tree.map(lambda g, w: -g.astype(jnp.float32) * w.astype(jnp.float32), grads, weights)


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights whose absence raises the loss least, to first order.

    Raises:
      ValueError: signed with power 2, which has no sign.
    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-4), pj.sensitivity(), pj.cubic(0.9, begin=0, end=1000, every=100))
    """
    if options.signed and options.power == 2:
        raise ValueError("signed is True; allowed: False with power=2, whose values have no sign")

    def value(effect):
        if options.signed:
            return effect
        return jnp.abs(effect) if options.power == 1 else effect * effect

    def init(params, gates, plan):
        return {"scores": gates_lib.zeros(gates)}

    def after_step(info: StepInfo, state: dict) -> dict:
        gain = jnp.maximum(1 - options.decay, 1 / (info.step + 1))
        effects = first_orders(info)
        return {"scores": jax.tree.map(lambda old, f: old + gain * (value(f) - old), state["scores"], effects)}

    def prune(info: PruneInfo) -> Pruned:
        return Pruned(info.plan.close(info.gates, info.state["scores"], info.target, info.key))

    return Method("sensitivity", init=init, after_step=after_step, prune=prune)

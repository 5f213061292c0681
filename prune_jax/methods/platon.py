"""PLATON (Zhang et al., 2022, arXiv:2206.12562): sensitivity times its uncertainty, an upper confidence bound.

With I = |g * w| of a step, a bar for an exponential average, as in the paper,

  I_bar <- beta1 * I_bar + (1 - beta1) * I
  U = |I - I_bar|
  U_bar <- beta2 * U_bar + (1 - beta2) * U
  score = I_bar * U_bar

so that a weight whose sensitivity is small, but of which that is not yet certain, stays. Averages start at 0. The
authors' code lets closed weights come back where their next step makes them important; here they stay closed.
"""

import jax
import jax.numpy as jnp

from prune_jax.methods.sensitivity import first_orders
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of PLATON."""

    beta1: float = option(0.85, "The weight of the past in the average of the sensitivity.", 0, 1)
    beta2: float = option(0.95, "The weight of the past in the average of the uncertainty.", 0, 1)


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights of small sensitivity first, those last of which it is uncertain.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-4), pj.platon(), pj.cubic(0.9, begin=0, end=1000, every=10))
    """

    def init(params, gates, plan):
        return {"sensitivity": gates_lib.zeros(gates), "uncertainty": gates_lib.zeros(gates)}

    def after_step(info: StepInfo, state: dict) -> dict:
        sizes = jax.tree.map(jnp.abs, first_orders(info))
        mean = jax.tree.map(
            lambda old, new: options.beta1 * old + (1 - options.beta1) * new, state["sensitivity"], sizes
        )
        uncertainty = jax.tree.map(
            lambda old, new, m: options.beta2 * old + (1 - options.beta2) * jnp.abs(new - m),
            state["uncertainty"],
            sizes,
            mean,
        )
        return {"sensitivity": mean, "uncertainty": uncertainty}

    def prune(info: PruneInfo) -> Pruned:
        scores = jax.tree.map(jnp.multiply, info.state["sensitivity"], info.state["uncertainty"])
        return Pruned(info.plan.close(info.gates, scores, info.target, info.key))

    return Method("platon", init=init, after_step=after_step, prune=prune)

"""RigL (Evci et al., 2020, arXiv:1911.11134): small weights close, those whose gradient is largest open.

The gradient is that of the step before the update, taken where gates are closed, too. What opens starts at 0, its
optimizer moments too.
"""

from typing import Any

import jax
import jax.numpy as jnp

from prune_jax.methods import regrowth
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, option, options
from prune_jax.pruning.plan import Plan


@options
class Options:
    """The options of RigL."""

    frequency: int = option(100, "Steps between updates of the gates, the paper's Delta T.", 1)
    fraction: float = option(
        0.3, "The share of a kernel's open weights that an update exchanges at first, alpha.", 0, 1
    )
    steps: int | None = option(None, "The step from which nothing moves any more, T_end; None, the share stays.", 1)


@made_from(Options)
def create(options: Options) -> Method:
    """Keeps a network sparse from the start, and exchanges its smallest weights for those that the loss asks for.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-3), pj.rigl(frequency=100, steps=7_500), pj.constant(0.9))
    """

    def init(params: Any, gates: Any, plan: Plan) -> dict:
        regrowth.check(plan)
        return {"gradient": gates_lib.zeros(gates)}

    def after_step(info: StepInfo, state: dict) -> dict:
        gradients = gates_lib.kernels(info.gate_grads, info.gates)
        return {"gradient": jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients)}

    def prune(info: PruneInfo) -> Pruned:
        def by_gradient(closed):
            return [-jnp.abs(gradient) for gradient in jax.tree.leaves(info.state["gradient"])]

        return regrowth.move(info, regrowth.share_moved(options.fraction, info.step, options.steps), by_gradient)

    return Method(
        "rigl",
        every=options.frequency,
        regrows=True,
        resets_moments=True,
        init=init,
        after_step=after_step,
        prune=prune,
    )

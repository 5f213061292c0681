"""SNIP (Lee, Ajanthan and Torr, 2019, arXiv:1810.02340): connections to which the loss is least sensitive, at once.

A gate's score is |g * w| on the batch of the first step, at the weights before it: the size of the loss's derivative
with respect to the gate. It is measured once, so that a schedule closes by one and the same order.
"""

import jax
import jax.numpy as jnp

from prune_jax.methods.sensitivity import first_orders
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, options


@options
class Options:
    """SNIP has no options."""


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights that the first batch's gradient calls least sensitive; the global scope is the paper's.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-3), pj.snip(), pj.one_shot(0.9), scope="global")
    """

    def init(params, gates, plan):
        return {"scores": gates_lib.zeros(gates)}

    def after_step(info: StepInfo, state: dict) -> dict:
        def measured():
            return {"scores": jax.tree.map(jnp.abs, first_orders(info))}

        return jax.lax.cond(info.step == 0, measured, lambda: state)

    def prune(info: PruneInfo) -> Pruned:
        return Pruned(info.plan.close(info.gates, info.state["scores"], info.target, info.key))

    return Method("snip", init=init, after_step=after_step, prune=prune)

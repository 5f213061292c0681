"""GraSP (Wang, Zhang and Grosse, 2020, arXiv:2002.07376): what the gradient flow can do without closes, at once.

Without a weight w the squared norm of the gradient g changes by -2 * w * (H g) to first order, H the Hessian of the
loss. The weights close first without which it falls least or rises most, so that a gate's score is w * (H g). It is
measured once, on the batch of the first step, at the weights before it. The paper divides the network's outputs by a
temperature; here the loss is taken as it is.
"""

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, options


@options
class Options:
    """GraSP has no options."""


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights without which the gradient flow stays greatest; the global scope is the paper's.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-3), pj.grasp(), pj.one_shot(0.9), scope="global")
      >>> # updates, state = tx.update(grads, state, params, value_fn=loss)
    """

    def init(params, gates, plan):
        return {"scores": gates_lib.zeros(gates)}

    def after_step(info: StepInfo, state: dict) -> dict:
        def measured():
            slope = jax.grad(lambda params: info.loss(params, info.gates))  # type: ignore[misc]
            gradient = slope(info.params_before)
            # What has no gate stays, and its gradient has no part in the flow.
            gated = trees.by_name(gates_lib.kernels(gradient, info.gates))
            flow = trees.replaced(jax.tree.map(jnp.zeros_like, gradient), gated)
            _, curved = jax.jvp(slope, (info.params_before,), (flow,))
            weights, products = (gates_lib.kernels(tree, info.gates) for tree in (info.params_before, curved))
            scores = jax.tree.map(lambda w, h: (w * h).astype(jnp.float32), weights, products)
            return {"scores": scores}

        return jax.lax.cond(info.step == 0, measured, lambda: state)

    def prune(info: PruneInfo) -> Pruned:
        return Pruned(info.plan.close(info.gates, info.state["scores"], info.target, info.key))

    return Method("grasp", explores=True, init=init, after_step=after_step, prune=prune)

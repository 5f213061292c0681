"""Magnitude with the straight-through estimator: the forward pass is sparse, and every weight trains on.

Each update opens the largest weights and closes all others, and the weights of closed gates are trained by the gradient
that they would have if they were open (Bengio et al., 2013, arXiv:1308.3432; of masks, Zhou et al., 2021,
arXiv:2102.04010), so that one that grows comes back. With `decay` it is the latter's SR-STE: closed weights decay
towards 0, which keeps the masks steady,

  g <- dL/d(w * gate) + decay * (1 - gate) * w.
"""

import jax
import jax.numpy as jnp

from prune_jax.methods import magnitude
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of STE."""

    frequency: int = option(1, "Steps between updates of the gates.", 1)
    decay: float = option(0.0, "The decay of closed weights that is added to the gradient, SR-STE's lambda.", 0, 1000)


@made_from(Options)
def create(options: Options) -> Method:
    """Keeps the largest weights open, and trains closed ones straight through; take the loss at pj.masked.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-3), pj.ste(decay=2e-4), pj.cubic(0.9, begin=0, end=1000))
      >>> # grads = jax.grad(lambda params: loss(pj.masked(params, state)))(params)
    """

    def penalty(params, gates, trainable, step, hyper, plan):
        kernels = gates_lib.kernels(params, gates)
        closed = jax.tree.map(lambda w, gate: jnp.sum(jnp.where(gate, 0, w).astype(jnp.float32) ** 2), kernels, gates)
        return options.decay / 2 * sum(jax.tree.leaves(closed))

    def prune(info: PruneInfo) -> Pruned:
        chosen_from = jax.tree.map(jnp.ones_like, info.gates)
        return Pruned(info.plan.close(chosen_from, magnitude.scores(info.params, info.gates), info.target, info.key))

    method = Method("ste", every=options.frequency, regrows=True, alive=True, trains_closed=True, prune=prune)
    return method._replace(penalty=penalty) if options.decay else method

"""Magnitude pruning (Han et al., 2015, arXiv:1506.02626; gradually, Zhu and Gupta, 2017, arXiv:1710.01878)."""

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, options


@options
class Options:
    """Magnitude has no options."""


def scores(params, gates):
    """|w| of every gated kernel, a tree like gates."""
    return jax.tree.map(jnp.abs, gates_lib.kernels(params, gates))


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights of smallest absolute value.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-4), pj.magnitude(), pj.cubic(0.9, begin=0, end=1000, every=100))
    """

    def prune(info: PruneInfo) -> Pruned:
        return Pruned(info.plan.close(info.gates, scores(info.params, info.gates), info.target, info.key))

    return Method("magnitude", prune=prune)

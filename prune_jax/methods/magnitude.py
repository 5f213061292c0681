"""Magnitude pruning (Han et al., 2015, arXiv:1506.02626; gradually, Zhu and Gupta, 2017, arXiv:1710.01878).

At an epoch's end the weights of smallest absolute value are closed, in each kernel or over all of them.
"""

import jax
import jax.numpy as jnp

from prune_jax import gates as gates_lib
from prune_jax import groups
from prune_jax.methods.base import Method


@jax.jit
def scores(params, gates):
    """|w| of every gated kernel, a tree like gates."""
    return jax.tree.map(jnp.abs, gates_lib.kernels(params, gates))


def create(config) -> Method:
    closer = groups.create(config)

    def prune(key, params, gates, trainable, state, target, end_of_epoch):
        return closer.close(gates, scores(params, gates), target, key, config.pruning.scope)

    return Method(prune=prune)

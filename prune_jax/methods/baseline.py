"""No pruning: the dense network that the others are measured against."""

from prune_jax.methods.base import Method


def create(config) -> Method:
    return Method()

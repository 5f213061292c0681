"""The network that gates leave, as NumPy arrays: what is exported and compressed."""

from typing import Any

import jax
import numpy as np

from prune_jax.pruning import trees

Tree = Any


def merge(params: Tree, gates: Tree) -> Tree:
    """params with +0.0 where a gate is closed, whatever the weight is, and every other weight bit for bit.

    Args:
      params: a pytree of arrays.
      gates: boolean arrays at the paths of their kernels.
    Returns:
      A tree like params of NumPy arrays.
    Example:
      >>> merge({"w": np.array([-np.inf, 2.0])}, {"w": np.array([False, True])})
      {'w': array([0., 2.])}
    """
    by_name = trees.by_name(gates)

    def close(path: tuple, leaf: Any) -> np.ndarray:
        gate = by_name.get(trees.name(path))
        return np.asarray(leaf) if gate is None else np.where(gate, leaf, 0)

    return jax.tree_util.tree_map_with_path(close, params)

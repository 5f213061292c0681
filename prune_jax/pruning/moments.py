"""What an optimizer keeps of a weight, forgotten where the weight opens anew."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def reset_moments(state: Tree, reopened: Tree) -> Tree:
    """An optimizer's state with what it keeps of each reopened weight (Adam's moments) at 0.

    A moment is known by its path, which ends as its weight's does, and by its weight's shape: optimizers that treat
    some weights apart, or that factor their moments, have trees which differ from that of the params.

    Args:
      state: any optimizer's; reopened: booleans, a tree like the gates, in the place that params have.
    """
    marks = dict(jax.tree_util.tree_leaves_with_path(reopened))
    lengths = sorted({len(path) for path in marks}, reverse=True)

    def at(path: tuple, leaf: Any) -> Any:
        for length in lengths:
            mark = marks.get(path[max(len(path) - length, 0) :])
            if mark is not None and mark.shape == jnp.shape(leaf):
                return jnp.where(mark, jnp.zeros_like(leaf), leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(at, state)

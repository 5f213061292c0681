"""What one-shot pruning asks of a method."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from prune_jax.oneshot.hessian import Factors
from prune_jax.oneshot.masks import Layout


class OneShot(NamedTuple):
    """A method of one-shot pruning, for pj.oneshot.

    Attributes:
      name: what messages call it.
      solve: (weights (inputs, outputs) float32, Factors of the Hessian, Layout) -> (new weights, booleans of what is
        open), inside jit.
      dampening: the share of the mean of the Hessian's diagonal that is added to it.
      kinds: the structures that it can make, of unstructured, block, n:m.
      most_inputs: of a kernel that it takes; 0, any.
      rounds: whether the weights lie on a grid.
    """

    name: str
    solve: Callable[[jax.Array, Factors, Layout], tuple[jax.Array, jax.Array]]
    dampening: float = 0.01
    kinds: tuple[str, ...] = ("unstructured", "block", "n:m")
    most_inputs: int = 0
    rounds: bool = False

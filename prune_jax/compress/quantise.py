"""A codebook for each kernel by one-dimensional k-means: the quantiser for networks that any method has pruned.

In one dimension, clusters are intervals of the sorted weights. So the weights are sorted and summed once, and a Lloyd
step costs k binary searches, however many weights there are. Lloyd steps are repeated until nothing moves.

They start from the optimum over at most 512 points, by dynamic programming (Wang and Song, 2011, The R Journal 3/2,
"Ckmeans.1d.dp"). The points are the distinct weights, or groups of neighbours where there are more. So the result is
the global optimum for up to 512 distinct weights, and depends on the weights alone for any number.
"""

from typing import Any

import jax
import numpy as np

from prune_jax.compress import codec
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.merge import merge

Tree = Any

MAX_BITS = 12
_POINTS = 512
_STEPS = 1000  # the most Lloyd steps; a few dozen are usual


def kmeans(values: np.ndarray, k: int) -> np.ndarray:
    """The centres of the k clusters with the least sum of squared distances.

    Args:
      values: (n,) finite floats.
      k: the most clusters; fewer distinct values are their own centres.
    Returns:
      (at most k,) float64, increasing.
    """
    ordered = np.sort(values).astype(np.float64)
    first = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    if len(first) <= k:
        return ordered[first]
    sums = np.concatenate([[0], np.cumsum(ordered)])
    starts = first if len(first) <= _POINTS else _groups(ordered)
    bounds = _optimal_bounds(starts, ordered, sums, k)
    for _ in range(_STEPS):
        centres = np.diff(sums[bounds]) / np.diff(bounds)
        middle = (centres[1:] + centres[:-1]) / 2
        moved = np.concatenate([[0], np.searchsorted(ordered, middle), [len(ordered)]])
        if (moved == bounds).all() or (np.diff(moved) == 0).any():
            break
        bounds = moved
    return np.diff(sums[bounds]) / np.diff(bounds)


def _groups(ordered: np.ndarray) -> np.ndarray:
    """The starts of at most 512 groups of the sorted values.

    Half of the groups have equal numbers of values. The others have equal widths, for the tails.
    """
    half = _POINTS // 2
    by_number = np.arange(half) * len(ordered) // half
    by_width = np.searchsorted(ordered, np.linspace(ordered[0], ordered[-1], half, endpoint=False))
    starts = np.union1d(by_number, by_width)
    return starts[np.diff(ordered[starts], prepend=-np.inf) > 0]  # equal values in one group


def _optimal_bounds(starts: np.ndarray, ordered: np.ndarray, sums: np.ndarray, k: int) -> np.ndarray:
    """(k + 1,) bounds in `ordered`: the k clusters of whole groups with the least sum of squares."""
    edges = np.append(starts, len(ordered))
    edges[0] = 0
    count, total = edges, sums[edges]
    with np.errstate(divide="ignore", invalid="ignore"):
        # cost[i, j]: of groups i to j - 1 as one cluster, without the sum of all squares, which is the same for all
        cost = -((total[None] - total[:, None]) ** 2) / (count[None] - count[:, None])
    cost[np.tril_indices(len(edges))] = np.inf
    best, came_from = cost[0], []
    for _ in range(k - 1):
        options = best[:, None] + cost
        came_from.append(np.argmin(options, axis=0))
        best = np.min(options, axis=0)
    bounds = [len(edges) - 1]
    for previous in reversed(came_from):
        bounds.append(previous[bounds[-1]])
    return edges[[0, *reversed(bounds)]]


def quantise(kernel: np.ndarray, bits: int) -> np.ndarray:
    """Brings a kernel to at most 2^bits distinct values: 0, where it is 0 already, and 2^bits - 1 centres.

    A kernel that has no more distinct values comes back as it is, bit for bit.

    Args:
      kernel: float32 of any shape.
    Raises:
      ValueError: the kernel has more distinct values, and some are not finite.
    """
    patterns = codec.bit_patterns(kernel)
    if codec.distinct_patterns(patterns, 1 << bits) is not None:
        return kernel
    flat = patterns.view(np.float32)
    if not np.isfinite(flat).all():
        raise ValueError("weights that are not finite have no codebook")
    at = np.flatnonzero(flat)
    values = flat[at]
    centres = kmeans(values, (1 << bits) - 1)
    quantised = np.zeros_like(flat)
    quantised[at] = centres.astype(np.float32)[np.searchsorted((centres[1:] + centres[:-1]) / 2, values, side="right")]
    return quantised.reshape(kernel.shape)


def quantise_network(params: Tree, gates: Tree, bits: int = 0, bias_bits: int = 0, embedding_bits: int = 0) -> Tree:
    """Closes the gated kernels and quantises leaves, each kind by its own number of bits; 0 leaves a kind as it is.

    Args:
      bits: of gated kernels.
      bias_bits: of the other leaves of at most one axis, biases and scales, whether they have gates or not.
      embedding_bits: of the rest.
    Raises:
      ValueError: a number of bits is outside 0 to 12, or a leaf to be quantised has weights that are not finite.
    """
    for name, value in (("bits", bits), ("bias_bits", bias_bits), ("embedding_bits", embedding_bits)):
        if not 0 <= value <= MAX_BITS:
            raise ValueError(f"{name} is {value}; allowed: 1 to {MAX_BITS}, or 0 to keep the weights as they are")
    gated = trees.by_name(gates)

    def one(path, leaf):
        kernel = trees.name(path) in gated and gates_lib.is_kernel(trees.name(path), leaf)
        own = bits if kernel else bias_bits if leaf.ndim <= 1 else embedding_bits
        try:
            return quantise(leaf, own) if own else leaf
        except ValueError as error:
            raise ValueError(f"{trees.name(path)} cannot be quantised: {error}") from error

    return jax.tree_util.tree_map_with_path(one, merge(params, gates))

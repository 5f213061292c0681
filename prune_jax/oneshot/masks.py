"""Which weights of a matrix close, by scores: exactly k of the lowest, or of every block or every m inputs.

Matrices are (inputs, outputs) here: a column update then runs along consecutive numbers.
"""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning.select import rank

Name = TypeVar("Name", bound=Hashable)


class Layout(NamedTuple):
    """How the weights of a matrix close.

    Attributes:
      kind: unstructured, block, or n:m.
      sparsity: the closed fraction; () float32 where a kernel's is found while pruning, and one program does for all.
      sizes: (R, C) of blocks of R inputs by C outputs; (n, m) of n open of every m inputs.
    """

    kind: str
    sparsity: float | jax.Array
    sizes: tuple[int, int] = (1, 1)

    @property
    def step(self) -> int:
        """How many inputs are told apart together."""
        return {"unstructured": 1, "block": self.sizes[0], "n:m": self.sizes[1]}[self.kind]


def lowest(scores: jax.Array, k: jax.Array | int) -> jax.Array:
    """Booleans: the k lowest scores of each row, the first of equal ones. Works inside jit; no sorting.

    Args:
      scores: (rows, n) floating; k: () or (rows,) integer.
    Example:
      >>> lowest(jnp.array([[3.0, 1.0, 2.0, 1.0]]), 2)
      Array([[False,  True, False,  True]], dtype=bool)
    """
    ranks, k = rank(scores), jnp.broadcast_to(jnp.asarray(k, jnp.int32), len(scores))

    def fix(i: jax.Array, level: jax.Array) -> jax.Array:
        mark = level | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        below = jnp.sum(ranks < mark[:, None], axis=1, dtype=jnp.int32)
        return jnp.where(below < k, mark, level)

    level = jax.lax.fori_loop(0, 32, fix, jnp.zeros(len(scores), jnp.uint32))[:, None]  # the k-th lowest rank
    below, ties = ranks < level, ranks == level
    places = k[:, None] - jnp.sum(below, axis=1, keepdims=True, dtype=jnp.int32)
    crowded = jnp.any(jnp.sum(ties, axis=1, keepdims=True, dtype=jnp.int32) > places)
    first = lambda: jnp.cumsum(ties, axis=1, dtype=jnp.int32) <= places  # noqa: E731
    return below | (ties & jax.lax.cond(crowded, first, lambda: jnp.ones_like(ties)) & (k > 0)[:, None])


def lowest_of_runs(scores: jax.Array, layout: Layout) -> jax.Array:
    """Booleans: the m - n lowest scores of every m consecutive inputs; scores: (inputs, outputs)."""
    n, m = layout.sizes
    runs = scores.reshape(-1, m, scores.shape[1])
    before = jnp.arange(m)[:, None] < jnp.arange(m)[None, :]
    one, other = runs[:, None], runs[:, :, None]  # (runs, other, one, outputs)
    lower = (other < one) | ((other == one) & before[None, :, :, None])
    return (jnp.sum(lower, axis=1) < m - n).reshape(scores.shape)


def lowest_blocks(scores: jax.Array, layout: Layout, k: jax.Array | int) -> jax.Array:
    """Booleans: the k blocks whose scores sum to the least; scores: (inputs, outputs)."""
    r, c = layout.sizes
    inputs, outputs = scores.shape
    sums = scores.reshape(inputs // r, r, outputs // c, c).sum((1, 3))
    closed = lowest(sums.reshape(1, -1), k).reshape(sums.shape)
    return jnp.repeat(jnp.repeat(closed, r, axis=0), c, axis=1)


def closed(scores: jax.Array, layout: Layout, per_output: bool = False) -> jax.Array:
    """Booleans (inputs, outputs): what closes of a whole matrix; per_output: as many of each output."""
    if layout.kind == "n:m":
        return lowest_of_runs(scores, layout)
    if layout.kind == "block":
        return lowest_blocks(scores, layout, count(layout, *scores.shape))
    if per_output:
        return lowest(scores.T, spread(count(layout, *scores.shape), scores.shape[1])).T
    return lowest(scores.reshape(1, -1), count(layout, *scores.shape)).reshape(scores.shape)


def count(layout: Layout, inputs: int, outputs: int) -> int | jax.Array:
    """How many weights, or blocks, of so many inputs close, as the layout's sparsity rounds."""
    r, c = layout.sizes if layout.kind == "block" else (1, 1)
    number = layout.sparsity * (inputs // r) * (outputs // c)
    return jnp.round(number).astype(jnp.int32) if isinstance(number, jax.Array) else round(number)


def spread(total: jax.Array | int, parts: int) -> jax.Array:
    """(parts,) int32 that sum to `total` and differ by one at most; () integer `total`.

    Rounding each part would not: half of nine weights, in each of many outputs, would be four ninths of all.
    """
    each, left = jnp.divmod(jnp.asarray(total, jnp.int32), parts)
    return each + (jnp.arange(parts) < left)


def of_parts(layout: Layout, share: float | None, parts: int, inputs: int, outputs: int) -> np.ndarray | None:
    """(parts,) float32: the fraction that closes of each of a kernel's matrices; None where the layout's own will do.

    Args:
      share: of the whole kernel; None, the layout's.
      parts, inputs, outputs: the shape of the kernel, as of a convolution in groups.
    """
    if layout.kind == "n:m" or (share is None and parts == 1):
        return None
    r, c = layout.sizes
    units = (inputs // r) * (outputs // c)
    number = round(float(layout.sparsity if share is None else share) * units * parts)
    if share is None and number == parts * count(layout, inputs, outputs):
        return None
    return (np.asarray(spread(number, parts)) / max(units, 1)).astype(np.float32)


def shares(costs: Mapping[Name, np.ndarray], sparsity: float, most: float) -> dict[Name, float]:
    """Name of a matrix -> the fraction of it that closes, where the lowest costs of all of them close together.

    Args:
      costs: name -> (weights,) what each weight costs, in ascending order; sparsity: the fraction of all weights.
      most: the largest fraction of one matrix, at least `sparsity`.
    """
    whole = sum(map(len, costs.values()))
    total = round(sparsity * whole)
    if not total:
        return dict.fromkeys(costs, 0.0)
    able = {name: own[: max(int(most * len(own)), -(-total * len(own) // whole))] for name, own in costs.items()}
    level = np.partition(np.concatenate([*able.values()]), total - 1)[total - 1]
    below = {name: int(np.searchsorted(own, level, "left")) for name, own in able.items()}
    ties = {name: int(np.searchsorted(own, level, "right")) - below[name] for name, own in able.items()}
    left, tied = total - sum(below.values()), sum(ties.values())
    closed = {name: below[name] + ties[name] * left // tied for name in costs}
    for name in costs:  # what rounding down has left over
        more = min(total - sum(closed.values()), below[name] + ties[name] - closed[name])
        closed[name] += more
    return {name: closed[name] / len(own) for name, own in costs.items()}

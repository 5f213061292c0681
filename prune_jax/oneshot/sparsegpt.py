"""SparseGPT (Frantar and Alistarh, 2023, arXiv:2301.00774): closes and corrects, column after column.

Inputs are taken in their order. What an input loses, by closing or by rounding, is made up for by those after it, along
a row of the upper Cholesky factor of H^-1. Which weights close is decided block by block, on the weights as corrected
so far. Updates are exact inside of a block, and reach the blocks after it as one product.
"""

import itertools

import jax
import jax.numpy as jnp

from prune_jax.oneshot import masks
from prune_jax.oneshot.hessian import Factors
from prune_jax.oneshot.masks import Layout
from prune_jax.oneshot.solver import OneShot
from prune_jax.pruning.options import made_from, option, options

_TOGETHER = 32  # columns that correct each other one by one, and those after them at once


@options
class Options:
    """The options of SparseGPT."""

    block: int = option(128, "How many inputs share a decision of what closes, rounded up to whole runs and blocks.", 1)
    dampening: float = option(0.01, "The share of the mean of the Hessian's diagonal that is added to it.", 0)
    bits: int = option(0, "Bits of a weight, in a grid per output with 0 in it; 0 does not round.", 0, 16)


@made_from(Options)
def create(options: Options) -> OneShot:
    """SparseGPT, for pj.oneshot; with bits it rounds in the same sweep, as GPTQ (Frantar et al., 2023).

    Example:
      >>> import prune_jax as pj
      >>> net = lambda p, x: x @ p["kernel"]
      >>> batches = [jax.random.normal(jax.random.key(0), (16, 8))]
      >>> params, gates = pj.oneshot(net, {"kernel": jnp.ones((8, 4))}, batches, pj.sparsegpt(), structure="2:4")
      >>> pj.sparsity(gates)
      Array(0.5, dtype=float32)
    """

    def solve(weights: jax.Array, factors: Factors, layout: Layout) -> tuple[jax.Array, jax.Array]:
        return sweep(weights, factors, layout, options.block, options.bits)

    return OneShot("sparsegpt", solve, options.dampening, rounds=options.bits > 0)


def sweep(
    weights: jax.Array, factors: Factors, layout: Layout, block: int = 128, bits: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Algorithm 1 of the paper. Weights are (inputs, outputs) float32; the same, and booleans of what is open."""
    inputs, outputs = weights.shape
    small = layout.step if layout.kind == "n:m" else min(_TOGETHER, -(-inputs // layout.step) * layout.step)
    small = -(-small // layout.step) * layout.step
    size = -(-min(block, inputs) // small) * small
    blocks = -(-inputs // size)
    padding = blocks * size - inputs
    weights = jnp.pad(jnp.where(factors.dead[:, None], 0, weights), ((0, padding), (0, 0)))
    upper = jnp.pad(factors.upper, ((0, padding), (0, padding)))
    upper = upper + jnp.diag((jnp.arange(blocks * size) >= inputs).astype(upper.dtype))
    shut = [masks.count(layout, min(b * size, inputs), outputs) for b in range(blocks + 1)]
    quotas = jnp.array([after - before for before, after in itertools.pairwise(shut)], jnp.int32)
    grid = _grid(weights, bits)
    precision = jax.lax.Precision.HIGHEST

    def choose(w: jax.Array, diagonal: jax.Array, at: jax.Array, quota: jax.Array) -> jax.Array:
        """Which weights of some inputs close, by what closing costs."""
        scores = jnp.square(w / diagonal[:, None])
        scores = jnp.where((at + jnp.arange(len(w)) < inputs)[:, None], scores, jnp.inf)
        if layout.kind == "n:m":
            return masks.lowest_of_runs(scores, layout)
        if layout.kind == "block":
            return masks.lowest_blocks(scores, layout, quota)
        return masks.lowest(scores.reshape(1, -1), quota).reshape(scores.shape)

    def columns(j: jax.Array, carry: tuple) -> tuple:
        """A few inputs, one after the other; then what they lost reaches the rest of the block."""
        at, own, rows, closed, made, lost = carry
        start = j * small
        w = jax.lax.dynamic_slice(own, (start, 0), (small, outputs))
        square = jax.lax.dynamic_slice(rows, (start, at + start), (small, small))
        if layout.kind == "n:m":
            shut = choose(w, jnp.diagonal(square), at + start, jnp.int32(0))
        else:
            shut = jax.lax.dynamic_slice(closed, (start, 0), (small, outputs))

        def column(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            kept, error = carry
            along = jax.lax.dynamic_index_in_dim(square, i, 1, keepdims=False)
            now = w[i] - jnp.dot(along, error, precision=precision)  # errors are 0 from i on
            new = _rounded(jnp.where(shut[i], 0, now), grid, bits)
            return kept.at[i].set(new), error.at[i].set((now - new) / square[i, i])

        kept, error = jax.lax.fori_loop(0, small, column, (jnp.zeros_like(w), jnp.zeros_like(w)))
        across = jax.lax.dynamic_slice(rows, (start, at), (small, size))
        own = own - jnp.dot(across.T, error, precision=precision)
        closed = jax.lax.dynamic_update_slice(closed, shut, (start, 0))
        made = jax.lax.dynamic_update_slice(made, kept, (start, 0))
        return at, own, rows, closed, made, jax.lax.dynamic_update_slice(lost, error, (start, 0))

    def step(b: jax.Array, carry: tuple) -> tuple:
        weights, closed = carry
        at = b * size
        own = jax.lax.dynamic_slice(weights, (at, 0), (size, outputs))
        rows = jax.lax.dynamic_slice(upper, (at, 0), (size, blocks * size))
        if layout.kind == "n:m":
            shut = jnp.zeros(own.shape, bool)
        else:
            shut = choose(own, jnp.diagonal(jax.lax.dynamic_slice(rows, (0, at), (size, size))), at, quotas[b])
        start = (at, own, rows, shut, jnp.zeros_like(own), jnp.zeros_like(own))
        *_, shut, made, lost = jax.lax.fori_loop(0, size // small, columns, start)
        weights = weights - jnp.dot(rows.T, lost, precision=precision)  # rows are 0 before the block
        weights = jax.lax.dynamic_update_slice(weights, made, (at, 0))
        return weights, jax.lax.dynamic_update_slice(closed, shut, (at, 0))

    weights, closed = jax.lax.fori_loop(0, blocks, step, (weights, jnp.zeros(weights.shape, bool)))
    return weights[:inputs], ~closed[:inputs]


def _grid(weights: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """(step, place of 0) of each output's evenly spaced grid from its least to its largest weight, 0 among them."""
    least, most = jnp.minimum(weights.min(0), 0), jnp.maximum(weights.max(0), 0)
    step = (most - least) / max(2**bits - 1, 1)
    step = jnp.where(step > 0, step, 1)
    return step, jnp.round(-least / step)


def _rounded(column: jax.Array, grid: tuple[jax.Array, jax.Array], bits: int) -> jax.Array:
    if not bits:
        return column
    step, zero = grid
    return step * (jnp.clip(jnp.round(column / step) + zero, 0, 2**bits - 1) - zero)

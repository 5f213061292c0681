"""Optimal Brain Surgeon, exact (Hassibi and Stork, 1993), row by row as Frantar et al. (2022, arXiv:2208.11580) do it.

Every output closes the weight that costs least, w^2 / [H^-1]_ww, corrects all others, and takes the weight out of H^-1;
again and again. The weights that this leaves are the least-squares ones of their mask.
"""

import jax
import jax.numpy as jnp

from prune_jax.oneshot import masks
from prune_jax.oneshot.hessian import Factors, corrected
from prune_jax.oneshot.masks import Layout
from prune_jax.oneshot.solver import OneShot
from prune_jax.pruning.options import made_from, option, options

_AT_ONCE = 1 << 25  # entries of inverse Hessians that are held at once


@options
class Options:
    """The options of OBS."""

    per: str = option(
        "layer", "What closes equally far: every output, or the layer, whose outputs then go by what closing costs.",
        choices=("output", "layer"),
    )  # fmt: skip
    dampening: float = option(0.01, "The share of the mean of the Hessian's diagonal that is added to it.", 0)
    most_inputs: int = option(
        2048, "The inputs of a kernel above which it is refused: the work grows with their cube.", 1
    )


@made_from(Options)
def create(options: Options) -> OneShot:
    """OBS, for pj.oneshot: exact greedy removal for layers that are small.

    Example:
      >>> import prune_jax as pj
      >>> net = lambda p, x: x @ p["kernel"]
      >>> batches = [jnp.array([[1.0, 1.0], [1.0, 1.1]])]
      >>> params, gates = pj.oneshot(net, {"kernel": jnp.array([[1.0], [2.0]])}, batches, pj.obs())
      >>> gates["kernel"].tolist(), round(float(params["kernel"][1, 0]))  # what is left makes up for what is not
      ([[False], [True]], 3)
    """

    def solve(weights: jax.Array, factors: Factors, layout: Layout) -> tuple[jax.Array, jax.Array]:
        inputs, outputs = weights.shape
        rows = jnp.where(factors.dead[:, None], 0, weights).T
        inverse = jnp.dot(factors.upper.T, factors.upper, precision=jax.lax.Precision.HIGHEST)
        most = inputs - (inputs // layout.sizes[1]) * layout.sizes[0] if layout.kind == "n:m" else inputs
        if layout.kind == "n:m" or options.per == "output":
            total = most * outputs if layout.kind == "n:m" else masks.count(layout, inputs, outputs)
            order, _ = _removals(rows, inverse, layout, most if isinstance(total, jax.Array) else -(-total // outputs))
            counts = masks.spread(total, outputs)
        else:
            order, costs = _removals(rows, inverse, layout, most)
            closed = masks.lowest(costs.reshape(1, -1), masks.count(layout, inputs, outputs))
            counts = jnp.sum(closed.reshape(costs.shape), axis=1)
        # order: (outputs, steps) the input that each step closes; the first `counts` steps are taken.
        taken = jnp.arange(order.shape[1]) < counts[:, None]
        opened = jnp.ones((outputs, inputs), bool)
        opened = opened.at[jnp.arange(outputs)[:, None], jnp.where(taken, order, inputs)].set(False, mode="drop").T
        return corrected(factors.hessian, rows.T, opened, turns=500), opened

    return OneShot("obs", solve, options.dampening, ("unstructured", "n:m"), options.most_inputs)


def _removals(rows: jax.Array, inverse: jax.Array, layout: Layout, steps: int) -> tuple[jax.Array, jax.Array]:
    """(outputs, steps): the inputs in the order of their removal; the largest cost of a removal so far."""
    inputs = rows.shape[1]

    def of_row(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        def remove(i: jax.Array, carry: tuple) -> tuple:
            w, left, inverse, order, costs = carry
            diagonal = jnp.maximum(jnp.diagonal(inverse), 1e-30)
            able = left
            if layout.kind == "n:m":
                n, m = layout.sizes
                able = left & jnp.repeat(left.reshape(-1, m).sum(1) > n, m)
            cost = jnp.where(able, jnp.square(w) / diagonal, jnp.inf)
            at = jnp.argmin(cost)
            column = inverse[at]
            w = w - column * (w[at] / diagonal[at])
            inverse = inverse - jnp.outer(column, column / diagonal[at])
            left = left.at[at].set(False)
            w = jnp.where(left, w, 0)
            worst = jnp.maximum(cost[at], jnp.where(i > 0, costs[i - 1], 0))
            return w, left, inverse, order.at[i].set(at), costs.at[i].set(worst)

        start = (row, jnp.ones(inputs, bool), inverse, jnp.zeros(steps, jnp.int32), jnp.zeros(steps, jnp.float32))
        *_, order, costs = jax.lax.fori_loop(0, steps, remove, start)
        return order, costs

    return jax.lax.map(of_row, rows, batch_size=max(1, min(len(rows), _AT_ONCE // inputs**2)))

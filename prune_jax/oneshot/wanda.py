"""Wanda (Sun et al., 2024, arXiv:2306.11695), and magnitude beside it: scores without a correction."""

import jax
import jax.numpy as jnp

from prune_jax.oneshot import masks
from prune_jax.oneshot.hessian import Factors
from prune_jax.oneshot.masks import Layout
from prune_jax.oneshot.solver import OneShot
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of Wanda."""

    per: str = option("output", "What closes equally far: every output, or the layer.", choices=("output", "layer"))


@made_from(Options)
def create(options: Options) -> OneShot:
    """Wanda, for pj.oneshot: closes the lowest `|w|` times the norm of the input, and leaves the others as they are.

    Example:
      >>> import prune_jax as pj
      >>> net = lambda p, x: x @ p["kernel"]
      >>> batches = [jnp.array([[1.0, 10.0]])]
      >>> pj.oneshot(net, {"kernel": jnp.array([[2.0], [1.0]])}, batches, pj.wanda())[0]
      {'kernel': Array([[0.],
             [1.]], dtype=float32)}
    """

    def solve(weights: jax.Array, factors: Factors, layout: Layout) -> tuple[jax.Array, jax.Array]:
        norms = jnp.where(factors.dead, 0, jnp.sqrt(jnp.maximum(jnp.diagonal(factors.hessian) - factors.damp, 0)))
        opened = ~masks.closed(jnp.abs(weights) * norms[:, None], layout, options.per == "output")
        return jnp.where(opened, weights, 0), opened

    return OneShot("wanda", solve)


def magnitude() -> OneShot:
    """The lowest |w| of each kernel close."""

    def solve(weights: jax.Array, factors: Factors, layout: Layout) -> tuple[jax.Array, jax.Array]:
        opened = ~masks.closed(jnp.abs(weights), layout)
        return jnp.where(opened, weights, 0), opened

    return OneShot("magnitude", solve)

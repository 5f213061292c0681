"""How a target is shared among kernels: the Erdos-Renyi kernel distribution, inside jit."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def erk(shapes: Sequence[tuple[int, ...]], target: jax.Array | float) -> list[jax.Array]:
    """The closed fraction of each kernel, () float32, so that all together reach the target.

    A kernel's density is proportional to the sum of its axes over their product, (n_in + n_out) / (n_in * n_out) of a
    matrix, and 1 where that is more than 1 (Evci et al., 2020, arXiv:1911.11134): small kernels stay denser.

    Args:
      shapes: of the kernels; target: () float32, the closed fraction of all of them, 0 to 1.
    Example:
      >>> [round(float(closed), 3) for closed in erk([(10, 10), (100, 100)], 0.9)]
      [0.082, 0.908]
    """
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    raw = np.array([sum(shape) for shape in shapes], np.float64) / np.maximum(sizes, 1)
    order = np.argsort(-raw, kind="stable")
    raw, sizes = raw[order], sizes[order]
    # scale[k]: what raw densities are multiplied by if the k kernels of greatest raw density are dense.
    before = np.concatenate([[0.0], np.cumsum(sizes)[:-1]])
    rest = np.cumsum((sizes * raw)[::-1])[::-1]
    kept = (1 - jnp.asarray(target, jnp.float32)) * float(sizes.sum())
    scale = (kept - jnp.asarray(before, jnp.float32)) / jnp.asarray(np.maximum(rest, 1e-30), jnp.float32)
    fits = scale * jnp.asarray(raw, jnp.float32) <= 1
    first = jnp.where(jnp.any(fits), jnp.argmax(fits), len(raw))
    dense = jnp.arange(len(raw)) < first
    density = jnp.where(
        dense, 1.0, jnp.clip(scale[jnp.minimum(first, len(raw) - 1)] * jnp.asarray(raw, jnp.float32), 0, 1)
    )
    closed = (1 - density)[jnp.asarray(np.argsort(order))]
    return [closed[i] for i in range(len(shapes))]

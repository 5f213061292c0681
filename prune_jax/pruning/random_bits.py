"""Random bits as a hash of the position: cheap enough to be computed again wherever they are read."""

import jax
import jax.numpy as jnp
import numpy as np


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 that scatters consecutive integers (Wellons' hash prospector, "lowbias32" family)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def hashed_bits(seeds: jax.Array, shape: tuple[int, ...], start: int = 0) -> jax.Array:
    """uint32 of `shape`, all different: a counter hashed with two seed words. XLA fuses it into whatever reads it.

    jax.random would write the bits to memory first, and ThreeFry costs several times as much as the product of a
    kernel and its gate. Not for cryptography, and not for more than 2^32 positions.

    Args:
      seeds: (2,) uint32, as jax.random.bits draws them.
      start: the number of the first position; arrays with the same seeds and positions of their own share no word.
    """
    index = jnp.full(shape, start % 2**32, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(np.prod(shape[axis + 1 :], dtype=np.int64) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return _mix(_mix(index + seeds[0]) ^ seeds[1])

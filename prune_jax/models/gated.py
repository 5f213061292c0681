"""The dense layer that every prunable network here is made of."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

GATES = "gates"  # the flax collection; it mirrors the "params" paths of the kernels and holds nothing else


class GatedDense(nn.Module):
    """y = x @ (kernel * gate) + bias.

    The gate is an input, not a parameter: it lives in the collection "gates" under its kernel's own path, has the
    kernel's shape (in, out), and starts open (True). Boolean gates prune; float gates of any value scale, and can be
    differentiated. Where the collection is not passed to apply, the layer is an ordinary dense layer. A layer without
    inputs, those of it having been removed, is its bias: it has no kernel and no gate.

    Args of __call__:
      x: (..., in), any float dtype; computed in `dtype`.
    Returns:
      (..., features) of `dtype`.
    """

    features: int
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32) if shape[0] else jnp.zeros(shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if shape[0] and (self.is_initializing() or self.has_variable(GATES, "kernel")):
            gate = self.variable(GATES, "kernel", jnp.ones, shape, bool).value
            kernel = kernel * gate.astype(kernel.dtype)
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)

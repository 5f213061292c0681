"""The layers that every prunable network here is made of: dense, and convolutional."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

GATES = "gates"  # the flax collection; it mirrors the "params" paths of the kernels and holds nothing else


def _gated_kernel(layer, shape: tuple[int, ...], use_bias: bool = True) -> tuple[jax.Array, jax.Array | float]:
    """(kernel * gate, bias) of a layer with `features`, `dtype` and `kernel_init`, in its dtype; 0.0 for no bias."""
    bias = 0.0
    if use_bias:
        bias = layer.param("bias", nn.initializers.zeros, (layer.features,), jnp.float32).astype(layer.dtype)
    if 0 in shape:
        return jnp.zeros(shape, layer.dtype), bias
    kernel = layer.param("kernel", layer.kernel_init, shape, jnp.float32)
    if layer.is_initializing() or layer.has_variable(GATES, "kernel"):
        gate = layer.variable(GATES, "kernel", jnp.ones, kernel.shape, bool).value
        kernel = kernel * gate.astype(kernel.dtype)
    return kernel.astype(layer.dtype), bias


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
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = _gated_kernel(self, (x.shape[-1], self.features), self.use_bias)
        return x.astype(self.dtype) @ kernel + bias


class GatedConv(nn.Module):
    """y = conv(x, kernel * gate) + bias, in two dimensions; the gate is as GatedDense's, of the kernel's shape.

    Args of __call__:
      x: (batch, height, width, in), any float dtype; computed in `dtype`.
    Returns:
      (batch, height, width, features) of `dtype`; the kernel is (kernel height, kernel width, in, features).
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = _gated_kernel(self, (*self.kernel_size, x.shape[-1], self.features))
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, self.strides, self.padding, dimension_numbers=layout
        )
        return out + bias

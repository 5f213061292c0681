"""Pieces of a network without gates whose library form costs too much."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from prune_jax.pruning.random_bits import hashed_bits


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), the exact form (Hendrycks and Gimpel, 2016, arXiv:1606.08415), elementwise.

    The derivative, Phi(x) + x * phi(x), is taken in the forward pass, while the error function is at hand: left to
    itself, XLA on a CPU computes that again in the backward pass.
    """
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    cdf = (1 + jax.lax.erf(x * math.sqrt(0.5))) / 2
    return x * cdf, dx * (cdf + x * jnp.exp(-x * x / 2) * math.sqrt(0.5 / math.pi))


class Dropout(nn.Module):
    """Inverted dropout by prune_jax.pruning.random_bits: ThreeFry's bits are most of the cost of flax's on a CPU.

    The rate is exact to 2^-32. Needs the rng stream "dropout" unless deterministic.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        seeds = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        keep = hashed_bits(seeds, x.shape) >= np.uint32(round(self.rate * 2**32))
        return jnp.where(keep, x * (1 / (1 - self.rate)), 0).astype(x.dtype)


def classification_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """(batch,) float32: the cross-entropy in nats of logits (batch, classes) with integer labels (batch,)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def regression_losses(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """(batch,) float32: the squared error of scores (batch, 1)."""
    return jnp.square(scores[:, 0] - labels)

"""BERT (Devlin et al., 2019, arXiv:1810.04805) with gated dense layers: an encoder and one head."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prune_jax.models.functional import Dropout, gelu
from prune_jax.models.gated import GatedDense

_init = nn.initializers.normal(0.02)


def _gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS = {  # by the names that transformers gives them
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Geometry. `num_labels` is the width of the head; a regression task has one output and a head called regressor.

    A head is d_model // num_heads wide. `layer_heads` and `layer_ffn` are the heads and feed-forward columns of each
    layer of a shrunk network, 0 and more; empty, every layer has num_heads and d_ff. `pooler_width` are the units of
    its pooler; None, d_model.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    num_labels: int = 2
    regression: bool = False
    max_positions: int = 512
    type_vocab_size: int = 2
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    layer_heads: tuple[int, ...] = ()
    layer_ffn: tuple[int, ...] = ()
    pooler_width: int | None = None
    dtype: Any = jnp.float32


class Layer(nn.Module):
    """One post-LayerNorm block: self-attention, then a feed-forward layer, each with a residual connection.

    Sows into the collection "intermediates", where that is mutable, its output `hidden` (batch, length, d_model) and
    its scores `attention` (batch, heads, length, length) float32, before the softmax and without the mask.
    """

    cfg: BertConfig
    heads: int
    d_ff: int

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, deterministic: bool) -> jax.Array:
        cfg = self.cfg
        batch, length, _ = x.shape
        heads, depth = self.heads, cfg.d_model // cfg.num_heads

        def dense(features, name):
            return GatedDense(features, cfg.dtype, name=name)

        def dropout(y):
            return Dropout(cfg.dropout)(y, deterministic)

        def norm(y, name):
            return nn.LayerNorm(epsilon=cfg.layer_norm_eps, dtype=cfg.dtype, name=name)(y)

        mixed = hidden = jnp.zeros((batch, length, 0), cfg.dtype)  # what a layer that lost all its units passes on
        if heads:
            q, k, v = (
                dense(heads * depth, name)(x).reshape(batch, length, heads, depth) for name in ("query", "key", "value")
            )
            scores = jnp.einsum("bqhd,bkhd->bhqk", q * depth**-0.5, k).astype(jnp.float32)
            self.sow("intermediates", "attention", scores)
            weights = dropout(jax.nn.softmax(scores + bias).astype(cfg.dtype))
            mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, heads * depth)
        x = norm(x + dropout(dense(cfg.d_model, "attention_output")(mixed)), "attention_norm")
        if self.d_ff:
            hidden = ACTIVATIONS[cfg.activation](dense(self.d_ff, "ffn_hidden")(x))
        x = norm(x + dropout(dense(cfg.d_model, "ffn_output")(hidden)), "ffn_norm")
        self.sow("intermediates", "hidden", x)
        return x


class Bert(nn.Module):
    """Token ids to logits.

    Args of __call__:
      input_ids, token_type_ids, attention_mask: (batch, length) int32; the mask is 1 on tokens and 0 on padding.
      deterministic: False draws dropout from the rng stream "dropout".
    Returns:
      float32 logits (batch, num_labels); a regression head gives (batch, 1).
    """

    cfg: BertConfig

    inputs = ("input_ids", "token_type_ids", "attention_mask")  # of a batch, in the order of __call__

    @property
    def regression(self) -> bool:
        return self.cfg.regression

    def example_inputs(self) -> tuple[jax.Array, ...]:
        """Arguments of __call__ of the least size, to initialise with."""
        return (jnp.zeros((1, 8), jnp.int32),) * len(self.inputs)

    @nn.compact
    def __call__(self, input_ids, token_type_ids, attention_mask, deterministic: bool = True) -> jax.Array:
        cfg = self.cfg

        def embed(count, name):
            return nn.Embed(count, cfg.d_model, embedding_init=_init, dtype=cfg.dtype, name=name)

        x = embed(cfg.vocab_size, "token_embedding")(input_ids)
        x += embed(cfg.max_positions, "position_embedding")(jnp.arange(input_ids.shape[1])[None])
        x += embed(cfg.type_vocab_size, "type_embedding")(token_type_ids)
        x = nn.LayerNorm(epsilon=cfg.layer_norm_eps, dtype=cfg.dtype, name="embedding_norm")(x)
        x = Dropout(cfg.dropout)(x, deterministic)
        bias = jnp.where(attention_mask[:, None, None, :] > 0, 0.0, -1e9).astype(jnp.float32)
        heads = cfg.layer_heads or (cfg.num_heads,) * cfg.num_layers
        d_ff = cfg.layer_ffn or (cfg.d_ff,) * cfg.num_layers
        for i in range(cfg.num_layers):
            x = Layer(cfg, heads[i], d_ff[i], name=f"layer_{i}")(x, bias, deterministic)
        width = cfg.d_model if cfg.pooler_width is None else cfg.pooler_width
        pooled = jnp.zeros((x.shape[0], 0), cfg.dtype)
        if width:
            pooled = jnp.tanh(GatedDense(width, cfg.dtype, name="pooler")(x[:, 0]))
        pooled = Dropout(cfg.dropout)(pooled, deterministic)
        head = "regressor" if cfg.regression else "classifier"
        return GatedDense(cfg.num_labels, cfg.dtype, name=head)(pooled).astype(jnp.float32)

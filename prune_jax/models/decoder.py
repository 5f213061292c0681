"""A decoder as Llama's (Touvron et al., 2023, arXiv:2302.13971) with gated dense layers; Mistral's and Qwen2's, too.

RMSNorm before each part, rotary positions, keys and values shared by groups of heads, SwiGLU, a head that may be the
embedding. It evaluates whole sequences and keeps no keys and values.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from prune_jax.models.bert import ACTIVATIONS
from prune_jax.models.gated import GatedDense
from prune_jax.pruning.plan import Layers
from prune_jax.pruning.structure import Group

_init = nn.initializers.normal(0.02)
_READERS = ("attention_output", "ffn_output")  # of heads and columns


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Geometry. num_kv_heads divides num_heads; a head is head_dim wide, an even number.

    `qkv_bias`, `output_bias` and `ffn_bias` say which layers have biases. `window` is how many tokens a token sees,
    itself among them; None, all before it. `tied` says whether the head is the embedding.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    window: int | None = None
    tied: bool = False
    dtype: Any = jnp.float32


def rotated(x: jax.Array, theta: float) -> jax.Array:
    """x (batch, length, heads, depth) by rotary positions (Su et al., 2021), its halves the two parts of each pair."""
    depth = x.shape[-1]
    angles = jnp.arange(x.shape[1])[:, None] / theta ** (jnp.arange(0, depth, 2) / depth)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Layer(nn.Module):
    """Attention to what came before, then SwiGLU, each on an RMSNorm and added to its input.

    Sows what BERT's layers do: its output `hidden`, its scores `attention` (batch, heads, length, length) float32.
    """

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        cfg = self.cfg
        batch, length, _ = x.shape

        def dense(features, name, use_bias):
            return GatedDense(features, cfg.dtype, use_bias=use_bias, name=name)

        def norm(name):
            return nn.RMSNorm(epsilon=cfg.norm_eps, dtype=cfg.dtype, name=name)

        y = norm("attention_norm")(x)
        q, k, v = (
            dense(heads * cfg.head_dim, name, cfg.qkv_bias)(y).reshape(batch, length, heads, cfg.head_dim)
            for name, heads in (("query", cfg.num_heads), ("key", cfg.num_kv_heads), ("value", cfg.num_kv_heads))
        )
        q, k = rotated(q, cfg.rope_theta), rotated(k, cfg.rope_theta)
        q = q.reshape(batch, length, cfg.num_kv_heads, -1, cfg.head_dim) * cfg.head_dim**-0.5
        scores = jnp.einsum("bqngd,bknd->bngqk", q, k).astype(jnp.float32)
        self.sow("intermediates", "attention", scores.reshape(batch, -1, length, length))
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(cfg.dtype)
        mixed = jnp.einsum("bngqk,bknd->bqngd", weights, v).reshape(batch, length, -1)
        x = x + dense(cfg.d_model, "attention_output", cfg.output_bias)(mixed)
        y = norm("ffn_norm")(x)
        gate = ACTIVATIONS[cfg.activation](dense(cfg.d_ff, "ffn_gate", cfg.ffn_bias)(y))
        up = dense(cfg.d_ff, "ffn_hidden", cfg.ffn_bias)(y)
        x = x + dense(cfg.d_model, "ffn_output", cfg.ffn_bias)(gate * up)
        self.sow("intermediates", "hidden", x)
        return x


class Decoder(nn.Module):
    """Tokens (batch, length) int32 to the logits of the next ones, (batch, length, vocab_size) float32.

    deterministic is of no effect: there is no dropout.

    Example:
      >>> from prune_jax.models.decoder import Decoder, DecoderConfig
      >>> model = Decoder(DecoderConfig(32, 1, 16, 4, 2, 4, 24))
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
      >>> model.apply({"params": params}, jnp.zeros((2, 7), jnp.int32)).shape
      (2, 7, 32)
    """

    cfg: DecoderConfig

    inputs = ("input_ids",)  # of a batch, in the order of __call__
    head = "head"
    kinds = {"heads": "head", "columns": "ffn"}  # noqa: RUF012 - of the graph

    @property
    def layers(self) -> Layers:
        """Seven layer types, in their cyclic order, and the head."""
        kinds = ("query", "key", "value", "attention_output", "ffn_gate", "ffn_hidden", "ffn_output")
        return Layers(lambda name: name.split("/")[-2 if "/" in name else -1], kinds, (self.head,))

    def split(self, name: str) -> tuple[int, int] | None:
        """As Bert's; the queries go with the keys and values that they ask."""
        module, leaf = name.split("/")[-2:]
        at = dict.fromkeys(("query", "key", "value", "ffn_gate", "ffn_hidden"), 1) | dict.fromkeys(_READERS, 0)
        if module not in at or (leaf == "bias" and module in _READERS):
            return None
        return (0 if leaf == "bias" else at[module]), self.cfg.d_ff if "ffn" in module else self.cfg.num_kv_heads

    def in_body(self, name: str) -> bool:
        """Whether a kernel is not the head's."""
        return name.split("/")[0] != self.head

    def named(self, found: tuple[Group, ...], shapes: dict[str, tuple[int, ...]]) -> tuple[Group, ...]:
        """Heads of keys and values with the queries that ask them, single heads of queries, ffn columns, the residual.

        Args:
          found: the graph's groups that can be cut; shapes: of all params, by name.
        """
        named = []
        for group in found:
            runs = {(member.name, member.axis) for member in group.members}
            layer = next((name.split("/")[0] for name, _ in sorted(runs) if name.startswith("layer_")), "")
            if group.kind == "hidden":
                named.append(group)
            elif group.kind == "heads":
                kind = "head" if (f"{layer}/key/kernel", 1) in runs else "query_head"
                named.append(group._replace(name=f"{layer}.{kind}s", kind=kind))
            elif (f"{layer}/ffn_output/kernel", 0) in runs:
                named.append(group._replace(name=f"{layer}.ffn", kind="ffn"))
        return tuple(named)

    def layer_outputs(self, sown: dict) -> dict[str, list[jax.Array]]:
        """What the layers sow, {"hidden", "attention"}: each a list with one array per layer."""
        layers = [sown[f"layer_{i}"] for i in range(self.cfg.num_layers)]
        return {name: [layer[name][0] for layer in layers] for name in ("hidden", "attention")}

    def losses(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """(batch,) float32: the mean cross-entropy in nats of the tokens of each row that are scored."""
        sums, counts = jnp.split(self.scored(outputs, batch), 2, axis=1)
        return (sums / jnp.maximum(counts, 1))[:, 0]

    def scored(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """(batch, 2) float32: the sum of the cross-entropies of the tokens that are scored, and how many there are."""
        weights = batch["token_weights"][:, 1:]
        losses = next_token_losses(outputs, batch["input_ids"])
        return jnp.stack([jnp.sum(losses * weights, axis=1), jnp.sum(weights, axis=1)], axis=1)

    def example_inputs(self) -> tuple[jax.Array, ...]:
        """Arguments of __call__ of the least size, to initialise with."""
        return (jnp.zeros((1, 8), jnp.int32),)

    @nn.compact
    def __call__(self, input_ids: jax.Array, deterministic: bool = True) -> jax.Array:
        cfg, length = self.cfg, input_ids.shape[1]
        embed = nn.Embed(cfg.vocab_size, cfg.d_model, embedding_init=_init, dtype=cfg.dtype, name="token_embedding")
        x = embed(input_ids)
        behind = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
        seen = (behind >= 0) & (behind < (length if cfg.window is None else cfg.window))
        bias = jnp.where(seen, 0.0, -1e9).astype(jnp.float32)
        for i in range(cfg.num_layers):
            x = Layer(cfg, name=f"layer_{i}")(x, bias)
        x = nn.RMSNorm(epsilon=cfg.norm_eps, dtype=cfg.dtype, name="final_norm")(x)
        if cfg.tied:
            return embed.attend(x).astype(jnp.float32)
        return GatedDense(cfg.vocab_size, cfg.dtype, use_bias=False, name="head")(x).astype(jnp.float32)


def next_token_losses(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """(batch, length - 1) float32: the cross-entropy in nats of each next token.

    Args:
      logits: (batch, length, vocab_size); tokens: (batch, length) integers.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])


def create(config: Any, task: Any, vocab_size: int) -> Decoder:
    """The network that a resolved config describes."""
    cfg = config.model
    return Decoder(
        DecoderConfig(
            vocab_size=vocab_size,
            num_layers=cfg.num_layers,
            d_model=cfg.d_model,
            num_heads=cfg.num_heads,
            num_kv_heads=cfg.num_kv_heads,
            head_dim=cfg.head_dim,
            d_ff=cfg.d_ff,
            rope_theta=cfg.rope_theta,
            norm_eps=cfg.layer_norm_eps,
            activation=cfg.activation,
            qkv_bias="qkv" in cfg.biases,
            output_bias="output" in cfg.biases,
            ffn_bias="ffn" in cfg.biases,
            window=cfg.window,
            tied=cfg.tied,
            dtype=jnp.dtype(cfg.dtype),
        )
    )

"""BERT (Devlin et al., 2019, arXiv:1810.04805) with gated dense layers: an encoder and one head."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.models.functional import Dropout, classification_losses, gelu, regression_losses
from prune_jax.models.gated import GatedDense
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.plan import Layers
from prune_jax.pruning.structure import Group, Member

_init = nn.initializers.normal(0.02)


def _gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)


HEADS = ("regressor", "classifier")
_PER_LAYER = ("layer_heads", "layer_ffn")  # of BertConfig
OPTIONAL = ("pooler",)  # modules that a network may be saved without, and then starts with a new one


def text_sizes(params) -> tuple[int, int] | None:
    """(tokens, positions) that a network has embeddings for, by its params; None where it reads no text.

    A decoder, whose positions are rotary, has 2^31 of them.
    """
    if "token_embedding" not in params:
        return None
    positions = params["position_embedding"]["embedding"].shape[0] if "position_embedding" in params else 2**31
    return params["token_embedding"]["embedding"].shape[0], positions


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


POOLERS = {  # architecture: the activation of its pooler, which in all but bert belongs to the head
    "bert": jnp.tanh,
    "roberta": jnp.tanh,
    "distilbert": jax.nn.relu,
    "electra": gelu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Geometry. `num_labels` is the width of the head; a regression task has one output and a head called regressor.

    A head is d_model // num_heads wide. `layer_heads` and `layer_ffn` are the heads and feed-forward columns of each
    layer of a shrunk network, 0 and more; empty, every layer has num_heads and d_ff. `pooler_width` are the units of
    its pooler; None, d_model. Where layers are `closable`, one whose last norm is all 0 passes on its input.

    What is called RoBERTa, DistilBERT and ELECTRA is a BERT, too. Without token types (`type_vocab_size` is 0) they are
    not read; where there is one, all tokens are of it. An `embedding_size` other than d_model is projected to it. The
    `architecture`, of POOLERS, decides the pooler's activation and what an export is called; None is bert. (RoBERTa
    counts positions from its padding's id plus 1: the rows before that are never read, and prune_jax.export.hf leaves
    them out.)
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
    closable: bool = False
    dtype: Any = jnp.float32
    architecture: str | None = None
    embedding_size: int | None = None


class Projection(nn.Module):
    """x @ embedding + bias: from the width of the embeddings to that of the layers. It is a table: it has no gate."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        table = self.param("embedding", _init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x.astype(self.dtype) @ table.astype(self.dtype) + bias.astype(self.dtype)


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
        cfg, given = self.cfg, x
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
        if cfg.closable:
            x = jnp.where(jnp.any(self.variables["params"]["ffn_norm"]["scale"] != 0), x, given)
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
    def head(self) -> str:
        """The name of the module that belongs to the task."""
        return "regressor" if self.cfg.regression else "classifier"

    @property
    def layers(self) -> Layers:
        """The eight layer types, in their cyclic order; the pooler counts as the head that follows it."""
        kinds = ("query", "key", "value", "attention_output", "ffn_hidden", "ffn_output")

        def type_of(name: str) -> str:
            *module, leaf = name.split("/")
            if leaf not in ("kernel", "bias", "scale", "embedding"):  # of a unit
                return leaf
            return self.head if module == ["pooler"] else module[-1]

        return Layers(type_of, kinds, (self.head,))

    def split(self, name: str) -> tuple[int, int] | None:
        """(the axis of a weight that several devices can share, the heads or columns along it); None if they cannot."""
        layer, module, leaf = (*name.split("/"), "", "")[:3]
        at = {"query": 1, "key": 1, "value": 1, "attention_output": 0, "ffn_hidden": 1, "ffn_output": 0}.get(module)
        if at is None or (leaf == "bias" and at == 0):
            return None
        return (0 if leaf == "bias" else at), self.widths[module.startswith("ffn")][int(layer.removeprefix("layer_"))]

    def in_body(self, name: str) -> bool:
        """Whether a kernel is neither the pooler's nor the head's."""
        return name.split("/")[0] not in ("pooler", self.head)

    def named(self, found: tuple[Group, ...], shapes: dict[str, tuple[int, ...]]) -> tuple[Group, ...]:
        """Attention heads, feed-forward columns, units of the pooler, the residual width, and whole layers.

        A group is known by the kernel that reads it. What has one unit has no axis of units in the graph: it is all the
        columns of what makes it, and all the rows of what reads it. Nor has a whole layer: it is all its weights.

        Args:
          found: the graph's groups that can be cut; shapes: of all params, by name.
        """
        kinds = {"attention_output": "heads", "ffn_output": "ffn", self.head: "pooler"}
        named: dict[str, Group] = {}
        norm = "layer_0/attention_norm/scale" if self.cfg.num_layers else "embedding_norm/scale"
        for group in found:
            runs = {(member.name, member.axis) for member in group.members}
            layer = next((name.split("/")[0] for name, axis in sorted(runs) if axis == 0), "")
            word = next((kinds[m] for n, axis in runs if axis == 0 and (m := gates_lib.module(n)) in kinds), None)
            if (norm, 0) in runs:
                named["hidden"] = group._replace(name="hidden", kind="hidden")
            elif group.kind != "depth" and word:
                name = "pooler.pooler" if word == "pooler" else f"{layer}.{word}"
                named[name] = group._replace(name=name, kind=word.removesuffix("s"))

        def whole(name: str, kind: str, inner: tuple[str, ...], outer: str) -> None:
            at = [*((f"{module}/kernel", 1) for module in inner), (f"{outer}/kernel", 0)]
            members = (Member(kernel, axis, np.zeros(shapes[kernel][axis], np.int32)) for kernel, axis in at)
            named[name] = Group(name, kind, 1, tuple(members))

        layers = [f"layer_{i}" for i in range(self.cfg.num_layers)]
        for layer, heads, columns in zip(layers, *self.widths, strict=True):
            if heads == 1:
                inner = tuple(f"{layer}/{module}" for module in ("query", "key", "value"))
                whole(f"{layer}.heads", "head", inner, f"{layer}/attention_output")
            if columns == 1:
                whole(f"{layer}.ffn", "ffn", (f"{layer}/ffn_hidden",), f"{layer}/ffn_output")
            own = {name: shape for name, shape in shapes.items() if name.startswith(f"{layer}/")}
            members = tuple(Member(name, 0, np.zeros(shape[0], np.int32)) for name, shape in own.items())
            named[f"{layer}.layer"] = Group(f"{layer}.layer", "layer", 1, members)
        if self.cfg.pooler_width == 1:
            whole("pooler.pooler", "pooler", ("pooler",), self.head)
        inside = [f"{layer}.{word}" for layer in layers for word in ("heads", "ffn")]
        order = (*inside, "pooler.pooler", "hidden", *(f"{layer}.layer" for layer in layers))
        return tuple(named[name] for name in order if name in named)

    def opened(self, params: dict, gates: dict) -> tuple["Bert", dict, dict]:
        """(the network without its closed layers, its params, its gates); what is left is numbered anew."""

        def closed(i: int) -> bool:
            gate = gates.get(f"layer_{i}", {}).get("ffn_norm", {}).get("scale")
            return self.cfg.closable and gate is not None and not np.any(gate)

        cfg, layers = self.cfg, range(self.cfg.num_layers)
        left = [i for i in layers if not closed(i)]
        numbers = {f"layer_{i}": f"layer_{left.index(i)}" if i in left else "" for i in layers}
        sizes = {name: tuple(getattr(cfg, name)[i] for i in left) for name in _PER_LAYER if getattr(cfg, name)}
        model = Bert(dataclasses.replace(cfg, num_layers=len(left), closable=False, **sizes), parent=None)
        trees = ({numbers.get(name, name): own for name, own in tree.items()} for tree in (params, gates))
        return model, *({name: own for name, own in tree.items() if name} for tree in trees)

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(the attention heads of each layer, the feed-forward columns of each layer)."""
        cfg = self.cfg
        return cfg.layer_heads or (cfg.num_heads,) * cfg.num_layers, cfg.layer_ffn or (cfg.d_ff,) * cfg.num_layers

    def layer_outputs(self, sown: dict) -> dict[str, list[jax.Array]]:
        """What the layers sow, {"hidden", "attention"}: each a list with one array per layer that has it."""
        layers = [sown[f"layer_{i}"] for i in range(self.cfg.num_layers)]
        return {name: [layer[name][0] for layer in layers if name in layer] for name in ("hidden", "attention")}

    def losses(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """(batch,) float32: the squared error of a score, or the cross-entropy in nats."""
        return (regression_losses if self.cfg.regression else classification_losses)(outputs, batch["labels"])

    def example_inputs(self) -> tuple[jax.Array, ...]:
        """Arguments of __call__ of the least size, to initialise with."""
        return (jnp.zeros((1, 8), jnp.int32),) * len(self.inputs)

    @nn.compact
    def __call__(self, input_ids, token_type_ids, attention_mask, deterministic: bool = True) -> jax.Array:
        cfg = self.cfg

        def embed(count, name):
            return nn.Embed(count, size, embedding_init=_init, dtype=cfg.dtype, name=name)

        size = cfg.embedding_size or cfg.d_model

        x = embed(cfg.vocab_size, "token_embedding")(input_ids)
        x += embed(cfg.max_positions, "position_embedding")(jnp.arange(input_ids.shape[1])[None])
        if cfg.type_vocab_size:
            types = token_type_ids if cfg.type_vocab_size > 1 else jnp.zeros_like(token_type_ids)
            x += embed(cfg.type_vocab_size, "type_embedding")(types)
        x = nn.LayerNorm(epsilon=cfg.layer_norm_eps, dtype=cfg.dtype, name="embedding_norm")(x)
        x = Dropout(cfg.dropout)(x, deterministic)
        if size != cfg.d_model:
            x = Projection(cfg.d_model, cfg.dtype, name="embedding_projection")(x)
        bias = jnp.where(attention_mask[:, None, None, :] > 0, 0.0, -1e9).astype(jnp.float32)
        heads, d_ff = self.widths
        for i in range(cfg.num_layers):
            x = Layer(cfg, heads[i], d_ff[i], name=f"layer_{i}")(x, bias, deterministic)
        width = cfg.d_model if cfg.pooler_width is None else cfg.pooler_width
        pooled = jnp.zeros((x.shape[0], 0), cfg.dtype)
        if width:
            pooled = POOLERS[cfg.architecture or "bert"](GatedDense(width, cfg.dtype, name="pooler")(x[:, 0]))
        pooled = Dropout(cfg.dropout)(pooled, deterministic)
        return GatedDense(cfg.num_labels, cfg.dtype, name=self.head)(pooled).astype(jnp.float32)


def create(config, task, vocab_size: int) -> Bert:
    """The network that a resolved config describes, with a head for the task's labels."""
    cfg = config.model
    structure = structure_lib.parse(config.pruning.structure)
    layers = (Group(f"layer_{i}.layer", "layer", 1, ()) for i in range(cfg.num_layers))
    return Bert(
        BertConfig(
            vocab_size=vocab_size,
            num_layers=cfg.num_layers,
            d_model=cfg.d_model,
            num_heads=cfg.num_heads,
            d_ff=cfg.d_ff,
            num_labels=task.num_labels,
            regression=task.is_regression,
            max_positions=cfg.max_positions,
            type_vocab_size=cfg.type_vocab_size,
            dropout=cfg.dropout,
            layer_norm_eps=cfg.layer_norm_eps,
            activation=cfg.activation,
            layer_heads=cfg.layer_heads or (),
            layer_ffn=cfg.layer_ffn or (),
            pooler_width=cfg.pooler_width,
            closable=any(structure_lib.names(structure, layer) for layer in layers),
            dtype=jnp.dtype(cfg.dtype),
            architecture=cfg.architecture,
            embedding_size=cfg.embedding_size,
        )
    )

"""What transformers calls the parts of a BERT, and of what is a BERT by another name: tensors, and keys of config.json.

An architecture is a row of ARCHITECTURES; what its network does otherwise is said in prune_jax.models.bert.
"""

from typing import NamedTuple

Place = tuple[str, ...]  # the keys on the way to a leaf of params
Keys = dict[
    str, tuple[str, int | float | str]
]  # key of config.model: (key of config.json, its value where it is left out)


class Architecture(NamedTuple):
    """The names of one architecture.

    Attributes:
      base: of the encoder in a model with a head, and the model_type.
      prefix: of its classes, as in BertForSequenceClassification.
      keys: of its config.json.
      layer: of a layer, with a place for its number; modules: of what is in a layer, by our names.
      pooler, head: with the encoder's name where they are in it.
      dropouts: keys of config.json that a dropout rate is written to.
      padded: whether the first rows of the position embedding, up to that of the padding's id, stand for no position.
    """

    base: str
    prefix: str
    keys: Keys
    layer: str
    modules: dict[str, str]
    pooler: str
    head: str
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    padded: bool = False

    @property
    def classifier(self) -> str:
        """The class that a sequence is classified with."""
        return f"{self.prefix}ForSequenceClassification"


_KEYS: Keys = {
    "num_layers": ("num_hidden_layers", 12),
    "d_model": ("hidden_size", 768),
    "num_heads": ("num_attention_heads", 12),
    "d_ff": ("intermediate_size", 3072),
    "vocab_size": ("vocab_size", 30522),
    "max_positions": ("max_position_embeddings", 512),
    "type_vocab_size": ("type_vocab_size", 2),
    "activation": ("hidden_act", "gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
}
_MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_hidden": "intermediate.dense",
    "ffn_output": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_LAYER = "encoder.layer.{}"
_DISTIL_KEYS: Keys = {
    "num_layers": ("n_layers", 6),
    "d_model": ("dim", 768),
    "num_heads": ("n_heads", 12),
    "d_ff": ("hidden_dim", 3072),
    "vocab_size": ("vocab_size", 30522),
    "max_positions": ("max_position_embeddings", 512),
    "activation": ("activation", "gelu"),
}
_DISTIL_MODULES = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "ffn_hidden": "ffn.lin1",
    "ffn_output": "ffn.lin2",
    "ffn_norm": "output_layer_norm",
}
_ELECTRA_KEYS: Keys = {
    **_KEYS,
    "d_model": ("hidden_size", 256),
    "num_heads": ("num_attention_heads", 4),
    "d_ff": ("intermediate_size", 1024),
    "embedding_size": ("embedding_size", 128),
}

ARCHITECTURES = {
    row.base: row
    for row in (
        Architecture("bert", "Bert", _KEYS, _LAYER, _MODULES, "bert.pooler.dense", "classifier"),
        Architecture("roberta", "Roberta", {**_KEYS, "vocab_size": ("vocab_size", 50265)}, _LAYER, _MODULES,
                     "classifier.dense", "classifier.out_proj", padded=True),
        Architecture("distilbert", "DistilBert", _DISTIL_KEYS, "transformer.layer.{}", _DISTIL_MODULES,
                     "pre_classifier", "classifier", ("dropout", "attention_dropout", "seq_classif_dropout")),
        Architecture("electra", "Electra", _ELECTRA_KEYS, _LAYER, _MODULES, "classifier.dense", "classifier.out_proj"),
    )
}  # fmt: skip

_EMBEDDINGS = {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "embedding_projection": "embeddings_project",
}
TOKENS = "embeddings.word_embeddings.weight"  # of every architecture, behind the encoder's name


def transposed(path: Place) -> bool:
    """Whether the leaf of params at `path` is (in, out), where the tensor is (out, in)."""
    return path[-1] == "kernel" or path == ("embedding_projection", "embedding")


def tensor_name(path: Place, architecture: str = "bert") -> str:
    """The name of the tensor of a model for sequence classification for the leaf of params at `path`."""
    names = ARCHITECTURES[architecture]
    *rooms, leaf = path
    module = rooms[-1]
    if module in _EMBEDDINGS:
        module = f"{names.base}.{_EMBEDDINGS[module]}"
    elif rooms[0].startswith("layer_"):
        layer = names.layer.format(rooms[0].removeprefix("layer_"))
        module = f"{names.base}.{layer}.{names.modules[module]}"
    else:
        module = names.pooler if module == "pooler" else names.head
    return f"{module}.{'bias' if leaf == 'bias' else 'weight'}"


def architecture_of(raw: dict) -> str | None:
    """The architecture of a config.json; None where it is of none, or of another.

    Without a model_type, the name of its class tells, and else the keys that only a BERT's has together.
    """
    if kind := raw.get("model_type"):
        return kind if isinstance(kind, str) and kind in ARCHITECTURES else None
    listed = raw.get("architectures")
    if isinstance(listed, list) and listed:
        found = (base for base, names in ARCHITECTURES.items() if str(listed[0]).startswith((names.prefix, "Shrunk")))
        return next(found, None)
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size")
    return "bert" if all(key in raw for key in needed) and "embedding_size" not in raw else None

"""The keys that are unset: what they follow, a checkpoint, the size of the model, or the kind of network."""

from collections.abc import Callable, Mapping
from typing import Any

from prune_jax.config.rooms import MODELS
from prune_jax.config.sizes import FOLLOWS_SIZE, LAYER_EPSILON, SIZES
from prune_jax.config.values import fail, get, put
from prune_jax.data.glue import BUILTIN_TASKS, IMAGE_TASKS, KINDS, LANGUAGE, PICTURES, TABLES, TASKS
from prune_jax.errors import UserError

Describe = Callable[[str], tuple[Mapping[str, Any], str]]

FOLLOWS_CHECKPOINT = (  # keys of config.model that a network brings with it
    "num_layers",
    "d_model",
    "num_heads",
    "d_ff",
    "vocab_size",
    "max_positions",
    "type_vocab_size",
    "activation",
    "layer_norm_eps",
    "architecture",
    "embedding_size",
    "num_kv_heads",
    "head_dim",
    "rope_theta",
    "biases",
    "window",
    "tied",
    "layer_heads",
    "layer_ffn",
    "pooler_width",
    "widths",
)

OF_DECODER = {  # a decoder's own, where neither the user nor a checkpoint says
    "model.max_positions": 2048,
    "model.activation": "silu",
    "model.layer_norm_eps": 1e-6,
    "model.rope_theta": 10_000.0,
    "model.biases": (),
    "model.tied": True,
}

OTHERWISE = {  # BERT's own, where neither the user nor a checkpoint says
    "model.max_positions": 512,
    "model.type_vocab_size": 2,
    "model.activation": "gelu",
    "model.layer_norm_eps": 1e-12,
}


def follow(config, describe: Describe | None) -> None:
    """Fills in, in place, what neither the user nor a checkpoint has set."""
    if config.model.size not in SIZES:
        raise fail("model.size", config.model.size, ", ".join(SIZES))
    _follow_folder(config)
    _follow_checkpoint(config, describe)
    if config.spt.epsilon is None and config.spt.credit == "layer":
        config.spt.epsilon = LAYER_EPSILON
    size = SIZES[config.model.size]
    _fill(config, {key: getattr(size, field) for key, field in FOLLOWS_SIZE.items()})
    if config.model.architecture == "distilbert":
        _fill(config, {"model.type_vocab_size": 0})
    _fill(config, _otherwise(config.model))


def _fill(config, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if get(config, key) is None:
            put(config, key, value)


def _otherwise(model) -> dict[str, Any]:
    """What holds where neither the user nor a checkpoint says, by key."""
    if MODELS.get(model.name) != LANGUAGE:
        return OTHERWISE
    own = {"model.num_kv_heads": model.num_heads, "model.head_dim": max(model.d_model // model.num_heads, 1)}
    return OTHERWISE | OF_DECODER | own


def _follow_folder(config) -> None:
    """Turns data.source=auto into the source that data.dir speaks for, and the task of own data into its kind."""
    data = config.data
    if data.source in TABLES + PICTURES and data.task not in (*KINDS, LANGUAGE):
        known = TASKS | BUILTIN_TASKS | IMAGE_TASKS
        if data.task not in known:
            raise fail("data.task", data.task, f"{', '.join(KINDS)} with config.data.source={data.source}")
        data.task = KINDS[known[data.task].is_regression]
    if data.source == "auto":
        data.source = ("idx" if data.task in IMAGE_TASKS else "tsv") if data.dir else "builtin"


def _follow_checkpoint(config, describe: Describe | None) -> None:
    """Takes geometry and tokenizer, where they are not set, from what config.model.init_from names.

    Raises:
      UserError: it is no network, or another one than the keys that are set describe.
    """
    source = config.model.init_from
    if not source:
        return
    if describe is None:
        raise ValueError(f"config.model.init_from is {source!r}: resolve needs `describe` to read what is there")
    theirs_by_name, tokenizer = describe(source)
    kinds = [MODELS.get(name) == LANGUAGE for name in (config.model.name, theirs_by_name.get("name", "bert"))]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"config.model.init_from={source!r} is {'a' if kinds[1] else 'no'} decoder, and config.model.name is "
            f"{config.model.name!r}"
        )
    differs = []
    for name in FOLLOWS_CHECKPOINT:
        ours, theirs = config.model[name], theirs_by_name.get(name)
        if ours is None:
            put(config, f"model.{name}", theirs)
        elif theirs is not None and ours != theirs:
            differs.append(f"config.model.{name} is {ours}, and there it is {theirs}")
    if differs:
        raise UserError(
            f"config.model.init_from={source!r} is another network than this config's: {'; '.join(differs)} "
            "(keys that are not set follow it)"
        )
    if not config.data.tokenizer:
        config.data.tokenizer = tokenizer

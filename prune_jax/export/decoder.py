"""Decoder checkpoints of the transformers library: LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM.

A checkpoint is a folder with config.json and safetensors files, one or several with an index, in float32, float16 or
bfloat16. Torch is not needed. What is written has the same config.json, dtype and tokenizer, and loads with
AutoModelForCausalLM.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.export import tensors as tensor_files
from prune_jax.models.bert import ACTIVATIONS
from prune_jax.models.decoder import Decoder, DecoderConfig
from prune_jax.pruning import trees

Tree = dict

_CONFIG = "config.json"
_KINDS = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"}
_MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_hidden": "mlp.up_proj",
    "ffn_output": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
          "intermediate_size", "rms_norm_eps")  # fmt: skip
_OUTER = {"token_embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}


def tensor_name(path: tuple[str, ...]) -> str:
    """The name of the tensor for the leaf of params at `path`. Kernels are transposed: (out, in) there."""
    *rooms, leaf = path
    if rooms[0].startswith("layer_"):
        module = f"model.layers.{rooms[0].removeprefix('layer_')}.{_MODULES[rooms[1]]}"
    else:
        module = _OUTER[rooms[0]]
    return f"{module}.{'bias' if leaf == 'bias' else 'weight'}"


def _fail(folder: Path, problems: list[str]) -> UserError:
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return UserError(f"the checkpoint {folder} cannot be loaded: {'; '.join(problems[:8])}{more}")


def read_config(folder: Path) -> DecoderConfig:
    """The geometry of a checkpoint.

    Raises:
      UserError: there is no checkpoint, or it is of another architecture; the message lists all that differs.
    """
    if not (folder / _CONFIG).is_file():
        raise UserError(f"{folder} is no checkpoint: it has no {_CONFIG}")
    raw = files.read_json(folder / _CONFIG)
    name = (raw.get("architectures") or [None])[0]
    if name not in _KINDS:
        raise _fail(folder, [f"its architecture is {name!r}; allowed: {', '.join(_KINDS)}"])
    problems = []
    sizes = {}
    for key in ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        sizes[key] = raw.get(key)
        if type(raw.get(key)) is not int or raw[key] <= 0:
            problems.append(f"{key} is {raw.get(key)!r}; allowed: a positive whole number")
    if problems:
        raise _fail(folder, problems)
    heads = sizes["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    head_dim = raw.get("head_dim") or sizes["hidden_size"] // heads
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    activation = raw.get("hidden_act", "silu")
    if heads % kv_heads:
        problems.append(f"num_key_value_heads is {kv_heads}, no divisor of num_attention_heads {heads}")
    if head_dim % 2:
        problems.append(f"head_dim is {head_dim}; allowed: an even number")
    if kind != "default":
        problems.append(f"its rope_type is {kind!r}; allowed: 'default'")
    if activation not in ACTIVATIONS:
        problems.append(f"hidden_act is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    if raw.get("use_sliding_window"):
        problems.append("use_sliding_window is True; allowed: False")
    if raw.get("quantization_config"):
        problems.append("it is quantised; allowed: float32, float16, bfloat16")
    if problems:
        raise _fail(folder, problems)
    llama = name == "LlamaForCausalLM"
    return DecoderConfig(
        vocab_size=sizes["vocab_size"],
        num_layers=sizes["num_hidden_layers"],
        d_model=sizes["hidden_size"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=sizes["intermediate_size"],
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        activation=activation,
        qkv_bias=name == "Qwen2ForCausalLM" or (llama and bool(raw.get("attention_bias"))),
        output_bias=llama and bool(raw.get("attention_bias")),
        ffn_bias=llama and bool(raw.get("mlp_bias")),
        window=raw.get("sliding_window", 4096) if name == "MistralForCausalLM" else None,
        tied=bool(raw.get("tie_word_embeddings", False)),
    )


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder is of one of these architectures, by its config.json."""
    path = Path(folder) / _CONFIG
    if not path.is_file():
        return False
    raw = files.read_json(path)
    names = raw.get("architectures") if isinstance(raw, dict) else None
    return bool(names) and names[0] in _KINDS


def model_keys(folder: Path) -> dict[str, Any]:
    """The keys of config.model that a checkpoint decides, config.model.name among them.

    Raises:
      UserError: as read_config.
    """
    cfg = read_config(folder)
    same = ("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "rope_theta",
            "activation", "window", "tied")  # fmt: skip
    biases = {"qkv": cfg.qkv_bias, "output": cfg.output_bias, "ffn": cfg.ffn_bias}
    longest = files.read_json(folder / _CONFIG).get("max_position_embeddings")
    return {
        "name": "decoder",
        **{name: getattr(cfg, name) for name in same},
        "layer_norm_eps": cfg.norm_eps,
        "biases": tuple(name for name, has in biases.items() if has),
        "max_positions": longest if type(longest) is int and longest > 0 else None,
    }


def describe(cfg: DecoderConfig, max_positions: int) -> dict[str, Any]:
    """The config.json of a network.

    Raises:
      UserError: no architecture of transformers has what this one has together; the message says what.
    """
    name = "LlamaForCausalLM"
    if cfg.window is not None:
        name = "MistralForCausalLM"
        if cfg.qkv_bias or cfg.output_bias or cfg.ffn_bias:
            raise UserError("a window and biases together have no architecture of transformers")
    elif cfg.qkv_bias != cfg.output_bias:
        name = "Qwen2ForCausalLM"
        if not cfg.qkv_bias or cfg.ffn_bias:
            raise UserError("these biases have no architecture of transformers; it has qkv, qkv+output, ffn, or all")
    own: dict[str, Any] = {"attention_bias": cfg.qkv_bias, "mlp_bias": cfg.ffn_bias}
    if name == "MistralForCausalLM":
        own = {"sliding_window": cfg.window}
    elif name == "Qwen2ForCausalLM":
        own = {"use_sliding_window": False}
    return {
        "architectures": [name],
        "model_type": _KINDS[name],
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.d_model,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.d_ff,
        "max_position_embeddings": max_positions,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": cfg.activation,
        "tie_word_embeddings": cfg.tied,
        "dtype": "float32",
        **own,
    }


def _shards(folder: Path) -> list[Path]:
    if (folder / tensor_files.WEIGHTS).is_file():
        return [folder / tensor_files.WEIGHTS]
    if not (folder / tensor_files.INDEX).is_file():
        raise UserError(f"the checkpoint {folder} has no {tensor_files.WEIGHTS}")
    names = tensor_files.shards(folder / tensor_files.INDEX)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise _fail(folder, [f"{tensor_files.INDEX} names {name}, which is not there" for name in missing])
    return [folder / name for name in names]


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for path in _shards(folder):
        tensors |= tensor_files.read(path)
    return {name: value for name, value in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def load(folder: Path) -> tuple[DecoderConfig, Tree, Any]:
    """(the geometry, the params as float32 NumPy arrays, the dtype of the files) of a checkpoint.

    Raises:
      UserError: the checkpoint cannot be read, or its tensors are not those that its config.json describes; the message
        lists what differs.
    """
    folder = Path(folder)
    cfg, given = read_config(folder), _tensors(folder)
    shapes = jax.eval_shape(Decoder(cfg).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), np.int32))["params"]
    params, problems, used = {}, [], set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        place = trees.place(path)
        name = tensor_name(place)
        used.add(name)
        if name not in given:
            problems.append(f"{name} is missing")
            continue
        value = given[name].T if place[-1] == "kernel" else given[name]
        if value.shape != leaf.shape:
            problems.append(f"{name} is {given[name].shape}, and config.json makes it another shape")
            continue
        params["/".join(place)] = np.ascontiguousarray(value.astype(np.float32))
    extra = given.keys() - used - ({"lm_head.weight"} if cfg.tied else set())
    problems += [f"{name} has no place in this architecture" for name in sorted(extra)]
    if problems:
        raise _fail(folder, problems)
    return cfg, trees.nested(params, "/"), given["model.embed_tokens.weight"].dtype


def dtype(folder: Path) -> Any:
    """The dtype of the files of a checkpoint that can be loaded: that of its embedding."""
    import safetensors

    name = "model.embed_tokens.weight"
    for path in _shards(folder):
        with safetensors.safe_open(path, "numpy") as file:
            if name in file.keys():  # noqa: SIM118, not a dict
                return file.get_tensor(name).dtype
    raise _fail(folder, [f"{name} is missing"])


def write(folder: Path, source: Path, params: Tree, dtype: Any, cfg: DecoderConfig | None = None) -> None:
    """Fills an existing folder with the checkpoint in `source`, its weights replaced.

    Args:
      params: as of load; dtype: of the tensors; cfg: the geometry, where it is smaller than the checkpoint's.
    """
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".jinja") and path.name != tensor_files.INDEX:
            shutil.copyfile(path, folder / path.name)
    if (templates := source / "additional_chat_templates").is_dir():  # where a tokenizer has several
        shutil.copytree(templates, folder / templates.name)
    if cfg is not None:
        raw = files.read_json(source / _CONFIG) | {
            key: value for key, value in describe(cfg, 0).items() if key in _SIZES
        }
        if isinstance(kinds := raw.get("layer_types"), list):  # one per layer, all alike
            raw["layer_types"] = kinds[: cfg.num_layers]
        files.write_json(folder / _CONFIG, raw)
    write_tensors(folder, params, dtype)


def special_ids(tokenizer: Path) -> dict[str, int | None]:
    """The ids of the tokens that begin, end and pad a text, as config.json names them, of a tokenizer's folder.

    None where it has none: without a word of it transformers takes 1 and 2, whatever they stand for.
    """
    settings, backend = (files.read_json(tokenizer / "tokenizer_config.json"),
                         files.read_tokenizer(tokenizer / "tokenizer.json"))  # fmt: skip
    names = {part: settings.get(f"{part}_token") for part in ("bos", "eos", "pad")}
    return {
        f"{part}_token_id": backend.token_to_id(name) if isinstance(name, str) else None for part, name in names.items()
    }


def write_tensors(folder: Path, params: Tree, dtype: Any = np.float32) -> None:
    """Writes a checkpoint's weights into an existing folder; params: as of load; dtype: of the tensors."""
    import safetensors.numpy

    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        place = trees.place(path)
        value = np.asarray(leaf).astype(dtype)
        tensors[tensor_name(place)] = np.ascontiguousarray(value.T if place[-1] == "kernel" else value)
    files.write_bytes(folder / tensor_files.WEIGHTS, safetensors.numpy.save(tensors, metadata={"format": "pt"}))

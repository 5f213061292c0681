"""BERT checkpoints of the transformers library: read into this package's trees, and written from them.

Only safetensors files are read, never a pickle, and torch plays no part. A checkpoint may be a BertModel or a BERT with
any head, its tensors with or without the prefix "bert.", in one file or in shards with an index. The head of a
BertForSequenceClassification is kept, every other one is dropped; a checkpoint without a pooler leaves it out. Its
classes come in the order that config.json names them in, which load_for turns into the task's.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_jax import gates as gates_lib
from prune_jax import trees
from prune_jax.errors import UserError, first_line
from prune_jax.models.bert import ACTIVATIONS, Bert, BertConfig

Tree = dict
Place = tuple[str, ...]  # of a leaf in params

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_EMBEDDINGS = {"token_embedding": "word", "position_embedding": "position", "type_embedding": "token_type"}
_DENSE = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_hidden": "intermediate.dense",
    "ffn_output": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}
_LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
_OTHER_HEADS = ("cls.", "classifier.", "qa_outputs.")

_KEYS = {  # config.model's key: (config.json's key, BERT's own value, which a file may leave out)
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

_KINDS = {  # what else is read of config.json, where it is there: (what is allowed, whether a value is)
    "architectures": ("a list of names", lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v)),
    "id2label": ("names by number", lambda v: isinstance(v, dict)),
    "num_labels": ("a positive whole number", lambda v: type(v) is int and v > 0),
    "pruned_heads": (
        "a list of heads by the number of its layer",
        lambda v: isinstance(v, dict) and all(n.isdecimal() and isinstance(heads, list) for n, heads in v.items()),
    ),
}


def tensor_name(path: Place) -> str:
    """The name that BertForSequenceClassification has for the leaf of params at `path`. Its kernels are transposed."""
    *rooms, leaf = path
    module = rooms[-1]
    if module in _EMBEDDINGS:
        return f"bert.embeddings.{_EMBEDDINGS[module]}_embeddings.weight"
    if rooms[0].startswith("layer_"):
        module = f"bert.encoder.layer.{rooms[0].removeprefix('layer_')}.{(_DENSE | _NORMS)[module]}"
    elif module == "embedding_norm":
        module = "bert.embeddings.LayerNorm"
    elif module == "pooler":
        module = "bert.pooler.dense"
    else:
        module = "classifier"  # transformers has one name for both kinds of head
    return f"{module}.{_LEAVES[leaf]}"


# In ------------------------------------------------------------------------------------------------------------------


def _file(source: str, name: str) -> Path | None:
    """The file `name` of a checkpoint, from its folder or through the hub's cache; None if the checkpoint has none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise UserError(f"config.model.init_from is {source!r}; there is no such folder, and it is no name on the hub")
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(source, name))
    except Exception as error:  # offline, no such repository, no access: the library has a kind for each
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(
            f"config.model.init_from is {source!r}; there is no such folder, and the hub does not give its {name}: "
            f"{first_line(error)[:300]}"
        ) from error


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON file: {first_line(error)[:300]}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return found


def _raw_config(source: str) -> dict:
    path = _file(source, _CONFIG)
    if path is None:
        raise UserError(
            f"config.model.init_from is {source!r}; allowed: the folder of a run (config.json and checkpoints/), or a "
            "transformers checkpoint (config.json and model.safetensors), as a folder or by its name on the hub"
        )
    return _read_json(path)


def _fail(source: str, problems: list[str]) -> UserError:
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return UserError(f"config.model.init_from={source!r} cannot be loaded: {'; '.join(problems[:8])}{more}")


def read_config(source: str) -> dict[str, Any]:
    """The keys of config.model that the checkpoint in `source`, a folder or a name on the hub, decides.

    Raises:
      UserError: it cannot be read, or is of another architecture, with a list of all that differs.
    """
    return _geometry(source, _raw_config(source))


def _geometry(source: str, raw: dict) -> dict[str, Any]:
    """read_config of a config.json that is already read, `raw`."""
    kind = raw.get("model_type")
    if kind != "bert":
        raise _fail(source, [f"its model_type is {kind!r}; allowed: 'bert'"])
    found = {ours: raw.get(theirs, default) for ours, (theirs, default) in _KEYS.items()}
    problems = []
    for ours, (theirs, default) in _KEYS.items():
        value = found[ours]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            found[ours] = value = float(value)
        if type(value) is not type(default) or not (isinstance(value, str) or value > 0):
            kinds = {int: "a positive whole number", float: "a positive number", str: "a name"}
            problems.append(f"{theirs} is {value!r}; allowed: {kinds[type(default)]}")
    if not problems and found["d_model"] % found["num_heads"]:
        problems.append(f"num_attention_heads is {found['num_heads']}, no divisor of hidden_size {found['d_model']}")
    if str(found["activation"]) not in ACTIVATIONS:
        problems.append(f"hidden_act is {found['activation']!r}; allowed: {', '.join(ACTIVATIONS)}")
    for key, wanted in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        if (value := raw.get(key)) not in (None, wanted):
            problems.append(f"{key} is {value!r}; allowed: {wanted!r}")
    for key, (allowed, fits) in _KINDS.items():
        if (value := raw.get(key)) is not None and not fits(value):
            problems.append(f"{key} is {value!r}; allowed: {allowed}")
    found |= {"layer_heads": None, "layer_ffn": None, "pooler_width": raw.get("pooler_width")}
    if not problems:
        width, most = found["pooler_width"], found["d_model"]
        if width is not None and not (type(width) is int and 0 <= width <= most):
            problems.append(f"pooler_width is {width!r}; allowed: a whole number from 0 to {most}")
        for key, most in (("layer_heads", found["num_heads"]), ("layer_ffn", found["d_ff"])):
            sizes = raw.get(key)
            if key == "layer_heads" and raw.get("pruned_heads"):  # transformers before 5 told of lost heads so
                lost = {int(layer): len(heads) for layer, heads in raw["pruned_heads"].items()}
                sizes = [most - lost.get(i, 0) for i in range(found["num_layers"])]
            if sizes is None:
                continue
            whole = isinstance(sizes, list) and all(type(size) is int and 0 <= size <= most for size in sizes)
            if whole and len(sizes) == found["num_layers"]:
                found[key] = tuple(sizes)
            else:
                allowed = f"{found['num_layers']} whole numbers from 0 to {most}, one a layer"
                problems.append(f"{key} is {sizes!r}; allowed: {allowed}")
    if problems:
        raise _fail(source, problems)
    return found


def tokenizer(source: str) -> str:
    """What config.data.tokenizer is to be for this checkpoint: its own, or "" for a folder that has none."""
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return ""
    return source


def _shards(source: str) -> list[Path]:
    """The safetensors files of a checkpoint."""
    if path := _file(source, _WEIGHTS):
        return [path]
    index = _file(source, _INDEX)
    if index is None:
        pickled = _file(source, "pytorch_model.bin") or _file(source, "pytorch_model.bin.index.json")
        why = " (its pytorch_model.bin is a pickle, which is never read: save it as safetensors)" if pickled else ""
        raise UserError(f"config.model.init_from={source!r} has no {_WEIGHTS}{why}")
    names = _read_json(index).get("weight_map", {}).values()
    shards = {name: _file(source, name) if Path(name).name == name else None for name in names}
    missing = sorted(name for name, path in shards.items() if path is None)
    if missing or not shards:
        raise _fail(source, [f"{_INDEX} names {name}, which is not there" for name in missing] or ["an empty index"])
    return list(shards.values())


def _tensors(source: str) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint as float32, by its name without "bert.", in today's spelling."""
    import safetensors

    found = {}
    for path in _shards(source):
        try:
            with safetensors.safe_open(path, "numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {first_line(error)[:300]}") from error
        for name, value in tensors.items():
            name = name.removeprefix("bert.")
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
            if not name.endswith("position_ids"):  # arange, which old checkpoints store
                found[name] = value.astype(np.float32)
    return found


def _head(raw: dict) -> tuple[str | None, int]:
    """(the name that this package has for the checkpoint's head, its outputs); None for a head that is dropped."""
    architecture = (raw.get("architectures") or [""])[0]
    kind = raw.get("problem_type")
    if not architecture.endswith("BertForSequenceClassification") or kind == "multi_label_classification":
        return None, 0
    labels = len(raw.get("id2label") or ()) or raw.get("num_labels") or 2
    regression = kind == "regression" or (kind is None and labels == 1)  # as transformers decides
    return ("regressor" if regression else "classifier"), labels


def load(source: str) -> Tree:
    """The params of the checkpoint in `source`, float32 NumPy arrays in the form of Bert's.

    Its head is there if it is a sequence classification's, its pooler if it has one.

    Raises:
      UserError: it cannot be read, or its tensors are not those that its config.json describes, with a list.
    """
    return _params(source, _raw_config(source))


def _params(source: str, raw: dict) -> Tree:
    """load of a checkpoint whose config.json is already read, `raw`: through the hub, each reading is a request."""
    geometry = _geometry(source, raw)
    head, labels = _head(raw)
    given = _tensors(source)
    geometry |= {name: geometry[name] or () for name in ("layer_heads", "layer_ffn")}
    model = Bert(BertConfig(**geometry, num_labels=max(labels, 1), regression=head == "regressor"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    wanted = {trees.place(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    optional = {path for path in wanted if path[0] in gates_lib.HEADS and head is None}
    if not any(name.startswith("pooler.") for name in given):
        optional |= {path for path in wanted if path[0] == "pooler"}
    params, problems, used = {}, [], set()
    for path, leaf in wanted.items():
        if path in optional:
            continue
        name = tensor_name(path).removeprefix("bert.")
        used.add(name)
        if name not in given:
            problems.append(f"{name} is missing")
            continue
        value = given[name].T if path[-1] == "kernel" else given[name]
        if value.shape != leaf.shape:
            shape = leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape
            problems.append(f"{name} is {given[name].shape}, and config.json makes it {shape}")
            continue
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.ascontiguousarray(value)
    # A shrunk layer stores the weights of the units that it has not as tensors without an element.
    extra = sorted(name for name in given.keys() - used if given[name].size)
    problems += [f"{name} has no place in a BERT" for name in extra if head or not name.startswith(_OTHER_HEADS)]
    if problems:
        raise _fail(source, problems)
    return params


def _label_names(raw: dict) -> tuple[str, ...]:
    """The names of the checkpoint's classes in the order of its outputs, () if config.json says nothing of them."""
    listed, stated = (raw[key] if isinstance(raw.get(key), dict) else {} for key in ("id2label", "label2id"))
    for ids in (listed, {str(i): name for name, i in stated.items()}):
        names = tuple(str(ids.get(str(i), "")).casefold() for i in range(len(ids)))
        if not all(re.fullmatch(r"(label_)?\d*", name) for name in names):  # LABEL_0, LABEL_1 is nobody's choice
            return names
    return ()


def load_for(source: str, labels: tuple[str, ...]) -> tuple[Tree, str]:
    """(the params of `load` with the classes in the order of a task's labels, what was done for that, if anything).

    A classifier whose names (in any case) are the labels in another order has its outputs permuted. One that names
    other classes is left out. One that names none is taken to have the task's order.

    Args:
      labels: of the task, in the order of their ids; () for a regression, which has no order.
    """
    raw = _raw_config(source)
    params, theirs = _params(source, raw), _label_names(raw)
    ours = tuple(label.casefold() for label in labels)
    if not ours or not theirs or theirs == ours or "classifier" not in params:
        return params, ""
    if sorted(theirs) != sorted(ours):
        del params["classifier"]
        return params, f"its own classifier is of {', '.join(theirs)}, not of {', '.join(ours)}"
    order = [theirs.index(name) for name in ours]
    params["classifier"] = {name: np.ascontiguousarray(leaf[..., order]) for name, leaf in params["classifier"].items()}
    return params, f"its classifier, {', '.join(theirs)} there, in this task's order"


# Out -----------------------------------------------------------------------------------------------------------------


def state_dict(params: Tree) -> dict[str, np.ndarray]:
    """params as the tensors of a BertForSequenceClassification, float32."""

    def tensor(path, leaf):
        leaf = np.asarray(leaf, np.float32)
        return np.ascontiguousarray(leaf.T if path[-1] == "kernel" else leaf)

    paths = ((trees.place(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    return {tensor_name(path): tensor(path, leaf) for path, leaf in paths}

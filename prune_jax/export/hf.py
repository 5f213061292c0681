"""BERT checkpoints of the transformers library: read into this package's trees, and written from them.

Only safetensors files are read, never a pickle. Torch is not needed. A checkpoint is the encoder of a BERT, RoBERTa,
DistilBERT or ELECTRA (prune_jax.export.names), with any head. Its tensors may have any prefix, lie in one file or in
several with an index, and be masked by torch.nn.utils.prune: a mask is gates.

The head of a sequence classification is kept, and every other head, or whatever else lies beside the encoder, is left
out and named. The params have a pooler if the checkpoint has one. config.json names the classes in the order of the
head's outputs; load_for puts them in the order of the task's labels.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from prune_jax import files
from prune_jax.errors import UserError, first_line
from prune_jax.export import tensors as tensor_files
from prune_jax.export.names import ARCHITECTURES, TOKENS, Architecture, architecture_of, tensor_name, transposed
from prune_jax.models.bert import ACTIVATIONS, HEADS, Bert, BertConfig
from prune_jax.pruning import trees

Tree = dict

_CONFIG = "config.json"
_PICKLE = "pytorch_model.bin"
_ENCODER = ("embeddings", "embeddings_project", "encoder", "transformer", "pooler")  # modules of an encoder alone

_KINDS = {  # other keys of config.json, checked where they are present: (what is allowed, whether a value is)
    "architectures": ("a list of names", lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v)),
    "id2label": ("names by number", lambda v: isinstance(v, dict)),
    "num_labels": ("a positive whole number", lambda v: type(v) is int and v > 0),
    "pad_token_id": ("a whole number", lambda v: type(v) is int),
    "pruned_heads": (
        "a list of heads by the number of its layer",
        lambda v: isinstance(v, dict) and all(n.isdecimal() and isinstance(heads, list) for n, heads in v.items()),
    ),
}


# In ------------------------------------------------------------------------------------------------------------------


def _file(source: str, name: str) -> Path | None:
    """The path of a checkpoint's file, in its folder or in the hub's cache; None where the checkpoint has no such file.

    Raises:
      UserError: `source` is neither a folder nor a name on the hub, or the hub does not give the file.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    name_there, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", source):
        raise UserError(
            f"config.model.init_from is {source!r}; there is no such folder, and it cannot be a name on the hub"
        )
    files.look_for_hub()
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(name_there, name, revision=revision or None))
    except Exception as error:  # offline, no such repository, no access: the library has a kind for each
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(
            f"config.model.init_from is {source!r}; there is no such folder, and the hub does not give its {name}: "
            f"{first_line(error)[:300]}"
        ) from error


def _raw_config(source: str) -> dict:
    path = _file(source, _CONFIG)
    if path is None:
        raise UserError(
            f"config.model.init_from is {source!r}; allowed: the folder of a run (config.json and checkpoints/), or a "
            "transformers checkpoint (config.json and model.safetensors), as a folder or by its name on the hub"
        )
    return files.read_json(path)


def _fail(source: str, problems: list[str]) -> UserError:
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return UserError(f"config.model.init_from={source!r} cannot be loaded: {'; '.join(problems[:8])}{more}")


def read_config(source: str) -> dict[str, Any]:
    """Reads the keys of config.model that a checkpoint decides: its geometry and its activation.

    Args:
      source: a folder, or a name on the hub.
    Raises:
      UserError: the checkpoint cannot be read, or is of another architecture; the message lists all that differs.
    """
    return _geometry(source, _raw_config(source))


def _geometry(source: str, raw: dict) -> dict[str, Any]:
    """As read_config, from the content of config.json."""
    kind = architecture_of(raw)
    if kind is None:
        allowed = ", ".join(map(repr, ARCHITECTURES))
        raise _fail(source, [f"its model_type is {raw.get('model_type')!r}; allowed: {allowed}"])
    names = ARCHITECTURES[kind]
    geometry: dict[str, Any] = {ours: raw.get(theirs, default) for ours, (theirs, default) in names.keys.items()}
    problems = []
    for ours, (theirs, default) in names.keys.items():
        value = geometry[ours]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            geometry[ours] = value = float(value)
        if type(value) is not type(default) or not (isinstance(value, str) or value > 0):
            kinds = {int: "a positive whole number", float: "a positive number", str: "a name"}
            problems.append(f"{theirs} is {value!r}; allowed: {kinds[type(default)]}")
    if not problems and geometry["d_model"] % geometry["num_heads"]:
        heads, width = (f"{names.keys[key][0]} {geometry[key]}" for key in ("num_heads", "d_model"))
        problems.append(f"{heads.replace(' ', ' is ')}, no divisor of {width}")
    if str(geometry["activation"]) not in ACTIVATIONS:
        key = names.keys["activation"][0]
        problems.append(f"{key} is {geometry['activation']!r}; allowed: {', '.join(ACTIVATIONS)}")
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
    geometry |= {"layer_heads": None, "layer_ffn": None, "pooler_width": raw.get("pooler_width")}
    geometry["architecture"] = None if kind == "bert" else kind  # as a run that is older than the others has it
    geometry = {"type_vocab_size": 0, "layer_norm_eps": 1e-12, "embedding_size": None} | geometry  # DistilBERT's own
    if not problems:
        geometry["max_positions"] = max(1, geometry["max_positions"] - unread_positions(kind, raw.get("pad_token_id")))
        if geometry["embedding_size"] == geometry["d_model"]:
            geometry["embedding_size"] = None
        width, most = geometry["pooler_width"], geometry["d_model"]
        if width is not None and not (type(width) is int and 0 <= width <= most):
            problems.append(f"pooler_width is {width!r}; allowed: a whole number from 0 to {most}")
        for key, most in (("layer_heads", geometry["num_heads"]), ("layer_ffn", geometry["d_ff"])):
            sizes = raw.get(key)
            if key == "layer_heads" and raw.get("pruned_heads"):  # how transformers before 5 listed lost heads
                lost = {int(layer): len(heads) for layer, heads in raw["pruned_heads"].items()}
                sizes = [most - lost.get(i, 0) for i in range(geometry["num_layers"])]
            if sizes is None:
                continue
            whole = isinstance(sizes, list) and all(type(size) is int and 0 <= size <= most for size in sizes)
            if whole and len(sizes) == geometry["num_layers"]:
                geometry[key] = tuple(sizes)
            else:
                allowed = f"{geometry['num_layers']} whole numbers from 0 to {most}, one per layer"
                problems.append(f"{key} is {sizes!r}; allowed: {allowed}")
    if problems:
        raise _fail(source, problems)
    return geometry


def unread_positions(architecture: str, padding: int | None) -> int:
    """The rows of the position embedding that stand for no position, by the id of the padding; None: the usual one."""
    if not ARCHITECTURES[architecture].padded:
        return 0
    return 2 if padding is None else padding + 1


def tokenizer(source: str) -> str:
    """The value of config.data.tokenizer that stands for the checkpoint's tokenizer; "" for a folder without one."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in names):
        return ""
    return source


def _shards(source: str) -> list[Path]:
    """The paths of a checkpoint's safetensors files."""
    if path := _file(source, tensor_files.WEIGHTS):
        return [path]
    index = _file(source, tensor_files.INDEX)
    if index is None:
        pickled = _file(source, _PICKLE) or _file(source, f"{_PICKLE}.index.json")
        why = _conversion(pickled) if pickled else ""
        raise UserError(f"config.model.init_from={source!r} has no {tensor_files.WEIGHTS}{why}")
    shards = {name: _file(source, name) for name in tensor_files.shards(index)}
    if missing := sorted(name for name, path in shards.items() if path is None):
        raise _fail(source, [f"{index.name} names {name}, which is not there" for name in missing])
    return [path for path in shards.values() if path]


def _conversion(pickled: Path) -> str:
    """What to do with a checkpoint of pickles, in words and as a command; `pickled` is one of its files."""
    code = (
        f"import glob, os, torch, safetensors.torch as s; os.chdir({str(pickled.parent)!r}); "
        "s.save_file({k: v.clone().contiguous() for f in sorted(glob.glob('pytorch_model*.bin')) for k, v in "
        f"torch.load(f, map_location='cpu', weights_only=True).items()}}, {tensor_files.WEIGHTS!r}, {{'format': 'pt'}})"
    )
    return (
        f" (its {_PICKLE} is a pickle, which is never read). With torch installed, this writes the same tensors beside "
        f'it: python -c "{code}"'
    )


def _tensors(source: str) -> dict[str, np.ndarray]:
    """Reads every tensor of a checkpoint, in its own type, by its name."""
    return {name: value for path in _shards(source) for name, value in tensor_files.read(path).items()}


class _Given(NamedTuple):
    """The tensors of a checkpoint, float32, by their names without a prefix: encoder.layer.0..., classifier.weight.

    Attributes:
      encoder: of the encoder; others: of all else.
      masks: of torch.nn.utils.prune, boolean, by the name of the tensor that they mask and are multiplied into.
    """

    encoder: dict[str, np.ndarray]
    others: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]


def _given(source: str, base: str) -> _Given:
    """Reads a checkpoint whose encoder is called `base` in a model with a head.

    Whatever wraps the model, as DataParallel's "module.", is a prefix of the embedding of the tokens. The old names
    LayerNorm.gamma and LayerNorm.beta become weight and bias.
    """
    tensors = _tensors(source)
    masks = {name.removesuffix("_mask"): value for name, value in tensors.items() if name.endswith("_mask")}
    masks = {name: value for name, value in masks.items() if f"{name}_orig" in tensors}
    for name, mask in masks.items():
        original = tensors.pop(f"{name}_orig")
        if original.shape != tensors.pop(f"{name}_mask").shape:
            raise _fail(source, [f"{name}_mask is {mask.shape}, and what it masks {original.shape}"])
        tensors[name] = np.where(mask != 0, original.astype(np.float32) * mask.astype(np.float32), 0)
    tokens = (TOKENS, f"{TOKENS}_orig")  # an _orig without its mask is told as a tensor that is missing
    prefixes = [name.removesuffix(end) for name in tensors for end in tokens if f".{name}".endswith(f".{end}")]
    if len(prefixes) > 1:
        raise _fail(source, [f"it has several encoders: {', '.join(map(repr, prefixes))}"])
    prefix = prefixes[0] if prefixes else ""
    root = prefix.removesuffix(f"{base}.") if f".{prefix}".endswith(f".{base}.") else prefix
    encoder, others, gates = {}, {}, {}
    for name, value in tensors.items():
        within = name.startswith(prefix)
        short = name.removeprefix(prefix if within else root)
        short = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", short))
        if short.endswith("position_ids"):  # old checkpoints store this arange
            continue
        is_encoder = within and (prefix != root or short.split(".")[0] in _ENCODER)
        (encoder if is_encoder else others)[short] = value.astype(np.float32)
        if name in masks:
            gates[short] = masks[name] != 0
    return _Given(encoder, others, gates)


def _head(raw: dict, names: Architecture, others: dict) -> tuple[str | None, int]:
    """(the head's name in this package, the number of its outputs); (None, 0) for a head that is left out.

    Where config.json names no class, a classifier is one whose tensors are there, as transformers would load it.
    """
    kind, listed = raw.get("problem_type"), raw.get("architectures") or []
    if kind == "multi_label_classification" or (listed and not listed[0].endswith(names.classifier)):
        return None, 0
    labels, weight = len(raw.get("id2label") or ()) or raw.get("num_labels") or 0, f"{names.head}.weight"
    if not listed:
        pooler = f"{names.pooler}.weight".removeprefix(f"{names.base}.")
        if weight not in others or pooler not in others or others[weight].ndim != 2:
            return None, 0
        labels = labels or len(others[weight])
    labels = labels or 2
    regression = kind == "regression" or (kind is None and labels == 1)  # as transformers decides
    return ("regressor" if regression else "classifier"), labels


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      params: as Bert has them, nested dicts of float32 arrays; what is masked is 0.
      gates: boolean arrays at the paths of kernels that are masked.
      left_out: what of it is not the network, in a few words; "" for nothing.
    """

    params: Tree
    gates: Tree
    left_out: str


def load(source: str) -> Tree:
    """Reads the params of a checkpoint: nested dicts of float32 NumPy arrays, as Bert has them.

    They have a head if the checkpoint's is a sequence classification's, and a pooler if the checkpoint has one.

    Args:
      source: a folder, or a name on the hub, with @REVISION behind it for another than the newest.
    Raises:
      UserError: the checkpoint cannot be read, or its tensors are not those that its config.json describes; the message
        lists what differs.
    """
    return _read(source, _raw_config(source)).params


def _read(source: str, raw: dict) -> Checkpoint:
    """Reads a checkpoint with the content of config.json at hand: on the hub, each reading is a request."""
    geometry = _geometry(source, raw)
    kind = geometry["architecture"] or "bert"
    names = ARCHITECTURES[kind]
    encoder, others, masks = _given(source, names.base)
    given = encoder | others
    head, labels = _head(raw, names, given)
    geometry |= {name: geometry[name] or () for name in ("layer_heads", "layer_ffn")}
    model = Bert(BertConfig(**geometry, num_labels=max(labels, 1), regression=head == "regressor"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    wanted = {trees.place(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    optional = {path for path in wanted if path[0] in HEADS and head is None}
    pooler = names.pooler.removeprefix(f"{names.base}.")
    if f"{pooler}.weight" not in given or (head is None and pooler == names.pooler):  # it is the head's elsewhere
        optional |= {path for path in wanted if path[0] == "pooler"}
    params, gates, problems, used = {}, {}, [], set()
    unread = unread_positions(kind, raw.get("pad_token_id"))
    for path, leaf in wanted.items():
        if path in optional:
            continue
        name = tensor_name(path, kind).removeprefix(f"{names.base}.")
        used.add(name)
        if name not in given:
            problems.append(f"{name} is missing")
            continue
        value, turned = given[name], transposed(path)
        shape = leaf.shape[::-1] if turned else leaf.shape
        if path[0] == "position_embedding":
            shape = (shape[0] + unread, *shape[1:])
        if value.shape != shape:
            problems.append(f"{name} is {value.shape}, and config.json makes it {shape}")
            continue
        value = value[unread:] if path[0] == "position_embedding" else value.T if turned else value
        params["/".join(path)] = np.ascontiguousarray(value)
        if name in masks and path[-1] == "kernel":
            gates["/".join(path)] = np.ascontiguousarray(masks[name].T)
    # A shrunk layer stores the weights of units that it has lost as tensors without an element.
    strange = sorted(name for name in encoder.keys() - used if encoder[name].size and not name.startswith("pooler."))
    problems += [f"{name} has no place in a {names.prefix}" for name in strange]
    if problems:
        raise _fail(source, problems)
    beside = [name for name in given if name not in used and given[name].size]
    rooms = {name.split(".")[0]: 0 for name in beside}
    for name in beside:
        rooms[name.split(".")[0]] += 1
    left_out = ", ".join(f"{room} ({count} tensors)" for room, count in sorted(rooms.items()))
    return Checkpoint(trees.nested(params, "/"), trees.nested(gates, "/"), left_out and f"left out: {left_out}")


def _label_names(raw: dict, ours: Sequence[str]) -> tuple[str, ...]:
    """The names of the checkpoint's classes, in the order of its outputs; () where config.json does not name them.

    LABEL_0 and 0 are no names, since nobody chose them, unless they are among our own.
    """
    listed, stated = (raw[key] if isinstance(raw.get(key), dict) else {} for key in ("id2label", "label2id"))
    for ids in (listed, {str(i): name for name, i in stated.items()}):
        names = tuple(str(ids.get(str(i), "")).casefold() for i in range(len(ids)))
        if not all(re.fullmatch(r"(label_)?\d*", name) for name in names) or set(names) == set(ours):
            return names
    return ()


def class_order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Where each of our classes is among theirs, by name; None unless both have the same names.

    Example:
      >>> class_order(("not_entailment", "entailment"), ("entailment", "not_entailment"))
      [1, 0]
    """
    if sorted(theirs) != sorted(ours):
        return None
    return [theirs.index(name) for name in ours]


class Loaded(NamedTuple):
    """A checkpoint for a task.

    Attributes:
      params: as `load` returns them, the classes of the classifier in the order of the task's labels.
      gates: of the kernels that torch.nn.utils.prune masks.
      left_out: what of the checkpoint is not the network; "" for nothing.
      note: what was done with the classifier; "" where nothing was.
      unnamed: whether nothing says which of the classifier's outputs is which class; they are as they were.
    """

    params: Tree
    gates: Tree = MappingProxyType({})
    left_out: str = ""
    note: str = ""
    unnamed: bool = False


def load_for(source: str, labels: tuple[str, ...]) -> Loaded:
    """Reads a checkpoint for a task.

    A classifier that names the task's labels in another order, in upper or lower case, has its outputs permuted. A
    classifier of other classes is left out.

    Args:
      source: a folder, or a name on the hub.
      labels: the task's labels in the order of their ids; () for a regression.
    Raises:
      UserError: as load.
    """
    raw = _raw_config(source)
    found, ours = Loaded(*_read(source, raw)), tuple(label.casefold() for label in labels)
    theirs = _label_names(raw, ours)
    if not ours or theirs == ours or "classifier" not in found.params:
        return found
    if not theirs:
        return found._replace(unnamed=True)
    order = class_order(theirs, ours)
    note = f"its classifier, {', '.join(theirs)} there, in this task's order"
    if order is None:
        note = f"its own classifier is of {', '.join(theirs)}, not of {', '.join(ours)}"
    params, gates = (with_head(tree, "classifier", order) for tree in (found.params, found.gates))
    return found._replace(params=params, gates=gates, note=note)


def with_head(tree: Tree, head: str, order: Sequence[int] | None) -> Tree:
    """The tree with the head's outputs in another order; without the head if that is None."""
    rest = {name: module for name, module in tree.items() if name != head}
    if order is None or head not in tree:
        return rest
    return rest | {head: jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[..., list(order)]), tree[head])}


# Out -----------------------------------------------------------------------------------------------------------------


def vocab_size(params: Tree) -> int | None:
    """The number of tokens that a Bert's embedding has a row for; None for a network that reads no tokens."""
    return params["token_embedding"]["embedding"].shape[0] if "token_embedding" in params else None


def state_dict(params: Tree, architecture: str = "bert", padding: int = 0) -> dict[str, np.ndarray]:
    """The tensors of a model for sequence classification by name, float32, of a Bert's params.

    Args:
      padding: the id of the padding, which is in the position embedding of some architectures.
    """

    def tensor(path, leaf):
        leaf = np.asarray(leaf, np.float32)
        if path[0] == "position_embedding":
            rows = unread_positions(architecture, padding)
            leaf = np.concatenate([np.zeros((rows, leaf.shape[1]), np.float32), leaf])
        return np.ascontiguousarray(leaf.T if transposed(path) else leaf)

    paths = ((trees.place(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    return {tensor_name(path, architecture): tensor(path, leaf) for path, leaf in paths}

"""A network as a StableHLO file for deployment, by jax.export: it holds the weights and needs jax alone.

A folder holds model.stablehlo, which jax.export.deserialize reads, and model.json, which says what goes in and comes
out. The batch size is open, and so is the length of texts, up to the network's positions. With a list of lengths, there
is instead one model_N.stablehlo per length, for texts of N tokens. A batch is padded to the shortest that holds it.

With a number of rows, the files take batches of that size alone. With a length and a single platform, too, the shapes
are static and no argument names the platform: compilers outside of jax need that, and IREE refuses open shapes.

Closed weights are zeros. jax promises to read such a file for at least six months of later releases; model.json names
the release that wrote it.

With int8, a kernel is stored as q * scale: q is int8, and there is one float32 scale per output channel, max |w| / 127.
An embedding table has one scale per row. Activations and products stay float32.
"""

import bisect
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.graph import cutting
from prune_jax.models import units
from prune_jax.pruning.merge import merge

VERSION = 1
MODEL, SIDECAR = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")

Tree = Any


class Quantised(NamedTuple):
    """A weight, as values * scale: int8 of the weight's shape, and float32 of a shape that broadcasts to it."""

    values: np.ndarray
    scale: np.ndarray


class Deployed(NamedTuple):
    """An exported network, read back.

    Attributes:
      call: (*inputs) -> (batch, num_labels) float32, of a decoder (batch, length, vocabulary); the inputs in the order
        of model.json. ValueError for texts that are too long.
      info: what model.json holds.
    """

    call: Callable
    info: dict


def quantise(params: Tree) -> Tree:
    """Puts a Quantised in the place of every kernel and every embedding table. A channel of zeros has scale 1."""

    def at(path, leaf):
        if path[-1].key not in ("kernel", "embedding") or not leaf.size:
            return leaf
        axes = (leaf.ndim - 1,) if path[-1].key == "embedding" else tuple(range(leaf.ndim - 1))
        most = np.abs(leaf).max(axis=axes, keepdims=True)
        scale = np.where(most > 0, most / np.float32(127), np.float32(1)).astype(np.float32)
        return Quantised(np.rint(leaf / scale).astype(np.int8), scale)

    return jax.tree_util.tree_map_with_path(at, params)


def _restored(params: Tree) -> Tree:
    def restore(leaf):
        # jnp makes the product part of the program. NumPy would multiply now, and float32 would be stored.
        return jnp.asarray(leaf.values).astype(jnp.float32) * leaf.scale if isinstance(leaf, Quantised) else leaf

    return jax.tree.map(restore, params, is_leaf=lambda leaf: isinstance(leaf, Quantised))


def _file_name(length: int | None) -> str:
    return MODEL if length is None else f"model_{length}.stablehlo"


def specs(
    model, longest: int | None, length: int | None = None, rows: int = 0
) -> tuple[list[jax.ShapeDtypeStruct], list[dict]]:
    """(the shapes of the inputs, for jax.export; their description, for model.json).

    The batch is symbolic unless `rows` is given, and so is the length of texts, up to the longest, unless it is given.
    """
    scope = jax_export.SymbolicScope([f"length <= {longest}"] if longest and length is None else [])
    shapes, entries = [], []
    for name, example in zip(model.inputs, model.example_inputs(), strict=True):
        first = rows or "batch"
        dims = [first, "length"] if example.ndim == 2 else [first, *example.shape[1:]]
        fixed = [length if dim == "length" and length else dim for dim in dims]
        shape = jax_export.symbolic_shape(", ".join(map(str, fixed)), scope=scope)
        shapes.append(jax.ShapeDtypeStruct(shape, example.dtype))
        entries.append({"name": name, "shape": dims, "dtype": str(example.dtype)})
    return shapes, entries


def random_inputs(model, length: int | None, rows: int) -> list[np.ndarray]:
    """Inputs of `rows` examples, texts of this length."""
    rng, inputs = np.random.default_rng(0), []
    for name, example in zip(model.inputs, model.example_inputs(), strict=True):
        if example.ndim > 2:
            inputs.append(rng.random((rows, *example.shape[1:]), np.float32))
        elif name == "input_ids":
            inputs.append(rng.integers(0, model.cfg.vocab_size, (rows, length), np.int32))
        else:
            inputs.append(np.full_like(inputs[0], name == "attention_mask"))
    return inputs


def prepared(model, params: Tree, gates: Tree, shrink: bool) -> tuple[Any, Tree, Callable]:
    """(the model without its closed layers, its weights, the function of them and of inputs).

    Args:
      shrink: whether units that are closed as a whole are cut out; the weights and the function are then smaller.
    """
    model, params, gates = units.opened(model, params, gates)
    params = merge(params, gates)
    if not shrink:
        return model, params, lambda params, *inputs: model.apply({"params": params}, *inputs)
    small, apply = cutting.shrink(units.trace(model), params, gates)
    return model, jax.device_get(small), apply


def checked(longest: int | None, lengths: Sequence[int]) -> tuple[list[int] | None, int | None]:
    """(the lengths in increasing order, None for any; the greatest that is taken, None for images).

    Raises:
      ValueError: the network does not take one of them.
    """
    for length in lengths:
        if not 0 < length <= (longest or 0):
            raise ValueError(f"a length is {length}; allowed: {f'1 to {longest}' if longest else 'none, with images'}")
    listed = sorted(set(lengths)) or None
    return listed, listed[-1] if listed else longest


def described(task: str, labels: Sequence[str], rows: int, logits: np.ndarray) -> dict:
    """What model.json says of the outputs; logits are an example of them."""
    output = {"name": "logits", "shape": [rows or "batch", len(labels) or 1], "dtype": "float32"}
    if logits.ndim == 3:  # of a decoder, which says of every token what may come next
        shape = [rows or "batch", "length", logits.shape[-1]]
        return {"output": output | {"shape": shape}, "task": task, "labels": [], "problem_type": "next_token"}
    kind = "single_label_classification" if labels else "regression"
    return {"output": output, "task": task, "labels": list(labels) or ["score"], "problem_type": kind}


def compared(logits: np.ndarray, expected: np.ndarray) -> dict:
    """What model.json says of the difference between an exported network and its original."""
    return {
        "largest_logit_difference": float(np.abs(logits - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
    }


def _caller(functions: list, lengths: list[int] | None, most: int | None) -> Callable:
    """The `call` of a Deployed.

    Args:
      functions: exported functions, one per length, or a single one.
      lengths: in increasing order; None for a single function of any length.
      most: the greatest length; None for images.
    """
    compiled = [jax.jit(function.call) for function in functions]

    def call(*inputs):
        length = inputs[0].shape[1]
        if most and length > most:
            raise ValueError(f"the length is {length}; allowed: 1 to {most}")
        if not lengths:
            return compiled[0](*inputs)
        at = bisect.bisect_left(lengths, length)
        logits = compiled[at](*(np.pad(x, ((0, 0), (0, lengths[at] - length))) for x in inputs))
        return logits[:, :length] if logits.ndim == 3 else logits

    return call


def write(
    folder: Path,
    model,
    params: Tree,
    gates: Tree,
    task: str,
    longest: int | None,
    labels: Sequence[str] = (),
    int8: bool = False,
    shrink: bool = False,
    lengths: Sequence[int] = (),
    platforms: Sequence[str] = PLATFORMS,
    rows: int = 0,
) -> dict:
    """Writes the model and model.json into an existing folder.

    Args:
      model: a network of prune_jax.models; params, gates: its variables.
      task: its name, for model.json.
      longest: the greatest length of a text that the network takes, in tokens; None where it takes images.
      labels: the names of the classes in the order of the outputs; empty for a regression.
      int8: whether kernels and embedding tables are stored in 8 bits.
      shrink: whether units that are closed as a whole, of any group of the network, are cut out.
      lengths: one file for each, in tokens; empty: one file for all lengths.
      rows: the size of every batch; 0, any.
    Returns:
      What model.json holds. Its largest_logit_difference is the one between the files, read back, and the float32
      network on random inputs, 8 where the batch is open; largest_logit is the largest of those logits.
    Raises:
      ValueError: the network does not take one of the lengths.
      UserError: flatbuffers is not installed.
    """
    try:
        import flatbuffers  # noqa: F401, jax.export's own need
    except ImportError as error:
        raise UserError("a StableHLO export needs the package flatbuffers: pip install flatbuffers") from error
    model, params, apply = prepared(model, params, gates, shrink)
    own = jax.jit(functools.partial(apply, params))
    stored = quantise(params) if int8 else params

    def forward(*inputs):
        return apply(_restored(stored), *inputs)

    (listed, most), size, functions = checked(longest, lengths), 0, []
    for length in listed or [None]:
        shapes, inputs = specs(model, longest, length, rows)
        exported = jax_export.export(jax.jit(forward), platforms=platforms)(*shapes)
        data = bytes(exported.serialize())
        files.write_bytes(folder / _file_name(length), data)
        functions.append(jax_export.deserialize(bytearray(data)))
        size += len(data)
    examples = random_inputs(model, most and min(32, most), rows or 8)
    expected = np.asarray(own(*examples))
    logits = np.asarray(_caller(functions, listed, most)(*examples))
    info = {
        "format": "prune_jax.export.stablehlo",
        "version": VERSION,
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "platforms": list(exported.platforms),
        "inputs": inputs,
        "max_length": most,
        "lengths": listed,
        **described(task, labels, rows, expected),
        "weights": "int8" if int8 else "float32",
        "bytes": size,
        **compared(logits, expected),
    }
    files.write_json(folder / SIDECAR, info)
    return info


def load(path) -> Deployed:
    """Reads a folder that `write` filled.

    Example: the class of each text of a batch, its inputs int32 of shape (batch, length).

        deployed = prune_jax.export.load("out")
        classes = deployed.call(input_ids, token_type_ids, attention_mask).argmax(axis=-1)
        names = [deployed.info["labels"][i] for i in classes]

    Raises:
      UserError: the folder is not an export or of a later version, or this jax cannot read its files.
    """
    folder = Path(path)
    info = files.read_json(folder / SIDECAR)
    if info.get("format") != "prune_jax.export.stablehlo":
        raise UserError(f"{folder / SIDECAR} is not that of a StableHLO export")
    if info.get("version") != VERSION:
        raise UserError(f"{folder / SIDECAR} is of version {info.get('version')}; this program reads {VERSION}")
    lengths, functions = info.get("lengths"), []
    for path in (folder / _file_name(length) for length in lengths or [None]):
        try:
            functions.append(jax_export.deserialize(bytearray(path.read_bytes())))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # flatbuffers and MLIR have their own kinds
            raise UserError(f"{path} cannot be read by jax {jax.__version__}: {error}") from error
    return Deployed(_caller(functions, lengths, info["max_length"]), info)

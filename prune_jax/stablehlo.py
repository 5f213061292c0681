"""A network as one StableHLO file for deployment, through jax.export: the weights inside, no Flax, no code of ours.

A folder holds model.stablehlo, what jax.export.deserialize reads, and model.json, which says what goes in and out. The
batch size, and the length of texts up to the network's positions, are left open; with lengths given there is instead a
model_N.stablehlo for each, of texts of N tokens, and a batch goes, padded, to the shortest that holds it. Weights that
are closed are zeros. jax promises to read such a file for at least six months of later releases; model.json names the
one that wrote it.

With int8, every kernel is stored as q * scale, q an int8 and the scale one float32 an output channel, |w|max / 127
there; embedding tables have one a row. Activations, and the products, stay float32.
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

from prune_jax import config as config_lib
from prune_jax import models, runs
from prune_jax import shrink as shrink_lib
from prune_jax import workdir as workdir_lib
from prune_jax.data.glue import get_task
from prune_jax.errors import UserError

VERSION = 1
MODEL, SIDECAR = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")

Tree = Any


class Quantised(NamedTuple):
    """A weight as values * scale: int8, and float32 of a shape that broadcasts."""

    values: np.ndarray
    scale: np.ndarray


class Deployed(NamedTuple):
    """A file read back.

    call: (*inputs, in model.json's order) -> (batch, num_labels) float32; ValueError for texts that are too long.
    info: model.json.
    """

    call: Callable
    info: dict


def quantise(params: Tree) -> Tree:
    """params with a Quantised in the place of every kernel and embedding table; an all-zero channel has scale 1."""

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
        # By jnp, so that it is part of the program: NumPy would multiply now, and float32 would be what is stored.
        return jnp.asarray(leaf.values).astype(jnp.float32) * leaf.scale if isinstance(leaf, Quantised) else leaf

    return jax.tree.map(restore, params, is_leaf=lambda leaf: isinstance(leaf, Quantised))


def _network(network: runs.Network, shrink: bool):
    """(model, params without closed weights, task)."""
    config = config_lib.completed(network.config)
    task, params = get_task(config.data.task, config.data.source), shrink_lib.merge(network.params, network.gates)
    if "token_embedding" not in params:
        if shrink:
            raise UserError("--shrink cuts the heads, columns and pooler of a BERT; this run's network is none")
        return models.create(config, task, None), params, task
    if shrink:
        depth = config.model.d_model // config.model.num_heads
        params, sizes = shrink_lib.shrink(shrink_lib.with_units(params), depth)
        with config.ignore_type():
            config.model.update(sizes)
    return models.create(config, task, params["token_embedding"]["embedding"].shape[0]), params, task


def _file_name(length: int | None) -> str:
    return MODEL if length is None else f"model_{length}.stablehlo"


def _specs(model, length: int | None = None) -> tuple[list[jax.ShapeDtypeStruct], list[dict]]:
    """(what goes in, its batch symbolic and so its length, unless it is given; the same for model.json)."""
    any_length = length is None and "input_ids" in model.inputs
    scope = jax_export.SymbolicScope([f"length <= {model.cfg.max_positions}"] if any_length else [])
    specs, described = [], []
    for name, example in zip(model.inputs, model.example_inputs(), strict=True):
        dims = ["batch", "length"] if example.ndim == 2 else ["batch", *example.shape[1:]]
        fixed = [length if dim == "length" and length else dim for dim in dims]
        shape = jax_export.symbolic_shape(", ".join(map(str, fixed)), scope=scope)
        specs.append(jax.ShapeDtypeStruct(shape, example.dtype))
        described.append({"name": name, "shape": dims, "dtype": str(example.dtype)})
    return specs, described


def _random_inputs(model, most: int | None) -> list[np.ndarray]:
    rng, found = np.random.default_rng(0), []
    for name, example in zip(model.inputs, model.example_inputs(), strict=True):
        if example.ndim > 2:
            found.append(rng.random((8, *example.shape[1:]), np.float32))
        elif name == "input_ids":
            found.append(rng.integers(0, model.cfg.vocab_size, (8, min(32, most)), np.int32))
        else:
            found.append(np.full_like(found[0], name == "attention_mask"))
    return found


def _caller(functions: list, lengths: list[int] | None, most: int | None) -> Callable:
    """Deployed.call of exported functions, one a length in increasing order, or one of any up to `most`."""
    compiled = [jax.jit(function.call) for function in functions]

    def call(*inputs):
        length = inputs[0].shape[1]
        if most and length > most:
            raise ValueError(f"the length is {length}; allowed: 1 to {most}")
        if not lengths:
            return compiled[0](*inputs)
        at = bisect.bisect_left(lengths, length)
        return compiled[at](*(np.pad(x, ((0, 0), (0, lengths[at] - length))) for x in inputs))

    return call


def write(
    network: runs.Network,
    folder: Path,
    int8: bool = False,
    shrink: bool = False,
    lengths: Sequence[int] = (),
    platforms=PLATFORMS,
) -> dict:
    """Writes the model and model.json into `folder`. Returns what model.json holds.

    largest_logit_difference there is that of the files, read back, to the run's own float32 network on 8 random inputs,
    and largest_logit the largest of those logits.

    Raises:
      UserError: a length that the network does not take, or `shrink` of a network that is no BERT.
    """
    try:
        import flatbuffers  # noqa: F401, jax.export's own need
    except ImportError as error:
        raise UserError("--format=stablehlo needs the package flatbuffers: pip install flatbuffers") from error
    model, params, task = _network(network, shrink)
    own = jax.jit(functools.partial(model.apply, {"params": params}))
    stored = quantise(params) if int8 else params

    def forward(*inputs):
        return model.apply({"params": _restored(stored)}, *inputs)

    most = model.cfg.max_positions if "input_ids" in model.inputs else None
    for length in lengths:
        if not 0 < length <= (most or 0):
            raise UserError(f"--length is {length}; allowed: {f'1 to {most}' if most else 'none, with images'}")
    listed, size, functions = sorted(set(lengths)) or None, 0, []
    most = listed[-1] if listed else most
    for length in listed or [None]:
        specs, inputs = _specs(model, length)
        exported = jax_export.export(jax.jit(forward), platforms=platforms)(*specs)
        data = bytes(exported.serialize())
        workdir_lib.write_bytes(folder / _file_name(length), data)
        functions.append(jax_export.deserialize(bytearray(data)))
        size += len(data)
    examples = _random_inputs(model, most)
    expected = np.asarray(own(*examples))
    found = np.asarray(_caller(functions, listed, most)(*examples))
    info = {
        "format": "prune_jax.stablehlo",
        "version": VERSION,
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "platforms": list(exported.platforms),
        "inputs": inputs,
        "max_length": most,
        "lengths": listed,
        "output": {"name": "logits", "shape": ["batch", task.num_labels], "dtype": "float32"},
        "task": task.name,
        "labels": list(getattr(task, "labels", map(str, range(task.num_labels)))) or ["score"],
        "problem_type": "regression" if task.is_regression else "single_label_classification",
        "weights": "int8" if int8 else "float32",
        "bytes": size,
        "largest_logit_difference": float(np.abs(found - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
    }
    workdir_lib.write_json(folder / SIDECAR, info)
    return info


def load(path) -> Deployed:
    """Reads the folder that `write` wrote.

    Raises:
      UserError: it is no such folder, of a later version, or its file cannot be read by this jax.
    """
    folder = Path(path)
    info = workdir_lib.read_json(folder / SIDECAR)
    if not isinstance(info, dict) or info.get("format") != "prune_jax.stablehlo":
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

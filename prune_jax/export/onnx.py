"""A network as ONNX files, by jax2onnx: they hold the weights, and ONNX Runtime runs them without jax or Python.

A folder holds model.onnx, or one model_N.onnx per length, for texts of N tokens, and model.json, which says what goes
in and comes out. The batch size is open unless a number of rows is given. The length of texts cannot be: jax2onnx 0.17
fails on a BERT with a second open axis. Closed weights are zeros.
"""

import functools
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_jax import files
from prune_jax.errors import UserError, first_line
from prune_jax.export import stablehlo
from prune_jax.graph import costing

VERSION = 1

Tree = Any


def _packages() -> tuple[Any, Any]:
    """(jax2onnx, onnxruntime). UserError where one is missing."""
    for name in ("jax2onnx", "onnx_ir"):  # examples of its own that lack a package; types that it works out later
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        import jax2onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(f"an ONNX export needs the package {error.name}: pip install 'prune-jax[onnx]'") from error
    except ImportError as error:  # of a version that does not fit jax's, say
        raise UserError(
            f"an ONNX export needs jax2onnx and onnxruntime, which cannot be imported: {first_line(error)}"
        ) from error
    return jax2onnx, onnxruntime


def write(
    folder: Path,
    model,
    params: Tree,
    gates: Tree,
    task: str,
    longest: int | None,
    labels: Sequence[str] = (),
    shrink: bool = False,
    lengths: Sequence[int] = (),
    rows: int = 0,
) -> dict:
    """Writes the model and model.json into an existing folder.

    Args:
      model, params, gates, task, longest, labels, shrink, rows: as of stablehlo.write.
      lengths: one file for each, in tokens; texts need one, and images take none.
    Returns:
      What model.json holds. Its largest_logit_difference is the one between ONNX Runtime and the network in jax on
      random inputs, 8 where the batch is open; milliseconds is the median time of both on them, in turns.
    Raises:
      ValueError: the network does not take one of the lengths, or a text has none.
      UserError: jax2onnx or onnxruntime is not installed.
    """
    jax2onnx, onnxruntime = _packages()
    model, params, apply = stablehlo.prepared(model, params, gates, shrink)
    listed, most = stablehlo.checked(longest, lengths)
    if most and not listed:
        raise ValueError("lengths is empty; allowed: one and more, for a text's length cannot stay open")
    own, size = functools.partial(apply, params), 0
    for length in listed or [None]:
        shapes, inputs = stablehlo.specs(model, longest, length, rows)
        # Traced here: the converter has primitives of its own in the place of jax's, which the shrunk function refuses.
        flat = jax.make_jaxpr(own)(*shapes)
        made = jax2onnx.to_onnx(
            lambda *given, flat=flat: jax.core.eval_jaxpr(flat.jaxpr, flat.consts, *given)[0],
            shapes,
            model_name=task,
            input_names=list(model.inputs),
            output_names=["logits"],
        )
        data = made.SerializeToString()
        files.write_bytes(folder / _file_name(length), data)
        size += len(data)
    # The last file is the one of the greatest length.
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}  # the converter leaves out what changes nothing
    examples = stablehlo.random_inputs(model, most, rows or 8)
    named = {name: x for name, x in zip(model.inputs, examples, strict=True) if name in taken}
    compiled = jax.jit(own)
    logits, expected = session.run(None, named)[0], np.asarray(compiled(*examples))  # before the clock runs
    seconds = costing.medians([lambda: session.run(None, named), lambda: compiled(*examples)])
    info = {
        "format": "prune_jax.export.onnx",
        "version": VERSION,
        "jax2onnx": importlib.metadata.version("jax2onnx"),
        "opset": made.opset_import[0].version,
        "inputs": [one for one in inputs if one["name"] in taken],
        "max_length": most,
        "lengths": listed,
        **stablehlo.described(task, labels, rows, expected),
        "weights": "float32",
        "bytes": size,
        **stablehlo.compared(logits, expected),
        "milliseconds": {name: 1000 * t for name, t in zip(("onnxruntime", "jax"), seconds, strict=True)},
    }
    files.write_json(folder / stablehlo.SIDECAR, info)
    return info


def _file_name(length: int | None) -> str:
    return "model.onnx" if length is None else f"model_{length}.onnx"

"""Safetensors files of a checkpoint, one or several with an index: NumPy arrays, or one message that says why not."""

from pathlib import Path

import numpy as np

from prune_jax import files
from prune_jax.errors import UserError, first_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def shards(index: Path) -> list[str]:
    """The names of the files that an index lists, each once.

    Raises:
      UserError: it is no index, lists nothing, or names a file elsewhere than beside itself.
    """
    placed = files.read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise UserError(f"{index} is not an index of tensors: its weight_map is no object of names of files")
    names = list(dict.fromkeys(placed.values()))
    if elsewhere := next((name for name in names if Path(name).name != name or "\0" in name), None):
        raise UserError(f"{index} names {elsewhere!r}; allowed: a file beside it")
    return names


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by its name, in its own dtype.

    Raises:
      UserError: it is no such file, or a tensor is of a dtype that NumPy has not, as float8.
    """
    import safetensors

    tensors = {}
    try:
        with open(path, "rb"):  # the library calls each file that it cannot open missing
            pass
        with safetensors.safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                try:
                    tensors[name] = file.get_tensor(name)
                except (AttributeError, TypeError, ValueError) as error:
                    kind = file.get_slice(name).get_dtype()
                    allowed = "float32, float16, bfloat16, whole numbers"
                    raise UserError(f"{path}: the tensor {name} is of dtype {kind}; allowed: {allowed}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)[:300]}") from error
    return tensors

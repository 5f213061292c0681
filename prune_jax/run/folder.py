"""A run's folder from outside: its config and its network are read, and a folder is made of a changed network."""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.config import saved
from prune_jax.errors import UserError


class Network(NamedTuple):
    """A network that a run has trained.

    Attributes:
      config: the run's resolved config.
      params, gates: NumPy trees.
    """

    config: Any
    params: Any
    gates: Any


def is_run(folder) -> bool:
    """Whether `folder` is the workdir of a run that has saved a checkpoint."""
    folder = Path(folder)
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def read_config(folder):
    """Reads the resolved config of the run in `folder`. UserError if it is not a run's folder."""
    if not is_run(folder):
        raise UserError(f"{folder} is not the folder of a run (config.json and checkpoints/ are expected in it)")
    path = Path(folder) / "config.json"
    try:
        return config_lib.from_json(saved.read(path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ConfigDict's own
        raise UserError(f"{path} is damaged: {error}") from error


def final_kind(folder) -> str:
    """The checkpoint that a run ends in: "quantised" where there is one, else "best"."""
    return "quantised" if any((Path(folder) / "checkpoints" / "quantised").glob("[0-9]*")) else "best"


def load(folder, kind: str = "best") -> Network:
    """Reads the network of the run in `folder` from its "best", "last" or "quantised" checkpoint.

    Raises:
      UserError: it is not a run's folder, or its checkpoint is missing or cannot be read.
    """
    config = read_config(folder)
    from prune_jax.run import checkpoint  # jax and orbax only where arrays are wanted

    return Network(config, *checkpoint.read_network(Path(folder) / "checkpoints", kind))


def new_folder(folder) -> Path:
    """Checks that `folder` is new or empty, and returns its absolute path. UserError if it is neither."""
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and (not folder.is_dir() or folder.is_symlink() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose the name of a new folder")
    return folder


def write(folder: Path, network: Network) -> None:
    """Fills an existing folder as a run that ended in this network leaves it, the network as its best checkpoint."""
    from prune_jax.run import checkpoint

    files.write_json(folder / "config.json", config_lib.to_json(network.config))
    with contextlib.closing(checkpoint.Checkpoints(folder / "checkpoints")) as checkpoints:
        checkpoints.save_best(0, {"params": network.params, "gates": network.gates}, {})

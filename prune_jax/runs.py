"""A run's folder as others read it, its config and its network, and one made of a network that others changed."""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from prune_jax import config as config_lib
from prune_jax import workdir as workdir_lib
from prune_jax.errors import UserError


class Network(NamedTuple):
    """What a run has trained: its resolved config, and params and gates as NumPy trees."""

    config: Any
    params: Any
    gates: Any


def is_run(folder) -> bool:
    """Whether `folder` is the workdir of a run that has saved a checkpoint."""
    folder = Path(folder)
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def read_config(folder):
    """The resolved config of the run in `folder`. UserError if it is not a run's folder."""
    if not is_run(folder):
        raise UserError(f"{folder} is not the folder of a run (config.json and checkpoints/ are expected in it)")
    return config_lib.from_json(workdir_lib.read_json(Path(folder) / "config.json"))


def final_kind(folder) -> str:
    """The checkpoint that a run ends in: "quantised" where there is one, else "best"."""
    return "quantised" if any((Path(folder) / "checkpoints" / "quantised").glob("[0-9]*")) else "best"


def load(folder, kind: str = "best") -> Network:
    """The network of the run in `folder`, of its "best", "last" or "quantised" checkpoint.

    Raises:
      UserError: it is not a run's folder, or its checkpoint is missing or cannot be read.
    """
    config = read_config(folder)
    from prune_jax import checkpoint  # jax and orbax only where arrays are wanted

    return Network(config, *checkpoint.read_network(Path(folder) / "checkpoints", kind))


def new_folder(folder) -> Path:
    """`folder` as an absolute path. UserError unless it does not exist or is an empty folder."""
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and (not folder.is_dir() or folder.is_symlink() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose the name of a new folder")
    return folder


def write(folder: Path, network: Network) -> None:
    """Makes an existing folder that of a run that ended in this network, its best checkpoint."""
    from prune_jax import checkpoint

    workdir_lib.write_json(folder / "config.json", config_lib.to_json(network.config))
    with contextlib.closing(checkpoint.Checkpoints(folder / "checkpoints")) as checkpoints:
        checkpoints.save_best(0, {"params": network.params, "gates": network.gates}, {})

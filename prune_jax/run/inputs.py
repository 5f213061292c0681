"""What a run reads before it writes anything: its config, its data, and the network that it starts from.

A mistake in a config is answered before a network is read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from prune_jax import config as config_lib
from prune_jax import data
from prune_jax.config import keys
from prune_jax.data import glue
from prune_jax.errors import UserError
from prune_jax.report import sinks
from prune_jax.run import folder as runs


def describe(source: str) -> tuple[Mapping[str, Any], str]:
    """Reads what a config follows of the network in `source`.

    Args:
      source: the folder of a run, or a transformers checkpoint: a folder or a name on the hub.
    Returns:
      (the keys of config.model that the network decides, its tokenizer's path or name or "").
    Raises:
      UserError: no network is there.
    """
    if runs.is_run(source):
        tokenizer = Path(source) / "tokenizer"
        return runs.read_config(source).model, str(tokenizer) if tokenizer.is_dir() else ""
    from prune_jax.export import decoder, hf  # they load jax, which a run from a checkpoint is about to need

    if decoder.is_checkpoint(source):
        return decoder.model_keys(Path(source)), hf.tokenizer(source)
    return hf.read_config(source), hf.tokenizer(source)


def resolve(config, environ: Mapping[str, str] = os.environ) -> tuple[config_dict.ConfigDict, list[str]]:
    """Resolves the config of a run that is to be started, which may follow a network and must find its sinks.

    Returns:
      (the complete config, notes that the user should read), as prune_jax.config.resolve does.
    Raises:
      UserError: the first mistake found; a sink whose package is not installed is one.
    """
    resolved, notes = config_lib.resolve(config, environ, describe)
    sinks.check_installed(resolved.report.sinks)
    return resolved, notes


def check_apart(config, workdir) -> None:
    """Checks that the run reads nothing that lies in its own workdir, which a new run archives and empties.

    Raises:
      UserError: it does; the key is named.
    """
    home = Path(os.path.realpath(workdir))
    for key in keys.INPUTS:
        room, name = key.split(".")
        value = config[room][name]
        if value and os.path.exists(value) and Path(os.path.realpath(value)).is_relative_to(home):
            raise UserError(
                f"config.{key} is {value!r}, which is or lies in this run's own workdir {workdir}; choose another "
                "folder with --workdir"
            )


def load_data(config) -> data.Dataset:
    """Loads the data that a resolved config names, with at least a batch of training examples.

    Raises:
      UserError: data is missing or malformed, or there is less than a batch.
    """
    return data.load(data.DataOptions(**config.data), config.train.batch_size)


def with_found(config, task) -> config_dict.ConfigDict:
    """The resolved config with what a run has found in the user's own data: its classes, the shape of its images.

    They belong to the network, so whoever reads the run's config knows them without the data.
    """
    if not isinstance(task, glue.OwnTask):
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.data.ignore_type():
        config.data.label_names = task.labels or None
        config.data.image_shape = task.shape or None
    return config

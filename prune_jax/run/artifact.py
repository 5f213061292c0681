"""A run's network in a .pjx file (prune_jax.compress.artifact), with its config and its tokenizer."""

import os
from pathlib import Path

from prune_jax import config as config_lib
from prune_jax.compress import artifact
from prune_jax.compress.dictionary import DICTIONARY
from prune_jax.config import keys
from prune_jax.errors import UserError
from prune_jax.run.folder import Network


def write(path, network: Network, tokenizer: str | None = None) -> artifact.Report:
    """Writes a run's network to `path`, whole or not at all; a file that is there is replaced.

    The config in the file has no path of this machine: the network and its tokenizer are in the file, and where data
    lies and where results go is for the reader to say.

    Args:
      tokenizer: the text of a tokenizer.json.
    Raises:
      UserError: a leaf is not float32, the network is beyond the format's limits, or the file cannot be written.
    """
    config = _short(config_lib.to_json(_without_paths(network.config)))
    return artifact.write(path, config, network.params, network.gates, tokenizer)


def _without_paths(config):
    """A copy of a run's config in which the keys that name a file or a folder are at their defaults.

    Names on the hub stay, of the data and of a tokenizer: without them nobody could evaluate the network.
    """
    config, usual = config.copy_and_resolve_references(), config_lib.default()
    on_hub = ("data.train", "data.eval", "data.hub_name") if config.data.get("source") == "hub" else ()
    for key in keys.PATHS:
        room, name = key.split(".")
        if name not in config.get(room, {}):
            continue
        if key in (*on_hub, "data.tokenizer") and not _is_path(config[room][name]):
            continue
        with config.unlocked(), config[room].ignore_type():
            config[room][name] = usual[room][name]
    return config


def _is_path(value) -> bool:
    return isinstance(value, str) and (os.path.exists(value) or value.startswith((".", "~", os.sep)))


def _short(config: dict) -> dict:
    """The config without the keys at their default that the header's dictionary has not: a reader completes them."""
    usual = config_lib.to_json(config_lib.default())
    missing = object()

    def known(name: str) -> bool:
        return f'"{name}":'.encode() in DICTIONARY

    short = {
        room: {
            name: value
            for name, value in keys.items()
            if (known(room) and known(name)) or usual.get(room, {}).get(name, missing) != value
        }
        if isinstance(keys, dict)
        else keys
        for room, keys in config.items()
    }
    return {room: keys for room, keys in short.items() if keys != {} or known(room)}


def read(path) -> tuple[Network, str | None]:
    """(the network in the file `path`, the text of its tokenizer.json or None).

    Raises:
      UserError: the file is missing, is not an artifact, is damaged (cut short or altered), or of a newer format.
    """
    content = artifact.read(path)
    try:
        config = config_lib.completed(config_lib.from_json(content.config))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its header holds no config") from error
    for room, name in (key.split(".") for key in keys.PLACES):  # a file from elsewhere names no place to write
        with config.ignore_type():
            config[room][name] = ""
    return Network(config, content.params, content.gates), content.tokenizer


def save_tokenizer(text: str | None, folder, path) -> Path | None:
    """Writes an artifact's tokenizer as a run keeps it, and returns `folder`; None if there is none.

    Raises:
      UserError: it is not a tokenizer; `path`, the artifact, is named.
    """
    if text is None:
        return None
    import tokenizers

    from prune_jax.data.tokenizer import Tokenizer

    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more particular
        raise UserError(f"{path} is damaged: its tokenizer cannot be loaded ({error})") from error
    Tokenizer(backend, str(path)).save(folder)
    return Path(folder)

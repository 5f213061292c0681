"""A config as a tree: flat under dotted keys, as JSON, and completed with defaults."""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from prune_jax.config import defaults


def default() -> config_dict.ConfigDict:
    """The config with every key at its default."""
    return defaults.get_config()


def leaves(config: config_dict.ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Flattens a config: {"train.epochs": 25, ...}, its values under dotted keys."""
    flat = {}
    for key in config:
        value = config[key]
        name = f"{prefix}{key}"
        flat |= leaves(value, name + ".") if isinstance(value, config_dict.ConfigDict | dict) else {name: value}
    return flat


def completed(saved) -> config_dict.ConfigDict:
    """Completes a saved config with the defaults of the keys that are newer than it. Unknown keys stay, for resolve."""
    config = default()
    config.unlock()
    for room in saved:
        if room not in config or not isinstance(saved[room], config_dict.ConfigDict):
            config[room] = saved[room]
            continue
        for name in saved[room]:
            with config[room].ignore_type():
                config[room][name] = saved[room][name]
    return config


def to_json(config) -> dict:
    """Turns a config into JSON's types: nested dicts, tuples as lists."""

    def plain(value):
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(config.to_dict())


def from_json(saved: dict) -> config_dict.ConfigDict:
    """Makes a config of what to_json returned."""

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return config_dict.ConfigDict(tuples(saved))

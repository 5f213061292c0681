"""The config that every experiment starts from: each key at its default (docs/reference_config.md lists them)."""

from ml_collections import config_dict

from prune_jax.config.keys import KEYS


def get_config() -> config_dict.ConfigDict:
    """Every key at its default. A key whose default is None follows the model size, a checkpoint or the task."""
    config = config_dict.ConfigDict()
    for key, one in KEYS.items():
        room, name = key.split(".")
        if room not in config:
            config[room] = config_dict.ConfigDict()
        config[room][name] = config_dict.placeholder(one.kind) if one.optional else one.default
    return config

"""The config.json of a run: read, checked, compared. A key that is newer than the run has its default there."""

import json
from typing import Any

from prune_jax import files
from prune_jax.config import keys
from prune_jax.config.tree import default, leaves, to_json
from prune_jax.config.values import typed
from prune_jax.errors import UserError

_ALWAYS = ("data.task", "pruning.method", "train.seed")  # every version has written these


def read(path) -> dict:
    """The config that a run has saved in `path`, as JSON has it. Keys that are unknown today stay.

    Raises:
      UserError: it is not a config, or a key holds what it may not; the message names it.
    """
    content = files.read_json(path)
    _check_form(path, content)
    flat = leaves(content)
    if absent := next((key for key in _ALWAYS if key not in flat), None):
        raise UserError(f"{path} is not the config of a run: {absent} is missing")
    for key in flat.keys() & keys.KEYS.keys():
        try:
            value = typed(key, flat[key])
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if not keys.within(keys.KEYS[key], value):
            raise UserError(f"{path} is damaged: config.{key} is {flat[key]!r}; allowed: {keys.allowed(key)}")
    return content


def _check_form(path, content: dict) -> None:
    """UserError where a room of the config is no object, or a key is one."""
    for room in {key.split(".")[0] for key in keys.KEYS} & content.keys():
        if not isinstance(content[room], dict):
            raise UserError(f"{path} is damaged: config.{room} is {content[room]!r:.60}; allowed: an object of keys")
    for key in keys.KEYS:
        room, name = key.split(".")
        if isinstance(content.get(room, {}).get(name), dict):
            raise UserError(f"{path} is damaged: config.{key} is an object; allowed: {keys.allowed(key)}")


def flat(saved: dict) -> dict[str, Any]:
    """Flattens a saved config to {"train.epochs": 25, ...}, with the defaults of the keys that it lacks.

    Args:
      saved: what a config.json holds. It need not fit a ConfigDict; keys that are unknown today stay.
    """
    return json.loads(json.dumps(leaves(to_json(default())))) | leaves(saved)


def differing(saved: dict, other: dict) -> list[str]:
    """Lists the dotted keys in which two saved configs differ.

    A key that a run sets to what it finds in its data agrees with one that is unset.
    """
    ours, theirs = flat(saved), flat(other)
    missing = object()

    def differs(key):
        one, two = ours.get(key, missing), theirs.get(key, missing)
        return one != two and not (key in keys.FOUND and None in (one, two))

    return [key for key in ours | theirs if differs(key)]

"""The values of a config, each by itself: read and set under dotted keys, and brought to the type of its key."""

import difflib
import math
from typing import Any

from ml_collections import config_dict

from prune_jax import files
from prune_jax.config import keys
from prune_jax.config.tree import default, leaves
from prune_jax.errors import UserError


def get(config, key: str):
    room, name = key.split(".")
    return config[room][name]


def put(config, key: str, value) -> None:
    room, name = key.split(".")
    with config.ignore_type():
        config[room][name] = value


def unknown_key_message(key: str, config: config_dict.ConfigDict) -> str:
    """The message for a key that a config has not; it names the nearest key that the config has.

    Args:
      key: dotted, without "config.".
    """
    known = [*leaves(config), *config]
    last = key.rsplit(".", 1)[-1]
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(key, same_name or known, n=1, cutoff=0.0)
    return f"unknown key config.{key}; did you mean config.{near[0]}?"


def fail(key: str, value, allowed: str) -> UserError:
    shown = repr(value) if isinstance(value, str) else value
    return UserError(f"config.{key} is {shown}; allowed: {allowed}")


def typed(key: str, value: Any) -> Any:
    """The value in the type of its key; what flags and JSON files deliver in its place is turned into it.

    Those are: None, also as text, for a key that may be unset; a whole number for a number; a list or a number for a
    tuple; texts joined by commas for a tuple of texts; an empty text for an empty tuple.

    Raises:
      UserError: the value is of another type.
    """
    one = keys.KEYS[key]
    if one.optional and value in (None, "None", (None,)):
        return None
    if one.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if one.kind is tuple:
        if isinstance(value, list):
            value = tuple(value)
        texts = bool(one.choices) or key in keys.TEXTS
        single = str if texts else int | float
        if isinstance(value, single) and not isinstance(value, bool):
            value = (value,)
        if value == ("",):
            value = ()
        if key in keys.TEXTS and isinstance(value, tuple):  # --config.data.label_names=0,1
            value = tuple(str(part) if type(part) is int else part for part in value)
        # One text is a flag's, with commas; several are names, which may have commas of their own.
        named = texts and isinstance(value, tuple) and all(isinstance(text, str) for text in value)
        if named and (one.choices or len(value) == 1):
            value = tuple(part.strip() for text in value for part in text.split(",") if part.strip())
    if type(value) is not one.kind:
        raise fail(key, value, f"a value of type {one.kind.__name__}, not {type(value).__name__}")
    if one.kind is tuple and (one.choices or key in keys.TEXTS):
        if not all(isinstance(text, str) for text in value):
            raise fail(key, value, "text only")
    elif one.kind in (float, tuple):
        for number in value if one.kind is tuple else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise fail(key, value, "numbers only")
            if not math.isfinite(number):
                raise fail(key, value, "finite numbers")
    return value


def check_types(config) -> None:
    """Brings every value to the type of its key, in place.

    Raises:
      UserError: a key is unknown or missing, or a value is of another type.
    """
    given = leaves(config)
    for key, value in given.items():
        if any(known.startswith(f"{key}.") for known in keys.KEYS):
            first = next(known for known in keys.KEYS if known.startswith(f"{key}."))
            raise fail(key, value, f"its keys, such as config.{first}")
        if key not in keys.KEYS:
            raise UserError(unknown_key_message(key, default()))
    for key in keys.KEYS:
        if key not in given:
            raise UserError(f"config.{key} is missing; start from configs/common.py")
        value = typed(key, given[key])
        if key in keys.PATHS:
            value = files.expanded(value, f"config.{key}")
        if value is not given[key]:
            put(config, key, value)

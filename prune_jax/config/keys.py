"""The keys of a config: what each may be, and what they are to whoever reads, compares or moves a run.

The rooms that have a method's name come from the options that the method declares; the others are those of rooms.py.
From KEYS come the defaults, the checks and their messages, and docs/reference_config.md.
"""

import math
from typing import Any

from prune_jax import methods
from prune_jax.config import rooms
from prune_jax.config.sizes import FOLLOWS_SIZE
from prune_jax.pruning.options import Option, declared
from prune_jax.pruning.structure import ALLOWED as STRUCTURES

PATHS = (  # keys that may name a file or a folder: ~ and environment variables stand for what the shell makes of them
    "model.init_from",
    "data.dir",
    "data.train",
    "data.eval",
    "data.hub_name",
    "data.tokenizer",
    "data.cache_dir",
    "distill.teacher",
    "report.mlflow_uri",
)

PLACES = ("data.cache_dir", "report.mlflow_uri")  # of these, what is written to
INPUTS = tuple(key for key in PATHS if key not in PLACES)  # and what is read

FOUND = ("data.label_names", "data.image_shape")  # keys that a run sets to what its data has, where they are unset

TEXTS = ("data.text", "data.label_names")  # tuples of text that have no choices

# Keys that decide where numbers go, when they are saved, and how many are computed at once, but no number.
WITHOUT_RESULT = (
    "data.cache_dir",
    "train.eval_batch_size",
    "train.checkpoint_every",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "distributed.coordinator",
    "distributed.num_processes",
    "distributed.process_id",
    "report.sinks",
    "report.project",
    "report.mlflow_uri",
)

_IN_WORDS = {  # what no range and no choice tells
    "data.task": "cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli; single, pair, regression; mnist, digits; "
    "classification, regression; lm",
    "data.text": "one or two columns",
    "data.label_names": "two or more names",
    "data.image_shape": "three whole numbers, the last 1 or 3",
    "data.buckets": "increasing whole numbers, from max_len to max_positions at the end",
    "model.layer_heads": "whole numbers up to num_heads, one per layer",
    "model.layer_ffn": "whole numbers up to d_ff, one per layer",
    "model.widths": "whole numbers, one per layer but the last, up to the published width",
    "pruning.sparsity_steps": "percentages from 0 to 100, or fractions from 0 to 1",
    "pruning.structure": STRUCTURES,
}

ROOMS: dict[str, type] = {}  # in the order of the reference


def _keys() -> dict[str, Option]:
    names = (*methods.REGISTRY, *methods.ONESHOT)
    own = {name: methods.maker(name).options for name in names}
    if taken := own.keys() & rooms.FIXED.keys():
        raise ValueError(
            f"name is {min(taken)!r}; allowed: one that is not a room of the config: {', '.join(rooms.FIXED)}"
        )
    fixed = dict(rooms.FIXED)
    last = {"report": fixed.pop("report")}
    ROOMS.clear()
    ROOMS.update(fixed | own | last)
    keys = {
        f"{room}.{name}": one for room, cls in ROOMS.items() for name, one in declared(cls).items() if one.in_config
    }
    keys["pruning.method"] = keys["pruning.method"]._replace(choices=names)
    return keys | {key: keys[key]._replace(default=None, optional=True) for key in FOLLOWS_SIZE}


KEYS: dict[str, Option] = _keys()  # "train.epochs" and so on, without the rooms that would be empty


def _refresh() -> None:
    """Takes the methods that have been registered since."""
    new = _keys()
    KEYS.clear()
    KEYS.update(new)


methods.ON_CHANGE.append(_refresh)


def bounds(one: Option) -> str:
    """The range of a number in words, as in "1 to 1000", "at least 0", "above 0 and below 1"; "" if it has none."""
    if one.least == -math.inf and one.most == math.inf:
        return ""
    if not one.inclusive:
        return f"above {one.least}" + (f" and below {one.most}" if one.most < math.inf else "")
    return f"at least {one.least}" if one.most == math.inf else f"{one.least} to {one.most}"


def allowed(key: str) -> str:
    """The allowed values of a key in words; "" where its type says all."""
    one = KEYS[key]
    if one.choices:
        return ("any of " if one.kind is tuple else "") + ", ".join(choice or "empty" for choice in one.choices)
    return _IN_WORDS.get(key) or bounds(one)


def within(one: Option, value: Any) -> bool:
    """Whether a value of the option's own type is among its choices and in its range."""
    if value is None:
        return one.optional
    if one.choices:
        return set(value) <= set(one.choices) if one.kind is tuple else value in one.choices
    if one.kind not in (int, float):
        return True
    return one.least <= value <= one.most if one.inclusive else one.least < value < one.most


def matters(key: str, method: str) -> bool:
    """Whether another value of a key can change the results of a run of that method."""
    return key not in WITHOUT_RESULT and belongs(key, method)


def belongs(key: str, method: str) -> bool:
    """Whether a key matters to a method: a room with a method's name is its own, and baseline prunes nothing."""
    room = key.split(".")[0]
    if room in methods.ONESHOT:  # also before another method
        return True
    if room in methods.REGISTRY:
        return room == method
    return key == "pruning.method" or not (room == "pruning" and method == "baseline")

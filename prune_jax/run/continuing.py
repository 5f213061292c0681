"""Whether an earlier run goes on under a changed config: more epochs, and data that has moved.

Anything else that can change a result makes another run, also other examples, or another network to start or to learn
from, under the same names.
"""

import csv
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from prune_jax import config as config_lib
from prune_jax import data as data_lib
from prune_jax.config.schedules import sparsity_schedule
from prune_jax.errors import UserError
from prune_jax.files import read_json, write_json

# Keys that say where data lies. Another value is the same data where the examples are.
PLACES = ("data.source", "data.dir", "data.train", "data.eval", "data.hub_name", "data.hub_config", "data.tokenizer")
_FILE = "data.json"


def fingerprint(dataset) -> str:
    """A hash of a data set's examples: tokens or pixels, labels, weights, their order and their splits."""
    digest = hashlib.sha256()
    for name, split in (("train", dataset.train), *dataset.evals.items()):
        for field, value in zip(split._fields, tuple(split), strict=True):
            array = np.ascontiguousarray(value if value is not None else ())
            digest.update(f"{name} {field} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


@functools.cache
def _read(options: data_lib.DataOptions, batch_size: int):
    dataset = data_lib.load(options, batch_size)
    return dataset.task, fingerprint(dataset)


def read(config) -> tuple:
    """(the task with the classes that its data have, their fingerprint) of a resolved config; each data set once.

    Raises:
      UserError: as data.load.
    """
    return _read(data_lib.DataOptions(**config.data), config.train.batch_size)


def networks(config) -> dict[str, str]:
    """Hashes of the networks that a resolved config reads, by the key that names each; none of what is not known."""
    named = {
        "model.init_from": (config.model.init_from, config.model.init_checkpoint),
        "distill.teacher": (config.distill.teacher, config.distill.checkpoint),
    }
    found = {key: _of_network(*one) for key, one in named.items() if one[0]}
    return {key: value for key, value in found.items() if value}


def _of_network(source: str, kind: str) -> str:
    """A hash of the network in a run's folder, by the hashes that its checkpoint has, or of a checkpoint's files.

    "" where there is none to be told from another: a name on the hub, or a run of before there were hashes.
    """
    digest, folder = hashlib.sha256(), Path(source)
    saves = [path for path in (folder / "checkpoints" / kind).glob("*") if path.name.isdigit()]
    try:
        if saves:
            newest = max(saves, key=lambda path: int(path.name))
            hashes = read_json(newest / "progress" / "metadata")["hashes"]
            own = sorted((name, value) for name, value in hashes.items() if name.split("/")[0] in ("params", "gates"))
            return hashlib.sha256(repr(own).encode()).hexdigest()
        files = sorted(folder.glob("*.safetensors"))
        for path in files:
            digest.update(_of_file(path, path.stat().st_size, path.stat().st_mtime_ns))
    except (OSError, UserError, AttributeError, KeyError):  # whoever reads the network says what is wrong with it
        return ""
    return digest.hexdigest() if files else ""


@functools.lru_cache(maxsize=64)
def _of_file(path: Path, size: int, changed: int) -> bytes:
    """A hash of a file's content, read once as long as it is of this size and last change: a sweep's runs share it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def note_inputs(workdir: Path, data: str, read: Mapping[str, str] = MappingProxyType({})) -> None:
    """Keeps the fingerprint of a run's data, and the hashes of the networks that it reads, in its folder."""
    write_json(workdir / _FILE, {"sha256": data, "networks": dict(read)})


def data_of(workdir: Path) -> str:
    """The fingerprint that note_inputs has kept; "" where there is none."""
    path = workdir / _FILE
    return str(read_json(path).get("sha256", "")) if path.is_file() else ""


def why_not_same(workdir: Path, data: str, read: Mapping[str, str] = MappingProxyType({})) -> str:
    """Says which input of the run in `workdir` is another now; "" where all that is known is the same.

    Args:
      data: the fingerprint of the data that the config names now, "" if not known; read: as `networks` gives it.
    """
    if data and data_of(workdir) not in ("", data):
        return "its data have changed: they hold other examples now"
    path = workdir / _FILE
    before = read_json(path).get("networks") if path.is_file() else None
    ours = before if isinstance(before, dict) else {}
    return next(
        (f"config.{key} names another network now" for key in read if ours.get(key, read[key]) != read[key]), ""
    )


def without_moved_data(workdir: Path, differing: Sequence[str], data: str) -> list[str]:
    """The keys that differ, without those that say where the same data lies."""
    moved = set(differing) & set(PLACES)
    if moved and data and data_of(workdir) == data:
        return [key for key in differing if key not in moved]
    return list(differing)


def _epochs_done(workdir: Path) -> int:
    try:
        with open(workdir / "metrics.csv", encoding="utf-8", newline="") as file:
            return max((int(row["epoch"]) for row in csv.DictReader(file)), default=0)
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def why_not_longer(workdir: Path, earlier: dict, given: dict) -> str:
    """Why the run in `workdir` cannot go on to another number of epochs; "" where it can.

    It can where nothing that the epochs so far have done depends on their number: constant rates whose warm-up is over
    in the longer run, too, and the same targets of pruning. The warm-up stays that of the shorter run.

    Args:
      earlier, given: the run's config and the new one, as JSON, which differ in train.epochs.
    """
    old, new = (config_lib.completed(config_lib.from_json(config)) for config in (earlier, given))
    done, epochs = _epochs_done(workdir), new.train.epochs
    if epochs <= done:
        return f"it has done {done} epochs already"
    if old.train.lr_schedule != "constant":
        return f"its {old.train.lr_schedule} rates fall towards the end of {old.train.epochs} epochs"
    if old.train.warmup_fraction * epochs > done:
        return f"the warm-up of {epochs} epochs is longer than the {done} that it has done"
    if old.pruning.method == "sws" and old.sws.tau_anneal:
        return "config.sws.tau_anneal refers to all epochs"
    if (workdir / "checkpoints" / "quantised").exists():
        return "its network is quantised"
    if any(config.pruning.sparsity_steps is None for config in (old, new)):
        return "its schedule is not known"
    ours, theirs = sparsity_schedule(new), sparsity_schedule(old)
    if any(ours(epoch) != theirs(epoch) for epoch in range(min(done + 1, old.train.epochs) + 1)):
        return "the targets of the epochs that it has done would be others"
    return ""

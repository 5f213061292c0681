"""The dense run that a pruned one is compared with: the same data, network and training, and nothing closed."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prune_jax import files, methods
from prune_jax.config import keys, saved
from prune_jax.errors import UserError
from prune_jax.run import continuing


class Dense(NamedTuple):
    """A dense run.

    Attributes:
      metric: its best.
      same_seed: whether its seed is that of the run that it is compared with.
    """

    folder: Path
    metric: float
    seed: int
    same_seed: bool


def _others(ours: dict, theirs: dict) -> set[str]:
    """The keys that differ and make another dense network: not those of the pruning, nor the seed."""
    aside = {"pruning.method", "train.seed"}
    rooms = {"oneshot", *methods.ONESHOT}
    differing = {key for key in saved.differing(ours, theirs) if key.split(".")[0] not in rooms}
    return {key for key in differing if keys.matters(key, "baseline")} - aside


def _stays_dense(config: dict, summary: dict) -> bool:
    """Whether a run trained as a dense one does: it is the baseline, or a schedule whose targets are all 0."""
    flat, method = saved.flat(config), summary["method"]
    scheduled = method in methods.REGISTRY and methods.scheduled(method)
    return (method == "baseline" or scheduled) and not summary["sparsity"] and not flat["oneshot.method"]


def neighbour(workdir: Path) -> Dense | None:
    """Finds the dense run beside `workdir` that was trained on the same data, as the run in it was, and as long.

    One of the same seed comes first, then the one of the lowest seed. A folder that cannot be read is passed over.
    """
    workdir = Path(workdir).absolute()
    try:
        ours, data = saved.read(workdir / "config.json"), continuing.data_of(workdir)
        own, folders = files.read_json(workdir / "summary.json"), sorted(workdir.parent.iterdir())
    except (OSError, UserError):
        return None
    seed, found = ours["train"]["seed"], []
    for folder in folders:
        if folder == workdir or not (folder / "summary.json").is_file():
            continue
        try:
            summary, theirs = files.read_json(folder / "summary.json"), saved.read(folder / "config.json")
            metric, name = float(summary["best_metric"]), summary["metric_name"]
            as_long = (summary["epochs"], summary["steps"]) == (own["epochs"], own["steps"])
            same_data = data and data == continuing.data_of(folder)
            others = _others(ours, theirs) - set(continuing.PLACES if same_data else ())
            fits = not others and as_long and name == own["metric_name"] and _stays_dense(theirs, summary)
        except (OSError, UserError, AttributeError, KeyError, TypeError, ValueError):
            continue
        changed = data and (other := continuing.data_of(folder)) and other != data
        if fits and not changed and math.isfinite(metric):
            found.append(Dense(folder, metric, theirs["train"]["seed"], theirs["train"]["seed"] == seed))
    return min(found, key=lambda run: (not run.same_seed, run.seed), default=None)


def command(workdir: Path) -> str:
    """The command of the dense run that `neighbour` would find: the run's own, with another method and folder."""
    workdir = Path(workdir)
    flags = ["--config.pruning.method=baseline"]
    try:
        words = files.read_json(workdir / "provenance.json")["command"]
        if saved.flat(files.read_json(workdir / "config.json"))["oneshot.method"]:
            flags.append("--config.oneshot.method=")
    except (UserError, AttributeError, KeyError, TypeError):
        words = []
    if not any(str(word).startswith("--config") for word in words):  # a run that was started from Python
        return f"repeat it with {' '.join(flags)} in another folder beside it"
    program, *words = map(str, words)
    start = ["prune-jax"] if Path(program).name in ("prune-jax", "__main__.py") else ["python", program]
    return shlex.join([*start, *_last_of_each([*words, *flags, f"--workdir={workdir}_dense"])])


def _last_of_each(words: Sequence[str]) -> list[str]:
    """The words of a command, of each flag the last alone, which is the one that holds.

    Example:
      >>> _last_of_each(["train", "--a=1", "--b", "2", "--noconfig.c", "--a=3", "--config.c"])
      ['train', '--b', '2', '--a=3', '--config.c']
    """
    kept: dict[str, list[str]] = {"": []}
    name = ""
    for word in words:
        if match := re.match(r"--?(?:no(?=config))?([A-Za-z][\w.]*)", word):
            name = match[1]
            kept.pop(name, None)
        kept.setdefault(name, []).append(word)
    return [word for own in kept.values() for word in own]

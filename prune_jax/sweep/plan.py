"""Turns the flags of a sweep into its runs, each with a checked config."""

import argparse
import itertools
import json
import os
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.config import defaults, keys, saved
from prune_jax.config.sizes import SIZES
from prune_jax.errors import UserError
from prune_jax.methods import REGISTRY
from prune_jax.run import inputs, launch
from prune_jax.run.commands import arguments
from prune_jax.sweep import child

LAUNCHERS = ("processes", "slurm", "submitit-local", "submitit-debug")

_FLAGS = {  # key of the config: (short, long, what it is)
    "train.epochs": ("-e", "--epochs", "epochs of a run"),
    "train.batch_size": ("-b", "--batch-size", "examples per step"),
    "train.learning_rate": ("-l", "--learning-rate", "the learning rate of the weights"),
    "model.size": ("-m", "--model-size", f"any of {', '.join(SIZES)}"),
    "pruning.method": ("-p", "--pruning-methods", f"any of {', '.join(REGISTRY)}"),
    "pruning.start_sparsity": ("-s", "--start-sparsity", "the closed fraction at the start of the window"),
    "pruning.end_sparsity": ("-f", "--end-sparsity", "the closed fraction at its end"),
    "pruning.start_epoch": ("-ps", "--pruning-start", "epochs before the window"),
    "pruning.end_epoch": ("-pe", "--pruning-end", "epochs until its end, at most the run's own"),
    "data.task": ("-t", "--task", "the task"),
    "data.max_len": ("-ml", "--max-len", "the length of a text, in tokens"),
    "train.seed": (None, "--seeds", "one run per seed"),
}
_WINDOW = {"pruning.schedule": "linear", "pruning.end_sparsity": 0.99}  # without a config file
_OUTERMOST = ("train.seed", "data.task", "model.size")  # an early look finds every method with the first seed
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "values in parentheses"}


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: the name of its folder, which the view shows.
      folder: its workdir.
      config: its resolved config.
      command: the command that starts it, as a person could type it.
    """

    name: str
    folder: Path
    config: Any
    command: list[str]


class Plan(NamedTuple):
    """The runs of a sweep, and lines to read before they start."""

    runs: list[Run]
    lines: list[str]


def parser(doc: str = "") -> argparse.ArgumentParser:
    """The flags of the sweep, with `doc` as their help's text.

    Values stay text here. `make` reads them, and reports all mistakes at once.
    """
    flags = arguments.parser("sweep", doc)
    usual = config_lib.leaves(defaults.get_config()) | _WINDOW
    for key, (short, long, text) in _FLAGS.items():
        text = f"config.{key}: {text} (default without --config: {usual[key]})"
        flags.add_argument(*filter(None, (short, long)), dest=key, metavar="V[,V...]", help=text)
    flags.add_argument(
        "-ss", "--sparsity-steps", nargs="?", const="", metavar="V,V,...",
        help="a step schedule: these percentages, one per epoch after the window's start; alone: the model size's own. "
        "Without it the window is linear, or the config file's where none of its flags is given",
    )  # fmt: skip
    flags.add_argument(
        "-se", "--spt-explore", nargs="?", const="layer", metavar="layer|N",
        help="SPT explores one layer type per step (layer, or alone), or makes N passes per step",
    )  # fmt: skip
    flags.add_argument("--config", metavar="FILE", help="start from this config file in place of the defaults")
    flags.add_argument(
        "--set", action="append", default=[], metavar="KEY=V[,V...]", help="values of any key of the config; repeatable"
    )
    flags.add_argument("--out", default="results_sweep", metavar="DIR", help="the folder of the sweep")
    flags.add_argument("-parallel", action="store_true", help="run side by side: a job for each GPU, or each CPU core")
    flags.add_argument("-max-parallel-jobs", metavar="N", help="at most N side by side; implies -parallel")
    flags.add_argument("--progress", default="both", metavar="bars|logs|both", help="what to show of each job")
    flags.add_argument("--dry-run", action="store_true", help="print the runs, start none")
    flags.add_argument("--grace", default="60", metavar="SECONDS", help="after Ctrl-C, until a job is killed")
    flags.add_argument("--launcher", default="processes", metavar="|".join(LAUNCHERS), help="where the runs go")
    flags.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=V", help="submitit's, as partition=gpu, timeout_min=600"
    )
    return flags


class Mistakes(UserError):
    """Several mistakes, one per line."""

    def __init__(self, mistakes: list[str]):
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join([f"{count}, nothing was started:", *(f"  {text}" for text in mistakes)]))


def _split(text: str) -> list[str]:
    """The parts of a text between the commas that are outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text)]


def _atom(text: str):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _value(text: str, kind: type):
    if text == "None":  # unsets a key; resolve says where that is not allowed
        return None
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind is tuple:
        return tuple(_atom(part) for part in _split(text.strip("() ")) if part)
    return kind(text)


def _values(key: str, text: str, kind: type, flag: str, mistakes: list[str]) -> list:
    """The values of a flag. Several tuples stand in parentheses each; a single one may stand without."""
    parsed = {}
    for part in [text] if kind is tuple and "(" not in text else _split(text):
        try:
            parsed[_value(part, kind)] = None
        except (ValueError, KeyError):
            mistakes.append(f"config.{key} is {part!r}; allowed: {_KINDS[kind]}, or several with commas ({flag})")
    return list(parsed)


def _load(path: str | None):
    if path is None:
        return defaults.get_config()
    launch.import_neighbours(path)
    try:
        config = runpy.run_path(path)["get_config"]()
        config.keys()
        return config
    except Exception as error:  # a config file is code: it may raise anything
        reason = "it has no get_config()" if isinstance(error, KeyError) else error
        raise UserError(f"cannot load the config file {path!r}: {reason}") from error


def _grid(args, base, mistakes: list[str]) -> dict[str, list]:
    """The values of each key that a flag sets."""
    grid: dict[str, list] = {}

    def add(key, text, flag):
        room, _, name = key.partition(".")
        if room not in base or not name or name not in base[room]:
            mistakes.append(config_lib.unknown_key_message(key, base) + f" ({flag})")
        elif key in grid:
            mistakes.append(f"config.{key} is given twice ({flag})")
        else:
            grid[key] = _values(key, text, base[room].get_type(name), flag, mistakes)

    for key, (_, long, _) in _FLAGS.items():
        if (text := getattr(args, key)) is not None:
            add(key, text, long)
    linear = ("pruning.start_sparsity", "pruning.end_sparsity", "pruning.end_epoch")
    if args.sparsity_steps is not None:
        grid["pruning.schedule"] = ["step"]
        if args.sparsity_steps:
            add("pruning.sparsity_steps", args.sparsity_steps, "--sparsity-steps")
    elif args.config and any(getattr(args, key) is not None for key in linear):
        grid["pruning.schedule"] = ["linear"]
    if args.spt_explore == "layer":
        grid["spt.explore_per_layer"] = [True]
    elif args.spt_explore is not None:
        add("spt.explorations", args.spt_explore, "--spt-explore")
    for text in args.set:
        key, equals, values = text.partition("=")
        if not equals:
            mistakes.append(f"--set {text!r}; allowed: KEY=VALUE, as in --set spt.epsilon=0.01,0.02")
            continue
        grid.pop(key, None) if key == "pruning.schedule" else None  # what the window's flags implied
        add(key.removeprefix("config."), values, "--set")
    return grid


def _with(base, overrides: dict):
    config = base.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        for key, value in overrides.items():
            room, name = key.split(".")
            config[room][name] = value
    return config


def _resolve(base, overrides: dict, mistakes: list[str]):
    """(resolved config, notes); None where there are mistakes, which are added to `mistakes`.

    A value that is refused goes back to its default, so that the next mistake is found, too.
    """
    tried = dict(overrides)
    while True:
        try:
            resolved = inputs.resolve(_with(base, tried))
            return resolved if tried == overrides else None
        except UserError as error:
            key = match[1] if (match := re.match(r"config\.(\w+\.\w+)", str(error))) else None
            flag = f" ({_FLAGS[key][1]})" if key in tried and key in _FLAGS else ""
            mistakes.append(f"{error}{flag}")
            if key not in tried:
                return None
            del tried[key]


def _text(value) -> str:
    if isinstance(value, tuple):
        return "(" + "".join(f"{part!r}," for part in value) + ")"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name(overrides: dict, config, varying: list[str]) -> str:
    shown = {"train.seed": "seed{}", "data.task": "{}", "model.size": "{}"}
    parts = [config.pruning.method]
    between = [key for key in varying if key not in ("data.task", "train.seed")]
    for key in ("data.task", *between, "train.seed"):
        if key != "pruning.method" and (key in overrides or key in shown):
            value = overrides.get(key, config[key.split(".")[0]][key.split(".")[1]])
            parts.append(shown.get(key, key.split(".")[1] + "={}").format(_text(value)))
    return "results_" + re.sub(r"[^\w.=-]+", "-", "_".join(parts)).strip("-")[:120]


def _identity(config: dict, without: Sequence[str] = ()) -> str:
    """A text that differs between different runs: the config in JSON's types, with every key of today but `without`."""
    return json.dumps({key: value for key, value in saved.flat(config).items() if key not in without}, sort_keys=True)


def _known_folders(out: Path, configs: dict[str, dict]) -> dict[str, Path]:
    """The folders of those runs that are in `out` already, whatever their names are.

    Args:
      configs: of the runs, as JSON has them, by any name. What a run has found in its data is not known here.
    """
    ignored = (*keys.FOUND, *keys.WITHOUT_RESULT)
    there: dict[str, list[tuple[dict, Path]]] = {}
    for path in sorted(out.glob("*/config.json")):
        try:
            config = saved.read(path)
        except UserError:
            continue
        there.setdefault(_identity(config, ignored), []).append((config, path.parent))
    folders: dict[str, Path] = {}
    for name, config in configs.items():
        for theirs, folder in there.get(_identity(config, ignored), []):
            differing = set(saved.differing(theirs, config)) - set(keys.WITHOUT_RESULT)
            if folder not in folders.values() and not differing:
                folders[name] = folder
                break
    return folders


def _whole(flag: str, text: str, least: int, mistakes: list[str]) -> None:
    if not text.isdecimal() or int(text) < least:
        mistakes.append(f"{flag} is {text!r}; allowed: a whole number, {least} or more")


def make(argv: Sequence[str], doc: str = "") -> tuple[argparse.Namespace, Plan]:
    """The runs that the flags ask for, and the flags; `doc` is the text of their help.

    Raises:
      Mistakes: every mistake in the flags, one per line.
    """
    args, unknown = parser(doc).parse_known_args(argv)
    mistakes = [f"unknown flag or argument {text!r}; -h lists them" for text in unknown]
    if args.max_parallel_jobs is not None:
        _whole("-max-parallel-jobs", args.max_parallel_jobs, 1, mistakes)
    _whole("--grace", args.grace, 0, mistakes)
    if args.progress not in ("bars", "logs", "both"):
        mistakes.append(f"--progress is {args.progress!r}; allowed: bars, logs, both")
    if args.launcher not in LAUNCHERS:
        mistakes.append(f"--launcher is {args.launcher!r}; allowed: {', '.join(LAUNCHERS)}")
    mistakes += [f"--slurm {text!r}; allowed: KEY=VALUE" for text in args.slurm if "=" not in text]
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        mistakes.append(f"--out {args.out!r} is a file; name a folder")
    try:
        base = _load(args.config)
    except UserError as error:
        raise Mistakes([*mistakes, str(error)]) from None
    grid = _grid(args, base, mistakes)
    grid = {key: values for key, values in grid.items() if values}  # keys without a value are among the mistakes
    order = [key for key in _OUTERMOST if key in grid] + [key for key in grid if key not in _OUTERMOST]
    order.sort(key=lambda key: key == "pruning.method")  # innermost
    varying = [key for key in order if len(grid[key]) > 1]
    resolved, notes = {}, []
    for values in itertools.product(*(grid[key] for key in order)):
        overrides = dict(zip(order, values, strict=True))
        method = overrides.get("pruning.method", base.pruning.method)
        if args.config is None:
            overrides = _WINDOW | overrides
        overrides = {key: value for key, value in overrides.items() if config_lib.belongs(key, method)}
        outcome = _resolve(base, overrides, mistakes)
        if outcome is not None:
            config, own_notes = outcome
            notes += own_notes
            resolved.setdefault(_identity(config_lib.to_json(config)), (config, overrides))
    if mistakes:
        raise Mistakes(list(dict.fromkeys(mistakes)))

    known = _known_folders(out, {text: files.plain(config_lib.to_json(one[0])) for text, one in resolved.items()})
    taken = {folder.name for folder in known.values()}
    runs = []
    for text, (config, overrides) in resolved.items():
        if text in known:
            folder = known[text]
        else:
            stem = _name(overrides, config, varying)
            names = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
            folder = out / next(name for name in names if name not in taken)
            taken.add(folder.name)
        flags = [f"--config.{key}={_text(value)}" for key, value in overrides.items()]
        command = [*child.TRAIN, f"--config={args.config or defaults.__file__}", *flags, f"--workdir={folder}"]
        runs.append(Run(folder.name, folder, config, command))
    return args, Plan(runs, _describe(args, base, grid, runs, list(dict.fromkeys(notes))))


def _describe(args, base, grid, runs, notes) -> list[str]:
    sizes = " x ".join(f"{len(values)} {key}" for key, values in grid.items() if len(values) > 1)
    source = args.config or "the defaults"
    lines = [f"sweep     {len(runs)} runs{f' ({sizes})' if sizes else ''} in {args.out}, from {source}"]
    shown = dict.fromkeys(
        (*_FLAGS, "pruning.schedule", "pruning.sparsity_steps", "data.source", "data.dir", *grid)
    )  # the familiar ones, and whatever was set
    for key in shown:
        room, name = key.split(".")
        concerned = [run.config for run in runs if config_lib.belongs(key, run.config.pruning.method)]
        if key == "pruning.sparsity_steps":
            concerned = [config for config in concerned if config.pruning.schedule == "step"]
        values = dict.fromkeys(_text(config[room][name]) for config in concerned)
        if values:
            lines.append(f"  {key:<24} {', '.join(values) or '-'}")
    if os.environ.get("BENCHMARK_EPOCHS"):
        lines.append(f"  BENCHMARK_EPOCHS         {os.environ['BENCHMARK_EPOCHS']}")
    return lines + [f"note      {note}" for note in notes]

"""Text of the user's own: jsonl files and, through the package datasets, csv and parquet, folders of text, the hub.

Cells are taken as they are written: "NA", "null" and "007" in a csv file are texts. An empty cell of text is an empty
text. A label that is missing or no label of the task is a malformed row: an error, or left out and counted.
"""

import atexit
import functools
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prune_jax.data import delimited, json_lines, sources
from prune_jax.data.glue import OwnTask
from prune_jax.errors import UserError, first_line
from prune_jax.files import look_for_hub, visible

_EVALS = ("validation", "valid", "dev", "test")  # splits of the hub that are evaluated, the first that is there
_LARGEST = float(np.finfo(np.float32).max)  # scores are float32
_EMPTY = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>")  # in columns that nobody reads
_MOST_CLASSES = 20  # more are believed where each has two examples on average


class Own(NamedTuple):
    """What was read.

    Attributes:
      task: with its classes.
      splits: the rows by split, "train" and "eval"; the one alone where only it was asked for.
      notes: what the user is to know of the data, a line each.
    """

    task: OwnTask
    splits: dict[str, Any]
    notes: tuple[str, ...]


class _Cells(NamedTuple):
    """Columns as they were read. labels: None where one is missing; where: what messages call the table."""

    texts: list[list[str]]
    labels: list[Any]
    where: str


def read(task: OwnTask, options, evals_only: bool = False) -> Own:
    """Reads the rows of an own task.

    Args:
      options: DataOptions.
      evals_only: whether the training rows may be left out; they are where neither rows nor classes come from them.
    Raises:
      UserError: a file cannot be read, a column is missing, a row is malformed, or the classes are not two or more.
    """
    tables = _tables(task, options, evals_only and bool(options.eval) and (task.is_regression or bool(task.labels)))
    cells = {split: _cells(task, options.label, table, where) for split, (table, where) in tables.items()}
    notes = [f"{part.where}: {note}" for part in cells.values() if (note := of_empty(part.texts))]
    task, found = named(task, {split: part.labels for split, part in cells.items()})
    notes += found
    rows, skipped = {}, 0
    for split, part in cells.items():
        labels, kept = checked(task, part.labels, part.where, options.bad_rows)
        skipped += len(part.labels) - len(kept)
        texts = [[column[i] for i in kept] for column in part.texts]
        rows[split] = sources.Rows(texts[0], texts[1] if task.is_pair else None, labels)
    if skipped:
        notes.append(f"left out {skipped:,} rows without a label of the task (config.data.bad_rows=skip)")
    if "eval" not in rows:
        train, held = held_out(rows[sources.TRAIN].labels, task.is_regression, options.eval_share, options.eval_seed)
        rows = {sources.TRAIN: _take(rows[sources.TRAIN], train), "eval": _take(rows[sources.TRAIN], held)}
    return Own(task, rows, tuple(notes))


def of_empty(columns: Sequence[Sequence[str]]) -> str | None:
    """What is said of texts that are empty or blank: how many, and the row of the first, from 1. None without any.

    Example:
      >>> of_empty([["good", "", "bad"]])
      '1 of 3 texts is empty and read as such, the first in row 2'
    """
    rows = [row for column in columns for row, text in enumerate(column, 1) if not text.strip()]
    if not rows:
        return None
    texts = f"{len(rows):,} of {sum(map(len, columns)):,} texts {'is' if len(rows) == 1 else 'are'}"
    return f"{texts} empty and read as such, the first in row {min(rows)}"


def _take(rows: sources.Rows, at: np.ndarray) -> sources.Rows:
    texts = [None if column is None else [column[i] for i in at] for column in rows[:2]]
    return sources.Rows(*texts, rows.labels[at])


def held_out(labels: np.ndarray, is_regression: bool, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows to evaluate on): a share of every class, rounded, at random by the seed.

    Raises:
      UserError: one of them would be empty.
    Example:
      >>> train, held = held_out(np.array([0] * 8 + [1] * 4), False, 0.25, seed=0)
      >>> len(train), [0 if row < 8 else 1 for row in held]
      (9, [0, 0, 1])
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = [order] if is_regression else [order[labels[order] == label] for label in np.unique(labels)]
    held = np.sort(np.concatenate([rows[: math.floor(share * len(rows) + 0.5)] for rows in classes]))
    if not 0 < len(held) < len(labels):
        raise UserError(
            f"config.data.eval_share is {share:g}, which holds {len(held)} of {len(labels)} examples out; allowed: a "
            "share that leaves examples on both sides, or config.data.eval"
        )
    return np.setdiff1d(np.arange(len(labels)), held), held


# Tables --------------------------------------------------------------------------------------------------------------


def _tables(task: OwnTask, options, evals_only: bool) -> dict[str, tuple[Any, str]]:
    """(a table of the package datasets, what messages call it) by split."""
    if options.source == "hub":
        return _hub(task, options, evals_only)
    paths = {sources.TRAIN: options.train} | ({"eval": options.eval} if options.eval else {})
    if evals_only:
        del paths[sources.TRAIN]
    return {split: (_file(task, options, path), path) for split, path in paths.items()}


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@functools.cache
def _scratch() -> str:
    """A folder for the tables of this process, where the package datasets cannot write to its own."""
    logging.getLogger("absl").warning("the cache of the package datasets cannot be written; using a temporary folder")
    folder = tempfile.mkdtemp(prefix="prune_jax_datasets_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the rows are mapped into memory until then
    return folder


def _load(what: str, *args, **kwargs):
    import datasets

    if not _writable(Path(datasets.config.HF_DATASETS_CACHE)):
        kwargs["cache_dir"] = _scratch()
    quiet = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*args, **kwargs)
    except Exception as error:  # a dozen kinds: no such repository, no such configuration, a broken file, no UTF-8
        if "corresponds to no data" in str(error):
            raise UserError(f"{what} has no rows") from error
        cause = error.__cause__ or error.__context__ or error  # a DatasetGenerationError names no reason itself
        raise UserError(
            f"cannot read {what}: {first_line(cause if isinstance(cause, Exception) else error)}"
        ) from error
    finally:
        datasets.utils.logging.set_verbosity(quiet)


def _file(task: OwnTask, options, path: str):
    if options.source == "text":
        return _folder(Path(path))
    if options.source == "jsonl":
        rows = json_lines.read(path)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}
    extra: dict[str, Any] = {}
    if options.source == "csv":
        # Else pandas reads "NA" as nothing and "007" as a number; utf-8-sig is UTF-8 that may begin with a mark.
        # All columns are text, by their places: pandas reads 10,000 rows at a time, and a column whose type is another
        # in a later part ends the reading, also one that nobody asked for.
        extra = {"keep_default_na": False, "encoding": "utf-8-sig"}
        extra["sep"], names = delimited.layout(path, (*task.columns, options.label))
        extra["converters"] = dict.fromkeys(range(len(names)), str)
    return _load(path, options.source, data_files={"rows": [path]}, split="rows", **extra)


def _folder(folder: Path) -> dict[str, list]:
    """Texts of classes: CLASS/*.txt holds a text each, CLASS.txt a text per line."""
    texts, labels = [], []
    for path in visible(folder):
        for file in visible(path, "*.txt") if path.is_dir() else [path] * (path.suffix == ".txt"):
            how = {"sample_by": "document" if path.is_dir() else "line"}
            found = _load(str(file), "text", data_files={"rows": [str(file)]}, split="rows", **how)["text"][:]
            texts += found
            labels += [path.stem if path.is_file() else path.name] * len(found)
    if not texts:
        raise UserError(
            f"{folder} holds no texts; CLASS/*.txt (a text each) or CLASS.txt (a text per line) is expected"
        )
    return {"text": texts, "label": labels}


def _hub(task: OwnTask, options, evals_only: bool) -> dict[str, tuple[Any, str]]:
    name, config = options.hub_name, options.hub_config or None
    if not Path(name).exists():
        look_for_hub()
    what = f"config.data.hub_name={name!r}"
    tables = _load(what, name, config)
    first = next(iter(tables.values()))
    if first.builder_name == "csv":  # whose texts "NA" and "007" are nothing and 7 by now, where no card has their type
        empty = {column: _EMPTY for column in first.column_names if column not in task.columns} | {options.label: ("",)}
        kept = {"keep_default_na": False, "na_values": empty, "converters": dict.fromkeys(task.columns, str)}
        tables = _load(what, name, config, **kept)
    wanted = {sources.TRAIN: options.train or "train"}
    evals = options.eval or next((split for split in _EVALS if split in tables), "")
    if evals:
        wanted["eval"] = evals
    if evals_only:
        del wanted[sources.TRAIN]
    for key, split in wanted.items():
        if split not in tables:
            raise UserError(f"config.data.{key} is {split!r}; {name} has the splits {', '.join(tables)}")
    return {key: (tables[split], f"{name} {split}") for key, split in wanted.items()}


def _odd(cells: Sequence) -> Any:
    """The first cell, which may be empty, that is no single value; None where all are."""
    return next((cell for cell in cells if isinstance(cell, list | dict | bytes)), None)


def _cells(task: OwnTask, label: str, table, where: str) -> _Cells:
    names = list(table) if isinstance(table, dict) else table.column_names
    for column in (*task.columns, label):
        if column not in names:
            key = "label" if column == label else "text"
            raise UserError(f"config.data.{key} names the column {column!r}; {where} has {', '.join(map(repr, names))}")
        sources.check_as_written(table, column, where)
    texts = []
    for column in task.columns:
        cells = table[column][:]
        if (odd := _odd(cells)) is not None:
            raise UserError(f"{where}: the column {column!r} holds no text: {str(odd)[:60]!r}")
        texts.append(["" if cell is None else str(cell) for cell in cells])
    labels = table[label][:]
    if (odd := _odd(labels)) is not None:
        raise UserError(
            f"{where}: the column {label!r} holds {str(odd)[:60]!r}; allowed: one class or one number per row (several "
            "labels per row are not supported)"
        )
    feature = None if isinstance(table, dict) else table.features[label]
    if hasattr(feature, "int2str"):  # a ClassLabel; -1 is a row that has none, as in test splits
        labels = [None if i is None or i < 0 else feature.names[i] for i in labels]
    if not labels:
        raise UserError(f"{where} has no rows")
    return _Cells(texts, labels, where)


# Labels --------------------------------------------------------------------------------------------------------------


def _class_name(value) -> str | None:
    """What a cell names; None where it is empty. A whole number is its digits, also where a table holds it as 1.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes in the order of their ids: by number where all are whole numbers, else by text."""
    try:
        return tuple(sorted(set(names), key=lambda name: (int(name), name)))  # 1 and 01 in one order in every process
    except ValueError:
        return tuple(sorted(set(names)))


def _are_measures(names: Sequence[str]) -> bool:
    """Whether all names are numbers and one is no whole one: 0.5 is a measure in every kind of file."""
    numbers = [_number(name) for name in names]
    return None not in numbers and any(number != int(number) for number in numbers)


def named(task: OwnTask, labels: dict[str, list]) -> tuple[OwnTask, list[str]]:
    """(the task with its classes, notes): those that it has, or else those that are found.

    Args:
      labels: cells by split.
    Raises:
      UserError: there are fewer than two classes, or so many that the column is no class.
    """
    if task.is_regression or task.labels:
        return task, []
    found = {split: [name for name in map(_class_name, cells) if name] for split, cells in labels.items()}
    classes, count = in_order([name for names in found.values() for name in names]), sum(map(len, found.values()))
    if len(classes) < 2:
        raise UserError(f"{task.name} has the class {', '.join(classes) or 'of no row'} alone; allowed: two or more")
    if _are_measures(classes) or (len(classes) > _MOST_CLASSES and 2 * len(classes) > count):
        raise UserError(
            f"the labels of {task.name} are {len(classes):,} different values in {count:,} rows, such as "
            f"{classes[0]!r}; allowed: names of classes, config.data.task=regression with numbers, or "
            "config.data.label_names where these are names"
        )
    unseen = [name for name in classes if name not in set(found.get(sources.TRAIN, classes))]
    notes = []
    if unseen:
        notes.append(
            f"{', '.join(unseen)}: in the evaluation data alone; nothing teaches the class, and its rows count as wrong"
        )
    folded = [name.casefold() for name in classes]
    if alike := [name for name, other in zip(classes, folded, strict=True) if folded.count(other) > 1]:
        notes.append(f"{', '.join(alike)}: classes of their own, though they differ in upper and lower case alone")
    return task._replace(labels=classes), notes


def checked(task: OwnTask, cells: list, where: str, bad_rows: str) -> tuple[np.ndarray, list[int]]:
    """(labels of the rows that have one: ids int32, or numbers float32; which rows these are).

    Raises:
      UserError: a row has none, and bad_rows is not "skip".
    """
    ids, labels, kept = {name: i for i, name in enumerate(task.labels)}, [], []
    for row, cell in enumerate(cells):
        label = _number(cell) if task.is_regression else ids.get(_class_name(cell) or "")
        if label is not None:
            labels.append(label)
            kept.append(row)
        elif bad_rows != "skip":
            allowed = "a finite number" if task.is_regression else ", ".join(task.labels[:20])
            shown = "empty" if _class_name(cell) is None else repr(cell)
            raise UserError(
                f"{where}, row {row + 1}: the label is {shown}; allowed: {allowed} "
                "(config.data.bad_rows=skip leaves such rows out)"
            )
    if not labels:
        raise UserError(f"{where} has no rows with a label of the task")
    return np.array(labels, np.float32 if task.is_regression else np.int32), kept


def _number(cell) -> float | None:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if abs(number) <= _LARGEST else None

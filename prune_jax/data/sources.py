"""Rows of text and labels from the hub, from the official GLUE folder, or generated."""

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prune_jax.data.glue import Task
from prune_jax.errors import UserError, first_line
from prune_jax.files import look_for_hub, read_text

TRAIN = "train"


class Rows(NamedTuple):
    """The rows of one split.

    Attributes:
      texts_a, texts_b: the sentences of each row; texts_b is None where a row has one.
      labels: (n,) int32 class ids or float32 scores.
    """

    texts_a: list[str]
    texts_b: list[str] | None
    labels: np.ndarray


def _rows(task: Task, texts: list[tuple[str, ...]], labels: list) -> Rows:
    columns = [list(column) for column in zip(*texts, strict=True)] if texts else [[] for _ in task.hub_columns]
    dtype = np.float32 if task.is_regression else np.int32
    return Rows(columns[0], columns[1] if task.is_pair else None, np.array(labels, dtype))


def generate(task: Task, train_size: int, eval_size: int, seed: int) -> dict[str, Rows]:
    """Generates the splits "train" and "dev" of a built-in task, a pure function of the arguments."""
    from prune_jax.data import builtin

    sizes = {TRAIN: train_size, "dev": eval_size}
    return {
        split: _rows(task, *builtin.generate(task.name, size, (seed, number)))
        for number, (split, size) in enumerate(sizes.items())
    }


def tsv_files(task: Task, folder) -> dict[str, Path]:
    """The files of the official layout that hold a task's splits, by split."""
    folder = Path(folder) / task.folder
    return {TRAIN: folder / "train.tsv"} | {name: folder / file for name, file, _ in task.eval_splits}


_MSR = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")  # MRPC as Microsoft gives it, not cut up by GLUE


def _msr_folder(task: Task, folder) -> Path | None:
    """Where MRPC's original files are in place of GLUE's, in the task's folder or in the one above; None if nowhere."""
    if task.name != "mrpc" or (Path(folder) / task.folder / "train.tsv").is_file():
        return None
    places = (Path(folder) / task.folder, Path(folder))
    return next((place for place in places if all((place / name).is_file() for name in _MSR)), None)


def _read_msr(task: Task, folder: Path, bad_rows: str) -> dict[str, Rows]:
    """Reads MRPC's original files.

    With GLUE's dev_ids.tsv beside them, whose rows are pairs of sentence ids, the splits are GLUE's own: those rows of
    the training file are "dev". Without, "dev" is the test file, which has labels.
    """
    train = read_tsv(task, folder / _MSR[0], bad_rows)
    if not (folder / "dev_ids.tsv").is_file():
        return {TRAIN: train, "dev": read_tsv(task, folder / _MSR[1], bad_rows)}
    wanted = {tuple(line.split("\t")) for line in read_text(folder / "dev_ids.tsv").splitlines()}
    rows = read_text(folder / _MSR[0]).removeprefix("\ufeff").split("\n")
    ids = [tuple(line.split("\t")[1:3]) for line in rows[1:] if line.strip()]
    if len(ids) != len(train.texts_a):
        raise UserError(f"{folder / _MSR[0]} has malformed rows, and {folder / 'dev_ids.tsv'} counts on all of them")
    held = np.array([row in wanted for row in ids])

    def part(at):
        texts = ([column[i] for i in np.flatnonzero(at)] for column in (train.texts_a, train.texts_b or []))
        return Rows(*texts, train.labels[at])

    return {TRAIN: part(~held), "dev": part(held)}


def read_tsv_folder(task: Task, folder, bad_rows: str = "error", evals_only: bool = False) -> dict[str, Rows]:
    """Reads the training split and the evaluation splits ("train", "dev", ...) of the official GLUE folder.

    With evals_only, the training split is left out and need not be there.

    Raises:
      UserError: a file is missing, or as read_tsv.
    """
    if original := _msr_folder(task, folder):
        splits = _read_msr(task, original, bad_rows)
        return {name: rows for name, rows in splits.items() if name != TRAIN or not evals_only}
    files = tsv_files(task, folder)
    if evals_only:
        del files[TRAIN]
    for split, path in files.items():
        if not path.is_file():
            expected = ", ".join(f"{task.folder}/{file.name}" for file in files.values())
            raise UserError(
                f"{path} is missing: config.data.task={task.name} needs {expected} in config.data.dir for its splits "
                f"(the {split} split is not there)"
            )
    return {split: read_tsv(task, path, bad_rows) for split, path in files.items()}


def read_tsv(task: Task, path: Path, bad_rows: str = "error") -> Rows:
    """Reads a labelled tsv file of the official GLUE download.

    A quote is a character like any other. A row is a line that ends with \\n or \\r\\n. A byte-order mark is dropped.
    The header names the columns; CoLA's files have no header, and their label and sentence are columns 2 and 4.

    Args:
      bad_rows: "error", or "skip" to leave malformed rows out and to count them in a warning.
    Raises:
      UserError: a row has another number of columns, a label is outside the task's set, or the text is not UTF-8. The
        message gives the path, the line and what was expected.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    if task.name == "cola":
        width, columns, label_column, first = 4, [3], 1, 0
    else:
        header = lines[0].split("\t") if lines else []
        for name in (*task.tsv_columns, task.tsv_label):
            if name not in header:
                given = ", ".join(header) or "an empty file"
                raise UserError(f"{path}:1: expected a header with the column {name!r}, found {given}")
        columns, label_column = [header.index(name) for name in task.tsv_columns], header.index(task.tsv_label)
        width, first = len(header), 1
    texts, labels, skipped = [], [], 0
    for number, line in enumerate(lines[first:], first + 1):
        cells = line.split("\t")
        try:
            if len(cells) != width:
                raise UserError(f"{path}:{number}: expected {width} tab-separated columns, found {len(cells)}")
            labels.append(_label(task, cells[label_column], f"{path}:{number}"))
            texts.append(tuple(cells[column].strip() for column in columns))
        except UserError as error:
            if bad_rows != "skip":
                raise UserError(f"{error} (config.data.bad_rows=skip leaves such rows out)") from None
            skipped += 1
    if skipped:
        logging.getLogger("absl").warning("%s: left out %d malformed rows of %d", path, skipped, len(lines) - first)
    if not texts:
        raise UserError(f"{path} has no rows")
    return _rows(task, texts, labels)


def _label(task: Task, text: str, where: str) -> float | int:
    if not task.is_regression:
        if text not in task.tsv_labels:
            raise UserError(f"{where}: the label is {text!r}; allowed: {', '.join(task.tsv_labels)}")
        return task.tsv_labels.index(text)
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise UserError(f"{where}: the score is {text!r}; allowed: a number from 0 to 5")
    return score


def check_as_written(table, column: str, where: str) -> None:
    """UserError where a column of JSON lines has become points in time, whose spelling in the file is lost.

    The package datasets does that to a column of dates. In parquet they are of a type that somebody chose.
    """
    if getattr(table, "builder_name", "") == "json":
        kind = getattr(table.features[column], "dtype", "")
        if kind.startswith(("timestamp", "date", "time")):
            raise UserError(
                f"{where}: the column {column!r} is read as {kind}, not as it is written; allowed: a column that is "
                "text to the package datasets, or config.data.source=jsonl with the file as config.data.train"
            )


def read_hub(task: Task, name: str) -> dict[str, Rows]:
    """Reads the training split and the evaluation splits of a data set on the hub, or of a local folder of its layout.

    Raises:
      UserError: the data set cannot be loaded, or lacks a split or a column; a label is outside the task's set.
    """
    if not Path(name).exists():
        look_for_hub()
    import datasets

    try:
        tables = datasets.load_dataset(name, task.name)
    except Exception as error:  # a dozen kinds: no network, no such repository, no such config, a broken file
        reason = first_line(error)
        raise UserError(
            f"cannot load {task.name} from config.data.hub_name={name!r}: {reason}. Without a network use "
            "config.data.source=tsv with a GLUE folder, or config.data.source=builtin; a data set that is not GLUE "
            "needs config.data.task=classification or regression"
        ) from error
    rows = {}
    for split, hub_split in {TRAIN: "train", **{name: on_hub for name, _, on_hub in task.eval_splits}}.items():
        if hub_split not in tables:
            raise UserError(
                f"config.data.hub_name={name!r} has no split {hub_split!r} of {task.name}: it has {list(tables)}"
            )
        table = tables[hub_split]
        missing = [column for column in (*task.hub_columns, "label") if column not in table.column_names]
        if missing:
            raise UserError(f"{name} {task.name} {hub_split} has no column {missing[0]!r}: it has {table.column_names}")
        texts = {column: table[column][:] for column in task.hub_columns}
        for column, cells in texts.items():
            check_as_written(table, column, f"{name} {task.name} {hub_split}")
            if odd := next(((row, cell) for row, cell in enumerate(cells) if not isinstance(cell, str)), None):
                raise UserError(
                    f"{name} {task.name} {hub_split}, row {odd[0]}: {column} is {odd[1]!r}; allowed: a text"
                )
        labels = table["label"][:]
        allowed = (0, 5) if task.is_regression else (0, task.num_labels - 1)
        for row, label in enumerate(labels):
            if label is None or not allowed[0] <= label <= allowed[1]:
                raise UserError(
                    f"{name} {task.name} {hub_split}, row {row}: the label is {label}; "
                    f"allowed: {allowed[0]} to {allowed[1]}"
                )
        rows[split] = _rows(task, list(zip(*texts.values(), strict=True)), labels)
    return rows

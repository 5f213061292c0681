"""Rows of text and labels from the hub, from the official GLUE folder, or generated."""

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prune_jax.data.glue import Task
from prune_jax.errors import UserError, first_line

TRAIN = "train"


class Rows(NamedTuple):
    """One split. texts_b is None for single sentences; labels are (n,) int32 class ids or float32 scores."""

    texts_a: list[str]
    texts_b: list[str] | None
    labels: np.ndarray


def read(task: Task, data_config) -> dict[str, Rows]:
    """The training split and the evaluation splits, by name ("train", "dev", ...).

    Raises:
      UserError: a missing folder, file or split; a malformed row; a label outside the task's set.
    """
    reader = {"hub": _read_hub, "tsv": _read_tsv_folder, "builtin": _read_builtin}[data_config.source]
    return reader(task, data_config)


def _rows(task: Task, texts: list[tuple[str, ...]], labels: list) -> Rows:
    columns = [list(column) for column in zip(*texts, strict=True)] if texts else [[] for _ in task.hub_columns]
    dtype = np.float32 if task.is_regression else np.int32
    return Rows(columns[0], columns[1] if task.is_pair else None, np.array(labels, dtype))


def _read_builtin(task, data_config):
    from prune_jax.data import builtin

    sizes = {TRAIN: data_config.builtin_train_size, "dev": data_config.builtin_eval_size}
    return {
        split: _rows(task, *builtin.generate(task.name, size, (data_config.builtin_seed, number)))
        for number, (split, size) in enumerate(sizes.items())
    }


def tsv_files(task: Task, folder) -> dict[str, Path]:
    """The files of the official layout that a task is read from, by split."""
    folder = Path(folder) / task.folder
    return {TRAIN: folder / "train.tsv"} | {name: folder / file for name, file, _ in task.eval_splits}


def _read_tsv_folder(task, data_config):
    files = tsv_files(task, data_config.dir)
    for split, path in files.items():
        if not path.is_file():
            expected = ", ".join(f"{task.folder}/{file.name}" for file in files.values())
            raise UserError(
                f"{path} is missing: config.data.task={task.name} needs {expected} in config.data.dir for its splits "
                f"(the {split} split is not there)"
            )
    return {split: read_tsv(task, path, data_config.bad_rows) for split, path in files.items()}


def read_tsv(task: Task, path: Path, bad_rows: str = "error") -> Rows:
    """Reads a labelled tsv file of the official GLUE download.

    A quote is a character like any other, a row is a line that ends with \\n (or \\r\\n), a byte-order mark is dropped,
    columns are found by the header's names. CoLA has no header: label and sentence are columns 2 and 4.

    Raises:
      UserError: with path, line and what was expected, for a row of another number of columns, a label outside the
        task's set, or text that is not UTF-8. With bad_rows="skip" such rows are left out and counted in a warning.
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
                found = ", ".join(header) or "an empty file"
                raise UserError(f"{path}:1: expected a header with the column {name!r}, found {found}")
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


def _read_hub(task, data_config):
    import datasets

    name = data_config.hub_name
    try:
        found = datasets.load_dataset(name, task.name)
    except Exception as error:  # a dozen kinds: no network, no such repository, no such config, a broken file
        reason = first_line(error)
        raise UserError(
            f"cannot load {task.name} from config.data.hub_name={name!r}: {reason}. Without a network use "
            "config.data.source=tsv with a GLUE folder, or config.data.source=builtin"
        ) from error
    rows = {}
    for split, hub_split in {TRAIN: "train", **{name: hub for name, _, hub in task.eval_splits}}.items():
        if hub_split not in found:
            raise UserError(
                f"config.data.hub_name={name!r} has no split {hub_split!r} of {task.name}: it has {list(found)}"
            )
        table = found[hub_split]
        missing = [column for column in (*task.hub_columns, "label") if column not in table.column_names]
        if missing:
            raise UserError(f"{name} {task.name} {hub_split} has no column {missing[0]!r}: it has {table.column_names}")
        labels = table["label"][:]
        allowed = (0, 5) if task.is_regression else (0, task.num_labels - 1)
        for row, label in enumerate(labels):
            if label is None or not allowed[0] <= label <= allowed[1]:
                raise UserError(
                    f"{name} {task.name} {hub_split}, row {row}: the label is {label}; "
                    f"allowed: {allowed[0]} to {allowed[1]}"
                )
        rows[split] = _rows(task, list(zip(*(table[column][:] for column in task.hub_columns), strict=True)), labels)
    return rows

"""A zip of predictions on GLUE's test splits, as gluebenchmark.com takes it."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prune_jax import files
from prune_jax.data.glue import TASKS, Task
from prune_jax.errors import UserError
from prune_jax.run.predict import Predictor

# task: (the file of its test split, the file of its answers), several for MNLI
FILES = {name: ((task.folder, "test.tsv", f"{task.folder}.tsv"),) for name, task in TASKS.items()} | {
    "mnli": (("MNLI", "test_matched.tsv", "MNLI-m.tsv"), ("MNLI", "test_mismatched.tsv", "MNLI-mm.tsv"))
}


def read_test(task: Task, path: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """(the index of each row, its texts) of a test split, which has a header for every task and no labels.

    Raises:
      UserError: the file is missing, or a column or a row is not as expected.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    header = lines[0].rstrip("\r").split("\t")
    columns = task.tsv_columns if set(task.tsv_columns) <= set(header) else ("sentence",)  # CoLA's train has no header
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{path}:1: expected a header with the column {missing[0]!r}, found {', '.join(header)}")
    at, ids, texts = [header.index(name) for name in columns], [], []
    for number, line in enumerate(lines[1:], 2):
        cells = line.rstrip("\r").split("\t")
        if cells == [""]:
            continue
        if len(cells) != len(header):
            raise UserError(f"{path}:{number}: expected {len(header)} tab-separated columns, found {len(cells)}")
        ids.append(cells[0])
        texts.append(tuple(cells[i].strip() for i in at))
    return ids, texts


def answers(task: Task, outputs: np.ndarray) -> list[str]:
    """What GLUE wants to read for outputs (n, num_labels): the labels of its files, or scores from 0 to 5."""
    if task.is_regression:
        return [f"{score:.3f}" for score in np.clip(outputs[:, 0], 0, 5)]
    return [task.tsv_labels[i] for i in outputs.argmax(-1)]


def write(networks: Sequence[Predictor], folder: Path, out: Path, batch_size: int) -> list[str]:
    """Writes the zip, whole or not at all.

    Args:
      networks: of different tasks of GLUE.
      folder: of the official GLUE download.
    Returns:
      The files in the zip.
    Raises:
      UserError: a network is of no task of GLUE, or two are of one, or a test split is missing or malformed.
    """
    data = {}
    for network in networks:
        task = network.task
        if not isinstance(task, Task) or task.name not in TASKS:
            name = getattr(task, "name", "a checkpoint")
            raise UserError(f"a GLUE submission needs runs of its tasks ({', '.join(TASKS)}); {name} is none")
        for place, test, name in FILES[task.name]:
            if name in data:
                raise UserError(f"two of the runs are of {task.name}; a submission has one for each task")
            ids, texts = read_test(task, folder / place / test)
            columns = [list(column) for column in zip(*texts, strict=True)]
            found = answers(task, network.texts(columns[0], columns[1] if task.is_pair else None, batch_size))
            rows = (f"{index}\t{answer}" for index, answer in zip(ids, found, strict=True))
            data[name] = "\n".join(["index\tprediction", *rows]) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in data.items():
            archive.writestr(name, text)
    files.write_bytes(out, buffer.getvalue())
    return list(data)

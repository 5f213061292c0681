"""metrics.csv and layers.csv, one row an epoch, and the same numbers to the sinks."""

import concurrent.futures
import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from prune_jax import workdir as workdir_lib
from prune_jax.errors import UserError
from prune_jax.report.sinks import SINKS, Sink

_FIRST = ("epoch", "step", "train_loss", "eval_loss", "eval_metric", "sparsity", "target_sparsity", "seconds")
_INTEGERS = ("epoch", "step")


def _cell(value) -> str:
    if value is None:
        return ""
    if hasattr(value, "item"):  # a NumPy or JAX scalar
        value = value.item()
    return repr(value) if isinstance(value, float) else str(value)


def _line(cells) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


class _Table:
    """A CSV file of one row an epoch, appended to. The first row fixes the columns."""

    def __init__(self, path: Path, first: tuple[str, ...], resume_epoch: int | None):
        """first: columns that come before the others. resume_epoch: keep the rows up to it; None: start anew."""
        self._path, self._first = path, first
        self._header: list[str] | None = None
        self.kept = []
        if resume_epoch is not None and path.exists():
            self.kept = [row for row in _read(path) if int(row["epoch"]) <= resume_epoch]
        if self.kept:
            self._header = list(self.kept[0])
        workdir_lib.write_text(path, "".join(_line(r) for r in (self._header, *(r.values() for r in self.kept)) if r))
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 (open until close)

    def write(self, row: dict) -> None:
        text = ""
        if self._header is None:
            self._header = [*(n for n in self._first if n in row), *(n for n in row if n not in self._first)]
            text = _line(self._header)
        unknown = [name for name in row if name not in self._header]
        if unknown:
            raise ValueError(f"{self._path.name} has no column {', '.join(unknown)}; it has {', '.join(self._header)}")
        self._file.write(text + _line(_cell(row.get(name)) for name in self._header))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class MetricsWriter:
    """Writes a run's metrics.csv and layers.csv, and sends the same numbers to the sinks.

    The sinks work in a thread of their own: their libraries take seconds to import, and no step waits for them. One
    that fails does not end the run: what it misses is in metrics.csv, and close tells of it.
    """

    def __init__(self, workdir, resume_epoch: int | None = None, config=None, sinks: Sequence[str] = ("tensorboard",)):
        """Starts the files anew, or, with resume_epoch, drops the rows of later epochs and goes on behind the rest.

        config: the resolved one, which some sinks keep with the numbers.
        """
        workdir = Path(workdir)
        self._metrics = _Table(workdir / "metrics.csv", _FIRST, resume_epoch)
        self._layers = _Table(workdir / "layers.csv", ("epoch",), resume_epoch)
        purge_step = int(self._metrics.kept[-1]["step"]) + 1 if self._metrics.kept else None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="sinks")
        self._open: dict[str, Sink] = {}
        self._problems: dict[str, str] = {}  # sink: the first thing that went wrong
        for name in sinks:
            self._thread.submit(self._start, name, workdir, config, purge_step)

    def _start(self, name, workdir, config, purge_step):
        try:
            self._open[name] = SINKS[name](workdir, config, purge_step)
        except Exception as error:  # no network, no login, no such server: each library has its own exceptions
            self._fail(name, error)

    def _fail(self, name, error):
        self._problems.setdefault(name, f"{name} did not take the numbers: {error or type(error).__name__}")

    def _send(self, step, values):
        for name, sink in self._open.items():
            try:
                sink.scalars(step, values)
            except Exception as error:
                self._fail(name, error)

    def write(self, row: dict) -> None:
        """Appends one epoch's row, on disk when it returns. None is an empty cell.

        Raises:
          ValueError: the row has a column that the first row had not.
        """
        self._metrics.write(row)
        self._submit(row["step"], {f"epoch/{name}": v for name, v in row.items() if name not in _INTEGERS})

    def write_layers(self, epoch: int, sparsity: dict[str, float]) -> None:
        """Appends a row to layers.csv: the closed fraction of each kernel, 0 to 1."""
        self._layers.write({"epoch": epoch, **sparsity})

    def scalar(self, step: int, name: str, value: float) -> None:
        """Sends a number at `step` to the sinks alone; nan and infinities are left out."""
        self._submit(step, {name: value})

    def _submit(self, step, values) -> None:
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        self._thread.submit(self._send, int(step), {k: v for k, v in numbers.items() if math.isfinite(v)})

    def close(self) -> list[str]:
        """Writes what is pending. Returns a line for each sink that failed."""
        self._metrics.close()
        self._layers.close()
        self._thread.shutdown(wait=True)
        for name, sink in self._open.items():
            try:
                sink.close()
            except Exception as error:
                self._fail(name, error)
        self._open.clear()
        return list(self._problems.values())


def _read(path: Path) -> list[dict[str, str]]:
    """The rows as text, without a last line that was cut off in the writing."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    header, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def _value(name: str, text: str):
    if text == "":
        return None
    try:
        return int(text) if name in _INTEGERS else float(text)
    except ValueError:
        return text


def read_metrics(workdir) -> list[dict]:
    """The rows of workdir/metrics.csv: epoch and step int, the others float (nan where so written) or None if empty.

    A last line that was cut off in the writing is left out. A missing file is a UserError.
    """
    return [{name: _value(name, text) for name, text in row.items()} for row in _read(Path(workdir) / "metrics.csv")]


def read_layers(workdir) -> list[dict]:
    """The rows of workdir/layers.csv: epoch (int), then the closed fraction of each kernel under its path.

    Empty for a run of before the file was written.
    """
    path = Path(workdir) / "layers.csv"
    return [{n: _value(n, text) for n, text in row.items()} for row in _read(path)] if path.exists() else []


def finite(value) -> float:
    """The number, nan for None and text: for plots, where nan is a gap."""
    return float(value) if isinstance(value, int | float) else math.nan

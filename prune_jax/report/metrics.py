"""Writes and reads metrics.csv and layers.csv, one row per epoch, and sends the same numbers to the sinks."""

import concurrent.futures
import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.report.sinks import SINKS, UNKNOWN, RunInfo, Sink

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
    """A CSV file of one row per epoch that grows. Its first row fixes the columns."""

    def __init__(self, path: Path, first: tuple[str, ...], resume_epoch: int | None):
        """Opens the file.

        Args:
          first: columns that come before the others.
          resume_epoch: the rows up to this epoch are kept; None starts the file anew.
        """
        self._path, self._first = path, first
        self._header: list[str] | None = None
        self.kept: list[dict[str, str]] = []
        self.lost = ""  # what of the earlier epochs is gone, in a sentence
        if resume_epoch is not None:
            self._keep(resume_epoch)
        if self.kept:
            self._header = list(self.kept[0])
        files.write_text(path, "".join(_line(r) for r in (self._header, *(r.values() for r in self.kept)) if r))
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 (open until close)

    def _keep(self, resume_epoch: int) -> None:
        """Takes the rows up to an epoch. A file that is damaged is set aside, so that nothing of it is lost."""
        why = ""
        try:
            rows = _read(self._path)
            self.kept = [row for row in rows if 0 <= int(row["epoch"]) <= resume_epoch]
        except (UserError, KeyError, ValueError) as error:
            why = f" ({error})" if isinstance(error, UserError) else " (it is not such a table)"
        missing = sorted(set(range(1, resume_epoch + 1)) - {int(row["epoch"]) for row in self.kept})
        if not missing:
            return
        aside = self._path.with_suffix(".damaged.csv")
        if self._path.is_file():
            os.replace(self._path, aside)
            why += f"; the file as it was is {aside.name}"
        self.lost = f"{self._path.name} has no rows of {len(missing)} of {resume_epoch} earlier epochs{why}"

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

    `lost` has a line per file that lacks rows of the epochs before resume_epoch: somebody has changed or removed it.

    The sinks work in a thread of their own, because their libraries take seconds to import and no step is to wait for
    them. A sink that fails does not end the run: metrics.csv has the numbers, and `close` names the sink.
    """

    def __init__(
        self,
        workdir,
        resume_epoch: int | None = None,
        sinks: Sequence[str] = ("tensorboard",),
        run: RunInfo = UNKNOWN,
    ):
        """Opens the files and the sinks.

        Args:
          resume_epoch: the files go on after this epoch, and rows of later epochs are dropped; None starts them anew.
          sinks: names of SINKS.
          run: what the sinks need to know.
        """
        workdir = Path(workdir)
        self._metrics = _Table(workdir / "metrics.csv", _FIRST, resume_epoch)
        self._layers = _Table(workdir / "layers.csv", ("epoch",), resume_epoch)
        self.lost = [table.lost for table in (self._metrics, self._layers) if table.lost]
        purge_step = int(self._metrics.kept[-1]["step"]) + 1 if self._metrics.kept else None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="sinks")
        self._open: dict[str, Sink] = {}
        self._problems: dict[str, str] = {}  # sink: the first thing that went wrong
        for name in sinks:
            self._thread.submit(self._start, name, workdir, run, purge_step)

    def _start(self, name, workdir, run, purge_step):
        try:
            self._open[name] = SINKS[name](workdir, run, purge_step)
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
        """Appends the row of an epoch, which is on disk when this returns. None makes an empty cell.

        Raises:
          ValueError: the row has a column that the first row did not have.
        """
        self._metrics.write(row)
        self._submit(row["step"], {f"epoch/{name}": v for name, v in row.items() if name not in _INTEGERS})

    def write_layers(self, epoch: int, sparsity: dict[str, float]) -> None:
        """Appends a row to layers.csv.

        Args:
          sparsity: the closed fraction of each kernel, 0 to 1, by the kernel's path.
        """
        self._layers.write({"epoch": epoch, **sparsity})

    def _submit(self, step, values) -> None:
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        self._thread.submit(self._send, int(step), {k: v for k, v in numbers.items() if math.isfinite(v)})

    def close(self) -> list[str]:
        """Writes what is pending, and returns one line per sink that failed."""
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


class NoWriter:
    """A MetricsWriter's stand-in in a process that is not the one to write for its job."""

    lost: tuple[str, ...] = ()

    def write(self, row: dict) -> None:
        """Does nothing."""

    def write_layers(self, epoch: int, sparsity: dict[str, float]) -> None:
        """Does nothing."""

    def close(self) -> list[str]:
        """Does nothing."""
        return []


def _read(path: Path) -> list[dict[str, str]]:
    """The rows as text. A last line that was cut off in the writing is left out."""
    try:
        text = path.read_text(encoding="utf-8")
        header, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a table of text: {error}") from error
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def _value(name: str, text: str):
    if text == "":
        return None
    try:
        return int(text) if name in _INTEGERS else float(text)
    except ValueError:
        return text


def read_metrics(workdir) -> list[dict]:
    """Reads the rows of workdir/metrics.csv. A last line that was cut off in the writing is left out.

    Returns:
      One dict per epoch. The epoch and the step are int. The others are float, nan where nan was written, and None for
      an empty cell.
    Raises:
      UserError: there is no such file, or it holds something else.
    """
    return _numbers(Path(workdir) / "metrics.csv", _INTEGERS)


def read_layers(workdir) -> list[dict]:
    """Reads the rows of workdir/layers.csv: the epoch (int), and the closed fraction of each kernel by its path.

    A run that is older than this file has no rows.
    """
    path = Path(workdir) / "layers.csv"
    return _numbers(path, ("epoch",)) if path.exists() else []


def _numbers(path: Path, needed: Sequence[str]) -> list[dict]:
    """The rows with their cells as numbers. UserError if a needed column is missing, or one holds something else."""
    rows = [{name: _value(name, text) for name, text in row.items()} for row in _read(path)]
    for number, row in enumerate(rows, 2):
        checked = row if path.name == "layers.csv" else [name for name in _FIRST if name in row]
        for name in dict.fromkeys([*needed, *checked]):
            if name not in row:
                raise UserError(f"{path} is not of a run: it has no column {name}")
            if isinstance(row[name], str) or (row[name] is None and name in _INTEGERS):
                raise UserError(f"{path} is damaged: line {number} has {row[name]!r} as {name}; allowed: a number")
    return rows


def finite(value) -> float:
    """A number as it is, and nan for None and text: in a plot, nan is a gap."""
    return float(value) if isinstance(value, int | float) else math.nan

"""metrics.csv, one row an epoch, and the same numbers as TensorBoard events."""

import concurrent.futures
import csv
import io
import math
import os
from pathlib import Path

from prune_jax.errors import UserError

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


class MetricsWriter:
    """Writes a run's metrics.csv and tensorboard/. The first row fixes the columns.

    TensorBoard works in a thread of its own: its library takes a second or two to import, and no step waits for it.
    """

    def __init__(self, workdir, resume_epoch: int | None = None):
        """Starts the file anew, or, with resume_epoch, drops the rows of later epochs and goes on behind the rest."""
        self._path = Path(workdir) / "metrics.csv"
        self._header: list[str] | None = None
        purge_step = None
        kept = self._keep(resume_epoch) if resume_epoch is not None and self._path.exists() else []
        if kept:
            self._header = list(kept[0])
            purge_step = int(kept[-1]["step"]) + 1
        self._replace("".join(_line(cells) for cells in (self._header or [], *(row.values() for row in kept)) if cells))
        self._file = open(self._path, "a", encoding="utf-8", newline="")  # noqa: SIM115 (open until close)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._events = None
        self._opening = self._thread.submit(self._open_events, str(Path(workdir) / "tensorboard"), purge_step)

    def _open_events(self, folder, purge_step):
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(folder, purge_step=purge_step)

    def _keep(self, epoch: int) -> list[dict[str, str]]:
        return [row for row in _read(self._path) if int(row["epoch"]) <= epoch]

    def _replace(self, text: str) -> None:
        partial = self._path.with_name(".metrics.csv.partial")
        with open(partial, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path)

    def write(self, row: dict) -> None:
        """Appends one epoch's row, on disk when it returns. None is an empty cell.

        Raises:
          ValueError: the row has a column that the first row had not.
        """
        text = ""
        if self._header is None:
            self._header = [*(name for name in _FIRST if name in row), *(name for name in row if name not in _FIRST)]
            text = _line(self._header)
        unknown = [name for name in row if name not in self._header]
        if unknown:
            raise ValueError(f"metrics.csv has no column {', '.join(unknown)}; it has {', '.join(self._header)}")
        self._file.write(text + _line(_cell(row.get(name)) for name in self._header))
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in row.items():
            if name not in _INTEGERS and value is not None:
                self.scalar(row["step"], f"epoch/{name}", value)
        self._thread.submit(lambda: self._events.flush())

    def scalar(self, step: int, name: str, value: float) -> None:
        """Adds a number at `step` to the TensorBoard events alone; nan and infinities are left out."""
        step, value = int(step), float(value)
        if math.isfinite(value):
            self._thread.submit(lambda: self._events.add_scalar(name, value, step))

    def close(self) -> None:
        """Writes what is pending. Raises what kept TensorBoard from starting, if anything did."""
        self._file.close()
        self._thread.shutdown(wait=True)
        if self._events is not None:
            self._events.close()
        self._opening.result()


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


def finite(value) -> float:
    """The number, nan for None and text: for plots, where nan is a gap."""
    return float(value) if isinstance(value, int | float) else math.nan

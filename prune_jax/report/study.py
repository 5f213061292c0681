"""Several finished runs as one result: what each method keeps at each sparsity, over seeds.

**The number of a run at a sparsity** is the best metric that the run measured after a whole epoch of training at it.
Where it had none (the last pruning of a run; a method that prunes inside its epochs), it is the best right after a
pruning to it, and is marked. Runs that differ in the seed alone are one line: mean and sample standard deviation. Runs
that differ besides in the sparsity they end at are of that line too, and give each seed its best.
"""

import contextlib
import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from prune_jax import config as config_lib
from prune_jax import workdir as workdir_lib
from prune_jax.errors import UserError
from prune_jax.report.metrics import finite, read_layers, read_metrics

CAPTION = (
    "Mean ± sample standard deviation over seeds of the best value that a run measured at that sparsity after a whole "
    "epoch of training at it. † measured right after the pruning, without retraining, in at least one run."
)
_NEAR = 0.005  # a sparsity this near to its target counts as the target: rounding, kernel by kernel
_NOT_A_VARIANT = {"train.seed", "pruning.method", "data.task", "model.size", "pruning.end_sparsity",
                  "pruning.sparsity_steps", "data.cache_dir", "train.checkpoint_every"}  # fmt: skip


class Result(NamedTuple):
    """A finished run. config: {"room.key": value}; rows, layers: of metrics.csv and layers.csv."""

    name: str
    folder: Path
    config: dict
    summary: dict
    provenance: dict
    rows: list[dict]
    layers: list[dict]

    @property
    def method(self) -> str:
        return self.summary["method"]


class Cell(NamedTuple):
    """What a line of a panel has at a sparsity (a fraction). std: None with a single seed."""

    sparsity: float
    mean: float
    std: float | None
    seeds: int
    retrained: bool


class Line(NamedTuple):
    """Runs that differ in the seed alone. losses: (epoch, mean, std); step_ms: (mean, std) of a step."""

    label: str
    cells: list[Cell]
    losses: list[tuple[int, float, float | None]]
    step_ms: tuple[float, float | None]
    runs: list[str]


class Panel(NamedTuple):
    """What can be compared: one task and one model size."""

    task: str
    model_size: str
    metric: str
    lines: list[Line]

    @property
    def title(self) -> str:
        return f"{self.task}, {self.model_size}: {self.metric}"

    @property
    def sparsities(self) -> list[float]:
        return sorted({cell.sparsity for line in self.lines for cell in line.cells})

    def best(self, sparsity: float) -> float | None:
        """The highest mean at a sparsity (metrics are better when higher); None where there is nothing to compare."""
        means = [cell.mean for line in self.lines for cell in line.cells if cell.sparsity == sparsity]
        return max(means) if len(means) > 1 else None


def read(folders: Iterable) -> list[Result]:
    """The runs in `folders`.

    Raises:
      UserError: with every folder in it that holds no finished run.
    """
    found, mistakes = [], []
    for folder in map(Path, folders):
        try:
            if not (folder / "config.json").is_file():
                raise UserError(f"{folder} is not the folder of a run (there is no config.json)")
            if not (folder / "summary.json").is_file():
                raise UserError(f"the run in {folder} is not finished (there is no summary.json)")
            config = config_lib.leaves(workdir_lib.read_json(folder / "config.json"))
            summary = workdir_lib.read_json(folder / "summary.json")
            provenance = {}
            with contextlib.suppress(UserError):  # a run is comparable without it
                provenance = workdir_lib.read_json(folder / "provenance.json")
            name = folder.name or folder.resolve().name
            found.append(Result(name, folder, config, summary, provenance, read_metrics(folder), read_layers(folder)))
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))
    names = [result.name for result in found]
    return [  # runs of two folders may have one name
        result._replace(name=str(result.folder)) if names.count(result.name) > 1 else result for result in found
    ]


def at_sparsities(rows: Sequence[dict]) -> dict[float, tuple[float, bool]]:
    """{sparsity: (best metric at it, whether after a whole epoch of training at it)} of one run."""
    retrained: dict[float, list[float]] = {}
    pruned: dict[float, list[float]] = {}
    previous = 0.0  # the level that the epoch began with
    for row in rows:
        target = row["target_sparsity"]
        level = round(target if abs(row["sparsity"] - target) <= _NEAR else row["sparsity"], 4)
        before = finite(row.get("sparsity_before_pruning", previous))
        if abs(before - previous) <= _NEAR:
            retrained.setdefault(previous, []).append(finite(row.get("metric_before_pruning", row["eval_metric"])))
        if level != previous:
            pruned.setdefault(level, []).append(finite(row["eval_metric"]))
        previous = level
    found = {}
    for sparsity in sorted(retrained.keys() | pruned.keys()):
        for values, after in ((retrained, True), (pruned, False)):
            numbers = [value for value in values.get(sparsity, []) if math.isfinite(value)]
            if numbers:
                found[sparsity] = (max(numbers), after)
                break
    return found


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sample standard deviation); None for the latter of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def differences(results: Sequence[Result]) -> list[str]:
    """The config keys whose values are not the same in all runs; a method's own keys count for its runs alone."""
    keys = dict.fromkeys(key for result in results for key in result.config)
    found = []
    for key in keys:
        concerned = [result for result in results if config_lib.belongs(key, result.method)]
        if len({repr(result.config.get(key)) for result in concerned}) > 1:
            found.append(key)
    return found


def pruned(result: Result) -> bool:
    """Whether the run closed any gate, layer by layer as layers.csv tells."""
    return any(value for row in result.layers for key, value in row.items() if key != "epoch")


def _label(result: Result, differing: list[str]) -> str:
    shown = [key for key in differing if key not in _NOT_A_VARIANT and not key.startswith("report.")]
    parts = [f"{k.split('.')[1]}={result.config.get(k)}" for k in shown if config_lib.belongs(k, result.method)]
    return " ".join([result.method, *parts])


def _line(label: str, results: list[Result]) -> Line:
    by_seed: dict[float, dict[int, tuple[bool, float]]] = {}
    losses: dict[int, list[float]] = {}
    times = []
    for result in results:
        seed = result.config["train.seed"]
        for sparsity, (value, retrained) in at_sparsities(result.rows).items():
            seeds = by_seed.setdefault(sparsity, {})
            seeds[seed] = max(seeds.get(seed, (False, -math.inf)), (retrained, value))
        steps = [row["step"] for row in result.rows]
        lengths = [b - a for a, b in zip([0, *steps], steps, strict=False)]
        # The median: the first epoch compiles. Evaluation and pruning are in it.
        times.append(statistics.median(1000 * r["seconds"] / n for r, n in zip(result.rows, lengths, strict=True)))
        for row in result.rows:
            if math.isfinite(finite(row["eval_loss"])):
                losses.setdefault(row["epoch"], []).append(row["eval_loss"])
    cells = []
    for sparsity, seeds in sorted(by_seed.items()):
        values = [value for _, value in seeds.values()]
        cells.append(Cell(sparsity, *spread(values), len(values), all(after for after, _ in seeds.values())))
    curve = [(epoch, *spread(values)) for epoch, values in sorted(losses.items())]
    return Line(label, cells, curve, spread(times), [result.name for result in results])


def panels(results: Sequence[Result]) -> list[Panel]:
    """The results by task and model size, in the order of the runs."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        summary = result.summary
        groups.setdefault((summary["task"], summary["model_size"], summary["metric_name"]), []).append(result)
    found = []
    for key, group in groups.items():
        differing = differences(group)
        lines: dict[str, list[Result]] = {}
        for result in group:
            lines.setdefault(_label(result, differing), []).append(result)
        found.append(Panel(*key, [_line(label, members) for label, members in lines.items() if members[0].rows]))
    return found


def number(cell: Cell) -> str:
    """'0.8123 ± 0.0045 †'."""
    deviation = "" if cell.std is None else f" ± {cell.std:.4f}"
    return f"{cell.mean:.4f}{deviation}{'' if cell.retrained else ' †'}"


def percent(sparsity: float) -> str:
    """'97.5%'."""
    return f"{100 * sparsity:g}%"


def table(found: Sequence[Panel], bold: bool) -> list[str]:
    """Lines of a table a panel: a row a sparsity, a column a method. bold: set the best of each row in bold."""
    lines = []
    for panel in found:
        columns = [{cell.sparsity: cell for cell in line.cells} for line in panel.lines]
        heads = ["sparsity", *(line.label for line in panel.lines)]
        rows = [
            [percent(x), *(number(column[x]) if x in column else "" for column in columns)] for x in panel.sparsities
        ]
        widths = [max(len(text) for text in texts) for texts in zip(heads, *rows, strict=True)]
        lines += [panel.title, "  ".join(f"{t:>{w}}" for t, w in zip(heads, widths, strict=True))]
        for x, row in zip(panel.sparsities, rows, strict=True):
            padded = [f"{text:>{width}}" for text, width in zip(row, widths, strict=True)]
            for i, column in enumerate(columns, 1):
                if bold and x in column and column[x].mean == panel.best(x):
                    padded[i] = f"\x1b[1m{padded[i]}\x1b[0m"
            lines.append("  ".join(padded))
        lines.append("")
    return [*lines, CAPTION]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *(["" if value is None else value for value in row] for row in rows)])
    workdir_lib.write_text(path, text.getvalue())


def write_summary(folder, found: Sequence[Panel]) -> Path:
    """folder/summary.csv: a row a panel, method and sparsity, with all digits."""
    path = Path(folder) / "summary.csv"
    rows = [
        (panel.task, panel.model_size, panel.metric, line.label, *cell)
        for panel in found
        for line in panel.lines
        for cell in line.cells
    ]
    _write_csv(path, ("task", "model_size", "metric", "method", *Cell._fields), rows)
    return path


def write_runs(folder, results: Sequence[Result], unfinished: dict[str, str]) -> Path:
    """folder/runs.csv: a row a run. unfinished: {name: state} of the runs without a result."""
    path = Path(folder) / "runs.csv"
    names = ("method", "task", "model_size", "sparsity", "metric_name", "best_metric", "final_metric", "seconds")
    rows = [
        (r.name, "finished", r.config["train.seed"], *(r.summary[name] for name in names), str(r.folder))
        for r in results
    ]
    rows += [(name, state, *[None] * (len(names) + 2)) for name, state in unfinished.items()]
    _write_csv(path, ("name", "state", "seed", *names, "folder"), rows)
    return path

"""Several finished runs as one result: the metric of each method at each sparsity, over seeds.

**The metric of a run at a sparsity** is the best value that the run measured there after a whole epoch of training.
Some sparsities have no such epoch: the last one of a run, or those that a method passes inside an epoch. Their metric
is the best value right after a pruning to that sparsity, and it is marked.

Runs that differ only in the seed are one line, with a mean and a sample standard deviation. Runs that differ also in
the sparsity at which they end belong to the same line; each seed then counts with its best value. Runs whose data were
edited in between, under the same keys, are lines of their own, with the first digits of their data's hash.
"""

import contextlib
import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.config import keys, saved
from prune_jax.errors import UserError
from prune_jax.report.metrics import finite, read_layers, read_metrics

CAPTION = (
    "Mean ± sample standard deviation over seeds of the best value that a run measured at that sparsity after a whole "
    "epoch of training at it. † measured right after the pruning, without retraining, in at least one run."
)
_NEAR = 0.005  # a sparsity this near to its target counts as the target: each kernel rounds for itself
_NOT_A_VARIANT = {"train.seed", "pruning.method", "data.task", "model.size", "pruning.end_sparsity",
                  "pruning.sparsity_steps", *keys.WITHOUT_RESULT}  # fmt: skip

_COLUMNS = ("eval_loss", "eval_metric", "sparsity", "target_sparsity")
_SUMMARY = {"method": str, "task": str, "model_size": str, "metric_name": str, "versions": dict}


class Result(NamedTuple):
    """A finished run.

    Attributes:
      config: every key of the config, as {"train.epochs": 25, ...}.
      summary, provenance: what the files of these names hold.
      rows, layers: the rows of metrics.csv and of layers.csv, one per epoch.
      data: the fingerprint of its examples, "" where the run is older than that.
    """

    name: str
    folder: Path
    config: dict
    summary: dict
    provenance: dict
    rows: list[dict]
    layers: list[dict]
    data: str = ""

    @property
    def method(self) -> str:
        return self.summary["method"]


class Cell(NamedTuple):
    """The metric of a line at one sparsity.

    Attributes:
      sparsity: the closed fraction, 0 to 1.
      mean, std: over the seeds; std is None for a single seed.
      retrained: whether every seed measured it after a whole epoch of training.
    """

    sparsity: float
    mean: float
    std: float | None
    seeds: int
    retrained: bool


class Line(NamedTuple):
    """Runs that differ only in the seed.

    Attributes:
      cells: one per sparsity, by increasing sparsity.
      losses: (epoch, mean, std) of the evaluation loss, over the seeds.
      step_ms: (mean, std) of the milliseconds per step.
      runs: the runs' names.
      values: of each sparsity, the metric of each seed.
    """

    label: str
    cells: list[Cell]
    losses: list[tuple[int, float, float | None]]
    step_ms: tuple[float, float | None]
    runs: list[str]
    values: Mapping[float, Sequence[float]] = MappingProxyType({})


class Panel(NamedTuple):
    """The lines that can be compared: those of one task, one model size and one metric."""

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

    def ranking(self, sparsity: float) -> list[tuple[str, Cell]]:
        """(label, cell) of the lines that have been at a sparsity, the best first."""
        found = [(line.label, cell) for line in self.lines for cell in line.cells if cell.sparsity == sparsity]
        sign = -1 if config_lib.better(self.metric, 1, 0) else 1
        return sorted(found, key=lambda one: sign * one[1].mean)

    def winner(self, sparsity: float) -> str | None:
        """The label of the line that is ahead of the next by more than both spreads together; None where none is."""
        first, second, *_ = [*self.ranking(sparsity), None, None]
        return first[0] if first and second and beyond(first[1], second[1]) else None


def beyond(one: Cell, other: Cell) -> bool | None:
    """Whether two means differ by more than both standard deviations together; None where a single seed has none."""
    if one.std is None or other.std is None:
        return None
    return abs(one.mean - other.mean) > one.std + other.std


def sentence(panel: Panel) -> str:
    """The result of a panel in a sentence: at the last sparsity that the most lines have reached, who keeps how much.

    "" for a panel where nothing was pruned.
    """
    pruned = [x for x in panel.sparsities if x > 0]
    if not pruned:
        return ""
    at = max(pruned, key=lambda x: (len(panel.ranking(x)), x))
    (label, best), *others = panel.ranking(at)
    dense = next((cell.mean for _, cell in panel.ranking(0.0)), None)
    of = "" if dense is None else f" of the dense {dense:.4f}"
    text = f"At {percent(at)} on {panel.task} {label} keeps {best.mean:.4f}{of} ({panel.metric})"
    said = {
        True: "beyond the spread of the seeds",
        False: "within the spread of the seeds",
        None: "and a single seed has no spread",
    }
    for name, cell in others[:3]:
        gap = f"{abs(best.mean - cell.mean):.4f}"
        text += (
            f"; {name} is level with it" if float(gap) == 0 else f"; {name} is {gap} behind, {said[beyond(best, cell)]}"
        )
    return text + (f"; {len(others) - 3} more are further behind." if len(others) > 3 else ".")


def scale(panel: Panel, results: Sequence[Result]) -> str:
    """What the numbers of a panel are to be held against: how many examples, chance, the dense level."""
    names = {name for line in panel.lines for name in line.runs}
    summaries = [result.summary for result in results if result.name in names]
    parts = []
    if examples := {s["eval_examples"] for s in summaries if s.get("eval_examples")}:
        parts.append(f"{' or '.join(f'{n:,}' for n in sorted(examples))} evaluation examples")
    if chance := [s["chance"] for s in summaries if s.get("chance") is not None]:
        parts.append(f"a constant answer has {max(chance):.4f}")
    if dense := panel.ranking(0.0):
        parts.append(f"the dense level is {dense[0][1].mean:.4f}")
    seeds = {len(line.runs) for line in panel.lines}
    parts.append(f"n = {min(seeds)}{f' to {max(seeds)}' if len(seeds) > 1 else ''} runs per line")
    return "; ".join(parts) + "."


def read(folders: Iterable) -> list[Result]:
    """Reads the runs in `folders`.

    Raises:
      UserError: some folders hold no finished run; the message names all of them.
    """
    results, mistakes = [], []
    for folder in map(Path, folders):
        try:
            if not (folder / "config.json").is_file():
                raise UserError(f"{folder} is not the folder of a run (there is no config.json)")
            if not (folder / "summary.json").is_file():
                raise UserError(f"the run in {folder} is not finished (there is no summary.json)")
            config = saved.flat(saved.read(folder / "config.json"))
            summary = _summary(folder / "summary.json")
            provenance, data = {}, {}
            with contextlib.suppress(UserError):  # a run is comparable without them
                provenance = files.read_json(folder / "provenance.json")
            with contextlib.suppress(UserError):
                data = files.read_json(folder / "data.json")
            name = folder.name or folder.resolve().name
            rows = read_metrics(folder)
            if absent := next((column for row in rows for column in _COLUMNS if column not in row), None):
                raise UserError(f"{folder / 'metrics.csv'} is not of a run: it has no column {absent}")
            told = str(data.get("sha256", ""))
            results.append(Result(name, folder, config, summary, provenance, rows, read_layers(folder), told))
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))
    names = [result.name for result in results]
    return [  # runs of two folders may have one name
        result._replace(name=str(result.folder)) if names.count(result.name) > 1 else result for result in results
    ]


def _summary(path: Path) -> dict:
    summary = files.read_json(path)
    for name, kind in _SUMMARY.items():
        if not isinstance(summary.get(name), kind):
            raise UserError(f"{path} is damaged: {name} is {summary.get(name)!r}; allowed: {kind.__name__}")
    return summary


def at_sparsities(rows: Sequence[dict], metric: str = "") -> dict[float, tuple[float, bool]]:
    """The metric of one run at each sparsity: {sparsity: (metric, whether after a whole epoch of training)}."""
    retrained: dict[float, list[float]] = {}
    pruned: dict[float, list[float]] = {}
    previous = 0.0  # the sparsity at which the epoch began
    for row in rows:
        target = row["target_sparsity"]
        level = round(target if abs(row["sparsity"] - target) <= _NEAR else row["sparsity"], 4)
        before = finite(row.get("sparsity_before_pruning", previous))
        if abs(before - previous) <= _NEAR:
            retrained.setdefault(previous, []).append(finite(row.get("metric_before_pruning", row["eval_metric"])))
        if level != previous:
            pruned.setdefault(level, []).append(finite(row["eval_metric"]))
        previous = level
    best = {}
    for sparsity in sorted(retrained.keys() | pruned.keys()):
        for values, after in ((retrained, True), (pruned, False)):
            numbers = [value for value in values.get(sparsity, []) if math.isfinite(value)]
            if numbers:
                best[sparsity] = (config_lib.best(metric, numbers), after)
                break
    return best


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sample standard deviation); the deviation of a single value is None."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def differences(results: Sequence[Result]) -> list[str]:
    """The config keys whose values are not the same in all runs. A method's own keys count for its runs only."""
    names = dict.fromkeys(key for result in results for key in result.config)
    differing = []
    for key in names:
        concerned = [result for result in results if config_lib.belongs(key, result.method)]
        if len({repr(result.config.get(key)) for result in concerned}) > 1:
            differing.append(key)
    return differing


class Spot(NamedTuple):
    """A run's last metric against what its network costs.

    Attributes:
      flops: floating-point operations per example; milliseconds: per batch of the run's `cost`; bytes: of the weights,
        nan where the run is older than the number.
    """

    label: str
    metric: float
    flops: float
    milliseconds: float
    bytes: float


def spots(panel: "Panel", results: Sequence[Result]) -> list[Spot]:
    """The runs of a panel that have measured what their networks cost."""
    labels = {name: line.label for line in panel.lines for name in line.runs}
    found = []
    for result in results:
        cost, metric = result.summary.get("cost"), finite(result.summary["final_metric"])
        if cost and result.name in labels and math.isfinite(metric):
            flops, time = cost["flops"]["pruned"] / cost["batch"], cost["milliseconds"]["pruned"]
            size = cost.get("bytes", {}).get("pruned", math.nan)
            found.append(Spot(labels[result.name], metric, flops, time, size))
    return found


def front(points: Iterable[tuple[float, float]], name: str = "") -> list[tuple[float, float]]:
    """The Pareto front of (cost, metric): those that no other beats at the same cost or less, by increasing cost."""
    best: list[tuple[float, float]] = []
    sign = -1 if config_lib.better(name, 0, 1) else 1
    for cost, metric in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not best or config_lib.better(name, metric, best[-1][1]):
            best.append((cost, metric))
    return best


def pruned(result: Result) -> bool:
    """Whether the run closed any gate, by its layers.csv."""
    return any(value for row in result.layers for key, value in row.items() if key != "epoch")


def _edited(results: Sequence[Result]) -> bool:
    """Whether runs of one config.data read different examples: their numbers are not of one data set."""
    read: dict[tuple, set[str]] = {}
    for result in results:
        if result.data:
            asked = [k for k in result.config if k.startswith("data.") and k not in keys.WITHOUT_RESULT]
            read.setdefault(tuple((k, repr(result.config[k])) for k in sorted(asked)), set()).add(result.data)
    return any(len(found) > 1 for found in read.values())


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
        name = result.summary["metric_name"]
        for sparsity, (value, retrained) in at_sparsities(result.rows, name).items():
            seeds = by_seed.setdefault(sparsity, {})
            known = seeds.get(seed)
            if known is None or retrained > known[0]:
                seeds[seed] = (retrained, value)
            elif retrained == known[0]:
                seeds[seed] = (retrained, config_lib.best(name, (value, known[1])))
        steps = [row["step"] for row in result.rows]
        lengths = [b - a for a, b in zip([0, *steps], steps, strict=False)]
        # The median, because the first epoch compiles. Evaluation and pruning are included.
        each = [1000 * row["seconds"] / n for row, n in zip(result.rows, lengths, strict=True) if n]
        times.append(statistics.median(each or [0.0]))  # a network pruned in one shot alone has taken no step
        for row in result.rows:
            if math.isfinite(finite(row["eval_loss"])):
                losses.setdefault(row["epoch"], []).append(row["eval_loss"])
    cells = []
    for sparsity, seeds in sorted(by_seed.items()):
        values = [value for _, value in seeds.values()]
        cells.append(Cell(sparsity, *spread(values), len(values), all(after for after, _ in seeds.values())))
    curve = [(epoch, *spread(values)) for epoch, values in sorted(losses.items())]
    each = {sparsity: [value for _, value in seeds.values()] for sparsity, seeds in by_seed.items()}
    return Line(label, cells, curve, spread(times), [result.name for result in results], each)


def panels(results: Sequence[Result]) -> list[Panel]:
    """Groups results by task, model size and metric, in the order of the runs."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        summary = result.summary
        groups.setdefault((summary["task"], summary["model_size"], summary["metric_name"]), []).append(result)
    by_task = []
    for key, group in groups.items():
        differing, edited = differences(group), _edited(group)
        lines: dict[str, list[Result]] = {}
        for result in group:
            label = _label(result, differing) + (f" data={result.data[:6] or '?'}" if edited else "")
            lines.setdefault(label, []).append(result)
        by_task.append(Panel(*key, [_line(label, members) for label, members in lines.items() if members[0].rows]))
    return by_task


def number(cell: Cell) -> str:
    """A cell as text, such as '0.8123 ± 0.0045 †'."""
    deviation = "" if cell.std is None else f" ± {cell.std:.4f}"
    return f"{cell.mean:.4f}{deviation}{'' if cell.retrained else ' †'}"


def percent(sparsity: float) -> str:
    """A fraction as text, such as '97.5%'."""
    return f"{100 * sparsity:g}%"


def table(panels: Sequence[Panel], bold: bool) -> list[str]:
    """The lines of one table per panel, with one row per sparsity and one column per line of the panel.

    Args:
      bold: whether the winner of each row is set in bold, by the codes of a terminal.
    """
    lines = []
    for panel in panels:
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
                if bold and x in column and panel.lines[i - 1].label == panel.winner(x):
                    padded[i] = f"\x1b[1m{padded[i]}\x1b[0m"
            lines.append("  ".join(padded))
        lines.append("")
    return [*lines, CAPTION]


def _cell(value):
    """What a table shows of a value. A spreadsheet would run a text that begins as a formula does."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *([_cell(value) for value in row] for row in rows)])
    files.write_text(path, text.getvalue())


def write_summary(folder, panels: Sequence[Panel]) -> Path:
    """Writes folder/summary.csv, one row per panel, line and sparsity, with all digits; returns its path."""
    path = Path(folder) / "summary.csv"
    rows = [
        (panel.task, panel.model_size, panel.metric, line.label, *cell)
        for panel in panels
        for line in panel.lines
        for cell in line.cells
    ]
    _write_csv(path, ("task", "model_size", "metric", "method", *Cell._fields), rows)
    return path


def write_runs(folder, results: Sequence[Result], unfinished: dict[str, str]) -> Path:
    """Writes folder/runs.csv, one row per run, and returns its path.

    Args:
      unfinished: the runs without a result, as {name: state}.
    """
    path = Path(folder) / "runs.csv"
    names = ("method", "task", "model_size", "sparsity", "metric_name", "best_metric", "final_metric", "seconds")
    rows = [
        (r.name, "finished", r.config["train.seed"], *(r.summary[name] for name in names), str(r.folder))
        for r in results
    ]
    rows += [(name, state, *[None] * (len(names) + 2)) for name, state in unfinished.items()]
    _write_csv(path, ("name", "state", "seed", *names, "folder"), rows)
    return path

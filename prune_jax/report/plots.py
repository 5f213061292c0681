"""Draws the pictures of a run from its metrics.csv and its summary, and those of a comparison of runs."""

import math
import textwrap
from pathlib import Path

from prune_jax.report.metrics import finite, read_metrics

# The palette of Okabe and Ito: colour-blind readers can tell its colours apart, and so can a reader of a grey print.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a8a8a"
_METRICS = {
    "accuracy": "Accuracy (fraction correct)",
    "matthews": "Matthews correlation",
    "f1": "F1 score",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
_METHODS = {"spt": "SPT", "baseline": "dense baseline", "sws": "soft weight-sharing"}
_SPARSITY = "Sparsity (% of prunable weights removed)"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "legend.fontsize": 10,
}


def draw(workdir, summary: dict) -> list[Path]:
    """Draws workdir/plots/{loss,metric}.png and, for a run that measured importance (SPT), importance.png.

    Args:
      workdir: holds metrics.csv.
      summary: what summary.json holds. It needs method, task, model_size and metric_name, and may have dense_metric.
    Returns:
      The paths of the files; none for a run without an epoch. The same numbers give the same bytes.
    """
    rows = read_metrics(workdir)
    if not rows:
        return []
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = {name: [finite(row[name]) for row in rows] for name in rows[0]}
    columns["sparsity"] = [100 * value for value in columns["sparsity"]]
    drawings = {"loss": (_loss, 1), "metric": (_metric, 2)}
    if any(math.isfinite(value) for value in columns.get("mean_reward", [])):
        drawings["importance"] = (_importance, 1)
    folder = Path(workdir) / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, (drawing, panels) in drawings.items():
            figure = Figure(figsize=(7.5 if panels == 1 else 12, 4.8), layout="constrained")
            FigureCanvasAgg(figure)
            drawing(figure, columns, summary)
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
            written.append(path)
    return written


def run_label(summary: dict) -> str:
    """The run in the words of a title: its method, the size of its model, its task."""
    method = str(summary.get("method", "?"))
    return f"{_METHODS.get(method, method)}, {summary.get('model_size', '?')} model, task {summary.get('task', '?')}"


def _finite(values) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def epoch_axis(axes, epochs) -> None:
    """Labels the x axis "Epoch" and puts ticks at whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)


def _sparsity_axis(axes, values) -> None:
    low, high = min(values, default=0), max(values, default=0)
    margin = max(0.05 * (high - low), 2.5)
    axes.set_xlim(low - margin, high + margin)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100 and low - margin <= tick <= high + margin])
    axes.set_xlabel(_SPARSITY)


def _line(axes, x, y, color, label, marker="o", **how):
    """Draws a line through the finite points: it bridges a missing epoch, which would hide its neighbours as a gap."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    axes.plot([a for a, _ in points], [b for _, b in points], color=color, label=label, marker=marker, **how)


def _legend(figure, axes, columns) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _name(metric: str) -> str:
    """The name of a metric in words, as 'F1 score, mismatched' for 'f1_mismatched'."""
    metric, _, split = metric.partition("_")
    return _METRICS.get(metric, metric).split(" (")[0] + (f", {split}" if split else "")


def _loss(figure, columns, summary) -> None:
    epochs = columns["epoch"]
    axes = figure.add_subplot()
    _line(axes, epochs, columns["train_loss"], BLUE, "training loss (mean of the epoch)")
    pruned = any(_finite(columns["sparsity"]))
    when = "after the epoch and its cut" if pruned else "end of the epoch"
    _line(axes, epochs, columns["eval_loss"], ORANGE, f"evaluation loss ({when})", marker="s")
    extra = [name for name in columns if name.startswith("eval_loss_")]
    for name, color in zip(extra, (PURPLE, GREEN), strict=False):
        label = f"evaluation loss, {name.removeprefix('eval_loss_')}"
        _line(axes, epochs, columns[name], color, label, marker="^", linestyle="--")
    if pruned:
        shade = axes.twinx()
        label = "sparsity after the epoch (right axis)"
        shade.bar(epochs, columns["sparsity"], width=0.8, color=GREY, alpha=0.25)
        axes.fill_between([], [], color=GREY, alpha=0.25, label=label)  # the legend takes its entries from these axes
        shade.set_ylim(0, 105)
        shade.set_ylabel(_SPARSITY, color="#555555")
        shade.tick_params(colors="#555555")
        shade.grid(False)
        axes.set_zorder(shade.get_zorder() + 1)  # lines are drawn above the shade
        axes.patch.set_visible(False)
    regression = summary.get("metric_name") in ("pearson", "spearman")
    axes.set_ylabel("Loss (mean squared error)" if regression else "Loss (cross-entropy, nats)")
    axes.set_title(f"Loss while pruning: {run_label(summary)}" if pruned else f"Loss: {run_label(summary)}")
    epoch_axis(axes, epochs)
    _legend(figure, axes, 2)


def _retrained(columns) -> tuple[list[float], list[float], list[int]]:
    """(the metric after each epoch's training, the percent closed then, the epochs at whose end gates closed)."""
    after, closed = columns["eval_metric"], columns["sparsity"]
    before = columns.get("metric_before_pruning", after)  # runs of the first version have neither column
    during = (
        [100 * value for value in columns["sparsity_before_pruning"]]
        if "sparsity_before_pruning" in columns
        else closed
    )
    cut = [at for at in range(len(after)) if closed[at] != during[at] and math.isfinite(during[at])]
    metric = [before[at] if at in cut else after[at] for at in range(len(after))]
    return metric, [during[at] if at in cut else closed[at] for at in range(len(after))], cut


def _best_per_level(levels, values) -> tuple[list[float], list[float]]:
    """The best value at each level, by increasing level."""
    best: dict[float, float] = {}
    for level, value in zip(levels, values, strict=True):
        if math.isfinite(level) and math.isfinite(value):
            best[level] = max(value, best.get(level, -math.inf))
    return list(map(list, zip(*sorted(best.items()), strict=True))) if best else ([], [])  # type: ignore[return-value]


def _metric(figure, columns, summary) -> None:
    by_epoch, by_sparsity = figure.subplots(1, 2, sharey=True)
    metric = summary.get("metric_name") or "metric"
    others = [
        column
        for column in columns
        if column.startswith("eval_") and column != "eval_metric" and not column.startswith("eval_loss")
    ]
    dense = summary.get("dense_metric")
    if dense is None:  # a summary without it: the same number from the rows
        rows = zip(columns["sparsity"], columns["eval_metric"], strict=True)
        dense = max((value for sparsity, value in rows if sparsity == 0 and math.isfinite(value)), default=None)
    retrained, during, cut = _retrained(columns)
    levels, best = _best_per_level(during, retrained)
    suffix = ", after the epoch's training" if cut else ""
    for axes, x, y in ((by_epoch, columns["epoch"], retrained), (by_sparsity, levels, best)):
        moves = len(set(_finite(x))) > 1  # a line through points at one sparsity would mean nothing
        _line(axes, x, y, BLUE, _name(metric) + suffix, linestyle="-" if moves else "none")
    for axes, x in ((by_epoch, columns["epoch"]), (by_sparsity, columns["sparsity"])):
        if cut:
            marks = [columns["eval_metric"][at] for at in cut]
            how = {"linestyle": "none", "markersize": 4}
            _line(axes, [x[at] for at in cut], marks, ORANGE, "the same, right after gates closed", "x", **how)
        for column, color, marker in zip(others, (GREEN, PURPLE, ORANGE), "^Ds", strict=False):
            label = _name(column.removeprefix("eval_")) + (", after gates closed" if cut else "")
            how = {"linestyle": ":" if len(set(_finite(x))) > 1 else "none", "linewidth": 1.2, "markersize": 3}
            _line(axes, x, columns[column], color, label, marker, **how)
        if dense is not None:
            level = f"dense level ({_name(metric)} of the best epoch at 0%): {dense:.3f}"
            axes.axhline(dense, color="#333333", linestyle="--", linewidth=1.3, label=level)
    by_epoch.set_ylabel(_METRICS.get(metric, metric) if not others else "Score")
    by_epoch.set_title("Epoch by epoch")
    epoch_axis(by_epoch, columns["epoch"])
    by_sparsity.set_title("Against sparsity, the best epoch of each level")
    _sparsity_axis(by_sparsity, _finite(columns["sparsity"]))
    _level_ticks(by_sparsity, _finite([*columns["sparsity"], *during]))
    title = _name(metric) if not others else "Scores"
    figure.suptitle(f"{title} on the evaluation set: {run_label(summary)}", fontsize=13)
    _legend(figure, by_epoch, 2 if others else 3)


def _level_ticks(axes, levels) -> None:
    """Puts ticks where the run has been, the highest first; those that would touch another are left out."""
    low, high = axes.get_xlim()
    kept: list[float] = []
    for level in sorted({round(value, 1) for value in levels}, reverse=True):
        if not kept or kept[-1] - level >= (high - low) / 16:
            kept.append(level)
    axes.set_xticks(kept, [f"{level:g}" for level in kept])


def _importance(figure, columns, summary) -> None:
    axes = figure.add_subplot()
    # An epoch's importances are measured before its pruning, at the sparsity that the epoch before it left.
    during = [0.0, *columns["sparsity"][:-1]]
    _line(axes, during, columns["mean_reward"], BLUE, "mean over the epoch's exploration passes")
    points = list(zip(columns["epoch"], during, columns["mean_reward"], strict=True))
    measured = [point for point in points if math.isfinite(point[2])]
    for epoch, x, y in {measured[0], measured[-1]}:
        axes.annotate(
            f"epoch {epoch:.0f}", (x, y), xytext=(7, 7), textcoords="offset points", fontsize=9, color="#555555"
        )
    axes.axhline(0, color="#333333", linestyle="--", linewidth=1.3, label="0: the closed weights made no difference")
    if any(y < 0 for *_, y in measured):
        axes.margins(y=0.15)
        low, high = axes.get_ylim()
        label = "below 0: the loss fell without them. They did harm,\nor they are worth less than chance moves the loss"
        axes.axhspan(low, 0, color=GREY, alpha=0.15, label=label)
        axes.set_ylim(low, high)
    unit = "squared error" if summary.get("metric_name") in ("pearson", "spearman") else "nats"
    axes.set_ylabel(f"Mean importance: rise of the loss ({unit}) when\na random sample of open weights is closed")
    axes.set_title(f"Importance of the weights still open: {run_label(summary)}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(y=0.15)
    _sparsity_axis(axes, _finite(during))
    axes.set_xlabel("Sparsity during the epoch (% of prunable weights removed)")
    _legend(figure, axes, 1)


def draw_study(folder, panels, styles: dict[str, tuple[str, str]]) -> list[Path]:
    """Draws folder/plots/{metric,loss,time}.png of several runs, with one column per panel.

    Args:
      panels: of prune_jax.report.study; each has one line per method.
      styles: the look of each line by its label, (color, dash in the words of SVG).
    Returns:
      The paths of the files; none without panels.
    """
    if not panels:
        return []
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = Path(folder) / "plots"
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        width, labels = 6 * len(panels) + 1.5, dict.fromkeys(line.label for panel in panels for line in panel.lines)
        shown = [_wrapped(label) for label in labels]
        longest = max((len(part) for text in shown for part in text.split("\n")), default=0)
        columns = max(1, min(4, len(shown), int(72 * width / (6.5 * longest + 50))))  # in points of the legend's font
        high = sum(max(text.count("\n") + 1 for text in shown[i : i + columns]) for i in range(0, len(shown), columns))
        for name, drawing in {"metric": _study_metric, "loss": _study_loss, "time": _study_time}.items():
            figure = Figure(figsize=(width, 4.4 + 0.19 * high), layout="constrained")
            FigureCanvasAgg(figure)
            for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                axes.set_title(f"{panel.task}, {panel.model_size} model")
                drawing(axes, panel, styles)
            entries = {}  # each label once, whatever panels it is in
            for axes in figure.axes:
                handles, labels = axes.get_legend_handles_labels()
                entries |= dict(zip(labels, handles, strict=True))
            if entries:
                names = map(_wrapped, entries)
                figure.legend(entries.values(), names, loc="outside lower center", ncols=columns)
            path = out / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
            written.append(path)
    return written


def _wrapped(label: str) -> str:
    """A label in lines that leave the axes their room; of one that is longer, the beginning and the end."""
    return "\n".join(textwrap.wrap(label if len(label) <= 140 else f"{label[:68]} … {label[-68:]}", 36))


def _spread(axes, x, mean, std, style, label) -> None:
    color, dash = style
    pattern = "-" if dash == "none" else (0, tuple(int(part) for part in dash.split()))
    axes.plot(x, mean, color=color, linestyle=pattern, marker="o", label=label)
    if len(x) == 1:  # the dense level, which the others are compared with
        axes.axhline(mean[0], color=color, linestyle=":", linewidth=1.2)
    if any(std):
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _study_metric(axes, panel, styles) -> None:
    for line in panel.lines:
        x = [100 * cell.sparsity for cell in line.cells]
        std = [cell.std or 0 for cell in line.cells]
        _spread(axes, x, [cell.mean for cell in line.cells], std, styles[line.label], line.label)
    axes.set_ylabel(_METRICS.get(panel.metric, panel.metric))
    _sparsity_axis(axes, [100 * value for value in panel.sparsities])


def _study_loss(axes, panel, styles) -> None:
    for line in panel.lines:
        epochs, mean, std = zip(*line.losses, strict=True) if line.losses else ((), (), ())
        _spread(axes, epochs, mean, [value or 0 for value in std], styles[line.label], line.label)
    axes.set_ylabel("Evaluation loss")
    epoch_axis(axes, [epoch for line in panel.lines for epoch, *_ in line.losses] or [0])


def _study_time(axes, panel, styles) -> None:
    for i, line in enumerate(panel.lines):
        mean, std = line.step_ms
        axes.barh(i, mean, xerr=std, color=styles[line.label][0], ecolor="#333333", capsize=3)
    axes.set_yticks(range(len(panel.lines)), [_wrapped(line.label) for line in panel.lines], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("Milliseconds per step (evaluation and pruning included)")

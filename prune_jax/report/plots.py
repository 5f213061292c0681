"""The three pictures of a run, drawn from its metrics.csv and summary."""

import math
from pathlib import Path

from prune_jax.report.metrics import finite, read_metrics

# Okabe and Ito's palette: told apart by colour-blind readers, and by grey level in print.
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
      summary: as summary.json: method, task, model_size, metric_name, and, if known, dense_metric (the dense level).
    Returns:
      The files written; none for a run without a single epoch. The same numbers give the same bytes.
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
    """What a title says of the run."""
    method = str(summary.get("method", "?"))
    return f"{_METHODS.get(method, method)}, {summary.get('model_size', '?')} model, task {summary.get('task', '?')}"


def _finite(values) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def epoch_axis(axes, epochs) -> None:
    """Labels the x axis, with ticks at whole epochs."""
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
    """A line through the finite points only: a missing epoch is bridged, not a hole that hides its neighbours."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    axes.plot([a for a, _ in points], [b for _, b in points], color=color, label=label, marker=marker, **how)


def _legend(figure, axes, columns) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _name(metric: str) -> str:
    """'f1_mismatched' as 'F1 score, mismatched'."""
    metric, _, split = metric.partition("_")
    return _METRICS.get(metric, metric).split(" (")[0] + (f", {split}" if split else "")


def _loss(figure, columns, summary) -> None:
    epochs = columns["epoch"]
    axes = figure.add_subplot()
    _line(axes, epochs, columns["train_loss"], BLUE, "training loss (mean of the epoch)")
    _line(axes, epochs, columns["eval_loss"], ORANGE, "evaluation loss (end of the epoch)", marker="s")
    extra = [name for name in columns if name.startswith("eval_loss_")]
    for name, color in zip(extra, (PURPLE, GREEN), strict=False):
        label = f"evaluation loss, {name.removeprefix('eval_loss_')}"
        _line(axes, epochs, columns[name], color, label, marker="^", linestyle="--")
    pruned = any(_finite(columns["sparsity"]))
    if pruned:
        shade = axes.twinx()
        label = "sparsity after the epoch (right axis)"
        shade.bar(epochs, columns["sparsity"], width=0.8, color=GREY, alpha=0.25)
        axes.fill_between([], [], color=GREY, alpha=0.25, label=label)  # for the legend: its entries come from one axes
        shade.set_ylim(0, 105)
        shade.set_ylabel(_SPARSITY, color="#555555")
        shade.tick_params(colors="#555555")
        shade.grid(False)
        axes.set_zorder(shade.get_zorder() + 1)  # the lines above the shade
        axes.patch.set_visible(False)
    regression = summary.get("metric_name") in ("pearson", "spearman")
    axes.set_ylabel("Loss (mean squared error)" if regression else "Loss (cross-entropy, nats)")
    axes.set_title(f"Loss while pruning: {run_label(summary)}" if pruned else f"Loss: {run_label(summary)}")
    epoch_axis(axes, epochs)
    _legend(figure, axes, 2)


def _metric(figure, columns, summary) -> None:
    by_epoch, by_sparsity = figure.subplots(1, 2, sharey=True)
    metric = summary.get("metric_name") or "metric"
    lines = [("eval_metric", _name(metric))] + [
        (column, _name(column.removeprefix("eval_")))
        for column in columns
        if column.startswith("eval_") and column != "eval_metric" and not column.startswith("eval_loss")
    ]
    dense = summary.get("dense_metric")
    if dense is None:  # a summary without it: the same number from the rows
        rows = zip(columns["sparsity"], columns["eval_metric"], strict=True)
        dense = max((value for sparsity, value in rows if sparsity == 0 and math.isfinite(value)), default=None)
    for axes, x in ((by_epoch, columns["epoch"]), (by_sparsity, columns["sparsity"])):
        moves = len(set(_finite(x))) > 1  # points at one sparsity: a line through them would say nothing
        styles = zip((BLUE, ORANGE, GREEN, PURPLE), "os^D", strict=True)
        for (column, label), (color, marker) in zip(lines, styles, strict=False):
            _line(axes, x, columns[column], color, label, marker, linestyle="-" if moves else "none")
        if dense is not None:
            level = f"dense level ({_name(metric)} of the best epoch at 0%): {dense:.3f}"
            axes.axhline(dense, color="#333333", linestyle="--", linewidth=1.3, label=level)
    by_epoch.set_ylabel(_METRICS.get(metric, metric) if len(lines) == 1 else "Score")
    by_epoch.set_title("After each epoch")
    epoch_axis(by_epoch, columns["epoch"])
    by_sparsity.set_title("Against sparsity, one point an epoch")
    _sparsity_axis(by_sparsity, _finite(columns["sparsity"]))
    title = _name(metric) if len(lines) == 1 else "Scores"
    figure.suptitle(f"{title} on the evaluation set: {run_label(summary)}", fontsize=13)
    _legend(figure, by_epoch, 3)


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
    unit = "squared error" if summary.get("metric_name") in ("pearson", "spearman") else "nats"
    axes.set_ylabel(f"Mean importance: rise of the loss ({unit}) when\na random sample of open weights is closed")
    axes.set_title(f"Importance of the weights still open: {run_label(summary)}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(y=0.15)
    _sparsity_axis(axes, _finite(during))
    axes.set_xlabel("Sparsity during the epoch (% of prunable weights removed)")
    _legend(figure, axes, 2)


def draw_study(folder, panels, styles: dict[str, tuple[str, str]]) -> list[Path]:
    """Draws folder/plots/{metric,loss,time}.png of several runs: one picture of each kind, a column a panel.

    Args:
      panels: of prune_jax.report.study, each a task with a line a method.
      styles: {label of a line: (color, dash as SVG has it)}.
    Returns:
      The files written; none without panels.
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
        for name, drawing in {"metric": _study_metric, "loss": _study_loss, "time": _study_time}.items():
            figure = Figure(figsize=(6 * len(panels) + 1.5, 4.8), layout="constrained")
            FigureCanvasAgg(figure)
            for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                axes.set_title(f"{panel.task}, {panel.model_size} model")
                drawing(axes, panel, styles)
            entries = {}  # a method once, whatever panels it is in
            for axes in figure.axes:
                handles, labels = axes.get_legend_handles_labels()
                entries |= dict(zip(labels, handles, strict=True))
            if entries:
                figure.legend(entries.values(), entries, loc="outside lower center", ncols=min(4, len(entries)))
            path = out / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
            written.append(path)
    return written


def _spread(axes, x, mean, std, style, label) -> None:
    color, dash = style
    pattern = "-" if dash == "none" else (0, tuple(int(part) for part in dash.split()))
    axes.plot(x, mean, color=color, linestyle=pattern, marker="o", label=label)
    if len(x) == 1:  # the dense level, to hold the others against
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
    axes.set_yticks(range(len(panel.lines)), [line.label for line in panel.lines])
    axes.invert_yaxis()
    axes.set_xlabel("Milliseconds a step (evaluation and pruning included)")

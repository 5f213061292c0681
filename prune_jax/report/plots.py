"""The three pictures of a run, drawn from its metrics.csv and summary."""

import math
from pathlib import Path

from prune_jax.report.metrics import finite, read_metrics

# Okabe and Ito's palette: told apart by colour-blind readers, and by grey level in print.
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a8a8a"
_METRICS = {
    "accuracy": "Accuracy (fraction correct)",
    "matthews": "Matthews correlation",
    "f1": "F1 score",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
_METHODS = {"spt": "SPT", "baseline": "dense baseline"}
_SPARSITY = "Sparsity (% of prunable weights removed)"
_STYLE = {
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
    with matplotlib.rc_context(_STYLE):
        for name, (drawing, panels) in drawings.items():
            figure = Figure(figsize=(7.5 if panels == 1 else 12, 4.8), layout="constrained")
            FigureCanvasAgg(figure)
            drawing(figure, columns, summary)
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
            written.append(path)
    return written


def _run(summary: dict) -> str:
    method = str(summary.get("method", "?"))
    return f"{_METHODS.get(method, method)}, {summary.get('model_size', '?')} model, task {summary.get('task', '?')}"


def _finite(values) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _epoch_axis(axes, epochs) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)


def _sparsity_axis(axes, values) -> None:
    axes.set_xlabel(_SPARSITY)
    low, high = min(values, default=0), max(values, default=0)
    margin = max(0.05 * (high - low), 1.0)
    axes.set_xlim(low - margin, high + margin)


def _line(axes, x, y, color, label, marker="o", **how):
    """A line through the finite points only: a missing epoch is bridged, not a hole that hides its neighbours."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    axes.plot([a for a, _ in points], [b for _, b in points], color=color, label=label, marker=marker, **how)


def _legend(figure, axes, *others, columns=4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    for other in others:
        more = other.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _loss(figure, columns, summary) -> None:
    epochs = columns["epoch"]
    axes = figure.add_subplot()
    shade = axes.twinx()
    shade.fill_between(epochs, columns["sparsity"], color=_GREY, alpha=0.22, linewidth=0, label="sparsity (right axis)")
    shade.plot(epochs, columns["sparsity"], color=_GREY, linewidth=1, marker="." if len(epochs) == 1 else None)
    shade.set_ylim(0, 105)
    shade.set_ylabel(_SPARSITY, color="#555555")
    shade.tick_params(colors="#555555")
    shade.grid(False)
    axes.set_zorder(shade.get_zorder() + 1)  # the lines above the shade
    axes.patch.set_visible(False)
    _line(axes, epochs, columns["train_loss"], _BLUE, "training loss (mean of the epoch)")
    extra = [name for name in columns if name.startswith("eval_loss_")]
    _line(axes, epochs, columns["eval_loss"], _ORANGE, "evaluation loss (end of the epoch)", marker="s")
    for name, color in zip(extra, (_PURPLE, _GREEN), strict=False):
        label = f"evaluation loss, {name.removeprefix('eval_loss_')}"
        _line(axes, epochs, columns[name], color, label, marker="^", linestyle="--")
    regression = summary.get("metric_name") in ("pearson", "spearman")
    axes.set_ylabel("Loss (squared error)" if regression else "Loss (cross-entropy, nats)")
    axes.set_title(f"Loss while pruning: {_run(summary)}" if any(columns["sparsity"]) else f"Loss: {_run(summary)}")
    _epoch_axis(axes, epochs)
    _legend(figure, axes, shade, columns=2 if extra else 3)


def _metric(figure, columns, summary) -> None:
    by_epoch, by_sparsity = figure.subplots(1, 2, sharey=True)
    name = summary.get("metric_name") or "metric"
    lines = [("eval_metric", name)] + [
        (column, column.removeprefix("eval_"))
        for column in columns
        if column.startswith("eval_") and column != "eval_metric" and not column.startswith("eval_loss")
    ]
    dense, where = summary.get("dense_metric"), "best epoch before pruning"
    if dense is None:  # a summary without it: the same number from the rows
        flat = zip(columns["sparsity"], columns["eval_metric"], strict=True)
        dense = max((m for s, m in flat if s == 0 and math.isfinite(m)), default=None)
    for axes, x in ((by_epoch, columns["epoch"]), (by_sparsity, columns["sparsity"])):
        # Against sparsity the epochs that train on at one sparsity stand above each other; a line would only tangle.
        moves = len(set(_finite(x))) > 1
        styles = zip((_BLUE, _ORANGE, _GREEN, _PURPLE), "os^D", strict=True)
        for (column, label), (color, marker) in zip(lines, styles, strict=False):
            _line(axes, x, columns[column], color, label.replace("_", ", "), marker, linestyle="-" if moves else "none")
        if dense is not None:
            level = f"dense {name} ({where}): {dense:.3f}"
            axes.axhline(dense, color="#333333", linestyle="--", linewidth=1.3, label=level)
    by_epoch.set_ylabel(_METRICS.get(name, name) if len(lines) == 1 else "Score")
    by_epoch.set_title("After each epoch")
    _epoch_axis(by_epoch, columns["epoch"])
    by_sparsity.set_title("Against sparsity, one point an epoch")
    _sparsity_axis(by_sparsity, _finite(columns["sparsity"]))
    figure.suptitle(f"{_METRICS.get(name, name).split(' (')[0]} on the evaluation set: {_run(summary)}", fontsize=13)
    _legend(figure, by_epoch, columns=3)


def _importance(figure, columns, summary) -> None:
    axes = figure.add_subplot()
    # An epoch's importances are measured before its pruning, at the sparsity that the epoch before it left.
    during = [0.0, *columns["sparsity"][:-1]]
    _line(axes, during, columns["mean_reward"], _BLUE, "mean over the epoch's exploration passes")
    points = list(zip(columns["epoch"], during, columns["mean_reward"], strict=True))
    measured = [point for point in points if math.isfinite(point[2])]
    for epoch, x, y in {measured[0], measured[-1]}:
        axes.annotate(
            f"epoch {epoch:.0f}", (x, y), xytext=(7, 7), textcoords="offset points", fontsize=9, color="#555555"
        )
    axes.axhline(0, color="#333333", linestyle="--", linewidth=1.3, label="0: the closed weights made no difference")
    axes.set_ylabel("Rise of the loss when a random sample\nof the open weights is closed")
    axes.set_title(f"Importance of the weights still open: {_run(summary)}")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)
    axes.margins(y=0.15)
    _sparsity_axis(axes, _finite(during))
    axes.set_xlabel("Sparsity during the epoch (% of prunable weights removed)")
    _legend(figure, axes, columns=2)

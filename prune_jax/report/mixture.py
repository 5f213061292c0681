"""The pictures of a retraining under a mixture prior, drawn from the run's records (prune_jax.report.records)."""

import io
from pathlib import Path

import numpy as np

from prune_jax import files
from prune_jax.report.plots import BLUE, GREY, ORANGE, STYLE, epoch_axis, run_label
from prune_jax.report.records import read_records

_FIELDS = {"weights", "proportions", "means", "deviations"}
_FRAMES = 30  # the most frames of the animation
_POINTS = 4000  # the most points of a scatter: more hide each other


def draw(workdir, summary: dict) -> list[Path]:
    """Draws workdir/plots/{weights,start_end,mixture}.png and retraining.gif.

    Args:
      workdir: holds the records of the epochs, and of the quantised network.
      summary: as in plots.draw.
    Returns:
      The paths of the files; none for a run without records of a mixture. The same records give the same bytes.
    """
    epochs, quantised = read_records(workdir)
    if len(epochs) < 2 or quantised is None or not quantised.keys() >= _FIELDS:
        return []
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, last = epochs[min(epochs)], epochs[max(epochs)]
    folder = Path(workdir) / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "weights": ((13, 7.5), lambda figure: _weights(figure, first, last, quantised, summary)),
        "start_end": ((8.5, 7.5), lambda figure: _start_end(figure, first, last, summary)),
        "mixture": ((12, 5.2), lambda figure: _mixture(figure, epochs, summary)),
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for name, (size, drawing) in drawings.items():
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            drawing(figure)
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120, metadata={"Software": None})
        figure = Figure(figsize=(8, 5.4))
        FigureCanvasAgg(figure)
        written.append(folder / "retraining.gif")
        files.write_bytes(written[-1], _animation(figure, epochs, summary))
    return written


def _limit(*records) -> float:
    """The largest absolute weight, with a margin, for the symmetric axes of the pictures."""
    return 1.05 * max(float(np.abs(record["weights"]).max()) for record in records) or 1.0


def _share(weights):
    """Weights of a histogram whose bars are percentages."""
    return np.full(weights.size, 100 / weights.size)


def _weights(figure, first, last, quantised, summary) -> None:
    limit = _limit(first, last)
    bins = np.linspace(-limit, limit, 202)  # an odd number of bins: one has its middle at 0
    stages = {"Before: the trained network": first, "After the retraining": last, "After quantising": quantised}
    panels = figure.subplots(2, len(stages), sharex=True)
    for column, (title, record) in zip(panels.T, stages.items(), strict=True):
        weights = record["weights"]
        for axes in column:
            if record is quantised:
                values, counts = np.unique(weights, return_counts=True)
                axes.vlines(values, 0, 100 * counts / weights.size, color=ORANGE, linewidth=2)
                axes.plot(values, 100 * counts / weights.size, "o", color=ORANGE)
            else:
                axes.hist(weights, bins, weights=_share(weights), color=BLUE)
        zeros = 100 * np.mean(weights == 0)
        column[0].set_title(f"{title}\n{zeros:.1f}% are exactly 0" if zeros else f"{title}\nnone is exactly 0")
        column[1].set_yscale("log")
        column[1].set_xlabel("Weight")
    for axes in panels[1]:
        axes.set_ylim(50 / first["weights"].size, 150)  # half a weight to all: the same for the three
    panels[0, 0].set_xlim(-limit, limit)
    panels[0, 0].locator_params(axis="x", nbins=5)  # a transformer's weights take long tick labels
    panels[0, 0].set_ylabel("Share of the weights (%)")
    panels[1, 0].set_ylabel("Share of the weights (%, log scale)")
    figure.suptitle(f"The weights before and after: {run_label(summary)}", fontsize=13)


def _means(axes, record, across: bool) -> None:
    """Draws a line at each component's mean, with a band of two standard deviations on either side."""
    band, line = (axes.axhspan, axes.axhline) if across else (axes.axvspan, axes.axvline)
    for i, (mean, deviation) in enumerate(zip(record["means"], record["deviations"], strict=True)):
        label = {} if i else {"label": "a mean ± 2 standard deviations"}
        band(mean - 2 * deviation, mean + 2 * deviation, color=ORANGE, alpha=0.15, linewidth=0, **label)
        line(mean, color=ORANGE, linewidth=0.8)


def _diagonal(axes, limit: float) -> None:
    label = "did not move"
    axes.plot([-limit, limit], [-limit, limit], color=GREY, linestyle="--", linewidth=1.2, label=label)


def _start_end(figure, first, last, summary) -> None:
    x_limit, y_limit = _limit(first), _limit(last)
    panels = figure.subplots(2, 2, width_ratios=(4, 1), height_ratios=(1, 4), sharex="col", sharey="row")
    (above, corner), (axes, beside) = panels
    corner.set_visible(False)
    _means(axes, last, across=True)
    _diagonal(axes, max(x_limit, y_limit))
    some = slice(_POINTS)
    axes.plot(first["weights"][some], last["weights"][some], ".", color=BLUE, markersize=3, alpha=0.5, label="a weight")
    for panel, record, limit, side in ((above, first, x_limit, "vertical"), (beside, last, y_limit, "horizontal")):
        weights = record["weights"]
        bins = np.linspace(-limit, limit, 102)
        panel.hist(weights, bins, weights=_share(weights), color=BLUE, orientation=side, log=True)
    above.set_ylabel("% (log scale)")
    beside.set_xlabel("% (log scale)")
    axes.set_xlim(-x_limit, x_limit)
    axes.set_ylim(-y_limit, y_limit)
    axes.set_xlabel("Weight before the retraining")
    axes.set_ylabel("Weight after the retraining")
    figure.suptitle(f"Where the weights went: {run_label(summary)}", fontsize=13)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _mixture(figure, epochs, summary) -> None:
    import matplotlib

    places, shares = figure.subplots(1, 2)
    x = list(epochs)
    means, deviations, proportions = (
        np.stack([record[name] for record in epochs.values()]) for name in ("means", "deviations", "proportions")
    )
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, means.shape[1] - 1))
    by_start = np.argsort(np.argsort(means[0, 1:]))  # a component's colour says where it began
    for j in range(means.shape[1]):
        color = "black" if j == 0 else colors[by_start[j - 1]]
        label = {0: "the component at 0", 1: "the others, coloured by their first mean"}.get(j)
        low, high = means[:, j] - deviations[:, j], means[:, j] + deviations[:, j]
        places.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        places.plot(x, means[:, j], color=color, label=label)
        shares.plot(x, 100 * proportions[:, j], color=color)
    places.set_title("Means, each with a band of one standard deviation")
    places.set_ylabel("Weight")
    shares.set_title("Mixing proportions")
    shares.set_ylabel("Proportion (%, log scale)")
    shares.set_yscale("log")
    shares.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in (places, shares):
        epoch_axis(axes, x)
    figure.suptitle(f"The mixture while the network is retrained: {run_label(summary)}", fontsize=13)
    figure.legend(*places.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _animation(figure, epochs, summary) -> bytes:
    """A GIF with one frame per epoch, or per few epochs, whose last frame stays for two seconds.

    It is made by Pillow, as matplotlib's PillowWriter does it, but in memory: a half-written file is no picture.
    """
    from PIL import Image

    numbers = list(epochs)
    numbers = [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, _FRAMES).round().astype(int))]
    first = epochs[numbers[0]]
    x_limit, y_limit = _limit(first), _limit(*epochs.values())
    bins = np.linspace(-y_limit, y_limit, 102)
    start, some = first["weights"][:_POINTS], slice(_POINTS)
    frames = []
    for number in numbers:
        record = epochs[number]
        figure.clear()
        axes, beside = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
        figure.subplots_adjust(left=0.09, right=0.97, bottom=0.1, top=0.9, wspace=0.05)
        _means(axes, record, across=True)
        _diagonal(axes, max(x_limit, y_limit))
        axes.plot(start, record["weights"][some], ".", color=BLUE, markersize=3, alpha=0.5)
        axes.set_xlim(-x_limit, x_limit)
        axes.set_ylim(-y_limit, y_limit)
        axes.set_xlabel("Weight before the retraining")
        axes.set_ylabel("Weight now (orange: means ± 2 standard deviations)")
        weights = record["weights"]
        beside.hist(weights, bins, weights=_share(weights), color=BLUE, orientation="horizontal", log=True)
        beside.set_xlim(50 / weights.size, 100)
        beside.set_xlabel("% (log scale)")
        figure.suptitle(f"Epoch {number} of {numbers[-1]}: {run_label(summary)}", fontsize=12)
        figure.set_dpi(80)
        figure.canvas.draw()
        frame = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
        frames.append(frame.quantize(32, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    durations = [120] * (len(frames) - 1) + [2000]  # milliseconds
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()

"""The heat map of a sensitivity analysis, and its table."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.report.plots import STYLE

Found = Mapping[str, Sequence[float]]  # of each part, the metric at each level


def write_csv(path: Path, metric: str, before: float, levels: Sequence[float], found: Found) -> None:
    """Writes a row per part and level: part, closed, the metric, and its change from `before`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("part", "closed", metric, "change"))
    writer.writerow(("", 0, before, 0))
    for part, values in found.items():
        writer.writerows((part, level, value, value - before) for level, value in zip(levels, values, strict=True))
    files.write_text(path, text.getvalue())


def draw(path: Path, title: str, metric: str, before: float, levels: Sequence[float], found: Found) -> None:
    """Draws a row per part and a column per level: the change of the metric, the number in each cell."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    changes = [[value - before for value in values] for values in found.values()]
    rises = config_lib.better(metric, 0, 1)  # what does harm: a perplexity rises where an accuracy falls
    harms = [change if rises else -change for row in changes for change in row]
    worst = max((harm for harm in harms if 0 < harm < math.inf), default=1.0)
    places = 0 if worst >= 100 else max(3, 1 - math.floor(math.log10(worst)))
    colors, low, high = ("Oranges", 0.0, worst) if rises else ("Oranges_r", -worst, 0.0)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(4.5 + 1.1 * len(levels), 2.2 + 0.32 * len(found)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        image = axes.imshow(changes, cmap=colors, vmin=low, vmax=high, aspect="auto")
        for i, row in enumerate(changes):
            for j, change in enumerate(row):
                color = "white" if (change if rises else -change) > 0.6 * worst else "black"
                axes.text(j, i, f"{change:+.{places}f}", ha="center", va="center", fontsize=9, color=color)
        axes.set_xticks(range(len(levels)), [f"{100 * level:g}%" for level in levels])
        axes.set_yticks(range(len(found)), list(found), fontsize=9)
        axes.set_xlabel("Closed share of the part alone, the smallest magnitudes")
        axes.set_title(title)
        figure.colorbar(image, label=f"Change of {metric},\nwhole: {before:.4f}", shrink=0.9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})

"""The README's picture: accuracy against sparsity of a few methods, LeNet-300-100 on MNIST.

    python -m benchmarks.plot_readme [--out=docs/accuracy_vs_sparsity.png]

Reads benchmarks/results/credit_mnist.jsonl, the rows of docs/results/spt_credit.md. A line is the mean of three seeds,
its band one standard deviation to each side. The axis is logarithmic in the share of the weights that are left, since
going from 97 to 99 % takes away two thirds of them.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "credit_mnist.jsonl"
LEVELS = (50, 90, 97, 99)  # percent
TICKS = ("50 % closed\n1 in 2 left", "90 %\n1 in 10", "97 %\n1 in 33", "99 %\n1 in 100")
INK, PALE, FLOOR = "#222222", "#8a8a8a", 91.0  # the axis starts at FLOOR: what falls below leaves the picture
RIGHT = {  # variant: (label, colour, height of the label), labelled at the right end of its line
    "regrow_global": ("movement, gates may reopen", "#0072b2", 97.46),
    "movement_soft": ("soft movement", "#d55e00", 96.1),
    "control_variate_absolute": ("sensitivity-like SPT (spt_best)", "#009e73", 95.6),
    "magnitude_global": ("global magnitude", INK, 95.1),
}
FALLING = {  # variant: (label, colour, place of the label: percent left, accuracy; alignment)
    "literal": ("SPT as specified", "#b8579a", (5.6, 93.4), "left"),
    "random": ("random choice", PALE, (8.5, 92.9), "right"),
}


def statistics_of(lines, variant: str) -> tuple[list[float], list[float]]:
    """The mean accuracy and its standard deviation over the seeds, in percent, at each of LEVELS."""
    by_level = [[100 * row["metrics"][str(level)] for row in lines if row["variant"] == variant] for level in LEVELS]
    return [statistics.mean(values) for values in by_level], [statistics.stdev(values) for values in by_level]


def draw(lines):
    """The figure.

    Args:
      lines: the rows of benchmarks/results/credit_mnist.jsonl, as dicts.
    """
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10.5, "text.color": INK})
    figure, axes = plt.subplots(figsize=(9.6, 4.9), dpi=200)
    figure.subplots_adjust(left=0.065, right=0.635, top=0.82, bottom=0.115)
    left = [100 - level for level in LEVELS]
    for variant, (_, colour, *_) in {**FALLING, **RIGHT}.items():
        mean, spread = statistics_of(lines, variant)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(left, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(left, mean, color=colour, linewidth=2.2, marker="o", markersize=4.5, solid_capstyle="round")
    for variant, (label, colour, height) in RIGHT.items():
        end = statistics_of(lines, variant)[0][-1]
        axes.plot([0.965, 0.85], [end, height], color=colour, linewidth=0.8, clip_on=False)
        axes.text(0.83, height, f"{end:.1f} %  {label}", color=colour, va="center")
    for variant, (label, colour, place, side) in FALLING.items():
        end = statistics_of(lines, variant)[0][-1]
        axes.text(*place, f"{label},\n{end:.0f} % at 1 in 100", color=colour, ha=side, va="center", linespacing=1.3)
    dense = 100 * statistics.mean({row["seed"]: row["dense"] for row in lines}.values())
    axes.axhline(dense, color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.text(0.83, dense + 0.05, f"{dense:.1f} %  dense", color="#777777", va="center")

    axes.set_xscale("log")
    axes.set_xlim(62, 0.93)
    axes.set_xticks(left, TICKS)
    axes.set_xticks([], minor=True)
    axes.set_ylim(FLOOR, 98.6)
    axes.set_yticks(range(92, 99, 2), [f"{tick} %" for tick in range(92, 99, 2)])
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    best = max(statistics_of(lines, variant)[0][-1] for variant in RIGHT)
    title = f"LeNet-300-100 with one weight in a hundred: {best:.1f} % on MNIST"
    figure.text(0.022, 0.94, title, fontsize=13.5, fontweight="bold", va="center")
    subtitle = "Test accuracy as weights are closed. Mean of three seeds; the bands are one standard deviation."
    figure.text(0.022, 0.88, subtitle, fontsize=9.5, color="#555555", va="center")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy_vs_sparsity.png")
    args = parser.parse_args()
    figure = draw([json.loads(line) for line in RESULTS.read_text().splitlines()])
    figure.savefig(args.out, metadata={"Software": None})
    plt.close(figure)
    print(args.out)


if __name__ == "__main__":
    main()

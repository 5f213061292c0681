"""The output of a run: the console and its log, the numbers of each epoch, the plots, and comparisons of runs."""

from pathlib import Path

from prune_jax.report import mixture, plots
from prune_jax.report.console import Console, Silence
from prune_jax.report.metrics import MetricsWriter, NoWriter, read_layers, read_metrics
from prune_jax.report.records import read_records, write_record
from prune_jax.report.sinks import RunInfo

__all__ = [
    "Console",
    "MetricsWriter",
    "NoWriter",
    "RunInfo",
    "Silence",
    "draw",
    "read_layers",
    "read_metrics",
    "read_records",
    "write_record",
]


def draw(workdir, summary: dict) -> list[Path]:
    """Draws a run's pictures into workdir/plots/, and returns their paths. See plots.draw and mixture.draw."""
    return [*plots.draw(workdir, summary), *mixture.draw(workdir, summary)]

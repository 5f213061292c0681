"""What a run says: the console and its log, the numbers of each epoch, the plots."""

from pathlib import Path

from prune_jax.report import mixture, plots
from prune_jax.report.console import Console
from prune_jax.report.metrics import MetricsWriter, read_layers, read_metrics
from prune_jax.report.records import read_records, write_record

__all__ = ["Console", "MetricsWriter", "draw", "read_layers", "read_metrics", "read_records", "write_record"]


def draw(workdir, summary: dict) -> list[Path]:
    """Draws a run's pictures, workdir/plots/*; returns the files written. See plots.draw and mixture.draw."""
    return [*plots.draw(workdir, summary), *mixture.draw(workdir, summary)]

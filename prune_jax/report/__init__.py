"""What a run says: the console and its log, the numbers of each epoch, the plots."""

from prune_jax.report.console import Console
from prune_jax.report.metrics import MetricsWriter, read_layers, read_metrics
from prune_jax.report.plots import draw

__all__ = ["Console", "MetricsWriter", "draw", "read_layers", "read_metrics"]

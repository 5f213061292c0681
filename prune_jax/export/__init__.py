"""Networks in the forms of other tools: checkpoints of transformers, read and written, and StableHLO files."""

from prune_jax.export.stablehlo import load

__all__ = ["load"]

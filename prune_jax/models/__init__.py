"""Networks whose dense kernels carry gates."""

from prune_jax.models.bert import Bert, BertConfig
from prune_jax.models.gated import GatedDense

__all__ = ["Bert", "BertConfig", "GatedDense"]

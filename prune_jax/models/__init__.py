"""Networks whose kernels carry gates.

What train.py asks of one: `inputs` (the names of a batch's entries that it reads, in order), `example_inputs()`,
`regression` (whether its one output is a score), and __call__(*inputs, deterministic=True) -> (batch, num_labels)
float32 logits.
"""

import jax.numpy as jnp

from prune_jax.models import lenet
from prune_jax.models.bert import Bert, BertConfig
from prune_jax.models.gated import GatedConv, GatedDense

__all__ = ["Bert", "BertConfig", "GatedConv", "GatedDense", "create"]


def _bert(config, task, vocab_size: int) -> Bert:
    cfg = config.model
    return Bert(
        BertConfig(
            vocab_size=vocab_size,
            num_layers=cfg.num_layers,
            d_model=cfg.d_model,
            num_heads=cfg.num_heads,
            d_ff=cfg.d_ff,
            num_labels=task.num_labels,
            regression=task.is_regression,
            max_positions=cfg.max_positions,
            type_vocab_size=cfg.type_vocab_size,
            dropout=cfg.dropout,
            layer_norm_eps=cfg.layer_norm_eps,
            activation=cfg.activation,
            layer_heads=cfg.layer_heads or (),
            layer_ffn=cfg.layer_ffn or (),
            pooler_width=cfg.pooler_width,
            dtype=jnp.dtype(cfg.dtype),
        )
    )


MAKERS = {"bert": _bert} | {name: lenet.maker(name) for name in lenet.GEOMETRIES}  # those of prune_jax.keys.MODELS


def create(config, task, vocab_size: int | None):
    """The network that a resolved config and the task's labels describe; vocab_size is None for images."""
    return MAKERS[config.model.name](config, task, vocab_size)

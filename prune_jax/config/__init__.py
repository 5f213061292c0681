"""What an experiment's config means: its defaults, what is allowed, and the values that follow others."""

from prune_jax.config.keys import belongs, matters
from prune_jax.config.resolve import model_label, pretraining, resolve, structure
from prune_jax.config.tree import completed, default, from_json, leaves, to_json
from prune_jax.config.values import unknown_key_message
from prune_jax.data.glue import best, better

__all__ = [
    "belongs",
    "best",
    "better",
    "completed",
    "default",
    "from_json",
    "leaves",
    "matters",
    "model_label",
    "pretraining",
    "resolve",
    "structure",
    "to_json",
    "unknown_key_message",
]

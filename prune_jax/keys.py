"""The keys of a config in tables: what a model size decides, which values are allowed. Nothing heavy is imported."""

import math
from typing import NamedTuple

from prune_jax.methods import REGISTRY


class Size(NamedTuple):
    """What depends on the size of the model. steps: percent closed, one an epoch."""

    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    epsilon: float
    frequency: int
    steps: tuple[float, ...]


_TINY = (10, 25, 50, 70, 75, 80, 84, 88, 90, 92, 93, 94, 95, 96, 97, 97.5, 98, 98.5, 99, 99.5)
_SMALL = (6, 18, 32, 45, 55, 65, 72, 78, 82, 85, 88, 90, 92, 94, 95, 96, 97, 98, 98.5, 99)
_BASE = (3, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 88, 90, 92, 94, 95, 96, 97, 98, 99)
_LARGE = (2, 8, 15, 25, 35, 45, 55, 65, 70, 75, 80, 85, 88, 90, 92, 94, 95, 96, 97, 98)

SIZES = {
    "tiny": Size(2, 256, 4, 512, 0.01, 100, _TINY),
    "small": Size(6, 512, 8, 1024, 0.005, 200, _SMALL),
    "base": Size(12, 768, 12, 3072, 0.0025, 400, _BASE),
    "large": Size(24, 1024, 16, 4096, 0.001, 800, _LARGE),
}

# Of spt.epsilon with spt.credit=layer, which closes a layer's smallest weights: a percent of them weighs nothing that
# can be measured (benchmarks/credit.py).
LAYER_EPSILON = 0.3

MODELS = {  # model.name: what it reads
    "bert": "text",
    "lenet_300_100": "images",
    "lenet5_caffe": "images",
    "tutorial": "images",
}

FOLLOWS_SIZE = {  # key: field of Size
    "model.num_layers": "num_layers",
    "model.d_model": "d_model",
    "model.num_heads": "num_heads",
    "model.d_ff": "d_ff",
    "spt.epsilon": "epsilon",
    "movement.frequency": "frequency",
    "pruning.sparsity_steps": "steps",
}

FOLLOWS_CHECKPOINT = (  # keys of config.model that a network brings with it
    "num_layers",
    "d_model",
    "num_heads",
    "d_ff",
    "vocab_size",
    "max_positions",
    "type_vocab_size",
    "activation",
    "layer_norm_eps",
    "layer_heads",
    "layer_ffn",
    "pooler_width",
)

OTHERWISE = {  # BERT's own, where neither the user nor a checkpoint says
    "model.max_positions": 512,
    "model.type_vocab_size": 2,
    "model.activation": "gelu",
    "model.layer_norm_eps": 1e-12,
}

ACTIVATIONS = (  # of prune_jax.models.bert, which jax is not loaded for here
    "gelu",
    "gelu_python",
    "gelu_new",
    "gelu_fast",
    "gelu_accurate",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
)

CHOICES = {
    "model.name": tuple(MODELS),
    "model.init_checkpoint": ("best", "last", "quantised"),
    "model.size": tuple(SIZES),
    "distill.checkpoint": ("best", "last", "quantised"),
    "model.dtype": ("float32", "bfloat16"),
    "model.activation": ACTIVATIONS,
    "data.source": ("hub", "tsv", "idx", "builtin", "auto"),
    "data.bad_rows": ("error", "skip"),
    "train.lr_schedule": ("constant", "linear", "cosine"),
    "pruning.method": tuple(REGISTRY),
    "pruning.schedule": ("step", "linear"),
    "pruning.scope": ("local", "global"),
    "spt.credit": ("weight", "layer", "group"),
    "spt.inside": ("magnitude", "movement"),
    "spt.candidates": ("uniform", "threshold"),
    "movement.threshold": ("hard", "soft"),
    "movement.scores": ("sum", "adam"),
}

FOLDERS = {"tsv": "the GLUE folder", "idx": "the folder of MNIST's IDX files"}  # data.source: what data.dir is

RANGES = {  # key: (least, most, whether the bounds themselves are allowed)
    "model.num_layers": (1, 1000, True),
    "model.d_model": (1, 100_000, True),
    "model.num_heads": (1, 10_000, True),
    "model.d_ff": (1, 1_000_000, True),
    "model.pooler_width": (0, 100_000, True),
    "model.vocab_size": (1, 10_000_000, True),
    "model.max_positions": (1, 1_000_000, True),
    "model.type_vocab_size": (1, 1000, True),
    "model.layer_norm_eps": (0, 1, False),
    "model.dropout": (0, 0.99, True),
    "data.max_len": (8, 1_000_000, True),
    "data.builtin_train_size": (1, 10_000_000, True),
    "data.builtin_eval_size": (1, 10_000_000, True),
    "data.builtin_seed": (0, 2**32 - 1, True),
    "data.holdout": (0, math.inf, True),
    "data.max_train_examples": (0, math.inf, True),
    "train.epochs": (1, 1_000_000, True),
    "train.batch_size": (1, 10_000_000, True),
    "train.eval_batch_size": (1, 10_000_000, True),
    "train.learning_rate": (0, 1000, False),
    "train.warmup_fraction": (0, 1, True),
    "train.weight_decay": (0, 1000, True),
    "train.clip_norm": (0, math.inf, True),
    "train.seed": (0, 2**32 - 1, True),
    "train.checkpoint_every": (0, math.inf, True),
    "pretrain.epochs": (0, 1_000_000, True),
    "pretrain.learning_rate": (0, 1000, False),
    "distill.temperature": (0, 1000, False),
    "distill.weight": (0, 1, True),
    "distill.hidden_weight": (0, math.inf, True),
    "distill.attention_weight": (0, math.inf, True),
    "pruning.start_epoch": (0, math.inf, True),
    "pruning.end_epoch": (0, math.inf, True),
    "spt.epsilon": (0, 1, False),
    "spt.reward_alpha": (0, 1, True),
    "spt.explorations": (1, 10_000, True),
    "spt.chunk": (1, 10_000, True),
    "movement.frequency": (1, math.inf, True),
    "movement.tau": (0, 1, False),
    "movement.score_learning_rate": (0, 1000, True),
    "movement.penalty": (0, math.inf, True),
    "sws.components": (2, 256, True),
    "sws.pi0": (0, 1, False),
    "sws.pi0_alpha": (1, math.inf, True),
    "sws.pi0_beta": (1, math.inf, True),
    "sws.tau": (0, math.inf, True),
    "sws.tau_anneal": (0, 1, True),
    "sws.mean_range": (0, math.inf, False),
    "sws.deviation": (0, math.inf, False),
    "sws.zero_alpha": (1, math.inf, True),
    "sws.zero_beta": (0, math.inf, True),
    "sws.alpha": (1, math.inf, True),
    "sws.beta": (0, math.inf, True),
    "sws.means_learning_rate": (0, 1000, True),
    "sws.gammas_learning_rate": (0, 1000, True),
    "sws.rhos_learning_rate": (0, 1000, True),
    "sws.merge_kl": (0, math.inf, True),
}

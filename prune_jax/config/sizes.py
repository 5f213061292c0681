"""The sizes of a model: the presets of its geometry, and what else depends on the size."""

from typing import NamedTuple


class Size(NamedTuple):
    """What depends on the size of the model. steps: percent closed, one per epoch."""

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

FOLLOWS_SIZE = {  # key: field of Size, where neither the user nor init_from says
    "model.num_layers": "num_layers",
    "model.d_model": "d_model",
    "model.num_heads": "num_heads",
    "model.d_ff": "d_ff",
    "spt.epsilon": "epsilon",
    "movement.frequency": "frequency",
    "pruning.sparsity_steps": "steps",
}

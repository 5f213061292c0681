"""Pruning from calibration data, without training.

The room has the name of its function, and whoever imports a file of it first puts the room in the function's place in
prune_jax. So the room can be called, too.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from prune_jax.oneshot.prune import oneshot

        return oneshot(*args, **options)


sys.modules[__name__].__class__ = _Room

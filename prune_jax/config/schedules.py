"""Sparsity as a function of the epochs completed, the learning rate as a function of the step: plain Python numbers."""

import math
from collections.abc import Callable, Sequence

from prune_jax import methods
from prune_jax.pruning import structure as structure_lib

SHAPES: dict[
    str, Callable[[float], float]
] = {  # what is left of the way from `start` to `end`, of what is left of time
    "linear": lambda left: left,
    "cubic": lambda left: left**3,
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
}


def linear(start: float, end: float, start_epoch: int, end_epoch: int, shape: str = "linear") -> Callable[[int], float]:
    """Makes the schedule that is 0 before start_epoch, then rises in a line from `start` to `end` at end_epoch.

    With start_epoch == end_epoch the target jumps to `end`. A schedule takes the number of epochs completed. `shape`, a
    key of SHAPES, bends the line.

    Example:
      >>> target = linear(0.2, 0.8, start_epoch=1, end_epoch=3)
      >>> [target(epochs) for epochs in range(5)]
      [0.0, 0.2, 0.5, 0.8, 0.8]
    """

    def target(completed: int) -> float:
        if completed < start_epoch:
            return 0.0
        if completed >= end_epoch:
            return float(end)
        if shape == "linear":
            return start + (end - start) * (completed - start_epoch) / (end_epoch - start_epoch)
        return end + (start - end) * SHAPES[shape](1 - (completed - start_epoch) / (end_epoch - start_epoch))

    return target


def steps(values: Sequence[float], start_epoch: int) -> Callable[[int], float]:
    """Makes the schedule that is values[i] once start_epoch + i + 1 epochs are completed, 0 before them.

    The last value holds on.

    Example:
      >>> target = steps([0.5, 0.9], start_epoch=1)
      >>> [target(epochs) for epochs in range(5)]
      [0.0, 0.0, 0.5, 0.9, 0.9]
    """

    def target(completed: int) -> float:
        i = completed - start_epoch - 1
        return 0.0 if i < 0 else float(values[min(i, len(values) - 1)])

    return target


def sparsity_schedule(config) -> Callable[[int], float]:
    """Makes a resolved config's schedule: (epochs completed) -> the closed fraction, 0 to 1, after their pruning."""
    cfg = config.pruning
    if cfg.method in methods.ONESHOT:
        parsed = structure_lib.parse(cfg.structure)
        share = 1 - parsed.sizes[0] / parsed.sizes[1] if parsed.kind == "n:m" else config.oneshot.sparsity
        return lambda completed: share
    if not methods.scheduled(cfg.method):
        return lambda completed: 0.0
    if cfg.schedule == "one_shot":
        return steps([cfg.end_sparsity], cfg.start_epoch - 1)
    if cfg.schedule in SHAPES:
        return linear(cfg.start_sparsity, cfg.end_sparsity, cfg.start_epoch, cfg.end_epoch, cfg.schedule)
    values = [min(max(value, cfg.start_sparsity), cfg.end_sparsity) for value in cfg.sparsity_steps]
    return steps([cfg.start_sparsity, *values], cfg.start_epoch - 1)  # as linear does: start_sparsity at start_epoch


def learning_rate(config, total_steps: int) -> Callable[[int], float]:
    """Makes a resolved config's learning rate: (step, from 0) -> the rate.

    It warms up on a straight line over warmup_fraction of all steps, then follows train.lr_schedule. With
    train.rewind_epochs both take that many epochs, and start again.

    Args:
      total_steps: of all epochs; train.max_steps cuts them.
    """
    cfg = config.train
    if cfg.rewind_epochs:
        total_steps = total_steps // max(cfg.epochs, 1) * cfg.rewind_epochs
    elif cfg.max_steps:
        total_steps = min(total_steps, cfg.max_steps)
    warmup = round(cfg.warmup_fraction * total_steps)

    def rate(step: int) -> float:
        if cfg.rewind_epochs:
            step %= total_steps
        if step < warmup:
            return cfg.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, total_steps - warmup)
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[cfg.lr_schedule]
        return cfg.learning_rate * factor

    return rate

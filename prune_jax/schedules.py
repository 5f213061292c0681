"""Sparsity as a function of the epochs completed, the learning rate as a function of the step: plain Python numbers."""

import math
from collections.abc import Callable, Sequence

from prune_jax.methods import UNSCHEDULED


def linear(start: float, end: float, start_epoch: int, end_epoch: int) -> Callable[[int], float]:
    """0 before start_epoch epochs are completed, `start` there, `end` from end_epoch on, a straight line between.

    With start_epoch == end_epoch the target jumps to `end`.
    """

    def target(completed: int) -> float:
        if completed < start_epoch:
            return 0.0
        if completed >= end_epoch:
            return float(end)
        return start + (end - start) * (completed - start_epoch) / (end_epoch - start_epoch)

    return target


def steps(values: Sequence[float], start_epoch: int) -> Callable[[int], float]:
    """values[i] once start_epoch + i + 1 epochs are completed, 0 before, the last value from its epoch on."""

    def target(completed: int) -> float:
        i = completed - start_epoch - 1
        return 0.0 if i < 0 else float(values[min(i, len(values) - 1)])

    return target


def sparsity_schedule(config) -> Callable[[int], float]:
    """(epochs completed, from 0) -> the closed fraction, 0 to 1, after the pruning that ends that epoch."""
    cfg = config.pruning
    if cfg.method in UNSCHEDULED:
        return lambda completed: 0.0
    if cfg.schedule == "linear":
        return linear(cfg.start_sparsity, cfg.end_sparsity, cfg.start_epoch, cfg.end_epoch)
    values = [min(max(value, cfg.start_sparsity), cfg.end_sparsity) for value in cfg.sparsity_steps]
    return steps([cfg.start_sparsity, *values], cfg.start_epoch - 1)  # as linear does: start_sparsity at start_epoch


def learning_rate(config, total_steps: int) -> Callable[[int], float]:
    """(step, from 0) -> the rate: a linear warm-up over warmup_fraction of all steps, then the chosen schedule."""
    cfg = config.train
    warmup = round(cfg.warmup_fraction * total_steps)

    def rate(step: int) -> float:
        if step < warmup:
            return cfg.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, total_steps - warmup)
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[cfg.lr_schedule]
        return cfg.learning_rate * factor

    return rate

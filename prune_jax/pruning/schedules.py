"""Sparsity as a function of the steps taken: when gates are updated, and to which closed fraction.

A schedule is evaluated inside jit, for a () int32 count, or outside, for a plain number. Counts are of completed steps:
an event at 1,000 is over once the 1,000th update has been applied.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def _numpy(count: Any) -> Any:
    """The array library for a count: float64 of NumPy for a plain number, float32 of jax inside jit."""
    return jnp if isinstance(count, jax.Array) else np


class Schedule(NamedTuple):
    """A sparsity schedule; call it with a count for the target.

    Attributes:
      target: (count) -> the closed fraction to be reached by then, 0 to 1.
      due: (count) -> whether gates are updated right after the step of this count.
      final: the target that it ends at.
    """

    target: Callable[[Any], Any]
    due: Callable[[Any], Any]
    final: float

    def __call__(self, count: Any) -> Any:
        target = self.target(count)
        return target if isinstance(count, jax.Array | np.ndarray) else float(target)


def _check(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; allowed: a number from {least:g} to {most:g}")


def _check_count(name: str, value: float, least: float) -> None:
    """As _check, for a number of steps: 1e3 is one, 0.5 and infinity are not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= value < math.inf or value % 1:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number from {least:g}")


def _window(sparsity: float, initial: float, begin: int, end: int, every: int) -> Callable[[Any], Any]:
    """The due function of an even window, after a check of its numbers."""
    _check("sparsity", sparsity, 0, 1)
    _check("initial", initial, 0, sparsity)
    _check_count("begin", begin, 0)
    _check_count("end", end, begin)
    _check_count("every", every, 1)

    def due(count: Any) -> Any:
        inside = (count >= max(begin, 1)) & (count <= end)
        return inside & (((count - begin) % every == 0) | (count == end))

    return due


def cubic(sparsity: float, begin: int = 0, end: int = 1, every: int = 1, initial: float = 0.0) -> Schedule:
    """From `initial` at `begin` to `sparsity` at `end`, fast at first and slower as weights get scarce.

    s_t = s_f + (s_i - s_f) * (1 - (t - begin) / (end - begin))^3 (Zhu and Gupta, 2017, arXiv:1710.01878).

    Args:
      sparsity, initial: closed fractions, 0 to 1.
      begin, end: counts of steps; the last update of the gates is at `end`.
      every: steps between updates.
    Example:
      >>> schedule = cubic(0.9, begin=1_000, end=10_000, every=100)
      >>> round(schedule(1_000), 2), round(schedule(5_500), 2), schedule(10_000)
      (0.0, 0.79, 0.9)
    """
    return _ramp(sparsity, begin, end, every, initial, lambda left: left**3)


def linear(sparsity: float, begin: int = 0, end: int = 1, every: int = 1, initial: float = 0.0) -> Schedule:
    """From `initial` at `begin` to `sparsity` at `end` on a straight line; the arguments are those of cubic.

    Example:
      >>> linear(0.8, begin=0, end=100)(50)
      0.4
    """
    return _ramp(sparsity, begin, end, every, initial, lambda left: left)


def cosine(sparsity: float, begin: int = 0, end: int = 1, every: int = 1, initial: float = 0.0) -> Schedule:
    """From `initial` at `begin` to `sparsity` at `end`, slow at both ends; the arguments are those of cubic.

    Example:
      >>> round(cosine(0.8, begin=0, end=100)(25), 3)
      0.117
    """
    return _ramp(sparsity, begin, end, every, initial, lambda left: (1 - _numpy(left).cos(math.pi * left)) / 2)


def one_shot(sparsity: float, at: int = 1) -> Schedule:
    """All at once, right after the step of the count `at`.

    Example:
      >>> schedule = one_shot(0.9, at=1_000)
      >>> schedule(999), schedule(1_000)
      (0.0, 0.9)
    """
    return steps({at: sparsity})


def cyclic(
    sparsity: float, begin: int = 0, end: int = 1, every: int = 1, initial: float = 0.0, cycles: int = 2
) -> Schedule:
    """The course of cubic, `cycles` times over: the target falls back to `initial` where a cycle begins.

    Weights that a cycle has closed may come back in the next with a method that chooses among all gates anew, such as
    movement(regrow=True); the masks of others stay as they are until the target passes them (Srinivas et al., 2022,
    arXiv:2202.01290).

    Args:
      sparsity, begin, end, every, initial: as cubic's; each cycle ends at `sparsity`, the last of them at `end`.
      cycles: how many there are, of equal length.
    Example:
      >>> schedule = cyclic(0.8, begin=0, end=200, cycles=2)
      >>> schedule(99) > 0.79, round(schedule(100), 2), schedule(200)
      (True, 0.0, 0.8)
    """
    _check("cycles", cycles, 1, float("inf"))
    due = _window(sparsity, initial, begin, end, every)

    def target(count: Any) -> Any:
        xp = _numpy(count)
        done = xp.clip((count - begin) / max(end - begin, 1), 0.0, 1.0) * cycles
        ramp = sparsity + (initial - sparsity) * (1 - done % 1) ** 3
        return xp.where(count < begin, 0.0, xp.where(count >= end, sparsity, ramp))

    return Schedule(target, due, float(sparsity))


def _ramp(sparsity: float, begin: int, end: int, every: int, initial: float, shape: Callable[[Any], Any]) -> Schedule:
    due = _window(sparsity, initial, begin, end, every)

    def target(count: Any) -> Any:
        xp = _numpy(count)
        left = 1 - xp.clip((count - begin) / max(end - begin, 1), 0.0, 1.0)
        ramp = sparsity + (initial - sparsity) * shape(left)
        return xp.where(count < begin, 0.0, xp.where(count >= end, sparsity, ramp))

    return Schedule(target, due, float(sparsity))


def steps(targets: Mapping[int, float]) -> Schedule:
    """targets[t] from the count t on, 0 before the first.

    Args:
      targets: count of steps -> closed fraction; neither falls.
    Example:
      >>> schedule = steps({100: 0.5, 200: 0.9})
      >>> schedule(99), schedule(100), schedule(1_000)
      (0.0, 0.5, 0.9)
    """
    if not isinstance(targets, Mapping):
        raise ValueError(f"targets is {targets!r}; allowed: counts and their sparsities, such as {{1_000: 0.5}}")
    if not targets:
        raise ValueError("targets is {}; allowed: at least one count and its sparsity, such as {1_000: 0.5}")
    for count, sparsity in targets.items():
        _check_count("a count of targets", count, 0)
        _check(f"targets[{count}]", sparsity, 0, 1)
    counts = sorted(targets)
    values = [0.0, *(float(targets[count]) for count in counts)]
    if values != sorted(values):
        raise ValueError(f"targets is {dict(targets)}; allowed: sparsities that do not fall with the count")

    def target(count: Any) -> Any:
        xp, dtype = (jnp, jnp.float32) if isinstance(count, jax.Array) else (np, np.float64)
        return xp.array(values, dtype)[xp.searchsorted(xp.array(counts), count, side="right")]

    def due(count: Any) -> Any:
        xp = _numpy(count)
        return xp.isin(count, xp.array([max(at, 1) for at in counts]))

    return Schedule(target, due, values[-1])


def constant(sparsity: float, begin: int = 0) -> Schedule:
    """`sparsity` from the count `begin` on, in one update: pruning at once, or a network that is sparse from the start.

    Example:
      >>> constant(0.9)(0)
      0.9
    """
    _check_count("begin", begin, 0)
    _check("sparsity", sparsity, 0, 1)
    return steps({begin: sparsity})

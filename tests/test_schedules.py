"""The schedules against values worked out by hand from DESIGN.md."""

import math

import pytest

from configs import common
from prune_jax import schedules
from prune_jax.config import resolve
from prune_jax.keys import SIZES


def resolved(**values):
    config = common.get_config()
    config.data.source = "builtin"
    for key, value in values.items():
        room, name = key.split("__")
        config[room][name] = value
    return resolve(config, {})[0]


def test_linear():
    target = schedules.linear(0.2, 0.8, 4, 10)
    assert [target(t) for t in (0, 3, 4)] == [0, 0, 0.2]
    assert target(5) == pytest.approx(0.3) and target(7) == pytest.approx(0.5)
    assert [target(t) for t in (10, 11, 99)] == [0.8, 0.8, 0.8]


def test_linear_window_of_no_length_jumps():
    target = schedules.linear(0.2, 0.8, 4, 4)
    assert [target(t) for t in (3, 4, 5)] == [0, 0.8, 0.8]


def test_default_linear_window():
    target = schedules.sparsity_schedule(resolved(pruning__schedule="linear"))
    assert target(4) == 0 and target(23) == 1 and target(25) == 1
    assert target(13) == pytest.approx(9 / 19) and target(14) == pytest.approx(10 / 19)


def test_steps():
    target = schedules.steps((0.1, 0.25, 0.5), 4)
    assert [target(t) for t in (0, 4, 5, 6, 7, 8, 100)] == [0, 0, 0.1, 0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("size", "expected"),
    [  # epochs completed: closed
        ("tiny", {0: 0, 4: 0, 5: 0.10, 6: 0.25, 9: 0.75, 19: 0.97, 20: 0.975, 24: 0.995, 25: 0.995}),
        ("small", {4: 0, 9: 0.55}),
        ("base", {4: 0, 5: 0.03, 9: 0.40, 23: 0.98, 24: 0.99, 25: 0.99}),
        ("large", {4: 0, 5: 0.02, 9: 0.35, 24: 0.98, 25: 0.98}),
    ],
)
def test_step_schedule_of_each_size(size, expected):
    target = schedules.sparsity_schedule(resolved(model__size=size))
    assert {t: target(t) for t in expected} == pytest.approx(expected)


def test_small_lies_between_tiny_and_base():
    rows = list(zip(SIZES["base"].steps, SIZES["small"].steps, SIZES["tiny"].steps, strict=True))
    assert all(base <= small <= tiny for base, small, tiny in rows)


def test_steps_are_clipped_and_begin_at_start_sparsity():
    config = resolved(
        pruning__sparsity_steps=(10, 50, 90), pruning__start_sparsity=0.2, pruning__end_sparsity=0.7,
        pruning__start_epoch=2,
    )  # fmt: skip
    target = schedules.sparsity_schedule(config)
    assert [target(t) for t in range(7)] == pytest.approx([0, 0, 0.2, 0.2, 0.5, 0.7, 0.7])


def test_percentages_and_fractions_agree():
    percent, fraction = ((5, 12.5, 100), (0.05, 0.125, 1))
    targets = [schedules.sparsity_schedule(resolved(pruning__sparsity_steps=v)) for v in (percent, fraction)]
    assert [targets[0](t) for t in range(12)] == [targets[1](t) for t in range(12)]


@pytest.mark.parametrize("schedule", ["step", "linear"])
def test_baseline_is_never_pruned(schedule):
    target = schedules.sparsity_schedule(resolved(pruning__method="baseline", pruning__schedule=schedule))
    assert {target(t) for t in range(30)} == {0.0}


@pytest.mark.parametrize("schedule", ["step", "linear"])
@pytest.mark.parametrize("size", list(SIZES))
def test_targets_never_fall(size, schedule):
    target = schedules.sparsity_schedule(
        resolved(model__size=size, pruning__schedule=schedule, pruning__start_sparsity=0.05, pruning__start_epoch=0)
    )
    values = [target(t) for t in range(40)]
    assert values == sorted(values) and values[0] >= 0 and values[-1] <= 1


@pytest.mark.parametrize(
    ("kind", "expected"),  # 100 steps, 10 of them warm-up, 90 after it
    [
        ("constant", {10: 1, 55: 1, 100: 1}),
        ("linear", {10: 1, 55: 0.5, 100: 0}),
        ("cosine", {10: 1, 40: (1 + math.cos(math.pi / 3)) / 2, 55: 0.5, 100: 0}),
    ],
)
def test_learning_rate(kind, expected):
    config = resolved(train__learning_rate=2.0, train__warmup_fraction=0.1, train__lr_schedule=kind)
    rate = schedules.learning_rate(config, 100)
    assert [rate(t) for t in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert {t: rate(t) / 2 for t in expected} == pytest.approx(expected)
    assert isinstance(rate(3), float)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_learning_rate_without_and_with_nothing_but_warmup(fraction):
    rate = schedules.learning_rate(resolved(train__learning_rate=1e-3, train__warmup_fraction=fraction), 4)
    expected = [1e-3] * 4 if fraction == 0 else [0.25e-3, 0.5e-3, 0.75e-3, 1e-3]
    assert [rate(t) for t in range(4)] == pytest.approx(expected)

"""The schedules against values worked out by hand from DESIGN.md."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_jax as pj
from configs import common
from prune_jax.config import schedules
from prune_jax.config.resolve import resolve
from prune_jax.config.sizes import SIZES


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


# The library's, by count of steps ------------------------------------------------------------------------------------


def events(schedule, until=40):
    return [count for count in range(until) if bool(schedule.due(count))]


def test_cubic_by_hand():
    """Zhu and Gupta, equation 1."""
    schedule = pj.cubic(0.9, begin=10, end=30, every=7, initial=0.1)
    assert events(schedule) == [10, 17, 24, 30]  # the end is an event, wherever the window falls
    assert [schedule(t) for t in (0, 9)] == [0, 0] and schedule(10) == pytest.approx(0.1)
    assert schedule(15) == pytest.approx(0.9 - 0.8 * (15 / 20) ** 3) and schedule(20) == pytest.approx(0.8)
    assert [schedule(t) for t in (30, 31, 10**9)] == [0.9] * 3 and schedule.final == 0.9
    assert all(isinstance(schedule(t), float) for t in (0, 15, 99))


def test_linear_steps_and_constant_by_hand():
    schedule = pj.linear(0.8, begin=0, end=4, every=2)
    assert events(schedule) == [2, 4] and [schedule(t) for t in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    schedule = pj.steps({20: 0.9, 10: 0.5})
    assert events(schedule) == [10, 20] and [schedule(t) for t in (0, 9, 10, 19, 20, 99)] == [0, 0, 0.5, 0.5, 0.9, 0.9]
    for begin, due in ((0, 1), (1, 1), (5, 5)):  # nothing is updated before the first step
        assert events(pj.constant(0.7, begin)) == [due]
    assert pj.constant(0.7)(0) == 0.7 and pj.constant(0.7, 5)(4) == 0


@pytest.mark.parametrize(
    "schedule",
    [
        pj.cubic(0.95, begin=3, end=33, every=5),
        pj.cubic(0.5, begin=7, end=7),
        pj.cubic(1.0),
        pj.linear(2 / 3, begin=0, end=29, every=4, initial=0.2),
        pj.linear(np.float32(0.5), begin=np.int64(2), end=1e1, every=np.int32(3)),
        pj.steps({0: 0.1, 12: 0.5, 13: 0.5, 30: 1.0}),
        pj.constant(0.3, 8),
    ],
)
def test_schedules_agree_inside_and_outside_jit(schedule):
    counts = jnp.arange(45, dtype=jnp.int32)
    targets, due = jax.jit(jax.vmap(lambda count: (schedule(count), schedule.due(count))))(counts)
    np.testing.assert_allclose(targets, [schedule(t) for t in range(45)], atol=2e-7)
    assert due.dtype == bool
    np.testing.assert_array_equal(due, [bool(schedule.due(t)) for t in range(45)])
    assert float(targets[-1]) == pytest.approx(schedule.final) == schedule(44)
    assert (np.diff(targets) >= 0).all() and due.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.cubic(90), "sparsity is 90; allowed: a number from 0 to 1"),
        (lambda: pj.cubic("0.9"), "sparsity is '0.9'; allowed"),
        (lambda: pj.cubic(True), "sparsity is True; allowed"),
        (lambda: pj.cubic(float("nan")), "sparsity is nan; allowed"),
        (lambda: pj.cubic(0.5, initial=0.6), "initial is 0.6; allowed: a number from 0 to 0.5"),
        (lambda: pj.linear(0.5, begin=-1), "begin is -1; allowed: a whole number from 0"),
        (lambda: pj.linear(0.5, begin=9, end=8), "end is 8; allowed: a whole number from 9"),
        (lambda: pj.linear(0.5, every=0), "every is 0; allowed: a whole number from 1"),
        (lambda: pj.steps({}), "targets is {}; allowed: at least one count"),
        (lambda: pj.steps({5: 50}), r"targets\[5\] is 50; allowed"),
        (lambda: pj.steps({5: 0.5, 9: 0.4}), "allowed: sparsities that do not fall with the count"),
        (lambda: pj.steps({-1: 0.5}), "a count of targets is -1"),
        (lambda: pj.constant(1.5), "is 1.5; allowed: a number from 0 to 1"),
        (lambda: pj.cubic(0.5, begin=0.5, end=9), "begin is 0.5; allowed: a whole number from 0"),
        (lambda: pj.cubic(0.5, end=float("inf")), "end is inf; allowed: a whole number from 0"),
        (lambda: pj.cubic(0.5, end=9, every=1.5), "every is 1.5; allowed: a whole number from 1"),
        (lambda: pj.steps({9.5: 0.5}), "a count of targets is 9.5; allowed: a whole number from 0"),
        (lambda: pj.steps({float("inf"): 0.5}), "a count of targets is inf; allowed: a whole number from 0"),
        (lambda: pj.steps([0.5, 0.9]), r"targets is \[0.5, 0.9\]; allowed: counts and their sparsities"),
        (lambda: pj.constant(0.5, begin=1.5), "begin is 1.5; allowed: a whole number from 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("schedule", [pj.cubic(0.9, 3.0, 1e1), pj.linear(0.9, 2, 9, 3), pj.steps({3: 0.5, 4: 0.6})])
def test_a_schedule_takes_an_array_of_counts(schedule):
    """What a plot asks for; with NumPy and with jax."""
    counts = np.arange(12)
    one_by_one = [schedule(int(t)) for t in counts], [bool(schedule.due(int(t))) for t in counts]
    for many in (counts, jnp.asarray(counts)):
        np.testing.assert_allclose(schedule(many), one_by_one[0], rtol=1e-6)
        np.testing.assert_array_equal(schedule.due(many), one_by_one[1])

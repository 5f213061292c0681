"""Exact selection: against NumPy and Python's integers, inside jit, with ties, and on eight simulated devices."""

import json
import os
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, devices
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_jax.pruning import select

portion = jax.jit(select.portion, static_argnums=1)
lowest = jax.jit(select.lowest, static_argnames="sets")


@settings(max_examples=150, deadline=None)
@given(
    digits=st.one_of(
        st.integers(0, 10**7), st.sampled_from([0, 1, 10**7 - 1, 10**7, 5 * 10**6, 9 * 10**6, 3333333, 25 * 10**5])
    ),
    size=st.one_of(
        st.integers(0, 2**32 - 1),
        st.integers(0, 40),
        st.sampled_from([2**24 - 1, 2**24 + 1, 2**31, 2**32 - 2, 2**32 - 1]),
    ),
)
def test_portion_is_exact_for_targets_of_seven_digits(digits, size):
    wanted = round(Fraction(digits, 10**7) * size)  # a half to the even side, as Python rounds
    assert int(select.portion(digits / 10**7, size)) == wanted
    assert int(select.portion(jnp.float32(digits / 10**7), size)) == wanted


def test_every_target_of_seven_digits_is_read_as_written():
    digits = np.arange(10**7 + 1)
    read = jax.jit(jax.vmap(select._ten_millionths))((digits / 10**7).astype(np.float32))
    np.testing.assert_array_equal(read, digits)


def test_portion_by_hand_and_inside_jit():
    for target, size, wanted in (
        (0.5, 1, 0), (0.5, 3, 2), (0.5, 5, 2), (0.25, 2, 0), (0.9, 10, 9), (1.0, 2**32 - 1, 2**32 - 1), (0.0, 7, 0),
        (1 / 3, 3 * 10**6, 10**6), (0.9, 10**9 + 1, 9 * 10**8 + 1),
    ):  # fmt: skip
        if target == 1 / 3:
            wanted = round(Fraction(3333333, 10**7) * size)
        assert int(portion(target, size)) == wanted, (target, size)


def test_more_gates_than_a_count_holds_are_refused():
    with pytest.raises(ValueError, match=r"4294967296 gates.*at most 4294967295"):
        select.portion(0.5, 2**32)


def test_ranks_order_as_the_scores_do():
    scores = np.float32([-np.inf, -3e38, -1, -1e-40, -0.0, 0.0, 1e-40, 1, 3e38, np.inf, np.nan])
    ranks = np.asarray(select.rank(jnp.asarray(scores))).astype(np.int64)
    assert (np.diff(ranks) > 0).tolist() == [True] * 4 + [False] + [True] * 5
    assert ranks[4] == ranks[5] and ranks.max() < 2**32 - 1


def reference_must_close(scores, opened, k):
    """NumPy's view of a selection: what closes for sure, and how many of which ties."""
    threshold = np.partition(scores[opened], k - 1)[k - 1]
    sure = opened & (scores < threshold)
    return sure, opened & (scores == threshold), k - sure.sum()


def check_selection(chosen, scores, candidates, k):
    k = min(k, int(candidates.sum()))
    assert chosen.sum() == k and not (chosen & ~candidates).any()
    if k:
        sure, ties, among_ties = reference_must_close(scores, candidates, k)
        assert chosen[sure].all() and not (chosen & ~sure & ~ties).any() and (chosen & ties).sum() == among_ties


@settings(max_examples=40, deadline=None)
@given(
    levels=st.integers(0, 50),
    closed=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    k=st.lists(st.integers(0, 700), min_size=2, max_size=2),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
def test_lowest_equals_numpy_partition_with_ties(levels, closed, k, seed, dtype):
    """Three leaves in two sets, inside jit; the shapes are the same, so that it compiles once per dtype."""
    rng = np.random.default_rng(seed)
    shapes, sets = ((17, 30), (40,), (2, 3, 16)), (0, 1, 0)
    scores = [jnp.asarray(rng.integers(-levels, levels + 1, shape) / 7, dtype) for shape in shapes]
    candidates = [rng.random(shape) >= closed for shape in shapes]
    chosen = lowest(scores, [jnp.asarray(c) for c in candidates], jnp.array(k), jax.random.key(seed), sets=sets)
    for one in (0, 1):
        members = [l for l in range(3) if sets[l] == one]
        joined = (
            np.concatenate([np.asarray(x[l], np.float32 if x is scores else bool).ravel() for l in members])
            for x in (chosen, scores, candidates)
        )
        check_selection(*joined, k[one])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distinct", "levels", "equal", "half equal", "misleading"])
@pytest.mark.parametrize("share", [1.1, 0.02])
def test_a_guess_from_a_sample_changes_no_choice(kind, share, monkeypatch):
    rng = np.random.default_rng(0)
    score = rng.normal(size=(90, 70)).astype(np.float32)
    if kind == "levels":
        score = np.round(score * 9) / 9
    elif kind == "equal":
        score[:] = 0
    elif kind == "half equal":
        score = np.where(rng.random(score.shape) < 0.5, 0, np.abs(score))
    elif kind == "misleading":
        score[::8, ::9] = 100  # all that the sample sees
    candidates = rng.random(score.shape) < share
    monkeypatch.setattr(select, "_SAMPLE", score.size // 72)
    for k in (0, 1, 30, 3000, score.size - 1, score.size):
        given = ([jnp.asarray(score)], [jnp.asarray(candidates)], jnp.array([k]), jax.random.key(k))
        plain = select.lowest(*given)[0]
        with monkeypatch.context() as sampled:
            sampled.setattr(select, "_SAMPLED", 1)
            guessed = np.asarray(select.lowest(*given)[0])
        check_selection(guessed, score, candidates, k)
        np.testing.assert_array_equal(guessed, plain)


def test_each_leaf_is_its_own_set_and_nothing_is_chosen_of_nothing():
    assert select.lowest([], [], jnp.zeros(0, jnp.int32), jax.random.key(0)) == []
    scores = [jnp.zeros((0, 5)), jnp.array(3.0), jnp.array([[2.0, 1.0]])]
    candidates = [jnp.ones(s.shape, bool) for s in scores]
    chosen = select.lowest(scores, candidates, jnp.array([3, 1, 1]), jax.random.key(0))
    assert chosen[0].shape == (0, 5) and bool(chosen[1])
    np.testing.assert_array_equal(chosen[2], [[False, True]])


def test_ties_fall_at_random_and_by_the_key():
    scores, candidates = [jnp.zeros(1000)], [jnp.ones(1000, bool)]
    runs = [np.asarray(lowest(scores, candidates, jnp.array([500]), jax.random.key(i))[0]) for i in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert [run.sum() for run in runs] == [500] * 3
    assert 350 < (runs[0] != runs[2]).sum() < 650
    assert 200 < runs[0][:500].sum() < 300, "the ties are not spread over the kernel"


def test_infinities_negative_zero_and_nan():
    scores = [jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0, 0.0, -1.0, 1e-40])]
    # -inf, -1, then the two zeros tie; NaN goes last of all
    for k, expected in ((1, [2]), (2, [2, 5]), (4, [2, 5, 3, 4]), (6, [2, 5, 3, 4, 6, 1]), (7, range(7))):
        chosen = lowest(scores, [jnp.ones(7, bool)], jnp.array([k]), jax.random.key(0))[0]
        assert set(np.flatnonzero(np.asarray(chosen))) == set(expected)


def test_the_lowest_share_of_the_candidates():
    rng = np.random.default_rng(0)
    score, candidates = rng.normal(size=300).astype(np.float32), rng.random(300) < 0.7
    for share in (0.001, 0.25, 1.0):
        threshold = select.lowest_threshold(jnp.asarray(score), jnp.asarray(candidates), jnp.float32(share))
        found = np.asarray(select.among_lowest(jnp.asarray(score), jnp.asarray(candidates), threshold))
        k = max(1, int(np.ceil(np.float32(share) * candidates.sum())))
        check_selection(found, score, candidates, k)


EIGHT = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from prune_jax.pruning import plan as plan_lib

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
rng = np.random.default_rng(0)
scores = {"a": rng.integers(-9, 9, (64, 48)).astype(np.float32), "b": rng.normal(size=(3, 16, 32)).astype(np.float32)}
specs = {"a": P("x", "y"), "b": P(None, "y", "x")}
out = {}
for structure, scope in (("unstructured", "local"), ("unstructured", "global"), ("2:4", "local")):
    gates = {n: np.ones(s.shape, bool) for n, s in scores.items()}
    plan = plan_lib.make(gates, structure, scope)
    def close(gates, scores, target, plan=plan):
        return plan.close(gates, scores, target, jax.random.key(3))
    put = lambda tree: {n: jax.device_put(x, NamedSharding(mesh, specs[n])) for n, x in tree.items()}
    shardings = {n: NamedSharding(mesh, specs[n]) for n in scores}
    compiled = jax.jit(close, out_shardings=shardings).lower(put(gates), put(scores), jnp.float32(0.6)).compile()
    text = compiled.as_text()
    largest = 0
    for shape in re.findall(r"= \\w+\\[([\\d,]*)\\][^=]* all-gather", text):
        largest = max(largest, int(np.prod([int(n) for n in shape.split(",") if n] or [1])))
    found = compiled(put(gates), put(scores), jnp.float32(0.6))
    one = jax.jit(close)({n: jnp.asarray(g) for n, g in gates.items()}, scores, jnp.float32(0.6))
    out[structure + " " + scope] = {
        "gathered": largest,
        "travels": "all-reduce" in text or "all-gather" in text,  # of many operands XLA gathers the devices' sums
        "same": all(bool((np.asarray(found[n]) == np.asarray(one[n])).all()) for n in scores),
        "closed": [int((~np.asarray(found[n])).sum()) for n in scores],
        "split": all(found[n].sharding.is_equivalent_to(shardings[n], found[n].ndim) for n in scores),
    }
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def on_eight_devices():
    environment = os.environ | devices(8)
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unstructured local", "unstructured global", "2:4 local"])
def test_sharded_scores_close_the_gates_of_one_device_and_never_travel(how, on_eight_devices):
    found = on_eight_devices[how]
    assert found["same"] and found["split"]
    sizes = [64 * 48, 3 * 16 * 32]
    if how == "unstructured local":
        assert found["closed"] == [round(0.6 * size) for size in sizes]
    elif how == "unstructured global":
        assert sum(found["closed"]) == round(0.6 * sum(sizes))
    else:
        assert found["closed"] == [size // 2 for size in sizes]
    if how.startswith("unstructured"):
        assert found["travels"], "nothing was counted across devices: the arrays were not split"
        assert found["gathered"] < 64, "an array of the scores' size was gathered"

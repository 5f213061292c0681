"""Plans: scopes, exact targets, layer types, rules by name, and the blocks and patterns of kernels of any rank."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_jax as pj
from prune_jax.pruning import costs, select
from prune_jax.pruning import plan as plan_lib

KEY = jax.random.key(0)


def opened(**shapes):
    return {name: jnp.ones(shape, bool) for name, shape in shapes.items()}


def normal(gates, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=gate.shape), jnp.float32) for name, gate in gates.items()}


def closed(gates):
    return {name: int((~np.asarray(gate)).sum()) for name, gate in gates.items()}


PLAIN = opened(a=(13, 17), b=(40,), c=(3, 4, 5))
CLOSE = {scope: jax.jit(plan_lib.make(PLAIN, scope=scope).close) for scope in plan_lib.SCOPES}


@settings(max_examples=25, deadline=None)
@given(
    targets=st.lists(st.integers(0, 1000), min_size=1, max_size=3),
    levels=st.integers(0, 30),
    seed=st.integers(0, 2**31),
    scope=st.sampled_from(["local", "global"]),  # erk shares the target: tests/test_field.py
)
def test_targets_are_met_exactly_lowest_first_and_masks_only_shrink(targets, levels, seed, scope):
    rng = np.random.default_rng(seed)
    gates = {name: jnp.asarray(rng.random(gate.shape) < 0.9) for name, gate in PLAIN.items()}
    scores = {n: jnp.asarray(rng.integers(-levels, levels + 1, g.shape) / 7, jnp.float32) for n, g in gates.items()}
    for target in targets:
        before, gates = gates, CLOSE[scope](gates, scores, jnp.float32(target / 1000), jax.random.key(seed))
        assert not any((np.asarray(gates[n]) & ~np.asarray(before[n])).any() for n in gates)
        for names in [list(PLAIN)] if scope == "global" else [[name] for name in PLAIN]:
            size = sum(PLAIN[n].size for n in names)
            was, now = (sum(closed(tree)[n] for n in names) for tree in (before, gates))
            assert now == max(was, round(target * size / 1000))  # exact: target is a whole number of thousandths
            score, new, old = (np.concatenate([np.ravel(tree[n]) for n in names]) for tree in (scores, gates, before))
            if (old & ~new).any() and new.any():
                assert score[old & ~new].max() <= score[new].min()


def test_ties_fall_at_random_and_by_the_key():
    gates, scores = opened(a=(1000,)), {"a": jnp.zeros(1000)}
    close = jax.jit(plan_lib.make(gates).close)
    runs = [np.asarray(close(gates, scores, 0.5, jax.random.key(i))["a"]) for i in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert 350 < (runs[0] != runs[2]).sum() < 650 and {(~run).sum() for run in runs} == {500}


def test_parts_have_ties_of_their_own():
    gates = opened(a=(500,), b=(500,))
    plan = plan_lib.make(gates, rules={"b": pj.Rule()})
    new = plan.close(gates, {n: jnp.zeros(500) for n in gates}, 0.5, KEY)
    assert closed(new) == {"a": 250, "b": 250} and (new["a"] != new["b"]).any()


def test_scopes_and_structures_that_do_not_exist():
    with pytest.raises(ValueError, match="scope is 'layer'; allowed: local, erk, global"):
        plan_lib.make(PLAIN, scope="layer")
    with pytest.raises(ValueError, match="'Unstructured!' is no structure; allowed: unstructured"):
        plan_lib.make(PLAIN, "Unstructured!")
    with pytest.raises(ValueError, match=r"there is nothing to prune: .* no kernel to close: 'a', 'b', 'c'"):
        plan_lib.make(PLAIN, rules=dict.fromkeys(PLAIN, pj.KEEP))


def test_rules_are_assigned_to_kernels_first_and_to_others_where_no_kernel_matches():
    params = {
        "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "words": {"embedding": jnp.ones((3, 2)), "count": jnp.ones((3, 2), jnp.int32)},
    }
    half = pj.Rule(sparsity=0.5)
    assert plan_lib.assigned(params, {"head": half}) == {"head/kernel": half}
    assert plan_lib.assigned(params, {"words": half}) == {"words/embedding": half}
    assert plan_lib.assigned(params, {"bias": pj.KEEP, "head": half}) == {"head/bias": pj.KEEP, "head/kernel": half}
    assert plan_lib.assigned(params, {"head/kernel$": pj.KEEP, "head": half}) == {"head/kernel": pj.KEEP}
    with pytest.raises(ValueError, match="the rule 'count' matches no weight; the weights are head/bias, head/kernel"):
        plan_lib.assigned(params, {"count": half})


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("scope", plan_lib.SCOPES)
def test_patterns_and_blocks_along_any_axis(inputs, scope):
    gates = opened(w=(4, 8, 12))
    scores = normal(gates)
    plan = plan_lib.make(gates, scope=scope, rules={"w": pj.Rule(structure="1:4", axis=inputs)})
    new = np.moveaxis(np.asarray(plan.close(gates, scores, 1.0, KEY)["w"]), inputs, 0)
    assert (new.reshape(-1, 4, *new.shape[1:]).sum(1) == 1).all()
    plan = plan_lib.make(gates, scope=scope, rules={"w": pj.Rule(structure="block:2x4", axis=inputs)})
    new = np.asarray(plan.close(gates, scores, 0.5, KEY)["w"])
    axis = inputs % 3
    outputs = 2 if axis != 2 else 1
    blocks = np.moveaxis(new, (axis, outputs), (0, 1))
    rows, columns, rest = blocks.shape
    blocks = blocks.reshape(rows // 2, 2, columns // 4, 4, rest).transpose(0, 2, 4, 1, 3).reshape(-1, 8)
    assert (blocks.all(1) | ~blocks.any(1)).all() and (~blocks.any(1)).sum() == round(0.5 * len(blocks))


def test_a_unit_is_scored_by_its_open_gates_over_its_size():
    gates = {"w": jnp.ones((2, 4), bool).at[0, 0].set(False)}
    plan = plan_lib.make(gates, "block:2x2")
    scores = {"w": jnp.array([[9.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])}
    # The left block: three open gates of score 1 over a size of 4, below the right one's 1. The closed 9 is out.
    new = plan.close(gates, scores, 0.5, KEY)["w"]
    np.testing.assert_array_equal(new, [[False, False, True, True]] * 2)
    assert float(plan.below(gates, scores, 0.8)) == 0.5


def test_layer_types_in_order():
    gates = {"layer_0": {"key": {"kernel": 0}, "query": {"kernel": 0}}, "head": {"kernel": 0}, "b": [1, {"w": 0}]}
    gates = jax.tree.map(lambda _: jnp.ones((2, 2), bool), gates)
    layers = plan_lib.Layers(first=("query", "key", "value"), last=("head",))
    types, indices = plan_lib.make(gates, layers=layers).type_indices(gates)
    assert types == ("query", "key", "b", "head")
    assert [types[i] for i in indices] == ["b", "b", "head", "key", "query"]


def test_covers_and_units():
    gates = opened(body=(4, 4), head=(4, 4))
    plan = plan_lib.make(gates, "encoder", body=lambda name: name != "head")
    assert plan.covers("body") and not plan.covers("head") and plan.units is None
    assert closed(plan.close(gates, normal(gates), 0.5, KEY)) == {"body": 8, "head": 0}
    units = plan_lib.make(gates, "block:2x2", body=lambda name: name != "head").units
    assert units.of(gates)["body"].shape == (2, 2) and list(units.of(gates)) == ["body"]
    left = units.spread(gates, {"body": jnp.array([[True, False], [True, True]])})
    assert closed(left) == {"body": 4, "head": 0} and not np.asarray(left["body"])[:2, 2:].any()


def test_a_rules_sparsity_is_met_to_the_gate_whatever_the_schedule_ends_at():
    """Its share of the schedule's target is no float32 as a rule: 0.8 / 0.15 of 0.15 is one gate of ten million off."""
    gates = {"w": jax.ShapeDtypeStruct((10_000, 1_000), bool)}
    for hundredths in range(5, 101, 5):
        for final in range(5, 101, 5):
            (part,) = plan_lib.make(gates, rules={"w": pj.Rule(sparsity=hundredths / 100)}, final=final / 100).parts
            assert int(select.portion(part.goal(jnp.float32(final / 100)), 10**7)) == hundredths * 10**5
            assert float(part.goal(jnp.float32(final / 200))) == pytest.approx(hundredths / 200)


@pytest.mark.parametrize("m", [2, 3, 4, 10, 32, 100, 1000])
def test_every_n_of_m_is_reached_at_its_own_target(m):
    gates = opened(w=(m, 1))
    plan = plan_lib.make(gates, f"1:{m}")
    close = jax.jit(lambda target: plan.close(gates, normal(gates), target, KEY)["w"])
    for k in {*range(0, m, max(1, m // 50)), *(n for n in (53, 59, 251, 253, 502, 511) if n < m)}:
        assert (~np.asarray(close(k / m))).sum() == k


def test_a_target_in_weights_counts_joined_features_and_squares_as_they_are():
    """Against counts of the gates: side by side groups add up, along two axes they multiply, what is in none stays."""
    first, second = (np.where((np.arange(8) < 4) == half, np.arange(8) % 4, -1) for half in (True, False))
    groups = (
        pj.Group("a", "joined", 4, (pj.Member("w", 0, first),)),
        pj.Group("b", "joined", 4, (pj.Member("w", 0, second),)),
        pj.Group("s", "square", 4, (pj.Member("v", 0, np.arange(4)), pj.Member("v", 1, np.arange(4)))),
        pj.Group("l", "layer", 1, (pj.Member("w", 0, np.minimum(first, 0)),)),
    )
    shapes = {"w": (8, 6), "v": (4, 4)}
    assert costs.of_weights(groups[:3], shapes).of({"a": 0.5, "b": 0.25, "s": 0.5}) == 12 + 6 + 4
    assert costs.of_weights(groups[::3], shapes).of({"a": 0.5, "l": 0.5}) == 24 + 6  # the other half is in no group

    gates = {name: np.ones(shape, bool) for name, shape in shapes.items()}
    plans = [plan_lib.make(gates, structure, "global", groups) for structure in ("joined", "square", "a")]

    @jax.jit
    def closed(gates, scores):
        return [plan.close(gates, scores, 0.75, jax.random.key(0)) for plan in plans]

    joined, square, part = closed(gates, jax.tree.map(np.float32, gates))
    assert np.sum(joined["w"]) == 12 and np.sum(square["v"]) == 4 and np.sum(part["w"]) == 24 + 6


def test_a_network_of_empty_kernels_has_nothing_to_reach():
    gates = {"w": np.ones((0, 4), bool)}
    assert plan_lib.make(gates).reach(gates) == 0


def test_no_group_is_emptied_before_all_others_have_one_unit():
    """A narrow group whose scores are all lowest leads to the output alone: without it the network is a constant."""
    params = {"a": jnp.ones((8, 64)), "b": jnp.full((64, 4), 1.0), "c": jnp.full((4, 2), 1e-3)}
    graph = pj.trace(lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"], params, jnp.ones((3, 8)))
    groups = [group for group in graph.groups.values() if group.prunable]
    assert sorted(group.size for group in groups) == [4, 64]
    for target in (0.5, 0.9):
        tx = pj.prune(
            optax.sgd(0.0), pj.magnitude(), pj.constant(target), scope="global", structure="auto", groups=graph
        )
        state = jax.jit(tx.init)(params)
        _, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
        dropped = graph.dropped(params, pj.gates(state))
        assert min(int((~dropped[group.name]).sum()) for group in groups) == 1


def test_no_rounding_closes_the_last_unit_of_a_group():
    sizes = {"a": 8, "b": 2}
    groups = [pj.Group(name, "columns", n, (pj.Member(name, 0, np.arange(n)),)) for name, n in sizes.items()]
    gates = opened(a=(8, 5), b=(2, 9))
    scores = {"a": jnp.ones((8, 5)), "b": jnp.full((2, 9), 2.0)}
    for scope, expected in (("local", (1, 1)), ("global", (0, 1))):  # 55 of 58 weights are 95 %: 7.6 of 8, 1.9 of 2
        close = jax.jit(plan_lib.make(gates, "columns", scope, groups).close)
        for target, left in ((0.95, expected), (1.0, (0, 0))):
            after = close(gates, scores, jnp.float32(target), KEY)
            assert tuple(int(np.asarray(after[name]).any(1).sum()) for name in sizes) == left


def test_a_target_in_seconds_is_checked_before_it_is_measured(monkeypatch):
    graph = pj.trace(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], opened(a=(4, 8), b=(8, 2)), np.ones((3, 4), np.float32)
    )
    monkeypatch.setattr(type(graph), "costs", lambda self, word: pytest.fail("measured"))
    for options, message in (
        ({"structure": "columns"}, "scope is 'local'; allowed: global with a target in seconds"),
        ({"scope": "global"}, "structure is 'unstructured'; allowed: groups of the network with a target in seconds"),
        ({"structure": "columns", "scope": "global", "seed": 0.5}, "seed is 0.5"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(0.5), groups=graph, target="seconds", **options)

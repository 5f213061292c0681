"""The methods against hand-computed numbers and float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_jax as pj
from prune_jax import methods
from prune_jax.methods import exploration, spt, spt_layers
from prune_jax.models import Bert, BertConfig
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed, trees
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning.method import PruneInfo, StepInfo
from prune_jax.pruning.structure import Group, Member
from prune_jax.run import optim
from prune_jax.run import state as state_lib

KEY = jax.random.key(0)


TYPES = ("query", "key", "value", "attention_output", "ffn_hidden", "ffn_output")  # in cyclic order
SPT = {"epsilon": 0.2, "reward_alpha": 0.125}  # of the tests, unless they say otherwise


def make_spt(**given):
    return pj.spt(**{**SPT, **given})


def make_plan(gates, structure="unstructured", scope="local", groups=()):
    layers = plan_lib.Layers(first=TYPES, last=("classifier",))
    return plan_lib.make(gates, structure, scope, groups, layers=layers)


_COMPILED: dict = {}


def prune(method, plan, params, gates, trainable, state, target, exact):
    """The new gates, as an update of a run makes them; compiled, since op by op each would compile alone."""
    key = (id(method), id(plan), exact)
    if key not in _COMPILED:

        def new_gates(params, gates, trainable, state, target):
            return method.prune(
                PruneInfo(KEY, jnp.int32(1), params, gates, trainable, state, target, exact, plan)
            ).gates

        _COMPILED[key] = (jax.jit(new_gates), method, plan)  # kept, so that no other object has its id
    return _COMPILED[key][0](params, gates, trainable, state, jnp.float32(target))


def tree(**kernels):
    return {name: {"kernel": jnp.asarray(kernel)} for name, kernel in kernels.items()}


def info_for(params, gates, loss, step=0, hyper=None, grads=None, plan=None):
    grads = grads if grads is not None else params
    return StepInfo(
        step=jnp.int32(step), key=KEY, grads=grads, gate_grads=grads, params_before=params, params=params, gates=gates,
        hyper=hyper or {}, loss=loss, plan=plan or make_plan(gates),
    )  # fmt: skip


def explore(method, params, gates, loss, steps, plan=None):
    plan = plan or make_plan(gates)
    state = method.init(params, gates, plan)
    hyper = {name: jnp.float32(value) for name, value in method.hyper.items()}
    step_fn = jax.jit(
        lambda step, state: method.after_step(info_for(params, gates, loss, step, hyper, plan=plan), state)
    )
    for step in range(steps):
        state = step_fn(jnp.int32(step), state)
    return state


# SPT -----------------------------------------------------------------------------------------------------------------


def planted_loss(params, gates):
    """The loss rests on the first 20 weights of `query`; those of `useless` do not enter it."""
    kept = params["query"]["kernel"] * gates["query"]["kernel"]
    return jnp.sum((1 - kept[:, :20]) ** 2) + 0 * jnp.sum(gates["useless"]["kernel"])


def planted():
    params = tree(query=jnp.ones((1, 40)), useless=jnp.ones((1, 40)))
    return params, jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)


def test_importance_of_an_essential_group_is_positive_and_of_a_useless_one_is_not():
    params, gates = planted()
    all_of = {"query": [1.0, 0.0], "useless": [0.0, 1.0]}
    for name, epsilon in all_of.items():
        info = info_for(params, gates, planted_loss)
        sample = [jnp.float32(e) for e in epsilon]

        def gates_of(e, info=info, sample=sample):
            drawn = gates_lib.sample(info.key, info.step, e, info.gates, sample)
            return jax.tree.map(lambda gate, out: gate & ~out, info.gates, drawn)

        found = exploration.importances(info, gates_of, explorations=2, chunk=1)
        assert found.shape == (2,)
        assert (found == (20.0 if name == "query" else 0.0)).all()


@pytest.mark.parametrize("center", [True, False])
def test_the_useless_weights_are_pruned_first(center):
    params, gates = planted()
    method, plan = make_spt(center=center, epsilon=0.1, explorations=4), make_plan(gates, scope="global")
    state = explore(method, params, gates, planted_loss, 400, plan)
    essential = np.asarray(state["scores"]["query"]["kernel"])[0, :20]
    rest = np.concatenate(
        [np.asarray(state["scores"]["query"]["kernel"])[0, 20:], np.asarray(state["scores"]["useless"]["kernel"])[0]]
    )
    assert essential.mean() > rest.mean() + 0.5
    closed = prune(method, plan, params, gates, {}, state, 0.25, True)
    assert not np.asarray(closed["query"]["kernel"])[0, 20:].all() or not np.asarray(closed["useless"]["kernel"]).all()
    assert (~np.asarray(closed["query"]["kernel"])[0, :20]).sum() <= 2, "essential weights went before useless ones"


def test_scores_follow_the_exponential_average_by_hand():
    drawn = jnp.array([True, True, False])
    scores, visited = jnp.zeros(3), jnp.zeros(3, bool)
    alpha = jnp.float32(1 / 8)
    scores, visited = spt.update_scores(scores, visited, drawn, jnp.float32(0.8), alpha)
    np.testing.assert_allclose(scores, [0.8, 0.8, 0.0])  # the first visit takes the value itself
    scores, visited = spt.update_scores(scores, visited, jnp.array([True, False, False]), jnp.float32(0.0), alpha)
    np.testing.assert_allclose(scores, [0.7, 0.8, 0.0])  # 0.8 * 7/8
    scores, visited = spt.update_scores(scores, visited, jnp.array([True, False, True]), jnp.float32(-0.1), alpha)
    np.testing.assert_allclose(scores, [0.6, 0.8, -0.1], rtol=1e-6)  # 0.7 * 7/8 - 0.1/8
    np.testing.assert_array_equal(visited, [True, True, True])


@pytest.mark.slow
@pytest.mark.parametrize(("explorations", "chunk"), [(1, 1), (4, 1), (4, 2), (4, 4), (8, 8)])
@pytest.mark.parametrize("center", [True, False])
def test_step_equals_a_numpy_replay_of_its_samples(explorations, chunk, center):
    rng = np.random.default_rng(0)
    params = tree(query=rng.normal(size=(5, 7)).astype(np.float32), key=rng.normal(size=(6,)).astype(np.float32))
    gates = jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.8), params)

    def loss(params, gates):
        return sum(jnp.sum(jnp.sin(p) * g) for p, g in zip(*map(jax.tree.leaves, (params, gates)), strict=True))

    method = make_spt(explorations=explorations, chunk=chunk, center=center)
    state = explore(method, params, gates, loss, 6)

    names = ("key", "query")  # leaf order
    kernel = {n: np.asarray(params[n]["kernel"], np.float64) for n in names}
    opened = {n: np.asarray(gates[n]["kernel"]) for n in names}
    scores = {n: np.zeros(kernel[n].shape) for n in names}
    seen = {n: np.zeros(kernel[n].shape, bool) for n in names}
    mean, total = None, 0.0
    for step in range(6):
        for e in range(explorations):
            drawn = gates_lib.sample(KEY, jnp.int32(step), jnp.int32(e), gates, [jnp.float32(0.2)] * 2)
            drawn = {n: np.asarray(drawn[n]["kernel"]) for n in names}
            assert not any((drawn[n] & ~opened[n]).any() for n in names)
            importance = -sum((np.sin(kernel[n]) * drawn[n]).sum() for n in names)
            reward = importance - ((importance if mean is None else mean) if center else 0.0)
            for n in names:
                moved = np.where(seen[n], reward / 8 + 7 / 8 * scores[n], reward)
                scores[n], seen[n] = np.where(drawn[n], moved, scores[n]), seen[n] | drawn[n]
            mean = importance if mean is None else importance / 8 + 7 / 8 * mean
            total += importance
    for n in names:
        np.testing.assert_allclose(state["scores"][n]["kernel"], scores[n], atol=2e-6)
        np.testing.assert_array_equal(packed.unpack(state["visited"])[n]["kernel"], seen[n])
    _, columns, lines = method.end_epoch(gates, state, make_plan(gates))
    assert columns["mean_reward"] == pytest.approx(total / (6 * explorations), abs=1e-6) and not lines


def test_per_layer_mode_explores_one_type_a_step_in_cyclic_order_and_shows_the_table():
    params = tree(query=jnp.ones((3, 40)), value=jnp.ones((3, 40)), classifier=jnp.ones((3, 40)))
    gates = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    weight = {"query": 1.0, "value": 10.0, "classifier": 100.0}

    def loss(params, gates):
        return sum(weight[n] * jnp.mean(gates[n]["kernel"]) for n in weight)

    method = make_spt(explore_per_layer=True, center=False)
    order = make_plan(gates).type_indices(gates)[0]
    assert order == ("query", "value", "classifier")
    for steps in (1, 2, 3):
        state = explore(method, params, gates, loss, steps)
        touched = {n for n in weight if bool(packed.unpack(state["visited"])[n]["kernel"].any())}
        assert touched == set(order[:steps])
    state = explore(method, params, gates, loss, 30)
    new, _columns, lines = method.end_epoch(gates, state, make_plan(gates))
    assert lines[0].split() == list(order) and len(lines) == 2
    means = [float(cell) for cell in lines[1].split()]
    np.testing.assert_allclose(means, [-0.2, -2.0, -20.0], rtol=0.3)
    visited = packed.unpack(new["visited"])
    assert not np.asarray(new["epoch_count"]).any() and np.asarray(visited["query"]["kernel"]).any()


def sines(seed=0):
    """(params, gates, loss, numpy kernels, numpy gates, names in leaf order) whose loss is a sum over open weights."""
    rng = np.random.default_rng(seed)
    params = tree(query=rng.normal(size=(5, 8)).astype(np.float32), key=rng.normal(size=(6, 4)).astype(np.float32))
    gates = jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.8), params)

    def loss(params, gates):
        return sum(jnp.sum(jnp.sin(p) * g) for p, g in zip(*map(jax.tree.leaves, (params, gates)), strict=True))

    names = ("key", "query")
    kernel = {n: np.asarray(params[n]["kernel"], np.float64) for n in names}
    return params, gates, loss, kernel, {n: np.asarray(gates[n]["kernel"]) for n in names}, names


def test_antithetic_passes_share_no_gate_and_the_first_is_as_without_them():
    gates = tree(query=jnp.ones((50, 60), bool))

    def draw(e, *antithetic):
        drawn = gates_lib.sample(KEY, jnp.int32(3), jnp.int32(e), gates, [jnp.float32(0.3)], *antithetic)
        return np.asarray(drawn["query"]["kernel"])

    draws = [draw(e, True) for e in range(4)]
    assert not (draws[0] & draws[1]).any() and not (draws[2] & draws[3]).any() and (draws[0] & draws[2]).any()
    assert all(abs(drawn.mean() - 0.3) < 0.03 for drawn in draws)
    np.testing.assert_array_equal(draws[0], draw(0))


@pytest.mark.parametrize("absolute", [True, False])
def test_the_control_variate_leaves_a_numpy_replay_of_its_residuals(absolute):
    params, gates, loss, kernel, opened, names = sines()
    method = make_spt(control_variate=True, antithetic=True, explorations=2, absolute=absolute, center=False)
    grads = jax.grad(lambda p: loss(p, gates))(params)
    state, hyper = (
        method.init(params, gates, make_plan(gates)),
        {"epsilon": jnp.float32(0.2), "reward_alpha": jnp.float32(0.125)},
    )
    for step in range(5):
        state = method.after_step(info_for(params, gates, loss, step, hyper, grads), state)

    size = np.abs if absolute else (lambda x: x)
    first = {n: -np.cos(kernel[n]) * kernel[n] * opened[n] for n in names}
    scores, seen = {n: np.zeros(kernel[n].shape) for n in names}, {n: np.zeros(kernel[n].shape, bool) for n in names}
    for step in range(5):
        for e in range(2):
            drawn = gates_lib.sample(KEY, jnp.int32(step), jnp.int32(e), gates, [jnp.float32(0.2)] * 2, True)
            drawn = {n: np.asarray(drawn[n]["kernel"]) for n in names}
            left = -sum((np.sin(kernel[n])[drawn[n]]).sum() + first[n][drawn[n]].sum() for n in names)
            share = size(left) / sum(d.sum() for d in drawn.values())
            for n in names:
                moved = np.where(seen[n], share / 8 + 7 / 8 * scores[n], share)
                scores[n], seen[n] = np.where(drawn[n], moved, scores[n]), seen[n] | drawn[n]
    order = spt.closing_order(state)
    for n in names:
        np.testing.assert_allclose(state["scores"][n]["kernel"], scores[n], atol=2e-6)
        np.testing.assert_allclose(order[n]["kernel"], scores[n] + size(first[n]), atol=3e-6)


def test_candidates_near_the_threshold_are_the_lower_half_of_each_layer():
    params, gates = planted()
    method = make_spt(candidates="threshold", epsilon=0.4)
    hyper = {"epsilon": jnp.float32(0.4), "reward_alpha": jnp.float32(0)}
    state = method.init(params, gates, make_plan(gates))
    state["scores"] = jax.tree.map(lambda gate: jnp.arange(40.0).reshape(1, 40), gates)
    seen = np.zeros(40, bool)
    for step in range(8):  # at twice epsilon each of the lower half is left out once in 2.6e-6 of the time
        new = method.after_step(info_for(params, gates, planted_loss, step, hyper), state)
        seen |= np.asarray(packed.unpack(new["visited"])["query"]["kernel"])[0]
    np.testing.assert_array_equal(seen, np.arange(40) < 20)
    assert not bool(new["stale"]) and bool(method.end_period(new)["stale"])


def test_layers_take_turns_and_their_marginal_losses_replay_in_numpy():
    params, gates, loss, kernel, opened, names = sines()
    method = make_spt(credit="layer", explorations=3, epsilon=0.25)
    state = explore(method, params, gates, loss, 3)
    found = {}
    for n in names:
        k = int(np.ceil(np.float32(0.25) * opened[n].sum()))
        bar = np.sort(np.abs(kernel[n])[opened[n]])[k - 1]
        nexts = opened[n] & (np.abs(kernel[n]) <= bar)
        assert nexts.sum() == k
        found[n] = -np.sin(kernel[n])[nexts].sum(), (kernel[n][nexts] ** 2).sum()
    passes = np.array([5, 4])  # of 9; the network stands still, so that all of a layer find the same
    importance, squares = (passes * [found[n][i] for n in names] for i in (0, 1))
    np.testing.assert_allclose(state["importance"], importance, atol=5e-5)
    np.testing.assert_allclose(state["squares"], squares, rtol=1e-5)
    assert np.asarray(state["explored"]).all()
    later = method.end_period(state)
    np.testing.assert_allclose(later["importance"], importance / 2, atol=5e-5)
    np.testing.assert_allclose(later["squares"], squares / 2, rtol=1e-5)
    order = [make_plan(gates).type_indices(gates)[0].index(n) for n in names]
    np.testing.assert_array_equal(np.asarray(state["epoch_count"])[order], [5, 4])


def test_curvatures_by_hand():
    found = spt_layers.curvatures(np.float32([2, -1, 9, 0]), np.float32([4, 1, 1, 0]), np.array([1, 1, 1, 0], bool))
    np.testing.assert_allclose(found, [0.5, 9e-3, 9, 9.5 / 3], rtol=1e-6)
    none = np.zeros(2, np.float32)
    np.testing.assert_array_equal(spt_layers.curvatures(none, none, none.astype(bool)), [1, 1])


@pytest.mark.parametrize("inside", ["magnitude", "movement"])
def test_budgets_are_those_of_one_water_level_and_empty_no_layer(inside):
    rng = np.random.default_rng(1)
    params = tree(query=rng.normal(size=(10, 20)).astype(np.float32), key=rng.normal(size=(10, 20)).astype(np.float32))
    gates = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    method, plan = make_spt(credit="layer", inside=inside), make_plan(gates)
    state = {
        "importance": jnp.float32([1.0, 100.0]),  # key, query
        "squares": jnp.ones(2),
        "explored": jnp.ones(2, bool),
        "movement": jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params),
    }
    cost = {"key": np.asarray(params["key"]["kernel"]) ** 2, "query": 100 * np.asarray(params["query"]["kernel"]) ** 2}
    level = np.sort(np.concatenate([c.ravel() for c in cost.values()]))[199]
    for target in (0.5, 1.0):
        new = prune(method, plan, params, gates, {}, state, target, True)
        closed = {n: ~np.asarray(new[n]["kernel"]) for n in cost}
        assert sum(c.sum() for c in closed.values()) == round(target * 400)
        if target == 0.5:
            for n in cost:
                assert closed[n].sum() == (cost[n] <= level).sum()
                order = cost[n] if inside == "magnitude" else np.asarray(state["movement"][n]["kernel"])
                assert order[closed[n]].max() < order[~closed[n]].min()
            assert closed["key"].sum() > 3 * closed["query"].sum()
    almost = prune(method, plan, params, gates, {}, state, 398 / 400, True)
    assert [int(np.asarray(almost[n]["kernel"]).sum()) for n in cost] == [1, 1]


def test_heads_and_columns_are_explored_scored_and_closed_as_units():
    shapes = dict.fromkeys(("query", "key", "value", "attention_output"), (8, 8))
    shapes |= {"ffn_hidden": (8, 16), "ffn_output": (16, 8)}
    params = {"layer_0": {n: {"kernel": jnp.ones(shape)} for n, shape in shapes.items()}}
    gates = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)

    def loss(params, gates):  # head h is worth h, the columns from 8 on are worth 1 each
        layer = gates["layer_0"]
        heads = jnp.arange(4.0).repeat(2)[:, None] * layer["attention_output"]["kernel"] / 16
        return -jnp.sum(heads) - jnp.sum(layer["ffn_output"]["kernel"][8:]) / 8

    heads = [Member.split(f"layer_0/{name}/kernel", 1, (4, 2)) for name in ("query", "key", "value")]
    heads.append(Member.split("layer_0/attention_output/kernel", 0, (4, 2)))
    columns = (Member.split("layer_0/ffn_hidden/kernel", 1, (16,)), Member.split("layer_0/ffn_output/kernel", 0, (16,)))
    groups = (Group("layer_0.heads", "head", 4, tuple(heads)), Group("layer_0.ffn", "ffn", 16, columns))
    plan, method = make_plan(gates, "head+ffn", groups=groups), make_spt(credit="group", epsilon=0.01, center=False)
    state = explore(method, params, gates, loss, 300, plan)
    scores = jax.tree.map(np.asarray, state["scores"]["layer_0"])
    assert scores["heads"].shape == (4,) and scores["ffn"].shape == (16,)
    assert np.asarray(packed.unpack(state["visited"])["layer_0"]["heads"]).all()
    assert scores["heads"][3] > scores["heads"][0] + 1 and scores["ffn"][8:].mean() > scores["ffn"][:8].mean() + 0.5
    state["scores"] = {"layer_0": {"heads": jnp.float32([3, -1, 2, 1]), "ffn": jnp.arange(16.0)}}
    closed = prune(method, plan, params, gates, {}, state, 0.5, True)["layer_0"]
    heads = np.asarray(closed["query"]["kernel"]).all(0).reshape(4, 2)
    np.testing.assert_array_equal(heads, np.array([True, False, True, False])[:, None].repeat(2, 1))
    np.testing.assert_array_equal(np.asarray(closed["ffn_output"]["kernel"]).all(1), np.arange(16) >= 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "options"),
    [
        ("encoder", {}),
        ("encoder", {"explore_per_layer": True}),
        ("encoder", {"credit": "layer"}),
        ("2:4", {"candidates": "threshold"}),
        ("block:2x2", {"credit": "group"}),
        ("head+ffn", {}),
        ("ffn", {"credit": "group"}),
    ],
)
def test_what_the_plan_may_not_close_is_never_explored(structure, options):
    """A pass that closed a gate of the pooler, of the classifier, or of what the structure leaves out costs 1e6."""
    model = Bert(BertConfig(vocab_size=9, num_layers=1, d_model=8, num_heads=2, d_ff=16))
    gates = jax.eval_shape(model.init, KEY, *model.example_inputs())["gates"]
    gates = jax.tree.map(lambda gate: jnp.ones(gate.shape, bool), gates)
    plan = state_lib.make_plan(model, gates, structure, "local")
    left_out = [name for name in trees.by_name(gates) if not plan.covers(name)]
    assert {"pooler/kernel", "classifier/kernel"} <= set(left_out)

    def loss(params, gates):
        opened = {name: jnp.sum(gate, dtype=jnp.float32) for name, gate in trees.by_name(gates).items()}
        return sum(-1e6 * n if name in left_out else -n for name, n in opened.items())

    method = make_spt(explorations=2, center=False, **options)
    params = jax.tree.map(lambda gate: jax.random.normal(KEY, gate.shape), gates)
    state = explore(method, params, gates, loss, 12, plan)
    total, passes = np.asarray(state["epoch_sum"]), np.asarray(state["epoch_count"])
    assert 0 < total.sum() < 1e5, "a gate that never closes was explored"
    if options.get("credit") == "layer":
        explored = dict(zip(trees.by_name(gates), np.asarray(state["explored"]), strict=True))
        assert not any(explored[name] for name in left_out) and sum(explored.values()) == 6
    elif options.get("credit") != "group":
        visited = {name: bool(leaf.any()) for name, leaf in trees.by_name(packed.unpack(state["visited"])).items()}
        assert not any(visited[name] for name in left_out)
        assert all(visited[name] for name in visited if plan.covers(name))
    else:
        assert all(bool(leaf.any()) for leaf in jax.tree.leaves(packed.unpack(state["visited"])))
    if "classifier" in plan.type_indices(gates)[0] and options.get("credit") != "group":
        assert passes[plan.type_indices(gates)[0].index("classifier")] == 0


# Magnitude and movement ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global"])
def test_magnitude_masks_equal_numpy_partition(scope):
    rng = np.random.default_rng(0)
    kernels = {n: np.round(s * rng.normal(size=(20, 30)), 2).astype(np.float32) for n, s in (("a", 1), ("b", 4))}
    params = tree(**kernels)
    gates = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    new = prune(pj.magnitude(), make_plan(gates, scope=scope), params, gates, {}, {}, 0.3, True)
    both = np.abs(np.concatenate([kernels["a"], kernels["b"]]))
    for n in kernels:
        size = np.abs(kernels[n])
        group = size if scope == "local" else both
        k = round(0.3 * group.size)
        threshold = np.partition(group.ravel(), k - 1)[k - 1]
        closed = ~np.asarray(new[n]["kernel"])
        assert closed[size < threshold].all() and not closed[size > threshold].any()
    assert gates_lib.sparsity(new) == pytest.approx(0.3, abs=1 / both.size)


def toy():
    cfg = BertConfig(vocab_size=30, num_layers=1, d_model=8, num_heads=2, d_ff=16, dropout=0.1)
    ids = np.random.default_rng(0).integers(0, 30, (4, 6)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "attention_mask": np.ones_like(ids),
        "labels": np.array([0, 1, 1, 0], np.int32),
        "weights": np.ones(4, np.float32),
    }
    return Bert(cfg), jax.device_put(batch)


def run_steps(method, steps, rate=1e-2, closed=0.0):
    model, batch = toy()
    optimizer = optim.create(0.0, 0.0, tuple(method.rates), method.plain)
    shapes = jax.eval_shape(model.init, KEY, *model.example_inputs())
    plan = state_lib.make_plan(model, shapes["gates"], "unstructured", "local")
    state = state_lib.init_state(model, method, optimizer, plan, KEY)
    gates = packed.unpack(state.gates)
    no_scores = jax.tree.map(lambda gate: jnp.zeros(gate.shape), gates)
    state = state.replace(gates=packed.pack(jax.jit(plan.close)(gates, no_scores, closed, KEY)))
    step_fn = jax.jit(state_lib.make_train_step(model, method, optimizer, plan))
    states = [state]
    for _ in range(steps):
        rates = optim.rates(rate, 1.0, method.rates)
        hyper = {name: jnp.float32(value) for name, value in method.hyper.items()}
        state, _ = step_fn(state, batch, rates, hyper)
        states.append(state)
    return model, batch, states


@pytest.mark.slow
def test_movement_scores_equal_a_float64_reference():
    model, batch, states = run_steps(pj.movement(), 4)
    gradient = jax.jit(jax.grad(lambda p, gates, key: state_lib.batch_loss(model, p, gates, batch, key)))
    reference = None
    for state in states[:-1]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)
        gates = packed.unpack(state.gates)
        grads = gradient(state.params, gates, key)
        weights, grads = (gates_lib.kernels(t, gates) for t in (state.params, grads))
        product = jax.tree.map(lambda w, g: -np.asarray(w, np.float64) * np.asarray(g, np.float64), weights, grads)
        reference = product if reference is None else jax.tree.map(np.add, reference, product)
    scores = states[-1].method["trainable"]["scores"]
    for found, expected in zip(jax.tree.leaves(scores), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)
        assert np.abs(expected).max() > 0


def test_movement_closes_the_lowest_scores_and_soft_stays_within_the_schedule():
    hard = pj.movement()
    gates = {"a": {"kernel": jnp.ones((4, 5), bool)}}
    scores = {"a": {"kernel": jnp.arange(20.0).reshape(4, 5) - 10}}
    new = prune(hard, make_plan(gates), {}, gates, {"scores": scores}, {}, 0.25, False)
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(new["a"]["kernel"])), range(5))

    soft = pj.movement(threshold="soft", tau=0.1)
    # sigmoid(S) < 0.1 where S < -2.197: eight of the twenty
    for target, end, closed in ((0.2, False, 4), (0.9, False, 8), (0.9, True, 18), (0.2, True, 4)):
        new = prune(soft, make_plan(gates), {}, gates, {"scores": scores}, {}, target, end)
        assert (~np.asarray(new["a"]["kernel"])).sum() == closed


@pytest.mark.slow
def test_soft_movement_trains_its_scores_by_the_straight_through_gradient_at_their_own_rate():
    soft = pj.movement(threshold="soft", penalty=0.0, score_learning_rate=0.5)
    model, batch, states = run_steps(soft, 1)
    first, last = states
    key = jax.random.fold_in(jax.random.fold_in(first.key, 0), first.step)
    grads = jax.jit(jax.grad(lambda p: state_lib.batch_loss(model, p, packed.unpack(first.gates), batch, key)))(
        first.params
    )
    weights, grads = (gates_lib.kernels(t, packed.unpack(first.gates)) for t in (first.params, grads))
    compared = 0
    for w, g, s in zip(*map(jax.tree.leaves, (weights, grads, last.method["trainable"]["scores"])), strict=True):
        product = np.asarray(w) * np.asarray(g)
        clear = np.abs(product) > 1e-6  # Adam's first step is rate * sign where the gradient dwarfs its epsilon
        np.testing.assert_allclose(np.asarray(s)[clear], -0.5 * np.sign(product[clear]), rtol=0.02)
        compared += clear.sum()
    assert compared > 50
    dense = run_steps(methods.maker("baseline")(), 1)[2][-1]
    for a, b in zip(jax.tree.leaves(dense.params), jax.tree.leaves(last.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("threshold", ["hard", "soft"])
def test_regrowing_movement_chooses_among_all_gates_anew(threshold):
    method = pj.movement(threshold=threshold, regrow=True)
    gates = {"a": {"kernel": jnp.arange(20).reshape(4, 5) >= 8}}
    scores = {"a": {"kernel": 10 - jnp.arange(20.0).reshape(4, 5)}}  # sigmoid(S) < 0.1: the last seven
    new = np.asarray(prune(method, make_plan(gates), {}, gates, {"scores": scores}, {}, 0.25, False)["a"]["kernel"])
    np.testing.assert_array_equal(np.flatnonzero(~new), range(15, 20))
    # The soft form's threshold asks for seven, and eight are closed: it never opens more than it closes.
    new = np.asarray(prune(method, make_plan(gates), {}, gates, {"scores": scores}, {}, 0.9, False)["a"]["kernel"])
    np.testing.assert_array_equal(np.flatnonzero(~new), range(2 if threshold == "hard" else 12, 20))


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "scores"), [("hard", "sum"), ("hard", "adam"), ("soft", "sum")])
def test_regrowing_movement_trains_the_scores_of_closed_gates_and_not_their_weights(threshold, scores):
    method = pj.movement(threshold=threshold, scores=scores, regrow=True, penalty=0.0, score_learning_rate=0.1)
    model, batch, (before, after) = run_steps(method, 1, closed=0.5)
    key = jax.random.fold_in(jax.random.fold_in(before.key, 0), before.step)
    floats = jax.tree.map(lambda gate: gate.astype(jnp.float32), packed.unpack(before.gates))
    slopes = jax.jit(jax.grad(lambda gates: state_lib.batch_loss(model, before.params, gates, batch, key)))(floats)
    compared = 0
    for gate, slope, s in zip(
        *map(jax.tree.leaves, (packed.unpack(before.gates), slopes, after.method["trainable"]["scores"])), strict=True
    ):
        clear = ~np.asarray(gate) & (np.abs(slope) > 1e-6)  # Adam's first step is rate * sign there
        expected = -slope if (threshold, scores) == ("hard", "sum") else -0.1 * np.sign(slope)
        np.testing.assert_allclose(np.asarray(s)[clear], np.asarray(expected)[clear], rtol=0.02)
        compared += clear.sum()
    assert compared > 20
    kept, moved = (gates_lib.kernels(state.params, packed.unpack(before.gates)) for state in (before, after))
    for gate, a, b in zip(*map(jax.tree.leaves, (packed.unpack(before.gates), kept, moved)), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[~np.asarray(gate)], np.asarray(b)[~np.asarray(gate)])
        assert np.any(np.asarray(a) != np.asarray(b))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["magnitude", "movement", "spt"])
def test_masks_never_reopen(method):
    rng = np.random.default_rng(0)
    built = getattr(pj, method)()
    _model, _batch, (state, *_) = run_steps(built, 0)
    gates = packed.unpack(state.gates)
    plan = make_plan(gates)
    for target in (0.1, 0.4, 0.3, 0.9):
        noise = {"scores": jax.tree.map(lambda g: jnp.asarray(rng.normal(size=g.shape), jnp.float32), gates)}
        own = {**state.method["state"], **noise}  # spt's scores; movement's are trainable leaves
        new = prune(built, plan, state.params, gates, noise, own, target, True)
        for old, now in zip(*map(jax.tree.leaves, (gates, new)), strict=True):
            assert not (np.asarray(now) & ~np.asarray(old)).any()
        gates = new
    for leaf in jax.tree.leaves(gates):
        assert (~np.asarray(leaf)).sum() == round(0.9 * leaf.size)


def test_baseline_keeps_every_gate_open():
    gates = {"a": {"kernel": jnp.ones((2, 2), bool)}}
    baseline = methods.maker("baseline")()
    unchanged = prune(baseline, make_plan(gates), {}, gates, {}, {}, 0.9, True)
    assert not baseline.scheduled and jax.tree.all(jax.tree.map(np.array_equal, unchanged, gates))

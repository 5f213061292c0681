"""pj.prune: the steps by hand, exact zeros, rules, restored states, and networks and loops of every kind."""

import functools
import re
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_jax as pj
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.transform import reset_moments

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.fold_in(KEY, 1), (16, 8))
Y = jnp.sin(X @ jnp.arange(8.0))[:, None] * jnp.arange(1.0, 5.0)


def make_params(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (8, 12), dtype) / 3, "bias": jnp.full(12, 0.1, dtype)},
        "norm": {"scale": jnp.ones(12, dtype)},
        "out": {"kernel": jax.random.normal(keys[1], (12, 4), dtype) / 3, "bias": jnp.zeros(4, dtype)},
    }


def loss_of(params):
    hidden = jnp.tanh(X.astype(params["hidden"]["bias"].dtype) @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    out = (hidden * params["norm"]["scale"]) @ params["out"]["kernel"] + params["out"]["bias"]
    return jnp.mean((out - Y).astype(jnp.float32) ** 2)


def stepping(tx, loss=loss_of):
    """A jitted training step (params, state) -> (params, state), as a user writes it."""

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: loss(pj.masked(p, state)))(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    return step


def gates_of(state):
    """name -> NumPy gates."""
    return {name: np.asarray(gate) for name, gate in trees.by_name(pj.gates(state)).items()}


def assert_zeros(params, state):
    kernels = trees.by_name(params)
    for name, gate in gates_of(state).items():
        assert (np.asarray(kernels[name], np.float32)[~gate] == 0).all(), name


def once(params, sparsity=0.5, method=None, **given):
    """(params, state) after one step of gradients 0 and a one-shot schedule."""
    tx = pj.prune(optax.sgd(0.1), method or pj.magnitude(), pj.constant(sparsity), **given)
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    return optax.apply_updates(params, updates), state


def closed_counts(state):
    return {name: int((~gate).sum()) for name, gate in gates_of(state).items()}


# By hand -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.usefixtures("compiled_counts")
def test_steps_by_hand_with_momentum_and_decay(nesterov):
    """NumPy's float64 view of SGD with momentum 0.9 and decay 0.1, pruned at steps 2, 4, 5 on a straight line."""
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, momentum=0.9, nesterov=nesterov))
    tx = pj.prune(inner, pj.magnitude(), pj.linear(0.75, begin=0, end=5, every=2))
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32), "bias": jnp.ones(5)}
    w, b = (np.asarray(params[n], np.float64) for n in ("kernel", "bias"))
    opened, velocity, slow = np.ones((4, 5), bool), np.zeros((4, 5)), np.zeros(5)
    state, update = tx.init(params), jax.jit(tx.update)
    for count in range(1, 9):
        grads = {"kernel": rng.normal(size=(4, 5)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)

        d = np.where(opened, grads["kernel"], 0) + 0.1 * w
        velocity = 0.9 * velocity + d
        w = w - 0.5 * (d + 0.9 * velocity if nesterov else velocity)
        d = grads["bias"] + 0.1 * b
        slow = 0.9 * slow + d
        b = b - 0.5 * (d + 0.9 * slow if nesterov else slow)
        if count in (2, 4, 5):
            wanted = round({2: 0.3, 4: 0.6, 5: 0.75}[count] * 20)
            more = wanted - (~opened).sum()
            opened &= np.abs(w) > np.sort(np.abs(w)[opened])[more - 1]
            assert (~opened).sum() == wanted
        w = np.where(opened, w, 0)
        np.testing.assert_array_equal(pj.gates(state)["kernel"], opened)
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["bias"], b, rtol=1e-4, atol=1e-5)
        assert (np.asarray(params["kernel"])[~opened] == 0).all()
        assert float(pj.sparsity(state)) == pytest.approx((~opened).mean()) and int(state.step) == count
    assert update._cache_size() == 1
    assert pj.gates(state)["bias"] is None


METHODS = {  # the variants of the methods; test_conformance has every method as it comes
    "magnitude": pj.magnitude(),
    "movement soft": pj.movement(threshold="soft", frequency=2),
    "movement regrow": pj.movement(frequency=1, regrow=True),
    "spt all": pj.spt(
        epsilon=0.2, explorations=2, control_variate=True, antithetic=True, absolute=True, candidates="threshold"
    ),
    "spt layer movement": pj.spt(epsilon=0.3, credit="layer", inside="movement", explore_per_layer=True),
    "soft_weight_sharing": pj.soft_weight_sharing(components=3, num_examples=16, num_steps=12, tau_anneal=0.5),
}


def transformation(method, scope="local"):
    """With everything that could move a closed weight: decay, momentum, Nesterov, clipping in front of it."""
    schedule = pj.cubic(0.75, begin=1, end=9, every=2) if method.scheduled else None
    inner = optax.adamw(1e-2, weight_decay=0.3, nesterov=True)
    return optax.chain(optax.clip_by_global_norm(0.5), pj.prune(inner, method, schedule, scope=scope)), schedule


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("compiled_counts")
def test_the_life_of_every_method(name, tmp_path):
    """In a chain: zeros and targets at every step, one compilation, and a state that Orbax restores to the bit."""
    import orbax.checkpoint as ocp

    method = METHODS[name]
    tx, schedule = transformation(method, "global" if name in ("spt all", "movement soft") else "local")
    params, step = make_params(), stepping(tx)
    state = jax.jit(tx.init)(params)
    half, opened = None, gates_of(state)
    assert list(opened) == ["hidden/kernel", "out/kernel"] and all(gate.all() for gate in opened.values())
    for count in range(1, 13):
        before = params
        params, state = step(params, state)
        gates = gates_of(state)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        if method.alive:  # a closed weight stands still
            kernels = (jax.tree.leaves(gates_lib.kernels(p, pj.gates(state))) for p in (params, before))
            for kernel, old, was in zip(*kernels, opened.values(), strict=True):
                np.testing.assert_array_equal(np.asarray(kernel)[~was], np.asarray(old)[~was])
        else:
            assert_zeros(params, state)
        if not method.regrows:
            assert not any((gates[n] & ~opened[n]).any() for n in gates), "a mask reopened"
        if schedule is not None and bool(schedule.due(count)):
            target, total = schedule(count), sum(g.size for g in gates.values())
            closed = sum(int((~g).sum()) for g in gates.values())
            assert closed == pytest.approx(target * total, abs=len(gates) / 2 + 1e-6)
            if count == 9 and "layer" not in name:
                assert closed == total * 0.75
        opened = gates
        if count == 6:
            half = params, state
    assert step._cache_size() == 1, "an event compiled again"
    assert float(pj.sparsity(state)) == (0.75 if method.scheduled else 0.0)

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "half", jax.eval_shape(lambda p: (p, tx.init(p)), make_params()))
    assert jax.tree.structure(restored) == jax.tree.structure(half)
    for _ in range(6):
        restored = step(*restored)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_state_keeps_its_shapes_and_types(name, wide):
    """What lax.scan asks for, and what keeps a step from compiling twice; in 64-bit mode, too."""
    with jax.enable_x64(wide):
        tx, _ = transformation(METHODS[name])
        params = make_params()

        def after(params, state):
            grads = jax.grad(lambda p: loss_of(pj.masked(p, state)))(params)
            updates, state = tx.update(grads, state, params, value_fn=loss_of)
            return optax.apply_updates(params, updates), state

        first = jax.eval_shape(lambda p: (p, tx.init(p)), params)
        second = jax.eval_shape(after, *first)
        assert jax.tree.structure(first) == jax.tree.structure(second)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type), jax.tree_util.keystr(path)


@pytest.mark.parametrize("method", [pj.magnitude(), pj.movement(), pj.spt(), pj.soft_weight_sharing(num_examples=9)])
def test_a_caller_may_forbid_implicit_promotion(method):
    params = {"a": {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}, "b": {"kernel": jnp.ones((6, 4), jnp.bfloat16)}}
    tx = pj.prune(optax.sgd(0.1), method, pj.constant(0.5) if method.scheduled else None)
    loss = {"value_fn": lambda p: jnp.sum(p["a"]["kernel"] ** 2)} if method.explores else {}
    with jax.numpy_dtype_promotion("strict"):
        state = tx.init(params)
        _, state = jax.jit(lambda g, s, p: tx.update(g, s, p, **loss))(params, state, params)
    assert (float(pj.sparsity(state)) == 0.5) == method.scheduled


def test_it_runs_inside_scan_and_under_vmap():
    tx = pj.prune(optax.adam(1e-2), pj.magnitude(), pj.cubic(0.5, end=6, every=2))

    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_of)(params), state, params)
            return (optax.apply_updates(params, updates), state), pj.sparsity(state)

        return jax.lax.scan(step, (params, tx.init(params)), length=7)

    (params, state), sparsities = jax.jit(train)(make_params())
    counts = [0, round(96 * 0.5 * (1 - (4 / 6) ** 3)) + round(48 * 0.5 * (1 - (4 / 6) ** 3))]
    np.testing.assert_allclose(sparsities[:3], np.array([0, counts[1], counts[1]]) / 144, atol=1e-6)
    assert sparsities[5] == sparsities[6] == 0.5
    assert_zeros(params, state)
    pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), make_params(0), make_params(1))
    (both, states), _ = jax.jit(jax.vmap(train))(pair)
    np.testing.assert_array_equal(pj.gates(states)["out"]["kernel"][0], pj.gates(state)["out"]["kernel"])
    np.testing.assert_allclose(both["out"]["kernel"][0], params["out"]["kernel"], rtol=1e-4, atol=1e-6)


def test_a_step_of_grown_or_crowded_optimizers_leaves_zeros():
    """Updates of fewer bits than the params, and all-zero kernels, whose weights all tie."""
    to_half = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates))
    params = make_params() | {"zero": {"kernel": jnp.zeros((5, 5))}}
    for method in (pj.magnitude(), pj.rigl(frequency=1)):
        tx = pj.prune(optax.chain(optax.sgd(0.1), to_half), method, pj.constant(0.6))
        state, new = tx.init(params), params
        for _ in range(2):
            updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, new)
            new = optax.apply_updates(new, updates)
            assert_zeros(new, state)
        assert closed_counts(state) == {"hidden/kernel": 58, "out/kernel": 29, "zero/kernel": 15}


# Sparsity and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything(sparsity):
    params, state = once(make_params(), sparsity)
    assert float(pj.sparsity(state)) == sparsity
    assert all((gate == (sparsity == 0)).all() for gate in gates_of(state).values())
    assert_zeros(params, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pj.magnitude(),
        pj.movement(),
        pj.set(frequency=1),
        pj.rigl(frequency=1),
        pj.spt(epsilon=0.5),
        pj.spt(epsilon=0.5, credit="layer"),
    ],
    ids=["magnitude", "movement", "set", "rigl", "spt", "spt layer"],
)
def test_empty_and_tiny_kernels(method):
    params = {"empty": jnp.ones((0, 4)), "one": jnp.ones((1, 1)), "w": jnp.arange(1.0, 17).reshape(4, 4)}
    tx = pj.prune(optax.adam(0.1), method, pj.constant(0.5))
    state, step = tx.init(params), stepping(tx, lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)))
    for _ in range(2):
        params, state = step(params, state)
    assert closed_counts(state) == {"empty": 0, "one": 0, "w": 8}  # round(0.5) is 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_bfloat16_params_and_scores():
    params = make_params(dtype=jnp.bfloat16)
    for method in (pj.magnitude(), pj.movement(regrow=False), pj.spt(epsilon=0.2), pj.rigl(frequency=1)):
        tx = pj.prune(optax.adam(0.1), method, pj.constant(0.5))
        state, step, new = tx.init(params), stepping(tx), params
        for _ in range(2):
            new, state = step(new, state)
        assert closed_counts(state) == {"hidden/kernel": 48, "out/kernel": 24}, method.name
        assert_zeros(new, state)
        assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_soft_weight_sharing_trains_and_packs_few_bits(dtype):
    params, method = make_params(dtype=dtype), pj.soft_weight_sharing(components=3, num_examples=16, pi0=0.5)
    tx = pj.prune(optax.sgd(0.01), method)
    state, step = tx.init(params), stepping(tx)
    for _ in range(3):
        params, state = step(params, state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    packed, gates = pj.finish(method, params, state)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, packed))} == {np.dtype(dtype)}
    assert len(np.unique(packed["hidden"]["kernel"])) <= 3
    assert ((packed["out"]["kernel"] != 0) == gates["out"]["kernel"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_that_is_not_finite_does_not_stay_in_the_scores(name):
    """As loss scaling makes them: the optimizer skips the step, and so does what the method remembers."""
    method = METHODS[name]
    schedule = pj.constant(0.5, begin=4) if method.scheduled else None
    tx = pj.prune(optax.apply_if_finite(optax.sgd(0.1), 9), method, schedule)

    def run(bad):
        params = make_params()
        state = tx.init(params)

        @jax.jit
        def step(params, state, factor):
            grads = jax.grad(lambda p: loss_of(pj.masked(p, state)) * factor)(params)
            updates, state = tx.update(grads, state, params, value_fn=lambda p: loss_of(p) * factor)
            return optax.apply_updates(params, updates), state

        for count in range(6):
            params, state = step(params, state, jnp.float32(bad if count == 1 else 1))
        return params, state

    params, state = run(float("nan"))
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, state)):
        assert np.isfinite(leaf).all(), trees.name(path)
    assert float(pj.sparsity(state)) == (0.5 if method.scheduled else 0)
    if name in ("movement", "movement regrow"):  # sums: a step without a gradient adds nothing
        without = run(0.0)[1]
        for gate, other in zip(*(gates_of(s).values() for s in (state, without)), strict=True):
            np.testing.assert_array_equal(gate, other)


# Rules ---------------------------------------------------------------------------------------------------------------


def wide_params():
    keys = iter(jax.random.split(KEY, 9))
    kernel = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    return {
        "token_embedding": {"embedding": kernel(10, 8)},
        "attention": {"kernel": kernel(8, 2, 4), "bias": kernel(2, 4)},
        "mlp": {"kernel": kernel(8, 16), "bias": kernel(16)},
        "head": {"kernel": kernel(16, 4), "bias": kernel(4)},
    }


def test_rules_keep_set_sparsities_and_structures_and_the_first_wins():
    rules = {
        "head": pj.KEEP,
        "attention": pj.Rule(structure="2:4", axis=0),
        "mlp/kernel": pj.Rule(sparsity=0.25),
        "mlp": pj.Rule(sparsity=0.99),  # comes too late
        "embedding": pj.Rule(sparsity=0.1),
        "attention/bias": pj.Rule(sparsity=0.75),
    }
    params, state = once(wide_params(), 0.5, rules=rules)
    assert closed_counts(state) == {
        "attention/bias": 6, "attention/kernel": 32, "mlp/kernel": 32, "token_embedding/embedding": 8,
    }  # fmt: skip
    runs = gates_of(state)["attention/kernel"].reshape(2, 4, 2, 4)
    assert (runs.sum(1) == 2).all(), "not 2 of every 4 inputs"
    gates = pj.gates(state)
    assert gates["head"]["kernel"] is None and gates["mlp"]["bias"] is None
    assert_zeros(params, state)
    np.testing.assert_array_equal(params["head"]["kernel"], wide_params()["head"]["kernel"])


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_rules_sparsity_is_its_own_under_either_scope(scope):
    params = wide_params()
    params["mlp"]["kernel"] *= 100  # by itself it would close last
    rules = {"mlp": pj.Rule(sparsity=0.75), "attention": pj.Rule(sparsity=1.0)}
    _, state = once(params, 0.5, scope=scope, rules=rules)
    assert closed_counts(state) == {"attention/kernel": 64, "head/kernel": 32, "mlp/kernel": 96}


def test_a_rules_sparsity_follows_the_schedules_way():
    rules = {"mlp": pj.Rule(sparsity=0.4)}
    tx = pj.prune(optax.sgd(0.1), pj.magnitude(), pj.linear(0.8, end=4), rules=rules)
    params = wide_params()
    state, update = tx.init(params), jax.jit(tx.update)
    for count in range(1, 5):
        _, state = update(params, state, params)
        closed = closed_counts(state)
        assert closed["head/kernel"] == round(0.2 * count * 64) and closed["mlp/kernel"] == round(0.1 * count * 128)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_global_scope_ranks_kernels_together(scope):
    params = {"a": jnp.arange(1.0, 17).reshape(4, 4), "b": jnp.arange(17.0, 33).reshape(4, 4)}
    _, state = once(params, 0.5, scope=scope)
    assert closed_counts(state) == ({"a": 16, "b": 0} if scope == "global" else {"a": 8, "b": 8})


def units():
    return (
        pj.Group(
            "mlp", "unit", 16, (pj.Member.split("mlp/kernel", 1, (16,)), pj.Member.split("head/kernel", 0, (16,)))
        ),
        pj.Group("heads", "head", 2, (pj.Member.split("attention/kernel", 1, (2,)),)),
    )


def test_a_target_of_few_weights_is_said_with_their_share():
    def say(structure):
        tx = pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(0.5), structure=structure, groups=units())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            tx.init(wide_params())
        return [str(one.message) for one in said]

    assert say("unit+head") == say("auto") == []
    (text,) = say("head")  # 64 of 256 weights
    assert "structure='head' and the rules cover 25% of the prunable weights" in text
    assert text.endswith("This network has groups of kind unit, head")


def test_groups_that_cannot_be_cut_are_told_with_their_reason():
    unit, heads = units()
    locked = (unit, heads._replace(reason="sort goes by the order along it"))
    for text, says in {
        "head": "has 'head', of which no unit can be cut (heads: sort goes by the order along it); allowed: "
        "unstructured, auto, unit, block:RxC, n:m",
        "auto": "has no group whose units can be cut; mlp: its mean is read; heads: sort goes by the order along it",
    }.items():
        groups = (
            locked if text == "head" else (unit._replace(exact=False, inexact_because="its mean is read"), locked[1])
        )
        with pytest.raises(ValueError, match=re.escape(says)):
            pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(0.5), structure=text, groups=groups)


def test_groups_close_whole_and_a_rule_takes_its_kernels_out():
    params, state = once(wide_params(), 0.5, structure="unit+head", groups=units())
    gates = gates_of(state)
    rows = np.concatenate([gates["mlp/kernel"].T, gates["head/kernel"]], axis=1)
    assert (rows.all(1) | ~rows.any(1)).all() and (~rows.any(1)).sum() == 8
    heads = gates["attention/kernel"].transpose(1, 0, 2).reshape(2, -1)
    assert (heads.all(1) | ~heads.any(1)).all() and heads.any(1).sum() == 1
    assert_zeros(params, state)
    _, state = once(wide_params(), 0.5, structure="unit+head", groups=units(), rules={"attention": pj.KEEP})
    assert closed_counts(state) == {"mlp/kernel": 64, "head/kernel": 32}
    rules = {"mlp": pj.Rule(structure="unstructured", sparsity=0.25)}
    _, state = once(wide_params(), 0.5, structure="unit+head", groups=units(), rules=rules)
    assert closed_counts(state) == {"attention/kernel": 32, "head/kernel": 0, "mlp/kernel": 32}


def prune(**given):
    defaults = {"optimizer": optax.sgd(0.1), "method": pj.magnitude(), "schedule": pj.constant(0.5)}
    return pj.prune(**{**defaults, **given})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"optimizer": optax.sgd}, TypeError, "optimizer is .*allowed: an optax optimizer"),
        ({"method": pj.magnitude}, TypeError, r"method is .*allowed: a Method, such as pj.magnitude\(\)"),
        ({"method": "magnitude"}, TypeError, "method is 'magnitude'"),
        ({"schedule": 0.5}, TypeError, "schedule is 0.5; allowed: a Schedule"),
        ({"schedule": None}, ValueError, "schedule is None; magnitude needs one, such as pj.cubic"),
        ({"scope": "layer"}, ValueError, "scope is 'layer'; allowed: local, erk, global"),
        ({"structure": "3:2"}, ValueError, "'3:2' is no structure; allowed: unstructured"),
        ({"rules": [("a", pj.KEEP)]}, TypeError, "rules is .*allowed: a dict"),
        ({"rules": {"a": 0.5}}, TypeError, "the rule 'a' is 0.5; allowed: a Rule"),
        ({"rules": {"a": pj.Rule(structure="head")}}, ValueError, "a rule's structure is 'head'; allowed"),
        ({"rules": {"a": pj.Rule(structure="2;4")}}, ValueError, "'2;4' is no structure"),
        ({"seed": "1"}, TypeError, "seed is '1'; allowed: a whole number"),
        ({"seed": True}, TypeError, "seed is True; allowed: a whole number"),
        ({"seed": 2**70}, ValueError, "seed is 1180591620717411303424; allowed: a whole number of 64 bits"),
        ({"structure": None}, TypeError, "structure is None; allowed: a text, such as '2:4'"),
        (
            {"structure": units()},
            TypeError,
            r"structure is \(Group\(.{70,80}\.\.\.; allowed: a text, .* groups= for Groups",
        ),
        ({"structure": 4}, TypeError, "structure is 4; allowed: a text"),
        ({"groups": None}, TypeError, r"groups is None; allowed: what pj\.trace returned, or a sequence of Group"),
        ({"groups": {"a": 1}}, TypeError, "groups is .*allowed: what"),
        ({"groups": 3}, TypeError, "groups is 3; allowed: what"),
        ({"rules": {0: pj.KEEP}}, TypeError, "a rule's pattern is 0; allowed: a text"),
        (
            {"method": pj.soft_weight_sharing(num_examples=9)},
            ValueError,
            "schedule is given, and sws closes nothing while it trains; allowed: None",
        ),
        (
            {"schedule": pj.constant(0.0), "rules": {"a": pj.Rule(sparsity=0.5)}},
            ValueError,
            "the rule 'a' has sparsity 0.5, which is reached on the schedule's way, and the schedule ends at 0",
        ),
    ],
)
def test_wrong_arguments_are_told_at_once(given, error, message):
    with pytest.raises(error, match=message):
        prune(**given)


@pytest.mark.parametrize(
    ("given", "params", "message"),
    [
        ({"structure": "head"}, {}, "no groups of kind 'head'; allowed: unstructured, block:RxC, n:m"),
        ({"structure": "pooler", "groups": units()}, {}, "kind 'pooler'; allowed: unstructured, auto, unit"),
        ({"structure": "2:4"}, {"w": (8, 3, 5)}, r"w: 2:4 does not divide axis 1 of a kernel of shape \(8, 3, 5\)"),
        ({"structure": "block:2x2"}, {"w": (8, 5)}, "w: block:2x2 does not divide axis 1"),
        ({"rules": {"qurey": pj.KEEP}}, {}, "the rule 'qurey' matches no weight; the weights are attention/bias, "),
        ({"rules": {"count": pj.Rule()}}, {"count": None}, "the rule 'count' matches no weight"),
        ({"rules": {"[": pj.KEEP}}, {}, r"the rule '\[' is no regular expression"),
        ({"rules": {"kernel": pj.KEEP}}, {}, r"there is no kernel to prune that no rule keeps \('kernel'\)"),
        ({"rules": {"mlp/bias": pj.Rule(structure="2:4")}}, {}, "mlp/bias: 2:4 needs a kernel of two axes"),
        ({"rules": {"mlp": pj.Rule(structure="2:4", sparsity=0.9)}}, {}, "0.9; allowed with 2:4: up to 0.5"),
        ({"rules": {"mlp": pj.Rule(structure="2:4", axis=2)}}, {}, "axis is 2; mlp/kernel has 2 axes"),
        ({}, {"bias": (3, 3)}, "there is no kernel to prune: the leaves of params are bias"),
        (
            {"structure": "unit", "groups": units(), "rules": {"mlp": pj.KEEP}},
            {},
            r"there is nothing to prune: structure 'unit', and the rules name .* closes: 'mlp' of mlp \(mlp/kernel\)",
        ),
        (
            {"structure": "u", "groups": (pj.Group("g", "u", 4, (pj.Member.split("mpl/kernel", 0, (4,)),)),)},
            {},
            "the group 'g': there is no weight 'mpl/kernel'; the weights are ",
        ),
        (
            {"structure": "u", "groups": (pj.Group("g", "u", 4, (pj.Member.split("mlp/kernel", 0, (4,)),)),)},
            {},
            r"the group 'g': units of shape \(4,\) are not one per index of axis 0 of mlp/kernel \(8, 16\)",
        ),
        (
            {"structure": "u", "groups": (pj.Group("g", "u", 4, (pj.Member.split("mlp/kernel", 0, (8,)),)),)},
            {},
            "the group 'g': it has 4 units, and mlp/kernel has 8",
        ),
        ({"method": pj.set(), "structure": "block:2x2"}, {"w": (4, 4)}, "structure is 'block:2x2'; allowed with set"),
        ({"method": pj.rigl(), "structure": "2:4"}, {"w": (4, 4)}, "structure is '2:4'; allowed with set and rigl"),
        ({"method": pj.spt(credit="group")}, {}, "credit is 'group'; allowed: with a structure of groups"),
        ({}, {"a/b": {"c": (2, 2)}, "a": {"b/c": (2, 2)}}, "two leaves of params are called 'a/b/c'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_network_is_told_at_init(given, params, message):
    made = jax.tree.map(
        lambda shape: jnp.int32(1) if shape is None else jnp.ones(shape),
        params,
        is_leaf=lambda x: x is None or isinstance(x, tuple),
    )
    if list(params) == ["count"]:
        made |= wide_params()
    with pytest.raises(ValueError, match=message):
        prune(**given).init(made or wide_params())


def test_a_target_that_may_empty_a_group_is_told():
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones((6, 5)), "c": jnp.ones((5, 2))}
    pairs = (("a", 6, ("a", 1), ("b", 0)), ("b", 5, ("b", 1), ("c", 0)))
    groups = [
        pj.Group(name, "u", n, tuple(pj.Member.split(weight, axis, (n,)) for weight, axis in places))
        for name, n, *places in pairs
    ]
    # One unit of each leaves 4 + 1 + 2 of 64 weights; without that of b, 4 of them.
    for end, says in ((0.89, False), (0.92, False), (0.95, True)):
        tx = pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(end), structure="u", groups=groups, scope="global")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            jax.eval_shape(tx.init, params)
        assert [(": b may lose the last one" in str(one.message)) for one in told] == [True] * says


def test_what_an_update_needs_is_told():
    params = make_params()
    tx = prune(method=pj.spt())
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"params is None; allowed: the params, as in tx\.update"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="value_fn is None; spt runs the batch again: allowed: params -> its loss"):
        tx.update(params, state, params)
    tx = pj.prune(optax.sgd(0.1), pj.soft_weight_sharing())
    with pytest.raises(ValueError, match="num_examples is None; allowed: a whole number"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"there are 0 states of pj\.prune in a tuple; allowed: one"):
        pj.gates(optax.sgd(0.1).init(params))


@pytest.mark.parametrize("read", [pj.sparsity, pj.layer_sparsity, lambda x: pj.masked(make_params(), x)])
def test_only_gates_are_read_as_gates(read):
    """Weights, another optimizer's state, and a state that was restored as plain dicts hold no gates: no numbers."""
    params = make_params()
    tx = prune(optimizer=optax.adam(0.1))
    for wrong in (params, optax.adam(0.1).init(params), tx.init(params)._asdict(), {"kernel": None, "count": 3}):
        with pytest.raises(TypeError, match=r"holds no state of pj\.prune, and its leaf .* is no gate; allowed: "):
            read(wrong)
    for wrong in (optax.sgd(0.1).init(params), None):
        with pytest.raises(TypeError, match=r"holds no state of pj\.prune and no gate; allowed: "):
            read(wrong)
    for right in (tx.init(params), (tx.init(params),), pj.gates(tx.init(params)), {}):
        read(right)


def test_layer_sparsity_reads_a_state_as_sparsity_does():
    _, state = once(make_params())
    assert pj.layer_sparsity((state,)) == pj.layer_sparsity(pj.gates(state)) == {"hidden": 0.5, "out": 0.5}


def test_arguments_of_another_place_are_told():
    params, grads = make_params(), make_params(1)
    tx, method = prune(), pj.soft_weight_sharing(num_examples=9)
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"state is a dict; allowed: what init or update .*tx\.update\(grads, state"):
        tx.update(grads, params, state)
    with pytest.raises(ValueError, match="the params of update differ from those of init in 'other/bias', "):
        tx.update(grads | {"other": grads["out"]}, state, params | {"other": params["out"]})
    with pytest.raises(ValueError, match="the params of update differ from those of init in 'out/kernel', "):
        tx.update(grads, state, params | {"out": {"kernel": jnp.ones((3, 4)), "bias": params["out"]["bias"]}})
    with pytest.raises(TypeError, match="method is a dict; allowed: a Method"):
        pj.finish(params, method, state)
    with pytest.raises(ValueError, match="method is sws; allowed: the one that was trained"):
        pj.finish(method, params, state)
    with_function = params | {"activation": jnp.tanh}  # as an equinox module has
    assert pj.finish(method, with_function, pj.prune(optax.sgd(0.1), method).init(params))[1]["out"]["bias"] is None


# Trees ---------------------------------------------------------------------------------------------------------------


class Attributes(NamedTuple):
    w: jax.Array
    rest: list


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "closed"),
    [
        (jnp.arange(1.0, 17).reshape(4, 4), {"": 8}),
        ([(jnp.ones((4, 4)), jnp.ones(4)), (jnp.ones((4, 2)), None)], {"0/0": 8, "1/0": 4}),
        (Attributes(jnp.ones((2, 3, 4)), [jnp.ones((2, 2)), {"b": jnp.ones(2)}]), {"w": 12, "rest/0": 2}),
        ({0: jnp.ones((2, 2)), 1: (jnp.ones((2, 2)),)}, {"0": 2, "1/0": 2}),
    ],
    ids=["array", "lists", "attributes", "numbers"],
)
@pytest.mark.parametrize("method", [pj.magnitude(), pj.rigl(frequency=1)], ids=["magnitude", "rigl"])
def test_trees_of_any_keys(tree, closed, method):
    tx = pj.prune(optax.adam(0.1), method, pj.constant(0.5))
    state = tx.init(tree)
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, tree), state, tree)
    assert closed_counts(state) == closed
    new = optax.apply_updates(tree, updates)
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    assert_zeros(new, state)
    assert jax.tree.structure(pj.gates(state), is_leaf=lambda x: x is None) == jax.tree.structure(
        tree, is_leaf=lambda x: x is None
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.multi_transform(
            {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)},
            lambda params: {name: "a" if name == "out" else "b" for name in params},
        ),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
        optax.MultiSteps(optax.adam(0.1), 2),
        optax.inject_hyperparams(optax.adamw)(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.apply_if_finite(optax.lion(0.1), 3),
    ],
    ids=["multi_transform", "adafactor", "MultiSteps", "inject_hyperparams", "apply_if_finite"],
)
def test_reopened_weights_start_anew_under_any_optimizer(optimizer):
    params = make_params()
    tx = pj.prune(optimizer, pj.rigl(frequency=1, fraction=0.5), pj.constant(0.5))
    state, step = tx.init(params), stepping(tx)
    for _ in range(3):
        params, state = step(params, state)
        assert_zeros(params, state)
    assert closed_counts(state) == {"hidden/kernel": 48, "out/kernel": 24}


def test_moments_are_known_by_the_end_of_their_path_and_their_shape():
    params = make_params()
    state = jax.tree.map(lambda x: x + 1, optax.adam(0.1).init(params))
    reopened = gates_lib.open_gates(params)
    reopened["out"]["kernel"] = jnp.zeros((12, 4), bool).at[0].set(True)
    reopened["hidden"]["kernel"] = jnp.zeros((8, 12), bool)
    new = reset_moments(state, reopened)
    for moments in (new[0].mu, new[0].nu):
        np.testing.assert_array_equal(moments["out"]["kernel"][:, 0], [0] + [1] * 11)
        assert (moments["hidden"]["kernel"] == 1).all() and (moments["out"]["bias"] == 1).all()
    assert new[0].count == 1


def test_two_prunings_in_one_state():
    """Each group of params under a transformation of its own."""
    tx = optax.multi_transform(
        {
            "a": pj.prune(optax.adam(0.1), pj.magnitude(), pj.constant(0.25)),
            "b": pj.prune(optax.adam(0.1), pj.movement(regrow=True), pj.constant(0.75)),
        },
        {"hidden": "a", "norm": "a", "out": "b"},
    )
    params = make_params()
    state, step = tx.init(params), stepping(tx)
    params, state = step(params, state)
    assert float(pj.sparsity(state)) == pytest.approx((24 + 36) / 144)
    masked = pj.masked(params, state)
    assert [(np.asarray(masked[n]["kernel"]) == 0).sum() for n in ("hidden", "out")] == [24, 36]
    with pytest.raises(ValueError, match=r"there are 2 states of pj\.prune"):
        pj.gates(state)


def test_seeds_and_keys():
    params = jax.tree.map(jnp.zeros_like, make_params())  # ties everywhere
    found = [gates_of(once(params, seed=seed)[1])["hidden/kernel"] for seed in
             (0, np.int64(0), jax.random.key(0), 1, jax.random.key(0, impl="rbg"))]  # fmt: skip
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert (found[0] != found[3]).any() and (found[0] != found[4]).any()


def test_a_donated_state_takes_nothing_with_it():
    seed = jax.random.key(3)
    tx = pj.prune(optax.adam(1e-2), pj.magnitude(), pj.constant(0.5), seed=seed)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params = make_params()
        assert pj.sparsity(step(params, tx.init(params))[1]) == pytest.approx(0.5)
    assert not seed.is_deleted()


@pytest.mark.parametrize("name", ["magnitude", "sensitivity", "platon"])
def test_a_donated_step_copies_no_weights(name):
    """A copy of the weights beside the scores made PLATON's step a tenth longer."""
    params = {"kernel": jnp.ones((24, 40))}
    tx = pj.prune(optax.adam(1e-2), getattr(pj, name)(), pj.constant(0.5))

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile().as_text()
    entry = compiled[compiled.index("\nENTRY ") :]
    assert "f32[24,40]" in entry and not re.findall(r"f32\[24,40\]\S* copy\(", entry)


def test_a_method_that_reads_the_weights_after_the_step_measures_the_step():
    """Such a one, too: its state is made before the gates are updated, of the same step."""

    def after_step(info, state):
        return {"scores": jax.tree.map(lambda new, old: -jnp.abs(new - old), *(
            gates_lib.kernels(tree, info.gates) for tree in (info.params, info.params_before)
        ))}  # fmt: skip

    def prune(info):
        return pj.Pruned(info.plan.close(info.gates, info.state["scores"], info.target, info.key))

    def init(params, gates, plan):
        return {"scores": gates_lib.zeros(gates)}

    method = pj.Method("still", init=init, after_step=after_step, prune=prune)
    params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
    grads = {"kernel": jnp.array([[5.0, 1, 6, 2], [7, 3, 8, 4]])}  # the farthest moved close first
    tx = pj.prune(optax.sgd(0.1), method, pj.constant(0.5))
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_array_equal(pj.gates(state)["kernel"], grads["kernel"] < 4.5)
    np.testing.assert_allclose(state.method["scores"]["kernel"], -0.1 * grads["kernel"], rtol=1e-5)
    moved = (params["kernel"] - 0.1 * grads["kernel"]) * pj.gates(state)["kernel"]
    np.testing.assert_allclose(optax.apply_updates(params, updates)["kernel"], moved, rtol=1e-6)

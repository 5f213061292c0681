"""Gates: what a closed gate does, exact selection against NumPy, samples that can be drawn again."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_jax import gates as gates_lib
from prune_jax.models import Bert, BertConfig, GatedDense

CFG = BertConfig(vocab_size=50, num_layers=2, d_model=16, num_heads=2, d_ff=32, dropout=0.0)
IDS = jnp.arange(24).reshape(2, 12) % 50
INPUTS = (IDS, jnp.zeros_like(IDS), jnp.ones_like(IDS))


def init(cfg=CFG):
    variables = Bert(cfg).init(jax.random.key(0), *INPUTS)
    return variables["params"], variables["gates"]


def test_gates_mirror_the_kernels_and_nothing_else():
    params, gates = init()
    paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(gates)}
    kernels = {path for path, _ in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"}
    assert paths == kernels
    for gate, kernel in zip(jax.tree.leaves(gates), jax.tree.leaves(gates_lib.kernels(params, gates)), strict=True):
        assert gate.shape == kernel.shape and gate.dtype == bool and bool(gate.all())
    assert gates_lib.present_types(gates) == (
        "query", "key", "value", "attention_output", "ffn_hidden", "ffn_output", "classifier",
    )  # fmt: skip
    assert gates_lib.layer_types(init(BertConfig(50, 1, 16, 2, 32, 1, regression=True))[1])[-2:] == ["regressor"] * 2


def test_closed_gates_behave_as_removed_weights_and_get_no_gradient():
    params, gates = init()
    gates = jax.tree.map(lambda g, k: jax.random.bernoulli(k, 0.5, g.shape), gates, key_tree(gates))
    removed = apply_to_kernels(params, gates)
    ones = jax.tree.map(jnp.ones_like, gates)

    def loss(params, gates):
        return jnp.sum(Bert(CFG).apply({"params": params, "gates": gates}, *INPUTS) ** 2)

    np.testing.assert_array_equal(loss(params, gates), loss(removed, ones))
    grads = gates_lib.kernels(jax.grad(loss)(params, gates), gates)
    for grad, gate in zip(jax.tree.leaves(grads), jax.tree.leaves(gates), strict=True):
        assert (np.asarray(grad)[~np.asarray(gate)] == 0).all()
        assert np.abs(np.asarray(grad)[np.asarray(gate)]).max() > 0


def key_tree(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, list(jax.random.split(jax.random.key(1), len(leaves))))


def apply_to_kernels(params, gates):
    flat = dict(jax.tree_util.tree_leaves_with_path(gates))
    return jax.tree_util.tree_map_with_path(lambda path, p: p * flat[path] if path in flat else p, params)


def test_float_gates_scale_and_missing_gates_mean_dense():
    layer, x = GatedDense(3), jnp.arange(8.0).reshape(2, 4)
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    half = {"kernel": jnp.full((4, 3), 0.5)}
    np.testing.assert_allclose(layer.apply({**variables, "gates": half}, x), x @ (kernel * 0.5), rtol=1e-6)
    np.testing.assert_allclose(layer.apply({"params": variables["params"]}, x), x @ kernel, rtol=1e-6)


def reference_must_close(scores, opened, k):
    """NumPy's view of a selection: what closes for sure, and how many of which ties."""
    threshold = np.partition(scores[opened], k - 1)[k - 1]
    sure = opened & (scores < threshold)
    return sure, opened & (scores == threshold), k - sure.sum()


@pytest.mark.parametrize("on_host", [True, False])  # False: the selection that accelerators use
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    levels=st.integers(1, 50),
    closed=st.floats(0, 0.9),
    target=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_close_lowest_equals_numpy_partition_with_ties(on_host, shape, levels, closed, target, seed):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-levels, levels + 1, shape) / 7).astype(np.float32)
    gates = rng.random(shape) >= closed
    trees = {"a": jnp.asarray(gates)}, {"a": jnp.asarray(scores)}
    with mock.patch.object(gates_lib, "_on_host", lambda leaves: on_host):
        new = np.asarray(gates_lib.close_lowest(*trees, target, jax.random.key(seed))["a"])
    assert not (new & ~gates).any(), "a mask reopened"
    k = round(target * gates.size) - (~gates).sum()
    if k <= 0:
        np.testing.assert_array_equal(new, gates)
        return
    assert (~new).sum() == round(target * gates.size)
    sure, ties, among_ties = reference_must_close(scores, gates, k)
    assert not new[sure].any()
    assert (gates & ~new & ~sure & ~ties).sum() == 0
    assert (ties & ~new).sum() == among_ties


@pytest.mark.parametrize("on_device", [False, True])
def test_global_scope_ranks_all_kernels_together(on_device, monkeypatch):
    if on_device:  # the selection that accelerators use
        monkeypatch.setattr(gates_lib, "_on_host", lambda leaves: False)
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(size=(30, 20)), "b": 3 * rng.normal(size=(50,)), "c": np.zeros((4, 4))}
    scores = {name: jnp.asarray(value, jnp.float32) for name, value in scores.items()}
    gates = {name: jnp.ones(value.shape, bool) for name, value in scores.items()}
    new = gates_lib.close_lowest(gates, scores, 0.5, jax.random.key(0), "global")
    flat = np.concatenate([np.asarray(scores[n]).ravel() for n in scores])
    kept = np.concatenate([np.asarray(new[n]).ravel() for n in scores])
    threshold = np.partition(flat, len(flat) // 2 - 1)[len(flat) // 2 - 1]
    np.testing.assert_array_equal(kept, flat > threshold)
    assert gates_lib.sparsity(new) == pytest.approx(0.5, abs=1 / len(flat))


def test_ties_fall_at_random_and_by_the_key():
    gates, scores = {"a": jnp.ones(1000, bool)}, {"a": jnp.zeros(1000)}
    runs = [np.asarray(gates_lib.close_lowest(gates, scores, 0.5, jax.random.key(i))["a"]) for i in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert 350 < (runs[0] != runs[2]).sum() < 650
    assert 200 < (~runs[0][:500]).sum() < 300, "the ties are not spread over the kernel"


def test_close_lowest_knows_infinities_negative_zero_and_nan():
    scores = jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0, 0.0, -1.0, 1e-40])
    order = [2, 5]  # -inf, -1, then the two zeros tie
    for k, expected in ((1, order[:1]), (2, order[:2]), (4, [2, 5, 3, 4]), (6, [2, 5, 3, 4, 6, 1])):
        new = gates_lib.close_lowest({"a": jnp.ones(7, bool)}, {"a": scores}, k / 7, jax.random.key(0))["a"]
        assert set(np.flatnonzero(~np.asarray(new))) == set(expected)


@pytest.mark.parametrize(("target", "scope", "message"), [(1.1, "local", "1.1"), (0.5, "layer", "layer")])
def test_close_lowest_refuses(target, scope, message):
    with pytest.raises(ValueError, match=message):
        gates_lib.close_lowest({"a": jnp.ones(2, bool)}, {"a": jnp.ones(2)}, target, jax.random.key(0), scope)


def test_layer_sparsity_and_count():
    gates = {"m": {"kernel": jnp.array([[True, False], [False, False]])}, "n": {"kernel": jnp.ones(4, bool)}}
    assert gates_lib.count(gates) == 8
    assert gates_lib.layer_sparsity(gates) == {"m": 0.75, "n": 0.0}
    assert gates_lib.sparsity(gates) == 3 / 8


def test_samples_are_a_pure_function_of_key_step_pass_and_layer():
    gates = {name: {"kernel": jnp.ones((200, 300), bool).at[0].set(False)} for name in ("query", "key")}
    epsilon = [jnp.float32(0.01)] * 2

    def draw(key=0, step=3, explore_pass=1):
        return gates_lib.sample(jax.random.key(key), jnp.int32(step), jnp.int32(explore_pass), gates, epsilon)

    first = jax.jit(draw)()
    for other, same in ((draw(), True), (draw(key=1), False), (draw(step=4), False), (draw(explore_pass=2), False)):
        assert all(bool((a == b).all()) == same for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))
    a, b = (np.asarray(first[n]["kernel"]) for n in ("query", "key"))
    assert not (a == b).all(), "two layers share a sample"
    for drawn in (a, b):
        assert not drawn[0].any(), "a closed gate was sampled"
        assert abs(drawn[1:].sum() - 0.01 * drawn[1:].size) < 5 * np.sqrt(0.01 * drawn[1:].size)


def test_sampling_is_uniform_over_the_kernel():
    gates = {"a": {"kernel": jnp.ones((64, 64), bool)}}
    epsilon = [jnp.float32(0.1)]
    draw = jax.jit(lambda step: gates_lib.sample(jax.random.key(0), step, jnp.int32(0), gates, epsilon))
    hits = sum(np.asarray(draw(jnp.int32(step))["a"]["kernel"]).astype(int) for step in range(300))
    z = (hits - 30) / np.sqrt(300 * 0.1 * 0.9)
    assert abs(z.mean()) < 0.06 and 0.9 < z.std() < 1.1 and np.abs(z).max() < 6

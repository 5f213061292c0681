"""Gates: who has one, what a closed one does, samples that can be drawn again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_jax.models import Bert, BertConfig, GatedDense
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import plan as plan_lib
from prune_jax.run import state as state_lib

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
    assert state_lib.make_plan(Bert(CFG), gates, "unstructured", "local").type_indices(gates)[0] == (
        "query", "key", "value", "attention_output", "ffn_hidden", "ffn_output", "classifier",
    )  # fmt: skip
    regression = BertConfig(50, 1, 16, 2, 32, 1, regression=True)
    gates = init(regression)[1]
    plan = state_lib.make_plan(Bert(regression), gates, "unstructured", "local")
    assert plan.layer_types(gates)[-2:] == ["regressor"] * 2


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


@pytest.mark.parametrize(
    ("name", "shape", "kernel"),
    [
        ("dense/kernel", (2, 3), True),
        ("normal_init/kernel", (2, 3), True),
        ("scale_0/kernel", (2, 3), True),
        ("mlp/bias/layers/0/weight", (2, 3), True),
        ("attention/key/bias", (2, 3), False),
        ("film_scale", (2, 3), False),
        ("scale/0", (2, 3), False),
        ("layers/0/weight", (2, 3), True),
        ("0/0", (2, 3), True),
        ("", (2, 3), True),
        ("w", (4, 4, 4), True),
        ("dense/bias", (2, 3), False),  # of DenseGeneral, or stacked
        ("attention_norm/scale", (2, 3), False),
        ("LayerNorm_0/scale", (2, 3), False),
        ("ln_1/weight", (2, 3), False),
        ("ln1/weight", (2, 3), False),
        ("batch_norm/weight", (2, 3), False),
        ("bn1/weight", (2, 3), False),
        ("token_embedding/embedding", (9, 3), False),
        ("pos_emb", (9, 3), False),
        ("dense/kernel", (3,), False),
        ("dense/kernel", (), False),
    ],
)
def test_who_is_a_kernel(name, shape, kernel):
    assert gates_lib.is_kernel(name, jnp.zeros(shape)) == kernel
    assert gates_lib.is_kernel(name, jnp.zeros(shape, jnp.bfloat16)) == kernel
    assert not gates_lib.is_kernel(name, jnp.zeros(shape, jnp.int32))
    assert not gates_lib.is_kernel(name, jnp.zeros(shape, jnp.complex64))


def test_leaves_without_a_gate_are_none_and_empty_kernels_count_for_nothing():
    params = {"a": {"kernel": jnp.ones((0, 3)), "bias": jnp.ones(3)}, "b": [jnp.ones((2, 2)), None, jnp.ones(2)]}
    gates = gates_lib.open_gates(params)
    assert gates["a"]["bias"] is None and gates["b"][1] is None and gates["b"][2] is None
    assert gates["a"]["kernel"].shape == (0, 3) and gates["b"][0].dtype == bool
    assert gates_lib.layer_sparsity(gates) == {"a": 0.0, "b/0": 0.0}
    assert gates_lib.sparsity(gates) == 0.0
    for empty in ({}, {"a": None}, {"a": jnp.ones((0, 3), bool)}):
        assert gates_lib.sparsity(empty) == 0.0 and float(jax.jit(gates_lib.share_closed)(empty)) == 0.0


def test_kernels_and_masked_go_by_name():
    params = {"a": [jnp.full((1, 2), 3.0), jnp.ones(2)], "b": jnp.ones((1, 1))}
    gates = {"a": [jnp.array([[True, False]]), None], "b": None}
    (kernel,) = jax.tree.leaves(gates_lib.kernels(params, gates))
    np.testing.assert_array_equal(kernel, params["a"][0])
    masked = gates_lib.masked(params, gates)
    np.testing.assert_array_equal(masked["a"][0], [[3.0, 0.0]])
    assert masked["b"] is params["b"] and masked["a"][1] is params["a"][1]
    with pytest.raises(KeyError, match="a/0"):
        gates_lib.kernels({"b": params["b"]}, gates)


def test_matching_takes_the_first_pattern_and_refuses_what_matches_nothing():
    names = ["layer_0/query/kernel", "layer_1/query/kernel", "head/kernel"]
    assert gates_lib.matching({"layer_1": 1, "query": 2}, names) == {names[1]: 1, names[0]: 2}
    with pytest.raises(ValueError, match="the rule 'qurey' matches no weight; the weights are layer_0/query/kernel"):
        gates_lib.matching({"qurey": 1}, names)
    with pytest.raises(ValueError, match=r"the rule '\(' is no regular expression"):
        gates_lib.matching({"(": 1}, names)
    with pytest.raises(ValueError, match="and 4 more"):
        gates_lib.matching({"x": 1}, [f"layer_{i}" for i in range(12)])


def test_nothing_asks_for_a_cpu_that_the_platform_may_not_have(monkeypatch):
    """JAX_PLATFORMS=cuda has no CPU backend: asking for one raises."""
    devices = jax.devices

    def no_cpu(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return devices(backend)

    monkeypatch.setattr(jax, "devices", no_cpu)
    monkeypatch.setattr(jax, "local_devices", lambda *_, backend=None, **__: no_cpu(backend))
    gates = {"a": jnp.ones((4, 5), bool)}
    plan = plan_lib.make(gates)
    closed = plan.close(gates, {"a": jnp.arange(20.0).reshape(4, 5)}, 0.5, jax.random.key(0))
    assert gates_lib.sparsity(closed) == 0.5
    np.testing.assert_array_equal(np.asarray(closed["a"]).ravel(), np.arange(20) >= 10)


def test_the_closed_share_of_many_gates_is_exact_to_a_float32():
    """More gates than a float32 counts, of which few are closed, and more than an int32 counts."""
    gates = {"w": jnp.ones((4099, 4099), bool).at[0, :5].set(False)}
    assert float(gates_lib.share_closed(gates)) == np.float32(5 / 4099**2)
    huge = [jax.ShapeDtypeStruct((2**16, 2**15), bool)] * 2
    assert jax.eval_shape(gates_lib.share_closed, huge).dtype == jnp.float32

"""What a cut must get right, one thing at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_jax as pj
from prune_jax.graph.atoms import ONE, Atoms
from prune_jax.pruning import trees

NORMAL = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(NORMAL.standard_normal(shape), jnp.float32)


def weights(**shapes):
    return {name: normal(*shape) for name, shape in shapes.items()}


def gates_of(params, **closed):
    """Gates of params with slices closed: name=(axis, indices)."""
    gates = {}
    for name, leaf in params.items():
        gate = np.ones(leaf.shape, bool)
        if name in closed:
            axis, indices = closed[name]
            gate[(slice(None),) * axis + (indices,)] = False
        gates[name] = jnp.asarray(gate)
    return gates


def cut(fn, params, x, units, others=None):
    """(graph, small_params, small_fn), once it is made sure that they are what the gated network is."""
    graph = pj.trace(fn, params, x)
    gates = pj.close_groups(graph, params, units)
    small, small_fn = pj.shrink(graph, params, gates)
    for inputs in (x, *([] if others is None else [others])):
        np.testing.assert_allclose(small_fn(small, inputs), fn(pj.masked(params, gates), inputs), rtol=1e-4, atol=1e-5)
    return graph, small, small_fn


# What may be cut ------------------------------------------------------------------------------------------------------


def test_a_unit_whose_bias_is_seen_stays():
    params = weights(a=(4, 6), bias=(6,), b=(6, 3))
    graph = pj.trace(lambda p, x: jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"], params, normal(2, 4))
    closed = gates_of(params, a=(1, [0, 2]))
    assert not graph.dropped(params, closed)["a"].any()
    silent = params | {"bias": params["bias"].at[0].set(0)}
    assert graph.dropped(silent, closed)["a"].tolist() == [True, *[False] * 5]
    deaf = gates_of(params, a=(1, [0, 2]), b=(0, [2]))
    assert graph.dropped(params, deaf)["a"].tolist() == [False, False, True, False, False, False]


def test_a_function_that_makes_0_something_else_is_seen():
    for act, kept in ((jax.nn.sigmoid, True), (jnp.exp, True), (jax.nn.softplus, True), (jax.nn.relu6, False),
                      (jax.nn.gelu, False), (lambda x: jnp.clip(x, -1, 1), False), (jax.nn.hard_tanh, False),
                      (lambda x: jnp.clip(x, 0.5, 1), True), (lambda x: jnp.where(x > 0, x, 0), False),
                      (lambda x: jnp.where(x > 0, x, 1), True), (jax.nn.elu, False)):  # fmt: skip
        params = weights(a=(4, 6), b=(6, 3))
        graph = pj.trace(lambda p, x, act=act: act(x @ p["a"]) @ p["b"], params, normal(2, 4))
        assert graph.dropped(params, gates_of(params, a=(1, [1])))["a"][1] != kept


def test_zero_weights_are_cut_only_where_gates_are_closed():
    params = weights(a=(4, 6), b=(6, 3)) | {"b": jnp.zeros((6, 3))}
    graph = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, normal(2, 4))
    assert not graph.dropped(params, gates_of(params))["a"].any()
    assert graph.dropped(params, gates_of(params, a=(1, [3])))["a"].sum() == 1


def test_a_carry_that_starts_at_zero_is_not_taken_for_zero():
    params = weights(a=(4, 6), step=(6, 6), b=(6, 3))

    def fn(p, x):
        def turn(carry, _):
            return jnp.tanh(carry @ p["step"] + x @ p["a"]) + 1, None

        carry, _ = jax.lax.scan(turn, jnp.zeros((x.shape[0], 6)), None, length=3)
        return carry @ p["b"]

    graph = pj.trace(fn, params, normal(2, 4))
    (name,) = [name for name, group in graph.groups.items() if group.prunable]
    closed = gates_of(params, a=(1, [2]), step=(1, [2]))
    assert not graph.dropped(params, closed)[name].any()  # 1 is added
    cut(fn, params, normal(2, 4), {name: [2, 5]})


def test_a_group_that_a_softmax_reads_says_so():
    params = weights(a=(4, 6), b=(6, 3))
    graph = pj.trace(lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"], params, normal(2, 4))
    group = graph.groups["a"]
    assert group.prunable and not group.exact
    assert group.inexact_because == "reduce_max reads closed units as other than 0"
    assert f"inexact: {group.inexact_because}" in graph.summary()
    gates = pj.close_groups(graph, params, {"a": [0, 3]})
    small, _ = pj.shrink(graph, params, gates)
    assert small["a"].shape == (4, 6)
    small, small_fn = pj.shrink(graph, params, gates, exact=False)
    assert small["a"].shape == (4, 4)
    x = normal(3, 4)
    np.testing.assert_allclose(
        small_fn(small, x), jax.nn.softmax(x @ small["a"]) @ small["b"], rtol=1e-5
    )  # the softmax over those that are left


def test_a_slow_variance_names_its_module():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(use_fast_variance=False, name="norm")(nn.Dense(6, name="a")(x))
            return nn.Dense(3, name="b")(x)

    net = Net()
    params = net.init(jax.random.key(0), normal(2, 4))["params"]
    graph = pj.trace(lambda p, x: net.apply({"params": p}, x), params, normal(2, 4))
    assert graph.groups["a"].inexact_because == "reduce_sum of Net/norm reads closed units as other than 0"


def test_what_reads_a_closed_unit_is_told_of_all_units():
    params = weights(a=(4, 6), b=(6, 3))
    offset = np.zeros(6, np.float32)
    offset[3] = 1  # of one unit alone it matters
    fn = lambda p, x: (y := x @ p["a"] + offset) @ p["b"] + y.sum(-1, keepdims=True)  # noqa: E731
    graph = pj.trace(fn, params, normal(2, 4))
    assert graph.groups["a"].inexact_because == "reduce_sum reads closed units as other than 0"
    gates = pj.close_groups(graph, params, {"a": [2, 3]})
    assert np.flatnonzero(graph.dropped(params, gates)["a"]).tolist() == [2]


def test_an_unknown_primitive_pins_and_is_named():
    params = weights(a=(4, 6), b=(6, 3))
    graph = pj.trace(lambda p, x: jnp.linalg.qr((x @ p["a"])[None])[0][0] @ p["b"], params, normal(6, 4))
    assert graph.unknown
    assert graph.groups["a"].reason == f"the primitive {next(iter(graph.unknown))} is not known"
    assert f"not known, and so pinned: {', '.join(graph.unknown)}" in graph.summary()
    with pytest.raises(ValueError, match="no unit of 'a' can be cut: the primitive"):
        pj.close_groups(graph, params, {"a": [0]})


def test_where_a_scatter_writes_is_not_cut():
    params = weights(a=(4, 6), b=(9, 3))
    fn = lambda p, x: jnp.ones((x.shape[0], 9)).at[:, jnp.arange(6)].set(x @ p["a"]) @ p["b"]  # noqa: E731
    assert pj.trace(fn, params, normal(2, 4)).groups["a"].reason == "scatter writes at indices counted by it"


def test_what_a_function_does_at_other_sizes_is_looked_at_again():
    params = weights(a=(4, 6), b=(6, 3))

    def fn(p, x):
        x = x @ p["a"]
        return (jax.nn.softmax(x) if len(x) > 4 else jax.nn.relu(x)) @ p["b"]

    _, small, small_fn = cut(fn, params, normal(2, 4), {"a": [0, 3]}, normal(4, 4))
    with pytest.raises(ValueError, match=r"at inputs of shapes \(5, 4\) cutting units of 'a' changes the function"):
        small_fn(small, normal(5, 4))


def test_weights_of_another_size_are_refused():
    params = weights(a=(4, 6), b=(6, 3))
    _, _, small_fn = cut(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, normal(2, 4), {"a": [0, 3]})
    with pytest.raises(ValueError, match=r"a is of shape \(4, 6\); allowed: \(4, 4\)"):
        small_fn(params, normal(2, 4))


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_all_units_of_a_group_can_go():
    params = weights(a=(4, 6), b=(6, 3), bias=(3,))
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"] + p["bias"]  # noqa: E731
    _, small, small_fn = cut(fn, params, normal(2, 4), {"a": range(6)})
    assert small["a"].shape == (4, 0) and small["b"].shape == (0, 3)
    np.testing.assert_allclose(small_fn(small, normal(5, 4)), jnp.broadcast_to(small["bias"], (5, 3)))


def test_a_convolution_keeps_a_channel():
    params = weights(a=(3, 4, 6), b=(3, 6, 5))

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    _, small, _ = cut(lambda p, x: conv(jax.nn.relu(conv(x, p["a"])), p["b"]), params, normal(2, 7, 4),
                      {"a.channels": range(6)})  # fmt: skip
    assert small["a"].shape == (3, 4, 1)


def test_widths_are_rounded_up():
    params = weights(a=(4, 24), b=(24, 3))
    graph = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, normal(2, 4))
    gates = pj.close_groups(graph, params, {"a": range(13)})
    small, small_fn = pj.shrink(graph, params, gates, multiple_of=8)
    assert small["a"].shape == (4, 16)
    x = normal(3, 4)
    masked = pj.masked(params, gates)
    np.testing.assert_allclose(small_fn(small, x), jax.nn.relu(x @ masked["a"]) @ masked["b"], rtol=1e-5, atol=1e-5)


def test_groups_of_a_convolution_shrink_to_one():
    params = weights(a=(4, 8), kernel=(3, 2, 12), b=(12, 3))

    def fn(p, x):
        x = jax.lax.conv_general_dilated(
            jnp.tanh(x @ p["a"]), p["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=4,
        )  # fmt: skip
        return jax.nn.relu(x) @ p["b"]

    graph = pj.trace(fn, params, normal(2, 5, 4))
    sizes = {name: group.size for name, group in graph.groups.items() if group.prunable}
    assert sorted(sizes.values()) == [2, 3, 4]  # inputs of a group, outputs of a group, groups
    by_size = {size: name for name, size in sizes.items()}
    _, small, _ = cut(fn, params, normal(2, 5, 4), {by_size[4]: [0, 1, 3], by_size[2]: [1], by_size[3]: [0]})
    assert small["kernel"].shape == (3, 1, 2)


def test_strides_begin_where_they_did():
    params = weights(a=(4, 12), b=(6, 3))
    fn = lambda p, x: ((y := x @ p["a"])[..., 1::2] * y[..., ::2]) @ p["b"]  # noqa: E731
    for units in ([0], [0, 1, 4], [5], range(6)):
        _, small, _ = cut(fn, params, normal(2, 4), {"a": units})
        assert small["a"].shape == (4, 12 - 2 * len(units))


def test_halves_that_turn_go_together():
    params = weights(a=(4, 8), b=(8, 3))

    def fn(p, x):
        x = x @ p["a"]
        return (x + jnp.concatenate([-x[..., 4:], x[..., :4]], -1)) @ p["b"]

    graph, small, _ = cut(fn, params, normal(2, 4), {"a": [1, 2]})
    assert graph.groups["a"].size == 4
    assert small["a"].shape == (4, 4)


def test_one_function_called_twice_is_cut_twice():
    params = weights(a=(4, 6), b=(6, 4), c=(4, 6), d=(6, 4))
    block = jax.jit(lambda x, up, down: x + jax.nn.silu(x @ up) @ down)
    fn = lambda p, x: block(block(x, p["a"], p["b"]), p["c"], p["d"])  # noqa: E731
    _, small, _ = cut(fn, params, normal(2, 4), {"a": [0, 1, 2], "c": [5]})
    assert small["a"].shape == (4, 3) and small["c"].shape == (4, 5)


def test_layers_of_a_scan_are_cut_together_or_not_at_all():
    params = weights(up=(3, 4, 6), down=(3, 6, 4))

    def fn(p, x):
        return jax.lax.scan(lambda x, w: (x + jax.nn.relu(x @ w["up"]) @ w["down"], None), x, p)[0]

    graph, small, _ = cut(fn, params, normal(2, 4), {"up": [0, 4]})
    assert small["up"].shape == (3, 4, 4)
    one_layer = {"up": np.ones((3, 4, 6), bool), "down": np.ones((3, 6, 4), bool)}
    one_layer["up"][1, :, 2] = one_layer["down"][1, 2] = False
    assert not graph.dropped(params, jax.tree.map(jnp.asarray, one_layer))["up"].any()


# What goes on computing as it did -------------------------------------------------------------------------------------


def test_a_derivative_of_its_own_is_kept():
    params = weights(a=(4, 6), b=(6, 3)) | {"a": jnp.zeros((4, 6))}
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    _, small, small_fn = cut(fn, params, normal(2, 4), {"a": [1]})
    # jax.nn.relu has the gradient 0 at 0, where that of the maximum in it is 1/2.
    assert not jax.grad(lambda p: small_fn(p, normal(2, 4)).sum())(small)["a"].any()

    @jax.custom_vjp
    def straight(x):
        return jnp.sign(x)

    straight.defvjp(lambda x: (straight(x), x), lambda x, g: (g * (jnp.abs(x) < 1),))
    params = weights(a=(4, 6), b=(6, 3))
    fn = lambda p, x: straight(x @ p["a"]) @ p["b"]  # noqa: E731
    graph, small, small_fn = cut(fn, params, normal(2, 4), {"a": [1]})
    x = normal(3, 4)
    masked = pj.masked(params, pj.close_groups(graph, params, {"a": [1]}))
    theirs = jax.grad(lambda p: fn(p, x).sum())(masked)
    ours = jax.grad(lambda p: small_fn(p, x).sum())(small)
    assert theirs["a"].any()
    np.testing.assert_allclose(ours["a"], np.delete(theirs["a"], 1, 1), rtol=1e-5, atol=1e-5)


def test_random_numbers_are_those_of_the_full_width():
    params = weights(a=(4, 6), b=(6, 3))
    key = jax.random.key(1)

    def fn(p, x):
        x = jax.nn.relu(x @ p["a"])
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0) @ p["b"]

    cut(fn, params, normal(5, 4), {"a": [0, 2, 3]})


def test_a_residual_width_goes_through_dropout():
    params = weights(a=(4, 8), up=(8, 5), down=(5, 8), scale=(8,), bias=(8,), last=(8, 3))

    def fn(p, x):
        x = x @ p["a"]
        y = jax.nn.relu(x @ p["up"]) @ p["down"]
        x = x + jnp.where(jax.random.bernoulli(jax.random.key(0), 0.9, y.shape), y / 0.9, 0)
        mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(square - mean**2 + 1e-6) * p["scale"] + p["bias"]
        return x @ p["last"]

    graph, small, _ = cut(fn, params, normal(3, 4), {"hidden": [0, 5, 7]})
    assert graph.groups["hidden"].exact
    assert small["scale"].shape == (5,)


def test_a_cut_function_is_transformed_like_any_other():
    params = weights(a=(4, 6), b=(6, 3))
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    _, small, small_fn = cut(fn, params, normal(2, 4), {"a": [1, 2]})
    x = normal(5, 2, 4)
    wanted = jnp.stack([small_fn(small, each) for each in x])
    np.testing.assert_allclose(jax.vmap(small_fn, (None, 0))(small, x), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(small_fn, (None, 0)))(small, x), wanted, rtol=1e-5, atol=1e-5)
    grads = jax.grad(lambda p: jax.checkpoint(small_fn)(p, x[0]).sum())(small)
    np.testing.assert_allclose(
        grads["b"], jax.grad(lambda p: small_fn(p, x[0]).sum())(small)["b"], rtol=1e-5, atol=1e-5
    )
    _, tangent = jax.jvp(lambda p: small_fn(p, x[0]), (small,), (small,))
    assert jnp.isfinite(tangent).all()


def test_weights_of_another_dtype_and_numbers_as_inputs():
    params = weights(a=(4, 6), b=(6, 3))
    fn = lambda p, x, scale: jax.nn.relu(x @ p["a"]) @ p["b"] * scale  # noqa: E731
    graph = pj.trace(fn, params, normal(2, 4), 2.0)
    small, small_fn = pj.shrink(graph, params, pj.close_groups(graph, params, {"a": [1, 2]}))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small)
    x = normal(3, 4).astype(jnp.bfloat16)
    assert small_fn(half, x, 3.0).dtype == fn(half, x, 3.0).dtype == jnp.bfloat16  # 3.0 is of a weak type
    np.testing.assert_array_equal(small_fn(half, x, 3.0), fn(half, x, 3.0))


def test_params_of_all_kinds():
    params = weights(a=(4, 6), b=(6, 3)) | {
        "key": jax.random.key(0),
        "steps": jnp.int32(3),
        "table": jnp.arange(6),
        "factor": jnp.float32(2),
        "mask": jnp.array([True, False, True, True, True, False]),
        "unused": normal(5),
    }

    def fn(p, x):
        x = jax.nn.relu(x @ p["a"]) * p["table"] * p["factor"] * p["mask"]
        return (x + 0 * jax.random.normal(p["key"], x.shape)) @ p["b"] + p["steps"]

    _, small, _ = cut(fn, params, normal(2, 4), {"a": [2, 3]})
    assert small["table"].tolist() == [0, 1, 4, 5]
    assert small["mask"].shape == (4,)


def test_large_constants_are_cut_with_the_rest():
    params = weights(a=(4, 6), b=(6, 3))
    table = np.asarray(normal(7, 6))
    _, small, small_fn = cut(lambda p, x: (x @ p["a"] * table[: len(x)]) @ p["b"], params, normal(2, 4), {"a": [5]})
    cut_off = jax.make_jaxpr(small_fn)(small, normal(2, 4))
    assert all(6 not in np.shape(const) for const in cut_off.consts)


def test_inputs_and_outputs_are_trees():
    params = weights(a=(4, 6), b=(6, 3))

    def fn(p, batch, flag):
        out = jax.nn.relu(batch["x"] @ p["a"]) @ p["b"]
        return {"out": (out, None), "index": batch["index"] + flag}

    batch = {"x": normal(2, 4), "index": jnp.arange(2)}
    graph = pj.trace(fn, params, batch, 1)
    small, small_fn = pj.shrink(graph, params, pj.close_groups(graph, params, {"a": [0]}))
    got = small_fn(small, batch, 5)
    assert jax.tree.structure(got) == jax.tree.structure(fn(params, batch, 5))
    assert got["index"].tolist() == [5, 6]
    assert {group.reason for group in graph.groups.values()} == {None, "input 0/x", "output out/0"}


# Kernels and names ----------------------------------------------------------------------------------------------------


def test_weights_made_of_weights_are_kernels():
    params = weights(a=(4, 6), low=(4, 2), rank=(2, 6), b=(6, 3))

    def fn(p, x):
        kernel = p["a"] + p["low"] @ p["rank"]
        return jax.nn.relu(x @ kernel) @ p["b"]

    graph, small, _ = cut(fn, params, normal(2, 4), {"rank": [0, 1], "low": [1]})
    assert small["a"].shape == (4, 4) and small["rank"].shape == (1, 4)
    assert graph.groups["low"].size == 2


def test_joined_weights_share_a_contraction():
    params = weights(a=(4, 6), b=(4, 2), c=(8, 3))

    def fn(p, x):
        return jax.nn.relu(x @ jnp.concatenate([p["a"], p["b"]], 1)) @ p["c"]

    graph, small, _ = cut(fn, params, normal(5, 4), {"a": [0, 1], "b": [1]})
    assert small["c"].shape == (5, 3)
    kernels = graph.kernels
    assert kernels["a"].flops + kernels["b"].flops == 2 * 5 * 4 * 8
    assert (kernels["a"].inputs, kernels["a"].outputs) == ((0,), (1,))


def test_names_tell_residual_widths_apart():
    params = weights(a=(4, 8), up=(8, 8), down=(8, 8), turn=(8, 6), more=(6, 5), less=(5, 6), last=(6, 3))

    def fn(p, x):
        x = x @ p["a"]
        x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
        x = jnp.tanh(x @ p["turn"])
        return (x + jax.nn.relu(x @ p["more"]) @ p["less"]) @ p["last"]

    graph = pj.trace(fn, params, normal(2, 4))
    assert list(graph.groups) == ["a.inputs", "a.hidden", "up", "turn.hidden", "last", "more"]
    assert [group.kind for group in graph.groups.values()] == [
        "columns", "hidden", "columns", "hidden", "columns", "columns"
    ]  # fmt: skip


# Atoms ----------------------------------------------------------------------------------------------------------------


def test_axes_are_taken_apart_as_far_as_it_takes():
    atoms = Atoms()
    axis = atoms.new(24)
    heads, depth = atoms.new(4), atoms.new(6)
    atoms.unite(axis, ("product", (heads, depth)))
    first, second = atoms.new(2), atoms.new(12)
    atoms.unite(axis, ("product", (first, second)))
    assert [atoms.size(("atom", atom)) for atom in atoms.leaves(axis)] == [2, 2, 6]
    assert not atoms.pins
    parts = atoms.cut(axis, [12, 12], "halves")
    assert [atoms.size(part) for part in parts] == [12, 12]
    assert len(atoms.units(axis, next(atoms.leaves(depth)))) == 24


def test_what_does_not_fit_is_pinned():
    atoms = Atoms()
    atoms.at = "reshape"
    axis = atoms.new(12)
    atoms.unite(axis, ("product", (atoms.new(3), atoms.new(4))))
    atoms.unite(axis, ("product", (atoms.new(2), atoms.new(6))))
    assert atoms.reason(axis) == "reshape brings two axes together that are split in ways that do not fit"


def test_an_axis_of_size_1_is_no_atom():
    atoms = Atoms()
    assert atoms.new(1) == ONE
    assert list(atoms.leaves(ONE)) == []
    assert atoms.units(ONE, 0).tolist() == [-1]


def test_an_axis_that_is_a_product_with_itself_is_pinned():
    params = weights(a=(4, 6), b=(36, 3))

    def fn(p, x):
        x = x @ p["a"]
        return (x[:, :, None] * x[:, None]).reshape(len(x), 36) @ p["b"]

    assert pj.trace(fn, params, normal(2, 4)).groups["a"].reason == "an axis that is a product with itself"


def test_slices_of_an_optimizer_follow():
    import optax

    params = weights(a=(4, 6), b=(6, 3))
    graph = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, normal(2, 4))
    dropped = graph.dropped(params, pj.close_groups(graph, params, {"a": [1, 2]}))
    state = pj.shrink_like(graph, dropped, optax.adam(1e-3).init(params))
    assert {leaf.shape for leaf in trees.by_name(state[0].mu).values()} == {(4, 4), (4, 3)}
    gates = pj.shrink_like(graph, dropped, [{"a": np.ones((4, 6), bool), "b": None}])  # a tree of some of the params
    assert gates[0]["a"].shape == (4, 4) and gates[0]["b"] is None


def test_slices_of_any_optimizer_follow_or_are_refused():
    import optax

    params = weights(a=(4, 6), b=(6, 3))
    graph = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, normal(2, 4))
    dropped = graph.dropped(params, pj.close_groups(graph, params, {"a": [1, 2]}))
    small = pj.shrink_like(graph, dropped, params)
    labels = {"a": "adam", "b": "none"}
    for optimizer in (
        optax.masked(optax.adam(1e-3), {"a": True, "b": False}),
        optax.multi_transform({"adam": optax.adam(1e-3), "none": optax.set_to_zero()}, labels),
        optax.MultiSteps(optax.sgd(1e-3, momentum=0.9), 2),
        optax.lbfgs(memory_size=3),
        pj.prune(optax.adam(1e-3), pj.movement(), pj.constant(0.5)),
    ):
        state, wanted = (jax.eval_shape(optimizer.init, tree) for tree in (params, small))
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        cut = pj.shrink_like(graph, dropped, state)
        assert jax.tree.map(np.shape, cut) == jax.tree.map(np.shape, wanted)
        assert pj.shrink_like(graph, dropped, cut) is not cut  # what is cut already stays
    means = {"v_row": {"a": np.zeros(4), "b": np.zeros(3)}}  # of adafactor
    with pytest.raises(ValueError, match=r"v_row/a is of shape \(4,\), which is not laid out as the weight a"):
        pj.shrink_like(graph, dropped, means)
    with pytest.raises(ValueError, match=r"mu is of shape \(42,\), which is not laid out as the weights"):
        pj.shrink_like(graph, dropped, {"mu": np.zeros(42)})  # of optax.flatten
    with pytest.raises(ValueError, match=r"cut\['a'\] is \[1, 2\]; allowed: 6 booleans"):
        pj.shrink_like(graph, {"a": [1, 2]}, params)


def test_states_of_every_method_are_cut_to_what_the_small_network_starts_with_or_refused():
    import optax

    from prune_jax.methods import REGISTRY, cofi

    params, x = weights(a=(4, 6), b=(6, 3)), normal(2, 4)

    def fn(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    graph = pj.trace(fn, params, x)
    dropped = graph.dropped(params, pj.close_groups(graph, params, {"a": [1, 4]}))
    small = pj.shrink_like(graph, dropped, params)
    smaller = pj.trace(fn, small, x)
    made = {
        "sws": pj.soft_weight_sharing,
        "cofi": lambda: cofi.create(whole="a"),
        "spt": lambda: pj.spt(credit="group"),
    }
    for name in REGISTRY.keys() - {"baseline"}:  # which closes nothing
        method = made.get(name, getattr(pj, name, None))()
        structure = "unstructured" if name in ("set", "rigl") else "auto"
        schedule, given = pj.constant(0.5) if method.scheduled else None, {"structure": structure, "scope": "global"}
        state, wanted = (
            jax.eval_shape(pj.prune(optax.adam(1e-3), method, schedule, groups=of, **given).init, tree)
            for of, tree in ((graph, params), (smaller, small))
        )
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        if name == "obert":  # the inverse of blocks of weights that no longer are
            with pytest.raises(ValueError, match=r"method/inverse/a is of shape .* init of the optimizer makes of the"):
                pj.shrink_like(graph, dropped, state)
            continue
        once = pj.shrink_like(graph, dropped, state)
        for cut_state in (once, pj.shrink_like(graph, dropped, once)):  # what is cut already stays
            assert jax.tree.map(np.shape, cut_state) == jax.tree.map(np.shape, wanted), name
    units = np.array([5, 0, 1, 2, 3, 4], np.int32)
    along = {"along": {"b": {"0": {"scales": {"a": units, "a.whole": np.zeros(6, np.int32)}}}}}
    of_inputs = pj.shrink_like(graph, dropped, along)["along"]["b"]["0"]["scales"]
    np.testing.assert_array_equal(of_inputs["a.whole"], [0, 0, 0, 0])
    masks = pj.shrink_like(graph, dropped, {"groups": {"a": np.arange(6.0), "a.whole": np.zeros(1)}})["groups"]
    np.testing.assert_array_equal(masks["a"], [0, 2, 3, 5])
    assert masks["a.whole"].shape == (1,)


def test_units_are_numbers_or_booleans_and_gates_are_a_tree_or_a_state():
    import optax

    params = weights(a=(4, 6), b=(6, 3))
    graph = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, normal(2, 4))
    gates = pj.close_groups(graph, params, {"a": [1, 2]})
    flags = graph.dropped(params, gates)
    assert np.array_equal(pj.close_groups(graph, params, flags)["a"], gates["a"])
    for units in ([1.5], [True, False], [6], "a"):
        with pytest.raises(ValueError, match=r"units of 'a' are .*; allowed: whole numbers from 0 to 5, or 6 bool"):
            pj.close_groups(graph, params, {"a": units})
    state = pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(0.5)).init(params)._replace(gates=gates)
    assert pj.shrink(graph, params, (state,))[0]["a"].shape == (4, 4)
    assert graph.cost(state).flops < graph.cost().flops
    assert "6 -> 4" in graph.summary(gates=gates)
    with pytest.raises(ValueError, match="multiple_of is 0; allowed: a whole number from 1"):
        pj.shrink(graph, params, gates, multiple_of=0)
    with pytest.raises(TypeError, match="its leaf 'a' is no gate"):
        pj.shrink(graph, gates, params)
    with pytest.raises(ValueError, match=r"not those of the trace: a: \(4, 4\), and \(4, 6\) in the trace"):
        pj.shrink(graph, {**params, "a": params["a"][:, :4]}, gates)
    with pytest.raises(ValueError, match="a gate of 'params/a', and no weight of this name; the weights are a, b"):
        pj.shrink(graph, params, {"params": gates})
    with pytest.raises(ValueError, match="there is a gate of 'a', and no weight of this name"):
        pj.masked({"params": params}, state)


def test_a_summary_shows_milliseconds_before_and_after():
    params = {"a": jnp.ones((64, 2048)), "b": jnp.ones((2048, 64))}
    graph = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((256, 64)))
    assert "ms" not in graph.summary().split()
    assert graph.summary(milliseconds=True).splitlines()[-1].split()[0] == "ms"
    gates = pj.close_groups(graph, params, {"a": range(1984)})
    word, before, arrow, after = graph.summary(params, gates, milliseconds=True).splitlines()[-1].split()
    assert (word, arrow) == ("ms", "->") and 0 < float(after) < float(before)

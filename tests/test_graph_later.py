"""What networks that came later than the graph showed: maxima, fetched experts, widths beside heads, random streams."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_graph_parts import cut, normal, weights

import prune_jax as pj
from prune_jax.pruning import trees


def test_the_largest_of_what_is_never_below_0_is_that_of_what_is_left():
    """Such as the scale of a kernel's 8 bits, or the largest of a ReLU's units."""
    params = weights(a=(4, 6), b=(6, 3))

    def net(p, x, size=jnp.abs):
        scale = size(p["b"]).max(0) + 0.1
        y = jax.nn.relu(x @ p["a"])
        return y @ (jnp.round(8 * p["b"] / scale) * scale) + y.max(-1, keepdims=True)

    graph, small, _ = cut(net, params, normal(2, 4), {"a": [0, 1, 2, 3]}, normal(3, 4))
    assert graph.groups["a"].exact and small["a"].shape == (4, 2)
    _, small, _ = cut(net, params, normal(2, 4), {"a": range(6)})
    assert small["a"].shape == (4, 1), "one has to be left: nothing has no largest"
    for size in (lambda b: b, lambda b: jnp.sin(jnp.abs(b)), lambda b: -jnp.abs(b)):
        graph = pj.trace(lambda p, x, size=size: net(p, x, size), params, normal(2, 4))
        assert graph.groups["a"].inexact_because == "reduce_max reads closed units as other than 0"


def test_matrices_that_an_index_fetches_are_kernels():
    """Experts chosen by a token, and a layer of a stack chosen by a number; a row of a table is none."""
    params = weights(table=(5, 4), up=(3, 4, 6), down=(3, 6, 4), last=(4, 2))

    def net(p, ids):
        x = p["table"][ids]
        y = jnp.einsum("tw,twf->tf", x, p["up"][ids % 3])
        y = jnp.einsum("tf,tfw->tw", jax.nn.relu(y), p["down"][ids % 3])
        layer = [jax.lax.dynamic_index_in_dim(p[name], ids[0] % 3, keepdims=False) for name in ("up", "down")]
        return (x + y + jax.nn.relu(y @ layer[0]) @ layer[1]) @ p["last"]

    units = {"up": [1, 4], "hidden": [2]}
    graph, small, _ = cut(net, params, jnp.arange(3), units, jnp.arange(5))
    assert list(graph.kernels) == ["up", "down", "last"] and graph.kernels["up"].uses == 2
    assert {name: leaf.shape for name, leaf in small.items()} == {
        "table": (5, 3),
        "up": (3, 3, 4),
        "down": (3, 4, 3),
        "last": (3, 2),
    }


def test_a_width_that_passes_by_experts_or_stacked_heads_is_no_head():
    params = weights(inp=(5, 8), gate=(8, 4), up=(4, 8, 6), down=(4, 6, 8), last=(8, 2))

    def routed(p, x):
        x = x @ p["inp"]
        chosen = jnp.argmax(x @ p["gate"], -1)
        slots = jax.nn.one_hot(chosen, 4)[..., None] * jax.nn.one_hot(jnp.cumsum(chosen) % 3, 3)[:, None]
        y = jnp.einsum("ter,tw->erw", slots, x)
        y = jnp.einsum("erf,efw->erw", jax.nn.relu(jnp.einsum("erw,ewf->erf", y, p["up"])), p["down"])
        return (x + jnp.einsum("ter,erw->tw", slots, y)) @ p["last"]

    kinds = {name: group.kind for name, group in pj.trace(routed, params, normal(4, 5)).groups.items()}
    assert kinds["hidden"] == "hidden" and "heads" not in kinds.values()

    def head(q, k, v, o, x):
        return jax.nn.softmax((x @ q) @ (x @ k).T) @ (x @ v) @ o

    def attention(p, x):
        x = x @ p["inp"]
        return (x + jax.vmap(head, (0, 0, 0, 0, None))(p["q"], p["k"], p["v"], p["o"], x).sum(0)) @ p["out"]

    params = weights(inp=(5, 8), q=(3, 8, 4), k=(3, 8, 4), v=(3, 8, 6), o=(3, 6, 8), out=(8, 2))
    graph, *_ = cut(attention, params, normal(4, 5), {"hidden": [1, 5], "heads": [2], "q.depth": [0], "v.depth": [5]})
    assert {name: group.kind for name, group in graph.groups.items() if group.prunable} == {
        "hidden": "hidden",
        "heads": "heads",
        "q.depth": "depth",
        "v.depth": "depth",
    }


def test_modules_with_recurrent_cells_random_streams_and_einsums_are_cut_in_place():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.rnn, self.drop = nnx.RNN(nnx.GRUCell(4, 6, rngs=rngs)), nnx.Dropout(0.5, rngs=rngs)
            self.last = nnx.Einsum("bi,ijk->bjk", (6, 2, 3), (2, 3), rngs=rngs)
            self.head = nnx.LinearGeneral((2, 3), 2, axis=(-2, -1), rngs=rngs)

        def __call__(self, x):
            return self.head(jnp.tanh(self.last(self.drop(self.rnn(x)[:, -1]))))

    model, x = Net(nnx.Rngs(0)), normal(2, 3, 4)
    model.eval()
    graph = pj.trace_module(model, x)
    params = nnx.state(model, nnx.Param)
    units = {name: [1] for name, group in graph.groups.items() if group.prunable}
    assert sorted(graph.groups[name].size for name in units) == [2, 3, 6]
    gates = pj.close_groups(graph, params, units)
    masked = nnx.clone(model)
    nnx.update(masked, pj.masked(params, gates))
    wanted = masked(x)
    small = pj.shrink_module(model, gates, x)
    np.testing.assert_allclose(small(x), wanted, atol=1e-6)
    cell, last = small.rnn.cell, small.last
    assert (cell.in_features, cell.hidden_features, last.kernel_shape, last.bias_shape) == (4, 5, (5, 1, 2), (1, 2))


def convolutions(rngs):
    """A depthwise convolution that doubles, norms over batches and over groups, a transposed convolution."""
    from flax import nnx

    return nnx.Sequential(
        nnx.Conv(3, 4, (1, 1), rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.Conv(4, 8, (2, 2), feature_group_count=4, mask=np.ones((2, 2, 1, 8), "f4"), rngs=rngs),
        nnx.relu,
        nnx.ConvTranspose(8, 6, (2, 2), transpose_kernel=True, rngs=rngs),
        nnx.GroupNorm(6, num_groups=3, rngs=rngs),
        nnx.LinearGeneral(6, 2, rngs=rngs),
    )


def attention(rngs):
    """Fewer heads of keys than of queries, with a cache, on a residual width; a LoRA before it."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            self.first = nnx.LoRA(3, 2, 6, base_module=nnx.Linear(3, 6, rngs=rngs), rngs=rngs)
            self.heads = nnx.MultiHeadAttention(6, 6, 12, num_kv_heads=2, decode=False, rngs=rngs)
            self.heads.init_cache((1, 5, 6))
            self.last = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            y = self.first(x)
            return self.last(y + self.heads(y))

    return Net()


def stacked(rngs):
    """Three layers whose arrays nnx.vmap stacks and nnx.scan goes through."""
    from flax import nnx

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def layers(rngs):
        up, down = nnx.Einsum("bhwi,ij->bhwj", (4, 5), (5,), rngs=rngs), nnx.Linear(5, 4, rngs=rngs)
        return nnx.Sequential(nnx.Conv(4, 4, (2, 2), rngs=rngs), nnx.BatchNorm(4, rngs=rngs), up, nnx.relu, down)

    class Net(nnx.Module):
        def __init__(self):
            self.first, self.layers = nnx.Linear(3, 4, rngs=rngs), layers(rngs)
            self.last = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            turn = nnx.scan(lambda x, layer: x + layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.last(turn(self.first(x), self.layers))

    return Net()


def told(model, *names):
    """The sizes that the layers of a module say, by their paths."""
    from flax import nnx

    each = {"/".join(map(str, path)): vars(module) for path, module in nnx.iter_modules(model)}
    return {path: tuple(own[name] for name in names if name in own) for path, own in each.items()}


@pytest.mark.parametrize(
    ("make", "shape", "names", "sizes"),
    [
        (
            convolutions,
            (2, 3, 3, 3),
            ("in_features", "out_features", "feature_group_count", "kernel_shape", "num_features", "num_groups"),
            {
                "layers/0": (3, 3, 1, (1, 1, 3, 3)),
                "layers/1": (3,),
                "layers/2": (3, 3, 3, (2, 2, 1, 3)),
                "layers/4": (3, 4, (2, 2, 4, 3)),
                "layers/5": (2,),
                "layers/6": ((4,), (2,)),
            },
        ),
        (
            attention,
            (1, 5, 3),
            ("in_features", "in_kv_features", "out_features", "num_heads", "num_kv_heads", "qkv_features"),
            {"first": (3, 5), "heads": (5, 5, 5, 2, 1, 4), "last": (5, 2)},
        ),
        (
            stacked,
            (2, 3, 3, 3),
            ("in_features", "out_features", "kernel_shape", "bias_shape", "num_features"),
            {
                "first": (3, 3),
                "layers/layers/0": (3, 3, (2, 2, 3, 3)),
                "layers/layers/1": (3,),
                "layers/layers/2": ((3, 4), (4,)),
                "layers/layers/4": (4, 3),
            },
        ),
    ],
)
def test_layers_of_a_module_know_their_new_sizes(make, shape, names, sizes):
    from flax import nnx

    model, x = nnx.eval_shape(lambda: make(nnx.Rngs(0))), normal(*shape)
    params, others = nnx.state(model, nnx.Param, ...)  # such as variances
    nnx.update(model, jax.tree.map(lambda w: 0.5 * normal(*w.shape), params))
    nnx.update(model, jax.tree.map(lambda w: jnp.abs(normal(*w.shape)).astype(w.dtype), others))
    model.eval()
    graph, params = pj.trace_module(model, x), nnx.state(model, nnx.Param)
    units = {name: [1] for name, group in graph.groups.items() if group.prunable and group.kind != "depth"}
    gates = pj.close_groups(graph, params, units)
    tx = pj.prune(optax.identity(), pj.magnitude(), pj.constant(0.5), structure="auto", groups=graph)
    if make is convolutions:  # statistics are in its groups, and have no gates
        assert "layers/1/scale" in trees.by_name(pj.gates(tx.init(params)))
    masked = nnx.clone(model)
    nnx.update(masked, pj.masked(params, gates))
    stays = pytest.warns(UserWarning, match="the norm of layers/5/scale divides by the width")
    with stays if make is convolutions else contextlib.nullcontext():  # a part of a GroupNorm's features
        assert pj.shrink_module(model, gates, x) is model
    call = nnx.jit(lambda model: model(x))
    for mode in ("train", "eval") if make is convolutions else ("eval",):  # the second with statistics of the first
        getattr(model, mode)(), getattr(masked, mode)()
        np.testing.assert_allclose(call(model), call(masked), atol=1e-5)
    assert told(model, *names).items() >= sizes.items()
    if make is attention:
        closed = {name: [1] for name, group in graph.groups.items() if group.prunable and group.kind == "depth"}
        before = pj.trace_module(model, x)
        with pytest.warns(UserWarning, match=r"stay in the module at 0.* \(1 units\): "):
            pj.shrink_module(model, pj.close_groups(before, nnx.state(model, nnx.Param), closed), x)
        assert model.heads.cached_key.shape == (1, 5, 1, 2)


def mean_before_a_layer_of_zeros(first, last, x):
    y = jax.nn.relu(first(x))
    return last(y / (1e-3 + y.mean(-1, keepdims=True)))


def heads_of_its_own(first, last, x):
    y = first(x).reshape(*x.shape[:2], 4, -1)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", y, y), -1)
    return last(jnp.einsum("bhqk,bkhd->bqhd", weights, y).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (mean_before_a_layer_of_zeros, "of first is another: it computes with 4 where 8 was"),
        (heads_of_its_own, "of heads is another: on the example inputs it is off by .* pj.shrink"),
    ],
)
def test_a_module_that_would_compute_something_else_is_left_as_it_was(call, says):
    """Also where the example hides it: tokens that are all the same, a last layer that is still 0."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 8, rngs=rngs)
            self.last = nnx.Linear(8, 2, kernel_init=nnx.initializers.zeros, rngs=rngs)

        def __call__(self, x):
            return call(self.first, self.last, x)

    model, x = Net(nnx.Rngs(0)), jnp.ones((1, 3, 3))
    graph, before = pj.trace_module(model, x), nnx.clone(model)
    units = {name: range(4) if name == "first" else [0, 1] for name in ("first", "heads") if name in graph.groups}
    gates = pj.close_groups(graph, nnx.state(model, nnx.Param), units)
    with pytest.raises(ValueError, match=says):
        pj.shrink_module(model, gates, x)
    assert nnx.graphdef(model) == nnx.graphdef(before) and model.first.out_features == 8
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), nnx.state(model), nnx.state(before)))


def test_an_optimizer_goes_on_with_the_smaller_module():
    import optax
    from flax import nnx

    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
    x = normal(3, 4)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).sum())(model)))
    step(model, optimizer)
    before = np.asarray(optimizer.opt_state[0].trace["layers"][0]["kernel"][...])
    gates = pj.close_groups(pj.trace_module(model, x), nnx.state(model, nnx.Param), {"layers.0": [0, 3]})
    pj.shrink_module(model, gates, x, optimizer=optimizer)
    moments = optimizer.opt_state[0].trace["layers"]
    np.testing.assert_array_equal(moments[0]["kernel"][...], np.delete(before, [0, 3], 1))
    step(model, optimizer)
    assert model.layers[2].kernel.shape == moments[2]["kernel"].shape == (6, 2)

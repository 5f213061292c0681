"""What networks that came later than the graph showed: maxima, fetched experts, widths beside heads, random streams."""

import jax
import jax.numpy as jnp
import numpy as np
from test_graph_parts import cut, normal, weights

import prune_jax as pj


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

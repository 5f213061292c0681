"""pj.oneshot on networks that it has not seen: how they use their kernels is read from the function."""

import math
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, devices
from flax import nnx
from test_networks import Linen

import prune_jax as pj
from prune_jax.oneshot.walk import Walk
from prune_jax.oneshot.walk import _combination as combination
from prune_jax.pruning import trees

KEY = jax.random.key(0)


def normal(i, *shape):
    return jax.random.normal(jax.random.key(i), shape)


def closes_half(fn, params, batches, names, method=None, **options):
    """Prunes, and makes sure of the gates' names, of zeros, of shares, and that errors are those of least squares."""
    told = []
    new, gates = pj.oneshot(fn, params, batches, method or pj.wanda(), progress=told.append, **options)
    by_name = trees.by_name(gates)
    assert set(by_name) == set(names)
    for name, gate in by_name.items():
        leaf = np.asarray(trees.by_name(new)[name])
        assert gate.shape == leaf.shape and (leaf[~np.asarray(gate)] == 0).all()
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert all(0 <= done.error < 1 for done in told) and told[-1].number == told[-1].total == len(told)
    for name, leaf in trees.by_name(params).items():
        if name not in by_name:
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(trees.by_name(new)[name]))
    return new, gates, told


def test_linen_with_a_convolution_three_dimensional_and_scanned_kernels():
    model = Linen()
    image, token = normal(1, 12, 5, 5, 2), jnp.arange(12) % 5
    params = jax.jit(model.init)(KEY, image, token)["params"]
    fn = lambda p, *x: model.apply({"params": p}, *x)  # noqa: E731
    names = ["conv/kernel", "split/kernel", "join/kernel", "stack/kernel", "head/kernel"]
    _, gates, told = closes_half(fn, params, [(image, token)] * 2, names, pj.sparsegpt())
    assert [done.name for done in told] == [*names[:3], *["stack/kernel"] * 3, "head/kernel"]
    assert all(np.mean(gate) == 0.5 for gate in jax.tree.leaves(gates))
    stack = np.asarray(gates["stack"]["kernel"])
    assert (stack.mean((1, 2)) == 0.5).all(), "every layer of a stack by itself"
    _, gates, _ = closes_half(fn, params, [(image, token)], names, structure="1:2")
    assert (np.asarray(gates["stack"]["kernel"]).reshape(3, 4, 2, 8).sum(2) == 1).all()
    assert (np.asarray(gates["split"]["kernel"]).reshape(2, 2, 2, 4).sum(1) == 1).all()
    assert (np.asarray(gates["conv"]["kernel"]).sum(2) == 1).all(), "of the features at every place of the window"


def test_the_layers_of_a_scanned_stack_are_solved_one_after_the_other():
    """As the same layers written out: equal to a bit of rounding."""
    weights = normal(2, 3, 8, 8)
    step = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
    batches = [normal(3, 64, 8)]
    scanned, _ = pj.oneshot(lambda p, x: jax.lax.scan(jax.checkpoint(step), x, p["w"])[0], {"w": weights}, batches,
                            pj.sparsegpt())  # fmt: skip
    listed, _ = pj.oneshot(
        lambda p, x: step(step(step(x, p[0])[0], p[1])[0], p[2])[0], list(weights), batches, pj.sparsegpt()
    )
    np.testing.assert_allclose(scanned["w"], jnp.stack(listed), atol=1e-5)


@pytest.mark.slow
def test_nnx_attention_shares_one_hessian_and_sees_pruned_inputs():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
            self.norm, self.up, self.down = nnx.LayerNorm(16, rngs=rngs), nnx.Linear(16, 32, rngs=rngs), nnx.Linear(
                32, 16, rngs=rngs
            )  # fmt: skip

        def __call__(self, x):
            x = x + self.attention(self.norm(x))
            return x + self.down(nnx.gelu(self.up(self.norm(x))))

    definition, params = nnx.split(Block(nnx.Rngs(0)))
    names = [*(f"attention/{n}/kernel" for n in ("query", "key", "value", "out")), "up/kernel", "down/kernel"]
    fn = lambda p, x: nnx.merge(definition, p)(x)  # noqa: E731
    batches = [(normal(i, 4, 6, 16),) for i in range(2)] + [(normal(5, 2, 6, 16),)]  # the last batch is smaller
    new, _, told = closes_half(fn, params, batches, names, pj.sparsegpt())
    assert [done.name for done in told] == names
    _, gates = pj.oneshot(fn, params, batches, pj.sparsegpt(), structure="heads")
    kept = np.asarray(trees.by_name(gates)["attention/out/kernel"]).all((1, 2))
    assert kept.sum() == 2 and (np.asarray(trees.by_name(gates)["attention/query/kernel"]).all((0, 2)) == kept).all()
    small, small_fn = pj.shrink(pj.trace(fn, params, *batches[0]), new, gates)
    assert trees.by_name(small)["attention/out/kernel"].shape == (2, 4, 16)
    small_fn(small, *batches[0])


@pytest.mark.slow
def test_equinox_with_a_grouped_and_a_plain_convolution_under_vmap():
    class Net(eqx.Module):
        layers: list

        def __init__(self):
            keys = jax.random.split(KEY, 3)
            self.layers = [eqx.nn.Conv2d(4, 8, 3, groups=2, key=keys[0]), eqx.nn.Conv2d(8, 6, 3, 2, key=keys[1]),
                           eqx.nn.Linear(24, 5, key=keys[2])]  # fmt: skip

        def __call__(self, x):
            x = jax.nn.relu(self.layers[1](jax.nn.relu(self.layers[0](x))))
            return self.layers[2](x.reshape(-1))

    params, static = eqx.partition(Net(), eqx.is_array)
    fn = lambda p, x: jax.vmap(eqx.combine(p, static))(x)  # noqa: E731
    names = [f"layers/{i}/weight" for i in range(3)]
    new, gates, _ = closes_half(fn, params, [normal(1, 16, 4, 7, 7)], names, pj.sparsegpt())
    assert np.mean(gates.layers[0].weight) == 0.5
    # The groups of a convolution have inputs of their own: as two convolutions.
    x, w = normal(1, 16, 4, 7, 7), params.layers[0].weight
    conv = lambda p, x: jax.lax.conv(x, p["kernel"], (1, 1), "VALID")  # noqa: E731
    alone, _ = pj.oneshot(conv, {"kernel": w[4:]}, [x[:, 2:]], pj.sparsegpt())
    np.testing.assert_allclose(new.layers[0].weight[4:], alone["kernel"], atol=1e-5)


def test_a_convolution_is_the_dense_layer_of_its_patches():
    x, w = normal(1, 8, 6, 6, 4), normal(2, 3, 3, 4, 5)
    layout = ("NHWC", "HWIO", "NHWC")
    conv = lambda p, x: jax.lax.conv_general_dilated(x, p["kernel"], (2, 1), "SAME", dimension_numbers=layout)  # noqa: E731
    new, gates = pj.oneshot(conv, {"kernel": w}, [x[:3], x[3:]], pj.sparsegpt(), structure="2:4")
    patches = np.zeros((8, 3, 6, 3, 3, 4), np.float32)
    padded = np.pad(x, ((0, 0), (0, 1), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(6):
            patches[:, i, j] = padded[:, 2 * i : 2 * i + 3, j : j + 3]
    dense, its = pj.oneshot(
        lambda p, x: x @ p["kernel"], {"kernel": w.reshape(36, 5)}, [patches.reshape(-1, 36)], pj.sparsegpt(),
        structure="2:4",
    )  # fmt: skip
    np.testing.assert_array_equal(gates["kernel"].reshape(36, 5), its["kernel"])
    np.testing.assert_allclose(new["kernel"].reshape(36, 5), dense["kernel"], atol=1e-4)


def test_slopes_are_the_gradient_of_the_outputs_at_every_row():
    rng = np.random.default_rng(0)
    params = {
        "conv": rng.normal(size=(3, 2, 2, 6)).astype(np.float32),
        "left": rng.normal(size=(5, 6)).astype(np.float32),
        "up": rng.normal(size=(7, 3)).astype(np.float32),
    }

    def net(p, x, added=(0, 0, 0)):
        y = jax.lax.conv_general_dilated(
            x, p["conv"], (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        y = jnp.tanh(y + added[0])
        y = jnp.tanh(jax.lax.dot_general(p["left"], y, (((1,), (3,)), ((), ()))) + added[1])  # (5, N, H, W)
        return jnp.einsum("oc,cnh->nho", p["up"], y[:3, ..., 0]) + added[2]

    x = rng.normal(size=(2, 4, 6, 4)).astype(np.float32)
    walk = Walk(net, params, [x], lambda name: True)
    walk.guide(jax.random.key(0))
    along = combination(jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 1)[0], (2, 4, 7))
    np.testing.assert_allclose(np.asarray(along).mean(-1), 0, atol=1e-6)
    zeros = [np.zeros(shape, np.float32) for shape in ((2, 4, 3, 6), (5, 2, 4, 3), (2, 4, 7))]
    wanted = jax.jit(jax.grad(lambda added: jnp.sum(net(params, x, added) * along)))(zeros)
    conv, left, up = (np.square(each) for each in wanted)
    names = [site.pieces[0].name for site in walk.sites]
    found = dict(zip(names, (each[0] for each in walk.slopes[0]), strict=True))
    for name, squares in (  # (batch, rows, outputs)
        ("conv", conv.reshape(24, 2, 3).transpose(1, 0, 2)),
        ("left", left.reshape(5, 24).T[None]),
        ("up", up.reshape(1, 8, 7)),
    ):
        np.testing.assert_allclose(found[name].rows[0], squares.sum(2), rtol=1e-3, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found[name].outputs, squares.sum(1), rtol=1e-3, atol=1e-6, err_msg=name)


def test_kernels_are_compared_on_as_many_batches_as_tell_them_apart():
    """16 rows per input of the widest kernel, at least a quarter of the batches, which are spread evenly."""
    params = {"up": normal(1, 2, 6), "down": normal(2, 6, 3)}
    batches = [jnp.full((4, 2), i, jnp.float32) for i in range(16)]

    def seen(rows, weights=None):
        walk = Walk(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"], params, batches, lambda name: True, weights)
        other = walk.again(rows)
        moments, _ = other.moments(0)
        return other.number, float(moments[0, 0, 0])

    assert seen(math.inf) == (16, pytest.approx(np.mean(np.arange(16.0) ** 2)))
    assert seen(0.1) == (4, pytest.approx(np.mean(np.arange(0, 16, 4.0) ** 2)))
    assert seen(5)[0] == 8 and seen(5, [np.array([1, 1, 0, 0])] * 16)[0] == 15
    assert seen(1000)[0] == 16


def test_joined_scaled_cast_stacked_and_shared_kernels():
    params = {"q": normal(1, 8, 8), "k": normal(2, 8, 4), "bank": normal(3, 2, 8, 8), "experts": normal(4, 3, 8, 4),
              "cell": normal(5, 4, 4), "gate_bias": normal(6, 4)}  # fmt: skip

    def net(p, x):
        both = x @ jnp.concatenate([p["q"], p["k"]], axis=1)
        x = jnp.tanh(both[:, :8] @ (0.5 * p["bank"][1]).astype(jnp.bfloat16)).astype(jnp.float32)
        x = jnp.einsum("bi,eio->beo", x, p["experts"]).sum(1) + both[:, 8:] + p["gate_bias"]
        for _ in range(3):
            x = jnp.tanh(x @ p["cell"].T)
        return x

    names = ["q", "k", "bank", "experts", "cell"]
    _, gates, told = closes_half(net, params, [normal(9, 64, 8)], names, pj.sparsegpt())
    assert np.asarray(gates["bank"])[0].all() and np.asarray(gates["bank"])[1].mean() == 0.5, "what is not used is left"
    assert all(np.mean(gates[name]) == 0.5 for name in ("q", "k", "cell"))
    assert told[-1].name == "cell" and len(told) == 5
    # A scale is taken out again: half the weights times two.
    plain, _ = pj.oneshot(lambda p, x: x @ p, 2 * params["q"], [normal(9, 64, 8)], pj.sparsegpt())
    scaled, _ = pj.oneshot(lambda p, x: x @ (2 * p), params["q"], [normal(9, 64, 8)], pj.sparsegpt())
    np.testing.assert_allclose(plain, 2 * scaled, atol=1e-5)


def test_a_recurrent_kernel_is_solved_for_on_all_its_turns():
    kernel, x = normal(1, 6, 6), normal(2, 32, 7, 6)

    def cell(p, x):
        turn = lambda h, u: (jnp.tanh(h @ p["kernel"] + u), None)  # noqa: E731
        return jax.lax.scan(turn, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[0]

    new, _, _ = closes_half(cell, {"kernel": kernel}, [x], ["kernel"], pj.obs(dampening=0.0))
    states, h = [], jnp.zeros((32, 6))
    for i in range(7):
        states.append(h)
        h = jnp.tanh(h @ kernel + x[:, i])
    stacked = jnp.concatenate(states)
    alone, _ = pj.oneshot(lambda p, x: x @ p["kernel"], {"kernel": kernel}, [stacked], pj.obs(dampening=0.0))
    np.testing.assert_allclose(new["kernel"], alone["kernel"], atol=1e-4)


def test_learned_queries_are_inputs_and_a_bfloat16_network_keeps_its_dtype():
    def net(p, x):
        q = (p["latents"] / jnp.linalg.norm(p["latents"], axis=-1, keepdims=True)) @ p["query"]["kernel"]
        return jax.nn.softmax(q @ (x @ p["key"]["kernel"]).T) @ x

    params = {"latents": normal(1, 5, 8), "query": {"kernel": normal(2, 8, 8)}, "key": {"kernel": normal(3, 8, 8)}}
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    new, _, _ = closes_half(
        net, params, [normal(4, 16, 8).astype(jnp.bfloat16)], ["query/kernel", "key/kernel"], pj.sparsegpt()
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ p["w"], lambda: x), r"w is used inside a cond.*pj.KEEP"),
        (lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"])), r"w is not the kernel itself: mul changes it first"),
        (lambda p, x: jax.nn.relu(x @ p["w"]) @ p["w"].T, r"w is used in two ways"),
        (lambda p, x: jnp.sin(x), "there is nothing to prune: the network has no linear layer"),
        (lambda p, x: x @ jnp.where(p["w"] > 9, p["w"], 1.0), r"w is replaced by other numbers|not the kernel"),
        (lambda p, x: jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda i, y: y @ p["w"], x), "inside a while"),
    ],
)
def test_what_is_not_supported_is_refused(net, message):
    with pytest.raises(ValueError, match=message):
        pj.oneshot(net, {"w": normal(1, 8, 8)}, [normal(2, 4, 8)], pj.sparsegpt())


def test_a_kernel_that_inputs_make_is_not_left_dense_in_silence():
    """Experts that a token chooses, a kernel that a style scales; a table's rows that are chosen are no kernel."""
    params = {"table": normal(1, 5, 8), "up": normal(2, 3, 8, 8), "conv": normal(3, 3, 8, 4), "out": normal(4, 8, 8)}

    def net(p, ids, which):
        x = p["table"][ids] @ p["out"]
        if which == "up":
            x = jnp.einsum("tw,twf->tf", x, p["up"][ids % 3])
        kernel = p["conv"] * jnp.tanh(x[0])[:, None] if which == "conv" else p["conv"]
        return jax.lax.conv_general_dilated(x[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    ids = jnp.arange(6) % 5
    for which in ("up", "conv"):
        with pytest.raises(ValueError, match=f"{which} is fetched or scaled by inputs before it is a kernel; leave it"):
            pj.oneshot(lambda p, x, which=which: net(p, x, which), params, [ids], pj.wanda())
    kept = {"up": pj.KEEP}
    closes_half(lambda p, x: net(p, x, "up"), params, [ids], ["conv", "out"], rules=kept)


def test_kernels_beside_a_scatter_and_a_branch_are_pruned():
    """Messages are added up, and a branch has no kernel of its own."""
    params = {"a": normal(1, 8, 8), "b": normal(2, 8, 8)}

    def net(p, x):
        x = jax.ops.segment_sum(x @ p["a"], jnp.arange(6) % 3, 3)
        return jax.lax.cond(x[0, 0] > 0, jnp.tanh, jnp.sin, x) @ p["b"]

    closes_half(net, params, [normal(3, 6, 8)], ["a", "b"])


def test_a_refused_kernel_can_be_kept():
    net = lambda p, x: (x @ p["a"]) @ (p["w"] / jnp.linalg.norm(p["w"]))  # noqa: E731
    params = {"a": normal(1, 8, 8), "w": normal(1, 8, 8)}
    closes_half(net, params, [normal(2, 4, 8)], ["a"], rules={"w": pj.KEEP})


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_padding_counts_for_nothing_where_the_weights_say_so(flat):
    """As the same rows without padding, also where a network flattens them; a pooled value counts whole."""

    def net(p, x):
        rows = x.reshape(-1, 6) if flat else x
        rows = jax.nn.relu(rows @ p["up"]) @ p["down"]
        return rows.reshape(*x.shape[:2], -1)[:, 0] @ p["pooled"]

    params = {"up": normal(1, 6, 8), "down": normal(2, 8, 4), "pooled": normal(3, 4, 4)}
    x, mask = normal(4, 2, 16, 9, 6), np.arange(9) < np.arange(1, 33).reshape(2, 16, 1) % 5 + 5
    lengths = [[x[i, j : j + 1, : int(mask[i, j].sum())] for j in range(16)] for i in range(2)]
    padded = jnp.where(mask[..., None], x, 7.0)
    exact, _ = pj.oneshot(net, params, [one for batch in lengths for one in batch], pj.sparsegpt())
    new, _ = pj.oneshot(net, params, list(padded), pj.sparsegpt(), weights=mask)
    for name in params:
        np.testing.assert_allclose(new[name], exact[name], atol=2e-4)
    whole, _ = pj.oneshot(net, params, list(padded), pj.sparsegpt())
    assert np.abs(whole["up"] - exact["up"]).max() > 0.01


@pytest.mark.slow
def test_sharded_weights_and_inputs_on_eight_devices():
    script = """
import jax, jax.numpy as jnp, numpy as np, prune_jax as pj
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("x",))
net = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
params = {"a": jax.random.normal(jax.random.key(0), (16, 32)), "b": jax.random.normal(jax.random.key(1), (32, 8))}
x = jax.random.normal(jax.random.key(2), (64, 16))
plain, _ = pj.oneshot(net, params, [x], pj.sparsegpt())
spread = {"a": jax.device_put(params["a"], NamedSharding(mesh, P(None, "x"))),
          "b": jax.device_put(params["b"], NamedSharding(mesh, P("x", None)))}
new, _ = pj.oneshot(net, spread, [jax.device_put(x, NamedSharding(mesh, P("x")))], pj.sparsegpt())
for name in "ab":
    assert new[name].sharding == spread[name].sharding
    np.testing.assert_allclose(new[name], plain[name], atol=1e-4)
print(len(jax.devices()))
"""
    env = devices(8) | {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "8", done.stderr[-2000:]

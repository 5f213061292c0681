"""pj.prune on networks and loops from elsewhere: linen, nnx, equinox, eight devices, and sparse training on digits."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, devices
from flax import nnx

import prune_jax as pj
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method, Pruned

KEY = jax.random.key(0)


def gates_of(state):
    return {name: np.asarray(gate) for name, gate in trees.by_name(pj.gates(state)).items()}


def assert_zeros(params, state):
    kernels = trees.by_name(params)
    for name, gate in gates_of(state).items():
        assert (np.asarray(kernels[name])[~gate] == 0).all(), name


# flax.linen ----------------------------------------------------------------------------------------------------------


class Linen(nn.Module):
    """A convolution, a 3-D kernel, a scanned stack, an embedding."""

    @nn.compact
    def __call__(self, image, token):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(image)).mean((1, 2))
        x = x + nn.Embed(5, 4, name="words")(token)
        x = nn.DenseGeneral((2, 4), name="split")(x)
        x = nn.DenseGeneral(8, axis=(-2, -1), name="join")(x)

        def body(layer, x, _):
            return nn.relu(layer(x)), None

        stack = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(nn.Dense(8, name="stack"), x, None)
        return nn.Dense(4, name="head")(nn.LayerNorm(name="norm")(x))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_counts")
def test_linen_with_a_convolution_and_three_dimensional_and_scanned_kernels():
    model = Linen()
    image, token = jax.random.normal(KEY, (6, 5, 5, 2)), jnp.arange(6) % 5
    params = jax.jit(model.init)(KEY, image, token)["params"]
    rules = {"split": pj.Rule(structure="2:4", axis=0), "stack": pj.Rule(structure="1:2"), "head": pj.KEEP}
    tx = pj.prune(optax.adamw(1e-2, weight_decay=0.1), pj.magnitude(), pj.cubic(0.75, end=4, every=2), rules=rules)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean(model.apply({"params": p}, image, token) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        params, state = step(params, state)
        assert_zeros(params, state)
    gates = gates_of(state)
    assert {name: gate.shape for name, gate in gates.items()} == {
        "conv/kernel": (3, 3, 2, 4), "join/kernel": (2, 4, 8), "split/kernel": (4, 2, 4), "stack/kernel": (3, 8, 8),
    }  # fmt: skip
    assert (~gates["conv/kernel"]).sum() == 54 and (~gates["join/kernel"]).sum() == 48
    assert (gates["split/kernel"].sum(0) == 2).all(), "2:4 over the inputs of a kernel (in, heads, depth)"
    assert (gates["stack/kernel"].reshape(3, 4, 2, 8).sum(2) == 1).all(), "1:2 over the inputs of every layer"
    assert pj.gates(state)["words"]["embedding"] is None and pj.gates(state)["norm"]["scale"] is None
    assert step._cache_size() == 1


# flax.nnx ------------------------------------------------------------------------------------------------------------


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(self.dropout(self.norm(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pj.magnitude(), pj.spt(epsilon=0.3), pj.rigl(frequency=2), pj.movement(regrow=True)],
    ids=["magnitude", "spt", "rigl", "regrowing movement"],
)  # fmt: skip
def test_nnx_optimizer_inside_nnx_jit(method):
    model = Nnx(nnx.Rngs(0))
    tx = pj.prune(optax.adamw(1e-2, weight_decay=0.1), method, pj.cubic(0.5, end=4, every=2), rules={"head": pj.KEEP})
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jax.random.normal(KEY, (16, 8))
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)

        def loss(model):
            return jnp.mean((model(x) - jnp.sin(x[:, :4])) ** 2)

        rest = nnx.split(model, nnx.Param, ...)

        def value_fn(params):
            return loss(nnx.merge(rest[0], params, rest[2]))

        def masked_loss(model):
            return loss(pj.masked(model, optimizer)) if method.alive else loss(model)

        grads = nnx.grad(masked_loss)(model)
        optimizer.update(model, grads, **({"value_fn": value_fn} if method.explores else {}))

    for _ in range(5):
        step(model, optimizer)
    assert len(traces) == 1
    assert float(pj.sparsity(optimizer)) == 0.5
    gates = gates_of(optimizer)
    assert set(gates) == {"layers/0/kernel", "layers/1/kernel"}
    assert [int((~gate).sum()) for gate in gates.values()] == [24, 18]
    masked = pj.masked(model, optimizer)
    for i in (0, 1):
        gate, kernel = gates[f"layers/{i}/kernel"], np.asarray(model.layers[i].kernel[...])
        np.testing.assert_array_equal(np.asarray(masked.layers[i].kernel[...]), kernel * gate)
        if not method.alive:
            assert (kernel[~gate] == 0).all()
    assert masked(x).shape == (16, 4)
    assert not any("head" in name for name in gates)


# equinox -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["unstructured", "2:4"])
def test_equinox_modules_with_static_leaves(structure):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(8, 4, 8, 2, activation=jax.nn.gelu, key=KEY)
    axis = -1  # equinox keeps (out, in)
    rules = {"weight": pj.Rule(structure=structure, axis=axis)} if structure == "2:4" else {}
    tx = pj.prune(optax.adam(1e-2), pj.magnitude(), pj.constant(0.5), rules=rules)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    x = jax.random.normal(KEY, (16, 8))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: jnp.mean(jax.vmap(m)(x) ** 2))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for _ in range(3):
        model, state = step(model, state)
    gates = gates_of(state)
    assert [(~gate).sum() / gate.size for gate in gates.values()] == [0.5] * 3
    assert_zeros(eqx.filter(model, eqx.is_inexact_array), state)
    if structure == "2:4":
        assert all((gate.reshape(gate.shape[0], -1, 4).sum(2) == 2).all() for gate in gates.values())
    masked = pj.masked(model, state)
    np.testing.assert_array_equal(jax.vmap(masked)(x), jax.vmap(model)(x))
    assert masked.activation is model.activation and pj.gates(state).layers[0].bias is None


# Eight devices -------------------------------------------------------------------------------------------------------


EIGHT = """
import json, re
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import prune_jax as pj

mesh = Mesh(np.array(jax.devices()), ("x",))
split = NamedSharding(mesh, P("x", None))
w = jax.random.normal(jax.random.key(0), (64, 48))
out = {}
methods = {"magnitude": pj.magnitude(), "movement": pj.movement(frequency=2), "rigl": pj.rigl(frequency=2),
           "spt": pj.spt(epsilon=0.1)}
for name, method in methods.items():
    tx = pj.prune(optax.adam(1e-2), method, pj.constant(0.75), seed=1)
    loss = lambda p: jnp.sum(jnp.sin(p["w"]) * (1 + jnp.arange(48)))
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state
    def run(params):
        state = tx.init(params)
        whole = NamedSharding(mesh, P())
        same = params["w"].shape
        if params["w"].sharding == split:
            first = [leaf.sharding.is_equivalent_to(split, 2) for leaf in jax.tree.leaves(state) if leaf.shape == same]
            state = jax.tree.map(lambda x: x if x.shape == same else jax.device_put(x, whole), state)
        else:
            first = []
        jitted = jax.jit(step)
        text = jitted.lower(params, state).compile().as_text()
        for _ in range(4):
            params, state = jitted(params, state)
        ends = [leaf.sharding.is_equivalent_to(split, 2) for leaf in jax.tree.leaves(state) if leaf.shape == same]
        return params, pj.gates(state), first, ends, text
    one, gate, *_ = run({"w": w})
    many, gates, first, ends, text = run({"w": jax.device_put(w, split)})
    largest = max([int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
                   for shape in re.findall(r"= \\w+\\[([\\d,]*)\\][^=]* all-gather", text)], default=0)
    out[name] = {
        "same": bool((np.asarray(gate["w"]) == np.asarray(gates["w"])).all()),
        "closed": int((~np.asarray(gates["w"])).sum()),
        "split at first": all(first) and len(first), "split": all(ends), "gathered": largest,
        "near": bool(np.allclose(one["w"], many["w"], rtol=1e-4, atol=1e-5)),
    }
print(json.dumps(out))
"""


@pytest.mark.slow
def test_eight_devices_shard_the_state_as_the_params_and_gather_nothing():
    environment = os.environ | devices(8)
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["closed"] == 64 * 48 * 3 // 4, name
        assert found["split at first"] and found["split"] and found["gathered"] < 64, (name, found)
        if name != "spt":  # its rewards are differences of sums, which eight devices add in another order
            assert found["same"] and found["near"], name


# Sparse training on digits -------------------------------------------------------------------------------------------


def digits():
    from configs import common
    from prune_jax.run import inputs

    config = common.get_config()
    config.model.name, config.data.task, config.data.source = "lenet_300_100", "digits", "builtin"
    dataset = inputs.load_data(inputs.resolve(config, {})[0])
    splits = []
    for split in (dataset.train, *dataset.evals.values()):
        batch = split.batch(np.arange(len(split)), 1, len(split))
        splits.append((jnp.asarray(batch["image"].reshape(len(split), -1)), jnp.asarray(batch["labels"])))
    return splits


def at_random(info):
    """The gates of a network that is sparse at random: what any method of sparse training has to beat."""
    scores = jax.tree.map(lambda gate: jax.random.uniform(info.key, gate.shape), info.gates)
    return Pruned(info.plan.close(info.gates, scores, info.target, info.key))


@pytest.mark.slow
def test_set_and_rigl_on_digits():
    """95% sparse from the start: exact at every step, regrown weights start at 0 with no moments, and it helps."""
    (images, labels), (held, truth) = digits()
    sizes, every, steps = (images.shape[1], 64, 10), 40, 630  # the last update is 30 steps before the end

    def logits(params, x):
        return jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"] + params["b"]["bias"]

    def start(key):
        keys = jax.random.split(key, 2)
        shapes = (sizes[:2], sizes[1:])
        kernels = [jax.random.normal(k, s) / np.sqrt(s[0]) for k, s in zip(keys, shapes, strict=True)]
        return {n: {"kernel": w, "bias": jnp.zeros(w.shape[1])} for n, w in zip("ab", kernels, strict=True)}

    def train(method, key):
        tx = pj.prune(optax.adam(3e-3), method, pj.constant(0.95), seed=3)
        params = start(key)

        def step(carry, count):
            params, state = carry
            rows = jax.random.randint(jax.random.fold_in(key, count), (64,), 0, len(labels))

            def loss(params):
                found = logits(params, images[rows])
                return optax.softmax_cross_entropy_with_integer_labels(found, labels[rows]).mean()

            grads = jax.grad(loss)(params)
            updates, new = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            opened, gates = pj.gates(state)["a"]["kernel"], pj.gates(new)["a"]["kernel"]
            moments = new.inner[0]
            grown = gates & ~opened
            slope, w = jnp.abs(grads["a"]["kernel"]), params["a"]["kernel"]
            seen = {
                "sparsity": pj.sparsity(new),
                "zeros": jnp.all((w == 0) | gates),
                "grown": jnp.sum(grown),
                "start": jnp.max(jnp.where(grown, jnp.abs(w) + jnp.abs(moments.mu["a"]["kernel"])
                                           + moments.nu["a"]["kernel"], 0)),
                "least grown": jnp.min(jnp.where(grown, slope, jnp.inf)),
                # What was closed before the update and stays so; what the update itself closes is not in it.
                "most left": jnp.max(jnp.where(~gates & ~opened, slope, 0)),
            }  # fmt: skip
            return (params, new), seen

        (params, _), seen = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        return jnp.mean(logits(params, held).argmax(-1) == truth), seen

    keys = jax.random.split(jax.random.key(5), 3)
    runs = {}
    for name, method in (("random", Method("random", prune=at_random)), ("set", pj.set(frequency=every)),
                         ("rigl", pj.rigl(frequency=every))):  # fmt: skip
        accuracy, seen = jax.jit(jax.vmap(lambda key, method=method: train(method, key)))(keys)
        seen = jax.tree.map(np.asarray, seen)
        runs[name] = float(accuracy.mean())
        closed = round(0.95 * sizes[0] * sizes[1]) + round(0.95 * sizes[1] * sizes[2])
        total = sizes[0] * sizes[1] + sizes[1] * sizes[2]
        np.testing.assert_allclose(seen["sparsity"], closed / total, rtol=1e-6)
        assert seen["zeros"].all()
        if name != "random":
            events = np.arange(1, steps + 1) % every == 0
            moved = 0.3 * (sizes[0] * sizes[1] - round(0.95 * sizes[0] * sizes[1]))
            # Some of what an update closes opens again in it, and counts neither as closed nor as grown.
            assert (seen["grown"][:, events] <= moved + 0.5 + 1e-4).all() and (seen["grown"][:, events] > 0).all()
            assert seen["grown"][:, events].mean() > 0.5 * moved
            assert (seen["grown"][:, ~events] == 0).all()
            assert (seen["start"] == 0).all()
        if name == "rigl":
            assert (seen["least grown"][:, events] >= seen["most left"][:, events]).all()
            assert (seen["least grown"][:, events] > 0).all()
    assert runs["rigl"] >= runs["random"] and runs["set"] >= runs["random"], runs
    assert runs["random"] > 0.5, runs  # and they learn at all

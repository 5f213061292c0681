"""What every method of the registry promises, whatever it scores by: the contract, method by method."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_jax as pj
from configs import common, gmp
from prune_jax import methods, report
from prune_jax.pruning import trees
from prune_jax.run import train

OPTIONS = {  # what a small network and few steps ask for
    "movement": {"frequency": 2},
    "spt": {"epsilon": 0.2},
    "set": {"frequency": 2},
    "rigl": {"frequency": 2},
    "obert": {"block": 5, "gradients": 4},
    "lottery_ticket": {"rewind": 1},
    "variational_dropout": {"num_examples": 16},
    "synflow": {"rounds": 5},
}
NAMES = [name for name in methods.REGISTRY if methods.scheduled(name)]
GATES_ALONE = ("set", "rigl")  # an exchange would break blocks and n:m
X = jax.random.normal(jax.random.key(1), (16, 8))
Y = jnp.sin(X @ jnp.arange(8.0))[:, None] * jnp.arange(1.0, 5.0)


def made(name):
    return methods.maker(name)(**OPTIONS.get(name, {}))


def network(dtype=jnp.float32, tied=False):
    keys = jax.random.split(jax.random.key(0), 2)

    def kernel(key, shape):
        return jnp.full(shape, 0.25, dtype) if tied else jax.random.normal(key, shape, dtype) / 3

    return {
        "hidden": {"kernel": kernel(keys[0], (8, 12)), "bias": jnp.full(12, 0.1, dtype)},
        "out": {"kernel": kernel(keys[1], (12, 4)), "bias": jnp.zeros(4, dtype)},
    }


def loss_of(params):
    dtype = params["hidden"]["bias"].dtype
    hidden = jnp.tanh(X.astype(dtype) @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    out = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    rest = sum(jnp.sum(leaf) for name, leaf in trees.by_name(params).items() if name.startswith("extra"))
    return jnp.mean((out - Y).astype(jnp.float32) ** 2) + jnp.float32(0.1) * rest


def stepping(tx, method):
    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: loss_of(pj.sampled(method, p, state)))(params)
        updates, state = tx.update(grads, state, params, value_fn=loss_of)
        return optax.apply_updates(params, updates), state

    return step


def gates_of(state):
    return {name: np.asarray(gate) for name, gate in trees.by_name(pj.gates(state)).items()}


def portion(structure, target, gate):
    """How many gates of a kernel a target closes."""
    if structure == "2:4":
        return gate.size // 4 * min(2, int(target * 4 + 1e-6))
    unit = 4 if structure == "block:2x2" else 1
    return round(target * gate.size / unit) * unit


# Units and patterns are the plan's: methods that every user meets, and those that change weights or exchange gates.
IN_UNITS = ("magnitude", "movement", "spt", "set", "obert", "l0")
LIVES = [(name, "unstructured") for name in NAMES]
LIVES += [(name, structure) for name in IN_UNITS for structure in ("block:2x2", "2:4")]
QUICK = ("magnitude", "movement", "spt")  # the other methods are slow


def slow_but_quick(cases):
    """Cases, each a tuple whose first is a method, as parameters."""
    return [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("name", "structure"), slow_but_quick(LIVES))
@pytest.mark.usefixtures("compiled_counts")
def test_the_life_of_a_method(name, structure):
    """Exact at each event, shrinking unless it regrows, closed weights 0, one compilation, resumed to the bit."""
    method, schedule = made(name), pj.steps({2: 0.25, 4: 0.5, 6: 0.75})
    tx = pj.prune(optax.adamw(1e-2, weight_decay=0.1), method, schedule, structure=structure)
    params = network()
    if structure != "unstructured" and name in GATES_ALONE:
        with pytest.raises(ValueError, match="allowed with set and rigl: unstructured, encoder"):
            tx.init(params)
        return
    state, step = jax.jit(tx.init)(params), stepping(tx, method)
    opened, half = gates_of(state), None
    for count in range(1, 9):
        params, state = step(params, state)
        gates, kernels = gates_of(state), trees.by_name(params)
        for kernel, gate in gates.items():
            if bool(schedule.due(count)) or count == 8:
                assert (~gate).sum() == portion(structure, schedule(count), gate), (kernel, count)
            if not method.regrows:
                assert not (gate & ~opened[kernel]).any(), "a mask reopened"
            if not method.alive:
                assert (np.asarray(kernels[kernel])[~gate] == 0).all()
            assert np.isfinite(kernels[kernel]).all()
        opened = gates
        if count == 5:
            half = jax.tree.map(np.asarray, (params, state))  # as a checkpoint holds it
    assert step._cache_size() == 1, "an event compiled again"
    again = jax.tree.map(jnp.asarray, half)
    for _ in range(3):
        again = step(*again)
    for one, other in zip(*map(jax.tree.leaves, (again, (params, state))), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", slow_but_quick([(name,) for name in NAMES]))
def test_the_edges_of_a_method(name):
    """bfloat16, equal weights, a kernel of one weight and one of none; closed not at all, then whole."""
    params = network(jnp.bfloat16, tied=True)
    params["extra"] = {"one": jnp.ones((1, 1), jnp.bfloat16), "none": jnp.zeros((0, 3), jnp.bfloat16)}
    tx = pj.prune(optax.sgd(1e-2), made(name), pj.steps({1: 0.0, 2: 0.5, 3: 1.0}))
    state, step = jax.jit(tx.init)(params), stepping(tx, made(name))
    for target in (0.0, 0.5, 1.0):
        before = jax.tree.map(lambda leaf: leaf.dtype, params)
        params, state = step(params, state)
        assert jax.tree.map(lambda leaf: leaf.dtype, params) == before
        for gate in gates_of(state).values():
            assert (~gate).sum() == round(target * gate.size)
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(params["extra"])) or made(name).alive


# What a run hands a method besides gradients, one method of each kind; test_train has magnitude, movement and SPT.
IN_RUNS = ["sws", "l0", "cofi", "lottery_ticket", "obert", "synflow", "snip", "rigl", "ste", "sensitivity"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_RUNS)
def test_a_run_of_the_program(name, tmp_path):
    config = common.get_config()
    config.model.name, config.data.task, config.data.source = "lenet_300_100", "digits", "builtin"
    config.train.update(epochs=2, batch_size=96, eval_batch_size=360, learning_rate=1e-3)
    config.pruning.update(method=name, start_epoch=0, sparsity_steps=(50, 80))
    config.report.sinks = ()
    config.sws.deviation = 0.01  # else two epochs leave all weights to the zero component, which is a failure
    if name in ("rigl", "ste"):
        config[name].frequency = 5
    if name == "cofi":
        config.pruning.update(structure="auto", scope="global")
    train.train_and_evaluate(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    if methods.scheduled(name):
        assert summary["sparsity"] == pytest.approx(0.8, abs=0.01 if name == "cofi" else 1e-4)  # whole units
    if name != "lottery_ticket":  # two epochs are too few for it to be above chance
        assert summary["final_metric"] > 0.3


@pytest.mark.slow
def test_gmp_closes_in_a_first_step_and_along_a_cubic_course_under_a_teacher(tmp_path):
    def small(method, epochs):
        config = gmp.get_config()
        config.model.update(size="tiny", num_layers=1, d_model=32, num_heads=2, d_ff=64)
        config.data.update(source="builtin", task="single", max_len=16, builtin_train_size=320, builtin_eval_size=64)
        config.pruning.update(method=method, end_epoch=6)
        config.train.update(epochs=epochs, learning_rate=1e-3)
        config.report.sinks = ()
        return config

    train.train_and_evaluate(small("baseline", 2), tmp_path / "dense")
    config = small("magnitude", 7)
    config.model.init_from = config.distill.teacher = str(tmp_path / "dense")
    train.train_and_evaluate(config, tmp_path / "gmp")
    rows = report.read_metrics(tmp_path / "gmp")
    course = [0.9 - 0.2 * (1 - done / 4) ** 3 for done in (0, 1, 2, 3, 4, 4)]
    assert [row["target_sparsity"] for row in rows] == pytest.approx([0, *course], abs=1e-3)
    summary = json.loads((tmp_path / "gmp" / "summary.json").read_text())
    assert summary["sparsity"] == pytest.approx(0.9 * 8192 / 9280, abs=1e-4)  # of all kernels; the encoder's are at 0.9

"""Soft weight-sharing as a method: its loss, its rates, its end, and whole runs on digits in two stages."""

import importlib
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_jax as pj
from prune_jax import config as config_lib
from prune_jax import methods, models, report
from prune_jax.data import batching
from prune_jax.errors import Collapsed, Stopped, UserError
from prune_jax.methods import mixture as mixture_lib
from prune_jax.pruning import gates as gates_lib
from prune_jax.run import folder as runs
from prune_jax.run import inputs, launch, optim, train, workdir
from prune_jax.run import state as state_lib

RATES = {"weights": 0.1, "means": 0.2, "gammas": 0.3, "rhos": 0.4}


def toy():
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": jnp.asarray(0.2 * rng.normal(size=(6, 5)), jnp.float32), "bias": jnp.ones(5)},
        "words": {"embedding": jnp.asarray(0.2 * rng.normal(size=(4, 3)), jnp.float32)},
    }
    return params, {"dense": {"kernel": jnp.asarray(rng.random((6, 5)) < 0.7)}}


def hyper(method, examples=100.0, steps=50.0):
    return {"num_examples": jnp.float32(examples), "num_steps": jnp.float32(steps)} | {
        name: jnp.float32(value) for name, value in method.hyper.items()
    }


def loss_of(method, params, gates, trainable, step=0):
    return float(method.penalty(params, gates, trainable, jnp.int32(step), hyper(method), None))


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("learn_pi0", [False, True])
def test_the_penalty_is_tau_over_n_times_the_sum_of_its_parts(embeddings, learn_pi0):
    method = pj.soft_weight_sharing(tau=0.5, embeddings=embeddings, learn_pi0=learn_pi0, pi0_alpha=3000.0, pi0_beta=2.0)
    params, gates = toy()
    trainable = method.init_trainable(params, gates, None)
    mixture = mixture_lib.from_leaves(trainable, 0.99)
    seen = [np.asarray(params["dense"]["kernel"] * gates["dense"]["kernel"]).ravel()]
    if embeddings:
        seen.append(np.asarray(params["words"]["embedding"]).ravel())
    gammas = np.full(16, -2 * math.log(0.25))
    parts = -np.asarray(mixture_lib.log_prob(jnp.asarray(np.concatenate(seen)), mixture)).sum(dtype=np.float64)
    parts += (1 - 5e3) * gammas[0] + 2 * np.exp(gammas[0]) + 15 * ((1 - 2.5e2) * gammas[1] + 0.1 * np.exp(gammas[1]))
    if learn_pi0:
        parts -= 2999 * math.log(0.99) + math.log(0.01)
    assert loss_of(method, params, gates, trainable) == pytest.approx(0.5 / 100 * parts, rel=1e-4)


def test_tau_rises_on_a_straight_line():
    params, gates = toy()
    whole = pj.soft_weight_sharing()
    rising = pj.soft_weight_sharing(tau_anneal=0.2)  # over 10 of 50 steps
    trainable = whole.init_trainable(params, gates, None)
    full = loss_of(whole, params, gates, trainable)
    for step, share in ((0, 0.1), (4, 0.5), (9, 1.0), (49, 1.0)):
        assert loss_of(rising, params, gates, trainable, step) == pytest.approx(share * full, rel=1e-5)


@pytest.mark.parametrize("zeroed", RATES)
def test_each_learning_rate_reaches_its_leaves_and_no_others(zeroed):
    method = pj.soft_weight_sharing()
    optimizer = optim.create(0.0, 0.0, tuple(method.rates))
    params, gates = toy()
    leaves = {"params": params, "method": method.init_trainable(params, gates, None)}
    assert set(leaves["method"]) == set(method.rates) == set(RATES) - {"weights"}

    def loss(leaves):
        penalty = method.penalty(leaves["params"], gates, leaves["method"], jnp.int32(0), hyper(method), None)
        return penalty + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(leaves))

    rates = {label: jnp.float32(0 if label == zeroed else rate) for label, rate in RATES.items()}
    updates, _ = optimizer.update(jax.grad(loss)(leaves), optimizer.init(leaves), leaves, learning_rates=rates)
    for label in RATES:
        moved = updates["params"] if label == "weights" else updates["method"][label]
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moved))
        assert largest == pytest.approx(float(rates[label]), rel=1e-3, abs=1e-12)  # Adam's first step is its rate


def test_the_end_quantises_kernels_and_closes_the_gates_of_zeros():
    method = pj.soft_weight_sharing(components=2)
    params, gates = toy()
    kernel = np.zeros((6, 5), np.float32)
    kernel[0, :4], gates["dense"]["kernel"] = [0.48, 0.55, -0.02, 0.52], jnp.ones((6, 5), bool).at[0, 3].set(False)
    params["dense"]["kernel"] = jnp.asarray(kernel)
    trainable = {"means": jnp.array([0.5]), "gammas": jnp.log(jnp.array([2500.0, 400.0])), "rhos": jnp.zeros(1)}
    found, closed, entries, lines = method.end_run(params, gates, trainable, {})
    wanted = np.zeros((6, 5), np.float32)
    wanted[0, :2] = 0.5  # 0.52 had a closed gate, and stays closed
    np.testing.assert_array_equal(found["dense"]["kernel"], wanted)
    np.testing.assert_array_equal(closed["dense"]["kernel"], wanted != 0)
    for layer, name in (("words", "embedding"), ("dense", "bias")):
        np.testing.assert_array_equal(found[layer][name], params[layer][name])
    assert entries == {"codebook": [0.5], "num_means": 1, "num_components": 2, "nonzero": pytest.approx(2 / 30)}
    assert "6.67%" in lines[0]
    found = pj.soft_weight_sharing(components=2, embeddings=True).end_run(params, gates, trainable, {})[0]
    assert set(np.unique(found["words"]["embedding"])) <= {0, 0.5}


def digits(**sws):
    config = importlib.import_module("configs.sws_lenet").get_config()
    config.data.source = "builtin"
    config.pretrain.epochs = 3
    config.train.epochs, config.train.batch_size, config.train.eval_batch_size = 2, 128, 360
    config.sws.deviation = 0.01  # after so few epochs a wider component at 0 would take every weight
    config.sws.update(sws)
    return config


def numbers(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report.read_metrics(folder)]


def assert_same_network(a, b, kind):
    for x, y in zip(*(jax.tree.leaves(runs.load(f, kind)[1:]) for f in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 36 + 5])  # in the pretraining of 36 steps; in the retraining
def test_a_run_stopped_in_either_stage_resumes_to_equal_numbers(step, tmp_path, monkeypatch):
    train.train_and_evaluate(digits(tau_anneal=0.5), tmp_path / "whole")
    original, count = batching.train_batches, [0]

    def batches(*args):
        for batch in original(*args):
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(batching, "train_batches", batches)
        with pytest.raises(Stopped):
            train.train_and_evaluate(digits(tau_anneal=0.5), tmp_path / "parts")
    workdir.release(tmp_path / "parts")
    summary = train.train_and_evaluate(digits(tau_anneal=0.5), tmp_path / "parts")
    assert not list(tmp_path.glob("*.zip")) and count[0] == step
    for folder in ("", "pretrain"):
        assert numbers(tmp_path / "whole" / folder) == numbers(tmp_path / "parts" / folder)
    for kind in ("last", "quantised"):
        assert_same_network(tmp_path / "whole", tmp_path / "parts", kind)
    assert summary["metric_before_quantising"] == numbers(tmp_path / "parts")[-1]["eval_metric"]


@pytest.mark.slow
def test_a_trained_network_is_taken_in_place_of_the_pretraining(tmp_path):
    train.train_and_evaluate(digits(), tmp_path / "first")
    config = digits()
    config.model.init_from = str(tmp_path / "first" / "pretrain")
    train.train_and_evaluate(config, tmp_path / "second")
    assert not (tmp_path / "second" / "pretrain").exists()
    assert numbers(tmp_path / "first") == numbers(tmp_path / "second")


@pytest.mark.usefixtures("compiled_counts")
def test_the_training_step_compiles_once(tmp_path):
    config, _ = config_lib.resolve(digits(tau_anneal=0.5), {})
    dataset = inputs.load_data(config)
    model, method = models.create(config, dataset.task, None), methods.from_config(config)
    optimizer = optim.create(0.0, 0.0, tuple(method.rates))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    plan = state_lib.make_plan(model, shapes["gates"], "unstructured", "local")
    state = state_lib.init_state(model, method, optimizer, plan, jax.random.key(0))
    step = jax.jit(state_lib.make_train_step(model, method, optimizer, plan))
    batch = next(batching.train_batches(dataset.train, 16, dataset.buckets, 0, 0))
    for tau in (0.0, 0.003, 1.0):
        numbers = hyper(method, 1437, 100) | {"tau": jnp.float32(tau)}
        state, loss = step(state, batch, optim.rates(1e-3, 1.0, method.rates), numbers)
        assert np.isfinite(loss)
    assert step._cache_size() == 1


def test_other_methods_have_no_quantised_network(small_config, tmp_path):
    small_config.pruning.method = "magnitude"
    train.train_and_evaluate(small_config, tmp_path / "run")
    with pytest.raises(UserError, match=r"there is no checkpoint in .*quantised"):
        runs.load(tmp_path / "run", "quantised")


@pytest.mark.slow
def test_a_transformer_under_the_prior(small_config, tmp_path):
    small_config.pruning.method = "sws"
    small_config.sws.embeddings = True
    small_config.sws.update(deviation=1e-3, mean_range=0.05)  # weights are of 0.02
    small_config.train.epochs = 1
    train.train_and_evaluate(small_config, tmp_path / "run")
    params, gates = runs.load(tmp_path / "run", "quantised")[1:]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("kernel", "embedding"):
            assert len(np.unique(leaf)) <= 16
    assert all(
        ((kernel != 0) == gate).all()
        for kernel, gate in zip(
            jax.tree.leaves(jax.tree.map(lambda g, k: k, gates, gates_lib.kernels(params, gates))),
            jax.tree.leaves(gates),
            strict=True,
        )
    )


@pytest.mark.slow
def test_digits_end_to_end(tmp_path):
    """Above 0.95 with a tenth of the bits: positions and codes of the non-zeros, float32 codebook and biases."""
    config = importlib.import_module("configs.sws_digits").get_config()
    summary = train.train_and_evaluate(config, tmp_path / "run")
    network = runs.load(tmp_path / "run", "quantised")
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(network.params) if leaf.ndim > 1]
    values = np.unique(np.concatenate([np.unique(k) for k in kernels]))
    nonzero, size = sum(np.count_nonzero(k) for k in kernels), sum(k.size for k in kernels)
    bits = nonzero * (8 + math.ceil(math.log2(len(values)))) + 32 * (len(values) + summary["num_params"] - size)
    assert summary["final_metric"] > 0.95
    assert 32 * summary["num_params"] / bits > 10
    assert summary["nonzero"] == pytest.approx(nonzero / size) == pytest.approx(1 - summary["sparsity"])
    np.testing.assert_array_equal(np.float32(summary["codebook"]), values[values != 0])


def test_the_library_trains_the_mixture_as_the_program_does_and_finish_quantises():
    """pj.prune's steps against AdamW and Adam over the whole loss, prior and mixture included."""
    params, _ = toy()
    target = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), jnp.float32)
    method = pj.soft_weight_sharing(components=4, tau=0.5, num_examples=20, num_steps=10, tau_anneal=0.5)
    tx = pj.prune(optax.adam(1e-2), method)

    def data_loss(params):
        return jnp.mean((params["dense"]["kernel"] - target) ** 2) + jnp.sum(params["words"]["embedding"] ** 2)

    gates = {"dense": {"kernel": jnp.ones((6, 5), bool)}}
    mixture = method.init_trainable(params, gates, None)
    rates = {name: optax.adam(method.rates[name]) for name in mixture}
    own = {name: rates[name].init(leaf) for name, leaf in mixture.items()}
    by_hand, moments, adam = params, optax.adam(1e-2).init(params), optax.adam(1e-2)
    state, ours = tx.init(params), params

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(data_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def reference(params, mixture, moments, own, count):
        def whole(params, mixture):
            return data_loss(params) + method.penalty(params, gates, mixture, count, hyper(method, 20, 10), None)

        of_params, of_mixture = jax.grad(whole, (0, 1))(params, mixture)
        updates, moments = adam.update(of_params, moments)
        new = {}
        for name in mixture:
            moved, own[name] = rates[name].update(of_mixture[name], own[name])
            new[name] = mixture[name] + moved
        return optax.apply_updates(params, updates), new, moments, own

    for count in range(8):
        ours, state = step(ours, state)
        by_hand, mixture, moments, own = reference(by_hand, mixture, moments, own, jnp.int32(count))
    for one, other in zip(jax.tree.leaves((ours, state.trainable)), jax.tree.leaves((by_hand, mixture)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert float(abs(state.trainable["means"] - method.init_trainable(params, gates, None)["means"]).max()) > 1e-4
    assert float(pj.sparsity(state)) == 0
    quantised, closed = pj.finish(method, ours, state)
    merged = mixture_lib.merge(mixture_lib.from_leaves(jax.device_get(state.trainable), 0.99))
    kernel = np.asarray(quantised["dense"]["kernel"])
    assert set(np.unique(kernel)) <= set(np.float32(merged.means))
    np.testing.assert_array_equal(np.asarray(closed["dense"]["kernel"]), kernel != 0)
    np.testing.assert_array_equal(quantised["words"]["embedding"], ours["words"]["embedding"])
    plain, gates = pj.finish(pj.magnitude(), ours, state)  # a method without an end of its own: the masked params
    np.testing.assert_array_equal(plain["dense"]["kernel"], ours["dense"]["kernel"])


# A collapse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"), [(0.0, "no weight is left"), (0.01, r"accuracy 0\.\d+, where a constant answer has 0\.1")]
)
def test_a_collapsed_network_is_a_failure_and_no_splendid_rate(value, says, tmp_path, monkeypatch):
    """All weights become one value: the best of rates, and a network that answers the same to every image."""
    config = digits()
    monkeypatch.setattr(mixture_lib, "quantise", lambda weights, mixture: np.full_like(weights, value))
    with pytest.raises(Collapsed, match=f"the network collapsed in quantising: {says}.*config\\.sws\\.tau"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert runs.final_kind(tmp_path / "run") == "best"  # no quantised checkpoint to be exported by mistake
    workdir.release(tmp_path / "run")


@pytest.mark.parametrize("name", ["sws_pruned", "sws_paper"])
def test_settings_for_mnist_need_mnist(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    with pytest.raises(UserError, match=r"config\.data\.dir is empty; .*IDX files"):
        inputs.resolve(config, {})


def test_the_settings_of_sws_lenet_follow_its_data_and_a_flag_wins(tmp_path):
    """Without a folder it ran on the digits with MNIST's tau and epochs, and ended at chance."""
    home = tmp_path / "mnist"
    home.mkdir()

    def resolved(*flags):
        config = launch.parse(["--config=configs/sws_lenet.py", *flags]).config
        return inputs.resolve(config, {})[0]

    def read(config):
        return config.data.source, config.train.epochs, config.sws.tau, config.sws.pi0, config.train.weight_decay

    assert read(resolved()) == ("builtin", 200, 0.015, 0.9, 0.0)
    assert read(resolved(f"--config.data.dir={home}")) == ("idx", 30, 0.03, 0.97, 0.1)
    assert read(resolved("--config.sws.tau=0.02", "--config.train.epochs=7")) == ("builtin", 7, 0.02, 0.9, 0.0)
    flags = ("--config.sws.pi0=0.5", f"--config.data.dir={home}")
    assert read(resolved(*flags)) == read(resolved(*reversed(flags))) == ("idx", 30, 0.03, 0.5, 0.1)
    digits = importlib.import_module("configs.sws_digits").get_config()
    given, wanted = (config_lib.to_json(config) for config in (inputs.resolve(digits, {})[0], resolved()))
    assert given == wanted | {"data": wanted["data"] | {"task": "digits"}}

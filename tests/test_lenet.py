"""The small nets: published sizes, convolution against torch-like loops, gates, and every method on them."""

import importlib
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from prune_jax import config as config_lib
from prune_jax import models, report
from prune_jax.__main__ import main
from prune_jax.config import rooms
from prune_jax.data.glue import IMAGE_TASKS
from prune_jax.errors import UserError
from prune_jax.models import lenet, units
from prune_jax.pruning import gates as gates_lib
from prune_jax.run import artifact, train
from prune_jax.run import folder as runs
from prune_jax.run import state as state_lib

COUNTS = {  # on 28x28, by hand: kernels and biases
    "lenet_300_100": 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
    "lenet5_caffe": 25 * 20 + 20 + 25 * 20 * 50 + 50 + 800 * 500 + 500 + 500 * 10 + 10,
    "tutorial": 642_460,
}


def digits_config(name, method="magnitude"):
    config = common.get_config()
    config.model.name = name
    config.data.task, config.data.source = "digits", "builtin"
    config.data.max_train_examples = 64
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 32, 1e-3
    config.pruning.method, config.pruning.start_epoch, config.pruning.sparsity_steps = method, 0, (50, 75)
    config.movement.frequency = 2
    return config


def build(name, task="mnist"):
    model = models.create(config_lib.resolve(digits_config(name), {})[0], IMAGE_TASKS[task], None)
    variables = jax.jit(model.init)(jax.random.key(0), *model.example_inputs())
    return model, variables["params"], variables["gates"]


def test_the_registry_of_models_is_the_configs():
    assert {"bert": "text", "decoder": "lm", **dict.fromkeys(lenet.GEOMETRIES, "images")} == rooms.MODELS
    for entry in models.REGISTRY.values():
        assert callable(importlib.import_module(entry.module).create)


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    _, params, gates = build(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[name]
    biases = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 1)
    assert gates_lib.count(gates) == COUNTS[name] - biases


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("lenet_300_100", ("dense_1", "dense_2", "classifier")),
        ("lenet5_caffe", ("conv_1", "conv_2", "dense_1", "classifier")),
        ("tutorial", ("conv_1", "conv_2", "dense_1", "classifier")),
    ],
)
def test_layer_types_end_with_the_head(name, types):
    model, _, gates = build(name)
    assert state_lib.make_plan(model, gates, "unstructured", "local").type_indices(gates)[0] == types


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mnist", "digits"])
@pytest.mark.parametrize("name", COUNTS)
def test_logits_gates_and_gradients(name, task):
    model, params, gates = build(name, task)
    image = jax.random.uniform(jax.random.key(1), (3, *IMAGE_TASKS[task].shape))

    def logits(params, gates):
        return model.apply({"params": params, "gates": gates}, image)

    found = logits(params, gates)
    assert found.shape == (3, 10) and found.dtype == jnp.float32 and bool(jnp.isfinite(found).all())
    some = jax.tree.map(lambda g: jax.random.bernoulli(jax.random.key(g.size), 0.5, g.shape), gates)
    removed = jax.tree.map(lambda p: p, params)
    for layer, gate in some.items():
        removed[layer]["kernel"] = params[layer]["kernel"] * gate["kernel"]
    np.testing.assert_allclose(logits(params, some), logits(removed, gates), rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda p: jnp.sum(logits(p, some) ** 2))(params)
    for layer, gate in some.items():
        grad = np.asarray(grads[layer]["kernel"])
        assert (grad[~np.asarray(gate["kernel"])] == 0).all() and np.abs(grad).max() > 0


def test_convolution_against_loops():
    rng = np.random.default_rng(0)
    layer = models.GatedConv(4, (3, 3), (2, 2), "VALID")
    x = rng.normal(size=(2, 7, 9, 3)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = (np.asarray(variables["params"][n]) for n in ("kernel", "bias"))
    gate = rng.random(kernel.shape) < 0.5
    found = layer.apply({"params": {"kernel": kernel, "bias": bias + 1}, "gates": {"kernel": gate}}, x)
    wanted = np.array(
        [
            [[np.einsum("hwc,hwcf->f", x[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel * gate) + 1 for j in range(4)]
             for i in range(3)]
            for n in range(2)
        ]
    )  # fmt: skip
    assert found.shape == (2, 3, 4, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "method"), [("lenet_300_100", "baseline"), ("tutorial", "spt"), ("lenet5_caffe", "movement")]
)
def test_methods_run_on_them(name, method, tmp_path):
    summary = train.train_and_evaluate(digits_config(name, method), tmp_path / "run")
    assert summary["model_size"] == name and summary["task"] == "digits"
    assert summary["sparsity"] == pytest.approx(0 if method == "baseline" else 0.75, abs=1e-3)
    assert np.isfinite([row["eval_loss"] for row in report.read_metrics(tmp_path / "run")]).all()
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert "conv_1" in runs.load(tmp_path / "run").gates or name == "lenet_300_100"


def channels(gates, name, reader):
    """(channels,) whether each is open, of a layer and the rows that read it; each is open or closed as a whole."""
    own, read = (np.asarray(gates[n]["kernel"]) for n in (name, reader))
    width = own.shape[-1]
    if own.ndim == 4 and read.ndim == 2:  # flattened: one row per pixel and channel
        read = read.reshape(-1, width, read.shape[-1])
    read = np.moveaxis(read, -2, 0).reshape(width, -1)
    both = np.concatenate([np.moveaxis(own, -1, 0).reshape(width, -1), read], axis=1)
    open_here = np.moveaxis(own, -1, 0).reshape(width, -1).any(1)
    return both, open_here


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "structure", "method"),
    [
        ("lenet5_caffe", "channel", "magnitude"),
        ("lenet5_caffe", "channel+hidden", "spt"),
        ("lenet_300_100", "hidden", "movement"),
    ],
)
def test_channels_and_hidden_units_close_whole(name, structure, method, tmp_path):
    config = digits_config(name, method)
    config.pruning.structure, config.spt.credit = structure, "group"
    train.train_and_evaluate(config, tmp_path / "run")
    gates = runs.load(tmp_path / "run").gates
    order = [layer for layer in ("conv_1", "conv_2", "dense_1", "dense_2", "classifier") if layer in gates]
    for layer, reader in pairwise(order):
        both, is_open = channels(gates, layer, reader)
        kind = "channel" if layer.startswith("conv") else "hidden"
        closed = ~both.any(1)
        if kind not in structure.split("+"):
            assert not closed.any()
            continue
        assert closed.sum() == round(0.75 * len(closed)), (layer, closed.sum())
        np.testing.assert_array_equal(closed, ~is_open)
    assert np.asarray(gates["classifier"]["kernel"]).any(0).all(), "a class was closed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "structure", "widths"),
    [("lenet5_caffe", "channels+columns", [5, 12, 125]), ("lenet_300_100", "hidden", [75, 25])],
)
def test_a_cut_network_is_compressed_at_its_own_widths(name, structure, widths, tmp_path, capsys):
    config = digits_config(name)
    config.pruning.structure = structure
    train.train_and_evaluate(config, tmp_path / "run")
    (*_, row) = report.read_metrics(tmp_path / "run")
    assert main(["compress", str(tmp_path / "run"), str(tmp_path / "run.pjx"), "--bits=0"]) == 0
    assert "closed units cut out" in capsys.readouterr().out
    assert main(["decompress", str(tmp_path / "run.pjx"), str(tmp_path / "again")]) == 0
    for source in ("run.pjx", "again"):
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / source)]) == 0
        printed = capsys.readouterr().out
        assert f"eval_metric (accuracy) {row['eval_metric']:.6f}" in printed
        assert float(printed.split("eval_loss ")[1].split()[0]) == pytest.approx(row["eval_loss"], rel=1e-5)
    full, small = runs.load(tmp_path / "run"), runs.load(tmp_path / "again")
    layers = [layer for layer in ("conv_1", "conv_2", "dense_1", "dense_2") if layer in full.params]
    assert [small.params[layer]["bias"].size for layer in layers] == widths
    assert list(small.config.model.widths) == widths and full.config.model.widths is None
    report_of = artifact.write(tmp_path / "full.pjx", full)
    assert (tmp_path / "run.pjx").stat().st_size < report_of.size

    config.model.init_from, config.pruning.method = str(tmp_path / "again"), "baseline"  # and it trains on
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path / "second")
    assert list(runs.read_config(tmp_path / "second").model.widths) == widths


def test_widths_that_are_none_are_told(tmp_path):
    config = digits_config("lenet5_caffe")
    for widths in ((5, 12), (5, 51, 3), (5, 0, 3)):
        config.model.widths = widths
        with pytest.raises(UserError, match=r"config.model.widths is .* 3 whole numbers from 1 to 20, 50, 500"):
            train.train_and_evaluate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "structure", "allowed"),
    [("lenet_300_100", "channel", "hidden"), ("lenet5_caffe", "head", "channel, hidden"),
     ("tutorial", "hidden+ffn", "channel, hidden")],
)  # fmt: skip
def test_a_structure_that_the_network_has_not_is_an_error_that_lists_what_it_has(name, structure, allowed, tmp_path):
    config = digits_config(name)
    config.pruning.structure = structure
    message = f"no groups of kind '.*'; allowed: unstructured, auto, {allowed}, block:RxC, n:m"
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_graphs_words_are_those_of_saved_runs():
    model = models.create(config_lib.resolve(digits_config("lenet5_caffe"), {})[0], IMAGE_TASKS["digits"], None)
    for theirs, ours in (("channels", "channel"), ("columns", "hidden"), ("channels+columns", "channel+hidden")):
        assert units.chosen(model, theirs) == units.chosen(model, ours) != ()
    assert [group.name for group in units.groups(model)] == ["conv_1.channels", "conv_2.channels", "dense_1"]

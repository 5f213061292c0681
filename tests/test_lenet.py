"""The small nets: published sizes, convolution against torch-like loops, gates, and every method on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from prune_jax import config as config_lib
from prune_jax import gates as gates_lib
from prune_jax import keys, models, report, runs, train
from prune_jax.data.glue import IMAGE_TASKS

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


def test_the_table_of_models_is_the_configs():
    assert set(models.MAKERS) == set(keys.MODELS)


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
    assert gates_lib.present_types(build(name)[2]) == types


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
    ("name", "method"),
    [("lenet_300_100", m) for m in ("baseline", "magnitude", "movement", "spt")]
    + [("tutorial", "spt"), ("lenet5_caffe", "movement")],
)
def test_every_method_runs_on_them(name, method, tmp_path):
    summary = train.train_and_evaluate(digits_config(name, method), tmp_path / "run")
    assert summary["model_size"] == name and summary["task"] == "digits"
    assert summary["sparsity"] == pytest.approx(0 if method == "baseline" else 0.75, abs=1e-3)
    assert np.isfinite([row["eval_loss"] for row in report.read_metrics(tmp_path / "run")]).all()
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert "conv_1" in runs.load(tmp_path / "run").gates or name == "lenet_300_100"

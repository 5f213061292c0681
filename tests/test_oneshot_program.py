"""One-shot pruning as a method of the program, and as the start of a run; units by a budget of operations."""

import csv
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_jax as pj
from prune_jax import __main__ as command_line
from prune_jax.errors import Stopped, UserError
from prune_jax.oneshot import structured
from prune_jax.pruning import trees
from prune_jax.run import folder as runs
from prune_jax.run import oneshot, train


@pytest.fixture
def config(small_config):
    small_config.report.sinks = ()
    small_config.pruning.method, small_config.train.epochs = "sparsegpt", 0
    small_config.oneshot.examples = 48
    return small_config


def digits(config):
    config.model.name, config.data.task, config.train.batch_size = "lenet_300_100", "digits", 128
    return config


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A folder for a dense run of two epochs, and its summary once a test has made it."""
    return tmp_path_factory.mktemp("dense"), {}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "obs", "magnitude"])
def test_a_network_is_pruned_without_an_epoch(method, config, tmp_path, capsys, dense):
    folder, known = dense
    if not known:
        own = config.copy_and_resolve_references()
        own.pruning.method, own.train.epochs = "baseline", 2
        known.update(train.train_and_evaluate(own, folder / "run"))
    before = known
    config.pruning.method = config.oneshot.method = method
    config.model.init_from, config.model.init_checkpoint = str(folder / "run"), "last"
    summary = train.train_and_evaluate(config, tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    assert row["epoch"] == "0" and summary["epochs"] == summary["steps"] == 0
    assert summary["oneshot"]["metric_before"] == before["final_metric"] == float(row["metric_before_pruning"])
    assert summary["sparsity"] == pytest.approx(0.5, abs=0.01) and summary["dense_metric"] == before["final_metric"]
    assert set(summary["layer_sparsity"].values()) == {0.5}, "each kernel"
    entry = json.loads((tmp_path / "run" / "oneshot.json").read_text())
    assert entry["layers"][0]["name"] == "layer_0/query/kernel"
    assert all(0 <= layer["error"] < 1 for layer in entry["layers"])
    capsys.readouterr()
    assert command_line.main(["evaluate", str(tmp_path / "run")]) == 0
    assert f"{summary['final_metric']:.6f}" in capsys.readouterr().out
    if method == "wanda":
        assert command_line.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
        folders = [str(tmp_path / "run"), str(folder / "run")]
        assert command_line.main(["compare", *folders, f"--out={tmp_path / 'compared'}"]) == 0


@pytest.mark.slow
def test_images_and_options_and_least_squares(config, tmp_path):
    config = digits(config)
    errors = {}
    for correct, bits in itertools.product((False, True), (0, 8)):
        config.oneshot.correct, config.sparsegpt.bits, config.oneshot.sparsity = correct, bits, 0.8
        if correct and bits:
            with pytest.raises(UserError, match="whose grid it leaves"):
                train.train_and_evaluate(config, tmp_path / "none")
            continue
        train.train_and_evaluate(config, tmp_path / f"{correct}{bits}")
        errors[correct, bits] = json.loads((tmp_path / f"{correct}{bits}" / "oneshot.json").read_text())["layers"][0]
    assert errors[True, 0]["error"] < errors[False, 0]["error"] < errors[False, 8]["error"] * 1.01
    _, params, _ = runs.load(tmp_path / "False8")
    kernel = params["dense_2"]["kernel"]
    assert max(len(np.unique(column)) for column in kernel.T) <= 256


def test_training_goes_on_with_the_gates_as_they_are(config, tmp_path):
    config = digits(config)
    config.train.epochs = 2
    summary = train.train_and_evaluate(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert {row["sparsity"] for row in rows} == {rows[0]["sparsity"]}
    assert summary["final_metric"] > summary["oneshot"]["metric_after"]
    _, params, gates = runs.load(tmp_path / "run", "last")
    for name, gate in trees.by_name(gates).items():
        assert gate.mean() == pytest.approx(0.5, abs=0.01) and not trees.by_name(params)[name][~gate].any()


def test_a_gradual_method_goes_on_from_it(config, tmp_path):
    config = digits(config)
    config.pruning.method, config.oneshot.method, config.oneshot.sparsity = "magnitude", "wanda", 0.4
    config.train.epochs, config.pruning.start_epoch, config.pruning.sparsity_steps = 2, 0, (30, 70)
    train.train_and_evaluate(config, tmp_path / "run")
    sparsities = [round(float(row["sparsity"]), 2) for row in rows_of(tmp_path / "run")]
    assert sparsities == [0.4, 0.7], "what is closed stays closed"
    assert (tmp_path / "run" / "oneshot.json").is_file()


def test_units_of_a_bert_by_operations(config, tmp_path):
    config.pruning.structure, config.oneshot.target, config.oneshot.sparsity = "head+ffn", "flops", 0.3
    summary = train.train_and_evaluate(config, tmp_path / "run")
    flops = summary["cost"]["flops"]
    assert 0.3 <= 1 - flops["pruned"] / flops["dense"] < 0.5
    assert command_line.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--shrink"]) == 0


def test_a_stopped_run_ends_as_an_undisturbed_one(config, tmp_path, monkeypatch, stop_at):
    config = digits(config)
    config.train.epochs, config.train.batch_size = 2, 256
    whole = train.train_and_evaluate(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Stopped):
            train.train_and_evaluate(config, tmp_path / "run")
    again = train.train_and_evaluate(config, tmp_path / "run")
    timed = ("seconds",)
    for one, other in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "run"), strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
    assert again["oneshot"]["metric_after"] == whole["oneshot"]["metric_after"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pruning.method": "magnitude"}, "config.train.epochs is 0; allowed: 1 to 1000000, or 0 with config"),
        (
            {"pruning.scope": "global"},
            "config.pruning.scope is 'global'; allowed: local with config",
        ),
        ({"oneshot.method": "wanda"}, "config.oneshot.method is 'wanda'; allowed: sparsegpt, or empty"),
        ({"pruning.method": "obs", "pruning.structure": "block:2x2"}, "any but blocks with config.oneshot.method=obs"),
        ({"oneshot.target": "flops"}, "config.oneshot.target is 'flops'; allowed: units with config.pruning.structure"),
        (
            {"oneshot.scope": "global", "pruning.structure": "2:4"},
            "config.oneshot.scope is 'global'; allowed: local with config.pruning.structure=2:4",
        ),
        ({"oneshot.examples": 10**6}, "config.oneshot.examples is 1000000; allowed: 1 to 150, the training examples"),
        ({"sparsegpt.block": 0}, "config.sparsegpt.block is 0; allowed: at least 1"),
        ({"pruning.structure": "hidden"}, "cannot prune this network"),
        ({"oneshot.sparsity": 2.0}, "config.oneshot.sparsity is 2.0; allowed: 0 to 1"),
    ],
)
def test_a_mistake_is_one_message(keys, message, config, tmp_path):
    for key, value in keys.items():
        room, name = key.split(".")
        config[room][name] = value
    with pytest.raises(UserError) as told:
        train.train_and_evaluate(config, tmp_path / "run")
    assert message in str(told.value)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_batch_has_at_most_so_many_tokens_and_every_example_is_in_one():
    """A backward pass of a decoder holds what each layer makes of them."""
    lengths = np.repeat([5, 30, 250, 700, 2000], [70, 40, 6, 3, 2])

    class Split:
        def __len__(self):
            return len(lengths)

        def batch(self, rows, length, size):
            assert size == len(rows) and (self.lengths[rows] <= length).all()
            return {"input_ids": np.broadcast_to(rows[:, None], (size, length))}

    split = Split()
    split.lengths = lengths
    dataset = SimpleNamespace(train=split, buckets=(2000,))
    made, masks = oneshot.batches(SimpleNamespace(inputs=("input_ids",)), dataset, len(lengths), 0)
    shapes = [inputs[0].shape for inputs in made]
    assert masks is None and sorted(np.concatenate([x[0][:, 0] for x in made])) == list(range(len(lengths)))
    assert all(n * length <= 1024 or n == 1 for n, length in shapes)
    assert shapes[:2] == [(32, 8), (32, 8)] and shapes[-2:] == [(1, 2000)] * 2
    assert any(shape == (4, 256) for shape in shapes) and len(shapes) < 14


# The library: a budget of operations ---------------------------------------------------------------------------------


def net(p, x):
    x = jax.nn.relu(x @ p["up"]) @ p["down"]
    return jax.nn.relu(x @ p["wide"]) @ p["out"]


@pytest.fixture
def network():
    sizes = {"up": (8, 12), "down": (12, 8), "wide": (8, 20), "out": (20, 4)}
    keys = jax.random.split(jax.random.key(0), len(sizes) + 1)
    params = {n: jax.random.normal(k, s) for (n, s), k in zip(sizes.items(), keys[1:], strict=True)}
    params["up"] = params["up"] * jnp.linspace(0.01, 1, 12)
    return params, [jax.random.normal(keys[0], (64, 8))]


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7])
def test_the_budget_is_met_and_no_unit_too_many_closes(network, fraction):
    params, batches = network
    pruned, gates = pj.oneshot(
        net, params, batches, pj.sparsegpt(), sparsity=fraction, structure="up+wide", target="flops"
    )
    graph = pj.trace(net, params, batches[0])
    cut = graph.dropped(pruned, gates)
    saved = 1 - graph.cost(cut=cut).flops / graph.cost().flops
    largest = 2 * 64 * (8 + 8) / graph.cost().flops
    assert fraction <= saved < fraction + largest


def test_the_shares_are_the_best_there_are(network):
    """Against every pair of counts, along the same curves."""
    params, batches = network
    graph = pj.trace(net, params, batches[0])
    curves = {0: np.cumsum(np.arange(12.0)) / 500, 1: np.cumsum(np.arange(20.0)) / 100}
    found = {0: structured.Reading(graph.groups["up"], (), None), 1: structured.Reading(graph.groups["wide"], (), None)}
    per_unit = (2 * 64 * 16, 2 * 64 * 12)
    for fraction in (0.1, 0.33, 0.6, 0.8):
        counts = structured.share(graph, params, found, curves, fraction)
        wanted = fraction * graph.cost().flops
        able = [
            (curves[0][a] + curves[1][b], a, b)
            for a, b in itertools.product(range(12), range(20))
            if a * per_unit[0] + b * per_unit[1] >= wanted
        ]
        error = curves[0][counts[0]] + curves[1][counts[1]]
        assert counts[0] * per_unit[0] + counts[1] * per_unit[1] >= wanted
        assert error <= min(able)[0] * 1.1 + 1e-9, (counts, min(able))


def test_the_group_that_the_outputs_hardly_hang_on_pays(network):
    """Two equal groups, of which one reaches the outputs a thousandth as much."""
    params, batches = network
    params = {"a": params["up"], "b": params["up"][:, ::-1], "c": params["down"], "d": params["down"]}

    def two(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["c"] + 1e-3 * (jax.nn.relu(x @ p["b"]) @ p["d"])

    _, gates = pj.oneshot(two, params, batches, pj.wanda(), sparsity=0.45, structure="a+b", target="flops")
    closed = {name: int((~np.asarray(gates[name])[:, 0]).sum()) for name in ("c", "d")}
    assert closed["c"] == 0 and closed["d"] == 11, closed


def test_a_curve_is_the_error_of_closing_one_more(network):
    """Against least squares of what is left, solved by NumPy."""
    params, batches = network
    x = np.maximum(np.asarray(batches[0] @ params["up"], np.float64), 0)
    errors = []
    for k in range(1, 6):
        done = []
        method = pj.sparsegpt(dampening=1e-7)
        _, gates = pj.oneshot(net, params, batches, method, sparsity=k / 12, structure="up", progress=done.append)
        errors.append(done[0].error)
        left = np.asarray(gates["down"])[:, 0]
        dense = x @ np.asarray(params["down"], np.float64)
        best = np.linalg.lstsq(x[:, left], dense, rcond=None)[0]
        wanted = np.square(x[:, left] @ best - dense).sum() / np.square(dense).sum()
        np.testing.assert_allclose(done[0].error, wanted, rtol=2e-2, atol=1e-6)
    assert errors == sorted(errors)


def test_a_budget_beyond_the_groups_and_one_without_groups_are_refused(network):
    params, batches = network
    with pytest.raises(ValueError, match="of the operations; allowed: at most"):
        pj.oneshot(net, params, batches, pj.wanda(), sparsity=0.99, structure="up", target="flops")
    with pytest.raises(ValueError, match="target is 'flops'; allowed with structure='2:4': units"):
        pj.oneshot(net, params, batches, pj.wanda(), structure="2:4", target="flops")
    with pytest.raises(ValueError, match="target is 'time'; allowed: units, flops"):
        pj.oneshot(net, params, batches, pj.wanda(), target="time")

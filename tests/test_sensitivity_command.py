"""prune-jax sensitivity: each part alone, against gates closed by hand."""

import csv
import importlib

import numpy as np
import pytest

from prune_jax.__main__ import main
from prune_jax.run import evaluate, train, workdir
from prune_jax.run import folder as runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A LeNet on the digits, pruned to 30 %."""
    config = importlib.import_module("configs.lenet").get_config()
    config.pruning.method = "magnitude"
    config.pruning.start_epoch, config.pruning.sparsity_steps = 2, (30,)
    config.train.epochs, config.train.eval_batch_size = 4, 360
    folder = tmp_path_factory.mktemp("sensitivity") / "run"
    train.train_and_evaluate(config, folder)
    workdir.release(folder)
    return folder


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_kernel_alone_is_closed_by_magnitude(run, tmp_path, capsys):
    assert main(["sensitivity", str(run), "--out", str(tmp_path / "out"), "--levels", "0.2", "0.9"]) == 0
    rows = table(tmp_path / "out" / "sensitivity.csv")
    network = runs.load(run, "best")
    first = network.params["dense_0"]["kernel"] if "dense_0" in network.params else None
    names = dict.fromkeys(row["part"] for row in rows[1:])
    assert len(names) == 3 and len(rows) == 1 + 2 * 3
    before = float(rows[0]["accuracy"])
    for row in rows[1:]:
        assert float(row["change"]) == pytest.approx(float(row["accuracy"]) - before)
        if row["closed"] == "0.2":  # 30 % are closed already
            assert float(row["change"]) == 0
    name = next(iter(names))
    layer = name.removesuffix("/kernel")
    kernel, gate = network.params[layer]["kernel"], np.asarray(network.gates[layer]["kernel"])
    weights = np.abs(kernel) * gate
    closed = gate & (weights > np.sort(weights, axis=None)[round(0.9 * gate.size) - 1])
    gates = {**network.gates, layer: {"kernel": closed}}
    columns, _ = evaluate.network(network.config, network.params, gates)
    wanted = next(row for row in rows if row["part"] == name and row["closed"] == "0.9")
    assert float(wanted["accuracy"]) == pytest.approx(columns["eval_metric"], abs=1e-6)
    assert (tmp_path / "out" / "sensitivity.png").stat().st_size > 5000
    assert f"accuracy {before:.4f}; its change" in capsys.readouterr().out
    assert first is None or first.ndim == 2


@pytest.mark.parametrize(("metric", "values"), [("accuracy", [0.9, 0.8999]), ("perplexity", [20.0, 900.0])])
def test_the_darkest_cell_is_what_does_the_most_harm(metric, values, tmp_path):
    from matplotlib.image import imread

    from prune_jax.report import sensitivity

    sensitivity.draw(tmp_path / "map.png", "t", metric, values[0], (0.5, 0.8), {"part": values})
    image = imread(tmp_path / "map.png")[..., :3]
    dark = (abs(image - [127 / 255, 39 / 255, 4 / 255]).max(-1) < 0.02).nonzero()
    cells = dark[1] < 0.7 * image.shape[1]  # the rest is the color bar
    assert cells.sum() > 1000  # the second of the two
    assert dark[1][cells].min() > (abs(image - [1, 245 / 255, 235 / 255]).max(-1) < 0.02).nonzero()[1].min() + 50


def test_groups_of_units_alone(run):
    assert main(["sensitivity", str(run), "--structure=hidden", "--levels", "0.5"]) == 0
    rows = table(run / "plots" / "sensitivity.csv")
    assert len(rows) >= 2 and not any(row["part"].endswith("kernel") for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--levels", "50"], "--levels has 50; allowed: shares above 0 and at most 1"),
        (["--structure=head"], "--structure is 'head': "),
    ],
)
def test_mistakes(run, flags, message, capsys):
    assert main(["sensitivity", str(run), *flags]) == 2
    assert message in capsys.readouterr().err

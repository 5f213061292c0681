"""Runs that the version before the rooms saved: they resume, evaluate, export, compress and compare.

tests/fixtures/saved_runs.tar.xz holds METHOD/unfinished (stopped after two of four epochs) and METHOD/finished (the
metrics of the same run undisturbed; magnitude's whole folder) for four methods: configs/quickstart.py with one layer of
width 8, 64 sentences and seed 0, as each config.json tells.
"""

import contextlib
import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from prune_jax import __main__ as command_line
from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.errors import Collapsed
from prune_jax.report import metrics
from prune_jax.run import folder as runs
from prune_jax.run import train
from prune_jax.run import workdir as workdir_lib

ARCHIVE = Path(__file__).parent / "fixtures" / "saved_runs.tar.xz"
METHODS = ("magnitude", "spt", "movement", "sws")


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """The folder that the archive is unpacked in."""
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def finished(saved) -> Path:
    return saved / "magnitude" / "finished"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_unfinished_run_resumes_and_ends_with_the_same_numbers(saved, method):
    folder = saved / method / "unfinished"
    config = config_lib.completed(runs.read_config(folder))
    resumed_from = metrics.read_metrics(folder)[-1]["epoch"]
    assert resumed_from == 2
    collapses = method == "sws"  # all of its weights become 0, which was no failure then
    try:
        with pytest.raises(Collapsed) if collapses else contextlib.nullcontext():
            train.train_and_evaluate(config, folder)
    finally:
        workdir_lib.release(folder)
    assert not list(folder.parent.glob("*.zip"))  # archiving it would start anew
    assert "resuming after 2 epochs" in (folder / "run.log").read_text()
    assert (folder / "summary.json").is_file() != collapses
    rows, wanted = metrics.read_metrics(folder), metrics.read_metrics(saved / method / "finished")
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in wanted] == [1, 2, 3, 4]
    for row, other in zip(rows[resumed_from:], wanted[resumed_from:], strict=True):
        assert row.keys() == other.keys()
        names = row.keys() - {"seconds"}
        if method == "spt":  # most of its scores are equal after 8 steps, and ties are drawn by other random bits now
            names = {name for name in names if "sparsity" in name or name == "step"}
            if row["epoch"] == resumed_from + 1:  # up to the first pruning nothing differs
                names |= {"train_loss", "metric_before_pruning", "mean_reward"}
        for name in names:
            close = pytest.approx(other[name], rel=1e-4, abs=1e-6)  # another CPU has saved it
            assert row[name] == close, (row["epoch"], name)
    layers, wanted = metrics.read_layers(folder), metrics.read_layers(saved / method / "finished")
    assert layers == wanted


def run(capsys, *argv) -> str:
    """What a command of prune-jax prints."""
    assert command_line.main([str(arg) for arg in argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_finished_run_evaluates(finished, capsys):
    printed = dict(line.rsplit(" ", 1) for line in run(capsys, "evaluate", finished, "--kind=best").splitlines())
    final = metrics.read_metrics(finished)[-1]
    assert float(printed["eval_metric (accuracy)"]) == pytest.approx(final["eval_metric"], abs=1e-6)
    assert float(printed["eval_loss"]) == pytest.approx(final["eval_loss"], abs=1e-6)


def test_a_finished_run_is_exported(finished, tmp_path, capsys):
    import safetensors.numpy

    run(capsys, "export", finished, tmp_path / "hf", "--format=hf")
    network = runs.load(finished)
    kernel, gate = (tree["layer_0"]["query"]["kernel"] for tree in (network.params, network.gates))
    tensors = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    exported = tensors["bert.encoder.layer.0.attention.self.query.weight"].T
    np.testing.assert_array_equal(exported, np.where(gate, kernel, 0))
    assert (exported == 0).mean() == 0.75 and (tmp_path / "hf" / "tokenizer.json").is_file()


def test_a_finished_run_is_compressed_and_unpacked(finished, tmp_path, capsys):
    run(capsys, "compress", finished, tmp_path / "run.pjx", "--bits=0")
    run(capsys, "decompress", tmp_path / "run.pjx", tmp_path / "again")
    before, after = runs.load(finished), runs.load(tmp_path / "again")
    kernel, gate = (tree["pooler"]["kernel"] for tree in (before.params, before.gates))
    np.testing.assert_array_equal(after.params["pooler"]["kernel"] * after.gates["pooler"]["kernel"], kernel * gate)
    np.testing.assert_array_equal(after.params["classifier"]["bias"], before.params["classifier"]["bias"])


def test_a_finished_run_is_compared(finished, tmp_path, capsys):
    assert "magnitude" in run(capsys, "compare", finished, f"--out={tmp_path / 'out'}")
    with open(tmp_path / "out" / "runs.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    summary = files.read_json(finished / "summary.json")
    assert float(row["best_metric"]) == summary["best_metric"] and row["method"] == "magnitude"


def test_a_finished_run_starts_another(finished, tmp_path):
    config = config_lib.completed(runs.read_config(finished))
    config.model.init_from, config.train.epochs, config.train.learning_rate = str(finished), 1, 1e-30
    config.pruning.method = "baseline"
    try:
        train.train_and_evaluate(config, tmp_path / "run")
    finally:
        workdir_lib.release(tmp_path / "run")
    first, second = runs.load(finished), runs.load(tmp_path / "run")
    np.testing.assert_allclose(first.params["pooler"]["kernel"], second.params["pooler"]["kernel"], atol=1e-20)
    np.testing.assert_array_equal(first.gates["pooler"]["kernel"], second.gates["pooler"]["kernel"])


def test_every_saved_config_still_resolves_to_itself(saved):
    for path in sorted(saved.glob("*/*/config.json")):
        text = json.loads(path.read_text())
        resolved, _ = config_lib.resolve(config_lib.completed(config_lib.from_json(text)), {})
        again = config_lib.to_json(resolved)
        assert {room: {key: again[room][key] for key in text[room]} for room in text} == text, path

"""Inputs are opened and checked before anything on disk moves; sinks are asked for only where a run writes to them."""

import json
import os
import shutil
import signal
import subprocess
import sys

import conftest
import pytest
from conftest import ROOT
from test_train import numbers, stop_at

from prune_jax import __main__ as command_line
from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.errors import Stopped, UserError
from prune_jax.report import sinks
from prune_jax.run import folder as runs
from prune_jax.run import inputs, train, workdir


@pytest.fixture
def config(small_config):
    small_config.pruning.method, small_config.train.epochs = "magnitude", 2
    small_config.pruning.sparsity_steps = (50,)
    return small_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run. Tests copy what they change."""
    config = conftest.small()
    config.pruning.method, config.train.epochs, config.pruning.sparsity_steps = "magnitude", 2, (50,)
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.train_and_evaluate(config, folder)
    workdir.release(folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def flip_bits(folder):
    """Flips bits all over the files that hold a checkpoint's arrays, those of the optimizer and of the network."""
    for path in folder.rglob("d/*"):
        data = bytearray(path.read_bytes())
        for at in range(50, len(data), 100):
            data[at] ^= 0x10
        path.write_bytes(data)


def everything(folder):
    """All files below a folder, with their contents and dates."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model.init_from", "distill.teacher"])
@pytest.mark.parametrize("place", ["", "pretrain", "link"])
def test_a_run_that_reads_its_own_workdir_is_refused_and_left_alone(run, config, key, place, tmp_path):
    source = run / place if place else run
    if place == "pretrain":
        (run / "checkpoints").rename(tmp_path / "moved")
        source.mkdir()
        (tmp_path / "moved").rename(source / "checkpoints")
        (source / "config.json").write_bytes((run / "config.json").read_bytes())
    if place == "link":
        source = tmp_path / "link"
        source.symlink_to(run)
    room, name = key.split(".")
    config[room][name] = str(source)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=rf"config\.{key} is .*which is or lies in this run's own workdir"):
        train.train_and_evaluate(config, run)
    assert everything(tmp_path) == before and not list(tmp_path.glob("*.zip"))


def test_the_default_workdir_is_no_input_either(run, tmp_path):
    """As a shell runs it: results_magnitude is where the run would write."""
    run.rename(tmp_path / "results_magnitude")
    before = everything(tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), f"--config={ROOT / 'configs' / 'quickstart.py'}",
         "--config.pruning.method=magnitude", "--config.model.init_from=results_magnitude",
         "--config.model.max_positions=512"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 2 and "config.model.init_from is 'results_magnitude', which is or lies in" in done.stderr
    assert everything(tmp_path) == before


@pytest.mark.parametrize("key", ["model.init_from", "distill.teacher"])
@pytest.mark.parametrize("damage", ["missing", "flipped bit", "another network"])
def test_an_input_that_cannot_be_used_is_told_before_anything_moves(run, finished, config, key, damage, tmp_path):
    source = tmp_path / "source"
    if damage == "missing":
        shutil.rmtree(run)
    else:
        run.rename(source)
        if damage == "flipped bit":
            flip_bits(source / "checkpoints" / "best")
        elif key == "model.init_from":
            config.model.d_ff = 24
        else:
            config.data.task = "pair"
    earlier = tmp_path / "earlier"  # a finished run: the new one would archive it
    shutil.copytree(finished, earlier)
    room, name = key.split(".")
    config[room][name] = str(source)
    before = everything(tmp_path)
    with pytest.raises(UserError):
        train.train_and_evaluate(config, earlier)
    assert everything(tmp_path) == before and not list(tmp_path.glob("*.zip"))


def test_a_structure_that_the_network_has_not_is_told_before_anything_moves(run, config, tmp_path):
    config.pruning.structure = "wheels"
    before = everything(tmp_path)
    with pytest.raises(UserError, match=r"config\.pruning\.structure=wheels"):
        train.train_and_evaluate(config, run)
    assert everything(tmp_path) == before


def test_a_stopped_run_goes_on_with_other_sinks_and_ends_with_the_same_numbers(config, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 15, signal.SIGTERM)
        with pytest.raises(Stopped):
            train.train_and_evaluate(config, tmp_path / "run")
    workdir.release(tmp_path / "run")
    config.report.sinks, config.train.eval_batch_size, config.train.checkpoint_every = (), 64, 3
    train.train_and_evaluate(config, tmp_path / "run")
    assert not list(tmp_path.glob("*.zip")) and runs.read_config(tmp_path / "run").report.sinks == ()
    assert numbers(tmp_path / "run") == numbers(finished)


def test_a_run_with_a_sink_that_is_not_installed_is_of_use_all_the_same(run, tmp_path, monkeypatch, capsys):
    saved = json.loads((run / "config.json").read_text())
    saved["report"]["sinks"] = ["tensorboard", "wandb"]
    (run / "config.json").write_text(json.dumps(saved))
    monkeypatch.setattr(sinks.WandB, "packages", ("no-such-package-anywhere",))
    for argv in (
        ("evaluate", run),
        ("export", run, tmp_path / "hf"),
        ("export", run, tmp_path / "hlo", "--format=stablehlo", "--length", "16"),
        ("compress", run, tmp_path / "run.pjx"),
        ("decompress", tmp_path / "run.pjx", tmp_path / "again"),
        ("evaluate", tmp_path / "run.pjx"),
        ("average", run, run, tmp_path / "mean"),
        ("evaluate", tmp_path / "mean"),
        ("compare", run, f"--out={tmp_path / 'comparison'}"),
    ):
        assert command_line.main([str(arg) for arg in argv]) == 0, (argv, capsys.readouterr().err)


@pytest.mark.parametrize("key", ["model.init_from", "distill.teacher"])
def test_and_it_starts_or_teaches_another(run, config, key, tmp_path, monkeypatch):
    saved = runs.read_config(run)
    saved.report.sinks = ("wandb",)
    files.write_json(run / "config.json", config_lib.to_json(saved))
    monkeypatch.setattr(sinks.WandB, "packages", ("no-such-package-anywhere",))
    room, name = key.split(".")
    config[room][name], config.train.epochs = str(run), 1
    train.train_and_evaluate(config, tmp_path / "other")
    assert (tmp_path / "other" / "summary.json").is_file()


def test_a_run_that_would_write_to_it_is_refused_at_once(config, tmp_path, monkeypatch):
    config.report.sinks = ("wandb",)
    monkeypatch.setattr(sinks.WandB, "packages", ("no-such-package-anywhere",))
    with pytest.raises(UserError, match=r"config\.report\.sinks names 'wandb', and the package no-such-package"):
        inputs.resolve(config, {})
    with pytest.raises(UserError, match="is not installed"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

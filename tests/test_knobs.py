"""The knobs of a training: an end by patience or by steps, accumulated gradients, smoothed labels, bfloat16."""

import functools
import importlib
import os
import signal
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from test_train import assert_same_trees, numbers, saved_state, stop_at

from prune_jax import methods, models, report
from prune_jax.config import schedules
from prune_jax.data.glue import BUILTIN_TASKS
from prune_jax.errors import Stopped, UserError
from prune_jax.models.functional import classification_losses
from prune_jax.run import inputs, optim, train, workdir
from prune_jax.run import state as state_lib


@pytest.fixture
def digits():
    config = importlib.import_module("configs.lenet").get_config()
    config.pruning.method = "magnitude"
    config.pruning.start_epoch, config.pruning.sparsity_steps = 1, (50, 80)
    config.train.epochs, config.train.batch_size, config.train.eval_batch_size = 4, 144, 360
    return config


def scripted(monkeypatch, metrics):
    """Evaluations answer these numbers, one per epoch, in place of the network's."""
    ends = iter(metrics)
    original = train.Loop.finish_epoch

    def finish(self):
        value = next(ends)
        monkeypatch.setattr(self, "evaluate", lambda *_: {"eval_loss": 1.0, "eval_metric": value})
        original(self)

    monkeypatch.setattr(train.Loop, "finish_epoch", finish)


# Patience -------------------------------------------------------------------------------------------------------------


def test_patience_counts_epochs_without_a_better_metric_at_the_last_sparsity(digits, tmp_path, monkeypatch):
    """The dense epochs and those on the way fall without end; 80 % is reached after epoch 3, the best there is 5."""
    digits.train.epochs, digits.train.patience = 20, 2
    scripted(monkeypatch, [0.9, 0.8, 0.5, 0.4, 0.6, 0.6, 0.55, 0.99])
    summary = train.train_and_evaluate(digits, tmp_path / "run")
    assert summary["epochs"] == 7 and summary["best_epoch"] == 5 and summary["steps"] == 70
    assert "stopped early: no better accuracy since epoch 5" in (tmp_path / "run" / "run.log").read_text()


def test_a_run_stopped_within_its_patience_resumes_its_count(digits, tmp_path, monkeypatch):
    digits.train.epochs, digits.train.patience = 20, 2
    metrics = [0.9, 0.8, 0.5, 0.4, 0.3, 0.2]
    with monkeypatch.context() as patch:
        scripted(patch, metrics)
        stop_at(patch, 32, signal.SIGTERM)  # in epoch 4
        with pytest.raises(Stopped):
            train.train_and_evaluate(digits, tmp_path / "run")
    workdir.release(tmp_path / "run")
    scripted(monkeypatch, metrics[3:])
    assert train.train_and_evaluate(digits, tmp_path / "run")["epochs"] == 5


def test_a_patience_that_cannot_end_a_run_is_told(digits):
    digits.train.patience = 2
    _, notes = inputs.resolve(digits, {})
    assert any("config.train.patience is 2, and the last sparsity is reached after epoch 3 of 4" in n for n in notes)
    digits.train.epochs = 6
    assert not any("patience" in note for note in inputs.resolve(digits, {})[1])


# Steps ----------------------------------------------------------------------------------------------------------------


def test_max_steps_ends_a_run_within_an_epoch_at_that_epochs_target(digits, tmp_path):
    digits.train.max_steps = 25  # of 10 an epoch
    digits.train.lr_schedule, digits.train.warmup_fraction = "linear", 0.2
    summary = train.train_and_evaluate(digits, tmp_path / "run")
    rows = report.read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [10, 20, 25] and summary["steps"] == 25 and summary["epochs"] == 3
    assert [row["target_sparsity"] for row in rows] == [0, 0.5, 0.8]
    rate = schedules.learning_rate(inputs.resolve(digits, {})[0], 40)  # over the 25 steps: up in 5, then to 0
    rates = [rate(step) for step in range(25)]
    assert rates[4] == digits.train.learning_rate == max(rates)
    np.testing.assert_allclose([a - b for a, b in pairwise(rates[5:])], digits.train.learning_rate / 20)
    losses = [row["train_loss"] for row in rows]
    assert losses[2] < losses[0]  # a mean over 5 steps, not their sum over 10


# Parts ----------------------------------------------------------------------------------------------------------------


def task_batch(rows=16, real=13):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 40, (rows, 8)).astype(np.int32)
    weights = np.where(np.arange(rows) < real, rng.uniform(0.2, 2, rows), 0).astype(np.float32)
    return {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "attention_mask": np.ones_like(ids),
        "labels": rng.integers(0, 2, rows).astype(np.int32),
        "weights": weights,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("method", "parts"), [("movement", 2), ("spt", 16)])  # 16: some have no real row
def test_a_step_in_parts_is_the_step_of_the_whole_batch(method, parts, small_config):
    """Weights, scores (SPT's exploration among them), moments and the loss, over two steps."""
    small_config.pruning.method = method
    small_config.model.dropout = 0.0
    config, _ = inputs.resolve(small_config, {})
    model, chosen = models.create(config, BUILTIN_TASKS["single"], 40), methods.from_config(config)
    gates = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["gates"]
    plan = state_lib.make_plan(model, gates, "unstructured", "local")
    optimizer = optim.create(0.01, 1.0, tuple(chosen.rates))
    hyper = {name: np.float32(value) for name, value in chosen.hyper.items()}
    rates = {"weights": np.float32(1e-3)} | {name: np.float32(rate) for name, rate in chosen.rates.items()}

    def after(parts):
        step = jax.jit(state_lib.make_train_step(model, chosen, optimizer, plan, None, parts, 0.1))
        state = state_lib.init_state(model, chosen, optimizer, plan, jax.random.key(0))
        for _ in range(2):
            state, loss = step(state, task_batch(), rates, hyper)
        return state.replace(key=jax.random.key_data(state.key)), loss

    for whole, one in zip(*map(jax.tree.leaves, (after(1), after(parts))), strict=True):
        np.testing.assert_allclose(one, whole, rtol=2e-3, atol=2e-5)


def test_a_mean_in_parts_weighs_its_rows():
    batch = {"x": np.arange(6.0), "weights": np.float32([1, 2, 0, 0, 3, 1])}

    def mean(rows, _):
        return jnp.sum(rows["x"] * rows["weights"]) / jnp.maximum(jnp.sum(rows["weights"]), 1)

    for parts in (1, 2, 3, 6):
        np.testing.assert_allclose(state_lib.in_parts(mean, batch, parts), (0 + 2 + 12 + 5) / 7, rtol=1e-6)


def test_accumulating_changes_no_step_count_and_hardly_a_number(digits, tmp_path):
    train.train_and_evaluate(digits, tmp_path / "whole")
    digits.train.accumulate = 4
    train.train_and_evaluate(digits, tmp_path / "parts")
    whole, parts = numbers(tmp_path / "whole"), numbers(tmp_path / "parts")
    assert [row["step"] for row in whole] == [row["step"] for row in parts]
    for one, other in zip(whole, parts, strict=True):
        assert abs(one["train_loss"] - other["train_loss"]) < 1e-3
        assert abs(one["eval_metric"] - other["eval_metric"]) < 0.01


# Labels ---------------------------------------------------------------------------------------------------------------


def test_label_smoothing_is_the_cross_entropy_with_smoothed_targets():
    import torch

    logits = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    labels = np.arange(7, dtype=np.int32) % 5
    model = SimpleNamespace(losses=lambda logits, batch: classification_losses(logits, batch["labels"]))
    ours = state_lib.smoothed_losses(model, jnp.asarray(logits), {"labels": labels}, 0.2)
    loss = functools.partial(torch.nn.functional.cross_entropy, reduction="none", label_smoothing=0.2)
    np.testing.assert_allclose(ours, loss(torch.tensor(logits), torch.tensor(labels, dtype=torch.long)), rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accumulate", 5, "config.train.accumulate is 5; allowed: a divisor of config.train.batch_size"),
        ("label_smoothing", 0.1, "config.train.label_smoothing is 0.1; allowed: 0 with the regression"),
        ("label_smoothing", 1.0, "config.train.label_smoothing is 1.0; allowed: 0 to 0.99"),
        ("patience", -1, "config.train.patience is -1; allowed: at least 0"),
        ("max_steps", -1, "config.train.max_steps is -1; allowed: at least 0"),
    ],
)
def test_mistakes_name_the_key(key, value, message, small_config):
    small_config.data.task = "regression" if "regression" in message else "single"
    small_config.train[key] = value
    with pytest.raises(UserError, match=message):
        inputs.resolve(small_config, {})


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_run_resumes_exactly_with_all_of_them(small_config, tmp_path, monkeypatch):
    small_config.train.update(accumulate=2, label_smoothing=0.1, max_steps=34)
    small_config.model.dtype = "bfloat16"
    small_config.pruning.method = "spt"
    train.train_and_evaluate(small_config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 32, signal.SIGTERM)
        with pytest.raises(Stopped):
            train.train_and_evaluate(small_config, tmp_path / "stopped")
    workdir.release(tmp_path / "stopped")
    train.train_and_evaluate(small_config, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    assert_same_trees(saved_state(tmp_path / "stopped"), saved_state(tmp_path / "whole"))


# The hub --------------------------------------------------------------------------------------------------------------


def test_a_hub_that_does_not_answer_is_told_at_once(tmp_path):
    """The libraries retried for 42 seconds. Port 9 of this machine refuses, as a hub behind a firewall may not."""
    command = [sys.executable, "launch.py", "--config=configs/spt_base.py", f"--workdir={tmp_path / 'run'}"]
    environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2 and done.stderr.startswith("note: http://127.0.0.1:9 does not answer (")
    assert "cannot load sst2 from config.data.hub_name='nyu-mll/glue'" in done.stderr and "tsv" in done.stderr
    assert len(done.stderr.splitlines()) == 2 and not (tmp_path / "run").exists()

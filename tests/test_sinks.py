"""Where numbers go besides the files: MLflow's file store and W&B's offline mode for real, and a sink that fails."""

import importlib.metadata
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from configs import common
from prune_jax import config as config_lib
from prune_jax import report
from prune_jax.errors import UserError
from prune_jax.report import sinks
from prune_jax.run import train


def resolved(config):
    return config_lib.resolve(config, {})[0]


def with_sinks(config, value):
    with config.report.ignore_type():
        config.report.sinks = value
    return config


def test_choices_and_forms(small_config):
    assert resolved(common.get_config()).report.sinks == ("tensorboard",)
    for given, wanted in [("tensorboard", ("tensorboard",)), ((), ())]:
        assert resolved(with_sinks(small_config, given)).report.sinks == wanted
    for value, says in [(("paper",), "any of tensorboard, wandb, mlflow"), ((1,), "text only")]:
        with pytest.raises(UserError, match=f"config.report.sinks is .*{says}"):
            resolved(with_sinks(small_config, value))


def test_a_package_that_is_missing_is_named_before_the_run(small_config, tmp_path, monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(sinks.importlib.metadata, "version", missing)
    small_config.report.sinks = ("mlflow",)
    with pytest.raises(UserError, match="the package mlflow-skinny is not installed: pip install mlflow-skinny"):
        train.train_and_evaluate(small_config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, workdir, config, purge_step):
            raise ConnectionError("no route to the server")

    class Breaking:
        def __init__(self, workdir, config, purge_step):
            self.taken = 0

        def scalars(self, step, values):
            self.taken += 1
            if self.taken > 1:
                raise RuntimeError("the quota is used up")

        def close(self):
            raise RuntimeError("and closed badly")

    monkeypatch.setattr(sinks, "SINKS", {})
    monkeypatch.setitem(report.metrics.SINKS, "broken", Broken)
    monkeypatch.setitem(report.metrics.SINKS, "breaking", Breaking)
    writer = report.MetricsWriter(tmp_path, sinks=("broken", "breaking"))
    for epoch in (1, 2, 3):
        writer.write({"epoch": epoch, "step": epoch, "train_loss": 0.5})
    assert writer.close() == [
        "broken did not take the numbers: no route to the server",
        "breaking did not take the numbers: the quota is used up",
    ]
    assert writer.close()  # again, as at the end of a run: nothing new
    assert len(report.read_metrics(tmp_path)) == 3


def test_layers_follow_a_resumption(tmp_path):
    def write(epochs, resume_epoch=None):
        writer = report.MetricsWriter(tmp_path, resume_epoch, sinks=())
        for epoch in epochs:
            writer.write({"epoch": epoch, "step": epoch})
            writer.write_layers(epoch, {"a/query": 0.25 * epoch, "b/key": 0.0})
        writer.close()

    assert report.read_layers(tmp_path) == []
    write([1, 2, 3])
    whole = (tmp_path / "layers.csv").read_bytes()
    assert whole == b"epoch,a/query,b/key\n1,0.25,0.0\n2,0.5,0.0\n3,0.75,0.0\n"
    write([2, 3], resume_epoch=1)
    assert (tmp_path / "layers.csv").read_bytes() == whole
    assert report.read_layers(tmp_path)[2] == {"epoch": 3, "a/query": 0.75, "b/key": 0.0}


def test_mlflow_file_store(small_config, tmp_path):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    small_config.report.sinks = ("mlflow",)
    config = resolved(small_config)
    workdir = tmp_path / "results_spt"
    workdir.mkdir()
    info = report.RunInfo(config=config_lib.leaves(config_lib.to_json(config)))
    for resume_epoch, epochs in ((None, (1, 2)), (2, (3,))):  # stopped and resumed: one run of MLflow
        writer = report.MetricsWriter(workdir, resume_epoch, config.report.sinks, info)
        for epoch in epochs:
            writer.write({"epoch": epoch, "step": 10 * epoch, "eval_metric": 0.5 + epoch / 8, "eval_loss": math.nan})
        assert writer.close() == []
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "prune_jax"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "results_spt" and run.info.status == "FINISHED"
    assert run.data.params["pruning.method"] == "spt" and run.data.params["train.epochs"] == "4"
    history = client.get_metric_history(run.info.run_id, "epoch/eval_metric")
    assert [(point.step, point.value) for point in history] == [(10, 0.625), (20, 0.75), (30, 0.875)]
    assert "epoch/eval_loss" not in run.data.metrics


def test_wandb_offline(small_config, tmp_path):
    pytest.importorskip("wandb")
    code = """
import sys
from configs import common
from prune_jax import config
from prune_jax import report
c = config.resolve(common.get_config(), {})[0]
info = report.RunInfo(config=config.leaves(config.to_json(c)))
w = report.MetricsWriter(sys.argv[1], None, ("wandb",), info)
w.write({"epoch": 1, "step": 10, "eval_metric": 0.625})
print("problems", w.close())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=900,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    )  # fmt: skip
    assert "problems []" in done.stdout, done.stdout + done.stderr
    (saved,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    data = Path(saved).read_bytes()
    assert b"epoch/eval_metric" in data and b"0.625" in data and b"pruning.method" in data


def test_a_full_disk_is_no_traceback_at_exit(tmp_path, monkeypatch):
    sink = sinks.TensorBoard(tmp_path, sinks.UNKNOWN, None)
    sink.scalars(1, {"a": 1.0})
    writer = sink._events.file_writer.event_writer

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "flush", full)
    writer.close()  # as tensorboardX does at exit
    monkeypatch.undo()
    sink.close()
    assert writer._closed

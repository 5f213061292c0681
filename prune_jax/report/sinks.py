"""Sends the numbers of a run to TensorBoard, Weights & Biases or MLflow, besides metrics.csv.

A sink is a class that is made from (workdir, run, purge_step) and has the two methods of Sink. A new sink is a new
class and one line of SINKS. All sinks work in the thread of MetricsWriter.
"""

import contextlib
import importlib.metadata
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from prune_jax import files
from prune_jax.errors import UserError


class RunInfo(NamedTuple):
    """What a sink needs to know of a run.

    Attributes:
      project: the project of W&B, the experiment of MLflow.
      mlflow_uri: of the tracking server; empty: $MLFLOW_TRACKING_URI, or mlruns/ beside the workdir.
      config: {"train.epochs": 25, ...}, in JSON's types.
    """

    project: str = "prune_jax"
    mlflow_uri: str = ""
    config: Mapping[str, Any] = MappingProxyType({})


UNKNOWN = RunInfo()


class Sink(Protocol):
    """A place to which a run's numbers are sent."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Takes the finite numbers of a step, by name."""

    def close(self) -> None:
        """Sends what is pending."""


def _saved_id(workdir: Path, name: str, new) -> str:
    """The id of the run at the sink `name`: that of an earlier start, or else new(), which the workdir keeps."""
    path = workdir / f"{name}.json"
    if path.exists():
        return files.read_json(path)["id"]
    identity = new()
    files.write_json(path, {"id": identity})
    return identity


def _without_room(close: Callable[[], None]) -> Callable[[], None]:
    """`close`, silent on a full disk: tensorboardX calls it once more at exit, where nobody can answer an error."""

    def quiet() -> None:
        with contextlib.suppress(OSError):
            close()

    return quiet


class TensorBoard:
    """Writes events into workdir/tensorboard. Events of steps from purge_step on are superseded."""

    packages = ("tensorboardX",)

    def __init__(self, workdir: Path, run: RunInfo, purge_step: int | None):
        del run
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge_step)
        writer = self._events.file_writer.event_writer
        writer.close = _without_room(writer.close)

    def scalars(self, step, values):
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self):
        self._events.close()


class WandB:
    """Sends the numbers to a run of the project. WANDB_MODE=offline keeps them in workdir/wandb."""

    packages = ("wandb",)

    def __init__(self, workdir: Path, run: RunInfo, purge_step: int | None):
        del purge_step
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=workdir.name,
            id=_saved_id(workdir, "wandb", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=str(workdir),
            config=dict(run.config),
        )

    def scalars(self, step, values):
        # W&B drops rows of steps that it has seen. As a value, a step may come twice after a run is resumed.
        self._run.log({**values, "step": step})

    def close(self):
        self._run.finish()


class MLflow:
    """Sends the numbers to a run of the experiment at mlflow_uri, by default the folder mlruns/ beside the workdir."""

    packages = ("mlflow", "mlflow-skinny")

    def __init__(self, workdir: Path, run: RunInfo, purge_step: int | None):
        del purge_step
        uri = run.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or str(workdir.resolve().parent / "mlruns")
        if "://" not in uri or uri.startswith("file:"):  # MLflow 3 reads and writes plain files only where asked to
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = uri if uri.startswith("file:") else Path(uri).resolve().as_uri()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient(tracking_uri=uri)
        name = run.project

        def experiment() -> str:
            known = self._client.get_experiment_by_name(name)
            return known.experiment_id if known else self._client.create_experiment(name)

        def new() -> str:
            try:
                number = experiment()
            except MlflowException:  # another run of a sweep has just created it
                number = experiment()
            created = self._client.create_run(number, run_name=workdir.name).info.run_id
            for key, value in run.config.items():
                self._client.log_param(created, key, value)
            return created

        self._id = _saved_id(workdir, "mlflow", new)

    def scalars(self, step, values):
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self):
        self._client.set_terminated(self._id)


SINKS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def check_installed(names) -> None:
    """Checks that the packages of these sinks are installed.

    Raises:
      UserError: one is not; the message says how to install it.
    """
    for name in names:
        packages = SINKS[name].packages
        for package in packages:
            try:
                importlib.metadata.version(package)  # find_spec would take the folder wandb/ of a run for it
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            raise UserError(
                f"config.report.sinks names {name!r}, and the package {packages[-1]} is not installed: "
                f"pip install {packages[-1]}, or take it out of config.report.sinks"
            )

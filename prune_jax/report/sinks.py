"""Where the numbers of a run go besides metrics.csv: TensorBoard, Weights & Biases, MLflow, behind one interface.

A sink is a class: called with (workdir, config, purge_step) it opens, and then it has the two methods of Sink. A new
one is a new class and one line of SINKS. All of them work in MetricsWriter's thread.
"""

import importlib.metadata
import os
import uuid
from pathlib import Path
from typing import Protocol

from prune_jax import config as config_lib
from prune_jax import workdir as workdir_lib
from prune_jax.errors import UserError


class Sink(Protocol):
    """Somewhere to send numbers to."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Takes finite numbers at a step."""

    def close(self) -> None:
        """Sends what is pending."""


def _saved_id(workdir: Path, name: str, new) -> str:
    """The id under which `name` knows the run: an earlier start's, else new(), kept in the workdir."""
    path = workdir / f"{name}.json"
    if path.exists():
        return workdir_lib.read_json(path)["id"]
    found = new()
    workdir_lib.write_json(path, {"id": found})
    return found


class TensorBoard:
    """Events in workdir/tensorboard; those of later steps than purge_step are superseded."""

    packages = ("tensorboardX",)

    def __init__(self, workdir: Path, config, purge_step: int | None):
        del config
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge_step)

    def scalars(self, step, values):
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self):
        self._events.close()


class WandB:
    """A run of the project report.project; WANDB_MODE=offline keeps it in workdir/wandb."""

    packages = ("wandb",)

    def __init__(self, workdir: Path, config, purge_step: int | None):
        del purge_step
        import wandb

        self._run = wandb.init(
            project=config.report.project,
            name=workdir.name,
            id=_saved_id(workdir, "wandb", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=str(workdir),
            config=config_lib.leaves(config_lib.to_json(config)),
        )

    def scalars(self, step, values):
        # W&B drops rows of steps that it has seen; as a value of its own the step may come twice after a resumption.
        self._run.log({**values, "step": step})

    def close(self):
        self._run.finish()


class MLflow:
    """A run of the experiment report.project at report.mlflow_uri, by default in mlruns/ beside the workdir."""

    packages = ("mlflow", "mlflow-skinny")

    def __init__(self, workdir: Path, config, purge_step: int | None):
        del purge_step
        uri = (
            config.report.mlflow_uri
            or os.environ.get("MLFLOW_TRACKING_URI")
            or str(workdir.resolve().parent / "mlruns")
        )
        if "://" not in uri or uri.startswith("file:"):  # MLflow 3 reads and writes plain files only where asked to
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = uri if uri.startswith("file:") else Path(uri).resolve().as_uri()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient(tracking_uri=uri)
        name = config.report.project

        def experiment() -> str:
            found = self._client.get_experiment_by_name(name)
            return found.experiment_id if found else self._client.create_experiment(name)

        def new() -> str:
            try:
                number = experiment()
            except MlflowException:  # another run of a sweep has just created it
                number = experiment()
            run = self._client.create_run(number, run_name=workdir.name)
            for key, value in config_lib.leaves(config_lib.to_json(config)).items():
                self._client.log_param(run.info.run_id, key, value)
            return run.info.run_id

        self._id = _saved_id(workdir, "mlflow", new)

    def scalars(self, step, values):
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self):
        self._client.set_terminated(self._id)


SINKS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def check_installed(names) -> None:
    """UserError for a sink whose package is not installed."""
    for name in names:
        packages = SINKS[name].packages
        for package in packages:
            try:
                importlib.metadata.version(package)  # not find_spec: the folder wandb/ of an earlier run would be found
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            raise UserError(
                f"config.report.sinks names {name!r}, and the package {packages[-1]} is not installed: "
                f"pip install {packages[-1]}, or take it out of config.report.sinks"
            )

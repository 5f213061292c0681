"""Where runs go: processes of this machine, each with its own cores or GPU, or jobs of a Slurm cluster."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from prune_jax.errors import UserError
from prune_jax.sweep.plan import ROOT


class Handle(Protocol):
    """A run under way."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def stop(self, number: int) -> None:
        """Sends a signal: SIGINT asks for a checkpoint, SIGTERM for haste, SIGKILL for nothing."""


class Launcher(Protocol):
    """Starts runs. capacity: how many at once."""

    capacity: int

    def start(self, commands: Sequence[list[str]], logs: Sequence[Path]) -> list[Handle]:
        """Starts at most `capacity` commands, less what runs already; all they print is appended to their logs."""


def gpus() -> list[str]:
    """The NVIDIA GPUs that a job may use, as CUDA_VISIBLE_DEVICES names them; jax would take them if it were asked."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class _Process:
    def __init__(self, command, log: Path, environ, own_cores):
        def pin():  # in the child, before any library sizes its thread pool by the cores it finds
            os.sched_setaffinity(0, own_cores)

        self.own_cores = own_cores
        with open(log, "ab") as file:
            # A session of its own: Ctrl-C reaches the sweep alone, which passes it on once.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environ,
                start_new_session=True, preexec_fn=pin if own_cores and hasattr(os, "sched_setaffinity") else None,
            )  # fmt: skip

    def poll(self):
        return self._process.poll()

    def stop(self, number):
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)  # and what the run started
            else:
                self._process.send_signal(number)


class Processes:
    """Processes of this machine in `capacity` slots; each owns a share of the cores and, where there are any, a GPU."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._devices = gpus() if capacity > 1 else []
        self._cores = cores()
        self._slots: list[_Process | None] = [None] * capacity

    def _environ(self, slot: int) -> dict[str, str]:
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self._devices:
            environ["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
            sharing = -(-self.capacity // len(self._devices))
            if sharing > 1:  # by default the first process on a GPU takes three quarters of its memory
                environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / sharing:.2f}")
        return environ

    def _share(self, slot: int) -> list[int]:
        """The cores of a slot: equal parts, and with more slots than cores one core each."""
        first, last = slot * len(self._cores) // self.capacity, (slot + 1) * len(self._cores) // self.capacity
        return self._cores[first:last] or [self._cores[slot % len(self._cores)]]

    def start(self, commands, logs):
        started = []
        for command, log in zip(commands, logs, strict=True):
            slot = next(i for i, one in enumerate(self._slots) if one is None or one.poll() is not None)
            own = self._share(slot) if self.capacity > 1 else []
            self._slots[slot] = _Process(command, log, self._environ(slot), own)
            started.append(self._slots[slot])
        return started


class _Work:
    """What submitit runs on a node. Preempted, it is queued again as it is: a run goes on from its checkpoint."""

    def __init__(self, command: list[str], log: str, folder: str):
        self.command, self.log, self.folder = command, log, folder

    def __call__(self) -> int:
        with open(self.log, "ab") as file:
            environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
            done = subprocess.run(
                self.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self.folder, env=environ
            )
        return done.returncode

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class _Submitted:
    def __init__(self, job, log: Path):
        self._job, self._log, self._code = job, log, None

    def poll(self):
        if self._code is None and self._job.done():
            try:
                self._code = int(self._job.result())
            except Exception as error:  # cancelled, out of time, out of memory, a node that died
                with open(self._log, "a", encoding="utf-8") as file:
                    file.write(f"the job {self._job.job_id} ended without a result: {error}\n")
                self._code = 1
        return self._code

    def stop(self, number):
        del number  # scancel sends SIGTERM, which a run answers with a checkpoint, and SIGKILL when KillWait is over
        self._job.cancel(check=False)


class Submitit:
    """One array of Slurm jobs through submitit (its local and debug executors for a try-out on this machine)."""

    def __init__(self, folder: Path, cluster: str, capacity: int, at_once: int | None, parameters: dict):
        """at_once: jobs of the array that may run side by side; None: as many as the cluster lets."""
        try:
            import submitit
        except ImportError:
            raise UserError("--launcher=slurm needs the package submitit: pip install submitit") from None
        self.capacity = capacity
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
            self._executor.update_parameters(name=folder.name, **parameters)
            if cluster == "slurm" and at_once:
                self._executor.update_parameters(slurm_array_parallelism=at_once)
        except Exception as error:  # submitit tells of an unknown parameter, or that there is no sbatch, in many ways
            raise UserError(f"submitit cannot use the launcher {cluster} with {parameters}: {error}") from error

    def start(self, commands, logs):
        here = os.getcwd()
        # A job inherits the environment, and what it unpickles is of this package, wherever the sweep was started.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        work = [_Work(command, str(log.resolve()), here) for command, log in zip(commands, logs, strict=True)]
        with self._executor.batch():
            jobs = [self._executor.submit(one) for one in work]
        return [_Submitted(job, log) for job, log in zip(jobs, logs, strict=True)]

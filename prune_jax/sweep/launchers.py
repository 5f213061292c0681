"""Starts runs: as processes of this machine, each with its own cores or GPU, or as jobs of a Slurm cluster."""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from prune_jax.errors import UserError
from prune_jax.sweep import child

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # opened here: a forked child is to call it, no more
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>: the signal that a process gets when its parent has died


class Handle(Protocol):
    """A run that has been started."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""

    def stop(self, number: int) -> None:
        """Sends a signal: SIGINT and SIGTERM ask for a checkpoint, SIGKILL ends the run at once."""


class Launcher(Protocol):
    """Starts runs, at most `capacity` at a time."""

    capacity: int

    def start(self, commands: Sequence[list[str]], logs: Sequence[Path]) -> list[Handle]:
        """Starts commands, at most `capacity` together with those that run already. Their logs grow by their output."""


def gpus() -> list[str]:
    """The NVIDIA GPUs that a job may use, as CUDA_VISIBLE_DEVICES names them; none where jax is told to use the CPU."""
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
        def prepare():  # in the child, before any library sizes its thread pool by the cores it finds
            if _LIBC:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # what outlives the sweep would hold its workdir
            if own_cores and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, own_cores)

        self.own_cores = own_cores
        with open(log, "ab") as file:
            # A session of its own: Ctrl-C reaches the sweep alone, which passes it on once.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environ,
                start_new_session=True, preexec_fn=prepare,
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
    """Processes of this machine in `capacity` slots. Each has a share of the cores and, where there are any, a GPU."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._devices = gpus() if capacity > 1 else []
        self._cores = cores()
        self._slots: list[_Process | None] = [None] * capacity

    def _environ(self, slot: int) -> dict[str, str]:
        environ = child.environment()
        if self._devices:
            environ["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
            sharing = -(-self.capacity // len(self._devices))
            if sharing > 1:  # by default the first process on a GPU takes three quarters of its memory
                environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / sharing:.2f}")
        return environ

    def _share(self, slot: int) -> list[int]:
        """The cores of a slot: equal parts, or one core each where there are more slots than cores."""
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
    """The job that submitit runs on a node. A preempted job is queued again: a run resumes from its checkpoint."""

    def __init__(self, command: list[str], log: str, folder: str):
        self.command, self.log, self.folder = command, log, folder

    def __call__(self) -> int:
        with open(self.log, "ab") as file:
            done = subprocess.run(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.folder,
                env=child.environment(),
            )
        return done.returncode

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class _Queue:
    """The jobs that a Slurm controller has waiting or running, asked for every few seconds at most.

    submitit asks for their accounting, which many clusters do not keep: then it never learns that a job was killed.
    """

    COMMAND = ("squeue", "--noheader", "--me", "--array", "--format=%i")

    def __init__(self, seconds: float = 5.0):
        self._seconds, self._asked, self._ids = seconds, -math.inf, None

    def last_held(self, job_id: str) -> tuple[bool, float]:
        """(whether the controller has the job, when it was asked); True while it does not answer."""
        if time.monotonic() - self._asked >= self._seconds:
            self._asked = time.monotonic()
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                done = subprocess.run(self.COMMAND, capture_output=True, text=True, check=True, timeout=60)
                self._ids = set(done.stdout.split())
        return self._ids is None or job_id in self._ids, self._asked


class _Submitted:
    def __init__(self, job, log: Path, queue: _Queue | None = None):
        self._job, self._log, self._queue, self._code = job, log, queue, None
        self._missed = math.inf  # when the queue first lacked the job

    def _is_lost(self) -> bool:
        """Whether Slurm has ended the job without a result: it is missing twice, for a file system may be slow."""
        held, asked = self._queue.last_held(self._job.job_id)
        self._missed = math.inf if held else min(self._missed, asked)
        return asked > self._missed

    def _is_done(self) -> bool:
        if self._queue is None:
            return self._job.done()
        folder = self._job.paths.folder
        with contextlib.suppress(OSError):
            folder.chmod(folder.stat().st_mode)  # a network file system looks anew
        return self._job.paths.result_pickle.exists()

    def poll(self):
        if self._code is None and not self._is_done():
            if self._queue is not None and self._is_lost():
                with open(self._log, "a", encoding="utf-8") as file:
                    file.write(f"the job {self._job.job_id} ended without a result: killed, cancelled or out of time\n")
                self._code = 1
        elif self._code is None:
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
        """Opens the cluster.

        Args:
          folder: of the sweep; its name is that of the jobs.
          cluster: slurm, local or debug.
          at_once: how many jobs of the array may run side by side; None leaves it to the cluster.
          parameters: of submitit, such as partition or timeout_min.
        Raises:
          UserError: submitit is not installed, or cannot use the cluster with these parameters.
        """
        try:
            import submitit
        except ImportError:
            raise UserError("--launcher=slurm needs the package submitit: pip install submitit") from None
        self.capacity = capacity
        self._queue = _Queue() if cluster == "slurm" else None
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
            self._executor.update_parameters(name=folder.name, **parameters)
            if cluster == "slurm" and at_once:
                self._executor.update_parameters(slurm_array_parallelism=at_once)
        except Exception as error:  # submitit has many exceptions for unknown parameters and a missing sbatch
            raise UserError(f"submitit cannot use the launcher {cluster} with {parameters}: {error}") from error

    def start(self, commands, logs):
        here = os.getcwd()
        # A job inherits the environment, and must find this package to unpickle its work.
        os.environ.update(child.environment())
        work = [_Work(command, str(log.resolve()), here) for command, log in zip(commands, logs, strict=True)]
        with self._executor.batch():
            jobs = [self._executor.submit(one) for one in work]
        return [_Submitted(job, log, self._queue) for job, log in zip(jobs, logs, strict=True)]

"""Executes the runs of a plan, side by side, until all are done or someone asks to stop."""

import contextlib
import signal
import time
from pathlib import Path

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.config import saved
from prune_jax.errors import UserError
from prune_jax.run import continuing, inputs
from prune_jax.sweep import child
from prune_jax.sweep.launchers import Launcher
from prune_jax.sweep.plan import Run
from prune_jax.sweep.view import Progress, View, duration

_LAST_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


class Job:
    """A run and its outcome. Its state is waiting, running, finished, failed or interrupted."""

    def __init__(self, run: Run, logs: Path):
        self.run, self.log = run, logs / f"{run.name}.log"
        self.state, self.code, self.skipped = "waiting", None, False
        self.handle, self.progress, self.seconds = None, Progress(), 0.0
        self._since, self._read, self._rest = 0.0, 0, b""
        self.again = ""  # why a run that has finished is trained again
        if is_finished(run):
            self.again = why_again(run)
            self.state, self.skipped = ("waiting", False) if self.again else ("finished", True)

    def started(self, handle) -> None:
        self.handle, self.state, self._since = handle, "running", time.monotonic()

    def skip_old_lines(self) -> None:
        """Skips the lines of an earlier try, which stay in the log and are not shown again."""
        self._read = self.log.stat().st_size if self.log.exists() else 0

    def new_lines(self) -> list[str]:
        """The whole lines that the log has gained since the last call."""
        self.seconds = time.monotonic() - self._since
        with contextlib.suppress(FileNotFoundError), open(self.log, "rb") as file:
            file.seek(self._read)
            text = file.read()
            self._read += len(text)
            *lines, self._rest = (self._rest + text).split(b"\n")
            return [line.decode(errors="replace").rstrip() for line in lines]
        return []

    def tail(self) -> list[str]:
        """The last lines of the log."""
        return child.tail(self.log)


def is_finished(run: Run) -> bool:
    """Whether the folder holds this very run, finished.

    A key that is newer than the folder has its default there, and a key that no result depends on may differ.
    """
    if not (run.folder / "summary.json").is_file():
        return False
    try:
        config = saved.read(run.folder / "config.json")
    except UserError:
        return False
    return not _differing(run, config, run.config)


def _differing(run: Run, earlier: dict, config) -> list[str]:
    """The keys that matter in which a saved config differs from a resolved one."""
    differing = saved.differing(earlier, files.plain(config_lib.to_json(config)))
    return [key for key in differing if config_lib.matters(key, run.config.pruning.method)]


def why_again(run: Run) -> str:
    """Why a finished run is no result of its config any more: what it reads is another now. "" where it is one.

    A run whose data cannot be read, or that has kept no fingerprint of them, stays what it is.
    """
    if not continuing.data_of(run.folder):
        return ""
    try:
        task, examples = continuing.read(run.config)
    except UserError:
        return ""
    if why := continuing.why_not_same(run.folder, examples, continuing.networks(run.config)):
        return why
    differing = _differing(run, saved.read(run.folder / "config.json"), inputs.with_found(run.config, task))
    return f"its data have changed: {', '.join(differing)}" if differing else ""


@contextlib.contextmanager
def _signals():
    """Yields a list that receives every SIGINT, SIGTERM and SIGHUP (the terminal is gone)."""
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Stopping:
    """Stops jobs: SIGINT at once, SIGTERM after the grace, SIGKILL soon after. A second request kills at once."""

    def __init__(self, grace: float, view: View):
        self._grace, self._view, self._since, self._sent = grace, view, None, 0

    def __call__(self, requests: int, running: list[Job]) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._view.line(
                f"stopping: {len(running)} jobs save their state; {self._grace:g} s until they are killed, "
                "a second Ctrl-C kills them now"
            )
        waited = now - self._since
        level = 1 + (waited >= self._grace) + (waited >= self._grace + _LAST_GRACE)
        if requests > 1:
            level = 3
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[self._sent : level]:
            if number != signal.SIGKILL or level == 3:
                for job in running:
                    job.handle.stop(number)
        self._sent = max(self._sent, level)


def _total(jobs: list[Job], since: float, already: float) -> str:
    """The state of the sweep as text, such as '3/12 done, 2 running, 1 failed, about 4:30 left'.

    Args:
      since: when the sweep began, by time.monotonic.
      already: the number of jobs that were done then.
    """
    states = [job.state for job in jobs]
    done = sum(1.0 if job.state in ("finished", "failed") else job.progress.fraction for job in jobs)
    text = f"{states.count('finished')}/{len(jobs)} done, {states.count('running')} running"
    if failed := states.count("failed"):
        text += f", {failed} failed"
    if done - already > 0.02:
        text += f", about {duration((time.monotonic() - since) * (len(jobs) - done) / (done - already))} left"
    return text


def execute(runs: list[Run], logs: Path, launcher: Launcher, view: View, grace: float) -> tuple[list[Job], int | None]:
    """Executes the runs that are not finished yet.

    Args:
      logs: the folder for the runs' output, one <name>.log per run.
      grace: seconds between a request to stop and SIGTERM.
    Returns:
      (the jobs, in the order of the runs; the signal that ended the sweep early, None if none did).
    """
    logs.mkdir(parents=True, exist_ok=True)
    jobs = [Job(run, logs) for run in runs]
    for job in jobs:
        if job.skipped:
            view.line(f"[{job.run.name}] is done already")
        if job.again:
            view.line(f"[{job.run.name}] is trained again: {job.again}")
    since, already = time.monotonic(), sum(job.skipped for job in jobs)
    stopping = _Stopping(grace, view)
    with _signals() as received, contextlib.closing(view):
        while True:
            running = [job for job in jobs if job.state == "running"]
            for job in running:
                code = job.handle.poll()  # before the last look into its log
                for line in job.new_lines():
                    if job.progress.read(line):
                        view.log(job.run.name, line)
                if code is not None:
                    _ended(job, code, bool(received), view)
            running = [job for job in running if job.state == "running"]
            waiting = [job for job in jobs if job.state == "waiting"]
            if received and running:
                stopping(len(received), running)
            if not running and (received or not waiting):
                break
            batch = [] if received else waiting[: launcher.capacity - len(running)]
            if batch:
                for job in batch:
                    job.skip_old_lines()
                handles = launcher.start([job.run.command for job in batch], [job.log for job in batch])
                for job, handle in zip(batch, handles, strict=True):
                    job.started(handle)
            bars = [(job.run.name, job.progress.fraction, job.progress.text, job.seconds) for job in running]
            view.draw(bars, _total(jobs, since, already))
            time.sleep(0.1)
    return jobs, received[0] if received else None


def _ended(job: Job, code: int, stopping: bool, view: View) -> None:
    job.code = code
    if code == 0 and is_finished(job.run):
        job.state = "finished"
        view.line(f"[{job.run.name}] done in {duration(job.seconds)}")
        return
    if stopping:
        job.state = "interrupted"
        view.line(f"[{job.run.name}] stopped")
        return
    job.state = "failed"
    reason = child.reason(code) if code else "exit code 0, but no summary.json of this run"
    tail = "".join(f"\n  {line}" for line in job.tail())
    view.line(f"[{job.run.name}] FAILED ({reason}); the end of {job.log}:{tail}")

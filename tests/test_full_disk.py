"""A disk that fills up in the middle of a run: one message, whole checkpoints, and the run goes on once there is room.

A limit on the size of a file stands for the disk: it needs no rights, and the system answers with an error as it does
where no room is left.
"""

import contextlib
import os
import resource
import subprocess
import sys

import pytest
from conftest import ROOT
from test_train import assert_same_trees, numbers, saved_state

from prune_jax import files
from prune_jax.errors import Stopped
from prune_jax.run import checkpoint, train, workdir


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_says_that_there_is_no_room():
    wrapped = RuntimeError("a save failed")
    wrapped.__cause__ = OSError(28, "No space left on device", "x")
    for error in (OSError(122, "Disk quota exceeded"), ValueError("[OS error 28: No space left on device]"), wrapped):
        assert files.lacks_room(error)
    assert not files.lacks_room(PermissionError(13, "Permission denied")) and not files.lacks_room(ValueError("x"))


def test_a_run_on_a_full_disk_keeps_its_checkpoints_and_goes_on(small_config, tmp_path, monkeypatch):
    small_config.report.sinks = ()
    train.train_and_evaluate(small_config, tmp_path / "whole")
    with contextlib.ExitStack() as full, monkeypatch.context() as patch:
        finish = train.Loop.finish_epoch

        def finish_epoch(self):
            if self.progress["epoch"] == 2:  # the third epoch's save is too large for the disk
                self.checkpoints.wait()
                full.enter_context(files_of_at_most(20_000))
            finish(self)

        patch.setattr(train.Loop, "finish_epoch", finish_epoch)
        with pytest.raises(Stopped, match=r"parts is full.*the same command resumes") as stopped:
            train.train_and_evaluate(small_config, tmp_path / "parts")
        assert stopped.value.exit_code == 1
    workdir.release(tmp_path / "parts")
    for kind in ("last", "best"):
        checkpoint.read_network(tmp_path / "parts" / "checkpoints", kind)
    train.train_and_evaluate(small_config, tmp_path / "parts")
    assert "resuming after 2 epochs" in (tmp_path / "parts" / "run.log").read_text()
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    assert_same_trees(saved_state(tmp_path / "whole"), saved_state(tmp_path / "parts"))


LIMITED = """
import resource, runpy, sys
from prune_jax.run import train
at, size = int(sys.argv.pop(1)), int(sys.argv.pop(1))
begin = train.Loop.train_epoch
def train_epoch(self, *args):
    if self.progress["epoch"] == at:
        self.checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return begin(self, *args)
train.Loop.train_epoch = train_epoch
sys.argv[0] = "launch.py"
runpy.run_path("launch.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1500, 6000, 40_000])
def test_the_program_ends_with_one_message_whatever_file_meets_the_end_first(size, tmp_path):
    flags = [
        "--config=configs/quickstart.py", "--config.data.builtin_train_size=300", "--config.model.d_model=16",
        "--config.model.d_ff=32", "--config.model.num_heads=2", "--config.train.epochs=3",
        "--config.pruning.start_epoch=1", f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip

    def run(command):
        own = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
        environment = own | {"PYTHONPATH": str(ROOT), "PRUNE_JAX_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, *command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
        )

    done = run(["-c", LIMITED, "1", str(size)])
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "is full" in done.stderr.splitlines()[-1] and "resumes the run once there is room" in done.stderr
    done = run(["launch.py"])
    assert done.returncode == 0 and "resuming after 1 epochs" in done.stdout, done.stderr

"""A run in a process of its own: the command that starts it, its environment, and the end of its log."""

import contextlib
import os
import signal
import sys
from pathlib import Path

TRAIN = (sys.executable, "-m", "prune_jax", "train")
_HOME = Path(__file__).resolve().parents[2]  # the folder that prune_jax lies in
_TAIL = 12  # lines


def environment() -> dict[str, str]:
    """The environment of a run: this process's own, with unbuffered output and this very prune_jax on the path.

    An installed package is found in any case. A checkout may be on the path of this process alone.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    folders = variables.get("PYTHONPATH", "").split(os.pathsep)
    if (_HOME / "pyproject.toml").is_file() and str(_HOME) not in folders:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_HOME), *folders]))
    return variables


def reason(code: int) -> str:
    """How a process ended, as "exit code 1" or "killed by SIGKILL", of the code that subprocess gives it."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def tail(log: Path) -> list[str]:
    """The last lines of a log; none where there is no log."""
    with contextlib.suppress(FileNotFoundError):
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
    return []

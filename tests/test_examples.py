"""The examples run from an empty folder, with the package alone, and keep what they promise: they assert it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_from_an_empty_folder(example, tmp_path):
    package = tmp_path / "package"  # what an installation holds: neither configs nor tests
    package.mkdir()
    (package / "prune_jax").symlink_to(ROOT / "prune_jax")
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    last = next(line for line in reversed(done.stdout.splitlines()) if "sparsity" in line)
    assert last.startswith("dense ") and " pruned " in last
    assert not list(folder.iterdir())

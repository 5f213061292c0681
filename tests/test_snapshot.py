"""A snapshot holds the sources and the index of the results, nothing else, and comes back as it was."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from prune_jax import snapshot
from prune_jax.errors import UserError

KEPT = [
    ".ci/run", ".gitignore", "README.md", "configs/mine.py", "prune_jax/data/glue.py", "prune_jax/report/page.js",
    "results_spt/config.json", "results_spt/metrics.csv", "results_spt/summary.json",
    "results_sweep/results_spt_rte_seed0/summary.json", "results_sweep/summary.csv",
]  # fmt: skip
LEFT = [
    ".git/HEAD", ".venv/pyvenv.cfg", "env/pyvenv.cfg", "env/lib/x.py", "prune_jax/__pycache__/x.pyc",
    "glue/RTE/train.tsv", "weights.safetensors", "results_spt/checkpoints/best/1/config.json", "results_spt/run.log",
    "results_spt_20260101-000000.zip", "results_spt/tokenizer/config.json", "snapshots/old.zip", ".secret",
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for name in KEPT + LEFT:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} ✓\n")
    (tmp_path / "tree" / ".ci" / "run").chmod(0o755)
    with open(tmp_path / "tree" / "huge.json", "wb") as file:
        file.truncate(6_000_000)
    return tmp_path / "tree"


def listing(folder):
    """{name: (bytes, permissions)} of every file."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_goes_in(root, tmp_path):
    archive = snapshot.save(root, tmp_path / "out", "before the *change*")
    with zipfile.ZipFile(archive) as found:
        assert sorted(found.namelist()) == sorted(["README.md", *(f"tree/{name}" for name in KEPT)])
        readme = found.read("README.md").decode()
    assert "before the *change*" in readme and "11 files" in readme and f"# Snapshot {archive.stem}" in readme
    assert "├── .ci/\n│   └── run\n" in readme and "    └── summary.csv\n" in readme
    assert [path.name for path in (tmp_path / "out").iterdir()] == [archive.name]
    again = snapshot.save(root, tmp_path / "out", "in the same second")
    assert again != archive and archive.exists()


def test_it_restores_to_an_identical_tree(root, tmp_path):
    archive = snapshot.save(root, tmp_path / "out", "m")
    assert snapshot.restore(archive, tmp_path / "back") == len(KEPT)
    back = listing(tmp_path / "back")
    assert back == {name: value for name, value in listing(root).items() if name in KEPT}
    assert os.access(tmp_path / "back" / ".ci" / "run", os.X_OK)
    again = snapshot.save(tmp_path / "back", tmp_path / "out2", "of the copy")
    assert snapshot.restore(again, tmp_path / "twice") == len(KEPT) and listing(tmp_path / "twice") == back


def test_mistakes(root, tmp_path, capsys):
    archive = snapshot.save(root, tmp_path / "out", "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        snapshot.restore(archive, tmp_path / "full")
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot restore"):
        snapshot.restore(damaged, tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("x", "y")
    with pytest.raises(UserError, match="not a sound snapshot"):
        snapshot.restore(tmp_path / "other.zip", tmp_path / "new")
    for outside in ("../stray", f"/{tmp_path}/stray"):
        with zipfile.ZipFile(tmp_path / "leaving.zip", "w") as leaving:
            leaving.writestr("README.md", "# Snapshot")
            leaving.writestr("tree/sound", "x")
            leaving.writestr(f"tree/{outside}", "x")
        with pytest.raises(UserError, match="outside"):
            snapshot.restore(tmp_path / "leaving.zip", tmp_path / "new")
        assert not (tmp_path / "stray").exists()
    assert not (tmp_path / "new").exists()
    assert snapshot.main([]) == 2 and 'needs a message: -m "' in capsys.readouterr().err
    assert snapshot.main(["--restore", str(archive)]) == 2 and "--to DIR" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not a folder"):
        snapshot.save(tmp_path / "gone", tmp_path / "out", "m")


def test_this_program_runs_from_its_own_snapshot(tmp_path):
    command = [sys.executable, "-m", "prune_jax.snapshot", "-m", "ours", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    archive = done.stdout.strip()
    back = tmp_path / "back"
    snapshot.restore(archive, back)
    if shutil.which("git") and (ROOT / ".git").exists():
        tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()
        ours = listing(ROOT)
        assert tracked and {n: listing(back)[n] for n in tracked} == {n: ours[n] for n in tracked}
    help_text = subprocess.run(
        [sys.executable, "launch.py", "--help"], cwd=back, capture_output=True, text=True, timeout=60
    )
    assert help_text.returncode == 0 and "--config" in help_text.stdout

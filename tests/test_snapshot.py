"""A snapshot holds the sources and the index of the results, nothing else, and comes back as it was."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from prune_jax.__main__ import main
from prune_jax.errors import UserError
from prune_jax.tools import snapshot

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
    assert main(["snapshot"]) == 2 and 'needs a message: -m "' in capsys.readouterr().err
    assert main(["snapshot", "--restore", str(archive)]) == 2 and "--to DIR" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not a folder"):
        snapshot.save(tmp_path / "gone", tmp_path / "out", "m")


def forged(path, *entries, readme=True):
    """A zip of (name, content) or (ZipInfo, content) entries, as a snapshot begins."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ([("README.md", "# Snapshot")] if readme else []) + list(entries):
            archive.writestr(name, content)
    return path


def test_no_setuid_bit_comes_back(tmp_path):
    info = zipfile.ZipInfo("tree/tool")
    info.external_attr = 0o106755 << 16
    snapshot.restore(forged(tmp_path / "a.zip", (info, "x")), tmp_path / "new")
    assert (tmp_path / "new" / "tool").stat().st_mode & 0o7777 == 0o755


def altered(path, at, value):
    """The zip with a field of two bytes changed in the local and in the central header of its last entry."""
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
        start = data.rindex(magic) + offset
        data[start : start + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["encrypted", "unknown", "bomb", "twice", "folder", "damaged", "file and folder"])
def test_a_zip_that_no_snapshot_is_leaves_nothing(kind, tmp_path):
    sound, path = ("tree/sound", "x"), tmp_path / "a.zip"
    if kind == "encrypted":
        altered(forged(path, sound, ("tree/secret", "x" * 99)), 6, 1)
    elif kind == "unknown":
        altered(forged(path, sound, ("tree/odd", "x" * 99)), 8, 77)
    elif kind == "bomb":
        forged(path, sound, ("tree/huge", bytes(200_000_000)))
    elif kind == "twice":
        with pytest.warns(UserWarning, match="Duplicate"):
            forged(path, sound, sound)
    elif kind == "folder":
        forged(path, sound, ("tree/a/../../b", "x"))
    elif kind == "damaged":
        data = bytearray(forged(path, sound, ("tree/last", os.urandom(9999))).read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)
    else:
        forged(path, sound, ("tree/a", "x"), ("tree/a/b", "x"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"a\.zip|cannot write .*new: "):
        snapshot.restore(path, tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_this_program_runs_from_its_own_snapshot(tmp_path):
    command = [sys.executable, "-m", "prune_jax", "snapshot", "-m", "ours", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
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

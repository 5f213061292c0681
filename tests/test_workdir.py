"""The run's folder: nothing in it is ever lost, and only one process writes it."""

import errno
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.run import workdir as workdir_lib

CONFIG = {"train": {"epochs": 2, "buckets": (32, 64)}, "pruning": {"method": "spt"}}


@pytest.fixture
def workdir(tmp_path):
    path = tmp_path / "results_spt"
    yield path
    workdir_lib.release(path)


def unfinished_run(workdir, config=CONFIG):
    assert workdir_lib.prepare(workdir, config) is False
    (workdir / "checkpoints" / "last" / "3" / "state").mkdir(parents=True)
    (workdir / "metrics.csv").write_text("epoch\n1\n")


def archives(workdir):
    return sorted(workdir.parent.glob(f"{workdir.name}_*.zip"))


@pytest.mark.parametrize("exists", [False, True])
def test_missing_or_empty_folder_starts_anew(workdir, exists):
    workdir = workdir / "deeper"
    if exists:
        workdir.mkdir(parents=True)
    assert workdir_lib.prepare(workdir, CONFIG) is False
    assert files.read_json(workdir / "config.json") == json.loads(json.dumps(CONFIG))
    assert not archives(workdir)
    workdir_lib.release(workdir)


def test_unfinished_run_of_the_same_config_resumes(workdir):
    unfinished_run(workdir)
    assert workdir_lib.prepare(workdir, CONFIG) is True
    assert (workdir / "metrics.csv").exists() and not archives(workdir)


def test_a_key_that_is_newer_than_the_run_has_its_default(workdir):
    unfinished_run(workdir)
    lines = []
    train = common.get_config().train
    newer = CONFIG | {"train": CONFIG["train"] | {"batch_size": train.batch_size, "seed": train.seed}}
    assert workdir_lib.prepare(workdir, newer, lines.append) is True
    newer["train"]["seed"], newer["train"]["batch_size"] = 1, train.batch_size + 1
    assert workdir_lib.prepare(workdir, newer, lines.append) is False
    (archive,) = archives(workdir)
    (line,) = lines
    assert {"train.seed", "train.batch_size"} <= set(re.findall(r"[a-z_.]+", line))
    assert str(archive) in line and str(workdir) in line


@pytest.mark.parametrize(
    "changes",
    [
        {"report": {"sinks": ["mlflow"], "project": "mine"}},
        {"data": {"cache_dir": "elsewhere"}},
        {"train": {"eval_batch_size": 7, "checkpoint_every": 50}},
        {"sws": {"tau": 0.5}, "movement": {"frequency": 9}},  # the method is spt
    ],
    ids=lambda changes: "+".join(changes),
)
def test_a_key_that_no_result_depends_on_may_change(workdir, changes):
    unfinished_run(workdir)
    new = {room: CONFIG.get(room, {}) | changes.get(room, {}) for room in CONFIG | changes}
    assert workdir_lib.resumes(workdir, new) is True
    assert workdir_lib.prepare(workdir, new) is True
    assert (workdir / "metrics.csv").exists() and not archives(workdir)
    assert files.read_json(workdir / "config.json") == json.loads(json.dumps(new))


@pytest.mark.parametrize(
    "changes",
    [{"spt": {"epsilon": 0.5}}, {"train": {"seed": 1}}, {"pruning": {"method": "sws"}}, {"data": {"dir": "elsewhere"}}],
    ids=lambda changes: "+".join(changes),
)
def test_any_other_key_starts_a_new_run(workdir, changes):
    unfinished_run(workdir)
    new = {room: CONFIG.get(room, {}) | changes.get(room, {}) for room in CONFIG | changes}
    before = sorted(workdir.parent.rglob("*"))
    assert workdir_lib.resumes(workdir, new) is False
    assert sorted(workdir.parent.rglob("*")) == before
    assert workdir_lib.prepare(workdir, new) is False and len(archives(workdir)) == 1


def test_resumes_reads_alone(workdir):
    assert workdir_lib.resumes(workdir, CONFIG) is False and not workdir.exists()
    unfinished_run(workdir)
    assert workdir_lib.resumes(workdir, CONFIG) is True
    (workdir / "summary.json").write_text("{}")
    assert workdir_lib.resumes(workdir, CONFIG) is False and not archives(workdir)
    (workdir / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a run of this program"):
        workdir_lib.resumes(workdir, CONFIG)
    with pytest.raises(UserError, match="is a file"):
        workdir_lib.resumes(workdir / "summary.json", CONFIG)


def test_killed_first_save_is_no_checkpoint(workdir):
    unfinished_run(workdir)
    last = workdir / "checkpoints" / "last"
    (last / "3").rename(last / "3.orbax-checkpoint-tmp")
    assert workdir_lib.prepare(workdir, CONFIG) is False
    assert len(archives(workdir)) == 1


@pytest.mark.parametrize("change", ["config", "finished"])
def test_other_or_finished_run_is_archived_whole(workdir, change):
    unfinished_run(workdir)
    (workdir / "empty folder").mkdir()
    (workdir / "checkpoints" / "last" / "3" / "state" / "data").write_bytes(os.urandom(100_000))
    (workdir / "link").symlink_to("metrics.csv")
    outside = workdir.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (workdir / "outside").symlink_to(outside)
    if change == "finished":
        (workdir / "summary.json").write_text("{}")
    stamp = time.mktime((2024, 2, 3, 4, 5, 6, 0, 0, -1))
    for path in workdir.rglob("*"):
        os.utime(path, (stamp, stamp), follow_symlinks=False)
    content = {p.relative_to(workdir.parent).as_posix(): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    content[f"{workdir.name}/link"] = b"metrics.csv"
    (workdir.parent / f".{workdir.name}.zip.partial").write_bytes(b"of a killed archive")

    new = {**CONFIG, "train": {"epochs": 9}} if change == "config" else CONFIG
    assert workdir_lib.prepare(workdir, new) is False
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert files.read_json(workdir / "config.json")["train"]["epochs"] == new["train"]["epochs"]
    (archive,) = archives(workdir)
    assert archive.name == "results_spt_20240203-040506.zip"
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        assert {name: opened.read(name) for name in content} == content
    assert f"{workdir.name}/empty folder/" in names and f"{workdir.name}/outside" in names
    assert not any(name.startswith(f"{workdir.name}/outside/") for name in names)
    assert (outside / "kept").read_text() == "kept"
    assert not (workdir.parent / f".{workdir.name}.zip.partial").exists()


def test_two_archives_of_one_second_are_both_kept(workdir):
    for _ in range(2):
        unfinished_run(workdir)
        (workdir / "summary.json").write_text("{}")
        for path in workdir.rglob("*"):
            os.utime(path, (1e9, 1e9))
    workdir_lib.prepare(workdir, CONFIG)
    assert len(archives(workdir)) == 2


@pytest.mark.parametrize("failure", ["verify", "fifo"])
def test_a_failed_archive_leaves_the_run_as_it_is(workdir, monkeypatch, failure):
    unfinished_run(workdir)
    (workdir / "summary.json").write_text("{}")
    if failure == "fifo":
        os.mkfifo(workdir / "pipe")
    else:
        monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: "results_spt/metrics.csv")
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match="archive"):
        workdir_lib.prepare(workdir, CONFIG)
    assert sorted(workdir.rglob("*")) == before
    assert not archives(workdir) and not list(workdir.parent.glob("*.partial"))


@pytest.mark.parametrize("config", [None, "not json", '{"architectures": ["BertModel"]}', "[]"])
def test_foreign_folder_is_refused(workdir, config):
    workdir.mkdir()
    (workdir / "thesis.tex").write_text("years of work")
    if config is not None:
        (workdir / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"not a run of this program.*--workdir"):
        workdir_lib.prepare(workdir, CONFIG)
    assert (workdir / "thesis.tex").read_text() == "years of work" and not archives(workdir)


def test_file_and_unusable_parent_are_refused(workdir, monkeypatch):
    workdir.write_text("")
    with pytest.raises(UserError, match="is a file"):
        workdir_lib.prepare(workdir, CONFIG)
    with pytest.raises(UserError, match="cannot use the workdir"):
        workdir_lib.prepare(workdir / "below a file", CONFIG)

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(workdir))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(UserError, match="Permission denied"):
        workdir_lib.prepare(workdir.parent / "other", CONFIG)


def test_a_linked_workdir_stays_linked(workdir, tmp_path):
    disk = tmp_path / "disk" / "run"
    disk.parent.mkdir()
    workdir.symlink_to(disk)
    unfinished_run(workdir)
    (workdir / "summary.json").write_text("{}")
    assert workdir_lib.prepare(workdir, CONFIG) is False
    assert workdir.is_symlink() and len(archives(disk)) == 1


def test_a_second_process_is_refused_until_the_first_ends(workdir):
    code = (
        "import sys; from prune_jax.run import workdir; workdir.prepare(sys.argv[1], {'train': {}}); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(workdir)], cwd=root, **pipes) as child:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match=f"in use by process {child.pid}"):
            workdir_lib.prepare(workdir, CONFIG)
        child.communicate("")
    assert not list(workdir.parent.glob(".*.lock"))
    workdir_lib.prepare(workdir, CONFIG)
    assert workdir_lib.prepare(workdir, CONFIG) is False  # one process may prepare again


def test_json_has_no_nan_and_no_tuples(tmp_path):
    path = tmp_path / "a.json"
    values = {"nan": float("nan"), "inf": [np.inf, -np.inf], "pair": (1, 2), "f": np.float32(0.5), "j": jnp.arange(2)}
    files.write_json(path, {**values, "path": path, 3: True})
    expected = {"nan": None, "inf": [None, None], "pair": [1, 2], "f": 0.5, "j": [0, 1], "path": str(path), "3": True}
    assert files.read_json(path) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    path.write_text("{")
    with pytest.raises(UserError, match="not a JSON file"):
        files.read_json(path)
    with pytest.raises(UserError, match="cannot read"):
        files.read_json(tmp_path / "missing.json")


def test_provenance_names_versions_and_command():
    found = workdir_lib.provenance(device="1 x cpu")
    assert found["versions"]["jax"] and found["device"] == "1 x cpu" and found["command"] == sys.argv
    assert found["commit"] is None or len(found["commit"]) == 40
    json.dumps(found)


def test_a_file_beside_the_source_makes_no_checkout_dirty(tmp_path, monkeypatch):
    def git(*args):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a", *args], check=True)

    package = tmp_path / "prune_jax" / "run"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "workdir.py"):
        path.write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(workdir_lib, "__file__", str(package / "workdir.py"))
    (tmp_path / ".results_spt.lock").write_text("1")
    assert workdir_lib.provenance()["dirty"] is False
    (package / "new.py").write_text("")
    assert workdir_lib.provenance()["dirty"] is True


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(number, tmp_path, monkeypatch, caplog):
    def refuse(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workdir_lib.fcntl, "flock", refuse)
    assert workdir_lib.prepare(tmp_path / "run", CONFIG) is False
    assert "has no locks" in caplog.text and not list(tmp_path.glob(".*.lock"))
    workdir_lib.release(tmp_path / "run")

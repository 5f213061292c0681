"""A changed config that goes on with the run that is there: more epochs, moved data, and what makes another run."""

import shutil

import pytest
from test_data import VOCABULARY
from test_train import numbers

from prune_jax.report import read_metrics
from prune_jax.run import continuing, train, workdir

ROWS = ["good film,yes", "bad film,no", "a good film,yes", "a bad a,no"] * 8


@pytest.fixture
def config(small_config, tmp_path):
    """Three epochs of magnitude pruning at a constant rate on a table of its own."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    (tmp_path / "films.csv").write_text("\n".join(["text,label", *ROWS]) + "\n")
    small_config.data.update(source="csv", train=str(tmp_path / "films.csv"), tokenizer=str(tmp_path / "vocab.txt"))
    small_config.train.epochs, small_config.pruning.method = 3, "magnitude"
    small_config.train.warmup_fraction = 0.0
    return small_config


def ran(config, folder):
    train.train_and_evaluate(config, folder)
    workdir.release(folder)
    return [row["epoch"] for row in read_metrics(folder)]


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_epochs_as_if_it_had_been_told_at_first(config, tmp_path):
    assert ran(config, tmp_path / "run") == [1, 2, 3]
    config.train.epochs = 5
    assert ran(config, tmp_path / "run") == ran(config, tmp_path / "whole") == [1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("*.zip")) and (tmp_path / "run" / "summary.json").is_file()
    assert "resuming after 3 epochs" in (tmp_path / "run" / "run.log").read_text()
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"train.lr_schedule": "linear"}, "its linear rates fall towards the end of 3 epochs"),
        ({"train.warmup_fraction": 0.9}, "the warm-up of 5 epochs is longer than the 3 that it has done"),
        (
            {"pruning.schedule": "linear", "pruning.end_epoch": 9},
            "the targets of the epochs that it has done would be others",
        ),
    ],
)
def test_where_the_schedule_depends_on_the_epochs_the_log_says_why(changes, why, config, tmp_path):
    for key, value in changes.items():
        room, name = key.split(".")
        config[room][name] = value
    ran(config, tmp_path / "run")
    config.train.epochs = 5
    assert ran(config, tmp_path / "run") == [1, 2, 3, 4, 5] and len(list(tmp_path.glob("run_*.zip"))) == 1
    assert f"cannot go on to others: {why}" in (tmp_path / "run" / "run.log").read_text()


def unfinished(folder):
    """The folder as a run leaves it that is stopped after its last epoch."""
    (folder / "summary.json").unlink()


def test_moved_data_is_the_same_data(config, tmp_path):
    ran(config, tmp_path / "run")
    unfinished(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    for name in ("films.csv", "vocab.txt"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    config.data.train = str(tmp_path / "elsewhere" / "films.csv")
    config.data.tokenizer = str(tmp_path / "elsewhere" / "vocab.txt")
    ran(config, tmp_path / "run")
    assert not list(tmp_path.glob("*.zip"))


def test_other_data_in_another_place_is_another_run(config, tmp_path):
    ran(config, tmp_path / "run")
    unfinished(tmp_path / "run")
    (tmp_path / "other.csv").write_text("\n".join(["text,label", *ROWS, "film,yes"]) + "\n")
    config.data.train = str(tmp_path / "other.csv")
    ran(config, tmp_path / "run")
    (archive,) = tmp_path.glob("*.zip")
    assert "its config differs in data.train" in (tmp_path / "run" / "run.log").read_text() and archive.stat().st_size


def test_other_examples_under_the_same_name_are_another_run(tmp_path):
    """An edited file went on in silence from the weights that the old one had made."""
    saved = {"train": {"epochs": 2}, "pruning": {"method": "spt"}}
    try:
        assert not workdir.prepare(tmp_path / "run", saved, data="a")
        (tmp_path / "run" / "checkpoints" / "last" / "3" / "state").mkdir(parents=True)
        assert workdir.resumes(tmp_path / "run", saved, "a") and workdir.resumes(tmp_path / "run", saved)
        said = []
        assert not workdir.prepare(tmp_path / "run", saved, said.append, "b")
        assert "its data have changed" in said[0] and len(list(tmp_path.glob("run_*.zip"))) == 1
    finally:
        workdir.release(tmp_path / "run")


def test_another_network_under_the_same_name_is_another_run(tmp_path, small_config):
    """A run that was stopped went on with another teacher, half of its steps with each."""
    saved = {"train": {"epochs": 2}, "pruning": {"method": "spt"}}
    small_config.distill.teacher, small_config.model.init_from = str(tmp_path / "teacher"), str(tmp_path / "dense")
    save = tmp_path / "teacher" / "checkpoints" / "best" / "2" / "progress"
    save.mkdir(parents=True)
    (tmp_path / "dense").mkdir()

    def now(teacher, dense):
        (save / "metadata").write_text(f'{{"hashes": {{"params/a": {teacher}, "opt_state/a": {dense}}}}}')
        (tmp_path / "dense" / "model.safetensors").write_bytes(bytes([dense]))
        return continuing.networks(small_config)

    try:
        assert not workdir.prepare(tmp_path / "run", saved, data="a", networks=now(1, 1))
        (tmp_path / "run" / "checkpoints" / "last" / "3" / "state").mkdir(parents=True)
        assert workdir.resumes(tmp_path / "run", saved, "a", now(1, 1)) and workdir.resumes(tmp_path / "run", saved)
        assert not workdir.resumes(tmp_path / "run", saved, "a", now(1, 2))
        said = []
        assert not workdir.prepare(tmp_path / "run", saved, said.append, "a", now(2, 1))
        assert "(config.distill.teacher names another network now)" in said[0]
    finally:
        workdir.release(tmp_path / "run")

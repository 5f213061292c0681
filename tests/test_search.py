"""The search: what a trial is worth, and a search of real runs on digits that is stopped and goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prune_jax.errors import Stopped, UserError
from prune_jax.sweep import search

ROOT = Path(__file__).resolve().parents[1]


def test_every_trial_at_the_floor_is_above_every_one_below():
    assert search.value(0.98, 64.0, 0.98) == 64.0
    assert search.value(0.979, 500.0, 0.98) == pytest.approx(-0.001)
    assert search.value(0.5, 2.0, 0.98) < search.value(0.9, 1.5, 0.98) < search.value(0.99, 1.0, 0.98)


def test_the_front_holds_what_no_other_trial_beats():
    pairs = [(0.9, 50), (0.95, 20), (0.95, 30), (0.99, 5), (0.92, 25), (0.9, 50), (0.5, 60)]
    found = search.front([{"metric": metric, "rate": rate} for metric, rate in pairs])
    assert [(trial["metric"], trial["rate"]) for trial in found] == [(0.99, 5), (0.95, 30), (0.9, 50), (0.5, 60)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--range", "sws.tau", "0.1", "0.01"], "--range sws.tau 0.1 0.01"),
        (["--range", "model.size", "1", "2"], "--range model.size 1 2"),
        (["--trials=0"], "--trials is 0"),
        (["config.py"], "unexpected argument 'config.py'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(arguments, message, tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        search.main([str(tmp_path / "out"), "--config=configs/sws_digits.py", *arguments])
    assert not (tmp_path / "out" / "study.journal").exists()


def test_without_optuna_there_is_one_clear_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        search.main([str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def child(tmp_path, monkeypatch, body):
    """Puts a script in the place of the runs of a search."""
    script = tmp_path / "child.py"
    script.write_text(f"import os, signal, sys\nsys.path.insert(0, {str(ROOT)!r})\n{body}\n")
    monkeypatch.setattr(search.child, "TRAIN", (sys.executable, str(script)))


DIVERGED = """
from prune_jax.__main__ import run
from prune_jax.errors import Diverged
def main(argv):
    raise Diverged("the training loss is nan at step 7")
sys.exit(run("__main__", sys.argv[1:], "train"))
"""


def test_a_loss_that_is_not_finite_is_an_outcome(tmp_path, monkeypatch):
    child(tmp_path, monkeypatch, DIVERGED)
    assert search.launch([], tmp_path / "run", tmp_path / "log") is None
    assert "the training loss is nan at step 7" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('a fault of the program')", r"exit code 1.*\n.*RuntimeError: a fault of the program"),
        ("raise OSError(28, 'No space left on device')", r"exit code 1.*\n.*No space left on device"),
        ("print('epoch 3/9', flush=True); os.kill(os.getpid(), signal.SIGKILL)", r"killed by SIGKILL.*\n.*epoch 3/9"),
        ("sys.exit(143)", r"exit code 143"),
    ],
)
def test_a_crash_is_told_with_the_end_of_its_log(body, message, tmp_path, monkeypatch):
    child(tmp_path, monkeypatch, body)
    with pytest.raises(Stopped, match=f"(?s){message}") as stopped:
        search.launch([], tmp_path / "run", tmp_path / "log")
    assert stopped.value.exit_code == 1 and str(tmp_path / "log") in str(stopped.value)


def test_a_mistake_of_a_trial_is_told_in_its_own_words(tmp_path, monkeypatch):
    child(tmp_path, monkeypatch, "print('note  x'); print('train: mine.tsv: line 3', file=sys.stderr); sys.exit(2)")
    with pytest.raises(UserError, match=r"^mine\.tsv: line 3$"):
        search.launch([], tmp_path / "run", tmp_path / "log")


@pytest.mark.slow
def test_a_search_goes_on_where_it_stopped(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    config = [
        f"--config={ROOT / 'configs' / 'sws_digits.py'}",
        "--config.sws.deviation=0.01",  # else so few epochs leave no weight, which is a trial that failed
        *("--config.pretrain.epochs=2", "--config.train.epochs=1", "--config.train.batch_size=256"),
    ]
    arguments = [str(tmp_path / "out"), *config, "--holdout=200", "--floor=0.5"]
    # A wider component at 0 takes every weight of so short a run, which is a trial that failed.
    for key, (low, high) in {**search.SPACE, "sws.deviation": (0.002, 0.004)}.items():
        arguments += ["--range", key, str(low), str(high)]
    search.main([*arguments, "--trials=1"])
    first = json.loads((tmp_path / "out" / "best.json").read_text())
    summary = json.loads((tmp_path / "out" / "trials" / "0" / "summary.json").read_text())
    assert first["best"]["metric"] == summary["final_metric"] and first["num_trials"] == 1
    size = (tmp_path / "out" / "trials" / "0.pjx").stat().st_size
    assert first["best"]["rate"] == 4 * summary["num_params"] / size
    assert set(first["best"]["params"]) == set(search.SPACE)
    assert not any("holdout" in flag for flag in first["flags"])

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search, "launch", lambda flags, workdir, log: (_ for _ in ()).throw(KeyboardInterrupt))
        search.main([*arguments, "--trials=2"])
    search.main([*arguments, "--trials=2"])
    assert json.loads((tmp_path / "out" / "best.json").read_text())["num_trials"] == 2
    assert sorted(path.name for path in (tmp_path / "out" / "trials").iterdir()) == ["0", "0.pjx", "1", "1.pjx"]
    assert not (tmp_path / "out" / "trials" / "1" / "pretrain").exists()
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "out" / "study.journal"))
    trials = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(journal)).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[1].params == trials[2].params

    with pytest.raises(UserError, match="choose another folder"):
        search.main([*arguments, "--floor=0.9"])
    with pytest.raises(
        UserError, match=r"--range of sws.tau is 0.01 to 0.02; the trials in .* have it 0.001 to 0.1: g"
    ):
        search.main([*arguments, "--range", "sws.tau", "0.01", "0.02"])
    (tmp_path / "out" / "trials" / "0" / "data.json").write_text('{"sha256": "of other digits"}')
    with pytest.raises(UserError, match="another search: its data have changed"):
        search.main([*arguments, "--trials=3"])


def test_ranges_may_change_until_a_trial_has_finished(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    started = []

    def cut(flags, workdir, log):
        started.append((workdir.name, flags[-1]))
        raise KeyboardInterrupt

    def start(number, *more):
        search.main([str(tmp_path), "--config=configs/sws_digits.py", "--range", "sws.tau", number, number, *more])

    monkeypatch.setattr(search, "launch", cut)
    for number in ("0.1", "0.1", "0.2"):
        with pytest.raises(KeyboardInterrupt):
            start(number)
    tau = "--config.sws.tau"
    assert started[:2] == [("0", f"{tau}=0.1")] * 2 and started[2][0] != "0" and started[2][1] == f"{tau}=0.2"
    summary = {"num_params": 1, "final_metric": 0.9, "metric_name": "accuracy"}
    monkeypatch.setattr(search, "launch", lambda *args: summary)
    monkeypatch.setattr(search._Search, "compress", lambda *args: 2.0)
    start("0.2", "--trials=1")
    with pytest.raises(UserError, match=r"--range of sws.tau is 0.1 to 0.1; the trials in .* have it 0.2 to 0.2: give"):
        start("0.1")
    with pytest.raises(UserError, match=r"--range of sws.alpha is 1 to 2; the trials in .* have it not searched"):
        start("0.2", "--range", "sws.alpha", "1", "2")


def test_a_wrong_config_key_is_told_as_launch_tells_it(tmp_path):
    pytest.importorskip("optuna")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "prune_jax",
            "search",
            str(tmp_path),
            "--config=configs/sws_digits.py",
            "--config.sws.nu=1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("search: unknown key config.sws.nu; did you mean config.")
    assert done.stderr.count("\n") == 1

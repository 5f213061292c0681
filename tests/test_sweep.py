"""The sweep as its user runs it. Where the behaviour of a child is the point, the child's training is a stand-in."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_data import VOCABULARY

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.run import continuing, inputs
from prune_jax.sweep import launchers, plan, pool, view

SMALL = ["-m", "tiny", "-t", "single", "--set", "data.source=builtin", "-e", "3"]


# Flags and grids -----------------------------------------------------------------------------------------------------


def made(*argv, tmp_path):
    return plan.make([*argv, "--out", str(tmp_path / "out")])[1]


def values(runs, key):
    room, name = key.split(".")
    return [run.config[room][name] for run in runs]


def test_defaults(tmp_path):
    (run,) = made(tmp_path=tmp_path).runs
    config = run.config
    assert (config.train.epochs, config.train.batch_size, config.train.learning_rate) == (25, 96, 2e-5)
    assert (config.model.size, config.data.task, config.data.max_len) == ("base", "sst2", 128)
    window = config.pruning
    assert (window.schedule, window.start_sparsity, window.end_sparsity) == ("linear", 0.0, 0.99)
    assert (window.start_epoch, window.end_epoch, window.method) == (4, 23, "spt")


@pytest.mark.parametrize(
    ("flags", "key", "wanted"),
    [
        (["-e", "3"], "train.epochs", 3),
        (["--batch-size", "8"], "train.batch_size", 8),
        (["-l", "1e-3"], "train.learning_rate", 1e-3),
        (["-s", "0.1"], "pruning.start_sparsity", 0.1),
        (["-f", "0.5"], "pruning.end_sparsity", 0.5),
        (["-ps", "2"], "pruning.start_epoch", 2),
        (["-pe", "7"], "pruning.end_epoch", 7),
        (["-pe", "40"], "pruning.end_epoch", 25),
        (["-ss", "50,70.5"], "pruning.sparsity_steps", (0.5, 0.705)),
        (["-ss", "50,70"], "pruning.schedule", "step"),
        (["-ss"], "pruning.schedule", "step"),
        (["-se"], "spt.explore_per_layer", True),
        (["-se", "4"], "spt.explorations", 4),
        (["-ml", "64"], "data.max_len", 64),
        (["-t", "rte"], "data.task", "rte"),
        (["--set", "spt.center=false"], "spt.center", False),
        (["--set", "data.buckets=(32,128)"], "data.buckets", (32, 128)),
    ],
)
def test_flags(flags, key, wanted, tmp_path):
    assert values(made(*flags, tmp_path=tmp_path).runs, key) == [wanted]


def test_the_cap_of_the_window_is_told(tmp_path):
    assert any("window is cut" in line for line in made("-pe", "40", tmp_path=tmp_path).lines)


def test_a_config_file_keeps_what_no_flag_sets(tmp_path):
    config = ["--config", str(ROOT / "configs" / "quickstart.py")]
    (run,) = made(*config, tmp_path=tmp_path).runs
    assert run.config.pruning.schedule == "step" and run.config.pruning.end_sparsity == 1.0
    (run,) = made(*config, "-f", "0.5", tmp_path=tmp_path).runs
    assert run.config.pruning.schedule == "linear" and run.config.pruning.end_sparsity == 0.5


def test_a_grid_is_every_combination_once(tmp_path):
    grid = ["-p", "baseline,magnitude,spt", "-f", "0.5,0.9", "--set", "spt.epsilon=0.1,0.2", "--seeds", "0,1"]
    runs = made(*SMALL, *grid, tmp_path=tmp_path).runs
    # The end is no matter to baseline, epsilon to spt alone: 2 seeds x (1 + 2 + 4).
    assert len(runs) == 14 and len({run.folder for run in runs}) == 14
    assert len({json.dumps(config_lib.to_json(run.config)) for run in runs}) == 14
    assert values(runs, "train.seed") == [0] * 7 + [1] * 7  # the first seed of every method comes first
    (unset,) = made(*SMALL, "--set", "model.vocab_size=None", "--set", "report.sinks=", tmp_path=tmp_path).runs
    assert unset.config.model.vocab_size is None and unset.config.report.sinks == ()
    assert {"--config.model.vocab_size=None", "--config.report.sinks=()"} <= set(unset.command)
    tuples = made(*SMALL, "--set", "pruning.sparsity_steps=(50,70),(50,90)", tmp_path=tmp_path).runs
    assert values(tuples, "pruning.sparsity_steps") == [(0.5, 0.7), (0.5, 0.9)]


def test_a_run_that_has_found_its_classes_keeps_its_folder(tmp_path):
    """Its config.json has the classes, the plan has not: it was taken for another run, and trained again."""
    (tmp_path / "films.csv").write_text("text,label\ngood,yes\nbad,no\n")
    own = ("-m", "tiny", "--set", "data.source=csv", "--set", f"data.train={tmp_path / 'films.csv'}")
    (run,) = made(*own, tmp_path=tmp_path).runs
    saved = config_lib.to_json(run.config)
    saved["data"]["label_names"], saved["report"]["sinks"] = ["no", "yes"], []
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(json.dumps(saved))
    runs = made(*own, "-l", "1e-3,2e-5", tmp_path=tmp_path).runs
    assert [one.folder == run.folder for one in runs] == [False, True]
    orders = made(*own, "--set", "data.label_names=(yes,no),(no,yes)", tmp_path=tmp_path).runs
    assert [one.folder == run.folder for one in orders] == [False, True]  # another order is another run


def test_a_finished_run_whose_data_have_changed_is_trained_again(tmp_path):
    """It counted as done, though a plain run at its place would have told the difference."""
    films, vocabulary = tmp_path / "films.csv", tmp_path / "vocab.txt"
    films.write_text("text,label\n" + 8 * "good film,yes\nbad film,no\n")
    vocabulary.write_text("\n".join(VOCABULARY))
    own = ("data.source=csv", f"data.train={films}", f"data.tokenizer={vocabulary}", "train.batch_size=4")
    (run,) = made("-m", "tiny", *(part for one in own for part in ("--set", one)), tmp_path=tmp_path).runs
    dataset = inputs.load_data(run.config)
    saved = config_lib.to_json(inputs.with_found(run.config, dataset.task))
    run.folder.mkdir(parents=True)
    for name, content in (("config.json", saved), ("summary.json", {})):
        files.write_json(run.folder / name, content)
    continuing.note_inputs(run.folder, continuing.fingerprint(dataset))
    before = films.read_text()
    for text, why in (
        (before, ""),
        (before.replace("bad", "a"), "hold other examples"),
        (before.replace("yes", "zeal"), "data.label_names"),  # the same ids, of classes with another name
        (None, ""),  # gone, but nothing says that it has changed
    ):
        continuing._read.cache_clear()
        films.write_text(text) if text else films.unlink()
        job = pool.Job(run, tmp_path)
        assert why in job.again and bool(why) == bool(job.again) and job.skipped != bool(why)


def test_a_printed_command_makes_the_same_config(tmp_path):
    runs = made(*SMALL, "-ss", "50,70.5", "-se", "-p", "spt,baseline", tmp_path=tmp_path).runs
    code = (
        "import json, sys; from prune_jax import config as c; from prune_jax.run import launch; "
        "config, workdir = launch.parse(sys.argv[1:]); print(json.dumps([c.to_json(c.resolve(config)[0]), workdir]))"
    )
    for run in runs:
        assert run.command[:4] == [sys.executable, "-m", "prune_jax", "train"]
        command = [sys.executable, "-c", code, *run.command[4:]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [json.loads(json.dumps(config_lib.to_json(run.config))), str(run.folder)]


def test_all_mistakes_at_once(tmp_path):
    (tmp_path / "out").write_text("a file")
    flags = ["-e", "0,x", "-b", "0", "-p", "spt,foo", "-f", "2", "--bogus", "--set", "spt.epsilom=1", "--set", "odd"]
    more = ["--progress=loud", "-max-parallel-jobs", "0", "--launcher=moon", "-ml", "64", "--set", "data.max_len=8"]
    with pytest.raises(UserError) as caught:
        made(*flags, *more, tmp_path=tmp_path)
    text = str(caught.value)
    for says in (
        "config.train.epochs is 'x'; allowed: a whole number", "config.train.epochs is 0; allowed: 1 to",
        "config.train.batch_size is 0; allowed", "config.pruning.method is 'foo'; allowed: baseline",
        "config.pruning.end_sparsity is 2.0; allowed: a fraction", "'--bogus'",
        "unknown key config.spt.epsilom; did you mean config.spt.epsilon?", "--set 'odd'; allowed: KEY=VALUE",
        "--progress is 'loud'", "-max-parallel-jobs is '0'", "--launcher is 'moon'", "is a file",
        "config.data.max_len is given twice",
    ):  # fmt: skip
        assert text.count(says) == 1, (says, text)
    assert text.startswith("13 mistakes, nothing was started:\n") and text.count("\n") == 13


@pytest.mark.parametrize("flags", [["-e"], ["-e", "3", "--epoch", "4"], ["--config", "gone.py"]])
def test_malformed_command_lines(flags, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "prune_jax", "sweep", *flags, "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("sweep: ") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_and_help(tmp_path):
    command = [sys.executable, "-m", "prune_jax", "sweep"]
    done = subprocess.run(
        [*command, *SMALL, "--dry-run", "-p", "baseline,spt", "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert (
        done.returncode == 0
        and done.stdout.count("-m prune_jax train --config=") == 2
        and list(tmp_path.iterdir()) == []
    )
    assert "train.epochs             3" in done.stdout and "sweep     2 runs (2 pruning.method)" in done.stdout
    text = subprocess.run([*command, "-h"], cwd=ROOT, capture_output=True, text=True, timeout=900).stdout
    for flag in (
        "-e", "-b", "-l", "-m", "-p", "-s", "-f", "-ps", "-pe", "-ss", "-se", "-t", "-ml", "-parallel",
        "-max-parallel-jobs", "--progress", "--config", "--set", "--seeds", "--dry-run", "--launcher",
    ):  # fmt: skip
        assert re.search(rf"^  (.*, )?{flag}\b", text, re.MULTILINE), flag


# Cores and GPUs ------------------------------------------------------------------------------------------------------


def test_cores_and_gpus_are_divided(monkeypatch):
    monkeypatch.setattr(launchers, "cores", lambda: [0, 1, 2, 5, 7])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab")
    two = launchers.Processes(2)
    assert [two._share(slot) for slot in range(2)] == [[0, 1], [2, 5, 7]]
    assert [two._environ(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["3", "GPU-ab"]
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in two._environ(0)
    many = launchers.Processes(7)
    shares = [many._share(slot) for slot in range(7)]  # fewer cores than jobs: none goes without, none lies idle
    assert all(shares) and {core for share in shares for core in share} == {0, 1, 2, 5, 7}
    assert many._environ(2)["CUDA_VISIBLE_DEVICES"] == "3"
    assert many._environ(0)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.23"  # up to four on a GPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launchers.gpus() == []
    alone = launchers.Processes(1)._environ(0)
    assert "CUDA_VISIBLE_DEVICES" in alone  # one job at a time: all devices, as given


def test_jax_uses_the_cores_that_it_was_given(tmp_path):
    code = (
        "import os, jax; import jax.numpy as jnp; x = jnp.ones((1500, 1500)); f = jax.jit(lambda x: x @ x);"
        "f(x).block_until_ready(); [f(x).block_until_ready() for _ in range(5)];"
        "print({tuple(os.sched_getaffinity(int(t))) for t in os.listdir('/proc/self/task')})"
    )
    launcher = launchers.Processes(2)
    logs = [tmp_path / "a", tmp_path / "b"]
    handles = launcher.start([[sys.executable, "-c", code]] * 2, logs)
    while any(handle.poll() is None for handle in handles):
        time.sleep(0.05)
    for slot, log in enumerate(logs):  # every thread of the process, XLA's among them
        assert log.read_text().strip().splitlines()[-1] == str({tuple(launcher._share(slot))}), log.read_text()


# What becomes of the children ----------------------------------------------------------------------------------------

CHILD = """
import json, os, runpy, signal, sys, time, types
from pathlib import Path
ROOT = {root!r}
sys.path.insert(0, ROOT)
import prune_jax.run
from prune_jax import config as config_lib
from prune_jax import files, report
from prune_jax.run import workdir as workdir_lib
from prune_jax.errors import Stopped, UserError

def train_and_evaluate(config, workdir):
    config, _ = config_lib.resolve(config)
    what = json.loads(os.environ["FAKE"]).get(str(config.train.seed), "run")
    workdir = Path(workdir)
    if what == "mistake":
        raise UserError("mine.tsv: line 3 has 2 columns")
    resuming = workdir_lib.prepare(workdir, config_lib.to_json(config))
    (workdir / "checkpoints" / "last" / "1").mkdir(parents=True, exist_ok=True)
    (workdir / "tries").open("a").write("resumed " if resuming else "started ")
    (workdir / "pid").write_text(str(os.getpid()))
    print("epoch 1/3  train loss 0.5000  eval loss 0.4  accuracy 0.5  sparsity 0%", flush=True)
    print("epoch 2/3  5/10 steps, loss 0.25, sparsity 0%, 3 steps/s", flush=True)
    if what == "crash":
        raise RuntimeError("a fault of the program")
    if what == "hang":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (workdir / "ready").touch()
        time.sleep(3600)
    if what == "slow" and not resuming:
        asked = []
        signal.signal(signal.SIGINT, lambda *_: asked.append(1))
        (workdir / "ready").touch()
        while not asked:
            time.sleep(0.01)
        raise Stopped("stopped by SIGINT after step 5", 130)
    if what == "pair":  # waits for the other job of a pair: only two at once get through
        other = workdir.parent / ("results_spt_single_seed" + str(1 - config.train.seed))
        (workdir / "ready").touch()
        while not (other / "ready").exists():
            time.sleep(0.01)
    writer = report.MetricsWriter(workdir, sinks=())
    for epoch in (1, 2, 3):
        writer.write(dict(epoch=epoch, step=10 * epoch, train_loss=0.5, eval_loss=0.5, eval_metric=0.5 + epoch / 100,
                          sparsity=0.0, target_sparsity=0.0, seconds=1.0))
    writer.close()
    own = {{"cores": sorted(os.sched_getaffinity(0))}}
    files.write_json(workdir / "summary.json", dict(
        method=config.pruning.method, task="single", model_size="tiny", metric_name="accuracy", sparsity=0.0,
        best_metric=0.53, final_metric=0.53, seconds=3.0, versions={{}}, device="cpu", **own))

prune_jax.run.train = types.ModuleType("prune_jax.run.train")
prune_jax.run.train.train_and_evaluate = train_and_evaluate
sys.argv[0] = "prune-jax"
runpy.run_module("prune_jax", run_name="__main__", alter_sys=True)
"""
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from prune_jax.sweep import child
child.TRAIN = (sys.executable, {child!r}, "train")
from prune_jax.__main__ import run
sys.exit(run("prune_jax.sweep.command", sys.argv[1:], "sweep"))
"""


class Sweep:
    """Starts sweeps whose children are CHILD; `fake` tells them, by seed, how to behave."""

    def __init__(self, tmp_path):
        self.out, self.tmp_path = tmp_path / "out", tmp_path
        (tmp_path / "child.py").write_text(CHILD.format(root=str(ROOT)))
        (tmp_path / "driver.py").write_text(DRIVER.format(root=str(ROOT), child=str(tmp_path / "child.py")))

    def start(self, *flags, fake=None, stdout=subprocess.PIPE):
        command = [sys.executable, str(self.tmp_path / "driver.py"), *SMALL, *flags, "--out", str(self.out)]
        environ = {**os.environ, "FAKE": json.dumps(fake or {}), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, cwd=self.tmp_path, env=environ, stdout=stdout, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *flags, fake=None):
        process = self.start(*flags, fake=fake)
        said, _ = process.communicate(timeout=900)
        return process.returncode, said

    def folder(self, seed):
        return self.out / f"results_spt_single_seed{seed}"

    def wait_for(self, *seeds):
        deadline = time.monotonic() + 600
        while not all((self.folder(seed) / "ready").exists() for seed in seeds):
            assert time.monotonic() < deadline, "the children did not come up"
            time.sleep(0.02)


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(sweep):
    code, said = sweep.run("--seeds", "0,1,2,3", fake={"1": "mistake", "2": "crash"})
    assert code == 1
    assert "[results_spt_single_seed1] FAILED (exit code 2)" in said and "mine.tsv: line 3 has 2 columns" in said
    assert "[results_spt_single_seed2] FAILED (exit code 1)" in said and "RuntimeError: a fault of the program" in said
    assert "[results_spt_single_seed3] done in" in said and "0.5300 ± 0.0000" in said
    assert "steps/s" not in said  # the lines that stand for bars stay in the logs
    assert "epoch 2/3  5/10 steps" in (sweep.out / "logs" / "results_spt_single_seed0.log").read_text()
    states = [line.split(",")[1] for line in (sweep.out / "runs.csv").read_text().splitlines()[1:]]
    assert sorted(states) == ["failed", "failed", "finished", "finished"]
    page = (sweep.out / "report.html").read_text()
    assert "2 finished runs, 2 without a result" in page
    assert (sweep.out / "summary.csv").read_text().count("\n") == 2

    code, said = sweep.run("--seeds", "0,1,2,3")  # mended: the same command does what is left
    assert code == 0 and said.count("is done already") == 2 and said.count("done in") == 2
    tries = {seed: (sweep.folder(seed) / "tries").read_text() for seed in range(4)}
    assert tries == {0: "started ", 1: "started ", 2: "started resumed ", 3: "started "}


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_resumes(sweep):
    flags = ("--seeds", "0,1,2", "-max-parallel-jobs", "2")
    process = sweep.start(*flags, fake={"0": "slow", "1": "slow"})
    sweep.wait_for(0, 1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 130 and said.count("] stopped\n") == 2 and "the same command resumes" in said
    assert not sweep.folder(2).exists() and not list(sweep.out.glob("*.zip"))
    code, said = sweep.run(*flags, fake={"0": "slow", "1": "slow"})
    assert code == 0 and (sweep.folder(0) / "tries").read_text() == "started resumed "
    code, said = sweep.run(*flags, fake={"0": "hang"})
    assert code == 0 and said.count("is done already") == 3


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


@pytest.mark.parametrize("presses", [1, 2])
def test_a_hung_child_is_killed(sweep, monkeypatch, presses):
    process = sweep.start("--seeds", "0", "--grace", "1" if presses == 1 else "600", fake={"0": "hang"})
    sweep.wait_for(0)
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "] stopped" in said
    assert gone(int((sweep.folder(0) / "pid").read_text()))


def test_a_killed_run_is_told_and_resumed(sweep):
    process = sweep.start("--seeds", "0,1", fake={"0": "hang"})
    sweep.wait_for(0)
    os.kill(int((sweep.folder(0) / "pid").read_text()), signal.SIGKILL)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 1 and "FAILED (killed by SIGKILL)" in said and "seed1] done" in said
    code, _ = sweep.run("--seeds", "0,1")
    assert code == 0 and (sweep.folder(0) / "tries").read_text() == "started resumed "


def test_a_killed_sweep_takes_its_runs_along_and_goes_on(sweep):
    process = sweep.start("--seeds", "0,1", "-max-parallel-jobs", "2", fake={"0": "hang", "1": "hang"})
    sweep.wait_for(0, 1)
    process.kill()
    process.communicate(timeout=900)
    children = [int((sweep.folder(seed) / "pid").read_text()) for seed in (0, 1)]
    deadline = time.monotonic() + 600
    while not all(map(gone, children)):
        assert time.monotonic() < deadline, "the children live on"
        time.sleep(0.02)
    code, said = sweep.run("--seeds", "0,1")
    assert code == 0 and "FAILED" not in said
    assert [(sweep.folder(seed) / "tries").read_text() for seed in (0, 1)] == ["started resumed "] * 2


def test_a_second_sweep_on_one_folder_is_refused(sweep):
    process = sweep.start("--seeds", "0", fake={"0": "slow"})
    sweep.wait_for(0)
    code, said = sweep.run("--seeds", "1")
    assert code == 2 and f"is in use by process {process.pid}" in said and "--out" in said
    assert not sweep.folder(1).exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=900)
    assert sweep.run("--seeds", "0,1")[0] == 0


def test_two_jobs_run_at_once_on_their_own_cores(sweep):
    code, said = sweep.run("--seeds", "0,1", "-max-parallel-jobs", "2", fake={"0": "pair", "1": "pair"})
    assert code == 0, said
    used = [json.loads((sweep.folder(seed) / "summary.json").read_text())["cores"] for seed in (0, 1)]
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(used[0]) & set(used[1])


@pytest.mark.slow
def test_a_run_is_known_by_its_config(sweep):
    code, _ = sweep.run("--seeds", "0")
    assert code == 0
    # Another value of a flag gives another name, and the run that is done keeps its own.
    code, said = sweep.run("--seeds", "0", "-f", "0.99,0.5")
    assert code == 0 and "[results_spt_single_seed0] is done already" in said
    assert sorted(path.name for path in sweep.out.glob("results_*")) == [
        "results_spt_single_end_sparsity=0.5_seed0",
        "results_spt_single_seed0",
    ]
    # A folder that holds another run is archived, not overwritten.
    (sweep.folder(0) / "config.json").write_text(
        (sweep.folder(0) / "config.json").read_text().replace('"epochs": 3', '"epochs": 7')
    )
    code, said = sweep.run("--seeds", "0")
    assert code == 0, said
    assert len(list(sweep.out.glob("results_spt_single_seed0_*.zip"))) == 1


@pytest.mark.slow
def test_a_run_that_is_older_than_a_key_is_still_done(sweep):
    code, _ = sweep.run("--seeds", "0,1")
    assert code == 0
    for seed, folder in ((0, sweep.folder(0)), (1, sweep.folder(1).rename(sweep.out / "renamed"))):
        saved = json.loads((folder / "config.json").read_text())
        assert saved["train"]["seed"] == seed and saved["spt"].pop("absolute") is False
        (folder / "config.json").write_text(json.dumps(saved))
    code, said = sweep.run("--seeds", "0,1")
    assert code == 0 and "seed0] is done already" in said and "[renamed] is done already" in said
    assert not list(sweep.out.glob("*.zip")) and not sweep.folder(1).exists()
    code, said = sweep.run("--seeds", "0,1", "--set", "spt.absolute=true")  # the other value is another run
    assert code == 0 and said.count("done in") == 2


def test_a_run_whose_numbers_go_elsewhere_now_is_still_done(sweep):
    code, _ = sweep.run("--seeds", "0")
    assert code == 0
    code, said = sweep.run("--seeds", "0", "--set", "report.sinks=", "--set", "train.eval_batch_size=7")
    assert code == 0 and "seed0] is done already" in said and not list(sweep.out.glob("*.zip"))


def test_bars_on_a_terminal(sweep):
    master, slave = pty.openpty()
    process = sweep.start("--seeds", "0", "--progress=bars", fake={"0": "slow"}, stdout=slave)
    os.close(slave)
    sweep.wait_for(0)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    said = b""
    while True:
        try:
            said += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    process.wait(timeout=900)
    text = said.decode()
    assert "results_spt_single_seed0 ██████████░░░░░░░░░░  50% epoch 2/3, loss 0.25" in text  # 1.5 of 3 epochs
    assert "0/1 done, 1 running, about" in text and "\x1b[2A\x1b[J" in text


def test_lines_of_a_log():
    progress = view.Progress()
    assert not progress.read("data      builtin single") and progress.fraction == 0
    assert progress.read("epoch 1/4  train loss 0.5  eval loss 0.4  accuracy 0.5") and progress.fraction == 0.25
    assert not progress.read("epoch 2/4  5/10 steps, loss 0.5, sparsity 0%") and progress.fraction == 0.375
    assert progress.read("train: a mistake") and progress.read("note      cut")


# Clusters ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_the_same_runs_through_submitit(sweep, cluster):
    pytest.importorskip("submitit")
    flags = ("--seeds", "0,1,2", f"--launcher=submitit-{cluster}", "--slurm", "timeout_min=5")
    code, said = sweep.run(*flags, fake={"1": "mistake"})
    assert code == 1 and said.count("] done in") == 2, said
    assert "[results_spt_single_seed1] FAILED (exit code 2)" in said and "mine.tsv: line 3" in said
    assert (sweep.out / "summary.csv").exists() and (sweep.folder(0) / "tries").read_text() == "started "
    code, said = sweep.run(*flags)
    assert code == 0 and said.count("is done already") == 2


@pytest.mark.slow
def test_ctrl_c_cancels_submitted_jobs(sweep):
    pytest.importorskip("submitit")
    process = sweep.start("--seeds", "0", "--launcher=submitit-local", "--grace", "5", fake={"0": "slow"})
    sweep.wait_for(0)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 130 and "] stopped" in said


def test_no_cluster_is_a_mistake(sweep, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # this machine may have Slurm's commands
    code, said = sweep.run("--launcher=slurm")
    assert code == 2 and "sweep: " in said and "slurm" in said and "Traceback" not in said
    code, said = sweep.run("--launcher=submitit-local", "--slurm", "wheels=4")
    assert code == 2 and "wheels" in said and "Traceback" not in said


# For real ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_sweep_in_parallel(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(
        "from configs import quickstart\ndef get_config():\n  c = quickstart.get_config()\n"
        "  c.model.num_layers, c.model.d_model, c.model.num_heads, c.model.d_ff = 1, 16, 2, 32\n"
        "  c.data.builtin_train_size, c.data.builtin_eval_size = 150, 50\n  return c\n"
    )
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "prune_jax", "sweep", "--config", str(config), "-p", "magnitude,movement", "-e", "2",
         "-ps", "0", "-ss", "50,80", "-parallel", "-max-parallel-jobs", "2", "--out", str(tmp_path / "out")],
        cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(here.iterdir()) == []  # nothing is written but into the runs' own folders
    for method in ("magnitude", "movement"):
        folder = tmp_path / "out" / f"results_{method}_single_seed0"
        rows = (folder / "layers.csv").read_text().splitlines()
        assert len(rows) == 3 and "layer_0/query" in rows[0]
        assert json.loads((folder / "config.json").read_text())["pruning"]["method"] == method
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert "magnitude" in (tmp_path / "out" / "summary.csv").read_text()

"""launch.py as a user runs it: one message and exit code 2 for a mistake, at once, and the config it hands to train."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPT = f"--config={ROOT / 'configs' / 'spt_base.py'}"
TINY = f"--config={ROOT / 'configs' / 'quickstart.py'}"


def launch(*args, cwd, script=ROOT / "launch.py", **environ):
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "BENCHMARK_EPOCHS")}
    command = [sys.executable, str(script), *args]
    return subprocess.run(command, cwd=cwd, env=env | environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            (SPT, "--config.prunning.method=spt"),
            "unknown key config.prunning.method; did you mean config.pruning.method?",
        ),
        ((SPT, "--config.train.epoch", "3"), "unknown key config.train.epoch; did you mean config.train.epochs?"),
        ((SPT, "--config.train.epochs.x=3"), "unknown key config.train.epochs.x; did you mean config.train.epochs?"),
        ((SPT, "--config.train.epochs=abc"), "config.train.epochs is 'abc'; allowed: a whole number"),
        ((SPT, "--config.train.epochs", "2.5"), "config.train.epochs is '2.5'; allowed: a whole number"),
        ((SPT, "--config.train.learning_rate=fast"), "config.train.learning_rate is 'fast'; allowed: a number"),
        ((SPT, "--config.spt.epsilon=much"), "config.spt.epsilon is 'much'; allowed: a number"),
        ((SPT, "--config.spt.center=maybe"), "config.spt.center is 'maybe'; allowed: true or false"),
        (
            (SPT, "--config.model=3"),
            "config.model is '3'; allowed: single keys below it, as in --config.model.size=tiny",
        ),
        ((SPT, "--config.model.size=huge"), "config.model.size is 'huge'; allowed: tiny, small, base, large"),
        ((SPT, "--config.data.task=sst3"), "config.data.task is 'sst3'; allowed: cola, sst2, mrpc"),
        (
            (SPT, "--config.pruning.method=x"),
            "config.pruning.method is 'x'; allowed: baseline, magnitude, movement, spt",
        ),
        (
            (SPT, "--config.pruning.end_sparsity=2"),
            "config.pruning.end_sparsity is 2.0; allowed: a fraction from 0 to 1",
        ),
        ((SPT, "--config.pruning.sparsity_steps=()"), "config.pruning.sparsity_steps is '()'; allowed: at least one"),
        ((SPT, "--config.pruning.sparsity_steps=50,101"), "config.pruning.sparsity_steps is (50, 101); allowed:"),
        ((SPT, "--config.pruning.sparsity_steps=(50,101)"), "config.pruning.sparsity_steps is (50, 101); allowed:"),
        ((SPT, "--config.pruning.sparsity_steps=many"), "config.pruning.sparsity_steps is ('many',); allowed: numbers"),
        (
            (SPT, "--config.data.source=tsv", "--config.data.dir=gone"),
            "config.data.dir is 'gone'; there is no such folder",
        ),
        ((SPT, "--workdirr=x"), "Unknown command line flag 'workdirr'"),
        ((SPT, "stray"), "unexpected argument 'stray'"),
        ((), "--config is missing; for example --config=configs/quickstart.py"),
        (("--config.train.epochs=3",), "--config is missing"),
        (("--config=gone.py",), "cannot load the config file 'gone.py': [Errno 2] No such file or directory"),
        (("--config=",), "cannot load the config file ''"),
    ],
    ids=lambda value: " ".join(value).replace(SPT, "").strip() if isinstance(value, tuple) else "",
)
def test_mistakes(args, message, tmp_path):
    start = time.perf_counter()
    done = launch(*args, cwd=tmp_path)
    seconds = time.perf_counter() - start
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"launch.py: {message}") and done.stderr.count("\n") == 1, done.stderr
    assert seconds < 10  # jax is not loaded; well under one second on an idle machine
    assert list(tmp_path.iterdir()) == []


def test_benchmark_epochs_mistake(tmp_path):
    done = launch(SPT, cwd=tmp_path, BENCHMARK_EPOCHS="two")
    assert done.returncode == 2
    assert done.stderr == "launch.py: BENCHMARK_EPOCHS is 'two'; allowed: a whole number of epochs, 1 or more\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = (", "'(' was never closed"),
        ("x = 1", "get_config"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        (
            "from configs import common\ndef get_config():\n  c = common.get_config()\n  c.model = 3\n  return c",
            "'model'",
        ),
    ],
)
def test_a_broken_config_file_is_named(text, reason, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    done = launch("--config", "mine.py", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("launch.py: cannot load the config file 'mine.py': ") and reason in done.stderr


def test_help(tmp_path):
    done = launch("--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    for text in ("--config=configs/spt_base.py", "--config.key=value", "--workdir", "configs/common.py"):
        assert text in done.stdout


def test_validation_loads_nothing_heavy():
    code = (
        "import sys, launch; from configs import quickstart; from prune_jax.config import resolve; "
        "resolve(quickstart.get_config(), {}); "
        "print([m for m in ('jax', 'flax', 'optax', 'transformers', 'datasets', 'orbax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


STUB = """
import json, runpy, sys, types
sys.path.insert(0, {root!r})
import prune_jax
from prune_jax import config as config_lib
from prune_jax.errors import Stopped, UserError

def train_and_evaluate(config, workdir):
    config, notes = config_lib.resolve(config)
    print(json.dumps([config_lib.to_json(config), notes, str(workdir)]))
    {body}

prune_jax.train = types.ModuleType("prune_jax.train")
prune_jax.train.train_and_evaluate = train_and_evaluate
sys.argv[0] = {root!r} + "/launch.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def with_stub(tmp_path, *args, body="return {}", **environ):
    """launch.py with a train that prints what it was given, then does `body`."""
    script = tmp_path / "stub.py"
    script.write_text(STUB.format(root=str(ROOT), body=body))
    return launch(*args, cwd=tmp_path, script=script, **environ)


def handed(tmp_path, *args, **environ):
    done = with_stub(tmp_path, *args, **environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("first", ["", "import jax\n"])
@pytest.mark.parametrize("variable", ["PRUNE_JAX_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_compiled_steps_are_kept_whatever_has_imported_jax(first, variable, tmp_path):
    code = f"""{first}import launch
from configs import common
launch._keep_what_is_compiled(common.get_config().data)
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""
    folder = tmp_path / "compiled"
    folder.mkdir()
    place = str(tmp_path if variable == "PRUNE_JAX_CACHE" else folder)
    (folder / "killed-cache").write_bytes(b"an entry whose time of use was not written")
    env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION_CACHE")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env | {variable: place}, check=True)
    assert list(folder.glob("jit*-cache"))


def test_overrides_reach_train(tmp_path):
    config, notes, workdir = handed(
        tmp_path, TINY, "--config.model.size=small", "--config.spt.epsilon=0.25", "--config.pruning.end_sparsity=1",
        "--config.pruning.sparsity_steps=(50,70.5)", "--config.model.d_ff", "640", "--config.data.buckets=16,32",
        "--config.spt.center=false", "--config.movement.frequency=3", "--config.pruning.method=movement",
    )  # fmt: skip
    assert notes == [] and workdir == "results_movement"
    assert (config["model"]["d_ff"], config["model"]["d_model"]) == (640, 512)
    assert config["spt"]["epsilon"] == 0.25 and config["spt"]["center"] is False
    assert config["movement"]["frequency"] == 3 and config["data"]["buckets"] == [16, 32]
    assert config["pruning"]["end_sparsity"] == 1.0 and config["pruning"]["sparsity_steps"] == [0.5, 0.705]


def test_workdir_and_notes_reach_train(tmp_path):
    linear = ("--config.pruning.schedule=linear", "--config.pruning.end_epoch=40", "--workdir=mine")
    config, notes, workdir = handed(tmp_path, TINY, *linear, BENCHMARK_EPOCHS="6")
    assert workdir == "mine" and config["train"]["epochs"] == 6 and config["pruning"]["end_epoch"] == 6
    assert len(notes) == 2 and "BENCHMARK_EPOCHS=6" in notes[0] and "config.pruning.end_epoch is 40" in notes[1]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise UserError('mine.tsv: line 3')", 2, "mine.tsv: line 3"),
        ("raise Stopped('stopped at step 7', 143)", 143, "stopped at step 7"),
        ("raise Stopped('the loss is nan at step 7', 1)", 1, "the loss is nan at step 7"),
        ("raise KeyboardInterrupt", 130, "interrupted; what was saved is in order"),
    ],
)
def test_what_ends_a_run_becomes_a_message_and_a_code(body, code, message, tmp_path):
    done = with_stub(tmp_path, TINY, body=body)
    assert (done.returncode, done.stderr) == (code, f"launch.py: {message}\n")

"""launch.py and `prune-jax train` as a user runs them: one message and exit code 2 for a mistake, at once, and the
config that train gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prune_jax.errors import UserError
from prune_jax.run import launch as launch_lib

ROOT = Path(__file__).resolve().parents[1]
SPT = f"--config={ROOT / 'configs' / 'spt_base.py'}"
TINY = f"--config={ROOT / 'configs' / 'quickstart.py'}"


def launch(*args, cwd, script=ROOT / "launch.py", **environ):
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "BENCHMARK_EPOCHS")}
    command = [sys.executable, str(script), *args]
    return subprocess.run(command, cwd=cwd, env=env | environ, capture_output=True, text=True, timeout=900)


def train_command(*args, cwd):
    env = {key: value for key, value in os.environ.items() if key != "BENCHMARK_EPOCHS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "prune_jax", "train", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
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
            "config.pruning.method is 'x'; allowed: baseline, magnitude, movement, sensitivity, platon, spt",
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
        ((SPT, "--config.train.epochs=None"), "config.train.epochs is None; allowed: a value of type int"),
        ((SPT, "--config.data.buckets="), "config.data.buckets is (); allowed: increasing lengths"),
        (
            (SPT, "--config.report.sinks=tensorboard,email"),
            "config.report.sinks is ('tensorboard', 'email'); allowed: any",
        ),
        ((SPT, "--workdir=$NOT_THERE/x"), "--workdir is '$NOT_THERE/x'; the environment variable NOT_THERE is not set"),
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
    done = launch(*args, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"launch.py: {message}") and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_benchmark_epochs_mistake(tmp_path):
    done = launch(SPT, cwd=tmp_path, BENCHMARK_EPOCHS="two")
    assert done.returncode == 2
    assert done.stderr == "launch.py: BENCHMARK_EPOCHS is 'two'; allowed: a whole number of epochs, 1 or more\n"


def test_the_last_value_of_a_key_counts():
    given = ["--config.report.sinks=wandb", "--config.train.epochs=2", "--config.report.sinks=tensorboard,mlflow"]
    config = launch_lib.parse([TINY, *given, "--config.train.epochs=3"]).config
    assert (config.report.sinks, config.train.epochs) == (("tensorboard,mlflow",), 3)


def test_a_config_file_without_a_return(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n  pass\n")
    with pytest.raises(UserError, match=r"cannot load the config file '.*mine\.py': get_config\(\) gives None"):
        launch_lib.parse([f"--config={tmp_path / 'mine.py'}"])
    with pytest.raises(UserError, match="--workdir is ''; allowed: a folder"):
        launch_lib.parse([TINY, "--workdir="])


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


@pytest.mark.parametrize("platform", ["cuda", "tpu", "quantum,cpu"])
def test_a_platform_that_is_not_there_is_one_message(platform, tmp_path):
    done = launch(TINY, cwd=tmp_path, JAX_PLATFORMS=platform)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr.splitlines()[-1] == f"launch.py: JAX_PLATFORMS is {platform!r}; allowed on this machine: cpu"
    assert "Traceback" not in done.stderr


def test_help(tmp_path):
    done = launch("--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    for text in ("--config=configs/spt_base.py", "--config.KEY=VALUE", "--workdir=DIR", "--config.train.epochs=25"):
        assert text in done.stdout


def test_train_is_the_same_command(tmp_path):
    for flags, message in (
        ((SPT, "--config.train.epoch", "3"), "unknown key config.train.epoch; did you mean config.train.epochs?"),
        ((), "--config is missing; for example --config=configs/quickstart.py (--help tells more)"),
        ((SPT, "--config.model.size=huge"), "config.model.size is 'huge'; allowed: tiny, small, base, large"),
    ):
        done = train_command(*flags, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"train: {message}\n")
    assert train_command("--help", cwd=tmp_path).stdout == launch("--help", cwd=tmp_path).stdout


def test_a_config_file_finds_its_package_from_any_folder(tmp_path):
    """An installed command finds neither the script's folder nor the current one on its path, so `parse` sees to it."""
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    for folder in (tmp_path / "mine", tmp_path / "mine" / "inner"):
        (folder / "__init__.py").touch()
    (tmp_path / "mine" / "base.py").write_text(
        "from prune_jax.config import defaults\ndef get_config():\n  c = defaults.get_config()\n"
        "  c.train.epochs = 7\n  return c\n"
    )
    (tmp_path / "mine" / "inner" / "long.py").write_text("from mine.base import get_config")
    code = "import sys; from prune_jax.run import launch; print(launch.parse(sys.argv[1:]).config.train.epochs)"
    for file in ("mine/base.py", "mine/inner/long.py"):
        for flags in ([f"--config={tmp_path / file}"], ["--config", str(tmp_path / file)]):
            command = [sys.executable, "-P", "-c", code, *flags]
            environ = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, timeout=900)
            assert done.stdout == "7\n", done.stderr


def test_validation_loads_nothing_heavy():
    code = (
        "import sys; from configs import quickstart; from prune_jax.config import resolve; "
        "from prune_jax.run import launch; "
        "resolve(quickstart.get_config(), {}); "
        "print([m for m in ('flax', 'optax', 'transformers', 'datasets', 'orbax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


STUB = """
import json, runpy, sys, types
sys.path.insert(0, {root!r})
import prune_jax.run
from prune_jax import config as config_lib
from prune_jax.errors import Stopped, UserError

def train_and_evaluate(config, workdir):
    config, notes = config_lib.resolve(config)
    print(json.dumps([config_lib.to_json(config), notes, str(workdir)]))
    {body}

prune_jax.run.train = types.ModuleType("prune_jax.run.train")
prune_jax.run.train.train_and_evaluate = train_and_evaluate
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
    code = f"""{first}from prune_jax.run import launch
from configs import common
launch._keep_what_is_compiled(common.get_config().data.cache_dir)
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


def test_a_key_is_unset_and_a_list_emptied(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import quickstart\n\ndef get_config():\n  c = quickstart.get_config()\n"
        "  c.model.vocab_size, c.model.d_ff, c.spt.epsilon, c.data.buckets = 7, 12, 0.5, (32, 64)\n"
        "  c.model.activation = 'relu'\n  return c\n"
    )
    unset = [f"--config.{key}=None" for key in ("model.vocab_size", "model.d_ff", "spt.epsilon", "data.buckets")]
    config, _, _ = handed(
        tmp_path, "--config=mine.py", *unset, "--config.model.activation", "None", "--config.report.sinks="
    )
    model = config["model"]
    assert (model["vocab_size"], model["d_ff"], model["activation"]) == (None, 512, "gelu")
    assert (config["spt"]["epsilon"], config["data"]["buckets"], config["report"]["sinks"]) == (0.01, None, [])


@pytest.mark.parametrize(
    "text", ["tensorboard,mlflow", "tensorboard, mlflow", "('tensorboard','mlflow')", '["tensorboard", "mlflow"]']
)
def test_a_list_of_texts(text, tmp_path):
    config, _, _ = handed(tmp_path, TINY, f"--config.report.sinks={text}")
    assert config["report"]["sinks"] == ["tensorboard", "mlflow"]


def test_paths_on_the_command_line(tmp_path):
    (tmp_path / "glue").mkdir()
    paths = ("--config.data.source=tsv", "--config.data.dir=~/glue", "--workdir=$PLACE/run")
    config, _, workdir = handed(tmp_path, TINY, *paths, "--config.data.task=sst2", HOME=str(tmp_path), PLACE="here")
    assert config["data"]["dir"] == str(tmp_path / "glue") and workdir == "here/run"


def test_workdir_and_notes_reach_train(tmp_path):
    linear = (
        "--config.pruning.schedule=linear",
        "--config.pruning.end_epoch=40",
        "--config.pruning.start_epoch=1",
        "--workdir=mine",
    )
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

"""Exported programs in runtimes other than jax: the run's own logits there, too."""

import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import test_language
from conftest import ROOT
from test_export import make_run
from test_stablehlo import batch_of

from prune_jax import config as config_lib
from prune_jax import files, models
from prune_jax.__main__ import main
from prune_jax.data.glue import IMAGE_TASKS
from prune_jax.run import checkpoint, train
from prune_jax.run import folder as folders
from prune_jax.run.commands import export

ROWS, LENGTH = 3, 8


def bert_run(folder):
    from configs import common

    config = common.get_config()
    config.model.update({"size": "tiny", "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32})
    config.data.update({"source": "builtin", "task": "single", "max_len": LENGTH})
    closed = [(0, "head", (1,)), (0, "ffn", range(20)), (None, "pooler", range(9))]
    return *make_run(folder, config, closed), batch_of(ROWS, LENGTH)


def lenet_run(folder):
    config = config_lib.default()
    config.model.name, config.data.task, config.data.source = "lenet5_caffe", "digits", "builtin"
    config, _ = config_lib.resolve(config, {})
    model = models.create(config, IMAGE_TASKS["digits"], None)
    rng = np.random.default_rng(0)
    variables = jax.jit(model.init)(jax.random.key(0), *model.example_inputs())
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), variables["params"])
    gates = jax.tree.map(lambda x: rng.random(x.shape) < 0.5, variables["gates"])
    folder.mkdir()
    files.write_json(folder / "config.json", config_lib.to_json(config))
    saves = checkpoint.Checkpoints(folder / "checkpoints")
    saves.save_best(1, {"params": params, "gates": gates}, {})
    saves.close()
    return model, params, gates, (rng.random((ROWS, 8, 8, 1), np.float32),)


def decoder_run(folder):
    (folder.parent / "all.txt").write_text("the cat saw a dog and the dog ran. " * 60)
    config = test_language.make(folder.parent)
    config.data.max_len, config.data.stride, config.train.epochs = LENGTH, LENGTH, 1
    train.train_and_evaluate(config, folder)
    network = folders.load(folder, "best")
    return export.model_of(network)[0], network.params, network.gates, batch_of(ROWS, LENGTH)[:1]


RUNS = {"bert": bert_run, "lenet": lenet_run, "decoder": decoder_run}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(name) -> (folder, inputs, logits) of a network with closed units."""

    @functools.cache
    def made(name):
        folder = tmp_path_factory.mktemp(name) / "run"
        model, params, gates, inputs = RUNS[name](folder)
        return folder, inputs, np.asarray(jax.jit(model.apply)({"params": params, "gates": gates}, *inputs))

    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_iree_compiles_and_runs_a_static_program(name, run, tmp_path):
    compiler = pytest.importorskip("iree.compiler")
    runtime = pytest.importorskip("iree.runtime")
    folder, inputs, logits = run(name)
    command = ["export", str(folder), str(tmp_path / "out"), "--format=stablehlo", f"--batch={ROWS}", "--platform=cpu"]
    assert main(command) == 0
    (path,) = (tmp_path / "out").glob("model*.stablehlo")
    program = jax.export.deserialize(bytearray(path.read_bytes())).mlir_module_serialized
    made = compiler.compile_str(
        program, target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=["--iree-llvmcpu-target-cpu=host"]
    )
    module = runtime.load_vm_flatbuffer(made, driver="local-task")
    np.testing.assert_allclose(np.asarray(module.main(*inputs)), logits, atol=1e-5 * np.abs(logits).max(), rtol=0)


_EXPORTS = """
import sys
from prune_jax.__main__ import main
for folder, out, *flags in [line.split() for line in sys.argv[1:]]:
    assert main(["export", folder, out, "--format=onnx", *flags]) == 0
"""


@pytest.mark.slow
def test_onnx_runtime_computes_a_runs_logits(run, tmp_path):
    """Exported by a process of its own: the converter takes the place of some of jax's functions while it works."""
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    cases = {"bert": "--shrink --length 8", "lenet": "--batch=3", "decoder": "--shrink"}
    lines = [f"{run(name)[0]} {tmp_path / name} {flags}" for name, flags in cases.items()]
    command = [sys.executable, "-c", _EXPORTS, *lines]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stdout.count("ms in ONNX Runtime") == len(cases), done.stderr
    for name in cases:
        _, inputs, logits = run(name)
        (path,) = (tmp_path / name).glob("model*.onnx")
        session = runtime.InferenceSession(path)
        named = dict(zip([one.name for one in session.get_inputs()], inputs, strict=True))
        np.testing.assert_allclose(session.run(None, named)[0], logits, atol=1e-5 * np.abs(logits).max(), rtol=0)
        info = json.loads((tmp_path / name / "model.json").read_text())
        assert info["bytes"] == path.stat().st_size and info["max_length"] == (None if name == "lenet" else LENGTH)
        assert info["largest_logit_difference"] < 1e-5 * info["largest_logit"]
    weights = onnx.load(tmp_path / "bert" / "model_8.onnx").graph.initializer
    assert any(12 in one.dims for one in weights)  # 20 of the 32 columns of layer 0 are cut out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--int8"], "--int8 needs --format=stablehlo"),
        (["--platform=cpu"], "--platform needs --format=stablehlo"),
        ([], "an ONNX export needs the package jax2onnx: pip install 'prune-jax[onnx]'"),
    ],
)
def test_what_an_onnx_export_lacks_is_told(flags, says, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert main(["export", str(run("lenet")[0]), str(tmp_path / "out"), "--format=onnx", *flags]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()

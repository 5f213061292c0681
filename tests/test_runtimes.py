"""Exported programs in runtimes other than jax: the run's own logits there, too."""

import jax
import numpy as np
import pytest
from test_export import make_run
from test_stablehlo import batch_of

from prune_jax import config as config_lib
from prune_jax import files, models
from prune_jax.__main__ import main
from prune_jax.data.glue import IMAGE_TASKS
from prune_jax.run import checkpoint

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


RUNS = {"bert": bert_run, "lenet": lenet_run}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """(folder, inputs, logits) of a network with closed units."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    model, params, gates, inputs = RUNS[request.param](folder)
    logits = jax.jit(lambda *batch: model.apply({"params": params, "gates": gates}, *batch))(*inputs)
    return folder, inputs, np.asarray(logits)


@pytest.mark.slow
def test_iree_compiles_and_runs_a_static_program(run, tmp_path):
    compiler = pytest.importorskip("iree.compiler")
    runtime = pytest.importorskip("iree.runtime")
    folder, inputs, logits = run
    command = ["export", str(folder), str(tmp_path / "out"), "--format=stablehlo", f"--batch={ROWS}", "--platform=cpu"]
    assert main(command) == 0
    (path,) = (tmp_path / "out").glob("model*.stablehlo")
    program = jax.export.deserialize(bytearray(path.read_bytes())).mlir_module_serialized
    made = compiler.compile_str(
        program, target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=["--iree-llvmcpu-target-cpu=host"]
    )
    module = runtime.load_vm_flatbuffer(made, driver="local-task")
    np.testing.assert_allclose(np.asarray(module.main(*inputs)), logits, atol=1e-5 * np.abs(logits).max(), rtol=0)

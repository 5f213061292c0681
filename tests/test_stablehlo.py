"""The deployed file: any batch, any length, the run's own logits; int8 by hand; what is no such file."""

import json

import jax
import numpy as np
import pytest
from test_export import make_run

from prune_jax.__main__ import main
from prune_jax.errors import UserError
from prune_jax.export import load, stablehlo
from prune_jax.models import Bert, BertConfig, units
from prune_jax.models.decoder import Decoder, DecoderConfig
from prune_jax.models.lenet import GEOMETRIES, LeNet
from prune_jax.pruning import trees
from prune_jax.run import state
from prune_jax.run.commands import export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, model, params, gates) of a run that has lost a head and columns of layer 0, and units of the pooler."""
    from configs import common

    config = common.get_config()
    config.model.update({"size": "tiny", "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32})
    config.model.max_positions = 64
    config.data.update({"source": "builtin", "task": "single", "max_len": 32})
    folder = tmp_path_factory.mktemp("stablehlo") / "run"
    return folder, *make_run(folder, config, [(0, "head", (1,)), (0, "ffn", range(20)), (None, "pooler", range(9))])


def batch_of(rows, length, vocab=20):
    rng = np.random.default_rng(rows)
    mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int32)
    return rng.integers(0, vocab, (rows, length), np.int32), np.zeros((rows, length), np.int32), mask


def test_a_reloaded_file_computes_the_runs_logits_at_any_batch_and_length(run, tmp_path, capsys):
    folder, model, params, gates = run
    assert main(["export", str(folder), str(tmp_path / "out"), "--format=stablehlo"]) == 0
    deployed = load(tmp_path / "out")
    for rows, length in ((1, 5), (3, 64)):
        inputs = batch_of(rows, length)
        expected = model.apply({"params": params, "gates": gates}, *inputs)
        np.testing.assert_allclose(deployed.call(*inputs), expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match="length"):
        deployed.call(*batch_of(1, 65))
    info = json.loads((tmp_path / "out" / "model.json").read_text())
    assert [i["name"] for i in info["inputs"]] == ["input_ids", "token_type_ids", "attention_mask"]
    assert info["labels"] == ["negative", "positive"] and info["platforms"] == ["cpu", "cuda", "tpu"]
    assert info["bytes"] == (tmp_path / "out" / "model.stablehlo").stat().st_size
    assert info["largest_logit_difference"] < 1e-5 * info["largest_logit"]
    assert (tmp_path / "out" / "tokenizer.json").is_file() and "float32" in capsys.readouterr().out


@pytest.mark.slow
def test_listed_lengths_each_have_a_file_and_the_shortest_that_holds_a_batch_takes_it(run, tmp_path, capsys):
    folder, model, params, gates = run
    out = tmp_path / "out"
    command = [str(folder), str(out), "--format=stablehlo", "--length"]
    assert main(["export", *command, "24", "8", "24"]) == 0
    assert {path.name for path in out.glob("model*")} == {"model_8.stablehlo", "model_24.stablehlo", "model.json"}
    deployed = load(out)
    assert (deployed.info["lengths"], deployed.info["max_length"]) == ([8, 24], 24)
    for rows, length in ((1, 5), (3, 8), (2, 9), (5, 24)):
        inputs = batch_of(rows, length)
        expected = model.apply({"params": params, "gates": gates}, *inputs)
        np.testing.assert_allclose(deployed.call(*inputs), expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match="the length is 25; allowed: 1 to 24"):
        deployed.call(*batch_of(1, 25))
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 24
    (out / "model_24.stablehlo").write_bytes((out / "model_8.stablehlo").read_bytes())
    with pytest.raises(ValueError):  # it was the file of 24 that took it
        load(out).call(*batch_of(2, 9))
    assert main(["export", *command, "65", "--force"]) == 2
    assert "--length is 65; allowed: 1 to 64" in capsys.readouterr().err
    assert main(["export", str(folder), str(tmp_path / "other"), "--length", "8"]) == 2
    assert "--length needs --format=stablehlo" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert main(["export", *command, "8", "--force"]) == 0 and not (out / "model_24.stablehlo").exists()


def test_a_given_batch_and_platform_make_a_static_program(run, tmp_path, capsys):
    """Other compilers, IREE among them, take neither open shapes nor an argument for the platform."""
    folder, model, params, gates = run
    command = ["export", str(folder), str(tmp_path / "out"), "--batch=3", "--platform=cpu"]
    assert main(command) == 2 and "--batch needs --format=stablehlo or onnx" in capsys.readouterr().err
    assert main([*command, "--format=stablehlo", "--length=8"]) == 0
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "model_8.stablehlo").read_bytes())).mlir_module()
    main_takes = program.split("@main(")[1].split("->")[0]
    assert main_takes.count("tensor<3x8xi32>") == main_takes.count("tensor<") == 3
    assert "tensor<?" not in program and "dynamic_" not in program
    info = load(tmp_path / "out").info
    assert info["platforms"] == ["cpu"] and info["inputs"][0]["shape"] == [3, "length"]
    assert info["output"]["shape"] == [3, 2]
    inputs = batch_of(3, 8)
    expected = model.apply({"params": params, "gates": gates}, *inputs)
    np.testing.assert_allclose(load(tmp_path / "out").call(*inputs), expected, atol=1e-5 * np.abs(expected).max())
    assert main([*command, "--format=stablehlo", "--force"]) == 0
    assert (tmp_path / "out" / "model_32.stablehlo").is_file()  # the run's data.max_len


def test_int8_is_smaller_and_near_and_a_shrunk_file_smaller_still(run, tmp_path):
    folder = run[0]
    found = {
        name: export.export(folder, tmp_path / name, form="stablehlo", **settings)
        for name, settings in {"float": {}, "int8": {"int8": True}, "both": {"int8": True, "shrink": True}}.items()
    }
    assert found["both"]["bytes"] < found["int8"]["bytes"] < found["float"]["bytes"]
    for name in ("int8", "both"):
        assert 0 < found[name]["largest_logit_difference"] < 0.05 * found[name]["largest_logit"]
    inputs = batch_of(4, 9)
    both, int8 = (stablehlo.load(tmp_path / name).call(*inputs) for name in ("both", "int8"))
    np.testing.assert_allclose(both, int8, atol=0.02 * np.abs(int8).max())


def test_quantisation_by_hand():
    kernel = np.float32([[127, 0], [-63.6, 0], [1, 0]])
    found = stablehlo.quantise({"kernel": kernel, "bias": kernel[0]})
    np.testing.assert_array_equal(found["kernel"].values, [[127, 0], [-64, 0], [1, 0]])
    np.testing.assert_array_equal(found["kernel"].scale, [[1, 1]])
    assert found["kernel"].values.dtype == np.int8 and found["bias"] is not None
    table = stablehlo.quantise({"embedding": kernel})["embedding"]
    np.testing.assert_allclose(table.scale, np.float32([[127], [63.6], [1]]) / 127)
    restored = stablehlo._restored({"kernel": found["kernel"]})["kernel"]
    assert np.abs(np.asarray(restored) - kernel).max() <= 0.5


def test_images_are_deployed_too(small_config, tmp_path):
    from prune_jax.run import train

    small_config.model.name, small_config.data.task = "lenet5_caffe", "digits"
    small_config.pruning.method, small_config.train.epochs = "baseline", 1
    small_config.train.batch_size = 512
    train.train_and_evaluate(small_config, tmp_path / "run")
    info = export.export(tmp_path / "run", tmp_path / "out", form="stablehlo", int8=True)
    assert info["inputs"] == [{"name": "image", "shape": ["batch", 8, 8, 1], "dtype": "float32"}]
    assert info["labels"] == [str(i) for i in range(10)]
    assert load(tmp_path / "out").call(np.zeros((3, 8, 8, 1), np.float32)).shape == (3, 10)


def closed_half(model, structure):
    """(params, gates) of a random network: the first half of each group is closed, of layers the second."""
    rng = np.random.default_rng(0)
    params = model.init(jax.random.key(0), *model.example_inputs())["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), params)
    gates = {
        name: np.ones(leaf.shape, bool) for name, leaf in trees.by_name(units.gate_shapes(model, structure)).items()
    }
    for group in units.chosen(model, structure):
        for member in group.members:
            dead = member.units < group.size // 2
            if group.kind == "layer":
                dead = np.full(dead.shape, group.name == "layer_1.layer")
            np.moveaxis(gates[member.name], member.axis, 0)[dead] = False
    return params, trees.nested(gates, "/")


NETWORKS = {
    "bert": (Bert(BertConfig(20, 3, 16, 2, 32, max_positions=64, closable=True)), "head+ffn+pooler+hidden+layer"),
    "decoder": (Decoder(DecoderConfig(20, 2, 16, 4, 2, 4, 24)), "head+ffn+hidden"),
    "lenet": (LeNet(GEOMETRIES["lenet5_caffe"], (28, 28, 1), 10), "channels+columns"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_the_graph_cuts_is_cut(name, tmp_path):
    model, structure = NETWORKS[name]
    params, gates = closed_half(model, structure)
    sizes = {}
    for shrink in (False, True):
        (tmp_path / str(shrink)).mkdir()
        longest, folder = None if name == "lenet" else 64, tmp_path / str(shrink)
        info = stablehlo.write(folder, model, params, gates, "t", longest, shrink=shrink, platforms=("cpu",))
        sizes[shrink] = info["bytes"]
        for rows in (1, 3):
            inputs = batch_of(rows, 7)
            if name == "decoder":
                inputs = inputs[:1]
            if name == "lenet":
                inputs = (np.random.default_rng(rows).random((rows, 28, 28, 1), np.float32),)
            wanted = np.asarray(state.apply(model, params, gates, dict(zip(model.inputs, inputs, strict=True))))
            found = np.asarray(load(tmp_path / str(shrink)).call(*inputs))
            np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
    assert sizes[True] < {"bert": 0.6, "decoder": 0.8, "lenet": 0.3}[name] * sizes[False]


def test_what_is_no_export_is_told(run, tmp_path, capsys):
    assert main(["export", str(run[0]), str(tmp_path / "out"), "--int8"]) == 2
    assert "--int8 needs --format=stablehlo" in capsys.readouterr().err
    for text, says in (
        ("{}", "not that of a StableHLO"),
        ('{"format": "prune_jax.export.stablehlo", "version": 9}', "version 9"),
    ):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(UserError, match=says):
            load(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"format": "prune_jax.export.stablehlo", "version": 1}))
    with pytest.raises(UserError, match=r"cannot read .*model\.stablehlo"):
        load(tmp_path)
    (tmp_path / "model.stablehlo").write_bytes(b"rubbish" * 20)
    with pytest.raises(UserError, match="cannot be read by jax"):
        load(tmp_path)

"""An artifact gives back the network bit for bit, and a damaged or forged one a message, in bounded time and memory."""

import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_jax import config as config_lib
from prune_jax import models
from prune_jax.__main__ import main as commands
from prune_jax.compress import artifact, codec, quantise
from prune_jax.errors import UserError
from prune_jax.pruning.merge import merge
from prune_jax.run import artifact as run_artifact
from prune_jax.run import folder as runs
from prune_jax.run import initial, inputs
from prune_jax.run.commands import compress, decompress, evaluate
from prune_jax.run.evaluate import network as evaluated

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {"model": {"size": "tiny"}, "data": {"buckets": [16, 32], "dir": ""}}


def make_network(seed=0, entries=15, density=0.1):
    """Dense, convolutional, empty, scalar and all-zero leaves."""
    rng = np.random.default_rng(seed)
    book = rng.normal(size=entries).astype(np.float32)

    def kernel(*shape):
        return book[rng.integers(0, entries, shape)], rng.random(shape) < density

    layers = {name: kernel(*shape) for name, shape in (("conv", (5, 5, 3, 8)), ("dense", (40, 30)), ("empty", (0, 4)))}
    params = {name: {"kernel": weights} for name, (weights, _) in layers.items()}
    params["dense"]["bias"] = rng.normal(size=30).astype(np.float32)
    params["extra"] = {"scale": np.float32(1.5), "dead": np.zeros((9, 9), np.float32), "nested": {"z": {"a": book}}}
    return params, {name: {"kernel": gate} for name, (_, gate) in layers.items()}


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def written(tmp_path, content, name="net.pjx"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def sealed(body, version=artifact.VERSION):
    """A file of this body, its checksum right."""
    return artifact.MAGIC + bytes([version]) + zlib.crc32(body).to_bytes(4, "little") + body


def forged(shapes, gated=(), blobs=(), config=None, shared=0):
    """A file with this header and these leaves, its checksum right."""
    header = shapes if isinstance(shapes, bytes) else json.dumps(
        {"config": config or {}, "gated": list(gated), "params": shapes}).encode()  # fmt: skip
    packed = artifact._deflate(header)
    sizes = b"".join(codec.varint(len(blob)) for blob in blobs)
    return sealed(codec.varint(len(packed)) + packed + b"\0" + codec.varint(shared) + sizes + b"".join(blobs))


# Round trips ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), entries=st.sampled_from([1, 3, 15, 300]), density=st.floats(0, 1))
def test_a_network_comes_back(tmp_path_factory, seed, entries, density):
    params, gates = make_network(seed, entries, density)
    path = tmp_path_factory.mktemp("a") / "net.pjx"
    report = artifact.write(path, CONFIG, params, gates)
    found = artifact.read(path)
    assert_same(found.params, merge(params, gates))
    assert_same(found.gates, gates)
    assert found.config == CONFIG and found.tokenizer is None
    assert report.size == path.stat().st_size
    assert artifact.encode(CONFIG, found.params, found.gates)[0] == path.read_bytes()


def test_a_gate_is_closed_exactly_where_the_weight_is_plus_zero(tmp_path):
    weights = np.array([0.0, -0.0, np.nan, 5.0, -3.0], np.float32)
    gates = {"a": {"kernel": np.array([True, True, True, True, False])}}
    artifact.write(tmp_path / "a.pjx", CONFIG, {"a": {"kernel": weights}}, gates)
    found = artifact.read(tmp_path / "a.pjx")
    assert found.gates["a"]["kernel"].tolist() == [False, True, True, True, False]
    assert found.params["a"]["kernel"].tobytes() == np.array([0.0, -0.0, np.nan, 5.0, 0.0], np.float32).tobytes()


def test_a_tokenizer_comes_back(tmp_path):
    text = json.dumps({"version": "1.0", "model": {"type": "WordPiece", "vocab": {"b": 0, "ä": 1, "a": 2}}})
    artifact.write(tmp_path / "a.pjx", CONFIG, *make_network(), text)
    assert json.loads(artifact.read(tmp_path / "a.pjx").tokenizer) == json.loads(text)
    gapped = json.dumps({"model": {"vocab": {"b": 0, "a": 7}}})
    artifact.write(tmp_path / "a.pjx", CONFIG, *make_network(), gapped)
    assert json.loads(artifact.read(tmp_path / "a.pjx").tokenizer) == json.loads(gapped)


def test_layers_share_one_codebook_where_that_is_shorter():
    rng = np.random.default_rng(0)
    book = np.append(rng.normal(size=15), 0).astype(np.float32)
    params = {f"layer_{i}": {"kernel": book[rng.integers(0, 16, (10, 10))]} for i in range(8)}
    gates = jax.tree.map(lambda leaf: leaf != 0, params)
    size = artifact.encode(CONFIG, params, gates)[1].size
    alone = sum(len(codec.encode(node["kernel"])) for node in params.values())
    assert size < alone - 7 * 15 * 4 + 200  # one codebook of sixty bytes in place of eight; 200 for the header


def test_an_empty_network_is_padded_to_what_a_reader_allows(tmp_path):
    params = {"a": {"kernel": np.zeros((2000, 1000), np.float32)}}
    report = artifact.write(tmp_path / "a.pjx", CONFIG, params, jax.tree.map(lambda leaf: leaf != 0, params))
    assert report.size == -(-2_000_000 // 1024)
    assert_same(artifact.read(tmp_path / "a.pjx").params, params)


def test_a_usual_header_is_short(small_config):
    config, _ = config_lib.resolve(small_config)
    saved = config_lib.to_json(config)
    report = artifact.encode(run_artifact._short(saved), *make_network())[1]
    assert report.header < 250 and len(json.dumps(saved)) > 1000
    completed = config_lib.completed(config_lib.from_json(run_artifact._short(saved)))
    assert config_lib.to_json(completed) == saved


# The report ----------------------------------------------------------------------------------------------------------


def test_rate_and_table_by_hand():
    rows = [artifact.Row("a/kernel", (10, 20), 50, 4, 25.0, 30), artifact.Row("a/bias", (20,), 20, 20, None, 70)]
    report = artifact.Report(rows, header=40, tokenizer=10, size=160)
    assert report.rate == 4 * 220 / 160
    kernel, bias, header, tokenizer, kernels, total, rate = (line.split() for line in artifact.table(report)[1:])
    assert kernel == ["a/kernel", "10x20", "50", "25.00", "4", "1.2000", "1.0000", "30", "18.8"]
    assert bias == ["a/bias", "20", "20", "100.00", "20", "28.0000", "70", "43.8"]
    assert header == ["header", "50", "31.2"] and tokenizer == ["tokenizer", "10", "6.2"]
    assert kernels == ["kernels", "200", "50", "25.00", "1.2000", "1.0000", "30", "18.8"]
    assert total == ["total", "220", "70", "31.82", "5.8182", "160", "100.0"]
    assert " ".join(rate) == "compression rate 5.50: 880 bytes of float32 weights in 160 bytes"


def test_entropy_by_hand():
    leaf = np.array([0, 0, 0, 0, 0, 0, 1, 2], np.float32)
    distinct = np.unique(codec.bit_patterns(leaf))
    assert artifact._entropy(leaf, distinct) == pytest.approx((6 * np.log2(8 / 6) + 2 * 3) / 8)


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    text = json.dumps({"model": {"vocab": {"a": 0, "b": 1}}})
    return artifact.encode(CONFIG, *make_network(), text)[0]


def test_every_cut_is_told(whole, tmp_path):
    for end in range(0, len(whole), 7):
        path = written(tmp_path, whole[:end])
        with pytest.raises(UserError, match=r"net\.pjx is (damaged|not an artifact)"):
            artifact.read(path)
    body = whole[8:]
    for end in range(0, len(body), 7):  # cut, and its checksum mended
        with pytest.raises(UserError, match=r"net\.pjx is damaged: .*"):
            artifact.read(written(tmp_path, sealed(body[:end])))


def test_every_altered_byte_is_told(whole, tmp_path):
    for at in range(4, len(whole), 11):
        altered = whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :]
        with pytest.raises(UserError, match="its checksum does not fit"):
            artifact.read(written(tmp_path, altered))


def test_other_files_and_versions(whole, tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*gone: No such file"):
        artifact.read(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot read"):
        artifact.read(tmp_path)
    for content in (b"", b"PK\x03\x04", b"pjx"):
        with pytest.raises(UserError, match="is not an artifact of this program"):
            artifact.read(written(tmp_path, content))
    with pytest.raises(UserError, match="format version 2, newer than this program, which reads up to 1"):
        artifact.read(written(tmp_path, sealed(whole[8:], version=2)))
    with pytest.raises(UserError, match="it goes on after its end"):
        artifact.read(written(tmp_path, sealed(whole[8:] + b"x")))


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_altered_bytes_under_a_mended_checksum(whole, tmp_path_factory, flips):
    body = bytearray(whole[8:])
    for where, change in flips:
        body[int(where * len(body))] ^= change
    path = written(tmp_path_factory.getbasetemp(), sealed(bytes(body)), "altered.pjx")
    try:
        found = artifact.read(path)
    except UserError as error:
        assert "altered.pjx is damaged: " in str(error)
    else:
        assert all(np.asarray(leaf).dtype == np.float32 for leaf in jax.tree.leaves(found.params))


HUGE = 2**31


@pytest.mark.parametrize(
    "content",
    [
        forged({"a": [HUGE]}, blobs=[b"\0\0"]),
        forged({"a": [2**29]}, blobs=[codec.encode(np.zeros(1, np.float32))]),
        forged({"a": [10**30]}, blobs=[b"\0\0"]),
        forged({"a": [0, HUGE, HUGE, HUGE]}, blobs=[b"\2"]),
        forged({"a": [0, HUGE]}, blobs=[b"\6\0\0"]),
        forged({f"a{i}": [2**20] for i in range(500)}, blobs=[b"\3\0\0"] * 500),
        forged({"a": [1] * 40}, blobs=[b"\0\0"]),
        forged({"a": [-1]}, blobs=[b"\2"]),
        forged({"a": [1.5]}, blobs=[b"\2"]),
        forged({"a": "kernel"}, blobs=[b"\2"]),
        forged({"a": [4]}, gated=[1], blobs=[b"\3\0\0"]),
        forged({"a": [4]}, gated=[True], blobs=[b"\3\0\0"]),
        forged({"a": [4]}, blobs=[b"\1"]),  # a shared codebook that is not there
        forged({"a": [4]}, blobs=[b"\0" + codec.varint(HUGE)]),  # a codebook of that many entries
        forged({"a": [4]}, blobs=[b"\x63"]),
        forged({"a": [4]}, shared=200, blobs=[b"\2"]),
        forged(b"[" * 200_000),
        forged(b'{"config":{},"gated":[],"params":' + b'{"a":' * 900 + b"{}" + b"}" * 901),
        forged(b'{"config":{"a.b":{"":[{}]}},"gated":[],"params":{}}', config=None)[:-1],
        forged(b" " * (1 << 24)),
        forged(b"[]"),
        forged(b'{"config":[],"gated":[],"params":{}}'),
        forged(b"\xff"),
        sealed(codec.varint(2**62) + b"x"),
        sealed(b"\xff" * 20),
        sealed(b""),
    ],
)
def test_forged_headers_are_refused_before_memory_is_taken(content, tmp_path):
    path = written(tmp_path, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"net\.pjx is damaged: "):
        artifact.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("config", [{"a.b": {"": [{}]}}, {"__class__": 1}])
def test_a_header_whose_config_is_none_is_damaged(config, tmp_path):
    path = written(tmp_path, forged({"a": [4]}, config=config, blobs=[codec.encode(np.zeros(4, np.float32))]))
    assert artifact.read(path).config == config  # the format carries any JSON
    with pytest.raises(UserError, match=r"net\.pjx is damaged: its header holds no config"):
        run_artifact.read(path)


def test_a_tokenizer_cannot_unpack_without_end():
    import lzma

    bomb = lzma.compress(bytes(artifact._MAX_TOKENIZER + 1), lzma.FORMAT_RAW, filters=artifact._LZMA)
    with pytest.raises(codec.CodecError, match="too long"):
        artifact._unpack_tokenizer(bomb)


def test_what_cannot_be_stored(tmp_path):
    params, gates = make_network()
    with pytest.raises(UserError, match="extra/count is int32; an artifact holds float32 weights only"):
        artifact.write(tmp_path / "a.pjx", CONFIG, params | {"extra": {"count": np.int32(1)}}, gates)
    with pytest.raises(KeyError):
        artifact.write(tmp_path / "a.pjx", CONFIG, params, gates | {"ghost": {"kernel": np.ones(3, bool)}})
    with pytest.raises(UserError, match="cannot write"):
        artifact.write(tmp_path / "gone" / "a.pjx", CONFIG, params, gates)
    assert list(tmp_path.iterdir()) == []


# Commands ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """What a run leaves, without the training: a network of random weights, three quarters of its gates closed."""
    from tests.conftest import small

    config, _ = config_lib.resolve(small())
    dataset = inputs.load_data(config)
    model = models.create(config, dataset.task, dataset.tokenizer.vocab_size)
    variables = jax.jit(model.init)(jax.random.key(0), *model.example_inputs())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), np.float32),
                          variables["params"])  # fmt: skip
    gates = jax.tree.map(lambda gate: rng.random(gate.shape) < 0.25, variables["gates"])
    folder = tmp_path_factory.mktemp("run") / "run"
    folder.mkdir()
    runs.write(folder, runs.Network(config, params, gates))
    dataset.tokenizer.save(folder / "tokenizer")
    return folder


def called(capsys, main, *args):
    main([str(arg) for arg in args])
    return capsys.readouterr().out


def test_a_run_there_and_back(run_dir, tmp_path, capsys):
    out, folder = tmp_path / "run.pjx", tmp_path / "again"
    shown = called(capsys, compress.main, run_dir, out, "--bits=3")
    rate = float(shown.split("compression rate ")[1].split(":")[0])
    config, params, gates = runs.load(run_dir)
    wanted = quantise.quantise_network(params, gates, 3)
    assert rate == pytest.approx(4 * sum(x.size for x in jax.tree.leaves(params)) / out.stat().st_size, abs=0.006)

    found, _ = run_artifact.read(out)
    assert_same(found.params, wanted)
    assert found.config == config
    called(capsys, decompress.main, out, folder)
    again = runs.load(folder)
    assert again.config == config
    assert_same(again.params, wanted)
    assert_same(again.gates, found.gates)
    tokenizer = (run_dir / "tokenizer" / "tokenizer.json").read_text()
    assert json.loads((folder / "tokenizer" / "tokenizer.json").read_text()) == json.loads(tokenizer)

    reference, _ = evaluated(config, wanted, jax.tree.map(np.ones_like, gates))
    for path in (out, folder):
        shown = called(capsys, evaluate.main, path)
        assert f"eval_metric (accuracy) {reference['eval_metric']:.6f}" in shown
        assert f"eval_loss {reference['eval_loss']:.6f}" in shown
    dense, _ = evaluated(config, params, gates)
    assert f"eval_loss {dense['eval_loss']:.6f}" in called(capsys, evaluate.main, run_dir)
    assert dense["eval_loss"] != reference["eval_loss"]

    called(capsys, compress.main, run_dir, out, "--bits=3", "--no-tokenizer", "--force")
    assert artifact.read(out).tokenizer is None
    assert_same(initial.read(str(folder), "best", ()).params, wanted)


PATHS = {  # what a run on its author's machine has, beside the built-in data
    "model.init_from": "/home/ann/results_dense",
    "data.dir": "/home/ann/glue",
    "data.train": "~/films.csv",
    "data.eval": "./films.csv",
    "data.tokenizer": "/home/ann/vocab.txt",
    "data.cache_dir": "/home/ann/cache",
    "distill.teacher": "results_teacher",
    "report.mlflow_uri": "/home/ann/mlruns",
}


def with_paths(config, **changes):
    config = config.copy_and_resolve_references()
    for key, value in (PATHS | changes).items():
        room, name = key.split(".")
        with config.unlocked():
            config[room][name] = value
    return config


def test_a_file_carries_no_path_of_its_author(run_dir, tmp_path):
    network = runs.load(run_dir)
    network = network._replace(config=with_paths(network.config))
    run_artifact.write(tmp_path / "a.pjx", network)
    content = artifact.read(tmp_path / "a.pjx")
    for text in (*PATHS.values(), "/home"):
        assert text not in json.dumps(content.config)
    found, _ = run_artifact.read(tmp_path / "a.pjx")
    assert found.config.train == network.config.train and found.config.pruning == network.config.pruning
    assert_same(found.params, merge(network.params, network.gates))


def test_names_on_the_hub_stay(run_dir, tmp_path):
    network = runs.load(run_dir)
    hub = {"data.source": "hub", "data.hub_name": "ann/films", "data.train": "train", "data.eval": "test"}
    config = with_paths(network.config, **hub, **{"data.tokenizer": "bert-base-cased"})
    run_artifact.write(tmp_path / "a.pjx", network._replace(config=config))
    data = run_artifact.read(tmp_path / "a.pjx")[0].config.data
    assert (data.hub_name, data.train, data.eval, data.tokenizer) == ("ann/films", "train", "test", "bert-base-cased")


def test_nothing_that_is_read_names_a_place_to_write(run_dir, tmp_path, capsys):
    place = tmp_path / "elsewhere"
    network = runs.load(run_dir)
    config = network.config.copy_and_resolve_references()
    config.data.cache_dir = config.report.mlflow_uri = str(place)
    forged, folder = tmp_path / "forged.pjx", tmp_path / "forged"
    tokenizer = (run_dir / "tokenizer" / "tokenizer.json").read_text()
    artifact.write(forged, config_lib.to_json(config), network.params, network.gates, tokenizer)
    folder.mkdir()
    runs.write(folder, network._replace(config=config))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer)
    for path in (forged, folder):
        assert "eval_metric" in called(capsys, evaluate.main, path)
    called(capsys, decompress.main, forged, tmp_path / "unpacked")
    assert str(place) not in (tmp_path / "unpacked" / "config.json").read_text()
    assert not place.exists()
    called(capsys, evaluate.main, forged, f"--config.data.cache_dir={place}")  # the caller's own choice holds
    assert place.exists()


def test_a_run_is_never_replaced_by_its_artifact(run_dir):
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    for name in ("config.json", "checkpoints/best/1/_CHECKPOINT_METADATA", "new.pjx"):
        with pytest.raises(UserError, match="is in the folder of the run"):
            compress.main([str(run_dir), str(run_dir / name), "--force"])
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_quantised_checkpoint_comes_first_and_is_kept(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "final_kind", lambda folder: "quantised")
    config, params, gates = runs.load(run_dir)
    monkeypatch.setattr(runs, "load", lambda folder, kind: runs.Network(config, params, gates))
    called(capsys, compress.main, run_dir, tmp_path / "a.pjx")
    assert_same(artifact.read(tmp_path / "a.pjx").params, merge(params, gates))


def test_mistakes_of_the_commands(run_dir, tmp_path):
    out = tmp_path / "there.pjx"
    out.write_bytes(b"precious")
    for main, args, message in (
        (compress.main, (tmp_path / "gone", tmp_path / "a.pjx"), "gone is not the folder of a run"),
        (compress.main, (run_dir, out), "there.pjx exists already; choose another name, or add --force"),
        (compress.main, (run_dir, tmp_path, "--force"), "exists already; choose another name"),
        (compress.main, (run_dir, tmp_path / "no" / "a.pjx"), "there is no folder"),
        (compress.main, (run_dir, tmp_path / "a.pjx", "--kind=worst"), "argument --kind: invalid choice: 'worst'"),
        (compress.main, (run_dir, tmp_path / "a.pjx", "--bits=40"), "--bits is 40; allowed: 1 to 12"),
        (decompress.main, (out, tmp_path / "new"), "there.pjx is not an artifact"),
        (decompress.main, (out, run_dir), "exists already"),
        (evaluate.main, (out,), "there.pjx is not an artifact"),
        (evaluate.main, (out, "--kind=best"), "--kind is best"),
        (evaluate.main, (run_dir, "--config.data.source=tsv", "--config.data.dir=gone"), "config.data.dir is 'gone'"),
        (evaluate.main, (run_dir, "--config.data.task=regression"), "the network is another than its config and data"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(arg) for arg in args])
    assert out.read_bytes() == b"precious" and [path.name for path in tmp_path.iterdir()] == ["there.pjx"]


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert commands(["evaluate", str(tmp_path / "gone")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == f"evaluate: cannot read {tmp_path / 'gone'}: No such file or directory\n"


@pytest.mark.parametrize("name", ["compress", "decompress", "evaluate"])
def test_modules_are_commands(name, tmp_path):
    command_line = [sys.executable, "-m", "prune_jax", name, "gone"] + (["out"] if name != "evaluate" else [])
    done = subprocess.run(
        command_line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(f"{name}: ") and done.stderr.count("\n") == 1, done.stderr

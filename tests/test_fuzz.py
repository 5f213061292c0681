"""Readers given damaged and forged files: the contents, or one UserError that names the file, and no partial output."""

import json
import random
import shutil
import zipfile
import zlib

import jax
import numpy as np
import pytest
from test_hf import write as write_checkpoint

from prune_jax import config as config_lib
from prune_jax.compress import artifact
from prune_jax.config import saved
from prune_jax.errors import UserError
from prune_jax.export import hf
from prune_jax.run import artifact as run_artifact
from prune_jax.run import checkpoint
from prune_jax.run import folder as runs
from prune_jax.tools import snapshot

FEW, MANY = 60, 2500  # cases of a reader: by default, and in the slow test; a reader of many files takes a tenth
ODD = (None, True, -1, 0, 1e308, 2**70, "", "x", "../x", "/x", [], [[]], {}, {"x": []}, "9" * 400, "\0", "\ud800")


def counts(name, each=1):
    return [
        pytest.param(max(FEW // each, 5), id=f"{name}-few"),
        pytest.param(MANY // each, id=f"{name}-many", marks=pytest.mark.slow),
    ]


def altered(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some flipped, cut, doubled, or replaced by others."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 4, 40)))
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case _:
                data[at:end] = rng.randbytes(end - at)
    return bytes(data)


def other_value(content, rng: random.Random):
    """A JSON tree in which one value, or one name, is another."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        if rng.random() < 0.1:
            return {(str(rng.choice(ODD)) if k == key else k): v for k, v in content.items()}
        return {k: other_value(v, rng) if k == key else v for k, v in content.items()}
    if isinstance(content, list) and content and rng.random() < 0.7:
        at = rng.randrange(len(content))
        return [other_value(v, rng) if i == at else v for i, v in enumerate(content)]
    return rng.choice(ODD)


def forged_json(text: str, rng: random.Random) -> bytes:
    """A JSON file with other values, or with other bytes."""
    if rng.random() < 0.3:
        return altered(text.encode(), rng)
    content = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        content = other_value(content, rng)
    return json.dumps(content).encode()


def survives(read, what: str) -> bool:
    """Whether a reader takes its file; False where it refuses with a UserError. Whatever else it raises fails."""
    try:
        read()
    except UserError:
        return False
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    return True


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(6, 5)).astype(np.float32)
    params = {"dense": {"kernel": kernel, "bias": np.zeros(5, np.float32)}, "scale": np.float32(2)}
    config, _ = config_lib.resolve(config_lib.default(), {})
    return runs.Network(config, params, {"dense": {"kernel": rng.random((6, 5)) < 0.5}})


@pytest.mark.parametrize("cases", counts("artifact"))
def test_artifacts(cases, network, tmp_path):
    path, rng = tmp_path / "net.pjx", random.Random(1)
    run_artifact.write(path, network)
    whole, found = path.read_bytes(), []
    header = artifact.read(path).config
    for case in range(cases):
        if case % 3 == 0:  # a sound file with another header
            artifact.write(path, other_value(header, rng), network.params, network.gates)
        else:
            body = altered(whole[8:], rng)
            checksum = zlib.crc32(body) if case % 3 == 1 else rng.getrandbits(32)
            path.write_bytes(whole[:4] + checksum.to_bytes(4, "little") + body)
        found.append(survives(lambda: run_artifact.read(path), f"case {case}"))
    assert 0 < sum(found) < cases


@pytest.mark.parametrize("cases", counts("zip"))
def test_snapshots(cases, tmp_path):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for name in ("README.md", "a/b.py", "a/c.py"):
        (tmp_path / "tree" / name).write_text(name * 50)
    whole = snapshot.save(tmp_path / "tree", tmp_path / "out", "m")
    data, rng = whole.read_bytes(), random.Random(2)
    path, to = tmp_path / "forged.zip", tmp_path / "to"
    before = set(tmp_path.rglob("*")) | {path}
    for case in range(cases):
        path.write_bytes(altered(data, rng))
        if survives(lambda: snapshot.restore(path, to), f"case {case}"):
            shutil.rmtree(to)
        assert set(tmp_path.rglob("*")) == before, case
    assert zipfile.is_zipfile(whole)


@pytest.mark.parametrize("cases", counts("config"))
def test_configs(cases, network, tmp_path):
    path, rng, found = tmp_path / "config.json", random.Random(3), []
    text = json.dumps(config_lib.to_json(network.config))
    (tmp_path / "checkpoints").mkdir()

    def read():
        saved.read(path)
        config = config_lib.completed(runs.read_config(tmp_path))
        config.model.init_from = ""
        config_lib.resolve(config, {})

    for case in range(cases):
        path.write_bytes(forged_json(text, rng))
        found.append(survives(read, f"case {case}: {path.read_bytes()[:3000]!r}"))
    assert 0 < sum(found) < cases


@pytest.mark.parametrize("cases", counts("checkpoint", each=10))
def test_checkpoints(cases, network, tmp_path):
    whole, rng = tmp_path / "whole", random.Random(4)
    whole.mkdir()
    runs.write(whole, network)
    for case in range(cases):
        folder = tmp_path / "run"
        shutil.copytree(whole / "checkpoints", folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = rng.choice(files)
        data = path.read_bytes()
        path.write_bytes(forged_json(data.decode(), rng) if data[:1] == b"{" else altered(data, rng))
        name = path.relative_to(folder)
        found = []
        if survives(lambda: found.append(checkpoint.read_network(folder)), f"case {case}: {name}"):  # noqa: B023
            for tree, wanted in zip(found[0], network[1:], strict=True):
                jax.tree.map(np.testing.assert_array_equal, tree, wanted)
        shutil.rmtree(folder)


@pytest.mark.parametrize("cases", counts("transformers", each=5))
def test_transformers_checkpoints(cases, tmp_path):
    write_checkpoint(tmp_path)
    assert survives(lambda: hf.load(str(tmp_path)), "as it was written")
    rng = random.Random(5)
    config, weights = (tmp_path / "config.json").read_text(), (tmp_path / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(weights[:8], "little")
    for case in range(cases):
        forged = weights
        if case % 2:
            header = forged_json(weights[8:size].decode(), rng)
            forged = len(header).to_bytes(8, "little") + header + weights[size:]
        (tmp_path / "config.json").write_bytes(config.encode() if case % 2 else forged_json(config, rng))
        (tmp_path / "model.safetensors").write_bytes(forged)
        survives(lambda: hf.load(str(tmp_path)), f"case {case}")

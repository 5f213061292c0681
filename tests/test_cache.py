"""What is kept between runs is what was written, or it is made again."""

import logging

import numpy as np
import pytest

from prune_jax.data import cache

ARRAYS = {"ids": np.arange(300, dtype=np.int32), "logits": np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)}


@pytest.fixture
def path(tmp_path):
    cache.write(tmp_path / "folder" / "kept.npz", ARRAYS)
    return tmp_path / "folder" / "kept.npz"


def same(arrays) -> bool:
    return arrays.keys() == ARRAYS.keys() and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(arrays.values(), ARRAYS.values(), strict=True)
    )


def test_what_is_written_is_read_and_nothing_else_lies_there(path):
    assert same(cache.read(path))
    assert list(path.parent.iterdir()) == [path]
    assert cache.read(path.with_name("other.npz")) is None


def test_no_flipped_bit_and_no_cut_gives_other_arrays(path, caplog):
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        altered = bytearray(data)
        altered[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        found = cache.read(path)
        assert found is None or same(found)
        refused += found is None
    assert refused > 200
    for size in range(0, len(data), 37):
        path.write_bytes(data[:size])
        assert cache.read(path) is None
    assert "making it again" in caplog.text


@pytest.mark.parametrize(
    "arrays",
    [{"ids": ARRAYS["ids"]}, {**ARRAYS, "ids": ARRAYS["ids"].reshape(3, 100)}, {**ARRAYS, "ids": np.ones(300)}],
    ids=["one less", "another shape", "another dtype"],
)
def test_a_file_that_something_else_has_written_is_not_taken(arrays, path, caplog):
    np.savez(path, **arrays, sha256=cache._digest(ARRAYS))
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert cache.read(path) is None
    np.savez(path, **arrays)
    assert cache.read(path) is None
    assert caplog.text.count("its contents are not what was written") == 2


def test_objects_are_never_unpickled(path):
    np.savez(path, ids=np.array([{"a": 1}], object))
    assert cache.read(path) is None

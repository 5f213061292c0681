"""Arrays come back bit for bit, near the entropy of what is in them; bytes that no encoder wrote are refused."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_jax.compress import codec, rans
from prune_jax.compress.codec import CodecError

SPECIAL = np.array([-0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, 1.0], np.float32)
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


def sparse(rng, shape, density, values):
    """An array of this shape in which a weight is, with this probability, one of the values, else 0."""
    drawn = np.asarray(values, np.float32)[rng.integers(0, len(values), shape)]
    return np.where(rng.random(shape) < density, drawn, np.float32(0)).astype(np.float32)


def normal(rng, shape):
    return rng.normal(size=shape).astype(np.float32)


def assert_comes_back(array, shared=codec.NO_CODEBOOK):
    data = codec.encode(array, shared)
    found = codec.decode(data, array.shape, shared)
    assert found.dtype == np.float32 and found.shape == array.shape and found.tobytes() == array.tobytes()
    return data


def entropy_bytes(array):
    counts = np.unique_counts(codec.bit_patterns(array)).counts
    return float(-counts @ np.log2(counts / array.size)) / 8


@settings(max_examples=300, deadline=None)
@given(shape=SHAPES, density=st.floats(0, 1), kinds=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_any_array_comes_back(shape, density, kinds, seed):
    rng = np.random.default_rng(seed)
    values = SPECIAL[rng.permutation(8)[:kinds]] if seed % 2 else normal(rng, kinds)
    array = sparse(rng, shape, density, values)
    assert_comes_back(array)
    shared = np.unique(codec.bit_patterns(np.append(values, 0)))
    assert_comes_back(array, shared)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=400))
def test_any_bit_patterns_come_back(data):
    assert_comes_back(np.frombuffer(data[: len(data) // 4 * 4], np.float32))


@pytest.mark.parametrize("density", [0.001, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("lanes", [1, 12])
def test_large_arrays_come_back(density, lanes, monkeypatch):
    monkeypatch.setattr(rans, "lanes_for", lambda *_: lanes)
    rng = np.random.default_rng(0)
    for values in (normal(rng, 15), normal(rng, 5000)):
        assert_comes_back(sparse(rng, (100, 300), density, values))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1, 1, 1, 1), (5, 5, 3, 4)])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, np.nan])
def test_one_symbol_costs_a_few_bytes(shape, value):
    assert len(assert_comes_back(np.full(shape, value, np.float32))) <= 6


def test_dense_floats_save_their_exponents_and_never_grow():
    rng = np.random.default_rng(0)
    weights = (0.02 * normal(rng, (512, 64))).astype(np.float32)
    exponents = np.unique_counts(weights.view(np.uint32) >> 23 & 255).counts
    bound = 3 * weights.size - float(exponents @ np.log2(exponents / weights.size)) / 8
    assert len(assert_comes_back(weights)) < 1.005 * bound + 60
    anything = rng.integers(0, 2**32, 1000, dtype=np.uint32).view(np.float32)
    assert len(assert_comes_back(anything)) <= 4 * 1000 + 16
    halves = weights.astype(np.float16).astype(np.float32)  # 10 bits of mantissa, a sign, about 3 bits of exponent
    assert len(assert_comes_back(halves)) < 14.5 / 8 * weights.size


@pytest.mark.parametrize(("shape", "density", "entries"), [((784, 300), 0.02, 15), ((300, 100), 0.1, 15)])
def test_independent_weights_cost_their_entropy(shape, density, entries):
    rng = np.random.default_rng(1)
    array = sparse(rng, shape, density, normal(rng, entries))
    size = len(codec.encode(array))
    tables = entries * 5 + 20  # codebook, frequencies, lengths, the coder's state
    assert entropy_bytes(array) < size < 1.005 * entropy_bytes(array) + tables


def test_dead_rows_and_columns_cost_almost_nothing():
    rng = np.random.default_rng(2)
    array = sparse(rng, (784, 300), 0.1, normal(rng, 15))
    array[rng.random(784) < 0.5] = 0
    array[:, rng.random(300) < 0.8] = 0
    alive = array[np.ix_(array.any(1), array.any(0))]
    size = len(assert_comes_back(array))
    assert size < 1.01 * entropy_bytes(alive) + (784 + 300) / 8 + 150
    assert size < 0.8 * entropy_bytes(array)


def test_gaps_win_where_the_non_zeros_come_in_runs():
    array = np.zeros((100, 100), np.float32)
    array.reshape(-1)[1234:2234] = 1.0
    data = assert_comes_back(array)
    assert data[0] // 3 == 1 and len(data) < 60  # a thousand gaps, all but one of them 0


def test_long_gaps():
    """The low bits of a gap of 2^18 do not fit one symbol of the coder."""
    array = np.zeros(300_000, np.float32)
    for at in (0, 8, 17, 1 << 14, 1 << 15, 299_999):
        array[at] = at + 1
        assert_comes_back(array)


def test_frequencies_are_the_same_everywhere():
    """The tables are part of the format: a machine that rounded otherwise could not read another's file."""
    assert zlib.crc32(codec._WEIGHTS.astype("<i8").tobytes()) == 0x001C7E5E
    assert zlib.crc32(codec._CHANCES.astype("<i8").tobytes()) == 0xC3DCF1A6
    for table in ([255], [1, 255], [0, 7, 0], [1] * 4096):
        found = codec._frequencies(np.array(table, np.uint8))
        assert found.sum() == rans.TOTAL and ((found > 0) == (np.array(table) > 0)).all()


def test_coder_reaches_the_entropy_of_skewed_bits():
    rng = np.random.default_rng(3)
    ones = np.full(100_000, 50)  # of 16384
    bits = rng.random(len(ones)) < 50 / rans.TOTAL
    segment = np.where(bits, 0, 50), np.where(bits, 50, rans.TOTAL - 50)
    bound = -np.log2(segment[1] / rans.TOTAL).sum() / 8
    for lanes in (1, 16):
        data = rans.encode([segment], lanes)
        assert len(data) < 1.002 * bound + 4 * lanes
        decoder = rans.Decoder(data, lanes)
        np.testing.assert_array_equal(decoder.bits(ones), bits)
        decoder.finish()


def test_varints():
    for number in (0, 1, 127, 128, 300, 2**31, 2**63 - 1):
        assert codec.Reader(codec.varint(number)).varint(2**63) == number
    assert codec.varint(300) == b"\xac\x02"
    for data in (b"", b"\x80", b"\xff" * 12):
        with pytest.raises(CodecError):
            codec.Reader(data).varint(2**63)
    with pytest.raises(CodecError, match="most possible"):
        codec.Reader(codec.varint(5)).varint(4)


def damaged(data, rng):
    """The data cut, or with a few bytes changed, inserted or removed."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(changed)))
        kind = rng.integers(0, 4)
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            changed[at] = int(rng.integers(0, 256))
        elif kind == 2:
            changed.insert(at, int(rng.integers(0, 256)))
        else:
            del changed[at:]
            changed += b"" if rng.random() < 0.5 else b"\0"
        if not changed:
            break
    return bytes(changed)


@settings(max_examples=400, deadline=None)
@given(
    shape=st.sampled_from([(40, 30), (5, 5, 3, 4), (17,)]),
    density=st.sampled_from([0.02, 0.5, 1.0]),
    entries=st.sampled_from([1, 4, 5000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_damage_raises_or_decodes_to_the_shape(shape, density, entries, seed):
    rng = np.random.default_rng(seed)
    data = damaged(codec.encode(sparse(rng, shape, density, normal(rng, entries))), rng)
    try:
        found = codec.decode(data, shape)
    except CodecError:
        return
    assert found.shape == shape and found.dtype == np.float32


def test_every_cut_is_noticed():
    rng = np.random.default_rng(4)
    for array in (sparse(rng, (30, 20), 0.1, normal(rng, 7)), normal(rng, (6, 5)), np.ones((3, 2), np.float32)):
        data = codec.encode(array)
        for end in range(len(data)):
            with pytest.raises(CodecError):
                codec.decode(data[:end], array.shape)


def test_lanes_bound_the_steps_of_a_decoder():
    assert rans.lanes_for(10, 5) == 1 and rans.lanes_for(1 << 20, 10) == 16 and rans.lanes_for(1 << 24, 10) == 128
    assert rans.lanes_for(1 << 24, 1 << 20) == 1024 and rans.lanes_for(1 << 40, 1 << 40) == rans.MAX_LANES
    decoder = rans.Decoder(rans.encode([], 1), 1)
    with pytest.raises(CodecError, match="lanes"):
        decoder.bits(np.full((1 << 18) + 1, 1))

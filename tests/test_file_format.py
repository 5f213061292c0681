"""docs/file_format.md is enough to write a reader of .pjx files.

The reader below is written from that page alone and shares no code with prune_jax.compress; it is short rather than
fast. The tests compare it with the package's reader, on sound files and on damaged ones.
"""

import hashlib
import json
import lzma
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prune_jax.compress import artifact, dictionary, quantise
from prune_jax.errors import UserError

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "file_format.md").read_text(encoding="utf-8")


def block(heading: str, number: int = 0) -> list[str]:
    """The words of a fenced block of the page, the first one after this heading unless another number is given."""
    return re.findall(r"```text\n(.*?)```", PAGE.split(f"\n## {heading}\n")[1], re.DOTALL)[number].split()


DICTIONARY = "".join(block("The preset dictionary")).encode("ascii")

# The reader ----------------------------------------------------------------------------------------------------------


class Damaged(ValueError):
    """A file that the page tells readers to refuse."""


def require(condition) -> None:
    if not condition:
        raise Damaged


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        require(self.at + count <= len(self.data))
        self.at += count
        return self.data[self.at - count : self.at]

    def rest(self):
        return self.take(len(self.data) - self.at)

    def byte(self):
        return self.take(1)[0]

    def patterns(self, count):
        return np.frombuffer(self.take(4 * count), "<u4")

    def varint(self, most):
        number = 0
        for i in range(10):
            byte = self.byte()
            number |= (byte & 127) << 7 * i
            if byte < 128:
                require(number <= most)
                return number
        raise Damaged


class Lanes:
    """The decoder of a leaf's coded symbols."""

    def __init__(self, data):
        self.states, self.words, self.budget = [65536], iter(()), 1 << 18
        if data:
            stream = Bytes(data)
            lanes = stream.varint(16384)
            require(lanes >= 1)
            self.states = stream.patterns(lanes).tolist()
            words = stream.rest()
            require(len(words) % 2 == 0)
            self.words, self.budget = iter(np.frombuffer(words, "<u2").tolist()), lanes << 18

    def segment(self, count, find):
        """find: (slot, number of the symbol) -> (symbol, start, frequency)."""
        self.budget -= count
        require(self.budget >= 0)
        symbols, states = [], self.states
        for i in range(count):
            lane = i % len(states)
            x = states[lane]
            symbol, start, frequency = find(x & 16383, i)
            x = frequency * (x >> 14) + (x & 16383) - start
            if x < 65536:
                word = next(self.words, None)
                require(word is not None)
                x = x << 16 | word
            states[lane] = x
            symbols.append(symbol)
        return symbols

    def bits(self, chances):
        def find(slot, i):
            c = chances[i]
            return (1, 0, c) if slot < c else (0, c, 16384 - c)

        return self.segment(len(chances), find)

    def numbers(self, widths):
        def find(slot, i):
            shift = 14 - widths[i]
            return slot >> shift, slot >> shift << shift, 1 << shift

        return self.segment(len(widths), find)

    def finish(self):
        require(next(self.words, None) is None and all(x == 65536 for x in self.states))


def weight(byte):
    return round(256 * 2 ** ((byte - 1) / 16)) if byte else 0


def chance(byte):
    return 16384 * (byte == 255) if byte in (0, 255) else max(1, round(16384 / (1 + 2 ** ((127.5 - byte) / 9))))


def distribution(head, size, count):
    """Reads a frequency table. Returns a function: decoder -> `count` symbols below `size`."""
    if size <= 1 or not count:
        return lambda lanes: [0] * count
    weights = [weight(byte) for byte in head.take(size)]
    require(any(weights))
    spare = 16384 - sum(w > 0 for w in weights)
    frequencies = [1 + w * spare // sum(weights) if w else 0 for w in weights]
    frequencies[weights.index(max(weights))] += 16384 - sum(frequencies)
    starts = [sum(frequencies[:i]) for i in range(size)]
    ranges = [(i, starts[i], frequencies[i]) for i in range(size) for _ in range(frequencies[i])]
    return lambda lanes: lanes.segment(count, lambda slot, _: ranges[slot])


def gaps(head, shape, count):
    buckets = head.byte()
    require(buckets <= 124)
    symbols = distribution(head, buckets, count)

    def positions(lanes):
        found = symbols(lanes)
        octaves = [(b - 8) // 4 + 1 if b >= 8 else 0 for b in found]
        gap = [4 + (b - 8) % 4 << w if b >= 8 else b for b, w in zip(found, octaves, strict=True)]
        for low in (0, 14, 28):
            of = [i for i in range(count) if octaves[i] > low]
            for i, number in zip(of, lanes.numbers([min(octaves[i] - low, 14) for i in of]), strict=True):
                gap[i] += number << low
        where = np.cumsum(np.array(gap, np.int64) + 1) - 1
        require(not count or where[-1] < math.prod(shape))
        return where

    return positions


def mask(head, shape, count):
    columns = shape[-1] if shape else 1
    lengths = math.prod(shape) // columns, columns
    levels = divmod(head.byte(), 3)
    require(levels[0] < 3)
    classes, symbols = [], []
    for level, length in zip(levels, lengths, strict=True):
        classes.append(head.byte() if level else 1)
        require(1 <= classes[-1] <= 64)
        symbols.append(distribution(head, classes[-1], length))
    rows_without, columns_without = (int(level > 0) for level in levels)
    table = np.zeros(classes, np.int64)
    for r in range(rows_without, classes[0]):
        table[r, columns_without:] = [chance(byte) for byte in head.take(classes[1] - columns_without)]

    def positions(lanes):
        of_row, of_column = (read(lanes) for read in symbols)
        chances = table[np.ix_(of_row, of_column)].reshape(-1)
        coded = np.flatnonzero((chances > 0) & (chances < 16384))
        stored = chances == 16384
        stored[coded] = lanes.bits(chances[coded].tolist())
        require(np.count_nonzero(stored) == count)
        return np.flatnonzero(stored)

    return positions


def codes(head, count, codebook):
    require(len(codebook) or not count)
    symbols = distribution(head, len(codebook), count)
    return lambda lanes: codebook[np.array(symbols(lanes), np.int64)]


def raw(head, count):
    planes = []
    for _ in range(4):
        different = head.byte()
        present = np.frombuffer(head.take(different or count), np.uint8)
        planes.append((present, distribution(head, different, count) if different else None))

    def patterns(lanes):
        r = np.zeros(count, np.uint32)
        for i, (present, symbols) in enumerate(planes):
            plane = present if symbols is None else present[np.array(symbols(lanes), np.int64)]
            r |= plane.astype(np.uint32) << np.uint32(8 * i)
        return r >> np.uint32(1) | r << np.uint32(31)

    return patterns


def read_leaf(data, shape, shared, seen):
    size, head = math.prod(shape), Bytes(data)
    mode, kind = divmod(head.byte(), 3)
    require(mode <= 2 and (size or not mode))
    count, where = size, None
    if mode:
        count = head.varint(size)
        where = (gaps, mask)[mode - 1](head, shape, count)
    if kind == 0:
        shared = head.patterns(head.varint(4096))
    values = raw(head, count) if kind == 2 else codes(head, count, shared)
    lanes = Lanes(head.rest())
    positions = slice(None) if where is None else where(lanes)
    array = np.zeros(size, np.uint32)
    array[positions] = values(lanes)
    lanes.finish()
    seen.append((mode, kind, len(lanes.states)))
    return array.view(np.float32).reshape(shape)


def leaves_of(tree, path=()):
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key in sorted(tree) for leaf in leaves_of(tree[key], (*path, key))]


def unpack(unpacker, data, most):
    try:
        plain = unpacker.decompress(data, most)
        require(unpacker.eof and not unpacker.unused_data)
        return json.loads(plain.decode("utf-8"))
    except (zlib.error, lzma.LZMAError, ValueError) as error:
        raise Damaged from error


def read_tokenizer(data):
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 22}])
    pair = unpack(unpacker, data, 67_108_864)
    require(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], dict))
    parsed, tokens = pair
    if tokens is not None:
        require(isinstance(tokens, list) and all(isinstance(token, str) for token in tokens))
        require(isinstance(parsed.get("model"), dict))
        parsed["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    return parsed


def read(data: bytes):
    """(header, {path: array}, {path: gate}, tokenizer or None, (mode, kind, lanes) of each leaf) of a file's bytes."""
    require(len(data) >= 8 and data[:4] == b"PJX\1" and zlib.crc32(data[8:]) == int.from_bytes(data[4:8], "little"))
    body, longest, seen = Bytes(data[8:]), len(data) - 8, []
    header = unpack(zlib.decompressobj(-15, DICTIONARY), body.take(body.varint(longest)), 1_048_576)
    require(isinstance(header, dict) and header.keys() == {"config", "gated", "params"})
    require(isinstance(header["config"], dict) and isinstance(header["params"], dict))
    leaves = leaves_of(header["params"])
    for _, shape in leaves:
        require(isinstance(shape, list) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape))
        require(math.prod(max(n, 1) for n in shape) <= 1 << 31)
    require(sum(math.prod(shape) for _, shape in leaves) <= min(1 << 31, 1024 * len(data)))
    require(isinstance(header["gated"], list))
    require(all(type(i) is int and 0 <= i < len(leaves) for i in header["gated"]))
    packed = body.take(body.varint(longest))
    tokenizer = read_tokenizer(packed) if packed else None
    shared = body.patterns(body.varint(256))
    sizes = [body.varint(longest) for _ in leaves]
    arrays = {
        path: read_leaf(body.take(size), tuple(shape), shared, seen)
        for (path, shape), size in zip(leaves, sizes, strict=True)
    }
    require(not any(body.rest()))
    gates = {leaves[i][0]: arrays[leaves[i][0]].view(np.uint32) != 0 for i in header["gated"]}
    return header, arrays, gates, tokenizer, seen


# Networks ------------------------------------------------------------------------------------------------------------

CONFIG = {"model": {"name": "lenet_300_100", "layer_ffn": None}, "pruning": {"sparsity_steps": (0.5, 0.975)}}
TOKENIZER = {"version": "1.0", "model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "naïve": 2, "##s": 3}}}
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(scale=0.05, size=shape).astype(np.float32)


def lenet(closed=0.9):
    """(params, gates) in which pixels and neurons are dead, as training leaves them."""
    params, gates = {}, {}
    for name, (rows, columns) in {"dense_1": (196, 120), "dense_2": (120, 50), "classifier": (50, 10)}.items():
        importance = rng.exponential(size=(rows, 1)) * rng.exponential(size=(1, columns)) * rng.random((rows, columns))
        params[name] = {"kernel": normal(rows, columns), "bias": normal(columns)}
        gates[name] = {"kernel": importance > np.quantile(importance, closed)}
    return params, gates


def quantised(**bits):
    params, gates = lenet()
    return quantise.quantise_network(params, gates, **bits), gates


def soft_weight_sharing():
    """One mixture for all layers: the same few values everywhere."""
    params, gates = lenet(0.8)
    means = np.append(0, normal(15)).astype(np.float32)
    nearest = {
        name: {key: means[np.argmin(abs(x[..., None] - means), axis=-1)] for key, x in layer.items()}
        for name, layer in params.items()
    }
    return nearest, gates


def transformer():
    params, gates = lenet(0.7)
    params["token_embedding"] = {"embedding": normal(500, 16)}
    params["position_embedding"] = {"embedding": normal(64, 16)}
    return quantise.quantise_network(params, gates, 4, bias_bits=3, embedding_bits=2), gates


def far_apart():
    """Gaps whose low bits take two segments; a third would need an array of 2^30 weights."""
    kernel = np.zeros((1000, 3000), np.float32)
    kernel.flat[[5, 300_000, 2_999_999]] = [0.5, -0.25, 0.5]
    bias = np.zeros(3000, np.float32)
    bias[::97] = 1
    return {"dense": {"kernel": kernel, "bias": bias}}, {"dense": {"kernel": kernel != 0}}


def oddities():
    special = np.array([-0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 0, 1], np.float32)
    conv = special[rng.integers(0, 8, (3, 3, 2, 4))]
    params = {
        "é": {"Z": special, "a": {"ab": conv}, "B": np.float32(-1.5)},
        "ß": {"empty": np.zeros((0, 4), np.float32), "scalar": np.float32(0), "dead": np.zeros((9, 7), np.float32)},
        "B": {"few": np.float32([0.5, 0.25])[rng.integers(0, 2, 60_000)], "full": normal(300, 300)},
        "a": {"coarse": normal(5000).astype(np.float16).astype(np.float32), "none": {}},
    }
    return params, {"é": {"a": {"ab": np.ones((3, 3, 2, 4), bool)}}, "ß": {"dead": np.zeros((9, 7), bool)}}


NETWORKS = {
    "as_it_is": (lambda: lenet(), None),
    "bits_4": (lambda: quantised(bits=4), None),
    "bits_8": (lambda: quantised(bits=8), TOKENIZER),
    "bias_bits": (lambda: quantised(bits=4, bias_bits=6), None),
    "soft_weight_sharing": (soft_weight_sharing, None),
    "transformer": (transformer, TOKENIZER),
    "tokenizer_without_ids": (transformer, {"model": {"vocab": [["a", -1.5], ["b", -2.0]]}}),
    "far_apart": (far_apart, None),
    "oddities": (oddities, None),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: bytes of the file, as the package writes it}."""
    found = {}
    for name, (make, tokenizer) in NETWORKS.items():
        params, gates = make()
        path = tmp_path_factory.mktemp("pjx") / "net.pjx"
        text = None if tokenizer is None else json.dumps(tokenizer)
        artifact.write(path, CONFIG, params, gates, text)
        found[name] = path.read_bytes()
    return found


def package_reads(folder, data):
    path = folder / "net.pjx"
    path.write_bytes(data)
    found = artifact.read(path)
    arrays, gates = (dict(leaves_of(tree)) for tree in (found.params, found.gates))
    tokenizer = None if found.tokenizer is None else json.loads(found.tokenizer)
    return found.config, arrays, gates, tokenizer


def assert_same_arrays(found, wanted):
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        assert found[path].shape == array.shape and found[path].dtype == array.dtype, path
        assert found[path].tobytes() == array.tobytes(), path


# Tests ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_reads_what_the_package_writes(name, files, tmp_path):
    header, arrays, gates, tokenizer, _ = read(files[name])
    wanted_config, wanted_arrays, wanted_gates, wanted_tokenizer = package_reads(tmp_path, files[name])
    assert header["config"] == wanted_config == json.loads(json.dumps(CONFIG))
    assert_same_arrays(arrays, wanted_arrays)
    assert_same_arrays(gates, wanted_gates)
    assert tokenizer == wanted_tokenizer == NETWORKS[name][1]


def test_these_files_use_all_of_the_format(files):
    seen = [leaf for data in files.values() for leaf in read(data)[-1]]
    modes_and_kinds = {(mode, kind) for mode, kind, _ in seen}
    assert modes_and_kinds >= {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2)}
    assert {lanes > 1 for _, _, lanes in seen} == {True, False}
    assert files["far_apart"].endswith(bytes(1000))  # filled up to 1/1024 byte per weight
    assert len(files["far_apart"]) == -(-3_003_000 // 1024)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["bits_4", "soft_weight_sharing", "transformer"]), at=st.floats(0, 1), byte=st.integers(1, 255)
)
def test_both_readers_refuse_the_same_files(name, at, byte, files, tmp_path):
    """A byte altered, the checksum made right again: the two agree whether it is a network, and on which."""
    data = bytearray(files[name])
    data[8 + int(at * (len(data) - 9))] ^= byte
    data[4:8] = zlib.crc32(data[8:]).to_bytes(4, "little")
    try:
        wanted = package_reads(tmp_path, bytes(data))
    except UserError:
        with pytest.raises(Damaged):
            read(bytes(data))
        return
    _, arrays, gates, tokenizer, _ = read(bytes(data))
    assert_same_arrays(arrays, wanted[1])
    assert_same_arrays(gates, wanted[2])
    assert tokenizer == wanted[3]


def forged(header: dict | bytes, leaves=b"", tail=b"", tokenizer=b"\0") -> bytes:
    """A file with this header, a tokenizer and leaves as they are given (sizes included), and a right checksum."""
    plain = (
        header if isinstance(header, bytes) else json.dumps({"config": {}, "gated": [], "params": {}} | header).encode()
    )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    packed = packer.compress(plain) + packer.flush() + tail
    size = bytes([len(packed) & 127 | 128, len(packed) >> 7 & 127 | 128, len(packed) >> 14])
    body = size + packed + tokenizer + b"\0" + leaves
    return b"PJX\1" + zlib.crc32(body).to_bytes(4, "little") + body


def tokenizer_part(value) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 22}]
    packed = lzma.compress(json.dumps(value).encode(), lzma.FORMAT_RAW, filters=filters)
    assert len(packed) < 128
    return bytes([len(packed)]) + packed


@pytest.mark.parametrize(
    ("data", "sound"),
    [
        (forged({}), True),
        (forged({}, b"\0" * 9), True),
        (forged({}, b"\0\0\1"), False),
        (forged({"params": {"a": {}}}), True),
        (forged({"params": {"a": [0, 4]}}, b"\2\0\0"), True),  # ALL, CODES, no entries
        (forged({"params": {"a": [0, 4]}}, b"\3\3\0\0"), False),  # GAPS
        (forged({"params": {"a": [2]}}, b"\x0d\2" + b"\0\0\0" * 4), True),  # ALL, RAW, planes as they are
        (forged({"params": {"a": [2]}}, b"\x0e\2" + b"\0\0\0" * 4 + b"\0"), False),  # and no lane at all
        (forged({"params": {"a": [2]}}, b"\x0d\x09" + b"\0\0\0" * 4), False),  # an unknown mode
        (forged({"params": {"a": [1]}}, b"\2\0\0"), False),  # an empty codebook
        (forged({"params": {"a": [1]}}, b"\4\3\0\0\0"), True),  # GAPS, no stored weight
        (forged({"params": {"a": [1]}}, b"\4\3\0\x7d\0"), False),  # too many buckets
        (forged({"params": {"a": [1]}}, b"\6\6\0\0\0\0\0"), False),  # MASK, and no lane at all
        (forged({"params": {"a": [1]}}, b"\5\6\0\0\0\0"), True),
        (forged({"params": {"a": [1]}}, b"\5\6\0\x09\0\0"), False),  # an unknown level
        (forged({"params": {"a": [1]}}, b"\5\6\0\0\xff\0"), False),  # a weight more than count
        (forged({"params": {"a": [-1]}}), False),
        (forged({"params": {"a": [True]}}), False),
        (forged({"params": {"a": [0.0]}}), False),
        (forged({"params": {"a": [1] * 33}}), False),
        (forged({"params": {"a": [0, 1 << 32]}}), False),
        (forged({"params": {"a": [1 << 20]}}, b"\2\1\0"), False),  # too many for the length
        (forged({"params": [2]}), False),
        (forged({"params": {"a": 2}}), False),
        (forged({"gated": [0]}), False),
        (forged({"gated": {}}), False),
        (forged({"config": []}), False),
        (forged({"more": 0}), False),
        (forged(b"{}"), False),
        (forged(b"\xff"), False),
        (forged({}, tail=b"\0"), False),
        (forged({}, tokenizer=tokenizer_part([{"model": {}}, ["a", "b"]])), True),
        (forged({}, tokenizer=tokenizer_part([{}, None])), True),
        (forged({}, tokenizer=tokenizer_part([{}, ["a"]])), False),
        (forged({}, tokenizer=tokenizer_part([{"model": {}}, [1]])), False),
        (forged({}, tokenizer=tokenizer_part([{}])), False),
        (forged({}, tokenizer=b"\1\1"), False),
    ],
)
def test_both_readers_agree_on_forged_parts(data, sound, tmp_path):
    if sound:
        _, arrays, gates, tokenizer, _ = read(data)
        _, wanted_arrays, wanted_gates, wanted_tokenizer = package_reads(tmp_path, data)
        assert_same_arrays(arrays, wanted_arrays)
        assert_same_arrays(gates, wanted_gates)
        assert tokenizer == wanted_tokenizer
        return
    with pytest.raises(UserError):
        package_reads(tmp_path, data)
    with pytest.raises(Damaged):
        read(data)


def test_damage_is_noticed(files):
    data = files["bits_4"]
    altered = [b"PJY" + data[3:], data[:3] + b"\0" + data[4:], data[:3] + b"\2" + data[4:], data[:-1] + b"x"]
    for damaged in (data[:7], data[:-1], data + b"\0", *altered):
        with pytest.raises(Damaged):
            read(damaged)


def test_the_worked_example(tmp_path):
    data = bytes.fromhex("".join(block("A worked example", 1)))
    header, arrays, gates, tokenizer, seen = read(data)
    kernel = np.zeros((4, 6), np.float32)
    kernel.flat[[1, 2, 9, 13, 23]] = [0.5, 0.5, -0.25, 0.5, 0.5]
    wanted = {("dense", "bias"): np.float32([0, 1, 0, 0, 0, -2]), ("dense", "kernel"): kernel}
    assert header == {"config": {}, "gated": [1], "params": {"dense": {"bias": [6], "kernel": [4, 6]}}}
    assert tokenizer is None and seen == [(2, 2, 1), (2, 0, 1)]
    assert_same_arrays(arrays, wanted)
    assert_same_arrays(gates, {("dense", "kernel"): kernel != 0})
    params = {"dense": {"bias": wanted["dense", "bias"], "kernel": kernel}}
    written, _ = artifact.encode({}, params, {"dense": {"kernel": kernel != 0}})
    assert written == data


def test_the_numbers_of_the_page():
    assert DICTIONARY == dictionary.DICTIONARY
    assert len(DICTIONARY) == 3035
    assert hashlib.sha256(DICTIONARY).hexdigest() in PAGE
    assert f"{zlib.crc32(DICTIONARY):08x}" in PAGE
    weights, chances = ([table(byte) for byte in range(256)] for table in (weight, chance))
    assert [weights[b] for b in (1, 2, 17, 255)] == [256, 267, 512, 15_384_775] and sum(weights) == 362_870_759
    assert [chances[t] for t in (1, 100, 127, 128, 254)] == [1, 1759, 8034, 8350, 16383] and sum(chances) == 2_097_152

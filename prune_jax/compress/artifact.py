"""The .pjx file: a whole network, entropy coded, with its config and its tokenizer. docs/file_format.md describes it.

    magic "PJX", format version (1 byte), CRC-32 of all that follows (4 bytes, little endian)
    header: JSON, deflated with a preset dictionary: the run's config, the tree of shapes, the numbers of gated leaves
    tokenizer: LZMA; empty where there is none
    shared codebook: bit patterns that any leaf may refer to; empty where there is none
    the size of each leaf, then each leaf as codec.encode made it, in the order of sorted keys
    zeros, where the file would be shorter than 1/1024 byte per weight

The header, the tokenizer, the codebook and the leaves are preceded by their sizes, as varints. The codebook's size is
its number of entries.

Weights come back bit for bit. Gates are not stored. The gate of a gated kernel is closed exactly where the weight is
+0.0, which is what a closed gate makes of any weight. An open gate on a weight of +0.0 comes back closed, which has the
same effect.

A forged file cannot ask for more memory than its length justifies. A reader allocates for at most 1,024 weights per
byte of the file, which is a compression rate of 4,096, and for 2^31 weights in all.
"""

import json
import lzma
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prune_jax import files
from prune_jax.compress import codec
from prune_jax.compress.codec import CodecError
from prune_jax.compress.dictionary import DICTIONARY
from prune_jax.errors import UserError
from prune_jax.pruning.merge import merge

Tree = Any

MAGIC, VERSION = b"PJX", 1
SUFFIX = ".pjx"
_PREFIX = len(MAGIC) + 1 + 4
_MAX_WEIGHTS = 1 << 31
_WEIGHTS_PER_BYTE = 1024
_MAX_HEADER = 1 << 20  # bytes, of the JSON
_MAX_TOKENIZER = 1 << 26
_MAX_AXES = 32
_MAX_SHARED = 256  # entries
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 22}]


class Artifact(NamedTuple):
    """What a file holds.

    Attributes:
      config: the run's config, in JSON's types.
      params, gates: NumPy trees, float32 and boolean.
      tokenizer: the text of its tokenizer.json, None where there is none.
    """

    config: dict
    params: Tree
    gates: Tree
    tokenizer: str | None


class Row(NamedTuple):
    """What one leaf takes in the file.

    Attributes:
      values: the number of its distinct bit patterns; None beyond codec.MAX_CODEBOOK.
      entropy: the bytes that a gated kernel's weights would take as independent draws from their own distribution,
        without the codebook; None for other leaves. The size can be lower: rows and columns differ in density.
      size: its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    nonzeros: int
    values: int | None
    entropy: float | None
    size: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


class Report(NamedTuple):
    """What was written: one row per leaf, and the bytes of the header, of the tokenizer, and of the whole file."""

    rows: list[Row]
    header: int
    tokenizer: int
    size: int

    @property
    def rate(self) -> float:
        """The compression rate: the bytes of all weights as float32, divided by the bytes of the whole file."""
        return 4 * sum(row.weights for row in self.rows) / self.size


# The tree ------------------------------------------------------------------------------------------------------------


def _flatten(tree: Tree, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """(path, leaf) pairs in the order of sorted keys."""
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [pair for key in sorted(tree) for pair in _flatten(tree[key], (*path, key))]


def _map(tree: Tree, change, path: tuple[str, ...] = ()) -> Tree:
    if not isinstance(tree, dict):
        return change(path, tree)
    return {key: _map(tree[key], change, (*path, key)) for key in sorted(tree)}


def _network_leaves(params: Tree, gates: Tree) -> tuple[list[tuple[tuple[str, ...], np.ndarray]], list[int]]:
    """(the leaves to store, with closed weights at 0; the numbers of the gated leaves among them)."""
    for path, leaf in _flatten(params):
        if np.asarray(leaf).dtype != np.float32:
            raise UserError(f"{'/'.join(path)} is {np.asarray(leaf).dtype}; an artifact holds float32 weights only")
    leaves = _flatten(merge(params, gates))
    numbers = {path: i for i, (path, _) in enumerate(leaves)}
    return leaves, sorted(numbers[path] for path, _ in _flatten(gates))


# Writing -------------------------------------------------------------------------------------------------------------


def write(path, config: dict, params: Tree, gates: Tree, tokenizer: str | None = None) -> Report:
    """Writes the network to `path`, whole or not at all; a file that is there is replaced.

    Args:
      config: the run's resolved config, in JSON's types.
      params, gates: nested dicts of arrays, float32 and boolean; a weight under a closed gate is stored as 0.
      tokenizer: the text of a tokenizer.json.
    Raises:
      UserError: a leaf is not float32, the network is beyond the format's limits, or the file cannot be written.
      KeyError: a gate has no kernel at its path.
    """
    data, report = encode(config, params, gates, tokenizer)
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return report


def encode(config: dict, params: Tree, gates: Tree, tokenizer: str | None = None) -> tuple[bytes, Report]:
    """(the bytes of the file that `write` writes, what they are made of)."""
    leaves, gated = _network_leaves(params, gates)
    weights = sum(leaf.size for _, leaf in leaves)
    if weights > _MAX_WEIGHTS:
        raise UserError(f"the network has {weights:,} weights; an artifact holds at most {_MAX_WEIGHTS:,}")
    header = {
        "config": config,
        "gated": gated,
        "params": _map(params, lambda _, leaf: list(np.shape(leaf))),
    }
    plain = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    if len(plain) > _MAX_HEADER:
        raise UserError(f"the config and the names of the network are {len(plain):,} bytes; allowed: {_MAX_HEADER:,}")
    packed_header = _deflate(plain)
    packed_tokenizer = b"" if tokenizer is None else _pack_tokenizer(tokenizer)
    distinct = [codec.distinct_patterns(codec.bit_patterns(leaf), codec.MAX_CODEBOOK) for _, leaf in leaves]
    blobs = [codec.encode(leaf) for _, leaf in leaves]
    shared = _shared_codebook([patterns for patterns in distinct if patterns is not None])
    if len(shared):
        sharing = [codec.encode(leaf, shared) for _, leaf in leaves]
        if 4 * len(shared) + sum(map(len, sharing)) < sum(map(len, blobs)):
            blobs = sharing
        else:
            shared = shared[:0]
    body = b"".join(
        [
            codec.varint(len(packed_header)),
            packed_header,
            codec.varint(len(packed_tokenizer)),
            packed_tokenizer,
            codec.varint(len(shared)),
            shared.astype("<u4").tobytes(),
            *(codec.varint(len(blob)) for blob in blobs),
            *blobs,
        ]
    )
    body += bytes(max(0, -(-weights // _WEIGHTS_PER_BYTE) - _PREFIX - len(body)))
    data = MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body
    rows = []
    for i, ((path, leaf), patterns, blob) in enumerate(zip(leaves, distinct, blobs, strict=True)):
        values = None if patterns is None else len(patterns)
        entropy = _entropy(leaf, patterns) if i in gated and values is not None else None
        rows.append(Row("/".join(path), leaf.shape, int(np.count_nonzero(leaf)), values, entropy, len(blob)))
    return data, Report(rows, len(packed_header), len(packed_tokenizer), len(data))


def _shared_codebook(distinct: list[np.ndarray]) -> np.ndarray:
    """The bit patterns of all leaves, where one list of them may be shorter than one list per leaf; else none."""
    everything = np.concatenate([np.empty(0, np.uint32), *distinct])
    union = np.unique(everything)
    return union if len(union) <= min(_MAX_SHARED, 0.75 * len(everything)) else union[:0]


def _entropy(leaf: np.ndarray, distinct: np.ndarray) -> float:
    """The bytes of a leaf's weights, coded as independent draws from their own distribution."""
    if not leaf.size:
        return 0.0
    counts = np.bincount(np.searchsorted(distinct, codec.bit_patterns(leaf)), minlength=len(distinct))
    return float(counts @ np.log2(leaf.size / counts)) / 8


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return packer.compress(data) + packer.flush()


def _pack_tokenizer(text: str) -> bytes:
    """Packs a tokenizer.json, its vocabulary as a list in the order of ids, so that the ids need not be stored."""
    parsed, tokens = json.loads(text), None
    vocab = (parsed.get("model") or {}).get("vocab")
    if isinstance(vocab, dict) and sorted(vocab.values()) == list(range(len(vocab))):
        tokens = sorted(vocab, key=vocab.get)
        parsed["model"]["vocab"] = None
    plain = json.dumps([parsed, tokens], separators=(",", ":"), ensure_ascii=False).encode()
    if len(plain) > _MAX_TOKENIZER:
        raise UserError(f"the tokenizer is {len(plain):,} bytes; an artifact holds at most {_MAX_TOKENIZER:,}")
    return lzma.compress(plain, lzma.FORMAT_RAW, filters=_LZMA)


# Reading -------------------------------------------------------------------------------------------------------------


def read(path) -> Artifact:
    """Reads the network in the file `path`.

    Raises:
      UserError: the file is missing, is not an artifact, is damaged (cut short or altered), or of a newer format.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path} is not an artifact of this program (a {SUFFIX} file)")
    if len(data) < _PREFIX:
        raise UserError(f"{path} is damaged: it is cut short, at {len(data)} bytes")
    if data[3] > VERSION:
        raise UserError(
            f"{path} is of format version {data[3]}, newer than this program, which reads up to {VERSION}; update it"
        )
    body = data[_PREFIX:]
    if data[3] != VERSION or zlib.crc32(body) != int.from_bytes(data[4:_PREFIX], "little"):
        raise UserError(f"{path} is damaged: its checksum does not fit, so it was cut short or altered")
    try:
        return _decode(body)
    except CodecError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is damaged: its header is nested too deeply") from error


def _decode(body: bytes) -> Artifact:
    reader = codec.Reader(body)
    header = _json(_inflate(reader.take(reader.varint(len(body)))), "its header")
    if not isinstance(header, dict) or header.keys() != {"config", "gated", "params"}:
        raise CodecError("its header lacks a part")
    config, shapes, gated = header["config"], header["params"], header["gated"]
    if not isinstance(config, dict) or not isinstance(shapes, dict):
        raise CodecError("its header is not of a network")
    leaves = _flatten(shapes)
    weights = sum(_checked_size(shape) for _, shape in leaves)
    if weights > min(_MAX_WEIGHTS, _WEIGHTS_PER_BYTE * (len(body) + _PREFIX)):
        raise CodecError(f"its header declares {weights:,} weights, too many for a file of its length")
    numbers = range(len(leaves))
    if not isinstance(gated, list) or any(type(i) is not int or i not in numbers for i in gated):
        raise CodecError("its header numbers a kernel that is not there")
    tokenizer = _unpack_tokenizer(reader.take(reader.varint(len(body))))
    shared = np.frombuffer(reader.take(4 * reader.varint(_MAX_SHARED)), "<u4").astype(np.uint32)
    sizes = [reader.varint(len(body)) for _ in leaves]
    arrays = {}
    for (path, shape), size in zip(leaves, sizes, strict=True):
        arrays[path] = codec.decode(reader.take(size), tuple(shape), shared)
    if any(reader.rest()):
        raise CodecError("it goes on after its end")
    gates = _gates(arrays, {leaves[i][0] for i in gated})
    return Artifact(config, _map(shapes, lambda path, _: arrays[path]), gates, tokenizer)


def _gates(arrays: dict[tuple[str, ...], np.ndarray], gated: set[tuple[str, ...]]) -> Tree:
    gates: Tree = {}
    for path in sorted(gated):
        node = gates
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = (codec.bit_patterns(arrays[path]) != 0).reshape(arrays[path].shape)
    return gates


def _checked_size(shape) -> int:
    """The number of weights of a declared shape."""
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise CodecError("its header declares an impossible shape")
    if math.prod(max(n, 1) for n in shape) > _MAX_WEIGHTS:  # NumPy counts the other axes of an empty array, too
        raise CodecError("its header declares an impossible shape")
    return math.prod(shape)


def _inflate(data: bytes) -> bytes:
    try:
        unpacker = zlib.decompressobj(-15, DICTIONARY)
        plain = unpacker.decompress(data, _MAX_HEADER)
    except zlib.error as error:
        raise CodecError(f"its header cannot be unpacked ({error})") from error
    if not unpacker.eof or unpacker.unused_data:
        raise CodecError("its header is cut short or too long")
    return plain


def _unpack_tokenizer(data: bytes) -> str | None:
    if not data:
        return None
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
        plain = unpacker.decompress(data, _MAX_TOKENIZER)
    except lzma.LZMAError as error:
        raise CodecError(f"its tokenizer cannot be unpacked ({error})") from error
    if not unpacker.eof or unpacker.unused_data:
        raise CodecError("its tokenizer is cut short or too long")
    packed = _json(plain, "its tokenizer")
    if not isinstance(packed, list) or len(packed) != 2 or not isinstance(packed[0], dict):
        raise CodecError("its tokenizer is not one")
    parsed, tokens = packed
    if tokens is not None:
        model = parsed.get("model")
        if not isinstance(model, dict) or not isinstance(tokens, list) or any(type(t) is not str for t in tokens):
            raise CodecError("its tokenizer is not one")
        model["vocab"] = {token: i for i, token in enumerate(tokens)}
    return json.dumps(parsed, ensure_ascii=False)


def _json(data: bytes, what: str):
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"{what} cannot be parsed ({type(error).__name__})") from error


# The table -----------------------------------------------------------------------------------------------------------


def table(report: Report) -> list[str]:
    """The lines of a table: what each leaf takes in the file, the sums, and the compression rate."""
    titles = ("leaf", "shape", "non-zeros", "%", "values", "bits/weight", "entropy", "bytes", "share %")
    kernels = _sum("kernels", [row for row in report.rows if row.entropy is not None])
    total = _sum("total", report.rows)._replace(size=report.size)
    other = report.size - sum(row.size for row in report.rows) - report.tokenizer
    rows = [titles, *(_cells(row, report.size) for row in report.rows)]
    for name, size in (("header", other), ("tokenizer", report.tokenizer)):
        rows.append((name, *("",) * 6, f"{size:,}", f"{100 * size / report.size:.1f}"))
    rows += [_cells(row, report.size) for row in (kernels, total)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    lines = [
        "  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows
    ]
    dense = 4 * total.weights
    return [*lines, f"compression rate {report.rate:.2f}: {dense:,} bytes of float32 weights in {report.size:,} bytes"]


def _sum(name: str, rows: list[Row]) -> Row:
    weights = sum(row.weights for row in rows)
    known = [row.entropy for row in rows if row.entropy is not None]
    entropy = sum(known) if len(known) == len(rows) else None
    return Row(name, (weights,), sum(row.nonzeros for row in rows), None, entropy, sum(row.size for row in rows))


def _cells(row: Row, file_size: int) -> tuple[str, ...]:
    def per_weight(number):
        return "" if number is None or not row.weights else f"{8 * number / row.weights:.4f}"

    return (
        row.name,
        "x".join(f"{n:,}" for n in row.shape),
        f"{row.nonzeros:,}",
        f"{100 * row.nonzeros / max(row.weights, 1):.2f}",
        "" if row.values is None else f"{row.values:,}",
        per_weight(row.size),
        per_weight(row.entropy),
        f"{row.size:,}",
        f"{100 * row.size / file_size:.1f}",
    )

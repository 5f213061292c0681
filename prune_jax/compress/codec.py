"""Codes one float32 array as bytes, bit for bit: where its weights are, and what they are.

The array is read as a matrix: all axes but the last are its rows, the last axis is its columns. Where the weights are
is coded in one of three ways:
  ALL    every weight is stored, zeros included, for dense layers.
  GAPS   the number of zeros before each non-zero along the flattened array, as in Deep Compression (Han et al., 2016,
         arXiv:1510.00149). Long gaps have entropy coded buckets here, in place of fillers.
  MASK   one coded bit per weight. Rows and columns are sorted into classes by the power of two of their number of
         non-zeros. A bit's probability is the share of non-zeros in its cell, (row class, column class). So a dead
         neuron, input pixel or filter costs no more than its class. The classes may be of rows, of columns, of both or
         of none, and of powers of four; all are tried.
What the weights are is coded in one of three ways, too:
  CODES  a codebook of the distinct bit patterns, and the entropy coded index of each weight.
  SHARED the same with a codebook that all layers of the file share: soft weight-sharing has one mixture for all.
  RAW    the four bytes of the patterns, each byte by itself, entropy coded where that gains. It gains on exponents, and
         on the low bytes of numbers of less precision. Signs and mantissas are mostly stored as they are.
The smallest combination is stored. One rANS stream carries all of an array, so that one coder state is flushed.

A zero is the bit pattern of +0.0. -0.0, infinities, NaNs and denormals are values like any other.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from prune_jax.compress import rans
from prune_jax.compress.rans import PRECISION, TOTAL, CodecError

MAX_CODEBOOK = 4096  # entries; more distinct values than that are stored RAW
NO_CODEBOOK = np.empty(0, np.uint32)

_ALL, _GAPS, _MASK = range(3)
_CODES, _SHARED, _RAW = range(3)
_LEVELS = 3  # of classes, for rows and for columns: one class for all, powers of four, powers of two
_PLAIN_GAPS = 8  # smaller gaps have a bucket each, longer ones four buckets per octave
_MAX_BUCKETS = _PLAIN_GAPS + 4 * 29  # gaps below 2^32

# A frequency is stored in a byte, in 16 steps per octave below the greatest; 0 is a symbol that does not occur.
_WEIGHTS = np.concatenate([[0], np.rint(256 * 2.0 ** (np.arange(255) / 16))]).astype(np.int64)
# So is the probability of a mask's bit, in 9 steps per factor of two in the odds; 0 and 255 are certain zeros and ones.
_ODDS = np.arange(1, 255)
_CHANCES = np.concatenate([[0], np.clip(np.rint(TOTAL / (1 + 2.0 ** ((127.5 - _ODDS) / 9))), 1, TOTAL - 1), [TOTAL]])
_CHANCES = _CHANCES.astype(np.int64)


def bit_patterns(array: np.ndarray) -> np.ndarray:
    """The float32 array flattened, as uint32."""
    return np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)


def distinct_patterns(patterns: np.ndarray, most: int) -> np.ndarray | None:
    """The distinct values of (n,) uint32 bit patterns, increasing; None where there are more than `most`."""
    for part in (patterns[: 16 * most], patterns):  # a dense array of floats gives itself away at once
        ordered = np.sort(part)
        distinct = ordered[np.diff(ordered, prepend=ordered[:1] ^ 1) != 0]
        if len(distinct) > most:
            return None
    return distinct


# Bytes ---------------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """A number of 0 or more in seven bits per byte, the lowest first (LEB128)."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class Reader:
    """Reads bytes from front to back. Its methods raise CodecError where the bytes end early."""

    def __init__(self, data: bytes):
        self._data, self._position = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._position:
            raise CodecError("its bytes end early")
        self._position += count
        return self._data[self._position - count : self._position]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._position)

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int) -> int:
        """Reads a varint. CodecError if it exceeds `most`."""
        number, shift = 0, 0
        while shift <= 63:
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                if number > most:
                    raise CodecError(f"a size is {number}, where {most} is the most possible")
                return number
            shift += 7
        raise CodecError("a size has no end")


# Parts of a stream ---------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A part of a coded array.

    The size is known from counts alone. Segments are made only for the parts that are stored.

    Attributes:
      head: the bytes that are stored as they are.
      segments: functions without arguments; each returns a segment for rans.encode.
      size: the bytes of the head and of the coded segments together.
    """

    head: bytes
    segments: tuple
    size: float

    def __add__(self, other: "_Part") -> "_Part":
        return _Part(self.head + other.head, self.segments + other.segments, self.size + other.size)


def _frequencies(table: np.ndarray) -> np.ndarray:
    """(k,) int64 that sum to TOTAL, from the bytes of a table. In integers, so that every machine gets the same."""
    weights = _WEIGHTS[table]
    present = weights > 0
    spare = TOTAL - int(np.count_nonzero(present))
    if spare < 0 or not present.any():
        raise CodecError("a table of frequencies is impossible")
    frequencies = present + weights * spare // int(weights.sum())
    frequencies[np.argmax(weights)] += TOTAL - int(frequencies.sum())
    return frequencies


def _table(counts: np.ndarray) -> np.ndarray:
    """(k,) uint8: the bytes that stand for these counts, of which at least one is not 0."""
    steps = np.rint(16 * np.log2(np.maximum(counts, 1) / counts.max())) + 255
    return np.where(counts > 0, np.clip(steps, 1, 255), 0).astype(np.uint8)


def _coded(symbols: np.ndarray, size: int) -> _Part:
    """A part of symbols of one distribution: a table of `size` bytes, then the symbols, which are below `size`."""
    counts = np.bincount(symbols, minlength=size)
    if size <= 1 or not len(symbols):
        return _Part(b"", (), 0)
    table = _table(counts)
    frequencies = _frequencies(table)
    used = counts > 0
    bits = float(np.sum(counts[used] * np.log2(TOTAL / frequencies[used])))
    starts = np.cumsum(frequencies) - frequencies

    def segment():
        return starts.astype(np.uint16)[symbols], frequencies.astype(np.uint16)[symbols]

    return _Part(table.tobytes(), (segment,), size + bits / 8)


class _Symbols:
    """Reads what _coded wrote: the table when it is made, the symbols when `decode` asks for them."""

    def __init__(self, reader: Reader, size: int, count: int):
        self._count, self._frequencies = count, None
        if size > 1 and count:
            self._frequencies = _frequencies(np.frombuffer(reader.take(size), np.uint8))

    def decode(self, decoder: rans.Decoder) -> np.ndarray:
        if self._frequencies is None:
            return np.zeros(self._count, np.uint16)
        return decoder.symbols(self._count, self._frequencies)


# Where: gaps ---------------------------------------------------------------------------------------------------------


def _bucket_sizes(buckets: np.ndarray) -> np.ndarray:
    """The number of low bits that distinguish the gaps of each bucket."""
    return np.where(buckets < _PLAIN_GAPS, 0, (buckets.astype(np.int64) - _PLAIN_GAPS) // 4 + 1)


def _bucket_starts(buckets: np.ndarray) -> np.ndarray:
    long = buckets.astype(np.int64) - _PLAIN_GAPS
    return np.where(long < 0, buckets, (4 + long % 4) << np.maximum(long // 4 + 1, 0))


def _low_bits(widths: np.ndarray):
    """The runs of at most PRECISION bits in which low bits are coded: (shift, members, widths of the members)."""
    for shift in range(0, 42, PRECISION):
        members = np.flatnonzero(widths > shift)
        if len(members):
            yield shift, members, np.minimum(widths[members] - shift, PRECISION)


def _encode_gaps(positions: np.ndarray) -> _Part:
    gaps = np.diff(positions, prepend=-1) - 1
    octave = np.frexp(np.maximum(gaps, 1).astype(np.float64))[1].astype(np.int64) - 1
    width = np.maximum(octave - 2, 0)
    buckets = np.where(gaps < _PLAIN_GAPS, gaps, _PLAIN_GAPS + (octave - 3) * 4 + (gaps >> width & 3))
    size = int(buckets.max()) + 1 if len(buckets) else 0
    part = _Part(bytes([size]), (), 1) + _coded(buckets, size)
    low = gaps - _bucket_starts(buckets)
    for shift, members, widths in _low_bits(_bucket_sizes(buckets)):
        frequency = 1 << (PRECISION - widths)
        segment = (low[members] >> shift & (1 << widths) - 1) * frequency, frequency
        part += _Part(b"", (functools.partial(tuple, segment),), float(widths.sum()) / 8)
    return part


def _read_gaps(reader: Reader, shape: tuple[int, ...], count: int):
    """decoder -> (count,) positions."""
    size = math.prod(shape)
    buckets = reader.byte()
    if buckets > _MAX_BUCKETS:
        raise CodecError(f"there are {buckets} sizes of gaps, where {_MAX_BUCKETS} is the most possible")
    symbols = _Symbols(reader, buckets, count)

    def positions(decoder: rans.Decoder) -> np.ndarray:
        buckets = symbols.decode(decoder)
        gaps = _bucket_starts(buckets)
        for shift, members, widths in _low_bits(_bucket_sizes(buckets)):
            gaps[members] += decoder.uniform(widths).astype(np.int64) << shift
        places = np.cumsum(gaps + 1) - 1
        if places.max(initial=-1) >= size:
            raise CodecError("a gap leads out of the array")
        return places

    return positions


# Where: a mask -------------------------------------------------------------------------------------------------------


def _classes(counts: np.ndarray, level: int) -> np.ndarray:
    """(n,) the class of each row or column by its number of non-zeros. Class 0 has none, unless there is one class."""
    octaves = np.frexp(counts.astype(np.float64))[1].astype(np.int64)
    return (np.zeros_like(octaves), (octaves + 1) // 2, octaves)[level]


def _encode_mask(positions: np.ndarray, rows: int, columns: int) -> _Part:
    row_of, column_of = np.divmod(positions, columns)
    counts = np.bincount(row_of, minlength=rows), np.bincount(column_of, minlength=columns)
    best = None
    for levels in np.ndindex(_LEVELS, _LEVELS):
        row_class, column_class = (_classes(n, level) for n, level in zip(counts, levels, strict=True))
        shape = int(row_class.max(initial=0)) + 1, int(column_class.max(initial=0)) + 1
        cells = np.bincount(row_class[row_of] * shape[1] + column_class[column_of], minlength=shape[0] * shape[1])
        area = np.outer(np.bincount(row_class, minlength=shape[0]), np.bincount(column_class, minlength=shape[1]))
        cells, area = cells.reshape(shape), area.reshape(shape)
        table = np.zeros(shape, np.uint8)
        mixed = (cells > 0) & (cells < area)
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = np.rint(127.5 + 9 * np.log2(cells / (area - cells)))
        table[mixed] = np.clip(odds[mixed], 1, 254)
        table[(cells == area) & (area > 0)] = 255
        chance = _CHANCES[table[mixed]]
        ones, zeros = cells[mixed], (area - cells)[mixed]
        bits = float(np.sum(ones * np.log2(TOTAL / chance) + zeros * np.log2(TOTAL / (TOTAL - chance))))
        part = _Part(bytes([levels[0] * _LEVELS + levels[1]]), (), 1 + bits / 8)
        for level, classes, number in zip(levels, (row_class, column_class), shape, strict=True):
            if level:
                part += _Part(bytes([number]), (), 1) + _coded(classes, number)
        stored = table[int(levels[0] > 0) :, int(levels[1] > 0) :].tobytes()
        part += _Part(stored, (), len(stored))
        if best is None or part.size < best[0].size:
            best = part, table, row_class, column_class
    part, table, row_class, column_class = best

    def segment():
        chances, live = _chances(table, row_class, column_class)
        ones = np.zeros(len(live), bool)
        ones[positions] = True
        ones, chances = ones[live], chances[live]
        return np.where(ones, 0, chances), np.where(ones, chances, TOTAL - chances)

    return part._replace(segments=(*part.segments, segment))


def _chances(table, row_class, column_class) -> tuple[np.ndarray, np.ndarray]:
    """(the chance of a non-zero in units of 1 / TOTAL, whether it leaves a bit to code): (rows * columns,) each."""
    chances = _CHANCES[table].astype(np.uint16)[:, column_class][row_class].reshape(-1)
    return chances, (chances > 0) & (chances < TOTAL)


def _read_mask(reader: Reader, shape: tuple[int, ...], count: int):
    """decoder -> (count,) positions."""
    rows, columns = _matrix(shape)
    levels = divmod(reader.byte(), _LEVELS)
    if levels[0] >= _LEVELS:
        raise CodecError("a mask has classes of an unknown kind")
    numbers, symbols = [], []
    for level, length in zip(levels, (rows, columns), strict=True):
        number = reader.byte() if level else 1
        if not 1 <= number <= 64:
            raise CodecError("a mask has an impossible number of classes")
        numbers.append(number)
        symbols.append(_Symbols(reader, number, length))
    table = np.zeros(numbers, np.uint8)
    stored = table[int(levels[0] > 0) :, int(levels[1] > 0) :]
    stored[:] = np.frombuffer(reader.take(stored.size), np.uint8).reshape(stored.shape)

    def positions(decoder: rans.Decoder) -> np.ndarray:
        row_class, column_class = (s.decode(decoder) for s in symbols)
        chances, live = _chances(table, row_class, column_class)
        ones = chances == TOTAL
        ones[live] = decoder.bits(chances[live])
        places = np.flatnonzero(ones)
        if len(places) != count:
            raise CodecError("a mask has another number of non-zeros than declared")
        return places

    return positions


def _matrix(shape) -> tuple[int, int]:
    """(rows, columns) of the matrix that an array of this shape is read as."""
    columns = shape[-1] if shape else 1
    return math.prod(shape) // columns if columns else 0, columns


# What ----------------------------------------------------------------------------------------------------------------


def _encode_values(values: np.ndarray, shared: np.ndarray) -> tuple[int, _Part]:
    """(kind, part) of the shortest way to store (n,) uint32 bit patterns."""
    distinct, options = distinct_patterns(values, MAX_CODEBOOK), []
    if distinct is not None:
        head = varint(len(distinct)) + distinct.astype("<u4").tobytes()
        codes = np.searchsorted(distinct, values)
        options.append((_CODES, _Part(head, (), len(head)) + _coded(codes, len(distinct))))
        if len(shared) and np.isin(distinct, shared).all():
            options.append((_SHARED, _coded(np.searchsorted(shared, values), len(shared))))
    if not options or min(part.size for _, part in options) > 3 * len(values):
        options.append((_RAW, _encode_raw(values)))
    return min(options, key=lambda option: option[1].size)


def _planes(values: np.ndarray) -> np.ndarray:
    """(4, n) uint8: the bytes of the patterns rotated left by one bit, from the lowest to the exponent."""
    return (values << 1 | values >> 31).astype("<u4").view(np.uint8).reshape(-1, 4).T


def _encode_raw(values: np.ndarray) -> _Part:
    part = _Part(b"", (), 0)
    for plane in _planes(values):
        present = np.flatnonzero(np.bincount(plane, minlength=256))
        coded = _Part(bytes([len(present) & 255]) + bytes(present.tolist()), (), 1 + len(present))
        coded += _coded(np.searchsorted(present, plane), len(present))
        stored = _Part(b"\0" + plane.tobytes(), (), 1 + len(plane))
        part += coded if coded.size < stored.size and len(present) < 256 else stored
    return part


class _Plane:
    """One of the byte planes that _encode_raw wrote."""

    def __init__(self, reader: Reader, count: int):
        number, self._symbols = reader.byte(), None
        if number:
            self._present = np.frombuffer(reader.take(number), np.uint8)
            self._symbols = _Symbols(reader, number, count)
        else:
            self._stored = np.frombuffer(reader.take(count), np.uint8)

    def decode(self, decoder: rans.Decoder) -> np.ndarray:
        return self._stored if self._symbols is None else self._present[self._symbols.decode(decoder)]


def _read_raw(reader: Reader, count: int):
    """decoder -> (count,) uint32 bit patterns."""
    planes = [_Plane(reader, count) for _ in range(4)]

    def values(decoder: rans.Decoder) -> np.ndarray:
        bytes_ = np.ascontiguousarray(np.stack([plane.decode(decoder) for plane in planes], axis=1))
        turned = bytes_.view("<u4").reshape(-1).astype(np.uint32)
        return turned >> 1 | turned << 31

    return values


def _read_codes(reader: Reader, count: int, codebook: np.ndarray):
    """decoder -> (count,) uint32 bit patterns out of the codebook."""
    if count and not len(codebook):
        raise CodecError("a codebook is empty")
    symbols = _Symbols(reader, len(codebook), count)

    def values(decoder: rans.Decoder) -> np.ndarray:
        codes = symbols.decode(decoder)
        return codebook[codes] if len(codes) else np.empty(0, np.uint32)

    return values


# Both ----------------------------------------------------------------------------------------------------------------


def encode(array: np.ndarray, shared: np.ndarray = NO_CODEBOOK) -> bytes:
    """Codes an array. The bytes hold neither its shape nor the shared codebook.

    Args:
      array: float32, of any shape.
      shared: (k,) uint32, increasing: a codebook of bit patterns that the array may refer to.
    """
    shape, patterns = np.shape(array), bit_patterns(array)
    kind, best = _encode_values(patterns, shared)
    mode, positions = _ALL, np.flatnonzero(patterns)
    if len(positions) < len(patterns):
        value_kind, values = _encode_values(patterns[positions], shared)
        count = varint(len(positions))
        for option, part in ((_GAPS, _encode_gaps(positions)), (_MASK, _encode_mask(positions, *_matrix(shape)))):
            part = _Part(count, (), len(count)) + part + values
            if part.size < best.size:
                kind, best, mode = value_kind, part, option
    head = bytes([mode * 3 + kind]) + best.head
    segments = [make() for make in best.segments]
    num_symbols = sum(len(starts) for starts, _ in segments)
    if not num_symbols:
        return head
    lanes = rans.lanes_for(num_symbols, best.size - len(best.head))
    return head + varint(lanes) + rans.encode(segments, lanes)


def decode(data: bytes, shape: tuple[int, ...], shared: np.ndarray = NO_CODEBOOK) -> np.ndarray:
    """Decodes the float32 array that `encode` was given.

    It takes a few times the memory of the array, whatever the data holds. The caller vouches for the shape.

    Raises:
      CodecError: the data is not of an array of this shape.
    """
    size, reader = math.prod(shape), Reader(data)
    mode, kind = divmod(reader.byte(), 3)
    if mode > _MASK:
        raise CodecError("an array is stored in an unknown way")
    count, positions = size, None
    if mode != _ALL:
        if not size:
            raise CodecError("an empty array has positions")  # its other axes may be of any length
        count = reader.varint(size)
        positions = (_read_gaps if mode == _GAPS else _read_mask)(reader, shape, count)
    if kind == _RAW:
        values = _read_raw(reader, count)
    else:
        codebook = shared
        if kind == _CODES:
            entries = reader.varint(MAX_CODEBOOK)
            codebook = np.frombuffer(reader.take(4 * entries), "<u4").astype(np.uint32)
        values = _read_codes(reader, count, codebook)
    stream = reader.rest()
    if stream:
        reader = Reader(stream)
        lanes = reader.varint(rans.MAX_LANES)
        decoder = rans.Decoder(reader.rest(), lanes)
    else:
        decoder = rans.Decoder(rans.encode([], 1), 1)
    patterns = np.zeros(size, np.uint32)
    where = slice(None) if positions is None else positions(decoder)
    patterns[where] = values(decoder)
    decoder.finish()
    return patterns.view(np.float32).reshape(shape)

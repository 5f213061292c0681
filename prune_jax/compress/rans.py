"""Range asymmetric numeral systems (Duda, 2013, arXiv:1311.2540) in NumPy: the entropy coder of everything here.

Symbols are dealt to `lanes` states in turn (symbol i to lane i mod lanes), and a step codes one symbol of each lane at
once. Every symbol may have its own distribution, as long as the decoder knows it before it comes to the symbol. A state
is in [2^16, 2^32) between steps and moves 16-bit words, at most one a symbol; a lane costs about two bytes beyond the
entropy. With one lane, plain Python integers are faster than arrays of one element.

Distributions are in units of 2^-PRECISION: a symbol has the slots [start, start + frequency) of 2^PRECISION.
"""

from collections.abc import Callable

import numpy as np

PRECISION = 14
TOTAL = 1 << PRECISION
_LOW = 1 << 16  # the least state
_EMIT = 32 - PRECISION  # a state of at least frequency << _EMIT would leave the range: its low word goes out first
MAX_LANES = 1 << 14
_FEWEST_LANES = 16  # with fewer, arrays are slower than one lane of integers
_LANE_SYMBOLS = 1 << 18  # at most this many symbols a lane, so that a file cannot ask for hours of decoding


class CodecError(ValueError):
    """Bytes that no encoder wrote."""


def lanes_for(num_symbols: int, num_bytes: float) -> int:
    """One lane for little, else one a KiB, so that lanes cost about 0.3%, but enough for arrays to be worth while.

    Args:
      num_bytes: what the symbols will take.
    """
    if num_symbols <= _LANE_SYMBOLS and num_bytes < 16384:
        return 1
    return min(max(_FEWEST_LANES, int(num_bytes) >> 10, 2 * num_symbols // _LANE_SYMBOLS), MAX_LANES)


def encode(segments: list[tuple[np.ndarray, np.ndarray]], lanes: int) -> bytes:
    """The states (4 bytes each) and the words of all symbols; each segment starts with lane 0.

    Args:
      segments: (starts, frequencies) pairs of (n,) integer arrays, in the order in which they will be decoded.
    """
    if lanes == 1:
        states, words = _encode_scalar(segments)
    else:
        states, words = _encode_lanes(segments, lanes)
    return np.asarray(states, "<u4").tobytes() + words.tobytes()


def _encode_scalar(segments):
    state, words = _LOW, []
    for starts, frequencies in reversed(segments):
        for start, frequency in zip(reversed(starts.tolist()), reversed(frequencies.tolist()), strict=True):
            if state >= frequency << _EMIT:
                words.append(state & 0xFFFF)
                state >>= 16
            quotient, rest = divmod(state, frequency)
            state = (quotient << PRECISION) + rest + start
    return [state], np.array(words[::-1], "<u2")


def _encode_lanes(segments, lanes):
    states, words = np.full(lanes, _LOW, np.int64), []
    for starts, frequencies in reversed(segments):
        for at in reversed(range(0, len(starts), lanes)):
            frequency = frequencies[at : at + lanes].astype(np.int64)
            state = states[: len(frequency)]
            full = np.flatnonzero(state >= frequency << _EMIT)
            words.append((state[full] & 0xFFFF).astype("<u2"))
            state[full] >>= 16
            quotient, rest = np.divmod(state, frequency)
            state[:] = (quotient << PRECISION) + rest + starts[at : at + lanes]
    return states, np.concatenate([*reversed(words), np.empty(0, "<u2")])


class Decoder:
    """Reads back, segment by segment, what encode wrote.

    Raises:
      CodecError: data ends early, or (in finish) holds something else than these segments.
    """

    def __init__(self, data: bytes, lanes: int):
        if not 1 <= lanes <= MAX_LANES or len(data) < 4 * lanes or len(data) % 2:
            raise CodecError(f"{len(data)} bytes cannot hold {lanes} coder states")
        self._lanes = lanes
        self._budget = lanes * _LANE_SYMBOLS
        self._states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
        self._words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.int64)
        self._position = 0

    def symbols(self, count: int, frequencies: np.ndarray) -> np.ndarray:
        """(count,) uint16 symbols of one distribution, whose frequencies sum to TOTAL."""
        starts = np.cumsum(frequencies) - frequencies
        table = np.repeat(np.arange(len(frequencies)), frequencies)
        table, starts, frequencies = self._own(table, starts, frequencies)

        def lookup(slot, _):
            symbol = table[slot]
            return symbol, starts[symbol], frequencies[symbol]

        return self._run(count, lookup, np.uint16)

    def bits(self, ones: np.ndarray) -> np.ndarray:
        """(n,) bool, bit i true with frequency ones[i], from 1 to TOTAL - 1."""
        (own,) = self._own(ones)

        def lookup(slot, index):
            one = own[index]
            zero = (slot >= one) * 1
            return 1 - zero, zero * one, one + zero * (TOTAL - 2 * one)

        return self._run(len(ones), lookup, np.bool_)

    def uniform(self, widths: np.ndarray) -> np.ndarray:
        """(n,) uint16 numbers of widths[i] <= PRECISION bits each, all values alike."""
        (shifts,) = self._own(PRECISION - widths)

        def lookup(slot, index):
            shift = shifts[index]
            symbol = slot >> shift
            return symbol, symbol << shift, 1 << shift

        return self._run(len(widths), lookup, np.uint16)

    def finish(self) -> None:
        """Raises CodecError unless every word is read and every state is where the encoder began."""
        if self._position != len(self._words) or (self._states != _LOW).any():
            raise CodecError("the coded symbols do not end where they should")

    def _own(self, *arrays):
        return [array.tolist() if self._lanes == 1 else array.astype(np.int64) for array in arrays]

    def _run(self, count: int, lookup: Callable, dtype) -> np.ndarray:
        self._budget -= count
        if self._budget < 0:
            raise CodecError(f"{count} symbols are more than {self._lanes} lanes may hold")
        return (self._run_scalar if self._lanes == 1 else self._run_lanes)(count, lookup, dtype)

    def _run_scalar(self, count, lookup, dtype):
        state, words = int(self._states[0]), iter(self._words[self._position :].tolist())
        symbols, used, mask = [], 0, TOTAL - 1
        try:
            for i in range(count):
                slot = state & mask
                symbol, start, frequency = lookup(slot, i)
                state = frequency * (state >> PRECISION) + slot - start
                if state < _LOW:
                    state = state << 16 | next(words)
                    used += 1
                symbols.append(symbol)
        except StopIteration:
            raise CodecError("the coded symbols end early") from None
        self._states[0] = state
        self._position += used
        return np.array(symbols, dtype)

    def _run_lanes(self, count, lookup, dtype):
        found, lanes, words, position = np.empty(count, dtype), self._lanes, self._words, self._position
        for at in range(0, count, lanes):
            index = slice(at, min(at + lanes, count))
            state = self._states[: index.stop - at]
            slot = state & (TOTAL - 1)
            symbol, start, frequency = lookup(slot, index)
            found[index] = symbol
            state >>= PRECISION
            state *= frequency
            state += slot
            state -= start
            low = np.flatnonzero(state < _LOW)
            end = position + len(low)
            if end > len(words):
                raise CodecError("the coded symbols end early")
            state[low] = state[low] << 16 | words[position:end]
            position = end
        self._position = position
        return found

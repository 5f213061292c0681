"""An entropy coder in NumPy: range asymmetric numeral systems (rANS; Duda, 2013, arXiv:1311.2540).

The coder has several states, called lanes. Symbol i belongs to lane i mod lanes, and one step codes one symbol in every
lane. Every symbol may have a distribution of its own, which the decoder must know before it reaches the symbol.

Between steps a state lies in [2^16, 2^32). It emits and takes words of 16 bits, at most one per symbol. A lane costs
about two bytes more than the entropy. A single lane is coded with plain Python integers, which are faster than arrays
of one element.

Probabilities are multiples of 2^-PRECISION. A symbol of probability frequency / 2^PRECISION has the slots [start, start
+ frequency) of 2^PRECISION.
"""

from collections.abc import Callable

import numpy as np

PRECISION = 14
TOTAL = 1 << PRECISION
_LOW = 1 << 16  # the least state
_EMIT = 32 - PRECISION  # a state of frequency << _EMIT or more emits its low word first: else it would leave the range
MAX_LANES = 1 << 14
_FEWEST_LANES = 16  # fewer lanes in arrays are slower than one lane of integers
_LANE_SYMBOLS = 1 << 18  # the most symbols per lane, so that a forged file cannot ask for hours of decoding


class CodecError(ValueError):
    """The bytes are not what an encoder writes."""


def lanes_for(num_symbols: int, num_bytes: float) -> int:
    """The number of lanes for a stream: one for a short stream, about one per KiB for others.

    So lanes cost about 0.3 percent of a long stream, and there are enough of them for arrays to be worth while.

    Args:
      num_symbols: the number of symbols in the stream.
      num_bytes: the length of the coded stream, known beforehand from the entropy.
    """
    if num_symbols <= _LANE_SYMBOLS and num_bytes < 16384:
        return 1
    return min(max(_FEWEST_LANES, int(num_bytes) >> 10, 2 * num_symbols // _LANE_SYMBOLS), MAX_LANES)


def encode(segments: list[tuple[np.ndarray, np.ndarray]], lanes: int) -> bytes:
    """Codes segments of symbols; each segment begins at lane 0.

    Args:
      segments: (starts, frequencies) pairs of (n,) integer arrays, the slots of n symbols, in the order in which a
        decoder will ask for them.
      lanes: the number of states.
    Returns:
      The states, 4 bytes each, then the words, 2 bytes each.
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
    """Decodes what `encode` wrote, segment by segment.

    Every method raises CodecError where the data ends early or asks for more symbols than its lanes may hold.
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
        """Decodes a segment of one distribution.

        Args:
          count: the number of symbols.
          frequencies: (k,) integers that sum to TOTAL; symbol s has frequency frequencies[s].
        Returns:
          (count,) uint16 symbols, 0 to k - 1.
        """
        starts = np.cumsum(frequencies) - frequencies
        table = np.repeat(np.arange(len(frequencies)), frequencies)
        table, starts, frequencies = self._own(table, starts, frequencies)

        def lookup(slot, _):
            symbol = table[slot]
            return symbol, starts[symbol], frequencies[symbol]

        return self._run(count, lookup, np.uint16)

    def bits(self, ones: np.ndarray) -> np.ndarray:
        """Decodes a segment of bits.

        Args:
          ones: (n,) integers from 1 to TOTAL - 1; bit i is 1 with frequency ones[i].
        Returns:
          (n,) bool.
        """
        (own,) = self._own(ones)

        def lookup(slot, index):
            one = own[index]
            zero = (slot >= one) * 1
            return 1 - zero, zero * one, one + zero * (TOTAL - 2 * one)

        return self._run(len(ones), lookup, np.bool_)

    def uniform(self, widths: np.ndarray) -> np.ndarray:
        """Decodes a segment of numbers whose values are all equally likely.

        Args:
          widths: (n,) integers up to PRECISION; number i has widths[i] bits.
        Returns:
          (n,) uint16.
        """
        (shifts,) = self._own(PRECISION - widths)

        def lookup(slot, index):
            shift = shifts[index]
            symbol = slot >> shift
            return symbol, symbol << shift, 1 << shift

        return self._run(len(widths), lookup, np.uint16)

    def finish(self) -> None:
        """Checks that every word has been read and that every state is where the encoder began.

        Raises:
          CodecError: it is not so; the data is not of these segments.
        """
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
        decoded, lanes, words, position = np.empty(count, dtype), self._lanes, self._words, self._position
        for at in range(0, count, lanes):
            index = slice(at, min(at + lanes, count))
            state = self._states[: index.stop - at]
            slot = state & (TOTAL - 1)
            symbol, start, frequency = lookup(slot, index)
            decoded[index] = symbol
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
        return decoded

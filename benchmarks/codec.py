"""Bytes and MB/s of the artifact's array codec beside others, on pruned and quantised layers.

    python -m benchmarks.codec [--layers=lenet_300_100,ffn] [--sparsities=0.5,0.9,0.98] [--entries=4,16,32]

MB are of float32 weights. Non-zeros are independent, or (rows) of a density that varies between rows and columns as in
trained networks. `entropy` is the bytes of the weights as independent draws from their own distribution, without any
codebook; `deep_compression` is the size alone of Han et al. (2016): gaps of 8 bits with fillers, gaps and codes by one
Huffman code each. The general compressors get one byte a weight, the code, and are not charged for the codebook.
"""

import argparse
import heapq
import lzma
import time
import zlib

import numpy as np

from benchmarks import harness
from prune_jax.compress import codec

LAYERS = {"lenet_300_100": (784, 300), "ffn": (384, 1536)}


def make_layer(shape, sparsity: float, entries: int, rows: bool, seed: int = 0) -> np.ndarray:
    """A layer of `entries` values, 0 among them, the others drawn as often as a normal density says."""
    rng = np.random.default_rng(seed)
    book = np.sort(rng.normal(size=entries - 1)).astype(np.float32)
    weight = np.exp(-(book**2))
    density = np.full(shape, 1 - sparsity)
    if rows:
        density *= rng.gamma(0.7, 1 / 0.7, (shape[0], 1)) * rng.gamma(0.7, 1 / 0.7, (1, shape[1]))
    values = book[rng.choice(len(book), shape, p=weight / weight.sum())]
    return np.where(rng.random(shape) < density, values, 0).astype(np.float32)


def huffman_bytes(symbols: np.ndarray) -> float:
    """The bytes of the symbols in a Huffman code of their own, with a byte of code length a symbol."""
    counts = np.unique_counts(symbols).counts.tolist()
    heap, bits = list(counts), len(symbols) if len(counts) == 1 else 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits / 8 + len(counts)


def deep_compression_bytes(codes: np.ndarray, entries: int) -> int:
    positions = np.flatnonzero(codes)
    gaps = np.diff(positions, prepend=-1) - 1
    fillers = gaps // 256
    stored_gaps = np.concatenate([gaps % 256, np.full(fillers.sum(), 255)])
    stored_codes = np.concatenate([codes[positions], np.zeros(fillers.sum(), codes.dtype)])
    return int(huffman_bytes(stored_gaps) + huffman_bytes(stored_codes)) + 4 * entries


def coders() -> dict:
    found = {
        "zlib -9": (lambda data: zlib.compress(data, 9), zlib.decompress),
        "lzma -9": (lambda data: lzma.compress(data, preset=9), lzma.decompress),
    }
    try:
        import zstandard
    except ImportError:
        return found
    found["zstandard -19"] = zstandard.ZstdCompressor(19).compress, zstandard.ZstdDecompressor().decompress
    return found


def timed(run):
    """(result, seconds of processor time, the best of three): one thread works, whoever else is on the machine."""
    best = np.inf
    for _ in range(3):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return result, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--sparsities", default="0.5,0.9,0.98")
    parser.add_argument("--entries", default="4,16,32")
    args = parser.parse_args()
    for name in args.layers.split(","):
        for sparsity in map(float, args.sparsities.split(",")):
            for entries in map(int, args.entries.split(",")):
                for rows in (False, True):
                    compare(name, sparsity, entries, rows)


def compare(name: str, sparsity: float, entries: int, rows: bool) -> None:
    array = make_layer(LAYERS[name], sparsity, entries, rows)
    distinct = np.unique(codec.bit_patterns(array))
    codes = np.searchsorted(distinct, codec.bit_patterns(array)).astype(np.uint8)  # 0.0 is the least pattern
    counts = np.bincount(codes)
    entropy = float(counts @ np.log2(array.size / counts)) / 8
    megabytes = array.nbytes / 1e6

    def line(coder, size, encode=None, decode=None):
        speeds = (
            {}
            if encode is None
            else {"encode_mb_s": megabytes / max(encode, 1e-6), "decode_mb_s": megabytes / max(decode, 1e-6)}
        )
        harness.report(
            benchmark="codec", layer=name, sparsity=sparsity, entries=entries, rows=rows, coder=coder, bytes=size,
            bits_per_weight=8 * size / array.size, entropy=entropy, **speeds,
        )  # fmt: skip

    data, encode = timed(lambda: codec.encode(array))
    _, decode = timed(lambda: codec.decode(data, array.shape))
    line("pjx", len(data), encode, decode)
    line("deep_compression", deep_compression_bytes(codes, entries))
    for coder, (pack, unpack) in coders().items():
        packed, encode = timed(lambda pack=pack: pack(codes.tobytes()))
        _, decode = timed(lambda unpack=unpack, packed=packed: unpack(packed))
        line(coder, len(packed), encode, decode)


if __name__ == "__main__":
    main()

"""Exact selection inside jit: the k lowest scores of each set, ties at random, without sorting.

The scores of a set are ranked by an unsigned integer that orders as they do. A reading of the scores counts how many
lie below each of 15 marks, which leaves a sixteenth of the range: eight readings fix all 32 bits, whatever the number
of scores. Where a set is large, a sorted sample of it says where to count first, and fewer readings are left. Counts
are sums, so that on several devices only they and the sample travel, never the scores.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from prune_jax.pruning.random_bits import hashed_bits

_BITS = 4  # fixed at a time: two would read the scores 16 times, eight would count 255 marks
_MARKS = (1 << _BITS) - 1
_SAMPLE = 1 << 14  # scores of a set that are sorted to guess its threshold
_SAMPLED = 1 << 20  # scores: a smaller set is read sooner than a sample of it is sorted
_DEVIATIONS = 4.0  # of a guess, on both sides
_OUT = 2**32 - 1  # the rank of what cannot be chosen: behind all that can
_DIGITS = 10**7  # of a target: what a float32 holds


def rank(scores: jax.Array) -> jax.Array:
    """Ranks as uint32, of the scores' shape: ordered as the scores are, -0.0 equal to 0.0, NaN last."""
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    # Not scores + 0.0: arithmetic on a CPU takes numbers below 1.2e-38 for 0.
    bits = jnp.where(bits == jnp.int32(-(2**31)), 0, bits)
    ordered = jax.lax.bitcast_convert_type(jnp.where(bits < 0, ~bits, bits ^ jnp.int32(-(2**31))), jnp.uint32)
    return jnp.where(jnp.isnan(scores), jnp.uint32(_OUT - 1), ordered)


def portion(target: jax.Array | float, size: int) -> jax.Array:
    """round(target * size) as () uint32, a half to the even side: exact for sizes below 2^32.

    A product in float32 would be off by several gates from 2^24 on. `target`, from 0 to 1, is read to seven digits,
    which is what a float32 holds, and multiplied as an integer, two decimal digits of `size` at a time.

    Raises:
      ValueError: more gates than a uint32 counts.
    """
    if size > _OUT:
        raise ValueError(f"a set has {size} gates; allowed: at most {_OUT}, such as with the local scope")
    units = _ten_millionths(jnp.asarray(target, jnp.float32))
    whole = rest = jnp.uint32(0)
    pairs = f"{size:010d}"
    for i in range(0, 10, 2):
        rest = rest * 100 + units * int(pairs[i : i + 2])
        whole = whole * 100 + rest // _DIGITS
        rest = rest % _DIGITS
    half = rest * 2
    return whole + ((half > _DIGITS) | ((half == _DIGITS) & (whole % 2 == 1)))


def _ten_millionths(target: jax.Array) -> jax.Array:
    """() uint32: the seven decimal digits that a float32 from 0 to 1 stands for, every one of them.

    The product with 10^7 = 5^7 * 2^7 is taken in integers, since in float32 it would round a second time.
    """
    high, low = jnp.divmod(jnp.round(target * 2**24).astype(jnp.uint32), 2**12)
    whole, rest = jnp.divmod(high * 5**7, 2**5)
    return whole + ((rest * 2**12 + low * 5**7 + 2**16) >> 17)


def _below(ranks: Sequence[jax.Array], marks: jax.Array) -> jax.Array:
    """(leaves, marks) uint32: how many ranks of each leaf are below each of its marks. marks: (leaves, marks)."""
    counts = []
    for leaf, row in zip(ranks, marks, strict=True):
        hits = [(leaf < mark).astype(jnp.uint32) for mark in row]
        axes = tuple(range(leaf.ndim))
        zeros = [jnp.uint32(0)] * len(hits)
        # One reduction of many operands reads the leaf once; as many sums would read it as many times.
        counts.append(jnp.stack(jax.lax.reduce(hits, zeros, lambda a, b: [x + y for x, y in zip(a, b)], axes)))  # noqa: B905
    return jnp.stack(counts)


def _even(low: jax.Array, high: jax.Array) -> jax.Array:
    """(sets, marks) uint32: marks that divide the ranks from `low` to `high`, of each set, into 16 equal parts."""
    width = (high - low)[:, None]
    return low[:, None] + jnp.minimum(((width >> _BITS) + 1) * jnp.arange(1, _MARKS + 1, dtype=jnp.uint32), width)


def _around(low: jax.Array, high: jax.Array) -> jax.Array:
    """(sets, marks) uint32: marks from `low` to just above `high`, for a threshold that is likely to lie there."""
    width = (high - low)[:, None] + 1
    return low[:, None] + jnp.minimum((width // (_MARKS - 1) + 1) * jnp.arange(_MARKS, dtype=jnp.uint32), width)


def _threshold(
    ranks: Sequence[jax.Array], sets: jax.Array, num_sets: int, k: jax.Array, first: jax.Array | None = None
) -> jax.Array:
    """(sets,) uint32: a rank t of each set with at most k ranks below t and at least k ranks up to t.

    Args:
      sets: (leaves,) the set of each leaf.
      first: (sets, marks) uint32, where to count first; a good guess saves half of the readings, a bad one costs one.
    """
    low, high = jnp.zeros(num_sets, jnp.uint32), jnp.full(num_sets, _OUT, jnp.uint32)

    def narrow(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, marks = state
        counts = jax.ops.segment_sum(_below(ranks, marks[sets]), sets, num_sets)
        padded = jnp.concatenate([low[:, None], marks, high[:, None] + 1], axis=1)
        passed = jnp.sum(counts < k[:, None], axis=1)[:, None]
        new_low = jnp.maximum(low, jnp.take_along_axis(padded, passed, 1)[:, 0])
        new_high = jnp.minimum(high, jnp.take_along_axis(padded, passed + 1, 1)[:, 0] - 1)
        # Where k ranks are below a mark, which of them is the last does not matter.
        last = jnp.max(jnp.where(counts == k[:, None], marks, 0), axis=1)
        new_low, new_high = jnp.where(last > 0, last - 1, jnp.stack([new_low, new_high]))
        done = low == high
        low, high = jnp.where(done, low, new_low), jnp.where(done, high, new_high)
        return low, high, _even(low, high)

    marks = _even(low, high) if first is None else first
    return jax.lax.while_loop(lambda state: jnp.any(state[0] < state[1]), narrow, (low, high, marks))[0]


def _guess(ranks: Sequence[jax.Array], belongs: Sequence[int], num_sets: int, k: jax.Array) -> jax.Array | None:
    """(sets, marks) uint32: where the k-th rank of each set is likely to lie, from a sample; None for small sets."""
    sizes = [sum(leaf.size for leaf, s in zip(ranks, belongs, strict=True) if s == i) for i in range(num_sets)]
    if min(sizes) < _SAMPLED:
        return None
    rows = []
    for i, size in enumerate(sizes):
        parts = [_sample(leaf, _SAMPLE / size) for leaf, s in zip(ranks, belongs, strict=True) if s == i]
        sample = jnp.sort(jnp.concatenate(parts))
        share = k[i].astype(jnp.float32) / size
        middle = share * len(sample)
        spread = _DEVIATIONS * jnp.sqrt(middle * (1 - share)) + 1
        ends = jnp.stack([jnp.floor(middle - spread), jnp.ceil(middle + spread)])
        rows.append(sample[jnp.clip(ends, 0, len(sample) - 1).astype(jnp.int32)])
    low, high = jnp.stack(rows, axis=1)
    return _around(low, jnp.minimum(high, jnp.uint32(_OUT - 1)))


def _sample(leaf: jax.Array, share: float) -> jax.Array:
    """(n,) about this share of a leaf's entries, evenly spaced along every axis; the leaf is not reshaped."""
    strides, wanted = [], 1 / share
    for axis, size in enumerate(leaf.shape):
        strides.append(max(1, min(size, round(wanted ** (1 / (leaf.ndim - axis))))))
        wanted /= strides[-1]
    return jax.lax.slice(leaf, [0] * leaf.ndim, leaf.shape, strides).ravel()


def _guess_of_draws(k: jax.Array, size: jax.Array) -> jax.Array:
    """(sets, marks) uint32: where the k-th of `size` uniform words is likely to lie."""
    size = jnp.maximum(size, 1).astype(jnp.float32)
    share = k.astype(jnp.float32) / size
    spread = _DEVIATIONS * jnp.sqrt(share * (1 - share) / size)
    ends = jnp.clip(jnp.stack([share - spread, share + spread]), 0, 1)
    low, high = (ends * float(2**32 - 2**8)).astype(jnp.uint32)  # times the largest float32 below 2^32
    return _around(low, high)


def count(leaf: jax.Array) -> jax.Array:
    """() uint32: how many are True.

    Counted together with those that are not: XLA on a CPU takes a tenth of the time for a sum of two operands.
    """
    both = [leaf.astype(jnp.uint32), (~leaf).astype(jnp.uint32)]
    true, false = jax.lax.reduce(both, [jnp.uint32(0)] * 2, lambda a, b: [a[0] + b[0], a[1] + b[1]], range(leaf.ndim))
    return jnp.minimum(true, jnp.uint32(leaf.size) - false)  # equal; of one alone the compiler would make one sum


def lowest(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    k: jax.Array,
    key: jax.Array,
    sets: Sequence[int] | None = None,
) -> list[jax.Array]:
    """The k candidates of lowest score in each set, equal scores at random. Works inside jit, and on sharded arrays.

    Args:
      scores: one floating array per leaf.
      candidates: one boolean array of the same shape per leaf.
      k: (sets,) integers; all candidates of a set are chosen where it has no more than k.
      key: a typed PRNG key, for the ties.
      sets: the set of each leaf, from 0; None makes each leaf a set of its own.
    Returns:
      one boolean array per leaf, True where chosen.
    Example:
      >>> score = jnp.array([3.0, 1.0, 2.0, 1.0])
      >>> lowest([score], [jnp.ones(4, bool)], jnp.array([2]), jax.random.key(0))
      [Array([False,  True, False,  True], dtype=bool)]
    """
    if not scores:
        return []
    belongs = list(range(len(scores))) if sets is None else list(sets)
    num_sets = max(belongs) + 1
    of_leaf = jnp.array(belongs)
    present = jax.ops.segment_sum(jnp.stack([count(leaf) for leaf in candidates]), of_leaf, num_sets)
    wanted = jnp.minimum(jnp.asarray(k).astype(jnp.uint32), present)
    ranks = [jnp.where(ok, rank(score), jnp.uint32(_OUT)) for score, ok in zip(scores, candidates, strict=True)]
    threshold = _threshold(ranks, of_leaf, num_sets, wanted, _guess(ranks, belongs, num_sets, wanted))
    level = threshold[of_leaf]
    ties = [ok & (leaf == level[l]) for l, (leaf, ok) in enumerate(zip(ranks, candidates, strict=True))]
    marks = jnp.stack([level, jnp.minimum(level, jnp.uint32(_OUT - 1)) + 1], axis=1)
    below, reached = jax.ops.segment_sum(_below(ranks, marks), of_leaf, num_sets).T
    places, tied = wanted - below, reached - below  # what is left for the ties, and how many they are

    seeds = jax.random.bits(key, (2,), jnp.uint32)

    def draws() -> list[jax.Array]:
        """Random words, distinct inside a set. Drawn again where they are read, since keeping them costs memory."""
        starts = itertools.accumulate((leaf.size for leaf in ranks), initial=0)
        return [hashed_bits(seeds, leaf.shape, start) for leaf, start in zip(ranks, starts)]  # noqa: B905

    def last_place() -> jax.Array:
        drawn = [jnp.where(tie, draw, jnp.uint32(_OUT)) for tie, draw in zip(ties, draws(), strict=True)]
        return _threshold(drawn, of_leaf, num_sets, places, _guess_of_draws(places, tied))

    crowded = jnp.any(tied > places)
    limit = jax.lax.cond(crowded, last_place, lambda: jnp.full(num_sets, _OUT, jnp.uint32))[of_leaf]
    room = (places > 0)[of_leaf]
    return [
        (leaf < level[l]) & ok | (tie & room[l] & (draw <= limit[l]))
        for l, (leaf, ok, tie, draw) in enumerate(zip(ranks, candidates, ties, draws(), strict=True))
    ]


def lowest_threshold(score: jax.Array, candidates: jax.Array, share: jax.Array | float) -> jax.Array:
    """() uint32, for among_lowest: the rank that this share of the candidates, and at least one, is not above."""
    k = jnp.ceil(share * jnp.sum(candidates, dtype=jnp.float32)).astype(jnp.uint32)
    ranks = jnp.where(candidates, rank(score), jnp.uint32(_OUT))
    return _threshold([ranks], jnp.zeros(1, jnp.int32), 1, jnp.maximum(k, 1)[None])[0]


def among_lowest(score: jax.Array, candidates: jax.Array, threshold: jax.Array) -> jax.Array:
    """Booleans: the candidates whose score's rank is at or below the threshold."""
    return candidates & (rank(score) <= threshold)

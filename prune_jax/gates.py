"""Pure functions over the gate pytree: what a layer is, how sparse it is, which gates to sample, which to close.

The tree mirrors the kernels' paths in params and holds one boolean array a kernel: True is open, False is closed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import trees
from prune_jax.random_bits import hashed_bits

LAYER_TYPES = (
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_hidden",
    "ffn_output",
    "regressor",
    "classifier",
)
HEADS = ("regressor", "classifier")

Tree = Any


def head_name(tree: Tree) -> str:
    """Which of HEADS a network has, by its params or gates."""
    return next(name for name in HEADS if name in tree)


def _module_names(gates: Tree) -> list[str]:
    """The name of the module that owns each gate leaf, in leaf order; of a leaf of units (groups.sums) their kind."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(gates)]
    return [path[-2 if path[-1].key == "kernel" else -1].key for path in paths]


def layer_types(gates: Tree) -> list[str]:
    """The layer type of each gate leaf, in leaf order; the pooler counts as the head that follows it."""
    names = _module_names(gates)
    head = next((name for name in names if name in HEADS), "pooler")
    return [head if name == "pooler" else name for name in names]


def present_types(gates: Tree) -> tuple[str, ...]:
    """The layer types that occur, in DESIGN's cyclic order; types it does not list (a LeNet's conv_1, dense_1) stand in
    the tree's order before the head."""
    found = dict.fromkeys(layer_types(gates))
    listed, others = [t for t in LAYER_TYPES if t in found], [t for t in found if t not in LAYER_TYPES]
    return (*(t for t in listed if t not in HEADS), *others, *(t for t in listed if t in HEADS))


def type_indices(gates: Tree) -> np.ndarray:
    """(leaves,) int32: the position of each leaf's type in present_types."""
    present = present_types(gates)
    return np.array([present.index(t) for t in layer_types(gates)], np.int32)


def kernels(params: Tree, gates: Tree) -> Tree:
    """The leaves of params that have a gate, as a tree of the gates' structure.

    Raises KeyError where a gate has no kernel at its path.
    """

    def at(path, _):
        return functools.reduce(lambda node, key: node[key.key], path, params)

    return jax.tree_util.tree_map_with_path(at, gates)


def count(gates: Tree) -> int:
    """The number of gates, open and closed."""
    return sum(leaf.size for leaf in jax.tree.leaves(gates))


def _on_host(leaves: list[jax.Array]) -> bool:
    """Whether NumPy reads these arrays without a copy. Its counts and its quickselect beat XLA's on a CPU."""
    return all(isinstance(leaf, np.ndarray) or leaf.devices() == {jax.devices("cpu")[0]} for leaf in leaves)


@jax.jit
def _device_open_counts(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.sum(leaf, dtype=jnp.int32) for leaf in leaves]


def _open_counts(gates: Tree) -> list[int]:
    leaves = jax.tree.leaves(gates)
    if leaves and _on_host(leaves):
        return [int(np.count_nonzero(np.asarray(leaf))) for leaf in leaves]
    return [int(n) for n in jax.device_get(_device_open_counts(leaves))]


def layer_sparsity(gates: Tree) -> dict[str, float]:
    """The closed fraction of each kernel, keyed by its path joined with '/'."""
    return {
        trees.name(path[:-1]): 1 - opened / leaf.size
        for (path, leaf), opened in zip(jax.tree_util.tree_leaves_with_path(gates), _open_counts(gates), strict=True)
    }


def sparsity(gates: Tree) -> float:
    """The fraction of all gates that are closed; 0 for an empty tree."""
    total = count(gates)
    return (total - sum(_open_counts(gates))) / total if total else 0.0


# Sampling ------------------------------------------------------------------------------------------------------------


def sample(
    key: jax.Array,
    step: jax.Array,
    explore_pass: jax.Array,
    gates: Tree,
    epsilon: list[jax.Array],
    antithetic: bool = False,
) -> Tree:
    """The open gates that one exploration pass closes.

    The sample of pass e in layer l is a pure function of (key, step, e, l): whoever needs it again computes it again.
    Every open gate of leaf l is drawn with probability epsilon[l], independently; a closed gate never is.

    Args:
      key: a typed PRNG key; step, explore_pass: int32 scalars; epsilon: a float32 scalar a leaf, in leaf order.
      antithetic: passes 2i and 2i + 1 share their random bits, the second with every bit flipped, so that up to
        epsilon = 1/2 no gate is in both.
    Returns:
      boolean arrays of the gates' shapes, True where the pass closes the gate.
    """
    leaves, treedef = jax.tree.flatten(gates)
    stream = jax.random.fold_in(jax.random.fold_in(key, step), explore_pass // 2 if antithetic else explore_pass)
    seeds = jax.random.bits(stream, (len(leaves), 2), jnp.uint32)
    flip = -(explore_pass % 2).astype(jnp.uint32) if antithetic else jnp.uint32(0)
    drawn = [
        leaf & (((hashed_bits(seeds[l], leaf.shape) ^ flip) >> 8).astype(jnp.float32) < epsilon[l] * 2.0**24)
        for l, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, drawn)


# Closing -------------------------------------------------------------------------------------------------------------


def _order_key(x: jax.Array) -> jax.Array:
    """float32 to uint32, order kept; -0.0 equals 0.0, and NaN sorts last."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.int32)
    key = jax.lax.bitcast_convert_type(jnp.where(bits < 0, ~bits, bits ^ jnp.int32(-(2**31))), jnp.uint32)
    return jnp.where(jnp.isnan(x), jnp.uint32(2**32 - 2), key)


_CLOSED = 2**32 - 1  # the order key of a gate that is closed already: behind every open one


@jax.jit
def _candidates(scores: list[jax.Array], gates: list[jax.Array]) -> list[jax.Array]:
    return [jnp.where(gate, _order_key(score), jnp.uint32(_CLOSED)) for score, gate in zip(scores, gates, strict=True)]


@jax.jit
def _bisect(keys: list[jax.Array], k: jax.Array) -> jax.Array:
    """The k-th smallest (from 1) of all keys, by fixing its 32 bits from the highest down: 32 counts and no sort."""

    def fix_bit(i, found):
        trial = found | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        below = sum(jnp.sum(leaf < trial, dtype=jnp.uint32) for leaf in keys)
        return jnp.where(below < k, trial, found)

    return jax.lax.fori_loop(0, 32, fix_bit, jnp.uint32(0))


def lowest_threshold(score: jax.Array, gate: jax.Array, share: jax.Array) -> jax.Array:
    """() uint32, for among_lowest: a mark that this share of a kernel's open gates, and at least one, is not above."""
    k = jnp.ceil(share * jnp.sum(gate, dtype=jnp.float32)).astype(jnp.uint32)
    return _bisect(_candidates([score], [gate]), jnp.maximum(k, 1))


def among_lowest(score: jax.Array, gate: jax.Array, threshold: jax.Array) -> jax.Array:
    """Booleans: the open gates whose score is at or below the threshold."""
    return gate & (_order_key(score) <= threshold)


@jax.jit
def _count(keys: list[jax.Array], threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    below = sum(jnp.sum(leaf < threshold, dtype=jnp.uint32) for leaf in keys)
    return below, sum(jnp.sum(leaf == threshold, dtype=jnp.uint32) for leaf in keys)


def _select(keys: list[jax.Array], k: int) -> tuple[np.uint32, int, int]:
    """The k-th smallest (from 1) of all keys, how many keys are below it, and how many equal it."""
    if _on_host(keys):
        flat = [np.asarray(leaf).reshape(-1) for leaf in keys]
        parted = np.partition(flat[0] if len(flat) == 1 else np.concatenate(flat), k - 1)
        threshold = parted[k - 1]
        equal_within = int(np.count_nonzero(parted[:k] == threshold))
        return threshold, k - equal_within, equal_within + int(np.count_nonzero(parted[k:] == threshold))
    threshold = np.uint32(jax.device_get(_bisect(keys, np.uint32(k))))
    below, equal = jax.device_get(_count(keys, threshold))
    return threshold, int(below), int(equal)


@jax.jit
def _close_below(gates, keys, threshold, limit, tie_seeds):
    return [
        gate & ~((key < threshold) | ((key == threshold) & (hashed_bits(seed, gate.shape) <= limit)))
        for gate, key, seed in zip(gates, keys, tie_seeds, strict=True)
    ]


@jax.jit
def _tie_keys(keys, threshold, tie_seeds):
    """Random order keys of the ties; distinct inside a leaf, because hashed_bits is a bijection of the index."""
    return [
        jnp.where(key == threshold, hashed_bits(seed, key.shape), jnp.uint32(_CLOSED))
        for key, seed in zip(keys, tie_seeds, strict=True)
    ]


def _close(gates: list[jax.Array], scores: list[jax.Array], k: int, key: jax.Array) -> list[jax.Array]:
    """Closes exactly k open gates of these leaves, those with the lowest scores, ties at random."""
    if k <= 0:
        return gates
    keys = _candidates(scores, gates)
    threshold, below, ties = _select(keys, k)
    seeds = jax.random.bits(key, (len(gates), 2), jnp.uint32)
    limit = np.uint32(_CLOSED)
    if below + ties > k:
        limit, lower, equal = _select(_tie_keys(keys, threshold, seeds), k - below)
        if (
            below + lower + equal > k
        ):  # two leaves drew the same word for the last place, or one drew the mark of a non-tie: draw again
            return _close(gates, scores, k, jax.random.fold_in(key, 1))
    return _close_below(gates, keys, threshold, limit, seeds)


def close_counts(gates: Tree, scores: Tree, counts: list[int], key: jax.Array) -> Tree:
    """Closes counts[l] open gates of leaf l, those with the lowest scores, ties at random. Not a jitted function."""
    leaves, treedef = jax.tree.flatten(gates)
    values = treedef.flatten_up_to(scores)
    for l, k in enumerate(counts):
        (leaves[l],) = _close([leaves[l]], [values[l]], k, jax.random.fold_in(key, l))
    return jax.tree.unflatten(treedef, leaves)


def newly_closed(gates: Tree, new: Tree) -> list[int]:
    """How many gates of each leaf are open in `gates` and closed in `new`, in leaf order; masks only shrink."""
    return [before - after for before, after in zip(_open_counts(gates), _open_counts(new), strict=True)]


def close_lowest(gates: Tree, scores: Tree, target: float, key: jax.Array, scope: str = "local") -> Tree:
    """Closes open gates, lowest score first, until the target fraction of each selection group is closed.

    Closed gates stay closed, so a group that is sparser than the target already is left as it is. The count is exact,
    round(target * size) of each group, and gates of equal score are chosen among at random. Not a jitted function: a
    selection happens now and then, and on CPU NumPy selects faster than anything XLA can be given.

    Args:
      gates, scores: trees of the same structure and shapes, boolean and floating.
      target: the closed fraction to reach, 0 to 1.
      key: a typed PRNG key, for the ties.
      scope: "local", every kernel is a group of its own; "global", all gates together are one group.
    Returns:
      new gates.
    Raises:
      ValueError: target outside [0, 1] or another scope.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"target {target} is outside [0, 1]")
    if scope not in ("local", "global"):
        raise ValueError(f"scope {scope!r} is neither 'local' nor 'global'")
    leaves, treedef = jax.tree.flatten(gates)
    if not leaves:
        return gates
    values = treedef.flatten_up_to(scores)
    opened = _open_counts(gates)
    if scope == "global":
        size = sum(leaf.size for leaf in leaves)
        leaves = _close(leaves, values, round(target * size) - (size - sum(opened)), key)
        return jax.tree.unflatten(treedef, leaves)
    counts = [round(target * leaf.size) - (leaf.size - n) for leaf, n in zip(leaves, opened, strict=True)]
    return close_counts(gates, scores, counts, key)

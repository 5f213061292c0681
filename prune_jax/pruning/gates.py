"""Pure functions over the gate pytree: who has a gate, how sparse a network is, what a sample of gates is.

A gate tree holds one boolean array per prunable kernel, under the kernel's own path: True is open, False is closed. All
other leaves are None, or are not there at all.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning import packed, select, trees
from prune_jax.pruning.random_bits import hashed_bits

Tree = Any

# A module may be called scale_0 or bias for what it makes: its kernel is one all the same.
_NO_KERNEL = re.compile(
    r"(^|[/_])((bias|scale)(?!.*/(kernel|weight|w)$)|\w*norm(?!al)\w*|\w*embed\w*|pos_emb\w*|\w*bn|ln)([/_\d]|$)",
    re.IGNORECASE,
)


def is_kernel(name: str, leaf: jax.Array) -> bool:
    """Whether a leaf is a kernel: floating, of two axes and more, and by its name no bias, norm or embedding."""
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return floating and len(leaf.shape) >= 2 and not _NO_KERNEL.search(name)


def open_gates(
    params: Tree,
    prunable: Callable[[str, jax.Array], bool] = is_kernel,
    given: Callable[[str], Any] = lambda name: None,
) -> Tree:
    """A tree like params with an open gate per prunable leaf and None elsewhere.

    Args:
      params: a pytree of arrays.
      prunable: (name, leaf) -> whether the leaf has a gate.
      given: (name) -> a gate in place of an open one, or None.
    Example:
      >>> open_gates({"dense": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}})
      {'dense': {'bias': None, 'kernel': Array([[ True],
             [ True]], dtype=bool)}}
    """

    def gate(path: tuple, leaf: jax.Array) -> jax.Array | None:
        name = trees.name(path)
        if not prunable(name, leaf):
            return None
        closed = given(name)
        return jnp.ones_like(leaf, bool) if closed is None else jnp.asarray(closed)  # sharded as the leaf is

    return jax.tree_util.tree_map_with_path(gate, params)


def zeros(gates: Tree) -> Tree:
    """A score of 0 for every gate: float32, a tree like gates, sharded as they are."""
    return jax.tree.map(lambda gate: jnp.zeros_like(gate, jnp.float32), gates)


def kernels(params: Tree, gates: Tree) -> Tree:
    """The leaves of params that have a gate, as a tree of the gates' structure.

    Raises:
      KeyError: a gate has no kernel of its name.
    """
    leaves = trees.by_name(params)
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[trees.name(path)], gates)


def masked(params: Tree, gates: Tree) -> Tree:
    """params with the weights of closed gates at 0: each kernel times its gate, every other leaf as it is.

    Args:
      params: a pytree that holds the kernels; gates: boolean arrays, or floating ones that scale.
    Returns:
      a tree like params.
    Example:
      >>> masked({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})
      {'w': Array([1., 0.], dtype=float32)}
    """
    by_name = trees.by_name(gates)

    def product(path: tuple, leaf: Any) -> Any:
        gate = by_name.get(trees.name(path))
        return leaf if gate is None else leaf * gate.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(product, params)


def check_fit(gates: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError where a gate has no weight of its name, or one of another shape; both by name."""
    for name, gate in gates.items():
        if name not in shapes:
            raise ValueError(
                f"there is a gate of {name!r}, and no weight of this name; the weights are "
                f"{', '.join(list(shapes)[:8]) or 'none'}"
            )
        if np.shape(gate) != shapes[name]:
            raise ValueError(f"the gate of {name!r} is of shape {np.shape(gate)}, and its weight of {shapes[name]}")


def count(gates: Tree) -> int:
    """The number of gates, open and closed."""
    return sum(leaf.size for leaf in _leaves(gates))


def _leaves(gates: Tree) -> list[Any]:
    return jax.tree.leaves(gates, is_leaf=packed.is_packed)


@jax.jit
def _open_counts(leaves: list[Any]) -> list[jax.Array]:
    return [select.count(leaf) for leaf in packed.unpack(leaves)]


def open_counts(gates: Tree) -> list[int]:
    """The number of open gates of each leaf, in leaf order. Not for use inside jit."""
    return [int(n) for n in jax.device_get(_open_counts(_leaves(gates)))]


def layer_sparsity(gates: Tree) -> dict[str, float]:
    """The closed fraction of each kernel, by the name of its module. Not for use inside jit.

    Example:
      >>> layer_sparsity({"dense": {"kernel": jnp.array([[True, False]])}})
      {'dense': 0.5}
    """
    return {
        name.removesuffix("/kernel"): 1 - opened / leaf.size if leaf.size else 0.0
        for (name, leaf), opened in zip(trees.by_name(packed.shapes(gates)).items(), open_counts(gates), strict=True)
    }


def sparsity(gates: Tree) -> float:
    """The fraction of all gates that are closed; 0 for a tree without gates. Not for use inside jit."""
    total = count(gates)
    return (total - sum(open_counts(gates))) / total if total else 0.0


def sample(
    key: jax.Array,
    step: jax.Array,
    explore_pass: jax.Array,
    gates: Tree,
    epsilon: Sequence[jax.Array],
    antithetic: bool = False,
) -> Tree:
    """The open gates that one exploration pass closes.

    The sample of pass e in layer l is a pure function of (key, step, e, l): whoever needs it again computes it again.
    Every open gate of leaf l is drawn with probability epsilon[l], independently; a closed gate never is.

    Args:
      key: a typed PRNG key; step, explore_pass: () int32.
      epsilon: one () float32 per leaf, in leaf order.
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


def matching(patterns: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """name -> the value of the first pattern (a regex, searched for) that the name matches; others are not in it.

    Raises:
      ValueError: a pattern is no regex, or matches no name, with some of the names.
    """
    matched: dict[str, Any] = {}
    for pattern, value in patterns.items():
        try:
            hits = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"the rule {pattern!r} is no regular expression: {error}") from error
        if not hits:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise ValueError(f"the rule {pattern!r} matches no weight; the weights are {shown}")
        for name in hits:
            matched.setdefault(name, value)
    return matched


_LEAVES = ("kernel", "weight", "w")  # what modules call the kernel itself


def owner(name: str) -> str:
    """The path of the module that owns a weight: "layer_0/query" of "layer_0/query/kernel"."""
    path, _, last = name.rpartition("/")
    return path if last in _LEAVES and path else name


def module(name: str) -> str:
    """The module that owns a kernel, without its number in a list: "query" of "layer_0/query/kernel", "b" of "b/0"."""
    parts = [part for part in name.split("/") if not part.isdigit()] or [name]
    return parts[-2] if parts[-1] in _LEAVES and len(parts) > 1 else parts[-1]


def share_closed(gates: Tree) -> jax.Array:
    """() float32: the closed fraction of all gates, inside jit too; 0 for a tree without gates."""
    leaves = jax.tree.leaves(packed.unpack(gates))
    if not count(gates):
        return jnp.float32(0)
    # A float32 counts to 2^24, an int32 to 2^31: closed gates are counted in uint32, and the total enters as a float.
    closed = [select.count(~leaf).astype(jnp.float32) for leaf in leaves]
    return jnp.sum(jnp.stack(closed)) / float(count(gates))

"""Gates at rest: a bit per weight. Eight gates that lie side by side along one axis share a byte.

A state holds packed gates from step to step. What computes unpacks them first, inside jit: the compiler then reads the
bytes wherever it would read a boolean per weight, which is an eighth of the memory and of its traffic.
"""

import dataclasses
import functools
import math
import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Tree = Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["words"], meta_fields=["shape", "axis"])
@dataclasses.dataclass(frozen=True)
class Packed:
    """The gates of one weight, a bit each.

    Attributes:
      words: uint8, of the weight's shape with an eighth of one axis, rounded up. The lowest bit is the first gate, 1 is
        open; bits beyond the end are 0. States that are stacked, as by vmap, have further axes in front.
      shape: of the weight.
      axis: along which eight gates share a byte, counted from the end.
    Example:
      >>> pack({"kernel": jnp.array([[True, False], [True, True]])})["kernel"].words
      Array([[3, 2]], dtype=uint8)
    """

    words: jax.Array
    shape: tuple[int, ...]
    axis: int

    @property
    def size(self) -> int:
        """The number of gates."""
        return math.prod(self.shape)


def is_packed(node: Any) -> bool:
    """Whether a node of a tree is the gates of one weight."""
    return isinstance(node, Packed)


@functools.cache
def _register(serialization: ModuleType) -> None:
    """Lets flax.serialization write a Packed as {"words"}, and read that or the booleans of earlier versions."""

    def restored(target: Packed, found: Any) -> Packed:
        if not isinstance(found, dict):
            return _packed(found, target.axis)
        return dataclasses.replace(target, words=found["words"])

    serialization.register_serialization_state(Packed, lambda gate: {"words": gate.words}, restored)


def _is_of_nnx(node: Any) -> bool:
    return type(node).__module__.startswith("flax.nnx")


def _axis(gate: Any) -> int | None:
    """The axis that is packed: the longest of those that eight divides; the last one, where memory runs, at a pinch.

    An axis that is split over devices stays as it is, so that the bytes lie where the weight does; None if all are.
    Inside jit, only what explicit sharding splits is known.
    """
    shape = jnp.shape(gate) or (1,)
    known = jax.typeof(gate) if isinstance(gate, jax.core.Tracer) else gate
    spec = getattr(getattr(known, "sharding", None), "spec", ())
    split = [i - len(shape) for i, names in enumerate(spec) if names is not None]
    free = [axis for axis in range(-len(shape), 0) if axis not in split]
    front = [axis for axis in free if axis != -1] or free
    return max(front, key=lambda axis: (shape[axis] % 8 == 0, shape[axis]), default=None)


def _bits(axis: int) -> np.ndarray:
    """0 to 7 along an axis of their own, behind `axis`."""
    return np.arange(8, dtype=np.uint8).reshape(8, *[1] * (-1 - axis))


def _packed(gate: Any, axis: int) -> Packed:
    whole = jnp.atleast_1d(gate)
    at = whole.ndim + axis
    whole = jnp.pad(whole, [(0, -size % 8 if i == at else 0) for i, size in enumerate(whole.shape)])
    eights = whole.reshape(*whole.shape[:at], whole.shape[at] // 8, 8, *whole.shape[at + 1 :]).astype(jnp.uint8)
    return Packed(jnp.sum(eights << _bits(axis), at + 1, dtype=jnp.uint8), jnp.shape(gate), axis)


def _unpacked(gate: Any) -> jax.Array:
    if not is_packed(gate):
        return gate
    words, shape, axis = jnp.asarray(gate.words), gate.shape or (1,), gate.axis
    at = words.ndim + axis
    eights = (jnp.expand_dims(words, at + 1) >> _bits(axis)) & np.uint8(1)
    whole = eights.reshape(*words.shape[:at], 8 * words.shape[at], *words.shape[at + 1 :]).astype(bool)
    gates = jax.lax.slice_in_dim(whole, 0, shape[axis], axis=at)
    return gates if gate.shape else gates[..., 0]


@functools.partial(jax.jit, static_argnums=1)
def _pack(gates: list, axes: tuple[int | None, ...]) -> list:
    return [gate if axis is None else _packed(gate, axis) for gate, axis in zip(gates, axes, strict=True)]


def pack(gates: Tree, like: Tree = None) -> Tree:
    """The tree with a Packed in the place of each boolean gate; what is packed already stays.

    Args:
      like: a tree whose gates are packed along the same axes; None, the axes are chosen.
    """
    if flax := sys.modules.get("flax.serialization"):  # flax is no need of this package's own
        _register(flax)
    if like is None and any(map(_is_of_nnx, jax.tree.leaves(gates, is_leaf=_is_of_nnx))):
        return gates  # flax.nnx takes what a node holds for a state of its own when it splits an optimizer
    leaves, treedef = jax.tree.flatten(gates, is_leaf=is_packed)
    forms = leaves if like is None else jax.tree.leaves(like, is_leaf=is_packed)
    chosen = _axis if like is None else lambda form: getattr(form, "axis", None)
    axes = [None if is_packed(gate) else chosen(form) for gate, form in zip(leaves, forms, strict=True)]
    return jax.tree.unflatten(treedef, _pack(leaves, tuple(axes)))


@jax.jit
def unpack(gates: Tree) -> Tree:
    """The tree with a boolean gate in the place of each Packed; what is boolean already stays."""
    return jax.tree.map(_unpacked, gates, is_leaf=is_packed)


def shapes(gates: Tree) -> Tree:
    """The tree with a jax.ShapeDtypeStruct of booleans in the place of each Packed."""
    of = lambda gate: jax.ShapeDtypeStruct(gate.shape, bool) if is_packed(gate) else gate  # noqa: E731
    return jax.tree.map(of, gates, is_leaf=is_packed)


def sharding(at: jax.sharding.Sharding, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """`at`, with each axis of an array of this shape whole that its devices do not divide.

    Packed gates and boolean ones lie alike but where an eighth of their axis does not divide.
    """
    if not isinstance(at, NamedSharding):
        return at
    parts = [names if names is None else (names if isinstance(names, tuple) else (names,)) for names in at.spec]
    devices = [math.prod(at.mesh.shape[name] for name in names or ()) for names in parts]
    axes = [None if size % n else names for names, n, size in zip(at.spec, devices, shape, strict=False)]
    while axes and axes[-1] is None:  # P(None) and P() place alike, but are not equal
        axes.pop()
    return NamedSharding(at.mesh, PartitionSpec(*axes))

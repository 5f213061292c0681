"""The leaves of a network's trees by name, and what two trees differ in. Trees are pytrees with keys of any kind."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

Tree = Any

MISSING = "missing"  # in the place of a shape


def place(path: tuple) -> tuple[str, ...]:
    """The keys of nested dicts on the way to a leaf, of a path as jax.tree_util gives it."""
    return tuple(key.key for key in path)


def name(path: tuple) -> str:
    """The name of a leaf: "layer_0/query/kernel", "layers/0/weight"; of a path as jax.tree_util gives it.

    The attribute `value` at its end, in which flax.nnx holds a variable's array, is left out: an nnx.State has the same
    names with its variables as without.
    """
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by name, in leaf order."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def replaced(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """The tree with the leaves of these names replaced; leaves: name -> new leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(name(path), leaf), tree)


def nested(leaves: Mapping[str, Any], separator: str) -> dict:
    """Nested dicts of names that a separator joins: {"a.b": 1} to {"a": {"b": 1}}."""
    tree: dict = {}
    for key, leaf in leaves.items():
        *path, last = key.split(separator)
        functools.reduce(lambda node, part: node.setdefault(part, {}), path, tree)[last] = leaf
    return tree


def differing(theirs: Tree, ours: Tree) -> dict[str, tuple]:
    """The leaves whose shapes differ, sorted: name -> (shape in theirs, shape in ours), MISSING where there is none.

    Args:
      theirs, ours: trees of anything with a shape.
    """
    shapes = [{name: leaf.shape for name, leaf in by_name(tree).items()} for tree in (theirs, ours)]
    pairs = {name: tuple(tree.get(name, MISSING) for tree in shapes) for name in sorted(shapes[0] | shapes[1])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def split_key(key: jax.Array, tree: Any) -> Any:
    """A tree like `tree` with a PRNG key of its own at each leaf: optax.tree.split_key_like, without loading optax."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))

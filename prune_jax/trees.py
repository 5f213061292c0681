"""The leaves of a network's trees by name, and what two trees differ in."""

from typing import Any

import jax

Tree = Any

MISSING = "missing"  # in the place of a shape


def place(path) -> tuple[str, ...]:
    """The keys of nested dicts on the way to a leaf, of a path as jax.tree_util gives it."""
    return tuple(key.key for key in path)


def name(path) -> str:
    """layer_0/query/kernel, of a path as jax.tree_util gives it."""
    return "/".join(place(path))


def by_name(tree: Tree) -> dict[str, Any]:
    """The leaves of nested dicts, in leaf order."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def differing(found: Tree, wanted: Tree) -> dict[str, tuple]:
    """The leaves whose shapes differ, sorted: name -> (shape in found, shape in wanted), MISSING where there is none.

    Args:
      found, wanted: nested dicts of anything with a shape.
    """
    shapes = [{name: leaf.shape for name, leaf in by_name(tree).items()} for tree in (found, wanted)]
    pairs = {name: tuple(tree.get(name, MISSING) for tree in shapes) for name in sorted(shapes[0] | shapes[1])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

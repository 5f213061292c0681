"""Networks really cut: smaller weights, and the function evaluated again at the smaller sizes."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.graph.graph import Graph
from prune_jax.pruning import packed, trees

Tree = Any


def shrink(
    graph: Graph, params: Tree, gates: Tree | None, *, exact: bool = True, multiple_of: int = 1
) -> tuple[Tree, Callable]:
    """The network without its closed units: (small_params, small_fn), with `small_fn(small_params, *inputs)`.

    A unit is cut if the gates close all of it in at least one weight, and if that leaves no trace: each sum that reads
    it meets a 0. So the small network computes what the gated one does, up to the order of additions; a unit whose bias
    is still seen somewhere stays. What the function divides by, such as the width of a LayerNorm, stays that of the
    full width.

    Args:
      graph: of the function; params: its weights; gates: as of close_groups or of pj.gates(state); or a state.
      exact: False cuts units that are closed in all their gates even where the network then computes something else.
      multiple_of: widths are rounded up to a multiple of this, by closed units that stay.
    Returns:
      small_params, a tree like params; small_fn, which can be jitted, differentiated and exported, and takes inputs of
      any size that the function takes.
    Example:
      >>> import prune_jax as pj
      >>> params = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
      >>> g = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((1, 1)))
      >>> small, fn = pj.shrink(g, params, pj.close_groups(g, params, {"a": [1]}))
      >>> small["a"].shape, fn(small, jnp.ones((3, 1))).shape
      ((1, 1), (3, 1))
    """
    known = graph.known(params, gates)
    cut = graph.dropped(params, gates, exact, multiple_of, known)
    small_params = shrink_like(graph, cut, params)
    if gates is not None:
        small_params = _masked(graph, cut, small_params, gates)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(small_params)]

    def small_fn(small_params: Tree, *inputs: Any) -> Any:
        leaves = jax.tree.leaves(small_params)
        for name, leaf, shape in zip(graph.names, leaves, shapes, strict=True):
            if np.shape(leaf) != shape:
                raise ValueError(f"{name} is of shape {np.shape(leaf)}; allowed: {shape}, that of the small network")
        evaluation, out = graph.evaluation(inputs, cut, params=small_params, known=known if exact else None)
        return jax.tree.unflatten(out, evaluation(*leaves, *jax.tree.leaves(inputs)))

    return small_params, small_fn


def _masked(graph: Graph, cut: dict[str, np.ndarray], small_params: Tree, gates: Tree) -> Tree:
    """The small weights times their gates: what is cut of a large network is not multiplied first."""
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    axes = dict(zip(graph.names, graph.param_axes, strict=True))
    leaves = trees.by_name(small_params)
    for name, gate in graph.by_gate(gates).items():
        leaf = leaves[name]
        scaled = np.asarray(leaf) * evaluation.take(np.asarray(gate), axes[name]).astype(leaf.dtype)
        leaves[name] = jax.device_put(scaled) if isinstance(leaf, jax.Array) else scaled
    return trees.replaced(small_params, leaves)


def shrink_like(graph: Graph, cut: Mapping[str, np.ndarray], tree: Tree) -> Tree:
    """A tree of arrays with what is cut of the params left out, such as an optimizer's state.

    An array is that of a weight if it stands where the weight does in a tree like the params, or if its path ends as
    the weight's does, as in a state of optax.masked or optax.multi_transform. It may have further axes in front. An
    array of one entry per unit, in what a method keeps (CoFi's masks, SPT's scores of units), is without its cut units.

    Args:
      cut: group -> booleans, of graph.dropped(params, gates).
      tree: params, or anything that holds trees of their structure, with None for any leaf, as gates and scores are;
        the rest of it stays as it is, and so does what is cut already.
    Raises:
      ValueError: cut is none of the graph's; an array is of a weight that is cut and laid out otherwise, as where
        optax.adafactor keeps the means of its rows, or of all weights joined.
    Example:
      >>> import optax, prune_jax as pj
      >>> params = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
      >>> g = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((1, 1)))
      >>> cut = g.dropped(params, pj.close_groups(g, params, {"a": [1]}))
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> pj.shrink_like(g, cut, state)[0].trace["a"].shape
      (1, 1)
    """
    _check_cut(graph, cut)
    absent = lambda leaf: leaf is None or packed.is_packed(leaf)  # noqa: E731
    treedef: Any = jax.tree.structure(graph.shapes, is_leaf=absent)
    full, axes = trees.by_name(graph.shapes), dict(zip(graph.names, graph.param_axes, strict=True))
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    lengths = {
        name: tuple(evaluation.length(axis, n) for axis, n in zip(axes[name], leaf.shape, strict=True))
        for name, leaf in full.items()
    }
    smaller = {name: shape for name, shape in lengths.items() if shape != full[name].shape}
    along = [(name, axis, n) for name in smaller for axis, n in enumerate(full[name].shape) if lengths[name][axis] != n]
    total = sum(math.prod(leaf.shape) for leaf in full.values())

    def like_params(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=absent) == treedef

    def small(path: tuple, node: Any) -> Any:
        if like_params(node):
            return jax.tree_util.tree_map_with_path(functools.partial(taken, path), node, is_leaf=absent)
        return taken((), path, node)

    def taken(before: tuple, path: tuple, leaf: Any) -> Any:
        """A leaf at a path in a tree like the params, which itself stands at another; () for one in any other tree."""
        if packed.is_packed(leaf):
            opened = packed.unpack(leaf)
            small = packed.pack(taken(before, path, opened), like=leaf)
            return dataclasses.replace(small, shape=small.shape[opened.ndim - len(leaf.shape) :])
        where = trees.name((*before, *path))
        name = trees.name(path) if before else _ending(where, full)
        shape = np.shape(leaf)
        if leaf is None or len(shape) == 0 or math.prod(shape) <= 1:
            return leaf
        if name in smaller:
            own = full[name].shape
            front = shape[: len(shape) - len(own)]
            if (*front, *own) == shape and front != own:  # which may be the weight's axes once more
                return evaluation.take(leaf, axes[name], len(front))
            if (*front, *smaller[name]) == shape:
                return leaf
        by_units = of_units(where, leaf)
        if by_units is not None:
            return by_units
        if name not in smaller and not (smaller and shape == (total,)):
            return leaf
        weight = f"the weight {name} of shape {full[name].shape}" if name in smaller else "the weights"
        raise ValueError(
            f"{where} is of shape {shape}, which is not laid out as {weight}; allowed: arrays that are, and in their "
            "place what init of the optimizer makes of the small params"
        )

    def of_units(where: str, leaf: Any) -> Any:
        """What is left of an array of a group's units, or of the unit at each index of an axis; None for any other."""
        shape, mask = np.shape(leaf), where.rsplit("/", 1)[-1]
        for name, axis, n in along:
            if f"/{name}/{axis}/" in f"/{where}" and shape == (n,) and jnp.issubdtype(leaf.dtype, jnp.integer):
                units = np.asarray(evaluation.take(leaf, (axes[name][axis],)))
                if mask in cut and cut[mask].any():  # ".whole" of a group has one unit, which stays
                    units = np.where(units < 0, -1, (np.cumsum(~cut[mask]) - 1)[units]).astype(units.dtype)
                return jax.device_put(units) if isinstance(leaf, jax.Array) else units
        drop = np.asarray(cut.get(_group_of(where, graph.groups) or "", False))
        if not drop.any() or shape not in ((drop.size,), (drop.size - drop.sum(),)):
            return None
        return leaf[~drop] if shape == drop.shape else leaf

    return jax.tree_util.tree_map_with_path(
        small, tree, is_leaf=lambda node: packed.is_packed(node) or like_params(node)
    )


def _group_of(path: str, groups: Collection[str]) -> str | None:
    """The group whose units an array at this path is of, the longest: CoFi's at groups/NAME, SPT's in its own tree."""
    own = "/method/" in f"/{path}"
    found = [
        name
        for name in groups
        if f"/{path}".endswith(f"/groups/{name}") or (own and f"/{path}".endswith("/" + name.replace(".", "/")))
    ]
    return max(found, key=len, default=None)


def _ending(name: str, weights: Collection[str]) -> str | None:
    """The weight that a path ends with, the longest; one entry of a list that stands in its place counts as it."""
    for ended in (name, re.sub(r"/\d+$", "", name)):
        found = [weight for weight in weights if f"/{ended}".endswith(f"/{weight}")]
        if found:
            return max(found, key=len)
    return None


def _check_cut(graph: Graph, cut: Any) -> None:
    """Raises ValueError or TypeError for what is not as graph.dropped returns it."""
    if not isinstance(cut, Mapping):
        raise TypeError(f"cut is a {type(cut).__name__}; allowed: what graph.dropped(params, gates) returned")
    for name, drop in cut.items():
        if name not in graph.groups:
            raise ValueError(f"there is no group {name!r}; allowed: what graph.dropped(params, gates) returned")
        if np.asarray(drop).dtype != bool or np.shape(drop) != (graph.groups[name].size,):
            raise ValueError(f"cut[{name!r}] is {drop!r}; allowed: {graph.groups[name].size} booleans")

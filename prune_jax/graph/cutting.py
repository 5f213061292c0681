"""Networks really cut: smaller weights, and the function evaluated again at the smaller sizes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prune_jax.graph.graph import Graph
from prune_jax.pruning import trees

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
      graph: of the function; params: its weights; gates: as of close_groups, or of pj.gates(state).
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
    for name, gate in trees.by_name(gates).items():
        leaf = leaves[name]
        scaled = np.asarray(leaf) * evaluation.take(np.asarray(gate), axes[name]).astype(leaf.dtype)
        leaves[name] = jax.device_put(scaled) if isinstance(leaf, jax.Array) else scaled
    return trees.replaced(small_params, leaves)


def shrink_like(graph: Graph, cut: dict[str, np.ndarray], tree: Tree) -> Tree:
    """A tree of arrays with what is cut of the params left out, such as an optimizer's state.

    Args:
      cut: group -> booleans, of graph.dropped(params, gates).
      tree: params, or anything that holds trees of their structure, with None for any leaf, as gates and scores are;
        the rest of it stays as it is.
    Example:
      >>> import optax, prune_jax as pj
      >>> params = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
      >>> g = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((1, 1)))
      >>> cut = g.dropped(params, pj.close_groups(g, params, {"a": [1]}))
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> pj.shrink_like(g, cut, state)[0].trace["a"].shape
      (1, 1)
    """
    absent = lambda leaf: leaf is None  # noqa: E731
    full = jax.tree.leaves(graph.shapes, is_leaf=absent)
    treedef: Any = jax.tree.structure(graph.shapes, is_leaf=absent)
    numbers = iter(graph.param_axes)
    axes_of = [() if shape is None else next(numbers) for shape in full]
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)

    def like_params(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=absent) == treedef

    def smaller(leaf: Any, axes: Any, full: jax.ShapeDtypeStruct | None) -> Any:
        if leaf is None or full is None or np.shape(leaf) != full.shape:
            return leaf
        return leaf if all(evaluation.kept(axis) is None for axis in axes) else evaluation.take(leaf, axes)

    def small(node: Any) -> Any:
        if not like_params(node):
            return node
        leaves = jax.tree.leaves(node, is_leaf=absent)
        return jax.tree.unflatten(treedef, [smaller(*each) for each in zip(leaves, axes_of, full, strict=True)])

    return jax.tree.map(small, tree, is_leaf=like_params)

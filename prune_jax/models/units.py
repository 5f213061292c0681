"""The units of a model as the graph of its own function finds them, and the gates that closing them takes.

A group closes by its kernels alone where that is enough to cut its units without a trace: what a head computes meets
zero rows, whatever its biases are. Where it is not, the biases, scales and tables along the axis have gates, too: a
channel of the residual stream is gone only once nothing writes it.
"""

import functools
from typing import Any

import jax
import numpy as np

from prune_jax.graph.graph import Graph
from prune_jax.graph.graph import trace as trace_graph
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning import trees
from prune_jax.pruning.merge import merge
from prune_jax.pruning.structure import Group

Tree = Any


@functools.lru_cache(maxsize=8)
def trace(model: Any, rows: int | None = None, length: int | None = None) -> Graph:
    """The graph of a model without gates, at its example inputs, or at this many texts of this length, or images."""
    inputs = model.example_inputs()
    if rows:
        sizes = [(rows, length) if x.ndim == 2 else (rows, *x.shape[1:]) for x in inputs]
        inputs = tuple(jax.ShapeDtypeStruct(size, x.dtype) for size, x in zip(sizes, inputs, strict=True))
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return trace_graph(lambda params, *inputs: model.apply({"params": params}, *inputs), params, *inputs)


@functools.lru_cache(maxsize=8)
def groups(model: Any) -> tuple[Group, ...]:
    """The groups of a model that can be cut, by the model's own names, each with the members that have gates."""
    graph = trace(model)
    order = {name: i for i, name in enumerate(dict.fromkeys([*graph.kernels, *graph.names]))}
    found = []
    for group in graph.groups.values():
        if group.prunable:
            by_kernels = group.name in graph.by_kernels
            members = [m for m in group.members if not by_kernels or m.name in graph.kernels]
            found.append(group._replace(members=tuple(sorted(members, key=lambda m: order[m.name]))))
    if not hasattr(model, "named"):
        return tuple(found)
    return model.named(tuple(found), {name: leaf.shape for name, leaf in trees.by_name(graph.shapes).items()})


def opened(model: Any, params: Tree, gates: Tree) -> tuple[Any, Tree, Tree]:
    """(a model without its closed layers, its params, its gates)."""
    return model.opened(params, gates) if hasattr(model, "opened") else (model, params, gates)


def narrowed(model: Any, params: Tree, gates: Tree) -> tuple[dict[str, Any], Tree, Tree]:
    """(the keys of config.model that say its widths, the params, the gates) of a network without its closed units.

    Of a model whose config can say them, by `sizes`; any other stays as it is. Each layer keeps one unit at least.

    Args:
      params, gates: nested dicts of NumPy arrays.
    """
    if not hasattr(model, "sizes"):
        return {}, params, gates
    graph, merged = trace(model), merge(params, gates)
    cut = graph.dropped(merged, jax.tree.map(lambda leaf: np.asarray(leaf) != 0, merged))
    for drop in cut.values():
        drop[0] &= not drop.all()
    evaluation, _ = graph.evaluation(graph.example_inputs, cut)
    axes = dict(zip(graph.names, graph.param_axes, strict=True))

    def taken(tree: Tree) -> Tree:
        return trees.nested(
            {name: evaluation.take(leaf, axes[name]) for name, leaf in trees.by_name(tree).items()}, "/"
        )

    small = taken(params)
    return model.sizes(small), small, taken(gates)


def spelled(model: Any, structure: str) -> str:
    """A structure with the model's own words in the place of the graph's: LeNet's channel for channels."""
    return "+".join(getattr(model, "kinds", {}).get(word, word) for word in structure.split("+"))


def chosen(model: Any, structure: str) -> tuple[Group, ...]:
    """The groups that pruning.structure names; none where it is not one of groups. ValueError if there are none."""
    parsed = structure_lib.parse(spelled(model, structure))
    if parsed.kind != "groups":
        return ()
    locked = tuple(group for group in trace(model).groups.values() if not group.prunable)  # for the message
    return structure_lib.chosen(parsed, groups(model) + locked)


def gate_shapes(model: Any, structure: str) -> Tree:
    """The shapes of the gates of a network to be pruned by a structure: of each kernel, and of what its groups add."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    params, gates = trees.by_name(shapes["params"]), trees.by_name(shapes["gates"])
    for name in dict.fromkeys(m.name for group in chosen(model, structure) for m in group.members):
        gates.setdefault(name, jax.ShapeDtypeStruct(params[name].shape, bool))
    return trees.nested(gates, "/")

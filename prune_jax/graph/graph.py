"""A JAX function read as a graph: which weights go together, who reads which kernel, what it costs.

    g = pj.trace(fn, params, *example_inputs)   # fn(params, *inputs)
    print(g.summary())
    gates = pj.close_groups(g, params, {"layer_0.heads": [1, 3]})
    small_params, small_fn = pj.shrink(g, params, gates)

Nothing is asked of the model: groups come out of the function's own jaxpr. A primitive that is not known pins the axes
that it touches, and is named in `unknown`.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from prune_jax.graph import costing
from prune_jax.graph import inputs as inputs_lib
from prune_jax.graph.kernel import Kernel
from prune_jax.graph.traced import Traced
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.costs import Costs
from prune_jax.pruning.structure import Group

Tree = Any


class Cost(NamedTuple):
    """What one call of a network takes.

    Attributes:
      flops: of its contractions, two per multiplication and addition.
      params, bytes: of its weights.
      kernels: the same of each kernel, by name. A contraction of joined kernels is shared among them by their sizes.
    """

    flops: int
    params: int
    bytes: int
    kernels: Mapping[str, "Cost"] = MappingProxyType({})


class Graph(Traced):
    """What trace returns.

    Attributes:
      kernels: name -> Kernel, in the order of their first use.
      groups: name -> Group, every set of coupled axes that a kernel has a part in.
      unknown: primitive that is not known -> how often it occurs.
    """

    def __init__(self, fn: Callable, params: Tree, inputs: Sequence[Any]) -> None:
        super().__init__(fn, params, inputs)
        self._costs: dict[str, Costs] = {}

    def inputs(self, params: Tree, batches: Any, **options: Any) -> dict[str, inputs_lib.Moments]:
        """The second moments of the kernels' inputs over calibration data; see prune_jax.graph.inputs.moments."""
        return inputs_lib.moments(self, params, batches, **options)

    def cost(
        self, gates: Tree | None = None, params: Tree | None = None, *, cut: Mapping[str, np.ndarray] | None = None
    ) -> Cost:
        """The cost of one call at the example inputs: dense, or once the closed units are cut.

        Args:
          gates: a tree like params, of pj.gates or pj.close_groups; an optimizer's state; None for the dense network.
          params: the weights. A unit whose weights are 0 can be cut though a bias without a gate belongs to it; without
            params every weight counts as another number than 0.
          cut: what `dropped` returned, in place of gates.
        Example:
          >>> params = {"up": np.ones((4, 8)), "down": np.ones((8, 2))}
          >>> g = trace(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"], params, np.ones((1, 4)))
          >>> g.cost().flops, g.cost(close_groups(g, params, {"up": [0, 1, 2, 3]})).flops
          (96, 48)
        """
        evaluation, _ = self.evaluation(self.example_inputs, self._cut(gates, params, cut))
        counted = self.flops(evaluation)
        leaves = jax.tree.leaves(self.shapes)
        sizes = [
            int(np.prod([evaluation.length(axis, n) for axis, n in zip(axes, leaf.shape, strict=True)], dtype=np.int64))
            for axes, leaf in zip(self.param_axes, leaves, strict=True)
        ]
        flops = dict.fromkeys(self.kernels, 0.0)
        for step, of_step in counted:
            used = [param for param, _, _ in self._kernel_uses(step)]
            whole = sum(sizes[param] for param in used)
            for param in used:
                flops[self.names[param]] += of_step * sizes[param] / whole if whole else 0
        widths = [leaf.dtype.itemsize for leaf in leaves]
        of_name = dict(zip(self.names, zip(sizes, widths, strict=True), strict=True))
        kernels = {
            name: Cost(round(flops[name]), of_name[name][0], of_name[name][0] * of_name[name][1])
            for name in self.kernels
        }
        total = sum(of_step for _, of_step in counted)
        return Cost(total, sum(sizes), sum(n * width for n, width in of_name.values()), kernels)

    def _cut(self, gates: Tree | None, params: Tree | None, cut: Mapping[str, np.ndarray] | None) -> Mapping:
        """The units to cut of `cost`."""
        if cut is not None or gates is None:
            return cut or {}
        if params is None:
            params = jax.tree.map(lambda leaf: np.broadcast_to(np.ones((), leaf.dtype), leaf.shape), self.shapes)
        return self.dropped(params, gates)

    def costs(self, word: str) -> Costs:
        """What the network costs by how many units of each group are left: weights, flops, or seconds on this machine.

        Seconds are measured once, at the example inputs, and kept; see costing.py.
        """
        if word not in self._costs:
            self._costs[word] = costing.costs(self, word)
        return self._costs[word]

    def milliseconds(
        self, gates: Tree | None = None, params: Tree | None = None, *, cut: Mapping[str, np.ndarray] | None = None
    ) -> float:
        """The median time of one compiled call at the example inputs; the arguments are those of `cost`.

        A time is that of the moment: measure what is to be compared one right after the other.
        """
        return 1000 * costing.medians([costing.call(self, self._cut(gates, params, cut))])[0]

    def summary(self, params: Tree | None = None, gates: Tree | None = None, *, milliseconds: bool = False) -> str:
        """A table of the groups: kind, units, of which open, and why none can be cut; and the cost, before -> after.

        Args:
          params, gates: a network whose closed units are counted, as of `cost`; without gates everything is open.
          milliseconds: whether a call at the example inputs is timed, too. Trace with the batch that counts.
        """
        cut = self._cut(gates, params, None)
        rows = [("group", "kind", "units", "weights", "")]
        for name, group in self.groups.items():
            left = group.size - int(cut[name].sum()) if name in cut else group.size
            units = f"{group.size}" if left == group.size else f"{group.size} -> {left}"
            note = group.reason or ("" if group.exact else f"inexact: {group.inexact_because}")
            rows.append((name, group.kind, units, str(len(group.members)), note))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
            for row in rows
        ]
        dense, now = self.cost(), self.cost(cut=cut)
        for word in ("flops", "params", "bytes"):
            before, after = getattr(dense, word), getattr(now, word)
            lines.append(f"{word:<7}{before:>18,}" + (f" -> {after:,}" if after != before else ""))
        if milliseconds:
            calls = [costing.call(self, {}), costing.call(self, cut)]
            before, after = (1000 * seconds for seconds in costing.medians(calls))
            changes = any(drop.any() for drop in cut.values())
            lines.append(f"{'ms':<7}{before:>18.3f}" + (f" -> {after:.3f}" if changes else ""))
        if self.unknown:
            lines.append("not known, and so pinned: " + ", ".join(self.unknown))
        return "\n".join(lines)


def trace(fn: Callable, params: Tree, *inputs: Any) -> Graph:
    """Reads `fn(params, *inputs)` as a graph.

    Args:
      fn: a function of params, a pytree of arrays, and inputs, that jax can trace.
      params, inputs: arrays, or jax.ShapeDtypeStruct in their place. The sizes of the inputs are those of an example:
        what is made of the graph takes inputs of any size that fn takes.
    Returns:
      a Graph.
    Example:
      >>> import prune_jax as pj
      >>> def net(p, x):
      ...     return jax.nn.relu(x @ p["a"]) @ p["b"]
      >>> g = pj.trace(net, {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}, jnp.ones((1, 4)))
      >>> [(group.name, group.size, group.reason) for group in g.groups.values()]
      [('a.inputs', 4, 'input 0'), ('a', 8, None), ('b', 2, 'the output')]
    """
    return Graph(fn, params, inputs)


def close_groups(graph: Graph, params: Tree, units: Mapping[str, Any]) -> Tree:
    """Gates with units of groups closed by hand.

    Args:
      units: name of a group -> the numbers of the units to close; or booleans, one per unit, as of graph.dropped.
    Returns:
      a tree like params: a boolean array per kernel, and per bias, scale or table that a closed unit has a part in;
      None elsewhere.
    Raises:
      ValueError: there is no group of a name, its units cannot be cut, or it has no unit of a number; units are neither
        whole numbers nor a boolean for each.
    Example:
      >>> import prune_jax as pj
      >>> params = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
      >>> g = pj.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((1, 1)))
      >>> pj.close_groups(g, params, {"a": [1]})
      {'a': Array([[ True, False]], dtype=bool), 'b': Array([[ True],
             [False]], dtype=bool)}
    """
    shapes = {name: leaf.shape for name, leaf in trees.by_name(graph.shapes).items()}
    closed: dict[str, np.ndarray] = {}
    for name, numbers in units.items():
        group = graph.groups.get(name)
        if group is None:
            raise ValueError(
                f"there is no group {name!r}; allowed: {', '.join(g.name for g in graph.groups.values() if g.prunable)}"
            )
        if not group.prunable:
            raise ValueError(f"no unit of {name!r} can be cut: {group.reason}")
        chosen = _units(group, numbers)
        for member in group.members:
            shape = shapes[member.name]
            gate = closed.setdefault(member.name, np.ones(shape, bool))
            gone = np.isin(member.units, chosen).reshape([-1 if i == member.axis else 1 for i in range(len(shape))])
            gate &= ~gone
    return gates_lib.open_gates(
        params, lambda name, leaf: name in closed or name in graph.kernels, lambda name: closed.get(name)
    )


def _units(group: Group, given: Any) -> np.ndarray:
    """(n,) the numbers of the units of a group that are given as numbers or as a boolean per unit."""
    chosen = np.asarray(list(given) if isinstance(given, Set) else given)
    if chosen.dtype == bool and chosen.shape == (group.size,):
        return np.flatnonzero(chosen)
    whole = np.issubdtype(chosen.dtype, np.integer) or not chosen.size
    if not whole or (chosen.size and not (chosen.min() >= 0 and chosen.max() < group.size)):
        raise ValueError(
            f"units of {group.name!r} are {chosen.tolist()!r}; allowed: whole numbers from 0 to {group.size - 1}, or "
            f"{group.size} booleans"
        )
    return chosen.reshape(-1)


__all__ = ["Cost", "Graph", "Kernel", "close_groups", "trace"]

"""What groups are called: their kinds, and names that a reader of the model knows."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prune_jax.graph.kernel import Kernel
from prune_jax.graph.tracing import Analysis
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.structure import Member


class Kinds:
    """What groups are called.

    heads     an axis that attention goes through one by one, in parallel
    depth     what is left of a kernel's axis beside its heads
    hidden    an axis that several kernels or tables write and several kernels read: the residual width
    channels  the features of convolutions
    columns   any other: the width between two layers
    """

    def __init__(
        self, analysis: Analysis, axes: Mapping[str, Any], kernels: Mapping[str, Kernel], convolved: set[int]
    ) -> None:
        self._analysis, self._kernels, self._convolved, atoms = analysis, kernels, convolved, analysis.atoms
        self._rank = {name: len(own) for name, own in axes.items()}
        self._axes = list(axes.values())
        self._order = {name: i for i, name in enumerate(kernels)}
        self._heads = self._find_heads()
        self._beside: set[int] = set()
        self._near: set[int] = set()  # where a kernel has heads and depth as axes of their own
        for name, own_axes in axes.items():
            leaves = [set(atoms.leaves(axis)) for axis in own_axes]
            for own in leaves:
                if self._heads & own:
                    self._beside |= own - self._heads
            kernel = kernels.get(name)
            for side in (kernel.inputs, kernel.outputs) if kernel else ():
                if len(side) > 1 and leaves[side[0]] and leaves[side[0]] <= self._heads:
                    self._near |= {atom for i in side for atom in leaves[i]} - self._heads

    def _find_heads(self) -> set[int]:
        """Atoms that pass through two products of activations and more: of queries with keys, and with values.

        Of queries with keys is one that ends features of weights. A graph's adjacency only ends its nodes, which are
        inputs, and what joins experts ends what counts them.
        """
        atoms = self._analysis.atoms
        own = {atom for axes in self._axes for axis in axes for atom in atoms.leaves(axis)}
        contracted: set[int] = set()
        stacked: set[int] = set()  # what counts kernels, such as experts
        asked: list[tuple[set[int], set[int]]] = []
        made: Counter[int] = Counter()
        for step in self._analysis.steps:
            eqn = step.eqn
            if eqn.primitive.name != "dot_general":
                continue
            (inner, _), batch = eqn.params["dimension_numbers"]
            side = next((i for i, var in enumerate(eqn.invars) if step.frame.params(var)), None)
            if side is not None:
                axes = step.frame.axes[eqn.invars[side]]
                stacked |= {atom for i in batch[side] for atom in atoms.leaves(axes[i])}
                continue
            lhs, out = step.frame.axes.get(eqn.invars[0], ()), step.frame.axes[eqn.outvars[0]]
            if not lhs:
                continue
            ended = {atom for axis in inner for atom in atoms.leaves(lhs[axis])}
            passed = {atom for axis in out for atom in atoms.leaves(axis)}
            contracted |= ended
            made.update(passed)
            asked.append((ended & own - atoms.pins.keys(), passed))
        able = {atom for ended, passed in asked if ended - stacked for atom in passed}
        through = {atom for atom, times in made.items() if times > 1 and atom in able} - contracted
        return {atom for atom in through if atom not in atoms.pins}

    def _writers(self, members: Sequence[Member]) -> list[str]:
        """The kernels that have a group as outputs, in the order in which they are used, then the tables."""
        kernels = self._kernels
        writers = {m.name for m in members if m.name in kernels and m.axis in kernels[m.name].outputs}
        tables = [m.name for m in members if m.name not in kernels and 0 < m.axis == self._rank[m.name] - 1]
        return sorted(writers, key=self._order.__getitem__) + list(dict.fromkeys(tables))

    def _readers(self, members: Sequence[Member]) -> list[str]:
        kernels = self._kernels
        readers = {m.name for m in members if m.name in kernels and m.axis in kernels[m.name].inputs}
        return sorted(readers, key=self._order.__getitem__)

    def of(self, atom: int, members: Sequence[Member]) -> str:
        """The kind of an atom's group."""
        if atom in self._heads:
            return "heads"
        if atom in self._beside:
            return "depth"
        kernels = self._kernels
        writers, readers = self._writers(members), self._readers(members)
        residual = len(writers) > 1 and len(readers) > 1 and not set(writers) & set(readers)
        if atom in self._near and not residual:
            return "depth"
        dense = any(name in kernels and kernels[name].primitive == "dot_general" for name in writers)
        if residual and (dense or atom not in self._convolved):
            return "hidden"
        return "channels" if atom in self._convolved else "columns"

    def name(self, kind: str, members: Sequence[Member]) -> str:
        """The name of a group, by the modules that write it."""
        kernels = self._kernels
        writers = self._writers(members)
        first = (writers or self._readers(members) or [m.name for m in members if m.name in kernels])[0]
        module = gates_lib.owner(first)
        if kind == "heads":
            owners = [gates_lib.owner(m.name) for m in members if m.name in kernels]
            if len(set(owners)) > 1:
                module = os.path.commonpath([f"./{name}" for name in owners]).removeprefix(".").removeprefix("/")
        word = kind if writers or kind in ("heads", "depth") else "inputs"
        if all(name.startswith("params/") for name in kernels):
            module = module.removeprefix("params/").removeprefix("params")
        return ".".join([*([module.replace("/", ".")] if module else []), *([word] if word != "columns" else [])])

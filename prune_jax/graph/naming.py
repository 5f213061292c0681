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
        self._order = {name: i for i, name in enumerate(kernels)}
        self._heads = self._find_heads()
        self._beside: set[int] = set()
        for name, own_axes in axes.items():
            leaves = [set(atoms.leaves(axis)) for axis in own_axes]
            for own in leaves:
                if self._heads & own:
                    self._beside |= own - self._heads
            kernel = kernels.get(name)
            for side in (kernel.inputs, kernel.outputs) if kernel else ():
                # DenseGeneral: heads and depth are axes of their own.
                if len(side) > 1 and leaves[side[0]] and leaves[side[0]] <= self._heads:
                    self._beside |= {atom for i in side for atom in leaves[i]} - self._heads

    def _find_heads(self) -> set[int]:
        """Atoms that pass through two products of activations and more: of queries with keys, and with values.

        Of queries with keys is one that ends features; a graph's adjacency, say, only ends its nodes, which are inputs.
        """
        atoms = self._analysis.atoms
        contracted: set[int] = set()
        asked: set[int] = set()
        made: Counter[int] = Counter()
        for step in self._analysis.steps:
            eqn = step.eqn
            if eqn.primitive.name != "dot_general" or any(step.frame.params(var) for var in eqn.invars):
                continue
            (inner, _), _ = eqn.params["dimension_numbers"]
            lhs, out = step.frame.axes.get(eqn.invars[0], ()), step.frame.axes[eqn.outvars[0]]
            if not lhs:
                continue
            ended = {atom for axis in inner for atom in atoms.leaves(lhs[axis])}
            passed = {atom for axis in out for atom in atoms.leaves(axis)}
            contracted |= ended
            made.update(passed)
            if ended - atoms.pins.keys():
                asked |= passed
        through = {atom for atom, times in made.items() if times > 1 and atom in asked} - contracted
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

"""A traced function: its kernels, its groups of coupled axes, and the same function with units cut."""

import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prune_jax.graph import readings, tracing, zeros
from prune_jax.graph.evaluating import Evaluation
from prune_jax.graph.kernel import Kernel
from prune_jax.graph.naming import Kinds
from prune_jax.graph.tracing import Analysis, Step
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.reading import named_gates
from prune_jax.pruning.structure import Group, Member

Tree = Any


class Traced:
    """A function whose axes are known, with its kernels and groups; Graph tells what they cost.

    Attributes:
      kernels: name -> Kernel, in the order of their first use.
      groups: name -> Group, every set of coupled axes that a kernel has a part in.
      by_kernels: names of the groups whose units leave no trace once they are closed in kernels alone.
      unknown: primitive that is not known -> how often it occurs.
      untrained: names of params that no optimizer trains and no gate closes, such as the statistics of a BatchNorm.
    """

    untrained: frozenset[str] = frozenset()

    def __init__(self, fn: Callable, params: Tree, inputs: Sequence[Any]) -> None:
        self.fn, self.example_inputs = fn, jax.tree.map(_shape_of, tuple(inputs))
        self.shapes = jax.tree.map(_shape_of, params)
        self.names = list(trees.by_name(self.shapes))
        self._analyses: dict[Any, tuple[Analysis, Any]] = {}
        self.analysis, _ = self.analyse(self.example_inputs)
        self.unknown = dict(self.analysis.unknown)
        self.param_axes = self._axes_in(self.analysis)
        self._uses = [use for step in self.analysis.steps for use in self._kernel_uses(step)]
        self.kernels = self._find_kernels()
        self.atoms: dict[str, int] = {}  # group -> its number in the analysis of the example inputs
        self.compiled: Any = None  # a call of the dense network, once it was timed
        self.groups = self._find_groups()

    def analyse(self, inputs: Sequence[Any], params: Tree | None = None) -> tuple[Analysis, Any]:
        """(the axes of the function at inputs of these shapes, the tree of its output); kept for shapes seen before.

        Args:
          params: weights of the dtypes to take; None for those of the trace.
        """
        shapes, weights = jax.tree.map(_shape_of, tuple(inputs)), self.shapes
        if params is not None:
            weights = jax.tree.map(lambda full, now: _shape_of(full, now.dtype), self.shapes, params)
        key = tuple(
            (
                jax.tree.structure(tree),
                tuple((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)),
            )
            for tree in (weights, shapes)
        )
        if key not in self._analyses:
            closed, out = tracing.closed_jaxpr(self.fn, weights, shapes)
            analysis = Analysis(closed, len(self.names), _named("input", shapes), _named("output", out))
            self._analyses[key] = analysis, jax.tree.structure(out)
        return self._analyses[key]

    def _axes_in(self, analysis: Analysis) -> list[Any]:
        return [analysis.top.axes[var] for var in analysis.top.jaxpr.invars[: len(self.names)]]

    # Kernels ---------------------------------------------------------------------------------------------------------

    def _kernel_uses(self, step: Step) -> list[tuple[int, int, Step]]:
        """(number of the param, side, step) of a contraction of a view of a param with something else."""
        eqn = step.eqn
        if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
            return []
        sides = [(origin, side) for side, var in enumerate(eqn.invars) if (origin := step.frame.params(var))]
        return [(param, side, step) for origin, side in sides[-1:] for param in origin]

    def uses_at(self, frame: tracing.Frame, number: int) -> list[tuple[int, int, str]]:
        """(number of the param, side, name) of the kernels that an equation uses, each with all its inputs."""
        uses = []
        for param, side, step in self._kernel_uses(Step(frame, number, 1)):
            reading = readings.readings(step.eqn, number)
            kernel = self.kernels[self.names[param]]
            assert reading is not None
            read = math.prod(step.eqn.invars[side].aval.shape[pair[side]] for pair in reading.pairs)
            if len(frame.params(step.eqn.invars[side])) == 1 or read == math.prod(
                kernel.shape[i] for i in kernel.inputs
            ):
                uses.append((param, side, kernel.name))
        return uses

    def _find_kernels(self) -> dict[str, Kernel]:
        kernels: dict[str, Kernel] = {}
        atoms = self.analysis.atoms
        leaves = jax.tree.leaves(self.shapes)
        for param, side, step in self._uses:
            reading = readings.readings(step.eqn, step.number)
            assert reading is not None
            operand = step.frame.axes[step.eqn.invars[side]]
            read = {leaf for pair in reading.pairs for leaf in atoms.leaves(operand[pair[side]])}  # type: ignore[index]
            axes = [set(atoms.leaves(axis)) for axis in self.param_axes[param]]
            joined = step.frame.params(step.eqn.invars[side])
            share = leaves[param].size / max(sum(leaves[i].size for i in joined), 1)
            name, flops = self.names[param], round(readings.flops(step.eqn) * share) * step.times
            if name in kernels:
                before = kernels[name]
                kernels[name] = before._replace(uses=before.uses + step.times, flops=before.flops + flops)
                continue
            kernels[name] = Kernel(
                name,
                leaves[param].shape,
                step.eqn.primitive.name,
                tuple(i for i, own in enumerate(axes) if own and own <= read),
                tuple(i for i, own in enumerate(axes) if own and not own & read),
                step.times,
                flops,
            )
        return kernels

    # Groups ----------------------------------------------------------------------------------------------------------

    def _find_groups(self) -> dict[str, Group]:
        atoms = self.analysis.atoms
        members: dict[int, list[Member]] = {}
        for name, axes in zip(self.names, self.param_axes, strict=True):
            for i, axis in enumerate(axes):
                for atom in dict.fromkeys(atoms.leaves(axis)):
                    members.setdefault(atom, []).append(Member(name, i, atoms.units(axis, atom)))
        kinds = Kinds(
            self.analysis, dict(zip(self.names, self.param_axes, strict=True)), self.kernels, self.convolved()
        )
        features = {
            atom: its
            for atom, its in members.items()
            if atom not in self.analysis.counted
            and atoms.size(("atom", atom)) > 1
            and any(member.name in self.kernels for member in its)
        }
        kind_of = {atom: kinds.of(atom, its) for atom, its in features.items()}
        widths = [atom for atom, kind in kind_of.items() if kind == "hidden" and atom not in atoms.pins]
        names: Counter[str] = Counter()
        groups = {}
        for atom, its in features.items():
            name = "hidden" if widths == [atom] else kinds.name(kind_of[atom], its)
            names[name] += 1
            if names[name] > 1:
                name = f"{name}_{names[name]}"
            size = atoms.size(("atom", atom))
            groups[name] = Group(name, kind_of[atom], size, tuple(its), atoms.pins.get(atom))
            self.atoms[name] = atom
        return self._told_exact(groups)

    def _told_exact(self, groups: dict[str, Group]) -> dict[str, Group]:
        """The groups with `exact` filled in: what is 0 once every other unit is closed tells, and then the others."""
        able = [group for group in groups.values() if group.prunable]
        because = self._blamed(able, lambda name: True)
        seen = self._blamed(able, lambda name: name in self.kernels)
        self.by_kernels = {group.name for group in able if group.name not in seen}
        return {
            name: group._replace(exact=name not in because, inexact_because=because.get(name))
            for name, group in groups.items()
        }

    def _blamed(self, able: Sequence[Group], closes: Callable[[str], bool]) -> dict[str, str]:
        """Group -> what reads closed units of it as other than 0, once they are closed in the weights that `closes`."""
        because: dict[str, str] = {}
        for odd in (0, 1):
            closed = {name: [np.zeros(size, bool) for size in shape] for name, shape in self._shapes().items()}
            watched = {self.atoms[group.name]: np.arange(group.size) % 2 == odd for group in able}
            for member in (member for group in able for member in group.members if closes(member.name)):
                closed[member.name][member.axis] |= (member.units >= 0) & (member.units % 2 == odd)
            known = [zeros.Known(tuple(closed[name])) for name in self.names]
            blamed = zeros.Inspection(self.analysis, known, watched).blamed
            for group in able:
                if self.atoms[group.name] in blamed:
                    because.setdefault(
                        group.name, f"{blamed[self.atoms[group.name]]} reads closed units as other than 0"
                    )
        return because

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: leaf.shape for name, leaf in trees.by_name(self.shapes).items()}

    # Cutting ---------------------------------------------------------------------------------------------------------

    def dropped(
        self,
        params: Tree,
        gates: Tree | None,
        exact: bool = True,
        multiple_of: int = 1,
        known: Sequence[zeros.Known] | None = None,
    ) -> dict[str, np.ndarray]:
        """Group -> booleans, True for the units that can be cut.

        A unit is cut if the gates close a whole slice of it in at least one weight, and if cutting it leaves no trace
        in what the function computes; see shrink. known: of `known` for the same weights and gates, where it is there.

        Raises:
          ValueError: multiple_of is no whole number from 1; what `known` and `by_gate` raise.
        """
        if isinstance(multiple_of, bool) or not isinstance(multiple_of, numbers.Integral) or multiple_of < 1:
            raise ValueError(f"multiple_of is {multiple_of!r}; allowed: a whole number from 1")
        by_gate = self.by_gate(gates)
        inspected = zeros.Inspection(self.analysis, known or self.known(params, gates))
        slices: dict[str, tuple[np.ndarray, ...]] = {}  # of each gate, those that are closed
        cut = {}
        convolved = self.convolved()
        for name, group in self.groups.items():
            if not group.prunable:
                continue
            whole, some = np.ones(group.size, bool), np.zeros(group.size, bool)
            for member in group.members:
                if member.name not in by_gate:
                    continue
                if member.name not in slices:
                    slices[member.name] = zeros.of_array(np.asarray(by_gate[member.name])).zeros
                closed = slices[member.name][member.axis]
                unit = np.ones(group.size, bool)
                unit[member.units[~closed & (member.units >= 0)]] = False
                whole &= unit
                some |= unit
            removable = inspected.removable.get(self.atoms[name], np.ones(group.size, bool))
            drop = some & removable if exact else whole & some | (some & removable)
            cut[name] = _rounded(drop, multiple_of, self.atoms[name] in convolved)
        return cut

    def by_gate(self, gates: Tree | None) -> dict[str, Any]:
        """Name of a weight -> its gate, of a gate tree, or of an optimizer's state; {} for None.

        Raises:
          TypeError: it is neither.
          ValueError: a gate is of no weight of the graph.
        """
        if gates is None:
            return {}
        by_gate = named_gates(gates)
        gates_lib.check_fit(by_gate, self._shapes())
        return by_gate

    def known(self, params: Tree, gates: Tree | None) -> list[zeros.Known]:
        """Which slices of the weights are all 0, or closed by their gates.

        Raises:
          ValueError: the weights have other names or shapes than those of the trace.
        """
        by_gate, shapes = self.by_gate(gates), self._shapes()
        leaves = trees.by_name(params)
        if list(leaves) != self.names or any(np.shape(leaf) != shapes[name] for name, leaf in leaves.items()):
            other = trees.differing(
                {name: jax.ShapeDtypeStruct(np.shape(leaf), bool) for name, leaf in leaves.items()}, self.shapes
            )
            found = ", ".join(f"{name}: {theirs}, and {ours} in the trace" for name, (theirs, ours) in other.items())
            raise ValueError(f"params are not those of the trace: {found or 'their order is another'}")
        known = []
        for name, leaf in leaves.items():
            if name in by_gate:
                leaf = (np.asarray(leaf) != 0) & (np.asarray(by_gate[name]) != 0)
            known.append(zeros.of_array(leaf))
        return known

    def convolved(self) -> set[int]:
        """The atoms of the features of convolutions, of which XLA wants one at least."""
        atoms = set()
        for step in self.analysis.steps:
            if step.eqn.primitive.name == "conv_general_dilated":
                lhs, rhs, _ = step.eqn.params["dimension_numbers"]
                operands = [step.frame.axes[var] for var in step.eqn.invars]
                for axis in (operands[0][lhs[1]], operands[1][rhs[0]], operands[1][rhs[1]]):
                    atoms |= set(self.analysis.atoms.leaves(axis))
        return atoms

    def evaluation(
        self,
        inputs: Sequence[Any],
        cut: Mapping[str, np.ndarray],
        hook: Any = None,
        params: Tree | None = None,
        known: Sequence[zeros.Known] | None = None,
    ) -> tuple[Evaluation, Any]:
        """(the function at inputs of these shapes with these units cut, the tree of its output).

        Args:
          cut: of `dropped`; hook: of Evaluation.
          params: weights of the dtypes to take; None for those of the trace.
          known: of `known`, to make sure that the units can be cut at inputs of these shapes, too; None to trust in it.
        Raises:
          ValueError: at inputs of these shapes the function is another, in which the units cannot be cut.
        """
        analysis, out = self.analyse(inputs, params)
        keep = {self._atom_in(analysis, name): ~drop for name, drop in cut.items() if drop.any()}
        if known is not None and keep and analysis is not self.analysis:
            removable = zeros.Inspection(analysis, known).removable
            for name, drop in cut.items():
                if drop.any() and (drop & ~removable.get(self._atom_in(analysis, name), drop)).any():
                    raise ValueError(f"at inputs of {_shapes(inputs)} cutting units of {name!r} changes the function")
        return Evaluation(analysis, keep, hook), out

    def _atom_in(self, analysis: Analysis, name: str) -> int:
        """The atom of a group in the function at inputs of other shapes, where it may have another number."""
        if analysis is self.analysis:
            return self.atoms[name]
        axes = dict(zip(self.names, self._axes_in(analysis), strict=True))
        members = self.groups[name].members
        for atom in dict.fromkeys(analysis.atoms.leaves(axes[members[0].name][members[0].axis])):
            if all(np.array_equal(analysis.atoms.units(axes[m.name][m.axis], atom), m.units) for m in members):
                if atom in analysis.atoms.pins:
                    raise ValueError(f"units of {name!r} cannot be cut with these inputs: {analysis.atoms.pins[atom]}")
                return atom
        raise ValueError(f"with these inputs the function couples the units of {name!r} in another way")

    def flops(self, evaluation: Evaluation) -> list[tuple[Step, int]]:
        """The contractions with the floating-point operations of each, at the sizes of an evaluation."""
        counted = []
        for step in self.analysis.steps:
            eqn = step.eqn
            dense = readings.flops(eqn)
            if not dense:
                continue
            ratio = 1.0
            reading = readings.readings(eqn, step.number)
            assert reading is not None
            of = lambda var, step=step: zip(step.frame.axes[var], var.aval.shape, strict=True)  # noqa: E731
            side = 0 if eqn.primitive.name == "dot_general" else 1
            read = [list(of(eqn.invars[side]))[pair[side]] for pair in reading.pairs]  # type: ignore[index]
            for axis, size in [*of(eqn.outvars[0]), *read]:
                ratio *= evaluation.length(axis, size) / size if size else 1
            counted.append((step, round(dense * ratio) * step.times))
        return counted


def _shape_of(leaf: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
    aval = jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    return jax.ShapeDtypeStruct(aval.shape, dtype or aval.dtype, weak_type=aval.weak_type)


def _named(word: str, tree: Tree) -> list[str]:
    """What each leaf of the inputs or the outputs is called: "input 0", "input 1/mask", "the output", "output loss"."""
    names = list(trees.by_name(tree))
    return [f"{word} {name}" if name else f"the {word}" for name in names]


def _shapes(inputs: Sequence[Any]) -> str:
    return "shapes " + ", ".join(str(tuple(np.shape(leaf))) for leaf in jax.tree.leaves(inputs))


def _rounded(drop: np.ndarray, multiple_of: int, at_least_one: bool) -> np.ndarray:
    """The units to cut, as many fewer as it takes for what is left to be a multiple, or one at least."""
    left = int((~drop).sum())
    wanted = min(-(-left // multiple_of) * multiple_of, drop.size)
    if at_least_one:
        wanted = max(wanted, min(multiple_of, drop.size))
    drop = drop.copy()
    drop[np.flatnonzero(drop)[: wanted - left]] = False
    return drop

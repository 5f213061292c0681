"""What whoever prunes has decided: which gates close together, how far, and which kernels are left alone.

A method gives every gate a score and knows no more of the structure; the plan closes the lowest scores until a target
is met. All of it works inside jit, with the target as an array.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning import closing, trees
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.costs import Costs
from prune_jax.pruning.options import option, options
from prune_jax.pruning.part import Leaves, Part
from prune_jax.pruning.structure import Group, Structure

Tree = Any
Shapes = Mapping[str, tuple[int, ...]]  # of kernels, by name

SCOPES = ("local", "erk", "global")


@options
class Rule:
    """What is special about the kernels whose name matches a pattern; see prune."""

    keep: bool = option(False, "Whether they stay dense.")
    sparsity: float | None = option(
        None, "The closed fraction that they reach in the end, on the schedule's way; None, the schedule's own.", 0, 1
    )
    structure: str | None = option(None, "How they close: unstructured, block:RxC or n:m; None, as all others do.")
    axis: int | None = option(None, "The axis of a kernel that counts its inputs, for n:m and blocks; None, -2.")


KEEP = Rule(keep=True)


class Layers(NamedTuple):
    """What the layers of a network are called.

    Attributes:
      type_of: (name of a kernel) -> its layer type; by default the name of its module.
      first: types in the order in which they are shown and explored.
      last: types that come after all others, the head's.
    """

    type_of: Callable[[str], str] = gates_lib.module
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    def ordered(self, types: Sequence[str]) -> tuple[str, ...]:
        """The types that occur, each once, in order; those that are not listed stand as given, before the last."""
        seen = dict.fromkeys(types)
        listed = (*self.first, *self.last)
        return (
            *(name for name in self.first if name in seen),
            *(name for name in seen if name not in listed),
            *(name for name in self.last if name in seen),
        )


class Plan(NamedTuple):
    """Which kernels close together, and how.

    Attributes:
      parts: kernels by how they close; every kernel that may close is in one of them.
      scope: "local", every kernel (or group) is ranked by itself and meets the target; "erk", the same, and the
        Erdos-Renyi kernel distribution shares the target; "global", all of a part are ranked together.
      layers: what the layers are called.
    """

    parts: tuple[Part, ...]
    scope: str = "local"
    layers: Layers = Layers()

    def covers(self, name: str) -> bool:
        """Whether the kernel of this name may close."""
        return any(name in part.names for part in self.parts)

    def reach(self, gates: Tree) -> float:
        """The fraction of all gates that may close, which the target is of; gates: the tree, or its shapes."""
        shapes = {name: leaf.shape for name, leaf in trees.by_name(gates).items()}
        covered = sum(part.covered(shapes) for part in self.parts)
        return covered / max(sum(map(math.prod, shapes.values())), 1)

    def close(self, gates: Tree, scores: Tree, target: jax.Array | float, key: jax.Array) -> Tree:
        """Closes open gates, lowest score first, until the target fraction of each set is closed.

        Closed gates stay closed, so a set that is sparser than the target already is left as it is. Gates by
        themselves and blocks are counted exactly, round(target * size) of each set. Groups come within one unit of it,
        in weights or in the costs of the plan, and no rounding closes a group's last unit. n:m closes
        floor(target * m) of every m, and never more than m - n. Ties are chosen among at random.

        Args:
          gates: the gate tree; scores: a floating tree of the same structure and shapes.
          target: () float32, the closed fraction of what the plan covers, 0 to 1.
          key: a typed PRNG key, for the ties.
        Returns:
          new gates.
        """
        flat, values = trees.by_name(gates), trees.by_name(scores)
        for i, part in enumerate(self.parts):
            own = key if i == 0 else jax.random.fold_in(key, i)
            flat |= closing.close(part, self.scope, flat, values, part.goal(target), own)
        return trees.replaced(gates, flat)

    def emptied(self, gates: Tree, target: float) -> list[str]:
        """The groups whose last unit a target may close: it is beyond what all others save together, in `close`.

        Groups of one unit, such as layers, are not among them: a network can do without those. The local scope leaves
        each group one unit below a target of 1.
        """
        flat = trees.by_name(gates)
        found: list[str] = []
        for part in self.parts:
            if self.scope == "global" and part.groups and 0 < target < 1:
                cost = part.cost(flat)
                left = {group.name: 1 / group.size if group.size > 1 else 0.0 for group in part.groups}
                dense = cost.dense(tuple(left))
                goal = (1 - target) * dense - 1e-5 * dense
                found += [name for name, share in left.items() if share and float(cost.of({**left, name: 0.0})) >= goal]
        return found

    def opened(self, gates: Tree) -> dict[str, jax.Array]:
        """Whether each unit is open, by group or kernel; a gate by itself is its own unit."""
        flat = trees.by_name(gates)
        return {name: total > 0 for part in self.parts for name, total in part.totals(flat).items()}

    def close_units(self, gates: Tree, scores: Leaves, target: jax.Array | float, key: jax.Array) -> Tree:
        """As `close`, by a score of each unit as `opened` has them, which is not compared by what the unit saves."""
        flat, units = trees.by_name(gates), self.opened(gates)
        new: Leaves = {}
        for i, part in enumerate(self.parts):
            own, goal = key if i == 0 else jax.random.fold_in(key, i), part.goal(target)
            if part.structure.kind == "n:m":
                new |= closing.close(part, self.scope, flat, scores, goal, own)
            elif part.names:
                opened = {name: units[name] for name in part.sizes(flat)}
                new |= closing.close_units(part, self.scope, flat, opened, scores, goal, own, per_cost=False)
        return trees.replaced(gates, new)

    def below(self, gates: Tree, scores: Tree, threshold: float) -> jax.Array:
        """() float32: the closed fraction of what the plan covers if every open unit scored below it closed."""
        flat, values = trees.by_name(gates), trees.by_name(scores)
        kept, total = jnp.float32(0), 0
        for part in self.parts:
            opened, means = part.pooled(flat, values)
            for unit, size in part.sizes(flat).items():
                kept += jnp.sum(opened[unit] & (means[unit] >= threshold), dtype=jnp.float32) * size
                total += opened[unit].size * size
        return 1 - kept / max(total, 1)

    @property
    def units(self) -> "Units | None":
        """The units of a plan of groups or blocks; None where gates close by themselves or by n:m."""
        if len(self.parts) != 1 or not self.parts[0].pools:
            return None
        return Units(self.parts[0], self.scope)

    def layer_types(self, tree: Tree) -> list[str]:
        """The layer type of each leaf, in leaf order; the leaves are gates or units."""
        return [self.layers.type_of(name) for name in trees.by_name(tree)]

    def type_indices(self, tree: Tree) -> tuple[tuple[str, ...], np.ndarray]:
        """(the layer types that occur, in order; (leaves,) int32 the position of each leaf's type among them)."""
        types = self.layer_types(tree)
        present = self.layers.ordered(types)
        return present, np.array([present.index(one) for one in types], np.int32)


class Units(NamedTuple):
    """What is drawn, scored and closed as one. Its trees hold one array of units per group or blocked kernel."""

    part: Part
    scope: str

    @property
    def _joint(self) -> str:
        return "." if self.part.groups else "/"

    def _tree(self, leaves: Leaves) -> Tree:
        return trees.nested(leaves, self._joint)

    def _leaves(self, tree: Tree) -> Leaves:
        """The arrays of a tree of units, by group or kernel."""
        by_name = {name.replace("/", self._joint): leaf for name, leaf in trees.by_name(tree).items()}
        names = [group.name for group in self.part.groups] or self.part.names
        return {name: by_name[name] for name in names}

    def of(self, gates: Tree) -> Tree:
        """Booleans, one per unit: open as long as one of its gates is."""
        return jax.tree.map(lambda n: n > 0, self.totals(gates))

    def totals(self, tree: Tree) -> Tree:
        """The sum over each unit, float32, of a tree like gates."""
        return self._tree(self.part.totals(trees.by_name(tree)))

    def spread(self, gates: Tree, opened: Tree) -> Tree:
        """The gates with every gate of a closed unit closed; opened: booleans in the form of `of`."""
        return trees.replaced(gates, self.part.spread(trees.by_name(gates), self._leaves(opened)))

    def close(self, gates: Tree, scores: Tree, target: jax.Array | float, key: jax.Array) -> Tree:
        """As Plan.close, by scores of the units: the sum over a unit's gates, which is compared by its size."""
        flat = trees.by_name(gates)
        sizes = self.part.sizes(flat)
        means = {name: leaf / sizes[name] for name, leaf in self._leaves(scores).items()}
        opened = self._leaves(self.of(gates))
        return trees.replaced(
            gates, closing.close_units(self.part, self.scope, flat, opened, means, self.part.goal(target), key)
        )


def assigned(params: Tree, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """name -> the rule that a leaf follows, by the pattern that `ruled` finds."""
    return {name: rules[pattern] for name, pattern in ruled(params, rules).items()}


def ruled(params: Tree, rules: Mapping[str, Rule]) -> dict[str, str]:
    """name -> the pattern of the rule that a leaf follows: the first that is found in its name; others are not in it.

    A pattern that is found in the name of a kernel means kernels alone, so that "head" does not reach head/bias. One
    that is found in none means the floating leaves that it does match: "bias", "token_embedding".

    Raises:
      ValueError: a pattern is no regex, or matches no floating leaf.
    """
    leaves = {
        name: leaf
        for name, leaf in trees.by_name(params).items()
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    own: dict[str, str] = {}
    for pattern, rule in rules.items():
        hits = list(gates_lib.matching({pattern: rule}, list(leaves)))
        kernels = [name for name in hits if gates_lib.is_kernel(name, leaves[name])]
        for name in kernels or hits:
            own.setdefault(name, pattern)
    return own


def make(
    gates: Tree,
    structure: str = "unstructured",
    scope: str = "local",
    groups: Sequence[Group] = (),
    rules: Mapping[str, Rule] | None = None,
    final: float = 1.0,
    body: Callable[[str], bool] = lambda name: True,
    costs: Costs | None = None,
    layers: Layers = Layers(),  # noqa: B008 - it is immutable
    patterns: Mapping[str, str] | None = None,
) -> Plan:
    """The plan for the network of these gates.

    Args:
      gates: the gate tree, or the shapes of one.
      structure: what closes together, as structure.py tells.
      scope: "local", "erk" or "global".
      groups: the groups of units that the network has, for structures that name them.
      rules: name -> Rule, of the kernels that have one of their own, as `assigned` finds it. A group with such a kernel
        is left out.
      final: the sparsity that the schedule ends at, which a rule's own is relative to.
      body: (name) -> whether a kernel belongs to what "encoder", blocks and n:m cover.
      costs: what the target counts where groups are ranked together; None, weights.
      layers: what the layers are called.
      patterns: name -> the pattern of its rule, as `ruled` finds it, for messages; None, its own name.
    Raises:
      ValueError: a structure or scope that is not known, that the network has not, or that does not divide a kernel; a
        group that does not fit its kernels; nothing that may close.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; allowed: {', '.join(SCOPES)}")
    shapes = {name: leaf.shape for name, leaf in trees.by_name(gates).items()}
    own = dict(rules or {})
    usual = structure_lib.parse(structure)
    if costs is not None:
        check_costs(costs.word, usual, scope)
    if usual.kind == "groups":
        parts = [_part_of_groups(usual, scope, groups, own.keys(), shapes, costs, final)]
    else:
        names = tuple(name for name in shapes if name not in own and (usual.kind == "unstructured" or body(name)))
        parts = [Part(names, usual)] if names else []
    for rule in dict.fromkeys(rule for rule in own.values() if not rule.keep):
        names = tuple(name for name in shapes if own.get(name) == rule)
        parts.append(_part_of_rule(rule, names, usual, shapes, final))
    if not any(part.names for part in parts):
        by = {name: (patterns or {}).get(name, name) for name in own}
        left = f"the rules leave no kernel to close: {', '.join(map(repr, dict.fromkeys(by.values())))}"
        if usual.kind == "groups":
            left = structure_lib.held(structure_lib.chosen(usual, tuple(groups)), by)
        raise ValueError(f"there is nothing to prune: structure {structure!r}, and {left}")
    for part in parts:
        for name in part.names:
            if problem := structure_lib.divides(part.structure, shapes[name], part.inputs):
                raise ValueError(f"{name}: {problem}")
    return Plan(tuple(parts), scope, layers)


def check_costs(word: str, structure: Structure, scope: str) -> None:
    """Raises ValueError where a target of costs, in flops or seconds, has no groups or is not of the whole network."""
    if structure.kind != "groups":
        raise ValueError(f"structure is {structure.text!r}; allowed: groups of the network with a target in {word}")
    if scope != "global":
        raise ValueError(f"scope is {scope!r}; allowed: global with a target in {word}, which is the network's")


def _part_of_groups(
    structure: Structure,
    scope: str,
    groups: Sequence[Group],
    ruled: Collection[str],
    shapes: Shapes,
    costs: Costs | None,
    final: float,
) -> Part:
    """The groups that the structure names, but for those of which a member is kept or goes by a rule."""
    if scope == "erk":
        raise ValueError(f"scope is 'erk'; allowed: local, global with structure {structure.text!r}")
    chosen = []
    for group in structure_lib.chosen(structure, tuple(groups)):
        if not any(member.name in ruled for member in group.members):
            gated = group._replace(members=tuple(m for m in group.members if m.name in shapes))
            if problem := _misfit(gated, shapes):
                raise ValueError(f"the group {group.name!r}: {problem}")
            chosen.append(gated)
    if costs is not None and chosen:
        dense, left = (float(costs.of({group.name: opened for group in chosen})) for opened in (1.0, 0.0))
        besides = " that no rule names" if ruled else ""
        if final > 0 and (1 - final) * dense < left - 1e-6 * dense:  # it would close every unit, and still be missed
            raise ValueError(
                f"the schedule ends at {final:g} of the network's {costs.word}; allowed: at most {1 - left / dense:.3f}"
                f", which is what closing all units of structure {structure.text!r}{besides} saves"
            )
    names = tuple(dict.fromkeys(member.name for group in chosen for member in group.members))
    return Part(names, structure, tuple(chosen), costs=costs)


def _part_of_rule(rule: Rule, names: tuple[str, ...], usual: Structure, shapes: Shapes, final: float) -> Part:
    """The kernels that follow one rule, in the usual structure where it says no other."""
    structure = structure_lib.parse(rule.structure) if rule.structure else usual
    if structure.kind == "groups":
        raise ValueError(f"a rule's structure is {structure.text!r}; allowed: unstructured, block:RxC, n:m")
    if rule.axis is not None:
        for name in names:
            if not -len(shapes[name]) <= rule.axis < len(shapes[name]):
                raise ValueError(f"axis is {rule.axis}; {name} has {len(shapes[name])} axes")
    n, m = structure.sizes
    if structure.kind == "n:m" and rule.sparsity is not None and rule.sparsity > (1 - n / m) * (1 + 1e-6):
        raise ValueError(
            f"the rule of {names[0]} has sparsity {rule.sparsity:g}; allowed with {structure.text}: up to {1 - n / m:g}"
        )
    share = 1.0 if rule.sparsity is None else rule.sparsity / final if final else 0.0
    inputs = -2 if rule.axis is None else rule.axis
    return Part(names, structure, share=share, inputs=inputs, sparsity=rule.sparsity)


def _misfit(group: Group, shapes: Shapes) -> str | None:
    """Why a group cannot run along its members, None if it can."""
    if not group.members:
        return f"none of its members has a gate; those that have one are {', '.join(list(shapes)[:8])}"
    for member in group.members:
        shape, units = shapes[member.name], np.asarray(member.units)
        if not 0 <= member.axis < len(shape) or units.shape != (shape[member.axis],):
            return f"units of shape {units.shape} are not one per index of axis {member.axis} of {member.name} {shape}"
        if units.max(initial=-1) >= group.size:
            return f"it has {group.size} units, and {member.name} has {units.max() + 1}"
    return None

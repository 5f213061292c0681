"""What whoever prunes has decided: which gates close together, how far, and which kernels are left alone.

A method gives every gate a score and knows no more of the structure; the plan closes the lowest scores until a target
is met. All of it works inside jit, with the target as an array.

A unit is what closes as one: a gate, a block, a head. It is scored by the mean of its open gates' scores over its size,
which orders units of one size as the sum does and is fair between heads and feed-forward columns. A unit is open as
long as one of its gates is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning import costs as costs_lib
from prune_jax.pruning import distribution, select, trees
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.costs import Costs
from prune_jax.pruning.options import option, options
from prune_jax.pruning.structure import Group, Member, Structure

Tree = Any
Leaves = dict[str, jax.Array]  # by name

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


class Part(NamedTuple):
    """Kernels that close by one structure towards one target.

    Attributes:
      names: of its kernels.
      structure: how they close.
      groups: the groups of a structure of groups.
      share: its target over the plan's.
      sparsity: its target in the end, where a rule has one of its own.
      inputs: the axis of each kernel that counts its inputs.
      costs: what the target counts, for groups with the global scope; None, weights.
    """

    names: tuple[str, ...]
    structure: Structure
    groups: tuple[Group, ...] = ()
    share: float = 1.0
    inputs: int = -2
    costs: Costs | None = None
    sparsity: float | None = None

    def goal(self, target: jax.Array | float) -> jax.Array:
        """() float32: its target for one of the plan. A product's last digit is off; the rule's own sparsity is not."""
        if self.sparsity is None:
            return jnp.asarray(target, jnp.float32)
        reached = jnp.asarray(target * self.share, jnp.float32)
        return jnp.where(reached > self.sparsity * (1 - 1e-6), jnp.float32(self.sparsity), reached)


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

    def close(self, gates: Tree, scores: Tree, target: jax.Array | float, key: jax.Array) -> Tree:
        """Closes open gates, lowest score first, until the target fraction of each set is closed.

        Closed gates stay closed, so a set that is sparser than the target already is left as it is. Gates by
        themselves and blocks are counted exactly, round(target * size) of each set. Groups come within one unit of it,
        in weights or in the costs of the plan. n:m closes floor(target * m) of every m, and never more than m - n. Ties
        are chosen among at random.

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
            flat |= _close_part(part, self.scope, flat, values, part.goal(target), own)
        return trees.replaced(gates, flat)

    def below(self, gates: Tree, scores: Tree, threshold: float) -> jax.Array:
        """() float32: the closed fraction of what the plan covers if every open unit scored below it closed."""
        flat, values = trees.by_name(gates), trees.by_name(scores)
        kept, total = jnp.float32(0), 0
        for part in self.parts:
            opened, means = _pool(part, flat, values)
            for unit, size in _unit_sizes(part, flat).items():
                kept += jnp.sum(opened[unit] & (means[unit] >= threshold), dtype=jnp.float32) * size
                total += opened[unit].size * size
        return 1 - kept / max(total, 1)

    @property
    def units(self) -> "Units | None":
        """The units of a plan of groups or blocks; None where gates close by themselves or by n:m."""
        if len(self.parts) != 1 or self.parts[0].structure.kind not in ("block", "groups"):
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
        return self._tree(_totals(self.part, trees.by_name(tree)))

    def spread(self, gates: Tree, opened: Tree) -> Tree:
        """The gates with every gate of a closed unit closed; opened: booleans in the form of `of`."""
        return trees.replaced(gates, _spread(self.part, trees.by_name(gates), self._leaves(opened)))

    def close(self, gates: Tree, scores: Tree, target: jax.Array | float, key: jax.Array) -> Tree:
        """As Plan.close, by scores of the units: the sum over a unit's gates, which is compared by its size."""
        flat = trees.by_name(gates)
        sizes = _unit_sizes(self.part, flat)
        means = {name: leaf / sizes[name] for name, leaf in self._leaves(scores).items()}
        opened = self._leaves(self.of(gates))
        return trees.replaced(
            gates, _close_units(self.part, self.scope, flat, opened, means, self.part.goal(target), key)
        )


def assigned(params: Tree, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """name -> the rule that a leaf follows: the first whose pattern is found in its name; others are not in it.

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
    own: dict[str, Rule] = {}
    for pattern, rule in rules.items():
        hits = list(gates_lib.matching({pattern: rule}, list(leaves)))
        kernels = [name for name in hits if gates_lib.is_kernel(name, leaves[name])]
        for name in kernels or hits:
            own.setdefault(name, rule)
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
    Raises:
      ValueError: a structure or scope that is not known, that the network has not, or that does not divide a kernel; a
        group that does not fit its kernels; nothing that may close.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; allowed: {', '.join(SCOPES)}")
    shapes = {name: leaf.shape for name, leaf in trees.by_name(gates).items()}
    own = dict(rules or {})
    usual = structure_lib.parse(structure)
    parts = []
    rest = [name for name in shapes if name not in own]
    if usual.kind == "groups":
        if scope == "erk":
            raise ValueError(f"scope is 'erk'; allowed: local, global with structure {structure!r}")
        if costs is not None and scope != "global":
            raise ValueError(
                f"scope is {scope!r}; allowed: global with a target in {costs.word}, which is the network's"
            )
        # A group of which a member is kept, or goes by a rule, stays whole. Members without a gate do not count.
        chosen = [group for group in structure_lib.chosen(usual, tuple(groups)) if not own.keys() & _names(group)]
        chosen = [g._replace(members=tuple(m for m in g.members if m.name in shapes)) for g in chosen]
        for group in chosen:
            if problem := _misfit(group, shapes):
                raise ValueError(f"the group {group.name!r}: {problem}")
        names = tuple(dict.fromkeys(member.name for group in chosen for member in group.members))
        parts.append(Part(names, usual, tuple(chosen), costs=costs))
    elif costs is not None:
        raise ValueError(f"structure is {structure!r}; allowed: groups of the network with a target in {costs.word}")
    else:
        names = tuple(name for name in rest if usual.kind == "unstructured" or body(name))
        if names:
            parts.append(Part(names, usual))
    for rule in dict.fromkeys(rule for rule in own.values() if not rule.keep):
        names = tuple(name for name in shapes if own.get(name) == rule)
        kind = structure_lib.parse(rule.structure) if rule.structure else usual
        if kind.kind == "groups":
            raise ValueError(f"a rule's structure is {kind.text!r}; allowed: unstructured, block:RxC, n:m")
        if rule.axis is not None:
            for name in names:
                if not -len(shapes[name]) <= rule.axis < len(shapes[name]):
                    raise ValueError(f"axis is {rule.axis}; {name} has {len(shapes[name])} axes")
        share = 1.0 if rule.sparsity is None else rule.sparsity / final if final else 0.0
        axis = -2 if rule.axis is None else rule.axis
        parts.append(Part(names, kind, share=share, inputs=axis, sparsity=rule.sparsity))
    if not any(part.names for part in parts):
        raise ValueError(f"there is nothing to prune: structure {structure!r} and the rules leave no kernel to close")
    for part in parts:
        for name in part.names:
            if problem := structure_lib.divides(part.structure, shapes[name], part.inputs):
                raise ValueError(f"{name}: {problem}")
    return Plan(tuple(parts), scope, layers)


def _names(group: Group) -> set[str]:
    return {member.name for member in group.members}


def _misfit(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
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


# Units ---------------------------------------------------------------------------------------------------------------


def _along(member: Member, x: jax.Array, size: int) -> jax.Array:
    """(size,) float32: the sum of a weight's entries over everything but the units of a member."""
    sums = jnp.sum(x, [axis for axis in range(x.ndim) if axis != member.axis], jnp.float32)
    units = np.where(member.units < 0, size, member.units)  # what belongs to no unit falls off the end
    return jax.ops.segment_sum(sums, jnp.asarray(units), size)


def _across(member: Member, opened: jax.Array, rank: int) -> jax.Array:
    """The open units of a member as booleans that broadcast against its weight."""
    along = jnp.where(jnp.asarray(member.units < 0), True, opened[jnp.asarray(member.units)])
    return along.reshape([along.size if axis == member.axis else 1 for axis in range(rank)])


def _block_axes(part: Part, rank: int) -> tuple[int, int]:
    inputs = part.inputs % rank
    return inputs, structure_lib.outputs_of(inputs, rank)


def _block_view(part: Part, x: jax.Array) -> tuple[tuple[int, ...], tuple[int, int]]:
    """(the shape of a kernel with its two block axes split into (blocks, size), the axes of the sizes in it)."""
    rows, columns = _block_axes(part, x.ndim)
    sizes = {rows: part.structure.sizes[0], columns: part.structure.sizes[1]}
    shape: list[int] = []
    inner = []
    for axis, length in enumerate(x.shape):
        if axis in sizes:
            shape += [length // sizes[axis], sizes[axis]]
            inner.append(len(shape) - 1)
        else:
            shape.append(length)
    return tuple(shape), (inner[0], inner[1])


def _totals(part: Part, flat: Mapping[str, jax.Array]) -> Leaves:
    """The sum over each unit, float32, by group or kernel. A gate by itself is its own unit."""
    if part.structure.kind == "groups":
        return {g.name: sum(_along(m, flat[m.name], g.size) for m in g.members) for g in part.groups}  # type: ignore[misc]
    if part.structure.kind == "block":
        sums = {}
        for name in part.names:
            shape, inner = _block_view(part, flat[name])
            sums[name] = jnp.sum(flat[name].reshape(shape), inner, jnp.float32)
        return sums
    return {name: flat[name].astype(jnp.float32) for name in part.names}


def _unit_sizes(part: Part, flat: Mapping[str, jax.Array]) -> dict[str, int]:
    """The gates of one unit, by group or kernel."""
    if part.structure.kind == "groups":
        return {g.name: sum(_members_gates(flat[m.name].shape, m) for m in g.members) // g.size for g in part.groups}
    size = part.structure.sizes[0] * part.structure.sizes[1] if part.structure.kind == "block" else 1
    return dict.fromkeys(part.names, size)


def _members_gates(shape: tuple[int, ...], member: Member) -> int:
    """The gates of all the units of a member."""
    return math.prod(shape) // shape[member.axis] * int(np.sum(member.units >= 0))


def _pool(part: Part, flat: Leaves, values: Leaves) -> tuple[Leaves, Leaves]:
    """(whether each unit is open, the mean score of each)."""
    if part.structure.kind not in ("groups", "block"):
        return {name: flat[name] for name in part.names}, values
    sizes = _unit_sizes(part, flat)
    opened = {name: n > 0 for name, n in _totals(part, flat).items()}
    masked = {name: jnp.where(flat[name], values[name], 0) for name in part.names}
    return opened, {name: total / sizes[name] for name, total in _totals(part, masked).items()}


def _spread(part: Part, flat: Leaves, opened: Leaves) -> Leaves:
    """The gates with those of closed units closed."""
    if part.structure.kind == "block":
        new = {}
        for name in part.names:
            shape, inner = _block_view(part, flat[name])
            new[name] = flat[name] & jnp.broadcast_to(jnp.expand_dims(opened[name], inner), shape).reshape(
                flat[name].shape
            )
        return new
    new = {name: flat[name] for name in part.names}
    for group in part.groups:
        for member in group.members:
            new[member.name] = new[member.name] & _across(member, opened[group.name], new[member.name].ndim)
    return new


# Closing -------------------------------------------------------------------------------------------------------------


def _wanted(gates: Sequence[jax.Array], targets: Sequence[jax.Array], sets: Sequence[int]) -> jax.Array:
    """(sets,) uint32: how many more gates are to close in each set; sets: that of each leaf, from 0 on."""
    more = []
    for one, target in enumerate(targets):
        own = [gate for gate, its in zip(gates, sets, strict=True) if its == one]
        goal = select.portion(target, sum(gate.size for gate in own))
        reached = sum((jnp.uint32(gate.size) - jnp.sum(gate, dtype=jnp.uint32) for gate in own), jnp.uint32(0))
        more.append(jnp.where(goal > reached, goal - reached, 0))
    return jnp.stack(more)


def _sets(part: Part, scope: str, leaves: Sequence[str]) -> list[int]:
    """The set that each leaf is ranked in. Groups of one unit, such as layers, are ranked with all of their kind."""
    alone = {group.name: group.kind for group in part.groups if group.size == 1}
    owners = ["" if scope == "global" else f"kind {alone[name]}" if name in alone else name for name in leaves]
    number = {owner: i for i, owner in enumerate(dict.fromkeys(owners))}
    return [number[owner] for owner in owners]


def _close_lowest(
    gates: Leaves, scores: Leaves, targets: Sequence[jax.Array], key: jax.Array, sets: list[int]
) -> Leaves:
    """Closes the lowest scores of each set; targets: per set."""
    opened = list(gates.values())
    k = _wanted(opened, targets, sets)
    lowest = select.lowest([scores[name] for name in gates], opened, k, key, sets)
    return {name: gate & ~low for (name, gate), low in zip(gates.items(), lowest, strict=True)}


def _close_part(part: Part, scope: str, flat: Leaves, values: Leaves, target: jax.Array, key: jax.Array) -> Leaves:
    if not part.names:
        return {}
    if part.structure.kind == "n:m":
        return _close_n_of_m(part, flat, values, target, key)
    opened, means = _pool(part, flat, values)
    return _close_units(part, scope, flat, opened, means, target, key)


def _close_units(
    part: Part, scope: str, flat: Leaves, opened: Leaves, means: Leaves, target: jax.Array, key: jax.Array
) -> Leaves:
    if part.structure.kind == "groups" and scope == "global" and (part.costs or len(part.groups) > 1):
        left = _close_by_cost(part, flat, opened, means, target, key)
    else:
        sets = _sets(part, scope, list(opened))
        if scope == "erk" and part.structure.kind != "groups":
            targets = distribution.erk([flat[name].shape for name in opened], target)
        else:
            targets = [target] * (max(sets) + 1)
        left = _close_lowest(opened, means, targets, key, sets)
    return _spread(part, flat, left) if part.structure.kind in ("groups", "block") else left


def _close_by_cost(
    part: Part, flat: Leaves, opened: Leaves, means: Leaves, target: jax.Array, key: jax.Array
) -> Leaves:
    """Closes the units of lowest score per saved cost until the saved share of the cost is nearest to the target."""
    sizes = _unit_sizes(part, flat)
    counts = {name: leaf.size for name, leaf in opened.items()}
    shapes = {name: flat[name].shape for name in part.names}
    cost = part.costs or costs_lib.of_weights(part.groups, shapes)
    saves = cost.per_unit(counts)
    flags = jnp.concatenate(list(opened.values()))
    score = jnp.concatenate([means[name] * (sizes[name] / saves[name]) for name in opened])
    order = jnp.lexsort((jax.random.uniform(key, score.shape), score, ~flags))  # units are few: a sort costs nothing
    member = np.concatenate([np.full(n, i, np.int32) for i, n in enumerate(counts.values())])
    gone = jnp.where(flags[order, None], jax.nn.one_hot(jnp.asarray(member)[order], len(counts)), 0)
    gone = jnp.concatenate([jnp.zeros((1, len(counts))), jnp.cumsum(gone, axis=0)])
    start = jnp.stack([jnp.sum(leaf, dtype=jnp.float32) for leaf in opened.values()])
    left = (start - gone) / jnp.array(list(counts.values()), jnp.float32)
    reached = cost.of({name: left[:, i] for i, name in enumerate(counts)})
    goal = (1 - target) * cost.dense(tuple(counts))
    drop = jnp.argmin(jnp.abs(reached - goal))
    flags = flags.at[order].set(flags[order] & (jnp.arange(flags.size) >= drop))
    ends = np.cumsum(list(counts.values()))[:-1]
    return dict(zip(opened, jnp.split(flags, ends), strict=True))


def _close_n_of_m(part: Part, flat: Leaves, values: Leaves, target: jax.Array, key: jax.Array) -> Leaves:
    """n:m, reached one by one: a target of t closes floor(t * m) of every m, and never more than m - n.

    Every mask on the way is exact, m-1:m, m-2:m, ..., and never ahead of the schedule. The pattern leaves a kernel no
    choice of how many, so the scope plays no part.
    """
    n, m = part.structure.sizes
    closed = jnp.minimum(m - n, jnp.floor(target * m * (1 + 2.5e-7)))  # k / m as a float32, times m, may be below k
    new = {}
    for l, name in enumerate(part.names):
        axis = part.inputs % flat[name].ndim
        gate, score = (jnp.moveaxis(x[name], axis, 0) for x in (flat, values))
        runs = (gate.shape[0] // m, m, *gate.shape[1:])
        noise = jax.random.uniform(jax.random.fold_in(key, l), runs)  # for the ties
        ranked = jnp.where(gate, score, -jnp.inf).reshape(runs)  # what is closed already counts, and goes first
        place = jnp.argsort(jnp.lexsort((noise, ranked), axis=1), axis=1)
        new[name] = jnp.moveaxis(gate & (place >= closed).reshape(gate.shape), 0, axis)
    return new

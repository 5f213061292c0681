"""Kernels that close by one structure, and their units: how many there are, how they score, what closes with them.

A unit is what closes as one: a gate, a block, a head. It is scored by the mean of its open gates' scores over its size,
which orders units of one size as the sum does and is fair between heads and feed-forward columns. A unit is open as
long as one of its gates is.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning import costs as costs_lib
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.costs import Costs
from prune_jax.pruning.structure import Group, Member, Structure

Leaves = dict[str, jax.Array]  # by name: of a kernel, or, for units, of a group or a blocked kernel


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

    @property
    def pools(self) -> bool:
        """Whether a unit is several gates: a block, or the unit of a group."""
        return self.structure.kind in ("groups", "block")

    def goal(self, target: jax.Array | float) -> jax.Array:
        """() float32: its target for one of the plan. A product's last digit is off; the rule's own sparsity is not."""
        if self.sparsity is None:
            return jnp.asarray(target, jnp.float32)
        reached = jnp.asarray(target * self.share, jnp.float32)
        return jnp.where(reached > self.sparsity * (1 - 1e-6), jnp.float32(self.sparsity), reached)

    def totals(self, flat: Mapping[str, jax.Array]) -> Leaves:
        """The sum over each unit, float32, by group or kernel. A gate by itself is its own unit."""
        if self.structure.kind == "groups":
            return {g.name: sum(_along(m, flat[m.name], g.size) for m in g.members) for g in self.groups}  # type: ignore[misc]
        if self.structure.kind == "block":
            sums = {}
            for name in self.names:
                shape, inner = self._blocks(flat[name])
                sums[name] = jnp.sum(flat[name].reshape(shape), inner, jnp.float32)
            return sums
        return {name: flat[name].astype(jnp.float32) for name in self.names}

    def sizes(self, flat: Mapping[str, jax.Array]) -> dict[str, int]:
        """The gates of one unit, by group or kernel."""
        if self.structure.kind == "groups":
            return {
                g.name: sum(_members_gates(flat[m.name].shape, m) for m in g.members) // g.size for g in self.groups
            }
        size = self.structure.sizes[0] * self.structure.sizes[1] if self.structure.kind == "block" else 1
        return dict.fromkeys(self.names, size)

    def covered(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The gates that may close: a gate that several groups run through counts once."""
        if self.structure.kind != "groups":
            return sum(math.prod(shapes[name]) for name in self.names)
        spared = {name: [np.ones(size, bool) for size in shapes[name]] for name in self.names}
        for member in (member for group in self.groups for member in group.members):
            spared[member.name][member.axis] &= member.units < 0
        return sum(math.prod(shapes[name]) - math.prod(int(axis.sum()) for axis in spared[name]) for name in self.names)

    def cost(self, flat: Mapping[str, jax.Array]) -> Costs:
        """What a target counts where the groups are ranked together: the costs given, or the weights that may close."""
        shapes = {name: flat[name].shape for name in self.names}
        return self.costs or costs_lib.of_weights(self.groups, shapes)._replace(fixed=0.0)

    @property
    def squares(self) -> bool:
        """Whether a group runs along two axes of a kernel: what it closes there is no multiple of its closed units."""
        return any(len({m.name for m in group.members}) < len(group.members) for group in self.groups)

    def pooled(self, gates: Leaves, scores: Leaves) -> tuple[Leaves, Leaves]:
        """(whether each unit is open, the mean score of each)."""
        if not self.pools:
            return {name: gates[name] for name in self.names}, scores
        sizes = self.sizes(gates)
        opened = {name: n > 0 for name, n in self.totals(gates).items()}
        masked = {name: jnp.where(gates[name], scores[name], 0) for name in self.names}
        return opened, {name: total / sizes[name] for name, total in self.totals(masked).items()}

    def spread(self, gates: Leaves, opened: Leaves) -> Leaves:
        """The gates with those of closed units closed; opened: whether each unit stays open."""
        new = {name: gates[name] for name in self.names}
        if self.structure.kind == "block":
            for name, gate in new.items():
                shape, inner = self._blocks(gate)
                along = jnp.broadcast_to(jnp.expand_dims(opened[name], inner), shape)
                new[name] = gate & along.reshape(gate.shape)
        for group in self.groups:
            for member in group.members:
                new[member.name] = new[member.name] & _across(member, opened[group.name], new[member.name].ndim)
        return new

    def _blocks(self, x: jax.Array) -> tuple[tuple[int, ...], tuple[int, int]]:
        """(the shape of a kernel with its two block axes split into (blocks, size), the axes of the sizes in it)."""
        rows = self.inputs % x.ndim
        sizes = {rows: self.structure.sizes[0], structure_lib.outputs_of(rows, x.ndim): self.structure.sizes[1]}
        shape: list[int] = []
        inner = []
        for axis, length in enumerate(x.shape):
            if axis in sizes:
                shape += [length // sizes[axis], sizes[axis]]
                inner.append(len(shape) - 1)
            else:
                shape.append(length)
        return tuple(shape), (inner[0], inner[1])


def _along(member: Member, x: jax.Array, size: int) -> jax.Array:
    """(size,) float32: the sum of a weight's entries over everything but the units of a member."""
    sums = jnp.sum(x, [axis for axis in range(x.ndim) if axis != member.axis], jnp.float32)
    units = np.where(member.units < 0, size, member.units)  # what belongs to no unit falls off the end
    return jax.ops.segment_sum(sums, jnp.asarray(units), size)


def _across(member: Member, opened: jax.Array, rank: int) -> jax.Array:
    """The open units of a member as booleans that broadcast against its weight."""
    along = jnp.where(jnp.asarray(member.units < 0), True, opened[jnp.asarray(member.units)])
    return along.reshape([along.size if axis == member.axis else 1 for axis in range(rank)])


def _members_gates(shape: tuple[int, ...], member: Member) -> int:
    """The gates of all the units of a member."""
    return math.prod(shape) // shape[member.axis] * int(np.sum(member.units >= 0))

"""What a network costs as a function of how many units of each group are left."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning.structure import Group


class Term(NamedTuple):
    """A part of the cost: what it is while everything is open, and the groups that it shrinks with.

    Attributes:
      cost: of the dense network.
      factors: (group, share) pairs. The term is multiplied by 1 - share * (the closed fraction of the group): a share
        of 1 where all of an axis belongs to the group's units.
    """

    cost: float
    factors: tuple[tuple[str, float], ...]


class Table(NamedTuple):
    """A part of the cost that was measured: at some open fractions of a group, straight lines between them.

    Attributes:
      group: its name.
      fractions: increasing, from 0 to 1.
      costs: one per fraction.
    """

    group: str
    fractions: tuple[float, ...]
    costs: tuple[float, ...]


class Costs(NamedTuple):
    """The cost of a network: the sum of a constant, products of open fractions, and measured tables.

    Attributes:
      word: what is counted: weights, flops, seconds.
      terms: parts that are products of the fractions that are open.
      tables: parts that were measured.
      fixed: what no group changes.
      overlap: costs whose terms tell how much of what two tables save is the same, such as that of the columns and of
        the residual width, which meet in a kernel; None where nothing is.
    """

    word: str
    terms: tuple[Term, ...] = ()
    tables: tuple[Table, ...] = ()
    fixed: float = 0.0
    overlap: "Costs | None" = None

    def of(self, fractions: Mapping[str, Any]) -> Any:
        """The cost, of the shape of the fractions; fractions: group -> the share of its units that is open."""
        xp: Any = jnp if any(isinstance(value, jax.Array) for value in fractions.values()) else np
        total: Any = self.fixed
        for term in self.terms:
            product: Any = term.cost
            for group, share in term.factors:
                if group in fractions:
                    product = product * (1 - share * (1 - fractions[group]))
            total = total + product
        saved: Any = 0.0
        for table in self.tables:
            total = total + table.costs[-1]
            if table.group in fractions:
                now = xp.interp(fractions[table.group], xp.array(table.fractions), xp.array(table.costs))
                saved = saved + (table.costs[-1] - now)
        if self.overlap is not None:
            saved = saved * self.overlap.shared(fractions)
        return total - saved

    def shared(self, fractions: Mapping[str, Any]) -> Any:
        """What the terms save together, in parts of what each group saves alone: 1 where no two meet in a term."""
        xp: Any = jnp if any(isinstance(value, jax.Array) for value in fractions.values()) else np
        together: Any = 0.0
        alone: Any = 0.0
        for term in self.terms:
            own: dict[str, Any] = {}
            for group, share in term.factors:
                if group in fractions:
                    own[group] = own.get(group, 1.0) * (1 - share * (1 - fractions[group]))
            if own:
                together = together + term.cost * (1 - math.prod(own.values()))
                alone = alone + term.cost * sum(1 - left for left in own.values())
        return xp.where(alone > 0, together / xp.where(alone > 0, alone, 1.0), 1.0)

    def dense(self, groups: Sequence[str]) -> float:
        """The cost while everything is open."""
        return float(self.of(dict.fromkeys(groups, 1.0)))

    def per_unit(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Group -> what closing one of its units saves in the dense network; sizes: group -> its units."""
        opened = dict.fromkeys(sizes, 1.0)
        dense = float(self.of(opened))
        # A tenth of the group rather than one unit: a table is no straight line, and one unit is lost in rounding.
        share = {name: max(1, round(size / 10)) / size for name, size in sizes.items()}
        saved = {name: dense - float(self.of({**opened, name: 1 - share[name]})) for name in sizes}
        return {name: max(saved[name], 1e-9 * dense) / (share[name] * sizes[name]) for name in sizes}


def spread(cost: float, axes: Sequence[Mapping[str, np.ndarray]]) -> list[Term]:
    """The terms of a cost that is even over an array: one per part of it that the same groups run through.

    Groups side by side along an axis, as where features are joined, are in terms of their own, which add up; those that
    share indices of it, and those along different axes, are factors of one term.

    Args:
      axes: of each axis, group -> (length,) booleans, the indices that belong to its units.
    """
    parts: dict[tuple[str, ...], float] = {(): cost}
    for covered in axes:
        if covered:
            rows, counts = np.unique(np.stack(list(covered.values())), axis=1, return_counts=True)
            cells: dict[tuple[str, ...], float] = {}
            for names, whole in parts.items():
                for row, count in zip(rows.T, counts, strict=True):
                    own = (*names, *(name for name, inside in zip(covered, row, strict=True) if inside))
                    cells[own] = cells.get(own, 0.0) + whole * float(count / counts.sum())
            parts = cells
    return [Term(part, tuple((name, 1.0) for name in names)) for names, part in parts.items()]


def of_weights(groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]]) -> Costs:
    """The weights that are left of the kernels of the groups; `fixed` are those that no unit runs through."""
    along: dict[str, list[dict[str, np.ndarray]]] = {}
    for group in groups:
        for member in group.members:
            axes = along.setdefault(member.name, [{} for _ in shapes[member.name]])
            axes[member.axis][group.name] = np.asarray(member.units) >= 0
    terms = [term for name, axes in along.items() for term in spread(float(np.prod(shapes[name])), axes)]
    fixed = sum(term.cost for term in terms if not term.factors)
    return Costs("weights", tuple(term for term in terms if term.factors), fixed=fixed)

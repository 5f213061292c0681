"""Whole units closed by second-order cost, the survivors corrected (ZipLM, Kurtic et al., 2023, arXiv:2302.04089).

A unit is a set of inputs of the kernels that read it: a head, a feed-forward column, a channel and its window. One
after the other, the unit closes whose loss can be made up for best, and what is left is corrected.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.graph.graph import Graph
from prune_jax.oneshot.hessian import Factors
from prune_jax.oneshot.uses import Piece, Site
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.structure import Group

_TOGETHER = 128  # inputs whose closing is written to the weights and the inverse at once


class Reading(NamedTuple):
    """A group at the site that reads it: the pieces that do, and the unit of each of their inputs, -1 for none."""

    group: Group
    pieces: tuple[Piece, ...]
    units: np.ndarray


def readings(
    graph: Graph, groups: Sequence[Group], strict: bool, sites: list[Site], kept: Mapping[str, str], starts: np.ndarray
) -> dict[int, Reading]:
    """Number of a site -> the group that closes there.

    Args:
      groups: those that are to close; strict: whether one that cannot is an error, and not left out.
      kept: weights that stay dense -> the rule that says so: a group with one is left out.
      starts: where each weight starts among the entries of all.
    Raises:
      ValueError: one is read at several places, by itself or beside another, or none is left.
    """
    found: dict[int, Reading] = {}
    reasons = {}
    for group in groups:
        if any(member.name in kept for member in group.members):
            continue
        reading = _reading(graph, group, sites, starts)
        if isinstance(reading, str):
            reasons[group.name] = reading
        elif reading[0] in found:
            reasons[group.name] = f"its inputs are those of {found[reading[0]].group.name!r}, too"
        else:
            found[reading[0]] = reading[1]
    if reasons and (strict or not found):
        name, why = next(iter(reasons.items()))
        able = ", ".join(reading.group.name for reading in found.values())
        raise ValueError(f"units of {name!r} cannot be closed in one shot: {why}; allowed: {able or 'none of these'}")
    if not found:
        raise ValueError(f"there is nothing to prune: {structure_lib.held(groups, kept)}")
    return found


def _reading(graph: Graph, group: Group, sites: list[Site], starts: np.ndarray) -> tuple[int, Reading] | str:
    readers = {
        member.name: member
        for member in group.members
        if member.name in graph.kernels and member.axis in graph.kernels[member.name].inputs
    }
    places = {i: [p for p in site.pieces if p.name in readers] for i, site in enumerate(sites)}
    places = {i: pieces for i, pieces in places.items() if pieces}
    if not places:
        return "no kernel reads them"
    if len(places) > 1:
        return f"kernels read them at {len(places)} places ({', '.join(list(readers)[:3])})"
    ((at, pieces),) = places.items()
    all_units = []
    for piece in pieces:
        if len(piece.entries) > 1:
            return f"{piece.name} has a batch of kernels"
        number = graph.names.index(piece.name)
        indices = np.unravel_index(piece.entries[0, 0] - starts[number], graph.kernels[piece.name].shape)
        all_units.append(readers[piece.name].units[indices[readers[piece.name].axis]])
    if any((units != all_units[0]).any() for units in all_units):
        return "the kernels that read them do so in different orders"
    return at, Reading(group, tuple(pieces), all_units[0])


def remove(weights: jax.Array, factors: Factors, units: np.ndarray, size: int, k: int) -> tuple[jax.Array, jax.Array]:
    """Closes k units of inputs.

    Args:
      weights: (inputs, outputs) float32 of all that read them; units: (inputs,) the unit of each, -1 for none.
      size: the number of units; k: how many close, fewer than all.
    Returns:
      the least-squares weights of what is left; (size,) booleans of what is open.
    """
    return _remove(weights, factors, jnp.asarray(_table(units, size)), jnp.asarray(units), k)[:2]


def _table(units: np.ndarray, size: int) -> np.ndarray:
    """(size, width): the inputs of each unit, filled up with -1."""
    width = max(int(np.bincount(units[units >= 0], minlength=size).max()), 1)
    table = np.full((size, width), -1)
    for unit in range(size):
        own = np.flatnonzero(units == unit)
        table[unit, : len(own)] = own
    return table


def curve(weights: jax.Array, factors: Factors, units: np.ndarray, size: int) -> np.ndarray:
    """(size,) float64: the squared error of the outputs once 0, 1, ... size - 1 units are closed.

    Args:
      weights, units, size: as remove's.
    """
    *_, costs = _remove(weights, factors, jnp.asarray(_table(units, size)), jnp.asarray(units), size - 1)
    return np.concatenate([[0.0], np.cumsum(np.asarray(costs, np.float64))])


def share(
    graph: Graph, params: Any, found: dict[int, Reading], curves: dict[int, np.ndarray], fraction: float
) -> dict[int, int]:
    """Number of a site -> how many units close there, so that a fraction of all operations is saved.

    The sum of the errors is made small as KCM does it for a budget (Kwon et al., 2022, arXiv:2204.09656), but along
    each group's curve: at one price of an operation every group closes as many units as pay, and the price is searched.

    Args:
      curves: of `curve`, by site.
    Raises:
      ValueError: the groups have not that many operations; at least one unit of each stays.
    """
    whole, names = graph.cost().flops, {at: _name(graph, reading.group) for at, reading in found.items()}
    sizes = {at: reading.group.size for at, reading in found.items()}

    def saved(counts: dict[int, int]) -> int:
        cut = {names[at]: np.arange(sizes[at]) < k for at, k in counts.items()}
        return whole - graph.cost(cut=cut).flops

    per_unit = {at: saved({at: 1}) for at in found}
    wanted, most = fraction * whole, saved({at: size - 1 for at, size in sizes.items()})
    if most < wanted:
        raise ValueError(
            f"sparsity is {fraction:g} of the operations; allowed: at most {most / whole:.3f} with these groups"
        )
    goal = wanted
    while True:
        counts = _cheapest(per_unit, curves, goal)
        if saved(counts) >= wanted or all(counts[at] == sizes[at] - 1 for at in counts):
            return counts
        goal *= 1.02  # a kernel between two groups has been counted for both


def _name(graph: Graph, group: Group) -> str:
    """What the graph calls a group: a model may have a name of its own for it."""
    axes = {(member.name, member.axis) for member in group.members}
    for own in graph.groups.values():
        if own.size == group.size and axes & {(member.name, member.axis) for member in own.members}:
            return own.name
    raise ValueError(f"units of {group.name!r} cannot be closed by operations: the graph has no such group")


def _cheapest(per_unit: dict[int, int], curves: dict[int, np.ndarray], goal: float) -> dict[int, int]:
    """How many units of each group close so that `goal` operations are saved, each unit saving as much as the first."""
    per_unit = {at: max(saves, 1) for at, saves in per_unit.items()}

    def at_price(price: float) -> dict[int, int]:
        return {at: int(np.argmin(c - price * per_unit[at] * np.arange(len(c)))) for at, c in curves.items()}

    def saved(counts: dict[int, int]) -> int:
        return sum(per_unit[at] * k for at, k in counts.items())

    low, high = 0.0, 1.0 / min(per_unit.values())
    while saved(at_price(high)) < goal and high < 1e30:
        high *= 4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if saved(at_price(middle)) >= goal else (middle, high)
    counts = at_price(high)
    while True:  # a price closes several units at once: those that are not needed open again, the dearest first
        spare = saved(counts) - goal
        able = [at for at, k in counts.items() if k and per_unit[at] <= spare]
        if not able:
            return counts
        counts[max(able, key=lambda at: curves[at][counts[at]] - curves[at][counts[at] - 1])] -= 1


@functools.partial(jax.jit, static_argnames="k")
def _remove(
    weights: jax.Array, factors: Factors, table: jax.Array, units: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weights, what is open, and (k,) what each unit that closes adds to the squared error.

    A unit u costs tr(w' b^-1 w), of its weights w and its block b of the inverse Hessian. What its closing changes,
    H^-1 - c c' and W - c s with c = H^-1[:, u] L^-T, s = L^-1 w and b = L L', is held back for some units, so that both
    are written once per _TOGETHER inputs; blocks and w w' of every unit follow at once.
    """
    there, (size, width) = table >= 0, table.shape
    inputs, outputs = weights.shape
    held = max(_TOGETHER // width, 1)
    pairs = there[:, :, None] & there[:, None, :]
    eye = jnp.eye(width, dtype=weights.dtype)
    dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    solve = jnp.linalg.solve if width > 1 else lambda a, b: b / a  # which would be called for every number
    dense = weights

    def close(i: jax.Array, carry: tuple) -> tuple:
        weights, inverse, opened, costs, blocks, squares, c, s = carry
        blocks_now = jnp.where(opened[:, None, None], blocks, eye)
        ranked = jnp.trace(solve(blocks_now, squares), axis1=1, axis2=2)
        unit = jnp.argmin(jnp.where(opened, ranked, jnp.inf))
        at, mine = table[unit], there[unit][:, None]
        rows = jnp.where(mine, inverse[at] - dot("ri,rn->in", c[:, at], c), 0)  # (width, inputs)
        own = jnp.where(mine, weights[at] - dot("ri,ro->io", c[:, at], s), 0)
        lower = jnp.linalg.cholesky(blocks_now[unit])
        c_new, s_new = (jax.scipy.linalg.solve_triangular(lower, x, lower=True) for x in (rows, own))
        c_new = jnp.where(jnp.where(units >= 0, opened[units], True), c_new, 0)
        by_unit = jnp.where(there, c_new[:, table], 0)  # (width, units, their inputs)
        product = dot("no,ao->an", weights, s_new) - dot("ra,rn->an", dot("ro,ao->ra", s, s_new), c)
        crossed = dot("aui,auj->uij", by_unit, product[:, table])
        blocks = blocks - dot("aui,auj->uij", by_unit, by_unit)
        squares = squares - jnp.where(pairs, crossed + jnp.swapaxes(crossed, 1, 2), 0)
        squares += dot("aui,ab,buj->uij", by_unit, dot("ao,bo->ab", s_new, s_new), by_unit)
        start = (i % held) * width
        c, s = (jax.lax.dynamic_update_slice(x, new, (start, 0)) for x, new in ((c, c_new), (s, s_new)))
        opened, costs = opened.at[unit].set(False), costs.at[i].set(jnp.sum(jnp.square(s_new)))
        return weights, inverse, opened, costs, blocks, squares, c, s

    def some(turn: jax.Array, carry: tuple) -> tuple:
        weights, inverse, opened, costs = carry
        blocks = jnp.where(pairs, inverse[table[:, :, None], table[:, None, :]], eye)
        own = jnp.where(there[:, :, None], weights[table], 0)  # (units, width, outputs)
        none = jnp.zeros((held * width, inputs)), jnp.zeros((held * width, outputs))
        carry = (*carry, blocks, dot("uio,ujo->uij", own, own), *none)
        first, last = turn * held, jnp.minimum((turn + 1) * held, k)
        *_, opened, costs, _, _, c, s = jax.lax.fori_loop(first, last, close, carry)
        left = jnp.where(units >= 0, opened[units], True)[:, None]
        return jnp.where(left, weights - dot("rn,ro->no", c, s), 0), inverse - dot("rn,rm->nm", c, c), opened, costs

    inverse = dot("ri,rj->ij", factors.upper, factors.upper)
    start = jnp.where(factors.dead[:, None], 0, weights), inverse, jnp.ones(size, bool), jnp.zeros(max(k, 1))
    *_, opened, costs = jax.lax.fori_loop(0, -(-k // held), some, start)
    left = jnp.where(units >= 0, opened[units], True)
    # Exact at the end: what many small corrections lose is not kept.
    wanted = jnp.where(left[:, None], dot("ij,jo->io", factors.hessian, dense), 0)
    kept = jnp.where(left[:, None] & left[None, :], factors.hessian, 0) + jnp.diag(jnp.where(left, 0.0, 1.0))
    new = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(kept, lower=True), wanted)
    return jnp.where(left[:, None], new, 0), opened, costs[:k]

"""Which units of a part close: the lowest scores, as many as the target asks for. All of it works inside jit."""

from collections.abc import Sequence, Set

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.pruning import distribution, select
from prune_jax.pruning.part import Leaves, Part


def close(part: Part, scope: str, flat: Leaves, values: Leaves, target: jax.Array, key: jax.Array) -> Leaves:
    """The gates of a part after its lowest-scoring units have closed, until the target fraction of each set is."""
    if not part.names:
        return {}
    if part.structure.kind == "n:m":
        return _close_n_of_m(part, flat, values, target, key)
    opened, means = part.pooled(flat, values)
    return close_units(part, scope, flat, opened, means, target, key)


def close_units(
    part: Part,
    scope: str,
    flat: Leaves,
    opened: Leaves,
    means: Leaves,
    target: jax.Array,
    key: jax.Array,
    per_cost: bool = True,
) -> Leaves:
    """As `close`, of units: opened, whether each is open; means, the mean score of each.

    Args:
      per_cost: whether groups that are ranked together go by score per saved cost; else by the scores as they are.
    """
    if part.structure.kind == "groups" and scope == "global" and (part.costs or len(part.groups) > 1 or part.squares):
        left = _close_by_cost(part, flat, opened, means, target, key, per_cost)
    else:
        sets = _sets(part, scope, list(opened))
        if scope == "erk" and part.structure.kind != "groups":
            targets = distribution.erk([flat[name].shape for name in opened], target)
        else:
            targets = [target] * (max(sets) + 1)
        several = {sets[i] for i, name in enumerate(opened) if opened[name].size > 1}
        spared = several if per_cost and part.structure.kind == "groups" else set()
        left = _close_lowest(opened, means, targets, key, sets, spared)
    return part.spread(flat, left) if part.pools else left


def _sets(part: Part, scope: str, leaves: Sequence[str]) -> list[int]:
    """The set that each leaf is ranked in. Groups of one unit, such as layers, are ranked with all of their kind."""
    alone = {group.name: group.kind for group in part.groups if group.size == 1}
    owners = ["" if scope == "global" else f"kind {alone[name]}" if name in alone else name for name in leaves]
    number = {owner: i for i, owner in enumerate(dict.fromkeys(owners))}
    return [number[owner] for owner in owners]


def _close_lowest(
    gates: Leaves, scores: Leaves, targets: Sequence[jax.Array], key: jax.Array, sets: list[int], spared: Set[int]
) -> Leaves:
    """Closes the lowest scores of each set; targets: per set; spared: sets that no rounding empties."""
    opened = list(gates.values())
    k = _wanted(opened, targets, sets, spared)
    lowest = select.lowest([scores[name] for name in gates], opened, k, key, sets)
    return {name: gate & ~low for (name, gate), low in zip(gates.items(), lowest, strict=True)}


def _wanted(
    gates: Sequence[jax.Array], targets: Sequence[jax.Array], sets: Sequence[int], spared: Set[int]
) -> jax.Array:
    """(sets,) uint32: how many more gates are to close in each set; sets: that of each leaf, from 0 on.

    spared: sets that keep one below a target of 1, though that is more than half a unit away.
    """
    more = []
    for one, target in enumerate(targets):
        own = [gate for gate, its in zip(gates, sets, strict=True) if its == one]
        size = sum(gate.size for gate in own)
        goal = select.portion(target, size)
        if one in spared:
            goal = jnp.minimum(goal, jnp.where(target < 1, size - 1, size).astype(jnp.uint32))
        reached = sum((jnp.uint32(gate.size) - select.count(gate) for gate in own), jnp.uint32(0))
        more.append(jnp.where(goal > reached, goal - reached, 0))
    return jnp.stack(more)


def _close_by_cost(
    part: Part, flat: Leaves, opened: Leaves, means: Leaves, target: jax.Array, key: jax.Array, per_cost: bool
) -> Leaves:
    """Closes the units of lowest score (per saved cost) until the saved share of the cost is nearest to the target.

    A group's last unit closes only as long as that does not save more than the target.
    """
    sizes = part.sizes(flat)
    counts = {name: leaf.size for name, leaf in opened.items()}
    cost = part.cost(flat)
    saves = cost.per_unit(counts)
    flags = jnp.concatenate(list(opened.values()))
    score = jnp.concatenate([means[name] * (sizes[name] / saves[name] if per_cost else 1.0) for name in opened])
    member = np.concatenate([np.full(n, i, np.int32) for i, n in enumerate(counts.values())])
    order = jnp.lexsort((jax.random.uniform(key, score.shape), score, ~flags))  # units are few: a sort costs nothing
    others = jnp.uint32(flags.size)  # units that close before any group's last one
    if per_cost:
        # A group's last open unit goes after all others: an empty group may cut the output off, and no score says so.
        # What a network can do without as a whole is a group of one unit, such as a layer.
        place = jnp.argsort(order)
        last = place == jax.ops.segment_max(jnp.where(flags, place, -1), member, len(counts))[member]
        last &= flags & jnp.asarray([n > 1 for n in counts.values()])[member]
        others = jnp.sum(flags & ~last, dtype=jnp.uint32)
        order = jnp.lexsort((place, last, ~flags))
    gone = jnp.where(flags[order, None], jax.nn.one_hot(jnp.asarray(member)[order], len(counts)), 0)
    gone = jnp.concatenate([jnp.zeros((1, len(counts))), jnp.cumsum(gone, axis=0)])
    start = jnp.stack([jnp.sum(leaf, dtype=jnp.float32) for leaf in opened.values()])
    left = (start - gone) / jnp.array(list(counts.values()), jnp.float32)
    reached = cost.of({name: left[:, i] for i, name in enumerate(counts)})
    goal = (1 - target) * cost.dense(tuple(counts))
    empties = jnp.arange(flags.size + 1) > others
    beyond = empties & (reached < goal - 1e-5 * cost.dense(tuple(counts)))
    drop = jnp.argmin(jnp.where(beyond, jnp.inf, jnp.abs(reached - goal)))
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

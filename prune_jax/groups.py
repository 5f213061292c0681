"""Closing gates in groups (prune_jax.structure): scores to groups, groups to gates, and the closer that methods call.

A group is scored by the mean of its open gates' scores over its size, which orders groups of one size as the sum does
and is fair between heads and feed-forward columns. It is open as long as one of its gates is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import gates as gates_lib
from prune_jax import structure as structure_lib
from prune_jax.structure import Structure

Tree = Any


class Units(NamedTuple):
    """What is drawn, scored and closed as one: the groups of a structure, or every gate by itself.

    Attributes:
      of: (gates) -> booleans, one a unit, open as long as one of its gates is.
      totals: (tree like gates) -> the sum over each unit.
      spread: (gates, opened) -> the gates with every gate of a closed unit closed.
      close: (gates, scores of the units, target, key, scope) -> gates, as Closer.close; a unit's score is that of all
        its gates together, and goes by its size.
    """

    of: Callable
    totals: Callable
    spread: Callable
    close: Callable


class Closer(NamedTuple):
    """How a method closes gates; it knows no more of the structure.

    Attributes:
      close: (gates, scores, target, key, scope) -> gates, as gates.close_lowest, with groups in the place of gates. The
        closed fraction of the covered kernels comes within one group of the target.
      below: (gates, scores, threshold) -> the closed fraction if every open group scored below the threshold closed.
      units: the groups, None where there are none (unstructured, encoder, n:m).
    """

    close: Callable
    below: Callable
    units: Units | None = None


def create(config) -> Closer:
    """The closer of config.pruning.structure."""
    structure = structure_lib.parse(config.pruning.structure)
    if structure.kind == "unstructured":
        return _gate_by_gate(lambda tree: tree)
    if structure.kind == "encoder":
        return _gate_by_gate(_blocks)
    if structure.kind == "n:m":
        return _n_of_m(*structure.sizes)
    depth = config.model.d_model // config.model.num_heads if "head" in structure.parts else 0
    return _grouped(structure, depth)


def _gate_by_gate(covered: Callable[[Tree], Tree]) -> Closer:
    """The closer of single gates in the part of a tree of kernels that `covered` picks."""

    def close(gates, scores, target, key, scope="local"):
        return {**gates, **gates_lib.close_lowest(covered(gates), covered(scores), target, key, scope)}

    def below(gates, scores, threshold):
        part = covered(gates)
        return _below(part, covered(scores), threshold, _ones(part))

    return Closer(close, below)


# Groups --------------------------------------------------------------------------------------------------------------


def _blocks(tree: Tree) -> Tree:
    """The part of a tree of kernels that encoder, blocks and n:m cover."""
    heads = (*gates_lib.HEADS, "pooler")
    return {name: node for name, node in tree.items() if name not in heads}


def _through(inner: jax.Array, outer: jax.Array) -> jax.Array:
    """The sums over the units between two kernels: a column of the one, and the row of the next that reads it."""
    return jnp.sum(inner, 0, jnp.float32) + jnp.sum(outer, 1, jnp.float32)


def sums(structure: Structure, tree: Tree, depth: int = 0) -> Tree:
    """The sum over each group, of the gates or of the scores of a network.

    Args:
      tree: arrays (in, out) of any dtype, by the gates' paths.
      depth: the width of an attention head.
    Returns:
      {layer: {"heads": (heads,), "ffn": (columns,)}, "pooler": {"pooler": (units,)}} float32, or for blocks arrays
      (in / R, out / C) by the same paths. What a shrunk network has lost all units of is left out.
    """
    if structure.kind == "block":
        rows, columns = structure.sizes

        def pool(x):
            shape = (x.shape[0] // rows, rows, x.shape[1] // columns, columns)
            return jnp.sum(x.reshape(shape), (1, 3), jnp.float32)

        return jax.tree.map(pool, _blocks(tree))
    found = {}
    for name, layer in tree.items():
        groups = {}
        if "head" in structure.parts and "query" in layer:
            parts = [jnp.sum(layer[part]["kernel"], 0, jnp.float32) for part in ("query", "key", "value")]
            parts.append(jnp.sum(layer["attention_output"]["kernel"], 1, jnp.float32))
            groups["heads"] = jnp.sum(sum(parts).reshape(-1, depth), 1)
        if "ffn" in structure.parts and "ffn_hidden" in layer:
            groups["ffn"] = _through(layer["ffn_hidden"]["kernel"], layer["ffn_output"]["kernel"])
        if "pooler" in structure.parts and name == "pooler":
            groups["pooler"] = _through(layer["kernel"], tree[gates_lib.head_name(tree)]["kernel"])
        if groups:
            found[name] = groups
    return found


def close_groups(structure: Structure, gates: Tree, opened: Tree, depth: int = 0) -> Tree:
    """The gates with every gate of a closed group closed.

    Args:
      opened: booleans in the form of `sums`.
    """
    if structure.kind == "block":
        rows, columns = structure.sizes

        def spread(gate, group):
            return gate & jnp.repeat(jnp.repeat(group, rows, 0), columns, 1)

        return {**gates, **jax.tree.map(spread, _blocks(gates), opened)}
    found = dict(gates)
    for name, groups in opened.items():
        layer = found[name] = dict(gates[name])
        if "heads" in groups:
            units = jnp.repeat(groups["heads"], depth)
            for part in ("query", "key", "value"):
                layer[part] = {"kernel": layer[part]["kernel"] & units}
            layer["attention_output"] = {"kernel": layer["attention_output"]["kernel"] & units[:, None]}
        if "ffn" in groups:
            layer["ffn_hidden"] = {"kernel": layer["ffn_hidden"]["kernel"] & groups["ffn"]}
            layer["ffn_output"] = {"kernel": layer["ffn_output"]["kernel"] & groups["ffn"][:, None]}
        if "pooler" in groups:
            head = gates_lib.head_name(gates)
            layer["kernel"] = layer["kernel"] & groups["pooler"]
            found[head] = {"kernel": gates[head]["kernel"] & groups["pooler"][:, None]}
    return found


def _ones(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: 1, tree)


@jax.jit
def _kept(gates, scores, threshold, sizes):
    return jax.tree.map(
        lambda gate, s, size: jnp.sum(gate & (s >= threshold), dtype=jnp.int32) * size, gates, scores, sizes
    )


def _below(gates: Tree, scores: Tree, threshold: float, sizes: Tree) -> float:
    """The closed fraction once all open units scored below the threshold are closed; sizes: members of a unit."""
    kept = sum(int(n) for n in jax.tree.leaves(jax.device_get(_kept(gates, scores, threshold, sizes))))
    total = sum(leaf.size * size for leaf, size in zip(*map(jax.tree.leaves, (gates, sizes)), strict=True))
    return 1 - kept / total


def _close_by_size(groups: Tree, scores: Tree, sizes: Tree, target: float, key: jax.Array) -> Tree:
    """Closes the lowest groups of all, whatever their sizes, until the closed fraction is nearest to the target."""
    leaves, treedef = jax.tree.flatten(groups)
    each = [np.full(leaf.size, size) for leaf, size in zip(leaves, treedef.flatten_up_to(sizes), strict=True)]
    opened, size = np.concatenate([np.asarray(leaf) for leaf in leaves]), np.concatenate(each)
    score = np.concatenate([np.asarray(leaf) for leaf in treedef.flatten_up_to(scores)])
    order = np.asarray(jax.random.permutation(key, opened.size))  # ties at random: the sort below keeps their order
    order = order[opened[order]]
    order = order[np.argsort(score[order], kind="stable")]
    closed = size[~opened].sum() + np.concatenate([[0], np.cumsum(size[order])])
    opened[order[: np.argmin(np.abs(closed - target * size.sum()))]] = False
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return jax.tree.unflatten(treedef, [jnp.asarray(part) for part in np.split(opened, ends)])


def _grouped(structure: Structure, depth: int) -> Closer:
    def totals(tree):
        return sums(structure, tree, depth)

    def units_of(gates):
        return jax.tree.map(lambda n: n > 0, totals(gates))

    @jax.jit
    def pool(gates, scores):
        ones = totals(jax.tree.map(jnp.ones_like, gates))
        masked = totals(jax.tree.map(lambda gate, s: jnp.where(gate, s, 0), gates, scores))
        return units_of(gates), jax.tree.map(jnp.divide, masked, ones)

    @jax.jit
    def spread(gates, opened):
        return close_groups(structure, gates, opened, depth)

    def sizes(gates):
        found = jax.eval_shape(totals, gates)
        if structure.kind == "block":
            return jax.tree.map(lambda _: structure.sizes[0] * structure.sizes[1], found)
        members = {
            "heads": lambda layer: 4 * depth * layer["query"]["kernel"].shape[0],
            "ffn": lambda layer: 2 * layer["ffn_hidden"]["kernel"].shape[0],
            "pooler": lambda pooler: pooler["kernel"].shape[0] + gates[gates_lib.head_name(gates)]["kernel"].shape[1],
        }
        return {name: {kind: members[kind](gates[name]) for kind in groups} for name, groups in found.items()}

    def close_means(gates, opened, means, target, key, scope):
        if len(structure.parts) > 1 and scope == "global":
            return spread(gates, _close_by_size(opened, means, sizes(gates), target, key))
        return spread(gates, gates_lib.close_lowest(opened, means, target, key, scope))

    def close(gates, scores, target, key, scope="local"):
        return close_means(gates, *pool(gates, scores), target, key, scope)

    def close_units(gates, scores, target, key, scope="local"):
        means = jax.tree.map(jnp.divide, scores, sizes(gates))
        return close_means(gates, units_of(gates), means, target, key, scope)

    def below(gates, scores, threshold):
        return _below(*pool(gates, scores), threshold, sizes(gates))

    return Closer(close, below, Units(units_of, totals, spread, close_units))


# n:m -----------------------------------------------------------------------------------------------------------------


@jax.jit
def _lowest_of_m(gate: jax.Array, score: jax.Array, closed: jax.Array, noise: jax.Array) -> jax.Array:
    """Closes the lowest-scoring of each run of m inputs until `closed` are; noise: (in / m, m, out), for the ties."""
    ranked = jnp.where(gate, score, -jnp.inf).reshape(noise.shape)  # what is closed already counts, and goes first
    rank = jnp.argsort(jnp.lexsort((noise, ranked), axis=1), axis=1)
    return gate & (rank >= closed).reshape(gate.shape)


def _n_of_m(n: int, m: int) -> Closer:
    """n:m, reached one by one: a target of t closes floor(t * m) of every m, and never more than m - n.

    Every mask on the way is exact, m-1:m, m-2:m, ..., and never ahead of the schedule. The pattern leaves a kernel no
    choice of how many, so the scope plays no part.
    """

    def close(gates, scores, target, key, scope="local"):
        closed = min(m - n, int(target * m + 1e-9))
        leaves, treedef = jax.tree.flatten(_blocks(gates))
        if not closed:
            return gates
        values = treedef.flatten_up_to(_blocks(scores))
        for l, (gate, score) in enumerate(zip(leaves, values, strict=True)):
            shape = (gate.shape[0] // m, m, gate.shape[1])
            noise = jax.random.uniform(jax.random.fold_in(key, l), shape)
            leaves[l] = _lowest_of_m(gate, score, closed, noise)
        return {**gates, **jax.tree.unflatten(treedef, leaves)}

    return Closer(close, _gate_by_gate(_blocks).below)

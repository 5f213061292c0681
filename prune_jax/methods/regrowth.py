"""What SET and RigL share: close the smallest weights, open as many others, keep the sparsity."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import select, trees
from prune_jax.pruning.method import Pruned, PruneInfo
from prune_jax.pruning.plan import Plan


def check(plan: Plan) -> None:
    """Raises ValueError unless the plan closes single gates: an exchange would break blocks, groups and n:m."""
    for part in plan.parts:
        if part.structure.kind not in ("unstructured", "encoder"):
            raise ValueError(f"structure is {part.structure.text!r}; allowed with set and rigl: unstructured, encoder")


def share_moved(fraction: float, step: jax.Array, steps: int | None) -> jax.Array:
    """() float32: the share of the open weights that an update moves, on a cosine from `fraction` to 0 at `steps`."""
    if steps is None:
        return jnp.float32(fraction)
    done = jnp.minimum(step / steps, 1.0)
    return fraction / 2 * (1 + jnp.cos(math.pi * done))


def move(info: PruneInfo, share: jax.Array, growth: Callable[[list[jax.Array]], list[jax.Array]]) -> Pruned:
    """The plan's target met by magnitude; then a share of each kernel's open weights closes, and as many others open.

    The smallest weights close first. What opens starts at 0, but for a weight that was open until now.

    Args:
      share: () float32, of the open weights of each kernel.
      growth: (closed gates, one per kernel) -> floating arrays; what is lowest opens first.
    """
    before, treedef = jax.tree.flatten(info.gates)
    sizes = jax.tree.map(jnp.abs, gates_lib.kernels(info.params, info.gates))
    met = info.plan.close(info.gates, sizes, info.target, info.key)
    opened = jax.tree.leaves(met)
    covered = [info.plan.covers(name) for name in trees.by_name(info.gates)]
    # A gate that the plan may not touch has no part in the exchange.
    k = [(jnp.round(share * jnp.sum(gate)) * may).astype(jnp.uint32) for gate, may in zip(opened, covered, strict=True)]
    keys = jax.random.split(jax.random.fold_in(info.key, 1))
    dropped = select.lowest(jax.tree.leaves(sizes), opened, jnp.stack(k), keys[0])
    # As in RigL's own code, what has just closed may open again: then it stays as it was.
    closed = [(~gate | out) & may for gate, out, may in zip(opened, dropped, covered, strict=True)]
    grown = select.lowest(growth(closed), closed, jnp.stack(k), keys[1])
    after = [(gate & ~out) | new for gate, out, new in zip(opened, dropped, grown, strict=True)]
    gates = jax.tree.unflatten(treedef, after)
    reset = jax.tree.unflatten(treedef, [~(new & ~old) for new, old in zip(grown, before, strict=True)])
    return Pruned(gates, gates_lib.masked(info.params, reset))

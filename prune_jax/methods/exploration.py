"""What every form of SPT shares: the passes that close a few gates each, and the statistics of what they cost."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prune_jax.pruning.method import StepInfo
from prune_jax.pruning.plan import Plan

Tree = Any


def importances(info: StepInfo, gates_of: Callable, explorations: int, chunk: int | None) -> jax.Array:
    """(explorations,) float32: pruned_loss - normal_loss of each exploration pass, on the batch of the step.

    Passes run `chunk` at a time under vmap; None runs one after the other on a CPU, and all at once elsewhere. On a CPU
    vmap turns a product with shared weights into a batched one with different weights, which costs more than one pass
    after the other.

    Args:
      gates_of: () int32, the number of the pass -> the gates that it leaves open.
    """
    assert info.loss is not None
    loss = info.loss
    chunk = chunk or (1 if jax.default_backend() == "cpu" else explorations)

    def pruned_loss(e: jax.Array) -> jax.Array:
        return loss(info.params, gates_of(e))

    normal_loss = loss(info.params, info.gates)
    if explorations == 1:
        return pruned_loss(jnp.int32(0))[None] - normal_loss
    passes = jnp.arange(explorations, dtype=jnp.int32)
    if chunk >= explorations:
        return jax.vmap(pruned_loss)(passes) - normal_loss
    return jax.lax.map(pruned_loss, passes, batch_size=chunk if chunk > 1 else None) - normal_loss


def where_finite(importances: jax.Array, new: Tree, old: Tree) -> Tree:
    """The new state, or the old one after a pass whose loss is not finite, which would stay in every average."""
    finite = jnp.all(jnp.isfinite(importances))
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def average(started: jax.Array, old: jax.Array, new: jax.Array, alpha: jax.Array) -> jax.Array:
    """The exponential average alpha * new + (1 - alpha) * old, or `new` itself where it has not started."""
    return jnp.where(started, alpha * new + (1 - alpha) * old, new)


def no_statistics(types: int) -> dict[str, jax.Array]:
    """The statistics of an epoch without a pass, by layer type."""
    return {"epoch_sum": jnp.zeros(types, jnp.float32), "epoch_count": jnp.zeros(types, jnp.int32)}


def end_epoch(tree: Tree, state: dict, plan: Plan, table: bool) -> tuple[dict, dict, list[str]]:
    """A method's end_epoch: the column mean_reward and, with `table`, two lines of means by layer type.

    Args:
      tree: the gates or their units, whose layer types the statistics in `state` refer to.
    """
    total, passes = jax.device_get((state["epoch_sum"], state["epoch_count"]))
    columns = {"mean_reward": float(total.sum() / passes.sum()) if passes.sum() else None}
    lines = []
    if table:
        names, _ = plan.type_indices(tree)
        cells = [f"{t / n:.3e}" if n else "-" for t, n in zip(total, passes, strict=True)]
        width = max(map(len, (*names, *cells)))
        lines = ["  ".join(text.rjust(width) for text in row) for row in (names, cells)]
    # On the devices of the old arrays: another placement would compile the training step anew.
    fresh = {name: jnp.zeros_like(x, device=x.sharding) for name, x in state.items() if name.startswith("epoch_")}
    return {**state, **fresh}, columns, lines

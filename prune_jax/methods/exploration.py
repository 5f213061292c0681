"""What every form of SPT shares: the passes that close a few gates each, and the statistics of what they cost."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from prune_jax import gates as gates_lib
from prune_jax.methods.base import StepInfo


def importances(info: StepInfo, gates_of: Callable, explorations: int, chunk: int) -> jax.Array:
    """(explorations,) float32: pruned_loss - normal_loss of each exploration pass, on the batch of the step.

    Passes run `chunk` at a time under vmap. On a CPU vmap turns a product with shared weights into a batched one with
    different weights, which costs more than one pass after the other.

    Args:
      gates_of: number of the pass, () int32 -> the gates that it leaves open.
    """

    def pruned_loss(e):
        return info.loss(info.params, gates_of(e))

    normal_loss = info.loss(info.params, info.gates)
    if explorations == 1:
        return pruned_loss(jnp.int32(0))[None] - normal_loss
    passes = jnp.arange(explorations, dtype=jnp.int32)
    if chunk >= explorations:
        return jax.vmap(pruned_loss)(passes) - normal_loss
    return jax.lax.map(pruned_loss, passes, batch_size=chunk if chunk > 1 else None) - normal_loss


def average(started: jax.Array, old: jax.Array, new: jax.Array, alpha: jax.Array) -> jax.Array:
    """The exponential average alpha * new + (1 - alpha) * old, or `new` itself where it has not started."""
    return jnp.where(started, alpha * new + (1 - alpha) * old, new)


def chunk_of(cfg) -> int:
    """Passes at once under vmap, of config.spt."""
    return cfg.chunk or (1 if jax.default_backend() == "cpu" else cfg.explorations)


def no_statistics(types: int) -> dict[str, jax.Array]:
    """Of an epoch without a pass, by layer type."""
    return {"epoch_sum": jnp.zeros(types, jnp.float32), "epoch_count": jnp.zeros(types, jnp.int32)}


def end_epoch(tree, state, table: bool):
    """A method's end_epoch: the column mean_reward and, with `table`, two lines of means by layer type.

    Args:
      tree: the gates or their units, whose layer types the statistics in `state` refer to.
    """
    total, passes = jax.device_get((state["epoch_sum"], state["epoch_count"]))
    columns = {"mean_reward": float(total.sum() / passes.sum()) if passes.sum() else None}
    lines = []
    if table:
        names = gates_lib.present_types(tree)
        cells = [f"{t / n:.3e}" if n else "-" for t, n in zip(total, passes, strict=True)]
        width = max(map(len, (*names, *cells)))
        lines = ["  ".join(text.rjust(width) for text in row) for row in (names, cells)]
    # On the devices of the old arrays: another placement would compile the training step anew.
    fresh = {name: jnp.zeros_like(x, device=x.sharding) for name, x in state.items() if name.startswith("epoch_")}
    return {**state, **fresh}, columns, lines

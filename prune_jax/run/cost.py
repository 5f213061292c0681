"""What a run's network costs before and after its closed units are cut: parameters, operations, bytes, milliseconds."""

from typing import Any

import jax

from prune_jax.graph import costing
from prune_jax.models import units

ROWS = 8  # of the batch that is counted and timed
_WORDS = ("parameters", "flops", "bytes", "milliseconds")


def measure(model: Any, params: Any, gates: Any, length: int) -> dict[str, Any]:
    """The cost of a forward pass over a batch, dense and pruned.

    Args:
      model, params, gates: a network of prune_jax.models; length: of the texts of the batch, in tokens.
    Returns:
      {"batch": rows, "length": tokens, and {"dense": .., "pruned": ..} of "parameters", "flops", "bytes" and
      "milliseconds", the median of compiled calls on this machine, which took turns}.
    """
    params, gates = jax.device_get((params, gates))
    small = units.opened(model, params, gates)
    whole = units.opened(model, params, {})
    dense, pruned = units.trace(whole[0], ROWS, length), units.trace(small[0], ROWS, length)
    cut = pruned.dropped(*small[1:])
    costs = {"dense": dense.cost(), "pruned": pruned.cost(cut=cut)}
    medians = costing.medians([costing.call(dense, {}), costing.call(pruned, cut)])
    times = {which: 1000 * seconds for which, seconds in zip(costs, medians, strict=True)}
    named = (("parameters", "params"), ("flops", "flops"), ("bytes", "bytes"))
    counted = {word: {which: getattr(cost, field) for which, cost in costs.items()} for word, field in named}
    return {"batch": ROWS, "length": length, **counted, "milliseconds": times}


def lines(cost: dict[str, Any]) -> list[str]:
    """A table of `measure` for the log, and how many times less each is."""
    rows = [(f"cost of {cost['batch']} examples", "dense", "pruned", "")]
    for word in _WORDS:
        dense, pruned = cost[word]["dense"], cost[word]["pruned"]
        shown = [f"{n:,.2f}" if word == "milliseconds" else f"{n:,}" for n in (dense, pruned)]
        rows.append((word, *shown, f"{dense / pruned:.2f}x less" if pruned else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        f"{word:<{widths[0]}}  {dense:>{widths[1]}}  {pruned:>{widths[2]}}  {less}".rstrip()
        for word, dense, pruned, less in rows
    ]

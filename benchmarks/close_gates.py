"""Closing half of ten million gates against numpy.partition of the same scores.

    python -m benchmarks.close_gates

`distinct` has no ties to speak of, `ties` has 1,000 levels, `equal` is one big tie (scores before their first value).
The gates are one kernel, or eight that are ranked each by itself (local) or together (global). The time is that of
Plan.close inside jit, everything in it: ranks, selection, counts, random ties, the new gates. `xla_sort` is what
jax.numpy.sort of the scores would cost.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from prune_jax.pruning import plan as plan_lib


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clock", default="wall", choices=list(harness.CLOCKS))
    args = parser.parse_args()
    normal = jax.random.normal(jax.random.key(0), (args.size // 8 * 8,))
    kinds = {"distinct": normal, "ties": jnp.round(normal * 150) / 150, "equal": jnp.zeros_like(normal)}
    key = jax.random.key(1)
    for kind, scores in kinds.items():
        host, k = np.asarray(scores), scores.size // 2
        cases = {"numpy_partition": lambda host=host, k=k: np.partition(host, k)}
        for kernels, scope in ((1, "local"), (8, "local"), (8, "global")):
            split = {f"kernel_{i}": part for i, part in enumerate(jnp.split(scores, kernels))}
            gates = jax.tree.map(lambda part: jnp.ones(part.shape, bool), split)
            close = jax.jit(plan_lib.make(gates, scope=scope).close)
            closed = sum(int(jnp.sum(~gate)) for gate in close(gates, split, 0.5, key).values())
            assert closed == k, f"{closed} closed, not {k}"
            name = "close" if kernels == 1 else f"close_{kernels}_{scope}"
            cases[name] = lambda close=close, gates=gates, split=split: close(gates, split, 0.5, key)
        if kind == "distinct":
            cases["xla_sort"] = lambda scores=scores: jnp.sort(scores)
        seconds = harness.interleaved(cases, args.repeats, args.clock)
        harness.report(
            benchmark="close_gates",
            scores=kind,
            size=scores.size,
            clock=args.clock,
            seconds={name: round(value, 4) for name, value in seconds.items()},
            ratios={name: round(value / seconds["numpy_partition"], 2) for name, value in seconds.items()},
        )


if __name__ == "__main__":
    main()

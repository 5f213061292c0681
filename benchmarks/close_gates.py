"""Closing half of ten million gates against numpy.partition of the same scores.

    python -m benchmarks.close_gates

`distinct` has no ties to speak of, `ties` has 1,000 levels, `zeros` is one big tie (SPT before its first visit). The
time of close_lowest is everything: order keys, selection, counts, random ties, the new mask. `xla_sort` is what
jax.numpy.sort would cost.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from prune_jax import gates as gates_lib


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    normal = jax.random.normal(jax.random.key(0), (args.size,))
    kinds = {"distinct": normal, "ties": jnp.round(normal * 150) / 150, "zeros": jnp.zeros(args.size)}
    gates, key = {"kernel": jnp.ones(args.size, bool)}, jax.random.key(1)
    for kind, scores in kinds.items():
        host, k = np.asarray(scores), args.size // 2

        def close(scores=scores):
            return gates_lib.close_lowest(gates, {"kernel": scores}, 0.5, key)

        closed = args.size - int(close()["kernel"].sum())
        assert closed == k, f"{closed} closed, not {k}"
        cases = {"numpy_partition": lambda host=host, k=k: np.partition(host, k), "close_lowest": close}
        cases["on_device_bisection"] = lambda scores=scores, k=k: gates_lib._bisect(
            gates_lib._candidates([scores], [gates["kernel"]]), np.uint32(k)
        )
        if kind == "distinct":
            cases["xla_sort"] = lambda scores=scores: jnp.sort(scores)
        seconds = harness.interleaved(cases, args.repeats)
        harness.report(
            benchmark="close_gates",
            scores=kind,
            size=args.size,
            seconds={name: round(value, 4) for name, value in seconds.items()},
            ratio=round(seconds["close_lowest"] / seconds["numpy_partition"], 2),
        )


if __name__ == "__main__":
    main()

"""Whether a network that was pruned to be twice as fast is twice as fast: targets in measured seconds.

    python -m benchmarks.latency_target [--asked 2 3] [--batches 32x32 32x64 1x32]

The 6x384 geometry in float32, random weights, no padding. `pj.prune` closes units by magnitude until the graph's costs
say that a call takes 1 / asked of the dense network's time; then the network is cut, and dense and cut take turns.
`asked` counts the encoder and all else, `measured` is the ratio of the medians. The table of costs is measured anew
for every batch, as on a machine that has never seen the network.
"""

import argparse
import functools
import os
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import prune_jax as pj
from benchmarks import harness
from benchmarks.program_cut import random_params
from prune_jax.models import units

STRUCTURES = ("heads+columns", "heads+columns+hidden")


def measure(rows: int, length: int, structure: str, asked: float, repeats: int) -> None:
    """Prunes to a target in seconds, cuts, and times the dense and the cut network on one batch."""
    model = harness.make_model("6x384")
    params = jax.device_put(random_params(model))
    graph = units.trace(model, rows, length)
    start = time.perf_counter()
    tx = pj.prune(
        optax.sgd(0.0), pj.magnitude(), pj.constant(1 - 1 / asked), scope="global", structure=structure, groups=graph,
        target="seconds",
    )  # fmt: skip
    table = time.perf_counter() - start
    state = tx.init(params)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    small_params, small_fn = pj.shrink(graph, params, pj.gates(state))
    rng = np.random.default_rng(0)
    inputs = [
        rng.integers(1, 100, leaf.shape).astype(leaf.dtype) if name == "input_ids" else np.ones(leaf.shape, leaf.dtype)
        for name, leaf in zip(model.inputs, graph.example_inputs, strict=True)
    ]
    dense = jax.jit(lambda params, *x: model.apply({"params": params}, *x))
    cases = {
        "dense": functools.partial(dense, params, *inputs),
        "cut": functools.partial(jax.jit(small_fn), jax.device_put(small_params), *inputs),
    }
    seconds = harness.interleaved(cases, repeats)
    harness.report(
        benchmark="latency_target",
        batch=f"{rows}x{length}",
        structure=structure,
        asked=asked,
        measured=round(seconds["dense"] / seconds["cut"], 2),
        milliseconds={name: round(1000 * value, 2) for name, value in seconds.items()},
        table_s=round(table, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--asked", type=float, nargs="+", default=[2, 3])
    parser.add_argument("--batches", nargs="+", default=["32x32", "32x64", "1x32"])
    parser.add_argument("--structures", nargs="+", default=list(STRUCTURES))
    parser.add_argument("--repeats", type=int, default=31)
    args = parser.parse_args()
    for batch in args.batches:
        rows, length = map(int, batch.split("x"))
        for structure in args.structures:
            with tempfile.TemporaryDirectory() as cache:
                os.environ["PRUNE_JAX_CACHE"] = cache
                for asked in args.asked:
                    measure(rows, length, structure, asked, args.repeats)


if __name__ == "__main__":
    main()

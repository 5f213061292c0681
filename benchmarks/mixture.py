"""The mixture prior's value and gradient, one pass in chunks against the naive form.

    python -m benchmarks.mixture

`naive` is jax.grad of a logsumexp over all J x n log-densities; `scan` is the same form in chunks, each rematerialised;
`ours` is prune_jax.methods.mixture.nll. `temporary_mib` is what XLA reserves for a step besides arguments and results.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks import harness
from prune_jax.methods import mixture as mixture_lib


def naive(weights, mixture):
    return -jnp.sum(mixture_lib.log_prob(weights, mixture))


def scan(weights, mixture):
    chunks = weights.reshape(-1, mixture_lib.default_chunk())
    return jnp.sum(jax.lax.map(jax.checkpoint(lambda piece: naive(piece, mixture)), chunks))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1 << 20)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    leaves = mixture_lib.init(args.components, 0.99, False, 0.6, 0.25)
    mixture = mixture_lib.from_leaves(leaves, 0.99)
    weights = 0.1 * jax.random.normal(jax.random.key(0), (args.size,))
    forms = {"naive": naive, "scan": scan, "ours": mixture_lib.nll}
    steps = {
        name: jax.jit(jax.value_and_grad(form, argnums=(0, 1))).lower(weights, mixture).compile()
        for name, form in forms.items()
    }
    cases = {name: lambda step=step: step(weights, mixture) for name, step in steps.items()}
    seconds = harness.interleaved(cases, args.repeats)
    memory = {name: step.memory_analysis().temp_size_in_bytes / 2**20 for name, step in steps.items()}
    harness.report(
        benchmark="mixture",
        size=args.size,
        components=args.components,
        chunk=mixture_lib.default_chunk(),
        seconds={name: round(value, 4) for name, value in seconds.items()},
        temporary_mib={name: round(value, 2) for name, value in memory.items()},
        speedup=round(seconds["naive"] / seconds["ours"], 2),
    )


if __name__ == "__main__":
    main()

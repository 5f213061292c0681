"""What pj.prune adds to a step of plain optax.adamw: 9.4 million weights, gates updated every 100 steps.

    python -m benchmarks.prune_step [--clip] [--batch=1024] [--clock=processor] [--methods sensitivity platon]

`optimizer` is update and apply_updates alone, `training` a whole step of a multilayer perceptron of nine kernels of
1024 x 1024; parameters and state are donated. A step with an update of the gates is timed by itself: `pruned` is 99
ordinary steps and one of those, over 100. `ratio` is that over the optimizer without pruning. --methods are timed in
turn with magnitude, and `beside` is the time of each over that of magnitude.

In a step of plain adamw each gradient is used as soon as it is there, and its memory is free for the next one. Pruning,
as clipping by the global norm (--clip), waits for all of them.
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp
import optax

import prune_jax as pj
from benchmarks import harness

EVERY = 100
NEVER = 10**9


def loss_of(params, x, y):
    for name in sorted(params):
        x = jnp.tanh(x @ params[name]["kernel"])
    return jnp.mean((x - y) ** 2)


class Steps:
    """A jitted step with its parameters and state; each call takes one step.

    Args:
      tx: the optimizer; first: the one that takes the first step, where it is another.
      batch: how many examples the gradient is taken on; 0, it is always the same and costs nothing.
    """

    def __init__(self, tx, width: int, kernels: int, batch: int, first=None):
        def some(seed, *shape):
            return jax.random.normal(jax.random.key(seed), shape) / width**0.5

        self.params = {f"dense_{i}": {"kernel": some(i, width, width)} for i in range(kernels)}
        self.state = tx.init(self.params)
        x, y = some(100, batch, width), some(101, batch, width)
        self.given = (x, y) if batch else (jax.tree.map(jnp.sign, self.params),)

        def step(tx, params, state, *given):
            grads = jax.grad(loss_of)(params, *given) if batch else given[0]
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        if first:
            self.params, self.state = step(first, self.params, self.state, *self.given)
        self.step = jax.jit(functools.partial(step, tx), donate_argnums=(0, 1))

    def __call__(self):
        self.params, self.state = self.step(self.params, self.state, *self.given)
        return self.params


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["optimizer", "training"], choices=["optimizer", "training"])
    parser.add_argument("--batch", type=int, default=128, help="of the training step")
    parser.add_argument("--clip", action="store_true", help="clip the gradient by its global norm, before adamw")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--kernels", type=int, default=9)
    parser.add_argument("--methods", nargs="*", default=[], help="others to time beside magnitude, by name")
    parser.add_argument("--scope", default="local", choices=["local", "global"])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--clock", default="wall", choices=list(harness.CLOCKS))
    args = parser.parse_args()
    adamw = optax.adamw(1e-4)
    if args.clip:
        adamw = optax.chain(optax.clip_by_global_norm(1.0), adamw)

    def pruned(name: str, every: int):
        # The same sparsity at each update, from the first on: what an update costs does not depend on it.
        schedule = pj.cubic(0.5, begin=0, end=NEVER, every=every, initial=0.5)
        return pj.prune(adamw, getattr(pj, name)(), schedule, scope=args.scope)

    for part in args.parts:
        shape = (args.width, args.kernels, args.batch if part == "training" else 0)
        cases = {"plain": Steps(adamw, *shape)}
        for name in ("magnitude", *args.methods):
            end = "" if name == "magnitude" else f" {name}"
            cases[f"update{end}"] = Steps(pruned(name, 1), *shape)
            cases[f"ordinary{end}"] = Steps(pruned(name, NEVER), *shape, first=pruned(name, 1))
        seconds = harness.interleaved(cases, args.repeats, args.clock)
        for name in ("", *(f" {name}" for name in args.methods)):
            both = [seconds[f"ordinary{name}"]] * (EVERY - 1) + [seconds[f"update{name}"]]
            seconds[f"pruned{name}"] = statistics.fmean(both)
        harness.report(
            benchmark="prune_step",
            part=part,
            weights=args.width**2 * args.kernels,
            batch=args.batch if part == "training" else None,
            clip=args.clip,
            scope=args.scope,
            clock=args.clock,
            repeats=args.repeats,
            seconds={name: round(value, 5) for name, value in seconds.items()},
            ratio=round(seconds["pruned"] / seconds["plain"], 3),
            beside={name: round(seconds[f"pruned {name}"] / seconds["pruned"], 3) for name in args.methods},
        )


if __name__ == "__main__":
    main()

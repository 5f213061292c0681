"""SynFlow (Tanaka et al., 2020, arXiv:2006.05467): pruning at initialisation that looks at no data and keeps the flow.

R is the sum of the network's outputs for an input of ones, with the absolute value of every parameter; a weight's score
is |w| * dR/d|w|, the share of R that runs through it. In `rounds` rounds, each with fresh scores, the density falls by
equal factors to `least`; what closes in an earlier round goes first, inside a round by score. So that after k rounds,
at a density of least^(k / rounds), the masks are those of the paper's loop of k rounds. It is done once, in the first
step, at the weights before it.

R has no scale of its own: a float32 holds it for some dozens of layers. Networks of text have no input of ones.
"""

from typing import Any

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of SynFlow."""

    rounds: int = option(100, "The rounds of scoring and closing.", 1, 10_000)
    least: float = option(1e-3, "The density after the last round.", 0, 1, inclusive=False)


def _largest(values: Any) -> jax.Array:
    """() float32: the largest of a tree's values that are not negative."""
    return jnp.max(jnp.stack([jnp.max(leaf, initial=0.0) for leaf in jax.tree.leaves(values)]))


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights that carry least of the flow from inputs to outputs; the global scope is the paper's.

    The value_fn of update is not a loss: it takes params to the sum of the outputs for an input of ones.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-3), pj.synflow(), pj.one_shot(0.9), scope="global")
      >>> # updates, state = tx.update(grads, state, params, value_fn=lambda p: model.apply(p, jnp.ones_like(x)).sum())
    """

    def init(params, gates, plan):
        return {"order": gates_lib.zeros(gates)}

    def ordered(info: StepInfo) -> dict:
        sizes = jax.tree.map(jnp.abs, info.params_before)

        def scores_of(gates):
            slopes = jax.grad(info.loss)(gates_lib.masked(sizes, gates), gates)  # type: ignore[arg-type]
            kernels = (gates_lib.kernels(tree, gates) for tree in (slopes, sizes))
            return jax.tree.map(
                lambda g, w, gate: jnp.where(gate, jnp.abs(g * w), 0).astype(jnp.float32), *kernels, gates
            )

        def turn(count, carry):
            gates, order = carry
            scores = scores_of(gates)
            density = jnp.float32(options.least) ** ((count + 1) / options.rounds)
            left = info.plan.close(gates, scores, 1 - density, jax.random.fold_in(info.key, count))
            gone = jax.tree.map(lambda old, new: old & ~new, gates, left)
            most = _largest(jax.tree.map(jnp.multiply, scores, gone))
            place = jax.tree.map(lambda s: count + 0.99 * s / jnp.maximum(most, 1e-30), scores)
            return left, jax.tree.map(jnp.where, gone, place, order)

        left, order = jax.lax.fori_loop(0, options.rounds, turn, (info.gates, gates_lib.zeros(info.gates)))
        scores = scores_of(left)
        most = jnp.maximum(_largest(scores), 1e-30)
        last = jax.tree.map(lambda gate, s, o: jnp.where(gate, options.rounds + s / most, o), left, scores, order)
        return {"order": last}

    def after_step(info: StepInfo, state: dict) -> dict:
        return jax.lax.cond(info.step == 0, lambda: ordered(info), lambda: state)

    def prune(info: PruneInfo) -> Pruned:
        return Pruned(info.plan.close(info.gates, info.state["order"], info.target, info.key))

    return Method("synflow", explores=True, flow=True, init=init, after_step=after_step, prune=prune)

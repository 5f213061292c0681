"""Iterative magnitude pruning with rewinding (Frankle and Carbin, 2019; Frankle et al., 2020, arXiv:1912.05671).

At each closing the smallest weights close, and what stays open starts again from the values that it had after `rewind`
steps. Each event of the schedule is then the end of a training, such as pj.steps({1000: 0.2, 2000: 0.36, 3000: 0.49}).
Every leaf is rewound, those without a gate, too. The optimizer's moments and the learning rate go on.
"""

import jax
import jax.numpy as jnp

from prune_jax.methods import magnitude
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of the lottery ticket."""

    rewind: int = option(0, "The steps after which the weights are kept that every closing goes back to.", 0)


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the smallest weights, and sets the others back to an early value.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-3), pj.lottery_ticket(rewind=100), pj.steps({1000: 0.5, 2000: 0.75}))
    """

    def init(params, gates, plan):
        return {"start": jax.tree.map(jnp.copy, params)}

    def after_step(info: StepInfo, state: dict) -> dict:
        now = info.step == options.rewind
        return {"start": jax.tree.map(lambda kept, p: jnp.where(now, p, kept), state["start"], info.params_before)}

    def prune(info: PruneInfo) -> Pruned:
        gates = info.plan.close(info.gates, magnitude.scores(info.params, info.gates), info.target, info.key)
        pairs = zip(*map(jax.tree.leaves, (gates, info.gates)), strict=True)
        closed = jnp.any(jnp.stack([jnp.any(new != old) for new, old in pairs]))
        start = gates_lib.masked(info.state["start"], gates)
        return Pruned(gates, jax.tree.map(lambda s, p: jnp.where(closed, s, p), start, info.params))

    return Method("lottery_ticket", init=init, after_step=after_step, prune=prune)

"""Movement pruning (Sanh, Wolf and Rush, 2020, arXiv:2005.07683): weights that move towards zero are closed first.

Every gate has a score S, trained under the straight-through gradient of the paper's equation 2, w * dL/d(w * gate), so
that S rises while gradient descent makes |w| grow. Gates are updated every `movement.frequency` steps, on a straight
line between the targets of the last epoch and of this one, and at the epoch's end the target is met exactly. Two forms:

hard: the lowest scores close, in each kernel or over all (pruning.scope). S = -sum over steps of w * dL/dw, plain
  gradient steps that follow train.lr_schedule, or with `movement.scores=adam` what Adam makes of them, as in the
  authors' code.

soft: S is trained by Adam at its own rate, with the penalty lambda * mean(sigmoid(S)) (the paper's L_mvp), and a gate
  closes when sigmoid(S) < tau. One threshold holds for the whole network, so a layer's share is learned and
  pruning.scope plays no part. The threshold never closes more than the schedule allows, and where it closed too few by
  an epoch's end it is raised to the value that meets the target.

A closed gate stays closed, as with every other method, unless `movement.regrow` is set. Then, as in the paper, the
gradient reaches the scores of closed gates too, each update chooses among all gates anew, and a weight that is missed
comes back as it was left. The more often the gates are updated, the better: the paper does so at every step.
"""

import math

import jax
import jax.numpy as jnp

from prune_jax import gates as gates_lib
from prune_jax import groups
from prune_jax.methods.base import Method


def create(config) -> Method:
    cfg, scope, closer = config.movement, config.pruning.scope, groups.create(config)
    soft = cfg.threshold == "soft"
    sums = not soft and cfg.scores == "sum"
    tau_score = math.log(cfg.tau / (1 - cfg.tau))  # sigmoid(S) < tau where S < logit(tau)

    def init_trainable(params, gates):
        return {"scores": jax.tree.map(lambda gate: jnp.zeros(gate.shape, jnp.float32), gates)}

    def felt(gate, x):
        """What of x, a function of the scores, trains them: all of it, or that of open gates."""
        return x if cfg.regrow else gate * x

    def training_gates(gates, trainable):
        # The value is the gate's; the gradient with respect to it passes straight through to its score.
        return jax.tree.map(lambda gate, s: gate + felt(gate, s - jax.lax.stop_gradient(s)), gates, trainable["scores"])

    def penalty(params, gates, trainable, step, hyper):
        kept = jax.tree.map(lambda gate, s: jnp.sum(felt(gate, jax.nn.sigmoid(s))), gates, trainable["scores"])
        return cfg.penalty * sum(jax.tree.leaves(kept)) / gates_lib.count(gates)

    def prune(key, params, gates, trainable, state, target, end_of_epoch):
        scores, chosen_from = trainable["scores"], gates
        if cfg.regrow:
            chosen_from = jax.tree.map(lambda gate: jnp.ones_like(gate, device=gate.sharding), gates)
        if soft and not end_of_epoch:
            reached = closer.below(chosen_from, scores, tau_score)
            if cfg.regrow:  # masks that only shrink cannot fall behind what is closed
                reached = max(reached, closer.below(gates, scores, -math.inf))
            target = min(target, reached)
        return closer.close(chosen_from, scores, target, key, "global" if soft else scope)

    method = Method(
        rates={"scores": 1.0 if sums else cfg.score_learning_rate},
        plain=("scores",) if sums else (),
        prune_every=cfg.frequency,
        regrows=cfg.regrow,
        init_trainable=init_trainable,
        training_gates=training_gates,
        prune=prune,
    )
    return method._replace(penalty=penalty) if soft else method

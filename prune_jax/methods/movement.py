"""Movement pruning (Sanh, Wolf and Rush, 2020, arXiv:2005.07683): weights that move towards zero are closed first.

The score of a weight is S = -sum over steps of w * dL/dw, the straight-through gradient of the paper's equation 2: it
rises while gradient descent makes |w| grow. Gates are updated every `movement.frequency` steps, on a straight line
between the targets of the last epoch and of this one, and at the epoch's end the target is met exactly. Two forms:

hard: S is accumulated as it stands, and the lowest scores close, in each kernel or over all (pruning.scope).

soft: S is trained by Adam at its own rate under the straight-through gradient and the penalty
  lambda * mean(sigmoid(S)) (the paper's L_mvp), and a gate closes when sigmoid(S) < tau. One threshold holds for the
  whole network, so a layer's share is learned and pruning.scope plays no part. Unlike the paper's, a closed gate stays
  closed (the project's masks only shrink), the threshold never closes more than the schedule allows, and where it
  closed too few by an epoch's end it is raised to the value that meets the target.
"""

import math

import jax
import jax.numpy as jnp

from prune_jax import gates as gates_lib
from prune_jax import groups
from prune_jax.methods.base import Method


def create(config) -> Method:
    cfg = config.movement
    make = {"hard": _hard, "soft": _soft}[cfg.threshold]
    return make(cfg, groups.create(config), config.pruning.scope)


def _hard(cfg, closer, scope) -> Method:
    def init(params, gates):
        return {"scores": jax.tree.map(lambda gate: jnp.zeros(gate.shape, jnp.float32), gates)}

    def after_step(info, state):
        weights = gates_lib.kernels(info.params_before, info.gates)
        grads = gates_lib.kernels(info.grads, info.gates)
        return {"scores": jax.tree.map(lambda s, w, g: s - w * g, state["scores"], weights, grads)}

    def prune(key, params, gates, trainable, state, target, end_of_epoch):
        return closer.close(gates, state["scores"], target, key, scope)

    return Method(prune_every=cfg.frequency, init=init, after_step=after_step, prune=prune)


def _soft(cfg, closer, scope) -> Method:
    tau_score = math.log(cfg.tau / (1 - cfg.tau))  # sigmoid(S) < tau where S < logit(tau)

    def init_trainable(params, gates):
        return {"scores": jax.tree.map(lambda gate: jnp.zeros(gate.shape, jnp.float32), gates)}

    def training_gates(gates, trainable):
        # The value is the gate's; the gradient with respect to an open gate passes straight through to its score.
        return jax.tree.map(lambda gate, s: gate * (1 + (s - jax.lax.stop_gradient(s))), gates, trainable["scores"])

    def penalty(params, gates, trainable, step, hyper):
        kept = jax.tree.map(lambda gate, s: jnp.sum(gate * jax.nn.sigmoid(s)), gates, trainable["scores"])
        return cfg.penalty * sum(jax.tree.leaves(kept)) / gates_lib.count(gates)

    def prune(key, params, gates, trainable, state, target, end_of_epoch):
        scores = trainable["scores"]
        if not end_of_epoch:
            target = min(target, closer.below(gates, scores, tau_score))
        return closer.close(gates, scores, target, key, "global")

    return Method(
        rates={"scores": cfg.score_learning_rate},
        prune_every=cfg.frequency,
        init_trainable=init_trainable,
        training_gates=training_gates,
        penalty=penalty,
        prune=prune,
    )

"""Movement pruning (Sanh, Wolf and Rush, 2020, arXiv:2005.07683): weights that move towards zero are closed first.

Every gate has a score S, trained under the straight-through gradient of the paper's equation 2, w * dL/d(w * gate), so
that S rises while gradient descent makes |w| grow. Two forms:

hard: the lowest scores close. S = -sum over steps of w * dL/dw, plain gradient steps that follow the learning rate's
  schedule, or with `scores="adam"` what Adam makes of them, as in the authors' code.

soft: S is trained by Adam at its own rate, with the penalty lambda * mean(sigmoid(S)) (the paper's L_mvp), and a gate
  closes when sigmoid(S) < tau. One threshold holds for the whole network, so that a layer's share is learned. The
  threshold never closes more than the schedule allows, and where it closed too few by the time that the target is due
  exactly, it is raised to the value that meets it. It wants the global scope.

A closed gate stays closed, as with every other method, unless `regrow` is set. Then, as in the paper, the gradient
reaches the scores of closed gates too, and each update chooses among all gates anew. The weights of closed gates stand
still meanwhile, without decay and without Adam's momentum: a weight that comes back comes back as it was left. The more
often the gates are updated, the better: the paper does so at every step.
"""

import math

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of movement."""

    frequency: int = option(1, "Steps between updates of the gates.", 1)
    threshold: str = option("hard", "The form of the method.", choices=("hard", "soft"))
    scores: str = option(
        "sum", "How the hard form's scores are trained; Adam trains the soft form's.", choices=("sum", "adam")
    )
    regrow: bool = option(False, "Whether closed gates whose scores rise again reopen, as in the paper.")
    tau: float = option(0.1, "Soft: a gate closes where sigmoid(score) is below.", 0, 1, inclusive=False)
    score_learning_rate: float = option(1e-2, "The rate at which Adam trains the scores.", 0, 1000)
    penalty: float = option(1.0, "Soft: the weight of mean(sigmoid(score)) in the loss.", 0)


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights that move towards zero.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-4), pj.movement(frequency=1, regrow=True), pj.cubic(0.9, begin=0, end=1000))
    """
    soft = options.threshold == "soft"
    sums = not soft and options.scores == "sum"
    tau_score = math.log(options.tau / (1 - options.tau))  # sigmoid(S) < tau where S < logit(tau)

    def init_trainable(params, gates, plan):
        return {"scores": gates_lib.zeros(gates)}

    def trained_part(gate, x):
        """What of x, a function of the scores, trains them: all of it, or that of open gates."""
        return x if options.regrow else gate * x

    def training_gates(gates, trainable):
        # The value is the gate's; the gradient with respect to it passes straight through to its score.
        return jax.tree.map(
            lambda gate, s: gate + trained_part(gate, s - jax.lax.stop_gradient(s)), gates, trainable["scores"]
        )

    def penalty(params, gates, trainable, step, hyper, plan):
        kept = jax.tree.map(lambda gate, s: jnp.sum(trained_part(gate, jax.nn.sigmoid(s))), gates, trainable["scores"])
        return options.penalty * sum(jax.tree.leaves(kept)) / gates_lib.count(gates)

    def prune(info: PruneInfo) -> Pruned:
        scores, chosen_from, target = info.trainable["scores"], info.gates, info.target
        if options.regrow:
            chosen_from = jax.tree.map(jnp.ones_like, info.gates)
        if soft:
            reached = info.plan.below(chosen_from, scores, tau_score)
            if options.regrow:  # masks that only shrink cannot fall behind what is closed
                reached = jnp.maximum(reached, info.plan.below(info.gates, scores, -math.inf))
            target = jnp.where(info.exact, target, jnp.minimum(target, reached))
        return Pruned(info.plan.close(chosen_from, scores, target, info.key))

    method = Method(
        "movement",
        rates={"scores": 1.0 if sums else options.score_learning_rate},
        plain=("scores",) if sums else (),
        every=options.frequency,
        regrows=options.regrow,
        alive=options.regrow,
        init_trainable=init_trainable,
        training_gates=training_gates,
        prune=prune,
    )
    return method._replace(penalty=penalty) if soft else method

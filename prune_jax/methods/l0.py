"""L0 regularisation (Louizos, Welling and Kingma, 2018, arXiv:1712.01312): hard concrete gates.

Every weight has a trained log_alpha, and a gate that is drawn anew at every step with u uniform in (0, 1),

  s = sigmoid((log u - log(1 - u) + log_alpha) / beta)
  z = min(1, max(0, s * (zeta - gamma) + gamma))

and the network sees w * z. The loss has lambda times the expected number of gates that are not 0, the sum of
sigmoid(log_alpha - beta * log(-gamma / zeta)): `penalty` is lambda times the number of weights. The lowest log_alpha
close first. Outside training an open gate is 1, where the paper has a mean of z: that is 1, too, from log_alpha = 2.4.
"""

import math

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of L0."""

    penalty: float = option(1.0, "The weight in the loss of the expected share of gates that are not 0.", 0)
    score_learning_rate: float = option(1e-2, "The rate at which Adam trains log_alpha.", 0, 1000)
    start: float = option(0.9, "The median of s at first, which sets log_alpha.", 0, 1, inclusive=False)
    beta: float = option(2 / 3, "The temperature of the distribution.", 0, 100, inclusive=False)
    stretch: float = option(0.1, "How far s is stretched beyond 0 and 1, -gamma and zeta - 1.", 0, 10, inclusive=False)


def concrete(log_alpha: jax.Array, u: jax.Array, beta: float, stretch: float) -> jax.Array:
    """z of the hard concrete distribution for uniform numbers u, float32."""
    s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / beta)
    return jnp.clip(s * (1 + 2 * stretch) - stretch, 0, 1)


@made_from(Options)
def create(options: Options) -> Method:
    """Learns which weights the network can do without; take the loss at pj.sampled.

    Example:
      >>> import optax, prune_jax as pj
      >>> method = pj.l0(penalty=0.5)
      >>> tx = pj.prune(optax.adam(1e-3), method, pj.cubic(0.9, begin=100, end=1000, every=10), scope="global")
      >>> # grads = jax.grad(lambda params: loss(pj.sampled(method, params, state)))(params)
    """
    first = options.beta * math.log(options.start / (1 - options.start))
    shift = options.beta * math.log(options.stretch / (1 + options.stretch))

    def init_trainable(params, gates, plan):
        return {"log_alpha": jax.tree.map(lambda zero: zero + first, gates_lib.zeros(gates))}

    def sample(kernels, gates, trainable, key, state):
        def drawn(w, gate, log_alpha, key):
            u = jax.random.uniform(key, w.shape, minval=1e-6, maxval=1 - 1e-6)
            return w * jnp.where(gate, concrete(log_alpha, u, options.beta, options.stretch), 0).astype(w.dtype)

        return jax.tree.map(drawn, kernels, gates, trainable["log_alpha"], trees.split_key(key, kernels))

    def penalty(params, gates, trainable, step, hyper, plan):
        expected = jax.tree.map(
            lambda gate, la: jnp.sum(jnp.where(gate, jax.nn.sigmoid(la - shift), 0)), gates, trainable["log_alpha"]
        )
        return options.penalty * sum(jax.tree.leaves(expected)) / gates_lib.count(gates)

    def prune(info: PruneInfo) -> Pruned:
        return Pruned(info.plan.close(info.gates, info.trainable["log_alpha"], info.target, info.key))

    return Method(
        "l0",
        rates={"log_alpha": options.score_learning_rate},
        init_trainable=init_trainable,
        sample=sample,
        penalty=penalty,
        prune=prune,
    )

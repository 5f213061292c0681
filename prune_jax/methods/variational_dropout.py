"""Sparse variational dropout (Molchanov, Ashukha and Vetrov, 2017, arXiv:1701.05369): what is mostly noise closes.

A weight of mean w has a trained log-variance. Each step draws w + sigma * epsilon, epsilon normal, and with
alpha = sigma^2 / w^2 the loss has the paper's approximation (equation 14) of the divergence from the log-uniform prior,

  KL = k1 - k1 * sigmoid(k2 + k3 * log alpha) + log(1 + 1 / alpha) / 2,    k1, k2, k3 = 0.63576, 1.87320, 1.48695,

summed over the weights and divided by the number of training examples. The largest alpha close first. The noise is that
of the weights, one sample per step, where the paper draws that of each example's activations, which varies less.
Outside training the weights are their means.
"""

import jax
import jax.numpy as jnp

from prune_jax.methods.sws import of_training
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, option, options

K1, K2, K3 = 0.63576, 1.87320, 1.48695


@options
class Options:
    """The options of variational dropout."""

    weight: float = option(1.0, "The weight of the divergence, the paper's annealed beta; 1 is the bound itself.", 0)
    variance_learning_rate: float = option(1e-2, "The rate at which Adam trains the log-variances.", 0, 1000)
    log_variance: float = option(-10.0, "The log-variances at first.", -30, 0)
    num_examples: int | None = option(
        None, "The training examples, which divide the divergence; the program counts its own.", 1, in_config=False
    )


def log_alpha(w: jax.Array, log_variance: jax.Array) -> jax.Array:
    """log(sigma^2 / w^2), float32, between -8 and 8 as in the authors' code."""
    return jnp.clip(log_variance - jnp.log(w.astype(jnp.float32) ** 2 + 1e-8), -8, 8)


def divergence(log_alpha: jax.Array) -> jax.Array:
    """The approximate KL of each weight in nats; 0 where alpha is infinite."""
    return K1 - K1 * jax.nn.sigmoid(K2 + K3 * log_alpha) + jnp.log1p(jnp.exp(-log_alpha)) / 2


@made_from(Options)
def create(options: Options) -> Method:
    """Learns how much noise each weight bears; take the loss at pj.sampled.

    Example:
      >>> import optax, prune_jax as pj
      >>> method = pj.variational_dropout(num_examples=60_000)
      >>> tx = pj.prune(optax.adam(1e-3), method, pj.cubic(0.9, begin=100, end=1000, every=10), scope="global")
      >>> # grads = jax.grad(lambda params: loss(pj.sampled(method, params, state)))(params)
    """

    def init_trainable(params, gates, plan):
        return {"log_variance": jax.tree.map(lambda zero: zero + options.log_variance, gates_lib.zeros(gates))}

    def sample(kernels, gates, trainable, key, state):
        def drawn(w, gate, log_variance, key):
            noise = jnp.exp(log_variance / 2) * jax.random.normal(key, w.shape)
            return jnp.where(gate, w + noise.astype(w.dtype), jnp.zeros_like(w))

        return jax.tree.map(drawn, kernels, gates, trainable["log_variance"], trees.split_key(key, kernels))

    def penalty(params, gates, trainable, step, hyper, plan):
        each = jax.tree.map(
            lambda w, gate, v: jnp.sum(jnp.where(gate, divergence(log_alpha(w, v)), 0)),
            gates_lib.kernels(params, gates),
            gates,
            trainable["log_variance"],
        )
        of = of_training(hyper, "num_examples", "variational_dropout")
        return options.weight * sum(jax.tree.leaves(each)) / of

    def prune(info: PruneInfo) -> Pruned:
        kernels = gates_lib.kernels(info.params, info.gates)
        scores = jax.tree.map(lambda w, v: -log_alpha(w, v), kernels, info.trainable["log_variance"])
        return Pruned(info.plan.close(info.gates, scores, info.target, info.key))

    return Method(
        "variational_dropout",
        hyper={} if options.num_examples is None else {"num_examples": options.num_examples},
        rates={"log_variance": options.variance_learning_rate},
        init_trainable=init_trainable,
        sample=sample,
        penalty=penalty,
        prune=prune,
    )

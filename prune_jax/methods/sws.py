"""Soft weight-sharing (Ullrich, Meeds and Welling, ICLR 2017, arXiv:1702.04008): prune and quantise in one retraining.

A trained network is trained on under a mixture of Gaussians over its weights (prune_jax.methods.mixture), whose means,
precisions and proportions are trained with it, each at a rate of its own:

  loss = cross-entropy + tau / N * (negative log-likelihood of the weights + hyper-priors),   N training examples.

The weights gather at the means, most of them at 0. When the run ends, components that have become one are merged, each
weight takes the mean of the component most responsible for it, and gates close where that mean is 0.

The prior is over every gated kernel, as the network sees it (a gate that is closed already makes its weight 0), and
over the embedding tables with `embeddings`. The authors' code has the biases under it, too; here they stay out:
they are too few to save anything (0.2% of LeNet-300-100), and have no gates. With `learn_pi0` the proportion of
the component at 0 is trained under a beta prior, and with `tau_anneal` tau rises from 0 over the first steps.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.methods import mixture as mixture_lib
from prune_jax.methods.mixture import GammaPrior
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method
from prune_jax.pruning.options import made_from, option, options

RECORDED = 20_000  # weights at most that an epoch's record holds, always the same ones: 80 kB


@options
class Options:
    """The options of soft weight-sharing."""

    components: int = option(16, "The components of the mixture, the one at zero among them.", 2, 256)
    pi0: float = option(0.99, "The mixing proportion of the component at zero.", 0, 1, inclusive=False)
    learn_pi0: bool = option(False, "Whether pi0 is only its start, and it is trained under a beta prior.")
    pi0_alpha: float = option(1.0, "The alpha of that prior.", 1)
    pi0_beta: float = option(1.0, "The beta of that prior.", 1)
    tau: float = option(0.003, "The weight of the prior, over the number of training examples.", 0)
    tau_anneal: float = option(0.0, "The fraction of the steps in which tau rises from 0 on a straight line.", 0, 1)
    embeddings: bool = option(False, "Whether embedding tables are under the prior, too.")
    mean_range: float = option(
        0.6, "The other means start evenly spaced between minus this and this.", 0, inclusive=False
    )
    deviation: float = option(0.25, "The standard deviation that every component starts with.", 0, inclusive=False)
    zero_alpha: float = option(5e3, "The alpha of the gamma prior on the precision of the component at zero.", 1)
    zero_beta: float = option(2.0, "The beta of that prior.", 0)
    alpha: float = option(2.5e2, "The alpha of the gamma prior on the precisions of the others.", 1)
    beta: float = option(0.1, "The beta of that prior.", 0)
    means_learning_rate: float = option(1e-4, "The rate at which Adam trains the means.", 0, 1000)
    gammas_learning_rate: float = option(3e-3, "The rate of the log-precisions.", 0, 1000)
    rhos_learning_rate: float = option(3e-3, "The rate of the log-proportions.", 0, 1000)
    merge_kl: float = option(1e-10, "Components nearer than this, in nats, become one at the end.", 0)
    num_examples: int | None = option(
        None, "The training examples, N of the loss; the program counts its own.", 1, in_config=False
    )
    num_steps: int | None = option(
        None, "The steps of the whole training, for tau_anneal; the program counts its own.", 1, in_config=False
    )


def of_training(hyper: Mapping[str, jax.Array], name: str, method: str = "soft_weight_sharing") -> jax.Array:
    """() float32: what the training has told of itself, num_examples or num_steps. ValueError where nobody has."""
    if name not in hyper:
        raise ValueError(f"{name} is None; allowed: a whole number, as in {method}({name}=60_000)")
    return hyper[name]


@made_from(Options)
def create(options: Options) -> Method:
    """Trains the weights towards few values, most of them 0. Nothing closes before `finish`.

    Example:
      >>> import optax, prune_jax as pj
      >>> method = pj.soft_weight_sharing(num_examples=60_000)
      >>> tx = pj.prune(optax.adam(5e-4), method)
      >>> # after training: params, gates = pj.finish(method, params, state)
    """
    cfg = options
    zero, others = GammaPrior(cfg.zero_alpha, cfg.zero_beta), GammaPrior(cfg.alpha, cfg.beta)

    def change(params, gates, f):
        """params with f applied to what the prior is over: kernels as the network sees them, embeddings if asked."""
        gate_of = trees.by_name(gates)

        def at(path, leaf):
            name = trees.name(path)
            if name in gate_of:
                return f(leaf * gate_of[name].astype(leaf.dtype))
            return f(leaf) if cfg.embeddings and name.endswith("embedding") else leaf

        return jax.tree_util.tree_map_with_path(at, params)

    def all_weights(params, gates):
        """(n,) everything that the prior is over."""
        weights = []
        change(params, gates, lambda leaf: weights.append(leaf.reshape(-1).astype(jnp.float32)))
        return jnp.concatenate(weights)

    def init_trainable(params, gates, plan):
        return mixture_lib.init(cfg.components, cfg.pi0, cfg.learn_pi0, cfg.mean_range, cfg.deviation)

    def penalty(params, gates, trainable, step, hyper, plan):
        mixture = mixture_lib.from_leaves(trainable, cfg.pi0)
        cost = mixture_lib.nll(all_weights(params, gates), mixture)
        cost += mixture_lib.hyper_prior(mixture.gammas, zero, others)
        if cfg.learn_pi0:
            rest = jax.nn.logsumexp(mixture.log_pi[1:])
            cost += mixture_lib.beta_prior(mixture.log_pi[0], rest, cfg.pi0_alpha, cfg.pi0_beta)
        tau = hyper["tau"]
        if cfg.tau_anneal:
            tau *= jnp.minimum(1.0, (step + 1) / (cfg.tau_anneal * of_training(hyper, "num_steps")))
        return tau / of_training(hyper, "num_examples") * cost

    def end_run(params, gates, trainable, state):
        params, gates, trainable = jax.device_get((params, gates, trainable))
        mixture = mixture_lib.merge(mixture_lib.from_leaves(trainable, cfg.pi0), cfg.merge_kl)
        params = change(params, gates, lambda leaf: mixture_lib.quantise(leaf, mixture).astype(leaf.dtype))
        gates = jax.tree.map(lambda kernel: kernel != 0, gates_lib.kernels(params, gates))
        kernels = jax.tree.leaves(gates_lib.kernels(params, gates))
        means = [mean for mean in np.unique(np.concatenate([np.unique(kernel) for kernel in kernels])) if mean != 0]
        nonzero = 1 - gates_lib.sparsity(gates)
        entries = {"codebook": means, "num_means": len(means), "num_components": len(mixture.means), "nonzero": nonzero}
        merged = f"mixture    {len(mixture.means)} of {cfg.components} components after merging"
        line = f"{merged}, {len(means)} in use besides 0; {100 * nonzero:.2f}% of the prunable weights are not 0"
        return params, gates, entries, [line]

    def record(params, gates, trainable):
        weights = all_weights(params, gates)
        some = np.random.default_rng(0).permutation(weights.size)[:RECORDED]
        log_pi, means, gammas = jax.device_get(mixture_lib.from_leaves(trainable, cfg.pi0))
        return {
            "weights": np.asarray(weights[np.sort(some)]),
            "proportions": np.exp(log_pi),
            "means": means,
            "deviations": np.exp(-gammas / 2),
        }

    counted = {"num_examples": cfg.num_examples, "num_steps": cfg.num_steps}
    return Method(
        "sws",
        scheduled=False,
        hyper={"tau": cfg.tau, **{name: count for name, count in counted.items() if count is not None}},
        rates={name: getattr(cfg, f"{name}_learning_rate") for name in ("means", "gammas", "rhos")},
        init_trainable=init_trainable,
        penalty=penalty,
        end_run=end_run,
        record=record,
    )

"""Soft weight-sharing (Ullrich, Meeds and Welling, ICLR 2017, arXiv:1702.04008): prune and quantise in one retraining.

A trained network is trained on under a mixture of Gaussians over its weights (prune_jax.mixture), whose means,
precisions and proportions are trained with it, each at a rate of its own:

  loss = cross-entropy + tau / N * (negative log-likelihood of the weights + hyper-priors),   N training examples.

The weights gather at the means, most of them at 0. When the run ends, components that have become one are merged, each
weight takes the mean of the component most responsible for it, and gates close where that mean is 0.

The prior is over every gated kernel, as the network sees it (a gate that is closed already makes its weight 0), and
over the embedding tables with `sws.embeddings`. The authors' code has the biases under it, too; here they stay out:
they are too few to save anything (0.2% of LeNet-300-100), and have no gates. With `sws.learn_pi0` the proportion of
the component at 0 is trained under a beta prior, and with `sws.tau_anneal` tau rises from 0 over the first steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import gates as gates_lib
from prune_jax import mixture as mixture_lib
from prune_jax.methods.base import Method
from prune_jax.mixture import GammaPrior

RECORDED = 20_000  # weights at most that an epoch's record holds, always the same ones: 80 kB


def create(config) -> Method:
    cfg = config.sws
    zero, others = GammaPrior(cfg.zero_alpha, cfg.zero_beta), GammaPrior(cfg.alpha, cfg.beta)

    def change(params, gates, f):
        """params with f applied to what the prior is over: kernels as the network sees them, embeddings if asked."""
        gate_at = dict(jax.tree_util.tree_leaves_with_path(gates))

        def at(path, leaf):
            if path in gate_at:
                return f(leaf * gate_at[path])
            return f(leaf) if cfg.embeddings and path[-1].key == "embedding" else leaf

        return jax.tree_util.tree_map_with_path(at, params)

    def all_weights(params, gates):
        """(n,) everything that the prior is over."""
        found = []
        change(params, gates, lambda leaf: found.append(leaf.reshape(-1)))
        return jnp.concatenate(found)

    def init_trainable(params, gates):
        return mixture_lib.init(cfg.components, cfg.pi0, cfg.learn_pi0, cfg.mean_range, cfg.deviation)

    def penalty(params, gates, trainable, step, hyper):
        mixture = mixture_lib.from_leaves(trainable, cfg.pi0)
        cost = mixture_lib.nll(all_weights(params, gates), mixture)
        cost += mixture_lib.hyper_prior(mixture.gammas, zero, others)
        if cfg.learn_pi0:
            rest = jax.nn.logsumexp(mixture.log_pi[1:])
            cost += mixture_lib.beta_prior(mixture.log_pi[0], rest, cfg.pi0_alpha, cfg.pi0_beta)
        tau = hyper["tau"]
        if cfg.tau_anneal:
            tau *= jnp.minimum(1.0, (step + 1) / (cfg.tau_anneal * hyper["num_steps"]))
        return tau / hyper["num_examples"] * cost

    def end_run(params, gates, trainable, state):
        params, gates, trainable = jax.device_get((params, gates, trainable))
        mixture = mixture_lib.merge(mixture_lib.from_leaves(trainable, cfg.pi0), cfg.merge_kl)
        params = change(params, gates, lambda weights: mixture_lib.quantise(weights, mixture))
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

    rates = {name: cfg[f"{name}_learning_rate"] for name in ("means", "gammas", "rhos")}
    return Method(
        hyper={"tau": cfg.tau},
        rates=rates,
        init_trainable=init_trainable,
        penalty=penalty,
        end_run=end_run,
        record=record,
    )

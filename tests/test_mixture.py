"""The mixture prior against float64 SciPy, far tails included, and its merging and quantising by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from prune_jax.methods import mixture as mixture_lib
from prune_jax.methods.mixture import GammaPrior, Mixture


def make(pi, means, deviations) -> Mixture:
    return Mixture(*(jnp.asarray(x, jnp.float32) for x in (np.log(pi), means, -2 * np.log(deviations))))


def random_mixture(components=16, seed=0, smallest=1e-3) -> Mixture:
    rng = np.random.default_rng(seed)
    pi = np.concatenate([[0.9], 0.1 * rng.dirichlet(np.ones(components - 1))])
    means = np.concatenate([[0], rng.uniform(-0.6, 0.6, components - 1)])
    return make(pi, means, np.exp(rng.uniform(np.log(smallest), np.log(0.3), components)))


def joint_density(weights, mixture):
    """(J, n) float64: log pi_j N(w_i | j), from SciPy's normal density."""
    log_pi, means, gammas = (np.asarray(x, np.float64)[:, None] for x in mixture)
    return log_pi + scipy.stats.norm.logpdf(np.asarray(weights, np.float64)[None], means, np.exp(-gammas / 2))


def responsibilities(weights, mixture):
    """(J, n) float64: p(j | w_i)."""
    joint = joint_density(weights, mixture)
    return np.exp(joint - scipy.special.logsumexp(joint, axis=0))


def reference(weights, mixture):
    """(value, dw, Mixture of gradients) of the nll, float64, from SciPy's normal density."""
    means, gammas = (np.asarray(x, np.float64)[:, None] for x in mixture[1:])
    w = np.asarray(weights, np.float64)[None]
    joint = joint_density(weights, mixture)
    total = scipy.special.logsumexp(joint, axis=0)
    share = np.exp(joint - total)
    distance, precision = w - means, np.exp(gammas)
    by_gamma = (share * (precision * distance**2 - 1) / 2).sum(1)
    grads = Mixture(-share.sum(1), -(share * precision * distance).sum(1), by_gamma)
    return -total.sum(), (share * precision * distance).sum(0), grads


def weights_of_all_sizes(count=3000, seed=1):
    rng = np.random.default_rng(seed)
    tails = np.concatenate([s * 10.0 ** rng.uniform(-8, np.log10(50), count // 6) for s in (-1, 1)])
    return np.concatenate([tails, [0.0, 50.0, -50.0, 1e-8], 0.1 * rng.normal(size=count)]).astype(np.float32)


def close(found, wanted, rtol):
    """Relative to the largest entry: sums of terms of both signs lose what they cancel."""
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(found) / scale, np.asarray(wanted) / scale, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("smallest", [1e-1, 1e-3, 1e-5])
def test_value_and_gradients_against_float64(smallest):
    weights, mixture = weights_of_all_sizes(), random_mixture(smallest=smallest)
    value, (by_weight, by_mixture) = jax.value_and_grad(mixture_lib.nll, argnums=(0, 1))(jnp.asarray(weights), mixture)
    wanted, wanted_weight, wanted_mixture = reference(weights, mixture)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, by_weight, by_mixture)))
    assert value == pytest.approx(wanted, rel=2e-5)
    close(by_weight, wanted_weight, 1e-4)
    for found, expected in zip(by_mixture, wanted_mixture, strict=True):
        close(found, expected, 1e-4)


def test_each_weights_own_gradient_is_right_not_only_the_largest():
    weights, mixture = weights_of_all_sizes(), random_mixture(smallest=0.02)
    found = jax.grad(mixture_lib.nll)(jnp.asarray(weights), mixture)
    np.testing.assert_allclose(found, reference(weights, mixture)[1], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("weight", [1e-8, 1.0, 50.0, 1e4, -1e6])
@pytest.mark.parametrize("deviation", [1e-6, 1e-3, 1.0])
def test_far_tails_give_finite_numbers(weight, deviation):
    mixture = make([0.99, 0.01], [0.0, 0.3], [deviation] * 2)
    value, grads = jax.value_and_grad(mixture_lib.nll, argnums=(0, 1))(jnp.full(3, weight), mixture)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, grads)))
    wanted, by_weight, _ = reference(np.full(3, np.float32(weight)), mixture)
    assert value == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(grads[0], by_weight, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (12, 4), (13, 4), (3, 4), (5, 1)])
@pytest.mark.parametrize("components", [1, 3])
def test_chunked_equals_unchunked(count, chunk, components):
    weights = jnp.asarray(0.5 * np.random.default_rng(count).normal(size=count), jnp.float32)
    mixture = make(np.full(components, 1 / components), np.linspace(-1, 1, components), np.full(components, 0.2))

    def both(chunk):
        return jax.value_and_grad(mixture_lib.nll, argnums=(0, 1))(weights, mixture, chunk)

    def assert_close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    jax.tree.map(assert_close, both(chunk), both(count))
    plain = jax.value_and_grad(lambda w, m: -jnp.sum(mixture_lib.log_prob(w, m)), argnums=(0, 1))(weights, mixture)
    jax.tree.map(assert_close, both(chunk), plain)
    assert_close(mixture_lib.nll(weights, mixture, chunk), plain[0])  # the value alone takes another path


def test_memory_does_not_grow_with_components_times_weights():
    mixture, weights = random_mixture(), jnp.zeros(200_000)

    def temporary(f):
        compiled = jax.jit(jax.grad(f)).lower(weights, mixture).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ours = temporary(lambda w, m: mixture_lib.nll(w, m, 4096))
    naive = temporary(lambda w, m: -jnp.sum(mixture_lib.log_prob(w, m)))
    assert naive > 16 * weights.nbytes > 4 * ours


def test_one_component_by_hand():
    # N(0.5; 0, 0.5^2): -log p = log(0.5) + log(2 pi)/2 + 1/2
    mixture = make([1.0], [0.0], [0.5])
    value, (by_weight, grads) = jax.value_and_grad(mixture_lib.nll, argnums=(0, 1))(jnp.array([0.5]), mixture)
    assert value == pytest.approx(-0.6931472 + 0.9189385 + 0.5, abs=1e-6)
    assert by_weight[0] == pytest.approx(2.0)  # exp(gamma) d = 4 * 0.5
    assert [float(g[0]) for g in grads] == pytest.approx([-1.0, -2.0, 0.0], abs=1e-6)  # (4 * 0.25 - 1) / 2 = 0


def test_two_components_by_hand():
    # Halfway between two equal components each is responsible by its proportion, and the density is that of one.
    mixture = make([0.75, 0.25], [0.0, 1.0], [1.0, 1.0])
    value, (by_weight, grads) = jax.value_and_grad(mixture_lib.nll, argnums=(0, 1))(jnp.array([0.5]), mixture)
    assert value == pytest.approx(0.9189385 + 0.125, abs=1e-6)
    assert by_weight[0] == pytest.approx(0.75 * 0.5 - 0.25 * 0.5)
    np.testing.assert_allclose(grads.log_pi, [-0.75, -0.25], rtol=1e-6)
    np.testing.assert_allclose(grads.means, [-0.375, 0.125], rtol=1e-6)
    np.testing.assert_allclose(grads.gammas, [0.75 * -0.375, 0.25 * -0.375], rtol=1e-6)
    np.testing.assert_allclose(responsibilities([0.5], mixture)[:, 0], [0.75, 0.25], rtol=1e-6)


def test_hyper_prior_is_the_gamma_density_up_to_a_constant():
    zero, others = GammaPrior(5e3, 2.0), GammaPrior(2.5e2, 0.1)
    rng = np.random.default_rng(0)

    def wanted(gammas):
        densities = [
            scipy.stats.gamma.logpdf(np.exp(g), prior.alpha, scale=1 / prior.beta)
            for g, prior in zip(gammas, [zero, others, others], strict=True)
        ]
        return -sum(densities)

    a, b = (np.log([2000.0, 2000, 3000]) + 0.3 * rng.normal(size=3) for _ in range(2))
    found = [float(mixture_lib.hyper_prior(jnp.asarray(x, jnp.float32), zero, others)) for x in (a, b)]
    assert found[0] - found[1] == pytest.approx(wanted(a) - wanted(b), rel=1e-3)
    modes = jax.grad(mixture_lib.hyper_prior)(jnp.log(jnp.array([4999 / 2, 2490.0, 2490.0])), zero, others)
    np.testing.assert_allclose(modes, 0, atol=2e-2)  # (alpha - 1) / beta


def test_beta_prior_is_the_beta_density_up_to_a_constant():
    found = [mixture_lib.beta_prior(jnp.log(p), jnp.log(1 - p), 5000.0, 2.0) for p in (0.99, 0.9)]
    wanted = [-scipy.stats.beta.logpdf(p, 5000, 2) for p in (0.99, 0.9)]
    assert float(found[0] - found[1]) == pytest.approx(wanted[0] - wanted[1], rel=1e-4)


@pytest.mark.parametrize("learn_pi0", [False, True])
def test_start_of_the_paper(learn_pi0):
    leaves = mixture_lib.init(16, 0.99, learn_pi0, 0.6, 0.25)
    assert {n: leaf.shape for n, leaf in leaves.items()} == {
        "means": (15,), "gammas": (16,), "rhos": (16 if learn_pi0 else 15,)
    }  # fmt: skip
    mixture = mixture_lib.from_leaves(leaves, 0.99)
    np.testing.assert_allclose(mixture.means, [0, *np.linspace(-0.6, 0.6, 15)], atol=1e-7)
    np.testing.assert_allclose(np.exp(mixture.log_pi), [0.99] + [0.01 / 15] * 15, rtol=1e-5)
    np.testing.assert_allclose(np.exp(-mixture.gammas / 2), 0.25, rtol=1e-6)


def test_fixed_pi0_stays_whatever_the_rhos():
    leaves = {"means": jnp.zeros(3), "gammas": jnp.zeros(4), "rhos": jnp.array([5.0, -100.0, 80.0])}
    pi = np.exp(mixture_lib.from_leaves(leaves, 0.99).log_pi)
    assert pi[0] == pytest.approx(0.99) and pi.sum() == pytest.approx(1, abs=1e-6)


# After training ------------------------------------------------------------------------------------------------------


def test_divergence_by_hand():
    mixture = make([0.5, 0.5], [0.0, 1.0], [1.0, 2.0])
    found = mixture_lib.divergence(mixture)
    # log(s_j / s_i) + (s_i^2 + d^2) / (2 s_j^2) - 1/2
    np.testing.assert_allclose(found, [[0, np.log(2) + 2 / 8 - 0.5], [-np.log(2) + 5 / 2 - 0.5, 0]], rtol=1e-6)


def test_components_that_are_one_are_merged_by_their_proportions():
    mixture = make([0.9, 0.06, 0.01, 0.03], [0.0, 0.5, -0.4, 0.5], [0.02, 0.1, 0.1, 0.1])
    found = mixture_lib.merge(mixture, 1e-10)
    np.testing.assert_allclose(np.exp(found.log_pi), [0.9, 0.09, 0.01], rtol=1e-6)
    np.testing.assert_allclose(found.means, [0, 0.5, -0.4], rtol=1e-6)
    np.testing.assert_allclose(np.exp(-found.gammas / 2), [0.02, 0.1, 0.1], rtol=1e-6)


def test_merged_means_and_precisions_are_weighted_and_chains_hold_together():
    # 0.50, 0.55 and 0.60 with sigma 0.1: neighbours at KL 0.125, the ends at 0.5; a threshold between joins all three.
    mixture = make([0.9, 0.05, 0.02, 0.03], [0.0, 0.5, 0.6, 0.55], [0.01, 0.1, 0.1, 0.1])
    found = mixture_lib.merge(mixture, 0.2)
    np.testing.assert_allclose(np.exp(found.log_pi), [0.9, 0.1], rtol=1e-6)
    np.testing.assert_allclose(found.means, [0, 0.5 * 0.5 + 0.2 * 0.6 + 0.3 * 0.55], rtol=1e-6)
    wide = make([0.9, 0.06, 0.04], [0.0, 0.5, 0.5], [0.01, 0.1, 0.11])
    precision = np.exp(mixture_lib.merge(wide, 0.1).gammas[1])
    assert precision == pytest.approx(0.6 / 0.1**2 + 0.4 / 0.11**2, rel=1e-5)


def test_the_mean_nearest_zero_becomes_zero():
    # The zero component merges with one at 1e-3, so its mean moves; it is put back.
    mixture = make([0.9, 0.09, 0.01], [0.0, 1e-3, 0.5], [0.1, 0.1, 0.1])
    found = mixture_lib.merge(mixture, 1e-3)
    assert found.means[0] == 0 and len(found.means) == 2


def test_each_weight_takes_the_mean_of_its_most_responsible_component():
    mixture = make([0.99, 0.01], [0.0, 0.5], [0.02, 0.1])
    weights = np.array([[0.0, 0.01, -0.07], [0.08, 0.5, -0.5]], np.float32)
    found = mixture_lib.quantise(weights, mixture, chunk=4)
    assert found.dtype == np.float32 and found.shape == weights.shape
    chosen = np.argmax(responsibilities(weights.ravel(), mixture), axis=0)
    np.testing.assert_array_equal(found.ravel(), np.array([0, 0.5], np.float32)[chosen])
    np.testing.assert_array_equal(found, np.float32([[0, 0, 0], [0.5, 0.5, 0.5]]) * [[1, 1, 1], [0, 1, 1]])

"""A mixture of Gaussians over all weights: soft weight-sharing (Nowlan and Hinton, 1992), in the form of Ullrich, Meeds
and Welling (ICLR 2017, arXiv:1702.04008).

  p(w) = sum_j pi_j N(w | mu_j, exp(-gamma_j)),   mu_0 = 0

Component 0 holds the weights that are to vanish. gamma is a log-precision, rho a log-proportion before its softmax.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HALF_LOG_TWO_PI = 0.9189385332046727


class Mixture(NamedTuple):
    """log_pi, means, gammas: (J,) float, the log-proportions (normalised), means, and log-precisions."""

    log_pi: jax.Array | np.ndarray
    means: jax.Array | np.ndarray
    gammas: jax.Array | np.ndarray


class GammaPrior(NamedTuple):
    """Of a precision: its negative log-density is (1 - alpha) * gamma + beta * exp(gamma), up to a constant."""

    alpha: float
    beta: float


def init(components: int, pi0: float, learn_pi0: bool, mean_range: float, deviation: float) -> dict[str, jax.Array]:
    """The leaves that are trained: means (J - 1,), gammas (J,), and rhos (J - 1,), or (J,) with learn_pi0; float32."""
    rest = components - 1
    others = jnp.full(rest, jnp.log((1 - pi0) / rest), jnp.float32)
    return {
        "means": jnp.linspace(-mean_range, mean_range, rest, dtype=jnp.float32),
        "gammas": jnp.full(components, -2 * jnp.log(deviation), jnp.float32),
        "rhos": jnp.concatenate([jnp.log(jnp.array([pi0])), others]) if learn_pi0 else others,
    }


def from_leaves(leaves: dict[str, jax.Array], pi0: float) -> Mixture:
    """The mixture of init's leaves; pi0 is component 0's proportion unless rhos has an entry for it."""
    means, gammas, rhos = leaves["means"], leaves["gammas"], leaves["rhos"]
    if rhos.shape == gammas.shape:
        log_pi = jax.nn.log_softmax(rhos)
    else:
        zero = jnp.log(jnp.full(1, pi0, rhos.dtype))
        log_pi = jnp.concatenate([zero, jnp.log1p(-pi0) + jax.nn.log_softmax(rhos)])
    return Mixture(log_pi, jnp.concatenate([jnp.zeros(1, means.dtype), means]), gammas)


def _joint(weights, mixture):
    """(log pi_j N(w_i | j), w_i - mu_j), each (J, n). The square of a difference, never a difference of squares."""
    log_pi, means, gammas = (leaf[:, None] for leaf in mixture)
    distance = weights[None] - means
    return log_pi + gammas / 2 - HALF_LOG_TWO_PI - jnp.exp(gammas) * jnp.square(distance) / 2, distance


def log_prob(weights: jax.Array, mixture: Mixture) -> jax.Array:
    """(n,) log p(w) of weights (n,). Takes memory for J x n numbers: for a few weights, or as a reference."""
    return jax.nn.logsumexp(_joint(weights, mixture)[0], axis=0)


def default_chunk() -> int:
    """Weights at a time: what a core's cache holds for 16 components, or enough to fill an accelerator."""
    return 8192 if jax.default_backend() == "cpu" else 1 << 20


def _map_chunks(f, weights, chunk):
    """f over pieces of `chunk` weights and over the rest: (sums over the pieces, arrays joined end to end).

    f: (m,) -> (tree of sums, tree of (m,) arrays).
    """
    full = weights.size // chunk * chunk
    sums, arrays = f(weights[full:])
    if full:
        parts, joined = jax.lax.map(f, weights[:full].reshape(-1, chunk))
        sums = jax.tree.map(lambda part, rest: jnp.sum(part, axis=0) + rest, parts, sums)
        arrays = jax.tree.map(lambda part, rest: jnp.concatenate([part.reshape(-1), rest]), joined, arrays)
    return sums, arrays


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _nll(weights, mixture, chunk):
    def value(piece):
        return -jnp.sum(log_prob(piece, mixture)), ()

    return _map_chunks(value, weights, chunk)[0]


def _nll_forward(weights, mixture, chunk):
    precisions = jnp.exp(mixture.gammas)
    dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)  # accelerators round products by default

    def value_and_grad(piece):
        joint, distance = _joint(piece, mixture)
        top = jnp.max(joint, axis=0)
        shifted = jnp.exp(joint - top)
        total = jnp.sum(shifted, axis=0)
        # The responsibilities are shifted / total. Their sums are products of a matrix and a vector, which a CPU does
        # faster than as many reductions.
        scale, moved = 1 / total, shifted * distance
        count, pull, spread = dot(shifted, scale), precisions * dot(moved, scale), dot(moved * distance, scale)
        by_component = Mixture(-count, -pull, (precisions * spread - count) / 2)
        return (-jnp.sum(top + jnp.log(total)), by_component), dot(precisions, moved) * scale

    (value, by_component), by_weight = _map_chunks(value_and_grad, weights, chunk)
    return value, (by_weight, by_component)


def _nll_backward(chunk, grads, cotangent):
    return jax.tree.map(lambda grad: cotangent * grad, grads)


_nll.defvjp(_nll_forward, _nll_backward)


def nll(weights: jax.Array, mixture: Mixture, chunk: int | None = None) -> jax.Array:
    """() float32: minus the sum of log p(w) over weights (n,), in memory for J x chunk numbers.

    Value and gradient come out of one pass: with r_j the responsibilities and d_j = w - mu_j,

      dw = sum_j r_j exp(gamma_j) d_j              dmu_j = -sum_i r_j exp(gamma_j) d_j
      dlog_pi_j = -sum_i r_j                       dgamma_j = sum_i r_j (exp(gamma_j) d_j^2 - 1) / 2

    so that the exponentials, which are most of the cost, are taken once. First derivatives only.
    """
    return _nll(weights, mixture, chunk or default_chunk())


def hyper_prior(gammas: jax.Array | np.ndarray, zero: GammaPrior, others: GammaPrior) -> jax.Array:
    """() float32: minus the log-density of the precisions, up to a constant; `zero` is for component 0."""
    alpha = jnp.full(gammas.shape, others.alpha).at[0].set(zero.alpha)
    beta = jnp.full(gammas.shape, others.beta).at[0].set(zero.beta)
    return jnp.sum((1 - alpha) * gammas + beta * jnp.exp(gammas))


def beta_prior(
    log_pi0: jax.Array | np.ndarray, log_rest: jax.Array, alpha: float, beta: float
) -> jax.Array | np.ndarray:
    """() float32: minus the log-density of pi_0 under Beta(alpha, beta), up to a constant; log_rest: log(1 - pi_0)."""
    return (1 - alpha) * log_pi0 + (1 - beta) * log_rest


# After training, on the host and in float64 -------------------------------------------------------------------------


def divergence(mixture: Mixture) -> np.ndarray:
    """(J, J) float64 nats, KL(N_i || N_j) of the components as Gaussians, whatever their proportions:

    (gamma_i - gamma_j + exp(gamma_j - gamma_i) - 1 + exp(gamma_j) (mu_i - mu_j)^2) / 2
    """
    means, gammas = (np.asarray(leaf, np.float64) for leaf in (mixture.means, mixture.gammas))
    ratio = gammas[None] - gammas[:, None]  # log of the precisions' ratio, j over i
    moved = np.exp(gammas)[None] * np.square(means[:, None] - means[None])
    return (np.expm1(ratio) - ratio + moved) / 2


def merge(mixture: Mixture, threshold: float = 1e-10) -> Mixture:
    """The mixture with components that are nearer than `threshold` nats made one, and the mean nearest 0 set to 0.

    Components are one if a chain of pairs, each with a KL divergence below the threshold in either direction, joins
    them. The one has the sum of their proportions and the proportion-weighted means of their means and precisions.

    Returns:
      NumPy arrays of float64, of the groups in the order of their first components.
    """
    log_pi, means, gammas = (np.asarray(leaf, np.float64) for leaf in mixture)
    near = divergence(mixture) < threshold
    group = np.arange(len(means))
    for i, j in np.argwhere(near | near.T):
        group[group == group[j]] = group[i]
    merged = []
    for members in (np.flatnonzero(group == g) for g in dict.fromkeys(group)):
        total = np.logaddexp.reduce(log_pi[members])
        share = np.exp(log_pi[members] - total)
        merged.append((total, share @ means[members], np.log(share @ np.exp(gammas[members]))))
    log_pi, means, gammas = map(np.array, zip(*merged, strict=True))
    means[np.argmin(np.abs(means))] = 0.0
    return Mixture(log_pi, means, gammas)


def quantise(weights: np.ndarray, mixture: Mixture, chunk: int = 1 << 16) -> np.ndarray:
    """Each weight as the mean of the component most responsible for it: float32, of the shape of weights."""
    log_pi, means, gammas = (np.asarray(leaf, np.float64)[:, None] for leaf in mixture)
    flat = np.asarray(weights).reshape(-1)
    values = np.empty(flat.shape, np.float32)
    for start in range(0, flat.size, chunk):
        piece = flat[None, start : start + chunk].astype(np.float64)
        joint = log_pi + gammas / 2 - np.exp(gammas) * np.square(piece - means) / 2
        values[start : start + chunk] = means[np.argmax(joint, axis=0), 0]
    return values.reshape(np.shape(weights))

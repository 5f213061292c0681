"""The Hessian of a layer's squared error: dampened, factored, and what it says of an error.

A layer of weights W (inputs, outputs) reads inputs x; the squared error of other weights V is tr((V-W)' H (V-W)) with
H = E[x x'], the same for every output.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TRIES = 6  # dampening is multiplied by ten where H is not positive definite


class Factors(NamedTuple):
    """A dampened Hessian.

    Attributes:
      hessian: (inputs, inputs) float32, dampened; a dead input's row is that of the identity.
      upper: (inputs, inputs) upper triangular U with U'U = H^-1.
      dead: (inputs,) booleans, inputs that are always 0.
      damp: () what was added to the diagonal, NaN if no dampening made H positive definite.
    """

    hessian: jax.Array
    upper: jax.Array
    dead: jax.Array
    damp: jax.Array


def factors(hessian: jax.Array, dampening: float) -> Factors:
    """Dampens and factors a Hessian, as Frantar and Alistarh do: by a share of the mean of its diagonal.

    H is factored from its last row up, H = V V' with V upper triangular, so that U = V^-1: one factorisation and one
    triangular inverse in place of two factorisations and a full inverse.

    Args:
      hessian: (inputs, inputs) float32.
      dampening: the share. Where H plus it is not positive definite, ten times as much is tried, up to five times.
    """
    diagonal = jnp.diagonal(hessian)
    dead = diagonal <= 0
    alive = ~dead
    base = jnp.where(alive[:, None] & alive[None, :], hessian, 0)
    mean = jnp.sum(diagonal * alive) / hessian.shape[0]  # dead inputs count, as in the papers
    eye = jnp.eye(hessian.shape[0], dtype=hessian.dtype)

    def attempt(damp: jax.Array) -> jax.Array:
        dampened = base + jnp.diag(jnp.where(dead, 1.0, damp))
        return jnp.linalg.cholesky(dampened[::-1, ::-1], symmetrize_input=False)[::-1, ::-1]

    def fails(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        tries, _, v = carry
        return (tries < TRIES) & ~jnp.isfinite(v).all()

    def again(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        tries, damp, _ = carry
        damp = jnp.maximum(10 * damp, 1e-6 * mean)
        return tries + 1, damp, attempt(damp)

    start = jnp.float32(dampening) * mean
    _, damp, v = jax.lax.while_loop(fails, again, (jnp.int32(1), start, attempt(start)))
    upper = jax.scipy.linalg.solve_triangular(v, eye, lower=False)
    worked = jnp.isfinite(v).all()
    return Factors(base + jnp.diag(jnp.where(dead, 1.0, damp)), upper, dead, jnp.where(worked, damp, jnp.nan))


def error(factors: Factors, dense: jax.Array, new: jax.Array) -> jax.Array:
    """() float32: the squared error of the outputs over their own square, undampened; weights are (inputs, outputs)."""
    hessian = factors.hessian - jnp.diag(jnp.where(factors.dead, 1.0, factors.damp))
    off = new - dense
    at = jax.lax.Precision.HIGHEST
    lost = jnp.sum(off * jnp.dot(hessian, off, precision=at))
    whole = jnp.sum(dense * jnp.dot(hessian, dense, precision=at))
    return jnp.where(whole > 0, jnp.maximum(lost, 0) / jnp.where(whole > 0, whole, 1), 0)


def aimed(factors: Factors, cross: jax.Array, dense: jax.Array) -> jax.Array:
    """The weights V of least E|V'x - W'y|^2, where x is what a layer reads and y what it would read in a dense network.

    V = (H + d)^-1 (E[x y'] + d) W: dampened by d, as H is, towards the W that it has.

    Args:
      cross: (inputs, inputs) E[x y']; dense: (inputs, outputs) W.
    """
    at = jax.lax.Precision.HIGHEST
    damped = cross + jnp.diag(jnp.where(factors.dead, 1.0, factors.damp))
    right = jnp.dot(damped, dense, precision=at)
    return jnp.dot(factors.upper.T, jnp.dot(factors.upper, right, precision=at), precision=at)


def corrected(
    hessian: jax.Array,
    dense: jax.Array,
    opened: jax.Array,
    start: jax.Array | None = None,
    turns: int = 100,
    tolerance: float = 1e-5,
) -> jax.Array:
    """The least-squares weights of the survivors against the dense layer's outputs, (inputs, outputs) float32.

    Each output's survivors solve H_SS v = (H w)_S. All are solved at once by conjugate gradients (Hestenes and Stiefel,
    1952) that leave closed weights at 0, preconditioned by the diagonal, until no output's residual is above the
    tolerance, or the turns are over. An error never grows; the share of it that is left to gain is about the square of
    the tolerance.

    Args:
      hessian: (inputs, inputs), dampened.
      dense: (inputs, outputs), the weights before; opened: booleans of their shape, the survivors.
      start: of their shape, where to begin; None for the survivors of dense.
      turns: the most steps.
      tolerance: of the residual that the survivors of dense leave.
    """
    at = jax.lax.Precision.HIGHEST
    scale = 1 / jnp.maximum(jnp.diagonal(hessian), 1e-30)[:, None]
    product = lambda v: jnp.where(opened, jnp.dot(hessian, v, precision=at), 0)  # noqa: E731
    masked = jnp.where(opened, dense, 0)
    residual = product(dense - masked)
    enough = tolerance**2 * jnp.sum(scale * jnp.square(residual), axis=0)
    begun = masked if start is None else jnp.where(opened, start, 0)
    residual = residual if start is None else product(dense - begun)
    preconditioned = scale * residual
    inner = jnp.sum(residual * preconditioned, axis=0)

    def goes_on(carry: tuple) -> jax.Array:
        turn, *_, inner = carry
        return (turn < turns) & jnp.any(inner > enough)

    def step(carry: tuple) -> tuple:
        turn, weights, residual, direction, inner = carry
        curved = product(direction)
        bend = jnp.sum(direction * curved, axis=0)
        length = jnp.where((bend > 0) & (inner > enough), inner / jnp.where(bend > 0, bend, 1), 0)
        weights, residual = weights + length * direction, residual - length * curved
        preconditioned = scale * residual
        new = jnp.sum(residual * preconditioned, axis=0)
        keep = jnp.where(inner > 0, new / jnp.where(inner > 0, inner, 1), 0)
        return turn + 1, weights, residual, preconditioned + keep * direction, new

    _, weights, *_ = jax.lax.while_loop(goes_on, step, (jnp.int32(0), begun, residual, preconditioned, inner))
    return weights

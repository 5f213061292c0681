"""The optimizer against float64 references: AdamW, what decays, and each label at its own rate."""

import jax.numpy as jnp
import numpy as np
import pytest

from prune_jax.run import optim


def tree(value):
    params = {
        "dense": {"kernel": jnp.full((2, 2), value), "bias": jnp.full(2, value)},
        "norm": {"scale": jnp.full(2, value)},
    }
    params["token"] = {"embedding": jnp.full((3, 2), value)}
    return {"params": params, "method": {}}


def adamw(steps, weight, grad, rate, decay):
    """Loshchilov and Hutter, algorithm 2, with Adam's default betas, in float64."""
    m = v = 0.0
    for t in range(1, steps + 1):
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        weight -= rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * weight)
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_decays_kernels_and_embeddings_alone(decay):
    optimizer = optim.create(decay, 0.0, ())
    leaves, grads = tree(2.0), tree(0.5)
    state = optimizer.init(leaves)
    for _ in range(3):
        updates, state = optimizer.update(grads, state, leaves, learning_rates=optim.rates(0.01, 1.0, {}))
        leaves = {
            "params": {k: {n: x + updates["params"][k][n] for n, x in v.items()} for k, v in leaves["params"].items()},
            "method": {},
        }
    decayed, plain = adamw(3, 2.0, 0.5, 0.01, decay), adamw(3, 2.0, 0.5, 0.01, 0.0)
    params = leaves["params"]
    np.testing.assert_allclose(params["dense"]["kernel"], decayed, rtol=1e-6)
    np.testing.assert_allclose(params["token"]["embedding"], decayed, rtol=1e-6)
    np.testing.assert_allclose(params["dense"]["bias"], plain, rtol=1e-6)
    np.testing.assert_allclose(params["norm"]["scale"], plain, rtol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm():
    optimizer = optim.create(0.0, 1.0, ())
    leaves = tree(0.0)
    state = optimizer.init(leaves)
    count = sum(x.size for x in (jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(2), jnp.zeros((3, 2))))
    _, state = optimizer.update(tree(3.0), state, leaves, learning_rates=optim.rates(0.01, 1.0, {}))
    (moments,) = (s for s in state if hasattr(s, "mu"))
    np.testing.assert_allclose(moments.mu["params"]["dense"]["bias"], 0.1 / np.sqrt(count), rtol=1e-6)


def test_each_label_has_its_own_rate():
    leaves = tree(1.0) | {"method": {"means": {"a": jnp.ones(3)}, "gammas": {"a": jnp.ones(3)}}}
    grads = tree(0.3) | {"method": {"means": {"a": jnp.full(3, 0.3)}, "gammas": {"a": jnp.full(3, 0.3)}}}
    optimizer = optim.create(0.0, 0.0, ("means", "gammas"))
    state = optimizer.init(leaves)
    rates = optim.rates(1e-3, 0.5, {"means": 1e-2, "gammas": 0.0})
    updates, _ = optimizer.update(grads, state, leaves, learning_rates=rates)
    np.testing.assert_allclose(
        updates["params"]["dense"]["kernel"], -0.5e-3, rtol=1e-5
    )  # Adam's first step is the rate
    np.testing.assert_allclose(updates["method"]["means"]["a"], -0.5e-2, rtol=1e-5)
    np.testing.assert_array_equal(updates["method"]["gammas"]["a"], 0.0)

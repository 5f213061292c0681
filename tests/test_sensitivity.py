"""Sensitivity and PLATON against float64 references of the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_jax as pj

pytestmark = pytest.mark.usefixtures("compiled_counts")
RNG = np.random.default_rng(0)
STEPS, RATE = 12, 0.1
GRADS = RNG.normal(size=(STEPS, 5, 6)).astype(np.float32)
START = RNG.normal(size=(5, 6)).astype(np.float32)


def trained(method, dtype=jnp.float32):
    """(state after every step of plain descent on GRADS, the weights before each step as float64)."""
    tx = pj.prune(optax.sgd(RATE), method, pj.constant(0.4, begin=6))
    params = {"kernel": jnp.asarray(START, dtype)}
    state, update, states, weights = tx.init(params), jax.jit(tx.update), [], []
    for grad in GRADS:
        weights.append(np.asarray(params["kernel"], np.float64))
        updates, state = update({"kernel": jnp.asarray(grad, dtype)}, state, params)
        params = optax.apply_updates(params, updates)
        states.append(state)
    assert update._cache_size() == 1
    return states, weights


def effects(states, weights):
    """-g w of every step, float64; g is 0 where the gate was closed."""
    opened = [np.ones((5, 6), bool), *(np.asarray(pj.gates(s)["kernel"]) for s in states[:-1])]
    return [-g.astype(np.float64) * w * o for g, w, o in zip(GRADS, weights, opened, strict=True)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("options", "value"), [
    ({}, np.abs), ({"power": 2}, np.square), ({"signed": True}, lambda x: x), ({"decay": 0.8}, np.abs),
])  # fmt: skip
def test_sensitivity_is_the_average_of_the_papers(options, value, dtype):
    states, weights = trained(pj.sensitivity(**options), dtype)
    keep, reference = options.get("decay", 0.999), np.zeros((5, 6))
    for t, (state, effect) in enumerate(zip(states, effects(states, weights), strict=True)):
        gain = max(1 - keep, 1 / (t + 1))
        reference = (1 - gain) * reference + gain * value(effect)
        rtol = 1e-4 if dtype == jnp.float32 else 3e-2  # the gradients are rounded, too
        np.testing.assert_allclose(state.method["scores"]["kernel"], reference, rtol=rtol, atol=rtol / 10)
        if t == 5:
            closed = ~np.asarray(pj.gates(state)["kernel"])
            assert closed.sum() == 12
            scores = np.asarray(state.method["scores"]["kernel"])
            assert scores[closed].max() <= scores[~closed].min()


def test_platon_is_the_product_of_the_papers_averages():
    states, weights = trained(pj.platon(beta1=0.7, beta2=0.9))
    mean, unc = np.zeros((5, 6)), np.zeros((5, 6))
    for t, (state, effect) in enumerate(zip(states, effects(states, weights), strict=True)):
        mean = 0.7 * mean + 0.3 * np.abs(effect)
        unc = 0.9 * unc + 0.1 * np.abs(np.abs(effect) - mean)
        np.testing.assert_allclose(state.method["sensitivity"]["kernel"], mean, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(state.method["uncertainty"]["kernel"], unc, rtol=1e-4, atol=1e-7)
        if t == 5:
            closed, score = ~np.asarray(pj.gates(state)["kernel"]), mean * unc
            assert closed.sum() == 12 and score[closed].max() < score[~closed].min()


def test_sensitivity_has_no_sign_of_a_square():
    with pytest.raises(ValueError, match="signed is True; allowed: False with power=2"):
        pj.sensitivity(signed=True, power=2)

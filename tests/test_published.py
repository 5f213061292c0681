"""Masks equal those that published code gives on random tensors: tests/fixtures/published_masks.py made them."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_jax as pj
from prune_jax.pruning import distribution
from prune_jax.pruning import plan as plan_lib

SCRIPT = Path(__file__).parent / "fixtures" / "published_masks.py"
_spec = importlib.util.spec_from_file_location("published_masks", SCRIPT)
published_masks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(published_masks)
FOUND = json.loads(SCRIPT.with_suffix(".json").read_text())
WEIGHTS, GRADS, MASK, SCORES = published_masks.tensors()


def opened(method, level, structure="unstructured"):
    """The places that stay open after one step that leaves the weights as they are."""
    tx = pj.prune(optax.sgd(0.0), method, pj.one_shot(level), structure=structure)
    params = {"w": jnp.asarray(WEIGHTS)}
    _, state = tx.update({"w": jnp.asarray(GRADS)}, tx.init(params), params)
    return published_masks.places(pj.gates(state)["w"])


@pytest.mark.parametrize("level", published_masks.LEVELS)
def test_magnitude_saliency_and_blocks_equal_jaxpruners(level):
    assert opened(pj.magnitude(), level) == FOUND[f"magnitude {level}"]
    assert opened(pj.sensitivity(), level) == FOUND[f"saliency {level}"]
    assert opened(pj.snip(), level) == FOUND[f"saliency {level}"]


def test_blocks_equal_jaxpruners():
    plan = plan_lib.make({"w": jnp.ones(published_masks.SHAPE, bool)}, "block:4x2")
    for level in published_masks.LEVELS:
        gates = plan.close({"w": jnp.asarray(MASK) | True}, {"w": jnp.abs(WEIGHTS)}, level, jax.random.key(0))
        assert published_masks.places(gates["w"]) == FOUND[f"block:4x2 {level}"]


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_n_of_m_equals_jaxpruners(pattern):
    n, m = map(int, pattern.split(":"))
    assert opened(pj.magnitude(), 1 - n / m, pattern) == FOUND[pattern]


@pytest.mark.parametrize("level", published_masks.LEVELS)
def test_erk_densities_equal_jaxpruners(level):
    """Theirs counts whole zeros per kernel, rounded down, so that its total is up to a weight per kernel denser."""
    shapes = published_masks.NETWORK
    ours = 1 - np.asarray(distribution.erk(list(shapes.values()), level))
    np.testing.assert_allclose(ours, list(FOUND[f"erk {level}"].values()), atol=2e-3)


@pytest.mark.parametrize("level", published_masks.LEVELS)
def test_movements_choice_equals_nn_prunings_top_k(level):
    """Theirs rounds the number that stays down, ours to the nearest."""
    wanted = FOUND[f"topk {level}"]
    plan = plan_lib.make({"w": jnp.ones(published_masks.SHAPE, bool)})
    target = 1 - len(wanted) / SCORES.size
    gates = plan.close({"w": jnp.ones_like(MASK)}, {"w": jnp.asarray(SCORES)}, target, jax.random.key(0))
    assert published_masks.places(gates["w"]) == wanted
    assert 0 <= round((1 - level) * SCORES.size) - len(wanted) <= 1


def test_rigl_drops_and_grows_the_sets_of_jaxpruners():
    method = pj.rigl(frequency=1, fraction=0.25)
    params, gates = {"w": jnp.asarray(WEIGHTS * MASK)}, {"w": jnp.asarray(MASK)}
    info = pj.PruneInfo(
        key=jax.random.key(0),
        step=jnp.int32(1),
        params=params,
        gates=gates,
        trainable={},
        state={"gradient": {"w": jnp.asarray(GRADS)}},
        target=jnp.float32(0.5),
        exact=True,
        plan=plan_lib.make(gates),
    )
    after, rewritten = method.prune(info)
    after = np.asarray(after["w"])
    assert published_masks.places(after) == FOUND["rigl"]
    assert published_masks.places(MASK & ~after) == FOUND["rigl dropped"]
    assert published_masks.places(~MASK & after) == FOUND["rigl grown"]
    assert (np.asarray(rewritten["w"])[~MASK] == 0).all(), "what opens starts at 0"

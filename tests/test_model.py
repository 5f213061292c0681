"""The model: sizes, padding, dtypes, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_jax.config import rooms
from prune_jax.config.sizes import SIZES
from prune_jax.export.names import ARCHITECTURES
from prune_jax.models import Bert, BertConfig
from prune_jax.models.bert import ACTIVATIONS, POOLERS
from prune_jax.models.functional import Dropout, gelu

SMALL = {"vocab_size": 40, "num_layers": 2, "d_model": 16, "num_heads": 4, "d_ff": 24}


def inputs(length=10, pad_to=None, seed=0):
    ids = np.random.default_rng(seed).integers(1, 40, (3, length)).astype(np.int32)
    pad = (pad_to or length) - length
    return tuple(
        np.pad(x, ((0, 0), (0, pad))) for x in (ids, np.zeros_like(ids) + (np.arange(length) > 4), np.ones_like(ids))
    )


@pytest.mark.parametrize(("size", "millions"), [("tiny", 9), ("small", 28), ("base", 108), ("large", 333)])
def test_presets_have_their_published_sizes(size, millions):
    preset = SIZES[size]
    cfg = BertConfig(30522, preset.num_layers, preset.d_model, preset.num_heads, preset.d_ff)
    shapes = jax.eval_shape(Bert(cfg).init, jax.random.key(0), *(jnp.zeros((1, 8), jnp.int32),) * 3)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert abs(count / 1e6 / millions - 1) < 0.03


@pytest.mark.slow
def test_padding_does_not_change_the_logits():
    model = Bert(BertConfig(**SMALL))
    variables = model.init(jax.random.key(0), *inputs())
    short = model.apply(variables, *inputs())
    long = model.apply(variables, *inputs(pad_to=17))
    assert short.shape == (3, 2) and short.dtype == jnp.float32
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_every_input_matters():
    model = Bert(BertConfig(**SMALL))
    variables = jax.tree.map(lambda x: x * 8 if x.dtype == jnp.float32 else x, model.init(jax.random.key(0), *inputs()))
    ids, types, mask = inputs()
    logits = model.apply(variables, ids, types, mask)
    for changed in ((ids[:, ::-1], types, mask), (ids, 1 - types, mask), (ids, types, mask * (np.arange(10) < 7))):
        assert np.abs(model.apply(variables, *changed) - logits).max() > 1e-4


def test_bfloat16_computes_near_float32_and_keeps_float32_weights():
    variables = Bert(BertConfig(**SMALL)).init(jax.random.key(0), *inputs())
    full = Bert(BertConfig(**SMALL)).apply(variables, *inputs())
    half_model = Bert(BertConfig(**SMALL, dtype=jnp.bfloat16))
    half = half_model.apply(variables, *inputs())
    assert half.dtype == jnp.float32
    assert 0 < np.abs(full - half).max() < 0.02
    assert all(x.dtype in (jnp.float32, bool) for x in jax.tree.leaves(half_model.init(jax.random.key(0), *inputs())))


def test_dropout_rate_scale_and_determinism():
    x = jnp.ones((300, 300))
    keys = {"dropout": jax.random.key(0)}
    y = np.asarray(Dropout(0.1).apply({}, x, False, rngs=keys))
    assert abs((y == 0).mean() - 0.1) < 0.005
    np.testing.assert_allclose(y[y > 0], 1 / 0.9, rtol=1e-4)
    np.testing.assert_array_equal(Dropout(0.1).apply({}, x, True), x)
    np.testing.assert_array_equal(y, Dropout(0.1).apply({}, x, False, rngs=keys))


def test_a_layer_may_have_sizes_of_its_own_down_to_none():
    model = Bert(BertConfig(**SMALL, layer_heads=(0, 3), layer_ffn=(5, 0), pooler_width=7))
    variables = model.init(jax.random.key(0), *inputs())
    first, second = variables["params"]["layer_0"], variables["params"]["layer_1"]
    assert "query" not in first and set(first["attention_output"]) == {"bias"}
    assert first["ffn_hidden"]["kernel"].shape == (16, 5) and first["ffn_output"]["kernel"].shape == (5, 16)
    assert second["value"]["kernel"].shape == (16, 12) and second["attention_output"]["kernel"].shape == (12, 16)
    assert "ffn_hidden" not in second and set(second["ffn_output"]) == {"bias"}
    assert set(variables["gates"]["layer_0"]) == {"ffn_hidden", "ffn_output"}
    pooler, classifier = variables["params"]["pooler"], variables["params"]["classifier"]
    assert pooler["kernel"].shape == (16, 7) and classifier["kernel"].shape == (7, 2)
    assert np.isfinite(model.apply(variables, *inputs())).all()


def test_dropout_masks_are_independent_between_places_and_keys():
    x = jnp.ones((64, 4096))
    masks = [np.asarray(Dropout(0.5).apply({}, x, False, rngs={"dropout": jax.random.key(i)})) > 0 for i in range(2)]
    a = masks[0]
    for b in (masks[1], np.roll(a, 1, 0), np.roll(a, 1, 1), np.roll(a, 7, 1), a[::-1], np.roll(a, 2048, 1)):
        assert abs((a == b).mean() - 0.5) < 0.006  # 6 standard deviations of 2^18 fair coins
    assert np.abs(a.mean(0) - 0.5).max() < 6 * 0.5 / 8 and np.abs(a.mean(1) - 0.5).max() < 6 * 0.5 / 64


def test_gelu_and_its_derivatives_equal_a_float64_reference():
    from scipy.stats import norm

    x = np.linspace(-9, 9, 2001)
    value, grad = norm.cdf(x) * x, norm.cdf(x) + x * norm.pdf(x)
    found = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu(found), value, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(found), grad, atol=2e-6)
    np.testing.assert_allclose(jax.jvp(gelu, (found,), (jnp.ones_like(found),))[1], grad, atol=2e-6)
    second = norm.pdf(x) * (2 - x * x)
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(gelu)))(found), second, atol=2e-6)
    assert gelu(found.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_config_knows_the_activations():
    assert tuple(ACTIVATIONS) == rooms.ACTIVATIONS
    assert tuple(POOLERS) == tuple(ARCHITECTURES) == rooms.ARCHITECTURES

"""k-means against every partition there is; a quantised network keeps its zeros and what has few values already."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_jax.compress import codec, quantise
from prune_jax.pruning.merge import merge


def squares(values, centres):
    """The sum of squared distances to the nearest centre."""
    return float(((values[:, None].astype(np.float64) - centres) ** 2).min(axis=1).sum())


def least_squares(values, k):
    """The least sum over all ways to cut the sorted values into at most k pieces."""
    ordered = np.sort(values).astype(np.float64)
    return min(
        sum(((piece - piece.mean()) ** 2).sum() for piece in np.split(ordered, cuts) if len(piece))
        for n in range(min(k, len(ordered)))
        for cuts in itertools.combinations(range(1, len(ordered)), n)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.integers(1, 5))
def test_kmeans_is_optimal(values, k):
    values = np.array(values, np.float32) / 8
    centres = quantise.kmeans(values, k)
    assert len(centres) <= k and (np.diff(centres) > 0).all()
    assert squares(values, centres) == pytest.approx(least_squares(values, k), abs=1e-9)


def test_kmeans_of_hand_made_groups():
    values = np.array([-1.0, -1.25, 0.5, 0.25, 0.75, 3.0], np.float32)
    np.testing.assert_allclose(quantise.kmeans(values, 3), [-1.125, 0.5, 3.0])
    np.testing.assert_allclose(quantise.kmeans(values, 1), [np.mean(values)])
    np.testing.assert_allclose(quantise.kmeans(values[:2], 5), [-1.25, -1.0])


@pytest.mark.parametrize("k", [3, 15])
def test_kmeans_of_many_values_is_a_fixed_point_and_beats_quantiles(k):
    values = np.random.default_rng(0).standard_t(3, 20_000).astype(np.float32)
    centres = quantise.kmeans(values, k)
    nearest = np.argmin(np.abs(values[:, None] - centres), axis=1)
    means = [values[nearest == i].astype(np.float64).mean() for i in range(k)]
    np.testing.assert_allclose(centres, means, rtol=1e-9)
    quantiles = np.quantile(values, (np.arange(k) + 0.5) / k)
    assert squares(values, centres) < 0.9 * squares(values, quantiles)
    np.testing.assert_array_equal(quantise.kmeans(values[::-1], k), centres)  # the order of the weights is nothing


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(1, 5), density=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_a_kernel_keeps_its_zeros_and_gets_few_values(bits, density, seed):
    rng = np.random.default_rng(seed)
    kernel = np.where(rng.random((20, 30)) < density, rng.normal(size=(20, 30)), 0).astype(np.float32)
    found = quantise.quantise(kernel, bits)
    assert found.dtype == np.float32 and found.shape == kernel.shape and (found[kernel == 0] == 0).all()
    assert len(np.unique(found)) <= 1 << bits
    distances = np.abs(kernel[..., None] - np.unique(found[kernel != 0])).min(axis=-1, initial=np.inf)
    assert (np.abs(found - kernel)[kernel != 0] <= distances[kernel != 0] * (1 + 1e-5)).all()
    assert quantise.quantise(found, bits).tobytes() == found.tobytes()


def test_few_values_stay_bit_for_bit():
    kernel = np.tile(np.array([-0.0, 0.0, np.nan, 1e-45], np.float32), 10)
    assert quantise.quantise(kernel, 2).tobytes() == kernel.tobytes()
    with pytest.raises(ValueError, match="not finite"):
        quantise.quantise(np.append(kernel, np.float32(2)), 2)


def make_network(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "a": {"kernel": rng.normal(size=(30, 20)), "bias": rng.normal(size=20)},
        "table": {"embedding": rng.normal(size=(50, 4))},
    }
    params = {k: {n: leaf.astype(np.float32) for n, leaf in node.items()} for k, node in params.items()}
    return params, {"a": {"kernel": rng.random((30, 20)) < 0.3}}


def values_of(leaf):
    return len(codec.distinct_patterns(codec.bit_patterns(leaf), codec.MAX_CODEBOOK))


def test_each_kind_of_leaf_has_its_own_bits():
    params, gates = make_network()
    found = quantise.quantise_network(params, gates, bits=3)
    np.testing.assert_array_equal(found["a"]["kernel"] != 0, gates["a"]["kernel"])
    assert values_of(found["a"]["kernel"]) == 8
    assert found["a"]["bias"].tobytes() == params["a"]["bias"].tobytes()
    assert found["table"]["embedding"].tobytes() == params["table"]["embedding"].tobytes()
    found = quantise.quantise_network(params, gates, bias_bits=2, embedding_bits=4)
    assert found["a"]["kernel"].tobytes() == merge(params, gates)["a"]["kernel"].tobytes()
    assert values_of(found["a"]["bias"]) == 3 and values_of(found["table"]["embedding"]) == 15


def test_closing_leaves_plus_zero():
    params = {"a": {"kernel": np.array([[-1.0, 2.0], [np.inf, -0.0]], np.float32)}}
    closed = merge(params, {"a": {"kernel": np.array([[False, True], [False, True]])}})
    assert closed["a"]["kernel"].tobytes() == np.array([[0.0, 2.0], [0.0, -0.0]], np.float32).tobytes()


def test_mistakes():
    params, gates = make_network()
    with pytest.raises(ValueError, match="bias_bits is 13; allowed: 1 to 12, or 0"):
        quantise.quantise_network(params, gates, 4, 13)
    params["a"]["kernel"][gates["a"]["kernel"].nonzero()[0][0]] = np.nan
    with pytest.raises(ValueError, match="a/kernel cannot be quantised: weights that are not finite"):
        quantise.quantise_network(params, gates, 4)

"""Random networks, cut at random: they compute what they did gated, or nothing of them is cut."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import random_networks

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def drawn(data):
    return lambda n: data.draw(st.integers(0, n - 1))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(st.data(), st.integers(2, 8))
def test_random_networks_are_cut_as_they_are_gated(data, steps):
    assert not random_networks.check(drawn(data), steps)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
@given(st.data(), st.integers(2, 12))
def test_many_random_networks_are_cut_as_they_are_gated(data, steps):
    assert not random_networks.check(drawn(data), steps, gradient=True)


def test_a_cut_that_changes_a_network_is_seen(monkeypatch):
    """The check can fail: with a graph that takes each unit for one that leaves no trace."""
    from prune_jax.graph import zeros

    monkeypatch.setattr(zeros.Inspection, "_judge", lambda *_: None)
    import numpy as np

    said = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        said.append(random_networks.check(lambda n, rng=rng: int(rng.integers(n)), 4))
    assert any(said)

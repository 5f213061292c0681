"""Targets in seconds: what is measured on a machine that drifts, and that the cut network is as fast as was asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_jax as pj
from prune_jax.graph import costing
from prune_jax.pruning.costs import Costs, Table, Term


class Clock:
    """A clock that calls move on: a machine that slows down all the time, and halts now and then."""

    def __init__(self, monkeypatch):
        self.now, self.count = 0.0, 0
        monkeypatch.setattr(costing.time, "perf_counter", lambda: self.now)

    def call(self, seconds):
        def run():
            self.count += 1
            self.now += seconds * 1.02**self.count * (30 if self.count % 9 == 0 else 1)

        return run


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_ratio_is_right_on_a_machine_that_drifts_and_halts(share, monkeypatch):
    clock = Clock(monkeypatch)
    assert costing.ratio([clock.call(1.0), clock.call(share)]) == pytest.approx(share, rel=0.03)


def test_a_ratio_takes_more_rounds_where_it_is_noisy_and_ends(monkeypatch):
    rng, clock = np.random.default_rng(0), Clock(monkeypatch)

    def noisy(least, most):
        def run():
            clock.count += 1
            clock.now += rng.uniform(least, most)

        return run

    costing.ratio([noisy(0.2, 5)] * 2)
    assert clock.count == 2 * 5  # these take seconds each
    clock.count = 0
    costing.ratio([noisy(0.002, 0.05)] * 2)
    assert 150 < clock.count < 250  # five seconds
    clock.count = 0
    costing.ratio([clock.call(1e-3), clock.call(2e-3)])
    assert clock.count < 100


def test_what_says_that_less_takes_longer_is_averaged():
    assert costing._falling([0.96, 1.0, 1.01, 0.99], 1.0) == pytest.approx([0.99] * 4)
    assert costing._falling([1.05, 0.9, 0.5, 0.6], 1.0) == pytest.approx([1.0, 0.9, 0.55, 0.55])


def test_what_two_groups_would_both_save_is_counted_once():
    flops = Costs("flops", (Term(8.0, (("a", 1.0), ("b", 1.0))), Term(4.0, (("c", 1.0),))))
    tables = tuple(Table(name, (0.0, 1.0), (-share, 0.0)) for name, share in (("a", 8.0), ("b", 8.0), ("c", 4.0)))
    seconds = Costs("seconds", (), tables, 12.0, flops)
    for left in ({"a": 0.5}, {"c": 0.25}, {"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.5, "c": 0.5}, {"a": 1.0, "b": 1.0}):
        wanted = 8 * left.get("a", 1) * left.get("b", 1) + 4 * left.get("c", 1)
        assert float(seconds.of(left)) == pytest.approx(wanted)
        arrays = {name: jnp.full(3, value) for name, value in left.items()}
        np.testing.assert_allclose(jax.jit(seconds.of)(arrays), wanted, rtol=1e-6)


def network():
    """A residual width that two pairs of kernels of other widths read and write."""
    rng = np.random.default_rng(0)
    shapes = {"inp": (16, 64), "up": (64, 256), "down": (256, 64), "a": (64, 96), "b": (96, 64), "out": (64, 8)}
    params = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}

    def fn(p, x):
        x = x @ p["inp"]
        x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
        return (x + jnp.tanh(x @ p["a"]) @ p["b"]) @ p["out"]

    return fn, params, jnp.ones((4, 16))


@pytest.mark.parametrize("speedup", [1.5, 3])
@pytest.mark.parametrize("structure", ["columns", "columns+hidden", "auto"])
def test_the_cut_network_is_as_fast_as_was_asked(structure, speedup, monkeypatch, tmp_path):
    fn, params, x = network()
    graph = pj.trace(fn, params, x)
    dense = graph.cost().flops

    def fake(graph, cut):  # a fixed part, and a part by operations, of which small kernels do fewer per second
        left = graph.cost(cut=cut).flops / dense
        return 0.1 + 0.8 * left + 0.1 * left**0.5

    monkeypatch.setenv("PRUNE_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(costing, "relative_seconds", fake)
    monkeypatch.setattr(costing, "medians", lambda calls: [1.0] * len(calls))
    tx = pj.prune(
        optax.sgd(0.0), pj.magnitude(), pj.constant(1 - 1 / speedup), scope="global",
        structure=structure, groups=graph, target="seconds",
    )  # fmt: skip
    state = tx.init(params)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    cut = graph.dropped(params, pj.gates(state))
    assert any(drop.any() for drop in cut.values())
    assert 1 / fake(graph, cut) == pytest.approx(speedup, rel=0.1)
    assert len(list(tmp_path.glob("latency/*.json"))) == 1


def test_a_target_beyond_what_the_structure_saves_is_refused():
    """It closed every unit in silence, and was missed all the same."""
    fn, params, x = network()
    graph = pj.trace(fn, params, x)
    most = 1 - graph.costs("flops").of({"up": 0.0, "a": 0.0}) / graph.costs("flops").dense(["up", "a"])

    def init(sparsity):
        tx = pj.prune(
            optax.sgd(0.0), pj.magnitude(), pj.constant(sparsity), scope="global", structure="columns", groups=graph,
            target="flops",
        )  # fmt: skip
        return tx.init(params)

    init(most + 1e-9)  # the most itself, as another order of sums may have it
    with pytest.raises(ValueError, match=rf"network's flops; allowed: at most {most:.3f}.*'columns' saves"):
        init(most + 0.01)

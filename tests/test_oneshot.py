"""One-shot methods on single layers: against references in float64, exact counts, errors in order, messages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_jax as pj
from prune_jax.oneshot import hessian, masks, sparsegpt
from prune_jax.oneshot.masks import Layout

dense = lambda p, x: x @ p["kernel"]  # noqa: E731


def layer(seed, inputs=96, outputs=64, rows=512):
    """(weights (inputs, outputs), correlated inputs (rows, inputs)), float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs)) * rng.gamma(1, size=inputs)
    return rng.normal(size=(inputs, outputs)).astype(np.float32), x.astype(np.float32)


def reference(w, h, sparsity=0.5, pair=None, block=32, bits=0, dampening=0.01):
    """Algorithm 1 of the SparseGPT paper in float64: weights are (outputs, inputs); also the scores at each choice."""
    w, h, (rows, inputs) = w.astype(np.float64).copy(), h.astype(np.float64).copy(), w.shape
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += np.diag(np.where(dead, 0, dampening * np.mean(np.where(dead, 0, np.diag(h)))))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    least, most = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
    step = (most - least) / max(2**bits - 1, 1)
    zero, mask, total = np.round(-least / step), np.zeros(w.shape, bool), 0
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        if pair is None:
            scores = (w[:, start:end] / np.diag(upper)[start:end]) ** 2
            k = round(sparsity * rows * end) - total
            total += k
            order = np.argsort(scores.T, axis=None, kind="stable")[:k]
            mask[:, start:end].T[np.unravel_index(order, scores.T.shape)] = True
        for i in range(start, end):
            if pair is not None and i % pair[1] == 0:
                scores = (w[:, i : i + pair[1]] / np.diag(upper)[i : i + pair[1]]) ** 2
                worst = np.argsort(scores, axis=1, kind="stable")[:, : pair[1] - pair[0]]
                np.put_along_axis(mask[:, i : i + pair[1]], worst, True, axis=1)
            new = np.where(mask[:, i], 0, w[:, i])
            if bits:
                new = step * (np.clip(np.round(new / step) + zero, 0, 2**bits - 1) - zero)
            error = (w[:, i] - new) / upper[i, i]
            w[:, i] = new
            w[:, i + 1 :] -= np.outer(error, upper[i, i + 1 :])
    return w, ~mask


@pytest.mark.parametrize(
    ("inputs", "pair", "sparsity"), [(96, None, 0.5), (70, None, 0.8), (96, (2, 4), 0.5), (96, (4, 8), 0.5)]
)
def test_sparsegpt_is_the_papers_algorithm(inputs, pair, sparsity):
    w, x = layer(inputs, inputs)
    x[:, 3] = 0  # a dead input
    structure = "unstructured" if pair is None else f"{pair[0]}:{pair[1]}"
    new, gates = pj.oneshot(
        dense, {"kernel": w}, [x[:200], x[200:]], pj.sparsegpt(block=32), sparsity=sparsity, structure=structure
    )
    expected, mask = reference(w.T, x.astype(np.float64).T @ x / len(x), sparsity, pair)
    np.testing.assert_array_equal(
        np.asarray(gates["kernel"]).T[:, np.arange(inputs) != 3], mask[:, np.arange(inputs) != 3]
    )
    np.testing.assert_allclose(new["kernel"].T, expected, atol=1e-4)


def test_rounding_in_the_same_sweep_is_the_papers_algorithm():
    w, x = layer(1)
    new, gates = pj.oneshot(dense, {"kernel": w}, [x], pj.sparsegpt(block=32, bits=4))
    expected, mask = reference(w.T, x.astype(np.float64).T @ x / len(x), bits=4)
    # A weight half way between two places of the grid may go either way, and takes others with it.
    assert np.mean(mask == np.asarray(gates["kernel"]).T) > 0.99
    assert np.mean(np.isclose(new["kernel"].T, expected, atol=1e-3)) > 0.98
    assert max(len(np.unique(np.round(column, 4))) for column in np.asarray(new["kernel"]).T) <= 16


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["unstructured", "2:4", "block:4x2"])
def test_errors_are_in_the_published_order(structure):
    errors = {}
    methods = {"magnitude": pj.magnitude(), "wanda": pj.wanda(), "sparsegpt": pj.sparsegpt()}
    w, x = layer(5, rows=2048)
    for name, method in methods.items():
        for correct in (False, True):
            told = []
            pj.oneshot(dense, {"kernel": w}, [x], method, structure=structure, correct=correct, progress=told.append)
            errors[name, correct] = told[0].error
    assert errors["sparsegpt", False] < errors["wanda", False] < errors["magnitude", False]
    assert all(errors[name, True] < errors[name, False] for name in methods)


def test_the_error_that_is_told_is_that_of_the_outputs():
    w, x = layer(6)
    told = []
    new, _ = pj.oneshot(dense, {"kernel": w}, [x], pj.wanda(), progress=told.append)
    off, whole = np.float64(x) @ (np.asarray(new["kernel"], np.float64) - w), np.float64(x) @ w
    np.testing.assert_allclose(told[0].error, (off**2).sum() / (whole**2).sum(), rtol=1e-3)


def test_corrected_weights_are_the_least_squares_ones():
    w, x = layer(7, 24, 6)
    h = np.float64(x).T @ x / len(x) + 0.1 * np.eye(24)
    opened = np.random.default_rng(0).random((24, 6)) < 0.5
    new = hessian.corrected(jnp.asarray(h, jnp.float32), jnp.asarray(w), jnp.asarray(opened), turns=300)
    for i in range(6):
        s = opened[:, i]
        expected = np.linalg.solve(h[np.ix_(s, s)], (h @ w[:, i])[s])
        np.testing.assert_allclose(np.asarray(new)[s, i], expected, rtol=2e-3, atol=2e-3)
    assert (np.asarray(new)[~opened] == 0).all()


@pytest.mark.parametrize("pair", [None, (1, 3)])
def test_obs_is_greedy_and_exact(pair):
    """Against removal by hand: each time the weight whose least-squares loss is least."""
    w, x = layer(8, 9, 3)
    h = np.float64(x).T @ x / len(x)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(9)
    structure = "unstructured" if pair is None else "1:3"
    new, gates = pj.oneshot(dense, {"kernel": w}, [x], pj.obs(per="output"), sparsity=5 / 9, structure=structure)
    for column in range(3):
        left, dense_w = list(range(9)), np.float64(w[:, column])

        def loss(keep, dense_w=dense_w):
            v = np.zeros(9)
            v[keep] = np.linalg.solve(h[np.ix_(keep, keep)], (h @ dense_w)[keep])
            return (v - dense_w) @ h @ (v - dense_w)

        for _ in range(5 if pair is None else 6):
            able = [i for i in left if pair is None or sum(j // 3 == i // 3 for j in left) > 1]
            left.remove(min(able, key=lambda i: loss([j for j in left if j != i])))
        assert np.flatnonzero(gates["kernel"][:, column]).tolist() == left
        expected = np.linalg.solve(h[np.ix_(left, left)], (h @ dense_w)[left])
        np.testing.assert_allclose(np.asarray(new["kernel"])[left, column], expected, rtol=5e-3, atol=5e-3)


def test_obs_over_a_layer_is_better_than_per_output_and_than_sparsegpt():
    w, x = layer(9, 32, 24)
    w[:, :12] *= 5
    errors = []
    for method in (pj.obs(), pj.obs(per="output"), pj.sparsegpt()):
        told = []
        _, gates = pj.oneshot(dense, {"kernel": w}, [x], method, progress=told.append)
        assert np.mean(gates["kernel"]) == 0.5
        errors.append(told[0].error)
    assert errors[0] < min(errors[1:])


def test_columns_close_by_second_order_cost_and_survivors_are_corrected():
    """Two columns that say the same: one goes, and the other takes its weights."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 8)).astype(np.float32)
    a[:, 5] = a[:, 2]
    b = rng.normal(size=(8, 3)).astype(np.float32)
    net = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"]) @ p["b"]["kernel"]  # noqa: E731
    params, x = (
        {"a": {"kernel": jnp.asarray(a)}, "b": {"kernel": jnp.asarray(b)}},
        rng.normal(size=(512, 6)).astype(np.float32),
    )
    told = []
    new, gates = pj.oneshot(
        net, params, [x], pj.sparsegpt(dampening=1e-4), sparsity=1 / 8, structure="a", progress=told.append
    )
    left = np.asarray(gates["b"]["kernel"]).all(1)
    assert (~left).sum() == 1 and not (left[2] and left[5])
    np.testing.assert_allclose(net(new, x), net(params, x), atol=2e-2)
    small, fn = pj.shrink(pj.trace(net, params, x), new, gates)
    assert small["b"]["kernel"].shape == (7, 3) and told[0].error < 1e-3
    np.testing.assert_allclose(fn(small, x), net(new, x), atol=1e-4)


def test_what_costs_least_of_all_kernels_closes():
    costs = {"a": np.array([0, 0, 0, 1, 5, 6.0]), "b": np.array([0, 2, 3, 4.0]), "c": np.array([7.0, 8])}
    assert masks.shares(costs, 0.5, 1.0) == {"a": 4 / 6, "b": 2 / 4, "c": 0}
    assert masks.shares(costs, 0.5, 0.5) == {"a": 3 / 6, "b": 2 / 4, "c": 1 / 2}, "at most half of each"
    assert masks.shares(costs, 0.25, 1.0) == {"a": 3 / 6, "b": 0, "c": 0}, "of equal costs, as many as are asked for"
    assert masks.shares(costs, 0, 1.0) == {"a": 0, "b": 0, "c": 0}


@pytest.mark.parametrize("method", [pj.sparsegpt(block=32), pj.wanda(), pj.obs(per="output")])
def test_kernels_share_by_what_reaches_the_outputs(method):
    """A path that the output hardly hears of closes further, whatever its own error."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(24, 24)).astype(np.float32) / 5 for name in ("loud", "quiet", "kept")}
    net = lambda p, x: jnp.tanh(x @ p["loud"]) + 0.01 * (10 * (x @ p["quiet"])) + x @ p["kept"]  # noqa: E731
    x = rng.normal(size=(400, 24)).astype(np.float32)
    rules = {"kept": pj.Rule(sparsity=0.25)}
    new, gates = {}, {}
    for scope in ("local", "global"):
        new[scope], gates[scope] = pj.oneshot(net, params, [x], method, sparsity=0.5, rules=rules, scope=scope)
    share = pj.layer_sparsity(gates["global"])
    assert share["kept"] == 0.25 and share["quiet"] > 0.8
    if method.name == "sparsegpt":  # the others close as many of each output
        assert sum(int((~np.asarray(gates["global"][name])).sum()) for name in ("loud", "quiet")) == 24 * 24
    lost = {scope: float(np.square(net(new[scope], x) - net(params, x)).mean()) for scope in new}
    assert lost["global"] < 0.7 * lost["local"]


def test_kernels_are_solved_for_against_the_dense_network():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 8)).astype(np.float32)
    read, would = (rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)) for _ in range(2))
    read[:, 2] = 0
    h, cross = ((read.T @ other / 300).astype(np.float32) for other in (read, would))
    factors = hessian.factors(jnp.asarray(h), 1e-4)
    alive = np.arange(12) != 2
    d = float(factors.damp) * np.eye(11)
    expected = np.linalg.solve(h[alive][:, alive] + d, (cross[alive] @ w) + d @ w[alive])
    np.testing.assert_allclose(np.asarray(hessian.aimed(factors, cross, w))[alive], expected, rtol=2e-2, atol=2e-3)
    params = [rng.normal(size=(32, 32)).astype(np.float32) / 5 for _ in range(3)]
    net = lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[2]  # noqa: E731
    x, unseen = (rng.normal(size=(2000, 32)).astype(np.float32) for _ in range(2))
    lost = []
    for correct in (False, True):
        new, _ = pj.oneshot(net, params, [x[:1000], x[1000:]], pj.sparsegpt(), sparsity=0.6, correct=correct)
        lost.append(float(np.square(net(new, unseen) - net(params, unseen)).mean()))
    assert lost[1] < 0.95 * lost[0]


def test_masks_close_exactly_as_many():
    scores = jnp.asarray(np.random.default_rng(0).integers(0, 5, (12, 8)), jnp.float32)  # many ties
    for k in (0, 1, 40, 96):
        closed = np.asarray(masks.lowest(scores.reshape(1, -1), k)).reshape(12, 8)
        assert closed.sum() == k and (k in (0, 96) or scores[closed].max() <= scores[~closed].min())
    runs = np.asarray(masks.lowest_of_runs(scores, Layout("n:m", 0.5, (2, 4))))
    assert (runs.reshape(3, 4, 8).sum(1) == 2).all()
    blocks = np.asarray(masks.closed(scores, Layout("block", 0.5, (3, 2)))).reshape(4, 3, 4, 2)
    assert (blocks.all((1, 3)) == blocks.any((1, 3))).all() and blocks.sum() == 48


@pytest.mark.parametrize(
    "method", [pj.wanda(), pj.obs(per="output"), pj.sparsegpt(), pj.magnitude()], ids=lambda m: m.name
)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_kernel_closes_exactly_as_many_where_its_parts_do_not_divide(method, scope):
    """Half of nine, in each group and each output, was four: 44 % of a depthwise kernel."""
    rng = np.random.default_rng(0)
    params = {
        "deep": rng.normal(size=(3, 3, 1, 6)).astype(np.float32),
        "top": rng.normal(size=(6, 7)).astype(np.float32),
    }

    def net(p, x):
        x = jax.lax.conv_general_dilated(
            x, p["deep"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
        )
        return jnp.tanh(x).mean((1, 2)) @ p["top"]

    new, gates = pj.oneshot(net, params, [rng.normal(size=(8, 5, 5, 6)).astype(np.float32)], method, scope=scope)
    closed = {name: int((~np.asarray(gate)).sum()) for name, gate in gates.items()}
    assert sum(closed.values()) == 48 and (scope == "global" or closed == {"deep": 27, "top": 21})
    per_group = (~np.asarray(gates["deep"])).sum((0, 1, 2))
    assert np.ptp(per_group) <= 1 and all((np.asarray(new[name]) == 0).sum() == closed[name] for name in closed)


def test_rules_set_what_stays_and_how_far_others_close():
    w, x = layer(3, 16, 8)
    params = {"a": w, "b": w.T.copy(), "c": w}
    net = lambda p, x: ((x @ p["a"]) @ p["b"]) @ p["c"]  # noqa: E731
    rules = {"a": pj.KEEP, "b": pj.Rule(sparsity=0.25), "c": pj.Rule(structure="1:4")}
    new, gates = pj.oneshot(net, params, [x], pj.sparsegpt(), sparsity=0.5, rules=rules)
    assert gates["a"] is None and np.mean(gates["b"]) == 0.75 and np.mean(gates["c"]) == 0.25
    np.testing.assert_array_equal(new["a"], w)


@pytest.mark.parametrize("rows", [8, 40])
def test_a_singular_hessian_is_dampened_until_it_has_an_inverse(rows):
    w, x = layer(4, 40, 8, rows)
    x[:, 1] = x[:, 0]
    new, _ = pj.oneshot(dense, {"kernel": w}, [x], pj.sparsegpt(dampening=0.0))
    assert np.isfinite(np.asarray(new["kernel"])).all()


def bad(**options):
    given = {"fn": dense, "params": {"kernel": np.ones((6, 4), np.float32)}, "batches": [np.ones((3, 6), np.float32)]}
    given |= {"method": pj.sparsegpt()} | options
    return lambda: pj.oneshot(given.pop("fn"), given.pop("params"), given.pop("batches"), given.pop("method"), **given)


ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
nan = np.array([[np.nan] * 6], np.float32)


def endless(p, x):
    return jax.lax.while_loop(lambda y: jnp.sum(y) > 1, lambda y: y / 2, dense(p, x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (bad(structure="2:4"), "kernel: 2:4 does not divide its 6 inputs"),
        (bad(structure="block:4x4"), "kernel: block:4x4 does not divide its 6 inputs by 4 outputs"),
        (bad(batches=[]), "there is no batch"),
        (bad(batches=[ones(3, 6), ones(3, 5)]), r"does not take batch 1, of shapes \(3, 5\)"),
        (bad(batches=[(np.ones((3, 6), np.float32),) * 2]), "does not take batch 0"),
        (bad(batches=[np.ones((3, 6), np.float32), nan]), "the inputs of kernel are not finite in batch 1"),
        (bad(sparsity=1.5), "sparsity is 1.5; allowed: 0 to 1"),
        (bad(sparsity={}), "sparsity is {}; allowed: 0 to 1"),
        (bad(batches=[{"x": ones(3, 5)}]), r"does not take batch 0, of shapes \(3, 5\)"),
        (bad(scope="erk"), "scope is 'erk'; allowed: local, global"),
        (bad(scope="global", structure="2:4"), "scope is 'global'; allowed with structure='2:4': local"),
        (bad(scope="global", fn=lambda p, x: dense(p, x) > 0), "no floating output.*allowed: scope='local'"),
        (bad(scope="global", fn=endless), "the network has no gradient.*allowed: scope='local'"),
        (bad(weights=[]), "weights has 0 arrays; allowed: 1, one per batch"),
        (bad(weights=[ones(4)]), r"weights has shape \(4,\) with batch 0; no dense layer's inputs lead with it"),
        (bad(weights=[-ones(3)]), "weights has numbers of batch 0 that are no weights; allowed: from 0 on"),
        (bad(method=pj.movement()), r"method is movement, which learns while .*; allowed: pj.sparsegpt\(\)"),
        (bad(method="wanda"), r"method is 'wanda'; allowed: pj.sparsegpt\(\)"),
        (bad(fn=lambda p, x: dense(p, x) @ p["kernel"].T), 'leave it dense with rules={"kernel": pj.KEEP}'),
        (bad(method=pj.obs(), structure="block:2x2"), "allowed with obs: unstructured, n:m"),
        (bad(method=pj.obs(most_inputs=4)), "kernel has 6 inputs; allowed with obs: 4"),
        (bad(method=pj.sparsegpt(bits=4), correct=True), "leaves the grid"),
        (bad(structure="wheels"), "no groups of kind 'wheels'"),
        (bad(fn=lambda p, x: x, params={"bias": np.ones((2, 2), np.float32)}), "no linear layer"),
        (bad(rules={"kernel": pj.KEEP}), r"that the rules do not keep \('kernel'\)"),
        (
            bad(
                fn=lambda p, x: jax.nn.relu(x @ p["kernel"]) @ p["w"],
                params={"kernel": ones(6, 4), "w": ones(4, 2)},
                structure="kernel",
                rules={"kern": pj.KEEP},
            ),
            r"closes: 'kern' of kernel \(kernel\)",
        ),
        (bad(structure="a", rules={"kernel": pj.Rule(sparsity=0.9)}), "allowed where units of groups close: pj.KEEP"),
        (
            bad(params={"kernel": ones(6, 4), "bias": ones(4, 4)}, rules={"bias": pj.Rule(sparsity=0.9)}),
            "the rule of bias is .*uses it in no linear layer or convolution; allowed: pj.KEEP",
        ),
        (bad(rules={"kernel": pj.Rule(sparsity=0.25, structure="1:2")}), "and 1:2 closes 0.5; allowed: None"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_progress_tells_the_time_that_is_left(capsys):
    w, x = layer(3, 16, 16)
    params = [w] * 3
    net = lambda p, x: x @ p[0] @ p[1] @ p[2]  # noqa: E731
    pj.oneshot(net, params, [x], pj.wanda(), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3"] and lines[-1].endswith("00:00 left")
    assert all("50.0% closed" in line for line in lines)


def test_the_room_can_be_called_whoever_imports_it_first():
    import prune_jax.oneshot

    assert callable(prune_jax.oneshot) and callable(pj.oneshot)


def test_inverse_factor_and_sweep_at_every_block_size():
    w, x = layer(2, 40, 16)
    factors = hessian.factors(jnp.asarray(x.T @ x / len(x)), 0.01)
    np.testing.assert_allclose(factors.upper.T @ factors.upper @ factors.hessian, np.eye(40), atol=5e-3)
    assert not np.tril(np.asarray(factors.upper), -1).any()
    for block, layout in itertools.product((7, 40, 999), (Layout("n:m", 0.5, (2, 4)), Layout("unstructured", 0.3))):
        new, opened = sparsegpt.sweep(jnp.asarray(w), factors, layout, block)
        assert (np.asarray(new)[~np.asarray(opened)] == 0).all() and abs(
            float(opened.mean()) - 1 + layout.sparsity
        ) < 1e-3

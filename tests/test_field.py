"""Methods of the field against float64 references of their papers' equations, and the ERK distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_jax as pj
from prune_jax.methods import l0, obert
from prune_jax.methods import variational_dropout as vd
from prune_jax.pruning import distribution, stepping
from prune_jax.pruning import plan as plan_lib

RNG = np.random.default_rng(1)
W = RNG.normal(size=(6, 4))
X, Y = RNG.normal(size=(9, 6)), RNG.normal(size=(9, 4))


def loss(params):
    return jnp.mean((jnp.tanh(X.astype(np.float32)) @ params["kernel"] + params["bias"] - Y.astype(np.float32)) ** 2)


def stepped(method, schedule, steps=1, scope="local"):
    tx = pj.prune(optax.sgd(0.1), method, schedule, scope=scope)
    params = {"kernel": jnp.asarray(W, jnp.float32), "bias": jnp.zeros(4)}
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def gradient(w):
    """float64 dL/dw of the loss above, with biases at 0."""
    x = np.tanh(X)
    return 2 * x.T @ (x @ w - Y) / Y.size


def closed(state):
    return ~np.asarray(pj.gates(state)["kernel"])


def lowest(score, k):
    return score <= np.sort(score.ravel())[k - 1]


def test_snip_closes_what_the_first_batch_calls_insensitive():
    _, state = stepped(pj.snip(), pj.steps({1: 0.25, 2: 0.5}), 2)
    score = np.abs(W * gradient(W))
    np.testing.assert_allclose(state.method["scores"]["kernel"], score, rtol=1e-4)
    np.testing.assert_array_equal(closed(state), lowest(score, 12))


def test_grasp_closes_by_the_product_of_weight_and_curved_gradient():
    _, state = stepped(pj.grasp(), pj.one_shot(0.5))
    x = np.tanh(X)
    score = W * (2 * x.T @ x @ gradient(W) / Y.size)  # the loss is quadratic: H g exactly
    np.testing.assert_allclose(state.method["scores"]["kernel"], score, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(closed(state), lowest(score, 12))


def test_a_lottery_ticket_starts_again_from_its_early_weights():
    early, _ = stepped(pj.magnitude(), pj.one_shot(0.5, at=99), 2)
    late, state = stepped(pj.lottery_ticket(rewind=2), pj.steps({5: 0.5}), 5)
    dense, _ = stepped(pj.magnitude(), pj.one_shot(0.5, at=99), 5)
    np.testing.assert_array_equal(closed(state), lowest(np.abs(np.asarray(dense["kernel"])), 12))
    np.testing.assert_allclose(late["kernel"], np.where(closed(state), 0, early["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(late["bias"], early["bias"], rtol=1e-6)
    after, _ = stepped(pj.lottery_ticket(rewind=2), pj.steps({5: 0.5}), 6)
    assert not np.array_equal(after["kernel"], late["kernel"]), "it trains on"


def test_random_closes_as_many_and_not_the_smallest():
    _, state = stepped(pj.random(), pj.one_shot(0.5))
    assert closed(state).sum() == 12 and (closed(state) != lowest(np.abs(W), 12)).any()


def test_the_woodbury_formula_gives_the_inverse_of_the_block_fisher():
    gradients, damp = RNG.normal(size=(8, 2, 5)), 0.1
    inverse = jnp.broadcast_to(jnp.eye(5) / damp, (2, 5, 5))
    for g in gradients:
        inverse = obert.woodbury(inverse, jnp.asarray(g, jnp.float32), 8)
    for b in range(2):
        fisher = damp * np.eye(5) + gradients[:, b].T @ gradients[:, b] / 8
        np.testing.assert_allclose(inverse[b], np.linalg.inv(fisher), rtol=1e-3, atol=1e-4)


def test_obert_closes_what_costs_least_and_corrects_the_others():
    block, damp = 5, 1e-2  # 24 weights in 5 blocks, the last of them padded
    inverse = np.stack([np.eye(block) / damp] * 5)
    params, state = stepped(pj.obert(block=block, gradients=3, dampening=damp), pj.one_shot(0.5, at=3), 3)
    # The same three steps in float64; the biases train, too.
    w, bias, x = W.copy(), np.zeros(4), np.tanh(X)
    for _ in range(3):
        error = 2 * (x @ w + bias - Y) / Y.size
        g, slope = x.T @ error, error.sum(0)
        blocks = np.pad(g.ravel(), (0, 1)).reshape(5, block)
        for b, v in enumerate(blocks):
            moved = inverse[b] @ v
            inverse[b] -= np.outer(moved, moved) / (3 + v @ moved)
        w, bias = w - 0.1 * g, bias - 0.1 * slope
    diagonal = np.stack([np.diag(one) for one in inverse])
    padded = np.pad(w.ravel(), (0, 1)).reshape(5, block)
    score = (padded**2 / (2 * diagonal)).ravel()[:24].reshape(6, 4)
    gone = lowest(score, 12)
    np.testing.assert_array_equal(closed(state), gone)
    out = np.pad(gone.ravel(), (0, 1)).reshape(5, block)
    move = -np.einsum("bij,bj->bi", inverse, out * padded / diagonal)
    expected = np.where(gone, 0, (padded + move).ravel()[:24].reshape(6, 4))
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - np.where(gone, 0, w)).max() > 1e-3, "nothing was corrected"


@pytest.mark.parametrize("target", [0.0, 0.3, 0.9, 0.99, 1.0])
def test_erk_equals_the_papers_loop(target):
    """RigL's own procedure in float64: what would be denser than dense is dense, and the rest is scaled again."""
    shapes = [(10, 20), (3, 3, 8, 16), (20, 300), (300, 10), (4, 4)]
    sizes, raw = [np.prod(s) for s in shapes], [sum(s) / np.prod(s) for s in shapes]
    dense: set = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        kept = (1 - target) * sum(sizes) - sum(sizes[i] for i in dense)
        scale = kept / sum(sizes[i] * raw[i] for i in rest)
        over = [i for i in rest if scale * raw[i] > 1 + 1e-9]
        if not over:
            break
        dense |= {i for i in over if raw[i] == max(raw[j] for j in over)}
    wanted = [0.0 if i in dense else 1 - scale * raw[i] for i in range(len(shapes))]
    found = jax.jit(lambda t: distribution.erk(shapes, t))(jnp.float32(target))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", [pj.magnitude(), pj.random(), pj.rigl(frequency=1), pj.set(frequency=1)])
def test_every_method_takes_the_erk_distribution(method):
    params = {
        "wide": {"kernel": jnp.asarray(RNG.normal(size=(40, 60)), jnp.float32)},
        "out": {"kernel": jnp.ones((6, 4))},
    }
    tx = pj.prune(optax.sgd(0.1), method, pj.constant(0.9), scope="erk")
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    wanted = distribution.erk([(6, 4), (40, 60)], 0.9)
    for name, closed_share in zip(("out", "wide"), wanted, strict=True):
        gate = np.asarray(pj.gates(state)[name]["kernel"])
        assert (~gate).sum() == round(float(closed_share) * gate.size)


def test_erk_is_no_distribution_of_groups():
    params = {"kernel": jnp.ones((4, 6))}
    group = pj.Group("hidden", "hidden", 6, (pj.Member.split("kernel", 1, (6,)),))
    tx = pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(0.5), scope="erk", structure="hidden", groups=[group])
    with pytest.raises(ValueError, match="scope is 'erk'; allowed: local, global"):
        tx.init(params)


@pytest.mark.parametrize("count", [0, 5, 10, 33, 50, 99, 100, 150, 200, 300])
def test_schedules_equal_their_formulas_inside_jit_and_outside(count):
    x = min(max((count - 10) / 190, 0), 1)
    left = 1 - (x * 3) % 1
    expected = {
        "cosine": 0.9 + (0.2 - 0.9) * (1 + np.cos(np.pi * x)) / 2,
        "cyclic": 0.9 + (0.2 - 0.9) * left**3,
        "one_shot": 0.9,
    }
    made = {
        "cosine": pj.cosine(0.9, 10, 200, 5, 0.2),
        "cyclic": pj.cyclic(0.9, 10, 200, 5, 0.2, cycles=3),
        "one_shot": pj.one_shot(0.9, at=10),
    }
    for name, schedule in made.items():
        wanted = 0.0 if count < 10 else 0.9 if count >= 200 else expected[name]
        assert schedule(count) == pytest.approx(wanted, abs=1e-9), name
        inside = jax.jit(lambda c, s=schedule: (s.target(c), s.due(c)))(jnp.int32(count))
        assert float(inside[0]) == pytest.approx(wanted, abs=1e-3), name
        assert bool(inside[1]) == bool(schedule.due(count)), name


def test_ste_trains_closed_weights_straight_through():
    """SR-STE's update in float64: every weight takes the gradient at the sparse network, closed ones decay, too."""
    decay, w, bias, x = 0.3, W.copy(), np.zeros(4), np.tanh(X)
    method = pj.ste(decay=decay)
    tx = pj.prune(optax.sgd(0.1), method, pj.constant(0.5))
    params = {"kernel": jnp.asarray(W, jnp.float32), "bias": jnp.zeros(4)}
    state = tx.init(params)
    gate, returned = np.ones_like(w, bool), False
    for _ in range(12):
        error = 2 * (x @ (w * gate) + bias - Y) / Y.size
        w, bias = w - 0.1 * (x.T @ error + decay * ~gate * w), bias - 0.1 * error.sum(0)
        before, gate = gate, ~lowest(np.abs(w), 12)
        returned |= bool((gate & ~before).any())
        updates, state = tx.update(jax.grad(lambda p, s=state: loss(pj.masked(p, s)))(params), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(closed(state), ~gate)
    assert returned, "no gate came back"


def test_synflow_after_its_rounds_has_the_masks_of_the_papers_loop():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(7, 9)), rng.normal(size=(9, 4))
    params = {"a": {"kernel": jnp.asarray(first, jnp.float32)}, "b": {"kernel": jnp.asarray(second, jnp.float32)}}
    rounds, least = 10, 0.05

    def flow(p):
        return jnp.sum(jax.nn.relu(jnp.ones((1, 7)) @ p["a"]["kernel"]) @ p["b"]["kernel"])

    masks = [np.ones_like(first, bool), np.ones_like(second, bool)]
    for k in range(1, rounds + 1):
        a, b = np.abs(first) * masks[0], np.abs(second) * masks[1]
        scores = [a * b.sum(1), a.sum(0)[:, None] * b]  # |w| dR/d|w| of R = 1' |a| |b| 1
        total = first.size + second.size
        left = total - round((1 - least ** (k / rounds)) * total)
        order = np.sort(np.concatenate([np.where(m, s, -1).ravel() for m, s in zip(masks, scores, strict=True)]))
        masks = [m & (s >= order[total - left]) for m, s in zip(masks, scores, strict=True)]
        tx = pj.prune(optax.sgd(0.0), pj.synflow(rounds=rounds, least=least), pj.one_shot(1 - least ** (k / rounds)),
                      scope="global")  # fmt: skip
        if k in (3, 6, 10):
            _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params, value_fn=flow)
            for name, mask in zip("ab", masks, strict=True):
                np.testing.assert_array_equal(pj.gates(state)[name]["kernel"], mask)


def test_l0_draws_hard_concrete_gates_and_counts_those_that_are_not_0():
    u, la = RNG.uniform(0.01, 0.99, size=50), RNG.normal(size=50) * 3
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + la) / (2 / 3)))
    z = np.clip(s * 1.2 - 0.1, 0, 1)
    found = l0.concrete(jnp.asarray(la, jnp.float32), jnp.asarray(u, jnp.float32), 2 / 3, 0.1)
    np.testing.assert_allclose(found, z, atol=1e-5)
    method, leaf = pj.l0(penalty=3.0), jnp.asarray(la, jnp.float32)
    gates, trainable = {"kernel": jnp.arange(50) % 2 == 0}, {"log_alpha": {"kernel": leaf}}
    chance = 1 / (1 + np.exp(-(la - 2 / 3 * np.log(0.1 / 1.1))))  # of a gate that is not 0: 1 - Q(s <= 0)
    cost = method.penalty({"kernel": leaf}, gates, trainable, 0, {}, plan_lib.make(gates))
    np.testing.assert_allclose(cost, 3 * chance[::2].sum() / 50, rtol=1e-5)


def test_variational_dropout_has_the_papers_divergence_and_closes_by_alpha():
    w, v = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4)) * 2 - 4
    log_alpha = np.clip(v - np.log(w**2 + 1e-8), -8, 8)
    kl = 0.63576 * (1 - 1 / (1 + np.exp(-(1.87320 + 1.48695 * log_alpha)))) + 0.5 * np.log(1 + np.exp(-log_alpha))
    params, trainable = {"kernel": jnp.asarray(w, jnp.float32)}, {"log_variance": {"kernel": jnp.asarray(v)}}
    gates = {"kernel": jnp.ones((6, 4), bool)}
    method = pj.variational_dropout(num_examples=10)
    np.testing.assert_allclose(vd.log_alpha(params["kernel"], jnp.asarray(v)), log_alpha, atol=1e-4)
    cost = method.penalty(params, gates, trainable, 0, {"num_examples": 10.0}, plan_lib.make(gates))
    np.testing.assert_allclose(cost, kl.sum() / 10, rtol=1e-5)
    info = pj.PruneInfo(
        jax.random.key(0), 1, params, gates, trainable, {}, jnp.float32(0.5), True, plan_lib.make(gates)
    )
    np.testing.assert_array_equal(~np.asarray(method.prune(info).gates["kernel"]), lowest(-log_alpha, 12))


def residual(p, x):
    h = x @ p["in"]["kernel"]
    h += jnp.tanh(h @ p["up"]["kernel"]) @ p["down"]["kernel"]
    return h @ p["out"]["kernel"]


SHAPES = {"in": (3, 4), "up": (4, 6), "down": (6, 4), "out": (4, 2)}
PARAMS = {name: {"kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32)} for name, shape in SHAPES.items()}


def units(name, kind, size, *axes):
    members = (pj.Member(f"{k}/kernel", a, np.arange(SHAPES[k][a], dtype=np.int32) % size) for k, a in axes)
    return pj.Group(name, kind, size, tuple(members))


GROUPS = (
    units("ffn", "ffn", 6, ("up", 1), ("down", 0)),
    units("hidden", "hidden", 4, ("in", 1), ("up", 0), ("down", 1), ("out", 0)),
    units("layer", "layer", 1, ("up", 0), ("down", 0)),
)


def test_cofi_multiplies_its_masks_and_expects_what_they_leave():
    """Against loops over the weights: the network that is seen, the expected sparsity, the Lagrangian's derivatives."""
    rng, method, gates = np.random.default_rng(5), pj.cofi(), jax.tree.map(lambda w: jnp.ones(w.shape, bool), PARAMS)
    gates["down"]["kernel"] = gates["down"]["kernel"].at[2].set(False)
    gates["up"]["kernel"] = gates["up"]["kernel"].at[:, 2].set(False)  # unit 2 of ffn is closed
    plan = plan_lib.make(gates, "ffn+hidden+layer", "global", GROUPS)
    trainable, state = method.init_trainable(PARAMS, gates, plan), method.init(PARAMS, gates, plan)
    names = ("ffn", "ffn.whole", "hidden", "layer")
    masks = {name: jnp.asarray(rng.normal(size=n), jnp.float32) for name, n in zip(names, (6, 1, 4, 1), strict=True)}
    assert {n: m.shape for n, m in trainable["log_alpha"]["groups"].items()} == {n: m.shape for n, m in masks.items()}
    multipliers = {"linear": jnp.float32(0.7), "square": jnp.float32(1.3)}
    trainable = {"log_alpha": {"kernels": {}, "groups": masks}, "multipliers": multipliers}

    draws = jax.random.uniform(jax.random.split(jax.random.key(3))[0], 12, minval=1e-6, maxval=1 - 1e-6)
    drawn = np.asarray(l0.concrete(jnp.concatenate([*masks.values()]), draws, 2 / 3, 0.1))
    z = dict(zip(names, np.split(drawn, [6, 7, 11]), strict=True))
    seen = jax.jit(method.sample)(PARAMS, gates, trainable, jax.random.key(3), state)
    chance = {n: 1 / (1 + np.exp(-(np.asarray(m, float) - 2 / 3 * np.log(0.1 / 1.1)))) for n, m in masks.items()}
    chance["ffn"][2] = 0
    left, total = 0, 0
    for name, kernel in PARAMS.items():
        for (i, j), w in np.ndenumerate(kernel["kernel"]):
            column = {"up": j, "down": i}.get(name)
            channel = {"in": j, "up": i, "down": j, "out": i}[name]
            own = [] if column is None else [("ffn", column), ("ffn.whole", 0), ("layer", 0)]
            own.append(("hidden", channel))
            reads = {"up": ("hidden",), "down": ("ffn", "ffn.whole", "layer"), "out": ("hidden",)}.get(name, ())
            factors = [z[n][u] if n in reads else float(z[n][u] > 0) for n, u in own]
            np.testing.assert_allclose(seen[name]["kernel"][i, j], w * np.prod(factors) * (column != 2), rtol=1e-5)
            left, total = left + np.prod([chance[n][u] for n, u in own]), total + 1
    gap = 1 - left / total - 0.4

    def penalty(trainable):
        return method.penalty(PARAMS, gates, trainable, 0, {"target": jnp.float32(0.4)}, plan)

    value, grads = jax.jit(jax.value_and_grad(penalty))(trainable)
    np.testing.assert_allclose(value, 0.7 * gap + 1.3 * gap**2, rtol=1e-4)
    np.testing.assert_allclose(grads["multipliers"]["linear"], -gap, rtol=1e-4)  # descent makes it climb
    np.testing.assert_allclose(grads["multipliers"]["square"], -(gap**2), rtol=1e-4)
    np.testing.assert_allclose(grads["log_alpha"]["groups"]["ffn"][2], 0, atol=1e-9)


@pytest.mark.parametrize(
    ("whole", "structure", "scope", "message"),
    [
        ("ffn", "ffn+hidden", "local", "units of 'ffn' and of 'hidden' meet in up/kernel"),
        (
            "ffn+heads",
            "ffn+hidden",
            "global",
            "no group of several units of kind or name 'heads'; allowed: ffn, hidden",
        ),
        ("layer", "ffn+layer", "global", "name 'layer'; allowed: ffn, empty"),
        ("ffn", "unstructured", "local", "name 'ffn'; allowed: empty"),
    ],
)
def test_cofi_tells_what_its_masks_cannot_do(whole, structure, scope, message):
    plan = plan_lib.make(PARAMS, structure, scope, GROUPS)
    with pytest.raises(ValueError, match=message):
        pj.cofi(whole=whole).init({}, PARAMS, plan)
    assert pj.cofi(whole="ffn").init({}, PARAMS, plan_lib.make(PARAMS, "ffn", "local", GROUPS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:structure=")
def test_cofi_waits_for_its_schedule():
    """Before it no multiplier grows, and no mask runs so far away that the schedule's steps do not bring it back."""
    x, method = jnp.asarray(RNG.normal(size=(64, 3)), jnp.float32), pj.cofi(score_learning_rate=0.5)
    schedule, target = pj.linear(0.6, begin=100, end=170, every=100), residual(PARAMS, x)
    tx = pj.prune(optax.sgd(0.0), method, schedule, structure="ffn+hidden+layer", groups=GROUPS, scope="global")

    @jax.jit
    def step(state):
        grads = jax.grad(lambda p: jnp.mean((residual(pj.sampled(method, p, state), x) - target) ** 2))(PARAMS)
        return tx.update(grads, state, PARAMS)[1]

    def masks(state):
        return np.concatenate([*jax.device_get(state.trainable)["log_alpha"]["groups"].values()])

    state = tx.init(PARAMS)
    for number in range(169):
        state = step(state)
        if number == 98:
            assert all(value == 0 for value in state.trainable["multipliers"].values())
            assert 3 < masks(state).max() < 12
    assert (masks(state) < 0).any() and not pj.sparsity(state)


@pytest.mark.filterwarnings("ignore:structure=")
def test_cofi_learns_what_a_network_does_without_and_meets_the_schedule():
    """Two columns do nothing: their masks fall first, and at the schedule's events they close."""
    params = PARAMS | {"down": {"kernel": PARAMS["down"]["kernel"].at[jnp.array([1, 4])].set(0)}}
    x = jnp.asarray(RNG.normal(size=(64, 3)), jnp.float32)
    method, target = pj.cofi(whole=""), residual(params, x)
    tx = pj.prune(optax.sgd(0.0), method, pj.linear(1 / 3, begin=0, end=120, every=60), structure="ffn", groups=GROUPS)

    @jax.jit
    def step(state):
        grads = jax.grad(lambda p: jnp.mean((residual(pj.sampled(method, p, state), x) - target) ** 2))(params)
        return tx.update(grads, state, params)[1]

    state, closed = tx.init(params), []
    for _ in range(120):
        state = step(state)
        closed.append(float(pj.sparsity(state)))
    gate = np.asarray(pj.gates(state)["down"]["kernel"])
    assert (~gate).all(1).nonzero()[0].tolist() == [1, 4]
    assert closed[58] == 0 and closed[59] == pytest.approx(8 / 68) and closed[-1] == pytest.approx(16 / 68)
    assert step._cache_size() == 1


@pytest.mark.parametrize("method", [pj.l0(), pj.variational_dropout(num_examples=9, log_variance=-2.0)])
def test_a_sampled_step_takes_the_derivative_of_the_loss_at_its_sample(method):
    """The weights and the method's leaves move by the gradient of loss + penalty, each sample drawn from its key."""
    tx = pj.prune(optax.sgd(0.1), method, pj.constant(0.0))
    params = {"kernel": jnp.asarray(W, jnp.float32), "bias": jnp.zeros(4)}
    state = tx.init(params)
    kernel = {"kernel": params["kernel"]}
    trainable = {label: {"kernel": tree["kernel"]} for label, tree in state.trainable.items()}
    key = stepping.sampling_key(state.key, state.step)
    gates = {"kernel": pj.gates(state)["kernel"]}

    def whole(p):
        drawn = method.sample({"kernel": p["kernel"]}, gates, trainable, key, {})
        return loss({**p, **drawn}) + method.penalty(p, gates, trainable, 0, dict(method.hyper), plan_lib.make(gates))

    seen = pj.sampled(method, params, state)
    np.testing.assert_allclose(seen["kernel"], method.sample(kernel, gates, trainable, key, {})["kernel"], rtol=1e-5)
    assert np.abs(seen["kernel"] - W).max() > 1e-3, "nothing was drawn"
    updates, after = tx.update(jax.grad(lambda p: loss(pj.sampled(method, p, state)))(params), state, params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * jax.grad(whole)(params)["kernel"], rtol=1e-3, atol=1e-6)
    again = pj.sampled(method, params, after)
    assert not np.allclose(again["kernel"], seen["kernel"]), "the next step draws anew"

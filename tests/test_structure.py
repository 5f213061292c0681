"""Gates that close together: groups, exact targets, n:m patterns, and one message for what does not divide."""

from types import SimpleNamespace as Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from prune_jax import config as config_lib
from prune_jax import gates as gates_lib
from prune_jax import groups, methods
from prune_jax.errors import UserError
from prune_jax.structure import parse

D, HEADS, FFN, DEPTH = 8, 4, 12, 2
KEY = jax.random.key(0)


def closer(structure):
    return groups.create(Namespace(
        pruning=Namespace(structure=structure), model=Namespace(d_model=D, num_heads=HEADS)
    ))  # fmt: skip


def network(seed=0, layers=2):
    """(gates, scores) of a Bert's form, all open."""
    rng = np.random.default_rng(seed)
    shapes = dict.fromkeys(("query", "key", "value", "attention_output"), (D, D))
    shapes |= {"ffn_hidden": (D, FFN), "ffn_output": (FFN, D)}
    tree = {f"layer_{i}": shapes for i in range(layers)} | {"pooler": (D, D), "classifier": (D, 2)}

    def kernels(make, node):
        return {"kernel": make(node)} if isinstance(node, tuple) else {k: kernels(make, v) for k, v in node.items()}

    def random(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return kernels(lambda shape: jnp.ones(shape, bool), tree), kernels(random, tree)


KINDS = {"head": "heads", "ffn": "ffn", "pooler": "pooler"}  # a structure's part: what groups calls its groups
SIZES = {"heads": 4 * D * DEPTH, "ffn": 2 * D, "pooler": D + 2}


def pooler_units(gates):
    """The units of the pooler as NumPy booleans; each is open or closed as a whole."""
    group = np.concatenate([np.asarray(gates["pooler"]["kernel"]).T, np.asarray(gates["classifier"]["kernel"])], axis=1)
    assert (group.all(1) | ~group.any(1)).all(), "a group is torn"
    return group.all(1)


def units(gates, layer):
    """(head, column) of a layer as NumPy booleans; each is open or closed as a whole."""
    at = {name: np.asarray(node["kernel"]) for name, node in gates[layer].items()}
    heads = np.concatenate(
        [at[n].reshape(D, HEADS, DEPTH).transpose(1, 0, 2).reshape(HEADS, -1) for n in ("query", "key", "value")]
        + [at["attention_output"].reshape(HEADS, -1)], axis=1
    )  # fmt: skip
    columns = np.concatenate([at["ffn_hidden"].T, at["ffn_output"]], axis=1)
    for group in (heads, columns):
        assert ((group.all(1)) | (~group.any(1))).all(), "a group is torn"
    return heads.all(1), columns.all(1)


@pytest.mark.parametrize("structure", ["head", "ffn", "head+ffn", "pooler", "head+ffn+pooler"])
@pytest.mark.parametrize("scope", ["local", "global"])
@settings(max_examples=8, deadline=None)
@given(targets=st.lists(st.floats(0, 1), min_size=1, max_size=3), seed=st.integers(0, 100))
def test_units_close_whole_in_order_and_within_one_group_of_the_target(structure, scope, targets, seed):
    gates, scores = network(seed)
    sums = groups.sums(parse("head+ffn+pooler"), scores, DEPTH)
    for target in sorted(targets):
        before = gates
        gates = closer(structure).close(gates, scores, target, KEY, scope)
        assert not any((a & ~b).any() for a, b in zip(*map(jax.tree.leaves, (gates, before)), strict=True))
        opened = {(layer, kind): part for layer in ("layer_0", "layer_1")
                  for kind, part in zip(("heads", "ffn"), units(gates, layer), strict=True)}  # fmt: skip
        opened["pooler", "pooler"] = pooler_units(gates)
        kinds = [KINDS[part] for part in structure.split("+")]
        assert all(part.all() for (_, kind), part in opened.items() if kind not in kinds)
        covered = [at for at in opened if at[1] in kinds]
        selections = [covered] if scope == "global" else [[at] for at in covered]
        for places in selections:
            size = np.concatenate([np.full(opened[at].size, SIZES[at[1]]) for at in places])
            is_open = np.concatenate([opened[at] for at in places])
            score = np.concatenate([np.asarray(sums[layer][kind]) / SIZES[kind] for layer, kind in places])
            assert abs(size[~is_open].sum() - target * size.sum()) <= max(size) / 2 + 1e-6
            if is_open.any() and not is_open.all():
                assert score[~is_open].max() <= score[is_open].min()


def test_group_scores_by_hand():
    gates, scores = network()
    ones = jax.tree.map(jnp.ones_like, scores)
    sums = groups.sums(parse("head+ffn+pooler"), ones, DEPTH)
    np.testing.assert_array_equal(sums["pooler"]["pooler"], np.full(D, D + 2))
    np.testing.assert_array_equal(sums["layer_0"]["heads"], np.full(HEADS, 4 * D * DEPTH))
    np.testing.assert_array_equal(sums["layer_1"]["ffn"], np.full(FFN, 2 * D))
    low = jax.tree.map(lambda x: x, ones)
    low["layer_0"]["value"]["kernel"] = ones["layer_0"]["value"]["kernel"].at[0, 5].set(-9.0)  # head 2
    low["layer_1"]["ffn_output"]["kernel"] = ones["layer_1"]["ffn_output"]["kernel"].at[7, 0].set(-9.0)
    low["pooler"]["kernel"] = ones["pooler"]["kernel"].at[0, 6].set(-9.0)  # unit 6, and 3 by what reads it
    low["classifier"]["kernel"] = ones["classifier"]["kernel"].at[3, 1].set(-9.0)
    closed = closer("head+ffn+pooler").close(gates, low, 0.25, KEY)
    assert list(np.flatnonzero(~pooler_units(closed))) == [3, 6]
    assert list(np.flatnonzero(~units(closed, "layer_0")[0])) == [2]
    assert 7 in np.flatnonzero(~units(closed, "layer_1")[1])
    blocks = groups.sums(parse("block:4x2"), scores)["layer_0"]["ffn_hidden"]["kernel"]
    expected = np.asarray(scores["layer_0"]["ffn_hidden"]["kernel"])[4:8, 2:4].sum()
    assert blocks.shape == (2, 6) and blocks[1, 1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_blocks_close_whole(scope):
    gates, scores = network()
    closed = closer("block:4x2").close(gates, scores, 0.3, KEY, scope)
    count = 0
    for layer in ("layer_0", "layer_1"):
        for node in closed[layer].values():
            kernel = np.asarray(node["kernel"])
            tiles = kernel.reshape(kernel.shape[0] // 4, 4, kernel.shape[1] // 2, 2).transpose(0, 2, 1, 3)
            flat = tiles.reshape(-1, 8)
            assert (flat.all(1) | ~flat.any(1)).all()
            count += (~flat.any(1)).sum()
            if scope == "local":
                assert (~flat.any(1)).sum() == round(0.3 * len(flat))
    total = 2 * (4 * D * D + 2 * D * FFN) // 8
    assert abs(count - 0.3 * total) <= (1 if scope == "global" else 12)
    assert closed["classifier"]["kernel"].all()


@pytest.mark.parametrize("scope", ["local", "global"])
def test_encoder_closes_gate_by_gate_and_leaves_the_head_open(scope):
    gates, scores = network()
    scores["classifier"]["kernel"] = scores["classifier"]["kernel"] - 100  # would go first
    closed = closer("encoder").close(gates, scores, 0.3, KEY, scope)
    assert closed["classifier"]["kernel"].all() and closed["pooler"]["kernel"].all()
    layers = ("layer_0", "layer_1")
    kernels, values = (
        [np.asarray(x) for x in jax.tree.leaves([tree[layer] for layer in layers])] for tree in (closed, scores)
    )
    if scope == "local":
        assert [(~k).sum() for k in kernels] == [round(0.3 * k.size) for k in kernels]
    else:
        assert sum((~k).sum() for k in kernels) == round(0.3 * sum(k.size for k in kernels))
        shut, left = (np.concatenate([v[k == on] for v, k in zip(values, kernels, strict=True)]) for on in (0, 1))
        assert shut.max() <= left.min()
    own = np.concatenate([np.ravel(v) for v in values])
    assert closer("encoder").below(gates, scores, 0.1) == pytest.approx((own < 0.1).mean())


@settings(max_examples=10, deadline=None)
@given(pattern=st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 4)]), targets=st.lists(st.floats(0, 1), max_size=3))
def test_n_of_m_is_exact_in_every_group_and_never_ahead(pattern, targets):
    n, m = pattern
    gates, scores = network()
    rounded = jax.tree.map(lambda x: jnp.round(x), scores)  # full of ties
    for target in [*sorted(targets), 1.0]:
        before, gates = gates, closer(f"{n}:{m}").close(gates, rounded, target, KEY)
        closed = min(m - n, int(target * m + 1e-9))
        for name in ("layer_0", "layer_1"):
            for part, node in gates[name].items():
                kernel, score = np.asarray(node["kernel"]), np.asarray(rounded[name][part]["kernel"])
                runs, values = (x.reshape(-1, m, x.shape[1]) for x in (kernel, score))
                assert ((~runs).sum(1) == closed).all()
                assert not (kernel & ~np.asarray(before[name][part]["kernel"])).any()
                highest_closed = np.where(runs, -np.inf, values).max(1)
                assert (highest_closed <= np.where(runs, values, np.inf).min(1)).all()
        assert gates["pooler"]["kernel"].all()
    assert ((~np.asarray(gates["layer_0"]["query"]["kernel"])).mean()) == (m - n) / m


def test_ties_are_random_and_closed_gates_stay():
    gates, scores = network()
    flat = jax.tree.map(jnp.zeros_like, scores)
    for structure, scope in (("ffn", "local"), ("head+ffn", "global"), ("2:4", "local")):
        close = closer(structure).close
        a, b, again = (close(gates, flat, 0.5, jax.random.key(seed), scope) for seed in (1, 2, 1))
        leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b, again)]
        assert (leaves[0] != leaves[1]).any() and (leaves[0] == leaves[2]).all()


def test_below_counts_what_a_threshold_would_close():
    gates, scores = network()
    leaves = [np.asarray(x) for x in jax.tree.leaves(scores)]
    below = sum((x < 0.1).sum() for x in leaves) / sum(x.size for x in leaves)
    assert closer("unstructured").below(gates, scores, 0.1) == pytest.approx(below)
    means = groups.sums(parse("ffn"), scores, DEPTH)
    columns = np.concatenate([np.asarray(means[layer]["ffn"]) / (2 * D) for layer in ("layer_0", "layer_1")])
    assert closer("ffn").below(gates, scores, 0.1) == pytest.approx((columns < 0.1).mean())


@pytest.mark.parametrize("method", ["magnitude", "movement", "spt"])
@pytest.mark.parametrize("structure", ["head+ffn", "ffn+pooler", "2:4"])
def test_every_method_closes_by_structure(method, structure):
    gates, scores = network()
    cfg = common.get_config()
    cfg.data.source, cfg.model.size, cfg.pruning.method, cfg.pruning.structure = "builtin", "tiny", method, structure
    cfg.model.d_model, cfg.model.num_heads, cfg.model.d_ff = D, HEADS, FFN
    built = methods.create(config_lib.resolve(cfg, {})[0])
    params = jax.tree.map(lambda x: x, scores)
    new = built.prune(KEY, params, gates, {"scores": scores}, {"scores": scores}, 0.5, True)
    if structure == "2:4":
        assert ((~np.asarray(new["layer_0"]["query"]["kernel"]).reshape(-1, 4, D)).sum(1) == 2).all()
    else:
        for layer in ("layer_0", "layer_1"):
            heads = HEADS // 2 if "head" in structure else 0
            assert [int((~part).sum()) for part in units(new, layer)] == [heads, FFN // 2]
        assert (~pooler_units(new)).sum() == (D // 2 if "pooler" in structure else 0)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("heads", "config.pruning.structure is 'heads'; allowed: unstructured, encoder, head, ffn"),
        ("ffn+head", "allowed: unstructured"),
        ("pooler+pooler", "allowed: unstructured"),
        ("head+2:4", "allowed: unstructured"),
        ("4:2", "allowed: unstructured"),
        ("0:4", "allowed: unstructured"),
        ("block:0x4", "allowed: unstructured"),
        ("block:3x4", r"allowed: sizes that divide config.model.d_model \(16\)"),
        ("block:16x16x16", "allowed: unstructured"),
        ("1:5", r"sizes that divide config.model.d_model \(16\)"),
    ],
)
def test_a_structure_that_does_not_fit_is_told(small_config, structure, message):
    small_config.pruning.structure = structure
    with pytest.raises(UserError, match=message):
        config_lib.resolve(small_config, {})


def test_notes_say_what_the_targets_refer_to(small_config):
    small_config.pruning.structure = "head"
    _, notes = config_lib.resolve(small_config, {})
    assert any("head covers query, key, value, attention_output" in note for note in notes)
    small_config.pruning.structure = "1:8"
    assert any("75% closed, is short of 1:8 (87.5%)" in note for note in config_lib.resolve(small_config, {})[1])


@pytest.mark.parametrize(("method", "pooler"), [("magnitude", False), ("spt", True)])
def test_a_run_prunes_by_heads_columns_and_the_pooler(method, pooler, small_config, tmp_path):
    from prune_jax import export, report, runs, train

    small_config.pruning.method = method
    small_config.pruning.structure = "head+ffn+pooler" if pooler else "head+ffn"
    small_config.spt.credit = "group"
    small_config.pruning.sparsity_steps = (50,)
    small_config.train.epochs = 2
    train.train_and_evaluate(small_config, tmp_path / "run")
    covered, head = 4 * 16 * 16 + 2 * 16 * 32, 16 * 16 + 16 * 2
    prunable, covered = covered + head, covered + (head if pooler else 0)
    assert report.read_metrics(tmp_path / "run")[-1]["sparsity"] == pytest.approx(0.5 * covered / prunable)
    assert gates_lib.count(runs.load(tmp_path / "run").gates) == prunable
    written = export.export(tmp_path / "run", tmp_path / "out", shrink=True)
    assert (written["layer_heads"], written["layer_ffn"]) == ([1], [16])
    assert written["pooler_width"] == (8 if pooler else 16)

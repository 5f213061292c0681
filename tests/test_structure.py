"""Gates that close together: groups, exact targets, n:m patterns, and one message for what does not divide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_jax as pj
from prune_jax import config as config_lib
from prune_jax import files, models
from prune_jax.data.glue import get_task
from prune_jax.errors import UserError
from prune_jax.models import Bert, BertConfig
from prune_jax.models import units as units_lib
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning import trees
from prune_jax.pruning.method import PruneInfo
from prune_jax.run import initial, inputs, telling, train
from prune_jax.run import state as state_lib

D, HEADS, FFN, DEPTH = 8, 4, 12, 2
KEY = jax.random.key(0)


MODEL = Bert(BertConfig(vocab_size=50, num_layers=2, d_model=D, num_heads=HEADS, d_ff=FFN))


def make_plan(structure, scope="local"):
    return state_lib.make_plan(MODEL, network()[0], structure, scope)


@functools.cache
def compiled(structure, scope):
    return jax.jit(make_plan(structure, scope).close)


def close(structure, gates, scores, target, key=KEY, scope="local"):
    return compiled(structure, scope)(gates, scores, jnp.float32(target), key)


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


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["head", "ffn", "head+ffn", "pooler", "head+ffn+pooler"])
@pytest.mark.parametrize("scope", ["local", "global"])
@settings(max_examples=8, deadline=None)
@given(targets=st.lists(st.floats(0, 1), min_size=1, max_size=3), seed=st.integers(0, 100))
def test_units_close_whole_in_order_and_within_one_group_of_the_target(structure, scope, targets, seed):
    gates, scores = network(seed)
    sums = make_plan("head+ffn+pooler").units.totals(scores)
    for target in sorted(targets):
        before = gates
        gates = close(structure, gates, scores, target, KEY, scope)
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
            empty = any(opened[at].sum() <= 1 for at in places)  # no rounding closes the last of a group
            assert abs(size[~is_open].sum() - target * size.sum()) <= max(size) / (1 if empty else 2) + 1e-6
            among = [
                opened[at] & (scope == "local" or opened[at].sum() > 1) for at in places
            ]  # the last of a group stays
            left = np.concatenate(among)
            if left.any() and not is_open.all():
                assert score[~is_open].max() <= score[left].min()


def test_group_scores_by_hand():
    gates, scores = network()
    ones = jax.tree.map(jnp.ones_like, scores)
    sums = make_plan("head+ffn+pooler").units.totals(ones)
    np.testing.assert_array_equal(sums["pooler"]["pooler"], np.full(D, D + 2))
    np.testing.assert_array_equal(sums["layer_0"]["heads"], np.full(HEADS, 4 * D * DEPTH))
    np.testing.assert_array_equal(sums["layer_1"]["ffn"], np.full(FFN, 2 * D))
    low = jax.tree.map(lambda x: x, ones)
    low["layer_0"]["value"]["kernel"] = ones["layer_0"]["value"]["kernel"].at[0, 5].set(-9.0)  # head 2
    low["layer_1"]["ffn_output"]["kernel"] = ones["layer_1"]["ffn_output"]["kernel"].at[7, 0].set(-9.0)
    low["pooler"]["kernel"] = ones["pooler"]["kernel"].at[0, 6].set(-9.0)  # unit 6, and 3 by what reads it
    low["classifier"]["kernel"] = ones["classifier"]["kernel"].at[3, 1].set(-9.0)
    closed = close("head+ffn+pooler", gates, low, 0.25)
    assert list(np.flatnonzero(~pooler_units(closed))) == [3, 6]
    assert list(np.flatnonzero(~units(closed, "layer_0")[0])) == [2]
    assert 7 in np.flatnonzero(~units(closed, "layer_1")[1])
    blocks = make_plan("block:4x2").units.totals(scores)["layer_0"]["ffn_hidden"]["kernel"]
    expected = np.asarray(scores["layer_0"]["ffn_hidden"]["kernel"])[4:8, 2:4].sum()
    assert blocks.shape == (2, 6) and blocks[1, 1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["local", "global"])
def test_blocks_close_whole(scope):
    gates, scores = network()
    closed = close("block:4x2", gates, scores, 0.3, KEY, scope)
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


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["local", "global"])
def test_encoder_closes_gate_by_gate_and_leaves_the_head_open(scope):
    gates, scores = network()
    scores["classifier"]["kernel"] = scores["classifier"]["kernel"] - 100  # would go first
    closed = close("encoder", gates, scores, 0.3, KEY, scope)
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
    assert make_plan("encoder").below(gates, scores, 0.1) == pytest.approx((own < 0.1).mean())


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(pattern=st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 4)]), targets=st.lists(st.floats(0, 1), max_size=3))
def test_n_of_m_is_exact_in_every_group_and_never_ahead(pattern, targets):
    n, m = pattern
    gates, scores = network()
    rounded = jax.tree.map(lambda x: jnp.round(x), scores)  # full of ties
    for target in [*sorted(targets), 1.0]:
        before, gates = gates, close(f"{n}:{m}", gates, rounded, target)
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
        a, b, again = (close(structure, gates, flat, 0.5, jax.random.key(seed), scope) for seed in (1, 2, 1))
        leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b, again)]
        assert (leaves[0] != leaves[1]).any() and (leaves[0] == leaves[2]).all()


def test_below_counts_what_a_threshold_would_close():
    gates, scores = network()
    leaves = [np.asarray(x) for x in jax.tree.leaves(scores)]
    below = sum((x < 0.1).sum() for x in leaves) / sum(x.size for x in leaves)
    assert make_plan("unstructured").below(gates, scores, 0.1) == pytest.approx(below)
    means = make_plan("ffn").units.totals(scores)
    columns = np.concatenate([np.asarray(means[layer]["ffn"]) / (2 * D) for layer in ("layer_0", "layer_1")])
    assert make_plan("ffn").below(gates, scores, 0.1) == pytest.approx((columns < 0.1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["magnitude", "movement", "spt"])
@pytest.mark.parametrize("structure", ["head+ffn", "ffn+pooler", "2:4"])
def test_every_method_closes_by_structure(method, structure):
    gates, scores = network()
    plan = make_plan(structure)
    info = PruneInfo(
        key=KEY, step=jnp.int32(9), params=scores, gates=gates, trainable={"scores": scores},
        state={"scores": scores}, target=jnp.float32(0.5), exact=True, plan=plan,
    )  # fmt: skip
    new = getattr(pj, method)().prune(info).gates
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
        ("ffn+", "allowed: unstructured"),
        ("pooler+pooler", "allowed: unstructured"),
        ("head+2:4", "allowed: unstructured"),
        ("head+auto", "allowed: unstructured"),
        ("encoder+head", "allowed: unstructured"),
        ("4:2", "allowed: unstructured"),
        ("0:4", "allowed: unstructured"),
        ("block:0x4", "allowed: unstructured"),
        ("block:16x16x16", "allowed: unstructured"),
        ("", "allowed: unstructured"),
    ],
)
def test_a_text_that_is_no_structure_is_refused(structure, message, small_config):
    with pytest.raises(ValueError, match=message):
        structure_lib.parse(structure)
    small_config.pruning.structure = structure
    with pytest.raises(UserError, match=f"config.pruning.structure is .*{message[-10:]}"):
        config_lib.resolve(small_config, {})


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (
            "heads",
            "no groups of kind 'heads'; allowed: unstructured, auto, head, ffn, pooler, hidden, layer, block:RxC, n:m",
        ),
        ("head+channel", "no groups of kind 'channel'; allowed: unstructured, auto, head, ffn, pooler"),
        ("block:3x4", r"block:3x4 does not divide axis 0 of a kernel of shape \(16, 16\)"),
        ("block:4x3", r"block:4x3 does not divide axis 1 of a kernel of shape \(16, 16\)"),
        ("1:5", r"1:5 does not divide axis 0 of a kernel of shape \(16, 16\)"),
    ],
)
def test_a_structure_that_does_not_fit_is_told_before_anything_is_written(small_config, structure, message, tmp_path):
    small_config.pruning.structure = structure
    with pytest.raises(UserError, match=message) as told:
        train.train_and_evaluate(small_config, tmp_path / "run")
    assert f"config.pruning.structure={structure}" in str(told.value)
    assert not (tmp_path / "run").exists()


def test_notes_say_what_the_targets_refer_to(small_config):
    small_config.pruning.structure = "head"
    config = config_lib.resolve(small_config, {})[0]
    (note,) = telling.coverage((MODEL, None, make_plan("head")), config)
    share = 2 * 4 * D * D / (2 * (4 * D * D + 2 * D * FFN) + D * D + 2 * D)
    assert note == (
        f"config.pruning.structure=head covers query, key, value, attention_output, {100 * share:.3g}% of the prunable "
        "weights; the targets refer to them, the rest stays open"
    )
    small_config.pruning.structure = "1:8"
    assert any("75% closed, is short of 1:8 (87.5%)" in note for note in config_lib.resolve(small_config, {})[1])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "pooler"), [("magnitude", False), ("spt", True)])
def test_a_run_prunes_by_heads_columns_and_the_pooler(method, pooler, small_config, tmp_path):
    from prune_jax import report
    from prune_jax.run import folder as runs
    from prune_jax.run.commands import export

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
    cost = files.read_json(tmp_path / "run" / "summary.json")["cost"]
    gone = (
        covered / 2 + 3 * 8 + 16 + (8 if pooler else 0)
    )  # with the biases of query, key and value, columns and pooler
    assert cost["parameters"]["dense"] - cost["parameters"]["pruned"] == gone
    rows, length = cost["batch"], cost["length"]
    assert rows * length == 8 * 16
    token = 2 * (4 * 16 * 8 + 2 * 16 * 16) + 2 * 2 * length * 8  # the kernels' halves, and the products of a head
    pooled = 2 * (16 * 8 + 2 * 8) if pooler else 0
    assert cost["flops"]["dense"] - cost["flops"]["pruned"] == rows * (length * token + pooled)


WIDE = Bert(BertConfig(vocab_size=50, num_layers=3, d_model=D, num_heads=HEADS, d_ff=FFN, closable=True))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("structure", ["hidden", "layer", "head+ffn+hidden+layer"])
def test_widths_and_layers_close_with_all_that_they_run_through(structure, scope):
    shapes = units_lib.gate_shapes(WIDE, structure)
    plan = state_lib.make_plan(WIDE, shapes, structure, scope)
    gates = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), shapes)
    scores = jax.tree.map(lambda leaf: jax.random.uniform(jax.random.key(leaf.size), leaf.shape), shapes)
    closed = trees.by_name(plan.close(gates, scores, jnp.float32(0.5), KEY))
    for name in plan.units.part.names:
        assert name in closed
    for group in plan.units.part.groups:
        counts = np.zeros((2, group.size))  # of the gates, of those that are closed
        for member in group.members:
            gate = np.moveaxis(np.asarray(closed[member.name]), member.axis, 0).reshape(member.units.size, -1)
            np.add.at(counts, (slice(None), member.units), [np.full(len(gate), gate.shape[1]), (~gate).sum(1)])
        whole = counts[1] == counts[0]
        if structure == "hidden":
            assert whole.sum() == group.size / 2
    if structure == "layer":
        gone = [f"layer_{i}" for i in range(3) if not closed[f"layer_{i}/ffn_norm/scale"].any()]
        assert len(gone) in (1, 2)  # of three, ranked together
        for name, gate in closed.items():
            assert gate.any() != (name.split("/")[0] in gone)


@pytest.mark.slow
def test_a_closed_layer_passes_on_what_it_is_given_and_a_closed_width_is_zero():
    shapes = units_lib.gate_shapes(WIDE, "hidden+layer")
    params = WIDE.init(KEY, *WIDE.example_inputs())["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape), params)
    gates = {name: np.ones(leaf.shape, bool) for name, leaf in trees.by_name(shapes).items()}
    for name, gate in gates.items():
        if name.startswith("layer_1/"):
            gate[:] = False
    (hidden,) = (group for group in units_lib.groups(WIDE) if group.name == "hidden")
    for member in hidden.members:
        np.moveaxis(gates[member.name], member.axis, 0)[[2, 5]] = False
    batch = {"input_ids": jnp.arange(6).reshape(2, 3), "token_type_ids": jnp.zeros((2, 3), jnp.int32)}
    batch["attention_mask"] = jnp.ones((2, 3), jnp.int32)
    logits, layers = state_lib.apply(WIDE, params, trees.nested(gates, "/"), batch, capture=True)
    first, second, third = layers["hidden"]
    np.testing.assert_array_equal(first, second)
    assert np.abs(third - second).max() > 0.1
    assert not third[..., [2, 5]].any() and third[..., [0, 1, 3]].all()
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("heads", [(1, 0), (2, 1)])
def test_a_layer_of_one_head_has_that_head(heads):
    model = Bert(BertConfig(vocab_size=9, num_layers=2, d_model=4, num_heads=2, d_ff=3, layer_heads=heads))
    sizes = {group.name: group.size for group in units_lib.groups(model) if group.kind == "head"}
    assert sizes == {f"layer_{i}.heads": n for i, n in enumerate(heads) if n}
    for group in units_lib.groups(model):
        if group.kind == "head":
            inner = [m.name.split("/")[1] for m in group.members]
            assert sorted(inner) == ["attention_output", "key", "query", "value"]


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["hidden+layer", "head+ffn+hidden+layer"])
def test_a_run_prunes_widths_and_layers_resumes_evaluates_and_compresses(structure, small_config, tmp_path, capsys):
    from prune_jax import report
    from prune_jax.__main__ import main
    from prune_jax.run import folder as runs

    small_config.model.num_layers = 2
    small_config.pruning.structure, small_config.pruning.scope = structure, "global"
    small_config.pruning.sparsity_steps = (60,)
    small_config.train.epochs = 2
    train.train_and_evaluate(small_config, tmp_path / "run")
    gates = trees.by_name(runs.load(tmp_path / "run").gates)
    cost = files.read_json(tmp_path / "run" / "summary.json")["cost"]
    assert "pruned" in (tmp_path / "run" / "run.log").read_text()
    for word in ("parameters", "flops", "bytes"):
        assert 0 < cost[word]["pruned"] < cost[word]["dense"]
    assert min(cost["milliseconds"].values()) > 0
    assert {"token_embedding/embedding", "layer_1/ffn_norm/scale", "layer_0/query/bias"} <= gates.keys()
    (*_, row) = report.read_metrics(tmp_path / "run")
    assert main(["compress", str(tmp_path / "run"), str(tmp_path / "run.pjx"), "--bits=0"]) == 0
    for source in ("run", "run.pjx"):
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / source)]) == 0
        assert f"eval_loss {row['eval_loss']:.6f}" in capsys.readouterr().out

    small_config.model.init_from = str(tmp_path / "run")
    again = config_lib.resolve(small_config, {}, inputs.describe)[0]
    network = models.create(again, get_task("single", "builtin"), runs.load(tmp_path / "run").params
                            ["token_embedding"]["embedding"].shape[0])  # fmt: skip
    started = initial.start(str(tmp_path / "run"), "best", network, ("negative", "positive"), structure)
    closed = [{name for name, gate in tree.items() if not gate.all()} for tree in (started.gates, gates)]
    assert closed[0] == closed[1]
    with pytest.raises(UserError, match=r"has closed gates of .* allowed: the structure of that run"):
        initial.start(str(tmp_path / "run"), "best", network, ("negative", "positive"), "unstructured")

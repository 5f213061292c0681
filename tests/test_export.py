"""A run's network out again: as transformers loads it, shrunk, replaced and refused."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from prune_jax import config as config_lib
from prune_jax import files, models, report
from prune_jax.__main__ import main
from prune_jax.data import tokenizer
from prune_jax.data.glue import get_task
from prune_jax.errors import UserError
from prune_jax.export import checkpoint as hf_checkpoint
from prune_jax.export import hf, shrunk_bert
from prune_jax.models import units as units_lib
from prune_jax.pruning import trees
from prune_jax.pruning.merge import merge
from prune_jax.run import artifact, checkpoint, inputs, state
from prune_jax.run import folder as runs
from prune_jax.run.commands import evaluate, export

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"]
TEXTS = ["a b c", "d e f g h i j", "k"]


def make_run(folder, config, close=()):
    """A run's folder with a random network: half of its gates are closed, and all of the units in `close`.

    close: (layer, "head" or "ffn", units), or (None, "pooler", units).
    """
    config, _ = config_lib.resolve(config, {})
    task = get_task(config.data.task, config.data.source)
    model = models.create(config, task, len(WORDS))
    variables = jax.jit(model.init)(jax.random.key(0), *model.example_inputs())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), variables["params"])
    gates = jax.tree.map(lambda x: rng.random(x.shape) < 0.5, variables["gates"])
    gates["classifier"]["kernel"][:, 0] = True  # no unit of the pooler is closed by chance
    depth = config.model.d_model // config.model.num_heads
    for layer, kind, units in close:
        at = gates.get(f"layer_{layer}")
        if kind == "pooler":
            gates["pooler"]["kernel"][:, list(units)] = False
            gates["classifier"]["kernel"][list(units)] = False
        elif kind == "head":
            members = [unit * depth + i for unit in units for i in range(depth)]
            for name in ("query", "key", "value"):
                at[name]["kernel"][:, members] = False
            at["attention_output"]["kernel"][members] = False
        else:
            at["ffn_hidden"]["kernel"][:, list(units)] = False
            at["ffn_output"]["kernel"][list(units)] = False
    folder.mkdir()
    files.write_json(folder / "config.json", config_lib.to_json(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    config.data.tokenizer = str(folder / "vocab.txt")
    tokenizer.load(config.data.tokenizer).save(folder / "tokenizer")
    saves = checkpoint.Checkpoints(folder / "checkpoints")
    saves.save_best(1, {"params": params, "gates": gates}, {})
    saves.save_last(2, {"params": jax.tree.map(lambda x: 2 * x, params), "gates": gates}, {})
    saves.close()
    return model, params, gates


def encode(folder, texts=TEXTS):
    """The batch that the exported tokenizer makes, as NumPy arrays."""
    transformers = pytest.importorskip("transformers")
    found = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="np")
    return {name: value.astype(np.int32) for name, value in found.items()}


def torch_logits(folder, batch, **options):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model, model(**{name: torch.from_numpy(value).long() for name, value in batch.items()}).logits.numpy()


def our_logits(model, params, gates, batch):
    variables = {"params": params} if gates is None else {"params": params, "gates": gates}
    return np.asarray(jax.jit(model.apply)(variables, *(batch[name] for name in model.inputs)))


@pytest.fixture
def config(small_config):
    small_config.model.num_layers = 2
    small_config.model.max_positions = 64
    return small_config


@pytest.mark.parametrize("kind", ["best", "last"])
def test_transformers_loads_what_was_exported(config, kind, tmp_path):
    model, params, gates = make_run(tmp_path / "run", config)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), f"--kind={kind}", "--format=hf"]) == 0
    batch = encode(tmp_path / "out")
    if kind == "last":
        params = jax.tree.map(lambda x: 2 * x, params)
    ours = our_logits(model, params, gates, batch)
    theirs, logits = torch_logits(tmp_path / "out", batch)
    np.testing.assert_allclose(ours, logits, atol=1e-4 * np.abs(logits).max(), rtol=0)
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # whoever may read one file may read all
    for path, gate in jax.tree_util.tree_leaves_with_path(gates):
        weights = tensors[hf.tensor_name(tuple(key.key for key in path))].T
        np.testing.assert_array_equal(weights == 0, ~gate)
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_tokenizer_gives_the_runs_own_ids(config, tmp_path):
    config.data.max_len = 48
    make_run(tmp_path / "run", config)
    export.export(tmp_path / "run", tmp_path / "out")
    config.data.tokenizer = str(tmp_path / "run" / "vocab.txt")
    ids, _, offsets = tokenizer.load(config.data.tokenizer).encode(TEXTS, None, 64)
    batch = encode(tmp_path / "out")
    for row, mask, start, end in zip(batch["input_ids"], batch["attention_mask"], offsets, offsets[1:], strict=False):
        np.testing.assert_array_equal(row[mask == 1], ids[start:end])
    pairs = encode(tmp_path / "out", [("a b", "c d e")])
    np.testing.assert_array_equal(pairs["token_type_ids"], [[0, 0, 0, 0, 1, 1, 1, 1]])
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 48


@pytest.mark.parametrize(
    ("task", "labels", "kind"),
    [
        ("sst2", ["negative", "positive"], "single_label_classification"),
        ("mnli", ["entailment", "neutral", "contradiction"], "single_label_classification"),
        ("stsb", ["score"], "regression"),
    ],
)
def test_labels_and_problem_type_of_each_task(config, task, labels, kind, tmp_path):
    config, _ = config_lib.resolve(config, {})
    config.data.task, config.data.source = task, "hub"
    model = models.create(config, get_task(task, "hub"), 20)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    params, gates = (jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes[name]) for name in ("params", "gates"))
    found, tensors, _ = hf_checkpoint.describe(params, gates, model.cfg, get_task(task, "hub").labels)
    assert found["id2label"] == {str(i): label for i, label in enumerate(labels)}
    assert found["label2id"] == {label: i for i, label in enumerate(labels)}
    assert found["problem_type"] == kind and tensors["classifier.weight"].shape == (len(labels), 16)


CLOSED = [(0, "head", (0, 1)), (0, "ffn", range(5)), (1, "head", (1,)), (1, "ffn", range(32))]
SIZES = ("layer_heads", "layer_ffn", "pooler_width")


@pytest.mark.parametrize("pooler", [6, 0])
def test_a_shrunk_network_computes_what_the_gated_one_does(config, pooler, tmp_path):
    model, params, gates = make_run(tmp_path / "run", config, [*CLOSED, (None, "pooler", range(pooler, 16))])
    written = export.export(tmp_path / "run", tmp_path / "out", shrink=True)
    assert [written[name] for name in SIZES] == [[0, 1], [27, 0], pooler]
    batch = encode(tmp_path / "out")
    gated = our_logits(model, params, gates, batch)
    limit = 1e-5 * np.abs(gated).max()
    with pytest.raises(RuntimeError, match="size"):  # an ordinary BERT it is not
        torch_logits(tmp_path / "out", batch)
    theirs, logits = torch_logits(tmp_path / "out", batch, trust_remote_code=True)
    np.testing.assert_allclose(gated, logits, atol=limit, rtol=0)
    assert theirs.bert.encoder.layer[1].attention.self.query.weight.shape == (8, 16)
    assert theirs.bert.pooler.dense.weight.shape == (pooler, 16)

    config.model.init_from = str(tmp_path / "out")  # and back into this package
    again, _ = inputs.resolve(config, {})
    assert [again.model[name] for name in SIZES] == [(0, 1), (27, 0), pooler]
    small = models.create(again, get_task("single", "builtin"), len(WORDS))
    np.testing.assert_allclose(gated, our_logits(small, hf.load(str(tmp_path / "out")), None, batch), atol=limit)


@pytest.mark.slow
def test_a_shrunk_network_trains_on_and_is_exported_again(config, tmp_path, capsys):
    from prune_jax.run import train

    make_run(tmp_path / "run", config, [*CLOSED, (None, "pooler", (2, 3))])
    export.export(tmp_path / "run", tmp_path / "out", shrink=True)
    config.model.init_from = str(tmp_path / "out")
    config.train.epochs, config.pruning.method = 1, "baseline"
    train.train_and_evaluate(config, tmp_path / "second")
    written = export.export(tmp_path / "second", tmp_path / "again")
    assert [written[name] for name in SIZES] == [[0, 1], [27, 0], 14]
    first, second = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert {n: x.shape for n, x in first.items()} == {n: x.shape for n, x in second.items()}
    network = runs.load(tmp_path / "second")
    artifact.write(tmp_path / "second.pjx", network, (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())
    evaluate.main([str(tmp_path / "second.pjx")])
    (row,) = report.read_metrics(tmp_path / "second")
    assert f"eval_metric (accuracy) {row['eval_metric']:.6f}" in capsys.readouterr().out


def test_equal_layers_need_no_code_of_their_own(config, tmp_path):
    model, params, gates = make_run(tmp_path / "run", config, [(0, "ffn", range(8)), (1, "ffn", range(3, 11))])
    written = export.export(tmp_path / "run", tmp_path / "out", shrink=True)
    assert written["architectures"] == ["BertForSequenceClassification"] and written["intermediate_size"] == 24
    assert not list((tmp_path / "out").glob("*.py"))
    batch = encode(tmp_path / "out")
    gated = our_logits(model, params, gates, batch)
    np.testing.assert_allclose(gated, torch_logits(tmp_path / "out", batch)[1], atol=1e-5 * np.abs(gated).max())


def test_only_units_that_nothing_reads_are_cut(config, tmp_path):
    model, params, gates = make_run(tmp_path / "run", config)
    gates["layer_0"]["ffn_hidden"]["kernel"][:, 3] = False  # now the constant gelu(bias), which is still read
    gates["layer_0"]["query"]["kernel"][:, :8] = False  # a head that looks everywhere alike is still a head
    gates["layer_1"]["ffn_output"]["kernel"][7] = False
    gates["pooler"]["kernel"][:, 4] = False  # the constant tanh(bias), which is still read
    gates["classifier"]["kernel"][5] = False
    small, sizes, notes = shrunk_bert.shrink(model, merge(params, gates))
    assert not notes
    assert sizes == {"layer_heads": (2, 2), "layer_ffn": (32, 31), "pooler_width": 15}
    left = np.delete(np.where(gates["classifier"]["kernel"], params["classifier"]["kernel"], 0), 5, 0)
    np.testing.assert_array_equal(small["classifier"]["kernel"], left)


def test_single_units_are_cut_too(config, tmp_path):
    """A layer of one head or one column, a pooler of one unit: axes of size 1, which the graph does not have."""
    config.model.layer_heads, config.model.layer_ffn, config.model.pooler_width = (1, 1), (1, 3), 1
    closed = [(0, "head", (0,)), (0, "ffn", (0,)), (None, "pooler", (0,))]
    model, params, gates = make_run(tmp_path / "run", config, closed)
    sizes = {group.name: group.size for group in units_lib.chosen(model, "head+ffn+pooler")}
    assert sizes == {"layer_0.heads": 1, "layer_0.ffn": 1, "layer_1.heads": 1, "layer_1.ffn": 3, "pooler.pooler": 1}
    small, sizes, notes = shrunk_bert.shrink(model, merge(params, gates))
    assert not notes
    assert sizes == {"layer_heads": (0, 1), "layer_ffn": (0, 3), "pooler_width": 0}
    found = {name: leaf.shape for name, leaf in trees.by_name(small).items()}
    assert found["layer_0/query/kernel"] == (16, 0) and found["layer_0/ffn_output/kernel"] == (0, 16)
    assert found["pooler/kernel"] == (16, 0) and found["classifier/kernel"] == (0, 2)
    np.testing.assert_array_equal(small["classifier"]["bias"], params["classifier"]["bias"])


def test_a_closed_part_of_the_depth_stays_and_is_told(config, tmp_path):
    model, params, gates = make_run(tmp_path / "run", config, CLOSED)
    depth = 8
    gates["layer_1"]["attention_output"]["kernel"][[3, 3 + depth]] = False  # of the values, in each head
    small, sizes, notes = shrunk_bert.shrink(model, merge(params, gates))
    assert sizes["layer_heads"] == (0, 1) and small["layer_1"]["value"]["kernel"].shape == (16, depth)
    (note,) = notes
    assert note.startswith("depth: 1 closed units stay at full width, as zeros: every head")


def test_what_stands_there_is_kept(config, tmp_path, capsys):
    make_run(tmp_path / "run", config)
    run, out = str(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    assert main(["export", run, str(out)]) == 0  # an empty folder is filled
    before = (out / "config.json").read_text()
    assert main(["export", run, str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err
    (out / "config.json").write_text("{}")
    assert main(["export", run, str(out), "--force"]) == 0
    assert (out / "config.json").read_text() == before
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert main(["export", run, str(other), "--force"]) == 2
    assert "is not an earlier export" in capsys.readouterr().err and (other / "thesis.tex").exists()
    for target in (run, str(tmp_path)):
        assert main(["export", run, target, "--force"]) == 2
        assert "is or holds the run itself" in capsys.readouterr().err
    assert main(["export", str(other), str(tmp_path / "new")]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_export_that_fails_leaves_nothing(config, tmp_path, monkeypatch):
    make_run(tmp_path / "run", config)
    export.export(tmp_path / "run", tmp_path / "out")
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        export.export(tmp_path / "run", tmp_path / "out", force=True)
    with pytest.raises(UserError, match="No space left on device"):
        export.export(tmp_path / "run", tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("shrink", [False, True])
def test_closed_layers_are_left_out_and_closed_widths_are_zeros(config, shrink, tmp_path):
    config.model.num_layers, config.pruning.method = 3, "magnitude"
    config.pruning.structure = "hidden+layer"
    model, params, gates = make_run(tmp_path / "run", config, [(0, "ffn", range(5))])
    gates = {name: gate | True for name, gate in trees.by_name(gates).items()}
    for group in units_lib.chosen(model, "hidden+layer"):
        for member in group.members:
            gate = gates.setdefault(member.name, np.ones(trees.by_name(params)[member.name].shape, bool))
            dead = member.units < 3 if group.kind == "hidden" else np.full(len(gate), group.name == "layer_1.layer")
            np.moveaxis(gate, member.axis, 0)[dead] = False
    gates = trees.nested(gates, "/")
    saves = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
    saves.save_best(2, {"params": params, "gates": gates}, {})
    saves.close()
    written = export.export(tmp_path / "run", tmp_path / "out", shrink=shrink)
    assert (written["num_hidden_layers"], written["hidden_size"]) == (2, 16)
    assert written["architectures"] == ["BertForSequenceClassification"]
    assert [note.split(" stay")[0] for note in written["notes"]] == (["hidden: 3 closed units"] if shrink else [])
    batch = encode(tmp_path / "out")
    gated = np.asarray(state.apply(model, params, gates, batch))
    np.testing.assert_allclose(gated, torch_logits(tmp_path / "out", batch)[1], atol=1e-5 * np.abs(gated).max(), rtol=0)
    config.model.num_layers, config.model.init_from = None, str(tmp_path / "out")
    again, _ = inputs.resolve(config, {})
    small = models.create(again, get_task("single", "builtin"), len(WORDS))
    ours = our_logits(small, hf.load(str(tmp_path / "out")), None, batch)
    np.testing.assert_allclose(gated, ours, atol=1e-5 * np.abs(gated).max(), rtol=0)

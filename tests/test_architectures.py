"""RoBERTa, DistilBERT and ELECTRA as BERT is: logits as transformers' in torch, in, out and in again; tokens, too."""

import json

import jax
import numpy as np
import pytest
from test_export import torch_logits
from test_hf import follow

from prune_jax import models
from prune_jax.data import tokenizer
from prune_jax.data.glue import TASKS
from prune_jax.errors import UserError
from prune_jax.export import checkpoint, hf
from prune_jax.models import Bert, BertConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ODD = [
    "Der Hund läuft.", "naïve  café\tdéjà\nvu", "東京 is a city", "😀👍🏽 emoji", "", "   ", "[CLS] a [MASK] b",
    "don't", "<s> x <mask> y </s>", "a\u200bb\ufeffc\x00d", "İstanbul ẞ Σίσυφος", "x" * 300, "e\u0301 \u00e9",
    "1,000.50€ (…)",
]  # fmt: skip


def network(kind, seed):
    """A random model of transformers for sequence classification, of any geometry."""
    rng = np.random.default_rng(seed)
    heads, labels = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    d_model, layers, d_ff = heads * int(rng.integers(4, 7)), int(rng.integers(1, 3)), int(rng.integers(1, 30))
    common = {"vocab_size": 50, "max_position_embeddings": 24, "num_labels": labels, "initializer_range": 0.3}
    activation = str(rng.choice(["gelu", "relu", "gelu_new"]))
    usual = {
        "num_hidden_layers": layers, "hidden_size": d_model, "num_attention_heads": heads, "intermediate_size": d_ff,
        "hidden_act": activation, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    own = {
        "roberta": {**usual, "type_vocab_size": 1, "pad_token_id": int(rng.integers(0, 3))},
        "electra": {**usual, "embedding_size": int(rng.choice([d_model, 8]))},
        "distilbert": {
            "n_layers": layers, "dim": d_model, "n_heads": heads, "hidden_dim": d_ff, "activation": activation
        },
    }[kind]  # fmt: skip
    prefix = {"roberta": "Roberta", "electra": "Electra", "distilbert": "DistilBert"}[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{prefix}Config")(**common, **own)
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # biases and norms start at 0 and 1, which would hide a mix-up
            weight.add_(0.1 * torch.randn_like(weight))
            if "position" in name or "word" in name:
                weight.mul_(torch.rand_like(weight) + 0.5)
    return model, rng


def batch_of(model, rng, rows=3):
    pad, length = model.config.pad_token_id, 20
    mask = (np.arange(length) < rng.integers(1, length + 1, rows)[:, None]).astype(np.int32)
    ids = np.where(mask, rng.integers(3, 50, (rows, length)), pad).astype(np.int32)
    types = rng.integers(0, 2, (rows, length)).astype(np.int32)
    batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    theirs = dict(batch)
    if model.config.model_type == "roberta":
        theirs["token_type_ids"] = np.zeros_like(types)
    if model.config.model_type == "distilbert":
        del theirs["token_type_ids"]
    return batch, theirs


def ours_of(folder, labels):
    geometry = {name: () if value is None and name.startswith("layer_") and "eps" not in name else value
                for name, value in hf.read_config(str(folder)).items()}  # fmt: skip
    params = hf.load(str(folder))
    return Bert(BertConfig(**geometry, num_labels=labels, regression="regressor" in params)), params


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra"])
def test_random_networks_equal_transformers_in_and_out(kind, seed, tmp_path):
    theirs, rng = network(kind, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    batch, their_batch = batch_of(theirs, rng)
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(x).long() for name, x in their_batch.items()}).logits.numpy()
    labels = theirs.config.num_labels
    model, params = ours_of(tmp_path / "theirs", labels)
    found = np.asarray(jax.jit(model.apply)({"params": params}, *(batch[name] for name in model.inputs)))
    limit = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=limit, rtol=0)

    names = tuple("abc"[:labels]) if labels > 1 else ()
    pad = theirs.config.pad_token_id
    words = ["[UNK]", "[CLS]", "[SEP]"]
    words.insert(pad, "[PAD]")
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer.load(str(tmp_path / "vocab.txt")).save(tmp_path / "tokenizer")
    assert checkpoint.padding(tmp_path / "tokenizer") == pad
    described = checkpoint.describe(params, {}, model.cfg, names, padding=pad)[:2]
    (tmp_path / "out").mkdir()
    checkpoint.write(tmp_path / "out", *described, tmp_path / "tokenizer")
    again, logits = torch_logits(tmp_path / "out", their_batch)
    assert type(again) is type(theirs) and again.config.pad_token_id == pad
    np.testing.assert_allclose(logits, expected, atol=limit, rtol=0)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == model.cfg.max_positions == 24 - (pad + 1) * (kind == "roberta")
    assert ("token_type_ids" in settings["model_input_names"]) == (kind == "electra")
    model, back = ours_of(tmp_path / "out", labels)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, back))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("RobertaForMaskedLM", "lm_head"),
        ("ElectraForPreTraining", "discriminator_predictions"),
        ("DistilBertForMaskedLM", "vocab_layer_norm, vocab_projector, vocab_transform"),
        ("BertForPreTraining", "cls"),
        ("BertForMaskedLM", "cls"),
        ("RobertaModel", "pooler"),
    ],
)  # fmt: skip
def test_the_encoder_of_any_head_is_read_and_the_rest_is_named(name, left, tmp_path):
    cls = getattr(transformers, name)
    sizes = {"vocab_size": 30, "max_position_embeddings": 16}
    usual = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    distil = {"n_layers": 1, "dim": 8, "n_heads": 2, "hidden_dim": 8}
    cls(cls.config_class(**sizes, **(distil if name.startswith("Distil") else usual))).save_pretrained(tmp_path)
    found = hf.load_for(str(tmp_path), ("a", "b"))
    assert ("pooler" in found.params) == (name == "BertForPreTraining")
    assert not {"classifier", "regressor"} & found.params.keys() and not found.unnamed
    assert [part.split(" (")[0] for part in found.left_out.removeprefix("left out: ").split(", ")] == left.split(", ")


def train_bytes(folder):
    """A RoBERTa tokenizer's files, with merges of its own."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(exist_ok=True)
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(ODD * 3, vocab_size=330, min_frequency=2, special_tokens=special)
    trained.save_model(str(folder))
    return folder


@pytest.mark.parametrize("spaced", [False, True])
def test_byte_pairs_are_transformers(spaced, tmp_path):
    folder = train_bytes(tmp_path / "roberta")
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": spaced}))
    theirs = transformers.RobertaTokenizer.from_pretrained(folder, add_prefix_space=spaced)
    tok = tokenizer.load(str(folder))
    tok.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for pairs in (None, ODD[::-1]):
        ids, types, offsets = tok.encode(ODD, pairs, 512)
        assert not types.any()
        for i, text in enumerate(ODD):
            batch = ([text], [pairs[i]]) if pairs else ([text],)  # in a list, an empty second text is one
            expected = theirs(*batch)["input_ids"][0]
            assert ids[offsets[i] : offsets[i + 1]].tolist() == expected, text
            assert again(*batch)["input_ids"][0] == expected
    for part, token in (("pad", "<pad>"), ("cls", "<s>"), ("sep", "</s>"), ("unk", "<unk>")):
        assert getattr(again, f"{part}_token") == token
    assert checkpoint.padding(tmp_path / "saved") == 1
    loaded = tokenizer.Tokenizer(files_tokenizer(tmp_path / "saved"), "an artifact's")
    loaded.save(tmp_path / "derived")  # a .pjx has the tokenizer.json alone
    settings = [json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("saved", "derived")]
    assert settings[0] == settings[1]


def files_tokenizer(folder):
    from prune_jax import files

    return files.read_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("settings", [
    {}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}, {"strip_accents": True,
    "do_lower_case": False}, {"tokenize_chinese_chars": False}, {"pad_token": "<nil>", "cls_token": "<go>"},
])  # fmt: skip
def test_word_pieces_are_transformers(settings, tmp_path):
    special = {f"{part}_token": f"[{part.upper()}]" for part in ("pad", "unk", "cls", "sep", "mask")} | {
        name: token for name, token in settings.items() if name.endswith("_token")
    }
    letters = sorted(set("".join(ODD)) - set(" \t\n\x00\u200b\ufeff") | set("abcdefghijklmnopqrstuvwxyz"))
    words = [*special.values(), *letters, *(f"##{letter}" for letter in letters), "der", "hund", "cafe", "Hund", "東京"]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    said = {"do_lower_case": True} | settings
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": "BertTokenizer"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tok = tokenizer.load(str(tmp_path))
    ids, _, offsets = tok.encode(ODD, None, 512)
    for i, text in enumerate(ODD):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == theirs(text)["input_ids"], text
    tok.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (again.pad_token, again.cls_token) == (special["pad_token"], special["cls_token"])


@pytest.mark.slow
def test_a_roberta_trains_and_leaves_as_a_roberta(small_config, tmp_path):
    from prune_jax.run import predict, train
    from prune_jax.run.commands import export

    folder = train_bytes(tmp_path / "hub")
    size = len(json.loads((folder / "vocab.json").read_text()))
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=size, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=66, type_vocab_size=1, id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    run = follow(small_config, folder)
    run.train.epochs, run.pruning.method = 2, "magnitude"
    train.train_and_evaluate(run, tmp_path / "run")
    written = export.export(tmp_path / "run", tmp_path / "out")
    assert written["architectures"] == ["RobertaForSequenceClassification"] and written["pad_token_id"] == 1
    texts = ["Der Hund", "naïve café"]  # of fewer tokens than the run cuts to
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(texts, padding=True, return_tensors="np")
    assert set(found) == {"input_ids", "attention_mask"}
    logits = torch_logits(tmp_path / "out", {name: x.astype(np.int32) for name, x in found.items()})[1]
    for path in (tmp_path / "run", tmp_path / "out"):
        ours = predict.load(path, "best").texts(texts)
        np.testing.assert_allclose(ours, logits, atol=1e-4 * np.abs(logits).max(), rtol=0)


def test_an_architecture_without_words_for_it_is_told():
    cfg = BertConfig(20, 2, 8, 2, 8, max_positions=8, architecture="electra", layer_ffn=(8, 4))
    model = models.Bert(cfg)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"]
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    with pytest.raises(UserError, match="transformers has Electra with layers of one size, and those"):
        checkpoint.describe(params, {}, cfg, TASKS["sst2"].labels)

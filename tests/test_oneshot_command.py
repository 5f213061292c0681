"""prune-jax oneshot: checkpoint to checkpoint, with a summary; mistakes are one message and write nothing."""

import json

import numpy as np
import pytest

from prune_jax import __main__ as command_line
from prune_jax.data import language
from prune_jax.export import decoder as io

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Llama in bfloat16 with a tokenizer of words."""
    return written(tmp_path_factory.mktemp("checkpoint"), tied=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """The same whose head is the embedding."""
    return written(tmp_path_factory.mktemp("tied"), tied=True)


def written(folder, tied):
    import tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=40, num_hidden_layers=2, hidden_size=16, num_attention_heads=4,
                                      num_key_value_heads=2, intermediate_size=24, initializer_range=0.3,
                                      tie_word_embeddings=tied)  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    (folder / "text").mkdir()
    for i in range(2):
        (folder / "text" / f"{i}.txt").write_text(" ".join(WORDS[n] for n in rng.integers(0, 40, 600)))
    return folder


def flags(checkpoint, target, *more):
    return ["oneshot", str(checkpoint), str(target), "--data", f"{checkpoint}/text", "--examples=16",
            "--length=24", "--batch-size=8", *more]  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_becomes_a_pruned_one_that_transformers_loads(checkpoint, tmp_path, capsys):
    assert command_line.main(flags(checkpoint, tmp_path / "out", "--structure=2:4")) == 0
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "oneshot.json").read_text())
    assert "14/14 layer_1/ffn_output/kernel: error" in said and summary["sparsity"] == 0.5
    assert f"perplexity {summary['metric_before']:.4f} -> {summary['metric_after']:.4f}" in said
    assert len(summary["layers"]) == 14 and all(0 < layer["error"] < 1 for layer in summary["layers"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    gates = model.model.layers[1].mlp.down_proj.weight.detach().numpy() != 0
    assert (gates.reshape(16, 6, 4).sum(2) == 2).all(), "2:4 along the inputs"
    assert io.load(tmp_path / "out")[2].name == "bfloat16" and (tmp_path / "out" / "tokenizer.json").is_file()
    _, dense, _ = io.load(checkpoint)
    _, pruned, _ = io.load(tmp_path / "out")
    for name in ("token_embedding", "head", "final_norm"):
        np.testing.assert_array_equal(*(next(iter(tree[name].values())) for tree in (dense, pruned)))


def test_the_perplexity_is_that_of_transformers(tied, tmp_path):
    assert command_line.main(flags(tied, tmp_path / "out", "--structure=ffn", "--sparsity=0.25", "--shrink")) == 0
    summary = json.loads((tmp_path / "out" / "oneshot.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 18
    tokens = [WORDS.index(word) for word in language.read_texts([tied / "text"]).split()]
    held = np.array(tokens[1080:]).reshape(-1, 24)
    assert summary["evaluated_tokens"] == held.size
    for folder, key in ((tied, "metric_before"), (tmp_path / "out", "metric_after")):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            loss = model(torch.tensor(held), labels=torch.tensor(held)).loss.item()
        np.testing.assert_allclose(summary[key], np.exp(loss), rtol=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--structure=3:5",), "--structure=3:5: layer_0/attention_output/kernel: 3:5 does not divide axis 0"),
        (("--examples=9999",), "--examples is 9999; allowed: 1 to 45, the windows of 24 tokens"),
        (("--length=700",), "--examples is 16; allowed: 1 to 1, the windows of 700 tokens"),
        (("--method=wanda", "--bits=4"), "--bits is 4; allowed with --method=wanda: 0"),
        (("--method=movement",), "--method is 'movement'; allowed: sparsegpt, wanda, obs, magnitude"),
        (("--sparsity=2",), "--sparsity is 2.0; allowed: 0 to 1"),
        (("--eval", "nowhere.txt"), "--eval is 'nowhere.txt'; there is no such file"),
        (("--structure=wheels",), "no groups of kind 'wheels'"),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(checkpoint, more, message, tmp_path, capsys):
    assert command_line.main(flags(checkpoint, tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_no_text_no_checkpoint_and_a_folder_that_is_there(checkpoint, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for argv, message in (
        (["oneshot", str(checkpoint), str(tmp_path / "out"), "--data", str(tmp_path / "empty")], "holds no .txt file"),
        (
            ["oneshot", str(tmp_path), str(tmp_path / "out"), "--data", "x.txt"],
            "is no checkpoint: it has no config.json",
        ),
        (flags(checkpoint, checkpoint), "is there already; choose another folder"),
        (flags(checkpoint, checkpoint / "config.json" / "out"), "config.json is no folder"),
        (flags("$NOWHERE/checkpoint", tmp_path / "out")[:5], "the environment variable NOWHERE is not set"),
    ):
        assert command_line.main(argv) == 2
        said = capsys.readouterr()
        assert message in said.err and not said.out  # before anything is pruned
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_bert_with_the_data_of_its_task(tmp_path, capsys, small_config):
    from prune_jax.run import train

    small_config.pruning.method, small_config.train.epochs, small_config.report.sinks = "baseline", 2, ()
    small_config.data.builtin_train_size = 8000  # the command's: so is the tokenizer
    small_config.data.max_train_examples = 640
    trained = train.train_and_evaluate(small_config, tmp_path / "run")
    assert command_line.main(["export", str(tmp_path / "run"), str(tmp_path / "in"), "--kind=last"]) == 0
    data = ["--config.data.task=single", "--config.data.source=builtin", "--config.data.max_len=32"]
    call = ["oneshot", str(tmp_path / "in"), str(tmp_path / "out"), *data, "--examples=64", "--structure=head+ffn",
            "--sparsity=0.25", "--target=flops", "--shrink"]  # fmt: skip
    capsys.readouterr()
    assert command_line.main(call) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "oneshot.json").read_text())
    assert summary["metric_name"] == "accuracy" and len(summary["layers"]) == 2
    assert 0.5 < summary["metric_after"] <= 1 and summary["nonzero_weights"] < trained["num_params"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == summary["weights"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".oneshot")] == []
    assert command_line.main(["oneshot", str(tmp_path / "in"), str(tmp_path / "no"), "--data", "x.txt"]) == 2
    assert "is a BERT; it takes the data of its task" in capsys.readouterr().err
    own = ["--config.data.task=classification", "--config.data.source=csv", "--config.data.train=nowhere.csv"]
    assert command_line.main(["oneshot", str(tmp_path / "in"), str(tmp_path / "no"), *own]) == 2
    assert "config.data.train is 'nowhere.csv'; there is no such file" in capsys.readouterr().err

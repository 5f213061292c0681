"""A decoder in the program: running text, perplexity, training, pruning, distillation, checkpoints in and out."""

import csv
import json

import jax
import numpy as np
import pytest

from configs import common
from prune_jax import __main__ as command_line
from prune_jax import config as config_lib
from prune_jax import export, methods
from prune_jax.data import language, tokenizer
from prune_jax.errors import Stopped, UserError
from prune_jax.export import decoder as decoder_io
from prune_jax.models.decoder import Decoder
from prune_jax.report import study
from prune_jax.run import folder as runs
from prune_jax.run import train
from prune_jax.run.commands import export as export_command
from prune_jax.sweep import search

WORDS = ["the ", "cat ", "saw ", "a ", "dog ", "and ", "ran.\n"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of 600 words, and a folder with two files of 300."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = [WORDS[i] for i in rng.integers(0, len(WORDS), 600)]
    (folder / "all.txt").write_text("".join(words))
    (folder / "parts").mkdir()
    for i in range(2):
        (folder / "parts" / f"{i}.txt").write_text("".join(words[300 * i : 300 * (i + 1)]))
    return folder


def make(text):
    config = common.get_config()
    config.model.name = "decoder"
    config.model.num_layers, config.model.d_model, config.model.d_ff = 2, 16, 24
    config.model.num_heads, config.model.num_kv_heads = 4, 2
    config.data.task, config.data.source, config.data.train = "lm", "text", str(text / "all.txt")
    config.data.max_len, config.data.stride = 32, 16
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 16, 1e-2
    config.pruning.method, config.pruning.start_epoch, config.pruning.sparsity_steps = "magnitude", 0, (30, 50)
    config.movement.frequency, config.spt.epsilon, config.report.sinks = 2, 0.05, ()
    config.sws.deviation = 0.01  # a wider component at 0 would take every weight in so short a run
    return config


@pytest.fixture
def config(text):
    return make(text)


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train.train_and_evaluate(make(text), folder)


def said(capsys):
    """The perplexity that evaluate has printed."""
    lines = capsys.readouterr().out.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("eval_metric (perplexity)"))


def test_windows_score_every_token_once_with_what_came_before():
    tokens = np.arange(100, 137)
    for length, stride in ((8, 0), (8, 3), (8, 8), (40, 7), (10, 1)):
        split = language.windows(tokens, length, stride)
        batch = split.batch(np.arange(len(split)), length, len(split) + 1)
        scored = batch["input_ids"][batch["token_weights"] > 0]
        # Side by side, the first token of each window has nothing before it.
        missing = tokens[:: length if stride in (0, length) else 1000]
        np.testing.assert_array_equal(np.sort(scored), np.setdiff1d(tokens, missing))
        assert batch["weights"].tolist() == [1.0] * len(split) + [0.0] and not batch["token_weights"][-1].any()


def test_a_token_per_byte_brings_any_text_back(tmp_path):
    text = "naïve\n  tabs\t and 中文 🙂"
    tok = tokenizer.of_bytes()
    assert len(tok.ids(text)) == len(text.encode()) and tok.backend.decode(tok.ids(text).tolist()) == text
    tok.save(tmp_path)
    assert tokenizer.load(str(tmp_path)).ids(text).tolist() == tok.ids(text).tolist()


@pytest.mark.slow
def test_a_run_learns_prunes_and_calls_the_lowest_perplexity_the_best(run):
    folder, summary = run
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert summary["metric_name"] == "perplexity" and summary["task"] == "all" and summary["model_size"] == "2x16"
    assert [round(float(row["sparsity"]), 2) for row in rows] == [0.3, 0.5]
    assert summary["final_metric"] < float(rows[0]["metric_before_pruning"]) < 256
    np.testing.assert_allclose(np.exp(float(rows[-1]["eval_loss"])), summary["final_metric"], rtol=1e-6)


def test_the_export_is_transformers_own_and_its_perplexity_the_same(run, text, tmp_path, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, summary = run
    assert command_line.main(["export", str(folder), str(tmp_path / "out"), "--kind=last"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = np.array(tok((text / "all.txt").read_text())["input_ids"])
    held = ids[len(ids) - round(0.1 * len(ids)) :]
    sums, count = 0.0, 0
    for start in range(0, len(held), 16):  # as transformers' guide to perplexity does
        window = torch.tensor(held[start : start + 32])
        new = 1 if start == 0 else 16
        if len(window) <= new:
            break
        with torch.no_grad():
            scores = torch.log_softmax(model(window[None]).logits[0, :-1], -1)
        losses = -scores[torch.arange(len(window) - 1), window[1:]][new - 1 :]
        sums, count = sums + float(losses.sum()), count + len(losses)
    assert count == len(held) - 1
    np.testing.assert_allclose(np.exp(sums / count), summary["final_metric"], rtol=1e-4)
    capsys.readouterr()
    assert command_line.main(["evaluate", str(folder), "--kind=last"]) == 0
    assert said(capsys) == pytest.approx(summary["final_metric"], rel=1e-5)


def test_a_run_starts_from_an_export_and_from_a_run(run, config, tmp_path):
    folder, summary = run
    assert command_line.main(["export", str(folder), str(tmp_path / "out"), "--kind=last"]) == 0
    for name in ("num_layers", "d_model", "num_heads", "num_kv_heads", "d_ff"):
        with config.model.ignore_type():
            config.model[name] = None
    config.pruning.sparsity_steps, config.train.epochs = (50, 60), 1
    config.train.learning_rate = 1e-8
    for source, kind in ((tmp_path / "out", "best"), (folder, "last")):
        config.model.init_from, config.model.init_checkpoint = str(source), kind
        again = train.train_and_evaluate(config, tmp_path / f"from_{source.name}")
        assert again["sparsity"] == pytest.approx(0.5, abs=0.01), "what was closed stays closed, and no more closes"
        np.testing.assert_allclose(again["final_metric"], summary["final_metric"], rtol=1e-3)


def test_compressed_and_back(run, tmp_path, capsys):
    folder, summary = run
    file, back = tmp_path / "small.pjx", tmp_path / "back"
    assert command_line.main(["compress", str(folder), str(file), "--kind=last", "--bits=0"]) == 0
    capsys.readouterr()
    here = json.loads((folder / "config.json").read_text())["data"]["train"]  # the file names no place of its writer's
    assert command_line.main(["evaluate", str(file), f"--config.data.train={here}"]) == 0
    assert said(capsys) == pytest.approx(summary["final_metric"], rel=1e-5)
    assert command_line.main(["decompress", str(file), str(back)]) == 0
    assert file.stat().st_size < 4 * summary["num_params"]


def slow_but(fast, names):
    """The names as parameters, all but a few marked as slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


# One of each kind: what sees a network as trees alone does as it does for BERT, where test_conformance runs them all.
OTHERS = ["movement", "sws", "cofi", "obert"]


@pytest.mark.parametrize("name", slow_but(("movement",), OTHERS))
def test_methods_of_each_kind_train_it(name, config, tmp_path):
    config.pruning.method, config.model.num_layers = name, 1
    config.train.epochs = 1
    config.pruning.sparsity_steps = (50,)
    summary = train.train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite(summary["final_metric"]) and summary["final_metric"] < 200
    if methods.scheduled(name):
        assert summary["sparsity"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("structure", slow_but(("head+ffn",), ["head+ffn", "2:4", "query_head"]))
def test_units_of_it_close(structure, config, tmp_path):
    config.pruning.structure, config.pruning.method, config.train.epochs = structure, "magnitude", 1
    config.pruning.sparsity_steps = (50,)
    summary = train.train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite(summary["final_metric"])
    if structure != "2:4":
        cost = summary["cost"]
        assert cost["flops"]["pruned"] < cost["flops"]["dense"]
    if structure == "head+ffn":
        settings = tmp_path / "run" / "tokenizer" / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": "{{ messages }}"}))
        settings.with_name("generation_config.json").write_text('{"do_sample": true}')
        assert (
            command_line.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--shrink", "--kind=last"]) == 0
        )
        saved = json.loads((tmp_path / "out" / "config.json").read_text())
        assert saved["intermediate_size"] < 24 and saved["eos_token_id"] is None
        carried = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"]
        sampling = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert carried == "{{ messages }}" and sampling == {"do_sample": True}
        cfg, small, _ = decoder_io.load(tmp_path / "out")
        network, tokens = runs.load(tmp_path / "run", "last"), np.arange(24).reshape(2, 12)
        model = export_command.model_of(network)[0]
        expected = jax.jit(model.apply)({"params": network.params, "gates": network.gates}, tokens)
        found = jax.jit(Decoder(cfg).apply)({"params": small}, tokens)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.slow
def test_a_program_says_what_may_come_next_at_any_length_and_at_listed_ones(run, tmp_path, capsys):
    folder, _ = run
    network = runs.load(folder, "best")
    model, _, _ = export_command.model_of(network)
    call = jax.jit(lambda tokens: model.apply({"params": network.params, "gates": network.gates}, tokens))
    for flags, name in (((), "model.stablehlo"), (("--length", "8", "24", "--platform", "cpu"), "model_24.stablehlo")):
        assert command_line.main(["export", str(folder), str(tmp_path), "--format=stablehlo", "--force", *flags]) == 0
        assert (tmp_path / name).is_file() and (tmp_path / "tokenizer.json").is_file()
        deployed = export.load(tmp_path)
        assert deployed.info["output"]["shape"] == ["batch", "length", 256]
        assert (deployed.info["problem_type"], deployed.info["labels"]) == ("next_token", [])
        for rows, length in ((1, 5), (3, 24)):
            tokens = np.random.default_rng(0).integers(0, 20, (rows, length), np.int32)
            np.testing.assert_allclose(deployed.call(tokens), call(tokens), atol=1e-4)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_input_names"] == ["input_ids"]
    with pytest.raises(ValueError, match="the length is 25; allowed: 1 to 24"):
        deployed.call(np.zeros((1, 25), np.int32))
    assert "largest logit difference" in capsys.readouterr().out


@pytest.mark.slow
def test_a_larger_decoder_teaches(run, config, tmp_path):
    folder, _ = run
    losses = {}
    config.model.num_layers, config.train.epochs, config.pruning.method = 1, 1, "baseline"
    config.distill.teacher = str(folder)
    for weight, hidden, attention in ((0.0, 0.5, 0.5), (0.5, 0.0, 0.0), (1.0, 1.0, 0.1)):
        config.distill.weight, config.distill.hidden_weight, config.distill.attention_weight = weight, hidden, attention
        summary = train.train_and_evaluate(config, tmp_path / f"run_{weight}")
        losses[weight] = summary["final_metric"]
        assert np.isfinite(summary["final_metric"])
    assert len(set(losses.values())) == 3


def test_the_soft_loss_is_the_divergence_of_each_token():
    import jax
    import jax.numpy as jnp

    from prune_jax.models.decoder import Decoder, DecoderConfig
    from prune_jax.run import distill, state

    cfg = config_lib.default().distill
    cfg.weight, cfg.temperature = 1.0, 2.0
    models = [Decoder(DecoderConfig(7, layers, 8, 2, 2, 4, 8)) for layers in (1, 2)]
    tokens = jax.random.randint(jax.random.key(1), (3, 8), 0, 7)
    student, teacher = (m.init(jax.random.key(i), tokens)["params"] for i, m in enumerate(models))
    weights = jnp.ones((3, 8)).at[0, 4:].set(0).at[2].set(0)
    batch = {"input_ids": tokens, "token_weights": weights, "weights": jnp.array([1.0, 1.0, 0.0])}
    loss = distill.training_loss(cfg, distill.Teacher(models[1], {"params": teacher}))
    found = loss(models[0], student, {}, batch, None, {"params": teacher})
    ours, theirs = (
        np.asarray(jax.nn.log_softmax(state.apply(m, p, {}, batch) / 2))
        for m, p in zip(models, (student, teacher), strict=True)
    )
    each = 4 * np.sum(np.exp(theirs) * (theirs - ours), -1)
    wanted = (each[0, :3].mean() + each[1, :7].mean()) / 2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_stopped_run_ends_as_an_undisturbed_one(run, config, tmp_path, monkeypatch, stop_at):
    _, summary = run
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            train.train_and_evaluate(config, tmp_path / "run")
    again = train.train_and_evaluate(config, tmp_path / "run")
    assert again["final_metric"] == summary["final_metric"]


def test_whatever_compares_takes_the_lowest_perplexity(run):
    folder, _ = run
    rows = [
        {"sparsity": 0.5, "target_sparsity": 0.5, "eval_metric": value, "eval_loss": 1.0, "epoch": i}
        for i, value in enumerate((9.0, 7.0, 8.0))
    ]
    assert study.at_sparsities(rows, "perplexity")[0.5] == (7.0, True)
    assert study.front([(1, 5.0), (2, 6.0), (3, 4.0)], "perplexity") == [(1, 5.0), (3, 4.0)]
    assert study.front([(1, 5.0), (2, 6.0), (3, 4.0)], "accuracy") == [(1, 5.0), (2, 6.0)]
    assert search.value(30.0, 9.0, 40.0, "perplexity") == 9.0 and search.value(50.0, 9.0, 40.0, "perplexity") == -10.0
    trials = [{"metric": metric, "rate": rate} for metric, rate in ((30, 2), (20, 1), (40, 1))]
    assert [t["metric"] for t in search.front(trials, "perplexity")] == [20, 30]
    (panel,) = study.panels(study.read([folder]))
    cells = [panel.lines[0].cells[-1]._replace(sparsity=0.5, mean=mean) for mean in (9.0, 7.0)]
    lines = [panel.lines[0]._replace(cells=[cell]) for cell in cells]
    assert panel._replace(lines=lines).ranking(0.5)[0][1].mean == 7.0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.train", "nowhere.txt", "config.data.train is 'nowhere.txt'; there is no such file or folder"),
        ("data.train", "", "config.data.train is empty; with config.data.task=lm it names a file or a folder of text"),
        ("data.source", "csv", "config.data.source is 'csv'; allowed: text with config.data.task=lm"),
        ("data.stride", 33, "config.data.stride is 33; allowed: at most config.data.max_len (32)"),
        ("data.max_len", 4000, "config.data.max_len is 4000; allowed: at most config.model.max_positions (2048)"),
        ("data.metric", ("accuracy",), "config.data.metric is accuracy; allowed with lm: perplexity"),
        ("data.class_weights", "balanced", "allowed with all, which has no classes: none"),
        ("model.name", "bert", "config.model.name is 'bert'; allowed: decoder with config.data.task=lm"),
        ("model.num_kv_heads", 3, "config.model.num_kv_heads is 3; allowed: a divisor of config.model.num_heads (4)"),
        ("model.head_dim", 3, "config.model.head_dim is 3; allowed: an even number"),
        ("data.task", "sst2", "config.data.train is"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_written(key, value, message, config, tmp_path):
    room, name = key.split(".")
    with config[room].ignore_type():
        config[room][name] = value
    with pytest.raises(UserError) as told:
        train.train_and_evaluate(config, tmp_path / "run")
    assert message in str(told.value) and not (tmp_path / "run").exists()


def test_too_little_text_and_a_bert_for_a_decoder(config, text, tmp_path):
    (tmp_path / "short.txt").write_text("short")
    config.data.train = str(tmp_path / "short.txt")
    with pytest.raises(UserError, match="the text to train on has 5 tokens; allowed: at least 32"):
        train.train_and_evaluate(config, tmp_path / "run")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    config.data.train, config.model.init_from = str(text / "parts"), str(tmp_path / "bert")
    with pytest.raises(UserError, match="is no decoder, and config"):
        train.train_and_evaluate(config, tmp_path / "run")

"""Networks from elsewhere: whose tokens and whose classes they read."""

import csv
import itertools
import json

import numpy as np
import pytest
import safetensors.numpy
from test_hf import follow, write

from prune_jax.errors import UserError
from prune_jax.run import fitting, predict, train
from prune_jax.run import folder as runs

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]


def by_trial(predicted, labels, classes):
    """The best order by trying all: the mean over the classes of how often each is right."""
    present = [label for label in range(classes) if (labels == label).any()]

    def score(order):
        return sum(np.mean(predicted[labels == label] == order[label]) for label in present)

    return sorted(itertools.permutations(range(classes)), key=score, reverse=True), score


@pytest.mark.parametrize("seed", range(8))
def test_the_best_orders_are_those_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    truth = rng.permutation(classes)
    labels = rng.choice(classes, 300, p=rng.dirichlet(np.full(classes, 5.0)))
    predicted = np.where(rng.random(300) < 0.7, truth[labels], rng.integers(0, classes, 300))
    best, second, sure = fitting.best_orders(predicted, labels, classes)
    orders, score = by_trial(predicted, labels, classes)
    assert best == truth.tolist() == list(orders[0]) and score(second) == pytest.approx(score(orders[1]))
    weights = 1 / np.bincount(labels, minlength=classes)[labels]
    gains = weights * ((np.array(best)[labels] == predicted) * 1.0 - (np.array(second)[labels] == predicted))
    assert sure == pytest.approx(gains.sum() / np.sqrt((gains**2).sum())) and sure > 4


def test_who_answers_always_alike_is_sure_of_nothing():
    labels = np.array([0] * 270 + [1] * 30)
    assert fitting.best_orders(np.zeros(300, int), labels, 2)[2] == 0  # though 0.9 of the answers are right
    assert fitting.best_orders(np.zeros(300, int), labels % 3, 3)[2] == 0
    independent = np.tile([0, 0, 0, 0, 1], 60)
    assert abs(fitting.best_orders(independent, labels, 2)[2]) < 1


@pytest.fixture
def own(small_config, tmp_path):
    """(a config that starts from a checkpoint without names, its checkpoint, its texts): it knows all the labels."""
    folder = tmp_path / "hub"
    write(folder, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 9))) for _ in range(120)]
    logits = predict.load(folder, "best").texts(texts)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] -= np.median(logits[:, 1] - logits[:, 0])
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    first = logits[:, 1] - logits[:, 0] > np.median(logits[:, 1] - logits[:, 0])
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(zip(texts, np.where(first, "bad", "good"), strict=True))  # output 1 is bad, which is class 0
    config = follow(small_config, folder)
    config.data.tokenizer = str(folder)
    config.data.update({"source": "csv", "task": "classification", "train": str(tmp_path / "rows.csv")})
    config.train.epochs, config.train.learning_rate, config.pruning.method = 1, 1e-30, "baseline"
    return config, folder, tmp_path / "rows.csv"


def point(config, key, folder):
    """Makes the checkpoint what the run starts from, or its teacher."""
    config.model.init_from = config.distill.teacher = ""
    sizes = (None,) * 4 if key == "model.init_from" else (1, 16, 2, 32)
    config.model.update(dict(zip(("num_layers", "d_model", "num_heads", "d_ff"), sizes, strict=True)))
    room, name = key.split(".")
    config[room][name] = str(folder)


def test_an_order_that_no_name_tells_is_measured(own, tmp_path):
    config, folder, _ = own
    train.train_and_evaluate(config, tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    says = "its classifier, whose outputs no names tell apart, read as good, bad: accuracy 1.000 on 108 training"
    assert says in log
    kept = runs.load(tmp_path / "run").params["classifier"]["kernel"]
    given = safetensors.numpy.load_file(folder / "model.safetensors")["classifier.weight"].T
    np.testing.assert_allclose(kept, given[:, ::-1], atol=1e-20)
    point(config, "distill.teacher", folder)
    train.train_and_evaluate(config, tmp_path / "taught")
    log = (tmp_path / "taught" / "run.log").read_text()
    assert f"teacher   {folder}: accuracy 1.0000 on the training examples" in log and says in log


def test_an_order_that_cannot_be_measured_is_asked_for(own, tmp_path):
    config, folder, rows = own
    header, *lines = rows.read_text().splitlines()
    labels = np.random.default_rng(1).permutation([line.split(",")[1] for line in lines])
    rows.write_text("\n".join([header, *(f"{line.split(',')[0]},{label}" for line, label in zip(lines, labels))]))  # noqa: B905
    for key in ("model.init_from", "distill.teacher"):
        point(config, key, folder)
        with pytest.raises(
            UserError, match=rf"config.{key}=.*no order stands out.*data.label_names=bad,good in the or"
        ):
            train.train_and_evaluate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    point(config, "model.init_from", folder)
    config.data.label_names = ("good", "bad")
    train.train_and_evaluate(config, tmp_path / "run")
    assert "read as good, bad, as config.data.label_names says" in (tmp_path / "run" / "run.log").read_text()


def test_a_glue_task_takes_its_own_names_in_any_order_alone(small_config):
    from prune_jax import config as config_lib

    small_config.data.label_names = ("positive", "negative")
    assert config_lib.resolve(small_config, {})[0].data.label_names == ("positive", "negative")
    small_config.data.label_names = ("good", "bad")
    with pytest.raises(
        UserError, match=r"label_names is .*; allowed: those of .* in another order: negative, positive"
    ):
        config_lib.resolve(small_config, {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*WORDS[:-2], "z", "y"], r"another vocabulary .*'y' has the id 28 there, and has the id 29 in this run's"),
        (WORDS[:-1], r"another vocabulary \(30 tokens\): 'z' has the id 29 there, and is no token in this run's"),
        ([*WORDS, *(f"##{word}" for word in WORDS[4:])], r"another vocabulary"),
    ],
)
def test_the_tokens_of_another_vocabulary_are_refused(own, words, message, tmp_path):
    config, folder, _ = own
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config.data.tokenizer = str(tmp_path / "vocab.txt")
    for key in ("model.init_from", "distill.teacher"):
        point(config, key, folder)
        with pytest.raises(UserError, match=rf"config.{key}=.*reads other tokens than this run.*{message}"):
            train.train_and_evaluate(config, tmp_path / "run")


def test_a_checkpoint_without_a_tokenizer_is_measured_by_its_rows(own, tmp_path):
    config, folder, _ = own
    (folder / "vocab.txt").rename(tmp_path / "vocab.txt")
    config.data.tokenizer = str(tmp_path / "vocab.txt")
    train.train_and_evaluate(config, tmp_path / "run")  # 30 tokens of 40 rows, which may have been rounded up
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, *(f"##{i}" for i in range(11))]))
    with pytest.raises(UserError, match=r"40 rows, and this run's tokenizer 41 tokens .*it brings no tokenizer"):
        train.train_and_evaluate(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n\xffb\n", r"vocab.txt is not text in UTF-8"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n\na\n", r"line 5 is blank"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\r\na\n", r"line 7 repeats the token 'a' of line 5"),
    ],
)
def test_a_broken_vocabulary_is_one_message(content, message, tmp_path):
    from prune_jax.data import tokenizer

    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        tokenizer.load(str(tmp_path))


def test_weights_that_are_no_numbers_are_named(own, tmp_path):
    config, folder, _ = own
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.1.output.dense.weight"][3, 2] = np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    for key in ("model.init_from", "distill.teacher"):
        point(config, key, folder)
        with pytest.raises(UserError, match="layer_1/ffn_output/kernel has 1 weights that are not finite"):
            train.train_and_evaluate(config, tmp_path / "run")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"

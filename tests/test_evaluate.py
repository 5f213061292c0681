"""The metrics as GLUE defines them, over the whole split and nothing but the split."""

import numpy as np
import pytest

from prune_jax.data import batching
from prune_jax.data.glue import BUILTIN_TASKS, TASKS
from prune_jax.run import evaluate, train


def one_hot(predicted, width=2):
    return np.eye(width, dtype=np.float32)[predicted]


def test_accuracy_f1_and_matthews_by_hand():
    predicted, labels = np.array([1, 1, 1, 0, 0, 1, 0, 0]), np.array([1, 1, 0, 0, 1, 1, 0, 0])
    # true positives 3, false positives 1, false negatives 1, true negatives 3
    found = evaluate.metrics(TASKS["mrpc"], one_hot(predicted), labels)
    assert list(found) == ["accuracy", "f1"] and found == pytest.approx({"accuracy": 0.75, "f1": 0.75})
    matthews = (3 * 3 - 1 * 1) / np.sqrt(4 * 4 * 4 * 4)
    assert evaluate.metrics(TASKS["cola"], one_hot(predicted), labels) == pytest.approx({"matthews": matthews})


def test_a_constant_prediction_scores_0_not_nan():
    labels = np.array([0, 1, 1, 0])
    assert evaluate.metrics(TASKS["cola"], one_hot(np.ones(4, int)), labels) == {"matthews": 0.0}
    assert evaluate.metrics(TASKS["mrpc"], one_hot(np.zeros(4, int)), labels)["f1"] == 0.0
    scores = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    found = evaluate.metrics(TASKS["stsb"], np.full((4, 1), 2.0, np.float32), scores)
    assert found == {"pearson": 0.0, "spearman": 0.0}


def test_correlations_by_hand():
    predicted, scores = np.array([[1.0], [2.0], [3.0], [10.0]], np.float32), np.array([0, 1, 2, 3], np.float32)
    found = evaluate.metrics(TASKS["stsb"], predicted, scores)
    x, y = predicted[:, 0] - 4, scores - 1.5
    assert found["pearson"] == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), abs=1e-6)
    assert found["spearman"] == pytest.approx(1.0)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_which_metrics_a_task_has(task):
    both = {"mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1"), "stsb": ("pearson", "spearman")}
    assert task.metrics == both.get(task.name, ("matthews",) if task.name == "cola" else ("accuracy",))
    assert task.num_labels == {"stsb": 1, "mnli": 3}.get(task.name, 2)


def test_padding_rows_are_not_counted():
    """Labels say which example a row is; a padding row, were it counted, would be wrong and cost a loss of 100."""
    lengths = [3, 30, 5, 17, 16, 1, 9]
    offsets = np.cumsum([0, *lengths])
    labels = np.array([0, 1, 1, 0, 1, 0, 1], np.int32)
    split = batching.Split(np.ones(offsets[-1], np.int32), np.zeros(offsets[-1], np.int8), offsets, labels)
    sizes = []

    def eval_step(batch):
        real = np.asarray(batch["weights"]) == 1
        sizes.append(len(real))
        logits = one_hot(np.where(real, batch["labels"], 1 - np.asarray(batch["labels"])))
        return logits, np.where(real, 0.5, 100.0)

    batches = batching.eval_batches(split, 4, (16, 32))
    task = BUILTIN_TASKS["single"]
    logits, losses = evaluate.outputs(eval_step, task, split, batches)
    found, loss = evaluate.metrics(task, logits, split.labels), losses.mean()
    assert found == {"accuracy": 1.0} and loss == 0.5
    assert sum(sizes) > len(lengths)


def test_a_step_is_no_larger_than_the_data(small_config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        batching, "eval_batches", lambda *args, original=batching.eval_batches: asked.append(args[1]) or original(*args)
    )
    small_config.train.eval_batch_size, small_config.train.epochs = 10_000_000, 1
    train.train_and_evaluate(small_config, tmp_path / "run")
    assert set(asked) == {50}

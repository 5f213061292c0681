"""The official metrics of each task over a whole evaluation split."""

from collections.abc import Callable

import jax
import numpy as np


def _accuracy(predicted, labels):
    return np.mean(predicted == labels)


def _f1(predicted, labels):
    from sklearn.metrics import f1_score

    return f1_score(labels, predicted, zero_division=0.0)


def _matthews(predicted, labels):
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(labels, predicted)


def _correlation(name: str):
    def metric(predicted, labels):
        import scipy.stats

        if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
            return 0.0  # undefined; a constant prediction knows nothing
        return getattr(scipy.stats, name)(predicted.astype(np.float64), labels.astype(np.float64)).statistic

    return metric


_METRICS: dict[str, Callable] = {
    "accuracy": _accuracy,
    "f1": _f1,  # of class 1, as GLUE counts it
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def metrics(task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics by name, in the order of task.metrics.

    Args:
      logits: (n, num_labels) float32; a regression task's single column is the score.
      labels: (n,) int32 class ids or float32 scores.
    """
    predicted = logits[:, 0] if task.is_regression else np.argmax(logits, axis=-1)
    return {name: float(_METRICS[name](predicted, labels)) for name in task.metrics}


def run(eval_step: Callable, task, split, batches, sharding=None) -> tuple[dict[str, float], float]:
    """(metrics, mean loss) of a split; rows that fill up a batch are not counted.

    Args:
      eval_step: batch -> (logits (batch, num_labels), losses (batch,)).
      batches: (example indices, batch) pairs, as batching.eval_batches yields them.
      sharding: where the batches go; the default device if None.
    """
    logits = np.zeros((len(split), task.num_labels), np.float32)
    losses = np.zeros(len(split))
    pending = None
    for rows, batch in batches:
        found = eval_step(jax.device_put(batch, sharding))
        if pending is not None:  # read a batch once the next one is under way
            _store(*pending, logits, losses)
        pending = rows, found
    _store(*pending, logits, losses)
    return metrics(task, logits, split.labels), float(losses.mean())


def _store(rows, found, logits, losses):
    logits[rows], losses[rows] = (np.asarray(x)[: len(rows)] for x in found)

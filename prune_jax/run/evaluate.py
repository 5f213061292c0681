"""The official metrics of each task over a whole evaluation split."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from prune_jax.data import batching
from prune_jax.errors import UserError
from prune_jax.pruning import trees
from prune_jax.run import processes


def _accuracy(predicted, labels):
    return np.mean(predicted == labels)


def _macro_f1(predicted, labels):
    from sklearn.metrics import f1_score

    return f1_score(labels, predicted, average="macro", zero_division=0.0)


def _mse(predicted, labels):
    return np.mean((predicted.astype(np.float64) - labels.astype(np.float64)) ** 2)


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
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
    "mse": _mse,
}


def _token_loss(scored: np.ndarray) -> float:
    """The mean loss of a token, of (n, 2): sums of losses and how many tokens they are of."""
    total, count = scored.sum(axis=0, dtype=np.float64)
    return total / count


def metrics(task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes the task's metrics, by name and in the order of task.metrics.

    Args:
      logits: (n, num_labels) float32; a regression task's single column is the score, and running text has (n, 2), the
        summed losses of a window's tokens and their number.
      labels: (n,) int32 class ids or float32 scores.
    """
    if task.metrics == ("perplexity",):  # of running text: sums of losses, and counts
        return {"perplexity": float(np.exp(_token_loss(logits)))}
    predicted = logits[:, 0] if task.is_regression else np.argmax(logits, axis=-1)
    return {name: float(_METRICS[name](predicted, labels)) for name in task.metrics}


def chance(task, labels: np.ndarray) -> tuple[float, float]:
    """(what the best constant answer scores in the task's first metric, its standard error on so many examples).

    Example:
      >>> from prune_jax.data.glue import TASKS
      >>> chance(TASKS["sst2"], np.array([0, 1, 1, 1]))[0]
      0.75
    """
    if task.is_regression:
        return 0.0, 1 / np.sqrt(len(labels))
    if task.metrics == ("perplexity",):
        return np.inf, 0.0  # nothing is known to be worse than chance
    scores = (_METRICS[task.metrics[0]](np.full(len(labels), one), labels) for one in np.unique(labels))
    level = float(max(scores))
    return level, float(np.sqrt(max(level * (1 - level), 1 / len(labels)) / len(labels)))


def outputs(eval_step: Callable, task, split, batches, sharding=None) -> tuple[np.ndarray, np.ndarray]:
    """Computes a network's outputs on a split, in the split's order.

    Args:
      eval_step: batch -> (logits (batch, num_labels), losses (batch,)).
      batches: (example indices, batch) pairs, as batching.eval_batches yields them.
      sharding: where the batches go; the default device if None.
    Returns:
      (logits (n, num_labels) float32, losses (n,) float64).
    """
    logits = np.zeros((len(split), task.num_labels), np.float32)
    losses = np.zeros(len(split))
    pending = None
    for rows, batch in batches:
        outcome = eval_step(processes.put(batch, sharding))
        if pending is not None:  # read a batch once the next one is under way
            _store(*pending, logits, losses)
        pending = rows, outcome
    _store(*pending, logits, losses)
    return logits, losses


def _store(rows, outcome, logits, losses):
    logits[rows], losses[rows] = (np.asarray(x)[: len(rows)] for x in outcome)


def step_size(asked: int, examples: int) -> int:
    """The examples per step of an evaluation: `asked`, at most all of them, up to a multiple of the devices."""
    devices = jax.device_count()
    return -(-min(asked, examples) // devices) * devices


def dataset_columns(eval_step: Callable, dataset, batch_size: int, sharding=None) -> dict[str, float]:
    """Evaluates a network on a task's evaluation splits.

    Args:
      eval_step, sharding: as outputs's.
      batch_size: examples per step, at most those of the largest split, up to a multiple of the devices.
    Returns:
      eval_loss and eval_metric, the task's first metric, of the first split; the other metrics and splits by name.
    """
    task, columns = dataset.task, {}
    batch_size = step_size(batch_size, max(map(len, dataset.evals.values())))
    for i, (name, split) in enumerate(dataset.evals.items()):
        suffix = "_" + name.removeprefix("dev_") if i else ""
        batches = batching.eval_batches(split, batch_size, dataset.buckets)
        logits, losses = outputs(eval_step, task, split, batches, sharding)
        of_tokens = task.metrics == ("perplexity",)
        columns["eval_loss" + suffix] = _token_loss(logits) if of_tokens else float(losses.mean())
        for j, (metric, value) in enumerate(metrics(task, logits, split.labels).items()):
            columns[f"eval_{metric}{suffix}" if i or j else "eval_metric"] = value
    return columns


def network(config, params, gates) -> tuple[dict[str, float], str]:
    """Evaluates a network on the data of its config.

    Returns:
      (dataset_columns of the network, the name of the metric in eval_metric).
    Raises:
      UserError: as `opened` does.
    """
    model, dataset = opened(config, params, gates)
    return evaluator(config, model, dataset)(params, gates), dataset.task.metrics[0]


def evaluator(config, model, dataset) -> Callable[..., dict[str, float]]:
    """(params, gates) -> dataset_columns of a network; what it compiles serves all that have the same gates."""
    from prune_jax.run import state

    step = jax.jit(state.make_eval_step(model))

    def columns(params, gates):
        at = functools.partial(step, *jax.device_put((params, gates)))
        return dataset_columns(at, dataset, config.train.eval_batch_size)

    return columns


def opened(config, params, gates) -> tuple:
    """(the model, the dataset with its evaluation splits) of a network.

    Args:
      config: a resolved config.
      params, gates: trees as a run's checkpoint or an artifact holds them.
    Raises:
      UserError: the data is missing, or the network is not the one that the config and the data describe.
    """
    from prune_jax import config as config_lib
    from prune_jax import data, models
    from prune_jax.models import units

    dataset = data.load(data.DataOptions(**config.data), evals_only=True)
    model = models.create(config, dataset.task, config.model.vocab_size or dataset.vocab_size)
    structure = config_lib.structure(config)
    wanted = {
        "params": jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())["params"],
        "gates": units.gate_shapes(model, structure),
    }
    for name, tree in (("params", params), ("gates", gates)):
        if differing := trees.differing(tree, wanted[name]):
            key, (theirs, ours) = next(iter(differing.items()))
            raise UserError(
                f"the network is another than its config and data describe: {len(differing)} {name} differ, the first "
                f"is {key}: {theirs} in the network, {ours} expected"
            )
    return model, dataset

"""The official metrics of each task over a whole evaluation split.

    python -m prune_jax.evaluate PATH [--config.data.dir=DIR] [--config.data.source=SOURCE] ...

evaluates the network in PATH, the folder of a run or a .pjx artifact, on the evaluation splits of its config.
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from prune_jax import command, trees
from prune_jax.data import batching
from prune_jax.errors import UserError


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


def outputs(eval_step: Callable, task, split, batches, sharding=None) -> tuple[np.ndarray, np.ndarray]:
    """(logits (n, num_labels) float32, losses (n,)) of a split, in its order.

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
    return logits, losses


def _store(rows, found, logits, losses):
    logits[rows], losses[rows] = (np.asarray(x)[: len(rows)] for x in found)


def dataset_columns(eval_step: Callable, dataset, batch_size: int, sharding=None) -> dict[str, float]:
    """The columns eval_loss, eval_metric (the task's first metric on its first split), and all others by name.

    Args:
      eval_step, sharding: as outputs's.
      batch_size: rounded up to a multiple of the devices.
    """
    task, devices, columns = dataset.task, jax.device_count(), {}
    batch_size = -(-batch_size // devices) * devices
    for i, (name, split) in enumerate(dataset.evals.items()):
        suffix = "_" + name.removeprefix("dev_") if i else ""
        batches = batching.eval_batches(split, batch_size, dataset.buckets)
        logits, losses = outputs(eval_step, task, split, batches, sharding)
        columns["eval_loss" + suffix] = float(losses.mean())
        for j, (metric, value) in enumerate(metrics(task, logits, split.labels).items()):
            columns[f"eval_{metric}{suffix}" if i or j else "eval_metric"] = value
    return columns


def network(config, params, gates) -> tuple[dict[str, float], str]:
    """(dataset_columns of a network on the data of its config, the name of the metric in eval_metric).

    Args:
      config: resolved; params, gates: trees as a run's checkpoint or an artifact holds them.
    Raises:
      UserError: the data is missing, or the network is not the one that the config and the data describe.
    """
    from prune_jax import data, models, state

    dataset = data.load(config)
    model = models.create(config, dataset.task, config.model.vocab_size or dataset.vocab_size)
    wanted = jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
    for name, tree in (("params", params), ("gates", gates)):
        if differing := trees.differing(tree, wanted[name]):
            key, (theirs, ours) = next(iter(differing.items()))
            raise UserError(
                f"the network is another than its config and data describe: {len(differing)} {name} differ, the first "
                f"is {key}: {theirs} in the network, {ours} expected"
            )
    step = functools.partial(jax.jit(state.make_eval_step(model)), *jax.device_put((params, gates)))
    return dataset_columns(step, dataset, config.train.eval_batch_size), dataset.task.metrics[0]


_OVERRIDES = ("data.source", "data.dir", "data.task", "data.tokenizer", "data.cache_dir", "train.eval_batch_size")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.evaluate", description="Evaluates a network.")
    parser.add_argument("path", help="the folder of a run, or a .pjx artifact")
    parser.add_argument("--kind", help="checkpoint of a run; default quantised if there is one, or best")
    for key in _OVERRIDES:
        kind = int if key == "train.eval_batch_size" else str
        parser.add_argument(f"--config.{key}", type=kind, metavar="VALUE", help=f"in place of config.{key}")
    args = vars(parser.parse_args(argv))
    overrides = {key: args[f"config.{key}"] for key in _OVERRIDES if args[f"config.{key}"] is not None}
    with tempfile.TemporaryDirectory() as scratch:
        config, params, gates = _open(args["path"], args["kind"], Path(scratch), overrides)
        columns, metric = network(config, params, gates)
    for name, value in columns.items():
        print(f"{name} ({metric}) {value:.6f}" if name == "eval_metric" else f"{name} {value:.6f}")


def _open(path: str, kind: str | None, scratch: Path, overrides: dict):
    """(resolved config with the overrides, params, gates) of a run's folder or an artifact."""
    from prune_jax import config as config_lib
    from prune_jax import runs
    from prune_jax.compress import artifact

    if Path(path).is_dir():
        saved, params, gates = runs.load(path, kind or runs.final_kind(path))
        tokenizer = Path(path) / "tokenizer"
    elif kind:
        raise UserError(f"--kind is {kind}, which chooses among the checkpoints of a run; {path} is no folder")
    else:
        saved, params, gates, text = artifact.read(path)
        tokenizer = artifact.save_tokenizer(text, scratch / "tokenizer", path)
    config = config_lib.completed(saved)
    config.model.init_from = ""  # the network is here; where it started from need not be
    if tokenizer and tokenizer.is_dir():
        config.data.tokenizer = str(tokenizer)
    for key, value in overrides.items():
        room, name = key.split(".")
        config[room][name] = value
    return config_lib.resolve(config, {})[0], params, gates


if __name__ == "__main__":
    sys.exit(command.run("evaluate", main))

"""Whether a network that comes from elsewhere fits: which token is which, and which class is which.

Both mistakes are silent ones otherwise: a run of another vocabulary trains on noise, and one whose classes are mixed up
starts below chance, or learns from a teacher that is wrong.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_jax import config as config_lib
from prune_jax import files
from prune_jax.config.rooms import MODELS
from prune_jax.data import batching, tokenizer
from prune_jax.data.glue import task_of
from prune_jax.errors import UserError
from prune_jax.run import evaluate
from prune_jax.run import folder as runs
from prune_jax.run import state as state_lib

Tree = Any

_EXAMPLES, _PER_CLASS = 300, 40  # at least so many are measured, where there are so many
_SURE = 4.0  # standard errors between the best order and the next best
_PADDED = 128  # rows of an embedding are rounded up to a multiple of at most this


# Tokens --------------------------------------------------------------------------------------------------------------


def check_tokens(what: str, source: str, rows: int, tok: tokenizer.Tokenizer) -> None:
    """Checks that a network reads the tokens that a run's tokenizer makes.

    Args:
      what: the key and the value that name the network, for the message.
      source: the name of the network's own tokenizer, as tokenizer.load takes it; "" where it brings none.
      rows: of its token embedding; None, as many as the tokens of its tokenizer.
      tok: of the run.
    Raises:
      UserError: a token has another id there, or no row.
    """
    size, problem = tok.vocab_size, ""
    if source:
        theirs, ours = tokenizer.load(source).vocabulary, tok.vocabulary
        if theirs != ours:
            token = min((name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)), key=repr)
            here, there = (f"has the id {ids[token]}" if token in ids else "is no token" for ids in (ours, theirs))
            problem = f"its tokenizer has another vocabulary ({len(theirs):,} tokens): {token!r} {there} there"
            problem += f", and {here} in this run's ({tok.origin})"
    if not problem and rows is not None and not (size <= rows and (source or rows - size < _PADDED)):
        problem = f"its embedding has {rows:,} rows, and this run's tokenizer {size:,} tokens ({tok.origin})"
    if problem:
        advice = "allowed: its own tokenizer, which config.data.tokenizer follows where it is not set"
        if not source:
            advice = "it brings no tokenizer: config.data.tokenizer names the one that it was trained with"
        raise UserError(f"{what} reads other tokens than this run: {problem}; {advice}")


# Classes -------------------------------------------------------------------------------------------------------------


def best_orders(predicted: np.ndarray, labels: np.ndarray, classes: int) -> tuple[list[int], list[int], float]:
    """The one-to-one reading of predictions as labels that is right most often, every class counting alike.

    Both orders are assignments (Kuhn, 1955) on the confusion matrix in shares of each class, the second the best of
    those that differ. So a constant answer is as good in any order, however unequal the classes are.

    Args:
      predicted, labels: (n,) integers below `classes`.
    Returns:
      (the output of each class in the best order, and in the next best; how many standard errors lie between them).
    Example:
      >>> best_orders(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]), 2)
      ([1, 0], [0, 1], 2.0)
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes))  # (label, output)
    np.add.at(counts, (labels, predicted), 1)
    each = 1 / np.maximum(counts.sum(1), 1)
    scores = counts * each[:, None]

    def solve(scores):
        return linear_sum_assignment(scores, maximize=True)[1]

    best = solve(scores)
    others = []
    for label in range(classes):
        barred = scores.copy()
        barred[label, best[label]] = -classes
        others.append(solve(barred))
    rows = np.arange(classes)
    second = max(others, key=lambda order: scores[rows, order].sum())
    differs = best != second
    gain, loss = (counts[rows, order][differs] for order in (best, second))
    each = each[differs]
    error = np.sqrt(np.sum(each**2 * (gain + loss)))
    return best.tolist(), second.tolist(), float(np.sum(each * (gain - loss)) / error) if error else 0.0


def class_order(
    what: str, model, params: Tree, dataset, batch_size: int, given: Sequence[str] | None
) -> tuple[list[int], str]:
    """Which output of a classifier is which of a task's classes, where nothing names its outputs.

    It is the order in which the classifier is clearly right most often on training examples; where no order stands out,
    the one that the user names.

    Args:
      what: the key and the value that name the network, for messages.
      model, params: the network, with as many outputs as the task has classes; no part of it may be new.
      given: config.data.label_names as the user has set it: the classes in the order of the outputs; None if unset.
    Returns:
      (the output of each class, a note for the log).
    Raises:
      UserError: no order stands out, and none is given.
    """
    labels, split = dataset.task.labels, dataset.train
    count = min(len(split), max(_EXAMPLES, _PER_CLASS * len(labels)))
    split = split.take(np.sort(np.random.default_rng(0).permutation(len(split))[:count]))
    size = -(-min(batch_size, count) // jax.device_count()) * jax.device_count()
    step, variables = jax.jit(state_lib.make_eval_step(model)), jax.device_put(params)
    logits, _ = evaluate.outputs(
        lambda batch: step(variables, {}, batch),
        dataset.task,
        split,
        batching.eval_batches(split, size, dataset.buckets),
    )
    predicted = np.argmax(logits, -1)
    best, second, sure = best_orders(predicted, split.labels, len(labels))

    def named(order):
        return ", ".join(labels[order.index(i)] for i in range(len(labels)))

    def right(order):
        return float(np.mean(np.asarray(order)[split.labels] == predicted))

    found = f"accuracy {right(best):.3f} on {count} training examples"
    if sure >= _SURE:
        return best, f"its classifier, whose outputs no names tell apart, read as {named(best)}: {found}"
    if given is not None:
        order = [list(given).index(label) for label in labels]
        return order, f"its classifier, read as {named(order)}, as config.data.label_names says"
    raise UserError(
        f"{what} has a classifier of {len(labels)} outputs whose config.json does not name them, and no order stands "
        f"out on training examples ({named(best)}: {found}, {named(second)}: {right(second):.3f}); "
        f"config.data.label_names={','.join(labels)} in the order of the outputs says which is which"
    )


# Networks of the same shapes ------------------------------------------------------------------------------------------

_OF_NO_SHAPE = (  # keys of config.model that make other networks of weights of the same shapes
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "layer_heads",
    "activation",
    "architecture",
    "layer_norm_eps",
    "rope_theta",
    "window",
)


def check_alike(first: runs.Network, other: runs.Network, first_folder, other_folder) -> None:
    """Checks that two runs' networks, whose weights have the same shapes, compute the same of the same weights.

    Raises:
      UserError: an output is another class, a row of the embedding another token, or the layers compute otherwise.
    """
    ours, theirs = (config_lib.completed(network.config) for network in (first, other))
    classes, others = (task_of(config.data).labels for config in (ours, theirs))
    problem = ""
    if classes and others and classes != others:
        problem = f"the outputs are {', '.join(others)} in one and {', '.join(classes)} in the other "
        problem += "(config.data.label_names sets their order)"
    for key in _OF_NO_SHAPE if MODELS[ours.model.name] != "images" else ():
        here, there = ours.model[key], theirs.model[key]
        if None not in (here, there) and here != there:
            problem = problem or f"config.model.{key} is {there} in one and {here} in the other"
    paths = [Path(folder) / "tokenizer" / "tokenizer.json" for folder in (first_folder, other_folder)]
    if all(path.is_file() for path in paths) and paths[0].read_bytes() != paths[1].read_bytes():
        one, two = (files.read_tokenizer(path).get_vocab() for path in paths)
        problem = problem or ("" if one == two else "their tokenizers have other vocabularies")
    if problem:
        raise UserError(f"{other_folder} and {first_folder} have different networks: {problem}")

"""Pruning before the training, or without one: config.oneshot, on the first examples of a random choice."""

import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import config as config_lib
from prune_jax import methods
from prune_jax.config import schedules
from prune_jax.data.language import Windows
from prune_jax.errors import UserError, first_line
from prune_jax.models import units
from prune_jax.oneshot import wanda
from prune_jax.oneshot.prune import Done
from prune_jax.oneshot.prune import oneshot as pruned
from prune_jax.oneshot.solver import OneShot
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.plan import KEEP, Plan, Rule

Tree = Any
ROWS = 32  # of a batch; few, for each length of text is compiled
_PLACES = 1024  # tokens of a batch of several texts, at most: a backward pass holds what each layer makes of them
_WIDTH = 8  # batches of text are padded to the next multiple of it


def method(config: Any, name: str) -> OneShot:
    """The one-shot method of this name with the options of a resolved config."""
    if name == "magnitude":
        return wanda.magnitude()
    return methods.maker(name)(**{key: config[name][key] for key in methods.options(name)})


def batches(
    model: Any, dataset: Any, examples: int, seed: int, at_once: int = ROWS
) -> tuple[list[tuple[jax.Array, ...]], list | None]:
    """The inputs of calls on so many training examples, chosen at random, those of a call about as long as each other.

    Returns:
      (a tuple of arrays per call, their masks, by which padding counts for nothing; None where there is no padding).
    Raises:
      UserError: there are fewer.
    """
    split = dataset.train
    if len(split) < examples:
        what = f"windows of {dataset.buckets[-1]} tokens" if isinstance(split, Windows) else "training examples"
        raise UserError(f"config.oneshot.examples is {examples}; allowed: 1 to {len(split)}, the {what}")
    rows = np.random.default_rng((seed, 0)).permutation(len(split))[:examples]
    rows = rows[np.argsort(split.lengths[rows], kind="stable")]
    made, masks = [], []

    def padded(longest: int) -> int:
        return longest if longest == 1 else min(-(-longest // _WIDTH) * _WIDTH, dataset.buckets[-1])

    while len(rows):
        several = [padded(int(split.lengths[row])) * n <= _PLACES for n, row in enumerate(rows[:at_once], 1)]
        own, rows = np.split(rows, [max(sum(several), 1)])
        length = padded(int(split.lengths[own].max()))
        batch = split.batch(own, length, len(own))
        made.append(tuple(jnp.asarray(batch[name]) for name in model.inputs))
        masks.append(batch.get("attention_mask"))
    return made, None if masks[0] is None else masks


def kept(params: Tree, plan: Plan) -> dict[str, Rule]:
    """The rules by which the kernels that a plan does not cover stay dense."""
    covered = {name for part in plan.parts for name in part.names}
    kernels = (name for name, leaf in trees.by_name(params).items() if gates_lib.is_kernel(name, leaf))
    return {f"^{re.escape(name)}$": KEEP for name in kernels if name not in covered}


def begin(
    config: Any, model: Any, plan: Any, network: tuple[Tree, Tree], dataset: Any, evaluate: Callable, log: Callable
) -> tuple[Tree, Tree, dict, dict]:
    """Prunes the network that a run starts from, and evaluates it before and after.

    Args:
      config, model, plan, dataset, log: as of prune; network: (params, gates).
      evaluate: (params, gates) -> the columns of an evaluation.
    Returns:
      (params, gates, the entry as prune's with metric_before and metric_after, a row of metrics.csv for epoch 0 where
      no epoch prunes on; else {}).
    """
    start, before = time.perf_counter(), evaluate(*network)["eval_metric"]
    params, gates, entry = prune(config, model, plan, *network, dataset, log)
    measured, sparsity = evaluate(params, gates), gates_lib.sparsity(gates)
    entry |= {"metric_before": before, "metric_after": measured["eval_metric"]}
    log(
        f"one shot  {config.oneshot.method}: {dataset.task.metrics[0]} {before:.4f} -> {measured['eval_metric']:.4f} "
        f"at {100 * sparsity:.2f}% sparsity, {entry['seconds']:.1f} s"
    )
    only = config.pruning.method in methods.ONESHOT
    if config.train.epochs and not only:
        return params, gates, entry, {}
    row = {
        "epoch": 0,
        "step": 0,
        "train_loss": math.nan,
        **measured,
        "sparsity": sparsity,
        "target_sparsity": schedules.sparsity_schedule(config)(0) if only else sparsity,
        "seconds": time.perf_counter() - start,
        "metric_before_pruning": before,
        "sparsity_before_pruning": gates_lib.sparsity(network[1]),
    }
    return params, gates, entry, row


def prune(
    config: Any,
    model: Any,
    plan: Any,
    params: Tree,
    gates: Tree,
    dataset: Any,
    log: Callable,
    tell: Callable[[Done], None] | None = None,
    keep: str = "",
) -> tuple[Tree, Tree, dict]:
    """Prunes a network as config.oneshot says; what is closed stays closed.

    Args:
      config: a resolved config; plan: what pruning.structure covers; params, gates: the network.
      log: called with a line about every tenth of the way; tell: with every kernel, in place of log.
      keep: the name of a module that stays dense, where there is one.
    Returns:
      (params, gates, {"method", "structure", "sparsity", "scope", "target", "examples", "correct", "seconds", "error",
      the largest of a kernel's outputs, and "layers": a list of {"name", "sparsity", "error"}}).
    Raises:
      UserError: the network cannot be pruned so.
    """
    cfg, structure = config.oneshot, units.spelled(model, config_lib.structure(config))
    params, start = gates_lib.masked(params, gates), time.monotonic()
    groups = units.chosen(model, config_lib.structure(config))
    rules = ({} if groups else kept(params, plan)) | ({f"^{keep}/": KEEP} if keep in params else {})
    layers: list[dict] = []

    def note(done: Done) -> None:
        layers.append({"name": done.name, "sparsity": done.sparsity, "error": done.error})
        if tell:
            tell(done)
        elif done.number * 10 // done.total > (done.number - 1) * 10 // done.total:
            left = time.strftime("%H:%M:%S", time.gmtime(done.seconds_left))
            log(f"one shot  {done.number}/{done.total} {done.name}: error {done.error:.3e}, {left} left")

    inputs, masks = batches(model, dataset, cfg.examples, config.train.seed, min(ROWS, config.train.eval_batch_size))
    try:
        params, new = pruned(
            lambda params, *inputs: model.apply({"params": params}, *inputs),
            params,
            inputs,
            method(config, cfg.method),
            sparsity=cfg.sparsity,
            structure=groups or structure,
            scope=cfg.scope,
            target=cfg.target,
            rules=rules,
            correct=cfg.correct,
            weights=masks,
            progress=note,
        )
    except ValueError as error:
        raise UserError(f"config.oneshot.method={cfg.method} cannot prune this network: {first_line(error)}") from error
    new = trees.by_name(new)
    gates = jax.tree_util.tree_map_with_path(
        lambda path, gate: gate if new.get(trees.name(path)) is None else gate & new[trees.name(path)], gates
    )
    entry = {
        "method": cfg.method,
        "structure": config.pruning.structure,
        "sparsity": gates_lib.sparsity(gates),
        "scope": cfg.scope,
        "target": cfg.target,
        "examples": cfg.examples,
        "correct": cfg.correct,
        "seconds": round(time.monotonic() - start, 1),
        "error": max(layer["error"] for layer in layers),
        "layers": layers,
    }
    return gates_lib.masked(params, gates), gates, entry

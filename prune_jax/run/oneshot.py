"""Pruning before the training, or without one: config.oneshot, on the first examples of a random choice."""

import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import config as config_lib
from prune_jax import methods
from prune_jax.errors import UserError, first_line
from prune_jax.models import units
from prune_jax.oneshot import wanda
from prune_jax.oneshot.prune import Done
from prune_jax.oneshot.prune import oneshot as pruned
from prune_jax.oneshot.solver import OneShot
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.plan import KEEP

Tree = Any
ROWS = 32  # of a batch; few, for each length of text is compiled
_WIDTH = 8  # batches of text are padded to the next multiple of it, for padding would count as input


def method(config: Any, name: str) -> OneShot:
    """The one-shot method of this name with the options of a resolved config."""
    if name == "magnitude":
        return wanda.magnitude()
    return methods.maker(name)(**{key: config[name][key] for key in methods.options(name)})


def batches(model: Any, dataset: Any, examples: int, seed: int) -> list[tuple[jax.Array, ...]]:
    """The inputs of calls on so many training examples, chosen at random, those of a call about as long as each other.

    Raises:
      UserError: there are fewer.
    """
    split = dataset.train
    if len(split) < examples:
        raise UserError(f"config.oneshot.examples is {examples}; allowed: 1 to {len(split)}, the training examples")
    rows = np.random.default_rng((seed, 0)).permutation(len(split))[:examples]
    rows = rows[np.argsort(split.lengths[rows], kind="stable")]
    made = []
    for start in range(0, examples, ROWS):
        own = rows[start : start + ROWS]
        longest = int(split.lengths[own].max())
        length = longest if longest == 1 else min(-(-longest // _WIDTH) * _WIDTH, dataset.buckets[-1])
        batch = split.batch(own, length, len(own))
        made.append(tuple(jnp.asarray(batch[name]) for name in model.inputs))
    return made


def prune(config: Any, model: Any, plan: Any, state: Any, dataset: Any, log: Callable) -> tuple[Tree, Tree, dict]:
    """Prunes a network as config.oneshot says; what is closed stays closed.

    Args:
      config: a resolved config; plan: what pruning.structure covers; state: with its params and gates.
      log: called with a line about every tenth of the way.
    Returns:
      (params, gates, {"method", "structure", "sparsity", "target", "examples", "correct", "seconds", "error", the
      largest of a kernel's outputs, and "layers": a list of {"name", "sparsity", "error"}}).
    Raises:
      UserError: the network cannot be pruned so.
    """
    cfg, structure = config.oneshot, units.spelled(model, config_lib.structure(config))
    params = gates_lib.masked(state.params, state.gates)
    groups = units.chosen(model, config_lib.structure(config))
    covered = {name for part in plan.parts for name in part.names}
    rules = {
        f"^{re.escape(name)}$": KEEP
        for name, leaf in trees.by_name(params).items()
        if gates_lib.is_kernel(name, leaf) and name not in covered and not groups
    }
    layers: list[dict] = []

    def tell(done: Done) -> None:
        layers.append({"name": done.name, "sparsity": done.sparsity, "error": done.error})
        if done.number * 10 // done.total > (done.number - 1) * 10 // done.total:
            left = time.strftime("%H:%M:%S", time.gmtime(done.seconds_left))
            log(f"one shot  {done.number}/{done.total} {done.name}: error {done.error:.3e}, {left} left")

    start = time.monotonic()
    try:
        params, gates = pruned(
            lambda params, *inputs: model.apply({"params": params}, *inputs),
            params,
            batches(model, dataset, cfg.examples, config.train.seed),
            method(config, cfg.method),
            sparsity=cfg.sparsity,
            structure=groups or structure,
            target=cfg.target,
            rules=rules,
            correct=cfg.correct,
            progress=tell,
        )
    except ValueError as error:
        raise UserError(f"config.oneshot.method={cfg.method} cannot prune this network: {first_line(error)}") from error
    new = trees.by_name(gates)
    gates = jax.tree_util.tree_map_with_path(
        lambda path, gate: gate if new.get(trees.name(path)) is None else gate & new[trees.name(path)], state.gates
    )
    entry = {
        "method": cfg.method,
        "structure": config.pruning.structure,
        "sparsity": gates_lib.sparsity(gates),
        "target": cfg.target,
        "examples": cfg.examples,
        "correct": cfg.correct,
        "seconds": round(time.monotonic() - start, 1),
        "error": max(layer["error"] for layer in layers),
        "layers": layers,
    }
    return gates_lib.masked(params, gates), gates, entry

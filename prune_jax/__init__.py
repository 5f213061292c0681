"""Pruning and compression of any JAX network, in anybody's training loop.

import prune_jax as pj

tx = pj.prune(optax.adamw(1e-4), pj.magnitude(), pj.cubic(0.9, begin=1_000, end=10_000, every=100))
state = tx.init(params)
updates, state = tx.update(grads, state, params)
params = optax.apply_updates(params, updates)  # closed weights are exactly 0
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from prune_jax.graph.cutting import shrink, shrink_like
    from prune_jax.graph.graph import Graph, close_groups, trace
    from prune_jax.graph.modules import shrink_module, trace_module
    from prune_jax.methods import register
    from prune_jax.methods.cofi import create as cofi
    from prune_jax.methods.grasp import create as grasp
    from prune_jax.methods.l0 import create as l0
    from prune_jax.methods.lottery_ticket import create as lottery_ticket
    from prune_jax.methods.magnitude import create as magnitude
    from prune_jax.methods.movement import create as movement
    from prune_jax.methods.obert import create as obert
    from prune_jax.methods.platon import create as platon
    from prune_jax.methods.random import create as random
    from prune_jax.methods.rigl import create as rigl
    from prune_jax.methods.sensitivity import create as sensitivity
    from prune_jax.methods.set import create as set
    from prune_jax.methods.snip import create as snip
    from prune_jax.methods.spt import create as spt
    from prune_jax.methods.ste import create as ste
    from prune_jax.methods.sws import create as soft_weight_sharing
    from prune_jax.methods.synflow import create as synflow
    from prune_jax.methods.variational_dropout import create as variational_dropout
    from prune_jax.oneshot.obs import create as obs
    from prune_jax.oneshot.prune import Done, oneshot
    from prune_jax.oneshot.solver import OneShot
    from prune_jax.oneshot.sparsegpt import create as sparsegpt
    from prune_jax.oneshot.wanda import create as wanda
    from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
    from prune_jax.pruning.options import made_from, option, options
    from prune_jax.pruning.plan import KEEP, Rule
    from prune_jax.pruning.reading import finish, gates, layer_sparsity, masked, sampled, sparsity
    from prune_jax.pruning.schedules import Schedule, constant, cosine, cubic, cyclic, linear, one_shot, steps
    from prune_jax.pruning.structure import Group, Member
    from prune_jax.pruning.transform import prune

_METHODS = {"soft_weight_sharing": "sws"} | {
    name: name
    for name in (
        "cofi",
        "grasp",
        "l0",
        "lottery_ticket",
        "magnitude",
        "movement",
        "obert",
        "platon",
        "random",
        "rigl",
        "sensitivity",
        "set",
        "snip",
        "spt",
        "ste",
        "synflow",
        "variational_dropout",
    )
}
_ONE_SHOT = ("obs", "sparsegpt", "wanda")
_FROM = {
    "method": ("Method", "Pruned", "PruneInfo", "StepInfo"),
    "options": ("made_from", "option", "options"),
    "plan": ("KEEP", "Rule"),
    "schedules": ("Schedule", "constant", "cosine", "cubic", "cyclic", "linear", "one_shot", "steps"),
    "structure": ("Group", "Member"),
    "reading": ("finish", "gates", "layer_sparsity", "masked", "sampled", "sparsity"),
    "transform": ("prune",),
}
_HOME = {name: f"prune_jax.pruning.{module}" for module, names in _FROM.items() for name in names}
_HOME["register"] = "prune_jax.methods"
_HOME |= dict.fromkeys(("Graph", "close_groups", "trace"), "prune_jax.graph.graph")
_HOME |= dict.fromkeys(("shrink", "shrink_like"), "prune_jax.graph.cutting")
_HOME |= dict.fromkeys(("shrink_module", "trace_module"), "prune_jax.graph.modules")
_HOME |= {
    "Done": "prune_jax.oneshot.prune",
    "OneShot": "prune_jax.oneshot.solver",
    "oneshot": "prune_jax.oneshot.prune",
}

__all__ = [
    "KEEP",
    "Done",
    "Graph",
    "Group",
    "Member",
    "Method",
    "OneShot",
    "PruneInfo",
    "Pruned",
    "Rule",
    "Schedule",
    "StepInfo",
    "close_groups",
    "cofi",
    "constant",
    "cosine",
    "cubic",
    "cyclic",
    "finish",
    "gates",
    "grasp",
    "l0",
    "layer_sparsity",
    "linear",
    "lottery_ticket",
    "made_from",
    "magnitude",
    "masked",
    "movement",
    "obert",
    "obs",
    "one_shot",
    "oneshot",
    "option",
    "options",
    "platon",
    "prune",
    "random",
    "register",
    "rigl",
    "sampled",
    "sensitivity",
    "set",
    "shrink",
    "shrink_like",
    "shrink_module",
    "snip",
    "soft_weight_sharing",
    "sparsegpt",
    "sparsity",
    "spt",
    "ste",
    "steps",
    "synflow",
    "trace",
    "trace_module",
    "variational_dropout",
    "wanda",
]


def __getattr__(name: str) -> Any:
    """Loads a public name at its first use: the commands answer a mistake before jax is there."""
    if name in _METHODS:
        value = importlib.import_module(f"prune_jax.methods.{_METHODS[name]}").create
    elif name in _ONE_SHOT:
        value = importlib.import_module(f"prune_jax.oneshot.{name}").create
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'prune_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

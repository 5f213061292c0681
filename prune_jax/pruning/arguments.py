"""The arguments of prune, of init and of update: checked, each mistake with one message, and brought to one form."""

import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed, trees
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.method import Method
from prune_jax.pruning.plan import Rule
from prune_jax.pruning.schedules import Schedule
from prune_jax.pruning.stepping import PruneState
from prune_jax.pruning.structure import Group, Structure

Tree = Any


def _brief(given: Any) -> str:
    """What an argument is, for a message: its repr on one line, of at most 80 characters."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check(
    optimizer: Any, method: Any, schedule: Any, structure: str, scope: str, rules: Mapping[str, Rule] | None
) -> None:
    """Raises TypeError or ValueError for arguments of prune that are wrong for any network."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer is {_brief(optimizer)}; allowed: an optax optimizer, such as optax.adamw(1e-4)")
    if not isinstance(method, Method):
        raise TypeError(f"method is {_brief(method)}; allowed: a Method, such as pj.magnitude()")
    if not isinstance(schedule, Schedule | None):
        raise TypeError(f"schedule is {_brief(schedule)}; allowed: a Schedule, such as pj.constant(0.9), or None")
    if scope not in plan_lib.SCOPES:
        raise ValueError(f"scope is {scope!r}; allowed: {', '.join(plan_lib.SCOPES)}")
    if not isinstance(structure, str):
        raise TypeError(
            f"structure is {_brief(structure)}; allowed: a text, such as '2:4' or 'auto', and groups= for Groups"
        )
    structure_lib.parse(structure)
    if method.scheduled and schedule is None:
        raise ValueError(
            f"schedule is None; {method.name} needs one, such as pj.cubic(0.9, begin=0, end=1_000, every=100)"
        )
    if schedule is not None and not method.scheduled:
        raise ValueError(f"schedule is given, and {method.name} closes nothing while it trains; allowed: None")
    if not isinstance(rules, Mapping | None):
        raise TypeError(f'rules is {_brief(rules)}; allowed: a dict of pattern and Rule, such as {{"head": pj.KEEP}}')
    for pattern, rule in (rules or {}).items():
        if not isinstance(pattern, str | re.Pattern):
            raise TypeError(f"a rule's pattern is {pattern!r}; allowed: a text, a regular expression for names")
        if not isinstance(rule, Rule):
            raise TypeError(
                f"the rule {pattern!r} is {_brief(rule)}; allowed: a Rule, such as pj.Rule(sparsity=0.5), or pj.KEEP"
            )
        if rule.structure is not None and structure_lib.parse(rule.structure).kind == "groups":
            raise ValueError(f"a rule's structure is {rule.structure!r}; allowed: unstructured, block:RxC, n:m")
        if rule.sparsity and schedule is not None and not schedule.final:
            raise ValueError(
                f"the rule {pattern!r} has sparsity {rule.sparsity:g}, which is reached on the schedule's way, and the "
                "schedule ends at 0; allowed: a schedule that ends above 0, and pj.KEEP for all that is to stay dense"
            )


def check_target(target: str, groups: Any, structure: Structure, scope: str) -> None:
    """Raises ValueError for a target that is not known, or that goes with other groups, structures or scopes."""
    if target not in ("weights", "flops", "seconds"):
        raise ValueError(f"target is {target!r}; allowed: weights, flops, seconds")
    if target == "weights":
        return
    if not hasattr(groups, "costs"):
        raise ValueError(f"target is {target!r}; allowed: weights, unless groups is what pj.trace returned")
    plan_lib.check_costs(target, structure, scope)


def check_update(state: Any, params: Tree) -> None:
    """Raises TypeError or ValueError for a state that is none of prune's, or that is one of other params."""
    if not isinstance(state, PruneState):
        raise TypeError(
            f"state is a {type(state).__name__}; allowed: what init or update has returned, as in "
            "tx.update(grads, state, params)"
        )
    leaves = trees.by_name(params)
    of_init = jax.tree_util.tree_leaves_with_path(packed.shapes(state.gates), is_leaf=lambda gate: gate is None)
    gates = {trees.name(path): gate for path, gate in of_init}
    for name in (*leaves, *(name for name, gate in gates.items() if gate is not None)):
        gate = gates.get(name)
        if name not in gates or name not in leaves or (gate is not None and gate.shape != jnp.shape(leaves[name])):
            raise ValueError(f"the params of update differ from those of init in {name!r}, or in its shape")


def units(groups: Any) -> tuple[Group, ...]:
    """The groups of a graph, of what is trained; or those of a sequence. TypeError for anything else."""
    if hasattr(groups, "groups"):
        trained = lambda group: tuple(m for m in group.members if m.name not in groups.untrained)  # noqa: E731
        return tuple(group._replace(members=trained(group)) for group in groups.groups.values())
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise TypeError(f"groups is {_brief(groups)}; allowed: what pj.trace returned, or a sequence of Group")
    return tuple(groups)


def key(seed: int | jax.Array) -> tuple[jax.Array, Any]:
    """(a typed PRNG key of a seed, its implementation)."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        typed = seed
    elif isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        try:
            typed = jax.random.key(seed)
        except OverflowError as error:
            raise ValueError(f"seed is {seed}; allowed: a whole number of 64 bits") from error
    else:
        raise TypeError(f"seed is {_brief(seed)}; allowed: a whole number, or a key of jax.random.key")
    return typed, jax.random.key_impl(typed)


def gates_for(params: Tree, rules: Mapping[str, Rule], groups: Sequence[Group]) -> Tree:
    """An open gate per kernel, per leaf that a rule names and does not keep, and per member of a group."""
    names = [trees.name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two leaves of params are called {twice!r}; allowed: names that differ")
    own = plan_lib.assigned(params, rules)
    members = {member.name: group for group in groups for member in group.members}
    if absent := next((name for name in members if name not in names), None):
        raise ValueError(
            f"the group {members[absent].name!r}: there is no weight {absent!r}; the weights are {', '.join(names[:8])}"
        )

    def prunable(name: str, leaf: jax.Array) -> bool:
        return not own[name].keep if name in own else name in members or gates_lib.is_kernel(name, leaf)

    gates = gates_lib.open_gates(params, prunable)
    if not jax.tree.leaves(gates):
        keeping = dict.fromkeys(pattern for pattern in plan_lib.ruled(params, rules).values() if rules[pattern].keep)
        kept = f" that no rule keeps ({', '.join(map(repr, keeping))})" if keeping else ""
        raise ValueError(
            f"there is no kernel to prune{kept}: the leaves of params are {', '.join(names[:8]) or 'none'}"
        )
    return gates

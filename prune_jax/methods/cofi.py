"""CoFi (Xia, Zhong and Chen, 2022, arXiv:2204.00408): masks of fine and coarse units, trained together to a sparsity.

Every unit of the structure (a head, a feed-forward column, a channel of the residual width, a layer) has a hard
concrete mask z as in l0.py. So has each group that `whole` names, as a whole: the paper's layers of attention and of
feed-forward. The masks multiply: a weight is there if its head, its layer of attention, its layer and its channel are.
With p = P(z > 0) a group is expected to keep the fraction p_whole * mean(p_unit), and what is left of the network is
the sum over its kernels of size * product of these fractions, or the same of the plan's costs. The loss has

  lambda_1 * (s - t) + lambda_2 * (s - t)^2,    s the expected sparsity, t the schedule's target at this step,

whose multipliers climb while everything else descends; a linear schedule is the paper's. Before the schedule begins,
while t is 0, there is no such term: its multipliers would grow for nothing. As in the authors' code, log_alpha stays
within log 100 of 0, for beyond that its derivatives are too small for a mask to come back. At the schedule's events the
units of lowest p close until the target is met exactly. Outside training an open unit's mask is 1.

A mask scales the kernels that read its axis, so once; elsewhere along it weights are whole or 0. The mask of a layer,
which has no axis, scales what reads the units inside it. The paper's layer distillation is config.distill's.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.methods.l0 import concrete
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo
from prune_jax.pruning.options import made_from, option, options
from prune_jax.pruning.part import Leaves, Part
from prune_jax.pruning.plan import Plan
from prune_jax.pruning.structure import Group, Member, Structure

Tree = Any
SCALES, CLOSES = "scales", "closes"  # what a mask does along an axis: multiply, or only close where it is 0


@options
class Options:
    """The options of CoFi."""

    whole: str = option("head+heads+ffn", "Kinds or names of groups, joined by +, that have a mask as a whole, too.")
    score_learning_rate: float = option(0.1, "The rate at which Adam trains log_alpha.", 0, 1000)
    multiplier_learning_rate: float = option(0.1, "The rate at which Adam trains the two multipliers.", 0, 1000)
    start: float = option(0.99, "The median of s at first, which sets log_alpha.", 0, 1, inclusive=False)
    beta: float = option(2 / 3, "The temperature of the distribution.", 0, 100, inclusive=False)
    stretch: float = option(0.1, "How far s is stretched beyond 0 and 1, -gamma and zeta - 1.", 0, 10, inclusive=False)


def _reads(member: Member, rank: int) -> bool:
    """Whether an axis counts a kernel's inputs. Of three axes the first does: attention's outputs have two of those."""
    return rank >= 2 and member.axis == (0 if rank == 3 else rank - 2)


def _scaled(group: Group, groups: Sequence[Group], ranks: dict[str, int]) -> set[tuple[str, int]]:
    """The (kernel, axis) that a group's mask scales."""
    own = {member.name for member in group.members}

    def inside(other: Group) -> bool:
        theirs = {member.name for member in other.members}
        return own > theirs or (own == theirs and other.size > 1)

    within = [other for other in groups if inside(other)]
    if group.size == 1 and within:
        readers = {m.name for other in within for m in other.members if _reads(m, ranks[m.name])}
        return {(m.name, m.axis) for m in group.members if m.name in readers}
    reading = {(m.name, m.axis) for m in group.members if _reads(m, ranks[m.name])}
    return reading or {(m.name, m.axis) for m in group.members}


def _along(plan: Plan, whole: Structure, gates: Tree) -> Tree:
    """{kernel: {axis: {way: {mask: (length of the axis,) int32, its unit at each index or -1}}}}, nested by name."""
    ranks = {name: leaf.ndim for name, leaf in trees.by_name(gates).items()}
    along: dict[str, dict[str, jax.Array]] = {}
    for part in plan.parts:
        for group in part.groups:
            scaled = _scaled(group, part.groups, ranks)
            for m in group.members:
                masks = along.setdefault(f"{m.name}/{m.axis}/{SCALES if (m.name, m.axis) in scaled else CLOSES}", {})
                masks[group.name] = jnp.asarray(m.units, jnp.int32)
                if _whole(group, whole):
                    masks[f"{group.name}.whole"] = jnp.minimum(jnp.asarray(m.units, jnp.int32), 0)
    return trees.nested(along, "/")


def _at(name: str, along: Tree) -> Tree:
    """What `_along` has of a kernel; {} where it is in no group."""
    return functools.reduce(lambda node, part: node.get(part, {}), name.split("/"), along)


def _check(plan: Plan, whole: Structure) -> None:
    """Raises ValueError where masks would multiply and the scope is not of their product, or where whole has no use."""
    groups = [group for part in plan.parts for group in part.groups]
    if plan.scope == "local":
        for (one, a), (other, b) in itertools.combinations([(g, m) for g in groups for m in g.members], 2):
            apart = a.name != b.name or (a.axis == b.axis and not ((a.units >= 0) & (b.units >= 0)).any())
            if not apart:
                raise ValueError(
                    f"scope is 'local', and units of {one.name!r} and of {other.name!r} meet in {a.name}, where their "
                    "masks multiply; allowed: global, whose target is of what they leave together"
                )
    if whole.text == Options().whole:
        return  # names what a transformer has, as many as the network has of them
    for name in whole.kinds:
        if not any(_whole(group, Structure(name, "groups", (name,))) for group in groups):
            able = dict.fromkeys(group.kind for group in groups if group.size > 1)
            raise ValueError(
                f"whole is {whole.text!r}, and the structure has no group of several units of kind or name {name!r}; "
                f"allowed: {', '.join([*able, 'empty'])}"
            )


def _whole(group: Group, whole: Structure) -> bool:
    """Whether a group has a mask as a whole besides those of its units."""
    return group.size > 1 and structure_lib.names(whole, group)


def sparsity(plan: Plan, gates: Tree, chance: Leaves) -> tuple[jax.Array, list[float]]:
    """(() float32 the expected sparsity of what a plan covers, the share of it that each part has).

    Args:
      gates: arrays or shapes; chance: of each mask not to be 0, by name.
    """
    flat = trees.by_name(gates)
    sizes = [float(sum(flat[name].size for name in part.names)) for part in plan.parts]
    shares = [size / max(sum(sizes), 1) for size in sizes]
    closed = jnp.float32(0)
    for part, share in zip(plan.parts, shares, strict=True):
        if part.groups:
            cost = part.cost(flat)
            names = [group.name for group in part.groups]
            kept = {name: jnp.mean(chance[name]) * jnp.mean(chance.get(f"{name}.whole", 1.0)) for name in names}
            closed += share * (1 - cost.of(kept) / cost.dense(names))
        else:
            sums = (jnp.sum(chance[name]) * size for name, size in part.sizes(flat).items())
            closed += share * (1 - sum(sums, jnp.float32(0)) / max(sum(flat[name].size for name in part.names), 1))
    return closed, shares


def _repeated(z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Masks of blocks, one for each of their gates; those of gates by themselves as they are."""
    for axis, (few, many) in enumerate(zip(z.shape, shape, strict=True)):
        z = jnp.repeat(z, many // few, axis) if few != many else z
    return z


def _climbing(x: jax.Array) -> jax.Array:
    """x, whose derivative is -1: what descends on the loss makes it larger."""
    return 2 * jax.lax.stop_gradient(x) - x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _held(x: jax.Array, limit: float) -> jax.Array:
    """x within [-limit, limit]; beyond, a descent on the loss moves it back and no further out."""
    return jnp.clip(x, -limit, limit)


def _held_bwd(limit: float, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where((x >= limit) & (g < 0) | (x <= -limit) & (g > 0), 0, g),)


_held.defvjp(lambda x, limit: (_held(x, limit), x), _held_bwd)


def _most(part: Part) -> float:
    """The greatest sparsity of a part."""
    n, m = part.structure.sizes
    return 1 - n / m if part.structure.kind == "n:m" else 1.0


@made_from(Options)
def create(options: Options) -> Method:
    """Learns which heads, columns, channels and layers go; take the loss at pj.sampled.

    Raises:
      ValueError: at init, groups that meet in a kernel with the local scope; a name in `whole` that no group has.
    Example:
      >>> import optax, prune_jax as pj
      >>> method, schedule = pj.cofi(), pj.linear(0.75, begin=100, end=1000, every=100)
      >>> # groups = pj.trace(apply, params, x)
      >>> # tx = pj.prune(optax.adam(1e-3), method, schedule, structure="heads+hidden", groups=groups, scope="global")
      >>> # grads = jax.grad(lambda params: loss(pj.sampled(method, params, state)))(params)
    """
    first = options.beta * math.log(options.start / (1 - options.start))
    shift = options.beta * math.log(options.stretch / (1 + options.stretch))
    limit = max(math.log(100), abs(first))
    whole = Structure("", "")
    if options.whole:
        with contextlib.suppress(ValueError):
            whole = structure_lib.parse(options.whole)
        if whole.kind != "groups":
            raise ValueError(f"whole is {options.whole!r}; allowed: kinds or names of groups joined by +, or empty")

    def init(params, gates, plan):
        _check(plan, whole)
        return {"along": _along(plan, whole, gates)}

    def init_trainable(params, gates, plan):
        groups = {group.name: group for part in plan.parts for group in part.groups}
        units = {name: jnp.full(leaf.shape, first, jnp.float32) for name, leaf in plan.opened(gates).items()}
        kernels = trees.nested({name: leaf for name, leaf in units.items() if name not in groups}, "/")
        masks = {name: units[name] for name in groups}
        masks |= {f"{name}.whole": jnp.full(1, first) for name, group in groups.items() if _whole(group, whole)}
        multipliers = {"linear": jnp.float32(0), "square": jnp.float32(0)}
        return {"log_alpha": {"kernels": kernels, "groups": masks}, "multipliers": multipliers}

    def by_name(masks: Tree) -> Leaves:
        """log_alpha, or what is made of it, by the name of a group's mask or of a kernel."""
        return masks["groups"] | trees.by_name(masks["kernels"])

    def sample(kernels, gates, trainable, key, state):
        def drawn(log_alpha, key):
            u = jax.random.uniform(key, log_alpha.shape, minval=1e-6, maxval=1 - 1e-6)
            return concrete(_held(log_alpha, limit), u, options.beta, options.stretch)

        of_groups, of_kernels = jax.random.split(key)
        masks, own = trainable["log_alpha"]["groups"], trainable["log_alpha"]["kernels"]
        z = trees.by_name(jax.tree.map(drawn, own, trees.split_key(of_kernels, own)))
        if masks:  # few numbers in many leaves: one draw for all of them
            names = sorted(masks)  # inside jit a dict's keys are sorted, outside they need not be
            all_of_them = drawn(jnp.concatenate([masks[name] for name in names]), of_groups)
            ends = np.cumsum([masks[name].size for name in names])[:-1]
            z |= dict(zip(names, jnp.split(all_of_them, ends), strict=True))

        def masked(path, w, gate):
            name, factor = trees.name(path), gate.astype(jnp.float32)
            if name in z:
                factor *= _repeated(z[name], w.shape)
            for axis, masks in _at(name, state["along"]).items():
                for way in masks:
                    for mask, units in masks[way].items():
                        values = z[mask] if way == SCALES else (z[mask] > 0).astype(jnp.float32)
                        along = jnp.where(units < 0, 1.0, values[units])
                        factor *= along.reshape([-1 if i == int(axis) else 1 for i in range(w.ndim)])
            return w * factor.astype(w.dtype)

        return jax.tree_util.tree_map_with_path(masked, kernels, gates)

    def penalty(params, gates, trainable, step, hyper, plan):
        opened = plan.opened(gates)
        chance = {
            name: jnp.where(opened.get(name, True), jax.nn.sigmoid(_held(leaf, limit) - shift), 0)
            for name, leaf in by_name(trainable["log_alpha"]).items()
        }
        expected, shares = sparsity(plan, gates, chance)
        goals = [jnp.minimum(part.goal(hyper["target"]), _most(part)) for part in plan.parts]
        goal = sum(goal * share for goal, share in zip(goals, shares, strict=True))
        linear, square = (_climbing(trainable["multipliers"][name]) for name in ("linear", "square"))
        lagrangian = linear * (expected - goal) + square * (expected - goal) ** 2
        return jnp.where(hyper["target"] > 0, lagrangian, 0.0)

    def prune(info: PruneInfo) -> Pruned:
        log_chance = {
            name: jax.nn.log_sigmoid(leaf - shift) for name, leaf in by_name(info.trainable["log_alpha"]).items()
        }
        scores = {name: leaf + log_chance.get(f"{name}.whole", 0.0) for name, leaf in log_chance.items()}
        return Pruned(info.plan.close_units(info.gates, scores, info.target, info.key))

    return Method(
        "cofi",
        hyper={"target": 0.0},
        rates={"log_alpha": options.score_learning_rate, "multipliers": options.multiplier_learning_rate},
        init=init,
        init_trainable=init_trainable,
        sample=sample,
        penalty=penalty,
        prune=prune,
    )

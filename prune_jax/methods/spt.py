"""SPT, structured pruning with training.

After every training step the batch is run again without dropout: once as it is (normal_loss), and E times with a
random sample of epsilon of the open gates closed for that pass alone (pruned_loss). The importance of a sample,

  importance = pruned_loss - normal_loss,

is positive where the loss rises without those weights. Each sampled weight's score follows it as an exponential
average, score = alpha * new + (1 - alpha) * score, the first visit taking the value itself; a weight never visited
scores 0. The open gates of lowest score are closed until the schedule's target is met. Only gates that the plan may
close are explored.

With `center` (the default) a running mean of the importance, one per layer type, is subtracted first, so that 0, the
score of an unvisited weight, means neutral; the literal form ranks unvisited weights below all that cost anything.
With `explore_per_layer` a step explores one layer type, the types in cyclic order.

`credit` says who shares the importance of a pass:

weight  every gate of its sample: thousands share one number.
group   the units of the plan's structure (heads, feed-forward columns, blocks) in place of single gates. A pass closes
        at least one of each kind on average, however small epsilon is.
layer   prune_jax.methods.spt_layers.

Four ways to a lower variance, for weight and group:

control_variate  the step's gradient g tells the effect of a sample to first order, -sum g * w. It is subtracted from
        the importance, the sample's units share what is left in equal parts, and a unit's score is its share plus the
        average of its own -sum g * w, which no other unit blurs.
antithetic  passes 2i and 2i + 1 draw samples with no gate in common.
candidates=threshold  samples come from the lower half of each layer's scores alone, at twice the rate: those near to
        closing are measured more often, the safe ones not again.
absolute  |importance| (or what the control variate leaves of it) and |g * w|. Signed scores remove first whatever
        lowers this batch's loss, all of it in one direction.

What exploration adds beside the first-order part is measured in docs/results: on MNIST and SST-2 control_variate with
absolute chooses as the average of |g * w| alone does.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.methods import exploration, spt_layers
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed, select, trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, option, options
from prune_jax.pruning.plan import Plan, Units

Tree = Any

_HALF = 0.5  # the share of a layer's open units that are candidates with candidates=threshold


@options
class Options:
    """The options of SPT."""

    epsilon: float = option(0.01, "The share of the open gates that a pass closes.", 0, 1, inclusive=False)
    reward_alpha: float = option(0.125, "The weight of a new importance in a score's average.", 0, 1)
    explorations: int = option(1, "Exploration passes per step.", 1, 10_000)
    explore_per_layer: bool = option(False, "Whether a step explores one layer type, in cyclic order.")
    center: bool = option(True, "Whether a running mean per layer type is subtracted from the importance.")
    credit: str = option("weight", "Who shares the reward of a pass.", choices=("weight", "layer", "group"))
    inside: str = option(
        "magnitude", "With credit=layer, who closes first inside a layer.", choices=("magnitude", "movement")
    )
    control_variate: bool = option(
        False, "Whether scores are first-order effects, and passes explore what those leave."
    )
    antithetic: bool = option(False, "Whether passes come in pairs whose samples have no gate in common.")
    candidates: str = option(
        "uniform",
        "Samples come from all open gates, or from the lower half of scores.",
        choices=("uniform", "threshold"),
    )
    absolute: bool = option(False, "Whether the size of an effect on the loss counts in place of its sign.")
    chunk: int | None = option(None, "Passes at once under vmap; None, 1 on a CPU and all elsewhere.", 1, 10_000)


def problem(given: Options) -> tuple[str, Any, str] | None:
    """(option, value, what is allowed) of options that contradict each other; None if they agree."""
    if given.antithetic and given.explorations % 2:
        return "explorations", given.explorations, "an even number with antithetic, which pairs them"
    if given.credit == "layer":
        for name in ("control_variate", "antithetic", "absolute"):
            if getattr(given, name):
                return name, True, "False with credit=layer, which scores no weights"
        if given.candidates != "uniform":
            return "candidates", given.candidates, "uniform with credit=layer, which scores no weights"
    elif given.inside != "magnitude":
        return "inside", given.inside, f"magnitude with credit={given.credit}, which has its own scores"
    return None


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights whose absence raises the loss least.

    Raises:
      ValueError: options that contradict each other.
    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-4), pj.spt(epsilon=0.05), pj.cubic(0.9, begin=0, end=1000, every=100))
      >>> # updates, state = tx.update(grads, state, params, value_fn=loss)
    """
    if wrong := problem(options):
        raise ValueError("{} is {!r}; allowed: {}".format(*wrong))
    if options.credit == "layer":
        return spt_layers.create(options)
    return Method(
        "spt",
        hyper={"epsilon": options.epsilon, "reward_alpha": options.reward_alpha},
        explores=True,
        init=lambda params, gates, plan: _init(options, gates, plan),
        after_step=lambda info, state: _after_step(options, info, state),
        prune=lambda info: _prune(options, info),
        end_period=_end_period,
        end_epoch=lambda gates, state, plan: exploration.end_epoch(
            _opened(options, plan, gates), state, plan, options.explore_per_layer
        ),
    )


# What is drawn and scored: gates, or units ---------------------------------------------------------------------------


def _units(options: Options, plan: Plan) -> Units | None:
    """The units that share credit; None where gates do. ValueError where the plan has none to share it."""
    if options.credit == "weight":
        return None
    if plan.units is None:
        raise ValueError("credit is 'group'; allowed: with a structure of groups of the network, or block:RxC")
    return plan.units


def _opened(options: Options, plan: Plan, gates: Tree) -> Tree:
    units = _units(options, plan)
    return gates if units is None else units.of(gates)


def _totals(options: Options, plan: Plan, tree: Tree) -> Tree:
    units = _units(options, plan)
    return tree if units is None else units.totals(tree)


def _spread(options: Options, plan: Plan, gates: Tree, opened: Tree) -> Tree:
    units = _units(options, plan)
    return opened if units is None else units.spread(gates, opened)


def _covered(options: Options, plan: Plan, opened: Tree) -> np.ndarray:
    """(leaves,) bool: whether the plan may close the leaf. Units are its own."""
    if options.credit == "group":
        return np.ones(len(jax.tree.leaves(opened)), bool)
    return np.array([plan.covers(name) for name in trees.by_name(opened)], bool)


# The step ------------------------------------------------------------------------------------------------------------


def update_scores(scores, visited, drawn, reward, alpha):
    """Gives one pass's reward to the units of its sample: the exponential average, started by the first visit.

    Args:
      scores: (shape) float32; visited, drawn: (shape) bool; reward, alpha: () float32.
    Returns:
      (scores, visited) with the drawn units moved.
    """
    return jnp.where(drawn, exploration.average(visited, scores, reward, alpha), scores), visited | drawn


def closing_order(state):
    """Who is closed first, lowest value first: the scores, with each unit's own first-order effect if there is one."""
    if "first_order" not in state:
        return state["scores"]
    return jax.tree.map(jnp.add, state["scores"], state["first_order"])


def leaf_epsilons(
    pool: list[jax.Array], kinds: np.ndarray, active: jax.Array, epsilon: jax.Array, at_least_one: bool
) -> list[jax.Array]:
    """The rate at which each leaf's units are drawn.

    Args:
      pool: the units of each leaf that may be drawn, boolean.
      kinds: (leaves,) the layer type of each leaf.
      active: (types,) bool, the types that this step explores.
      epsilon: () float32.
      at_least_one: whether the rate of a type is raised until one of its units is drawn on average.
    """
    rates = [epsilon] * len(active)
    if at_least_one:
        counts = [jnp.sum(unit, dtype=jnp.float32) for unit in pool]
        of_type = [sum(n for n, kind in zip(counts, kinds, strict=True) if kind == t) for t in range(len(rates))]
        rates = [jnp.maximum(rate, 1 / jnp.maximum(n, 1)) for rate, n in zip(rates, of_type, strict=True)]
    return [rates[kind] * active[kind] for kind in kinds]


def pass_value(
    importance: jax.Array, drawn: list[jax.Array], first: list[jax.Array] | None, absolute: bool
) -> jax.Array:
    """() float32: what each unit of a pass's sample is credited with.

    Args:
      importance: () float32, of the pass; drawn: the sample, boolean.
      first: the first-order effect of each unit; None without a control variate.
    """
    if first is None:
        return jnp.abs(importance) if absolute else importance
    rest = importance - sum(jnp.sum(jnp.where(out, f, 0)) for out, f in zip(drawn, first, strict=True))
    rest = jnp.abs(rest) if absolute else rest
    return rest / jnp.maximum(sum(jnp.sum(out, dtype=jnp.float32) for out in drawn), 1)


def first_orders(options: Options, info: StepInfo) -> list[jax.Array]:
    """-sum g * w of each unit, the gradient's estimate of its importance, in leaf order."""
    grads, weights = (gates_lib.kernels(tree, info.gates) for tree in (info.grads, info.params_before))
    return jax.tree.leaves(_totals(options, info.plan, jax.tree.map(lambda g, w: -g * w, grads, weights)))


def lower_half(state: dict, opened: Tree, step: jax.Array) -> tuple[Tree, jax.Array]:
    """(the units of the lower half of each leaf's closing order, their thresholds, which are kept for some steps)."""
    leaves, treedef = jax.tree.flatten(opened)
    order = jax.tree.leaves(closing_order(state))

    def thresholds():
        return jnp.stack([select.lowest_threshold(*pair, _HALF) for pair in zip(order, leaves, strict=True)])

    refresh = state["stale"] | (step % spt_layers.REFRESH == 0)
    threshold = jax.lax.cond(refresh, thresholds, lambda: state["threshold"])
    lowest = [select.among_lowest(*pair, threshold[l]) for l, pair in enumerate(zip(order, leaves, strict=True))]
    return jax.tree.unflatten(treedef, lowest), threshold


def _init(options: Options, gates: Tree, plan: Plan) -> dict:
    opened = _opened(options, plan, gates)
    types = len(plan.type_indices(opened)[0])
    zeros = jax.tree.map(lambda unit: jnp.zeros_like(unit, jnp.float32), opened)
    state = {
        "scores": zeros,
        "visited": packed.pack(jax.tree.map(lambda unit: jnp.zeros_like(unit, bool), opened)),
        "mean": jnp.zeros(types, jnp.float32),  # running mean importance of each layer type
        "explored": jnp.zeros(types, bool),  # whether that mean has its first value
        **exploration.no_statistics(types),
    }
    if options.control_variate:
        state["first_order"] = jax.tree.map(jnp.copy, zeros)
    if options.candidates == "threshold":
        state["threshold"] = jnp.zeros(len(jax.tree.leaves(opened)), jnp.uint32)
        state["stale"] = jnp.bool_(True)  # units may have closed since the thresholds were taken
    return state


def _active_types(
    options: Options, kinds: np.ndarray, covered: np.ndarray, num_types: int, step: jax.Array
) -> jax.Array:
    """(types,) bool: the layer types that a step explores, of those that the plan may close."""
    present = np.isin(np.arange(num_types), kinds[covered])
    if not options.explore_per_layer or not present.any():
        return jnp.asarray(present)
    return jnp.arange(num_types) == jnp.asarray(np.flatnonzero(present))[step % present.sum()]


def _after_step(options: Options, info: StepInfo, state: dict) -> dict:
    opened = _opened(options, info.plan, info.gates)
    _, kinds = info.plan.type_indices(opened)
    covered = _covered(options, info.plan, opened)
    num_types = state["mean"].shape[0]
    active = _active_types(options, kinds, covered, num_types, info.step)
    alpha, epsilon = info.hyper["reward_alpha"], info.hyper["epsilon"]
    treedef = jax.tree.structure(opened)
    new: dict = {}
    pool, rate = opened, epsilon
    if options.candidates == "threshold":
        pool, new["threshold"] = lower_half(state, opened, info.step)
        new["stale"] = jnp.zeros_like(state["stale"])
        rate = epsilon / _HALF
    rates = leaf_epsilons(jax.tree.leaves(pool), kinds, active, rate, options.credit == "group")
    rates = [rate if may else jnp.zeros_like(rate) for rate, may in zip(rates, covered, strict=True)]

    def drawn_in(e):
        return gates_lib.sample(info.key, info.step, e, pool, rates, options.antithetic)

    def gates_of(e):
        left = jax.tree.map(lambda unit, out: unit & ~out, opened, drawn_in(e))
        return _spread(options, info.plan, info.gates, left)

    importances = exploration.importances(info, gates_of, options.explorations, options.chunk)
    first = first_orders(options, info) if options.control_variate else None
    scores, visited = jax.tree.leaves(state["scores"]), jax.tree.leaves(packed.unpack(state["visited"]))
    mean, explored = state["mean"], state["explored"]
    for e in range(options.explorations):
        drawn = jax.tree.leaves(drawn_in(jnp.int32(e)))
        value = pass_value(importances[e], drawn, first, options.absolute)
        # The mean of the earlier passes is the baseline; the very first pass has none and is neutral.
        baseline = jnp.where(explored, mean, value) if options.center else jnp.zeros(num_types)
        for l, kind in enumerate(kinds):
            scores[l], visited[l] = update_scores(scores[l], visited[l], drawn[l], value - baseline[kind], alpha)
        mean = jnp.where(active, exploration.average(explored, mean, value, alpha), mean)
        explored = explored | active
    if first is not None:
        # A score looks back on 1 / (alpha * epsilon * E) steps, and so does this; the first steps weigh alike.
        gain = jnp.maximum(alpha * epsilon * options.explorations, 1 / (info.step + 1))
        effects = [jnp.abs(f) if options.absolute else f for f in first]
        old = jax.tree.leaves(state["first_order"])
        moved = [gain * f + (1 - gain) * o for f, o in zip(effects, old, strict=True)]
        new["first_order"] = jax.tree.unflatten(treedef, moved)
    new |= {
        "scores": jax.tree.unflatten(treedef, scores),
        "visited": packed.pack(jax.tree.unflatten(treedef, visited), like=state["visited"]),
        "mean": mean,
        "explored": explored,
        "epoch_sum": state["epoch_sum"] + active * jnp.sum(importances),
        "epoch_count": state["epoch_count"] + active * options.explorations,
    }
    return exploration.where_finite(importances, new, state)


def _prune(options: Options, info: PruneInfo) -> Pruned:
    closer = _units(options, info.plan) or info.plan
    return Pruned(closer.close(info.gates, closing_order(info.state), info.target, info.key))


def _end_period(state: dict) -> dict:
    return {**state, "stale": jnp.ones_like(state["stale"])} if "stale" in state else state

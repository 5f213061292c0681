"""SPT with credit=layer: exploration sets each layer's budget, magnitude or movement chooses inside it.

A pass gives one number, and a layer is few enough things for that number to reach. Pass e of step t closes, in layer
(t * E + e) mod L alone, the next epsilon share of its open gates in their order inside the layer: what pruning would
take first. L counts the layers that the plan may close. Its importance is thus a marginal loss, measured to second
order and beyond, on the batch of the step.

The smallest weights of a dense layer weigh next to nothing: where epsilon is a percent of them, rounding and the
batch's slope are most of what a pass measures. The program's default epsilon is 0.3 here.

Budgets. Near an optimum the loss of closing gates grows as the sum of their w^2 (optimal brain damage, LeCun et al.,
1990, with one curvature per layer), so the cost of the next gate of layer l is

  c_l * w^2,   c_l = sum of the importances / sum of the w^2 that the passes closed,

and the budgets that close a given total at the least sum of costs are those of one water level: the gates with the
lowest c_l * w^2 of the whole network. The total is exact, and the largest weight of a layer goes last of all, so that
none is emptied. Both sums are over all passes, those of an epoch counting half as much as those of the next: what one
batch tells is noise for the most part, its sign too. With magnitude inside, the same order closes them; with movement
it only says how many each layer closes. Neither the scope nor center nor reward_alpha plays a part.
"""

from typing import Any

import jax
import jax.numpy as jnp

from prune_jax.methods import exploration
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import select, trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.plan import Plan

Tree = Any

REFRESH = 32  # steps between updates of the candidates' thresholds, each of which costs eight readings of the weights
_LEAST = 1e-3  # of the largest curvature: a layer whose loss fell still closes its small weights first


def curvatures(importance: jax.Array, squares: jax.Array, explored: jax.Array) -> jax.Array:
    """(layers,) float32 c_l > 0; a layer that no pass has explored has the mean of the others, or 1 if there are none.

    Args:
      importance, squares: (layers,) float32, sums over the passes; explored: (layers,) bool.
    """
    measured = jnp.maximum(importance, 0) / jnp.maximum(squares, jnp.finfo(jnp.float32).tiny)
    known = jnp.where(explored, measured, 0)
    most = jnp.max(known)
    mean = jnp.sum(known) / jnp.maximum(jnp.sum(explored), 1)
    filled = jnp.maximum(jnp.where(explored, measured, mean), _LEAST * most)
    return jnp.where(most > 0, filled, jnp.ones_like(filled))


def costs(params: Tree, gates: Tree, curvature: jax.Array) -> Tree:
    """c_l * w^2 of every gate, a tree like gates; infinite for the largest open weight of each layer."""
    leaves, treedef = jax.tree.flatten(gates)
    scored = []
    for l, (gate, w) in enumerate(zip(leaves, jax.tree.leaves(gates_lib.kernels(params, gates)), strict=True)):
        size = jnp.where(gate, jnp.abs(w), -1)
        scored.append(jnp.where(size == jnp.max(size, initial=-1), jnp.inf, curvature[l] * w * w))
    return jax.tree.unflatten(treedef, scored)


def create(options: Any) -> Method:
    """The method of SPT's options with credit=layer."""
    moves = options.inside == "movement"

    def init(params: Tree, gates: Tree, plan: Plan) -> dict:
        if moves and any(part.structure.kind not in ("unstructured", "encoder") for part in plan.parts):
            raise ValueError("inside is 'movement'; allowed: with a structure of unstructured or encoder")
        layers = len(jax.tree.leaves(gates))
        state = {
            "importance": jnp.zeros(layers, jnp.float32),
            "squares": jnp.zeros(layers, jnp.float32),
            "explored": jnp.zeros(layers, bool),
            "threshold": jnp.zeros(layers, jnp.uint32),
            "stale": jnp.bool_(True),  # gates may have closed since the thresholds were taken
            **exploration.no_statistics(len(plan.type_indices(gates)[0])),
        }
        if moves:
            state["movement"] = gates_lib.zeros(gates)
        return state

    def after_step(info: StepInfo, state: dict) -> dict:
        leaves, treedef = jax.tree.flatten(info.gates)
        weights = jax.tree.leaves(gates_lib.kernels(info.params, info.gates))
        before_step, state = state, dict(state)
        order = [jnp.abs(w) for w in weights]
        if moves:
            before, grads = (gates_lib.kernels(tree, info.gates) for tree in (info.params_before, info.grads))
            state["movement"] = jax.tree.map(lambda s, w, g: s - w * g, state["movement"], before, grads)
            order = jax.tree.leaves(state["movement"])

        def thresholds():
            share = info.hyper["epsilon"]
            return jnp.stack([select.lowest_threshold(*pair, share) for pair in zip(order, leaves, strict=True)])

        refresh = state["stale"] | (info.step % REFRESH == 0)
        state["threshold"] = jax.lax.cond(refresh, thresholds, lambda: state["threshold"])
        state["stale"] = jnp.zeros_like(state["stale"])
        nexts = [select.among_lowest(order[l], gate, state["threshold"][l]) for l, gate in enumerate(leaves)]
        closable = jnp.array([l for l, name in enumerate(trees.by_name(info.gates)) if info.plan.covers(name)])

        def layer_of(e):
            return closable[(info.step * options.explorations + e) % closable.size]

        def gates_of(e):
            left = [gate & ~(out & (layer_of(e) == l)) for l, (gate, out) in enumerate(zip(leaves, nexts, strict=True))]
            return jax.tree.unflatten(treedef, left)

        importances = exploration.importances(info, gates_of, options.explorations, options.chunk)
        squares = jnp.stack([jnp.sum(jnp.where(out, w * w, 0)) for out, w in zip(nexts, weights, strict=True)])
        types = jnp.asarray(info.plan.type_indices(info.gates)[1])
        for e in range(options.explorations):
            chosen = jnp.arange(len(leaves)) == layer_of(e)
            for name, value in (("importance", importances[e]), ("squares", squares)):
                state[name] += jnp.where(chosen, value, 0)
            state["explored"] |= chosen
            kind = types[layer_of(e)]
            state["epoch_sum"] = state["epoch_sum"].at[kind].add(importances[e])
            state["epoch_count"] = state["epoch_count"].at[kind].add(1)
        return exploration.where_finite(importances, state, before_step)

    def prune(info: PruneInfo) -> Pruned:
        curvature = curvatures(*(info.state[name] for name in ("importance", "squares", "explored")))
        cost = costs(info.params, info.gates, curvature)
        closed = info.plan._replace(scope="global").close(info.gates, cost, info.target, info.key)
        if not moves:
            return Pruned(closed)
        before, treedef = jax.tree.flatten(info.gates)
        budgets = [jnp.sum(b & ~a, dtype=jnp.uint32) for b, a in zip(before, jax.tree.leaves(closed), strict=True)]
        lowest = select.lowest(jax.tree.leaves(info.state["movement"]), before, jnp.stack(budgets), info.key)
        return Pruned(jax.tree.unflatten(treedef, [gate & ~low for gate, low in zip(before, lowest, strict=True)]))

    def end_period(state: dict) -> dict:
        older = {name: state[name] / 2 for name in ("importance", "squares")}
        return {**state, **older, "stale": jnp.ones_like(state["stale"])}

    return Method(
        "spt",
        hyper={"epsilon": options.epsilon},
        explores=True,
        init=init,
        after_step=after_step,
        prune=prune,
        end_period=end_period,
        end_epoch=lambda gates, state, plan: exploration.end_epoch(gates, state, plan, options.explore_per_layer),
    )

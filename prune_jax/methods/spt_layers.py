"""SPT with spt.credit=layer: exploration sets each layer's budget, magnitude or movement chooses inside it.

A pass gives one number, and a layer is few enough things for that number to reach. Pass e of step t closes, in layer
(t * E + e) mod L alone, the next epsilon share of its open gates in their order inside the layer: what pruning would
take first. Its importance is thus a marginal loss, measured to second order and beyond, on the batch of the step.

The smallest weights of a dense layer weigh next to nothing: where epsilon is a percent of them, rounding and the
batch's slope are most of what a pass measures. The default epsilon is 0.3 here.

Budgets. Near an optimum the loss of closing gates grows as the sum of their w^2 (optimal brain damage, LeCun et al.,
1990, with one curvature a layer), so the cost of the next gate of layer l is

  c_l * w^2,   c_l = sum of the importances / sum of the w^2 that the passes closed,

and the budgets that close a given total at the least sum of costs are those of one water level: the gates with the
lowest c_l * w^2 of the whole network. The total is exact, and the largest weight of a layer goes last of all, so that
none is emptied. Both sums are over all passes, those of an epoch counting half as much as those of the next: what one
batch tells is noise for the most part, its sign too. With magnitude inside, the same order closes them; with movement
it only says how many each layer closes. Neither pruning.scope, spt.center nor spt.reward_alpha plays a part.
"""

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax import gates as gates_lib
from prune_jax import groups
from prune_jax.methods import exploration
from prune_jax.methods.base import Method

REFRESH = 32  # steps between updates of the candidates' thresholds, each of which costs 32 counts of the weights
_LEAST = 1e-3  # of the largest curvature: a layer whose loss fell still closes its small weights first


def curvatures(importance: np.ndarray, squares: np.ndarray, explored: np.ndarray) -> np.ndarray:
    """(layers,) c_l > 0; a layer that no pass has explored has the mean of the others, or 1 if there are none.

    Args:
      importance, squares: (layers,) float32, sums over the passes; explored: (layers,) bool.
    """
    found = np.maximum(importance, 0) / np.maximum(squares, np.finfo(np.float32).tiny)
    known = found[explored]
    if not known.size or known.max() == 0:
        return np.ones_like(found)
    return np.maximum(np.where(explored, found, known.mean()), _LEAST * known.max())


@jax.jit
def costs(params, gates, curvature):
    """c_l * w^2 of every gate, a tree like gates; infinite for the largest open weight of each layer."""
    leaves, treedef = jax.tree.flatten(gates)
    found = []
    for gate, w, c in zip(leaves, treedef.flatten_up_to(gates_lib.kernels(params, gates)), curvature, strict=True):
        size = jnp.where(gate, jnp.abs(w), -1)
        found.append(jnp.where(size == jnp.max(size), jnp.inf, c * w * w))
    return jax.tree.unflatten(treedef, found)


def create(config) -> Method:
    cfg = config.spt
    closer = groups.create(config)
    explorations, chunk = cfg.explorations, exploration.chunk_of(cfg)
    moves = cfg.inside == "movement"

    def init(params, gates):
        layers = len(jax.tree.leaves(gates))
        state = {
            "importance": jnp.zeros(layers, jnp.float32),
            "squares": jnp.zeros(layers, jnp.float32),
            "explored": jnp.zeros(layers, bool),
            "threshold": jnp.zeros(layers, jnp.uint32),
            "stale": jnp.bool_(True),  # gates may have closed since the thresholds were taken
            **exploration.no_statistics(len(gates_lib.present_types(gates))),
        }
        if moves:
            state["movement"] = jax.tree.map(lambda gate: jnp.zeros(gate.shape, jnp.float32), gates)
        return state

    def after_step(info, state):
        leaves, treedef = jax.tree.flatten(info.gates)
        layers = len(leaves)
        weights = treedef.flatten_up_to(gates_lib.kernels(info.params, info.gates))
        state = dict(state)
        order = [jnp.abs(w) for w in weights]
        if moves:
            before, grads = (gates_lib.kernels(tree, info.gates) for tree in (info.params_before, info.grads))
            state["movement"] = jax.tree.map(lambda s, w, g: s - w * g, state["movement"], before, grads)
            order = treedef.flatten_up_to(state["movement"])

        def thresholds():
            share = info.hyper["epsilon"]
            return jnp.stack([gates_lib.lowest_threshold(*pair, share) for pair in zip(order, leaves, strict=True)])

        refresh = state["stale"] | (info.step % REFRESH == 0)
        state["threshold"] = jax.lax.cond(refresh, thresholds, lambda: state["threshold"])
        state["stale"] = jnp.zeros_like(state["stale"])
        nexts = [gates_lib.among_lowest(order[l], gate, state["threshold"][l]) for l, gate in enumerate(leaves)]

        def layer_of(e):
            return (info.step * explorations + e) % layers

        def gates_of(e):
            left = [gate & ~(out & (layer_of(e) == l)) for l, (gate, out) in enumerate(zip(leaves, nexts, strict=True))]
            return jax.tree.unflatten(treedef, left)

        found = exploration.importances(info, gates_of, explorations, chunk)
        squares = jnp.stack([jnp.sum(jnp.where(out, w * w, 0)) for out, w in zip(nexts, weights, strict=True)])
        types = jnp.asarray(gates_lib.type_indices(info.gates))
        for e in range(explorations):
            chosen = jnp.arange(layers) == layer_of(e)
            for name, value in (("importance", found[e]), ("squares", squares)):
                state[name] += jnp.where(chosen, value, 0)
            state["explored"] |= chosen
            kind = types[layer_of(e)]
            state["epoch_sum"] = state["epoch_sum"].at[kind].add(found[e])
            state["epoch_count"] = state["epoch_count"].at[kind].add(1)
        return state

    def prune(key, params, gates, trainable, state, target, end_of_epoch):
        measured = jax.device_get([state[name] for name in ("importance", "squares", "explored")])
        cost = costs(params, gates, list(curvatures(*measured)))
        closed = closer.close(gates, cost, target, key, "global")
        if not moves:
            return closed
        budgets = gates_lib.newly_closed(gates, closed)
        return gates_lib.close_counts(gates, state["movement"], budgets, key)

    def end_epoch(gates, state):
        state, *report = exploration.end_epoch(gates, state, cfg.explore_per_layer)
        older = {name: state[name] / 2 for name in ("importance", "squares")}
        return {**state, **older, "stale": jnp.ones_like(state["stale"], device=state["stale"].sharding)}, *report

    return Method(
        hyper={"epsilon": cfg.epsilon},
        init=init,
        after_step=after_step,
        prune=prune,
        end_epoch=end_epoch,
    )

"""SPT, structured pruning with training.

After every training step the batch is run again without dropout: once as it is (normal_loss), and E times with a
random sample of epsilon of the open gates closed for that pass alone (pruned_loss). The importance of a sample,

  importance = pruned_loss - normal_loss,

is positive where the loss rises without those weights. Each sampled weight's score follows it as an exponential
average, score = alpha * new + (1 - alpha) * score, the first visit taking the value itself; a weight never visited
scores 0. At an epoch's end the open gates of lowest score are closed until the schedule's target is met.

With `spt.center` (the default) a running mean of the importance, one a layer type, is subtracted first, so that 0, the
score of an unvisited weight, means neutral; the literal form ranks unvisited weights below all that cost anything.
With `spt.explore_per_layer` a step explores one layer type, the types in cyclic order.

`spt.credit` says who shares the importance of a pass:

weight  every gate of its sample: thousands share one number.
group   the groups of pruning.structure (heads, feed-forward columns, pooler units, blocks) in place of single gates. A
        pass closes at least one of each kind on average, however small epsilon is.
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
"""

import jax
import jax.numpy as jnp

from prune_jax import gates as gates_lib
from prune_jax import groups
from prune_jax.methods import exploration, spt_layers
from prune_jax.methods.base import Method

_HALF = 0.5  # the share of a layer's open units that are candidates with spt.candidates=threshold


def update_scores(scores, visited, drawn, reward, alpha):
    """One pass's reward given to the units of its sample: the exponential average, started by the first visit.

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


def create(config) -> Method:
    return spt_layers.create(config) if config.spt.credit == "layer" else _by_unit(config)


def _by_unit(config) -> Method:
    cfg = config.spt
    closer = groups.create(config)
    explorations, chunk = cfg.explorations, exploration.chunk_of(cfg)
    units = closer.units
    if cfg.credit == "weight":
        units = groups.Units(lambda gates: gates, lambda tree: tree, lambda gates, opened: opened, closer.close)
    near = cfg.candidates == "threshold"

    def size(x):
        return jnp.abs(x) if cfg.absolute else x

    def init(params, gates):
        of_units = units.of(gates)
        types = len(gates_lib.present_types(of_units))
        zeros = jax.tree.map(lambda unit: jnp.zeros(unit.shape, jnp.float32), of_units)
        state = {
            "scores": zeros,
            "visited": jax.tree.map(jnp.zeros_like, of_units),
            "mean": jnp.zeros(types, jnp.float32),  # running mean importance of each layer type
            "explored": jnp.zeros(types, bool),  # whether that mean has its first value
            **exploration.no_statistics(types),
        }
        if cfg.control_variate:
            state["first_order"] = jax.tree.map(jnp.copy, zeros)
        if near:
            state["threshold"] = jnp.zeros(len(jax.tree.leaves(of_units)), jnp.uint32)
            state["stale"] = jnp.bool_(True)  # units may have closed since the thresholds were taken
        return state

    def first_orders(info):
        """-sum g * w of each unit, the gradient's estimate of its importance."""
        grads, weights = (gates_lib.kernels(tree, info.gates) for tree in (info.grads, info.params_before))
        return units.totals(jax.tree.map(lambda g, w: -g * w, grads, weights))

    def candidates(info, state, opened):
        """(the units that may be drawn, the new thresholds)."""
        leaves, treedef = jax.tree.flatten(opened)
        order = treedef.flatten_up_to(closing_order(state))

        def thresholds():
            return jnp.stack([gates_lib.lowest_threshold(*pair, _HALF) for pair in zip(order, leaves, strict=True)])

        refresh = state["stale"] | (info.step % spt_layers.REFRESH == 0)
        threshold = jax.lax.cond(refresh, thresholds, lambda: state["threshold"])
        lowest = [gates_lib.among_lowest(*pair, threshold[l]) for l, pair in enumerate(zip(order, leaves, strict=True))]
        return jax.tree.unflatten(treedef, lowest), threshold

    def after_step(info, state):
        opened = units.of(info.gates)
        kinds = gates_lib.type_indices(opened)
        num_types = state["mean"].shape[0]
        active = jnp.ones(num_types, bool)
        if cfg.explore_per_layer:
            active = jnp.arange(num_types) == info.step % num_types
        alpha, epsilon = info.hyper["reward_alpha"], info.hyper["epsilon"]
        pool, own = opened, {}
        if near:
            pool, own["threshold"] = candidates(info, state, opened)
            own["stale"] = jnp.zeros_like(state["stale"])
        rate = [epsilon / _HALF if near else epsilon] * num_types
        if cfg.credit == "group":
            counts = [jnp.sum(unit, dtype=jnp.float32) for unit in jax.tree.leaves(pool)]
            of_kind = [sum(n for n, kind in zip(counts, kinds, strict=True) if kind == t) for t in range(num_types)]
            rate = [jnp.maximum(r, 1 / jnp.maximum(n, 1)) for r, n in zip(rate, of_kind, strict=True)]
        leaf_epsilon = [rate[kind] * active[kind] for kind in kinds]

        def drawn_in(e):
            return gates_lib.sample(info.key, info.step, e, pool, leaf_epsilon, cfg.antithetic)

        def gates_of(e):
            return units.spread(info.gates, jax.tree.map(lambda unit, out: unit & ~out, opened, drawn_in(e)))

        found = exploration.importances(info, gates_of, explorations, chunk)
        treedef = jax.tree.structure(opened)
        scores = treedef.flatten_up_to(state["scores"])
        visited = treedef.flatten_up_to(state["visited"])
        mean, explored = state["mean"], state["explored"]
        if cfg.control_variate:
            first = treedef.flatten_up_to(first_orders(info))
        for e in range(explorations):
            drawn = jax.tree.leaves(drawn_in(jnp.int32(e)))
            value = found[e]
            if cfg.control_variate:
                value -= sum(jnp.sum(jnp.where(out, f, 0)) for out, f in zip(drawn, first, strict=True))
            value = size(value)
            if cfg.control_variate:
                value /= jnp.maximum(sum(jnp.sum(out, dtype=jnp.float32) for out in drawn), 1)
            # The mean of the earlier passes is the baseline; the very first pass has none and is neutral.
            baseline = jnp.where(explored, mean, value) if cfg.center else jnp.zeros(num_types)
            for l, kind in enumerate(kinds):
                reward = value - baseline[kind]
                scores[l], visited[l] = update_scores(scores[l], visited[l], drawn[l], reward, alpha)
            mean, explored = (
                jnp.where(active, exploration.average(explored, mean, value, alpha), mean),
                explored | active,
            )
        if cfg.control_variate:
            # A score looks back on 1 / (alpha * epsilon * E) steps, and so does this; the first steps weigh alike.
            gain = jnp.maximum(alpha * epsilon * explorations, 1 / (info.step + 1))
            old = treedef.flatten_up_to(state["first_order"])
            moved = [gain * size(f) + (1 - gain) * o for f, o in zip(first, old, strict=True)]
            own["first_order"] = jax.tree.unflatten(treedef, moved)
        return {
            "scores": jax.tree.unflatten(treedef, scores),
            "visited": jax.tree.unflatten(treedef, visited),
            "mean": mean,
            "explored": explored,
            "epoch_sum": state["epoch_sum"] + active * jnp.sum(found),
            "epoch_count": state["epoch_count"] + active * explorations,
            **own,
        }

    def prune(key, params, gates, trainable, state, target, end_of_epoch):
        return units.close(gates, closing_order(state), target, key, config.pruning.scope)

    def end_epoch(gates, state):
        state, *report = exploration.end_epoch(units.of(gates), state, cfg.explore_per_layer)
        if near:
            state["stale"] = jnp.ones_like(state["stale"], device=state["stale"].sharding)
        return state, *report

    return Method(
        hyper={"epsilon": cfg.epsilon, "reward_alpha": cfg.reward_alpha},
        init=init,
        after_step=after_step,
        prune=prune,
        end_epoch=end_epoch,
    )

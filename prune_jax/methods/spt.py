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
"""

import jax
import jax.numpy as jnp

from prune_jax import gates as gates_lib
from prune_jax import groups
from prune_jax.methods.base import Method, StepInfo


def importances(info: StepInfo, epsilon: list[jax.Array], explorations: int, chunk: int) -> jax.Array:
    """(explorations,) float32: pruned_loss - normal_loss of each exploration pass, on the batch of the step.

    Passes run `chunk` at a time under vmap. On a CPU vmap turns a product with shared weights into a batched one with
    different weights, which costs more than one pass after the other.
    """

    def pruned_loss(e):
        drawn = gates_lib.sample(info.key, info.step, e, info.gates, epsilon)
        return info.loss(info.params, jax.tree.map(lambda gate, out: gate & ~out, info.gates, drawn))

    normal_loss = info.loss(info.params, info.gates)
    if explorations == 1:
        return pruned_loss(jnp.int32(0))[None] - normal_loss
    passes = jnp.arange(explorations, dtype=jnp.int32)
    if chunk >= explorations:
        return jax.vmap(pruned_loss)(passes) - normal_loss
    return jax.lax.map(pruned_loss, passes, batch_size=chunk if chunk > 1 else None) - normal_loss


def update_scores(scores, visited, drawn, reward, alpha):
    """One pass's reward given to the gates of its sample: the exponential average, started by the first visit.

    Args:
      scores: (shape) float32; visited, drawn: (shape) bool; reward, alpha: () float32.
    Returns:
      (scores, visited) with the drawn gates moved.
    """
    average = jnp.where(visited, alpha * reward + (1 - alpha) * scores, reward)
    return jnp.where(drawn, average, scores), visited | drawn


def create(config) -> Method:
    cfg = config.spt
    closer = groups.create(config)
    explorations = cfg.explorations
    chunk = cfg.chunk or (1 if jax.default_backend() == "cpu" else explorations)

    def init(params, gates):
        types = len(gates_lib.present_types(gates))
        return {
            "scores": jax.tree.map(lambda gate: jnp.zeros(gate.shape, jnp.float32), gates),
            "visited": jax.tree.map(jnp.zeros_like, gates),
            "mean": jnp.zeros(types, jnp.float32),  # running mean importance of each layer type
            "explored": jnp.zeros(types, bool),  # whether that mean has its first value
            "epoch_sum": jnp.zeros(types, jnp.float32),
            "epoch_count": jnp.zeros(types, jnp.int32),
        }

    def after_step(info, state):
        kinds = gates_lib.type_indices(info.gates)
        num_types = state["mean"].shape[0]
        active = jnp.ones(num_types, bool)
        if cfg.explore_per_layer:
            active = jnp.arange(num_types) == info.step % num_types
        alpha, epsilon = info.hyper["reward_alpha"], info.hyper["epsilon"]
        leaf_epsilon = [epsilon * active[kind] for kind in kinds]
        found = importances(info, leaf_epsilon, explorations, chunk)

        treedef = jax.tree.structure(info.gates)
        scores = treedef.flatten_up_to(state["scores"])
        visited = treedef.flatten_up_to(state["visited"])
        mean, explored = state["mean"], state["explored"]
        for e in range(explorations):
            drawn = jax.tree.leaves(gates_lib.sample(info.key, info.step, jnp.int32(e), info.gates, leaf_epsilon))
            # The mean of the earlier passes is the baseline; the very first pass has none and is neutral.
            baseline = jnp.where(explored, mean, found[e]) if cfg.center else jnp.zeros(num_types)
            for l, kind in enumerate(kinds):
                reward = found[e] - baseline[kind]
                scores[l], visited[l] = update_scores(scores[l], visited[l], drawn[l], reward, alpha)
            moved = jnp.where(explored, alpha * found[e] + (1 - alpha) * mean, found[e])
            mean, explored = jnp.where(active, moved, mean), explored | active
        return {
            "scores": jax.tree.unflatten(treedef, scores),
            "visited": jax.tree.unflatten(treedef, visited),
            "mean": mean,
            "explored": explored,
            "epoch_sum": state["epoch_sum"] + active * jnp.sum(found),
            "epoch_count": state["epoch_count"] + active * explorations,
        }

    def prune(key, params, gates, trainable, state, target, end_of_epoch):
        return closer.close(gates, state["scores"], target, key, config.pruning.scope)

    def end_epoch(gates, state):
        total, passes = jax.device_get((state["epoch_sum"], state["epoch_count"]))
        columns = {"mean_reward": float(total.sum() / passes.sum()) if passes.sum() else None}
        lines = []
        if cfg.explore_per_layer:
            names = gates_lib.present_types(gates)
            cells = [f"{t / n:.3e}" if n else "-" for t, n in zip(total, passes, strict=True)]
            width = max(map(len, (*names, *cells)))
            lines = ["  ".join(text.rjust(width) for text in row) for row in (names, cells)]
        # On the devices of the old arrays: another placement would compile the training step anew.
        fresh = {name: jnp.zeros_like(x, device=x.sharding) for name, x in state.items() if name.startswith("epoch_")}
        return {**state, **fresh}, columns, lines

    return Method(
        hyper={"epsilon": cfg.epsilon, "reward_alpha": cfg.reward_alpha},
        init=init,
        after_step=after_step,
        prune=prune,
        end_epoch=end_epoch,
    )

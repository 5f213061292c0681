"""oBERT, the optimal BERT surgeon (Kurtic et al., 2022, arXiv:2203.07259): gradual second-order pruning.

The Fisher information of each run of `block` weights of a kernel is estimated by F = lambda * I + 1/m * sum g g^T over
the gradients g of the last training steps, with m = `gradients`, and its inverse is kept by the Woodbury formula,

  F^-1 <- F^-1 - (F^-1 g) (F^-1 g)^T / (m + g^T F^-1 g)        from F^-1 = I / lambda.

A weight's score is w^2 / (2 [F^-1]_ii), the loss that its removal costs, and each weight q that is removed moves the
open weights of its block by -w_q / [F^-1]_qq * F^-1 e_q. The estimate starts anew once it holds m gradients, and the
last complete one serves meanwhile. The authors take fresh gradients at fixed weights before each closing; here they are
those of the training itself. Memory is 2 * `block` numbers per weight.
"""

import jax
import jax.numpy as jnp

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import trees
from prune_jax.pruning.method import Method, Pruned, PruneInfo, StepInfo
from prune_jax.pruning.options import made_from, option, options


@options
class Options:
    """The options of oBERT."""

    block: int = option(50, "The weights of a kernel whose Fisher information is taken together, B.", 1, 10_000)
    gradients: int = option(1024, "The steps whose gradients make an estimate, m.", 1, 10_000_000)
    dampening: float = option(1e-7, "The multiple of the identity in the estimate, lambda.", 0, 1, inclusive=False)


def in_blocks(leaf: jax.Array, size: int) -> jax.Array:
    """(blocks, size) float32: a kernel's weights in the order of memory, with zeros at the end."""
    flat = leaf.astype(jnp.float32).ravel()
    return jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)


def woodbury(inverse: jax.Array, gradient: jax.Array, count: int) -> jax.Array:
    """The inverse of F + 1/count * g g^T from that of F: (blocks, size, size) and (blocks, size) float32."""
    moved = jnp.einsum("bij,bj->bi", inverse, gradient)
    scale = count + jnp.sum(moved * gradient, axis=1)
    return inverse - moved[:, :, None] * moved[:, None, :] / scale[:, None, None]


@made_from(Options)
def create(options: Options) -> Method:
    """Closes the weights whose removal costs least to second order, and corrects the others.

    Example:
      >>> import optax, prune_jax as pj
      >>> tx = pj.prune(optax.adamw(1e-4), pj.obert(gradients=100), pj.cubic(0.9, begin=100, end=1000, every=100))
    """

    def blank(gate):
        blocks = -(-gate.size // options.block)
        identity = jnp.eye(options.block, dtype=jnp.float32) / options.dampening
        return jnp.broadcast_to(identity, (blocks, options.block, options.block))

    def init(params, gates, plan):
        inverse = jax.tree.map(blank, gates)
        return {"inverse": inverse, "last": jax.tree.map(jnp.copy, inverse), "complete": jnp.bool_(False)}

    def after_step(info: StepInfo, state: dict) -> dict:
        gradients = gates_lib.kernels(info.grads, info.gates)
        inverse = jax.tree.map(
            lambda old, g: woodbury(old, in_blocks(g, options.block), options.gradients), state["inverse"], gradients
        )
        full = (info.step + 1) % options.gradients == 0
        return {
            "inverse": jax.tree.map(lambda new, gate: jnp.where(full, blank(gate), new), inverse, info.gates),
            "last": jax.tree.map(lambda new, old: jnp.where(full, new, old), inverse, state["last"]),
            "complete": state["complete"] | full,
        }

    def prune(info: PruneInfo) -> Pruned:
        kept = info.state
        inverse = jax.tree.map(lambda last, new: jnp.where(kept["complete"], last, new), kept["last"], kept["inverse"])
        weights = jax.tree.map(
            lambda w, gate: in_blocks(jnp.where(gate, w, jnp.zeros_like(w)), options.block),
            gates_lib.kernels(info.params, info.gates),
            info.gates,
        )
        ratios = jax.tree.map(lambda w, inv: w / jnp.diagonal(inv, axis1=1, axis2=2), weights, inverse)

        def whole(gate, blocks):
            return blocks.ravel()[: gate.size].reshape(gate.shape)

        scores = jax.tree.map(lambda gate, w, r: whole(gate, w * r / 2), info.gates, weights, ratios)
        gates = info.plan.close(info.gates, scores, info.target, info.key)

        def corrected(new, old, ratio, inv):
            gone = in_blocks(old & ~new, options.block) * ratio
            return whole(new, -jnp.einsum("bij,bj->bi", inv, gone))

        moves = jax.tree.map(corrected, gates, info.gates, ratios, inverse)
        by_name = trees.by_name(moves)

        def moved(path, leaf):
            move = by_name.get(trees.name(path))
            return leaf if move is None else (leaf + move).astype(leaf.dtype)

        return Pruned(gates, gates_lib.masked(jax.tree_util.tree_map_with_path(moved, info.params), gates))

    return Method("obert", init=init, after_step=after_step, prune=prune)

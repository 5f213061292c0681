"""The optimizer: AdamW on weights, Adam or plain steps on what a method adds, at rates that enter as arrays."""

import jax
import jax.numpy as jnp
import optax

WEIGHTS = "weights"


def scale_by_rate(label: str) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by -learning_rates[label], an extra argument of update: a new rate does not recompile."""

    def update(updates, state, params=None, *, learning_rates, **extra):
        return jax.tree.map(lambda u: -learning_rates[label] * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def labels(tree) -> dict:
    """The label of every trainable leaf, by its place in {"params": weights, "method": {label: leaves}}."""

    def fill(label, leaves):
        return jax.tree.map(lambda _: label, leaves)

    method = {label: fill(label, leaves) for label, leaves in tree["method"].items()}
    return {"params": fill(WEIGHTS, tree["params"]), "method": method}


def decayed(tree) -> dict:
    """True on the leaves that weight decay acts on: kernels and embedding tables, no biases, no LayerNorms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), tree)


def create(weight_decay: float, clip_norm: float, method_labels, plain=()) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with clipping by global norm; for each label Adam, or gradient
    descent if it is in `plain`.

    init and update take {"params": weights, "method": {label: leaves}}; update also takes learning_rates, a dict of
    () float32 by label. clip_norm 0 turns clipping off.
    """
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    decay = [optax.add_decayed_weights(weight_decay, mask=decayed)]
    weights = optax.chain(*clip, optax.scale_by_adam(), *(decay if weight_decay else []), scale_by_rate(WEIGHTS))
    if not method_labels:
        return weights
    others = {
        label: optax.chain(*([] if label in plain else [optax.scale_by_adam()]), scale_by_rate(label))
        for label in method_labels
    }
    return optax.multi_transform({WEIGHTS: weights, **others}, labels)


def rates(base: float, factor: float, method_rates: dict[str, float]) -> dict[str, jnp.ndarray]:
    """The learning rates of one step, by label, all under the schedule's factor: () float32."""
    return {label: jnp.float32(rate * factor) for label, rate in {WEIGHTS: base, **method_rates}.items()}

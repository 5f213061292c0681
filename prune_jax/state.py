"""TrainState and the two compiled functions that a run consists of: the training step and the evaluation step."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from prune_jax.methods.base import Method, StepInfo

Tree = Any
Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step, one pytree: it is what is checkpointed, sharded and donated.

    Attributes:
      step: () int32, steps taken.
      params: the network's weights.
      gates: one boolean array a prunable kernel, under the kernel's path.
      method: {"trainable": {label: leaves}, "state": the method's own arrays}.
      opt_state: of the optimizer over {"params": params, "method": trainable}.
      key: the run's typed PRNG key; never advanced, steps fold their number in.
    """

    step: jax.Array
    params: Tree
    gates: Tree
    method: Tree
    opt_state: Tree
    key: jax.Array


def apply(model, params: Tree, gates: Tree, batch: Batch, dropout_key=None, capture: bool = False):
    """(batch, num_labels) float32 logits; dropout only where a key is given.

    With `capture`, (logits, what the layers of a Bert sow: {"hidden", "attention"}, a list of an array a layer each).
    """
    found = model.apply(
        {"params": params, "gates": gates},
        *(batch[name] for name in model.inputs),
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        mutable=["intermediates"] if capture else False,
    )
    if not capture:
        return found
    logits, sown = found[0], found[1]["intermediates"]
    layers = [sown[f"layer_{i}"] for i in range(len(sown))]
    return logits, {name: [layer[name][0] for layer in layers if name in layer] for name in ("hidden", "attention")}


def example_losses(logits: jax.Array, labels: jax.Array, regression: bool) -> jax.Array:
    """(batch,) float32: cross-entropy in nats of integer labels, or the squared error of a score."""
    if regression:
        return jnp.square(logits[:, 0] - labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def batch_loss(model, params: Tree, gates: Tree, batch: Batch, dropout_key=None) -> jax.Array:
    """() float32: the mean loss of the batch's real rows (weight 1); dropout only where a key is given."""
    losses = example_losses(apply(model, params, gates, batch, dropout_key), batch["labels"], model.regression)
    return jnp.sum(losses * batch["weights"]) / jnp.maximum(jnp.sum(batch["weights"]), 1)


def init_state(model, method: Method, optimizer, key: jax.Array) -> TrainState:
    """A new state. Pure, so that it can be evaluated for its shapes alone (jax.eval_shape)."""
    init_key, run_key = jax.random.split(key)
    variables = model.init(init_key, *model.example_inputs())
    params, gates = variables["params"], variables["gates"]
    trainable = method.init_trainable(params, gates)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        gates=gates,
        method={"trainable": trainable, "state": method.init(params, gates)},
        opt_state=optimizer.init({"params": params, "method": trainable}),
        key=run_key,
    )


def make_train_step(model, method: Method, optimizer, training_loss: Callable | None = None) -> Callable:
    """(state, batch, learning_rates, hyper, teacher=None) -> (state, loss): one optimizer step, then the after_step.

    Not jitted; the caller jits it with the state donated. learning_rates and hyper are dicts of () float32 arrays.
    The loss is () float32, the batch's training loss with its penalty.

    Args:
      training_loss: (model, params, gates, batch, dropout_key, teacher) -> () float32 in the place of batch_loss, with
        a teacher's variables or None (prune_jax.distill). What a method explores stays batch_loss.
    """

    def train_step(state: TrainState, batch: Batch, learning_rates, hyper, teacher: Tree = None):
        dropout_key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)
        leaves = {"params": state.params, "method": state.method["trainable"]}

        def loss_fn(leaves):
            gates = method.training_gates(state.gates, leaves["method"])
            if training_loss is None:
                loss = batch_loss(model, leaves["params"], gates, batch, dropout_key)
            else:
                loss = training_loss(model, leaves["params"], gates, batch, dropout_key, teacher)
            return loss + method.penalty(leaves["params"], state.gates, leaves["method"], state.step, hyper)

        loss, grads = jax.value_and_grad(loss_fn)(leaves)
        updates, opt_state = optimizer.update(grads, state.opt_state, leaves, learning_rates=learning_rates)
        new = optax.apply_updates(leaves, updates)
        info = StepInfo(
            step=state.step,
            key=jax.random.fold_in(state.key, 1),
            grads=grads["params"],
            params_before=state.params,
            params=new["params"],
            gates=state.gates,
            hyper=hyper,
            loss=lambda params, gates: batch_loss(model, params, gates, batch),
        )
        method_state = method.after_step(info, state.method["state"])
        state = state.replace(
            step=state.step + 1,
            params=new["params"],
            method={"trainable": new["method"], "state": method_state},
            opt_state=opt_state,
        )
        return state, loss

    return train_step


def make_eval_step(model) -> Callable:
    """(params, gates, batch) -> (logits (batch, num_labels) float32, losses (batch,) float32), without dropout."""

    def eval_step(params, gates, batch):
        logits = apply(model, params, gates, batch)
        return logits, example_losses(logits, batch["labels"], model.regression)

    return eval_step

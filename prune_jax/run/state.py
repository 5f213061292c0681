"""TrainState and the compiled functions that a run consists of: the steps of training, pruning and evaluation."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from prune_jax.models import units
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed, trees
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning.method import Method, PruneInfo, StepInfo
from prune_jax.pruning.moments import reset_moments
from prune_jax.pruning.plan import Plan

Tree = Any
Batch = dict[str, jax.Array]
MAP = "distill_map"  # the label of a method's leaf that the training loss reads (prune_jax.run.distill)


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step, one pytree: it is what is checkpointed, sharded and donated.

    Attributes:
      step: () int32, steps taken.
      params: the network's weights.
      gates: the packed gates (pruning.packed) of each prunable kernel, under the kernel's path, and of each bias, scale
        or table that units of the structure run through.
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

    With `capture`, (logits, the model's layer_outputs: name -> a list with one array per layer).
    """
    # Gated layers multiply by the gates of their kernels; those of biases, scales and tables are applied from outside.
    others = {name: gate for name, gate in trees.by_name(gates).items() if not name.endswith("/kernel")}
    outputs = model.apply(
        {"params": gates_lib.masked(params, trees.nested(others, "/")), "gates": gates},
        *(batch[name] for name in model.inputs),
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        mutable=["intermediates"] if capture else False,
    )
    if not capture:
        return outputs
    return outputs[0], model.layer_outputs(outputs[1]["intermediates"])


def smoothed_losses(model, logits: jax.Array, batch: Batch, smoothing: float) -> jax.Array:
    """(batch,) float32: the model's losses, a share `smoothing` of each label spread evenly over the classes.

    Label smoothing is Szegedy et al.'s (arXiv:1512.00567, section 7).
    """
    losses = model.losses(logits, batch)
    return losses if not smoothing else (1 - smoothing) * losses - smoothing * jnp.mean(jax.nn.log_softmax(logits), -1)


def batch_loss(model, params: Tree, gates: Tree, batch: Batch, dropout_key=None, smoothing: float = 0.0) -> jax.Array:
    """() float32: the mean loss of the batch's real rows (weight 1); dropout only where a key is given."""
    losses = smoothed_losses(model, apply(model, params, gates, batch, dropout_key), batch, smoothing)
    return jnp.sum(losses * batch["weights"]) / _total(batch)


def _total(batch: Batch) -> jax.Array:
    return jnp.maximum(jnp.sum(batch["weights"]), 1)


def in_parts(f: Callable, batch: Batch, parts: int) -> Tree:
    """f(batch, 0), a mean over the batch's real rows as batch_loss is, computed in `parts` parts one after another.

    Each part has every `parts`-th row, so that rows that are split over devices stay where they are.

    Args:
      f: (a part of the batch, its number () int32) -> a pytree of arrays.
    """
    if parts == 1:
        return f(batch, jnp.int32(0))
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    total = _total(batch)

    def add(so_far, part):
        number, rows = part
        share = _total(rows) / total
        return jax.tree.map(lambda x, y: x + (share * y).astype(x.dtype), so_far, f(rows, number)), None

    first = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, first, jnp.int32(0)))
    return jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]


def flow(model, params: Tree, gates: Tree) -> jax.Array:
    """() float32: the sum of the outputs for an input of ones, of a network that reads images."""
    ones = {name: jnp.ones_like(x) for name, x in zip(model.inputs, model.example_inputs(), strict=True)}
    return jnp.sum(apply(model, params, gates, ones))


def make_plan(model, gates: Tree, structure: str, scope: str) -> Plan:
    """The plan of config.pruning's structure and scope for a model with these gates (their shapes will do).

    Raises:
      ValueError: the network has no such structure, or it does not divide a kernel.
    """
    groups, structure = units.chosen(model, structure), units.spelled(model, structure)
    return plan_lib.make(gates, structure, scope, groups, body=model.in_body, layers=model.layers)


def init_state(model, method: Method, optimizer, plan: Plan, key: jax.Array) -> TrainState:
    """A new state. Pure, so that it can be evaluated for its shapes alone (jax.eval_shape)."""
    init_key, run_key = jax.random.split(key)
    variables = model.init(init_key, *model.example_inputs())
    params, gates = variables["params"], trees.by_name(variables["gates"])
    added = {name: leaf for name, leaf in trees.by_name(params).items() if plan.covers(name)}
    gates = trees.nested({name: jnp.ones_like(leaf, bool) for name, leaf in added.items()} | gates, "/")
    trainable = method.init_trainable(params, gates, plan)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        gates=packed.pack(gates),
        method={"trainable": trainable, "state": method.init(params, gates, plan)},
        opt_state=optimizer.init({"params": params, "method": trainable}),
        key=run_key,
    )


def make_train_step(
    model,
    method: Method,
    optimizer,
    plan: Plan,
    training_loss: Callable | None = None,
    parts: int = 1,
    smoothing: float = 0.0,
    gather: Callable[[Tree], Tree] | None = None,
) -> Callable:
    """(state, batch, learning_rates, hyper, teacher=None) -> (state, loss): one optimizer step, then the after_step.

    Not jitted; the caller jits it with the state donated. learning_rates and hyper are dicts of () float32 arrays.
    The loss is () float32, the batch's training loss with its penalty.

    Args:
      training_loss: (model, params, gates, batch, dropout_key, teacher, map) -> () float32 in the place of batch_loss,
        with a teacher's variables or None, and the leaf MAP or None (prune_jax.run.distill). What a method explores
        stays batch_loss.
      parts: in which the batch is computed (in_parts), each with its own dropout; exploration, too.
      smoothing: of the labels, in the place of training_loss.
      gather: puts together params that are split over devices, where the network uses them (mesh.Layout.gather).
    """

    def train_step(state: TrainState, batch: Batch, learning_rates, hyper, teacher: Tree = None):
        dropout_key = jax.random.fold_in(jax.random.fold_in(state.key, 0), state.step)
        gates = packed.unpack(state.gates)
        leaves = {"params": state.params, "method": state.method["trainable"]}

        def network(leaves):
            if method.sample is not None:
                key = jax.random.fold_in(jax.random.fold_in(state.key, 3), state.step)
                kernels = gates_lib.kernels(leaves["params"], gates)
                drawn = method.sample(kernels, gates, leaves["method"], key, state.method["state"])
                return trees.replaced(leaves["params"], trees.by_name(drawn))
            return gates_lib.masked(leaves["params"], method.training_gates(gates, leaves["method"]))

        def seen(leaves):
            return network(leaves), leaves["method"].get(MAP)

        def loss_fn(seen, batch, key):
            params, matrix = seen
            params = gather(params) if gather else params
            if training_loss is None:
                return batch_loss(model, params, {}, batch, key, smoothing)
            return training_loss(model, params, {}, batch, key, teacher, matrix)

        def of_part(rows, number):
            key = dropout_key if parts == 1 else jax.random.fold_in(dropout_key, number)
            return jax.value_and_grad(loss_fn)(weights, rows, key)

        def explored(params, gates):
            if gather:
                params, gates = gather(gates_lib.masked(params, gates)), {}
            if method.flow:
                return flow(model, params, gates)
            return in_parts(lambda rows, _: batch_loss(model, params, gates, rows), batch, parts)

        # In two parts: the gradient with respect to what the network sees is the one that closed gates would have.
        weights, pull = jax.vjp(seen, leaves)
        loss, of_seen = in_parts(of_part, batch, parts)
        (grads,), gate_grads = pull(of_seen), of_seen[0]
        if method.trains_closed:
            grads = {**grads, "params": gate_grads}
        if method.has_penalty:

            def penalty_fn(leaves):
                return method.penalty(leaves["params"], gates, leaves["method"], state.step, hyper, plan)

            penalty, of_penalty = jax.value_and_grad(penalty_fn)(leaves)
            loss, grads = loss + penalty, jax.tree.map(jnp.add, grads, of_penalty)
        updates, opt_state = optimizer.update(grads, state.opt_state, leaves, learning_rates=learning_rates)
        if method.alive and not method.trains_closed:  # the weights of closed gates stand still
            updates["params"] = gates_lib.masked(updates["params"], gates)
        new = optax.apply_updates(leaves, updates)
        method_state = state.method["state"]
        if method.after_step is not None:
            info = StepInfo(
                step=state.step,
                key=jax.random.fold_in(state.key, 1),
                grads=grads["params"],
                gate_grads=gate_grads,
                params_before=state.params,
                params=new["params"],
                gates=gates,
                hyper=hyper,
                loss=explored,
                plan=plan,
            )
            method_state = method.after_step(info, method_state)
        state = state.replace(
            step=state.step + 1,
            params=new["params"],
            method={"trainable": new["method"], "state": method_state},
            opt_state=opt_state,
        )
        return state, loss

    return train_step


def make_prune_step(method: Method, plan: Plan) -> Callable:
    """(state, target, exact) -> what pruning changes, as arguments of state.replace, and whether any gate moved.

    Not jitted. target is () float32, exact () bool, as PruneInfo has them.
    """

    def prune_step(state: TrainState, target: jax.Array, exact: jax.Array) -> tuple[dict, jax.Array]:
        gates = packed.unpack(state.gates)
        info = PruneInfo(
            key=jax.random.fold_in(jax.random.fold_in(state.key, 2), state.step),
            step=state.step,
            params=state.params,
            gates=gates,
            trainable=state.method["trainable"],
            state=state.method["state"],
            target=target,
            exact=exact,
            plan=plan,
        )
        pruned = method.prune(info)
        changes: dict = {"gates": packed.pack(pruned.gates, like=state.gates)}
        if pruned.params is not None:
            changes["params"] = pruned.params
        if method.resets_moments:
            reopened = jax.tree.map(lambda new, old: new & ~old, pruned.gates, gates)
            changes["opt_state"] = reset_moments(state.opt_state, {"params": reopened})
        pairs = zip(*map(jax.tree.leaves, (changes["gates"], state.gates)), strict=True)
        return changes, jnp.any(jnp.stack([jnp.any(new != old) for new, old in pairs]))

    return prune_step


def make_eval_step(model, gather: Callable[[Tree], Tree] | None = None) -> Callable:
    """(params, gates, batch) -> (logits (batch, num_labels) float32, losses (batch,) float32), without dropout.

    The gates may be packed.

    In the place of logits what the model's `scored` keeps of them, where it has that.

    Args:
      gather: as make_train_step's.
    """
    scored = getattr(model, "scored", lambda logits, batch: logits)

    def eval_step(params, gates, batch):
        gates = packed.unpack(gates)
        if gather:
            params, gates = gather(gates_lib.masked(params, gates)), {}
        logits = apply(model, params, gates, batch)
        return scored(logits, batch), model.losses(logits, batch)

    return eval_step

"""One step of a user's own loop: the wrapped optimizer's, the method's own leaves', the method's scores.

The step is taken with given gates. When and how gates change is transform.py's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import packed, trees
from prune_jax.pruning.method import Method, StepInfo
from prune_jax.pruning.plan import Plan

Tree = Any
Loss = Callable[[Tree], jax.Array]


class PruneState(NamedTuple):
    """The state of the transformation.

    Attributes:
      step: () int32, steps taken.
      key: (2,) uint32, the words of a PRNG key that stays as it is; steps fold their number in.
      gates: a tree like params: the packed gates of each prunable kernel, None elsewhere; pj.gates unpacks them.
      dense: () bool, whether the gradient of `masked` reaches the weights of closed gates. A constant of the method.
      method: the method's own state.
      trainable: the method's own trained leaves, by label.
      trainable_state: their optimizer's state.
      inner: the wrapped optimizer's state.
    """

    step: jax.Array
    key: jax.Array
    gates: Tree
    dense: jax.Array
    method: Tree
    trainable: Tree
    trainable_state: Tree
    inner: Tree


class Stepped(NamedTuple):
    """What a step has made: the wrapped optimizer's updates and state, the method's leaves and state."""

    updates: Tree
    inner: Tree
    trainable: Tree
    trainable_state: Tree
    method: Tree


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that can be taken, with one gates or with others.

    Attributes:
      method: whose leaves and scores take part.
      optimizer: the wrapped one; own: that of the method's leaves.
      grads: the gradient of the loss at params.
      state: of the steps before.
      params: the weights before the step.
      plan: what closes together.
      target: () float32, the closed fraction that the schedule asks for once the step is taken.
      key: a PRNG key that is the same at every step.
      value_fn: params -> the loss of the batch without dropout, or None.
      extra: further arguments of the wrapped optimizer's update.
    """

    method: Method
    optimizer: optax.GradientTransformationExtraArgs
    own: optax.GradientTransformation
    grads: Tree
    state: PruneState
    params: Tree
    plan: Plan
    target: jax.Array
    key: jax.Array
    value_fn: Loss | None
    extra: Mapping[str, Any]

    def taken(self, gates: Tree) -> Stepped:
        """The step with these packed gates."""
        method, state, params, was_open = self.method, self.state, self.params, packed.unpack(gates)
        hyper = {name: jnp.float32(value) for name, value in method.hyper.items()} | {"target": self.target}
        grads = self.grads if method.trains_closed else _kept(self.grads, was_open)
        # One NaN of a step that the optimizer skips would stay in a method's scores for good.
        finite, seen = _finite(grads), _finite(self.grads)
        pull = None
        if method.sample is not None:
            pull = _pulled(method, params, was_open, state)
            of_kernels, _ = pull(gates_lib.kernels(self.grads, was_open))
            grads = trees.replaced(self.grads, trees.by_name(of_kernels))
        trainable, trainable_state = state.trainable, state.trainable_state
        if method.has_penalty:
            prior = jax.grad(lambda p, t: method.penalty(p, was_open, t, state.step, hyper, self.plan), (0, 1))
            of_params, of_trainable = prior(params, trainable)
            grads = jax.tree.map(jnp.add, grads, of_params)
        else:
            of_trainable = jax.tree.map(jnp.zeros_like, trainable)
        if trainable:
            of_trainable = jax.tree.map(jnp.add, of_trainable, self._of_trainable(was_open, seen, pull))
            moves, trainable_state = self.own.update(of_trainable, trainable_state, trainable)
            trainable = optax.apply_updates(trainable, moves)
        updates, inner = self.optimizer.update(grads, state.inner, params, **self.extra)
        if not method.trains_closed:
            updates = closed(updates, params, was_open, method.alive)
        own_state = state.method
        if method.after_step is not None:
            own_state = method.after_step(self._info(updates, was_open, finite, seen, hyper), own_state)
        return Stepped(updates, inner, trainable, trainable_state, own_state)

    def _of_trainable(self, was_open: Tree, seen: Tree, pull: Callable | None) -> Tree:
        """The gradient of the loss with respect to the method's leaves; pull: that through its sampled kernels."""
        if pull is not None:
            return pull(gates_lib.kernels(seen, was_open))[1]
        # The loss sees w * gate: its gradient with respect to a gate is w times that of the product.
        _, through = jax.vjp(lambda t: _floats(self.method.training_gates(was_open, t)), self.state.trainable)
        both = (gates_lib.kernels(tree, was_open) for tree in (self.params, seen))
        return through(jax.tree.map(lambda w, g: (w * g).astype(jnp.float32), *both))[0]

    def _info(self, updates: Tree, was_open: Tree, finite: Tree, seen: Tree, hyper: Mapping) -> StepInfo:
        """What after_step is told; finite, seen: the gradient without and with that of closed gates."""
        value_fn = self.value_fn
        return StepInfo(
            step=self.state.step,
            key=jax.random.fold_in(self.key, 1),
            grads=finite,
            gate_grads=seen,
            params_before=self.params,
            params=optax.apply_updates(self.params, updates),
            gates=was_open,
            hyper=hyper,
            loss=value_fn and (lambda p, g: value_fn(gates_lib.masked(p, g))),
            plan=self.plan,
        )


def sampling_key(words: jax.Array, step: jax.Array) -> jax.Array:
    """The typed key of a step's sample, of the words of a PruneState's key and its step."""
    impl = "threefry2x32" if words.size == 2 else "rbg"
    return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(words, impl=impl), 3), step)


def _pulled(method: Method, params: Tree, gates: Tree, state: PruneState) -> Callable:
    """(gradient with respect to the sampled kernels) -> (that of the kernels, that of the method's leaves)."""
    key = sampling_key(state.key, state.step)
    sampled, pull = jax.vjp(
        lambda kernels, own: method.sample(kernels, gates, own, key, state.method),  # type: ignore[misc]
        gates_lib.kernels(params, gates),
        state.trainable,
    )
    return lambda grads: pull(jax.tree.map(lambda g, like: g.astype(like.dtype), grads, sampled))


def _floats(gates: Tree) -> Tree:
    return jax.tree.map(lambda gate: gate.astype(jnp.float32), gates)


def _kept(grads: Tree, gates: Tree) -> Tree:
    """grads, 0 where a gate is closed."""
    by_name = trees.by_name(gates)

    def at(path: tuple, g: jax.Array) -> jax.Array:
        gate = by_name.get(trees.name(path))
        return g if gate is None else jnp.where(gate, g, jnp.zeros_like(g))

    return jax.tree_util.tree_map_with_path(at, grads)


def _finite(grads: Tree) -> Tree:
    """grads, 0 where they are not finite."""
    return jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)), grads)


def closed(updates: Tree, params: Tree, gates: Tree, alive: bool) -> Tree:
    """updates after which the weights of closed gates are 0, or, where they are kept alive, what they were."""
    by_name = trees.by_name(gates)

    def at(path: tuple, u: jax.Array, p: jax.Array) -> jax.Array:
        gate = by_name.get(trees.name(path))
        if gate is None:
            return u
        return jnp.where(gate, u, jnp.zeros_like(u) if alive else -p)

    return jax.tree_util.tree_map_with_path(at, updates, params)


def trained(method: Method) -> optax.GradientTransformation:
    """The optimizer of a method's own leaves: Adam, or gradient descent for the plain labels, each at its rate."""
    by_label = {
        label: optax.chain(*([] if label in method.plain else [optax.scale_by_adam()]), optax.scale(-rate))
        for label, rate in method.rates.items()
    }
    if not by_label:
        return optax.identity()
    return optax.multi_transform(by_label, _labels)


def _labels(trainable: Tree) -> Tree:
    """The label of every leaf, by its place in {label: leaves}."""
    return {label: jax.tree.map(lambda _, label=label: label, leaves) for label, leaves in trainable.items()}

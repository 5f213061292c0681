"""The contract of a pruning method: a NamedTuple of pure functions, as optax's GradientTransformation is.

A method is made from its own options, and gives every gate a score. What closes together, how far, and when, is decided
by whoever prunes: the plan, the schedule. A method has none of them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prune_jax.pruning.plan import Plan

Tree = Any


class StepInfo(NamedTuple):
    """What a training step hands to a method's after_step, inside jit.

    Attributes:
      step: () int32, the number of the step that has just been taken, from 0.
      key: a PRNG key that is the same at every step; fold the step in before use.
      grads: the gradient of the loss at `params_before`, a tree like params; 0 where a gate is closed.
      gate_grads: the same with the gradient that the weights of closed gates would have if they were open. Neither has
        an entry that is not finite in a user's own loop: those are 0.
      params_before, params: the weights before and after the step.
      gates: the gates during the step.
      hyper: the arrays that the method's `hyper` named, and what the training adds to them, such as `target`.
      loss: (params, gates) -> () float32, the loss of the step's batch without dropout; None where nobody gave one.
      plan: what closes together.
    """

    step: jax.Array
    key: jax.Array
    grads: Tree
    gate_grads: Tree
    params_before: Tree
    params: Tree
    gates: Tree
    hyper: Mapping[str, jax.Array]
    loss: Callable[[Tree, Tree], jax.Array] | None
    plan: Plan


class PruneInfo(NamedTuple):
    """What a method's prune is given, inside jit.

    Attributes:
      key: a PRNG key of this call's own.
      step: () int32, the steps taken so far.
      params, gates: the network.
      trainable, state: the method's own leaves.
      target: () float32, the closed fraction that the schedule asks for now.
      exact: () bool, whether it is to be met exactly; else it is the most that may be closed.
      plan: what closes together.
    """

    key: jax.Array
    step: jax.Array
    params: Tree
    gates: Tree
    trainable: Tree
    state: Tree
    target: jax.Array
    exact: jax.Array | bool
    plan: Plan


class Pruned(NamedTuple):
    """What prune returns: new gates; new weights, or None where they stay as they are."""

    gates: Tree
    params: Tree | None = None


def _no_state(params: Tree, gates: Tree, plan: Plan) -> dict:
    return {}


def _same_gates(gates: Tree, trainable: Tree) -> Tree:
    return gates


def _no_penalty(params: Tree, gates: Tree, trainable: Tree, step: jax.Array, hyper: Mapping, plan: Plan) -> jax.Array:
    return jnp.float32(0)


def _keep(info: PruneInfo) -> Pruned:
    return Pruned(info.gates)


def _nothing_to_report(gates: Tree, state: Tree, plan: Plan) -> tuple[Tree, dict, list]:
    return state, {}, []


class Method(NamedTuple):
    """A pruning method. All but `end_epoch`, `end_run` and `record` can be traced into compiled steps.

    Attributes:
      name: what messages call it.
      scheduled: whether it closes gates while it trains, so that a sparsity schedule applies.
      every: steps between calls of prune besides those that the schedule asks for; 0, none.
      regrows: whether prune may reopen gates. The masks of other methods only shrink.
      alive: whether the weights of closed gates are kept as they were left, for they may come back. The weights of
        other methods' closed gates are 0.
      trains_closed: whether they are trained, too, by the gradient that they would have if they were open; asks for
        alive. Else they stand still.
      resets_moments: whether the optimizer's moments of weights whose gates reopen start again at 0.
      hyper: numbers that enter the step as arrays, so that changing one does not recompile. `target` is filled in by
        the training: the closed fraction that the schedule asks for at the step.
      rates: the learning rate of each label of trainable leaves; the label "weights" is the network's own.
      plain: the labels of rates whose leaves take plain gradient steps. Adam's are taken by the others.
      init: (params, gates, plan) -> state, the method's own pytree of arrays.
      init_trainable: (params, gates, plan) -> dict of label -> tree; leaves that are trained at rates[label].
      training_gates: (gates, trainable) -> the gates of the training forward pass.
      sample: (kernels, gates, trainable, key, state) -> kernels as the training forward pass sees them, in the place
        of training_gates, whose gradient reaches kernels and trainable; kernels is a tree like gates, key another one
        at each step, state the method's own, which can hold as arrays what `init` read of the plan. None where nothing
        is drawn. A user's own loop takes its loss at prune_jax.sampled.
      penalty: (params, gates, trainable, step, hyper, plan) -> () float32, added to the training loss; step is ()
        int32, the steps taken before this one.
      after_step: (StepInfo, state) -> state; None where there is nothing to do.
      explores: whether after_step asks for StepInfo.loss.
      flow: whether that is the sum of the network's outputs for an input of ones, in the place of the loss.
      prune: (PruneInfo) -> Pruned.
      end_period: (state) -> state, or None: at each event of a schedule, and at an epoch's end, what the measurements
        so far count from now on.
      end_epoch: (gates, state, plan) -> (state, columns, lines): extra columns of metrics.csv and lines for the
        console, after which the epoch's statistics start anew. Called before the epoch's pruning.
      end_run: (params, gates, trainable, state) -> (params, gates, entries, lines), or None. Called once training is
        over: the network of few distinct weights that the method leaves behind, entries for a summary, and lines for
        the console.
      record: (params, gates, trainable) -> dict of name -> array, or None. Called before the first epoch, after each,
        and with the network that end_run leaves: what reports draw the retraining from. Keep it small.
    """

    name: str
    scheduled: bool = True
    every: int = 0
    regrows: bool = False
    alive: bool = False
    trains_closed: bool = False
    resets_moments: bool = False
    hyper: Mapping[str, float] = MappingProxyType({})
    rates: Mapping[str, float] = MappingProxyType({})
    plain: tuple[str, ...] = ()
    init: Callable[[Tree, Tree, Plan], Tree] = _no_state
    init_trainable: Callable[[Tree, Tree, Plan], dict] = _no_state
    training_gates: Callable[[Tree, Tree], Tree] = _same_gates
    sample: Callable[[Tree, Tree, Tree, jax.Array, Tree], Tree] | None = None
    penalty: Callable[[Tree, Tree, Tree, jax.Array, Mapping, Plan], jax.Array] = _no_penalty
    after_step: Callable[[StepInfo, Tree], Tree] | None = None
    explores: bool = False
    flow: bool = False
    prune: Callable[[PruneInfo], Pruned] = _keep
    end_period: Callable[[Tree], Tree] | None = None
    end_epoch: Callable[[Tree, Tree, Plan], tuple[Tree, dict, list]] = _nothing_to_report
    end_run: Callable | None = None
    record: Callable | None = None

    @property
    def has_penalty(self) -> bool:
        """Whether the method adds to the training loss."""
        return self.penalty is not _no_penalty

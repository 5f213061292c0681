"""The contract of a pruning method: a NamedTuple of functions, as optax's GradientTransformation is."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any


class StepInfo(NamedTuple):
    """What a training step hands to a method's after_step, inside jit.

    Attributes:
      step: () int32, the step that has just been taken, from 0.
      key: the run's PRNG key; fold the step in before use.
      grads: the gradient of the loss at `params_before`, a tree like params.
      params_before, params: the weights before and after the step.
      gates: the gates during the step.
      hyper: the arrays that the method's `hyper` named, and the run's "num_examples" and "num_steps".
      loss: (params, gates) -> () float32, the batch's loss without dropout.
    """

    step: jax.Array
    key: jax.Array
    grads: Tree
    params_before: Tree
    params: Tree
    gates: Tree
    hyper: dict[str, jax.Array]
    loss: Callable[[Tree, Tree], jax.Array]


def _no_trainable(params, gates):
    return {}


def _no_state(params, gates):
    return {}


def _same_gates(gates, trainable):
    return gates


def _no_penalty(params, gates, trainable, step, hyper):
    return jnp.float32(0)


def _nothing_after_step(info, state):
    return state


def _keep_gates(key, params, gates, trainable, state, target, end_of_epoch):
    return gates


def _nothing_to_report(gates, state):
    return state, {}, []


class Method(NamedTuple):
    """A pruning method. Everything but `prune`, `end_epoch`, `end_run` and `record` is traced into the
    training step.

    Attributes:
      hyper: numbers that enter the step as arrays, so that changing one does not recompile. The run adds
        "num_examples", of its training split, and "num_steps", of the whole training.
      rates: the learning rate of each label of trainable leaves; the label "weights" is the network's own.
      plain: the labels of rates whose leaves take plain gradient steps. Adam's are taken by the others.
      prune_every: steps between calls of prune inside an epoch; 0 prunes at epoch ends only.
      regrows: whether prune may reopen gates. Masks of other methods only shrink.
      init: (params, gates) -> state, the method's own pytree of arrays.
      init_trainable: (params, gates) -> dict of label -> tree; leaves that the optimizer trains at rates[label].
      training_gates: (gates, trainable) -> the gates of the training forward pass.
      penalty: (params, gates, trainable, step, hyper) -> () float32, added to the training loss; step is () int32, the
        steps taken before this one.
      after_step: (StepInfo, state) -> state.
      prune: (key, params, gates, trainable, state, target, end_of_epoch) -> gates. Called outside jit; target is the
        closed fraction that the schedule asks for now, and at the end of an epoch it is met exactly.
      end_epoch: (gates, state) -> (state, columns, lines): extra columns of metrics.csv and lines for the console,
        after which the epoch's statistics start anew. Called outside jit, before the epoch's pruning.
      end_run: (params, gates, trainable, state) -> (params, gates, entries, lines), or None. Called outside jit, once
        the last epoch is over: the network of few distinct weights that the method leaves behind, which the run
        evaluates and saves as "quantised", entries for summary.json, and lines for the console.
      record: (params, gates, trainable) -> dict of name -> array, or None. Called outside jit before the first epoch,
        after each, and with the network that end_run leaves: what report draws the retraining from. Keep it small.
    """

    hyper: Mapping[str, float] = MappingProxyType({})
    rates: Mapping[str, float] = MappingProxyType({})
    plain: tuple[str, ...] = ()
    prune_every: int = 0
    regrows: bool = False
    init: Callable = _no_state
    init_trainable: Callable = _no_trainable
    training_gates: Callable = _same_gates
    penalty: Callable = _no_penalty
    after_step: Callable = _nothing_after_step
    prune: Callable = _keep_gates
    end_epoch: Callable = _nothing_to_report
    end_run: Callable | None = None
    record: Callable | None = None

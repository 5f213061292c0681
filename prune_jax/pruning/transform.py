"""Pruning as an optax transformation: any method, in anybody's training loop.

    tx = pj.prune(optax.adamw(1e-4), pj.magnitude(), pj.cubic(0.9, begin=1_000, end=10_000, every=100))
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)  # closed weights are exactly 0

Everything is inside jit: gates, scores and the count of steps are arrays of the optimizer's state, which is sharded and
checkpointed as any.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prune_jax.pruning import arguments, packed, promotion, schedules, stepping
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.costs import Costs
from prune_jax.pruning.method import Method, PruneInfo
from prune_jax.pruning.moments import reset_moments
from prune_jax.pruning.plan import Plan, Rule
from prune_jax.pruning.schedules import Schedule
from prune_jax.pruning.stepping import Loss, PruneState, Step, Stepped
from prune_jax.pruning.structure import Group

Tree = Any


def prune(
    optimizer: optax.GradientTransformation,
    method: Method,
    schedule: Schedule | None = None,
    *,
    structure: str = "unstructured",
    scope: str = "local",
    rules: Mapping[str, Rule] | None = None,
    groups: Any = (),
    target: str = "weights",
    seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that prunes while it trains.

    `init(params)` gives every kernel a gate: a floating array of two axes and more whose name is not that of a bias, a
    norm or an embedding. `update(grads, state, params)` takes the gradient of the loss at params and returns updates
    after which the weights of closed gates are exactly 0, whatever momentum and weight decay do. Gates are updated
    right after the steps that the schedule names.

    A method that keeps the weights of closed gates (movement with regrow) leaves them as they are: the loss is then
    taken at `pj.masked(params, state)`. SPT also takes `value_fn`, params -> the batch's loss without dropout.

    Args:
      optimizer: any optax optimizer; extra arguments of update are passed on to it.
      method: what closes first, such as magnitude().
      schedule: how far and when, such as cubic(0.9, end=1000); None for methods that close nothing while they train.
      structure: what closes together: unstructured, kinds of `groups` joined by +, block:RxC, n:m. The target is of
        the groups that it names; a warning says what share of the prunable weights they are, where that is under 90 %.
      scope: "local", the target holds for every kernel (or group) by itself; "global", for all of them together; "erk",
        for all together, shared among kernels by the Erdos-Renyi kernel distribution.
      rules: pattern -> Rule. A kernel follows the first whose regular expression is found in its name, such as
        {"head": KEEP, "attention": Rule(sparsity=0.5), "mlp": Rule(structure="2:4")}. A pattern that is found in no
        kernel's name, such as "bias" or "token_embedding", gives a gate to the leaves that it matches. What is kept has
        no gate. Kernels with a rule are ranked by themselves, and are in no group.
      groups: what pj.trace returned for the network, or a sequence of Group: the units that close whole. Biases,
        scales and tables that a chosen group runs through have gates, too.
      target: what the schedule counts with groups and the global scope: "weights", "flops", or "seconds" of a call at
        the graph's example inputs as measured on this machine. Units are ranked by their score per saved cost.
      seed: of samples and ties; a whole number, or a typed PRNG key.
    Returns:
      an optax transformation; `init` and `update` can be jitted, and work on sharded arrays.
    Raises:
      TypeError: an argument is of another type.
      ValueError: a structure, a scope or a rule that is not known; at init, a structure that the network has not, a
        rule that matches nothing, no kernel at all; at update, params or value_fn missing.
    Example:
      >>> import optax, prune_jax as pj
      >>> params = {"dense": {"kernel": jnp.arange(1.0, 5.0).reshape(2, 2), "bias": jnp.zeros(2)}}
      >>> tx = pj.prune(optax.sgd(0.1), pj.magnitude(), pj.constant(0.5))
      >>> state = tx.init(params)
      >>> grads = jax.tree.map(jnp.zeros_like, params)
      >>> updates, state = jax.jit(tx.update)(grads, state, params)
      >>> optax.apply_updates(params, updates)["dense"]["kernel"]
      Array([[0., 0.],
             [3., 4.]], dtype=float32)
    """
    arguments.check(optimizer, method, schedule, structure, scope, rules)
    units = arguments.units(groups)
    parsed = structure_lib.parse(structure)
    chosen = structure_lib.chosen(parsed, units) if parsed.kind == "groups" else ()
    key, key_impl = arguments.key(seed)
    arguments.check_target(target, groups, parsed, scope)
    costs = None if target == "weights" else groups.costs(target)  # last, for seconds are measured, which takes minutes
    pruning = _Pruning(
        optimizer=optax.with_extra_args_support(optimizer),
        method=method,
        schedule=schedule,
        structure=structure,
        scope=scope,
        rules=dict(rules or {}),
        groups=units,
        chosen=chosen,
        costs=costs,
        key=key,
        key_impl=key_impl,
    )
    return optax.GradientTransformationExtraArgs(pruning.init, pruning.update)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pruning:
    """The transformation that prune returns: its arguments, as they were checked, and its two functions."""

    optimizer: optax.GradientTransformationExtraArgs
    method: Method
    schedule: Schedule | None
    structure: str
    scope: str
    rules: Mapping[str, Rule]
    groups: tuple[Group, ...]
    chosen: tuple[Group, ...]  # of these, what the structure names
    costs: Costs | None
    key: jax.Array
    key_impl: Any

    @property
    def timing(self) -> Schedule:
        """The schedule; for a method that closes nothing while it trains, one that stays at 0."""
        return self.schedule or schedules.constant(0.0)

    def plan(self, gates: Tree, params: Tree) -> Plan:
        """What closes together in the network of these params."""
        patterns = plan_lib.ruled(params, self.rules)
        own = {name: self.rules[pattern] for name, pattern in patterns.items()}
        final, costs = self.timing.final, self.costs
        return plan_lib.make(gates, self.structure, self.scope, self.groups, own, final, costs=costs, patterns=patterns)

    def _say_reach(self, share: float) -> None:
        """Warns where the chosen groups hold but a part of what can be pruned: the target is of them alone."""
        if self.chosen and share < 0.9:
            kinds = ", ".join(dict.fromkeys(group.kind for group in self.groups if group.prunable))
            warnings.warn(
                f"structure={self.structure!r} and the rules cover {100 * share:.3g}% of the prunable weights; the "
                f"target is of those alone, and the rest stays open. This network has groups of kind {kinds}",
                stacklevel=2,
            )

    def _say_emptied(self, emptied: Sequence[str]) -> None:
        """Warns where the schedule ends beyond what closing all but one unit of each group saves."""
        if emptied:
            warnings.warn(
                f"the schedule ends at {self.timing.final:g}, beyond what structure={self.structure!r} saves while "
                f"each group keeps a unit: {', '.join(emptied[:6])} may lose the last one, and the network is "
                "constant where nothing goes past such a group; a lower end keeps a unit of each",
                stacklevel=2,
            )

    @promotion.usual
    def init(self, params: Tree) -> PruneState:
        """The state before the first step: every gate open."""
        gates = arguments.gates_for(params, self.rules, self.chosen)
        plan = self.plan(gates, params)
        self._say_reach(plan.reach(gates))
        self._say_emptied(plan.emptied(gates, self.timing.final))
        trainable = self.method.init_trainable(params, gates, plan)
        return PruneState(
            step=jnp.int32(0),
            key=jnp.copy(jax.random.key_data(self.key)),  # the state may be donated, and the seed is the caller's
            gates=packed.pack(gates),
            dense=jnp.bool_(self.method.regrows),
            method=self.method.init(params, gates, plan),
            trainable=trainable,
            trainable_state=stepping.trained(self.method).init(trainable),
            inner=self.optimizer.init(params),
        )

    @promotion.usual
    def update(
        self, grads: Tree, state: PruneState, params: Tree | None = None, *, value_fn: Loss | None = None, **extra: Any
    ) -> tuple[Tree, PruneState]:
        """(the updates of a step, the state after it); gates have changed if the schedule names this step."""
        if params is None:
            raise ValueError("params is None; allowed: the params, as in tx.update(grads, state, params)")
        arguments.check_update(state, params)
        method = self.method
        if method.explores and value_fn is None:
            raise ValueError(
                f"value_fn is None; {method.name} runs the batch again: allowed: params -> its loss, as in "
                "tx.update(grads, state, params, value_fn=loss)"
            )
        step = Step(
            method=method,
            optimizer=self.optimizer,
            own=stepping.trained(method),
            grads=grads,
            state=state,
            params=params,
            plan=self.plan(packed.shapes(state.gates), params),
            target=jnp.asarray(self.timing.target(state.step + 1), jnp.float32),
            key=jax.random.wrap_key_data(state.key, impl=self.key_impl),
            value_fn=value_fn,
            extra=extra if value_fn is None else {**extra, "value_fn": value_fn},
        )
        due, gates, after, own_state, rewritten = self._pruned(step)
        updates, inner_state = after.updates, after.inner
        if rewritten is not None:

            def moved(new: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
                return jnp.where(due & (new != (p + u).astype(p.dtype)), new - p, u)

            updates = jax.tree.map(moved, rewritten, updates, params)
        if not method.alive:  # a weight that is kept has taken the step before its gate closes
            updates = stepping.closed(updates, params, packed.unpack(gates), alive=False)
        if method.resets_moments:
            reopened = jax.tree.map(lambda new, old: new & ~old, *map(packed.unpack, (gates, state.gates)))
            inner_state = reset_moments(inner_state, reopened)
        return updates, PruneState(
            step=state.step + 1,
            key=state.key,
            gates=gates,
            dense=state.dense,
            method=own_state,
            trainable=after.trainable,
            trainable_state=after.trainable_state,
            inner=inner_state,
        )

    def _pruned(self, step: Step) -> tuple[jax.Array, Tree, Stepped, Tree, Tree | None]:
        """A step and the pruning after it.

        Returns:
          (whether gates were due to change, the packed gates, the step, the method's state, new params or None).
        """
        method, state = self.method, step.state
        count = state.step + 1
        cheap = method.after_step is None or not (method.explores or method.end_period)
        simple = cheap and not state.trainable and not method.regrows
        # A loop of one turn or none, since a conditional would copy what it hands through. What it reads are the step's
        # inputs, where they are enough to take the step again: to keep its results for a turn that is rarely taken
        # costs more than a step. A method's own state is made before it all the same. It is written in any case, and
        # after it nothing but the step reads the weights, which need no copy then. Of a step whose results are left
        # out here the compiler takes what after_step reads, which is the gradient and the weights before the step.
        after = None if simple else step.taken(state.gates)
        measured = state.method if method.after_step is None else (after or step.taken(state.gates)).method

        def turn(carry: tuple) -> tuple:
            gates = packed.unpack(carry[1])
            done = step.taken(carry[1]) if after is None else after
            due = self.timing.due(count)
            own_state = method.end_period(measured) if method.end_period else measured
            own_state = jax.tree.map(lambda new, old: jnp.where(due, new, old), own_state, measured)
            info = PruneInfo(
                key=jax.random.fold_in(jax.random.fold_in(step.key, 2), count),
                step=count,
                params=optax.apply_updates(step.params, done.updates),
                gates=gates,
                trainable=done.trainable,
                state=measured,
                target=jnp.asarray(self.timing.target(count), jnp.float32),
                exact=due,
                plan=step.plan,
            )
            pruned = method.prune(info)
            rewritten = () if pruned.params is None else (pruned.params,)
            closed = packed.pack(pruned.gates, like=carry[1])
            return jnp.bool_(False), closed, carry[1], {} if simple else own_state, *rewritten

        due = self.timing.due(count)
        if method.every:
            due = due | ((count % method.every == 0) & (self.timing.target(count) > 0))
        gates, was_open, own_state, rewritten = state.gates, state.gates, {} if simple else measured, None
        if self.schedule is not None:
            gates, was_open, own_state, rewritten = _once(due, turn, state.gates, own_state, after, step.params)
        if after is None:
            after = step.taken(was_open)  # gates that the loop hands out: taken after it, the step is taken in place
            own_state = measured
        return due, gates, after, own_state, rewritten


def _once(due: jax.Array, turn: Callable, gates: Tree, own: Tree, after: Stepped | None, params: Tree) -> tuple:
    """(gates, those of before, method state, new params or None) after the turn if it is due, as they were if not."""
    start: tuple = (due, gates, gates, own)
    shapes = jax.eval_shape(turn, start)
    if len(shapes) > len(start):  # the method rewrites weights: those that the step has made are what it starts from
        start = (*start, params if after is None else optax.apply_updates(params, after.updates))
    ended = jax.lax.while_loop(lambda carry: carry[0], turn, start)
    return ended[1], ended[2], ended[3], ended[4] if len(ended) > 4 else None

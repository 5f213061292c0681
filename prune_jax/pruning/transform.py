"""Pruning as an optax transformation: any method, in anybody's training loop.

    tx = pj.prune(optax.adamw(1e-4), pj.magnitude(), pj.cubic(0.9, begin=1_000, end=10_000, every=100))
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)  # closed weights are exactly 0

Everything is inside jit: gates, scores and the count of steps are arrays of the optimizer's state, which is sharded and
checkpointed as any.
"""

import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning import promotion, schedules, trees
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.method import Method, PruneInfo, StepInfo
from prune_jax.pruning.plan import Plan, Rule
from prune_jax.pruning.schedules import Schedule
from prune_jax.pruning.structure import Group

Tree = Any


class PruneState(NamedTuple):
    """The state of the transformation.

    Attributes:
      step: () int32, steps taken.
      key: (2,) uint32, the words of a PRNG key that stays as it is; steps fold their number in.
      gates: a tree like params: a boolean array per prunable kernel, None elsewhere.
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


class _Stepped(NamedTuple):
    """What a step has made: the wrapped optimizer's updates and state, the method's leaves and state."""

    updates: Tree
    inner: Tree
    trainable: Tree
    trainable_state: Tree
    method: Tree


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
      structure: what closes together: unstructured, kinds of `groups` joined by +, block:RxC, n:m.
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
    _check(optimizer, method, schedule, structure, scope, rules)
    timing = schedule or schedules.constant(0.0)
    inner = optax.with_extra_args_support(optimizer)
    own = _trained(method)
    rules = dict(rules or {})
    units = _units(groups)
    if target not in ("weights", "flops", "seconds"):
        raise ValueError(f"target is {target!r}; allowed: weights, flops, seconds")
    if target != "weights" and not hasattr(groups, "costs"):
        raise ValueError(f"target is {target!r}; allowed: weights, unless groups is what pj.trace returned")
    costs = None if target == "weights" else groups.costs(target)
    parsed = structure_lib.parse(structure)
    chosen = structure_lib.chosen(parsed, tuple(units)) if parsed.kind == "groups" else ()
    key, key_impl = _key(seed)

    def plan_of(gates: Tree, params: Tree) -> Plan:
        own = plan_lib.assigned(params, rules)
        return plan_lib.make(gates, structure, scope, units, own, timing.final, costs=costs)

    @promotion.usual
    def init(params: Tree) -> PruneState:
        gates = _gates_for(params, rules, chosen)
        plan = plan_of(gates, params)
        trainable = method.init_trainable(params, gates)
        return PruneState(
            step=jnp.int32(0),
            key=jnp.copy(jax.random.key_data(key)),  # the state may be donated, and the seed is the caller's
            gates=gates,
            dense=jnp.bool_(method.regrows),
            method=method.init(params, gates, plan),
            trainable=trainable,
            trainable_state=own.init(trainable),
            inner=inner.init(params),
        )

    @promotion.usual
    def update(
        grads: Tree,
        state: PruneState,
        params: Tree | None = None,
        *,
        value_fn: Callable[[Tree], jax.Array] | None = None,
        **extra: Any,
    ) -> tuple[Tree, PruneState]:
        if params is None:
            raise ValueError("params is None; allowed: the params, as in tx.update(grads, state, params)")
        _check_update(state, params)
        if method.explores and value_fn is None:
            raise ValueError(
                f"value_fn is None; {method.name} runs the batch again: allowed: params -> its loss, as in "
                "tx.update(grads, state, params, value_fn=loss)"
            )
        if value_fn is not None:
            extra = {**extra, "value_fn": value_fn}
        plan = plan_of(state.gates, params)
        key = jax.random.wrap_key_data(state.key, impl=key_impl)
        hyper = {name: jnp.float32(value) for name, value in method.hyper.items()}

        def stepped(was_open: Tree) -> _Stepped:
            closed_out = grads if method.trains_closed else _kept(grads, was_open)
            # One NaN of a step that the optimizer skips would stay in a method's scores for good.
            finite, seen = _finite(closed_out), _finite(grads)
            pull_sample = None
            if method.sample is not None:
                pull_sample = _pulled(method, params, was_open, state.trainable, sampling_key(state.key, state.step))
                of_kernels, _ = pull_sample(gates_lib.kernels(grads, was_open))
                closed_out = trees.replaced(grads, trees.by_name(of_kernels))
            total = closed_out
            trainable, trainable_state = state.trainable, state.trainable_state
            if method.has_penalty:
                prior = jax.grad(lambda p, t: method.penalty(p, was_open, t, state.step, hyper), (0, 1))
                of_params, of_trainable = prior(params, trainable)
                total = jax.tree.map(jnp.add, closed_out, of_params)
            else:
                of_trainable = jax.tree.map(jnp.zeros_like, trainable)
            if trainable:
                if pull_sample is not None:
                    _, through = pull_sample(gates_lib.kernels(seen, was_open))
                else:
                    # The loss sees w * gate: its gradient with respect to a gate is w times that of the product.
                    _, pull = jax.vjp(lambda t: _floats(method.training_gates(was_open, t)), trainable)
                    both = (gates_lib.kernels(tree, was_open) for tree in (params, seen))
                    (through,) = pull(jax.tree.map(lambda w, g: (w * g).astype(jnp.float32), *both))
                of_trainable = jax.tree.map(jnp.add, of_trainable, through)
                moves, trainable_state = own.update(of_trainable, trainable_state, trainable)
                trainable = optax.apply_updates(trainable, moves)
            updates, inner_state = inner.update(total, state.inner, params, **extra)
            if not method.trains_closed:
                updates = _closed(updates, params, was_open, method.alive)
            new_state = state.method
            if method.after_step is not None:
                info = StepInfo(
                    step=state.step,
                    key=jax.random.fold_in(key, 1),
                    grads=finite,
                    gate_grads=seen,
                    params_before=params,
                    params=optax.apply_updates(params, updates),
                    gates=was_open,
                    hyper=hyper,
                    loss=value_fn and (lambda p, g: value_fn(gates_lib.masked(p, g))),
                    plan=plan,
                )
                new_state = method.after_step(info, new_state)
            return _Stepped(updates, inner_state, trainable, trainable_state, new_state)

        count = state.step + 1
        cheap = method.after_step is None or not (method.explores or method.end_period)
        simple = cheap and not state.trainable and not method.regrows
        # A loop of one turn or none, since a conditional would copy what it hands through. What it reads are the step's
        # inputs, where they are enough to take the step again: to keep its results for a turn that is rarely taken
        # costs more than a step. A method's own state is then that of the step after the loop.
        after = None if simple else stepped(state.gates)

        def turn(carry: tuple) -> tuple:
            gates = carry[1]
            done = stepped(gates) if after is None else after
            due = timing.due(count)
            own_state = method.end_period(done.method) if method.end_period else done.method
            own_state = jax.tree.map(lambda new, old: jnp.where(due, new, old), own_state, done.method)
            stepped_params = optax.apply_updates(params, done.updates)
            info = PruneInfo(
                key=jax.random.fold_in(jax.random.fold_in(key, 2), count),
                step=count,
                params=stepped_params,
                gates=gates,
                trainable=done.trainable,
                state=done.method,
                target=jnp.asarray(timing.target(count), jnp.float32),
                exact=due,
                plan=plan,
            )
            pruned = method.prune(info)
            rewritten = () if pruned.params is None else (pruned.params,)
            return jnp.bool_(False), pruned.gates, gates, {} if simple else own_state, *rewritten

        due = timing.due(count)
        if method.every:
            due = due | ((count % method.every == 0) & (timing.target(count) > 0))
        if schedule is None:
            own_state = {} if after is None else after.method
            gates, was_open, rewritten = state.gates, state.gates, None
        else:
            own_state = {} if after is None else after.method
            gates, was_open, own_state, rewritten = _once(due, turn, state.gates, own_state, after, params)
        if after is None:
            after = stepped(was_open)  # gates that the loop hands out: taken after it, the step is taken in place
            own_state = after.method
        updates, inner_state = after.updates, after.inner
        if rewritten is not None:

            def moved(new: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
                return jnp.where(due & (new != (p + u).astype(p.dtype)), new - p, u)

            updates = jax.tree.map(moved, rewritten, updates, params)
        if not method.alive:  # a weight that is kept has taken the step before its gate closes
            updates = _closed(updates, params, gates, alive=False)
        if method.resets_moments:
            reopened = jax.tree.map(lambda new, old: new & ~old, gates, state.gates)
            inner_state = reset_moments(inner_state, reopened)
        return updates, PruneState(
            count, state.key, gates, state.dense, own_state, after.trainable, after.trainable_state, inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    optimizer: Any, method: Any, schedule: Any, structure: str, scope: str, rules: Mapping[str, Rule] | None
) -> None:
    """Raises TypeError or ValueError for arguments of prune that are wrong for any network."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer is {optimizer!r}; allowed: an optax optimizer, such as optax.adamw(1e-4)")
    if not isinstance(method, Method):
        raise TypeError(f"method is {method!r}; allowed: a Method, such as pj.magnitude()")
    if not isinstance(schedule, Schedule | None):
        raise TypeError(f"schedule is {schedule!r}; allowed: a Schedule, such as pj.constant(0.9), or None")
    if scope not in plan_lib.SCOPES:
        raise ValueError(f"scope is {scope!r}; allowed: {', '.join(plan_lib.SCOPES)}")
    if not isinstance(structure, str):
        raise TypeError(f"structure is {structure!r}; allowed: a text, such as '2:4'")
    structure_lib.parse(structure)
    if method.scheduled and schedule is None:
        raise ValueError(
            f"schedule is None; {method.name} needs one, such as pj.cubic(0.9, begin=0, end=1_000, every=100)"
        )
    if schedule is not None and not method.scheduled:
        raise ValueError(f"schedule is given, and {method.name} closes nothing while it trains; allowed: None")
    if not isinstance(rules, Mapping | None):
        raise TypeError(f'rules is {rules!r}; allowed: a dict of pattern and Rule, such as {{"head": pj.KEEP}}')
    for pattern, rule in (rules or {}).items():
        if not isinstance(pattern, str | re.Pattern):
            raise TypeError(f"a rule's pattern is {pattern!r}; allowed: a text, a regular expression for names")
        if not isinstance(rule, Rule):
            raise TypeError(
                f"the rule {pattern!r} is {rule!r}; allowed: a Rule, such as pj.Rule(sparsity=0.5), or pj.KEEP"
            )
        if rule.structure is not None and structure_lib.parse(rule.structure).kind == "groups":
            raise ValueError(f"a rule's structure is {rule.structure!r}; allowed: unstructured, block:RxC, n:m")
        if rule.sparsity and schedule is not None and not schedule.final:
            raise ValueError(
                f"the rule {pattern!r} has sparsity {rule.sparsity:g}, which is reached on the schedule's way, and the "
                "schedule ends at 0; allowed: a schedule that ends above 0, and pj.KEEP for all that is to stay dense"
            )


def _check_update(state: Any, params: Tree) -> None:
    """Raises TypeError or ValueError for a state that is none of prune's, or that is one of other params."""
    if not isinstance(state, PruneState):
        raise TypeError(
            f"state is a {type(state).__name__}; allowed: what init or update has returned, as in "
            "tx.update(grads, state, params)"
        )
    leaves = trees.by_name(params)
    of_init = jax.tree_util.tree_leaves_with_path(state.gates, is_leaf=lambda gate: gate is None)
    gates = {trees.name(path): gate for path, gate in of_init}
    for name in (*leaves, *(name for name, gate in gates.items() if gate is not None)):
        gate = gates.get(name)
        if name not in gates or name not in leaves or (gate is not None and gate.shape != jnp.shape(leaves[name])):
            raise ValueError(f"the params of update differ from those of init in {name!r}, or in its shape")


def _units(groups: Any) -> tuple[Group, ...]:
    """The groups of a graph, or those of a sequence. TypeError for anything else."""
    if hasattr(groups, "groups"):
        return tuple(groups.groups.values())
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise TypeError(f"groups is {groups!r}; allowed: what pj.trace returned, or a sequence of Group")
    return tuple(groups)


def _key(seed: int | jax.Array) -> tuple[jax.Array, Any]:
    """(a typed PRNG key of a seed, its implementation)."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        key = seed
    elif isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        try:
            key = jax.random.key(seed)
        except OverflowError as error:
            raise ValueError(f"seed is {seed}; allowed: a whole number of 64 bits") from error
    else:
        raise TypeError(f"seed is {seed!r}; allowed: a whole number, or a key of jax.random.key")
    return key, jax.random.key_impl(key)


def sampling_key(words: jax.Array, step: jax.Array) -> jax.Array:
    """The typed key of a step's sample, of the words of a PruneState's key and its step."""
    impl = "threefry2x32" if words.size == 2 else "rbg"
    return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(words, impl=impl), 3), step)


def _pulled(method: Method, params: Tree, gates: Tree, trainable: Tree, key: jax.Array) -> Callable:
    """(gradient with respect to the sampled kernels) -> (that of the kernels, that of the method's leaves)."""
    sampled, pull = jax.vjp(
        lambda kernels, own: method.sample(kernels, gates, own, key),  # type: ignore[misc]
        gates_lib.kernels(params, gates),
        trainable,
    )
    return lambda grads: pull(jax.tree.map(lambda g, like: g.astype(like.dtype), grads, sampled))


def _once(due: jax.Array, turn: Callable, gates: Tree, own: Tree, after: _Stepped | None, params: Tree) -> tuple:
    """(gates, those of before, method state, new params or None) after the turn if it is due, as they were if not."""
    start: tuple = (due, gates, gates, own)
    shapes = jax.eval_shape(turn, start)
    if len(shapes) > len(start):  # the method rewrites weights: those that the step has made are what it starts from
        start = (*start, params if after is None else optax.apply_updates(params, after.updates))
    ended = jax.lax.while_loop(lambda carry: carry[0], turn, start)
    return ended[1], ended[2], ended[3], ended[4] if len(ended) > 4 else None


def _trained(method: Method) -> optax.GradientTransformation:
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


def _gates_for(params: Tree, rules: Mapping[str, Rule], groups: Sequence[Group]) -> Tree:
    """An open gate per kernel, per leaf that a rule names and does not keep, and per member of a group."""
    names = [trees.name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two leaves of params are called {twice!r}; allowed: names that differ")
    own = plan_lib.assigned(params, rules)
    members = {member.name: group for group in groups for member in group.members}
    if absent := next((name for name in members if name not in names), None):
        raise ValueError(
            f"the group {members[absent].name!r}: there is no weight {absent!r}; the weights are {', '.join(names[:8])}"
        )

    def prunable(name: str, leaf: jax.Array) -> bool:
        return not own[name].keep if name in own else name in members or gates_lib.is_kernel(name, leaf)

    gates = gates_lib.open_gates(params, prunable)
    if not jax.tree.leaves(gates):
        kept = " that no rule keeps" if rules else ""
        raise ValueError(
            f"there is no kernel to prune{kept}: the leaves of params are {', '.join(names[:8]) or 'none'}"
        )
    return gates


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


def _closed(updates: Tree, params: Tree, gates: Tree, alive: bool) -> Tree:
    """updates after which the weights of closed gates are 0, or, where they are kept alive, what they were."""
    by_name = trees.by_name(gates)

    def at(path: tuple, u: jax.Array, p: jax.Array) -> jax.Array:
        gate = by_name.get(trees.name(path))
        if gate is None:
            return u
        return jnp.where(gate, u, jnp.zeros_like(u) if alive else -p)

    return jax.tree_util.tree_map_with_path(at, updates, params)


def reset_moments(state: Tree, reopened: Tree) -> Tree:
    """An optimizer's state with what it keeps of each reopened weight (Adam's moments) at 0.

    A moment is known by its path, which ends as its weight's does, and by its weight's shape: optimizers that treat
    some weights apart, or that factor their moments, have trees which differ from that of the params.

    Args:
      state: any optimizer's; reopened: booleans, a tree like the gates, in the place that params have.
    """
    marks = dict(jax.tree_util.tree_leaves_with_path(reopened))
    lengths = sorted({len(path) for path in marks}, reverse=True)

    def at(path: tuple, leaf: Any) -> Any:
        for length in lengths:
            mark = marks.get(path[max(len(path) - length, 0) :])
            if mark is not None and mark.shape == jnp.shape(leaf):
                return jnp.where(mark, jnp.zeros_like(leaf), leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(at, state)

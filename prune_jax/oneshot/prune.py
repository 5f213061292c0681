"""pj.oneshot: a pretrained network pruned from calibration data, layer after layer, without training."""

import functools
import math
import numbers
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.graph import graph as graph_lib
from prune_jax.oneshot import hessian as hessian_lib
from prune_jax.oneshot import masks, structured, wanda
from prune_jax.oneshot.masks import Layout
from prune_jax.oneshot.solver import OneShot
from prune_jax.oneshot.uses import Piece, Site
from prune_jax.oneshot.walk import Walk
from prune_jax.pruning import gates as gates_lib
from prune_jax.pruning import plan as plan_lib
from prune_jax.pruning import promotion, trees
from prune_jax.pruning import structure as structure_lib
from prune_jax.pruning.method import Method
from prune_jax.pruning.plan import Rule
from prune_jax.pruning.structure import Group, Structure

Tree = Any
_ROWS_PER_INPUT = 16  # from which kernels are compared: more do not change how they share


class Done(NamedTuple):
    """A kernel, or a part of one, that has been pruned.

    Attributes:
      name: of the weight; of a group, where units close.
      number, total: which it is, from 1, of how many.
      sparsity: the closed fraction; of its units, where units close.
      error: the squared error of its outputs over their own square, on the calibration data.
      seconds, seconds_left: since the start; until the end, as far as can be told.
    """

    name: str
    number: int
    total: int
    sparsity: float
    error: float
    seconds: float
    seconds_left: float


@promotion.usual
def oneshot(
    fn: Callable,
    params: Tree,
    batches: Iterable[Any],
    method: OneShot | Method,
    *,
    sparsity: float = 0.5,
    structure: str | Sequence[Group] = "unstructured",
    scope: str = "local",
    target: str = "units",
    rules: Mapping[str, Rule] | None = None,
    correct: bool = False,
    weights: Iterable[Any] | None = None,
    progress: Callable[[Done], None] | bool | None = None,
) -> tuple[Tree, Tree]:
    """Prunes a network from a few hundred examples, without training: (params, gates).

    Kernels, of dense layers and convolutions, are pruned in the order in which the function uses them. Each is solved
    for on the inputs that it gets from those already pruned; kernels that read the same inputs share a Hessian.

    Time: one forward pass of the batches, the sums of x x^T, and the method. A kernel that is used k times, such as a
    recurrent cell's, also costs a pass from its first use to its last. Memory: the batches' values that are alive at
    one place of the network, and one Hessian at a time: n^2 float32 for n inputs, a few times that while it is solved
    for, and as many as a grouped convolution has groups. Sums are float32, whatever the dtype of the network.

    Args:
      fn: a function of params and inputs, as of pj.trace.
      params: a pytree of arrays: its kernels may be stacked for a scan, joined, cast, scaled, or sharded.
      batches: each the inputs of one call, a tuple, or an array or a dict where there is one.
      method: pj.sparsegpt(), pj.wanda(), pj.obs() or pj.magnitude().
      sparsity: the closed fraction of each kernel, rounded to whole weights; the groups of a convolution, and outputs
        where a method closes equally many of each, then differ by one at most. Of each group's units, where units
        close. n:m has its own.
      structure: unstructured, n:m over consecutive inputs (features, in a convolution), block:RxC, or groups of the
        network (heads, columns, channels, names, joined by +; auto), or Groups themselves. Units close by second-order
        cost with the survivors corrected, whatever the method.
      scope: where single weights close: "local", every kernel closes `sparsity` of its own; "global", those without a
        rule share it, so that the outputs of the network lose little (see `shares`). That takes a second pass over the
        batches, and a backward pass of each, which holds what the network makes of a batch: let it be small. It goes
        over a part of them where that gives each kernel 16 rows per input.
      target: what `sparsity` is of, where units close: "units", of each group; "flops", of the operations of a call
        with the first batch, which the groups then share so that the outputs of the network lose little. That takes
        passes as scope="global" does.
      rules: pattern -> Rule, as of pj.prune: what stays dense, and kernels with a sparsity or a structure of their own;
        where units close, KEEP alone. An axis is not read: the function says which one counts the inputs.
      correct: whether kernels are solved for against the outputs that their layers have in the dense network, and not
        against those of the dense kernels on inputs that have changed; and the survivors once more, by least squares.
        The dense network's values are held and moved on as well. It takes more examples than a kernel has inputs.
      weights: per batch an array, such as its mask (examples, tokens): what each place counts in the inputs of dense
        layers that have these leading axes, flattened or not. Without, padding counts as input.
      progress: called with a Done per kernel; True for a line on the console, None for one if there is a terminal.
    Returns:
      params with closed weights at 0 and corrected survivors; gates, a tree like params: booleans per kernel that may
      close, None elsewhere.
    Raises:
      ValueError: nothing to prune, a structure that does not divide a kernel, batches that do not fit, inputs that are
        not finite, a kernel whose use is not supported.
    Example:
      >>> import prune_jax as pj
      >>> def net(p, x):
      ...     return jax.nn.relu(x @ p["a"]) @ p["b"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"a": jax.random.normal(keys[0], (4, 8)), "b": jax.random.normal(keys[1], (8, 2))}
      >>> batches = [jax.random.normal(keys[2], (32, 4))]
      >>> params, gates = pj.oneshot(net, params, batches, pj.sparsegpt(), sparsity=0.75)
      >>> pj.layer_sparsity(gates)
      {'a': 0.75, 'b': 0.75}
    """
    method = _as_oneshot(method)
    if correct and method.rounds:
        raise ValueError(f"correct is True; allowed with a {method.name} that rounds: False, for it leaves the grid")
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is {sparsity!r}; allowed: 0 to 1")
    if target not in ("units", "flops"):
        raise ValueError(f"target is {target!r}; allowed: units, flops")
    usual = structure_lib.parse(structure if isinstance(structure, str) else "groups")
    if target == "flops" and usual.kind != "groups":
        raise ValueError(f"target is 'flops'; allowed with structure={structure!r}: units")
    if scope not in ("local", "global"):
        raise ValueError(f"scope is {scope!r}; allowed: local, global")
    if scope == "global" and usual.kind not in ("unstructured", "encoder"):
        raise ValueError(f"scope is 'global'; allowed with structure={usual.text!r}: local")
    batches = list(batches)
    layouts = _layouts(params, method, usual, sparsity, dict(rules or {}))
    places = None if weights is None else list(weights)
    walk = Walk(fn, params, batches, lambda name: name in layouts, places)
    if not walk.sites:
        keeping = [pattern for pattern, rule in dict(rules or {}).items() if rule.keep]
        besides = f" that the rules do not keep ({', '.join(map(repr, keeping))})" if keeping else ""
        raise ValueError(
            f"there is nothing to prune: the network has no linear layer and no convolution{besides}; "
            f"its weights are {', '.join(list(trees.by_name(params))[:8]) or 'none'}"
        )
    _check_named(params, dict(rules or {}), walk)
    job = _Job(walk, params, method, layouts, _progress(progress), walk.again() if correct else None)
    if usual.kind != "groups":
        job.check()
        if scope == "local":
            return job.close_weights()
        own = plan_lib.assigned(params, dict(rules or {}))
        free = {name for name in layouts if name not in own or (own[name].sparsity is None and not own[name].structure)}
        shares = _Job(_guided(walk), params, method, layouts, _mute).shares(free, sparsity)
        return job.close_weights(shares)
    patterns = plan_lib.ruled(params, dict(rules or {}))
    kept = {name: pattern for name, pattern in patterns.items() if rules and rules[pattern].keep}
    graph = graph_lib.trace(fn, params, *walk.example)
    groups = structure_lib.chosen(usual, tuple(graph.groups.values())) if isinstance(structure, str) else structure
    found = structured.readings(graph, groups, usual.text != "auto", walk.sites, kept, job.starts)
    if target == "units":
        counts = {at: min(round(sparsity * r.group.size), r.group.size - 1) for at, r in found.items()}
    else:
        curves = _Job(_guided(walk), params, method, layouts, _mute).curves(found)
        counts = structured.share(graph, params, found, curves, sparsity)
    return job.close_groups(found, counts)


def _guided(walk: Walk) -> Walk:
    """Another walk, over as many batches as tell kernels and groups apart, that knows their slopes."""
    other = walk.again(_ROWS_PER_INPUT)
    other.guide(jax.random.key(0))
    return other


def _as_oneshot(method: Any) -> OneShot:
    if isinstance(method, OneShot):
        return method
    if isinstance(method, Method) and method.name == "magnitude":
        return wanda.magnitude()
    why = f"{method.name}, which learns while a network trains" if isinstance(method, Method) else repr(method)
    raise ValueError(f"method is {why}; allowed: pj.sparsegpt(), pj.wanda(), pj.obs(), pj.magnitude()")


def _layouts(params: Tree, method: OneShot, usual: Any, sparsity: float, rules: dict[str, Rule]) -> dict[str, Layout]:
    """name -> how it closes, of the weights that may."""
    own = plan_lib.assigned(params, rules)
    layouts = {}
    for name, leaf in trees.by_name(params).items():
        rule = own.get(name)
        if (rule is None and not gates_lib.is_kernel(name, leaf)) or (rule is not None and rule.keep):
            continue
        form = structure_lib.parse(rule.structure) if rule is not None and rule.structure else usual
        share = sparsity if rule is None or rule.sparsity is None else rule.sparsity
        if form.kind == "groups" and rule is not None and rule.structure:
            raise ValueError(f"a rule's structure is {form.text!r}; allowed: unstructured, block:RxC, n:m")
        if rule is not None and usual.kind == "groups":
            raise ValueError(f"the rule of {name} is {rule}; allowed where units of groups close: pj.KEEP")
        if rule is not None:
            _check_rule(name, rule, form)
        if form.kind in ("encoder", "unstructured", "groups"):
            layouts[name] = Layout("unstructured", share)
        else:
            n, m = form.sizes
            layouts[name] = Layout(form.kind, share if form.kind == "block" else 1 - n / m, form.sizes)
        if layouts[name].kind not in method.kinds and form.kind != "groups":
            raise ValueError(f"structure is {form.text!r}; allowed with {method.name}: {', '.join(method.kinds)}")
    return layouts


def _check_named(params: Tree, rules: dict[str, Rule], walk: Walk) -> None:
    """Raises ValueError where a rule asks for something of a weight that the function meets in no layer."""
    names = list(trees.by_name(params))
    met = {names[owner] for site in walk.sites for piece in site.pieces for owner in piece.owners}
    for name, rule in plan_lib.assigned(params, rules).items():
        if not rule.keep and name not in met:
            raise ValueError(
                f"the rule of {name} is {rule}, and the network uses it in no linear layer or convolution; allowed: "
                "pj.KEEP"
            )


def _check_rule(name: str, rule: Rule, form: Structure) -> None:
    """Raises ValueError where a rule asks for a sparsity that its pattern does not have."""
    n, m = form.sizes
    if form.kind == "n:m" and rule.sparsity is not None and not math.isclose(rule.sparsity, 1 - n / m, rel_tol=1e-6):
        raise ValueError(
            f"the rule of {name} has sparsity {rule.sparsity:g}, and {form.text} closes {1 - n / m:g}; allowed: None"
        )


class _Job:
    """One run over the sites of a network."""

    def __init__(
        self,
        walk: Walk,
        params: Tree,
        method: OneShot,
        layouts: dict[str, Layout],
        tell: Callable,
        dense: Walk | None = None,
    ) -> None:
        """dense: a walk of the dense network, against whose outputs kernels are solved for."""
        self._walk, self._params, self._method = walk, params, method
        self._layouts, self._tell, self._dense = layouts, tell, dense
        leaves = trees.by_name(params)
        self._names = list(leaves)
        self.starts = np.concatenate([[0], np.cumsum([np.size(leaf) for leaf in leaves.values()], dtype=np.int64)])
        self._open: dict[str, np.ndarray] = {}
        self._begun = self._closing = time.monotonic()

    def close_weights(self, shares: Mapping[tuple[int, int], float] | None = None) -> tuple[Tree, Tree]:
        """All kernels by the method; shares: as of `shares`, where the layouts' are not those that close."""
        self._closing = time.monotonic()  # passes that compare kernels may have come before
        total, number, shares = sum(len(site.pieces) for site in self._walk.sites), 0, shares or {}
        for at, site in enumerate(self._walk.sites):
            factors, cross = self._factors(at, site)
            for n, piece in enumerate(site.pieces):
                weights, layout = self._read(piece), self._layouts[piece.name]
                parts = masks.of_parts(layout, shares.get((at, n)), *weights.shape)
                solve = _solver(self._method.solve, layout if parts is None else layout._replace(sparsity=0.0))
                new, opened, error = solve(weights, factors, cross, parts)
                opened = np.asarray(opened)
                self._write(piece, np.asarray(new), opened)
                number += 1
                closed, lost = 1 - float(opened.mean()), float(jnp.mean(error))
                self._report(piece.name, number, total, closed, lost, number)
        gates = gates_lib.open_gates(self._params, lambda name, leaf: name in self._open, self._open.get)
        return self._result(), gates

    def shares(self, free: Collection[str], sparsity: float) -> dict[tuple[int, int], float]:
        """(number of a site, of its piece) -> its closed fraction; the kernels in `free` close `sparsity` together.

        A weight costs w^2 s / (2 [H^-1]_ii), the rise of the squared error once the others have made up for it
        (optimal brain surgeon: Hassibi and Stork, 1993). H is of rows that count by their slopes, and s is the share of
        the weight's output in those (Walk.guide): the error is the one that reaches the network's outputs, as if the
        slope at a row and an output were a product, and kernels can be compared. What costs least closes; of a
        kernel at most 95 %, or half of what `sparsity` leaves open: costs of single weights add up only as long as
        others are there to make up for them. Nothing is closed here. Memory: a float32 per weight.
        """
        costs: dict[tuple[int, int], np.ndarray] = {}
        for at, site in enumerate(self._walk.sites):
            for n, piece in enumerate(site.pieces):
                if piece.name in free:
                    factors, _ = self._factors(at, site, [n])
                    shares = _shares(self._slopes(at, n))
                    costs[at, n] = np.sort(np.asarray(_costs(self._read(piece), factors, shares)), axis=None)
        return masks.shares(costs, sparsity, max(0.95, (1 + sparsity) / 2))

    def curves(self, found: dict[int, structured.Reading]) -> dict[int, np.ndarray]:
        """Number of a site -> (units,) what the network's outputs lose once 0, 1, ... units of its group are closed.

        As of `shares`: the squared error of the outputs of what reads the group, of rows and outputs that count by
        their slopes, so that groups can be compared. Nothing is closed: each is that of a group alone.
        """
        curves = {}
        for at in sorted(found):
            group, pieces, units = found[at]
            own = self._walk.sites[at].pieces
            numbers = [n for n, piece in enumerate(own) if any(piece is one for one in pieces)]
            factors = jax.tree.map(lambda x: x[0], self._factors(at, self._walk.sites[at], numbers)[0])
            shares = _shares(jnp.concatenate([self._slopes(at, n) for n in numbers], axis=1))
            dense = jnp.concatenate([self._read(own[n])[0] for n in numbers], axis=1)
            curves[at] = structured.curve(dense * jnp.sqrt(shares), factors, units, group.size)
        return curves

    def _slopes(self, at: int, piece: int) -> jax.Array:
        """(batch, outputs) float32: the slopes of a piece's outputs, summed over the batches."""
        return jnp.sum(jnp.stack([batch[at][piece].outputs for batch in self._walk.slopes]), axis=0)

    def close_groups(self, found: dict[int, structured.Reading], counts: dict[int, int]) -> tuple[Tree, Tree]:
        """Units of groups, each where it is read: so many as `counts` says of its site."""
        self._closing = time.monotonic()
        sites = self._walk.sites
        closed: list[tuple[Group, np.ndarray]] = []
        for number, at in enumerate(sorted(found), 1):
            group, pieces, units = found[at]
            factors, cross = jax.tree.map(lambda x: x[0], self._factors(at, sites[at]))
            weights = [self._read(piece)[0] for piece in pieces]
            dense = _aimed(jnp.concatenate(weights, axis=1), factors, cross)
            k = counts[at]
            new, opened = structured.remove(dense, factors, units, group.size, k)
            closed.append((group, ~np.asarray(opened)))
            error = float(hessian_lib.error(factors, dense, new))
            parts = np.split(np.asarray(new), np.cumsum([w.shape[1] for w in weights])[:-1], axis=1)
            for piece, part in zip(pieces, parts, strict=True):
                left = np.broadcast_to((part != 0).any(1)[:, None], part.shape)
                self._write(piece, part[None], left[None])
            self._report(group.name, number, len(found), k / group.size, error, number)
        own: dict[str, np.ndarray] = {}
        shapes = {name: np.shape(leaf) for name, leaf in trees.by_name(self._params).items()}
        for group, gone in closed:
            for member in group.members:
                gate = own.setdefault(member.name, np.ones(shapes[member.name], bool))
                along = np.where(member.units >= 0, gone[member.units], False)
                gate &= ~along.reshape([-1 if i == member.axis else 1 for i in range(gate.ndim)])
        gates = gates_lib.open_gates(self._params, lambda name, leaf: name in own, own.get)
        return gates_lib.masked(self._result(), gates), gates

    def _factors(self, at: int, site: Site, pieces: Sequence[int] = ()) -> tuple[hessian_lib.Factors, jax.Array | None]:
        """(the factors of a site's Hessians, E[x y^T] with y of the dense network), each with a leading axis.

        With the numbers of pieces, rows count by their slopes.
        """
        moments, cross = self._walk.moments(at, self._dense, pieces)
        factors = _factored(moments, self._method.dampening)
        if not np.isfinite(np.asarray(factors.damp)).all():
            raise ValueError(f"the Hessian of {site.pieces[0].name} is singular at every dampening that was tried")
        return factors, cross

    def check(self) -> None:
        """Checks that the layouts divide their kernels. ValueError where one does not, before anything is computed."""
        for site in self._walk.sites:
            for piece in site.pieces:
                self._check(piece)

    def _check(self, piece: Piece) -> None:
        layout, (_, outputs, inputs) = self._layouts[piece.name], piece.entries.shape
        r, c = layout.sizes
        if layout.kind == "n:m" and piece.run % c:
            raise ValueError(f"{piece.name}: {r}:{c} does not divide its {piece.run} inputs")
        if layout.kind == "block" and (inputs % r or outputs % c):
            raise ValueError(f"{piece.name}: block:{r}x{c} does not divide its {inputs} inputs by {outputs} outputs")
        if 0 < self._method.most_inputs < inputs:
            raise ValueError(
                f"{piece.name} has {inputs} inputs; allowed with {self._method.name}: {self._method.most_inputs}, or "
                "more with most_inputs=, whose cube the time grows with"
            )

    def _read(self, piece: Piece) -> jax.Array:
        """(batch, inputs, outputs) float32: the weights as the function contracts with them."""
        values = np.empty(piece.entries.shape, np.float32)
        for owner, here in self._places(piece):
            values[here] = np.asarray(self._walk.weight(owner)).reshape(-1)[piece.entries[here] - self.starts[owner]]
        return jnp.asarray((values if piece.scale is None else values * piece.scale).transpose(0, 2, 1))

    def _places(self, piece: Piece) -> Iterator[tuple[int, Any]]:
        """(the number of a weight, where in the piece its entries stand) of each weight that a piece is of."""
        for owner in piece.owners:
            own = (piece.entries >= self.starts[owner]) & (piece.entries < self.starts[owner + 1])
            yield owner, slice(None) if len(piece.owners) == 1 else own

    def _write(self, piece: Piece, new: np.ndarray, opened: np.ndarray) -> None:
        """Puts weights (batch, inputs, outputs) and what is open of them back where they came from."""
        values, gate = new.transpose(0, 2, 1), opened.transpose(0, 2, 1)
        if piece.scale is not None:
            there = piece.scale != 0
            values, gate = np.where(there, values / np.where(there, piece.scale, 1), 0), gate & there
        for owner, here in self._places(piece):
            leaf, places = self._walk.weight(owner), piece.entries[here] - self.starts[owner]
            flat = np.array(leaf).reshape(-1)
            flat[places] = values[here].astype(flat.dtype)
            whole = flat.reshape(np.shape(leaf))
            self._walk.set(owner, jax.device_put(whole, leaf.sharding) if isinstance(leaf, jax.Array) else whole)
            self._open.setdefault(self._names[owner], np.ones(whole.shape, bool)).reshape(-1)[places] = gate[here]

    def _result(self) -> Tree:
        leaves = [self._walk.weight(i) for i in range(len(self._names))]
        return jax.tree.unflatten(jax.tree.structure(self._params), leaves)

    def _report(self, name: str, number: int, total: int, sparsity: float, error: float, done: int) -> None:
        now = time.monotonic()
        left = (now - self._closing) / done * (total - done)
        self._tell(Done(name, number, total, sparsity, error, now - self._begun, left))


@functools.lru_cache(maxsize=64)
def _solver(solve: Callable, layout: Layout) -> Callable:
    """A compiled function: (new weights, what is open, errors) of batches of matrices.

    It takes their weights, factors, E[x y^T] or None, and the closed fractions, or None for the layout's own.
    """

    def batched(weights: jax.Array, factors: Any, cross: jax.Array | None, shares: jax.Array | None) -> tuple:
        def one(given: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
            weights, factors, cross, share = given
            own = layout if share is None else layout._replace(sparsity=share)
            weights = _aimed(weights, factors, cross)
            new, opened = solve(weights, factors, own)
            if cross is not None:
                new = hessian_lib.corrected(factors.hessian, weights, opened, new, tolerance=1e-3)
            new = jnp.where(opened, new, 0)
            return new, opened, hessian_lib.error(factors, weights, new)

        return jax.lax.map(one, (weights, factors, cross, shares))

    return jax.jit(batched)


@jax.jit
def _aimed(weights: jax.Array, factors: hessian_lib.Factors, cross: jax.Array | None) -> jax.Array:
    """The weights whose outputs come closest to those of the layer in the dense network."""
    return weights if cross is None else hessian_lib.aimed(factors, cross, weights)


def _shares(outputs: jax.Array) -> jax.Array:
    """(batch, outputs): the share of each output in the slopes of a kernel's outputs; 0 where there are none."""
    whole = jnp.sum(outputs, axis=1, keepdims=True)
    return jnp.where(whole > 0, outputs / jnp.where(whole > 0, whole, 1), 0)


@jax.jit
def _costs(weights: jax.Array, factors: hessian_lib.Factors, shares: jax.Array) -> jax.Array:
    """What each weight costs, of batches (batch, inputs, outputs); nothing where the input is always 0.

    Args:
      shares: (batch, outputs) of each output, what its error counts.
    """
    inverse = jnp.sum(jnp.square(factors.upper), axis=1)  # the diagonal of U'U
    return jnp.where(factors.dead[:, :, None], 0, jnp.square(weights) * shares[:, None] / (2 * inverse[:, :, None]))


@functools.partial(jax.jit, static_argnums=1)
def _factored(moments: jax.Array, dampening: float) -> hessian_lib.Factors:
    return jax.lax.map(lambda one: hessian_lib.factors(one, dampening), moments)


def _progress(progress: Any) -> Callable[[Done], None]:
    if callable(progress):
        return progress
    if progress or (progress is None and sys.stderr.isatty()):
        return _line
    return _mute


def _mute(done: Done) -> None:
    """Tells nothing."""


def _line(done: Done) -> None:
    """A line on the console that the next one takes the place of."""
    left = time.strftime("%H:%M:%S" if done.seconds_left >= 3600 else "%M:%S", time.gmtime(done.seconds_left))
    text = f"{done.number}/{done.total} {done.name}: {done.sparsity:.1%} closed, error {done.error:.2e}, {left} left"
    end = "\n" if done.number == done.total or not sys.stderr.isatty() else ""
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)

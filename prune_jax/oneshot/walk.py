"""Calibration batches on their way through a network: held at a cut, and moved on from one to the next.

A segment is the operations between two cuts. It is compiled once for all segments that do the same, such as those of a
stack's layers. Values that no input has a part in are made anew where they are read, and not held.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from prune_jax.errors import first_line
from prune_jax.graph import flat as flat_lib
from prune_jax.graph import inputs as inputs_lib
from prune_jax.graph.flat import Flat, Op
from prune_jax.oneshot import uses as uses_lib
from prune_jax.oneshot.uses import Piece, Site, Use

Tree = Any


class Slopes(NamedTuple):
    """How much a network's outputs hang on what a piece of a kernel makes of a batch.

    Attributes:
      rows: per use (batch, rows), summed over the outputs of the piece; outputs: (batch, outputs), over all rows.
    """

    rows: list[jax.Array]
    outputs: jax.Array


class Walk:
    """Batches at a cut through a function.

    Attributes:
      sites: where the function meets its kernels, in the order in which it does.
      example: the shapes of the first batch.
      slopes: per batch, site and piece, what `guide` found; empty before.
    """

    def __init__(
        self,
        fn: Callable,
        params: Tree,
        batches: Iterable[Any],
        wanted: Callable[[str], bool],
        weights: Iterable[Any] | None = None,
    ) -> None:
        """Reads the function at the shapes of every batch, and holds the batches at its start.

        Args:
          weights: of each batch, what its places count; None for 1.
        Raises:
          ValueError: there is no batch, one that the function does not take, or weights that do not fit.
        """
        self._weights: list[Any] = list(jax.tree.leaves(params))
        self._flats: dict[Any, tuple[Flat, list[Site]]] = {}
        self._envs: list[dict[int, Any]] = []
        self._of: list[tuple[Flat, list[Site]]] = []
        self._compiled: dict[Any, Any] = {}
        self._cuts: dict[int, int] = {}
        self.slopes: list[list[list[Slopes]]] = []
        for i, batch in enumerate(batches):
            inputs = inputs_lib.of_call(batch)
            key = _signature(inputs)
            if not self._envs:
                self.example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), inputs)
            if key not in self._flats:
                try:
                    flat = Flat(fn, params, inputs, wanted)
                except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
                    raise ValueError(
                        f"the network does not take batch {i}, of {_told(inputs)}: {first_line(error)}"
                    ) from error
                numbers = [n for n, name in enumerate(flat.names) if wanted(name)]
                self._flats[key] = flat, uses_lib.sites(flat, self._weights, numbers)
            self._of.append(self._flats[key])
            flat = self._flats[key][0]
            self._envs.append(dict(zip(flat.inputs, map(jnp.asarray, jax.tree.leaves(inputs)), strict=True)))
        if not self._envs:
            raise ValueError("there is no batch; allowed: at least one")
        self._places = _checked(weights, len(self._envs))
        self.sites = self._of[0][1]
        for i, (_, sites) in enumerate(self._of):
            held = self._places[i]
            if held is not None and not any(uses_lib.weighted(use, held) for site in sites for use in site.uses):
                raise ValueError(f"weights has shape {held.shape} with batch {i}; no dense layer's inputs lead with it")
            if [_names(site) for site in sites] != [_names(site) for site in self.sites]:
                raise ValueError(f"with the shapes of batch {i} the network uses its kernels in another order")

    def again(self, rows_per_input: float = math.inf) -> "Walk":
        """Another walk from the start, before this one begins; both share what they compile.

        It goes over as many batches, evenly spread, as give each kernel so many rows per input, and at least over a
        quarter of them, for the rows of an example are alike; over all where that is not enough.
        """
        assert not self._cuts
        share = 0.25
        for at, site in enumerate(self.sites):
            rows = sum(self._rows(i, use) for i in range(self.number) for use in self._of[i][1][at].uses)
            share = max(share, rows_per_input * site.pieces[0].entries.shape[2] / max(rows, 1))
        number = math.ceil(self.number * min(share, 1))
        chosen = [i * self.number // number for i in range(number)]
        other = copy.copy(self)
        other._weights, other._cuts, other.slopes = list(self._weights), {}, []
        other._envs = [dict(self._envs[i]) for i in chosen]
        other._of, other._places = [self._of[i] for i in chosen], [self._places[i] for i in chosen]
        return other

    def _rows(self, i: int, use: Use) -> float:
        """How many rows a use reads of batch i, each by what its place counts."""
        places, rows = self._places[i], uses_lib.number_of_rows(use)
        return rows if places is None or uses_lib.weighted(use, places) is None else rows * float(places.mean())

    @property
    def number(self) -> int:
        """Of batches."""
        return len(self._envs)

    def set(self, number: int, value: Any) -> None:
        """Puts other weights in the place of the leaf of this number."""
        self._weights[number] = value

    def weight(self, number: int) -> Any:
        """The leaf of the weights of this number."""
        return self._weights[number]

    def guide(self, key: jax.Array) -> None:
        """Finds how much the network's outputs hang on what each kernel makes; before the walk begins.

        That is the square of the gradient of a random combination of the outputs, whose expectation is the squared
        gradient of each output, summed. Combinations along the last axis of an output sum to 0, for a softmax does not
        see a shift. One backward pass per batch.

        Raises:
          ValueError: the network has no floating output, no gradient, or one that is not finite.
        """
        compiled: dict[int, Callable] = {}
        finite = []
        for i in range(self.number):
            flat, sites = self._of[i]
            floating = [
                n for n in flat.outs if not isinstance(n, Literal) and jnp.issubdtype(flat.shapes[n].dtype, jnp.inexact)
            ]
            if not floating:
                raise ValueError("the network has no floating output, whose gradient is needed; allowed: scope='local'")
            if id(flat) not in compiled:
                compiled[id(flat)] = jax.jit(_slopes_of(flat, sites, floating))
            keys = jax.random.split(jax.random.fold_in(key, i), len(floating))
            along = [_combination(k, flat.shapes[n].shape) for k, n in zip(keys, floating, strict=True)]
            try:
                found, ok = compiled[id(flat)](self._weights, [self._envs[i][n] for n in flat.inputs], along)
            except (TypeError, ValueError, NotImplementedError) as error:  # complex outputs, loops, primitives
                raise ValueError(f"the network has no gradient: {first_line(error)}; allowed: scope='local'") from error
            finite.append(ok)
            self.slopes.append(found)
        for i, ok in enumerate(jax.device_get(finite)):
            if not ok:
                raise ValueError(f"the outputs' gradient is not finite in batch {i}; allowed: scope='local'")

    def moments(
        self, site: int, dense: "Walk | None" = None, pieces: Sequence[int] = ()
    ) -> tuple[jax.Array, jax.Array | None]:
        """(batch, inputs, inputs) float32, the mean of x x^T over what a site reads; moves all batches up to it.

        Values whose leading axes are those of the weights count by them, others whole.

        Args:
          dense: the walk of another network of the same form.
          pieces: of the site, by whose slopes rows count after `guide`. The sum is returned then, and not the mean.
        Returns:
          (that mean, the mean of x y^T with y what the other network's site reads, or None).
        Raises:
          ValueError: the inputs are not finite, with the kernel and the batch.
        """
        total: tuple[jax.Array, ...] = ()
        rows, finite = 0.0, []
        for i in range(self.number):
            flat, sites = self._of[i]
            uses = sites[site].pieces[pieces[0]].uses if pieces else sites[site].uses
            targets, ops, leaves = self._reach(i, site, uses)
            places = self._places[i]
            along = [None if places is None else uses_lib.weighted(use, places) for use in uses]
            told = tuple(
                (use.site[1], use.op.key, use.side, _place(use.inputs, targets), axes)
                for use, axes in zip(uses, along, strict=True)
            )
            fn, ordered = self._function(flat, ops, leaves, targets, told, uses)
            if not total:
                width = sites[site].pieces[0].entries.shape
                square = (width[0], width[2], width[2])
                total = tuple(jnp.zeros(square, jnp.float32) for _ in range(1 if dense is None else 2))
            held = None if places is None else jnp.asarray(places)
            slopes = [self.slopes[i][site][piece].rows for piece in pieces]
            own = [functools.reduce(jnp.add, rows) for rows in zip(*slopes, strict=True)] if pieces else None
            besides = (own, None if dense is None else dense._read(i, site))
            total, ok = fn(total, held, besides, *(self._given(i, flat, number) for number in ordered))
            finite.append(ok)
            rows += sum(self._rows(i, use) for use in uses)
        for i, ok in enumerate(jax.device_get(finite)):
            if not ok:
                raise ValueError(f"the inputs of {self.sites[site].pieces[0].name} are not finite in batch {i}")
        scale = 1 if pieces else rows or 1
        return total[0] / scale, None if dense is None else total[1] / scale

    def _read(self, i: int, site: int) -> list[jax.Array]:
        """What each use of a site reads of batch i, which is moved up to it."""
        flat, sites = self._of[i]
        uses = sites[site].uses
        targets, ops, leaves = self._reach(i, site, uses)
        fn, ordered = self._function(flat, ops, leaves, targets)
        values = dict(zip(targets, fn(*(self._given(i, flat, number) for number in ordered)), strict=True))
        return [_value(use, values) for use in uses]

    def _reach(self, i: int, site: int, uses: Sequence[Use]) -> tuple[list[int], list[Op], list[int]]:
        """Moves a batch up to a site; (the values that its uses read, the operations that make them, of what)."""
        flat, sites = self._of[i]
        self._advance(i, flat, sites[site].first)
        targets = list(dict.fromkeys(use.inputs for use in uses if not isinstance(use.inputs, Literal)))
        return targets, *flat.slice(targets, self._envs[i])

    def _given(self, i: int, flat: Flat, number: int) -> Any:
        if number < len(self._weights):
            return self._weights[number]
        return flat.consts[number] if number in flat.consts else self._envs[i][number]

    def _advance(self, i: int, flat: Flat, cut: int) -> None:
        """Moves a batch to just before operation `cut`: what is live there is held, and nothing else."""
        start, env = self._cuts.get(i, 0), self._envs[i]
        held = [n for n in flat.live if flat.last_use.get(n, -1) >= cut and flat.made_by.get(n, -1) < cut]
        new = sorted(n for n in held if n not in env)
        if new:
            ops, leaves = flat.slice(new, env)
            assert all(flat.made_by[n] >= start for op in ops for n in op.outs if n in flat.live)
            fn, ordered = self._function(flat, ops, leaves, new)
            env.update(zip(new, fn(*(self._given(i, flat, number) for number in ordered)), strict=True))
        for number in env.keys() - set(held):
            del env[number]
        self._cuts[i] = cut

    def _function(
        self,
        flat: Flat,
        ops: Sequence[Op],
        leaves: Sequence[int],
        targets: Sequence[int],
        told: Any = None,
        uses: Sequence[Use] = (),
    ) -> tuple[Any, list[int]]:
        """(a compiled function of the values of `ordered`, `ordered`).

        It returns the targets; with uses, it takes first the sums of moments, the weights of a batch, and (the slopes
        of the uses, what they read in the dense network), where there are; it returns the sums with those of its uses
        added, and whether they are finite.
        """
        numbers: dict[int, int] = {}
        listed = []
        for op in ops:
            ins = tuple(
                flat_lib.literal_key(n) if isinstance(n, Literal) else numbers.setdefault(n, len(numbers))
                for n in op.ins
            )
            listed.append((op.key, ins, tuple(numbers.setdefault(n, len(numbers)) for n in op.outs)))
        for n in targets:
            numbers.setdefault(n, len(numbers))
        made = {n for op in ops for n in op.outs}
        ordered = [n for n in numbers if n not in made]
        key = (tuple(listed), tuple(numbers[n] for n in targets), told)
        if key not in self._compiled:

            def evaluate(values: Sequence[Any]) -> list[Any]:
                env = dict(zip(ordered, values, strict=True))
                flat_lib.run(ops, env)
                return [env[n] for n in targets]

            def summed(total: tuple, places: Any, besides: tuple, *values: Any) -> tuple[tuple, jax.Array]:
                env = dict(zip(targets, evaluate(values), strict=True))
                slopes, dense = besides
                for n, (use, (*_, axes)) in enumerate(zip(uses, told, strict=True)):
                    x = _value(use, env)
                    held = None if axes is None else places.reshape(axes)
                    others = (None,) if dense is None else (None, dense[n])
                    new = [uses_lib.moments(use, x, held, slopes and slopes[n], other) for other in others]
                    total = tuple(so_far + more for so_far, more in zip(total, new, strict=True))
                return total, jnp.stack([jnp.isfinite(each).all() for each in total]).all()

            plain = lambda *values: evaluate(values)  # noqa: E731
            self._compiled[key] = jax.jit(summed, donate_argnums=0) if uses else jax.jit(plain)
        return self._compiled[key], ordered


def _slopes_of(flat: Flat, sites: Sequence[Site], outs: Sequence[int]) -> Callable:
    """(weights, inputs, what outputs are multiplied with) -> (Slopes per site and piece, whether all are finite)."""
    uses = [use for site in sites for piece in site.pieces for use in piece.uses]
    made = {use.at: flat.ops[use.at].outs[0] for use in uses}

    def combined(added: dict[int, jax.Array], weights: Sequence, inputs: Sequence, along: Sequence) -> jax.Array:
        env = dict(enumerate(weights)) | dict(flat.consts) | dict(zip(flat.inputs, inputs, strict=True))
        start = 0
        for at in sorted(made):
            flat_lib.run(flat.ops[start : at + 1], env)
            env[made[at]], start = env[made[at]] + added[at], at + 1
        flat_lib.run(flat.ops[start:], env)
        return jnp.sum(jnp.stack([jnp.sum(env[n] * by) for n, by in zip(outs, along, strict=True)]))

    def slopes(weights: Sequence, inputs: Sequence, along: Sequence) -> tuple[list[list[Slopes]], jax.Array]:
        added = {at: jnp.zeros(flat.shapes[n].shape, flat.shapes[n].dtype) for at, n in made.items()}
        gradients = jax.grad(combined)(added, weights, inputs, along)
        found = [[of(piece, gradients) for piece in site.pieces] for site in sites]
        return found, jnp.stack([jnp.isfinite(each).all() for each in jax.tree.leaves(found)]).all()

    def of(piece: Piece, gradients: dict[int, jax.Array]) -> Slopes:
        squares = [uses_lib.slopes(use, gradients[use.at])[:, :, piece.rows] for use in piece.uses]
        outputs = jnp.sum(jnp.stack([each.sum(1) for each in squares]), axis=0)
        return Slopes([each.sum(2) for each in squares], outputs)

    return slopes


def _combination(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers, float32; along a last axis of several their mean is 0."""
    numbers = jax.random.normal(key, shape)
    return numbers - numbers.mean(-1, keepdims=True) if shape and shape[-1] > 1 else numbers


def _checked(weights: Iterable[Any] | None, batches: int) -> list[np.ndarray | None]:
    """The weights of each batch, float32; None where there are none."""
    if weights is None:
        return [None] * batches
    held = [np.asarray(one, np.float32) for one in weights]
    if len(held) != batches:
        raise ValueError(f"weights has {len(held)} arrays; allowed: {batches}, one per batch")
    for i, one in enumerate(held):
        if not (np.isfinite(one) & (one >= 0)).all() or not one.any():
            raise ValueError(f"weights has numbers of batch {i} that are no weights; allowed: from 0 on, not all 0")
    return [*held]


def _value(use: Use, env: Mapping[int, Any]) -> jax.Array:
    """What a use reads, of values by their numbers."""
    return jnp.asarray(use.inputs.val) if isinstance(use.inputs, Literal) else env[use.inputs]


def _place(number: Any, targets: list[int]) -> Any:
    return flat_lib.literal_key(number) if isinstance(number, Literal) else targets.index(number)


def _names(site: Site) -> list[Any]:
    return [(piece.name, int(piece.entries.flat[0]), piece.entries.shape) for piece in site.pieces]


def _signature(inputs: Any) -> Any:
    leaves, treedef = jax.tree.flatten(inputs)
    return treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _told(inputs: Any) -> str:
    return "shapes " + ", ".join(str(tuple(jnp.shape(leaf))) for leaf in jax.tree.leaves(inputs))

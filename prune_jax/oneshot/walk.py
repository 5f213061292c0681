"""Calibration batches on their way through a network: held at a cut, and moved on from one to the next.

A segment is the operations between two cuts. It is compiled once for all segments that do the same, such as those of a
stack's layers. Values that no input has a part in are made anew where they are read, and not held.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from prune_jax.errors import first_line
from prune_jax.graph import flat as flat_lib
from prune_jax.graph import inputs as inputs_lib
from prune_jax.graph.flat import Flat, Op
from prune_jax.oneshot import uses as uses_lib
from prune_jax.oneshot.uses import Site, Use

Tree = Any


class Walk:
    """Batches at a cut through a function.

    Attributes:
      sites: where the function meets its kernels, in the order in which it does.
      example: the shapes of the first batch.
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

    def moments(self, site: int) -> jax.Array:
        """(batch, inputs, inputs) float32, the mean of x x^T over what a site reads; moves all batches up to it.

        Values whose leading axes are those of the weights count by them, others whole.

        Raises:
          ValueError: the inputs are not finite, with the kernel and the batch.
        """
        total, rows, finite = None, 0.0, []
        for i in range(self.number):
            flat, sites = self._of[i]
            self._advance(i, flat, sites[site].first)
            uses = sites[site].uses
            targets = list(dict.fromkeys(use.inputs for use in uses if not isinstance(use.inputs, Literal)))
            ops, leaves = flat.slice(targets, self._envs[i])
            places = self._places[i]
            along = [None if places is None else uses_lib.weighted(use, places) for use in uses]
            told = tuple(
                (use.site[1], use.op.key, use.side, _place(use.inputs, targets), axes)
                for use, axes in zip(uses, along, strict=True)
            )
            fn, ordered = self._function(flat, ops, leaves, targets, told, uses)
            if total is None:
                width = sites[site].pieces[0].entries.shape
                total = jnp.zeros((width[0], width[2], width[2]), jnp.float32)
            held = None if places is None else jnp.asarray(places)
            total, ok = fn(total, held, *(self._given(i, flat, number) for number in ordered))
            finite.append(ok)
            for use, axes in zip(uses, along, strict=True):
                share = 1.0 if places is None or axes is None else float(places.mean())
                rows += share * uses_lib.number_of_rows(use)
        for i, ok in enumerate(jax.device_get(finite)):
            if not ok:
                raise ValueError(f"the inputs of {self.sites[site].pieces[0].name} are not finite in batch {i}")
        assert total is not None
        return total / (rows or 1)

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

        It returns the targets; with uses, it takes a sum of moments and the weights of a batch first, and returns the
        sum with those of its uses added, and whether they are finite.
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

            def summed(total: jax.Array, places: Any, *values: Any) -> tuple[jax.Array, jax.Array]:
                env = dict(zip(targets, evaluate(values), strict=True))
                new = jnp.zeros_like(total)
                for use, (*_, axes) in zip(uses, told, strict=True):
                    x = jnp.asarray(use.inputs.val) if isinstance(use.inputs, Literal) else env[use.inputs]
                    new = new + uses_lib.moments(use, x, None if axes is None else places.reshape(axes))
                return total + new, jnp.isfinite(new).all()

            plain = lambda *values: evaluate(values)  # noqa: E731
            self._compiled[key] = jax.jit(summed, donate_argnums=0) if uses else jax.jit(plain)
        return self._compiled[key], ordered


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


def _place(number: Any, targets: list[int]) -> Any:
    return flat_lib.literal_key(number) if isinstance(number, Literal) else targets.index(number)


def _names(site: Site) -> list[Any]:
    return [(piece.name, int(piece.entries.flat[0]), piece.entries.shape) for piece in site.pieces]


def _signature(inputs: Any) -> Any:
    leaves, treedef = jax.tree.flatten(inputs)
    return treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _told(inputs: Any) -> str:
    return "shapes " + ", ".join(str(tuple(jnp.shape(leaf))) for leaf in jax.tree.leaves(inputs))

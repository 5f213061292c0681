"""Axes as products and concatenations of atoms, and what makes two of them the same.

An axis of 384 may be 12 heads of 32, or 128 channels beside 256 others. An expression says so:

  ("atom", i)          one indivisible axis, number i
  ("product", parts)   its parts, major to minor: what reshape merges and splits
  ("sum", parts)       its parts side by side: what concatenate joins and slice takes apart

Nobody says in advance of what an axis is made. Every axis starts as an atom; primitives unite axes, and an atom that is
united with an expression becomes it, everywhere. What ends up as one atom goes together: index i of it can only be cut
out of all the axes that contain it at once. An atom can be pinned, with the reason why nothing can be cut out of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Expr = tuple[str, Any]
ONE: Expr = ("product", ())  # an axis of size 1
EMPTY: Expr = ("sum", ())  # an axis of size 0


class Atoms:
    """A set of atoms with their sizes, what they have become, and why some are pinned.

    Attributes:
      pins: atom -> why nothing can be cut out of it.
      at: the primitive at work, for the reasons.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._became: dict[int, Expr] = {}
        self.pins: dict[int, str] = {}
        self.at = ""

    def new(self, size: int, pin: str | None = None) -> Expr:
        """A new axis of this size, pinned for the reason given."""
        if size == 1:
            return ONE
        self._sizes.append(int(size))
        atom = ("atom", len(self._sizes) - 1)
        if pin:
            self.pin(atom, pin)
        return atom

    def size(self, expr: Expr) -> int:
        """The length of an axis."""
        kind, parts = expr
        if kind == "atom":
            return self._sizes[parts]
        sizes = [self.size(part) for part in parts]
        return math.prod(sizes) if kind == "product" else sum(sizes)

    def resolve(self, expr: Expr) -> Expr:
        """The expression in today's atoms, flat: no product in a product, no sum in a sum."""
        kind, parts = expr
        if kind == "atom":
            became = self._became.get(parts)
            if became is None:
                return expr
            if became[0] == "atom" and became[1] not in self._became:
                return became
            resolved = self._became[parts] = self.resolve(became)
            return resolved
        flat: list[Expr] = []
        for part in parts:
            inner = self.resolve(part)
            if inner[0] == kind:
                flat.extend(inner[1])
            elif kind == "product" or self.size(inner):
                flat.append(inner)
        return flat[0] if len(flat) == 1 else (kind, tuple(flat))

    def leaves(self, expr: Expr) -> Iterator[int]:
        """The numbers of the atoms in an expression, in order, as often as they occur."""
        kind, parts = self.resolve(expr)
        if kind == "atom":
            yield parts
        else:
            for part in parts:
                yield from self.leaves(part)

    def pin(self, expr: Expr, reason: str) -> None:
        """Pins every atom of an expression; the first reason stays."""
        for atom in self.leaves(expr):
            self.pins.setdefault(atom, reason)

    def reason(self, expr: Expr) -> str | None:
        """Why an expression is pinned, None if no atom of it is."""
        return next((self.pins[atom] for atom in self.leaves(expr) if atom in self.pins), None)

    def unite(self, left: Expr, right: Expr) -> None:
        """Makes two axes of one size the same. What cannot be brought into one form is pinned."""
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return
        if self.size(left) != self.size(right):
            return self._give_up(left, right)
        if left[0] == "atom":
            return self._bind(left, right)
        if right[0] == "atom":
            return self._bind(right, left)
        if left[0] == right[0]:
            split = self._factor if left[0] == "product" else self._cut
            return self._zip(list(left[1]), list(right[1]), left[0], split)
        return self._mix(*((left, right) if left[0] == "product" else (right, left)))

    def _give_up(self, *exprs: Expr) -> None:
        for expr in exprs:
            self.pin(expr, f"{self.at} brings two axes together that are split in ways that do not fit")

    def _bind(self, atom: Expr, expr: Expr) -> None:
        number = atom[1]
        if number in self.leaves(expr):
            return self._give_up(expr)
        self._became[number] = expr
        if number in self.pins:
            self.pin(expr, self.pins.pop(number))

    def _zip(self, left: list[Expr], right: list[Expr], kind: str, split: Callable[[Expr, int], Any]) -> None:
        """Unites two products, or two sums, part by part; the larger part is split where they differ in size."""
        while left and right:
            a, b = self.resolve(left[0]), self.resolve(right[0])
            if a[0] == kind:  # what an earlier part has made of it
                left[:1] = a[1]
                continue
            if b[0] == kind:
                right[:1] = b[1]
                continue
            sizes = self.size(a), self.size(b)
            if sizes[0] == sizes[1]:
                self.unite(a, b)
                del left[0], right[0]
                continue
            larger, rest = (a, left) if sizes[0] > sizes[1] else (b, right)
            halves = split(larger, min(sizes))
            if halves is None:
                return self._give_up(*left, *right)
            rest[:1] = halves

    def _mix(self, product: Expr, total: Expr) -> None:
        """Unites a product with a sum: the product cut where the sum's parts end, or the sum factored."""
        rest, pairs = product, []
        for part in total[1]:
            if self.size(rest) == self.size(part):
                pairs.append((rest, part))
                continue
            halves = self._cut(rest, self.size(part))
            if halves is None:
                break
            pairs.append((halves[0], part))
            rest = halves[1]
        else:
            for ours, theirs in pairs:
                self.unite(ours, theirs)
            return
        first = self.resolve(product)
        outer = first[1][0] if first[0] == "product" else first
        factors = self._factor(total, self.size(outer))
        if factors is None:
            return self._give_up(product, total)
        self.unite(product, ("product", factors))

    def _factor(self, expr: Expr, outer: int) -> tuple[Expr, Expr] | None:
        """(an axis of size `outer`, the rest) whose product the expression is; None if it is no such product."""
        size = self.size(expr)
        if size % outer:
            return None
        kind, parts = expr = self.resolve(expr)
        if kind == "atom":
            factors = self.new(outer), self.new(size // outer)
            self._bind(expr, ("product", factors))
            return factors
        if kind == "product":
            return self._factor_product(list(parts), outer)
        inner = size // outer
        halves = [None if self.size(part) % inner else self._factor(part, self.size(part) // inner) for part in parts]
        if None in halves:
            return None
        for half in halves[1:]:
            self.unite(halves[0][1], half[1])  # type: ignore[index]
        return ("sum", tuple(half[0] for half in halves)), halves[0][1]  # type: ignore[index]

    def _factor_product(self, parts: list[Expr], outer: int) -> tuple[Expr, Expr] | None:
        taken: list[Expr] = []
        while outer > 1:
            part = self.resolve(parts[0])
            size = self.size(part)
            if outer % size == 0:
                taken.append(parts.pop(0))
                outer //= size
                continue
            halves = self._factor(part, outer) if size % outer == 0 else None
            if halves is None:
                return None
            taken.append(halves[0])
            parts[0] = halves[1]
            outer = 1
        return ("product", tuple(taken)), ("product", tuple(parts))

    def _cut(self, expr: Expr, length: int) -> tuple[Expr, Expr] | None:
        """(the first `length` of an axis, the rest) whose concatenation it is; None if it is not to be had."""
        size = self.size(expr)
        kind, parts = expr = self.resolve(expr)
        if not 0 < length < size:
            return None
        if kind == "atom":
            halves = self.part(length), self.part(size - length)
            self._bind(expr, ("sum", halves))
            return halves
        if kind == "sum":
            taken, rest = [], list(parts)
            while length:
                part = rest[0]
                if self.size(part) <= length:
                    taken.append(rest.pop(0))
                    length -= self.size(part)
                    continue
                cut = self._cut(part, length)
                if cut is None:
                    return None
                taken.append(cut[0])
                rest[0] = cut[1]
                length = 0
            return ("sum", tuple(taken)), ("sum", tuple(rest))
        inner = size // self.size(parts[0])
        cut = None if length % inner else self._cut(parts[0], length // inner)
        if cut is None:
            return None
        return ("product", (cut[0], *parts[1:])), ("product", (cut[1], *parts[1:]))

    def part(self, size: int) -> Expr:
        """A new part of a sum; one of size 1 is an atom, too, for it has its place, and stays."""
        self._sizes.append(int(size))
        atom = ("atom", len(self._sizes) - 1)
        if size == 1:
            self.pin(atom, f"{self.at} makes a part of one index of it")
        return atom

    def cut(self, expr: Expr, sizes: Sequence[int], reason: str) -> list[Expr]:
        """The parts of these sizes that an axis consists of; new pinned axes where it cannot be taken apart."""
        parts, rest = [], expr
        for size in sizes[:-1]:
            halves: tuple[Expr, Expr] | None
            if size == 0:
                halves = EMPTY, rest
            elif size == self.size(rest):
                halves = rest, EMPTY
            else:
                halves = self._cut(self.resolve(rest), size)
            if halves is None:
                self.pin(expr, reason)
                return [self.new(size, reason) for size in sizes]
            parts.append(halves[0])
            rest = halves[1]
        return [*parts, rest]

    def units(self, expr: Expr, atom: int) -> np.ndarray:
        """(length,) int32: which index of an atom each index of an axis belongs to, -1 for none."""
        kind, parts = self.resolve(expr)
        if kind == "atom":
            size = self._sizes[parts]
            return np.arange(size, dtype=np.int32) if parts == atom else np.full(size, -1, np.int32)
        columns = [self.units(part, atom) for part in parts]
        if kind == "sum":
            return np.concatenate(columns) if columns else np.zeros(0, np.int32)
        whole = np.full(1, -1, np.int32)
        for column in columns:
            whole = np.maximum(whole[:, None], column[None]).reshape(-1)
        return whole

    def kept(self, expr: Expr, keep: dict[int, np.ndarray]) -> np.ndarray | None:
        """The indices of an axis that stay, None for all; keep: atom -> booleans, True where its index stays."""
        cut = {atom for atom in self.leaves(expr) if atom in keep and not keep[atom].all()}
        if not cut:
            return None
        stays = np.ones(self.size(self.resolve(expr)), bool)
        for atom in cut:
            units = self.units(expr, atom)
            stays &= np.where(units < 0, True, keep[atom][units])
        return np.flatnonzero(stays)

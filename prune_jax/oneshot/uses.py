"""Where a flat function meets its kernels: each a batch of matrices that map rows of inputs to rows of outputs.

A kernel may be transposed, reshaped, sliced out of a stack, joined with others, cast and scaled on its way to the
contraction. Running that way over the numbers of its entries tells which entry stands where.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from prune_jax.graph import flat as flat_lib
from prune_jax.graph import inputs as inputs_lib
from prune_jax.graph import tracing
from prune_jax.graph.flat import Flat, Op

_MOVES = frozenset(
    [
        "transpose",
        "reshape",
        "squeeze",
        "broadcast_in_dim",
        "slice",
        "split",
        "dynamic_slice",
        "gather",
        "rev",
        "concatenate",
        "take",
        "stack",
    ]
)
_SAME = frozenset(
    ["convert_element_type", "copy", "copy_p", "reduce_precision", "optimization_barrier", "sharding_constraint"]
)
_SCALES = frozenset(["mul", "div", "neg", "select_n"])
_PATCHES = 1 << 26  # entries of a convolution's patches that are held at once


class Use(NamedTuple):
    """A contraction of values with a kernel.

    Attributes:
      at: the number of the operation; op: itself; side: of the kernel among its operands.
      inputs: the number of the other operand, or a Literal.
      site: equal for uses that read the same rows of the same values.
    """

    at: int
    op: Op
    side: int
    inputs: Any
    site: Any


class Piece(NamedTuple):
    """A part of one weight, or of several joined, that is solved for by itself.

    Attributes:
      name: of the weight; of its first where rows of inputs are shared between several.
      entries: (batch, outputs, inputs) int64; which entry of the weights, all flattened one after the other, stands
        there.
      scale: of the same shape, what the function multiplies the weights with; None for 1.
      owners: the numbers of the weights that it is of.
      run: how many consecutive inputs are features; n:m divides it.
      uses: of the operand that it is a part of; rows: which of the operand's outputs are its own.
    """

    name: str
    entries: np.ndarray
    scale: np.ndarray | None
    owners: tuple[int, ...]
    run: int
    uses: tuple[Use, ...]
    rows: np.ndarray


class Site(NamedTuple):
    """Pieces that read the same inputs, and the uses that tell them."""

    uses: tuple[Use, ...]
    pieces: tuple[Piece, ...]

    @property
    def first(self) -> int:
        """The number of the operation that reads them first."""
        return min(use.at for use in self.uses)


class _Unsupported(Exception):
    """A kernel that is changed on its way in a manner that cannot be undone."""


def sites(flat: Flat, params: Sequence[Any], wanted: Sequence[int]) -> list[Site]:
    """The sites in the order of their first use.

    Args:
      params: the leaves of the weights; wanted: the numbers of those that may be pruned.
    Raises:
      ValueError: a kernel is used in a way that is not supported.
    """
    return _Finder(flat, params, wanted).sites()


class _Finder:
    def __init__(self, flat: Flat, params: Sequence[Any], wanted: Sequence[int]) -> None:
        self._flat, self._params, self._wanted = flat, params, set(wanted)
        self._starts = np.concatenate([[0], np.cumsum([np.size(leaf) for leaf in params], dtype=np.int64)])
        # int32, which jax has: entries are counted among the wanted weights alone
        sizes = [np.size(leaf) if i in self._wanted else 0 for i, leaf in enumerate(params)]
        self._offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if self._offsets[-1] >= 2**31:
            raise ValueError(f"the kernels have {self._offsets[-1]:,} entries; allowed: fewer than {2**31:,}")
        self._ids: dict[int, Any] = {}
        self._made_by_kernels: set[int] = set()
        self._changes: dict[tuple[int, bool], frozenset[int]] = {}
        self._by_inputs: set[int] = set()  # weights that inputs fetch or scale first
        self._layouts: dict[Any, tuple[np.ndarray, np.ndarray | None]] = {}

    def sites(self) -> list[Site]:
        by_piece: dict[Any, tuple[np.ndarray, np.ndarray | None, int, list[Use]]] = {}
        blamed: dict[int, str] = {}
        for at, op in enumerate(self._flat.ops):
            if op.name not in ("dot_general", "conv_general_dilated"):
                continue
            found = self._use(at, op, blamed)
            if found is None:
                continue
            use, (ids, scale, run) = found
            key = (ids.shape, ids.tobytes())
            by_piece.setdefault(key, (ids, scale, run, []))[3].append(use)
        self._check(by_piece, blamed)
        groups: dict[Any, tuple[list[Use], list[Piece]]] = {}
        for ids, scale, run, uses in by_piece.values():
            site = groups.setdefault(tuple(use.site for use in uses), (uses, []))
            site[1].extend(self._pieces(ids, scale, run, tuple(uses)))
        return sorted((Site(tuple(uses), tuple(pieces)) for uses, pieces in groups.values()), key=lambda s: s.first)

    def _use(self, at: int, op: Op, blamed: dict[int, str]) -> tuple[Use, Any] | None:
        """The use that a contraction is of a kernel, with (entries, scale, run); None if it is none."""
        flat, dense = self._flat, op.name == "dot_general"
        for number in op.ins if dense else op.ins[1:]:
            self._by_inputs |= self._changed(number, whole=not dense)
        sides = [side for side in ((1, 0) if dense else (1,)) if not self._is_live(op.ins[side])]
        problems: list[tuple[int, str]] = []
        for side in sides:
            number = op.ins[side]
            if isinstance(number, Literal) or not flat.depends[number]:
                continue
            try:
                ids = self._entries(number)
            except _Unsupported as error:
                problems += [(i, str(error)) for i in flat.depends[number]]
                continue
            if ids is None:
                continue
            if dense:
                layout = _dense_layout(op, side)
            elif op.eqn.params["batch_group_count"] > 1:
                problems += [(i, "batch groups of a convolution") for i in flat.depends[number]]
                continue
            else:
                layout = _conv_layout(op)
            key = (number, side, op.key)
            if key not in self._layouts:
                self._layouts[key] = layout(np.asarray(ids)), self._scale(number, layout)
            ids, scale = self._layouts[key]
            self._made_by_kernels.add(op.outs[0])
            other = op.ins[1 - side]
            rows = _rows_key(op, side)
            site = (flat_lib.literal_key(other) if isinstance(other, Literal) else other, rows)
            run = ids.shape[2] if dense else op.eqn.invars[1].aval.shape[op.eqn.params["dimension_numbers"][1][1]]
            return Use(at, op, side, other, site), (ids, scale, run)
        ops = flat.slice([op.ins[sides[0]]], [])[0] if len(sides) == 1 and problems else []
        if not self._made_by_kernels & {n for made in ops for n in made.outs}:
            # The other operand is live, and this one made of weights by no kernel: it was meant as a kernel itself.
            blamed |= {i: why for i, why in problems if i not in blamed}
        return None

    def _is_live(self, number: Any) -> bool:
        return not isinstance(number, Literal) and number in self._flat.live

    def _changed(self, number: Any, whole: bool) -> frozenset[int]:
        """The weights that inputs make a value of, entry by entry: matrices fetched by an index; whole: scaled, too."""
        if not self._is_live(number) or number not in self._flat.made_by:
            return frozenset()
        if (number, whole) not in self._changes:
            self._changes[number, whole] = self._changed_by(number, whole)
        return self._changes[number, whole]

    def _changed_by(self, number: int, whole: bool) -> frozenset[int]:
        op = self._flat.ops[self._flat.made_by[number]]
        if op.name not in _MOVES | _SAME and not (whole and op.name in _SCALES):
            return frozenset()
        if op.name in ("gather", "dynamic_slice") and not self._is_live(op.ins[0]):
            return self._flat.depends[op.ins[0]] if tracing.fetches(op.eqn) else frozenset()
        found = frozenset().union(*(self._changed(i, whole) for i in op.ins))
        if not whole:
            return found
        here = [i for i in op.ins if not isinstance(i, Literal) and not self._is_live(i)]
        return found.union(*(self._flat.depends[i] for i in here if self._aval(i).size > 1))

    def _entries(self, number: Any) -> Any:
        """Which entry of the wanted weights stands where in a value, from 1; None where none does."""
        if isinstance(number, Literal) or not self._flat.depends[number]:
            return None
        if number not in self._ids:
            try:
                self._ids[number] = self._made(number)
            except _Unsupported as error:
                self._ids[number] = error
        if isinstance(self._ids[number], _Unsupported):
            raise self._ids[number]
        return self._ids[number]

    def _made(self, number: int) -> Any:
        flat = self._flat
        if number not in flat.made_by:
            start = int(self._offsets[number]) + 1
            return jnp.arange(start, start + np.size(self._params[number]), dtype=jnp.int32).reshape(
                np.shape(self._params[number])
            )
        op = flat.ops[flat.made_by[number]]
        place = op.outs.index(number)
        operands = [self._entries(i) for i in op.ins]
        if op.name in _SAME:
            return operands[place]
        if op.name in _SCALES:
            carried = [ids for ids in operands if ids is not None]
            if len(carried) != 1 or (op.name == "div" and operands[0] is None):
                raise _Unsupported(op.name)
            return carried[0] if carried[0].shape == flat.shapes[number].shape else _never(op.name)
        if op.name not in _MOVES:
            raise _Unsupported(op.name)
        if op.name in ("gather", "dynamic_slice") and operands[0] is None:
            raise _Unsupported(op.name)
        filled = []
        for i, ids in zip(op.ins, operands, strict=True):
            if ids is not None:
                filled.append(ids)
            elif op.name in ("concatenate", "stack"):
                filled.append(jnp.zeros(self._aval(i).shape, jnp.int32))
            else:
                filled.append(self._value(i, {}))
        if op.name == "gather":
            params = {**op.eqn.params, "fill_value": None}
            return op.eqn.primitive.bind(*filled, **params)
        return op.run(*filled)[place]

    def _aval(self, i: Any) -> Any:
        return i.aval if isinstance(i, Literal) else self._flat.shapes[i]

    def _value(self, number: Any, weights: Mapping[int, Any]) -> Any:
        """A value that no input has a part in; weights: number of a wanted one -> what stands in its place."""
        if isinstance(number, Literal):
            return number.val
        ops, leaves = self._flat.slice([number], [])
        env = dict(self._flat.consts)
        env |= {i: weights.get(i, self._params[i]) for i in leaves if i < len(self._params)}
        flat_lib.run(ops, env)
        return env[number]

    def _scale(self, number: int, layout: Any) -> np.ndarray | None:
        """What each entry is multiplied with on its way, None for 1."""
        ops, _ = self._flat.slice([number], [])
        if not any(op.name in _SCALES for op in ops):
            return None
        filled = [{i: jnp.full_like(self._params[i], value) for i in self._flat.depends[number]} for value in (0, 1)]
        at_zero, at_one = (np.asarray(self._value(number, weights), np.float32) for weights in filled)
        if at_zero.any():
            raise ValueError(
                f"{self._name(min(self._flat.depends[number]))} is replaced by other numbers than 0 in places; "
                "allowed: weights times a gate or a scale"
            )
        return None if (at_one == 1).all() else layout(at_one)

    def _name(self, i: int) -> str:
        return self._flat.names[i]

    def _check(self, by_piece: Mapping[Any, Any], blamed: Mapping[int, str]) -> None:
        """Refuses what would be pruned twice, or not at all without a word."""

        def refuse(i: int, why: str) -> NoReturn:
            name = self._name(i)
            raise ValueError(f'{name} {why}; leave it dense with rules={{"{re.escape(name)}": pj.KEEP}}')

        taken = np.zeros(int(self._offsets[-1]) + 1, bool)
        for ids, *_ in by_piece.values():
            own = ids.reshape(-1)
            own = own[own > 0]
            if taken[own].any() or np.unique(own).size != own.size:
                refuse(
                    int(self._owner(own[:1])[0]),
                    "is used in two ways, such as transposed, and has no single set of inputs",
                )
            taken[own] = True
        for i, why in self._flat.hidden.items():
            if i in self._wanted:
                refuse(i, f"is used inside a {why}, where its inputs are not to be had")
        for i in sorted(self._wanted & self._by_inputs):
            if not taken[self._offsets[i] + 1 : self._offsets[i + 1] + 1].any():
                refuse(i, "is fetched or scaled by inputs before it is a kernel")
        for i, why in blamed.items():
            refuse(i, f"is not the kernel itself: {why} changes it first, which cannot be undone")

    def _owner(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._offsets, np.asarray(ids, np.int64) - 1, side="right") - 1

    def _pieces(self, ids: np.ndarray, scale: np.ndarray | None, run: int, uses: tuple[Use, ...]) -> list[Piece]:
        """The pieces of an operand: its outputs by the weight that they belong to."""
        owners = self._owner(ids)
        first = owners[0, :, 0]
        whole = (owners == first[None, :, None]).all()
        made = []
        for owner in dict.fromkeys(first.tolist()) if whole else [int(first[0])]:
            rows = np.flatnonzero(first == owner) if whole else np.arange(first.size)
            if (ids[:, rows] == 0).any():
                raise ValueError(f"{self._name(owner)} is joined with numbers that are no weights to prune")
            own = owners[:, rows]
            entries = ids[:, rows].astype(np.int64) - 1 - self._offsets[own] + self._starts[own]
            parts = None if scale is None else scale[:, rows]
            made.append(Piece(self._name(owner), entries, parts, tuple(np.unique(own).tolist()), run, uses, rows))
        return made


def _never(name: str) -> Any:
    raise _Unsupported(name)


# Layouts -------------------------------------------------------------------------------------------------------------


def _dense_layout(op: Op, side: int) -> Any:
    """A function from the kernel's operand to (batch, outputs, inputs)."""
    contracted, batch = (axes[side] for axes in op.eqn.params["dimension_numbers"])

    def layout(value: np.ndarray) -> np.ndarray:
        free = [i for i in range(value.ndim) if i not in (*contracted, *batch)]
        sizes = [math.prod(value.shape[i] for i in axes) for axes in (batch, free, contracted)]
        return np.ascontiguousarray(value.transpose(*batch, *free, *contracted).reshape(sizes))

    return layout


def _conv_layout(op: Op) -> Any:
    _, rhs, _ = op.eqn.params["dimension_numbers"]
    groups = op.eqn.params["feature_group_count"]

    def layout(value: np.ndarray) -> np.ndarray:
        moved = value.transpose(rhs[0], *rhs[2:], rhs[1])
        return np.ascontiguousarray(moved.reshape(groups, moved.shape[0] // groups, -1))

    return layout


def _rows_key(op: Op, side: int) -> Any:
    """Equal for contractions that read the same rows of the same operand."""
    if op.name == "dot_general":
        contracted, batch = op.eqn.params["dimension_numbers"]
        return (contracted[1 - side], batch[1 - side])
    params = op.eqn.params
    window = tuple(op.eqn.invars[1].aval.shape[i] for i in params["dimension_numbers"][1][2:])
    words = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count")
    return (window, *(params[word] for word in words), params["dimension_numbers"][0])


def weighted(use: Use, weights: np.ndarray) -> tuple[int, ...] | None:
    """The leading axes of a use's inputs along which weights lie, flattened or not; None where they lie along none."""
    if use.op.name != "dot_general":
        return None
    contracted, batch = (axes[1 - use.side] for axes in use.op.eqn.params["dimension_numbers"])
    shape = use.op.eqn.invars[1 - use.side].aval.shape
    for axes in range(1, min([*contracted, *batch, len(shape)]) + 1):
        if math.prod(shape[:axes]) == weights.size and shape[:axes] in (weights.shape, (weights.size,)):
            return shape[:axes]
    return None


def number_of_rows(use: Use) -> int:
    """Over how many rows `moments` sums."""
    eqn = use.op.eqn
    if use.op.name == "dot_general":
        contracted, batch = (axes[1 - use.side] for axes in eqn.params["dimension_numbers"])
        shape = eqn.invars[1 - use.side].aval.shape
        return math.prod(n for i, n in enumerate(shape) if i not in (*contracted, *batch))
    lhs, _, out = eqn.params["dimension_numbers"]
    return eqn.invars[0].aval.shape[lhs[0]] * math.prod(eqn.outvars[0].aval.shape[i] for i in out[2:])


def moments(
    use: Use,
    value: jax.Array,
    weights: jax.Array | None = None,
    slopes: jax.Array | None = None,
    other: jax.Array | None = None,
) -> jax.Array:
    """(batch, inputs, inputs) float32, the sum of x y^T over the rows that a use reads; y is x without another value.

    Args:
      weights: of the leading axes of value, what each row counts; None for 1.
      slopes: (batch, rows) what each row counts besides; None for 1.
      other: of value's shape, what y is read from.
    """
    eqn = use.op.eqn
    values = [value] if other is None else [value, other]
    if weights is not None:
        root = jnp.sqrt(weights).reshape(weights.shape + (1,) * (value.ndim - weights.ndim))
        values = [each.astype(jnp.float32) * root for each in values]
    if use.op.name == "dot_general":
        contracted, batch = (axes[1 - use.side] for axes in eqn.params["dimension_numbers"])
        free = [i for i in range(value.ndim) if i not in (*contracted, *batch)]
        sizes = [math.prod(value.shape[i] for i in axes) for axes in (batch, free, contracted)]
        order = (*batch, *free, *contracted)
        return _products([jnp.transpose(each, order).reshape(sizes).astype(jnp.float32) for each in values], slopes)
    lhs, rhs, _ = eqn.params["dimension_numbers"]
    groups = eqn.params["feature_group_count"]
    window = math.prod(eqn.invars[1].aval.shape[i] for i in rhs[2:])
    examples, features = value.shape[lhs[0]], value.shape[lhs[1]]
    width = window * (features // groups)

    def of(parts: Sequence[jax.Array], slopes: jax.Array | None) -> jax.Array:
        met = [inputs_lib.patches(eqn, part.astype(jnp.float32)) for part in parts]
        rows = [each.reshape(-1, window, groups, features // groups).transpose(2, 0, 1, 3) for each in met]
        return _products([each.reshape(groups, -1, width) for each in rows], slopes)

    if number_of_rows(use) * window * features <= _PATCHES:
        return of(values, slopes)

    def step(i: jax.Array, total: jax.Array) -> jax.Array:
        parts = [jax.lax.dynamic_slice_in_dim(each, i, 1, lhs[0]) for each in values]
        own = None
        if slopes is not None:
            by_example = slopes.reshape(groups, examples, -1)
            own = jax.lax.dynamic_index_in_dim(by_example, i, 1, keepdims=False)
        return total + of(parts, own)

    return jax.lax.fori_loop(0, examples, step, jnp.zeros((groups, width, width), jnp.float32))


def slopes(use: Use, gradient: jax.Array) -> jax.Array:
    """(batch, rows, outputs) float32: the squares of a gradient, as `moments` has the rows, and a Piece the outputs.

    Args:
      gradient: of a number, with respect to the result of the use's operation.
    """
    eqn = use.op.eqn
    gradient = gradient.astype(jnp.float32)
    if use.op.name == "dot_general":
        rows = number_of_rows(use)
        count = math.prod(gradient.shape[: len(eqn.params["dimension_numbers"][1][0])])
        squares = jnp.square(gradient.reshape((count, rows, -1) if use.side == 1 else (count, -1, rows)))
        return squares if use.side == 1 else squares.transpose(0, 2, 1)
    out, groups = eqn.params["dimension_numbers"][2], eqn.params["feature_group_count"]
    moved = jnp.transpose(gradient, (out[0], *out[2:], out[1]))
    return jnp.square(moved.reshape(-1, groups, moved.shape[-1] // groups)).transpose(1, 0, 2)


def _products(rows: Sequence[jax.Array], slopes: jax.Array | None) -> jax.Array:
    """Sums of x y^T over rows (batch, rows, inputs), the first and the last of a sequence."""
    if slopes is not None:
        rows = [each * jnp.sqrt(slopes)[..., None] for each in rows]
    return jnp.einsum("bni,bnj->bij", rows[0], rows[-1], precision=jax.lax.Precision.HIGHEST)

"""What is known to be 0 of a variable, and what each primitive makes of it."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_jax.graph.readings import pointwise_space
from prune_jax.graph.rules import IDENTITIES, UNARY_ZERO_KEEPING


class Known(NamedTuple):
    """What is known of a variable.

    Attributes:
      zeros: per axis a boolean per index, True where the slice is all 0.
      value: the number that all its entries are; None where they differ, or are not known.
      positive: whether no entry is below 0, whatever the inputs are; not each primitive passes that on.
    """

    zeros: tuple[np.ndarray, ...]
    value: float | None = None
    positive: bool = False

    @property
    def whole(self) -> bool:
        """Whether all of it is 0."""
        return self.value == 0 or any(bool(axis.all()) for axis in self.zeros)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the variable."""
        return tuple(axis.size for axis in self.zeros)


def of_array(value: Any) -> Known:
    """What is known of an array of numbers; nothing of PRNG keys."""
    if not hasattr(value, "dtype"):
        value = np.asarray(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return nothing(value.shape)
    array = np.asarray(value)
    if array.size == 1:
        only = None if np.iscomplexobj(array) else float(array.reshape(()))
        return uniform(array.shape, None if only is not None and math.isnan(only) else only)
    used = array != 0
    zeros = tuple(~np.any(used, tuple(i for i in range(array.ndim) if i != axis)) for axis in range(array.ndim))
    return Known(zeros)


def nothing(shape: Sequence[int]) -> Known:
    return Known(tuple(np.zeros(size, bool) for size in shape))


def uniform(shape: Sequence[int], value: float | None) -> Known:
    return Known(tuple(np.full(size, value == 0) for size in shape), value)


def either(parts: Sequence[Known]) -> Known:
    if any(part.whole for part in parts):
        return uniform(parts[0].shape, 0.0)
    return Known(tuple(np.logical_or.reduce(axes) for axes in zip(*(part.zeros for part in parts), strict=True)))


def both(parts: Sequence[Known]) -> Known:
    value = parts[0].value if len({part.value for part in parts}) == 1 else None
    zeros = tuple(np.logical_and.reduce(axes) for axes in zip(*(part.zeros for part in parts), strict=True))
    return Known(zeros, value)


def both_zero(parts: Sequence[Known]) -> Known:
    """Of a sum: 0 where all parts are."""
    zero = both(parts)
    return zero._replace(value=0.0 if zero.value == 0 else None)


# What primitives make of what is known of their operands. One that is not here is taken to make nothing known.
_Rule = Callable[[Any, list[Known]], list[Known] | None]
ZERO_RULES: dict[str, _Rule] = {}


def _rule(*names: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for name in names:
            ZERO_RULES[name] = rule
        return rule

    return register


def _shape(eqn: Any) -> tuple[int, ...]:
    return eqn.outvars[0].aval.shape


def _repeated(known: Known, shape: tuple[int, ...]) -> Known:
    """What is known of an operand as it is repeated to a shape: of an axis of size 1, all or nothing."""
    if known.shape == shape:
        return known
    if known.value is not None or known.whole:
        return uniform(shape, 0.0 if known.whole else known.value)
    if len(known.zeros) != len(shape):
        return nothing(shape)
    return Known(
        tuple(axis if axis.size == n else np.zeros(n, bool) for axis, n in zip(known.zeros, shape, strict=True))
    )


def _operands(eqn: Any, ins: list[Known]) -> list[Known]:
    return [_repeated(known, _shape(eqn)) for known in ins]


# fmt: off
_RISING = frozenset([
    "sqrt", "cbrt", "copy", "copy_p", "name", "pvary", "convert_element_type", "floor", "ceil", "round", "integer_pow",
    "tanh", "expm1", "log1p", "stop_gradient", "reduce_precision",
])
# fmt: on


@_rule(*UNARY_ZERO_KEEPING)
def _unary(eqn, ins):
    name, known = eqn.primitive.name, ins[0]
    if name == "integer_pow" and eqn.params["y"] <= 0:
        return None
    positive = name in ("abs", "square") or (name == "integer_pow" and eqn.params["y"] % 2 == 0)
    if known.value is None:
        return [known._replace(positive=positive or (known.positive and name in _RISING))]
    if name == "convert_element_type":
        return [uniform(known.shape, of_array(np.asarray(known.value).astype(eqn.params["new_dtype"])).value)]
    value = -known.value if name == "neg" else known.value if name in ("copy", "copy_p", "name", "pvary") else None
    return [uniform(known.shape, 0.0 if known.value == 0 else value)]


@_rule(*IDENTITIES)
def _identity(eqn, ins):
    return list(ins)


@_rule("mul", "and")
def _product(eqn, ins):
    return [either(_operands(eqn, ins))]


@_rule("add", "sub", "add_any", "or", "xor")
def _sum(eqn, ins):
    return [both_zero(_operands(eqn, ins))]


@_rule("div", "rem")
def _quotient(eqn, ins):
    over, under = _operands(eqn, ins)
    if under.whole:
        return None
    zeros = tuple(a & ~b for a, b in zip(over.zeros, under.zeros, strict=True))
    return [Known(zeros, 0.0 if over.value == 0 and not any(b.any() for b in under.zeros) else None)]


def _bounded(known: Known, bound: Known, sign: int) -> tuple[np.ndarray, ...]:
    """Where a known 0 stays 0 beside a bound: where that is 0, too, or on the other side of 0."""
    if bound.value is not None and bound.value * sign >= 0:
        return known.zeros
    return tuple(a & b for a, b in zip(known.zeros, bound.zeros, strict=True))


@_rule("max", "min")
def _extreme(eqn, ins):
    a, b = _operands(eqn, ins)
    sign = -1 if eqn.primitive.name == "max" else 1
    zeros = tuple(x | y for x, y in zip(_bounded(a, b, sign), _bounded(b, a, sign), strict=True))
    able = [known.positive or (known.value is not None and known.value >= 0) for known in (a, b)]
    positive = any(able) if sign < 0 else all(able)
    return [Known(zeros, 0.0 if zeros and all(axis.all() for axis in zeros) else None, positive)]


@_rule("clamp")
def _clamp(eqn, ins):
    low, known, high = _operands(eqn, ins)
    lower, upper = _bounded(known, low, -1), _bounded(known, high, 1)
    return [Known(tuple(a & b for a, b in zip(lower, upper, strict=True)))]


@_rule("select_n")
def _select(eqn, ins):
    every = both(_operands(eqn, ins[1:]))
    if ins[0].shape != _shape(eqn):
        return [every]
    # Where the predicate is False, it is the first case.
    first = _repeated(ins[1], _shape(eqn))
    return [
        Known(tuple(a | (b & c) for a, b, c in zip(every.zeros, ins[0].zeros, first.zeros, strict=True)), every.value)
    ]


@_rule("eq", "ne", "lt", "le", "gt", "ge")
def _compared(eqn, ins):
    """False, which is 0, where a 0 is compared with a number or another 0 that makes it so."""
    a, b = _operands(eqn, ins)
    holds = getattr(operator, eqn.primitive.name)
    zeros = tuple(np.zeros_like(axis) for axis in a.zeros)
    if not holds(0, 0):
        zeros = tuple(x & y for x, y in zip(a.zeros, b.zeros, strict=True))
    if b.value is not None and not holds(0, b.value):
        zeros = tuple(x | y for x, y in zip(zeros, a.zeros, strict=True))
    if a.value is not None and not holds(a.value, 0):
        zeros = tuple(x | y for x, y in zip(zeros, b.zeros, strict=True))
    return [Known(zeros)]


@_rule("broadcast_in_dim")
def _broadcast(eqn, ins):
    shape = eqn.params["shape"]
    known = ins[0]
    if known.value is not None or known.whole:
        return [uniform(shape, 0.0 if known.whole else known.value)]
    zeros = list(nothing(shape).zeros)
    for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
        if known.zeros[axis].size == shape[to]:
            zeros[to] = known.zeros[axis]
    return [Known(tuple(zeros))]


@_rule("reshape")
def _reshape(eqn, ins):
    """An index of a part is 0 if all that it stands for is; one of a whole, if one of its parts is."""
    known, shape = ins[0], _shape(eqn)
    if known.value is not None or known.whole:
        return [uniform(shape, 0.0 if known.whole else known.value)]
    if 0 in shape:
        return None
    old = [axis for axis in known.zeros if axis.size != 1]
    zeros = list(nothing(shape).zeros)
    todo = [i for i, size in enumerate(shape) if size != 1]
    while old and todo:
        run, to = [old.pop(0)], [todo.pop(0)]
        left, right = run[0].size, shape[to[0]]
        while left != right:
            if left < right:
                run.append(old.pop(0))
                left *= run[-1].size
            else:
                to.append(todo.pop(0))
                right *= shape[to[-1]]
        flat = run[0]
        for axis in run[1:]:
            flat = (flat[:, None] | axis[None]).reshape(-1)
        block = flat.reshape([shape[i] for i in to])
        for at, i in enumerate(to):
            zeros[i] = block.all(tuple(j for j in range(len(to)) if j != at))
    return [Known(tuple(zeros), None, known.positive)]


@_rule("transpose")
def _transpose(eqn, ins):
    zeros = tuple(ins[0].zeros[axis] for axis in eqn.params["permutation"])
    return [ins[0]._replace(zeros=zeros)]


@_rule("squeeze")
def _squeeze(eqn, ins):
    gone = eqn.params["dimensions"]
    known = ins[0]
    value = 0.0 if known.whole else known.value
    return [Known(tuple(axis for i, axis in enumerate(known.zeros) if i not in gone), value)]


@_rule("dot_general")
def _dot(eqn, ins):
    (lhs_c, rhs_c), (lhs_b, rhs_b) = eqn.params["dimension_numbers"]
    if ins[0].whole or ins[1].whole:
        return [uniform(_shape(eqn), 0.0)]
    batch = [ins[0].zeros[a] | ins[1].zeros[b] for a, b in zip(lhs_b, rhs_b, strict=True)]
    free = [
        axis
        for side, used in ((0, (*lhs_c, *lhs_b)), (1, (*rhs_c, *rhs_b)))
        for i, axis in enumerate(ins[side].zeros)
        if i not in used
    ]
    return [Known((*batch, *free))]


@_rule("conv_general_dilated")
def _conv(eqn, ins):
    params = eqn.params
    lhs, rhs, out = params["dimension_numbers"]
    groups, shape = params["feature_group_count"], _shape(eqn)
    if params["batch_group_count"] != 1:
        return None
    if ins[0].whole or ins[1].whole:
        return [uniform(shape, 0.0)]
    zeros = list(nothing(shape).zeros)
    zeros[out[0]] = ins[0].zeros[lhs[0]]
    silent = ins[0].zeros[lhs[1]].reshape(groups, -1).all(1)  # all that a group reads is 0
    zeros[out[1]] = ins[1].zeros[rhs[0]] | np.repeat(silent, shape[out[1]] // groups)
    for i in pointwise_space(eqn):
        zeros[out[2 + i]] = ins[0].zeros[lhs[2 + i]]
    return [Known(tuple(zeros))]


@_rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(eqn, ins):
    known, gone = ins[0], eqn.params["axes"]
    empty = any(known.zeros[i].size == 0 for i in gone)
    if empty and eqn.primitive.name != "reduce_sum":
        return None
    if known.whole:
        return [uniform(_shape(eqn), 0.0)]
    return [Known(tuple(axis for i, axis in enumerate(known.zeros) if i not in gone), None, known.positive)]


@_rule("cumsum", "rev", "cummax", "cummin")
def _along(eqn, ins):
    along = eqn.params["dimensions"] if "dimensions" in eqn.params else (eqn.params["axis"],)
    zeros = tuple(np.full_like(axis, axis.all()) if i in along else axis for i, axis in enumerate(ins[0].zeros))
    return [Known(zeros, 0.0 if ins[0].whole else None)]


@_rule("concatenate")
def _concatenate(eqn, ins):
    at = eqn.params["dimension"]
    zeros = [
        np.concatenate(axes) if i == at else np.logical_and.reduce(axes)
        for i, axes in enumerate(zip(*(known.zeros for known in ins), strict=True))
    ]
    return [Known(tuple(zeros), None, all(known.positive for known in ins))]


@_rule("stack")
def _stack(eqn, ins):
    at = eqn.params["axis"]
    joint = both(ins)
    which = np.asarray([known.whole for known in ins])
    return [Known((*joint.zeros[:at], which, *joint.zeros[at:]), joint.value)]


@_rule("unstack")
def _unstack(eqn, ins):
    at, known = eqn.params["axis"], ins[0]
    rest = (*known.zeros[:at], *known.zeros[at + 1 :])
    parts = [uniform([axis.size for axis in rest], 0.0) if zero else Known(rest) for zero in known.zeros[at]]
    return parts


@_rule("tile")
def _tile(eqn, ins):
    zeros = tuple(np.tile(axis, times) for axis, times in zip(ins[0].zeros, eqn.params["reps"], strict=True))
    return [Known(zeros, 0.0 if ins[0].whole else ins[0].value)]


@_rule("slice")
def _slice(eqn, ins):
    params, known = eqn.params, ins[0]
    strides = params["strides"] or (1,) * len(known.zeros)
    picks = zip(known.zeros, params["start_indices"], params["limit_indices"], strides, strict=True)
    return [_part(known, tuple(axis[start:limit:stride] for axis, start, limit, stride in picks))]


def _part(known: Known, zeros: tuple[np.ndarray, ...]) -> Known:
    """A part of a variable: one that lies in zero slices is 0 in all."""
    if known.whole or any(axis.size and axis.all() for axis in zeros):
        return uniform([axis.size for axis in zeros], 0.0)
    return Known(zeros, known.value)


@_rule("split")
def _split(eqn, ins):
    at, known = eqn.params["axis"], ins[0]
    parts = np.split(known.zeros[at], np.cumsum(eqn.params["sizes"])[:-1])
    return [_part(known, (*known.zeros[:at], part, *known.zeros[at + 1 :])) for part in parts]


@_rule("pad")
def _pad(eqn, ins):
    config = eqn.params["padding_config"]
    if not ins[1].whole or any(inner or low < 0 or high < 0 for low, high, inner in config):
        return None
    if ins[0].whole:
        return [uniform(_shape(eqn), 0.0)]
    zeros = (
        np.concatenate([np.ones(low, bool), axis, np.ones(high, bool)])
        for axis, (low, high, _) in zip(ins[0].zeros, config, strict=True)
    )
    return [Known(tuple(zeros))]


@_rule("gather")
def _gather(eqn, ins):
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], _shape(eqn)
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    window = [i for i in range(len(sizes)) if i not in (*numbers.collapsed_slice_dims, *batching)]
    zeros = list(nothing(shape).zeros)
    for axis, at in zip(window, numbers.offset_dims, strict=True):
        if ins[0].zeros[axis].size == shape[at]:
            zeros[at] = ins[0].zeros[axis]
    return [Known(tuple(zeros))]


@_rule("scatter", "scatter-add", "scatter-sub")
def _scatter(eqn, ins):
    numbers, shape = eqn.params["dimension_numbers"], _shape(eqn)
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    window = [i for i in range(len(shape)) if i not in (*numbers.inserted_window_dims, *batching)]
    zeros = list(nothing(shape).zeros)
    for axis, at in zip(window, numbers.update_window_dims, strict=True):
        if ins[2].zeros[at].size == shape[axis]:
            zeros[axis] = ins[0].zeros[axis] & ins[2].zeros[at]
    return [Known(tuple(zeros))]


@_rule("dynamic_slice")
def _dynamic_slice(eqn, ins):
    known, shape = ins[0], _shape(eqn)
    if known.whole:
        return [uniform(shape, 0.0)]
    return [
        Known(tuple(axis if axis.size == n else np.zeros(n, bool) for axis, n in zip(known.zeros, shape, strict=True)))
    ]


@_rule("dynamic_update_slice")
def _dynamic_update_slice(eqn, ins):
    if ins[0].whole and ins[1].whole:
        return [uniform(_shape(eqn), 0.0)]
    same = zip(ins[0].zeros, ins[1].zeros, strict=True)
    return [Known(tuple(a & b if a.size == b.size else np.zeros_like(a) for a, b in same))]


@_rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _window(eqn, ins):
    params = eqn.params
    sizes, padding = params["window_dimensions"], params["padding"]
    if eqn.primitive.name != "reduce_window_sum" and any(
        max(pair) >= size for pair, size in zip(padding, sizes, strict=True) if max(pair) > 0
    ):
        return None  # a window of padding only makes no 0
    same = zip(ins[0].zeros, _shape(eqn), sizes, padding, strict=True)
    return [
        Known(
            tuple(
                axis if window == 1 and axis.size == n and tuple(pad) == (0, 0) else np.zeros(n, bool)
                for axis, n, window, pad in same
            )
        )
    ]

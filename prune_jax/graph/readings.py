"""Where axes end: what contractions and reductions read, and what contractions take."""

import math
from typing import Any, NamedTuple


class Reading(NamedTuple):
    """Where axes end: a contraction or a reduction over them.

    Attributes:
      equation: the number of the equation in its frame.
      pairs: (axis of the first operand, axis of the second), of a contraction; None for the second of a reduction.
      sums: whether entries of 0 leave no trace in it: sums, not maxima, unless no entry is below 0.
    """

    equation: int
    pairs: tuple[tuple[int, int | None], ...]
    sums: bool


def readings(eqn: Any, number: int) -> Reading | None:
    """What an equation reads to its end, None if it ends no axis."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (lhs, rhs), _ = params["dimension_numbers"]
        return Reading(number, tuple(zip(lhs, rhs, strict=True)), True)
    if name == "conv_general_dilated":
        lhs, rhs, _ = params["dimension_numbers"]
        return Reading(number, ((lhs[1], rhs[1]),), True)
    if name.startswith("reduce_") and "axes" in params:
        return Reading(number, tuple((axis, None) for axis in params["axes"]), name == "reduce_sum")
    if name == "cumsum":
        return Reading(number, ((params["axis"], None),), True)
    return None


def flops(eqn: Any) -> int:
    """Floating-point operations of a contraction, two per multiplication and addition; 0 of anything else."""
    if eqn.primitive.name == "dot_general":
        (lhs, _), _ = eqn.params["dimension_numbers"]
        inner = math.prod(eqn.invars[0].aval.shape[i] for i in lhs)
        return 2 * inner * math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "conv_general_dilated":
        _, rhs, _ = eqn.params["dimension_numbers"]
        kernel = eqn.invars[1].aval.shape
        window = math.prod(kernel[i] for i in rhs[2:]) * kernel[rhs[1]]
        return 2 * window * math.prod(eqn.outvars[0].aval.shape)
    return 0


def pointwise_space(eqn: Any) -> set[int]:
    """Which axes of a convolution's space it goes over one by one, with a window of 1."""
    params, shape = eqn.params, eqn.invars[1].aval.shape
    described = zip(
        params["dimension_numbers"].rhs_spec[2:],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        strict=True,
    )
    return {
        i
        for i, (axis, stride, padding, dilation) in enumerate(described)
        if (shape[axis], stride, tuple(padding), dilation) == (1, 1, (0, 0), 1)
    }

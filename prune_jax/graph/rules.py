"""What each primitive does to axes: which it unites, splits, carries on, or pins.

A rule takes the axes of an equation's operands and returns those of its results. A primitive without a rule pins all
that it touches, and is reported.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prune_jax.graph.atoms import EMPTY, ONE, Atoms, Expr
from prune_jax.graph.readings import pointwise_space

Axes = tuple[Expr, ...]


class Context:
    """What rules share: the atoms, and what they report.

    Attributes:
      unknown: primitive without a rule -> how often it occurs.
      counted: axes that are no features: the windows of convolutions, the turns of scans.
    """

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.unknown: dict[str, int] = {}
        self.counted: list[Expr] = []

    def count(self, axis: Expr, reason: str) -> None:
        """Pins an axis that is no feature, such as the window of a convolution."""
        self.counted.append(axis)
        self.atoms.pin(axis, reason)

    def fresh(self, shape: Sequence[int], pin: str | None = None) -> Axes:
        return tuple(self.atoms.new(size, pin) for size in shape)

    def unite(self, left: Axes, right: Axes) -> None:
        for a, b in zip(left, right, strict=True):
            self.atoms.unite(a, b)

    def pin(self, axes: Axes, reason: str) -> None:
        for axis in axes:
            self.atoms.pin(axis, reason)


Rule = Callable[[Context, Any, list[Axes], list[tuple[int, ...]]], list[Axes]]
RULES: dict[str, Rule] = {}

# Primitives that act entry by entry, and of those the ones that turn 0 into 0.
# fmt: off
UNARY_ZERO_KEEPING = frozenset([
    "neg", "sign", "sin", "tan", "tanh", "sqrt", "abs", "floor", "ceil", "round", "expm1", "log1p", "erf", "erf_inv",
    "square", "cbrt", "asin", "atan", "sinh", "asinh", "atanh", "convert_element_type", "real", "imag", "conj", "copy",
    "copy_p", "reduce_precision", "integer_pow", "name", "pvary", "sharding_constraint", "layout_constraint", "reshard",
    "stop_gradient",
])
ELEMENTWISE = UNARY_ZERO_KEEPING | frozenset([
    "add", "add_any", "sub", "mul", "div", "rem", "max", "min", "pow", "atan2", "nextafter", "and", "or", "xor", "not",
    "eq", "ne", "lt", "le", "gt", "ge", "select_n", "clamp", "exp", "exp2", "log", "logistic", "erfc", "lgamma",
    "digamma", "cos", "acos", "cosh", "acosh", "rsqrt", "is_finite", "shift_left", "shift_right_logical",
    "shift_right_arithmetic", "population_count", "clz", "complex", "igamma", "igammac", "igamma_grad_a", "bessel_i0e",
    "bessel_i1e", "polygamma", "zeta", "regularized_incomplete_beta", "threefry2x32", "mulhi",
])
IDENTITIES = frozenset(["optimization_barrier", "device_put"])  # of any number of operands, each its own result
# Made whole and then cut: at another size they would hold other numbers.
RANDOM = frozenset(["random_bits", "iota_2x32_shape"])
# fmt: on


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return register


@_rule(*ELEMENTWISE)
def _elementwise(ctx: Context, eqn: Any, ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    out = eqn.outvars[0].aval.shape
    axes = [ONE] * len(out)
    for operand, shape in zip(ins, shapes, strict=True):
        if len(shape) != len(out):  # a scalar
            ctx.pin(operand, eqn.primitive.name)
            continue
        for i, (axis, size) in enumerate(zip(operand, shape, strict=True)):
            if size != out[i]:  # an axis of size 1, which is repeated
                continue
            if axes[i] == ONE:
                axes[i] = axis
            else:
                ctx.atoms.unite(axes[i], axis)
    missing = ctx.fresh([size if axis == ONE else 1 for axis, size in zip(axes, out, strict=True)])
    axes = [new if axis == ONE else axis for axis, new in zip(axes, missing, strict=True)]
    return [tuple(axes)] * len(eqn.outvars)


@_rule(*IDENTITIES)
def _identity(ctx, eqn, ins, shapes):
    return ins


@_rule("broadcast_in_dim")
def _broadcast(ctx, eqn, ins, shapes):
    shape, mapped = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    axes = list(ctx.fresh(shape))
    for axis, to in enumerate(mapped):
        if shapes[0][axis] == shape[to]:
            axes[to] = ins[0][axis]
    return [tuple(axes)]


@_rule("reshape")
def _reshape(ctx, eqn, ins, shapes):
    shape = eqn.outvars[0].aval.shape
    if 0 in shape or 0 in shapes[0]:
        ctx.pin(ins[0], "reshape of an empty array")
        return [ctx.fresh(shape, "reshape of an empty array")]
    # Runs of axes with the same product are united by themselves: what one does not fit leaves the others alone.
    old, new = ([i for i, size in enumerate(sizes) if size > 1] for sizes in (shapes[0], shape))
    axes = list(ctx.fresh(shape))
    while old:
        run: tuple[list[int], list[int]] = [old.pop(0)], [new.pop(0)]
        sizes = [shapes[0][run[0][0]], shape[run[1][0]]]
        while sizes[0] != sizes[1]:
            side = 0 if sizes[0] < sizes[1] else 1
            run[side].append((old, new)[side].pop(0))
            sizes[side] *= (shapes[0], shape)[side][run[side][-1]]
        if len(run[0]) == len(run[1]) == 1:
            axes[run[1][0]] = ins[0][run[0][0]]
        else:
            left, right = ("product", tuple(ins[0][i] for i in run[0])), ("product", tuple(axes[i] for i in run[1]))
            ctx.atoms.unite(left, right)
    return [tuple(axes)]


@_rule("transpose")
def _transpose(ctx, eqn, ins, shapes):
    return [tuple(ins[0][axis] for axis in eqn.params["permutation"])]


@_rule("squeeze")
def _squeeze(ctx, eqn, ins, shapes):
    return [tuple(axis for i, axis in enumerate(ins[0]) if i not in eqn.params["dimensions"])]


@_rule("expand_dims")
def _expand(ctx, eqn, ins, shapes):
    left = iter(ins[0])
    return [tuple(ONE if i in eqn.params["dimensions"] else next(left) for i in range(len(eqn.outvars[0].aval.shape)))]


@_rule("dot_general")
def _dot(ctx, eqn, ins, shapes):
    (lhs_c, rhs_c), (lhs_b, rhs_b) = eqn.params["dimension_numbers"]
    for a, b in zip((*lhs_c, *lhs_b), (*rhs_c, *rhs_b), strict=True):
        ctx.atoms.unite(ins[0][a], ins[1][b])
    batch = tuple(ins[0][i] for i in lhs_b)
    free = [tuple(axis for i, axis in enumerate(ins[side]) if i not in (*c, *b)) for side, c, b in
            ((0, lhs_c, lhs_b), (1, rhs_c, rhs_b))]  # fmt: skip
    return [(*batch, *free[0], *free[1])]


@_rule("conv_general_dilated")
def _conv(ctx, eqn, ins, shapes):
    params = eqn.params
    lhs, rhs, out = params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    axes = [ONE] * len(shapes[0])
    if batch_groups != 1:
        for operand in ins:
            ctx.pin(operand, "conv_general_dilated with batch groups")
        return [ctx.fresh(eqn.outvars[0].aval.shape, "conv_general_dilated with batch groups")]
    axes[out[0]] = ins[0][lhs[0]]
    inputs, kernel_in, kernel_out = ins[0][lhs[1]], ins[1][rhs[1]], ins[1][rhs[0]]
    if groups == 1:
        ctx.atoms.unite(inputs, kernel_in)
    else:
        number = ctx.atoms.new(groups)
        ctx.atoms.unite(inputs, ("product", (number, kernel_in)))
        ctx.atoms.unite(kernel_out, ("product", (number, ctx.atoms.new(shapes[1][rhs[0]] // groups))))
    axes[out[1]] = kernel_out
    pointwise = pointwise_space(eqn)
    for i in range(2, len(lhs)):
        if i - 2 in pointwise:
            axes[out[i]] = ins[0][lhs[i]]
            continue
        ctx.count(ins[1][rhs[i]], "the window of a convolution (conv_general_dilated)")
        ctx.atoms.pin(ins[0][lhs[i]], "the space of a convolution (conv_general_dilated)")
        axes[out[i]] = ctx.atoms.new(
            eqn.outvars[0].aval.shape[out[i]], "the space of a convolution (conv_general_dilated)"
        )
    return [tuple(axes)]


@_rule(
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"
)  # fmt: skip
def _reduce(ctx, eqn, ins, shapes):
    gone = eqn.params["axes"]
    if eqn.primitive.name.startswith("arg"):
        ctx.pin(tuple(ins[0][i] for i in gone), f"{eqn.primitive.name} tells an index of it")
    return [tuple(axis for i, axis in enumerate(ins[0]) if i not in gone)] * len(eqn.outvars)


@_rule("cumsum")
def _cumsum(ctx, eqn, ins, shapes):
    return [ins[0]]


@_rule("cummax", "cummin", "cumprod", "cumlogsumexp", "rev")
def _along(ctx, eqn, ins, shapes):
    params = eqn.params
    axes = params["dimensions"] if "dimensions" in params else (params["axis"],)
    ctx.pin(tuple(ins[0][i] for i in axes), f"{eqn.primitive.name} goes by the order along it")
    return [ins[0]]


@_rule("sort")
def _sort(ctx, eqn, ins, shapes):
    for axes in ins[1:]:
        ctx.unite(ins[0], axes)
    ctx.atoms.pin(ins[0][eqn.params["dimension"]], "sort goes by the order along it")
    return [ins[0]] * len(eqn.outvars)


@_rule("top_k")
def _top_k(ctx, eqn, ins, shapes):
    axis = eqn.params.get("axis", -1)
    ctx.atoms.pin(ins[0][axis], "top_k chooses along it")
    axes = list(ins[0])
    axes[axis] = ctx.atoms.new(eqn.params["k"], "top_k chooses along it")
    return [tuple(axes)] * 2


@_rule("concatenate")
def _concatenate(ctx, eqn, ins, shapes):
    at = eqn.params["dimension"]
    for axes in ins[1:]:
        ctx.unite((*ins[0][:at], *ins[0][at + 1 :]), (*axes[:at], *axes[at + 1 :]))
    joined = []
    for axes, shape in zip(ins, shapes, strict=True):
        one = axes[at]
        if shape[at] == 1:  # a size of 1 has no atom; here it is a place of its own
            one = ctx.atoms.part(1)
        if shape[at]:
            joined.append(one)
    if not joined:
        return [(*ins[0][:at], EMPTY, *ins[0][at + 1 :])]
    axis = _unit(ctx, joined[0]) if len(joined) == 1 else ("sum", tuple(joined))
    return [(*ins[0][:at], axis, *ins[0][at + 1 :])]


@_rule("stack")
def _stack(ctx, eqn, ins, shapes):
    at = eqn.params["axis"]
    for axes in ins[1:]:
        ctx.unite(ins[0], axes)
    axis = ONE if len(ins) == 1 else ("sum", tuple(ctx.atoms.part(1) for _ in ins))
    return [(*ins[0][:at], axis, *ins[0][at:])]


@_rule("unstack")
def _unstack(ctx, eqn, ins, shapes):
    at = eqn.params["axis"]
    ctx.atoms.cut(ins[0][at], [1] * shapes[0][at], "unstack takes it apart")
    return [(*ins[0][:at], *ins[0][at + 1 :])] * shapes[0][at]


@_rule("tile")
def _tile(ctx, eqn, ins, shapes):
    axes = [
        axis if times == 1 else ctx.atoms.new(times) if size == 1 else ("product", (ctx.atoms.new(times), axis))
        for axis, size, times in zip(ins[0], shapes[0], eqn.params["reps"], strict=True)
    ]
    return [tuple(axes)]


@_rule("split")
def _split(ctx, eqn, ins, shapes):
    at = eqn.params["axis"]
    parts = ctx.atoms.cut(ins[0][at], eqn.params["sizes"], "split takes it apart")
    return [(*ins[0][:at], _unit(ctx, part), *ins[0][at + 1 :]) for part in parts]


def _unit(ctx: Context, part: Expr) -> Expr:
    return ONE if ctx.atoms.size(part) == 1 else part


@_rule("slice")
def _slice(ctx, eqn, ins, shapes):
    params, axes = eqn.params, []
    strides = params["strides"] or (1,) * len(shapes[0])
    for axis, size, start, limit, stride in zip(
        ins[0], shapes[0], params["start_indices"], params["limit_indices"], strides, strict=True
    ):
        if (start, limit, stride) == (0, size, 1):
            axes.append(axis)
        elif stride == 1:
            part = ctx.atoms.cut(axis, (start, limit - start, size - limit), "slice takes it apart")[1]
            axes.append(_unit(ctx, part))
        elif size % stride == 0 and start < stride and -(-(limit - start) // stride) == size // stride:
            whole = ctx.atoms.new(size // stride)
            ctx.atoms.unite(axis, ("product", (whole, ctx.atoms.new(stride, "slice strides over it"))))
            axes.append(whole)
        else:
            ctx.atoms.pin(axis, "slice strides over it")
            axes.append(ctx.atoms.new(-(-(limit - start) // stride), "slice strides over it"))
    return [tuple(axes)]


@_rule("pad")
def _pad(ctx, eqn, ins, shapes):
    axes = []
    for axis, (low, high, inner) in zip(ins[0], eqn.params["padding_config"], strict=True):
        size = ctx.atoms.size(axis)
        if (low, high, inner) == (0, 0, 0):
            axes.append(axis)
        elif inner == 0 and low >= 0 and high >= 0 and size > 1:
            around = [ctx.atoms.part(n) if n else EMPTY for n in (low, high)]
            ctx.pin(tuple(around), "pad makes it")
            axes.append(("sum", (around[0], axis, around[1])))
        else:
            ctx.atoms.pin(axis, "pad changes it")
            axes.append(ctx.atoms.new(size + low + high + inner * max(size - 1, 0), "pad changes it"))
    return [tuple(axes)]


@_rule("dynamic_slice")
def _dynamic_slice(ctx, eqn, ins, shapes):
    axes = []
    for axis, size, wanted in zip(ins[0], shapes[0], eqn.params["slice_sizes"], strict=True):
        if wanted != size:
            ctx.atoms.pin(axis, f"{eqn.primitive.name} starts at a computed index of it")
        axes.append(
            axis if wanted == size else ctx.atoms.new(wanted, f"{eqn.primitive.name} starts at a computed index of it")
        )
    return [tuple(axes)]


@_rule("dynamic_update_slice")
def _dynamic_update_slice(ctx, eqn, ins, shapes):
    for own, new, a, b in zip(ins[0], ins[1], shapes[0], shapes[1], strict=True):
        if a == b:
            ctx.atoms.unite(own, new)
        else:
            ctx.pin((own, new), f"{eqn.primitive.name} starts at a computed index of it")
    return [ins[0]]


@_rule("gather")
def _gather(ctx, eqn, ins, shapes):
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand_batch = tuple(getattr(numbers, "operand_batching_dims", ()))
    index_batch = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    for a, b in zip(operand_batch, index_batch, strict=True):
        ctx.atoms.unite(ins[0][a], ins[1][b])
    ctx.atoms.pin(ins[1][-1] if ins[1] else ONE, "the index of a gather")
    offsets = []
    for axis, (size, wanted) in enumerate(zip(shapes[0], sizes, strict=True)):
        if axis in operand_batch:
            continue
        if wanted != size:
            ctx.atoms.pin(ins[0][axis], "gather chooses indices of it")
        if axis not in numbers.collapsed_slice_dims:
            whole = wanted == size
            offsets.append(ins[0][axis] if whole else ctx.atoms.new(wanted, "gather chooses indices of it"))
    batch = iter(ins[1][:-1])
    inner = iter(offsets)
    rank = len(eqn.outvars[0].aval.shape)
    return [tuple(next(inner) if i in numbers.offset_dims else next(batch) for i in range(rank))]


@_rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(ctx, eqn, ins, shapes):
    numbers = eqn.params["dimension_numbers"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    window = [i for i in range(len(shapes[0])) if i not in (*numbers.inserted_window_dims, *batching)]
    for axis, at in zip(window, numbers.update_window_dims, strict=True):
        if shapes[0][axis] == shapes[2][at] and axis not in numbers.scatter_dims_to_operand_dims:
            ctx.atoms.unite(ins[0][axis], ins[2][at])
        else:
            ctx.pin((ins[0][axis], ins[2][at]), "scatter writes to indices of it")
    for axis in (*numbers.inserted_window_dims, *batching):
        ctx.atoms.pin(ins[0][axis], "scatter writes to indices of it")
    # Where an update goes is seen in the result even if it is 0.
    others = [axis for i, axis in enumerate(ins[2]) if i not in numbers.update_window_dims]
    ctx.pin((*others, *ins[1]), "scatter writes at indices counted by it")
    return [ins[0]]


@_rule("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _window(ctx, eqn, ins, shapes):
    params, axes = eqn.params, []
    rank = len(shapes[0])
    ones = (1,) * rank
    described = zip(
        params["window_dimensions"],
        params["window_strides"] or ones,
        params["padding"],
        params.get("base_dilation") or ones,
        params.get("window_dilation") or ones,
        strict=True,
    )
    for i, (window, stride, padding, base, dilation) in enumerate(described):
        if (window, stride, tuple(padding), base, dilation) == (1, 1, (0, 0), 1, 1):
            axes.append(ins[0][i])
            continue
        ctx.atoms.pin(ins[0][i], f"the space of {eqn.primitive.name}")
        axes.append(ctx.atoms.new(eqn.outvars[0].aval.shape[i], f"the space of {eqn.primitive.name}"))
    return [tuple(axes)] * len(eqn.outvars)


@_rule("iota")
def _iota(ctx, eqn, ins, shapes):
    return [ctx.fresh(eqn.params["shape"])]


_KEYS = ("random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split", "random_clone")


@_rule(
    *RANDOM, *_KEYS, "rng_bit_generator", "random_gamma", "rng_uniform", "platform_index", "axis_index", "dim_as_value"
)
def _random(ctx, eqn, ins, shapes):
    name = eqn.primitive.name
    for axes in ins:
        ctx.pin(axes, name)
    return [ctx.fresh(var.aval.shape, None if name in RANDOM else name) for var in eqn.outvars]


@_rule("bitcast_convert_type")
def _bitcast(ctx, eqn, ins, shapes):
    shape = eqn.outvars[0].aval.shape
    if len(shape) > len(shapes[0]):
        return [(*ins[0], ctx.atoms.new(shape[-1], "bitcast_convert_type splits numbers into it"))]
    ctx.pin(ins[0][len(shape) :], "bitcast_convert_type joins numbers along it")
    return [ins[0][: len(shape)]]


@_rule("fft")
def _fft(ctx, eqn, ins, shapes):
    whole = len(shapes[0]) - len(eqn.params["fft_lengths"])
    ctx.pin(ins[0][whole:], "fft mixes it")
    return [(*ins[0][:whole], *ctx.fresh(eqn.outvars[0].aval.shape[whole:], "fft mixes it"))]


def unknown(ctx: Context, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Pins everything that a primitive without a rule touches."""
    name = eqn.primitive.name
    ctx.unknown[name] = ctx.unknown.get(name, 0) + 1
    for axes in ins:
        ctx.pin(axes, f"the primitive {name} is not known")
    return [ctx.fresh(var.aval.shape, f"the primitive {name} is not known") for var in eqn.outvars]

"""A function's jaxpr with the axes of every variable: one frame per jaxpr, and per call of an inner one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from prune_jax.graph.atoms import Atoms, Expr
from prune_jax.graph.rules import ELEMENTWISE, RULES, Axes, Context, unknown
from prune_jax.graph.symbolic import Numbers

# Primitives that do as an inner jaxpr says, on the same operands.
REMAT = frozenset(["remat", "remat2", "checkpoint"])
CUSTOM = frozenset(["custom_jvp_call", "custom_vjp_call"])  # with a derivative of their own
CALLS = REMAT | CUSTOM | frozenset(["jit", "pjit", "closed_call", "composite"])
# Through these a param stays the same weights, seen otherwise.
_VIEWS = frozenset(
    [
        "transpose",
        "reshape",
        "squeeze",
        "broadcast_in_dim",
        "slice",
        "split",
    ]
)
Origin = tuple[int, ...] | None  # numbers of params; none if made of constants alone; None if an input has a part


class Frame:
    """A jaxpr under way: the axes of its variables, and the frames of the jaxprs that its equations call.

    Attributes:
      jaxpr: jax's own, with `invars`, `constvars`, `eqns`, `outvars`.
      real: the same at symbolic sizes, where those of jaxpr are numbers in their place; else jaxpr itself.
      consts: the values of its constvars.
      axes: var -> its axes.
      origin: var -> the numbers of the params that it is a view of, or is made of entry by entry, or joins; of no param
        if it is made of weights in another way. An input has a part in all that are not in it.
      children: number of an equation -> the frames of its inner jaxprs; of a function with a derivative of its own a
        second one, of the derivative, where it is cut with the rest.
      known_consts: what zeros.Inspection knows of the consts, once it has looked.
    """

    def __init__(self, jaxpr: Any, real: Any, consts: Sequence[Any]) -> None:
        self.jaxpr, self.real, self.consts = jaxpr, real, list(consts)
        self.axes: dict[Any, Axes] = {}
        self.origin: dict[Any, tuple[int, ...]] = {}
        self.children: dict[int, list[Frame]] = {}
        self.known_consts: Any = None

    def params(self, var: Any) -> tuple[int, ...]:
        """The numbers of the params that a variable is a view of, mostly one or none."""
        return () if isinstance(var, Literal) else self.origin.get(var, ())


def inner_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """(the jaxpr that a calling equation does as, its consts)."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            return open_jaxpr(eqn.params[key])
    raise KeyError(eqn.primitive.name)


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, consts) of a closed or an open one."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def bound(eqn: Any, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """The results of an equation's primitive for these operands and params."""
    given = eqn.primitive.get_bind_params(params)
    if isinstance(given, tuple):  # of older versions of jax
        subfuns, params = given
        outs = eqn.primitive.bind(*subfuns, *operands, **params)
    else:
        outs = eqn.primitive.bind(*operands, **given)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def place(eqn: Any) -> str:
    """Which primitive an equation is, and of which module: "reduce_sum of layer_0/norm"."""
    stack = str(eqn.source_info.name_stack)
    return f"{eqn.primitive.name} of {stack}" if stack else eqn.primitive.name


def fetches(eqn: Any) -> bool:
    """Whether an equation fetches whole matrices by a computed index, such as those of an expert or of a layer.

    A row of a table, as of an embedding, is no kernel.
    """
    if eqn.primitive.name not in ("gather", "dynamic_slice"):
        return False
    pairs = zip(eqn.params["slice_sizes"], eqn.invars[0].aval.shape, strict=True)
    return sum(wanted == size > 1 for wanted, size in pairs) > 1


def differentiable(avals: Sequence[Any], start: int = 0) -> list[int]:
    """The places from `start` on that have a derivative: those of floating numbers."""
    return [i for i, aval in enumerate(avals) if i >= start and jnp.issubdtype(aval.dtype, jnp.inexact)]


def derivative_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """(jaxpr, consts) of the derivative that a function has been given; None if none can be taken.

    Of custom_jvp: the operands and the tangents of the floating ones, to the results and the tangents of the floating
    ones. Of custom_vjp: the operands and the cotangents of the floating results, to those of the floating operands.
    What the function closes over has no tangent.
    """
    ins, outs = [var.aval for var in eqn.invars], [var.aval for var in eqn.outvars]
    moved, seen = differentiable(ins, eqn.params["num_consts"]), differentiable(outs)

    def partial(args: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
        args = list(args)
        for i, value in zip(moved, floats, strict=True):
            args[i] = value
        return bound(eqn, args, eqn.params)

    def forward(args: Sequence[Any], tangents: Sequence[Any]) -> Any:
        made, tangents = jax.jvp(lambda *f: partial(args, f), [args[i] for i in moved], list(tangents))
        return made, [tangents[i] for i in seen]

    def backward(args: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        _, pull = jax.vjp(lambda *f: [partial(args, f)[i] for i in seen], *[args[i] for i in moved])
        return pull(list(cotangents))

    forwards = eqn.primitive.name == "custom_jvp_call"
    given = [ins[i] for i in moved] if forwards else [outs[i] for i in seen]
    if not moved or not seen:
        return None
    try:
        closed = jax.make_jaxpr(forward if forwards else backward)(ins, given)
    except Exception:  # whatever the user's rule raises, the function itself can be cut without it
        return None
    return closed.jaxpr, closed.consts


class Step(NamedTuple):
    """An equation in its frame, with how often it runs."""

    frame: Frame
    number: int
    times: int

    @property
    def eqn(self) -> Any:
        """The equation itself."""
        return self.frame.jaxpr.eqns[self.number]


class Analysis:
    """The axes of everything that a function computes.

    Attributes:
      atoms: of which all axes are made.
      top: the frame of the function itself.
      unknown: primitive without a rule -> how often it occurs.
      numbers: what stands in the place of symbolic sizes.
      counted: atoms that are no features: the windows of convolutions, the turns of scans.
      steps: the equations that are no calls, in the order in which they run; those of a loop's body once.
    """

    def __init__(self, closed: Any, num_params: int, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
        self.atoms = Atoms()
        self._ctx = Context(self.atoms)
        self.unknown = self._ctx.unknown
        self.steps: list[Step] = []
        self.numbers = Numbers([var.aval.shape for var in closed.jaxpr.invars])
        jaxpr = self.numbers.jaxpr(closed.jaxpr)
        ins = [self._ctx.fresh(var.aval.shape) for var in jaxpr.invars]
        self._deriving = False
        self._derivatives: dict[int, Any] = {}  # a jaxpr that is called twice holds one equation
        self._param_sizes = [math.prod(var.aval.shape) for var in jaxpr.invars[:num_params]]
        for name, axes in zip(inputs, ins[num_params:], strict=True):
            self._ctx.pin(axes, name)
        self.top, outs = self._run(jaxpr, closed.consts, ins, [(i,) for i in range(num_params)], 1)
        for name, axes in zip(outputs, outs, strict=True):
            self._ctx.pin(axes, name)
        self._pin_squares(self.top)
        self.counted = {atom for axis in self._ctx.counted for atom in self.atoms.leaves(axis)}

    def _run(
        self, jaxpr: Any, consts: Sequence[Any], ins: Sequence[Axes], origins: Sequence[Origin], times: int
    ) -> tuple[Frame, list[Axes]]:
        frame = Frame(jaxpr, self.numbers.real.get(id(jaxpr), jaxpr), consts)
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            frame.axes[var] = self._ctx.fresh(np.shape(value))
            frame.origin[var] = ()
        for var, axes, origin in zip(jaxpr.invars, ins, [*origins, *[None] * (len(ins) - len(origins))], strict=True):
            frame.axes[var] = axes
            if origin is not None:
                frame.origin[var] = origin
        for number, eqn in enumerate(jaxpr.eqns):
            self._equation(frame, number, eqn, times)
        return frame, [self._of(frame, var) for var in jaxpr.outvars]

    def _of(self, frame: Frame, atom: Any) -> Axes:
        """The axes of a variable, or of a literal."""
        if isinstance(atom, Literal):
            return self._ctx.fresh(np.shape(atom.val), "a literal")
        return frame.axes[atom]

    def _equation(self, frame: Frame, number: int, eqn: Any, times: int) -> None:
        name = self.atoms.at = eqn.primitive.name
        ins = [self._of(frame, var) for var in eqn.invars]
        origins = [() if isinstance(var, Literal) else frame.origin.get(var) for var in eqn.invars]
        if name in CALLS:
            jaxpr, consts = inner_jaxpr(eqn)
            child, outs = self._run(jaxpr, consts, ins, origins, times)
            frame.children[number] = [child]
            for var, inner in zip(eqn.outvars, jaxpr.outvars, strict=True):
                if not isinstance(inner, Literal) and inner in child.origin:
                    frame.origin[var] = child.origin[inner]
            if name in CUSTOM and not self._deriving:
                self._derivative(frame, number, eqn, ins, outs)
        elif name == "scan":
            outs = self._scan(frame, number, eqn, ins, origins, times)
        elif name == "while":
            outs = self._while(frame, number, eqn, ins, origins, times)
        elif name == "cond":
            outs = self._cond(frame, number, eqn, ins, origins, times)
        else:
            if not self._deriving:
                self.steps.append(Step(frame, number, times))
            shapes = [var.aval.shape for var in eqn.invars]
            rule = RULES.get(name)
            outs = rule(self._ctx, eqn, ins, shapes) if rule else unknown(self._ctx, eqn, ins)
            if origins and origins[0] and fetches(eqn):
                frame.origin[eqn.outvars[0]] = origins[0]
            elif None not in origins:
                for var in eqn.outvars:
                    frame.origin[var] = self._origin(eqn, origins)  # type: ignore[arg-type]
        for var, axes in zip(eqn.outvars, outs, strict=True):
            frame.axes[var] = axes

    def _origin(self, eqn: Any, origins: list[tuple[int, ...]]) -> tuple[int, ...]:
        """Which params a result that is made of weights alone is a view of: of several, the largest of its shape."""
        name = eqn.primitive.name
        if name in _VIEWS:
            return origins[0]
        if name in ("concatenate", "stack"):
            return tuple(dict.fromkeys(number for origin in origins for number in origin))
        if name not in ELEMENTWISE:
            return ()
        shape = eqn.outvars[0].aval.shape
        same = [origin for var, origin in zip(eqn.invars, origins, strict=True) if var.aval.shape == shape]
        return max(same, key=lambda origin: sum(self._param_sizes[number] for number in origin), default=())

    def _derivative(self, frame: Frame, number: int, eqn: Any, ins: list[Axes], outs: list[Axes]) -> None:
        """Cuts the derivative that a function has been given along with it."""
        if id(eqn) not in self._derivatives:
            self._derivatives[id(eqn)] = derivative_jaxpr(frame.real.eqns[number])
        found = self._derivatives[id(eqn)]
        if found is None:
            return
        moved = [ins[i] for i in differentiable([v.aval for v in eqn.invars], eqn.params["num_consts"])]
        seen = [outs[i] for i in differentiable([v.aval for v in eqn.outvars])]
        forwards = eqn.primitive.name == "custom_jvp_call"
        self._deriving = True
        child, made = self._run(self.numbers.jaxpr(found[0]), found[1], [*ins, *(moved if forwards else seen)], [], 0)
        self._deriving = False
        for ours, theirs in zip([*outs, *seen] if forwards else moved, made, strict=True):
            self._ctx.unite(ours, theirs)
        frame.children[number].append(child)

    def _scan(self, frame, number, eqn, ins, origins, times):
        params = eqn.params
        consts, carries, length = params["num_consts"], params["num_carry"], params["length"]
        jaxpr, inner_consts = open_jaxpr(params["jaxpr"])
        for axes in ins[consts + carries :]:
            self._ctx.count(axes[0], "the length of a scan")
        body_ins = [*ins[: consts + carries], *(axes[1:] for axes in ins[consts + carries :])]
        # What is carried has no origin: after the first turn it is another value.
        body_origins = [*origins[:consts], *[None] * carries, *origins[consts + carries :]]
        child, outs = self._run(jaxpr, inner_consts, body_ins, body_origins, times * length)
        frame.children[number] = [child]
        for before, after in zip(ins[consts : consts + carries], outs[:carries], strict=True):
            self._ctx.unite(before, after)
        stacked = [(self.atoms.new(length, "the length of a scan"), *axes) for axes in outs[carries:]]
        return [*ins[consts : consts + carries], *stacked]

    def _while(self, frame, number, eqn, ins, origins, times):
        params = eqn.params
        first, second = params["cond_nconsts"], params["body_nconsts"]
        carry = ins[first + second :]
        cond, cond_consts = open_jaxpr(params["cond_jaxpr"])
        body, body_consts = open_jaxpr(params["body_jaxpr"])
        tested, _ = self._run(cond, cond_consts, [*ins[:first], *carry], origins[:first], times)
        repeated, outs = self._run(
            body, body_consts, [*ins[first : first + second], *carry], origins[first:][:second], times
        )
        frame.children[number] = [tested, repeated]
        for before, after in zip(carry, outs, strict=True):
            self._ctx.unite(before, after)
        return list(carry)

    def _cond(self, frame, number, eqn, ins, origins, times):
        children, results = [], []
        for branch in eqn.params["branches"]:
            jaxpr, consts = open_jaxpr(branch)
            child, outs = self._run(jaxpr, consts, ins[1:], origins[1:], times)
            children.append(child)
            results.append(outs)
        frame.children[number] = children
        for outs in results[1:]:
            for ours, theirs in zip(results[0], outs, strict=True):
                self._ctx.unite(ours, theirs)
        return results[0]

    def _pin_squares(self, frame: Frame) -> None:
        """Pins an atom that an axis is the square of: its indices are pairs."""

        def visit(expr: Expr) -> None:
            kind, parts = self.atoms.resolve(expr)
            if kind == "atom":
                return
            if kind == "product":
                seen: set[int] = set()
                for part in parts:
                    own = set(self.atoms.leaves(part))
                    for atom in seen & own:
                        self.atoms.pin(("atom", atom), "an axis that is a product with itself")
                    seen |= own
            for part in parts:
                visit(part)

        for axes in frame.axes.values():
            for axis in axes:
                if axis[0] != "atom" or self.atoms.resolve(axis)[0] != "atom":
                    visit(axis)
        for children in frame.children.values():
            for child in children:
                self._pin_squares(child)


def closed_jaxpr(fn: Any, params: Any, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """(the closed jaxpr of fn(params, *inputs), the tree of its output); the arguments may be shapes."""
    return jax.make_jaxpr(fn, return_shape=True)(params, *inputs)

"""A jaxpr evaluated again at other sizes: the indices that are cut are gone from every variable."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from prune_jax.graph.atoms import Expr
from prune_jax.graph.rules import RANDOM
from prune_jax.graph.symbolic import symbolic
from prune_jax.graph.tracing import CALLS, CUSTOM, REMAT, Analysis, Frame, bound, differentiable

Keep = Mapping[int, np.ndarray]  # atom -> booleans, True where its index stays
Hook = Callable[[Frame, int, list[jax.Array], tuple[int, ...]], None]


class Evaluation:
    """Evaluates an analysed function with some indices cut.

    Args:
      analysis: of the function, at full size.
      keep: atom -> which of its indices stay; an atom that is not in it keeps all.
      hook: called with the frame, the number and the operands of each equation that is no call, and the turns of the
        scans around it, which are then unrolled; None for none. What a cond or a while runs is not told of.
    """

    def __init__(self, analysis: Analysis, keep: Keep, hook: Hook | None = None) -> None:
        self._analysis, self._atoms, self._keep, self._hook = analysis, analysis.atoms, keep, hook
        self._top = analysis.top
        self._kept: dict[Expr, np.ndarray | None] = {}
        self._turns: tuple[int, ...] = ()

    def __call__(self, *args: jax.Array) -> list[jax.Array]:
        """The flat outputs for the flat operands, those of cut axes at their smaller size."""
        return self._run(self._top, args)

    def kept(self, axis: Expr) -> np.ndarray | None:
        """The indices of an axis that stay, None for all."""
        axis = self._atoms.resolve(axis)
        if axis not in self._kept:
            self._kept[axis] = self._atoms.kept(axis, self._keep)  # type: ignore[arg-type]
        return self._kept[axis]

    def take(self, value: Any, axes: Sequence[Expr], first: int = 0, put: bool = True) -> Any:
        """An array of full size without what is cut of its axes, from `first` on; put: of jax, if it was of jax."""
        for i, axis in enumerate(axes, first):
            kept = self.kept(axis)
            if kept is None:
                continue
            if isinstance(value, jax.core.Tracer):
                value = jnp.take(value, kept, axis=i)
            else:
                taken = np.take(np.asarray(value), kept, axis=i)
                value = jax.device_put(taken) if put and isinstance(value, jax.Array) else taken
        return value

    def length(self, axis: Expr, size: Any) -> Any:
        """How much is left of an axis of this size, which may be symbolic."""
        kept = self.kept(axis)
        if kept is None or not symbolic(size):
            return size if kept is None else len(kept)
        full, left = self._symbolic(self._atoms.resolve(axis))
        if full != size:
            raise ValueError(f"an axis of size {size} is cut in a way that symbolic sizes do not tell; give its sizes")
        return left

    def _symbolic(self, axis: Expr) -> tuple[Any, Any]:
        """(the size of an axis in symbols, what is left of it)."""
        kind, parts = axis
        if kind == "atom":
            full = self._analysis.numbers.symbols_in(self._atoms.size(axis))
            return full, int(self._keep[parts].sum()) if parts in self._keep else full
        sizes = [self._symbolic(part) for part in parts]
        over = math.prod if kind == "product" else sum
        return over(full for full, _ in sizes), over(left for _, left in sizes)

    def _shape(self, frame: Frame, var: Any, real: Any) -> tuple[Any, ...]:
        """The shape of a variable without what is cut; real: the variable at symbolic sizes."""
        return tuple(self.length(axis, size) for axis, size in zip(frame.axes[var], real.aval.shape, strict=True))

    def _run(self, frame: Frame, args: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(frame.jaxpr.invars, args, strict=True))
        for var, value in zip(frame.jaxpr.constvars, frame.consts, strict=True):
            env[var] = self.take(value, frame.axes[var], put=False)

        def of(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else env[atom]

        for number, eqn in enumerate(frame.jaxpr.eqns):
            outs = self._equation(frame, number, eqn, [of(var) for var in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [of(var) for var in frame.jaxpr.outvars]

    def _equation(self, frame: Frame, number: int, eqn: Any, ins: list[Any]) -> Sequence[Any]:
        real, children = frame.real.eqns[number], frame.children.get(number, [])
        name, params = eqn.primitive.name, real.params
        if name in CUSTOM and len(children) == 2 and not self._hook:
            return self._custom(real, children, ins)
        if name in CALLS:
            run = lambda *args: self._run(children[0], args)  # noqa: E731
            if name in REMAT and not self._hook:
                run = jax.checkpoint(run, policy=params.get("policy"), prevent_cse=params.get("prevent_cse", True))
            return run(*ins)
        if self._hook and name == "scan":
            return self._unrolled(children[0], eqn, ins)
        if self._hook and name in ("while", "cond"):
            hook, self._hook = self._hook, None
            try:
                return self._equation(frame, number, eqn, ins)
            finally:
                self._hook = hook
        if name == "scan":
            consts, carries = params["num_consts"], params["num_carry"]

            def turn(carry, x):
                outs = self._run(children[0], [*ins[:consts], *carry, *x])
                return outs[:carries], outs[carries:]

            start, xs = list(ins[consts : consts + carries]), list(ins[consts + carries :])
            length = None if xs else params["length"]  # a symbolic one comes with what is scanned
            carry, ys = jax.lax.scan(turn, start, xs, length, reverse=params["reverse"], unroll=params["unroll"])
            return [*carry, *ys]
        if name == "while":
            first, second = params["cond_nconsts"], params["body_nconsts"]
            return jax.lax.while_loop(
                lambda carry: self._run(children[0], [*ins[:first], *carry])[0],
                lambda carry: self._run(children[1], [*ins[first : first + second], *carry]),
                list(ins[first + second :]),
            )
        if name == "cond":
            branches = [lambda *args, child=child: self._run(child, args) for child in children]
            return jax.lax.switch(ins[0], branches, *ins[1:])
        if self._hook:
            self._hook(frame, number, ins, self._turns)
        if name == "iota":
            return [self._iota(frame, eqn, real)]
        if name in RANDOM:
            return [
                self.take(out, frame.axes[var]) for out, var in zip(bound(real, ins, params), eqn.outvars, strict=True)
            ]
        return bound(real, ins, self._resized(frame, eqn, real, ins))

    def _custom(self, eqn: Any, children: list[Frame], ins: list[Any]) -> Sequence[Any]:
        """A function with a derivative of its own, at the smaller sizes with that derivative."""
        if all(np.shape(value) == var.aval.shape for value, var in zip(ins, eqn.invars, strict=True)):
            inner = zip(children[0].jaxpr.outvars, children[0].real.outvars, strict=True)
            if all(
                self._shape(children[0], var, real) == real.aval.shape
                for var, real in inner
                if not isinstance(var, Literal)
            ):
                return bound(eqn, ins, eqn.params)
        consts = eqn.params["num_consts"]
        closed, given = ins[:consts], ins[consts:]
        moved = [i - consts for i in differentiable([var.aval for var in eqn.invars], consts)]
        seen = differentiable([var.aval for var in eqn.outvars])

        def run(*args: Any) -> list[Any]:
            return self._run(children[0], [*closed, *args])

        if eqn.primitive.name == "custom_jvp_call":
            forward = jax.custom_jvp(run)

            @forward.defjvp
            def tangents(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
                made = self._run(children[1], [*closed, *primals, *(tangents[i] for i in moved)])
                outs, found = made[: len(eqn.outvars)], dict(zip(seen, made[len(eqn.outvars) :], strict=True))
                return outs, [
                    found[i] if i in found else np.zeros(np.shape(out), jax.dtypes.float0) for i, out in enumerate(outs)
                ]

            return forward(*given)
        backward = jax.custom_vjp(run)

        def pull(args: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
            found = dict(
                zip(moved, self._run(children[1], [*closed, *args, *(cotangents[i] for i in seen)]), strict=True)
            )
            return tuple(found.get(i) for i in range(len(args)))

        backward.defvjp(lambda *args: (run(*args), args), pull)
        return backward(*given)

    def _unrolled(self, child: Frame, eqn: Any, ins: list[Any]) -> list[Any]:
        """A scan as a plain loop, its turns told to the hook."""
        params = eqn.params
        consts, carries, length = params["num_consts"], params["num_carry"], params["length"]
        carry, turns, made = list(ins[consts : consts + carries]), self._turns, {}
        for i in reversed(range(length)) if params["reverse"] else range(length):
            self._turns = (*turns, i)
            outs = self._run(child, [*ins[:consts], *carry, *(x[i] for x in ins[consts + carries :])])
            carry, made[i] = outs[:carries], outs[carries:]
        self._turns = turns
        stacked = [jnp.stack([made[i][j] for i in range(length)]) for j in range(len(eqn.outvars) - carries)]
        return [*carry, *stacked]

    def _iota(self, frame: Frame, eqn: Any, real: Any) -> jax.Array:
        at, shape = eqn.params["dimension"], self._shape(frame, eqn.outvars[0], real.outvars[0])
        kept = self.kept(frame.axes[eqn.outvars[0]][at])
        if kept is None:
            return jax.lax.broadcasted_iota(eqn.params["dtype"], shape, at)
        return jax.lax.broadcast_in_dim(jnp.asarray(kept, eqn.params["dtype"]), shape, (at,))

    def _resized(self, frame: Frame, eqn: Any, real: Any, ins: list[Any]) -> dict[str, Any]:
        """The params of an equation with the sizes that are in them brought to what is left."""
        name, params = eqn.primitive.name, dict(real.params)
        if not eqn.outvars:
            return params
        out = self._shape(frame, eqn.outvars[0], real.outvars[0])
        same = (np.shape(value) == var.aval.shape for value, var in zip(ins, real.invars, strict=True))
        if out == real.outvars[0].aval.shape and all(same):
            return params
        if name == "reshape":
            params["new_sizes"] = out
        elif name == "broadcast_in_dim":
            params["shape"] = out
        elif name == "tile":
            params["reps"] = tuple(
                length // now if now else times
                for length, now, times in zip(out, np.shape(ins[0]), params["reps"], strict=True)
            )
        elif name == "slice":
            strides = params["strides"] or (1,) * len(out)
            axes = zip(
                frame.axes[eqn.invars[0]], params["start_indices"], params["limit_indices"], strides, strict=True
            )
            bounds = [self._bounds(*described, n) for described, n in zip(axes, out, strict=True)]
            params["start_indices"], params["limit_indices"] = zip(*bounds, strict=True) if bounds else ((), ())
        elif name == "split":
            at = params["axis"]
            params["sizes"] = tuple(
                self._shape(frame, var, full)[at] for var, full in zip(eqn.outvars, real.outvars, strict=True)
            )
        elif name in ("gather", "dynamic_slice"):
            sizes = zip(params["slice_sizes"], real.invars[0].aval.shape, np.shape(ins[0]), strict=True)
            params["slice_sizes"] = tuple(now if wanted == size else wanted for wanted, size, now in sizes)
        elif name == "conv_general_dilated" and params["feature_group_count"] > 1:
            lhs, rhs, _ = params["dimension_numbers"]
            params["feature_group_count"] = np.shape(ins[0])[lhs[1]] // np.shape(ins[1])[rhs[1]]
        return params

    def _bounds(self, axis: Expr, start: int, limit: int, stride: int, length: int) -> tuple[int, int]:
        """The (start, limit) of a slice of what is left of an axis; length: of the result."""
        kept = self.kept(axis)
        if kept is None:
            return start, limit
        if (
            stride > 1
        ):  # of an axis that is a product with the stride: whole strides are cut, the start is inside of one
            return (start, start + (length - 1) * stride + 1) if length else (0, 0)
        return int(np.searchsorted(kept, start)), int(np.searchsorted(kept, limit))

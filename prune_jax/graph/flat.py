"""A JAX function as one flat list of operations, so that it can be evaluated piece by piece.

Calls are inlined, scans that run over the weights of interest are unrolled, and values that are computed twice are
computed once. What a cond or a while runs stays one operation.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from prune_jax.graph import tracing
from prune_jax.pruning import trees

Tree = Any

MOST_OPERATIONS = 100_000  # of an unrolled scan


class Op(NamedTuple):
    """An operation.

    Attributes:
      name: of its primitive; "take" is a slice of what a scan runs over, "stack" what it collects.
      run: (*operands) -> list of results.
      key: equal keys compute the same.
      ins: the numbers of its operands, or Literals; outs: those of its results.
      eqn: of jax, None for "take" and "stack".
    """

    name: str
    run: Callable[..., list[Any]]
    key: Any
    ins: tuple[Any, ...]
    outs: tuple[int, ...]
    eqn: Any = None


class Flat:
    """fn(params, *inputs) as a flat list of operations over numbered values.

    Attributes:
      ops: in the order in which they run.
      names: of the leaves of params, which are the values 0, 1, ...; the leaves of inputs are `inputs`.
      consts: number -> value of what the function closes over.
      live: the numbers of the values that inputs have a part in.
      depends: number -> the numbers of the weights of interest that a value is made of.
      hidden: the weights of interest that a cond, a while or another operation with a function inside reads.
    """

    def __init__(self, fn: Callable, params: Tree, inputs: Sequence[Any], wanted: Callable[[str], bool]) -> None:
        """Reads the function. wanted: (name) -> whether a weight is of interest."""
        closed, _ = tracing.closed_jaxpr(fn, params, inputs)
        self.names = list(trees.by_name(params))
        self.ops: list[Op] = []
        self.consts: dict[int, Any] = {}
        self.shapes: list[Any] = []
        self.depends: list[frozenset[int]] = []
        self.live: set[int] = set()
        self.hidden: dict[int, str] = {}
        self._seen: dict[Any, tuple[int, ...]] = {}
        self._const_of: dict[int, int] = {}
        jaxpr = closed.jaxpr
        ins = []
        for i, var in enumerate(jaxpr.invars):
            own = i < len(self.names) and wanted(self.names[i])
            ins.append(self._new(var.aval, frozenset([i]) if own else frozenset()))
        self.inputs = ins[len(self.names) :]
        self.live |= set(self.inputs)
        self.outs = self._inline(jaxpr, closed.consts, ins)
        self.last_use: dict[int, int] = {}
        self.made_by: dict[int, int] = {}
        for at, op in enumerate(self.ops):
            self.last_use |= {number: at for number in op.ins if not isinstance(number, Literal)}
            self.made_by |= dict.fromkeys(op.outs, at)

    def _new(self, aval: Any, depends: frozenset[int]) -> int:
        self.shapes.append(aval)
        self.depends.append(depends)
        return len(self.shapes) - 1

    def _const(self, value: Any) -> int:
        if id(value) not in self._const_of:
            self._const_of[id(value)] = self._new(jax.typeof(value), frozenset())
            self.consts[self._const_of[id(value)]] = value
        return self._const_of[id(value)]

    def _inline(self, jaxpr: Any, consts: Sequence[Any], ins: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.invars, ins, strict=True))
        env |= {var: self._const(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}
        of = lambda atom: atom if isinstance(atom, Literal) else env[atom]  # noqa: E731
        for eqn in jaxpr.eqns:
            operands = [of(atom) for atom in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, operands), strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        weights = self._union(ins)
        if name in tracing.CALLS:
            return self._inline(*tracing.inner_jaxpr(eqn), ins)
        if name == "scan" and weights:
            return self._unrolled(eqn, ins)
        if weights and any(_computes(value) for value in _values(eqn.params)):
            # What inputs have a part in has met its kernels before.
            given = self._union(i for i in ins if isinstance(i, Literal) or i not in self.live)
            self.hidden |= dict.fromkeys(given, name)
        run = lambda *operands: tracing.bound(eqn, operands, eqn.params)  # noqa: E731
        key = (name, tuple((word, _key(value)) for word, value in sorted(eqn.params.items())))
        return self._add(name, run, key, ins, [var.aval for var in eqn.outvars], eqn)

    def _union(self, ins: Iterable[Any]) -> frozenset[int]:
        return frozenset().union(*(self.depends[i] for i in ins if not isinstance(i, Literal)))

    def _add(
        self, name: str, run: Callable, key: Any, ins: Sequence[Any], avals: Sequence[Any], eqn: Any = None
    ) -> tuple[int, ...]:
        place = (key, tuple(literal_key(i) if isinstance(i, Literal) else i for i in ins))
        if place in self._seen and not (eqn is not None and eqn.effects):
            return self._seen[place]
        weights = self._union(ins)
        outs = tuple(self._new(aval, weights) for aval in avals)
        if any(i in self.live for i in ins if not isinstance(i, Literal)):
            self.live |= set(outs)
        self.ops.append(Op(name, run, key, tuple(ins), outs, eqn))
        self._seen[place] = outs
        return outs

    def _unrolled(self, eqn: Any, ins: list[Any]) -> list[Any]:
        params = eqn.params
        consts, carries, length = params["num_consts"], params["num_carry"], params["length"]
        jaxpr, inner = tracing.open_jaxpr(params["jaxpr"])
        if length * len(jaxpr.eqns) > MOST_OPERATIONS:
            raise ValueError(
                f"a scan of {length} turns over {self.names[min(self._union(ins))]} is too long to be "
                f"unrolled ({length * len(jaxpr.eqns)} operations); allowed: up to {MOST_OPERATIONS}, such as by "
                "shorter examples"
            )
        carry, xs, made = list(ins[consts : consts + carries]), ins[consts + carries :], {}
        for i in reversed(range(length)) if params["reverse"] else range(length):
            outs = self._inline(jaxpr, inner, [*ins[:consts], *carry, *(self._turn(x, i) for x in xs)])
            carry, made[i] = outs[:carries], outs[carries:]
        stacked = [
            self._add("stack", lambda *each: [jnp.stack(each)], "stack", [made[i][j] for i in range(length)], [v.aval])[
                0
            ]
            for j, v in enumerate(eqn.outvars[carries:])
        ]
        return [*carry, *stacked]

    def _turn(self, x: Any, i: int) -> int:
        aval = self.shapes[x]
        out = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
        run = lambda value: [jax.lax.index_in_dim(value, i, keepdims=False)]  # noqa: E731
        return self._add("take", run, ("take", i), [x], [out])[0]

    # Pieces ----------------------------------------------------------------------------------------------------------

    def slice(self, targets: Iterable[int], given: Iterable[int]) -> tuple[list[Op], list[int]]:
        """(the operations that make the targets of given values, in order; what they take besides, and given ones)."""
        known, needed, todo, leaves = set(given), set(), list(targets), dict[int, None]()
        while todo:
            number = todo.pop()
            if number in known or number not in self.made_by:
                leaves[number] = None
            elif self.made_by[number] not in needed:
                at = self.made_by[number]
                needed.add(at)
                todo += [i for i in self.ops[at].ins if not isinstance(i, Literal)]
        return [self.ops[at] for at in sorted(needed)], list(leaves)


def run(ops: Sequence[Op], env: dict[int, Any]) -> None:
    """Evaluates operations, putting their results into env: number -> value."""
    for op in ops:
        operands = [i.val if isinstance(i, Literal) else env[i] for i in op.ins]
        env.update(zip(op.outs, op.run(*operands), strict=True))


def literal_key(literal: Any) -> tuple:
    """What makes a literal the same as another."""
    value = np.asarray(literal.val)
    return ("literal", str(literal.aval), value.tobytes())


def _values(params: dict[str, Any]) -> Iterable[Any]:
    for value in params.values():
        yield from value if isinstance(value, tuple | list) else (value,)


def _computes(value: Any) -> bool:
    """Whether a parameter is a function of arrays; one of numbers, such as a scatter's addition, meets no kernel."""
    if not hasattr(value, "eqns") and not hasattr(value, "jaxpr"):
        return False
    jaxpr, consts = tracing.open_jaxpr(value)
    return bool(consts) or any(var.aval.shape for var in (*jaxpr.invars, *jaxpr.constvars))


def _key(value: Any) -> Any:
    """What makes an equation's parameter the same as another."""
    if isinstance(value, tuple | list):
        return tuple(_key(each) for each in value)
    if hasattr(value, "consts"):
        return (str(value.jaxpr), tuple(id(const) for const in value.consts))
    if hasattr(value, "eqns"):
        return str(value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value

"""Which slices of which variables are all 0, and so which indices of which atoms can be cut without a trace.

For every axis of every variable a boolean per index says that the slice there is certainly 0, whatever the inputs are.
An index of an atom can be cut exactly where each contraction or sum that reads it meets a 0 on either side. That is
asked of the actual weights: it holds for a unit whose readers are 0, whatever it computes, and for one that is 0
itself, such as a residual channel whose writers, biases and scales are all 0.

A 0 times anything counts as 0, as if nothing were infinite.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

from prune_jax.graph.readings import readings
from prune_jax.graph.tracing import CALLS, Analysis, Frame, place
from prune_jax.graph.zero_rules import ZERO_RULES, Known, both, nothing, of_array, uniform


class Inspection:
    """The zeros of a function's variables for given weights.

    Args:
      analysis: of the function.
      params: what is known of its weights, in order.
      watched: atom -> booleans, True for the indices of which it matters what reads them.
    Attributes:
      removable: atom -> booleans, True where its index can be cut without a trace; an atom that is not in it can be.
      blamed: atom -> what first reads a watched index of it that is not 0, where something does.
    """

    def __init__(
        self, analysis: Analysis, params: Sequence[Known], watched: Mapping[int, np.ndarray] | None = None
    ) -> None:
        self._atoms, self._watched = analysis.atoms, watched or {}
        self._units: dict[Any, list[tuple[int, np.ndarray]]] = {}
        self.removable: dict[int, np.ndarray] = {}
        self.blamed: dict[int, str] = {}
        jaxpr = analysis.top.jaxpr
        inputs = [nothing(var.aval.shape) for var in jaxpr.invars[len(params) :]]
        self._run(analysis.top, [*params, *inputs], judge=True)

    def _run(self, frame: Frame, ins: Sequence[Known], judge: bool) -> list[Known]:
        jaxpr = frame.jaxpr
        if frame.known_consts is None:
            frame.known_consts = [of_array(value) for value in frame.consts]
        env: dict[Any, Known] = dict(zip(jaxpr.constvars, frame.known_consts, strict=True))
        env.update(zip(jaxpr.invars, ins, strict=True))

        def of(atom: Any) -> Known:
            return of_array(atom.val) if isinstance(atom, Literal) else env[atom]

        for number, eqn in enumerate(jaxpr.eqns):
            operands = [of(var) for var in eqn.invars]
            outs = self._equation(frame, number, eqn, operands, judge)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [of(var) for var in jaxpr.outvars]

    def _equation(self, frame: Frame, number: int, eqn: Any, ins: list[Known], judge: bool) -> list[Known]:
        name = eqn.primitive.name
        children = frame.children.get(number, [])
        if name in CALLS:
            return self._run(children[0], ins, judge)
        if name == "scan":
            return self._scan(eqn, children[0], ins, judge)
        if name == "while":
            return self._while(eqn, children, ins, judge)
        if name == "cond":
            results = [self._run(child, ins[1:], judge) for child in children]
            return [both(outs) for outs in zip(*results, strict=True)]
        reading = readings(eqn, number) if judge else None
        if reading:
            for a, b in reading.pairs:
                known, side, axis = ins[0].zeros[a], 0, a
                if b is not None:  # of a convolution in groups, what one of them reads, and so all of them
                    theirs = ins[1].zeros[b]
                    ours = known.reshape(-1, theirs.size).all(0) if theirs.size else theirs
                    known, side, axis = ours | theirs, 1, b
                if not reading.sums:
                    # The largest of no number below 0 is that of what is left, as long as one is.
                    known = known & (name == "reduce_max" and ins[0].positive)
                    known[:1] &= not known.all()
                self._judge(frame.axes.get(eqn.invars[side]), axis, known, eqn)
        outs = ZERO_RULES[name](eqn, ins) if name in ZERO_RULES else None
        return [nothing(var.aval.shape) for var in eqn.outvars] if outs is None else outs

    def _judge(self, axes: Any, axis: int, known: np.ndarray, eqn: Any) -> None:
        if axes is None or known.all():
            return
        for atom, units in self._units_of(axes[axis]):
            bad = units[(units >= 0) & ~known]
            removable = self.removable.get(atom)
            if removable is None:
                removable = self.removable[atom] = np.ones(self._atoms.size(("atom", atom)), bool)
            removable[bad] = False
            if atom in self._watched and atom not in self.blamed and self._watched[atom][bad].any():
                self.blamed[atom] = place(eqn)

    def _units_of(self, expr: Any) -> list[tuple[int, np.ndarray]]:
        """(atom, unit of it per index) for each atom in an axis."""
        expr = self._atoms.resolve(expr)
        if expr not in self._units:
            self._units[expr] = [(atom, self._atoms.units(expr, atom)) for atom in set(self._atoms.leaves(expr))]
        return self._units[expr]

    def _scan(self, eqn: Any, child: Frame, ins: list[Known], judge: bool) -> list[Known]:
        params = eqn.params
        consts, carries, length = params["num_consts"], params["num_carry"], params["length"]
        # Slices that are 0 at every turn; the first axis of what is scanned counts the turns.
        xs = [
            uniform(known.shape[1:], known.value) if known.value is not None or known.whole else Known(known.zeros[1:])
            for known in ins[consts + carries :]
        ]
        xs = [uniform(x.shape, 0.0) if known.whole else x for x, known in zip(xs, ins[consts + carries :], strict=True)]
        carry = ins[consts : consts + carries]
        carry, outs = self._settle(carry, lambda now: self._run(child, [*ins[:consts], *now, *xs], False), carries)
        if judge:
            outs = self._run(child, [*ins[:consts], *carry, *xs], True)
        stacked = [Known((np.full(length, known.whole), *known.zeros), known.value) for known in outs[carries:]]
        return [*carry, *stacked]

    def _while(self, eqn: Any, children: list[Frame], ins: list[Known], judge: bool) -> list[Known]:
        first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        consts, carry = ins[first : first + second], ins[first + second :]
        carry, _ = self._settle(carry, lambda now: self._run(children[1], [*consts, *now], False), len(carry))
        if judge:
            self._run(children[0], [*ins[:first], *carry], True)
            self._run(children[1], [*consts, *carry], True)
        return carry

    @staticmethod
    def _settle(carry: list[Known], turn: Any, count: int) -> tuple[list[Known], list[Known]]:
        """What of a loop's carry stays as it is at every turn, and what its body then makes."""
        while True:
            outs = turn(carry)
            after = [both([old, new]) for old, new in zip(carry, outs[:count], strict=True)]
            same = all(
                old.value == new.value and all(map(np.array_equal, old.zeros, new.zeros))
                for old, new in zip(carry, after, strict=True)
            )
            if same:
                return carry, outs
            carry = after


__all__ = ["Inspection", "Known", "of_array"]

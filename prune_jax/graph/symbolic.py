"""Functions at symbolic sizes, as jax.export has them: read with numbers in the symbols' place.

Axes are told apart by their sizes, which symbols do not always allow: is b larger than 12? So each symbol gets a small
prime that divides no size in sight, a copy of the jaxpr with these numbers is read, and the jaxpr itself is evaluated.
What comes back from numbers to symbols (the size of an axis that is partly cut) is made sure of.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def symbolic(size: Any) -> bool:
    """Whether a size is an expression of symbols, and no number."""
    return jax.export.is_symbolic_dim(size)


class Numbers:
    """Numbers in the place of symbols.

    Args:
      shapes: of all operands; their symbols are all there are.
    Attributes:
      real: id of a jaxpr with numbers -> the jaxpr it was made of.
    """

    def __init__(self, shapes: Sequence[tuple[Any, ...]]) -> None:
        sizes = [size for shape in shapes for size in shape]
        self._symbols = {str(s): s for size in sizes if symbolic(size) for s in _symbols_of(size)}
        self._values: dict[str, int] = {}
        fixed = [size for size in sizes if not symbolic(size) and size > 0]
        primes = (n for n in range(5, 10**6) if all(n % k for k in range(2, int(n**0.5) + 1)))
        for name in self._symbols:
            self._values[name] = next(prime for prime in primes if all(size % prime for size in fixed))
        self.real: dict[int, Any] = {}
        self._made: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._symbols)

    def symbols_in(self, number: int) -> Any:
        """A size, with symbols in the place of their numbers."""
        size: Any = 1
        for name, prime in self._values.items():
            while number and number % prime == 0:
                number, size = number // prime, size * self._symbols[name]
        return size * number

    def of(self, value: Any) -> Any:
        """A size, a shape, or a param of an equation, with numbers."""
        if isinstance(value, ClosedJaxpr):
            return ClosedJaxpr(self.jaxpr(value.jaxpr), value.consts)
        if isinstance(value, Jaxpr):
            return self.jaxpr(value)
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            return type(value)(self.of(each) for each in value)
        return int(value._evaluate(self._values)) if symbolic(value) else value

    def jaxpr(self, jaxpr: Any) -> Any:
        """A jaxpr with numbers, equation by equation as it was."""
        if not self:
            return jaxpr
        if id(jaxpr) not in self._made:
            seen: dict[Any, Any] = {}

            def var(atom: Any) -> Any:
                if isinstance(atom, Literal):
                    return atom
                if atom not in seen:
                    aval = atom.aval
                    seen[atom] = type(atom)(aval.update(shape=self.of(aval.shape)) if hasattr(aval, "shape") else aval)
                return seen[atom]

            made = jaxpr.replace(
                constvars=[var(v) for v in jaxpr.constvars],
                invars=[var(v) for v in jaxpr.invars],
                eqns=[
                    eqn.replace(
                        invars=[var(v) for v in eqn.invars],
                        outvars=[var(v) for v in eqn.outvars],
                        params={key: self.of(value) for key, value in eqn.params.items()},
                    )
                    for eqn in jaxpr.eqns
                ],
                outvars=[var(v) for v in jaxpr.outvars],
            )
            self._made[id(jaxpr)] = made
            self.real[id(made)] = jaxpr
        return self._made[id(jaxpr)]


def _symbols_of(size: Any) -> list[Any]:
    """The symbols in an expression of them."""
    names = sorted(size._get_vars())
    return list(jax.export.symbolic_shape(",".join(names), scope=size.scope)) if names else []

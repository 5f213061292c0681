"""Options, declared once: a frozen dataclass whose fields carry their allowed values and one sentence of description.

Defaults, checks, messages and the reference of the config keys are all read from such a declaration:

    @options
    class Movement:
        regrow: bool = option(False, "Whether closed gates whose scores rise again reopen.")
        tau: float = option(0.1, "The score below which a gate closes.", 0, 1, inclusive=False)

    Movement(tau=2)  # ValueError: tau is 2; allowed: above 0 and below 1
"""

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, dataclass_transform


class Option(NamedTuple):
    """One option.

    Attributes:
      kind: its type: bool, int, float, str or tuple.
      default: its value where none is given.
      text: what it is, in one sentence.
      least, most: the allowed range of a number.
      inclusive: whether the bounds themselves are allowed.
      choices: the allowed texts; empty, any.
      optional: whether None is allowed.
      in_config: whether an experiment's config has it; else the program fills it in.
    """

    kind: type
    default: Any
    text: str
    least: float = -math.inf
    most: float = math.inf
    inclusive: bool = True
    choices: tuple[str, ...] = ()
    optional: bool = False
    in_config: bool = True

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.choices:
            return ", ".join(choice or "empty" for choice in self.choices)
        if self.kind is bool:
            return "True, False"
        kind = {int: "a whole number", float: "a number"}.get(self.kind, f"a {self.kind.__name__}")
        if self.least == -math.inf and self.most == math.inf:
            return kind
        if not self.inclusive:
            return f"above {self.least:g}" + (f" and below {self.most:g}" if self.most < math.inf else "")
        return f"at least {self.least:g}" if self.most == math.inf else f"{self.least:g} to {self.most:g}"

    def permits(self, value: Any) -> bool:
        """Whether `value` is of the option's type and among the allowed values."""
        if value is None:
            return self.optional
        if self.choices:
            return value in self.choices
        if self.kind in (int, float):
            number = isinstance(value, numbers.Real if self.kind is float else numbers.Integral)
            if not number or isinstance(value, bool) or not math.isfinite(value):
                return False
            if self.inclusive:
                return self.least <= value <= self.most
            return self.least < value < self.most
        return isinstance(value, self.kind)


def option(
    default: Any,
    text: str,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    inclusive: bool = True,
    choices: tuple[str, ...] = (),
    in_config: bool = True,
) -> Any:
    """A field of an @options class; the arguments are those of Option.

    Example:
      >>> @options
      ... class Movement:
      ...     tau: float = option(0.1, "The score below which a gate closes.", 0, 1, inclusive=False)
      >>> Movement(tau=0.5).tau
      0.5
    """
    allowed = {"least": least, "most": most, "inclusive": inclusive, "choices": choices}
    return dataclasses.field(default=default, metadata={"text": text, **allowed, "in_config": in_config})


def declared(cls: type) -> dict[str, Option]:
    """The options of an @options class by name, in the order of their declaration."""
    hints = typing.get_type_hints(cls)
    listed = {}
    for field in dataclasses.fields(cls):
        kind, optional = hints[field.name], False
        if isinstance(kind, types.UnionType):  # float | None
            (kind,), optional = [part for part in typing.get_args(kind) if part is not type(None)], True
        listed[field.name] = Option(kind, field.default, **field.metadata, optional=optional)
    return listed


def _check(self: Any) -> None:
    for name, one in declared(type(self)).items():
        value = getattr(self, name)
        if not one.permits(value):
            raise ValueError(f"{name} is {value!r}; allowed: {one.allowed}")


@dataclass_transform(frozen_default=True)
def options(cls: type) -> type:
    """Makes `cls` a frozen dataclass that raises a ValueError for a value that is not allowed.

    Example:
      >>> @options
      ... class Movement:
      ...     tau: float = option(0.1, "The score below which a gate closes.", 0, 1, inclusive=False)
      >>> Movement(tau=2)
      Traceback (most recent call last):
      ValueError: tau is 2; allowed: above 0 and below 1
    """
    cls.__post_init__ = _check  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True)(cls)


def made_from(cls: type) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Makes a function of an @options instance one of its fields as arguments: build(Movement(...)) to make(...).

    The result has the options in its signature, the class as `options`, and raises a TypeError that lists them for
    an unknown name.

    Example:
      >>> @options
      ... class Power:
      ...     power: float = option(2.0, "The exponent.", 0)
      >>> @made_from(Power)
      ... def exponent(options):
      ...     return options.power
      >>> exponent(power=3)
      3
    """

    def decorate(build: Callable[[Any], Any]) -> Callable[..., Any]:
        names = list(declared(cls))

        @functools.wraps(build)
        def make(*args: Any, **given: Any) -> Any:
            for name in given:
                if name not in names:
                    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
                    raise TypeError(
                        f"there is no option {name!r}; "
                        + (f"did you mean {near[0]!r}? allowed: {', '.join(names)}" if names else "it takes none")
                    )
            if len(args) > len(names):
                allowed = f"allowed: at most {len(names)}, {', '.join(names)}" if names else "it takes none"
                raise TypeError(f"{len(args)} options are given by place; {allowed}")
            if twice := [name for name in names[: len(args)] if name in given]:
                raise TypeError(f"the option {twice[0]!r} is given twice, by place and by name")
            return build(cls(*args, **given))

        make.options = cls  # type: ignore[attr-defined]
        make.__signature__ = inspect.signature(cls)  # type: ignore[attr-defined]
        return make

    return decorate

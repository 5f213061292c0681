"""The library under `jax.numpy_dtype_promotion("strict")`, which a caller may have chosen for code of their own."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def usual(function: Callable[P, R]) -> Callable[P, R]:
    """function, which promotes dtypes as JAX usually does, whatever its caller has chosen."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped

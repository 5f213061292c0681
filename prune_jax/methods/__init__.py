"""The registry of pruning methods. A new method is a new file here and one line of REGISTRY.

A method's module has `Options`, its options declared once, and `create(**options)`, which makes the Method.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from prune_jax.pruning.method import Method
from prune_jax.pruning.options import Option, declared

REGISTRY: dict[str, Any] = {  # name: module with Options and create(**options) -> Method, or that function
    "baseline": "prune_jax.methods.baseline",
    "magnitude": "prune_jax.methods.magnitude",
    "movement": "prune_jax.methods.movement",
    "sensitivity": "prune_jax.methods.sensitivity",
    "platon": "prune_jax.methods.platon",
    "spt": "prune_jax.methods.spt",
    "sws": "prune_jax.methods.sws",
    "random": "prune_jax.methods.random",
    "snip": "prune_jax.methods.snip",
    "grasp": "prune_jax.methods.grasp",
    "lottery_ticket": "prune_jax.methods.lottery_ticket",
    "obert": "prune_jax.methods.obert",
    "set": "prune_jax.methods.set",
    "rigl": "prune_jax.methods.rigl",
    "ste": "prune_jax.methods.ste",
    "synflow": "prune_jax.methods.synflow",
    "l0": "prune_jax.methods.l0",
    "variational_dropout": "prune_jax.methods.variational_dropout",
    "cofi": "prune_jax.methods.cofi",
}


ONESHOT: dict[str, str] = {  # methods that close before a training: a module with Options and create -> OneShot
    "sparsegpt": "prune_jax.oneshot.sparsegpt",
    "wanda": "prune_jax.oneshot.wanda",
    "obs": "prune_jax.oneshot.obs",
}


GROUP = "prune_jax.methods"  # of the entry points by which an installed package adds methods


def _installed() -> None:
    """Adds the methods of installed packages; one that has the name of another is left out."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        REGISTRY.setdefault(entry.name, entry.load)


ON_CHANGE: list[Callable[[], None]] = []  # called once a method has been registered


def register(name: str, create: Callable[..., Method]) -> None:
    """Adds a method from outside the package, so that configs know it and its options by name.

    An installed package does it with an entry point of the group "prune_jax.methods", NAME = "MODULE:create", which all
    commands find; a script or a config file calls this.

    Args:
      name: of the method and of its room among the config keys.
      create: made by made_from; its Method has that name.
    Raises:
      ValueError: the name is taken, or is no identifier.
      TypeError: create is not made by made_from, or makes no Method of that name.
    Example:
      >>> @pj.options
      ... class Options:
      ...     power: float = pj.option(1.0, "The power.", 0)
      >>> @pj.made_from(Options)
      ... def create(options):
      ...     return pj.Method("nothing_at_all", scheduled=False)
      >>> pj.register("nothing_at_all", create)
      >>> _ = REGISTRY.pop("nothing_at_all"), [changed() for changed in ON_CHANGE]
    """
    if not name.isidentifier():
        raise ValueError(f"name is {name!r}; allowed: letters, digits and underscores, such as my_method")
    known = REGISTRY.get(name, ONESHOT.get(name))
    if known is not None and known is not create:
        raise ValueError(f"name is {name!r}; allowed: one that is not taken, unlike {', '.join(REGISTRY)}")
    if not hasattr(create, "options"):
        raise TypeError(f"create is {create!r}; allowed: a function decorated with made_from(Options)")
    method = create()
    if not isinstance(method, Method) or method.name != name:
        raise TypeError(f"create makes {method!r}; allowed: a Method whose name is {name!r}")
    REGISTRY[name] = create
    try:
        for changed in ON_CHANGE:
            changed()
    except ValueError:
        del REGISTRY[name]
        raise


def maker(name: str) -> Callable[..., Method]:
    """The function that makes the method of this name from its options. KeyError if there is none."""
    home = REGISTRY[name] if name in REGISTRY else ONESHOT[name]
    if isinstance(home, str):
        return importlib.import_module(home).create
    return home if hasattr(home, "options") else home()  # an entry point is loaded at its first use


def options(name: str) -> dict[str, Option]:
    """The declared options of the method of this name."""
    return declared(maker(name).options)  # type: ignore[attr-defined]


def scheduled(name: str) -> bool:
    """Whether the method of this name closes gates while it trains, so that a sparsity schedule applies."""
    return name not in ONESHOT and maker(name)().scheduled


def from_config(config: Any) -> Method:
    """The Method that a resolved config names, with the options of the room of its name."""
    name = config.pruning.method
    if name in ONESHOT:  # its gates are closed when training starts, and stay as they are
        return Method(name, scheduled=False)
    room = config.get(name, {})
    return maker(name)(**{key: room[key] for key, one in options(name).items() if one.in_config})


_installed()

"""The keys of pruning, of one-shot pruning and of the methods, checked, with notes on what the run will not reach."""

import re

from prune_jax import methods
from prune_jax.config import keys
from prune_jax.config.rooms import MODELS
from prune_jax.config.schedules import sparsity_schedule
from prune_jax.config.values import fail, put
from prune_jax.errors import UserError
from prune_jax.pruning.structure import parse


def check_sparsities(config) -> None:
    """Checks the pruning window and turns percentages into fractions, in place."""
    cfg = config.pruning
    for key in ("start_sparsity", "end_sparsity"):
        value = cfg[key]
        if not 0 <= value <= 1:
            raise fail(f"pruning.{key}", value, "a fraction from 0 to 1 (95 percent is 0.95)")
    if cfg.start_sparsity > cfg.end_sparsity:
        raise fail(
            "pruning.start_sparsity", cfg.start_sparsity, f"at most config.pruning.end_sparsity ({cfg.end_sparsity:g})"
        )
    if cfg.start_epoch > cfg.end_epoch:
        raise fail("pruning.start_epoch", cfg.start_epoch, f"at most config.pruning.end_epoch ({cfg.end_epoch})")
    put(config, "pruning.sparsity_steps", _fractions(cfg.sparsity_steps))


def _fractions(steps: tuple) -> tuple[float, ...]:
    """pruning.sparsity_steps as fractions of 1. UserError for steps that do not say whether they are percentages."""
    key = "pruning.sparsity_steps"
    if not steps:
        raise fail(key, "()", "at least one percentage (0 to 100) or fraction (0 to 1)")
    if any(not 0 <= step <= 100 for step in steps):
        raise fail(key, steps, keys.allowed(key))
    if list(steps) != sorted(steps):
        raise fail(key, steps, "values that do not fall: a closed gate stays closed")
    fractions, percentages = any(0 < step < 1 for step in steps), steps[-1] > 1
    if fractions and percentages:
        allowed = "all percentages or all fractions of 1, not both (a percentage below 1 is a fraction below 0.01)"
        raise fail(key, steps, allowed)
    if not fractions and not percentages and any(type(step) is int and step == 1 for step in steps):
        raise fail(key, steps, "0.01 for one percent, 1.0 or 100 for all: a whole 1 alone may be either")
    return tuple(step / (100 if percentages else 1) for step in steps)


def check_structure(config, notes: list[str]) -> None:
    text = config.pruning.structure
    structure = _parsed(text)
    if structure.kind == "n:m" and methods.scheduled(config.pruning.method):
        n, m = structure.sizes
        final = sparsity_schedule(config)(config.train.epochs)
        if final * m < m - n:
            notes.append(f"the last target, {100 * final:g}% closed, is short of {text} ({100 * (1 - n / m):g}%)")
        elif final > 1 - n / m:
            notes.append(
                f"{text} closes {100 * (1 - n / m):g}%, and the last target is {100 * final:g}%: it stays there"
            )


def check_method(config) -> None:
    """Lets the method look at its own options together."""
    for name in dict.fromkeys((config.pruning.method, *([config.oneshot.method] if config.oneshot.method else []))):
        _check_options(config, name)


def _check_options(config, name: str) -> None:
    room = {key: config[name][key] for key, one in methods.options(name).items() if one.in_config}
    try:
        method = methods.maker(name)(**room)
    except ValueError as error:
        # The method names its options; the user knows them as keys, also in "False with credit=layer".
        text = re.sub(r"(?<=with )(\w+)", lambda m: f"config.{name}.{m[0]}" if m[0] in room else m[0], str(error))
        raise UserError(f"config.{name}.{text}") from error
    if getattr(method, "flow", False) and MODELS[config.model.name] != "images":
        reading = ", ".join(network for network, reads in MODELS.items() if reads == "images")
        allowed = f"{reading} with config.pruning.method={name}, for a text is no input of ones"
        raise fail("model.name", config.model.name, allowed)


def check_spt(config) -> None:
    cfg, structure = config.spt, config.pruning.structure
    if config.pruning.method != "spt":
        return
    if cfg.credit == "group" and parse(structure).kind not in ("groups", "block"):
        allowed = "head, ffn, pooler, several of them joined by +, block:RxC with config.spt.credit=group"
        raise fail("pruning.structure", structure, allowed)
    if cfg.inside == "movement" and structure not in ("unstructured", "encoder"):
        raise fail("pruning.structure", structure, "unstructured, encoder with config.spt.inside=movement")


def patience_notes(config, notes: list[str]) -> None:
    patience, epochs, target = config.train.patience, config.train.epochs, sparsity_schedule(config)
    first = next((epoch for epoch in range(1, epochs + 1) if target(epoch) == target(epochs)), 0)
    if patience and first + patience >= epochs:
        notes.append(
            f"config.train.patience is {patience}, and the last sparsity is reached after epoch {first} of {epochs}: "
            "the run never ends early"
        )


def check_oneshot(config) -> None:
    cfg, name, structure = config.oneshot, config.pruning.method, config.pruning.structure
    if name in methods.ONESHOT:
        if cfg.method not in ("", name):
            raise fail("oneshot.method", cfg.method, f"{name}, or empty, with config.pruning.method={name}")
        cfg.method = name
        if config.pruning.scope != "local":
            allowed = f"local with config.pruning.method={name}, whose scope is config.oneshot.scope"
            raise fail("pruning.scope", config.pruning.scope, allowed)
    if config.train.epochs == 0 and not cfg.method:
        raise fail("train.epochs", 0, f"1 to 1000000, or 0 with config.oneshot.method or {', '.join(methods.ONESHOT)}")
    if cfg.method == "obs" and structure.startswith("block:"):
        raise fail("pruning.structure", structure, "any but blocks with config.oneshot.method=obs")
    if cfg.target == "flops" and cfg.method and _parsed(structure).kind != "groups":
        raise fail("oneshot.target", cfg.target, f"units with config.pruning.structure={structure}")
    if cfg.scope == "global" and cfg.method and _parsed(structure).kind not in ("unstructured", "encoder"):
        raise fail("oneshot.scope", cfg.scope, f"local with config.pruning.structure={structure}")
    if cfg.correct and cfg.method == "sparsegpt" and config.sparsegpt.bits:
        raise fail("oneshot.correct", True, "false with config.sparsegpt.bits, whose grid it leaves")


def _parsed(text: str):
    try:
        return parse(text)
    except ValueError:
        raise fail("pruning.structure", text, keys.allowed("pruning.structure")) from None


def window_notes(config, notes: list[str]) -> None:
    cfg, epochs = config.pruning, config.train.epochs
    if not methods.scheduled(cfg.method):
        return
    target = sparsity_schedule(config)
    final = target(epochs)
    if cfg.start_epoch >= epochs:
        outcome = f"it ends at {100 * final:g}% closed" if final else "nothing will be pruned"
        notes.append(
            f"pruning starts after {cfg.start_epoch} epochs, and the run has {epochs}: {outcome} "
            "(config.pruning.start_epoch)"
        )
    elif cfg.schedule not in ("step", "one_shot") and cfg.end_epoch > epochs:
        notes.append(
            f"config.pruning.end_epoch is {cfg.end_epoch}, and the run has {epochs} epochs: the window is cut to end "
            f"with the run, at {100 * cfg.end_sparsity:g}% closed"
        )
        cfg.end_epoch = epochs
    elif cfg.schedule == "step" and cfg.start_epoch + len(cfg.sparsity_steps) > epochs:
        taken = epochs - cfg.start_epoch
        notes.append(
            f"the run has {epochs} epochs: it takes {taken} of the {len(cfg.sparsity_steps)} sparsity steps after "
            f"epoch {cfg.start_epoch} and ends at {100 * final:g}% closed"
        )
    elif final > target(epochs - 1):
        notes.append(
            f"the last cut, to {100 * final:g}% closed, comes after the last of {epochs} epochs: none trains what is "
            "left (config.train.epochs, config.pruning.start_epoch)"
        )

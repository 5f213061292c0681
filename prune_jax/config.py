"""What a config means: values that follow the model size, and one clear message for each mistake.

Nothing heavy is imported here: a mistake is answered before jax is loaded.
"""

import difflib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from prune_jax import keys
from prune_jax.errors import UserError
from prune_jax.methods import REGISTRY, UNSCHEDULED
from prune_jax.schedules import sparsity_schedule
from prune_jax.structure import ALLOWED as STRUCTURES
from prune_jax.structure import parse, undivided


def default() -> config_dict.ConfigDict:
    """The config of configs/common.py."""
    from configs import common

    return common.get_config()


def leaves(config: config_dict.ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{"train.epochs": 25, ...}: the config flat, under dotted keys."""
    found = {}
    for key in config:
        value = config[key]
        name = f"{prefix}{key}"
        found |= leaves(value, name + ".") if isinstance(value, config_dict.ConfigDict | dict) else {name: value}
    return found


def _get(config, key: str):
    room, name = key.split(".")
    return config[room][name]


def _set(config, key: str, value) -> None:
    room, name = key.split(".")
    with config.ignore_type():
        config[room][name] = value


def belongs(key: str, method: str) -> bool:
    """Whether a key matters to a method: a room with a method's name is its own, and baseline prunes nothing."""
    room = key.split(".")[0]
    if room in REGISTRY:
        return room == method
    return key == "pruning.method" or not (room == "pruning" and method == "baseline")


def unknown_key_message(key: str, config: config_dict.ConfigDict) -> str:
    """What to say of a key (dotted, without "config.") that config has not: it names the nearest that it has."""
    known = [*leaves(config), *config]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    last = key.rsplit(".", 1)[-1]
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == last]
    return f"unknown key config.{key}; did you mean config.{(same_name or near)[0]}?"


def _fail(key: str, value, allowed: str) -> UserError:
    shown = repr(value) if isinstance(value, str) else value
    return UserError(f"config.{key} is {shown}; allowed: {allowed}")


def _check_types(config, defaults) -> None:
    """Raises UserError for unknown or missing keys and for values of another type than the default's."""
    known, types = leaves(defaults), {}
    for room in defaults:
        for name in defaults[room]:
            types[f"{room}.{name}"] = defaults[room].get_type(name)
    given = leaves(config)
    for key in given:
        if key in defaults:
            raise _fail(key, given[key], f"its keys, such as config.{key}.{next(iter(defaults[key]))}")
        if key not in known:
            raise UserError(unknown_key_message(key, defaults))
    for key in known:
        if key not in given:
            raise UserError(f"config.{key} is missing; start from configs/common.py")
    for key, value in given.items():
        wanted = types[key]
        if value is None and known[key] is None:
            continue
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
            _set(config, key, value)
        if wanted is tuple and isinstance(value, list):
            value = tuple(value)
            _set(config, key, value)
        texts = wanted is tuple and known[key] and isinstance(known[key][0], str)
        if texts and isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
            _set(config, key, value)
        if wanted is tuple and isinstance(value, int | float) and not isinstance(value, bool):
            value = (value,)
            _set(config, key, value)
        if type(value) is not wanted:
            raise _fail(key, value, f"a value of type {wanted.__name__}, not {type(value).__name__}")
        numbers = value if wanted is tuple else (value,)
        if texts:
            if not all(isinstance(text, str) for text in value):
                raise _fail(key, value, "text only")
        elif wanted in (float, tuple):
            for number in numbers:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise _fail(key, value, "numbers only")
                if not math.isfinite(number):
                    raise _fail(key, value, "finite numbers")


def _check_values(config) -> None:
    for key, allowed in keys.CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            raise _fail(key, value, ", ".join(allowed))
    for key, (least, most, inclusive) in keys.RANGES.items():
        value = _get(config, key)
        if value is None:
            continue
        if not (least <= value <= most if inclusive else least < value < most):
            bound = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise _fail(key, value, bound if inclusive else f"above {least} and below {most}")
    model, data = config.model, config.data
    if model.d_model % model.num_heads:
        raise _fail("model.num_heads", model.num_heads, f"a divisor of config.model.d_model ({model.d_model})")
    for key, most in (("layer_heads", model.num_heads), ("layer_ffn", model.d_ff)):
        sizes = model[key]
        if sizes is not None and not (
            len(sizes) == model.num_layers and all(isinstance(size, int) and 0 <= size <= most for size in sizes)
        ):
            raise _fail(f"model.{key}", sizes, f"{model.num_layers} whole numbers from 0 to {most}, one a layer")
    if (model.pooler_width or 0) > model.d_model:
        raise _fail("model.pooler_width", model.pooler_width, f"at most config.model.d_model ({model.d_model})")
    if data.max_len > model.max_positions:
        raise _fail("data.max_len", data.max_len, f"at most config.model.max_positions ({model.max_positions})")
    buckets = data.buckets
    if buckets is not None:
        whole = all(isinstance(length, int) and length > 0 for length in buckets)
        increasing = whole and buckets and list(buckets) == sorted(set(buckets))
        if not increasing or not data.max_len <= buckets[-1] <= model.max_positions:
            allowed = (
                f"increasing lengths, the last at least config.data.max_len ({data.max_len}) "
                f"and at most config.model.max_positions ({model.max_positions})"
            )
            raise _fail("data.buckets", buckets, allowed)
    if data.source in keys.FOLDERS:
        if not data.dir:
            raise UserError(
                f"config.data.dir is empty; with config.data.source={data.source} it names {keys.FOLDERS[data.source]}"
            )
        if not Path(data.dir).is_dir():
            raise UserError(f"config.data.dir is {data.dir!r}; there is no such folder ({Path(data.dir).resolve()})")
    from prune_jax.data.glue import IMAGE_TASKS, get_task

    reads = "images" if get_task(data.task, data.source).name in IMAGE_TASKS else "text"
    if keys.MODELS[model.name] != reads:
        fitting = ", ".join(name for name, kind in keys.MODELS.items() if kind == reads)
        raise _fail("model.name", model.name, f"{fitting} with config.data.task={data.task}, which is {reads}")
    from prune_jax.report import sinks

    for name in config.report.sinks:
        if name not in sinks.SINKS:
            raise _fail("report.sinks", config.report.sinks, f"any of {', '.join(sinks.SINKS)}")
    sinks.check_installed(config.report.sinks)


def _check_sparsities(config) -> None:
    """Checks the pruning window and turns percentages into fractions, in place."""
    cfg = config.pruning
    for key in ("start_sparsity", "end_sparsity"):
        value = cfg[key]
        if not 0 <= value <= 1:
            raise _fail(f"pruning.{key}", value, "a fraction from 0 to 1 (95 percent is 0.95)")
    if cfg.start_sparsity > cfg.end_sparsity:
        raise _fail(
            "pruning.start_sparsity", cfg.start_sparsity, f"at most config.pruning.end_sparsity ({cfg.end_sparsity:g})"
        )
    if cfg.start_epoch > cfg.end_epoch:
        raise _fail("pruning.start_epoch", cfg.start_epoch, f"at most config.pruning.end_epoch ({cfg.end_epoch})")
    values = cfg.sparsity_steps
    if not values:
        raise _fail("pruning.sparsity_steps", "()", "at least one percentage (0 to 100) or fraction (0 to 1)")
    if any(not 0 <= value <= 100 for value in values):
        raise _fail("pruning.sparsity_steps", values, "percentages from 0 to 100, or fractions from 0 to 1")
    if list(values) != sorted(values):
        raise _fail("pruning.sparsity_steps", values, "values that do not fall: a closed gate stays closed")
    scale = 100 if max(values) > 1 else 1
    _set(config, "pruning.sparsity_steps", tuple(value / scale for value in values))


def _check_structure(config, notes: list[str]) -> None:
    text, model = config.pruning.structure, config.model
    try:
        structure = parse(text)
    except ValueError:
        raise _fail("pruning.structure", text, STRUCTURES) from None
    if structure.kind == "unstructured" or config.pruning.method == "baseline":
        return
    if keys.MODELS[model.name] != "text":
        raise _fail("pruning.structure", text, f"unstructured with config.model.name={model.name}, which is no BERT")
    if structure.parts == ("pooler",) and model.pooler_width == 0:
        raise _fail("pruning.structure", text, "others with config.model.pooler_width=0, which leaves nothing to close")
    depth = model.d_model // model.num_heads
    widths = {"d_model": model.d_model, "d_ff": model.d_ff}
    widths |= {f"layer_ffn[{i}]": size for i, size in enumerate(model.layer_ffn or ())}
    widths |= {f"{depth} * layer_heads[{i}]": depth * size for i, size in enumerate(model.layer_heads or ())}
    if name := undivided(structure, widths):
        raise _fail("pruning.structure", text, f"sizes that divide config.model.{name} ({widths[name]})")
    notes.append(
        f"config.pruning.structure={text} covers {structure.covered}; the targets refer to them, the rest stays open"
    )
    if structure.kind == "n:m":
        n, m = structure.sizes
        final = sparsity_schedule(config)(config.train.epochs)
        if final * m < m - n:
            notes.append(f"the last target, {100 * final:g}% closed, is short of {text} ({100 * (1 - n / m):g}%)")


def _check_spt(config) -> None:
    cfg, structure = config.spt, config.pruning.structure
    if config.pruning.method != "spt":
        return
    if cfg.antithetic and cfg.explorations % 2:
        raise _fail("spt.explorations", cfg.explorations, "an even number with config.spt.antithetic, which pairs them")
    if cfg.credit == "group" and parse(structure).kind in ("unstructured", "encoder", "n:m"):
        allowed = "head, ffn, pooler, several of them joined by +, block:RxC with config.spt.credit=group"
        raise _fail("pruning.structure", structure, allowed)
    if cfg.credit == "layer":
        for key in ("control_variate", "antithetic", "absolute"):
            if cfg[key]:
                raise _fail(f"spt.{key}", cfg[key], "False with config.spt.credit=layer, which scores no weights")
        if cfg.candidates != "uniform":
            raise _fail(
                "spt.candidates", cfg.candidates, "uniform with config.spt.credit=layer, which scores no weights"
            )
    elif cfg.inside != "magnitude":
        raise _fail(
            "spt.inside", cfg.inside, f"magnitude with config.spt.credit={cfg.credit}, which has its own scores"
        )
    if cfg.inside == "movement" and structure not in ("unstructured", "encoder"):
        raise _fail("pruning.structure", structure, "unstructured, encoder with config.spt.inside=movement")


def _window_notes(config, notes: list[str]) -> None:
    cfg, epochs = config.pruning, config.train.epochs
    if cfg.method in UNSCHEDULED:
        return
    if cfg.start_epoch >= epochs:
        final = sparsity_schedule(config)(epochs)
        outcome = f"it ends at {100 * final:g}% closed" if final else "nothing will be pruned"
        notes.append(
            f"pruning starts after {cfg.start_epoch} epochs, and the run has {epochs}: {outcome} "
            "(config.pruning.start_epoch)"
        )
    elif cfg.schedule == "linear" and cfg.end_epoch > epochs:
        notes.append(
            f"config.pruning.end_epoch is {cfg.end_epoch}, and the run has {epochs} epochs: the window is cut to end "
            f"with the run, at {100 * cfg.end_sparsity:g}% closed"
        )
        cfg.end_epoch = epochs
    elif cfg.schedule == "step" and cfg.start_epoch + len(cfg.sparsity_steps) > epochs:
        taken = epochs - cfg.start_epoch
        notes.append(
            f"the run has {epochs} epochs: it takes {taken} of the {len(cfg.sparsity_steps)} sparsity steps after "
            f"epoch {cfg.start_epoch} and ends at {100 * sparsity_schedule(config)(epochs):g}% closed"
        )


def _follow_folder(config) -> None:
    """Turns data.source=auto into the source that data.dir speaks for."""
    from prune_jax.data.glue import IMAGE_TASKS

    data = config.data
    if data.source == "auto":
        data.source = ("idx" if data.task in IMAGE_TASKS else "tsv") if data.dir else "builtin"


def _follow_checkpoint(config) -> None:
    """Takes geometry and tokenizer, where they are not set, from what config.model.init_from names.

    Raises:
      UserError: it is no network, or another one than the keys that are set describe.
    """
    source = config.model.init_from
    if not source:
        return
    from prune_jax import runs

    if runs.is_run(source):
        saved, tokenizer = runs.read_config(source).model, Path(source) / "tokenizer"
        tokenizer = str(tokenizer) if tokenizer.is_dir() else ""
    else:
        from prune_jax.models import hf  # it loads jax, which is to be needed soon

        saved, tokenizer = hf.read_config(source), hf.tokenizer(source)
    differs = []
    for name in keys.FOLLOWS_CHECKPOINT:
        ours, theirs = config.model[name], saved.get(name)
        if ours is None:
            _set(config, f"model.{name}", theirs)
        elif theirs is not None and ours != theirs:
            differs.append(f"config.model.{name} is {ours}, and there it is {theirs}")
    if differs:
        raise UserError(
            f"config.model.init_from={source!r} is another network than this config's: {'; '.join(differs)} "
            "(keys that are not set follow it)"
        )
    if not config.data.tokenizer:
        config.data.tokenizer = tokenizer


def resolve(config, environ: Mapping[str, str] = os.environ) -> tuple[config_dict.ConfigDict, list[str]]:
    """A complete, checked copy of `config`, and notes that the user should read.

    BENCHMARK_EPOCHS in `environ` overrides train.epochs. Values that follow the model size are filled in unless the
    user set them; percentages become fractions. Resolving a resolved config changes nothing.

    Raises:
      UserError: the first mistake found, with the key, its value, and what is allowed.
    """
    config = config_dict.ConfigDict(
        config.to_dict() if hasattr(config, "to_dict") else config
    ).copy_and_resolve_references()
    notes: list[str] = []
    config.unlock()
    _check_types(config, default())
    text = environ.get("BENCHMARK_EPOCHS", "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"BENCHMARK_EPOCHS is {text!r}; allowed: a whole number of epochs, 1 or more")
        if int(text) != config.train.epochs:
            notes.append(f"BENCHMARK_EPOCHS={text} overrides config.train.epochs={config.train.epochs}")
        config.train.epochs = int(text)
    if config.model.size not in keys.SIZES:
        raise _fail("model.size", config.model.size, ", ".join(keys.SIZES))
    _follow_folder(config)
    _follow_checkpoint(config)
    if config.spt.epsilon is None and config.spt.credit == "layer":
        config.spt.epsilon = keys.LAYER_EPSILON
    size = keys.SIZES[config.model.size]
    for key, field in keys.FOLLOWS_SIZE.items():
        if _get(config, key) is None:
            _set(config, key, getattr(size, field))
    for key, value in keys.OTHERWISE.items():
        if _get(config, key) is None:
            _set(config, key, value)
    _check_sparsities(config)
    _check_values(config)
    _window_notes(config, notes)
    _check_structure(config, notes)
    _check_spt(config)
    config.lock()
    return config, notes


def pretraining(config) -> config_dict.ConfigDict:
    """The config of the dense run that config.pretrain asks for."""
    dense = config.copy_and_resolve_references()
    dense.pruning.method = "baseline"
    dense.train.epochs, dense.train.learning_rate = config.pretrain.epochs, config.pretrain.learning_rate
    dense.pretrain.epochs, dense.distill.teacher = 0, ""
    return dense


def model_label(config) -> str:
    """What to call the network of a resolved config: its name, or, of a transformer, the size of its geometry.

    A transformer of no such size, as many a checkpoint is, goes by layers and d_model: "6x384".
    """
    m = config.model
    if keys.MODELS[m.name] != "text":
        return m.name
    geometry = (m.num_layers, m.d_model, m.num_heads, m.d_ff)
    sizes = {size[: len(geometry)]: name for name, size in keys.SIZES.items()}
    return sizes.get(geometry, f"{m.num_layers}x{m.d_model}")


def completed(saved) -> config_dict.ConfigDict:
    """A saved config with the defaults of the keys that are newer than it. A key that is unknown stays, for resolve."""
    config = default()
    config.unlock()
    for room in saved:
        if room not in config or not isinstance(saved[room], config_dict.ConfigDict):
            config[room] = saved[room]
            continue
        for name in saved[room]:
            with config[room].ignore_type():
                config[room][name] = saved[room][name]
    return config


def to_json(config) -> dict:
    """The config as JSON's types: nested dicts, tuples as lists."""

    def plain(value):
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(config.to_dict())


def from_json(saved: dict) -> config_dict.ConfigDict:
    """The config that to_json wrote."""

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return config_dict.ConfigDict(tuples(saved))

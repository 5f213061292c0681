"""What a config means: values that follow the model size, and one clear message for each mistake.

A mistake is answered within a second: no device is touched, and no network is read but by the caller's `describe`.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from prune_jax import files, methods
from prune_jax.config import keys
from prune_jax.config.schedules import sparsity_schedule
from prune_jax.config.tree import default, leaves
from prune_jax.data.glue import (
    BUILTIN_TASKS,
    IMAGE_TASKS,
    KINDS,
    LANGUAGE,
    PICTURES,
    TABLES,
    TASKS,
    check_metrics,
    is_own,
    reads_images,
    task_of,
)
from prune_jax.errors import UserError
from prune_jax.pruning.structure import parse

Describe = Callable[[str], tuple[Mapping[str, Any], str]]


def _get(config, key: str):
    room, name = key.split(".")
    return config[room][name]


def _set(config, key: str, value) -> None:
    room, name = key.split(".")
    with config.ignore_type():
        config[room][name] = value


def unknown_key_message(key: str, config: config_dict.ConfigDict) -> str:
    """The message for a key that a config has not; it names the nearest key that the config has.

    Args:
      key: dotted, without "config.".
    """
    known = [*leaves(config), *config]
    last = key.rsplit(".", 1)[-1]
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(key, same_name or known, n=1, cutoff=0.0)
    return f"unknown key config.{key}; did you mean config.{near[0]}?"


def _fail(key: str, value, allowed: str) -> UserError:
    shown = repr(value) if isinstance(value, str) else value
    return UserError(f"config.{key} is {shown}; allowed: {allowed}")


def typed(key: str, value: Any) -> Any:
    """The value in the type of its key; what flags and JSON files deliver in its place is turned into it.

    Those are: None, also as text, for a key that may be unset; a whole number for a number; a list or a number for a
    tuple; texts joined by commas for a tuple of texts; an empty text for an empty tuple.

    Raises:
      UserError: the value is of another type.
    """
    one = keys.KEYS[key]
    if one.optional and value in (None, "None", (None,)):
        return None
    if one.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if one.kind is tuple:
        if isinstance(value, list):
            value = tuple(value)
        texts = bool(one.choices) or key in keys.TEXTS
        single = str if texts else int | float
        if isinstance(value, single) and not isinstance(value, bool):
            value = (value,)
        if value == ("",):
            value = ()
        if key in keys.TEXTS and isinstance(value, tuple):  # --config.data.label_names=0,1
            value = tuple(str(part) if type(part) is int else part for part in value)
        # One text is a flag's, with commas; several are names, which may have commas of their own.
        named = texts and isinstance(value, tuple) and all(isinstance(text, str) for text in value)
        if named and (one.choices or len(value) == 1):
            value = tuple(part.strip() for text in value for part in text.split(",") if part.strip())
    if type(value) is not one.kind:
        raise _fail(key, value, f"a value of type {one.kind.__name__}, not {type(value).__name__}")
    if one.kind is tuple and (one.choices or key in keys.TEXTS):
        if not all(isinstance(text, str) for text in value):
            raise _fail(key, value, "text only")
    elif one.kind in (float, tuple):
        for number in value if one.kind is tuple else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise _fail(key, value, "numbers only")
            if not math.isfinite(number):
                raise _fail(key, value, "finite numbers")
    return value


def _check_types(config) -> None:
    """Brings every value to the type of its key, in place.

    Raises:
      UserError: a key is unknown or missing, or a value is of another type.
    """
    given = leaves(config)
    for key, value in given.items():
        if any(known.startswith(f"{key}.") for known in keys.KEYS):
            first = next(known for known in keys.KEYS if known.startswith(f"{key}."))
            raise _fail(key, value, f"its keys, such as config.{first}")
        if key not in keys.KEYS:
            raise UserError(unknown_key_message(key, default()))
    for key in keys.KEYS:
        if key not in given:
            raise UserError(f"config.{key} is missing; start from configs/common.py")
        value = typed(key, given[key])
        if key in keys.PATHS:
            value = files.expanded(value, f"config.{key}")
        if value is not given[key]:
            _set(config, key, value)


def _check_values(config) -> None:
    for key, one in keys.KEYS.items():
        value = _get(config, key)
        if value is not None and not keys.within(one, value):
            raise _fail(key, value, keys.allowed(key))
    model, data = config.model, config.data
    if model.d_model % model.num_heads and keys.MODELS[model.name] != LANGUAGE:
        raise _fail("model.num_heads", model.num_heads, f"a divisor of config.model.d_model ({model.d_model})")
    for key, most in (("layer_heads", model.num_heads), ("layer_ffn", model.d_ff)):
        sizes = model[key]
        if sizes is not None and not (
            len(sizes) == model.num_layers and all(isinstance(size, int) and 0 <= size <= most for size in sizes)
        ):
            raise _fail(f"model.{key}", sizes, f"{model.num_layers} whole numbers from 0 to {most}, one per layer")
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
    if data.task == LANGUAGE and data.source != "text":
        raise _fail("data.source", data.source, f"text with config.data.task={LANGUAGE}")
    if data.source in keys.FOLDERS:
        if not data.dir:
            raise UserError(
                f"config.data.dir is empty; with config.data.source={data.source} it names {keys.FOLDERS[data.source]}"
            )
        if not Path(data.dir).is_dir():
            raise UserError(f"config.data.dir is {data.dir!r}; there is no such folder ({Path(data.dir).resolve()})")
    _check_own_data(data)
    check_metrics(task_of(data))
    train = config.train
    if train.batch_size % train.accumulate:
        raise _fail("train.accumulate", train.accumulate, f"a divisor of config.train.batch_size ({train.batch_size})")
    if train.label_smoothing and (data.task == LANGUAGE or task_of(data).is_regression):
        what = "running text" if data.task == LANGUAGE else f"the regression {data.task}"
        raise _fail("train.label_smoothing", train.label_smoothing, f"0 with {what}")
    if data.augment and config.distill.teacher:
        raise _fail("data.augment", data.augment, "nothing with config.distill.teacher, which sees each image as it is")
    reads = LANGUAGE if data.task == LANGUAGE else "images" if reads_images(data.task, data.source) else "text"
    if keys.MODELS[model.name] != reads:
        fitting = ", ".join(name for name, kind in keys.MODELS.items() if kind == reads)
        what = "running text" if reads == LANGUAGE else reads
        raise _fail("model.name", model.name, f"{fitting} with config.data.task={data.task}, which is {what}")
    if reads == LANGUAGE:
        _check_decoder(model)
        _check_text(data)


def _check_decoder(model) -> None:
    kv, width = model.num_kv_heads, model.head_dim
    if model.num_heads % kv:
        raise _fail("model.num_kv_heads", kv, f"a divisor of config.model.num_heads ({model.num_heads})")
    if width % 2:
        raise _fail("model.head_dim", width, "an even number")


def _check_text(data) -> None:
    if not data.train:
        raise UserError(
            f"config.data.train is empty; with config.data.task={LANGUAGE} it names a file or a folder of text"
        )
    for key in ("train", "eval"):
        if data[key] and not Path(data[key]).exists():
            raise UserError(f"config.data.{key} is {data[key]!r}; there is no such file or folder")
    if data.stride > data.max_len:
        raise _fail("data.stride", data.stride, f"at most config.data.max_len ({data.max_len})")
    if data.buckets not in (None, (data.max_len,)):
        raise _fail("data.buckets", data.buckets, f"unset with config.data.task={LANGUAGE}: all windows are as long")


def _check_own_data(data) -> None:
    """Checks the keys of config.data that are about data of the user's own."""
    own, names, shape = is_own(data.task, data.source), data.label_names, data.image_shape
    if shape is not None and not own:
        raise _fail("data.image_shape", shape, f"unset with config.data.task={data.task}, which has its own")
    if names is not None and not own:
        theirs = task_of(data).labels
        if not theirs or sorted(names) != sorted(theirs):
            allowed = f"those of config.data.task={data.task} in another order: {', '.join(theirs)}" if theirs else ""
            raise _fail("data.label_names", names, allowed or f"unset with config.data.task={data.task}")
    if names is not None and (data.task == "regression" or len(names) < 2 or len(set(names)) < len(names)):
        raise _fail("data.label_names", names, "two or more names of classes, each once, and none of a regression")
    if shape is not None and not (
        len(shape) == 3 and all(type(side) is int and side > 0 for side in shape) and shape[2] in (1, 3)
    ):
        raise _fail("data.image_shape", shape, keys.allowed("data.image_shape"))
    if not own:
        return
    if data.task == "regression" and data.source in ("text", *PICTURES):
        raise _fail("data.task", data.task, f"classification with config.data.source={data.source}")
    if not 1 <= len(data.text) <= 2:
        raise _fail("data.text", data.text, keys.allowed("data.text"))
    if data.source in ("hub", "cifar10"):
        return
    for key in ("train", "eval"):
        path, folder = data[key], data.source in ("text", "images")
        if path or key == "train":
            what = "a folder with a folder per class" if folder else f"a {data.source} file"
            if not path:
                raise UserError(f"config.data.{key} is empty; with config.data.source={data.source} it names {what}")
            if not (Path(path).is_dir() if folder else Path(path).is_file()):
                raise UserError(f"config.data.{key} is {path!r}; there is no such {'folder' if folder else 'file'}")


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
    _set(config, "pruning.sparsity_steps", _fractions(cfg.sparsity_steps))


def _fractions(steps: tuple) -> tuple[float, ...]:
    """pruning.sparsity_steps as fractions of 1. UserError for steps that do not say whether they are percentages."""
    key = "pruning.sparsity_steps"
    if not steps:
        raise _fail(key, "()", "at least one percentage (0 to 100) or fraction (0 to 1)")
    if any(not 0 <= step <= 100 for step in steps):
        raise _fail(key, steps, keys.allowed(key))
    if list(steps) != sorted(steps):
        raise _fail(key, steps, "values that do not fall: a closed gate stays closed")
    fractions, percentages = any(0 < step < 1 for step in steps), steps[-1] > 1
    if fractions and percentages:
        allowed = "all percentages or all fractions of 1, not both (a percentage below 1 is a fraction below 0.01)"
        raise _fail(key, steps, allowed)
    if not fractions and not percentages and any(type(step) is int and step == 1 for step in steps):
        raise _fail(key, steps, "0.01 for one percent, 1.0 or 100 for all: a whole 1 alone may be either")
    return tuple(step / (100 if percentages else 1) for step in steps)


def _check_structure(config, notes: list[str]) -> None:
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


def _check_method(config) -> None:
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
    if getattr(method, "flow", False) and keys.MODELS[config.model.name] != "images":
        reading = ", ".join(network for network, reads in keys.MODELS.items() if reads == "images")
        allowed = f"{reading} with config.pruning.method={name}, for a text is no input of ones"
        raise _fail("model.name", config.model.name, allowed)


def _check_spt(config) -> None:
    cfg, structure = config.spt, config.pruning.structure
    if config.pruning.method != "spt":
        return
    if cfg.credit == "group" and parse(structure).kind not in ("groups", "block"):
        allowed = "head, ffn, pooler, several of them joined by +, block:RxC with config.spt.credit=group"
        raise _fail("pruning.structure", structure, allowed)
    if cfg.inside == "movement" and structure not in ("unstructured", "encoder"):
        raise _fail("pruning.structure", structure, "unstructured, encoder with config.spt.inside=movement")


def _patience_notes(config, notes: list[str]) -> None:
    patience, epochs, target = config.train.patience, config.train.epochs, sparsity_schedule(config)
    first = next((epoch for epoch in range(1, epochs + 1) if target(epoch) == target(epochs)), 0)
    if patience and first + patience >= epochs:
        notes.append(
            f"config.train.patience is {patience}, and the last sparsity is reached after epoch {first} of {epochs}: "
            "the run never ends early"
        )


def _check_oneshot(config) -> None:
    cfg, name, structure = config.oneshot, config.pruning.method, config.pruning.structure
    if name in methods.ONESHOT:
        if cfg.method not in ("", name):
            raise _fail("oneshot.method", cfg.method, f"{name}, or empty, with config.pruning.method={name}")
        cfg.method = name
        if config.pruning.scope != "local":
            raise _fail("pruning.scope", config.pruning.scope, f"local with config.pruning.method={name}")
    if config.train.epochs == 0 and not cfg.method:
        raise _fail("train.epochs", 0, f"1 to 1000000, or 0 with config.oneshot.method or {', '.join(methods.ONESHOT)}")
    if cfg.method == "obs" and structure.startswith("block:"):
        raise _fail("pruning.structure", structure, "any but blocks with config.oneshot.method=obs")
    if cfg.target == "flops" and cfg.method and _parsed(structure).kind != "groups":
        raise _fail("oneshot.target", cfg.target, f"units with config.pruning.structure={structure}")
    if cfg.correct and cfg.method == "sparsegpt" and config.sparsegpt.bits:
        raise _fail("oneshot.correct", True, "false with config.sparsegpt.bits, whose grid it leaves")


def _parsed(text: str):
    try:
        return parse(text)
    except ValueError:
        raise _fail("pruning.structure", text, keys.allowed("pruning.structure")) from None


def structure(config) -> str:
    """The structure of a resolved config's gates: pruning.structure, or unstructured where nothing closes gates."""
    closes = methods.scheduled(config.pruning.method) or config.oneshot.method
    return config.pruning.structure if closes else "unstructured"


def _window_notes(config, notes: list[str]) -> None:
    cfg, epochs = config.pruning, config.train.epochs
    if not methods.scheduled(cfg.method):
        return
    if cfg.start_epoch >= epochs:
        final = sparsity_schedule(config)(epochs)
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
            f"epoch {cfg.start_epoch} and ends at {100 * sparsity_schedule(config)(epochs):g}% closed"
        )


def _otherwise(model) -> dict[str, Any]:
    """What holds where neither the user nor a checkpoint says, by key."""
    if keys.MODELS.get(model.name) != LANGUAGE:
        return keys.OTHERWISE
    own = {"model.num_kv_heads": model.num_heads, "model.head_dim": max(model.d_model // model.num_heads, 1)}
    return keys.OTHERWISE | keys.OF_DECODER | own


def _follow_folder(config) -> None:
    """Turns data.source=auto into the source that data.dir speaks for, and the task of own data into its kind."""
    data = config.data
    if data.source in TABLES + PICTURES and data.task not in (*KINDS, LANGUAGE):
        known = TASKS | BUILTIN_TASKS | IMAGE_TASKS
        if data.task not in known:
            raise _fail("data.task", data.task, f"{', '.join(KINDS)} with config.data.source={data.source}")
        data.task = KINDS[known[data.task].is_regression]
    if data.source == "auto":
        data.source = ("idx" if data.task in IMAGE_TASKS else "tsv") if data.dir else "builtin"


def _follow_checkpoint(config, describe: Describe | None) -> None:
    """Takes geometry and tokenizer, where they are not set, from what config.model.init_from names.

    Raises:
      UserError: it is no network, or another one than the keys that are set describe.
    """
    source = config.model.init_from
    if not source:
        return
    if describe is None:
        raise ValueError(f"config.model.init_from is {source!r}: resolve needs `describe` to read what is there")
    theirs_by_name, tokenizer = describe(source)
    kinds = [keys.MODELS.get(name) == LANGUAGE for name in (config.model.name, theirs_by_name.get("name", "bert"))]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"config.model.init_from={source!r} is {'a' if kinds[1] else 'no'} decoder, and config.model.name is "
            f"{config.model.name!r}"
        )
    differs = []
    for name in keys.FOLLOWS_CHECKPOINT:
        ours, theirs = config.model[name], theirs_by_name.get(name)
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


def resolve(
    config, environ: Mapping[str, str] = os.environ, describe: Describe | None = None
) -> tuple[config_dict.ConfigDict, list[str]]:
    """Completes and checks a copy of `config`.

    BENCHMARK_EPOCHS in `environ` overrides train.epochs. Values that follow the model size are filled in unless the
    user set them; percentages become fractions. Resolving a resolved config changes nothing.

    Args:
      describe: reads the network that config.model.init_from names: its path or name -> (the keys of config.model that
        it decides, its tokenizer for config.data.tokenizer or ""). A config without init_from needs none. A program
        that is to run the config calls prune_jax.run.inputs.resolve, which brings one.
    Returns:
      (the complete config, locked; notes that the user should read).
    Raises:
      UserError: the first mistake found, with the key, its value, and what is allowed.
    """
    config = config_dict.ConfigDict(
        config.to_dict() if hasattr(config, "to_dict") else config
    ).copy_and_resolve_references()
    notes: list[str] = []
    config.unlock()
    _check_types(config)
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
    _follow_checkpoint(config, describe)
    if config.spt.epsilon is None and config.spt.credit == "layer":
        config.spt.epsilon = keys.LAYER_EPSILON
    size = keys.SIZES[config.model.size]
    for key, field in keys.FOLLOWS_SIZE.items():
        if _get(config, key) is None:
            _set(config, key, getattr(size, field))
    if config.model.architecture == "distilbert" and config.model.type_vocab_size is None:
        config.model.type_vocab_size = 0
    for key, value in _otherwise(config.model).items():
        if _get(config, key) is None:
            _set(config, key, value)
    _check_sparsities(config)
    _check_values(config)
    _check_oneshot(config)
    _window_notes(config, notes)
    _patience_notes(config, notes)
    _check_structure(config, notes)
    _check_method(config)
    _check_spt(config)
    config.lock()
    return config, notes


def pretraining(config) -> config_dict.ConfigDict:
    """Makes the config of the dense run that config.pretrain asks for."""
    dense = config.copy_and_resolve_references()
    dense.pruning.method = "baseline"
    dense.train.epochs, dense.train.learning_rate = config.pretrain.epochs, config.pretrain.learning_rate
    dense.pretrain.epochs, dense.distill.teacher, dense.oneshot.method = 0, "", ""
    dense.train.max_steps = dense.train.patience = 0  # of the run itself
    return dense


def model_label(config) -> str:
    """The name of a resolved config's network in tables: model.name, or, for a transformer, the size of its geometry.

    A transformer of no such size, as many checkpoints are, goes by layers and d_model: "6x384".
    """
    m = config.model
    if keys.MODELS[m.name] == "images":
        return m.name
    geometry = (m.num_layers, m.d_model, m.num_heads, m.d_ff)
    sizes = {size[: len(geometry)]: name for name, size in keys.SIZES.items()}
    return sizes.get(geometry, f"{m.num_layers}x{m.d_model}")

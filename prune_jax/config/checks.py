"""The keys of model, data and train, checked: each in its range, and all of them together."""

from pathlib import Path

from prune_jax.config import keys
from prune_jax.config.rooms import MODELS
from prune_jax.config.values import fail, get
from prune_jax.data.glue import KINDS, LANGUAGE, PICTURES, TABLES, check_metrics, is_own, reads_images, task_of
from prune_jax.errors import UserError

_FOLDERS = {
    "tsv": "the GLUE folder",
    "idx": "the folder of MNIST's IDX files",
    "cifar10": "the folder of its files",
}  # data.source: what data.dir is


def check(config) -> None:
    """Raises UserError for the first value that is out of its range or does not fit the others."""
    for key, one in keys.KEYS.items():
        value = get(config, key)
        if value is not None and not keys.within(one, value):
            raise fail(key, value, keys.allowed(key))
    if (place := config.data.cache_dir) and Path(place).exists() and not Path(place).is_dir():
        raise fail("data.cache_dir", place, "a folder, which is made where it is not there; this is a file")
    _check_geometry(config.model)
    _check_lengths(config)
    _check_source(config.data)
    _check_own_data(config.data)
    check_metrics(task_of(config.data))
    _check_training(config)
    _check_mesh(config.mesh)
    _check_distributed(config.distributed)
    _check_reads(config)


def _check_geometry(model) -> None:
    if model.d_model % model.num_heads and MODELS[model.name] != LANGUAGE:
        raise fail("model.num_heads", model.num_heads, f"a divisor of config.model.d_model ({model.d_model})")
    for key, most in (("layer_heads", model.num_heads), ("layer_ffn", model.d_ff)):
        sizes = model[key]
        if sizes is not None and not (
            len(sizes) == model.num_layers and all(isinstance(size, int) and 0 <= size <= most for size in sizes)
        ):
            raise fail(f"model.{key}", sizes, f"{model.num_layers} whole numbers from 0 to {most}, one per layer")
    if (model.pooler_width or 0) > model.d_model:
        raise fail("model.pooler_width", model.pooler_width, f"at most config.model.d_model ({model.d_model})")


def _check_lengths(config) -> None:
    model, data = config.model, config.data
    if data.max_len > model.max_positions:
        raise fail("data.max_len", data.max_len, f"at most config.model.max_positions ({model.max_positions})")
    buckets = data.buckets
    if buckets is not None:
        whole = all(isinstance(length, int) and length > 0 for length in buckets)
        increasing = whole and buckets and list(buckets) == sorted(set(buckets))
        if not increasing or not data.max_len <= buckets[-1] <= model.max_positions:
            allowed = (
                f"increasing lengths, the last at least config.data.max_len ({data.max_len}) "
                f"and at most config.model.max_positions ({model.max_positions})"
            )
            raise fail("data.buckets", buckets, allowed)


def _check_source(data) -> None:
    if data.task == LANGUAGE and data.source != "text":
        raise fail("data.source", data.source, f"text with config.data.task={LANGUAGE}")
    if data.source in _FOLDERS:
        if not data.dir:
            raise UserError(
                f"config.data.dir is empty; with config.data.source={data.source} it names {_FOLDERS[data.source]}"
            )
        if not Path(data.dir).is_dir():
            raise UserError(f"config.data.dir is {data.dir!r}; there is no such folder ({Path(data.dir).resolve()})")


def _check_training(config) -> None:
    train, data = config.train, config.data
    if train.batch_size % train.accumulate:
        raise fail("train.accumulate", train.accumulate, f"a divisor of config.train.batch_size ({train.batch_size})")
    if train.label_smoothing and (data.task == LANGUAGE or task_of(data).is_regression):
        what = "running text" if data.task == LANGUAGE else f"the regression {data.task}"
        raise fail("train.label_smoothing", train.label_smoothing, f"0 with {what}")
    if data.augment and config.distill.teacher:
        raise fail("data.augment", data.augment, "nothing with config.distill.teacher, which sees each image as it is")


def _check_reads(config) -> None:
    """Checks that the network reads what the task is: text, images, or running text."""
    model, data = config.model, config.data
    reads = LANGUAGE if data.task == LANGUAGE else "images" if reads_images(data.task, data.source) else "text"
    if MODELS[model.name] != reads:
        fitting = ", ".join(name for name, kind in MODELS.items() if kind == reads)
        what = "running text" if reads == LANGUAGE else reads
        raise fail("model.name", model.name, f"{fitting} with config.data.task={data.task}, which is {what}")
    if reads == LANGUAGE:
        _check_decoder(model)
        _check_text(data)


def _check_mesh(mesh) -> None:
    sizes = {axis: mesh[axis] for axis in ("data", "fsdp", "tensor")}
    for axis, size in sizes.items():
        if size == 0:
            raise fail(f"mesh.{axis}", size, "1 and more, or -1 for the devices that the other axes leave")
    rest = [axis for axis, size in sizes.items() if size == -1]
    if len(rest) > 1:
        also = " and ".join(f"config.mesh.{axis}" for axis in rest[:-1])
        allowed = f"1 and more while {also} is -1, too: one axis alone takes the devices that the others leave"
        raise fail(f"mesh.{rest[-1]}", -1, f"{allowed}; set config.mesh.{rest[0]}=1 for it to be {rest[-1]}")


def _check_distributed(distributed) -> None:
    at, number, own = distributed.coordinator, distributed.num_processes, distributed.process_id
    if at in ("", "auto"):
        if number != 1 or own != 0:
            key, value, allowed = ("num_processes", number, "1") if number != 1 else ("process_id", own, "0")
            raise fail(
                f"distributed.{key}", value, f"{allowed} without an address in config.distributed.coordinator ({at!r})"
            )
        return
    host, _, port = at.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise fail("distributed.coordinator", at, "host:port, such as node1:1234, or auto, or empty")
    if own >= number:
        raise fail("distributed.process_id", own, f"0 to {number - 1}, below config.distributed.num_processes")


def _check_decoder(model) -> None:
    kv, width = model.num_kv_heads, model.head_dim
    if model.num_heads % kv:
        raise fail("model.num_kv_heads", kv, f"a divisor of config.model.num_heads ({model.num_heads})")
    if width % 2:
        raise fail("model.head_dim", width, "an even number")


def _check_text(data) -> None:
    if not data.train:
        raise UserError(
            f"config.data.train is empty; with config.data.task={LANGUAGE} it names a file or a folder of text"
        )
    for key in ("train", "eval"):
        if data[key] and not Path(data[key]).exists():
            raise UserError(f"config.data.{key} is {data[key]!r}; there is no such file or folder")
    if data.stride > data.max_len:
        raise fail("data.stride", data.stride, f"at most config.data.max_len ({data.max_len})")
    if data.buckets not in (None, (data.max_len,)):
        raise fail("data.buckets", data.buckets, f"unset with config.data.task={LANGUAGE}: all windows are as long")


def _check_unread(data) -> None:
    """Checks that nobody's own data are left aside for others: a task of another source reads no data.train."""
    for key in ("eval", "train"):
        if data[key] and data.task != LANGUAGE:
            raise UserError(
                f"config.data.{key} is {data[key]!r}, and config.data.source={data.source} with config.data.task="
                f"{data.task} does not read it; allowed: a source that does, {', '.join(TABLES + PICTURES)}, or hub "
                f"with config.data.task={' or '.join(KINDS)}"
            )


def _check_own_data(data) -> None:
    """Checks the keys of config.data that are about data of the user's own."""
    own, names, shape = is_own(data.task, data.source), data.label_names, data.image_shape
    if shape is not None and not own:
        raise fail("data.image_shape", shape, f"unset with config.data.task={data.task}, which has its own")
    if names is not None and not own:
        theirs = task_of(data).labels
        if not theirs or sorted(names) != sorted(theirs):
            allowed = f"those of config.data.task={data.task} in another order: {', '.join(theirs)}" if theirs else ""
            raise fail("data.label_names", names, allowed or f"unset with config.data.task={data.task}")
    if names is not None and (data.task == "regression" or len(names) < 2 or len(set(names)) < len(names)):
        raise fail("data.label_names", names, "two or more names of classes, each once, and none of a regression")
    if shape is not None and not (
        len(shape) == 3 and all(type(side) is int and side > 0 for side in shape) and shape[2] in (1, 3)
    ):
        raise fail("data.image_shape", shape, keys.allowed("data.image_shape"))
    if not own:
        _check_unread(data)
        return
    if data.task == "regression" and data.source in ("text", *PICTURES):
        raise fail("data.task", data.task, f"classification with config.data.source={data.source}")
    if not 1 <= len(data.text) <= 2:
        raise fail("data.text", data.text, keys.allowed("data.text"))
    if data.source in (*TABLES, "hub") and len({*data.text, data.label}) <= len(data.text):
        allowed = f"columns that differ from each other and from config.data.label ({data.label})"
        raise fail("data.text", data.text, allowed)
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

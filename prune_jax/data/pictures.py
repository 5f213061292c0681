"""Images of the user's own: a folder with a folder per class, an npz file, CIFAR-10's files."""

import io
import pickle
from pathlib import Path

import numpy as np

from prune_jax.data import own, sources
from prune_jax.data.glue import OwnTask
from prune_jax.data.images import Images
from prune_jax.errors import UserError
from prune_jax.files import visible

_SUFFIXES = (".png", ".jpg", ".jpeg")
_NAMES = (("images", "labels"), ("x", "y"))  # of the arrays of an npz file
_BOTH = {sources.TRAIN: ("x_train", "y_train"), "eval": ("x_test", "y_test")}  # of a file that holds both splits
_CIFAR10 = (32, 32, 3)
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read(task: OwnTask, options, evals_only: bool = False) -> own.Own:
    """Reads the images of an own task, which gets their classes and their shape.

    Args:
      options, evals_only: as own.read's.
    Raises:
      UserError: a file is missing or cannot be read, the images differ in size, or the classes are not two or more.
    """
    if options.source == "cifar10":
        task = task._replace(labels=task.labels or _CIFAR10_CLASSES, shape=task.shape or _CIFAR10)
        raw = {split: _cifar10(Path(options.dir), split) for split in (sources.TRAIN, "eval")}
    elif options.source == "npz":
        raw = _npz_files(options)
    else:
        evals_only = evals_only and bool(options.eval and task.labels and task.shape)
        paths = {sources.TRAIN: options.train} | ({"eval": options.eval} if options.eval else {})
        raw = {
            split: _folder(Path(path), task.shape) for split, path in paths.items() if split == "eval" or not evals_only
        }
    if not task.shape:
        height, width, channels = next(iter(raw.values()))[0].shape[1:]
        task = task._replace(shape=(height, width, max(channels, *(found[0].shape[3] for found in raw.values()))))
    task, notes = own.named(task, {split: list(labels) for split, (_, labels) in raw.items()})
    splits, skipped = {}, 0
    for split, (pixels, cells) in raw.items():
        labels, kept = own.checked(task, list(cells), f"the {split} images of {task.name}", options.bad_rows)
        skipped += len(cells) - len(kept)
        pixels = _fitted(pixels, task.shape)[kept]
        white = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1.0
        splits[split] = Images(pixels, white, labels)
    if skipped:
        notes = [*notes, f"left out {skipped:,} images without a label of the task (config.data.bad_rows=skip)"]
    if "eval" not in splits:
        whole = splits[sources.TRAIN]
        train, held = own.held_out(whole.labels, False, options.eval_share, options.eval_seed)
        splits = {sources.TRAIN: whole.take(train), "eval": whole.take(held)}
    return own.Own(task, splits, tuple(notes))


def load_image(source, shape: tuple[int, ...]) -> np.ndarray:
    """One image file as (height, width, channels) uint8, brought to `shape` where that is not empty.

    Raises:
      UserError: it is no image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits of grey, which PIL would cut at 255: nearly all of it is white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            grey = shape[2] == 1 if shape else image.mode in ("1", "L", "LA")
            image = image.convert("L" if grey else "RGB")
            if shape and image.size != (shape[1], shape[0]):
                image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
            return np.atleast_3d(np.asarray(image, np.uint8))
    except (OSError, SyntaxError, ValueError) as error:  # PIL's are OSErrors; a broken PNG is a SyntaxError
        raise UserError(f"{source} cannot be read as an image: {error}") from error


def _folder(folder: Path, shape) -> tuple[np.ndarray, list[str]]:
    """(pixels, the names of the classes) of FOLDER/CLASS/*.png and *.jpg."""
    files = [
        (path, place.name)
        for place in visible(folder)
        if place.is_dir()
        for path in visible(place)
        if path.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise UserError(f"{folder} holds no images; CLASS/*.png or CLASS/*.jpg is expected")
    images = [load_image(path, shape) for path, _ in files]
    first = images[0].shape[:2]
    for (path, _), image in zip(files, images, strict=True):
        if image.shape[:2] != first:
            raise UserError(
                f"{path} is {image.shape[0]}x{image.shape[1]}, and {files[0][0]} is {first[0]}x{first[1]}; "
                "config.data.image_shape=HEIGHT,WIDTH,CHANNELS brings them to one size"
            )
    most = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*first, most)) for image in images]), [name for _, name in files]


def _npz_files(options) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    raw = {}
    for split, path in ((sources.TRAIN, options.train), ("eval", options.eval)):
        if not path:
            continue
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (
            OSError,
            ValueError,
            EOFError,
            AttributeError,
        ) as error:  # zipfile.BadZipFile is a ValueError or OSError
            raise UserError(f"{path} cannot be read as an npz file of arrays: {error}") from error
        pairs = {name: pair for name, pair in _BOTH.items() if set(pair) <= arrays.keys()} if not options.eval else {}
        if not pairs:
            pair = next((pair for pair in _NAMES if set(pair) <= arrays.keys()), None)
            if pair is None:
                allowed = "images and labels, x and y, or x_train, y_train, x_test, y_test"
                raise UserError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; allowed: {allowed}")
            pairs = {split: pair}
        for name, (x, y) in pairs.items():
            raw[name] = _checked_arrays(path, x, y, arrays)
    return raw


def _checked_arrays(path, x: str, y: str, arrays) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = arrays[x], arrays[y].squeeze()
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not pixels.size or pixels.dtype.kind not in "uf":
        allowed = "(n, height, width) or (n, height, width, 1 or 3), bytes or floats from 0 to 1"
        raise UserError(f"{path}: {x} is {pixels.dtype} of shape {arrays[x].shape}; allowed: {allowed}")
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(f"{path}: {x} has values from {pixels.min():g} to {pixels.max():g}; allowed: 0 to 1, or bytes")
    if pixels.dtype.kind == "u" and pixels.itemsize > 1 and pixels.max() <= 255:  # white would be 65,535 or more
        raise UserError(f"{path}: {x} is {pixels.dtype} with values up to {pixels.max()}; allowed for bytes: uint8")
    if labels.shape != (len(pixels),):
        raise UserError(f"{path}: {y} has the shape {arrays[y].shape}; allowed: one label per image, {len(pixels)}")
    return pixels, labels.tolist()


def _fitted(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The images (n, height, width, channels) in another shape: grey ones in three channels, and resized."""
    from PIL import Image

    height, width, channels = shape
    if pixels.shape[3] == 3 and channels == 1:
        weights = np.array([0.299, 0.587, 0.114], np.float32)  # of luma, as PIL has them
        pixels = (pixels @ weights).astype(pixels.dtype)[..., None]
    elif pixels.shape[3] != channels:
        pixels = np.repeat(pixels, channels, axis=3)
    if pixels.shape[1:3] == (height, width):
        return pixels

    def resized(plane):
        image = Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).astype(pixels.dtype)

    return np.stack([np.stack([resized(image[..., c]) for c in range(channels)], axis=-1) for image in pixels])


# CIFAR-10 ------------------------------------------------------------------------------------------------------------


class _ArraysAlone(pickle.Unpickler):
    """Reads pickles of dicts, lists, text and NumPy arrays, and refuses whatever else would be called."""

    _CALLS = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
    )

    def find_class(self, module, name):
        if (module, name) not in self._CALLS:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module, name)


def _cifar10(folder: Path, split: str) -> tuple[np.ndarray, list[str]]:
    """(pixels, names of the classes) of a split, from the binary files or from those of the Python version."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == sources.TRAIN else ["test_batch"]
    pixels, labels = [], []
    for name in names:
        path = next((path for path in (folder / f"{name}.bin", folder / name) if path.is_file()), None)
        if path is None:
            raise UserError(
                f"{folder / name} is missing (with or without .bin); config.data.dir names CIFAR-10's folder"
            )
        data = path.read_bytes()
        if path.suffix == ".bin":
            if not data or len(data) % 3073:
                raise UserError(
                    f"{path} holds {len(data):,} bytes; allowed: a multiple of 3,073, an image with its label"
                )
            rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
            found, planes = rows[:, 0], rows[:, 1:]
        else:
            try:
                batch = _ArraysAlone(io.BytesIO(data), encoding="bytes").load()
                found, planes = np.asarray(batch[b"labels"]), np.asarray(batch[b"data"], np.uint8)
                planes = planes.reshape(len(found), 3072)
            except Exception as error:  # a forged or a broken pickle raises anything
                raise UserError(f"{path} is no batch of CIFAR-10: {error}") from error
        if len(found) and found.max() > 9:
            raise UserError(f"{path} has a label {found.max()}; allowed: 0 to 9")
        pixels.append(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += [_CIFAR10_CLASSES[i] for i in found]
    return np.concatenate(pixels), labels

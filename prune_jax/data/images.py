"""Images and their labels: MNIST's IDX files, or the 8x8 digits that scikit-learn carries.

Pixels are kept as bytes and scaled to 0..1 in the batch.
"""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prune_jax.data import sources
from prune_jax.data.batching import Batch, labels_and_weights, replaced
from prune_jax.data.glue import ImageTask
from prune_jax.errors import UserError

BUCKETS = (1,)  # every image has length 1

_IDX_FILES = {sources.TRAIN: "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08  # the type code of an IDX header


class Images(NamedTuple):
    """A split of images.

    Attributes:
      pixels: (n, height, width, channels), of any type.
      white: the value of a pixel that stands for 1.0.
      labels: (n,) int32.
      weights: (n,) float32, of each example in the training loss, or None for 1.
      flip, crop: what `augment` does.
    """

    pixels: np.ndarray
    white: float
    labels: np.ndarray
    weights: np.ndarray | None = None
    flip: bool = False
    crop: bool = False

    def __len__(self) -> int:  # of examples; a NamedTuple would count its fields
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self), np.int64)

    def take(self, rows: np.ndarray) -> "Images":
        """The examples `rows`, in that order."""
        weights = None if self.weights is None else self.weights[rows]
        return replaced(self, pixels=self.pixels[rows], labels=self.labels[rows], weights=weights)

    def batch(self, rows: np.ndarray, length: int, batch_size: int) -> Batch:
        """The images `rows`, filled up with black ones to batch_size.

        Returns:
          image (batch, height, width, channels) float32 from 0 to 1, labels (batch,), and weights (batch,), 0 where
          filled up.
        """
        image = np.zeros((batch_size, *self.pixels.shape[1:]), np.float32)
        np.multiply(self.pixels[rows], np.float32(1 / self.white), out=image[: len(rows)])
        return {"image": image, **labels_and_weights(self.labels, rows, batch_size, self.weights)}

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch with half of its images mirrored left to right, and each moved by up to an eighth of its side.

        What a move leaves empty is black. Without `flip` and `crop` the batch stays as it is.
        """
        image = batch["image"]
        if self.flip:
            image = np.where(rng.random(len(image))[:, None, None, None] < 0.5, image[:, :, ::-1], image)
        if self.crop:
            count, height, width, _ = image.shape
            y, x = max(1, height // 8), max(1, width // 8)
            padded = np.pad(image, ((0, 0), (y, y), (x, x), (0, 0)))
            rows = rng.integers(0, 2 * y + 1, (count, 1)) + np.arange(height)
            columns = rng.integers(0, 2 * x + 1, (count, 1)) + np.arange(width)
            image = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return {**batch, "image": image}


def read(task: ImageTask, folder="") -> dict[str, Images]:
    """Reads the splits "train" and "test" of a task.

    Args:
      folder: of MNIST's IDX files; the digits need none.
    Raises:
      UserError: a file that is missing, cannot be read, or holds something else than the task's images.
    """
    return _read_idx_folder(task, Path(folder)) if task.source == "idx" else _read_digits()


def _read_digits() -> dict[str, Images]:
    """scikit-learn's 1,797 digits; the test split is every fifth of a fixed shuffle."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels, labels = digits.images[order, :, :, None].astype(np.uint8), digits.target[order].astype(np.int32)
    test = np.arange(len(order)) % 5 == 0
    return {sources.TRAIN: Images(pixels[~test], 16, labels[~test]), "test": Images(pixels[test], 16, labels[test])}


def _read_idx_folder(task: ImageTask, folder: Path) -> dict[str, Images]:
    splits = {}
    for split, name in _IDX_FILES.items():
        images_path, labels_path = (
            _find(folder, f"{name}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        pixels, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if pixels.shape[1:] != task.shape[:2]:
            shape = "x".join(map(str, pixels.shape[1:]))
            raise UserError(f"{images_path} has images of {shape}; expected {task.shape[0]}x{task.shape[1]}")
        if len(pixels) != len(labels):
            raise UserError(f"{images_path} has {len(pixels)} images, and {labels_path} {len(labels)} labels")
        if not len(labels):
            raise UserError(f"{images_path} has no images")
        if labels.max() >= task.num_labels:
            raise UserError(f"{labels_path} has a label {labels.max()}; allowed: 0 to {task.num_labels - 1}")
        splits[split] = Images(pixels[..., None], 255, labels.astype(np.int32))
    return splits


def _find(folder: Path, name: str) -> Path:
    """The file of that name, plain or gzipped; some copies write train-images.idx3-ubyte."""
    head, _, tail = name.rpartition("-idx")
    for spelling in (name, f"{head}.idx{tail}"):
        for suffix in ("", ".gz"):
            if (path := folder / (spelling + suffix)).is_file():
                return path
    raise UserError(f"{folder / name} is missing (with or without .gz); config.data.dir names a folder of IDX files")


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads the uint8 array of an IDX file: a header of 4 + 4 * ndim bytes, big-endian, then the bytes in C order.

    Raises:
      UserError: a file that cannot be read or unzipped, of another type or rank, or longer or shorter than its header
        says.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    header = 4 + 4 * ndim
    if len(data) < header or data[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)):
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes in {ndim} dimensions: it starts with "
            f"{data[:4].hex() or 'nothing'}, expected 000008{ndim:02x}"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, offset=4))
    size = int(np.prod(shape, dtype=object))  # Python's integers: a forged header cannot overflow them
    if len(data) - header != size:
        shown = "x".join(map(str, shape))
        raise UserError(f"{path} holds {len(data) - header:,} bytes; its header says {shown}, which is {size:,}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)

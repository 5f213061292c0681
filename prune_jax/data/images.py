"""Images and their labels: MNIST's IDX files, or the 8x8 digits that scikit-learn carries.

Pixels are kept as bytes and scaled to 0..1 in the batch.
"""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prune_jax.data import sources
from prune_jax.data.batching import Batch, labels_and_weights
from prune_jax.data.glue import ImageTask
from prune_jax.errors import UserError

BUCKETS = (1,)  # every image has length 1

_IDX_FILES = {sources.TRAIN: "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08  # the type code of an IDX header


class Images(NamedTuple):
    """A split. pixels: (n, height, width, 1) uint8, `white` standing for 1.0; labels: (n,) int32."""

    pixels: np.ndarray
    white: int
    labels: np.ndarray

    def __len__(self) -> int:  # of examples; a NamedTuple would count its fields
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self), np.int64)

    def take(self, rows: np.ndarray) -> "Images":
        """The examples `rows`, in that order."""
        return Images(self.pixels[rows], self.white, self.labels[rows])

    def batch(self, rows: np.ndarray, length: int, batch_size: int) -> Batch:
        """image (batch, height, width, 1) float32 from 0 to 1, labels and weights (batch,); black where filled up."""
        image = np.zeros((batch_size, *self.pixels.shape[1:]), np.float32)
        np.multiply(self.pixels[rows], np.float32(1 / self.white), out=image[: len(rows)])
        return {"image": image, **labels_and_weights(self.labels, rows, batch_size)}


def read(task: ImageTask, data_config) -> dict[str, Images]:
    """The splits "train" and "test" of a task.

    Raises:
      UserError: a file that is missing, cannot be read, or holds something else than the task's images.
    """
    return {"idx": _read_idx_folder, "builtin": _read_digits}[task.source](task, data_config)


def _read_digits(task, data_config):
    """scikit-learn's 1,797 digits, every fifth of a fixed shuffle for the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels, labels = found.images[order, :, :, None].astype(np.uint8), found.target[order].astype(np.int32)
    test = np.arange(len(order)) % 5 == 0
    return {sources.TRAIN: Images(pixels[~test], 16, labels[~test]), "test": Images(pixels[test], 16, labels[test])}


def _read_idx_folder(task, data_config):
    found = {}
    for split, name in _IDX_FILES.items():
        images_path, labels_path = (
            _find(Path(data_config.dir), f"{name}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
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
        found[split] = Images(pixels[..., None], 255, labels.astype(np.int32))
    return found


def _find(folder: Path, name: str) -> Path:
    """The file of that name, plain or gzipped; some copies write train-images.idx3-ubyte."""
    head, _, tail = name.rpartition("-idx")
    for spelling in (name, f"{head}.idx{tail}"):
        for suffix in ("", ".gz"):
            if (path := folder / (spelling + suffix)).is_file():
                return path
    raise UserError(f"{folder / name} is missing (with or without .gz); config.data.dir names a folder of IDX files")


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of an IDX file: a header of 4 + 4 * ndim bytes, big-endian, then the bytes in C order.

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

"""Arrays that are kept between runs: whole or not at all, with a hash, and made again where anything is wrong."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_HASH = "sha256"  # the name of the member that holds the hash of the others


def folder(cache_dir: str = "") -> Path:
    """Where tokens, compiled steps and a teacher's logits are kept.

    Args:
      cache_dir: the folder; "": $PRUNE_JAX_CACHE, or ~/.cache/prune_jax where that is not set. Who has no home gets a
        folder among the temporary files.
    """
    if chosen := cache_dir or os.environ.get("PRUNE_JAX_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "prune_jax"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"prune_jax_{os.getuid()}"


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.uint8)


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that `write` has kept, by name; None where there are none, or a warning and None where they differ."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        kept = arrays.pop(_HASH, None)
        if kept is not None and np.array_equal(kept, _digest(arrays)):
            return arrays
        problem = "its contents are not what was written"
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib and NumPy each raise their own of a damaged file
        problem = str(error)
    logging.getLogger("absl").warning("%s is damaged (%s); making it again", path, problem)
    return None


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays, whole or not at all; a cache that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **arrays, **{_HASH: _digest(arrays)})
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        logging.getLogger("absl").warning("cannot write the cache %s: %s", path, error)

"""A task's data, text as tokens: read once, cached, handed out in batches by prune_jax.data.batching."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prune_jax.data import images, sources, tokenizer
from prune_jax.data.batching import Split, resolve_buckets
from prune_jax.data.glue import ImageTask, Task, get_task
from prune_jax.errors import UserError

_CACHE_VERSION = 1
_HOLDOUT_SEED = 0


class Dataset(NamedTuple):
    """train and evals are splits (see batching); evals by name, the first decides which epoch is best.

    tokenizer: None for images; buckets: the lengths that batches are padded to, increasing.
    """

    task: Task | ImageTask
    train: Split | images.Images
    evals: dict[str, Split | images.Images]
    tokenizer: tokenizer.Tokenizer | None
    buckets: tuple[int, ...]
    description: str

    @property
    def vocab_size(self) -> int | None:
        return self.tokenizer and self.tokenizer.vocab_size


def load(config) -> Dataset:
    """The data that a resolved config names.

    With config.data.holdout = n, n training examples (of a fixed random choice) take the place of the evaluation
    splits, for a search that leaves those alone.

    Raises:
      UserError: data that is missing or malformed, or fewer training examples than one batch.
    """
    cfg = config.data
    task = get_task(cfg.task, cfg.source)
    reader = _images if isinstance(task, ImageTask) else _text
    splits, tok, buckets, how = reader(task, config)
    train = splits.pop(sources.TRAIN)
    if cfg.holdout:
        if cfg.holdout >= len(train):
            raise UserError(f"config.data.holdout is {cfg.holdout}; allowed: fewer than {len(train)} training examples")
        order = np.random.default_rng(_HOLDOUT_SEED).permutation(len(train))
        splits = {"holdout": train.take(np.sort(order[: cfg.holdout]))}
        train = train.take(np.sort(order[cfg.holdout :]))
    if 0 < cfg.max_train_examples < len(train):
        train = train.take(np.arange(cfg.max_train_examples))
    if len(train) < config.train.batch_size:
        raise UserError(
            f"config.train.batch_size is {config.train.batch_size}, more than the {len(train)} training examples of "
            f"{task.name}; allowed: 1 to {len(train)}"
        )
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    return Dataset(
        task, train, splits, tok, buckets, f"{task.name} ({cfg.source}): {len(train):,} train, {counts}; {how}"
    )


def _images(task: ImageTask, config):
    shape = "x".join(map(str, task.shape[:2]))
    return images.read(task, config.data), None, images.BUCKETS, f"images of {shape}"


def _text(task: Task, config):
    cfg = config.data
    rows = sources.read(task, cfg)
    train = rows[sources.TRAIN]
    tok = tokenizer.load(cfg, train.texts_a + (train.texts_b or []))
    splits = {name: _tokenise(split, tok, cfg) for name, split in rows.items()}
    buckets = resolve_buckets(config)
    padded = ", ".join(map(str, buckets))
    return splits, tok, buckets, f"{tok.vocab_size:,} tokens ({tok.origin}); padded to {padded}"


def _tokenise(rows: sources.Rows, tok: tokenizer.Tokenizer, cfg) -> Split:
    """The split's tokens, from the cache if the same texts went through the same tokenizer before."""
    path = cache_folder(cfg) / f"{_fingerprint(rows, tok, cfg.max_len)}.npz"
    arrays = _read_cache(path, len(rows.labels))
    if arrays is None:
        arrays = tok.encode(rows.texts_a, rows.texts_b, cfg.max_len)
        _write_cache(path, arrays)
    return Split(*arrays, rows.labels)


def cache_folder(cfg) -> Path:
    """config.data.cache_dir, or $PRUNE_JAX_CACHE, or ~/.cache/prune_jax."""
    default = Path.home() / ".cache" / "prune_jax"
    return Path(cfg.cache_dir or os.environ.get("PRUNE_JAX_CACHE") or default)


def _fingerprint(rows: sources.Rows, tok: tokenizer.Tokenizer, max_len: int) -> str:
    digest = hashlib.sha256(f"{_CACHE_VERSION} {tok.identity} {max_len}".encode())
    digest.update(json.dumps([rows.texts_a, rows.texts_b]).encode())
    return digest.hexdigest()


def _read_cache(path: Path, count: int):
    try:
        with np.load(path, allow_pickle=False) as saved:
            ids, types, offsets = (saved[name] for name in ("ids", "types", "offsets"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.getLogger("absl").warning("%s cannot be read (%s); tokenising again", path, error)
        return None
    return (ids, types, offsets) if len(offsets) == count + 1 and len(ids) == len(types) == offsets[-1] else None


def _write_cache(path: Path, arrays) -> None:
    """Whole or not at all; a cache that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **dict(zip(("ids", "types", "offsets"), arrays, strict=True)))
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        logging.getLogger("absl").warning("cannot write the token cache %s: %s", path, error)

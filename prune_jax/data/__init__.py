"""A task's data, text as tokens: read once, cached, handed out in batches by prune_jax.data.batching."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prune_jax.data import cache, images, language, own, pictures, sources, tokenizer
from prune_jax.data.batching import Split, balanced_weights, replaced, resolve_buckets
from prune_jax.data.glue import ImageTask, LanguageTask, OwnTask, Task, check_metrics, reads_images, task_of
from prune_jax.errors import UserError

_CACHE_VERSION = 2
_TOKENS = ("ids", "types", "offsets")  # in the cache, as Tokenizer.encode gives them
_HOLDOUT_SEED = 0
_NO_ROWS = np.arange(0)


class DataOptions(NamedTuple):
    """The values that decide what `load` returns: config.data's, under their names there.

    Attributes:
      task: a name that get_task knows for the source, or classification or regression of the user's own data.
      source: hub | tsv | idx | builtin | csv | jsonl | parquet | text | images | npz | cifar10.
      dir: the GLUE folder for tsv, the folder of MNIST's files for idx.
      hub_name: a data set on the hub, or a local folder of the same layout.
      tokenizer: a vocabulary file, a folder, or a name on the hub; "": the one that goes with the source.
      max_len: tokens that a text is cut to.
      buckets: increasing lengths that batches are padded to; None: powers of two up to max_len.
      bad_rows: error | skip, for malformed rows of tsv files.
      cache_dir: where tokens are kept; "": $PRUNE_JAX_CACHE or ~/.cache/prune_jax.
      builtin_train_size, builtin_eval_size, builtin_seed: of the built-in corpus.
      holdout: training examples that take the place of the evaluation splits; 0: none.
      max_train_examples: the first so many training examples alone; 0: all.
      metric: names of METRICS in place of the task's own.
      stride: tokens between the starts of the windows of running text that are evaluated; 0: max_len.
      class_weights: none | balanced, in the training loss.
      augment: any of flip and crop, of training images.
      train, eval, eval_share, eval_seed, text, label, label_names, image_shape, hub_config: of the user's own data; see
        the reference of the config keys.
    """

    task: str
    source: str
    dir: str = ""
    hub_name: str = "nyu-mll/glue"
    tokenizer: str = ""
    max_len: int = 128
    buckets: tuple[int, ...] | None = None
    bad_rows: str = "error"
    cache_dir: str = ""
    builtin_train_size: int = 8000
    builtin_eval_size: int = 1000
    builtin_seed: int = 0
    holdout: int = 0
    max_train_examples: int = 0
    metric: tuple[str, ...] | None = None
    stride: int = 0
    class_weights: str = "none"
    augment: tuple[str, ...] = ()
    train: str = ""
    eval: str = ""
    eval_share: float = 0.1
    eval_seed: int = 0
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    label_names: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    hub_config: str = ""


class Dataset(NamedTuple):
    """A task's examples, ready for batches.

    Attributes:
      task: its entry in the table of tasks.
      train: the split (see batching) that is trained on.
      evals: the evaluation splits by name; the first decides which epoch is best.
      tokenizer: None for images.
      buckets: the lengths that batches are padded to, increasing.
      description: the source and the sizes in one line, for the log.
      notes: what the user is to know of the data, a line each.
    """

    task: Task | ImageTask | OwnTask | LanguageTask
    train: Split | images.Images | language.Windows
    evals: dict[str, Split | images.Images | language.Windows]
    tokenizer: tokenizer.Tokenizer | None
    buckets: tuple[int, ...]
    description: str
    notes: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int | None:
        return self.tokenizer and self.tokenizer.vocab_size


def load(options: DataOptions, batch_size: int = 1, evals_only: bool = False) -> Dataset:
    """Reads and tokenises the data that the options name.

    With holdout = n, n training examples of a fixed random choice take the place of the evaluation splits, for a
    search that leaves those alone.

    Args:
      batch_size: of the training; that many training examples are the least that it can do with.
      evals_only: whether the training examples may be missing; they are not read, and the split is empty, where
        neither a tokenizer nor a holdout nor the classes come from them.
    Raises:
      UserError: data is missing or malformed, or there are fewer training examples than one batch.
    Example:
      >>> load(DataOptions("single", "builtin", max_len=16, builtin_train_size=8, builtin_eval_size=4)).description
      'single (builtin): 8 train, 4 dev; 56 tokens (WordPiece trained on the corpus); padded to 16'
    """
    task, splits, tok, buckets, how, notes = _read(options, evals_only)
    check_metrics(task)
    train, holdout = splits.pop(sources.TRAIN, None), options.holdout
    if train is None:
        return Dataset(task, next(iter(splits.values())).take(_NO_ROWS), splits, tok, buckets, how, notes)
    same = options.eval and os.path.realpath(options.eval) == os.path.realpath(options.train)
    if same and not holdout and not evals_only:
        notes = (*notes, "config.data.eval is config.data.train: what is evaluated on has been trained on")
    if holdout:
        if holdout >= len(train):
            raise UserError(f"config.data.holdout is {holdout}; allowed: fewer than {len(train)} training examples")
        order = np.random.default_rng(_HOLDOUT_SEED).permutation(len(train))
        splits = {"holdout": train.take(np.sort(order[:holdout]))}
        train = train.take(np.sort(order[holdout:]))
    if 0 < options.max_train_examples < len(train):
        train = train.take(np.arange(options.max_train_examples))
    if len(train) < batch_size:
        raise UserError(
            f"config.train.batch_size is {batch_size}, more than the {len(train)} training examples of {task.name}; "
            f"allowed: 1 to {len(train)}"
        )
    if options.class_weights == "balanced":
        if task.is_regression or isinstance(task, LanguageTask):
            why = "a regression" if task.is_regression else "which has no classes"
            raise UserError(f"config.data.class_weights is 'balanced'; allowed with {task.name}, {why}: none")
        train = replaced(train, weights=balanced_weights(train.labels, task.num_labels))
    if options.augment:
        if not isinstance(train, images.Images):
            raise UserError(f"config.data.augment is {','.join(options.augment)}; allowed with text: nothing")
        train = replaced(train, flip="flip" in options.augment, crop="crop" in options.augment)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    description = f"{task.name} ({options.source}): {len(train):,} train, {counts}; {how}"
    return Dataset(task, train, splits, tok, buckets, description, notes)


def _read(options: DataOptions, evals_only: bool):
    """(task, splits by name, tokenizer or None, buckets, what they are in a few words, notes)."""
    task, notes = task_of(options), ()
    evals_only = evals_only and not options.holdout
    if reads_images(options.task, options.source):
        if isinstance(task, OwnTask):
            task, splits, notes = pictures.read(task, options, evals_only)
        else:
            splits = images.read(task, options.dir)
        return task, splits, None, images.BUCKETS, f"images of {'x'.join(map(str, task.shape[:2]))}", notes
    if isinstance(task, LanguageTask):
        tok = tokenizer.load(options.tokenizer) if options.tokenizer else tokenizer.of_bytes()
        windows = language.read(options, tok, evals_only)
        shape = f"windows of {options.max_len}, evaluated every {options.stride or options.max_len}"
        return task, windows, tok, (options.max_len,), f"{tok.vocab_size:,} tokens ({tok.origin}); {shape}", notes
    evals_only = evals_only and bool(options.tokenizer)  # else the training texts may make it
    if isinstance(task, OwnTask):
        task, rows, notes = own.read(task, options, evals_only)
    else:
        rows = _rows(task, options, evals_only)
    train = rows.get(sources.TRAIN)
    tok = _tokenizer(options, train.texts_a + (train.texts_b or []) if train else [])
    folder = cache.folder(options.cache_dir)
    splits = {name: _tokenise(split, tok, options.max_len, folder) for name, split in rows.items()}
    full = sum(int((split.lengths == options.max_len).sum()) for split in splits.values())
    if isinstance(task, OwnTask) and full:
        count = sum(map(len, splits.values()))
        notes += (f"{full:,} of {count:,} examples fill config.data.max_len={options.max_len} tokens; more is cut off",)
    buckets = resolve_buckets(options.max_len, options.buckets)
    padded = ", ".join(map(str, buckets))
    return task, splits, tok, buckets, f"{tok.vocab_size:,} tokens ({tok.origin}); padded to {padded}", notes


def _rows(task: Task, options: DataOptions, evals_only: bool) -> dict[str, sources.Rows]:
    if options.source == "tsv":
        return sources.read_tsv_folder(task, options.dir, options.bad_rows, evals_only)
    if options.source == "builtin":
        return sources.generate(task, options.builtin_train_size, options.builtin_eval_size, options.builtin_seed)
    return sources.read_hub(task, options.hub_name)


def _tokenizer(options: DataOptions, texts: list[str]) -> tokenizer.Tokenizer:
    """The tokenizer that the options name; where they name none, the one that goes with the source.

    Args:
      texts: the training texts, which the built-in source trains its WordPiece on.
    """
    if options.tokenizer:
        return tokenizer.load(options.tokenizer)
    if options.source == "builtin":
        return tokenizer.train(texts)
    beside = tokenizer.vocabulary_beside(options.dir) if options.source == "tsv" else None
    return tokenizer.load(str(beside or tokenizer.DEFAULT))


def _tokenise(rows: sources.Rows, tok: tokenizer.Tokenizer, max_len: int, folder: Path) -> Split:
    """The split's tokens, from the cache if the same texts went through the same tokenizer before."""
    path = folder / f"{_fingerprint(rows, tok, max_len)}.npz"
    kept = cache.read(path)
    if kept is None:
        kept = dict(zip(_TOKENS, tok.encode(rows.texts_a, rows.texts_b, max_len), strict=True))
        cache.write(path, kept)
    return Split(*(kept[name] for name in _TOKENS), rows.labels)


def _fingerprint(rows: sources.Rows, tok: tokenizer.Tokenizer, max_len: int) -> str:
    digest = hashlib.sha256(f"{_CACHE_VERSION} {tok.identity} {max_len}".encode())
    digest.update(json.dumps([rows.texts_a, rows.texts_b]).encode())
    return digest.hexdigest()

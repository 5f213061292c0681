"""Batches of a few fixed shapes, in an order that is a pure function of the seed and the epoch.

A split is anything with `labels` (n,), `lengths` (n,) int, `take(rows)` and `batch(rows, length, batch_size)`: text
below, images in images.py, where every example has length 1 and the only bucket is 1.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class Split(NamedTuple):
    """Tokenised examples, end to end.

    ids: (tokens,) int32; types: (tokens,) int8; offsets: (n + 1,) int64, example i is ids[offsets[i]:offsets[i + 1]];
    labels: (n,) int32 or float32; weights: (n,) float32, of each example in the training loss, or None for 1.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:  # of examples; a NamedTuple would count its fields
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Split":
        """The examples `rows`, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        weights = None if self.weights is None else self.weights[rows]
        return Split(self.ids[at], self.types[at], offsets, self.labels[rows], weights)

    def batch(self, rows: np.ndarray, length: int, batch_size: int) -> Batch:
        """The examples `rows`, padded to (batch_size, length).

        Returns:
          input_ids, token_type_ids, attention_mask (batch, length) int32, labels (batch,), and weights (batch,)
          float32, 1 or the split's own, 0 on the rows that fill it up, which have one [padding] token and label 0.
          Token id 0 stands in padding, which the mask hides.
        """
        ids = np.zeros((batch_size, length), np.int32)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        starts, lengths = self.offsets[rows], self.lengths[rows]
        row_of = np.repeat(np.arange(len(rows)), lengths)
        column = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        at = np.repeat(starts, lengths) + column
        ids[row_of, column], types[row_of, column], mask[row_of, column] = self.ids[at], self.types[at], 1
        mask[len(rows) :, 0] = 1  # a row with nothing to attend to would be a softmax over nothing
        inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        return {**inputs, **labels_and_weights(self.labels, rows, batch_size, self.weights)}


def labels_and_weights(labels: np.ndarray, rows: np.ndarray, batch_size: int, own: np.ndarray | None = None) -> Batch:
    """The labels of `rows`, filled up with 0 to batch_size, and weights (batch_size,) float32, 0 where filled up.

    Args:
      own: (n,) the weights of the examples; 1 if None.
    """
    filled = np.zeros(batch_size, labels.dtype)
    filled[: len(rows)] = labels[rows]
    weights = (np.arange(batch_size) < len(rows)).astype(np.float32)
    if own is not None:
        weights[: len(rows)] = own[rows]
    return {"labels": filled, "weights": weights}


def replaced(split: Any, **changes) -> Any:
    """The split with other fields. NamedTuple's own _replace counts fields by len, which here is that of examples."""
    return type(split)(**dict(zip(split._fields, tuple(split), strict=True)) | changes)


def balanced_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """(n,) float32: the weight of each example that gives every class that occurs the same sum; 1 on average.

    Example:
      >>> import numpy as np
      >>> balanced_weights(np.array([0, 0, 0, 1]), 2)
      array([0.6666667, 0.6666667, 0.6666667, 2.       ], dtype=float32)
    """
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[labels].astype(np.float32)


def resolve_buckets(max_len: int, buckets: Sequence[int] | None = None) -> tuple[int, ...]:
    """The lengths that batches are padded to: `buckets`, or, where that is None, 16, 32, 64, ... and max_len.

    No text is longer than max_len, so that the first of the buckets that holds it is the last.
    """
    if buckets:
        return (*(length for length in buckets if length < max_len), *[b for b in buckets if b >= max_len][:1])
    lengths, length = [], 16
    while length < max_len:
        lengths.append(length)
        length *= 2
    return (*lengths, max_len)


def _plan(split, batch_size: int, buckets, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """(bucket, example indices) of every batch of an epoch, in random order.

    An example belongs to the smallest bucket that holds it. The examples that are left of a bucket after its full
    batches move to the next longer bucket in use. So only one batch of an epoch can be short, and the shapes are the
    same in every epoch: nothing compiles after the first.
    """
    bucket_of = np.searchsorted(np.asarray(buckets), split.lengths)
    plan, left = [], np.empty(0, np.int64)
    used = [b for b in range(len(buckets)) if (bucket_of == b).any()]
    for b in used:
        pool = np.concatenate([left, rng.permutation(np.flatnonzero(bucket_of == b))])
        full = len(pool) // batch_size * batch_size
        plan += [(buckets[b], rows) for rows in pool[:full].reshape(-1, batch_size)]
        left = pool[full:]
    if len(left):
        plan.append((buckets[used[-1]], left))
    return [plan[i] for i in rng.permutation(len(plan))]


def num_train_batches(split, batch_size: int) -> int:
    """The number of batches per epoch of train_batches; only the last can be short, whatever the buckets."""
    return -(-len(split.labels) // batch_size)


def train_batches(split, batch_size: int, buckets, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
    """Yields the batches of an epoch, every example once, from batch number `skip` on, as a function of its arguments.

    Only one batch of an epoch may be short; it is filled up with rows of weight 0. A split with a method `augment`
    (batch, generator) changes each batch by it.
    """
    rng = np.random.default_rng((seed, epoch))
    augment = getattr(split, "augment", None)
    for number, (length, rows) in enumerate(_plan(split, batch_size, buckets, rng)[skip:], skip):
        batch = split.batch(rows, length, batch_size)
        yield augment(batch, np.random.default_rng((seed, epoch, number))) if augment else batch


def eval_batches(split, batch_size: int, buckets) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields (example indices, batch) in order of length, every example once; the last of a bucket is filled up."""
    bucket_of = np.searchsorted(np.asarray(buckets), split.lengths)
    for b, length in enumerate(buckets):
        pool = np.flatnonzero(bucket_of == b)
        for start in range(0, len(pool), batch_size):
            rows = pool[start : start + batch_size]
            yield rows, split.batch(rows, length, batch_size)

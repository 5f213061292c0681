"""Batches of a few fixed shapes, in an order that is a pure function of the seed and the epoch.

A split is anything with `labels` (n,), `lengths` (n,) int, `take(rows)` and `batch(rows, length, batch_size)`: text
below, images in images.py, where every example has length 1 and the only bucket is 1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class Split(NamedTuple):
    """Tokenised examples, end to end.

    ids: (tokens,) int32; types: (tokens,) int8; offsets: (n + 1,) int64, example i is ids[offsets[i]:offsets[i + 1]];
    labels: (n,) int32 or float32.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

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
        return Split(self.ids[at], self.types[at], offsets, self.labels[rows])

    def batch(self, rows: np.ndarray, length: int, batch_size: int) -> Batch:
        """The examples `rows`, padded to (batch_size, length).

        Returns:
          input_ids, token_type_ids, attention_mask (batch, length) int32, labels (batch,), and weights (batch,)
          float32, 0 on the rows that fill it up, which have one [padding] token and label 0. Token id 0 stands in
          padding, which the mask hides.
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
        return {**inputs, **labels_and_weights(self.labels, rows, batch_size)}


def labels_and_weights(labels: np.ndarray, rows: np.ndarray, batch_size: int) -> Batch:
    """The labels of `rows`, filled up with 0 to batch_size, and weights (batch_size,) float32, 0 where filled up."""
    filled = np.zeros(batch_size, labels.dtype)
    filled[: len(rows)] = labels[rows]
    return {"labels": filled, "weights": (np.arange(batch_size) < len(rows)).astype(np.float32)}


def resolve_buckets(config) -> tuple[int, ...]:
    """The lengths that batches are padded to: config.data.buckets, or 16, 32, 64, ... and max_len."""
    if config.data.buckets:
        return tuple(config.data.buckets)
    max_len, lengths, length = config.data.max_len, [], 16
    while length < max_len:
        lengths.append(length)
        length *= 2
    return (*lengths, max_len)


def _plan(split, batch_size: int, buckets, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """(bucket, example indices) of every batch of an epoch, in random order.

    An example belongs to the smallest bucket that holds it. What is left of a bucket after its full batches moves to
    the next longer one in use, so that only the epoch's last batch can be short, and the shapes are the same in every
    epoch: nothing compiles after the first.
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
    """The number of batches in an epoch of train_batches: what one bucket leaves the next takes over."""
    return -(-len(split.labels) // batch_size)


def train_batches(split, batch_size: int, buckets, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
    """An epoch's batches, every example once, from batch number `skip` on: a pure function of its arguments.

    Only the epoch's last batch may be short; it is filled up with rows of weight 0.
    """
    rng = np.random.default_rng((seed, epoch))
    for length, rows in _plan(split, batch_size, buckets, rng)[skip:]:
        yield split.batch(rows, length, batch_size)


def eval_batches(split, batch_size: int, buckets) -> Iterator[tuple[np.ndarray, Batch]]:
    """(example indices, batch) in order of length, every example once; the last batch of a bucket is filled up."""
    bucket_of = np.searchsorted(np.asarray(buckets), split.lengths)
    for b, length in enumerate(buckets):
        pool = np.flatnonzero(bucket_of == b)
        for start in range(0, len(pool), batch_size):
            rows = pool[start : start + batch_size]
            yield rows, split.batch(rows, length, batch_size)

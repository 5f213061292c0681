"""Running text for a decoder: files and folders, in windows of as many tokens, whose next tokens are told."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prune_jax import files
from prune_jax.data import sources
from prune_jax.data.batching import Batch, labels_and_weights, replaced
from prune_jax.errors import UserError, first_line


class Windows(NamedTuple):
    """A split of windows of text.

    Attributes:
      tokens: (tokens,) int32, the text.
      starts: (n,) int64, where each window starts; stops: (n,) int64, where it ends.
      fresh: (n,) int64, from which of its own tokens on it is scored: those before were scored by another, or have
        nothing before them.
      labels: (n,) int32, zeros: a window has none.
      weights: None: each token counts the same.
    """

    tokens: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    fresh: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:  # of windows; a NamedTuple would count its fields
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return self.stops - self.starts

    def take(self, rows: np.ndarray) -> "Windows":
        """The windows `rows`, in that order."""
        return replaced(self, **{name: getattr(self, name)[rows] for name in ("starts", "stops", "fresh", "labels")})

    def batch(self, rows: np.ndarray, length: int, batch_size: int) -> Batch:
        """The windows `rows`, padded to (batch_size, length).

        Returns:
          input_ids (batch, length) int32, 0 in padding, which lies behind all that is scored; token_weights (batch,
          length) float32, 1 on the tokens that are scored; labels (batch,), zeros; and weights (batch,) float32, 0 on
          the rows that fill it up.
        """
        at = self.starts[rows][:, None] + np.arange(length)
        there = at < self.stops[rows][:, None]
        ids, scored = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), np.float32)
        ids[: len(rows)] = np.where(there, self.tokens[np.minimum(at, len(self.tokens) - 1)], 0)
        scored[: len(rows)] = there & (np.arange(length) >= self.fresh[rows][:, None])
        return {"input_ids": ids, "token_weights": scored, **labels_and_weights(self.labels, rows, batch_size)}


def windows(tokens: np.ndarray, length: int, stride: int = 0) -> Windows:
    """Tokens in windows that start every `stride` tokens; 0: every `length`, side by side.

    Each token but the first of the text, or of each window where they lie side by side, is scored once, with at least
    length - stride tokens before it. What is left over at the end is a shorter window, if it has two tokens.

    Example:
      >>> overlapping = windows(np.arange(10), 4, 2)
      >>> overlapping.starts.tolist(), overlapping.fresh.tolist()
      ([0, 2, 4, 6], [1, 2, 2, 2])
    """
    stride = stride or length
    starts = np.arange(0, max(len(tokens) - (length - stride), 1), stride, np.int64)
    stops = np.minimum(starts + length, len(tokens))
    fresh = np.where(starts == 0, 1, max(length - stride, 1)).astype(np.int64)
    kept = stops - starts > fresh
    starts, stops, fresh = starts[kept], stops[kept], fresh[kept]
    return Windows(tokens.astype(np.int32), starts, stops, fresh, np.zeros(len(starts), np.int32))


def read_texts(paths: Sequence[str | Path]) -> str:
    """The text of files, and of the .txt files in folders, joined by empty lines.

    Raises:
      UserError: there is no such file, no .txt file in a folder, no text in any, or it is not UTF-8.
    """
    texts = []
    for path in map(Path, paths):
        found = files.visible(path, "*.txt") if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path} holds no .txt file")
        for file in found:
            try:
                texts.append(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{file} cannot be read as UTF-8 text: {first_line(error)[:200]}") from error
    if not any(text.strip() for text in texts):
        raise UserError(f"there is no text in {', '.join(map(str, paths))}")
    return "\n\n".join(texts)


def read(options, tok, evals_only: bool = False) -> dict[str, Windows]:
    """The windows of a text task: to train on, side by side, and to evaluate on, every config.data.stride tokens.

    Without config.data.eval the last config.data.eval_share of the tokens is evaluated on, and not trained on.

    Args:
      options: DataOptions; tok: the Tokenizer.
      evals_only: whether the training text may be left out.
    Raises:
      UserError: a text cannot be read, or has too few tokens.
    """
    parts = {}
    if not (evals_only and options.eval):
        parts[sources.TRAIN] = tok.ids(read_texts([options.train]))
    if options.eval:
        parts["eval"] = tok.ids(read_texts([options.eval]))
    else:
        whole = parts[sources.TRAIN]
        cut = len(whole) - round(options.eval_share * len(whole))
        parts = {sources.TRAIN: whole[:cut], "eval": whole[cut:]}
    for name, tokens in parts.items():
        least = options.max_len if name == sources.TRAIN else 2
        if len(tokens) < least:
            raise UserError(
                f"the text to {'train' if name == sources.TRAIN else 'evaluate'} on has {len(tokens)} tokens; allowed: "
                f"at least {least}" + (" (config.data.max_len)" if name == sources.TRAIN else "")
            )
    splits = {
        name: windows(t, options.max_len, 0 if name == sources.TRAIN else options.stride) for name, t in parts.items()
    }
    if sources.TRAIN in splits:  # whole windows alone: a step's examples weigh the same
        train = splits[sources.TRAIN]
        splits[sources.TRAIN] = train.take(np.flatnonzero(train.lengths == options.max_len))
    return splits

"""Text to token ids: one wrapper around the tokenizers library, whatever the tokenizer came from."""

import collections
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prune_jax.errors import UserError, first_line

DEFAULT = "bert-base-uncased"


class Tokenizer(NamedTuple):
    """`backend` is a tokenizers.Tokenizer; `origin` says in a few words where it came from."""

    backend: Any
    origin: str

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def identity(self) -> str:
        """A hash of all that decides the ids of a text, before it is cut to a length."""
        settings = json.loads(self.backend.to_str()) | {"truncation": None, "padding": None}  # encode changes both
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def encode(self, texts_a: list[str], texts_b: list[str] | None, max_len: int):
        """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], cut to max_len tokens, the longer text first.

        Returns:
          (ids (tokens,) int32, types (tokens,) int8, offsets (n + 1,) int64), the examples end to end.
        """
        self.backend.no_padding()
        self.backend.enable_truncation(max_len, strategy="longest_first")
        inputs = texts_a if texts_b is None else list(zip(texts_a, texts_b, strict=True))
        encodings = self.backend.encode_batch(inputs)
        offsets = np.cumsum([0, *(len(e.ids) for e in encodings)], dtype=np.int64)
        ids, types = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int8)
        for start, end, encoding in zip(offsets, offsets[1:], encodings, strict=False):
            ids[start:end], types[start:end] = encoding.ids, encoding.type_ids
        return ids, types, offsets

    def save(self, folder) -> None:
        """Writes what transformers' AutoTokenizer.from_pretrained loads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.no_truncation()
        self.backend.save(str(folder / "tokenizer.json"))
        special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
        known = {name: token for name, token in special.items() if self.backend.token_to_id(token) is not None}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **known}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load(data_config, texts: list[str]) -> Tokenizer:
    """The tokenizer that config.data names; unset, the one that goes with the source.

    Args:
      texts: the training texts; the built-in source trains its WordPiece on them.
    Raises:
      UserError: there is no such file, or the hub cannot be reached.
    """
    name = data_config.tokenizer
    if name:
        return _named(name)
    if data_config.source == "builtin":
        return _train(texts)
    if data_config.source == "tsv":
        for folder in (Path(data_config.dir), Path(data_config.dir) / ".." / DEFAULT):
            if (folder / "vocab.txt").is_file():
                return _from_vocab(folder / "vocab.txt")
    return _from_transformers(DEFAULT)


def _named(name: str) -> Tokenizer:
    path = Path(name)
    if path.is_file():
        return _from_vocab(path)
    if path.is_dir() and (path / "vocab.txt").is_file() and not (path / "tokenizer.json").is_file():
        return _from_vocab(path / "vocab.txt")
    return _from_transformers(name)


def _from_vocab(path: Path) -> Tokenizer:
    """BERT's WordPiece over a vocabulary file, one token a line; without a "The" in it, text is lower-cased."""
    from tokenizers import BertWordPieceTokenizer

    tokens = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    tokens = [token.rstrip("\r") for token in tokens]
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in tokens]
    if missing:
        raise UserError(f"{path} is not a BERT vocabulary: it lacks {missing[0]} (one token a line is expected)")
    cased = "The" in tokens
    return Tokenizer(BertWordPieceTokenizer(str(path), lowercase=not cased)._tokenizer, path.resolve().name)


def _from_transformers(name: str) -> Tokenizer:
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # offline, no such repository, a broken file: the library has a kind for each
        reason = first_line(error)
        raise UserError(
            f"cannot load the tokenizer config.data.tokenizer={name!r}: {reason[:200]}. It may be a vocab.txt file, a "
            "folder with tokenizer.json, or a name on the hub"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"config.data.tokenizer={name!r} has no fast (tokenizers) form")
    return Tokenizer(backend, name)


def _train(texts: list[str]) -> Tokenizer:
    """A WordPiece of every word that occurs twice, and of the letters, as first and as later pieces, for all others.

    Not made by tokenizers' own trainer: it breaks ties by the order of a hash table, so two processes with the same
    corpus get different vocabularies, and a resumed run would not be the run that was stopped.
    """
    from tokenizers import BertWordPieceTokenizer

    counts = collections.Counter(word for text in texts for word in text.lower().split())
    letters = {letter for word in counts for letter in word}
    learned = {word for word, count in counts.items() if count > 1} | letters | {f"##{letter}" for letter in letters}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(learned)]
    backend = BertWordPieceTokenizer({token: i for i, token in enumerate(tokens)}, lowercase=True)._tokenizer
    return Tokenizer(backend, "WordPiece trained on the corpus")

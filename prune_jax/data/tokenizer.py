"""Text to token ids: one wrapper around the tokenizers library, whatever the tokenizer came from."""

import collections
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from prune_jax import files
from prune_jax.errors import UserError, first_line

DEFAULT = "bert-base-uncased"
_PARTS = ("unk_token", "sep_token", "pad_token", "cls_token")  # of a special token's name; an export's mask has no use
_ENDS = ("bos_token", "eos_token")  # of a decoder, which writes to its end
_USE = {"padding_side": "right", "truncation_side": "right", "clean_up_tokenization_spaces": False}  # the usual ones
GENERATION = "generation_config.json"  # how transformers samples from a decoder, and the ids that end its texts


class Tokenizer(NamedTuple):
    """A tokenizer of the tokenizers library.

    Attributes:
      backend: a tokenizers.Tokenizer.
      origin: where it came from, in a few words.
      special: the tokens of the usual parts by transformers' names for these, as pad_token; empty, what the backend
        tells of them.
      settings: what else tokenizer_config.json says of its use, as chat_template.
      generation: the content of the GENERATION file beside it; empty where there is none.
    """

    backend: Any
    origin: str
    special: Mapping[str, str] = MappingProxyType({})
    settings: Mapping[str, Any] = MappingProxyType({})
    generation: Mapping[str, Any] = MappingProxyType({})

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """The rows that an embedding needs: one more than the greatest id."""
        return max(self.vocabulary.values()) + 1

    @property
    def identity(self) -> str:
        """A hash of everything that decides the ids of a text before it is cut to a length."""
        settings = json.loads(self.backend.to_str()) | {"truncation": None, "padding": None}  # encode changes both
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def encode(self, texts_a: list[str], texts_b: list[str] | None, max_len: int):
        """Encodes texts as [CLS] a [SEP], or pairs as [CLS] a [SEP] b [SEP].

        An example is cut to max_len tokens, the longer text of a pair first.

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

    def ids(self, text: str) -> np.ndarray:
        """(tokens,) int32: all of a text, without the tokens that mark its start and end."""
        self.backend.no_padding()
        self.backend.no_truncation()
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def save(self, folder) -> None:
        """Writes a folder that transformers' AutoTokenizer.from_pretrained loads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.no_truncation()
        self.backend.no_padding()  # else the file depends on what was encoded, or not, before
        self.backend.save(str(folder / "tokenizer.json"))
        special = self.special or _special_of(self.backend)
        known = {name: token for name, token in special.items() if self.backend.token_to_id(token) is not None}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **known, **self.settings}
        files.write_json(folder / "tokenizer_config.json", settings)
        if self.generation:
            files.write_json(folder / GENERATION, self.generation)


def _special_of(backend) -> dict[str, str]:
    """The special tokens that a tokenizer's own settings tell: those around a text, and what padding is called."""
    settings = json.loads(backend.to_str())
    around = settings.get("post_processor") or {}
    names = [part["SpecialToken"]["id"] for part in around.get("single", []) if "SpecialToken" in part]
    if "sep" in around:  # of BertProcessing and RobertaProcessing
        names = [around["cls"][0], around["sep"][0]]
    found = {
        "unk_token": settings["model"].get("unk_token")
        or ("<unk>" if backend.token_to_id("<unk>") is not None else None),
        "sep_token": names[-1] if len(names) > 1 else "[SEP]",
        "pad_token": next((pad for pad in ("[PAD]", "<pad>") if backend.token_to_id(pad) is not None), None),
        "cls_token": names[0] if len(names) > 1 else "[CLS]",
    }
    return {name: token for name, token in found.items() if token}


def load(name: str) -> Tokenizer:
    """Loads a tokenizer by the path of its vocabulary file or of its folder, or by its name on the hub.

    A folder has tokenizer.json, or vocab.txt (BERT's WordPiece), or vocab.json and merges.txt (RoBERTa's byte pairs).
    Behind a name on the hub, @REVISION chooses another than the newest.

    Raises:
      UserError: there is no such file, it is broken, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_file():
        return _from_vocab(path)
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        if (path / "vocab.txt").is_file():
            return _from_vocab(path / "vocab.txt")
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return _from_byte_pairs(path)
    return _from_transformers(name)


def vocabulary_beside(folder) -> Path | None:
    """The vocab.txt in a GLUE folder, or in bert-base-uncased/ beside it; None where there is neither."""
    for place in (Path(folder), Path(folder) / ".." / DEFAULT):
        if (place / "vocab.txt").is_file():
            return place / "vocab.txt"
    return None


def _from_vocab(path: Path) -> Tokenizer:
    """BERT's WordPiece over a file of one token per line, as the tokenizer_config.json beside it says.

    Where that says nothing of case, text is lower-cased unless a token has a capital letter.
    """
    from tokenizers import BertWordPieceTokenizer

    tokens = _lines(path)
    settings = _settings(path.parent)
    special = {f"{name}_token": _special(settings, name) for name in ("pad", "unk", "cls", "sep", "mask")}
    missing = [token for name, token in special.items() if token not in tokens and name != "mask_token"]
    if missing:
        raise UserError(f"{path} is not a BERT vocabulary: it lacks {missing[0]} (one token per line is expected)")
    cased = any(token != token.lower() for token in tokens if token[:1] != "[" and token not in special.values())
    backend = BertWordPieceTokenizer(
        {token: i for i, token in enumerate(tokens)},
        lowercase=settings.get("do_lower_case", not cased),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        **special,
    )._tokenizer
    _add(backend, path.parent)
    return Tokenizer(backend, path.resolve().name, {part: special[part] for part in _PARTS})


def _settings(folder: Path) -> dict:
    """What a folder says of its tokenizer, by transformers' names; the newer of its two files counts."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= files.read_json(folder / name)
    return found


def _add(backend, folder: Path) -> None:
    """Adds the tokens of a folder's added_tokens.json. UserError where their ids do not go on from the vocabulary's."""
    path = folder / "added_tokens.json"
    added = files.read_json(path) if path.is_file() else {}
    backend.add_tokens(sorted(added, key=lambda token: added[token]))
    for token, at in added.items():
        if backend.token_to_id(token) != at:
            raise UserError(f"{path} gives {token!r} the id {at!r}; allowed: the ids that follow the vocabulary's")


def _from_byte_pairs(folder: Path) -> Tokenizer:
    """RoBERTa's byte-level BPE over vocab.json and merges.txt, as the tokenizer_config.json beside them says."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer, processors

    settings, usual = _settings(folder), {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    special = {f"{name}_token": _special(settings, name, token) for name, token in usual.items()}
    spaced = bool(settings.get("add_prefix_space", False))
    try:
        backend = ByteLevelBPETokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), add_prefix_space=spaced
        )._tokenizer
    except Exception as error:  # the library raises nothing more particular
        raise UserError(f"{folder} holds no byte pairs in vocab.json and merges.txt: {first_line(error)}") from error
    for name, token in special.items():
        if name != "mask_token" and backend.token_to_id(token) is None:
            raise UserError(f"{folder / 'vocab.json'} is not a RoBERTa vocabulary: it lacks {token}")
    kept = [token for token in special.values() if backend.token_to_id(token) is not None]
    mask = settings.get("mask_token")
    spaces = isinstance(mask, dict) and bool(mask.get("lstrip"))  # whether a mask takes the space before it
    backend.add_special_tokens([AddedToken(t, lstrip=spaces and t == special["mask_token"]) for t in kept])
    sep, cls = ((special[name], backend.token_to_id(special[name])) for name in ("sep_token", "cls_token"))
    backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=spaced)
    _add(backend, folder)
    return Tokenizer(backend, f"byte pairs of {folder.resolve().name}", {part: special[part] for part in _PARTS})


def _lines(path: Path) -> list[str]:
    """The tokens of a vocab.txt. Its ids are the numbers of its lines, so that every line is a token of its own."""
    lines = [line.rstrip("\r") for line in files.read_text(path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    first: dict[str, int] = {}
    for number, token in enumerate((line.rstrip() for line in lines), 1):  # as the tokenizers library reads them
        if token in first or not token:
            what = f"repeats the token {token!r} of line {first[token]}" if token else "is blank"
            raise UserError(f"{path} is not a vocabulary: line {number} {what}; allowed: a token per line, each once")
        first[token] = number
    return lines


def _special(settings: dict, name: str, usual: str = "") -> str:
    """A special token by what a tokenizer_config.json calls it; the usual one, BERT's own, where it says nothing."""
    token = settings.get(f"{name}_token") or usual or f"[{name.upper()}]"
    return token["content"] if isinstance(token, dict) else token


def _from_transformers(name: str) -> Tokenizer:
    if not Path(name).exists():
        files.look_for_hub()
    import transformers

    place, _, revision = (name, "", "") if Path(name).exists() else name.partition("@")
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(place, use_fast=True, revision=revision or "main")
    except Exception as error:  # offline, no such repository, a broken file: the library has a kind for each
        reason = first_line(error)
        raise UserError(
            f"cannot load the tokenizer config.data.tokenizer={name!r}: {reason[:200]}. It may be a vocab.txt file, a "
            "folder with tokenizer.json, or a name on the hub"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"config.data.tokenizer={name!r} has no fast (tokenizers) form")
    special = {part: token for part in (*_PARTS, *_ENDS) if isinstance(token := getattr(loaded, part, None), str)}
    beside = Path(name) / GENERATION
    generation = files.read_json(beside) if beside.is_file() else {}
    return Tokenizer(backend, name, special, _use_of(loaded), generation)


def _use_of(loaded) -> dict[str, Any]:
    """What a tokenizer of transformers says of its use that is not the usual, by the names in tokenizer_config.json.

    A chat template comes from there, too, or from the .jinja files of newer folders; several of them have names.
    """
    found = {name: value for name, usual in _USE.items() if (value := getattr(loaded, name, usual)) != usual}
    if template := getattr(loaded, "chat_template", None):
        several = isinstance(template, dict)
        found["chat_template"] = (
            [{"name": key, "template": text} for key, text in template.items()] if several else template
        )
    more = getattr(loaded, "additional_special_tokens", None) or getattr(loaded, "extra_special_tokens", None)
    if isinstance(more, list) and more:
        found["additional_special_tokens"] = [str(token) for token in more]  # the name that every version reads
    return found


def of_bytes() -> Tokenizer:
    """A token per byte of UTF-8: any text comes back as it was, and a perplexity is that of a byte.

    Example:
      >>> tok = of_bytes()
      >>> tok.vocab_size, tok.backend.decode(tok.ids("caf\u00e9").tolist())
      (256, 'caf\u00e9')
    """
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(backend, "a token per byte")


def train(texts: list[str]) -> Tokenizer:
    """Trains a WordPiece: every word that occurs twice is a token, and the letters spell all other words.

    The trainer of the tokenizers library is no use here. It breaks ties by the order of a hash table, so two processes
    with the same corpus get different vocabularies, and a resumed run would not be the run that was stopped.

    Example:
      >>> tok = train(["a good film", "a bad film"])
      >>> ids, types, offsets = tok.encode(["a film", "film"], None, max_len=8)
      >>> [tok.backend.id_to_token(int(i)) for i in ids[: offsets[1]]]
      ['[CLS]', 'a', 'film', '[SEP]']
    """
    from tokenizers import BertWordPieceTokenizer

    counts = collections.Counter(word for text in texts for word in text.lower().split())
    letters = {letter for word in counts for letter in word}
    learned = {word for word, count in counts.items() if count > 1} | letters | {f"##{letter}" for letter in letters}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(learned)]
    backend = BertWordPieceTokenizer({token: i for i, token in enumerate(tokens)}, lowercase=True)._tokenizer
    return Tokenizer(backend, "WordPiece trained on the corpus")

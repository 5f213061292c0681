"""Files that are written whole or not at all, and read with one message where they cannot be."""

import contextlib
import errno
import functools
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prune_jax.errors import UserError, first_line

HUB_SECONDS = 5.0  # to wait for the hub's answer


def plain(obj):
    """`obj` in JSON's own types: arrays and tuples as lists, non-finite floats as None, anything else as text."""
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    if hasattr(obj, "tolist"):  # NumPy and JAX arrays and scalars
        return plain(obj.tolist())
    return str(obj)


def expanded(text: str, what: str) -> str:
    """A path with what a shell makes of ~ and of environment variables.

    Args:
      what: the key or flag that the path is of, for the message.
    Raises:
      UserError: a variable is not set.
    Example:
      >>> import os
      >>> os.environ["GLUE"] = "/data/glue"
      >>> expanded("$GLUE/SST-2", "config.data.dir")
      '/data/glue/SST-2'
    """
    for name in re.findall(r"\$\{?(\w+)", text):
        if name not in os.environ:
            raise UserError(f"{what} is {text!r}; the environment variable {name} is not set")
    return os.path.expanduser(os.path.expandvars(text))


def visible(folder, pattern: str = "*") -> list[Path]:
    """The entries of a folder in order, without hidden ones, which notebooks, desktops and archives leave behind.

    Raises:
      UserError: the folder, or with ** one below it, cannot be listed; glob would take it for an empty one.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}")

    for _, below, _ in os.walk(folder, onerror=fail) if Path(folder).is_dir() else ():
        below[:] = [name for name in below if "**" in pattern and not name.startswith(".")]
    found = Path(folder).glob(pattern)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def write_bytes(path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path, obj) -> None:
    """Writes `obj` to `path` as JSON, whole or not at all. Non-finite floats become null, tuples and arrays lists."""
    write_text(path, json.dumps(plain(obj), indent=2, allow_nan=False) + "\n")


def lacks_room(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, says that a disk or a quota is full.

    Libraries raise their own kinds with the system's words in them.

    Example:
      >>> lacks_room(ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]"))
      True
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        words = any(os.strerror(number) in str(error) for number in numbers)
        if words or (isinstance(error, OSError) and error.errno in numbers):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def write_folder(folder, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` when the block ends well: whole or not at all.

    Args:
      replace: whether a folder that is there may go; without, only an empty one.
    Raises:
      UserError: it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            yield new
            if replace and folder.exists():
                os.rename(folder, old)
            try:
                os.rename(new, folder)
            except BaseException:
                if old.exists():
                    os.rename(old, folder)
                raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def check_writable(folder) -> None:
    """Checks that a folder can be written, or made, before the work whose results it is for.

    Raises:
      UserError: it, or the first folder above it that is there, is no folder, or not to be written.
    """
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"cannot write {folder}: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {folder}: {place} is not to be written")


def read_json(path) -> dict:
    """The object in the JSON file `path`. UserError if it is missing, is not JSON, or holds something else."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content


def read_text(path) -> str:
    """The text of the file `path`. UserError if it is missing or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}") from error


def read_tokenizer(path):
    """The tokenizers.Tokenizer in a tokenizer.json, without its transformers settings. UserError if it holds none."""
    import tokenizers

    text = read_text(path)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more particular
        raise UserError(f"{path} is not a tokenizer: {first_line(error)}") from error


@functools.cache
def look_for_hub() -> None:
    """Lets the hub's libraries read their caches alone, and says so, where the hub does not answer within HUB_SECONDS.

    They retry each file several times, at growing intervals, which takes a minute. HF_HUB_OFFLINE=1 in the environment
    spares the question, HF_ENDPOINT names another hub. Asked once per process.
    """
    if os.environ.get("HF_HUB_OFFLINE"):
        return
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:  # an answer, if not a friendly one
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        print(f"note: {endpoint} does not answer ({reason}); what its cache holds is used", file=sys.stderr, flush=True)
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported from here on
        for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
            if module in sys.modules:
                setattr(sys.modules[module], name, True)

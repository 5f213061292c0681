"""Rows of a .jsonl file, cell by cell as they are written.

Readers of whole columns guess a type per column: dates become timestamps, and a cell of another type ends the reading,
also one that nobody asked for. Here a cell is what JSON says it is.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prune_jax.errors import UserError


def read(path: str | Path) -> list[dict[str, Any]]:
    """Reads the rows: an object per line, or one array of objects. Blank lines are no rows; .gz is unpacked.

    Raises:
      UserError: the file cannot be read, is not UTF-8 or no JSON, or has no rows; a row is no object, or has a key
        twice.
    """
    rows = []
    for where, text in _texts(path):
        try:
            found = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:  # JSONDecodeError and a key that is there twice are ValueErrors
            said = getattr(error, "msg", error)  # a JSONDecodeError counts lines within its text
            raise UserError(f"{path}, {where}: {said}; allowed: a JSON object per row") from error
        rows += found if isinstance(found, list) and where == "the array" else [found]
    if not rows:
        raise UserError(f"{path} has no rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: it is {json.dumps(row)[:60]}; allowed: an object of columns")
    return rows


def _texts(path: str | Path) -> Iterator[tuple[str, str]]:
    """(what a message calls it, its JSON) per row, or once for a file that is one array."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.lstrip().startswith("["):
                    yield "the array", line + file.read()
                elif line.strip():
                    yield f"line {number}", line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8, or convert it with iconv"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in row if names.count(name) > 1)!r} is there twice")
    return row

"""Tables in csv and tsv files: their separator, and whether every row fits the header.

Readers of tables guess where a row does not fit. pandas takes the first cells for an index, so that each column has its
neighbour's values: a text in front of the label then becomes the label.
"""

import contextlib
import csv
import gzip
import itertools
import sys
import zlib
from collections.abc import Iterator, Sequence

from prune_jax.errors import UserError

_SEPARATORS = (",", ";", "\t")  # of a .csv: spreadsheets write ";" where the comma is the decimal sign


def check_once(where, names: Sequence[str], columns: Sequence[str]) -> None:
    """UserError where a table has a column that is read more than once."""
    if twice := next((column for column in columns if names.count(column) > 1), None):
        raise UserError(f"{where} has the column {twice!r} {names.count(twice)} times; allowed: once")


@contextlib.contextmanager
def cells_of_any_length() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters per cell."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def distinct(names: Sequence[str]) -> list[str]:
    """Names of columns with a number behind each one that has been there before, so that a row can be a dict.

    Example:
      >>> distinct(["note", "text", "note"])
      ['note', 'text', 'note.1']
    """
    found: list[str] = []
    for name in names:
        spelled = (f"{name}.{i}" if i else name for i in itertools.count())
        found.append(next(one for one in spelled if one not in found and (one == name or one not in names)))
    return found


def layout(path, columns: Sequence[str]) -> tuple[str, list[str]]:
    """Reads a file once: (its separator, the names in its header).

    The separator is the tab of a .tsv, else the one that gives the header `columns`.

    Args:
      columns: those that are going to be read. Without them in any header the separator is the comma.
    Raises:
      UserError: the file cannot be read, is not UTF-8, has no rows, a row has more or fewer cells than the header, a
        quotation mark is out of place, or one of the columns is there twice.
    """
    name = str(path)
    opener = gzip.open if name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file, cells_of_any_length():
            found = (
                "\t" if name.removesuffix(".gz").lower().endswith(".tsv") else _separator_of(file.readline(), columns)
            )
            file.seek(0)
            return found, _check(name, csv.reader(file, delimiter=found, strict=True), columns)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8, or convert it with iconv"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _separator_of(header: str, columns: Sequence[str]) -> str:
    for candidate in _SEPARATORS:
        with contextlib.suppress(csv.Error):
            if set(columns) <= set(next(csv.reader([header], delimiter=candidate), [])):
                return candidate
    return ","


def _check(path: str, reader, columns: Sequence[str]) -> list[str]:
    """The header of a table whose rows all fit it."""
    start = 1
    try:
        names = next(reader, [])
        check_once(path, names, columns)
        rows = 0
        start = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(names):  # an empty line is no row
                mark = repr(reader.dialect.delimiter)
                hint = f"with {mark} in it" if len(row) > len(names) else "with a line break in it"
                spare = "" if len(row) > len(names) else f", and an empty cell keeps its {mark}"
                raise UserError(
                    f"{path}, line {start}: the row has {len(row)} cells, the header {len(names)}; a text {hint} "
                    f"stands in quotation marks{spare}"
                )
            rows += bool(row)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {start}: {error}; a cell that begins with a quotation mark ends with one, and has those "
            "inside it doubled"
        ) from error
    if not rows:
        raise UserError(f"{path} has no rows")
    return names

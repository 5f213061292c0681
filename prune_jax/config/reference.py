"""Prints docs/reference_config.md: every key of a config, from the declarations that prune_jax.config.keys collects.

python -m prune_jax.config.reference > docs/reference_config.md
"""

import inspect
import textwrap

from prune_jax import methods
from prune_jax.config import keys, sizes
from prune_jax.pruning.options import Option

_HEAD = """\
# Configuration keys

Every key of an experiment. A config file sets them as attributes (`config.train.epochs = 3`), the command line as
flags (`--config.train.epochs=3`), a sweep as values to combine (`--set train.epochs=3,5`). This page is made from the
declarations that the program itself reads; `python -m prune_jax.config.reference > docs/reference_config.md` makes it
anew.

- A key whose default is *unset* follows something else, which its description or the text above the table names.
  `--config.KEY=None` unsets it again.
- Numbers and texts of a list are separated by commas: `--config.data.buckets=32,64,128`. `--config.KEY=` is an empty
  list.
- Keys that name a file or a folder, and `--workdir`, take `~` and environment variables: `--config.data.dir='~/glue'`.
- A room with the name of a method matters to that method alone.
- A changed key starts a new run in the same workdir, and the old one is zipped. Keys that no result of the run depends
  on do not: an unfinished run goes on with their new values. They are those of other methods' rooms, and
{without}.
"""

_ROOM = {  # what a room's table does not say
    "model": "What is unset follows `model.init_from`, then `model.size`, then BERT.",
    "movement": "`movement.frequency` follows `model.size` where it is unset.",
    "spt": "`spt.epsilon` follows `model.size` where it is unset, and is 0.3 with `spt.credit=layer`.",
    "pruning": "`pruning.sparsity_steps` follows `model.size` where it is unset.",
}
_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", tuple: "list"}


def _shown(value) -> str:
    if value is None:
        return "*unset*"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def _row(key: str, one: Option) -> str:
    allowed = keys.allowed(key).replace("|", "\\|")
    return f"| `{key}` | {_KINDS[one.kind]} | {_shown(one.default)} | {allowed} | {one.text} |"


def _sizes() -> list[str]:
    fields = sizes.Size._fields
    rows = [f"| `{name}` | " + " | ".join(_shown(value) for value in size) + " |" for name, size in sizes.SIZES.items()]
    names = {field: key for key, field in sizes.FOLLOWS_SIZE.items()}
    return [
        "## What follows the size",
        "",
        "| `model.size` | " + " | ".join(f"`{names[field]}`" for field in fields) + " |",
        "| --- " * (len(fields) + 1) + "|",
        *rows,
        "",
    ]


def page() -> str:
    """The text of docs/reference_config.md."""
    without = ", ".join(f"`{key}`" for key in keys.WITHOUT_RESULT)
    lines = [_HEAD.format(without=textwrap.fill(without, 118, initial_indent="  ", subsequent_indent="  "))]
    for room, cls in keys.ROOMS.items():
        listed = {key: one for key, one in keys.KEYS.items() if key.startswith(f"{room}.")}
        if not listed:
            continue
        about = inspect.getdoc(cls) if room not in methods.REGISTRY else f"The options of the method `{room}`."
        lines += [f"## {room}", "", " ".join(filter(None, [about, _ROOM.get(room)])), ""]
        lines += ["| key | type | default | allowed | what it is |", "| --- | --- | --- | --- | --- |"]
        lines += [*(_row(key, one) for key, one in listed.items()), ""]
    return "\n".join([*lines, *_sizes()])


if __name__ == "__main__":
    print(page(), end="")

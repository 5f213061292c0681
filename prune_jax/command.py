"""What the commands of this package share: how a mistake ends one."""

import logging
import sys
from collections.abc import Callable

from prune_jax.errors import UserError


def run(name: str, main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """The exit code of main(argv): 0, or 2 after a mistake, whose message alone is printed.

    argv: the arguments; the process's own if None.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return 130
    return 0

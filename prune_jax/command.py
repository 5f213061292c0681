"""What the commands of this package share: how a mistake ends one."""

import logging
import sys
from collections.abc import Callable

from prune_jax.errors import UserError


def run(name: str, main: Callable[[list[str]], None]) -> int:
    """The exit code of main(arguments): 0, or 2 after a mistake, whose message alone is printed."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return 130
    return 0

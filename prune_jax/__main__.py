"""The commands: `prune-jax COMMAND ...`, or `python -m prune_jax COMMAND ...`.

All commands order their arguments alike. What a command reads comes first. What it writes comes last, or is --out where
it has a default. --kind chooses among the checkpoints of a run.
"""

import ast
import errno
import importlib
import logging
import os
import select
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prune_jax import __version__
from prune_jax.errors import LeftAlone, Stopped, UserError

COMMANDS = {  # name: the module whose main(argv) it runs; the first line of the module's docstring says what it does
    "train": "prune_jax.run.launch",
    "evaluate": "prune_jax.run.commands.evaluate",
    "predict": "prune_jax.run.commands.predict",
    "sensitivity": "prune_jax.run.commands.sensitivity",
    "export": "prune_jax.run.commands.export",
    "compress": "prune_jax.run.commands.compress",
    "decompress": "prune_jax.run.commands.decompress",
    "oneshot": "prune_jax.run.commands.oneshot",
    "sweep": "prune_jax.sweep.command",
    "compare": "prune_jax.run.commands.compare",
    "average": "prune_jax.tools.average",
    "search": "prune_jax.sweep.search",
    "snapshot": "prune_jax.tools.snapshot",
}


_EXTRAS = {  # what a command may import beyond the library's own needs: the extra that brings it
    **dict.fromkeys(("absl", "flax", "matplotlib", "ml_collections", "orbax", "scipy", "sklearn"), "train"),
    **dict.fromkeys(("tensorboardX", "tokenizers", "tqdm", "transformers"), "train"),
    **dict.fromkeys(("datasets", "flatbuffers", "huggingface_hub", "safetensors"), "hf"),
}


_WINDOWS = (
    "the program needs the file locks and signals of a POSIX system, and this is Windows; run it in WSL 2 (the "
    "library, import prune_jax, needs neither)"
)


_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


INTERRUPTED = 130  # the exit code after Ctrl-C
UNREAD = 141  # after SIGPIPE, as a shell counts


def _first_line(module: str) -> str:
    """The first line of a module's docstring, read without importing it: the list of commands has to come at once."""
    path = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_first_line(module)}" for name, module in COMMANDS.items()]
    return "\n".join(["usage: prune-jax COMMAND ... (prune-jax COMMAND --help tells more)", "", *lines])


def _platforms() -> list[str]:
    """The platforms that jax can use here, whatever JAX_PLATFORMS names."""
    import jax
    import jax.extend.backend

    jax.config.update("jax_platforms", None)
    jax.devices()
    return sorted(jax.extend.backend.backends())


def run(module: str, argv: Sequence[str], name: str) -> int:
    """Runs the main(argv) of `module` and turns what ends it into a message of `name` and an exit code.

    Returns:
      0, 2 after a mistake of the user's or on Windows, 130 after Ctrl-C, or what the command says.
    """
    if sys.platform == "win32":
        print(f"{name}: {_WINDOWS}", file=sys.stderr, flush=True)
        return 2
    logging.getLogger("absl").setLevel(logging.WARNING)
    # Orbax says on absl's channel how long a save took; of one that failed it and asyncio show what is raised anyway.
    logging.getLogger("absl").addFilter(lambda line: "orbax" not in line.pathname)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    for logger in ("matplotlib", "jax._src.xla_bridge"):  # a font cache that is built, a platform that is not there
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would miss torch, which nothing here needs
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return importlib.import_module(module).main(argv) or 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        message, code = f"{package} is not installed: pip install 'prune-jax[{_EXTRAS[package]}]'", 2
    except UserError as error:
        message, code = error, 2
    except Stopped as error:
        message, code = error, error.exit_code
        threading.excepthook = lambda args: None  # a sink's thread that meets the same full disk on its way out
        warnings.simplefilter("ignore", RuntimeWarning)  # a save that failed leaves coroutines that nobody awaits
    except OSError as error:  # of a file or folder of the user's, where no reader has told it
        if error.errno not in _UNUSABLE or error.filename is None:
            raise
        message, code = f"cannot use {error.filename}: {error.strerror}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except (RuntimeError, AssertionError) as error:  # of cuda without its package an AssertionError
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked or not traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py"):
            raise
        message, code = f"JAX_PLATFORMS is {asked!r}; allowed on this machine: {', '.join(_platforms())}", 2
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return code


def _unraisable(unraisable: Any) -> None:
    """As Python's own hook, but for what a save that failed says once its event loop is closed: it has been raised."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def leave(act: Callable[[], int]) -> NoReturn:
    """Ends the process with the exit code that `act` returns.

    At once after an interrupt, for a thread that a library has left behind may wait for ever, and where another process
    of the job has ended, for jax would wait a minute and end this one with a stack trace. Without a word where nobody
    reads the output to its end, as in `prune-jax train --help | head`.
    """
    try:
        try:
            code = act()
        finally:
            if sys.stdout is not None:  # as after >&-
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes what is left
        code = UNREAD
    if code in (INTERRUPTED, LeftAlone.EXIT_CODE):
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe whose other end is closed."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` names and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        print(f"prune-jax {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"prune-jax: there is no command {name!r}; allowed: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run(COMMANDS[name], rest, name)


def command() -> NoReturn:
    """What `prune-jax` on the path runs."""
    leave(main)


if __name__ == "__main__":
    command()

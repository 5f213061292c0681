"""What the parsers of all commands have in common."""

import argparse

from prune_jax.errors import UserError
from prune_jax.files import expanded

KINDS = ("final", "best", "last", "quantised")


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are a UserError: one line, as every other mistake.

    Arguments that name a file or a folder, by their metavar, take ~ and environment variables.
    """

    _PATHS = ("PATH", "FILE", "DIR", "RUN_DIR", "OUT_DIR", "GLUE_DIR", "IN.pjx", "OUT.pjx", "ZIP", "CHECKPOINT")

    def add_argument(self, *names, **settings):
        if settings.get("metavar") in self._PATHS:
            kind, name = settings.get("type", str), names[-1]
            what = name if name.startswith("-") else settings["metavar"]
            settings["type"] = lambda text: kind(_path(text, what))
        return super().add_argument(*names, **settings)

    def error(self, message: str):
        raise UserError(f"{message} (--help tells more)")


def _path(text: str, what: str) -> str:
    if not text:  # as of an unset variable in a script; as a path it would be the current folder
        raise UserError(f"{what} is ''; allowed: a path")
    return expanded(text, what)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Lists defaults, and leaves the lines of a docstring as they are."""

    def _get_help_string(self, action):
        default = action.default
        unset = default is None or default is False or default in ((), [])
        return action.help if unset else super()._get_help_string(action)  # the help says what follows from none


def parser(command: str, doc: str) -> Parser:
    """A parser for `prune-jax COMMAND` whose help is a module's docstring, without the usage that is indented there."""
    first, *rest = doc.strip().split("\n\n")
    rest = [paragraph for paragraph in rest if not paragraph.startswith(" ")]
    return Parser(
        prog=f"prune-jax {command}",
        description=first,
        epilog="\n\n".join(rest),
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


def add_kind(parser: argparse.ArgumentParser, default: str = "final") -> None:
    """Adds --kind, which chooses among the checkpoints of a run; `kind_of` reads it."""
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default=default,
        help="which checkpoint of the run; final: the quantised one where there is one, else the best",
    )


def kind_of(folder, kind: str) -> str:
    """The checkpoint that --kind means for the run in `folder`: best, last or quantised."""
    from prune_jax.run import folder as runs

    return runs.final_kind(folder) if kind == "final" else kind

"""Puts finished runs side by side: a table, summary.csv, plots and report.html.

prune-jax compare RUN_DIR [RUN_DIR ...] [--out=DIR]
"""

from collections.abc import Sequence
from pathlib import Path

from prune_jax.run.commands import arguments


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="the folder of a finished run")
    parser.add_argument("--out", default="comparison", metavar="DIR", help="where the files go")
    args = parser.parse_args(argv)

    from prune_jax.report import compare

    compare.write(dict.fromkeys(Path(run) for run in args.runs), args.out)

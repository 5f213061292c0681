"""Puts finished runs side by side: a table, summary.csv, plots and report.html.

python -m prune_jax.compare RUN_DIR RUN_DIR ... [--out DIR]
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from prune_jax import command
from prune_jax.errors import UserError


def write(folders: Iterable, out, unfinished: dict[str, str] | None = None, title: str = "Comparison of runs") -> None:
    """Reads the runs in `folders`, writes out/{summary.csv,runs.csv,plots/*.png,report.html} and prints the table.

    unfinished: {name: what became of it} of runs to be listed without a result.
    Raises:
      UserError: a folder holds no finished run, or `out` cannot be written.
    """
    from prune_jax.report import page, plots, study

    out, unfinished = Path(out), unfinished or {}
    results = study.read(folders)
    panels = study.panels(results)
    try:
        out.mkdir(parents=True, exist_ok=True)
        study.write_summary(out, panels)
        study.write_runs(out, results, unfinished)
        plots.draw_study(out, panels, page.styles(panels))
        path = page.write(out, results, panels, unfinished, title)
    except OSError as error:
        raise UserError(f"cannot write the comparison into {out}: {error.strerror or error}") from error
    print("\n".join(study.table(panels, bold=sys.stdout.isatty())))
    print(f"summary.csv, runs.csv, plots/ and {path.name} are in {out}", flush=True)


def _main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m prune_jax.compare", description="Puts finished runs side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folder of a finished run")
    parser.add_argument("--out", default="comparison", metavar="DIR", help="where the files go (comparison)")
    args = parser.parse_args(argv)
    write(dict.fromkeys(Path(run) for run in args.runs), args.out)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    return command.run("compare", _main, argv)


if __name__ == "__main__":
    sys.exit(main())

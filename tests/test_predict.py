"""prune-jax predict: the same answers from a run, its export and its artifact; files in and out; GLUE's zip."""

import csv
import json
import zipfile

import conftest
import numpy as np
import pytest
from PIL import Image
from test_data import VOCABULARY, write_task
from test_own_data import config_of, write_images

from prune_jax import __main__ as command_line
from prune_jax.data.glue import TASKS
from prune_jax.errors import UserError
from prune_jax.run import folder as runs
from prune_jax.run import predict, submission, train, workdir
from prune_jax.run.commands import predict as predict_command

ROWS = ["good film,yes", "bad film,no", "a good film,yes", "a bad a,no"] * 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a table of its own that tells good from bad."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "films.csv").write_text("\n".join(["text,label", *ROWS]) + "\n")
    config = conftest.small()
    config.data.update(source="csv", train=str(folder / "films.csv"), tokenizer=str(folder / "vocab.txt"))
    config.train.epochs, config.train.learning_rate, config.pruning.method = 20, 5e-3, "baseline"
    summary = train.train_and_evaluate(config, folder / "run")
    workdir.release(folder / "run")
    assert summary["best_metric"] == 1
    (folder / "films.csv").unlink()  # no answer needs the data
    return folder / "run"


def predicted(capsys, *argv):
    assert command_line.main(["predict", *map(str, argv)]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))


@pytest.mark.slow
def test_a_run_its_export_and_its_artifact_agree(run, tmp_path, capsys):
    for command in (["export", run, tmp_path / "hf"], ["compress", run, tmp_path / "run.pjx", "--bits=0"]):
        assert command_line.main(list(map(str, command))) == 0
    capsys.readouterr()
    found = [
        predicted(capsys, path, "--text", "a good film", "--text", "bad", "--text", "good " * 30 + "bad " * 90)
        for path in (run, tmp_path / "hf", tmp_path / "run.pjx")
    ]
    assert [row["label"] for row in found[0][:2]] == ["yes", "no"] and found[0][0]["text"] == "a good film"
    assert found[0] == found[1] == found[2]
    assert all(0.5 < float(row["probability"]) <= 1 for row in found[0])
    assert command_line.main(["predict", str(tmp_path / "hf"), "--kind=last", "--text", "bad"]) == 2
    assert "--kind is last, which chooses among the checkpoints of a run" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_files_in_and_out(suffix, run, tmp_path, capsys):
    rows = [{"id": 7, "text": "bad, film"}, {"id": 8, "text": ""}, {"id": 9, "text": "good ü"}]
    path, out = tmp_path / f"in.{suffix.upper()}", tmp_path / f"out.{suffix}"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        if suffix == "jsonl":
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        else:
            writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    assert command_line.main(["predict", str(run), "--in", str(path), "--out", str(out), "--batch-size=2"]) == 0
    text = out.read_text(encoding="utf-8")
    delimiter = "\t" if suffix == "tsv" else ","
    found = (
        [json.loads(line) for line in text.splitlines()]
        if suffix == "jsonl"
        else (list(csv.DictReader(text.splitlines(), delimiter=delimiter)))
    )
    assert [str(row["id"]) for row in found] == ["7", "8", "9"] and found[2]["text"] == "good ü"
    assert [found[i]["label"] for i in (0, 2)] == ["no", "yes"] and set(found[1]) == {
        "id",
        "text",
        "label",
        "probability",
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_keeps_all_its_columns_and_values(suffix, run, tmp_path, capsys):
    rows = [{"text": "a good film", "label": "no", "weight": 0.123456789}, {"text": "bad", "label": "no", "note": "x"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / f"out.{suffix}"
    assert command_line.main(["predict", str(run), "--in", str(tmp_path / "in.jsonl"), "--out", str(out)]) == 0
    text = out.read_text()
    found = list(csv.DictReader(text.splitlines())) if suffix == "csv" else list(map(json.loads, text.splitlines()))
    assert [row["label"] for row in found] == ["no", "no"] and float(found[0]["weight"]) == 0.123456789
    assert [row["predicted_label"] for row in found] == ["yes", "no"] and found[1]["note"] == "x"
    assert all(0.5 < float(row["predicted_probability"]) <= 1 for row in found)


def test_columns_of_one_name_are_all_kept(tmp_path):
    (tmp_path / "in.csv").write_text("note,text,note,note.1\n\n1,bad,2,3\n\n")
    (row,), columns = predict_command._read(tmp_path / "in.csv", None, ["text"])
    assert columns == ["text"] and row == {"note": "1", "text": "bad", "note.2": "2", "note.1": "3"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('"text"', 'it is "text"; allowed: an object of columns'),
        ('{"text": ["bad"]}', "'text' holds no text: [\"bad\"]"),
    ],
)
def test_a_row_that_holds_no_text_is_told(row, says, run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(f'{{"text": "good"}}\n{row}\n')
    assert command_line.main(["predict", str(run), "--in", str(tmp_path / "in.jsonl")]) == 2
    assert f"in.jsonl, row 2: {says}" in capsys.readouterr().err


def test_a_text_per_line(run, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("good\n\nbad\n")
    found = predicted(capsys, run, "--in", tmp_path / "in.txt")
    assert [row["text"] for row in found] == ["good", "", "bad"] and found[0]["label"] == "yes"


def test_an_empty_text_is_answered_and_said(run, tmp_path, capsys):
    path = tmp_path / "in.csv"
    path.write_text("text,label\ngood,\n  ,yes\n,no\n")
    assert command_line.main(["predict", str(run), "--in", str(path)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 4
    assert said.err == f"{path}: 2 of 3 texts are empty and read as such, the first in row 2\n"


def test_images(tmp_path, capsys):
    config = config_of("images", train=write_images(tmp_path / "pets"))
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path / "run")
    capsys.readouterr()
    Image.new("L", (50, 40), 9).save(tmp_path / "other.png")  # of another size and mode
    (one,) = predicted(capsys, tmp_path / "run", "--in", tmp_path / "other.png")
    assert one["label"] in ("cat", "dog")
    found = predicted(capsys, tmp_path / "run", "--in", tmp_path / "pets")
    assert len(found) == 12 and found[0]["image"].endswith("0.png")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "one of --text, --in and --glue"),
        (["--text", "a", "--in", "b"], "one of --text, --in and --glue"),
        (["--in", "nothing.csv"], "--in is 'nothing.csv'; there is no such file"),
        (["--text", "a", "b"], "this network reads single texts"),
        (
            ["--text", "a", "--out", "x.xlsx"],
            "--out is 'x.xlsx'; allowed: a file whose name ends in .csv, .tsv, .jsonl",
        ),
        (["--in", "y.csv", "--out", "./y.csv"], "--out is './y.csv', which is the file of --in; allowed: another"),
        (["--text", "a", "--out", "no/where.csv"], "there is no folder no"),
        (["--text", "a", "--columns", "b"], "--columns is b; allowed: one or two columns of the file of --in"),
        (["--in", "t.csv", "--columns", "a", "b", "c"], "--columns is a b c; allowed: one or two columns"),
        (["--glue", "."], "--out is None; allowed: a file whose name ends in .zip"),
    ],
)
def test_mistakes(argv, says, run, capsys):
    assert command_line.main(["predict", str(run), *argv]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_column_that_is_there_twice_is_told(run, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("text,text\ngood,bad\n")
    assert command_line.main(["predict", str(run), "--in", str(tmp_path / "in.csv")]) == 2
    assert "in.csv has the column 'text' 2 times" in capsys.readouterr().err


def test_a_row_that_does_not_fit_is_told_and_a_semicolon_read(run, tmp_path, capsys):
    path = tmp_path / "in.csv"
    path.write_text("text,label\na good, long film,yes\n")
    assert command_line.main(["predict", str(run), "--in", str(path)]) == 2
    assert "in.csv, line 2: the row has 3 cells, the header 2" in capsys.readouterr().err
    path.write_text("id;text\n1;good film\n2;bad film\n")
    assert [row["label"] for row in predicted(capsys, run, "--in", path)] == ["yes", "no"]


def test_an_artifact_evaluates_on_a_file_that_the_caller_names(run, tmp_path, capsys):
    assert command_line.main(["compress", str(run), str(tmp_path / "run.pjx"), "--bits=0"]) == 0
    (tmp_path / "films.csv").write_text("\n".join(["text,label", *ROWS]) + "\n")
    capsys.readouterr()
    for path in (run, tmp_path / "run.pjx"):
        files = [f"--config.data.eval={tmp_path / 'films.csv'}"]
        files += [f"--config.data.train={tmp_path / 'films.csv'}"] if path == run else []
        assert command_line.main(["evaluate", str(path), *files]) == 0
        assert "eval_metric (accuracy) 1.000000" in capsys.readouterr().out


def test_a_missing_column_is_named(run, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("review\ngood\n")
    assert command_line.main(["predict", str(run), "--in", str(tmp_path / "in.csv")]) == 2
    assert "row 1: there is no column 'text' but review; --columns names others" in capsys.readouterr().err
    assert predicted(capsys, run, "--in", tmp_path / "in.csv", "--columns", "review")[0]["label"] == "yes"


# GLUE ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_what_glue_reads(name):
    task = TASKS[name]
    outputs = np.array([[-0.2], [7.0]]) if task.is_regression else np.eye(task.num_labels)
    written = submission.answers(task, outputs)
    expected = {"stsb": ["0.000", "5.000"], "mnli": ["entailment", "neutral", "contradiction"]}
    pairs = {"qnli": ["entailment", "not_entailment"], "rte": ["entailment", "not_entailment"]}
    assert written == (expected | pairs).get(name, ["0", "1"])


def test_the_real_test_splits(real_data):
    sizes = {"cola": 1063, "sst2": 1821, "mrpc": 1725, "stsb": 1379, "rte": 3000, "wnli": 146, "qnli": 5463}
    for name, size in sizes.items():
        ((folder, test, answers),) = submission.FILES[name]
        ids, texts = submission.read_test(TASKS[name], real_data / "glue" / folder / test)
        assert len(ids) == size and ids[:2] == ["0", "1"] and all(len(row) == 1 + TASKS[name].is_pair for row in texts)
        assert answers == f"{folder}.tsv"


@pytest.mark.slow
def test_a_submission(tmp_path, small_config, capsys):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    for name in ("cola", "rte"):
        write_task(tmp_path, name)
        small_config.data.update(source="tsv", task=name, dir=str(tmp_path), tokenizer=str(tmp_path / "vocab.txt"))
        small_config.train.epochs, small_config.train.batch_size, small_config.pruning.method = 1, 2, "baseline"
        train.train_and_evaluate(small_config, tmp_path / f"run_{name}")
    (tmp_path / "CoLA" / "test.tsv").write_text("index\tsentence\n0\tgood\n1\tbad\n")
    (tmp_path / "RTE" / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tgood\tbad\n5\tbad\ta\n")
    runs_given, out = [str(tmp_path / f"run_{name}") for name in ("cola", "rte")], tmp_path / "all.zip"
    assert command_line.main(["predict", *runs_given, f"--glue={tmp_path}", f"--out={out}"]) == 0
    with zipfile.ZipFile(out) as archive:
        files = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert list(files) == ["CoLA.tsv", "RTE.tsv"]
    assert files["CoLA.tsv"][0] == files["RTE.tsv"][0] == "index\tprediction"
    assert [line.split("\t")[0] for line in files["RTE.tsv"][1:]] == ["0", "5"]
    assert {line.split("\t")[1] for line in files["CoLA.tsv"][1:]} <= {"0", "1"}
    assert {line.split("\t")[1] for line in files["RTE.tsv"][1:]} <= {"entailment", "not_entailment"}
    twice = [runs_given[0]] * 2
    assert command_line.main(["predict", *twice, f"--glue={tmp_path}", f"--out={out}"]) == 2
    assert "two of the runs are of cola" in capsys.readouterr().err


def test_a_checkpoint_without_a_head_predicts_nothing(run, tmp_path):
    assert command_line.main(["export", str(run), str(tmp_path / "hf")]) == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    with pytest.raises(UserError, match="without the head of a sequence classification"):
        predict.load(tmp_path / "hf", "best")
    assert runs.is_run(run)

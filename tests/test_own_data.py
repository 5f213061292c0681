"""Data of the user's own: tables, folders and the hub's layout in, classes found and kept, images of any size."""

import gzip
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_data import _datasets_cache, write_hub  # noqa: F401, a fixture

from configs import common, lenet
from prune_jax import files
from prune_jax.data import batching, glue, images, own, pictures
from prune_jax.errors import UserError
from prune_jax.run import evaluate, inputs, train
from prune_jax.run.commands import export as export_command

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "day", "007", "na", "ü"]


@pytest.fixture
def vocab(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    return str(tmp_path / "vocab.txt")


def config_of(source, vocab="", **data):
    config = common.get_config() if vocab else lenet.get_config()
    config.data.source, config.data.tokenizer, config.data.task = source, vocab, "sst2" if vocab else "mnist"
    config.data.max_len, config.train.batch_size = 16, 4
    for name, value in data.items():
        with config.data.ignore_type():
            config.data[name] = value
    return config


def load(source, vocab="", **data):
    return inputs.load_data(inputs.resolve(config_of(source, vocab, **data), {})[0])


def texts(split):
    spelled = [[VOCABULARY[i] for i in split.ids[a:b]] for a, b in zip(split.offsets, split.offsets[1:], strict=False)]
    return [" ".join(words[1:-1]) for words in spelled]


def write_csv(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")  # as a spreadsheet saves it
    return str(path)


TWELVE = [f"good day,{name}" for name in ("no", "yes", "maybe") for _ in range(4)]


def write_table(folder, source, columns, name="train"):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, count = folder / f"{name}.{source}", len(next(iter(columns.values())))
    if source == "parquet":
        pq.write_table(pa.table(columns), path)
        return str(path)
    rows = [{key: values[i] for key, values in columns.items()} for i in range(count)]
    if source == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
    return write_csv(path, [",".join(map(str, row.values())) for row in rows], ",".join(columns))


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [
        (["b", "a", "c", "a"], ("a", "b", "c"), [1, 0, 2, 0]),
        ([10, 2, 10, -1], ("-1", "2", "10"), [2, 1, 2, 0]),
    ],
)
def test_classes_are_found_in_order(source, labels, classes, ids, tmp_path, vocab):
    path = write_table(tmp_path, source, {"one": ["good", "bad", "day", "a"], "two": ["a"] * 4, "kind": labels})
    found = load(source, vocab, train=path, eval=path, text=("one", "two"), label="kind")
    assert found.task.labels == classes and found.task.num_labels == 3 and found.train.labels.tolist() == ids
    assert texts(found.train)[1] == "bad [SEP] a" and len(found.evals["eval"]) == 4
    assert found.task.metrics == ("accuracy",)


def test_cells_of_json_are_taken_as_they_are_written(tmp_path, vocab):
    """Dates became timestamps, and a cell of another type ended the reading, also one that nobody asked for."""
    rows = [{"text": "007-01-01", "label": "b", "id": 1}, {"text": "007", "label": "B"}, {"label": "b", "id": [2]}]
    rows.append({"text": "good", "label": "b"})
    path = tmp_path / "t.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    found = load("jsonl", vocab, train=str(path), eval=str(path))
    assert texts(found.train) == [
        "007 [UNK] [UNK] [UNK] [UNK]",
        "007",
        "",
        "good",
    ]  # as it is, and not "0007-01-01 00:00:00"
    assert any("b: classes of their own" in note for note in found.notes)
    path.write_text(json.dumps(rows))  # one array
    assert len(load("jsonl", vocab, train=str(path), eval=str(path)).train) == 4
    for text, says in (
        ('{"text": "a", "label": "b"}\n{"text": }', r"t\.jsonl, line 2: Expecting value; allowed: a JSON object"),
        ('{"text": "a", "label": "b", "text": "c"}', r"line 1: the key 'text' is there twice"),
        ('{"text": "a", "label": "b"}\n"c"', r'row 2: it is "c"; allowed: an object'),
        ("\n", "has no rows"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            load("jsonl", vocab, train=str(path), eval=str(path))


def test_cells_are_taken_as_they_are_written(tmp_path, vocab):
    rows = ["NA,pos", "007,neg", '"a, ""good""\nday",pos', ",neg", "ü," + "pos"]
    found = load("csv", vocab, train=write_csv(tmp_path / "t.csv", rows), eval=str(tmp_path / "t.csv"))
    assert texts(found.train) == ["na", "007", "a [UNK] [UNK] good [UNK] day", "", "[UNK]"]
    said = "t.csv: 1 of 5 texts is empty and read as such, the first in row 4"
    assert [note.endswith(said) for note in found.notes] == [True, True, False]  # of both files
    assert found.notes[2] == "config.data.eval is config.data.train: what is evaluated on has been trained on"


@pytest.mark.slow
def test_a_column_that_nobody_reads_may_hold_anything_late(tmp_path, vocab):
    """pandas reads 10,000 rows at a time: one column's type was another in the second part, which ended the reading."""
    rows = [f"{i if i < 20_000 else 'x'},good,{'yes' if i % 2 else 'no'}" for i in range(20_010)]
    path = write_csv(tmp_path / "t.csv", rows, "id,text,label")
    config = inputs.resolve(config_of("csv", vocab, train=path), {})[0]
    table = own._file(glue.task_of(config.data), config.data, path)
    assert table.num_rows == 20_010 and table["id"][-1] == "x"


def test_classes_of_one_number_have_one_order():
    """1 and 01 are two classes; their order was that of a set, another in each process."""
    names = [f"{zero}{i}" for i in range(1, 20) for zero in ("0", "")]
    assert own.in_order(names[::-1]) == tuple(names)


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_a_warning(tmp_path):
    """A folder below a file cannot be made, whoever asks; so nobody's rights matter."""
    (tmp_path / "file").touch()
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    train = write_csv(tmp_path / "train.csv", ["good day,yes", "bad day,no"] * 24)
    nowhere = str(tmp_path / "file" / "home")
    hidden = ("PRUNE_JAX_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    flags = {
        "data.source": "csv", "data.train": train, "data.tokenizer": tmp_path / "vocab.txt", "train.epochs": 1,
        "train.batch_size": 8, "model.d_model": 16, "model.d_ff": 16, "model.num_heads": 2, "pruning.start_epoch": 0,
    }  # fmt: skip
    command = [sys.executable, ROOT / "launch.py", f"--config={ROOT / 'configs' / 'quickstart.py'}"]
    command += [f"--config.{key}={value}" for key, value in flags.items()]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"HOME": nowhere}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "cannot write the cache" in done.stderr and "cache of the package datasets cannot be written" in done.stderr
    assert (tmp_path / "results_spt" / "summary.json").is_file()


def test_a_long_text_is_cut_and_said(tmp_path, vocab):
    path = write_csv(tmp_path / "t.csv", ["good " * 40 + ",a", "bad,b", "bad,b", "bad,a"])
    found = load("csv", vocab, train=path, eval=path)
    assert found.train.lengths.tolist() == [16, 3, 3, 3]
    assert "2 of 8 examples fill config.data.max_len=16 tokens; more is cut off" in found.notes


def test_a_share_is_held_out_of_every_class(tmp_path, vocab):
    path = write_csv(tmp_path / "t.csv", TWELVE)
    found = load("csv", vocab, train=path, eval_share=0.25)
    assert np.bincount(found.evals["eval"].labels).tolist() == [1, 1, 1] and len(found.train) == 9
    held = [own.held_out(np.arange(100) % 2, False, 0.2, seed)[1].tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    with pytest.raises(UserError, match=r"eval_share is 0\.01, which holds 0 of 12"):
        load("csv", vocab, train=path, eval_share=0.01)


def test_a_class_of_the_evaluation_alone_is_said(tmp_path, vocab):
    path, other = write_csv(tmp_path / "t.csv", TWELVE), write_csv(tmp_path / "e.csv", ["bad day,never"])
    found = load("csv", vocab, train=path, eval=other)
    assert found.task.labels == ("maybe", "never", "no", "yes") and found.evals["eval"].labels.tolist() == [1]
    assert "never: in the evaluation data alone" in found.notes[0]
    with pytest.raises(UserError, match=r"e\.csv, row 1: the label is 'never'; allowed: yes, no, maybe"):
        load("csv", vocab, train=path, eval=other, label_names=("yes", "no", "maybe"))


def test_numbers_are_a_regression(tmp_path, vocab):
    columns = {"text": ["good", "bad", "day", "a"], "label": [0.5, -2.0, 1e3, 4.0]}
    path = write_table(tmp_path, "jsonl", columns)
    found = load("jsonl", vocab, train=path, eval=path, task="regression", metric=("spearman", "mse"))
    assert found.train.labels.tolist() == [0.5, -2, 1e3, 4] and found.task.num_labels == 1
    assert evaluate.metrics(found.task, np.array([[0.5], [0], [1e3], [4]]), found.train.labels)["mse"] == 1
    for kind in ("csv", "parquet"):
        halves = write_table(tmp_path, kind, {"text": ["good", "bad"] * 2, "label": ["0.5", "1.5"] * 2}, "halves")
        with pytest.raises(UserError, match=r"such as '0\.5'; allowed: .*, or config\.data\.label_names"):
            load(kind, vocab, train=halves, eval=halves)
        assert load(kind, vocab, train=halves, eval=halves, label_names=("0.5", "1.5")).task.num_labels == 2
    huge = write_table(tmp_path, "jsonl", {"text": ["good", "bad"], "label": [1.0, 1e39]}, "huge")
    with pytest.raises(UserError, match=r"row 2: the label is 1e\+39; allowed: a finite number"):  # infinite in float32
        load("jsonl", vocab, train=huge, eval=huge, task="regression")
    with pytest.raises(UserError, match=r"4 different values in 8 rows.*config\.data\.task=regression"):
        load("jsonl", vocab, train=path, eval=path)


def test_folders_of_texts(tmp_path, vocab):
    for name, text in (("pos/1", "good\nday"), ("pos/2", "good"), ("neg/1", "bad")):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / f"{name}.txt").write_text(text)
    (tmp_path / "docs" / "other.txt").write_text("a\na day\n")
    found = load("text", vocab, train=str(tmp_path / "docs"), eval=str(tmp_path / "docs"))
    assert found.task.labels == ("neg", "other", "pos") and texts(found.train)[-2:] == ["good day", "good"]
    assert texts(found.train)[:3] == ["bad", "a", "a day"]


def test_a_data_set_of_the_hubs_layout(tmp_path, vocab):
    table = {"content": ["good", "bad", "day", "a"], "class": ["x", "y", "x", "y"]}
    name = write_hub(tmp_path / "news", "small", {"train": table, "test": table})
    data = {"hub_name": name, "hub_config": "small", "text": ("content",), "label": "class", "task": "classification"}
    found = load("hub", vocab, **data)
    assert found.task.labels == ("x", "y") and found.task.name == "news_small" and len(found.evals["eval"]) == 4
    with pytest.raises(UserError, match=r"config\.data\.eval is 'dev'; .* has the splits train, test"):
        load("hub", vocab, **data, eval="dev")


def test_files_of_text_in_the_hubs_layout_are_taken_as_they_are_written_or_refused(tmp_path, vocab):
    """pandas made nothing of NA and 7 of 007, the package datasets timestamps of dates."""
    for split in ("train", "test"):
        for kind in ("csv", "jsonl"):
            (tmp_path / kind).mkdir(exist_ok=True)
        cells = [("NA", "x"), ("007", "y"), ("good", "x"), ("a", "y")]
        lines = "".join(f"{text},{label},\n" for text, label in cells)
        (tmp_path / "csv" / f"{split}.csv").write_text(f"text,label,spare\n{lines}")
        dates = [{"text": f"2024-01-0{i}", "label": "xy"[i % 2]} for i in range(1, 5)]
        (tmp_path / "jsonl" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, dates)))
    data = {"task": "classification", "text": ("text",), "label": "label"}
    found = load("hub", vocab, hub_name=str(tmp_path / "csv"), **data)
    assert texts(found.train) == ["na", "007", "good", "a"] and found.task.labels == ("x", "y")
    with pytest.raises(UserError, match=r"jsonl train: the column 'text' is read as timestamp.*data\.source=jsonl"):
        load("hub", vocab, hub_name=str(tmp_path / "jsonl"), **data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"text": ("content",)}, r"config\.data\.text names the column 'content'; .*t\.csv has 'text', 'label'"),
        ({"label": "kind"}, r"config\.data\.label names the column 'kind'"),
        ({"train": ""}, r"config\.data\.train is empty; with config\.data\.source=csv it names a csv file"),
        ({"train": "nothing.csv"}, r"config\.data\.train is 'nothing\.csv'; there is no such file"),
        ({"metric": ("pearson",)}, r"config\.data\.metric is pearson; allowed with t: accuracy"),
        ({"metric": ("f1",)}, r"config\.data\.metric is f1; allowed with t: accuracy, macro_f1, matthews"),
        ({"metric": ("mse",), "task": "regression"}, r"the first, which decides the best epoch, is not mse"),
        ({"task": "regression"}, r"t\.csv, row 1: the label is 'no'; allowed: a finite number .*bad_rows=skip"),
        ({"label_names": ("a", "a")}, r"config\.data\.label_names is \('a', 'a'\); allowed: two or more names"),
        ({"label_names": ("no", "yes")}, r"t\.csv, row 9: the label is 'maybe'; allowed: no, yes"),
        ({"task": "sentiment"}, r"config\.data\.task is 'sentiment'; allowed: classification, regression with .*csv"),
        ({"text": ("a", "b", "c")}, r"allowed: one or two columns"),
        ({"text": ("text", "label")}, r"columns that differ from each other and from config\.data\.label \(label\)"),
        ({"text": ("text", "text")}, r"config\.data\.text is \('text', 'text'\); allowed: columns that differ"),
        ({"cache_dir": "pyproject.toml"}, r"config\.data\.cache_dir is 'pyproject\.toml'; allowed: a folder"),
        ({"augment": ("flip",)}, r"config\.data\.augment is flip; allowed with text: nothing"),
        (
            {"task": "mnli", "source": "tsv", "dir": ".", "metric": ("f1",), "train": "", "eval": ""},
            r"allowed with mnli: accuracy, macro_f1",
        ),
        (
            {"task": "sst2", "source": "hub"},
            r"data\.eval is '.*t\.csv', and config\.data\.source=hub with .*=sst2 does not",
        ),
        ({"task": "single", "source": "builtin", "eval": ""}, r"data\.train is '.*t\.csv', and .*source=builtin with"),
        (
            {"task": "rte", "source": "tsv", "dir": ".", "label_names": ("a", "b"), "train": "", "eval": ""},
            r"allowed: those of .*rte in another order: entailment",
        ),
    ],
)
def test_mistakes_are_named(data, says, tmp_path, vocab):
    path = write_csv(tmp_path / "t.csv", TWELVE)
    with pytest.raises(UserError, match=says):
        load(data.pop("source", "csv"), vocab, **{"train": path, "eval": path} | data)


@pytest.mark.parametrize("label", [["yes", "new"], {"is": "yes"}])
def test_several_labels_per_row_are_refused(label, tmp_path, vocab):
    """Each list was a class of its own, by the text that Python makes of it."""
    rows = [{"text": "good", "label": label if i % 2 else type(label)()} for i in range(8)]  # the first is empty
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        UserError, match=r"t\.jsonl: the column 'label' holds .*; allowed: one class or one number per row"
    ):
        load("jsonl", vocab, train=str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz"])
def test_a_column_that_is_there_twice_is_told(suffix, tmp_path, vocab):
    comma = "\t" if suffix == "tsv" else ","
    text = "\n".join(["text,label,text,note,note", *["good,yes,bad,1,2", "bad,no,good,3,4"] * 8]).replace(",", comma)
    path = tmp_path / f"train.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    with pytest.raises(UserError, match=rf"{path.name} has the column 'text' 2 times; allowed: once"):
        load("csv", vocab, train=str(path))
    if not suffix.endswith("gz"):  # another column may come twice: it is not read
        path.write_text(text.replace(f"{comma}text", f"{comma}more"))
        assert len(load("csv", vocab, train=str(path)).train.labels)


def test_an_empty_label_is_an_error_or_left_out(tmp_path, vocab):
    path = write_csv(tmp_path / "t.csv", [*TWELVE, "bad,"])
    with pytest.raises(UserError, match=r"row 13: the label is empty"):
        load("csv", vocab, train=path, eval=path)
    found = load("csv", vocab, train=path, eval=path, bad_rows="skip")
    assert len(found.train) == 12 and any("left out 2 rows" in note for note in found.notes)


def test_balanced_classes_weigh_the_same(tmp_path, vocab):
    path = write_csv(tmp_path / "t.csv", ["good,a"] * 9 + ["bad,b"] * 3)
    split = load("csv", vocab, train=path, eval=path, class_weights="balanced").train
    sums = {0: 0.0, 1: 0.0}
    for batch in batching.train_batches(split, 5, (16,), seed=0, epoch=0):
        for label, weight in zip(batch["labels"], batch["weights"], strict=True):
            sums[int(label)] += float(weight)
    assert sums == pytest.approx({0: 6, 1: 6})


@pytest.mark.slow
def test_a_run_keeps_its_classes_and_resumes(tmp_path, vocab, small_config):
    path = write_csv(tmp_path / "train.csv", TWELVE * 2)
    small_config.data.update(source="csv", task="sst2", train=path, tokenizer=vocab)
    small_config.data.metric = ("macro_f1", "accuracy")
    small_config.train.epochs, small_config.pruning.method = 2, "magnitude"
    summary = train.train_and_evaluate(small_config, tmp_path / "run")
    assert summary["metric_name"] == "macro_f1" and summary["task"] == tmp_path.name
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["data"]["label_names"] == ["maybe", "no", "yes"]
    written = export_command.export(tmp_path / "run", tmp_path / "out")
    assert written["id2label"] == {"0": "maybe", "1": "no", "2": "yes"}
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been stopped: the command does not know the classes
    train.train_and_evaluate(small_config, tmp_path / "run")
    assert not list(tmp_path.glob("*.zip"))


# Images --------------------------------------------------------------------------------------------------------------


def write_images(folder, shape=(12, 10), mode="RGB", count=6):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (*shape, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("P", 3), ("RGBA", 3)])
def test_a_folder_of_classes(mode, channels, tmp_path):
    found = load("images", train=write_images(tmp_path / "pets", mode=mode), eval_share=0.2)
    assert found.task.labels == ("cat", "dog") and found.task.shape == (12, 10, channels)
    assert (len(found.train), len(found.evals["eval"])) == (10, 2)
    batch = found.train.batch(np.arange(3), 1, 4)
    assert batch["image"].shape == (4, 12, 10, channels) and 0 <= batch["image"].min() < batch["image"].max() <= 1


@pytest.mark.parametrize("shape", [(), (2, 2, 1), (2, 2, 3)])
def test_grey_of_16_bits_keeps_its_shades(shape, tmp_path):
    Image.fromarray(np.array([[0, 256], [32768, 65535]], np.uint16)).save(tmp_path / "deep.png")
    found = pictures.load_image(tmp_path / "deep.png", shape)
    assert found[..., 0].tolist() == [[0, 1], [128, 255]] and found.shape[2] == (shape or (1,))[-1]


def test_what_a_notebook_leaves_behind_is_no_class(tmp_path):
    folder = write_images(tmp_path / "pets")
    for name in (".ipynb_checkpoints", "dog/.ipynb_checkpoints"):
        (tmp_path / "pets" / name).mkdir()
        (tmp_path / "pets" / name / "0-checkpoint.png").write_bytes(b"")
    (tmp_path / "pets" / "cat" / "._0.png").write_bytes(b"")
    found, names = pictures._folder(tmp_path / "pets", ())
    assert sorted(set(names)) == ["cat", "dog"] and len(found) == 12
    assert len(files.visible(folder, "**/*")) == 14


def test_images_of_several_sizes_are_brought_to_one(tmp_path):
    folder = write_images(tmp_path / "pets")
    Image.new("L", (20, 5), 200).save(tmp_path / "pets" / "dog" / "wide.jpg")
    with pytest.raises(UserError, match=r"wide\.jpg is 5x20, and .*0\.png is 12x10; config\.data\.image_shape="):
        load("images", train=folder)
    found = load("images", train=folder, image_shape=(8, 8, 1))
    assert found.train.pixels.shape[1:] == (8, 8, 1)
    (tmp_path / "pets" / "dog" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken\.png cannot be read as an image"):
        load("images", train=folder, image_shape=(8, 8, 1))


def test_npz_files(tmp_path):
    x, y = np.random.default_rng(0).random((20, 6, 6), np.float32), np.arange(20) % 2 + 3
    np.savez(tmp_path / "both.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    np.savez(tmp_path / "one.npz", images=(x * 255).astype(np.uint8), labels=y)
    found = load("npz", train=str(tmp_path / "both.npz"))
    assert found.task.labels == ("3", "4") and len(found.evals["eval"]) == 4
    np.testing.assert_allclose(found.train.batch(np.arange(20), 1, 20)["image"][..., 0], x, rtol=1e-6)
    one = load("npz", train=str(tmp_path / "one.npz"), image_shape=(12, 12, 3))
    assert one.train.pixels.shape == (18, 12, 12, 3) and one.train.pixels.dtype == np.uint8
    np.savez(tmp_path / "bad.npz", images=x * 9, labels=y)
    with pytest.raises(UserError, match="allowed: 0 to 1, or bytes"):
        load("npz", train=str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "dark.npz", images=(x * 255).astype(np.uint16), labels=y)  # white would be 65,535
    with pytest.raises(UserError, match=r"images is uint16 with values up to 2\d\d; allowed for bytes: uint8"):
        load("npz", train=str(tmp_path / "dark.npz"))
    np.savez(tmp_path / "odd.npz", pictures=x)
    with pytest.raises(UserError, match="holds the arrays pictures; allowed: images and labels"):
        load("npz", train=str(tmp_path / "odd.npz"))


class _Bomb:
    def __reduce__(self):
        return print, ("called",)


def test_cifar10s_own_files(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels, data = np.arange(10), random.integers(0, 256, (10, 3072), np.uint8)
        (tmp_path / f"{name}.bin").write_bytes(b"".join(bytes([i]) + row.tobytes() for i, row in enumerate(data)))
        pickled = {b"labels": labels.tolist(), b"data": data, b"batch_label": b"x"}
        (tmp_path / name).write_bytes(pickle.dumps(pickled, protocol=2))
    binary = load("cifar10", dir=str(tmp_path))
    assert (len(binary.train), len(binary.evals["eval"])) == (50, 10) and binary.task.labels[3] == "cat"
    first = (tmp_path / "data_batch_1.bin").read_bytes()
    assert binary.train.pixels[0, 0, 1].tolist() == [first[2], first[1 + 1024 + 1], first[1 + 2048 + 1]]
    for path in tmp_path.glob("*.bin"):
        path.unlink()
    python = load("cifar10", dir=str(tmp_path))
    np.testing.assert_array_equal(python.train.pixels, binary.train.pixels)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match=r"test_batch is no batch of CIFAR-10: it would call .*print"):
        load("cifar10", dir=str(tmp_path))
    assert "called" not in capsys.readouterr().out


def test_augmentation_is_a_function_of_the_epoch_and_leaves_evaluation_alone(tmp_path):
    found = load("images", train=write_images(tmp_path / "pets"), augment=("flip", "crop"))

    def pixels(split, epoch, skip=0):
        return [b["image"] for b in batching.train_batches(split, 4, images.BUCKETS, 0, epoch, skip)]

    first, again, other = pixels(found.train, 0), pixels(found.train, 0), pixels(found.train, 1)
    np.testing.assert_array_equal(np.stack(first), np.stack(again))
    np.testing.assert_array_equal(first[1], pixels(found.train, 0, skip=1)[0])  # a resumed run sees the same
    plain = pixels(batching.replaced(found.train, flip=False, crop=False), 0)
    assert not np.array_equal(first, plain) and not np.array_equal(first, other)
    flipped = pixels(batching.replaced(found.train, crop=False), 0)
    for image, original in zip(np.concatenate(flipped), np.concatenate(plain), strict=True):
        assert np.array_equal(image, original) or np.array_equal(image, original[:, ::-1])
    assert not (found.evals["eval"].flip or found.evals["eval"].crop)


@pytest.mark.parametrize("name", ["lenet_300_100", "tutorial"])
def test_a_run_on_images_of_three_channels(name, tmp_path):
    config = config_of("images", train=write_images(tmp_path / "pets"), augment=("flip",))
    config.model.name, config.train.epochs = name, 1
    train.train_and_evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["image_shape"] == [12, 10, 3]


def test_every_source_is_documented():
    page = (ROOT / "docs" / "how-to" / "own_data.md").read_text()
    for name in (*glue.TABLES, *glue.PICTURES, "hub"):
        assert f"`{name}`" in page
    assert pictures._SUFFIXES == (".png", ".jpg", ".jpeg")

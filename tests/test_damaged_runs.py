"""A run's files that are damaged, or hold something else: one message that names the file, and nothing is written."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from test_saved_runs import ARCHIVE

from prune_jax import __main__ as command_line
from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.report import study
from prune_jax.run import folder as runs

OBJECTS = ("config.json", "summary.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
TABLES = ("metrics.csv", "layers.csv")
READERS = {  # file: what reads it in the first place
    "config.json": runs.read_config,
    "summary.json": lambda folder: study.read([folder]),
    "metrics.csv": lambda folder: study.read([folder]),
    "layers.csv": lambda folder: study.read([folder]),
    "tokenizer/tokenizer.json": lambda folder: files.read_tokenizer(folder / "tokenizer" / "tokenizer.json"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "magnitude" / "finished"


def damaged(name: str, data: bytes) -> dict[str, bytes]:
    """What may lie in a file's place, each in a few words."""
    contents = {text: text.encode() for text in ("[]", "5", "null", '"x"', "[[1]]")}
    contents |= {"binary": bytes(range(256)), "a deep list": b"[" * 100_000 + b"]" * 100_000}
    if name in OBJECTS:
        content = json.loads(data)
        contents |= {"{}": b"{}", "half": data[: len(data) // 2], "empty": b""}
        for value in (None, 5, "x", []):
            contents[f"every value {value!r}"] = json.dumps(dict.fromkeys(content, value)).encode()
        inner = {key: {k: [] for k in v} if isinstance(v, dict) else v for key, v in content.items()}
        contents["every inner value []"] = json.dumps(inner).encode()
    else:
        header = data.splitlines()[0]
        words = b",".join([b"x"] * len(header.split(b",")))
        contents |= {"words": header + b"\n" + words + b"\n", "other columns": b"q,r\n1,2\n"}
        contents = {key: contents[key] for key in ("binary", "words", "other columns")}  # the others are no rows
    return contents


@pytest.mark.parametrize("name", READERS)
def test_what_is_not_a_runs_file_is_told_by_its_name(name, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    harmless = {"summary.json": {"every inner value []"}}.get(name, set())
    for what, content in damaged(name, (whole / name).read_bytes()).items():
        (folder / name).write_bytes(content)
        if what in harmless:
            READERS[name](folder)
            continue
        with pytest.raises(UserError, match=Path(name).name):
            print(what, READERS[name](folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OBJECTS, *TABLES])
def test_no_command_ends_in_a_traceback_or_leaves_a_part(name, whole, tmp_path):
    contents = damaged(name, (whole / name).read_bytes())
    some = ("binary", "words", "half", "every value None", "every inner value []")  # the test above has the others
    for i, (what, content) in enumerate((what, contents[what]) for what in some if what in contents):
        run, out = tmp_path / f"{i}" / "run", tmp_path / f"{i}" / "out"
        shutil.copytree(whole, run)
        (run / name).write_bytes(content)
        out.mkdir()
        for argv in (
            ["evaluate", str(run)],
            ["export", str(run), str(out / "export")],
            ["compress", str(run), str(out / "net.pjx")],
            ["average", str(run), str(whole), str(out / "mean")],
            ["compare", str(run), str(whole), f"--out={out / 'compared'}"],
        ):
            before = set(out.iterdir())
            code = command_line.main(argv)
            assert code in (0, 2), (what, argv)
            if code == 2:
                assert set(out.iterdir()) == before, (what, argv)
            if name == "config.json":
                assert code == 2, (what, argv)

"""The command line as a whole: it answers at once, its commands look alike, and every default is told."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import prune_jax
from prune_jax import __main__ as command_line
from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.run.commands import arguments

HEAVY = ("jax", "flax", "optax", "orbax", "transformers", "datasets", "sklearn", "matplotlib", "ml_collections")


def python(code, *args):
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=900, check=True
    )
    return done.stdout


def test_the_list_of_commands_loads_nothing(capsys):
    code = (
        "import json, sys; from prune_jax import __main__; code = __main__.main(['--help']); "
        f"print(json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    *lines, last = python(code).splitlines()
    assert json.loads(last) == [0, []]
    for name, module in command_line.COMMANDS.items():
        __import__(module)
        first = sys.modules[module].__doc__.splitlines()[0]
        assert any(line.split(maxsplit=1) == [name, first] for line in lines), name
    assert command_line.main([]) == 2
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    "command", [["-m", "prune_jax", "--help"], ["-m", "prune_jax", "sweep", "-h"], ["launch.py", "-h"]]
)
def test_a_reader_that_leaves_early_hears_nothing(command):
    shell = f"{shlex.join([sys.executable, *command])} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 141) and done.stderr == ""  # argparse's own help minds no closed pipe


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.ENAMETOOLONG, 2), (errno.EBADF, None)])
def test_a_file_that_cannot_be_used_is_one_line(number, code, monkeypatch, capsys):
    def main(argv):
        raise OSError(number, os.strerror(number), "a/b")

    monkeypatch.setattr("prune_jax.run.commands.compare.main", main)
    if code is None:
        with pytest.raises(OSError, match="a/b"):
            command_line.main(["compare", "x"])
        return
    assert command_line.main(["compare", "x"]) == code
    assert capsys.readouterr().err == f"compare: cannot use a/b: {os.strerror(number)}\n"


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    real = os.scandir

    def scandir(path):  # as of a folder of another user, which root does not meet
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    for name in ("closed", "open", ".closed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    assert [path.name for path in files.visible(tmp_path)] == ["closed", "open"]
    for folder, pattern in ((tmp_path / "closed", "*"), (tmp_path, "**/*")):
        with pytest.raises(UserError, match=r"cannot read .*/closed: Permission denied"):
            files.visible(folder, pattern)


def test_version(capsys):
    assert command_line.main(["--version"]) == 0
    assert capsys.readouterr().out == f"prune-jax {prune_jax.__version__}\n"


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_windows_is_refused_with_a_sentence(name, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "win32")
        assert command_line.main([name, "--help"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{name}: the program needs") and said.err.count("\n") == 1 and not said.out


def test_no_such_command(capsys):
    assert command_line.main(["prune"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("prune-jax: there is no command 'prune'; allowed: train, evaluate, ") and said.count("\n") == 1
    )


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_help_comes_before_anything_heavy(name):
    """Nothing heavier than jax, which the options of the methods are declared with."""
    heavy = tuple(module for module in HEAVY if module not in ("jax", "optax", "ml_collections"))
    code = (
        "import json, sys; from prune_jax import __main__\n"
        "try:\n    code = __main__.main([sys.argv[1], '--help'])\n"
        "except SystemExit as error:\n    code = error.code\n"
        f"print(json.dumps([code, [name for name in {heavy} if name in sys.modules]]))"
    )
    said = python(code, name)
    assert json.loads(said.splitlines()[-1]) == [0, []]
    assert f"prune-jax {name} " in said


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("train", ["--config.train.epochs=25", "--config.spt.epsilon=None", "--config.report.project=prune_jax"]),
        ("evaluate", ["(default: final)"]),
        ("predict", ["(default: final)", "(default: 64)"]),
        ("export", ["(default: final)", "(default: hf)"]),
        ("compress", ["(default: final)", "(default: 4, and 0 for a quantised checkpoint)", "(default: 0)"]),
        ("sweep", ["(default: results_sweep)", "(default: 60)", "(default without --config: 25)", "0.99)"]),
        ("compare", ["(default: comparison)"]),
        ("average", ["(default: best)"]),
        ("search", ["(default: 30)", "(default: 0.98)", "(default: 5000)"]),
        ("snapshot", ["(default: snapshots)"]),
    ],
)
def test_defaults_are_told(name, defaults, capsys):
    try:
        command_line.main([name, "--help"])
    except SystemExit as error:
        assert error.code == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for text in defaults:
        assert text in said, text


@pytest.mark.parametrize("name", ["evaluate", "export", "compress", "average"])
def test_checkpoints_have_the_same_names_everywhere(name, tmp_path, capsys):
    paths = [str(tmp_path / "run"), str(tmp_path / "out")][: 1 if name == "evaluate" else 2]
    assert command_line.main([name, *paths, "--kind=worst"]) == 2
    said = capsys.readouterr().err
    assert f"{name}: argument --kind: invalid choice: 'worst'" in said and said.count("\n") == 1
    for kind in arguments.KINDS:
        assert kind in said


def test_a_malformed_command_line_is_one_line(capsys):
    for argv, message in (
        (["decompress", "only.pjx"], "decompress: the following arguments are required: OUT_DIR (--help tells more)\n"),
        (["compare"], "compare: the following arguments are required: RUN_DIR (--help tells more)\n"),
        (["export", "a", "b", "--bogus"], "export: unrecognized arguments: --bogus (--help tells more)\n"),
    ):
        assert command_line.main(argv) == 2
        assert capsys.readouterr().err == message


def test_help_leaves_usage_to_argparse():
    parser = arguments.parser("x", "One line.\n\n    prune-jax x A B\n\nA paragraph\nof two lines.\n\nAnother.")
    assert (parser.description, parser.epilog) == ("One line.", "A paragraph\nof two lines.\n\nAnother.")
    with pytest.raises(UserError, match="unrecognized arguments: y"):
        parser.parse_args(["y"])


def test_paths_are_what_a_shell_makes_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS", str(tmp_path))
    parser = arguments.parser("compare", "Compares.")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--out", default="comparison", metavar="DIR")
    args = parser.parse_args(["~/run", "$RESULTS/a", "--out=$RESULTS/b"])
    assert args.runs == [str(Path.home() / "run"), f"{tmp_path}/a"] and args.out == f"{tmp_path}/b"
    for empty, name in ((["", "--out=b"], "RUN_DIR"), (["a", "--out="], "--out")):
        with pytest.raises(UserError, match=f"{name} is ''; allowed: a path"):
            parser.parse_args(empty)
    with pytest.raises(UserError, match=r"--out is '\$NOTHING/b'; the environment variable NOTHING is not set"):
        parser.parse_args(["a", "--out=$NOTHING/b"])

"""The pages are true: links lead somewhere, code runs page by page, commands are understood, examples hold."""

import argparse
import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import prune_jax
from prune_jax import __main__ as commands
from prune_jax import config as config_lib
from prune_jax import methods
from prune_jax.data.glue import PICTURES, TABLES
from prune_jax.errors import UserError
from prune_jax.run import launch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).is_file()),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OUR_WORDS = [page for page in PAGES if page.parent.name != "results"]  # code of result pages takes hours


def named(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> list[tuple[str, str, str, int]]:
    """(language, code, the HTML comment before it or "", number of its first line) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    pattern = r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<language>[\w{}-]*)\n(?P<code>.*?)^```$"
    return [
        (match["language"], match["code"], match["note"] or "", text[: match.start("code")].count("\n") + 1)
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    ]


# Links ----------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    slugs = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slugs.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return slugs


@named(PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"!?\[(?:[^][]|\[[^]]*\])*\]\(([^)\s]+)\)", text)
    for link in links:
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {link}"
        assert path.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {link}; {path.name} has {sorted(anchors(path))}"


def test_every_page_and_picture_is_linked():
    linked = set()
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
            linked.add((page.parent / link).resolve())
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg", ".ipynb")]
    pages = [page for page in PAGES if page.is_relative_to(ROOT / "docs") and page.name != "index.md"]
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    tree = [line for code in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for line in code.split("\n")]
    linked |= {(ROOT / "docs" / f"{line.strip()}.md").resolve() for line in tree}
    assert not {str(path) for path in [*pictures, *pages] if path.resolve() not in linked}


def test_the_drawing_is_what_its_script_draws():
    script = ROOT / "docs" / "draw_concepts.py"
    spec = importlib.util.spec_from_file_location("draw_concepts", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.draw() == script.with_name("concepts.svg").read_text(encoding="utf-8")


# Code -----------------------------------------------------------------------------------------------------------------


def runs(note: str) -> bool:
    """Whether a block is run as it stands; a file is written into a copy of the tree, and run there."""
    if note.startswith("not run:"):
        assert len(note) > 20, "a reason is wanted"
        return False
    return not note.startswith(("file:", "edit:"))


def has_python(page: Path) -> bool:
    return any(language == "python" for language, *_ in blocks(page))


def run_page(page: Path, shell: bool = False) -> None:
    """Runs the Python blocks of a page in order, in the current folder; with `shell`, blocks marked "run", too."""
    namespace = {"__name__": "page"}
    for language, code, note, line in blocks(page):
        if note.startswith("needs: "):
            pytest.importorskip(note.removeprefix("needs: "))
        if language == "python" and runs(note):
            source = "\n" * (line - 1) + code  # tracebacks name the page's own lines
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, str(page), "exec"), namespace)
        elif shell and note == "run":
            for command in command_lines(code):
                words = shlex.split(command.replace("=configs/", f"={ROOT}/configs/"))
                assert words[:2] == ["python", "launch.py"]
                done = subprocess.run([sys.executable, ROOT / "launch.py", *words[2:]], capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@named([page for page in OUR_WORDS if has_python(page)])
def test_code_runs_in_the_order_of_the_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = dict(methods.REGISTRY)
    try:
        run_page(page)
    finally:  # a page may register a method
        methods.REGISTRY.clear()
        methods.REGISTRY.update(known)
        for changed in methods.ON_CHANGE:
            changed()


@pytest.mark.slow
@named([page for page in OUR_WORDS if any(note == "run" for _, _, note, _ in blocks(page))])
def test_marked_commands_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page, shell=True)
    assert list(tmp_path.glob("results_*/summary.json"))


def test_a_block_that_fails_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page)


def edited(text: str, diff: str) -> str:
    """The text with a diff without line numbers applied to it."""
    old = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " -")
    new = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " +")
    assert text.count(old) == 1, f"not there once: {old}"
    return text.replace(old, new)


def copy_with(page: Path, folder: Path) -> Path:
    """A copy of the program with the files and the edits of a page."""
    for name in ("prune_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", folder)
    for _, code, note, _ in blocks(page):
        kind, _, name = note.partition(": ")
        if kind == "file":
            assert not (folder / name).exists()
            (folder / name).write_text(code, encoding="utf-8")
        elif kind == "edit":
            path = folder / name
            path.write_text(edited(path.read_text(encoding="utf-8"), code), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "workdir", "sparsity"), [("new_method", "results_noisy", 0.9), ("new_model", "results_vit", 0.5)]
)
def test_what_a_page_adds_trains_and_prunes(page, workdir, sparsity, tmp_path):
    page = ROOT / "docs" / "how-to" / f"{page}.md"
    folder = copy_with(page, tmp_path / "tree")
    edits = [code for _, code, note, _ in blocks(page) if note.startswith("edit:")]
    added = [line for code in edits for line in code.splitlines() if line.startswith("+")]
    assert len(added) == 1, "one file and one line"
    for language, code, _, _ in blocks(page):
        for command in command_lines(code) if language == "bash" else ():
            argv = shlex.split(command)
            argv = [sys.executable, *(argv[1:] if argv[0] == "python" else ["-m", "prune_jax", *argv[1:]])]
            done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((folder / workdir / "summary.json").read_text())
    assert summary["sparsity"] <= sparsity + 0.01 and summary["sparsity"] > sparsity / 2
    assert summary["final_metric"] > 0.2  # chance is 0.1


# Commands -------------------------------------------------------------------------------------------------------------


def command_lines(code: str) -> list[str]:
    """The commands of a shell block: joined where a backslash ends a line, without comments and optional parts."""
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    lines = [re.sub(r"\s#.*|^#.*", "", line).strip() for line in lines]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [re.sub(r"\[[^]]*\]", "", part) for part in parts if part]


def adds_files(page: Path) -> bool:
    return any(note.startswith("file:") for _, _, note, _ in blocks(page))


def documented_commands():
    for page in PAGES:
        if adds_files(page):  # its commands are run, with the files
            continue
        for language, code, _, line in blocks(page):
            for command in command_lines(code) if language in ("", "bash", "sh") else ():
                if re.match(r"python launch\.py|prune-jax|python -m benchmarks", command):
                    yield pytest.param(command, id=f"{page.stem}:{line}:{command[:60]}")


class _Parsed(Exception):
    """The command line was understood: (known, unknown)."""


@pytest.fixture
def parses(monkeypatch):
    """Makes every ArgumentParser stop with _Parsed once it has read its arguments."""
    read = argparse.ArgumentParser.parse_known_args

    def parse_known(self, args=None, namespace=None):
        raise _Parsed(*read(self, args, namespace))

    def parse(self, args=None, namespace=None):
        known, unknown = read(self, args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise _Parsed(known, unknown)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


PLACEHOLDERS = {
    "METHOD": "magnitude",
    "SEED": "1",
    "TASK": "rte",
    "SOURCE": "idx",
    "KEY LOW HIGH": "sws.tau 0.1 1",
    "PATH_OR_HUB_ID": "results_dense",
}


def launched(words: list[str]) -> None:
    """Reads the flags of a run, and resolves its config.

    Folders of data are made; those of earlier runs, which a config would follow, are left out.
    """
    config, _ = launch.parse(words)
    config.model.init_from = ""
    if config.data.dir:
        Path(config.data.dir).mkdir(exist_ok=True)
    if config.data.source in PICTURES:
        Path(config.data.train).mkdir(exist_ok=True)
    elif config.data.source in TABLES:
        Path(config.data.train).touch()
    config_lib.resolve(config, {})


def shell_words(command: str) -> list[str]:
    """The words that a shell makes of a command: quotes, braces, variables and patterns are its business."""
    done = subprocess.run(["bash", "-c", f"set -- {command}\nprintf '%s\\0' \"$@\""], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("command", documented_commands())
def test_a_documented_command_is_understood(command, tmp_path, monkeypatch, parses):
    for word, value in PLACEHOLDERS.items():
        command = re.sub(rf"\b{word}\b", value, command)
    monkeypatch.chdir(tmp_path)
    words = shell_words(command.replace("=configs/", f"={ROOT}/configs/"))
    if words[0] == "python" and words[1] == "launch.py":
        return launched(words[2:])
    if words[0] == "prune-jax" and words[1] == "train":
        return launched(words[2:])
    with pytest.raises(_Parsed) as parsed:
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[2:])
            importlib.import_module(words[2]).main()
        assert words[1] in commands.COMMANDS
        importlib.import_module(commands.COMMANDS[words[1]]).main(words[2:])
    known, unknown = parsed.value.args
    if words[1] == "search":
        launched(unknown)
    else:
        assert not unknown
    if words[1] == "sweep":
        keys = [pair.partition("=")[0] for pair in known.set]
        assert set(keys) <= set(config_lib.leaves(config_lib.default()))


def test_words_are_the_shells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results_a").touch()
    assert shell_words("x '--a=(1, 2)' \"b c\" results_*") == ["x", "--a=(1, 2)", "b c", "results_a"]
    with pytest.raises(AssertionError):
        shell_words("x --a=(1,2)")


def test_a_command_that_is_not_understood_fails(tmp_path, monkeypatch, parses):
    for command in ("prune-jax compress", "prune-jax export a b --sideways", "python launch.py --config=configs/no.py"):
        with pytest.raises((SystemExit, UserError, FileNotFoundError)):
            test_a_documented_command_is_understood(command, tmp_path, monkeypatch, parses)


# Docstrings -----------------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    return [
        module.name
        for module in pkgutil.walk_packages(prune_jax.__path__, "prune_jax.")
        if module.name not in ("prune_jax.__main__", "prune_jax.export.modeling_shrunk_bert")  # the latter is torch's
    ]


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_docstrings_hold(name):
    module = importlib.import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, said = doctest.DocTestRunner(optionflags=options), io.StringIO()
    scope = {"jax": jax, "jnp": jnp, "optax": optax, "pj": prune_jax}
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=scope):
        runner.run(test, out=said.write)
    assert not runner.failures, said.getvalue()


def test_what_a_user_calls_has_an_example():
    without = [
        name
        for name in prune_jax.__all__
        if inspect.isroutine(thing := getattr(prune_jax, name)) and ">>>" not in (thing.__doc__ or "")
    ]
    assert not without

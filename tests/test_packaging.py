"""What pip installs: declared needs, package data, and versions that agree."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from test_house import CORE, MODULES, PACKAGE, graph

import prune_jax
from prune_jax import __main__ as command_line

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORTED_AS = {  # distribution: its module, where that has another name
    "absl-py": "absl",
    "mlflow-skinny": "mlflow",
    "orbax-checkpoint": "orbax",
    "pytest-xdist": "xdist",
    "scikit-learn": "sklearn",
    "myst-parser": "myst_parser",
}
BROUGHT = {"PIL": "matplotlib"}  # module: the package whose own need it is


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def modules_of(requirements):
    names = {name_of(one) for one in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


def requirements_txt():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_txt_is_the_program_and_its_tests():
    listed = requirements_txt()
    assert len(listed) == len(set(map(name_of, listed)))
    program = {*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["hf"]}
    assert program <= set(listed)
    assert set(listed) - program <= set(EXTRAS["dev"])


def test_all_is_every_extra_but_the_one_that_holds_another_back():
    (everything,) = EXTRAS["all"]
    inner = re.fullmatch(r"prune-jax\[(.*)\]", everything)[1].split(",")
    assert sorted(inner) == sorted(EXTRAS.keys() - {"all", "onnx"})
    bounds = {}
    for extra in inner:
        for requirement in EXTRAS[extra]:
            assert bounds.setdefault(name_of(requirement), requirement) == requirement  # one bound per package


def third_party(targets):
    return {name for name in targets if not name.startswith("prune_jax") and name not in sys.stdlib_module_names}


def test_every_import_is_declared():
    declared = modules_of([*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)])
    for module, targets in MODULES.items():
        missing = {BROUGHT.get(name, name) for name in third_party(targets)} - declared
        assert not missing, module


@pytest.mark.parametrize("room", [*sorted(CORE), "compress", "errors", "files", "__init__", "__main__"])
def test_the_library_needs_nothing_beyond_its_dependencies(room):
    """Imports inside functions are left out: who hands the library a flax module has flax."""
    allowed = modules_of(PROJECT["dependencies"])
    for module, targets in graph(PACKAGE, inside_functions=False).items():
        if module.split(".")[1] == room:
            assert third_party(targets) <= allowed, module


def test_the_library_is_imported_without_the_extras():
    """Every module of the library, the codecs among it, with all that the extras bring out of reach."""
    rooms = [*CORE, "compress"]
    modules = [name.removesuffix(".__init__") for name in MODULES if name.split(".")[1] in rooms]
    absent = modules_of(one for extra in EXTRAS.values() for one in extra) - modules_of(PROJECT["dependencies"])
    absent -= {"absl", "scipy"}  # optax's own need, and jax's
    code = (
        "import importlib, sys\n"
        f"sys.modules |= dict.fromkeys({sorted(absent)})\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "import prune_jax as pj; print([getattr(pj, name) is None for name in pj.__all__].count(True))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == prune_jax.__version__
    first = re.search(r"^## (\d.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert first == prune_jax.__version__
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(("module", "extra"), sorted(command_line._EXTRAS.items()))
def test_an_absent_package_is_named_with_its_extra(module, extra, monkeypatch, capsys):
    assert module in modules_of(EXTRAS[extra])

    class Absent:
        @staticmethod
        def main(argv):
            raise ModuleNotFoundError(f"No module named '{module}.inner'", name=f"{module}.inner")

    monkeypatch.setitem(sys.modules, "absent", Absent)
    assert command_line.run("absent", [], "train") == 2
    assert capsys.readouterr().err == f"train: {module} is not installed: pip install 'prune-jax[{extra}]'\n"


def test_a_fault_of_our_own_is_not_taken_for_an_absent_package(monkeypatch):
    class Wrong:
        @staticmethod
        def main(argv):
            import prune_jax.gone  # noqa: F401

    monkeypatch.setitem(sys.modules, "wrong", Wrong)
    with pytest.raises(ModuleNotFoundError, match=r"prune_jax\.gone"):
        command_line.run("wrong", [], "train")


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    """Built from a copy: setuptools leaves its build folder beside the sources."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "prune_jax", copy / "prune_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    files = {path.relative_to(copy).as_posix() for path in (copy / "prune_jax").rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path / "dist"), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"prune_jax-{prune_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
        (points,) = (name for name in opened.namelist() if name.endswith("entry_points.txt"))
        assert "prune-jax = prune_jax.__main__:command\n" in opened.read(points).decode()
    assert held == files

"""The house: who imports whom. Imports inside functions count; those for a type checker alone do not."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "prune_jax"
TOP = {"__init__", "__main__", "errors", "files"}

# room: the rooms that it may import. A room that is not here must be put in its place first.
ARROWS = {
    "pruning": set(),
    "graph": {"pruning"},
    "methods": {"pruning", "graph"},
    "oneshot": {"pruning", "graph", "methods"},
    "models": {"pruning", "graph"},
    "data": set(),
    "config": {"pruning", "methods", "data", "models"},
    "export": {"pruning", "graph", "methods", "models"},
    "compress": {"pruning", "graph", "methods"},
    "report": {"config"},
    "run": {"pruning", "graph", "methods", "oneshot", "models", "data", "config", "export", "compress", "report"},
    "sweep": {"methods", "config", "report", "run"},
    "tools": {"pruning", "run"},
}
CORE = {"pruning", "graph", "methods", "oneshot"}


def module_of(path: Path, package: Path) -> str:
    """prune_jax.run.train, of prune_jax/run/train.py; a package's own file is prune_jax.run.__init__."""
    return ".".join([package.name, *path.relative_to(package).with_suffix("").parts])


class Imports(ast.NodeVisitor):
    """The modules that a file imports, as (module, name) pairs of what is written; name is None for a plain import."""

    def __init__(self, module: str, inside_functions: bool = True):
        self.parent, self.found, self.inside_functions = module.split(".")[:-1], [], inside_functions

    def visit_FunctionDef(self, node):
        if self.inside_functions:
            self.generic_visit(node)

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found += [(alias.name, None) for alias in node.names]

    def visit_ImportFrom(self, node):
        base = self.parent[: len(self.parent) - node.level + 1] if node.level else []
        module = ".".join([*base, *filter(None, [node.module])])
        self.found += [(module, alias.name) for alias in node.names]


def graph(package: Path, inside_functions: bool = True) -> dict[str, set[str]]:
    """module -> the modules of the package that it imports, by file; and the first names of all others."""
    files = {module_of(path, package): path for path in sorted(package.rglob("*.py"))}
    modules: dict[str, set[str]] = {}
    for module, path in files.items():
        visitor = Imports(module, inside_functions)
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        targets = set()
        for name, inner in visitor.found:
            if name.split(".")[0] != package.name:
                targets.add(name.split(".")[0])
                continue
            candidates = [f"{name}.{inner}", f"{name}.{inner}.__init__", name, f"{name}.__init__"]
            targets.add(next(candidate for candidate in candidates if candidate in files))
        modules[module] = targets - {module}
    return modules


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle among the keys, as a list that ends where it begins; empty where there is none."""
    inner = {name: targets & arrows.keys() for name, targets in arrows.items()}
    try:
        graphlib.TopologicalSorter(inner).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def rooms(modules: dict[str, set[str]]) -> dict[str, set[str]]:
    """room -> the rooms that its files import. A file at the top is a room of its own."""
    found: dict[str, set[str]] = {}
    for module, targets in modules.items():
        room = module.split(".")[1]
        inner = {target.split(".")[1] for target in targets if target in modules}
        found.setdefault(room, set()).update(inner - {room})
    return found


MODULES = graph(PACKAGE)


def test_no_file_imports_itself_in_a_circle():
    assert circle(MODULES) == []


def test_no_room_imports_itself_in_a_circle():
    assert circle(rooms(MODULES)) == []


@pytest.mark.parametrize("room", sorted(set(rooms(MODULES)) - TOP))
def test_arrows_point_one_way(room):
    assert room in ARROWS, f"{room} has no place in ARROWS"
    allowed = ARROWS[room] | {room, "errors", "files"}
    wrong = [
        (module, target)
        for module, targets in MODULES.items()
        for target in targets & MODULES.keys()
        if module.split(".")[1] == room and target.split(".")[1] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("room", sorted(CORE))
def test_the_core_knows_no_config(room):
    for module, targets in MODULES.items():
        if module.split(".")[1] == room:
            assert not targets & {"ml_collections", "absl"}, module


def test_windows_has_what_the_core_and_the_refusal_import():
    posix = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty"}
    found = {m: targets & posix for m, targets in MODULES.items() if m.split(".")[1] in CORE | TOP}
    assert "prune_jax.__main__" in found and not any(found.values())
    assert MODULES["prune_jax.run.workdir"] & posix  # else there is nothing left to refuse


def test_nothing_imports_the_configs():
    assert [module for module, targets in MODULES.items() if "configs" in targets] == []


def test_four_files_are_at_the_top():
    assert {path.stem for path in PACKAGE.glob("*.py")} <= TOP
    assert {path.parent for path in PACKAGE.rglob("*.py")} == {
        path.parent for path in PACKAGE.rglob("__init__.py")
    }  # else a wheel would leave files out


def test_the_checks_see_what_they_look_for(tmp_path):
    """A small package with a circle inside functions, one through a package's own file, and a relative import."""
    files = {
        "__init__.py": "",
        "a/__init__.py": "from house.a.one import x",
        "a/one.py": "def f():\n    from house.b import two",
        "b/__init__.py": "",
        "b/two.py": "from ..a import x\nimport numpy as np",
        "b/three.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.b import two",
    }
    for name, text in files.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = graph(tmp_path / "house")
    assert found["house.a.one"] == {"house.b.two"} and found["house.b.two"] == {"house.a.__init__", "numpy"}
    assert found["house.b.three"] == {"typing"} and found["house.a.__init__"] == {"house.a.one"}
    assert graph(tmp_path / "house", inside_functions=False)["house.a.one"] == set()
    assert set(circle(found)) == {"house.a.one", "house.b.two", "house.a.__init__"}
    assert set(circle(rooms(found))) == {"a", "b"}
    del found["house.a.one"]
    assert circle(found) == []

"""The layout: no circle of imports, rooms import only what CONTRIBUTING's table allows, one file name for one thing."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__"): path
    for path in (ROOT / "stages").rglob("*.py")
    if "hydra_plugins" not in path.parts
}
"""The files of the package by their names without .py, such as stages/lora/loop."""

EVERYWHERE = {"config", "__init__", "__main__"}
"""Names that are plainly the same thing in every room."""


def imports_of(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for name in (name.replace(".", "/") for name in names):
            if name in MODULES and MODULES[name].name != "__init__.py":
                yield name


GRAPH = {name: set(imports_of(path)) - {name} for name, path in MODULES.items()}


def allowed_by_contributing() -> dict[str, set[str]]:
    """CONTRIBUTING's table: for each room the rooms that it may import, beside stages/pipeline and itself."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("| room | holds | may import |") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    rooms = {room.strip("`") for room, _, _ in rows}
    return {
        room.strip("`"): rooms if imported == "every room" else set(re.findall(r"`([^`]+)`", imported))
        for room, _, imported in rows
    }


ALLOWED = allowed_by_contributing()


def room_of(module: str) -> str:
    """The room of a module as the table has it: its longest entry that holds the module."""
    return max((room for room in ALLOWED if module == room or module.startswith(f"{room}/")), key=len, default="")


def test_no_circle_of_imports():
    assert list(TopologicalSorter(GRAPH).static_order())


@pytest.mark.parametrize("module", sorted(name for name in MODULES if "/" in name.removeprefix("stages/")))
def test_rooms_import_only_what_the_table_allows(module):
    room = room_of(module)
    assert room, f"{module} is in no room of CONTRIBUTING's table"
    for imported in sorted(GRAPH[module]):
        other = room_of(imported)
        assert other, f"{module} imports the stage {imported}: rooms import no stage"
        given = ALLOWED[room] | {room, "stages/pipeline", "stages/pipeline/hub"}
        assert other in given or imported in given, f"{module} imports {imported}: {room} may import {sorted(ALLOWED[room])}"


@pytest.mark.parametrize("module", sorted(name for name in MODULES if "/" not in name.removeprefix("stages/")))
def test_no_stage_imports_another(module):
    others = {name for name in MODULES if "/" not in name.removeprefix("stages/") and name != "stages"}
    assert not GRAPH[module] & others


def test_a_file_name_stands_for_one_thing():
    names = Counter(path.stem for path in MODULES.values())
    assert [name for name, count in names.items() if count > 1 and name not in EVERYWHERE] == []


def test_no_test_module_imports_from_another():
    importing = re.compile(r"^\s*(?:from|import) tests[\w.]*\btest_", re.MULTILINE)
    assert [path.name for path in (ROOT / "tests").rglob("test_*.py") if importing.search(path.read_text())] == []


def test_every_stage_has_its_tests():
    stages = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert {name for name in stages if not (ROOT / "tests" / f"test_{name}.py").is_file()} == set()

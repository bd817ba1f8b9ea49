"""A file of course_lib imports from its own floor or below, never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import course_lib

LIBRARY = Path(course_lib.__file__).parent

# The table of the architecture; a folder stands for everything in it.
FLOORS = {
    1: ["validation.py", "spatial.py"],
    2: ["losses.py", "local_ncc.py", "metrics.py", "mind.py"],
    3: ["models/", "weights/", "classical/", "optimise.py", "landscapes.py"],
    4: [
        *("data/", "datasets/", "io.py", "volumes.py", "plotting.py", "drawing.py"),
        *("training.py", "evaluation.py"),
    ],
    5: ["widgets/", "runtime.py", "doctor/"],
    6: ["checks/"],
}


def floor_of(file: str) -> int | None:
    """The floor of a path such as ``classical/affine.py``; None if the table does not know it."""
    for floor, entries in FLOORS.items():
        for entry in entries:
            if file == entry or (entry.endswith("/") and file.startswith(entry)):
                return floor
    return None


def module_name(file: str) -> str:
    parts = ["course_lib", *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_below(folder: Path) -> dict[str, str]:
    """``{module: file}`` of everything but ``course_lib/__init__.py``."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.py"))
    return {module_name(file): file for file in files if file != "__init__.py"}


def imported_names(source: str, module: str, is_package: bool) -> set[str]:
    """Every dotted name that the source may import, whether at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = node.level - 1 if is_package else node.level
                base = ".".join(filter(None, [*parts[: len(parts) - up], base]))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            argument = node.args[0]
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                names.add(str(argument.value))
    return names


def imports_of(folder: Path) -> dict[str, set[str]]:
    """``{file: files that it imports}``, inside course_lib."""
    modules = files_below(folder)
    found: dict[str, set[str]] = {}
    for module, file in modules.items():
        names = imported_names(
            (folder / file).read_text(encoding="utf-8"), module, file.endswith("__init__.py")
        )
        if "course_lib.setup" in names:  # what the lazy course_lib/__init__.py hands out
            names.add("course_lib.runtime")
        found[file] = {modules[name] for name in names if name in modules} - {file}
    return found


def unknown_files(folder: Path) -> list[str]:
    return [file for file in files_below(folder).values() if floor_of(file) is None]


def upward_imports(folder: Path) -> list[str]:
    return [
        f"{file} (floor {floor_of(file)}) imports {other} (floor {floor_of(other)})"
        for file, others in imports_of(folder).items()
        for other in sorted(others)
        if (floor_of(other) or 0) > (floor_of(file) or 0)
    ]


def circles(folder: Path) -> list[str]:
    graph = imports_of(folder)
    found: list[str] = []
    done: set[str] = set()

    def visit(file: str, path: list[str]) -> None:
        if file in path:
            found.append(" → ".join([*path[path.index(file) :], file]))
        elif file not in done:
            for other in sorted(graph[file]):
                visit(other, [*path, file])
            done.add(file)

    for file in graph:
        visit(file, [])
    return found


def test_every_file_has_a_floor():
    assert unknown_files(LIBRARY) == [], "add it to the table of the architecture, and here"


def test_nobody_imports_from_a_floor_above():
    assert upward_imports(LIBRARY) == []


def test_nobody_imports_in_a_circle():
    assert circles(LIBRARY) == []


def test_the_reader_of_imports_sees_the_real_ones():
    found = imports_of(LIBRARY)
    assert "validation.py" in found["spatial.py"]
    assert {"losses.py", "spatial.py"} <= found["classical/affine.py"]
    assert {"datasets/__init__.py", "io.py"} <= found["datasets/brains.py"]


def test_importing_course_lib_is_light():
    code = (
        "import sys, course_lib; assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules);"
        "assert not hasattr(course_lib, 'nothing')"
    )
    folder = str(LIBRARY.parent)
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}"], check=True
    )


# ---------------------------------------------------------- the test finds what it is there for


def library(folder: Path, files: dict[str, str]) -> Path:
    for name, source in {"__init__.py": "", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "source",
    [
        "from course_lib.io import load_nifti",
        "from course_lib import io",
        "import course_lib.io",
        "import course_lib.io as files",
        "from . import io",
        "from .io import load_nifti",
        "def late():\n    from course_lib.io import load_nifti",
        "import importlib\nimportlib.import_module('course_lib.io')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from course_lib.io import Volume",
    ],
)
def test_an_import_from_above_is_found_in_every_spelling(tmp_path, source):
    folder = library(tmp_path, {"spatial.py": source, "io.py": ""})
    assert upward_imports(folder) == ["spatial.py (floor 1) imports io.py (floor 4)"]


def test_relative_imports_in_folders_are_followed(tmp_path):
    files = {
        "classical/__init__.py": "from .affine import register",
        "classical/affine.py": "from ..datasets import Pair",
        "datasets/__init__.py": "",
    }
    expected = ["classical/affine.py (floor 3) imports datasets/__init__.py (floor 4)"]
    assert upward_imports(library(tmp_path, files)) == expected


def test_setup_belongs_to_runtime(tmp_path):
    files = {"losses.py": "from course_lib import setup", "runtime.py": ""}
    assert upward_imports(library(tmp_path, files)) == [
        "losses.py (floor 2) imports runtime.py (floor 5)"
    ]


def test_a_circle_on_one_floor_is_found(tmp_path):
    files = {
        "plotting.py": "from course_lib import drawing",
        "drawing.py": "def late():\n    import course_lib.evaluation",
        "evaluation.py": "from course_lib.plotting import show",
    }
    folder = library(tmp_path, files)
    assert upward_imports(folder) == []
    assert circles(folder) == ["drawing.py → evaluation.py → plotting.py → drawing.py"]


def test_a_file_without_a_floor_is_found(tmp_path):
    folder = library(tmp_path, {"spatial.py": "", "helpers.py": "", "models/registry.py": ""})
    assert unknown_files(folder) == ["helpers.py"]

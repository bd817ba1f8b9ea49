"""Digests that tell what the outputs of a notebook were made from."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from nbformat import NotebookNode

from authoring.masters import parse

LIBRARY = "course_lib"
# Whoever imports a module of the first also reads the files of the second.
DATA_OF = {f"{LIBRARY}.datasets": "data", f"{LIBRARY}.models": "weights"}


def code_of(notebook: NotebookNode) -> list[str]:
    """The sources that decide the outputs: code cells, apart from the bootstrap cell."""
    cells = enumerate(notebook.cells)
    return [cell.source for index, cell in cells if cell.cell_type == "code" and index != 1]


def master_digest(notebook: NotebookNode) -> str:
    """A digest of the notebook's code: prose may change without running anything again."""
    return digest(code_of(notebook))


def library_digest(notebook: NotebookNode, root: Path) -> str:
    """A digest of the `course_lib` files that the notebook's code imports, transitively.

    Python files count by their syntax trees without docstrings and comments; shipped data count
    by their bytes as soon as a module that reads such data is among the imports.

    Args:
        notebook: its code cells are read.
        root: the folder that holds `course_lib`.
    """
    modules = imported_modules((parse(source) for source in code_of(notebook)), root)
    parts = [f"{name}\n{bare_code(text)}" for name, text in sorted(modules.items())]
    for reader, folder in DATA_OF.items():
        if any(name == reader or name.startswith(f"{reader}.") for name in modules):
            parts += [f"{path.name}\n{hash_of(path)}" for path in data_files(root, folder)]
    return digest(parts)


def digest(parts: Iterable[str]) -> str:
    """A short digest of a sequence of texts."""
    joined = b"".join(f"{len(part)}:{part}".encode() for part in parts)
    return hashlib.sha256(joined).hexdigest()[:16]


def data_files(root: Path, folder: str) -> list[Path]:
    """The files in a data folder of the library that programs read, notices left out."""
    files = (root / LIBRARY / folder).rglob("*")
    return sorted(p for p in files if p.is_file() and p.suffix not in {".md", ".py", ".pyc"})


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache  # by text: every notebook imports much the same files
def bare_code(text: str) -> str:
    """Python code without docstrings, comments and layout."""
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)  # more alike between versions of Python than ast.dump


def imported_modules(trees: Iterable[ast.Module], root: Path) -> dict[str, str]:
    """The text of each module of the library that some code imports, directly or not, by name."""
    waiting = [name for tree in trees for name in mentioned(tree, package="")]
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        path = None if name in found else module_file(name, root)
        if path is None:
            continue
        found[name] = path.read_text("utf-8")
        parent = name.rpartition(".")[0]
        package = name if path.name == "__init__.py" else parent
        waiting += [parent, *mentioned_in(found[name], package)]
    return found


@cache
def mentioned_in(text: str, package: str) -> frozenset[str]:
    """What `mentioned` finds in a module's text."""
    return frozenset(mentioned(ast.parse(text), package))


def mentioned(tree: ast.Module, package: str) -> Iterator[str]:
    """Names in the library that a piece of code may import; some are not modules.

    Strings count too: `import_module("course_lib.runtime")` is how `course_lib` loads lazily.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from (stem, *(f"{stem}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def module_file(name: str, root: Path) -> Path | None:
    """The file of a module of the library; None for any other name."""
    parts = name.split(".")
    if parts[0] != LIBRARY or not all(part.isidentifier() for part in parts):
        return None
    path = root.joinpath(*parts)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)

"""Reading a master: its cells, where they stand, and what is refused."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode

from authoring.layout import BuildError

# nbgrader looks for these words anywhere in a line, in cells of any kind.
BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"
EXPECTED_FAILURE = "raises-exception"
COVER = "cover"
OWN_METADATA = {"points", "tags"}
JUPYTEXT_METADATA = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}


@dataclass(frozen=True)
class Cell:
    """One cell of a master, and where it stands there."""

    node: NotebookNode
    file: str
    line: int
    number: int

    def error(self, text: str, line: int = 1) -> BuildError:
        """An error that names file, line and cell; `line` counts within the cell, from 1."""
        return BuildError(f"{self.file}:{self.line + line - 1}: cell {self.number}: {text}")

    @property
    def is_code(self) -> bool:
        """Whether it is a code cell."""
        return bool(self.node.cell_type == "code")

    @property
    def is_answer(self) -> bool:
        """Whether a learner writes a part of it."""
        return BEGIN in self.node.source

    def tree(self) -> ast.Module:
        """Its syntax tree, magics transformed; an error names the line."""
        try:
            return parse(self.node.source)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            text = getattr(error, "msg", None) or str(error)
            raise self.error(f"syntax error: {text}", line) from error


def parse(source: str) -> ast.Module:
    """The syntax tree of a cell's code, in which IPython's magics are allowed."""
    from IPython.core.inputtransformer2 import TransformerManager

    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    with warnings.catch_warnings():  # "invalid escape sequence": the kernel says it again
        warnings.simplefilter("ignore")
        code = TransformerManager().transform_cell(source)
        tree = compile(code, "cell", "exec", flags, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


def read(path: Path, name: str) -> list[Cell]:
    """The cells of a master, each valid by itself.

    Args:
        path: a file in py:percent format.
        name: what messages call it.
    """
    try:
        text = path.read_text("utf-8")
        nodes = jupytext.reads(text, fmt="py:percent").cells
    except Exception as error:  # jupytext passes on whatever its parsers raise
        raise BuildError(f"{name}:1: cannot be read: {error}") from error
    starts = cell_lines(text)
    if len(starts) != len(nodes):
        raise BuildError(
            f"{name}:1: {len(nodes)} cells but {len(starts)} lines that begin with `# %%`: "
            "every cell needs such a line, the first one too, and no string may hold one"
        )
    cells = []
    for number, (node, line) in enumerate(zip(nodes, starts, strict=True), 1):
        node.source = node.source.strip("\n")
        node.metadata = NotebookNode(
            {key: value for key, value in node.metadata.items() if key not in JUPYTEXT_METADATA}
        )
        cells.append(Cell(node, name, line, number))
    if not cells or cells[0].is_code or not cells[0].node.source.startswith("# "):
        raise BuildError(f"{name}:1: cell 1: a markdown cell with the title (`# …`) was expected")
    for cell in cells:
        refuse_malformed(cell)
    return cells


def cell_lines(text: str) -> list[int]:
    """The line, counted from 1, on which the text of each cell begins."""
    lines = text.splitlines()
    markers = [index for index, line in enumerate(lines) if re.match(r"#\s*%%", line)]
    starts = []
    for marker, end in zip(markers, [*markers, len(lines)][1:], strict=True):
        filled = (index for index in range(marker + 1, end) if lines[index].strip())
        starts.append(next(filled, marker) + 1)
    return starts


def refuse_malformed(cell: Cell) -> None:
    """What is wrong in any cell of any master."""
    metadata = dict(cell.node.metadata)
    if "incorrectly_encoded_metadata" in metadata:
        text = metadata["incorrectly_encoded_metadata"]
        raise cell.error(f"`{text}` on its `# %%` line is not a number or another JSON value")
    if unknown := sorted(set(metadata) - OWN_METADATA):
        raise cell.error(f"`{unknown[0]}` on its `# %%` line: only points and tags may stand there")
    if EXPECTED_FAILURE in metadata.get("tags", []):
        raise cell.error(f"the tag {EXPECTED_FAILURE} is the build's, for checks in blanks only")
    if not cell.node.source.strip():
        raise cell.error("is empty")
    if cell.is_code:
        cell.tree()
    elif marker := marker_line(cell):
        raise cell.error("a solution marker outside a code cell", marker)


def marker_line(cell: Cell) -> int:
    """The first line of a cell, from 1, that holds a solution marker; 0 if there is none."""
    lines = enumerate(cell.node.source.splitlines(), 1)
    return next((number for number, line in lines if BEGIN in line or END in line), 0)


def read_lesson(path: Path, name: str) -> list[Cell]:
    """The cells of a lesson, which neither asks for answers nor gives points."""
    cells = read(path, name)
    for cell in cells:
        if line := marker_line(cell):
            raise cell.error("a solution marker in a lesson: it belongs in the exercise", line)
        if "points" in cell.node.metadata:
            raise cell.error("points in a lesson: they belong in the exercise")
    refuse_wrong_cover(cells, name)
    return cells


def refuse_wrong_cover(cells: list[Cell], name: str) -> None:
    """Under a lesson's title stands one picture, made by one of its code cells."""
    tagged = [cell for cell in cells if is_cover(cell)]
    if not tagged:
        raise BuildError(
            f'{name}:1: no cover: write `# %% tags=["{COVER}"]` above the code cell whose first '
            "picture shows best what the reader will have built; it will stand under the title"
        )
    if not tagged[0].is_code:
        raise tagged[0].error(f"is tagged {COVER}, but only a code cell makes a picture")
    if len(tagged) > 1:
        raise tagged[1].error(f"is tagged {COVER}, but so is line {tagged[0].line}: choose one")


def is_cover(cell: Cell) -> bool:
    """Whether the first picture of a cell is to stand under the title."""
    return COVER in cell.node.metadata.get("tags", [])


def read_exercise(path: Path, name: str) -> list[Cell]:
    """The cells of an exercise, with nbgrader's metadata on answers and checks."""
    cells = read(path, name)
    answers: dict[str, Cell] = {}
    checked: set[str] = set()
    for cell in cells:
        if is_cover(cell):
            raise cell.error(f"is tagged {COVER}: only a lesson has a picture under its title")
        if marker_line(cell):
            task = answered_task(cell)
            if task in answers:
                raise cell.error(f"task {task} was there already, on line {answers[task].line}")
            answers[task] = cell
            cell.node.metadata["nbgrader"] = nbgrader_metadata(task, solution=True)
        elif target := checked_task(cell):
            if target not in answers:
                raise cell.error(f"checks {target}, but no cell above answers a task of that name")
            if target in checked:
                raise cell.error(f"checks {target} a second time")
            checked.add(target)
            points = cell.node.metadata.pop("points")
            cell.node.metadata["nbgrader"] = nbgrader_metadata(f"check_{target}", points=points)
    for task, cell in answers.items():
        if task not in checked:
            wanted = f"`# %% points=1` and `check.{task}({task})`"
            raise cell.error(f"no check cell for {task}: {wanted} were expected below")
    return cells


def answered_task(cell: Cell) -> str:
    """The task that an answer cell is for: the name of its one top-level function."""
    functions = [node for node in cell.tree().body if isinstance(node, ast.FunctionDef)]
    if len(functions) != 1:
        names = ", ".join(function.name for function in functions) or "none"
        raise cell.error(f"an answer cell defines one top-level function, this one: {names}")
    first, last = functions[0].lineno, functions[0].end_lineno or 0
    opened = 0
    for number, line in enumerate(cell.node.source.splitlines(), 1):
        if BEGIN in line:
            if opened:
                raise cell.error("BEGIN SOLUTION again before END SOLUTION", number)
            if not first < number < last:  # elsewhere, the blank would raise at top level
                raise cell.error("BEGIN SOLUTION must stand inside the function", number)
            opened = number
        elif END in line:
            if not opened:
                raise cell.error("END SOLUTION without BEGIN SOLUTION", number)
            opened = 0
    if opened:
        raise cell.error("BEGIN SOLUTION without END SOLUTION", opened)
    if "points" in cell.node.metadata:
        raise cell.error("points belong on the check cell, not on the answer")
    return functions[0].name


def checked_task(cell: Cell) -> str | None:
    """The task that a cell checks by `check.name(name)`; None if it is not a check cell."""
    calls = check_calls(cell.tree()) if cell.is_code else []
    if "points" not in cell.node.metadata:
        if calls:
            raise cell.error(f"calls check.{calls[0][0]} but has no points (`# %% points=1`)")
        return None
    points = cell.node.metadata["points"]
    if isinstance(points, bool) or not isinstance(points, int | float) or points <= 0:
        raise cell.error(f"points={points}: a positive number was expected")
    if len(calls) != 1 or calls[0][1] != calls[0][0]:
        raise cell.error("has points, so one call `check.name(name)` was expected in it")
    return calls[0][0]


def check_calls(tree: ast.Module) -> list[tuple[str, str]]:
    """Every `check.name(argument)` in a cell, as `(name, argument)` in source form."""
    return [
        (node.func.attr, ", ".join(map(ast.unparse, [*node.args, *node.keywords])))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "check"
    ]


def nbgrader_metadata(
    grade_id: str, *, solution: bool = False, points: float | None = None
) -> NotebookNode:
    """What nbgrader wants to know about an answer (`solution`) or a check (`points`)."""
    grade = points is not None
    metadata: dict[str, Any] = {
        "grade": grade,
        "grade_id": grade_id,
        "locked": grade,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }
    return NotebookNode(metadata | ({"points": points} if grade else {}))

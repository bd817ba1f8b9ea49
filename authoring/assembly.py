"""From the masters of a slug to its three notebooks, without their outputs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from authoring.bootstrap import bootstrap
from authoring.layout import BuildError, Layout
from authoring.masters import BEGIN, END, EXPECTED_FAILURE, Cell, read_exercise, read_lesson

# No version numbers: they would change the notebooks on every machine.
NOTEBOOK_METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


@dataclass(frozen=True)
class Target:
    """One notebook as it has to be, without its outputs.

    Args:
        path: where it belongs.
        node: the notebook.
        master: the name of its master, for messages.
        cells: the cells of the master, by the id that they have in the notebook.
        runs: whether it is stored with outputs.
    """

    path: Path
    node: NotebookNode
    master: str
    cells: dict[str, Cell]
    runs: bool


def slugs(layout: Layout) -> list[str]:
    """Every slug that has a master, of either kind."""
    folders = (layout.lessons, layout.exercises)
    return sorted({path.stem for folder in folders for path in folder.glob("*.py")})


def targets(layout: Layout, slug: str) -> list[Target]:
    """The three notebooks of one slug: lesson, solution and blank."""
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", slug):
        raise BuildError(f"{slug}.py: a master is called NN_slug.py, as 11_displacement_fields.py")
    for kind, path in (("lesson", layout.lessons), ("exercise", layout.exercises)):
        if not (path / f"{slug}.py").exists():
            raise BuildError(f"{layout.name(path)}/{slug}.py:1: {slug} has no {kind} master")
    address = layout.repository()
    lesson, exercise = layout.lessons / f"{slug}.py", layout.exercises / f"{slug}.py"
    lesson_cells = read_lesson(lesson, layout.name(lesson))
    exercise_cells = read_exercise(exercise, layout.name(exercise))
    plan = [
        ("notebooks", lesson, lesson_cells, assemble(lesson_cells, address)),
        ("solutions", exercise, exercise_cells, assemble(exercise_cells, address)),
        ("exercises", exercise, exercise_cells, blank(assemble(exercise_cells, address), exercise)),
    ]
    result = []
    for folder, master, cells, node in plan:
        path = layout.notebook(folder, slug)
        add_badge(node, address, layout.name(path))
        nbformat.validate(node)
        own = [cell.id for index, cell in enumerate(node.cells) if index != 1]
        by_id = dict(zip(own, cells, strict=True))
        result.append(Target(path, node, layout.name(master), by_id, folder != "exercises"))
    return result


def assemble(cells: list[Cell], address: str) -> NotebookNode:
    """The notebook of some cells: bootstrap cell, metadata and ids added."""
    nodes = [deepcopy(cell.node) for cell in cells]
    nodes.insert(1, nbformat.v4.new_code_cell(bootstrap(address)))
    used: Counter[str] = Counter()
    for node in nodes:
        grade_id = node.metadata.get("nbgrader", {}).get("grade_id")
        name = grade_id or hashlib.sha1(node.source.encode()).hexdigest()[:8]
        used[name] += 1
        node.id = name if used[name] == 1 else f"{name}-{used[name]}"
        if node.cell_type == "code":
            node.outputs, node.execution_count = [], None
    notebook = nbformat.v4.new_notebook(cells=nodes, metadata=deepcopy(NOTEBOOK_METADATA))
    notebook.nbformat_minor = 5
    return notebook


def add_badge(node: NotebookNode, address: str, name: str) -> None:
    """A link to Colab under the title; Colab opens repositories on GitHub only."""
    if match := re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", address):
        link = f"https://colab.research.google.com/github/{match[1]}/blob/main/{name}"
        node.cells[0].source += f"\n\n[![Open in Colab]({BADGE})]({link})"


def blank(solution: NotebookNode, master: Path) -> NotebookNode:
    """What a learner gets: nbgrader's own steps, and checks that let "Run all" go on."""
    from nbgrader import preprocessors as step

    chain = [
        step.LockCells,
        step.ClearSolutions,
        step.ClearOutput,
        step.CheckCellMetadata,
        step.ComputeChecksums,
        step.ClearHiddenTests,
        step.ClearMarkScheme,
        step.ComputeChecksums,
        step.CheckCellMetadata,
    ]
    notebook = deepcopy(solution)
    for preprocessor in chain:
        try:
            notebook, _ = preprocessor().preprocess(notebook, {})
        except Exception as error:  # nbgrader raises RuntimeError, ValidationError and others
            raise BuildError(f"{master}:1: nbgrader refuses this exercise: {error}") from error
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), EXPECTED_FAILURE]
    return notebook


def solution_texts(target: Target) -> dict[str, str]:
    """The answers of a solution by task, without the marker lines."""
    return {
        cell.metadata["nbgrader"]["grade_id"]: "\n".join(
            line for line in cell.source.splitlines() if BEGIN not in line and END not in line
        )
        for cell in target.node.cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }


def task_points(target: Target) -> list[list[str | float]]:
    """The tasks of a solution in order, each with the points of its check."""
    metadata = (cell.metadata.get("nbgrader", {}) for cell in target.node.cells)
    return [
        [entry["grade_id"].removeprefix("check_"), entry["points"]]
        for entry in metadata
        if entry.get("grade")
    ]

"""The built notebooks, found by glob: sources, blanks, grading, size. Outputs are nbval's."""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from authoring import build
from authoring.execution import failure, kernel_environment
from authoring.masters import BEGIN, END, EXPECTED_FAILURE, parse

ROOT = Path(__file__).parents[1]
LESSONS, SOLUTIONS, BLANKS = (sorted((ROOT / d).glob("*.ipynb")) for d in build.FOLDERS)
MASTERS = sorted((ROOT / "authoring").glob("lessons/*.py"))
MEGABYTE = 2**20
LINES = 30
SECONDS = 600

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # nbgrader's own


def name(path: Path) -> str:
    """How a test is called: from the root."""
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    """Run a test for each notebook."""
    return pytest.mark.parametrize("path", paths, ids=name)


def read(path: Path) -> NotebookNode:
    """A notebook."""
    return nbformat.read(path, as_version=4)


def is_check(cell: NotebookNode) -> bool:
    """Whether nbgrader gives points for a cell."""
    return bool(cell.metadata.get("nbgrader", {}).get("grade"))


def is_answer(cell: NotebookNode) -> bool:
    """Whether the learner writes the cell."""
    return bool(cell.metadata.get("nbgrader", {}).get("solution"))


def code_cells(node: NotebookNode) -> list[NotebookNode]:
    """The code cells."""
    return [cell for cell in node.cells if cell.cell_type == "code"]


def without_tag(node: NotebookNode) -> NotebookNode:
    """A copy in which no cell is tagged as one that may fail, and titles have no Colab link."""
    node = deepcopy(node)
    for cell in node.cells:
        if EXPECTED_FAILURE in cell.metadata.get("tags", []):
            cell.metadata.tags.remove(EXPECTED_FAILURE)
            if not cell.metadata.tags:
                del cell.metadata["tags"]
    node.cells[0].source = re.sub(r"\n\n\[!\[Open in Colab\].*", "", node.cells[0].source)
    return node


# Sources


def test_built_agrees_with_masters(capsys: pytest.CaptureFixture[str]) -> None:
    status = build.main(["--check"], ROOT)
    assert status == 0, capsys.readouterr().out


def test_every_master_has_three_notebooks() -> None:
    expected = [path.stem for path in MASTERS]
    for paths in (LESSONS, SOLUTIONS, BLANKS):
        assert [path.stem for path in paths] == expected


@each(LESSONS + SOLUTIONS + BLANKS)
def test_size(path: Path) -> None:
    assert path.stat().st_size < MEGABYTE


def test_size_of_all() -> None:
    assert sum(path.stat().st_size for path in LESSONS + SOLUTIONS + BLANKS) < 15 * MEGABYTE


@each(LESSONS + SOLUTIONS)
def test_cells_are_short(path: Path) -> None:
    own = code_cells(read(path))[1:]  # the first one is the build's: see test_bootstrap.py
    long = [cell.source for cell in own if cell.source.count("\n") >= LINES]
    assert not long, f"cells of more than {LINES} lines:\n\n" + "\n\n".join(long)


@each(LESSONS)
def test_lesson_asserts_what_it_claims(path: Path) -> None:
    trees = [parse(cell.source) for cell in code_cells(read(path))]
    assert any(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree))


@each(LESSONS + SOLUTIONS)
def test_no_cell_may_fail(path: Path) -> None:
    tagged = [c for c in read(path).cells if EXPECTED_FAILURE in c.metadata.get("tags", [])]
    assert not tagged


# Blanks


@each(BLANKS)
def test_only_checks_may_fail_in_a_blank(path: Path) -> None:
    cells = read(path).cells
    tagged = [cell.id for cell in cells if EXPECTED_FAILURE in cell.metadata.get("tags", [])]
    assert tagged == [cell.id for cell in cells if is_check(cell)] != []


def written_lines(cell: NotebookNode) -> list[str]:
    """The lines between the markers of an answer, without those that say next to nothing."""
    inside = re.findall(f"{BEGIN}.*?\n(.*?)[^\n]*{END}", cell.source, re.DOTALL)
    lines = [line.strip() for text in inside for line in text.splitlines()]
    return [line for line in lines if len(line) > 6 and not line.startswith("return None")]


@each(BLANKS)
def test_no_solution_in_a_blank(path: Path) -> None:
    solution = {cell.id: cell for cell in read(ROOT / "solutions" / path.name).cells}
    answers = [cell for cell in read(path).cells if is_answer(cell)]
    assert answers and not any(cell.get("outputs") for cell in read(path).cells)
    for cell in answers:
        lines = written_lines(solution[cell.id])
        assert lines, f"{cell.id}: nothing between the markers"
        given = {line.strip() for line in cell.source.splitlines()}
        assert not given.intersection(lines), f"{cell.id}: a line of the solution is given"
        assert "raise NotImplementedError()" in cell.source
    whole = path.read_text("utf-8")
    assert BEGIN not in whole and END not in whole


@each(BLANKS)
def test_blank_runs_to_its_end(path: Path) -> None:
    from nbclient import NotebookClient

    node = read(path)
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(node, timeout=SECONDS, kernel_name="python3", resources=where)
    client.execute(env=kernel_environment(ROOT))
    for cell in node.cells:
        if is_check(cell):
            assert "not attempted yet" in (failure(cell) or ""), cell.source
        else:
            assert failure(cell) is None, f"{cell.source}\n\n{failure(cell)}"


# nbgrader


Students = dict[str, Callable[[NotebookNode, NotebookNode], NotebookNode]]


def solved(blank: NotebookNode, solution: NotebookNode) -> NotebookNode:
    """A submission with every answer in it, the markers left in every second one."""
    answers = {cell.id: cell.source for cell in solution.cells if is_answer(cell)}
    for index, cell in enumerate(filter(is_answer, blank.cells)):
        lines = answers[cell.id].splitlines()
        kept = [line for line in lines if index % 2 or not (BEGIN in line or END in line)]
        cell.source = "\n".join(kept)
    return blank


STUDENTS: Students = {"solved": solved, "blank": lambda blank, solution: blank}


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course of nbgrader's in which every exercise was released, handed in twice and graded."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    folder = tmp_path_factory.mktemp("nbgrader")
    source = folder / "source" / "course"
    source.mkdir(parents=True)
    for path in SOLUTIONS:
        shutil.copy(path, source)
    config = Config()
    config.CourseDirectory.root = str(folder)
    config.Execute.timeout = SECONDS
    api = NbGraderAPI(config=config)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in kernel_environment(ROOT).items():
            patch.setenv(key, value)
        patch.delenv("MPLBACKEND", raising=False)
        result = api.generate_assignment("course")
        assert result["success"], result["log"]
        for student, hand_in in STUDENTS.items():
            submitted = folder / "submitted" / student / "course"
            submitted.mkdir(parents=True)
            for path in BLANKS:
                node = hand_in(read(path), read(ROOT / "solutions" / path.name))
                nbformat.write(node, submitted / path.name)
            result = api.autograde("course", student)
            assert result["success"], result["log"]
    return folder


def grade(course: Path, student: str, slug: str) -> tuple[float, float]:
    """The points that a student got for a notebook, and the points there were."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course}/gradebook.db") as book:
        notebook = book.find_submission_notebook(slug, "course", student)
        return notebook.score, notebook.max_score


@each(BLANKS)
def test_blank_is_what_nbgrader_generates(path: Path, course: Path) -> None:
    released = read(course / "release" / "course" / path.name)
    assert without_tag(read(path)) == without_tag(released)


@each(BLANKS)
def test_solved_exercise_earns_everything(path: Path, course: Path) -> None:
    points, of = grade(course, "solved", path.stem)
    graded = read(course / "autograded" / "solved" / "course" / path.name)
    lost = [f"{cell.id}: {failure(cell)}" for cell in graded.cells if failure(cell)]
    assert points == of > 0, "\n".join(lost)


@each(BLANKS)
def test_blank_exercise_earns_nothing(path: Path, course: Path) -> None:
    points, of = grade(course, "blank", path.stem)
    assert points == 0 < of


def test_environment_for_nbgrader() -> None:
    assert shutil.which("alembic"), f"nbgrader needs alembic on PATH: {os.environ['PATH']}"

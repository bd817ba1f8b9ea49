"""`progress()`: what a learner is told about where they stand."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from course_lib.checks import progress, standing
from course_lib.checks.core import Check, Goal, Verdict

SLUG = "77_toys"


def one() -> int:
    return 1


@pytest.fixture
def points(tmp_path: Path) -> Path:
    file = tmp_path / "points.json"
    file.write_text(json.dumps({SLUG: [["late", 2], ["early", 0.5]]}), "utf-8")
    return file


@pytest.fixture
def tasks() -> list[Check]:
    return [
        Check(SLUG, name, one, [lambda: ()], hints=["a", "b"][:count])
        for name, count in (("early", 2), ("late", 0))
    ]


def attempt(task: Check, value: int) -> None:
    with contextlib.suppress(Verdict):
        task(lambda: value)


def test_nothing_done(tasks: list[Check], points: Path) -> None:
    assert standing.standing(SLUG, tasks, points).splitlines() == [
        "Exercise 77 (toys): 0 of 2 tasks, 0 of 2.5 points",
        "  ○ late   2 pt",
        "  ○ early  0.5 pt",
        "Next: late.",
    ]


def test_done_and_tried(tasks: list[Check], points: Path, capsys: pytest.CaptureFixture) -> None:
    early, late = tasks
    attempt(late, 1)
    attempt(early, 3)
    early.hint()
    assert standing.standing(SLUG, tasks, points).splitlines() == [
        "Exercise 77 (toys): 1 of 2 tasks, 2 of 2.5 points",
        "  ✓ late   2 pt",
        "  ✗ early  0.5 pt  1 wrong try, 1 of 2 hints opened",
        "Next: early. A hint: check.early.hint()",
    ]


def test_all_done(tasks: list[Check], points: Path) -> None:
    for task in tasks:
        attempt(task, 1)
    text = standing.standing(SLUG, tasks, points)
    assert "2 of 2 tasks, 2.5 of 2.5 points" in text and "All done." in text


def test_an_answer_broken_later_is_not_done(tasks: list[Check], points: Path) -> None:
    attempt(tasks[1], 1)
    attempt(tasks[1], 2)
    text = standing.standing(SLUG, tasks, points)
    assert "0 of 2 tasks, 0 of 2.5 points" in text
    assert "✗ late   2 pt  1 wrong try, passed before the last change" in text
    assert text.endswith("Next: late.")  # no hint is left to be opened


@pytest.mark.parametrize("content", [None, "not JSON", "[]", '{"77_toys": 3}', "{}"])
def test_without_points_the_tasks_are_still_listed(
    tasks: list[Check], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "points.json"
    if content is not None:
        file.write_text(content, "utf-8")
    text = standing.standing(SLUG, tasks, file)
    assert text.splitlines()[0] == "Exercise 77 (toys): 0 of 2 tasks"
    assert [line.split() for line in text.splitlines()[1:3]] == [["○", "early"], ["○", "late"]]


def without_exercises(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("course_lib.checks.") and any(
            isinstance(value, Check | Goal) for value in vars(module).values()
        ):
            monkeypatch.delitem(sys.modules, name)


def test_progress_finds_the_exercise_that_was_imported(
    monkeypatch: pytest.MonkeyPatch, tasks: list[Check], capsys: pytest.CaptureFixture[str]
) -> None:
    without_exercises(monkeypatch)
    assert progress() is None
    assert capsys.readouterr().out.startswith("No exercise is open here")
    module = ModuleType("course_lib.checks.toys")
    vars(module).update({task.name: task for task in tasks})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    progress()
    said = capsys.readouterr()
    assert said.out.startswith("Exercise 77 (toys): 0 of 2 tasks\n") and said.err == ""


def test_every_check_of_the_course_has_points() -> None:
    """The shipped file knows every task of every exercise's checks, and no other."""
    from tests.check_suite import check_modules, tasks

    shipped = {
        slug: {task for task, _ in entries}
        for slug, entries in json.loads(standing.POINTS.read_text("utf-8")).items()
    }
    written: dict[str, set[str]] = {}
    for module in check_modules():
        for task in tasks(module).values():
            written.setdefault(task.slug, set()).add(task.name)
    assert shipped == written

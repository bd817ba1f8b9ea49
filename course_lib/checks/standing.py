"""Where a learner stands in an exercise: what passed, what was tried, what comes next."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from course_lib.checks.task import Task

POINTS = Path(__file__).with_name("points.json")
"""``{slug: [[task, points], ...]}`` in the exercise's order, written by ``authoring.build``."""


def progress() -> None:
    """Show where you stand in the exercise whose checks this notebook imported.

    A task is done when its last check passed. Counting starts when the kernel starts: after a
    restart, run your cells again.

    Taught in exercise 00.
    """
    exercises = imported_tasks()
    if not exercises:
        print("No exercise is open here: run the first cells of one, which import its checks.")
        return
    print("\n\n".join(standing(slug, tasks) for slug, tasks in sorted(exercises.items())))


def imported_tasks() -> dict[str, list[Task]]:
    """The tasks of every lesson's checks that were imported so far, by slug."""
    exercises: dict[str, list[Task]] = {}
    for name in sorted(sys.modules):
        if name.startswith("course_lib.checks."):
            for task in vars(sys.modules[name]).values():
                if isinstance(task, Task):
                    exercises.setdefault(task.slug, []).append(task)
    return exercises


def standing(slug: str, tasks: Sequence[Task], points_file: Path = POINTS) -> str:
    """What `progress` prints about one exercise.

    Args:
        slug: the exercise, as in ``11_displacement_fields``.
        tasks: its tasks.
        points_file: where the order and the points of the tasks stand.
    """
    number, name = slug.split("_", 1)
    points = _points(slug, points_file)
    known = {task.name: task for task in tasks}
    ordered = [known[task] for task in points if task in known] or list(tasks)
    done = [task for task in ordered if task.passed]
    head = f"Exercise {number} ({name.replace('_', ' ')}): {len(done)} of {len(ordered)} tasks"
    if points:
        earned = sum(points[task.name] for task in done)
        head += f", {earned:g} of {sum(points.values()):g} points"
    return "\n".join([head, *_lines(ordered, points), _next(ordered)])


def _points(slug: str, file: Path) -> dict[str, float]:
    """The points of an exercise's tasks, in order; nothing if the build has not written them."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))[slug])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _lines(tasks: Sequence[Task], points: dict[str, float]) -> Iterator[str]:
    """One line for each task: done, tried or open, its points, and what it took so far."""
    width = max(len(task.name) for task in tasks)
    for task in tasks:
        mark = "✓" if task.passed else "✗" if task.tries else "○"
        worth = f"{points[task.name]:g} pt" if task.name in points else ""
        spent = ", ".join([*_tries(task), *_hints(task)])
        yield f"  {mark} {task.name:<{width}}  {worth:>4}  {spent}".rstrip()


def _tries(task: Task) -> Iterator[str]:
    if task.tries:
        word = "wrong try" if task.tries == 1 else "wrong tries"
        yield f"{task.tries} {word}"
    if task.solved and not task.passed:
        yield "passed before the last change"


def _hints(task: Task) -> Iterator[str]:
    if task.opened:
        yield f"{task.opened} of {len(task.hints)} hints opened"


def _next(tasks: Sequence[Task]) -> str:
    """What to do now: the first task that is not done."""
    task = next((task for task in tasks if not task.passed), None)
    if task is None:
        return "All done. Compare with the solutions' notebook, which also reads the results."
    if task.tries and task.opened < len(task.hints):
        return f"Next: {task.name}. A hint: check.{task.name}.hint()"
    return f"Next: {task.name}."

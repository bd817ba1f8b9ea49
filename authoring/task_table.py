"""Write the table of tasks and points in ``TEACHING.md`` from the exercises' masters.

    python -m authoring.task_table

Run it when headings, minutes or points of an exercise change; a test compares.
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from authoring.layout import BuildError, Layout, write_atomically

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
| exercise | task | kind | difficulty | minutes | points |
|---|---|---|---|---|---|
"""
TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)*")
TASK = re.compile(
    r"^# ## Task (?P<number>\d+) · (?P<title>.+?)(?: \((?P<kind>[a-z ]+)\))?\n#\n"
    r"^# (?P<difficulty>[●○]{3}) · (?P<minutes>\d+) minutes? · (?P<points>[\d.]+) points?$",
    re.MULTILINE,
)


class Task(NamedTuple):
    """A task as its heading in the exercise announces it."""

    number: int
    title: str
    kind: str
    difficulty: str
    minutes: int
    points: float


def tasks(master: str) -> list[Task]:
    """The tasks that an exercise's master announces, in order."""
    return [
        Task(
            int(found["number"]),
            found["title"],
            found["kind"] or "implement",
            found["difficulty"],
            int(found["minutes"]),
            float(found["points"]),
        )
        for found in TASK.finditer(master)
    ]


def table(layout: Layout) -> str:
    """The table for all exercises, in Markdown."""
    rows = []
    for path in sorted(layout.exercises.glob("*.py")):
        number = path.stem.split("_")[0]
        for task in tasks(path.read_text("utf-8")):
            rows.append(
                f"| {number} | {task.number} · {task.title} | {task.kind} | {task.difficulty} "
                f"| {task.minutes} | {task.points:g} |\n"
            )
    return HEAD + "".join(rows)


def updated(page: str, new: str) -> str:
    """The page with its table replaced by the new one."""
    if len(TABLE.findall(page)) != 1:
        raise BuildError("TEACHING.md: expected one table of tasks, by its head line")
    return TABLE.sub(lambda _: new, page)


def main(argv: list[str] | None = None, root: Path = ROOT) -> None:
    """Run the command line."""
    argparse.ArgumentParser(description="Write TEACHING.md's table of tasks.").parse_args(argv)
    page = root / "TEACHING.md"
    write_atomically(page, updated(page.read_text("utf-8"), table(Layout(root))).encode())


if __name__ == "__main__":
    main()

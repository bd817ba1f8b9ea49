"""README, TEACHING and CONTRIBUTING say what is so: links, minutes, points, lessons, versions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import course_lib
from authoring import task_table
from authoring.layout import BuildError, Layout

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "TEACHING.md", "CONTRIBUTING.md", "course_lib/data/README.md"]
SLUGS = sorted(path.stem for path in (ROOT / "authoring/lessons").glob("*.py"))
EXERCISES = {slug: (ROOT / f"authoring/exercises/{slug}.py").read_text("utf-8") for slug in SLUGS}
POINTS = {
    slug[:2]: dict(entries)
    for slug, entries in json.loads(
        (ROOT / "course_lib/checks/points.json").read_text("utf-8")
    ).items()
}
ANNOUNCED = re.compile(r"\*\*Time\*\*: about (\d+) minutes · \*\*Points\*\*: (\d+)")


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def section(page: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = heading.count("#")
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", page, re.M | re.S)
    assert found, f"there is no {heading!r}"
    return found[1]


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# Links


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = read(name)
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links or name not in PAGES[:3]
    for link in links:
        if link.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), f"{name} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{name} links to {link}"


@pytest.mark.parametrize("name", PAGES)
def test_files_named_in_backticks_exist(name: str) -> None:
    pattern = r"`((?:authoring|course_lib|tests|benchmarks)/[\w/.]+\.\w+)`"
    named = [path for path in re.findall(pattern, read(name)) if "slug" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_modules_that_are_to_be_run_exist(name: str) -> None:
    for module in re.findall(
        r"python -m ((?:authoring|course_lib|tests|benchmarks)[\w.]*)", read(name)
    ):
        path = ROOT / module.replace(".", "/")
        files = (path.with_suffix(".py"), path / "__main__.py")
        assert any(file.exists() for file in files), f"{name} says: {module}"


def test_make_targets_and_options_exist() -> None:
    makefile = read("Makefile")
    for name in PAGES[:3]:
        for target, options in re.findall(
            r"`?make ([a-z]+)((?: [A-Z_]+=\S+)*)",
            "\n".join(re.findall(r"`make [^`]*`|^make [^#\n]*", read(name), re.M)),
        ):
            assert re.search(rf"^{target}:", makefile, re.M), f"{name}: make {target}"
            for option in re.findall(r"([A-Z_]+)=", options):
                assert re.search(rf"^{option} =", makefile, re.M), f"{name}: {option}="


# The map of lessons


def lesson_rows() -> dict[str, list[str]]:
    return {row[0][1:3]: row for row in rows(section(read("README.md"), "## The lessons"))}


def test_the_map_has_every_lesson() -> None:
    assert list(lesson_rows()) == [slug[:2] for slug in SLUGS]


@pytest.mark.parametrize("slug", SLUGS)
def test_the_map_says_what_the_masters_say(slug: str) -> None:
    link, minutes, exercise, needs, _ = lesson_rows()[slug[:2]]
    lesson = read(f"authoring/lessons/{slug}.py")
    assert link.endswith(f"](notebooks/{slug}.ipynb)")
    assert f"# # {link[1:].split(']')[0]}" in lesson
    assert f"**Reading**: {minutes} minutes" in lesson and int(minutes) <= 45
    announced = re.search(
        r"\*\*Time\*\*: about (\d+) minutes · \*\*Points\*\*: (\d+)", EXERCISES[slug]
    )
    assert announced, "the exercise announces its time and its points"
    assert exercise == f"[{announced[1]} min, {announced[2]} points](exercises/{slug}.ipynb)"
    before = re.search(r"\*\*Before this\*\*: (.*)", lesson)
    assert before and set(re.findall(r"\d\d", needs)) <= set(re.findall(r"\b\d\d\b", before[1]))


@pytest.mark.parametrize("slug", SLUGS)
def test_tasks_announce_what_the_checks_give(slug: str) -> None:
    tasks = task_table.tasks(EXERCISES[slug])
    given = list(POINTS[slug[:2]].values())
    assert [task.points for task in tasks] == given
    assert [task.number for task in tasks] == list(range(1, len(given) + 1))
    announced = re.search(
        r"\*\*Time\*\*: about (\d+) minutes · \*\*Points\*\*: (\d+)", EXERCISES[slug]
    )
    assert announced and int(announced[2]) == sum(given)
    minutes = sum(task.minutes for task in tasks)
    assert 0.85 * minutes <= int(announced[1]) <= 1.2 * minutes, "the sum of the tasks' minutes"


@pytest.mark.parametrize("slug", SLUGS)
def test_every_exercise_ends_in_progress(slug: str) -> None:
    assert EXERCISES[slug].rstrip().endswith("# %%\nprogress()")


# Syllabi


def being_written() -> set[str]:
    found = re.search(r"\*\*Being written\*\*.*", read("README.md"))
    assert found
    return set(re.findall(r"\b\d\d\b", found[0].split(";")[0]))


def test_what_is_being_written_is_not_there_yet() -> None:
    assert not being_written() & {slug[:2] for slug in SLUGS}


def test_italics_are_what_is_being_written() -> None:
    text = section(read("README.md"), "## Syllabi")
    table_lines = (line.replace("**", "") for line in text.splitlines() if line.startswith("|"))
    text = "\n".join(table_lines)
    italic = {n for part in re.findall(r"\*([^*]+)\*", text) for n in re.findall(r"\b\d\d\b", part)}
    plain = re.sub(r"\*[^*]+\*", "", text)
    named = {
        n
        for line in re.findall(r"(?:lessons?|exercises?) [\d, and]+", plain)
        for n in re.findall(r"\b\d\d\b", line)
    }
    assert italic and italic <= being_written()
    assert named and named <= {slug[:2] for slug in SLUGS}


def test_weeks_give_the_points_of_their_exercises() -> None:
    total = 0
    for _, lessons, _, points in rows(section(read("README.md"), "### Twelve weeks")):
        here = re.findall(r"\b\d\d\b", re.sub(r"\*[^*]+\*", "", lessons))
        expected = sum(sum(POINTS[number].values()) for number in here)
        assert (int(points) if points else 0) == expected, lessons
        total += expected
    assert total == sum(sum(tasks.values()) for tasks in POINTS.values())


def test_two_days_give_the_points_of_the_exercises_they_name() -> None:
    table = rows(section(read("README.md"), "### A workshop of two days"))
    there = re.sub(r"\*[^*]+\*", "", " ".join(what for _, what, _, _ in table))
    named = set(re.findall(r"\b\d\d\b", there))
    expected = sum(sum(POINTS[number].values()) for number in named)
    assert sum(int(points) for *_, points in table if points) == expected > 0


def test_three_hours_are_three_hours() -> None:
    clock = 0
    for start, minutes, what, _, points in rows(
        section(read("README.md"), "### A workshop of three hours")
    ):
        assert start == f"{clock // 60}:{clock % 60:02}"
        clock += int(minutes)
        tasks = re.search(r"exercise (\d\d), tasks 1 to (\d)", what)
        if tasks:
            assert int(points) == sum(list(POINTS[tasks[1]].values())[: int(tasks[2])])
    assert clock == 180


# The table of tasks


def test_table_of_tasks() -> None:
    page = read("TEACHING.md")
    new = task_table.updated(page, task_table.table(Layout(ROOT)))
    assert page == new, "run `python -m authoring.task_table`"


def test_table_is_written_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "authoring/exercises").mkdir(parents=True)
    master = "# ## Task 1 · Fold it (explore)\n#\n# ●●○ · 8 minutes · 2.5 points\n"
    (tmp_path / "authoring/exercises/77_toys.py").write_text(master, "utf-8")
    page = tmp_path / "TEACHING.md"
    page.write_text(f"before\n{task_table.HEAD}| old |\n\nafter\n", "utf-8")
    task_table.main([], tmp_path)
    row = "| 77 | 1 · Fold it | explore | ●●○ | 8 | 2.5 |\n"
    assert page.read_text("utf-8") == f"before\n{task_table.HEAD}{row}\nafter\n"
    with pytest.raises(BuildError, match="one table"):
        task_table.updated("no table here", "")


# Citation


def test_citation_is_of_this_version() -> None:
    citation, title = read("CITATION.cff"), read("README.md").splitlines()[0]
    assert re.search(rf"^version: {re.escape(course_lib.__version__)}$", citation, re.M)
    assert [title] == [f"# {name}" for name in re.findall(r'^title: "(.+)"', citation, re.M)]
    assert re.search(r"^license: Apache-2.0$", citation, re.M)

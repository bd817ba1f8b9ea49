"""The report: which checks run, in which order, and how their findings read."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator

from course_lib.doctor import here
from course_lib.doctor.course import check_data, check_folder, check_weights, check_work
from course_lib.doctor.finding import ASK, Finding, note, problem
from course_lib.doctor.machine import check_disk, check_memory, check_python
from course_lib.doctor.trials import check_what_runs


def findings(caller: str) -> Iterator[Finding]:
    """Everything there is to say, as it is found out.

    Args:
        caller: the Python that handed over to this one, in words, or ``""``.
    """
    if caller:
        yield handed_over(caller)
    yield from guarded(check_python)
    if sys.version_info[:2] < here.OLDEST:
        return
    for check in (check_memory, check_disk, check_data, check_weights, check_work, check_folder):
        yield from guarded(check)
    yield from guarded(check_what_runs)


def handed_over(caller: str) -> Finding:
    """Another Python started this, and what follows is about the course's own."""
    activate = r".venv\Scripts\activate" if os.name == "nt" else ". .venv/bin/activate"
    return note(
        "terminal",
        f"Here, python means {caller}, which does not have the course. What follows is about the "
        "course's .venv, which make lab uses.",
        f"to use it in this terminal, too: {activate}",
    )


def guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that fails itself is a finding, too."""
    try:
        yield from check()
    except Exception as error:
        name = check.__name__.replace("check_", "")
        yield problem(name, f"This could not be examined: {type(error).__name__}: {error}", ASK)


def render(finding: Finding) -> str:
    """A finding as lines of at most 100 characters."""
    mark = {"ok": "[ok]", "note": "[note]", "problem": "[PROBLEM]"}[finding.kind]
    text = f"{mark:<10}{finding.about}: {' '.join(shorten(finding.text).split())}"
    indent = " " * 10
    lines = textwrap.wrap(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    if finding.todo:  # on one line and unabridged, however long: commands are there to be copied
        lines.append(indent + "-> " + finding.todo)
    return "\n".join(lines)


def shorten(text: str) -> str:
    """``text`` with ``~`` for the home folder: reports are sent around, with a name in its path."""
    home = os.path.expanduser("~")
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 3 else text


def summary(found: list[Finding]) -> str:
    """The last line or two."""
    problems = [finding.about for finding in found if finding.kind == "problem"]
    notes = [finding.about for finding in found if finding.kind == "note"]
    about = ", ".join(dict.fromkeys(problems + notes))
    noted = f"{len(notes)} note{'s' * (len(notes) > 1)}"
    if not problems:
        return "All is well." + (f" ({noted}: {about})" if notes else "")
    said = f"{len(problems)} problem{'s' * (len(problems) > 1)}" + (f", {noted}" if notes else "")
    lines = [f"{said}: {about}. Do what the arrows say, from the top."]
    if here.in_venv() and set(problems) - {"data", "disk", "folder", "python", "work"}:
        lines.append(
            "If that does not help: delete the folder .venv (never work, which holds your "
            f"notebooks) and {here.set_up_anew()}."
        )
    lines.append(f"If that does not help either: {ASK}.")
    return "\n".join(lines)

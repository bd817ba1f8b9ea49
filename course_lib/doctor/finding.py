"""What a check yields, a :class:`Finding`, and what it may judge, an :class:`Outcome`."""

from __future__ import annotations

from typing import Any, NamedTuple

ASK = "send this whole report to your teacher, or to whoever gave you the course"


class Finding(NamedTuple):
    """One line of the report; ``kind`` is ok, note (it works, but ...) or problem."""

    kind: str
    about: str
    text: str
    todo: str = ""


def ok(about: str, text: str) -> Finding:
    """A finding that needs nothing."""
    return Finding("ok", about, text)


def note(about: str, text: str, todo: str) -> Finding:
    """A finding that a lesson survives."""
    return Finding("note", about, text, todo)


def problem(about: str, text: str, todo: str) -> Finding:
    """A finding that some lesson does not survive."""
    return Finding("problem", about, text, todo)


class Outcome(NamedTuple):
    """What came of one step of the second process: a value, or an error in words."""

    value: Any = None
    error: str = ""
    crashed: bool = False


NOT_TRIED = Outcome(error="not tried")

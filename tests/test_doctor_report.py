"""The doctor's report: findings that fit a mail, and a last line that says what is wrong."""

import os
from collections.abc import Iterator

import pytest

from course_lib.doctor import here, report
from course_lib.doctor.finding import ASK, Finding, note, ok, problem


def test_a_check_that_fails_is_a_finding() -> None:
    def check_moon() -> Iterator[Finding]:
        yield ok("moon", "is there")
        raise RuntimeError("it is not")

    first, second = report.guarded(check_moon)
    assert first.kind == "ok"
    assert (second.kind, second.about) == ("problem", "moon")
    assert "RuntimeError: it is not" in second.text


def test_a_finding_fits_a_mail_and_its_command_stays_in_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = "pip install " + "package " * 30
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/home/ada")
    text = report.render(problem("x", "/home/ada/course " + "word " * 60, command))
    *lines, last = text.split("\n")
    assert all(len(line) <= 100 for line in lines) and len(lines) > 2
    assert lines[0].startswith("[PROBLEM] x: ~/course word") and "/home/ada" not in text
    assert last.strip() == "-> " + command.strip()


def test_the_last_line_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, noted = ok("a", ""), note("b", "", "")
    bad, data = problem("numpy", "", ""), problem("data", "", "")
    assert report.summary([fine]) == "All is well."
    assert report.summary([fine, noted]) == "All is well. (1 note: b)"
    monkeypatch.setattr(here, "in_venv", lambda: True)
    said = report.summary([bad, noted, bad, fine])
    assert said.startswith("2 problems, 1 note: numpy, b. Do what the arrows say")
    assert "delete the folder .venv (never work" in said and ASK in said
    assert "delete" not in report.summary([data])

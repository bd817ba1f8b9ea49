"""What a learner meets in a real browser: every lesson runs, and its sliders move the picture."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import nbformat
import pytest
from playwright.sync_api import Page

from authoring import browser
from authoring.lab import ROOT

LESSONS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))


class Lesson(NamedTuple):
    """A lesson in JupyterLab after all of its cells ran, and how the code cells ended."""

    name: str
    page: Page
    cells: list[browser.Cell]


def require_chromium() -> None:
    """Skip aloud where there is no Chromium; where it was promised, fail."""
    if browser.find_chromium() is None:
        said = "no Chromium here: what a learner sees in JupyterLab is not tested"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(said)


@pytest.fixture(scope="module", params=LESSONS)
def lesson(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lesson]:
    """Serve the course as `make lab` does, open a lesson, and run all of its cells."""
    require_chromium()
    folder, name = tmp_path_factory.mktemp("lab"), request.param
    with (
        browser.served(folder) as address,
        browser.opened(browser.address_of(name, address), picture=folder / "failure.png") as page,
    ):
        yield Lesson(name, page, browser.run_all(page))


def test_every_cell_runs_without_an_error(lesson: Lesson) -> None:
    assert lesson.cells
    assert [cell.source for cell in lesson.cells if not cell.ran and cell.source.strip()] == []
    assert [error for cell in lesson.cells for error in cell.errors] == []


def test_the_arrow_keys_on_each_slider_change_the_picture(lesson: Lesson) -> None:
    sliders = browser.sliders(lesson.page, lesson.cells)
    assert sliders, "no slider with a picture"
    for slider in sliders:
        before = browser.pixels(lesson.page, slider)
        browser.back_and_forth(lesson.page, slider, presses=3)
        assert browser.pixels(lesson.page, slider) != before, slider.label


def test_the_picture_under_the_title_is_shown(lesson: Lesson) -> None:
    title = nbformat.read(ROOT / lesson.name, as_version=4).cells[0].source
    assert f"![{browser.cover(lesson.page)}](attachment:" in title


def test_nothing_stands_between_the_learner_and_the_lesson(lesson: Lesson) -> None:
    assert browser.distractions(lesson.page) == []


def test_only_a_machine_without_chromium_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "find_chromium", lambda: "/usr/bin/chromium")
    require_chromium()
    monkeypatch.setattr(browser, "find_chromium", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium"):
        require_chromium()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        require_chromium()

"""The doctor examines the course's own things: library, data, folders."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from course_lib.doctor import course, here
from course_lib.doctor.finding import Outcome
from tests.doctor_suite import kinds


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two data files and their digests."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("one.nii.gz", "two.nii.gz"):
        (folder / name).write_text(name)
    files = folder.iterdir()
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "origins.json").write_text(json.dumps({"out": digests}))
    monkeypatch.setattr(here, "LIBRARY", str(tmp_path))
    return folder


def test_whole_data(data: Path) -> None:
    (found,) = course.check_data()
    assert (found.kind, found.text) == ("ok", "2 files, all whole")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "one.nii.gz is missing."),
        ("one.nii.g", "one.nii.gz is damaged (9 bytes"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_damaged_data(data: Path, content: str | None, said: str) -> None:
    (data / "one.nii.gz").unlink()
    if content is not None:
        (data / "one.nii.gz").write_text(content)
    (found,) = course.check_data()
    assert found.kind == "problem" and said in found.text and "two" not in found.text
    assert "git checkout -- course_lib/data" in found.todo


def test_a_lost_list_of_the_data_is_told(data: Path) -> None:
    (data / "origins.json").unlink()
    assert kinds(course.check_data()) == [("problem", "data")]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two weight files and their cards."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.safetensors").write_text(name)
        digest = hashlib.sha256(name.encode()).hexdigest()
        (folder / f"{name}.json").write_text(json.dumps({"sha256": digest}))
    monkeypatch.setattr(here, "LIBRARY", str(tmp_path))
    return folder


def test_whole_weights(weights: Path) -> None:
    (found,) = course.check_weights()
    assert (found.kind, found.text) == ("ok", "2 files, all whole")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("one.safetensors", None, "one.safetensors is missing."),
        ("one.safetensors", "on", "one.safetensors is damaged (2 bytes"),
        ("one.json", None, "one.json is missing."),
        ("one.json", "{", "cannot be read"),
        ("one.json", "{}", "cannot be read: KeyError('sha256')"),
    ],
)
def test_damaged_weights(weights: Path, name: str, content: str | None, said: str) -> None:
    (weights / name).unlink()
    if content is not None:
        (weights / name).write_text(content)
    (found,) = course.check_weights()
    assert found.kind == "problem" and said in found.text and "two" not in found.text
    assert "git checkout -- course_lib/weights" in found.todo


def test_lost_weights(weights: Path) -> None:
    for path in weights.iterdir():
        path.unlink()
    (found,) = course.check_weights()
    assert found.text == "There are no weights."
    weights.rmdir()
    assert kinds(course.check_weights()) == [("problem", "weights")]


def test_which_copy_of_the_course_notebooks_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kinds(course.check_course(Outcome(here.LIBRARY))) == [("ok", "course")]
    (missing,) = course.check_course(Outcome(""))
    assert missing.kind == "problem" and "is not installed in this Python" in missing.text
    monkeypatch.setenv("PYTHONPATH", "/old")
    (other,) = course.check_course(Outcome("/old/course_lib"))
    assert other.kind == "problem" and "another copy of the course, /old/course_lib" in other.text
    assert "unset PYTHONPATH" in other.todo


def test_a_set_up_that_stopped_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "setup.log").write_text("")
    assert kinds(course.check_course(Outcome(here.LIBRARY)))[0] == ("problem", "set-up")
    (tmp_path / ".venv" / "setup.json").write_text("{}")
    assert kinds(course.check_course(Outcome(here.LIBRARY))) == [("ok", "course")]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("")
    monkeypatch.setattr(here, "ROOT", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    assert kinds(course.check_work()) == [("ok", "work")] and sorted(tmp_path.iterdir()) == before

    def refuse(path: str, *_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(course, "open", refuse, raising=False)
    (found,) = course.check_work()
    assert found.kind == "problem" and "cannot be written: Permission denied" in found.text
    assert "authoring.lab --work" in found.todo

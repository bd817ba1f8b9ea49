"""The learner's copies: what is copied, what is refreshed, and what nobody may touch."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from authoring import lab

LESSON = "notebooks/00_start_here.ipynb"
BLANK = "exercises/00_start_here.ipynb"


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A course of one lesson, with a picture beside it and things that are not for learners."""
    root = tmp_path / "course"
    write(root / LESSON, "lesson, first edition")
    write(root / BLANK, "blank, first edition")
    write(root / "notebooks/pictures/brain.png", "a picture")
    write(root / "notebooks/.ipynb_checkpoints/00_start_here-checkpoint.ipynb", "not ours")
    write(root / "solutions/.00_start_here.ipynb.tmp", "half written")
    return root


@pytest.fixture
def work(course: Path) -> Path:
    """The learner's folder, after the first `make lab`."""
    lab.mirror(course, course / "work")
    return course / "work"


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files(folder: Path) -> dict[str, str]:
    """Return all files of a folder and what they hold."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_first_run_copies_what_is_for_learners(course: Path) -> None:
    done = lab.mirror(course, course / "work")
    held = files(course / "work")
    assert set(held) == {LESSON, BLANK, "notebooks/pictures/brain.png", lab.RECORD}
    assert held[LESSON] == "lesson, first edition"
    assert sorted(done.copied) == sorted(set(held) - {lab.RECORD})
    assert not done.refreshed and not done.outdated


def test_a_second_run_does_nothing(course: Path, work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.*") if path.suffix != ".json"}
    assert lab.mirror(course, work) == lab.Mirrored()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_untouched_copy_is_refreshed(course: Path, work: Path) -> None:
    write(course / LESSON, "lesson, second edition")
    assert lab.mirror(course, work) == lab.Mirrored(refreshed=[LESSON])
    assert (work / LESSON).read_text() == "lesson, second edition"
    write(course / LESSON, "lesson, third edition")
    assert lab.mirror(course, work) == lab.Mirrored(refreshed=[LESSON])


def test_a_changed_copy_stays_and_is_not_mentioned_without_a_newer_one(
    course: Path, work: Path
) -> None:
    write(work / BLANK, "my answer")
    assert lab.mirror(course, work) == lab.Mirrored()
    assert (work / BLANK).read_text() == "my answer"


def test_a_changed_copy_is_named_until_it_makes_room_for_the_newer_one(
    course: Path, work: Path
) -> None:
    write(work / BLANK, "my answer")
    write(course / BLANK, "blank, second edition")
    for _ in range(2):
        assert lab.mirror(course, work) == lab.Mirrored(outdated=[BLANK])
        assert (work / BLANK).read_text() == "my answer"
    (work / BLANK).rename(work / "exercises/mine.ipynb")
    assert lab.mirror(course, work) == lab.Mirrored(copied=[BLANK])
    assert (work / BLANK).read_text() == "blank, second edition"
    assert (work / "exercises/mine.ipynb").read_text() == "my answer"


def test_a_change_taken_back_is_refreshed_again(course: Path, work: Path) -> None:
    write(work / BLANK, "my answer")
    write(course / BLANK, "blank, second edition")
    lab.mirror(course, work)
    write(work / BLANK, "blank, first edition")
    assert lab.mirror(course, work) == lab.Mirrored(refreshed=[BLANK])


def test_a_file_the_learner_deleted_comes_back(course: Path, work: Path) -> None:
    (work / LESSON).unlink()
    assert lab.mirror(course, work) == lab.Mirrored(copied=[LESSON])


def test_nothing_is_deleted(course: Path, work: Path) -> None:
    write(work / "notebooks/mine.ipynb", "my own notebook")
    (course / LESSON).unlink()
    lab.mirror(course, work)
    assert (work / LESSON).read_text() == "lesson, first edition"
    assert (work / "notebooks/mine.ipynb").read_text() == "my own notebook"


@pytest.mark.parametrize(
    "record", [None, b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"%s": 1}' % BLANK.encode()]
)
def test_without_a_readable_record_nothing_that_differs_is_touched(
    course: Path, work: Path, record: bytes | None
) -> None:
    write(work / BLANK, "my answer")
    (work / lab.RECORD).unlink() if record is None else (work / lab.RECORD).write_bytes(record)
    assert lab.mirror(course, work) == lab.Mirrored(outdated=[BLANK])
    assert lab.mirror(course, work) == lab.Mirrored()  # said once is enough
    write(course / BLANK, "blank, second edition")
    assert lab.mirror(course, work) == lab.Mirrored(outdated=[BLANK])
    assert (work / BLANK).read_text() == "my answer"
    write(course / LESSON, "lesson, second edition")  # the same as its copy: adopted again
    assert lab.mirror(course, work).refreshed == [LESSON]


@pytest.mark.parametrize("record", ["kept", "lost"])
def test_what_is_no_file_is_left_alone(course: Path, work: Path, record: str) -> None:
    (work / LESSON).unlink()
    (work / LESSON).mkdir()
    (work / BLANK).unlink()
    (work / BLANK).symlink_to("nowhere")
    if record == "lost":
        (work / lab.RECORD).unlink()
    write(course / LESSON, "lesson, second edition")
    write(course / BLANK, "blank, second edition")
    assert sorted(lab.mirror(course, work).outdated) == [BLANK, LESSON]
    assert (work / LESSON).is_dir() and (work / BLANK).is_symlink()


def test_an_interrupted_copy_leaves_the_old_one(
    course: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(course / LESSON, "lesson, second edition")
    before = files(work)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab.mirror(course, work)
    assert files(work) == before
    assert lab.mirror(course, work) == lab.Mirrored(refreshed=[LESSON])


def test_copies_whose_record_was_not_written_are_recognized(course: Path, work: Path) -> None:
    recorded = (work / lab.RECORD).read_bytes()
    write(course / LESSON, "lesson, second edition")
    lab.mirror(course, work)
    (work / lab.RECORD).write_bytes(recorded)  # as if the power had gone before
    assert lab.mirror(course, work) == lab.Mirrored()
    write(course / LESSON, "lesson, third edition")
    assert lab.mirror(course, work) == lab.Mirrored(refreshed=[LESSON])


def test_the_copies_can_be_read_by_others(work: Path) -> None:
    if os.name != "nt":
        assert (work / LESSON).stat().st_mode & 0o777 == 0o644


def test_the_report_is_a_line_each_and_short() -> None:
    work = Path("work")
    assert lab.report(lab.Mirrored(), work) == ""
    said = lab.report(lab.Mirrored(copied=["a", "b"], refreshed=["c"]), work)
    assert said == "Your notebooks are in work: 2 copied, 1 refreshed."
    said = lab.report(lab.Mirrored(outdated=[f"notebooks/{n}.ipynb" for n in range(8)]), work)
    assert "\n" not in said and "notebooks/4.ipynb and 3 more" in said


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(
    course: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(course / "occupied", "a file where the folder should be")
    with pytest.raises(SystemExit) as stopped:
        lab.main(["--course", str(course), "--work", str(course / "occupied")])
    assert "could not be copied" in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_options(course: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    options = lab.jupyter_options(work, 8890, open_browser=False)
    assert f"--ServerApp.root_dir={work}" in options
    assert "--ServerApp.open_browser=False" in options
    assert f"--LabApp.default_url=/lab/tree/{LESSON}" in options
    assert not any("root=True" in option for option in options)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (work / LESSON).unlink()
    options = lab.jupyter_options(work, 8890, open_browser=True)
    assert "--ServerApp.allow_root=True" in options
    assert not any("default_url" in option for option in options)
    monkeypatch.delattr(os, "geteuid")  # as on Windows
    assert "--ServerApp.allow_root=True" not in lab.jupyter_options(work, 8890, True)


def test_the_server_moves_to_a_free_port_and_shows_learners_no_teaching_tools(
    course: Path, tmp_path: Path
) -> None:
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "authoring.lab", "--no-browser", "--port", str(port)]
        command += ["--course", str(course), "--work", str(course / "work")]
        server = subprocess.Popen(
            command,
            cwd=lab.ROOT,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert server.stdout
        try:
            printed = [server.stdout.readline()]
            while printed[-1] and "http" not in printed[-1]:
                printed.append(server.stdout.readline())
            assert "3 copied" in printed[0]
            assert f"Port {port} is taken" in "".join(printed)
            address = printed[-1][printed[-1].index("http") :].strip()
            assert f"/lab/tree/{LESSON}?token=" in address

            cookies = urllib.request.HTTPCookieProcessor(CookieJar())
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
            page = direct.open(address, timeout=60).read().decode()
            config = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
            assert "@jupyter/nbgrader" in config["disabledExtensions"]
            assert "@jupyterlab/apputils-extension:announcements" in config["disabledExtensions"]
            assert config["buildCheck"] is False
            base = address[: address.index("/lab/")]
            with pytest.raises(urllib.error.HTTPError, match="404"):
                direct.open(base + "/formgrader", timeout=60)
            listed = json.load(direct.open(base + "/api/contents", timeout=60))
            assert {item["name"] for item in listed["content"]} == {"notebooks", "exercises"}
        finally:
            server.terminate()
            server.communicate(timeout=60)


def notebook(*sources: str | list[str], **more: object) -> str:
    cells = [{"cell_type": "code", "source": source, **more} for source in sources]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_a_notebook_that_was_only_opened_or_run_is_still_untouched(
    course: Path, work: Path
) -> None:
    write(course / LESSON, notebook("a = 1\nb = 2", outputs=[], metadata={}))
    lab.mirror(course, work)
    opened = json.loads(notebook(["a = 1\n", "b = 2"], outputs=[{"text": "3"}], execution_count=7))
    opened["metadata"] = {"language_info": {"version": "3.11.7", "codemirror_mode": {"version": 3}}}
    write(work / LESSON, json.dumps(opened))
    write(course / LESSON, notebook("a = 1\nb = 3"))
    assert lab.mirror(course, work).refreshed == [LESSON]
    assert (work / LESSON).read_text() == notebook("a = 1\nb = 3")


@pytest.mark.parametrize(
    "mine",
    [
        notebook("a = 1", "b"),
        notebook("a = 2"),
        notebook("a = 1", attachments={"x.png": {"image/png": "AA=="}}),
        notebook("a = 1").replace('"code"', '"raw"'),
        notebook("a = 1")[:-1],
        '{"cells": 3}',
    ],
)
def test_whatever_a_learner_writes_counts(course: Path, work: Path, mine: str) -> None:
    write(course / BLANK, notebook("a = 1"))
    lab.mirror(course, work)
    write(work / BLANK, mine)
    write(course / BLANK, notebook("news"))
    assert lab.mirror(course, work).outdated == [BLANK]
    assert (work / BLANK).read_text() == mine

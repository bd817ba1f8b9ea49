"""The pieces of the Colab test; the whole is a part of `make test`, see `authoring/colab.py`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from authoring import colab
from authoring.environment import Trouble
from authoring.execution import WIDGET_VIEW

COURSE = "registration-course"
BEFORE = {"ipywidgets": "7.7.1", "numpy": "2.1.3", "torch": "2.13.0+cpu"}


# The versions


def pinned() -> dict[str, str]:
    """The list, read on its own."""
    lines = colab.VERSIONS.read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_what_is_known_of_colab() -> None:
    known = {"numpy": "2.1.3", "ipywidgets": "7.7.1", "ipython": "7.34.0"}
    assert known.items() <= pinned().items() and pinned()["matplotlib"].startswith("3.10.")


def test_every_dependency_is_there_in_a_version_that_will_do() -> None:
    """The same that the whole test shows, in no time: a range that Colab is outside of is red."""
    project = tomllib.loads((colab.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned()[canonicalize_name(wanted.name)]), line


# What an installation may do


def test_only_additions_are_allowed() -> None:
    after = BEFORE | {COURSE: "0.1.0", "pooch": "1.8.2"}
    changes = colab.compare(BEFORE, after, COURSE)
    assert changes == ([], {COURSE: "0.1.0", "pooch": "1.8.2"})


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        ({"numpy": "2.2.0"}, "numpy 2.1.3 was replaced by 2.2.0"),
        ({"torch": "2.13.0"}, "torch 2.13.0+cpu was replaced by 2.13.0"),
        ({"ipywidgets": None}, "ipywidgets 7.7.1 was removed"),
        ({COURSE: None}, "registration-course was not installed"),
    ],
)
def test_changes_are_named(after: dict[str, str | None], sentence: str) -> None:
    packages = BEFORE | {COURSE: "0.1.0"} | after
    left = {name: version for name, version in packages.items() if version}
    assert colab.compare(BEFORE, left, COURSE).broken == [sentence]


# The environment


class Environment:
    """An environment whose packages are a dictionary."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.packages, self.made = folder, dict[str, str](), 0
        self.versions = folder.with_name("versions.txt")
        self.versions.write_text("numpy==2.1.3\n")
        patch.setattr(colab, "make", self.make)
        patch.setattr(colab, "installed", lambda _: dict(self.packages))
        patch.setattr(subprocess, "run", self.uninstall)

    def make(self, folder: Path, versions: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.made, self.packages = self.made + 1, dict(BEFORE)

    def uninstall(self, command: list[str], **_: object) -> None:
        for name in command[command.index("--yes") + 1 :]:
            del self.packages[name]

    def prepare(self) -> int:
        """How often it was made so far."""
        assert colab.prepare(self.folder, self.versions) == BEFORE == self.packages
        return self.made


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment that was made once."""
    environment = Environment(tmp_path / ".venv-colab", monkeypatch)
    assert environment.prepare() == 1
    return environment


def test_it_is_kept(kept: Environment) -> None:
    assert kept.prepare() == 1


def test_what_the_last_run_added_goes(kept: Environment) -> None:
    kept.packages |= {COURSE: "0.1.0", "pooch": "1.8.2"}
    assert kept.prepare() == 1


@pytest.mark.parametrize("change", [{"numpy": "2.2.0"}, {"numpy": "2.2.0", COURSE: "0.1.0"}])
def test_what_the_last_run_changed_makes_it_anew(change: dict[str, str], kept: Environment) -> None:
    kept.packages |= change
    assert kept.prepare() == 2


def test_other_versions_make_it_anew(kept: Environment) -> None:
    kept.versions.write_text("numpy==2.1.4\n")
    assert kept.prepare() == 2 and kept.prepare() == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"wanted": 1}'])
def test_a_spoilt_note_makes_it_anew(text: str, kept: Environment) -> None:
    (kept.folder / "colab.json").write_text(text)
    assert kept.prepare() == 2


def test_a_failed_making_is_not_taken_for_a_made_one(
    kept: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, versions: Path) -> None:
        raise Trouble("no network")

    kept.versions.write_text("numpy==2.1.4\n")
    with monkeypatch.context() as patch:
        patch.setattr(colab, "make", fail)
        with pytest.raises(Trouble):
            kept.prepare()
    kept.versions.write_text("numpy==2.1.3\n")
    assert kept.prepare() == 2


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (
            0,
            "Temporary failure in name resolution",
            "could not be filled: the package index cannot",
        ),
        (0, "Ouch", "could not be filled: pip failed (what pip said is in "),
        (1, "No space left on device", "could not be made: the disk is full"),
        (1, "Error: ouch", "could not be made: Error: ouch."),
    ],
)
def test_an_environment_that_cannot_be_made(
    code: int, said: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`code` is how making it ends; where that is 0, pip fails."""

    def pip(command: list[str], root: Path, log: Path) -> int:
        log.write_text(said)
        return 1

    ended = subprocess.CompletedProcess([], code, stdout=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    monkeypatch.setattr(colab.environment, "run_with_progress", pip)
    with pytest.raises(Trouble, match=re.escape(f"{tmp_path.name} {words}")):
        colab.make(tmp_path, colab.VERSIONS)


def test_packages_of_an_environment() -> None:
    found = colab.installed(Path(sys.prefix))
    assert found["numpy"] and found["scikit-image"] and list(found) == sorted(found)


# The snapshot


@pytest.fixture
def working_tree(tmp_path: Path) -> Path:
    """A working tree with a file of each kind."""
    root = tmp_path / "course"
    (root / "course_lib").mkdir(parents=True)
    for name in ("course_lib/kept.py", "deleted.py", "changed.py"):
        (root / name).write_text("old")
    (root / ".gitignore").write_text("*.pyc\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], check=True)
    (root / "deleted.py").unlink()
    for name in ("changed.py", "new.py", "ignored.pyc"):
        (root / name).write_text("new")
    return root


def test_snapshot_is_what_git_would_publish(working_tree: Path, tmp_path: Path) -> None:
    address = colab.snapshot(working_tree, tmp_path / "snapshot")
    assert address.startswith("file:///")
    assert not (tmp_path / "snapshot" / "ignored.pyc").exists()  # .venv would be gigabytes
    subprocess.run(["git", "clone", "-q", address, str(tmp_path / "clone")], check=True)
    files = {p for p in (tmp_path / "clone").rglob("*") if p.is_file() and ".git" not in p.parts}
    names = {path.relative_to(tmp_path / "clone").as_posix(): path.read_text() for path in files}
    assert sorted(names) == [".gitignore", "changed.py", "course_lib/kept.py", "new.py"]
    assert names["changed.py"] == names["new.py"] == "new"


def test_no_repository_and_no_git_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Trouble, match="needs the course's git repository"):
        colab.snapshot(tmp_path, tmp_path / "snapshot")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Trouble, match="needs git"):
        colab.snapshot(tmp_path, tmp_path / "snapshot")


# Running


def cells(*sources: str) -> NotebookNode:
    """A notebook of code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])


def test_a_kernel_as_on_colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    source = "import os, sys; print('google.colab' in sys.modules, os.getenv('PYTHONPATH'))"
    ran = colab.run(cells(source, "1 / 0", "print('on')"), Path(sys.prefix), tmp_path)
    assert ran.node.cells[0].outputs[0].text == "True None\n"
    assert list(colab.problems(ran.node)) == ["cell 2: ZeroDivisionError: division by zero"]


def test_a_kernel_that_dies_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match="The kernel failed: "):
        colab.run(cells("import os; os._exit(1)"), Path(sys.prefix), tmp_path)


def installed_run(folder: Path) -> colab.Run:
    """What `run` returns where everything is right."""
    node = cells("first", "probe")
    text = nbformat.v4.new_output
    first = f"Installing …\nDone. {colab.KEEP_A_COPY} keeps it.\n"
    node.cells[0].outputs = [text("stream", text=first)]
    view = text("display_data", data={WIDGET_VIEW: {"model_id": "1"}})
    node.cells[1].outputs = [text("stream", text=f"{folder.resolve()}/course_lib\n"), view]
    return colab.Run(node, {"1": {"_model_name": "ImageModel"}, "2": {"_model_name": "IntSlider"}})


def test_a_right_installation_has_no_problems(tmp_path: Path) -> None:
    assert list(colab.install_problems(installed_run(tmp_path), tmp_path)) == []


@pytest.mark.parametrize("spoiled", ["copy", "place", "view", "picture", "slider", "error"])
def test_what_can_be_wrong_with_an_installation(spoiled: str, tmp_path: Path) -> None:
    ran = installed_run(tmp_path)
    first, probe = ran.node.cells
    if spoiled == "copy":
        first.outputs[0].text, words = "Installing …", "does not say how to keep a copy"
    elif spoiled == "place":
        probe.outputs[0].text, words = "/work/course_lib", "comes from elsewhere: /work/course_lib"
    elif spoiled == "error":
        error = nbformat.v4.new_output("error", ename="E", evalue="bad", traceback=[])
        probe.outputs.append(error)
        words = "cell 2: E: bad"
    else:
        words = "a slider with a picture was expected"
        {"view": probe.outputs, "picture": ran.widgets, "slider": ran.widgets}[spoiled].pop(
            {"view": 1, "picture": "1", "slider": "2"}[spoiled]
        )
    assert [words in text for text in colab.install_problems(ran, tmp_path)] == [True]


def test_trouble_is_red_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise Trouble("There is no network.")

    monkeypatch.setattr(colab, "prepare", fail)
    assert colab.main() == 1
    assert capsys.readouterr().out == "There is no network.\n"

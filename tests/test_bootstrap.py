"""The cell that finds or installs the course: one plain sentence for whatever is wrong.

Most tests run its source in a bare Python, its pip replaced by a few lines; some use the real pip.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from authoring import build
from authoring.bootstrap import MODULES, bootstrap

ROOT = Path(build.__file__).parents[1]
PLACEHOLDER = bootstrap("https://example.invalid/course")
PUBLISHED = bootstrap("https://github.com/someone/course")
CELLS = {"placeholder": PLACEHOLDER, "published": PUBLISHED}
AGAIN = "Mend it and run this again."
NEEDS_POSIX = pytest.mark.skipif(os.name == "nt", reason="stubs are shell scripts")
# The installed packages stay out of sight; what `site` holds is all there is.
BARE = """
import sys, types
cell, site, executable, version, colab = sys.argv[1:]
sys.path.append(site)
sys.executable = executable or sys.executable
sys.version_info = tuple(map(int, version.split("."))) if version else sys.version_info
sys.modules.update({"google.colab": types.ModuleType("google.colab")} if colab else {})
for time in range(2):
    print(f"-- {time}")
    try:
        exec(compile(cell, "cell", "exec"), {})
    except Exception as error:
        print("STOP", *error._render_traceback_(), sep="|")
"""


class Said(NamedTuple):
    """What the cell printed in two runs, one after the other."""

    first: str
    second: str


class Bare:
    """A Python with nothing installed, in a folder of its own.

    Args:
        folder: gets `here`, where cells run, and `site`, where what is installed lies.
    """

    def __init__(self, folder: Path) -> None:
        self.here, self.site, self.asked = folder / "here", folder / "site", folder / "asked"
        self.here.mkdir()
        self.site.mkdir()
        self.executable = ""

    def add(self, *names: str, code: str = "") -> None:
        """Install importable names; `code` is what they do."""
        for name in names:
            path = self.site / name
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".py").write_text(code)

    def complete(self) -> None:
        """Install the course and all that it needs."""
        self.add(*MODULES)
        self.add("course_lib/__init__", "course_lib/runtime")

    def pip(self, script: str) -> None:
        """Replace `python -m pip`; what it was asked to do is noted."""
        path = self.site.parent / "python"
        note = f'echo "$GIT_TERMINAL_PROMPT $@" >> {shlex.quote(str(self.asked))}'
        path.write_text(f"#!/bin/sh\n{note}\n{script}\n")
        path.chmod(0o755)
        self.executable = str(path)

    def run(self, cell: str, version: str = "", colab: str = "") -> Said:
        """Run the cell twice."""
        program = [sys.executable, "-I", "-S", "-c", BARE]
        arguments = [cell, str(self.site), self.executable, version, colab]
        ran = subprocess.run(
            [*program, *arguments], cwd=self.here, capture_output=True, text=True, check=True
        )
        assert ran.stderr == ""
        _, first, second = re.split("-- .\n", ran.stdout)
        return Said(first, second)


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    """A bare Python."""
    return Bare(tmp_path)


def sentence(said: str) -> str:
    """The sentence that the cell stopped with, which is all that it said, on one line."""
    assert said.startswith("STOP|") and said.count("\n") == 1, said
    return said.removeprefix("STOP|").strip()


# What it is


def test_it_is_in_every_notebook_and_short() -> None:
    expected = {bootstrap(build.Layout(ROOT).repository())}
    paths = [path for folder in build.FOLDERS for path in (ROOT / folder).glob("*.ipynb")]
    assert {nbformat.read(path, as_version=4).cells[1].source for path in paths} == expected
    assert PLACEHOLDER.count("\n") < 25 and PUBLISHED.count("\n") < 40
    assert max(map(len, (PLACEHOLDER + "\n" + PUBLISHED).splitlines())) <= 100
    assert not re.search(r"<\w+>", PLACEHOLDER + PUBLISHED)


def test_it_looks_for_everything_that_the_course_depends_on() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {canonicalize_name(Requirement(line).name) for line in declared["dependencies"]}
    distributions = packages_distributions()
    assert {canonicalize_name(distributions[name][0]) for name in MODULES} == wanted
    for cell in CELLS.values():
        assert all(re.search(rf"\b{name}\b", cell) for name in MODULES)


# Where the course is


@pytest.mark.parametrize("kind", CELLS)
def test_silent_where_the_course_is(kind: str, bare: Bare) -> None:
    bare.complete()
    bare.pip("exit 1")
    assert bare.run(CELLS[kind]) == Said("", "")
    assert not bare.asked.exists()


@pytest.mark.parametrize("kind", CELLS)
def test_nothing_is_written_where_the_notebook_lies(kind: str, bare: Bare) -> None:
    bare.complete()
    bare.here.chmod(0o555)  # tells on nobody who is root: hence the second line
    assert bare.run(CELLS[kind]) == Said("", "") and list(bare.here.iterdir()) == []


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("error", ["OSError('libtorch.so: bad')", "ImportError('half of it')"])
def test_a_course_that_cannot_be_imported(kind: str, error: str, bare: Bare) -> None:
    bare.complete()
    bare.add("course_lib/runtime", code=f"raise {error}")
    said = bare.run(CELLS[kind])
    assert f"({sys.executable}) has the course but cannot import it: {error}. " in said.first
    assert "Restart the kernel" in sentence(said.first) and "course_lib.doctor" in said.first


@pytest.mark.parametrize("kind", CELLS)
def test_python_too_old(kind: str, bare: Bare) -> None:
    bare.pip("exit 1")
    said = sentence(bare.run(CELLS[kind], version="3.10.12").first)
    assert "is too old: the course needs 3.11 or newer. In the course's folder" in said
    assert not bare.asked.exists()
    bare.complete()
    assert bare.run(CELLS[kind], version="3.11.0") == Said("", "")


@pytest.mark.parametrize("version", ["3.6", "3.8"])
@pytest.mark.parametrize("kind", CELLS)
def test_an_old_python_understands_the_cell(kind: str, version: str) -> None:
    major, minor = map(int, version.split("."))
    ast.parse(CELLS[kind], feature_version=(major, minor))


# Where it is not


def test_placeholder_without_the_course(bare: Bare) -> None:
    said = bare.run(PLACEHOLDER)
    assert said.first == said.second
    start = f"This kernel's Python {sys.version.split()[0]} ({sys.executable}) lacks "
    assert sentence(said.first).startswith(start + "course_lib, torch, numpy, ")
    for words in ("no public address yet", "`make lab`", ".venv", "`python -m course_lib.doctor`"):
        assert words in said.first


@pytest.mark.parametrize("kind", CELLS)
def test_the_course_beside_a_kernel_without_it(kind: str, bare: Bare) -> None:
    """VS Code with another environment: pip is not let loose on it."""
    bare.pip("exit 1")
    (bare.here.parent / "course_lib").mkdir()
    said = sentence(bare.run(CELLS[kind]).first)
    assert f"({bare.executable}) lacks course_lib, torch" in said and "`make lab`" in said
    assert not bare.asked.exists()


@pytest.mark.parametrize("kind", CELLS)
def test_the_course_without_what_it_needs(kind: str, bare: Bare) -> None:
    bare.complete()
    (bare.site / "torch.py").unlink()
    (bare.here / "course_lib").mkdir()
    assert f"({sys.executable}) lacks torch" in sentence(bare.run(CELLS[kind]).first)


# Installing


def installing(bare: Bare) -> str:
    """Lines of shell that install what there is to install."""
    bare.complete()
    kept = bare.site.rename(bare.site.with_name("kept"))
    bare.site.mkdir()
    return f"cp -r {kept}/. {bare.site}"


@NEEDS_POSIX
@pytest.mark.parametrize("colab", ["", "colab"])
def test_it_installs_once_and_says_so(colab: str, bare: Bare) -> None:
    bare.pip(installing(bare))
    first, second = bare.run(PUBLISHED, colab=colab)
    assert second == ""
    lines = first.splitlines()
    assert lines[0].startswith("Installing the course: about a minute on Colab")
    assert len(lines) == (2 if colab else 1)
    assert ("File > Save a copy in Drive" in lines[-1]) == bool(colab)
    asked = "0 -m pip install -q git+https://github.com/someone/course\n"
    assert bare.asked.read_text() == asked


@NEEDS_POSIX
def test_it_adds_what_is_missing(bare: Bare) -> None:
    bare.pip(installing(bare))
    bare.complete()
    (bare.site / "nibabel.py").unlink()
    assert bare.run(PUBLISHED).second == "" and bare.asked.exists()


# What pip and git printed when it was tried; the words that must come of it.
PIP_SAYS = {
    "no pip": ("/x/python: No module named pip", "it has no pip"),
    "no git": (
        "ERROR: Cannot find command 'git' - do you have 'git' installed and in your PATH?",
        "git is missing (git-scm.com)",
    ),
    "no network": (
        "  fatal: unable to access 'https://github.com/a/b/': Could not resolve host: github.com\n"
        "  error: subprocess-exited-with-error",
        "there is no network connection",
    ),
    "no answer": (
        "fatal: unable to access 'https://github.com/a/b/': Failed to connect to github.com port",
        "there is no network connection",
    ),
    "no index": (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip "
        "object>: Failed to establish a new connection: [Errno -3] Temporary failure in name "
        "resolution')': /simple/setuptools/\nERROR: No matching distribution found for setuptools",
        "there is no network connection",
    ),
    "not yours": (
        "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'",
        "it does not let you install anything",
    ),
    "read-only": (
        "ERROR: Could not install packages due to an OSError: [Errno 30] Read-only file system: ''",
        "it does not let you install anything",
    ),
    "the system's": (
        "error: externally-managed-environment",
        "it does not let you install anything",
    ),
    "full": ("OSError: [Errno 28] No space left on device", "the disk is full"),
    "private": (
        "fatal: could not read Username for 'https://github.com': terminal prompts disabled",
        "its address is not public",
    ),
    "gone": ("remote: Repository not found.", "its address is not public"),
    "something else": (
        "  error: subprocess-exited\n  fatal: detected dubious ownership\nnote: not pip's",
        "pip says: detected dubious ownership",
    ),
    "something unheard of": ("ouch", "pip says: ouch"),
    "nothing": ("", "pip says: nothing"),
}


@NEEDS_POSIX
@pytest.mark.parametrize("name", PIP_SAYS)
def test_what_pip_says_in_a_sentence(name: str, bare: Bare) -> None:
    text, words = PIP_SAYS[name]
    bare.pip(f"echo {shlex.quote(text)} >&2; exit 1")
    first, second = bare.run(PUBLISHED)
    assert first == second
    announced, said = first.split("\n", 1)
    assert announced.startswith("Installing the course")
    end = f"({bare.executable}) could not get the course: {words}. {AGAIN}"
    assert sentence(said).endswith(end)


# With the real pip and the real IPython


def real(cell: str, folder: Path, **environment: str) -> str:
    """Run the cell in this Python, the course that is installed for development kept away."""
    hide = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]"
    hide += f"\nsys.path[:] = [p for p in sys.path if p.rstrip('/') not in ('', {str(ROOT)!r})]"
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    program = f"{hide}\nexec(sys.argv[1], {{}})\nimport course_lib; print(course_lib.__doc__)"
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c"]
    program = f"import sys; sys.argv = ['', {cell!r}]\n{program}"
    ran = subprocess.run([*command, program], cwd=folder, env=env, capture_output=True, text=True)
    assert ran.stderr == ""
    return ran.stdout.strip()


def repository(folder: Path) -> Path:
    """A git repository with a toy course in it."""
    package = folder / "toy" / "course_lib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""The toy library."""')
    (package / "runtime.py").touch()
    setup = "from setuptools import setup\nsetup(name='toy', packages=['course_lib'])\n"
    (folder / "toy" / "setup.py").write_text(setup)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder / "toy")]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "toy"]):
        subprocess.run([*git, *arguments], check=True)
    return folder / "toy"


def test_really_installed(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    # pip reads this 0 as "no isolation": setuptools is taken from here, not from the network.
    quiet = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(site)}
    cell = bootstrap(f"file://{repository(tmp_path)}")
    printed = real(cell, tmp_path, PYTHONPATH=str(site), **quiet).splitlines()
    assert printed[0].startswith("Installing the course") and printed[1:] == ["The toy library."]


@pytest.mark.parametrize(
    ("address", "path", "words"),
    [
        ("https://127.0.0.1:9/course", os.environ["PATH"], "there is no network connection."),
        ("https://127.0.0.1:9/course", "/nonexistent", "git is missing (git-scm.com)."),
    ],
    ids=["no network", "no git"],
)
def test_really_not_installed(address: str, path: str, words: str, tmp_path: Path) -> None:
    said = real(bootstrap(address), tmp_path, PATH=path).splitlines()
    assert len(said) == 2, said  # IPython shows no traceback
    assert said[1].endswith(f"{words} {AGAIN}") and "Traceback" not in said[1]

"""The doctor: it survives whatever is broken, names it, and says what to do.

It is started here as people start it; the course in which packages are missing is a copy in a
folder of its own. Its parts are tested in the files named after them.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doctor_suite import FOLDER, NEEDS_POSIX, ROOT, run

WITHOUT_PACKAGES = [sys.executable, "-S"]  # Python without its site-packages: nothing is installed


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the course as the doctor sees it, in a folder with a difficult name."""
    root = tmp_path / "größe und λ"
    shutil.copytree(
        FOLDER.parent, root / "course_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    return root


def test_on_a_healthy_machine_all_is_well() -> None:
    """For real: every package, a kernel, a warp, a widget; in plain ASCII."""
    command = [sys.executable, "-m", "course_lib.doctor"]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ)
    assert done.stderr == "" and done.returncode == 0, done.stdout
    assert "\nAll is well." in done.stdout and "[PROBLEM]" not in done.stdout
    for about in ("python", "data", "course", "packages", "warp", "plot", "widget", "kernel"):
        assert f"[ok]      {about}: " in done.stdout


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_old_pythons_can_read_it_and_it_needs_nothing_but_the_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 7))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [name for node in imports for name in imported_by(node)]
    assert names[:1] == (["__future__"] if path.name != "__init__.py" else [])  # for annotations
    own = {name for name in names if name.startswith("course_lib.doctor")}
    outside = set(names) - own
    assert {name.split(".")[0] for name in outside} <= set(sys.stdlib_module_names)
    assert not outside & {"tomllib", "zoneinfo", "importlib.metadata"}  # not in old Pythons
    assert path.name != "worker.py" or not own  # run as a script, it may not find them


def imported_by(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)]


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13)])
def test_an_old_python_is_told_so(copy: Path, version: tuple[int, ...]) -> None:
    pretend = (
        f"import runpy, sys; sys.version_info = {version}; sys.argv = ['doctor'];"
        "runpy.run_module('course_lib.doctor', run_name='__main__')"
    )
    done = run(*WITHOUT_PACKAGES, "-c", pretend, cwd=copy)
    assert done.returncode == 1 and done.stderr == ""
    assert "is too old: the course needs" in done.stdout
    assert "1 problem: python." in done.stdout and "Traceback" not in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_python_without_the_course_and_a_terminal_without_letters(
    copy: Path, encoding: str
) -> None:
    command = [*WITHOUT_PACKAGES, "-m", "course_lib.doctor"]
    done = run(*command, cwd=copy, PYTHONIOENCODING=encoding)
    assert done.returncode == 1 and done.stderr == ""
    assert "[PROBLEM] packages: Not installed: torch, numpy, matplotlib" in done.stdout
    assert "[note]    packages: Not installed, for JupyterLab: jupyterlab" in done.stdout
    assert "Not tried, since packages are missing or broken: warp, plot, widget." in done.stdout
    assert "[ok]      data: 4 files" in done.stdout and "u03bb" in done.stdout


def test_a_learners_files_do_not_stand_in_for_pythons_own(copy: Path) -> None:
    """Neither at once (queue) nor later (csv, for importlib.metadata)."""
    names = ("csv.py", "queue.py", "json.py", "textwrap.py")
    for name in names:
        (copy / name).write_text("raise SystemExit('this is not the module you want')")
    (copy / "work" / "notebooks").mkdir(parents=True)
    (copy / "work" / "notebooks" / "numpy.py").write_text("")
    (copy / "work" / "notebooks" / "mine.py").write_text("")
    done = run(*WITHOUT_PACKAGES, "-m", "course_lib.doctor", cwd=copy)
    assert done.stderr == "" and done.returncode == 1
    for name in (*names, "numpy.py"):
        assert f"{name} has the name of a module" in done.stdout.replace("\n          ", " ")
    assert "mine.py" not in done.stdout


@NEEDS_POSIX
def test_a_terminal_without_the_environment_gets_a_report_about_the_environment(
    copy: Path,
) -> None:
    python = copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "examined: $*"; exit 7\n')
    python.chmod(0o755)
    done = run(*WITHOUT_PACKAGES, "-m", "course_lib.doctor", cwd=copy)
    assert done.returncode == 7 and done.stderr == ""
    assert done.stdout.startswith("examined: -m course_lib.doctor --caller ")
    python.write_text("#!/bin/sh\nexit 127\n")
    done = run(*WITHOUT_PACKAGES, "-m", "course_lib.doctor", cwd=copy)
    assert done.returncode == 1
    assert "[PROBLEM] venv: The Python of the course's .venv does not start." in done.stdout
    assert "[PROBLEM] packages: " in done.stdout  # and on it goes

"""The doctor: it survives whatever is broken, names it, and says what to do.

Packages that crash, hang or lie are a few lines of Python here; the course in which they are
missing is a copy in a folder of its own.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from course_lib import doctor
from course_lib.doctor import Finding, Outcome, Requirement

SOURCE = Path(doctor.__file__)
NEEDS_POSIX = pytest.mark.skipif(os.name == "nt", reason="stubs are shell scripts")
WITHOUT_PACKAGES = [sys.executable, "-S"]  # Python without its site-packages: nothing is installed


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without this project's settings of Python."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        errors="replace",
    )


def kinds(found: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.about) for finding in found]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the course as the doctor sees it, in a folder with a difficult name."""
    root = tmp_path / "größe und λ"
    shutil.copytree(
        SOURCE.parent, root / "course_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(SOURCE.parent.parent / name, root)
    return root


# It runs everywhere


def test_on_a_healthy_machine_all_is_well(tmp_path: Path) -> None:
    """For real: every package, a kernel, a warp, a widget; in plain ASCII, from any folder."""
    command = [sys.executable, "-m", "course_lib.doctor"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=SOURCE.parent.parent,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stderr == "" and done.returncode == 0, done.stdout
    assert "\nAll is well." in done.stdout and "[PROBLEM]" not in done.stdout
    for about in ("python", "data", "course", "packages", "warp", "plot", "widget", "kernel"):
        assert f"[ok]      {about}: " in done.stdout


def test_old_pythons_can_read_it_and_it_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 7))
    future = next(node for node in tree.body if isinstance(node, ast.ImportFrom))
    assert future.module == "__future__"  # or old Pythons would evaluate the annotations
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported <= set(sys.stdlib_module_names)
    assert not imported & {"tomllib", "zoneinfo"}  # which old Pythons do not have


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


@pytest.mark.parametrize("arguments", [("-m", "course_lib.doctor"), ("course_lib/doctor.py",)])
def test_a_learners_files_do_not_stand_in_for_pythons_own(
    copy: Path, arguments: tuple[str, ...]
) -> None:
    for name in ("queue.py", "json.py", "textwrap.py"):
        (copy / name).write_text("raise SystemExit('this is not the module you want')")
    (copy / "work" / "notebooks").mkdir(parents=True)
    (copy / "work" / "notebooks" / "numpy.py").write_text("")
    (copy / "work" / "notebooks" / "mine.py").write_text("")
    done = run(*WITHOUT_PACKAGES, *arguments, cwd=copy)
    assert done.stderr == "" and done.returncode == 1
    for name in ("queue.py", "json.py", "numpy.py"):
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


def test_what_setuptools_leaves_in_the_folder_is_no_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constraints.txt").write_text("")
    left = tmp_path / "registration_course.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: registration-course\nVersion: 1\n")
    monkeypatch.setattr(doctor, "ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not doctor.is_installed_here()
    elsewhere = tmp_path / "site-packages"
    shutil.copytree(left, elsewhere / left.name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(elsewhere)])
    assert doctor.is_installed_here()


# The second process


def worker(tmp_path: Path, body: str) -> list[str]:
    """A stand-in for the worker: ``body`` runs for each step, with ``say(step, result)``."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, signal, sys, time\n"
        "def say(step, **result): print(json.dumps([step, result]), flush=True)\n"
        f"for step in sys.argv[1:]:\n    {body}\n    say(step, value=step)\nsay('end')\n"
    )
    return [sys.executable, str(script)]


@pytest.mark.parametrize(
    ("accident", "said"),
    [
        pytest.param("os.abort()", "SIGABRT", marks=NEEDS_POSIX),
        pytest.param("os.kill(os.getpid(), signal.SIGILL)", "SIGILL", marks=NEEDS_POSIX),
        ("os._exit(0)", "exit code 0"),
        ("os._exit(3)", "exit code 3"),
        ("sys.exit('no CUDA')", "no CUDA"),
        ("time.sleep(600)", "did not end within"),
    ],
)
def test_a_step_that_ends_or_hangs_the_process_is_survived(
    tmp_path: Path, accident: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "STEP_SECONDS", 8.0 if "sleep" in accident else 120.0)
    command = worker(tmp_path, f"{accident} if step == 'bad' else None")
    outcomes = doctor.run_steps(["first", "bad", "last"], command)
    assert outcomes["first"] == Outcome("first") and outcomes["last"] == Outcome("last")
    assert outcomes["bad"].crashed and said in outcomes["bad"].error


def test_what_cannot_but_fail_is_not_tried(tmp_path: Path) -> None:
    command = worker(tmp_path, "os._exit(1) if step == 'import numpy' else None")
    outcomes = doctor.run_steps(["import numpy", "import scipy", "import tqdm", "warp"], command)
    assert set(outcomes) == {"import numpy", "import tqdm"}


def test_the_real_worker_turns_every_error_into_an_answer(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("raise SystemExit('bye')")
    (tmp_path / "chatty.py").write_text("print('hello', flush=True)")
    command = [sys.executable, str(SOURCE), "--worker"]
    steps = ["course", "import nowhere", "import leaves", "import chatty"]
    done = run(*command, *steps, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step for step, _ in lines] == [*steps, "end"]
    assert lines[1][1]["error"] == "ModuleNotFoundError: No module named 'nowhere'"
    assert lines[2][1]["error"] == "SystemExit: bye" and lines[3][1] == {"value": "chatty"}
    assert "hello" in done.stderr


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    said = doctor.brief("ImportError: " + "please read\n" * 100 + "invalid ELF header")
    assert said.startswith("ImportError: please") and said.endswith("invalid ELF header")
    assert len(said) < 320 and "\n" not in said
    assert doctor.brief("short:\n one") == "short: one"


def test_a_wrong_warp_a_stiff_widget_and_a_blank_plot_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from course_lib import plotting, spatial, widgets

    honest = spatial.warp
    monkeypatch.setattr(spatial, "warp", lambda image, u: honest(image, u.flip(1)))
    with pytest.raises(ValueError, match="off from NumPy's"):
        doctor.step_warp()
    frozen = widgets.deformation_explorer(torch.rand(1, 1, 48, 60))
    frozen.sliders["amplitude"].unobserve_all()
    monkeypatch.setattr(widgets, "deformation_explorer", lambda image: frozen)
    with pytest.raises(ValueError, match="its picture did not change"):
        doctor.step_widget()

    class Blank:
        def savefig(self, file: object, format: str) -> None:
            pass

    monkeypatch.setattr(plotting, "images", lambda pictures: Blank())
    with pytest.raises(ValueError, match="did not draw"):
        doctor.step_plot()


# Packages


def test_requirements_are_read_from_the_folder_and_from_pips_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from_folder = doctor.requirements()
    assert Requirement("ipywidgets", ">=7.7,<9") in from_folder
    assert Requirement("jupyterlab", ">=4.2", "lab") in from_folder
    assert all(re.fullmatch(r"((>=|<)[\d.]+,?)+", wanted.ranges) for wanted in from_folder)
    assert not {"pytest", "nbgrader"} & {wanted.name for wanted in from_folder}
    monkeypatch.setattr(doctor, "has_source", lambda: False)
    by_name = {wanted.name: wanted for wanted in doctor.requirements()}
    assert set(by_name) == {wanted.name for wanted in from_folder}
    assert doctor.misfit("9", by_name["ipywidgets"].ranges) == "too new"
    assert by_name["jupyterlab"].extra == "lab" and by_name["torch"].extra == ""


@pytest.mark.parametrize(
    ("version", "ranges", "said"),
    [
        ("2.4", ">=2.4", ""),
        ("2.4.0+cu126", ">=2.4", ""),
        ("2.10.1", ">=2.4", ""),
        ("2.3.9", ">=2.4", "too old"),
        ("10", ">=9.1,<11", ""),
        ("9.0.0", "<9", "too new"),
        ("8.99", "<9", ""),
        ("1.0", ">1", "too old"),
        ("1.1", "<=1", "too new"),
        ("1.0", "==1", ""),
        ("2", "==1", "too new"),
        ("3.0.dev1", "", ""),
        ("what", ">=1", "too old"),
    ],
)
def test_versions_and_ranges(version: str, ranges: str, said: str) -> None:
    assert doctor.misfit(version, ranges) == said


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is "installed", to be changed by a test."""
    versions = {"torch": "2.13.0", "numpy": "2.4.6", "scipy": "1.17.1", "ipykernel": "7.4.0"}
    wanted = [
        Requirement("torch", ">=2.4"),
        Requirement("numpy", ">=1.26"),
        Requirement("scipy", ">=1.11"),
        Requirement("ipykernel", ">=6.29", "lab"),
    ]
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions.get(name, ""))
    monkeypatch.setattr(doctor, "pinned_versions", dict)
    monkeypatch.setattr(doctor, "on_colab", lambda: False)
    return versions


def imported(**errors: str) -> dict[str, Outcome]:
    """All imports went well but those with an error."""
    names = ("torch", "numpy", "scipy", "ipykernel")
    return {f"import {name}": Outcome(name, errors.get(name, "")) for name in names}


def test_good_packages_are_listed_in_one_line(packages: dict[str, str]) -> None:
    (found,) = doctor.check_packages(imported())
    assert found.kind == "ok"
    assert found.text == "torch 2.13.0, numpy 2.4.6, scipy 1.17.1, ipykernel 7.4.0"


def test_missing_packages_are_named_together(packages: dict[str, str]) -> None:
    for name in ("torch", "scipy", "ipykernel"):
        del packages[name]
    missing, lab, rest = doctor.check_packages(imported())
    assert (missing.kind, missing.text) == ("problem", "Not installed: torch, scipy.")
    assert (lab.kind, lab.text) == ("note", "Not installed, for JupyterLab: ipykernel.")
    assert rest.text == "numpy 2.4.6" and missing.todo == doctor.install_command()


def test_colab_needs_no_jupyterlab(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "on_colab", lambda: True)
    del packages["ipykernel"], packages["scipy"]
    missing, _ = doctor.check_packages(imported())
    assert missing.text == "Not installed: scipy."
    assert "Runtime > Restart session" in missing.todo


def test_a_version_out_of_range_is_a_problem_and_an_untested_one_a_note(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["numpy"] = "1.25.2"
    monkeypatch.setattr(doctor, "pinned_versions", lambda: {"torch": "2.12.0", "scipy": "1.17.1"})
    old, _, untested = doctor.check_packages(imported())
    assert old.kind == "problem" and "numpy 1.25.2 is too old: the course needs" in old.text
    assert untested.kind == "note" and untested.text.endswith("torch 2.13.0 (2.12.0)")


def test_a_broken_package_is_to_be_installed_again(packages: dict[str, str]) -> None:
    torch, good = doctor.check_packages(imported(torch="it ends Python at once (SIGSEGV)"))
    assert torch.kind == "problem" and "ends Python at once (SIGSEGV)" in torch.text
    assert torch.todo.endswith("--force-reinstall --no-deps torch") or "make lab" in torch.todo
    assert "torch" not in good.text
    kernel, _ = doctor.check_packages(imported(ipykernel="ImportError: no"))
    assert (kernel.kind, kernel.about) == ("note", "ipykernel")


def test_a_package_that_lacks_another_asks_for_all_of_them(packages: dict[str, str]) -> None:
    scipy, _ = doctor.check_packages(imported(scipy="ModuleNotFoundError: No module named 'x'"))
    assert scipy.todo == doctor.install_command()


def test_what_fails_for_want_of_numpy_is_told_once(packages: dict[str, str]) -> None:
    outcomes = imported(numpy="ImportError: invalid ELF header")
    del outcomes["import scipy"]  # not tried, then
    assert kinds(doctor.check_packages(outcomes)) == [
        ("problem", "numpy"), ("note", "packages"), ("ok", "packages")]  # fmt: skip
    lost = list(doctor.check_packages(outcomes))[1]
    assert lost.text.endswith("imported either: scipy.")


@pytest.mark.parametrize(
    "error",
    ["MemoryError: ", "OSError: [Errno 12] Cannot allocate memory: '/x'",
     "ImportError: x.so: failed to map segment from shared object", "ends (SIGKILL)"],
)  # fmt: skip
def test_want_of_memory_is_not_blamed_on_packages(packages: dict[str, str], error: str) -> None:
    found = next(doctor.check_packages(imported(torch=error, scipy=error)))
    assert (found.kind, found.about) == ("problem", "memory")
    assert "torch, scipy" in found.text and "pip" not in found.todo


def test_a_package_of_which_only_an_empty_folder_is_left_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", lambda name: None)
    assert doctor.installed_version("torch") == ""
    monkeypatch.setattr("importlib.metadata.version", missing)
    assert doctor.installed_version("torch") == ""


def test_a_wheelhouse_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ROOT", str(tmp_path))
    monkeypatch.setattr(doctor, "on_colab", lambda: False)
    monkeypatch.setattr(doctor, "in_environment", lambda: True)
    (tmp_path / "constraints.txt").write_text("")
    assert '-c constraints.txt -e ".[lab]"' in doctor.install_command()
    assert "--no-index" not in doctor.install_command()
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "wheelhouse" / "wheelhouse.json").write_text("{}")
    assert "--no-index --find-links wheelhouse -c" in doctor.install_command()
    assert "--no-index" in doctor.reinstall_command("torch")
    assert "make lab WHEELS=wheelhouse" in doctor.set_up_anew() or os.name == "nt"
    monkeypatch.setattr(doctor, "in_environment", lambda: False)  # where pip is often refused
    assert doctor.install_command() == doctor.set_up_anew() == doctor.reinstall_command("torch")


# The machine


@pytest.mark.parametrize(
    ("total", "free", "limit", "kind", "said"),
    [
        (16e9, 8e9, 0, "ok", "16.0 GB of memory, 8.0 GB of it free"),
        (16e9, 0, 0, "ok", "16.0 GB of memory"),
        (16e9, 1e9, 0, "note", "1.0 GB of it free"),
        (2e9, 1e9, 0, "note", "a lesson may need 4 GB"),
        (16e9, 8e9, 1.5e9, "note", "a process may use 1.5 GB only"),
        (16e9, 8e9, 8e9, "ok", "16.0 GB"),
        (0, 0, 0, "note", "could not be found out"),
    ],
)
def test_memory(
    total: float, free: float, limit: float, kind: str, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(doctor, "memory", lambda: (total, free))
    monkeypatch.setattr(doctor, "memory_limit", lambda: limit)
    (found,) = doctor.check_memory()
    assert found.kind == kind and said in found.text


@NEEDS_POSIX
def test_memory_is_found_out_without_psutil_and_limits_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_psutil = doctor.memory()[0]
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert doctor.memory()[0] == pytest.approx(with_psutil, rel=0.1)
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_AS)[1];"
        "resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, hard));"
        "from course_lib import doctor; print(doctor.memory_limit())"
    )
    done = run(sys.executable, "-c", code, cwd=SOURCE.parent.parent)
    assert float(done.stdout) <= 3e9, done.stderr


@pytest.mark.parametrize(("free", "kind"), [(50e9, "ok"), (1e9, "note"), (0.1e9, "problem")])
def test_disk(free: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=int(free))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert kinds(doctor.check_disk()) == [(kind, "disk")]


@pytest.mark.parametrize(
    ("variables", "kind", "said"),
    [
        ({}, "ok", "of which torch uses 1"),
        ({"OMP_NUM_THREADS": "1"}, "ok", "(OMP_NUM_THREADS=1)"),
        ({"GOMP_SPINCOUNT": "20000"}, "ok", "uses 1"),
        ({"GOMP_SPINCOUNT": "infinite"}, "note", "(GOMP_SPINCOUNT=infinite)"),
        ({"OMP_WAIT_POLICY": "active"}, "note", "(OMP_WAIT_POLICY=active)"),
    ],
)
def test_threads(
    variables: dict[str, str], kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (found,) = doctor.check_threads(Outcome(1))
    assert found.kind == kind and said in found.text
    (found,) = doctor.check_threads(Outcome(10_000))
    assert found.kind == "note"
    assert list(doctor.check_threads(Outcome())) == []


def test_device() -> None:
    assert kinds(doctor.check_device(Outcome(["the CPU", "quick"]))) == [("ok", "device")]
    (found,) = doctor.check_device(Outcome(error="ValueError: COURSE_PROFILE: expected"))
    assert found.kind == "problem" and "do not set COURSE_PROFILE" in found.todo


# The course's own things


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two data files and their digests."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("one.nii.gz", "two.nii.gz"):
        (folder / name).write_text(name)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in
               folder.iterdir()}  # fmt: skip
    (folder / "origins.json").write_text(json.dumps({"out": digests}))
    monkeypatch.setattr(doctor, "LIBRARY", str(tmp_path))
    return folder


def test_whole_data(data: Path) -> None:
    (found,) = doctor.check_data()
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
    (found,) = doctor.check_data()
    assert found.kind == "problem" and said in found.text and "two" not in found.text
    assert "git checkout -- course_lib/data" in found.todo


def test_a_lost_list_of_the_data_is_told(data: Path) -> None:
    (data / "origins.json").unlink()
    assert kinds(doctor.check_data()) == [("problem", "data")]


def test_which_copy_of_the_course_notebooks_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kinds(doctor.check_course(Outcome(doctor.LIBRARY))) == [("ok", "course")]
    (missing,) = doctor.check_course(Outcome(""))
    assert missing.kind == "problem" and "is not installed in this Python" in missing.text
    monkeypatch.setenv("PYTHONPATH", "/old")
    (other,) = doctor.check_course(Outcome("/old/course_lib"))
    assert other.kind == "problem" and "another copy of the course, /old/course_lib" in other.text
    assert "unset PYTHONPATH" in other.todo


def test_a_set_up_that_stopped_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "setup.log").write_text("")
    assert kinds(doctor.check_course(Outcome(doctor.LIBRARY)))[0] == ("problem", "set-up")
    (tmp_path / ".venv" / "setup.json").write_text("{}")
    assert kinds(doctor.check_course(Outcome(doctor.LIBRARY))) == [("ok", "course")]


def test_a_folder_that_cannot_be_written(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOT", str(copy))
    before = sorted(copy.iterdir())
    assert kinds(doctor.check_work()) == [("ok", "work")] and sorted(copy.iterdir()) == before

    def refuse(path: str, *_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(doctor, "open", refuse, raising=False)
    (found,) = doctor.check_work()
    assert found.kind == "problem" and "cannot be written: Permission denied" in found.text
    assert "authoring.lab --work" in found.todo


def test_the_kernel_is_this_python_and_not_another_of_the_same_origin(tmp_path: Path) -> None:
    assert kinds(doctor.check_kernel(Outcome([sys.executable, "/spec"]))) == [("ok", "kernel")]
    link = tmp_path / "bin" / "python"
    link.parent.mkdir()
    link.symlink_to(Path(sys.executable).resolve())  # as in another virtual environment
    (found,) = doctor.check_kernel(Outcome([str(link), "/spec"]))
    assert found.kind == "problem" and "/spec" in found.text and str(link) in found.text
    (found,) = doctor.check_kernel(Outcome(error="RuntimeError: died"))
    assert found.kind == "problem" and "RuntimeError: died" in found.text
    assert list(doctor.check_kernel(Outcome())) == []


# The report


def test_a_check_that_fails_is_a_finding() -> None:
    def check_moon() -> Iterator[Finding]:
        yield doctor.ok("moon", "is there")
        raise RuntimeError("it is not")

    first, second = doctor.guarded(check_moon)
    assert first.kind == "ok"
    assert (second.kind, second.about) == ("problem", "moon")
    assert "RuntimeError: it is not" in second.text


def test_a_finding_fits_a_mail_and_its_command_stays_in_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = "pip install " + "package " * 30
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/home/ada")
    text = doctor.render(doctor.problem("x", "/home/ada/course " + "word " * 60, command))
    *lines, last = text.split("\n")
    assert all(len(line) <= 100 for line in lines) and len(lines) > 2
    assert lines[0].startswith("[PROBLEM] x: ~/course word") and "/home/ada" not in text
    assert last.strip() == "-> " + command.strip()


def test_the_last_line_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, noted = doctor.ok("a", ""), doctor.note("b", "", "")
    bad, data = doctor.problem("numpy", "", ""), doctor.problem("data", "", "")
    assert doctor.summary([fine]) == "All is well."
    assert doctor.summary([fine, noted]) == "All is well. (1 note: b)"
    monkeypatch.setattr(doctor, "in_venv", lambda: True)
    said = doctor.summary([bad, noted, bad, fine])
    assert said.startswith("2 problems, 1 note: numpy, b. Do what the arrows say")
    assert "delete the folder .venv (never work" in said and doctor.ASK in said
    assert "delete" not in doctor.summary([data])

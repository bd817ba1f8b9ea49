"""The front door: set-up from nothing, nothing to do, and one plain sentence for each trouble.

pip itself is replaced by a few lines of Python, so that nothing is downloaded; once it is real, and
the package index is dead.
"""

import ast
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from authoring import environment, freeze

ROOT = environment.ROOT
SCRIPT = ROOT / "authoring" / "environment.py"
NEEDS_MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
NEEDS_POSIX = pytest.mark.skipif(os.name == "nt", reason="stubs are shell scripts")
Pip = Callable[..., list[str]]


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny course; making its environment takes no pip and so a blink."""
    root = tmp_path / "course"
    root.mkdir()
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("torch==2.13.0\n")

    def make_venv(root: Path, reason: str) -> None:
        venv.create(root / ".venv", clear=True)
        library = next((root / ".venv").glob("[Ll]ib/**/site-packages"))
        (library / "pip.py").write_text("")
        print(f"made: {reason}")

    monkeypatch.setattr(environment, "make_venv", make_venv)
    return root


@pytest.fixture
def pip(tmp_path: Path) -> Pip:
    """Make a stand-in for pip that notes how it was called, prints, and exits with a code."""

    def command(printed: str = "", code: int | str = 0) -> list[str]:
        end = f"sys.exit({code})" if isinstance(code, int) else code
        script = tmp_path / "pip_stub.py"
        script.write_text(
            "import json, os, signal, sys, time\n"
            f"open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
            f"print({printed!r}, flush=True)\n{end}\n"
        )
        return [sys.executable, str(script)]

    return command


def calls(tmp_path: Path) -> list[list[str]]:
    """Return the arguments of each call of the stand-in so far."""
    noted = tmp_path / "calls"
    return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with what it printed kept, in the repository's folder."""
    # `make test` hands its own options down; a make that a test starts is on its own.
    of_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    environ = {name: value for name, value in os.environ.items() if name not in of_make}
    environ |= variables
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environ)


# What is done, and what is not done again


def test_from_nothing_then_nothing_to_do(course: Path, pip: Pip, tmp_path: Path) -> None:
    environment.prepare(course, "lab", pip=pip())
    assert len(calls(tmp_path)) == 1
    arguments = calls(tmp_path)[0]
    assert arguments[0] == "install"
    assert arguments[arguments.index("--editable") + 1] == ".[lab]"
    assert arguments[arguments.index("--constraint") + 1] == "constraints.txt"
    assert "--extra-index-url" not in arguments
    assert environment.is_ready(course, "lab")
    environment.prepare(course, "lab", pip=pip())
    assert len(calls(tmp_path)) == 1


def test_what_tests_need_includes_what_learners_need(
    course: Path, pip: Pip, tmp_path: Path
) -> None:
    environment.prepare(course, "lab", pip=pip())
    assert not environment.is_ready(course, "dev")
    environment.prepare(course, "dev", pip=pip())
    assert ".[dev]" in calls(tmp_path)[1]
    environment.prepare(course, "lab", pip=pip())
    assert len(calls(tmp_path)) == 2


def test_benchmarks_get_their_peers_and_ants_without_what_it_asks_for(
    course: Path, pip: Pip, tmp_path: Path
) -> None:
    environment.prepare(course, "dev", pip=pip())
    assert len(calls(tmp_path)) == 1 and not environment.is_ready(course, "bench")
    environment.prepare(course, "bench", pip=pip())
    peers, ants = calls(tmp_path)[1:]
    assert ".[bench]" in peers and "--constraint" in peers and "--no-deps" not in peers
    assert "--no-deps" in ants and ants[-1].startswith("antspyx==") and "--editable" not in ants
    for level in environment.LEVELS:
        assert environment.is_ready(course, level)
    environment.prepare(course, "lab", pip=pip())
    assert len(calls(tmp_path)) == 3


def test_benchmarks_are_not_ready_while_one_of_two_steps_failed(
    course: Path, pip: Pip, tmp_path: Path
) -> None:
    failing = "sys.exit('--no-deps' in sys.argv)"
    with pytest.raises(environment.Trouble, match=r"The set-up stopped: .*setup\.log"):
        environment.prepare(course, "bench", pip=pip(code=failing))
    assert len(calls(tmp_path)) == 2 and not environment.is_ready(course, "lab")
    environment.prepare(course, "bench", pip=pip())
    assert environment.is_ready(course, "bench")


def test_every_level_is_an_extra_and_has_a_target() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, makefile = declared["optional-dependencies"], (ROOT / "Makefile").read_text()
    for lower, level in pairwise(environment.LEVELS):
        assert any(f"registration-course[{lower}" in line for line in extras[level])
    for level in environment.LEVELS:
        target = environment.MAKES[level].removeprefix("make ")
        assert f"\n{target}:\n\t@$(need_python)\n\t@$(setup) {level} --run " in makefile


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_and_nothing_is_lost(
    course: Path, pip: Pip, tmp_path: Path, name: str
) -> None:
    environment.prepare(course, "dev", pip=pip())
    (course / name).write_text("something else\n")
    environment.prepare(course, "lab", pip=pip())
    assert ".[dev]" in calls(tmp_path)[1]


def test_pytorch_from_another_index(course: Path, pip: Pip, tmp_path: Path) -> None:
    environment.prepare(course, "lab", torch_index="https://example.invalid/cpu", pip=pip())
    arguments = calls(tmp_path)[0]
    assert arguments[arguments.index("--extra-index-url") + 1] == "https://example.invalid/cpu"


def test_a_moved_folder_gets_an_environment_of_its_own(
    course: Path, pip: Pip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.prepare(course, "lab", pip=pip())
    copy = tmp_path / "copy"
    shutil.copytree(course, copy, symlinks=True)
    assert not environment.is_ready(copy, "lab")
    environment.prepare(copy, "lab", pip=pip())
    assert "made: the course's folder was moved or copied" in capsys.readouterr().out
    assert environment.is_ready(copy, "lab") and environment.is_ready(course, "lab")


def test_another_python_gets_an_environment_of_its_own(
    course: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.prepare(course, "lab", pip=pip())
    monkeypatch.setattr(environment, "python_version", lambda: "3.99")
    assert not environment.is_ready(course, "lab")
    environment.prepare(course, "lab", pip=pip())
    assert "and this is Python 3.99" in capsys.readouterr().out


def broken_python(course: Path) -> None:
    """Make the environment's Python unable to start, as after an upgrade of the system's."""
    environment.venv_python(course).unlink()
    environment.venv_python(course).symlink_to("/nowhere/python3")


def missing_pip(course: Path) -> None:
    """Take pip away, as an interruption while the environment was made does."""
    next((course / ".venv").glob("[Ll]ib/**/site-packages/pip.py")).unlink()
    environment.stamp_path(course).unlink()


@NEEDS_POSIX
@pytest.mark.parametrize("break_it", [broken_python, missing_pip])
def test_a_broken_environment_is_made_anew(
    course: Path, pip: Pip, break_it: Callable[[Path], None], tmp_path: Path
) -> None:
    environment.prepare(course, "lab", pip=pip())
    break_it(course)
    environment.prepare(course, "lab", pip=pip())
    assert environment.broken_reason(course) == ""
    assert len(calls(tmp_path)) == 2


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"level": "lab"}', '{"level": "cake"}'])
def test_an_unreadable_note_counts_as_none(
    course: Path, pip: Pip, tmp_path: Path, stamp: str
) -> None:
    environment.prepare(course, "lab", pip=pip())
    environment.stamp_path(course).write_text(stamp)
    environment.prepare(course, "lab", pip=pip())
    assert len(calls(tmp_path)) == 2


def test_packages_that_an_interruption_left_half_installed_are_installed_again(
    course: Path, pip: Pip
) -> None:
    environment.prepare(course, "lab", pip=pip())
    library = next((course / ".venv").glob("[Ll]ib/**/site-packages"))
    for name in ("whole", "half"):
        (library / f"{name}-1.0.dist-info").mkdir()
        (library / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\n")
    (library / "whole-1.0.dist-info" / "INSTALLER").write_text("pip\n")
    environment.stamp_path(course).unlink()
    environment.prepare(course, "lab", pip=pip())
    assert [path.name for path in library.glob("*.dist-info")] == ["whole-1.0.dist-info"]


def test_then_the_environments_own_python_runs(course: Path, pip: Pip) -> None:
    environment.prepare(course, "lab", pip=pip())
    code = (
        "import os, sys; print(sys.prefix, os.getcwd(), os.environ['PATH'].split(os.pathsep)[0],"
        " sys.argv[1:])"
    )
    become = (
        "import sys; from pathlib import Path; from authoring import environment as e;"
        f"e.main(['lab', '--run', '-c', {code!r}, '--port', '1'], Path({str(course)!r}))"
    )
    done = run(sys.executable, "-c", become)
    assert done.stderr == ""
    scripts = environment.venv_python(course).parent
    assert done.stdout.split(maxsplit=3) == [
        str(course / ".venv"),
        str(course),
        str(scripts),
        "['--port', '1']\n",
    ]


# What can go wrong


@pytest.mark.parametrize(
    ("printed", "code", "told"),
    [
        ("ERROR: [Errno 28] No space left on device", 1, "the disk is full"),
        ("WARNING: Retrying: SSLError(CERTIFICATE_VERIFY_FAILED)\nERROR: No matching"
         " distribution found for torch", 1, "certificate was refused"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError: [Errno -3] Temporary"
         " failure in name resolution'\nERROR: No matching distribution found for torch", 1,
         "the package index cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", 1, "was not found"),
        ("ERROR: Could not install: [Errno 13] Permission denied: '/x'", 1, "may not write"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", 1, "arrived damaged"),
        ("ERROR: ResolutionImpossible: for help visit", 1, "a recent one of its series"),
        ("ERROR: something nobody has seen before", 2, "pip failed"),
        pytest.param("", "os.kill(os.getpid(), signal.SIGKILL)", "memory", marks=NEEDS_POSIX),
    ],
)  # fmt: skip
def test_each_failure_of_pip_is_one_sentence_and_the_next_run_repairs_it(
    course: Path, pip: Pip, printed: str, code: int | str, told: str
) -> None:
    with pytest.raises(environment.Trouble) as trouble:
        environment.prepare(course, "lab", pip=pip(printed, code))
    sentence = str(trouble.value)
    assert told in sentence and "\n" not in sentence
    log = course / ".venv" / "setup.log"
    assert str(log) in sentence and printed in log.read_text()
    assert not environment.is_ready(course, "lab")
    environment.prepare(course, "lab", pip=pip())
    assert environment.is_ready(course, "lab")


def test_a_failed_update_is_not_taken_for_a_finished_one(course: Path, pip: Pip) -> None:
    environment.prepare(course, "lab", pip=pip())
    (course / "constraints.txt").write_text("torch==3.0\n")
    with pytest.raises(environment.Trouble):
        environment.prepare(course, "lab", pip=pip(code=1))
    (course / "constraints.txt").write_text("torch==2.13.0\n")  # back, but who knows what is there
    assert not environment.is_ready(course, "lab")


@NEEDS_POSIX
def test_an_interruption_ends_pip_too(
    course: Path, pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float | None, step: str) -> None:
        if seconds is not None and step:
            raise KeyboardInterrupt

    monkeypatch.setattr(environment, "show_progress", interrupted)
    monkeypatch.setattr(environment, "PROGRESS_EVERY", {True: 0.05, False: 0.05})
    pid = tmp_path / "pid"
    sleeper = pip("Collecting torch", f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
                  "print('Downloading torch', flush=True); time.sleep(60)")  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        environment.prepare(course, "lab", pip=sleeper)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), signal.SIG_DFL)
    assert not environment.is_ready(course, "lab")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (KeyboardInterrupt(), "was stopped"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), "the disk is full"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"), "may not write"),
        (OSError(errno.EIO, "Input/output error", "/x"), "Input/output error (/x)"),
    ],
)
def test_the_command_line_ends_in_a_sentence(
    raised: BaseException, told: str, course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(environment, "prepare", prepare)
    with pytest.raises(SystemExit) as stopped:
        environment.main(["lab"], course)
    assert told in str(stopped.value) and "\n" not in str(stopped.value)


def test_a_dead_package_index_for_real(tmp_path: Path) -> None:
    """A real environment, a real pip, and nobody listening at the package index."""
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "nothing"\nversion = "1"\n[project.optional-dependencies]\nlab = []\n'
    )
    (tmp_path / "constraints.txt").write_text("")
    code = (
        "from pathlib import Path; from authoring import environment;"
        f"environment.main(['lab'], Path({str(tmp_path)!r}))"
    )
    dead = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": ""}
    dead |= {"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1"}
    done = run(sys.executable, "-c", code, **dead)
    assert done.returncode == 1
    assert "the package index cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1


# Pythons that cannot do it


def test_an_old_python_can_read_the_file_as_far_as_it_must() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    check = next(
        place for place, node in enumerate(tree.body)
        if isinstance(node, ast.If) and "version_info" in ast.unparse(node.test)
    )  # fmt: skip
    functions = [node for node in tree.body[:check] if isinstance(node, ast.FunctionDef)]
    assert len(functions) == 2
    for function in functions:
        noted = [argument.annotation for argument in function.args.args] + [function.returns]
        assert all(isinstance(note, ast.Name) for note in noted), "old Pythons evaluate these"


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 8, 18), (3, 10, 13)])
def test_an_old_python_is_told_so(version: tuple[int, ...]) -> None:
    pretend = (
        f"import runpy, sys; sys.version_info = {version}; sys.argv = ['environment.py', 'lab'];"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = run(sys.executable, "-c", pretend)
    assert done.returncode == 1
    said = f"This course needs Python 3.11 or newer, and this is Python {version[0]}.{version[1]}"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


@NEEDS_POSIX
def test_a_newer_python_is_offered_only_if_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.newer_python() == ""
    for name, script in (("python3.13", "exit 127"), ("python3.12", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    assert environment.newer_python() == "python3.12"
    assert "PYTHON=python3.12" in environment.too_old_sentence((3, 9, 6), "python3.12")
    assert "https://www.python.org" in environment.too_old_sentence((3, 9, 6), "")


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_is_told_what_to_install(tmp_path: Path, module: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; from pathlib import Path;"
        f"from authoring import environment; environment.main(['lab'], Path({str(tmp_path)!r}))"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert "sudo apt install python3-venv" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_environment_does_not_saw_off_its_own_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    with pytest.raises(environment.Trouble, match="deactivate"):
        environment.make_venv(tmp_path, "a reason")


# The Makefile and the constraints


@NEEDS_MAKE
def test_make_alone_explains_itself() -> None:
    done = run("make")
    targets = next(
        line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:")
    ).split()[2:]
    assert done.returncode == 0 and len(targets) >= 4
    assert [name for name in targets if f"make {name} " not in done.stdout] == []


@NEEDS_MAKE
@pytest.mark.parametrize("target", ["lab", "doctor", "wheelhouse", "test", "build", "bench"])
def test_make_without_python_says_so(target: str) -> None:
    done = run("make", target, "PYTHON=no-such-python")
    assert done.returncode != 0
    assert done.stderr.startswith("There is no no-such-python here: install Python 3.11")


@NEEDS_MAKE
def test_make_passes_on_what_it_is_told() -> None:
    def recipe(*arguments: str) -> str:
        return run("make", "-n", *arguments, "PYTHON=python3").stdout.splitlines()[-1]

    setup = "python3 authoring/environment.py "
    assert recipe("lab") == setup + "lab --run -m authoring.lab --port 8888 "
    assert recipe("lab", "PORT=8890", "OPEN=no", "TORCH_INDEX=https://x/cpu") == (
        setup + '--torch-index "https://x/cpu" lab --run -m authoring.lab --port 8890 --no-browser'
    )
    assert recipe("lab", "WHEELS=usb stick").startswith(setup + '--wheels "usb stick" lab --run')
    assert recipe("test", "PART=mypy") == setup + "dev --run -m authoring.test_all mypy"
    assert (
        recipe("build", "SLUG=00_start_here", "STALE=1", "FORCE=1").split()
        == (setup + "dev --run -m authoring.build 00_start_here --stale --force").split()
    )
    # Printed as two lines of the shell, unlike the others.
    doctor = run("make", "-n", "doctor", "PYTHON=python3").stdout.split()
    assert doctor[-3:] == ["\\", "-m", "course_lib.doctor"] and "python3)" in doctor
    bench = run("make", "-n", "bench", "PYTHON=python3", "QUICK=1", "ONLY=warp").stdout
    assert " ".join(bench.replace("\\\n", " ").split()).endswith(
        setup + 'bench --run -m benchmarks --quick --only "warp"'
    )
    wheels = run("make", "-n", "wheelhouse", "PLATFORM=windows", "PY=3.12", "TORCH_INDEX=https://x")
    assert " ".join(wheels.stdout.replace("\\\n", " ").split()).endswith(
        'python3 -m authoring.wheelhouse --torch-index "https://x" --platform "windows" '
        '--python "3.12"'
    )


@NEEDS_MAKE
def test_make_clean_touches_neither_work_nor_the_environment(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = ["work/notebooks/__pycache__/a.pyc", "work/x.tmp", ".venv/__pycache__/b.pyc", "a.py"]
    gone = ["course_lib/__pycache__/c.pyc", ".mypy_cache/d", "notebooks/.00.ipynb.tmp", "build/e"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    done = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [name for name in kept if not (tmp_path / name).exists()] == []
    assert [name for name in gone if (tmp_path / name).exists()] == []


def test_every_pinned_package_runs_on_the_oldest_python_that_the_course_promises() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = [line.split("==") for line in text.splitlines() if line and not line.startswith("#")]
    oldest = ".".join(map(str, (*environment.OLDEST, 0)))
    refused = []
    for name, version in pins:
        try:
            found = distribution(name)
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        asked = SpecifierSet(found.metadata["Requires-Python"] or "")
        if Version(found.version).public == version and not asked.contains(oldest):
            refused.append(f"{name} {version} needs Python {asked}")
    assert refused == []


def test_the_constraints_hold_every_package_and_nothing_of_this_machine() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pinned = dict(
        line.split("==") for line in text.splitlines() if line and not line.startswith("#")
    )
    extras = frozenset(freeze.EXTRAS) - {"viewer", "bench"}  # `make test` does not install these
    missing = set(freeze.closure(freeze.PROJECT, extras)) - set(pinned)
    assert missing == set(), "run python -m authoring.freeze"
    assert not any(name.startswith(freeze.ONLY_FOR_CUDA) for name in pinned)
    assert "file:" not in text and "+" not in "".join(pinned.values())
    assert pinned["torch"] == "2.13.0"


def test_a_blocked_index_is_not_shown_as_a_download(tmp_path: Path) -> None:
    log = tmp_path / "setup.log"
    log.write_text("Downloading pillow-12.whl (7 MB)\nWARNING: Retrying (Retry(total=4)) after …\n")
    assert environment.latest_step(log) == "the package index does not answer; pip tries again"
    log.write_text(log.read_text() + "Downloading torch-2.13.whl (200 MB)\n")
    assert environment.latest_step(log) == "Downloading torch-2.13.whl (200 MB)"

"""The doctor survives whatever happens to its second process, and says what it means."""

import sys
from pathlib import Path

import pytest

from course_lib.doctor import trials
from course_lib.doctor.finding import Outcome
from tests.doctor_suite import NEEDS_POSIX, kinds


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
    monkeypatch.setattr(trials, "STEP_SECONDS", 8.0 if "sleep" in accident else 120.0)
    command = worker(tmp_path, f"{accident} if step == 'bad' else None")
    outcomes = trials.run_steps(["first", "bad", "last"], command)
    assert outcomes["first"] == Outcome("first") and outcomes["last"] == Outcome("last")
    assert outcomes["bad"].crashed and said in outcomes["bad"].error


def test_what_cannot_but_fail_is_not_tried(tmp_path: Path) -> None:
    command = worker(tmp_path, "os._exit(1) if step == 'import numpy' else None")
    outcomes = trials.run_steps(["import numpy", "import scipy", "import tqdm", "warp"], command)
    assert set(outcomes) == {"import numpy", "import tqdm"}


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
    (found,) = trials.check_threads(Outcome(1))
    assert found.kind == kind and said in found.text
    (found,) = trials.check_threads(Outcome(10_000))
    assert found.kind == "note"
    assert list(trials.check_threads(Outcome())) == []


def test_device() -> None:
    assert kinds(trials.check_device(Outcome(["the CPU", "quick"]))) == [("ok", "device")]
    (found,) = trials.check_device(Outcome(error="ValueError: COURSE_PROFILE: expected"))
    assert found.kind == "problem" and "do not set COURSE_PROFILE" in found.todo


def test_the_kernel_is_this_python_and_not_another_of_the_same_origin(tmp_path: Path) -> None:
    assert kinds(trials.check_kernel(Outcome([sys.executable, "/spec"]))) == [("ok", "kernel")]
    link = tmp_path / "bin" / "python"
    link.parent.mkdir()
    link.symlink_to(Path(sys.executable).resolve())  # as in another virtual environment
    (found,) = trials.check_kernel(Outcome([str(link), "/spec"]))
    assert found.kind == "problem" and "/spec" in found.text and str(link) in found.text
    (found,) = trials.check_kernel(Outcome(error="RuntimeError: died"))
    assert found.kind == "problem" and "RuntimeError: died" in found.text
    assert list(trials.check_kernel(Outcome())) == []

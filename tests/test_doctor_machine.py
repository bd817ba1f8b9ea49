"""The doctor measures the machine: memory, disk."""

import shutil
import sys

import pytest

from course_lib.doctor import machine
from tests.doctor_suite import NEEDS_POSIX, ROOT, kinds, run


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
    total: float,
    free: float,
    limit: float,
    kind: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (total, free))
    monkeypatch.setattr(machine, "memory_limit", lambda: limit)
    (found,) = machine.check_memory()
    assert found.kind == kind and said in found.text


@NEEDS_POSIX
def test_memory_is_found_out_without_psutil_and_limits_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_psutil = machine.memory()[0]
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine.memory()[0] == pytest.approx(with_psutil, rel=0.1)
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_AS)[1];"
        "resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, hard));"
        "from course_lib.doctor import machine; print(machine.memory_limit())"
    )
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert float(done.stdout) <= 3e9, done.stderr


@pytest.mark.parametrize(("free", "kind"), [(50e9, "ok"), (1e9, "note"), (0.1e9, "problem")])
def test_disk(free: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=int(free))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    assert kinds(machine.check_disk()) == [(kind, "disk")]

"""What the test files of the doctor share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from course_lib import doctor
from course_lib.doctor.finding import Finding

FOLDER = Path(doctor.__file__).parent
ROOT = FOLDER.parents[1]
NEEDS_POSIX = pytest.mark.skipif(os.name == "nt", reason="stubs are shell scripts")


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


def kinds(found: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.about) for finding in found]

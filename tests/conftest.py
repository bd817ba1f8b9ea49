"""What several test files need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import course_lib  # noqa: F401  before torch: see there

# `python -m pytest` without an activated environment: nbgrader looks for `alembic` on PATH.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

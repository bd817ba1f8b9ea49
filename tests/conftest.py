"""What several test files need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import course_lib  # noqa: F401  before torch: see there

# A failing assert tells its values there too.
pytest.register_assert_rewrite("tests.widget_suite")

# On small tensors threads mostly wait for one another, the more so on a busy machine.
torch.set_num_threads(1)

# `python -m pytest` without an activated environment: nbgrader looks for `alembic` on PATH.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

"""Medical image registration from scratch: the small library that the lessons grow.

Read it floor by floor: ``spatial`` (fields and sampling), ``losses`` and ``metrics``, then
``classical``, ``optimise`` and ``models``, then data, pictures and widgets.
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# On Linux, torch's threads wait for one another by spinning, for milliseconds. Where something else
# wants the processor too (a browser, a second notebook), that makes small operations up to ten
# times slower. Spinning briefly and then sleeping costs nothing on a quiet machine. Read once, when
# torch is imported, so this has to come before.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def __getattr__(name: str) -> Any:
    """``from course_lib import setup`` without importing torch for everybody else."""
    if name == "setup":
        return import_module("course_lib.runtime").setup
    raise AttributeError(f"module 'course_lib' has no attribute {name!r}")

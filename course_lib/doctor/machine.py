"""Checks of this machine: its Python, its memory, its disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator

from course_lib.doctor import here
from course_lib.doctor.finding import Finding, note, ok, problem

GB = 1e9


def check_python() -> Iterator[Finding]:
    """The Python that runs this."""
    machine = f"{platform.system()} {platform.machine()}"
    where = "the course's .venv" if here.in_venv() else sys.executable
    python = f"Python {platform.python_version()}"
    if sys.version_info[:2] < here.OLDEST:
        text = f"{python} ({where}) is too old: the course needs 3.11 or newer."
        yield problem("python", text, newer_python())
    elif sys.maxsize < 2**32:
        text = f"{python} ({where}) is a 32-bit one, and there is no PyTorch for it."
        todo = "install the 64-bit Python from https://www.python.org; then " + here.set_up_anew()
        yield problem("python", text, todo)
    elif sys.version_info[:2] > here.NEWEST:
        text = f"{python} ({where}) is newer than what the course is tested with."
        todo = (
            "if anything fails, use Python 3.13: delete the folder .venv, then make lab "
            "PYTHON=python3.13"
        )
        yield note("python", text, todo)
    else:
        yield ok("python", f"{python}, {where}, {machine}")


def newer_python() -> str:
    """What to do where Python is too old: perhaps a newer one is here."""
    minors = range(here.NEWEST[1], here.OLDEST[1] - 1, -1) if os.name != "nt" else []
    for name in [f"python3.{minor}" for minor in minors]:
        found = shutil.which(name)
        if found and here.starts(found):  # version managers name some that are not active
            return f"in the course's folder: make lab PYTHON={name} (which is installed here)"
    return (
        "install Python 3.11, 3.12 or 3.13 from https://www.python.org, open a new terminal, then "
        + here.set_up_anew()
        + (" PYTHON=python3.13 (or the one that you installed)" if os.name != "nt" else "")
    )


def check_memory() -> Iterator[Finding]:
    """Memory: a lesson needs up to 4 GB."""
    total, free = memory()
    limit = memory_limit()
    if not total:
        yield note("memory", "How much memory there is could not be found out.", "4 GB are enough")
        return
    text = f"{total / GB:.1f} GB of memory" + (f", {free / GB:.1f} GB of it free" if free else "")
    if limit and limit < min(total, 4 * GB):
        text += f", but a process may use {limit / GB:.1f} GB only; a lesson may need 4 GB."
        todo = "raise the limit that was set here (ulimit -v, or the container's)"
        yield note("memory", text, todo)
    elif total < 3.5 * GB:
        todo = (
            "close other programs, and run one notebook at a time (Kernel > Shut Down All Kernels)"
        )
        yield note("memory", f"{text}; a lesson may need 4 GB.", todo)
    elif free and free < 2 * GB:
        yield note("memory", f"{text}.", "close other programs and notebooks you do not need")
    else:
        yield ok("memory", text)


def memory() -> tuple[float, float]:
    """Bytes of memory in all and free; 0 for what cannot be found out."""
    try:
        import psutil  # Jupyter brings it along

        found = psutil.virtual_memory()
        return float(found.total), float(found.available)
    except Exception:  # missing or broken: not the doctor's business
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), 0.0
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 0.0, 0.0


def memory_limit() -> float:
    """Bytes that this process may use at most, if somebody set a limit below all of it, else 0."""
    limits = []
    try:
        import resource  # not on Windows

        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    except (ImportError, OSError, ValueError, AttributeError):
        pass
    try:
        with open("/sys/fs/cgroup/memory.max") as file:  # a container's
            limits.append(int(file.read()))
    except (OSError, ValueError):
        pass
    return float(min((limit for limit in limits if 0 < limit < 2**60), default=0))


def check_disk() -> Iterator[Finding]:
    """Room on the disk."""
    free = shutil.disk_usage(here.ROOT).free
    text = f"{free / GB:.1f} GB free on the course's disk"
    if free < 0.2 * GB:
        yield problem("disk", text + ": too little to save your work.", "delete what you can spare")
    elif free < 2 * GB:
        yield note("disk", text + ".", "enough for notebooks, not for installing packages")
    else:
        yield ok("disk", text)

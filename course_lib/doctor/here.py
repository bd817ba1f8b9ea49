"""Which Python and which environment this is, and the commands that mend it."""

from __future__ import annotations

import os
import subprocess
import sys

LIBRARY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(LIBRARY)
PROJECT = "registration-course"
OLDEST, NEWEST = (3, 11), (3, 13)


# Which Python


def venv_python() -> str:
    """Where the Python of the course's own environment is, or would be."""
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(ROOT, ".venv", *parts)


def in_venv() -> bool:
    """Whether this process runs in the course's own environment."""
    return same_path(sys.prefix, os.path.join(ROOT, ".venv"))


def in_environment() -> bool:
    """Whether this Python is of some environment, the course's or another, not the system's."""
    conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
    return sys.prefix != sys.base_prefix or conda


def on_colab() -> bool:
    """Whether this is Google Colab, which brings packages of its own and has no ``.venv``."""
    return "COLAB_RELEASE_TAG" in os.environ


def has_source() -> bool:
    """Whether this is the course's folder, not a copy of the library among other packages."""
    return os.path.isfile(os.path.join(ROOT, "constraints.txt"))


def is_installed_here() -> bool:
    """Whether the course was installed for this Python.

    What setuptools leaves in the course's folder (``*.egg-info``) does not count: every Python that
    is started there sees it.
    """
    from importlib.metadata import distributions  # Python 3.7 does not have it

    paths = [str(found.locate_file("")) for found in distributions(name=PROJECT)]
    return any(not has_source() or not same_path(path, ROOT) for path in paths)


def belongs_to_venv() -> bool:
    """Whether there is an environment of the course, and this Python is not to be examined."""
    if in_venv() or not os.path.lexists(venv_python()):
        return False
    return sys.version_info[:2] < OLDEST or not is_installed_here()


def same_path(one: str, other: str) -> bool:
    """Whether two paths lead to the same place."""
    return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))


def starts(python: str) -> bool:
    """Whether a Python runs at all."""
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run([python, "-c", ""], stdout=quiet, stderr=quiet, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


# How to mend it


def install_command() -> str:
    """How to install all that is missing or does not fit, for this Python."""
    if on_colab():
        return "run the notebook's first code cell again, then Runtime > Restart session"
    if not has_source():
        return f'install the course again with "{sys.executable}" -m pip'
    if not in_environment():  # many systems refuse pip there, and rightly
        return set_up_anew()
    return f'{pip_install()} -c constraints.txt -e ".[lab]"'


def reinstall_command(name: str) -> str:
    """How to install one package anew, though pip takes it for installed."""
    if on_colab():
        return f"!pip install --force-reinstall --no-deps {name}, then Runtime > Restart session"
    if has_source() and not in_environment():
        return set_up_anew()
    constraints = " -c constraints.txt" if has_source() else ""
    return f"{pip_install()}{constraints} --force-reinstall --no-deps {name}"


def pip_install() -> str:
    """The beginning of a pip line for this Python, as it is typed in the course's folder."""
    python = os.path.relpath(venv_python(), ROOT) if in_venv() else f'"{sys.executable}"'
    return f"{python} -m pip install{wheelhouse_options()}"


def wheelhouse_options() -> str:
    """What a pip line needs on a machine without a network, if there is a wheelhouse."""
    there = os.path.isfile(os.path.join(ROOT, "wheelhouse", "wheelhouse.json"))
    return " --no-index --find-links wheelhouse" if there else ""


def set_up_anew() -> str:
    """How to make the environment from nothing."""
    wheels = wheelhouse_options()
    if os.name != "nt":
        return "in the course's folder: make lab" + " WHEELS=wheelhouse" * bool(wheels)
    return (
        "in the course's folder, delete .venv if it is there; then: py -3 -m venv .venv; then: "
        rf'.venv\Scripts\python -m pip install{wheels} -c constraints.txt -e ".[lab]"'
    )

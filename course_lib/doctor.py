"""Say what is wrong with this machine or this set-up, and what to do about it.

    python -m course_lib.doctor     # in the course's folder; exit status 0 if all is well

It runs where nothing else does: under an old Python, with packages missing or broken, in a terminal
without the course's environment (it then examines ``.venv``). So it needs the standard library
only, in the syntax of Python 3.7, and prints ASCII. Whatever could end Python, such as importing
torch, is tried in a second process with a time limit, the :func:`worker`.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARY = os.path.join(ROOT, "course_lib")

# A learner's file called random.py or queue.py must not stand in for Python's own; and run as a
# script, this file has course_lib/ on the path, with an io.py.
_searched = sys.path[:]
sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") not in (os.getcwd(), LIBRARY)]

import argparse  # noqa: E402
import hashlib  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import queue  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import textwrap  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

sys.path[:] = [p for p in _searched if os.path.abspath(p or ".") != LIBRARY]

OLDEST, NEWEST = (3, 11), (3, 13)
PROJECT = "registration-course"
STEP_SECONDS = 120.0  # a laptop with a virus scanner takes half a minute to import torch at first
GB = 1e9
# What is imported to see whether a package works: the part of it that holds compiled code.
IMPORTED = {
    "matplotlib": "matplotlib.figure",
    "pillow": "PIL.Image",
    "scikit-image": "skimage.filters",
    "scikit-learn": "sklearn.datasets",
    "scipy": "scipy.ndimage",
}


class Finding(NamedTuple):
    """One line of the report; ``kind`` is ok, note (it works, but ...) or problem."""

    kind: str
    about: str
    text: str
    todo: str = ""


class Requirement(NamedTuple):
    """What the course asks for: ``ranges`` as in ``">=7.7,<9"``, ``extra`` empty or ``"lab"``."""

    name: str
    ranges: str
    extra: str = ""


class Outcome(NamedTuple):
    """What came of one step of the :func:`worker`: a value, or an error in words."""

    value: Any = None
    error: str = ""
    crashed: bool = False


END = "end"  # what the worker says at last: without it, it died
NOT_TRIED = Outcome(error="not tried")


def ok(about: str, text: str) -> Finding:
    """A finding that needs nothing."""
    return Finding("ok", about, text)


def note(about: str, text: str, todo: str) -> Finding:
    """A finding that a lesson survives."""
    return Finding("note", about, text, todo)


def problem(about: str, text: str, todo: str) -> Finding:
    """A finding that some lesson does not survive."""
    return Finding("problem", about, text, todo)


# Which Python, and how to mend it


def venv_python() -> str:
    """Where the Python of the course's own environment is, or would be."""
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(ROOT, ".venv", *parts)


def in_venv() -> bool:
    """Whether this process runs in the course's own environment."""
    return same_path(sys.prefix, os.path.join(ROOT, ".venv"))


def same_path(one: str, other: str) -> bool:
    """Whether two paths lead to the same place."""
    return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))


def has_source() -> bool:
    """Whether this is the course's folder, not a copy of the library among other packages."""
    return os.path.isfile(os.path.join(ROOT, "constraints.txt"))


def on_colab() -> bool:
    """Whether this is Google Colab, which brings packages of its own and has no ``.venv``."""
    return "COLAB_RELEASE_TAG" in os.environ


def is_installed_here() -> bool:
    """Whether the course was installed for this Python.

    What setuptools leaves in the course's folder (``*.egg-info``) does not count: every Python that
    is started there sees it.
    """
    from importlib.metadata import distributions

    paths = [str(found.locate_file("")) for found in distributions(name=PROJECT)]
    return any(not has_source() or not same_path(path, ROOT) for path in paths)


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


def in_environment() -> bool:
    """Whether this Python is of some environment, the course's or another, not the system's."""
    conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
    return sys.prefix != sys.base_prefix or conda


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


def check_python() -> Iterator[Finding]:
    """The Python that runs this."""
    version = platform.python_version()
    machine = f"{platform.system()} {platform.machine()}"
    where = "the course's .venv" if in_venv() else sys.executable
    if sys.version_info[:2] < OLDEST:
        yield problem(
            "python",
            f"Python {version} ({where}) is too old: the course needs 3.11 or newer.",
            newer_python(),
        )
    elif sys.maxsize < 2**32:
        yield problem(
            "python",
            f"Python {version} ({where}) is a 32-bit one, and there is no PyTorch for it.",
            "install the 64-bit Python from https://www.python.org; then " + set_up_anew(),
        )
    elif sys.version_info[:2] > NEWEST:
        yield note(
            "python",
            f"Python {version} ({where}) is newer than what the course is tested with.",
            "if anything fails, use Python 3.13: delete the folder .venv, then make lab "
            "PYTHON=python3.13",
        )
    else:
        yield ok("python", f"Python {version}, {where}, {machine}")


def newer_python() -> str:
    """What to do where Python is too old: perhaps a newer one is here."""
    names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    for name in [] if os.name == "nt" else names:
        found = shutil.which(name)
        if found and starts(found):  # version managers name some that are not active
            return f"in the course's folder: make lab PYTHON={name} (which is installed here)"
    return (
        "install Python 3.11, 3.12 or 3.13 from https://www.python.org, open a new terminal, then "
        + set_up_anew()
        + (" PYTHON=python3.13 (or the one that you installed)" if os.name != "nt" else "")
    )


def starts(python: str) -> bool:
    """Whether a Python runs at all."""
    try:
        done = subprocess.run(
            [python, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def belongs_to_venv() -> bool:
    """Whether there is an environment of the course, and this Python is not to be examined."""
    if in_venv() or not os.path.lexists(venv_python()):
        return False
    return sys.version_info[:2] < OLDEST or not is_installed_here()


def check_caller(caller: str) -> Iterator[Finding]:
    """Another Python started this, and what follows is about the course's own."""
    activate = r".venv\Scripts\activate" if os.name == "nt" else ". .venv/bin/activate"
    yield note(
        "terminal",
        f"Here, python means {caller}, which does not have the course. What follows is about the "
        "course's .venv, which make lab uses.",
        f"to use it in this terminal, too: {activate}",
    )


# Packages


def requirements() -> list[Requirement]:
    """What the course asks for, from its folder or else from what pip noted at installation."""
    path = os.path.join(ROOT, "pyproject.toml")
    if has_source() and os.path.isfile(path):  # newer than pip's note after a `git pull`
        import tomllib

        with open(path, "rb") as file:
            project = tomllib.load(file)["project"]
        lines = [f"{line}; extra == ''" for line in project["dependencies"]]
        extras = project["optional-dependencies"]["lab"]
        lines += [f"{line}; extra == 'lab'" for line in extras]
    else:
        from importlib.metadata import requires

        lines = requires(PROJECT) or []
    return [found for found in map(parse_requirement, lines) if found.extra in ("", "lab")]


def parse_requirement(line: str) -> Requirement:
    """``'jupyterlab>=4.2; extra == "lab"'`` in its parts."""
    wanted, _, marker = line.partition(";")
    name = re.split(r"[\s\[<>=!~(]", wanted.strip(), maxsplit=1)[0]
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]*)['\"]", marker)
    return Requirement(
        name, wanted.strip()[len(name) :].strip("() ").replace(" ", ""), extra[1] if extra else ""
    )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version: ``"2.13.0+cpu"`` gives ``(2, 13)``; zeros at the end do not count.

    Example:
        >>> numbers("2.13.0+cpu"), numbers("4.0rc1")
        ((2, 13), (4,))
    """
    found = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in found[0].split(".")] if found else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def misfit(version: str, ranges: str) -> str:
    """``"too old"``, ``"too new"``, or ``""`` if a version lies in ``">=7.7,<9"``.

    Of the signs that Python knows, only those that the course's ``pyproject.toml`` uses.

    Example:
        >>> misfit("9.0.1", ">=7.7,<9"), misfit("7.7", ">=7.7,<9"), misfit("7.6.5", ">=7.7,<9")
        ('too new', '', 'too old')
    """
    for sign, bound in re.findall(r"(>=|<=|==|>|<)\s*([\d.]+)", ranges):
        have, limit = numbers(version), numbers(bound)
        if (sign in (">=", "==") and have < limit) or (sign == ">" and have <= limit):
            return "too old"
        if (sign in ("<=", "==") and have > limit) or (sign == "<" and have >= limit):
            return "too new"
    return ""


def installed_version(name: str) -> str:
    """The version of an installed package, or ``""``."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name) or ""  # None, if an interrupted pip left an empty folder
    except PackageNotFoundError:
        return ""


def pinned_versions() -> dict[str, str]:
    """``{name: version}`` that the course is tested with, as far as it is known here."""
    try:
        with open(os.path.join(ROOT, "constraints.txt"), encoding="utf-8") as file:
            lines = [line.strip().partition("==") for line in file]
    except OSError:
        return {}
    return {name: version for name, sign, version in lines if sign and not name.startswith("#")}


def check_packages(outcomes: dict[str, Outcome]) -> Iterator[Finding]:
    """Every package: there, of a fitting version, and not broken."""
    wanted = {r.name: r for r in requirements() if not (r.extra and on_colab())}
    missing = [name for name in wanted if not installed_version(name)]
    for kind, extra, why in (("problem", "", ""), ("note", "lab", ", for JupyterLab")):
        names = ", ".join(name for name in missing if wanted[name].extra == extra)
        if names:
            yield Finding(kind, "packages", f"Not installed{why}: {names}.", install_command())
    errors = {name: outcomes.get(f"import {name}", NOT_TRIED).error for name in wanted}
    lost = []
    if "numpy" in missing or errors["numpy"]:
        lost = [name for name in wanted if f"import {name}" in USE_NUMPY and errors[name]]
    starved = [name for name in wanted if name not in lost and wants_memory(errors[name])]
    if starved:
        text = f"There is too little memory to import {', '.join(starved)}."
        todo = "close other programs and notebooks, or raise the limit that was set (ulimit)"
        yield problem("memory", text, todo)
    good, differs, tested = [], [], pinned_versions()
    named = {*missing, *lost, *starved}
    for name in [name for name in wanted if name not in named]:
        version = installed_version(name)
        finding = check_package(wanted[name], version, errors[name])
        if finding:
            yield finding
        elif errors[name] != NOT_TRIED.error:
            good.append(f"{name} {version}")
            if numbers(tested.get(name, version)) != numbers(version):
                differs.append(f"{name} {version} ({tested[name]})")
    if set(lost) - set(missing):
        text = f"Without a working numpy these cannot be imported either: {', '.join(lost)}."
        yield note("packages", text, "first numpy; then run this again")
    if good:
        yield ok("packages", ", ".join(good))
    if differs:
        yield note(
            "versions",
            "In the course's range, but not the tested version (in brackets): "
            + ", ".join(differs),
            install_command(),
        )


def check_package(wanted: Requirement, version: str, error: str) -> Finding | None:
    """What is wrong with one package that is installed, or None."""
    kind = "note" if wanted.extra else "problem"
    wrong = misfit(version, wanted.ranges)
    if wrong:
        text = f"{wanted.name} {version} is {wrong}: the course needs {wanted.name}{wanted.ranges}."
        return Finding(kind, wanted.name, text, install_command())
    if error and error != NOT_TRIED.error:
        text = f"{wanted.name} {version} is installed, but importing it fails: {error}"
        return Finding(kind, wanted.name, text, import_advice(wanted.name, error))
    return None


def wants_memory(error: str) -> bool:
    """Whether an import failed for want of memory; the system ends greedy processes by SIGKILL."""
    signs = ("memoryerror", "cannot allocate memory", "failed to map segment", "sigkill")
    return any(sign in error.lower() for sign in signs)


def import_advice(name: str, error: str) -> str:
    """What to do about a package that is installed and cannot be imported."""
    lower = error.lower()
    if "no module named" in lower:  # something that it needs itself is not there
        return install_command()
    if name == "torch" and os.name == "nt":
        return (
            "install Microsoft's Visual C++ runtime, https://aka.ms/vs/17/release/vc_redist.x64.exe"
            ", and start again; if that does not help: " + reinstall_command(name)
        )
    if "sigill" in lower:
        return (
            "this processor is too old for this build, or it is damaged: try another machine, "
            "or " + reinstall_command(name)
        )
    return reinstall_command(name)


# This machine


def check_memory() -> Iterator[Finding]:
    """Memory: a lesson needs up to 4 GB."""
    total, free = memory()
    limit = memory_limit()
    if not total:
        yield note("memory", "How much memory there is could not be found out.", "4 GB are enough")
        return
    text = f"{total / GB:.1f} GB of memory" + (f", {free / GB:.1f} GB of it free" if free else "")
    if limit and limit < min(total, 4 * GB):
        yield note(
            "memory",
            f"{text}, but a process may use {limit / GB:.1f} GB only; a lesson may need 4 GB.",
            "raise the limit that was set here (ulimit -v, or the container's)",
        )
    elif total < 3.5 * GB:
        yield note(
            "memory", f"{text}; a lesson may need 4 GB.",
            "close other programs, and run one notebook at a time (Kernel > Shut Down All Kernels)",
        )  # fmt: skip
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
        import resource

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
    free = shutil.disk_usage(ROOT).free
    text = f"{free / GB:.1f} GB free on the course's disk"
    if free < 0.2 * GB:
        yield problem("disk", text + ": too little to save your work.", "delete what you can spare")
    elif free < 2 * GB:
        yield note("disk", text + ".", "enough for notebooks, not for installing packages")
    else:
        yield ok("disk", text)


def check_threads(outcome: Outcome) -> Iterator[Finding]:
    """Processors, and what the environment says about threads."""
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = outcome.value
    if not threads:  # torch could not be asked, and that is told elsewhere
        return
    # Importing course_lib sets GOMP_SPINCOUNT to 20000 unless it was set before: see there.
    named = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    found = {name: os.environ[name] for name in named if name in os.environ}
    if found.get("GOMP_SPINCOUNT") == "20000":
        del found["GOMP_SPINCOUNT"]
    settings = ", ".join(f"{name}={value}" for name, value in found.items())
    text = f"{processors} processors, of which torch uses {threads}"
    text += f" ({settings})" if settings else ""
    slow = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(found)
    if threads > processors or slow:
        which = " and ".join(sorted(slow)) or "OMP_NUM_THREADS"
        yield note("threads", text + ": this makes small images slow.", f"do not set {which}")
    else:
        yield ok("threads", text)


def check_device(outcome: Outcome) -> Iterator[Finding]:
    """What the course computes on."""
    if outcome.error:
        todo = "do not set COURSE_PROFILE, or set it to quick or full"
        yield problem("device", outcome.error, todo if "COURSE_PROFILE" in outcome.error else ASK)
    elif outcome.value:
        yield ok("device", "the course computes on {}, profile {}".format(*outcome.value))


# The course's own things


def check_course(outcome: Outcome) -> Iterator[Finding]:
    """Whether notebooks of this Python import this copy of the course."""
    stamp, log = (os.path.join(ROOT, ".venv", name) for name in ("setup.json", "setup.log"))
    if in_venv() and os.path.exists(log) and not os.path.exists(stamp):
        yield problem("set-up", "The last set-up stopped half-way.", "make lab goes on from there")
    if outcome.error:
        yield problem("course", outcome.error, ASK)
    elif not outcome.value:
        yield problem("course", "The course is not installed in this Python.", install_command())
    elif not same_path(outcome.value, LIBRARY):
        unset = "unset PYTHONPATH, which is set here; or: " if "PYTHONPATH" in os.environ else ""
        yield problem(
            "course",
            f"Notebooks import another copy of the course, {outcome.value}, not {LIBRARY}.",
            f"{unset}open the course from the other folder; or, in this one: {install_command()}",
        )  # fmt: skip
    else:
        yield ok("course", f"course_lib {library_version()} in {LIBRARY}")


def library_version() -> str:
    """The version of this copy, read without importing it."""
    with open(os.path.join(LIBRARY, "__init__.py"), encoding="utf-8") as file:
        found = re.search(r'__version__ = "(.*?)"', file.read())
    return found[1] if found else ""


def check_data() -> Iterator[Finding]:
    """The images that ship with the course, byte by byte."""
    folder = os.path.join(LIBRARY, "data")
    todo = "git checkout -- course_lib/data, or copy the course's folder again"
    try:
        with open(os.path.join(folder, "origins.json"), encoding="utf-8") as file:
            expected = json.load(file)["out"]
    except (OSError, ValueError, KeyError) as error:
        yield problem("data", f"The list of the data files cannot be read: {error}", todo)
        return
    damages = [damage(os.path.join(folder, name), digest) for name, digest in expected.items()]
    if any(damages):
        yield problem("data", "; ".join(filter(None, damages)) + ".", todo)
    else:
        yield ok("data", f"{len(expected)} files, all whole")


def damage(path: str, digest: str) -> str:
    """What is wrong with a file that should have this SHA-256, or ``""``."""
    name = os.path.basename(path)
    if not os.path.exists(path):
        return f"{name} is missing"
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if hashlib.sha256(content).hexdigest() == digest:
        return ""
    if content.startswith(b"version https://git-lfs"):
        return f"{name} is a pointer of Git LFS, not the file (git lfs pull fetches it)"
    return f"{name} is damaged ({len(content)} bytes, of another SHA-256)"


def check_work() -> Iterator[Finding]:
    """Whether the learner's notebooks can be saved."""
    if not has_source():
        return
    work = os.path.join(ROOT, "work")
    folder = work if os.path.isdir(work) else ROOT
    probe = os.path.join(folder, f".doctor-{os.getpid()}.tmp")
    todo = "move the course to a folder of yours, or: python -m authoring.lab --work DIR"
    try:
        with open(probe, "w", encoding="utf-8") as file:
            file.write("x" * 10000)
        os.remove(probe)
    except OSError as error:
        yield problem("work", f"{folder} cannot be written: {error.strerror}.", todo)
    else:
        yield ok("work", f"{folder} can be written")


def check_folder() -> Iterator[Finding]:
    """Names in the way: a path too long for Windows, files called like a module of Python's."""
    if os.name == "nt" and has_source() and len(ROOT) > 60:
        yield note(
            "folder",
            f"The path of the course's folder has {len(ROOT)} characters, and on Windows some of "
            "torch's files inside .venv may then be beyond the limit of 260.",
            r"if installing fails, move the course to a short path such as C:\course",
        )
    standard = set(getattr(sys, "stdlib_module_names", ()))
    packages = {IMPORTED.get(r.name, r.name).split(".")[0] for r in requirements()}
    taken = standard | packages | {"course_lib"}
    folders = [os.path.join(ROOT, "work", n) for n in ("", "notebooks", "exercises", "solutions")]
    for folder in [*folders, ROOT] if has_source() else []:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for name in names:
            if name.endswith(".py") and name[:-3] in taken:
                yield problem(
                    "folder",
                    f"{os.path.join(folder, name)} has the name of a module, and what runs in "
                    "that folder imports it instead.",
                    "rename it",
                )


def check_kernel(outcome: Outcome) -> Iterator[Finding]:
    """Whether a notebook's kernel starts, answers, and is this Python with this course."""
    if outcome.error:
        yield problem(
            "kernel", f"A notebook's kernel does not start or answer: {outcome.error}",
            "if a folder is named that is not in .venv, rename it; if a firewall or virus scanner "
            "asks, let Python connect to this machine (127.0.0.1); otherwise: "
            + reinstall_command("ipykernel jupyter-client pyzmq"),
        )  # fmt: skip
    elif outcome.value:
        python, spec = outcome.value
        if same_folder(python, sys.executable):
            yield ok("kernel", "a notebook's kernel starts and runs this Python")
        else:
            yield problem(
                "kernel", f"Notebooks run another Python, {python}: so says {spec}.",
                "rename that folder, which another installation left behind; or in JupyterLab, "
                "Kernel > Change Kernel",
            )  # fmt: skip


def same_folder(one: str, other: str) -> bool:
    """Whether two Pythons are of one environment; their links all lead to the system's."""
    folders = (os.path.normcase(os.path.dirname(os.path.abspath(path))) for path in (one, other))
    return len(set(folders)) == 1


def check_trials(outcomes: dict[str, Outcome]) -> Iterator[Finding]:
    """What lessons do: a warp, a plot, a widget."""
    trials = ("warp", "plot", "widget")
    left = [name for name in trials if name not in outcomes]
    if left:
        text = f"Not tried, since packages are missing or broken: {', '.join(left)}."
        yield note("trials", text, "first the problems above; then run this again")
    for name in sorted(set(trials) - set(left), key=trials.index):
        outcome = outcomes[name]
        if outcome.error:
            yield problem(name, outcome.error, "first the problems above, if any; then " + ASK)
        else:
            yield ok(name, outcome.value)


ASK = "send this whole report to your teacher, or to whoever gave you the course"


# The second process: what may fail in every way


def step_import(name: str) -> str:
    """Import a package; return the name of the module that was imported."""
    return importlib.import_module(IMPORTED.get(name, name.replace("-", "_"))).__name__


def step_threads() -> int:
    """How many threads torch uses."""
    import torch

    return torch.get_num_threads()


def step_device() -> list[str]:
    """What ``setup()`` chooses."""
    import torch

    from course_lib.runtime import setup

    course = setup()
    gpu = course.device.type == "cuda"
    return [torch.cuda.get_device_name(course.device) if gpu else "the CPU", course.profile]


def step_warp() -> str:
    """Warp a random image and compare with what NumPy makes of the formula; then time a volume."""
    import numpy as np
    import torch

    from course_lib.spatial import warp

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(0)
    image = rng.random((40, 50))
    i, j = (grid + rng.uniform(-3, 3, (30, 40)) for grid in np.mgrid[4:34, 4:44])
    top, left = np.floor(i).astype(int), np.floor(j).astype(int)
    down, right = i - top, j - left  # how far each sample is from the voxel above and to the left
    expected = (
        image[top, left] * (1 - down) * (1 - right)
        + image[top + 1, left] * down * (1 - right)
        + image[top, left + 1] * (1 - down) * right
        + image[top + 1, left + 1] * down * right
    )
    displacement = np.stack([i, j]) - np.mgrid[0:30, 0:40]
    tensors = [torch.tensor(a, dtype=torch.float32, device=device)
               for a in (image[None, None], displacement[None])]  # fmt: skip
    error = float(np.abs(warp(*tensors)[0, 0].cpu().numpy() - expected).max())
    if not error < 1e-4:
        raise ValueError(f"the course's warp is off from NumPy's by {error:.2g}")
    shape = (96, 112, 96)
    volume = torch.rand(1, 1, *shape, device=device)
    field = 3 * torch.rand(1, 3, *shape, device=device)
    started = time.perf_counter()
    float(warp(volume, field).sum())
    seconds = time.perf_counter() - started
    return f"agrees with NumPy; a volume of 96 x 112 x 96 voxels takes {seconds:.2f} s"


def step_plot() -> str:
    """Draw a figure of the course's into memory."""
    import io

    import torch

    from course_lib import plotting

    file = io.BytesIO()
    plotting.images({"image": torch.rand(1, 1, 24, 30)}).savefig(file, format="png")
    if not file.getvalue().startswith(b"\x89PNG"):
        raise ValueError("Matplotlib did not draw a picture")
    return "Matplotlib draws"


def step_widget() -> str:
    """Move a slider and see whether the picture follows."""
    import torch

    from course_lib.widgets import deformation_explorer

    playground = deformation_explorer(torch.rand(1, 1, 48, 60))
    before = bytes(playground.picture.value)
    playground.sliders["amplitude"].value += 3
    after = bytes(playground.picture.value)
    if not after.startswith(b"\x89PNG") or before == after:
        raise ValueError("a slider was moved and its picture did not change")
    return "a slider moves, its picture follows"


def step_kernel() -> list[str]:
    """Start the kernel that notebooks ask for; return its Python and where that is laid down."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import start_new_kernel

    spec = KernelSpecManager().get_kernel_spec("python3")
    try:
        manager, client = start_new_kernel(startup_timeout=60, kernel_name="python3")
    except Exception as error:
        raise RuntimeError(f"{error} ({spec.argv[0]}, as {spec.resource_dir} says)") from None
    printed: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        printed.append(message["content"].get("text", ""))

    try:
        code = "import sys; print(sys.executable)"
        client.execute_interactive(code, output_hook=collect, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return ["".join(printed).strip(), spec.resource_dir]


STEPS: dict[str, Callable[[], Any]] = {
    "threads": step_threads,
    "device": step_device,
    "warp": step_warp,
    "plot": step_plot,
    "widget": step_widget,
    "kernel": step_kernel,
}


def worker(steps: list[str]) -> None:
    """Do each step and print what came of it, a line of JSON each, for :func:`run_steps`."""
    # Whatever the packages print goes elsewhere.
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        found = importlib.util.find_spec("course_lib")
        where = os.path.dirname(found.origin) if found and found.origin else ""
        if not found:  # so that the other steps can be tried all the same
            sys.path.append(ROOT)
        importlib.import_module("course_lib")  # before torch: see there
        failed: list[str] = []
        for step in steps:
            if any(leans_on(step, other) for other in failed):
                continue
            try:
                result = {"value": where if step == "course" else do_step(step)}
            except BaseException as error:  # SystemExit, too
                failed.append(step)
                result = {"error": brief(f"{type(error).__name__}: {error}")}
            print(json.dumps([step, result]), file=channel, flush=True)
        print(json.dumps([END, {}]), file=channel, flush=True)


def brief(error: str) -> str:
    """An error in one line, of a long one the beginning and the end, where its cause stands."""
    line = " ".join(error.split())
    return line if len(line) <= 300 else f"{line[:100]} [...] {line[-200:]}"


def do_step(step: str) -> Any:
    """Do a step by its name."""
    if step.startswith("import "):
        return step_import(step[len("import ") :])
    return STEPS[step]()


NEEDS = {
    "threads": {"torch"},
    "device": {"torch", "numpy"},
    "warp": {"torch", "numpy"},
    "plot": {"torch", "numpy", "matplotlib", "pillow"},
    "widget": {"torch", "numpy", "matplotlib", "pillow", "ipywidgets"},
    "kernel": {"ipykernel"},
}
USE_NUMPY = {f"import {name}" for name in ("matplotlib", "nibabel", "scipy")}
USE_NUMPY |= {f"import {name}" for name in ("scikit-image", "scikit-learn", "torch")}


def run_steps(steps: list[str], command: list[str] | None = None) -> dict[str, Outcome]:
    """Have the :func:`worker` do the steps, and survive whatever happens to it.

    Args:
        steps: their names, in order.
        command: what runs the worker; by default this Python.

    Returns:
        What came of each: also of the one at which the process ended or hung.
    """
    command = command or [sys.executable, os.path.abspath(__file__), "--worker"]
    outcomes: dict[str, Outcome] = {}
    waiting = list(steps)
    while waiting:
        for name, outcome in run_worker([*command, *waiting]):
            step = name or waiting[0]
            outcomes[step] = outcome
            if step in waiting:
                waiting.remove(step)
            if outcome.error:
                waiting = [other for other in waiting if not leans_on(other, step)]
    return outcomes


def leans_on(step: str, failed: str) -> bool:
    """Whether a step cannot but fail like the import that did, perhaps after minutes."""
    package = failed[len("import ") :] if failed.startswith("import ") else ""
    return package in NEEDS.get(step, ()) or (package == "numpy" and step in USE_NUMPY)


def run_worker(command: list[str]) -> Iterator[tuple[str, Outcome]]:
    """The steps of one process as they are done; an empty name stands for the one it died in."""
    process = subprocess.Popen(
        command,
        cwd=os.path.abspath(os.sep),  # where no file of the learner's can be imported
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    lines: queue.Queue[str | None] = queue.Queue()
    said: list[str] = []
    readers = [
        threading.Thread(target=read_lines, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=read_lines, args=(process.stderr, said.append), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        while True:
            line = lines.get(timeout=STEP_SECONDS)
            if line is None:
                break
            step, result = json.loads(line)
            if step == END:
                return
            yield step, Outcome(**result)
        readers[1].join(5)
        last = [line for line in said if line and line.strip()][-1:]
        yield "", Outcome(error=death(process.wait(10), last), crashed=True)
    except queue.Empty:
        error = f"it did not end within {STEP_SECONDS:.0f} s"
        yield "", Outcome(error=error, crashed=True)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for reader in readers:
            reader.join(5)


def read_lines(stream: Any, put: Callable[[Any], Any]) -> None:
    """Hand on each line, and None at the end."""
    for line in stream:
        put(line)
    put(None)


def death(code: int, last: list[str]) -> str:
    """How a process ended that should not have, in words."""
    if code < 0:
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
    else:
        how = f"exit code {code:#x}" if code > 255 else f"exit code {code}"
    return f"it ends Python at once ({how})" + (f": {last[0].strip()}" if last else "")


# The report


def findings(caller: str) -> Iterator[Finding]:
    """Everything there is to say, as it is found out."""
    if caller:
        yield from check_caller(caller)
    yield from guarded(check_python)
    if sys.version_info[:2] < OLDEST:
        return
    for check in (check_memory, check_disk, check_data, check_work, check_folder):
        yield from guarded(check)
    yield from guarded(check_what_runs)


def check_what_runs() -> Iterator[Finding]:
    """All that is tried in the second process."""
    names = [wanted.name for wanted in requirements() if installed_version(wanted.name)]
    names.sort(key=lambda name: name != "numpy")  # first, for most of the others import it
    trials = [step for step, packages in NEEDS.items() if packages <= set(names)]
    outcomes = run_steps(["course", *(f"import {name}" for name in names), *trials])
    yield from check_course(outcomes.get("course", Outcome()))
    yield from check_packages(outcomes)
    yield from check_threads(outcomes.get("threads", Outcome()))
    yield from check_device(outcomes.get("device", Outcome()))
    yield from check_trials(outcomes)
    yield from check_kernel(outcomes.get("kernel", Outcome()))


def guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that fails itself is a finding, too."""
    try:
        yield from check()
    except Exception as error:
        name = check.__name__.replace("check_", "")
        yield problem(name, f"This could not be examined: {type(error).__name__}: {error}", ASK)


def render(finding: Finding) -> str:
    """A finding as lines of at most 100 characters."""
    mark = {"ok": "[ok]", "note": "[note]", "problem": "[PROBLEM]"}[finding.kind]
    text = f"{mark:<10}{finding.about}: {' '.join(shorten(finding.text).split())}"
    lines = textwrap.wrap(text, 100, subsequent_indent=" " * 10, break_long_words=False,
                          break_on_hyphens=False)  # fmt: skip
    if finding.todo:  # on one line and unabridged, however long: commands are there to be copied
        lines.append(" " * 10 + "-> " + finding.todo)
    return "\n".join(lines)


def shorten(text: str) -> str:
    """``text`` with ``~`` for the home folder: reports are sent around, with a name in its path."""
    home = os.path.expanduser("~")
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 3 else text


def summary(found: list[Finding]) -> str:
    """The last line or two."""
    problems = [finding.about for finding in found if finding.kind == "problem"]
    notes = [finding.about for finding in found if finding.kind == "note"]
    about = ", ".join(dict.fromkeys(problems + notes))
    noted = f"{len(notes)} note{'s' * (len(notes) > 1)}"
    if not problems:
        return "All is well." + (f" ({noted}: {about})" if notes else "")
    said = f"{len(problems)} problem{'s' * (len(problems) > 1)}" + (f", {noted}" if notes else "")
    lines = [f"{said}: {about}. Do what the arrows say, from the top."]
    if in_venv() and set(problems) - {"data", "disk", "folder", "python", "work"}:
        lines.append("If that does not help: delete the folder .venv (never work, which holds your "
                     "notebooks) and " + set_up_anew() + ".")  # fmt: skip
    lines.append("If that does not help either: " + ASK + ".")
    return "\n".join(lines)


def hand_over() -> int:
    """Let the course's own Python examine itself, and return its exit status."""
    caller = f"{shorten(sys.executable)}, Python {platform.python_version()}"
    command = [venv_python(), "-m", "course_lib.doctor", "--caller", caller]
    return subprocess.call(command, cwd=ROOT)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the result is the exit status, 0 if there is no problem."""
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.doctor",
        description="Say what is wrong with this set-up of the course, and what to do about it. "
        "The exit status is 0 if there is no problem, 1 otherwise.",
    )
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--caller", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker is not None:
        worker(options.worker)
        return 0
    if hasattr(sys.stdout, "reconfigure"):  # a path may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    found: list[Finding] = []
    if not options.caller and belongs_to_venv():
        if starts(venv_python()):
            return hand_over()
        found.append(
            problem("venv", "The Python of the course's .venv does not start.",
                    set_up_anew() + ", which makes it anew" * (os.name != "nt"))
        )  # fmt: skip
        print(render(found[0]), flush=True)
    print("Looking at this machine and this copy of the course, for some ten seconds.", flush=True)
    for finding in findings(options.caller):
        found.append(finding)
        print(render(finding), flush=True)
    print("\n" + summary(found))
    return int(any(finding.kind == "problem" for finding in found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    except BrokenPipeError:  # the report goes into `head` or the like, which has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)

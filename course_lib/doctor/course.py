"""Checks of the course's own things: its library, its data, its folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator

from course_lib.doctor import here
from course_lib.doctor.finding import ASK, Finding, Outcome, note, ok, problem
from course_lib.doctor.packages import requirements
from course_lib.doctor.worker import module_of


def check_course(outcome: Outcome) -> Iterator[Finding]:
    """Whether notebooks of this Python import this copy of the course."""
    stamp, log = (os.path.join(here.ROOT, ".venv", name) for name in ("setup.json", "setup.log"))
    if here.in_venv() and os.path.exists(log) and not os.path.exists(stamp):
        yield problem("set-up", "The last set-up stopped half-way.", "make lab goes on from there")
    install = here.install_command()
    if outcome.error:
        yield problem("course", outcome.error, ASK)
    elif not outcome.value:
        yield problem("course", "The course is not installed in this Python.", install)
    elif not here.same_path(outcome.value, here.LIBRARY):
        text = f"Notebooks import another copy of the course, {outcome.value}, not {here.LIBRARY}."
        unset = "unset PYTHONPATH, which is set here; or: " if "PYTHONPATH" in os.environ else ""
        todo = f"{unset}open the course from the other folder; or, in this one: {install}"
        yield problem("course", text, todo)
    else:
        yield ok("course", f"course_lib {library_version()} in {here.LIBRARY}")


def library_version() -> str:
    """The version of this copy, read without importing it."""
    with open(os.path.join(here.LIBRARY, "__init__.py"), encoding="utf-8") as file:
        found = re.search(r'__version__ = "(.*?)"', file.read())
    return found[1] if found else ""


def check_data() -> Iterator[Finding]:
    """The images that ship with the course, byte by byte."""
    folder = os.path.join(here.LIBRARY, "data")
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


def check_weights() -> Iterator[Finding]:
    """The networks that ship with the course, each against the digest on its card."""
    folder = os.path.join(here.LIBRARY, "weights")
    todo = "git checkout -- course_lib/weights, or copy the course's folder again"
    try:
        files = {os.path.splitext(name)[0] for name in os.listdir(folder) if "safetensors" in name}
        cards = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
        damages = [
            f"{name}.json is missing" for name in sorted(files) if f"{name}.json" not in cards
        ]
        for card in cards:
            with open(os.path.join(folder, card), encoding="utf-8") as file:
                digest = json.load(file)["sha256"]
            name = f"{card.removesuffix('.json')}.safetensors"
            damages.append(damage(os.path.join(folder, name), digest))
    except (OSError, ValueError, KeyError) as error:
        yield problem("weights", f"The cards of the weights cannot be read: {error!r}", todo)
        return
    if any(damages) or not cards:
        text = "; ".join(filter(None, damages)) or "There are no weights"
        yield problem("weights", f"{text}.", todo)
    else:
        yield ok("weights", f"{len(cards)} files, all whole")


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
    if not here.has_source():
        return
    work = os.path.join(here.ROOT, "work")
    folder = work if os.path.isdir(work) else here.ROOT
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
    """Names in the way: a path too long for Windows, files called like a module."""
    if not here.has_source():
        return
    if os.name == "nt" and len(here.ROOT) > 60:
        yield note(
            "folder",
            f"The path of the course's folder has {len(here.ROOT)} characters, and on Windows some "
            "of torch's files inside .venv may then be beyond the limit of 260.",
            r"if installing fails, move the course to a short path such as C:\course",
        )
    for path in files_called_like_a_module():
        text = f"{path} has the name of a module, and what runs in that folder imports it instead."
        yield problem("folder", text, "rename it")


def files_called_like_a_module() -> Iterator[str]:
    """Files such as ``random.py`` or ``numpy.py`` where notebooks run or the course lies."""
    packages = {module_of(wanted.name).split(".")[0] for wanted in requirements()}
    taken = packages | sys.stdlib_module_names | {"course_lib"}
    work = os.path.join(here.ROOT, "work")
    notebooks = [os.path.join(work, name) for name in ("notebooks", "exercises", "solutions")]
    for folder in [work, *notebooks, here.ROOT]:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if name.endswith(".py") and name[:-3] in taken:
                yield os.path.join(folder, name)

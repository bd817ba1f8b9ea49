"""Checks of the packages that the course asks for: there, of a fitting version, not broken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from course_lib.doctor import here
from course_lib.doctor.finding import NOT_TRIED, Finding, Outcome, note, ok, problem
from course_lib.doctor.worker import leans_on


class Requirement(NamedTuple):
    """What the course asks for: ``ranges`` as in ``">=7.7,<9"``, ``extra`` empty or ``"lab"``."""

    name: str
    ranges: str
    extra: str = ""


class Package(NamedTuple):
    """A required package as it is here: ``version`` ``""`` if missing, ``error`` of its import."""

    wanted: Requirement
    version: str
    error: str


# What the course asks for


def requirements() -> list[Requirement]:
    """What the course asks for, from its folder or else from what pip noted at installation."""
    path = os.path.join(here.ROOT, "pyproject.toml")
    if here.has_source() and os.path.isfile(path):  # newer than pip's note after a `git pull`
        import tomllib  # from Python 3.11

        with open(path, "rb") as file:
            project = tomllib.load(file)["project"]
        lines = [f"{line}; extra == ''" for line in project["dependencies"]]
        extras = project["optional-dependencies"]["lab"]
        lines += [f"{line}; extra == 'lab'" for line in extras]
    else:
        from importlib.metadata import requires

        lines = requires(here.PROJECT) or []
    return [found for found in map(parse_requirement, lines) if found.extra in ("", "lab")]


def parse_requirement(line: str) -> Requirement:
    """``'jupyterlab>=4.2; extra == "lab"'`` in its parts.

    Example:
        >>> parse_requirement('jupyterlab>=4.2; extra == "lab"')
        Requirement(name='jupyterlab', ranges='>=4.2', extra='lab')
    """
    wanted, _, marker = line.partition(";")
    name = re.split(r"[\s\[<>=!~(]", wanted.strip(), maxsplit=1)[0]
    ranges = wanted.strip()[len(name) :].strip("() ").replace(" ", "")
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]*)['\"]", marker)
    return Requirement(name, ranges, extra[1] if extra else "")


# Versions


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
        with open(os.path.join(here.ROOT, "constraints.txt"), encoding="utf-8") as file:
            lines = [line.strip().partition("==") for line in file]
    except OSError:
        return {}
    return {name: version for name, sign, version in lines if sign and not name.startswith("#")}


# The check


def check_packages(outcomes: dict[str, Outcome]) -> Iterator[Finding]:
    """Every package: what has a common cause is told once, the rest one by one."""
    packages = examine(outcomes)
    missing = [package for package in packages if not package.version]
    lost = lost_without_numpy(packages)
    starved = [p for p in packages if p not in lost and wants_memory(p.error)]
    yield from tell_missing(missing)
    yield from tell_starved(starved)
    good = []
    for package in packages:
        if package in (*missing, *lost, *starved):
            continue
        finding = check_package(package)
        if finding:
            yield finding
        elif package.error != NOT_TRIED.error:
            good.append(package)
    yield from tell_lost(lost)
    yield from tell_good(good)


def examine(outcomes: dict[str, Outcome]) -> list[Package]:
    """Each package that is needed here, with its version and what importing it said."""
    return [
        Package(
            wanted,
            installed_version(wanted.name),
            outcomes.get(f"import {wanted.name}", NOT_TRIED).error,
        )
        for wanted in requirements()
        if not (wanted.extra and here.on_colab())
    ]


def lost_without_numpy(packages: list[Package]) -> list[Package]:
    """The packages that fail because numpy, which they import, is missing or broken."""
    numpy = next(package for package in packages if package.wanted.name == "numpy")
    if numpy.version and not numpy.error:
        return []
    return [p for p in packages if p.error and leans_on(f"import {p.wanted.name}", "import numpy")]


def wants_memory(error: str) -> bool:
    """Whether an import failed for want of memory; the system ends greedy processes by SIGKILL."""
    signs = ("memoryerror", "cannot allocate memory", "failed to map segment", "sigkill")
    return any(sign in error.lower() for sign in signs)


def check_package(package: Package) -> Finding | None:
    """What is wrong with one package that is installed, or None."""
    (name, ranges, extra), version, error = package
    kind = "note" if extra else "problem"
    wrong = misfit(version, ranges)
    if wrong:
        text = f"{name} {version} is {wrong}: the course needs {name}{ranges}."
        return Finding(kind, name, text, here.install_command())
    if error and error != NOT_TRIED.error:
        text = f"{name} {version} is installed, but importing it fails: {error}"
        return Finding(kind, name, text, import_advice(name, error))
    return None


def import_advice(name: str, error: str) -> str:
    """What to do about a package that is installed and cannot be imported."""
    lower = error.lower()
    if "no module named" in lower:  # something that it needs itself is not there
        return here.install_command()
    if name == "torch" and os.name == "nt":
        return (
            "install Microsoft's Visual C++ runtime, https://aka.ms/vs/17/release/vc_redist.x64.exe"
            ", and start again; if that does not help: " + here.reinstall_command(name)
        )
    if "sigill" in lower:
        return (
            "this processor is too old for this build, or it is damaged: try another machine, "
            "or " + here.reinstall_command(name)
        )
    return here.reinstall_command(name)


def tell_missing(missing: list[Package]) -> Iterator[Finding]:
    """What is not installed: a problem, or a note if only JupyterLab lacks it."""
    for kind, extra, why in (("problem", "", ""), ("note", "lab", ", for JupyterLab")):
        names = [package.wanted.name for package in missing if package.wanted.extra == extra]
        if names:
            text = f"Not installed{why}: {', '.join(names)}."
            yield Finding(kind, "packages", text, here.install_command())


def tell_starved(starved: list[Package]) -> Iterator[Finding]:
    """What there was too little memory for."""
    if starved:
        names = ", ".join(package.wanted.name for package in starved)
        todo = "close other programs and notebooks, or raise the limit that was set (ulimit)"
        yield problem("memory", f"There is too little memory to import {names}.", todo)


def tell_lost(lost: list[Package]) -> Iterator[Finding]:
    """What only numpy is to blame for, if any of it is installed."""
    if any(package.version for package in lost):
        names = ", ".join(package.wanted.name for package in lost)
        text = f"Without a working numpy these cannot be imported either: {names}."
        yield note("packages", text, "first numpy; then run this again")


def tell_good(good: list[Package]) -> Iterator[Finding]:
    """What works, and what of it has another version than the tested one."""
    if good:
        yield ok("packages", ", ".join(f"{p.wanted.name} {p.version}" for p in good))
    tested, differs = pinned_versions(), []
    for (name, _, _), version, _ in good:
        if numbers(tested.get(name, version)) != numbers(version):
            differs.append(f"{name} {version} ({tested[name]})")
    if differs:
        text = "In the course's range, but not the tested version (in brackets): "
        yield note("versions", text + ", ".join(differs), here.install_command())

"""Try the course in an environment like Google Colab's; `make test PART=colab` calls it.

    python -m authoring.colab

The environment, ``.venv-colab``, holds the versions in ``colab-versions.txt`` and is kept between
runs. The course is installed into it by the very cell that does so on Colab, from a git snapshot of
this folder; nothing that was there may change. Then a few solutions run in a folder of their own,
with the installed course and without this one. pip's own settings hold: on Linux, put PyTorch's CPU
index into ``PIP_EXTRA_INDEX_URL`` if you do not want a CUDA build of gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat import NotebookNode

from authoring import environment
from authoring.bootstrap import bootstrap
from authoring.environment import Trouble, say
from authoring.execution import QUIET, WIDGET_VIEW, failure

ROOT = environment.ROOT
VERSIONS = ROOT / "authoring" / "colab-versions.txt"
SOLUTIONS = ("00_*", "01_*", "11_*")
CELL_SECONDS = 300
STARTING_SECONDS = 180  # a cold disk and a busy machine included
KEEP_A_COPY = "File > Save a copy in Drive"
# Colab's kernel has this module loaded; the first cell looks for it.
AS_ON_COLAB = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')"
LIST_PACKAGES = """\
import json, importlib.metadata as metadata
print(json.dumps({d.metadata["Name"]: d.version for d in metadata.distributions()}))"""
# Shows that the installed course is used, with what it ships, and that a widget appears.
PROBE = """\
from importlib.resources import files

from course_lib.datasets import brains
from course_lib.widgets import deformation_explorer

assert (files("course_lib.checks") / "solutions.json").is_file()
print(files("course_lib"))
deformation_explorer(brains.real_pair().fixed)"""


class Changes(NamedTuple):
    """What an installation did: sentences on what it must not do, and what it added."""

    broken: list[str]
    added: dict[str, str]


# The environment


def python_of(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare(folder: Path, versions: Path = VERSIONS) -> dict[str, str]:
    """Make the environment, or bring the one from the last run back to where it started.

    Args:
        folder: where it is, or will be.
        versions: the list of what it holds.

    Returns:
        Name and version of each package in it.

    Raises:
        Trouble: if it cannot be made, saying why.
    """
    stamp = folder / "colab.json"
    wanted = digest_of(folder, versions)
    try:
        noted = json.loads(stamp.read_text("utf-8"))
        if noted["wanted"] == wanted and restored(folder, noted["packages"]):
            say(f"{folder.name} is as the last run found it.")
            return dict(noted["packages"])
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
        pass  # there is none, or it is of no use
    stamp.unlink(missing_ok=True)
    make(folder, versions)
    packages = installed(folder)
    stamp.write_text(json.dumps({"wanted": wanted, "packages": packages}), "utf-8")
    return packages


def digest_of(folder: Path, versions: Path) -> str:
    """A digest of all that decides what an environment holds."""
    parts = [versions.read_text("utf-8"), sys.version, str(folder.resolve())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def restored(folder: Path, packages: dict[str, str]) -> bool:
    """Whether an environment holds these packages and no others, after removing the others."""
    if added := sorted(set(installed(folder)) - set(packages)):
        command = [str(python_of(folder)), "-m", "pip", "uninstall", "--quiet", "--yes", *added]
        subprocess.run(command, check=True, capture_output=True)
    return installed(folder) == packages


def make(folder: Path, versions: Path) -> None:
    """Make the environment from nothing.

    Raises:
        Trouble: if that fails, saying why.
    """
    say(f"Making {folder.name} with the versions of {versions.name}; a minute or two.")
    started = time.monotonic()
    making = [sys.executable, "-m", "venv", "--clear", str(folder)]
    ran = subprocess.run(making, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode:
        why = environment.cause(ran.stdout) or ran.stdout.strip()[-300:]
        raise Trouble(f"{folder.name} could not be made: {why}.")
    log = folder / "setup.log"
    # Compiling what is never imported would take longer than anything else.
    command = [str(python_of(folder)), "-m", "pip", "install", "--no-input", "--no-compile"]
    command += ["--progress-bar", "off", "--requirement", str(versions)]
    if environment.run_with_progress(command, folder, log):
        why = environment.cause(log.read_text("utf-8", errors="replace")) or "pip failed"
        raise Trouble(f"{folder.name} could not be filled: {why} (what pip said is in {log}).")
    say(f"It is ready, after {time.monotonic() - started:.0f} s.")


def installed(folder: Path) -> dict[str, str]:
    """Name, as pip writes it, and version of each package in an environment."""
    command = [str(python_of(folder)), "-I", "-c", LIST_PACKAGES]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(ran.stdout)
    named = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}
    return dict(sorted(named.items()))


def compare(before: dict[str, str], after: dict[str, str], course: str) -> Changes:
    """What installing the course did to the packages of an environment.

    Args:
        before, after: name and version of each package.
        course: the course's own name, which has to be new.
    """
    broken = [
        f"{name} {version} was {'replaced by ' + after[name] if name in after else 'removed'}"
        for name, version in before.items()
        if after.get(name) != version
    ]
    added = {name: version for name, version in after.items() if name not in before}
    if course not in added:
        broken.append(f"{course} was not installed")
    return Changes(broken, added)


# The course as Colab gets it


def snapshot(root: Path, folder: Path) -> str:
    """Commit what git would publish of a working tree to a repository of its own.

    Args:
        root: the course's folder; what its git ignores is left out.
        folder: gets the repository.

    Returns:
        Its address.

    Raises:
        Trouble: if there is no git, or `root` is not in its care.
    """
    if shutil.which("git") is None:
        raise Trouble("The Colab test needs git, as Colab's installation does: install it.")
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    ran = subprocess.run([*listing, "--exclude-standard"], capture_output=True, text=True)
    if ran.returncode:
        raise Trouble(f"The Colab test needs the course's git repository: {ran.stderr.strip()}.")
    for name in filter(None, ran.stdout.split("\0")):
        if (root / name).is_file():  # or it was deleted and not yet committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    git = ["git", "-C", str(folder), "-c", "user.name=course", "-c", "user.email=course@localhost"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "-qm", "snapshot"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    return folder.resolve().as_uri()


# Running notebooks there


class Run(NamedTuple):
    """A notebook after it ran, and the state of its widgets by model."""

    node: NotebookNode
    widgets: dict[str, Any]


def run(node: NotebookNode, venv: Path, folder: Path) -> Run:
    """Run a notebook by the environment's Python, up to its first error.

    Args:
        node: the notebook; it gets the outputs.
        venv: the environment.
        folder: where it runs, and keeps what Jupyter writes.

    Raises:
        Trouble: if the kernel dies or a cell takes too long.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    specs = KernelSpecManager(kernel_dirs=[str(write_kernel_spec(venv, folder))])
    client = NotebookClient(
        node,
        km=AsyncKernelManager(kernel_name="colab", kernel_spec_manager=specs),
        timeout=CELL_SECONDS,
        startup_timeout=STARTING_SECONDS,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=[f"--IPKernelApp.exec_lines={AS_ON_COLAB}", "--log-level=ERROR"],
        shutdown_kernel="immediate",
        log=QUIET,
    )
    try:
        client.execute(env=variables(venv, folder), cleanup_kc=True)
    except CellExecutionError:
        pass  # the error is among the outputs, where `problems` finds it
    except (CellTimeoutError, DeadKernelError, RuntimeError) as error:
        raise Trouble(f"The kernel failed: {str(error).splitlines()[0]}") from error
    return Run(node, client.widget_state)


def write_kernel_spec(venv: Path, folder: Path) -> Path:
    """Describe a kernel called colab; the folder that Jupyter has to look in is returned."""
    argv = [str(python_of(venv)), "-m", "ipykernel_launcher"]
    spec = {"argv": [*argv, "-f", "{connection_file}"], "display_name": "", "language": "python"}
    path = folder / "kernels" / "colab" / "kernel.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(spec), "utf-8")
    return path.parent.parent


def variables(venv: Path, folder: Path) -> dict[str, str]:
    """The kernel's variables: nothing of this environment or of this copy of the course."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MPLBACKEND")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    path = os.pathsep.join([str(python_of(venv).parent), kept.get("PATH", "")])
    own = {"PATH": path, "IPYTHONDIR": str(folder / "ipython"), "PYTHONNOUSERSITE": "1"}
    own["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a warning about frozen modules
    # On a busy machine two threads mostly wait for one another.
    return kept | own | {"COURSE_PROFILE": "quick", "OMP_NUM_THREADS": "1"}


def problems(node: NotebookNode) -> Iterator[str]:
    """What went wrong in the cells of a notebook that ran."""
    for number, cell in enumerate(node.cells, 1):
        if problem := failure(cell):
            yield f"cell {number}: {problem}"


def install_problems(ran: Run, venv: Path) -> Iterator[str]:
    """What went wrong in the first cell, and in the one that looks at what it installed."""
    first, probe = (
        "".join(output.get("text", "") for output in cell.outputs) for cell in ran.node.cells
    )
    yield from problems(ran.node)
    if KEEP_A_COPY not in first:
        yield f"the first cell does not say how to keep a copy, but: {first.strip()}"
    if not probe.startswith(str(venv.resolve())):
        yield f"the course comes from elsewhere: {probe.strip() or 'nowhere'}"
    shown = any(WIDGET_VIEW in output.get("data", {}) for output in ran.node.cells[1].outputs)
    models = sorted({str(state.get("_model_name")) for state in ran.widgets.values()})
    if not (shown and "ImageModel" in models and any("Slider" in model for model in models)):
        yield f"a slider with a picture was expected, and there is: {', '.join(models)}"


# The whole


def installation(address: str, venv: Path, folder: Path) -> list[str]:
    """Install the course as the first cell does on Colab; what is wrong is returned."""
    before = installed(venv)
    cells = [nbformat.v4.new_code_cell(source) for source in (bootstrap(address), PROBE)]
    ran = run(nbformat.v4.new_notebook(cells=cells), venv, folder)
    with (ROOT / "pyproject.toml").open("rb") as file:
        course = tomllib.load(file)["project"]["name"]
    changes = compare(before, installed(venv), course)
    added = ", ".join(f"{name} {version}" for name, version in changes.added.items())
    say(f"Added: {added or 'nothing'}. Left as they were: {len(before) - len(changes.broken)}.")
    return [*changes.broken, *install_problems(ran, venv)]


def solution(path: Path, address: str, venv: Path, folder: Path) -> list[str]:
    """Run a solution; what is wrong is returned."""
    started = time.monotonic()
    node = nbformat.read(path, as_version=4)
    node.cells[1].source = bootstrap(address)
    ran = run(node, venv, folder)
    found = list(problems(ran.node))
    if ran.node.cells[1].outputs:
        found.append("the first cell, run again, is not silent")
    checks = sum(bool(cell.metadata.get("nbgrader", {}).get("grade")) for cell in node.cells)
    say(f"{path.stem}: {checks} checks, {time.monotonic() - started:.0f} s")
    return found


def main() -> int:
    """Run the test; the exit status is returned."""
    folder, started = ROOT / ".venv-colab", time.monotonic()
    try:
        prepare(folder)
        with tempfile.TemporaryDirectory(prefix="colab-") as name:
            own, repository = Path(name) / "content", Path(name) / "repository"
            own.mkdir()
            address = snapshot(ROOT, repository)
            found = installation(address, folder, own)
            for path in sorted(p for s in SOLUTIONS for p in (ROOT / "solutions").glob(s)):
                # Without the course, a solution could only repeat what is known.
                found += [] if found else solution(path, address, folder, own)
    except Trouble as trouble:
        found = [str(trouble)]
    print("\n".join(found) or f"The course fits into Colab: {time.monotonic() - started:.0f} s.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

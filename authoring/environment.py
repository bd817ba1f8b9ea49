"""Make ``.venv`` ready: create it, install the course and what a task needs, or do nothing.

    python3 authoring/environment.py lab                      # what a learner needs
    python3 authoring/environment.py dev --run -m pytest      # and then run .venv's own Python

The system's Python runs this file, whatever it is: so there is only standard library here, the
syntax is that of Python 3.6, and a Python that is too old for the course is told so in a sentence
instead of a ``SyntaxError``. Everything that can go wrong ends in one plain sentence too; what pip
said stands in ``.venv/setup.log``.
"""

import shutil
import subprocess
import sys

OLDEST = (3, 11)
NEWER = ("python3.13", "python3.12", "python3.11")


def newer_python(names: tuple = NEWER) -> str:
    """Return the first of ``names`` that is installed and really runs, or ``""``.

    Version managers put commands on the path for versions that are not active: only running one
    tells.
    """
    for name in names:
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return name
    return ""


def too_old_sentence(version: tuple, newer: str) -> str:
    """Return what to tell somebody whose Python is too old, given a newer one's name or ``""``."""
    said = "This course needs Python {}.{} or newer, and this is Python {}.{}: ".format(
        *(OLDEST + tuple(version[:2]))
    )
    if newer:
        return said + f"add PYTHON={newer} to the make command, which is installed here."
    return said + "install a newer one from https://www.python.org and run make again."


# Annotations above this line are evaluated by every version; those below only by ours.
if sys.version_info < OLDEST:
    sys.exit(too_old_sentence(sys.version_info, newer_python()))

import argparse  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NoReturn  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# Extras of pyproject.toml; each one holds what the one before it holds.
LEVELS = ("lab", "dev", "bench")
MAKES = {"lab": "make lab", "dev": "make test", "bench": "make bench"}
# ANTs asks for older NumPy and SciPy than the course is tested with, and works with these: pip may
# not resolve what it asks for. What else it needs stands in the extra.
UNRESOLVED = {"bench": ("antspyx==0.6.3",)}
PROGRESS_EVERY = {True: 0.2, False: 15.0}  # seconds, on a terminal and elsewhere

# The first cause with a sign in pip's log is named. The order matters: pip reports a certificate
# that it does not trust as a lost connection, and a lost connection as a package that is not there.
CAUSES = (
    (
        ("No space left on device", "not enough space on the disk", "Disk quota exceeded"),
        "the disk is full (the course needs about 3 GB, with PyTorch for CUDA about 8 GB)",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "SSLError", "SSL: "),
        "the package index's certificate was refused, which is often a proxy's doing",
    ),
    (
        (
            "NewConnectionError",
            "Failed to establish a new connection",
            "Temporary failure in name resolution",
            "Name or service not known",
            "getaddrinfo failed",
            "Network is unreachable",
            "Connection refused",
            "Connection reset",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "Read timed out",
            "ProxyError",
            "RemoteDisconnected",
            "IncompleteRead",
        ),
        "the package index cannot be reached: is there a network connection?",
    ),
    (
        ("THESE PACKAGES DO NOT MATCH THE HASHES",),
        "a download arrived damaged",
    ),
    (
        ("No matching distribution found", "Could not find a version that satisfies"),
        "a package was not found: is there a network connection, and a Python from 3.11 to 3.13,"
        " which the course is tested with?",
    ),
    (
        ("Permission denied", "Access is denied"),
        "this user may not write to the course's folder or to .venv",
    ),
)


class Trouble(Exception):
    """What went wrong, as a sentence for the person who typed the command."""


def venv_python(root: Path) -> Path:
    """Return where the Python of ``root``'s environment is, or would be."""
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def digest(root: Path) -> str:
    """Return a digest of everything that decides what has to be installed."""
    content = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        path = root / name
        content.update(path.read_bytes() if path.exists() else b"")
        content.update(b"\0")
    return content.hexdigest()


def read_stamp(root: Path) -> dict[str, str]:
    """Return what the last complete set-up noted, or nothing if there is no such note."""
    try:
        stamp = json.loads(stamp_path(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and stamp.get("level") in LEVELS else {}


def stamp_path(root: Path) -> Path:
    """Return where a complete set-up is noted; the file is gone while one is under way."""
    return root / ".venv" / "setup.json"


def is_ready(root: Path, level: str) -> bool:
    """Tell whether nothing needs doing; it takes a millisecond, so every command asks."""
    stamp = read_stamp(root)
    return (
        stamp.get("level", "") in LEVELS[LEVELS.index(level) :]
        and stamp.get("digest") == digest(root)
        and not stale_reason(root, stamp)
        and venv_python(root).exists()
    )


def stale_reason(root: Path, stamp: dict[str, str]) -> str:
    """Return why an environment that was complete once must be made anew, or ``""``."""
    # A moved or copied folder still runs, but the course that it imports is the old folder's.
    if stamp and stamp.get("root") != str(root):
        return "the course's folder was moved or copied"
    if stamp and stamp.get("python") != python_version():
        return f"it was made by Python {stamp.get('python')} and this is Python {python_version()}"
    return ""


def python_version() -> str:
    """Return this Python's version as far as packages care: ``"3.11"``."""
    return "{}.{}".format(*sys.version_info)


def prepare(
    root: Path,
    level: str,
    torch_index: str = "",
    pip: Sequence[str] | None = None,
) -> None:
    """Make ``root/.venv`` hold all that ``level`` needs.

    Args:
        root: The course's folder.
        level: One of ``LEVELS``. An environment that had a higher one before keeps it.
        torch_index: An index to look for PyTorch in, besides the usual one.
        pip: The command to use as pip; by default the environment's own.

    Raises:
        Trouble: If it cannot be done, saying why. The next call repairs what is half done.
    """
    if is_ready(root, level):
        return
    stamp = read_stamp(root)
    level = max(level, stamp.get("level", level), key=LEVELS.index)
    started = time.monotonic()
    reason = stale_reason(root, stamp) or broken_reason(root)
    if reason:
        make_venv(root, reason)
    stamp_path(root).unlink(missing_ok=True)
    remove_half_installed(root)
    install(root, level, torch_index, pip or [str(venv_python(root)), "-m", "pip"])
    install_unresolved(root, level, pip or [str(venv_python(root)), "-m", "pip"])
    write_stamp(root, level)
    say(f"The set-up is done, after {time.monotonic() - started:.0f} s.")


def broken_reason(root: Path) -> str:
    """Return why there is no usable environment, or ``""`` if Python and pip run in it."""
    python = venv_python(root)
    if not python.exists():
        return "there is none yet"
    try:
        code = "import pip, sys; print('{}.{}'.format(*sys.version_info))"
        ran = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    except OSError:
        return "its Python does not run"
    if ran.returncode != 0:
        return "its pip is missing or broken"
    if ran.stdout.strip() != python_version():
        return f"it has Python {ran.stdout.strip()} and this is Python {python_version()}"
    return ""


def make_venv(root: Path, reason: str) -> None:
    """Create ``root/.venv`` from nothing, whatever stands there.

    Raises:
        Trouble: If this Python lacks the modules for it, or creating it fails.
    """
    if Path(sys.prefix).resolve() == (root / ".venv").resolve():
        raise Trouble(f".venv must be made anew ({reason}): run `deactivate` first, then make.")
    try:
        import ensurepip  # noqa: F401  Debian and Ubuntu ship Python without it
        import venv  # noqa: F401
    except ImportError:
        raise Trouble(
            "This Python cannot make virtual environments (its venv or ensurepip module is"
            " missing): on Debian or Ubuntu, run `sudo apt install python3-venv`; then run make"
            " again."
        ) from None
    say(f"Making .venv with Python {python_version()} ({reason}).")
    command = [sys.executable, "-m", "venv", "--clear", str(root / ".venv")]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode != 0:
        last = (ran.stdout.strip().splitlines() or ["no reason given"])[-1]
        why = cause(ran.stdout) or last
        raise Trouble(f"Python could not make the environment in {root / '.venv'}: {why}.")


def remove_half_installed(root: Path) -> None:
    """Make pip install again what an interrupted set-up left unfinished.

    pip takes a package for installed once its ``METADATA`` stands, and writes ``INSTALLER`` after
    the package's last file.
    """
    for folder in (root / ".venv").glob("[Ll]ib/**/site-packages/*.dist-info"):
        if not (folder / "INSTALLER").exists():
            shutil.rmtree(folder)


def install(root: Path, level: str, torch_index: str, pip: Sequence[str]) -> None:
    """Install the course, editable, with the extras ``level`` and the tested versions.

    Raises:
        Trouble: If pip fails; the sentence names the cause where its log gives it away.
    """
    say(f"Installing what `{MAKES[level]}` needs; a few minutes.")
    command = [*pip, "install", "--no-input", "--progress-bar", "off", "--editable", f".[{level}]"]
    command += ["--constraint", "constraints.txt"]
    if torch_index:
        command += ["--extra-index-url", torch_index]
    run_pip(command, root)


def install_unresolved(root: Path, level: str, pip: Sequence[str]) -> None:
    """Install what ``level`` needs beside its extra, and nothing of what that asks for.

    Raises:
        Trouble: If pip fails.
    """
    packages = UNRESOLVED.get(level, ())
    if packages:
        options = ["--no-input", "--progress-bar", "off", "--no-deps"]
        run_pip([*pip, "install", *options, *packages], root)


def run_pip(command: Sequence[str], root: Path) -> None:
    """Run pip, with its output in ``.venv/setup.log``.

    Raises:
        Trouble: If it fails; the sentence names the cause where its log gives it away.
    """
    log = root / ".venv" / "setup.log"
    code = run_with_progress(command, root, log)
    if code != 0:
        # A negative code is a signal; for want of memory the system sends 9.
        why = "it was killed, perhaps for want of memory" if code == -9 else ""
        why = why or cause(log.read_text(encoding="utf-8", errors="replace")) or "pip failed"
        raise Trouble(f"The set-up stopped: {why} (what pip said is in {log}).")


def cause(output: str) -> str:
    """Return what kept pip or venv from working, as far as their output gives it away."""
    for signs, sentence in CAUSES:
        if any(sign in output for sign in signs):
            return sentence
    return ""


def run_with_progress(command: Sequence[str], root: Path, log: Path) -> int:
    """Run ``command`` with its output in ``log``, showing the seconds and its latest step.

    Returns:
        The command's exit code.
    """
    started = time.monotonic()
    pause = PROGRESS_EVERY[sys.stdout.isatty()]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(pause)
                except subprocess.TimeoutExpired:
                    show_progress(time.monotonic() - started, latest_step(log))
        finally:
            if process.poll() is None:  # Ctrl-C, most likely
                process.terminate()
                process.wait()
            show_progress(None, "")
    return process.returncode


def latest_step(log: Path) -> str:
    """Return pip's latest line that says what it is doing."""
    text = log.read_bytes()[-20000:].decode("utf-8", "replace")
    steps = re.findall(r"^ *((?:Collect|Download|Build|Prepar|Install|Obtain)ing.*)$", text, re.M)
    return steps[-1].rstrip() if steps else ""


def show_progress(seconds: float | None, step: str) -> None:
    """Show one line that the next one overwrites; ``None`` seconds wipe it."""
    line = "" if seconds is None else f"{seconds:4.0f} s  {step}"[:78]
    if sys.stdout.isatty():
        print(f"\r{line:<78}", end="\r" if seconds is None else "", flush=True)
    elif line:
        print(line, flush=True)


def write_stamp(root: Path, level: str) -> None:
    """Note that the set-up is complete, in one step: half a note would be taken for none."""
    stamp = {
        "level": level,
        "digest": digest(root),
        "root": str(root),
        "python": python_version(),
    }
    draft = stamp_path(root).with_suffix(".tmp")
    draft.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    draft.replace(stamp_path(root))


def say(sentence: str) -> None:
    """Print at once, also when the output goes to a file."""
    print(sentence, flush=True)


def become(root: Path, arguments: Sequence[str]) -> NoReturn:
    """Run the environment's Python in ``root`` instead of this process.

    The environment's commands come first on the path, as if it were activated: nbgrader, for one,
    calls ``alembic`` by its name.
    """
    python = venv_python(root)
    os.chdir(root)
    os.environ["VIRTUAL_ENV"] = str(root / ".venv")
    os.environ["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    os.environ.pop("PYTHONHOME", None)
    if os.name != "nt":
        os.execv(python, [str(python), *arguments])
    sys.exit(subprocess.call([str(python), *arguments]))  # Windows cannot replace a process


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make .venv ready, or do nothing if it is.")
    parser.add_argument("--torch-index", default="", metavar="URL", help="look for PyTorch there")
    parser.add_argument("level", choices=LEVELS, help="what to install")
    parser.add_argument(
        "--run", nargs=argparse.REMAINDER, default=[], help="then run .venv's Python with these"
    )
    options = parser.parse_args(argv)
    try:
        prepare(root, options.level, options.torch_index)
        if options.run:
            become(root, options.run)
    except Trouble as trouble:
        sys.exit(str(trouble))
    except KeyboardInterrupt:
        sys.exit("The set-up was stopped; the next make goes on from here.")
    except OSError as error:
        why = cause(str(error)) or f"{error.strerror or error} ({error.filename or root})"
        sys.exit(f"The set-up stopped: {why}.")


if __name__ == "__main__":
    main()

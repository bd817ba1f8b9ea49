"""Make ``.venv`` ready: create it, install the course and what a task needs, or do nothing.

    python3 authoring/environment.py lab                      # what a learner needs
    python3 authoring/environment.py dev --run -m pytest      # and then run .venv's own Python
    python3 authoring/environment.py --wheels DIR lab         # without a network: see wheelhouse.py

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
import http.client  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import re  # noqa: E402
import sysconfig  # noqa: E402
import time  # noqa: E402
import urllib.error  # noqa: E402
import urllib.parse  # noqa: E402
import urllib.request  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# Extras of pyproject.toml; each one holds what the one before it holds.
LEVELS = ("lab", "dev", "bench")
MAKES = {"lab": "make lab", "dev": "make test", "bench": "make bench"}
# ANTs asks for older NumPy and SciPy than the course is tested with, and works with these: pip may
# not resolve what it asks for. What else it needs stands in the extra.
UNRESOLVED = {"bench": ("antspyx==0.6.3",)}
MANIFEST = "wheelhouse.json"  # in a finished wheelhouse: for which machines, and with which files
PLATFORMS = {  # as Python's sysconfig and as people call them
    "linux-x86_64": "linux",
    "linux-aarch64": "linux-arm",
    "macosx-arm64": "macos",
    "win-amd64": "windows",
}
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
        ("BadZipFile", "is invalid.", "Bad CRC-32", "zlib.error"),
        "a package's file is damaged",
    ),
    (
        ("ResolutionImpossible",),
        "the tested versions cannot be installed together: is this Python one from 3.11 to 3.13,"
        " and a recent one of its series?",
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


def platform_name() -> str:
    """Return this machine's kind as people call it, ``"windows"``, or as Python does."""
    # What Python was built for decides, not the processor: Windows on ARM runs both kinds.
    built = sysconfig.get_platform()
    if built.startswith("macosx"):  # where one build serves two processors
        built = f"macosx-{platform.machine()}"
    return PLATFORMS.get(built, built)


def prepare(
    root: Path,
    level: str,
    torch_index: str = "",
    pip: Sequence[str] | None = None,
    wheels: str = "",
) -> None:
    """Make ``root/.venv`` hold all that ``level`` needs.

    Args:
        root: The course's folder.
        level: One of ``LEVELS``. An environment that had a higher one before keeps it.
        torch_index: An index to look for PyTorch in, besides the usual one.
        pip: The command to use as pip; by default the environment's own.
        wheels: A wheelhouse, a folder or an http address; if given, packages come from there alone.

    Raises:
        Trouble: If it cannot be done, saying why. The next call repairs what is half done.
    """
    if is_ready(root, level):
        return
    stamp = read_stamp(root)
    level = max(level, stamp.get("level", level), key=LEVELS.index)
    started = time.monotonic()
    if wheels:
        if level != "lab":
            raise Trouble(
                f"A wheelhouse holds what `make lab` needs, and here goes `{MAKES[level]}`, too:"
                " leave WHEELS out, or delete .venv if `make lab` is enough."
            )
        wheels = find_wheels(wheels)
        check_wheels(root, wheels, read_manifest(wheels))
    reason = stale_reason(root, stamp) or broken_reason(root)
    if reason:
        make_venv(root, reason)
    stamp_path(root).unlink(missing_ok=True)
    remove_half_installed(root)
    pip = pip or [str(venv_python(root)), "-m", "pip"]
    install(root, level, torch_index, pip, wheels)
    install_unresolved(root, level, pip)
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


def find_wheels(wheels: str) -> str:
    """Return the wheelhouse as pip needs it: an address that ends in ``/``, or a whole path.

    Raises:
        Trouble: If there is no such folder.
    """
    if is_address(wheels):
        return wheels.rstrip("/") + "/"
    folder = Path(wheels).expanduser().absolute()
    if not folder.is_dir():
        raise Trouble(f"WHEELS: there is no folder {folder}.")
    return str(folder)


def is_address(wheels: str) -> bool:
    """Tell an address from a folder."""
    return wheels.startswith(("http://", "https://"))


def read_manifest(wheels: str) -> dict[str, Any]:
    """Return what `authoring.wheelhouse` noted about a finished wheelhouse.

    Raises:
        Trouble: If it is out of reach, unfinished or only half copied.
    """
    try:
        if is_address(wheels):
            open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
            with open_url(wheels + MANIFEST, timeout=30) as answer:
                content = answer.read()
        else:
            content = Path(wheels, MANIFEST).read_bytes()
        manifest = json.loads(content)
        return {target: dict(files) for target, files in manifest["targets"].items()}
    except (FileNotFoundError, urllib.error.HTTPError):
        raise Trouble(
            f"{wheels} is not a finished wheelhouse, it has no {MANIFEST}: run `make wheelhouse`"
            " again where there is a network (it goes on from where it stopped), and copy or serve"
            " the whole folder."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        if not is_address(wheels):
            raise
        raise Trouble(
            f"{wheels} cannot be reached ({getattr(error, 'reason', error)}): is the server"
            " running there, are both machines in one network, and does no firewall stand between?"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Trouble(
            f"{MANIFEST} in {wheels} is damaged: copy the wheelhouse again, or run `make"
            " wheelhouse` again."
        ) from None


def check_wheels(root: Path, wheels: str, targets: dict[str, Any]) -> None:
    """Refuse a wheelhouse that cannot serve this machine, before pip stumbles over it.

    Args:
        root: The course's folder.
        wheels: The wheelhouse, as :func:`find_wheels` returned it.
        targets: ``{"linux 3.11": {file name: bytes}}``.

    Raises:
        Trouble: If it is for other machines, incomplete, or not for this version of the course.
    """
    files = targets.get(f"{platform_name()} {python_version()}")
    if files is None:
        raise Trouble(other_machine_sentence(sorted(targets)))
    if not is_address(wheels):
        bad = [name for name, size in files.items() if file_size(Path(wheels, name)) != size]
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise Trouble(f"{wheels} is incomplete ({bad[0]}{more}): copy the whole folder again.")
    wanted = pinned_versions(root)
    for name, version in sorted(map(wheel_version, files)):
        if wanted.get(name, version) != version:
            raise Trouble(
                f"The wheelhouse has {name} {version} and this copy of the course wants"
                f" {wanted[name]}: use the copy that it was made with, or run `make wheelhouse`"
                " again."
            )


def other_machine_sentence(targets: Sequence[str]) -> str:
    """Return what to tell somebody whose machine is none of those the wheelhouse is for."""
    here, version = platform_name(), python_version()
    made_for = " and ".join(
        "Python {1} on {0}".format(*target.partition(" ")[::2]) for target in targets
    )
    said = f"This wheelhouse was made for {made_for}, and this is Python {version} on {here}: "
    usable = [f"python{target.split()[-1]}" for target in targets if target.startswith(here + " ")]
    found = newer_python(tuple(usable))
    if found:
        return said + f"add PYTHON={found} to the make command, which is installed here."
    if usable:
        said += f"install Python {usable[0][len('python') :]} here, or "
    return said + f"run `make wheelhouse PLATFORM={here} PY={version}` where there is a network."


def file_size(path: Path) -> int:
    """Return a file's size in bytes, or -1 if there is no such file."""
    return path.stat().st_size if path.is_file() else -1


def wheel_version(file: str) -> tuple[str, str]:
    """Return name and version of a wheel as ``constraints.txt`` writes them."""
    name, version = file.split("-")[:2]
    return re.sub(r"[-_.]+", "-", name).lower(), version.partition("+")[0]


def pinned_versions(root: Path) -> dict[str, str]:
    """Return ``{name: version}`` of what ``constraints.txt`` holds."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return {name.strip(): version.strip() for name, sign, version in pins if sign}


def wheels_options(wheels: str) -> list[str]:
    """Return pip's options for taking packages from a wheelhouse and from nowhere else."""
    options = ["--no-index", "--find-links", wheels]
    if wheels.startswith("http://"):  # which pip otherwise trusts on this machine only
        options += ["--trusted-host", urllib.parse.urlsplit(wheels).netloc]
    return options


def pip_environment(wheels: str) -> dict[str, str] | None:
    """Return the variables that pip runs with; ``None`` stands for those of this process.

    With a wheelhouse neither pip's configuration nor a proxy counts: they belong to the network
    that is not there.
    """
    if not wheels:
        return None
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("PIP_") and not name.lower().endswith("_proxy")
    }
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "*", "no_proxy": "*"}


def install(root: Path, level: str, torch_index: str, pip: Sequence[str], wheels: str = "") -> None:
    """Install the course, editable, with the extras ``level`` and the tested versions.

    Raises:
        Trouble: If pip fails; the sentence names the cause where its log gives it away.
    """
    say(f"Installing what `{MAKES[level]}` needs; a few minutes.")
    command = [*pip, "install", "--no-input", "--progress-bar", "off", "--editable", f".[{level}]"]
    command += ["--constraint", "constraints.txt"]
    if wheels:
        command += wheels_options(wheels)
    elif torch_index:
        command += ["--extra-index-url", torch_index]
    run_pip(command, root, wheels)


def install_unresolved(root: Path, level: str, pip: Sequence[str]) -> None:
    """Install what ``level`` needs beside its extra, and nothing of what that asks for.

    ``make lab`` needs no such thing, so a wheelhouse never has to serve it.

    Raises:
        Trouble: If pip fails.
    """
    packages = UNRESOLVED.get(level, ())
    if packages:
        options = ["--no-input", "--progress-bar", "off", "--no-deps"]
        run_pip([*pip, "install", *options, *packages], root)


def run_pip(command: Sequence[str], root: Path, wheels: str = "") -> None:
    """Run pip, with its output in ``.venv/setup.log``.

    Args:
        command: What to run, in ``root``.
        root: The course's folder.
        wheels: The wheelhouse that the command names, if it names one.

    Raises:
        Trouble: If it fails; the sentence names the cause where its log gives it away.
    """
    log = root / ".venv" / "setup.log"
    code = run_with_progress(command, root, log, pip_environment(wheels))
    if code != 0:
        said = log.read_text(encoding="utf-8", errors="replace")
        # A negative code is a signal; for want of memory the system sends 9.
        why = "it was killed, perhaps for want of memory" if code == -9 else ""
        why = why or (wheels and wheels_cause(said, wheels)) or cause(said) or "pip failed"
        raise Trouble(f"The set-up stopped: {why} (what pip said is in {log}).")


def wheels_cause(output: str, wheels: str) -> str:
    """Return what a wheelhouse lacks or has too much of, as far as pip's output gives it away."""
    missing = re.search(r"No matching distribution found for ([^\s;]+)", output)
    if "ResolutionImpossible" in output:
        return "the wheelhouse does not fit this version of the course: run `make wheelhouse` again"
    if "Connection" in output and is_address(wheels):
        return f"the connection to {wheels} broke off"
    if missing:
        return (
            f"{missing[1]} is not in the wheelhouse, which holds what `make lab` needs: run `make"
            " wheelhouse` again with this version of the course"
        )
    return ""


def cause(output: str) -> str:
    """Return what kept pip or venv from working, as far as their output gives it away."""
    for signs, sentence in CAUSES:
        if any(sign in output for sign in signs):
            return sentence
    return ""


def run_with_progress(
    command: Sequence[str], root: Path, log: Path, variables: dict[str, str] | None = None
) -> int:
    """Run ``command`` with its output in ``log``, showing the seconds and its latest step.

    Args:
        command: What to run, in ``root``.
        root: The course's folder.
        log: Where the output goes.
        variables: Its environment; by default this process's.

    Returns:
        The command's exit code.
    """
    started = time.monotonic()
    pause = PROGRESS_EVERY[sys.stdout.isatty()]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
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
    doing = "Collect|Download|Build|Prepar|Install|Obtain"
    steps = re.findall(rf"^ *((?:{doing})ing.*|WARNING: Retrying .*)$", text, re.M)
    if steps and steps[-1].startswith("WARNING"):
        return "the package index does not answer; pip tries again"
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
    parser.add_argument(
        "--wheels", default="", metavar="DIR", help="install from this wheelhouse (or its address)"
    )
    parser.add_argument("level", choices=LEVELS, help="what to install")
    parser.add_argument(
        "--run", nargs=argparse.REMAINDER, default=[], help="then run .venv's Python with these"
    )
    options = parser.parse_args(argv)
    try:
        prepare(root, options.level, options.torch_index, wheels=options.wheels)
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

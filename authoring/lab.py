"""Serve the course in JupyterLab, on the learner's own copies of the notebooks.

    python -m authoring.lab [--port 8890] [--no-browser]

The copies live in ``work/``, which git ignores. Before the server starts, what is new in
``notebooks/``, ``exercises/`` and ``solutions/`` is copied there; what a learner changed is never
touched.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from authoring.layout import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("notebooks", "exercises", "solutions")
RECORD = ".copied.json"
FIRST = "notebooks/00_start_here.ipynb"
NAMED_AT_MOST = 5


@dataclass
class Mirrored:
    """What one run of `mirror` did, as paths below ``work/``."""

    copied: list[str] = field(default_factory=list)
    refreshed: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)


def mirror(root: Path, work: Path) -> Mirrored:
    """Bring ``work`` up to date with the built notebooks, without touching anyone's own work.

    A file that is missing is copied; one that is still as it was copied is replaced by a newer
    version; any other belongs to the learner and stays. ``work/.copied.json`` tells them apart: it
    holds the digest of every copy. Without it, every file that differs belongs to the learner.
    What JupyterLab writes into a notebook that was only opened or run does not count.
    Nothing is ever deleted, and a file is replaced in one step or not at all.

    Args:
        root: The course's folder, with the built notebooks.
        work: The learner's folder; it is created if need be.

    Returns:
        What was copied and refreshed, and which of the learner's files have a newer version.
    """
    done = Mirrored()
    work.mkdir(parents=True, exist_ok=True)
    record = read_record(work)
    for name in shipped(root):
        content = (root / name).read_bytes()
        newest, copy = file_digest(content), work / name
        last = record.get(name)
        record[name] = newest
        if not os.path.lexists(copy):
            write_atomically(copy, content)
            done.copied.append(name)
            continue
        now = file_digest(copy.read_bytes()) if copy.is_file() else None
        if now == newest:
            continue
        if now is not None and now == last:
            write_atomically(copy, content)
            done.refreshed.append(name)
        elif last != newest:
            # Keeps being said until the learner has the newest version. Without a record it is
            # said once: nobody knows which version the learner started from.
            done.outdated.append(name)
            if last is not None:
                record[name] = last
    write_atomically(work / RECORD, json.dumps(record, indent=1, sort_keys=True).encode())
    return done


def shipped(root: Path) -> Iterator[str]:
    """Yield the files to mirror, in order, as paths with forward slashes below ``root``."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root)
            leftover = path.suffix in (".tmp", ".pyc") or any(p.startswith(".") for p in name.parts)
            if path.is_file() and not leftover:
                yield name.as_posix()


def read_record(work: Path) -> dict[str, str]:
    """Return the digests of the copies, or nothing if the record is lost or unreadable."""
    try:
        record = json.loads((work / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: value for name, value in record.items() if isinstance(value, str)}


def file_digest(content: bytes) -> str:
    """Return the digest under which the record knows a file's content.

    Of a notebook only what a person writes counts: JupyterLab saves metadata of its own into a
    notebook that was opened, and outputs into one that was run.
    """
    return hashlib.sha256(written(content)).hexdigest()


def written(content: bytes) -> bytes:
    """Return a notebook's cells as kinds, sources, attachments; of other files everything."""
    try:
        cells = json.loads(content)["cells"]
        parts = [(cell["cell_type"], cell["source"], cell.get("attachments")) for cell in cells]
    except (ValueError, KeyError, TypeError):
        return content
    # A source is one string or a list of lines, as the program that saved it likes.
    joined = [(kind, "".join(source), more) for kind, source, more in parts]
    return json.dumps(joined, sort_keys=True).encode()


def report(done: Mirrored, work: Path) -> str:
    """Return what to tell the learner about `mirror`'s doings, or ``""``: nobody waits for it."""
    lines = []
    changes = [(done.copied, "copied"), (done.refreshed, "refreshed")]
    counts = [f"{len(names)} {verb}" for names, verb in changes if names]
    if counts:
        lines.append(f"Your notebooks are in {work}: {', '.join(counts)}.")
    if done.outdated:
        names = done.outdated[:NAMED_AT_MOST]
        more = len(done.outdated) - len(names)
        lines.append(
            f"Newer versions exist of files that you changed (rename yours to get one): "
            f"{', '.join(names)}{f' and {more} more' if more else ''}."
        )
    return "\n".join(lines)


def jupyter_options(work: Path, port: int, open_browser: bool) -> list[str]:
    """Return the command line for JupyterLab."""
    options = [
        f"--ServerApp.root_dir={work}",
        f"--ServerApp.port={port}",
        f"--ServerApp.open_browser={open_browser}",
        # The tabs that are open here have nothing to do with the learner's other projects.
        f"--LabApp.workspaces_dir={work / '.lab' / 'workspaces'}",
        "--ServerApp.answer_yes=True",
        "--ServerApp.log_level=WARN",
        "--LabApp.log_level=WARN",
    ]
    if (work / FIRST).exists():
        options.append(f"--LabApp.default_url=/lab/tree/{FIRST}")
    # Only root must say that it knows what it does, and Windows has no such user.
    if getattr(os, "geteuid", lambda: 1)() == 0:
        options.append("--ServerApp.allow_root=True")
    return options


def use_own_configuration() -> None:
    """Let ``authoring/jupyter`` win over other configuration, for this process only.

    It switches off what `make test` installs for teachers and maintainers, among it nbgrader's
    "Create Assignment" panel, and JupyterLab's announcements: with its ``news_url`` unset it still
    asks whether the reader wants news. The learner's own settings stay in force.
    """
    own = str(ROOT / "authoring" / "jupyter")
    others = os.environ.get("JUPYTER_CONFIG_PATH")
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join([own, others] if others else [own])


def serve(options: Sequence[str], port: int) -> None:
    """Run JupyterLab until it is stopped, and say where it is.

    Args:
        options: JupyterLab's command line.
        port: The port that was asked for; the next free one is taken if it is not free.
    """
    from jupyterlab.labapp import LabApp

    server = LabApp.initialize_server(argv=list(options))
    lines = [f"JupyterLab is at {server.local_url}", "Ctrl-C here stops it."]
    if port and server.port != port:
        lines.insert(0, f"Port {port} is taken; {server.port} is free, so it is that one.")
    # The loop's first callback opens the port: the address is not printed before it answers.
    server.io_loop.add_callback(print, "\n".join(lines), flush=True)
    server.identity_provider.token_generated = False  # or Jupyter prints the address, too
    server.start()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Serve the course in JupyterLab.")
    parser.add_argument("--port", type=int, default=8888, help="0 takes any free port")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--work", type=Path, default=ROOT / "work", help="the learner's folder")
    parser.add_argument("--course", type=Path, default=ROOT, help="where the notebooks are built")
    parser.add_argument("jupyter", nargs="*", help="after --: more options for JupyterLab")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    try:
        said = report(mirror(arguments.course.resolve(), work), work)
    except OSError as error:
        why = f"{error.strerror or error} ({error.filename})"
        sys.exit(f"Your notebooks could not be copied to {work}: {why}.")
    if said:
        print(said)
    use_own_configuration()
    options = jupyter_options(work, arguments.port, not arguments.no_browser)
    serve([*options, *arguments.jupyter], arguments.port)


if __name__ == "__main__":
    main()

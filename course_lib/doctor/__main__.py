"""The command line: ``python -m course_lib.doctor``."""

from __future__ import annotations

import os
import sys

# What lies in the folder where this is started comes last: there, a learner's random.py or queue.py
# must not stand in for Python's own.
sys.path.sort(key=lambda folder: os.path.abspath(folder or ".") == os.getcwd())

import argparse
import platform
import subprocess

from course_lib.doctor import here
from course_lib.doctor.finding import Finding, problem
from course_lib.doctor.report import findings, render, shorten, summary


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the result is the exit status, 0 if there is no problem."""
    options = parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a path may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    found = []
    if not options.caller and here.belongs_to_venv():
        if here.starts(here.venv_python()):
            return hand_over()
        todo = here.set_up_anew() + ", which makes it anew" * (os.name != "nt")
        text = "The Python of the course's .venv does not start."
        found.append(tell(problem("venv", text, todo)))
    print("Looking at this machine and this copy of the course, for some ten seconds.", flush=True)
    found += [tell(finding) for finding in findings(options.caller)]
    print("\n" + summary(found))
    return int(any(finding.kind == "problem" for finding in found))


def parser() -> argparse.ArgumentParser:
    """The options: none but ``--help``, and who handed over."""
    made = argparse.ArgumentParser(
        prog="python -m course_lib.doctor",
        description="Say what is wrong with this set-up of the course, and what to do about it. "
        "The exit status is 0 if there is no problem, 1 otherwise.",
    )
    made.add_argument("--caller", default="", help=argparse.SUPPRESS)
    return made


def hand_over() -> int:
    """Let the course's own Python examine itself, and return its exit status."""
    caller = f"{shorten(sys.executable)}, Python {platform.python_version()}"
    command = [here.venv_python(), "-m", "course_lib.doctor", "--caller", caller]
    return subprocess.call(command, cwd=here.ROOT)


def tell(finding: Finding) -> Finding:
    """Print a finding as soon as it is there, and hand it on."""
    print(render(finding), flush=True)
    return finding


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    except BrokenPipeError:  # the report goes into `head` or the like, which has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)

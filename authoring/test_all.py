"""Run every check of the repository and say how long each took; `make test` calls it.

    python -m authoring.test_all                  # everything
    python -m authoring.test_all ruff mypy        # some of it

All parts run, also after one has failed; any failure makes the whole fail.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PARTS: dict[str, Sequence[str]] = {
    "ruff": ["ruff", "check"],
    "mypy": ["mypy", "course_lib", "authoring"],
    "build": ["authoring.build", "--check"],
    "pytest": ["pytest", "tests", "--doctest-modules", "course_lib"],
    "nbval": [
        "pytest",
        "--nbval-lax",
        "--nbval-cell-timeout=180",
        "--nbval-sanitize-with",
        "tests/sanitize.cfg",
        "notebooks",
        "solutions",
    ],
    "colab": ["authoring.colab"],
}


class Outcome(NamedTuple):
    """How one part went. Any exit code but 0 is a failure, pytest's 5 for "no tests" too."""

    part: str
    seconds: float
    code: int


def run_part(part: str, arguments: Sequence[str]) -> Outcome:
    """Run a module with this Python, in the repository's folder, its output shown as it comes."""
    print(f"\n== {part}: {' '.join(arguments)}", flush=True)
    started = time.monotonic()
    code = subprocess.call([sys.executable, "-m", *arguments], cwd=ROOT)
    return Outcome(part, time.monotonic() - started, code)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes and their wall times, one line each, and the total."""
    lines = [
        f"{o.part:<8}{o.seconds:8.1f} s  {'passed' if o.code == 0 else f'FAILED ({o.code})'}"
        for o in outcomes
    ]
    lines.append(f"{'in all':<8}{sum(o.seconds for o in outcomes):8.1f} s")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, parts: dict[str, Sequence[str]] = PARTS) -> int:
    """Run the parts that are named, or all, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run every check of the repository.")
    parser.add_argument("part", nargs="*", help=f"one of {', '.join(parts)}; all if none is named")
    names = parser.parse_args(argv).part or list(parts)
    unknown = [name for name in names if name not in parts]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(parts)}")
    try:
        outcomes = [run_part(name, parts[name]) for name in names]
    except KeyboardInterrupt:
        return 130
    print("\n" + table(outcomes))
    return int(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

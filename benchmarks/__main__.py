"""All benchmarks one after another, or some of them: what `make bench` runs.

python -m benchmarks                        # all of it
python -m benchmarks networks task          # these parts
python -m benchmarks --quick --only warp    # what has this in its name, in a short version
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import contenders, networks, registrars

# What each part measures: the names that `--only` looks into.
PARTS: dict[str, list[str]] = {
    "primitives": [row.name for row in contenders.ROWS],
    "networks": [row.name for row in networks.ROWS],
    "task": [method.name for method in registrars.REGISTRARS],
    "agreement": ["agreement"],
}
MODULES = {part: f"benchmarks.{part}" for part in PARTS} | {
    "agreement": "benchmarks.voxelmorph_agreement"
}


def commands(parts: Sequence[str], only: Sequence[str], quick: bool) -> list[list[str]]:
    """The command line of each part, with those words that it knows.

    Raises:
        SystemExit: if a word is in no name of these parts, with the names.
    """
    for word in only:
        if not any(_known(part, [word]) for part in parts):
            names = "\n  ".join(name for part in parts for name in PARTS[part])
            sys.exit(f"--only: nothing has {word!r} in its name; there are\n  {names}")
    found = []
    for part in parts:
        words = _known(part, only)
        if (only and not words) or (quick and part == "agreement"):
            continue
        options = ["--quick"] if quick else []
        if part != "agreement":
            options += [option for word in words for option in ("--only", word)]
        found.append(["-m", MODULES[part], *options])
    return found


def _known(part: str, only: Sequence[str]) -> list[str]:
    return [word for word in only if any(word.lower() in name.lower() for name in PARTS[part])]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; each part in a process of its own, and a failing one does not stop."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--quick", action="store_true", help="the small cases only")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="these only")
    options = parser.parse_args(argv)
    if unknown := [part for part in options.part if part not in PARTS]:
        sys.exit(f"There is no part {unknown[0]!r}; there are {', '.join(PARTS)}.")
    failed = []
    for command in commands(options.part or list(PARTS), options.only, options.quick):
        print(f"\n{command[1]}\n", flush=True)
        if subprocess.run([sys.executable, *command]).returncode != 0:
            failed.append(command[1])
    if failed:
        sys.exit(f"FAILED: {', '.join(failed)}")


if __name__ == "__main__":
    main()

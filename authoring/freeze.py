"""Write ``constraints.txt`` from the packages that are installed here.

    pip install -e '.[bench,viewer]' && python -m authoring.freeze

Only what the extras below pull in is written, without local version suffixes (``2.13.0``, not
``2.13.0+cpu``) and without what PyTorch's CUDA build brings along, so that the file serves every
system: it constrains what gets installed and asks for nothing itself.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = "registration-course"
EXTRAS = ("lab", "instructor", "viewer", "dev", "bench")
ONLY_FOR_CUDA = ("nvidia-", "cuda-", "triton")
HEADER = f"""\
# The versions that the course is tested with. Generated: do not edit, but run
#     .venv/bin/pip install -e '.[bench,viewer]' && .venv/bin/python -m authoring.freeze
# after installing what should change. Holds what the extras {", ".join(EXTRAS)} pull in.
"""


def requirements(name: str, extras: frozenset[str]) -> list[Requirement]:
    """Return what the installed package ``name`` requires here, with these extras."""
    declared = [Requirement(line) for line in distribution(name).requires or []]
    environments = [{"extra": extra} for extra in sorted(extras) or [""]]
    return [
        requirement
        for requirement in declared
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments))
    ]


def closure(name: str, extras: frozenset[str]) -> dict[str, str]:
    """Return name and version of all that ``name`` pulls in, itself left out.

    Raises:
        PackageNotFoundError: If a package that belongs to it is not installed.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        current = waiting.pop()
        if current in seen or current[0].startswith(ONLY_FOR_CUDA):
            continue
        seen.add(current)
        versions[current[0]] = Version(distribution(current[0]).version).public
        waiting += [
            (canonicalize_name(required.name), frozenset(required.extras))
            for required in requirements(*current)
        ]
    del versions[name]
    return versions


def main() -> None:
    """Write the file beside ``pyproject.toml``."""
    try:
        versions = closure(PROJECT, frozenset(EXTRAS))
    except PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed: first pip install -e '.[bench,viewer]'.")
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    path = Path(__file__).resolve().parent.parent / "constraints.txt"
    draft = path.with_suffix(".tmp")
    draft.write_text(HEADER + "".join(lines), encoding="utf-8")
    os.replace(draft, path)
    print(f"{path.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()

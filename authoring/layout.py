"""Where things stand in the repository, and how a file is written there."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACEHOLDER = "https://example.invalid/"


class BuildError(Exception):
    """What a person has to mend, in one plain message."""


@dataclass(frozen=True)
class Layout:
    """The folders of one copy of the course.

    Args:
        root: the folder that holds `pyproject.toml`.
    """

    root: Path

    @property
    def lessons(self) -> Path:
        """Masters of the lessons."""
        return self.root / "authoring" / "lessons"

    @property
    def exercises(self) -> Path:
        """Masters of the exercises."""
        return self.root / "authoring" / "exercises"

    @property
    def built(self) -> Path:
        """Which version of master and library the stored outputs come from."""
        return self.root / "authoring" / "built.json"

    @property
    def solution_texts(self) -> Path:
        """What `check.name.solution()` opens."""
        return self.root / "course_lib" / "checks" / "solutions.json"

    @property
    def task_points(self) -> Path:
        """The tasks of each exercise in order, with their points; `progress()` reads it."""
        return self.root / "course_lib" / "checks" / "points.json"

    def notebook(self, folder: str, slug: str) -> Path:
        """A built notebook: `folder` is notebooks, solutions or exercises."""
        return self.root / folder / f"{slug}.ipynb"

    def name(self, path: Path) -> str:
        """The path as messages and `built.json` give it: from the root, with slashes."""
        return path.relative_to(self.root).as_posix()

    def repository(self) -> str:
        """The address in `pyproject.toml`, from which Colab installs the course."""
        path = self.root / "pyproject.toml"
        try:
            address = tomllib.loads(path.read_text("utf-8"))["project"]["urls"]["Repository"]
        except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
            raise BuildError(f"{path}: no [project.urls] Repository to read: {error!r}") from error
        return str(address).rstrip("/").removesuffix(".git")


def write_atomically(path: Path, content: bytes) -> None:
    """Put a whole file in place, or none: a temporary file in the same folder, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BuildError(f"{path}: not JSON ({error}); delete it and build again") from error
    if not isinstance(content, dict):
        raise BuildError(f"{path}: an object was expected; delete it and build again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON with sorted keys, if that changes the file."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text("utf-8") != text:
        write_atomically(path, text.encode())

"""Masters in, notebooks out: `python -m authoring.build [SLUG …]`; see `--help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from authoring.assembly import Target, slugs, solution_texts, targets, task_points
from authoring.covers import cover_problem, with_cover
from authoring.digests import library_digest, master_digest
from authoring.execution import execute, has_run, located, unfit_outputs, with_outputs_of
from authoring.layout import BuildError, Layout, read_json, write_atomically, write_json

FOLDERS = ("notebooks", "solutions", "exercises")


def choose(layout: Layout, wanted: list[str]) -> list[str]:
    """The slugs that are meant by `11`, `displacement_fields` or `11_displacement_fields`.

    Args:
        layout: the copy of the course.
        wanted: what was asked for; nothing means everything.
    """
    known = slugs(layout)
    chosen: set[str] = set()
    for text in wanted:
        found = {slug for slug in known if text in (slug, *slug.split("_", 1))}
        if not found:
            raise BuildError(f"no master is called {text}; there are: {', '.join(known) or 'none'}")
        chosen |= found
    return sorted(chosen) if wanted else known


# Building


def build(
    layout: Layout,
    wanted: list[str],
    *,
    run: bool = True,
    force: bool = False,
    stale: bool = False,
) -> None:
    """Bring notebooks up to date with their masters; these are all read before a file is written.

    Args:
        layout: the copy of the course.
        wanted: slugs, as `choose` takes them.
        run: whether code may be executed; outputs of unchanged cells are kept either way.
        force: execute unchanged notebooks too.
        stale: execute also those whose part of the library has changed since.
    """
    chosen = choose(layout, wanted)
    problems, plan = read_all(layout, chosen)
    if problems:
        raise BuildError("\n".join(problems))
    for path, content in facts_for_checks(layout, plan):
        write_json(path, content)
    for target in plan:
        existing = stored(target.path)
        node = with_outputs_of(target.node, existing) if target.runs else target.node
        if target.runs and run and (force or needs_run(layout, target, node, stale)):
            node = execute(target, layout.root)
            if problem := cover_problem(node):
                raise located(target, *problem)
            write_notebook(layout, target.path, with_cover(node), existing)
            record(layout, target)
        else:
            write_notebook(layout, target.path, with_cover(node), existing)


def needs_run(layout: Layout, target: Target, node: NotebookNode, stale: bool) -> bool:
    """Whether the outputs that `node` holds come from something else than today's code."""
    entry = read_json(layout.built).get(layout.name(target.path), {})
    if not has_run(node) or unfit_outputs(node) or cover_problem(node):
        return True
    if entry.get("master") != master_digest(node):
        return True
    return stale and entry.get("library") != library_digest(node, layout.root)


def read_all(layout: Layout, chosen: list[str]) -> tuple[list[str], list[Target]]:
    """What is wrong with the masters, and the notebooks of those with which nothing is."""
    problems: list[str] = []
    plan: list[Target] = []
    for slug in chosen:
        try:
            plan += targets(layout, slug)
        except BuildError as error:
            problems.append(str(error))
    return problems, plan


def write_notebook(
    layout: Layout, path: Path, node: NotebookNode, existing: NotebookNode | None
) -> None:
    """Write a notebook if that changes it."""
    if node != existing:
        nbformat.validate(node)
        write_atomically(path, (nbformat.v4.writes(node) + "\n").encode())
        print(f"{layout.name(path)}: written", flush=True)


def stored(path: Path) -> NotebookNode | None:
    """The notebook in a file exactly as it stands there; None if there is none to be read."""
    try:
        node: NotebookNode = nbformat.v4.reads(path.read_text("utf-8"))
        nbformat.validate(deepcopy(node))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError):
        return None
    return node


def record(layout: Layout, target: Target) -> None:
    """Remember what the outputs of a notebook were made from, and forget notebooks that went."""
    # Read again each time: another build may have written in the meantime.
    entries = {
        name: entry for name, entry in read_json(layout.built).items() if master_of(layout, name)
    }
    entries[layout.name(target.path)] = {
        "library": library_digest(target.node, layout.root),
        "master": master_digest(target.node),
    }
    write_json(layout.built, entries)


def master_of(layout: Layout, name: str) -> bool:
    """Whether there is a master for a built notebook."""
    return Path(name).stem in slugs(layout)


def facts_for_checks(layout: Layout, plan: list[Target]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files that tell the checks about the exercises, with what these notebooks say."""
    files: list[tuple[Path, Callable[[Target], Any]]] = [
        (layout.solution_texts, solution_texts),
        (layout.task_points, task_points),
    ]
    known = slugs(layout)
    for path, facts in files:
        content = {slug: old for slug, old in read_json(path).items() if slug in known}
        for target in plan:
            if target.path.parent.name == "solutions":
                content[target.path.stem] = facts(target)
        yield path, content


# Checking


def check(layout: Layout, wanted: list[str]) -> tuple[list[str], list[str]]:
    """Compare what is built with the masters, without executing anything.

    Args:
        layout: the copy of the course.
        wanted: slugs, as `choose` takes them.

    Returns:
        Problems, and names of notebooks whose outputs are older than the library.
    """
    problems, plan = read_all(layout, choose(layout, wanted))
    entries = read_json(layout.built)
    older = []
    for target in plan:
        name = layout.name(target.path)
        entry = entries.get(name, {})
        problems += [f"{name}: {problem}" for problem in problems_of(target, entry)]
        library = library_digest(target.node, layout.root) if target.runs else None
        if entry.get("library", library) != library:
            older.append(name)
    for path, content in facts_for_checks(layout, plan):
        if content != read_json(path):
            problems.append(f"{layout.name(path)}: differs from the masters")
    if not wanted:
        problems += orphans(layout, entries)
    return problems, older


def problems_of(target: Target, entry: dict[str, str]) -> Iterator[str]:
    """What is wrong with one built notebook, as far as one can tell without running it."""
    existing = stored(target.path)
    if existing is None:
        yield "is no notebook" if target.path.exists() else "not built yet"
        return
    if not target.runs:
        if place := difference(existing, target.node):
            yield f"{place} differs from {target.master}"
        return
    expected = with_cover(with_outputs_of(target.node, existing))
    if attached(existing) != attached(expected):
        yield "the picture under its title is not that of its cell tagged cover: build it again"
    elif place := difference(without_outputs(existing), without_outputs(expected)):
        yield f"{place} differs from {target.master}"
    if entry.get("master") != master_digest(target.node):
        yield f"its outputs come from another version of {target.master}"
    elif not has_run(existing):
        yield "not executed from top to bottom"
    elif problem := cover_problem(expected):
        yield f"cell {problem[0] + 1} {problem[1]}"
    for number in unfit_outputs(existing):
        yield f"cell {number} holds outputs that the build does not store"


def attached(node: NotebookNode) -> Any:
    """What is attached to the title cell: the cover of a lesson."""
    return node.cells[0].get("attachments") if node.cells else None


def without_outputs(node: NotebookNode) -> NotebookNode:
    """A copy without outputs and execution counts."""
    cells = [
        NotebookNode(cell, outputs=[], execution_count=None) if cell.cell_type == "code" else cell
        for cell in node.cells
    ]
    return NotebookNode(node, cells=cells)


def difference(existing: NotebookNode, expected: NotebookNode) -> str | None:
    """Where two notebooks differ first; None if they are the same."""
    if existing == expected:
        return None
    if len(existing.cells) != len(expected.cells):
        return f"the number of cells, {len(existing.cells)} (not {len(expected.cells)}),"
    for number, (old, new) in enumerate(zip(existing.cells, expected.cells, strict=True), 1):
        if old != new:
            keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            return f"cell {number} ({', '.join(keys)})"
    return "its metadata"


def orphans(layout: Layout, entries: dict[str, Any]) -> list[str]:
    """Built notebooks, and entries about them, that no master stands behind."""
    paths = (path for folder in FOLDERS for path in (layout.root / folder).glob("*.ipynb"))
    names = {layout.name(path) for path in paths}
    return [
        f"{name}: no master, delete it"
        if name in names
        else f"{layout.name(layout.built)}: {name} has no master; build anything to forget it"
        for name in sorted(names | set(entries))
        if not master_of(layout, name)
    ]


# The command line


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m authoring.build",
        description="Build notebooks/, solutions/ and exercises/ from the masters in "
        "authoring/lessons and authoring/exercises. Code runs only where it changed: prose can be "
        "rebuilt in no time.",
        epilog="A notebook is written when it is complete, or not at all. "
        "Exit status 1 when something is wrong, with one line for each thing.",
    )
    parser.add_argument(
        "slugs",
        nargs="*",
        metavar="SLUG",
        help="11_displacement_fields, displacement_fields or 11; without any, everything",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare with the masters, run and write nothing; list what the library outdated",
    )
    parser.add_argument(
        "--no-execute",
        action="store_true",
        help="run nothing; keep the outputs of cells whose source is unchanged",
    )
    parser.add_argument("--force", action="store_true", help="run unchanged notebooks too")
    parser.add_argument(
        "--stale",
        action="store_true",
        help="run also the notebooks whose outputs are older than the library they import",
    )
    return parser


def main(argv: list[str] | None = None, root: Path = Path(__file__).parents[1]) -> int:
    """Run the command line; the exit status is returned."""
    parser = arguments()
    options = parser.parse_args(argv)
    if options.check + options.no_execute + (options.force or options.stale) > 1:
        parser.error("--check, --no-execute and --force (or --stale) exclude each other")
    layout = Layout(root)
    try:
        if options.check:
            problems, older = check(layout, options.slugs)
            lines = [*problems, *(f"outputs older than the library: {name}" for name in older)]
            print("\n".join(lines) or "every notebook agrees with its master")
            return 1 if problems else 0
        build(
            layout,
            options.slugs,
            run=not options.no_execute,
            force=options.force,
            stale=options.stale,
        )
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

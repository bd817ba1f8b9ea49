"""Running a notebook, and keeping of its outputs what is the same on every run."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from copy import deepcopy
from pathlib import Path

from nbformat import NotebookNode

from authoring.assembly import Target
from authoring.layout import BuildError

CELL_SECONDS = 600
QUIET = logging.getLogger("authoring.nbclient")  # nbclient tells errors twice
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def execute(target: Target, root: Path) -> NotebookNode:
    """The notebook with its outputs, run in its own folder by a fresh kernel.

    Args:
        target: what to run.
        root: the folder that holds `course_lib`: this copy is imported, whatever is installed.

    Raises:
        BuildError: a cell raised, printed to stderr, took too long or killed the kernel.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    node = deepcopy(target.node)
    target.path.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(str(target.path.relative_to(root)), len(node.cells))
    client = NotebookClient(
        node,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(target.path.parent)}},
        on_cell_start=progress.cell,
        record_timing=False,
        store_widget_state=False,
        shutdown_kernel="immediate",
        extra_arguments=["--log-level=ERROR"],
        log=QUIET,
    )
    try:
        client.execute(env=kernel_environment(root))
    except CellExecutionError:
        pass  # the error is among the outputs, where `failure` finds it
    except (CellTimeoutError, DeadKernelError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise located(target, progress.index, reason) from error
    finally:
        progress.end()
    for index, cell in enumerate(node.cells):
        if problem := failure(cell):
            raise located(target, index, problem, failing_line(cell))
    return tidied(node, target)


def kernel_environment(root: Path) -> dict[str, str]:
    """The environment of the kernel: this library, the quick profile, pictures inline."""
    kept = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {
        "PYTHONPATH": path,
        "COURSE_PROFILE": "quick",  # outputs must not depend on who builds
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning about frozen modules
    }


class Progress:
    """One line: what runs, which cell, for how many seconds."""

    def __init__(self, name: str, cells: int) -> None:
        """Start counting seconds for a notebook of so many cells."""
        self.name, self.cells, self.index = name, cells, 0
        self.start = time.monotonic()
        self.live = sys.stdout.isatty()

    def cell(self, cell: NotebookNode, cell_index: int) -> None:
        """Called by nbclient when a cell starts."""
        self.index = cell_index
        if self.live:
            self.show(f"running cell {cell_index + 1} of {self.cells}", "\r")

    def end(self) -> None:
        """The kernel has stopped."""
        self.show("ran", "\n")

    def show(self, text: str, end: str) -> None:
        """Print the line over itself."""
        erase = "\x1b[2K" if self.live else ""
        seconds = time.monotonic() - self.start
        print(f"{erase}{self.name}: {text}, {seconds:.1f} s", end=end, flush=True)


def located(target: Target, index: int, reason: str, line: int = 1) -> BuildError:
    """An error in the cell of a notebook, told as an error in its master."""
    cell = target.cells.get(target.node.cells[index].id)
    if cell is None:
        return BuildError(f"{target.master}:1: bootstrap cell: {reason}")
    return cell.error(reason, line)


def failure(cell: NotebookNode) -> str | None:
    """What a cell must not leave behind in a lesson or solution: an error, words on stderr."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}"
        if output.output_type == "stream" and output.name == "stderr":
            return f"printed to stderr: {output.text.strip()}"
    return None


def unfit_outputs(node: NotebookNode) -> list[int]:
    """The numbers of the cells, from 1, whose outputs the build would not have stored."""
    return [
        number
        for number, cell in enumerate(node.cells, 1)
        if failure(cell) or tidied_outputs(cell.get("outputs", [])) != cell.get("outputs", [])
    ]


def failing_line(cell: NotebookNode) -> int:
    """The line of the cell in which its error arose, read from the traceback; 1 if unknown."""
    text = "\n".join("\n".join(out.get("traceback", [])) for out in cell.outputs)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    # The first frame is the cell's own; later ones may be functions of cells above.
    match = re.search(r"Cell In ?\[\d+\], line (\d+)", plain)
    return int(match[1]) if match else 1


def tidied(node: NotebookNode, target: Target) -> NotebookNode:
    """The executed notebook, without whatever differs from run to run."""
    result = deepcopy(target.node)
    code = [(new, old) for new, old in zip(result.cells, node.cells, strict=True) if is_code(new)]
    for count, (new, old) in enumerate(code, 1):
        new.execution_count = count
        new.outputs = tidied_outputs(old.outputs)
        for output in new.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return result


def tidied_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs without widget views, streams of one name joined where they follow each other."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if WIDGET_VIEW in output.get("data", {}):
            continue
        before = kept[-1] if kept else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(deepcopy(output))
    return kept


def is_code(cell: NotebookNode) -> bool:
    """Whether a cell is a code cell."""
    return bool(cell.cell_type == "code")


def with_outputs_of(node: NotebookNode, existing: NotebookNode | None) -> NotebookNode:
    """The notebook, with the outputs of another version where a cell's source is unchanged."""
    result = deepcopy(node)
    waiting = code_cells(existing) if existing else []
    for source, cell in code_cells(result):
        match = next((pair for pair in waiting if pair[0] == source), None)
        if match is not None:
            waiting.remove(match)
            cell.outputs = match[1].get("outputs", [])
            cell.execution_count = match[1].get("execution_count")
    return result


def code_cells(node: NotebookNode) -> list[tuple[str, NotebookNode]]:
    """The code cells with their sources; a new address does not count as a new bootstrap cell."""
    cells = enumerate(node.cells)
    return [("" if index == 1 else cell.source, cell) for index, cell in cells if is_code(cell)]


def has_run(node: NotebookNode) -> bool:
    """Whether every code cell holds the outputs of one run from top to bottom."""
    counts = [cell.get("execution_count") for cell in filter(is_code, node.cells)]
    return counts == list(range(1, len(counts) + 1))

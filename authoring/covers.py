"""The picture under a lesson's title: what the reader will have built, seen before anything runs.

It is the first picture of the lesson's code cell that is tagged `cover`, and becomes an attachment
of the title cell: no file that could get lost, and nothing to keep in step by hand.
"""

from __future__ import annotations

import re
from copy import deepcopy

from nbformat import NotebookNode

from authoring.masters import COVER

NAME = "cover.png"
PNG = "image/png"
LARGEST = 150_000  # bytes of PNG; a notebook has to stay below 1 MB with its other pictures


def with_cover(node: NotebookNode) -> NotebookNode:
    """The notebook with its cover under the title; as it is where there is no picture to put there.

    Args:
        node: a lesson with outputs and without a cover, or any other notebook.
    """
    picture = first_picture(node)
    if picture is None:
        return node
    result = deepcopy(node)
    title = result.cells[0]
    line, _, rest = title.source.partition("\n")
    parts = [line, f"![{escaped(alt_text(picture))}](attachment:{NAME})", rest.lstrip("\n")]
    title.source = "\n\n".join(filter(None, parts))
    title.attachments = {NAME: {PNG: picture.data[PNG]}}
    return result


def cover_problem(node: NotebookNode) -> tuple[int, str] | None:
    """What is wrong with the cover of a notebook that has run: the cell's index, and a sentence."""
    index = cover_index(node)
    if index is None:
        return None
    picture = first_picture(node)
    if picture is None:
        return index, "is tagged cover but shows no picture: end it in `show(figure, alt=…)`"
    if not alt_text(picture):
        return index, "is tagged cover, and its picture needs an alternative text: `show(…, alt=…)`"
    if (size := len(picture.data[PNG]) * 3 // 4) > LARGEST:
        return index, f"is tagged cover: {size} bytes of picture, but a cover has at most {LARGEST}"
    return None


def cover_index(node: NotebookNode) -> int | None:
    """The place of the cell that is tagged `cover`; None if none is, as in exercises."""
    tagged = (i for i, cell in enumerate(node.cells) if COVER in cell.metadata.get("tags", []))
    return next(tagged, None)


def first_picture(node: NotebookNode) -> NotebookNode | None:
    """The first output of the cover's cell that is a picture, if there is one."""
    index = cover_index(node)
    outputs = [] if index is None else node.cells[index].get("outputs", [])
    return next((output for output in outputs if PNG in output.get("data", {})), None)


def alt_text(picture: NotebookNode) -> str:
    """What a picture shows, in words; empty if nobody said it."""
    return str(picture.get("metadata", {}).get(PNG, {}).get("alt", "")).strip()


def escaped(alt: str) -> str:
    r"""An alternative text as Markdown wants it between `![` and `]`.

    >>> print(escaped("a [b]\n c"))
    a \[b\] c
    """
    return re.sub(r"([\\\[\]])", r"\\\1", " ".join(alt.split()))

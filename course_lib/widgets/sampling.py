"""A sample point to play with: the four voxels that it mixes, and the slope that it feels."""

import math
from functools import partial

import torch
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture
from torch import Tensor
from torch.nn import functional as F

from course_lib.drawing import BLACK, GRAYS, OUTLINE, WHITE, Page, diverging, gray, png, write
from course_lib.validation import require_number
from course_lib.widgets.playground import (
    Playground,
    film_strip,
    intensity_range,
    make_playground,
    quick,
    require_slice,
    slider,
)

MOST_VOXELS = 12
"""Along each axis: with more, the box around the sample point is too small to be seen."""


def sampling_explorer(piece: Tensor) -> Playground:
    """Move a sample point between the voxels of a small piece of an image.

    Side by side: the piece, with a box of one voxel around the point; that box, large, in the gray
    of the four voxels that it covers, with the share of its area that each covers (its weight in
    bilinear interpolation); and the slope along ``j`` of what lies between the voxels.

    Args:
        piece: ``(1, 1, H, W)``, floating; 2 to 12 voxels along each axis.

    Returns:
        A :class:`Playground` with ``render(row, column)``, in voxels of the piece, from 0 to its
        last row and column.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, or values that are not finite.

    Used in lesson 12.
    """
    values = require_slice("piece", piece)
    shape = (values.shape[2], values.shape[3])
    if max(shape) > MOST_VOXELS:
        raise ValueError(f"piece: expected at most {MOST_VOXELS} voxels along an axis, got {shape}")
    reach = max(1e-6, float(values.diff(dim=3).abs().max()))
    bar = [(f"{at:+.2g}".replace("-", "−"), 0.5 + at / reach / 2) for at in (reach, -reach)]
    titles = ("the piece, and the box", "the box: weights", "slope along j")
    page = Page(shape, titles, [bar[0], ("0", 0.5), bar[1]], lines=2)
    draw = partial(_draw_sample, values[0, 0], reach)

    def render(row: float, column: float) -> bytes:
        return png(draw(page, row, column))

    last_row, last_column = shape[0] - 1.0, shape[1] - 1.0
    row, column = last_row // 2, last_column // 2  # a voxel that has neighbors on its right
    settings = [(row + 0.5, max(0.0, column - 0.2)), (row + 0.5, column), (row + 0.5, column + 0.2)]
    told = [
        f"at row {i:.2f}, column {j:.2f} the weights are "
        + ", ".join(f"{weight:.2f}" for weight in _weights(i, j, shape))
        for i, j in settings
    ]
    caption = (
        "Three settings of the sampling explorer, each as piece of an image with a box of one "
        "voxel around the sample point, that box with its four weights, and the slope along j: "
        f"{'; '.join(told)} (upper left, upper right, lower left, lower right)."
    )
    sliders = {
        "row": slider("row (voxels)", row + 0.25, 0.0, last_row, 0.05),
        "column": slider("column (voxels)", column + 0.6, 0.0, last_column, 0.05),
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def _cell(position: float, size: int) -> tuple[int, float]:
    """The voxel before a position along an axis, and how far beyond it the position lies.

    >>> _cell(2.25, 6), _cell(5.0, 6)
    ((2, 0.25), (4, 1.0))
    """
    first = min(math.floor(position), size - 2)  # the last voxel belongs to the last cell
    return first, position - first


def _weights(row: float, column: float, shape: tuple[int, int]) -> tuple[float, ...]:
    """Of the voxels to the upper left, upper right, lower left and lower right of a place."""
    (_, a), (_, b) = _cell(row, shape[0]), _cell(column, shape[1])
    return (1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b


def _draw_sample(values: Tensor, reach: float, page: Page, row: float, column: float) -> Picture:
    """The page of :func:`sampling_explorer`; ``reach`` is the slope at the ends of the bar."""
    i = _require_place("row", row, page.shape[0])
    j = _require_place("column", column, page.shape[1])
    low, high = intensity_range(values)
    with quick():
        (i0, a), (j0, b) = _cell(i, page.shape[0]), _cell(j, page.shape[1])
        corners = values[i0 : i0 + 2, j0 : j0 + 2]  # (2, 2)
        weights = torch.tensor(_weights(i, j, page.shape)).view(2, 2)
        down = (1 - b) * (corners[1, 0] - corners[0, 0]) + b * (corners[1, 1] - corners[0, 1])
        right = (1 - a) * (corners[0, 1] - corners[0, 0]) + a * (corners[1, 1] - corners[1, 0])
        panels = [
            gray(_blocks(values, page.panel), low, high, page.panel),
            _draw_box((corners - low) / (high - low), weights, page.panel),
            diverging(_slope_along_j(values, page.panel), -reach, reach, page.panel),
        ]
    for panel in (panels[0], panels[2]):
        _mark(panel, (i, j), page.shape)
    value = float((weights * corners).sum())
    lines = (
        f"row {i:.2f}, column {j:.2f}:  value {value:.3f}",
        f"slope along i {float(down):+.3f}, along j {float(right):+.3f} per voxel",
    )
    return page.draw(panels, [line.replace("-", "−") for line in lines])


def _blocks(values: Tensor, panel: tuple[int, int]) -> Tensor:
    """``values`` (H, W) as squares of one gray each, in the size of the panel."""
    return F.interpolate(values[None, None], size=panel, mode="nearest")[0, 0]


def _slope_along_j(values: Tensor, panel: tuple[int, int]) -> Tensor:
    """The slope along ``j`` at every pixel of the panel; 0 outside the centers of the voxels."""
    (height, width), slopes = values.shape, values.diff(dim=1)  # (H, W − 1)
    # The center of pixel p lies at (p + ½) · n / pixels − ½ voxels.
    i, j = (
        (torch.arange(pixels) + 0.5) * n / pixels - 0.5
        for pixels, n in zip(panel, (height, width), strict=True)
    )
    i0, j0 = i.floor().long().clamp(0, height - 2), j.floor().long().clamp(0, width - 2)
    a = (i - i0).view(-1, 1)
    mixed = (1 - a) * slopes[i0][:, j0] + a * slopes[i0 + 1][:, j0]
    inside = ((i >= 0) & (i <= height - 1)).view(-1, 1) & (j >= 0) & (j <= width - 1)
    return mixed * inside


def _draw_box(brightness: Tensor, weights: Tensor, panel: tuple[int, int]) -> Picture:
    """The box around the point: the part of each voxel (2, 2) in its gray, with its weight."""
    height, width = panel
    drawn = Image.new("L", (width, height), WHITE)
    pen = ImageDraw.Draw(drawn)
    split_y = round(float(weights[0].sum()) * height)  # the upper voxels' share
    split_x = round(float(weights[:, 0].sum()) * width)
    rows, columns = ((0, split_y), (split_y, height)), ((0, split_x), (split_x, width))
    for r, (top, bottom) in enumerate(rows):
        for c, (left, right) in enumerate(columns):
            if top == bottom or left == right:
                continue
            shade = round(float(brightness[r, c]) * (GRAYS - 1))
            pen.rectangle((left, top, right - 1, bottom - 1), fill=shade, outline=OUTLINE)
            if bottom - top > 18 and right - left > 36:
                ink = BLACK if shade > GRAYS // 2 else WHITE
                place = ((left + right) / 2, (top + bottom) / 2)
                write(pen, place, f"{float(weights[r, c]):.2f}", anchor="mm", color=ink, bold=True)
    return drawn


def _mark(panel: Picture, place: tuple[float, float], shape: tuple[int, int]) -> None:
    """Draw in place a dot at a place, in voxels, and the box of one voxel around it."""
    y, x = (
        (at + 0.5) * side / n for at, side, n in zip(place, panel.size[::-1], shape, strict=True)
    )
    half_y, half_x = (side / n / 2 for side, n in zip(panel.size[::-1], shape, strict=True))
    pen = ImageDraw.Draw(panel)
    pen.rectangle((x - half_x, y - half_y, x + half_x, y + half_y), outline=OUTLINE, width=2)
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=OUTLINE)


def _require_place(name: str, value: float, size: int) -> float:
    """``value`` as a float, if it is a number from 0 to the last voxel."""
    place = require_number(name, value)
    if not 0 <= place <= size - 1:
        raise ValueError(f"{name}: expected 0 to {size - 1} voxels, got {value!r}")
    return place

"""Measures of overlap and distance to play with: what Dice sees, and what Hausdorff sees."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageDraw
from PIL.Image import Image as Picture
from scipy.spatial import KDTree
from torch import Tensor

from course_lib.drawing import OUTLINE, Page, curve, diverging, gray, paint_outlines, png, write
from course_lib.metrics import dice
from course_lib.validation import require_number
from course_lib.widgets.playground import Playground, film_strip, make_playground, quick, slider

SHAPE = (72, 96)
"""Rows and columns of the picture."""

_CENTER = (36, 28)
_LIMITS = {"radius": (1, 20), "shift": (0, 15), "stray": (0, 30)}  # voxels
_FAR = 3.0  # voxels: the color map's end
_AXES = 32, 8, 10, 22  # what `drawing.curve` leaves free: left, right, top, bottom, in pixels


def disc_pair(radius: float, shift: float, stray: float) -> tuple[Tensor, Tensor]:
    """A disc, and its registration: moved to the right, and with one voxel that strayed.

    Args:
        radius: of both discs, in voxels, 1 to 20.
        shift: how far the second one lies to the right, in voxels, 0 to 15.
        stray: how far beyond the first disc's edge one more voxel of the second structure lies, 0
            to 30; with 0 it lies inside.

    Returns:
        Two label maps ``(1, 1, 72, 96)``, int64: 1 inside, 0 outside.

    Raises:
        TypeError, ValueError: on what is no whole number in its range.

    Used in lesson 15.
    """
    size, right, far = (
        _require_in_range(name, value)
        for name, value in (("radius", radius), ("shift", shift), ("stray", stray))
    )
    (row, column), discs = _CENTER, []
    i, j = (torch.arange(n) for n in SHAPE)
    for middle in (column, column + right):
        inside = (i - row).square().view(-1, 1) + (j - middle).square() <= size**2
        discs.append(inside.long()[None, None])
    discs[1][..., row, column + size + far] = 1
    return discs[0], discs[1]


def evaluation_explorer() -> Playground:
    """Move a disc, change its size, let a voxel stray: Dice and Hausdorff side by side.

    Side by side: the two structures; the distances between the outlines, sorted, at each percent
    the larger of both directions, so that the Hausdorff 95 is where the line at 95 percent is met
    and the largest is at the end; and each voxel of both outlines with its distance.

    Returns:
        A :class:`Playground` with ``render(radius, shift, stray)``, the parameters of
        :func:`disc_pair`.

    Used in lesson 15.
    """
    titles = ("white: warped, amber: fixed", "sorted distances (voxels)", "warped +, fixed −")
    bar = [("≥ 3 voxels", 1.0), ("0", 0.5), ("≤ −3 voxels", 0.0)]
    page = Page(SHAPE, titles, bar, lines=2)

    def render(radius: float, shift: float, stray: float) -> bytes:
        return png(_draw_discs(page, radius, shift, stray))

    settings = [(3.0, 2.0, 0.0), (13.0, 2.0, 0.0), (3.0, 0.0, 30.0), (4.0, 0.0, 30.0)]
    said = ["{}, {}".format(*_words(*setting, *_measure(*setting)[:3])) for setting in settings]
    caption = (
        "Four settings of the evaluation explorer, each as two structures, the sorted distances "
        "between their outlines, and both outlines colored by distance. " + ". ".join(said) + "."
    )
    names = ("radius (voxels)", "shift (voxels)", "stray by (voxels)")
    start = (10.0, 2.0, 0.0)
    sliders = {
        name: slider(text, value, float(low), float(high), 1.0)
        for (name, (low, high)), text, value in zip(_LIMITS.items(), names, start, strict=True)
    }
    still = partial(film_strip, _draw_discs, page, settings)
    return make_playground(render, sliders, still, caption)


def _require_in_range(name: str, value: float) -> int:
    low, high = _LIMITS[name]
    number = require_number(name, value)
    if not (low <= number <= high and number == round(number)):
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {value!r}")
    return round(number)


def _outline(labels: Tensor) -> NDArray[np.bool_]:
    """The voxels of a structure that have a face neighbor outside of it, ``(H, W)``."""
    inside = torch.nn.functional.pad(labels[0, 0].bool(), (1, 1, 1, 1))
    kept = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return (inside[1:-1, 1:-1] & ~kept).numpy()


def _distances(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """From each voxel of one outline to the nearest voxel of the other, in voxels."""
    return np.asarray(KDTree(np.argwhere(other)).query(np.argwhere(one))[0], dtype=np.float64)


def _measure(
    radius: float, shift: float, stray: float
) -> tuple[float, float, float, NDArray[np.float64], Tensor]:
    """Dice, Hausdorff 95, largest distance; the sorted distances; the signed map of distances."""
    fixed, warped = disc_pair(radius, shift, stray)
    outlines = _outline(fixed), _outline(warped)
    there, back = _distances(*outlines), _distances(*outlines[::-1])
    percent = np.arange(101)
    ranked = np.maximum(np.percentile(there, percent), np.percentile(back, percent))
    signed = np.zeros(SHAPE, dtype=np.float32)
    signed[outlines[0]] = -there
    signed[outlines[1]] += back  # where both outlines run, both distances are 0
    overlap = float(dice(fixed, warped)[0, 0])
    return overlap, float(ranked[95]), float(ranked[100]), ranked, torch.from_numpy(signed)


def _words(
    radius: float, shift: float, stray: float, overlap: float, most: float, largest: float
) -> tuple[str, str]:
    """The setting, and what was measured."""
    where = f"a stray voxel at {stray:.0f}" if stray else "no stray voxel"
    return (
        f"Radius {radius:.0f}, shift {shift:.0f}, {where}",
        f"Dice {overlap:.2f}, Hausdorff 95: {most:.1f} voxels, largest distance: {largest:.1f}",
    )


def _draw_discs(page: Page, radius: float, shift: float, stray: float) -> Picture:
    """The page of :func:`evaluation_explorer`."""
    with quick():
        fixed, warped = disc_pair(radius, shift, stray)
        overlap, most, largest, ranked, signed = _measure(radius, shift, stray)
        both = gray(warped[0, 0].float(), 0, 1, page.panel)
        paint_outlines(both, fixed[0, 0], OUTLINE)
        high = float(_LIMITS["stray"][1])
        lines = curve(ranked.tolist(), 100, high, page.panel, "%")
        _mark_95(lines)
        panels = [both, lines, diverging(signed, -_FAR, _FAR, page.panel)]
    return page.draw(panels, _words(radius, shift, stray, overlap, most, largest))


def _mark_95(lines: Picture) -> None:
    """A vertical line at 95 percent of the curve's span."""
    left, right, top, bottom = _AXES
    x = left + 0.95 * (lines.width - left - right)
    pen = ImageDraw.Draw(lines)
    pen.line((x, top, x, lines.height - bottom), fill=OUTLINE, width=1)
    write(pen, (x - 3, top), "95", anchor="ra")

"""A volume to look around in: three cuts through one point, which sliders move in millimeters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture

from course_lib.drawing import BLACK, GRAYS, OUTLINE, WHITE, Page, png, write
from course_lib.io import Volume
from course_lib.plotting import VIEWS
from course_lib.validation import require_finite, require_number
from course_lib.volumes import straighten, to_voxel
from course_lib.widgets.playground import (
    Playground,
    film_strip,
    intensity_range,
    make_playground,
    slider,
)

_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))  # of x, y, z: the letter at the low end, at the high
_WAY_IN = 10.0  # mm from the middle, along each axis, for the settings of the still picture
_GAP = 6  # pixels between the center of the crosshair and its lines
_BRIGHT = 0.999  # quantile that becomes white: a few bright voxels do not darken the rest


def slice_viewer(
    volume: Volume, stills: Sequence[tuple[float, float, float]] | None = None
) -> Playground:
    """Look around in a volume: sagittal, coronal and axial cut through one point.

    Every voxel is drawn at its size in mm, whatever the order of the array's axes: the affine says
    how. Left is on the left, as seen from behind and from above. The lines below give the voxel of
    the array that the crosshair is in, and its intensity.

    Args:
        volume: 3D. An oblique one is drawn resampled along the world's axes; the voxel and the
            intensity are its own all the same.
        stills: three points (x, y, z) in mm, shown to readers without sliders; None for three
            along a diagonal through the middle.

    Returns:
        A :class:`Playground` with ``render(x, y, z)``, in mm, RAS.

    Raises:
        TypeError, ValueError: on a volume that is not 3D, values that are not finite, or stills
            that are not three points.

    Used in lesson 10.
    """
    upright = straighten(volume)
    require_finite("volume.image", volume.image)
    own = volume._replace(image=volume.image.detach().cpu().clone())
    spacing = np.array(upright.spacing)
    first = upright.affine[:3, 3]
    last = first + spacing * (np.array(upright.image.shape[2:]) - 1)
    center, side = (first + last) / 2, round(float((last - first + spacing).max()))
    titles = [f"{name} cut" for name, _, _ in VIEWS]
    page = Cuts((side, side), titles, bar=(), lines=2, room=(252, 252), center=tuple(center))
    draw = partial(_draw_cuts, own, _levels(upright), first, spacing)

    def render(x: float, y: float, z: float) -> bytes:
        return png(draw(page, x, y, z))

    low, high = np.ceil(first), np.floor(last)
    start = center.round()
    diagonal = [tuple((start + step).clip(low, high)) for step in (-_WAY_IN, 0, _WAY_IN)]
    settings = diagonal if stills is None else _require_stills(stills)
    caption = (
        "Three settings of the slice viewer, each as sagittal, coronal and axial cut with a "
        "crosshair, at (x, y, z) = "
        + ", ".join("({:.0f}, {:.0f}, {:.0f})".format(*setting) for setting in settings)
        + " mm."
    ).replace("-", "−")
    names = ("x (mm, right +)", "y (mm, front +)", "z (mm, head +)")
    sliders = {
        axis: slider(name, float(value), float(least), float(most), 1.0)
        for axis, name, value, least, most in zip("xyz", names, start, low, high, strict=True)
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def _require_stills(stills: Sequence[tuple[float, float, float]]) -> list[tuple[float, ...]]:
    """Three points as floats, if that is what they are."""
    points = [tuple(require_number("stills", value) for value in point) for point in stills]
    if [len(point) for point in points] != [3, 3, 3]:
        raise ValueError(f"stills: expected three points (x, y, z), got {list(stills)}")
    return points


def _levels(upright: Volume) -> NDArray[np.uint8]:
    """The gray level of every voxel, ``(X, Y, Z)``: all that a render has to look up."""
    image = upright.image[0, 0].detach().cpu().float()
    low, most = intensity_range(image)
    high = float(np.quantile(image.numpy(), _BRIGHT))
    fraction = ((image.numpy() - low) / ((high if high > low else most) - low)).clip(0, 1)
    return np.asarray((fraction * (GRAYS - 1)).round(), dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Cuts(Page):
    """A page of square panels, all of one scale, whose axes are in mm.

    Attributes:
        center: what stands in the middle of the panels, (x, y, z) in mm. ``shape`` holds the side
            of the panels in mm, twice.
    """

    center: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Left and top of each panel, in pixels, with room for numbers on the left of each."""
        left, top = super().corners[0]
        return [(left + (self.panel[1] + left + 8) * k, top) for k in range(len(self.titles))]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the page, in pixels."""
        (left, top), (height, width) = self.corners[-1], self.panel
        return max(left + width + 16, 480), top + height + 22 * (1 + self.lines)

    def pixel(self, axis: int, mm: float) -> float:
        """How far into a panel, from the low end of an axis, a coordinate lies."""
        return (mm - self.center[axis]) / self.shape[0] * self.panel[0] + self.panel[0] / 2

    def indices(self, axis: int, first: float, spacing: float) -> NDArray[np.int64]:
        """The voxel under each pixel of a panel, along an axis; outside there is none."""
        side, pixels = self.shape[0], self.panel[0]
        mm = self.center[axis] + ((np.arange(pixels) + 0.5) / pixels - 0.5) * side
        return np.floor((mm - first) / spacing + 0.5).astype(np.int64)

    @cached_property
    def _frame(self) -> Picture:
        """Titles, frames and axes."""
        page = Image.new("L", self.size, WHITE)
        pen = ImageDraw.Draw(page)
        height, width = self.panel
        for (_, across, up), title, (left, top) in zip(
            VIEWS, self.titles, self.corners, strict=True
        ):
            write(pen, (left, top - 21), title, bold=True)
            pen.rectangle((left - 1, top - 1, left + width, top + height), outline=GRAYS // 2)
            for axis, at, anchors in (
                (across, [(left + f * width / 2, top + height + 3) for f in range(3)], "lmr"),
                (up, [(left - 5, top + height * (2 - f) / 2) for f in range(3)], "sma"),
            ):
                low, high = (self.center[axis] + f * self.shape[0] / 2 for f in (-1, 1))
                words = (f"{low:.0f}", f"{'xyz'[axis]} (mm)" if axis == across else "xyz"[axis])
                for word, place, anchor in zip([*words, f"{high:.0f}"], at, anchors, strict=True):
                    code = f"{anchor}a" if axis == across else f"r{anchor}"
                    write(pen, place, word.replace("-", "−"), anchor=code)
        return page


def _draw_cuts(
    volume: Volume,
    levels: NDArray[np.uint8],
    first: NDArray[np.float64],
    spacing: NDArray[np.float64],
    page: Cuts,
    x: float,
    y: float,
    z: float,
) -> Picture:
    """The page of :func:`slice_viewer`; ``levels`` is upright, ``volume`` as it came."""
    point = [require_number(name, value) for name, value in zip("xyz", (x, y, z), strict=True)]
    under = [page.indices(axis, first[axis], spacing[axis]) for axis in range(3)]
    panels = []
    for _, across, up in VIEWS:
        cut = 3 - across - up
        k = int(np.floor((point[cut] - first[cut]) / spacing[cut] + 0.5))
        panel = _plane(levels, cut, k, under[across], under[up])
        _decorate(panel, page, across, up, point)
        panels.append(panel)
    return page.draw(panels, _words(volume, point))


def _plane(
    levels: NDArray[np.uint8], cut: int, k: int, across: NDArray[np.int64], up: NDArray[np.int64]
) -> Picture:
    """Voxels ``across`` and ``up`` (counted upward) of one plane; black outside the volume."""
    if not 0 <= k < levels.shape[cut]:
        return Image.new("L", (len(across), len(up)), BLACK)
    plane = np.take(levels, k, axis=cut)  # (n across, n up)
    (n, m) = plane.shape
    shown = plane[np.ix_(across.clip(0, n - 1), up.clip(0, m - 1))]
    shown[(across < 0) | (across >= n)] = BLACK
    shown[:, (up < 0) | (up >= m)] = BLACK
    return Image.fromarray(np.ascontiguousarray(shown.T[::-1]))


def _decorate(panel: Picture, page: Cuts, across: int, up: int, point: Sequence[float]) -> None:
    """Crosshair, with a gap that leaves its voxel in sight, and the letters of the four sides."""
    pen, pixels = ImageDraw.Draw(panel), page.panel[0]
    column, row = page.pixel(across, point[across]), pixels - page.pixel(up, point[up])
    for start, end in ((-2 * pixels, -_GAP), (_GAP, 2 * pixels)):
        pen.line((column + start, row, column + end, row), fill=OUTLINE)
        pen.line((column, row + start, column, row + end), fill=OUTLINE)
    middle, far = pixels / 2, pixels - 4
    places = [(4, middle), (far, middle), (middle, far), (middle, 4)]
    letters = [*_SIDES[across], *_SIDES[up]]
    for letter, place, anchor in zip(letters, places, ("lm", "rm", "ms", "ma"), strict=True):
        write(pen, place, letter, anchor=anchor, color=WHITE, bold=True)


def _words(volume: Volume, point: Sequence[float]) -> list[str]:
    """Where the crosshair is: in mm, in voxels of the array, and the intensity there."""
    x, y, z = point
    side = "left" if x < 0 else "right" if x > 0 else "middle"
    place = f"x = {x:.0f} mm ({side}), y = {y:.0f} mm, z = {z:.0f} mm".replace("-", "−")
    voxel = np.floor(to_voxel(point, volume.affine) + 0.5).astype(int)
    if (voxel < 0).any() or (voxel >= volume.image.shape[2:]).any():
        return [place, "outside the image"]
    i, j, k = voxel.tolist()
    value = f"{float(volume.image[0, 0, i, j, k]):.3g}".replace("-", "−")
    return [place, f"voxel (i, j, k) = ({i}, {j}, {k}),  intensity {value}"]

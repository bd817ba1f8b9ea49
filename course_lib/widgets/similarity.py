"""Similarities to play with: what bias, noise and contrast do to their landscapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture
from torch import Tensor

from course_lib.drawing import BLACK, FOLD, GRAYS, WHITE, Page, gray, png, write
from course_lib.local_ncc import correlation_map
from course_lib.spatial import at_least_float32
from course_lib.validation import (
    require_finite,
    require_image,
    require_number,
    require_same,
    require_whole,
)
from course_lib.widgets.playground import (
    Playground,
    film_strip,
    intensity_range,
    make_playground,
    quick,
    require_slice,
    slider,
)

WINDOW = 9
"""Edge of the window of the two local measures, in voxels."""

REACH = 12
"""How many voxels to either side the explorer looks."""


def corrupt(
    image: Tensor, *, bias: float = 0.0, noise: float = 0.0, contrast: float = 1.0, seed: int = 0
) -> Tensor:
    """What another scanner might make of the image: contrast, then a bias field, then noise.

    ``(½ + contrast (image − ½)) · exp(bias x) + noise · n``, where ``x`` runs from −1 in the first
    to 1 in the last position of the last axis, and ``n`` is Gaussian noise of deviation 1.

    Args:
        image: ``(B, C, *spatial)``, floating, intensities of about 0 to 1.
        bias: logarithm of the gain in the last column; 0 is none.
        noise: standard deviation, 0 or more.
        contrast: 1 leaves the image, −1 makes its negative.
        seed: of the noise, 0 or more.

    Returns:
        Like ``image``.

    Raises:
        TypeError, ValueError: on a wrong rank, dtype or number.

    Taught in lesson 13.
    """
    require_image("image", image)
    require_number("noise", noise, 0)
    strength, slope = require_number("bias", bias), require_number("contrast", contrast)
    generator = torch.Generator().manual_seed(require_whole("seed", seed, 0))
    x = torch.linspace(-1, 1, image.shape[-1], dtype=image.dtype, device=image.device)
    changed = (0.5 + slope * (image - 0.5)) * torch.exp(strength * x)
    if noise == 0:
        return changed
    return changed + noise * torch.randn(image.shape, generator=generator).to(image)


def shift_losses(moving: Tensor, fixed: Tensor, reach: int = REACH) -> dict[str, Tensor]:
    """Four losses at every shift by whole voxels along the last axis.

    The same numbers as four calls of :func:`course_lib.landscapes.landscape` (a test holds them to
    it), in a few milliseconds: whole voxels need no interpolation.

    Args:
        moving, fixed: ``(1, 1, H, W)``, floating, ``H`` and ``W`` at least :data:`WINDOW`.
        reach: from ``−reach`` to ``reach`` voxels, 1 or more.

    Returns:
        ``{name: (2 reach + 1,)}``: the mean squared difference, minus the correlation, minus the
        mean correlation in windows of 9 × 9, and minus the mean of its square.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or number.

    Taught in lesson 13.
    """
    spatial = require_image("fixed", fixed)
    require_image("moving", moving)
    require_same("moving", moving, "fixed", fixed)
    if tuple(fixed.shape[:2]) != (1, 1) or len(spatial) != 2 or min(spatial) < WINDOW:
        raise ValueError(
            f"fixed: expected (1, 1, H, W) of {WINDOW} voxels or more, got {tuple(fixed.shape)}"
        )
    require_whole("reach", reach, 1)
    width = fixed.shape[3]
    columns = torch.arange(width) + torch.arange(-reach, reach + 1)[:, None]  # (shifts, W)
    warped = at_least_float32(moving)[0, 0][:, columns.clamp(0, width - 1)]  # (H, shifts, W)
    warped = warped.movedim(1, 0)[:, None]  # (shifts, 1, H, W)
    fixed = at_least_float32(fixed).expand_as(warped)
    a = warped - warped.mean((1, 2, 3), keepdim=True)
    b = fixed - fixed.mean((1, 2, 3), keepdim=True)
    spread = a.square().mean((1, 2, 3)) * b.square().mean((1, 2, 3))
    local = correlation_map(warped, fixed, WINDOW, squared=False)
    return {
        "MSE": (warped - fixed).square().mean((1, 2, 3)),
        "NCC": -(a * b).mean((1, 2, 3)) / (spread + 1e-10).sqrt(),
        "local": -local.mean((1, 2, 3)),
        "local squared": -local.square().mean((1, 2, 3)),
    }


def lowest_shifts(losses: dict[str, Tensor]) -> dict[str, int]:
    """Where each of :func:`shift_losses` is lowest, in voxels from the middle."""
    return {name: int(values.argmin()) - len(values) // 2 for name, values in losses.items()}


def similarity_explorer(image: Tensor) -> Playground:
    """Spoil the moving image and watch where four similarities put it.

    Side by side: the fixed image, the moving one (shifted to the right, and spoiled by
    :func:`corrupt`), and the losses of all shifts, each in its own range. The dashed line is the
    right place, a dot the lowest loss; a wrong one is magenta.

    Args:
        image: ``(1, 1, H, W)``, floating, intensities of about 0 to 1; about 100 × 100, so that
            pictures follow the sliders.

    Returns:
        A :class:`Playground` with ``render(shift, bias, noise, contrast)``.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, or values that are not finite.

    Used in lesson 13.
    """
    fixed = require_slice("image", image)
    require_finite("image", fixed)
    shift_losses(fixed, fixed, 1)  # says at once if the image is too small
    shape = (fixed.shape[2], fixed.shape[3])
    page = Landscapes(shape, ("fixed", "moving", "loss at each shift"), (), lines=3)
    draw = partial(_draw_similarity, fixed)

    def render(shift: float, bias: float, noise: float, contrast: float) -> bytes:
        return png(draw(page, shift, bias, noise, contrast))

    settings = [(4.0, 0.0, 0.0, 1.0), (4.0, 3.0, 0.0, 1.0), (4.0, 0.0, 0.0, -1.0)]
    found = [lowest_shifts(shift_losses(_moved(fixed, *s), fixed)) for s in settings]
    caption = (
        "Three settings of the similarity explorer, each as fixed image, moving image and the "
        "landscapes of four losses; the right shift is 4 voxels. Lowest "
        + "; ".join(
            f"with {name}: " + ", ".join(f"{m} at {at:+d}" for m, at in lowest.items())
            for name, lowest in zip(
                ("nothing spoiled", "a bias of 3", "a negative"), found, strict=True
            )
        )
        + "."
    ).replace("-", "−")
    sliders = {
        "shift": slider("shift (voxels)", 4.0, -8.0, 8.0, 1.0),
        "bias": slider("bias", 0.0, 0.0, 5.0, 0.5),
        "noise": slider("noise", 0.0, 0.0, 1.0, 0.1),
        "contrast": slider("contrast (−1 to 1)", 1.0, -1.0, 1.0, 0.1),
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


@dataclass(frozen=True, eq=False)
class Landscapes(Page):
    """A page whose last panel holds curves over the shift, and which has no color bar."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the page, in pixels."""
        (left, top), (height, width) = self.corners[-1], self.panel
        return max(left + width + 40, 480), top + height + 22 * (1 + self.lines)

    @cached_property
    def _frame(self) -> Picture:
        """Titles, frames, the axes of the first panel and the shift below the last one."""
        page = Image.new("L", self.size, WHITE)
        pen = ImageDraw.Draw(page)
        height, width = self.panel
        for title, (left, top) in zip(self.titles, self.corners, strict=True):
            write(pen, (left, top - 21), title, bold=True)
            pen.rectangle((left - 1, top - 1, left + width, top + height), outline=GRAYS // 2)
        self._axes(pen)
        left, bottom = self.corners[-1][0], self.corners[-1][1] + height + 3
        for text, x, anchor in (
            (f"−{REACH}", left, "la"),
            ("shift →", left + width / 2, "ma"),
            (f"+{REACH}", left + width, "ra"),
        ):
            write(pen, (x, bottom), text, anchor=anchor)
        return page


def _moved(fixed: Tensor, shift: float, bias: float, noise: float, contrast: float) -> Tensor:
    """The moving image: its content ``shift`` voxels further right, then spoiled."""
    columns = (torch.arange(fixed.shape[3]) - round(shift)).clamp(0, fixed.shape[3] - 1)
    return corrupt(fixed[..., columns], bias=bias, noise=noise, contrast=contrast)


def _draw_similarity(
    fixed: Tensor, page: Page, shift: float, bias: float, noise: float, contrast: float
) -> Picture:
    """The page of :func:`similarity_explorer`."""
    if abs(require_number("shift", shift)) > REACH:
        raise ValueError(f"shift: expected at most {REACH} voxels, got {shift!r}")
    with quick():
        moving = _moved(fixed, shift, bias, noise, contrast)
        losses = shift_losses(moving, fixed)
        panels = [
            gray(picture[0, 0], *intensity_range(picture), page.panel)
            for picture in (fixed, moving)
        ]
    right, lowest = round(shift), lowest_shifts(losses)
    off = [name for name, at in lowest.items() if at != right]
    lines = (
        f"shift {right:+d} voxels, bias {bias:.1f}, noise {noise:.1f}, contrast {contrast:+.1f}",
        "lowest:  " + ",  ".join(f"{name} {at:+d}" for name, at in lowest.items()),
        f"wrong: {', '.join(off)}" if off else "all four find the right place",
    )
    chart = _chart(losses, right, page.panel)
    text = [line.replace("-", "−") for line in lines]
    return page.draw([*panels, chart], text, alarm=bool(off))


def _chart(losses: dict[str, Tensor], right: int, panel: tuple[int, int]) -> Picture:
    """One curve below the other, each from its lowest to its highest value."""
    height, width = panel
    paper = Image.new("L", (width, height), WHITE)
    pen = ImageDraw.Draw(paper)
    room = height / len(losses)
    for row, (name, values) in enumerate(losses.items()):
        low, high = intensity_range(values)
        top, bottom = row * room + 17, (row + 1) * room - 7
        heights = (bottom - (values - low) / (high - low) * (bottom - top)).tolist()
        across = [_column(k - len(values) // 2, width) for k in range(len(values))]
        _dashes(pen, _column(right, width), row * room + 2, (row + 1) * room - 3)
        pen.line(list(zip(across, heights, strict=True)), fill=BLACK, width=2)
        lowest = int(values.argmin())
        color = BLACK if lowest - len(values) // 2 == right else FOLD
        x, y = across[lowest], heights[lowest]
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=color)
        pen.line((0, (row + 1) * room, width, (row + 1) * room), fill=GRAYS // 2)
        write(pen, (4, row * room + 2), name, bold=True)
    return paper


def _column(shift: int, width: int) -> float:
    """How far into the panel a shift lies, in pixels."""
    return width / 2 + shift / REACH * (width / 2 - 8)


def _dashes(pen: ImageDraw.ImageDraw, x: float, top: float, bottom: float) -> None:
    spots: Sequence[float] = torch.arange(top, bottom, 8).tolist()
    for y in spots:
        pen.line((x, y, x, min(y + 4, bottom)), fill=GRAYS // 2)

"""Warps to play with: a bump that folds, and a registration from nothing to all of it."""

from collections.abc import Sequence
from functools import partial

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from course_lib.drawing import (
    FOLD,
    OUTLINE,
    Page,
    diverging,
    gray,
    grid_lines,
    paint,
    paint_outlines,
    png,
)
from course_lib.metrics import correlation, folding_fraction
from course_lib.spatial import identity_grid, jacobian_determinant, warp
from course_lib.validation import (
    require_displacement,
    require_finite,
    require_labels,
    require_number,
    require_same,
    require_shape,
)
from course_lib.widgets.playground import (
    Playground,
    film_strip,
    intensity_range,
    make_playground,
    percent,
    quick,
    require_fraction,
    require_slice,
    score_text,
    slider,
)


def deformation_explorer(image: Tensor, labels: Tensor | None = None) -> Playground:
    """Push a bump into an image and watch the grid fold.

    Side by side: the warped image (with the outlines of the warped labels), the grid lines at
    ``x + u(x)``, and the Jacobian determinant. What folds is magenta.

    Args:
        image: ``(1, 1, H, W)``, floating.
        labels: ``(1, 1, H, W)``, integers; outlined on the image if given.

    Returns:
        A :class:`Playground` with ``render(amplitude, smoothness, position)``, the parameters of
        :func:`bump_displacement`.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, or values that are not finite.

    Used in lesson 11.
    """
    picture = require_slice("image", image)
    outlined = None
    if labels is not None:
        require_labels("labels", labels)
        outlined = labels.detach().cpu().clone()
        require_same("labels", outlined, "image", picture)
    shape = (picture.shape[2], picture.shape[3])
    titles = ("warped image", "grid at x + u(x)", "Jacobian det J")
    bar = [("≥ 2", 1.0), ("1.5", 0.75), ("1", 0.5), ("0.5", 0.25), ("0", 0.0)]
    draw = partial(_draw_bump, picture, outlined, intensity_range(picture))
    page = Page(shape, titles, bar, lines=2)

    def render(amplitude: float, smoothness: float, position: float) -> bytes:
        return png(draw(page, amplitude, smoothness, position))

    # Ranges that grow with the image. For 192 columns: amplitude ±60, smoothness up to 40 voxels.
    unit = float(max(1, round(min(shape) / 20)))
    width = 2 * unit
    settings = [(factor * width, width, 0.5) for factor in (0.5, 1.5, 2.5)]
    folded = float(folding_fraction(bump_displacement(shape, *settings[2])))
    caption = (
        "Three settings of the deformation explorer, each as warped image, deformed grid and "
        f"Jacobian determinant. A bump {width:.1f} voxels wide, with an amplitude of "
        + ", ".join(f"{amplitude:.1f}" for amplitude, _, _ in settings)
        + f" voxels: mild, strong, and folded in {percent(folded)} of the voxels."
    )
    sliders = {
        "amplitude": slider("amplitude (voxels)", width, -6 * unit, 6 * unit, 0.5),
        "smoothness": slider("smoothness (voxels)", width, 1.0, 4 * unit, 0.5),
        "position": slider("position (0 to 1)", 0.5, 0.0, 1.0, 0.01),
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def bump_displacement(
    shape: Sequence[int], amplitude: float, smoothness: float, position: float
) -> Tensor:
    """A smooth push along ``j``: ``u(x) = amplitude · exp(−|x − c|² / (2 smoothness²)) · e_j``.

    The center ``c`` lies on the horizontal midline. Along ``j`` the bump is steepest at a distance
    of ``smoothness`` from ``c``, with slope ``amplitude / smoothness · exp(−1/2)``. So the
    determinant is smallest there, ``1 − |amplitude| / smoothness · exp(−1/2)``, and the grid folds
    once ``|amplitude| > exp(1/2) · smoothness ≈ 1.65 · smoothness``, for a bump of a few voxels and
    more that does not hang over the border.

    Args:
        shape: ``(H, W)``.
        amplitude: the largest displacement, in voxels; negative values push the other way.
        smoothness: standard deviation of the bump, in voxels, above 0.
        position: ``j`` of the center: 0 is the first column, 1 the last.

    Returns:
        ``(1, 2, H, W)``, float32, in voxels.

    Raises:
        TypeError, ValueError: on a shape that is not 2D or a number out of its range.

    Example:
        >>> bump_displacement((3, 3), amplitude=2, smoothness=1, position=0.5)[0, 1, 1]
        tensor([1.2131, 2.0000, 1.2131])
    """
    sizes = require_shape("shape", shape)
    if len(sizes) != 2:
        raise ValueError(f"shape: expected 2 axes, got {sizes}")
    size = require_number("amplitude", amplitude)
    sigma = require_number("smoothness", smoothness)
    if sigma <= 0:
        raise ValueError(f"smoothness: expected more than 0 voxels, got {smoothness!r}")
    place = require_fraction("position", position)
    i, j = (torch.arange(n, dtype=torch.float32) for n in sizes)
    down = torch.exp(-((i - (sizes[0] - 1) / 2) ** 2) / (2 * sigma**2))
    right = torch.exp(-((j - (sizes[1] - 1) * place) ** 2) / (2 * sigma**2))
    push = size * torch.outer(down, right)  # (H, W)
    return torch.stack([torch.zeros_like(push), push])[None]


def warp_slider(moving: Tensor, fixed: Tensor, displacement: Tensor) -> Playground:
    """From the moving image to the warped one: ``warp(moving, fraction · displacement)``.

    Side by side: the warped image, a checkerboard of it and the fixed image, and the difference
    ``warped − fixed``.

    Args:
        moving: ``(1, 1, H, W)``, floating.
        fixed: ``(1, 1, H, W)``, floating.
        displacement: ``(1, 2, H, W)``, in voxels, on the grid of the fixed image.

    Returns:
        A :class:`Playground` with ``render(fraction)``, from 0 to 1.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, or values that are not finite.

    Used in lesson 00.
    """
    start, target = require_slice("moving", moving), require_slice("fixed", fixed)
    require_displacement("displacement", displacement)
    field = displacement.detach().to("cpu", torch.float32).clone()
    require_same("displacement", field, "fixed", target, channels=False)
    require_finite("displacement", field)
    ends = [warp(start, fraction * field) for fraction in (0.0, 1.0)]
    low, high = intensity_range(torch.cat([start.flatten(), target.flatten()]))
    # The scale of the difference stays put while the slider moves, or colors would mislead; and it
    # is never so fine that rounding shows.
    reach = max(0.01 * (high - low), *(float((end - target).abs().max()) for end in ends))
    shape = (target.shape[2], target.shape[3])
    titles = ("warped image", "tiles: warped, fixed", "warped − fixed")
    bar = [(f"{at:+.2g}".replace("-", "−"), 0.5 + at / reach / 2) for at in (reach, -reach)]
    draw = partial(_draw_fraction, start, target, field, (low, high), reach)
    page = Page(shape, titles, [bar[0], ("0", 0.5), bar[1]], lines=1)

    def render(fraction: float) -> bytes:
        return png(draw(page, fraction))

    scores = [correlation(warp(start, f * field), target).item() for f in (0.0, 0.5, 1.0)]
    caption = (
        "The moving image warped by 0, one half and all of the displacement, each as warped image, "
        "checkerboard with the fixed image, and difference to it. Correlation with the fixed "
        "image: " + ", ".join(score_text(score) for score in scores) + "."
    )
    sliders = {"fraction": slider("fraction (0 to 1)", 0.0, 0.0, 1.0, 0.02)}
    still = partial(film_strip, draw, page, [(0.0,), (0.5,), (1.0,)])
    return make_playground(render, sliders, still, caption)


def _draw_bump(
    image: Tensor,
    labels: Tensor | None,
    window: tuple[float, float],
    page: Page,
    amplitude: float,
    smoothness: float,
    position: float,
) -> Picture:
    """The page of :func:`deformation_explorer`; ``window`` holds what is black and what white."""
    with quick():
        displacement = bump_displacement(page.shape, amplitude, smoothness, position)
        determinant = jacobian_determinant(displacement)[0]
        fraction = float(folding_fraction(displacement))
        folded, least = determinant <= 0, float(determinant.min())

        warped = gray(warp(image, displacement)[0, 0], *window, page.panel)
        if labels is not None:
            paint_outlines(warped, warp(labels, displacement, mode="nearest")[0, 0], OUTLINE)
        grid = grid_lines(identity_grid(page.shape) + displacement[0], folded, page.panel)
        volume = diverging(determinant, 0, 2, page.panel)
        paint(volume, folded, FOLD)
    lines = (
        f"amplitude {amplitude:.1f} voxels, smoothness {smoothness:.1f} voxels, "
        f"position {position:.2f}",
        f"folded: {percent(fraction)},  min det J: {least:.2f}",
    )
    text = [line.replace("-", "−") for line in lines]
    return page.draw([warped, grid, volume], text, alarm=fraction > 0)


def _draw_fraction(
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor,
    window: tuple[float, float],
    reach: float,
    page: Page,
    fraction: float,
) -> Picture:
    """The page of :func:`warp_slider`; ``reach`` is the difference at the ends of the bar."""
    share = require_fraction("fraction", fraction)
    with quick():
        warped = warp(moving, share * displacement)
        score = float(correlation(warped, fixed))
        tile = max(1, max(page.shape) // 8)
        odd = identity_grid(page.shape).div(tile).floor().sum(0).remainder(2).bool()
        tiles = torch.where(odd, fixed, warped)
        panels = [
            gray(warped[0, 0], *window, page.panel),
            gray(tiles[0, 0], *window, page.panel),
            diverging((warped - fixed)[0, 0], -reach, reach, page.panel),
        ]
    text = f"fraction {share:.2f} of the displacement,  correlation with fixed: {score_text(score)}"
    return page.draw(panels, [text.replace("-", "−")])

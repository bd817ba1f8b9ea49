"""A joint histogram to play with: shift, turn and recolor an image, and see the counts disperse."""

from collections.abc import Sequence
from functools import partial

import torch
from PIL.Image import Image as Picture
from torch import Tensor
from torch.nn import functional as F

from course_lib.classical.affine import pose_matrix
from course_lib.drawing import Page, diverging, gray, png
from course_lib.losses import ncc
from course_lib.spatial import affine_displacement, identity_grid, warp
from course_lib.validation import require_number, require_same, require_whole
from course_lib.widgets.playground import (
    Playground,
    film_strip,
    intensity_range,
    make_playground,
    quick,
    require_slice,
    slider,
)

_MOST_BINS = 128


def joint_histogram_explorer(fixed: Tensor, moving: Sequence[Tensor]) -> Playground:
    """Shift and turn an image against another, and see what happens to their joint histogram.

    Side by side: tiles of the warped and the fixed image, the joint histogram (dark where many
    voxels are, on a logarithmic scale; the fixed image's intensity runs to the right, the warped
    one's upward), and for each of its cells how much more often the pair occurs than by chance,
    ``log(p / (p_a p_b))`` in nats; cells with less than a thousandth of a percent of the voxels
    stay white. Outside the moving image its border value goes on.

    Args:
        fixed: ``(1, 1, H, W)``, floating.
        moving: at least two images like ``fixed``, one for each contrast.

    Returns:
        A :class:`Playground` with ``render(shift, rotation, contrast, bins)``: voxels along ``j``,
        degrees, the number of the moving image from 0, and bins from 4 to 64.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, values that are not finite, or fewer
            than two moving images.

    Used in lesson 16.
    """
    target = require_slice("fixed", fixed)
    if not isinstance(moving, Sequence) or isinstance(moving, str):
        raise TypeError(f"moving: expected a row of images, got {type(moving).__name__}")
    if len(moving) < 2:
        raise ValueError(f"moving: expected two images or more, got {len(moving)}")
    sources = [require_slice(f"moving[{k}]", image) for k, image in enumerate(moving)]
    for k, source in enumerate(sources):
        require_same(f"moving[{k}]", source, "fixed", target)
    shape = (target.shape[2], target.shape[3])
    titles = ("tiles: warped, fixed", "counts: warped ↑ fixed →", "more than by chance")
    page = Page(shape, titles, [("+4 nats", 1.0), ("0", 0.5), ("−4", 0.0)], lines=2)
    draw = partial(_draw, sources, target)

    def render(shift: float, rotation: float, contrast: float, bins: float) -> bytes:
        return png(draw(page, shift, rotation, contrast, bins))

    last = len(sources) - 1
    settings = [(0.0, 0.0, last, 32.0), (7.0, 0.0, last, 32.0)]
    settings += [(0.0, 0.0, 1, 32.0), (3.0, 0.0, 1, 32.0)]
    caption = (
        f"Four settings of the joint histogram explorer with 32 bins: contrast {last} without a "
        "shift and shifted by 7 voxels, contrast 1 without a shift and shifted by 3. The counts "
        "disperse; mutual information is "
        + ", ".join(f"{_scores(sources, target, *setting)[2]:.2f}" for setting in settings)
        + " nats."
    )
    reach = float(min(shape) // 4)
    sliders = {
        "shift": slider("shift (voxels)", 0.0, -reach, reach, 0.5),
        "rotation": slider("rotation (degrees)", 0.0, -20.0, 20.0, 0.5),
        "contrast": slider("contrast (number)", float(last), 0.0, float(last), 1.0),
        "bins": slider("bins", 32.0, 4.0, 64.0, 4.0),
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def histogram_of_pairs(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """The joint histogram with two-bin weights, as ``losses.mutual_information`` counts it.

    Args:
        a, b: images of one shape, floating; each is binned from its smallest to its largest value.
        bins: of each axis, from 2 to 128.

    Returns:
        ``(bins, bins)``, float64, whose sum is 1: row ``i`` for ``a``, column ``j`` for ``b``.

    Raises:
        TypeError, ValueError: on a number of bins out of its range, or images of two shapes.

    Example:
        >>> histogram_of_pairs(torch.tensor([0.0, 1, 0.5]), torch.tensor([0.0, 1, 1]), 2) * 6
        tensor([[2., 1.],
                [0., 3.]], dtype=torch.float64)

    Taught in lesson 16.
    """
    if require_whole("bins", bins, 2) > _MOST_BINS:
        raise ValueError(f"bins: expected {_MOST_BINS} at most, got {bins}")
    require_same("a", a, "b", b)
    a_position, b_position = _in_bins(a.flatten(), bins), _in_bins(b.flatten(), bins)
    i, j = (place.floor().clamp(max=bins - 2) for place in (a_position, b_position))
    s, t = a_position - i, b_position - j
    corner = (i * bins + j).long()
    counts = torch.zeros(bins * bins, dtype=torch.float64)
    for step, weights in (
        (0, (1 - s) * (1 - t)),
        (1, (1 - s) * t),
        (bins, s * (1 - t)),
        (bins + 1, s * t),
    ):
        counts += torch.bincount(corner + step, weights=weights, minlength=bins * bins)
    return counts.view(bins, bins) / a.numel()


def _in_bins(values: Tensor, bins: int) -> Tensor:
    """Positions from 0 to bins − 1; a constant image lies in the first bin."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp(min=1e-30) * (bins - 1)).double()


def _scores(
    sources: Sequence[Tensor],
    target: Tensor,
    shift: float,
    rotation: float,
    contrast: float,
    bins: float,
) -> tuple[Tensor, Tensor, float, float]:
    """The warped image, the joint histogram, mutual information in nats, and r²."""
    number = round(require_number("contrast", contrast, 0))
    if number >= len(sources):
        raise ValueError(f"contrast: expected at most {len(sources) - 1}, got {contrast!r}")
    pose = pose_matrix(
        require_number("rotation", rotation), 1.0, (0.0, require_number("shift", shift))
    )
    with quick():
        displacement = affine_displacement(pose, (target.shape[2], target.shape[3]))
        warped = warp(sources[number], displacement, padding="border")
        p = histogram_of_pairs(warped, target, round(require_number("bins", bins, 2)))
        chance = torch.outer(p.sum(1), p.sum(0))
        information = float(torch.special.xlogy(p, p / chance.clamp(min=1e-30)).sum())
        return warped, p, information, float(ncc(warped, target)) ** 2


def _draw(
    sources: Sequence[Tensor],
    target: Tensor,
    page: Page,
    shift: float,
    rotation: float,
    contrast: float,
    bins: float,
) -> Picture:
    """The page of :func:`joint_histogram_explorer`."""
    warped, p, information, squared = _scores(sources, target, shift, rotation, contrast, bins)
    with quick():
        low, high = intensity_range(torch.cat([warped.flatten(), target.flatten()]))
        tile = max(1, max(page.shape) // 8)
        odd = identity_grid(page.shape).div(tile).floor().sum(0).remainder(2).bool()
        ratio = (p.clamp(min=1e-30) / torch.outer(p.sum(1), p.sum(0)).clamp(min=1e-30)).log()
        panels = [
            gray(torch.where(odd, target, warped)[0, 0], low, high, page.panel),
            gray(-_enlarged((p + 1e-6).log10(), page.panel), 2, 6, page.panel),
            diverging(_enlarged(ratio * (p > 1e-5), page.panel), -4, 4, page.panel),
        ]
    lines = (
        f"shift {shift:.1f} voxels, rotation {rotation:.1f}°, contrast {round(contrast)}, "
        f"{round(bins)} bins",
        f"mutual information: {information:.3f} nats,  squared correlation r²: {squared:.3f}",
    )
    return page.draw(panels, [line.replace("-", "−") for line in lines])


def _enlarged(values: Tensor, panel: tuple[int, int]) -> Tensor:
    """Each cell as a block of pixels, row 0 at the bottom."""
    blocks = F.interpolate(values.flip(0)[None, None].float(), size=panel, mode="nearest")
    return blocks[0, 0]

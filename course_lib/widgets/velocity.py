"""Velocities to play with: a random river, followed forwards and backwards, until it folds."""

import math
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from course_lib.drawing import FOLD, Page, diverging, gray, grid_lines, paint, png
from course_lib.metrics import folding_fraction
from course_lib.spatial import compose, identity_grid, integrate, jacobian_determinant, warp
from course_lib.validation import require_number, require_shape, require_whole
from course_lib.widgets.playground import (
    Playground,
    film_strip,
    intensity_range,
    make_playground,
    percent,
    quick,
    require_slice,
    slider,
)

MOST_STEPS = 8
"""Where the slider of squarings ends: 256 pieces of a unit of time."""


def random_velocity(
    shape: Sequence[int], amplitude: float, smoothness: float, seed: int = 0
) -> Tensor:
    """A random stationary velocity that comes to rest at the border.

    Gaussian noise, blurred, times half a sine wave along each axis, and scaled so that the longest
    arrow has the length ``amplitude``. The same seed always gives the same river.

    Args:
        shape: ``(H, W)``.
        amplitude: length of the longest arrow, in voxels per unit time, 0 or more.
        smoothness: standard deviation of the blur, in voxels, 0 or more: small is rough.
        seed: 0 and above.

    Returns:
        ``(1, 2, H, W)``, float32, in voxels per unit time: what ``spatial.integrate`` takes.

    Raises:
        TypeError, ValueError: on a shape that is not 2D or a number out of its range.

    Example:
        >>> round(float(random_velocity((9, 12), amplitude=5, smoothness=2).norm(dim=1).max()), 3)
        5.0

    Taught in lesson 17.
    """
    sizes = require_shape("shape", shape)
    if len(sizes) != 2:
        raise ValueError(f"shape: expected 2 axes, got {sizes}")
    length = _not_negative("amplitude", amplitude)
    sigma = _not_negative("smoothness", smoothness)
    whole = require_whole("seed", seed, 0)
    return length * _river((sizes[0], sizes[1]), sigma, whole)


def _not_negative(name: str, value: float) -> float:
    return float(require_number(name, value, 0))


@lru_cache(maxsize=8)
def _river(shape: tuple[int, int], sigma: float, seed: int) -> Tensor:
    """Arrows of length 1 and less, ``(1, 2, H, W)``. Shared between calls: never handed out."""
    noise = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(seed))
    rows, columns = (torch.linspace(0, math.pi, n).sin() for n in shape)
    # Two matrix products: for blurs this wide much faster than a convolution, so a drag is smooth.
    blurred = _blur(shape[0], sigma) @ noise @ _blur(shape[1], sigma).T
    blurred = blurred * torch.outer(rows, columns)
    # A grid of two voxels along an axis is all border: nothing flows there, and 0 / 0 is no number.
    return blurred / blurred.norm(dim=1).max().clamp(min=1e-12)


def _blur(size: int, sigma: float) -> Tensor:
    """The matrix ``(size, size)`` whose rows are Gaussian weights that sum to 1."""
    offsets = torch.arange(float(size)).view(-1, 1) - torch.arange(float(size))
    weights = torch.exp(-offsets.square() / (2 * max(sigma, 1e-3) ** 2))
    return weights / weights.sum(dim=1, keepdim=True)


def velocity_explorer(image: Tensor) -> Playground:
    """Follow a random river for a while, forwards or backwards, and watch the grid fold.

    Side by side: the image warped by ``exp(t v)``, the grid lines at ``x + u(x)``, and the Jacobian
    determinant. What folds is magenta. The line below says by how many voxels a point misses itself
    after the way there and back, ``exp(t v) ∘ exp(−t v)``, on average and at worst.

    Args:
        image: ``(1, 1, H, W)``, floating.

    Returns:
        A :class:`Playground` with ``render(amplitude, smoothness, steps, time)``: the first two are
        those of :func:`random_velocity`, ``steps`` counts the squarings, and ``time`` is t, from −1
        (the inverse) to 1.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, or values that are not finite.

    Used in lesson 17.
    """
    picture = require_slice("image", image)
    shape = (picture.shape[2], picture.shape[3])
    titles = ("warped by exp(t v)", "grid at x + u(x)", "Jacobian det J")
    bar = [("≥ 2", 1.0), ("1.5", 0.75), ("1", 0.5), ("0.5", 0.25), ("0", 0.0)]
    page = Page(shape, titles, bar, lines=3)
    draw = partial(_draw_flow, picture, intensity_range(picture))

    def render(amplitude: float, smoothness: float, steps: float, time: float) -> bytes:
        return png(draw(page, amplitude, smoothness, steps, time))

    # Ranges that grow with the image. For 192 columns: amplitude up to 40, smoothness up to 20.
    unit = float(max(1, round(min(shape) / 20)))
    rough = max(1.0, round(1.2 * unit) / 2)
    times = ((1.0, 1.0), (7.0, 1.0), (7.0, -1.0))  # squarings and t of the still picture
    settings = [(2 * unit, rough, steps, time) for steps, time in times]
    caption = (
        "Three settings of the velocity explorer, each as warped image, deformed grid and Jacobian "
        f"determinant. The same random velocity, {2 * unit:.0f} voxels at most and smooth over "
        f"{rough:.1f}: followed with 1 squaring, with 7 squarings, and with 7 squarings backwards."
    )
    sliders = {
        "amplitude": slider("amplitude (voxels)", 2 * unit, 0.0, 4 * unit, 1.0),
        "smoothness": slider("smoothness (voxels)", rough, 1.0, 2 * unit + 1, 0.5),
        "steps": slider("squarings", 7.0, 0.0, float(MOST_STEPS), 1.0),
        "time": slider("time t (−1 to 1)", 1.0, -1.0, 1.0, 0.05),
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def _draw_flow(
    image: Tensor,
    window: tuple[float, float],
    page: Page,
    amplitude: float,
    smoothness: float,
    steps: float,
    time: float,
) -> Picture:
    """The page of :func:`velocity_explorer`; ``window`` holds what is black and what white."""
    squarings, t = _squarings(steps), _time(time)
    with quick():
        velocity = t * random_velocity(page.shape, amplitude, smoothness)
        there, back = integrate(velocity, squarings), integrate(-velocity, squarings)
        missed = compose(there, back).norm(dim=1)
        determinant = jacobian_determinant(there)[0]
        folded, least = determinant <= 0, float(determinant.min())
        grid = grid_lines(identity_grid(page.shape) + there[0], folded, page.panel)
        volume = diverging(determinant, 0, 2, page.panel)
        paint(volume, folded, FOLD)
        warped = gray(warp(image, there)[0, 0], *window, page.panel)
        fraction = float(folding_fraction(there))
    lines = (
        f"amplitude {amplitude:.1f} voxels, smoothness {smoothness:.1f} voxels, "
        f"squarings: {squarings}, t = {t:.2f}",
        f"there and back: off by {float(missed.mean()):.3f} voxels on average, "
        f"{float(missed.max()):.2f} at worst",
        f"folded: {int(folded.sum())} voxels ({percent(fraction)}),  min det J: {least:.2f}",
    )
    text = [line.replace("-", "−") for line in lines]
    return page.draw([warped, grid, volume], text, alarm=fraction > 0)


def _squarings(steps: float) -> int:
    """The slider's float as a number of squarings."""
    number = require_number("steps", steps, 0)
    if number != int(number) or number > MOST_STEPS:
        raise ValueError(f"steps: expected a whole number from 0 to {MOST_STEPS}, got {steps!r}")
    return int(number)


def _time(time: float) -> float:
    number = require_number("time", time)
    if not -1 <= number <= 1:
        raise ValueError(f"time: expected a number from −1 to 1, got {time!r}")
    return float(number)

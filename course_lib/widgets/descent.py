"""A descent to play with: a disc of three numbers finds a shape, or gets lost."""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from course_lib.drawing import (
    OUTLINE,
    WHITE,
    Page,
    curve,
    diverging,
    gray,
    paint_outlines,
    paint_path,
    png,
)
from course_lib.losses import mse
from course_lib.optimise import descend
from course_lib.validation import (
    require_image,
    require_number,
    require_same,
    require_shape,
    require_tensor,
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

EDGE = 2.0
"""How soft a disc's edge is, in voxels: 0.88 four voxels inside the circle, 0.12 four outside."""

MOST_STEPS = 60
"""Where the slider of steps ends: a descent takes nearly a millisecond a step."""


class Descent(NamedTuple):
    """Where a fit went.

    Attributes:
        circles: ``(steps + 1, 3)``: row, column and radius, in voxels; the start first.
        losses: the mean squared difference of each of them.
    """

    circles: Tensor
    losses: list[float]


def soft_disc(shape: Sequence[int], circles: Tensor) -> Tensor:
    """Discs with a soft edge: ``sigmoid((radius − distance) / 2)``, ½ on the circle itself.

    The soft edge is what gives row, column and radius a gradient: a hard disc has none.

    Args:
        shape: ``(H, W)``.
        circles: ``(B, 3)``, floating: row, column and radius of each disc, in voxels.

    Returns:
        ``(B, 1, H, W)``, from 0 to 1.

    Raises:
        TypeError, ValueError: on a shape that is not 2D, or circles of another rank or dtype.

    Example:
        >>> soft_disc((3, 5), torch.tensor([[1.0, 2.0, 2.0]]))[0, 0, 1]
        tensor([0.5000, 0.6225, 0.7310, 0.6225, 0.5000])

    Taught in lesson 01.
    """
    sizes = _require_flat(shape)
    _require_circles("circles", circles)
    rows, columns = (torch.arange(n, dtype=circles.dtype, device=circles.device) for n in sizes)
    row, column, radius = (circles[:, k].view(-1, 1, 1, 1) for k in range(3))  # (B, 1, 1, 1)
    squared = (rows.view(-1, 1) - row).square() + (columns - column).square()  # (B, 1, H, W)
    # The root of 0 has an infinite slope; 1e-6 keeps the gradient finite at the center itself.
    return torch.sigmoid((radius - (squared + 1e-6).sqrt()) / EDGE)


def fit_disc(target: Tensor, start: Tensor, *, learning_rate: float, steps: int) -> Descent:
    """Moves a soft disc downhill, from ``start`` to where it differs least from ``target``.

    Adam on row, column and radius; the loss is the mean squared difference of the images.

    Args:
        target: ``(1, 1, H, W)``, floating, 1 inside the shape and 0 outside.
        start: ``(1, 3)``, floating: row, column and radius, in voxels.
        learning_rate: about how many voxels each number moves in a step, above 0.
        steps: how many, 0 or more.

    Returns:
        A :class:`Descent`, with ``steps + 1`` circles and losses.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or number.

    Taught in lesson 01.
    """
    shape = require_image("target", target)
    if len(shape) != 2 or tuple(target.shape[:2]) != (1, 1):
        raise ValueError(f"target: expected (1, 1, H, W), got {tuple(target.shape)}")
    _require_circles("start", start)
    if len(start) != 1:
        raise ValueError(f"start: expected one circle, (1, 3), got {tuple(start.shape)}")
    rate = _require_rate(learning_rate)
    circles, losses = [], []

    def mismatch(circle: Tensor) -> Tensor:
        loss = mse(soft_disc(shape, circle), target)
        circles.append(circle.detach().clone())  # a copy: the optimizer changes circle in place
        losses.append(loss.item())
        return loss

    end = descend(mismatch, start, steps=require_whole("steps", steps, 0), learning_rate=rate)
    mismatch(end)
    return Descent(torch.cat(circles), losses)


def descent_explorer(
    image: Tensor, inside: Tensor, start: Sequence[float] = (60, 60, 20)
) -> Playground:
    """Let a disc descend to the outline of a shape, with steps of your choice.

    Side by side: the image with the path of the disc (its center as a line, the disc of the last
    step as an outline), the loss after each step, and what the disc and the shape differ in.

    Args:
        image: ``(1, 1, H, W)``, floating; what the shape is drawn on.
        inside: ``(1, 1, H, W)``, floating, 1 inside the shape and 0 outside; what is fitted.
        start: row, column and radius of the disc at the beginning, in voxels.

    Returns:
        A :class:`Playground` with ``render(learning_rate, steps)``, those of :func:`fit_disc`; a
        fraction of a step is dropped.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, or values that are not finite.

    Used in lesson 01.
    """
    picture, target = require_slice("image", image), require_slice("inside", inside)
    require_same("inside", target, "image", picture)
    begin = _as_circle(start)
    titles = ("path of the disc", "loss", "disc − shape")
    bar = [("+1", 1.0), ("0", 0.5), ("−1", 0.0)]
    page = Page((picture.shape[2], picture.shape[3]), titles, bar, lines=2)

    @lru_cache(maxsize=8)
    def descent(learning_rate: float) -> Descent:
        return fit_disc(target, begin, learning_rate=learning_rate, steps=MOST_STEPS)

    def draw(page: Page, learning_rate: float, steps: float) -> Picture:
        taken = int(require_number("steps", steps, 0))
        if taken > MOST_STEPS:
            raise ValueError(f"steps: expected at most {MOST_STEPS}, got {steps!r}")
        with quick():
            circles, losses = descent(_require_rate(learning_rate))
            walked = Descent(circles[: taken + 1], losses[: taken + 1])
            return _draw_descent(picture, target, page, learning_rate, walked)

    def render(learning_rate: float, steps: float) -> bytes:
        return png(draw(page, learning_rate, steps))

    # Twice the rate in half the steps; and one that is too large.
    settings = [(1.0, MOST_STEPS), (2.0, MOST_STEPS // 2), (80.0, MOST_STEPS)]
    ends = [(rate, steps, descent(rate).losses[steps]) for rate, steps in settings]
    caption = _caption(descent(1.0).losses[0], ends)
    sliders = {
        "learning_rate": slider("learning rate", 0.5, 0.5, 100.0, 0.5),
        "steps": slider("steps", float(MOST_STEPS), 0.0, float(MOST_STEPS), 1.0),
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def _caption(start: float, ends: Sequence[tuple[float, int, float]]) -> str:
    """What the still picture shows, from the loss at the start and (rate, steps, loss) of each."""
    reached = [
        f"{loss:.3f} after {steps} steps with a learning rate of {rate:.1f}"
        for rate, steps, loss in ends
    ]
    return (
        "Three settings of the descent explorer, each as path of the disc, loss, and difference of "
        f"disc and shape. The loss is {start:.3f} at the start; it is {', '.join(reached)}."
    )


def _draw_descent(
    image: Tensor, target: Tensor, page: Page, learning_rate: float, walked: Descent
) -> Picture:
    """The page of :func:`descent_explorer` after the steps in ``walked``."""
    low, high = intensity_range(image)
    discs = soft_disc(page.shape, walked.circles[[0, -1]])  # (2, 1, H, W)
    path = gray(image[0, 0], low, 2 * high - low, page.panel)  # half as bright: lines stand out
    paint_outlines(path, discs[0, 0] > 0.5, WHITE)
    paint_outlines(path, discs[1, 0] > 0.5, OUTLINE)
    paint_path(path, walked.circles[:, :2], page.shape, OUTLINE)
    # The pictures that are 0 and 1 everywhere are where lost discs end.
    share = float(target.mean())
    top = math.ceil(10 * max(walked.losses[0], share, 1 - share)) / 10
    panels = [
        path,
        curve(walked.losses, MOST_STEPS, top, page.panel, "step"),
        diverging((discs[1:] - target)[0, 0], -1, 1, page.panel),
    ]
    row, column, radius = walked.circles[-1].tolist()
    lines = (
        f"learning rate {learning_rate:.1f}, {len(walked.losses) - 1} steps",
        f"loss {walked.losses[-1]:.4f}:  row {row:.1f}, column {column:.1f}, radius {radius:.1f}",
    )
    if worse := walked.losses[-1] > walked.losses[0]:
        lines = (f"{lines[0]}: worse than the start", lines[1])
    return page.draw(panels, [line.replace("-", "−") for line in lines], alarm=worse)


def _require_flat(shape: Sequence[int]) -> tuple[int, int]:
    """``shape`` as ``(H, W)``."""
    sizes = require_shape("shape", shape)
    if len(sizes) != 2:
        raise ValueError(f"shape: expected 2 axes, got {sizes}")
    return sizes[0], sizes[1]


def _require_circles(name: str, circles: object) -> None:
    """Refuse what is not ``(B, 3)`` and floating."""
    tensor = require_tensor(name, circles)
    if tensor.ndim != 2 or tensor.shape[1] != 3:
        raise ValueError(f"{name}: expected shape (B, 3), got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected floating numbers, got {tensor.dtype}")


def _as_circle(start: Sequence[float]) -> Tensor:
    """Row, column and radius as ``(1, 3)``."""
    if not isinstance(start, Sequence):
        raise TypeError(f"start: expected row, column and radius, got {type(start).__name__}")
    numbers = [require_number("start", number) for number in start]
    if len(numbers) != 3:
        raise ValueError(f"start: expected row, column and radius, got {len(numbers)} numbers")
    return torch.tensor([numbers])


def _require_rate(learning_rate: object) -> float:
    """``learning_rate`` as a float above 0."""
    rate = require_number("learning_rate", learning_rate)
    if rate <= 0:
        raise ValueError(f"learning_rate: expected more than 0, got {learning_rate!r}")
    return rate

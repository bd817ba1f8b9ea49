"""Things to play with: pictures that follow sliders.

Each one is a pure function of its parameters first, ``render(...) -> PNG bytes``, and a set of
sliders second. Displaying it leaves a still picture too, a separate output, for readers on paper.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import ipywidgets
import torch
from IPython.display import Markdown, display
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
    stack,
)
from course_lib.metrics import correlation, folding_fraction
from course_lib.plotting import Still
from course_lib.spatial import identity_grid, jacobian_determinant, warp
from course_lib.validation import (
    require_displacement,
    require_finite,
    require_image,
    require_labels,
    require_number,
    require_same,
    require_shape,
)

_STILL_ROOM = (168, 144)  # pixels of a panel in the still picture


@dataclass(frozen=True, eq=False)
class Playground:
    """A picture that follows sliders; display it by making it the last line of a cell.

    Attributes:
        render: the parameters, by name or in the order of the sliders -> PNG bytes. Pure: the same
            parameters always give the same bytes, and no browser is needed.
        sliders: one for each parameter, by its name. Setting ``.value`` moves it.
        picture: the image that the sliders drive.
        still: makes the still picture -> PNG bytes.
        caption: what the still picture shows; its alternative text.
    """

    render: Callable[..., bytes]
    sliders: dict[str, ipywidgets.FloatSlider]
    picture: ipywidgets.Image
    still: Callable[[], bytes]
    caption: str

    def _ipython_display_(self) -> None:
        """Show the sliders and their picture, then the still picture."""
        display(ipywidgets.VBox([*self.sliders.values(), self.picture]))
        # Apart from the widget: notebooks are stored without widgets, and this stays.
        display(Markdown("*Three settings, for readers without a slider:*"))
        display(Still(self.still(), self.caption))


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
    picture = _require_slice("image", image)
    outlined = None
    if labels is not None:
        require_labels("labels", labels)
        outlined = labels.detach().cpu().clone()
        require_same("labels", outlined, "image", picture)
    shape = (picture.shape[2], picture.shape[3])
    titles = ("warped image", "grid at x + u(x)", "Jacobian det J")
    bar = [("≥ 2", 1.0), ("1.5", 0.75), ("1", 0.5), ("0.5", 0.25), ("0", 0.0)]
    draw = partial(_draw_bump, picture, outlined, _range(picture))
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
        + f" voxels: mild, strong, and folded in {_percent(folded)} of the voxels."
    )
    sliders = {
        "amplitude": _slider("amplitude (voxels)", width, -6 * unit, 6 * unit, 0.5),
        "smoothness": _slider("smoothness (voxels)", width, 1.0, 4 * unit, 0.5),
        "position": _slider("position (0 to 1)", 0.5, 0.0, 1.0, 0.01),
    }
    return _playground(render, sliders, partial(_still, draw, page, settings), caption)


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
    place = _require_fraction("position", position)
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
    start, target = _require_slice("moving", moving), _require_slice("fixed", fixed)
    require_displacement("displacement", displacement)
    field = displacement.detach().to("cpu", torch.float32).clone()
    require_same("displacement", field, "fixed", target, channels=False)
    require_finite("displacement", field)
    ends = [warp(start, fraction * field) for fraction in (0.0, 1.0)]
    low, high = _range(torch.cat([start.flatten(), target.flatten()]))
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
        "image: " + ", ".join(_score(score) for score in scores) + "."
    )
    sliders = {"fraction": _slider("fraction (0 to 1)", 0.0, 0.0, 1.0, 0.02)}
    still = partial(_still, draw, page, [(0.0,), (0.5,), (1.0,)])
    return _playground(render, sliders, still, caption)


@contextmanager
def _quick() -> Iterator[None]:
    """No gradients, and one thread: for images this small, waiting for a second one costs more.

    While the browser keeps the other core busy, a warp of 0.2 ms would take up to 30 ms.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


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
    with _quick():
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
        f"folded: {_percent(fraction)},  min det J: {least:.2f}",
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
    share = _require_fraction("fraction", fraction)
    with _quick():
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
    text = f"fraction {share:.2f} of the displacement,  correlation with fixed: {_score(score)}"
    return page.draw(panels, [text.replace("-", "−")])


def _still(
    draw: Callable[..., Picture], page: Page, settings: Sequence[tuple[float, ...]]
) -> bytes:
    """A film strip: one page for each setting, smaller than the one that follows the sliders."""
    small = replace(page, room=_STILL_ROOM)
    return png(stack([draw(small, *setting) for setting in settings]), small=True)


def _playground(
    render: Callable[..., bytes],
    sliders: dict[str, ipywidgets.FloatSlider],
    still: Callable[[], bytes],
    caption: str,
) -> Playground:
    """Tie the sliders to a picture."""

    def current() -> bytes:
        return render(**{name: slider.value for name, slider in sliders.items()})

    picture = ipywidgets.Image(value=current(), format="png")
    picture.layout.max_width = "100%"

    def refresh(_change: object) -> None:
        picture.value = current()

    for slider in sliders.values():
        slider.observe(refresh, names="value")
    return Playground(render, sliders, picture, still, caption)


def _slider(
    description: str, value: float, low: float, high: float, step: float
) -> ipywidgets.FloatSlider:
    """A slider that reports every step of a drag; nothing here needs ipywidgets 8."""
    return ipywidgets.FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        description=description,
        continuous_update=True,
        readout_format=".2f" if step < 0.1 else ".1f",
        style={"description_width": "150px"},
        layout={"width": "520px", "max_width": "100%"},
    )


def _require_slice(name: str, image: Tensor) -> Tensor:
    """A copy of one 2D image on the CPU in float32: what happens to the original is no matter."""
    spatial = require_image(name, image)
    if len(spatial) != 2 or tuple(image.shape[:2]) != (1, 1):
        raise ValueError(
            f"{name}: expected one 2D image of one channel, (1, 1, H, W), got {tuple(image.shape)}"
        )
    require_finite(name, image)
    return image.detach().to("cpu", torch.float32).clone()


def _require_fraction(name: str, value: float) -> float:
    """``value`` as a float, if it is a number from 0 to 1."""
    number = require_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return number


def _range(image: Tensor) -> tuple[float, float]:
    """The intensities that become black and white; a constant image comes out black."""
    low, high = float(image.min()), float(image.max())
    return low, high if high > low else low + 1


def _percent(fraction: float) -> str:
    """``fraction`` in percent; what is not zero does not read as zero."""
    return "< 0.01 %" if 0 < fraction < 5e-5 else f"{100 * fraction:.2f} %"


def _score(value: float) -> str:
    """A correlation in words."""
    return "undefined (a constant image)" if math.isnan(value) else f"{value:.3f}"

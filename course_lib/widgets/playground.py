"""What all widgets share: sliders tied to a picture, and the still picture beside them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ipywidgets
import torch
from IPython.display import Markdown, display
from PIL.Image import Image as Picture
from torch import Tensor

from course_lib.datasets import Pair
from course_lib.drawing import Page, png, stack
from course_lib.plotting import Still
from course_lib.validation import (
    require_finite,
    require_image,
    require_labels,
    require_number,
    require_same,
)

STILL_ROOM = (168, 144)  # pixels of a panel in the still picture


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
        display(Markdown("*A few settings, for readers without a slider:*"))
        display(Still(self.still(), self.caption))


@contextmanager
def quick() -> Iterator[None]:
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


def film_strip(
    draw: Callable[..., Picture], page: Page, settings: Sequence[tuple[float, ...]]
) -> bytes:
    """A film strip: one page for each setting, smaller than the one that follows the sliders."""
    small = replace(page, room=STILL_ROOM)
    return png(stack([draw(small, *setting) for setting in settings]), small=True)


def make_playground(
    render: Callable[..., bytes],
    sliders: dict[str, ipywidgets.FloatSlider],
    still: Callable[[], bytes],
    caption: str,
) -> Playground:
    """Tie the sliders to a picture."""

    def current() -> bytes:
        return render(**{name: on_step(slider) for name, slider in sliders.items()})

    picture = ipywidgets.Image(value=current(), format="png")
    picture.layout.max_width = "100%"

    def refresh(_change: object) -> None:
        picture.value = current()

    for slider in sliders.values():
        slider.observe(refresh, names="value")
    return Playground(render, sliders, picture, still, caption)


def on_step(slider: ipywidgets.FloatSlider) -> float:
    """Where the slider stands, on one of its steps: a browser sends 10.000000000000002 for 10."""
    steps = round((slider.value - slider.min) / slider.step)
    return round(slider.min + steps * slider.step, 10)


def slider(
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


def require_slice(name: str, image: Tensor) -> Tensor:
    """A copy of one 2D image on the CPU in float32: what happens to the original is no matter."""
    spatial = require_image(name, image)
    if len(spatial) != 2 or tuple(image.shape[:2]) != (1, 1):
        raise ValueError(
            f"{name}: expected one 2D image of one channel, (1, 1, H, W), got {tuple(image.shape)}"
        )
    require_finite(name, image)
    return image.detach().to("cpu", torch.float32).clone()


def require_fraction(name: str, value: float) -> float:
    """``value`` as a float, if it is a number from 0 to 1."""
    number = require_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return number


def intensity_range(image: Tensor) -> tuple[float, float]:
    """The intensities that become black and white; a constant image comes out black."""
    low, high = float(image.min()), float(image.max())
    return low, high if high > low else low + 1


def percent(fraction: float) -> str:
    """``fraction`` in percent; what is not zero does not read as zero."""
    return "< 0.01 %" if 0 < fraction < 5e-5 else f"{100 * fraction:.2f} %"


def score_text(value: float) -> str:
    """A correlation in words."""
    return "undefined (a constant image)" if math.isnan(value) else f"{value:.3f}"


def require_labeled_pair(pair: object) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The images, and the moving and fixed labels, of one 2D pair."""
    if not isinstance(pair, Pair):
        raise TypeError(f"pair: expected a Pair, got {type(pair).__name__}")
    moving, fixed = require_slice("moving", pair.moving), require_slice("fixed", pair.fixed)
    require_same("moving", moving, "fixed", fixed)
    labels = []
    for name, part in (("moving_labels", pair.moving_labels), ("fixed_labels", pair.fixed_labels)):
        require_labels(name, part)
        labels.append(part.detach().cpu().clone())  # type: ignore[union-attr]
        require_same(name, labels[-1], "fixed", fixed)
    if not bool((labels[1] > 0).any()):
        raise ValueError("fixed_labels: expected labels above 0, got none")
    return moving, fixed, (labels[0], labels[1])

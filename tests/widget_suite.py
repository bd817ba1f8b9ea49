"""What every widget must do, as tests that each widget's test file derives from.

In ``tests/test_widgets_descent.py``::

    class TestPlayground(PlaygroundSuite):
        def make(self) -> Playground:
            return descent_explorer(textured(), box(), START)
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from io import BytesIO
from itertools import pairwise
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image
from torch import Tensor

from course_lib import drawing
from course_lib.widgets import Playground
from course_lib.widgets import playground as shared

SHAPE = (48, 60)


def blobs(seed: int = 0) -> Tensor:
    """A smooth image from 0 to 1 without any symmetry."""
    coarse = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(coarse, SHAPE, mode="bicubic").clamp(0, 1)
    return (image - image.min()) / (image.max() - image.min())


# What a picture shows.


def rgb(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB"))


def panel_of(page: drawing.Page, picture: bytes, k: int) -> np.ndarray:
    (left, top), (height, width) = page.corners[k], page.panel
    return rgb(picture)[top : top + height, left : left + width]


def still_parts(playground: Playground) -> list[np.ndarray]:
    """The three pages of the still picture."""
    strip = rgb(playground.still())
    third = len(strip) // 3
    return [strip[k * third : (k + 1) * third] for k in range(3)]


def loud(pixels: np.ndarray) -> bool:
    """Whether any pixel has the color of an alarm."""
    return bool((pixels == drawing.FOLD_RGB).all(axis=-1).any())


def heard(playground: Playground, *setting: float) -> tuple[list[str], bool]:
    """The lines below the picture of a setting, and whether they alarm."""
    said: list[tuple[list[str], bool]] = []
    draw = drawing.Page.draw

    def listen(page: drawing.Page, panels: Any, lines: Any, alarm: bool = False) -> Any:
        said.append((list(lines), alarm))
        return draw(page, panels, lines, alarm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing.Page, "draw", listen)
        playground.render(*setting)
    (once,) = said
    return once


# What the sliders do.


def values(playground: Playground) -> dict[str, float]:
    return {name: slider.value for name, slider in playground.sliders.items()}


def step(slider: ipywidgets.FloatSlider) -> None:
    """Moves a slider by one step: up, or down from its upper end."""
    slider.value += slider.step if slider.value < slider.max else -slider.step


class PlaygroundSuite(ABC):
    fewest_steps = 2  # of a slider

    @abstractmethod
    def make(self) -> Playground:
        """A new playground with small images."""

    def test_sliders_are_the_parameters(self) -> None:
        playground = self.make()
        assert list(playground.sliders) == list(inspect.signature(playground.render).parameters)
        for slider in playground.sliders.values():
            assert slider.description and slider.readout and slider.continuous_update
            assert slider.min <= slider.value <= slider.max
            steps = (slider.max - slider.min) / slider.step
            assert self.fewest_steps <= steps <= 250 and steps == pytest.approx(round(steps))

    def test_moving_a_slider_changes_the_picture(self) -> None:
        playground = self.make()
        for name, slider in playground.sliders.items():
            before = playground.picture.value
            step(slider)
            assert playground.picture.value != before, name
        assert playground.picture.value == playground.render(**values(playground))

    def test_both_ends_of_every_slider(self) -> None:
        playground = self.make()
        for slider in playground.sliders.values():
            for end in (slider.min, slider.max):
                slider.value = end
                assert bytes(playground.picture.value).startswith(b"\x89PNG")

    def test_a_hair_off_a_step_is_the_step(self) -> None:
        """A browser counts in steps from the lower end, and sends 10.000000000000002 for 10."""
        playground = self.make()
        for name, slider in playground.sliders.items():
            step(slider)
            exact = playground.picture.value
            inwards = slider.min if slider.value > slider.min else slider.max
            slider.value = math.nextafter(slider.value, inwards)
            assert playground.picture.value == exact, name

    def test_same_parameters_same_bytes(self) -> None:
        playground = self.make()
        start = values(playground)
        first = playground.render(**start)
        for end in ("min", "max"):
            playground.render(*[getattr(slider, end) for slider in playground.sliders.values()])
        assert playground.render(**start) == first == self.make().render(**start)

    def test_two_of_them_do_not_share_anything(self) -> None:
        one, two = self.make(), self.make()
        before = two.picture.value
        step(next(iter(one.sliders.values())))
        assert one.picture.value != before == two.picture.value

    def test_leaves_a_still_picture_as_a_separate_output(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[Any] = []
        monkeypatch.setattr(shared, "display", shown.append)
        playground = self.make()
        playground._ipython_display_()
        box, caption, still = shown
        assert isinstance(box, ipywidgets.VBox)
        assert list(box.children) == [*playground.sliders.values(), playground.picture]
        assert "without a slider" in caption.data
        data, metadata = DisplayFormatter().format(still)
        assert "image/png" in data and not any("widget" in kind for kind in data)
        assert metadata["image/png"]["alt"] == playground.caption
        assert len(playground.caption) > 100

    def test_the_still_picture_shows_three_settings(self) -> None:
        playground = self.make()
        assert all((one != other).any() for one, other in pairwise(still_parts(playground)))
        assert playground.still() == playground.still() and len(playground.still()) < 120_000

    def test_leaves_threads_and_gradients_as_they_were(self) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            playground = self.make()
            playground.render(**values(playground))
            assert torch.get_num_threads() == 2 and torch.is_grad_enabled()
            for wrong, error in ((-math.inf, ValueError), ("1", TypeError)):
                with pytest.raises(error):
                    playground.render(*[wrong] * len(playground.sliders))
                assert torch.get_num_threads() == 2 and torch.is_grad_enabled()
        finally:
            torch.set_num_threads(threads)

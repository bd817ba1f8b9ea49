"""The joint histogram explorer: counts as the loss counts, pictures follow, numbers are right."""

import math
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from course_lib import drawing
from course_lib.datasets import brains
from course_lib.landscapes import landscape, translations
from course_lib.losses import mutual_information, ncc
from course_lib.spatial import smooth
from course_lib.widgets import Playground, joint_histogram_explorer
from course_lib.widgets.histogram import histogram_of_pairs
from tests.widget_suite import PlaygroundSuite, heard, panel_of

SHAPE = (40, 52)
TITLES = ("tiles: warped, fixed", "counts: warped ↑ fixed →", "more than by chance")


def textured(seed: int = 0) -> Tensor:
    noise = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return smooth(noise, 1.5)


def contrasts() -> list[Tensor]:
    return [textured(), 1 - textured(), textured() ** 2]


def page() -> drawing.Page:
    return drawing.Page(SHAPE, TITLES, [("+4 nats", 1.0), ("0", 0.5), ("−4", 0.0)], lines=2)


def panel(picture: bytes, k: int) -> np.ndarray:
    return panel_of(page(), picture, k)


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return joint_histogram_explorer(textured(), contrasts())


class TestHistogram:
    @pytest.mark.parametrize("bins", [2, 7, 32])
    def test_gives_the_information_of_the_loss(self, bins: int) -> None:
        a, b = textured(), textured(1) + textured()
        p = histogram_of_pairs(a, b, bins)
        chance = torch.outer(p.sum(1), p.sum(0))
        information = torch.special.xlogy(p, p / chance.clamp(min=1e-30)).sum()
        assert float(information) == pytest.approx(-float(mutual_information(a, b, bins)), abs=1e-5)

    def test_rows_belong_to_the_first_image(self) -> None:
        a, b = torch.tensor([0.0, 0, 1, 0.25]), torch.tensor([0.0, 2, 2, 2])
        expected = torch.tensor([[1, 0, 1.5], [0, 0, 0.5], [0, 0, 1]], dtype=torch.float64) / 4
        assert torch.allclose(histogram_of_pairs(a, b, 3), expected)

    def test_constant_images_lie_in_the_first_bin(self) -> None:
        p = histogram_of_pairs(torch.ones(5), torch.ones(5), 4)
        assert p[0, 0] == 1 and p.sum() == 1

    @pytest.mark.parametrize("bins", [1, 129, 2.5, "8"])
    def test_refuses_bins(self, bins: Any) -> None:
        with pytest.raises(ValueError, match=r"^bins:"):
            histogram_of_pairs(torch.rand(9), torch.rand(9), bins)

    def test_refuses_other_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"^a:"):
            histogram_of_pairs(torch.rand(9), torch.rand(8), 4)


class TestExplorer:
    def test_png_of_the_expected_size(self, explorer: Playground) -> None:
        picture = Image.open(BytesIO(explorer.render(2, 5, 1, 16)))
        assert picture.format == "PNG" and picture.size == page().size

    @pytest.mark.parametrize("other", [(4, 5, 1, 16), (2, -9, 1, 16), (2, 5, 2, 16), (2, 5, 1, 32)])
    def test_every_parameter_changes_the_histograms(
        self, explorer: Playground, other: tuple[float, ...]
    ) -> None:
        one, two = explorer.render(2, 5, 1, 16), explorer.render(*other)
        for k in (1, 2):
            assert (panel(one, k) != panel(two, k)).any(), TITLES[k]

    def test_says_what_the_losses_say(self, explorer: Playground) -> None:
        for contrast, moving in enumerate(contrasts()):
            lines, alarm = heard(explorer, -3, 0, contrast, 20)
            pose = translations([-3], axis=1)
            information = -float(
                landscape(lambda a, b: mutual_information(a, b, 20), moving, textured(), pose)
            )
            squared = float(landscape(ncc, moving, textured(), pose)) ** 2
            assert not alarm
            assert lines[0] == f"shift −3.0 voxels, rotation 0.0°, contrast {contrast}, 20 bins"
            found = [float(x) for x in re.findall(r"\d\.\d{3}", lines[1])]
            assert found == pytest.approx([information, squared], abs=1e-3)

    def test_an_image_with_itself_is_a_diagonal(self, explorer: Playground) -> None:
        same, negative = (panel(explorer.render(0, 0, k, 8), 1)[..., 0] for k in (0, 1))
        height = len(same)
        low_left, low_right = (slice(-height // 8, None), slice(0, 6)), (-4, -4)
        # The darkest voxels of both: bottom left. With the negative: top left.
        assert same[low_left].min() < 200 and negative[low_left].min() == 255
        assert same[low_right] == 255 and negative[low_right] < 250

    def test_alignment_says_most(self, explorer: Playground) -> None:
        values = [
            float(re.findall(r"\d\.\d{3}", heard(explorer, shift, 0, 2, 16)[0][1])[0])
            for shift in (-6, -2, 0, 2, 6)
        ]
        assert max(values) == values[2] and values[2] > 1.5 * values[0]

    def test_caption_and_still(self) -> None:
        brain = brains.real_pair().fixed
        explorer = joint_histogram_explorer(brain, [brain, 1 - brain])
        numbers = [float(x) for x in re.findall(r"\d\.\d\d", explorer.caption)]
        assert len(numbers) == 4 and numbers[0] > 1.7 * numbers[1] and numbers[2] > 1.7 * numbers[3]
        assert len(explorer.still()) < 120_000

    def test_keeps_what_it_was_given(self) -> None:
        fixed = textured()
        playground = joint_histogram_explorer(fixed, contrasts())
        before = playground.render(1, 1, 1, 16)
        fixed.zero_()
        assert playground.render(1, 1, 1, 16) == before

    @pytest.mark.parametrize(
        ("fixed", "moving", "error", "name"),
        [
            (torch.zeros(2, 1, *SHAPE), [textured()], ValueError, "fixed"),
            (np.zeros(SHAPE), [textured()], TypeError, "fixed"),
            (torch.full((1, 1, *SHAPE), math.nan), [textured()], ValueError, "fixed"),
            (textured(), [], ValueError, "moving"),
            (textured(), [textured()], ValueError, "moving"),
            (textured(), textured(), TypeError, "moving"),
            (textured(), [textured(), textured()[..., 1:]], ValueError, r"moving\[1\]"),
        ],
    )
    def test_refuses(self, fixed: Any, moving: Any, error: type[Exception], name: str) -> None:
        with pytest.raises(error, match=f"^{name}"):
            joint_histogram_explorer(fixed, moving)

    @pytest.mark.parametrize(
        ("setting", "name"),
        [
            ((math.nan, 0, 0, 8), "shift"),
            ((0, math.inf, 0, 8), "rotation"),
            ((0, 0, 3, 8), "contrast"),
            ((0, 0, -1, 8), "contrast"),
            ((0, 0, 0, 1), "bins"),
            ((0, 0, 0, 400), "bins"),
        ],
    )
    def test_refuses_bad_parameters(
        self, explorer: Playground, setting: tuple[float, ...], name: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{name}:"):
            explorer.render(*setting)


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return joint_histogram_explorer(textured(), contrasts())


class TestPlaygroundOfTwoContrasts(PlaygroundSuite):
    fewest_steps = 1  # from one contrast to the other

    def make(self) -> Playground:
        return joint_histogram_explorer(textured(), contrasts()[:2])

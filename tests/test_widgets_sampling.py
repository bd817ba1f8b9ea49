"""The sampling explorer: weights are those of bilinear interpolation, pictures follow."""

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
from course_lib.spatial import identity_grid, warp
from course_lib.widgets import Playground, sampling, sampling_explorer
from tests.widget_suite import PlaygroundSuite, heard, panel_of

SHAPE = (5, 7)
TITLES = ("the piece, and the box", "the box: weights", "slope along j")


def piece() -> Tensor:
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(3))


def read(row: float, column: float) -> float:
    u = torch.tensor([row, column]).view(1, 2, 1, 1) - identity_grid((2, 2))
    return float(warp(piece().double(), u.double())[0, 0, 0, 0])


def page() -> drawing.Page:
    reach = float(piece().diff(dim=3).abs().max())
    labels = [f"{at:+.2g}".replace("-", "−") for at in (reach, -reach)]
    return drawing.Page(SHAPE, TITLES, [(labels[0], 1.0), ("0", 0.5), (labels[1], 0.0)], lines=2)


def panel(picture: bytes, k: int) -> np.ndarray:
    return panel_of(page(), picture, k)


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return sampling_explorer(piece())


class TestNumbers:
    @pytest.mark.parametrize(("row", "column"), [(1.25, 3.6), (0.0, 0.0), (4.0, 6.0), (4.0, 2.3)])
    def test_weights_mix_to_the_value_of_warp(self, row: float, column: float) -> None:
        weights = sampling._weights(row, column, SHAPE)
        assert sum(weights) == pytest.approx(1) and min(weights) >= 0
        (i, _), (j, _) = sampling._cell(row, 5), sampling._cell(column, 7)
        corners = piece()[0, 0, i : i + 2, j : j + 2].flatten()
        mixed = float((torch.tensor(weights) * corners).sum())
        assert mixed == pytest.approx(read(row, column), abs=1e-5)

    def test_weights_are_in_the_order_of_reading(self) -> None:
        assert sampling._weights(0.25, 0.1, SHAPE) == pytest.approx((0.675, 0.075, 0.225, 0.025))

    def test_says_value_and_slopes(self, explorer: Playground) -> None:
        lines, _ = heard(explorer, 2.25, 1.6)
        h = 1e-3
        down = (read(2.25 + h, 1.6) - read(2.25 - h, 1.6)) / (2 * h)
        right = (read(2.25, 1.6 + h) - read(2.25, 1.6 - h)) / (2 * h)
        assert abs(down) > 0.05 and abs(right) > 0.05 and abs(down - right) > 0.05
        numbers = [float(n) for n in re.findall(r"[+-]?\d\.\d+", " ".join(lines).replace("−", "-"))]
        assert numbers == pytest.approx([2.25, 1.6, read(2.25, 1.6), down, right], abs=2e-3)
        assert "-" not in "".join(lines)

    def test_slope_map_is_the_slope(self) -> None:
        values, (height, width) = piece()[0, 0], page().panel
        slopes = sampling._slope_along_j(values, (height, width))
        for y, x in ((60, 100), (150, 30), (100, 200)):
            i, j = (y + 0.5) * 5 / height - 0.5, (x + 0.5) * 7 / width - 0.5
            h = 1e-3
            expected = (read(i, j + h) - read(i, j - h)) / (2 * h)
            assert float(slopes[y, x]) == pytest.approx(expected, abs=2e-3)
        assert not slopes[0].any() and not slopes[:, -1].any()  # outside the centers


class TestPicture:
    def test_png_of_the_expected_size(self, explorer: Playground) -> None:
        picture = Image.open(BytesIO(explorer.render(1, 2)))
        assert picture.format == "PNG" and picture.size == page().size

    @pytest.mark.parametrize("other", [(1.6, 2.7), (1.2, 3.4)])
    def test_every_parameter_changes_every_panel(
        self, explorer: Playground, other: tuple[float, float]
    ) -> None:
        one, two = explorer.render(1.2, 2.7), explorer.render(*other)
        for k in range(3):
            assert (panel(one, k) != panel(two, k)).any(), TITLES[k]

    def test_the_box_is_one_voxel_around_the_point(self, explorer: Playground) -> None:
        shown = panel(explorer.render(2.5, 3.25), 0)
        rows, columns = np.nonzero((shown == drawing.OUTLINE_RGB).all(axis=2))
        scale = page().panel[0] / 5
        assert (rows.min(), rows.max()) == pytest.approx((2.5 * scale, 3.5 * scale), abs=1.5)
        assert (columns.min(), columns.max()) == pytest.approx(
            (3.25 * scale, 4.25 * scale), abs=1.5
        )

    def test_areas_are_the_weights(self) -> None:
        """Each voxel fills its share of the box, with its gray."""
        brightness = torch.tensor([[0.0, 0.25], [0.5, 0.75]])
        weights = torch.tensor(sampling._weights(1.3, 2.2, SHAPE)).view(2, 2)
        drawn = np.asarray(sampling._draw_box(brightness, weights, (200, 300)))
        for shade, weight in zip(brightness.flatten(), weights.flatten(), strict=True):
            share = (drawn == round(float(shade) * (drawing.GRAYS - 1))).mean()
            assert share == pytest.approx(float(weight), abs=0.03)
        assert drawn[5, 5] == 0  # upper left, where rows and columns begin

    def test_voxels_are_squares_of_one_gray(self, explorer: Playground) -> None:
        shown = panel(explorer.render(4.0, 6.0), 0)  # the box is far from the first voxels
        scale = page().panel[1] / 7
        first = shown[2 : int(scale) - 2, 2 : int(scale) - 2].reshape(-1, 3)
        assert (first == first[0]).all()

    def test_lines_fit(self) -> None:
        line = "slope along i +0.999, along j −0.999 per voxel"
        assert drawing._LEFT + drawing._font().getlength(line) < drawing._LEAST

    def test_three_telling_settings(self) -> None:
        """Before, on and behind a voxel: the answer to the lesson's question."""
        brain = brains.real_pair().moving[..., 86:92, 94:100]
        playground = sampling_explorer(brain)
        places = re.findall(r"row (\d\.\d\d), column (\d\.\d\d)", playground.caption)
        assert places == [("2.50", "1.80"), ("2.50", "2.00"), ("2.50", "2.20")]
        assert "0.50, 0.00, 0.50, 0.00" in playground.caption
        assert len(playground.still()) < 120_000

    @pytest.mark.parametrize("shape", [(2, 2), (2, 12), (12, 3)])
    def test_smallest_and_largest_pieces(self, shape: tuple[int, int]) -> None:
        playground = sampling_explorer(torch.rand(1, 1, *shape))
        assert playground.render(shape[0] - 1, shape[1] - 1).startswith(b"\x89PNG")
        assert playground.still().startswith(b"\x89PNG")

    def test_a_constant_piece(self) -> None:
        assert sampling_explorer(torch.ones(1, 1, 4, 4)).render(1.5, 1.5).startswith(b"\x89PNG")

    def test_keeps_what_it_was_given(self) -> None:
        given = piece()
        playground = sampling_explorer(given)
        before = playground.render(2, 3)
        given.zero_()
        assert playground.render(2, 3) == before


class TestRefuses:
    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            (torch.zeros(2, 1, 4, 4), ValueError),
            (torch.zeros(1, 2, 4, 4), ValueError),
            (torch.zeros(1, 1, 4, 4, 4), ValueError),
            (torch.zeros(1, 1, 1, 4), ValueError),
            (torch.zeros(1, 1, 4, 13), ValueError),
            (torch.full((1, 1, 4, 4), math.nan), ValueError),
            (torch.zeros(1, 1, 4, 4).long(), TypeError),
            (np.zeros((4, 4)), TypeError),
        ],
    )
    def test_pieces(self, bad: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^piece"):
            sampling_explorer(bad)

    @pytest.mark.parametrize(
        ("setting", "error", "name"),
        [
            ((-0.1, 1), ValueError, "row"),
            ((4.1, 1), ValueError, "row"),
            ((1, 6.1), ValueError, "column"),
            ((1, math.nan), ValueError, "column"),
            (("1", 1), TypeError, "row"),
        ],
    )
    def test_places(
        self, explorer: Playground, setting: Any, error: type[Exception], name: str
    ) -> None:
        with pytest.raises(error, match=f"^{name}:"):
            explorer.render(*setting)


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return sampling_explorer(piece())

    def test_sliders_read_hundredths(self, explorer: Playground) -> None:
        for slider in explorer.sliders.values():
            assert slider.readout_format == ".2f"

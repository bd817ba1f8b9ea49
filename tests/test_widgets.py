"""Widgets: the pictures say what the fields do, and the sliders drive the pictures."""

import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch import Tensor

from course_lib import drawing
from course_lib.datasets import brains
from course_lib.metrics import correlation, folding_fraction
from course_lib.spatial import jacobian_determinant, warp
from course_lib.widgets import (
    Playground,
    bump_displacement,
    deformation_explorer,
    warp_slider,
)
from course_lib.widgets import playground as shared
from tests.widget_suite import (
    SHAPE,
    PlaygroundSuite,
    blobs,
    heard,
    loud,
    panel_of,
    rgb,
    still_parts,
)

TITLES = ("warped image", "grid at x + u(x)", "Jacobian det J")


def box_labels() -> Tensor:
    labels = torch.zeros(1, 1, *SHAPE, dtype=torch.long)
    labels[..., 10:30, 15:45] = 3
    return labels


def count(picture: bytes, color: tuple[int, int, int]) -> int:
    return int((rgb(picture) == color).all(axis=2).sum())


def page(lines: int = 2) -> drawing.Page:
    bar = [("≥ 2", 1.0), ("1.5", 0.75), ("1", 0.5), ("0.5", 0.25), ("0", 0.0)]
    return drawing.Page(SHAPE, TITLES, bar, lines=lines)


def panel(picture: bytes, k: int) -> np.ndarray:
    """Panel ``k`` of a page of images of SHAPE whose titles are narrower than the panels."""
    return panel_of(page(), picture, k)


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return deformation_explorer(blobs())


@pytest.fixture(scope="module")
def slider() -> Playground:
    return warp_slider(blobs(), blobs(1), bump_displacement(SHAPE, 6, 8, 0.5))


class TestBump:
    def test_formula(self) -> None:
        u = bump_displacement((41, 61), amplitude=5, smoothness=4, position=0.25)
        assert u.shape == (1, 2, 41, 61) and u.dtype == torch.float32
        assert u[0, 0].abs().max() == 0
        assert u[0, 1, 20, 15] == 5
        assert u[0, 1, 23, 19].item() == pytest.approx(5 * math.exp(-25 / 32), abs=1e-5)

    @pytest.mark.parametrize("smoothness", [6.0, 10.0, 20.0])
    @pytest.mark.parametrize("sign", [-1, 1])
    def test_folds_where_the_closed_form_says(self, smoothness: float, sign: int) -> None:
        threshold = sign * math.exp(0.5) * smoothness
        below, above = (
            float(folding_fraction(bump_displacement((201, 201), c * threshold, smoothness, 0.5)))
            for c in (0.99, 1.02)
        )
        assert below == 0 and above > 0

    def test_smallest_determinant(self) -> None:
        determinant = jacobian_determinant(bump_displacement((201, 201), 12, 10, 0.5))
        assert determinant.min().item() == pytest.approx(1 - 1.2 * math.exp(-0.5), abs=5e-3)

    @pytest.mark.parametrize(
        ("arguments", "error", "name"),
        [
            (((9, 9, 9), 1, 1, 0.5), ValueError, "shape"),
            (((9, 9), math.nan, 1, 0.5), ValueError, "amplitude"),
            (((9, 9), "1", 1, 0.5), TypeError, "amplitude"),
            (((9, 9), 1, 0, 0.5), ValueError, "smoothness"),
            (((9, 9), 1, math.inf, 0.5), ValueError, "smoothness"),
            (((9, 9), 1, 1, 1.5), ValueError, "position"),
            (((9, 9), 1, 1, -0.1), ValueError, "position"),
            (((9, 9), 1, 1, True), TypeError, "position"),
        ],
    )
    def test_refuses(self, arguments: Any, error: type[Exception], name: str) -> None:
        with pytest.raises(error, match=f"^{name}:"):
            bump_displacement(*arguments)


class TestExplorer:
    def test_png_of_the_expected_size(self, explorer: Playground) -> None:
        picture = Image.open(BytesIO(explorer.render(3, 5, 0.5)))
        assert picture.format == "PNG"
        assert picture.size == page().size

    @pytest.mark.parametrize("other", [(6, 5, 0.5), (-3, 5, 0.5), (3, 9, 0.5), (3, 5, 0.7)])
    def test_every_parameter_changes_every_panel(
        self, explorer: Playground, other: tuple[float, float, float]
    ) -> None:
        one, two = explorer.render(3, 5, 0.5), explorer.render(*other)
        for k in range(3):
            assert (panel(one, k) != panel(two, k)).any()

    @pytest.mark.parametrize("amplitude", [0, 5, 7.6, 7.9, 8.2, 8.5, -8.5, 12, 30])
    @pytest.mark.parametrize("labels", [None, box_labels()])
    def test_loud_exactly_when_the_metric_says_folded(
        self, amplitude: float, labels: Tensor | None
    ) -> None:
        picture = deformation_explorer(blobs(), labels).render(amplitude, 5, 0.5)
        folded = float(folding_fraction(bump_displacement(SHAPE, amplitude, 5, 0.5))) > 0
        assert loud(rgb(picture)) == folded
        for k, in_this_panel in enumerate([False, folded, folded]):
            assert loud(panel(picture, k)) == in_this_panel, TITLES[k]
        below = rgb(picture)[page().corners[0][1] + page().panel[0] + 1 :]
        assert loud(below) == folded, "beside the words"

    def test_amplitudes_above_lie_on_both_sides_of_the_threshold(self) -> None:
        fractions = [
            float(folding_fraction(bump_displacement(SHAPE, a, 5, 0.5))) for a in (7.9, 8.5)
        ]
        assert fractions[0] == 0 and fractions[1] == pytest.approx(4 / 2880)

    def test_words(self, explorer: Playground) -> None:
        u = bump_displacement(SHAPE, -12, 5, 0.5)
        percent, least = 100 * float(folding_fraction(u)), float(jacobian_determinant(u).min())
        assert heard(explorer, -12, 5, 0.5) == (
            [
                "amplitude −12.0 voxels, smoothness 5.0 voxels, position 0.50",
                f"folded: {percent:.2f} %,  min det J: −{-least:.2f}",
            ],
            True,
        )
        assert percent > 0.5 and least < -0.2
        lines, alarm = heard(explorer, 0, 5, 0.5)
        assert lines[1:] == ["folded: 0.00 %,  min det J: 1.00"] and not alarm

    def test_what_is_not_zero_does_not_read_as_zero(self) -> None:
        assert shared.percent(1e-5) == "< 0.01 %"
        assert shared.percent(0) == "0.00 %"

    def test_zero_amplitude_shows_the_image_as_it_is(self, explorer: Playground) -> None:
        levels = (blobs()[0, 0] * (drawing.GRAYS - 1)).round().byte().numpy()
        height, width = page().panel
        scaled = Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(scaled) * (255 / (drawing.GRAYS - 1))
        shown = panel(explorer.render(0, 5, 0.5), 0).astype(float)
        assert np.abs(shown - expected[..., None]).max() <= 0.5

    def test_zero_amplitude_has_determinant_one(self, explorer: Playground) -> None:
        middle = panel(explorer.render(0, 5, 0.5), 2)
        assert (middle == middle[0, 0]).all() and middle.min() > 240

    def test_blue_where_it_shrinks_and_red_where_it_grows(self, explorer: Playground) -> None:
        # u grows up to the center: the grid is stretched on its left, and squeezed on its right.
        volume = panel(explorer.render(5, 8, 0.5), 2).astype(int)
        height, width = volume.shape[:2]
        offset = round(8 * width / SHAPE[1])
        red, _, blue = volume[height // 2, width // 2 - offset]
        assert red > blue + 50
        red, _, blue = volume[height // 2, width // 2 + offset]
        assert blue > red + 50

    def test_grid_lines_go_where_the_points_go(self) -> None:
        points = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij"))
        nothing = torch.zeros(40, 40, dtype=torch.bool)
        still = np.asarray(drawing.grid_lines(points, nothing, (80, 80)))
        moved = np.asarray(
            drawing.grid_lines(points + torch.tensor([0.0, 3.0])[:, None, None], nothing, (80, 80))
        )
        # Three voxels along j are six pixels to the right.
        np.testing.assert_array_equal(moved[:, 12:70], still[:, 6:64])
        assert still.min() < drawing.GRAYS // 4 and still.max() == drawing.WHITE

    def test_a_single_voxel_is_seen_at_any_scale(self) -> None:
        mask = torch.zeros(300, 200, dtype=torch.bool)
        mask[151, 77] = True
        for size in [(30, 20), (290, 199), (300, 200), (450, 300)]:
            picture = Image.new("L", size[::-1], drawing.WHITE)
            drawing.paint(picture, mask, drawing.FOLD)
            assert 0 < (np.asarray(picture) == drawing.FOLD).sum() <= 9

    def test_outlines_move_with_the_image(self) -> None:
        explorer = deformation_explorer(torch.zeros(1, 1, *SHAPE), box_labels())
        still, moved = (
            (panel(explorer.render(a, 8, 0.5), 0) == drawing.OUTLINE_RGB).all(axis=2)
            for a in (0, 6)
        )
        scale = page().panel[0] / SHAPE[0]
        rows, columns = np.nonzero(still)
        box = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
        np.testing.assert_allclose(box, np.array([10, 30, 15, 45]) * scale, atol=1.5)
        assert still[:, still.shape[1] // 2].sum() == 2 and still[still.shape[0] // 2].sum() == 2
        assert (still != moved).any()
        assert count(deformation_explorer(blobs()).render(6, 8, 0.5), drawing.OUTLINE_RGB) == 0

    @pytest.mark.parametrize(
        ("image", "labels", "error", "name"),
        [
            (np.zeros(SHAPE), None, TypeError, "image"),
            (torch.zeros(*SHAPE), None, ValueError, "image"),
            (torch.zeros(1, 1, 8, 8, 8), None, ValueError, "image"),
            (torch.zeros(2, 1, *SHAPE), None, ValueError, "image"),
            (torch.zeros(1, 3, *SHAPE), None, ValueError, "image"),
            (torch.zeros(1, 1, *SHAPE, dtype=torch.uint8), None, TypeError, "image"),
            (torch.full((1, 1, *SHAPE), math.nan), None, ValueError, "image"),
            (torch.zeros(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE), TypeError, "labels"),
            (torch.zeros(1, 1, *SHAPE), box_labels()[..., 1:], ValueError, "labels"),
            (torch.zeros(1, 1, *SHAPE), -box_labels(), ValueError, "labels"),
        ],
    )
    def test_refuses(self, image: Any, labels: Any, error: type[Exception], name: str) -> None:
        with pytest.raises(error, match=f"^{name}:"):
            deformation_explorer(image, labels)

    def test_refuses_bad_parameters(self, explorer: Playground) -> None:
        with pytest.raises(ValueError, match=r"^smoothness:"):
            explorer.render(1, 0, 0.5)


class TestWarpSlider:
    def test_png_of_the_expected_size(self, slider: Playground) -> None:
        bar = [("+0.00", 1.0), ("−0.00", 0.0)]
        titles = ("warped image", "tiles: warped, fixed", "warped − fixed")
        expected = drawing.Page(SHAPE, titles, bar, lines=1).size
        size = Image.open(BytesIO(slider.render(0.5))).size
        assert size[1] == expected[1] and abs(size[0] - expected[0]) < 30

    @pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
    def test_shows_the_warped_image(self, fraction: float) -> None:
        u = bump_displacement(SHAPE, 6, 8, 0.5)
        moving = blobs()
        shown = panel(warp_slider(moving, moving, u).render(fraction), 0).astype(float)
        warped = warp(moving, fraction * u)[0, 0]
        scaled = drawing.gray(warped, 0, 1, page().panel)
        expected = np.asarray(scaled) * (255 / (drawing.GRAYS - 1))
        assert np.abs(shown - expected[..., None]).max() <= 0.5

    def test_tiles_and_difference(self) -> None:
        bright, dark = torch.ones(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE)
        picture = warp_slider(bright, dark, torch.zeros(1, 2, *SHAPE)).render(1.0)
        tiles, difference = panel(picture, 1), panel(picture, 2)
        assert 0.35 < (tiles > 250).mean() < 0.6 and 0.35 < (tiles < 5).mean() < 0.6
        assert (difference == difference[0, 0]).all()
        red, _, blue = difference[0, 0]
        assert red > 80 > blue  # warped − fixed is +1 everywhere

    def test_no_difference_is_the_middle_of_the_map(self) -> None:
        picture = warp_slider(blobs(), blobs(), torch.zeros(1, 2, *SHAPE)).render(0.4)
        assert panel(picture, 2).min() > 240

    def test_says_the_correlation(self, slider: Playground) -> None:
        u = bump_displacement(SHAPE, 6, 8, 0.5)
        r = float(correlation(warp(blobs(), 0.5 * u), blobs(1)))
        expected = f"fraction 0.50 of the displacement,  correlation with fixed: {r:.3f}"
        assert heard(slider, 0.5) == ([expected.replace("-", "−")], False)

    def test_constant_image(self) -> None:
        flat = torch.zeros(1, 1, *SHAPE)
        playground = warp_slider(flat, flat, torch.zeros(1, 2, *SHAPE))
        assert "undefined" in playground.caption
        assert playground.render(0.5)

    def test_takes_what_a_training_leaves(self) -> None:
        u = bump_displacement(SHAPE, 6, 8, 0.5).requires_grad_()
        moving = blobs()
        playground = warp_slider(moving, blobs(1), u)
        before = playground.render(1.0)
        assert warp_slider(moving.double(), blobs(1), u.double()).render(1.0) == before
        with torch.no_grad():
            u.zero_()
            moving.zero_()
        assert playground.render(1.0) == before, "it shows the field that it was given"

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"moving": torch.zeros(1, 1, 4, 4, 4)}, ValueError),
            ({"moving": torch.full((1, 1, *SHAPE), math.inf)}, ValueError),
            ({"fixed": torch.zeros(2, 1, *SHAPE)}, ValueError),
            ({"fixed": None}, TypeError),
            ({"displacement": torch.zeros(1, 3, *SHAPE)}, ValueError),
            ({"displacement": torch.zeros(1, 2, 9, 9)}, ValueError),
            ({"displacement": torch.zeros(1, 2, *SHAPE, dtype=torch.long)}, TypeError),
            ({"displacement": torch.full((1, 2, *SHAPE), math.nan)}, ValueError),
        ],
    )
    def test_refuses(self, change: dict[str, Any], error: type[Exception]) -> None:
        good = {"moving": blobs(), "fixed": blobs(1), "displacement": torch.zeros(1, 2, *SHAPE)}
        with pytest.raises(error, match=f"^{next(iter(change))}:"):
            warp_slider(**{**good, **change})

    @pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
    def test_refuses_a_fraction(self, slider: Playground, fraction: float) -> None:
        with pytest.raises(ValueError, match=r"^fraction:"):
            slider.render(fraction)


class TestExplorerPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return deformation_explorer(blobs(), box_labels())


class TestWarpSliderPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return warp_slider(blobs(), blobs(1), bump_displacement(SHAPE, 6, 8, 0.5))


class TestStill:
    def test_three_telling_settings(self, explorer: Playground) -> None:
        assert [loud(part) for part in still_parts(explorer)] == [False, False, True]

    def test_moderate_size(self) -> None:
        pair = brains.real_pair(2)
        assert len(deformation_explorer(pair.moving, pair.moving_labels).still()) < 120_000
        u = bump_displacement(pair.fixed.shape[2:], 20, 20, 0.5)
        assert len(warp_slider(pair.moving, pair.fixed, u).still()) < 120_000


class TestPage:
    @pytest.mark.parametrize("shape", [(224, 192), (28, 28), (64, 20), (40, 200), (600, 900)])
    def test_nothing_overlaps_and_nothing_is_clipped(self, shape: tuple[int, int]) -> None:
        bar = [("≥ 2", 1.0), ("0", 0.0)]
        for room in [(308, 264), shared.STILL_ROOM]:
            page = drawing.Page(shape, TITLES, bar, lines=2, room=room)
            height, width = page.panel
            assert height <= room[0] and width <= room[1]
            lefts = [left for left, _ in page.corners]
            for title, left, right in zip(TITLES, lefts, [*lefts[1:], page.size[0]], strict=True):
                assert left + max(width, page._width(title)) < right
            edge = np.asarray(page._frame)
            for side in (edge[0], edge[-1], edge[:, 0], edge[:, -1]):
                assert (side == drawing.WHITE).all(), "ink on the edge of the page"

    def test_lines_fit(self) -> None:
        font: ImageFont.FreeTypeFont = drawing._font(bold=True)
        longest = "amplitude −100.0 voxels, smoothness 100.0 voxels, position 0.50"
        assert drawing._LEFT + drawing._font().getlength(longest) < drawing._LEAST
        alarm = "folded: 10.00 %,  min det J: −10.00"
        assert drawing._LEFT + 34 + font.getlength(alarm) < drawing._LEAST
        fraction = "fraction 0.50 of the displacement,  correlation with fixed: −0.934"
        assert drawing._LEFT + drawing._font().getlength(fraction) < drawing._LEAST

    def test_loud_colors_are_no_colors_of_the_ramps(self) -> None:
        table = np.frombuffer(drawing._palette(), np.uint8).reshape(-1, 3).astype(int)
        ramps, loud = table[: drawing.FOLD], table[drawing.FOLD :]
        assert len(table) <= 256
        for color in loud:
            assert np.linalg.norm(ramps - color, axis=1).min() > 60

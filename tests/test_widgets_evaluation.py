"""The evaluation explorer shows what the metrics say, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from course_lib import drawing, metrics
from course_lib.widgets import Playground, disc_pair, evaluation_explorer
from course_lib.widgets import evaluation as module
from tests.widget_suite import PlaygroundSuite, heard, panel_of

TITLES = 3
SETTINGS = [(1, 0, 0), (3, 2, 0), (10, 2, 20), (20, 15, 30), (15, 0, 30), (2, 15, 7)]


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return evaluation_explorer()


def panel(picture: bytes, k: int) -> np.ndarray:
    page = drawing.Page(
        module.SHAPE,
        ("white: warped, amber: fixed", "sorted distances (voxels)", "warped +, fixed −"),
        [("≥ 3 voxels", 1.0), ("0", 0.5), ("≤ −3 voxels", 0.0)],
        lines=2,
    )
    return panel_of(page, picture, k).astype(int)


class TestDiscs:
    def test_by_hand(self) -> None:
        fixed, warped = disc_pair(1, 3, 0)
        assert fixed.nonzero()[:, 2:].tolist() == [[35, 28], [36, 27], [36, 28], [36, 29], [37, 28]]
        # The stray voxel at distance 0 is the fixed disc's right end.
        moved = {(35, 31), (36, 30), (36, 31), (36, 32), (37, 31), (36, 29)}
        assert {tuple(x) for x in warped.nonzero()[:, 2:].tolist()} == moved

    def test_without_shift_and_stray_they_are_equal(self) -> None:
        assert torch.equal(*disc_pair(7, 0, 0))

    @pytest.mark.parametrize("far", [1, 12, 30])
    def test_stray_voxel_is_as_far_from_the_disc_as_said(self, far: int) -> None:
        fixed, warped = disc_pair(9, 0, far)
        assert int(warped.sum() - fixed.sum()) == 1
        (place,) = (warped - fixed).nonzero()[:, 2:].tolist()
        nearest = (fixed.nonzero()[:, 2:] - torch.tensor(place)).float().norm(dim=1).min()
        assert float(nearest) == far

    def test_corner_of_all_ranges_is_inside_the_picture(self) -> None:
        fixed, warped = disc_pair(20, 15, 30)
        for labels in (fixed, warped):
            frame = torch.ones_like(labels)
            frame[..., 1:-1, 1:-1] = 0
            assert int((labels * frame).sum()) == 0

    @pytest.mark.parametrize(
        ("setting", "name", "error"),
        [
            ((0, 1, 1), "radius", ValueError),
            ((21, 1, 1), "radius", ValueError),
            ((2.5, 1, 1), "radius", ValueError),
            ((2, -1, 1), "shift", ValueError),
            ((2, 16, 1), "shift", ValueError),
            ((2, 1, 31), "stray", ValueError),
            ((2, 1, float("nan")), "stray", ValueError),
            (("a", 1, 1), "radius", TypeError),
        ],
    )
    def test_refuses(
        self, setting: Any, name: str, error: type[Exception], explorer: Playground
    ) -> None:
        for function in (disc_pair, explorer.render):
            with pytest.raises(error, match=rf"^{name}:"):
                function(*setting)


class TestNumbers:
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_are_those_of_the_metrics(self, setting: tuple[float, float, float]) -> None:
        fixed, warped = disc_pair(*setting)
        overlap, most, largest, ranked, signed = module._measure(*setting)
        assert overlap == pytest.approx(float(metrics.dice(fixed, warped)))
        assert most == pytest.approx(float(metrics.hausdorff95(fixed, warped)), abs=1e-5)
        assert ranked[95] == most and ranked[100] == largest == ranked.max()
        assert float(signed.abs().max()) == pytest.approx(largest)

    def test_sign_says_which_outline(self) -> None:
        signed = module._measure(10, 5, 0)[4]
        fixed, warped = disc_pair(10, 5, 0)
        assert (fixed[0, 0][signed < 0] == 1).all() and (warped[0, 0][signed > 0] == 1).all()
        assert float(signed.min()) < -3 and float(signed.max()) > 3

    def test_are_written_below_the_picture(self, explorer: Playground) -> None:
        lines, _ = heard(explorer, 15, 0, 30)
        assert lines == [
            "Radius 15, shift 0, a stray voxel at 30",
            "Dice 1.00, Hausdorff 95: 0.0 voxels, largest distance: 30.0",
        ]
        assert drawing._font().getlength(lines[1]) < drawing._LEAST


class TestPicture:
    @pytest.mark.parametrize("other", [(11, 2, 20), (10, 3, 20), (10, 2, 21)])
    def test_every_parameter_changes_every_panel(
        self, explorer: Playground, other: tuple[float, float, float]
    ) -> None:
        one, two = explorer.render(10, 2, 20), explorer.render(*other)
        changed = [bool((panel(one, k) != panel(two, k)).any()) for k in range(TITLES)]
        # One voxel more of radius leaves 2 and 20 voxels of distance nearly as they are.
        assert changed[0] and changed[2] and (changed[1] or other[0] == 11)

    def test_line_stands_at_95_percent_of_the_curve(self, explorer: Playground) -> None:
        shown = panel(explorer.render(10, 0, 0), 1)
        amber = np.abs(shown - drawing.OUTLINE_RGB).max(2) == 0
        columns = np.unique(np.nonzero(amber)[1])
        assert len(columns) == 1
        # The dot of the last value stands at 100 percent, the axis at 0.
        dark = (shown[-26:-20].max(2) < 60).any(0).nonzero()[0]
        assert (columns[0] - 32) / (dark.max() - 3 - 32) == pytest.approx(0.95, abs=0.01)

    def test_still_is_small_and_says_its_numbers(self, explorer: Playground) -> None:
        assert len(explorer.still()) < 60_000
        # What the lesson asks: both sides of the stray voxel's answer, and 0.90 of Dice.
        assert "Radius 13, shift 2, no stray voxel, Dice 0.90" in explorer.caption
        assert "Radius 3, shift 0, a stray voxel at 30" in explorer.caption
        assert "Radius 4, shift 0, a stray voxel at 30" in explorer.caption
        assert explorer.caption.count("Dice") == 4


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return evaluation_explorer()

    def test_sliders_have_the_limits_of_the_discs(self, explorer: Playground) -> None:
        for name, slider in explorer.sliders.items():
            assert (slider.min, slider.max, slider.step) == (*module._LIMITS[name], 1)

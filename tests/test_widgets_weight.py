"""The weight explorer: pictures and numbers are those of the network that is asked for."""

import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from course_lib import drawing
from course_lib.datasets import Pair
from course_lib.metrics import dice, folding_fraction
from course_lib.spatial import jacobian_determinant, smooth, warp
from course_lib.widgets import Playground, weight_explorer
from course_lib.widgets import playground as shared
from course_lib.widgets import weight as module
from tests.widget_suite import PlaygroundSuite, heard, loud, panel_of, rgb, still_parts

SHAPE = (48, 60)
TITLES = ("warped image", "on unseen pairs", "grid at x + u(x)", "Jacobian det J")
BAR = [("≥ 2", 1.0), ("0.5", 0.25)]
WEIGHTS = (0.03, 0.1, 0.3, 1.0)  # as networks are trained: half powers of ten, about


def a_pair() -> Pair:
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (smooth(torch.rand(1, 1, *SHAPE, generator=generator), 2.0) for _ in range(2))
    labels = torch.zeros(1, 1, *SHAPE, dtype=torch.long)
    labels[..., 8:30, 10:40] = 2
    return Pair(moving, fixed, labels, labels.roll(3, dims=3), None, (1.0, 1.0))


def answers() -> dict[float, Tensor]:
    """Fields that fold for the smallest weights only."""
    generator = torch.Generator().manual_seed(1)
    noise = smooth(torch.randn(1, 2, *SHAPE, generator=generator), 3.0)
    return {w: noise * 0.7 / w for w in WEIGHTS}


def the_scores() -> dict[float, dict[str, float]]:
    return {
        w: {"dice": 0.7 + 0.01 * k, "folding": 0.04 / (1 + k), "error_mm": 1.0 + (k - 2) ** 2}
        for k, w in enumerate(WEIGHTS)
    }


def explore(**changes: Any) -> Playground:
    given = {"pair": a_pair(), "fields": answers(), "scores": the_scores()} | changes
    return weight_explorer(given["pair"], given["fields"], given["scores"])


def place(k: int) -> float:
    """Where the slider stands for the k-th weight."""
    low, high = math.log10(WEIGHTS[0]), math.log10(WEIGHTS[-1])
    return low + (high - low) * k / (len(WEIGHTS) - 1)


def the_page() -> drawing.Page:
    return drawing.Page(SHAPE, TITLES, BAR, lines=2, room=module._ROOM)


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return explore()


class TestPicture:
    def test_png_of_the_page(self, explorer: Playground) -> None:
        assert Image.open(BytesIO(explorer.render(place(0)))).size == the_page().size

    def test_each_weight_is_another_picture(self, explorer: Playground) -> None:
        pictures = [rgb(explorer.render(place(k))) for k in range(4)]
        for panel in range(4):
            shown = {
                panel_of(the_page(), explorer.render(place(k)), panel).tobytes() for k in range(4)
            }
            assert len(shown) == 4, TITLES[panel]
        assert len({picture.tobytes() for picture in pictures}) == 4

    def test_shows_the_nearest_weight(self, explorer: Playground) -> None:
        assert explorer.render(place(1) + 0.2) == explorer.render(place(1) - 0.2)
        assert explorer.render(place(1) + 0.3) == explorer.render(place(2))

    def test_the_order_of_the_weights_does_not_matter(self, explorer: Playground) -> None:
        backwards = {w: answers()[w] for w in reversed(WEIGHTS)}
        assert explore(fields=backwards).render(place(0)) == explorer.render(place(0))

    def test_loud_exactly_where_something_folds(self, explorer: Playground) -> None:
        seen = set()
        for k, weight in enumerate(WEIGHTS):
            folds = bool((jacobian_determinant(answers()[weight]) <= 0).any())
            assert loud(rgb(explorer.render(place(k)))) == folds == heard(explorer, place(k))[1]
            seen.add(folds)
        assert seen == {False, True}

    def test_shows_the_warped_image(self, explorer: Playground) -> None:
        page, pair = the_page(), a_pair()
        low, high = shared.intensity_range(pair.moving)
        expected = drawing.gray(warp(pair.moving, answers()[1.0])[0, 0], low, high, page.panel)
        shown = panel_of(page, explorer.render(place(3)), 0)
        again = np.asarray(expected).astype(float) / (drawing.GRAYS - 1) * 255
        assert np.abs(shown[..., 0] - again).max() < 2

    def test_the_dots_go_to_the_right(self, explorer: Playground) -> None:
        """The dot of each curve is thicker than its line: columns with most black."""
        columns = []
        for k in range(4):
            dark = panel_of(the_page(), explorer.render(place(k)), 1)[..., 0] < 60
            other = panel_of(the_page(), explorer.render(place((k + 1) % 4)), 1)[..., 0] < 60
            only = (dark & ~other)[22:].sum(0)
            columns.append(int(only.argmax()))
        assert columns == sorted(columns) and len(set(columns)) == 4


class TestNumbers:
    @pytest.mark.parametrize("k", [0, 3])
    def test_are_those_of_the_metrics(self, explorer: Playground, k: int) -> None:
        pair, u = a_pair(), answers()[WEIGHTS[k]]
        assert pair.moving_labels is not None and pair.fixed_labels is not None
        (first, second), _ = heard(explorer, place(k))
        overlap = float(dice(warp(pair.moving_labels, u, mode="nearest"), pair.fixed_labels).mean())
        folded = float(folding_fraction(u, pair.fixed_labels > 0))
        least = f"{float(jacobian_determinant(u).min()):.2f}".replace("-", "−")
        assert second.startswith(f"this pair:  Dice {overlap:.3f}")
        assert second.endswith(f"min det J {least}")
        assert f"folded {shared.percent(folded)} of labeled voxels" in second
        row = the_scores()[WEIGHTS[k]]
        assert first.startswith(f"trained with λ = {WEIGHTS[k]:g}.")
        assert f"Dice {row['dice']:.3f}" in first
        assert f"folded (%) {100 * row['folding']:.3f}" in first
        assert first.endswith(f"error (mm) {row['error_mm']:.3f}")

    def test_lines_fit(self) -> None:
        room = the_page().size[0] - drawing._LEFT
        longest = (
            "trained with λ = 0.032.  Unseen pairs, mean:  Dice 0.784,  folded (%) 10.872,  "
            "error (mm) 10.123"
        )
        assert drawing._font().getlength(longest) < room
        alarm = "this pair:  Dice 0.784,  folded 10.87 % of labeled voxels,  min det J −30.72"
        assert 34 + drawing._font(bold=True).getlength(alarm) < room

    def test_scores_that_do_not_differ_are_a_line_in_the_middle(self) -> None:
        flat = {w: {"dice": 0.8, "folding": 0.0, "error_mm": 1.0} for w in WEIGHTS}
        assert explore(scores=flat).render(place(0)).startswith(b"\x89PNG")


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return explore()

    def test_the_slider_stops_at_each_weight(self, explorer: Playground) -> None:
        (slider,) = explorer.sliders.values()
        assert round((slider.max - slider.min) / slider.step) == len(WEIGHTS) - 1

    def test_still_and_caption(self, explorer: Playground) -> None:
        assert [loud(part) for part in still_parts(explorer)][::2] == [True, False]
        assert "trained with λ = 0.03 the network reaches a Dice of 0." in explorer.caption

    def test_does_not_share_the_fields(self) -> None:
        fields = answers()
        playground = explore(fields=fields)
        before = playground.render(place(3))
        fields[1.0].zero_()
        assert playground.render(place(3)) == before

    def test_takes_what_a_file_holds(self) -> None:
        fields = {w: u.half() for w, u in answers().items()}
        assert explore(fields=fields).render(place(0)).startswith(b"\x89PNG")


PAIR, FIELDS, ROWS = a_pair(), answers(), the_scores()
BROKEN = FIELDS[1.0].clone()
BROKEN[0, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"pair": PAIR.fixed}, TypeError, "pair"),
        ({"pair": PAIR._replace(moving_labels=None)}, TypeError, "moving_labels"),
        ({"pair": PAIR._replace(fixed_labels=PAIR.fixed_labels * 0)}, ValueError, "fixed_labels"),
        ({"pair": PAIR._replace(moving=PAIR.moving[..., :-1])}, ValueError, "moving"),
        ({"fields": list(FIELDS)}, TypeError, "fields"),
        ({"fields": {w: FIELDS[w] for w in WEIGHTS[:2]}}, ValueError, "three weights"),
        ({"fields": FIELDS | {-1.0: FIELDS[1.0]}}, ValueError, "fields"),
        ({"fields": {0.1: BROKEN, 0.11: BROKEN, 10.0: BROKEN}}, ValueError, "evenly spaced"),
        ({"fields": FIELDS | {1.0: BROKEN}}, ValueError, "fields"),
        ({"fields": FIELDS | {1.0: FIELDS[1.0][..., :-1]}}, ValueError, "fields"),
        ({"scores": None}, TypeError, "scores"),
        ({"scores": {w: ROWS[w] for w in WEIGHTS[1:]}}, ValueError, "scores"),
        ({"scores": ROWS | {1.0: {"dice": 0.5}}}, ValueError, "scores"),
        ({"scores": ROWS | {1.0: ROWS[1.0] | {"dice": math.nan}}}, ValueError, "scores"),
    ],
)  # fmt: skip
def test_refuses(change: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        explore(**change)


@pytest.mark.parametrize("setting", [-2.0, 0.6, math.nan])
def test_refuses_bad_parameters(explorer: Playground, setting: float) -> None:
    with pytest.raises(ValueError):
        explorer.render(setting)

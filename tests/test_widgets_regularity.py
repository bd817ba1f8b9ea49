"""The regularity explorer: pictures and numbers are those of the registration that is asked for."""

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
from course_lib.metrics import correlation, dice, folding_fraction
from course_lib.spatial import jacobian_determinant, smooth, warp
from course_lib.widgets import Playground, regularity_explorer
from course_lib.widgets import playground as shared
from course_lib.widgets import regularity as module
from tests.widget_suite import PlaygroundSuite, heard, loud, panel_of, rgb, still_parts

SHAPE = (48, 60)
TITLES = ("warped image", "grid at x + u(x)", "Jacobian det J")
WEIGHTS = (0.1, 1.0, 10.0, 100.0)


def a_pair() -> Pair:
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (smooth(torch.rand(1, 1, *SHAPE, generator=generator), 2.0) for _ in range(2))
    labels = torch.zeros(1, 1, *SHAPE, dtype=torch.long)
    labels[..., :30, 10:] = 2  # up to the border, where outside is 0
    return Pair(moving, fixed, labels, labels.roll(3, dims=3), None, (2.0, 2.0))


def bumps(size: float, seed: int) -> dict[float, Tensor]:
    """Fields that fold for the smallest weight only."""
    generator = torch.Generator().manual_seed(seed)
    noise = smooth(torch.randn(1, 2, *SHAPE, generator=generator), 3.0)
    return {w: noise * size / w for w in WEIGHTS}


def explore(**changes: Any) -> Playground:
    given = {"pair": a_pair(), "diffusion": bumps(2.0, 1), "bending": bumps(3.0, 2)} | changes
    return regularity_explorer(given["pair"], given["diffusion"], given["bending"])


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return explore()


class TestPicture:
    def test_png_of_the_page(self, explorer: Playground) -> None:
        page = drawing.Page(SHAPE, TITLES, [("≥ 2", 1.0), ("0.5", 0.25)], lines=2)
        assert Image.open(BytesIO(explorer.render(0, 0))).size == page.size

    def test_each_setting_is_another_picture(self, explorer: Playground) -> None:
        settings = [(exponent, kind) for exponent in (-1, 0, 1, 2) for kind in (0, 1)]
        assert len({explorer.render(*setting) for setting in settings}) == 8

    def test_shows_the_nearest_weight(self, explorer: Playground) -> None:
        for exponent in (-0.4, 0.0, 0.4):
            assert explorer.render(exponent, 0.2) == explorer.render(0.0, 0.0)
        assert explorer.render(0.6, 0.9) == explorer.render(1.0, 1.0)

    def test_the_order_of_the_weights_does_not_matter(self, explorer: Playground) -> None:
        backwards = {w: bumps(2.0, 1)[w] for w in reversed(WEIGHTS)}
        assert explore(diffusion=backwards).render(-1, 0) == explorer.render(-1, 0)

    def test_loud_exactly_where_something_folds(self, explorer: Playground) -> None:
        seen = set()
        for exponent, weight in zip((-1, 0, 1, 2), WEIGHTS, strict=True):
            for kind, fields in enumerate((bumps(2.0, 1), bumps(3.0, 2))):
                folds = bool((jacobian_determinant(fields[weight]) <= 0).any())
                assert loud(rgb(explorer.render(exponent, kind))) == folds
                seen.add(folds)
        assert seen == {False, True}

    def test_the_line_is_loud_when_a_single_voxel_folds(self) -> None:
        field = torch.zeros(1, 2, *SHAPE)
        field[0, 1, 40, 30] = 3.0  # one neighbor is overtaken, outside the labels
        flat = {w: torch.zeros(1, 2, *SHAPE) for w in WEIGHTS}
        folding = explore(diffusion=flat | {1.0: field}, bending=flat)
        assert [heard(folding, 0, kind)[1] for kind in (0, 1)] == [True, False]

    def test_shows_the_warped_image(self, explorer: Playground) -> None:
        page = drawing.Page(SHAPE, TITLES, [("≥ 2", 1.0), ("0.5", 0.25)], lines=2)
        pair = a_pair()
        low, high = shared.intensity_range(pair.moving)
        warped = warp(pair.moving, bumps(3.0, 2)[10.0])[0, 0]
        expected = drawing.gray(warped, low, high, page.panel)
        shown = panel_of(page, explorer.render(1.0, 1.0), 0)
        again = np.asarray(expected).astype(float) / (drawing.GRAYS - 1) * 255
        assert np.abs(shown[..., 0] - again).max() < 2


class TestNumbers:
    @pytest.mark.parametrize(("exponent", "weight"), [(-1, 0.1), (1, 10.0)])
    @pytest.mark.parametrize("kind", [0, 1])
    def test_are_those_of_the_metrics(
        self, explorer: Playground, exponent: float, weight: float, kind: int
    ) -> None:
        pair, u = a_pair(), (bumps(2.0, 1), bumps(3.0, 2))[kind][weight]
        assert pair.moving_labels is not None and pair.fixed_labels is not None
        (first, second), _ = heard(explorer, exponent, kind)
        overlap = dice(warp(pair.moving_labels, u, mode="nearest"), pair.fixed_labels).mean()
        likeness = float(correlation(warp(pair.moving, u), pair.fixed))
        assert first.startswith(f"{('diffusion', 'bending energy')[kind]}, weight {weight:g}:")
        assert f"Dice {float(overlap):.3f}" in first
        assert f"correlation {likeness:.3f}".replace("-", "−") in first
        folded = float(folding_fraction(u, pair.fixed_labels > 0))
        least = float(jacobian_determinant(u).min())
        assert second.startswith(f"folded: {shared.percent(folded)} of labeled voxels")
        assert second.endswith(f"min det J: {least:.2f}".replace("-", "−"))

    def test_weights_are_short(self) -> None:
        assert [module._short(w) for w in (0.01, 10**-1.5, 1.0, 10**1.5, 100.0)] == [
            "0.01", "0.032", "1", "32", "100",
        ]  # fmt: skip

    def test_lines_fit(self) -> None:
        longest = "bending energy, weight 0.032:  Dice 0.784,  correlation −0.999"
        assert drawing._LEFT + drawing._font().getlength(longest) < drawing._LEAST
        alarm = "folded: 10.87 % of labeled voxels,  min det J: −30.72"
        assert drawing._LEFT + 34 + drawing._font(bold=True).getlength(alarm) < drawing._LEAST


class TestPlayground(PlaygroundSuite):
    fewest_steps = 1  # from one penalty to the other

    def make(self) -> Playground:
        return explore()

    def test_sliders_are_the_weights_and_the_penalties(self, explorer: Playground) -> None:
        weight, penalty = explorer.sliders.values()
        assert (weight.min, weight.max, weight.step) == (-1, 2, 1)
        assert (penalty.min, penalty.max, penalty.step) == (0, 1, 1)

    def test_every_half_power_of_ten_is_reached(self) -> None:
        exponents = [n / 2 for n in range(-4, 5)]
        fields = {10**e: bumps(1.0, 3)[1.0] * (1 + e / 9) for e in exponents}
        playground = explore(diffusion=fields, bending=fields)
        weight = playground.sliders["log_weight"]
        assert (weight.min, weight.max, weight.step) == (-2, 2, 0.5)
        assert len({playground.render(e, 0) for e in exponents}) == 9

    def test_still_and_caption(self, explorer: Playground) -> None:
        assert [loud(part) for part in still_parts(explorer)] == [True, False, False]
        pair, u = a_pair(), bumps(2.0, 1)[0.1]
        assert pair.fixed_labels is not None
        folded = float(folding_fraction(u, pair.fixed_labels > 0))
        assert "a weight of 0.1 of the diffusion gives a Dice of 0." in explorer.caption
        assert f"folds in {shared.percent(folded)}" in explorer.caption

    def test_does_not_share_the_fields(self) -> None:
        fields = bumps(2.0, 1)
        playground = explore(diffusion=fields)
        before = playground.render(0, 0)
        fields[1.0].zero_()
        assert playground.render(0, 0) == before

    def test_takes_what_a_training_leaves(self) -> None:
        fields = {w: u.double().requires_grad_() for w, u in bumps(2.0, 1).items()}
        assert explore(diffusion=fields).render(0, 0).startswith(b"\x89PNG")


PAIR = a_pair()
FIELDS = bumps(2.0, 1)
BROKEN = FIELDS[1.0].clone()
BROKEN[0, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"pair": PAIR.fixed}, TypeError, "pair"),
        ({"pair": PAIR._replace(moving_labels=None)}, TypeError, "moving_labels"),
        ({"pair": PAIR._replace(fixed_labels=None)}, TypeError, "fixed_labels"),
        ({"pair": PAIR._replace(fixed_labels=PAIR.fixed_labels * 0)}, ValueError, "fixed_labels"),
        ({"pair": PAIR._replace(moving=PAIR.moving[..., :-1])}, ValueError, "moving"),
        ({"pair": PAIR._replace(fixed=PAIR.fixed * math.nan)}, ValueError, "fixed"),
        ({"diffusion": list(FIELDS)}, TypeError, "diffusion"),
        ({"bending": None}, TypeError, "bending"),
        ({"bending": {w: FIELDS[w] for w in WEIGHTS[1:]}}, ValueError, "bending"),
        ({"diffusion": FIELDS | {0.0: FIELDS[1.0]}}, ValueError, "diffusion"),
        ({"diffusion": FIELDS | {1.0: BROKEN}}, ValueError, "diffusion"),
        ({"diffusion": FIELDS | {1.0: FIELDS[1.0][..., :-1]}}, ValueError, "diffusion"),
        ({"diffusion": FIELDS | {1.0: FIELDS[1.0][:, :1]}}, ValueError, "diffusion"),
    ],
)  # fmt: skip
def test_refuses(change: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        explore(**change)


@pytest.mark.parametrize("weights", [(1.0, 10.0), (1.0, 10.0, 50.0)])
def test_refuses_weights_that_are_not_evenly_spaced(weights: tuple[float, ...]) -> None:
    fields = {w: FIELDS[1.0] for w in weights}
    with pytest.raises(ValueError, match="multiple"):
        explore(diffusion=fields, bending=fields)


@pytest.mark.parametrize("setting", [(-1.6, 0), (2.6, 0), (math.nan, 0), (0, -0.1), (0, 1.1)])
def test_refuses_bad_parameters(explorer: Playground, setting: tuple[float, float]) -> None:
    with pytest.raises(ValueError):
        explorer.render(*setting)

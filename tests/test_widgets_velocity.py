"""The velocity explorer: rivers are what they claim, and the picture says what they do."""

import math
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from course_lib import drawing
from course_lib.spatial import compose, integrate, jacobian_determinant, smooth, warp
from course_lib.widgets import Playground, random_velocity, velocity_explorer
from tests.widget_suite import SHAPE, PlaygroundSuite, blobs, heard, loud, panel_of, rgb

TITLES = ("warped by exp(t v)", "grid at x + u(x)", "Jacobian det J")
CALM, TORN = (4.0, 6.0, 7.0, 1.0), (12.0, 2.0, 1.0, 1.0)


def page() -> drawing.Page:
    bar = [("≥ 2", 1.0), ("1.5", 0.75), ("1", 0.5), ("0.5", 0.25), ("0", 0.0)]
    return drawing.Page(SHAPE, TITLES, bar, lines=3)


def panel(picture: bytes, k: int) -> np.ndarray:
    return panel_of(page(), picture, k)


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return velocity_explorer(blobs())


class TestRandomVelocity:
    @pytest.mark.parametrize(("amplitude", "smoothness"), [(5.0, 3.0), (0.5, 0.0), (30.0, 12.0)])
    def test_longest_arrow_and_rest_at_the_border(
        self, amplitude: float, smoothness: float
    ) -> None:
        v = random_velocity(SHAPE, amplitude, smoothness)
        assert v.shape == (1, 2, *SHAPE) and v.dtype == torch.float32
        assert float(v.norm(dim=1).max()) == pytest.approx(amplitude, rel=1e-5)
        for edge in (v[..., 0, :], v[..., -1, :], v[..., 0], v[..., -1]):
            assert edge.abs().max() < 1e-5 * amplitude

    def test_amplitude_scales_and_nothing_else(self) -> None:
        one, three = (random_velocity(SHAPE, a, 4, seed=2) for a in (1, 3))
        torch.testing.assert_close(3 * one, three)
        assert not random_velocity(SHAPE, 0, 4).any()

    def test_the_blur_is_the_one_of_the_library_inside(self) -> None:
        noise = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(7))
        rows, columns = (torch.linspace(0, math.pi, n).sin() for n in SHAPE)
        expected = smooth(noise, 2.0) * torch.outer(rows, columns)
        ours = random_velocity(SHAPE, 1.0, 2.0, seed=7)
        scale = float((ours * expected).sum() / expected.square().sum())
        inside = (..., slice(8, -8), slice(8, -8))
        assert (ours - scale * expected)[inside].abs().max() < 0.01

    def test_a_larger_smoothness_is_smoother(self) -> None:
        slopes = [float(random_velocity(SHAPE, 1, s).diff(dim=3).abs().max()) for s in (1, 3, 9)]
        assert slopes[0] > 1.5 * slopes[1] > 2 * slopes[2]

    def test_same_seed_same_river_and_no_sharing(self) -> None:
        one = random_velocity(SHAPE, 1, 3, seed=5)
        one.zero_()
        again = random_velocity(SHAPE, 1, 3, seed=5)
        assert again.abs().max() > 0.5
        assert torch.equal(again, random_velocity(SHAPE, 1, 3, seed=5))
        assert (again - random_velocity(SHAPE, 1, 3, seed=6)).abs().max() > 0.2

    def test_leaves_the_random_state_alone(self) -> None:
        before = torch.get_rng_state()
        random_velocity(SHAPE, 1, 2.25, seed=11)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_grid_that_is_all_border(self) -> None:
        assert random_velocity((2, 2), 5, 1).isfinite().all()

    @pytest.mark.parametrize(
        ("arguments", "error", "name"),
        [
            (((9, 9, 9), 1, 1), ValueError, "shape"),
            (((9.5, 9), 1, 1), TypeError, "shape"),
            (("ab", 1, 1), TypeError, "shape"),
            (((9, 9), -1, 1), ValueError, "amplitude"),
            (((9, 9), math.nan, 1), ValueError, "amplitude"),
            (((9, 9), "1", 1), TypeError, "amplitude"),
            (((9, 9), 1, -0.5), ValueError, "smoothness"),
            (((9, 9), 1, math.inf), ValueError, "smoothness"),
            (((9, 9), 1, None), TypeError, "smoothness"),
            (((9, 9), 1, 1, -1), ValueError, "seed"),
            (((9, 9), 1, 1, 1.5), (TypeError, ValueError), "seed"),
        ],
    )
    def test_refuses(self, arguments: Any, error: Any, name: str) -> None:
        with pytest.raises(error, match=f"^{name}:"):
            random_velocity(*arguments)


class TestExplorer:
    def test_png_of_the_expected_size(self, explorer: Playground) -> None:
        picture = Image.open(BytesIO(explorer.render(*CALM)))
        assert picture.format == "PNG" and picture.size == page().size

    @pytest.mark.parametrize(
        "other", [(6.0, 6.0, 7.0, 1.0), (4.0, 3.0, 7.0, 1.0), (4.0, 6.0, 0.0, 1.0), (4, 6, 7, -1)]
    )
    def test_every_parameter_changes_every_panel(
        self, explorer: Playground, other: tuple[float, ...]
    ) -> None:
        one, two = explorer.render(*CALM), explorer.render(*other)
        for k in range(3):
            assert (panel(one, k) != panel(two, k)).any()

    @pytest.mark.parametrize("setting", [CALM, TORN, (12.0, 2.0, 1.0, -1.0), (8.0, 3.0, 0.0, 0.5)])
    def test_loud_exactly_where_it_folds(
        self, explorer: Playground, setting: tuple[float, ...]
    ) -> None:
        amplitude, smoothness, steps, time = setting
        u = integrate(time * random_velocity(SHAPE, amplitude, smoothness), int(steps))
        folded = bool((jacobian_determinant(u) <= 0).any())
        picture = explorer.render(*setting)
        for k, expected in enumerate([False, folded, folded]):
            assert loud(panel(picture, k)) == expected, TITLES[k]
        below = rgb(picture)[page().corners[0][1] + page().panel[0] + 1 :]
        assert loud(below) == folded, "beside the words"

    def test_the_settings_above_do_both(self) -> None:
        folds = [
            int((jacobian_determinant(integrate(random_velocity(SHAPE, a, s), int(n))) <= 0).sum())
            for a, s, n, _ in (CALM, TORN)
        ]
        assert folds[0] == 0 and folds[1] > 20

    @pytest.mark.parametrize("setting", [CALM, TORN])
    def test_shows_the_warped_image(self, explorer: Playground, setting: tuple[float, ...]) -> None:
        amplitude, smoothness, steps, time = setting
        u = integrate(time * random_velocity(SHAPE, amplitude, smoothness), int(steps))
        expected = np.asarray(drawing.gray(warp(blobs(), u)[0, 0], 0, 1, page().panel))
        shown = panel(explorer.render(*setting), 0).astype(float)
        scaled = expected * (255 / (drawing.GRAYS - 1))
        assert np.abs(shown - scaled[..., None]).max() <= 0.5

    @pytest.mark.parametrize("setting", [CALM, (12.0, 2.0, 1.0, -0.8)])
    def test_words(self, explorer: Playground, setting: tuple[float, ...]) -> None:
        amplitude, smoothness, steps, time = setting
        (first, second, third), alarm = heard(explorer, *setting)
        v = time * random_velocity(SHAPE, amplitude, smoothness)
        there, back = integrate(v, int(steps)), integrate(-v, int(steps))
        missed, det = compose(there, back).norm(dim=1), jacobian_determinant(there)
        assert f"squarings: {steps:.0f}, t = {time:.2f}".replace("-", "−") in first
        assert f"amplitude {amplitude:.1f} voxels, smoothness {smoothness:.1f}" in first
        mean, most = re.findall(r"[\d.]+(?= voxels on| at worst)", second)
        assert float(mean) == pytest.approx(float(missed.mean()), abs=6e-4)
        assert float(most) == pytest.approx(float(missed.max()), abs=6e-3)
        folded = int((det <= 0).sum())
        assert third.startswith(f"folded: {folded} voxels (")
        assert third.endswith(f"min det J: {float(det.min()):.2f}".replace("-", "−"))
        assert alarm == (folded > 0)

    def test_no_time_and_no_amplitude_change_nothing(self, explorer: Playground) -> None:
        still = panel(explorer.render(12, 2, 3, 0), 0)
        np.testing.assert_array_equal(still, panel(explorer.render(0, 2, 3, 1), 0))
        levels = np.asarray(drawing.gray(blobs()[0, 0], 0, 1, page().panel)) * (255 / 127)
        assert np.abs(still - levels[..., None]).max() <= 0.5

    @pytest.mark.parametrize(
        ("setting", "name"),
        [
            ((-1, 2, 3, 1), "amplitude"),
            ((1, -2, 3, 1), "smoothness"),
            ((1, 2, 2.5, 1), "steps"),
            ((1, 2, 9, 1), "steps"),
            ((1, 2, -1, 1), "steps"),
            ((1, 2, 3, 1.2), "time"),
            ((1, 2, 3, math.nan), "time"),
        ],
    )
    def test_refuses_settings(
        self, explorer: Playground, setting: tuple[float, ...], name: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{name}:"):
            explorer.render(*setting)

    @pytest.mark.parametrize(
        ("image", "error"),
        [
            (np.zeros(SHAPE), TypeError),
            (torch.zeros(*SHAPE), ValueError),
            (torch.zeros(1, 1, 8, 8, 8), ValueError),
            (torch.zeros(2, 1, *SHAPE), ValueError),
            (torch.zeros(1, 1, *SHAPE, dtype=torch.uint8), TypeError),
            (torch.full((1, 1, *SHAPE), math.nan), ValueError),
        ],
    )
    def test_refuses_images(self, image: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^image:"):
            velocity_explorer(image)


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return velocity_explorer(blobs())

"""The similarity explorer: spoiling, the four losses, and pictures that follow."""

import math
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
from course_lib.losses import lncc, mse, ncc
from course_lib.spatial import pyramid, smooth
from course_lib.widgets import (
    Playground,
    corrupt,
    lowest_shifts,
    shift_losses,
    similarity_explorer,
)
from course_lib.widgets.similarity import REACH, Landscapes
from tests.widget_suite import PlaygroundSuite, heard, panel_of

SHAPE = (48, 60)


def texture(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    image = smooth(noise, 2.0)
    return ((image - image.min()) / (image.max() - image.min())).to(dtype)


def page() -> Landscapes:
    return Landscapes(SHAPE, ("fixed", "moving", "loss at each shift"), (), lines=3)


def panel(picture: bytes, k: int) -> np.ndarray:
    return panel_of(page(), picture, k)


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return similarity_explorer(texture())


class TestCorrupt:
    def test_formula(self) -> None:
        image = texture(dtype=torch.float64)
        found = corrupt(image, bias=1.5, contrast=-0.4)
        for i, j in [(0, 0), (17, 30), (47, 59)]:
            gain = math.exp(1.5 * (2 * j / 59 - 1))
            expected = (0.5 - 0.4 * (float(image[0, 0, i, j]) - 0.5)) * gain
            assert float(found[0, 0, i, j]) == pytest.approx(expected)

    def test_nothing_is_nothing_and_minus_one_the_negative(self) -> None:
        image = texture()
        torch.testing.assert_close(corrupt(image), image)
        torch.testing.assert_close(corrupt(image, contrast=-1), 1 - image)

    def test_noise_has_its_deviation_and_its_seed(self) -> None:
        image = torch.zeros(2, 1, 60, 70)
        noise = corrupt(image, noise=0.3)
        assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
        assert abs(float(noise.mean())) < 0.02
        assert torch.equal(noise, corrupt(image, noise=0.3))
        assert not torch.equal(noise, corrupt(image, noise=0.3, seed=1))

    def test_volumes_batches_and_dtypes_are_kept(self) -> None:
        volume = torch.rand(2, 3, 4, 5, 6, dtype=torch.float64)
        found = corrupt(volume, bias=1, noise=0.1)
        assert found.shape == volume.shape and found.dtype == torch.float64

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"image": torch.rand(5, 5)}, ValueError),
            ({"image": torch.ones(1, 1, 5, 5).long()}, TypeError),
            ({"bias": math.nan}, ValueError),
            ({"noise": -0.1}, ValueError),
            ({"contrast": "low"}, TypeError),
            ({"seed": 1.5}, ValueError),
            ({"seed": -1}, ValueError),
        ],
    )
    def test_refuses(self, change: dict[str, Any], error: type[Exception]) -> None:
        arguments = {"image": texture()} | change
        with pytest.raises(error, match=f"^{next(iter(change))}:"):
            corrupt(arguments.pop("image"), **arguments)


class TestShiftLosses:
    def test_each_is_the_landscape_of_the_librarys_loss(self) -> None:
        moving, fixed = corrupt(texture(1), noise=0.1), texture(1)
        poses = translations(range(-5, 6), axis=1)
        found = shift_losses(moving, fixed, reach=5)
        expected = {
            "MSE": mse,
            "NCC": ncc,
            "local": lambda a, b: lncc(a, b, squared=False),
            "local squared": lncc,
        }
        assert list(found) == list(expected)
        for name, loss in expected.items():
            heights = landscape(loss, moving, fixed, poses)
            torch.testing.assert_close(found[name], heights, atol=2e-4, rtol=1e-3)

    def test_the_lowest_place_is_counted_from_the_middle(self) -> None:
        fixed = texture(2)
        moving = fixed.roll(3, dims=3)
        assert set(lowest_shifts(shift_losses(moving, fixed)).values()) == {3}
        assert lowest_shifts({"x": torch.tensor([0.0, 1, 2, 3, 4])}) == {"x": -2}

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"moving": texture()[..., :-1]}, "moving"),
            ({"fixed": torch.rand(48, 60)}, "fixed"),
            (
                {"moving": texture().repeat(1, 2, 1, 1), "fixed": texture().repeat(1, 2, 1, 1)},
                "fixed",
            ),
            ({"moving": texture()[..., :8], "fixed": texture()[..., :8]}, "fixed"),
            ({"reach": 0}, "reach"),
        ],
    )
    def test_refuses(self, change: dict[str, Any], name: str) -> None:
        arguments = {"moving": texture(), "fixed": texture(), "reach": 3} | change
        with pytest.raises(ValueError, match=f"^{name}:"):
            shift_losses(**arguments)


class TestExplorer:
    def test_png_of_the_expected_size(self, explorer: Playground) -> None:
        picture = Image.open(BytesIO(explorer.render(3, 1, 0.1, 1)))
        assert picture.format == "PNG" and picture.size == page().size

    def test_a_wrong_minimum_is_magenta_and_a_right_one_is_not(self, explorer: Playground) -> None:
        def magenta(picture: bytes) -> np.ndarray:
            return (panel(picture, 2) == drawing.FOLD_RGB).all(axis=2)

        assert not magenta(explorer.render(3, 0, 0, 1)).any()
        wrong = magenta(explorer.render(3, 0, 0, -1))
        room = wrong.shape[0] / 4
        rows = [bool(wrong[int(k * room + 4) : int((k + 1) * room)].any()) for k in range(4)]
        assert rows == [True, True, True, False]  # the square alone survives the negative

    def test_the_dot_stands_at_the_shift(self, explorer: Playground) -> None:
        for shift in (-6, 0, 5):
            chart = panel(explorer.render(shift, 0, 0, 1), 2)
            height, width = chart.shape[:2]
            lowest = chart[height * 3 // 4 - 12 : height * 3 // 4 - 4, :, 0] < 60  # of row 3
            columns = np.nonzero(lowest.sum(0) > 5)[0]
            expected = width / 2 + shift / REACH * (width / 2 - 8)
            assert columns.mean() == pytest.approx(expected, abs=2)

    def test_the_moving_panel_shows_the_shift_and_the_contrast(self, explorer: Playground) -> None:
        still, moved, negative = (
            panel(explorer.render(*setting), 1)[..., 0].astype(int)
            for setting in ((0, 0, 0, 1), (6, 0, 0, 1), (0, 0, 0, -1))
        )
        scale = page().panel[1] / SHAPE[1]
        by = round(6 * scale)
        inside = moved[20:-20, by + 20 : -20], still[20:-20, 20 : -20 - by]
        assert np.abs(inside[0] - inside[1]).mean() < 4
        assert np.abs(still + negative - 255).max() <= 6

    def test_what_the_shift_uncovers_is_the_border_value(self, explorer: Playground) -> None:
        still, moved = (panel(explorer.render(by, 0, 0, 1), 1)[..., 0].astype(int) for by in (0, 8))
        width = round(8 * page().panel[1] / SHAPE[1])
        stripe = moved[20:-20, 6 : width - 6]
        assert np.abs(stripe - stripe[:, :1]).max() <= 1  # each row goes on; nothing wraps around
        assert np.abs(still[20:-20, 6 : width - 6] - still[20:-20, 6:7]).max() > 10

    def test_the_words_say_what_is_wrong(self, explorer: Playground) -> None:
        right, no_alarm = heard(explorer, 2, 0, 0, 1)
        wrong, alarm = heard(explorer, 2, 0, 0, -1)
        assert right[0] == "shift +2 voxels, bias 0.0, noise 0.0, contrast +1.0"
        assert right[2:] == ["all four find the right place"] and not no_alarm
        assert wrong[2:] == ["wrong: MSE, NCC, local"] and alarm
        assert "local squared +2" in wrong[1] and "contrast −1.0" in wrong[0]

    def test_constant_images(self) -> None:
        assert similarity_explorer(torch.ones(1, 1, *SHAPE)).render(1, 1, 0, 1)

    @pytest.mark.parametrize(
        ("image", "word"),
        [
            (torch.rand(1, 1, 8, 60), "fixed"),
            (torch.rand(2, 1, *SHAPE), "image"),
            (torch.rand(1, 1, 9, 9, 9), "image"),
            (torch.full((1, 1, *SHAPE), math.nan), "image"),
        ],
    )
    def test_refuses_images(self, image: Tensor, word: str) -> None:
        with pytest.raises(ValueError, match=f"^{word}:"):
            similarity_explorer(image)

    @pytest.mark.parametrize(
        ("setting", "name"),
        [
            ((13, 0, 0, 1), "shift"),
            ((math.nan, 0, 0, 1), "shift"),
            ((0, math.inf, 0, 1), "bias"),
            ((0, 0, -1, 1), "noise"),
            ((0, 0, 0, math.nan), "contrast"),
        ],
    )
    def test_refuses_settings(self, explorer: Playground, setting: Any, name: str) -> None:
        with pytest.raises(ValueError, match=f"^{name}:"):
            explorer.render(*setting)


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return similarity_explorer(texture())

    def test_keeps_what_it_was_given(self) -> None:
        image = texture()
        own = similarity_explorer(image)
        first = own.render(2, 1, 0.3, 0.5)
        image.zero_()
        own.render(0, 0, 0, 1)
        assert own.render(2, 1, 0.3, 0.5) == first

    def test_the_caption_names_the_settings(self, explorer: Playground) -> None:
        assert "with a negative: MSE at" in explorer.caption

    def test_the_caption_of_the_lessons_brain(self) -> None:
        caption = similarity_explorer(pyramid(brains.real_pair().fixed, 2)).caption
        assert "with a bias of 3: MSE at +6, NCC at +6, local at +4, local squared at +4" in caption

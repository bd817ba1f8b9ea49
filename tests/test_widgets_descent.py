"""The descent explorer: discs have the shape and the gradient that they claim, pictures follow."""

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
from course_lib.widgets import Playground, descent_explorer, fit_disc, soft_disc
from tests.widget_suite import PlaygroundSuite, heard, loud, panel_of, still_parts

SHAPE = (48, 60)
TITLES = ("path of the disc", "loss", "disc − shape")
START = (14.0, 18.0, 6.0)


def box() -> Tensor:
    """1 in a box off the middle, 0 around it."""
    inside = torch.zeros(1, 1, *SHAPE)
    inside[..., 16:38, 22:50] = 1
    return inside


def textured() -> Tensor:
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))


def page() -> drawing.Page:
    return drawing.Page(SHAPE, TITLES, [("+1", 1.0), ("0", 0.5), ("−1", 0.0)], lines=2)


def panel(picture: bytes, k: int) -> np.ndarray:
    return panel_of(page(), picture, k)


@pytest.fixture(scope="module")
def explorer() -> Playground:
    return descent_explorer(textured(), box(), START)


class TestSoftDisc:
    def test_formula(self) -> None:
        circles = torch.tensor([[3.0, 4.5, 2.0], [1.0, 7.0, 3.5]])
        discs = soft_disc((6, 9), circles)
        assert discs.shape == (2, 1, 6, 9) and discs.dtype == torch.float32
        for b, i, j in [(0, 3, 2), (0, 0, 8), (1, 5, 0), (1, 1, 4)]:
            row, column, radius = circles[b].tolist()
            expected = 1 / (1 + math.exp((math.hypot(i - row, j - column) - radius) / 2))
            assert discs[b, 0, i, j].item() == pytest.approx(expected, abs=1e-5)

    def test_values_that_the_docstring_of_the_edge_states(self) -> None:
        row = soft_disc((5, 41), torch.tensor([[2.0, 20.0, 10.0]]))[0, 0, 2]
        assert row[[14, 10, 6]].tolist() == pytest.approx([0.88, 0.5, 0.12], abs=0.01)

    def test_gradient(self) -> None:
        circles = torch.tensor([[3.2, 4.6, 2.1], [6.4, 2.0, 1.5]], dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda c: soft_disc((8, 9), c), circles.requires_grad_())

    def test_gradient_is_finite_where_the_center_is_a_voxel(self) -> None:
        circles = torch.tensor([[3.0, 4.0, 2.0]], requires_grad=True)
        soft_disc((8, 9), circles).sum().backward()
        assert circles.grad is not None and circles.grad.isfinite().all()

    @pytest.mark.parametrize(
        ("shape", "circles", "error", "name"),
        [
            ((8, 9, 7), torch.ones(1, 3), ValueError, "shape"),
            ((8,), torch.ones(1, 3), ValueError, "shape"),
            ((8, 9), torch.ones(3), ValueError, "circles"),
            ((8, 9), torch.ones(2, 4), ValueError, "circles"),
            ((8, 9), torch.ones(1, 3, dtype=torch.long), TypeError, "circles"),
            ((8, 9), np.ones((1, 3)), TypeError, "circles"),
        ],
    )
    def test_refuses(self, shape: Any, circles: Any, error: type[Exception], name: str) -> None:
        with pytest.raises(error, match=f"^{name}:"):
            soft_disc(shape, circles)


class TestFitDisc:
    def test_finds_a_disc_again(self) -> None:
        truth = torch.tensor([[20.0, 30.0, 11.0]])
        target = soft_disc(SHAPE, truth)
        circles, losses = fit_disc(target, torch.tensor([START]), learning_rate=0.5, steps=120)
        assert (circles[-1] - truth[0]).abs().max() < 0.1
        assert losses[-1] < 1e-4 < losses[0]

    def test_circles_and_losses_belong_together(self) -> None:
        start = torch.tensor([START])
        circles, losses = fit_disc(box(), start, learning_rate=1.5, steps=7)
        assert circles.shape == (8, 3) and len(losses) == 8 and not circles.requires_grad
        assert torch.equal(circles[:1], start)
        for circle, loss in zip(circles, losses, strict=True):
            expected = (soft_disc(SHAPE, circle[None]) - box()).square().mean()
            assert loss == pytest.approx(float(expected), rel=1e-5)

    def test_first_step_is_as_long_as_the_learning_rate(self) -> None:
        circles, _ = fit_disc(box(), torch.tensor([START]), learning_rate=1.5, steps=1)
        assert (circles[1] - circles[0]).abs().tolist() == pytest.approx([1.5, 1.5, 1.5], abs=1e-3)

    def test_no_step_is_the_start(self) -> None:
        circles, losses = fit_disc(box(), torch.tensor([START]), learning_rate=1, steps=0)
        assert circles.tolist() == [list(START)] and len(losses) == 1

    def test_leaves_the_start_as_it_is(self) -> None:
        start = torch.tensor([START])
        fit_disc(box(), start, learning_rate=1, steps=3)
        assert start.tolist() == [list(START)] and not start.requires_grad

    def test_where_gradients_are_off(self) -> None:
        with torch.no_grad():
            circles, _ = fit_disc(box(), torch.tensor([START]), learning_rate=1, steps=3)
        assert (circles[-1] != circles[0]).all()

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"target": torch.zeros(2, 1, *SHAPE)}, ValueError),
            ({"target": torch.zeros(1, 3, *SHAPE)}, ValueError),
            ({"target": torch.zeros(1, 1, 4, 4, 4)}, ValueError),
            ({"target": box().long()}, TypeError),
            ({"start": torch.ones(2, 3)}, ValueError),
            ({"start": torch.ones(3)}, ValueError),
            ({"start": START}, TypeError),
            ({"learning_rate": 0}, ValueError),
            ({"learning_rate": -1.0}, ValueError),
            ({"learning_rate": math.nan}, ValueError),
            ({"learning_rate": "1"}, TypeError),
            ({"steps": -1}, ValueError),
            ({"steps": 1.5}, ValueError),
        ],
    )
    def test_refuses(self, change: dict[str, Any], error: type[Exception]) -> None:
        good = {"target": box(), "start": torch.tensor([START]), "learning_rate": 1.0, "steps": 2}
        with pytest.raises(error, match=f"^{next(iter(change))}:"):
            fit_disc(**{**good, **change})


class TestExplorer:
    def test_png_of_the_expected_size(self, explorer: Playground) -> None:
        picture = Image.open(BytesIO(explorer.render(2, 30)))
        assert picture.format == "PNG" and picture.size == page().size

    @pytest.mark.parametrize("other", [(2.5, 10), (2, 25)])
    def test_every_parameter_changes_every_panel(
        self, explorer: Playground, other: tuple[float, float]
    ) -> None:
        one, two = explorer.render(2, 10), explorer.render(*other)
        for k in range(3):
            assert (panel(one, k) != panel(two, k)).any(), TITLES[k]

    def test_outline_lies_on_the_circle(self, explorer: Playground) -> None:
        """At the start the outline of the disc hides the white one, around the start."""
        amber = (panel(explorer.render(2, 0), 0) == drawing.OUTLINE_RGB).all(axis=2)
        scale = page().panel[0] / SHAPE[0]
        rows, columns = (np.nonzero(amber)[axis] / scale - 0.5 for axis in (0, 1))
        row, column, radius = START
        assert rows.min() == pytest.approx(row - radius, abs=1)
        assert rows.max() == pytest.approx(row + radius, abs=1)
        assert columns.min() == pytest.approx(column - radius, abs=1)
        assert columns.max() == pytest.approx(column + radius, abs=1)

    def test_path_ends_where_the_center_is(self, explorer: Playground) -> None:
        shown = panel(explorer.render(2, 40), 0)
        circles = fit_disc(box(), torch.tensor([START]), learning_rate=2, steps=40).circles
        scale = page().panel[0] / SHAPE[0]
        for row, column, _ in circles[[0, 5, -1]].tolist():
            i, j = int((row + 0.5) * scale), int((column + 0.5) * scale)
            assert tuple(shown[i, j]) == drawing.OUTLINE_RGB

    def test_difference_is_the_disc_minus_the_shape(self, explorer: Playground) -> None:
        shown = panel(explorer.render(2, 40), 2).astype(float)
        circle = fit_disc(box(), torch.tensor([START]), learning_rate=2, steps=40).circles[-1:]
        difference = (soft_disc(SHAPE, circle) - box())[0, 0]
        levels = drawing.diverging(difference, -1, 1, page().panel)
        table = np.frombuffer(drawing._palette(), np.uint8).reshape(-1, 3)
        assert np.abs(shown - table[np.asarray(levels)]).max() == 0

    def test_says_the_numbers(self, explorer: Playground) -> None:
        lines, alarm = heard(explorer, 2.5, 30)
        circles, losses = fit_disc(box(), torch.tensor([START]), learning_rate=2.5, steps=30)
        row, column, radius = circles[-1].tolist()
        assert not alarm and lines == [
            "learning rate 2.5, 30 steps",
            f"loss {losses[-1]:.4f}:  row {row:.1f}, column {column:.1f}, radius {radius:.1f}",
        ]
        lines, alarm = heard(descent_explorer(textured(), box(), (27, 35, 10)), 100, 60)
        assert alarm and lines[0] == "learning rate 100.0, 60 steps: worse than the start"
        assert "-" not in lines[1] and "−" in lines[1]

    def test_lines_fit(self) -> None:
        bold = drawing._font(bold=True)
        longest = "loss 0.5254:  row −999.9, column −999.9, radius 999.9"
        assert drawing._LEFT + 34 + bold.getlength(longest) < drawing._LEAST
        first = "learning rate 100.0, 60 steps: worse than the start"
        assert drawing._LEFT + drawing._font().getlength(first) < drawing._LEAST

    def test_three_telling_settings(self) -> None:
        pair = brains.real_pair()
        assert pair.fixed_labels is not None
        playground = descent_explorer(pair.fixed, (pair.fixed_labels > 0).float())
        assert [loud(part) for part in still_parts(playground)] == [False, False, True]
        assert len(playground.still()) < 120_000
        # Readers without a slider see the rule of the lesson: rate times steps.
        ends = re.findall(
            r"(0\.\d+) after (\d+) steps with a learning rate of (\d+\.\d)", playground.caption
        )
        assert [(steps, rate) for _, steps, rate in ends] == [
            ("60", "1.0"),
            ("30", "2.0"),
            ("60", "80.0"),
        ]
        first, second, lost = (float(loss) for loss, _, _ in ends)
        assert first < 0.07 and second < 0.07 and lost > 0.5

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"image": torch.zeros(2, 1, *SHAPE)}, ValueError),
            ({"image": np.zeros(SHAPE)}, TypeError),
            ({"inside": box()[..., 1:]}, ValueError),
            ({"inside": box().long()}, TypeError),
            ({"inside": torch.full((1, 1, *SHAPE), math.nan)}, ValueError),
            ({"start": (1.0, 2.0)}, ValueError),
            ({"start": (1.0, 2.0, math.inf)}, ValueError),
            ({"start": ("a", 2.0, 3.0)}, TypeError),
            ({"start": 60.0}, TypeError),
        ],
    )
    def test_refuses(self, change: dict[str, Any], error: type[Exception]) -> None:
        good = {"image": textured(), "inside": box(), "start": START}
        with pytest.raises(error, match=f"^{next(iter(change))}:"):
            descent_explorer(**{**good, **change})

    @pytest.mark.parametrize(
        ("setting", "name"),
        [
            ((0, 5), "learning_rate"),
            ((1, -1), "steps"),
            ((1, 61), "steps"),
            ((1, math.nan), "steps"),
        ],
    )
    def test_refuses_bad_parameters(
        self, explorer: Playground, setting: tuple[float, float], name: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{name}:"):
            explorer.render(*setting)

    def test_keeps_what_it_was_given(self) -> None:
        inside = box()
        playground = descent_explorer(textured(), inside, START)
        before = playground.render(2, 30)
        inside.zero_()
        for rate in range(3, 15):  # more than are remembered
            playground.render(rate, 3)
        assert playground.render(2, 30) == before


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return descent_explorer(textured(), box(), START)


class TestCurve:
    PANEL = (120, 160)

    def ink(self, values: list[float], span: int = 10, high: float = 1.0) -> np.ndarray:
        """Rows and columns of what ``values`` add to the empty axes' picture."""
        empty = np.asarray(drawing.curve([-1.0], span, high, self.PANEL, "step")).astype(int)
        drawn = np.asarray(drawing.curve(values, span, high, self.PANEL, "step")).astype(int)
        inner = slice(0, self.PANEL[0] - 28), slice(40, None)  # without axes and first dot
        return np.argwhere(drawn[inner] < empty[inner])

    def test_falls_where_the_values_fall(self) -> None:
        falling, rising = self.ink([0.9, 0.1], span=1), self.ink([0.1, 0.9], span=1)
        assert np.corrcoef(falling.T)[0, 1] > 0.9  # rows are counted downwards
        assert np.corrcoef(rising.T)[0, 1] < -0.9

    def test_ends_at_its_share_of_the_span(self) -> None:
        half, all_of_it = (self.ink([0.5] * n)[:, 1].max() for n in (6, 11))
        assert half < 0.65 * all_of_it

    def test_high_is_on_top_and_what_is_higher_stays_inside(self) -> None:
        top = self.ink([1.0, 1.0], span=1)[:, 0].min()
        assert self.ink([5.0, 5.0], span=1)[:, 0].min() == top > 0
        assert self.ink([0.5, 0.5], span=1)[:, 0].min() > top + 20

    def test_path_goes_through_its_points(self) -> None:
        panel = Image.new("L", (160, 80), drawing.BLACK)
        drawing.paint_path(panel, torch.tensor([[4.0, 3.0], [15.0, 30.0]]), (20, 40), 99)
        drawn = np.asarray(panel)
        for row, column in [(4, 3), (15, 30)]:
            i, j = int((row + 0.5) * 4), int((column + 0.5) * 4)
            assert (drawn[i - 1 : i + 2, j - 1 : j + 2] == 99).all()
        assert drawn[:10].max() == 0 and (drawn == 99).sum() > 100

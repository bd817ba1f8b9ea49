"""The slice viewer draws each voxel where the affine says, and names the voxel that it is in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from course_lib import drawing
from course_lib.io import Volume
from course_lib.plotting import VIEWS
from course_lib.volumes import crop_or_pad, reorient, to_world
from course_lib.widgets import Playground, slice_viewer
from course_lib.widgets import playground as shared
from course_lib.widgets.slices import Cuts
from tests.widget_suite import PlaygroundSuite, heard, rgb

SHAPE, SPACING, ORIGIN = (30, 24, 9), (2.0, 3.0, 8.0), (-28.0, -40.0, 11.0)
SPOT = (20, 6, 3)  # a bright voxel
SPOT_MM = (12.0, -22.0, 35.0)


def spotted(axes: str = "RAS") -> Volume:
    """Gray voxels with a bright one at SPOT_MM; the array's axes run toward ``axes``."""
    image = torch.full((1, 1, *SHAPE), 10.0)
    image[(0, 0, *SPOT)] = 90
    image[0, 0, :3, :3, :3] = 0
    image[0, 0, -4:, -4:, -4:] = 90  # enough for the quantile that becomes white
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    return reorient(Volume(image, affine, SPACING), axes)


def tilted() -> Volume:
    volume = spotted()
    affine = volume.affine.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", (9, -7, 12), degrees=True).as_matrix() * SPACING
    return volume._replace(affine=affine)


def page() -> Cuts:
    """The page of these volumes: the longest side is 24 × 3 = 72 mm."""
    center = tuple(o + s * (n - 1) / 2 for o, s, n in zip(ORIGIN, SPACING, SHAPE, strict=True))
    titles = [f"{name} cut" for name, _, _ in VIEWS]
    return Cuts((72, 72), titles, bar=(), lines=2, room=(252, 252), center=center)


def panels(picture: bytes) -> list[np.ndarray]:
    colors, (height, width) = rgb(picture), page().panel
    return [colors[top : top + height, left : left + width] for left, top in page().corners]


def gray_at(panel: np.ndarray, across: int, up: int, mm: tuple[float, ...]) -> int:
    """The gray level of a panel at a place in mm."""
    column, row = page().pixel(across, mm[across]), 252 - page().pixel(up, mm[up])
    return int(panel[int(row), int(column), 0])


@pytest.mark.parametrize("axes", ["RAS", "PIL", "LSP", "IRA", "LPI"])
class TestEveryOrientation:
    def test_the_same_picture(self, axes: str) -> None:
        one, other = (
            panels(slice_viewer(spotted()).render(*SPOT_MM)),
            panels(slice_viewer(spotted(axes)).render(*SPOT_MM)),
        )
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_the_voxel_of_the_array_as_it_came(self, axes: str) -> None:
        volume = spotted(axes)
        (place, voxel), _ = heard(slice_viewer(volume), *SPOT_MM)
        assert place == "x = 12 mm (right), y = −22 mm, z = 35 mm"
        i, j, k = ((volume.image[0, 0] == 90).nonzero().numpy()).T
        mine = [  # the one among the bright voxels that lies at SPOT_MM
            n
            for n in range(len(i))
            if np.allclose(to_world([i[n], j[n], k[n]], volume.affine), SPOT_MM)
        ]
        (n,) = mine
        assert voxel == f"voxel (i, j, k) = ({i[n]}, {j[n]}, {k[n]}),  intensity 90"


class TestPicture:
    def test_the_spot_is_where_its_millimeters_say(self) -> None:
        shown = panels(slice_viewer(spotted()).render(*SPOT_MM))
        for panel, (_, across, up) in zip(shown, VIEWS, strict=True):
            # Near the middle of the voxel, away from the lines of the crosshair.
            near = tuple(m + 0.25 * s for m, s in zip(SPOT_MM, SPACING, strict=True))
            beyond = tuple(m + 1.25 * s for m, s in zip(SPOT_MM, SPACING, strict=True))
            assert gray_at(panel, across, up, near) > 240
            assert gray_at(panel, across, up, beyond) < 60

    def test_a_voxel_has_its_size_in_mm(self) -> None:
        # The cut through the spot, with the crosshair elsewhere along the two other axes.
        for k, (_, across, up) in enumerate(VIEWS):
            point = list(ORIGIN)
            cut = 3 - across - up
            point[cut] = SPOT_MM[cut]
            panel = panels(slice_viewer(spotted()).render(*point))[k][..., 0]
            scale = 252 / 72
            left, bottom = page().pixel(across, SPOT_MM[across]), page().pixel(up, SPOT_MM[up])
            box = panel[
                int(252 - bottom - 12 * scale) : int(252 - bottom + 12 * scale),
                int(left - 9 * scale) : int(left + 9 * scale),
            ]
            rows, columns = np.nonzero(box > 240)
            assert np.ptp(rows) + 1 == pytest.approx(SPACING[up] * scale, abs=1.5)
            assert np.ptp(columns) + 1 == pytest.approx(SPACING[across] * scale, abs=1.5)

    def test_black_outside_the_volume(self) -> None:
        viewer = slice_viewer(spotted())
        shown = panels(viewer.render(ORIGIN[0] - 500, 0, 20))
        assert (shown[0][100:150, 30:100] == 0).all()
        assert (shown[1][:, 2, 0][[60, 190]] == 0).all()  # 60 mm wide in a panel of 72 mm

    def test_black_above_and_below_a_flat_volume(self) -> None:
        flat = crop_or_pad(spotted(), (30, 24, 5))  # 40 mm high in panels of 72 mm
        sagittal = panels(slice_viewer(flat).render(0, 0, 43))[0][..., 0]
        assert (sagittal[[5, 40, 210, 245], 60] == 0).all() and (sagittal[[80, 180], 60] > 0).all()

    def test_the_crosshair_leaves_its_voxel_in_sight(self) -> None:
        point = (0.0, -10.0, 43.0)
        for panel, (_, across, up) in zip(
            panels(slice_viewer(spotted()).render(*point)), VIEWS, strict=True
        ):
            amber = (panel == drawing.OUTLINE_RGB).all(axis=2)
            column, row = (
                round(page().pixel(across, point[across])),
                round(252 - page().pixel(up, point[up])),
            )
            assert amber[:, column - 1 : column + 2].sum() > 200
            assert amber[row - 1 : row + 2].sum() > 200
            assert not amber[row - 4 : row + 4, column - 4 : column + 4].any()

    def test_letters_stand_on_the_sides_that_they_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[tuple[str, tuple[float, float]]] = []
        from course_lib.widgets import slices

        real = slices.write

        def listen(pen: Any, place: Any, text: str, **options: Any) -> None:
            if options.get("color") == drawing.WHITE:
                written.append((text, place))
            real(pen, place, text, **options)

        viewer = slice_viewer(spotted())
        monkeypatch.setattr(slices, "write", listen)
        viewer.render(*SPOT_MM)
        assert [text for text, _ in written] == list("PAISLRISLRPA")
        for k in range(3):
            left, right, below, above = (place for _, place in written[4 * k : 4 * k + 4])
            assert left[0] < 20 < 230 < right[0] and above[1] < 20 < 230 < below[1]

    def test_a_tilted_volume_tells_its_own_voxel(self) -> None:
        volume = tilted()
        (_, voxel), _ = heard(slice_viewer(volume), *to_world(SPOT, volume.affine))
        assert voxel == f"voxel (i, j, k) = {SPOT},  intensity 90"

    def test_outside_is_said(self) -> None:
        lines, _ = heard(slice_viewer(spotted()), -200, 0, 20)
        assert lines == ["x = −200 mm (left), y = 0 mm, z = 20 mm", "outside the image"]

    def test_a_few_bright_voxels_do_not_darken_the_rest(self) -> None:
        volume = spotted()
        ramp = torch.linspace(0, 100, int(np.prod(SHAPE))).view(1, 1, *SHAPE)
        spoiled = ramp.clone()
        spoiled[0, 0, 0, 0, :2] = 1e6
        one, other = (
            panels(slice_viewer(volume._replace(image=image)).render(0, 0, 40))[2].astype(int)
            for image in (ramp, spoiled)
        )
        assert np.abs(one - other)[60:190].max() <= 4

    @pytest.mark.filterwarnings("error")  # such as a division by zero
    def test_a_single_labelled_voxel_is_seen(self) -> None:
        labels = torch.zeros(1, 1, *SHAPE, dtype=torch.int64)
        labels[(0, 0, *SPOT)] = 1
        axial = panels(slice_viewer(spotted()._replace(image=labels)).render(*SPOT_MM))[2]
        near = tuple(m + 0.25 * s for m, s in zip(SPOT_MM, SPACING, strict=True))
        assert gray_at(axial, 0, 1, near) == 255 and (axial[100:150, 20:90] < 5).all(axis=2).any()

    def test_constant_images_and_labels(self) -> None:
        for image in (torch.ones(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE, dtype=torch.int64)):
            assert slice_viewer(spotted()._replace(image=image)).render(0, 0, 40)


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return slice_viewer(spotted("PIL"))

    def test_sliders_are_in_mm(self) -> None:
        viewer = self.make()
        for axis, slider in enumerate(viewer.sliders.values()):
            low, high = ORIGIN[axis], ORIGIN[axis] + SPACING[axis] * (SHAPE[axis] - 1)
            assert (slider.min, slider.max, slider.step) == (low, high, 1.0)
            assert "mm" in slider.description

    def test_it_keeps_the_volume_that_it_was_given(self) -> None:
        volume = spotted()
        viewer = slice_viewer(volume)
        before = viewer.render(*SPOT_MM)
        volume.image.zero_()
        assert viewer.render(*SPOT_MM) == before

    def test_stills_where_one_asks_for_them(self) -> None:
        points = [(-10.0, -20.0, 30.0), (0.0, -20.0, 30.0), SPOT_MM]
        viewer = slice_viewer(spotted(), points)
        assert "(x, y, z) = (−10, −20, 30), (0, −20, 30), (12, −22, 35) mm" in viewer.caption
        usual = slice_viewer(spotted())
        assert viewer.still() != usual.still() and viewer.picture.value == usual.picture.value

    @pytest.mark.parametrize(
        ("stills", "error"),
        [
            ([(0.0, 0.0, 0.0)], ValueError),
            ([(0.0, 0.0)] * 3, ValueError),
            ([(0.0, 0.0, float("nan"))] * 3, ValueError),
            ([(0.0, 0.0, "head")] * 3, TypeError),
        ],
    )
    def test_refuses_other_stills(self, stills: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^stills"):
            slice_viewer(spotted(), stills)

    def test_takes_what_a_training_leaves(self) -> None:
        volume = spotted()
        trained = volume._replace(image=spotted().image.requires_grad_())
        assert slice_viewer(trained).render(*SPOT_MM) == slice_viewer(volume).render(*SPOT_MM)

    def test_refuses_other_places(self) -> None:
        viewer = self.make()
        with pytest.raises(ValueError, match=r"^x:"):
            viewer.render(float("nan"), 0, 0)
        with pytest.raises(TypeError, match=r"^z:"):
            viewer.render(0, 0, "head")

    @pytest.mark.parametrize(
        ("volume", "error"),
        [
            (torch.zeros(1, 1, 8, 8, 8), TypeError),
            (Volume(torch.zeros(1, 1, 8, 8), np.eye(4), (1.0, 1.0)), ValueError),
            (Volume(torch.full((1, 1, 8, 8, 8), np.nan), np.eye(4), (1.0,) * 3), ValueError),
            (Volume(torch.zeros(1, 1, 8, 8, 8), np.zeros((4, 4)), (1.0,) * 3), ValueError),
        ],
    )
    def test_refuses(self, volume: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^volume"):
            slice_viewer(volume)


class TestCuts:
    @pytest.mark.parametrize("room", [(252, 252), shared.STILL_ROOM])
    @pytest.mark.parametrize("side", [12, 72, 233, 2000])
    def test_nothing_is_clipped(self, room: tuple[int, int], side: int) -> None:
        cuts = Cuts((side, side), page().titles, (), 2, room, center=(-side, -side, side))
        edge = np.asarray(cuts._frame)
        for border in (edge[0], edge[-1], edge[:, 0], edge[:, -1]):
            assert (border == drawing.WHITE).all(), "ink on the edge of the page"
        lefts = [left for left, _ in cuts.corners]
        for left, right in zip(lefts, [*lefts[1:], cuts.size[0]], strict=True):
            assert left + cuts.panel[1] < right

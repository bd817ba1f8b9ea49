"""Pictures: what is drawn is what was given, and alternative text travels along."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from course_lib import plotting
from course_lib.drawing import FOLD_RGB
from course_lib.io import Volume
from course_lib.spatial import affine_displacement, identity_grid
from course_lib.volumes import reorient

IMAGE = torch.rand(1, 1, 12, 9, generator=torch.Generator().manual_seed(0))
OTHER = torch.rand(1, 1, 12, 9, generator=torch.Generator().manual_seed(1))
FOLD = torch.zeros(1, 2, 12, 9)
FOLD[:, 0, 5] = 3.0


def drawn(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def magenta(picture: np.ndarray) -> int:
    return int((np.abs(picture - FOLD_RGB).max(-1) < 8).sum())


def test_overlay_is_gray_where_images_agree() -> None:
    same, different = plotting.overlay(IMAGE, IMAGE), plotting.overlay(IMAGE, OTHER)
    assert np.allclose(same, same[..., :1])
    assert np.allclose(different[..., 1], IMAGE[0, 0])
    assert np.allclose(different[..., [0, 2]], OTHER[0, 0, ..., None])


def test_checkerboard_takes_squares_in_turn() -> None:
    board = plotting.checkerboard(torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4), tiles=4)
    assert board[:2, :2].max() == 0 and board[:2, 2:].min() == 1 and board[2:4, :2].min() == 1


def test_every_axis_has_a_label() -> None:
    figures = [
        plotting.images({"a": IMAGE, "b": OTHER}),
        plotting.comparison({"a": IMAGE, "b": OTHER}, IMAGE),
        plotting.fields({"a": FOLD}, background=IMAGE),
        plotting.arrows(FOLD, IMAGE),
        plotting.curves({"a": ([0, 1], [2, 3])}, xlabel="x", ylabel="y"),
    ]
    for figure in figures:
        labels = [ax.get_xlabel() + ax.get_ylabel() for ax in figure.axes]
        assert any("voxels" in label or label == "xy" for label in labels)
        bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
        assert all(bar.get_ylabel() for bar in bars)


@pytest.mark.parametrize("displacement, folds", [(FOLD, True), (0.1 * FOLD, False)])
def test_folds_are_magenta_and_nothing_else_is(displacement: torch.Tensor, folds: bool) -> None:
    assert (magenta(drawn(plotting.fields({"": displacement}))) > 20) == folds


def test_grid_lines_lie_at_x_plus_u() -> None:
    ax = Figure().subplots()
    shift = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, -3.0]]])
    plotting.draw_grid(ax, affine_displacement(shift, (12, 9)), step=4)
    rows = ax.lines[0].get_xydata()  # (x, y) = (j, i) of row 0
    assert np.allclose(rows, [(j - 3, 2) for j in range(9)])


def test_arrows_end_where_voxels_look() -> None:
    u = torch.zeros(1, 2, 12, 9)
    u[:, 0], u[:, 1] = 2.0, -1.0
    (quiver,) = plotting.arrows(u, step=4).axes[0].collections
    assert np.allclose(quiver.U, -1) and np.allclose(quiver.V, 2)
    assert quiver.angles == "xy" and quiver.scale == 1 and quiver.scale_units == "xy"
    assert np.allclose(quiver.XY[:3], identity_grid((12, 9))[:, 0, ::4].flip(0).T)


def test_slices_of_a_body_may_name_their_axes() -> None:
    names = ("front → back (voxels)", "left → right (voxels)")
    first, second, _ = plotting.images({"a": IMAGE, "b": OTHER}, axes_labels=names).axes
    assert (first.get_ylabel(), first.get_xlabel(), second.get_xlabel()) == (*names, names[1])


def test_show_leaves_the_alternative_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(plotting, "display", shown.append)
    plotting.show(plotting.images({"a": IMAGE}), alt="Noise.")
    data, metadata = shown[0]._repr_mimebundle_()
    assert metadata["image/png"] == {"alt": "Noise."} and data["text/plain"] == "Noise."
    assert repr(shown[0]) == "Noise."


def test_pictures_are_the_same_bytes_each_time() -> None:
    one, two = (plotting._png(plotting.fields({"": FOLD})) for _ in range(2))
    assert one == two and len(one) < 40_000


def test_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="two spatial axes"):
        plotting.images({"a": torch.rand(1, 1, 4, 4, 4)})


def volume() -> Volume:
    """Voxels of 2 × 1 × 4 mm; one bright voxel, at (x, y, z) = (-6, 23, -20) mm."""
    image = torch.zeros(1, 1, 7, 6, 5)
    image[0, 0, 2, 3, 1] = 1
    affine = np.diag([2.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = -10, 20, -24
    return Volume(image, affine, (2.0, 1.0, 4.0))


@pytest.mark.parametrize("axes", ["RAS", "PIL", "LSP", "IPR"])
def test_sections_draw_a_voxel_where_the_affine_says(axes: str) -> None:
    figure = plotting.sections({"a": reorient(volume(), axes)}, point=(-6, 23, -20))
    across_and_up = ((23, -20), (-6, -20), (-6, 23))
    edges = ((19.5, 25.5, -26, -6), (-11, 3, -26, -6), (-11, 3, 19.5, 25.5))
    for ax, place, extent in zip(figure.axes[:3], across_and_up, edges, strict=True):
        (picture,) = ax.images
        np.testing.assert_allclose(picture.get_extent(), extent)
        values, (left, right, bottom, top) = np.asarray(picture.get_array()), extent
        row, column = np.argwhere(values == 1)[0]
        x = left + (column + 0.5) * (right - left) / values.shape[1]
        y = bottom + (row + 0.5) * (top - bottom) / values.shape[0]
        np.testing.assert_allclose((x, y), place)
        assert picture.origin == "lower" and ax.get_aspect() == 1
        cross = [line.get_xydata() for line in ax.lines]
        assert (cross[0][:, 0] == place[0]).all() and (cross[1][:, 1] == place[1]).all()


def test_sections_through_the_middle_and_beyond_the_end() -> None:
    figure = plotting.sections({"a": volume(), "b": volume()}, limits=(0, 2))
    assert len(figure.axes) == 7 and not figure.axes[0].lines
    assert [ax.images[0].get_array().max() for ax in figure.axes[:3]] == [0, 1, 0]
    assert figure.axes[3].get_ylabel().startswith("b\n")
    assert figure.axes[0].images[0].get_clim() == (0, 2)
    assert all("mm" in ax.get_xlabel() and "mm" in ax.get_ylabel() for ax in figure.axes[:6])
    assert plotting.sections({"a": volume()}, point=(1000, -1000, 0)).axes


def test_a_curve_may_be_a_column():
    x = torch.arange(4.0)[:, None]
    (line,) = plotting.curves({"a": (x, 2 * x)}, xlabel="x", ylabel="y").axes[0].lines
    assert line.get_xydata().tolist() == [[0, 0], [1, 2], [2, 4], [3, 6]]

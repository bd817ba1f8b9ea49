"""Pictures: what is drawn is what was given, and alternative text travels along."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from course_lib import plotting
from course_lib.drawing import FOLD_RGB
from course_lib.spatial import affine_displacement, identity_grid

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

"""The results table: the right numbers in the right rows, the identity always in it."""

import pytest
import torch

from course_lib import metrics
from course_lib.datasets import Pair, brains
from course_lib.evaluation import table, warp_labels
from course_lib.spatial import affine_displacement, warp


@pytest.fixture(scope="module")
def pair() -> Pair:
    return brains.pair(3)


def test_numbers_are_those_of_the_metrics(pair: Pair) -> None:
    u = 0.5 * pair.displacement
    row = table({"half": u}, pair)["half"]
    brain = pair.fixed_labels > 0
    assert row["correlation"] == pytest.approx(
        float(metrics.correlation(warp(pair.moving, u), pair.fixed))
    )
    overlap = metrics.dice(warp_labels(pair.moving_labels, u), pair.fixed_labels, [1, 2, 3])[0]
    assert [row[f"Dice label {n}"] for n in (1, 2, 3)] == pytest.approx(overlap.tolist())
    error = metrics.endpoint_error(u, pair.displacement, pair.spacing, brain)
    assert row["error (mm)"] == pytest.approx(float(error))


def test_identity_is_first_and_truth_is_best(pair: Pair) -> None:
    result = table({"truth": pair.displacement}, pair)
    assert list(result.rows) == ["identity", "truth"]
    for column in result.columns[:4]:
        assert result["truth"][column] > result["identity"][column]
    assert result["truth"]["error (mm)"] == 0 < 2 < result["identity"]["error (mm)"]


def test_folding_is_counted_inside_the_labels_and_in_percent(pair: Pair) -> None:
    outside, inside = torch.zeros_like(pair.displacement), torch.zeros_like(pair.displacement)
    outside[:, 0, 5] = 9.0
    inside[:, 0, 110] = 9.0
    result = table({"outside": outside, "inside": inside}, pair)
    assert result["outside"]["folding (%)"] == 0 < result["inside"]["folding (%)"] < 100


def test_only_what_is_known_is_reported(pair: Pair) -> None:
    images_only = Pair(pair.moving, pair.fixed)
    assert table({}, images_only).columns == ["correlation", "folding (%)"]
    no_spacing = pair._replace(spacing=None)
    assert "error (voxels)" in table({}, no_spacing).columns


def test_structures_choose_and_name_the_columns(pair: Pair) -> None:
    columns = table({}, pair, structures={3: "white", 1: "fluid"}).columns
    assert columns[1:3] == ["Dice white", "Dice fluid"]


def test_identity_is_a_reserved_name(pair: Pair) -> None:
    with pytest.raises(ValueError, match="identity"):
        table({"identity": pair.displacement}, pair)


def test_text_and_html_show_every_number_and_escape_names(pair: Pair) -> None:
    result = table({"<b>": pair.displacement}, pair)
    text, html = repr(result), result._repr_html_()
    assert len({len(line) for line in text.splitlines()[1:]}) == 1
    assert "&lt;b&gt;" in html and "<b>" not in html
    for value in result["<b>"].values():
        assert f"{value:.3f}" in text and f"{value:.3f}" in html


def test_black_image_gives_nan_not_an_error(pair: Pair) -> None:
    away = torch.full_like(pair.displacement, 1000.0)
    row = table({"gone": away}, pair)["gone"]
    assert row["correlation"] != row["correlation"] and row["Dice label 2"] == 0


def test_warped_labels_keep_values_and_are_background_outside() -> None:
    labels = torch.tensor([[0, 7, 7], [2**40, 2**40, 0]])[None, None]
    shift = torch.zeros(1, 2, 2, 3)
    assert torch.equal(warp_labels(labels, shift), labels)
    shift[:, 1] = 2
    assert warp_labels(labels, shift)[0, 0].tolist() == [[7, 0, 0], [0, 0, 0]]


def test_warped_labels_are_smoother_than_nearest() -> None:
    grid = torch.linspace(-1, 1, 60)
    disc = ((grid[:, None] ** 2 + grid[None] ** 2) < 0.5).long()[None, None]
    turn = torch.tensor([[[0.96, -0.28, 0.3], [0.28, 0.96, 0.2]]])
    u = affine_displacement(turn, (60, 60))
    edges = [
        sum(int((labels.diff(dim=axis) != 0).sum()) for axis in (2, 3))
        for labels in (warp_labels(disc, u), warp(disc, u, mode="nearest"))
    ]
    assert edges[0] < edges[1]


def test_without_structures_there_is_no_dice_column(pair: Pair) -> None:
    assert table({}, pair, structures={}).columns[1] == "error (mm)"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int64])
def test_warped_labels_keep_their_dtype(dtype: torch.dtype) -> None:
    labels = torch.tensor([[0, 7, 7], [3, 3, 0]]).to(dtype)[None, None]
    assert torch.equal(warp_labels(labels, torch.zeros(1, 2, 2, 3)), labels)

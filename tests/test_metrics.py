"""Metrics against loops, closed forms and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib.metrics import (
    correlation,
    dice,
    endpoint_error,
    folding_fraction,
    hausdorff95,
    sdlogj,
    target_registration_error,
)
from course_lib.spatial import affine_displacement, jacobian_determinant

SHAPES = [(8, 11), (5, 7, 6)]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
lawful = settings(max_examples=25, deadline=None, derandomize=True)


def label_maps(shape, values=(0, 1, 2, 5), batch=2, seed=0) -> tuple[Tensor, Tensor]:
    """Two maps that agree in about half of their voxels, others for each item of the batch."""
    generator = np.random.default_rng(seed)
    a = generator.choice(values, (batch, 1, *shape))
    b = np.where(generator.random(a.shape) < 0.5, a, generator.choice(values, a.shape))
    return torch.from_numpy(a), torch.from_numpy(b)


def loop_dice(a: Tensor, b: Tensor, values) -> np.ndarray:
    result = np.empty((a.shape[0], len(values)))
    for item in range(a.shape[0]):
        for column, value in enumerate(values):
            x, y = a[item].numpy() == value, b[item].numpy() == value
            total = x.sum() + y.sum()
            result[item, column] = 2 * (x & y).sum() / total if total else np.nan
    return result


# ---------------------------------------------------------------------------------------- dice


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "values", [None, [1, 2, 5], [2, 5, 1], [5, 1], [0, 7, 2], (2,), [5, 3, 1, 0]]
)
def test_dice_is_the_formula_in_the_order_asked_for(shape, values):
    a, b = label_maps(shape)
    b[1][b[1] == 5] = 0  # absent in one image of one item
    a[0][a[0] == 2] = 0
    b[0][b[0] == 2] = 0  # absent in both images of the other
    expected = loop_dice(a, b, values or [1, 2, 5])
    np.testing.assert_allclose(dice(a, b, values).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(dice(b, a, values).numpy(), expected, rtol=1e-6)  # symmetric


def test_dice_of_the_absent():
    a = torch.tensor([[1, 1], [0, 0]])[None, None]
    b = torch.tensor([[0, 0], [2, 0]])[None, None]
    one, two, nine = dice(a, b, [1, 2, 9])[0].tolist()
    assert one == two == 0 and math.isnan(nine)
    assert dice(a, a)[0].tolist() == [1.0]
    assert dice(a, b).shape == (1, 2)  # the union: 1 from a, 2 from b, never 0


def test_dice_counts_each_item_by_itself():
    full, empty = torch.ones(1, 1, 4, 5).long(), torch.zeros(1, 1, 4, 5).long()
    a, b = torch.cat([full, full]), torch.cat([full, empty])
    assert dice(a, b).tolist() == [[1.0], [0.0]]


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
@lawful
def test_dice_of_any_labels(seed, count):
    values = [0, *np.random.default_rng(seed).choice(10_000, count, replace=False).tolist()]
    a, b = label_maps((6, 7), values, seed=seed)
    union = sorted(set(a.unique().tolist() + b.unique().tolist()) - {0})
    np.testing.assert_allclose(dice(a, b).numpy(), loop_dice(a, b, union), rtol=1e-6)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.uint16, torch.uint32])
def test_dice_takes_every_integer_dtype(dtype):
    a, b = label_maps((8, 11))
    ours = dice(a.to(dtype), b.to(dtype))
    assert torch.equal(ours, dice(a, b)) and ours.dtype == torch.float32


def test_dice_tells_large_labels_apart():
    a = torch.tensor([[2**40, 2**40 + 1], [2**53, 2**53 + 1]])[None, None]
    b = torch.tensor([[2**40, 2**40], [2**53 + 1, 2**53 + 1]])[None, None]
    expected = loop_dice(a, b, [2**40, 2**40 + 1, 2**53, 2**53 + 1])
    np.testing.assert_allclose(dice(a, b).numpy(), expected, rtol=1e-6)


def test_dice_agrees_with_monai():
    metrics = pytest.importorskip("monai.metrics")
    a, b = label_maps((8, 11), (0, 1, 2, 3))
    hot = [torch.nn.functional.one_hot(x[:, 0], 4).movedim(-1, 1) for x in (a, b)]
    theirs = metrics.compute_dice(*hot, include_background=False)
    torch.testing.assert_close(dice(a, b, [1, 2, 3]), theirs)


def test_dice_of_nothing_but_background_has_no_column_or_says_so():
    nothing = torch.zeros(2, 1, 4, 5).long()
    try:
        assert dice(nothing, nothing).shape == (2, 0)
    except ValueError as refusal:
        assert "values" in str(refusal) or "label" in str(refusal)
    assert dice(nothing, nothing, [1]).isnan().all()


# ------------------------------------------------------------------------------ endpoint_error


@pytest.mark.parametrize("shape", SHAPES)
def test_endpoint_error_is_the_mean_length_in_voxels_and_in_mm(shape):
    n = len(shape)
    generator = np.random.default_rng(0)
    u, truth = (torch.from_numpy(generator.standard_normal((3, n, *shape))) for _ in range(2))
    spacing = (0.5, 2.0, 3.0)[:n]
    voxels = np.sqrt(((u - truth) ** 2).numpy().sum(1))
    scale = np.reshape(spacing, (1, n, *(1,) * n))
    mm = np.sqrt((((u - truth).numpy() * scale) ** 2).sum(1))
    axes = tuple(range(1, n + 1))
    np.testing.assert_allclose(endpoint_error(u, truth).numpy(), voxels.mean(axes))
    np.testing.assert_allclose(endpoint_error(u, truth, spacing).numpy(), mm.mean(axes))
    weights = torch.from_numpy(generator.random((3, 1, *shape)))
    for mask in (weights, weights > 0.6, (weights > 0.6).to(torch.uint8)):
        w = mask[:, 0].double().numpy()
        expected = (mm * w).sum(axes) / w.sum(axes)
        np.testing.assert_allclose(endpoint_error(u, truth, spacing, mask).numpy(), expected)
    assert torch.equal(endpoint_error(u, u), torch.zeros(3).double())


def test_a_shift_of_three_and_four_is_an_error_of_five():
    still = torch.zeros(1, 2, 6, 7)
    moved = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand_as(still)
    assert endpoint_error(moved, still).item() == pytest.approx(5)
    assert endpoint_error(moved, still, (2.0, 2.0)).item() == pytest.approx(10)
    assert endpoint_error(moved, still, torch.tensor([1.0, 3.0])).item() == pytest.approx(153**0.5)
    assert endpoint_error(moved, still, np.array([2.0, 2.0])).item() == pytest.approx(10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_metrics_of_half_fields_do_not_overflow(dtype):
    # 90 000 voxels are more than float16 can count.
    field = torch.full((2, 2, 300, 300), 3.0, dtype=dtype)
    mask = torch.ones(2, 1, 300, 300, dtype=torch.bool)
    for m in (None, mask):
        error = endpoint_error(field, torch.zeros_like(field), mask=m)
        assert error.tolist() == pytest.approx([18**0.5] * 2, rel=1e-2)
    folded = affine_displacement(torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]] * 2), (300, 300))
    assert folding_fraction(folded.to(dtype), mask).tolist() == pytest.approx([1, 1], abs=1e-2)


# ---------------------------------------------------------------------------- folding_fraction


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mirror_folds_everywhere_and_the_identity_nowhere(shape):
    n = len(shape)
    identity = torch.eye(n, n + 1)[None]
    mirror, flat, squeezed = identity.clone(), identity.clone(), identity.clone()
    mirror[0, n - 1, n - 1] = -1
    flat[0, 0, 0] = 0  # everything onto one line: a determinant of exactly 0 is a fold
    squeezed[0, 0, 0] = 0.1  # volume is lost, but nothing folds
    maps = torch.cat([identity, mirror, flat, squeezed])
    assert folding_fraction(affine_displacement(maps, shape)).tolist() == [0, 1, 1, 0]


def test_a_known_fold_is_counted_voxel_by_voxel():
    field = torch.zeros(2, 2, 9, 10)
    field[0, 0, 4] = 3.0  # rows 3 and 5 see slopes of ±1.5: φ decreases after row 4 only
    # du_0/di at row 5 = (0 − 3)/2 = −1.5, so the determinant is −0.5 there: one row of nine.
    assert folding_fraction(field).tolist() == pytest.approx([1 / 9, 0])
    mask = torch.zeros(2, 1, 9, 10, dtype=torch.bool)
    mask[:, :, 5:7] = True
    assert folding_fraction(field, mask).tolist() == pytest.approx([0.5, 0])
    mask[:, :, 5] = False
    assert folding_fraction(field, mask).tolist() == [0, 0]


# --------------------------------------------------------------------------------- correlation


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlation_is_numpys_for_each_item(shape, dtype):
    generator = np.random.default_rng(1)
    a = generator.random((3, 2, *shape))
    b = 0.4 * a + generator.random(a.shape)
    b[2] *= -30
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    ours = correlation(torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype))
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


@given(gain=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
@lawful
def test_correlation_does_not_see_a_gain_and_an_offset(gain, offset):
    a = torch.rand(2, 1, 8, 11, generator=torch.Generator().manual_seed(0)).double()
    b = a.flip(3)
    expected = correlation(a, b)
    torch.testing.assert_close(correlation(gain * a + offset, b), expected)
    torch.testing.assert_close(correlation(-gain * a + offset, b), -expected)


@given(value=st.floats(-1000, 1000, width=32), width=st.integers(2, 40))
@lawful
def test_correlation_with_a_constant_image_has_no_meaning(value, width):
    other = torch.rand(2, 1, 5, width, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        assert correlation(torch.full_like(other, value).to(dtype), other.to(dtype)).isnan().all()


def test_correlation_of_a_bright_flat_image_does_not_drown():
    a = torch.rand(1, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    assert correlation(1000 + a, a).item() == pytest.approx(1, abs=1e-3)


def test_metrics_leave_their_arguments_alone():
    a, b = label_maps((8, 11))
    u = torch.rand(2, 2, 8, 11)
    mask = torch.ones(2, 1, 8, 11)
    arguments = (a, b, u, mask)
    copies = [x.clone() for x in arguments]
    dice(a, b), endpoint_error(u, 2 * u, (1.0, 2.0), mask), folding_fraction(u, mask)
    correlation(u, 3 * u)
    assert all(torch.equal(x, y) for x, y in zip(arguments, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlation_with_a_constant_image_has_no_value(dtype):
    constant = torch.full((1, 1, 111, 91), 0.3, dtype=dtype)
    other = torch.rand(1, 1, 111, 91, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert correlation(constant, other).isnan() and correlation(other, constant).isnan()
    assert correlation(1000 + other, other).item() == pytest.approx(1, abs=1e-6)


# -------------------------------------------------------------- dice: small and large labels


def test_dice_knows_no_border_between_small_and_large_labels():
    # Below 1024 labels count as they are, from there on they are numbered anew.
    a, b = label_maps((8, 11), (0, 1, 2, 1022))
    for shift in (0, 1, 2, 5000):
        x, y = (torch.where(m == 1022, 1022 + shift, m) for m in (a, b))
        values = [1022 + shift, 2, 7, 1]
        expected = loop_dice(x, y, values)
        np.testing.assert_allclose(dice(x, y, values).numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(dice(x, y).numpy(), expected[:, [3, 1, 0]], rtol=1e-6)
        assert dice(x, y, [7, 9000, -3]).isnan().all()


def test_dice_counts_every_voxel_of_more_than_one_chunk():
    a, b = label_maps((150, 131), batch=1)
    assert a.numel() > 2**14
    np.testing.assert_allclose(dice(a, b).numpy(), loop_dice(a, b, [1, 2, 5]), rtol=1e-6)
    np.testing.assert_allclose(dice(a.mT, b.mT).numpy(), loop_dice(a, b, [1, 2, 5]), rtol=1e-6)


# ----------------------------------------------------------------------------------- hausdorff95


def test_hausdorff95_of_the_absent():
    a = torch.tensor([[1, 1, 0], [0, 0, 0]])[None, None]
    b = torch.tensor([[0, 0, 0], [2, 0, 0]])[None, None]
    one, two, nine, zero = hausdorff95(a, b, values=[1, 2, 9, 0])[0].tolist()
    assert one == two == math.inf and math.isnan(nine) and 0 <= zero < math.inf
    assert hausdorff95(a, a).tolist() == [[0.0]]
    assert hausdorff95(a, b).shape == (1, 2)


@pytest.mark.parametrize("shape", SHAPES)
@given(step=st.integers(0, 3), axis=st.integers(0, 1))
@lawful
def test_a_block_moved_by_whole_voxels_is_as_far_away(shape, step, axis):
    n = len(shape)
    spacing = (0.5, 2.0, 3.0)[:n]
    a = torch.zeros(2, 1, *shape).long()
    a[(slice(None), 0, *(slice(0, 2),) * n)] = 4
    b = a.roll(step, dims=2 + axis)
    assert hausdorff95(a, b).tolist() == [[step]] * 2
    assert hausdorff95(a, b, spacing).tolist() == [[step * spacing[axis]]] * 2


def test_five_percent_of_outliers_are_not_counted():
    a = torch.zeros(1, 1, 60, 60).long()
    a[0, 0, 5, 5:45] = 1  # a line is all surface: 40 voxels
    b = a.clone()
    b[0, 0, 55, 5] = 1  # one voxel in 41, 50 voxels away
    assert hausdorff95(a, b).item() == 0
    b[0, 0, 55, 5:15] = 1  # ten in 50
    assert hausdorff95(a, b).item() == 50
    assert hausdorff95(b, a).item() == 50


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.uint16])
def test_hausdorff95_takes_every_integer_dtype(dtype):
    a, b = label_maps((8, 11))
    ours = hausdorff95(a.to(dtype), b.to(dtype), np.array([1.0, 2.0]))
    assert torch.equal(ours, hausdorff95(a, b, (1.0, 2.0))) and ours.dtype == torch.float32


# --------------------------------------------------------------------- target_registration_error


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_landmarks_of_a_known_map_miss_by_what_they_were_moved(shape, dtype):
    n = len(shape)
    matrix = torch.eye(n, n + 1).double().repeat(2, 1, 1)
    matrix[:, 0, 1], matrix[0, :, n], matrix[1, :, n] = 0.1, 0.7, -0.4
    center = (torch.tensor(shape).double() - 1) / 2
    fixed = 1 + torch.rand(2, 6, n, generator=torch.Generator().manual_seed(0)).double() * (
        torch.tensor(shape) - 3
    )
    moving = torch.einsum("bij,bnj->bni", matrix[:, :, :n], fixed - center)
    moving = moving + matrix[:, None, :, n] + center
    miss = torch.tensor([1.0, -2.0, 2.0]).double()[:n]
    field = affine_displacement(matrix, shape)
    spacing = (2.0, 1.0, 0.5)[:n]
    arguments = [x.to(dtype) for x in (fixed, moving + miss, field)]
    tolerance = {torch.float16: 3e-2, torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    ours = target_registration_error(*arguments)
    assert ours.shape == (2, 6) and ours.dtype == torch.promote_types(dtype, torch.float32)
    assert ours.double().numpy() == pytest.approx(float(miss.norm()), abs=tolerance)
    in_mm = float((miss * torch.tensor(spacing)).norm())
    ours = target_registration_error(*arguments, spacing)
    assert ours.double().numpy() == pytest.approx(in_mm, abs=tolerance)


def test_points_go_from_the_fixed_image_to_the_moving_one():
    p, q = torch.tensor([[[2.0, 3.0]]]), torch.tensor([[[4.0, 3.0]]])
    field = torch.zeros(1, 2, 8, 9)
    field[:, 0] = 2
    assert target_registration_error(p, q, field).item() == 0
    assert target_registration_error(q, p, field).item() == 4
    assert target_registration_error(p[:, :0], q[:, :0], field).shape == (1, 0)


# ------------------------------------------------------------------------------------------ sdlogj


def learn2reg_sdlogj(field: np.ndarray) -> float:
    """As the challenge computes it: central differences, two voxels less at each side, + 3."""
    n = field.shape[0]
    J = np.stack([np.stack(np.gradient(u)) for u in field]) + np.eye(n).reshape(n, n, *(1,) * n)
    J = J[(..., *(slice(2, -2),) * n)]
    determinant = np.linalg.det(np.moveaxis(J, (0, 1), (-2, -1)))
    return float(np.log((determinant + 3).clip(1e-9, 1e9)).std())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sdlogj_is_learn2regs_for_each_item(shape, dtype):
    n = len(shape)
    # From calm to torn: determinants below −3, which the clip holds, are among the last.
    strength = torch.tensor([0.02, 0.5, 8.0]).view(3, *(1,) * (n + 1))
    field = torch.randn(3, n, *shape, generator=torch.Generator().manual_seed(0)) * strength
    mask = torch.zeros(3, 1, *shape)
    mask[(slice(None), 0, *(slice(2, -2),) * n)] = 1
    expected = [learn2reg_sdlogj(u.double().numpy()) for u in field]
    assert expected[2] > 5 > expected[1] > 10 * expected[0]
    ours = sdlogj(field.to(dtype), mask)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-3)
    assert torch.equal(sdlogj(field.to(dtype), mask.bool()), ours)
    everywhere = sdlogj(field.to(dtype))
    torch.testing.assert_close(everywhere, sdlogj(field.to(dtype), torch.ones_like(mask)))
    assert not torch.allclose(everywhere, ours)


def test_sdlogj_is_zero_where_all_volumes_agree_and_a_quarter_of_log_det_for_calm_fields():
    matrix = torch.tensor([[[1.2, 0.3, 2], [0, 0.9, 1]], [[1.0, 0, 0], [0, 1, 0]]])
    assert sdlogj(affine_displacement(matrix, (12, 14))).tolist() == pytest.approx([0, 0], abs=1e-6)
    calm = 1e-3 * torch.randn(1, 2, 30, 31, generator=torch.Generator().manual_seed(0)).double()
    plain = jacobian_determinant(calm).log().std(correction=0).item()
    assert sdlogj(calm).item() == pytest.approx(plain / 4, rel=1e-2)


def test_new_metrics_leave_their_arguments_alone():
    a, b = label_maps((8, 11))
    points, field, mask = torch.ones(2, 3, 2), torch.rand(2, 2, 8, 11), torch.ones(2, 1, 8, 11)
    arguments = (a, b, points, field, mask)
    copies = [x.clone() for x in arguments]
    hausdorff95(a, b, (1.0, 2.0)), sdlogj(field, mask)
    target_registration_error(points, points, field, (1.0, 2.0))
    assert all(torch.equal(x, y) for x, y in zip(arguments, copies, strict=True))


def test_weights_below_zero_are_refused_even_where_their_sum_is_not():
    field, mask = torch.zeros(1, 2, 8, 11), torch.ones(1, 1, 8, 11)
    mask[0, 0, 3, 4] = -1
    with pytest.raises(ValueError, match=r"^mask: .*0 and above"):
        endpoint_error(field, field, mask=mask)

"""Affine registration finds known poses, and its helpers keep the conventions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib.classical.affine import (
    pose_matrix,
    pyramid,
    register_affine,
    resize_matrix,
)
from course_lib.losses import mse, ncc
from course_lib.spatial import (
    affine_displacement,
    identity_grid,
    resize_displacement,
    smooth,
    warp,
)

SHAPES = {2: (48, 40), 3: (22, 28, 24)}
lawful = settings(max_examples=25, deadline=None, derandomize=True)


def blobs(shape, dtype=torch.float64, seed=0) -> Tensor:
    """An image without symmetry: seven blobs of different brightness about the center."""
    generator = torch.Generator().manual_seed(seed)
    grid = identity_grid(shape, dtype=torch.float64)
    size = torch.tensor(shape, dtype=torch.float64)
    image = torch.zeros(shape, dtype=torch.float64)
    for _ in range(7):
        spot = (0.3 + 0.4 * torch.rand(len(shape), generator=generator).double()) * size
        distance = (grid - spot.view(-1, *(1,) * len(shape))).square().sum(0)
        weight = 0.5 + torch.rand((), generator=generator).double()
        image += weight * torch.exp(-distance / (2 * (min(shape) / 11) ** 2))
    return (image / image.max())[None, None].to(dtype)


def poses(ndim: int) -> Tensor:
    """Two different poses from fixed to moving: rotation, scale, shear, shift."""
    first = torch.eye(ndim, ndim + 1, dtype=torch.float64)
    second = first.clone()
    first[:2, :2] = pose_matrix(9, 1.06)[0, :, :2]
    first[:, ndim] = torch.tensor([1.5, -2.0, 1.0])[:ndim]
    second[0, 1], second[1, 1], second[0, 0] = 0.08, 0.93, 1.04
    second[:, ndim] = torch.tensor([-2.0, 1.0, 0.5])[:ndim]
    return torch.stack([first, second])


def inverse(matrix: Tensor) -> Tensor:
    n = matrix.shape[1]
    linear = torch.linalg.inv(matrix[:, :, :n])
    return torch.cat([linear, -linear @ matrix[:, :, n:]], dim=2)


def pose_error(found: Tensor, true: Tensor, shape) -> float:
    """Mean distance in voxels over the middle half of the image, for the worst item."""
    difference = affine_displacement(found.double(), shape) - affine_displacement(true, shape)
    middle = tuple(slice(n // 4, n - n // 4) for n in shape)
    return float(difference[(..., *middle)].norm(dim=1).flatten(1).mean(1).max())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_known_pose_is_found_for_each_item_of_a_batch(ndim, dtype):
    if (ndim, dtype) == (3, torch.float32):
        pytest.skip("once in 3D")
    shape, true = SHAPES[ndim], poses(ndim)
    rest = blobs(shape).expand(2, 1, *shape)
    moving = warp(rest, affine_displacement(inverse(true), shape))  # so that `true` brings it back
    factors, steps = (4, 2, 1), 60
    found = register_affine(moving.to(dtype), rest.to(dtype), factors=factors, steps=steps)
    assert found.shape == (2, ndim, ndim + 1) and found.dtype == dtype
    assert not found.requires_grad
    still = torch.eye(ndim, ndim + 1, dtype=torch.float64).expand(2, -1, -1)
    assert pose_error(still, true, shape) > 1.5
    assert pose_error(found, true, shape) < 0.25


def test_the_similarity_is_the_callers_choice_and_contrast_needs_the_right_one():
    shape, true = SHAPES[2], poses(2)[:1]
    rest = blobs(shape)
    moving = 0.4 * warp(rest, affine_displacement(inverse(true), shape)) + 0.3
    calls = []

    def counted(warped: Tensor, fixed: Tensor) -> Tensor:
        calls.append(warped.shape)
        return ncc(warped, fixed)

    found = register_affine(moving, rest, similarity=counted, factors=(4, 2), steps=40)
    assert len(calls) == 80 and calls[0] < calls[-1]
    assert pose_error(found, true, shape) < 0.4
    wrong = register_affine(moving, rest, similarity=mse, factors=(4, 2), steps=40)
    assert pose_error(wrong, true, shape) > 2 * pose_error(found, true, shape)


def test_images_that_agree_stay_where_they_are_and_arguments_are_left_alone():
    rest = blobs(SHAPES[2]).requires_grad_()
    copy = rest.detach().clone()
    found = register_affine(rest, rest, factors=(4, 2), steps=20)
    still = torch.eye(2, 3, dtype=torch.float64)[None]
    assert pose_error(found, still, SHAPES[2]) < 0.05
    assert torch.equal(rest, copy) and rest.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_gradients_are_switched_off(mode):
    rest = blobs((20, 24))
    expected = register_affine(rest.flip(2), rest, factors=(2,), steps=3)
    with mode():
        found = register_affine(rest.flip(2), rest, factors=(2,), steps=3)
    torch.testing.assert_close(found, expected)


# ----------------------------------------------------------------------------------- the helpers


def test_pose_matrix_turns_axis_i_towards_axis_j():
    quarter = pose_matrix(90)
    i, j = torch.tensor([1.0, 0]), torch.tensor([0, 1.0])
    torch.testing.assert_close(quarter[0, :, :2] @ i, j, atol=1e-6, rtol=0)
    torch.testing.assert_close(quarter[0, :, :2] @ j, -i, atol=1e-6, rtol=0)
    assert quarter.shape == (1, 2, 3) and quarter.dtype == torch.float32
    # From fixed to moving: what lies along i in the fixed image is looked up along j.
    moving = torch.zeros(1, 1, 9, 9)
    moving[0, 0, 4, 7] = 1
    warped = warp(moving, affine_displacement(quarter, (9, 9)))
    assert (warped > 0.5).nonzero().tolist() == [[0, 0, 7, 4]]


@given(
    degrees=st.floats(-360, 360),
    scale=st.floats(0.1, 10),
    shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
)
@lawful
def test_pose_matrix_is_rotation_times_scale_and_shift(degrees, scale, shift):
    matrix = pose_matrix(degrees, scale, shift)[0].double()
    linear = matrix[:, :2]
    eye = scale**2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(linear.T @ linear, eye, atol=1e-4, rtol=1e-4)
    assert torch.linalg.det(linear).item() == pytest.approx(scale**2, rel=1e-4)
    assert linear[0, 0].item() == pytest.approx(scale * math.cos(math.radians(degrees)), abs=1e-4)
    assert matrix[:, 2].tolist() == pytest.approx(shift, abs=1e-4)


def test_pose_matrix_by_default_does_nothing():
    assert torch.equal(pose_matrix(0), torch.eye(2, 3)[None])


@pytest.mark.parametrize(
    ("old", "new"), [((9, 13), (17, 7)), ((5, 8, 6), (9, 4, 11)), ((9, 13), (9, 13))]
)
def test_a_resized_matrix_makes_the_resized_field(old, new):
    matrix = poses(len(old))
    field = affine_displacement(resize_matrix(matrix, old, new), new)
    torch.testing.assert_close(field, resize_displacement(affine_displacement(matrix, old), new))
    back = resize_matrix(resize_matrix(matrix, old, new), new, old)
    torch.testing.assert_close(back, matrix)


@pytest.mark.parametrize("shape", [(40, 33), (16, 21, 18)])
def test_a_pyramid_is_blurred_and_keeps_corners_on_corners(shape):
    ramp = identity_grid(shape, dtype=torch.float64)[:1, None]
    for factor in (2, 4):
        small = pyramid(ramp, factor)
        assert small.shape[2:] == tuple(max(9, round(n / factor)) for n in shape)
        corner = smooth(ramp, 0.5 * factor)
        assert small.flatten()[0] == corner.flatten()[0]
        assert small.flatten()[-1].item() == pytest.approx(corner.flatten()[-1].item())
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    assert pyramid(noise, 4).std() < 0.5 * noise.std()
    assert torch.equal(pyramid(noise, 1), noise)
    assert set(pyramid(noise, 1000).shape[2:]) == {9}
    assert pyramid(noise[..., :7], 1000).shape[-1] == 7


def test_half_images_are_registered_in_full_precision():
    image = torch.rand(1, 1, 24, 30, generator=torch.Generator().manual_seed(0)).half()
    matrix = register_affine(image, image, factors=(2,), steps=3)
    assert matrix.dtype == torch.float32 and matrix.isfinite().all()

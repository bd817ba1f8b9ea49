"""Affine registration finds known poses, and its helpers keep the conventions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib.classical import affine
from course_lib.classical.affine import (
    align_moments,
    moments,
    pose_matrix,
    pyramid,
    register_affine,
    resize_matrix,
)
from course_lib.losses import mse, ncc
from course_lib.optimise import Step
from course_lib.spatial import (
    affine_displacement,
    identity_grid,
    resize_displacement,
    resize_image,
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


# ------------------------------------------------------------------------------- kinds of motion

MOTIONS = ["rigid", "similarity", "affine"]


def turn(*angles: float) -> Tensor:
    """A rotation of 2D (one angle) or 3D (three, one after the other), written by sines."""
    ndim = 2 if len(angles) == 1 else 3
    matrix = torch.eye(ndim, dtype=torch.float64)
    for angle, (a, b) in zip(angles, [(0, 1), (0, 2), (1, 2)], strict=False):
        step = torch.eye(ndim, dtype=torch.float64)
        step[a, a] = step[b, b] = math.cos(angle)
        step[b, a], step[a, b] = math.sin(angle), -math.sin(angle)
        matrix = step @ matrix
    return matrix


def pose(linear: Tensor, *shift: float) -> Tensor:
    return torch.cat([linear, torch.tensor(shift, dtype=torch.float64)[:, None]], dim=1)[None]


def moved_by(motion: str, ndim: int) -> Tensor:
    """Two poses of that kind, ``(2, D, D+1)``."""
    angles = ([0.2], [-0.15]) if ndim == 2 else ([0.15, -0.1, 0.12], [-0.1, 0.14, -0.08])
    shifts = [1.5, -2.0, 1.0][:ndim], [-1.0, 0.5, 2.0][:ndim]
    found = torch.cat([pose(turn(*a), *t) for a, t in zip(angles, shifts, strict=True)])
    if motion == "similarity":
        found[:, :, :ndim] *= torch.tensor([1.08, 0.94], dtype=torch.float64).view(2, 1, 1)
    if motion == "affine":
        found[0, 0, 1], found[1, 1, 1] = found[0, 0, 1] + 0.08, found[1, 1, 1] - 0.08
    return found


def undone_by(true: Tensor, rest: Tensor) -> Tensor:
    """The image that ``true`` brings back to ``rest``."""
    return warp(rest, affine_displacement(inverse(true), rest.shape[2:]))


def gram(matrix: Tensor) -> Tensor:
    linear = matrix[:, :, :-1]
    return linear.mT @ linear


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_finds_a_pose_of_its_kind(motion, ndim):
    shape, true = SHAPES[ndim], moved_by(motion, ndim)
    rest = blobs(shape).expand(2, 1, *shape)
    moving = undone_by(true, rest)
    still = torch.eye(ndim, ndim + 1, dtype=torch.float64).expand(2, -1, -1)
    assert pose_error(still, true, shape) > 1.5
    found = register_affine(moving, rest, motion=motion, factors=(2, 1), steps=80)
    # The moving image was interpolated, so it is a little blurred: some scale looks like a blur.
    assert pose_error(found, true, shape) < (0.12 if motion == "rigid" else 0.25)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rigid_motion_stays_rigid_and_a_similarity_keeps_angles(ndim, dtype):
    shape = SHAPES[ndim]
    rest = blobs(shape, dtype).expand(2, 1, *shape)
    moving = undone_by(poses(ndim).to(dtype), rest)  # scaled, sheared: nothing rigid about it
    eye = torch.eye(ndim, dtype=dtype)
    close = {"atol": 1e-12 if dtype == torch.float64 else 1e-6, "rtol": 0}
    options = {"factors": (4, 2), "steps": 30}
    rigid = register_affine(moving, rest, motion="rigid", **options)
    assert rigid.dtype == dtype and (rigid[:, :, :ndim] - eye).abs().max() > 0.02
    torch.testing.assert_close(gram(rigid), eye.expand(2, -1, -1), **close)
    assert (torch.linalg.det(rigid[:, :, :ndim]) > 0).all()
    alike = register_affine(moving, rest, motion="similarity", **options)
    scale = torch.linalg.det(gram(alike)) ** (1 / ndim)
    torch.testing.assert_close(gram(alike), scale.view(2, 1, 1) * eye, **close)
    assert (scale - 1).abs().min() > 0.01
    bent = register_affine(moving, rest, motion="affine", **options)
    assert (gram(bent) - gram(bent)[:, :1, :1] * eye).abs().max() > 0.02


def test_affine_is_the_default_and_each_motion_fits_at_least_as_well_as_a_stiffer_one():
    rest = blobs(SHAPES[2])
    stretched = torch.tensor([[1.12, 0.15], [0.0, 1.0]], dtype=torch.float64)
    moving = undone_by(pose(turn(0.15) @ stretched, 1.0, 2.0), rest)
    options = {"factors": (2, 1), "steps": 60}
    found = {m: register_affine(moving, rest, motion=m, **options) for m in MOTIONS}
    assert torch.equal(register_affine(moving, rest, **options), found["affine"])
    fit = [
        float(ncc(warp(moving, affine_displacement(found[m], SHAPES[2])), rest)) for m in MOTIONS
    ]
    assert fit[0] > fit[1] + 2e-4 > fit[2] + 4e-4


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("motion", MOTIONS)
def test_the_gradient_is_finite_and_right_at_the_start(motion, ndim):
    start = torch.eye(ndim, ndim + 1, dtype=torch.float64).repeat(2, 1, 1)
    change = torch.zeros(affine._change_shape(motion, start), dtype=torch.float64)
    change.requires_grad_()

    def placed(change: Tensor) -> Tensor:
        return affine._moved(start, change, motion=motion, radius=20.0, millimeters=None)

    assert torch.equal(placed(change), start)
    assert torch.autograd.gradcheck(placed, change)
    with torch.no_grad():
        change += 0.3
    assert torch.autograd.gradcheck(placed, change)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_gain_and_an_offset_do_not_matter_to_ncc(motion, ndim):
    shape = SHAPES[ndim]
    rest = blobs(shape)
    moving = undone_by(moved_by(motion, ndim)[:1], rest)
    start = pose(turn(*[0.05, 0.03, -0.04][: ndim * (ndim - 1) // 2]), *[0.3, -0.2, 0.4][:ndim])
    options = {"motion": motion, "start": start, "factors": (4, 2), "steps": 15}
    found = register_affine(moving, rest, **options)
    again = register_affine(40 * moving + 7, 0.3 * rest - 2, **options)
    torch.testing.assert_close(again, found, atol=1e-4, rtol=0)
    assert (found - torch.eye(ndim, ndim + 1, dtype=torch.float64)).abs().max() > 0.02


@pytest.mark.parametrize("motion", MOTIONS)
def test_items_of_a_batch_do_not_see_each_other(motion):
    shape = SHAPES[2]
    rest = torch.cat([blobs(shape, seed=seed) for seed in (0, 1, 2)])
    moving = undone_by(torch.cat([moved_by(motion, 2), poses(2)[:1]]), rest)
    options = {"motion": motion, "factors": (4, 2), "steps": 15}
    both = register_affine(moving[:2], rest[:2], **options)
    other = register_affine(moving[[0, 2]], rest[[0, 2]], **options)
    torch.testing.assert_close(both[0], other[0], atol=1e-9, rtol=0)
    assert (both[1] - other[1]).abs().max() > 0.02
    alone = register_affine(moving[:1], rest[:1], **options)
    # Adam divides by the size of the gradient, which is half as large in a batch of two.
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=0)


def seen_by(change: Tensor, matrix: Tensor) -> Tensor:
    """``[C A C | C t]``: the map in other axes, where ``C`` is its own inverse."""
    return torch.cat([change @ matrix[:, :, :-1] @ change, change @ matrix[:, :, -1:]], dim=2)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_mirrored_images_give_the_mirrored_map_and_swapped_axes_the_swapped_one(motion, ndim):
    shape = SHAPES[ndim]
    rest = blobs(shape)
    moving = undone_by(moved_by(motion, ndim)[:1], rest)
    options = {"motion": motion, "factors": (4, 2), "steps": 12}
    # Not from the identity: there every sample lies on a voxel, where a linear image has a corner.
    start = pose(turn(*[0.05, 0.03, -0.04][: ndim * (ndim - 1) // 2]), *[0.3, -0.2, 0.4][:ndim])
    found = register_affine(moving, rest, start=start, **options)
    mirror = torch.diag(torch.tensor([-1.0] + [1.0] * (ndim - 1), dtype=torch.float64))
    begin = seen_by(mirror, start)
    flipped = register_affine(moving.flip(2), rest.flip(2), start=begin, **options)
    torch.testing.assert_close(flipped, seen_by(mirror, found), atol=1e-6, rtol=0)
    swap = torch.eye(ndim, dtype=torch.float64).flip(0)  # the first axis becomes the last one
    axes = (0, 1, *range(ndim + 1, 1, -1))
    begin = seen_by(swap, start)
    swapped = register_affine(moving.permute(axes), rest.permute(axes), start=begin, **options)
    torch.testing.assert_close(swapped, seen_by(swap, found), atol=1e-6, rtol=0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_equal_images_stay_where_they_are(motion):
    rest = blobs(SHAPES[3])
    found = register_affine(rest, rest, motion=motion, factors=(4, 2), steps=15)
    still = torch.eye(3, 4, dtype=torch.float64)[None]
    assert pose_error(found, still, SHAPES[3]) < 0.05


def test_with_a_spacing_a_rigid_map_is_rigid_in_millimeters():
    shape, spacing = (48, 72), (1.0, 0.5)
    mm = torch.tensor(spacing, dtype=torch.float64)
    rest = resize_image(blobs((48, 36)), shape)
    linear = turn(0.35) * mm / mm[:, None]  # of millimeters, as voxels see it
    true = pose(linear, 1.0, -2.0)
    moving = undone_by(true, rest)
    options = {"motion": "rigid", "factors": (2, 1), "steps": 80}
    found = register_affine(moving, rest, spacing=spacing, **options)
    assert pose_error(found, true, shape) < 0.15
    in_mm = found[:, :, :2] * mm[:, None] / mm
    eye = torch.eye(2, dtype=torch.float64)[None]
    torch.testing.assert_close(in_mm.mT @ in_mm, eye, atol=1e-12, rtol=0)
    in_voxels = register_affine(moving, rest, **options)
    assert pose_error(in_voxels, true, shape) > 1.5
    same = register_affine(moving, rest, spacing=(3.0, 3.0), **options)
    torch.testing.assert_close(same, in_voxels)


# -------------------------------------------------------------------------- starting and watching


@pytest.mark.parametrize("motion", MOTIONS)
def test_it_begins_at_the_start_and_leaves_it_alone(motion):
    shape, true = SHAPES[2], pose(turn(2.0), 2.0, -1.0)
    rest = blobs(shape)
    moving = undone_by(true, rest)
    near = pose(turn(1.9), 1.0, 0.0)
    start = near.clone().requires_grad_()
    assert torch.equal(register_affine(moving, rest, motion=motion, start=start, steps=0), near)
    options = {"motion": motion, "factors": (2, 1), "steps": 60}
    found = register_affine(moving, rest, start=start, **options)
    assert pose_error(near, true, shape) > 1.0 > 5 * pose_error(found, true, shape)
    assert pose_error(register_affine(moving, rest, **options), true, shape) > 5
    assert torch.equal(start, near) and start.grad is None
    single = register_affine(moving, rest, start=near.float(), steps=0)
    assert single.dtype == torch.float64


def test_from_a_start_that_is_not_rigid_a_rigid_motion_keeps_its_stretch():
    rest = blobs(SHAPES[2])
    start = poses(2)[1:]
    moving = undone_by(start, rest)
    moving = undone_by(pose(turn(0.2), 1.0, 0.5), moving)
    found = register_affine(moving, rest, motion="rigid", start=start, factors=(2,), steps=30)
    assert (found - start).abs().max() > 0.1
    torch.testing.assert_close(gram(found), gram(start), atol=1e-10, rtol=0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_watch_sees_each_step_and_changes_nothing(motion):
    shape = SHAPES[2]
    rest = blobs(shape)
    moving = undone_by(moved_by(motion, 2)[:1], rest)
    options = {"motion": motion, "factors": (4, 2), "steps": 7}
    seen: list[Step] = []
    found = register_affine(moving, rest, watch=seen.append, **options)
    assert torch.equal(found, register_affine(moving, rest, **options))
    assert [(s.factor, s.number) for s in seen] == [(f, n) for f in (4, 2) for n in range(1, 8)]
    assert [s.stopped for s in seen] == (6 * [""] + ["steps"]) * 2
    for step in seen:
        small_moving, small_fixed = pyramid(moving, step.factor), pyramid(rest, step.factor)
        warped = warp(small_moving, step.displacement, padding="border")
        assert step.loss == pytest.approx(float(ncc(warped, small_fixed)), abs=1e-9)
        assert step.similarity == step.loss and step.penalty == 0
        assert not step.displacement.requires_grad
    assert seen[0].displacement.abs().max() == 0 and seen[7].displacement.abs().max() > 0
    assert seen[-1].loss < seen[7].loss < seen[0].loss
    register_affine(moving, rest, steps=0, watch=seen.append)
    assert len(seen) == 14


# --------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("shape", [(9, 14), (6, 8, 7)])
def test_moments_are_the_weighted_mean_and_covariance_of_the_voxels(shape):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, *shape, generator=generator, dtype=torch.float64)
    centroid, covariance = moments(image)
    for item in range(2):
        mass = image[item].sum(0).numpy()
        assert centroid[item].tolist() == pytest.approx(scipy.ndimage.center_of_mass(mass))
        places = np.indices(shape).reshape(len(shape), -1)
        expected = np.cov(places, aweights=mass.ravel(), ddof=0)
        np.testing.assert_allclose(covariance[item].numpy(), expected, atol=1e-10)
    assert centroid.dtype == covariance.dtype == torch.float64
    assert [m.dtype for m in moments(image.half())] == [torch.float32] * 2
    for m, expected in zip(moments(500 * image), (centroid, covariance), strict=True):
        torch.testing.assert_close(m, expected)


def test_moments_far_from_the_corner_are_exact():
    image = torch.zeros(1, 1, 2000, 3)
    image[0, 0, 1990, 1], image[0, 0, 1992, 1] = 1.0, 1.0
    centroid, covariance = moments(image)
    assert centroid.tolist() == [[1991.0, 1.0]]
    torch.testing.assert_close(covariance, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))


FAR = {2: [(0.6,), (1.7,), (-2.9,)], 3: [(0.5, -0.3, 0.4), (1.4, 0.8, -0.5), (-2.6, 0.7, 1.9)]}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("motion", MOTIONS)
def test_moments_meet_a_turn_of_any_size(motion, ndim):
    shape = (52, 46) if ndim == 2 else (36, 32, 34)
    scale = 1.0 if motion == "rigid" else 0.9
    true = torch.cat(
        [pose(scale * turn(*angles), *[1.5, -1.0, 2.0][:ndim]) for angles in FAR[ndim]]
    )
    rest = torch.cat([long_blobs(shape, seed) for seed in range(3)])
    moving = undone_by(true, rest)
    found = align_moments(moving, rest, motion)
    assert found.shape == true.shape and found.dtype == torch.float64
    assert pose_error(found, true, shape) < 0.35
    assert (torch.linalg.det(found[:, :, :ndim]) > 0).all()
    if motion == "rigid":
        eye = torch.eye(ndim, dtype=torch.float64).expand(3, -1, -1)
        torch.testing.assert_close(gram(found), eye, atol=1e-12, rtol=0)
    lost = register_affine(moving, rest, motion=motion, factors=(4, 2), steps=30)
    assert pose_error(lost, true, shape) > 3


def long_blobs(shape, seed: int) -> Tensor:
    """Blobs with a different spread along each axis, so that the axes have a direction."""
    ndim = len(shape)
    generator = torch.Generator().manual_seed(seed)
    grid = identity_grid(shape, dtype=torch.float64)
    center = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    image = torch.zeros(shape, dtype=torch.float64)
    spread = torch.tensor([0.2, 0.1, 0.05], dtype=torch.float64)[:ndim] * min(shape)
    for _ in range(9):
        noise = torch.rand(ndim, generator=generator, dtype=torch.float64) * 2 - 1
        spot = (center + spread * noise).view(-1, *(1,) * ndim)
        weight = 0.3 + torch.rand((), generator=generator).double()
        image += weight * torch.exp(-(grid - spot).square().sum(0) / (2 * (min(shape) / 20) ** 2))
    return (image / image.max())[None, None]


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_affine_map_by_moments_gives_both_images_the_same_moments(ndim):
    shape = (52, 46) if ndim == 2 else (36, 32, 34)
    moving, rest = long_blobs(shape, 3), long_blobs(shape, 4)
    matrix = align_moments(moving, rest, "affine")
    (there, spread), (here, own) = moments(moving), moments(rest)
    linear = matrix[:, :, :ndim]
    torch.testing.assert_close(linear @ own @ linear.mT, spread, atol=1e-9, rtol=0)
    center = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    landed = (linear @ (here - center)[..., None])[..., 0] + matrix[:, :, ndim] + center
    torch.testing.assert_close(landed, there)
    alike = align_moments(moving, rest, "similarity")
    trace = gram(alike).diagonal(dim1=1, dim2=2).mean(1)
    ratio = spread.diagonal(dim1=1, dim2=2).sum(1) / own.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, ratio)


@given(seed=st.integers(0, 10_000), ndim=st.sampled_from([2, 3]))
@lawful
def test_moments_never_do_worse_than_centroid_on_centroid(seed, ndim):
    shape = (18, 16) if ndim == 2 else (12, 10, 11)
    moving, rest = blobs(shape, seed=seed), blobs(shape, seed=seed + 1)
    (there, _), (here, _) = moments(moving), moments(rest)
    shifted = torch.cat([torch.eye(ndim).double()[None], (there - here)[..., None]], dim=2)
    small = pyramid(rest, 4).shape[2:]

    def misfit(matrix: Tensor) -> float:
        field = affine_displacement(resize_matrix(matrix, shape, small), small)
        return float(ncc(warp(pyramid(moving, 4), field, padding="border"), pyramid(rest, 4)))

    assert misfit(align_moments(moving, rest)) <= misfit(shifted) + 1e-9


def test_each_item_chooses_its_own_turn_by_the_similarity_asked_for():
    shape = (52, 46)
    rest = torch.cat([long_blobs(shape, seed) for seed in (0, 1)])
    moving = torch.cat([rest[:1], undone_by(pose(turn(math.pi), 0, 0), rest[1:])])
    found = align_moments(moving, rest)
    torch.testing.assert_close(found[0, :, :2], torch.eye(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1, :, :2], -torch.eye(2).double(), atol=1e-3, rtol=0)
    worst = align_moments(moving, rest, similarity=lambda a, b: -ncc(a, b))
    assert (worst - found).abs().flatten(1).amax(1).min() > 1


def test_moments_count_millimeters_where_there_is_a_spacing():
    shape, spacing = (52, 92), (1.0, 0.5)
    mm = torch.tensor(spacing, dtype=torch.float64)
    rest = resize_image(long_blobs((52, 46), 0), shape)
    true = pose(turn(1.1) * mm / mm[:, None], 1.0, -2.0)
    moving = undone_by(true, rest)
    assert pose_error(align_moments(moving, rest, spacing=spacing), true, shape) < 0.4
    assert pose_error(align_moments(moving, rest), true, shape) > 2


def test_what_moments_cannot_do():
    disk = (identity_grid((41, 41)) - 20).square().sum(0).sqrt().lt(12).double()[None, None]
    marked = disk.clone()
    marked[0, 0, 14:17, 24:27] = 3.0  # something to see the turn by, too small to move the axes
    marked[0, 0, 24:27, 14:17] = 3.0
    marked[0, 0, 10:13, 20:22] = 3.0
    true = pose(turn(0.5), 0, 0)
    off = pose_error(align_moments(undone_by(true, marked), marked), true, (41, 41))
    assert off == pytest.approx(off) and not math.isnan(off)  # an answer, whatever it is
    head = long_blobs((52, 46), 0)
    cropped = head.clone()
    cropped[:, :, :25] = 0
    whole = align_moments(head, head)
    assert pose_error(align_moments(cropped, head), whole, (52, 46)) > 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (-torch.ones(1, 1, 8, 8), "negative"),
        (torch.zeros(1, 1, 8, 8), "mass"),
        (torch.full((1, 1, 8, 8), float("nan")), "finite"),
    ],
)
def test_images_without_moments_are_refused(image, message):
    good = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f"image.*{message}"):
        moments(image)
    with pytest.raises(ValueError, match=f"moving.*{message}"):
        align_moments(image, good)
    with pytest.raises(ValueError, match=f"fixed.*{message}"):
        align_moments(good, image)


def test_a_line_of_mass_tells_no_stretch_across_it():
    good = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    line = torch.zeros(1, 1, 8, 8)
    line[0, 0, 2:6, 3] = 1.0
    assert align_moments(line, good).isfinite().all()
    assert align_moments(line, good, "similarity").isfinite().all()
    with pytest.raises(ValueError, match=r"moving: .*spread"):
        align_moments(line, good, "affine")
    with pytest.raises(ValueError, match=r"fixed: .*spread"):
        align_moments(good, line, "affine")
    point = torch.zeros(1, 1, 8, 8)
    point[0, 0, 2, 3] = 1.0
    with pytest.raises(ValueError, match=r"fixed: .*spread"):
        align_moments(good, point, "similarity")


@pytest.mark.parametrize("motion", MOTIONS)
def test_half_images_and_those_with_gradients_are_aligned_too(motion):
    rest = long_blobs((52, 46), 0)
    moving = undone_by(pose(turn(1.0), 1.0, 2.0), rest)
    expected = align_moments(moving, rest, motion)
    half = align_moments(moving.half(), rest.half(), motion)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), expected, atol=0.02, rtol=0)
    asked = align_moments(moving.requires_grad_(), rest.requires_grad_(), motion)
    assert not asked.requires_grad and torch.equal(asked, expected)
    with torch.inference_mode():
        start = align_moments(moving, rest, motion)
    found = register_affine(moving, rest, motion=motion, start=start, factors=(2,), steps=2)
    assert found.isfinite().all()


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

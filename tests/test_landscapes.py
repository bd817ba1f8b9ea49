"""Landscapes: the loss at every pose, lowest where the images fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from course_lib.classical.affine import pose_matrix
from course_lib.landscapes import landscape, rotations, translations
from course_lib.losses import lncc, mse, ncc
from course_lib.spatial import affine_displacement, smooth, warp


def texture(*shape: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(batch, 1, *shape, generator=generator, dtype=torch.float64)
    return smooth(noise, 1.5).to(dtype)


@pytest.mark.parametrize("shape", [(22, 17), (11, 12, 10)])
def test_each_value_is_the_loss_at_that_pose(shape):
    moving, fixed = texture(*shape), texture(*shape).flip(2)
    poses = torch.cat([translations([-1.5, 2], 1, len(shape)), rotations([7], len(shape))])
    found = landscape(mse, moving, fixed, poses)
    assert found.shape == (3,) and found.dtype == torch.float64
    for value, pose in zip(found, poses.double(), strict=True):
        field = affine_displacement(pose[None], shape).repeat(2, 1, *(1,) * len(shape))
        expected = mse(warp(moving, field, padding="border"), fixed)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("loss", [mse, ncc, lncc])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_lowest_place_is_where_the_images_fit(loss, axis):
    fixed = texture(40, 33)
    offset = [0.0, 0.0]
    offset[axis] = -3.0
    away = affine_displacement(pose_matrix(0, 1, offset).double(), (40, 33)).repeat(2, 1, 1, 1)
    moving = warp(fixed, away, padding="border")  # looks 3 back, so that +3 brings it back
    offsets = torch.arange(-6.0, 7)
    found = landscape(loss, moving, fixed, translations(offsets, axis))
    assert offsets[found.argmin()] == 3


def test_a_turned_image_fits_when_it_is_turned_back():
    fixed = texture(40, 34)
    away = affine_displacement(pose_matrix(-8).double(), (40, 34)).repeat(2, 1, 1, 1)
    moving = warp(fixed, away, padding="border")
    degrees = list(range(-16, 17, 4))
    found = landscape(ncc, moving, fixed, rotations(degrees))
    assert degrees[int(found.argmin())] == 8


def test_the_border_value_goes_on_outside():
    ones = torch.ones(1, 1, 9, 7)
    assert landscape(mse, ones, ones, translations([0, 50])).tolist() == [0, 0]


def test_no_gradient_and_nothing_changed():
    moving = texture(12, 10, dtype=torch.float32).requires_grad_()
    kept = moving.detach().clone()
    found = landscape(mse, moving, kept, translations([0.0, 1.0]))
    assert not found.requires_grad and torch.equal(moving.detach(), kept)


def test_half_precision_images_and_plain_numbers_are_taken():
    half = texture(12, 10).half()
    found = landscape(lambda a, b: float((a - b).abs().mean()), half, half, translations([0, 2]))
    assert found.dtype == torch.float32 and found[0] < 1e-6 < found[1]


def test_a_loss_of_many_numbers_is_refused():
    image = texture(12, 10)
    with pytest.raises(ValueError, match=r"loss: .* one number, it gave \(2, 1, 12, 10\)"):
        landscape(lambda a, b: a - b, image, image, translations([0]))
    with pytest.raises(ValueError, match=r"loss: .* it gave NoneType"):
        landscape(lambda a, b: None, image, image, translations([0]))


@pytest.mark.parametrize("ndim", [2, 3])
def test_poses_are_what_their_names_say(ndim):
    poses = translations(torch.tensor([0.0, -2.5]), ndim - 1, ndim)
    assert poses.shape == (2, ndim, ndim + 1) and poses.dtype == torch.float32
    field = affine_displacement(poses[1:], (5, 6, 7)[:ndim])
    assert np.allclose(field[0, ndim - 1], -2.5, atol=1e-5)
    assert field[0, : ndim - 1].abs().max() == 0
    turned = rotations([0, 30, -90], ndim)
    assert torch.equal(turned[0], torch.eye(ndim, ndim + 1))
    assert turned[1, 1, 0] == pytest.approx(math.sin(math.pi / 6))  # from axis 0 towards axis 1
    linear = turned[:, :, :ndim]
    torch.testing.assert_close(linear @ linear.mT, torch.eye(ndim).repeat(3, 1, 1))
    assert turned[:, :, ndim].abs().max() == 0
    if ndim == 3:
        assert torch.equal(turned[:, 2, 2], torch.ones(3))

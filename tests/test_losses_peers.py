"""A second opinion on the losses: MONAI and SimpleITK on the same arrays.

What differs, and why, is part of the expectation:

| loss | peer | same | other |
|---|---|---|---|
| lncc | MONAI | value to 1e-5 | it clamps variances: smooth images differ by up to 3e-3 |
| lncc | SimpleITK | inside | it normalizes border windows over the voxels they have |
| mutual_information | MONAI, Mattes | ranking of poses | wider Parzen windows: less information |
| diffusion | MONAI | linear fields | it sums over axes, by central differences, inside |
| bending_energy | MONAI | value and gradient, everywhere | nothing |
| dice_loss | MONAI, squared | value where all structures are present | absent ones, smoothing |
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from course_lib.datasets import brains
from course_lib.losses import bending_energy, dice_loss, diffusion, lncc, mutual_information
from course_lib.spatial import affine_displacement, pyramid, smooth, warp

monai = pytest.importorskip("monai.losses")
sitk = pytest.importorskip("SimpleITK")

SHAPES = [(22, 31), (19, 24, 21)]


def images(shape, channels=1, sigma=0.0, seed=0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.rand((2, 2, channels, *shape), generator=generator, dtype=torch.float64)
    a, b = smooth(a, sigma), smooth(0.6 * a + 0.4 * noise, sigma)
    return ((x - x.min()) / (x.max() - x.min()) for x in (a, b))


def value_and_gradients(loss, *tensors) -> tuple[float, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = loss(*leaves)
    # MONAI's b-spline window has no gradient to the fixed image at all.
    return value.item(), *torch.autograd.grad(value, leaves, allow_unused=True)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# ---------------------------------------------------------------------------------------- lncc


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [5, 9])
@pytest.mark.parametrize("sigma, tolerance", [(0, 1e-4), (1, 1e-2)])
def test_lncc_is_monais_in_value_and_nearly_in_gradient(shape, window, sigma, tolerance):
    a, b = images(shape, sigma=sigma)
    theirs = monai.LocalNormalizedCrossCorrelationLoss(
        spatial_dims=len(shape), kernel_size=window, smooth_nr=0, smooth_dr=1e-5
    )
    expected, *slopes = value_and_gradients(theirs, a, b)
    found, *ours = value_and_gradients(lambda x, y: lncc(x, y, window), a, b)
    assert found == pytest.approx(expected, abs=1e-5 if sigma == 0 else 3e-3)
    for slope, other in zip(ours, slopes, strict=True):
        assert relative(slope, other) < tolerance


@pytest.mark.parametrize("shape", [(44, 51), (26, 30, 28)])
def test_lncc_inside_is_nearly_simpleitks(shape):
    # ANTs' correlation in SimpleITK: minus the mean of cc², border windows over what they hold.
    a, b = (x[:1].float() for x in images(shape))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsANTSNeighborhoodCorrelation(4)
    method.SetInitialTransform(sitk.TranslationTransform(len(shape)))
    fixed, moving = (sitk.GetImageFromArray(x[0, 0].numpy()) for x in (b, a))
    theirs = method.MetricEvaluate(fixed, moving)
    mask = torch.zeros_like(a)
    mask[(..., *(slice(4, -4),) * len(shape))] = 1
    assert lncc(a, b, 9, mask=mask).item() == pytest.approx(theirs, abs=0.02)


# -------------------------------------------------------------------------- mutual information


SHIFTS = (-5.0, -2.5, -1.0, 0.0, 1.0, 2.5, 5.0)


@lru_cache(maxsize=1)
def landscape() -> tuple[Tensor, list[Tensor]]:
    """A T1 slice in another contrast, and the slice itself moved by 49 translations."""
    t1 = pyramid(brains.pair(0).fixed, 2)  # half as large: MONAI takes its time
    other = 0.2 + (t1 - 0.55).square()  # neither monotone nor linear
    other = other + 0.01 * torch.randn(t1.shape, generator=torch.Generator().manual_seed(0))
    other = (other - other.min()) / (other.max() - other.min())
    moved = []
    for i, j in product(SHIFTS, SHIFTS):
        matrix = torch.tensor([[[1.0, 0.0, i], [0.0, 1.0, j]]])
        moved.append(warp(t1, affine_displacement(matrix, t1.shape[2:]), padding="border"))
    return other, moved


def mattes(moving: Tensor, fixed: Tensor) -> float:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInitialTransform(sitk.TranslationTransform(2))
    x, y = (sitk.GetImageFromArray(t[0, 0].numpy()) for t in (fixed, moving))
    return method.MetricEvaluate(x, y)


def test_mutual_information_ranks_translations_as_mattes_and_monai_do():
    other, moved = landscape()
    ours = [mutual_information(m, other).item() for m in moved]
    gaussian = monai.GlobalMutualInformationLoss(num_bins=32)
    theirs = {
        "Mattes": [mattes(m, other) for m in moved],
        "MONAI": [gaussian(m, other).item() for m in moved],
    }
    center = len(moved) // 2
    assert np.argmin(ours) == center
    for name, values in theirs.items():
        assert np.argmin(values) == center
        assert spearmanr(ours, values).statistic > 0.99, name


def test_our_bins_are_narrower_so_the_information_is_more_than_mattes():
    other, moved = landscape()
    aligned = moved[len(moved) // 2]
    assert mutual_information(aligned, other).item() < mattes(aligned, other) - 0.01


def test_the_gradient_points_where_monais_gaussian_one_does():
    other, moved = landscape()
    warped = smooth(moved[10], 1)
    gaussian = monai.GlobalMutualInformationLoss(num_bins=32)
    _, ours, _ = value_and_gradients(mutual_information, warped, other)
    _, theirs, _ = value_and_gradients(gaussian, warped, other)
    cosine = torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    assert cosine > 0.85


def test_monais_b_spline_pulls_at_two_voxels_by_their_range_and_ours_does_not():
    other, moved = landscape()
    warped = smooth(moved[10], 1)
    spline = monai.GlobalMutualInformationLoss("b-spline", num_bins=32)

    def steepest_over_typical(loss) -> float:
        slope = value_and_gradients(loss, warped, other)[1].abs().flatten()
        return (slope.max() / slope.mean()).item()

    assert 4 * steepest_over_typical(mutual_information) < steepest_over_typical(spline)


# --------------------------------------------------------------------- diffusion and bending energy


def test_diffusion_agrees_with_monai_up_to_its_sum_over_axes():
    field = affine_displacement(torch.tensor([[[1.2, 0.1, 0], [-0.3, 0.9, 1]]]), (10, 13))
    # Central and forward differences agree on linear fields; MONAI sums over the two axes.
    assert monai.DiffusionLoss()(field).item() == pytest.approx(2 * diffusion(field).item())


@pytest.mark.parametrize("shape", [*SHAPES, (3, 7), (3, 4, 3)])
def test_bending_energy_is_monais_in_value_and_gradient(shape):
    generator = torch.Generator().manual_seed(1)
    field = torch.rand(2, len(shape), *shape, generator=generator, dtype=torch.float64)
    expected, slope = value_and_gradients(monai.BendingEnergyLoss(), field)
    found, ours = value_and_gradients(bending_energy, field)
    assert found == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(ours, slope)
    single = field.float()
    theirs = monai.BendingEnergyLoss()(single).item()
    assert bending_energy(single).item() == pytest.approx(theirs, rel=1e-5)


# ------------------------------------------------------------------------------------------ Dice


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_loss_is_monais_with_squares(shape):
    a, b = images(shape, channels=3)
    theirs = monai.DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=0)
    expected, *slopes = value_and_gradients(theirs, a, b)
    found, *ours = value_and_gradients(dice_loss, a, b)
    assert found == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(ours, slopes)

"""spatial beside MONAI, SimpleITK and SciPy: interior and border told apart."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib import spatial
from course_lib.spatial import integrate, invert, jacobian_determinant, warp

# Non-square and anisotropic, one odd and one prime size among them.
SHAPES = [(26, 37), (18, 23, 28)]
MARGIN = 4

# What is known to differ at the border, as peers.md lists it, asserted below in both directions:
# (peer, primitive) -> what it does there.
AT_THE_BORDER = {
    ("MONAI DVF2DDF", "integrate"): "pads with zeros; we extend by the border value",
    ("SimpleITK", "jacobian_determinant"): "central difference of a replicated border: half slope",
}


def smooth_field(shape, amplitude, seed=0, batch=1) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal((batch, len(shape), *shape))
    blurred = scipy.ndimage.gaussian_filter(noise, (0, 0, *(4.0,) * len(shape)))
    return torch.from_numpy(blurred * (amplitude / np.abs(blurred).max()))


def image_of(shape, seed=1, batch=1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((batch, 1, *shape)))


def split(difference: Tensor) -> tuple[float, float]:
    """The largest difference inside and at the border; the spatial axes are the last ones."""
    ndim = 3 if difference.ndim == 5 or difference.shape[-3] > 4 else 2
    inside = (..., *(slice(MARGIN, -MARGIN),) * ndim)
    border = difference.abs().clone()
    border[inside] = 0
    return float(difference[inside].abs().max()), float(border.max())


def monai_blocks():
    blocks = pytest.importorskip("monai.networks.blocks")
    warnings.filterwarnings("ignore", message=".*native grid_sample.*")
    return blocks


def itk_field(sitk, field: Tensor):
    """Spacing 1, so that mm are voxels; ITK's component 0 is x, the last array axis."""
    vectors = np.ascontiguousarray(np.moveaxis(field[0].numpy()[::-1], 0, -1))
    return sitk.GetImageFromArray(vectors, isVector=True)


def from_itk_field(sitk, image) -> Tensor:
    return torch.from_numpy(np.moveaxis(sitk.GetArrayFromImage(image), -1, 0)[::-1].copy())[None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize(("mode", "theirs"), [("linear", "bilinear"), ("nearest", "nearest")])
def test_warp_and_its_gradients_are_monais_inside_and_at_the_border(shape, padding, mode, theirs):
    blocks = monai_blocks()
    ours_theirs = []
    for function in (
        lambda i, u: warp(i, u, mode=mode, padding=padding),
        blocks.Warp(mode=theirs, padding_mode=padding),
    ):
        image = image_of(shape, batch=2).requires_grad_()
        field = smooth_field(shape, 5.0, batch=2).requires_grad_()
        warped = function(image, field)
        (warped * image_of(shape, seed=5, batch=2)).sum().backward()
        gradients = [image.grad] + ([field.grad] if mode == "linear" else [])
        ours_theirs.append([warped, *gradients])
    for ours, other in zip(*ours_theirs, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_integrate_is_monais_inside_and_differs_at_the_border(shape):
    velocity = smooth_field(shape, 6.0)
    theirs = monai_blocks().DVF2DDF(num_steps=7)(velocity)
    inside, border = split(integrate(velocity) - theirs)
    padded = velocity / 2**7  # the reason: with zeros outside, ours is theirs everywhere
    for _ in range(7):
        padded = padded + warp(padded, padded, padding="zeros")
    torch.testing.assert_close(padded, theirs, atol=1e-10, rtol=0)
    assert ("MONAI DVF2DDF", "integrate") in AT_THE_BORDER and border > 0.3
    still = smooth_field(shape, 6.0)
    still[..., :MARGIN] = still[..., -MARGIN:] = 0  # nothing moves across the border: no difference
    for axis in range(2, 2 + len(shape)):
        still.narrow(axis, 0, MARGIN).zero_()
        still.narrow(axis, shape[axis - 2] - MARGIN, MARGIN).zero_()
    inside, border = split(integrate(still) - monai_blocks().DVF2DDF(num_steps=7)(still))
    assert inside < 1e-10 and border < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_the_determinant_is_simpleitks_inside_and_differs_at_the_border(shape):
    sitk = pytest.importorskip("SimpleITK")
    field = smooth_field(shape, 6.0)
    image = sitk.DisplacementFieldJacobianDeterminant(itk_field(sitk, field))
    theirs = torch.from_numpy(sitk.GetArrayFromImage(image))[None, None]
    inside, border = split(jacobian_determinant(field)[:, None] - theirs)
    assert inside < 1e-6
    assert ("SimpleITK", "jacobian_determinant") in AT_THE_BORDER and border > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_determinant_is_that_of_the_matrix(shape):
    field = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.linalg.det(spatial.jacobian(field).movedim((1, 2), (-2, -1)))
    torch.testing.assert_close(jacobian_determinant(field), expected, atol=1e-12, rtol=1e-12)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float16, 0.2)):
        ours = jacobian_determinant(field.to(dtype))
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_is_simpleitks_inside(shape):
    sitk = pytest.importorskip("SimpleITK")
    field = smooth_field(shape, 2.0)
    window = torch.ones(shape, dtype=torch.float64)
    for axis, size in enumerate(shape):  # to zero at the border, where ITK holds its inverse at 0
        line = torch.sin(torch.pi * torch.arange(size).double() / (size - 1))
        window = window * line.view(-1, *(1,) * (len(shape) - 1 - axis))
    field = field * window
    inverter = sitk.InvertDisplacementFieldImageFilter()
    inverter.SetMaximumNumberOfIterations(200)
    inverter.SetMaxErrorToleranceThreshold(1e-6)
    inverter.SetMeanErrorToleranceThreshold(1e-8)
    inverter.SetEnforceBoundaryCondition(False)
    theirs = from_itk_field(sitk, inverter.Execute(itk_field(sitk, field)))
    inside, _ = split(invert(field, tolerance=1e-9, iterations=100) - theirs)
    assert inside < 1e-4
    assert split(-field - theirs)[0] > 0.01  # minus u would be noticed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("slabs", [2, 3, 7])
def test_slabs_change_nothing(shape, padding, slabs, monkeypatch):
    def results(count: int) -> list[Tensor]:
        monkeypatch.setattr(spatial, "_slab_count", lambda image: count)
        image = image_of(shape).expand(-1, 2, *shape).clone().requires_grad_()
        field = smooth_field(shape, 5.0).requires_grad_()
        warped = warp(image, field, padding=padding)
        (warped * warped.detach().flip(2)).sum().backward()
        return [warped.detach(), image.grad, field.grad]

    calls = []
    slabbed = spatial._grid_sample_in_slabs
    monkeypatch.setattr(
        spatial, "_grid_sample_in_slabs", lambda *a: calls.append(a[3:]) or slabbed(*a)
    )
    whole = results(1)
    assert not calls
    cut = results(slabs)
    assert bool(calls) == any(size % slabs == 0 for size in shape)
    assert torch.equal(cut[0], whole[0])
    for ours, plain in zip(cut[1:], whole[1:], strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)


def test_one_image_is_cut_for_the_cores_and_a_batch_is_not():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        one, two = torch.zeros(1, 1, 8, 9), torch.zeros(2, 1, 8, 9)
        assert spatial._slab_count(one) == 4
        assert spatial._slab_count(one.requires_grad_()) == 2
        assert spatial._slab_count(two) == 1
        assert spatial._slab_count(torch.empty(1, 1, 8, 9, device="meta")) == 1
        for count in (0, 4, 5):  # points are cut, too, where there are any
            points = torch.full((1, count, 2), 1.5)
            assert torch.equal(spatial.warp_points(points, torch.zeros(1, 2, 8, 9)), points)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_warp_is_the_plain_formula(shape, padding, dtype, tolerance):
    """The idea without what makes it fast: coordinates to −1 … +1, reversed, and grid_sample."""
    image, field = image_of(shape).to(dtype), smooth_field(shape, 5.0).to(dtype)
    size = torch.tensor(shape, dtype=dtype).view(-1, *(1,) * len(shape))
    where = spatial.identity_grid(shape, dtype=dtype) + field
    corners = 2 * where / (size - 1) - 1
    plain = F.grid_sample(
        image, corners.movedim(1, -1).flip(-1), padding_mode=padding, align_corners=True
    )
    ours = warp(image, field, padding=padding)
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=0)

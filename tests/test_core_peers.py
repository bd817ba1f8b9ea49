"""Where the peers do otherwise, as a table; each row is a test that shows agreement and difference.

Agreement alone would let a convention slip: a test of each difference says that we and the peer
still stand where we think we do. Rows that are told at length elsewhere stay there: integration by
MONAI and the inverse in test_spatial_peers, mutual information, bending energy and Dice loss in
test_losses_peers, Dice and Hausdorff distances in test_metrics_peers, files in
test_io_displacement. VoxelMorph and ANTsPy come with the benchmarks: without them their rows are
skipped.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib import losses, spatial
from course_lib.spatial import affine_displacement, compose, integrate, warp, warp_points

sitk = pytest.importorskip("SimpleITK")

# test -> (peer, what both compute, what differs)
TABLE = {
    "axes": ("SimpleITK", "warp", "component 0 is x, the last array axis; ours is the first axis"),
    "millimeters": ("SimpleITK", "warp", "vectors in mm; ours in voxels"),
    "outside": (
        "SimpleITK",
        "warp",
        "border value for half a voxel, then 0; ours fades to 0 in one",
    ),
    "padding": ("MONAI", "warp", "border is the default; ours is zeros"),
    "points": ("SimpleITK", "warp_points", "outside the grid nothing moves; ours is extended"),
    "composition": ("SimpleITK", "compose", "the transform added last comes first, as our second"),
    "affine": ("SimpleITK", "affine_displacement", "x y z, mm, a center given by the caller"),
    "corners": ("PyTorch", "resize_image", "corners of voxels are aligned; ours are their centers"),
    "determinant": ("SimpleITK", "jacobian_determinant", "half the slope at the border"),
    "folds": ("ANTsPy", "jacobian_determinant", "clamped at 0; ours tells how deep a fold is"),
    "squares": ("SimpleITK", "mse", "nothing"),
    "correlation": ("SimpleITK", "ncc", "squared: no sign"),
    "windows": ("SimpleITK", "lncc", "border windows over what they hold; ours over all"),
    "checkerboard": ("MONAI", "diffusion", "summed over axes, central: blind to a checkerboard"),
    "voxelmorph": ("VoxelMorph", "warp, integrate", "zeros in integration; ours is extended"),
}
SHAPES = [(26, 37), (18, 23, 20)]
SPACING = (0.7, 2.5, 1.3)
both = pytest.mark.parametrize("shape", SHAPES)


def field_of(shape, amplitude=3.0, seed=0, sigma=4.0) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal((1, len(shape), *shape))
    blurred = scipy.ndimage.gaussian_filter(noise, (0, 0, *(sigma,) * len(shape)))
    return torch.from_numpy(blurred * (amplitude / np.abs(blurred).max()))


def image_of(shape, seed=1, batch=1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((batch, 1, *shape)))


def inside(x: Tensor, ndim: int, margin: int = 4) -> Tensor:
    return x[(..., *(slice(margin, -margin),) * ndim)]


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def vectors(field: Tensor, reverse: bool = True) -> np.ndarray:
    components = field[0].numpy()[::-1] if reverse else field[0].numpy()
    return np.ascontiguousarray(np.moveaxis(components, 0, -1))


def itk_transform(values: np.ndarray, spacing=None):
    image = sitk.GetImageFromArray(values, isVector=True)
    if spacing is not None:
        image.SetSpacing([float(s) for s in spacing[::-1]])
    return sitk.DisplacementFieldTransform(image)


def itk_warp(image: Tensor, transform, spacing=None) -> Tensor:
    moving = sitk.GetImageFromArray(image[0, 0].numpy())
    if spacing is not None:
        moving.SetSpacing([float(s) for s in spacing[::-1]])
    warped = sitk.Resample(moving, moving, transform, sitk.sitkLinear, 0.0)
    return torch.from_numpy(sitk.GetArrayFromImage(warped))[None, None]


def itk_metric(choose: str, moving: Tensor, fixed: Tensor, *options) -> float:
    method = sitk.ImageRegistrationMethod()
    getattr(method, choose)(*options)
    method.SetInitialTransform(sitk.TranslationTransform(moving.ndim - 2))
    images = (sitk.GetImageFromArray(x[0, 0].float().numpy()) for x in (fixed, moving))
    return method.MetricEvaluate(*images)


# ----------------------------------------------------------------------------------------- warping


@both
def test_axes(shape):
    image, field = image_of(shape), field_of(shape)
    ours = inside(warp(image, field), len(shape))
    assert far(ours, inside(itk_warp(image, itk_transform(vectors(field))), len(shape))) < 1e-6
    mixed = itk_warp(image, itk_transform(vectors(field, reverse=False)))
    assert far(ours, inside(mixed, len(shape))) > 0.3


@both
def test_millimeters(shape):
    spacing = SPACING[: len(shape)]
    image, field = image_of(shape), field_of(shape)
    mm = field * torch.tensor(spacing).double().view(1, -1, *(1,) * len(shape))
    ours = inside(warp(image, field), len(shape))
    theirs = itk_warp(image, itk_transform(vectors(mm), spacing), spacing)
    assert far(ours, inside(theirs, len(shape))) < 1e-6
    voxels = itk_warp(image, itk_transform(vectors(field), spacing), spacing)
    assert far(ours, inside(voxels, len(shape))) > 0.3


@both
def test_outside(shape):
    ndim, image = len(shape), torch.ones(1, 1, *shape).double()
    for shift, ours, theirs in ((0.25, 0.75, 1.0), (0.45, 0.55, 1.0), (0.6, 0.4, 0.0)):
        field = torch.zeros(1, ndim, *shape).double()
        field[:, 0] = -shift
        found = warp(image, field)[:, :, 0], itk_warp(image, itk_transform(vectors(field)))[:, :, 0]
        for rows, expected in zip(found, (ours, theirs), strict=True):
            torch.testing.assert_close(rows, torch.full_like(rows, expected))


@both
def test_padding(shape):
    blocks = pytest.importorskip("monai.networks.blocks")
    image, field = image_of(shape), field_of(shape)
    theirs = blocks.Warp()(image, field)
    assert far(warp(image, field, padding="border"), theirs) < 1e-10
    assert far(inside(warp(image, field), len(shape)), inside(theirs, len(shape))) < 1e-10
    assert far(warp(image, field), theirs) > 0.3


@both
def test_points(shape):
    n, field = len(shape), field_of(shape)
    transform = itk_transform(vectors(field))
    extent = torch.tensor(shape).double() - 1
    within = extent * torch.rand(1, 20, n, generator=torch.Generator().manual_seed(0)).double()
    beyond = torch.full((1, 1, n), -2.0).double()

    def moved(points: Tensor) -> Tensor:
        rows = [transform.TransformPoint(p.flip(0).tolist())[::-1] for p in points[0]]
        return torch.tensor(rows, dtype=torch.float64)[None]

    assert far(warp_points(within, field), moved(within)) < 1e-10
    assert far(moved(beyond), beyond) == 0
    assert far(warp_points(beyond, field), beyond + field[(..., *(0,) * n)]) < 1e-12


@both
def test_composition(shape):
    first, second = field_of(shape, seed=2), field_of(shape, seed=3)
    maps = [itk_transform(vectors(u)) for u in (first, second)]

    def theirs(order: list) -> Tensor:
        composite = sitk.CompositeTransform(order)
        size = [int(n) for n in shape[::-1]]
        image = sitk.TransformToDisplacementField(composite, sitk.sitkVectorFloat64, size)
        return torch.from_numpy(np.moveaxis(sitk.GetArrayFromImage(image), -1, 0)[::-1].copy())[
            None
        ]

    ours = inside(compose(first, second), len(shape), 5)
    assert far(ours, inside(theirs(maps), len(shape), 5)) < 1e-10
    assert far(ours, inside(theirs(maps[::-1]), len(shape), 5)) > 0.1


@both
def test_affine(shape):
    n, spacing = len(shape), np.array(SPACING[: len(shape)])
    rng = np.random.default_rng(5)
    linear, shift = np.eye(n) + 0.1 * rng.standard_normal((n, n)), rng.standard_normal(n)
    matrix = torch.from_numpy(np.c_[linear, shift])[None]
    transform = sitk.AffineTransform(n)
    in_mm = np.diag(spacing) @ linear @ np.diag(1 / spacing)
    transform.SetMatrix(in_mm[::-1, ::-1].ravel().tolist())  # x y z: from the last axis on
    transform.SetTranslation((spacing * shift)[::-1].tolist())
    transform.SetCenter((spacing * (np.array(shape) - 1) / 2)[::-1].tolist())
    size = [int(k) for k in shape[::-1]]
    image = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, size, (0.0,) * n, spacing[::-1].tolist()
    )
    mm = np.moveaxis(sitk.GetArrayFromImage(image), -1, 0)[::-1]
    theirs = torch.from_numpy(mm / spacing.reshape(-1, *(1,) * n))[None]
    assert far(affine_displacement(matrix, shape), theirs) < 1e-10


@both
def test_corners(shape):
    n, image = len(shape), image_of(shape)
    new = tuple(2 * k - 3 for k in shape)
    ours = spatial.resize_image(image, new)
    spacing = [(a - 1) / (b - 1) for a, b in zip(shape, new, strict=True)]
    moving = sitk.GetImageFromArray(image[0, 0].numpy())
    size = [int(k) for k in new[::-1]]
    resampled = sitk.Resample(
        moving, size, sitk.Transform(), sitk.sitkLinear, (0.0,) * n, spacing[::-1]
    )
    theirs = torch.from_numpy(sitk.GetArrayFromImage(resampled))[None, None]
    assert far(ours, theirs) < 1e-10  # once it is told where the centers are
    mode = "bilinear" if n == 2 else "trilinear"
    assert far(ours, F.interpolate(image, size=new, mode=mode)) > 0.05  # PyTorch's own default


# ------------------------------------------------------------------------------------- determinants


@both
def test_determinant(shape):
    n, field = len(shape), field_of(shape, 6.0)
    image = sitk.GetImageFromArray(vectors(field), isVector=True)
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))
    # Theirs, everywhere: central differences of the field with its border repeated.
    padded = F.pad(field, (1,) * 2 * n, mode="replicate")
    half = inside(spatial.jacobian_determinant(padded), n, 1)
    assert far(half, torch.from_numpy(theirs)[None]) < 1e-6
    ours = spatial.jacobian_determinant(field)
    assert far(inside(ours, n, 1), inside(half, n, 1)) < 1e-10 and far(ours, half) > 1e-3


@both
def test_folds(shape):
    # Installed with the benchmarks. Clamped at 0, nobody can tell how deep a fold is.
    ants = pytest.importorskip("ants")

    def both_of(field: Tensor) -> tuple[Tensor, Tensor]:
        domain = ants.from_numpy(np.ones(shape, np.float32))
        values = vectors(field, reverse=False).astype(np.float32)  # component k is array axis k
        warped = ants.from_numpy(values, has_components=True)
        theirs = ants.create_jacobian_determinant_image(domain, warped, False).numpy()
        return spatial.jacobian_determinant(field)[0].double(), torch.from_numpy(theirs).double()

    ours, theirs = (x[(slice(4, -4),) * len(shape)] for x in both_of(field_of(shape, 1.0)))
    assert far(ours, theirs) < 0.01 < far(ours, torch.ones_like(ours))  # calm: another stencil
    ours, theirs = both_of(field_of(shape, 15.0, seed=4, sigma=2.0))
    assert ours.min() < -5 and theirs.min() == 0


# ------------------------------------------------------------------------------------------- losses


@both
def test_squares(shape):
    a, b = image_of(shape, 1), image_of(shape, 2)
    assert losses.mse(a, b).item() == pytest.approx(itk_metric("SetMetricAsMeanSquares", a, b))


@both
def test_correlation(shape):
    a = image_of(shape, 1)
    for other in (a + image_of(shape, 2), image_of(shape, 2) - a):
        ours = losses.ncc(a, other).item()
        assert -(ours**2) == pytest.approx(itk_metric("SetMetricAsCorrelation", a, other), abs=1e-6)
    assert ours > 0.3  # the contrast is inverted, and the sign says so


@both
def test_windows(shape):
    a = image_of(shape, 1)
    b = 0.6 * a + 0.4 * image_of(shape, 2)
    theirs = itk_metric("SetMetricAsANTSNeighborhoodCorrelation", a, b, 4)
    mask = torch.zeros_like(a)
    inside(mask, len(shape)).fill_(1)
    whole, within = losses.lncc(a, b).item(), losses.lncc(a, b, mask=mask).item()
    assert within == pytest.approx(theirs, abs=0.03)
    assert whole < theirs - 0.02  # zeros outside, in both images, look like agreement


@both
def test_checkerboard(shape):
    monai = pytest.importorskip("monai.losses")
    board = torch.from_numpy(np.indices(shape).sum(0) % 2).double()
    field = board.expand(1, len(shape), *shape)
    assert monai.DiffusionLoss()(field) == 0 and losses.diffusion(field) == 1
    matrix = torch.eye(len(shape), len(shape) + 1).double()[None]
    matrix[0, 0, 1], matrix[0, 1, 1] = 0.4, 1.2
    ramp = affine_displacement(matrix, shape)
    sums = len(shape) * losses.diffusion(ramp).item()
    assert monai.DiffusionLoss()(ramp).item() == pytest.approx(sums)


@both
def test_voxelmorph(shape):
    # Installed with the benchmarks.
    modules = pytest.importorskip("voxelmorph.nn.modules")
    image, field = image_of(shape), field_of(shape, 5.0)
    assert far(modules.SpatialTransformer()(image, field), warp(image, field)) < 1e-5
    theirs = modules.IntegrateVelocityField(steps=7)(field)
    ours = integrate(field)
    assert far(inside(ours, len(shape), 7), inside(theirs, len(shape), 7)) < 1e-4
    assert far(ours, theirs) > 0.3


def test_the_table_has_a_row_for_each_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(TABLE) == tests - {"the_table_has_a_row_for_each_test"}

"""Laws of grids and fields, with SciPy, MONAI and SimpleITK as second opinions."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib import spatial
from course_lib.spatial import (
    affine_displacement,
    compose,
    identity_grid,
    integrate,
    invert,
    jacobian,
    jacobian_determinant,
    resize_displacement,
    resize_image,
    smooth,
    warp,
    warp_points,
)

# Non-square, anisotropic: a swapped axis never hides.
SHAPES = [(7, 11), (5, 8, 6)]
SMOOTH_SHAPES = [(28, 36), (18, 22, 20)]  # room for an interior
PADDINGS = ["zeros", "border"]
lawful = settings(max_examples=25, deadline=None, derandomize=True)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth_field(shape, batch=2, amplitude=1.5, sigma=4.0, seed=0) -> Tensor:
    """Another smooth random field for each item of the batch, ``amplitude`` voxels at most."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((batch, len(shape), *shape))
    blurred = scipy.ndimage.gaussian_filter(noise, (0, 0, *(sigma,) * len(shape)), mode="wrap")
    return torch.from_numpy(blurred * (amplitude / np.abs(blurred).max()))


def smooth_image(shape, batch=2, channels=1, sigma=2.0, seed=0) -> Tensor:
    noise = np.random.default_rng(seed).random((batch, channels, *shape))
    return torch.from_numpy(scipy.ndimage.gaussian_filter(noise, (0, 0, *(sigma,) * len(shape))))


def matrices(ndim: int, strength: float = 0.15, shift: float = 1.0, seed: int = 3) -> Tensor:
    """Two different affine maps, neither of them symmetric."""
    change = rand(2, ndim, ndim + 1, seed=seed) - 0.5
    change[:, :, :ndim] *= 2 * strength
    change[:, :, ndim:] *= 2 * shift
    return torch.eye(ndim, ndim + 1, dtype=torch.float64) + change


def chain(outer: Tensor, inner: Tensor) -> Tensor:
    """``[A | t]`` of ``outer(inner(x))``."""
    n = outer.shape[1]
    linear = outer[:, :, :n] @ inner[:, :, :n]
    return torch.cat([linear, outer[:, :, :n] @ inner[:, :, n:] + outer[:, :, n:]], dim=2)


def scipy_warp(image: Tensor, displacement: Tensor, padding: str, order: int = 1) -> Tensor:
    mode = {"zeros": "grid-constant", "border": "nearest"}[padding]
    result = np.empty((*image.shape[:2], *displacement.shape[2:]))
    grid = np.indices(displacement.shape[2:])
    for b in range(image.shape[0]):
        for c in range(image.shape[1]):
            result[b, c] = scipy.ndimage.map_coordinates(
                image[b, c].numpy(), grid + displacement[b].numpy(), order=order, mode=mode
            )
    return torch.from_numpy(result)


def interior(x: Tensor, margin: int) -> Tensor:
    ndim = x.shape[1] if x.ndim == x.shape[1] + 2 else x.ndim - 2
    return x[(..., *(slice(margin, -margin),) * ndim)]


# ------------------------------------------------------------------------------- identity_grid


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_holds_the_array_indices(shape):
    grid = identity_grid(shape)
    assert grid.dtype == torch.float32
    np.testing.assert_array_equal(grid.numpy(), np.indices(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_grid_dtype_and_device_are_those_asked_for(dtype):
    assert identity_grid((3, 4), dtype=dtype).dtype == dtype
    assert identity_grid((3, 4), device="meta").device.type == "meta"
    assert identity_grid((3, 4), device=torch.device("cpu")).device.type == "cpu"


def test_grid_follows_torch_defaults():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert identity_grid((3, 5)).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        assert identity_grid((3, 5)).device.type == "meta"
    assert identity_grid((3, 5)).device.type == "cpu"


def test_grid_takes_the_sizes_that_numpy_and_torch_give():
    expected = identity_grid((3, 4))
    assert torch.equal(identity_grid(torch.Size([3, 4])), expected)
    assert torch.equal(identity_grid([3, 4]), expected)
    assert torch.equal(identity_grid(np.array([3, 4])), expected)


def test_a_grid_changed_in_place_harms_nobody():
    image, still = rand(1, 1, 3, 4), torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    identity_grid((3, 4), dtype=torch.float64).add_(100)
    assert identity_grid((3, 4), dtype=torch.float64).max() == 3
    assert torch.equal(warp(image, still), image)


def test_a_grid_built_in_inference_mode_serves_autograd_later():
    spatial._sampler_grid.cache_clear()
    image, field = rand(1, 1, 6, 7), smooth_field((6, 7), batch=1)
    with torch.inference_mode():
        warp(image, field)
        affine_displacement(torch.eye(2, 3, dtype=torch.float64)[None], (6, 7))
    for leaf in (image.requires_grad_(), field.requires_grad_()):
        warp(image, field).sum().backward()
        assert leaf.grad is not None
    matrix = torch.eye(2, 3, dtype=torch.float64)[None].requires_grad_()
    affine_displacement(matrix, (6, 7)).square().sum().backward()


# ---------------------------------------------------------------------------------------- warp


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_warp_by_zero_is_the_identity(shape, padding, mode):
    image = rand(2, 3, *shape)
    still = torch.zeros(2, len(shape), *shape, dtype=torch.float64)
    torch.testing.assert_close(warp(image, still, mode=mode, padding=padding), image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@given(data=st.data())
@lawful
def test_warp_by_whole_voxels_moves_each_item_by_its_own_shift(shape, mode, data):
    shifts = data.draw(
        st.lists(st.tuples(*(st.integers(-n, n) for n in shape)), min_size=2, max_size=2)
    )
    image = rand(2, 2, *shape)
    field = torch.tensor(shifts, dtype=torch.float64).view(2, -1, *(1,) * len(shape))
    field = field.expand(2, len(shape), *shape)
    expected = torch.zeros_like(image)
    for b, shift in enumerate(shifts):
        for x in np.ndindex(shape):
            y = tuple(int(i) + s for i, s in zip(x, shift, strict=True))
            if all(0 <= i < n for i, n in zip(y, shape, strict=True)):
                expected[(b, slice(None), *x)] = image[(b, slice(None), *y)]
    torch.testing.assert_close(warp(image, field, mode=mode), expected)


def test_warp_pulls_back_along_the_named_axis():
    image = torch.zeros(1, 1, 8, 9)
    image[0, 0, 5, 3] = 1
    field = torch.zeros(1, 2, 8, 9)
    field[:, 0] = 2  # warped(x) = image(x + 2 along i): the dot comes from two rows below
    assert warp(image, field).nonzero().tolist() == [[0, 0, 3, 3]]
    assert warp(image, field, mode="nearest").nonzero().tolist() == [[0, 0, 3, 3]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_warp_agrees_with_scipy_inside_and_outside(shape, padding, dtype):
    image = rand(2, 2, *shape, seed=1)
    field = 8 * rand(2, len(shape), *shape, seed=2) - 4  # many samples fall outside
    ours = warp(image.to(dtype), field.to(dtype), padding=padding)
    assert ours.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    expected = scipy_warp(image, field, padding)
    torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_nearest_warp_agrees_with_scipy(shape, padding):
    image = rand(2, 2, *shape, seed=1)
    field = 8 * rand(2, len(shape), *shape, seed=2) - 4  # no ties: half-way has no chance
    ours = warp(image, field, mode="nearest", padding=padding)
    torch.testing.assert_close(ours, scipy_warp(image, field, padding, order=0), atol=0, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("batch", [1, 2])  # one image is sampled in slabs, a batch is not
def test_nearest_takes_the_same_voxel_of_an_image_and_of_its_labels(shape, padding, batch):
    labels = torch.arange(batch * math.prod(shape)).view(batch, 1, *shape) + 1
    halves = (16 * rand(batch, len(shape), *shape, seed=3) - 8).round() / 2  # every other a tie
    of_labels = warp(labels, halves, mode="nearest", padding=padding)
    of_image = warp(labels.double(), halves.float(), mode="nearest", padding=padding)
    assert torch.equal(of_image.long(), of_labels)


def test_nearest_has_a_gradient_to_the_image_and_none_to_the_displacement():
    image, field = rand(2, 2, 7, 11).requires_grad_(), smooth_field((7, 11)).requires_grad_()
    warped = warp(image, field, mode="nearest")
    warped.sum().backward()
    assert field.grad is None
    assert image.grad.sum() == (warped != 0).sum()  # each voxel counts as often as it was taken


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("shape", "grid"), [((7, 11), (4, 13)), ((5, 8, 6), (6, 3, 9))])
def test_the_result_lies_on_the_grid_of_the_displacement(mode, shape, grid):
    image, field = rand(2, 3, *shape), 4 * rand(2, len(grid), *grid, seed=4) - 2
    warped = warp(image, field, mode=mode)
    assert warped.shape == (2, 3, *grid)
    expected = scipy_warp(image, field, "zeros", order=1 if mode == "linear" else 0)
    torch.testing.assert_close(warped, expected)


def test_warp_is_linear_in_the_image_and_leaves_its_arguments_alone():
    a, b, field = rand(2, 1, 7, 11), rand(2, 1, 7, 11, seed=5), smooth_field((7, 11))
    copies = [x.clone() for x in (a, b, field)]
    torch.testing.assert_close(warp(2 * a - b, field), 2 * warp(a, field) - warp(b, field))
    assert all(torch.equal(x, y) for x, y in zip((a, b, field), copies, strict=True))


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    ],
)
@pytest.mark.parametrize("padding", PADDINGS)
def test_nearest_keeps_every_dtype(dtype, padding):
    image = torch.arange(24).view(2, 1, 3, 4).to(dtype)
    field = torch.full((2, 2, 3, 4), 1.2)
    warped = warp(image, field, mode="nearest", padding=padding)
    assert warped.dtype == dtype
    assert warped[1, 0, 0, 0].item() == image[1, 0, 1, 1].item()
    assert warped[1, 0, 2, 3].item() == (0 if padding == "zeros" else image[1, 0, 2, 3].item())


def test_nearest_is_exact_where_float_is_not():
    values = torch.tensor([2**40, 2**40 + 1, 2**53 + 1, -(2**53) - 1, 2**62 + 3, 7])
    labels = values.view(1, 1, 2, 3)
    still = torch.zeros(1, 2, 2, 3, dtype=torch.float16)
    assert torch.equal(warp(labels, still, mode="nearest"), labels)


@pytest.mark.parametrize("outside", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_zeros_outside_are_zeros_whatever_the_image_holds(outside, mode):
    image = torch.full((1, 1, 4, 5), outside)
    assert torch.equal(
        warp(image, torch.full((1, 2, 4, 5), 50.0), mode=mode),
        image.new_zeros(1).expand(1, 1, 4, 5),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_images_warp_like_float_ones(dtype, shape):
    image = rand(2, 1, *shape).to(dtype)
    field = smooth_field(shape).to(dtype)
    warped = warp(image, field)
    assert warped.dtype == dtype
    expected = warp(image.double(), field.double())
    torch.testing.assert_close(warped.double(), expected, atol=5e-3, rtol=0)


def test_half_precision_does_not_blur_far_voxels():
    # In half precision voxel 2049 is voxel 2048: positions must not be kept in it.
    image = (torch.arange(2 * 3001).view(1, 1, 2, 3001) % 2).half()
    field = torch.zeros(1, 2, 2, 3001, dtype=torch.float16)
    field[:, 1] = 1
    shifted = warp(image, field)[..., :-1]
    torch.testing.assert_close(shifted, image[..., 1:], atol=1e-3, rtol=0)
    assert torch.equal(warp(image, field, mode="nearest")[..., :-1], image[..., 1:])
    landed = warp_points(torch.tensor([[[1.0, 2900.0]]]), field)
    torch.testing.assert_close(landed, torch.tensor([[[1.0, 2901.0]]]), atol=1e-3, rtol=0)


def test_autocast_changes_nothing():
    image, field = rand(1, 1, 40, 300).float(), smooth_field((40, 300), 1, 3.0).float()
    matrix = matrices(2)[:1].float()
    points = 30 * rand(1, 6, 2).float()

    def everything() -> list[Tensor]:
        affine = affine_displacement(matrix, (40, 300))
        return [
            *(affine, warp(image, field), warp(image, affine), warp_points(points, field)),
            *(compose(affine, field), integrate(field), smooth(image, 1.5)),
            *(resize_displacement(field, (20, 150)), jacobian_determinant(field)),
        ]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = everything()
    for ours, theirs in zip(under, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 3)])
@pytest.mark.parametrize("padding", PADDINGS)
def test_warp_has_the_right_gradient(shape, padding):
    # Samples stay clear of whole voxels, where linear interpolation has a kink; some lie outside.
    image = rand(2, 1, *shape).requires_grad_()
    whole = torch.randint(
        -1, 2, (2, len(shape), *shape), generator=torch.Generator().manual_seed(6)
    )
    field = (whole + 0.2 + 0.6 * rand(2, len(shape), *shape, seed=7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, u: warp(i, u, padding=padding), (image, field))


def test_border_padding_has_a_gradient_where_zeros_have_none():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    for padding, expected in (("zeros", 0.0), ("border", 1.0)):
        leaf = image.clone().requires_grad_()
        warp(leaf, torch.full((1, 2, 3, 4), 20.0), padding=padding).sum().backward()
        assert (leaf.grad[0, 0, 2, 3] > 0) == bool(expected)


def test_a_field_that_is_not_finite_shows_in_the_result():
    for shape in SHAPES:
        for bad in (float("nan"), float("inf")):
            for padding in PADDINGS:
                field = torch.zeros(1, len(shape), *shape)
                field[(0, 1, *(2,) * len(shape))] = bad
                warped = warp(rand(1, 1, *shape).float() + 1, field, padding=padding)
                assert int(warped.isnan().sum()) == 1, (shape, bad, padding)
                assert bool(warped[(0, 0, *(2,) * len(shape))].isnan())


def test_the_gradient_of_a_broken_field_does_not_kill_the_process():
    # PyTorch's 2D grid_sample crashes on a NaN grid with border padding: a kernel that dies.
    code = (
        "import torch; from course_lib.spatial import warp\n"
        "u = torch.full((1, 2, 20, 24), float('nan')).requires_grad_()\n"
        "warp(torch.rand(1, 1, 20, 24), u, padding='border').sum().backward(); print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "alive", f"exit code {done.returncode}\n{done.stderr}"


def test_floor_one_works_under_functional_transforms():
    spatial._sampler_grid.cache_clear()  # the first grids are built inside the transforms
    image, fields = (
        rand(3, 1, 1, 9, 8),
        torch.stack([smooth_field((9, 8), 1, seed=s) for s in (1, 2, 3)]),
    )
    points, maps = 6 * rand(3, 1, 4, 2), matrices(2)[[0, 1, 0], None]
    functions = {
        "warp": (warp, (image, fields)),
        "nearest": (lambda i, u: warp(i, u, mode="nearest"), (image, fields)),
        "warp_points": (warp_points, (points, fields)),
        "compose": (compose, (fields, fields)),
        "integrate": (integrate, (fields,)),
        "resize": (lambda u: resize_displacement(u, (5, 6)), (fields,)),
        "smooth": (lambda u: smooth(u, 1.0), (fields,)),
        "affine": (lambda m: affine_displacement(m, (5, 6)), (maps,)),
        "jacobian": (jacobian, (fields,)),
        "determinant": (jacobian_determinant, (fields,)),
    }
    for name, (function, arguments) in functions.items():
        mapped = torch.func.vmap(function)(*arguments)
        one_by_one = torch.stack([function(*a) for a in zip(*arguments, strict=True)])
        torch.testing.assert_close(mapped, one_by_one, msg=name)
        slope = torch.func.grad(lambda *a, f=function: f(*a).square().sum())
        leaf = arguments[0][0].clone().requires_grad_()
        function(leaf, *(a[0] for a in arguments[1:])).square().sum().backward()
        torch.testing.assert_close(slope(*(a[0] for a in arguments)), leaf.grad, msg=name)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_warp_maps_over_images_or_fields_alone(mode):
    images, fields = rand(3, 1, 2, 9, 8), torch.stack([smooth_field((9, 8), 1)] * 3) * 2
    by_image = torch.func.vmap(lambda i: warp(i, fields[0], mode=mode))(images)
    by_field = torch.func.vmap(lambda u: warp(images[0], u, mode=mode))(fields)
    for k in range(3):
        torch.testing.assert_close(by_image[k], warp(images[k], fields[0], mode=mode))
        torch.testing.assert_close(by_field[k], warp(images[0], fields[k], mode=mode))
    composed = torch.func.vmap(lambda u: compose(u, fields[0]))(fields)
    torch.testing.assert_close(composed[1], compose(fields[1], fields[0]))
    composed = torch.func.vmap(lambda u: compose(fields[0], u))(fields)
    torch.testing.assert_close(composed[1], compose(fields[0], fields[1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_floor_one_stays_on_the_device_of_its_arguments(shape):
    image = torch.empty(2, 1, *shape, device="meta")
    field = torch.empty(2, len(shape), *shape, device="meta")
    points = torch.empty(2, 5, len(shape), device="meta")
    matrix = torch.empty(2, len(shape), len(shape) + 1, device="meta")
    results = [
        *(warp(image, field), warp(image, field, mode="nearest"), warp_points(points, field)),
        *(compose(field, field), integrate(field), resize_image(image, shape)),
        *(resize_displacement(field, shape), smooth(image, 1.0), jacobian(field)),
        *(jacobian_determinant(field), affine_displacement(matrix, shape)),
    ]
    assert {r.device.type for r in results} == {"meta"}


# ------------------------------------------------------------------------------- second opinions


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_warp_agrees_with_monai(shape, padding):
    blocks = pytest.importorskip("monai.networks.blocks")
    image, field = smooth_image(shape).float(), smooth_field(shape, amplitude=4.0).float()
    theirs = blocks.Warp(mode="bilinear", padding_mode=padding)(image, field)
    torch.testing.assert_close(warp(image, field, padding=padding), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_integrate_agrees_with_monai_inside(shape):
    # MONAI's DVF2DDF pads with zeros at the border, we extend: agreement holds inside only.
    blocks = pytest.importorskip("monai.networks.blocks")
    velocity = smooth_field(shape, amplitude=2.0).float()
    ours, theirs = integrate(velocity), blocks.DVF2DDF(num_steps=7)(velocity)
    torch.testing.assert_close(interior(ours, 4), interior(theirs, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_warp_and_jacobian_agree_with_simpleitk_inside(shape):
    sitk = pytest.importorskip("SimpleITK")
    image, field = smooth_image(shape, batch=1), smooth_field(shape, batch=1, amplitude=3.0)
    # ITK's component 0 is x, the last array axis; spacing 1, so that mm are voxels.
    vectors = np.ascontiguousarray(np.moveaxis(field[0].numpy()[::-1], 0, -1))
    itk_field = sitk.GetImageFromArray(vectors, isVector=True)
    determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(itk_field))
    fixed = sitk.GetImageFromArray(image[0, 0].numpy())
    transform = sitk.DisplacementFieldTransform(sitk.Image(itk_field))
    warped = sitk.GetArrayFromImage(sitk.Resample(fixed, fixed, transform, sitk.sitkLinear, 0.0))
    cut = (slice(4, -4),) * len(shape)
    np.testing.assert_allclose(warp(image, field)[0, 0].numpy()[cut], warped[cut], atol=1e-6)
    ours = jacobian_determinant(field)[0].numpy()
    np.testing.assert_allclose(ours[cut], determinant[cut], atol=1e-6)


# --------------------------------------------------------------------------------- warp_points


@pytest.mark.parametrize("shape", SHAPES)
def test_points_move_by_the_interpolated_field(shape):
    field = 4 * rand(2, len(shape), *shape, seed=8) - 2
    size = torch.tensor(shape, dtype=torch.float64)
    points = rand(2, 9, len(shape), seed=9) * (size + 3) - 2  # some outside: the border value
    expected = points.clone()
    for b in range(2):
        for d in range(len(shape)):
            expected[b, :, d] += torch.from_numpy(
                scipy.ndimage.map_coordinates(
                    field[b, d].numpy(), points[b].T.numpy(), order=1, mode="nearest"
                )
            )
    torch.testing.assert_close(warp_points(points, field), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_points_on_the_grid_land_where_warp_looks(shape):
    field = smooth_field(shape, amplitude=0.9)
    grid = identity_grid(shape, dtype=torch.float64)
    points = grid.flatten(1).T.expand(2, -1, -1)
    landed = warp_points(points, field).transpose(1, 2).view(2, len(shape), *shape)
    torch.testing.assert_close(landed, grid + field)
    # Warping an image of coordinates reads, at x, the coordinate x + u(x).
    looked = warp(grid.expand(2, *grid.shape), field, padding="border")
    torch.testing.assert_close(interior(looked, 1), interior(landed, 1))


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_a_blob_drawn_at_the_landed_point_is_seen_at_the_point(shape):
    shift = torch.tensor([1.7, -2.3, 1.1]).double()[: len(shape)].view(1, -1, *(1,) * len(shape))
    field = smooth_field(shape, amplitude=0.7, sigma=4.0) + shift
    points = torch.tensor(shape).double().div(2).sub(0.3).expand(2, 1, -1)
    landed = warp_points(points, field)
    grid = identity_grid(shape, dtype=torch.float64)
    distance = grid[None] - landed.transpose(1, 2).view(2, -1, *(1,) * len(shape))
    blob = torch.exp(-distance.square().sum(1, keepdim=True) / 2 / 1.5**2)
    seen = warp(blob, field)
    weights = seen / seen.flatten(1).sum(1).view(2, 1, *(1,) * len(shape))
    center = (weights * grid).flatten(2).sum(2)
    torch.testing.assert_close(center, points[:, 0], atol=0.15, rtol=0)
    assert (landed - points).norm(dim=2).min() > 1.5  # the test would notice a field ignored


def test_points_keep_their_dtype_and_may_be_none_at_all():
    field = smooth_field((7, 11)).float()
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert warp_points(torch.ones(2, 3, 2, dtype=dtype), field).dtype == dtype
    assert warp_points(torch.ones(2, 0, 2), field).shape == (2, 0, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_point_is_lost_in_all_its_coordinates_and_harms_no_other(bad):
    points = torch.full((1, 3, 2), 2.5)
    points[0, 1, 0] = bad
    landed = warp_points(points, torch.ones(1, 2, 7, 11))
    assert landed[0, 1].isnan().all()
    assert landed[0, ::2].tolist() == [[3.5, 3.5]] * 2


def test_points_have_the_right_gradient():
    field = smooth_field((5, 6)).requires_grad_()
    points = (torch.tensor([[[1.3, 2.4], [3.6, 4.2]]]).double().repeat(2, 1, 1)).requires_grad_()
    assert torch.autograd.gradcheck(warp_points, (points, field))


# ------------------------------------------------------------------------- compose and integrate


@pytest.mark.parametrize("shape", SHAPES)
def test_composing_with_zero_changes_nothing_and_constants_add(shape):
    field = smooth_field(shape)
    zero = torch.zeros_like(field)
    torch.testing.assert_close(compose(zero, field), field)
    torch.testing.assert_close(compose(field, zero), field)
    # Far out of the grid too: the first field is extended by its border value, not by zero.
    a = torch.tensor([3.0, -40.0, 5.0])[: len(shape)].double().view(1, -1, *(1,) * len(shape))
    b = torch.tensor([-2.0, 70.0, 50.0])[: len(shape)].double().view(1, -1, *(1,) * len(shape))
    a, b = a.expand_as(field), b.expand_as(field)
    torch.testing.assert_close(compose(a, b), a + b)


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_affine_fields_compose_as_matrices_do(shape):
    first, second = matrices(len(shape), 0.05), matrices(len(shape), 0.05, seed=11)
    ours = compose(affine_displacement(first, shape), affine_displacement(second, shape))
    # Points pass through the second map first: φ_1(φ_2(x)).
    exact = affine_displacement(chain(first, second), shape)
    torch.testing.assert_close(interior(ours, 4), interior(exact, 4))
    swapped = affine_displacement(chain(second, first), shape)
    assert (interior(swapped, 4) - interior(exact, 4)).abs().max() > 0.05


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_warping_twice_is_warping_by_the_composition(shape):
    image = smooth_image(shape, sigma=3.0)
    first, second = (smooth_field(shape, amplitude=2.5, seed=s) for s in (1, 2))
    twice = interior(warp(warp(image, first), second), 4)
    once = interior(warp(image, compose(first, second)), 4)
    wrong = interior(warp(image, compose(second, first)), 4)
    assert (twice - once).abs().max() < 0.3 * (twice - wrong).abs().max()
    assert (twice - once).abs().mean() < 0.02 * image.std()


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_composition_is_associative_up_to_interpolation(shape):
    a, b, c = (smooth_field(shape, amplitude=1.0, sigma=5.0, seed=s) for s in (1, 2, 3))
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    torch.testing.assert_close(interior(left, 4), interior(right, 4), atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
@lawful
def test_a_constant_velocity_is_its_own_displacement(shape, data):
    speed = data.draw(st.lists(st.floats(-30, 30), min_size=len(shape), max_size=len(shape)))
    steps = data.draw(st.integers(0, 9))
    velocity = torch.tensor(speed, dtype=torch.float64).view(1, -1, *(1,) * len(shape))
    velocity = velocity.expand(1, len(shape), *shape)
    torch.testing.assert_close(integrate(velocity, steps), velocity)


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_integrating_backwards_undoes_integrating_forwards(shape):
    velocity = smooth_field(shape, amplitude=2.0, sigma=5.0)
    there, back = integrate(velocity), integrate(-velocity)
    for round_trip in (compose(there, back), compose(back, there)):
        assert interior(round_trip, 4).abs().max() < 0.03
    assert interior(there + back, 4).abs().max() > 0.01  # the inverse is not the negative
    assert jacobian_determinant(there).min() > 0


@pytest.mark.parametrize("shape", [(33, 41), (17, 21, 19)])
def test_a_linear_velocity_integrates_to_the_matrix_exponential(shape):
    n = len(shape)
    linear = torch.tensor([[0.1, -0.3, 0.05], [0.2, -0.1, 0.1], [0.0, 0.1, 0.1]]).double()[:n, :n]
    eye, nothing = torch.eye(n, dtype=torch.float64), torch.zeros(n, 1, dtype=torch.float64)
    velocity = affine_displacement(torch.cat([eye + linear, nothing], 1)[None], shape)
    exponential = torch.from_numpy(scipy.linalg.expm(linear.numpy()))
    exact = affine_displacement(torch.cat([exponential, nothing], 1)[None], shape)
    errors = []
    for steps in (0, 4, 7):
        cut = min(shape) // 4
        errors.append(
            float((interior(integrate(velocity, steps), cut) - interior(exact, cut)).abs().max())
        )
    assert errors[0] > 4 * errors[1] > 16 * errors[2]  # first order in 2^-steps
    assert errors[2] < 0.02


def test_one_more_squaring_doubles_the_time():
    velocity = smooth_field((14, 18))
    half = integrate(velocity, 5)
    torch.testing.assert_close(integrate(2 * velocity, 6), compose(half, half))
    torch.testing.assert_close(integrate(velocity, 0), velocity)


def test_integrate_takes_seven_steps_unless_told():
    velocity = smooth_field((14, 18))
    assert torch.equal(integrate(velocity), integrate(velocity, 7))
    assert torch.equal(integrate(velocity), integrate(velocity, steps=7))


# ------------------------------------------------------------------------------ resize and smooth

RESIZES = [((7, 11), (13, 6)), ((7, 11), (7, 11)), ((5, 8, 6), (9, 4, 11)), ((6, 5), (2, 2))]


@pytest.mark.parametrize(("old", "new"), RESIZES)
def test_resized_images_keep_their_corners_and_agree_with_scipy(old, new):
    image = rand(2, 3, *old)
    resized = resize_image(image, new)
    corners = np.ix_(*([0, -1] for _ in old))
    torch.testing.assert_close(resized[(..., *corners)], image[(..., *corners)])
    axes = [np.linspace(0, n - 1, m) for n, m in zip(old, new, strict=True)]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    for b, c in np.ndindex(2, 3):
        expected = scipy.ndimage.map_coordinates(image[b, c].numpy(), where, order=1)
        np.testing.assert_allclose(resized[b, c].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), RESIZES)
def test_an_affine_field_resized_is_the_affine_field_of_the_new_size(old, new):
    n = len(old)
    matrix = matrices(n)
    resized = resize_displacement(affine_displacement(matrix, old), new)
    ratio = torch.tensor([(b - 1) / (a - 1) for a, b in zip(old, new, strict=True)]).double()
    linear = torch.diag(ratio) @ matrix[:, :, :n] @ torch.diag(1 / ratio)
    shift = ratio.view(1, n, 1) * matrix[:, :, n:]
    torch.testing.assert_close(resized, affine_displacement(torch.cat([linear, shift], 2), new))


def test_resizing_scales_each_component_by_its_own_axis():
    field = torch.ones(1, 2, 5, 9)
    resized = resize_displacement(field, (9, 3))
    assert torch.equal(resized[0, 0], torch.full((9, 3), 2.0))
    assert torch.equal(resized[0, 1], torch.full((9, 3), 0.25))


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_a_field_survives_the_way_to_a_finer_grid_and_back(shape):
    field = smooth_field(shape)
    finer = resize_displacement(field, tuple(2 * n - 1 for n in shape))
    torch.testing.assert_close(resize_displacement(finer, shape), field)


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.7])
def test_smooth_agrees_with_scipy(shape, sigma):
    image = rand(2, 2, *shape)
    radius = int(np.ceil(3 * sigma))
    axes = tuple(range(2, 2 + len(shape)))
    expected = scipy.ndimage.gaussian_filter(
        image.numpy(), sigma, axes=axes, mode="nearest", radius=radius
    )
    np.testing.assert_allclose(smooth(image, sigma).numpy(), expected, atol=1e-12)


def test_smooth_keeps_constants_and_by_zero_everything():
    constant = torch.full((2, 1, 6, 9), 0.3, dtype=torch.float64)
    torch.testing.assert_close(smooth(constant, 5.0), constant)
    image = rand(2, 1, 6, 9)
    assert torch.equal(smooth(image, 0), image)
    assert smooth(image.half(), 1.0).dtype == torch.float16


# ---------------------------------------------------------------------------- affine and jacobian


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_field_is_the_formula(shape):
    n = len(shape)
    matrix = matrices(n)
    center = (np.array(shape) - 1) / 2
    field = affine_displacement(matrix, shape)
    for b in range(2):
        linear, shift = matrix[b, :, :n].numpy(), matrix[b, :, n].numpy()
        for x in np.ndindex(shape):
            expected = linear @ (x - center) + shift + center - x
            np.testing.assert_allclose(field[(b, slice(None), *x)].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_gives_zero_and_the_center_moves_by_the_shift(shape):
    n = len(shape)
    identity = torch.eye(n, n + 1)[None]
    assert torch.equal(affine_displacement(identity, shape), torch.zeros(1, n, *shape))
    odd = tuple(m + 1 - m % 2 for m in shape)
    matrix = matrices(n)
    at_center = affine_displacement(matrix, odd)[(..., *(m // 2 for m in odd))]
    torch.testing.assert_close(at_center, matrix[:, :, n])


def test_affine_field_has_the_right_gradient_and_dtype():
    matrix = matrices(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: affine_displacement(m, (3, 4)), (matrix,))
    assert affine_displacement(matrix.detach().half(), (3, 4)).dtype == torch.float16


@pytest.mark.parametrize("shape", SHAPES)
def test_jacobian_of_an_affine_map_is_its_matrix_up_to_the_border(shape):
    n = len(shape)
    matrix = matrices(n)
    field = affine_displacement(matrix, shape)
    expected = matrix[:, :, :n].reshape(2, n, n, *(1,) * n).expand(2, n, n, *shape)
    torch.testing.assert_close(jacobian(field), expected)
    determinant = torch.linalg.det(matrix[:, :, :n]).view(2, *(1,) * n).expand(2, *shape)
    torch.testing.assert_close(jacobian_determinant(field), determinant)


@pytest.mark.parametrize("shape", SHAPES)
def test_jacobian_is_numpy_gradient_plus_identity(shape):
    field = rand(2, len(shape), *shape)
    ours = jacobian(field)
    for b in range(2):
        for a in range(len(shape)):
            gradients = np.gradient(field[b, a].numpy())
            for axis, gradient in enumerate(gradients):
                expected = gradient + (a == axis)
                np.testing.assert_allclose(ours[b, a, axis].numpy(), expected, atol=1e-12)
    square = ours.movedim((1, 2), (-2, -1))
    torch.testing.assert_close(jacobian_determinant(field), torch.linalg.det(square))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("voxels", [1, 40, 150, 10**6])  # slabs of one plane, of some, of all
def test_the_determinant_is_the_same_in_slabs(shape, voxels, monkeypatch):
    field = 5 * smooth_field(shape)
    monkeypatch.setattr(spatial, "_VOXELS_AT_ONCE", voxels)
    square = jacobian(field).movedim((1, 2), (-2, -1))
    torch.testing.assert_close(jacobian_determinant(field), torch.linalg.det(square))


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_keeps_volume_and_a_mirror_is_a_fold(shape):
    n = len(shape)
    assert torch.equal(jacobian_determinant(torch.zeros(1, n, *shape)), torch.ones(1, *shape))
    mirror = torch.eye(n, n + 1, dtype=torch.float64)[None]
    mirror[0, 0, 0] = -1.5
    determinant = jacobian_determinant(affine_displacement(mirror, shape))
    torch.testing.assert_close(determinant, torch.full((1, *shape), -1.5).double())


def test_jacobian_has_the_right_gradient():
    field = rand(2, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(jacobian_determinant, (field,))


@pytest.mark.parametrize("far", [float("inf"), 1e19, 1e9, 50.0])
def test_nearest_far_outside_is_the_border_or_zero(far):
    image = torch.tensor([[1, 2, 3], [4, 5, 6]])[None, None]
    field = torch.zeros(1, 2, 2, 3)
    field[:, 1] = far
    assert warp(image, field, mode="nearest", padding="border")[0, 0].tolist() == [[3] * 3, [6] * 3]
    assert warp(image, -field, mode="nearest", padding="border")[0, 0].tolist() == [
        [1] * 3,
        [4] * 3,
    ]
    assert not warp(image, field, mode="nearest").any()


def test_nearest_marks_what_a_broken_field_lost_where_it_can():
    field = torch.zeros(1, 2, 2, 3)
    field[0, 0, 1, 2] = float("nan")
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])[None, None]
    assert warp(labels, field, mode="nearest")[0, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    warped = warp(labels.float(), field, mode="nearest")
    assert warped.isnan().sum() == 1 and warped[0, 0, 1, 2].isnan()


def test_resizing_takes_any_sequence_once():
    field = smooth_field((9, 8), 1, seed=1)
    expected = resize_displacement(field, (5, 12))
    torch.testing.assert_close(resize_displacement(field, (n for n in (5, 12))), expected)


# ---------------------------------------------------------------------------------------- invert


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_the_inverse_of_an_affine_field_is_that_of_the_inverse_matrix(shape):
    n = len(shape)
    matrix = matrices(n, 0.05, 1.0)
    square = torch.cat([matrix, torch.zeros(2, 1, n + 1).double()], dim=1)
    square[:, n, n] = 1
    exact = affine_displacement(torch.linalg.inv(square)[:, :n], shape)
    ours = invert(affine_displacement(matrix, shape), tolerance=1e-12, iterations=100)
    torch.testing.assert_close(interior(ours, 5), interior(exact, 5), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back_is_where_it_began(shape, dtype):
    field = smooth_field(shape, amplitude=2.5, sigma=4.0).to(dtype)
    inverse = invert(field)
    assert inverse.dtype == dtype
    assert compose(field, inverse).abs().max() <= 1e-3  # the promise, also at the border
    other_way = compose(inverse, field)  # of the interpolated inverse: not promised to the digit
    assert interior(other_way, 4).abs().max() < 0.1
    assert interior(compose(field, -field), 4).abs().max() > 0.2  # minus u would not do


@pytest.mark.parametrize("shape", SMOOTH_SHAPES)
def test_the_inverse_of_exp_v_is_exp_minus_v(shape):
    velocity = smooth_field(shape, amplitude=2.0, sigma=5.0)
    difference = invert(integrate(velocity)) - integrate(-velocity)
    assert interior(difference, 4).abs().max() < 0.03
    assert interior(integrate(velocity) + integrate(-velocity), 4).abs().max() > 0.01


def test_the_tolerance_and_the_iterations_are_kept():
    field = smooth_field(SMOOTH_SHAPES[0], amplitude=2.5)
    residuals = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        residuals.append(float(compose(field, invert(field, tolerance=tolerance)).abs().max()))
        assert residuals[-1] <= tolerance
    assert residuals[0] > 1e-3 > residuals[1] > 1e-6  # it stops, too
    assert torch.equal(invert(field, iterations=1), -field)
    assert torch.equal(invert(torch.zeros_like(field)), torch.zeros_like(field))


# At 1 whole steps go to and fro; above they fly apart: halves, quarters, eighths are needed.
@pytest.mark.parametrize("slope", [1.0, 1.5, 4.0, 10.0])
def test_halved_steps_invert_what_stretches_more_than_twofold(slope):
    # φ(x) = x + 1.5 (x − c): the slope of u is 1.5, and whole steps fly apart.
    stretch = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).double()
    field = affine_displacement((1 + slope) * stretch, (30, 34))
    inverse = invert(field)
    assert compose(field, inverse).abs().max() <= 1e-3
    expected = affine_displacement(stretch / (1 + slope), (30, 34))
    torch.testing.assert_close(inverse, expected, atol=1e-3, rtol=0)
    plain = -field
    for _ in range(50):
        plain = -warp(field, plain, padding="border")
    assert (plain + warp(field, plain, padding="border")).abs().max() > 1


def test_a_fold_has_no_inverse_and_the_residual_says_so():
    field = smooth_field(SMOOTH_SHAPES[0], batch=1, amplitude=14.0, sigma=4.0)
    assert jacobian_determinant(field).min() < 0
    inverse = invert(field)
    assert inverse.isfinite().all()
    assert compose(field, inverse).abs().max() > 0.1


def test_nobody_is_shortened_by_a_neighbor_in_the_batch():
    calm, wild = smooth_field((28, 36), 1, 1.5), smooth_field((28, 36), 1, 14.0, 4.0)
    alone, together = invert(calm, tolerance=1e-9), invert(torch.cat([calm, wild]), tolerance=1e-9)
    torch.testing.assert_close(together[:1], alone, atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 3)])
def test_the_inverse_has_the_right_gradient(shape):
    field = (0.3 * (rand(1, len(shape), *shape) - 0.5) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda u: invert(u, tolerance=1e-13, iterations=100), (field,), eps=1e-7, atol=1e-5
    )


def test_invert_works_where_nobody_can_look_at_values():
    fields = torch.stack([smooth_field((9, 8), 1, 0.8, seed=s) for s in (1, 2)])
    one_by_one = torch.stack([invert(u, tolerance=0.0) for u in fields])
    torch.testing.assert_close(torch.func.vmap(invert)(fields), one_by_one)
    slope = torch.func.grad(lambda u: invert(u).square().sum())(fields[0])
    assert slope.isfinite().all() and slope.abs().max() > 0
    assert invert(torch.empty(2, 2, 9, 8, device="meta")).device.type == "meta"


def test_half_fields_are_integrated_and_inverted_in_single_precision():
    field = smooth_field(SMOOTH_SHAPES[0], amplitude=2.5)
    for dtype in (torch.float16, torch.bfloat16):
        for function in (integrate, invert):
            ours, expected = function(field.to(dtype)), function(field.to(dtype).float())
            assert ours.dtype == dtype
            assert torch.equal(ours, expected.to(dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_jacobians_by_torch_func_are_finite_and_right(shape):
    field = 0.4 * (rand(1, len(shape), *(3,) * len(shape)) - 0.5) + 0.2
    for function in (lambda u: compose(u, u), jacobian_determinant, integrate):
        forward = torch.func.jacrev(function)(field)
        bump = 1e-6 * rand(*field.shape, seed=3)
        change = function(field + bump) - function(field - bump)
        along = (forward * bump).flatten(-field.ndim).sum(-1)
        torch.testing.assert_close(along, change / 2, atol=1e-10, rtol=1e-4)


def test_a_broken_place_has_no_gradient_and_harms_no_other():
    image = rand(1, 1, 7, 9).requires_grad_()
    field = smooth_field((7, 9), 1)
    field[0, 0, 3, 4] = float("nan")
    field.requires_grad_()
    for padding in PADDINGS:
        warped = warp(image, field, padding=padding)
        assert warped.isnan().sum() == 1
        (slope,) = torch.autograd.grad(warped[~warped.isnan()].sum(), field)
        assert slope.isfinite().all() and bool((slope[0, :, 3, 4] == 0).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_whole_shifts_are_exact_to_the_last_digits(shape, dtype, tolerance):
    image = rand(1, 1, *shape).to(dtype)
    for axis in range(len(shape)):
        field = torch.zeros(1, len(shape), *shape, dtype=dtype)
        field[:, axis] = 2
        shifted = warp(image, field).narrow(2 + axis, 0, shape[axis] - 2)
        expected = image.narrow(2 + axis, 2, shape[axis] - 2)
        torch.testing.assert_close(shifted, expected, atol=tolerance, rtol=0)

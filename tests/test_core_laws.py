"""Laws of floors 1 and 2 that hold for all inputs: symmetries of the grid, and closed forms.

The two symmetries find a swapped axis or a lost sign in any function: number the axes anew, or
turn one of them around, in all arguments, and the result is the old one, renumbered or turned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib import losses, metrics, spatial
from course_lib.io import load_displacement, load_nifti, save_displacement, save_nifti
from course_lib.spatial import (
    affine_displacement,
    compose,
    integrate,
    invert,
    jacobian_determinant,
    resize_displacement,
    resize_image,
    smooth,
    warp,
    warp_points,
)

SHAPES = {2: (12, 17), 3: (7, 12, 9)}
NEW = {2: (15, 8), 3: (9, 7, 14)}
SPACING = {2: (0.5, 2.0), 3: (0.5, 2.0, 3.0)}
lawful = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
dimensions = pytest.mark.parametrize("ndim", [2, 3])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_field(shape, amplitude: float, seed: int = 0, batch: int = 1, sigma=4.0) -> Tensor:
    """A smooth random field, ``amplitude`` voxels at most."""
    noise = np.random.default_rng(seed).standard_normal((batch, len(shape), *shape))
    blurred = scipy.ndimage.gaussian_filter(noise, (0, 0, *(sigma,) * len(shape)))
    return torch.from_numpy(blurred * (amplitude / np.abs(blurred).max()))


def inside(field: Tensor, margin: int) -> Tensor:
    return field[(..., *(slice(margin, -margin),) * (field.ndim - 2))]


def column(values, ndim: int) -> Tensor:
    """One number for each component of a field: ``(1, D, 1, 1(, 1))``."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, *(1,) * ndim)


def random_matrix(ndim: int, seed: int, strength: float = 0.1, shift: float = 1.0) -> Tensor:
    change = 2 * rand(1, ndim, ndim + 1, seed=seed) - 1
    change[:, :, :ndim] *= strength / ndim
    change[:, :, ndim:] *= shift
    return torch.eye(ndim, ndim + 1, dtype=torch.float64) + change


def squared(matrix: Tensor) -> Tensor:
    """``[A | t]`` with the row 0 … 0 1 below."""
    last = torch.zeros_like(matrix[:, :1])
    last[..., -1] = 1
    return torch.cat([matrix, last], dim=1)


# ----------------------------------------------------------------------------------- symmetries


class Renumbered:
    """The axes in another order: the last one first."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.order = [len(shape) - 1, *range(len(shape) - 1)]

    def sizes(self, values: tuple) -> tuple:
        return tuple(values[k] for k in self.order)

    def image(self, x: Tensor) -> Tensor:
        lead = x.ndim - len(self.order)
        return x.permute(*range(lead), *(lead + k for k in self.order))

    def field(self, u: Tensor) -> Tensor:
        return self.image(u)[:, self.order]

    def points(self, p: Tensor) -> Tensor:
        return p[..., self.order]

    def matrix(self, m: Tensor) -> Tensor:
        return m[:, self.order][:, :, [*self.order, len(self.order)]]

    def tensors(self, j: Tensor) -> Tensor:
        return self.image(j)[:, self.order][:, :, self.order]


class Turned:
    """The second axis counted from its other end."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.length, self.ndim = shape[1], len(shape)
        self.sign = torch.ones(self.ndim, dtype=torch.float64)
        self.sign[1] = -1

    def sizes(self, values: tuple) -> tuple:
        return values

    def image(self, x: Tensor) -> Tensor:
        return x.flip(x.ndim - self.ndim + 1)

    def field(self, u: Tensor) -> Tensor:
        return self.image(u) * self.sign.view(-1, *(1,) * self.ndim)

    def points(self, p: Tensor) -> Tensor:
        return torch.where(self.sign > 0, p, self.length - 1 - p)

    def matrix(self, m: Tensor) -> Tensor:
        columns = torch.cat([self.sign, torch.ones(1, dtype=torch.float64)])
        return m * self.sign.view(-1, 1) * columns

    def tensors(self, j: Tensor) -> Tensor:
        signs = self.sign.view(-1, 1) * self.sign
        return self.image(j) * signs.view(self.ndim, self.ndim, *(1,) * self.ndim)


def same(result: Tensor) -> Tensor:
    return result


# name -> (function of a symmetry that renumbers sizes, kinds of its arguments, kind of the result)
SYMMETRIC: dict[str, tuple[Callable, str, str]] = {
    "warp": (lambda s, n: warp, "image field", "image"),
    "warp border": (lambda s, n: partial(warp, padding="border"), "image field", "image"),
    "warp nearest": (lambda s, n: partial(warp, mode="nearest"), "image field", "image"),
    "warp_points": (lambda s, n: warp_points, "points field", "points"),
    "compose": (lambda s, n: compose, "field other", "field"),
    "integrate": (lambda s, n: integrate, "field", "field"),
    "invert": (lambda s, n: partial(invert, tolerance=0.0, iterations=9), "calm", "field"),
    "resize_image": (lambda s, n: partial(resize_image, shape=s(NEW[n])), "image", "image"),
    "resize_displacement": (
        lambda s, n: partial(resize_displacement, shape=s(NEW[n])),
        "field",
        "field",
    ),
    "smooth": (lambda s, n: partial(smooth, sigma=1.3), "image", "image"),
    "pyramid": (lambda s, n: partial(spatial.pyramid, factor=1.4), "image", "image"),
    "affine_displacement": (
        lambda s, n: partial(affine_displacement, shape=s(SHAPES[n])),
        "matrix",
        "field",
    ),
    "jacobian": (lambda s, n: spatial.jacobian, "field", "tensors"),
    "jacobian_determinant": (lambda s, n: jacobian_determinant, "field", "image"),
    "mse": (lambda s, n: losses.mse, "image fixed", "number"),
    "ncc": (lambda s, n: losses.ncc, "image fixed", "number"),
    "lncc": (lambda s, n: partial(losses.lncc, window=5), "image fixed", "number"),
    "lncc signed": (
        lambda s, n: lambda a, b, m: losses.lncc(a, b, 7, squared=False, mask=m),
        "image fixed mask",
        "number",
    ),
    "mutual_information": (lambda s, n: losses.mutual_information, "image fixed", "number"),
    "dice_loss": (lambda s, n: losses.dice_loss, "image fixed", "number"),
    "diffusion": (lambda s, n: losses.diffusion, "field", "number"),
    "bending_energy": (lambda s, n: losses.bending_energy, "field", "number"),
    "dice": (lambda s, n: metrics.dice, "labels other_labels", "number"),
    "hausdorff95": (
        lambda s, n: partial(metrics.hausdorff95, spacing=s(SPACING[n])),
        "labels other_labels",
        "number",
    ),
    "target_registration_error": (
        lambda s, n: partial(metrics.target_registration_error, spacing=s(SPACING[n])),
        "points other_points field",
        "number",
    ),
    "endpoint_error": (
        lambda s, n: lambda u, v, m: metrics.endpoint_error(u, v, s(SPACING[n]), m),
        "field other mask",
        "number",
    ),
    "folding_fraction": (lambda s, n: metrics.folding_fraction, "torn mask", "number"),
    "sdlogj": (lambda s, n: metrics.sdlogj, "field mask", "number"),
    "correlation": (lambda s, n: metrics.correlation, "image fixed", "number"),
}


def drawn(kind: str, ndim: int) -> Tensor:
    shape = SHAPES[ndim]
    extent = torch.tensor(shape, dtype=torch.float64) - 1
    match kind:
        case "image" | "fixed":
            return rand(2, 2, *shape) + (kind == "fixed") * rand(2, 2, *shape, seed=1)
        case "field" | "other" | "torn" | "calm":  # "calm" can be inverted
            strength = {"field": 3.0, "other": 2.0, "torn": 9.0, "calm": 0.4}[kind]
            return strength * (rand(2, ndim, *shape, seed=len(kind)) - 0.5)
        case "points" | "other_points":
            return (extent + 3) * rand(2, 6, ndim, seed=len(kind)) - 1.5  # some lie outside
        case "matrix":
            return torch.cat([random_matrix(ndim, seed) for seed in (1, 2)])
        case "mask":
            return rand(2, 1, *shape, seed=9)
    return (4 * rand(2, 1, *shape, seed=len(kind))).long()


def through(symmetry, kind: str) -> Callable[[Tensor], Tensor]:
    """How this kind of tensor is renumbered or turned."""
    if kind in ("number",):
        return same
    if kind in ("field", "other", "torn", "calm"):
        return symmetry.field
    if kind in ("points", "other_points"):
        return symmetry.points
    return {"matrix": symmetry.matrix, "tensors": symmetry.tensors}.get(kind, symmetry.image)


@dimensions
@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize("kind", [Renumbered, Turned])
def test_no_axis_and_no_direction_is_preferred(name, ndim, kind):
    make, kinds, result = SYMMETRIC[name]
    symmetry = kind(SHAPES[ndim])
    tensors = [drawn(k, ndim) for k in kinds.split()]
    changed = [through(symmetry, k)(x) for k, x in zip(kinds.split(), tensors, strict=True)]
    plain = make(same, ndim)(*tensors)
    expected = through(symmetry, result)(plain)
    found = make(symmetry.sizes, ndim)(*changed)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-7)
    if result != "number":  # there is something to see
        assert found.shape != plain.shape or not torch.allclose(found, plain)


def test_the_symmetries_have_every_function():
    public = {
        name
        for module in (spatial, losses, metrics)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
        and callable(value)
        and not name.startswith("_")
    }
    assert {name.split()[0] for name in SYMMETRIC} == public - {"identity_grid", "at_least_float32"}


# ----------------------------------------------------------------------------------------- warp


shapes = st.lists(st.integers(2, 9), min_size=2, max_size=3).map(tuple)
whole = st.lists(st.integers(-10, 10), min_size=3, max_size=3)


@given(shape=shapes, padding=st.sampled_from(["zeros", "border"]), seed=seeds)
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@lawful
def test_a_zero_field_changes_nothing(shape, padding, seed, dtype, digits, mode):
    image = rand(2, 2, *shape, seed=seed).to(dtype)
    still = torch.zeros(2, len(shape), *shape, dtype=dtype)
    warped = warp(image, still, mode=mode, padding=padding)
    torch.testing.assert_close(warped, image, atol=digits, rtol=0)


@given(shape=shapes, shift=whole, seed=seeds)
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@lawful
def test_whole_shifts_only_move_the_numbers(shape, shift, seed, dtype, digits, padding):
    image = rand(1, 2, *shape, seed=seed).to(dtype)
    field = column(shift[: len(shape)], len(shape)).to(dtype).expand(1, len(shape), *shape)
    warped = warp(image, field, padding=padding)
    places = [torch.arange(n) + s for n, s in zip(shape, shift, strict=False)]
    grid = torch.meshgrid(*places, indexing="ij")
    held = [g.clamp(0, n - 1) for g, n in zip(grid, shape, strict=True)]
    expected = image[(slice(None), slice(None), *held)]
    if padding == "zeros":
        for g, h in zip(grid, held, strict=True):
            expected = torch.where(g == h, expected, 0)
    torch.testing.assert_close(warped, expected, atol=digits, rtol=0)


@dimensions
@given(slope=whole, seed=seeds)
@lawful
def test_a_ramp_is_read_off_exactly_between_the_voxels(ndim, slope, seed):
    # image(x) = g · x, so warped(x) = g · (x + u(x)) wherever x + u(x) lies inside.
    shape = SHAPES[ndim]
    grid = spatial.identity_grid(shape, dtype=torch.float64)[None]
    g = column(slope[:ndim], ndim)
    field = 4 * rand(1, ndim, *shape, seed=seed) - 2
    landed = grid + field
    last = column([n - 1 for n in shape], ndim)
    hit = ((landed >= 0) & (landed <= last)).all(1, keepdim=True)
    warped = warp((g * grid).sum(1, keepdim=True), field)
    expected = (g * landed).sum(1, keepdim=True)
    torch.testing.assert_close(warped[hit], expected[hit], atol=1e-10, rtol=0)
    assert hit.double().mean() > 0.3


@dimensions
def test_the_better_of_two_dtypes_is_the_one_of_the_positions(ndim):
    # A float64 image stays float64 all the way, whatever the field is kept in, and the reverse.
    shape = SHAPES[ndim]
    image, field = rand(1, 1, *shape), (rand(1, ndim, *shape, seed=3) - 0.5).float()
    exact = warp(image, field.double())
    assert torch.equal(warp(image, field), exact)
    points = 3 * rand(1, 5, ndim)
    assert torch.equal(warp_points(points, field), warp_points(points, field.double()))
    other = rand(1, ndim, *shape, seed=4)
    assert torch.equal(warp(image.float(), other), warp(image.float().double(), other).float())
    assert compose(field, other).dtype == compose(other, field).dtype == torch.float64


@dimensions
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_place_pulls_at_nothing(ndim, padding, bad):
    # Not even where the NaN of the result itself is pulled at.
    shape, where = SHAPES[ndim], (3,) * ndim
    image = rand(1, 1, *shape).requires_grad_()
    field = 0.3 + 0.4 * rand(1, ndim, *shape, seed=2)
    field[(0, 1, *where)] = bad
    field.requires_grad_()
    warped = warp(image, field, padding=padding)
    by_image, by_field = torch.autograd.grad(warped[(0, 0, *where)], (image, field))
    assert by_field[(0, 1, *where)] == 0
    if padding == "zeros":  # lost in one direction, it is outside in all
        assert bool((by_field == 0).all() and (by_image == 0).all())


# ---------------------------------------------------------------------- compose, integrate, invert


ROOMY = {2: (26, 31), 3: (18, 23, 20)}


@dimensions
@given(seed=seeds, amplitude=st.floats(0.1, 2))
@lawful
def test_composition_is_associative_up_to_interpolation(ndim, seed, amplitude):
    a, b, c = (smooth_field(ROOMY[ndim], amplitude, seed + k, sigma=5.0) for k in range(3))
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    error = inside(left - right, 6).abs().max()
    assert error < 0.02 * amplitude**2  # of the field's bend between two voxels, and of how far
    assert error <= 0.2 * inside(left - compose(compose(b, a), c), 6).abs().max()


@dimensions
@given(first=seeds, second=seeds)
@lawful
def test_affine_fields_compose_and_invert_as_matrices_do(ndim, first, second):
    shape = ROOMY[ndim]
    a, b = random_matrix(ndim, first), random_matrix(ndim, second)
    fields = affine_displacement(a, shape), affine_displacement(b, shape)
    exact = affine_displacement((squared(a) @ squared(b))[:, :ndim], shape)
    torch.testing.assert_close(inside(compose(*fields), 4), inside(exact, 4))
    back = affine_displacement(torch.linalg.inv(squared(a))[:, :ndim], shape)
    torch.testing.assert_close(
        inside(invert(fields[0], tolerance=1e-11, iterations=100), 4), inside(back, 4)
    )


@dimensions
@given(seed=seeds, amplitude=st.floats(0.1, 2))
@lawful
def test_exp_v_and_exp_minus_v_undo_each_other(ndim, seed, amplitude):
    velocity = smooth_field(ROOMY[ndim], amplitude, seed, sigma=5.0)
    there, back = integrate(velocity), integrate(-velocity)
    for round_trip in (compose(there, back), compose(back, there)):
        assert inside(round_trip, 5).abs().max() < 0.02 * amplitude
    # Half the way twice is the whole way.
    half = integrate(velocity / 2, 6)
    torch.testing.assert_close(compose(half, half), there, atol=1e-12, rtol=0)


@dimensions
@given(seed=seeds)
@lawful
def test_a_linear_velocity_integrates_to_the_matrix_exponential(ndim, seed):
    # v(x) = L (x − c) + t: exp of [L t; 0 0], with a shift as well.
    shape = ROOMY[ndim]
    matrix = random_matrix(ndim, seed, strength=0.3)
    generator = squared(matrix)[0].numpy() - np.eye(ndim + 1)
    exact = torch.from_numpy(scipy.linalg.expm(generator))[None, :ndim]
    ours = integrate(affine_displacement(matrix, shape))
    difference = inside(ours - affine_displacement(exact, shape), 5).abs().max()
    assert difference < 0.02
    finer = integrate(affine_displacement(matrix, shape), 12)
    assert inside(finer - affine_displacement(exact, shape), 5).abs().max() < 1e-3


@dimensions
def test_integrate_is_where_the_points_flow(ndim):
    # Not by squaring: a solver follows each point through the interpolated velocity.
    shape = ROOMY[ndim]
    velocity = smooth_field(shape, 2.5, seed=3, sigma=4.0)
    starts = np.stack([g[::5] for g in np.indices(shape).reshape(ndim, -1)])

    def speed(_: float, places: np.ndarray) -> np.ndarray:
        where = places.reshape(ndim, -1)
        return np.concatenate(
            [
                scipy.ndimage.map_coordinates(v.numpy(), where, order=1, mode="nearest")
                for v in velocity[0]
            ]
        )

    flow = scipy.integrate.solve_ivp(speed, (0, 1), starts.ravel(), rtol=1e-4, atol=1e-4)
    expected = flow.y[:, -1].reshape(ndim, -1) - starts
    ours = integrate(velocity)[0].reshape(ndim, -1)[:, ::5].numpy()
    assert np.abs(ours - expected).max() < 0.05
    assert np.abs(velocity[0].reshape(ndim, -1)[:, ::5].numpy() - expected).max() > 0.2


@dimensions
@given(seed=seeds)
@lawful
def test_points_come_back_by_the_inverse(ndim, seed):
    shape = ROOMY[ndim]
    field = smooth_field(shape, 2.0, seed)
    points = 5 + (torch.tensor(shape) - 11) * rand(1, 12, ndim, seed=seed)
    back = warp_points(warp_points(points, field), invert(field, tolerance=1e-6))
    torch.testing.assert_close(back, points, atol=0.05, rtol=0)


# ----------------------------------------------------------------------------- resizing, smoothing


@given(old=shapes, sizes=st.lists(st.integers(2, 12), min_size=3, max_size=3), seed=seeds)
@lawful
def test_an_affine_field_resized_is_the_affine_field_of_the_new_size(old, sizes, seed):
    n, new = len(old), tuple(sizes[: len(old)])
    matrix = random_matrix(n, seed, strength=0.8, shift=3.0)
    factors = [(b - 1) / (a - 1) for a, b in zip(old, new, strict=True)]
    ratio = torch.tensor(factors, dtype=torch.float64)
    linear = ratio.view(n, 1) * matrix[:, :, :n] / ratio
    expected = affine_displacement(
        torch.cat([linear, ratio.view(n, 1) * matrix[:, :, n:]], dim=2), new
    )
    found = resize_displacement(affine_displacement(matrix, old), new)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@given(shape=shapes, seed=seeds)
@lawful
def test_resizing_to_the_same_shape_and_there_and_back_changes_nothing(shape, seed):
    field = rand(2, len(shape), *shape, seed=seed) - 0.5
    torch.testing.assert_close(resize_displacement(field, shape), field)
    finer = tuple(3 * (n - 1) + 1 for n in shape)  # old voxels stay on new ones
    torch.testing.assert_close(resize_displacement(resize_displacement(field, finer), shape), field)
    kept = resize_image(field, finer)
    assert kept.amin() >= field.amin() - 1e-12 and kept.amax() <= field.amax() + 1e-12


@given(shape=shapes, sigma=st.floats(0.05, 6), seed=seeds)
@lawful
def test_smoothing_averages(shape, sigma, seed):
    a, b = rand(1, 2, *shape, seed=seed), rand(1, 2, *shape, seed=seed + 1)
    blurred = smooth(a, sigma)
    assert blurred.amin() >= a.amin() - 1e-12 and blurred.amax() <= a.amax() + 1e-12
    torch.testing.assert_close(smooth(2 * a - 3 * b, sigma), 2 * blurred - 3 * smooth(b, sigma))
    torch.testing.assert_close(smooth(a + 5, sigma), blurred + 5)


def test_a_pyramid_rounds_to_the_nearest_size_and_stops_at_nine():
    image = rand(1, 1, 28, 25)
    assert spatial.pyramid(image, 1.5).shape == (1, 1, 19, 17)  # 18.7 and 16.7
    assert spatial.pyramid(image, 2.7).shape == (1, 1, 10, 9)  # 10.4 and 9.3
    assert spatial.pyramid(image[..., :5], 9).shape == (1, 1, 9, 5)


def test_smoothing_spreads_by_sigma_and_twice_by_pythagoras():
    image = torch.zeros(1, 1, 61, 45, dtype=torch.float64)
    image[0, 0, 30, 22] = 1
    i, j = spatial.identity_grid((61, 45), dtype=torch.float64)
    for sigmas in ((2.0,), (3.0, 4.0)):
        blurred = image
        for sigma in sigmas:
            blurred = smooth(blurred, sigma)
        variance = sum(sigma**2 for sigma in sigmas)
        assert blurred.sum().item() == pytest.approx(1)
        for offset in (i - 30, j - 22):  # the kernel ends at 3 sigma, and loses 3 percent
            found = (blurred * offset.square()).sum().item()
            assert found == pytest.approx(variance, rel=0.06)


# --------------------------------------------------------------------------------- Jacobian, losses


@dimensions
@given(shift=whole, first=seeds, second=seeds)
@lawful
def test_determinants_multiply_and_do_not_see_a_shift(ndim, shift, first, second):
    shape = ROOMY[ndim]
    field = rand(1, ndim, *shape, seed=first)
    moved = field + column(shift[:ndim], ndim)
    torch.testing.assert_close(jacobian_determinant(moved), jacobian_determinant(field))
    a, b = random_matrix(ndim, first, 0.5), random_matrix(ndim, second, 0.5)
    product = affine_displacement((squared(a) @ squared(b))[:, :ndim], shape)
    one, other = (jacobian_determinant(affine_displacement(m, shape)) for m in (a, b))
    torch.testing.assert_close(jacobian_determinant(product), one * other)


@dimensions
@given(seed=seeds, gain=st.floats(0.2, 30))
@lawful
def test_local_ncc_does_not_see_a_scale(ndim, seed, gain):
    # Without an offset not even zeros outside the image show.
    a, b = rand(2, 1, *SHAPES[ndim], seed=seed), rand(2, 1, *SHAPES[ndim], seed=seed + 1)
    for options in ({}, {"squared": False}):
        expected = losses.lncc(a, b, 5, **options).item()
        assert losses.lncc(gain * a, b, 5, **options).item() == pytest.approx(expected, abs=2e-3)
        assert losses.lncc(gain * a, gain * b, 5, **options).item() == pytest.approx(
            expected, abs=2e-3
        )
    assert losses.lncc(-gain * a, b, 5).item() == pytest.approx(
        losses.lncc(a, b, 5).item(), abs=2e-3
    )


@dimensions
@given(seed=seeds, bins=st.integers(2, 40))
@lawful
def test_mutual_information_does_not_see_an_inversion_and_is_most_with_itself(ndim, seed, bins):
    a, b = rand(1, 1, *SHAPES[ndim], seed=seed), rand(1, 1, *SHAPES[ndim], seed=seed + 1)
    value = losses.mutual_information(a, b, bins).item()
    assert losses.mutual_information(1 - a, b, bins).item() == pytest.approx(value, abs=1e-10)
    assert losses.mutual_information(a, -3 * b, bins).item() == pytest.approx(value, abs=1e-10)
    assert losses.mutual_information(a, a, bins).item() < value
    assert -np.log(bins) <= value <= 0


# ----------------------------------------------------------------------------------------- metrics


@dimensions
@given(seed=seeds)
@lawful
def test_dice_is_symmetric_and_only_asks_which_voxels_share_a_name(ndim, seed):
    a = (4 * rand(2, 1, *SHAPES[ndim], seed=seed)).long()
    b = torch.where(rand(2, 1, *SHAPES[ndim], seed=seed + 1) < 0.5, a, a.flip(2))
    found = metrics.dice(a, b)
    torch.testing.assert_close(metrics.dice(b, a), found)
    torch.testing.assert_close(metrics.dice(a, a), torch.ones(2, 3))
    names = torch.tensor([0, 70, 3000, 2])  # other names, in another order
    torch.testing.assert_close(metrics.dice(names[a], names[b], [70, 3000, 2]), found)
    torch.testing.assert_close(metrics.dice(names[a], names[b]), found[:, [2, 0, 1]])
    order = torch.randperm(a[0].numel(), generator=torch.Generator().manual_seed(seed))
    shuffled = [x.flatten(2)[..., order].view_as(x) for x in (a, b)]
    torch.testing.assert_close(metrics.dice(*shuffled), found)


@dimensions
@given(seed=seeds, scale=st.floats(0.1, 10))
@lawful
def test_hausdorff95_is_symmetric_scales_with_the_voxels_and_is_zero_for_itself(ndim, seed, scale):
    noise = smooth(rand(2, 1, *SHAPES[ndim], seed=seed), 1.5)
    a = (noise > noise.median()).long() + 2 * (noise > noise.quantile(0.9)).long()
    b = a.roll(1, dims=2)
    mm = SPACING[ndim]
    found = metrics.hausdorff95(a, b, mm)
    torch.testing.assert_close(metrics.hausdorff95(b, a, mm), found)
    torch.testing.assert_close(metrics.hausdorff95(a, b, [scale * s for s in mm]), scale * found)
    torch.testing.assert_close(metrics.hausdorff95(a, b, (1,) * ndim), metrics.hausdorff95(a, b))
    assert bool((metrics.hausdorff95(a, a, mm) == 0).all())


@dimensions
@given(seed=seeds, scale=st.floats(0.1, 10), shift=whole)
@lawful
def test_the_errors_are_distances(ndim, seed, scale, shift):
    shape, mm = SHAPES[ndim], SPACING[ndim]
    u, v, w = (rand(2, ndim, *shape, seed=seed + k) for k in range(3))
    found = metrics.endpoint_error(u, v, mm)
    torch.testing.assert_close(metrics.endpoint_error(v, u, mm), found)
    c = column(shift[:ndim], ndim)
    torch.testing.assert_close(metrics.endpoint_error(u + c, v + c, mm), found)
    torch.testing.assert_close(metrics.endpoint_error(scale * u, scale * v, mm), scale * found)
    assert bool(
        (found <= metrics.endpoint_error(u, w, mm) + metrics.endpoint_error(w, v, mm)).all()
    )
    p, q = (5 * rand(2, 4, ndim, seed=seed + k) for k in (3, 4))
    still = torch.zeros_like(u)
    miss = metrics.target_registration_error(p, q, still, mm)
    torch.testing.assert_close(miss, ((p - q) * torch.tensor(mm).double()).norm(dim=2))
    torch.testing.assert_close(metrics.target_registration_error(q, p, still, mm), miss)
    assert bool((metrics.target_registration_error(p, warp_points(p, u), u, mm) == 0).all())


@dimensions
@given(seed=seeds)
@lawful
def test_correlation_is_symmetric_bounded_and_minus_ncc(ndim, seed):
    a, b = rand(3, 2, *SHAPES[ndim], seed=seed), rand(3, 2, *SHAPES[ndim], seed=seed + 1)
    found = metrics.correlation(a, b)
    torch.testing.assert_close(metrics.correlation(b, a), found)
    assert bool((found.abs() < 1).all())
    torch.testing.assert_close(metrics.correlation(a, 2 - 5 * a), -torch.ones(3).double())
    assert losses.ncc(a, b).item() == pytest.approx(-found.mean().item(), abs=1e-7)


@dimensions
@given(seed=seeds)
@lawful
def test_folds_and_their_spread_do_not_see_a_shift(ndim, seed):
    field = 4 * rand(2, ndim, *SHAPES[ndim], seed=seed)
    mask = rand(2, 1, *SHAPES[ndim], seed=seed + 1)
    for metric in (metrics.folding_fraction, metrics.sdlogj):
        found = metric(field, mask)
        torch.testing.assert_close(metric(field + 7, mask), found)
        torch.testing.assert_close(metric(field, 3 * mask), found)  # weights, not counts
        assert bool((found > 0).all())
    assert bool((metrics.folding_fraction(field) < 1).all())


# ------------------------------------------------------------------------------------------- files


def random_affine(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    affine = np.eye(4)
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    affine[:3, :3] = rotation * generator.uniform(0.3, 4, 3)
    affine[:3, 3] = generator.uniform(-200, 200, 3)
    return affine


@given(shape=shapes, seed=seeds, suffix=st.sampled_from([".nii", ".nii.gz"]))
@lawful
def test_every_image_comes_back_with_its_place(shape, seed, suffix):
    image, affine = rand(1, 1, *shape, seed=seed).float(), random_affine(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        save_nifti(path, image, affine)
        volume = load_nifti(path)
    assert torch.equal(volume.image, image)
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6, atol=1e-5)
    lengths = np.linalg.norm(affine[:3, : len(shape)], axis=0)
    np.testing.assert_allclose(volume.spacing, lengths, rtol=1e-6)


@given(shape=st.tuples(*(st.integers(2, 6),) * 3), seed=seeds)
@lawful
def test_every_field_comes_back_between_any_two_grids(shape, seed):
    field = 8 * rand(1, 3, *shape, seed=seed) - 4
    fixed, moving = random_affine(seed), random_affine(seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "u.nii"
        save_displacement(path, field, fixed, moving)
        loaded = load_displacement(path, moving)
    torch.testing.assert_close(loaded.displacement.double(), field, atol=2e-3, rtol=0)
    np.testing.assert_allclose(loaded.affine, fixed, rtol=1e-6, atol=1e-5)

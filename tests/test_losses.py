"""Laws of the losses, against NumPy loops. Peers are in test_losses_peers.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib.losses import (
    bending_energy,
    dice_loss,
    diffusion,
    lncc,
    mse,
    mutual_information,
    ncc,
)
from course_lib.metrics import dice
from course_lib.spatial import affine_displacement, smooth

SHAPES = [(10, 13), (9, 11, 10)]
lawful = settings(max_examples=25, deadline=None, derandomize=True)


def images(shape, batch=2, channels=1, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor]:
    """Two textured images that agree in part, another pair for each item of the batch."""
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.rand((2, batch, channels, *shape), generator=generator, dtype=torch.float64)
    return a.to(dtype), (0.6 * a + 0.4 * noise).to(dtype)


def loop_lncc(a: Tensor, b: Tensor, window: int, squared: bool = True) -> np.ndarray:
    """The formula, window by window: zeros outside, means by the full window."""
    radius = window // 2
    shape = a.shape[2:]
    size = window ** len(shape)
    margins = [(0, 0), (0, 0)] + [(radius, radius)] * len(shape)
    x, y = (np.pad(t.double().numpy(), margins) for t in (a, b))
    result = np.empty(a.shape)
    for item in np.ndindex(*a.shape[:2]):
        for center in np.ndindex(*shape):
            cut = (*item, *(slice(i, i + window) for i in center))
            p, q = x[cut], y[cut]
            cross = (p * q).sum() - p.sum() * q.sum() / size
            variances = ((p * p).sum() - p.sum() ** 2 / size) * (
                (q * q).sum() - q.sum() ** 2 / size
            )
            if squared:
                result[(*item, *center)] = cross**2 / (variances + 1e-5)
            else:
                result[(*item, *center)] = cross / np.sqrt(variances + 1e-5)
    return result


def inner_mask(image: Tensor, margin: int) -> Tensor:
    mask = torch.zeros(image.shape[0], 1, *image.shape[2:], dtype=torch.bool)
    mask[(..., *(slice(margin, -margin),) * (image.ndim - 2))] = True
    return mask


# ----------------------------------------------------------------------------------------- mse


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_the_mean_over_everything(shape):
    a, b = images(shape, channels=2)
    assert mse(a, b).item() == pytest.approx(np.mean((a.numpy() - b.numpy()) ** 2))
    assert mse(a, a) == 0 and mse(a, b) == mse(b, a)
    assert mse(a, a + 0.5).item() == pytest.approx(0.25)  # neither a sum nor a root


# ----------------------------------------------------------------------------------------- ncc


@pytest.mark.parametrize("shape", SHAPES)
def test_ncc_is_minus_the_mean_of_numpys_correlations(shape):
    a, b = images(shape, batch=3, channels=2)
    b[1] *= 40  # batch items of other brightness: each counts by itself, and equally
    b[2] = -a[2]
    r = [np.corrcoef(a[i].numpy().ravel(), b[i].numpy().ravel())[0, 1] for i in range(3)]
    assert ncc(a, b).item() == pytest.approx(-np.mean(r), abs=1e-7)
    assert ncc(a, b).item() == pytest.approx(ncc(b, a).item())


@given(gain=st.floats(0.1, 50), offset=st.floats(-5, 5))
@lawful
def test_ncc_does_not_see_a_gain_and_an_offset(gain, offset):
    a, b = images((10, 13))
    assert ncc(gain * a + offset, b).item() == pytest.approx(ncc(a, b).item(), abs=1e-5)
    assert ncc(gain * a + offset, a).item() == pytest.approx(-1, abs=1e-5)
    assert ncc(-gain * a + offset, a).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ncc_of_a_constant_image_is_zero_and_has_a_finite_gradient(dtype):
    constant = torch.full((2, 1, 8, 9), 0.7, dtype=dtype).requires_grad_()
    loss = ncc(constant, images((8, 9), dtype=dtype)[0])
    assert loss.item() == pytest.approx(0, abs=1e-3)
    loss.backward()
    assert bool(constant.grad.isfinite().all())


# ---------------------------------------------------------------------------------------- lncc


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [3, 5, 9])
def test_lncc_is_the_formula_in_every_window(shape, window):
    if len(shape) == 3 and window == 5:
        pytest.skip("two windows are enough for the slow loop in 3D")
    a, b = images(shape, channels=2 if len(shape) == 2 else 1)
    expected = loop_lncc(a, b, window)
    assert lncc(a, b, window).item() == pytest.approx(-expected.mean(), abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_unsquared_lncc_is_the_formula_too_and_knows_the_sign(shape):
    a, b = images(shape)
    b[1] = 1 - b[1]
    expected = loop_lncc(a, b, 5, squared=False)
    assert lncc(a, b, 5, squared=False).item() == pytest.approx(-expected.mean(), abs=1e-9)
    mask = inner_mask(a, 3)
    assert lncc(a, 1 - a, 5, squared=False, mask=mask).item() == pytest.approx(1, abs=1e-3)
    assert lncc(a, 1 - a, 5, mask=mask).item() == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_lncc_takes_nine_voxels_and_squares_unless_told(shape):
    a, b = images(shape)
    assert lncc(a, b) == lncc(a, b, 9) == lncc(a, b, window=9, squared=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_lncc_is_the_mean_over_items_and_channels(shape):
    a, b = images(shape, batch=3, channels=2)
    one_by_one = [
        lncc(a[i : i + 1, c : c + 1], b[i : i + 1, c : c + 1], 5) for i in range(3) for c in (0, 1)
    ]
    assert lncc(a, b, 5).item() == pytest.approx(torch.stack(one_by_one).mean().item())


@pytest.mark.parametrize("shape", SHAPES)
def test_lncc_is_the_mean_under_the_mask(shape):
    a, b = images(shape, channels=2)
    generator = torch.Generator().manual_seed(4)
    weights = torch.rand((2, 1, *shape), generator=generator, dtype=torch.float64)
    cc = loop_lncc(a, b, 5)
    for mask in (weights, weights > 0.7, (weights > 0.7).long()):
        w = np.broadcast_to(mask.double().numpy(), cc.shape)
        expected = -(cc * w).sum() / w.sum()
        assert lncc(a, b, 5, mask=mask).item() == pytest.approx(expected, abs=1e-9)
    everything = torch.ones(2, 1, *shape)
    assert lncc(a, b, 5, mask=everything).item() == pytest.approx(lncc(a, b, 5).item())


@pytest.mark.parametrize("shape", SHAPES)
@given(gain=st.floats(0.5, 20), offset=st.floats(-2, 2))
@lawful
def test_lncc_of_interior_windows_does_not_see_a_gain_and_an_offset(shape, gain, offset):
    a, b = images(shape)
    mask = inner_mask(a, 2)
    expected = lncc(a, b, 5, mask=mask).item()
    assert lncc(gain * a + offset, b, 5, mask=mask).item() == pytest.approx(expected, abs=1e-3)


def test_lncc_sees_what_a_local_gain_hides_from_ncc():
    a, _ = images((24, 28))
    ramp = torch.linspace(0.2, 3, 28).double()
    assert lncc(a * ramp, a, 5, mask=inner_mask(a, 2)).item() < -0.85
    assert ncc(a * ramp, a).item() > -0.75


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 10_000), flat=st.floats(0, 1))
@lawful
def test_lncc_stays_in_its_range_and_is_symmetric(shape, seed, flat):
    a, b = images(shape, dtype=torch.float32, seed=seed)
    a[..., : shape[-1] // 2] = flat  # windows without variance: rounding must not win
    value = lncc(a, b).item()
    assert -1 <= value <= 0
    assert value == pytest.approx(lncc(b, a).item(), abs=1e-6)
    assert value == pytest.approx(lncc(a.double(), b.double()).item(), abs=1e-4)
    assert -1 <= lncc(a, b, squared=False).item() <= 1


def test_lncc_of_a_constant_image_is_zero_with_a_finite_gradient():
    _, b = images((12, 12), dtype=torch.float32)
    for squared in (True, False):
        flat = torch.full_like(b, 0.3).requires_grad_()
        loss = lncc(flat, b, squared=squared, mask=inner_mask(b, 5))
        assert loss.item() == pytest.approx(0, abs=1e-3)
        loss.backward()
        assert bool(flat.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("squared", [True, False])
def test_losses_of_half_images_are_those_of_the_same_values(dtype, shape, squared):
    # Window sums of squares cancel: in half precision nothing would be left of the variance.
    a, b = (smooth(x, 1).to(dtype) for x in images(shape))
    pairs = [
        (lncc(a, b, squared=squared), lncc(a.double(), b.double(), squared=squared)),
        (ncc(a, b), ncc(a.double(), b.double())),
        (mse(a, b), mse(a.double(), b.double())),
    ]
    for half, double in pairs:
        assert half.item() == pytest.approx(double.item(), abs=6e-3)


# ----------------------------------------------------------------------------------- diffusion


@pytest.mark.parametrize("shape", SHAPES)
def test_diffusion_is_the_mean_squared_forward_difference(shape):
    field = torch.rand(2, len(shape), *shape, generator=torch.Generator().manual_seed(1)).double()
    per_axis = [np.mean(np.diff(field.numpy(), axis=2 + d) ** 2) for d in range(len(shape))]
    assert diffusion(field).item() == pytest.approx(np.mean(per_axis))


@pytest.mark.parametrize("shape", SHAPES)
@given(constant=st.floats(-100, 100))
@lawful
def test_diffusion_of_a_constant_is_zero_and_added_constants_do_not_count(shape, constant):
    still = torch.full((1, len(shape), *shape), constant, dtype=torch.float64)
    assert diffusion(still) == 0
    field = torch.rand(1, len(shape), *shape, generator=torch.Generator().manual_seed(2)).double()
    assert diffusion(field + still).item() == pytest.approx(diffusion(field).item())
    assert diffusion(3 * field).item() == pytest.approx(9 * diffusion(field).item())


@pytest.mark.parametrize("shape", SHAPES)
def test_diffusion_of_an_affine_field_is_the_mean_square_of_its_matrix(shape):
    n = len(shape)
    change = torch.tensor([[0.2, -0.1, 0.3], [0.0, 0.4, 0.1], [-0.2, 0.1, 0.5]]).double()[:n, :n]
    matrix = torch.cat([torch.eye(n).double() + change, torch.ones(n, 1).double()], 1)[None]
    field = affine_displacement(matrix, shape)
    assert diffusion(field).item() == pytest.approx(change.square().mean().item())


def test_diffusion_sees_a_checkerboard_as_central_differences_do_not():
    board = (torch.arange(8).view(-1, 1) + torch.arange(9)).remainder(2).double()
    field = board.expand(1, 2, 8, 9)
    assert diffusion(field) == 1


# -------------------------------------------------------------------------- mutual information


def loop_information(a: np.ndarray, b: np.ndarray, bins: int) -> float:
    """One pair of images, voxel by voxel: shared between two bins on each axis."""
    x, y = ((t - t.min()) / (t.max() - t.min()) * (bins - 1) for t in (a.ravel(), b.ravel()))
    p = np.zeros((bins + 1, bins + 1))
    for u, v in zip(x, y, strict=True):
        i, j = int(u), int(v)
        for di, wi in ((0, 1 - (u - i)), (1, u - i)):
            for dj, wj in ((0, 1 - (v - j)), (1, v - j)):
                p[i + di, j + dj] += wi * wj / x.size
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    return float((p[p > 0] * np.log(p[p > 0] / independent[p > 0])).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bins", [2, 7, 32])
def test_mutual_information_is_the_mean_of_each_channels_own(shape, bins):
    a, b = images(shape, channels=2)
    a[1] = 40 * a[1] - 3  # another range for each item: its own bins
    each = [loop_information(a[i, c].numpy(), b[i, c].numpy(), bins) for i, c in np.ndindex(2, 2)]
    assert mutual_information(a, b, bins).item() == pytest.approx(-np.mean(each), abs=1e-9)
    assert np.std(each) > 1e-5  # so that a mean over something else would show


def test_mutual_information_takes_32_bins_unless_told():
    a, b = images((10, 13))
    assert mutual_information(a, b) == mutual_information(a, b, bins=32)


@pytest.mark.parametrize("shape", SHAPES)
@given(gain=st.floats(0.01, 100), offset=st.floats(-5, 5), seed=st.integers(0, 1000))
@lawful
def test_mutual_information_sees_no_gain_no_offset_no_inversion_no_order(shape, gain, offset, seed):
    a, b = images(shape, seed=seed)
    value = mutual_information(a, b).item()
    assert -np.log(32) < value < 0
    assert mutual_information(gain * a + offset, b).item() == pytest.approx(value, abs=1e-8)
    assert mutual_information(a, offset - gain * b).item() == pytest.approx(value, abs=1e-8)
    assert mutual_information(b, a).item() == pytest.approx(value, abs=1e-12)
    # The order of the voxels does not matter, as long as both images keep the same.
    order = torch.randperm(a[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
    shuffled = (x.flatten(2)[..., order].view_as(x) for x in (a, b))
    assert mutual_information(*shuffled).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("shape, bins", [((64, 80), 32), ((64, 80), 8), ((24, 20, 28), 16)])
def test_independent_noise_has_almost_no_information(shape, bins):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 8, 1, *shape, generator=generator, dtype=torch.float64)
    bound = (bins - 1) ** 2 / (2 * a[0].numel())  # of bins without sharing
    assert 0.1 * bound < -mutual_information(a, b, bins).item() < bound
    assert mutual_information(a, a, bins).item() < -0.5 * np.log(bins)


def test_a_remapped_contrast_keeps_its_information_and_blurred_bins_lose_some():
    # Any one-to-one map of two intensities is a gain and an offset: full information, log 2.
    a = (images((16, 18))[0] > 0.5).double()
    assert mutual_information(a, 1 - 3 * a).item() == pytest.approx(_two_values(a), abs=1e-9)
    # Three tissues whose order is exchanged, as from T1 to T2: correlation is low, information not.
    tissues = (3 * images((40, 44), batch=1)[0]).floor() / 2  # 0, 0.5 and 1
    other = torch.tensor([0.5, 1.0, 0.0]).double()[(2 * tissues).long()]
    assert mutual_information(tissues, other, 31).item() == pytest.approx(
        mutual_information(tissues, tissues, 31).item(), abs=1e-9
    )
    assert ncc(tissues, other).item() > -0.6


def _two_values(a: Tensor) -> float:
    """Minus the entropy of images of zeros and ones, averaged over the batch."""
    p = a.flatten(1).mean(1)
    return float((p * p.log() + (1 - p) * (1 - p).log()).mean())


@pytest.mark.parametrize("shape", [(7, 9), (5, 4, 6)])
def test_mutual_information_has_the_right_gradient_to_both_images(shape):
    # The range has no gradient, on purpose: the darkest and the brightest voxel are held still.
    a, b = (0.1 + 0.8 * x.flatten(2)[..., 2:] for x in images(shape, channels=2))
    ends = torch.tensor([0.0, 1.0]).double().expand(2, 2, 2)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        x, y = (torch.cat([ends, t], dim=2).view(2, 2, *shape) for t in (x, y))
        return mutual_information(x, y, 5)

    assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))
    assert torch.autograd.gradgradcheck(loss, (a, b))  # the second derivative comes for free


def test_the_range_has_no_gradient_of_its_own():
    # Were it to count, two voxels would be pulled at thousands of times as hard as the others.
    a, b = (smooth(x, 1) for x in images((40, 44), batch=1))
    a.requires_grad_()
    mutual_information(a, b).backward()
    ends = torch.stack([a.grad.flatten()[a.argmin()], a.grad.flatten()[a.argmax()]]).abs()
    assert ends.max() < 50 * a.grad.abs().median()


def test_mutual_information_falls_along_its_gradient():
    a, b = (smooth(x, 1) for x in images((40, 44)))
    before = mutual_information(a, b)
    a = a.requires_grad_()
    (slope,) = torch.autograd.grad(mutual_information(a, b), a)
    inner = (a > a.amin((2, 3), True)) & (a < a.amax((2, 3), True))
    step = 1e-3 * slope * inner / slope.abs().max()
    assert mutual_information(a - step, b) < before < mutual_information(a + step, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_constant_image_says_nothing_and_gets_no_gradient(dtype):
    _, b = images((8, 9), dtype=dtype)
    for value in (0.7, 0.0, -1000.0):
        constant = torch.full_like(b, value).requires_grad_()
        loss = mutual_information(constant, b)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        loss.backward()
        assert torch.equal(constant.grad, torch.zeros_like(constant))


def test_the_tiniest_range_and_the_largest_are_finite():
    a, b = images((8, 9), dtype=torch.float32)
    expected = mutual_information(a, b).item()
    for scale, value in ((1e-30, expected), (1e30, expected), (1e-41, 0.0)):
        leaf = (scale * a).requires_grad_()
        loss = mutual_information(leaf, b)
        assert loss.item() == pytest.approx(value, abs=1e-4)
        loss.backward()
        assert bool(leaf.grad.isfinite().all())


def test_a_bin_that_holds_millions_still_counts_each_voxel():
    # In float32, a sum of 3e7 no longer feels another 1: half the background would be lost.
    a = torch.zeros(1, 1, 6000, 6000)
    a[0, 0, :20] = 1.0
    p = 20 / 6000
    assert mutual_information(a, a, 2).item() == pytest.approx(
        p * np.log(p) + (1 - p) * np.log(1 - p), rel=1e-5
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_mutual_information_of_a_broken_image_is_nan(value):
    for which in (0, 1):
        pair = [x.clone() for x in images((8, 9), dtype=torch.float32)]
        pair[which][1, 0, 3, 4] = value
        assert bool(mutual_information(*pair).isnan())
        x, y = (t.clone().requires_grad_() for t in pair)
        mutual_information(x, y).backward()
        assert bool(x.grad[1].isnan().any() or y.grad[1].isnan().any())


# -------------------------------------------------------------------------------------- dice loss


def one_hot(labels: Tensor, values: list[int]) -> Tensor:
    return torch.cat([labels == value for value in values], dim=1).double()


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_loss_of_labels_is_one_minus_the_mean_dice_that_is_reported(shape):
    a, b = ((4 * x).long() for x in images(shape))
    a[0][a[0] == 3] = 0  # absent in one item of one image: counts as 0 overlap
    a[1][a[1] == 2], b[1][b[1] == 2] = 0, 0  # absent in both: counts for nothing
    values = [1, 2, 3, 9]
    reported = dice(a, b, values).numpy()
    assert np.isnan(reported).sum() == 3 and (reported == 0).sum() == 1
    for x, y in ((a, b), (b, a)):  # absent in the warped image, or in the fixed one
        loss = dice_loss(one_hot(x, values), one_hot(y, values))
        assert loss.item() == pytest.approx(1 - np.nanmean(reported))


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_loss_of_soft_maps_is_the_formula(shape):
    a, b = (x.numpy() for x in images(shape, channels=3))
    axes = tuple(range(2, a.ndim))
    overlap = 2 * (a * b).sum(axes) / ((a**2).sum(axes) + (b**2).sum(axes))
    found = dice_loss(torch.from_numpy(a), torch.from_numpy(b))
    assert found.item() == pytest.approx(1 - overlap.mean())


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 1))
@lawful
def test_dice_loss_is_symmetric_in_its_range_and_zero_where_equal(shape, seed, scale):
    a, b = images(shape, channels=3, seed=seed)
    assert 0 < dice_loss(a, b) < 1
    assert dice_loss(a, b).item() == pytest.approx(dice_loss(b, a).item(), abs=1e-12)
    assert dice_loss(a, a).item() == pytest.approx(0, abs=1e-12)  # soft maps too
    assert dice_loss(scale * a, scale * b).item() == pytest.approx(dice_loss(a, b).item())
    apart = (a > 0.5).double()
    assert dice_loss(apart, 1 - apart) == 1


def test_where_nothing_is_there_dice_loss_is_zero_and_its_gradient_finite():
    nothing = torch.zeros(2, 3, 8, 9).requires_grad_()
    loss = dice_loss(nothing, torch.zeros(2, 3, 8, 9))
    assert loss == 0
    loss.backward()
    assert torch.equal(nothing.grad, torch.zeros_like(nothing))
    # The moving structure is absent: the loss pulls it toward the fixed one.
    fixed = torch.zeros(2, 3, 8, 9)
    fixed[..., 2:5, 3:6] = 1
    nothing.grad = None
    dice_loss(nothing, fixed).backward()
    assert bool((nothing.grad[fixed == 1] < 0).all() and (nothing.grad[fixed == 0] == 0).all())


def test_a_nan_in_a_map_shows_even_if_the_other_map_is_empty():
    maps, empty = torch.zeros(1, 2, 8, 9), torch.zeros(1, 2, 8, 9)
    maps[0, 1, 2, 2] = float("nan")
    assert bool(dice_loss(maps, empty).isnan() and dice_loss(empty, maps).isnan())


# ---------------------------------------------------------------------------------- bending energy


def loop_bending(u: np.ndarray) -> float:
    """The formula, voxel by voxel, inside."""
    n = u.ndim - 2
    inner = [range(1, size - 1) for size in u.shape[2:]]
    total, count = 0.0, 0
    unit = np.eye(n, dtype=int)
    for item in np.ndindex(*u.shape[:2]):
        for i in np.ndindex(*(len(r) for r in inner)):
            x = np.array(i) + 1
            at = lambda y, item=item: u[(*item, *y)]  # noqa: E731
            for a, b in np.ndindex(n, n):
                p, q = unit[a], unit[b]
                if a == b:
                    second = at(x + p) - 2 * at(x) + at(x - p)
                else:
                    second = at(x + p + q) - at(x + p - q) - at(x - p + q) + at(x - p - q)
                    second /= 4
                total += second**2
            count += 1
    return total / count


@pytest.mark.parametrize("shape", [(5, 8), (4, 6, 5), (3, 3), (3, 4, 3)])
def test_bending_energy_is_the_formula_inside(shape):
    generator = torch.Generator().manual_seed(1)
    field = torch.rand(2, len(shape), *shape, generator=generator, dtype=torch.float64)
    field = field * torch.tensor([1.0, 2.0, 4.0]).double()[: len(shape)].view(
        -1, *(1,) * len(shape)
    )
    assert bending_energy(field).item() == pytest.approx(loop_bending(field.numpy()))


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 1000))
@lawful
def test_bending_energy_does_not_see_an_affine_field_and_diffusion_does(shape, seed):
    n = len(shape)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(1, n, n + 1, generator=generator, dtype=torch.float64)
    affine = affine_displacement(matrix, shape)
    field = torch.rand(1, n, *shape, generator=generator, dtype=torch.float64)
    assert bending_energy(affine).item() == pytest.approx(0, abs=1e-20)
    assert diffusion(affine) > 0.01
    bent = bending_energy(field).item()
    assert bending_energy(field + affine).item() == pytest.approx(bent)
    assert bending_energy(-3 * field).item() == pytest.approx(9 * bent)


def test_bending_energy_of_parabolas_is_known():
    x, y = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    field = torch.stack([1.5 * x * x, x * y])[None].double()
    # ∂²/∂x² of 1.5 x² is 3; the mixed derivative of xy is 1, and counts twice; two components.
    assert bending_energy(field).item() == pytest.approx((9 + 2 * 1) / 2)


# -------------------------------------------------------------------------------- all of them


SIMILARITIES = [mse, ncc, lncc, mutual_information, dice_loss]
SMOOTHNESS = [diffusion, bending_energy]


@pytest.mark.parametrize("loss", SIMILARITIES + SMOOTHNESS)
def test_a_nan_shows_in_every_loss(loss):
    a, b = images((12, 11), channels=2, dtype=torch.float32)
    a[1, 1, 5, 5] = float("nan")
    value = loss(a, b) if loss in SIMILARITIES else loss(a)
    assert bool(value.isnan())


@pytest.mark.parametrize("loss", SMOOTHNESS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gentle_field_in_half_precision_is_not_rounded_to_rigid(loss, dtype):
    # Steps of 1e-4 voxels, squared, are below the smallest number of float16.
    field = 1e-3 * torch.rand(1, 2, 12, 10, generator=torch.Generator().manual_seed(0))
    field = field.to(dtype).requires_grad_()
    value = loss(field)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(field.double()).item(), rel=1e-4)
    (1e4 * value).backward()
    assert field.grad.dtype == dtype and bool(field.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_mutual_information_and_dice_of_half_images_are_those_of_the_same_values(dtype, shape):
    a, b = (smooth(x, 1).to(dtype) for x in images(shape))
    for loss in (mutual_information, dice_loss):
        leaf = a.clone().requires_grad_()
        value = loss(leaf, b)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(a.double(), b.double()).item(), abs=1e-4)
        value.backward()
        assert leaf.grad.dtype == dtype and bool(leaf.grad.isfinite().all())


def test_half_label_maps_of_a_whole_volume_do_not_overflow():
    maps = torch.ones(1, 1, 64, 64, 32, dtype=torch.float16)  # a sum of 131072; halves end at 65504
    assert dice_loss(maps, maps) == 0


def test_losses_have_the_right_gradient():
    a, b = images((4, 5))
    field = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(3)).double()
    a.requires_grad_(), b.requires_grad_(), field.requires_grad_()
    mask = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(5)).double()
    for loss in (
        mse,
        ncc,
        lambda x, y: lncc(x, y, 3),
        lambda x, y: lncc(x, y, 3, mask=mask),
        lambda x, y: lncc(x, y, 3, squared=False),
    ):
        assert torch.autograd.gradcheck(loss, (a, b))
    for loss in (diffusion, bending_energy):
        assert torch.autograd.gradcheck(loss, (field,))
        assert torch.autograd.gradgradcheck(loss, (field,))
    maps = [x.detach().requires_grad_() for x in images((4, 5), channels=2)]
    assert torch.autograd.gradcheck(dice_loss, maps)
    volumes = [x.detach().requires_grad_() for x in images((3, 3, 4), batch=1)]
    assert torch.autograd.gradcheck(lambda x, y: lncc(x, y, 3), volumes)
    assert torch.autograd.gradcheck(dice_loss, volumes)
    volume = torch.rand(1, 3, 3, 4, 3, generator=torch.Generator().manual_seed(3)).double()
    for loss in (diffusion, bending_energy):
        assert torch.autograd.gradcheck(loss, (volume.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_are_scalars_of_the_images_dtype_on_their_device(dtype):
    a, b = images((10, 13), dtype=dtype)
    field = torch.rand(2, 2, 10, 13, dtype=dtype)
    copies = [x.clone() for x in (a, b, field)]
    values = [f(a, b) for f in SIMILARITIES] + [f(field) for f in SMOOTHNESS]
    for value in values:
        assert value.shape == () and value.dtype == dtype
    assert all(torch.equal(x, y) for x, y in zip((a, b, field), copies, strict=True))
    a, b, field = (x.to("meta") for x in (a, b, field))
    for value in [f(a, b) for f in SIMILARITIES] + [f(field) for f in SMOOTHNESS]:
        assert value.device.type == "meta"


def test_losses_work_under_autocast():
    a, b = images((40, 44), dtype=torch.float32)
    field = torch.rand(2, 2, 40, 44, generator=torch.Generator().manual_seed(0))

    def everything() -> list[Tensor]:
        values = [f(a, b) for f in SIMILARITIES] + [f(field) for f in SMOOTHNESS]
        return [*values, lncc(a, b, squared=False)]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(everything(), expected)


def test_losses_work_under_functional_transforms():
    a, b = images((10, 12), batch=3)
    a, b = a.unsqueeze(1), b.unsqueeze(1)
    fields = torch.rand(3, 1, 2, 10, 12, generator=torch.Generator().manual_seed(0)).double()
    for function, arguments in (
        (mse, (a, b)),
        (ncc, (a, b)),
        (lncc, (a, b)),
        (lambda x, y: lncc(x, y, squared=False), (a, b)),
        (mutual_information, (a, b)),
        (dice_loss, (a, b)),
        (diffusion, (fields,)),
        (bending_energy, (fields,)),
    ):
        one_by_one = torch.stack([function(*x) for x in zip(*arguments, strict=True)])
        torch.testing.assert_close(torch.func.vmap(function)(*arguments), one_by_one)
        leaf = arguments[0][0].clone().requires_grad_()
        function(leaf, *(x[0] for x in arguments[1:])).backward()
        slope = torch.func.grad(function)(*(x[0] for x in arguments))
        torch.testing.assert_close(slope, leaf.grad)
        slopes = torch.func.vmap(torch.func.grad(function))(*arguments)
        torch.testing.assert_close(slopes[0], leaf.grad)
        total = lambda first, *rest, f=function: torch.func.vmap(f)(first, *rest).sum()  # noqa: E731
        torch.testing.assert_close(torch.func.grad(total)(*arguments), slopes)


def test_lncc_keeps_its_range_and_gradient_where_windows_are_flat():
    # Variances that are lost in rounding may come out negative: quotients of noise, without bound.
    noise = torch.randn(2, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for level in (0.5, 1.0, 20.0, 200.0):
        a, b = level + 0.01 * noise[0], level + 0.01 * noise[1]
        assert -1 <= lncc(a, b).item() <= 0
        assert -1 <= lncc(a, b, squared=False).item() <= 1
    volumes = torch.randn(2, 1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    a, b = 0.5 + 1e-4 * volumes[0], 0.5 + 0.03 * volumes[1]
    steepest = []
    for dtype in (torch.float32, torch.float64):
        x = a.detach().clone().to(dtype).requires_grad_()
        lncc(x, b.to(dtype)).backward()
        steepest.append(x.grad.abs().max().item())
    assert steepest[0] < 2 * steepest[1]

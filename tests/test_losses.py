"""Laws of the losses, against NumPy loops and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib.losses import diffusion, lncc, mse, ncc
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


@pytest.mark.parametrize("shape", SHAPES)
def test_lncc_agrees_with_monai(shape):
    losses = pytest.importorskip("monai.losses")
    a, b = images(shape, dtype=torch.float32)
    theirs = losses.LocalNormalizedCrossCorrelationLoss(
        spatial_dims=len(shape), kernel_size=9, smooth_nr=0, smooth_dr=1e-5
    )
    assert lncc(a, b).item() == pytest.approx(theirs(a, b).item(), abs=1e-5)


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


def test_diffusion_agrees_with_monai_up_to_its_sum_over_axes():
    losses = pytest.importorskip("monai.losses")
    field = affine_displacement(torch.tensor([[[1.2, 0.1, 0], [-0.3, 0.9, 1]]]), (10, 13))
    # Central and forward differences agree on linear fields; MONAI sums over the two axes.
    assert losses.DiffusionLoss()(field).item() == pytest.approx(2 * diffusion(field).item())


def test_diffusion_sees_a_checkerboard_as_central_differences_do_not():
    board = (torch.arange(8).view(-1, 1) + torch.arange(9)).remainder(2).double()
    field = board.expand(1, 2, 8, 9)
    assert diffusion(field) == 1


# -------------------------------------------------------------------------------- all of them


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
    assert torch.autograd.gradcheck(diffusion, (field,))
    volumes = [x.detach().requires_grad_() for x in images((3, 3, 4), batch=1)]
    assert torch.autograd.gradcheck(lambda x, y: lncc(x, y, 3), volumes)
    volume = torch.rand(1, 3, 2, 3, 2, generator=torch.Generator().manual_seed(3)).double()
    assert torch.autograd.gradcheck(diffusion, (volume.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_are_scalars_of_the_images_dtype_on_their_device(dtype):
    a, b = images((10, 13), dtype=dtype)
    field = torch.rand(2, 2, 10, 13, dtype=dtype)
    copies = [x.clone() for x in (a, b, field)]
    for value in (mse(a, b), ncc(a, b), lncc(a, b), diffusion(field)):
        assert value.shape == () and value.dtype == dtype
    assert all(torch.equal(x, y) for x, y in zip((a, b, field), copies, strict=True))
    a, b, field = (x.to("meta") for x in (a, b, field))
    for value in (mse(a, b), ncc(a, b), lncc(a, b), diffusion(field)):
        assert value.device.type == "meta"


def test_losses_work_under_autocast():
    a, b = images((40, 44), dtype=torch.float32)
    field = torch.rand(2, 2, 40, 44, generator=torch.Generator().manual_seed(0))

    def everything() -> list[Tensor]:
        return [mse(a, b), ncc(a, b), lncc(a, b), lncc(a, b, squared=False), diffusion(field)]

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
        (diffusion, (fields,)),
    ):
        one_by_one = torch.stack([function(*x) for x in zip(*arguments, strict=True)])
        torch.testing.assert_close(torch.func.vmap(function)(*arguments), one_by_one)
        leaf = arguments[0][0].clone().requires_grad_()
        function(leaf, *(x[0] for x in arguments[1:])).backward()
        slope = torch.func.grad(function)(*(x[0] for x in arguments))
        torch.testing.assert_close(slope, leaf.grad)


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

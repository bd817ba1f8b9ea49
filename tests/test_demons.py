"""Demons push downhill, the blurs make a motion of it, and composed steps do not fold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib.classical.demons import demons, demons_force, match_histogram
from course_lib.losses import mse
from course_lib.metrics import endpoint_error, folding_fraction
from course_lib.optimise import Step
from course_lib.spatial import (
    affine_displacement,
    compose,
    identity_grid,
    integrate,
    pyramid,
    smooth,
    warp,
)

SHAPES = {2: (40, 34), 3: (20, 22, 24)}
SIDES = ["fixed", "warped", "both"]
lawful = settings(max_examples=30, deadline=None, derandomize=True)


def texture(shape, seed=0, batch=1, channels=1, sigma=1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, channels, *shape, generator=generator, dtype=torch.float64)
    image = smooth(image, sigma)
    return (image - image.min()) / (image.max() - image.min())


def wave(shape, length: float, seed=0, batch=1, sigma=4.0) -> Tensor:
    """A smooth field of that mean length, in voxels, that falls to 0 at the border."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(batch, len(shape), *shape, generator=generator, dtype=torch.float64)
    sizes = torch.tensor(shape, dtype=torch.float64).view(-1, *(1,) * len(shape)) - 1
    arch = torch.sin(math.pi * identity_grid(shape, dtype=torch.float64) / sizes).prod(0)
    field = smooth(field, sigma) * arch
    return field * (length / field.norm(dim=1).mean())


def make_pair(ndim: int, seed=0, batch=1) -> tuple[Tensor, Tensor, Tensor]:
    """Moving, fixed and the true displacement of about one voxel."""
    moving = texture(SHAPES[ndim], seed, batch, sigma=2.0)
    field = wave(SHAPES[ndim], 1.0, seed + 1, batch)
    return moving, warp(moving, field, padding="border"), field


def inside(field: Tensor, margin: int = 5) -> Tensor:
    return field[(..., *(slice(margin, -margin),) * (field.ndim - 2))]


# ------------------------------------------------------------------------------------- the push


def test_a_push_by_hand():
    # Brightness rises by 0.2 a row; the warped image is 0.1 too dark: half a row further down.
    fixed = (0.2 * identity_grid((5, 4), dtype=torch.float64)[:1])[None]
    push = demons_force(fixed - 0.1, fixed)
    expected = 0.1 * 0.2 / (0.2**2 + 0.1**2)
    torch.testing.assert_close(push[:, 0], torch.full((1, 5, 4), expected, dtype=torch.float64))
    assert push[:, 1].abs().max() == 0
    far = demons_force(fixed - 0.1, fixed, longest=50.0)
    assert far[:, 0].sub(0.5).abs().max() < 1e-4  # the whole way
    torch.testing.assert_close(demons_force(fixed + 0.1, fixed), -push)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_formula_voxel_by_voxel(side, ndim):
    shape = (5, 6) if ndim == 2 else (4, 5, 3)
    w, f = texture(shape, 1, 2, 2), texture(shape, 2, 2, 2)
    push = demons_force(w, f, gradient=side, longest=0.8)
    image = {"fixed": f, "warped": w, "both": (w + f) / 2}[side]
    voxels = [tuple(v) for v in identity_grid(shape).flatten(1).T.long().tolist()]
    for item in range(2):
        for voxel in voxels:
            top, bottom = torch.zeros(ndim, dtype=torch.float64), 0.0
            for channel in range(2):
                difference = float(f[(item, channel, *voxel)] - w[(item, channel, *voxel)])
                for axis in range(ndim):
                    after, before = list(voxel), list(voxel)
                    after[axis] = min(voxel[axis] + 1, shape[axis] - 1)
                    before[axis] = max(voxel[axis] - 1, 0)
                    rise = float(image[(item, channel, *after)] - image[(item, channel, *before)])
                    slope = rise / (after[axis] - before[axis])
                    top[axis] += difference * slope
                    bottom += slope**2
                bottom += difference**2 / (4 * 0.8**2)
            torch.testing.assert_close(push[(item, slice(None), *voxel)], top / bottom)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("side", SIDES)
def test_a_push_is_a_step_down_the_gradient_of_the_mean_squared_difference(ndim, side):
    w, f = texture(SHAPES[ndim], 1), texture(SHAPES[ndim], 2)
    size = w.numel()

    def slope_of(loss, at: float) -> Tensor:
        step = torch.full((1, ndim, *SHAPES[ndim]), at, dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(step), step)
        return gradient * size / 2

    losses = {
        "warped": lambda du: mse(warp(w, du, padding="border"), f),
        "fixed": lambda du: mse(w, warp(f, -du, padding="border")),
    }
    losses["both"] = lambda du: (losses["warped"](du) + losses["fixed"](du)) / 2
    # A linear image has a corner at each voxel: the mean of both sides is the central difference.
    eps = 1e-7
    gradient = (slope_of(losses[side], eps) + slope_of(losses[side], -eps)) / 2
    push = demons_force(w, f, gradient=side, longest=1e9)  # the normalizer is |g|² alone
    image = {"fixed": f, "warped": w, "both": (w + f) / 2}[side]
    slopes = torch.gradient(image, dim=tuple(range(2, 2 + ndim)))
    normalizer = sum(slope.square() for slope in slopes)
    torch.testing.assert_close(
        inside(push * normalizer, 1), inside(-gradient, 1), atol=1e-5, rtol=0
    )
    assert inside(gradient, 1).abs().max() > 0.01


@given(seed=st.integers(0, 10_000), longest=st.floats(0.05, 5), side=st.sampled_from(SIDES))
@lawful
def test_no_push_is_longer_than_the_longest_and_some_come_near(seed, longest, side):
    w, f = texture((16, 18), seed, sigma=1.0), texture((16, 18), seed + 1, sigma=1.0)
    lengths = demons_force(w, f, gradient=side, longest=longest).norm(dim=1)
    assert lengths.max() <= longest * (1 + 1e-9)
    assert lengths.max() > 0.8 * longest or longest > 2


def test_half_a_voxel_unless_told():
    w, f = texture((30, 30), 1), texture((30, 30), 2)
    assert torch.equal(demons_force(w, f), demons_force(w, f, longest=0.5, gradient="fixed"))
    assert 0.49 < demons_force(w, f).norm(dim=1).max() <= 0.5


@pytest.mark.parametrize("side", SIDES)
def test_flat_regions_do_not_push_and_have_a_gradient(side):
    w = torch.zeros(1, 1, 10, 12)
    f = torch.zeros(1, 1, 10, 12)
    f[..., 2:5, 2:5], w[..., 3:6, 2:5] = 1.0, 1.0
    w.requires_grad_()
    push = demons_force(w, f, gradient=side)
    assert push.isfinite().all() and push.abs().max() > 0.3
    assert push[..., 8:, :].abs().max() == 0 and push[..., 8:].abs().max() == 0
    (gradient,) = torch.autograd.grad(push.square().sum(), w)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert demons_force(f, f, gradient=side).abs().max() == 0
    faint = demons_force(1e-25 * w.detach(), 1e-25 * f, gradient=side)  # squares below float32
    assert faint.isfinite().all()


@pytest.mark.parametrize("side", SIDES)
def test_a_push_does_not_depend_on_the_unit_of_intensity(side):
    w, f = texture(SHAPES[2], 1), texture(SHAPES[2], 2)
    push = demons_force(w, f, gradient=side)
    torch.testing.assert_close(demons_force(700 * w + 3, 700 * f + 3, gradient=side), push)


@pytest.mark.parametrize("ndim", [2, 3])
def test_mirrored_and_swapped_images_push_the_mirrored_and_swapped_way(ndim):
    w, f = texture(SHAPES[ndim], 1), texture(SHAPES[ndim], 2)
    push = demons_force(w, f)
    for axis in range(ndim):
        sign = torch.ones(ndim, dtype=torch.float64)
        sign[axis] = -1
        expected = push.flip(2 + axis) * sign.view(-1, *(1,) * ndim)
        torch.testing.assert_close(demons_force(w.flip(2 + axis), f.flip(2 + axis)), expected)
    axes = (0, 1, *range(ndim + 1, 1, -1))
    swapped = demons_force(w.permute(axes), f.permute(axes))
    torch.testing.assert_close(swapped, push.permute(axes).flip(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_halves_are_pushed_in_full_precision(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    w, f = texture(SHAPES[2], 1), texture(SHAPES[2], 2)
    push = demons_force(w.to(dtype), f.to(dtype))
    assert push.dtype == expected and push.isfinite().all()
    exact = demons_force(w.to(dtype).double(), f.to(dtype).double())
    torch.testing.assert_close(push.double(), exact, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------ the method

QUICK = {"factors": (2, 1), "steps": 30, "smoothness": 1.0}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("diffeomorphic", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_it_brings_the_images_together_and_finds_the_field(ndim, diffeomorphic, side):
    if ndim == 3 and side == "both":
        pytest.skip("two sides are enough in 3D")
    moving, fixed, truth = make_pair(ndim)
    found = demons(moving, fixed, diffeomorphic=diffeomorphic, gradient=side, **QUICK)
    assert found.shape == truth.shape and found.dtype == torch.float64
    # The small volume is nearly all border, where the field fades and the blur flattens it.
    part, bound = (0.05, 0.25) if ndim == 2 else (0.15, 0.55)
    assert mse(warp(moving, found, padding="border"), fixed) < part * mse(moving, fixed)
    error = inside(found - truth).norm(dim=1).mean() / inside(truth).norm(dim=1).mean()
    assert error < bound


@pytest.mark.parametrize("ndim", [2, 3])
def test_it_recovers_a_shift(ndim):
    shape = SHAPES[ndim]
    shift = torch.tensor([3.0, -2.0, 1.5][:ndim], dtype=torch.float64).view(-1, *(1,) * ndim)
    truth = shift.expand(1, ndim, *shape)
    moving = texture(shape, 3, sigma=2.0)
    found = demons(moving, warp(moving, truth, padding="border"), factors=(4, 2, 1), steps=40)
    assert (inside(found) - inside(truth)).norm(dim=1).mean() < 0.3


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_equal_images_stay_where_they_are(diffeomorphic):
    image = texture(SHAPES[2])
    assert demons(image, image, diffeomorphic=diffeomorphic, steps=5).abs().max() < 1e-12


def test_each_blur_makes_the_field_smoother():
    moving, fixed, _ = make_pair(2)

    def roughness(**options) -> float:
        found = demons(moving, fixed, **{**QUICK, **options})
        return float(sum(found.diff(dim=axis).square().mean() for axis in (2, 3)))

    rough = roughness(smoothness=0.5)
    assert roughness(smoothness=1.0) < 0.9 * rough
    assert roughness(smoothness=3.0) < 0.3 * rough
    free = roughness(smoothness=0.0)
    assert roughness(smoothness=0.0, viscosity=1.0) < 0.7 * free
    assert roughness(smoothness=0.0, viscosity=3.0) < 0.4 * free


def test_the_field_forgets_under_diffusion_but_not_in_a_fluid():
    # Equal, flat images: nobody pushes, so only the blurs are at work on a given start.
    flat, start = torch.ones(1, 1, 30, 30).double(), wave((30, 30), 2.0)
    kept = demons(flat, flat, start, smoothness=0.0, viscosity=2.0, factors=(1,), steps=5)
    torch.testing.assert_close(kept, start)
    relaxed = demons(flat, flat, start, smoothness=2.0, factors=(1,), steps=5)
    expected = start
    for _ in range(5):
        expected = smooth(expected, 2.0)
    torch.testing.assert_close(relaxed, expected)


def test_composed_steps_do_not_fold_where_added_ones_do():
    moving, fixed = texture((48, 40), 5, sigma=1.2), texture((48, 40), 6, sigma=1.2)
    options = {"factors": (1,), "steps": 60, "smoothness": 0.0, "viscosity": 2.5}
    added = demons(moving, fixed, **options)
    composed = demons(moving, fixed, diffeomorphic=True, **options)
    assert folding_fraction(added) > 0.02
    assert folding_fraction(composed) == 0
    before = mse(moving, fixed)
    assert mse(warp(moving, composed, padding="border"), fixed) < 0.7 * before


def test_after_a_large_turn_steps_have_to_be_composed_and_in_this_order():
    shape = (48, 48)
    moving = texture(shape, 2, sigma=2.0)
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    start = affine_displacement(turn, shape)
    rest = wave(shape, 1.0, 4, sigma=5.0)
    truth = compose(start, rest)
    fixed = warp(moving, truth, padding="border")

    def error(found: Tensor) -> float:
        return float(inside(found - truth, 8).norm(dim=1).mean())

    options = {"factors": (1,), "steps": 60, "smoothness": 0.0, "viscosity": 2.0}
    assert error(start) > 1.2
    assert error(demons(moving, fixed, start, diffeomorphic=True, **options)) < 0.3
    assert error(demons(moving, fixed, start, **options)) > 2.4  # they lead away
    # Warping by the turn first, as the docstring advises, saves the added steps.
    aligned = warp(moving, start, padding="border")
    added = demons(aligned, fixed, **options)
    assert error(compose(start, added)) < 0.3
    step = integrate(smooth(demons_force(aligned, fixed), 2.0), 2)
    once = demons(moving, fixed, start, diffeomorphic=True, **{**options, "steps": 1})
    torch.testing.assert_close(once, compose(start, step))


@pytest.mark.parametrize("ndim", [2, 3])
def test_it_begins_at_the_start_and_leaves_its_arguments_alone(ndim):
    moving, fixed, truth = make_pair(ndim)
    moving.requires_grad_(), fixed.requires_grad_()
    start = truth.clone().requires_grad_()
    copies = [x.detach().clone() for x in (moving, fixed, start)]
    torch.testing.assert_close(demons(moving, fixed, start, steps=0, factors=(1,)), truth)
    near = demons(moving, fixed, start, steps=2, factors=(1,), smoothness=0.5)
    assert 0 < (near - truth).abs().max() < 1.5
    from_zero = demons(moving, fixed, steps=2, factors=(1,), smoothness=0.5)
    error = endpoint_error(near, truth), endpoint_error(from_zero, truth)
    assert error[0] < 0.5 * error[1]
    for x, copy in zip((moving, fixed, start), copies, strict=True):
        assert torch.equal(x, copy) and x.grad is None
    assert not near.requires_grad


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_items_of_a_batch_do_not_see_each_other(diffeomorphic):
    moving, fixed, _ = make_pair(2, batch=3)
    options = {"diffeomorphic": diffeomorphic, "viscosity": 1.0, "factors": (2, 1), "steps": 6}
    together = demons(moving, fixed, **options)
    alone = torch.cat([demons(moving[k : k + 1], fixed[k : k + 1], **options) for k in range(3)])
    torch.testing.assert_close(together, alone)
    assert (alone[0] - alone[1]).abs().max() > 0.5


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_mirrored_images_give_the_mirrored_field_and_swapped_axes_the_swapped_one(
    ndim, diffeomorphic
):
    moving, fixed, _ = make_pair(ndim)
    options = {"diffeomorphic": diffeomorphic, "viscosity": 0.5, "factors": (2, 1), "steps": 5}
    found = demons(moving, fixed, **options)
    sign = torch.tensor([-1.0, 1.0, 1.0][:ndim], dtype=torch.float64).view(-1, *(1,) * ndim)
    flipped = demons(moving.flip(2), fixed.flip(2), **options)
    torch.testing.assert_close(flipped, found.flip(2) * sign)
    axes = (0, 1, *range(ndim + 1, 1, -1))
    swapped = demons(moving.permute(axes), fixed.permute(axes), **options)
    torch.testing.assert_close(swapped, found.permute(axes).flip(1))


def test_coarse_to_fine_looks_farther():
    moving, _, _ = make_pair(2)
    moving = smooth(texture((64, 56), 3, sigma=3.0), 1.0)
    truth = torch.tensor([7.0, -5.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 64, 56)
    fixed = warp(moving, truth, padding="border")
    near = demons(moving, fixed, factors=(1,), steps=90, smoothness=1.0)
    far = demons(moving, fixed, factors=(8, 4, 2, 1), steps=30, smoothness=1.0)
    errors = [float(inside(u - truth, 10).norm(dim=1).mean()) for u in (near, far)]
    assert errors[0] > 3 * errors[1]


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_watch_sees_each_step_and_changes_nothing(diffeomorphic):
    moving, fixed, _ = make_pair(2)
    options = {"diffeomorphic": diffeomorphic, "factors": (2, 1), "steps": 6}
    seen: list[Step] = []
    found = demons(moving, fixed, watch=seen.append, **options)
    assert torch.equal(found, demons(moving, fixed, **options))
    assert [(s.factor, s.number) for s in seen] == [(f, n) for f in (2, 1) for n in range(1, 7)]
    assert [s.stopped for s in seen] == (5 * [""] + ["steps"]) * 2
    for step in seen:
        small_moving, small_fixed = pyramid(moving, step.factor), pyramid(fixed, step.factor)
        warped = warp(small_moving, step.displacement, padding="border")
        assert step.loss == pytest.approx(float(mse(warped, small_fixed)))
        assert step.similarity == step.loss and step.penalty == 0
    assert seen[0].displacement.abs().max() == 0
    assert seen[5].loss < seen[0].loss and seen[11].loss < seen[6].loss

    def vandal(step: Step) -> None:
        step.displacement.fill_(100.0)

    assert torch.equal(demons(moving, fixed, watch=vandal, **options), found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_gradients_are_switched_off(mode):
    moving, fixed, truth = make_pair(2)
    expected = demons(moving, fixed, truth, factors=(2,), steps=2)
    with mode():
        found = demons(moving, fixed, truth, factors=(2,), steps=2)
    torch.testing.assert_close(found, expected)
    assert not found.is_inference()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_images_are_registered_in_full_precision(dtype):
    moving, fixed, _ = make_pair(2)
    moving, fixed = moving.to(dtype), fixed.to(dtype)
    found = demons(moving, fixed, factors=(2, 1), steps=5)
    assert found.dtype == torch.float32
    exact = demons(moving.double(), fixed.double(), factors=(2, 1), steps=5)
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(24, 24), (9, 40), (10, 16, 18)])
def test_the_defaults_fit_small_images_of_several_channels(shape):
    moving, fixed = texture(shape, 1, 2, 3), texture(shape, 2, 2, 3)
    found = demons(moving, fixed, steps=2)
    assert found.shape == (2, len(shape), *shape) and found.isfinite().all()


def test_three_levels_unless_told():
    moving, fixed, _ = make_pair(2)
    seen: list[Step] = []
    demons(moving, fixed, watch=seen.append)
    assert [s.factor for s in seen] == [4] * 60 + [2] * 60 + [1] * 60


# ------------------------------------------------------------------------------------- contrast


@pytest.mark.parametrize("bend", [lambda x: x**1.7, lambda x: 5 * x - 2, lambda x: x.exp()])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_rising_change_of_contrast_is_undone(bend, ndim):
    image = texture(SHAPES[ndim], 1, 2, 2)
    matched = match_histogram(bend(image), image)
    assert (matched - image).abs().mean() < 1e-3
    assert (bend(image) - image).abs().mean() > 0.1
    exact = match_histogram(bend(image), image, levels=image[0, 0].numel() - 1)
    torch.testing.assert_close(exact, image)


def test_by_hand():
    image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    reference = torch.tensor([[[[60.0, 10.0], [20.0, 30.0], [40.0, 50.0]]]])
    torch.testing.assert_close(match_histogram(image, reference, levels=5), 10 * image)
    torch.testing.assert_close(match_histogram(image, reference, levels=1), 10 * image)
    bent = torch.tensor([[[[1.0, 4.0, 9.0], [16.0, 25.0, 36.0]]]])
    torch.testing.assert_close(match_histogram(bent, reference, levels=5), 10 * image)
    ends = match_histogram(bent, reference, levels=1)
    torch.testing.assert_close(ends, 10 + (bent - 1) / 35 * 50)


def test_order_is_kept_and_the_reference_is_met():
    image, reference = texture((50, 40), 1), texture((30, 36), 2) ** 3
    matched = match_histogram(image, reference)
    order = image.flatten().argsort()
    assert (matched.flatten()[order].diff() >= 0).all()
    fractions = torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(
        matched.flatten().quantile(fractions),
        reference.flatten().quantile(fractions),
        atol=0.01,
        rtol=0,
    )


def test_the_background_stays_the_background():
    image, reference = texture((40, 40), 1), texture((40, 40), 2) ** 2
    image = (image - image.quantile(0.4)).clamp(min=0)
    reference = (reference - reference.quantile(0.3)).clamp(min=0)
    for a, b in ((image, reference), (reference, image)):
        assert (a == 0).float().mean() > 0.2
        assert match_histogram(a, b)[a == 0].abs().max() == 0


def test_each_channel_of_each_item_by_itself_and_constant_images_stay_finite():
    image, reference = texture((20, 22), 1, 2, 3), texture((20, 22), 2, 2, 3)
    together = match_histogram(image, reference)
    for item in range(2):
        for channel in range(3):
            at = (slice(item, item + 1), slice(channel, channel + 1))
            torch.testing.assert_close(together[at], match_histogram(image[at], reference[at]))
    constant = match_histogram(torch.ones_like(image), reference)
    assert torch.equal(constant, reference.flatten(2).amin(2)[..., None, None].expand_as(image))
    flat = torch.full_like(reference, 0.3)
    torch.testing.assert_close(match_histogram(image, flat), flat)
    assert match_histogram(image.half(), reference.half()).dtype == torch.float16


def test_demons_go_astray_on_another_contrast_and_find_back_when_it_is_matched():
    moving, fixed, truth = make_pair(2)
    other = moving**2
    options = {"factors": (2, 1), "steps": 30}
    fooled = endpoint_error(demons(other, fixed, **options), truth)
    mended = endpoint_error(demons(match_histogram(other, fixed), fixed, **options), truth)
    assert mended < 0.7 * fooled and not math.isnan(mended)

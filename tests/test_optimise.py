"""Instance optimization improves a pair, from zero or from a start, and each item by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from course_lib.losses import bending_energy, diffusion, lncc, mse, ncc
from course_lib.optimise import refine
from course_lib.spatial import resize_displacement, smooth, warp

SHAPES = [(40, 34), (20, 22, 24)]


def make_pair(shape, seed=0, batch=1, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Moving, fixed and the true displacement of about two voxels."""
    generator = torch.Generator().manual_seed(seed)
    n = len(shape)
    moving = smooth(torch.rand(batch, 1, *shape, generator=generator, dtype=torch.float64), 1.5)
    moving = (moving - moving.min()) / (moving.max() - moving.min())
    field = torch.randn(batch, n, *shape, generator=generator, dtype=torch.float64)
    field = smooth(field, 4.0)
    field = field * (2.0 / field.norm(dim=1).mean())
    fixed = warp(moving, field, padding="border")
    return moving.to(dtype), fixed.to(dtype), field.to(dtype)


QUICK = {"factors": (2, 1), "steps": 25, "weight": 0.5}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_brings_the_images_together_and_finds_the_field(shape, dtype):
    if (len(shape), dtype) == (3, torch.float64):
        pytest.skip("once in 3D")
    moving, fixed, truth = make_pair(shape, dtype=dtype)
    found = refine(moving, fixed, **QUICK)
    assert found.shape == truth.shape and found.dtype == dtype
    assert not found.requires_grad and found.grad_fn is None
    before, after = lncc(moving, fixed), lncc(warp(moving, found, padding="border"), fixed)
    assert after < before - 0.1
    middle = (..., *(slice(5, -5),) * len(shape))
    error = (found - truth)[middle].norm(dim=1).mean()
    assert error < 0.4 * truth[middle].norm(dim=1).mean()


def test_a_larger_weight_is_smoother():
    moving, fixed, _ = make_pair(SHAPES[0])
    roughness, similarity = [], []
    for weight in (0.0, 0.5, 30.0):
        found = refine(moving, fixed, **{**QUICK, "weight": weight})
        roughness.append(float(diffusion(found)))
        similarity.append(float(lncc(warp(moving, found, padding="border"), fixed)))
    assert roughness[0] > 1.5 * roughness[1] > 3 * roughness[2]
    assert similarity[0] < similarity[1] < similarity[2]


def test_the_penalty_is_the_one_asked_for():
    moving, fixed, _ = make_pair(SHAPES[0])
    by_default = refine(moving, fixed, **QUICK)
    torch.testing.assert_close(refine(moving, fixed, regularizer=diffusion, **QUICK), by_default)
    bent = refine(moving, fixed, regularizer=bending_energy, **QUICK)
    crooked = [bending_energy(u) / diffusion(u) for u in (bent, by_default)]
    assert crooked[0] < 0.9 * crooked[1]
    free = refine(moving, fixed, regularizer=lambda u: 0 * u.sum(), **QUICK)
    torch.testing.assert_close(free, refine(moving, fixed, **{**QUICK, "weight": 0.0}))


def test_three_levels_unless_told_coarse_to_fine():
    moving, fixed, _ = make_pair((48, 56))
    seen = []

    def spy(warped: Tensor, fixed: Tensor) -> Tensor:
        seen.append(tuple(warped.shape[2:]))
        return mse(warped, fixed)

    refine(moving, fixed, similarity=spy, steps=2)
    assert seen == [(12, 14)] * 2 + [(24, 28)] * 2 + [(48, 56)] * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_it_begins_at_the_start_and_leaves_it_alone(shape):
    moving, fixed, truth = make_pair(shape)
    start = truth.clone().requires_grad_()
    torch.testing.assert_close(refine(moving, fixed, start, steps=0, factors=(1,)), truth)
    half = tuple(max(9, round(n / 2)) for n in shape)
    through_half = resize_displacement(resize_displacement(truth, half), shape)
    torch.testing.assert_close(refine(moving, fixed, start, steps=0, factors=(2,)), through_half)
    found = refine(moving, fixed, start, similarity=mse, factors=(1,), steps=3, weight=0.0)
    assert (found - truth).abs().max() < 0.35  # three steps of 0.1 lead no farther
    assert (found - truth).abs().max() > 0
    assert torch.equal(start, truth) and start.grad is None
    from_zero = refine(moving, fixed, similarity=mse, factors=(1,), steps=3, weight=0.0)
    assert from_zero.abs().max() < 0.35
    assert mse(warp(moving, found, padding="border"), fixed) < mse(
        warp(moving, from_zero, padding="border"), fixed
    )


@pytest.mark.parametrize("similarity", [lncc, ncc, mse])
def test_items_of_a_batch_do_not_see_each_other(similarity):
    pairs = [make_pair((24, 30), seed) for seed in (1, 2, 3)]
    settings = {"similarity": similarity, "factors": (2, 1), "steps": 8}
    batch = [torch.cat(parts) for parts in zip(pairs[0], pairs[1], strict=True)]
    other = [torch.cat(parts) for parts in zip(pairs[0], pairs[2], strict=True)]
    first = refine(batch[0], batch[1], **settings)
    again = refine(other[0], other[1], **settings)
    torch.testing.assert_close(first[0], again[0], atol=1e-3, rtol=0)
    assert (first[1] - again[1]).abs().max() > 0.1
    alone = refine(pairs[0][0], pairs[0][1], **settings)
    assert (first[:1] - alone).abs().mean() < 0.02 * alone.abs().mean()


def test_several_channels_of_an_image_move_together():
    moving, fixed, truth = make_pair((24, 30))
    moving, fixed = moving.repeat(1, 2, 1, 1), fixed.repeat(1, 2, 1, 1)
    assert refine(moving, fixed, similarity=mse, steps=2, factors=(1,)).shape == truth.shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_gradients_are_switched_off(mode):
    moving, fixed, truth = make_pair((24, 30))
    expected = refine(moving, fixed, truth, factors=(1,), steps=2)
    with mode():
        found = refine(moving, fixed, truth, factors=(1,), steps=2)
    torch.testing.assert_close(found, expected)


def test_images_that_ask_for_gradients_get_none():
    moving, fixed, _ = make_pair((24, 30))
    moving.requires_grad_(), fixed.requires_grad_()
    found = refine(moving, fixed, factors=(1,), steps=2)
    assert not found.requires_grad
    assert moving.grad is None and fixed.grad is None


def test_progress_is_shown_only_when_asked_for(capfd):
    moving, fixed, _ = make_pair((24, 30))
    refine(moving, fixed, factors=(1,), steps=2)
    assert capfd.readouterr() == ("", "")
    refine(moving, fixed, factors=(1,), steps=2, progress=True)
    assert capfd.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_registered_in_full_precision(dtype):
    moving, fixed, _ = make_pair((24, 30))
    found = refine(moving.to(dtype), fixed.to(dtype), factors=(2, 1), steps=3)
    assert found.dtype == torch.float32 and found.isfinite().all() and found.abs().max() > 0


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (10, 16, 18)])
def test_the_defaults_fit_small_images(shape):
    moving, fixed, _ = make_pair(shape)
    assert refine(moving, fixed, steps=1).isfinite().all()

"""The cohort's truth is true, seeds are reproducible, nobody can spoil the shared images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from course_lib.datasets import Pair, brains, collate, halve
from course_lib.metrics import correlation, dice
from course_lib.optimise import refine
from course_lib.spatial import affine_displacement, jacobian_determinant, warp

SIZES = {2: (224, 192), 3: (96, 112, 96)}


@pytest.fixture(scope="module", params=[(2, 0), (2, 1), (2, 100), (2, 101), (3, 101)], ids=str)
def cohort(request) -> tuple[Pair, Pair]:
    """A synthetic pair, as it is and without contrast, bias and noise."""
    ndim, seed = request.param
    clean, scan = [], brains._scan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            brains, "_scan", lambda rng, image, mm: [clean.append(image), scan(rng, image, mm)][1]
        )
        pair = brains.pair(seed, ndim)
    moving, fixed = clean
    return pair, pair._replace(moving=moving, fixed=fixed)


def check_form(pair: Pair, ndim: int) -> None:
    for image in (pair.moving, pair.fixed):
        assert image.shape == (1, 1, *SIZES[ndim])
        assert image.dtype == torch.float32 and image.is_contiguous()
        assert 0 <= image.min() < 0.05 and 0.9 < image.max() <= 1
    for labels in (pair.moving_labels, pair.fixed_labels):
        assert labels.shape == (1, 1, *SIZES[ndim])
        assert labels.dtype == torch.int64
        assert labels.unique().tolist() == [0, *brains.TISSUES]
    assert pair.spacing == {2: (1.0, 1.0), 3: (2.0, 2.0, 2.0)}[ndim]


# -------------------------------------------------------------------------------------- cohort


def test_a_synthetic_pair_has_the_promised_form(cohort):
    pair, _ = cohort
    ndim = pair.fixed.ndim - 2
    check_form(pair, ndim)
    assert pair.displacement.shape == (1, ndim, *SIZES[ndim])
    assert pair.displacement.dtype == torch.float32


def test_the_true_displacement_makes_fixed_of_moving(cohort):
    _, clean = cohort
    left = (warp(clean.moving, clean.displacement) - clean.fixed).abs().mean()
    before = (clean.moving - clean.fixed).abs().mean()
    # What is left is interpolation; composing the two maps in the wrong order leaves twice as much.
    assert left < (0.1 if clean.fixed.ndim == 4 else 0.17) * before
    # Neither the opposite field nor swapped axes would do.
    for wrong in (-clean.displacement, clean.displacement.flip(1)):
        assert (warp(clean.moving, wrong) - clean.fixed).abs().mean() > 0.6 * before


def test_the_true_displacement_holds_for_labels_and_for_scans(cohort):
    pair, _ = cohort
    warped = warp(pair.moving_labels, pair.displacement, mode="nearest")
    after, before = dice(warped, pair.fixed_labels), dice(pair.moving_labels, pair.fixed_labels)
    assert (after[0, 1:] > (0.87 if pair.fixed.ndim == 4 else 0.78)).all() and (
        after > before + 0.1
    ).all()
    scans = correlation(warp(pair.moving, pair.displacement), pair.fixed)
    assert scans > 0.95 and scans > correlation(pair.moving, pair.fixed) + 0.02


def test_the_true_displacement_is_about_three_mm_and_never_folds(cohort):
    pair, _ = cohort
    inside = pair.fixed_labels[:, 0] > 0
    length = pair.displacement.norm(dim=1)[inside].mean() * pair.spacing[0]
    assert 2 < length < 4
    assert jacobian_determinant(pair.displacement).min() > 0.1


def test_scans_differ_from_clean_images_by_contrast_and_noise(cohort):
    pair, clean = cohort
    for scan, image in ((pair.moving, clean.moving), (pair.fixed, clean.fixed)):
        assert 0.9 < correlation(scan, image) < 0.9995
        background = (image == 0) & (scan > 0)
        assert background.float().mean() > 0.05  # noise reaches outside the head


def test_a_seed_is_one_pair_and_other_seeds_are_others():
    torch.manual_seed(1)
    np.random.seed(1)
    first = brains.pair(100)
    torch.manual_seed(2)  # the global generators do not matter
    np.random.seed(2)
    again, other = brains.pair(100), brains.pair(102)
    for ours, same, different in zip(first[:5], again[:5], other[:5], strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, different)
    assert torch.equal(brains.pair(np.int64(100)).fixed, first.fixed)


def test_making_a_pair_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    brains.pair(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("ndim", [2])
def test_even_seeds_are_the_template_and_odd_seeds_are_colin(monkeypatch, ndim):
    monkeypatch.setattr(
        brains, "_random_velocity", lambda rng, like, mm: torch.zeros(1, ndim, *like.shape[2:])
    )
    monkeypatch.setattr(brains, "_require_truth", lambda *pair: None)
    monkeypatch.setattr(brains, "_scan", lambda rng, image, mm: image)
    real = brains.real_pair(ndim)
    for seed, image, labels in (
        (0, real.fixed, real.fixed_labels),
        (1, real.moving, real.moving_labels),
        (100, real.fixed, real.fixed_labels),
        (101, real.moving, real.moving_labels),
    ):
        pair = brains.pair(seed, ndim)
        torch.testing.assert_close(pair.fixed, image, atol=1e-4, rtol=0)
        torch.testing.assert_close(pair.moving, image, atol=1e-4, rtol=0)
        assert torch.equal(pair.fixed_labels, labels) and torch.equal(pair.moving_labels, labels)


def test_the_cohort_notices_a_truth_that_is_not_true():
    pair = brains.pair(0)
    with pytest.raises(AssertionError, match="true displacement"):
        brains._require_truth(pair.moving, pair.fixed, -pair.displacement)


# ----------------------------------------------------------------------------------- real pair


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_real_pair_is_two_people(ndim):
    pair = brains.real_pair(ndim)
    check_form(pair, ndim)
    assert pair.displacement is None
    assert 0.5 < correlation(pair.moving, pair.fixed) < 0.97
    overlap = dice(pair.moving_labels, pair.fixed_labels)
    assert ((overlap > 0.2) & (overlap < 0.9)).all()


def test_slices_show_the_forehead_in_row_zero_and_the_head_in_the_middle():
    fixed, volume = brains.real_pair(2).fixed[0, 0], brains.real_pair(3).fixed[0, 0]
    rows, columns = fixed.sum(1), fixed.sum(0)
    for profile in (rows, columns):
        center = (profile * torch.arange(len(profile))).sum() / profile.sum()
        assert abs(center / (len(profile) - 1) - 0.5) < 0.1
    # Volume axes: left → right, back → front, bottom → top; the slice is number 80 from the bottom.
    drawn = volume[:, :, 40].flip(1).T
    halved = torch.nn.functional.avg_pool2d(fixed[None, None], 2)
    right = correlation(drawn[None, None], halved)
    assert right > 0.97
    assert right > correlation(drawn.flip(0)[None, None], halved) + 0.04
    assert right > correlation(drawn.flip(1)[None, None], halved) + 0.01


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_pose_brings_the_moved_head_back(ndim):
    pose = torch.eye(ndim, ndim + 1)[None]
    pose[0, 0, 1], pose[0, 1, 0] = -0.2, 0.25
    pose[0, :, :ndim] *= 1.12
    pose[0, :, ndim] = torch.tensor([9.0, -7.0, 4.0])[:ndim]
    rest, posed = brains.real_pair(ndim), brains.real_pair(ndim, pose)
    back = affine_displacement(pose, SIZES[ndim])
    assert correlation(posed.moving, rest.moving) < 0.9
    assert correlation(warp(posed.moving, back), rest.moving) > 0.98
    labels = warp(posed.moving_labels, back, mode="nearest")
    assert (dice(labels, rest.moving_labels) > 0.85).all()
    assert torch.equal(posed.fixed, rest.fixed)
    still = brains.real_pair(ndim, torch.eye(ndim, ndim + 1)[None])
    torch.testing.assert_close(still.moving, rest.moving, atol=1e-4, rtol=0)
    assert torch.equal(still.moving_labels, rest.moving_labels)


@pytest.mark.parametrize("make", [brains.real_pair, lambda: brains.pair(4)])
def test_a_pair_changed_in_place_harms_nobody(make):
    first = make()
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in first]
    for part in first[:5]:
        if part is not None:
            part.zero_()
    again = make()
    for before, after in zip(copies[:5], again[:5], strict=True):
        assert before is after is None or torch.equal(before, after)


def test_images_first_seen_in_inference_mode_can_be_trained_on_later():
    for cached in vars(brains).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    with torch.inference_mode():
        brains.real_pair()
        brains.pair(0)
    for pair in (brains.real_pair(), brains.pair(0)):
        assert not any(x.is_inference() for x in pair[:2])
        moving, fixed = pair.moving[..., 60:100, 60:100], pair.fixed[..., 60:100, 60:100]
        assert refine(moving, fixed, factors=(2,), steps=1).isfinite().all()


# ------------------------------------------------------------------------------------- collate


def small(value: float, truth: bool = True) -> Pair:
    image = torch.full((1, 1, 4, 5), value)
    labels = torch.full((1, 1, 4, 5), int(value))
    field = torch.full((1, 2, 4, 5), value) if truth else None
    return Pair(image, image + 1, labels, labels + 1, field, (1.0, 2.0))


def test_collate_joins_along_the_batch_in_order():
    joined = collate([small(1), small(2), small(3)])
    assert joined.fixed.shape == (3, 1, 4, 5) and joined.displacement.shape == (3, 2, 4, 5)
    assert joined.moving[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert joined.fixed[:, 0, 0, 0].tolist() == [2, 3, 4]
    assert joined.moving_labels[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert joined.fixed_labels[:, 0, 0, 0].tolist() == [2, 3, 4]
    assert joined.displacement[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert joined.spacing == (1.0, 2.0)
    assert collate([joined, small(4)]).fixed.shape[0] == 4


def test_collate_drops_what_one_pair_does_not_know():
    for pairs in ([small(1), small(2, False)], [small(1, False), small(2)]):
        joined = collate(pairs)
        assert joined.displacement is None and joined.fixed_labels is not None


def test_what_is_unknown_is_none():
    image = torch.zeros(1, 1, 4, 5)
    assert Pair(image, image)[2:] == (None, None, None, None)


# --------------------------------------------------------------------------------------- halve


@pytest.mark.parametrize("shape", [(9, 12), (7, 8, 9)])
def test_halve_keeps_every_other_voxel_and_halves_the_displacement(shape):
    smaller = tuple((n + 1) // 2 for n in shape)
    labels = torch.arange(2 * math.prod(shape)).view(2, 1, *shape)
    image, field = torch.rand(2, 1, *shape), torch.rand(2, len(shape), *shape)
    spacing = tuple(1.0 + axis for axis in range(len(shape)))
    pair = Pair(image, image * 0.5, labels, labels + 1, field, spacing)
    half = halve(pair)
    assert half.moving.shape == half.fixed.shape == (2, 1, *smaller)
    other = (..., *(slice(None, None, 2),) * len(shape))
    assert torch.equal(half.moving_labels, labels[other])
    assert torch.equal(half.fixed_labels, labels[other] + 1)
    assert torch.equal(half.displacement, field[other] / 2)
    torch.testing.assert_close(half.fixed, half.moving * 0.5)
    assert half.spacing == tuple(2 * size for size in spacing)


def test_halve_blurs_before_it_drops():
    stripes = torch.zeros(1, 1, 16, 20)
    stripes[..., ::2] = 1  # every other column: without a blur all that is left is white
    middle = halve(Pair(stripes, stripes)).fixed[..., 2:-2, 2:-2]
    assert middle.max() < 0.6


def test_half_a_pair_is_registered_by_its_displacement():
    half = halve(brains.pair(2))  # of two contrasts, which a correlation forgives
    warped = warp(half.moving, half.displacement)
    assert correlation(warped, half.fixed) > 0.99 > correlation(half.moving, half.fixed) + 0.02
    twice = warp(half.moving, 2 * half.displacement)
    assert correlation(twice, half.fixed) < correlation(warped, half.fixed) - 0.01


def test_halve_leaves_what_is_unknown():
    image = torch.rand(1, 1, 6, 7)
    assert halve(Pair(image, image))[2:] == (None, None, None, None)

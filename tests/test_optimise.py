"""Instance optimization improves a pair, from zero or from a start, and each item by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from course_lib import optimise
from course_lib.datasets import brains
from course_lib.losses import bending_energy, diffusion, lncc, mse, ncc
from course_lib.metrics import endpoint_error, folding_fraction
from course_lib.optimise import Step, _has_converged, refine
from course_lib.spatial import affine_displacement, compose, resize_displacement, smooth, warp

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


QUICK = {"factors": (2, 1), "steps": 25, "weight": 0.5, "smoothness": 0, "tolerance": 0.0}


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
    few = {"similarity": mse, "factors": (1,), "steps": 3, "weight": 0.0, "smoothness": 0}
    found = refine(moving, fixed, start, **few)
    assert (found - truth).abs().max() < 0.35  # three steps of 0.1 lead no farther
    assert (found - truth).abs().max() > 0
    assert torch.equal(start, truth) and start.grad is None
    from_zero = refine(moving, fixed, **few)
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


def watched(*arguments, **settings) -> tuple[Tensor, list[Step]]:
    """What refine answers, and the steps on the way."""
    steps: list[Step] = []
    return refine(*arguments, watch=steps.append, **settings), steps


def test_watch_sees_every_step_and_changes_nothing():
    moving, fixed, _ = make_pair((40, 34))
    settings = {"factors": (2, 1), "steps": 6, "tolerance": 0.0, "weight": 0.7}
    found, steps = watched(moving, fixed, **settings)
    assert torch.equal(found, refine(moving, fixed, **settings))  # and the same twice
    assert [(s.factor, s.number) for s in steps] == [(f, n) for f in (2, 1) for n in range(1, 7)]
    assert [s.stopped for s in steps] == [*[""] * 5, "steps"] * 2
    assert {tuple(s.displacement.shape) for s in steps[:6]} == {(1, 2, 20, 17)}
    assert {tuple(s.displacement.shape) for s in steps[6:]} == {(1, 2, 40, 34)}
    for step in steps[6:]:  # the numbers are those of this very field
        assert not step.displacement.requires_grad
        warped = warp(moving, step.displacement, padding="border")
        assert step.similarity == pytest.approx(float(lncc(warped, fixed)), abs=1e-6)
        assert step.penalty == pytest.approx(float(diffusion(step.displacement)), abs=1e-6)
        assert step.loss == pytest.approx(step.similarity + 0.7 * step.penalty, abs=1e-6)
    assert steps[0].displacement.abs().max() == 0
    assert (steps[1].displacement - steps[0].displacement).abs().max() > 0
    assert steps[5].loss < steps[0].loss and steps[-1].loss < steps[6].loss


def test_a_watcher_may_spoil_what_it_is_given():
    moving, fixed, _ = make_pair((24, 30))
    settings = {"factors": (2, 1), "steps": 4}
    expected = refine(moving, fixed, **settings)
    for smoothness in (0, 4):
        expected = refine(moving, fixed, smoothness=smoothness, **settings)
        spoiled = refine(
            moving,
            fixed,
            smoothness=smoothness,
            watch=lambda step: step.displacement.fill_(9),
            **settings,
        )
        assert torch.equal(spoiled, expected)


def test_a_level_ends_when_it_has_converged():
    moving, fixed, _ = make_pair((40, 34))
    settings = {"factors": (2, 1), "steps": 300, "similarity": mse, "weight": 0.1}
    _, steps = watched(moving, fixed, tolerance=0.05, **settings)
    for factor in (2, 1):
        level = [s for s in steps if s.factor == factor]
        assert 10 < len(level) < 300
        assert [s.stopped for s in level] == [*[""] * (len(level) - 1), "converged"]
        losses = [s.loss for s in level]
        assert _has_converged(losses, 0.05) and not _has_converged(losses[:-1], 0.05)
    _, finer = watched(moving, fixed, tolerance=0.01, **settings)
    assert len(finer) > len(steps)
    _, told = watched(moving, fixed, tolerance=0.0, **{**settings, "steps": 30})
    assert len(told) == 60 and told[-1].stopped == "steps"


def test_the_stop_asks_neither_for_the_unit_nor_for_the_zero_of_the_loss():
    moving, fixed, _ = make_pair((40, 34))
    lengths = []
    for gain, offset in ((1, 0), (1000, 0), (1, 50)):
        _, steps = watched(
            moving.double(),
            fixed.double(),
            similarity=lambda a, b, gain=gain, offset=offset: gain * mse(a, b) + offset,
            weight=0.1 * gain,
            factors=(1,),
            steps=200,
        )
        lengths.append(len(steps))
    assert lengths[0] < 200 and lengths == [lengths[0]] * 3


def test_convergence_by_hand():
    assert not _has_converged([5, 3, 2, 1.9], 0.1, window=2)  # 1.1 of 3.1
    assert _has_converged([5, 3, 2, 1.9, 1.8], 0.1, window=2)  # 0.2 of 3.2
    assert not _has_converged([5, 3, 2, 1.9, 1.8], 0.06, window=2)
    assert _has_converged([5, 3, 2, 4, 4], 0.01, window=2)  # up is no gain
    assert _has_converged([1.0] * 11, 0.05) and not _has_converged([1.0] * 10, 0.05)
    assert not _has_converged([1.0] * 50, 0.0)
    assert not _has_converged([float("nan")] * 50, 0.05)


def test_a_perfect_start_is_left_soon():
    moving, _, _ = make_pair((24, 30))
    found, steps = watched(moving, moving, similarity=mse, factors=(1,), steps=100)
    assert len(steps) == 11 and steps[-1].stopped == "converged"
    assert found.abs().max() < 0.2  # Adam makes steps of any gradient, rounding errors too


@pytest.mark.parametrize("smoothness", [0, 4])
@pytest.mark.parametrize("velocity", [False, True])
def test_it_changes_the_start_and_does_not_forget_it(smoothness, velocity):
    moving, fixed, truth = make_pair((40, 34))
    settings = {"smoothness": smoothness, "velocity": velocity}
    # Detail of the start, far finer than the nodes, is still there.
    kept = refine(moving, fixed, truth, factors=(1,), steps=0, **settings)
    torch.testing.assert_close(kept, truth, atol=1e-5, rtol=0)
    _, (first,) = watched(moving, fixed, truth, factors=(1,), steps=1, **settings)
    torch.testing.assert_close(first.displacement, truth, atol=1e-5, rtol=0)
    # Half a truth is no worse a beginning than zero, and a better one after a few steps.
    few = {"factors": (1,), "steps": 5, "tolerance": 0.0, "weight": 0.1, **settings}
    from_half = refine(moving, fixed, 0.5 * truth, **few)
    from_zero = refine(moving, fixed, **few)
    assert (from_half - truth).norm(dim=1).mean() < (from_zero - truth).norm(dim=1).mean()


def test_a_velocity_is_composed_after_the_start():
    """compose(start, exp(v)), not the other way round: told apart by a start that turns."""
    moving, _, _ = make_pair((40, 34))
    turn = affine_displacement(torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]), (40, 34))
    shift = torch.zeros(1, 2, 40, 34)
    shift[:, 0] = 1.5
    expected = compose(turn, shift)  # moves by 1.5 along j of the moving image
    fixed = warp(moving, expected, padding="border")
    settings = {"factors": (1,), "similarity": mse, "weight": 0.0, "steps": 80, "tolerance": 0.0}
    found = refine(moving, fixed, turn, velocity=True, smoothness=8, **settings)
    inside = (..., slice(12, -12), slice(12, -12))
    other = compose(shift, turn)
    assert (found - expected)[inside].norm(dim=1).mean() < 0.2
    assert (other - expected)[inside].norm(dim=1).mean() > 1


def test_a_velocity_does_not_fold_where_a_displacement_does():
    moving, fixed, _ = make_pair((40, 34))
    moving = moving + 0.05 * torch.rand(moving.shape, generator=torch.Generator().manual_seed(5))
    settings = {"weight": 0.0, "smoothness": 1, "factors": (2, 1), "steps": 60, "tolerance": 0.0}
    torn = refine(moving, fixed, **settings)
    whole = refine(moving, fixed, velocity=True, **settings)
    assert folding_fraction(torn) > 0.02
    assert folding_fraction(whole) == 0
    after = [float(lncc(warp(moving, u, padding="border"), fixed)) for u in (0 * whole, whole)]
    assert after[1] < after[0] - 0.1


def test_smoothness_is_that_of_the_change():
    moving, fixed, _ = make_pair((48, 56))
    rough = [
        float(diffusion(u) / u.square().mean())
        for u in (
            refine(moving, fixed, smoothness=s, factors=(1,), weight=0.0) for s in (0, 2, 4, 8)
        )
    ]
    assert rough[0] > 2 * rough[1] and rough[1] > 1.3 * rough[2] > 2 * rough[3]


@pytest.mark.parametrize("smoothness", [3, 4, 6])
def test_a_push_at_one_node_is_a_gaussian_of_that_width(smoothness):
    before = torch.zeros(1, 2, 97, 97)
    nodes = optimise._still_nodes(before, smoothness)
    middle = nodes.shape[-1] // 2
    nodes[0, 0, middle, middle] = 1
    change = optimise._changed(before, nodes, smoothness, velocity=False)
    assert change[0, 1].abs().max() == 0
    away = torch.arange(97.0) - 48
    # The nodes are joined by straight lines: with two in a standard deviation, off by 1/32 at most.
    expected = torch.exp(-away.square() / (2 * smoothness**2))
    for row in (change[0, 0, 48], change[0, 0, :, 48]):
        torch.testing.assert_close(row / row.max(), expected, atol=0.04, rtol=0)


def test_the_nodes_lie_over_the_image_corner_on_corner():
    def shape(spatial: tuple[int, ...], smoothness: float) -> tuple[int, ...]:
        return tuple(optimise._still_nodes(torch.zeros(2, 3, *spatial), smoothness).shape)

    assert shape((9, 40, 41), 4) == (2, 3, 5, 21, 21)  # two voxels apart, or a little closer
    assert shape((9, 40, 41), 0) == shape((9, 40, 41), 1) == (2, 3, 9, 40, 41)
    assert shape((9, 2, 41), 1000) == (2, 3, 3, 2, 3)


@pytest.mark.parametrize("velocity", [False, True])
def test_the_same_push_everywhere_is_a_shift(velocity):
    """Told in voxels of the nodes, and with a velocity applied after the field that was there."""
    turn = affine_displacement(torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]), (41, 33))
    nodes = optimise._still_nodes(turn, 4)  # two voxels from node to node
    nodes[:, 0] = 0.75
    shift = torch.zeros_like(turn)
    shift[:, 0] = 1.5
    expected = compose(turn, shift) if velocity else turn + shift
    found = optimise._changed(turn, nodes, 4, velocity)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    if velocity:
        assert (found - compose(shift, turn)).abs().max() > 1


def test_a_weak_similarity_moves_as_fast_as_a_strong_one():
    """Adam divides by the gradient's size, but its epsilon would swallow that of a mean."""
    moving, fixed, _ = make_pair(SHAPES[0])
    settings = {"factors": (1,), "steps": 5, "tolerance": 0.0, "weight": 0.0, "smoothness": 0}
    strong = refine(moving, fixed, similarity=mse, **settings)
    weak = refine(moving, fixed, similarity=lambda a, b: 1e-3 * mse(a, b), **settings)
    assert (weak - strong).norm() < 0.05 * strong.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_finds_a_smooth_field_better_than_single_voxels_do(shape):
    moving, fixed, truth = make_pair(shape)
    noise = torch.Generator().manual_seed(3)
    moving, fixed = (x + 0.05 * torch.randn(x.shape, generator=noise) for x in (moving, fixed))
    settings = {"factors": (2, 1), "steps": 40, "weight": 0.1}
    middle = (..., *(slice(5, -5),) * len(shape))
    blurred, single = (
        float((refine(moving, fixed, smoothness=s, **settings) - truth)[middle].norm(dim=1).mean())
        for s in (3, 0)
    )
    assert blurred < 0.75 * single and blurred < 0.5 * truth[middle].norm(dim=1).mean()


@pytest.mark.parametrize("velocity", [False, True])
def test_a_pair_of_the_cohort_is_found_to_half_a_millimeter_without_folds(velocity):
    pair = brains.pair(1)
    assert pair.displacement is not None and pair.fixed_labels is not None
    brain = pair.fixed_labels > 0
    found, steps = watched(pair.moving, pair.fixed, velocity=velocity)
    error = endpoint_error(found, pair.displacement, pair.spacing, brain)
    assert error < 0.35  # DIPY's SyN-CC 0.29, the identity 3.15
    assert folding_fraction(found, brain) == 0
    assert [s.stopped for s in steps if s.stopped].count("converged") >= 2


@pytest.mark.parametrize("velocity", [False, True])
def test_items_of_a_batch_find_what_they_find_alone(velocity):
    pairs = [make_pair((24, 30), seed, dtype=torch.float64) for seed in (1, 2)]
    together = [torch.cat(parts) for parts in zip(*pairs, strict=True)]
    settings = {"factors": (2, 1), "steps": 15, "tolerance": 0.0, "velocity": velocity}
    both = refine(together[0], together[1], **settings)
    for i, (moving, fixed, _) in enumerate(pairs):
        alone = refine(moving, fixed, **settings)
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-3, rtol=0)

"""Exercise 12: right answers written other ways pass, wrong ones are named."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_lib.checks import grid_sampling as checks
from course_lib.spatial import identity_grid, warp
from tests.check_suite import Case, cases


def grid_by_permute(positions, shape):
    scale = 2 / (torch.tensor(shape, dtype=positions.dtype) - 1)
    return (positions * scale.view(1, 2, 1, 1) - 1).permute(0, 2, 3, 1)[..., [1, 0]]


def grid_by_center(positions, shape):
    half = [(n - 1) / 2 for n in shape]
    y, x = ((positions[:, d] - half[d]) / half[d] for d in (0, 1))
    return torch.cat([x[..., None], y[..., None]], dim=-1)


def grid_by_loops(positions, shape):
    rows = []
    for b, i, j in np.ndindex(len(positions), *positions.shape[2:]):
        y, x = positions[b, 0, i, j], positions[b, 1, i, j]
        rows.append(torch.stack([2 * x / (shape[1] - 1) - 1, 2 * y / (shape[0] - 1) - 1]))
    return torch.stack(rows).view(len(positions), *positions.shape[2:], 2)


def bilinear_by_loops(image, positions, weight=lambda d, n: 1 - d if n == 0 else d):
    batch, channels, height, width = image.shape
    result = []
    for b in range(batch):
        for c in range(channels):
            for n in range(positions.shape[2]):
                i, j = positions[b, 0, n], positions[b, 1, n]
                i0, j0 = int(torch.floor(i)), int(torch.floor(j))
                value = torch.zeros((), dtype=image.dtype)
                for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    k, m = i0 + di, j0 + dj
                    if 0 <= k < height and 0 <= m < width:
                        share = weight(i - i0, di) * weight(j - j0, dj)
                        value = value + share * image[b, c, k, m]
                result.append(value)
    return torch.stack(result).view(batch, channels, -1)


def bilinear_with_abs(image, positions):
    """Right but on the voxels, where torch gives abs the slope 0."""
    return bilinear_by_loops(image, positions, lambda d, n: 1 - (d - n).abs())


def bilinear_without_weight_0(image, positions):
    """`if weight > 0`, as in the lesson's sample_one: its slope is lost on the voxels."""
    return bilinear_by_loops(
        image,
        positions,
        lambda d, n: (1 - d if n == 0 else d) if d > 0 or n == 0 else torch.zeros(()),
    )


def bilinear_by_ceil(image, positions):
    """Right values on the voxels, too: but there the second neighbor is the first one again."""
    i, j = positions[:, 0], positions[:, 1]
    a, b = (i - i.floor())[:, None], (j - j.floor())[:, None]

    def at(k, m):
        return checks._fetch(image, k.long(), m.long())

    upper = (1 - b) * at(i.floor(), j.floor()) + b * at(i.floor(), j.ceil())
    lower = (1 - b) * at(i.ceil(), j.floor()) + b * at(i.ceil(), j.ceil())
    return (1 - a) * upper + a * lower


def bilinear_from_the_right(image, positions):
    """The second neighbor by ceil, the first one before it: the slope before each voxel."""
    i1, j1 = positions[:, 0].ceil(), positions[:, 1].ceil()
    a, b = (i1 - positions[:, 0])[:, None], (j1 - positions[:, 1])[:, None]

    def at(k, m):
        return checks._fetch(image, k.long(), m.long())

    lower = (1 - b) * at(i1, j1) + b * at(i1, j1 - 1)
    upper = (1 - b) * at(i1 - 1, j1) + b * at(i1 - 1, j1 - 1)
    return (1 - a) * lower + a * upper


def bilinear_by_relu(image, positions):
    rows, columns = (
        torch.relu(1 - (positions[:, d, :, None] - torch.arange(n)).abs())
        for d, n in enumerate(image.shape[2:])
    )
    return torch.einsum("bchw,bnh,bnw->bcn", image, rows, columns)


def bilinear_half_detached(image, positions):
    """A gradient along j only: wrong between the voxels, too."""
    return bilinear_by_loops(image, torch.stack([positions[:, 0].detach(), positions[:, 1]], dim=1))


def bilinear_by_padding(image, positions):
    """A frame of zeros, and a batch index instead of a loop."""
    height, width = image.shape[2:]
    padded = F.pad(image, (2, 2, 2, 2))
    i = positions[:, 0].clamp(-1.5, height + 0.5) + 2
    j = positions[:, 1].clamp(-1.5, width + 0.5) + 2
    i0, j0 = i.detach().floor(), j.detach().floor()
    batch = torch.arange(len(image))[:, None]
    result = 0
    for di in (0, 1):
        for dj in (0, 1):
            weight = (i - i0 if di else 1 - i + i0) * (j - j0 if dj else 1 - j + j0)
            found = padded[batch, :, (i0 + di).long(), (j0 + dj).long()]  # (B, N, C)
            result = result + (weight[..., None] * found).movedim(1, 2)
    return result


def bilinear_by_grid_sample(image, positions):
    grid = grid_by_permute(positions[..., None], image.shape[2:])
    return F.grid_sample(image, grid, align_corners=True)[..., 0]


def bilinear_by_hats(image, positions):
    """Every voxel with the weight max(0, 1 − distance) along each axis."""
    rows, columns = (
        (1 - (positions[:, d, :, None] - torch.arange(n)).abs()).clamp(min=0)
        for d, n in enumerate(image.shape[2:])
    )
    return torch.einsum("bchw,bnh,bnw->bcn", image, rows, columns)


def bilinear_with_ceil(image, positions):
    """Floor and ceil, the same on whole numbers: all weights are 0 there."""
    i, j = positions[:, 0], positions[:, 1]
    i0, i1, j0, j1 = i.floor(), i.ceil(), j.floor(), j.ceil()

    def at(k, m):
        return checks._fetch(image, k.long(), m.long())

    upper = (j1 - j)[:, None] * at(i0, j0) + (j - j0)[:, None] * at(i0, j1)
    lower = (j1 - j)[:, None] * at(i1, j0) + (j - j0)[:, None] * at(i1, j1)
    return (i1 - i)[:, None] * upper + (i - i0)[:, None] * lower


def bilinear_with_stairs(image, positions):
    """Right values, but the fractions are cut off from the gradient."""
    return bilinear_by_loops(image, positions.detach())


def border_by_clamped_fractions(image, positions):
    height, width = image.shape[2:]
    i, j = positions[:, 0], positions[:, 1]
    i0, j0 = i.floor().clamp(0, height - 2), j.floor().clamp(0, width - 2)
    a, b = (i - i0).clamp(0, 1)[:, None], (j - j0).clamp(0, 1)[:, None]

    def at(k, m):
        return checks._fetch(image, k.long(), m.long())

    upper = (1 - b) * at(i0, j0) + b * at(i0, j0 + 1)
    return (1 - a) * upper + a * ((1 - b) * at(i0 + 1, j0) + b * at(i0 + 1, j0 + 1))


def border_by_clamped_indices(image, positions):
    height, width = image.shape[2:]
    i0, j0 = positions[:, 0].floor(), positions[:, 1].floor()
    a, b = (positions[:, 0] - i0)[:, None], (positions[:, 1] - j0)[:, None]

    def at(k, m):
        rows, columns = k.long().clamp(0, height - 1), m.long().clamp(0, width - 1)
        return torch.stack([x[:, r, c] for x, r, c in zip(image, rows, columns, strict=True)])

    upper = (1 - b) * at(i0, j0) + b * at(i0, j0 + 1)
    return (1 - a) * upper + a * ((1 - b) * at(i0 + 1, j0) + b * at(i0 + 1, j0 + 1))


def border_by_grid_sample(image, positions):
    grid = grid_by_permute(positions[..., None], image.shape[2:])
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)[..., 0]


def border_by_torch_where(image, positions):
    height, width = image.shape[2:]
    i, j = positions[:, 0], positions[:, 1]
    i = torch.where(i < 0, 0.0, torch.where(i > height - 1, height - 1.0, i))
    j = torch.where(j < 0, 0.0, torch.where(j > width - 1, width - 1.0, j))
    return checks._bilinear(image, torch.stack([i, j], 1))


def labels_by_channel_numbers(labels, displacement):
    """A channel for every number from 0 on: the winner's channel is its label."""
    one_hot = F.one_hot(labels.squeeze(1)).permute(0, 3, 1, 2).float()
    return warp(one_hot, displacement).argmax(dim=1, keepdim=True)


def labels_one_at_a_time(labels, displacement):
    best = torch.zeros(labels.shape)
    result = torch.zeros_like(labels)
    for value in labels.unique().tolist():
        share = warp((labels == value).float(), displacement)
        result[share > best] = value
        best = torch.maximum(best, share)
    return result


def labels_by_numpy(labels, displacement):
    values = np.unique(labels.numpy())
    shares = [warp((labels == int(v)).float(), displacement).numpy() for v in values]
    return torch.from_numpy(values[np.argmax(np.concatenate(shares, axis=1), axis=1)])[:, None]


RIGHT = {
    "looks_at": [lambda: [1.75, 41.5], lambda: (torch.tensor(1.75), np.float64(41.5))],
    "to_grid": [grid_by_permute, grid_by_center, grid_by_loops],
    "bilinear": [
        bilinear_by_loops,
        bilinear_by_padding,
        bilinear_by_grid_sample,
        bilinear_from_the_right,
    ],
    "bilinear_border": [
        border_by_clamped_fractions,
        border_by_clamped_indices,
        border_by_grid_sample,
        border_by_torch_where,
    ],
    "edge_slopes": [lambda: [-4.0, 2.0, 0.0, 4.0]],
    "warp_labels": [labels_by_channel_numbers, labels_one_at_a_time, labels_by_numpy],
}
LOST_ON_VOXELS = [
    (bilinear_by_ceil, "its slope is 0"),
    (bilinear_by_relu, "its slope is 0"),
    (bilinear_without_weight_0, "minus the voxel's value"),
    (bilinear_with_abs, "the value of the next voxel"),
    (bilinear_by_hats, "the *sum*"),
]
"""Right but for their slope on the voxels, and what is said about it."""

WRONG = {
    "bilinear": [
        (bilinear_with_ceil, "law"),
        *((answer, "law") for answer, _ in LOST_ON_VOXELS),
        (bilinear_with_stairs, "gradient"),
        (bilinear_half_detached, "gradient"),
    ],
    "to_grid": [(lambda p, s: grid_by_permute(p, s).tolist(), "type")],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


@pytest.mark.parametrize("make", [checks._many_places, checks._beyond, checks._few_places])
def test_places_lie_between_the_voxels(make):
    """On a kink two right gradients would differ."""
    _, positions = make()
    assert (positions - positions.round()).abs().min() > 0.1


@pytest.mark.parametrize("make", [checks._structures, checks._two_halves])
def test_the_largest_share_wins_clearly(make):
    """Near a tie, rounding would decide between two right answers."""
    labels, displacement = make()
    shares = checks._shares(labels, displacement)
    first, second = shares.topk(2, dim=1).values.unbind(1)
    outside = shares.sum(1) == 0
    assert (first - second)[~outside].min() > 1e-3
    assert not (shares.sum(1)[~outside] < 1e-3).any()


def test_the_structures_meet_and_leave_the_image():
    labels, displacement = checks._structures()
    shares = checks._shares(labels, displacement)
    assert labels.unique().tolist() == [0, 2, 3, 7]
    assert 10 < int((shares.sum(1) == 0).sum()) < 130
    assert bool(((shares.amax(1) < 0.5) & (shares.sum(1) > 0.99)).any()), "three labels meet"


def test_predictions_are_what_torch_says():
    x = torch.zeros(1, 1, 2, 2)
    x[..., 0] = 2 * 2 / 8 - 1
    columns = torch.arange(9.0).expand(1, 1, 3, 9).contiguous()
    looks = float(F.grid_sample(columns, x, align_corners=False)[0, 0, 0, 0])
    pooled = F.avg_pool2d(F.avg_pool2d(torch.arange(80.0).expand(1, 1, 8, 80), 2), 2)
    assert (looks, float(pooled[0, 0, 0, 10])) == pytest.approx(checks.looks_at.reference())

    image = torch.tensor([[3.0, 5, 9, 4], [6, 8, 2, 7], [1, 5, 3, 6]])[None, None]
    slopes = []
    for padding in ("zeros", "border"):
        u = (torch.tensor([2.5, 0.75]).view(1, 2, 1, 1) - identity_grid((2, 2))).requires_grad_()
        warp(image, u, padding=padding)[0, 0, 0, 0].backward()
        slopes += u.grad[0, :, 0, 0].tolist()
    assert slopes == pytest.approx(checks.edge_slopes.reference(), abs=1e-4)


@pytest.mark.parametrize(("answer", "said"), LOST_ON_VOXELS)
def test_a_wrong_slope_on_the_voxels_is_named(answer, said):
    assert said in checks.bilinear.judge(answer).text


def test_the_four_slopes_on_the_voxels_are_far_apart():
    slopes = checks._slopes(checks._bilinear)
    zero = torch.zeros_like(slopes.found)
    assert torch.allclose(slopes.found, slopes.after, atol=1e-5)
    wrong = [zero, -slopes.value, slopes.value + slopes.after, slopes.before + slopes.after]
    for candidate in (slopes.before, slopes.after, (slopes.before + slopes.after) / 2):
        for other in wrong:
            assert ((candidate - other).abs() > 0.1).any(dim=2).all()


def test_a_sampler_of_the_next_voxel_has_no_slope_of_a_side():
    def steep(image, positions):  # right values, right slopes between, none of the known ones on
        whole = (positions == positions.round()).to(positions)
        return checks._bilinear(image, positions + 5 * whole * (positions - positions.detach()))

    assert "neither that before" in checks.bilinear.judge(steep).text


CHANGED = [
    # indices clamped at both ends, a = i - i0 taken from the clamped i0
    ("bilinear_border", checks._clamped(None, 0), "also if all indices"),
]


@pytest.mark.parametrize(("task", "answer", "said"), CHANGED)
def test_a_message_says_what_happened(task, answer, said):
    assert said in getattr(checks, task).judge(lambda *given: answer(*given)).text


@pytest.mark.parametrize("change", [torch.Tensor.float, torch.Tensor.double])
def test_labels_as_fractions_are_told_to_be_whole(change):
    outcome = checks.warp_labels.judge(lambda *given: change(labels_by_channel_numbers(*given)))
    assert outcome.stage == "dtype" and "hole numbers are asked for" in outcome.text
    assert "arange" not in outcome.text

"""Exercise 15: right answers written other ways pass, wrong ones are named."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from course_lib.checks import evaluation as checks
from course_lib.datasets import brains
from course_lib.spatial import identity_grid, warp_points
from tests.check_suite import Case, cases


def dice_by_loops(a, b, values):
    result = torch.zeros(len(a), len(values))
    for i in range(len(a)):
        for k, value in enumerate(values):
            p, q = set(np.flatnonzero(a[i] == value)), set(np.flatnonzero(b[i] == value))
            size = len(p) + len(q)
            result[i, k] = 2 * len(p & q) / size if size else float("nan")
    return result


def dice_by_one_hot(a, b, values):
    size = int(max(a.max(), b.max(), max(values))) + 1
    x, y = (F.one_hot(labels.flatten(1), size).float() for labels in (a, b))  # (B, voxels, size)
    return (2 * (x * y).sum(1) / (x.sum(1) + y.sum(1)))[:, values]


def dice_by_numpy(a, b, values):
    x, y = (labels.numpy()[:, 0, None] == np.reshape(values, (1, -1, 1, 1)) for labels in (a, b))
    with np.errstate(invalid="ignore"):
        both, size = (x & y).sum((2, 3)), x.sum((2, 3)) + y.sum((2, 3))
        return torch.from_numpy((2 * both / size).astype(np.float32))


def dice_by_complement(a, b, values):
    label = torch.tensor(values).view(1, -1, 1, 1)
    differ = ((a == label) ^ (b == label)).sum((2, 3))
    return 1 - differ / ((a == label).sum((2, 3)) + (b == label).sum((2, 3)))


def tre_by_loops(p, q, u, spacing):
    landed, result = warp_points(p, u), torch.zeros(p.shape[:2])
    for b, n in np.ndindex(*p.shape[:2]):
        squares = [((landed[b, n, d] - q[b, n, d]) * spacing[d]) ** 2 for d in range(2)]
        result[b, n] = sum(squares) ** 0.5
    return result


def tre_in_mm_first(p, q, u, spacing):
    s = torch.tensor(spacing)
    return torch.linalg.norm(warp_points(p, u) * s - q * s, dim=-1)


def hausdorff_by_loops(p, q, spacing):
    def nearest(one, other):
        return [
            min(np.sqrt(sum((s * (x - y)) ** 2 for s, x, y in zip(spacing, a, b, strict=True)))
                for b in other)
            for a in one
        ]  # fmt: skip

    return max(np.percentile(nearest(p, q), 95), np.percentile(nearest(q, p), 95))


def hausdorff_by_cdist(p, q, spacing):
    d = cdist(p * np.array(spacing), q * np.array(spacing))
    return float(max(np.quantile(d.min(0), 0.95), np.quantile(d.min(1), 0.95)))


def hausdorff_by_torch(p, q, spacing):
    s = torch.tensor(spacing, dtype=torch.float64)
    d = torch.cdist(torch.from_numpy(p) * s, torch.from_numpy(q) * s)
    return max(d.min(0).values.quantile(0.95), d.min(1).values.quantile(0.95))


def paired_by_loops(first, second, draws):
    means = [np.mean([first[i] - second[i] for i in row]) for row in draws]
    return [np.mean(first - second), np.percentile(means, 2.5), np.percentile(means, 97.5)]


def paired_same_draws_for_both(first, second, draws):
    means = first[draws].mean(1) - second[draws].mean(1)
    return first.mean() - second.mean(), *np.quantile(means, [0.025, 0.975])


def cheat_by_rank():
    """The brightest voxel of a tissue fetches from the brightest one."""
    pair, u = brains.pair(7), torch.zeros(1, 2, 224, 192)
    for value in range(4):
        inside, there = pair.fixed_labels[0, 0] == value, pair.moving_labels[0, 0] == value
        source = there.nonzero()[pair.moving[0, 0][there].argsort()]
        order = pair.fixed[0, 0][inside].argsort().argsort()
        pick = source[(order * len(source)) // len(order)]
        u[0][:, inside] = (pick - inside.nonzero()).T.float()
    return u


def cheat_by_one_voxel():
    """Every voxel of a tissue fetches from the same voxel: Dice is 1, and the map has no room."""
    pair, u = brains.pair(7), torch.zeros(1, 2, 224, 192)
    for value in range(4):
        inside = pair.fixed_labels[0, 0] == value
        first = (pair.moving_labels[0, 0] == value).nonzero()[0]
        u[0][:, inside] = (first - inside.nonzero()).T.float()
    return u


def nonsense_without_overlap():
    return 40 * torch.randn(1, 2, 224, 192, generator=torch.Generator().manual_seed(1))


def everything_to_one_place():
    return 100 - identity_grid((224, 192))[None]


RIGHT = {
    "shifted_squares": [lambda: [3 / 4, 39 / 40, 1], lambda: np.array([0.75, 0.975, 1]).tolist()],
    "dice": [dice_by_loops, dice_by_one_hot, dice_by_numpy, dice_by_complement],
    "tre_mm": [tre_by_loops, tre_in_mm_first],
    "hausdorff95": [hausdorff_by_loops, hausdorff_by_cdist, hausdorff_by_torch],
    "paired": [paired_by_loops, paired_same_draws_for_both],
    "cheat": [cheat_by_rank, cheat_by_one_voxel],
}
WRONG = {
    "shifted_squares": [(lambda: (0.75, 0.9, 1), "values"), (lambda: (0.75, 0.975), "shape")],
    "cheat": [
        (lambda: brains.pair(7).displacement, "goal"),
        (lambda: torch.zeros(1, 2, 224, 192), "goal"),
        (nonsense_without_overlap, "goal"),
        (everything_to_one_place, "goal"),
        (lambda: torch.zeros(2, 224, 192), "type"),
        (lambda: torch.zeros(1, 2, 224, 192).long(), "type"),
        (lambda: torch.full((1, 2, 224, 192), torch.nan), "type"),
        (lambda: np.zeros((1, 2, 224, 192)), "type"),
    ],
}


GIVEN = {"pair": brains.pair(7)}  # what the notebook's cells above the answer define


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG, namespace=GIVEN), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_the_thresholds_of_the_cheat_are_far_from_right_answers_and_from_honest_ones() -> None:
    """Clear of both on any machine: a scrambled field passes with room, the truth fails with it."""
    cheated = checks._what_a_table_says(checks._scrambled())
    honest = checks._what_a_table_says(brains.pair(7).displacement)
    assert cheated["lowest Dice"] > 0.99
    assert cheated["error (mm)"] > 40 and cheated["folding (%)"] > 40
    assert honest["error (mm)"] == 0 and honest["folding (%)"] < 1

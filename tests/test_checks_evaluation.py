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


def cheat_in_order(values=(0, 1, 2, 3), source="moving_labels", target="fixed_labels"):
    """The k-th voxel of a tissue fetches from the k-th one, both counted row by row."""
    pair, u = brains.pair(7), torch.zeros(1, 2, 224, 192)
    for value in values:
        inside = getattr(pair, target)[0, 0] == value
        there, wanted = (getattr(pair, source)[0, 0] == value).nonzero(), inside.nonzero()
        pick = there[torch.arange(len(wanted)) * len(there) // len(wanted)]
        u[0][:, inside] = (pick - wanted).T.float()
    return u


def places_instead_of_displacements():
    return checks._scrambled() + identity_grid((224, 192))


def written_into_a_copy():
    u = torch.zeros(1, 2, 224, 192)
    inside = brains.pair(7).fixed_labels[0, 0] == 3
    u[:, :, inside][0] = 20.0
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
    "cheat": [cheat_by_one_voxel, cheat_in_order, lambda: cheat_in_order((1, 2, 3))],
}
WRONG = {
    "shifted_squares": [(lambda: (0.75, 0.9, 1), "values"), (lambda: (0.75, 0.975), "shape")],
    "cheat": [
        (lambda: brains.pair(7).displacement, "goal"),
        (lambda: torch.full((1, 2, 224, 192), 50.0), "goal"),
        (lambda: cheat_in_order((3,)), "goal"),
        (nonsense_without_overlap, "goal"),
        (everything_to_one_place, "goal"),
        (lambda: torch.zeros(2, 224, 192), "type"),
        (lambda: torch.zeros(1, 2, 224, 192).long(), "type"),
        (lambda: torch.full((1, 2, 224, 192), torch.nan), "type"),
        (lambda: np.zeros((1, 2, 224, 192)), "type"),
    ],
}


NAMED = [  # slips of the cheat, and of what is asked besides the values, with words of the message
    (checks.cheat, written_into_a_copy, "writes into that copy"),
    (checks.cheat, lambda: torch.zeros(1, 2, 224, 192), "0 everywhere"),
    (checks.cheat, lambda: -checks._scrambled(), "its sign is wrong"),
    (checks.cheat, lambda: checks._scrambled().flip(1), "rows and columns are swapped"),
    (checks.cheat, places_instead_of_displacements, "minus x"),
    (
        checks.cheat,
        lambda: cheat_in_order((1, 2, 3), "fixed_labels", "moving_labels"),
        "fixed and moving are swapped",
    ),
    (checks.cheat, cheat_by_rank, "method B"),
    (checks.cheat, lambda: cheat_in_order((3,)), "Dice gray = 0."),
    (checks.dice, lambda a, b, v: dice_by_loops(a, b, v).double(), "NumPy counts in float64"),
]


@pytest.mark.parametrize(("check", "answer", "said"), NAMED)
def test_a_slip_is_named(check, answer, said) -> None:
    assert said in check.judge(answer).text


def dice_nan_where(lacks):
    def answer(a, b, values):
        result = dice_by_loops(a, b, values)
        for i, k in np.ndindex(*result.shape):
            if lacks(bool((a[i] == values[k]).any()), bool((b[i] == values[k]).any())):
                result[i, k] = torch.nan
        return result

    return answer


def hausdorff_from_a_best_of_0(p, q, spacing):
    def nearest(one, other):
        far = []
        for a in one:
            best = 0
            for b in other:
                best = min(best, np.linalg.norm((a - b) * spacing))
            far.append(best)
        return far

    return max(np.percentile(nearest(p, q), 95), np.percentile(nearest(q, p), 95))


def dice_of(reduce):
    """Dice written as a learner does, with the last step to choose."""

    def answer(a, b, values):
        columns = []
        for value in values:
            x, y = a == value, b == value
            size = x.sum((1, 2, 3)) + y.sum((1, 2, 3))
            columns.append(2 * (x & y).sum((1, 2, 3)) / size)
        return reduce(columns)

    return answer


def dice_of_union_by_plus(a, b, values):
    label = torch.tensor(values).view(1, -1, 1, 1)
    return 2 * ((a == label) & (b == label)).sum((2, 3)) / ((a == label) + (b == label)).sum((2, 3))


def dice_squeezed(a, b, values):
    a, b = a.squeeze(), b.squeeze()
    columns = [
        2 * ((a == v) & (b == v)).sum((-2, -1)) / ((a == v).sum((-2, -1)) + (b == v).sum((-2, -1)))
        for v in values
    ]
    return torch.stack(columns, dim=-1)


def tre_then(last):
    return lambda p, q, u, s: last((warp_points(p, u) - q) * torch.tensor(s))


def paired_first_rows(first, second, draws):
    d = first - second
    means = [d[draws[r]].mean() for r in range(len(d))]
    return (d.mean(), *np.percentile(means, [2.5, 97.5]))


AS_WRITTEN = [  # answers that the student handed in, with words of the hint they must get
    ("dice", dice_nan_where(lambda a, b: not b), "a structure that b lacks"),
    ("dice", dice_nan_where(lambda a, b: not a), "a structure that a lacks"),
    ("dice", dice_nan_where(lambda a, b: not (a and b)), "only one of the two"),
    ("dice", lambda a, b, v: dice_by_loops(a, b, [x for x in v if x]), "label 0 is left out"),
    ("dice", lambda a, b, v: dice_by_loops(a, b, list(set(v))), "order of a set"),
    ("dice", lambda a, b, v: dice_by_loops(a, b, sorted(v)), "sorted order"),
    ("dice", dice_of(torch.cat), "torch.cat"),
    ("dice", dice_of(lambda columns: torch.stack(columns, 0)), "rows and columns are swapped"),
    ("dice", dice_squeezed, "squeeze()"),
    ("dice", dice_of_union_by_plus, "OR"),
    ("tre_mm", tre_then(lambda miss: miss.norm(dim=2).mean()), "one number"),
    ("tre_mm", tre_then(lambda miss: miss.norm()), "without an axis"),
    ("tre_mm", tre_then(lambda miss: miss.norm(dim=2).max(1).values), "largest distance of each"),
    ("tre_mm", lambda p, q, u, s: tre_in_mm_first(p, p, u, s), "moving_points is not used"),
    ("hausdorff95", hausdorff_from_a_best_of_0, "always 0"),
    ("paired", paired_first_rows, "the first N rows"),
]


@pytest.mark.parametrize(("name", "answer", "said"), AS_WRITTEN)
def test_a_wrong_answer_gets_its_hint(name, answer, said) -> None:
    outcome = vars(checks)[name].judge(answer)
    assert outcome.stage == "mistake" and said in outcome.text


GIVEN = {"pair": brains.pair(7)}  # what the notebook's cells above the answer define


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG, namespace=GIVEN), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_the_thresholds_of_the_cheat_are_far_from_right_answers_and_from_honest_ones() -> None:
    """Clear of both on any machine: a scrambled field passes with room, the truth fails with it."""
    cheated = checks._what_a_table_says(checks._scrambled())
    honest = checks._what_a_table_says(brains.pair(7).displacement)
    assert min(cheated[f"Dice {name}"] for name in checks.TISSUES.values()) > 0.99
    assert cheated["error (mm)"] > 40 and cheated["folding (%)"] > 40
    plainest = checks._what_a_table_says(cheat_in_order())  # the least folded of the usual recipes
    assert plainest["folding (%)"] > 17 and plainest["error (mm)"] > 30
    assert honest["error (mm)"] == 0 and honest["folding (%)"] < 1

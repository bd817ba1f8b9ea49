"""Checks of exercise 15: Dice, Hausdorff 95, landmarks in mm, paired differences, and a cheat."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from course_lib import metrics, spatial
from course_lib.checks.core import Check, Goal, Mistake
from course_lib.datasets import Pair, brains
from course_lib.evaluation import warp_labels

SLUG = "15_evaluation"

Array = NDArray[np.float64]


# --- a shift by one voxel ------------------------------------------------------------------------


def _shifted_squares() -> tuple[float, float, float]:
    return 0.75, 0.975, 1.0


shifted_squares = Check(
    SLUG,
    "shifted_squares",
    _shifted_squares,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (0.6, 39 / 41, 1.0),
            "these are intersection over union (Jaccard), not Dice.\n"
            "Dice divides twice the overlap by the *sum* of the two areas, |A| + |B|, in which\n"
            "the overlap counts twice. Jaccard divides the overlap by the area of the union.",
        ),
        Mistake(
            lambda: (0.375, 0.4875, 1.0),
            "the factor 2 of Dice is missing: two equal squares would get ½.\n"
            "Dice is 2 |A ∩ B| / (|A| + |B|).",
        ),
        Mistake(
            lambda: (0.975, 0.75, 1.0),
            "right numbers, squares swapped: the small square comes first.\n"
            "Of 4 columns one is lost, of 40 columns one is lost: which is the larger share?",
        ),
        Mistake(
            lambda: (9 / 16, 39**2 / 40**2, 1.0),
            "this shifts the squares along both axes.\n"
            "They move by one voxel to the right only: all their rows still overlap.",
        ),
        Mistake(
            lambda: (0.25, 0.025, 1.0),
            "this is what does not overlap; Dice is what does: 1 minus yours.",
        ),
        Mistake(
            lambda: (0.75, 0.975, 0.0),
            "both Dice are right; the distance is not 0.\n"
            "The percentile leaves 5 % of the distances out. Here a whole side of each outline,\n"
            "more than a quarter of it, lies one voxel away from the other.",
        ),
        Mistake(
            lambda: (0.75, 0.975, 2**0.5),
            "both Dice are right; the distance is not the diagonal of a voxel.\n"
            "The squares move along the columns only: how far is it straight across?",
        ),
        Mistake(
            lambda: (0.75, 0.975, 0.95),
            "both Dice are right; the distance is not 0.95.\n"
            "The percentile is a rank, not a factor: 95 % of the distances are at most that long,\n"
            "and each of them here is either 0 or a whole step.",
        ),
        Mistake(
            lambda: (0.75, 0.98, 1.0),
            "right, but the second Dice is rounded: give it exactly, as a fraction if you like.",
        ),
        Mistake(
            lambda: (75.0, 97.5, 1.0),
            "right, but in percent: Dice goes from 0 to 1.",
        ),
    ],
    hints=[
        "The small square has 4 × 4 voxels. After the shift, how many columns of it overlap?",
        "Dice = 2 · overlap / (area + area). For the distance: how far is a voxel of one outline "
        "from the nearest voxel of the other, at the farthest?",
    ],
)


# --- Dice ----------------------------------------------------------------------------------------


def _label_maps() -> tuple[Tensor, Tensor, list[int]]:
    generator = torch.Generator().manual_seed(15)
    a = torch.randint(0, 4, (2, 1, 9, 7), generator=generator)
    noise = torch.randint(0, 4, a.shape, generator=generator)
    b = torch.where(torch.rand(a.shape, generator=generator) < 0.4, noise, a)
    a[1][a[1] == 3] = 0  # in the second item, structure 3 is in b only
    b[0][b[0] == 1] = 0  # in the first one, structure 1 is in a only
    a[:, :, 0, :3], b[:, :, 0, 2:5] = 5, 5
    return a, b, [5, 1, 0, 3, 8]


def _small_maps() -> tuple[Tensor, Tensor, list[int]]:
    a = torch.tensor([[1, 1, 0, 2], [0, 1, 0, 2]])[None, None]
    b = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 2]])[None, None]
    return a, b, [9, 1, 2]


def _counts(a: Tensor, b: Tensor, values: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap and the two sizes, (B, L) each."""
    label = torch.tensor(list(values)).view(1, -1, 1)
    in_a, in_b = a.flatten(1)[:, None] == label, b.flatten(1)[:, None] == label  # (B, L, voxels)
    return (in_a & in_b).sum(2), in_a.sum(2), in_b.sum(2)


def _by_counts(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Something of the counts in place of Dice."""
    return lambda a, b, values: formula(*_counts(a, b, values)).float()


def _with_nan_as(number: float) -> Callable[..., Tensor]:
    return lambda a, b, values: metrics.dice(a, b, values).nan_to_num(nan=number)


def _pooled(a: Tensor, b: Tensor, values: Sequence[int]) -> Tensor:
    both, in_a, in_b = (part.sum(0, keepdim=True) for part in _counts(a, b, values))
    return (2 * both / (in_a + in_b)).expand(len(a), -1)


def _agreement(a: Tensor, b: Tensor, values: Sequence[int]) -> Tensor:
    """All voxels on which the maps agree, whatever their label, in place of the overlap."""
    _, in_a, in_b = _counts(a, b, values)
    return 2 * (a == b).flatten(1).sum(1, keepdim=True) / (in_a + in_b)


def _nan_where(lacks: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """NaN by the sizes in a and in b, (B, L) each."""

    def wrong(a: Tensor, b: Tensor, values: Sequence[int]) -> Tensor:
        _, in_a, in_b = _counts(a, b, values)
        return torch.where(lacks(in_a, in_b), torch.nan, metrics.dice(a, b, values))

    return wrong


def _truth_as_label(a: Tensor, b: Tensor, values: Sequence[int]) -> Tensor:
    """What ``(a == b) == v`` counts: True is 1, False is 0, and no other label occurs."""
    _, in_a, in_b = _counts(a, b, values)
    agree = (a == b).flatten(1)
    both = torch.stack([(agree == value).sum(1) for value in values], dim=1)
    return 2 * both / (in_a + in_b)


def _all_that_occur(a: Tensor, b: Tensor, values: Sequence[int]) -> Tensor:
    """The labels of both maps, the background too, in place of the values."""
    return metrics.dice(a, b, torch.cat([a, b]).unique().tolist())


def _of_numbers(a: Tensor, b: Tensor, values: Sequence[int]) -> Tensor:
    """The formula for intensities, on the labels' numbers."""
    x, y = a.flatten(1).float(), b.flatten(1).float()
    return (2 * (x * y).sum(1) / (x.sum(1) + y.sum(1)))[:, None].expand(-1, len(values))


dice = Check(
    SLUG,
    "dice",
    metrics.dice,
    [_small_maps, _label_maps],
    mistakes=[
        Mistake(
            _by_counts(lambda both, a, b: both / (a + b - both)),
            "this divides by the union: it is the Jaccard index, also called IoU.\n"
            "Dice divides twice the overlap by the sum of the sizes, |A| + |B|.",
        ),
        Mistake(
            _by_counts(lambda both, a, b: both / (a + b)),
            "the factor 2 is missing: two equal structures get ½ instead of 1.",
        ),
        Mistake(
            _by_counts(lambda both, a, b: both / a),
            "this divides by |A| alone: the share of a's structure that b covers.\n"
            "A b that is far too large would get 1. Divide by |A| + |B|, and double the overlap.",
        ),
        Mistake(
            _by_counts(lambda both, a, b: both / b),
            "this divides by |B| alone: the share of b's structure that a covers.\n"
            "A b that is far too small would get 1. Divide by |A| + |B|, and double the overlap.",
        ),
        Mistake(
            _with_nan_as(0.0),
            "a structure that neither map has gets 0, as if a registration had missed it.\n"
            "There is nothing to measure: the value is NaN, so that a mean can leave it out.\n"
            "Likely cause: a small number added to the denominator, or a test for zero.",
        ),
        Mistake(
            _with_nan_as(1.0),
            "a structure that neither map has gets 1, which raises every mean for nothing.\n"
            "There is nothing to measure: the value is NaN, so that a mean can leave it out.",
        ),
        Mistake(
            _by_counts(lambda both, a, b: (2 * both + 1) / (a + b + 1)),
            "1 is added above and below the line.\n"
            "That keeps a *loss* from dividing by zero; what is reported has no such term: it\n"
            "gives a lost structure more than 0. Here 0 / 0 is meant to become NaN.",
        ),
        Mistake(
            _pooled,
            "the voxels of all items of the batch are counted together.\n"
            "Each item is a patient of its own, with a row of its own: sum over the spatial axes\n"
            "only. Counted together, large heads would count more than small ones.",
        ),
        Mistake(
            lambda a, b, values: _pooled(a, b, values)[0],
            "the voxels of all items of the batch are counted together, in one row.\n"
            "Each item is a patient of its own: the result is (B, L), a row for each.\n"
            "Sum over the axes 1, 2 and 3, not over the batch.",
        ),
        Mistake(
            _nan_where(lambda a, b: a == 0),
            "a structure that a lacks gets NaN, though b has it: it would drop out of a mean.\n"
            "It gets 0. NaN is for structures that neither map has.",
        ),
        Mistake(
            _nan_where(lambda a, b: b == 0),
            "a structure that b lacks gets NaN, though a has it: it would drop out of a mean,\n"
            "and a method that loses a structure would look the better for it.\n"
            "It gets 0. NaN is for structures that neither map has.",
        ),
        Mistake(
            _nan_where(lambda a, b: (a == 0) | (b == 0)),
            "a structure that only one of the two maps has gets NaN: it would drop out of a mean,\n"
            "and a method that loses a structure would look the better for it.\n"
            "It gets 0. NaN is for structures that neither map has.",
        ),
        Mistake(
            _truth_as_label,
            "(a == b) is True or False, and that is compared with the label.\n"
            "The overlap of structure v are the voxels where a is v *and* b is v:\n"
            "(a == v) & (b == v).",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, values).nanmean(1),
            "this is the mean over the structures.\n"
            "Return one number for each item and structure, (B, L): a mean hides the small ones.",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b),
            "the argument values is not used: these are the labels that occur, in sorted order.\n"
            "Column k belongs to values[k], also if no voxel has that label.",
        ),
        Mistake(
            _all_that_occur,
            "the argument values is not used: these are the labels that occur, 0 among them.\n"
            "Column k belongs to values[k], also if no voxel has that label.",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, [v for v in values if v != 0]),
            "label 0 is left out, though it is among the values: a column is missing.\n"
            "Whoever asks for a label gets its column; leaving out is done by the reader.",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, values).T.flatten(),
            "all numbers are in one row: the columns end to end, as torch.cat puts them.\n"
            "The result is (B, L), also for a batch of one: torch.stack(columns, dim=1).",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, values).flatten(),
            "all numbers are in one row; the result is (B, L), a row for each item of the batch,\n"
            "also for a batch of one.",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, values).squeeze(0),
            "for a batch of one the batch axis is lost; the result is (B, L), also where B is 1.\n"
            "Likely cause: squeeze(), which drops every axis of size 1. Name the axis: squeeze(1).",
        ),
        Mistake(
            _by_counts(lambda both, a, b: 2 * both / (a + b - both)),
            "twice the overlap is divided by the union, |A ∪ B|: two equal structures get 2.\n"
            "Likely cause: in_a + in_b on boolean masks, where + means OR. Sum each mask first,\n"
            "then add the two counts.",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, list(set(values))),
            "the columns are in the order of a set, which is not the order of values.\n"
            "Column k belongs to values[k], as they were given: go through the list itself.",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, sorted(values)),
            "the columns are in sorted order.\nColumn k belongs to values[k], as they were given.",
        ),
        Mistake(
            _agreement,
            "the overlap counts every voxel on which the maps agree, whatever its label.\n"
            "For structure v count the voxels where a is v *and* b is v.",
        ),
        Mistake(
            _of_numbers,
            "this computes with the labels as if they were intensities: label 3 weighs three\n"
            "times as much as label 1.\n"
            "A label is a name: compare it, a == v, and count.",
        ),
        Mistake(
            lambda a, b, values: metrics.dice(a, b, values).T,
            "rows and columns are swapped: the result is (B, L), a row for each item.",
        ),
    ],
    hints=[
        "For one structure v: in_a = a == v and in_b = b == v are boolean masks. Their overlap is "
        "(in_a & in_b).",
        "Sum over the axes 1, 2 and 3, not over 0. torch.stack(columns, dim=1) makes (B, L).",
        "An integer tensor divided by one is floating, and 0 / 0 is NaN there by itself. Python's "
        "own numbers raise a ZeroDivisionError instead: do without .item() and int().",
    ],
)


# --- landmarks in mm -----------------------------------------------------------------------------

_SPACING = (1.0, 0.75)


def _landmarks() -> tuple[Tensor, Tensor, Tensor, tuple[float, ...]]:
    generator = torch.Generator().manual_seed(16)
    field = 6 * spatial.smooth(torch.randn(2, 2, 14, 17, generator=generator), 2.0) + 1.5
    points = 3 + 7 * torch.rand(2, 5, 2, generator=generator)
    partners = spatial.warp_points(points, field) + torch.randn(2, 5, 2, generator=generator)
    return points, partners, field, (3.0, _SPACING[1])


def _two_landmarks() -> tuple[Tensor, Tensor, Tensor, tuple[float, ...]]:
    field = torch.zeros(1, 2, 9, 8)
    field[:, 0], field[:, 1] = 1.0, -2.0
    points = torch.tensor([[[4.0, 5.0], [2.0, 6.0]]])
    return points, torch.tensor([[[6.0, 4.0], [3.0, 1.0]]]), field, (2.0, 0.5)


def _lengths(miss: Tensor, spacing: Sequence[float]) -> Tensor:
    return (miss * torch.tensor(spacing)).norm(dim=2)


def _miss(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    return spatial.warp_points(p, u) - q


def _looked_up(points: Tensor, u: Tensor) -> Tensor:
    rows, columns = points.round().long().unbind(-1)
    return torch.stack([f[:, i, j].T for f, i, j in zip(u, rows, columns, strict=True)])


def _looked_up_below(points: Tensor, u: Tensor) -> Tensor:
    return _looked_up(points.floor(), u)


def _u_taken_for_mm(p: Tensor, q: Tensor, u: Tensor, spacing: Sequence[float]) -> Tensor:
    s = torch.tensor(spacing)
    return (p * s + (spatial.warp_points(p, u) - p) - q * s).norm(dim=2)


tre_mm = Check(
    SLUG,
    "tre_mm",
    metrics.target_registration_error,
    [_two_landmarks, _landmarks],
    mistakes=[
        Mistake(
            lambda p, q, u, s: _miss(q, p, u).norm(dim=2) * sum(s) / len(s),
            "this is the function with both bugs.\n"
            "Which image is the displacement a map *from*? And is a miss of one voxel along the\n"
            "rows as many mm as one along the columns?",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(q, p, u), s),
            "the spacing is right; the direction is not: this moves the *moving* points.\n"
            "u lives on the fixed grid: a fixed point p lies at p + u(p) in the moving image,\n"
            "and is compared with its partner there.",
        ),
        Mistake(
            lambda p, q, u, s: _miss(p, q, u).norm(dim=2) * sum(s) / len(s),
            "the direction is right, the mm are not: the length is times the mean spacing.\n"
            "Each component has its own mm per voxel: multiply the miss by the spacing *before*\n"
            "taking its length.",
        ),
        Mistake(
            lambda p, q, u, s: _miss(p, q, u).norm(dim=2),
            "this is in voxels: the spacing is not used.\n"
            "Multiply each component of the miss by its mm per voxel, then take the length.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, q, u), s[::-1]),
            "the spacing is used in the order (x, y), the reverse of the array's axes.\n"
            "spacing[0] belongs to axis 0, the rows.",
        ),
        Mistake(
            lambda p, q, u, s: (_miss(p, q, u) / torch.tensor(s)).norm(dim=2),
            "this divides by the spacing.\n"
            "The spacing is mm per voxel: voxels *times* mm per voxel.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(2 * p - spatial.warp_points(p, u) - q, s),
            "this moves the points against their arrows, to p − u(p).\n"
            "Points of the fixed image go along: p + u(p).",
        ),
        Mistake(
            _u_taken_for_mm,
            "the displacement is added as if it were in mm.\n"
            "It is in voxels, like the points: add it to p first, then scale the miss.",
        ),
        Mistake(
            lambda p, q, u, s: (_miss(p, q, u) * torch.tensor(s)).norm(dim=1),
            "this takes the length over the landmarks, axis 1.\n"
            "The components (row, column) are in the last axis: norm(dim=2) gives (B, N).",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, q, u), s) / 2**0.5,
            "this is the root of the *mean* of the squared components: too small by √2.\n"
            "A length is the root of their sum.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(p - q, s),
            "the displacement is not used: this is the error of doing nothing.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(p + _looked_up(p, u) - q, s),
            "the displacement is looked up at the nearest voxel.\n"
            "Landmarks lie between voxels: warp_points interpolates.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(p + _looked_up_below(p, u) - q, s),
            "the displacement is looked up at the voxel that .long() or int() cuts down to.\n"
            "Landmarks lie between voxels: warp_points interpolates.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, p, u), s),
            "this is how far u moves the landmark, landed − p; moving_points is not used.\n"
            "The miss is landed − moving_points: where it lands against where it should.",
        ),
        Mistake(
            lambda p, q, u, s: (
                spatial.warp_points(p * torch.tensor(s), u) - q * torch.tensor(s)
            ).norm(dim=2),
            "the points are turned into mm *before* they are warped.\n"
            "u is read at places in voxels: warp first, then scale the miss.",
        ),
        Mistake(
            lambda p, q, u, s: (_miss(p, q, u).square() * torch.tensor(s)).sum(2).sqrt(),
            "the spacing is multiplied after squaring: its root would count.\n"
            "Scale the components of the miss first, then square and add.",
        ),
        Mistake(
            lambda p, q, u, s: _miss(p, q, u).norm(dim=2) * s[0],
            "the length is times spacing[0] alone.\n"
            "Each component has its own mm per voxel: multiply the miss by the spacing *before*\n"
            "taking its length.",
        ),
        Mistake(
            lambda p, q, u, s: _miss(p, q, u).norm(dim=2) * s[1],
            "the length is times spacing[1] alone.\n"
            "Each component has its own mm per voxel: multiply the miss by the spacing *before*\n"
            "taking its length.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, q, u[:1].expand_as(u)), s),
            "every item of the batch is moved by the field of the first, u[0].\n"
            "Item b of the points belongs to item b of the displacement.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, q, u), s).mean(),
            "this is one number, the mean over all landmarks and all items.\n"
            "Return one distance for each landmark, (B, N): the largest one matters too.",
        ),
        Mistake(
            lambda p, q, u, s: (_miss(p, q, u) * torch.tensor(s)).norm(),
            "this is one length for everything: norm() without an axis runs over all of them.\n"
            "The components (row, column) are in the last axis: norm(dim=2) gives (B, N).",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, q, u), s).amax(1),
            "this is the largest distance of each item.\n"
            "Return one distance for each landmark, (B, N).",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, q, u), s).square(),
            "these are squared distances, in mm².\nTake the root: torch's norm does.",
        ),
        Mistake(
            lambda p, q, u, s: (_miss(p, q, u) * torch.tensor(s)).abs().sum(2),
            "this adds the components of the miss; its length is the root of the sum of squares.",
        ),
        Mistake(
            lambda p, q, u, s: _lengths(_miss(p, q, u), s).mean(1),
            "this is the mean over the landmarks.\n"
            "Return one distance for each landmark, (B, N): the largest one matters too.",
        ),
    ],
    hints=[
        "A fixed-space point p lies at p + u(p) in the moving image: that is warp_points.",
        "The miss, landed − moving_points, is (B, N, 2). torch.tensor(spacing) is (2,) and "
        "multiplies its last axis.",
    ],
)


# --- Hausdorff 95 --------------------------------------------------------------------------------


def _outlines() -> tuple[Array, Array, tuple[float, float]]:
    rng = np.random.default_rng(17)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 45))
    p = np.stack([20 + 11 * np.sin(angle), 22 + 9 * np.cos(angle)], axis=1)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 37))
    q = np.stack([22 + 10 * np.sin(angle), 20 + 12 * np.cos(angle)], axis=1)
    p[:4] += [[18, 3], [15, -4], [12, 16], [9, 1]]  # four points that are far away
    return p, q, (2.5, 0.8)


def _two_lines() -> tuple[Array, Array, tuple[float, float]]:
    p = np.stack([np.arange(6.0), np.zeros(6)], axis=1)
    return p, np.concatenate([p[:4] + np.array([0, 3]), [[2.0, 9.0]]]), (1.0, 2.0)


def _nearest(p: Array, q: Array, spacing: Sequence[float]) -> tuple[Array, Array]:
    """From each point to the nearest of the other set, both ways."""
    p, q = p * np.asarray(spacing), q * np.asarray(spacing)
    return np.asarray(KDTree(q).query(p)[0]), np.asarray(KDTree(p).query(q)[0])


def _hausdorff95(p: Array, q: Array, spacing: Sequence[float]) -> float:
    return float(max(np.percentile(one, 95) for one in _nearest(p, q, spacing)))


def _of_distances(formula: Callable[[Array, Array], Any]) -> Callable[..., float]:
    return lambda p, q, spacing: float(formula(*_nearest(p, q, spacing)))


def _of_each_to_each(formula: Callable[[Array], Any]) -> Callable[..., float]:
    """Something of the distances of each point to each, (N, M)."""

    def wrong(p: Array, q: Array, spacing: Sequence[float]) -> float:
        s = np.asarray(spacing)
        return float(formula(np.linalg.norm((p * s)[:, None] - (q * s)[None], axis=2)))

    return wrong


def _norm_over_the_points(p: Array, q: Array, spacing: Sequence[float]) -> float:
    lengths = np.linalg.norm((p[:, None] - q[None]) * np.asarray(spacing), axis=1)  # (N, 2)
    return float(max(np.percentile(lengths.min(1), 95), np.percentile(lengths.min(0), 95)))


def _last_of_95(distances: Array) -> float:
    return float(distances[distances <= np.percentile(distances, 95)].max())


hausdorff95 = Check(
    SLUG,
    "hausdorff95",
    _hausdorff95,
    [_two_lines, _outlines],
    mistakes=[
        Mistake(
            _of_distances(lambda there, back: np.percentile(there, 95)),
            "this looks from p to q only.\n"
            "A q with an extra piece far away looks perfect from p: each point of p has a near\n"
            "partner. Take the distances from q to p as well, and the larger percentile.",
        ),
        Mistake(
            _of_distances(lambda there, back: np.percentile(back, 95)),
            "this looks from q to p only.\n"
            "A q that lacks a piece of p looks perfect from q. Take the distances from p to q as\n"
            "well, and the larger percentile.",
        ),
        Mistake(
            _of_distances(lambda there, back: max(there.max(), back.max())),
            "this is the largest distance, the plain Hausdorff distance: the 100th percentile.\n"
            "Take the 95th of each direction: np.percentile(distances, 95).",
        ),
        Mistake(
            _of_distances(
                lambda there, back: (np.percentile(there, 95) + np.percentile(back, 95)) / 2
            ),
            "this is the mean of both directions; the definition asks for the larger one.",
        ),
        Mistake(
            _of_distances(lambda there, back: min(np.percentile(x, 95) for x in (there, back))),
            "this is the smaller of both directions; the definition asks for the larger one.",
        ),
        Mistake(
            _of_distances(lambda there, back: np.percentile(np.r_[there, back], 95)),
            "the distances of both directions are put together before the percentile is taken.\n"
            "Programs differ here. This course takes the percentile of each direction by itself,\n"
            "and then the larger one: the longer outline does not outvote the shorter.",
        ),
        Mistake(
            _of_distances(lambda there, back: max(np.percentile(x, 0.95) for x in (there, back))),
            "this is the percentile 0.95, close to the smallest distance.\n"
            "np.percentile counts from 0 to 100: 95. np.quantile counts from 0 to 1.",
        ),
        Mistake(
            _of_distances(lambda there, back: 0.95 * max(there.max(), back.max())),
            "this is 0.95 times the largest distance.\n"
            "The percentile is a rank: the distance that 95 % of the points stay below.",
        ),
        Mistake(
            _of_distances(lambda there, back: max(there.mean(), back.mean())),
            "this is a mean distance; the definition asks for the 95th percentile.",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p, q, (1.0, 1.0)),
            "this is in voxels: the spacing is not used.\n"
            "Multiply the points by the spacing first. Voxels that are longer one way also change\n"
            "which neighbor is the nearest.",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p, q, spacing[::-1]),
            "the spacing is used in the wrong order.\n"
            "spacing[0] belongs to the rows, component 0 of the points.",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p, q, (1.0, 1.0)) * float(np.mean(spacing)),
            "the distance in voxels is multiplied by the mean spacing.\n"
            "Multiply the points, each component by its own mm per voxel, before any distance.",
        ),
        Mistake(
            _of_each_to_each(lambda d: np.percentile(d, 95)),
            "this is a percentile of the distances between *all* pairs of points.\n"
            "Each point asks for its nearest partner only: the minimum over the other set, first.",
        ),
        Mistake(
            lambda p, q, spacing: max(
                float(np.percentile(one**2, 95)) for one in _nearest(p, q, spacing)
            ),
            "these are squared distances, in mm².\nTake the root before the percentile.",
        ),
        Mistake(
            _of_distances(
                lambda there, back: max(np.percentile(x**2, 95) for x in (there, back)) ** 0.5
            ),
            "the root is taken after the percentile, of squared distances.\n"
            "The percentile interpolates between two distances; between their squares it finds\n"
            "another value: take the root first.",
        ),
        Mistake(
            _of_each_to_each(
                lambda d: max(np.percentile(d.max(1), 95), np.percentile(d.max(0), 95))
            ),
            "each point takes the *farthest* of the other outline.\n"
            "Ask for the nearest: the minimum over the other set, then the percentile.",
        ),
        Mistake(
            _norm_over_the_points,
            "the length is taken over the points, axis 1, not over the components.\n"
            "p[:, None] − q[None] is (N, M, 2): np.linalg.norm(…, axis=2) gives (N, M).",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p * np.array(spacing), q, (1.0, 1.0)),
            "p is in mm, but q is still in voxels.\nMultiply both by the spacing.",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p, q * np.array(spacing), (1.0, 1.0)),
            "q is in mm, but p is still in voxels.\nMultiply both by the spacing.",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p, q, [1 / x for x in spacing]),
            "this divides by the spacing.\n"
            "The spacing is mm per voxel: voxels *times* mm per voxel.",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p, q, [x**2 for x in spacing]),
            "the spacing is multiplied twice.\n"
            "Points that are in mm give distances in mm: nothing is left to scale.",
        ),
        Mistake(
            lambda p, q, spacing: _hausdorff95(p, q, (1.0, 1.0)) * spacing[0],
            "the distance in voxels is multiplied by spacing[0] alone.\n"
            "Multiply the points, each component by its own mm per voxel, before any distance.",
        ),
        Mistake(
            lambda p, q, spacing: 0.0,
            "this is always 0.\n"
            "Likely cause: a smallest distance so far that starts at 0, so that none is smaller.\n"
            "Start at infinity, float('inf').",
        ),
        Mistake(
            _of_distances(lambda there, back: np.percentile(there, 95) + np.percentile(back, 95)),
            "this is the sum of both directions; the definition asks for the larger one.",
        ),
        Mistake(
            _of_distances(lambda there, back: max(_last_of_95(there), _last_of_95(back))),
            "this is the largest of those distances that are not above the percentile.\n"
            "np.percentile itself is the answer: it interpolates between two distances.",
        ),
        Mistake(
            _of_distances(
                lambda there, back: max(np.sort(x)[int(0.95 * len(x))] for x in (there, back))
            ),
            "this sorts the distances and takes the one at 0.95 times their number.\n"
            "np.percentile interpolates between two of them; with few points that differs.",
        ),
        Mistake(
            _of_distances(lambda there, back: max(np.percentile(x, 5) for x in (there, back))),
            "this is the percentile 5, close to the smallest distance; asked is the 95th.",
        ),
    ],
    hints=[
        "Multiply both sets of points by the spacing: then everything is in mm.",
        "All distances at once: p[:, None] − q[None] has shape (N, M, 2); np.linalg.norm(…, "
        "axis=2) gives (N, M). Its minimum over axis 1 is the way from p to q.",
        "np.percentile(…, 95) of each direction, then the larger of the two.",
    ],
)


# --- paired differences --------------------------------------------------------------------------


def _scores() -> tuple[Array, Array, NDArray[np.int64]]:
    rng = np.random.default_rng(18)
    base = rng.uniform(0.6, 0.95, 12)
    first = base - 0.02 + 0.05 * rng.exponential(size=12)  # some of them are worse
    return first, base, rng.integers(12, size=(400, 12))


def _three_scores() -> tuple[Array, Array, NDArray[np.int64]]:
    draws = np.array([[0, 1, 2], [0, 0, 1], [2, 2, 1], [1, 1, 1]])
    return np.array([0.9, 0.7, 0.8]), np.array([0.81, 0.72, 0.69]), draws


Interval = tuple[float, float, float]


def _interval(differences: Array, means: Array, low: float = 2.5, high: float = 97.5) -> Interval:
    ends = np.percentile(means, [low, high])
    return float(differences.mean()), float(ends[0]), float(ends[1])


def _paired(first: Array, second: Array, draws: NDArray[np.int64]) -> Interval:
    differences = first - second
    return _interval(differences, differences[draws].mean(1))


def _two_intervals(first: Array, second: Array, draws: NDArray[np.int64]) -> Interval:
    (_, low, high), (_, least, most) = (_interval(x, x[draws].mean(1)) for x in (first, second))
    return float(first.mean() - second.mean()), low - most, high - least


def _ends_subtracted(first: Array, second: Array, draws: NDArray[np.int64]) -> Interval:
    (_, low, high), (_, least, most) = (_interval(x, x[draws].mean(1)) for x in (first, second))
    return float(first.mean() - second.mean()), low - least, high - most


def _normal(first: Array, second: Array, draws: NDArray[np.int64]) -> Interval:
    differences = first - second
    reach = 1.96 * differences[draws].mean(1).std()
    return float(differences.mean()), differences.mean() - reach, differences.mean() + reach


def _standard_error(first: Array, second: Array, draws: NDArray[np.int64]) -> Interval:
    mean, reach = (first - second).mean(), 1.96 * (first - second).std(ddof=1) / len(first) ** 0.5
    return float(mean), float(mean - reach), float(mean + reach)


def _own_draws(first: Array, second: Array, draws: NDArray[np.int64]) -> Interval:
    own = np.random.default_rng(0).integers(len(first), size=draws.shape)
    return _paired(first, second, own)


def _offsets(first: Array, second: Array, draws: NDArray[np.int64]) -> Interval:
    mean, low, high = _paired(first, second, draws)
    return mean, low - mean, high - mean


paired = Check(
    SLUG,
    "paired",
    _paired,
    [_three_scores, _scores],
    mistakes=[
        Mistake(
            lambda first, second, draws: _paired(second, first, draws),
            "the sign is wrong: this is second − first.\n"
            "first − second is positive where the first method scores higher.",
        ),
        Mistake(
            _two_intervals,
            "this makes an interval for each method and compares their far ends.\n"
            "That asks whether two clouds overlap. Subtract case by case first, then resample the\n"
            "differences.",
        ),
        Mistake(
            _ends_subtracted,
            "this makes an interval for each method and subtracts their ends.\n"
            "The percentile of a difference is not the difference of percentiles: subtract case\n"
            "by case first, then resample.",
        ),
        Mistake(
            lambda first, second, draws: _interval(first - second, first - second),
            "these are percentiles of the differences themselves: where single cases lie.\n"
            "Asked is how sure their *mean* is: take the mean of each row of draws, then the\n"
            "percentiles of these means.",
        ),
        Mistake(
            lambda first, second, draws: _interval(first - second, (first - second)[draws].ravel()),
            "the mean of each resample is missing: these are percentiles of all that was drawn.\n"
            "differences[draws] is (R, N): take its mean over axis 1.",
        ),
        Mistake(
            lambda first, second, draws: _interval(first - second, (first - second)[draws].mean(0)),
            "the mean is taken over the resamples, not over the cases of each.\n"
            "differences[draws] is (R, N), a row for each resample: mean over axis 1.",
        ),
        Mistake(
            lambda first, second, draws: _interval(
                first - second, (first - second)[draws].mean(1), 5, 95
            ),
            "these ends leave 5 % out on each side: an interval of 90 %.\n"
            "95 % leave 2.5 % out on each side: the percentiles 2.5 and 97.5.",
        ),
        Mistake(
            lambda first, second, draws: _interval(
                first - second, (first - second)[draws].mean(1), 0.025, 0.975
            ),
            "these are the percentiles 0.025 and 0.975, both near the smallest mean.\n"
            "np.percentile counts from 0 to 100: 2.5 and 97.5.",
        ),
        Mistake(
            _normal,
            "this is mean ± 1.96 standard deviations.\n"
            "Asked are percentiles of the resampled means.",
        ),
        Mistake(
            _standard_error,
            "this is the mean ± 1.96 standard errors; the draws are not used.\n"
            "Asked are the percentiles of the resampled means.",
        ),
        Mistake(
            lambda first, second, draws: _interval(
                (first - second)[draws].mean(1), (first - second)[draws].mean(1)
            ),
            "the first number is the mean of the resampled means; it depends on the draws.\n"
            "Asked is the mean of the N differences themselves.",
        ),
        Mistake(
            lambda first, second, draws: _interval(
                first - second, (first - second)[draws].mean(1), 0, 100
            ),
            "these are the smallest and the largest of the resampled means.\n"
            "Asked are the percentiles 2.5 and 97.5.",
        ),
        Mistake(
            lambda first, second, draws: tuple(
                np.array(_paired(first, second, draws))[[1, 0, 2]].tolist()
            ),
            "right numbers in another order: return the mean first, then both ends.",
        ),
        Mistake(
            lambda first, second, draws: _interval(
                np.abs(first - second), np.abs(first - second)[draws].mean(1)
            ),
            "this takes absolute differences: noise alone would make a method seem better.\n"
            "Keep the sign.",
        ),
        Mistake(
            lambda first, second, draws: tuple(
                np.array(_paired(first, second, draws))[[0, 2, 1]].tolist()
            ),
            "both ends are right, but swapped: return the lower one first.",
        ),
        Mistake(
            _own_draws,
            "these are resamples of your own; the argument draws is not used.\n"
            "Row r of draws holds the indices of resample r: differences[draws].",
        ),
        Mistake(
            lambda first, second, draws: _paired(first, second, draws[: len(first)]),
            "only the first N rows of draws are used, a row for each case.\n"
            "draws has R rows, one for each resample: range(len(draws)), or no loop at all.",
        ),
        Mistake(
            lambda first, second, draws: _interval(first - second, (first[draws] - second).mean(1)),
            "only first is resampled: first[draws] − second subtracts other cases' scores.\n"
            "Subtract case by case first, then resample the differences.",
        ),
        Mistake(
            lambda first, second, draws: _interval(first - second, (first - second[draws]).mean(1)),
            "only second is resampled: first − second[draws] subtracts other cases' scores.\n"
            "Subtract case by case first, then resample the differences.",
        ),
        Mistake(
            lambda first, second, draws: _interval(first - second, (first - second)[draws].sum(1)),
            "these are percentiles of *sums* over the cases of each resample; asked are means.",
        ),
        Mistake(
            _offsets,
            "the ends are given as distances from the mean.\n"
            "Return the two percentiles themselves: where the interval begins and ends.",
        ),
        Mistake(
            lambda first, second, draws: _interval(
                np.full(1, np.median(first - second)), np.median((first - second)[draws], axis=1)
            ),
            "this takes medians, of the differences and of each resample; asked are means.",
        ),
        Mistake(
            lambda first, second, draws: (
                float(np.median(first - second)),
                *_paired(first, second, draws)[1:],
            ),
            "the first number is the median of the differences; asked is their mean.",
        ),
    ],
    hints=[
        "differences = first − second, (N,). NumPy indexes with an array: differences[draws] is "
        "(R, N), a resample in each row.",
        "The mean over axis 1 gives R means; np.percentile(means, [2.5, 97.5]) gives both ends.",
    ],
)


# --- a cheat -------------------------------------------------------------------------------------


TISSUES = {1: "fluid", 2: "gray", 3: "white"}


@lru_cache(maxsize=1)
def _cheated_pair() -> Pair:
    return brains.pair(7)


def _overlap(field: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Dice of each tissue, ``(3,)``."""
    return metrics.dice(warp_labels(labels, field), target, list(TISSUES))[0]


def _what_a_table_says(displacement: Tensor) -> dict[str, float]:
    """Overlap, and what it does not see."""
    pair = _cheated_pair()
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    assert pair.displacement is not None
    field, mask = displacement.float(), pair.fixed_labels > 0
    overlap = _overlap(field, pair.moving_labels, pair.fixed_labels)
    error = metrics.endpoint_error(field, pair.displacement, pair.spacing, mask)
    return {
        **{f"Dice {name}": float(d) for name, d in zip(TISSUES.values(), overlap, strict=True)},
        "error (mm)": float(error),
        "folding (%)": 100 * float(metrics.folding_fraction(field, mask)),
    }


def _cheated(measured: Mapping[str, float]) -> bool:
    lowest = min(measured[f"Dice {name}"] for name in TISSUES.values())
    return lowest >= 0.95 and measured["error (mm)"] >= 20 and measured["folding (%)"] >= 15


def _no_field(setting: object) -> str | None:
    """What is wrong with a displacement, or None."""
    if not isinstance(setting, Tensor):
        return "expected the displacement, a tensor (1, 2, 224, 192)."
    shape = tuple(setting.shape)
    if shape != (1, 2, 224, 192):
        clue = "\nThe batch axis is missing: [None]." if shape == (2, 224, 192) else ""
        return f"its shape is {shape}; expected (1, 2, 224, 192), in voxels.{clue}"
    if not setting.is_floating_point():
        return f"its dtype is {setting.dtype}; displacements are floating."
    if not bool(setting.isfinite().all()):
        return "it holds NaN or infinite values."
    return _slip(setting.detach().float())


def _slip(field: Tensor) -> str | None:
    """A field that would do, but for one slip; or one that the lesson gives away."""
    if not field.any():
        return (
            "your field is 0 everywhere.\n"
            "If you wrote into it: u[:, :, inside] makes a copy, and u[:, :, inside][0] = …\n"
            "writes into that copy. u[0][:, inside] = … writes into u."
        )
    if _cheated(_what_a_table_says(field)):
        return _by_brightness(field)
    if _cheated(_what_a_table_says(-field)):
        return "its sign is wrong: times −1 it would do.\nu(x) is the place to fetch from minus x."
    if _cheated(_what_a_table_says(field.flip(1))):
        return (
            "rows and columns are swapped: with its two channels exchanged it would do.\n"
            "Channel 0 moves along the rows, as nonzero() lists them: no flip is needed."
        )
    if _cheated(_what_a_table_says(field - spatial.identity_grid((224, 192)))):
        return (
            "these are the places to fetch from; a displacement is how far they are.\n"
            "u(x) is the place to fetch from minus x."
        )
    pair = _cheated_pair()
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    if _overlap(field, pair.fixed_labels, pair.moving_labels).min() >= 0.95:
        return (
            "fixed and moving are swapped: this cheats for the pair the other way round.\n"
            "u lives on the fixed grid: the voxels to fill are those of fixed_labels."
        )
    return None


def _by_brightness(field: Tensor) -> str | None:
    """Fields that fit even the noise: no recipe that knows labels only comes near."""
    pair = _cheated_pair()
    if float(metrics.correlation(spatial.warp(pair.moving, field), pair.fixed)) < 0.998:
        return None
    return (
        "this picks the voxels by their brightness, as method B of the lesson does.\n"
        "Find a recipe of your own that looks at labels only."
    )


def _scrambled() -> Tensor:
    """Each voxel fetches from a random voxel of the same label."""
    pair = _cheated_pair()
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    generator, u = torch.Generator().manual_seed(0), torch.zeros(1, 2, 224, 192)
    for value in (0, 1, 2, 3):
        inside = pair.fixed_labels[0, 0] == value
        wanted, source = inside.nonzero(), (pair.moving_labels[0, 0] == value).nonzero()
        pick = torch.randint(len(source), (len(wanted),), generator=generator)
        u[0][:, inside] = (source[pick] - wanted).T.float()
    return u


cheat = Goal(
    SLUG,
    "cheat",
    _what_a_table_says,
    _cheated,
    "a displacement of brains.pair(7) with Dice ≥ 0.95 for each of the three tissues, a mean\n"
    "error ≥ 20 mm, and folding ≥ 15 % of the brain.",
    reference=_scrambled,
    valid=_no_field,
    hints=[
        "Dice asks one question of each voxel: which label is fetched? Any voxel of that label "
        "will do.",
        "For one label: wanted = (fixed_labels == v).nonzero() are the voxels to fill, source = "
        "(moving_labels == v).nonzero() those to fetch from. torch.randint picks one for each.",
        "u(x) is the place to fetch from minus x. Do it for the background too: its voxels are "
        "neighbors of the cortex.",
    ],
)

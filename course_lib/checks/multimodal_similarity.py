"""Checks of exercise 16: joint histograms, mutual information, patch distances, a blind spot."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.checks.core import Check, Goal, Law, Mistake, finite_number
from course_lib.checks.running import count_operations
from course_lib.datasets import brains
from course_lib.landscapes import landscape, translations
from course_lib.losses import mutual_information as information_loss
from course_lib.losses import ncc
from course_lib.spatial import smooth

SLUG = "16_multimodal_similarity"

LOG_2 = 0.6931471805599453

Histogram = Callable[[Tensor, Tensor, int], Tensor]


# --- four tables ---------------------------------------------------------------------------------


def _in_bits() -> tuple[int, int, int, int]:
    return 1, 1, 0, 0


information_in_bits = Check(
    SLUG,
    "information_in_bits",
    _in_bits,
    [lambda: ()],
    atol=1e-3,
    mistakes=[
        Mistake(
            lambda: (1, -1, 0, 0),
            "mutual information is never negative.\n"
            "B is the table of an image and its negative: knowing a, you know b. Which bin is the\n"
            "brighter one does not matter; only correlation has a sign.",
        ),
        Mistake(
            lambda: (1, 0, 0, 0),
            "B is A with the columns exchanged.\n"
            "Knowing a, can you guess b in B? Write its row sums, column sums and cells down.",
        ),
        Mistake(
            lambda: (1, 1, 0, 1),
            "in D, b has 1 bit of its own, but what does a say about it?\n"
            "All voxels lie in one row: a is constant, H(a) = 0.",
        ),
        Mistake(
            lambda: (1, 1, 2, 1),
            "these are the joint entropies H(a, b).\n"
            "Mutual information is H(a) + H(b) − H(a, b): what the pair has less than the two\n"
            "images have apart.",
        ),
        Mistake(
            lambda: (2, 2, 2, 1),
            "this is H(a) + H(b).\nTake the joint entropy H(a, b) off.",
        ),
        Mistake(
            lambda: (1, 1, 1, 0),
            "these are the entropies of a alone.\n"
            "In C, every cell is the product of its row sum and its column sum. What follows?",
        ),
        Mistake(
            lambda: (LOG_2, LOG_2, 0, 0),
            "right, in nats: the question asks for bits.\nDivide by log(2), or take log2.",
        ),
        Mistake(
            lambda: (-1, -1, 0, 0),
            "right size, wrong sign: mutual information is never negative.\n"
            "I = H(a) + H(b) − H(a, b), and each entropy is −Σ p log p.",
        ),
        Mistake(
            lambda: (2, 2, 0, 0),
            "twice too much for A and B.\n"
            "Their joint entropy, 1 bit for two full cells of ½, has to be taken off: 1 + 1 − 1.",
        ),
        Mistake(
            lambda: (1, 1, 0, 0.5),
            "in D, all voxels lie in one row: a is constant, H(a) = 0.\n"
            "What can a constant say about b? Write H(a), H(b) and H(a, b) down.",
        ),
        Mistake(
            lambda: (math.nan, math.nan, 0, math.nan),
            "where a cell is empty you got NaN, from 0 · log 0.\n"
            "An empty cell counts as 0: leave it out of the sum.",
        ),
        Mistake(
            lambda: (0.5, 0.5, 0, 0),
            "half of it: A and B each have two full cells, and both contribute.\n"
            "Each contributes ½ · log2(½ / (½ · ½)) = ½.",
        ),
    ],
    hints=[
        "Row sums, column sums, cells: three entropies a table. A coin has 1 bit, four equal "
        "cells have 2, a certainty has 0.",
        "I = H(a) + H(b) − H(a, b). For A: 1 + 1 − 1.",
    ],
)


# --- joint histogram -----------------------------------------------------------------------------


def _joint_histogram(a: Tensor, b: Tensor, bins: int) -> Tensor:
    return _four_cells(a, b, bins) / len(a)


def _four_cells(a: Tensor, b: Tensor, bins: int, swap: bool = False, mixed: bool = True) -> Tensor:
    """Counts with two-bin weights; the shares swapped, or without the mixed cells, if asked."""
    i, j = (x.detach().floor().clamp(max=bins - 2) for x in (a, b))
    s, t = a - i, b - j
    if swap:
        s, t = 1 - s, 1 - t
    corner = (i * bins + j).long()
    counts = a.new_zeros(bins * bins)
    cells = [(0, (1 - s) * (1 - t)), (bins + 1, s * t)]
    cells += [(1, (1 - s) * t), (bins, s * (1 - t))] if mixed else []
    for step, weights in cells:
        counts = counts.index_add(0, corner + step, weights)
    return counts.view(bins, bins)


def _counted(i: Tensor, j: Tensor, bins: int) -> Tensor:
    """Whole counts, each voxel in one cell."""
    flat = (i.long() * bins + j.long()).clamp(0, bins * bins - 1)
    counts = torch.bincount(flat, minlength=bins * bins).float()
    return counts.view(bins, bins) / len(i)


def _equal_widths(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """Counting as np.histogram2d does: equal bins from the smallest to the largest value."""
    places = [(x - x.min()) / (x.max() - x.min()).clamp(min=1e-6) * bins for x in (a, b)]
    i, j = (place.floor().clamp(max=bins - 1) for place in places)
    return _counted(i, j, bins)


def _overwritten(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """``p[i, j] += w``: of all voxels in a cell, the last one stays."""
    i, j = (x.floor().clamp(max=bins - 2).long() for x in (a, b))
    s, t = a - i, b - j
    p = torch.zeros(bins, bins)
    p[i, j] += (1 - s) * (1 - t)
    p[i, j + 1] += (1 - s) * t
    p[i + 1, j] += s * (1 - t)
    p[i + 1, j + 1] += s * t
    return p / len(a)


def _added_shares(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """Shares of the two bins added where they have to be multiplied."""
    i, j = (x.floor().clamp(max=bins - 2) for x in (a, b))
    s, t = a - i, b - j
    corner, counts = (i * bins + j).long(), a.new_zeros(bins * bins)
    for down, up in enumerate((1 - s, s)):
        for right, along in enumerate((1 - t, t)):
            counts = counts.index_add(0, corner + down * bins + right, up + along)
    return counts.view(bins, bins) / len(a)


def _stretched(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """Positions taken for intensities, and stretched from the smallest to the largest."""
    places = [(x - x.min()) / (x.max() - x.min()).clamp(min=1e-6) * (bins - 1) for x in (a, b)]
    return _joint_histogram(places[0], places[1], bins)


def _shares_of_fraction(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """The shares ``a % 1`` beside a lower bin of at most bins − 2: the last bin moves down."""
    i, j = (x.floor().clamp(max=bins - 2) for x in (a, b))
    return _joint_histogram(i + a % 1, j + b % 1, bins)


def _without_whole(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """``ceil(a) − a`` and ``a − floor(a)``: at a whole position both are 0."""
    counted = (a != a.floor()) & (b != b.floor())
    return _four_cells(a[counted], b[counted], bins) / len(a)


def _mixed_up(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """The shares of the cells (i, j + 1) and (i + 1, j) exchanged."""
    i, j = (x.floor().clamp(max=bins - 2) for x in (a, b))
    return _joint_histogram(i + b - j, j + a - i, bins)


def _without_top(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """Voxels in the last bin of either image are left out."""
    kept = (a < bins - 1) & (b < bins - 1)
    return _joint_histogram(a[kept], b[kept], bins)


def _few_voxels() -> tuple[Tensor, Tensor, int]:
    return torch.tensor([0.5, 2.0, 1.2, 1.25]), torch.tensor([1.9, 0.0, 0.3, 0.3]), 3


def _many_voxels() -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(16)
    a = 4 * torch.rand(300, generator=generator) ** 2 + 0.7
    b = 5.5 - a + 0.4 * torch.rand(300, generator=generator)
    a[7], b[11] = 6.0, 6.0  # the last bin, both included
    return a, b.clamp(0, 6), 7


def _between_bins() -> tuple[Tensor, Tensor]:
    """Positions away from the bins' centers, where the hat has no kink."""
    generator = torch.Generator().manual_seed(17)
    whole = torch.randint(0, 5, (2, 40), generator=generator)
    a, b = whole + 0.1 + 0.8 * torch.rand(2, 40, generator=generator)
    return a, b


def _slopes(function: Histogram) -> list[Tensor | None]:
    """The gradients of a weighted sum of the cells; None where none arrives."""
    positions = [x.requires_grad_() for x in _between_bins()]
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(18))
    try:
        p = function(positions[0], positions[1], 6)
        if not p.requires_grad:
            return [None, None]
        return list(torch.autograd.grad((p * weights).sum(), positions, allow_unused=True))
    except RuntimeError as error:
        if "derivative for" in str(error):  # torch.bincount with weights
            return [None, None]
        raise


def _has_slopes(answer: Histogram) -> bool:
    return all(slope is not None for slope in _slopes(answer))


def _right_slopes(answer: Histogram) -> bool:
    pairs = zip(_slopes(answer), _slopes(_joint_histogram), strict=True)
    return all(
        got is not None and expected is not None and torch.allclose(got, expected, atol=1e-4)
        for got, expected in pairs
    )


class _Sizes(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, and lets everything happen."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, Tensor):
                sparse = part.layout != torch.strided  # only what it stores takes memory
                self.largest = max(self.largest, part._nnz() if sparse else part.numel())
        return result


_VOXELS, _BINS = 3000, 64  # bins × voxels is 192,000, four cells each is 12,000
_MOST_OPERATIONS = 400


def _crowd() -> tuple[Tensor, Tensor]:
    a, b = (_BINS - 1) * torch.rand(2, _VOXELS, generator=torch.Generator().manual_seed(19))
    return a, b


def _small_arrays(answer: Histogram) -> bool:
    with _Sizes() as sizes:
        answer(*_crowd(), _BINS)
    return sizes.largest < _VOXELS * _BINS / 2


def _few_operations(answer: Histogram) -> bool:
    return count_operations(answer, *_crowd(), _BINS) < _MOST_OPERATIONS


joint_histogram = Check(
    SLUG,
    "joint_histogram",
    _joint_histogram,
    [_few_voxels, _many_voxels],
    mistakes=[
        Mistake(
            lambda a, b, bins: _counted(a.round(), b.round(), bins),
            "this counts each voxel in its nearest bin only.\n"
            "Counting has no gradient. Share the voxel: 3.2 gives 0.8 to bin 3 and 0.2 to bin 4.",
        ),
        Mistake(
            lambda a, b, bins: _counted(a.floor(), b.floor(), bins),
            "this counts each voxel in the bin below it only.\n"
            "Counting has no gradient. Share the voxel: 3.2 gives 0.8 to bin 3 and 0.2 to bin 4.",
        ),
        Mistake(
            _equal_widths,
            "this counts in equal bins from the smallest to the largest value, each voxel once.\n"
            "Likely cause: histogram2d, histc. Positions are in units of bins already: 3.2 lies\n"
            "between bins 3 and 4, and is shared by them.",
        ),
        Mistake(
            _four_cells,
            "the shares are right; the sum is the number of voxels instead of 1.\n"
            "Divide by len(a).",
        ),
        Mistake(
            lambda a, b, bins: _joint_histogram(b, a, bins),
            "the table is transposed: here b has the rows.\nRow i belongs to a, column j to b.",
        ),
        Mistake(
            lambda a, b, bins: _four_cells(a, b, bins, swap=True) / len(a),
            "the shares are swapped: the farther bin gets more.\n"
            "3.2 is nearer to 3: bin 3 gets 1 − 0.2 = 0.8, bin 4 gets 0.2.",
        ),
        Mistake(
            _overwritten,
            "where several voxels fall into one cell, only the last one is kept.\n"
            "p[i, j] += w with arrays of indices writes each cell once. Use index_add or\n"
            "index_put with accumulate=True, which add up.",
        ),
        Mistake(
            lambda a, b, bins: _four_cells(a, b, bins, mixed=False) / len(a),
            "two of the four cells are missing.\n"
            "(lower, lower) gets (1 − s)(1 − t) and (upper, upper) gets s t; there are also\n"
            "(lower, upper) with (1 − s) t and (upper, lower) with s (1 − t).",
        ),
        Mistake(
            _added_shares,
            "the shares of row and column are added; a cell gets their product.\n"
            "Row 3 gets 0.8 and column 5 gets 0.5, so cell (3, 5) gets 0.8 · 0.5 = 0.4.",
        ),
        Mistake(
            lambda a, b, bins: _four_cells(a, b, bins) / bins**2,
            "this is divided by the number of cells; the sum should be 1.\n"
            "Divide by the number of voxels, len(a).",
        ),
        Mistake(
            _shares_of_fraction,
            "the brightest voxels are put one bin too low.\n"
            "At a = bins − 1 the lower bin is bins − 2, so the upper one gets a share of 1:\n"
            "s = a − i with the bin after the clamp, not a % 1.",
        ),
        Mistake(
            _without_whole,
            "voxels at whole positions are lost: there ceil(a) − a and a − floor(a) are both 0.\n"
            "The two shares are 1 − s and s: at 3.0, bin 3 gets 1.",
        ),
        Mistake(
            _mixed_up,
            "the shares of two cells are exchanged.\n"
            "Cell (i, j + 1) gets (1 − s) t and has the next number; cell (i + 1, j) gets\n"
            "s (1 − t) and comes a row, bins numbers, later.",
        ),
        Mistake(
            _without_top,
            "voxels in the last bin are left out; both ends of the range are included.\n"
            "At a = bins − 1 take bins − 2 as the lower bin: the upper one gets a share of 1.",
        ),
        Mistake(
            _stretched,
            "this stretches the positions to the range from 0 to bins − 1 first.\n"
            "They are in units of bins already: use a and b as they are.",
        ),
        Mistake(
            lambda a, b, bins: _four_cells(a, b, bins) / _four_cells(a, b, bins).max(),
            "here the fullest cell is 1; the sum should be.\nDivide by the number of voxels.",
        ),
    ],
    laws=[
        Law(
            _small_arrays,
            "right values, but with an array of bins × voxels inside (or a larger one).\n"
            "A 3D image would need gigabytes. Add the four shares of each voxel to a flat\n"
            "histogram: index_add(0, row · bins + column, shares).",
        ),
        Law(
            _few_operations,
            f"right values, but {_VOXELS} voxels in {_BINS} bins take {_MOST_OPERATIONS} or more\n"
            "operations: a loop over the voxels, or one over the bins, each of which goes through\n"
            "all voxels again. index_add adds the shares of all voxels at once.",
        ),
        Law(
            _has_slopes,
            "right values, but no gradient reaches both a and b.\n"
            "The cells' numbers may be cut off (floor has no slope anyway); the shares s = a − i\n"
            "may not. Likely cause: detach(), numpy(), item(), or bincount and histogram\n"
            "functions, which have no gradient.",
        ),
        Law(
            _right_slopes,
            "right values, but the gradient is wrong.\n"
            "A voxel's share of the upper bin grows with slope 1, that of the lower one falls\n"
            "with slope 1. Likely cause: one of the shares is detached.",
        ),
    ],
    hints=[
        "The lower bin is i = floor(a), at most bins − 2; the share of the upper one is s = a − i. "
        "The same for b: j and t.",
        "In a flat histogram of bins · bins cells, cell (i, j) has the number i · bins + j. Which "
        "numbers have (i, j + 1), (i + 1, j) and (i + 1, j + 1)?",
        "counts = counts.index_add(0, numbers, shares) adds up all voxels of a cell, and has a "
        "gradient. Four of these, then view(bins, bins) / len(a).",
    ],
)


# --- mutual information --------------------------------------------------------------------------


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum()


def _information(p: Tensor) -> Tensor:
    return _entropy(p.sum(1)) + _entropy(p.sum(0)) - _entropy(p)


def _log_ratio(p: Tensor, chance: Tensor) -> Tensor:
    return (p * (p.clamp(min=1e-12).log() - chance.clamp(min=1e-12).log())).sum()


def _with_empty_cells() -> tuple[Tensor]:
    # The empty row and the empty column have one number: exchanged, the marginals stay finite.
    p = torch.tensor([[8.0, 1, 0, 0], [3, 0, 4, 0], [0, 2, 9, 0], [0, 0, 0, 0]])
    return (p / p.sum(),)


def _full_table() -> tuple[Tensor]:
    p = torch.rand(5, 5, generator=torch.Generator().manual_seed(20)) ** 3 + 0.02
    p[1] *= 4
    return (p / p.sum(),)


def _small_cells() -> tuple[Tensor]:
    """Most cells hold 8 voxels of 10,000: few, and yet they count."""
    p = torch.full((6, 6), 8e-4)
    p.diagonal().copy_((1 - 30 * 8e-4) * torch.arange(1, 7) / 21)
    return (p,)


def _slope(answer: Callable[[Tensor], Tensor]) -> Tensor | None:
    p = _with_empty_cells()[0].requires_grad_()
    result = answer(p)
    if not result.requires_grad:
        return None
    return torch.autograd.grad(result, p, allow_unused=True)[0]


def _has_slope(answer: Callable[[Tensor], Tensor]) -> bool:
    return _slope(answer) is not None


def _finite_slope(answer: Callable[[Tensor], Tensor]) -> bool:
    slope = _slope(answer)
    return slope is not None and bool(slope.isfinite().all())


def _full_cells(p: Tensor, least: float = 0) -> Tensor:
    full = p > least
    return p[full] / torch.outer(p.sum(1), p.sum(0))[full]


mutual_information = Check(
    SLUG,
    "mutual_information",
    _information,
    [_with_empty_cells, _full_table, _small_cells],
    atol=1e-4,  # a bound of 1e-6 under the logarithm is small enough
    mistakes=[
        Mistake(
            lambda p: _log_ratio(p, torch.outer(p.sum(0), p.sum(1))),
            "the marginals are exchanged.\n"
            "Row i belongs to a: p_i is the sum over the columns j, p.sum(1), and it has to stand\n"
            "along the rows of the product: p.sum(1)[:, None] * p.sum(0)[None, :].",
        ),
        Mistake(
            lambda p: (p * (p / torch.outer(p.sum(1), p.sum(0))).log()).sum(),
            "the marginals are right; empty cells give NaN: 0 · log 0.\n"
            "Their contribution is 0. Bound what goes into the logarithm from below,\n"
            "clamp(min=1e-12), or take only the cells with p > 0.",
        ),
        Mistake(
            lambda p: (p * (p / torch.outer(p.sum(0), p.sum(1))).log()).sum(),
            "empty cells give NaN, and the marginals are exchanged: both bugs are still there.\n"
            "Row i belongs to a: which axis do you sum over for p_i? And what is 0 · log 0?",
        ),
        Mistake(
            lambda p: _log_ratio(p, (p.sum(1) * p.sum(0)).expand_as(p)),
            "p.sum(1) * p.sum(0) multiplies the two marginals number by number: one row.\n"
            "The product needs each p_i with each p_j: p.sum(1)[:, None] * p.sum(0)[None, :].",
        ),
        Mistake(
            lambda p: (p * (p / (p.sum(1) * p.sum(0))).log()).sum(),
            "empty cells give NaN, and p.sum(1) * p.sum(0) multiplies number by number: one row.\n"
            "The product needs each p_i with each p_j: p.sum(1)[:, None] * p.sum(0)[None, :].\n"
            "And what is 0 · log 0?",
        ),
        Mistake(
            lambda p: _full_cells(p).log().sum(),
            "the factor p before the logarithm is missing.\n"
            "A cell contributes p log(p / (p_i p_j)): a pair that is rare counts little.",
        ),
        Mistake(
            lambda p: (p[p > 1e-3] * _full_cells(p, 1e-3).log()).sum(),
            "cells with few voxels are left out too; only empty ones contribute nothing.\n"
            "With many bins most cells are small: take p > 0, not p > 1e-3.",
        ),
        Mistake(
            lambda p: (p * ((p + 1e-3) / (torch.outer(p.sum(1), p.sum(0)) + 1e-3)).log()).sum(),
            "the small number under the logarithm is not small: it changes the result.\n"
            "Cells of 0.001 and less are usual. Take 1e-12.",
        ),
        Mistake(
            lambda p: -_information(p),
            "right size, wrong sign.\n"
            "Mutual information is 0 or more; the minus comes when it becomes a loss.",
        ),
        Mistake(
            lambda p: _information(p) / LOG_2,
            "right, in bits; nats are asked for.\nUse the natural logarithm, log.",
        ),
        Mistake(
            lambda p: _information(p) / 2.302585092994046,
            "right, with the logarithm of base 10.\nUse the natural logarithm, log.",
        ),
        Mistake(
            _entropy,
            "this is the joint entropy H(a, b).\nI = H(a) + H(b) − H(a, b).",
        ),
        Mistake(
            lambda p: _entropy(p.sum(1)) + _entropy(p.sum(0)) + _entropy(p),
            "the joint entropy is added; it has to be subtracted.\nI = H(a) + H(b) − H(a, b).",
        ),
        Mistake(
            lambda p: (_entropy(p.sum(1)) + _entropy(p.sum(0))) / _entropy(p),
            "this is normalized mutual information, a ratio.\n"
            "Asked is the difference I = H(a) + H(b) − H(a, b).",
        ),
        Mistake(
            lambda p: 2 * _information(p) / (_entropy(p.sum(1)) + _entropy(p.sum(0))),
            "this is divided by the mean entropy, one of the normalized versions.\n"
            "Asked is I = H(a) + H(b) − H(a, b) itself.",
        ),
        Mistake(
            lambda p: _information(p) / p.numel(),
            "this is the mean over the cells; the formula has a sum: sum(), not mean().",
        ),
        Mistake(
            lambda p: _log_ratio(p, torch.ones_like(p)),
            "this is Σ p log p; the product of the marginals is missing.\n"
            "Divide by p_i p_j under the logarithm.",
        ),
        Mistake(
            lambda p: (
                p * (p.clamp(min=1e-12) / torch.outer(p.sum(1), p.sum(0)).clamp(min=1e-12)).log()
            ),
            "these are the contributions of the cells; add them up.",
        ),
    ],
    laws=[
        Law(
            _has_slope,
            "right values, but no gradient reaches p.\n"
            "Likely cause: detach(), item(), numpy(), torch.no_grad(), or torch.tensor(…) of a\n"
            "result; nothing could be registered by this.",
        ),
        Law(
            _finite_slope,
            "right values, but where a cell is empty the gradient is NaN or infinite.\n"
            "A registration by this loss would be NaN after its first step. torch.where or\n"
            "nan_to_num after the logarithm hide the NaN and keep the slope; xlogy has an\n"
            "infinite slope at 0. Bound what goes *into* the logarithm, clamp(min=1e-12), or take\n"
            "only p[p > 0].",
        ),
    ],
    hints=[
        "Which sum has one number for each row? p.sum(1) sums over axis 1, the columns.",
        "0 · log 0 is 0 in the formula, and NaN in the computer. What could you do to p before the "
        "logarithm sees it?",
    ],
)


# --- patch distances -----------------------------------------------------------------------------


def _patch_mean(values: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _neighbors(image: Tensor, mode: str = "replicate") -> Tensor:
    """Above, below, left, right: (B, 4, H, W)."""
    p = F.pad(image, (1, 1, 1, 1), mode=mode)
    cut = [p[..., :-2, 1:-1], p[..., 2:, 1:-1], p[..., 1:-1, :-2], p[..., 1:-1, 2:]]
    return torch.cat(cut, dim=1)


def _patch_distances(image: Tensor) -> Tensor:
    return _patch_mean((image - _neighbors(image)).square())


def _padded_once(image: Tensor) -> Tensor:
    """Patches of an image padded by two: beyond the border, voxel and neighbor are both copies."""
    wide = F.pad(image, (2, 2, 2, 2), mode="replicate")
    inner = wide[..., 1:-1, 1:-1]
    cut = [wide[..., :-2, 1:-1], wide[..., 2:, 1:-1], wide[..., 1:-1, :-2], wide[..., 1:-1, 2:]]
    return F.avg_pool2d((inner - torch.cat(cut, dim=1)).square(), 3, stride=1)


def _over_v(distances: Tensor) -> Tensor:
    return distances / distances.mean(1, keepdim=True)


def _two_slices() -> tuple[Tensor]:
    noise = torch.randn(2, 1, 9, 12, generator=torch.Generator().manual_seed(21))
    return (1 + 2 * smooth(noise, 0.6),)


def _dot() -> tuple[Tensor]:
    image = torch.zeros(1, 1, 5, 7)
    image[0, 0, 1, 2] = 1
    image[0, 0, 4, 6] = 2
    return (image,)


patch_distances = Check(
    SLUG,
    "patch_distances",
    _patch_distances,
    [_dot, _two_slices],
    mistakes=[
        Mistake(
            lambda image: _patch_mean((image - _neighbors(image, "circular")).square()),
            "at the border this takes the voxel of the opposite side.\n"
            "Likely cause: roll(), or an index of −1. Pad by the border value instead, as\n"
            'patch_mean does: F.pad(image, (1, 1, 1, 1), mode="replicate").',
        ),
        Mistake(
            lambda image: _patch_mean((image - _neighbors(image, "circular")).square())[
                :, [1, 0, 3, 2]
            ],
            "each pair of directions is exchanged, and the border takes that of the other\n"
            "side. roll(1) brings what lies before, roll(−1) what lies behind; neither stops at\n"
            'the border: F.pad(image, (1, 1, 1, 1), mode="replicate") repeats it.',
        ),
        Mistake(
            lambda image: _patch_mean((image - _neighbors(image, "constant")).square()),
            "outside the image this takes 0; the border value is to be repeated.\n"
            'F.pad(image, (1, 1, 1, 1), mode="replicate")',
        ),
        Mistake(
            lambda image: _patch_distances(image)[:, [1, 0, 3, 2]],
            "each pair of directions is exchanged: channel 0 is for the voxel above, (i − 1, j).\n"
            "A slice [:-2] of a padded axis holds what lies *before* each voxel; roll(1) brings\n"
            "what lies before, too.",
        ),
        Mistake(
            lambda image: _patch_distances(image)[:, [2, 3, 0, 1]],
            "the axes are exchanged: channels 0 and 1 are for the neighbors above and below (axis\n"
            "−2, the rows), 2 and 3 for left and right (axis −1).",
        ),
        Mistake(
            lambda image: _patch_distances(image)[:, [1, 0, 2, 3]],
            "above and below are exchanged: channel 0 is for the voxel above, (i − 1, j).\n"
            "A slice [:-2] of a padded axis holds what lies *before* each voxel.",
        ),
        Mistake(
            lambda image: _patch_distances(image)[:, [0, 1, 3, 2]],
            "left and right are exchanged: channel 2 is for the voxel to the left, (i, j − 1).\n"
            "A slice [:-2] of a padded axis holds what lies *before* each voxel.",
        ),
        Mistake(
            lambda image: _patch_mean((image - _neighbors(image, "reflect")).square()),
            "outside the image this takes the voxel one inside the border (reflect).\n"
            'The border value is to be repeated: F.pad(image, (1, 1, 1, 1), mode="replicate")',
        ),
        Mistake(
            lambda image: F.avg_pool2d(
                (image - _neighbors(image)).square(), 3, stride=1, padding=1
            ),
            "at the border, zeros count into the mean: avg_pool2d pads by 0.\n"
            "Use patch_mean, which repeats the border value.",
        ),
        Mistake(
            _padded_once,
            "right inside; the border differs: the image is padded by two voxels here, and the\n"
            "mean taken without padding. Take image − neighbor on the image's own voxels first;\n"
            "patch_mean then repeats these *squared differences* at the border.",
        ),
        Mistake(
            lambda image: _patch_distances(image)[:, :, None],
            "the shape has one axis too many: stack makes a new axis.\n"
            "The neighbors have a channel axis already: torch.cat(…, dim=1) joins along it.",
        ),
        Mistake(
            lambda image: _patch_distances(image).transpose(0, 1)[:, :, None],
            "the shape has one axis too many: stack makes a new axis.\n"
            "The neighbors have a channel axis already: torch.cat(…, dim=1) joins along it.",
        ),
        Mistake(
            lambda image: _patch_distances(image).transpose(0, 1).flatten(0, 1)[:, None],
            "the four directions lie along axis 0, the batch.\n"
            "cat joins along axis 0 unless told otherwise: torch.cat(…, dim=1).",
        ),
        Mistake(
            lambda image: _over_v(_patch_distances(image)),
            "these are D / V: the division by V (which is 0 in a flat patch) comes later.\n"
            "Asked are the patch distances D themselves.",
        ),
        Mistake(
            lambda image: torch.exp(-_over_v(_patch_distances(image))),
            "this is exp(−D / V), nearly the whole of MIND.\n"
            "Asked are the patch distances D themselves; the rest comes in the next cell.",
        ),
        Mistake(
            lambda image: (image - _neighbors(image)).square(),
            "these are the squared differences of single voxels.\n"
            "patch_mean of them gives the distances of patches.",
        ),
        Mistake(
            lambda image: (_patch_mean(image) - _neighbors(_patch_mean(image))).square(),
            "this compares the mean intensities of the patches.\n"
            "First the squared differences, then their mean over the patch: two patches with\n"
            "equal means may look quite different.",
        ),
        Mistake(
            lambda image: _patch_mean(image - _neighbors(image)).square(),
            "the mean is taken before the square: differences of both signs cancel.\n"
            "Square first, then patch_mean.",
        ),
        Mistake(
            lambda image: _patch_mean((image - _neighbors(image)).abs()),
            "these are absolute differences; the definition has squares.",
        ),
        Mistake(
            lambda image: _patch_mean(image - _neighbors(image)),
            "the square is missing: differences of both signs cancel.\n"
            "Square the differences, then take patch_mean.",
        ),
        Mistake(
            lambda image: 9 * _patch_distances(image),
            "nine times too much: this is the sum over the patch, not its mean.",
        ),
        Mistake(
            lambda image: _patch_distances(image).clamp(min=1e-20).sqrt(),
            "this is the root of the mean square; leave the root out.",
        ),
        Mistake(
            lambda image: _patch_mean(_neighbors(image).square()),
            "the voxel's own value is missing: this is the mean square of the neighbors.\n"
            "Take image − neighbor before squaring.",
        ),
        Mistake(
            lambda image: _patch_distances(image).mean(1, keepdim=True),
            "this is the mean over the four directions, one channel: V of the lesson.\n"
            "Keep the four apart, channel by channel.",
        ),
    ],
    gradient=True,
    hints=[
        'Pad the image by its border value: F.pad(image, (1, 1, 1, 1), mode="replicate") is two '
        "rows and two columns larger.",
        "padded[..., :-2, 1:-1] holds, for each voxel, the value above it. Three more such slices, "
        "joined by torch.cat(…, dim=1).",
        "patch_mean((image − neighbors).square()) does all four channels at once.",
    ],
)


# --- a contrast that blinds correlation ----------------------------------------------------------

_STEPS = range(-12, 13)


@lru_cache(maxsize=1)
def _slice() -> Tensor:
    return brains.real_pair().fixed


def _best_shifts(m: float) -> dict[str, float]:
    """Where r² and mutual information of T1 and its parabola are largest, in voxels."""
    t1 = _slice()
    other = 1 - ((t1 - m) / max(m, 1 - m)) ** 2
    poses = translations(list(_STEPS), axis=1)
    squared = landscape(lambda a, b: ncc(a, b).square(), other, t1, poses)
    information = -landscape(information_loss, other, t1, poses)
    return {
        "r² at the truth": float(squared[12]),
        "best shift by r²": _STEPS[int(squared.argmax())],
        "best shift by mutual information": _STEPS[int(information.argmax())],
    }


def _from_0_to_1(setting: object) -> str | None:
    if problem := finite_number(setting):
        return problem
    if not 0 <= float(setting) <= 1:  # type: ignore[arg-type]
        return f"expected a number from 0 to 1, got {setting}: T1 has no other intensities."
    return None


blind_peak = Goal(
    SLUG,
    "blind_peak",
    _best_shifts,
    lambda m: abs(m["best shift by r²"]) >= 6 and m["best shift by mutual information"] == 0,
    "a peak for which r² is largest at least 6 voxels away from the truth, and mutual\n"
    "information at the truth (a shift of 0).",
    reference=lambda: 0.44,
    valid=_from_0_to_1,
    hints=[
        "A place can beat the truth only if r² at the truth is near 0. Look at the number that the "
        "cell prints for 0.3, 0.4, 0.5 and 0.6: it falls and rises again.",
        "r² is near 0 where no line helps. The background, half of the voxels, is one point at 0; "
        "nearly all of the brain lies above 0.44, where the parabola falls if its peak is below. "
        "For which m does the rise from background to brain just cancel the fall within the brain?",
        "r² at the truth is smallest near 0.42. From there go up in steps of 0.01: it has to be "
        "small, and to rise when you shift.",
    ],
)

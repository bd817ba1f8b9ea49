"""Exercise 16: right answers written other ways pass, wrong ones are named."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_lib.checks import multimodal_similarity as checks
from tests.check_suite import Case, Function, cases

# --- joint histogram


def histogram_by_index_put(a, b, bins):
    i, j = a.floor().long().clamp(0, bins - 2), b.floor().long().clamp(0, bins - 2)
    p = torch.zeros(bins, bins)
    for di in (0, 1):
        for dj in (0, 1):
            w = (1 - (a - i - di).abs()) * (1 - (b - j - dj).abs())
            p = p.index_put((i + di, j + dj), w, accumulate=True)
    return p / a.numel()


def histogram_by_scatter(a, b, bins):
    left, right = a.floor().clamp(max=bins - 2), b.floor().clamp(max=bins - 2)
    up, along = a - left, b - right
    rows = torch.cat([left, left + 1, left, left + 1]).long()
    columns = torch.cat([right, right, right + 1, right + 1]).long()
    shares = torch.cat([(1 - up) * (1 - along), up * (1 - along), (1 - up) * along, up * along])
    flat = torch.zeros(bins * bins).scatter_add(0, rows * bins + columns, shares)
    return flat.reshape(bins, bins) / shares.sum().detach()


def histogram_with_a_margin(a, b, bins):
    """No clamp: one bin more at the end, which gets nothing, cut off again."""
    i, j = a.floor(), b.floor()
    s, t = a - i, b - j
    p = torch.zeros(bins + 1, bins + 1)
    p.index_put_((i.long(), j.long()), (1 - s) * (1 - t), accumulate=True)
    p.index_put_((i.long(), j.long() + 1), (1 - s) * t, accumulate=True)
    p.index_put_((i.long() + 1, j.long()), s * (1 - t), accumulate=True)
    p.index_put_((i.long() + 1, j.long() + 1), s * t, accumulate=True)
    return p[:bins, :bins] / len(a)


def histogram_by_sparse(a, b, bins):
    i, j = a.detach().floor().clamp(max=bins - 2), b.detach().floor().clamp(max=bins - 2)
    corner = torch.arange(len(a))
    cells = torch.zeros(bins * bins)
    for cell, w in (
        (i * bins + j, (1 + i - a) * (1 + j - b)),
        (i * bins + j + 1, (1 + i - a) * (b - j)),
        (i * bins + bins + j, (a - i) * (1 + j - b)),
        (i * bins + bins + j + 1, (a - i) * (b - j)),
    ):
        cells = cells + torch.zeros(bins * bins).index_add(0, cell.long()[corner], w)
    return (cells / len(a)).view(bins, bins)


def dense_histogram(a, b, bins):
    k = torch.arange(bins)[:, None]
    return (1 - (k - a).abs()).clamp(min=0) @ (1 - (k - b).abs()).clamp(min=0).T / len(a)


def histogram_by_loop(a, b, bins):
    p = torch.zeros(bins, bins)
    for x, y in zip(a, b, strict=True):
        i, j = min(int(x), bins - 2), min(int(y), bins - 2)
        s, t = x - i, y - j
        shares = torch.stack([1 - s, s])[:, None] * torch.stack([1 - t, t])
        p = p + F.pad(shares, (j, bins - 2 - j, i, bins - 2 - i))
    return p / len(a)


def histogram_by_bincount(a, b, bins):
    i, j = a.floor().clamp(max=bins - 2), b.floor().clamp(max=bins - 2)
    s, t = a - i, b - j
    p = torch.zeros(bins * bins)
    for step, w in (
        (0, (1 - s) * (1 - t)),
        (1, (1 - s) * t),
        (bins, s * (1 - t)),
        (bins + 1, s * t),
    ):
        p = p + torch.bincount((i * bins + j).long() + step, w.detach(), bins * bins)
    return p.view(bins, bins) / len(a)


def histogram_half_detached(a, b, bins):
    return dense_free(a, b.detach(), bins)


def histogram_with_a_detached_share(a, b, bins):
    i, j = a.floor().clamp(max=bins - 2).long(), b.floor().clamp(max=bins - 2).long()
    s, t = a - i, b - j
    p = torch.zeros(bins, bins)
    p = p.index_put((i, j), (1 - s).detach() * (1 - t), accumulate=True)
    p = p.index_put((i, j + 1), (1 - s).detach() * t, accumulate=True)
    p = p.index_put((i + 1, j), s * (1 - t), accumulate=True)
    p = p.index_put((i + 1, j + 1), s * t, accumulate=True)
    return p / len(a)


def histogram_by_rows(a, b, bins):
    j = b.floor().long().clamp(0, bins - 2)
    t, rows = b - j, []
    for i in range(bins):
        w = (1 - (a - i).abs()).clamp(min=0)
        row = torch.zeros(bins).index_add(0, j, w * (1 - t)).index_add(0, j + 1, w * t)
        rows.append(row)
    return torch.stack(rows) / len(a)


def histogram_by_weighted_bincount(a, b, bins):
    i, j = a.floor().clamp(max=bins - 2), b.floor().clamp(max=bins - 2)
    s, t = a - i, b - j
    p, corner = torch.zeros(bins * bins), (i * bins + j).long()
    for step, w in (
        (0, (1 - s) * (1 - t)),
        (1, (1 - s) * t),
        (bins, s * (1 - t)),
        (bins + 1, s * t),
    ):
        p = p + torch.bincount(corner + step, w, bins * bins)
    return p.view(bins, bins) / len(a)


def histogram_by_sparse_product(a, b, bins):
    i, j = a.long().clamp(max=bins - 2), b.long().clamp(max=bins - 2)
    s, t = a - i, b - j
    n = torch.arange(len(a))
    rows = torch.stack([torch.cat([i, i + 1]), torch.cat([n, n])])
    columns = torch.stack([torch.cat([n, n]), torch.cat([j, j + 1])])
    left = torch.sparse_coo_tensor(rows, torch.cat([1 - s, s]), (bins, len(a)))
    right = torch.sparse_coo_tensor(columns, torch.cat([1 - t, t]), (len(a), bins))
    return torch.sparse.mm(left, right).to_dense() / len(a)


dense_free = histogram_by_index_put


# --- mutual information


def information_by_entropies(p):
    def entropy(q):
        q = q[q > 0]
        return -torch.sum(q * torch.log(q))

    return entropy(p.sum(dim=1)) + entropy(p.sum(dim=0)) - entropy(p.flatten())


def information_by_full_cells(p):
    chance = p.sum(1, keepdim=True) @ p.sum(0, keepdim=True)
    full = p > 0
    return (p[full] * torch.log(p[full] / chance[full])).sum()


def information_with_a_tiny_number(p):
    eps = 1e-10
    chance = torch.outer(p.sum(1), p.sum(0))
    return (p * torch.log((p + eps) / (chance + eps))).sum()


def information_bounded(eps):
    def answer(p):
        chance = torch.outer(p.sum(1), p.sum(0))
        return (p * ((p + eps) / (chance + eps)).log()).sum()

    return answer


def information_by_clamped_cells(p, least):
    p = p.clamp(min=least)
    return (p * (p / torch.outer(p.sum(1), p.sum(0))).log()).sum()


def information_above(least):
    def answer(p):
        full = p > least
        return (p[full] * (p[full] / torch.outer(p.sum(1), p.sum(0))[full]).log()).sum()

    return answer


def information_by_where_before(p):
    chance = torch.outer(p.sum(1), p.sum(0))
    ratio = torch.where(p > 0, p, 1) / torch.where(p > 0, chance, 1)
    return (p * ratio.log()).sum()


def information_by_loops(p):
    total = torch.zeros(())
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            if p[i, j] > 0:
                total = total + p[i, j] * torch.log(p[i, j] / (p[i].sum() * p[:, j].sum()))
    return total


def information_hidden_by_where(p):
    ratio = p / torch.outer(p.sum(1), p.sum(0))
    return torch.where(p > 0, p * ratio.log(), torch.zeros(())).sum()


def information_by_xlogy(p):
    chance = torch.outer(p.sum(1), p.sum(0))
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, chance.clamp(min=1e-12))).sum()


def information_by_nansum(p):
    return (p * (p / torch.outer(p.sum(1), p.sum(0))).log()).nansum()


def information_detached(p):
    return information_by_entropies(p.detach())


# --- patch distances


def patch_mean(values):
    return F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def distances_by_index(image):
    height, width = image.shape[2:]
    i, j = torch.arange(height), torch.arange(width)
    near = [
        image[:, :, (i - 1).clamp(min=0)],
        image[:, :, (i + 1).clamp(max=height - 1)],
        image[..., (j - 1).clamp(min=0)],
        image[..., (j + 1).clamp(max=width - 1)],
    ]
    return torch.cat([patch_mean((n - image) ** 2) for n in near], 1)


def distances_by_roll_mended(image):
    up, down = image.roll(1, 2), image.roll(-1, 2)
    left, right = image.roll(1, 3), image.roll(-1, 3)
    up, down = up.clone(), down.clone()
    left, right = left.clone(), right.clone()
    up[:, :, 0], down[:, :, -1] = image[:, :, 0], image[:, :, -1]
    left[..., 0], right[..., -1] = image[..., 0], image[..., -1]
    return torch.cat([patch_mean((image - n).pow(2)) for n in (up, down, left, right)], dim=1)


def distances_by_cat(image):
    up = torch.cat([image[:, :, :1], image[:, :, :-1]], 2)
    down = torch.cat([image[:, :, 1:], image[:, :, -1:]], 2)
    left = torch.cat([image[..., :1], image[..., :-1]], 3)
    right = torch.cat([image[..., 1:], image[..., -1:]], 3)
    stacked = torch.stack([up, down, left, right], dim=1).squeeze(2)
    return patch_mean((image - stacked) * (image - stacked))


def distances_by_convolution(image):
    kernel = torch.zeros(4, 1, 3, 3, dtype=image.dtype)
    kernel[:, 0, 1, 1] = 1
    for k, (i, j) in enumerate([(0, 1), (2, 1), (1, 0), (1, 2)]):
        kernel[k, 0, i, j] = -1
    return patch_mean(F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel).square())


RIGHT = {
    "information_in_bits": [lambda: [1.0, 1.0, 0.0, 0.0], lambda: tuple(np.array([1, 1, 0, 0.0]))],
    "joint_histogram": [
        histogram_by_index_put,
        histogram_by_scatter,
        histogram_with_a_margin,
        histogram_by_sparse,
        histogram_by_sparse_product,
    ],
    "mutual_information": [
        information_by_entropies,
        information_by_full_cells,
        information_with_a_tiny_number,
        information_by_where_before,
        information_by_loops,
        information_bounded(1e-6),
        information_bounded(1e-20),
        lambda p: information_by_clamped_cells(p, 1e-6),
    ],
    "patch_distances": [
        distances_by_index,
        distances_by_roll_mended,
        distances_by_cat,
        distances_by_convolution,
    ],
    "blind_peak": [lambda: 0.42, lambda: 0.43, lambda: 0.45, lambda: torch.tensor(0.44)],
}
WRONG = {
    "information_in_bits": [(lambda: (1, 1, 0, 2), "values")],
    "joint_histogram": [
        (dense_histogram, "law"),
        (histogram_by_loop, "law"),
        (histogram_by_bincount, "law"),
        (histogram_by_weighted_bincount, "law"),
        (histogram_by_rows, "law"),
        (histogram_half_detached, "law"),
        (histogram_with_a_detached_share, "law"),
    ],
    "mutual_information": [
        (information_hidden_by_where, "law"),
        (information_by_xlogy, "law"),
        (information_by_nansum, "law"),
        (information_detached, "law"),
        (lambda p: float(information_by_entropies(p)), "type"),
        (information_bounded(1e-3), "mistake"),
        (information_above(1e-3), "mistake"),
        (information_above(1e-2), "values"),
    ],
    "blind_peak": [
        (lambda: 0.41, "goal"),
        (lambda: 0.47, "goal"),
        (lambda: 0.7, "goal"),
        (lambda: 1.4, "type"),
    ],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def exchanged_by_mask(p):
    full = p > 0
    return (p[full] * (p[full] / torch.outer(p.sum(0), p.sum(1))[full]).log()).sum()


def exchanged_and_bounded(eps):
    def answer(p):
        return (p * ((p + eps) / (torch.outer(p.sum(0), p.sum(1)) + eps)).log()).sum()

    return answer


def bounded_in_the_numerator(p):
    return (p * ((p + 1e-8) / torch.outer(p.sum(1), p.sum(0))).log()).sum()


def histogram_with_shares_of_fractions(a, b, bins):
    i, j = a.long().clamp(max=bins - 2), b.long().clamp(max=bins - 2)
    s, t = a % 1, b % 1
    p = torch.zeros(bins * bins)
    for di in (0, 1):
        for dj in (0, 1):
            w = (s if di else 1 - s) * (t if dj else 1 - t)
            p = p.index_add(0, (i + di) * bins + j + dj, w)
    return p.view(bins, bins) / len(a)


def histogram_by_ceil(a, b, bins):
    lower, upper = (a.floor(), b.floor()), (a.ceil(), b.ceil())
    p = torch.zeros(bins, bins)
    for i, w in ((lower[0], upper[0] - a), (upper[0], a - lower[0])):
        for j, v in ((lower[1], upper[1] - b), (upper[1], b - lower[1])):
            p = p.index_put((i.long(), j.long()), w * v, accumulate=True)
    return p / len(a)


def distances_joined(join):
    def answer(image):
        p = F.pad(image, (1, 1, 1, 1), mode="replicate")
        near = p[..., :-2, 1:-1], p[..., 2:, 1:-1], p[..., 1:-1, :-2], p[..., 1:-1, 2:]
        return join([patch_mean((image - n).square()) for n in near])

    return answer


@pytest.mark.parametrize(
    ("task", "answer", "said"),
    [
        # The likeliest half-way state of the bug hunt, however the logarithm is bounded.
        ("mutual_information", exchanged_by_mask, "the marginals are exchanged."),
        (
            "mutual_information",
            lambda p: exchanged_by_mask(p).abs(),
            "the marginals are exchanged.",
        ),
        ("mutual_information", exchanged_and_bounded(1e-12), "the marginals are exchanged."),
        ("mutual_information", exchanged_and_bounded(1e-8), "the marginals are exchanged."),
        ("mutual_information", exchanged_and_bounded(1e-6), "the marginals are exchanged."),
        # 0 / 0 where a whole row is empty: a bound in the wrong place is still NaN.
        ("mutual_information", bounded_in_the_numerator, "empty cells give NaN"),
        ("mutual_information", information_detached, "no gradient reaches p"),
        ("mutual_information", information_hidden_by_where, "NaN or infinite"),
        ("joint_histogram", histogram_by_rows, "one over the bins"),
        ("joint_histogram", histogram_by_loop, "a loop over the voxels"),
        ("joint_histogram", histogram_by_weighted_bincount, "bincount and histogram"),
        ("joint_histogram", histogram_with_shares_of_fractions, "one bin too low"),
        ("joint_histogram", histogram_by_ceil, "whole positions are lost"),
        ("patch_distances", distances_joined(torch.stack), "stack makes a new axis"),
        (
            "patch_distances",
            distances_joined(lambda parts: torch.stack(parts, dim=1)),
            "stack makes a new axis",
        ),
        ("patch_distances", distances_joined(torch.cat), "the batch"),
        ("information_in_bits", lambda: torch.tensor([1.0, 1, 0, 0]), "expected a tuple of 4"),
        ("blind_peak", lambda: 0.48, "best shift by r² = 0"),
    ],
)
def test_says_why(task: str, answer: Function, said: str) -> None:
    assert said in getattr(checks, task).judge(answer).text


def test_signed_shift() -> None:
    """The check names the place that the exercise's cell prints."""
    assert "best shift by r² = -9" in checks.blind_peak.judge(lambda: 0.45).text


def test_where_the_peak_may_be() -> None:
    """What the exercise says: a narrow range, and mutual information right for all."""
    found = {m: checks._best_shifts(m) for m in (0.1, 0.3, 0.41, 0.43, 0.45, 0.47, 0.6, 0.9)}
    blind = [m for m, shifts in found.items() if abs(shifts["best shift by r²"]) >= 6]
    assert blind == [0.43, 0.45]
    assert all(shifts["best shift by mutual information"] == 0 for shifts in found.values())
    assert found[0.43]["r² at the truth"] < 0.05 < 0.5 < found[0.3]["r² at the truth"]

"""Exercise 13: right answers written other ways pass, wrong ones are named."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_lib.checks import similarity as checks
from course_lib.checks.core import Verdict
from course_lib.local_ncc import correlation_map_plain
from tests.check_suite import Case, cases


def ncc_by_loop(warped, fixed):
    found = []
    for a, b in zip(warped, fixed, strict=True):
        a, b = a - a.mean(), b - b.mean()
        found.append((a * b).sum() / ((a**2).sum() * (b**2).sum() + 1e-10) ** 0.5)
    return -sum(found) / len(found)


def ncc_by_standard_scores(warped, fixed):
    a, b = warped.flatten(1), fixed.flatten(1)
    a = (a - a.mean(1, keepdim=True)) / (a.std(1, keepdim=True, unbiased=False) + 1e-8)
    b = (b - b.mean(1, keepdim=True)) / (b.std(1, keepdim=True, unbiased=False) + 1e-8)
    return -(a * b).mean()


def ncc_by_cosine(warped, fixed):
    a, b = warped.flatten(1), fixed.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return -F.cosine_similarity(a, b, dim=1).mean()


def ncc_with_eps_outside(warped, fixed):
    a, b = warped.flatten(1), fixed.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    root = (a.square().mean(1) * b.square().mean(1)).sqrt()
    return -((a * b).mean(1) / (root + 1e-10)).mean()


def ncc_by_numpy(warped, fixed):
    found = [_r_by_numpy(a.numpy(), b.numpy()) for a, b in zip(warped, fixed, strict=True)]
    return torch.tensor(-np.mean(found), dtype=torch.float32)


def _r_by_numpy(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean() + 1e-10)


def ncc_by_moments(warped, fixed):
    axes = tuple(range(1, warped.ndim))
    covariance = (warped * fixed).mean(axes) - warped.mean(axes) * fixed.mean(axes)
    variances = warped.var(axes, unbiased=False) * fixed.var(axes, unbiased=False)
    return -(covariance / torch.sqrt(variances + 1e-10)).mean()


def ncc_of_constants_is_nan(warped, fixed):
    a, b = warped.flatten(1), fixed.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return -((a * b).mean(1) / (a.square().mean(1) * b.square().mean(1)).sqrt()).mean()


def sums_by_integral_image(image, window):
    r = window // 2
    s = F.pad(image, (r + 1, r, r + 1, r)).cumsum(2).cumsum(3)
    w = window
    return s[..., w:, w:] - s[..., :-w, w:] - s[..., w:, :-w] + s[..., :-w, :-w]


def sums_by_concatenation(image, window):
    r = window // 2
    for axis in (2, 3):
        lines = image.movedim(axis, -1)
        lines = F.pad(lines, (r, r)).cumsum(-1)
        lines = torch.cat([torch.zeros_like(lines[..., :1]), lines], dim=-1)
        image = (lines[..., window:] - lines[..., :-window]).movedim(-1, axis)
    return image


def sums_by_clamped_indices(image, window):
    r = window // 2
    for axis in (2, 3):
        n = image.shape[axis]
        s = F.pad(image.movedim(axis, -1).cumsum(-1), (1, 0))
        places = torch.arange(n)
        high, low = (places + r + 1).clamp(max=n), (places - r).clamp(min=0)
        image = (s[..., high] - s[..., low]).movedim(-1, axis)
    return image


def sums_by_pooling(image, window):
    return F.avg_pool2d(image, window, 1, window // 2) * window**2


def sums_by_convolution(image, window):
    lines = image.reshape(-1, 1, *image.shape[2:])
    kernel = torch.ones(1, 1, window, window, dtype=image.dtype)
    return F.conv2d(lines, kernel, padding=window // 2).view(image.shape)


def sums_by_unfold(image, window):
    r = window // 2
    return F.pad(image, (r, r, r, r)).unfold(2, window, 1).unfold(3, window, 1).sum((-1, -2))


def sums_by_loop(image, window):
    r, (h, w) = window // 2, image.shape[2:]
    padded = F.pad(image, (r, r, r, r))
    return sum(padded[..., i : i + h, j : j + w] for i in range(window) for j in range(window))


def sums_by_definition(image, window):
    r, (height, width) = window // 2, image.shape[2:]
    padded = F.pad(image, (r, r, r, r))
    result = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            result[:, :, i, j] = padded[:, :, i : i + window, j : j + window].sum((2, 3))
    return result


def sums_by_rows(image, window):
    r, (h, w) = window // 2, image.shape[2:]
    padded = F.pad(image, (r, r, r, r))
    rows = torch.stack([padded[:, :, i : i + window].sum(2) for i in range(h)], 2)
    return torch.stack([rows[..., j : j + window].sum(3) for j in range(w)], 3)


def sums_one_late(image, window):
    r = window // 2
    s = F.pad(image, (r, r + 1, r, r + 1)).cumsum(2)
    s = (s[:, :, window:] - s[:, :, :-window]).cumsum(3)
    return s[..., window:] - s[..., :-window]


def sums_one_early(image, window):
    r = window // 2
    s = F.pad(image, (r + 2, r - 1, r + 2, r - 1)).cumsum(2)
    s = (s[:, :, window:] - s[:, :, :-window]).cumsum(3)
    return s[..., window:] - s[..., :-window]


def sums_that_begin_at_their_voxel(image, window):
    s = F.pad(image, (1, window - 1, 1, window - 1)).cumsum(2)
    s = (s[:, :, window:] - s[:, :, :-window]).cumsum(3)
    return s[..., window:] - s[..., :-window]


def sums_by_numpy(image, window):
    r, (h, w) = window // 2, image.shape[2:]
    padded = np.pad(image.detach().numpy(), ((0, 0), (0, 0), (r, r), (r, r)))
    result = sum(padded[..., i : i + h, j : j + w] for i in range(window) for j in range(window))
    return torch.from_numpy(np.asarray(result))


def lncc_by_pooling(warped, fixed, window):
    n = window**2

    def sums(x):
        return F.avg_pool2d(x, window, 1, window // 2) * n

    a, b = warped, fixed
    cross = sums(a * b) - sums(a) * sums(b) / n
    var_a, var_b = sums(a * a) - sums(a) ** 2 / n, sums(b * b) - sums(b) ** 2 / n
    return -(cross**2 / (var_a * var_b + 1e-5)).mean()


def lncc_by_windows(warped, fixed, window):
    r = window // 2

    def windows(x):
        return F.pad(x, (r, r, r, r)).unfold(2, window, 1).unfold(3, window, 1).flatten(-2)

    a, b = windows(warped), windows(fixed)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    cross = (a * b).sum(-1)
    return -(cross**2 / ((a * a).sum(-1) * (b * b).sum(-1) + 1e-5)).mean()


def lncc_with_the_means(warped, fixed, window):
    n = window**2
    a, b, aa, bb, ab = (
        sums_by_integral_image(x, window)
        for x in (warped, fixed, warped**2, fixed**2, warped * fixed)
    )
    u, v = a / n, b / n
    cross = ab - v * a - u * b + u * v * n
    return -(cross**2 / ((aa - 2 * u * a + u * u * n) * (bb - 2 * v * b + v * v * n) + 1e-5)).mean()


def lncc_with_a_clamp(warped, fixed, window):
    return -correlation_map_plain(warped, fixed, window).clamp(0, 1).mean()


def lncc_without_eps(warped, fixed, window):
    n = window**2
    a, b, aa, bb, ab = (
        sums_by_pooling(x, window) for x in (warped, fixed, warped**2, fixed**2, warped * fixed)
    )
    return -((ab - a * b / n) ** 2 / ((aa - a * a / n) * (bb - b * b / n))).mean()


def lncc_with(n, least=None, eps=1e-5, reduce=torch.mean):
    def answer(warped, fixed, window):
        size = n(window, warped)
        a, b, aa, bb, ab = (
            sums_by_pooling(x, window) for x in (warped, fixed, warped**2, fixed**2, warped * fixed)
        )
        cross, var_a, var_b = ab - a * b / size, aa - a * a / size, bb - b * b / size
        if least is not None:
            var_a, var_b = var_a.clamp(min=least), var_b.clamp(min=least)
        return -reduce(cross**2 / (var_a * var_b + eps))

    return answer


def color_with(size=243, eps=1e-5):
    def answer(a, b):
        return -checks._color_map(a, b, size, eps).mean()

    return answer


def color_by_channels(a, b):
    def sums(x):
        return sums_by_integral_image(x, 9).sum(1, keepdim=True)

    cross = sums(a * b) - sums(a) * sums(b) / 243
    var_a, var_b = sums(a * a) - sums(a) ** 2 / 243, sums(b * b) - sums(b) ** 2 / 243
    return -(cross**2 / (var_a * var_b + 1e-5)).mean()


def color_with_eps_mended_only(a, b):
    return -checks._color_map(a, b, 81, 1e-5).mean()


def color_by_windows(a, b):
    def windows(x):
        x = F.pad(x, (4, 4, 4, 4)).unfold(2, 9, 1).unfold(3, 9, 1)
        x = x.movedim(1, 3).flatten(3)
        return x - x.mean(-1, keepdim=True)

    a, b = windows(a), windows(b)
    cc = (a * b).sum(-1) ** 2 / ((a * a).sum(-1) * (b * b).sum(-1) + 1e-5)
    return -cc.mean()


RIGHT = {
    "scores_of_copies": [lambda: [1, -1, 1 / 16, 1]],
    "ncc": [ncc_by_loop, ncc_by_moments],
    "box_sums": [sums_by_integral_image, sums_by_concatenation, sums_by_clamped_indices],
    "lncc": [lncc_by_pooling, lncc_by_windows, lncc_with_the_means, lncc_with_a_clamp],
    "color_lncc": [color_by_channels, color_by_windows],
    "good_window": [lambda: 21, lambda: 25.0, lambda: 31],
}
WRONG = {
    "scores_of_copies": [(lambda: torch.tensor([1, -1, 0.0625, 1]), "type")],
    "ncc": [
        (ncc_of_constants_is_nan, "law"),
        (ncc_with_eps_outside, "law"),
        (ncc_by_standard_scores, "law"),
        (ncc_by_cosine, "law"),
        (ncc_by_numpy, "raised"),
    ],
    "box_sums": [
        (sums_by_pooling, "law"),
        (sums_by_convolution, "law"),
        (sums_by_unfold, "law"),
        (sums_by_loop, "law"),
        (sums_by_definition, "law"),
        (sums_by_rows, "law"),
        (sums_one_late, "mistake"),
        (sums_one_early, "mistake"),
        (sums_that_begin_at_their_voxel, "mistake"),
        (sums_by_numpy, "gradient"),
    ],
    "lncc": [
        (lncc_without_eps, "finite"),
        (lncc_with(lambda w, x: w), "mistake"),
        (lncc_with(lambda w, x: 1), "mistake"),
        (lncc_with(lambda w, x: w * w - 1), "mistake"),
        (lncc_with(lambda w, x: x[0, 0].numel()), "mistake"),
        (lncc_with(lambda w, x: w * w, reduce=torch.sum), "mistake"),
        (lncc_with(lambda w, x: w * w, least=1e-5, eps=0), "mistake"),
        (lncc_with(lambda w, x: w * w - 2), "values"),
        (lambda w, f, n: -correlation_map_plain(w, f, n), "shape"),
    ],
    "color_lncc": [
        (color_with_eps_mended_only, "mistake"),
        (color_with(eps=1e-6), "mistake"),
        (color_with(eps=torch.finfo(torch.float32).eps), "mistake"),
        (color_with(eps=1e-3), "mistake"),
        (color_with(eps=5e-5), "values"),
    ],
    "good_window": [
        (lambda: 9, "goal"),
        (lambda: 17, "goal"),
        (lambda: 45, "goal"),
        (lambda: 75, "goal"),
        (lambda: 24, "type"),
        (lambda: 25.5, "type"),
        (lambda: 97, "type"),
        (lambda: 1, "type"),
        (lambda: -25, "type"),
    ],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_the_goal_is_clear_of_its_neighbors():
    report = {window: checks.window_report(window) for window in (17, 19, 21, 29, 31)}
    assert abs(report[17]["drop"] - checks.ASKED_DROP) > 0.004
    assert abs(report[19]["drop"] - checks.ASKED_DROP) > 0.004
    assert all(found["error"] == 0 for found in report.values())


def said(check, answer):
    with pytest.raises(Verdict) as found:
        check(answer)
    return str(found.value)


def test_each_number_of_a_prediction_is_judged() -> None:
    text = said(checks.scores_of_copies, lambda: (1, 0, 0.25, 1))
    assert "second number" in text and "third number" in text and "fourth" not in text
    assert "you gave the loss" in said(checks.scores_of_copies, lambda: (1, 1, 0.0625, -1))
    assert "another order" in said(checks.scores_of_copies, lambda: (0.0625, 1, 1, -1))


def test_the_window_that_is_late_is_not_called_early() -> None:
    assert "too far down and to the right" in said(checks.box_sums, sums_one_late)
    assert "too far up and to the left" in said(checks.box_sums, sums_one_early)
    assert "begins at its voxel" in said(checks.box_sums, sums_that_begin_at_their_voxel)


def test_numpy_is_said_to_come_from_the_gradient() -> None:
    assert "gradient" in said(checks.ncc, ncc_by_numpy)


def test_impossible_losses_are_called_so() -> None:
    assert "never below −1" in said(checks.lncc, lncc_with(lambda w, x: w * w - 2))
    assert "never below −1" in said(checks.color_lncc, color_with(size=200))
    assert "never below −1" not in said(checks.color_lncc, color_with(eps=5e-5))

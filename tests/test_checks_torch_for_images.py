"""Exercise 01: right answers written other ways pass, wrong ones are named."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_lib.checks import torch_for_images as checks
from course_lib.widgets import fit_disc
from course_lib.widgets import soft_disc as draw
from tests.check_suite import Case, cases


def standardize_by_loop(images):
    result = torch.empty_like(images)
    for b, image in enumerate(images):
        result[b] = (image - image.mean()) / image.std(correction=0)
    return result


def standardize_by_view(images):
    flat = images.flatten(1)
    left = flat - flat.mean(1, keepdim=True)
    return (left / left.pow(2).mean(1, keepdim=True).sqrt()).view_as(images)


def standardize_by_numpy(images):
    array = images.numpy()
    mean, std = array.mean((1, 2, 3)), array.std((1, 2, 3))
    return torch.from_numpy((array - mean[:, None, None, None]) / std[:, None, None, None])


def standardize_with_a_guard(images):
    centered = images - images.mean((1, 2, 3), keepdim=True)
    return centered / (centered.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5)


def standardize_by_layer_norm(images):
    return F.layer_norm(images, images.shape[1:])


def standardize_by_group_norm(images):
    return F.group_norm(images, 1)


def correlate_by_conv(images, kernel):
    channels = images.shape[1]
    return F.conv2d(images, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def correlate_by_unfold(images, kernel):
    batch, channels, height, width = images.shape
    patches = F.unfold(images, 3, padding=1).view(batch, channels, 9, height, width)
    return (patches * kernel.reshape(1, 1, 9, 1, 1)).sum(2)


def correlate_by_windows(images, kernel):
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    return torch.einsum("bchwij,ij->bchw", windows, kernel)


def correlate_with_loops_over_items(images, kernel):
    """The slowest that is still without a loop over voxels; written in place."""
    result = torch.zeros_like(images)
    padded = F.pad(images, (1, 1, 1, 1))
    height, width = images.shape[2:]
    for b in range(images.shape[0]):
        for c in range(images.shape[1]):
            for i in range(3):
                for j in range(3):
                    piece = padded[b, c, i : i + height, j : j + width]
                    result[b, c] += kernel[i, j] * piece
    return result


def correlate_by_shifts_inside(images, kernel):
    """Without padding: each shift adds only where it has something to add."""
    result = kernel[1, 1] * images
    height, width = images.shape[2:]
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            if di or dj:
                i, j = (
                    slice(max(0, -di), height - max(0, di)),
                    slice(max(0, -dj), width - max(0, dj)),
                )
                k, m = (
                    slice(max(0, di), height - max(0, -di)),
                    slice(max(0, dj), width - max(0, -dj)),
                )
                result[:, :, i, j] += kernel[di + 1, dj + 1] * images[:, :, k, m]
    return result


def correlate_by_voxels(images, kernel):
    result, padded = torch.zeros_like(images), F.pad(images, (1, 1, 1, 1))
    for b, c, i, j in np.ndindex(*images.shape):
        result[b, c, i, j] = (padded[b, c, i : i + 3, j : j + 3] * kernel).sum()
    return result


def correlate_row_by_row_with_unfold(images, kernel):
    """Few operations, and yet a loop over the rows."""
    windows = F.pad(images, (1, 1, 1, 1)).unfold(3, 3, 1)
    rows = [
        torch.einsum("bcdwe,de->bcw", windows[:, :, i : i + 3], kernel)
        for i in range(images.shape[2])
    ]
    return torch.stack(rows, 2)


def correlate_column_by_column(images, kernel):
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, 3, 1)
    columns = [
        torch.einsum("bched,de->bch", windows[:, :, :, j : j + 3], kernel)
        for j in range(images.shape[3])
    ]
    return torch.stack(columns, 3)


def correlate_by_rows(images, kernel):
    result, padded = torch.zeros_like(images), F.pad(images, (1, 1, 1, 1))
    width = images.shape[3]
    for i in range(images.shape[2]):
        for di, dj in np.ndindex(3, 3):
            result[:, :, i] += kernel[di, dj] * padded[:, :, i + di, dj : dj + width]
    return result


def disc_by_meshgrid(shape, circles):
    i, j = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    discs = [
        torch.sigmoid((radius - torch.sqrt((i - row) ** 2 + (j - column) ** 2 + 1e-6)) / 2)
        for row, column, radius in circles
    ]
    return torch.stack(discs)[:, None]


def disc_by_exp(shape, circles):
    """NaN far away, where exp() is infinite."""
    rows = torch.arange(shape[0], dtype=circles.dtype)[None, None, :, None]
    columns = torch.arange(shape[1], dtype=circles.dtype)[None, None, None, :]
    row, column, radius = circles.T[:, :, None, None, None]
    distance = ((rows - row) ** 2 + (columns - column) ** 2 + 1e-6) ** 0.5
    return 1 / (1 + torch.exp((distance - radius) / 2))


def disc_by_tanh(shape, circles):
    rows = torch.arange(shape[0], dtype=circles.dtype)[None, None, :, None]
    columns = torch.arange(shape[1], dtype=circles.dtype)[None, None, None, :]
    row, column, radius = circles.T[:, :, None, None, None]
    distance = ((rows - row) ** 2 + (columns - column) ** 2 + 1e-6) ** 0.5
    return (1 + torch.tanh((radius - distance) / 4)) / 2


def disc_with_hypot(shape, circles):
    """NaN where a center lies on a voxel."""
    rows, columns = torch.arange(shape[0]).view(-1, 1), torch.arange(shape[1])
    row, column, radius = (circles[:, k].view(-1, 1, 1, 1) for k in range(3))
    return torch.sigmoid((radius - ((rows - row) ** 2 + (columns - column) ** 2).sqrt()) / 2)


def fit_with_sums(target, start, learning_rate, steps):
    """Adam does not mind a factor; lists of everything, the best looked up at the end."""
    circle = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([circle], lr=learning_rate)
    circles, losses = [], []
    for _ in range(steps):
        loss = F.mse_loss(draw(target.shape[2:], circle), target, reduction="sum")
        circles.append(circle.data.clone())
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return circles[int(torch.stack(losses).argmin())]


def fit_by_autograd_grad(target, start, learning_rate, steps):
    """Adam written out, and ties taken by the later circle."""
    circle, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    lowest = torch.inf
    for step in range(1, steps + 1):
        circle = circle.detach().requires_grad_()
        loss = (draw(target.shape[2:], circle) - target).square().mean()
        if loss <= lowest:
            best, lowest = circle.detach(), loss.detach()
        (gradient,) = torch.autograd.grad(loss, circle)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        root = (second / (1 - 0.999**step)).sqrt()
        circle = circle - learning_rate * first / (1 - 0.9**step) / (root + 1e-8)
    return best


def fit_with_gradient(target, start, learning_rate, steps):
    return fit_with_sums(target, start, learning_rate, steps).requires_grad_()


def fit_on_start_itself(target, start, learning_rate, steps):
    start.requires_grad_()
    optimizer = torch.optim.Adam([start], lr=learning_rate)
    best, lowest = None, float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (draw(target.shape[2:], start) - target).square().mean()
        if loss.item() < lowest:
            best, lowest = start.detach().clone(), loss.item()
        loss.backward()
        optimizer.step()
    return best


def fit_clearing_too_late(target, start, learning_rate, steps):
    circle = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([circle], lr=learning_rate)
    best, lowest = None, float("inf")
    for _ in range(steps):
        loss = (draw(target.shape[2:], circle) - target).square().mean()
        if loss.item() < lowest:
            best, lowest = circle.detach().clone(), loss.item()
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
    return best


def fit_by_three_leaves(target, start, learning_rate, steps):
    leaves = [torch.tensor(float(number), requires_grad=True) for number in start[0]]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    best, lowest = None, float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (draw(target.shape[2:], torch.stack(leaves)[None]) - target).square().mean()
        if loss < lowest:
            best, lowest = torch.stack(leaves)[None].detach(), loss.item()
        loss.backward()
        optimizer.step()
    return best


def fit_keeping_a_view(target, start, learning_rate, steps):
    circle = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([circle], lr=learning_rate)
    best, lowest = None, float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (draw(target.shape[2:], circle) - target).square().mean()
        if loss.item() < lowest:
            best, lowest = circle.detach(), loss.item()
        loss.backward()
        optimizer.step()
    return best


def fit_where(keep, first=None, lowest=float("inf")):
    """The usual loop; ``keep(loss, lowest, before)`` says whether a circle is kept."""

    def fit(target, start, learning_rate, steps):
        circle = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([circle], lr=learning_rate)
        best, least, before = first and start, lowest, float("inf")
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (draw(target.shape[2:], circle) - target).square().mean()
            if keep(loss.item(), least, before):
                best, least = circle.detach().clone(), loss.item()
            before = loss.item()
            loss.backward()
            optimizer.step()
        return best

    return fit


def lower(loss, lowest, before):
    return loss < lowest


def with_steps(change):
    return lambda target, start, rate, steps: fit_where(lower)(target, start, rate, change(steps))


def fit_that_stops_at_a_rise(target, start, learning_rate, steps):
    circle = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([circle], lr=learning_rate)
    previous, kept = float("inf"), None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (draw(target.shape[2:], circle) - target).square().mean()
        if loss.item() > previous:
            return kept
        previous, kept = loss.item(), circle.detach().clone()
        loss.backward()
        optimizer.step()
    return kept


def fit_with_the_loss_after_the_step(target, start, learning_rate, steps):
    circle = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([circle], lr=learning_rate)
    best, lowest = start, float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        (draw(target.shape[2:], circle) - target).square().mean().backward()
        optimizer.step()
        loss = (draw(target.shape[2:], circle.detach()) - target).square().mean().item()
        if loss < lowest:
            best, lowest = circle.detach().clone(), loss
    return best


FIT_MISTAKES = {
    "not with the lowest so far": fit_where(lambda loss, lowest, before: loss < before),
    "one circle too many": with_steps(lambda steps: steps + 1),
    "one circle too few": with_steps(lambda steps: steps - 1),
    "the start is never considered": fit_with_the_loss_after_the_step,
    "rises for the first time": fit_that_stops_at_a_rise,
    "not 0.1 or 0.5": fit_where(lower, first=True, lowest=0.1),
    "stays above a half": fit_where(lower, lowest=0.5),
    "the highest loss": fit_where(lambda loss, lowest, before: loss > lowest, lowest=0),
}


RIGHT = {
    "trapped_loss": [
        lambda: [3, 3, 3.11],
        lambda: (3, 3, 3.1),
        lambda: (3.0, 3, torch.tensor(28 / 9)),
    ],
    "standardize": [
        standardize_by_loop,
        standardize_by_view,
        standardize_by_numpy,
        standardize_by_layer_norm,
        standardize_by_group_norm,
        standardize_with_a_guard,
    ],
    "correlate": [
        correlate_by_conv,
        correlate_by_unfold,
        correlate_by_windows,
        correlate_with_loops_over_items,
        correlate_by_shifts_inside,
    ],
    "soft_disc": [disc_by_meshgrid, disc_by_tanh],
    "fit": [
        fit_with_sums,
        fit_by_autograd_grad,
        fit_by_three_leaves,
        fit_where(lower),
        fit_where(lower, first=True),
        fit_where(lower, lowest=1.0),  # no mean of squares of numbers from 0 to 1 is larger
    ],
    "learning_rate": [lambda: 0.006, lambda: 0.05, lambda: torch.tensor(0.1), lambda: 0.02],
}
WRONG = {
    "trapped_loss": [
        (lambda: (3, 3, 3.0), "values"),
        (lambda: ((3, 3), 28 / 9), "shape"),
        (lambda: 28 / 9, "type"),
    ],
    "standardize": [(F.instance_norm, "mistake")],
    "correlate": [
        (correlate_by_voxels, "law"),
        (correlate_by_rows, "law"),
        (correlate_row_by_row_with_unfold, "law"),
        (correlate_column_by_column, "law"),
    ],
    "soft_disc": [
        (disc_with_hypot, "law"),
        (disc_by_exp, "law"),
        (lambda shape, circles: (draw(shape, circles) > 0.5).float(), "mistake"),
    ],
    "fit": [
        (fit_with_gradient, "law"),
        (fit_on_start_itself, "in place"),
        (fit_keeping_a_view, "mistake"),
        (fit_clearing_too_late, "mistake"),
        *((answer, "mistake") for answer in FIT_MISTAKES.values()),
    ],
    "learning_rate": [(lambda r=r: r, "goal") for r in (0.001, 0.003, 1, 2.0, 224)]
    + [(lambda: 0, "type"), (lambda: -0.01, "type")],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_each_law_of_the_disc_says_which_place_it_is_about() -> None:
    assert "lies on a voxel" in checks.soft_disc.judge(disc_with_hypot).text
    assert "310 columns" in checks.soft_disc.judge(disc_by_exp).text


def test_a_view_of_the_best_is_told_what_a_view_is() -> None:
    assert "clone()" in checks.fit.judge(fit_keeping_a_view).text


@pytest.mark.parametrize("words", FIT_MISTAKES)
def test_each_way_to_miss_the_best_has_its_own_words(words: str) -> None:
    assert words in checks.fit.judge(FIT_MISTAKES[words]).text


def losses_of(make):
    """The losses that a right answer computes."""
    target, start, learning_rate, steps = make()
    return fit_disc(target, start, learning_rate=learning_rate, steps=steps).losses[:-1]


@pytest.mark.parametrize("make", checks.fit.inputs)
def test_no_rounding_can_choose_another_circle(make) -> None:
    losses = losses_of(make)
    lowest, *others = sorted(losses)
    assert all(other > 1.05 * lowest for other in others)
    neighbors = itertools.pairwise(losses)
    assert all(max(pair) > 1.01 * min(pair) for pair in neighbors), "clear rises and falls"


def test_the_descents_are_what_their_names_say() -> None:
    def best(losses):
        return losses.index(min(losses))

    assert {make.__name__ for make in checks.fit.inputs} == {
        *("_one_step", "_too_slow", "_good_start", "_worse_later", "_better_later")
    }
    assert len(losses_of(checks._one_step)) == 1
    slow = losses_of(checks._too_slow)
    assert best(slow) == len(slow) - 1 and min(slow) > 0.52
    assert best(losses_of(checks._good_start)) == 0
    for make, minimum_is_first in ((checks._worse_later, True), (checks._better_later, False)):
        losses = losses_of(make)
        rise = next(i for i in range(1, len(losses)) if losses[i] > losses[i - 1])
        assert any(losses[i] < losses[i - 1] for i in range(rise + 1, len(losses)))
        assert (best(losses) == rise - 1) == minimum_is_first
        assert 0 < best(losses) < len(losses) - 1


def test_thresholds_are_clear_of_the_answers_on_both_sides() -> None:
    """Another machine rounds differently; no answer may hang on that."""

    def loss(rate: float) -> float:
        return next(iter(checks._loss_in_heights(rate).values()))

    assert all(loss(rate) < 0.068 for rate in (0.006, 2 / 224, 0.02, 0.05, 0.1))
    assert all(loss(rate) > 0.08 for rate in (0.001, 0.003, 1.0, 2.0))
    assert loss(1.0) == pytest.approx(0.53, abs=0.01), "as the message says"
    assert loss(2.0) == pytest.approx(0.47, abs=0.01), "as the message says"


def test_the_goal_says_how_long_a_step_is() -> None:
    """Whoever reads it knows whether the rate is too small or too large."""
    assert "voxels in a step = 0.224" in checks.learning_rate.judge(lambda: 0.001).text
    assert "voxels in a step = 224" in checks.learning_rate.judge(lambda: 1.0).text

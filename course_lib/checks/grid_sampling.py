"""Checks of exercise 12: coordinates of grid_sample, bilinear sampling, borders, labels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib import evaluation, spatial
from course_lib.checks.core import Check, Law, Mistake

SLUG = "12_grid_sampling"

Fractions = tuple[Tensor, Tensor]


# --- where it looks ------------------------------------------------------------------------------


def _looks_at() -> tuple[float, float]:
    return 1.75, 41.5


looks_at = Check(
    SLUG,
    "looks_at",
    _looks_at,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (2, 40),
            "this is where both would be if nothing were shifted.\n"
            "Write column 2 in the coordinates of align_corners=True, then ask which column has\n"
            "that coordinate under False. A pooled voxel stands amid those that it averages.",
        ),
        Mistake(
            lambda: (1.75, 40),
            "the first number is right. A pooled voxel does not stand where its first voxel was:\n"
            "the mean of voxels 0 and 1 stands at 0.5.",
        ),
        Mistake(
            lambda: (2, 41.5),
            "the second number is right. The first is not 2: column 2 has the coordinate\n"
            "2·2/8 − 1 = −0.5 under True, which belongs to another place under False.",
        ),
        Mistake(
            lambda: (20 / 9, 41.5),
            "the second number is right. The first mixes the two the other way round:\n"
            "here the grid is made with True and read with False.",
        ),
        Mistake(
            lambda: (1.5, 41.5),
            "the second number is right. The first shifts by half a voxel, as at column 0; but\n"
            "the two scales differ by a factor, too. Solve (2 p + 1)/9 − 1 = −0.5.",
        ),
        Mistake(
            lambda: (2.25, 41.5),
            "the second number is right. The first moves to the wrong side: left of the middle,\n"
            "column 4, the mixed grid looks further *left*. Solve (2 p + 1)/9 − 1 = −0.5.",
        ),
        Mistake(
            lambda: (1.75, 42),
            "the first number is right. Twice pooled, column 10 stands for columns 40, 41, 42 and\n"
            "43: where is the middle of *their* centers?",
        ),
        Mistake(
            lambda: (1.75, 20.5),
            "the first number is right. The second is the column in the image that was pooled\n"
            "once: go back through the first pooling, too.",
        ),
        Mistake(
            lambda: (1.75, 38.5),
            "the first number is right. The second moves to the wrong side: the columns that are\n"
            "averaged into column 0 are 0, 1, 2 and 3.",
        ),
        Mistake(
            lambda: (1.75, 47.5),
            "the first number is right. 7.5 is the shift of *four* poolings, as in the lesson;\n"
            "here there are two.",
        ),
        Mistake(
            lambda: (1.75, 40.5),
            "the first number is right. The second counts the shift of one pooling only:\n"
            "each pooling shifts by half a voxel of the image that it starts from.",
        ),
        Mistake(
            lambda: (1.75, 41),
            "the first number is right. The second adds half a voxel for each pooling; but half a\n"
            "voxel of the image that was pooled once is a whole voxel of the full one.",
        ),
        Mistake(
            lambda: (41.5, 1.75),
            "right numbers, in the wrong order: first the mixed grid, then the pooling.",
        ),
    ],
    hints=[
        "First: x = 2·2/8 − 1 by the formula of True, with W = 9. Under False a column p has the "
        "coordinate (2 p + 1)/9 − 1. Which p has the coordinate x?",
        "Second: column q of a pooled image covers columns 2 q and 2 q + 1 of the image before; "
        "its center is in the middle of them. Do it twice.",
    ],
)


# --- coordinates of grid_sample ------------------------------------------------------------------


def _to_grid(positions: Tensor, shape: tuple[int, int]) -> Tensor:
    height, width = shape
    y, x = 2 * positions[:, 0] / (height - 1) - 1, 2 * positions[:, 1] / (width - 1) - 1
    return torch.stack([x, y], dim=-1)


def _positions() -> tuple[Tensor, tuple[int, int]]:
    generator = torch.Generator().manual_seed(21)
    # Inside and outside of the image, too.
    return 14 * torch.rand(2, 2, 3, 4, generator=generator) - 2, (7, 11)


def _one_position() -> tuple[Tensor, tuple[int, int]]:
    return torch.tensor([1.0, 6.0]).view(1, 2, 1, 1), (5, 9)


def _by_sizes(positions: Tensor, height: float, width: float) -> Tensor:
    """``2 p / size − 1``, in the order (x, y)."""
    scale = 2 / torch.tensor([height, width]).view(1, 2, 1, 1)
    return (scale * positions - 1).flip(1).movedim(1, -1)


to_grid = Check(
    SLUG,
    "to_grid",
    _to_grid,
    [_one_position, _positions],
    mistakes=[
        Mistake(
            lambda positions, shape: _to_grid(positions, shape).flip(-1),
            "the last axis is in the order (y, x).\n"
            "grid_sample wants (x, y): the column first. Row 1, column 6 of a 5 × 9 image is\n"
            "(0.5, −0.5).",
        ),
        Mistake(
            lambda positions, shape: _by_sizes(positions, shape[1] - 1, shape[0] - 1),
            "each component is divided by the other axis's size.\n"
            "x is a column: it goes with the width, shape[1]; y with the height, shape[0].\n"
            "On square images this bug is invisible.",
        ),
        Mistake(
            lambda positions, shape: _by_sizes(positions, shape[1] - 1, shape[0] - 1).flip(-1),
            "the last axis is in the order (y, x), and each is divided by the other axis's size.\n"
            "x is a column, comes first, and goes with the width, shape[1].",
        ),
        Mistake(
            lambda positions, shape: _by_sizes(positions, *(n - 1 for n in positions.shape[2:])),
            "this divides by the size of the grid of positions.\n"
            "−1 and 1 are the corners of the image that is read: use shape.",
        ),
        Mistake(
            lambda positions, shape: _by_sizes(positions, *shape),
            "this divides by n: the last voxel, n − 1, must come out as 1.\n"
            "With align_corners=True, −1 and 1 are the centers of the first and the last voxel,\n"
            "and they are n − 1 voxels apart.",
        ),
        Mistake(
            lambda positions, shape: _by_sizes(positions + 0.5, *shape),
            "these are the coordinates of align_corners=False, with −1 at the outer edge.\n"
            "Asked: align_corners=True, with −1 at the center of the first voxel.",
        ),
        Mistake(
            lambda positions, shape: _to_grid(positions, shape).movedim(-1, 1),
            "the components are in axis 1.\ngrid_sample wants them last: (B, h, w, 2).",
        ),
        Mistake(
            lambda positions, shape: _to_grid(positions, shape).movedim(-1, 1).flip(1),
            "the components are in axis 1, in the order (y, x).\n"
            "grid_sample wants them last, (B, h, w, 2), and the column first.",
        ),
        Mistake(
            lambda positions, shape: (
                _to_grid(positions, shape).movedim(-1, 1).reshape(-1, *positions.shape[2:], 2)
            ),
            "the components are mixed up.\n"
            "Likely cause: reshape or view, which keep the order of the numbers. Move the axis:\n"
            "permute(0, 2, 3, 1), or torch.stack([x, y], dim=-1).",
        ),
        Mistake(
            lambda positions, shape: (_to_grid(positions, shape) + 1) / 2,
            "these coordinates run from 0 to 1.\ngrid_sample counts from −1 to 1.",
        ),
        Mistake(
            lambda positions, shape: _to_grid(positions, shape).clamp(-1, 1),
            "places outside the image are pushed to its edge.\n"
            "They keep their coordinates, beyond −1 and 1: what lies out there is the sampler's\n"
            "business (its padding). Leave out the clamp.",
        ),
        Mistake(
            lambda positions, shape: _to_grid(positions, shape)[:, None],
            "there is an axis of size 1 too many, at axis 1.\n"
            "Likely cause: positions[:, 1:], a slice, which keeps its axis; positions[:, 1] does\n"
            "not. (torch.stack makes a new axis of its own.)",
        ),
        Mistake(
            lambda positions, shape: (_to_grid(positions, shape) - 1) / 2,
            "these coordinates run from −1 to 0: the factor 2 is missing.\n"
            "From −1 to 1 it is 2 all the way: 2 * j / (W − 1) − 1.",
        ),
        Mistake(
            lambda positions, shape: _to_grid(positions, shape) - 1,
            "these coordinates run from −2 to 0.\n"
            "Likely cause: 2 * (j / (W − 1) − 1); the factor belongs to the fraction alone:\n"
            "2 * j / (W − 1) − 1.",
        ),
        Mistake(
            lambda positions, shape: _to_grid(positions, shape) + 1,
            "these coordinates run from 0 to 2: the −1 is missing.",
        ),
        Mistake(
            lambda positions, shape: positions.flip(1).movedim(1, -1),
            "order and axes are right, but these are still voxels.\n"
            "Bring them to −1 … 1: 2 j / (W − 1) − 1.",
        ),
    ],
    gradient=True,
    hints=[
        "positions[:, 0] are the rows i, positions[:, 1] the columns j, each (B, h, w).",
        "x = 2 j / (W − 1) − 1 and y = 2 i / (H − 1) − 1, with H, W = shape.",
        "torch.stack([x, y], dim=-1) puts them last, the column first.",
    ],
)


# --- bilinear sampling ---------------------------------------------------------------------------


def _split(positions: Tensor) -> tuple[Tensor, Tensor, Fractions]:
    """Rows and columns before the positions, (B, N) each, and the fractions beyond them."""
    i, j = positions[:, 0], positions[:, 1]
    i0, j0 = i.floor(), j.floor()
    return i0.long(), j0.long(), (i - i0, j - j0)


def _fetch(image: Tensor, i: Tensor, j: Tensor, outside: float = 0.0) -> Tensor:
    """Voxels at whole rows and columns (B, N) -> (B, C, N); ``outside`` times the border there."""
    height, width = image.shape[2:]
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    flat = i.clamp(0, height - 1) * width + j.clamp(0, width - 1)
    found = image.flatten(2).gather(2, flat[:, None].expand(-1, image.shape[1], -1))
    return torch.where(inside[:, None], found, outside * found)


def _mix(
    fetch: Callable[[Tensor, Tensor], Tensor], i0: Tensor, j0: Tensor, fractions: Fractions
) -> Tensor:
    """The four neighbors of each position, by their weights."""
    a, b = (fraction[:, None] for fraction in fractions)  # (B, 1, N)
    upper = (1 - b) * fetch(i0, j0) + b * fetch(i0, j0 + 1)
    lower = (1 - b) * fetch(i0 + 1, j0) + b * fetch(i0 + 1, j0 + 1)
    return (1 - a) * upper + a * lower


def _bilinear(image: Tensor, positions: Tensor) -> Tensor:
    i0, j0, fractions = _split(positions)
    return _mix(lambda i, j: _fetch(image, i, j), i0, j0, fractions)


def _few_places() -> tuple[Tensor, Tensor]:
    image = torch.tensor([[0.0, 4.0], [8.0, 20.0]]).view(1, 1, 2, 2)
    return image, torch.tensor([[0.5, 0.25, -0.25], [0.25, 1.5, 0.75]]).view(1, 2, 3)


def _many_places() -> tuple[Tensor, Tensor]:
    """Between the voxels, a voxel and more beyond every edge, never on a kink."""
    generator = torch.Generator().manual_seed(22)
    image = 1 + torch.rand(2, 3, 5, 8, generator=generator)
    whole = torch.stack(
        [
            torch.randint(-3, 7, (2, 40), generator=generator),
            torch.randint(-3, 10, (2, 40), generator=generator),
        ],
        dim=1,
    )
    return image, whole + 0.15 + 0.7 * torch.rand(2, 2, 40, generator=generator)


def _truncated(image: Tensor, positions: Tensor) -> Tensor:
    """What int() and long() do: they round toward 0."""
    whole = positions.long()
    i0, j0 = whole[:, 0], whole[:, 1]
    rest = positions - whole
    return _mix(lambda i, j: _fetch(image, i, j), i0, j0, (rest[:, 0], rest[:, 1]))


def _truncated_guarded(image: Tensor, positions: Tensor) -> Tensor:
    """As _truncated, with the line ``if weight > 0`` of the lesson's sample_one."""
    whole = positions.long()
    i0, j0 = whole[:, 0], whole[:, 1]
    a, b = (positions - whole).unbind(1)
    total = torch.zeros(())
    for di, row_weight in ((0, 1 - a), (1, a)):
        for dj, column_weight in ((0, 1 - b), (1, b)):
            weight = (row_weight * column_weight).clamp(min=0)
            total = total + weight[:, None] * _fetch(image, i0 + di, j0 + dj)
    return total


def _rounded(image: Tensor, positions: Tensor) -> Tensor:
    """round() where floor() belongs: the fraction may be below 0."""
    nearest = positions.round()
    i0, j0 = nearest.long().unbind(1)
    a, b = (positions - nearest).unbind(1)
    return _mix(lambda i, j: _fetch(image, i, j), i0, j0, (a, b))


def _without(di: int, dj: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Bilinear sampling from three neighbors."""

    def wrong(image: Tensor, positions: Tensor) -> Tensor:
        i0, j0, fractions = _split(positions)

        def fetch(i: Tensor, j: Tensor) -> Tensor:
            left_out = (i == i0 + di) & (j == j0 + dj)
            return _fetch(image, i, j) * ~left_out[:, None]

        return _mix(fetch, i0, j0, fractions)

    return wrong


def _inside_only(low: int, beyond: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Bilinear sampling in which only rows and columns from low to n − 1 + beyond are inside."""

    def wrong(image: Tensor, positions: Tensor) -> Tensor:
        height, width = image.shape[2:]
        i0, j0, fractions = _split(positions)

        def fetch(i: Tensor, j: Tensor) -> Tensor:
            inside = (i >= low) & (i < height + beyond) & (j >= low) & (j < width + beyond)
            return _fetch(image, i, j, outside=1.0) * inside[:, None]

        return _mix(fetch, i0, j0, fractions)

    return wrong


def _reshaped_neighbors(image: Tensor, positions: Tensor) -> Tensor:
    """Each neighbor found as (B, N, C), its numbers read as (B, C, N), then zeros outside."""
    i0, j0, fractions = _split(positions)

    def fetch(i: Tensor, j: Tensor) -> Tensor:
        found = _fetch(image, i, j, outside=1.0)
        mixed = found.movedim(1, 2).reshape(found.shape)
        return _fetch(torch.ones_like(image), i, j) * mixed

    return _mix(fetch, i0, j0, fractions)


def _reshaped(image: Tensor, positions: Tensor) -> Tensor:
    right = _bilinear(image, positions)
    return right.movedim(1, 2).reshape(right.shape)


def _other_fractions(
    change: Callable[[Tensor, Tensor], Fractions],
) -> Callable[[Tensor, Tensor], Tensor]:
    """Bilinear sampling with the fractions a and b changed."""

    def wrong(image: Tensor, positions: Tensor) -> Tensor:
        i0, j0, (a, b) = _split(positions)
        return _mix(lambda i, j: _fetch(image, i, j), i0, j0, change(a, b))

    return wrong


def _border(image: Tensor, positions: Tensor) -> Tensor:
    i0, j0, fractions = _split(positions)
    return _mix(lambda i, j: _fetch(image, i, j, outside=1.0), i0, j0, fractions)


def _extrapolated(image: Tensor, positions: Tensor) -> Tensor:
    """The bug of task 4: neighbors kept inside, fractions beyond 0 and 1."""
    height, width = image.shape[2:]
    i0, j0, (a, b) = _split(positions)
    top, left = i0.clamp(0, height - 2), j0.clamp(0, width - 2)
    fractions = (a + (i0 - top), b + (j0 - left))
    return _mix(lambda i, j: _fetch(image, i, j), top, left, fractions)


def _only_well_inside(image: Tensor, positions: Tensor) -> Tensor:
    """0 unless all four neighbors exist."""
    height, width = image.shape[2:]
    i, j = positions[:, 0], positions[:, 1]
    inside = (i >= 0) & (i <= height - 1) & (j >= 0) & (j <= width - 1)
    return _bilinear(image, positions) * inside[:, None]


def _border_near(image: Tensor, positions: Tensor) -> Tensor:
    """The border value up to one voxel outside, and 0 beyond."""
    height, width = image.shape[2:]
    i, j = positions[:, 0], positions[:, 1]
    near = (i > -1) & (i < height) & (j > -1) & (j < width)
    return _border(image, positions) * near[:, None]


def _one_too_far(image: Tensor, positions: Tensor) -> Tensor:
    """Rows and columns up to n, and not n − 1, count as inside."""
    height, width = image.shape[2:]
    i0, j0, fractions = _split(positions)

    def fetch(i: Tensor, j: Tensor) -> Tensor:
        near = (i >= 0) & (i <= height) & (j >= 0) & (j <= width)
        return _fetch(image, i, j, outside=1.0) * near[:, None]

    return _mix(fetch, i0, j0, fractions)


def _wrapped(image: Tensor, positions: Tensor) -> Tensor:
    """An index below zero counts from the end, one beyond the end begins anew."""
    height, width = image.shape[2:]
    i0, j0, fractions = _split(positions)
    return _mix(lambda i, j: _fetch(image, i % height, j % width), i0, j0, fractions)


def _negative_wraps(image: Tensor, positions: Tensor) -> Tensor:
    """Zeros beyond the end; before the beginning, Python counts from the end."""
    height, width = image.shape[2:]
    i0, j0, fractions = _split(positions)

    def fetch(i: Tensor, j: Tensor) -> Tensor:
        return _fetch(image, torch.where(i < 0, i + height, i), torch.where(j < 0, j + width, j))

    return _mix(fetch, i0, j0, fractions)


def _nearest(image: Tensor, positions: Tensor) -> Tensor:
    i, j = positions.round().long().unbind(1)
    return _fetch(image, i, j)


class _Slopes(NamedTuple):
    """On inner voxels, along i and along j: what an answer's gradient is, and might be."""

    found: Tensor
    before: Tensor
    after: Tensor
    value: Tensor


def _slopes(answer: Callable[[Tensor, Tensor], Tensor]) -> _Slopes | None:
    """Slopes on the voxels; None where the gradient is missing, or wrong between the voxels too.

    Then the gradient's own stage has more to say.
    """
    image = _many_places()[0][:, :1]  # (2, 1, 5, 8)
    inner = spatial.identity_grid((5, 8))[:, 1:-1, 1:-1].flatten(1).repeat(2, 1, 1)  # (2, 2, 18)
    between = inner + 0.3
    try:
        found, off, right = (
            torch.autograd.grad(function(image, leaf).sum(), leaf)[0]
            for function, leaf in (
                (answer, inner.requires_grad_()),
                (answer, between.detach().requires_grad_()),
                (_bilinear, between.detach().requires_grad_()),
            )
        )
    except Exception:
        return None
    if not torch.allclose(off, right, atol=1e-3):
        return None
    value = image[:, 0, 1:-1, 1:-1]
    up, down = image[:, 0, :-2, 1:-1], image[:, 0, 2:, 1:-1]
    left, beside = image[:, 0, 1:-1, :-2], image[:, 0, 1:-1, 2:]
    before = torch.stack([value - up, value - left], 1).flatten(2)
    after = torch.stack([down - value, beside - value], 1).flatten(2)
    return _Slopes(found, before, after, torch.stack([value, value], 1).flatten(2))


def _slope_is_not(
    wrong: Callable[[_Slopes], Tensor],
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], bool]:
    """A law: on the voxels, along neither axis, the slope is this."""

    def holds(answer: Callable[[Tensor, Tensor], Tensor]) -> bool:
        slopes = _slopes(answer)
        if slopes is None:
            return True
        same = (slopes.found - wrong(slopes)).abs() < 1e-3
        return not same.all(dim=2).any()

    return holds


def _slope_of_a_side(answer: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """On a voxel: the slope before it, the one after it, or anything between the two."""
    slopes = _slopes(answer)
    if slopes is None:
        return True
    low, high = torch.minimum(*slopes[1:3]), torch.maximum(*slopes[1:3])
    return bool(((slopes.found > low - 1e-3) & (slopes.found < high + 1e-3)).all())


def _on_voxels(answer: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """A voxel's own value exactly on it, also in the last row and column."""
    image = _many_places()[0]
    grid = spatial.identity_grid((5, 8)).flatten(1).repeat(2, 1, 1)  # (2, 2, 40)
    return torch.allclose(answer(image, grid), image.flatten(2), atol=1e-4)


bilinear = Check(
    SLUG,
    "bilinear",
    _bilinear,
    [_few_places, _many_places],
    mistakes=[
        Mistake(
            _truncated,
            "wrong where a coordinate is between −1 and 0, or below.\n"
            "Likely cause: int() or .long() alone, which round toward 0: −0.4 becomes 0, but the\n"
            "voxel before it is −1. Take floor() first.",
        ),
        Mistake(
            _truncated_guarded,
            "wrong where a coordinate is between −1 and 0, or below.\n"
            "Likely cause: int(), which rounds toward 0: −0.4 becomes 0, but the voxel before it\n"
            "is −1. (And `if weight > 0` then drops a weight below 0.) Take floor() first.",
        ),
        Mistake(
            lambda image, positions: _mix(
                lambda i, j: _fetch(image, i, j),
                *_split(positions)[:2],
                (positions[:, 0].frac(), positions[:, 1].frac()),
            ),
            "wrong where a coordinate is below 0.\n"
            "Likely cause: frac() or fmod(): of −0.25 they make −0.25, but −0.25 lies 0.75 beyond\n"
            "row −1. Take a = i − i.floor().",
        ),
        Mistake(
            _rounded,
            "the first neighbor is the *nearest* row and column.\n"
            "i0 is i rounded down, floor(), so that a = i − i0 lies between 0 and 1.",
        ),
        *(
            Mistake(
                _without(di, dj),
                f"the neighbor ({'i0 + 1' if di else 'i0'}, {'j0 + 1' if dj else 'j0'}) does not "
                "count.\n"
                f"Its weight is {'a' if di else '(1 − a)'} {'b' if dj else '(1 − b)'}; the four "
                "weights add up to 1.",
            )
            for di in (0, 1)
            for dj in (0, 1)
        ),
        Mistake(
            _inside_only(0, -1),
            "the last row and the last column count as outside.\n"
            "They are height − 1 and width − 1: i < height, not i < height − 1.",
        ),
        Mistake(
            _inside_only(1, 0),
            "row 0 and column 0 count as outside.\nThe first is 0: i >= 0, not i > 0.",
        ),
        Mistake(
            _inside_only(-(10**6), 0),
            "zeros below and on the right, but above and on the left the border value goes on.\n"
            "A neighbor in row −1 is outside, too: 0 <= i as well as i < height.",
        ),
        Mistake(
            _reshaped_neighbors,
            "channels and places are mixed up.\n"
            "Likely cause: reshape or view of (B, N, C), which keep the order of the numbers.\n"
            "Move the axis: movedim(-1, 1).",
        ),
        Mistake(
            _reshaped,
            "right for one channel; with more, channels and places are mixed up.\n"
            "Likely cause: reshape or view of (B, N, C), which keep the order of the numbers.\n"
            "Move the axis: movedim(-1, 1).",
        ),
        Mistake(
            lambda image, positions: _bilinear(image, positions)[:, :, None],
            "there is an axis of size 1 too many, before the last.\n"
            "The result is (B, C, N): leave out the None or unsqueeze that made it.",
        ),
        Mistake(
            _other_fractions(lambda a, b: (1 - a, 1 - b)),
            "the weights are the wrong way round.\n"
            "Close to voxel (i0, j0), a and b are small and that voxel counts most: its weight is\n"
            "(1 − a)(1 − b).",
        ),
        Mistake(
            _other_fractions(lambda a, b: (b, a)),
            "a and b are exchanged.\n"
            "a is how far i is beyond its row: it weighs the lower neighbors. b weighs those on\n"
            "the right.",
        ),
        Mistake(
            lambda image, positions: _bilinear(image, positions.flip(1)),
            "positions are read in the order (j, i).\n"
            "positions[:, 0] are rows, positions[:, 1] columns.",
        ),
        Mistake(
            _nearest,
            "this is the value of the nearest voxel.\nMix the four neighbors by their weights.",
        ),
        Mistake(
            _other_fractions(lambda a, b: (torch.full_like(a, 0.5), torch.full_like(b, 0.5))),
            "this is the plain mean of the four neighbors.\n"
            "Each counts by its own weight: (1 − a)(1 − b), (1 − a) b, a (1 − b), a b.",
        ),
        Mistake(
            _one_too_far,
            "the row or column just behind the last one counts as inside.\n"
            "The last row is height − 1, the last column width − 1: i < height, not i <= height.",
        ),
        Mistake(
            _border,
            "outside the image this repeats the border value.\n"
            "A neighbor outside counts as 0. Likely cause: clamp() without putting zeros where it\n"
            "acted.",
        ),
        Mistake(
            _border_near,
            "up to one voxel outside, this gives the full border value.\n"
            "Each *neighbor* that is outside counts as 0, so that the value falls to 0 over one\n"
            "voxel. Likely cause: clamped indices, and zeros only where all four are outside.",
        ),
        Mistake(
            _extrapolated,
            "outside the image this goes on along the last slope.\n"
            "Likely cause: i0 is clamped, so that a = i − i0 is not between 0 and 1 any more.\n"
            "A neighbor outside counts as 0.",
        ),
        Mistake(
            _only_well_inside,
            "less than a voxel outside, this gives 0 at once.\n"
            "There some of the four neighbors are still in the image: each neighbor is asked by\n"
            "itself whether it is outside.",
        ),
        Mistake(
            _wrapped,
            "what leaves the image on one side comes back on the other.\n"
            "Likely cause: % or an index below zero. A neighbor outside counts as 0.",
        ),
        Mistake(
            _negative_wraps,
            "a neighbor in row or column −1 gets the value of the last one: Python counts indices\n"
            "below zero from the end.\n"
            "Check both bounds: 0 <= i as well as i < height. A neighbor outside counts as 0.",
        ),
        Mistake(
            lambda image, positions: _bilinear(image, positions[:1].expand_as(positions)),
            "every item of the batch is read at the positions of the first.\n"
            "Item b has positions[b].",
        ),
        Mistake(
            lambda image, positions: _bilinear(image[:1].expand_as(image), positions),
            "every item of the batch reads the first image.\nItem b is read from image[b].",
        ),
        Mistake(
            lambda image, positions: _bilinear(image[:, :1].expand_as(image), positions),
            "every channel shows the first one.\nLikely cause: image[b, 0]; keep the channel axis.",
        ),
        Mistake(
            lambda image, positions: _bilinear(image, positions - 0.5),
            "this looks half a voxel up and to the left.\n"
            "Positions are in voxels: (0, 0) is the *center* of the first voxel, not its edge.",
        ),
    ],
    laws=[
        Law(
            _on_voxels,
            "right between the voxels, wrong exactly on them (or in the last row or column).\n"
            "With i = 2, floor and ceil are both 2, and weights made from both are all 0.\n"
            "Take the second neighbor at i0 + 1, with weight i − i0, which is 0 there.",
        ),
        Law(
            _slope_is_not(lambda slopes: torch.zeros_like(slopes.found)),
            "right between the voxels, but on a voxel its slope is 0: at u = 0, where every\n"
            "registration starts, nothing would ever move.\n"
            "Likely cause: ceil() for the second neighbor (on a voxel it is the first one again),\n"
            "or relu(). Take i0 + 1, also where its weight i − i0 is 0.",
        ),
        Law(
            _slope_is_not(lambda slopes: -slopes.value),
            "right between the voxels, but on a voxel its slope is minus the voxel's value.\n"
            "Likely cause: a neighbor of weight 0 is skipped, as by `if weight > 0`. It adds 0 to\n"
            "the value, but its share of the slope is lost. Skip those outside the image only.",
        ),
        Law(
            _slope_is_not(lambda slopes: slopes.value + slopes.after),
            "right between the voxels, but on a voxel its slope is the value of the next voxel.\n"
            "Likely cause: a weight such as 1 − abs(i − i0): on the voxel, torch gives abs the\n"
            "slope 0. Write 1 − (i − i0) for i0, and i − i0 for i0 + 1.",
        ),
        Law(
            _slope_is_not(lambda slopes: slopes.before + slopes.after),
            "right between the voxels, but on a voxel its slope is the *sum* of those before and\n"
            "behind it: twice as steep as the image.\n"
            "Likely cause: weights clamp(1 − abs(i − k), min=0) for all voxels k: on a voxel, the\n"
            "one before and the one behind take part. Mix i0 and i0 + 1 only.",
        ),
        Law(
            _slope_of_a_side,
            "right between the voxels, but on a voxel its slope is neither that before it, nor\n"
            "that behind it, nor between the two.\n"
            "Likely cause: abs(), ceil() or a condition in a weight. 1 − a and a, with\n"
            "a = i − i.floor(), have the right slope everywhere.",
        ),
    ],
    gradient=True,
    hints=[
        "i0 = positions[:, 0].floor(), a = positions[:, 0] − i0: floats, so that a keeps its "
        "gradient. For indexing, i0.long().",
        "Write a helper that gives the voxels at rows i and columns j, and 0 where they are "
        "outside: clamp the indices, fetch image[b][:, i, j], and multiply by a mask. "
        "(image.shape is B, C, height, width, in this order.)",
        "Call it for (i0, j0), (i0, j0+1), (i0+1, j0), (i0+1, j0+1), each with its own weight: "
        "(1 − a)(1 − b), (1 − a) b, a (1 − b), a b.",
    ],
)


# --- border --------------------------------------------------------------------------------------


def _beyond() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(23)
    image = torch.rand(2, 2, 4, 6, generator=generator)
    whole = torch.stack(
        [
            torch.randint(-4, 8, (2, 40), generator=generator),
            torch.randint(-4, 10, (2, 40), generator=generator),
        ],
        dim=1,
    )
    return image, whole + 0.2 + 0.6 * torch.rand(2, 2, 40, generator=generator)


def _one_beyond() -> tuple[Tensor, Tensor]:
    image = torch.tensor([[0.0, 4.0], [8.0, 20.0]]).view(1, 1, 2, 2)
    return image, torch.tensor([[-1.5, 0.5], [0.25, 2.75]]).view(1, 2, 2)


def _clamped(low: float | None, beyond: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The buggy sampler with positions that are clamped in part: at ``low``, at n − 1 + beyond."""

    def wrong(image: Tensor, positions: Tensor) -> Tensor:
        top = torch.tensor(image.shape[2:]).view(1, 2, 1) - 1 + beyond
        kept = positions if low is None else positions.clamp(min=low)
        return _extrapolated(image, torch.minimum(kept, top.to(positions)))

    return wrong


def _fraction_of_outside(image: Tensor, positions: Tensor) -> Tensor:
    """Neighbors kept inside, and the fraction that the position outside had."""
    height, width = image.shape[2:]
    i0, j0, fractions = _split(positions)
    top, left = i0.clamp(0, height - 2), j0.clamp(0, width - 2)
    return _mix(lambda i, j: _fetch(image, i, j), top, left, fractions)


def _ends(positions: Tensor, sizes: Sequence[int]) -> Tensor:
    """Positions from 0 to n − 1, with these sizes for rows and columns."""
    return torch.stack([positions[:, d].clamp(0, n - 1) for d, n in enumerate(sizes)], dim=1)


def _absolute_fractions(image: Tensor, positions: Tensor) -> Tensor:
    """The bug of task 4, with abs() of the fractions."""
    height, width = image.shape[2:]
    i0, j0, (a, b) = _split(positions)
    top, left = i0.clamp(0, height - 2), j0.clamp(0, width - 2)
    fractions = ((a + (i0 - top)).abs(), (b + (j0 - left)).abs())
    return _mix(lambda i, j: _fetch(image, i, j), top, left, fractions)


def _other_size(image: Tensor, positions: Tensor) -> Tensor:
    """Rows clamped by the width, columns by the height."""
    height, width = image.shape[2:]
    i, j = positions[:, 0].clamp(0, width - 1), positions[:, 1].clamp(0, height - 1)
    return _extrapolated(image, torch.stack([i, j], dim=1))


bilinear_border = Check(
    SLUG,
    "bilinear_border",
    _border,
    [_one_beyond, _beyond],
    mistakes=[
        Mistake(
            _extrapolated,
            "this still has the bug: outside, it goes on along the last slope.\n"
            "At row −1.5, i0 is clamped to 0, and a = i − i0 is −1.5: weights of 2.5 and −1.5.\n"
            "What has to be clamped so that a stays between 0 and 1?",
        ),
        Mistake(
            lambda image, positions: _extrapolated(image, positions).clamp(
                image.min(), image.max()
            ),
            "the result is clamped to the range of the image: that hides the bug, and outside the\n"
            "values are still not those of the edge.\n"
            "At row −1.5 the weights are 2.5 and −1.5. Clamp what they are made from.",
        ),
        Mistake(
            _fraction_of_outside,
            "no value is invented any more, but outside this mixes the last two rows or columns.\n"
            "At row −1.5, floor gives a = 0.5. The border value alone belongs there: a must be 0\n"
            "above the image, and 1 below it.",
        ),
        Mistake(
            _bilinear,
            "outside the image this falls to 0.\n"
            "With border padding the value of the edge goes on: clamp instead of masking.",
        ),
        Mistake(
            _clamped(0.0, 10**6),
            "right above and on the left; below and on the right, weights are above 1.\n"
            "i − i0 must not pass 1 there. Clamp at both ends, and before i0 is taken: positions\n"
            "from 0 to height − 1, and from 0 to width − 1.",
        ),
        Mistake(
            _clamped(None, 0),
            "right below and on the right; above and on the left, weights are below 0.\n"
            "If i0 is clamped and i is not, a = i − i0 is −1.5 at row −1.5, also if all indices\n"
            "are clamped at both ends. Clamp the positions themselves, or a.",
        ),
        Mistake(
            _clamped(0.0, 1),
            "below and on the right this goes one voxel too far.\n"
            "The last row is height − 1, the last column width − 1.",
        ),
        Mistake(
            _clamped(0.0, -1),
            "below and on the right this stops one voxel too early.\n"
            "i0 ends at height − 2, but a position may go on to height − 1.",
        ),
        Mistake(
            _other_size,
            "rows are clamped by the width, or columns by the height.\n"
            "positions[:, 0] are rows: they end at height − 1.",
        ),
        Mistake(
            lambda image, positions: _bilinear(image, _ends(positions, image.shape[:1:-1])),
            "rows are clamped by the width, and columns by the height.\n"
            "positions[:, 0] are rows: they end at height − 1.",
        ),
        Mistake(
            lambda image, positions: _bilinear(
                image, _ends(positions, [n + 1 for n in image.shape[2:]])
            ),
            "below and on the right this goes one voxel too far, and finds 0.\n"
            "The last row is height − 1, the last column width − 1: clamp(0, height − 1).",
        ),
        Mistake(
            lambda image, positions: _extrapolated(
                image,
                torch.stack([positions[:, 0].clamp(0, image.shape[2] - 1), positions[:, 1]], 1),
            ),
            "right for rows, but columns still have the bug.\nb needs what you did for a.",
        ),
        Mistake(
            lambda image, positions: _extrapolated(
                image,
                torch.stack([positions[:, 0], positions[:, 1].clamp(0, image.shape[3] - 1)], 1),
            ),
            "right for columns, but rows still have the bug.\na needs what you did for b.",
        ),
        Mistake(
            lambda image, positions: _extrapolated(image, positions).clamp(0, 1),
            "the result is clamped from 0 to 1: that hides the bug, and would cut any image with\n"
            "other values. Clamp what the weights are made from.",
        ),
        Mistake(
            _absolute_fractions,
            "a and b have lost their sign: at row −1.5 the weights are now −0.5 and 1.5.\n"
            "Between 0 and 1 means clamp, not abs.",
        ),
        Mistake(
            lambda image, positions: _border(image[:1].expand_as(image), positions),
            "every item of the batch reads the first image.\nItem b is read from image[b].",
        ),
        Mistake(
            lambda image, positions: _border(image, positions.clamp(0, min(image.shape[2:]) - 1)),
            "rows and columns are clamped by the same size.\n"
            "Rows end at height − 1, columns at width − 1.",
        ),
        Mistake(
            lambda image, positions: _border(image, positions.abs()),
            "above and on the left this reads a mirror image.\n"
            "Clamp positions, do not mirror them.",
        ),
    ],
    gradient=True,
    hints=[
        "Take a position at row −1.5 and write down i0, a, and the weights 1 − a and a. Weights "
        "should lie between 0 and 1.",
        "The position itself has to be brought inside before it is split into i0 and a.",
    ],
)


# --- gradients at the edge -----------------------------------------------------------------------


edge_slopes = Check(
    SLUG,
    "edge_slopes",
    lambda: (-4, 2, 0, 4),
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (4, 2, 0, 4),
            "all right but one sign: with zeros, does the value rise or fall as the place moves\n"
            "further down, out of the image?",
        ),
        Mistake(
            lambda: (0, 0, 0, 0),
            "there is a slope here.\n"
            "With zeros the value falls to 0 over *one* voxel, and this place is in the middle of\n"
            "it. Along the edge the border's value changes with the column.",
        ),
        Mistake(
            lambda: (0, 0, 0, 4),
            "the border's two numbers are right. Half a voxel outside, zeros are not yet black:\n"
            "the value is half of the edge's, and falls to 0 over the rest of the voxel.",
        ),
        Mistake(
            lambda: (-3.5, 4, 0, 4),
            "the border's two numbers are right. The first two go on along the last two rows; but\n"
            "row 2.5 lies between row 2 and row 3, and row 3 counts as 0.",
        ),
        Mistake(
            lambda: (-5, 2, 0, 4),
            "three are right. The first is the slope under column 1; at column 0.75 the value of\n"
            "the last row is mixed from columns 0 and 1.",
        ),
        Mistake(
            lambda: (-4, 4, 0, 4),
            "three are right. With zeros, only half of the weight is left for the last row: the\n"
            "slope along it shrinks with the value.",
        ),
        Mistake(
            lambda: (-4, 2, 0, 2),
            "three are right. With border padding the last row keeps its full weight, at any\n"
            "distance.",
        ),
        Mistake(
            lambda: (-4, 2, -4, 4),
            "three are right. With border padding, does the value change if the place moves\n"
            "further out?",
        ),
        Mistake(
            lambda: (-4, 2, 0, 0),
            "three are right. With border padding the value still follows the last row as the\n"
            "column changes.",
        ),
        Mistake(
            lambda: (-2, 2, 0, 4),
            "three are right. The first is a slope per voxel: the value falls from 4 to 0 over\n"
            "one voxel. (2 is the value itself.)",
        ),
        Mistake(
            lambda: (2, -4, 4, 0),
            "right numbers; for each padding, give the slope along i first, then along j.",
        ),
        Mistake(
            lambda: (0, 4, -4, 2),
            "right numbers; give those of zeros padding first.",
        ),
    ],
    hints=[
        "At column 0.75 the last row has the value 0.25 · 1 + 0.75 · 5. Row 3 does not exist: with "
        "zeros it counts as 0, with border padding it repeats the last row.",
        "Slope along i: the lower two neighbors minus the upper two, mixed by b = 0.75. Slope "
        "along j: the right two minus the left two, mixed by a = 0.5.",
    ],
)


# --- labels --------------------------------------------------------------------------------------


def _structures() -> tuple[Tensor, Tensor]:
    """Blobs of 2, 3 and 7 on background, and a field that leaves the image."""
    generator = torch.Generator().manual_seed(24)
    noise = spatial.smooth(torch.randn(2, 4, 13, 10, generator=generator), 1.2)
    values = torch.tensor([0, 2, 3, 7])
    labels = values[noise.argmax(1, keepdim=True)]
    field = 6 * spatial.smooth(torch.randn(2, 2, 13, 10, generator=generator), 1.5)
    return labels, field + torch.tensor([2.3, -1.4]).view(1, 2, 1, 1)


def _two_halves() -> tuple[Tensor, Tensor]:
    labels = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]]).view(1, 1, 3, 4)
    displacement = torch.zeros(1, 2, 3, 4)
    displacement[:, 1] = torch.tensor([0.4, 0.6, 0.3, 0.4])
    return labels, displacement


def _shares(labels: Tensor, displacement: Tensor, padding: spatial.Padding = "zeros") -> Tensor:
    """One channel for each number from 0 to the largest, warped linearly."""
    one_hot = F.one_hot(labels[:, 0]).movedim(-1, 1).to(displacement.dtype)
    return spatial.warp(one_hot, displacement, padding=padding)


def _channel_numbers(labels: Tensor, displacement: Tensor) -> Tensor:
    warped = evaluation.warp_labels(labels, displacement)
    return torch.searchsorted(labels.unique(), warped)


def _more_than_half(labels: Tensor, displacement: Tensor) -> Tensor:
    share, winner = _shares(labels, displacement).max(1, keepdim=True)
    return winner * (share > 0.5)


def _without_background(labels: Tensor, displacement: Tensor) -> Tensor:
    return _shares(labels, displacement)[:, 1:].argmax(1, keepdim=True) + 1


def _without_background_and_channels(labels: Tensor, displacement: Tensor) -> Tensor:
    values = labels.unique()[1:]
    shares = _shares(labels, displacement)[:, values]
    return values[shares.argmax(1, keepdim=True)]


def _warped(labels: Tensor, displacement: Tensor, values: Tensor) -> Tensor:
    """The shares of these labels, a channel each."""
    one_hot = torch.cat([(labels == value).to(displacement.dtype) for value in values], dim=1)
    return spatial.warp(one_hot, displacement)


def _winner(values: Tensor, shares: Tensor) -> Tensor:
    return values[shares.argmax(1, keepdim=True)]


def _no_background(labels: Tensor, displacement: Tensor) -> Tensor:
    """The largest share among the other labels, and 0 where there is none."""
    values = labels.unique()[1:]
    shares = _warped(labels, displacement, values)
    return _winner(values, shares) * (shares.amax(1, keepdim=True) > 0)


def _rest_is_background(labels: Tensor, displacement: Tensor) -> Tensor:
    values = labels.unique()
    others = _warped(labels, displacement, values[1:])
    return _winner(values, torch.cat([1 - others.sum(1, keepdim=True), others], dim=1))


def _last_of_equals(labels: Tensor, displacement: Tensor) -> Tensor:
    values = labels.unique().flip(0)
    return _winner(values, _warped(labels, displacement, values))


def _beats_the_one_before(labels: Tensor, displacement: Tensor) -> Tensor:
    """A loop that keeps the share of the label before, and not the largest."""
    values = labels.unique()
    shares = _warped(labels, displacement, values)
    result, best = torch.zeros_like(labels), torch.zeros_like(shares[:, :1])
    for value, share in zip(values, shares.split(1, dim=1), strict=True):
        result = torch.where(share > best, value, result)
        best = share
    return result


def _starts_from_labels(labels: Tensor, displacement: Tensor) -> Tensor:
    values = labels.unique()
    shares = _warped(labels, displacement, values)
    return torch.where(shares.sum(1, keepdim=True) > 0, _winner(values, shares), labels)


def _first_numbers(labels: Tensor, displacement: Tensor) -> Tensor:
    """As many labels as there are, counted from 0."""
    values = torch.arange(len(labels.unique()))
    return _winner(values, _warped(labels, displacement, values))


def _by_number(labels: Tensor, displacement: Tensor) -> Tensor:
    """Images that hold the label's number where they should hold 1."""
    values = labels.unique()
    shares = _warped(labels, displacement, values)
    return _winner(values, shares * values.view(1, -1, 1, 1))


warp_labels = Check(
    SLUG,
    "warp_labels",
    evaluation.warp_labels,
    [_two_halves, _structures],
    mistakes=[
        Mistake(
            lambda labels, displacement: spatial.warp(labels.float(), displacement).round().long(),
            "label numbers were interpolated: between 0 and 2 this finds a 1 that nobody drew.\n"
            "Interpolate an image of each label, 1 where it is and 0 elsewhere.",
        ),
        Mistake(
            lambda labels, displacement: spatial.warp(labels.float(), displacement).long(),
            "label numbers were interpolated, and rounded down.\n"
            "Interpolate an image of each label, 1 where it is and 0 elsewhere.",
        ),
        Mistake(
            lambda labels, displacement: spatial.warp(labels, displacement, mode="nearest"),
            "this is the nearest label. It invents nothing, but it is not what is asked:\n"
            "warp an image of each label linearly, and let the largest share win.",
        ),
        Mistake(
            _channel_numbers,
            "this returns the number of the channel instead of the label.\n"
            "Channel 1 may belong to label 2: look the label up, as in values[winner].",
        ),
        Mistake(
            lambda labels, displacement: _shares(labels, displacement, "border").argmax(
                1, keepdim=True
            ),
            "outside the image this repeats the border's labels.\n"
            "Here the outside is background: zeros padding, and where all shares are 0, label 0.",
        ),
        Mistake(
            _more_than_half,
            "a label wins here only with more than half of the weight.\n"
            "Where three meet, none may have that: the largest share wins, background included.",
        ),
        Mistake(
            _without_background,
            "the background has no image of its own, so that it can never win.\n"
            "Make an image for label 0, too. (And this returns labels that do not occur.)",
        ),
        Mistake(
            _without_background_and_channels,
            "the background has no image of its own, so that it can never win.\n"
            "Make an image for label 0, too.",
        ),
        Mistake(
            _no_background,
            "the background has no image of its own, so that it never wins inside the image.\n"
            "Likely cause: labels.unique()[1:]. Label 0 competes like the others.",
        ),
        Mistake(
            _rest_is_background,
            "near the edge of the image the background gets too much.\n"
            "Likely cause: 1 minus the sum of the others. That counts what lies *outside* as\n"
            "background; with zeros outside, each label's own image decides, 0's too.",
        ),
        Mistake(
            _last_of_equals,
            "outside the image, where all shares are 0, this gives the largest label.\n"
            "Likely cause: >= lets the last of equals win, or the labels run backwards. Use >,\n"
            "and begin with 0.",
        ),
        Mistake(
            _beats_the_one_before,
            "each label is compared with the one before it, not with the best so far.\n"
            "Keep the larger of the two: best = torch.maximum(best, share).",
        ),
        Mistake(
            _starts_from_labels,
            "outside the image this leaves the label that stood there before the warp.\n"
            "Where all shares are 0 the result is 0: begin with zeros_like(labels).",
        ),
        Mistake(
            _first_numbers,
            "this looks for labels 0, 1, 2, … up to their count only.\n"
            "Labels are any numbers, such as 2, 3 and 41: labels.unique() finds them.",
        ),
        Mistake(
            lambda labels, displacement: _winner(
                torch.arange(4), _warped(labels, displacement, torch.arange(4))
            ),
            "this looks for labels 0 to 3 only.\n"
            "Labels are any numbers, such as 2, 3 and 41: labels.unique() finds them.",
        ),
        Mistake(
            _by_number,
            "large label numbers win too often.\n"
            "A label's image is 1 where it is, not the label's number.",
        ),
        Mistake(
            lambda labels, displacement: _shares(labels, displacement).amax(1, keepdim=True),
            "these are the largest shares, not the labels that have them.\n"
            "argmax(1, keepdim=True), or the indices of max(…), say which channel it was.",
        ),
        Mistake(
            lambda labels, displacement: evaluation.warp_labels(labels, displacement)[:, None],
            "there is an axis of size 1 too many.\n"
            "Likely cause: torch.stack makes a new axis, torch.cat does not: the images are\n"
            "(B, 1, H, W), and cat along axis 1 makes (B, L, H, W) of them.",
        ),
        Mistake(
            lambda labels, displacement: evaluation.warp_labels(
                labels, displacement[:1].expand_as(displacement)
            ),
            "every item of the batch is warped by the first displacement.\n"
            "Likely cause: displacement[0] or displacement[:1].",
        ),
        Mistake(
            lambda labels, displacement: evaluation.warp_labels(labels, -displacement),
            "the displacement has the wrong sign.\nwarped(x) = labels(x + u(x)).",
        ),
        Mistake(
            lambda labels, displacement: evaluation.warp_labels(labels, displacement.flip(1)),
            "rows and columns of the displacement are swapped.\nwarp takes it as it is.",
        ),
        Mistake(
            lambda labels, displacement: evaluation.warp_labels(labels, displacement)[:, 0],
            "there is an axis missing.\nThe result is (B, 1, H, W): argmax(1, keepdim=True).",
        ),
        Mistake(
            lambda labels, displacement: evaluation.warp_labels(
                labels[:1].expand_as(labels), displacement
            ),
            "every item of the batch shows the labels of the first.\nLikely cause: labels[0].",
        ),
    ],
    hints=[
        "values = labels.unique() are the labels that occur. For each, (labels == value).float() "
        "is an image of 0 and 1.",
        "torch.cat of these images along axis 1 (axis 0 is the batch) is one image with a channel "
        "for each label; warp takes them all at once.",
        "argmax(1, keepdim=True) finds the channel with the largest share (without the 1 it counts "
        "through all numbers); values[…] turns channel numbers into labels.",
    ],
)

"""Checks of exercise 13: correlation, box sums, local correlation, and a loss that lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib import losses
from course_lib.checks.core import Check, Goal, Law, Mistake, Outcome, finite_number
from course_lib.checks.gradients import gradients
from course_lib.datasets import brains
from course_lib.landscapes import landscape, translations
from course_lib.local_ncc import correlation_map_plain
from course_lib.spatial import pyramid
from course_lib.widgets.similarity import corrupt

SLUG = "13_similarity"

Answer = Callable[..., Any]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- the copies ----------------------------------------------------------------------------------


def _scores() -> tuple[float, float, float, float]:
    return 1.0, -1.0, 0.0625, 1.0


_SLIPS: tuple[dict[float, str], ...] = (
    {
        0.0: "the first number: the negative of 0 is 1 and that of 1 is 0. MSE squares the\n"
        "difference at each voxel; nothing cancels.",
        0.5: "the first number: how far is the negative from the image at a voxel of 0, and how\n"
        "far at a voxel of 1? The mean is over all voxels.",
    },
    {
        1.0: "the second number: the correlation of the negative is 1 only after squaring.\n"
        "Where the image is above its mean, the negative is below its own: r is below 0.",
        0.0: "the second number: r = 0 would mean that no line leads from one image to the other.\n"
        "The negative is on a line: a gain of −1 and an offset of 1.",
    },
    {
        0.25: "the third number: 0.25 is the mean *absolute* difference of the pale copy; MSE\n"
        "takes the square.",
        0.125: "the third number: the pale copy differs from the image at *every* voxel, not at\n"
        "half of them. By how much where the image is 0, and where it is 1?",
        0.0: "the third number: MSE compares intensities as they are. By how much does the pale\n"
        "copy differ where the image is 0, and where it is 1?",
    },
    {
        0.5: "the fourth number: correlation does not feel the gain of 0.5.\n"
        "Numerator and denominator are both halved: what is left?",
        0.0: "the fourth number: the pale copy is a gain and an offset of the image.\n"
        "What does correlation do with them?",
    },
)
"""For each of the four numbers: wrong ones, and what to say."""


def _copies_mistakes() -> Iterator[Mistake]:
    """Every combination of right and wrong numbers, each wrong one with its own sentence."""
    right = _scores()
    options = [[(value, ""), *slips.items()] for value, slips in zip(right, _SLIPS, strict=True)]
    for choice in product(*options):
        values = tuple(value for value, _ in choice)
        said = [text for _, text in choice if text]
        if said:
            yield Mistake(partial(_same, values), "\n".join(said))


def _same(values: tuple[float, ...]) -> tuple[float, ...]:
    return values


_GAVE_LOSS = (
    "the two correlations have the wrong sign: you gave the loss −r.\n"
    "Asked for is r itself: above 0 where the images rise together."
)
_ORDER = (
    "right numbers in another order.\n"
    "Return MSE and r of the negative, then MSE and r of the pale copy."
)

scores_of_copies = Check(
    SLUG,
    "scores_of_copies",
    _scores,
    [lambda: ()],
    mistakes=[
        *_copies_mistakes(),
        Mistake(lambda: (1.0, 1.0, 0.0625, -1.0), _GAVE_LOSS),
        Mistake(lambda: (-1.0, 1.0, 1.0, 0.0625), _ORDER),
        Mistake(lambda: (0.0625, 1.0, 1.0, -1.0), _ORDER),
        Mistake(lambda: (1.0, 0.0625, -1.0, 1.0), _ORDER),
    ],
    hints=[
        "Take two voxels, a 0 and a 1. What are they in the negative, and in the pale copy?",
        "r subtracts the means and divides by the spreads, so a gain above 0 and an offset are "
        "gone. A gain below 0 turns the sign.",
    ],
)


# --- correlation over the whole image ------------------------------------------------------------


def _two_images() -> tuple[Tensor, Tensor]:
    a, noise = _random(2, 2, 2, 6, 5, seed=1)
    # Each item and each channel in a brightness of its own, so that mixing them shows.
    scale = torch.tensor([[1.0, 0.4], [0.5, 1.0]]).view(2, 2, 1, 1)
    offset = torch.tensor([[0.5, 0.0], [0.0, 0.9]]).view(2, 2, 1, 1)
    return scale * a + offset, 0.6 * a + 0.4 * noise + 0.3


def _two_volumes() -> tuple[Tensor, Tensor]:
    a, noise = _random(2, 3, 1, 4, 5, 3, seed=2)
    gains = torch.tensor([1.0, -0.5, 0.2]).view(3, 1, 1, 1, 1)
    return a, gains * a + 0.2 * noise + 0.4


def _correlations(
    a: Tensor, b: Tensor, *, centered: bool = True, start: int = 1, lost: int = 0
) -> Tensor:
    """Pearson's r of what is left after ``start`` axes; ``lost`` values are missing in n − lost."""
    a, b = a.flatten(start), b.flatten(start)
    if centered:
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    n = a.shape[-1]
    spread = ((a * a).sum(-1) / (n - lost) * (b * b).sum(-1) / (n - lost) + 1e-10).sqrt()
    return (a * b).mean(-1) / spread


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    return ((a - a.mean(1, keepdim=True)) * (b - b.mean(1, keepdim=True))).mean(1)


def _over(a: Tensor, b: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Minus the mean of the correlations over these axes only."""
    a, b = a - a.mean(axes, keepdim=True), b - b.mean(axes, keepdim=True)
    spread = (a.square().mean(axes) * b.square().mean(axes) + 1e-10).sqrt()
    return -((a * b).mean(axes) / spread).mean()


def _variance(a: Tensor) -> Tensor:
    return a.flatten(1).var(1, unbiased=False)


def _constant_is_zero(answer: Answer) -> bool:
    flat, image = torch.full((1, 1, 6, 5), 0.5), _random(1, 1, 6, 5, seed=3)
    value = torch.as_tensor(answer(flat, image))
    return bool(value.isfinite().all() and value.abs().max() < 1e-2)


def _calm_at_a_constant(answer: Answer) -> bool:
    """The gradient at a constant image is finite, and not far above that of the formula."""
    flat, image = torch.full((1, 1, 6, 5), 0.5), _random(1, 1, 6, 5, seed=3)
    flat.requires_grad_()
    try:
        ours, theirs = (gradients(f, (flat, image))[0] for f in (losses.ncc, answer))
    except Exception:  # NumPy refuses a gradient: the next stage says so
        return True
    if ours is None or theirs is None:  # a lost gradient has a message of its own
        return True
    return bool(theirs.isfinite().all() and theirs.abs().max() < 100 * ours.abs().max())


ncc = Check(
    SLUG,
    "ncc",
    losses.ncc,
    [_two_images, _two_volumes],
    mistakes=[
        Mistake(
            lambda a, b: _correlations(a, b).mean(),
            "this is r itself: it grows when the images agree.\nA loss has to fall: return −r.",
        ),
        Mistake(
            lambda a, b: 1 - _correlations(a, b).mean(),
            "this is 1 − r; asked for is −r.\n"
            "Both fall as the images agree, but here the best value is −1, as in the library.",
        ),
        Mistake(
            lambda a, b: -_correlations(a, b, centered=False).mean(),
            "the means are not subtracted: this is the cosine of the angle between the images.\n"
            "Two bright images would always agree. Subtract each image's own mean first.",
        ),
        Mistake(
            lambda a, b: -_correlations(a[None], b[None]).mean(),
            "all items of the batch are treated as one image.\n"
            "Likely cause: mean() without dim, or a correlation of everything at once. Flatten\n"
            "all axes but the first, x.flatten(1), and average along axis 1 with keepdim=True.",
        ),
        Mistake(
            lambda a, b: -_correlations(a[None], b[None], lost=1).mean(),
            "all items of the batch are treated as one image, and the variances are divided by\n"
            "n − 1 (as var() and std() do unless told unbiased=False), the covariance by n.\n"
            "Flatten all axes but the first, x.flatten(1), and average along axis 1.",
        ),
        Mistake(
            lambda a, b: -_correlations(a, b).abs().mean(),
            "this is −|r|: an inverted contrast would count as agreement.\nKeep the sign of r.",
        ),
        Mistake(
            lambda a, b: -_correlations(a, b, start=2).mean(),
            "each channel is correlated by itself.\n"
            "Here all voxels of all channels of an item count together: flatten(1), not (2).",
        ),
        Mistake(
            lambda a, b: _over(a, b, (2, 3)),
            "this averages over the axes 2 and 3 only: each channel counts by itself, and in 3D\n"
            "each layer. All voxels of all channels of an item count together: x.flatten(1).",
        ),
        Mistake(
            lambda a, b: _over(a, b, (1, 2, 3)),
            "right for images; in 3D the last axis is left out, and each layer counts by itself.\n"
            "Flatten all axes but the first, x.flatten(1): it fits both.",
        ),
        Mistake(
            lambda a, b: -(_correlations(a, b) * a[0].numel()).mean(),
            "the covariance is a sum, the variances are means (or it lacks its division by n).\n"
            "Take the mean in all three.",
        ),
        Mistake(
            lambda a, b: -_covariance(a, b).mean(),
            "this is minus the covariance; the division by the spreads is missing.\n"
            "Twice the contrast would count as twice the similarity.",
        ),
        Mistake(
            lambda a, b: -(_covariance(a, b) / (_variance(a) * _variance(b) + 1e-10)).mean(),
            "the root is missing: divide by √(var_a · var_b), not by var_a · var_b.",
        ),
        Mistake(
            lambda a, b: -_correlations(a, b, lost=1).mean(),
            "nearly right: the covariance is divided by n, the variances by n − 1.\n"
            "Likely cause: var() or std(), which divide by n − 1 unless told unbiased=False.",
        ),
        Mistake(
            lambda a, b: -_correlations(a, b).square().mean(),
            "this is the square of r: an inverted contrast would count as agreement.\n"
            "The square belongs to the local version, task 4.",
        ),
        Mistake(
            lambda a, b: -_correlations(a, b).sum(),
            "the items of the batch are added up.\n"
            "Take the mean over the batch, or the loss would grow with the batch.",
        ),
        Mistake(
            lambda a, b: -_correlations(a, b),
            "this gives one number for each item of the batch.\n"
            "A loss is one number: take the mean over the batch.",
        ),
    ],
    laws=[
        Law(
            _constant_is_zero,
            "right for images with contrast, but for a constant image it is not 0.\n"
            "Its variance is 0, and 0/0 is not a number. Add 1e-10 under the root.",
        ),
        Law(
            _calm_at_a_constant,
            "right values, but at a constant image the gradient is NaN or enormous.\n"
            "The root of 0 has no finite slope, and an eps added outside of the root is next to\n"
            "nothing to divide by (std(…) + eps and F.cosine_similarity do it so).\n"
            "Add 1e-10 under the root: (var_a * var_b + 1e-10).sqrt().",
        ),
    ],
    gradient=True,
    hints=[
        "a = warped.flatten(1) has shape (B, voxels). a − a.mean(1, keepdim=True) has mean 0 in "
        "each item.",
        "With centered a and b: cov = (a * b).mean(1), var_a = a.square().mean(1), "
        "r = cov / (var_a * var_b + 1e-10).sqrt().",
    ],
)


# --- box sums ------------------------------------------------------------------------------------


def _small_image() -> tuple[Tensor, int]:
    return _random(2, 2, 7, 9, seed=4), 3


def _wide_window() -> tuple[Tensor, int]:
    return _random(1, 1, 12, 10, seed=5), 5


def _box_sums(image: Tensor, window: int) -> Tensor:
    radius = window // 2
    sums = F.pad(image, (radius + 1, radius, radius + 1, radius))
    for axis in (2, 3):
        sums = sums.cumsum(axis)
        n = sums.shape[axis] - window
        sums = sums.narrow(axis, window, n) - sums.narrow(axis, 0, n)
    return sums


def _shifted(image: Tensor, window: int, by: int) -> Tensor:
    """Each window lies ``by`` voxels too far up and to the left (below 0: down, to the right)."""
    (height, width), start = image.shape[2:], window - by
    sums = _box_sums(F.pad(image, (window,) * 4), window)
    return sums[..., start : start + height, start : start + width]


def _padded(image: Tensor, window: int, front: int, behind: int) -> Tensor:
    """The recipe, with these numbers of zeros."""
    sums = F.pad(image, (front, behind, front, behind)).cumsum(2)
    sums = (sums[:, :, window:] - sums[:, :, :-window]).cumsum(3)
    return sums[..., window:] - sums[..., :-window]


def _table(s: Tensor, window: int) -> Tensor:
    """The sums of all windows from the four corners in a double cumulative sum."""
    w = window
    return s[..., w:, w:] - s[..., :-w, w:] - s[..., w:, :-w] + s[..., :-w, :-w]


def _padded_late(image: Tensor, window: int) -> Tensor:
    """Zeros around the cumulative sum, not around the image."""
    r = window // 2
    return _table(F.pad(image.cumsum(2).cumsum(3), (r + 1, r, r + 1, r)), window)


def _first_axes(image: Tensor, window: int) -> Tensor:
    """Cumulative sums over items and channels."""
    r = window // 2
    return _table(F.pad(image, (r + 1, r, r + 1, r)).cumsum(0).cumsum(1), window)


def _last_corner_subtracted(image: Tensor, window: int) -> Tensor:
    r, w = window // 2, window
    s = F.pad(image, (r + 1, r, r + 1, r)).cumsum(2).cumsum(3)
    return _table(s, window) - 2 * s[..., :-w, :-w]


def _one_missing(image: Tensor, window: int) -> Tensor:
    """The windows of ``window − 1`` values that lack the first one of each axis."""
    radius = window // 2
    sums = F.pad(image, (radius, radius, radius, radius))
    for axis in (2, 3):
        sums = sums.cumsum(axis)
        n = sums.shape[axis] - window + 1
        sums = sums.narrow(axis, window - 1, n) - sums.narrow(axis, 0, n)
    return sums


def _no_border(image: Tensor, window: int) -> Tensor:
    inner = slice(window // 2, -(window // 2))
    return _box_sums(image, window)[..., inner, inner]


def _border_repeated(image: Tensor, window: int) -> Tensor:
    radius = window // 2
    padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    return _no_border(padded, window)


def _one_axis(image: Tensor, window: int, axis: int) -> Tensor:
    radius = window // 2
    sums = F.pad(image, (radius, radius, radius, radius)).unfold(axis, window, 1).sum(-1)
    return sums.narrow(5 - axis, radius, image.shape[5 - axis])


def _corners(image: Tensor, window: int, *, both: bool) -> Tensor:
    """The summed-area table with corners forgotten: the last one, or the two at the sides."""
    radius = window // 2
    s = F.pad(image, (radius + 1, radius, radius + 1, radius)).cumsum(2).cumsum(3)
    w, far, near = window, s[..., window:, window:], s[..., :-window, :-window]
    return far - s[..., :-w, w:] - s[..., w:, :-w] if both else far - near


class _Names(TorchDispatchMode):
    """The names of all operations, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def _operations(answer: Answer, window: int, height: int = 40, width: int = 36) -> list[str]:
    with _Names() as mode:
        answer(torch.ones(1, 1, height, width), window)
    return mode.names


_ALL_VALUES = ("conv", "pool", "unfold", "im2col", "as_strided")


def _no_window_at_once(answer: Answer) -> bool:
    return not any(word in name for name in _operations(answer, 9) for word in _ALL_VALUES)


def _no_loop_over_voxels(answer: Answer) -> bool:
    small, large = _operations(answer, 5, 14, 12), _operations(answer, 5, 28, 24)
    return len(large) <= len(small) + 4


def _cost_stays(answer: Answer) -> bool:
    return len(_operations(answer, 21)) <= len(_operations(answer, 3)) + 4


box_sums = Check(
    SLUG,
    "box_sums",
    _box_sums,
    [_small_image, _wide_window],
    mistakes=[
        Mistake(
            lambda image, window: _box_sums(image, window) / window**2,
            "these are means; asked for are sums.\nDo not divide by the size of the window.",
        ),
        Mistake(
            lambda image, window: _shifted(image, window, window // 2),
            "each window ends at its voxel instead of standing around it.\n"
            "The sums are right, in the wrong place: pad window // 2 zeros on both sides (and one\n"
            "more in front), so that the window of voxel i begins at i − window // 2.",
        ),
        Mistake(
            lambda image, window: _shifted(image, window, -(window // 2)),
            "each window begins at its voxel instead of standing around it.\n"
            "The window of voxel i begins at i − window // 2: pad that many zeros in front.",
        ),
        Mistake(
            lambda image, window: _shifted(image, window, -1),
            "each window stands one voxel too far down and to the right.\n"
            "Likely cause: the additional zero is behind the image; it belongs in front:\n"
            "F.pad(image, (r + 1, r, r + 1, r)) with r = window // 2.",
        ),
        Mistake(
            lambda image, window: _shifted(image, window, 1),
            "each window stands one voxel too far up and to the left.\n"
            "Likely cause: one zero too many in front. There belong r + 1 in front and r behind:\n"
            "F.pad(image, (r + 1, r, r + 1, r)) with r = window // 2.",
        ),
        Mistake(
            lambda image, window: _padded(image, window, window // 2, window // 2),
            "one value short along each axis: the first window has no S[i − 1] to subtract.\n"
            "Pad one zero more in front: F.pad(image, (r + 1, r, r + 1, r)).",
        ),
        Mistake(
            lambda image, window: _padded(image, window - 1, window // 2 + 1, window // 2),
            "one value too many along each axis: these are windows of `window − 1`.\n"
            "x[i] + … + x[k] = S[k] − S[i − 1]: the two S are `window` places apart.",
        ),
        Mistake(
            _last_corner_subtracted,
            "the fourth corner has the wrong sign.\n"
            "Subtracting two sides takes the corner above and to the left away twice: add it.",
        ),
        Mistake(
            _padded_late,
            "the zeros are put around the cumulative sum instead of the image.\n"
            "Behind the image the cumulative sum goes on at its last value; it does not fall\n"
            "to 0. Pad first, then cumsum.",
        ),
        Mistake(
            _first_axes,
            "the cumulative sums run along the axes 0 and 1: over items and channels.\n"
            "Rows and columns are the axes 2 and 3.",
        ),
        Mistake(
            lambda image, window: image.cumsum(2).cumsum(3),
            "this is the cumulative sum itself: each value is the sum of all before it.\n"
            "The sum over a window is a difference of two of them, along each axis.",
        ),
        Mistake(
            lambda image, window: _corners(image, window, both=False),
            "in the double cumulative sum, this subtracts one corner only.\n"
            "Work along one axis, difference included, and then along the other; or use all four\n"
            "corners of the window.",
        ),
        Mistake(
            lambda image, window: _corners(image, window, both=True),
            "in the double cumulative sum, the part above *and* to the left is subtracted twice.\n"
            "Add it once: S at the fourth corner.",
        ),
        Mistake(
            _one_missing,
            "the first row and the first column of each window are missing.\n"
            "S[i] includes value i, so x[i] + … + x[k] = S[k] − S[i − 1]: one more zero is needed\n"
            "in front.",
        ),
        Mistake(
            _no_border,
            "the border is missing: windows that hang over it are left out.\n"
            "Each voxel has a window; outside the image count zeros. Pad before summing.",
        ),
        Mistake(
            _border_repeated,
            "outside the image this repeats the border value.\n"
            "Zeros are asked for, as in the library's lncc: F.pad(image, …) without a mode.",
        ),
        Mistake(
            lambda image, window: _box_sums(image, 2 * window + 1),
            "`window` is taken for the radius: this sums 2 · window + 1 values along each axis.\n"
            "`window` is the whole edge; the radius is window // 2.",
        ),
        Mistake(
            lambda image, window: _one_axis(image, window, 2),
            "this sums along the rows' axis i only: down each column.\n"
            "Do the same along axis 3, on the result.",
        ),
        Mistake(
            lambda image, window: _one_axis(image, window, 3),
            "this sums along the columns' axis j only: across each row.\n"
            "Do the same along axis 2, on the result.",
        ),
    ],
    laws=[
        Law(
            _no_window_at_once,
            "right numbers, by a convolution, a pooling or unfold: these visit every value of\n"
            "every window. Asked for are cumulative sums, x.cumsum(axis), and a difference.",
        ),
        Law(
            _no_loop_over_voxels,
            "right numbers, but a larger image takes more operations: there is a loop over its\n"
            "voxels or rows, as in the slow definition. Cumulative sums need none: S of all rows\n"
            "at once, and a difference of two slices of S.",
        ),
        Law(
            _cost_stays,
            "right numbers, but a larger window takes more operations: is there a loop over the\n"
            "window? With S = x.cumsum(axis), a sum of any length is one difference of two S.",
        ),
    ],
    gradient=True,
    hints=[
        "In one dimension: S[i] = x[0] + … + x[i], so x[i] + … + x[k] = S[k] − S[i − 1].",
        "Pad one zero more in front than behind, so that S[i − 1] exists for the first window: "
        "F.pad(image, (r + 1, r, r + 1, r)) with r = window // 2. (F.pad begins with the last "
        "axis.)",
        "Then, for axis 2 and again for axis 3: S = x.cumsum(axis), and the difference of S from "
        "`window` on and S without its last `window` values.",
    ],
)


# --- local correlation ---------------------------------------------------------------------------


def _with_background() -> tuple[Tensor, Tensor, int]:
    a, noise = _random(2, 2, 1, 13, 11, seed=6)
    a[:, :, :, 7:] = 0  # flat windows: 0/0 without eps
    b = 0.7 * a + 0.3 * noise
    b[:, :, :, 7:] = 0
    b[1] = 0.8 - b[1]  # an inverted contrast: cc and cc² differ
    return a, b, 5


def _faint() -> tuple[Tensor, Tensor, int]:
    a, noise = _random(2, 1, 2, 10, 12, seed=7)
    return 0.1 * a + 0.2, 0.06 * a + 0.05 * noise + 0.3, 3


def _one_faint() -> tuple[Tensor, Tensor, int]:
    """Next to no contrast in one image only: where an eps stands makes a difference."""
    a, noise = _random(2, 1, 1, 12, 11, seed=10)
    return 1e-3 * a, 0.7 * a + 0.3 * noise, 5


class _SquaredCorrelation(Check):
    """A loss between −1 and 0: a number below says by itself that something is miscounted."""

    def _value_outcome(self, answer: Answer, runs: list[Any]) -> Outcome | None:
        found = super()._value_outcome(answer, runs)
        if found is None or found.stage not in ("shape", "values"):
            return found
        least = min(float(torch.as_tensor(run.got).amin()) for run in runs)
        if found.stage == "shape":
            clue = "Is this the map, a score for each voxel? A loss is one number: take its mean."
        elif least < -1.0003:
            clue = (
                "A squared correlation is never above 1, so the loss is never below −1; yours is.\n"
                "What divides Σa Σb and (Σa)²? Print the smallest var_a: no variance is below 0."
            )
        else:
            return found
        return found._replace(text=f"{found.text}\n{clue}")


def _parts(
    a: Tensor, b: Tensor, window: int, size: float | Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross term and variances of each window, as sums."""
    n = window ** (a.ndim - 2) if size is None else size
    sa, sb = _box_sums(a, window), _box_sums(b, window)
    cross = _box_sums(a * b, window) - sa * sb / n
    return (
        cross,
        _box_sums(a * a, window) - sa * sa / n,
        _box_sums(b * b, window) - sb * sb / n,
    )


def _lncc_of(*parts: Tensor, eps: float = 1e-5, least: float | None = 0.0) -> Tensor:
    """The loss from cross and variances; ``least`` clamps each variance."""
    cross, *variances = parts
    var_a, var_b = variances if least is None else (v.clamp(min=least) for v in variances)
    return -(cross * cross / (var_a * var_b + eps)).mean()


def _miscounted(least: float | None, count: Callable[[Tensor, int], float]) -> Answer:
    """The loss with a wrong n, and with variances clamped at ``least``."""

    def wrong(a: Tensor, b: Tensor, window: int) -> Tensor:
        return _lncc_of(*_parts(a, b, window, size=count(a, window)), least=least)

    return wrong


def _channels_together(n_of_all: bool, a: Tensor, b: Tensor, window: int) -> Tensor:
    size = window**2 * (a.shape[1] if n_of_all else 1)

    def sums(x: Tensor) -> Tensor:
        return _box_sums(x, window).sum(1, keepdim=True)

    sa, sb = sums(a), sums(b)
    parts = sums(a * b) - sa * sb / size, sums(a * a) - sa * sa / size, sums(b * b) - sb * sb / size
    return _lncc_of(*parts, least=None)


def _centered_first(a: Tensor, b: Tensor, window: int) -> Tensor:
    """Each voxel minus the mean of its own window."""
    a, b = (x - _box_sums(x, window) / window**2 for x in (a, b))
    return _lncc_of(*(_box_sums(x, window) for x in (a * b, a * a, b * b)))


def _sum_squared(a: Tensor, b: Tensor, window: int) -> Tensor:
    """(Σa)² where Σa² belongs."""
    n, sa, sb = window**2, _box_sums(a, window), _box_sums(b, window)
    cross = _box_sums(a * b, window) - sa * sb / n
    return _lncc_of(cross, sa * sa - sa * sa / n, sb * sb - sb * sb / n)


def _product_of_sums(a: Tensor, b: Tensor, window: int) -> Tensor:
    """Σa Σb where Σab belongs."""
    sa, sb = _box_sums(a, window), _box_sums(b, window)
    return _lncc_of(sa * sb - sa * sb / window**2, *_parts(a, b, window)[1:])


def _inside(a: Tensor, window: int) -> Tensor:
    """How many voxels of each window lie inside the image."""
    return _box_sums(torch.ones_like(a), window)


def _eps_on_each(a: Tensor, b: Tensor, window: int) -> Tensor:
    cross, var_a, var_b = _parts(a, b, window)
    return -(cross * cross / ((var_a + 1e-5) * (var_b + 1e-5))).mean()


def _means(a: Tensor, b: Tensor, window: int) -> Tensor:
    return _lncc_of(*(part / window**2 for part in _parts(a, b, window)))


def _cross_not_squared(a: Tensor, b: Tensor, window: int) -> Tensor:
    cross, var_a, var_b = _parts(a, b, window)
    return -(cross / (var_a.clamp(min=0) * var_b.clamp(min=0) + 1e-5)).mean()


def _root_kept(a: Tensor, b: Tensor, window: int) -> Tensor:
    cross, var_a, var_b = _parts(a, b, window)
    return -(cross**2 / (var_a.clamp(min=0) * var_b.clamp(min=0) + 1e-5).sqrt()).mean()


def _eps_as_floor(a: Tensor, b: Tensor, window: int) -> Tensor:
    cross, var_a, var_b = _parts(a, b, window)
    return -(cross * cross / (var_a * var_b).clamp(min=1e-5)).mean()


def _mean_not_squared(a: Tensor, b: Tensor, window: int) -> Tensor:
    n, sums = window**2, _box_sums
    cross = sums(a * b, window) - sums(a, window) * sums(b, window) / n
    var_a, var_b = (sums(x * x, window) - sums(x, window) / n for x in (a, b))
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()


def _signed(a: Tensor, b: Tensor, window: int) -> Tensor:
    return losses.lncc(a, b, window, squared=False)


def _interior(a: Tensor, b: Tensor, window: int) -> Tensor:
    inner = slice(window // 2, -(window // 2))
    cc = correlation_map_plain(a, b, window)[..., inner, inner]
    return -cc.mean()


def _squared_first(a: Tensor, b: Tensor, window: int) -> Tensor:
    return -_signed(a, b, window).square()


def _raw_moments(a: Tensor, b: Tensor, window: int) -> Tensor:
    """The means are not subtracted."""
    return _lncc_of(*(_box_sums(x, window) for x in (a * b, a * a, b * b)))


_TOO_SMALL: list[tuple[Callable[[Tensor, int], float], str]] = [
    (
        lambda a, window: window,
        "n is the number of voxels in a window, window · window; not window.\n"
        "With a smaller n too much is subtracted, and variances fall below zero.",
    ),
    (
        lambda a, window: 1,
        "the division by n is missing: cross = Σab − Σa Σb / n, and (Σa)² / n likewise.",
    ),
    (
        lambda a, window: window**2 - 1,
        "n is the number of voxels in a window, window · window; not one less.\n"
        "These are sums, no estimates: (Σa)² is divided by the number of values summed.",
    ),
]

lncc = _SquaredCorrelation(
    SLUG,
    "lncc",
    losses.lncc,
    [_with_background, _faint, _one_faint],
    mistakes=[
        Mistake(
            lambda a, b, window: -losses.lncc(a, b, window),
            "this is the mean of cc² itself: it grows when the images agree.\n"
            "A loss has to fall: put a minus in front.",
        ),
        Mistake(
            lambda a, b, window: 1 + losses.lncc(a, b, window),
            "this is 1 − mean(cc²); asked for is −mean(cc²), from −1 to 0.",
        ),
        Mistake(
            _signed,
            "this is the signed version, −mean(cc); asked for is −mean(cc²).\n"
            "An inverted contrast has to count as agreement here.",
        ),
        Mistake(
            _squared_first,
            "this squares the mean; asked for is the mean of the squares.\n"
            "Windows of opposite sign cancel here. Square each window first.",
        ),
        Mistake(
            _cross_not_squared,
            "the numerator is not squared: cc² = cross² / (var_a · var_b + 1e-5).",
        ),
        Mistake(
            _root_kept,
            "cross is squared, and the denominator is under a root.\n"
            "cc² has either both squared or neither: cross² / (var_a · var_b + 1e-5).",
        ),
        Mistake(
            _raw_moments,
            "the means are not subtracted: Σab is not the cross term yet.\n"
            "cross = Σab − Σa Σb / n, and var_a = Σa² − (Σa)² / n.",
        ),
        *(
            Mistake(_miscounted(least, count), hint)
            for count, hint in _TOO_SMALL
            for least in (None, 0.0)  # learners clamp variances, or do not
        ),
        Mistake(
            _miscounted(None, lambda a, window: a[0, 0].numel()),
            "n is the number of voxels in a window, window · window; not in the whole image.",
        ),
        Mistake(
            _miscounted(None, lambda a, window: window**2 * a.shape[1]),
            "n is the number of voxels in a window, window · window.\n"
            "box_sums does not add up the channels: do not count them.",
        ),
        Mistake(
            partial(_channels_together, False),
            "the channels are added up, and n counts one of them.\n"
            "Each channel has windows of its own here: leave the channel axis as it is.",
        ),
        Mistake(
            partial(_channels_together, True),
            "one correlation for all channels together; asked for is one for each channel.\n"
            "Leave the channel axis as it is. (Together is what task 5 asks for.)",
        ),
        Mistake(
            _centered_first,
            "each voxel loses the mean of the window around *it*. Within one window, all voxels\n"
            "have to lose the same mean. The sums do that: cross = Σab − Σa Σb / n.",
        ),
        Mistake(
            _sum_squared,
            "the variances begin with (Σa)², the square of the sum.\n"
            "They begin with Σa², the sum of the squares: box_sums(a * a, window).",
        ),
        Mistake(
            _product_of_sums,
            "cross begins with Σa Σb, the product of the sums.\n"
            "It begins with Σab, the sum of the products: box_sums(a * b, window).",
        ),
        Mistake(
            lambda a, b, window: losses.lncc(a, b, 9),
            "the window is 9, whatever is asked for. Use the argument `window`.",
        ),
        Mistake(
            lambda a, b, window: losses.lncc(a, b, window) * a.numel(),
            "the voxels are added up: take the mean.\n"
            "A sum would grow with the image, and its weight against a penalty with it.",
        ),
        Mistake(
            lambda a, b, window: _lncc_of(*_parts(a, b, window), eps=0.0, least=1e-5),
            "each variance is clamped at 1e-5; asked for is an addition, once, to the product:\n"
            "var_a · var_b + 1e-5.",
        ),
        Mistake(
            lambda a, b, window: _lncc_of(*_parts(a, b, window, size=_inside(a, window))),
            "right inside; in windows that hang over the border you divide by the voxels inside.\n"
            "That is reasonable, but asked for is the library's way: n is the full window, and\n"
            "the zeros outside count.",
        ),
        Mistake(
            _interior,
            "windows that hang over the border are left out.\n"
            "Each voxel has a window; the mean is over all voxels.",
        ),
        Mistake(
            _means,
            "cross and variances are divided by n before eps is added, which makes eps n² times\n"
            "as strong: faint windows lose. Keep the sums: cross = Σab − Σa Σb / n.",
        ),
        Mistake(
            _eps_on_each,
            "eps is added to each variance; asked for is once, to the product:\n"
            "var_a · var_b + 1e-5.",
        ),
        Mistake(
            lambda a, b, window: -_parts(a, b, window)[0].square().mean(),
            "this is cross² alone: the division by var_a · var_b + 1e-5 is missing.\n"
            "Twice the contrast would count as four times the similarity.",
        ),
        Mistake(
            _eps_as_floor,
            "1e-5 is a floor here, clamp(min=1e-5); asked for is an addition.\n"
            "Some libraries do it your way; the values differ in faint windows.",
        ),
        Mistake(
            _mean_not_squared,
            "in the variances Σa / n is subtracted; it has to be (Σa)² / n.",
        ),
        Mistake(
            lambda a, b, window: -(correlation_map_plain(a, b, window, squared=False).abs().mean()),
            "this is −mean|cc|; asked for is the square, −mean(cc²).\n"
            "Is there a root in the denominator, and an abs()?",
        ),
        Mistake(
            lambda a, b, window: _lncc_of(*_parts(a, b, window), eps=1e-10),
            "eps is 1e-10 here; asked for is 1e-5, which mutes windows with next to no contrast.",
        ),
        Mistake(
            lambda a, b, window: losses.lncc(a, b, window) * a.numel() / len(a),
            "the voxels of an item are added up: take the mean.\n"
            "A sum would grow with the image, and its weight against a penalty with it.",
        ),
    ],
    gradient=True,
    hints=[
        "Five box sums: of a, b, a·a, b·b and a·b. n = window · window.",
        "cross = Σab − Σa Σb / n,  var_a = Σa² − (Σa)² / n,  var_b likewise. Rounding may leave a "
        "flat window's variance below zero; eps is larger than that.",
        "cc² = cross² / (var_a · var_b + 1e-5) at each voxel; the loss is minus its mean.",
    ],
)


# --- the loss that lies --------------------------------------------------------------------------


def _colors(height: int = 14, width: int = 12) -> tuple[Tensor, Tensor]:
    a, noise = _random(2, 2, 3, height, width, seed=8)
    tint = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1)
    a = 0.4 * a + tint
    return a, 0.5 * a + 0.3 * noise + tint.flip(1)


def _faint_colors() -> tuple[Tensor, Tensor]:
    """The left part has next to no contrast, and it is the same in both.

    It is larger than a window: one that hangs over the border has the contrast to the zeros there.
    """
    a, b = (image.double() for image in _colors(26, 24))
    faint = 0.3 + 3e-4 * _random(2, 3, 26, 24, seed=9).double()
    a[..., :16] = b[..., :16] = faint[..., :16]
    return a, b


def _pale_colors() -> tuple[Tensor, Tensor]:
    """Products of variances of about 1e-5, so that each eps gives a number of its own."""
    a, noise = _random(2, 2, 3, 13, 12, seed=11)
    b = 0.8 * a + 0.4 * noise
    first, second = (torch.tensor(x).view(2, 1, 1, 1) for x in ((0.012, 1e-4), (0.012, 1.0)))
    return first * a, second * b


def _color_sums(image: Tensor, padding: int = 4) -> Tensor:
    kernel = torch.ones(1, image.shape[1], 9, 9, dtype=image.dtype)
    return F.conv2d(image, kernel, padding=padding)


def _color_map(
    a: Tensor,
    b: Tensor,
    size: float | Tensor,
    eps: float,
    *,
    padding: int = 4,
    least: float | None = None,
    squared: bool = True,
) -> Tensor:
    sums = partial(_color_sums, padding=padding)
    cross = sums(a * b) - sums(a) * sums(b) / size
    var_a = sums(a * a) - sums(a) ** 2 / size
    var_b = sums(b * b) - sums(b) ** 2 / size
    if least is not None:
        var_a, var_b = var_a.clamp(min=least), var_b.clamp(min=least)
    variances = var_a * var_b + eps
    return cross * cross / variances if squared else cross / variances.sqrt()


def _color_border(a: Tensor, b: Tensor) -> Tensor:
    """The border value goes on outside."""
    a, b = (F.pad(x, (4, 4, 4, 4), mode="replicate") for x in (a, b))
    return -_color_map(a, b, 243, 1e-5, padding=0).mean()


def _color_centered(a: Tensor, b: Tensor) -> Tensor:
    """Each channel loses its own mean; cross and variances are added over the channels."""
    cross, var_a, var_b = (part.sum(1) for part in _parts(a, b, 9))
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()


def _color_lncc(a: Tensor, b: Tensor) -> Tensor:
    return -_color_map(a, b, 243, 1e-5).mean()


def _gray(a: Tensor, b: Tensor) -> Tensor:
    return losses.lncc(a.mean(1, keepdim=True), b.mean(1, keepdim=True))


_WRONG_EPS = (1e-3, 1e-4, 1e-6, torch.finfo(torch.float32).eps, 1e-8, 1e-10)

color_lncc = _SquaredCorrelation(
    SLUG,
    "color_lncc",
    _color_lncc,
    [_colors, _faint_colors, _pale_colors],
    mistakes=[
        Mistake(
            lambda a, b: -_color_map(a, b, 81, 2e-16).mean(),
            "the larger of the two bugs is still there.\n"
            "Count: how many numbers does the kernel of ones add up for each voxel, and how many\n"
            "does `size` say?",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 243, 2e-16).mean(),
            "the count is right now; there is a second bug.\n"
            "Where the image is nearly flat, var_a · var_b is about 1e-9 or less: an eps of 2e-16\n"
            "does nothing there, and noise counts as much as vessels. Use 1e-5.",
        ),
        *(
            Mistake(
                lambda a, b, eps=eps: -_color_map(a, b, 243, eps).mean(),
                f"the count is right; eps is {eps:.2g}. Asked for is the 1e-5 of task 4.",
            )
            for eps in _WRONG_EPS
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 81, 1e-5, least=0).mean(),
            "eps is right; clamping variances at 0 hides the wrong count, and does not mend it.\n"
            "How many numbers does the kernel of ones add up for each voxel?",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 243, 0.0, least=1e-5).mean(),
            "the count is right; each variance is clamped at 1e-5.\n"
            "Asked for is an addition, once, to the product: var_a · var_b + 1e-5.",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 243, 1e-5, squared=False).mean(),
            "both bugs are mended, but this is the signed version; asked for is the square.",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 243, 1e-5, padding=0).mean(),
            "both bugs are mended, but windows that hang over the border are left out.\n"
            "Each voxel has a window, with zeros outside: padding=4.",
        ),
        Mistake(
            _color_border,
            "both bugs are mended, but outside the image this repeats the border value.\n"
            "Zeros are asked for.",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, _color_sums(torch.ones_like(a)), 1e-5).mean(),
            "right inside; in windows that hang over the border you divide by the values inside.\n"
            "That is reasonable, but asked for are zeros that count: 243 everywhere.",
        ),
        Mistake(
            _color_centered,
            "each channel loses its own mean, and the sums are added over the channels.\n"
            "That is a sound loss, but asked for is one correlation over all 9 · 9 · 3 values,\n"
            "with one mean.",
        ),
        Mistake(
            lambda a, b: losses.lncc(a, b),
            "each channel is correlated by itself.\n"
            "That is a sound loss, but asked for is one correlation over all 9 · 9 · 3 values.",
        ),
        Mistake(
            _gray,
            "the channels are averaged to gray first.\n"
            "That is a sound loss, but asked for is one correlation over all 9 · 9 · 3 values.",
        ),
        Mistake(
            lambda a, b: losses.lncc(a[:, 1:2], b[:, 1:2]),
            "this takes the green channel alone.\n"
            "That is a sound loss, but asked for is one correlation over all 9 · 9 · 3 values.",
        ),
        Mistake(
            lambda a, b: -_color_lncc(a, b),
            "the sign is lost: a loss falls when the images agree.",
        ),
        *(
            Mistake(
                lambda a, b, eps=eps: -_color_map(a, b, 81, eps).clamp(0, 1).mean(),
                "a clamp hides the wrong numbers; it does not mend them.\n"
                "Scores above 1 come from variances that are too small. What is subtracted from\n"
                "Σa², and how many values were summed?",
            )
            for eps in (2e-16, 1e-5)
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 81, 1e-5).mean(),
            "eps is mended; the larger of the two bugs is still there.\n"
            "Count: how many numbers does the kernel of ones add up for each voxel, and how many\n"
            "does `size` say?",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 243, 9e-5).mean(),
            "right correlation, but cross and variances are a third of the sums (kernel / 3?):\n"
            "eps is 9 times as strong. Leave the kernel, and mend `size`.",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 243, 1e-5 * 243**2).mean(),
            "cross and variances are divided by 243 before eps is added, which makes eps 243²\n"
            "times as strong. Keep the sums: cross = Σab − Σa Σb / 243.",
        ),
        Mistake(
            lambda a, b: -_color_map(a, b, 27, 1e-5).mean(),
            "27 = 9 · 3 leaves out one edge of the window.\nThe kernel has 3 · 9 · 9 ones.",
        ),
    ],
    gradient=True,
    hints=[
        "A variance cannot be negative, and correlation² not above 1. Print the smallest var_a.",
        "F.conv2d with a kernel of shape (1, 3, 9, 9) adds up the channels too: 3 · 9 · 9 values.",
        "The two numbers to change are size and eps.",
    ],
)


# --- the window ----------------------------------------------------------------------------------

BIAS, NOISE, ASKED_DROP = 3.0, 0.3, 0.175


@lru_cache(maxsize=1)
def _spoiled() -> tuple[Tensor, Tensor]:
    fixed = pyramid(brains.real_pair().fixed, 2)
    return corrupt(fixed, bias=BIAS, noise=NOISE), fixed


def window_report(window: int) -> dict[str, float]:
    """What the landscape of ``lncc`` with this window looks like on the spoiled brain.

    Args:
        window: odd, 3 to 95.

    Returns:
        ``error``, voxels from the right place to the lowest one, and ``drop``, how far the loss
        falls from 15 voxels away (the lower side) to there.

    Used in exercise 13.
    """
    moving, fixed = _spoiled()
    poses = translations(range(-15, 16), axis=1)
    heights = landscape(lambda a, b: losses.lncc(a, b, int(window)), moving, fixed, poses)
    drop = min(heights[0], heights[-1]) - heights.min()
    return {"error": float(abs(int(heights.argmin()) - 15)), "drop": round(float(drop), 4)}


def _valid_window(setting: object) -> str | None:
    if problem := finite_number(setting):
        return problem
    whole = float(setting)  # type: ignore[arg-type]
    if whole != int(whole) or int(whole) % 2 == 0 or not 3 <= whole <= 95:
        return f"a window is an odd whole number from 3 to 95; got {setting}."
    return None


good_window = Goal(
    SLUG,
    "good_window",
    window_report,
    lambda found: found["error"] == 0 and found["drop"] >= ASKED_DROP,
    f"error 0 and drop at least {ASKED_DROP}: the lowest loss in the right place, clearly below "
    "that of 15 voxels away.\n"
    "(With an error above 0 the window is too large; with error 0 and a lower drop, too small.)",
    reference=lambda: 25,
    valid=_valid_window,
    hints=[
        "Try 5, 15, 45 and 75, and look at error and drop. What does a large window do to a bias "
        "field, what does a small one do to noise?",
        "A small window averages little noise: the drop is small. A large one sees the bias change "
        "inside it: the lowest place moves.",
    ],
)

"""Checks of exercise 13: correlation, box sums, local correlation, and a loss that lies."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib import losses
from course_lib.checks.core import Check, Goal, Law, Mistake, finite_number
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


scores_of_copies = Check(
    SLUG,
    "scores_of_copies",
    _scores,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (1.0, 1.0, 0.0625, 1.0),
            "the correlation of the negative is 1 only after squaring.\n"
            "Where the image is above its mean, the negative is below its own: r is below 0.",
        ),
        Mistake(
            lambda: (1.0, 0.0, 0.0625, 1.0),
            "r = 0 would mean that one image says nothing about the other (along a line).\n"
            "The negative says everything: it is a gain of −1 and an offset of 1.",
        ),
        Mistake(
            lambda: (1.0, -1.0, 0.25, 1.0),
            "0.25 is the mean *absolute* difference of the pale copy; MSE takes the square.",
        ),
        Mistake(
            lambda: (1.0, -1.0, 0.0625, 0.5),
            "correlation does not feel the gain of 0.5.\n"
            "Numerator and denominator are both halved: what is left?",
        ),
        Mistake(
            lambda: (1.0, -1.0, 0.0, 1.0),
            "MSE compares intensities as they are: the pale copy differs from the image at every\n"
            "voxel. By how much where the image is 0, and where it is 1?",
        ),
        Mistake(
            lambda: (-1.0, 1.0, 1.0, 0.0625),
            "right numbers in another order.\n"
            "Return MSE and r of the negative, then MSE and r of the pale copy.",
        ),
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


def _variance(a: Tensor) -> Tensor:
    return a.flatten(1).var(1, unbiased=False)


def _constant_is_zero(answer: Answer) -> bool:
    flat, image = torch.full((1, 1, 6, 5), 0.5), _random(1, 1, 6, 5, seed=3)
    value = torch.as_tensor(answer(flat, image))
    return bool(value.isfinite().all() and value.abs().max() < 1e-2)


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
            "Likely cause: mean() without dim. Flatten all axes but the first, x.flatten(1), and\n"
            "average along axis 1 with keepdim=True.",
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
        )
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
    """The window reaches ``by`` voxels less far down and right, and more up and left."""
    height, width = image.shape[2:]
    return _box_sums(F.pad(image, (by, by, by, by)), window)[..., :height, :width]


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


def _operations(answer: Answer, window: int) -> list[str]:
    with _Names() as mode:
        answer(torch.ones(1, 1, 40, 36), window)
    return mode.names


_ALL_VALUES = ("conv", "pool", "unfold", "im2col", "as_strided")


def _no_window_at_once(answer: Answer) -> bool:
    return not any(word in name for name in _operations(answer, 9) for word in _ALL_VALUES)


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


def _lncc_of(*parts: Tensor, eps: float = 1e-5) -> Tensor:
    cross, var_a, var_b = parts
    return -(cross * cross / (var_a.clamp(min=0) * var_b.clamp(min=0) + eps)).mean()


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


lncc = Check(
    SLUG,
    "lncc",
    losses.lncc,
    [_with_background, _faint],
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
        Mistake(
            lambda a, b, window: _lncc_of(*_parts(a, b, window, size=window)),
            "n is the number of voxels in a window: window · window in 2D, not window.\n"
            "With a smaller n too much is subtracted, and variances fall below zero.",
        ),
        Mistake(
            lambda a, b, window: _lncc_of(*_parts(a, b, window, size=1)),
            "the division by n is missing: cross = Σab − Σa Σb / n.",
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
            "the voxels are added up: take the mean.\n"
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


def _color_map(a: Tensor, b: Tensor, size: float, eps: float, window: int = 9) -> Tensor:
    kernel = torch.ones(1, a.shape[1], window, window, dtype=a.dtype)

    def sums(image: Tensor) -> Tensor:
        return F.conv2d(image, kernel, padding=window // 2)

    cross = sums(a * b) - sums(a) * sums(b) / size
    var_a = sums(a * a) - sums(a) ** 2 / size
    var_b = sums(b * b) - sums(b) ** 2 / size
    return cross * cross / (var_a * var_b + eps)


def _color_lncc(a: Tensor, b: Tensor) -> Tensor:
    return -_color_map(a, b, 243, 1e-5).mean()


def _gray(a: Tensor, b: Tensor) -> Tensor:
    return losses.lncc(a.mean(1, keepdim=True), b.mean(1, keepdim=True))


color_lncc = Check(
    SLUG,
    "color_lncc",
    _color_lncc,
    [_colors, _faint_colors],
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
        Mistake(
            lambda a, b: -_color_map(a, b, 81, 1e-5).clamp(0, 1).mean(),
            "a clamp hides the wrong numbers; it does not mend them.\n"
            "Scores above 1 come from variances that are too small. What is subtracted from Σa²,\n"
            "and how many values were summed?",
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
    "that of 15 voxels away.",
    reference=lambda: 25,
    valid=_valid_window,
    hints=[
        "Try 5, 25 and 75, and look at error and drop. What does a large window do to a bias "
        "field, what does a small one do to noise?",
        "A small window averages little noise: the drop is small. A large one sees the bias change "
        "inside it: the lowest place moves.",
    ],
)

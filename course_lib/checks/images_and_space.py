"""Checks of exercise 10: voxels and millimeters, flips, normalization, padding, a ventricle."""

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from course_lib import volumes
from course_lib.checks.core import Check, Goal, Mistake, finite_number
from course_lib.checks.messages import kind
from course_lib.io import Volume, load_nifti

SLUG = "10_images_and_space"

Array = NDArray[np.float64]
Placed = tuple[Tensor, Array]


# --- which voxel ---------------------------------------------------------------------------------


def _voxel() -> tuple[int, int, int]:
    return 30, 70, 35


voxel_of_point = Check(
    SLUG,
    "voxel_of_point",
    _voxel,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (30, -142.5, 75),
            "this applies the affine to the point, as if it were a voxel.\n"
            "The affine leads from voxels to mm; you know the mm and look for the voxel:\n"
            "solve 30 = −2 i + 90 for i.",
        ),
        Mistake(
            lambda: (-30, 70, 35),
            "j and k are right; along i the minus is lost.\n"
            "30 = −2 i + 90, so −2 i = −60: the index grows as x falls.",
        ),
        Mistake(
            lambda: (60, 70, 35),
            "j and k are right; i is not.\n"
            "30 = −2 i + 90: take 90 away from 30 first, then divide by −2.",
        ),
        Mistake(
            lambda: (60, 105, 105),
            "the distances from the first voxel are right, in mm.\n"
            "A voxel is 2, 1.5 and 3 mm wide: divide by that.",
        ),
        Mistake(
            lambda: (-60, 105, 105),
            "these are the differences to the first voxel's place, in mm.\n"
            "Divide by the steps −2, 1.5 and 3 mm.",
        ),
        Mistake(
            lambda: (-15, -10, 15),
            "this divides by the steps and forgets where the first voxel lies.\n"
            "Subtract the last column, (90, −120, −60), first.",
        ),
        Mistake(
            lambda: (-60, -90, -5),
            "the last column is added; it has to be subtracted.\n"
            "From 30 = −2 i + 90 follows i = (30 − 90) / −2.",
        ),
        Mistake(
            lambda: (35, 70, 30),
            "right numbers, in the order (k, j, i).\nThe first row of the matrix gives i.",
        ),
    ],
    hints=[
        "Write out the first row: 30 = −2 i + 0 j + 0 k + 90. Only i is unknown.",
        "i = (30 − 90) / −2; the other two rows go the same way.",
    ],
)


# --- from millimeters to voxels ------------------------------------------------------------------

_STRAIGHT = np.array([[-2.0, 0, 0, 90], [0, 1.5, 0, -120], [0, 0, 3, -60], [0, 0, 0, 1]])
# Turned by the angle of the 3-4-5 triangle, with spacing 2, 1.5 and 3 and one axis flipped.
_OBLIQUE = np.array([[-1.6, -0.9, 0, 12], [-1.2, 1.2, 0, -31], [0, 0, 3, 45], [0, 0, 0, 1.0]])


def _two_points() -> tuple[Array, Array]:
    return np.array([[30.0, -15, 45], [31, -15, 45]]), _STRAIGHT.copy()


def _five_points() -> tuple[Array, Array]:
    return np.random.default_rng(10).normal(scale=40, size=(5, 3)), _OBLIQUE.copy()


def _parts(affine: Array) -> tuple[Array, Array]:
    return affine[:3, :3], affine[:3, 3]


def _voxels(change: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """An answer made of the points, A and t."""
    return lambda points, affine: change(points, *_parts(affine))


_inverse = np.linalg.inv

to_voxel = Check(
    SLUG,
    "to_voxel",
    volumes.to_voxel,
    [_two_points, _five_points],
    mistakes=[
        Mistake(
            volumes.to_world,
            "this goes from voxels to mm.\nThe points are in mm already: solve w = A v + t for v.",
        ),
        Mistake(
            _voxels(lambda p, A, t: p @ _inverse(A).T),
            "t is forgotten.\n"
            "The first voxel lies at t, not at 0: subtract it first, (points − t).\n"
            "t is the last column, affine[:3, 3].",
        ),
        Mistake(
            _voxels(lambda p, A, t: p @ _inverse(A).T - t),
            "t is subtracted after A was undone.\n"
            "t is in mm, so it goes while the points are still in mm: v = A⁻¹ (w − t).",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p + t) @ _inverse(A).T),
            "t is added.\nw = A v + t gives A v = w − t.",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p - t) @ _inverse(A)),
            "right for straight axes, wrong for oblique ones: the matrix is not transposed.\n"
            "Points are rows here. A⁻¹ acts on columns, so it is points @ A⁻¹.T.",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p - t) @ A.T),
            "this multiplies by A; undo it with its inverse, np.linalg.inv(A).",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p - t) / np.diag(A)),
            "right for straight axes, wrong for oblique ones: this uses the diagonal only.\n"
            "Multiply by the inverse of the whole A.",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p - t) / np.linalg.norm(A, axis=0)),
            "this divides by the spacing alone.\n"
            "The columns of A also have a direction (one of them points to the left):\n"
            "multiply by the inverse of A.",
        ),
        Mistake(
            _voxels(lambda p, A, t: ((p - t) @ _inverse(A).T).round()),
            "right, but rounded.\n"
            "A point may lie between voxel centers: return the fractions, round when you index.",
        ),
        Mistake(
            lambda points, affine: np.c_[volumes.to_voxel(points, affine), np.ones(len(points))],
            "right, but the 1 of the fourth coordinate is still there.\n"
            "Return the first three columns.",
        ),
    ],
    hints=[
        "From w = A v + t follows v = A⁻¹ (w − t), with A = affine[:3, :3] and t = affine[:3, 3].",
        "The points are rows, (N, 3). For rows, A⁻¹ w becomes points @ np.linalg.inv(A).T.",
    ],
)


# --- a flip --------------------------------------------------------------------------------------


def _random_image(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _flip_input(shape: tuple[int, ...], affine: Array, axis: int) -> tuple[Tensor, Array, int]:
    return _random_image(axis, *shape), affine.copy(), axis


def _flip_axis(image: Tensor, affine: Array, axis: int) -> Placed:
    last = image.shape[2 + axis] - 1
    return image.flip(2 + axis), _flipped(affine, axis, last)


def _flipped(affine: Array, axis: int, steps: int, sign: int = -1) -> Array:
    """The affine whose first voxel lies ``steps`` voxels further, and whose steps have ``sign``."""
    result = affine.copy()
    result[:3, 3] += steps * affine[:3, axis]
    result[:3, axis] *= sign
    return result


def _world_axis_flipped(image: Tensor, affine: Array, axis: int) -> Placed:
    result = affine.copy()
    result[axis] *= -1
    return image.flip(2 + axis), result


def _world_axis_flipped_in_voxels(image: Tensor, affine: Array, axis: int) -> Placed:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, image.shape[2 + axis] - 1
    return image.flip(2 + axis), flip @ affine


def _diagonal_flipped(image: Tensor, affine: Array, axis: int) -> Placed:
    result = affine.copy()
    result[axis, axis] *= -1
    return image.flip(2 + axis), result


def _flipped_in_voxels(image: Tensor, affine: Array, axis: int) -> Placed:
    result = affine.copy()
    result[:3, axis] *= -1
    result[axis, 3] += image.shape[2 + axis] - 1
    return image.flip(2 + axis), result


flip_axis = Check(
    SLUG,
    "flip_axis",
    _flip_axis,
    [
        lambda: _flip_input((2, 2, 4, 5, 3), _STRAIGHT, 0),
        lambda: _flip_input((2, 2, 4, 5, 3), _OBLIQUE, 1),
        lambda: _flip_input((1, 2, 4, 3, 6), _OBLIQUE, 2),
    ],
    mistakes=[
        Mistake(
            lambda image, affine, axis: (image.flip(2 + axis), affine),
            "the array is flipped, the affine is not: that is the bug itself.\n"
            "The new first voxel lies where the last one lay, and steps go the other way.",
        ),
        Mistake(
            lambda image, affine, axis: (image.flip(2 + axis), _flipped(affine, axis, 0)),
            "the steps go the other way now, but still from the old first voxel.\n"
            "The first voxel of the flipped array is the one that was the last: move t there,\n"
            "by (n − 1) steps along that axis's column.",
        ),
        Mistake(
            lambda image, affine, axis: (
                image.flip(2 + axis),
                _flipped(affine, axis, image.shape[2 + axis]),
            ),
            "everything is one voxel off.\n"
            "From the first of n voxels to the last it is n − 1 steps, not n.",
        ),
        Mistake(
            lambda image, affine, axis: (
                image.flip(2 + axis),
                _flipped(affine, axis, image.shape[2 + axis] - 1, sign=1),
            ),
            "the first voxel is right, the second is not: steps still go the old way.\n"
            "The column of that axis changes its sign, too.",
        ),
        Mistake(
            lambda image, affine, axis: (
                image.flip(2 + axis),
                _flipped(affine, axis, 1 - image.shape[2 + axis]),
            ),
            "t moves the wrong way.\n"
            "The last voxel lies at t + (n − 1) · column, with the column's sign as it *was*;\n"
            "change the sign of the column afterwards, or of a copy.",
        ),
        Mistake(
            _world_axis_flipped,
            "this flips an axis of the world: it mirrors the patient, flipped array or not.\n"
            "Array axis 0 belongs to *column* 0 of the matrix, affine[:3, 0], not to row 0.",
        ),
        Mistake(
            _world_axis_flipped_in_voxels,
            "the right matrix on the wrong side: this flips an axis of the world.\n"
            "It acts on voxels, before the affine does: affine @ flip, not flip @ affine.",
        ),
        Mistake(
            _diagonal_flipped,
            "one number of the affine changes its sign; for oblique axes that is too little.\n"
            "The whole column affine[:3, axis] changes its sign, and t moves, too.",
        ),
        Mistake(
            lambda image, affine, axis: (
                image.flip(2 + axis),
                _flipped(affine, axis, image.shape[axis] - 1),
            ),
            "t moves by the wrong number of steps: this takes the size of axis `axis` of the\n"
            "tensor, which begins with batch and channels. The size is image.shape[2 + axis].",
        ),
        Mistake(
            _flipped_in_voxels,
            "t moves by voxels; it is in mm.\n"
            "Move it by (n − 1) steps, each of them the column affine[:3, axis].",
        ),
        Mistake(
            lambda image, affine, axis: (image, _flip_axis(image, affine, axis)[1]),
            "the affine is right, but the array is not flipped.",
        ),
        Mistake(
            lambda image, affine, axis: (image.flip(axis), _flip_axis(image, affine, axis)[1]),
            "the affine is right; the array is flipped along the wrong axis.\n"
            "Spatial axis 0 is axis 2 of the tensor, behind batch and channels.",
        ),
    ],
    hints=[
        "Two things change in the affine: where the first voxel lies (the last column), and the "
        "direction of the steps along that axis (its column).",
        "The new first voxel is the old voxel n − 1 of that axis: it lies at t + (n − 1) · "
        "affine[:3, axis].",
        "Work on a copy, affine.copy(), and multiply its column by −1 after you have moved t.",
    ],
)


# --- normalization -------------------------------------------------------------------------------


def _scans(batch: int, height: int, width: int, seed: int) -> tuple[Tensor]:
    """Images on scales of their own, with an empty frame, noise below 0 and a bright spot."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 + torch.rand(batch, 1, height, width, generator=generator)
    image = image * torch.tensor([100.0, 700.0][:batch]).view(-1, 1, 1, 1)
    noise = torch.rand(batch, 1, 12, 20, generator=generator)
    image[..., :12, :] = 0
    image[..., :12, 5:25] = -0.2 * noise * image.amax((1, 2, 3), keepdim=True)
    image[..., 20, 10:12] = 30 * image.amax((1, 2, 3)).view(-1, 1, 1)
    return (image,)


def _by(
    scale: Callable[[Tensor], Tensor], low: float = 0.0, high: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """Each image divided by something, and clipped."""
    return lambda image: torch.stack([(one / scale(one)).clamp(low, high) for one in image])


def _upper(values: Tensor, quantile: float = 0.995) -> Tensor:
    return torch.quantile(values, quantile)


def _min_max(image: Tensor) -> Tensor:
    return (image - image.min()) / (image.max() - image.min())


def _min_max_each(image: Tensor) -> Tensor:
    return torch.stack([_min_max(one) for one in image])


def _clipped_only(image: Tensor) -> Tensor:
    return torch.stack([one.clamp(min=0).minimum(_upper(one[one > 0])) for one in image])


def _clipped_first(image: Tensor) -> Tensor:
    return torch.stack([one.clamp(0, 1) / _upper(one[one > 0]) for one in image])


def _shifted(image: Tensor) -> Tensor:
    def one_image(one: Tensor) -> Tensor:
        return (one - one.min()) / (_upper(one[one > 0]) - one.min())

    return torch.stack([one_image(one).clamp(0, 1) for one in image])


def _z_score(image: Tensor) -> Tensor:
    return torch.stack([(one - one[one > 0].mean()) / one[one > 0].std() for one in image])


normalize = Check(
    SLUG,
    "normalize",
    lambda image: volumes.normalize(image),
    [lambda: _scans(1, 30, 40, 4), lambda: _scans(2, 36, 32, 5)],
    mistakes=[
        Mistake(
            _min_max,
            "this is still min–max: one bright voxel decides the scale of all.\n"
            "Divide by the 99.5 % quantile of the voxels above 0 instead.",
        ),
        Mistake(
            _min_max_each,
            "this is min–max, for each image: one bright voxel still decides the scale.\n"
            "Divide by the 99.5 % quantile of the voxels above 0 instead.",
        ),
        Mistake(
            _by(lambda one: _upper(one)),
            "the quantile is taken over all voxels, background included.\n"
            "Then a wider frame would change the brain's brightness: use image[image > 0].",
        ),
        Mistake(
            _by(lambda one: _upper(one[one >= 0])),
            "the quantile counts the background, too: >= 0 lets the zeros in.\n"
            "Use the voxels above 0, image[image > 0].",
        ),
        Mistake(
            _by(lambda one: _upper(one[one > 0]), -torch.inf, torch.inf),
            "right scale, but not clipped.\n"
            "The bright spot is above 1 and the noise below 0: clamp(0, 1).",
        ),
        Mistake(
            _by(lambda one: _upper(one[one > 0]), -torch.inf),
            "clipped at 1, but not at 0: the noise is still below 0.",
        ),
        Mistake(
            _by(lambda one: _upper(one[one > 0]), 0.0, torch.inf),
            "clipped at 0, but not at 1: the bright spot is still far above.",
        ),
        Mistake(
            lambda image: (image / _upper(image[image > 0])).clamp(0, 1),
            "one quantile for the whole batch.\n"
            "The images come on scales of their own: take the quantile of each.",
        ),
        Mistake(
            _by(lambda one: one.max()),
            "this divides by the maximum, which is the bright spot.\n"
            "Use the value that 99.5 % of the foreground stay below.",
        ),
        Mistake(
            lambda image: (image / image.max()).clamp(0, 1),
            "this divides by the maximum of the batch, which is a bright spot.\n"
            "Use the value that 99.5 % of the foreground stay below, for each image its own.",
        ),
        Mistake(
            _shifted,
            "this subtracts the minimum first, which is a single voxel of noise.\n"
            "The background is 0 already: divide, and clip.",
        ),
        Mistake(
            _by(lambda one: _upper(one[one > 0], 0.005)),
            "this is the 0.5 % quantile, of the dark end: nearly everything is 1.\n"
            "The 99.5 % quantile is quantile(…, 0.995).",
        ),
        Mistake(
            _by(lambda one: _upper(one[one > 0], 0.00995)),
            "nearly everything is 1: the quantile is far too low.\n"
            "np.percentile counts from 0 to 100, np.quantile and torch.quantile from 0 to 1.",
        ),
        Mistake(
            _by(lambda one: _upper(one[one > 0], 0.95)),
            "this is the 95 % quantile.\nThe 99.5 % quantile is quantile(…, 0.995).",
        ),
        Mistake(
            _by(lambda one: _upper(one[one > 0], 0.99)),
            "this is the 99 % quantile.\nThe 99.5 % quantile is quantile(…, 0.995).",
        ),
        Mistake(
            _clipped_only,
            "clipped at the quantile, but not divided by it: the brightest is not 1.",
        ),
        Mistake(
            _clipped_first,
            "clipped to 0 … 1 first, divided then: MR intensities are mostly above 1, so\n"
            "nearly all are cut off. Divide first.",
        ),
        Mistake(
            _z_score,
            "this is the z-score, whose range is not 0 … 1.\n"
            "Divide by the 99.5 % quantile of the voxels above 0, and clip.",
        ),
    ],
    hints=[
        "one[one > 0] is a flat array of the foreground's values; torch.quantile(…, 0.995) of it "
        "is the value that becomes 1.",
        "Loop over the batch, divide each image by its own quantile, clamp(0, 1), and torch.stack "
        "them again.",
    ],
)


# --- padding -------------------------------------------------------------------------------------


def _pad_input(seed: int, shape: tuple[int, ...], divisor: int) -> tuple[Tensor, Array, int]:
    return _random_image(seed, *shape), _OBLIQUE.copy(), divisor


def _pad_to_multiple(image: Tensor, affine: Array, divisor: int) -> Placed:
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    shape = volumes.next_multiple(image.shape[2:], divisor)
    padded = volumes.crop_or_pad(Volume(image, affine, spacing), shape)
    return padded.image, padded.affine


def _pad(image: Tensor, before: list[int], after: list[int]) -> Tensor:
    pairs = list(zip(before, after, strict=True))
    return F.pad(image, [n for pair in reversed(pairs) for n in pair])


def _more(image: Tensor, divisor: int) -> tuple[list[int], list[int]]:
    """Voxels before and behind."""
    more = [-n % divisor for n in image.shape[2:]]
    return [n // 2 for n in more], [n - n // 2 for n in more]


def _moved(affine: Array, steps: list[int]) -> Array:
    result = affine.copy()
    result[:3, 3] += affine[:3, :3] @ steps
    return result


def _padded(image: Tensor, affine: Array, before: list[int], after: list[int]) -> Placed:
    return _pad(image, before, after), _moved(affine, [-n for n in before])


def _with_origin(change: Callable[[Array, list[int], list[int]], Array]) -> Callable[..., Placed]:
    """The right array, beside an affine whose last column is another."""
    return lambda image, affine, divisor: (
        _pad(image, *_more(image, divisor)),
        np.c_[affine[:, :3], np.r_[change(affine, *_more(image, divisor)), 1]],
    )


def _with_counts(
    change: Callable[[list[int], list[int]], tuple[list[int], list[int]]],
) -> Callable[..., Placed]:
    """Other numbers of voxels before and behind, and the affine that goes with them."""
    return lambda image, affine, divisor: _padded(image, affine, *change(*_more(image, divisor)))


def _sum(before: list[int], after: list[int]) -> list[int]:
    return [a + b for a, b in zip(before, after, strict=True)]


def _all_behind(image: Tensor, affine: Array, divisor: int) -> Placed:
    more = _sum(*_more(image, divisor))
    return _padded(image, affine, [0, 0, 0], more)


def _one_more(image: Tensor, affine: Array, divisor: int) -> Placed:
    """A whole multiple more, also where the size divides already."""
    more = [divisor - n % divisor for n in image.shape[2:]]
    return _padded(image, affine, [n // 2 for n in more], [n - n // 2 for n in more])


def _axes_reversed(image: Tensor, affine: Array, divisor: int) -> Placed:
    before, after = _more(image, divisor)
    return _pad(image, before[::-1], after[::-1]), _moved(affine, [-n for n in before])


def _cropped(image: Tensor, affine: Array, divisor: int) -> Placed:
    fewer = [n % divisor for n in image.shape[2:]]
    return _padded(image, affine, [-(n // 2) for n in fewer], [n // 2 - n for n in fewer])


pad_to_multiple = Check(
    SLUG,
    "pad_to_multiple",
    _pad_to_multiple,
    [lambda: _pad_input(7, (1, 2, 5, 8, 7), 4), lambda: _pad_input(8, (2, 1, 9, 14, 11), 8)],
    mistakes=[
        Mistake(
            _with_origin(lambda affine, before, after: affine[:3, 3]),
            "the array is right; the affine did not follow.\n"
            "The first voxel is a new one now, and lies before the old one: t changes.",
        ),
        Mistake(
            _with_origin(lambda affine, before, after: affine[:3, 3] + affine[:3, :3] @ before),
            "the array is right; t moves the wrong way.\n"
            "The new first voxel lies *before* the old one: go back by `before` steps.",
        ),
        Mistake(
            _with_origin(lambda affine, before, after: affine[:3, 3] - np.array(before)),
            "the array is right; t moves by voxels, but it is in mm.\n"
            "Each step is a column of A: A @ before.",
        ),
        Mistake(
            _with_origin(
                lambda affine, before, after: (
                    affine[:3, 3] - np.linalg.norm(affine[:3, :3], axis=0) * before
                )
            ),
            "the array is right; t moves by the spacing along the world's axes.\n"
            "The array's axes point elsewhere: multiply by A, A @ before.",
        ),
        Mistake(
            _with_origin(
                lambda affine, before, after: affine[:3, 3] - np.diag(affine)[:3] * before
            ),
            "the array is right; t uses the diagonal of A only.\n"
            "That is enough for straight axes: multiply by the whole A, A @ before.",
        ),
        Mistake(
            _with_origin(lambda affine, before, after: affine[:3, 3] - affine[:3, :3].T @ before),
            "the array is right; for t the matrix is transposed.\n"
            "The steps are the columns of A: A @ before, not before @ A.",
        ),
        Mistake(
            _with_origin(lambda affine, before, after: affine[:3, 3] - affine[:3, :3] @ after),
            "the array is right; t counts the voxels behind the image.\n"
            "Only those before it move the first voxel.",
        ),
        Mistake(
            _with_origin(
                lambda affine, before, after: affine[:3, 3] - affine[:3, :3] @ _sum(before, after)
            ),
            "the array is right; t counts all new voxels.\n"
            "Only those before the image move the first voxel.",
        ),
        Mistake(
            _all_behind,
            "all zeros come behind the image (and the affine is right for that).\n"
            "Asked: half of them before it.",
        ),
        Mistake(
            _with_counts(lambda before, after: (_sum(before, after), [0, 0, 0])),
            "all zeros come before the image (and the affine is right for that).\n"
            "Asked: half of them behind it.",
        ),
        Mistake(
            _with_counts(lambda before, after: (after, before)),
            "where the number of zeros is odd, the extra one comes before the image.\n"
            "Asked: behind it.",
        ),
        Mistake(
            _one_more,
            "sizes that divide already get a whole divisor more.\n"
            "Asked: as few voxels as possible. Python's -n % divisor is what is missing up to\n"
            "the next multiple, 0 where n is one.",
        ),
        Mistake(
            _axes_reversed,
            "the zeros of i and k are exchanged.\n"
            "F.pad counts from the last axis: (k before, k behind, j before, j behind, …).",
        ),
        Mistake(
            lambda image, affine, divisor: (_axes_reversed(image, affine, divisor)[0], affine),
            "the zeros of i and k are exchanged, and the affine did not follow.\n"
            "F.pad counts from the last axis: (k before, k behind, j before, j behind, …).",
        ),
        Mistake(
            _with_origin(
                lambda affine, before, after: affine[:3, 3] - affine[:3, :3] @ before[::-1]
            ),
            "the array is right; for t the steps of i and k are exchanged.\n"
            "Only F.pad counts from the last axis; the columns of A are in the order i, j, k.",
        ),
        Mistake(
            lambda image, affine, divisor: _pad_to_multiple(image, affine, 16),
            "the sizes are multiples of 16, whatever the divisor is.\nUse the argument divisor.",
        ),
        Mistake(
            _cropped,
            "this cuts down to a multiple.\nAsked: zeros around the image, nothing cut away.",
        ),
    ],
    hints=[
        "How many voxels are missing along an axis of n? -n % divisor. Half of them, rounded down, "
        "come before.",
        "F.pad wants them as (k before, k behind, j before, j behind, i before, i behind).",
        "The new first voxel lies `before` steps back: t − A @ before, with A = affine[:3, :3].",
    ],
)


# --- the right ventricle -------------------------------------------------------------------------

_NEAR = 2.0  # mm: in slices of 3 mm nobody sees the edge of a chamber more exactly


@lru_cache(maxsize=1)
def _head() -> Volume:
    """Colin's tissue labels, on the 1 mm grid."""
    with as_file(files("course_lib.data") / "colin27_tissues.nii.gz") as path:
        return load_nifti(path)


@lru_cache(maxsize=1)
def _ventricles() -> dict[str, Array]:
    """The voxels of the two lateral ventricles, in mm: ``{side: (N, 3)}``."""
    head = _head()
    fluid = head.image[0, 0].numpy() == 1
    # Fluid in thin furrows surrounds the whole brain. What is 5 mm thick everywhere hangs together
    # in a few chambers only; the one around this point is the lateral ventricles.
    chambers, _ = ndimage.label(ndimage.minimum_filter(fluid, size=5))
    seed = volumes.to_voxel([-15, -29, 23], head.affine).round().astype(int)
    core = chambers == chambers[tuple(seed)]
    points = volumes.to_world(
        np.argwhere(ndimage.binary_dilation(core, iterations=2) & fluid), head.affine
    )
    return {"right": points[points[:, 0] > 3], "left": points[points[:, 0] < -3]}


def _distances(setting: Any) -> dict[str, float]:
    point = np.asarray(setting, dtype=float)
    away = {
        side: float(np.linalg.norm(points - point, axis=1).min())
        for side, points in _ventricles().items()
    }
    # Inside a voxel of 1 mm, no point is further than √3 / 2 mm from its center.
    return {f"mm to the {side} ventricle": 0.0 if mm < 0.87 else mm for side, mm in away.items()}


def _place(setting: object) -> str | None:
    """What is wrong with a setting that should be a point of the head in mm, or None."""
    if isinstance(setting, (np.ndarray, Tensor)):
        setting = setting.tolist()
    wanted = "expected a tuple of three numbers, (x, y, z) in mm."
    if not isinstance(setting, (tuple, list)):
        return f"it returns {kind(setting)}; {wanted}"
    if len(setting) != 3:
        return f"it returns {len(setting)} values; {wanted}"
    for value in setting:
        if problem := finite_number(value.item() if hasattr(value, "item") else value):
            return problem
    head = _head()
    voxel = volumes.to_voxel([float(value) for value in setting], head.affine)
    if (voxel < 0).any() or (voxel > np.array(head.image.shape[2:]) - 1).any():
        return (
            "this point lies outside the image, which reaches from −98 to 98, from −134 to 98\n"
            "and from −72 to 116 mm. Did you return a voxel's indices? Read x, y and z in mm."
        )
    return None


right_ventricle = Goal(
    SLUG,
    "right_ventricle",
    _distances,
    lambda measured: measured["mm to the right ventricle"] < _NEAR,
    "a point inside the right lateral ventricle, give or take 2 mm.\n"
    "x grows to the patient's right.",
    reference=lambda: (15, -24, 23),
    valid=_place,
    hints=[
        "The patient's right is where x is above 0; the viewer draws it on the right, marked R.",
        "Set z to about 22: the two dark bands beside the middle are the lateral ventricles.",
    ],
)

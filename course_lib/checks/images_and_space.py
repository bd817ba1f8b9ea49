"""Checks of exercise 10: voxels and millimeters, flips, normalization, padding, a ventricle."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import as_file, files
from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from course_lib import volumes
from course_lib.checks.core import Check, Goal, Law, Mistake, finite_number
from course_lib.checks.messages import kind
from course_lib.io import Volume, load_nifti

SLUG = "10_images_and_space"

Array = NDArray[np.float64]
Placed = tuple[Tensor, Array]


# --- which voxel ---------------------------------------------------------------------------------


def _voxel() -> tuple[int, int, int]:
    return 30, 70, 35


class _Prediction(Check):
    """A check of a few numbers, which may come as an array as well as a tuple."""

    def _run(self, *arguments: Any, **options: Any) -> Any:
        result = super()._run(*arguments, **options)
        return result.tolist() if isinstance(result, (np.ndarray, Tensor)) else result


voxel_of_point = _Prediction(
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
        Mistake(
            lambda: (120, 157.5, 315),
            "the differences to the first voxel are multiplied by the steps.\n"
            "30 = −2 i + 90: −2 i is −60, so divide by −2 to get i.",
        ),
        Mistake(
            lambda: (30, -90, 35),
            "i and k are right; for j, 120 is subtracted.\n"
            "−15 = 1.5 j − 120, so 1.5 j = −15 + 120: add it first, then divide by 1.5.",
        ),
        Mistake(
            lambda: (30, 70, -5),
            "i and j are right; for k, 60 is subtracted.\n"
            "45 = 3 k − 60, so 3 k = 45 + 60: add it first, then divide by 3.",
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


# Three points each: a matrix that is put on the wrong side of them then gives wrong numbers, which
# can be named, and not an error about sizes. Other counts are a law.
def _straight_points() -> tuple[Array, Array]:
    return np.array([[30.0, -15, 45], [31, -15, 45], [7, 20.25, -8]]), _STRAIGHT.copy()


def _oblique_points() -> tuple[Array, Array]:
    return np.random.default_rng(10).normal(scale=40, size=(3, 3)), _OBLIQUE.copy()


def _any_number_of_points(answer: Callable[[Array, Array], Any]) -> bool:
    points = np.random.default_rng(11).normal(scale=40, size=(5, 3))
    expected = volumes.to_voxel(points, _OBLIQUE)
    for n in (1, 5):
        result = np.asarray(answer(points[:n].copy(), _OBLIQUE.copy()))
        if result.shape != (n, 3) or not np.allclose(result, expected[:n]):
            return False
    return True


def _parts(affine: Array) -> tuple[Array, Array]:
    return affine[:3, :3], affine[:3, 3]


def _with_fourth(points: Array, value: float) -> Array:
    """Homogeneous coordinates, if the value is 1."""
    return np.c_[points, np.full(len(points), value)]


def _voxels(change: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """An answer made of the points, A and t."""
    return lambda points, affine: change(points, *_parts(affine))


_inverse = np.linalg.inv

to_voxel = Check(
    SLUG,
    "to_voxel",
    volumes.to_voxel,
    [_straight_points, _oblique_points],
    laws=[
        Law(
            _any_number_of_points,
            "right for three points, wrong for one or for five.\n"
            "Points are rows, (N, 3), and N may be any number: is a 3 meant for N somewhere?",
        )
    ],
    mistakes=[
        Mistake(
            volumes.to_world,
            "this goes from voxels to mm.\nThe points are in mm already: solve w = A v + t for v.",
        ),
        Mistake(
            _voxels(lambda p, A, t: p @ _inverse(A).T),
            "t is forgotten.\n"
            "The first voxel lies at t, not at 0: subtract it first, (points − t).\n"
            "t is the last column, affine[:3, 3]. (If you append a fourth number to the points,\n"
            "so that the 4 × 4 matrix does it all: that number is 1, not 0.)",
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
            _voxels(lambda p, A, t: _inverse(A) @ (p - t)),
            "the matrix stands on the wrong side of the points: this mixes different points.\n"
            "Points are rows, (N, 3): points @ M.T applies a matrix M to each of them.",
        ),
        Mistake(
            _voxels(lambda p, A, t: _inverse(A) @ (p - t).T),
            "right numbers, as columns: the result is (3, N).\n"
            "Asked: a row for each point, (N, 3). Transpose it back with .T.",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p - t[:, None]) @ _inverse(A).T),
            "t is subtracted along the wrong axis: tₓ from all of the first point, and so on.\n"
            "t as a flat array (3,), affine[:3, 3], is subtracted from each row of points.",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p - [90, -120, -60]) / [-2, 1.5, 3]),
            "right for the affine of task 1 only: its numbers stand in the function.\n"
            "Take A and t from the argument affine.",
        ),
        Mistake(
            _voxels(lambda p, A, t: (p - t) @ A),
            "this multiplies by A, untransposed; its transpose undoes a rotation only.\n"
            "Undo A, with its spacing, by its inverse: points @ np.linalg.inv(A).T.",
        ),
        Mistake(
            lambda points, affine: (_with_fourth(points, 1) @ _inverse(affine))[:, :3],
            "the 4 × 4 matrix is not transposed, so its last column, t, has no effect.\n"
            "Points are rows, (N, 4): points @ M.T applies a matrix M to each of them.",
        ),
        Mistake(
            lambda points, affine: volumes.to_voxel(points, affine)[:, ::-1].copy(),
            "right numbers, in the order (k, j, i).\n"
            "The first row of the affine belongs to x, its first column to i: nothing to reverse.",
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
            _voxels(lambda p, A, t: np.trunc((p - t) @ _inverse(A).T)),
            "right, but cut to whole numbers, as .astype(int) does.\n"
            "A point may lie between voxel centers: return the fractions, round when you index.",
        ),
        Mistake(
            _voxels(lambda p, A, t: np.floor((p - t) @ _inverse(A).T)),
            "right, but rounded down, as // and np.floor do.\n"
            "A point may lie between voxel centers: return the fractions, round when you index.",
        ),
        Mistake(
            lambda points, affine: _with_fourth(volumes.to_voxel(points, affine), 1),
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


def _diagonal_flipped(image: Tensor, affine: Array, axis: int, moved: bool = False) -> Placed:
    result = affine.copy()
    result[axis, 3] += moved * (image.shape[2 + axis] - 1) * affine[axis, axis]
    result[axis, axis] *= -1
    return image.flip(2 + axis), result


def _moved_by(
    step: Callable[[Array, int], Any],
) -> Callable[[Tensor, Array, int], Placed]:
    """The column changes its sign, but t moves by other steps, in mm."""

    def answer(image: Tensor, affine: Array, axis: int) -> Placed:
        result = _flipped(affine, axis, 0)
        result[:3, 3] += (image.shape[2 + axis] - 1) * np.asarray(step(affine, axis))
        return image.flip(2 + axis), result

    return answer


def _along_world_axis(length: float, axis: int) -> Array:
    """An arrow of some length, in mm, along a world axis."""
    return np.asarray(length * np.eye(3)[axis])


def _row_flipped(image: Tensor, affine: Array, axis: int) -> Placed:
    result = _flipped(affine, axis, image.shape[2 + axis] - 1, sign=1)
    result[axis, :3] *= -1
    return image.flip(2 + axis), result


def _signs_flipped(whole: bool) -> Callable[[Tensor, Array, int], Placed]:
    """The column and t change their signs: all of t, or one number."""

    def answer(image: Tensor, affine: Array, axis: int) -> Placed:
        result = _flipped(affine, axis, 0)
        result[slice(3) if whole else axis, 3] *= -1
        return image.flip(2 + axis), result

    return answer


def _all_columns_flipped(image: Tensor, affine: Array, axis: int) -> Placed:
    result = _flipped(affine, axis, image.shape[2 + axis] - 1, sign=1)
    result[:3, :3] *= -1
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
        Mistake(
            lambda image, affine, axis: (image.flip(-axis), _flip_axis(image, affine, axis)[1]),
            "the affine is right; the array is flipped along the wrong axis: −axis counts from\n"
            "the end. Spatial axis 0 is axis 2 of the tensor, behind batch and channels.",
        ),
        Mistake(
            lambda image, affine, axis: (image, affine),
            "neither the array nor the affine has changed.\n"
            "Asked: the array flipped along `axis`, and the affine that goes with it.",
        ),
        Mistake(
            lambda image, affine, axis: _flip_axis(image, affine, 0),
            "right for axis 0, but axis 0 is flipped for the other axes, too.\n"
            "Use the argument axis.",
        ),
        Mistake(
            _row_flipped,
            "t is right; then a *row* of the matrix changes its sign, and it should be a column.\n"
            "Steps along array axis `axis` are affine[:3, axis]; rows belong to x, y and z.",
        ),
        Mistake(
            lambda image, affine, axis: _diagonal_flipped(image, affine, axis, moved=True),
            "right for straight axes, wrong for oblique ones: only affine[axis, axis] is used.\n"
            "A step is the whole column affine[:3, axis], for t and for the sign.",
        ),
        Mistake(
            _moved_by(lambda affine, axis: _along_world_axis(affine[axis, axis], axis)),
            "the column is right; t moves by one number of it.\n"
            "That is enough for straight axes: move all of t, by (n − 1) · affine[:3, axis].",
        ),
        Mistake(
            _moved_by(
                lambda affine, axis: _along_world_axis(
                    float(np.linalg.norm(affine[:3, axis])), axis
                )
            ),
            "the column is right; t moves by the spacing along an axis of the world.\n"
            "The array's axis may point elsewhere: move t by (n − 1) · affine[:3, axis].",
        ),
        Mistake(
            _moved_by(lambda affine, axis: affine[axis, :3]),
            "the column is right; t moves along a *row* of the matrix.\n"
            "A step along the array's axis is a column, affine[:3, axis].",
        ),
        Mistake(
            _signs_flipped(whole=False),
            "the column is right; t only changes a sign.\n"
            "t is where the first voxel lies: move it to where the last one lay, (n − 1) steps\n"
            "along that axis's column.",
        ),
        Mistake(
            _signs_flipped(whole=True),
            "the column is right; t only changes its sign.\n"
            "t is where the first voxel lies: move it to where the last one lay, (n − 1) steps\n"
            "along that axis's column.",
        ),
        Mistake(
            _all_columns_flipped,
            "t is right; then the whole matrix changes its sign.\n"
            "Only one axis is flipped: only its column, affine[:3, axis], changes.",
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
    """Images on scales of their own, with an empty frame, noise below 0 and bright spots."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 + torch.rand(batch, 1, height, width, generator=generator)
    image = image * torch.tensor([100.0, 700.0][:batch]).view(-1, 1, 1, 1)
    noise = torch.rand(batch, 1, 12, 20, generator=generator)
    image[..., :12, :] = 0
    image[..., :12, 5:25] = -0.2 * noise * image.amax((1, 2, 3), keepdim=True)
    highest = image.amax((1, 2, 3)).view(-1, 1, 1)
    # Below the three brightest two equal values: the 99.5 % quantile of the foreground, whichever
    # of the customs for values in between (linear, lower, higher, by sorting) an answer follows.
    # Of a few voxels more or less it is another, since what lies above and below is far away.
    image[..., 25, 3:5] = 1.3 * highest
    image[..., 25, 8:9] = 2.6 * highest
    image[..., 20, 10:12] = 30 * highest
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


def _dark_spots(image: Tensor) -> Tensor:
    scaled = _by(lambda one: _upper(one[one > 0]), 0.0, torch.inf)(image)
    return torch.where(scaled > 1, 0.0, scaled)


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
            lambda image: (image / _upper(image)).clamp(0, 1),
            "two things: one quantile for the whole batch, and the background is counted, too.\n"
            "Take the quantile of each image's own voxels above 0: with im = image[b],\n"
            "that is im[im > 0].",
        ),
        Mistake(
            _by(lambda one: _upper(one[one != 0])),
            "the quantile counts the noise below 0, too: != 0 lets it in.\n"
            "Use the voxels above 0, with > 0.",
        ),
        Mistake(
            lambda image: ((image - image.min()) / (_upper(image) - image.min())).clamp(0, 1),
            "the quantile has taken the place of the maximum, but it is the whole batch's, with\n"
            "its background, and the minimum, a voxel of noise, is still subtracted.\n"
            "Divide each image by the quantile of its own voxels above 0, and clip.",
        ),
        Mistake(
            lambda image: (image - image.mean()) / image.std(),
            "this is the z-score, whose range is not 0 … 1.\n"
            "Divide by the 99.5 % quantile of the voxels above 0, and clip.",
        ),
        Mistake(
            lambda image: torch.stack([(one - one.mean()) / one.std() for one in image]),
            "this is the z-score of each image, whose range is not 0 … 1.\n"
            "Divide by the 99.5 % quantile of the voxels above 0, and clip.",
        ),
        Mistake(
            lambda image: torch.where(image > 0, volumes.normalize(image), image),
            "the voxels above 0 are right; those below 0 are as they were.\n"
            "Clip them, too: 0 is the smallest value of the result.",
        ),
        Mistake(
            _dark_spots,
            "what is above the quantile becomes 0; clipped, it becomes 1.\n"
            "clamp(0, 1) does both ends.",
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
        "With im = image[b], one image of the batch, im[im > 0] is a flat array of the "
        "foreground's values; torch.quantile(…, 0.995) of it is the value that becomes 1.",
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


def _to_sizes(sizes: Callable[[list[int], int], list[int]]) -> Callable[..., Placed]:
    """Padded on both sides, to other sizes than those asked for."""

    def answer(image: Tensor, affine: Array, divisor: int) -> Placed:
        old = list(image.shape[2:])
        more = [new - n for new, n in zip(sizes(old, divisor), old, strict=True)]
        return _padded(image, affine, [n // 2 for n in more], [n - n // 2 for n in more])

    return answer


def _border_repeated(image: Tensor, affine: Array, divisor: int) -> Placed:
    moved = _pad_to_multiple(image, affine, divisor)[1]
    before, after = _more(image, divisor)
    sides = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    return F.pad(image, sides, mode="replicate"), moved


pad_to_multiple = Check(
    SLUG,
    "pad_to_multiple",
    _pad_to_multiple,
    [lambda: _pad_input(7, (1, 2, 5, 20, 11), 4), lambda: _pad_input(8, (2, 1, 9, 14, 11), 6)],
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
            lambda image, affine, divisor: _pad_to_multiple(image, affine, 8),
            "the sizes are multiples of 8, whatever the divisor is.\nUse the argument divisor.",
        ),
        Mistake(
            lambda image, affine, divisor: _pad_to_multiple(image, affine, 2 * divisor),
            "the sizes are multiples of *twice* the divisor.\n"
            "Asked: as few voxels as possible; -n % divisor are missing along an axis of n.",
        ),
        Mistake(
            _to_sizes(lambda old, divisor: [1 << (n - 1).bit_length() for n in old]),
            "the sizes are powers of two, whatever the divisor is.\n"
            "Asked: multiples of the divisor, as few voxels as possible (12 will do for 4).",
        ),
        Mistake(
            _to_sizes(lambda old, divisor: [max(old) + -max(old) % divisor] * 3),
            "all axes get the size of the longest.\n"
            "Asked: as few voxels as possible; each axis has its own next multiple.",
        ),
        Mistake(
            _to_sizes(lambda old, divisor: [n + n % divisor for n in old]),
            "n % divisor voxels are added; that is how many n has *too many*.\n"
            "Missing up to the next multiple are -n % divisor.",
        ),
        Mistake(
            _with_counts(lambda before, after: (before, before)),
            "where the number of missing voxels is odd, one is lost: half of it, rounded down,\n"
            "comes on both sides. Behind the image come all the others, more − before.",
        ),
        Mistake(
            _border_repeated,
            "sizes and affine are right; the new voxels repeat the border.\n"
            "Asked: zeros around the image, which is what F.pad adds unless told otherwise.",
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
# Of the exercise's scan: the head in slices of 3 mm, its axes to the left, the head and the back.
_SCAN_AFFINE = np.array([[-1.0, 0, 0, 98], [0, 0, -1, 98], [0, 3, 0, -71], [0, 0, 0, 1]])


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
    # Fluid in thin furrows surrounds the whole brain. What is 3 mm thick everywhere hangs together
    # in a few chambers only; the one around this point is the lateral ventricles. They get their
    # thin edges back, 3 mm through fluid, and the long tips of the horns in front.
    chambers, _ = ndimage.label(ndimage.minimum_filter(fluid, size=3))
    seed = volumes.to_voxel([-15, -29, 23], head.affine).round().astype(int)
    core = chambers == chambers[tuple(seed)]
    whole = ndimage.binary_dilation(core, np.ones((3, 3, 3)), iterations=3, mask=fluid)
    front = fluid.copy()
    front[:, : 134 + 12] = False  # y up to 12 mm, where the third ventricle is near
    whole |= ndimage.binary_dilation(whole, np.ones((3, 3, 3)), iterations=8, mask=front)
    points = volumes.to_world(np.argwhere(whole), head.affine)
    # What lies between belongs to the wall in the middle, or to either.
    return {"right": points[points[:, 0] > 1], "left": points[points[:, 0] < -1]}


def _away(point: Sequence[float], side: str) -> float:
    """How far a point (x, y, z) lies from a ventricle, in mm, to a tenth; 0 inside."""
    near = np.linalg.norm(_ventricles()[side] - np.asarray(point, dtype=float), axis=1).min()
    # Inside a voxel of 1 mm, no point is further than √3 / 2 mm from its center.
    return 0.0 if near < 0.87 else round(float(near), 1)


def _inside(point: Sequence[float], side: str) -> bool:
    return _away(point, side) <= _NEAR


def _distances(setting: Any) -> dict[str, float]:
    mm = _away(setting, "right")
    return {"mm to the right lateral ventricle" + " (inside)" * (mm == 0): mm}


def _place(setting: object) -> str | None:
    """What is wrong with a setting that should be a point on the right, in mm, or None."""
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
    point = tuple(float(value) for value in setting)
    return None if point[0] > 0 and _inside(point, "right") else _misread(point)


def _misread(point: tuple[float, ...]) -> str | None:
    """The likely reason why a point is not in the right ventricle, or None."""
    x, y, z = point
    if x == 0:
        return "x = 0 mm is in the middle; on the patient's right, x is above 0."
    if x < 0 and _inside(point, "left"):
        return (
            f"this point is in the *left* lateral ventricle: x = {x:g} mm is on the patient's left."
        )
    if name := _file_with_voxel(point):
        return (
            f"as mm, this point is not in the ventricle; as the indices of a voxel of {name}\n"
            "it is. Give x, y and z in mm: the sliders have them, and the line below the cuts\n"
            "that begins with x."
        )
    if any(_inside(order, "right") for order in permutations(point)):
        return (
            "in another order, these three numbers are a point inside.\n"
            "Asked: (x, y, z), first to the right, then to the front, then to the head."
        )
    if y > 0 and _inside((x, -y, z), "right"):
        return (
            f"with y = {-y:g} this point would be inside.\nIs a minus lost? y grows to the front."
        )
    if x < 0 < y and _inside((-x, -y, z), "right"):
        return (
            "with the other signs of x and y this point would be inside.\n"
            "Here x grows to the right and y to the front (RAS)."
        )
    head = _head()
    voxel = volumes.to_voxel(point, head.affine)
    if (voxel < 0).any() or (voxel > np.array(head.image.shape[2:]) - 1).any():
        return (
            "this point lies outside the image, which reaches from −98 to 98, from −134 to 98\n"
            "and from −72 to 116 mm. Read x, y and z in mm, at the sliders."
        )
    if x < 0:
        return f"x = {x:g} mm is on the patient's left; on the right, x is above 0."
    return None


def _file_with_voxel(index: tuple[float, ...]) -> str | None:
    """The file of the exercise in which these indices, read so, lie in the right ventricle."""
    affines = {"the scan": _SCAN_AFFINE, "the 1 mm file": _head().affine}
    found = (n for n, a in affines.items() if _inside(volumes.to_world(index, a).tolist(), "right"))
    return next(found, None)


right_ventricle = Goal(
    SLUG,
    "right_ventricle",
    _distances,
    lambda measured: max(measured.values()) <= _NEAR,
    "a point inside the right lateral ventricle, give or take 2 mm.\n"
    "x grows to the patient's right.",
    reference=lambda: (15, -24, 23),
    valid=_place,
    hints=[
        "The patient's right is where x is above 0; the viewer draws it on the right, marked R.",
        "Set z to about 22: the two dark bands beside the middle are the lateral ventricles.",
    ],
)

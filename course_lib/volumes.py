"""Where voxels lie in the body, and how to change the grid without losing that place.

The affine of a :class:`~course_lib.io.Volume` leads from voxel indices to the world: millimeters
along three axes of the patient, to the right, to the front (anterior) and to the head (superior),
RAS for short. ``world = A · voxel + t``, and index 0 is the *center* of the first voxel.

Every function here that gives a volume back gives it the affine under which each value keeps its
place in the world. Lesson 10 teaches them.
"""

import math
from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from course_lib.io import Volume
from course_lib.spatial import Mode, Padding, identity_grid, warp
from course_lib.validation import (
    require_affine,
    require_finite,
    require_image,
    require_number,
    require_numbers,
    require_option,
    require_shape,
    require_spacing,
    require_whole,
)

Affine = NDArray[np.float64]

_ENDS = ("LR", "PA", "IS")  # of the three world axes: the letter below zero, the letter above
_SAME_PLACE = 1e-3  # of a voxel: rounding in a file's float32 header is no rotation


# ------------------------------------------------------------------------------ where a voxel lies


def to_world(points: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """From voxel indices to millimeters: ``world = A · voxel + t``.

    Args:
        points: ``(..., 3)``, in voxels; fractions lie between voxel centers.
        affine: ``(4, 4)``, with ``A`` in its first three columns and ``t`` in the last.

    Returns:
        ``(..., 3)``, in mm, RAS.

    Raises:
        TypeError, ValueError: on points that are not ``(..., 3)``, or an affine that is not
            ``(4, 4)``, finite and invertible.

    Example:
        >>> to_world([1, 0, 0], [[-2, 0, 0, 90], [0, 1, 0, -120], [0, 0, 3, -60], [0, 0, 0, 1]])
        array([  88., -120.,  -60.])

    Taught in lesson 10.
    """
    matrix = require_affine("affine", affine)
    return _require_points("points", points) @ matrix[:3, :3].T + matrix[:3, 3]


def to_voxel(points: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """From millimeters to voxel indices, the inverse of :func:`to_world`.

    Args:
        points: ``(..., 3)``, in mm, RAS.
        affine: ``(4, 4)``, from voxels to mm.

    Returns:
        ``(..., 3)``, in voxels: fractions, below 0 or beyond the last voxel where a point lies so.

    Raises:
        TypeError, ValueError: as :func:`to_world`.

    Taught in lesson 10.
    """
    inverse = np.linalg.inv(require_affine("affine", affine))
    return _require_points("points", points) @ inverse[:3, :3].T + inverse[:3, 3]


def orientation(affine: ArrayLike) -> str:
    """Three letters: toward which side of the body each array axis runs.

    ``"RAS"``: the first index grows to the right, the second to the front, the third to the head.
    The opposites are L (left), P (back) and I (feet). An oblique axis gets the letter that it is
    nearest to, and no two axes share a direction.

    Args:
        affine: ``(4, 4)``, from voxels to mm.

    Returns:
        Such as ``"RAS"`` or ``"PIL"``.

    Raises:
        TypeError, ValueError: on an affine that is not ``(4, 4)``, finite and invertible.

    Example:
        >>> orientation([[0, 0, -3, 90], [-1, 0, 0, 99], [0, -1, 0, 117], [0, 0, 0, 1]])
        'PIL'

    Taught in lesson 10.
    """
    matrix = require_affine("affine", affine)[:3, :3]
    cosines = matrix / np.linalg.norm(matrix, axis=0)  # column k: the direction of array axis k
    world_axes = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p, range(3)])))
    signs = cosines[world_axes, range(3)] > 0
    return "".join(_ENDS[w][int(up)] for w, up in zip(world_axes, signs, strict=True))


# ------------------------------------------------------------------------ without interpolation


def reorient(volume: Volume, axes: str = "RAS") -> Volume:
    """Permute and flip the array axes until they run toward ``axes``.

    Nothing is interpolated: the same values stand in another order, and the affine says so. An
    oblique volume stays oblique, see :func:`straighten`.

    Args:
        volume: 3D.
        axes: three letters, as :func:`orientation` gives them.

    Returns:
        A :class:`Volume` with values of its own.

    Raises:
        TypeError, ValueError: on a volume that is not 3D or ``axes`` that do not name each of
            left–right, back–front and bottom–top once.

    Taught in lesson 10.
    """
    shape = require_volume("volume", volume, ndim=3)
    wanted, now = _require_axes("axes", axes), orientation(volume.affine)
    order = [next(k for k in range(3) if {now[k], w} <= set(_ends(w))) for w in wanted]
    flipped = [k for k in range(3) if now[k] not in wanted]
    image = volume.image.flip([2 + k for k in flipped]).permute(0, 1, *(2 + k for k in order))
    # The voxel of the old array that becomes voxel 0 of the new one, and its steps from there.
    old_from_new = np.zeros((4, 4))
    old_from_new[order, range(3)] = [-1 if k in flipped else 1 for k in order]
    old_from_new[flipped, 3] = [shape[k] - 1 for k in flipped]
    old_from_new[3, 3] = 1
    return _volume(image.contiguous(), volume.affine @ old_from_new)


def crop_or_pad(volume: Volume, shape: Sequence[int], value: float = 0.0) -> Volume:
    """Cut or add voxels on both sides of each axis until the image has ``shape``.

    Centered; where an odd number of voxels goes or comes, the odd one does so at the end of the
    axis. So padding and then cropping back gives the volume again.

    Args:
        volume: 2D or 3D.
        shape: the new spatial shape.
        value: what the added voxels hold.

    Returns:
        A :class:`Volume` whose affine begins at the new first voxel.

    Raises:
        TypeError, ValueError: on a wrong volume, shape or value.

    Taught in lesson 10.
    """
    old = require_volume("volume", volume)
    new = _require_sizes("shape", shape, len(old))
    fill = require_number("value", value)
    before = [int((n - o) / 2) for n, o in zip(new, old, strict=True)]  # rounds toward 0
    after = [n - o - b for n, o, b in zip(new, old, before, strict=True)]
    # F.pad counts from the last axis to the first, and cuts where a number is negative.
    sides = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, : len(old)] @ before
    return _volume(F.pad(volume.image, sides, value=fill), affine)


def next_multiple(shape: Sequence[int], divisor: int = 16) -> tuple[int, ...]:
    """The smallest sizes, none below ``shape``, that ``divisor`` divides.

    A network that halves the image four times needs multiples of 2⁴ = 16.

    Args:
        shape: two or three sizes.
        divisor: 1 or more.

    Returns:
        As many sizes.

    Raises:
        TypeError, ValueError: on a wrong shape or divisor.

    Example:
        >>> next_multiple((63, 64, 65))
        (64, 64, 80)

    Taught in lesson 10.
    """
    step = require_whole("divisor", divisor, 1)
    return tuple(-(-n // step) * step for n in require_shape("shape", shape))


# ------------------------------------------------------------------------------ with interpolation


def resample(volume: Volume, spacing: Sequence[float], mode: Mode = "linear") -> Volume:
    """The same field of view in voxels of another size.

    The axes keep their directions and the middle of the image stays where it is. The field of view
    keeps its size too, rounded up to whole voxels, so the *first voxel's center moves*: half a
    voxel from the edge is another place when voxels change. Beyond the outermost centers the border
    value goes on.

    Args:
        volume: 2D or 3D.
        spacing: mm per voxel along each array axis.
        mode: ``"linear"`` for intensities, blurred first along axes that get coarser (see
            :func:`resample_like`); ``"nearest"`` for labels.

    Returns:
        A :class:`Volume` with this spacing.

    Raises:
        TypeError, ValueError: on a wrong volume, spacing or mode.

    Taught in lesson 10.
    """
    shape = np.array(require_volume("volume", volume))
    ndim = len(shape)
    wanted = require_spacing("spacing", spacing, ndim)
    if wanted is None:
        raise TypeError(f"spacing: expected {ndim} numbers in mm, got None")
    step = wanted.numpy() / _spacing(volume.affine, ndim)  # in old voxels
    new = np.maximum(np.ceil(shape / step - _SAME_PLACE), 2).astype(int)
    first = (shape - 1) / 2 - step * (new - 1) / 2  # where the new first voxel lies among the old
    old_from_new = np.eye(4)
    old_from_new[range(ndim), range(ndim)] = step
    old_from_new[:ndim, 3] = first
    return _sample(volume, volume.affine @ old_from_new, new.tolist(), mode, "border")


def resample_like(volume: Volume, target: Volume, mode: Mode = "linear") -> Volume:
    """The volume on another one's grid: each voxel shows what lies at its place in the world.

    Linear sampling looks at the neighbors of each place only, so detail finer than the new voxels
    would come out as noise (aliasing). Where the target is ``f`` times coarser along an axis, the
    volume is first blurred along it with σ = ½ √(f² − 1) voxels: a voxel counts as a blur of
    half its size, and squares of blurs add up.

    Args:
        volume: 3D; it may lie anywhere and be turned against the target.
        target: 3D; only its grid matters.
        mode: ``"linear"`` for intensities, ``"nearest"`` for labels (any dtype, kept; no blur).

    Returns:
        A :class:`Volume` with the target's shape and affine, 0 where the volume does not reach.

    Raises:
        TypeError, ValueError: on a wrong volume, target or mode.

    Taught in lesson 10.
    """
    require_volume("volume", volume, ndim=3)
    shape = require_volume("target", target, ndim=3)
    return _sample(volume, target.affine, shape, mode, "zeros")


def straighten(volume: Volume, mode: Mode = "linear") -> Volume:
    """Array axes along the world's axes, in the order RAS.

    Where flips and permutations do it (:func:`reorient`), nothing is interpolated. An oblique
    volume is resampled onto a straight grid that holds all of it, with zeros in the corners.

    Args:
        volume: 3D.
        mode: ``"linear"`` for intensities, ``"nearest"`` for labels.

    Returns:
        A :class:`Volume` whose affine has no rotation.

    Raises:
        TypeError, ValueError: on a wrong volume or mode.

    Taught in lesson 10.
    """
    require_option("mode", mode, ("linear", "nearest"))
    upright = reorient(volume)
    shape, spacing = upright.image.shape[2:], np.array(upright.spacing)
    turned = upright.affine[:3, :3] / spacing - np.eye(3)  # 0 unless oblique
    if np.abs(turned).max() * max(shape) < _SAME_PLACE:
        return upright
    corners = to_world(list(product(*((0, n - 1) for n in shape))), upright.affine)
    first, last = corners.min(axis=0), corners.max(axis=0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = first
    new = np.ceil((last - first) / spacing - _SAME_PLACE).astype(int) + 1
    return _sample(upright, affine, new.tolist(), mode, "zeros")


def _sample(
    volume: Volume, affine: Affine, shape: Sequence[int], mode: Mode, padding: Padding
) -> Volume:
    """The volume's values at the voxel centers of another grid, ``affine`` and ``shape``."""
    require_option("mode", mode, ("linear", "nearest"))
    ndim = len(shape)
    # From the new grid's voxels to the world, and from there to the old grid's voxels.
    old_from_new = np.linalg.inv(volume.affine) @ affine
    linear, shift = old_from_new[:ndim, :ndim], old_from_new[:ndim, 3]
    image = volume.image
    if mode == "linear":
        coarser = np.linalg.norm(linear, axis=1)  # how far one step goes along each old axis
        for axis, factor in enumerate(coarser.tolist()):
            image = _blur_axis(image, 2 + axis, 0.5 * math.sqrt(max(factor**2 - 1, 0)))
    # warp fetches from x + u(x), so u leads from an index of the new grid to its place in the old.
    change, start = (torch.from_numpy(part).float() for part in (linear - np.eye(ndim), shift))
    u = torch.tensordot(change, identity_grid(shape, dtype=torch.float32), dims=1)
    u += start.view(-1, *(1,) * ndim)
    u = u.expand(len(image), *u.shape)
    return _volume(warp(image, u, mode=mode, padding=padding), affine)


def _blur_axis(image: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian blur along one axis, written as a matrix of weights whose rows sum to 1."""
    if sigma < _SAME_PLACE:
        return image
    index = torch.arange(image.shape[axis], dtype=image.dtype)
    distance = index[:, None] - index
    weights = torch.softmax(-(distance**2) / (2 * sigma**2), dim=1)
    return (image.movedim(axis, -1) @ weights.T).movedim(-1, axis)


# -------------------------------------------------------------------------------------- intensities


def normalize(image: Tensor, upper: float = 0.995) -> Tensor:
    """Intensities from 0 to 1: divided by a high quantile of the foreground, and clipped.

    The quantile is taken over the voxels above 0 and not over all, or the amount of background
    around the head would decide; and it is no maximum, which a single bright voxel would move.

    Args:
        image: ``(B, C, *spatial)``, floating, with a background of 0; each image and channel has a
            quantile of its own.
        upper: the quantile that becomes 1, above 0 and up to 1.

    Returns:
        Like ``image``.

    Raises:
        TypeError, ValueError: on a wrong rank or dtype, values that are not finite, an image with
            nothing above 0, or ``upper`` out of its range.

    Taught in lesson 10.
    """
    require_image("image", image)
    require_finite("image", image)
    quantile = require_number("upper", upper)
    if not 0 < quantile <= 1:
        raise ValueError(f"upper: expected a number above 0 and up to 1, got {upper!r}")
    flat = image.flatten(0, 1)
    scaled = [(one / _foreground_quantile(one, quantile)).clamp(0, 1) for one in flat]
    return torch.stack(scaled).view_as(image)


def _foreground_quantile(image: Tensor, quantile: float) -> float:
    foreground = image[image > 0]
    if foreground.numel() == 0:
        raise ValueError("image: expected something above 0, the background")
    # NumPy's, because torch.quantile refuses more than 16 million voxels.
    return float(np.quantile(foreground.detach().cpu().double().numpy(), quantile))


# --------------------------------------------------------------------------------------- refusals


def _spacing(affine: Affine, ndim: int) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(affine[:3, :ndim], axis=0))


def _volume(image: Tensor, affine: Affine) -> Volume:
    return Volume(image, affine, tuple(_spacing(affine, image.ndim - 2).tolist()))


def _ends(letter: str) -> str:
    """Both letters of the axis that one of them names."""
    return next(pair for pair in _ENDS if letter in pair)


def _require_axes(name: str, axes: object) -> str:
    if not isinstance(axes, str):
        raise TypeError(f"{name}: expected three letters such as 'RAS', got {axes!r}")
    if len(axes) != 3 or any(sum(letter in axes for letter in pair) != 1 for pair in _ENDS):
        raise ValueError(
            f"{name}: expected one letter of each of L or R, P or A, I or S, got {axes!r}"
        )
    return axes


def _require_points(name: str, points: ArrayLike) -> NDArray[np.float64]:
    numbers = require_numbers(name, points, "an array of numbers (..., 3)")
    if numbers.ndim == 0 or numbers.shape[-1] != 3:
        raise ValueError(f"{name}: expected shape (..., 3), got {numbers.shape}")
    return numbers


def require_volume(name: str, volume: object, ndim: int | None = None) -> tuple[int, ...]:
    """Check a volume of one image; returns its spatial shape."""
    if not isinstance(volume, Volume):
        raise TypeError(f"{name}: expected a Volume, got {type(volume).__name__}")
    shape = require_image(f"{name}.image", volume.image, floating=False)
    require_affine(f"{name}.affine", volume.affine)
    if ndim is not None and len(shape) != ndim:
        raise ValueError(f"{name}: expected {ndim} spatial axes, got {shape}")
    return shape


def _require_sizes(name: str, shape: Sequence[int], ndim: int) -> tuple[int, ...]:
    sizes = require_shape(name, shape)
    if len(sizes) != ndim:
        raise ValueError(f"{name}: expected {ndim} sizes, got {sizes}")
    return sizes

"""Rigid, similarity and affine registration: by moments, and by descent over a pyramid."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from course_lib.losses import ncc
from course_lib.optimise import Similarity, Step, Watch, descend
from course_lib.spatial import (
    affine_displacement,
    at_least_float32,
    identity_grid,
    pyramid,
    warp,
)
from course_lib.validation import (
    require_callable,
    require_finite,
    require_image,
    require_number,
    require_option,
    require_same,
    require_schedule,
    require_shape,
    require_spacing,
    require_tensor,
)

Motion = Literal["rigid", "similarity", "affine"]

_MOTIONS = ("rigid", "similarity", "affine")


def pose_matrix(degrees: float, scale: float = 1.0, shift: Sequence[float] = (0.0, 0.0)) -> Tensor:
    """``[A | t]`` of a rotation, a uniform scaling and a shift in 2D.

    Args:
        degrees: rotation from axis i towards axis j.
        scale: factor of all lengths, above 0.
        shift: in voxels along i and j.

    Returns:
        ``(1, 2, 3)``, float32.

    Raises:
        TypeError, ValueError: if ``scale`` is not above 0, ``shift`` has not two numbers, or
            something is no finite number.

    Taught in lesson 00.
    """
    require_number("degrees", degrees)
    if not require_number("scale", scale) > 0:
        raise ValueError(f"scale: expected a number above 0, got {scale!r}")
    if not isinstance(shift, Sequence | Tensor) or len(shift) != 2:
        raise ValueError(f"shift: expected two numbers, got {shift!r}")
    for part in shift:
        require_number("shift", part)
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[[c, -s, shift[0]], [s, c, shift[1]]]])


@torch.inference_mode(False)
def register_affine(
    moving: Tensor,
    fixed: Tensor,
    *,
    motion: Motion = "affine",
    start: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    similarity: Similarity = ncc,
    factors: Sequence[float] = (8, 4, 2),
    steps: int = 60,
    watch: Watch | None = None,
) -> Tensor:
    """The map of a kind from fixed to moving that makes the warped image most similar.

    Adam on the map's numbers, first on a coarse image, where one step goes far and detail cannot
    distract, then on finer ones. Samples outside the moving image take its border value.

    An affine map's numbers are ``[A | t]`` themselves. A rigid map's are ``t`` and those of a
    skew-symmetric ``S`` (one in 2D, three in 3D), with ``A = exp(S)``, the matrix exponential: a
    rotation for every ``S``, so no step leaves the rotations. A similarity has one number more,
    ``A = exp(S + s I)``, with ``s`` the logarithm of the scale. Rodrigues' formula, which divides
    by the angle, gives the same ``A`` but 0/0 in its gradient at zero, where the search begins;
    the exponential's gradient is finite there.

    Args:
        moving, fixed: ``(B, C, *spatial)``, floating.
        motion: ``"rigid"`` turns and shifts, ``"similarity"`` also scales alike in all directions,
            ``"affine"`` also stretches and shears.
        start: ``(B, D, D+1)``, where the descent begins, such as :func:`align_moments`; the
            identity if None. What is found is the start, moved by such a motion: from a start that
            is not rigid, a rigid motion keeps its stretch.
        spacing: mm per voxel along each axis; the same along all if None. Where they differ, a turn
            in mm is no rotation matrix in voxels: a rigid map that counted voxels would shear the
            patient.
        similarity: a loss of ``(warped, fixed)``.
        factors: how much smaller the images of each level are, coarse to fine.
        steps: gradient steps on each level.
        watch: called after each step with the :class:`~course_lib.optimise.Step` that was taken;
            its ``penalty`` is 0.

    Returns:
        ``(B, D, D+1)``, ``[A | t]`` with ``t`` in voxels, for
        :func:`~course_lib.spatial.affine_displacement`; float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device, spacing or option.

    Taught in lesson 00 and 20.
    """
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    require_option("motion", motion, _MOTIONS)
    millimeters = require_spacing("spacing", spacing, len(spatial))
    require_schedule(factors, steps)
    require_callable("similarity", similarity)
    if watch is not None:
        require_callable("watch", watch)
    moving, fixed = (at_least_float32(image.detach().clone()) for image in (moving, fixed))
    begin = _start(start, fixed)
    change = fixed.new_zeros(_change_shape(motion, begin))
    place = partial(_moved, begin, motion=motion, radius=max(spatial) / 2, millimeters=millimeters)
    taken: list[tuple[float, Tensor]] = []  # the loss of a step, and its displacement

    def misfit(change: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        small = fixed.shape[2:]
        displacement = affine_displacement(resize_matrix(place(change), spatial, small), small)
        loss = similarity(warp(moving, displacement, padding="border"), fixed)
        if watch is not None:
            taken.append((float(loss.detach()), displacement.detach()))
        return loss

    def report(factor: float) -> None:
        if watch is not None:
            loss, displacement = taken[-1]
            stopped = "steps" if len(taken) == steps else ""
            watch(Step(factor, len(taken), loss, loss, 0.0, displacement, stopped))

    for factor in factors:
        taken.clear()
        change = descend(
            partial(misfit, moving=pyramid(moving, factor), fixed=pyramid(fixed, factor)),
            change,
            steps=steps,
            learning_rate=0.004 * factor / min(factors),
            after_step=partial(report, factor),
        )
    return place(change)


def _start(start: Tensor | None, fixed: Tensor) -> Tensor:
    """``start``, or the identity, as ``(B, D, D+1)`` of the image's dtype."""
    batch, ndim = fixed.shape[0], fixed.ndim - 2
    if start is None:
        identity = torch.eye(ndim, ndim + 1, dtype=fixed.dtype, device=fixed.device)
        return identity.repeat(batch, 1, 1)
    if tuple(require_tensor("start", start).shape) != (batch, ndim, ndim + 1):
        raise ValueError(
            f"start: expected shape (B, D, D+1) = {(batch, ndim, ndim + 1)}, "
            f"got {tuple(start.shape)}"
        )
    if not start.is_floating_point():
        raise TypeError(f"start: expected a floating dtype, got {start.dtype}")
    if start.device != fixed.device:
        raise ValueError(f"start is on {start.device} but fixed is on {fixed.device}")
    return start.detach().to(fixed.dtype, copy=True)


def _change_shape(motion: Motion, start: Tensor) -> tuple[int, ...]:
    """Of the numbers that the descent changes: ``[A | t]``, or turns, a scale and a shift."""
    batch, ndim = start.shape[:2]
    turns = ndim * (ndim - 1) // 2
    if motion == "affine":
        return tuple(start.shape)
    return batch, turns + (motion == "similarity") + ndim


def _moved(
    start: Tensor, change: Tensor, *, motion: Motion, radius: float, millimeters: Tensor | None
) -> Tensor:
    """``start`` (B, D, D+1), changed by the numbers of a motion.

    A acts on coordinates of up to half the image. With t in units of that radius, one step of the
    optimizer moves the border as far by A as by t.
    """
    ndim = start.shape[1]
    if motion == "affine":
        return start + change * start.new_tensor([1.0] * ndim + [radius])
    generators = _generators(ndim, motion, start)  # (K, D, D)
    tangent = (change[:, :-ndim, None, None] * generators).sum(1)  # (B, D, D)
    turned = _in_voxels(torch.linalg.matrix_exp(tangent), millimeters)
    shift = start[:, :, ndim:] + radius * change[:, -ndim:, None]
    return torch.cat([turned @ start[:, :, :ndim], shift], dim=2)


def _generators(ndim: int, motion: Motion, like: Tensor) -> Tensor:
    """The turns from axis a towards axis b, a < b, and the scaling: ``(K, D, D)``."""
    eye = torch.eye(ndim, dtype=like.dtype, device=like.device)
    pairs = [(a, b) for a in range(ndim) for b in range(a + 1, ndim)]
    turns = [torch.outer(eye[b], eye[a]) - torch.outer(eye[a], eye[b]) for a, b in pairs]
    return torch.stack([*turns, eye] if motion == "similarity" else turns)


def _in_voxels(linear: Tensor, millimeters: Tensor | None) -> Tensor:
    """A matrix (..., D, D) that acts on mm, as it acts on voxels: ``A_ab s_b / s_a``."""
    if millimeters is None:
        return linear
    sizes = millimeters.to(linear)
    return linear * sizes / sizes[:, None]


def moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Where an image's mass lies, and how it is spread: its first two moments.

    ``centroid = Σ w x / Σ w`` and ``covariance = Σ w (x − centroid)(x − centroid)ᵀ / Σ w`` over
    the voxels ``x``, with the intensities (of all channels together) as the mass ``w``.

    Args:
        image: ``(B, C, *spatial)``, floating, nothing negative: subtract the background's value.

    Returns:
        The centroid ``(B, D)``, in voxels, and the covariance ``(B, D, D)``, in squared voxels;
        both float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype, on values that are negative or not
            finite, or an item without any mass.

    Example:
        >>> image = torch.zeros(1, 1, 4, 5)
        >>> image[0, 0, 1, [1, 3]] = 1.0
        >>> moments(image)
        (tensor([[1., 2.]]), tensor([[[0., 0.],
                 [0., 1.]]]))

    Taught in lesson 20.
    """
    centroid, covariance = _moments("image", image)
    dtype = torch.promote_types(image.dtype, torch.float32)
    return centroid.to(dtype), covariance.to(dtype)


@torch.no_grad()
def _moments(name: str, image: Tensor) -> tuple[Tensor, Tensor]:
    """Like ``moments``, in float64."""
    spatial = require_image(name, image)
    require_finite(name, image)
    if bool((image < 0).any()):
        raise ValueError(f"{name}: expected values of 0 and above, as mass is; got negative ones")
    mass = image.double().sum(1).flatten(1)  # (B, voxels)
    total = mass.sum(1)
    if bool((total == 0).any()):
        raise ValueError(f"{name}: expected some mass, got an item that is zero everywhere")
    mass = mass / total[:, None]
    # Counted from the middle, so that the squares stay small.
    grid = identity_grid(spatial, dtype=torch.float64, device=image.device).flatten(1)
    middle = grid.mean(1)
    grid -= middle[:, None]  # (D, voxels)
    mean = mass @ grid.T  # (B, D)
    squares = torch.stack([(grid * weights) @ grid.T for weights in mass])  # (B, D, D)
    return mean + middle, squares - mean[:, :, None] * mean[:, None]


@torch.no_grad()
def align_moments(
    moving: Tensor,
    fixed: Tensor,
    motion: Motion = "rigid",
    *,
    spacing: Sequence[float] | None = None,
    similarity: Similarity = ncc,
) -> Tensor:
    """The map that lays the moving image's centroid and principal axes on the fixed one's.

    No search, so no start and no capture range: a head turned by 170° is no harder than one turned
    by 10°. An axis has no sign, though: axes on axes leaves 2 turns in 2D and 4 in 3D. Each is
    tried, and the axes as they lie in the image (centroid on centroid only), on images 4 times
    smaller; the most similar one is returned, item by item.

    It is a start, for :func:`register_affine`, and no more. Axes of equal spread have no direction,
    so on a round object the turn may be any. Both images must show the same mass: a cropped head
    or another contrast has another centroid and other axes. And two persons' masses differ anyway.

    Args:
        moving, fixed: ``(B, C, *spatial)``, floating, nothing negative.
        motion: ``"rigid"`` turns and shifts; ``"similarity"`` also makes the volumes of the two
            spreads equal; ``"affine"`` each axis's own spread.
        spacing: mm per voxel along each axis; the same along all if None.
        similarity: a loss of ``(warped, fixed)`` that chooses among the turns.

    Returns:
        ``(B, D, D+1)``, ``[A | t]`` with ``t`` in voxels, from fixed to moving; float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device, spacing or option, on images
            without :func:`moments`, and, unless rigid, on mass without extent along some axis.

    Taught in lesson 20.
    """
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    require_option("motion", motion, _MOTIONS)
    millimeters = require_spacing("spacing", spacing, len(spatial))
    require_callable("similarity", similarity)
    there, moving_spread = _moments("moving", moving)
    here, fixed_spread = _moments("fixed", fixed)
    if motion != "rigid":
        _require_extent("moving", moving_spread, motion)
        _require_extent("fixed", fixed_spread, motion)
    sizes = torch.ones(len(spatial)) if millimeters is None else millimeters
    square_mm = torch.outer(sizes, sizes).to(here)
    turns = _alignments(moving_spread * square_mm, fixed_spread * square_mm, motion)
    linear = _in_voxels(turns, millimeters)  # (K, B, D, D)
    center = (here.new_tensor(spatial) - 1) / 2
    # The map takes x to A (x − c) + t + c, and is to take the fixed centroid to the moving one.
    shift = there - center - (linear @ (here - center)[..., None])[..., 0]
    matrices = torch.cat([linear, shift[..., None]], dim=3)
    matrices = matrices.to(torch.promote_types(fixed.dtype, torch.float32))
    return _most_similar(matrices, moving, fixed, similarity)


def _require_extent(name: str, spread: Tensor, motion: Motion) -> None:
    """Where the mass is a point, or (for an affine map) flat, no scale can be told."""
    variances = torch.linalg.eigvalsh(spread)  # (B, D), ascending
    extent = variances[:, 0] if motion == "affine" else variances.sum(1)
    if bool((extent < 1e-9).any()):
        raise ValueError(f"{name}: expected mass spread along every axis, got none along some")


def _alignments(moving_spread: Tensor, fixed_spread: Tensor, motion: Motion) -> Tensor:
    """The ways to lay the fixed axes on the moving ones, and at first without a turn.

    Args:
        moving_spread, fixed_spread: ``(B, D, D)``, covariances in mm².
        motion: says how the axes are stretched.

    Returns:
        ``(K, B, D, D)``, in mm; K is 3 in 2D and 5 in 3D; no mirror images.
    """
    there, here = (spread.diagonal(dim1=1, dim2=2) for spread in (moving_spread, fixed_spread))
    found = [torch.diag_embed(_stretch(there, here, motion))]
    there, moving_axes = torch.linalg.eigh(moving_spread)  # (B, D) ascending; columns (B, D, D)
    here, fixed_axes = torch.linalg.eigh(fixed_spread)
    # Both right-handed, or both left-handed: then an even number of signs makes no mirror image.
    handed = (torch.linalg.det(moving_axes) * torch.linalg.det(fixed_axes)).sign()
    moving_axes[:, :, 0] *= handed[:, None]
    stretch = _stretch(there, here, motion)
    for signs in product((1.0, -1.0), repeat=here.shape[1]):
        if math.prod(signs) > 0:
            factors = stretch * stretch.new_tensor(signs)
            found.append(moving_axes * factors[:, None] @ fixed_axes.mT)
    return torch.stack(found)


def _stretch(there: Tensor, here: Tensor, motion: Motion) -> Tensor:
    """How much longer the moving image's axes are, from the variances along them: ``(B, D)``."""
    if motion == "rigid":
        return torch.ones_like(here)
    if motion == "similarity":  # the sum of the variances does not depend on the axes
        there, here = there.sum(1, keepdim=True).expand_as(here), here.sum(1, keepdim=True)
    return (there / here).sqrt()


def _most_similar(
    matrices: Tensor, moving: Tensor, fixed: Tensor, similarity: Similarity
) -> Tensor:
    """For each item the best of its matrices (K, B, D, D+1), judged on small images."""
    spatial = fixed.shape[2:]
    moving, fixed = (pyramid(at_least_float32(image), 4) for image in (moving, fixed))
    small = fixed.shape[2:]
    best = []
    for item, a, b in zip(matrices.unbind(1), moving.split(1), fixed.split(1), strict=True):
        fields = affine_displacement(resize_matrix(item, spatial, small), small)  # (K, D, *small)
        losses = [float(similarity(warp(a, u, padding="border"), b)) for u in fields.split(1)]
        best.append(item[losses.index(min(losses))])
    return torch.stack(best)


def resize_matrix(matrix: Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> Tensor:
    """The same affine map in the voxels of another grid over the same extent.

    Args:
        matrix: ``(B, D, D+1)`` in voxels of a grid of ``shape``.
        shape, new_shape: the two spatial shapes.

    Returns:
        ``(B, D, D+1)`` in voxels of the grid of ``new_shape``.

    Raises:
        TypeError, ValueError: on wrong shapes, or a matrix that does not fit them.

    Taught in lesson 20.
    """
    sizes, new_sizes = require_shape("shape", shape), require_shape("new_shape", new_shape)
    n = len(sizes)
    if len(new_sizes) != n or tuple(require_tensor("matrix", matrix).shape[1:]) != (n, n + 1):
        raise ValueError(
            f"matrix: expected (B, D, D+1) for {sizes} and {new_sizes}, got {tuple(matrix.shape)}"
        )
    if not matrix.is_floating_point():
        raise TypeError(f"matrix: expected a floating dtype, got {matrix.dtype}")
    ratio = [(new - 1) / (old - 1) for new, old in zip(new_shape, shape, strict=True)]
    row = torch.tensor(ratio, dtype=matrix.dtype, device=matrix.device).view(-1, 1)
    column = torch.cat([1 / row, torch.ones_like(row[:1])]).view(1, -1)
    return row * matrix * column

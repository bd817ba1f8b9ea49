"""Affine registration by gradient descent over an image pyramid."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from course_lib.losses import ncc
from course_lib.optimise import Similarity, descend
from course_lib.spatial import affine_displacement, at_least_float32, pyramid, warp
from course_lib.validation import (
    require_callable,
    require_image,
    require_number,
    require_same,
    require_schedule,
    require_shape,
    require_tensor,
)


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
    similarity: Similarity = ncc,
    factors: Sequence[float] = (8, 4, 2),
    steps: int = 60,
) -> Tensor:
    """The affine map from fixed to moving that makes the warped image most similar.

    Adam on ``[A | t]``, first on a coarse image, where one step goes far and detail cannot
    distract, then on finer ones. Samples outside the moving image take its border value.

    Args:
        moving, fixed: ``(B, C, *spatial)``, floating.
        similarity: a loss of ``(warped, fixed)``.
        factors: how much smaller the images of each level are, coarse to fine.
        steps: gradient steps on each level.

    Returns:
        ``(B, D, D+1)``, ``[A | t]`` with ``t`` in voxels, for
        :func:`~course_lib.spatial.affine_displacement`; float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device.

    Taught in lesson 00 and 20.
    """
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    require_schedule(factors, steps)
    require_callable("similarity", similarity)
    moving, fixed = (at_least_float32(image.detach().clone()) for image in (moving, fixed))
    ndim = len(spatial)
    # Columns of A act on coordinates of up to half the image: in units of that radius, one step of
    # the optimizer moves the border as far by A as by t.
    unit = fixed.new_tensor([1.0] * ndim + [max(spatial) / 2])
    identity = torch.eye(ndim, ndim + 1, dtype=fixed.dtype, device=fixed.device)
    change = fixed.new_zeros(fixed.shape[0], ndim, ndim + 1)

    def misfit(change: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        small = fixed.shape[2:]
        matrix = resize_matrix(identity + change * unit, spatial, small)
        warped = warp(moving, affine_displacement(matrix, small), padding="border")
        return similarity(warped, fixed)

    for factor in factors:
        change = descend(
            partial(misfit, moving=pyramid(moving, factor), fixed=pyramid(fixed, factor)),
            change,
            steps=steps,
            learning_rate=0.004 * factor / min(factors),
        )
    return identity + change * unit


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

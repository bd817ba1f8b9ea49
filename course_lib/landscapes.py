"""How a loss looks along a line of poses: the landscape that registration has to walk through."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_lib.classical.affine import pose_matrix
from course_lib.spatial import affine_displacement, at_least_float32, warp
from course_lib.validation import (
    require_callable,
    require_image,
    require_number,
    require_same,
    require_tensor,
    require_whole,
)

Loss = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def landscape(loss: Loss, moving: Tensor, fixed: Tensor, poses: Tensor) -> Tensor:
    """The loss at each of a row of poses: ``loss(warp(moving, affine_displacement(pose)), fixed)``.

    Outside the moving image its border value goes on, as in everything that is optimized here: with
    zeros, a black frame would come in from the side and be compared too.

    Args:
        loss: of ``(warped, fixed)``, one number.
        moving, fixed: ``(B, C, *spatial)``, floating.
        poses: ``(N, D, D+1)``, ``[A | t]`` with ``t`` in voxels, from fixed to moving, floating;
            :func:`translations` and :func:`rotations` make some.

    Returns:
        ``(N,)``, in the dtype of the loss, without gradient.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device, or a loss that does not give
            one number.

    Example:
        >>> ramp = torch.arange(24.0).view(1, 1, 4, 6)
        >>> largest = lambda a, b: (a - b).abs().max()
        >>> landscape(largest, ramp, ramp, translations([0, 2], axis=0)).round()
        tensor([ 0., 12.])

    Taught in lesson 13.
    """
    require_callable("loss", loss)
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    _require_poses(poses, len(spatial))
    moving, fixed = at_least_float32(moving), at_least_float32(fixed)
    heights = []
    for pose in poses.to(fixed).split(1):  # one at a time: a volume's field takes much memory
        displacement = affine_displacement(pose, spatial).expand(len(fixed), -1, *spatial)
        heights.append(_one_number(loss(warp(moving, displacement, padding="border"), fixed)))
    return torch.stack(heights)


def translations(offsets: Sequence[float], axis: int = 0, ndim: int = 2) -> Tensor:
    """Poses that look ``offsets`` voxels further along one axis, and turn nothing.

    Args:
        offsets: in voxels; a row of numbers or a tensor ``(N,)``.
        axis: the array axis, from 0.
        ndim: 2 or 3.

    Returns:
        ``(N, ndim, ndim + 1)``, float32.

    Raises:
        TypeError, ValueError: on what is no row of finite numbers, or an axis that is not there.

    Example:
        >>> translations([0, 1.5], axis=1)[1]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.0000, 1.0000, 1.5000]])

    Taught in lesson 13.
    """
    steps = _require_row("offsets", offsets)
    poses = _identities(len(steps), ndim)
    if require_whole("axis", axis, 0) >= ndim:
        raise ValueError(f"axis: expected 0 to {ndim - 1}, got {axis}")
    poses[:, axis, ndim] = torch.tensor(steps)
    return poses


def rotations(degrees: Sequence[float], ndim: int = 2) -> Tensor:
    """Poses that turn about the center of the image, from axis 0 towards axis 1.

    Args:
        degrees: a row of numbers or a tensor ``(N,)``.
        ndim: 2 or 3; in 3D, axis 2 stays where it is.

    Returns:
        ``(N, ndim, ndim + 1)``, float32.

    Raises:
        TypeError, ValueError: on what is no row of finite numbers, or another ``ndim``.

    Example:
        >>> rotations([90])[0].round().int().tolist()
        [[0, -1, 0], [1, 0, 0]]

    Taught in lesson 13.
    """
    angles = _require_row("degrees", degrees)
    poses = _identities(len(angles), ndim)
    poses[:, :2, :2] = torch.cat([pose_matrix(angle)[:, :, :2] for angle in angles])
    return poses


def _identities(count: int, ndim: int) -> Tensor:
    if require_whole("ndim", ndim, 2) > 3:
        raise ValueError(f"ndim: expected 2 or 3, got {ndim}")
    return torch.eye(ndim, ndim + 1).repeat(count, 1, 1)


def _one_number(value: object) -> Tensor:
    number = torch.as_tensor(value) if isinstance(value, Tensor | int | float) else None
    if number is None or number.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a function that gives one number, it gave {what}")
    return number.reshape(())


def _require_poses(poses: object, ndim: int) -> None:
    tensor = require_tensor("poses", poses)
    if tensor.ndim != 3 or len(tensor) == 0 or tuple(tensor.shape[1:]) != (ndim, ndim + 1):
        raise ValueError(
            f"poses: expected shape (N, {ndim}, {ndim + 1}) for these images, "
            f"got {tuple(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        raise TypeError(f"poses: expected a floating dtype, got {tensor.dtype}")


def _require_row(name: str, values: object) -> list[float]:
    row = values.tolist() if isinstance(values, Tensor) else values
    if isinstance(row, str) or not isinstance(row, Sequence):
        raise TypeError(f"{name}: expected a row of numbers, got {type(values).__name__}")
    if not row:
        raise ValueError(f"{name}: expected at least one number, got none")
    return [require_number(name, value) for value in row]

"""Grids, displacement fields and warping: the ground floor, pure functions of tensors.

Conventions, held everywhere (lesson 11 teaches them):

* Images are ``(B, C, *spatial)``; the spatial axes are array indices ``i, j(, k)``; 2D and 3D.
* A displacement ``u`` is ``(B, D, *spatial)`` in voxels, on the grid of the fixed image; channel
  ``d`` moves along spatial axis ``d``.
* Pull-back: ``warped(x) = moving(x + u(x))``. A point ``p`` of the fixed image lies at
  ``p + u(p)`` in the moving image.
* Voxel centers are the corners of the sampling grid (``align_corners=True``).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.validation import (
    require_displacement,
    require_image,
    require_number,
    require_option,
    require_same,
    require_shape,
    require_tensor,
    require_whole,
)

# torch.gather does not know unsigned numbers; it moves the same bits under another name.
_SAME_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}

_SMALLEST = 9  # voxels along an axis of a pyramid: the usual window of a similarity fits in

Mode = Literal["linear", "nearest"]
Padding = Literal["zeros", "border"]


def identity_grid(
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The coordinates of every voxel: ``grid[d, i, j] = (i, j)[d]``.

    Args:
        shape: spatial shape, two or three sizes.
        dtype: floating dtype of the result; torch's default dtype if None.
        device: where the grid lies; torch's default device if None.

    Returns:
        ``(D, *shape)``, in voxels.

    Raises:
        TypeError, ValueError: if ``shape`` is not two or three whole numbers of at least 2.

    Example:
        >>> identity_grid((2, 3))[1]
        tensor([[0., 1., 2.],
                [0., 1., 2.]])

    Taught in lesson 11.
    """
    sizes = require_shape("shape", shape)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}")
    try:
        where = torch.get_default_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected a device of torch, got {device!r}") from None
    return _grid(sizes, dtype or torch.get_default_dtype(), where).clone()


@lru_cache(maxsize=8)  # a 3D grid takes some 80 MB
def _grid(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Shared by every call: never handed out, so that nobody changes it in place. Built outside
    # inference mode, because a tensor born inside could not take part in a backward pass later.
    with torch.inference_mode(False):
        axes = [torch.arange(n, dtype=dtype, device=device) for n in shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(
    image: Tensor, displacement: Tensor, *, mode: Mode = "linear", padding: Padding = "zeros"
) -> Tensor:
    """Pull the image back: ``warped(x) = image(x + displacement(x))``.

    Args:
        image: ``(B, C, *spatial)``, the moving image. Linear: floating; nearest: any dtype.
        displacement: ``(B, D, *spatial)``, in voxels, floating. Its spatial shape is that of the
            result; it may differ from the image's.
        mode: ``"linear"`` between the 2^D voxels around each sample; ``"nearest"`` for labels.
        padding: what lies outside the image: ``"zeros"``, or the nearest ``"border"`` value.

    Returns:
        ``(B, C, *spatial of displacement)``, of the image's dtype. Where the displacement is NaN or
        infinite, floating images are NaN; labels, which cannot be, count it as outside.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or option.

    Taught in lesson 11 (what it does) and 12 (how).
    """
    spatial = require_displacement("displacement", displacement)
    require_option("mode", mode, ("linear", "nearest"))
    require_option("padding", padding, ("zeros", "border"))
    image_shape = require_image("image", image, floating=mode == "linear")
    if len(image_shape) != len(spatial) or image.shape[0] != displacement.shape[0]:
        raise ValueError(
            f"image {tuple(image.shape)} and displacement {tuple(displacement.shape)}: "
            "expected the same batch and the same number of spatial axes"
        )
    if image.device != displacement.device:
        raise ValueError(f"image is on {image.device} but displacement is on {displacement.device}")
    dtype = _sampling_dtype(image, displacement)
    positions = _grid(spatial, dtype, displacement.device) + displacement.to(dtype)
    if mode == "nearest":
        return _gather_nearest(image, positions, padding)
    return _sample_linear(image, positions.movedim(1, -1), padding)


def at_least_float32(values: Tensor) -> Tensor:
    """The values, in float32 if they came in less: sums and squares of halves lose everything."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _sampling_dtype(image: Tensor, displacement: Tensor) -> torch.dtype:
    # Half precision cannot tell voxel 2049 from voxel 2048: positions are at least float32.
    dtype = torch.promote_types(displacement.dtype, torch.float32)
    return torch.promote_types(dtype, image.dtype) if image.is_floating_point() else dtype


def _sample_linear(image: Tensor, positions: Tensor, padding: Padding) -> Tensor:
    """``image`` (B, C, *spatial) at ``positions`` (B, *any D axes, D), given in voxels."""
    sizes = torch.tensor(image.shape[2:], dtype=positions.dtype, device=positions.device)
    normalized = positions * (2 / (sizes - 1)) - 1  # voxel 0 -> -1, voxel n - 1 -> +1
    # On a NaN, grid_sample with border padding reads outside its memory: the process may die.
    # It wants (x, y, z) = (k, j, i): the last array axis first.
    grid = normalized.flip(-1).nan_to_num(0, 0, 0)
    sampled = F.grid_sample(
        image.to(positions.dtype), grid, mode="bilinear", padding_mode=padding, align_corners=True
    )
    return (sampled + _broken(positions, -1)).to(image.dtype)


def _broken(positions: Tensor, axis: int) -> Tensor:
    """0 where a position is finite, NaN where it is not: added to a result, it marks the lost."""
    return positions.detach().sum(axis).mul(0).unsqueeze(1)


def _gather_nearest(image: Tensor, positions: Tensor, padding: Padding) -> Tensor:
    """``image`` at the voxels nearest to ``positions`` (B, D, *spatial); exact for any dtype."""
    if signed := _SAME_BITS.get(image.dtype):
        return _gather_nearest(image.view(signed), positions, padding).view(image.dtype)
    flat = torch.zeros_like(positions[:, 0], dtype=torch.long)
    inside = torch.ones_like(flat, dtype=torch.bool)
    for axis, size in enumerate(image.shape[2:]):
        # Far and broken positions are made "just outside" before they have to fit a whole number.
        index = positions[:, axis].nan_to_num(-1).round().clamp(-1, size).long()
        inside &= (index >= 0) & (index < size)
        flat = flat * size + index.clamp(0, size - 1)
    flat = flat.unsqueeze(1).expand(-1, image.shape[1], *positions.shape[2:])
    sampled = image.flatten(2).gather(2, flat.flatten(2)).view(flat.shape)
    if padding == "zeros":
        sampled = sampled.masked_fill(~inside.unsqueeze(1), 0)
    if not image.is_floating_point():
        return sampled  # there is no NaN among labels: a broken position counts as outside
    return sampled + _broken(positions, 1).to(image.dtype)


def warp_points(points: Tensor, displacement: Tensor) -> Tensor:
    """Where points of the fixed image lie in the moving image: ``p + u(p)``.

    The displacement is interpolated linearly, and extended by its border value.

    Args:
        points: ``(B, N, D)``, in voxels of the fixed image.
        displacement: ``(B, D, *spatial)``, in voxels.

    Returns:
        ``(B, N, D)``, in voxels of the moving image, of the points' dtype.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device.

    Taught in lesson 11.
    """
    ndim = len(require_displacement("displacement", displacement))
    require_tensor("points", points)
    if points.ndim != 3 or points.shape[0] != displacement.shape[0] or points.shape[2] != ndim:
        raise ValueError(
            f"points: expected shape (B, N, D) = ({displacement.shape[0]}, N, {ndim}), "
            f"got {tuple(points.shape)}"
        )
    if not points.is_floating_point():
        raise TypeError(f"points: expected a floating dtype, got {points.dtype}")
    if points.device != displacement.device:
        raise ValueError(f"points are on {points.device} but displacement on {displacement.device}")
    dtype = _sampling_dtype(points, displacement)
    field = displacement.to(dtype)
    positions = points.to(dtype).view(*points.shape[:2], *(1,) * (ndim - 1), ndim)
    moved = _sample_linear(field, positions, "border")  # (B, D, N, 1(, 1))
    return (points + moved.flatten(2).transpose(1, 2)).to(points.dtype)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The displacement that warps by ``first``, then by ``second``.

    ``u(x) = second(x) + first(x + second(x))``, with ``first`` extended by its border value.

    Args:
        first, second: ``(B, D, *spatial)``, in voxels, on the same grid.

    Returns:
        ``(B, D, *spatial)``, in voxels, such that
        ``warp(warp(image, first), second) ≈ warp(image, compose(first, second))``.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device.

    Taught in lesson 11.
    """
    require_displacement("first", first)
    require_displacement("second", second)
    require_same("second", second, "first", first)
    return second + warp(first, second, padding="border")


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """The displacement of ``exp(velocity)``, by scaling and squaring.

    ``u_0 = v / 2^steps``, then ``steps`` times ``u ← compose(u, u)``: each squaring doubles the
    time that the points have followed the stationary velocity. ``integrate(-v)`` approximates the
    inverse.

    Args:
        velocity: ``(B, D, *spatial)``, in voxels per unit time, extended by its border value.
        steps: number of squarings, 0 or more.

    Returns:
        ``(B, D, *spatial)``, in voxels.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, or a negative ``steps``.

    Source: Arsigny, Commowick, Pennec, Ayache, "A log-Euclidean framework for statistics on
    diffeomorphisms", MICCAI 2006. Taught in lesson 17.
    """
    require_displacement("velocity", velocity)
    steps = require_whole("steps", steps, 0)
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def resize_image(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The image on another grid over the same extent: corner voxels stay on corner voxels.

    Linear interpolation. Blur before making an image smaller, or detail turns into noise.

    Args:
        image: ``(B, C, *spatial)``, floating.
        shape: the new spatial shape.

    Returns:
        ``(B, C, *shape)``.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Taught in lesson 12.
    """
    spatial = require_image("image", image)
    sizes = require_shape("shape", shape)
    if len(sizes) != len(spatial):
        raise ValueError(f"shape: the image has {len(spatial)} spatial axes, got {sizes}")
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    return F.interpolate(image, size=sizes, mode=mode, align_corners=True)


def resize_displacement(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """The same displacement on another grid, in voxels of that grid.

    Component ``d`` is multiplied by ``(n'_d − 1) / (n_d − 1)``: ten voxels of a fine grid are five
    of one half as fine. Law: an affine field resized equals the affine field built at the new size.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels of the old grid.
        shape: the new spatial shape.

    Returns:
        ``(B, D, *shape)``, in voxels of the new grid.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Taught in lesson 12.
    """
    spatial = require_displacement("displacement", displacement)
    resized = resize_image(displacement, shape)
    factors = [(new - 1) / (old - 1) for new, old in zip(resized.shape[2:], spatial, strict=True)]
    scale = torch.tensor(factors, dtype=resized.dtype, device=resized.device)
    return resized * scale.view(1, -1, *(1,) * len(spatial))


def smooth(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, one axis after the other, with the border value repeated outside.

    Args:
        image: ``(B, C, *spatial)``, floating; an image or a field.
        sigma: standard deviation in voxels, 0 or more; 0 returns the image itself.

    Returns:
        Like ``image``.

    Raises:
        TypeError, ValueError: on a wrong rank or dtype, or a ``sigma`` that is not 0 or more.

    Taught in lesson 12.
    """
    ndim = len(require_image("image", image))
    require_number("sigma", sigma, 0)
    if sigma == 0:
        return image
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for axis in range(2, 2 + ndim):
        lines = image.movedim(axis, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        image = _full_precision(F.conv1d, padded, kernel).view(lines.shape).movedim(-1, axis)
    return image.contiguous()


def _full_precision(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    # Autocast would multiply in half precision: a tenth of a voxel is lost across a large image.
    device = arguments[0].device.type
    if not torch.amp.is_autocast_available(device):
        return function(*arguments)
    with torch.autocast(device, enabled=False):
        return function(*arguments)


def pyramid(image: Tensor, factor: float) -> Tensor:
    """The image ``factor`` times smaller along each axis: blurred, then resized.

    No axis gets smaller than 9 voxels (or stays as it is, if it has fewer): the window of a local
    similarity has to fit in.

    Args:
        image: ``(B, C, *spatial)``, floating.
        factor: 1 or more; 1 returns the image itself.

    Returns:
        ``(B, C, *smaller)``, with the corner voxels on the corner voxels.

    Raises:
        TypeError, ValueError: on a wrong rank or dtype, or a ``factor`` below 1.

    Taught in lesson 12.
    """
    spatial = require_image("image", image)
    require_number("factor", factor, 1)
    if factor == 1:
        return image
    shape = [max(min(n, _SMALLEST), round(n / factor)) for n in spatial]
    return resize_image(smooth(image, 0.5 * factor), shape)


def affine_displacement(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The displacement of ``x → A(x − c) + t + c``, where ``c = (n − 1)/2`` is the center.

    Args:
        matrix: ``(B, D, D+1)``, ``[A | t]`` with ``t`` in voxels, from fixed to moving; ``[I | 0]``
            gives zero.
        shape: spatial shape of the field.

    Returns:
        ``(B, D, *shape)``, in voxels.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Taught in lesson 11.
    """
    sizes = require_shape("shape", shape)
    require_tensor("matrix", matrix)
    ndim = len(sizes)
    if matrix.ndim != 3 or tuple(matrix.shape[1:]) != (ndim, ndim + 1):
        raise ValueError(
            f"matrix: expected shape (B, {ndim}, {ndim + 1}), got {tuple(matrix.shape)}"
        )
    if not matrix.is_floating_point():
        raise TypeError(f"matrix: expected a floating dtype, got {matrix.dtype}")
    grid = _grid(sizes, matrix.dtype, matrix.device)
    center = torch.tensor(sizes, dtype=matrix.dtype, device=matrix.device).sub(1).div(2)
    centered = grid.flatten(1) - center.view(-1, 1)  # (D, voxels)
    linear, shift = matrix[:, :, :ndim], matrix[:, :, ndim:]
    identity = torch.eye(ndim, dtype=matrix.dtype, device=matrix.device)
    moved = _full_precision(torch.matmul, linear - identity, centered) + shift
    return moved.view(-1, ndim, *sizes)


def jacobian(displacement: Tensor) -> Tensor:
    """The Jacobian of ``φ(x) = x + u(x)``: ``J[:, a, b] = δ_ab + ∂u_a/∂x_b``.

    Central differences inside, one-sided ones at the border.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels.

    Returns:
        ``(B, D, D, *spatial)``, without unit.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Taught in lesson 14.
    """
    ndim = len(require_displacement("displacement", displacement))
    gradients = torch.gradient(displacement, dim=tuple(range(2, 2 + ndim)))
    identity = torch.eye(ndim, dtype=displacement.dtype, device=displacement.device)
    return torch.stack(gradients, dim=2) + identity.view(1, ndim, ndim, *(1,) * ndim)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """How the map ``x + u(x)`` changes volume locally; zero or negative where it folds.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels.

    Returns:
        ``(B, *spatial)``: 1 keeps volume, 2 doubles it, 0 and below is a fold.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Taught in lesson 14.
    """
    J = jacobian(displacement).movedim((1, 2), (0, 1))  # (D, D, B, *spatial)
    if J.shape[0] == 2:
        return J[0, 0] * J[1, 1] - J[0, 1] * J[1, 0]
    return (
        J[0, 0] * (J[1, 1] * J[2, 2] - J[1, 2] * J[2, 1])
        - J[0, 1] * (J[1, 0] * J[2, 2] - J[1, 2] * J[2, 0])
        + J[0, 2] * (J[1, 0] * J[2, 1] - J[1, 1] * J[2, 0])
    )

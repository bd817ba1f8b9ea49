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
    require_points,
    require_same,
    require_shape,
    require_tensor,
    require_whole,
)

# torch.gather does not know unsigned numbers; it moves the same bits under another name.
_SAME_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}

# Voxels whose slopes are held at once: some 10 MB.
_VOXELS_AT_ONCE = 2**18

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
    axes = [torch.arange(n, dtype=dtype or torch.get_default_dtype(), device=where) for n in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@lru_cache(maxsize=4)  # a 3D grid takes some 80 MB
def _sampler_grid(
    shape: tuple[int, ...], sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``identity_grid(shape)`` in the sampler's coordinates of an image of these sizes.

    ``(D, *shape)``, as grid_sample counts: the last array axis comes first, (x, y, z) = (k, j, i);
    the image's voxel 0 is at −1, voxel n − 1 at +1. Shared by every call: never handed out, so that
    nobody changes it in place. Built outside inference mode, because a tensor born inside could not
    take part in a backward pass later.
    """
    with torch.inference_mode(False):
        # Rounded only once: in float32 the last bit is 1/100 000 of a voxel in a large image.
        counts = [torch.arange(n, dtype=torch.float64, device="cpu") for n in shape]
        axes = [(2 * i - (n - 1)) / (n - 1) for i, n in zip(counts, sizes, strict=True)]
        axes = [axis.to(device=device, dtype=dtype) for axis in axes]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])


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
    if mode == "nearest" and not image.is_floating_point():
        return _gather_nearest(image, at_least_float32(displacement), padding)
    dtype = _sampling_dtype(image, displacement)
    field = displacement.to(dtype)
    sampled = _pull_back(image.to(dtype), field, mode, padding)
    return _lost_where_broken(sampled, field).to(image.dtype)


def at_least_float32(values: Tensor) -> Tensor:
    """The values, in float32 if they came in less: sums and squares of halves lose everything."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _sampling_dtype(image: Tensor, displacement: Tensor) -> torch.dtype:
    # Half precision cannot tell voxel 2049 from voxel 2048: positions are at least float32.
    dtype = torch.promote_types(displacement.dtype, torch.float32)
    return torch.promote_types(dtype, image.dtype)


def _sampler_scale(image: Tensor) -> Tensor:
    """The sampler's units per voxel of ``image``, last axis first: ``(D, 1, 1(, 1))``."""
    sizes = torch.tensor(image.shape[:1:-1], dtype=image.dtype, device=image.device)
    return (2 / (sizes - 1)).view(-1, *(1,) * len(sizes))


def _pull_back(image: Tensor, field: Tensor, mode: Mode, padding: Padding) -> Tensor:
    """``image(x + field(x))``, a new tensor; both of one floating dtype, float32 or more."""
    if mode == "nearest":
        positions = _nearest_voxels(field).mul_(_sampler_scale(image)).sub_(1)
    else:
        grid = _sampler_grid(
            tuple(field.shape[2:]), tuple(image.shape[2:]), field.dtype, field.device
        )
        positions = field.flip(1).mul_(_sampler_scale(image)).add_(grid)
    return _sample(image, positions, mode, padding)


def _nearest_voxels(field: Tensor) -> Tensor:
    """``x + field(x)`` in whole voxels, last axis first: ``(B, D, *spatial)``, no gradient."""
    places = field.detach().flip(1)
    for axis, place in enumerate(places.unbind(1)[::-1]):
        start = torch.arange(field.shape[2 + axis], dtype=field.dtype, device=field.device)
        place.add_(start.view(-1, *(1,) * (field.ndim - 3 - axis))).round_()
    return places


def _sample(image: Tensor, positions: Tensor, mode: Mode, padding: Padding) -> Tensor:
    """``image`` (B, C, *spatial) at ``positions`` (B, D, *any D axes), counted as the sampler does.

    The positions are the caller's to give away: what is broken in them is changed in place.
    """
    # On a NaN, grid_sample with border padding reads outside its memory: the process may die. Far
    # outside no padding has a gradient. Behind autograd's back, which would keep another copy.
    positions.detach().nan_to_num_(-3, 3, -3)
    grid = positions.movedim(1, -1)  # (B, *any, D)
    slabs = _slab_count(image)
    for axis in range(1, grid.ndim - 1):
        if slabs > 1 and grid.shape[axis] > 0 and grid.shape[axis] % slabs == 0:
            return _grid_sample_in_slabs(image, grid, mode, padding, slabs, axis)
    return _grid_sample(image, grid, mode, padding)


def _grid_sample(image: Tensor, grid: Tensor, mode: Mode, padding: Padding) -> Tensor:
    kernel = "bilinear" if mode == "linear" else mode
    return F.grid_sample(image, grid, mode=kernel, padding_mode=padding, align_corners=True)


def _grid_sample_in_slabs(
    image: Tensor, grid: Tensor, mode: Mode, padding: Padding, slabs: int, axis: int
) -> Tensor:
    """The same as ``_grid_sample``, with more than one core at work on one image.

    On a CPU grid_sample shares out the items of a batch, so that one image keeps one core busy.
    Here the grid is cut along an axis, and its slabs are the batch; they all read the same image,
    which ``expand`` repeats without a copy.
    """
    cut = grid[0].unflatten(axis - 1, (slabs, -1)).movedim(axis - 1, 0)  # (slabs, *any, D)
    sampled = _grid_sample(image.expand(slabs, *image.shape[1:]), cut, mode, padding)
    return sampled.movedim(0, axis).reshape(1, image.shape[1], *grid.shape[1:-1])  # (1, C, *any)


def _slab_count(image: Tensor) -> int:
    """How many slabs keep the cores busy; 1 where a batch does, or where there is a GPU."""
    if image.shape[0] > 1 or image.device.type != "cpu":
        return 1
    # In the backward pass each slab fills a gradient image of its own: two are enough.
    return min(torch.get_num_threads(), 2 if image.requires_grad else 8)


def _lost_where_broken(sampled: Tensor, field: Tensor) -> Tensor:
    """``sampled`` (B, C, *any), with NaN where ``field`` (B, D, *any) is NaN or infinite."""
    return torch.add(sampled, field.detach().sum(1, keepdim=True), alpha=0)  # 0 · ∞ is NaN


def _gather_nearest(image: Tensor, field: Tensor, padding: Padding) -> Tensor:
    """Whole numbers at the voxels nearest to ``x + field(x)``, exact for any dtype.

    There is no NaN among them: a broken position counts as outside.
    """
    if signed := _SAME_BITS.get(image.dtype):
        return _gather_nearest(image.view(signed), field, padding).view(image.dtype)
    flat = torch.zeros_like(field[:, 0], dtype=torch.long)
    outside = torch.zeros_like(flat, dtype=torch.bool)
    places = _nearest_voxels(field).unbind(1)[::-1]
    for place, size in zip(places, image.shape[2:], strict=True):
        # Only what is in reach can become a whole number; a NaN goes to 0, and differs from it.
        reached = place.nan_to_num(0, size, 0).clamp_(0, size - 1)
        outside |= place != reached
        flat = torch.add(reached.long(), flat, alpha=size)
    flat = flat.unsqueeze(1).expand(-1, image.shape[1], *flat.shape[1:])  # (B, C, *spatial)
    sampled = image.flatten(2).gather(2, flat.flatten(2)).view(flat.shape)
    return sampled.masked_fill_(outside.unsqueeze(1), 0) if padding == "zeros" else sampled


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
    require_points("points", points, "displacement", displacement)
    dtype = _sampling_dtype(points, displacement)
    field, start = displacement.to(dtype), points.to(dtype).mT  # start: (B, D, N)
    start = start.unflatten(2, (-1, *(1,) * (ndim - 1)))  # (B, D, N, 1(, 1)): a thin grid
    positions = start.flip(1) * _sampler_scale(field) - 1
    moved = start + _sample(field, positions, "linear", "border")
    moved = _lost_where_broken(moved, start)
    return moved.flatten(2).mT.to(points.dtype)


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
    dtype = _sampling_dtype(first, second)
    moved = _pull_back(first.to(dtype), second.to(dtype), "linear", "border")
    return moved.add_(second).to(torch.promote_types(first.dtype, second.dtype))


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
    displacement = at_least_float32(velocity) / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement.to(velocity.dtype)


def invert(displacement: Tensor, *, tolerance: float = 1e-3, iterations: int = 50) -> Tensor:
    """The displacement ``w`` of the inverse map: ``y + w(y) + u(y + w(y)) = y``.

    So ``w(y) = −u(y + w(y))``, found by repetition. The residual ``r(y) = w(y) + u(y + w(y))`` is
    how far ``y`` misses itself after the way back and there again; from ``w = 0`` on, every step is
    ``w ← w − r``. The residual shrinks while the slope of ``u`` stays below 1. Where it does not
    shrink by a tenth, the steps of that voxel become half as long (an eighth at the least), which
    also inverts most maps that stretch more. Outside the grid ``u`` has its border value.

    It stops when no residual is above ``tolerance``, or after ``iterations``. Where a map folds, or
    is bent too much, the result is finite and wrong: ask ``compose(displacement, w)``, which *is*
    the residual.

    Differentiable through every iteration, with memory that grows with their number; under
    ``torch.no_grad()`` it keeps a few fields. Where nobody can look at values (``torch.vmap``, the
    meta device), it takes all iterations.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels.
        tolerance: in voxels, 0 or more; holds for every component, voxel and item of the batch.
        iterations: how many steps at most, 1 or more.

    Returns:
        ``(B, D, *spatial)``, in voxels, on the grid of the moving image.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, tolerance or number of iterations.

    Example:
        >>> invert(torch.full((1, 2, 2, 2), 3.0)).unique()
        tensor([-3.])

    Source: Chen, Lu, Chen, Ruchala, Olivera, "A simple fixed-point approach to invert a deformation
    field", Medical Physics 35(1), 2008; the halving is ours. Taught in lesson 17; lesson 11 shows
    it in one dimension.
    """
    require_displacement("displacement", displacement)
    require_number("tolerance", tolerance, 0)
    iterations = require_whole("iterations", iterations, 1)
    field = at_least_float32(displacement)
    inverse, residual = torch.zeros_like(field), field
    step = torch.ones_like(field[:, :1])
    for _ in range(iterations):
        if _all_below(residual, tolerance):
            break
        before = _length(residual)
        inverse = inverse - step * residual
        residual = compose(field, inverse)
        step = torch.where(_length(residual) < 0.9 * before, step, (step / 2).clamp(min=1 / 8))
    return inverse.to(displacement.dtype)


def _length(field: Tensor) -> Tensor:
    return field.detach().norm(dim=1, keepdim=True)


def _all_below(values: Tensor, bound: float) -> bool:
    try:
        return bool(values.detach().abs().max() <= bound)
    except RuntimeError:  # values that nobody can look at, under vmap or on the meta device
        return False


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
    full = at_least_float32(image)  # torch would round the weights to half precision, too
    resized = F.interpolate(full, size=sizes, mode=mode, align_corners=True)
    return resized.to(image.dtype)


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
    resized = resize_image(at_least_float32(displacement), shape)
    factors = [(new - 1) / (old - 1) for new, old in zip(resized.shape[2:], spatial, strict=True)]
    scale = torch.tensor(factors, dtype=resized.dtype, device=resized.device)
    resized = resized * scale.view(1, -1, *(1,) * len(spatial))
    return resized.to(displacement.dtype)


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
    blurred = at_least_float32(image)  # the weights of a kernel of halves do not add up to 1
    offsets = torch.arange(-radius, radius + 1, dtype=blurred.dtype, device=image.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for axis in range(2, 2 + ndim):
        lines = blurred.movedim(axis, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        blurred = _full_precision(F.conv1d, padded, kernel).view(lines.shape).movedim(-1, axis)
    return blurred.to(image.dtype).contiguous()


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
    full = at_least_float32(matrix)  # half precision cannot tell voxel 2049 from voxel 2048
    grid = identity_grid(sizes, dtype=full.dtype, device=full.device)
    center = torch.tensor(sizes, dtype=full.dtype, device=full.device).sub(1).div(2)
    centered = grid.flatten(1) - center.view(-1, 1)  # (D, voxels)
    linear, shift = full[:, :, :ndim], full[:, :, ndim:]
    identity = torch.eye(ndim, dtype=full.dtype, device=full.device)
    moved = _full_precision(torch.matmul, linear - identity, centered) + shift
    return moved.view(-1, ndim, *sizes).to(matrix.dtype)


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
    shape = require_displacement("displacement", displacement)
    # In slabs across the first axis, so that what is made on the way stays in the cache. Each is
    # cut with the plane before and the plane after it: its differences are then those of the whole.
    planes = max(1, _VOXELS_AT_ONCE // math.prod(shape[1:]))
    slabs = [
        _determinant(displacement[:, :, max(start - 1, 0) : start + planes + 1])[:, (start > 0) :]
        for start in range(0, shape[0], planes)
    ]
    return torch.cat([slab[:, :planes] for slab in slabs], dim=1)


def _determinant(displacement: Tensor) -> Tensor:
    """``det(jacobian(displacement))``: its numbers, but each slope in memory of its own.

    Interleaved with the others, they would take several times as long. In 3D never more than two
    rows stand at once.
    """
    if displacement.ndim == 4:
        (a, b), (c, d) = _slopes(displacement, 0), _slopes(displacement, 1)
        return _cross(a, d, b, c)
    (d, e, f), (g, h, i) = _slopes(displacement, 1), _slopes(displacement, 2)
    normal = _cross(e, i, f, h), _cross(f, g, d, i), _cross(d, h, e, g)  # row 1 × row 2
    del d, e, f, g, h, i
    a, b, c = _slopes(displacement, 0)
    return torch.addcmul(torch.addcmul(a * normal[0], b, normal[1]), c, normal[2])


def _slopes(displacement: Tensor, a: int) -> tuple[Tensor, ...]:
    """Row ``a`` of the Jacobian: ``δ_ab + ∂u_a/∂x_b`` for each ``b``, each ``(B, *spatial)``."""
    slopes = torch.gradient(displacement[:, a], dim=tuple(range(1, displacement.ndim - 1)))
    slopes[a].add_(1)
    return slopes


def _cross(a: Tensor, d: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a d − b c``."""
    return torch.addcmul(a * d, b, c, value=-1)

"""Structure instead of intensity: the descriptor MIND, and the loss that compares two of them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.spatial import at_least_float32
from course_lib.validation import require_image, require_same, require_whole


def mind(image: Tensor, radius: int = 1) -> Tensor:
    """How much the patch around each voxel resembles those around its direct neighbors.

    ``exp(−D_r / V)``, divided by its maximum over the neighbors ``r``: ``D_r(x)`` is the mean
    squared difference between the patches around ``x`` and ``x + r``, and ``V(x)``, the mean of
    ``D_r(x)`` over all ``r``, estimates the local variance. ``V`` is kept between a thousandth
    and a thousand times its mean over the image, and above 1e-12. Beyond the image, its border
    value is repeated.

    This is the variant of 2012 with the six direct neighbors in 3D (four in 2D), not the
    self-similarity context (SSC) of 2013. Its patches are weighted by a Gaussian, ours evenly.

    Unchanged by a gain (an inversion is one), an offset, and nearly by any contrast that changes
    the same way for a voxel and its neighbors.

    Args:
        image: ``(B, C, *spatial)``, floating.
        radius: of the patch in voxels: its edge is ``2 · radius + 1``.

    Returns:
        ``(B, 2 · D · C, *spatial)``, in (0, 1], float32 or better: the neighbors −1 and +1 along
        the first axis, −1 and +1 along the second, …, each for all ``C`` channels; 1 everywhere
        where the image is constant.

    Raises:
        TypeError, ValueError: on a wrong rank, dtype or radius.

    Example:
        >>> edge = torch.zeros(1, 1, 3, 6)
        >>> edge[..., 3:] = 1
        >>> mind(edge, radius=0)[0, 3, 1]  # the neighbor to the right
        tensor([1.0000, 1.0000, 0.0183, 1.0000, 1.0000, 1.0000])

    Source: Heinrich, Jenkinson, Bhushan, Matin, Gleeson, Brady, Schnabel, "MIND: modality
    independent neighbourhood descriptor for multi-modal deformable registration", Medical Image
    Analysis 16(7), 2012. Taught in lesson 16.
    """
    spatial = require_image("image", image)
    values, radius = at_least_float32(image), require_whole("radius", radius, 0)
    axes = range(2, 2 + len(spatial))
    steps = [_neighbor(values, axis, step) for axis in axes for step in (-1, 1)]
    distances = torch.stack([_patch_mean((values - near).square(), radius) for near in steps], 1)
    variance = distances.mean(1, keepdim=True)  # (B, 1, C, *spatial)
    typical = variance.mean(tuple(range(3, variance.ndim)), keepdim=True)
    least = (typical / 1000).clamp(min=1e-12)  # where nothing varies: 0 / 1e-12 is 0
    variance = torch.minimum(torch.maximum(variance, least), (typical * 1000).clamp(min=1e-12))
    # Less the smallest distance first: the largest exponential is 1, and none is lost to zero.
    nearest = distances.amin(1, keepdim=True)
    return torch.exp(-(distances - nearest) / variance).flatten(1, 2)


def mind_loss(warped: Tensor, fixed: Tensor, radius: int = 1) -> Tensor:
    """Mean squared difference of two images' descriptors: 0 where their structure is the same.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating, each in its own unit of intensity.
        radius: of the patches of :func:`mind`, in voxels.

    Returns:
        A scalar in [0, 1], float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or radius.

    Source: that of :func:`mind`. Taught in lesson 16.
    """
    require_image("warped", warped)
    require_image("fixed", fixed)
    require_same("warped", warped, "fixed", fixed)
    return F.mse_loss(mind(warped, radius), mind(fixed, radius))


def _neighbor(image: Tensor, axis: int, step: int) -> Tensor:
    """The value one voxel further along the axis, at each voxel; the border value outside."""
    n = image.shape[axis]
    index = (torch.arange(n, device=image.device) + step).clamp(0, n - 1)
    return image.index_select(axis, index)


def _patch_mean(values: Tensor, radius: int) -> Tensor:
    """The mean over the patch around each voxel; the border value is repeated outside."""
    if radius == 0:
        return values
    ndim = values.ndim - 2
    padded = F.pad(values, (radius, radius) * ndim, mode="replicate")
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    return pool(padded, 2 * radius + 1, stride=1)

"""What is minimized: scalars that fall as the images agree and the field becomes smooth."""

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.spatial import at_least_float32
from course_lib.validation import (
    require_displacement,
    require_image,
    require_mask,
    require_same,
    require_whole,
)

_EPSILON = 1e-5


def mse(warped: Tensor, fixed: Tensor) -> Tensor:
    """Mean squared difference: 0 where the images are equal.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating.

    Returns:
        A scalar of 0 and above, in squared intensity units.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device.

    Taught in lesson 13.
    """
    _require_pair(warped, fixed)
    return (warped - fixed).square().mean()


def ncc(warped: Tensor, fixed: Tensor) -> Tensor:
    """Minus Pearson's correlation over each whole image, averaged over the batch.

    ``−cov(a, b) / √(var(a) var(b) + 1e-10)``: unchanged by a gain and an offset of either image.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating.

    Returns:
        A scalar in [−1, 1]; −1 where one image is a gain and an offset of the other; 0 for a
        constant image.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device.

    Taught in lesson 13.
    """
    _require_pair(warped, fixed)
    a, b = at_least_float32(warped).flatten(1), at_least_float32(fixed).flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    covariance = (a * b).mean(1)
    return -(covariance / (a.square().mean(1) * b.square().mean(1) + 1e-10).sqrt()).mean()


def lncc(
    warped: Tensor,
    fixed: Tensor,
    window: int = 9,
    *,
    squared: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """Minus the squared correlation in a window around each voxel, averaged over the voxels.

    With sums over the window (zeros outside the image, means by the full window size ``n``):
    ``cross = Σab − Σa Σb / n``, ``var_a = Σa² − (Σa)² / n``, and
    ``cc² = cross² / (var_a var_b + 1e-5)``. Each channel by itself.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating, intensities of about 0 to 1.
        window: edge of the window in voxels, odd, at most the image's smallest size.
        squared: whether an inverted contrast counts as agreement (cc² instead of cc).
        mask: ``(B, 1, *spatial)``, weights of 0 and above; the mean is taken under it.

    Returns:
        A scalar in [−1, 0] (squared) or [−1, 1].

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or window.

    Source: Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, "VoxelMorph", TMI 38(8), 2019.
    Taught in lesson 13.
    """
    spatial = _require_pair(warped, fixed)
    _require_window(window, spatial)
    warped, fixed = at_least_float32(warped), at_least_float32(fixed)
    size = window ** len(spatial)
    sums = _window_sums(
        torch.cat([warped, fixed, warped * warped, fixed * fixed, warped * fixed], dim=1), window
    )
    a, b, aa, bb, ab = sums.chunk(5, dim=1)
    cross = ab - a * b / size
    # A flat window's variance is lost in rounding and may come out below zero: a quotient of noise.
    variances = (aa - a * a / size).clamp(min=0) * (bb - b * b / size).clamp(min=0) + _EPSILON
    cc = cross * cross / variances if squared else cross / variances.sqrt()
    cc = cc.clamp(-1, 1)
    if mask is None:
        return -cc.mean()
    weights = require_mask("mask", mask, "fixed", fixed).to(cc.dtype).expand_as(cc)
    return -(cc * weights).sum() / weights.sum()


def _window_sums(images: Tensor, window: int) -> Tensor:
    """Sum over the window around each voxel, one axis after the other; zeros outside."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    ndim = images.ndim - 2
    for axis in range(ndim):
        kernel = [window if other == axis else 1 for other in range(ndim)]
        images = pool(images, kernel, stride=1, padding=[k // 2 for k in kernel])
    return images * window**ndim


def diffusion(displacement: Tensor) -> Tensor:
    """Mean squared forward difference: 0 for a constant field.

    ``1/D Σ_b mean((u_a(x + e_b) − u_a(x))²)``, where the mean is over components ``a`` and voxels.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels.

    Returns:
        A scalar of 0 and above.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Taught in lesson 14.
    """
    ndim = len(require_displacement("displacement", displacement))
    per_axis = [displacement.diff(dim=2 + axis).square().mean() for axis in range(ndim)]
    return torch.stack(per_axis).mean()


def _require_pair(warped: Tensor, fixed: Tensor) -> tuple[int, ...]:
    require_image("warped", warped)
    spatial = require_image("fixed", fixed)
    require_same("warped", warped, "fixed", fixed)
    return spatial


def _require_window(window: int, spatial: tuple[int, ...]) -> None:
    if require_whole("window", window, 1) % 2 == 0 or window > min(spatial):
        raise ValueError(
            f"window: expected an odd number from 1 to the smallest axis of {spatial}, got {window}"
        )

"""What is minimized: scalars that fall as the images agree and the field becomes smooth."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from course_lib.local_ncc import correlation_map
from course_lib.spatial import at_least_float32
from course_lib.validation import (
    require_displacement,
    require_image,
    require_mask,
    require_same,
    require_whole,
)


def mse(warped: Tensor, fixed: Tensor) -> Tensor:
    """Mean squared difference: 0 where the images are equal.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating.

    Returns:
        A scalar of 0 and above, float32 or better, in squared intensity units.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device.

    Taught in lesson 13.
    """
    _require_pair(warped, fixed)
    # Subtracts, squares and averages at once, and keeps no image of differences.
    return F.mse_loss(at_least_float32(warped), at_least_float32(fixed))


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
    ``cc² = cross² / (var_a var_b + 1e-5)``. Each channel by itself. ``local_ncc.py`` has the
    formula as plain code, and beside it the fast version that runs here.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating, intensities of about 0 to 1.
        window: edge of the window in voxels, odd, at most the image's smallest size.
        squared: whether an inverted contrast counts as agreement (cc² instead of cc).
        mask: ``(B, 1, *spatial)``, weights of 0 and above; the mean is taken under it.

    Returns:
        A scalar in [−1, 0] (squared) or [−1, 1], float32 or better; NaN where an image has one.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or window.
        RuntimeError: from a second derivative, which the fast version does not have.

    Source: Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, "VoxelMorph", TMI 38(8), 2019.
    Taught in lesson 13.
    """
    spatial = _require_pair(warped, fixed)
    _require_window(window, spatial)
    if mask is not None:
        require_mask("mask", mask, "fixed", fixed)
    cc = correlation_map(warped, fixed, window, squared)
    if mask is None:
        return -cc.mean()
    weights = mask.to(cc.dtype).expand_as(cc)
    return -(cc * weights).sum() / weights.sum()


def mutual_information(warped: Tensor, fixed: Tensor, bins: int = 32) -> Tensor:
    """Minus the mutual information: how much one image's intensity says about the other's, in nats.

    ``−Σ p log(p / (p_a p_b))`` over the joint histogram ``p``, whose ``bins`` lie evenly from the
    smallest to the largest intensity of each image. A voxel is shared linearly between the two bins
    around its intensity (a Parzen window of two bins), so the histogram has a gradient. Each
    channel of each item by itself, then the mean. The range counts as given: it has no gradient,
    or two voxels, the darkest and the brightest, would outweigh all others.

    Unchanged by a gain and an offset, by an inverted contrast, and by exchanging the images.
    Independent images give a little more than no information, about ``(bins − 1)² / 2`` over the
    number of voxels or less. Mattes' and MONAI's windows are wider, so their values differ: compare
    rankings.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating, in any unit of intensity.
        bins: of each axis of the histogram, 2 or more.

    Returns:
        A scalar in [−log(bins), 0], float32 or better; 0 where an image is constant, NaN where one
        has a NaN or an infinity.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or number of bins.

    Source: Mattes, Haynor, Vesselle, Lewellen, Eubank, "PET-CT image registration in the chest
    using free-form deformations", TMI 22(1), 2003, with a narrower window. Taught in lesson 16.
    """
    _require_pair(warped, fixed)
    bins = require_whole("bins", bins, 2)
    a, b = _in_bins(warped, bins), _in_bins(fixed, bins)
    joint = _JointHistogram.apply(a, b, bins)  # (B, C, bins, bins)
    joint_entropy = _entropy(joint.flatten(2))
    information = _entropy(joint.sum(3)) + _entropy(joint.sum(2)) - joint_entropy
    return -information.mean().to(torch.promote_types(a.dtype, b.dtype))


def _in_bins(image: Tensor, bins: int) -> Tensor:
    """Each voxel's place between 0, its image's smallest value, and bins − 1: (B, C, voxels)."""
    values = at_least_float32(image).flatten(2)
    low, high = values.detach().amin(2, keepdim=True), values.detach().amax(2, keepdim=True)
    # A constant image has no range. Divided by infinity, it lies in the first bin, with slope 0.
    width = high - low
    width = width.masked_fill(width < bins * torch.finfo(width.dtype).tiny, torch.inf)
    return (values - low) / width * (bins - 1)


def _entropy(frequencies: Tensor) -> Tensor:
    """``−Σ p log p`` over the last axis."""
    # An empty bin adds nothing, but the slope of p log p at 0 is infinite: 1e-12 bounds it.
    return -(frequencies * frequencies.clamp(min=1e-12).log()).sum(-1)


class _JointHistogram(Function):
    """The fraction of voxels in each pair of bins: (B, C, voxels) twice -> (B, C, bins, bins).

    A voxel at ``i + s`` and ``j + t`` in units of bins adds ``(1 − s)(1 − t)`` to the bin
    ``(i, j)``, ``s (1 − t)`` to ``(i + 1, j)``, ``(1 − s) t`` to ``(i, j + 1)`` and ``s t`` to
    ``(i + 1, j + 1)``. So its slope by ``s`` is read off the histogram's own gradient ``G``:
    ``(1 − t) (G[i + 1, j] − G[i, j]) + t (G[i + 1, j + 1] − G[i, j + 1])``. Four additions a voxel
    one way, two look-ups the other, whatever the number of bins.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor, bins: int) -> Tensor:
        (i, s), (j, t) = _bin_and_rest(a, bins), _bin_and_rest(b, bins)
        items = torch.arange(a.shape[0] * a.shape[1], device=a.device).view(*a.shape[:2], 1)
        corner = ((items * bins + i) * bins + j).flatten()  # of the flat histogram
        # In float64: a bin that has counted a million no longer feels a tenth in float32.
        counts = torch.zeros(items.numel() * bins * bins, dtype=torch.float64, device=a.device)
        for up, weight_a in enumerate((1 - s, s)):
            for right, weight_b in enumerate((1 - t, t)):
                weights = (weight_a * weight_b).flatten().double()
                counts[up * bins + right :].scatter_add_(0, corner, weights)
        return counts.view(*a.shape[:2], bins, bins) / a.shape[2]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *positions, ctx.bins = inputs
        ctx.save_for_backward(*positions)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        G = upstream[0] / a.shape[2]
        slope_a = _slope_in_bins(a, b, G, ctx.bins) if ctx.needs_input_grad[0] else None
        slope_b = _slope_in_bins(b, a, G.mT, ctx.bins) if ctx.needs_input_grad[1] else None
        return slope_a, slope_b, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        a, b, bins = inputs
        # What is mapped over becomes more items of the batch.
        a, b = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((a, b), in_dims[:2], strict=True)
        )
        joint = _JointHistogram.apply(a.flatten(0, 1), b.flatten(0, 1), bins)
        return joint.unflatten(0, (info.batch_size, -1)), 0


def _bin_and_rest(positions: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The bin to the left, and how far it is: 3.2 is 3 and 0.2; the last bin is 1 from its left."""
    left = positions.floor().clamp(0, bins - 2)
    return left.nan_to_num(0).long(), positions - left


def _slope_in_bins(a: Tensor, b: Tensor, G: Tensor, bins: int) -> Tensor:
    """The slope of each voxel by its position in ``a``, from ``G``, that of (B, C, bins, bins)."""
    (i, _), (j, t) = _bin_and_rest(a, bins), _bin_and_rest(b, bins)
    steps = G.diff(dim=2).to(a.dtype).flatten(2)  # G[i + 1, j] − G[i, j], at i · bins + j
    corner = i * bins + j
    left, right = steps.gather(2, corner), steps.gather(2, corner + 1)
    return torch.lerp(left, right, t.to(a.dtype))


def dice_loss(warped: Tensor, fixed: Tensor) -> Tensor:
    """One minus the overlap of soft label maps: 0 where they are equal, 1 where they are apart.

    ``1 − mean(2 Σab / (Σa² + Σb²))``, sums over the voxels, mean over the structures of all items
    that are in at least one of the two images. For maps of zeros and ones this is the Dice that
    ``metrics.dice`` reports; the squares make soft maps that are equal give 0 as well.

    A structure that is absent in both counts for nothing; one that is absent in one counts as 0
    overlap, and pulls on nothing where it is the fixed image that lacks it. Leave the background's
    map out, as ``metrics.dice`` does: it is large, and nearly always right.

    Args:
        warped, fixed: ``(B, L, *spatial)``, floating, one map in [0, 1] for each structure: labels
            one-hot, then warped linearly, so that the overlap has a gradient.

    Returns:
        A scalar in [0, 1], float32 or better; 0 where there is no structure at all.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device.

    Example:
        >>> labels = torch.tensor([[[[0, 1, 1], [2, 2, 0]]]])
        >>> maps = torch.cat([labels == value for value in (1, 2)], dim=1).float()
        >>> float(dice_loss(maps, maps)), float(dice_loss(maps, maps.flip(1)))
        (0.0, 1.0)

    Source: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016. Taught in lesson 15.
    """
    _require_pair(warped, fixed)
    a, b = at_least_float32(warped).flatten(2), at_least_float32(fixed).flatten(2)
    both, sizes = (a * b).sum(2), a.square().sum(2) + b.square().sum(2)
    present = sizes != 0  # (B, L); a NaN counts as present, to be seen in the result
    overlap = 2 * both / sizes.masked_fill(~present, 1)
    return ((1 - overlap) * present).sum() / present.sum().clamp(min=1)


def diffusion(displacement: Tensor) -> Tensor:
    """Mean squared forward difference: 0 for a constant field.

    ``1/D Σ_b mean((u_a(x + e_b) − u_a(x))²)``, where the mean is over components ``a`` and voxels.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels.

    Returns:
        A scalar of 0 and above, float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Taught in lesson 14.
    """
    ndim = len(require_displacement("displacement", displacement))
    field = at_least_float32(displacement)
    return torch.stack([_steps(field, axis, 1) for axis in range(2, 2 + ndim)]).mean()


def bending_energy(displacement: Tensor) -> Tensor:
    """Mean squared second difference: 0 for an affine field, which ``diffusion`` would penalize.

    ``Σ_ab mean((∂²u/∂x_a ∂x_b)²)`` over all pairs of axes, so that mixed ones count twice; the
    mean is over items, components and the voxels that have neighbors on all sides. Differences are
    ``u(x + e_a) − 2 u(x) + u(x − e_a)``, and central ones for the mixed pairs.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels, at least 3 along each axis.

    Returns:
        A scalar of 0 and above, float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype.

    Source: Rueckert, Sonoda, Hayes, Hill, Leach, Hawkes, "Nonrigid registration using free-form
    deformations", TMI 18(8), 1999. Taught in lesson 14.
    """
    spatial = require_displacement("displacement", displacement)
    if min(spatial) < 3:
        raise ValueError(f"displacement: expected at least 3 voxels along each axis, got {spatial}")
    field = at_least_float32(displacement)
    axes = range(2, 2 + len(spatial))
    energy = field.new_zeros(())
    for a in axes:
        energy = energy + _steps(_inside(field, a).diff(dim=a), a, 1)
        for b in axes[a - 1 :]:
            # A central difference along a, taken again along b: (half of each)² is a sixteenth.
            plane, size = _inside(field, a, b), spatial[a - 2] - 2
            across = plane.narrow(a, 2, size) - plane.narrow(a, 0, size)
            energy = energy + 2 * _steps(across, b, 2) / 16
    return energy


def _steps(field: Tensor, axis: int, stride: int) -> Tensor:
    """Mean squared difference between voxels ``stride`` apart along the axis.

    ``mse_loss`` subtracts, squares and averages at once and keeps no image of differences.
    """
    size = field.shape[axis] - stride
    return F.mse_loss(field.narrow(axis, stride, size), field.narrow(axis, 0, size))


def _inside(field: Tensor, *but: int) -> Tensor:
    """Without the border voxels of all spatial axes ``but`` these."""
    for axis in range(2, field.ndim):
        if axis not in but:
            field = field.narrow(axis, 1, field.shape[axis] - 2)
    return field


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

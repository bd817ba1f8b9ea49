"""What is reported: numbers with a unit, one for each item of the batch, never minimized here."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from course_lib.spatial import at_least_float32, jacobian_determinant, warp_points
from course_lib.validation import (
    require_displacement,
    require_finite,
    require_image,
    require_labels,
    require_mask,
    require_points,
    require_same,
    require_spacing,
)

# A table of the pairs of labels has room for as many; others are renumbered first.
_TABLE = 1024

# Voxels that are counted at once on a CPU: what is made of them stays in the processor's cache.
_CHUNK = 2**18


def dice(a: Tensor, b: Tensor, values: Sequence[int] | None = None) -> Tensor:
    """Overlap of each structure: ``2 |A ∩ B| / (|A| + |B|)``.

    All structures in one pass: a table of how often each label of ``a`` meets each label of ``b``.

    Args:
        a, b: label maps ``(B, 1, *spatial)`` of an integer dtype.
        values: the structures to compare; the sorted union over the batch without 0 if None.

    Returns:
        ``(B, L)``, from 0 to 1; NaN where a structure is absent in both, 0 where in one.

    Raises:
        TypeError, ValueError: on floating or negative labels, or a wrong rank, shape or device.

    Example:
        >>> a, b = torch.tensor([[1, 1], [0, 2]]), torch.tensor([[1, 0], [0, 2]])
        >>> [round(float(d), 2) for d in dice(a[None, None], b[None, None])[0]]
        [0.67, 1.0]

    Taught in lesson 15.
    """
    largest = _require_label_maps(a, b)
    wanted = None if values is None else _require_values(values, a.device)
    if largest < _TABLE:
        known = torch.arange(largest + 1, device=a.device)
    else:  # FreeSurfer counts to 14 175, with gaps: number anew, with one number for all the others
        known = _union(a, b) if wanted is None else wanted.sort().values
        a, b = _positions(a, known), _positions(b, known)
    size = len(known) + 1
    table = torch.stack([_joint_counts(x, y, size) for x, y in zip(a, b, strict=True)])
    both, total = table.diagonal(dim1=1, dim2=2), table.sum(1) + table.sum(2)  # (B, size)
    if wanted is None:
        wanted = _some(known[(total[:, :-1].sum(0) > 0) & (known != 0)])
    columns = _positions(wanted[None], known)[0]
    return 2 * both[:, columns] / total[:, columns]


def _require_label_maps(a: Tensor, b: Tensor) -> int:
    """Check both, and return their largest label."""
    largest = require_labels("a", a)
    require_image("b", b, floating=False)
    require_same("b", b, "a", a)
    return max(largest, require_labels("b", b))


def _require_values(values: Sequence[int], device: torch.device) -> Tensor:
    try:
        wanted = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"values: expected whole numbers, got {values!r}") from None
    if wanted.ndim != 1 or (wanted.is_floating_point() and len(wanted)):
        raise TypeError(f"values: expected a sequence of whole numbers, got {values!r}")
    if len(wanted.unique()) != len(wanted):
        raise ValueError(f"values: expected each label once, got {values!r}")
    return _some(wanted.long())


def _some(wanted: Tensor) -> Tensor:
    if len(wanted) == 0:
        raise ValueError("values: expected at least one label, got none; both images are empty")
    return wanted


def _union(a: Tensor, b: Tensor) -> Tensor:
    """All labels of both maps but 0, sorted."""
    union = torch.cat([a.flatten().long(), b.flatten().long()]).unique()
    return union[union != 0]


def _positions(labels: Tensor, ordered: Tensor) -> Tensor:
    """For each voxel the index of its label in ``ordered``; ``len(ordered)`` for other labels."""
    flat = labels.flatten(1).long()
    index = torch.searchsorted(ordered, flat).clamp(max=len(ordered) - 1)
    return torch.where(ordered[index] == flat, index, len(ordered))


def _joint_counts(a: Tensor, b: Tensor, size: int) -> Tensor:
    """``counts[x, y]``: at how many voxels ``a`` is x and ``b`` is y; both below ``size``."""
    counts = torch.zeros(size * size, dtype=torch.long, device=a.device)
    chunk = min(_CHUNK, a.numel()) if a.device.type == "cpu" else a.numel()
    pairs = torch.empty(chunk, dtype=torch.long, device=a.device)
    for x, y in zip(a.flatten().split(chunk), b.flatten().split(chunk), strict=True):
        part = torch.add(y.long(), x.long(), alpha=size, out=pairs[: len(x)])  # x · size + y
        counts += torch.bincount(part, minlength=len(counts))
    return counts.view(size, size)


def hausdorff95(
    a: Tensor,
    b: Tensor,
    spacing: Sequence[float] | None = None,
    values: Sequence[int] | None = None,
) -> Tensor:
    """How far the surfaces of a structure lie apart, but for the farthest 5 percent.

    The surface of a structure: its voxels with a face neighbor that is not of it; what lies outside
    the image is not. From each surface voxel of one map, the distance to the nearest surface voxel
    of the other, center to center; the 95th percentile of these (linear between the ranks); then
    the larger of both directions. MONAI's ``compute_hausdorff_distance(percentile=95)`` is the
    same; the plain Hausdorff distance is the 100th percentile.

    Args:
        a, b: label maps ``(B, 1, *spatial)`` of an integer dtype.
        spacing: mm per voxel along each axis; the result is in mm with it, in voxels without.
        values: the structures to compare; the sorted union over the batch without 0 if None.

    Returns:
        ``(B, L)``, in mm or voxels, 0 and above; NaN where a structure is absent in both, infinite
        where in one: no distance is bad enough for a structure that was lost.

    Raises:
        TypeError, ValueError: on floating or negative labels, or a wrong rank, shape, device or
            spacing.

    Example:
        >>> a = torch.zeros(1, 1, 5, 9).long()
        >>> a[0, 0, 2, 1] = 1
        >>> hausdorff95(a, a.roll(3, dims=3), spacing=(1.0, 2.0))
        tensor([[6.]])

    Source: Huttenlocher, Klanderman, Rucklidge, "Comparing images using the Hausdorff distance",
    IEEE PAMI 15(9), 1993, with a percentile for their rank. Taught in lesson 15.
    """
    _require_label_maps(a, b)
    sizes = require_spacing("spacing", spacing, a.ndim - 2)
    scale = np.ones(a.ndim - 2) if sizes is None else sizes.numpy()
    if values is None:
        wanted = _some(_union(a, b)).tolist()
    else:
        wanted = _require_values(values, a.device).tolist()
    rows = []
    for x, y in zip(a[:, 0], b[:, 0], strict=True):
        surfaces = _surfaces(x, wanted, scale), _surfaces(y, wanted, scale)
        rows.append([_percentile95(*pair) for pair in zip(*surfaces, strict=True)])
    return torch.tensor(rows, device=a.device)


def _surfaces(
    labels: Tensor, values: Sequence[int], scale: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """The surface voxels of each structure in one map: ``(points, D)`` each, in mm."""
    labels = labels.long().cpu()
    surface = torch.zeros_like(labels, dtype=torch.bool)
    for axis, size in enumerate(labels.shape):
        differs = labels.diff(dim=axis) != 0  # between each voxel and the next one
        surface.narrow(axis, 0, size - 1).logical_or_(differs)
        surface.narrow(axis, 1, size - 1).logical_or_(differs)
        surface.select(axis, 0).fill_(True)  # its neighbor lies outside the image
        surface.select(axis, size - 1).fill_(True)
    points, names = surface.nonzero().numpy() * scale, labels[surface].numpy()
    return [points[names == value] for value in values]


def _percentile95(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """The larger of both directions' 95th percentiles of the distance to the nearest point."""
    if len(p) == 0 or len(q) == 0:
        return np.nan if len(p) == len(q) else np.inf
    there, back = KDTree(q).query(p)[0], KDTree(p).query(q)[0]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def target_registration_error(
    fixed_points: Tensor,
    moving_points: Tensor,
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """How far each landmark of the fixed image lands from its partner: ``|p + u(p) − q|``.

    Points go from the fixed image to the moving one, the other way round than intensities. The
    displacement is interpolated linearly, and extended by its border value.

    Args:
        fixed_points: ``(B, N, D)``, in voxels of the fixed image.
        moving_points: ``(B, N, D)``, in voxels of the moving image.
        displacement: ``(B, D, *spatial)``, in voxels, on the grid of the fixed image.
        spacing: mm per voxel along each axis; the result is in mm with it, in voxels without.

    Returns:
        ``(B, N)``, in mm or voxels.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or spacing, or values that are
            not finite.

    Example:
        >>> p, u = torch.tensor([[[1.0, 1.0]]]), torch.zeros(1, 2, 4, 5)
        >>> target_registration_error(p, p + torch.tensor([3.0, 4.0]), u)
        tensor([[5.]])

    Taught in lesson 15.
    """
    ndim = len(require_displacement("displacement", displacement))
    require_points("fixed_points", fixed_points, "displacement", displacement)
    require_points("moving_points", moving_points, "displacement", displacement)
    require_same("moving_points", moving_points, "fixed_points", fixed_points)
    require_finite("fixed_points", fixed_points)
    require_finite("moving_points", moving_points)
    require_finite("displacement", displacement)
    landed = warp_points(at_least_float32(fixed_points), displacement)
    miss = landed - at_least_float32(moving_points)
    sizes = require_spacing("spacing", spacing, ndim)
    return (miss if sizes is None else miss * sizes.to(miss)).norm(dim=2)


def endpoint_error(
    displacement: Tensor,
    truth: Tensor,
    spacing: Sequence[float] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean distance between where two fields send the same voxel.

    Args:
        displacement, truth: ``(B, D, *spatial)``, in voxels.
        spacing: mm per voxel along each axis; the result is in mm with it, in voxels without.
        mask: ``(B, 1, *spatial)``, the voxels that count.

    Returns:
        ``(B,)``, in mm or voxels.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or spacing, an empty mask, or values
            that are not finite.

    Taught in lesson 15.
    """
    ndim = len(require_displacement("displacement", displacement))
    require_displacement("truth", truth)
    require_same("truth", truth, "displacement", displacement)
    require_finite("displacement", displacement)
    require_finite("truth", truth)
    difference = at_least_float32(displacement) - at_least_float32(truth)
    sizes = require_spacing("spacing", spacing, ndim)
    if sizes is not None:
        difference = difference * sizes.to(difference).view(1, -1, *(1,) * ndim)
    return _masked_mean(difference.norm(dim=1, keepdim=True), mask)


def folding_fraction(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fraction of the voxels where the Jacobian determinant is zero or negative.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels.
        mask: ``(B, 1, *spatial)``, the voxels that count.

    Returns:
        ``(B,)``, from 0 to 1.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype, an empty mask, or values that are
            not finite.

    Taught in lesson 14.
    """
    require_displacement("displacement", displacement)
    require_finite("displacement", displacement)
    folded = jacobian_determinant(at_least_float32(displacement)).unsqueeze(1) <= 0
    return _masked_mean(at_least_float32(folded), mask)


def sdlogj(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """SDlogJ as Learn2Reg reports it: the spread of ``log(det + 3)``, 0 where all volumes agree.

    The standard deviation over the voxels (divided by their number) of ``log(clip(det + 3, 1e-9,
    1e9))``, where ``det`` is :func:`~course_lib.spatial.jacobian_determinant`. The 3 is what the
    challenge's code adds and its name does not tell: folds down to −3 count as finite, and for
    small deformations the number is a quarter of the standard deviation of ``log(det)``. So compare
    it with tables of Learn2Reg, not with others. Learn2Reg leaves out two voxels at each border:
    give it a mask.

    Args:
        displacement: ``(B, D, *spatial)``, in voxels.
        mask: ``(B, 1, *spatial)``, the voxels that count.

    Returns:
        ``(B,)``, 0 and above, without unit.

    Raises:
        TypeError, ValueError: on a wrong rank, shape or dtype, an empty mask, or values that are
            not finite.

    Source: Hering et al., "Learn2Reg: comprehensive multi-task medical image registration
    challenge, dataset and evaluation in the era of deep learning", IEEE TMI 42(3), 2023, and the
    evaluation code of the challenge. Taught in lesson 15.
    """
    require_displacement("displacement", displacement)
    require_finite("displacement", displacement)
    determinant = jacobian_determinant(at_least_float32(displacement)).unsqueeze(1)
    logarithm = (determinant.double() + 3).clamp(1e-9, 1e9).log()
    mean = _masked_mean(logarithm, mask).view(-1, *(1,) * (logarithm.ndim - 1))
    return _masked_mean((logarithm - mean).square(), mask).sqrt().to(determinant.dtype)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of two images over all their voxels and channels.

    Args:
        a, b: ``(B, C, *spatial)``, floating.

    Returns:
        ``(B,)``, from −1 to 1, float32 or better; NaN where an image is constant and the
        correlation has no meaning.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device, or values that are not
            finite.

    Taught in lesson 13.
    """
    require_image("a", a)
    require_image("b", b)
    require_same("b", b, "a", a)
    require_finite("a", a)
    require_finite("b", b)
    # In float64: the variance of a bright, flat image drowns in float32's rounding.
    x, y = a.flatten(1).double(), b.flatten(1).double()
    return (_unit(x) * _unit(y)).sum(1).to(torch.promote_types(a.dtype, torch.float32))


def _unit(x: Tensor) -> Tensor:
    """Each row without its mean, of length 1; NaN where nothing but rounding would be left."""
    centered = x - x.mean(1, keepdim=True)
    length = centered.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-12 * x.norm(dim=1, keepdim=True), centered / length, torch.nan)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` (B, 1, *spatial) for each item of the batch, under the mask if given."""
    if mask is None:
        return values.flatten(1).mean(1)
    weights = require_mask("mask", mask, "displacement", values).to(values.dtype).flatten(1)
    total = weights.sum(1)
    if not bool((total > 0).all() and (weights >= 0).all()):
        raise ValueError(
            "mask: expected weights of 0 and above, some of them positive in each item of the batch"
        )
    return (values.flatten(1) * weights).sum(1) / total

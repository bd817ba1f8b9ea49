"""What is reported: numbers with a unit, one for each item of the batch, never minimized here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.spatial import at_least_float32, jacobian_determinant
from course_lib.validation import (
    require_displacement,
    require_finite,
    require_image,
    require_labels,
    require_mask,
    require_same,
    require_spacing,
)


def dice(a: Tensor, b: Tensor, values: Sequence[int] | None = None) -> Tensor:
    """Overlap of each structure: ``2 |A ∩ B| / (|A| + |B|)``.

    All structures in one pass: a histogram of the pairs ``(label in a, label in b)``.

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
    require_labels("a", a)
    require_image("b", b, floating=False)
    require_same("b", b, "a", a)
    require_labels("b", b)
    if values is None:
        union = torch.cat([a.flatten().long(), b.flatten().long()]).unique()
        wanted = union[union != 0]
    else:
        wanted = _require_values(values, a.device)
    if len(wanted) == 0:
        raise ValueError("values: expected at least one label, got none; both images are empty")
    ordered, order = wanted.sort()
    batch, bins = a.shape[0], len(ordered) + 1
    item = torch.arange(batch, device=a.device).view(-1, 1)
    pairs = (item * bins + _positions(a, ordered)) * bins + _positions(b, ordered)
    counts = torch.bincount(pairs.flatten(), minlength=batch * bins * bins)
    counts = counts.view(batch, bins, bins)
    both = counts.diagonal(dim1=1, dim2=2)
    overlap = (2 * both / (counts.sum(1) + counts.sum(2)))[:, :-1]  # the last bin: other labels
    return overlap[:, order.argsort()]


def _require_values(values: Sequence[int], device: torch.device) -> Tensor:
    try:
        wanted = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"values: expected whole numbers, got {values!r}") from None
    if wanted.ndim != 1 or (wanted.is_floating_point() and len(wanted)):
        raise TypeError(f"values: expected a sequence of whole numbers, got {values!r}")
    if len(wanted.unique()) != len(wanted):
        raise ValueError(f"values: expected each label once, got {values!r}")
    return wanted.long()


def _positions(labels: Tensor, ordered: Tensor) -> Tensor:
    """For each voxel the index of its label in ``ordered``; ``len(ordered)`` for other labels."""
    flat = labels.flatten(1).long()
    index = torch.searchsorted(ordered, flat).clamp(max=len(ordered) - 1)
    return torch.where(ordered[index] == flat, index, len(ordered))


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
    folded = jacobian_determinant(displacement).unsqueeze(1) <= 0
    return _masked_mean(at_least_float32(folded), mask)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of two images over all their voxels and channels.

    Args:
        a, b: ``(B, C, *spatial)``, floating.

    Returns:
        ``(B,)``, from −1 to 1; NaN where an image is constant and the correlation has no meaning.

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
    return ((_unit(x) * _unit(y)).sum(1)).to(a.dtype)


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

"""Pairs of images to register, with everything that is known about them."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import EllipsisType
from typing import NamedTuple

import pooch
import torch
from torch import Tensor

from course_lib.spatial import smooth
from course_lib.validation import require_image, require_same


class Pair(NamedTuple):
    """A moving and a fixed image, batch axis included; what is unknown is None.

    Attributes:
        moving, fixed: ``(B, 1, *spatial)``, float32, from 0 to 1.
        moving_labels, fixed_labels: ``(B, 1, *spatial)``, int64.
        displacement: ``(B, D, *spatial)``, in voxels, such that ``fixed ≈ warp(moving,
            displacement)`` up to contrast and noise.
        spacing: mm per voxel along each axis.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None
    displacement: Tensor | None = None
    spacing: tuple[float, ...] | None = None


def collate(pairs: Sequence[Pair]) -> Pair:
    """Join pairs along the batch axis; a part that any of them lacks is None.

    Args:
        pairs: at least one, of equal spatial shape and spacing.

    Returns:
        One :class:`Pair` whose batch is all of theirs in order.

    Raises:
        ValueError: if there is none, or they differ in spatial shape or spacing.
    """
    if not isinstance(pairs, Sequence):
        raise TypeError(f"pairs: expected a sequence of Pair, got {type(pairs).__name__}")
    if not pairs:
        raise ValueError("pairs: expected at least one, got none")
    for pair in pairs:
        if not isinstance(pair, Pair):
            raise TypeError(f"pairs: expected Pair, got {type(pair).__name__}")
        for ours, first in zip(pair[:5], pairs[0][:5], strict=True):
            if ours is not None and first is not None and ours.shape[1:] != first.shape[1:]:
                raise ValueError(
                    "pairs: expected equal channels and spatial shapes, got "
                    f"{tuple(ours.shape)} beside {tuple(first.shape)}"
                )
        if pair.spacing != pairs[0].spacing:
            raise ValueError(
                "pairs: expected equal spatial shape and spacing, got "
                f"{tuple(pair.fixed.shape[2:])} at {pair.spacing} beside "
                f"{tuple(pairs[0].fixed.shape[2:])} at {pairs[0].spacing}"
            )
    return Pair(
        moving=torch.cat([pair.moving for pair in pairs]),
        fixed=torch.cat([pair.fixed for pair in pairs]),
        moving_labels=_join([pair.moving_labels for pair in pairs]),
        fixed_labels=_join([pair.fixed_labels for pair in pairs]),
        displacement=_join([pair.displacement for pair in pairs]),
        spacing=pairs[0].spacing,
    )


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


def cache_folder(folder: str | PathLike[str] | None) -> Path:
    """Where data sets keep files: ``folder``, or the user's cache folder of this system for None.

    Raises:
        TypeError: on what is no path.
    """
    if folder is None:
        return Path(pooch.os_cache("registration-course"))
    if not isinstance(folder, str | PathLike):
        raise TypeError(f"folder: expected a path, got {type(folder).__name__}")
    return Path(folder)


def halve(pair: Pair) -> Pair:
    """Every other voxel along each axis, the images blurred before: quick to register.

    The first voxel stays the first. A displacement of two voxels becomes one of one voxel, and the
    spacing doubles.

    Args:
        pair: a :class:`Pair` with at least 3 voxels along each axis.

    Returns:
        One with sizes of ``⌈n / 2⌉``; what is unknown stays None.

    Raises:
        TypeError, ValueError: if that is no :class:`Pair` of floating images of one shape, with at
            least 3 voxels along each axis.

    Used in lesson 14.
    """
    if not isinstance(pair, Pair):
        raise TypeError(f"pair: expected a Pair, got {type(pair).__name__}")
    spatial = require_image("pair.fixed", pair.fixed)
    require_image("pair.moving", pair.moving)
    require_same("pair.moving", pair.moving, "pair.fixed", pair.fixed)
    if min(spatial) < 3:
        raise ValueError(f"pair: expected at least 3 voxels along each axis, got {spatial}")
    other: tuple[EllipsisType | slice, ...] = (..., *(slice(None, None, 2),) * len(spatial))
    moving, fixed = (smooth(image, 0.8)[other] for image in (pair.moving, pair.fixed))
    labels = [part if part is None else part[other] for part in pair[2:4]]
    field = None if pair.displacement is None else pair.displacement[other] / 2
    spacing = None if pair.spacing is None else tuple(2 * size for size in pair.spacing)
    return Pair(moving, fixed, labels[0], labels[1], field, spacing)

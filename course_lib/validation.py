"""Refusals: every public function says which argument is wrong, what it expected and what came.

The ``require_*`` functions look at rank, shape, dtype and device only, never at values, so they
cost microseconds and work under autocast and ``torch.func``. Those of metrics and files, which are
called once at the end, also look at the values (:func:`require_finite`, :func:`require_affine`).
"""

import math
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def require_tensor(name: str, value: object) -> Tensor:
    """``value`` itself, if it is a tensor; otherwise a ``TypeError`` that names it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def require_image(name: str, image: object, *, floating: bool = True) -> tuple[int, ...]:
    """Check that ``image`` is ``(B, C, *spatial)`` with two or three spatial axes.

    Args:
        name: what the caller calls the argument.
        image: the argument.
        floating: whether integer and boolean images are refused.

    Returns:
        The spatial shape.

    Raises:
        TypeError: not a tensor, or not of a floating dtype where one is needed.
        ValueError: wrong rank, an empty batch, or a spatial axis of fewer than two voxels.
    """
    tensor = require_tensor(name, image)
    if tensor.ndim not in (4, 5):
        raise ValueError(
            f"{name}: expected shape (B, C, *spatial) with 2 or 3 spatial axes, "
            f"got {tuple(tensor.shape)}"
        )
    if floating and not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    if tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise ValueError(f"{name}: the batch or the channels are empty: {tuple(tensor.shape)}")
    return require_shape(f"{name}'s spatial shape", tensor.shape[2:])


def require_displacement(name: str, displacement: object) -> tuple[int, ...]:
    """Check that ``displacement`` is a floating ``(B, D, *spatial)`` with ``D == len(spatial)``.

    Returns:
        The spatial shape.
    """
    spatial = require_image(name, displacement)
    channels = require_tensor(name, displacement).shape[1]
    if channels != len(spatial):
        raise ValueError(
            f"{name}: {len(spatial)} spatial axes {spatial} need {len(spatial)} channels, "
            f"one per axis; got {channels}"
        )
    return spatial


def require_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Check a spatial shape: two or three whole numbers, each at least 2."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"{name}: expected 2 or 3 whole numbers, got {shape!r}") from None
    if any(isinstance(n, bool) or not isinstance(n, SupportsIndex) for n in sizes):
        raise TypeError(f"{name}: expected whole numbers, got {sizes}")
    sizes = tuple(n.__index__() for n in sizes)  # NumPy's whole numbers are welcome too
    if len(sizes) not in (2, 3) or min(sizes) < 2:
        raise ValueError(f"{name}: expected 2 or 3 axes of at least 2 voxels each, got {sizes}")
    return sizes


def require_same(
    name: str, value: Tensor, other_name: str, other: Tensor, *, channels: bool = True
) -> None:
    """Check that two tensors share batch, spatial shape, device and (by default) channels."""
    shape, other_shape = tuple(value.shape), tuple(other.shape)
    if not channels:
        shape, other_shape = shape[:1] + shape[2:], other_shape[:1] + other_shape[2:]
    if shape != other_shape:
        what = "shape" if channels else "batch and spatial shape"
        raise ValueError(f"{name}: expected the {what} of {other_name}, {other_shape}, got {shape}")
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}; move one of them"
        )


def require_points(name: str, points: object, like_name: str, like: Tensor) -> Tensor:
    """Check points ``(B, N, D)``, floating, against the displacement that moves them.

    Returns:
        The points, unchanged.
    """
    tensor = require_tensor(name, points)
    batch, ndim = like.shape[0], like.ndim - 2
    if tensor.ndim != 3 or tensor.shape[0] != batch or tensor.shape[2] != ndim:
        raise ValueError(
            f"{name}: expected shape (B, N, D) = ({batch}, N, {ndim}), got {tuple(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device} but {like_name} is on {like.device}")
    return tensor


def require_option(name: str, value: object, options: Sequence[str]) -> None:
    """Check that ``value`` is one of ``options``."""
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")


def require_mask(name: str, mask: object, like_name: str, like: Tensor) -> Tensor:
    """Check a mask ``(B, 1, *spatial)`` against the image or field that it selects from.

    Returns:
        The mask, unchanged.
    """
    tensor = require_tensor(name, mask)
    expected = (like.shape[0], 1, *like.shape[2:])
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device} but {like_name} is on {like.device}")
    return tensor


def require_whole(name: str, value: object, least: int) -> int:
    """``value`` as an ``int`` of ``least`` and above; NumPy's whole numbers are welcome too."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or value.__index__() < least:
        raise ValueError(f"{name}: expected a whole number of {least} or more, got {value!r}")
    return value.__index__()


def require_number(name: str, value: object, least: float = -math.inf) -> float:
    """``value`` as a finite ``float`` of ``least`` and above."""
    try:
        if isinstance(value, bool) or not isinstance(value, SupportsFloat):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # of a tensor with more than one element
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if not math.isfinite(number) or number < least:
        bound = f" of {least:g} or more" if least > -math.inf else ""
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return number


def require_schedule(factors: Sequence[float], steps: int) -> None:
    """Check the levels of a descent: factors of 1 and above, steps of 0 and above."""
    if not isinstance(factors, Sequence):
        raise TypeError(f"factors: expected a sequence of numbers, got {factors!r}")
    if not factors:
        raise ValueError("factors: expected at least one level, got none")
    for factor in factors:
        require_number("factors", factor, 1)
    require_whole("steps", steps, 0)


def require_callable(name: str, value: object) -> None:
    """Check that ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name}: expected a function, got {type(value).__name__}")


def require_finite(name: str, value: Tensor) -> None:
    """Check that there is no NaN and no infinity in ``value``."""
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        count = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: expected finite values, got {count} NaN or infinite ones")


def require_labels(name: str, labels: object) -> int:
    """Check a label map: ``(B, 1, *spatial)``, an integer dtype, nothing negative.

    Returns:
        The largest label: the voxels have been looked at anyway.
    """
    require_image(name, labels, floating=False)
    tensor = require_tensor(name, labels)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(
            f"{name}: expected integer labels, got {tensor.dtype}; labels are names, not "
            "intensities, so warp them by mode='nearest' or one-hot"
        )
    if tensor.shape[1] != 1:
        raise ValueError(f"{name}: expected one channel, got {tensor.shape[1]}")
    # PyTorch looks for no least value among its longer unsigned integers.
    easy = tensor.is_signed() or tensor.dtype == torch.uint8
    least, largest = (tensor if easy else tensor.long()).aminmax()
    if least < 0:
        raise ValueError(f"{name}: expected labels of 0 and above, got {int(least)}")
    return int(largest)


def require_spacing(name: str, spacing: Sequence[float] | None, ndim: int) -> Tensor | None:
    """``spacing`` as a CPU tensor of ``ndim`` positive numbers (mm per voxel), or None."""
    if spacing is None:
        return None
    try:
        # On the CPU, whatever torch's default device is: hausdorff95 hands them to NumPy.
        sizes = torch.as_tensor(spacing, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected {ndim} numbers in mm, got {spacing!r}") from None
    if tuple(sizes.shape) != (ndim,) or not bool((sizes > 0).all() & sizes.isfinite().all()):
        raise ValueError(f"{name}: expected {ndim} positive numbers in mm, got {spacing!r}")
    return sizes


def require_numbers(name: str, value: object, expected: str) -> NDArray[np.float64]:
    """Whatever NumPy takes for an array of real numbers, as float64.

    Args:
        name: what the caller calls the argument.
        value: the argument.
        expected: what it should have been, for the message.
    """
    try:
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "iuf":
            raise TypeError
        return numbers.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):  # such as lists of unequal lengths
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}") from None


def require_affine(name: str, affine: object) -> NDArray[np.float64]:
    """The affine of a volume, ``(4, 4)``, as float64: finite, invertible, last row 0, 0, 0, 1."""
    matrix = require_numbers(name, affine, "an array of numbers (4, 4)")
    if matrix.shape != (4, 4):
        raise ValueError(f"{name}: expected shape (4, 4), got {matrix.shape}")
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise ValueError(f"{name}: expected finite numbers and an inverse, got\n{matrix}")
    if not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise ValueError(f"{name}: expected the last row 0, 0, 0, 1, got {matrix[3].tolist()}")
    return matrix

"""Images in from files: NIfTI by nibabel, as tensors with their affine and spacing."""

import zlib
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from torch import Tensor

# The ways in which nibabel and NumPy stumble over a broken file.
_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    zlib.error,
)


class Volume(NamedTuple):
    """An image with its place in the world.

    Attributes:
        image: ``(1, 1, *spatial)``, float32, intensities as the file gives them.
        affine: ``(4, 4)``, from voxel indices to mm in the scanner's RAS axes.
        spacing: mm per voxel along each spatial axis.
    """

    image: Tensor
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]


def load_nifti(path: str | PathLike[str]) -> Volume:
    """Read a 2D or 3D image from a ``.nii`` or ``.nii.gz`` file.

    Args:
        path: the file.

    Returns:
        The :class:`Volume`; trailing axes of length 1 are dropped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken or no NIfTI, has more than 3 axes, is empty or constant,
            holds NaN or infinities, or has a singular affine.

    Taught in lesson 10.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path: expected a file name, got {type(path).__name__}")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: no such file: {file}")
    try:
        loaded: Any = nib.load(file)
        kind = loaded.get_data_dtype().kind if isinstance(loaded, nib.Nifti1Image) else ""
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
            values = np.asarray(loaded.dataobj, dtype=np.float32 if kind in "iuf" else None)
    except _UNREADABLE as error:
        raise ValueError(f"path: {file} is not a readable NIfTI file: {error}") from error
    if not kind:
        raise ValueError(f"path: expected a NIfTI image, got {type(loaded).__name__}: {file}")
    if kind not in "iuf":
        raise ValueError(f"path: expected real numbers, got {loaded.get_data_dtype()} in {file}")
    values = values.reshape(_without_trailing_ones(values.shape))
    affine = np.asarray(loaded.affine, dtype=np.float64)
    _require_sound(file, values, affine)
    spacing = tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)[: values.ndim])
    return Volume(torch.from_numpy(values.copy())[None, None], affine, spacing)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _require_sound(file: Path, values: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    if values.ndim not in (2, 3):
        raise ValueError(
            f"path: expected a 2D or 3D image, got shape {values.shape} in {file}; "
            "choose one time point or channel first"
        )
    if values.size == 0:
        raise ValueError(f"path: the image is empty, shape {values.shape} in {file}")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"path: {count} voxels are NaN or infinite in {file}")
    if values.min() == values.max():
        raise ValueError(f"path: every voxel is {values.flat[0]:g} in {file}")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"path: the affine is singular in {file}:\n{affine}")

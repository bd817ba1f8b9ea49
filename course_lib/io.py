"""Images and displacement fields in and out of NIfTI files, as tensors with their place.

The world's axes are RAS in NIfTI and here (to the right, forward, up), and LPS in ITK (to the left,
backward, up): the first two coordinates change their sign.
"""

import gzip
import os
import zlib
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from course_lib.spatial import identity_grid
from course_lib.validation import (
    require_affine,
    require_displacement,
    require_finite,
    require_image,
)

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
_VECTOR = 1007  # NIfTI's intent code for an image of vectors
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's codes for meters and micrometers; others are mm
_LPS = np.array([-1.0, -1.0, 1.0])  # what RAS coordinates are multiplied with, either way
_LONGEST = 32767  # voxels along an axis: NIfTI counts them in 16 bits


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


class Field(NamedTuple):
    """A displacement with its place in the world.

    Attributes:
        displacement: ``(1, D, *spatial)``, float32, in voxels.
        affine: ``(4, 4)``, from voxel indices of its grid (the fixed image's) to mm, RAS.
        spacing: mm per voxel along each spatial axis.
    """

    displacement: Tensor
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
    file = _require_file(path)
    values, header = _read(file)
    affine = _affine_in_mm(file, header)
    values = values.reshape(_without_trailing_ones(values.shape))
    if values.ndim not in (2, 3):
        raise ValueError(
            f"path: expected a 2D or 3D image, got shape {values.shape} in {file}; "
            "choose one time point or channel first"
        )
    _require_sound(file, values)
    if values.min() == values.max():
        raise ValueError(f"path: every voxel is {values.flat[0]:g} in {file}")
    return Volume(torch.from_numpy(values.copy())[None, None], affine, _sizes(affine, values.ndim))


def save_nifti(path: str | PathLike[str], image: Tensor, affine: ArrayLike) -> None:
    """Write an image or a label map, so that :func:`load_nifti` reads the same.

    Floating images are stored as float32; whole numbers and booleans as the smallest of uint8,
    int16 and int32 that holds them. A file of this name is replaced in one step: whatever
    happens, there is the old file or the new one, never half of one.

    Args:
        path: the file, ``.nii`` or ``.nii.gz``, in a folder that exists.
        image: ``(1, 1, *spatial)``, one image of one channel.
        affine: ``(4, 4)``, from voxel indices to mm in RAS axes; of a 2D image, column 2 is the
            direction out of its plane. ITK refuses to read a sheared one.

    Raises:
        FileNotFoundError: if there is no such folder.
        TypeError, ValueError: on another ending, a wrong shape or dtype, a constant image, NaN,
            infinities, numbers that do not fit, or an affine that is singular.

    Taught in lesson 10.
    """
    file = _require_target(path)
    matrix = require_affine("affine", affine)
    _require_one("image", image, channels=1)
    _write(file, _stored(image.detach().cpu()[0, 0]), matrix)


def load_displacement(path: str | PathLike[str], moving_affine: ArrayLike | None = None) -> Field:
    """Read a displacement field that ITK, SimpleITK, ANTs or :func:`save_displacement` wrote.

    Such a file holds, for each voxel of the fixed grid, the way in mm along ITK's LPS axes from
    there to the matching point of the moving image: NIfTI, vector intent, ``(X, Y, Z, 1, 3)``, in
    2D ``(X, Y, 1, 1, 2)``. It does not say which grid the moving image has.

    Args:
        path: the file, ``.nii`` or ``.nii.gz``.
        moving_affine: the ``(4, 4)`` affine of the moving image, where it is not that of the
            field. With it, the displacement leads to that image's voxels.

    Returns:
        The :class:`Field`, ready for ``warp(moving, field.displacement)``. Its grid is the file's:
        to warp onto a fixed image of another grid, resample one of the two first.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError, ValueError: if the file is broken or no NIfTI, is no field of 2 or 3 components
            with a vector intent, holds NaN or infinities, or has a singular affine.

    Taught in lesson 11.
    """
    file = _require_file(path)
    moving = None if moving_affine is None else require_affine("moving_affine", moving_affine)
    values, header = _read(file)
    _require_vectors(file, values, header)
    affine = _affine_in_mm(file, header)
    _require_sound(file, values)
    spatial = values.shape[: values.shape[-1]]
    ndim = len(spatial)
    if moving is None:
        moving = affine
    _require_plane(f"path: the affine of {file}", affine, ndim)
    _require_plane("moving_affine", moving, ndim)
    mm = torch.from_numpy(values.reshape(-1, ndim) * _LPS[:ndim]).T  # (D, voxels), RAS
    linear = torch.from_numpy(moving[:ndim, :ndim])
    voxels = torch.linalg.solve(linear, mm - _between_origins(affine, moving, spatial))
    return Field(voxels.float().view(1, ndim, *spatial), affine, _sizes(affine, ndim))


def save_displacement(
    path: str | PathLike[str],
    displacement: Tensor,
    affine: ArrayLike,
    moving_affine: ArrayLike | None = None,
) -> None:
    """Write a displacement as ITK, SimpleITK and ANTs read it: vectors in mm along LPS axes.

    For voxel ``x`` of the fixed grid, the file holds ``M(x + u(x)) − A(x)`` with ``A`` the fixed
    and ``M`` the moving image's affine: SimpleITK's ``DisplacementFieldTransform`` and ANTs then
    resample the moving image to ``warp(moving, displacement)``. Stored as float32, in one step.

    Args:
        path: the file, ``.nii`` or ``.nii.gz``, in a folder that exists.
        displacement: ``(1, D, *spatial)``, in voxels (of the moving image, where the two differ).
        affine: ``(4, 4)``, the fixed image's, from voxel indices to mm in RAS axes: oblique,
            anisotropic and flipped, but not sheared, which ITK cannot express. In 2D, its first
            two columns must lie in the world's x-y plane, for want of a third component.
        moving_affine: the moving image's, where it is not the fixed image's. It may be sheared.

    Raises:
        FileNotFoundError: if there is no such folder.
        TypeError, ValueError: on another ending, a wrong shape or dtype, NaN, infinities, or an
            affine that is singular, sheared, or tilted (in 2D).

    Taught in lesson 11.
    """
    file = _require_target(path)
    spatial = require_displacement("displacement", displacement)
    ndim = len(spatial)
    _require_one("displacement", displacement, channels=ndim)
    fixed = require_affine("affine", affine)
    _require_right_angles(fixed)
    _require_plane("affine", fixed, ndim)
    moving = fixed if moving_affine is None else require_affine("moving_affine", moving_affine)
    _require_plane("moving_affine", moving, ndim)
    voxels = displacement.detach().cpu().double().reshape(ndim, -1)
    mm = torch.from_numpy(moving[:ndim, :ndim]) @ voxels + _between_origins(fixed, moving, spatial)
    vectors = _as_float32("displacement", mm.T.numpy() * _LPS[:ndim])
    # NIfTI's fourth axis is time: the components go on the fifth.
    vectors = vectors.reshape(*spatial, *(1,) * (4 - ndim), ndim)
    _write(file, vectors, fixed, intent=_VECTOR)


def _require_file(path: object) -> Path:
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path: expected a file name, got {type(path).__name__}")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: no such file: {file}")
    return file


def _read(file: Path) -> tuple[NDArray[np.floating], Any]:
    """The numbers of a NIfTI file, as float32, and its header."""
    try:
        loaded: Any = nib.load(file)
        kind = loaded.get_data_dtype().kind if isinstance(loaded, nib.Nifti1Image) else ""
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused later
            values = np.asarray(loaded.dataobj, dtype=np.float32 if kind in "iuf" else None)
    except _UNREADABLE as error:
        raise ValueError(f"path: {file} is not a readable NIfTI file: {error}") from error
    if not kind:
        raise ValueError(f"path: expected a NIfTI image, got {type(loaded).__name__}: {file}")
    if kind not in "iuf":
        raise ValueError(f"path: expected real numbers, got {loaded.get_data_dtype()} in {file}")
    return values, loaded.header


def _affine_in_mm(file: Path, header: Any) -> NDArray[np.float64]:
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)  # its last three bits
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"path: the affine is singular in {file}:\n{affine}")
    return affine


def _sizes(affine: NDArray[np.float64], ndim: int) -> tuple[float, ...]:
    """Millimeters per voxel along each spatial axis: the lengths of the affine's columns."""
    return tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)[:ndim])


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _require_sound(file: Path, values: NDArray[np.floating]) -> None:
    if values.size == 0:
        raise ValueError(f"path: the image is empty, shape {values.shape} in {file}")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"path: {count} values are NaN or infinite in {file}")


def _require_vectors(file: Path, values: NDArray[np.floating], header: Any) -> None:
    """Check that a file holds one vector in each voxel of a 2D or 3D grid, as ITK writes them."""
    shape, intent = values.shape, int(header["intent_code"])
    ndim = shape[-1] if len(shape) == 5 else 0
    if ndim not in (2, 3) or shape[ndim:4] != (1,) * (4 - ndim) or min(shape[:ndim]) < 2:
        raise ValueError(
            "path: expected a displacement field of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2), "
            f"got {shape} in {file}"
        )
    if intent != _VECTOR:
        raise ValueError(
            f"path: expected vectors in mm along LPS axes, intent code {_VECTOR}, got code "
            f"{intent} in {file}"
        )


def _require_target(path: object) -> Path:
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path: expected a file name, got {type(path).__name__}")
    file = Path(path)
    if not file.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"path: expected a name that ends in .nii or .nii.gz, got {file}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"path: no such folder: {file.parent}")
    if file.is_dir():
        raise ValueError(f"path: expected a file, but {file} is a folder")
    return file


def _require_one(name: str, image: Tensor, channels: int) -> None:
    """Check that there is one item with the channels that a file has, and that it fits in one."""
    require_image(name, image, floating=False)
    require_finite(name, image)
    if tuple(image.shape[:2]) != (1, channels):
        raise ValueError(
            f"{name}: a file holds one item: expected shape (1, {channels}, *spatial), got "
            f"{tuple(image.shape)}; save items and channels one by one"
        )
    if max(image.shape[2:]) > _LONGEST:
        raise ValueError(f"{name}: NIfTI's axes hold {_LONGEST} voxels, got {tuple(image.shape)}")


def _is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether the grid's axes are not at right angles, by more than a header's rounding."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4)


def _require_right_angles(affine: NDArray[np.float64]) -> None:
    if _is_sheared(affine):
        raise ValueError(
            "affine: expected columns at right angles, because ITK reads no others; "
            f"resample the field onto such a grid first; got\n{affine}"
        )


def _require_plane(name: str, affine: NDArray[np.float64], ndim: int) -> None:
    """Check that a 2D grid lies in the world's x-y plane, where its vectors have two components."""
    if ndim == 2 and np.abs(affine[2, :2]).max() > 1e-6 * np.abs(affine[:3, :2]).max():
        raise ValueError(
            f"{name}: expected a 2D grid in the world's x-y plane (zeros in the first two columns "
            f"of row 2), because a 2D field has no third component; got\n{affine}"
        )


def _between_origins(
    fixed: NDArray[np.float64], moving: NDArray[np.float64], spatial: tuple[int, ...]
) -> Tensor:
    """``M(x) − A(x)``: from fixed to moving voxels of the same index; ``(D, voxels)`` in mm."""
    ndim = len(spatial)
    between = torch.from_numpy(moving - fixed)
    grid = identity_grid(spatial, dtype=torch.float64, device="cpu").flatten(1)
    return between[:ndim, :ndim] @ grid + between[:ndim, 3:]


def _stored(image: Tensor) -> NDArray[Any]:
    """The numbers of an image in the dtype of its file."""
    if image.is_complex():
        raise TypeError(f"image: expected real numbers, got {image.dtype}")
    if image.is_floating_point():
        values: NDArray[Any] = _as_float32("image", image.double().numpy())
    else:
        values = image.numpy()
        values = values.astype(_whole_dtype(int(values.min()), int(values.max())))
    if values.min() == values.max():
        raise ValueError(f"image: expected an image, but every voxel is {values.flat[0]:g}")
    return values


def _whole_dtype(least: int, most: int) -> type[np.integer]:
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= least and most <= np.iinfo(dtype).max:
            return dtype
    raise ValueError(f"image: expected numbers that fit into int32, got {least} to {most}")


def _as_float32(name: str, values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    if not np.isfinite(small).all():
        raise ValueError(f"{name}: expected numbers that fit into float32, got {values.max():g}")
    return small


def _write(file: Path, values: NDArray[Any], affine: NDArray[np.float64], intent: int = 0) -> None:
    """Write a NIfTI file beside its final place, then put it there in one step."""
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_intent(intent)
    image.set_sform(affine, code=1)
    # A qform cannot express shear, and readers such as ITK would take its approximation for true.
    image.set_qform(None if _is_sheared(affine) else affine, code=0 if _is_sheared(affine) else 1)
    content = image.to_bytes()
    if file.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=3, mtime=0)  # no time: same in, same out
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)

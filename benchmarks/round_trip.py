"""A displacement saved by us, applied by SimpleITK and by ANTs: do they warp the image as we do?

The same files for both: a fixed and a moving image on an oblique, anisotropic, flipped grid, and
the field. ANTs is too heavy for the test-suite, where SimpleITK alone does this on many grids.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import arrays
from benchmarks.harness import one_line
from course_lib.io import save_displacement, save_nifti
from course_lib.spatial import identity_grid, warp

SHAPES = {2: (90, 70), 3: (40, 50, 30)}
Trip = dict[str, object]


def all_trips() -> list[Trip]:
    """Both libraries, 2D and 3D, each with the largest difference or why there is none."""
    libraries = {"SimpleITK": by_simpleitk, "ANTs": by_ants}
    return [trip(name, apply, ndim) for ndim in SHAPES for name, apply in libraries.items()]


def trip(library: str, apply: Callable[[Path, Path, Path], np.ndarray], ndim: int) -> Trip:
    """Save a field and two images, let the library warp, and compare inside the image."""
    affine, shape = oblique(ndim), SHAPES[ndim]
    made = arrays(shape)
    u = made.displacement
    with tempfile.TemporaryDirectory() as name:
        fixed, moving, field = (Path(name) / f"{what}.nii.gz" for what in ("fixed", "moving", "u"))
        save_nifti(fixed, made.fixed, affine)
        save_nifti(moving, made.moving, affine)
        save_displacement(field, u, affine)
        try:
            theirs = apply(moving, fixed, field)
        except Exception as error:  # reported, not hidden
            return {"library": library, "ndim": ndim, "error": one_line(error)}
    where = inside(u)
    ours = warp(made.moving, u)[0, 0].numpy()
    unmoved = made.moving[0, 0].numpy()
    return {
        "library": library,
        "ndim": ndim,
        "voxels": int(where.sum()),
        "largest_difference": float(np.abs(ours - theirs)[where].max()),
        "without_the_field": float(np.abs(unmoved - theirs)[where].max()),
    }


def oblique(ndim: int) -> np.ndarray:
    """An affine that is turned, anisotropic, flipped along its first axis, and far from zero."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(ndim, ndim)))
    affine = np.eye(4)
    affine[:ndim, :ndim] = rotation * np.array([-0.8, 1.5, 2.5][:ndim])
    affine[:ndim, 3] = [-60, 35, 110][:ndim]
    return affine


def inside(displacement: Tensor) -> np.ndarray:
    """The voxels whose value comes from inside the moving image."""
    shape = displacement.shape[2:]
    last = torch.tensor(shape).sub(1).view(-1, *(1,) * len(shape))
    where = identity_grid(shape) + displacement[0]
    return ((where > 0.01) & (where < last - 0.01)).all(0).numpy()


def by_simpleitk(moving: Path, fixed: Path, field: Path) -> np.ndarray:
    """SimpleITK's warped image, axes in our order."""
    import SimpleITK as sitk

    vectors = sitk.Cast(sitk.ReadImage(str(field)), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(vectors)
    images = (sitk.ReadImage(str(path)) for path in (moving, fixed))
    return sitk.GetArrayFromImage(sitk.Resample(*images, transform, sitk.sitkLinear, 0.0)).T


def by_ants(moving: Path, fixed: Path, field: Path) -> np.ndarray:
    """ANTs' warped image; its arrays have our axes."""
    import ants

    images = {"fixed": ants.image_read(str(fixed)), "moving": ants.image_read(str(moving))}
    warped = ants.apply_transforms(**images, transformlist=[str(field)], interpolator="linear")
    return warped.numpy()


def sentence(found: Trip) -> str:
    """One trip in words."""
    start = f"A {found['ndim']}D field saved by us and applied by {found['library']}: "
    if "error" in found:
        return start + f"FAILED: {found['error']}"
    return start + (
        f"largest intensity difference inside the image {found['largest_difference']:.1e} over "
        f"{found['voxels']} voxels (of 0 to 1; without the field {found['without_the_field']:.2f})."
    )

"""Brains that ship with the course: a real person against a template, and a synthetic cohort.

2D images are axial slices of 224 × 192 voxels of 1 mm, seen from above: row 0 lies at the forehead,
column 0 on the person's left (radiologists look from below and show it on the right). 3D images are
96 × 112 × 96 voxels of 2 mm with axes left → right, back → front, bottom → top.
``course_lib/data/README.md`` tells where the images come from.

The cohort also comes in two other planes and at two other spacings. 16 divides every size, because
a network that halves the image four times needs that: zeros are added where the head's grid gives
no such size (:data:`SIZES`).
"""

import math
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.datasets import Pair
from course_lib.io import load_nifti
from course_lib.spatial import (
    affine_displacement,
    compose,
    identity_grid,
    integrate,
    smooth,
    warp,
)
from course_lib.validation import (
    require_finite,
    require_number,
    require_option,
    require_tensor,
    require_whole,
)

TISSUES = {1: "fluid", 2: "gray matter", 3: "white matter"}

PLANES = ("axial", "coronal", "sagittal")
"""Of the 2D images. Coronal ones are seen from behind: row 0 lies at the top of the head, column 0
on the person's left. Sagittal ones lie left of the middle: row 0 at the top, column 0 at the
forehead."""

SIZES: dict[tuple[str, float], tuple[int, ...]] = {
    ("axial", 1.0): (224, 192),
    ("coronal", 1.0): (192, 192),
    ("sagittal", 1.0): (192, 224),
    ("volume", 4.0): (48, 64, 48),
    ("volume", 2.0): (96, 112, 96),
    ("volume", 1.0): (192, 224, 192),
}
"""The spatial shape of each kind of image, by plane (or ``"volume"``) and spacing in mm."""

# The slices go through the ventricles and the deep gray matter.
_SLICE = {"axial": 80, "coronal": 120, "sagittal": 82}
_CROP = ((2, 194), (4, 228), (0, 189))  # of the 197 × 233 × 189 grid: sizes that halve four times
_CONTRAST = (0.7, 1.4)  # range of the exponents that bend the intensities
_BIAS, _BIAS_MM = 0.15, 40.0  # standard deviation of the log of the bias field, and its smoothness
_NOISE = 0.02
_DEFORMATION_MM, _SMOOTHNESS_MM = 1.8, 14.0  # mean length and smoothness of each random velocity
_MARGIN_MM = 24.0  # over which the velocities fall to zero at the border: nothing leaves the image


def real_pair(ndim: int = 2, pose: Tensor | None = None) -> Pair:
    """Colin27, a real person's head, to be registered to the MNI152 template.

    Args:
        ndim: 2 for an axial slice, 3 for the volume.
        pose: ``(1, D, D+1)``, ``[A | t]`` from fixed to moving in voxels: the head is moved so that
            ``warp(moving, affine_displacement(pose, shape))`` brings it back. None leaves it where
            its makers aligned it.

    Returns:
        A :class:`Pair` with tissue labels (:data:`TISSUES`); the true displacement is unknown.

    Raises:
        ValueError: if ``ndim`` is not 2 or 3, or ``pose`` has another shape or is singular.
    """
    kind = kind_of(ndim, "axial", None)
    fixed, fixed_labels = (part.clone() for part in _anatomy("mni152", kind))
    moving, moving_labels = (part.clone() for part in _anatomy("colin27", kind))
    if pose is not None:
        displacement = affine_displacement(_inverse(pose, ndim), fixed.shape[2:])
        moving = warp(moving, displacement)
        moving_labels = warp(moving_labels, displacement, mode="nearest")
    spacing = (kind[1],) * (fixed.ndim - 2)
    return Pair(moving, fixed, moving_labels, fixed_labels, displacement=None, spacing=spacing)


def pair(seed: int, ndim: int = 2, *, plane: str = "axial", spacing: float | None = None) -> Pair:
    """Two synthetic people of the cohort, whose true displacement is known.

    Both are random diffeomorphisms of the same anatomy (even seeds: the template, odd seeds:
    Colin27), each with a contrast, a bias field and noise of its own. Seeds below 100 are for
    tuning, 100 and above for what is reported.

    The deformations are of the same size in mm in every plane and at every spacing, but one seed
    gives another pair in each: the random numbers fall on another grid.

    A slice takes a fraction of a second and a volume of 4 mm too, one of 2 mm some seconds, one of
    1 mm about a minute and 3 GB of memory: ``cohort.Cohort`` keeps pairs on disk.

    Args:
        seed: 0 and above; the same seed always gives the same pair.
        ndim: 2 for a slice, 3 for the volume.
        plane: of a slice, one of :data:`PLANES`; a volume has none.
        spacing: mm per voxel: 1 for slices; 4, 2 or 1 for volumes. None means 1 or 2.

    Returns:
        A :class:`Pair` with everything known.

    Raises:
        TypeError, ValueError: if ``ndim`` is not 2 or 3, ``seed`` is negative, or there is no such
            plane or spacing.
    """
    seed = require_whole("seed", seed, 0)
    kind = kind_of(ndim, plane, spacing)
    image, labels = _anatomy(("mni152", "colin27")[seed % 2], kind)
    mm = kind[1]
    rng = np.random.default_rng(seed)
    to_moving, to_fixed = (_random_velocity(rng, image, mm) for _ in range(2))
    moving_field, fixed_field = integrate(to_moving), integrate(to_fixed)
    # fixed(x) = anatomy(φ_f(x)) and moving(y) = anatomy(φ_m(y)), so y = φ_m⁻¹(φ_f(x)).
    displacement = compose(integrate(-to_moving), fixed_field)
    moving, fixed = warp(image, moving_field), warp(image, fixed_field)
    _require_truth(moving, fixed, displacement, 0.35 if mm == 4 else 0.2)
    return Pair(
        moving=_scan(rng, moving, mm),
        fixed=_scan(rng, fixed, mm),
        moving_labels=warp(labels, moving_field, mode="nearest"),
        fixed_labels=warp(labels, fixed_field, mode="nearest"),
        displacement=displacement,
        spacing=(mm,) * (image.ndim - 2),
    )


def _require_truth(moving: Tensor, fixed: Tensor, displacement: Tensor, left: float = 0.2) -> None:
    """What is left is interpolation, which blurs 4 mm voxels more."""
    error = (warp(moving, displacement) - fixed).abs().mean()
    before = (moving - fixed).abs().mean()
    assert error < left * before, f"the true displacement leaves {error / before:.0%} of the error"


def kind_of(ndim: int, plane: str, spacing: float | None) -> tuple[str, float]:
    """The key of :data:`SIZES` under which the cohort's images are found.

    Args:
        ndim: 2 or 3.
        plane: of a slice, one of :data:`PLANES`; a volume's is left at ``"axial"``.
        spacing: in mm; None means 1 for slices and 2 for volumes.

    Returns:
        The plane or ``"volume"``, and the spacing.

    Raises:
        TypeError, ValueError: if there are no such images.
    """
    if isinstance(ndim, bool) or ndim not in (2, 3):
        raise ValueError(f"ndim: expected 2 or 3, got {ndim!r}")
    require_option("plane", plane, PLANES)
    if ndim == 3 and plane != "axial":
        raise ValueError(f"plane: a volume has none, got {plane!r} with ndim=3")
    name = plane if ndim == 2 else "volume"
    mm = float(ndim - 1) if spacing is None else require_number("spacing", spacing)
    if (name, mm) not in SIZES:
        known = " or ".join(f"{other:g}" for kind, other in SIZES if kind == name)
        raise ValueError(f"spacing: expected {known} mm with ndim={ndim}, got {spacing!r}")
    return name, mm


def _anatomy(name: str, kind: tuple[str, float]) -> tuple[Tensor, Tensor]:
    """Image and labels of one head, shared between calls: hand out copies only."""
    with torch.inference_mode(False):  # what is kept must be of use to autograd later
        return _head(name, *kind)


@lru_cache(maxsize=4)
def _head(name: str, plane: str, mm: float) -> tuple[Tensor, Tensor]:
    image, labels = (_load(f"{name}_{part}.nii.gz") for part in ("t1", "tissues"))
    if plane == "volume":
        image, labels = _coarser(image, labels, round(mm))
    else:
        image, labels = (_slice(volume, plane) for volume in (image, labels))
    assert tuple(image.shape[2:]) == SIZES[plane, mm]
    return image.contiguous() / 255, labels.contiguous().long()


def _slice(volume: Tensor, plane: str) -> Tensor:
    """One slice of a head, its rows from the top of the picture down."""
    axis = {"axial": 4, "coronal": 3, "sagittal": 2}[plane]
    flat = volume.select(axis, _SLICE[plane])
    if plane == "axial":
        return flat.flip(3).mT  # rows front → back, columns left → right
    upright = F.pad(flat, (0, 3)).flip(3).mT  # rows top → bottom; 189 of them, and 3 of zeros
    return upright if plane == "coronal" else upright.flip(3)  # columns front → back


def _coarser(image: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Every ``factor``-th voxel, blurred before; the first voxel stays the first."""
    # 189 slices become 192. At 4 mm the 224 voxels from back to front become 256, 16 on each side.
    sides = (0, 3, 16, 16, 0, 0) if factor == 4 else (0, 3)
    image, labels = (F.pad(volume, sides) for volume in (image, labels))
    if factor > 1:
        sigma = 0.8 if factor == 2 else 0.5 * math.sqrt(factor**2 - 1)  # see volumes.resample_like
        image = smooth(image, sigma)
    every = (..., *(slice(None, None, factor),) * 3)
    return image[every], labels[every]


@lru_cache(maxsize=4)
def _load(file: str) -> Tensor:
    with as_file(files("course_lib.data") / file) as path:
        try:
            image = load_nifti(path).image
        except (OSError, ValueError) as error:
            message = f"{error}\nThis file came with the course: `make doctor` says how to mend it."
            raise type(error)(message) from error
    x, y, z = (slice(low, high) for low, high in _CROP)
    return image[:, :, x, y, z]


def _inverse(pose: Tensor, ndim: int) -> Tensor:
    """``[A⁻¹ | −A⁻¹ t]``: the map back, about the same center."""
    require_tensor("pose", pose)
    if tuple(pose.shape) != (1, ndim, ndim + 1):
        raise ValueError(f"pose: expected shape {(1, ndim, ndim + 1)}, got {tuple(pose.shape)}")
    if not pose.is_floating_point():
        raise TypeError(f"pose: expected a floating dtype, got {pose.dtype}")
    require_finite("pose", pose)
    linear = pose[:, :, :ndim]
    if bool(torch.linalg.det(linear).abs() < 1e-6):
        raise ValueError(f"pose: A is singular: {linear.tolist()}")
    inverse = torch.linalg.inv(linear)
    return torch.cat([inverse, -inverse @ pose[:, :, ndim:]], dim=2)


def _smooth_noise(rng: np.random.Generator, channels: int, like: Tensor, sigma: float) -> Tensor:
    """Gaussian noise blurred by ``sigma`` voxels: zero mean over the grid on average."""
    noise = rng.standard_normal((1, channels, *like.shape[2:])).astype(np.float32)
    return smooth(torch.from_numpy(noise), sigma)


def _random_velocity(rng: np.random.Generator, like: Tensor, mm: float) -> Tensor:
    ndim = like.ndim - 2
    velocity = _smooth_noise(rng, ndim, like, _SMOOTHNESS_MM / mm) * _margin(like.shape[2:], mm)
    length = velocity.norm(dim=1).mean() * mm
    return velocity * (_DEFORMATION_MM / length)


def _margin(shape: tuple[int, ...], mm: float) -> Tensor:
    """1 in the middle, falling smoothly to 0 at the border."""
    grid = identity_grid(shape, dtype=torch.float32)
    sizes = torch.tensor(shape).view(-1, *(1,) * len(shape))
    millimeters = torch.minimum(grid, sizes - 1 - grid) * mm
    ramp = (millimeters / _MARGIN_MM).clamp(max=1)
    return (torch.sin(ramp * torch.pi / 2) ** 2).prod(0)


def _scan(rng: np.random.Generator, image: Tensor, mm: float) -> Tensor:
    """The image as another scanner might show it: contrast, bias field, noise."""
    bent = image ** rng.uniform(*_CONTRAST)
    bias = _smooth_noise(rng, 1, image, _BIAS_MM / mm)
    noise = rng.standard_normal(image.shape).astype(np.float32)
    scanned = bent * torch.exp(bias * (_BIAS / bias.std())) + _NOISE * torch.from_numpy(noise)
    return scanned.clamp(0, 1)

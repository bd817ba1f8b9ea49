"""Brains that ship with the course: a real person against a template, and a synthetic cohort.

2D images are axial slices of 224 × 192 voxels of 1 mm, seen from above: row 0 lies at the forehead,
column 0 on the person's left (radiologists look from below and show it on the right). 3D images are
96 × 112 × 96 voxels of 2 mm with axes left → right, back → front, bottom → top.
``course_lib/data/README.md`` tells where the images come from.
"""

from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor

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
from course_lib.validation import require_finite, require_tensor, require_whole

TISSUES = {1: "fluid", 2: "gray matter", 3: "white matter"}

_AXIAL = 80  # the slice of the 2D images: through the ventricles and the deep gray matter
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
    fixed, fixed_labels = (part.clone() for part in _anatomy("mni152", ndim))
    moving, moving_labels = (part.clone() for part in _anatomy("colin27", ndim))
    if pose is not None:
        displacement = affine_displacement(_inverse(pose, ndim), fixed.shape[2:])
        moving = warp(moving, displacement)
        moving_labels = warp(moving_labels, displacement, mode="nearest")
    spacing = _spacing(ndim)
    return Pair(moving, fixed, moving_labels, fixed_labels, displacement=None, spacing=spacing)


def pair(seed: int, ndim: int = 2) -> Pair:
    """Two synthetic people of the cohort, whose true displacement is known.

    Both are random diffeomorphisms of the same anatomy (even seeds: the template, odd seeds:
    Colin27), each with a contrast, a bias field and noise of its own. Seeds below 100 are for
    tuning, 100 and above for what is reported.

    A 2D pair takes a fraction of a second, a 3D one some seconds: keep those that you need again.

    Args:
        seed: 0 and above; the same seed always gives the same pair.
        ndim: 2 for an axial slice, 3 for the volume.

    Returns:
        A :class:`Pair` with everything known.

    Raises:
        ValueError: if ``ndim`` is not 2 or 3, or ``seed`` is negative.
    """
    seed = require_whole("seed", seed, 0)
    image, labels = _anatomy(("mni152", "colin27")[seed % 2], ndim)
    rng = np.random.default_rng(seed)
    to_moving, to_fixed = (_random_velocity(rng, image) for _ in range(2))
    moving_field, fixed_field = integrate(to_moving), integrate(to_fixed)
    # fixed(x) = anatomy(φ_f(x)) and moving(y) = anatomy(φ_m(y)), so y = φ_m⁻¹(φ_f(x)).
    displacement = compose(integrate(-to_moving), fixed_field)
    moving, fixed = warp(image, moving_field), warp(image, fixed_field)
    _require_truth(moving, fixed, displacement)
    return Pair(
        moving=_scan(rng, moving),
        fixed=_scan(rng, fixed),
        moving_labels=warp(labels, moving_field, mode="nearest"),
        fixed_labels=warp(labels, fixed_field, mode="nearest"),
        displacement=displacement,
        spacing=_spacing(ndim),
    )


def _require_truth(moving: Tensor, fixed: Tensor, displacement: Tensor) -> None:
    error = (warp(moving, displacement) - fixed).abs().mean()
    before = (moving - fixed).abs().mean()
    assert error < 0.2 * before, f"the true displacement leaves {error / before:.0%} of the error"


def _spacing(ndim: int) -> tuple[float, ...]:
    return (1.0, 1.0) if ndim == 2 else (2.0, 2.0, 2.0)


def _anatomy(name: str, ndim: int) -> tuple[Tensor, Tensor]:
    """Image and labels of one head, shared between calls: hand out copies only."""
    if isinstance(ndim, bool) or ndim not in (2, 3):
        raise ValueError(f"ndim: expected 2 or 3, got {ndim!r}")
    with torch.inference_mode(False):  # what is kept must be of use to autograd later
        return _head(name, int(ndim))


@lru_cache(maxsize=4)
def _head(name: str, ndim: int) -> tuple[Tensor, Tensor]:
    image, labels = (_load(f"{name}_{part}.nii.gz") for part in ("t1", "tissues"))
    if ndim == 2:
        image, labels = (volume[..., _AXIAL].flip(3).mT for volume in (image, labels))
    else:
        # Blur before dropping every other voxel; the first voxel stays the first.
        padded = [torch.nn.functional.pad(volume, (0, 3)) for volume in (image, labels)]
        image = smooth(padded[0], 0.8)[..., ::2, ::2, ::2]
        labels = padded[1][..., ::2, ::2, ::2]
    return image.contiguous() / 255, labels.contiguous().long()


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


def _smooth_noise(rng: np.random.Generator, channels: int, like: Tensor, mm: float) -> Tensor:
    """Gaussian noise blurred to a smoothness of ``mm``: zero mean over the grid on average."""
    noise = rng.standard_normal((1, channels, *like.shape[2:])).astype(np.float32)
    return smooth(torch.from_numpy(noise), mm / _spacing(like.ndim - 2)[0])


def _random_velocity(rng: np.random.Generator, like: Tensor) -> Tensor:
    ndim = like.ndim - 2
    velocity = _smooth_noise(rng, ndim, like, _SMOOTHNESS_MM) * _margin(like.shape[2:])
    length = velocity.norm(dim=1).mean() * _spacing(ndim)[0]  # mm
    return velocity * (_DEFORMATION_MM / length)


def _margin(shape: tuple[int, ...]) -> Tensor:
    """1 in the middle, falling smoothly to 0 at the border."""
    grid = identity_grid(shape, dtype=torch.float32)
    sizes = torch.tensor(shape).view(-1, *(1,) * len(shape))
    millimeters = torch.minimum(grid, sizes - 1 - grid) * _spacing(len(shape))[0]
    ramp = (millimeters / _MARGIN_MM).clamp(max=1)
    return (torch.sin(ramp * torch.pi / 2) ** 2).prod(0)


def _scan(rng: np.random.Generator, image: Tensor) -> Tensor:
    """The image as another scanner might show it: contrast, bias field, noise."""
    bent = image ** rng.uniform(*_CONTRAST)
    bias = _smooth_noise(rng, 1, image, _BIAS_MM)
    noise = rng.standard_normal(image.shape).astype(np.float32)
    scanned = bent * torch.exp(bias * (_BIAS / bias.std())) + _NOISE * torch.from_numpy(noise)
    return scanned.clamp(0, 1)

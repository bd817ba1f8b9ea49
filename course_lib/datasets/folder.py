"""A folder of your own NIfTI files as pairs that a network takes.

What happens to each scan, in this order: its axes are permuted and flipped to one orientation
(nothing is interpolated), it is resampled if you ask for a spacing, its intensities are brought to
0 to 1, and zeros are added (or voxels cut) on both sides until all scans have one shape that 16
divides. The affine follows every step, so a field found on these grids can leave for other
programs and be applied to the original files::

    pairs = Folder("my_scans")
    moving, fixed = pairs.volumes(0)
    displacement = model(moving.image, fixed.image).displacement
    save_displacement("field.nii.gz", displacement, fixed.affine, moving.affine)

ANTs, SimpleITK and Slicer read that file as a map in millimeters, and resample the original moving
file with it. The images are laid center on center; a deformable registration expects that they are
aligned, at least by an affine, and a scan that lies elsewhere needs that first. Lesson 10 teaches
the steps, lesson 30 uses them.
"""

import operator
from collections.abc import Sequence
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from course_lib import io
from course_lib.datasets import Pair
from course_lib.io import Volume, load_nifti
from course_lib.validation import require_numbers, require_option, require_shape, require_spacing
from course_lib.volumes import (
    crop_or_pad,
    next_multiple,
    normalize,
    orientation,
    reorient,
    require_volume,
    resample,
)

_IN_MEMORY = 512 * 2**20  # bytes of prepared scans that one folder keeps at hand
_SAME = 1e-3  # relative: headers are rounded
_ENDINGS = (".nii.gz", ".nii")
_ROLES = ("_moving", "_fixed")


class _Header(NamedTuple):
    """What is known of a file before its voxels are read: the grid it will have when prepared."""

    file: Path
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: str  # as the file has them: three letters; for an image of two axes, its directions


class _Scan(NamedTuple):
    volume: Volume
    labels: Tensor | None


class Folder(Dataset[Pair]):
    """Pairs from a folder of NIfTI files, 2D or 3D.

    Headers are read at once, voxels when a pair is asked for: call :meth:`prepare` to find a
    broken file before a training does.

    Args:
        path: the folder.
        pairs: ``"all"`` for every ordered pair of two different scans, ``"named"`` for the files
            ``NAME_moving.nii.gz`` and ``NAME_fixed.nii.gz`` beside each other.
        atlas: a file name in the folder: every other scan is registered to it, and ``pairs`` must
            be left alone.
        images: which files are scans, with ``*`` for anything, such as ``"*_T1w.nii.gz"``.
        labels: where a scan's label map is: a path from the folder with ``{name}`` for the scan's
            name without ending, such as ``"{name}_labels.nii.gz"`` or ``"labels/{name}.nii.gz"``.
            Files that match it are no scans. None: there are no labels.
        axes: the orientation that all 3D scans get, as in ``volumes.reorient``. None leaves the
            axes as they are in the files, and refuses a folder where they differ.
        spacing: mm per voxel along each axis, after reorientation; None keeps the files' own, and
            refuses a folder where they differ.
        shape: of all images; None means the largest along each axis, rounded up to multiples of 16.
        window: the intensities that become 0 and 1, such as ``(-1000, 400)`` for the lungs in CT.
            None: ``volumes.normalize``, for images whose background is 0.

    Attributes:
        names: the file names of each pair, moving before fixed.
        shape: the spatial shape of every image.
        spacing: mm per voxel along each axis.

    Raises:
        FileNotFoundError: if there is no such folder, atlas, partner, or label map.
        TypeError, ValueError: if there are no two scans, or they differ in the number of axes, in
            orientation or spacing where that is left to the files, or on an option that is none.
            When a pair is asked for: a broken file, 4D, NaN, a constant image, intensities below 0
            without a ``window``, labels that are not whole numbers or lie on another grid.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        pairs: Literal["all", "named"] = "all",
        atlas: str | None = None,
        images: str = "*",
        labels: str | None = None,
        axes: str | None = "RAS",
        spacing: Sequence[float] | None = None,
        shape: Sequence[int] | None = None,
        window: Sequence[float] | None = None,
    ) -> None:
        self.path = _require_folder(path)
        require_option("pairs", pairs, ("all", "named"))
        self._labels, self._axes = _require_pattern(labels), axes
        self._window = _require_window(window)
        files = _scans(self.path, images, self._labels)
        self.names = _pairs(files, pairs, _require_atlas(atlas, files, self.path))
        self._headers = {name: _header(files[name], axes) for pair in self.names for name in pair}
        headers = list(self._headers.values())
        ndim = _require_one_rank(headers)
        if axes is None or ndim == 2:
            _require_one_orientation(headers)
        self._resampled = spacing is not None
        wanted = require_spacing("spacing", spacing, ndim)
        self.spacing = _one_spacing(headers) if wanted is None else tuple(wanted.tolist())
        self.shape = (
            _common_shape(headers, self.spacing) if shape is None else require_shape("shape", shape)
        )
        if len(self.shape) != ndim:
            raise ValueError(f"shape: expected {ndim} sizes, got {self.shape}")
        self._memory: dict[str, _Scan] = {}

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.names)

    def __getitem__(self, index: int) -> Pair:
        """One pair, with a batch axis of 1; its true displacement is unknown."""
        moving, fixed = (self._scan(name) for name in self.names[operator.index(index)])
        return Pair(
            moving.volume.image.clone(),
            fixed.volume.image.clone(),
            None if moving.labels is None else moving.labels.clone(),
            None if fixed.labels is None else fixed.labels.clone(),
            None,
            self.spacing,
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a ``DataLoader``'s worker gets: everything but the scans in memory."""
        return self.__dict__ | {"_memory": {}}

    def volumes(self, index: int) -> tuple[Volume, Volume]:
        """The two images of a pair as prepared, each with the affine of its new grid.

        Args:
            index: of the pair.

        Returns:
            Moving and fixed.
        """
        moving, fixed = (self._scan(name).volume for name in self.names[operator.index(index)])
        return tuple(v._replace(image=v.image.clone()) for v in (moving, fixed))  # type: ignore[return-value]

    def prepare(self, progress: bool = True) -> "Folder":
        """Read every file once, so that what is wrong with one is said now.

        Args:
            progress: whether to show a bar.

        Returns:
            The folder itself.

        Raises:
            TypeError, ValueError: as :class:`Folder`, for the first file that is refused.
        """
        for name in tqdm(self._headers, "reading scans", disable=not progress, leave=False):
            self._scan(name)
        return self

    def _scan(self, name: str) -> _Scan:
        """A prepared scan, from memory or from its file."""
        if name not in self._memory:
            with torch.inference_mode(False):
                scan = self._prepared(self._headers[name].file)
            size = scan.volume.image.nbytes + (0 if scan.labels is None else scan.labels.nbytes)
            if size * (len(self._memory) + 1) > _IN_MEMORY:
                return scan
            self._memory[name] = scan
        return self._memory[name]

    def _prepared(self, file: Path) -> _Scan:
        volume = load_nifti(file)
        labels = (
            None if self._labels is None else _load_labels(self._labels, file, self.path, volume)
        )
        volume = self._on_grid(volume, "linear")
        image = self._intensities(file, volume.image)
        volume = crop_or_pad(volume._replace(image=image), self.shape)
        if labels is not None:
            labels = crop_or_pad(self._on_grid(labels, "nearest"), self.shape)
        return _Scan(volume, None if labels is None else labels.image)

    def _on_grid(self, volume: Volume, mode: Literal["linear", "nearest"]) -> Volume:
        if len(self.shape) == 3 and self._axes is not None:
            volume = reorient(volume, self._axes)
        return resample(volume, self.spacing, mode) if self._resampled else volume

    def _intensities(self, file: Path, image: Tensor) -> Tensor:
        if self._window is not None:
            low, high = self._window
            image = ((image - low) / (high - low)).clamp(0, 1)
            if image.min() == image.max():
                raise ValueError(f"window: nothing of {file} lies between {low:g} and {high:g}")
            return image
        if (image < 0).float().mean() > 0.01:
            raise ValueError(
                f"window: {file} has intensities below 0, to {float(image.min()):g}, as CT has; "
                "say which become 0 and 1, such as window=(-1000, 400)"
            )
        return normalize(image)


# -------------------------------------------------------------------------------- which files


def _require_folder(path: str | PathLike[str]) -> Path:
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path: expected a folder, got {type(path).__name__}")
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"path: there is no folder {folder.absolute()}")
    return folder


def _require_pattern(labels: str | None) -> str | None:
    if labels is not None and (not isinstance(labels, str) or "{name}" not in labels):
        raise ValueError(
            f"labels: expected a path with {{name}} in it, such as '{{name}}_labels.nii.gz', got "
            f"{labels!r}"
        )
    return labels


def _require_window(window: Sequence[float] | None) -> tuple[float, float] | None:
    if window is None:
        return None
    limits = require_numbers("window", window, "two numbers, what becomes 0 and what becomes 1")
    if limits.shape != (2,) or not np.isfinite(limits).all() or limits[0] >= limits[1]:
        raise ValueError(f"window: expected two numbers, the smaller one first, got {window!r}")
    return float(limits[0]), float(limits[1])


def _name(file: Path) -> str:
    """The file's name without ``.nii.gz``."""
    ending = next(end for end in _ENDINGS if file.name.endswith(end))
    return file.name.removesuffix(ending)


def _scans(folder: Path, images: str, labels: str | None) -> dict[str, Path]:
    """The scans of the folder by file name, in order."""
    if not isinstance(images, str):
        raise TypeError(f"images: expected a pattern such as '*.nii.gz', got {images!r}")
    found = sorted(f for f in folder.iterdir() if f.name.endswith(_ENDINGS) and f.is_file())
    scans = {f.name: f for f in found if fnmatch(f.name, images) and not f.name.startswith(".")}
    if labels is not None:
        taken = labels.replace("{name}", "*")
        scans = {name: file for name, file in scans.items() if not fnmatch(name, taken)}
    if len(scans) < 2:
        raise ValueError(
            f"path: expected at least two scans (.nii or .nii.gz) that match {images!r} in "
            f"{folder.absolute()}, got {len(scans)}"
        )
    return scans


def _require_atlas(atlas: str | None, files: dict[str, Path], folder: Path) -> str | None:
    if atlas is not None and atlas not in files:
        raise FileNotFoundError(
            f"atlas: expected the name of a scan in {folder.absolute()}, such as "
            f"{next(iter(files))!r}, got {atlas!r}"
        )
    return atlas


def _pairs(files: dict[str, Path], pairs: str, atlas: str | None) -> list[tuple[str, str]]:
    """Moving before fixed, by file name."""
    if atlas is not None:
        if pairs != "all":
            raise ValueError(f"pairs: with an atlas, leave it out; got {pairs!r}")
        return [(name, atlas) for name in files if name != atlas]
    if pairs == "all":
        return [(moving, fixed) for moving in files for fixed in files if moving != fixed]
    return _named_pairs(files)


def _named_pairs(files: dict[str, Path]) -> list[tuple[str, str]]:
    known = {_name(file): name for name, file in files.items()}
    found = []
    for stem, name in known.items():
        role = next((role for role in _ROLES if stem.endswith(role)), None)
        if role is None:
            raise ValueError(
                f"pairs: expected names that end in _moving or _fixed, such as "
                f"'anna_moving.nii.gz', got {name!r}; images=… leaves files out"
            )
        other = stem.removesuffix(role) + _ROLES[1 - _ROLES.index(role)]
        if other not in known:
            raise FileNotFoundError(f"pairs: {name} has no partner {other}.nii.gz beside it")
        if role == "_moving":
            found.append((name, known[other]))
    return found


# ------------------------------------------------------------------------------- which grid


def _header(file: Path, axes: str | None) -> _Header:
    """The grid of a file once its axes run as asked for; its voxels stay on disk."""
    loaded: Any = _opened(file)
    shape = io._without_trailing_ones(tuple(int(n) for n in loaded.shape))
    if len(shape) not in (2, 3):
        raise ValueError(
            f"path: expected 2D or 3D images, got shape {shape} in {file}; "
            "choose one time point or channel first"
        )
    affine = io._affine_in_mm(file, loaded.header)
    if len(shape) == 2:
        sizes = np.linalg.norm(affine[:3, :2], axis=0)
        steps = np.round(affine[:3, :2] / sizes, 2) + 0.0
        return _Header(file, shape, tuple(sizes.tolist()), str(steps.tolist()))
    # A small stand-in takes the way of the scan: its axes say where those of the scan go.
    stand_in = Volume(torch.zeros(1, 1, 2, 3, 4), affine, (0.0, 0.0, 0.0))
    turned = stand_in if axes is None else reorient(stand_in, axes)
    sizes = [shape[n - 2] for n in turned.image.shape[2:]]
    found = tuple(np.linalg.norm(turned.affine[:3, :3], axis=0).tolist())
    return _Header(file, tuple(sizes), found, orientation(affine))


def _opened(file: Path) -> Any:
    try:
        loaded = nib.load(file)
        if isinstance(loaded, nib.Nifti1Image):
            return loaded
    except Exception:  # whatever nibabel stumbled over, load_nifti says it better
        pass
    load_nifti(file)
    raise ValueError(f"path: {file} is not a readable NIfTI file")


def _require_one_rank(headers: list[_Header]) -> int:
    first = headers[0]
    for other in headers:
        if len(other.shape) != len(first.shape):
            raise ValueError(
                f"path: expected scans of equally many axes, got {first.shape} in "
                f"{first.file.name} and {other.shape} in {other.file.name}"
            )
    return len(first.shape)


def _require_one_orientation(headers: list[_Header]) -> None:
    first = headers[0]
    for other in headers:
        if other.axes != first.axes:
            raise ValueError(
                f"axes: expected one orientation, got {first.axes} in {first.file.name} and "
                f"{other.axes} in {other.file.name}; "
                + ("turn one of them first" if len(first.shape) == 2 else "axes='RAS' turns them")
            )


def _one_spacing(headers: list[_Header]) -> tuple[float, ...]:
    first = headers[0]
    for other in headers:
        if not np.allclose(other.spacing, first.spacing, rtol=_SAME, atol=0):
            raise ValueError(
                f"spacing: expected one, got {_mm(first.spacing)} in {first.file.name} and "
                f"{_mm(other.spacing)} in {other.file.name}; spacing=… in mm resamples all scans"
            )
    return first.spacing


def _mm(spacing: tuple[float, ...]) -> str:
    return " × ".join(f"{size:.4g}" for size in spacing) + " mm"


def _common_shape(headers: list[_Header], spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Room for the largest scan along each axis, in multiples of 16."""
    extents = [np.multiply(header.shape, header.spacing) for header in headers]
    voxels = np.max(extents, axis=0) / spacing
    return next_multiple(np.maximum(np.ceil(voxels - _SAME * voxels), 2).astype(int).tolist())


# -------------------------------------------------------------------------------------- labels


def _load_labels(pattern: str, image: Path, folder: Path, volume: Volume) -> Volume:
    """A scan's label map, int64, on its grid."""
    file = folder / pattern.replace("{name}", _name(image))
    if not file.is_file():
        raise FileNotFoundError(f"labels: {image.name} has none: there is no {file}")
    labels = load_nifti(file)
    shape, other = require_volume("volume", volume), require_volume("labels", labels)
    # A place in the world may differ by a hundredth of a voxel: headers are rounded.
    limit = 0.01 * min(volume.spacing)
    if other != shape or not np.allclose(labels.affine, volume.affine, rtol=0, atol=limit):
        raise ValueError(
            f"labels: expected the grid of {image.name}, shape {shape} and affine\n"
            f"{volume.affine}\ngot {other} and\n{labels.affine}\nin {file}"
        )
    whole = labels.image.round()
    if not torch.equal(whole, labels.image) or whole.min() < 0:
        raise ValueError(f"labels: expected whole numbers of 0 and above in {file}")
    return labels._replace(image=whole.long())

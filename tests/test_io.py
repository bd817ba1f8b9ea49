"""NIfTI files come in whole, with their place in the world, or not at all."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from course_lib.io import Volume, load_nifti

VALUES = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_was_written_is_read(tmp_path, name):
    path = write(tmp_path / name, VALUES)
    for given in (path, str(path)):
        volume = load_nifti(given)
        assert isinstance(volume, Volume)
        assert volume.image.shape == (1, 1, 4, 5, 6) and volume.image.dtype == torch.float32
        np.testing.assert_array_equal(volume.image[0, 0].numpy(), VALUES)
        np.testing.assert_allclose(volume.affine, AFFINE)
        assert volume.affine.dtype == np.float64
        # A rotated patient: the spacing of an array axis is the length of the affine's column.
        assert volume.spacing == pytest.approx((3.0, 2.0, 4.0))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float64])
def test_every_real_dtype_becomes_float32(tmp_path, dtype):
    values = (VALUES * 200).astype(dtype)
    image = load_nifti(write(tmp_path / "a.nii", values)).image
    np.testing.assert_array_equal(image[0, 0].numpy(), values.astype(np.float32))


def test_scaled_integers_are_given_as_intensities(tmp_path):
    stored = nib.Nifti1Image((VALUES * 1000).astype(np.int16), AFFINE)
    stored.header.set_slope_inter(0.5, -10)
    # nibabel rescales when it saves, so the numbers in the file are those times the slope.
    nib.save(stored, tmp_path / "a.nii")
    loaded = load_nifti(tmp_path / "a.nii").image[0, 0].numpy()
    np.testing.assert_allclose(loaded, nib.load(tmp_path / "a.nii").get_fdata(), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "spatial"),
    [((4, 5), (4, 5)), ((4, 5, 1), (4, 5)), ((4, 5, 6, 1), (4, 5, 6)), ((4, 5, 1, 1), (4, 5))],
)
def test_trailing_axes_of_one_are_dropped(tmp_path, shape, spatial):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    volume = load_nifti(write(tmp_path / "a.nii.gz", values, np.diag([2.0, 3.0, 4.0, 1.0])))
    assert volume.image.shape == (1, 1, *spatial)
    assert volume.spacing == (2.0, 3.0, 4.0)[: len(spatial)]
    np.testing.assert_array_equal(volume.image.flatten().numpy(), values.ravel())


def test_the_image_is_a_tensor_of_its_own(tmp_path):
    path = write(tmp_path / "a.nii", VALUES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "the array is not writable"
        load_nifti(path).image.zero_()
    volume = load_nifti(path)
    np.testing.assert_array_equal(volume.image[0, 0].numpy(), VALUES)
    with path.open("r+b") as file:  # nor does it change with the file, which is only mapped
        file.seek(352)
        file.write(bytes(VALUES.nbytes))
    np.testing.assert_array_equal(volume.image[0, 0].numpy(), VALUES)


def test_nifti2_is_nifti_too(tmp_path):
    nib.save(nib.Nifti2Image(VALUES, AFFINE), tmp_path / "a.nii")
    assert load_nifti(tmp_path / "a.nii").image.shape == (1, 1, 4, 5, 6)


# ------------------------------------------------------------------------------------ refusals


def patched(offset: int, content: bytes) -> Callable[[Path], Path]:
    """A sound file with some bytes of its header changed."""

    def make(folder: Path) -> Path:
        path = write(folder / "a.nii", VALUES)
        raw = bytearray(path.read_bytes())
        raw[offset : offset + len(content)] = content
        path.write_bytes(raw)
        return path

    return make


def cut(name: str, part: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(folder / name, VALUES)
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
        return path

    return make


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def holding(values: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "a.nii.gz", values, affine)


def corrupt_gzip(folder: Path) -> Path:
    path = write(folder / "a.nii.gz", VALUES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def sform(*rows: list[float]) -> Callable[[Path], Path]:
    """A file whose affine nibabel itself would refuse to write."""
    return patched(280, np.array(rows, dtype="<f4").tobytes())


def with_value(value: float) -> np.ndarray:
    values = VALUES.copy()
    values[1, 2, 3] = value
    return values


def mgh(folder: Path) -> Path:
    nib.save(nib.MGHImage(VALUES, AFFINE), folder / "a.mgz")
    return folder / "a.mgz"


COLORS = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
BROKEN = {
    "empty file": raw("a.nii", b""),
    "empty .gz": raw("a.nii.gz", b""),
    "text": raw("a.nii", b"hello" * 200),
    "text called .gz": raw("a.nii.gz", b"hello" * 200),
    "gzip of text": raw("a.nii.gz", gzip.compress(b"hello" * 200)),
    "no NIfTI": raw("a.png", b"\x89PNG\r\n\x1a\n" + b"0" * 500),
    "another format": mgh,
    "half a header": cut("a.nii", 0.4),
    "half the voxels": cut("a.nii", 0.8),
    "half a .gz": cut("a.nii.gz", 0.5),
    "nearly a .gz": cut("a.nii.gz", 0.95),
    "damaged .gz": corrupt_gzip,
    "unknown datatype": patched(70, (999).to_bytes(2, "little")),
    "more voxels than bytes": patched(42, (30000).to_bytes(2, "little")),
    "negative size": patched(42, (-3).to_bytes(2, "little", signed=True)),
    "size of zero": patched(42, (0).to_bytes(2, "little")),
    "nine axes": patched(40, (9).to_bytes(2, "little")),
    "colors": holding(COLORS),
    "complex": holding(VALUES.astype(np.complex64)),
    "time series": holding(np.stack([VALUES, VALUES], axis=3)),
    "one axis": holding(np.arange(5, dtype=np.float32)),
    "constant": holding(np.full_like(VALUES, 7)),
    "zeros": holding(np.zeros_like(VALUES)),
    "NaN": holding(with_value(np.nan)),
    "infinity": holding(with_value(np.inf)),
    "too large for float32": holding(VALUES.astype(np.float64) * 1e300),
    "singular affine": sform([1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]),
    "flat affine": sform([1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]),
    "affine with NaN": sform([1, 0, 0, 0], [0, float("nan"), 0, 0], [0, 0, 1, 0]),
    "affine with infinity": sform([1, 0, 0, 0], [0, 1, 0, float("inf")], [0, 0, 1, 0]),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused_in_one_sentence(tmp_path, make):
    path = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one refusal, not a warning before it
        with pytest.raises(ValueError, match=r"^path: ") as caught:
            load_nifti(path)
    assert str(path) in str(caught.value)


def test_tiny_voxels_are_no_singular_affine(tmp_path):
    # Microscopy: 0.02 µm written in mm.
    volume = load_nifti(write(tmp_path / "a.nii", VALUES, np.diag([2e-5, 2e-5, 2e-5, 1.0])))
    assert volume.spacing == pytest.approx((2e-5,) * 3)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nothing.nii", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            load_nifti(path)

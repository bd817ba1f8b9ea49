"""NIfTI files come in and go out whole, with their place in the world, or not at all."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from course_lib import io
from course_lib.io import Volume, load_nifti, save_displacement, save_nifti

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


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_the_headers_unit_of_length_counts(tmp_path, unit, mm):
    image = nib.Nifti1Image(VALUES, np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii")
    volume = load_nifti(tmp_path / "a.nii")
    assert volume.spacing == pytest.approx((2 * mm, 3 * mm, 4 * mm))
    np.testing.assert_allclose(volume.affine, np.diag([2 * mm, 3 * mm, 4 * mm, 1.0]))


# -------------------------------------------------------------------------------------- saving

IMAGE = torch.from_numpy(VALUES)[None, None]
LABELS = (IMAGE * 5).long()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("image", [IMAGE, LABELS, IMAGE[..., 0], LABELS[..., 0]])
def test_what_is_saved_is_loaded(tmp_path, image, name):
    for given in (tmp_path / name, str(tmp_path / name)):
        save_nifti(given, image, AFFINE)
        volume = load_nifti(given)
        torch.testing.assert_close(volume.image, image.float(), rtol=0, atol=0)
        np.testing.assert_array_equal(volume.affine, AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == [name], "a draft is left behind"


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (LABELS, np.uint8),
        (IMAGE > 0.5, np.uint8),
        (LABELS.to(torch.int16), np.uint8),
        (LABELS - 1, np.int16),
        (LABELS * 200, np.int16),
        (LABELS * 20_000, np.int32),
        ((LABELS * 16_000).to(torch.uint16), np.int32),
        (LABELS.clamp(0, 1) * 255, np.uint8),
        (LABELS.clamp(0, 1) * 256, np.int16),
        (LABELS.clamp(0, 1) * 65_535 - 32_768, np.int16),
        (LABELS.clamp(0, 1) * 65_536 - 32_768, np.int32),
        (LABELS.clamp(0, 1) * (2**32 - 1) - 2**31, np.int32),
        (IMAGE, np.float32),
        (IMAGE.double(), np.float32),
        (IMAGE.half(), np.float32),
        (IMAGE.bfloat16(), np.float32),
    ],
)
def test_each_dtype_is_stored_small_and_exact(tmp_path, values, stored):
    save_nifti(tmp_path / "a.nii", values, AFFINE)
    file = nib.load(tmp_path / "a.nii")
    assert file.get_data_dtype() == stored
    # Not scaled either: what other programs read as labels are labels.
    assert file.dataobj.slope == 1 and file.dataobj.inter == 0
    expected = values.float()[0, 0].numpy()
    np.testing.assert_array_equal(np.asarray(file.dataobj, dtype=np.float32), expected)


def test_gradients_and_views_are_no_obstacle(tmp_path):
    image = IMAGE.clone().requires_grad_().flip(2).transpose(3, 4)
    save_nifti(tmp_path / "a.nii", image, AFFINE.tolist())
    torch.testing.assert_close(load_nifti(tmp_path / "a.nii").image, image.detach())


def test_numbers_that_fit_into_no_dtype_of_a_file_are_refused(tmp_path):
    for values in (LABELS * 2**30, LABELS.clamp(0, 1) * (2**32) - 2**31, -LABELS * 2**31 - 1):
        with pytest.raises(ValueError, match=r"^image: .*fit into int32"):
            save_nifti(tmp_path / "a.nii", values, AFFINE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flip", range(8))
def test_simpleitk_puts_the_image_where_we_do(tmp_path, flip):
    rotation, _ = np.linalg.qr(np.random.default_rng(flip).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * [2.0, 0.7, 1.3] * [(-1) ** (flip >> axis & 1) for axis in range(3)]
    affine[:3, 3] = [30, -40, 50]
    save_nifti(tmp_path / "a.nii.gz", IMAGE, affine)
    read = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T, VALUES)
    there = read.TransformIndexToPhysicalPoint((1, 2, 3))
    ours = affine @ [1, 2, 3, 1] * [-1, -1, 1, 1]  # RAS to LPS
    np.testing.assert_allclose(there, ours[:3], atol=1e-4)


def test_a_sheared_grid_comes_back_and_itk_does_not_take_it_for_another(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 1] = 0.5
    save_nifti(tmp_path / "a.nii", IMAGE, affine)
    np.testing.assert_array_equal(load_nifti(tmp_path / "a.nii").affine, affine)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "a.nii"))


def test_the_same_image_makes_the_same_file(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        save_nifti(tmp_path / name, IMAGE, AFFINE)
    first = (tmp_path / "a.nii.gz").read_bytes()
    assert first == (tmp_path / "b.nii.gz").read_bytes()
    assert first[4:8] == bytes(4)  # where gzip keeps the time: tomorrow's file is the same, too


def test_a_file_is_readable_by_whom_the_folder_lets(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save_nifti(tmp_path / "a.nii", IMAGE, AFFINE)
    assert (tmp_path / "a.nii").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_nifti(tmp_path / "a.nii", IMAGE, AFFINE)
    before = (tmp_path / "a.nii").read_bytes()

    def full_disk(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(io.Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_nifti(tmp_path / "a.nii", IMAGE + 1, AFFINE)
    with pytest.raises(OSError, match="No space left"):
        save_displacement(tmp_path / "a.nii", torch.zeros(1, 3, 4, 5, 6), AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"], "a draft is left behind"
    assert (tmp_path / "a.nii").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "error", "word"),
    [
        ("a.mha", ValueError, "ends in .nii or .nii.gz"),
        ("a", ValueError, "ends in .nii or .nii.gz"),
        ("nothing/a.nii", FileNotFoundError, "no such folder"),
        ("folder.nii", ValueError, "is a folder"),
    ],
)
def test_no_file_is_written_where_none_belongs(tmp_path, path, error, word):
    (tmp_path / "folder.nii").mkdir()
    for save in (
        lambda: save_nifti(tmp_path / path, IMAGE, AFFINE),
        lambda: save_displacement(tmp_path / path, torch.zeros(1, 3, 4, 5, 6), AFFINE),
    ):
        with pytest.raises(error, match=rf"^path: .*{word}"):
            save()
    assert [p.name for p in tmp_path.rglob("*")] == ["folder.nii"]


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

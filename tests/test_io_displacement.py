"""Fields go out to ITK and come back: SimpleITK, as a second opinion, warps images the same.

Two SimpleITK readings of one file check both directions of the promise: what we write, it applies;
what it writes, we apply. Grids are oblique, anisotropic and flipped, at random.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from course_lib.io import (
    Field,
    load_displacement,
    load_nifti,
    save_displacement,
    save_nifti,
)
from course_lib.spatial import affine_displacement, identity_grid, smooth, warp

SHAPES = {2: (22, 17), 3: (15, 18, 13)}
MOVING_SHAPES = {2: (19, 25), 3: (17, 12, 20)}
# Intensities are 0 to 1, positions some 100 mm, both in float32 on disk: 1e-4 voxels are lost.
CLOSE = 1e-5


def random_affine(rng: np.random.Generator, ndim: int, *, flip: int = 0) -> np.ndarray:
    """A grid at any angle, of any spacing; the bits of ``flip`` turn axes round."""
    rotation, _ = np.linalg.qr(rng.normal(size=(ndim, ndim)))
    signs = [-1.0 if flip >> axis & 1 else 1.0 for axis in range(ndim)]
    affine = np.eye(4)
    affine[:ndim, :ndim] = rotation * rng.uniform(0.5, 3.0, ndim) * signs
    affine[:ndim, 3] = rng.uniform(-120, 120, ndim)
    return affine


def random_image(seed: int, shape: tuple[int, ...]) -> Tensor:
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return smooth(noise, 1.0)


def random_field(seed: int, shape: tuple[int, ...], amplitude: float = 8.0) -> Tensor:
    noise = torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    return amplitude * smooth(noise, 2.0)


def inside(displacement: Tensor, moving_shape: tuple[int, ...]) -> np.ndarray:
    """The voxels that look for their value inside the moving image, a hair away from its edge."""
    ndim = displacement.shape[1]
    where = identity_grid(displacement.shape[2:]) + displacement[0]
    last = torch.tensor(moving_shape).sub(1).view(-1, *(1,) * ndim)
    return ((where > 0.01) & (where < last - 0.01)).all(0).numpy()


def itk_warp(moving: Path, fixed: Path, field: Path) -> np.ndarray:
    """What SimpleITK makes of the three files, with the axes in our order."""
    vectors = sitk.Cast(sitk.ReadImage(str(field)), sitk.sitkVectorFloat64)
    image, reference = sitk.ReadImage(str(moving)), sitk.ReadImage(str(fixed))
    transform = sitk.DisplacementFieldTransform(vectors)
    warped = sitk.Resample(image, reference, transform, sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(warped).T


def largest_difference(ours: Tensor, theirs: np.ndarray, where: np.ndarray) -> float:
    assert where.mean() > 0.3, "too little is compared"
    return float(np.abs(ours[0, 0].numpy() - theirs)[where].max())


DIMENSIONS_AND_SEEDS = [(ndim, seed) for seed in range(4) for ndim in (2, 3)]
GRIDS = [
    pytest.param(ndim, seed, flip, id=f"{ndim}D grid {seed} flip {flip}")
    for ndim in (2, 3)
    for seed, flip in product(range(3), range(2**ndim))
]


@pytest.mark.parametrize(("ndim", "seed", "flip"), GRIDS)
def test_simpleitk_warps_by_our_file_as_we_do(tmp_path, record_property, ndim, seed, flip):
    shape = SHAPES[ndim]
    affine = random_affine(np.random.default_rng(seed), ndim, flip=flip)
    moving, displacement = random_image(seed, shape), random_field(seed + 50, shape)
    assert displacement.abs().amax() > 1.5, "a field that moves nothing proves nothing"
    save_nifti(tmp_path / "moving.nii.gz", moving, affine)
    save_displacement(tmp_path / "field.nii.gz", displacement, affine)
    theirs = itk_warp(
        tmp_path / "moving.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "field.nii.gz"
    )
    difference = largest_difference(warp(moving, displacement), theirs, inside(displacement, shape))
    record_property("largest intensity difference inside the image", difference)
    print(f"largest intensity difference inside the image: {difference:.1e}")
    assert difference < CLOSE


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("pixel", [sitk.sitkVectorFloat32, sitk.sitkVectorFloat64])
@pytest.mark.parametrize(("ndim", "seed"), DIMENSIONS_AND_SEEDS[:6])
def test_we_warp_by_simpleitks_file_as_it_does(tmp_path, ndim, seed, pixel, suffix):
    shape = SHAPES[ndim]
    affine = random_affine(np.random.default_rng(seed + 10), ndim, flip=seed)
    moving = random_image(seed, shape)
    save_nifti(tmp_path / "moving.nii.gz", moving, affine)
    reference = sitk.ReadImage(str(tmp_path / "moving.nii.gz"))
    mm = 4 * random_field(seed + 90, shape)[0].movedim(0, -1).numpy().astype(np.float64)
    vectors = sitk.GetImageFromArray(mm.transpose(*range(ndim)[::-1], ndim), isVector=True)
    vectors.CopyInformation(reference)
    sitk.WriteImage(sitk.Cast(vectors, pixel), str(tmp_path / f"field{suffix}"))

    field = load_displacement(tmp_path / f"field{suffix}")
    theirs = itk_warp(
        tmp_path / "moving.nii.gz", tmp_path / "moving.nii.gz", tmp_path / f"field{suffix}"
    )
    assert field.displacement.shape == (1, ndim, *shape)
    assert field.displacement.dtype == torch.float32
    np.testing.assert_allclose(field.affine, load_nifti(tmp_path / "moving.nii.gz").affine, 1e-5)
    assert field.displacement.abs().amax() > 0.5
    ours, where = warp(moving, field.displacement), inside(field.displacement, shape)
    difference = largest_difference(ours, theirs, where)
    print(f"largest intensity difference inside the image: {difference:.1e}")
    assert difference < CLOSE


@pytest.mark.parametrize(("ndim", "seed"), DIMENSIONS_AND_SEEDS[:6])
def test_a_moving_image_on_a_grid_of_its_own(tmp_path, ndim, seed):
    # The moving grid is the fixed one's, turned, stretched and shifted; so u is large.
    shape, moving_shape = SHAPES[ndim], MOVING_SHAPES[ndim]
    rng = np.random.default_rng(seed + 20)
    affine = random_affine(rng, ndim, flip=seed)
    change = np.eye(4)  # from moving to fixed voxels: centers on centers
    turn, _ = np.linalg.qr(np.eye(ndim) + 0.2 * rng.normal(size=(ndim, ndim)))
    turn *= np.sign(np.diag(turn))
    change[:ndim, :ndim] = turn * rng.uniform(0.7, 1.3, ndim)
    centers = [(np.array(s) - 1) / 2 for s in (shape, moving_shape)]
    change[:ndim, 3] = centers[0] - change[:ndim, :ndim] @ centers[1]
    moving_affine = affine @ change
    moving_affine = orthogonalized(moving_affine, ndim)
    back = np.linalg.inv(moving_affine) @ affine
    grid = identity_grid(shape, dtype=torch.float64).flatten(1).numpy()
    rigid = back[:ndim, :ndim] @ grid + back[:ndim, 3:] - grid  # the same point of the world
    displacement = torch.from_numpy(rigid).float().view(1, ndim, *shape) + random_field(seed, shape)
    moving = random_image(seed, moving_shape)

    save_nifti(tmp_path / "fixed.nii.gz", random_image(9, shape), affine)
    save_nifti(tmp_path / "moving.nii.gz", moving, moving_affine)
    save_displacement(tmp_path / "field.nii.gz", displacement, affine, moving_affine)
    theirs = itk_warp(
        tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", tmp_path / "field.nii.gz"
    )
    ours, where = warp(moving, displacement), inside(displacement, moving_shape)
    difference = largest_difference(ours, theirs, where)
    print(f"largest intensity difference inside the image: {difference:.1e}")
    assert difference < CLOSE
    loaded = load_displacement(tmp_path / "field.nii.gz", moving_affine).displacement
    assert (loaded - displacement).abs().amax() < 1e-3
    # Without the moving image's affine the file's meaning is another, and far away.
    wrong = load_displacement(tmp_path / "field.nii.gz").displacement
    assert (wrong - displacement).abs().amax() > 0.5


def orthogonalized(affine: np.ndarray, ndim: int) -> np.ndarray:
    """The nearest grid at right angles that has the same center column lengths and place."""
    lengths = np.linalg.norm(affine[:ndim, :ndim], axis=0)
    left, _, right = np.linalg.svd(affine[:ndim, :ndim] / lengths)
    changed = affine.copy()
    changed[:ndim, :ndim] = left @ right * lengths
    return changed


@pytest.mark.parametrize(("ndim", "seed"), DIMENSIONS_AND_SEEDS)
def test_what_was_written_is_read(tmp_path, ndim, seed):
    affine = random_affine(np.random.default_rng(seed), ndim, flip=seed)
    displacement = random_field(seed, SHAPES[ndim])
    save_displacement(tmp_path / "a.nii.gz", displacement, affine)
    field = load_displacement(tmp_path / "a.nii.gz")
    assert isinstance(field, Field)
    assert (field.displacement - displacement).abs().amax() < 1e-5
    np.testing.assert_allclose(field.affine, affine, rtol=1e-6, atol=1e-5)
    expected = np.linalg.norm(affine[:3, :3], axis=0)[:ndim]
    assert field.spacing == pytest.approx(tuple(expected))


def test_the_numbers_in_the_file_worked_by_hand(tmp_path):
    # Array axis 0 runs to the back (−y of RAS, 2 mm a voxel), axis 1 to the right (+x, 3 mm).
    affine = np.array([[0, 3.0, 0, 5], [-2.0, 0, 0, 6], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    displacement = torch.zeros(1, 2, 4, 5)
    displacement[0, 0], displacement[0, 1] = 10, 1
    save_displacement(tmp_path / "a.nii", displacement, affine)
    stored = nib.load(tmp_path / "a.nii")
    assert stored.shape == (4, 5, 1, 1, 2)
    assert int(stored.header["intent_code"]) == 1007
    assert stored.get_data_dtype() == np.float32
    assert stored.header.get_xyzt_units()[0] == "mm"
    # 10 voxels back are 20 mm along LPS's second axis; 1 voxel right is −3 mm along its first.
    np.testing.assert_array_equal(np.asarray(stored.dataobj)[1, 2, 0, 0], [-3.0, 20.0])


def test_a_3d_field_has_its_components_on_the_fifth_axis(tmp_path):
    save_displacement(tmp_path / "a.nii", random_field(0, (4, 5, 6)), np.eye(4))
    assert nib.load(tmp_path / "a.nii").shape == (4, 5, 6, 1, 3)


def test_an_affine_registration_becomes_a_field_of_itk(tmp_path):
    # The field of a known affine, saved, agrees with ITK's own transform of points.
    affine = random_affine(np.random.default_rng(4), 3)
    matrix = torch.eye(3, 4)[None] + 0.05 * torch.arange(12.0).view(1, 3, 4) / 12
    displacement = affine_displacement(matrix, SHAPES[3])
    save_displacement(tmp_path / "a.nii.gz", displacement, affine)
    vectors = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    for voxel in ((0, 0, 0), (3, 4, 5), (14, 17, 12)):
        start = np.array(vectors.TransformIndexToPhysicalPoint(voxel))
        end = start + vectors[voxel]
        arrived = np.array(vectors.TransformPhysicalPointToContinuousIndex(end.tolist()))
        expected = np.array(voxel) + displacement[0, :, voxel[0], voxel[1], voxel[2]].numpy()
        np.testing.assert_allclose(arrived, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_and_gradients_are_saved(tmp_path, dtype):
    displacement = random_field(0, SHAPES[2]).to(dtype).requires_grad_()
    save_displacement(tmp_path / "a.nii", displacement, np.eye(4))
    loaded = load_displacement(tmp_path / "a.nii").displacement
    assert not loaded.requires_grad
    torch.testing.assert_close(loaded, displacement.detach().float(), atol=1e-5, rtol=0)


def test_the_far_end_of_a_long_grid_is_as_exact(tmp_path):
    # Between other voxel sizes, voxel 3000 lies 300 mm off: the grid must not be rounded to 2048.
    affine, moving = np.diag([1.0, 1, 1, 1]), np.diag([1.1, 1, 1, 1])
    field = torch.zeros(1, 2, 3001, 2)
    save_displacement(tmp_path / "a.nii", field, affine, moving)
    stored = nib.load(tmp_path / "a.nii").get_fdata()[2047:, 0, 0, 0, 0]
    np.testing.assert_allclose(stored, -0.1 * np.arange(2047, 3001), rtol=1e-6)  # LPS


def test_zero_stays_exactly_zero(tmp_path):
    affine = random_affine(np.random.default_rng(3), 3)
    save_displacement(tmp_path / "a.nii.gz", torch.zeros(1, 3, 4, 5, 6), affine)
    assert not load_displacement(tmp_path / "a.nii.gz").displacement.any()


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_the_headers_unit_of_length_counts(tmp_path, unit, mm):
    # The vectors are in mm whatever unit the grid is described in.
    values = np.ones((4, 5, 6, 1, 3), dtype=np.float32)
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header.set_intent(1007)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    field = load_displacement(tmp_path / "a.nii")
    assert field.spacing == pytest.approx((2 * mm,) * 3)
    torch.testing.assert_close(field.displacement[0, 2], torch.full((4, 5, 6), 0.5 / mm))


# ------------------------------------------------------------------------------------ refusals

VECTORS = np.random.default_rng(0).normal(size=(4, 5, 6, 1, 3)).astype(np.float32)


def write(
    folder: Path, values: np.ndarray, intent: int = 1007, affine: np.ndarray | None = None
) -> Path:
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_intent(intent, allow_unknown=True)
    nib.save(image, folder / "a.nii.gz")
    return folder / "a.nii.gz"


def holding(values: np.ndarray, intent: int = 1007) -> Callable[[Path], Path]:
    return lambda folder: write(folder, values, intent)


def cut(part: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(folder, VECTORS)
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
        return path

    return make


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def with_value(value: float) -> np.ndarray:
    values = VECTORS.copy()
    values[1, 2, 3, 0, 1] = value
    return values


def singular(folder: Path) -> Path:
    path = write(folder, VECTORS)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[280:328] = np.zeros((3, 4), dtype="<f4").tobytes()  # the sform
    path.write_bytes(gzip.compress(content))
    return path


def tilted(folder: Path) -> Path:
    affine = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return write(folder, VECTORS[:, :, :1, :, :2], affine=affine)


BROKEN = {
    "empty file": (raw("a.nii", b""), "readable"),
    "empty .gz": (raw("a.nii.gz", b""), "readable"),
    "text": (raw("a.nii", b"hello" * 200), "readable"),
    "text called .gz": (raw("a.nii.gz", b"hello" * 200), "readable"),
    "another ending": (raw("a.mha", b"ObjectType = Image\n" * 50), "readable"),
    "half a .gz": (cut(0.5), "readable"),
    "nearly a .gz": (cut(0.95), "readable"),
    "an image": (holding(VECTORS[..., 0, 0]), r"\(4, 5, 6\)"),
    "a time series": (holding(VECTORS[..., 0, :]), r"\(4, 5, 6, 3\)"),
    "a series of fields": (holding(VECTORS.repeat(2, axis=3)), r"\(4, 5, 6, 2, 3\)"),
    "two components in 3D": (holding(VECTORS[..., :2]), r"\(4, 5, 6, 1, 2\)"),
    "four components": (holding(VECTORS[..., [0, 1, 2, 0]]), r"\(4, 5, 6, 1, 4\)"),
    "one component": (holding(VECTORS[..., :1]), r"\(4, 5, 6, 1"),
    "three components in 2D": (holding(VECTORS[:, :, :1]), r"\(4, 5, 1, 1, 3\)"),
    "one voxel along an axis": (holding(VECTORS[:, :1, :1, :, :2]), r"\(4, 1, 1, 1, 2\)"),
    "no intent": (holding(VECTORS, 0), "code 0"),
    "displacement in RAS": (holding(VECTORS, 1006), "code 1006"),
    "NaN": (holding(with_value(np.nan)), "1 values are NaN"),
    "infinity": (holding(with_value(np.inf)), "1 values are NaN or infinite"),
    "complex": (holding(VECTORS.astype(np.complex64)), "real numbers"),
    "singular affine": (singular, "singular"),
    "tilted 2D": (tilted, "x-y plane"),
}


@pytest.mark.parametrize(("make", "word"), BROKEN.values(), ids=BROKEN)
def test_broken_fields_are_refused_in_one_sentence(tmp_path, make, word):
    path = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one refusal, not a warning before it
        with pytest.raises(ValueError, match=rf"(?s)^path: .*{word}") as caught:
            load_displacement(path)
    assert str(path) in str(caught.value)


def test_a_missing_field_is_named(tmp_path):
    for path in (tmp_path / "nothing.nii", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            load_displacement(path)


def test_a_sheared_grid_is_refused_for_fixed_but_not_for_moving(tmp_path):
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 1] = 0.5
    displacement = random_field(0, (4, 5, 6))
    with pytest.raises(ValueError, match=r"^affine: .*right angles"):
        save_displacement(tmp_path / "a.nii", displacement, sheared)
    assert not list(tmp_path.iterdir())
    save_displacement(tmp_path / "a.nii", displacement, np.eye(4), sheared)
    loaded = load_displacement(tmp_path / "a.nii", sheared).displacement
    assert (loaded - displacement).abs().amax() < 1e-5


def test_a_grid_at_nearly_right_angles_is_read_by_itk(tmp_path):
    # As rounding leaves it in headers: below our tolerance must be below ITK's.
    affine = np.eye(4)
    affine[0, 1] = 9e-5
    save_displacement(tmp_path / "a.nii", random_field(0, (4, 5, 6)), affine)
    assert sitk.ReadImage(str(tmp_path / "a.nii")).GetSize() == (4, 5, 6)

"""A folder of one's own files: every value keeps its place, and what is wrong is said."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from course_lib.datasets import Pair, collate
from course_lib.datasets.cohort import Recombined
from course_lib.datasets.folder import Folder
from course_lib.io import save_displacement
from course_lib.metrics import correlation
from course_lib.spatial import warp
from course_lib.volumes import normalize, to_world

FLIPPED = np.array([[0, 0, 2.0, -9], [-1.5, 0, 0, 30], [0, 3.0, 0, 5], [0, 0, 0, 1]])  # PSR


def blob(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth, asymmetric, 0 outside, maximum 200."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    rng = np.random.default_rng(seed)
    squares = sum((x - c) ** 2 for x, c in zip(axes, rng.uniform(-0.2, 0.2, 3), strict=False))
    image = np.clip(1 - squares, 0, None) * (1 + 0.3 * axes[0] - 0.2 * axes[1])
    return (200 * image / image.max()).astype(np.float32)


def write(
    file: Path, image: np.ndarray, spacing: tuple[float, ...] | None = None, affine=None
) -> Path:
    if affine is None:
        affine = np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0])
    file.parent.mkdir(exist_ok=True)
    nib.Nifti1Image(image, affine).to_filename(file)
    return file


@pytest.fixture
def slices(tmp_path) -> Path:
    """Three 2D scans of 20 × 30 voxels of 1 × 1.5 mm, with labels beside them."""
    for seed, name in enumerate(("anna", "ben", "cleo")):
        image = blob((20, 30), seed)
        write(tmp_path / f"{name}.nii.gz", image, (1.0, 1.5, 1.0))
        labels = (image > 60).astype(np.uint8) + (image > 120)
        write(tmp_path / f"{name}_labels.nii.gz", labels, (1.0, 1.5, 1.0))
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "._anna.nii.gz").write_text("of macOS, no scan")
    return tmp_path


LABELS = "{name}_labels.nii.gz"


# ----------------------------------------------------------------------------------- which pairs


def test_all_ordered_pairs_of_different_scans(slices):
    pairs = Folder(slices, labels=LABELS)
    a, b, c = "anna.nii.gz", "ben.nii.gz", "cleo.nii.gz"
    assert pairs.names == [(a, b), (a, c), (b, a), (b, c), (c, a), (c, b)]
    assert len(pairs) == 6 and pairs.shape == (32, 32) and pairs.spacing == (1.0, 1.5)
    assert len(Folder(slices)) == 30  # without a pattern, label maps are scans like others
    assert len(Folder(slices, images="*_labels*")) == 6


def test_every_scan_against_the_atlas(slices):
    pairs = Folder(slices, labels=LABELS, atlas="ben.nii.gz")
    assert pairs.names == [("anna.nii.gz", "ben.nii.gz"), ("cleo.nii.gz", "ben.nii.gz")]
    assert torch.equal(pairs[0].fixed, pairs[1].fixed)
    assert not torch.equal(pairs[0].moving, pairs[1].moving)


def test_pairs_by_name(tmp_path):
    for seed, name in enumerate(("b_fixed", "b_moving", "a_moving", "a_fixed")):
        write(tmp_path / f"{name}.nii", blob((18, 17), seed))
    pairs = Folder(tmp_path, pairs="named")
    assert pairs.names == [("a_moving.nii", "a_fixed.nii"), ("b_moving.nii", "b_fixed.nii")]
    raw = torch.tensor(blob((18, 17), 1))[None, None]
    assert correlation(pairs[1].moving[..., 7:25, 7:24], raw) > 0.999


# -------------------------------------------------------------------------------- what is in them


def test_a_pair_has_the_form_of_all_data_sets(slices):
    pair = Folder(slices, labels=LABELS)[1]
    assert isinstance(pair, Pair) and pair.displacement is None and pair.spacing == (1.0, 1.5)
    for image in (pair.moving, pair.fixed):
        assert image.shape == (1, 1, 32, 32) and image.dtype == torch.float32
        assert image.min() == 0 and image.max() == 1
    for labels in (pair.moving_labels, pair.fixed_labels):
        assert labels.shape == (1, 1, 32, 32) and labels.dtype == torch.int64
        assert labels.unique().tolist() == [0, 1, 2]
    assert Folder(slices, images="[abc]*[!s].nii.gz")[0].moving_labels is None


def test_values_are_normalized_and_padded_in_the_middle(slices):
    pair = Folder(slices, labels=LABELS)[0]
    raw = torch.tensor(blob((20, 30), 0))[None, None]
    torch.testing.assert_close(pair.moving[..., 6:26, 1:31], normalize(raw))
    assert pair.moving.sum() == pair.moving[..., 6:26, 1:31].sum()
    assert torch.equal(pair.moving_labels[..., 6:26, 1:31] > 0, raw > 60)


def test_labels_may_lie_in_a_folder_of_their_own(tmp_path):
    for seed, name in enumerate(("a", "b")):
        image = blob((16, 16), seed)
        write(tmp_path / f"{name}.nii.gz", image)
        write(tmp_path / "labels" / f"{name}.nii", (image > 50).astype(np.int16))
    pair = Folder(tmp_path, labels="labels/{name}.nii")[0]
    assert pair.moving_labels.sum() == (blob((16, 16), 0) > 50).sum()


@pytest.fixture
def volumes(tmp_path) -> Path:
    """Two 3D scans with labels: one RAS, one with other axes, both 2 × 1.5 × 3 mm in RAS order."""
    for seed, (name, shape, affine) in enumerate(
        (
            ("plain", (18, 20, 10), np.diag([2.0, 1.5, 3.0, 1.0])),
            ("turned", (22, 12, 17), FLIPPED),
        )
    ):
        image = blob(shape, seed)
        write(tmp_path / f"{name}.nii.gz", image, affine=affine)
        write(tmp_path / f"{name}_labels.nii.gz", (image > 90).astype(np.uint8), affine=affine)
    return tmp_path


def test_axes_are_brought_to_one_orientation_without_interpolation(volumes):
    pairs = Folder(volumes, labels=LABELS)
    assert pairs.shape == (32, 32, 16)  # of 18 × 20 × 10 and, turned, 17 × 22 × 12
    np.testing.assert_allclose(pairs.spacing, (2.0, 1.5, 3.0))
    original = torch.tensor(blob((22, 12, 17), 1))
    turned = original.permute(2, 0, 1).flip(1)  # PSR to RAS
    fixed = pairs[0].fixed[0, 0, 7:24, 5:27, 2:14]
    torch.testing.assert_close(fixed, normalize(turned[None, None])[0, 0])
    assert torch.equal(pairs[0].fixed_labels[0, 0, 7:24, 5:27, 2:14] > 0, turned > 90)


@pytest.mark.parametrize("spacing", [None, (2.5, 2.5, 2.5)])
def test_every_value_keeps_its_place_in_the_world(volumes, spacing):
    pairs = Folder(volumes, labels=LABELS, spacing=spacing)
    moving, fixed = pairs.volumes(0)
    original = to_world(np.argwhere(blob((22, 12, 17), 1) > 90), FLIPPED).mean(0)
    prepared = to_world(np.argwhere(pairs[0].fixed_labels[0, 0].numpy()), fixed.affine).mean(0)
    assert np.abs(original - prepared).max() < (
        1e-3 if spacing is None else 0.6
    )  # mm: a quarter of a voxel
    inside = fixed.image[pairs[0].fixed_labels > 0]  # the image went the same way
    assert inside.min() > 0.3 and fixed.image[pairs[0].fixed_labels == 0].max() < 0.6
    assert tuple(np.round(fixed.spacing, 6)) == (spacing or (2.0, 1.5, 3.0))
    assert not np.allclose(moving.affine, fixed.affine)  # each has its own


def test_resampling_gives_the_asked_spacing_and_keeps_labels_whole(volumes):
    pairs = Folder(volumes, labels=LABELS, spacing=(4, 3, 3))
    assert pairs.spacing == (4.0, 3.0, 3.0) and pairs.shape == (16, 16, 16)
    pair = pairs[1]
    assert pair.fixed_labels.unique().tolist() == [0, 1]
    assert correlation(pair.fixed, pair.fixed_labels.float()) > 0.8


def test_a_field_found_on_the_prepared_grids_fits_the_original_files(volumes, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    pairs = Folder(volumes, labels=LABELS, atlas="plain.nii.gz")
    moving, fixed = pairs.volumes(0)
    u = torch.zeros(1, 3, *pairs.shape)
    u[:, 0], u[:, 2] = 1.5, -0.75
    warped = warp(moving.image, u)
    save_displacement(tmp_path / "field.nii", u, fixed.affine, moving.affine)
    field = sitk.ReadImage(str(tmp_path / "field.nii"), sitk.sitkVectorFloat64)
    original = sitk.ReadImage(str(volumes / "turned.nii.gz"), sitk.sitkFloat64)
    grid = sitk.Image(field.GetSize(), sitk.sitkFloat64)
    grid.CopyInformation(sitk.VectorIndexSelectionCast(field, 0))
    theirs = sitk.Resample(original, grid, sitk.DisplacementFieldTransform(field))
    theirs = torch.tensor(sitk.GetArrayFromImage(theirs).T.copy())[None, None].float()
    assert correlation(theirs, warped) > 0.999
    assert correlation(theirs, moving.image) < 0.99


def test_ct_gets_a_window(tmp_path):
    for seed, name in enumerate(("a", "b")):
        write(tmp_path / f"{name}.nii.gz", 7 * blob((16, 16), seed) - 1000)
    with pytest.raises(ValueError, match=r"window.*a\.nii\.gz.*-1000.*window=\("):
        Folder(tmp_path)[0]
    pair = Folder(tmp_path, window=(-1000, 400))[0]
    torch.testing.assert_close(
        pair.moving[0, 0], torch.tensor(blob((16, 16)) / 200), atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match="window: nothing of"):
        Folder(tmp_path, window=(5000, 6000))[0]


def test_a_given_shape_is_kept(slices):
    pairs = Folder(slices, labels=LABELS, shape=(16, 48))
    assert pairs[0].fixed.shape == (1, 1, 16, 48)
    raw = normalize(torch.tensor(blob((20, 30), 1))[None, None])
    torch.testing.assert_close(pairs[0].fixed[..., 9:39], raw[..., 2:18, :])


def test_millimeters_whatever_unit_the_file_has(tmp_path):
    for name, unit, scale in (("a", "mm", 1.0), ("b", "meter", 1e-3), ("c", "micron", 1e3)):
        image = nib.Nifti1Image(blob((16, 16, 16)), np.diag([2 * scale, scale, scale, 1]))
        image.header.set_xyzt_units(unit)
        image.to_filename(tmp_path / f"{name}.nii")
    np.testing.assert_allclose(Folder(tmp_path).spacing, (2, 1, 1), rtol=1e-6)


# ---------------------------------------------------------------------------------- as a data set


def test_pairs_are_the_callers_to_change(slices):
    pairs = Folder(slices, labels=LABELS)
    first = pairs[0]
    copies = [part.clone() for part in first[:4]]
    volume = pairs.volumes(0)[0]
    for part in (*first[:4], volume.image):
        part.zero_()
    for part, copy in zip(pairs[0][:4], copies, strict=True):
        assert torch.equal(part, copy)


def test_a_folder_goes_through_a_data_loader_and_recombines(slices):
    pairs = Folder(slices, labels=LABELS).prepare(progress=False)
    assert len(pairs._memory) == 3 and pickle.loads(pickle.dumps(pairs))._memory == {}
    batch = next(iter(DataLoader(pairs, batch_size=6, num_workers=1, collate_fn=collate)))
    assert batch.fixed.shape == (6, 1, 32, 32) and batch.spacing == (1.0, 1.5)
    assert Recombined(pairs, 5)[4].fixed_labels is not None
    with pytest.raises(IndexError):
        pairs[6]


def test_memory_is_limited(slices, monkeypatch):
    monkeypatch.setattr("course_lib.datasets.folder._IN_MEMORY", 13_000)  # one scan with labels
    pairs = Folder(slices, labels=LABELS).prepare(progress=False)
    assert list(pairs._memory) == ["anna.nii.gz"]
    assert torch.equal(pairs[1].fixed, Folder(slices, labels=LABELS)[3].fixed)


# --------------------------------------------------------------------------------- what is refused


def refused(error: type[Exception], words: list[str], *arguments, **options) -> None:
    with pytest.raises(error) as caught:
        Folder(*arguments, **options).prepare(progress=False)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_folders_that_are_none_or_hold_too_little(tmp_path):
    refused(FileNotFoundError, ["path", "nowhere"], tmp_path / "nowhere")
    refused(TypeError, ["path", "int"], 3)
    refused(ValueError, ["path", "at least two scans", "got 0"], tmp_path)
    write(tmp_path / "a.nii.gz", blob((16, 16)))
    refused(ValueError, ["path", "got 1"], tmp_path)
    write(tmp_path / "b.nii.gz", blob((16, 16)))
    refused(ValueError, ["'*.mgz'", "got 0"], tmp_path, images="*.mgz")
    refused(FileNotFoundError, ["path", "a.nii.gz"], tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairs": "some"}, ["pairs", "'all'", "'named'", "'some'"]),
        ({"pairs": "named"}, ["pairs", "_moving", "anna.nii.gz"]),
        ({"pairs": "named", "atlas": "ben.nii.gz"}, ["pairs", "atlas"]),
        ({"labels": "labels.nii.gz"}, ["labels", "{name}"]),
        ({"labels": 3}, ["labels", "{name}"]),
        ({"shape": (16, 16, 16)}, ["shape", "2 sizes"]),
        ({"shape": (16, 0)}, ["shape"]),
        ({"spacing": (1, 1, 1)}, ["spacing", "2 positive"]),
        ({"spacing": (1, -1)}, ["spacing", "2 positive"]),
        ({"window": (4, 4)}, ["window", "smaller one first"]),
        ({"window": (0, 1, 2)}, ["window"]),
    ],
    ids=str,
)
def test_options_that_are_none(slices, options, words):
    refused(ValueError, words, slices, **{"images": "[abc]*[!s].nii.gz"} | options)


def test_options_of_another_type(slices):
    refused(TypeError, ["images"], slices, images=3)
    refused(TypeError, ["window"], slices, window="wide")
    refused(FileNotFoundError, ["atlas", "dora", "anna.nii.gz"], slices, atlas="dora.nii.gz")


def test_partners_that_are_missing(tmp_path):
    write(tmp_path / "a_moving.nii.gz", blob((16, 16)))
    write(tmp_path / "b_fixed.nii.gz", blob((16, 16)))
    refused(FileNotFoundError, ["a_moving.nii.gz", "a_fixed"], tmp_path, pairs="named")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.write_bytes(gzip.compress(b"no image")), ["readable NIfTI", "ben"]),
        (lambda f: f.write_bytes(f.read_bytes()[:-80]), ["readable NIfTI", "ben"]),
        (lambda f: write(f, np.full((20, 30), np.nan, np.float32), (1, 1.5, 1)), ["ben"]),
        (lambda f: write(f, np.full((20, 30), 7, np.uint8), (1, 1.5, 1)), ["every voxel is 7"]),
        (lambda f: write(f, blob((20, 30, 4, 3))), ["2D or 3D", "(20, 30, 4, 3)", "time point"]),
        (lambda f: write(f, blob((20, 30, 4))), ["equally many axes", "(20, 30, 4)"]),
        (lambda f: write(f, blob((20, 30)), (1.0, 1.6, 1.0)), ["spacing", "1.5", "1.6", "ben"]),
        (
            lambda f: write(f, blob((20, 30)), affine=np.diag([-1, 1.5, 1, 1])),
            ["orientation", "ben", "turn one"],
        ),
    ],
    ids=["no image", "cut", "NaN", "constant", "4D", "3D beside 2D", "spacing", "orientation"],
)
def test_one_scan_that_is_wrong(slices, spoil, words):
    spoil(slices / "ben.nii.gz")
    refused(ValueError, words, slices, images="[abc]*[!s].nii.gz")


def test_files_left_as_they_are_must_agree(volumes):
    refused(ValueError, ["axes", "RAS", "PSR", "axes='RAS'"], volumes, labels=LABELS, axes=None)
    refused(ValueError, ["axes", "RRR"], volumes, labels=LABELS, axes="RRR")
    image = nib.load(volumes / "plain.nii.gz")
    nib.Nifti1Image(image.get_fdata(), np.diag([2.0, 1.5, 2.0, 1])).to_filename(
        volumes / "thin.nii.gz"
    )
    (volumes / "turned.nii.gz").unlink()
    words = ["spacing", "plain", "thin", "2 × 1.5 × 3 mm"]
    refused(ValueError, words, volumes, labels=LABELS)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, ["labels", "ben.nii.gz has none"]),
        (np.eye(20, 29, dtype=np.uint8), ["labels", "grid of ben.nii.gz", "(20, 29)"]),
        (np.eye(20, 30, dtype=np.float32) / 2, ["labels", "whole numbers"]),
        (-np.eye(20, 30, dtype=np.int16), ["labels", "0 and above"]),
    ],
    ids=["none", "shape", "fractions", "negative"],
)
def test_labels_that_are_wrong(slices, labels, words):
    file = slices / "ben_labels.nii.gz"
    file.unlink()
    if labels is not None:
        write(file, labels, (1.0, 1.5, 1.0))
    refused((FileNotFoundError, ValueError), words, slices, labels=LABELS)


def test_labels_that_lie_elsewhere(slices):
    image = nib.load(slices / "ben_labels.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 1
    nib.Nifti1Image(np.asarray(image.dataobj), affine).to_filename(slices / "ben_labels.nii.gz")
    refused(ValueError, ["labels", "grid of ben.nii.gz"], slices, labels=LABELS)

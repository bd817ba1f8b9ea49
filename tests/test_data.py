"""The files that ship are those that `authoring/make_data.py` made, and it can still make them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import course_lib
from authoring import make_data

FOLDER = Path(course_lib.__file__).parent / "data"
ORIGINS = json.loads((FOLDER / "origins.json").read_text(encoding="utf-8"))
IMAGES = sorted(path.name for path in FOLDER.glob("*.nii.gz"))
EYE = np.eye(4)


# ------------------------------------------------------------------------------- what ships


def test_every_file_is_the_one_that_was_made():
    assert sorted(ORIGINS["out"]) == IMAGES
    for name, digest in ORIGINS["out"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_the_folder_is_small_and_holds_nothing_else():
    files = [
        path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sum(path.stat().st_size for path in files) < 4e6
    extra = {path.name for path in files} - set(IMAGES)
    assert extra <= {"__init__.py", "README.md", "origins.json", "task2d.json"}


def test_every_image_is_uint8_on_one_grid_of_one_millimeter():
    headers = [nib.load(FOLDER / name) for name in IMAGES]
    for image in headers:
        assert image.get_data_dtype() == np.uint8
        assert image.shape == (197, 233, 189)
        np.testing.assert_array_equal(image.affine, headers[0].affine)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")  # as datasets.brains assumes
        assert image.header.get_zooms() == (1, 1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("head", ["mni152", "colin27"])
def test_tissues_are_inside_the_head_and_brighter_from_one_to_three(head):
    t1 = np.asarray(nib.load(FOLDER / f"{head}_t1.nii.gz").dataobj)
    tissues = np.asarray(nib.load(FOLDER / f"{head}_tissues.nii.gz").dataobj)
    assert np.unique(tissues).tolist() == [0, 1, 2, 3]
    assert t1.min() == 0 and t1.max() == 255
    assert (t1[tissues > 0] > 0).all()
    means = [t1[tissues == value].mean() for value in range(4)]
    assert means == sorted(means)
    fractions = [np.mean(tissues[tissues > 0] == value) for value in (1, 2, 3)]
    assert min(fractions) > 0.03 and fractions[1] > 0.3 and fractions[2] > 0.2


def test_what_went_in_is_on_record():
    assert len(ORIGINS["archives"]) == 2
    assert {len(digest) for digest in ORIGINS["in"].values()} == {64}
    expected = {make_data.TEMPLATE.format(part) for part in ("t1", "gm", "wm")} | {
        make_data.COLIN27
    }
    assert set(ORIGINS["in"]) == expected


def test_the_readme_names_each_file():
    readme = FOLDER / "README.md"
    if not readme.exists():
        pytest.skip("no README beside the data yet")
    text = readme.read_text(encoding="utf-8")
    assert [name for name in IMAGES if name not in text] == []


# ------------------------------------------------------------------------------ how it is made


def nifti(values: np.ndarray, affine: np.ndarray = EYE) -> bytes:
    return gzip.compress(nib.Nifti1Image(values, affine).to_bytes())


def deb(path: Path, files: dict[str, bytes], compression: str = "xz") -> Path:
    """A Debian package byte by byte: an ar archive around two tar archives."""

    def packed(entries: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
            for name, content in entries.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    members = {
        "debian-binary": b"2.0\n",
        "odd": b"123",  # an odd size: ar pads to even positions
        f"control.tar.{compression}": packed({"./control": b"Package: tiny\n"}),
        f"data.tar.{compression}": packed(files),
    }
    content = b"!<arch>\n"
    for name, body in members.items():
        content += (
            f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}".encode() + b"`\n"
        )
        content += body + b"\n" * (len(body) % 2)
    path.write_bytes(content)
    return path


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_file_is_read_out_of_a_debian_package(tmp_path, compression):
    files = {"./usr/share/doc/a": b"first", "./usr/share/b": b"second" * 999}
    package = deb(tmp_path / "tiny.deb", files, compression)
    assert make_data.read_deb(package, "./usr/share/b") == files["./usr/share/b"]
    with pytest.raises(KeyError, match="nothing"):
        make_data.read_deb(package, "./nothing")


def test_a_package_without_data_says_so(tmp_path):
    (tmp_path / "tiny.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(FileNotFoundError, match=r"data\.tar"):
        make_data.read_deb(tmp_path / "tiny.deb", "./a")


def test_a_file_is_read_out_of_a_wheel(tmp_path):
    made = wheel(tmp_path / "tiny.whl", {"a/b.txt": b"yes", "a/c.txt": b"no"})
    assert make_data.read_wheel(made, "a/b.txt") == b"yes"


def test_parse_reads_a_compressed_nifti():
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = make_data.parse(nifti(values))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), values)


def test_normalize_scales_to_the_bright_end_of_what_is_not_zero():
    values = np.concatenate([np.zeros(5000), np.arange(1, 1001)]).reshape(10, 600)
    scaled = make_data.normalize(values)
    top = np.percentile(np.arange(1, 1001), 99.5)
    np.testing.assert_array_equal(scaled, np.round(np.clip(values / top, 0, 1) * 255))
    assert scaled.dtype == np.uint8 and scaled.max() == 255 and scaled.min() == 0


def test_on_grid_moves_by_whole_voxels_and_loses_nothing():
    values = np.zeros((4, 5, 6), np.int16)
    values[1:3, 1:4, 2:5] = np.arange(1, 19).reshape(2, 3, 3)
    there, here = EYE.copy(), EYE.copy()
    there[:3, 3], here[:3, 3] = (-10, 3, 7), (-11, 4, 5)  # 1, −1 and 2 voxels from one another
    moved = make_data.on_grid(nib.Nifti1Image(values, there), (6, 7, 9), here)
    assert moved.shape == (6, 7, 9) and moved.dtype == np.int16
    np.testing.assert_array_equal(moved[2:4, 0:3, 4:7], values[1:3, 1:4, 2:5])
    assert np.count_nonzero(moved) == 18


@pytest.mark.parametrize(
    ("affine", "what"),
    [
        (np.diag([1.0, 1.0, 2.0, 1.0]), "whole voxels"),
        (np.diag([-1.0, 1.0, 1.0, 1.0]), "whole voxels"),
        (EYE + 0.5 * np.eye(4, k=3), "whole voxels"),
        (EYE + 3 * np.eye(4, k=3), "outside the grid"),
    ],
)
def test_on_grid_refuses_what_it_would_spoil(affine, what):
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), affine)
    with pytest.raises(ValueError, match=what):
        make_data.on_grid(image, (3, 4, 5), EYE)


def test_tissues_from_maps_takes_the_most_probable_inside_the_brain():
    brain = np.array([[[0, 9, 9, 9, 9]]], np.uint8)
    gray = np.array([[[255, 10, 200, 20, 120]]], np.uint8)
    white = np.array([[[0, 20, 50, 230, 110]]], np.uint8)
    labels = make_data.tissues_from_maps(brain, gray, white)
    assert labels.ravel().tolist() == [0, 1, 2, 3, 2] and labels.dtype == np.uint8
    # Sums above 255 must not wrap around in uint8.
    full = np.full((1, 1, 1), 200, np.uint8)
    assert make_data.tissues_from_maps(full, full, full // 2).item() == 2


def test_tissues_from_thresholds_finds_three_classes():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, (12, 13, 14))
    image = np.array([0, 60, 140, 220])[truth] + generator.integers(-8, 9, truth.shape)
    image = np.where(truth == 0, generator.integers(0, 13, truth.shape), image).astype(np.uint8)
    labels = make_data.tissues_from_thresholds(image)
    np.testing.assert_array_equal(labels, truth)
    assert labels.dtype == np.uint8


def test_save_writes_the_same_bytes_for_the_same_content(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint8)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    first = make_data.save("a.nii.gz", values, affine, tmp_path)
    second = make_data.save("other_name.nii.gz", values.copy(order="F"), affine, tmp_path)
    assert first == second
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "other_name.nii.gz").read_bytes()
    assert hashlib.sha256(content).hexdigest() == first
    loaded = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(loaded.dataobj), values)
    assert loaded.get_data_dtype() == np.uint8


def test_from_archives_to_files(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    gray = generator.integers(0, 256, (8, 9, 10)).astype(np.uint8)
    head = generator.integers(1, 200, (6, 7, 8)).astype(np.uint8)
    shifted = EYE.copy()
    shifted[:3, 3] = 1
    maps = {"t1": gray, "gm": gray, "wm": 255 - gray}
    made = wheel(
        tmp_path / "w.whl", {make_data.TEMPLATE.format(k): nifti(v) for k, v in maps.items()}
    )
    package = deb(tmp_path / "d.deb", {make_data.COLIN27: nifti(head, shifted)})
    digests = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(
            "sys.argv", ["make_data", str(package), str(made), "--folder", str(folder)]
        )
        make_data.main()
        origins = json.loads((folder / "origins.json").read_text(encoding="utf-8"))
        assert sorted(origins["out"]) == sorted(ORIGINS["out"])
        for file, digest in origins["out"].items():
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
            assert nib.load(folder / file).shape == (8, 9, 10)
        assert origins["archives"] == ["d.deb", "w.whl"] and len(origins["in"]) == 4
        digests.append(origins)
    assert digests[0] == digests[1]
    assert "colin27_t1.nii.gz" in capsys.readouterr().out

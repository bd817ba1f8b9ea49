"""The synthetic cohort as PyTorch data sets: made once, kept on disk, split by seed.

Seeds 0 to 79 are for training, 80 to 99 for validation, 100 and above for what is reported; no seed
may serve two of them. Every seed grows from one of the same two heads (``brains.pair``), so the
split tells whether a network knows deformations that it has not seen, not whether it knows a third
head. Lesson 30 uses them.
"""

import ast
import hashlib
import json
import operator
import os
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from course_lib.datasets import Pair, brains, cache_folder
from course_lib.validation import require_whole

TRAINING, VALIDATION, REPORTED = range(80), range(80, 100), range(100, 200)
"""The seeds of each split; what is reported may use more of them, from 100 on."""

_IN_MEMORY = 256 * 2**20  # bytes of pairs that one cohort keeps at hand; the others stay on disk
_TENSORS, _LABELS = Pair._fields[:5], ("moving_labels", "fixed_labels")
_said: set[str] = set()  # folders of which it has been said that nothing can be kept there


class Cohort(Dataset[Pair]):
    """Synthetic pairs with everything known, by seed: ``brains.pair``, made once.

    A pair is made when it is first asked for, or by :meth:`prepare` with a progress bar, and kept
    on disk without loss (images and fields in float32, labels in one byte). The folder's name holds
    a digest of all that decides the numbers: the generator's code, the two heads, the plane, the
    spacing, the versions of PyTorch and NumPy. So no cohort reads what another version made; old
    folders may be deleted at any time. A damaged file is made anew, and said so. Where nothing can
    be written, pairs are made again each time, and that is said once a process.

    On disk a pair takes 0.8 MB in 2D, and 3, 23 or 182 MB in 3D at 4, 2 or 1 mm. Up to 256 MB of
    pairs stay in memory too. What a pair takes to make, ``brains.pair`` says.

    Processes may share a folder: a file is written beside its place and put there in one step.
    With a ``DataLoader``, ``collate_fn=datasets.collate`` joins pairs to a batch.

    Args:
        seeds: one for each pair, such as ``range(80)``.
        ndim: 2 for slices, 3 for volumes.
        plane: of slices, one of ``brains.PLANES``.
        spacing: mm per voxel: 1 for slices; 4, 2 or 1 for volumes. None means 1 or 2.
        folder: where to keep pairs; None means the user's cache folder of this system.

    Attributes:
        seeds: a tuple of them, in order.
        folder: where the pairs of this kind lie.

    Raises:
        TypeError, ValueError: on seeds that are none, negative or repeated, or as ``brains.pair``.

    Example:
        >>> cohort = Cohort(range(80))
        >>> len(cohort), cohort.seeds[-1]
        (80, 79)
    """

    def __init__(
        self,
        seeds: Iterable[int],
        *,
        ndim: int = 2,
        plane: str = "axial",
        spacing: float | None = None,
        folder: str | PathLike[str] | None = None,
    ) -> None:
        self.seeds = _require_seeds(seeds)
        self._ndim, self._plane = ndim, plane
        name, self._mm = brains.kind_of(ndim, plane, spacing)
        self._key = _digest(name, self._mm)
        self.folder = cache_folder(folder) / f"cohort-{name}-{self._mm:g}mm-{self._key}"
        self._memory: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.seeds)

    def __getitem__(self, index: int) -> Pair:
        """One pair, with a batch axis of 1; it is the caller's, to change at will."""
        with torch.inference_mode(False):  # a tensor that is kept must be of use to autograd later
            kept = self._kept(self.seeds[operator.index(index)])
            parts = {name: part.clone() for name, part in kept.items()}
            parts |= {name: parts[name].long() for name in _LABELS}
        return Pair(**parts, spacing=(self._mm,) * self._ndim)

    def __getstate__(self) -> dict[str, Any]:
        """What a ``DataLoader``'s worker gets: everything but the pairs in memory."""
        return self.__dict__ | {"_memory": {}}

    def prepare(self, progress: bool = True) -> "Cohort":
        """Make every pair that is not on disk yet, so that reading is quick from now on.

        Args:
            progress: whether to show a bar.

        Returns:
            The cohort itself.
        """
        missing = [seed for seed in self.seeds if not self._file(seed).exists()]
        for seed in tqdm(missing, "making pairs", disable=not (progress and missing), leave=False):
            self._kept(seed)
        return self

    def _file(self, seed: int) -> Path:
        return self.folder / f"{seed:06d}.safetensors"

    def _kept(self, seed: int) -> dict[str, Tensor]:
        """A pair's tensors from memory, from disk, or from the generator."""
        if seed in self._memory:
            return self._memory[seed]
        parts = self._read(seed)
        if parts is None:
            parts = self._make(seed)
            self._write(seed, parts)
        size = sum(part.nbytes for part in parts.values())
        if size * (len(self._memory) + 1) <= _IN_MEMORY:
            self._memory[seed] = parts
        return parts

    def _make(self, seed: int) -> dict[str, Tensor]:
        pair = brains.pair(seed, self._ndim, plane=self._plane, spacing=self._mm)
        parts = dict(zip(_TENSORS, pair[:5], strict=True))
        return {
            name: part.to(torch.uint8) if name in _LABELS else part
            for name, part in parts.items()
            if part is not None  # of a synthetic pair, everything is known
        }

    def _read(self, seed: int) -> dict[str, Tensor] | None:
        """A pair's tensors as they lie on disk; None if there are none that can be trusted."""
        file = self._file(seed)
        try:
            content = file.read_bytes()
        except OSError:
            return None  # not made yet, or not to be read: made now
        try:
            length = int.from_bytes(content[:8], "little")
            notes = json.loads(content[8 : 8 + length])["__metadata__"]
            parts = load(content)
            if notes == self._notes(seed, parts):
                return parts
        except (KeyError, TypeError, ValueError, SafetensorError):
            pass
        warnings.warn(f"{file} is damaged; its pair is made anew", stacklevel=4)
        return None

    def _notes(self, seed: int, parts: dict[str, Tensor]) -> dict[str, str]:
        """What a file says about itself: whose pair it is, and a checksum of the numbers."""
        checksum = 0
        for name in _TENSORS:
            checksum = zlib.crc32(parts[name].numpy().tobytes(), checksum)
        return {"cohort": self._key, "seed": str(seed), "crc32": str(checksum)}

    def _write(self, seed: int, parts: dict[str, Tensor]) -> None:
        """Put a pair on disk in one step, or say once why it cannot be kept."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self._file(seed), save(parts, metadata=self._notes(seed, parts)))
        except OSError as error:
            # Windows lets nobody replace a file that another process reads: then it is there.
            if not self._file(seed).exists() and str(self.folder) not in _said:
                _said.add(str(self.folder))
                warnings.warn(
                    f"pairs cannot be kept in {self.folder} ({error.strerror or error}), so each "
                    "is made anew when it is needed; folder=… names another place",
                    stacklevel=4,
                )


class Pairs(Protocol):
    """A data set of pairs, of a known length: a cohort, a folder, a list."""

    def __len__(self) -> int:
        """The number of pairs."""
        ...

    def __getitem__(self, index: int, /) -> Pair:
        """One pair."""
        ...


class Recombined(Dataset[Pair]):
    """Any scan of a cohort with any other one, as in training between many people.

    Each item takes two different scans of all the moving and fixed ones. Their true displacement is
    unknown, labels are kept. Half of the pairs, about, are of different heads (the template and
    Colin27), whose anatomies no field maps onto each other exactly, as between real people.

    Args:
        cohort: a :class:`Cohort`, or any data set of :class:`Pair` with a batch axis of 1.
        length: how many pairs there are.
        seed: item ``i`` is decided by ``seed`` and ``i`` alone.

    Raises:
        TypeError, ValueError: on an empty cohort, or a length below 1.
    """

    def __init__(self, cohort: Pairs, length: int, seed: int = 0) -> None:
        if isinstance(cohort, str) or not isinstance(cohort, (Dataset, Sequence)):
            raise TypeError(f"cohort: expected a data set of Pair, got {type(cohort).__name__}")
        if len(cohort) == 0:
            raise ValueError("cohort: expected at least one pair, got none")
        self.cohort = cohort
        self._length = require_whole("length", length, 1)
        self._seed = require_whole("seed", seed, 0)

    def __len__(self) -> int:
        """The number of pairs."""
        return self._length

    def __getitem__(self, index: int) -> Pair:
        """One pair, with a batch axis of 1."""
        i = range(self._length)[operator.index(index)]  # negative ones count from the end
        rng = np.random.default_rng([self._seed, i])
        scans = 2 * len(self.cohort)
        first, second = (int(n) for n in rng.choice(scans, size=2, replace=False))
        moving, moving_labels, spacing = self._scan(first)
        fixed, fixed_labels, _ = self._scan(second)
        return Pair(moving, fixed, moving_labels, fixed_labels, None, spacing)

    def _scan(self, number: int) -> tuple[Tensor, Tensor | None, tuple[float, ...] | None]:
        """Scan ``2i`` is the moving one of pair ``i``, scan ``2i + 1`` the fixed one."""
        pair = self.cohort[number // 2]
        if number % 2:
            return pair.fixed, pair.fixed_labels, pair.spacing
        return pair.moving, pair.moving_labels, pair.spacing


def _require_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise TypeError(f"seeds: expected several, such as range(80), got {seeds!r}")
    known = tuple(require_whole("seeds", seed, 0) for seed in seeds)
    if not known:
        raise ValueError("seeds: expected at least one, got none")
    if len(set(known)) < len(known):
        raise ValueError(f"seeds: expected different ones, got {known}")
    return known


def _replace(file: Path, content: bytes) -> None:
    """Write beside the file's place, then put it there: nobody ever reads half a file."""
    handle, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(draft, file)
    finally:
        Path(draft).unlink(missing_ok=True)


@lru_cache(maxsize=8)
def _digest(name: str, mm: float) -> str:
    """Of all that decides a pair's numbers, in 16 letters."""
    library = files("course_lib")
    digest = hashlib.sha256(f"{name} {mm} {torch.__version__} {np.__version__}".encode())
    for part in ("datasets/brains.py", "spatial.py"):
        digest.update(_code((library / part).read_text(encoding="utf-8")).encode())
    for head in ("mni152", "colin27"):
        for part in ("t1", "tissues"):
            digest.update((library / "data" / f"{head}_{part}.nii.gz").read_bytes())
    return digest.hexdigest()[:16]


def _code(source: str) -> str:
    """A program without comments and docstrings: other words do not make other pairs."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

"""The cohort on disk gives what the generator gives, bit by bit, whatever happens to the disk."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from course_lib.datasets import Pair, brains, cohort, collate
from course_lib.datasets.cohort import Cohort, Recombined
from course_lib.metrics import correlation, dice
from course_lib.optimise import refine
from course_lib.spatial import (
    compose,
    identity_grid,
    integrate,
    jacobian_determinant,
    smooth,
    warp,
)

ROOT = Path(cohort.__file__).parents[2]
KINDS = {
    "axial": (2, "axial", 1.0),
    "coronal": (2, "coronal", 1.0),
    "sagittal": (2, "sagittal", 1.0),
    "4 mm": (3, "axial", 4.0),
}


def same(a: Pair, b: Pair) -> bool:
    """Equal bit by bit, dtypes included."""
    parts = zip(a[:5], b[:5], strict=True)
    return a.spacing == b.spacing and all(
        (x is y is None) or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in parts
    )


@pytest.fixture
def few(tmp_path) -> Cohort:
    return Cohort([3, 100], folder=tmp_path)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The seeds that the generator was asked for."""
    asked, make = [], brains.pair
    monkeypatch.setattr(brains, "pair", lambda s, *a, **k: [asked.append(s), make(s, *a, **k)][1])
    return asked


# --------------------------------------------------------- the generator gives what it always gave


def velocity_before(rng: np.random.Generator, shape: tuple[int, ...], mm: float) -> Tensor:
    """As the generator drew it before there were planes and spacings."""
    ndim = len(shape)
    noise = rng.standard_normal((1, ndim, *shape)).astype(np.float32)
    grid = identity_grid(shape, dtype=torch.float32)
    sizes = torch.tensor(shape).view(-1, *(1,) * ndim)
    ramp = (torch.minimum(grid, sizes - 1 - grid) * mm / 24.0).clamp(max=1)
    velocity = smooth(torch.from_numpy(noise), 14.0 / mm)
    velocity = velocity * (torch.sin(ramp * torch.pi / 2) ** 2).prod(0)
    return velocity * (1.8 / (velocity.norm(dim=1).mean() * mm))


def scan_before(rng: np.random.Generator, image: Tensor, mm: float) -> Tensor:
    bent = image ** rng.uniform(0.7, 1.4)
    noise = rng.standard_normal((1, 1, *image.shape[2:])).astype(np.float32)
    bias = smooth(torch.from_numpy(noise), 40.0 / mm)
    noise = rng.standard_normal(image.shape).astype(np.float32)
    return (bent * torch.exp(bias * (0.15 / bias.std())) + 0.02 * torch.from_numpy(noise)).clamp(
        0, 1
    )


def anatomy_before(name: str, ndim: int) -> tuple[Tensor, Tensor]:
    image, labels = (brains._load(f"{name}_{part}.nii.gz") for part in ("t1", "tissues"))
    if ndim == 2:
        image, labels = (volume[..., 80].flip(3).mT for volume in (image, labels))
    else:
        image, labels = (F.pad(volume, (0, 3)) for volume in (image, labels))
        image, labels = smooth(image, 0.8)[..., ::2, ::2, ::2], labels[..., ::2, ::2, ::2]
    return image.contiguous() / 255, labels.contiguous().long()


@pytest.mark.parametrize("seed", [0, 1, 57, 100])
def test_a_seed_gives_the_same_bits_as_before_there_were_planes(seed):
    image, labels = anatomy_before(("mni152", "colin27")[seed % 2], 2)
    rng = np.random.default_rng(seed)
    to_moving, to_fixed = (velocity_before(rng, image.shape[2:], 1.0) for _ in range(2))
    moving_field, fixed_field = integrate(to_moving), integrate(to_fixed)
    moving, fixed = (warp(image, field) for field in (moving_field, fixed_field))
    expected = Pair(
        scan_before(rng, moving, 1.0),
        scan_before(rng, fixed, 1.0),
        warp(labels, moving_field, mode="nearest"),
        warp(labels, fixed_field, mode="nearest"),
        compose(integrate(-to_moving), fixed_field),
        (1.0, 1.0),
    )
    assert same(brains.pair(seed), expected)


def test_volumes_of_2_mm_keep_their_bits_too():
    for name in ("mni152", "colin27"):
        image, labels = brains._anatomy(name, ("volume", 2.0))
        before = anatomy_before(name, 3)
        assert torch.equal(image, before[0]) and torch.equal(labels, before[1])
    real = brains.real_pair(3)
    assert torch.equal(real.fixed, anatomy_before("mni152", 3)[0])
    like = torch.rand(1, 1, 20, 24, 22)
    ours, before = np.random.default_rng(4), np.random.default_rng(4)
    velocity = brains._random_velocity(ours, like, 2.0)
    assert torch.equal(velocity, velocity_before(before, (20, 24, 22), 2.0))
    assert torch.equal(brains._scan(ours, like, 2.0), scan_before(before, like, 2.0))


# ------------------------------------------------------------------------- planes and spacings


@pytest.mark.parametrize("seed", [100, 101])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "axial"])
def test_every_kind_of_pair_is_as_true_as_the_axial_one(name, seed):
    ndim, plane, mm = KINDS[name]
    pair = brains.pair(seed, ndim, plane=plane, spacing=mm)
    shape = brains.SIZES[brains.kind_of(ndim, plane, mm)]
    assert pair.fixed.shape == pair.moving_labels.shape == (1, 1, *shape)
    assert pair.displacement.shape == (1, ndim, *shape) and pair.spacing == (mm,) * ndim
    length = pair.displacement.norm(dim=1)[pair.fixed_labels[:, 0] > 0].mean() * mm
    assert 2 < length < 4.5  # mm, as of the axial slices
    assert jacobian_determinant(pair.displacement).min() > 0.1
    before, after, opposite = (
        1 - correlation(warp(pair.moving, factor * pair.displacement), pair.fixed)
        for factor in (0.0, 1.0, -1.0)
    )
    assert after < 0.5 * before < before < opposite
    labels = warp(pair.moving_labels, pair.displacement, mode="nearest")
    gain = dice(labels, pair.fixed_labels) - dice(pair.moving_labels, pair.fixed_labels)
    assert (gain > 0.05).all()


def test_the_looser_limit_at_4_mm_still_tells_a_wrong_truth():
    pair = brains.pair(101, 3, spacing=4)
    for wrong in (-pair.displacement, pair.displacement.flip(1), 0.5 * pair.displacement):
        with pytest.raises(AssertionError, match="true displacement"):
            brains._require_truth(pair.moving, pair.fixed, wrong, 0.35)


def test_16_divides_every_size_and_the_heads_have_them():
    for (plane, mm), shape in brains.SIZES.items():
        assert all(n % 16 == 0 for n in shape)
        image, labels = brains._anatomy("colin27", (plane, mm))
        assert image.shape == labels.shape == (1, 1, *shape)
        assert labels.unique().tolist() == [0, 1, 2, 3]
        outside = image.movedim(1, 0)[0, 0]  # nothing of the head is cut off at the top
        assert image.max() > 0.9 and outside.select(-1, -1).max() < 0.05


def test_volumes_of_other_spacings_show_the_same_head_at_the_same_place():
    fine, middle, coarse = (brains._anatomy("mni152", ("volume", mm))[0] for mm in (1.0, 2.0, 4.0))
    assert correlation(fine[..., ::2, ::2, ::2], middle) > 0.99
    inner = coarse[:, :, :, 4:-4]  # 16 mm of zeros on each side from back to front
    assert coarse[:, :, :, :4].max() < 0.05 and coarse[:, :, :, -4:].max() < 0.05
    right = 1 - correlation(middle[..., ::2, ::2, ::2], inner)
    assert right < 0.01
    for axis in (2, 3, 4):  # one voxel of 2 mm to the side
        beside = middle.roll(1, axis)[..., ::2, ::2, ::2]
        assert 1 - correlation(beside, inner) > 2 * right


def test_slices_are_drawn_as_their_planes_say():
    volume = brains._anatomy("mni152", ("volume", 1.0))[0][0, 0]  # left→right, back→front, up
    coronal, sagittal = (
        brains._anatomy("mni152", (plane, 1.0))[0][0, 0] for plane in ("coronal", "sagittal")
    )
    assert torch.equal(coronal, volume[:, 120].flip(1).T)  # row 0 at the top, column 0 left
    assert torch.equal(sagittal, volume[82].flip(0, 1).T)  # column 0 at the forehead


# ------------------------------------------------------------------------------ what a cohort is


@pytest.mark.parametrize("name", KINDS)
def test_a_cohort_gives_what_the_generator_gives(tmp_path, name):
    ndim, plane, mm = KINDS[name]
    seeds = [100, 3] if ndim == 2 else [100]
    for _ in range(2):  # made, then read
        made = Cohort(seeds, ndim=ndim, plane=plane, spacing=mm, folder=tmp_path)
        for index, seed in enumerate(seeds):
            expected = brains.pair(seed, ndim, plane=plane, spacing=mm)
            assert same(made[index], expected)
            assert same(made[index], expected)  # from memory


def test_seeds_index_and_length():
    known = Cohort(range(80))
    assert len(known) == 80 and known.seeds == tuple(range(80))
    assert Cohort(np.array([5, 7])).seeds == (5, 7)
    assert not set(cohort.TRAINING) & set(cohort.VALIDATION)
    assert max(cohort.VALIDATION) < 100 <= min(cohort.REPORTED)
    with pytest.raises(IndexError):
        known[80]


def test_a_second_cohort_reads_and_makes_nothing(few, counted, tmp_path):
    first = [few[0], few[-1]]
    assert counted == [3, 100]
    again = Cohort([100, 3], folder=tmp_path)
    assert same(again[1], first[0]) and same(again[0], first[1])
    assert counted == [3, 100]
    assert few.folder == again.folder and few.folder.parent == tmp_path
    assert len(list(few.folder.iterdir())) == 2


def test_a_pair_on_disk_takes_what_the_docstring_says(few):
    few.prepare(progress=False)
    sizes = [file.stat().st_size for file in few.folder.iterdir()]
    assert len(sizes) == 2 and all(0.7e6 < size < 0.8e6 for size in sizes)


def test_kinds_lie_in_folders_of_their_own(tmp_path):
    arguments = [
        {"ndim": ndim, "plane": plane, "spacing": mm} for ndim, plane, mm in KINDS.values()
    ]
    folders = {Cohort([0], folder=tmp_path, **kind).folder for kind in arguments}
    assert len(folders) == len(KINDS)
    assert Cohort([0], folder=tmp_path).folder in folders  # axial, 1 mm
    default = Cohort([0], ndim=3, folder=tmp_path)
    assert default.folder == Cohort([0], ndim=3, spacing=2, folder=tmp_path).folder


def test_prepare_makes_what_is_missing_behind_a_bar(few, counted, capsys):
    few[0]
    assert few.prepare() is few
    assert counted == [3, 100] and "making pairs" in capsys.readouterr().err
    assert few.prepare() is few
    assert counted == [3, 100] and capsys.readouterr().err == ""


def test_a_pair_changed_in_place_harms_nobody(few):
    expected = brains.pair(3)
    for _ in range(3):
        pair = few[0]
        assert same(pair, expected)
        for part in pair[:5]:
            part.zero_()


def test_pairs_first_seen_in_inference_mode_can_be_trained_on(few, tmp_path):
    with torch.inference_mode():
        few[0]
    with torch.inference_mode():
        pair = Cohort([3], folder=tmp_path)[0]
    for known in (pair, few[0]):
        assert not any(part.is_inference() for part in known[:5])
    moving, fixed = pair.moving[..., 60:100, 60:100], pair.fixed[..., 60:100, 60:100]
    assert refine(moving, fixed, factors=(2,), steps=1).isfinite().all()


def test_memory_is_limited(few, monkeypatch, tmp_path):
    monkeypatch.setattr(cohort, "_IN_MEMORY", 1_000_000)  # one pair of 774 kB
    few[0], few[1], few[1]
    assert list(few._memory) == [3]
    assert same(few[1], brains.pair(100))


# ----------------------------------------------------------------------- what may happen to disks


def spoil_end(content: bytes) -> bytes:
    return content[: len(content) // 2]


def spoil_number(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def spoil_header(content: bytes) -> bytes:
    return content.replace(b'"crc32"', b'"crc99"')


def spoil_names(content: bytes) -> bytes:
    return content.replace(b'"moving_labels"', b'"moving_tables"')


def spoil_all(content: bytes) -> bytes:
    return b""


def spoil_length(content: bytes) -> bytes:
    return b"\xff" * 8 + content[8:]


@pytest.mark.parametrize(
    "spoil", [spoil_end, spoil_number, spoil_header, spoil_names, spoil_all, spoil_length]
)
def test_a_damaged_file_is_made_anew_with_a_word(few, tmp_path, counted, spoil):
    few[0]
    file = few.folder / "000003.safetensors"
    good = file.read_bytes()
    file.write_bytes(spoil(good))
    assert file.read_bytes() != good
    with pytest.warns(UserWarning, match=r"000003.*damaged.*made anew"):
        pair = Cohort([3], folder=tmp_path)[0]
    assert counted == [3, 3] and same(pair, brains.pair(3))
    counted.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(Cohort([3], folder=tmp_path)[0], pair) and counted == []


def test_a_file_under_another_seeds_name_is_not_believed(few, tmp_path):
    few.prepare(progress=False)
    (few.folder / "000003.safetensors").replace(few.folder / "000100.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert same(Cohort([100], folder=tmp_path)[0], brains.pair(100))


def test_other_code_other_numbers_other_folder(tmp_path, monkeypatch):
    source = (ROOT / "course_lib/datasets/brains.py").read_text(encoding="utf-8")
    code = cohort._code(source)
    worded = source.replace('"""Brains', '"""Heads').replace("# The slices go", "# They go")
    assert worded != source and cohort._code(worded) == code
    for old, new in (("_NOISE = 0.02", "_NOISE = 0.03"), ("flip(3).mT", "flip(2).mT")):
        assert old in source and cohort._code(source.replace(old, new)) != code
    before = Cohort([0], folder=tmp_path).folder
    monkeypatch.setattr(cohort, "_code", lambda text: code + "x")
    cohort._digest.cache_clear()
    try:
        assert Cohort([0], folder=tmp_path).folder != before
    finally:
        cohort._digest.cache_clear()


@pytest.fixture
def unwritable(tmp_path) -> Path:
    """A folder that nobody can make, not even root: its parent is a file."""
    (tmp_path / "file").write_text("x")
    cohort._said.clear()
    return tmp_path / "file" / "cache"


def test_without_a_disk_to_write_on_it_works_and_says_so_once(unwritable, counted):
    known = Cohort([3, 4], folder=unwritable)
    with pytest.warns(UserWarning, match="cannot be kept in .*file.*folder=") as caught:
        pairs = [known[0], known[1], Cohort([3], folder=unwritable)[0]]
    assert len(caught) == 1 and counted == [3, 4, 3]
    assert same(pairs[0], pairs[2]) and same(pairs[1], brains.pair(4))


def test_a_full_disk_leaves_nothing_half_written(few, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cohort.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert same(few[0], brains.pair(3))
    assert list(few.folder.iterdir()) == []


MAKE = """
import sys, torch
torch.set_num_threads(1)
from course_lib.datasets import brains
from course_lib.datasets.cohort import Cohort
cohort = Cohort([3, 4, 5], folder=sys.argv[1])
for i, seed in enumerate(cohort.seeds):
    assert torch.equal(cohort[i].displacement, brains.pair(seed).displacement)
print("right")
"""


def test_two_processes_at_once_make_one_cohort(tmp_path):
    command = [sys.executable, "-W", "error", "-c", MAKE, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, "right\n"), err
    names = sorted(file.name for file in Cohort([3], folder=tmp_path).folder.iterdir())
    assert names == [f"00000{seed}.safetensors" for seed in (3, 4, 5)]


def test_a_cohort_goes_through_a_data_loader_with_workers(few):
    few.prepare(progress=False)
    few[0]
    assert pickle.loads(pickle.dumps(few))._memory == {} and few._memory
    loader = DataLoader(few, batch_size=2, num_workers=2, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(loader)
    assert len(batches) == 1 and same(batches[0], collate([few[0], few[1]]))


# --------------------------------------------------------------------------------- recombination


def scans_of(known: Cohort) -> list[tuple[Tensor, Tensor]]:
    pairs = [known[i] for i in range(len(known))]
    return [
        scan
        for pair in pairs
        for scan in ((pair.moving, pair.moving_labels), (pair.fixed, pair.fixed_labels))
    ]


def number_of(image: Tensor, scans: list[tuple[Tensor, Tensor]]) -> int:
    found = [i for i, (scan, _) in enumerate(scans) if torch.equal(scan, image)]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Cohort:
    return Cohort([0, 1, 2], folder=tmp_path_factory.mktemp("cohort"))


def test_recombined_pairs_are_any_two_different_scans_with_their_labels(three):
    scans, seen = scans_of(three), set()
    pairs = Recombined(three, 60)
    assert len(pairs) == 60
    for pair in (pairs[i] for i in range(60)):
        moving, fixed = number_of(pair.moving, scans), number_of(pair.fixed, scans)
        assert moving != fixed
        assert torch.equal(pair.moving_labels, scans[moving][1])
        assert torch.equal(pair.fixed_labels, scans[fixed][1])
        assert pair.displacement is None and pair.spacing == (1.0, 1.0)
        seen.add((moving, fixed))
    assert {a for a, _ in seen} == {b for _, b in seen} == set(range(6))
    assert len(seen) > 20  # of 30


def test_recombined_pairs_depend_on_seed_and_index_alone(three):
    first, again, other = Recombined(three, 9), Recombined(three, 90), Recombined(three, 9, seed=1)
    assert same(first[5], again[5]) and same(first[-1], first[8])
    assert any(not same(first[i], other[i]) for i in range(9))
    with pytest.raises(IndexError):
        first[9]


def test_recombined_works_on_one_pair_on_lists_and_in_a_loader(three):
    one = Recombined([three[1]], 4)
    assert {number_of(one[i].moving, scans_of(three)) for i in range(4)} <= {2, 3}
    loader = DataLoader(Recombined(three, 6), batch_size=3, num_workers=1, collate_fn=collate)
    assert [tuple(batch.fixed.shape) for batch in loader] == [(3, 1, 224, 192)] * 2

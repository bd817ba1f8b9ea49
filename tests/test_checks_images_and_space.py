"""Exercise 10: right answers written other ways pass, wrong ones are named."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from torch.nn import functional as F

from course_lib.checks import images_and_space as checks
from course_lib.io import Volume, load_nifti
from course_lib.volumes import crop_or_pad, next_multiple, reorient, resample, to_voxel
from tests.check_suite import Case, cases

# Task 2


def voxel_by_solving(points, affine):
    return np.linalg.solve(affine[:3, :3], (points - affine[:3, 3]).T).T


def voxel_by_homogeneous_coordinates(points, affine):
    return (np.linalg.inv(affine) @ np.c_[points, np.ones(len(points))].T).T[:, :3]


def voxel_by_loop(points, affine):
    inverse, result = np.linalg.inv(affine), []
    for x, y, z in points:
        result.append([sum(row * (x, y, z, 1)) for row in inverse[:3]])
    return np.array(result)


def voxel_by_nibabel(points, affine):
    return apply_affine(np.linalg.inv(affine), points)


def voxel_by_einsum(points, affine):
    return np.einsum("ij,nj->ni", np.linalg.inv(affine[:3, :3]), points - affine[:3, 3])


def voxel_of_three_points(points, affine):
    result = np.empty((3, 3))
    for n in range(3):
        result[n] = np.linalg.solve(affine[:3, :3], points[n % len(points)] - affine[:3, 3])
    return result


# Task 3


def flip_by_matrix(image, affine, axis):
    old_from_new = np.eye(4)
    old_from_new[axis, axis] = -1
    old_from_new[axis, 3] = image.shape[axis + 2] - 1
    return torch.flip(image, [axis + 2]), affine @ old_from_new


def flip_by_numpy(image, affine, axis):
    flipped = torch.from_numpy(np.flip(image.numpy(), axis + 2).copy())
    last = np.zeros(4)
    last[axis], last[3] = image.shape[axis + 2] - 1, 1
    columns = [affine[:, k] * (-1 if k == axis else 1) for k in range(3)]
    return flipped, np.stack([*columns, affine @ last], axis=1)


def flip_by_reversed_index(image, affine, axis):
    index = torch.arange(image.shape[axis + 2] - 1, -1, -1)
    new = affine.copy()
    new[:3, axis] = -affine[:3, axis]
    new[:3, 3] = affine[:3, 3] + affine[:3, axis] * float(image.shape[axis + 2] - 1)
    return [image.index_select(axis + 2, index), new]


# Task 4


def normalize_by_numpy(image):
    result = image.numpy().copy()
    for b in range(len(result)):
        upper = np.quantile(result[b][result[b] > 0], 0.995)
        result[b] = np.clip(result[b] / upper, 0, 1)
    return torch.from_numpy(result)


def normalize_by_percentile(image):
    upper = [float(np.percentile(one[one > 0].numpy(), 99.5)) for one in image]
    return (image / torch.tensor(upper).view(-1, 1, 1, 1)).clip(0, 1)


def normalize_by_nanquantile(image):
    foreground = torch.where(image > 0, image, torch.nan).flatten(1)
    upper = torch.nanquantile(foreground, 0.995, dim=1)[:, None, None, None]
    return image.clamp(min=0).minimum(upper) / upper


def normalize_by(**how):
    """torch.quantile between two values by another custom than its default."""

    def answer(image):
        upper = torch.stack([torch.quantile(one[one > 0], 0.995, **how) for one in image])
        return (image / upper.view(-1, 1, 1, 1)).clamp(0, 1)

    return answer


def normalize_by_sorting(image):
    result = torch.zeros_like(image)
    for b, one in enumerate(image):
        values = one[one > 0].sort().values
        result[b] = (one / values[int(0.995 * len(values))]).clamp(0, 1)
    return result


def normalize_by_kth_value(image):
    scaled = []
    for one in image:
        values = one[one > 0]
        scaled.append((one / values.kthvalue(int(np.ceil(0.995 * len(values)))).values).clamp(0, 1))
    return torch.stack(scaled)


def normalize_above(image, threshold):
    upper = [torch.quantile(one[one > threshold], 0.995) for one in image]
    return (image / torch.stack(upper).view(-1, 1, 1, 1)).clamp(0, 1)


# Task 5


def pad_by_assignment(image, affine, divisor):
    shape = [int(np.ceil(n / divisor) * divisor) for n in image.shape[2:]]
    first = [(new - old) // 2 for new, old in zip(shape, image.shape[2:], strict=True)]
    result = torch.zeros(*image.shape[:2], *shape)
    a, b, c = (slice(f, f + n) for f, n in zip(first, image.shape[2:], strict=True))
    result[:, :, a, b, c] = image
    moved = affine.copy()
    moved[:, 3] = affine @ [-first[0], -first[1], -first[2], 1]
    return result, moved


def pad_by_numpy(image, affine, divisor):
    widths, step = [(0, 0), (0, 0)], np.eye(4)
    for axis, n in enumerate(image.shape[2:]):
        more = 0 if n % divisor == 0 else divisor - n % divisor
        widths.append((more // 2, more - more // 2))
        step[axis, 3] = -(more // 2)
    return torch.from_numpy(np.pad(image.numpy(), widths)), affine @ step


# Answers that the exercise does not forbid: the library's own functions in the learner's hands.


def flip_by_the_library(image, affine, axis):
    flipped = reorient(Volume(image, affine, (1.0,) * 3), "RAS")
    return flipped.image, flipped.affine


def pad_by_the_library(image, affine, divisor):
    shape = next_multiple(image.shape[2:], divisor)
    return crop_or_pad(Volume(image, affine, (1.0,) * 3), shape)[:2]


def pad_the_batch_too(image, affine, divisor):
    return F.pad(image, (0, 1) * 5), affine


IN_THE_HORNS = [
    (29, -48, 16),
    (28, -47, 14),
    (27, -45, 12),
    (28, -44, 14),
    (10, 17, 16),
    (12, 23, 10),
    (12, 20, 12),
    (13, 4, 22),
    (13, 7, 22),
    (5, 5, 15),
    (2, 4, 16),  # at the wall in the middle
    (2, -10, 22),
    (35, -40, 0),
    (14, 26, 6),
    (15, 27, 2),
    (18, 26, 7),  # the very tip
    (17, 28, 7),
]

RIGHT = {
    "voxel_of_point": [
        lambda: [30, 70, 35],
        lambda: (30.0, 70.0, 35.0),
        lambda: np.array([30, 70, 35]),
        lambda: torch.tensor([30.0, 70, 35]),
        lambda: tuple(np.linalg.solve(np.diag([-2, 1.5, 3]), [-60, 105, 105])),
    ],
    "to_voxel": [
        voxel_by_solving,
        voxel_by_homogeneous_coordinates,
        voxel_by_loop,
        voxel_by_nibabel,
        voxel_by_einsum,
    ],
    "flip_axis": [flip_by_matrix, flip_by_numpy, flip_by_reversed_index],
    "normalize": [
        normalize_by_numpy,
        normalize_by_percentile,
        normalize_by_nanquantile,
        normalize_by_sorting,
        normalize_by_kth_value,
        *(normalize_by(interpolation=custom) for custom in ("lower", "higher", "midpoint")),
    ],
    "pad_to_multiple": [pad_by_assignment, pad_by_numpy, pad_by_the_library],
    "right_ventricle": [
        lambda: [12, -20, 24],
        lambda: np.array([19.0, -31, 21]),
        lambda: torch.tensor([15, -24, 23]),
        lambda: (np.float64(15.3), -24.4, 22.8),
        lambda: (26, -42, 12),
        lambda: (14, -10, 23),  # at its edge
        *(lambda point=point: point for point in IN_THE_HORNS),
    ],
}
MISREAD = [
    ((-15, -24, 23), "*left* lateral ventricle: x = -15 mm is on the patient's left"),
    ((-29, -48, 16), "*left* lateral ventricle"),
    ((0, -24, 23), "x = 0 mm is in the middle"),
    ((0, 4, 16), "x = 0 mm is in the middle"),  # 2 mm from both
    ((-40, -24, 23), "x = -40 mm is on the patient's left"),
    ((113, 110, 95), "a voxel of the 1 mm file"),
    ((84, 31, 108), "a voxel of the scan"),
    ((23, -10, 14), "another order"),
    ((-24, 15, 23), "another order"),
    ((15, 24, 23), "with y = -24 this point would be inside"),
    ((-12, 30, 23), "with the other signs of x and y"),
    ((-150, -24, 23), "outside the image"),
]

WRONG = {
    "voxel_of_point": [
        (lambda: (31, 70, 35), "values"),
        (lambda: 30, "type"),
        (lambda: np.array([30, 70, 35, 1]), "shape"),
    ],
    "to_voxel": [
        (lambda points, affine: points[0], "shape"),
        (voxel_of_three_points, "law"),
        (lambda points, affine: voxel_by_loop(points, affine).astype(int), "mistake"),
        (lambda points, affine: voxel_by_loop(points, affine).round().astype(int), "mistake"),
        (lambda points, affine: torch.from_numpy(points), "type"),
        (lambda points, affine: points / 0.0, "finite"),
    ],
    "flip_axis": [
        (flip_by_the_library, "mistake"),
        (lambda image, affine, axis: image.flip(2 + axis), "type"),
        (lambda image, affine, axis: (image.flip(2 + axis),), "shape"),
        (lambda image, affine, axis: (image.flip(2 + axis), torch.from_numpy(affine)), "mistake"),
    ],
    "normalize": [
        (lambda image: normalize_above(image, image.mean()), "values"),
        (lambda image: image * 0, "values"),
        (lambda image: image[0], "shape"),
    ],
    "pad_to_multiple": [(pad_the_batch_too, "shape")],
    "right_ventricle": [
        (lambda: (15, -24, 40), "goal"),
        (lambda: (5, -15, -25), "goal"),  # fluid, but below the brain
        (lambda: (5, -20, 0), "goal"),  # the brainstem and the fluid around it
        (lambda: (2, -18, 3), "goal"),  # the third ventricle
        (lambda: (3, -20, 16), "goal"),  # fluid between the two, not in them
        (lambda: (40, -20, 10), "goal"),
        (lambda: (30, -20, -15), "goal"),
        *((lambda point=point: point, "type") for point, _ in MISREAD),
        (lambda: (-150, -24, 23), "type"),  # beyond the other end
        (lambda: (15, -24), "type"),
        (lambda: ("15", "-24", "23"), "type"),
        (lambda: (15, -24, float("nan")), "type"),
    ],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_the_two_ventricles_are_chambers_of_their_own_side() -> None:
    for side, sign in (("left", -1), ("right", 1)):
        points = checks._ventricles()[side]
        assert 8000 < len(points) < 13000
        assert (sign * points[:, 0] > 1).all()
        # Between the horns' tips; with the third ventricle, they would reach to z = −20.
        assert (points >= (-40, -65, -12)).all() and (points <= (40, 35, 35)).all()


def test_they_are_dark_and_leave_out_no_dark_voxel_that_touches_them() -> None:
    head = load_nifti(files("course_lib.data") / "colin27_t1.nii.gz")
    points = checks._ventricles()["right"]
    i, j, k = to_voxel(points, head.affine).round().astype(int).T
    assert float(head.image[0, 0, i, j, k].max()) < 150  # white matter has 235
    dark = np.argwhere(head.image[0, 0].numpy()[:, :, 72 + 22] < 130)  # the slice z = 22 mm
    x, y = dark[:, 0] - 98, dark[:, 1] - 134
    for point in np.c_[x, y][(x > 2) & (x < 24) & (y > -38) & (y < 6)]:
        assert checks._inside((*point.tolist(), 22.0), "right")


@pytest.mark.parametrize(("point", "said"), MISREAD)
def test_a_misread_point_is_told_how(point: tuple[float, ...], said: str) -> None:
    text = checks.right_ventricle.judge(lambda: point).text
    assert said in text and "Asked: " in text


def test_the_printed_distance_decides() -> None:
    for point in [(15.0, -24.0, z) for z in np.arange(29, 36, 0.1)]:
        ((name, mm),) = checks._distances(point).items()
        outcome = checks.right_ventricle.judge(lambda point=point: point)
        assert (outcome.stage == "") == (mm <= 2)
        assert ("inside" in name) == (mm == 0) and mm == round(mm, 1)


def test_the_scan_is_the_one_of_the_exercise() -> None:
    head = load_nifti(files("course_lib.data") / "colin27_t1.nii.gz")
    scan = reorient(resample(head, (1, 1, 3)), "LSP")
    np.testing.assert_allclose(scan.affine, checks._SCAN_AFFINE, atol=1e-6)

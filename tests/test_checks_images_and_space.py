"""Exercise 10: right answers written other ways pass, wrong ones are named."""

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from torch.nn import functional as F

from course_lib.checks import images_and_space as checks
from course_lib.io import Volume
from course_lib.volumes import crop_or_pad, next_multiple, reorient
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


RIGHT = {
    "voxel_of_point": [lambda: [30, 70, 35], lambda: (30.0, 70.0, 35.0)],
    "to_voxel": [
        voxel_by_solving,
        voxel_by_homogeneous_coordinates,
        voxel_by_loop,
        voxel_by_nibabel,
    ],
    "flip_axis": [flip_by_matrix, flip_by_numpy, flip_by_reversed_index],
    "normalize": [normalize_by_numpy, normalize_by_percentile, normalize_by_nanquantile],
    "pad_to_multiple": [pad_by_assignment, pad_by_numpy, pad_by_the_library],
    "right_ventricle": [
        lambda: [12, -20, 24],
        lambda: np.array([19.0, -31, 21]),
        lambda: torch.tensor([15, -24, 23]),
        lambda: (np.float64(15.3), -24.4, 22.8),
        lambda: (26, -42, 12),
        lambda: (14, -10, 23),  # at its edge
    ],
}
WRONG = {
    "voxel_of_point": [(lambda: (31, 70, 35), "values"), (lambda: 30, "type")],
    "to_voxel": [
        (lambda points, affine: points.T, "shape"),
        (lambda points, affine: torch.from_numpy(points), "type"),
        (lambda points, affine: points / 0.0, "finite"),
    ],
    "flip_axis": [
        (flip_by_the_library, "values"),
        (lambda image, affine, axis: image.flip(2 + axis), "type"),
        (lambda image, affine, axis: (image.flip(2 + axis),), "shape"),
        (lambda image, affine, axis: (image.flip(2 + axis), torch.from_numpy(affine)), "mistake"),
    ],
    "normalize": [(lambda image: image * 0, "values"), (lambda image: image[0], "shape")],
    "pad_to_multiple": [(pad_the_batch_too, "shape")],
    "right_ventricle": [
        (lambda: (-15, -24, 23), "goal"),  # the mirror image
        (lambda: (0, -24, 23), "goal"),
        (lambda: (15, 24, 23), "goal"),  # LPS
        (lambda: (15, -24, 40), "goal"),
        (lambda: (5, -15, -25), "goal"),  # fluid, but below the brain
        (lambda: (40, -20, 10), "goal"),
        (lambda: (113, 94, 110), "type"),  # indices
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
        assert 2000 < len(points) < 12000
        assert (sign * points[:, 0] > 3).all()
        assert (np.abs(points - (sign * 15, -15, 18)) < (25, 45, 22)).all()


def test_the_mirrored_answer_is_told_that_it_is_on_the_left() -> None:
    text = checks.right_ventricle.judge(lambda: (-15, -24, 23)).text
    assert "mm to the left ventricle = 0" in text and "patient's right" in text

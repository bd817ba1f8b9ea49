"""Exercise 11: right answers written other ways pass, wrong ones are named."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_lib.checks import displacement_fields as checks
from tests.check_suite import Case, cases


def grid_by_loops(shape):
    grid = torch.zeros(len(shape), *shape)
    for index in np.ndindex(*shape):
        grid[(slice(None), *index)] = torch.tensor(index, dtype=torch.float32)
    return grid


def grid_by_nonzero(shape):
    return torch.ones(shape).nonzero().T.reshape(len(shape), *shape).float()


def grid_by_numpy(shape):
    return torch.from_numpy(np.indices(shape).astype(np.float32))


def warp_by_loops(image, displacement):
    result = torch.zeros_like(image)
    for b, i, j in np.ndindex(image.shape[0], *image.shape[2:]):
        k, m = (int(p + u) for p, u in zip((i, j), displacement[b, :, i, j], strict=True))
        if 0 <= k < image.shape[2] and 0 <= m < image.shape[3]:
            result[b, :, i, j] = image[b, :, k, m]
    return result


def warp_by_padding_and_gather(image, displacement):
    height, width = image.shape[2:]
    padded = F.pad(image, (1, 1, 1, 1))
    i = (torch.arange(height).view(1, -1, 1) + displacement[:, 0]).clamp(-1, height) + 1
    j = (torch.arange(width).view(1, 1, -1) + displacement[:, 1]).clamp(-1, width) + 1
    flat = (i * (width + 2) + j).long()[:, None].expand(image.shape)
    return padded.flatten(2).gather(2, flat.flatten(2)).view(image.shape)


def warp_by_grid_sample(image, displacement):
    height, width = image.shape[2:]
    i = torch.arange(height).view(1, -1, 1) + displacement[:, 0]
    j = torch.arange(width).view(1, 1, -1) + displacement[:, 1]
    grid = torch.stack([2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1], dim=-1)
    return F.grid_sample(image, grid, mode="nearest", align_corners=True)


def points_by_loops(points, displacement):
    moved = points.clone()
    for b, n in np.ndindex(*points.shape[:2]):
        i, j = points[b, n].long().tolist()
        moved[b, n] += displacement[b, :, i, j]
    return moved


def points_by_batch_index(points, displacement):
    i, j = points.long().unbind(-1)
    batch = torch.arange(len(points))[:, None]
    return points + displacement.permute(0, 2, 3, 1)[batch, i, j]


def compose_by_grid_sample(first, second):
    height, width = first.shape[2:]
    i = torch.arange(height).view(1, -1, 1) + second[:, 0]
    j = torch.arange(width).view(1, 1, -1) + second[:, 1]
    grid = torch.stack([2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1], dim=-1)
    return F.grid_sample(first, grid, padding_mode="border", align_corners=True) + second


def invert_by_interpolation(u):
    x = np.arange(len(u))
    return np.interp(x, x + u, x) - x


def invert_until_it_stands_still(u):
    x, w = np.arange(len(u)), -u
    while True:
        new = -np.interp(x + w, x, u)
        if np.abs(new - w).max() < 1e-6:
            return new
        w = new


RIGHT = {
    "dot_after_warp": [lambda: [3, 8], lambda: (3.0, 8.0)],
    "identity_grid": [grid_by_loops, grid_by_nonzero, grid_by_numpy],
    "warp_integer": [warp_by_padding_and_gather, warp_by_grid_sample],
    "warp_points": [points_by_loops, points_by_batch_index],
    "compose": [compose_by_grid_sample],
    "invert_1d": [invert_by_interpolation, invert_until_it_stands_still],
}
WRONG = {"warp_integer": [(warp_by_loops, "law")]}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()

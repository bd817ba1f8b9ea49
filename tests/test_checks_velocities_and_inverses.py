"""Exercise 17: right answers written other ways pass, wrong ones are named."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn import functional as F

from course_lib.checks import velocities_and_inverses as checks
from course_lib.checks.core import Check
from course_lib.spatial import (
    compose,
    integrate,
    invert,
    resize_displacement,
    resize_image,
    warp,
    warp_points,
)
from tests.check_suite import Case, ask, cases, tasks


def sample(field: Tensor, u: Tensor) -> Tensor:
    """Reads a field by NumPy and SciPy: no function of the course."""
    grid = np.indices(field.shape[2:])
    read = [
        [map_coordinates(channel, grid + arrows, order=1, mode="nearest") for channel in item]
        for item, arrows in zip(field.numpy().astype(float), u.numpy().astype(float), strict=True)
    ]
    return torch.from_numpy(np.array(read)).float()


def midpoint_by_scipy(velocity: Tensor, pieces: int) -> Tensor:
    u = torch.zeros_like(velocity)
    for _ in range(pieces):
        u = u + sample(velocity, u + sample(velocity, u) / (2 * pieces)) / pieces
    return u


def midpoint_by_compose(velocity: Tensor, pieces: int) -> Tensor:
    h, u = velocity / pieces, 0 * velocity
    for _ in range(pieces):
        u = u + compose(h, compose(h / 2, u)) - compose(h / 2, u)
    return u


def midpoint_of_points(velocity: Tensor, pieces: int) -> Tensor:
    grid = torch.from_numpy(np.indices(velocity.shape[2:])).float().flatten(1).T
    start = grid.expand(len(velocity), -1, -1)
    points = start
    for _ in range(pieces):
        halfway = warp_points(points, velocity / (2 * pieces))
        points = points + warp_points(halfway, velocity / pieces) - halfway
    return (points - start).mT.reshape(velocity.shape)


def exponential_by_halving(velocity: Tensor) -> Tensor:
    if velocity.square().sum(1).max() <= 0.25:
        return velocity
    half = exponential_by_halving(velocity / 2)
    return compose(half, half)


def exponential_by_logarithm(velocity: Tensor) -> Tensor:
    longest = velocity.square().sum(dim=1).sqrt().max().item()
    n = max(0, math.ceil(math.log2(2 * longest)))
    u = velocity * 0.5**n
    for _ in range(n):
        u = u + warp(u, u, padding="border")
    return u


def exponential_by_integrate(velocity: Tensor) -> Tensor:
    n = next(n for n in range(50) if (velocity / 2**n).norm(dim=1).max() <= 0.5)
    return integrate(velocity, n)


def half_by_interpolate(velocity: Tensor) -> Tensor:
    sizes = velocity.shape[2:]
    small = [(n + 1) // 2 for n in sizes]
    factor = torch.tensor([(m - 1) / (n - 1) for m, n in zip(small, sizes, strict=True)])
    factor = factor.view(1, 2, 1, 1).to(velocity.dtype)
    slow = factor * F.interpolate(velocity, size=small, mode="bilinear", align_corners=True)
    return resize_image(integrate(slow, 7), sizes) / factor


def invert_by_while(displacement: Tensor, tolerance: float) -> list[Any]:
    w, steps = -displacement, 0
    longest = compose(displacement, w).norm(dim=1).max()
    while longest > tolerance and steps < 99:
        w = -warp(displacement, w, padding="border")
        longest, steps = compose(displacement, w).norm(dim=1).max(), steps + 1
    return [w, longest]


def invert_by_the_library(displacement: Tensor, tolerance: float) -> tuple[Tensor, float]:
    w = invert(displacement, tolerance=tolerance / 2, iterations=100)
    return w, compose(displacement, w).norm(dim=1).max().item()


def invert_keeping_the_best(displacement: Tensor, tolerance: float) -> tuple[Tensor, np.float64]:
    w = best = torch.zeros_like(displacement)
    lowest = math.inf
    for _ in range(101):
        residual = compose(displacement, w)
        longest = float(residual.norm(dim=1).max())
        if longest < lowest:
            best, lowest = w, longest
        if longest <= tolerance:
            break
        w = w - residual
    return best, np.float64(lowest)


def invert_forever(displacement: Tensor, tolerance: float) -> tuple[Tensor, float]:
    w = torch.zeros_like(displacement)
    while (r := compose(displacement, w)).norm(dim=1).max() > tolerance:
        w = w - r
    return w, float(r.norm(dim=1).max())


def inverting(
    steps: int = 100, report: Callable[[Tensor], Any] | None = None, late: bool = False
) -> Callable[..., Any]:
    """An inverse that takes at most some steps, and says this about its last residual."""

    def answer(displacement: Tensor, tolerance: float) -> tuple[Tensor, float]:
        w = torch.zeros_like(displacement)
        for _ in range(steps):
            residual = compose(displacement, w)
            if not late and residual.norm(dim=1).max() <= tolerance:
                break
            w = w - residual
        last = compose(displacement, w)
        return w, float((report or (lambda r: r.norm(dim=1).max()))(last))

    return answer


def invert_reporting_the_step_before(displacement: Tensor, tolerance: float) -> Any:
    w = torch.zeros_like(displacement)
    for _ in range(100):
        residual = compose(displacement, w)
        w = w - residual
        longest = float(residual.norm(dim=1).max())
        if longest <= tolerance:
            break
    return w, longest


def invert_reporting_the_last_residual_seen(displacement: Tensor, tolerance: float) -> Any:
    w = torch.zeros_like(displacement)
    for _ in range(100):
        residual = compose(displacement, w)
        longest = float(residual.norm(dim=1).max())
        if longest <= tolerance:
            break
        w = w - residual
    return w, longest


RIGHT = {
    "in_the_river": [lambda: [8, 4, 20, 5], lambda: (8.0, 4.0, 20.0, 5.0)],
    "midpoint": [midpoint_by_scipy, midpoint_by_compose, midpoint_of_points],
    "exponential": [exponential_by_halving, exponential_by_logarithm, exponential_by_integrate],
    "half_resolution": [half_by_interpolate],
    "invert": [invert_by_while, invert_by_the_library, invert_keeping_the_best],
    "roughest": [lambda: 4.2, lambda: 3.9, lambda: np.float32(4.1), lambda: torch.tensor(4.0)],
}
WRONG = {
    "in_the_river": [(lambda: (8, 4, 20, 6), "values"), (lambda: (8, 4, 20), "shape")],
    "midpoint": [(lambda velocity, pieces: velocity, "values")],
    "half_resolution": [
        (lambda v: resize_displacement(integrate(v), [(n + 1) // 2 for n in v.shape[2:]]), "shape")
    ],
    "invert": [
        (invert_forever, "law"),
        (inverting(report=lambda r: r.norm(dim=1).mean()), "law"),
        (inverting(report=lambda r: r.abs().max()), "law"),
        (inverting(steps=35), "law"),
        (inverting(late=True), "law"),
        (invert_reporting_the_step_before, "law"),
        (invert_reporting_the_last_residual_seen, "law"),
    ],
    "roughest": [
        (lambda: 4.5, "goal"),
        (lambda: 3.0, "goal"),
        (lambda: 3.5, "goal"),
        (lambda: (4, 8), "type"),
        (lambda: -1, "type"),
        (lambda: 80, "type"),
    ],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_each_law_of_the_inverse_stops_an_answer_of_its_own() -> None:
    check = tasks(checks)["invert"]
    assert isinstance(check, Check)
    messages = [check.judge(answer).text for answer, stage in WRONG["invert"] if stage == "law"]
    assert {law.message for law in check.laws} == set(messages)


def test_the_diagonal_tells_the_length_from_the_largest_component() -> None:
    (velocity,) = checks._diagonal()
    component, length = float(velocity.abs().max()), float(velocity.norm(dim=1).max())
    assert component / 16 < 0.5 < length / 16


def test_every_item_of_a_batch_would_choose_another_number_of_squarings() -> None:
    for make in checks.exponential.inputs[:2]:
        (velocity,) = make()
        first, second = (checks._count(float(item.norm(dim=0).max())) for item in velocity)
        assert first > second


def test_the_fields_to_invert_do_not_fold_and_the_one_of_the_laws_does() -> None:
    for make in checks.invert.inputs:
        u, tolerance = make()
        assert invert_by_while(u, tolerance)[1] <= tolerance
    u, tolerance = checks._folded()
    assert invert_by_while(u, tolerance)[1] > 1


def test_the_goal_says_what_it_measured() -> None:
    verdict, _ = ask(checks.roughest, lambda: 3.0)
    assert "folded voxels" in verdict and "at most 4.2" in verdict

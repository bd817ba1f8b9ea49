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
    return small_steps(velocity, n)


def exponential_by_guarded_logarithm(velocity: Tensor) -> Tensor:
    longest = velocity.square().sum(dim=1).sqrt().max().item()
    return small_steps(velocity, max(0, math.ceil(math.log2(2 * longest))) if longest else 0)


def exponential_of_calm_rivers_too_far(velocity: Tensor) -> Tensor:
    longest = max(velocity.norm(dim=1).max().item(), 1e-9)
    return small_steps(velocity, math.ceil(math.log2(2 * longest)))


def counting(
    start: int = 0,
    at_half: bool = False,
    most: int = 99,
    first: bool = False,
    length: Callable[[Tensor], Tensor] = lambda v: v.norm(dim=1),
) -> Callable[[Tensor], Tensor]:
    """The exponential with a count of squarings that is wrong in one way."""

    def answer(velocity: Tensor) -> Tensor:
        n, longest = start, float(length(velocity[:1] if first else velocity).detach().max())
        while n < most and (longest / 2**n > 0.5 or (at_half and longest / 2**n == 0.5)):
            n += 1
        return small_steps(velocity, n)

    return answer


def small_steps(velocity: Tensor, n: int) -> Tensor:
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


def invert_forever_the_same_w(displacement: Tensor, tolerance: float) -> Any:
    w = torch.zeros_like(displacement)
    while (r := compose(displacement, w)).norm(dim=1).max() > tolerance:
        r = w - r
    return w, float(r.norm(dim=1).max())


def longest_arrow(residual: Tensor) -> Tensor:
    return residual.norm(dim=1).max()


def inverting(
    steps: int = 100,
    stop: Callable[[Tensor], Tensor] = longest_arrow,
    report: Callable[[Tensor], Any] = longest_arrow,
    residual: Callable[[Tensor, Tensor], Tensor] = compose,
) -> Callable[..., Any]:
    """An inverse that is wrong in the steps, in when it stops, in what it says, or in r."""

    def answer(displacement: Tensor, tolerance: float) -> tuple[Tensor, float]:
        w = torch.zeros_like(displacement)
        for _ in range(steps):
            if stop(r := residual(displacement, w)) <= tolerance:
                break
            w = w - r
        return w, float(report(residual(displacement, w)))

    return answer


def invert_returning_inside_the_if(displacement: Tensor, tolerance: float) -> Any:
    w = torch.zeros_like(displacement)
    for _ in range(100):
        r = compose(displacement, w)
        if longest_arrow(r) <= tolerance:
            return w, float(longest_arrow(r))
        w = w - r


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


# Each law of the inverse, by the order in which they are asked, and who breaks it first.
BY_LAW = [
    (invert_forever, 0),
    (invert_returning_inside_the_if, 1),
    (inverting(stop=lambda r: r.norm(dim=1).mean()), 2),
    (inverting(stop=lambda r: r.norm(dim=1).mean(), report=lambda r: r.norm(dim=1).mean()), 2),
    (inverting(stop=lambda r: r.abs().max()), 2),
    (inverting(stop=lambda r: r.abs().max(), report=lambda r: r.abs().max()), 2),
    (inverting(stop=lambda r: r.max(), report=lambda r: r.max()), 2),
    (inverting(report=lambda r: r.norm(dim=1).mean()), 3),
    (inverting(report=lambda r: r.abs().max()), 3),
    (inverting(report=lambda r: r.norm()), 3),
    (inverting(report=lambda r: 0.0), 3),
    (invert_reporting_the_step_before, 3),
    (invert_reporting_the_last_residual_seen, 4),
    (inverting(steps=10), 5),
    (inverting(steps=35), 5),
    (inverting(steps=60), 5),
    (inverting(steps=80), 5),
    (inverting(stop=lambda r: r.norm() / 0), 6),
    (inverting(steps=150), 7),
    (inverting(steps=1000), 7),
]
RIGHT = {
    "in_the_river": [lambda: [8, 4, 20, 5], lambda: (8.0, 4.0, 20.0, 5.0)],
    "midpoint": [midpoint_by_compose, midpoint_of_points],
    "exponential": [
        exponential_by_halving,
        exponential_by_guarded_logarithm,
        exponential_by_integrate,
        counting(),
    ],
    "half_resolution": [half_by_interpolate],
    "invert": [
        invert_by_while,
        invert_keeping_the_best,
        inverting(steps=101),
        lambda displacement, tolerance: inverting()(displacement, 0.999 * tolerance),
    ],
    "roughest": [lambda: 3.8, lambda: 3.82, lambda: np.float32(3.8), lambda: torch.tensor(3.8)],
}
WRONG = {
    "in_the_river": [(lambda: (8, 4, 20, 6), "values"), (lambda: (8, 4, 20), "shape")],
    "midpoint": [
        (lambda velocity, pieces: velocity, "values"),
        (midpoint_by_scipy, "raised"),
        (lambda velocity, pieces: checks._midpoint(velocity.detach(), pieces), "gradient"),
    ],
    "exponential": [
        (counting(first=True), "mistake"),
        (counting(length=lambda v: v.abs().sum(dim=1)), "mistake"),
        (counting(length=lambda v: v.square().sum(dim=1)), "mistake"),
        (lambda velocity: integrate(velocity, 4), "mistake"),
        (lambda velocity: integrate(velocity, 12), "mistake"),
        (exponential_by_logarithm, "law"),  # the logarithm of 0
        (exponential_of_calm_rivers_too_far, "law"),
        (counting(start=1), "law"),
        (counting(at_half=True), "law"),
        (counting(most=7), "law"),
        (lambda v: integrate(v, 5 if v.norm(dim=1).max() > 7.5 else 4), "law"),
    ],
    "half_resolution": [
        (lambda v: resize_displacement(integrate(v), [(n + 1) // 2 for n in v.shape[2:]]), "shape")
    ],
    "invert": [
        *((answer, "law") for answer, _ in BY_LAW),
        (invert_forever_the_same_w, "raised"),
        (inverting(residual=lambda u, w: compose(w, u)), "mistake"),
        (inverting(residual=lambda u, w: w + warp(u, w)), "mistake"),
        (inverting(residual=lambda u, w: w + compose(u, w)), "mistake"),
        (inverting(residual=lambda u, w: warp(u, w, padding="border")), "mistake"),
    ],
    "roughest": [
        (lambda: 4.5, "goal"),
        (lambda: 4.2, "goal"),
        (lambda: 3.9, "goal"),
        (lambda: 3.7, "goal"),
        (lambda: 3.0, "goal"),
        (lambda: 0.0, "goal"),
        (lambda: (4, 8), "type"),
        (lambda: -1, "type"),
        (lambda: 80, "type"),
    ],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


@pytest.mark.parametrize("answer, law", BY_LAW)
def test_each_law_of_the_inverse_stops_its_own(answer: Callable[..., Any], law: int) -> None:
    check = tasks(checks)["invert"]
    assert isinstance(check, Check)
    assert check.judge(answer).text == check.laws[law].message
    assert {law for _, law in BY_LAW} == set(range(len(check.laws)))


@pytest.mark.parametrize(
    "answer, law",
    [
        (exponential_by_logarithm, 0),
        (exponential_of_calm_rivers_too_far, 1),
        (counting(start=1), 1),
        (counting(at_half=True), 2),
        (counting(most=7), 3),
    ],
)
def test_each_law_of_the_exponential_stops_its_own(answer: Callable[..., Any], law: int) -> None:
    assert checks.exponential.judge(answer).text == checks.exponential.laws[law].message


def test_a_loop_that_never_ends_is_cut_off_and_told_why() -> None:
    assert "does not end" in checks.invert.judge(invert_forever_the_same_w).text


def test_nothing_is_printed_about_a_gradient_that_the_check_asked_for() -> None:
    def answer(velocity: Tensor) -> Tensor:
        n = next(n for n in range(50) if float(velocity.norm(dim=1).max()) / 2**n <= 0.5)
        return integrate(velocity, n)

    assert "Warning" not in ask(checks.exponential, answer)[1]


def test_the_diagonal_tells_the_length_from_the_largest_component() -> None:
    (velocity,) = checks._diagonal()
    component, length = float(velocity.abs().max()), float(velocity.norm(dim=1).max())
    assert component / 16 < 0.5 < length / 16


def test_the_items_of_a_batch_would_choose_other_numbers_of_squarings() -> None:
    counts = []
    for make in checks.exponential.inputs[:2]:
        (velocity,) = make()
        counts.append([checks._count(float(item.norm(dim=0).max())) for item in velocity])
    assert counts[0][0] < counts[0][1] and counts[1][0] > counts[1][1]


def test_the_fields_to_invert_do_not_fold_and_the_one_of_the_laws_does() -> None:
    for make in checks.invert.inputs:
        u, tolerance = make()
        assert invert_by_while(u, tolerance)[1] <= tolerance
    u, tolerance = checks._folded()
    assert invert_by_while(u, tolerance)[1] > 1


def test_the_goal_says_what_it_measured() -> None:
    verdict, _ = ask(checks.roughest, lambda: 3.0)
    assert "folded voxels" in verdict and "lower by 0.1" in verdict

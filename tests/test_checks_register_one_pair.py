"""Exercise 20: right answers written other ways pass, wrong ones are named."""

import math

import numpy as np
import pytest
import torch

from course_lib.checks import register_one_pair as checks
from course_lib.spatial import compose, pyramid, resize_displacement, resize_image, warp
from tests.check_suite import Case, ask, cases


def rigid_by_loops(parameters, radius):
    matrix = parameters.new_zeros(len(parameters), 2, 3)
    for b, (arc, down, right) in enumerate(parameters):
        angle = arc / radius
        matrix[b, 0, 0] = matrix[b, 1, 1] = torch.cos(angle)
        matrix[b, 0, 1], matrix[b, 1, 0] = -torch.sin(angle), torch.sin(angle)
        matrix[b, 0, 2], matrix[b, 1, 2] = down, right
    return matrix


def rigid_by_exponential(parameters, radius):
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=parameters.dtype)
    linear = torch.linalg.matrix_exp(parameters[:, :1, None] / radius * turn)
    return torch.cat([linear, parameters[:, 1:, None]], dim=2)


def descend_by_sgd(loss, start, rate, tolerance, most):
    x = start.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=rate)
    places, why = [], "steps"
    for _ in range(most):
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        if not torch.isfinite(value) or not torch.isfinite(x.grad).all():
            why = "diverged"
            break
        places.append((value.item(), x.detach().clone()))
        optimizer.step()
        if (x.detach() - places[-1][1]).abs().max() <= tolerance:
            why = "converged"
            break
    places.append((float(loss(x)), x.detach().clone()))
    finite = [place for place in places if math.isfinite(place[0])]
    return min(finite, key=lambda place: place[0])[1], why


def descend_by_a_list(loss, start, rate, tolerance, most):
    path = [start.detach()]
    for _ in range(most):
        x = path[-1].clone().requires_grad_()
        loss(x).backward()
        if not x.grad.isfinite().all() or not loss(x).isfinite():
            return min(path[:-1], key=loss), "diverged"
        path.append((x - rate * x.grad).detach())
        if all(abs(float(step)) <= tolerance for step in path[-1] - path[-2]):
            return min(path, key=loss), "converged"
    return min(path, key=loss), "steps"


def coarse_to_fine_by_hand(moving, fixed, factors, register):
    u = None
    for factor in factors:
        m, f = pyramid(moving, factor), pyramid(fixed, factor)
        u = (
            torch.zeros(len(f), 2, *f.shape[2:])
            if u is None
            else resize_displacement(u, f.shape[2:])
        )
        v = register(warp(m, u, padding="border"), f)
        u = v + warp(u, v, padding="border")
    ratio = [(n - 1) / (k - 1) for n, k in zip(fixed.shape[2:], u.shape[2:], strict=True)]
    return resize_image(u, fixed.shape[2:]) * torch.tensor(ratio).view(1, 2, 1, 1)


def coarse_to_fine_on_the_full_grid(moving, fixed, factors, register):
    """Kept at full size between the levels when that is exact enough: at factor 1 only."""
    u = torch.zeros(len(fixed), 2, *pyramid(fixed, factors[0]).shape[2:])
    for k, factor in enumerate(factors):
        small = pyramid(fixed, factor)
        if k:
            u = resize_displacement(u, tuple(small.shape[2:]))
        change = register(warp(pyramid(moving, factor), u, padding="border"), small)
        u = compose(first=u, second=change)
    return u if u.shape[2:] == fixed.shape[2:] else resize_displacement(u, fixed.shape[2:])


def force_by_numpy(warped, fixed):
    result = np.zeros((len(fixed), 2, *fixed.shape[2:]), np.float32)
    for b, (w, f) in enumerate(zip(warped.numpy(), fixed.numpy(), strict=True)):
        gi, gj = np.gradient(f[0])
        below = gi**2 + gj**2 + (f[0] - w[0]) ** 2
        for d, g in enumerate((gi, gj)):
            result[b, d] = np.divide(
                (f[0] - w[0]) * g, below, out=np.zeros_like(g), where=below > 0
            )
    return torch.from_numpy(result)


def force_with_clamp(warped, fixed):
    gi, gj = torch.gradient(fixed[:, 0], dim=(1, 2))
    d = (fixed - warped)[:, 0]
    return torch.stack([d * gi, d * gj], 1) / (gi**2 + gj**2 + d**2).clamp(min=1e-12)[:, None]


def force_with_nan_to_num(warped, fixed):
    g = torch.cat(torch.gradient(fixed, dim=(2, 3)), 1)
    d = fixed - warped
    return (d * g / (g.pow(2).sum(1, keepdim=True) + d**2)).nan_to_num(0.0)


def force_with_a_larger_epsilon(warped, fixed):
    g = torch.cat(torch.gradient(fixed, dim=[2, 3]), 1)
    d = fixed - warped
    return d * g / (g.square().sum(1, keepdim=True) + d**2 + 1e-6)


def force_with_epsilon(warped, fixed):
    g = torch.cat(torch.gradient(fixed, dim=[2, 3]), 1)
    d = fixed - warped
    return d * g / (g.norm(dim=1, keepdim=True) ** 2 + d**2 + 1e-10)


RIGHT = {
    "on_the_coarse_grid": [lambda: [0.1, 4.0, -4.0], lambda: (0.2 * 100 / 200, 8 * 0.5, -4)],
    "rigid_matrix": [rigid_by_loops, rigid_by_exponential],
    "descend": [descend_by_sgd, descend_by_a_list],
    "coarse_to_fine": [coarse_to_fine_by_hand, coarse_to_fine_on_the_full_grid],
    "demons_force": [
        force_by_numpy,
        force_with_clamp,
        force_with_nan_to_num,
        force_with_epsilon,
        force_with_a_larger_epsilon,
    ],
    "weight_and_coarsest": [lambda: [1.2, 4], lambda: (1.3, 4)],
}
WRONG = {
    "on_the_coarse_grid": [(lambda: (0.1, 4, 4), "values"), (lambda: (0.1, 4), "shape")],
    "rigid_matrix": [
        (lambda p, r: torch.tensor(rigid_by_exponential(p, r).tolist()), "gradient"),
        (lambda p, r: rigid_by_exponential(p, r)[0], "shape"),
    ],
    "descend": [(lambda loss, start, rate, tolerance, most: start, "type")],
    "weight_and_coarsest": [
        (lambda: (2.5, 1), "goal"),
        (lambda: (0.3, 4), "goal"),
        (lambda: (3, 4), "goal"),
        (lambda: (1.0, 2), "goal"),
        (lambda: 1.2, "type"),
        (lambda: (4, 1.2), "type"),
        (lambda: (-1, 4), "type"),
        (lambda: (math.nan, 4), "type"),
    ],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_a_partly_right_prediction_is_not_given_away() -> None:
    verdict, _ = ask(checks.on_the_coarse_grid, lambda: (0.1, 7, -4))
    assert "right so far" in verdict and "0.1" in verdict

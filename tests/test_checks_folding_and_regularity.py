"""Exercise 14: right answers written other ways pass, wrong ones are named."""

import numpy as np
import pytest
import torch

from course_lib.checks import folding_and_regularity as checks
from course_lib.losses import diffusion as library_diffusion
from course_lib.spatial import identity_grid, jacobian, jacobian_determinant
from tests.check_suite import Case, as_learner, ask, cases


def determinant_by_loops(displacement):
    result = torch.zeros_like(displacement[:, 0])
    sizes = displacement.shape[2:]
    for b, i, j in np.ndindex(*result.shape):
        slopes = torch.eye(2)
        for axis, place in enumerate((i, j)):
            low, high = max(place - 1, 0), min(place + 1, sizes[axis] - 1)
            here, there = [i, j], [i, j]
            here[axis], there[axis] = low, high
            rise = displacement[b, :, there[0], there[1]] - displacement[b, :, here[0], here[1]]
            slopes[:, axis] += rise / (high - low)
        result[b, i, j] = slopes[0, 0] * slopes[1, 1] - slopes[0, 1] * slopes[1, 0]
    return result


def determinant_by_numpy(displacement):
    phi = (displacement + identity_grid(displacement.shape[2:])).numpy()
    (a, b), (c, d) = (np.gradient(phi[:, n], axis=(1, 2)) for n in range(2))
    return torch.from_numpy(a * d - b * c)


def determinant_by_linalg(displacement):
    along = torch.stack(torch.gradient(displacement, dim=(2, 3)), dim=2)
    return torch.linalg.det(along.permute(0, 3, 4, 1, 2) + torch.eye(2))


def fraction_by_loop(displacement, mask):
    fractions = []
    for item, inside in zip(jacobian_determinant(displacement), mask[:, 0], strict=True):
        fractions.append((item[inside] <= 0).float().mean())
    return torch.stack(fractions)


def fraction_by_weights(displacement, mask):
    folded = (jacobian_determinant(displacement)[:, None] <= 0).float()
    weights = mask.float()
    return (folded * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def determinant_3d_by_linalg(displacement):
    return torch.linalg.det(jacobian(displacement).permute(0, 3, 4, 5, 1, 2))


def determinant_3d_by_cross(displacement):
    x, y, z = (column.clone() for column in torch.gradient(displacement, dim=(2, 3, 4)))
    x[:, 0] += 1
    y[:, 1] += 1
    z[:, 2] += 1
    return (x * torch.linalg.cross(y, z, dim=1)).sum(1)


def determinant_3d_by_numpy(displacement):
    slopes = np.stack(np.gradient(displacement.numpy(), axis=(2, 3, 4)), axis=-1)
    moved = np.moveaxis(slopes, 1, -2) + np.eye(3, dtype=np.float32)
    return torch.from_numpy(np.linalg.det(moved).astype(np.float32))


def diffusion_by_slices(displacement):
    i = displacement[:, :, 1:] - displacement[:, :, :-1]
    j = displacement[..., 1:] - displacement[..., :-1]
    return 0.5 * (i**2).mean() + 0.5 * (j**2).mean()


def diffusion_by_hand(displacement):
    total = 0
    for dim in (-2, -1):
        rise = torch.diff(displacement, dim=dim)
        total = total + (rise * rise).sum() / rise.numel()
    return total / 2


def diffusion_by_mse(displacement):
    f = torch.nn.functional.mse_loss
    i = f(displacement[:, :, 1:], displacement[:, :, :-1])
    return torch.stack([i, f(displacement[..., 1:], displacement[..., :-1])]).mean()


RIGHT = {
    "six_numbers": [lambda: [1 / 2, -1.0, 3 / 4, 1.0, 1 / 8, 19.0]],
    "jacobian_determinant": [determinant_by_loops, determinant_by_numpy, determinant_by_linalg],
    "folding_fraction": [fraction_by_loop, fraction_by_weights],
    "determinant_3d": [
        determinant_3d_by_linalg,
        determinant_3d_by_cross,
        determinant_3d_by_numpy,
    ],
    "diffusion": [diffusion_by_slices, diffusion_by_hand, diffusion_by_mse],
    "good_weight": [lambda: 1.5, lambda: 2, lambda: 2.0],
}
WRONG = {
    "six_numbers": [
        (lambda: (0.5, -1, 0.75, 4, 0.125, 19), "values"),
        (lambda: (0.5, -1, 0.75, 1, 0.125, 18.8), "values"),
    ],
    "diffusion": [(lambda u: torch.tensor(float(library_diffusion(u))), "gradient")],
    "good_weight": [
        (lambda: 0.1, "goal"),
        (lambda: 0.9, "goal"),
        (lambda: 3.2, "goal"),
        (lambda: 10, "goal"),
        (lambda: 0, "type"),
        (lambda: 1000, "type"),
    ],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_the_fields_fold_and_do_not_fold() -> None:
    """Where no determinant is negative, a lost sign would go unseen."""
    for make in checks.jacobian_determinant.inputs:
        determinant = jacobian_determinant(*make())
        assert (determinant < -0.05).any() and (determinant > 0.05).any()


def test_a_determinant_of_exactly_zero_is_among_the_inputs() -> None:
    for make in checks.folding_fraction.inputs:
        displacement, mask = make()
        determinant = jacobian_determinant(displacement)
        assert ((determinant == 0) & mask[:, 0]).any()
        assert ((determinant < 0) & mask[:, 0]).any() or len(mask) == 1
        # Far from zero otherwise: rounding must not decide.
        near = (determinant.abs() < 1e-3) & (determinant != 0) & mask[:, 0]
        assert not near.any()


def test_a_missed_goal_says_both_numbers() -> None:
    verdict, _ = ask(checks.good_weight, as_learner(lambda: 0.1))
    assert "mean Dice" in verdict and "% of the brain" in verdict and "0.715" in verdict


def test_the_goal_is_clear_of_its_borders() -> None:
    for weight in (1.5, 1.7, 2.0):
        measured = checks._registered(weight)
        assert measured[checks._OVERLAP] > checks._DICE + 0.004
        assert measured[checks._PERCENT] < checks._FOLDS - 0.03
    assert checks._registered(0.9)[checks._PERCENT] > checks._FOLDS + 0.1
    assert checks._registered(3.2)[checks._OVERLAP] < checks._DICE - 0.005

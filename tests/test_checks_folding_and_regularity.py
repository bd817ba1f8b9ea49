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
    "six_numbers": [(lambda: (0.5, -1, 0.75, 4, 0.125, 19), "values")],
    "diffusion": [(lambda u: torch.tensor(float(library_diffusion(u))), "gradient")],
    "good_weight": [
        (lambda: 0.1, "goal"),
        (lambda: 0.9, "goal"),
        (lambda: 3.2, "goal"),
        (lambda: 10, "goal"),
        (lambda: 0.01, "goal"),
        (lambda: 100, "goal"),
        (lambda: 0.009, "type"),
        (lambda: 101, "type"),
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
        if make is checks._nearly_flat:
            flat = (determinant > 0) & (determinant < 1e-3)
            assert (flat & mask[:, 0]).any() and ((determinant < 0) & mask[:, 0]).any()
        else:
            assert ((determinant == 0) & mask[:, 0]).any()
            assert ((determinant < 0) & mask[:, 0]).any() or len(mask) == 1
        # Far from zero otherwise: rounding must not decide.
        near = (determinant.abs() < 1e-4) & (determinant != 0) & mask[:, 0]
        assert not near.any()


def told(task, answer):
    """The verdict in one line."""
    verdict, _ = ask(task, as_learner(answer))
    return " ".join(verdict.split())


@pytest.mark.parametrize(
    ("numbers", "said", "unsaid"),
    [
        ((0.5, -1, -0.25, 1, 0.125, 19), ["third number is not right; the others are"], []),
        ((0.5, 1, -0.25, 4, 0.25, 18), ["Second: right size", "Third: it is given as a dis"], []),
        ((0.5, 1, -0.25, 4, 0.25, 18), ["Fourth: it", "Fifth: this", "Sixth: it f"], ["First"]),
        ((0.5, -1, 0.75, -1, 0.125, 19), ["their product is positive"], ["Third"]),
        ((0.5, -1, 0.75, 1, 0.5, 19), ["that is one edge"], []),
        ((0.5, -1, 0.75, 1, 8, 19), ["Fifth: that is the determinant of the inverse"], []),
        ((0.5, -1, 0.75, 1, 0.125, 18.8496), ["the border itself, 6π"], []),
        ((0.5, -1, 0.75, 1, 0.125, 18.8), ["the border itself, 6π"], []),
        ((0.5, -1, 0.75, 1, 0.125, 20), ["not the smallest"], []),
        ((0.5, -1, 0.75, 1, 0.125, 42), ["in whole voxels"], []),
        ((3.75, 0, 0.75, 1, 3.375, 19), ["First: it is given as φ", "Fifth: it is"], ["Sixth"]),
        ((7, 7, 7, 7, 7, 7), ["sixth numbers are not right."], ["the others"]),
    ],
)  # fmt: skip
def test_each_number_is_judged_by_itself(numbers, said, unsaid) -> None:
    verdict = told(checks.six_numbers, lambda: numbers)
    assert all(text in verdict for text in said), verdict
    assert not any(text in verdict for text in unsaid), verdict


def test_no_clue_gives_a_number_away() -> None:
    for i, known in enumerate(checks.six_numbers.known):
        right = checks._six()[i]
        assert all(abs(value - right) > 0.007 * abs(right) for value, _ in known)


def without_dim(displacement):
    return torch.gradient(displacement)[0][:, 0]


def first_field(displacement):
    along_i, along_j = torch.gradient(displacement[0], dim=(1, 2))  # (2, H, W) each
    return (1 + along_i[0]) * (1 + along_j[1]) - along_j[0] * along_i[1]


def mean_in_numpy(displacement, mask):
    folded = (jacobian_determinant(displacement) <= 0).numpy()
    inside = mask[:, 0].numpy()
    return torch.tensor([item[where].mean() for item, where in zip(folded, inside, strict=True)])


def determinant_first(displacement, mask):
    """& binds tighter than <=."""
    folded = jacobian_determinant(displacement) <= 0 & mask[:, 0]
    return folded.sum((1, 2)) / mask[:, 0].sum((1, 2))


def divided_in_whole_numbers(displacement, mask):
    folded = (jacobian_determinant(displacement) <= 0) & mask[:, 0]
    return folded.sum((1, 2)) // mask[:, 0].sum((1, 2))


def with_threshold(limit):
    def fraction(displacement, mask):
        folded = (jacobian_determinant(displacement) <= limit) & mask[:, 0]
        return folded.sum((1, 2)) / mask[:, 0].sum((1, 2))

    return fraction


def ones_everywhere(displacement):
    slopes = torch.stack(torch.gradient(displacement, dim=(2, 3, 4)), 2) + 1
    return torch.linalg.det(slopes.permute(0, 3, 4, 5, 1, 2))


def rolled(u):
    return ((u.roll(-1, 2) - u).square().mean() + (u.roll(-1, 3) - u).square().mean()) / 2


def over_the_batch(u):
    return (u.diff(dim=0).square().mean() + u.diff(dim=1).square().mean()) / 2


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("jacobian_determinant", without_dim, "dim=(2, 3)"),
        ("jacobian_determinant", first_field, "the batch axis is gone"),
        ("folding_fraction", lambda u, m: 0.25, "one number for each item"),
        ("folding_fraction", mean_in_numpy, "End with .float()"),
        ("folding_fraction", divided_in_whole_numbers, "A fraction needs `/`"),
        ("folding_fraction", determinant_first, "& comes before <="),
        ("folding_fraction", with_threshold(0.05), "small positive determinants"),
        ("folding_fraction", with_threshold(0.01), "small positive determinants"),
        ("folding_fraction", with_threshold(1e-3), "small positive determinants"),
        ("determinant_3d", without_dim, "dim=(2, 3, 4)"),
        ("determinant_3d", lambda u: determinant_3d_by_linalg(u).double(), "End with .float()"),
        ("determinant_3d", ones_everywhere, "all nine entries"),
        ("diffusion", rolled, "roll() wraps around"),
        ("diffusion", over_the_batch, "between the items of the batch"),
        ("diffusion", lambda u: library_diffusion(u[:1]).clone(), "first item's penalty"),
    ],
)
def test_what_a_student_met_is_named(name, answer, said) -> None:
    verdict = told(getattr(checks, name), answer)
    assert said in verdict, verdict
    assert "arange" not in verdict and "cut the gradient" not in verdict


def test_a_wrong_determinant_that_a_right_fraction_calls_is_to_blame() -> None:
    text = (
        "def folding_fraction(displacement, mask):\n"
        "    folded = jacobian_determinant(displacement) <= 0\n"
        "    return (folded & mask[:, 0]).sum((1, 2)) / mask[:, 0].sum((1, 2))\n"
    )
    wrong = lambda displacement: torch.gradient(displacement, dim=(2, 3))[0][:, 0]  # noqa: E731
    for determinant, to_blame in ((wrong, True), (determinant_by_loops, False)):
        scope = {"__name__": "__main__", "jacobian_determinant": determinant}
        exec(text, scope)
        verdict = checks.folding_fraction.judge(scope["folding_fraction"])
        assert (verdict.name == "wrong") == to_blame
        assert ("calls your jacobian_determinant" in verdict.text) == to_blame


def test_what_reads_as_enough_is_enough() -> None:
    reached = checks.good_weight.reached
    assert reached({checks._OVERLAP: 0.71498, checks._PERCENT: 0.0196})
    assert not reached({checks._OVERLAP: 0.7144, checks._PERCENT: 0.0196})
    assert not reached({checks._OVERLAP: 0.73, checks._PERCENT: 0.177})


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

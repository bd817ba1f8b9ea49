"""Exercise 00: settings that reach the goals, and settings next to them that do not."""

import numpy as np
import pytest
import torch

from course_lib.checks import start_here as checks
from tests.check_suite import Case, cases

RIGHT = {
    "center_in_moving": [
        lambda: [116.5, 83.5],
        lambda: (np.float64(116.5), torch.tensor(83.5)),
    ],
    "folding_weight": [lambda: 0.5, lambda: 1, lambda: torch.tensor(0.25)],
    "stiff_weight": [lambda: 25, lambda: 200.0],
    "largest_rotation": [lambda: 30.0],
}
WRONG = {
    "center_in_moving": [(lambda: (112, 90), "values"), (lambda: 116.5, "type")],
    "folding_weight": [(lambda: 2.5, "goal"), (lambda: 5, "goal"), (lambda: 0, "type")],
    "stiff_weight": [(lambda: 2.5, "goal"), (lambda: 5, "goal"), (lambda: 0.1, "goal")],
    "largest_rotation": [(lambda d=d: d, "goal") for d in (0, 15, 45)] + [(lambda: 20, "type")],
}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_thresholds_are_clear_of_the_answers_on_both_sides() -> None:
    """Another machine rounds differently; no answer may hang on that."""
    assert checks._folding(1.0)["folding (% of the brain)"] > 0.8
    assert checks._folding(2.5)["folding (% of the brain)"] < 0.1
    stiff, affine, default = checks._stiffness(50.0).values()
    assert stiff - affine < 0.6 * (default - stiff)
    soft, affine, default = checks._stiffness(5.0).values()
    assert default - soft < 0.6 * (soft - affine)
    assert checks._distance_to_pose(30) < 1 and checks._distance_to_pose(45) > 20

"""The playback: pictures and numbers are those of the recorded step that is asked for."""

from typing import Any

import pytest
import torch

from course_lib.datasets import Pair
from course_lib.losses import diffusion, mse
from course_lib.metrics import endpoint_error
from course_lib.optimise import Step, refine
from course_lib.spatial import resize_displacement
from course_lib.widgets import Playground, playback_explorer
from tests.widget_suite import SHAPE, PlaygroundSuite, blobs, heard

TRUTH = torch.full((1, 2, *SHAPE), 2.0)
PAIR = Pair(blobs(), blobs().roll((-2, -2), (2, 3)), None, None, TRUTH, None)


def record(weight: float, steps: int = 6) -> list[Step]:
    seen: list[Step] = []
    refine(
        PAIR.moving, PAIR.fixed, similarity=mse, regularizer=diffusion, weight=weight,
        factors=(2, 1), steps=steps, tolerance=0, watch=seen.append,
    )  # fmt: skip
    return seen


RUNS = {0.01: record(0.01), 0.1: record(0.1), 1.0: record(1.0, steps=4)}


def explore(**changes: Any) -> Playground:
    given = {"pair": PAIR, "runs": RUNS} | changes
    return playback_explorer(given["pair"], given["runs"])


class TestPlayground(PlaygroundSuite):
    def make(self) -> Playground:
        return explore()


def test_each_step_is_another_picture() -> None:
    explorer = explore()
    pictures = {explorer.render(step, e) for step in range(1, 9) for e in (-2, -1, 0)}
    assert len(pictures) == 24


def test_a_run_that_ended_earlier_stays_at_its_last_step() -> None:
    explorer = explore()
    assert explorer.render(8, 0) == explorer.render(12, 0)
    assert explorer.render(8, -1) != explorer.render(12, -1)


@pytest.mark.parametrize("number", [1, 7, 12])
def test_numbers_are_those_of_the_step(number: int) -> None:
    step = RUNS[0.1][number - 1]
    (first, second), _ = heard(explore(), number, -1)
    assert first.startswith("λ = 0.1") and f"step {step.number}" in first
    assert ("level ends: steps" in first) == bool(step.stopped)
    assert second.startswith(f"loss {step.loss:.3f}".replace("-", "−"))
    error = float(endpoint_error(resize_displacement(step.displacement, SHAPE), TRUTH))
    assert f"off the truth by {error:.2f} voxels" in second


def test_without_a_truth_there_is_no_error() -> None:
    (_, second), _ = heard(explore(pair=PAIR._replace(displacement=None)), 3, -1)
    assert "truth" not in second


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pair": None}, "pair"),
        ({"runs": []}, "runs"),
        ({"runs": {1.0: RUNS[1.0]}}, "runs"),
        ({"runs": {0.0: RUNS[1.0], 1.0: RUNS[1.0]}}, "runs"),
        ({"runs": {0.1: RUNS[1.0], 1.0: RUNS[1.0], 2.0: RUNS[1.0]}}, "runs"),
        ({"runs": {0.1: [], 1.0: RUNS[1.0]}}, "step"),
        ({"runs": {0.1: [1, 2], 1.0: RUNS[1.0]}}, "Steps"),
        ({"runs": {0.1: [RUNS[0.1][0]._replace(factor=1)], 1.0: RUNS[1.0]}}, "displacement"),
    ],
)
def test_bad_input(changes: dict[str, Any], word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=word):
        explore(**changes)


@pytest.mark.parametrize(("step", "log_weight"), [(0, 0), (13, 0), (1, 1), (1, -3)])
def test_bad_settings(step: float, log_weight: float) -> None:
    with pytest.raises(ValueError, match=r"step|log_weight"):
        explore().render(step, log_weight)

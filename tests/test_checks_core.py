"""The check engine: four outcomes, its messages, what it leaves alone, and in a notebook."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from course_lib.checks import task as task_module
from course_lib.checks.compare import compare, same
from course_lib.checks.core import Check, Goal, Law, Mistake, Task, Verdict
from course_lib.checks.messages import describe
from tests import check_suite
from tests.check_suite import ask

# A lesson's checks in small: what the tests below judge, and what the notebook imports.
TOYS = """
import torch
from course_lib.checks.core import Check, Goal, Mistake


def weighted_mean(x, w):
    return (x * w).sum(-1) / w.sum()


def plain_sum(x, w):
    return (x * w).sum(-1)


def count_for_weight(x, w):
    return (x * w).sum(-1) / len(w)


def small():
    return torch.rand(2, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 2, 4])


def large():
    x = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([3.0, 2.0, 0.5])


weighted = Check(
    "99_toys",
    "weighted",
    weighted_mean,
    [large, small],
    mistakes=[
        Mistake(plain_sum, "this sums.\\nLikely cause: the division is missing."),
        Mistake(count_for_weight, "this divides by how many weights there are."),
    ],
    gradient=True,
    hints=["Read the formula.", "Then its denominator."],
)
corners = Check(
    "99_toys", "corners", lambda: 8, [lambda: ()],
    mistakes=[Mistake(lambda: 4, "this counts in 2D.")],
)
double = Goal(
    "99_toys", "double", lambda x: {"doubled": 2.0 * x}, lambda m: m["doubled"] > 1,
    "a number whose double is above 1.", reference=lambda: 0.6, hints=["Larger."],
)
"""


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[ModuleType]:
    """The toy lesson, with no tries counted."""
    path = tmp_path / "toys.py"
    path.write_text(TOYS)
    spec = importlib.util.spec_from_file_location("toys", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def right(x: Any, w: Any) -> Any:
    return torch.einsum("...i,i->...", x, w) / w.sum()


def said(task: Task, answer: Any) -> str:
    return ask(task, answer)[0]


def stage(task: Task, answer: Any) -> str:
    return task.judge(answer).stage


# Right.


def test_right_answer_prints_its_name_and_returns_nothing(toys: ModuleType) -> None:
    assert ask(toys.weighted, right) == ("", "✓ weighted\n")
    assert toys.weighted.passed and toys.weighted.solved and toys.weighted.tries == 0


def test_any_callable_can_be_an_answer(toys: ModuleType) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: Any, w: Any) -> Any:
            return right(x, w)

    answers = [Mean(), functools.partial(right), lambda x, w: right(x, w), Mean().forward]
    for answer in [*answers, torch.no_grad()(Mean())]:
        without_gradient = Check("99_toys", "weighted", toys.weighted_mean, toys.weighted.inputs)
        assert said(without_gradient, answer) == ""


# Not attempted yet.


def test_untouched_stub_is_not_a_try(toys: ModuleType) -> None:
    def by_class(x: Any, w: Any) -> Any:
        raise NotImplementedError

    def nested(x: Any, w: Any) -> Any:
        def inner() -> Any:
            raise NotImplementedError()

        return inner()

    for answer in (check_suite.stub, by_class, nested, torch.no_grad()(check_suite.stub)):
        assert said(toys.weighted, answer) == "○ weighted: not attempted yet."
    assert toys.weighted.tries == 0


def test_another_function_that_is_a_stub_is_named(toys: ModuleType) -> None:
    def helper(x: Any) -> Any:
        raise NotImplementedError()

    def answer(x: Any, w: Any) -> Any:
        return helper(x)

    verdict = said(toys.weighted, answer)
    assert verdict.startswith("○ weighted: not attempted yet: ")
    assert "helper, which it calls, is not written" in verdict
    assert toys.weighted.tries == 0


def test_stub_written_in_a_cell_or_executed_text(toys: ModuleType) -> None:
    scope: dict[str, Any] = {}
    exec("def weighted(x, w):\n    raise NotImplementedError()", scope)
    assert said(toys.weighted, scope["weighted"]) == "○ weighted: not attempted yet."


def test_not_implemented_for_other_reasons_is_an_error(toys: ModuleType, tmp_path: Path) -> None:
    def with_reason(x: Any, w: Any) -> Any:
        raise NotImplementedError("no such operator")

    def from_torch(x: Any, w: Any) -> Any:
        return torch.nn.Module()(x)

    def missing_operator(x: Any, w: Any) -> Any:
        return x.to("meta").item()

    folder = tmp_path / "site-packages"
    folder.mkdir()
    library = compile("def f():\n    raise NotImplementedError()", str(folder / "a.py"), "exec")
    scope: dict[str, Any] = {}
    exec(library, scope)

    def from_site_packages(x: Any, w: Any) -> Any:
        return scope["f"]()

    for answer in (with_reason, from_torch, missing_operator, from_site_packages):
        assert said(toys.weighted, answer).startswith("✗ weighted: raised "), answer
    assert toys.weighted.tries == 4


# Raised.


def test_error_shows_line_source_and_inputs(toys: ModuleType) -> None:
    def answer(x: Any, w: Any) -> Any:
        y = torch.nn.functional.conv2d(x, w)  # the learner's line
        return y

    verdict = said(toys.weighted, answer)
    line = answer.__code__.co_firstlineno + 1
    assert verdict.startswith("✗ weighted: raised RuntimeError: ")
    assert f"At line {line} of test_checks_core.py, in " in verdict
    assert "y = torch.nn.functional.conv2d(x, w)  # the learner's line" in verdict
    assert "With x = (4, 5, 3) float32, w = [3, 2, 0.5] (3,) float32" in verdict
    assert verdict.endswith("→ check.weighted.hint()")
    assert toys.weighted.tries == 1


def test_error_in_a_function_that_the_answer_calls(toys: ModuleType) -> None:
    def helper(x: Any) -> Any:
        return x.reshape(7)

    verdict = said(toys.weighted, lambda x, w: helper(x))
    assert "helper: `return x.reshape(7)`" in verdict


def test_inputs_are_shown_as_they_were_before_the_answer_ran(toys: ModuleType) -> None:
    def answer(x: Any, w: Any) -> Any:
        w.zero_()
        raise ValueError("stop")

    assert "w = [3, 2, 0.5]" in said(toys.weighted, answer)


def test_wrong_number_of_parameters(toys: ModuleType) -> None:
    def answer(x: Any) -> Any:
        return x

    verdict = said(toys.weighted, answer)
    assert "takes 1 positional argument but 2 were given" in verdict
    assert "Look at the parameters in its `def` line." in verdict


def test_an_error_of_the_checks_own_unpacking_is_not_laid_on_the_parameters(
    toys: ModuleType,
) -> None:
    error = TypeError("cannot unpack non-iterable NoneType object")
    text = toys.weighted._explain(error, len, "", "").text
    assert "def` line" not in text and "`return` is missing" in text


def test_calling_a_check_without_the_function_is_said(toys: ModuleType) -> None:
    with pytest.raises(Verdict, match="nothing came, not a function"):
        toys.weighted()
    assert toys.weighted.tries == 0


def test_interrupting_is_left_to_the_kernel(toys: ModuleType) -> None:
    def answer(x: Any, w: Any) -> Any:
        raise KeyboardInterrupt

    dtype = torch.get_default_dtype()
    with pytest.raises(KeyboardInterrupt):
        toys.weighted(answer)
    assert not toys.weighted.passed and torch.get_default_dtype() == dtype


# Wrong: the stages, in order.


def counted(result: Any) -> Any:
    return torch.arange(result.numel()).view(result.shape)


STAGES: list[tuple[str, Callable[[Any, Any], Any], str]] = [
    ("nothing", lambda x, w: None, "Is a `return` missing?"),
    ("type", lambda x, w: right(x, w).numpy(), "it returns a NumPy array; expected a tensor"),
    ("type", lambda x, w: 1.0, "it returns a number; expected a tensor, (2,) float32"),
    ("type", lambda x, w: (right(x, w),), "it returns a tuple; expected a tensor"),
    ("type", lambda x, w: (i for i in x), "it returns a generator; expected a tensor"),
    ("type", lambda x, w: right(x, w).to("meta"), "its result is on meta; expected cpu"),
    ("dtype", lambda x, w: right(x, w).double(), "the dtype is float64; expected float32"),
    ("dtype", lambda x, w: right(x, w).half(), "the dtype is float16; expected float32"),
    ("shape", lambda x, w: right(x, w).mean(), "the shape is (); expected (2,)"),
    ("shape", lambda x, w: right(x, w)[..., None], "Only axes of size 1 differ"),
    ("shape", lambda x, w: x * w / w.sum(), "the shape is (2, 3); expected (2,)"),
    ("finite", lambda x, w: right(x, w) / 0, "2 of 2 values are not finite"),
    (
        *("finite", lambda x, w: right(x, w) * torch.nan),
        "the first of them, at index (0,), is not a number (NaN).",
    ),
    (
        *("finite", lambda x, w: right(x, w) / counted(right(x, w))),
        "1 of 2 values is not finite: the one at index (0,) is infinite.",
    ),
    ("values", lambda x, w: -right(x, w), "Yours has the opposite sign, everywhere."),
    ("values", lambda x, w: right(x, w) ** 2, "2 of 2 values differ"),
]


@pytest.mark.parametrize(("where", "answer", "words"), STAGES)
def test_stage(toys: ModuleType, where: str, answer: Callable, words: str) -> None:
    assert stage(toys.weighted, answer) == where
    verdict = said(toys.weighted, answer)
    assert words in verdict
    assert "x = " in verdict and "(2, 3) float32" in verdict, "on the smallest input"
    assert verdict.startswith("✗ weighted: ") and verdict.endswith("→ check.weighted.hint()")
    assert toys.weighted.tries == 1


def test_the_earliest_stage_over_all_inputs_speaks(toys: ModuleType) -> None:
    def wrong_values_when_small_wrong_dtype_when_large(x: Any, w: Any) -> Any:
        return right(x, w) + 1 if x.ndim == 2 else right(x, w).double()

    assert stage(toys.weighted, wrong_values_when_small_wrong_dtype_when_large) == "dtype"


def test_large_results_show_their_largest_difference() -> None:
    def spoiled(x: Any) -> Any:
        y = x.clone()
        y[1, 2] += 0.5
        y[0, 0] += 0.1
        return y

    check = Check("99_toys", "f", lambda x: x + 0, [lambda: (torch.ones(4, 5),)])
    verdict = said(check, spoiled)
    assert "2 of 20 values differ" in verdict
    assert "at index (1, 2): expected 1, got 1.5" in verdict


def test_tolerance_is_absolute_for_small_and_relative_for_large_values() -> None:
    def off(by: float) -> Callable[[Any], Any]:
        return lambda x: x + by

    small = Check("99_toys", "f", lambda x: x, [lambda: (torch.zeros(3),)])
    large = Check("99_toys", "f", lambda x: x, [lambda: (torch.full((3,), 1000.0),)])
    assert small.judge(off(0.9e-5)).name == "right"
    assert small.judge(off(1.1e-5)).name == "wrong"
    assert large.judge(off(0.9e-2)).name == "right"
    assert large.judge(off(1.1e-2)).name == "wrong"


def test_what_is_expected_not_to_be_finite() -> None:
    check = Check("99_toys", "f", torch.log, [lambda: (torch.tensor([0.0, 1.0, -1.0]),)])
    assert stage(check, lambda x: x.log() + 0) == ""
    assert stage(check, lambda x: x.log().nan_to_num()) == "values"
    assert stage(check, lambda x: x.log() * torch.tensor([1.0, torch.nan, 1.0])) == "finite"


# Wrong: mistakes that are known.


def test_a_known_mistake_is_named(toys: ModuleType) -> None:
    verdict = said(toys.weighted, lambda x, w: x @ w)
    assert verdict.splitlines() == [
        "✗ weighted: this sums.",
        "  Likely cause: the division is missing.   → check.weighted.hint()",
    ]


def test_a_known_mistake_is_named_in_another_dtype_too(toys: ModuleType) -> None:
    assert stage(toys.weighted, lambda x, w: (x @ w).double()) == "mistake"
    assert stage(toys.weighted, lambda x, w: right(x, w).double()) == "dtype"


def test_a_mistake_on_some_inputs_only_is_not_named(toys: ModuleType) -> None:
    def partly(x: Any, w: Any) -> Any:
        return x @ w if x.ndim == 2 else right(x, w)

    assert stage(toys.weighted, partly) == "values"


def test_two_mistakes_that_agree_are_not_named(toys: ModuleType) -> None:
    twice = [*toys.weighted.mistakes, Mistake(lambda x, w: x @ w, "this sums, too.")]
    check = Check("99_toys", "f", toys.weighted_mean, toys.weighted.inputs, mistakes=twice)
    assert stage(check, lambda x, w: x @ w) == "values"


def test_a_mistake_of_shape_is_named(toys: ModuleType) -> None:
    whole = Mistake(lambda x, w: (x * w).sum() / w.sum(), "this mixes the rows.")
    check = Check("99_toys", "f", toys.weighted_mean, toys.weighted.inputs, mistakes=[whole])
    assert stage(check, lambda x, w: right(x, w).sum()) == "mistake"
    assert stage(check, lambda x, w: right(x, w).sum() * 2) == "shape"


def test_a_wrong_implementation_may_fail(toys: ModuleType) -> None:
    failing = Mistake(lambda x, w: x.reshape(7), "never")
    check = Check("99_toys", "f", toys.weighted_mean, toys.weighted.inputs, mistakes=[failing])
    assert stage(check, lambda x, w: -right(x, w)) == "values"


# Wrong: properties.


def test_changing_an_input_is_refused_although_values_are_right(toys: ModuleType) -> None:
    def answer(x: Any, w: Any) -> Any:
        x *= w
        return x.sum(-1) / w.sum()

    assert stage(toys.weighted, answer) == "in place"
    assert "it changes its input x in place." in said(toys.weighted, answer)
    assert "it changes its input x in place. The result is wrong too." in said(
        toys.weighted, lambda x, w: answer(x, w) * 1.1
    )


def test_an_optimizer_is_named_where_one_may_have_changed_the_input() -> None:
    def descends(start: Any) -> Any:
        x = start.requires_grad_()
        torch.optim.SGD([x], lr=1).step()
        with torch.no_grad():
            x += 1
        return x.detach()

    def adds(start: Any) -> Any:
        start += 1
        return start

    def inside(start: Any) -> Any:
        def step_by_step() -> None:
            torch.optim.SGD([torch.ones(1, requires_grad=True)]).step()

        step_by_step()
        return adds(start)

    check = Check("99_toys", "f", lambda start: start + 1, [lambda: (torch.zeros(2),)])
    sentence = "An optimizer that was given start itself changes it too"
    for answer, named in ((descends, True), (inside, True), (adds, False)):
        assert stage(check, answer) == "in place"
        assert (sentence in said(check, answer)) is named


def unset(x: Any, w: Any) -> Any:
    result = None
    if x is None:
        result = right(x, w)
    return result


def one_way(x: Any, w: Any) -> Any:
    if x is None:
        return right(x, w)


def bare(x: Any, w: Any) -> Any:
    with torch.no_grad():
        right(x, w)
        return


def inner_return(x: Any, w: Any) -> Any:
    def inner() -> Any:
        return x

    inner()


@pytest.mark.parametrize(
    ("answer", "has_return"),
    [
        *[(unset, True), (one_way, True), (torch.no_grad()(unset), True)],
        *[(bare, False), (inner_return, False), (torch.no_grad()(bare), False)],
        (functools.partial(check_suite.after(unset, lambda result: result)), True),
    ],
)
def test_nothing_where_there_is_a_return(toys: ModuleType, answer: Any, has_return: bool) -> None:
    verdict = said(toys.weighted, answer)
    assert "it returns nothing; expected a tensor, (2,) float32." in verdict
    assert ("that was never set" in verdict) is has_return
    assert ("Is a `return` missing?" in verdict) is not has_return
    with_default = said(toys.double, lambda: None)
    assert "Is a `return` missing?" in with_default
    assert "that was never set" in said(toys.double, lambda: print(end=""))


def test_numpy_where_a_gradient_is_asked_for(toys: ModuleType) -> None:
    def arrays(x: Any, w: Any) -> Any:
        return right(x, w).detach().numpy()

    without = Check("99_toys", "f", toys.weighted_mean, toys.weighted.inputs)
    sentence = "asks for a gradient too, and none passes through NumPy"
    assert sentence in said(toys.weighted, arrays)
    assert sentence not in said(without, arrays)
    assert sentence not in said(toys.weighted, lambda x, w: 1.0)
    two = Check("99_toys", "f", lambda x: (x, x), [lambda: (torch.ones(2),)], gradient=True)
    assert sentence in said(two, lambda x: (x, x.detach().numpy()))


def test_an_error_that_only_comes_with_the_gradient(toys: ModuleType) -> None:
    def answer(x: Any, w: Any) -> Any:
        return torch.from_numpy(x.numpy() @ w.numpy() / w.numpy().sum())

    verdict = said(toys.weighted, answer)
    assert "raised RuntimeError: Can't call numpy() on Tensor that requires grad" in verdict
    assert "NumPy cannot pass gradients on" in verdict
    assert "(this came when the check asked for its gradient)" in verdict


def test_a_known_mistake_counts_more_than_a_changed_input(toys: ModuleType) -> None:
    assert stage(toys.weighted, lambda x, w: x.mul_(w).sum(-1)) == "mistake"


def test_changes_of_every_kind_of_input_are_seen() -> None:
    grid = np.arange(6.0).reshape(2, 3)
    assert not same((torch.zeros(2),), (torch.ones(2),))
    assert not same(torch.zeros(2), torch.zeros(2, 1))
    assert not same(grid, grid + 1)
    assert not same([1, 2], [1, 3]) and not same({"a": 1}, {"b": 1})
    assert same(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert same(np.array([np.nan]), np.array([np.nan])) and same(float("nan"), float("nan"))
    assert same(np.flip(grid), np.flip(grid)) and same(torch.tensor([True]), torch.tensor([True]))


def test_a_buffer_used_twice_does_not_confuse(toys: ModuleType) -> None:
    buffer = torch.zeros(3, 3)
    inputs = [lambda i=i: (torch.full((3, 3), float(i)),) for i in range(3)]
    check = Check("99_toys", "f", lambda x: x * 2, inputs)
    assert said(check, lambda x: torch.mul(x, 2, out=buffer)) == ""


def test_laws_are_looked_at_once_the_values_are_right(toys: ModuleType) -> None:
    law = Law(lambda f: f(torch.ones(2, 3), torch.ones(3)).max() <= 1, "a mean is no more than 1.")
    check = Check("99_toys", "f", toys.weighted_mean, toys.weighted.inputs, laws=[law])

    def breaks(x: Any, w: Any) -> Any:
        return right(x, w) + bool((x == 1).all())

    def fails(x: Any, w: Any) -> Any:
        return right(x, w) if not (x == 1).all() else x.reshape(7)

    assert said(check, right) == ""
    assert stage(check, breaks) == "law" and "a mean is no more than 1." in said(check, breaks)
    assert stage(check, fails) == "raised"
    assert stage(check, lambda x, w: -right(x, w)) == "values"


def test_gradient_lost_or_wrong(toys: ModuleType) -> None:
    def unfinite(x: Any, w: Any) -> Any:
        return right(x, w) + ((x - x).sum(-1).sqrt())

    def half_of_it(x: Any, w: Any) -> Any:
        y = right(x, w)
        return (y + y.detach()) / 2

    lost = said(toys.weighted, lambda x, w: right(x.detach(), w))
    assert "right values, but no gradient reaches x." in lost
    assert "no gradient reaches x" in said(toys.weighted, torch.no_grad()(right))
    assert "the gradient of x is wrong" in said(toys.weighted, half_of_it)
    assert "0.5 times what is expected" in said(toys.weighted, half_of_it)
    assert "not finite; the first of them, at index (0, 0, 0), is not" in said(
        toys.weighted, unfinite
    )
    assert "no finite slope" in said(toys.weighted, unfinite)
    assert "below zero" not in said(toys.weighted, unfinite)
    assert toys.weighted.judge(unfinite).stage == "gradient"


def test_gradient_of_an_answer_that_makes_float32_tensors(toys: ModuleType) -> None:
    def only_float32(x: Any, w: Any) -> Any:
        return x @ torch.eye(3) @ w / w.sum()

    assert said(toys.weighted, only_float32) == ""
    assert "no gradient" in said(toys.weighted, lambda x, w: only_float32(x.detach(), w))


def test_an_answer_that_turns_gradients_off_for_good(toys: ModuleType) -> None:
    def answer(x: Any, w: Any) -> Any:
        result = right(x, w)
        torch.set_grad_enabled(False)
        return result

    assert said(toys.weighted, answer) == ""
    assert torch.is_grad_enabled()


# Refused: not judged, not counted.


def test_the_librarys_own_is_refused(toys: ModuleType) -> None:
    def own(x: Any, w: Any) -> Any:
        return right(x, w)

    own.__module__ = "course_lib.spatial"
    wrapped = functools.wraps(own)(lambda x, w: own(x, w))
    for answer in (own, functools.partial(own), wrapped, functools.partial(wrapped)):
        assert "this is the library's own" in said(toys.weighted, answer)
    own.__module__ = "course_library"
    assert said(toys.weighted, own) == ""
    assert toys.weighted.tries == 0


def test_results_instead_of_functions_are_refused(toys: ModuleType) -> None:
    verdict = said(toys.weighted, torch.zeros(2))
    assert "this is a tensor, not a function." in verdict
    assert "check.weighted(weighted)" in verdict
    assert "this is a number, not a function." in said(toys.corners, 8)
    assert toys.weighted.tries == toys.corners.tries == 0


# Predictions: Python values.


def test_predictions(toys: ModuleType) -> None:
    for answer in (8, 8.0, torch.tensor(8), np.int64(8), np.float32(8), Fraction(16, 2)):
        assert said(toys.corners, lambda a=answer: a) == ""
    assert said(toys.corners, lambda: 4).startswith("✗ corners: this counts in 2D.")
    assert stage(toys.corners, lambda: torch.tensor([8])) == "type"
    assert stage(toys.corners, lambda: "8") == "type"
    assert stage(toys.corners, lambda: True) == "type"


def test_a_wrong_prediction_does_not_give_the_answer_away(toys: ModuleType) -> None:
    verdict = said(toys.corners, lambda: 7)
    assert "not 7" in verdict and "8" not in verdict
    assert "not 1/3." in said(toys.corners, lambda: Fraction(1, 3))


@pytest.mark.parametrize(
    ("got", "words"),
    [
        ((3, 3, 1.76), "(3, 3, …) is right so far; the third number is not. You gave (3, 3, 1.76)"),
        ([1, 3.0, 1], "(…, 3, …) is right so far; the first and third numbers are not."),
        ((1, 2, 3.11), "(…, …, 3.11) is right so far; the first and second numbers are not."),
        ((1, 2, 4), "not (1, 2, 4). Work it out again, step by step."),
    ],
)
def test_a_prediction_that_is_partly_right(got: Any, words: str) -> None:
    check = Check("99_toys", "f", lambda: (3, 3, 28 / 9), [lambda: ()], atol=5e-3)
    verdict = said(check, lambda: got)
    assert verdict.startswith(f"✗ f: {words}") and "3.1111" not in verdict


def test_a_prediction_of_words_that_is_partly_right() -> None:
    check = Check("99_toys", "f", lambda: (1, "up", 2, 3), [lambda: ()])
    verdict = said(check, lambda: (1, "down", 4, 5))
    assert "(1, …, …, …) is right so far; the second, third and fourth items are not." in verdict
    assert "up" not in verdict


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        (True, np.bool_(True), False),
        (0.5, 0.5 + 1e-7, 0.51),
        ("left", "left", "right"),
        ((2, 3), [2, 3], (3, 2)),
        ((True, 1.5), (True, torch.tensor(1.5)), (True, 1.4)),
        (np.arange(3), np.arange(3), np.arange(3) + 1),
        (np.flip(np.arange(3.0)), np.array([2.0, 1.0, 0.0]), np.arange(3.0)),
        (None, None, 0),
    ],
)
def test_python_and_numpy_results(expected: Any, good: Any, bad: Any) -> None:
    check = Check("99_toys", "f", lambda x: expected, [lambda: (1,)])
    assert said(check, lambda x: good) == ""
    verdict = said(check, lambda x: bad)
    assert verdict.startswith("✗ f: ")
    if isinstance(expected, bool):
        assert "expected True, got False." in verdict


def test_tuples_say_which_item() -> None:
    problem = compare((torch.zeros(2), torch.ones(2)), (torch.zeros(2), torch.zeros(2)), 1e-5)
    assert problem
    assert problem.text.startswith("the second item of the result: 2 of 2 values differ")
    item = torch.zeros(2), torch.zeros(2)
    problem = compare((torch.ones(2), torch.zeros(2).double()), item, 1e-5)
    assert problem and problem.stage == "dtype", "the earliest stage speaks here, too"
    few = compare((torch.zeros(2),), (torch.zeros(2), torch.zeros(2)), 1e-5)
    assert few and few.text == "it returns 1 item; expected 2."
    none = compare((torch.zeros(2), None), item, 1e-5)
    assert none and none.text == (
        "the second item of the result: it is nothing; expected a tensor, (2,) float32."
    ), "no word of a missing `return`: there is one"


def test_descriptions() -> None:
    assert describe(torch.zeros(1, 2, 4, 5)) == "(1, 2, 4, 5) float32"
    assert describe((3, torch.tensor([True]))) == "(3, [True] (1,) bool)"
    assert describe(right) == "the function right"


# Goals.


def test_goal_says_what_it_measured_and_what_was_asked(toys: ModuleType) -> None:
    asked = "  Asked: a number whose double is above 1."
    verdict, printed = ask(toys.double, lambda: 0.75)
    assert (verdict, printed) == ("", "✓ double: with 0.75, doubled = 1.5.\n")
    verdict, printed = ask(toys.double, lambda: 0.25)
    assert verdict.startswith(f"✗ double: not there yet: with 0.25, doubled = 0.5.\n{asked}")
    assert verdict.endswith("→ check.double.hint()")
    assert toys.double.tries == 1
    for missed in (0.25, None, "much"):
        assert said(toys.double, lambda s=missed: s).count("Asked: ") == 1, missed


def test_goal_outcomes(toys: ModuleType) -> None:
    assert said(toys.double, check_suite.stub) == "○ double: not attempted yet."
    assert stage(toys.double, lambda: 1 / 0) == "raised"
    assert stage(toys.double, lambda: None) == "nothing"
    for setting in ("1", float("nan"), float("inf"), True, torch.ones(2), [1]):
        assert stage(toys.double, lambda s=setting: s) == "type", setting
    assert "library's own" in said(toys.double, functools.partial(describe, 1))
    assert "not a function" in said(toys.double, 0.75)
    for enough in (1, torch.tensor(0.75), np.float32(0.75), Fraction(3, 4)):
        assert said(toys.double, lambda s=enough: s) == "", enough


def test_goal_with_another_range_and_a_measure_that_fails() -> None:
    def angle(setting: Any) -> str | None:
        return None if setting % 15 == 0 else f"{setting} is not a multiple of 15."

    def measure(setting: float) -> float:
        if setting > 90:
            raise ValueError("lost")
        return setting / 3

    goal = Goal("99_toys", "g", measure, lambda m: m == 20.0, "20.", valid=angle)
    assert "10 is not a multiple of 15." in said(goal, lambda: 10)
    assert "raised ValueError: lost" in said(goal, lambda: 105)
    assert "with 30, measured 10." in said(goal, lambda: 30)
    assert said(goal, lambda: 60) == ""
    with pytest.raises(ValueError, match="no reference"):
        goal.or_reference(lambda: 60)


# Hints, solutions, going on.


def shown(function: Callable[..., Any], *arguments: Any) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        function(*arguments)
    return printed.getvalue()


@pytest.mark.parametrize(
    "change, clue",
    [
        (lambda x: 3 * x, "Yours is 3 times what is expected, everywhere."),
        (lambda x: x + 1, "Yours is too large by 1, everywhere."),
    ],
)
def test_a_regularity_is_named_unless_it_may_be_chance(change: Any, clue: str) -> None:
    expected = torch.tensor([0.5, -1.0, 2.0, 0.25, 3.0])
    many = compare(change(expected), expected, 1e-5)
    few = compare(change(expected[:2]), expected[:2], 1e-5)
    assert many is not None and clue in many.text
    assert few is not None and clue not in few.text


def test_a_small_error_is_not_called_an_offset() -> None:
    expected = torch.tensor([0.5, -1.0, 2.0, 0.25, 3.0])  # tolerance: 0.003
    problem = compare(expected + 0.0015 + 0.0035 * torch.eye(5)[2], expected, 1e-3)
    assert problem is not None and "everywhere" not in problem.text


def test_a_small_error_is_not_called_a_factor() -> None:
    expected = torch.tensor([1.0, -1.0, 2.0, 1.5, 3.0])
    problem = compare(expected * 1.0005 + 0.0025 * torch.eye(5)[2], expected, 1e-3)
    assert problem is not None and "everywhere" not in problem.text


def test_hints_open_one_by_one(toys: ModuleType) -> None:
    first = shown(toys.weighted.hint)
    assert first == "Hint 1 of 2: Read the formula.\n(1 more: check.weighted.hint())\n"
    assert shown(toys.weighted.hint) == "Hint 2 of 2: Then its denominator.\n(There are no more.)\n"
    assert shown(toys.weighted.hint).count("Hint") == 2
    assert shown(toys.corners.hint) == "There are no hints for corners.\n"
    assert "hint()" not in said(toys.weighted, lambda x, w: None)


def test_solution_opens_after_three_tries_or_success(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "solutions.json"
    monkeypatch.setattr(task_module, "SOLUTIONS", file)
    locked = "The solution of weighted opens when its check passes, or after "
    again = "\n(checking the same code again is not another one).\n"
    assert shown(toys.weighted.solution) == locked + "3 more tries" + again
    for wrong in (lambda x, w: None, lambda x, w: 1):
        said(toys.weighted, wrong)
        said(toys.weighted, check_suite.stub)
    assert shown(toys.weighted.solution) == locked + "1 more try" + again
    said(toys.weighted, lambda x, w: None)
    assert shown(toys.weighted.solution) == "See solutions/99_toys.ipynb for weighted.\n"
    file.write_text(json.dumps({"99_toys": {"weighted": "def weighted(x, w): ..."}}))
    assert shown(toys.weighted.solution) == "def weighted(x, w): ...\n"
    said(toys.corners, lambda: 8)
    assert shown(toys.corners.solution) == "See solutions/99_toys.ipynb for corners.\n"
    said(toys.corners, lambda: 7)
    assert shown(toys.corners.solution).startswith("See "), "what has opened stays open"
    file.write_text("not JSON")
    assert shown(toys.weighted.solution) == "See solutions/99_toys.ipynb for weighted.\n"


def test_the_solution_is_pointed_to_when_hints_are_used_up(toys: ModuleType) -> None:
    verdicts = [said(toys.corners, wrong) for wrong in (lambda: 7, lambda: 6, lambda: 5)]
    assert ["→" in verdict for verdict in verdicts] == [False, False, True]
    assert verdicts[2].endswith("→ check.corners.solution()")


def test_the_same_code_again_is_not_another_try(toys: ModuleType) -> None:
    def from_cell(text: str) -> Any:
        scope: dict[str, Any] = {"torch": torch}
        exec(compile(text, "<cell>", "exec"), scope)
        return scope["weighted"]

    sums = "def weighted(x, w):\n    return (x * w).sum(-1)"
    fails = "def weighted(x, w):\n    return x.reshape(7)"
    tries = []
    for text in (sums, sums, fails, fails, f"{sums} + 1", sums):
        said(toys.weighted, from_cell(text))
        tries.append(toys.weighted.tries)
    assert tries == [1, 1, 2, 2, 3, 4]


def test_the_same_code_with_another_helper_is_another_try(toys: ModuleType) -> None:
    scope: dict[str, Any] = {}
    exec("def weighted(x, w):\n    return helper(x, w)", scope)
    for helper in (lambda x, w: None, lambda x, w: x, lambda x, w: x):
        scope["helper"] = helper
        said(toys.weighted, scope["weighted"])
    assert toys.weighted.tries == 2


def test_or_reference(toys: ModuleType) -> None:
    answers = []

    def go_on(answer: Any) -> str:
        return shown(lambda: answers.append(toys.weighted.or_reference(answer)))

    course = "weighted: yours has not passed its check; going on with the course's version.\n"
    assert go_on(right) == course and answers[-1] is toys.weighted_mean
    said(toys.weighted, right)
    assert go_on(right) == "weighted: going on with yours.\n" and answers[-1] is right
    said(toys.weighted, check_suite.stub)
    assert go_on(right) == course


def test_or_reference_after_the_cell_was_run_again_or_edited(toys: ModuleType) -> None:
    text = "def weighted(x, w):\n    return (x * w).sum(-1) / w.sum()"
    scopes: list[dict[str, Any]] = [{}, {}, {}]
    for scope, source in zip(scopes, (text, text, text + " + 1"), strict=True):
        exec(compile(source, "<cell>", "exec"), scope)
    first, again, edited = (scope["weighted"] for scope in scopes)
    said(toys.weighted, first)
    with redirect_stdout(io.StringIO()):
        assert toys.weighted.or_reference(again) is again
        assert toys.weighted.or_reference(edited) is toys.weighted_mean


# What a check leaves alone.


def test_random_states_and_settings_come_back(toys: ModuleType) -> None:
    def careless(x: Any, w: Any) -> Any:
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        torch.set_default_dtype(torch.float64)
        return right(x, w)

    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = draw()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert said(toys.weighted, careless) == ""
    assert draw() == expected
    assert torch.get_default_dtype() == torch.float32


def test_random_answers_draw_what_the_reference_draws() -> None:
    check = Check("99_toys", "f", lambda n: torch.rand(n), [lambda: (3,), lambda: (4,)])
    torch.manual_seed(5)
    assert said(check, lambda n: torch.rand(n)) == ""


def test_settings_of_the_notebook_do_not_matter(toys: ModuleType) -> None:
    def cut(x: Any, w: Any) -> Any:
        return right(x.detach(), w)

    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert said(toys.weighted, right) == ""
            assert stage(toys.weighted, cut) == "gradient", "gradients are looked at all the same"
            assert not torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    try:
        assert said(toys.weighted, lambda x, w: right(x, w) + torch.zeros(())) == ""
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    torch.set_default_device("meta")
    try:
        assert said(toys.weighted, lambda x, w: right(x, w) + torch.zeros(())) == ""
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


def test_standard_error_goes_to_standard_output(toys: ModuleType) -> None:
    stderr = io.StringIO()
    logger = logging.getLogger("a learner's")
    with redirect_stderr(stderr):
        logger.handlers = [logging.StreamHandler()]

        def noisy(x: Any, w: Any) -> Any:
            warnings.warn("careful", stacklevel=1)
            print("to stderr", file=sys.stderr)
            logger.warning("logged")
            return right(x, w)

        printed = shown(toys.weighted, noisy)
        logger.warning("afterwards")
    assert stderr.getvalue() == "afterwards\n"
    assert all(text in printed for text in ("careful\n", "to stderr\n", "logged\n", "✓ weighted"))
    assert printed.count("UserWarning: careful\n") == 1
    assert __file__ not in printed, "paths differ from kernel to kernel"


def test_a_check_without_inputs_is_a_mistake_of_the_author() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        Check("99_toys", "f", right, [])


def test_a_reference_without_gradient_is_a_mistake_of_the_author() -> None:
    inputs = [lambda: (torch.ones(2),)]
    check = Check("99_toys", "f", lambda x: x.detach() + 1, inputs, gradient=True)
    with pytest.raises(ValueError, match="the reference has none"):
        check.judge(lambda x: x + 1)


def test_verdict_is_its_message(toys: ModuleType) -> None:
    with pytest.raises(Verdict) as raised:
        toys.weighted(lambda x, w: None)
    lines = raised.value._render_traceback_()
    assert str(raised.value) == "\n".join(lines) and len(lines) == 3
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_state_is_shown(toys: ModuleType) -> None:
    said(toys.weighted, lambda x, w: None)
    assert repr(toys.weighted) == "<Check weighted: 1 tries>"


# In IPython and in a notebook.


def test_line_numbers_of_cells(toys: ModuleType) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.user_ns["check"] = toys
    with redirect_stdout(io.StringIO()) as printed:
        shell.run_cell("a = 1\ndef weighted(x, w):\n    y = x.reshape(7)\n    return y")
        result = shell.run_cell("check.weighted(weighted)")
    assert isinstance(result.error_in_exec, Verdict)
    assert "At line 3 of your cell, in weighted: `y = x.reshape(7)`" in str(result.error_in_exec)
    assert "Traceback" not in printed.getvalue() and "core.py" not in printed.getvalue()
    assert "✗ weighted: raised RuntimeError" in printed.getvalue()


CELLS = [
    "import warnings, sys\nimport toys as check",
    "def weighted(x, w):\n    raise NotImplementedError()",
    "check.weighted(weighted)",
    "weighted = check.weighted.or_reference(weighted)",
    "def weighted(x, w):\n    return x @ w",
    "check.weighted(weighted)",
    "def weighted(x, w):\n    y = x.reshape(7)\n    return y",
    "check.weighted(weighted)",
    "def weighted(x, w):\n    warnings.warn('w')\n    print('e', file=sys.stderr)\n"
    "    return x @ w / w.sum()",
    "check.weighted(weighted)",
    "weighted = check.weighted.or_reference(weighted)",
    "def double():\n    return 0.75",
    "check.double(double)",
]


def test_in_a_notebook(toys: ModuleType, tmp_path: Path) -> None:
    """Clean lines instead of tracebacks; nothing that nbgrader would take points for."""
    from nbgrader.utils import determine_grade

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = {i: cell.outputs for i, cell in enumerate(notebook.cells) if cell.outputs}

    def verdict(index: int) -> list[str]:
        (output,) = outputs[index]
        assert output.output_type == "error" and output.ename == "Verdict"
        assert output.evalue == "\n".join(output.traceback)
        return output.traceback

    def text(index: int) -> str:
        assert all(output.output_type == "stream" for output in outputs[index])
        assert all(output.name == "stdout" for output in outputs[index])
        return "".join(output.text for output in outputs[index])

    assert verdict(2) == ["○ weighted: not attempted yet."]
    assert "the course's version" in text(3)
    assert verdict(5)[0] == "✗ weighted: this sums." and len(verdict(5)) == 2
    assert verdict(7)[1] == "  At line 2 of your cell, in weighted: `y = x.reshape(7)`"
    assert text(9) == "UserWarning: w\n" + "e\n" * 4 + "✓ weighted\n"
    assert text(10) == "weighted: going on with yours.\n"
    assert "✓ double: with 0.75" in text(12)
    for index, points in ((2, 0), (5, 0), (7, 0), (9, 3), (12, 3)):
        cell = notebook.cells[index]
        cell.metadata.nbgrader = {"grade": True, "points": 3, "solution": False, "grade_id": "a"}
        assert determine_grade(cell) == (points, 3), index


# The suite that lessons use.


def failures(module: ModuleType, **options: Any) -> list[str]:
    failed = []
    for case in check_suite.cases(module, **options):
        try:
            case.run()
        except AssertionError:
            failed.append(str(case))
    return failed


def test_suite_passes_a_good_module(toys: ModuleType) -> None:
    names = [str(case) for case in check_suite.cases(toys)]
    assert failures(toys) == [] and len(names) == len(set(names)) > 30
    assert failures(toys, right={"weighted": [right]}) == []
    assert failures(toys, wrong={"double": [(lambda: 0.1, "goal")]}) == []
    with pytest.raises(ValueError, match="no task"):
        check_suite.cases(toys, right={"unknown": [right]})


def test_suite_sees_a_bad_module(toys: ModuleType) -> None:
    wrong_right = failures(toys, right={"weighted": [lambda x, w: -right(x, w)]})
    assert wrong_right == ["weighted: right answer 1"]
    close = Mistake(lambda x, w: right(x, w) + 5e-4, "close.")
    again = Mistake(lambda x, w: right(x, w), "no mistake at all.")
    toys.weighted.mistakes += (close, again)
    assert {"weighted: mistake mistake 4", "weighted: separation"} <= set(failures(toys))
    toys.weighted.name = "other"
    assert "names" in failures(toys)


def test_suite_runs_the_solutions(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "solutions.json"
    monkeypatch.setattr(task_module, "SOLUTIONS", file)
    good = {"weighted": "def weighted(x, w):\n    return x @ w / torch.sum(w)"}
    uses_another = {"corners": "def corners():\n    weighted(torch.ones(3), ONES)\n    return 8"}
    file.write_text(json.dumps({"99_toys": good | uses_another}))
    assert failures(toys, namespace={"ONES": torch.ones(3)}) == []
    file.write_text(json.dumps({"99_toys": {"weighted": "def weighted(x, w):\n    return x @ w"}}))
    assert failures(toys) == ["weighted: solution"]


def test_table_of_diagnoses(toys: ModuleType) -> None:
    rows = {(row.task, row.answer): row for row in check_suite.diagnosis_table(toys)}
    plain_sum = rows["weighted", "plain_sum"]
    assert (plain_sum.stage, plain_sum.diagnosis) == ("mistake", "this sums.")
    assert plain_sum.separation and plain_sum.separation > check_suite.SEPARATION
    assert rows["weighted", "gradient cut"].stage == "gradient"
    assert rows["weighted", "changes argument 2"].stage == "in place"
    assert not [row for row in rows.values() if row.diagnosis == "PASSES"]

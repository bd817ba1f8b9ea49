"""The engine of the exercise checks: runs a learner's function and says what is wrong with it.

A lesson's checks are one module of `Check` and `Goal` objects, each with the name of the
function that it checks::

    warp = Check(
        "11_displacement_fields", "warp", spatial.warp, inputs=[small, batch],
        mistakes=[Mistake(wrong_axis, "this moves the image along the wrong axis. …")],
        gradient=True, hints=["Which axis does grid_sample read first?"],
    )

``check.warp(warp)`` has four outcomes: *not attempted yet*, *raised*, *wrong*, *right*. A right
answer prints one line; the others raise a `Verdict`, which notebooks show as a few clean lines.
State (tries, hints opened) lives in the kernel only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.checks.compare import STAGES, Problem, compare, plain, recast, same, snapshot
from course_lib.checks.gradients import differentiable, gradients
from course_lib.checks.messages import (
    describe,
    describe_inputs,
    kind,
    number,
    ordinal,
    parameter_names,
)
from course_lib.checks.reading import mentions, returns_a_value
from course_lib.checks.running import call
from course_lib.checks.task import Function, Outcome, Stop, Task, Verdict

__all__ = ["Check", "Goal", "Law", "Mistake", "Outcome", "Task", "Verdict", "finite_number"]

Inputs = Callable[[], tuple[Any, ...]]


FOR_GRADIENT = "(this came when the check asked for its gradient)"

NO_SLOPE = (
    "Likely cause: the root of 0 or a division by 0, which have no finite slope, or an exp() that\n"
    "is infinite. Choosing by torch.where afterwards does not mend the gradient."
)


class Mistake(NamedTuple):
    """A wrong implementation that learners write, and what to tell them.

    ``wrong`` takes the same arguments as the reference. The first line of ``hint`` says what is
    wrong, the others what was expected, the likely cause, and what to look at next.
    """

    wrong: Function
    hint: str


class Law(NamedTuple):
    """A property that values on a few inputs do not show: ``holds(answer)``, else ``message``."""

    holds: Callable[[Function], object]
    message: str


class _Run(NamedTuple):
    """One input, untouched, with what was expected for it and what the answer gave."""

    make: Inputs
    arguments: tuple[Any, ...]
    expected: object
    got: object
    changed: list[str]


class Check(Task):
    """Compares a learner's function with a reference, on inputs where mistakes show.

    Stages, in order: returns nothing, type, dtype, shape, finite, values, inputs changed in
    place, laws, gradient. A result that fails one of the first six is compared with the wrong
    implementations in ``mistakes``: if exactly one of them gives the same on *all* inputs, its
    hint is the message.

    Args:
        slug: the exercise, as in ``11_displacement_fields``.
        name: the function's name, which is also the solution cell's ``grade_id``.
        reference: a right implementation. Its parameter names are used in messages.
        inputs: functions without arguments, each giving fresh, seeded arguments as a tuple;
            ``[lambda: ()]`` for a prediction, whose expected value is then not given away.
        mistakes: wrong implementations, each with its hint.
        laws: properties that are looked at once the values are right.
        gradient: whether to compare gradients too, in float64, for all floating tensors given.
        hints: general hints, opened one by one.
        atol: tolerance, scaled by the largest expected magnitude where that is above 1.
    """

    def __init__(
        self,
        slug: str,
        name: str,
        reference: Function,
        inputs: Sequence[Inputs],
        *,
        mistakes: Sequence[Mistake] = (),
        laws: Sequence[Law] = (),
        gradient: bool = False,
        hints: Sequence[str] = (),
        atol: float = 1e-5,
    ) -> None:
        super().__init__(slug, name, reference, hints)
        if not inputs:
            raise ValueError(f"{name}: a check needs at least one input")
        self.reference: Function = reference
        self.inputs, self.mistakes, self.laws = tuple(inputs), tuple(mistakes), tuple(laws)
        self.gradient, self.atol = gradient, atol

    def _judge(self, answer: Function) -> Outcome:
        """The stages, in order; the first that has something to say decides."""
        runs = [self._one_run(answer, make) for make in self.inputs]
        return (
            self._value_outcome(answer, runs)
            or self._change_outcome(answer, runs)
            or self._law_outcome(answer)
            or self._gradient_outcome(answer)
            or Outcome("right", "", "")
        )

    def _inputs_line(self, arguments: Sequence[object]) -> str:
        """The arguments by the reference's parameter names."""
        return describe_inputs(parameter_names(self.reference, len(arguments)), arguments)

    def _one_run(self, answer: Function, make: Inputs) -> _Run:
        """Runs the answer on one input, and sees whether the input is still the same."""
        arguments, kept = call(make), call(make)
        got = snapshot(self._run(answer, arguments, self._inputs_line(kept)))
        names = parameter_names(self.reference, len(kept))
        pairs = zip(names, arguments, kept, strict=True)
        changed = [name for name, one, other in pairs if not same(one, other)]
        return _Run(make, kept, call(self.reference, call(make)), got, changed)

    def _value_outcome(self, answer: Function, runs: list[_Run]) -> Outcome | None:
        """The earliest stage that fails, on the smallest input that fails there."""
        found = []
        for run in runs:
            if problem := compare(run.got, run.expected, self.atol):
                found.append((STAGES.index(problem.stage), _size(run.arguments), problem, run))
        if not found:
            return None
        if mistake := self._named(runs):
            return Outcome("wrong", "mistake", mistake.hint)
        _, _, problem, run = min(found, key=lambda item: item[:2])
        if run.changed:  # the likelier cause of a result that is like no other
            return self._change_outcome(answer, runs, also=" The result is wrong too.")
        return Outcome("wrong", problem.stage, self._worded(problem, answer, run))

    def _worded(self, problem: Problem, answer: Function, run: _Run) -> str:
        """The problem, what only this check knows about it, and the inputs that show it."""
        if problem.stage == "values" and not run.arguments:
            # A prediction: the expected value would be the solution.
            return _not_this(run.got, run.expected, self.atol)
        clue = ""
        if run.got is None:
            clue = _nothing_clue(answer)
        elif self.gradient and problem.stage == "type" and _has_numpy(run.got):
            clue = (
                "This check asks for a gradient too, and none passes through NumPy:\n"
                "use torch's own functions."
            )
        return f"{problem.text}\n{clue}\n{self._inputs_line(run.arguments)}"

    def _named(self, runs: list[_Run]) -> Mistake | None:
        """The one wrong implementation that gives the learner's results, on all inputs."""
        named = [mistake for mistake in self.mistakes if self._agrees(mistake, runs)]
        return named[0] if len(named) == 1 else None

    def _agrees(self, mistake: Mistake, runs: list[_Run]) -> bool:
        """Whether a wrong implementation gives what the answer gave, on every input."""
        try:
            return all(self._agrees_on(call(mistake.wrong, call(run.make)), run) for run in runs)
        except Exception:  # it may fail where the learner's gave something
            return False

    def _agrees_on(self, wrong: object, run: _Run) -> bool:
        """The same on one input."""
        # Also with the dtype put right: a grid of integers with swapped axes has swapped axes.
        results = run.got, recast(run.got, run.expected)
        return any(compare(result, wrong, self.atol) is None for result in results)

    def _change_outcome(self, answer: Function, runs: list[_Run], also: str = "") -> Outcome | None:
        """What to say when an input was changed in place."""
        changed = next((run.changed[0] for run in runs if run.changed), None)
        if changed is None:
            return None
        text = (
            f"it changes its input {changed} in place.{also}\n"
            f"Likely cause: `{changed} += …`, `{changed}[…] = …` or a method ending in _;\n"
            f"make a new array, as in `{changed} = {changed} + …`, or start from a copy."
        )
        if mentions(answer, "step"):
            text += (
                f"\nAn optimizer that was given {changed} itself changes it too, in step():\n"
                f"give it a copy, x = {changed}.detach().clone().requires_grad_()."
            )
        return Outcome("wrong", "in place", text)

    def _law_outcome(self, answer: Function) -> Outcome | None:
        """The first law that the answer breaks."""
        for law in self.laws:
            if not self._run(law.holds, (answer,)):
                return Outcome("wrong", "law", law.message)
        return None

    def _gradient_outcome(self, answer: Function) -> Outcome | None:
        """The first input whose gradient is lost or wrong."""
        if not self.gradient:
            return None
        for make in self.inputs:
            try:
                text = self._gradient_problem(answer, make, torch.float64, self.atol)
            except Stop:
                # What makes float32 tensors of its own is right for images, if not for float64.
                text = self._gradient_problem(answer, make, torch.float32, 100 * self.atol)
            if text:
                return Outcome("wrong", "gradient", text)
        return None

    def _gradient_problem(
        self, answer: Function, make: Inputs, dtype: torch.dtype, atol: float
    ) -> str | None:
        """Compares the gradients on one input, in one dtype."""
        arguments, kept = (differentiable(call(make), dtype) for _ in range(2))
        inputs = self._inputs_line(kept)
        got = self._run(lambda: gradients(answer, arguments), (), inputs, FOR_GRADIENT)
        expected = call(gradients, (self.reference, kept))
        if all(gradient is None for gradient in expected):
            raise ValueError(f"{self.name}: gradient=True, but the reference has none")
        for name, ours, theirs in zip(
            parameter_names(self.reference, len(kept)), expected, got, strict=True
        ):
            if ours is None:
                continue
            if theirs is None:
                return (
                    f"right values, but no gradient reaches {name}.\n"
                    "Likely cause: detach(), item(), numpy(), torch.no_grad(), torch.tensor(…)\n"
                    "of a result, or rounding; a network could not be trained through this."
                )
            if problem := compare(theirs, ours, atol):
                text = problem.text
                if problem.stage == "finite":
                    text = f"{text.splitlines()[0]}\n{NO_SLOPE}"
                return f"right values, but the gradient of {name} is wrong: {text}\n{inputs}"
        return None


def finite_number(setting: object) -> str | None:
    """What is wrong with a setting that should be a finite number, or None."""
    if isinstance(setting, bool) or not isinstance(setting, (int, float)):
        return f"it returns {kind(setting)}; expected a number."
    return None if math.isfinite(setting) else f"expected a finite number, got {number(setting)}."


class Goal(Task):
    """A task to explore: find a setting that reaches a stated goal.

    The answer is a function without arguments that returns the setting. Whatever comes of it,
    the goal says what it measured and what was asked.

    Args:
        slug: the exercise, as in ``00_start_here``.
        name: the function's name, which is also the solution cell's ``grade_id``.
        measure: setting to measured numbers, one or a dict of them by name.
        reached: what was measured to whether the goal is reached.
        message: what was asked, as a sentence.
        reference: a function without arguments that returns a setting which reaches the goal.
        valid: setting to None, or to a sentence that says what is wrong with it; a finite
            number is expected unless this says otherwise.
        hints: hints, opened one by one.
    """

    def __init__(
        self,
        slug: str,
        name: str,
        measure: Callable[[Any], float | Mapping[str, float]],
        reached: Callable[[Any], object],
        message: str,
        *,
        reference: Callable[[], Any] | None = None,
        valid: Callable[[Any], str | None] = finite_number,
        hints: Sequence[str] = (),
    ) -> None:
        super().__init__(slug, name, reference, hints)
        self.measure, self.reached, self.message, self.valid = measure, reached, message, valid

    def _judge(self, answer: Function) -> Outcome:
        """Takes the setting, measures what comes of it, and asks whether that is enough."""
        setting = plain(self._run(answer))
        if setting is None:
            return self._missed("nothing", f"it returns nothing.\n{_nothing_clue(answer)}")
        if problem := self.valid(setting):
            return self._missed("type", problem)
        measured = self._run(self.measure, (setting,), f"With {describe(setting)}")
        found = f"with {describe(setting)}, {_measured(measured)}."
        if self.reached(measured):
            return Outcome("right", "", found)
        return self._missed("goal", f"not there yet: {found}")

    def _missed(self, stage: str, text: str) -> Outcome:
        """What is wrong with the setting, and what was asked."""
        return Outcome("wrong", stage, f"{text}\nAsked: {self.message}")


def _nothing_clue(answer: Function) -> str:
    """Why a function may return None."""
    if returns_a_value(answer):
        return (
            "Is a `return` missing on one way through it, or is what it returns None: a variable\n"
            "that was never set, the result of a function without `return`?"
        )
    return "Is a `return` missing?"


def _has_numpy(got: object) -> bool:
    """Whether a result is a NumPy array, or holds one."""
    parts = got if isinstance(got, (tuple, list)) else [got]
    return any(kind(part) == "a NumPy array" for part in parts)


def _not_this(got: object, expected: object, atol: float) -> str:
    """A wrong prediction: which parts of a tuple are right, and nothing about the others."""
    if isinstance(got, (tuple, list)) and isinstance(expected, (tuple, list)):
        pairs = zip(got, expected, strict=True)
        wrong = [i for i, pair in enumerate(pairs) if compare(*pair, atol)]
        if len(wrong) < len(got):
            shown = ", ".join("…" if i in wrong else describe(x) for i, x in enumerate(got))
            are = "item is" if len(wrong) == 1 else "items are"
            if all(kind(got[i]) == "a number" for i in wrong):
                are = are.replace("item", "number")
            which = ", ".join(ordinal(i) for i in wrong)
            which = " and ".join(which.rsplit(", ", 1))
            return f"({shown}) is right so far; the {which} {are} not. You gave {describe(got)}."
    return f"not {describe(got)}. Work it out again, step by step."


def _measured(measured: object) -> str:
    """What was measured, by name where it has names."""
    if isinstance(measured, Mapping):
        return ", ".join(f"{name} = {_short(value)}" for name, value in measured.items())
    return f"measured {_short(measured)}"


def _short(value: object) -> str:
    """A number with three digits: the last ones differ between machines."""
    value = plain(value)
    return f"{value:.3g}" if isinstance(value, float) else describe(value)


def _size(arguments: Sequence[object]) -> int:
    """How much there is to read in these inputs."""
    return sum(
        value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
        for value in arguments
    )

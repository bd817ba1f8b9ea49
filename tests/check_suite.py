"""What every exercise check must do, as cases that the tests of a lesson's checks run.

In ``tests/test_checks_displacement_fields.py``::

    import pytest
    from course_lib.checks import displacement_fields as checks
    from tests.check_suite import cases

    @pytest.mark.parametrize("case", cases(checks, right={"warp": [warp_by_loops]}), ids=str)
    def test_check(case):
        case.run()

The list of all wrong answers with their diagnoses, and how far apart they are::

    python -m tests.check_suite [SLUG ...]
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import io
import itertools
import json
import logging
import math
import pkgutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

import course_lib.checks
from course_lib.checks import task as task_module
from course_lib.checks.compare import compare, differences, plain, snapshot, tolerance, wide
from course_lib.checks.core import Check, Goal, Outcome, Task, Verdict
from course_lib.checks.running import call, quiet_room

Function = Callable[..., Any]
MASTERS = Path(__file__).parents[1] / "authoring" / "exercises"
SEPARATION = 100.0
"""Right and wrong answers differ by at least this many tolerances, somewhere."""


class Case(NamedTuple):
    """One thing that one task must do; ``run`` raises an AssertionError if it does not."""

    name: str
    run: Callable[[], None]

    def __str__(self) -> str:
        return self.name


class Row(NamedTuple):
    """A wrong answer, what is said about it, and its distance from all other answers.

    ``separation`` is the smallest distance to the reference and to the other wrong
    implementations, in tolerances; None for wrong answers that the suite makes up itself, whose
    fault need not be in the values.
    """

    task: str
    answer: str
    stage: str
    diagnosis: str
    separation: float | None


# Answers, as a learner might hand them in.


def as_learner(function: Function) -> Function:
    """The same function, written outside the library."""

    def answer(*arguments: Any) -> Any:
        return function(*arguments)

    return answer


def stub(*_: Any) -> Any:
    """An untouched stub."""
    raise NotImplementedError()


def noisy(function: Function) -> Function:
    """A right answer that warns in every way there is."""
    logger = logging.getLogger("tests.check_suite.noisy")

    def answer(*arguments: Any) -> Any:
        warnings.warn("a warning of the learner's code", stacklevel=1)
        print("a line on standard error", file=sys.stderr)
        logger.warning("a log message")
        return function(*arguments)

    return answer


def changing(function: Function, position: int) -> Function:
    """A right answer that then writes into one of its arguments."""

    def answer(*arguments: Any) -> Any:
        result = snapshot(function(*arguments))
        target = arguments[position]
        target[...] = 1 - target if "bool" not in str(target.dtype) else ~target
        return result

    return answer


def after(function: Function, change: Function) -> Function:
    """An answer that spoils each array of a right result."""

    def answer(*arguments: Any) -> Any:
        result = function(*arguments)
        return tuple(map(change, result)) if isinstance(result, tuple) else change(result)

    return answer


def cut(result: Any) -> Any:
    """Cuts the gradient."""
    return result.detach() if isinstance(result, torch.Tensor) else result


def other_dtype(result: Any) -> Any:
    """Float64 for float32, and float32 for anything else."""
    double = result.dtype in (torch.float32, np.float32)
    if isinstance(result, torch.Tensor):
        return result.to(torch.float64 if double else torch.float32)
    return result.astype(np.float64 if double else np.float32)


def library_wrappings(function: Function) -> Iterator[Function]:
    """The library's own function, bare and in the wrappings that are seen through."""

    def own(*arguments: Any) -> Any:
        return function(*arguments)

    own.__module__ = "course_lib.somewhere"
    yield own
    yield functools.partial(own)
    yield functools.wraps(own)(lambda *arguments: own(*arguments))


# Distances between answers.


def distance(one: Any, other: Any, atol: float) -> float:
    """Largest difference in tolerances; infinite between different types, dtypes or shapes."""
    problem = compare(one, other, atol)
    if problem and problem.stage != "values":
        return math.inf
    if isinstance(one, (tuple, list)):
        return max((distance(a, b, atol) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, (torch.Tensor, np.ndarray)):
        theirs, ours = wide(one), wide(other)
        # The looser tolerance of the two, so that the distance is the same both ways.
        limit = max(tolerance(theirs, atol), tolerance(ours, atol))
        return float((differences(theirs, ours) / limit).max()) if theirs.numel() else 0.0
    one, other = plain(one), plain(other)
    if isinstance(one, (int, float)) and not isinstance(one, bool):
        return abs(one - other) / (atol * max(1.0, abs(one), abs(other)))
    return 0.0 if one == other else math.inf


def results(check: Check, function: Function) -> list[Any]:
    """What a function gives on each of a check's inputs."""
    with quiet_room():
        return [snapshot(call(function, call(make))) for make in check.inputs]


def separations(check: Check) -> dict[tuple[str, str], float]:
    """Distance of each pair among the reference and the wrong implementations.

    On the input that separates the two best: one is enough to tell them apart.
    """
    answers = {"reference": results(check, check.reference)}
    for i, mistake in enumerate(check.mistakes):
        answers[mistake_name(check, i)] = results(check, mistake.wrong)
    return {
        (a, b): max(distance(x, y, check.atol) for x, y in zip(answers[a], answers[b], strict=True))
        for a, b in itertools.combinations(answers, 2)
    }


def mistake_name(check: Check, index: int) -> str:
    """The wrong implementation's name, with its position where that alone does not tell it."""
    names = [getattr(mistake.wrong, "__name__", "<lambda>") for mistake in check.mistakes]
    name = names[index]
    if name == "<lambda>":
        return f"mistake {index + 1}"
    return name if names.count(name) == 1 else f"{name} ({index + 1})"


# Cases.


def tasks(module: ModuleType) -> dict[str, Task]:
    """The checks and goals of a module, by the names they have there."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Task)}


def cases(
    module: ModuleType,
    *,
    right: Mapping[str, Sequence[Function]] | None = None,
    wrong: Mapping[str, Sequence[tuple[Function, str]]] | None = None,
    namespace: Mapping[str, Any] | None = None,
) -> list[Case]:
    """Everything that the tasks of a module must do.

    Args:
        module: a lesson's checks.
        right: other right answers, by task.
        wrong: wrong answers by task, each with the stage that must stop it (``nothing``,
            ``type``, ``dtype``, ``shape``, ``finite``, ``values``, ``mistake``, ``in place``,
            ``law``, ``gradient``, ``goal``, ``raised``).
        namespace: names that the solution cells use, besides what their notebook imports and
            defines as functions, and the tasks' own functions.
    """
    right, wrong, found = right or {}, wrong or {}, tasks(module)
    unknown = (set(right) | set(wrong)) - set(found)
    if unknown:
        raise ValueError(f"{module.__name__} has no task {sorted(unknown)}")
    listed = [Case("names", lambda: _names(module, found))]
    for name, task in found.items():
        made: list[tuple[str, Callable[[], None]]] = [
            *_common(task),
            *(_check_cases(task) if isinstance(task, Check) else _goal_cases(task)),
        ]
        for i, answer in enumerate(right.get(name, [])):
            made.append((f"right answer {i + 1}", functools.partial(_passes, task, answer)))
        for i, (answer, stage) in enumerate(wrong.get(name, [])):
            label = f"wrong answer {i + 1} ({stage})"
            made.append((label, functools.partial(_stops, task, answer, [stage])))
        if text := solution_text(task):
            run = functools.partial(_solution, task, text, found, namespace or {})
            made.append(("solution", run))
        listed += [Case(f"{name}: {label}", run) for label, run in made]
    return listed


def _names(module: ModuleType, found: dict[str, Task]) -> None:
    assert found, f"{module.__name__} has no checks"
    assert all(name == task.name for name, task in found.items()), "a name and its task differ"
    slugs = {task.slug for task in found.values()}
    assert len(slugs) == 1, f"one lesson, one slug: {sorted(slugs)}"
    assert slugs.pop().split("_", 1)[1] == module.__name__.rsplit(".", 1)[-1]


def _common(task: Task) -> Iterator[tuple[str, Callable[[], None]]]:
    assert task.reference, f"{task.name}: without a reference nobody knows that it can be done"
    reference = as_learner(task.reference)
    yield "reference", functools.partial(_passes, task, reference)
    yield "stub", functools.partial(_not_attempted, task)
    yield "nothing", functools.partial(_stops, task, lambda *_: None, ["nothing"])
    for i, own in enumerate(library_wrappings(task.reference)):
        yield f"library's own {i + 1}", functools.partial(_stops, task, own, ["library"])
    yield "not a function", functools.partial(_stops, task, 3, ["not a function"])


def _goal_cases(task: Task) -> Iterator[tuple[str, Callable[[], None]]]:
    for setting in (math.nan, "much"):
        yield f"setting {setting}", functools.partial(_stops, task, lambda s=setting: s, ["type"])


def _check_cases(check: Check) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "noisy answer", functools.partial(_passes, check, noisy(check.reference))
    for i, mistake in enumerate(check.mistakes):
        run = functools.partial(_names_mistake, check, mistake.wrong, mistake.hint)
        yield f"mistake {mistake_name(check, i)}", run
    yield "separation", functools.partial(_separated, check)
    for label, answer, stages in _made_up(check):
        yield label, functools.partial(_stops, check, answer, stages)


def _made_up(check: Check) -> Iterator[tuple[str, Function, list[str]]]:
    """Wrong answers that are wrong whatever the task is, with the stages that may stop them."""
    reference = as_learner(check.reference)
    expected = results(check, check.reference)
    arrays = [e for e in expected if isinstance(e, (torch.Tensor, np.ndarray))]
    if any(math.prod(array.shape) > 1 for array in arrays):
        yield "a scalar that broadcasts", after(reference, _mean), ["shape", "mistake"]
    if arrays:
        yield "another dtype", after(reference, other_dtype), ["dtype"]
    for position in _writable(check):
        yield f"changes argument {position + 1}", changing(reference, position), ["in place"]
    if check.gradient:
        yield "gradient cut", after(reference, cut), ["gradient"]


def _mean(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.double().mean().to(result.dtype)
    return np.asarray(result.mean(), result.dtype)


def _writable(check: Check) -> list[int]:
    """Positions of arrays among the arguments (of the first input)."""
    with quiet_room():
        arguments = call(check.inputs[0])
    return [i for i, a in enumerate(arguments) if isinstance(a, (torch.Tensor, np.ndarray))]


# What the cases assert.


def ask(task: Task, answer: Any) -> tuple[str, str]:
    """Asks a task as a notebook does: the verdict (empty if right), and what was printed."""
    printed, complaints, verdict = io.StringIO(), io.StringIO(), ""
    before = task.tries
    with redirect_stdout(printed), redirect_stderr(complaints):
        try:
            assert task(answer) is None  # type: ignore[func-returns-value]
        except Verdict as raised:
            verdict = str(raised)
    assert complaints.getvalue() == "", "nbgrader reads standard error as zero points"
    assert task.passed == (not verdict)
    assert task.tries - before in (0, 1)
    return verdict, printed.getvalue()


def _passes(task: Task, answer: Function) -> None:
    verdict, printed = ask(task, answer)
    assert verdict == "", verdict
    assert f"✓ {task.name}" in printed


def _not_attempted(task: Task) -> None:
    before = task.tries
    verdict, printed = ask(task, stub)
    assert verdict == f"○ {task.name}: not attempted yet.", verdict
    assert printed == ""
    assert task.tries == before, "an untouched stub is not a try"


def _stops(task: Task, answer: Any, stages: list[str]) -> None:
    outcome = task.judge(answer)
    assert outcome.stage in stages, f"{outcome}"
    verdict, _ = ask(task, answer)
    assert verdict.startswith(f"✗ {task.name}: "), verdict


def _names_mistake(check: Check, wrong: Function, hint: str) -> None:
    assert check.judge(as_learner(wrong)) == Outcome("wrong", "mistake", hint)


def _separated(check: Check) -> None:
    close = {pair: value for pair, value in separations(check).items() if value <= SEPARATION}
    assert not close, f"{check.name}: the inputs hardly tell these apart: {close}"


def solution_text(task: Task) -> str | None:
    """The text of the task's solution cell, if it was built."""
    if not task_module.SOLUTIONS.exists():
        return None
    texts = json.loads(task_module.SOLUTIONS.read_text(encoding="utf-8"))
    return texts.get(task.slug, {}).get(task.name)


def _solution(task: Task, text: str, found: dict[str, Task], names: Mapping[str, Any]) -> None:
    scope = {"__name__": "__main__", "torch": torch, "np": np, **given(task.slug, set(found))}
    scope |= {name: other.reference for name, other in found.items() if name != task.name}
    scope |= names
    exec(compile(text, f"<solution of {task.name}>", "exec"), scope)
    assert task.name in scope, "the solution's function has another name than its check"
    _passes(task, scope[task.name])


def given(slug: str, written_by_learners: set[str]) -> dict[str, Any]:
    """What an exercise's master imports, and the functions that it gives to the learner."""
    master, scope = MASTERS / f"{slug}.py", dict[str, Any]()
    if master.exists():
        kept: list[ast.stmt] = [
            node
            for node in ast.parse(master.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            or (isinstance(node, ast.FunctionDef) and node.name not in written_by_learners)
        ]
        exec(compile(ast.Module(kept, []), str(master), "exec"), scope)
    return scope


# The table.


def diagnosis_table(module: ModuleType) -> list[Row]:
    """All wrong answers that the suite knows for a module's checks, with their diagnoses."""
    rows = []
    for check in tasks(module).values():
        if not isinstance(check, Check):
            continue
        apart = separations(check)
        for i, mistake in enumerate(check.mistakes):
            name = mistake_name(check, i)
            nearest = min(value for pair, value in apart.items() if name in pair)
            rows.append(_row(check, name, as_learner(mistake.wrong), nearest))
        rows += [_row(check, label, answer) for label, answer, _ in _made_up(check)]
    return rows


def _row(check: Check, name: str, answer: Function, separation: float | None = None) -> Row:
    outcome = check.judge(answer)
    diagnosis = outcome.text.splitlines()[0] if outcome.text else "PASSES"
    return Row(check.name, name, outcome.stage, diagnosis, separation)


def check_modules() -> list[ModuleType]:
    """The modules under ``course_lib.checks`` that hold a lesson's tasks."""
    names = [found.name for found in pkgutil.iter_modules(course_lib.checks.__path__)]
    modules = [importlib.import_module(f"course_lib.checks.{name}") for name in names]
    return sorted(
        (m for m in modules if tasks(m)), key=lambda m: min(t.slug for t in tasks(m).values())
    )


def chosen(modules: Sequence[ModuleType], wanted: Sequence[str]) -> list[tuple[str, ModuleType]]:
    """The modules that are meant by `11` or `11_displacement_fields`, with their slugs."""
    by_slug = {min(task.slug for task in tasks(m).values()): m for m in modules}
    for text in wanted:
        if not any(text in (slug, slug[:2]) for slug in by_slug):
            raise SystemExit(f"there is no exercise {text}; there are {', '.join(by_slug)}")
    return [
        (slug, module)
        for slug, module in by_slug.items()
        if not wanted or {slug, slug[:2]} & set(wanted)
    ]


def main() -> None:
    """Prints the table, for all lessons or for those named."""
    parser = argparse.ArgumentParser(description="Wrong answers and what the checks say to them.")
    parser.add_argument("slugs", nargs="*", metavar="SLUG", help="11 or 11_displacement_fields")
    for slug, module in chosen(check_modules(), parser.parse_args().slugs):
        rows = diagnosis_table(module)
        head = f"  {'task':22} {'wrong answer':28} {'apart':>9}  {'stage':9} the message begins"
        print(f"\n{slug}\n{head}")
        for row in rows:
            apart = "" if row.separation is None else f"{row.separation:.3g}"
            said = textwrap.shorten(row.diagnosis, 72, placeholder=" …")
            print(f"  {row.task:22} {row.answer:28} {apart:>9}  {row.stage:9} {said}")
        goals = [task.name for task in tasks(module).values() if isinstance(task, Goal)]
        if goals:
            print(f"  goals, not listed: {', '.join(goals)}")
        known = [row.separation for row in rows if row.separation is not None]
        if known:
            print(f"  smallest separation: {min(known):.3g} tolerances (at least {SEPARATION:g})")


if __name__ == "__main__":
    main()

"""What every kind of task shares: outcomes, messages, tries, hints and the solution."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from course_lib.checks.explanations import explanation
from course_lib.checks.messages import kind, lay_out
from course_lib.checks.running import (
    call,
    from_library,
    learners_place,
    quiet_room,
    unwrapped,
    unwritten,
)

SOLUTIONS = Path(__file__).with_name("solutions.json")
"""``{slug: {task: text}}``, written by ``authoring.build`` from the solution cells."""

TRIES_BEFORE_SOLUTION = 3

Function = Callable[..., Any]

_NOTHING = object()


class Verdict(Exception):
    """An answer that did not pass. Notebooks show its message instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints; its protocol for exceptions of this kind."""
        return str(self).splitlines()


class Outcome(NamedTuple):
    """What a check found: one of four outcomes, the stage that decided, and the message.

    ``refused`` is what never came to be judged: something that is not a function, or is the
    library's own. Only ``raised`` and ``wrong`` count as tries.
    """

    name: Literal["right", "wrong", "raised", "not attempted", "refused"]
    stage: str
    text: str


class Stop(Exception):
    """Ends a judgement early, from any depth, with its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.text)
        self.outcome = outcome


class Task(ABC):
    """What `Check` and `Goal` share: the outcomes, the tries, the hints and the solution.

    Attributes:
        passed: whether the last answer was right.
        solved: whether any answer was right since the kernel started.
        tries: wrong answers so far, those that raised an error included. The same code with
            the same outcome, judged again, is not another try.
        opened: hints opened so far.
    """

    def __init__(
        self, slug: str, name: str, reference: Function | None, hints: Sequence[str] = ()
    ) -> None:
        self.slug, self.name, self.reference = slug, name, reference
        self.hints = tuple(hints)
        self.passed = self.solved = False
        self.tries = self.opened = 0
        self._right_answer: object = None
        self._last_try: tuple[object, Outcome] | None = None

    def __repr__(self) -> str:
        """``<Check warp: 2 tries>``."""
        state = "passed" if self.passed else f"{self.tries} tries"
        return f"<{type(self).__name__} {self.name}: {state}>"

    def __call__(self, answer: object = _NOTHING) -> None:
        """Judges the learner's function: prints one line when it is right.

        Returns nothing, because nbgrader reads a number that a cell returns as partial credit.

        Raises:
            Verdict: when the answer is anything else than right.
        """
        self.passed, self._right_answer = False, None
        outcome = self.judge(answer)
        if outcome.name == "right":
            self.passed = self.solved = True
            self._right_answer = answer
            print(lay_out("✓", self.name, outcome.text) if outcome.text else f"✓ {self.name}")
            return
        counts = outcome.name in ("wrong", "raised")
        if counts:
            self._count(answer, outcome)
        mark = "○" if outcome.name == "not attempted" else "✗"
        raise Verdict(lay_out(mark, self.name, outcome.text, self._next_step() if counts else ""))

    def _count(self, answer: object, outcome: Outcome) -> None:
        """One more try, unless it is the last one run again.

        The outcome is compared too: it differs when a function that the answer calls was edited.
        """
        last, self._last_try = self._last_try, (answer, outcome)
        self.tries += not (last and _same_code(answer, last[0]) and outcome == last[1])

    def judge(self, answer: object) -> Outcome:
        """What there is to say about an answer; counts and prints nothing itself."""
        with quiet_room():
            try:
                return self._refuse(answer) or self._judge(answer)  # type: ignore[arg-type]
            except Stop as stop:
                return stop.outcome

    @abstractmethod
    def _judge(self, answer: Function) -> Outcome:
        """Runs the answer and looks at what it gives."""

    def _refuse(self, answer: object) -> Outcome | None:
        """What cannot be an answer of the learner's, before anything is run."""
        if not callable(answer):
            what = "nothing came" if answer is _NOTHING else f"this is {kind(answer)}"
            text = f"{what}, not a function.\n"
            text += f"Pass the function itself, check.{self.name}({self.name}), without calling it."
            return Outcome("refused", "not a function", text)
        if from_library(answer):
            text = "this is the library's own. Write yours: run your cell, then this one again."
            return Outcome("refused", "library", text)
        return None

    def _run(
        self, answer: Function, arguments: Sequence[object] = (), inputs: str = "", note: str = ""
    ) -> Any:
        """Calls the learner's code; an error in it ends the judgement."""
        try:
            return call(answer, arguments)
        except Exception as error:  # whatever a learner's code may raise
            raise Stop(self._explain(error, answer, inputs, note)) from None

    def _explain(self, error: Exception, answer: Function, inputs: str, note: str) -> Outcome:
        """An untouched stub, or the learner's error with their line and the inputs."""
        if stub := unwritten(error):
            inner = unwrapped(answer)
            own = self.name, getattr(inner, "__qualname__", type(inner).__qualname__)
            # A function defined inside another is called outer.<locals>.inner.
            if any(f"{stub.function}.".startswith(f"{name}.") for name in own):
                return Outcome("not attempted", "stub", "not attempted yet.")
            text = f"not attempted yet: {stub.function}, which it calls, is not written."
            return Outcome("not attempted", "stub", text)
        first_line = (str(error).strip().splitlines() or [""])[0]
        lines = [f"raised {type(error).__name__}: {first_line}".rstrip(": ")]
        if place := learners_place(error):
            lines.append(f"At {place}")
        elif isinstance(error, TypeError) and "argument" in first_line:
            lines.append("Look at the parameters in its `def` line.")
        lines += [explanation(error), inputs, note]
        return Outcome("raised", "raised", "\n".join(lines))

    def or_reference(self, answer: Function) -> Function:
        """The learner's function if its last check passed, otherwise the course's version.

        "Its" check means this very function or the same code run again: a cell that was edited
        since has to be checked again.
        """
        if self.reference is None:
            raise ValueError(f"{self.name} has no reference to go on with.")
        if self.passed and _same_code(answer, self._right_answer):
            print(f"{self.name}: going on with yours.")
            return answer
        print(f"{self.name}: yours has not passed its check; going on with the course's version.")
        return self.reference

    def hint(self) -> None:
        """Opens the next hint; all of them again when none is left."""
        if not self.hints:
            print(f"There are no hints for {self.name}.")
            return
        first = 0 if self.opened == len(self.hints) else self.opened
        self.opened = min(self.opened + 1, len(self.hints))
        for i in range(first, self.opened):
            print(f"Hint {i + 1} of {len(self.hints)}: {self.hints[i]}")
        left = len(self.hints) - self.opened
        print(f"({left} more: check.{self.name}.hint())" if left else "(There are no more.)")

    def solution(self) -> None:
        """Shows the solution, once the check has passed or after three tries."""
        left = TRIES_BEFORE_SOLUTION - self.tries
        if left > 0 and not self.solved:
            tries = "1 more try" if left == 1 else f"{left} more tries"
            print(f"The solution of {self.name} opens when its check passes, or after {tries}")
            print("(checking the same code again is not another one).")
            return
        print(self._solution_text() or f"See solutions/{self.slug}.ipynb for {self.name}.")

    def _solution_text(self) -> str | None:
        """The solution cell's text, if the build has written it."""
        try:
            return str(json.loads(SOLUTIONS.read_text(encoding="utf-8"))[self.slug][self.name])
        except (OSError, ValueError, KeyError):
            return None

    def _next_step(self) -> str:
        """What to call next: a hint that is left, or the solution if it is open."""
        if self.opened < len(self.hints):
            return f"check.{self.name}.hint()"
        if self.solved or self.tries >= TRIES_BEFORE_SOLUTION:
            return f"check.{self.name}.solution()"
        return ""


def _same_code(one: object, other: object) -> bool:
    """Whether two functions are one, or come from the same text."""
    if one is other:
        return True
    codes = [getattr(unwrapped(function), "__code__", None) for function in (one, other)]
    return codes[0] is not None and codes[0] == codes[1]

"""Running a learner's function: quietly, reproducibly, and finding their line when it fails."""

from __future__ import annotations

import functools
import linecache
import logging
import os
import random
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

LIBRARY = str(Path(__file__).resolve().parents[1]) + os.sep
STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep


class Place(NamedTuple):
    """A line of the learner's: the function it is in, its file, number and text."""

    function: str
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        """``line 3 of your cell: `return image + u` ``."""
        in_cell = self.file.startswith("<") or "ipykernel_" in self.file
        where = "your cell" if in_cell else os.path.basename(self.file)
        inside = "" if self.function == "<module>" else f", in {self.function}"
        return f"line {self.line} of {where}{inside}" + (f": `{self.text}`" if self.text else "")


@contextmanager
def quiet_room() -> Iterator[None]:
    """Runs a learner's code so that it leaves no trace, and depends on none.

    Standard error and warnings go to standard output, because nbgrader reads anything on
    standard error as zero points. Random states, the default dtype and device, and the
    gradient mode are put back, whatever the learner's code does to them.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    dtype = torch.get_default_dtype()
    device = torch.get_default_device()
    if device.type != "cpu":
        torch.set_default_device("cpu")
    try:
        with (
            _handlers_to_stdout(),
            redirect_stderr(sys.stdout),
            warnings.catch_warnings(),
            torch.inference_mode(False),
        ):
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            # Harmless where only a number is wanted, and long, with paths of torch's own machines.
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True")
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _print_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """A warning in one line, without the path, which differs from kernel to kernel."""
    print(f"{category.__name__}: {message}")


@contextmanager
def _handlers_to_stdout() -> Iterator[None]:
    """Log handlers keep the stream they were made with, so redirecting does not reach them."""
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    moved = []
    for logger in known:
        for handler in getattr(logger, "handlers", []):
            if getattr(handler, "stream", None) in (sys.stderr, sys.__stderr__):
                moved.append((handler, handler.setStream(sys.stdout)))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def call(function: Callable[..., Any], arguments: Sequence[Any] = ()) -> Any:
    """``function(*arguments)`` from the same state every time, whatever ran before.

    The random state is the same, so that a reference and an answer that both draw random
    numbers draw the same ones; new tensors are float32, and gradients are on.
    """
    torch.set_default_dtype(torch.float32)
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with torch.enable_grad():
        return function(*arguments)


def count_operations(function: Callable[..., Any], *arguments: Any) -> int:
    """How many operations of PyTorch `function(*arguments)` takes: a loop takes many."""
    with _Operations() as operations:
        function(*arguments)
    return operations.count


class _Operations(TorchDispatchMode):
    """Counts, and lets everything happen."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def unwrapped(function: object) -> object:
    """The function inside ``functools.partial`` objects and decorators."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def from_library(function: object) -> bool:
    """Whether the function, under its wrappings, was written in ``course_lib``."""
    module = getattr(unwrapped(function), "__module__", None) or ""
    return module == "course_lib" or module.startswith("course_lib.")


def _is_learners(filename: str) -> bool:
    """Whether a file is the learner's: not the library's, not installed, not Python's own."""
    installed = {"site-packages", "dist-packages"} & set(Path(filename).parts)
    ours = filename.startswith((LIBRARY, STANDARD_LIBRARY, "<frozen"))
    return not (installed or ours)


def _places(traceback: TracebackType | None) -> Iterator[tuple[bool, Place]]:
    """All frames from the outermost in: whether it is the learner's, and where."""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        text = linecache.getline(
            code.co_filename, traceback.tb_lineno, traceback.tb_frame.f_globals
        ).strip()
        place = Place(code.co_qualname, code.co_filename, traceback.tb_lineno, text)
        yield _is_learners(code.co_filename), place
        traceback = traceback.tb_next


def learners_place(error: BaseException) -> Place | None:
    """The innermost line of the learner's that an error passed through."""
    places = [place for learners, place in _places(error.__traceback__) if learners]
    return places[-1] if places else None


def unwritten(error: BaseException) -> Place | None:
    """Where an untouched stub raised this error, or None if it is an error like any other.

    A stub says ``raise NotImplementedError()``, without arguments, in the learner's own code.
    Libraries raise the same error for other reasons (torch: an operator that is missing on a
    device), with arguments or from frames of their own.
    """
    if not isinstance(error, NotImplementedError) or error.args:
        return None
    frames = list(_places(error.__traceback__))
    learners, innermost = frames[-1]
    return innermost if learners else None

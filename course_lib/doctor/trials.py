"""What is tried in a second process: running it, and what its outcomes mean."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from course_lib.doctor import here, worker
from course_lib.doctor.course import check_course
from course_lib.doctor.finding import ASK, Finding, Outcome, note, ok, problem
from course_lib.doctor.packages import check_packages, installed_version, requirements

STEP_SECONDS = 120.0  # a laptop with a virus scanner takes half a minute to import torch at first
# By its path, since this Python may import another copy of the course, or none; -P: see there.
WORKER = [sys.executable, "-P", os.path.abspath(worker.__file__)]


def check_what_runs() -> Iterator[Finding]:
    """All that is tried in the second process."""
    outcomes = run_steps(steps_to_try())
    yield from check_course(outcomes.get("course", Outcome()))
    yield from check_packages(outcomes)
    yield from check_threads(outcomes.get("threads", Outcome()))
    yield from check_device(outcomes.get("device", Outcome()))
    yield from check_lesson_steps(outcomes)
    yield from check_kernel(outcomes.get("kernel", Outcome()))


def steps_to_try() -> list[str]:
    """The imports of all packages that are installed, and the steps that need no others."""
    names = [wanted.name for wanted in requirements() if installed_version(wanted.name)]
    names.sort(key=lambda name: name != "numpy")  # first, for most of the others import it
    possible = [step for step in worker.STEPS if worker.NEEDS[step] <= set(names)]
    return ["course", *(f"import {name}" for name in names), *possible]


# Running the second process


def run_steps(steps: list[str], command: list[str] | None = None) -> dict[str, Outcome]:
    """Have the worker do the steps, and survive whatever happens to it.

    Args:
        steps: their names, in order.
        command: what runs the worker; by default this Python.

    Returns:
        What came of each: also of the one at which the process ended or hung.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = list(steps)
    while waiting:
        for name, outcome in run_worker([*(command or WORKER), *waiting]):
            step = name or waiting[0]
            outcomes[step] = outcome
            if step in waiting:
                waiting.remove(step)
            if outcome.error:
                waiting = [other for other in waiting if not worker.leans_on(other, step)]
    return outcomes


def run_worker(command: list[str]) -> Iterator[tuple[str, Outcome]]:
    """The steps of one process as they are done; an empty name stands for the one it died in."""
    process = start_process(command)
    lines: queue.Queue[str | None] = queue.Queue()
    said: list[str | None] = []
    readers = [start_reader(process.stdout, lines.put), start_reader(process.stderr, said.append)]
    try:
        while True:
            line = lines.get(timeout=STEP_SECONDS)
            if line is None:
                break
            step, result = json.loads(line)
            if step == worker.END:
                return
            yield step, Outcome(**result)
        readers[1].join(5)
        yield "", Outcome(error=death(process.wait(10), said), crashed=True)
    except queue.Empty:
        yield "", Outcome(error=f"it did not end within {STEP_SECONDS:.0f} s", crashed=True)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for reader in readers:
            reader.join(5)


def start_process(command: list[str]) -> subprocess.Popen[str]:
    """A process whose output is read, in a folder where no file of the learner's is imported."""
    return subprocess.Popen(
        command,
        cwd=os.path.abspath(os.sep),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def start_reader(stream: Any, put: Callable[[str | None], Any]) -> threading.Thread:
    """A thread that hands on each line, and None at the end."""

    def read() -> None:
        for line in stream:
            put(line)
        put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader


def death(code: int, said: list[str | None]) -> str:
    """How a process ended that should not have, in words, with the last line that it said."""
    if code < 0:
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
    else:
        how = f"exit code {code:#x}" if code > 255 else f"exit code {code}"
    last = [line.strip() for line in said if line and line.strip()][-1:]
    return ": ".join([f"it ends Python at once ({how})", *last])


# What the outcomes mean


def check_threads(outcome: Outcome) -> Iterator[Finding]:
    """Processors, and what the environment says about threads."""
    threads = outcome.value
    if not threads:  # torch could not be asked, and that is told elsewhere
        return
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    settings = thread_settings()
    text = f"{processors} processors, of which torch uses {threads}"
    if settings:
        text += f" ({', '.join(f'{name}={value}' for name, value in settings.items())})"
    slow = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(settings)
    if threads > processors or slow:
        which = " and ".join(sorted(slow)) or "OMP_NUM_THREADS"
        yield note("threads", text + ": this makes small images slow.", f"do not set {which}")
    else:
        yield ok("threads", text)


def thread_settings() -> dict[str, str]:
    """The variables about threads that somebody set."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if found.get("GOMP_SPINCOUNT") == "20000":  # course_lib/__init__.py did: see there
        del found["GOMP_SPINCOUNT"]
    return found


def check_device(outcome: Outcome) -> Iterator[Finding]:
    """What the course computes on."""
    if outcome.error:
        todo = "do not set COURSE_PROFILE, or set it to quick or full"
        yield problem("device", outcome.error, todo if "COURSE_PROFILE" in outcome.error else ASK)
    elif outcome.value:
        device, profile = outcome.value
        yield ok("device", f"the course computes on {device}, profile {profile}")


def check_lesson_steps(outcomes: dict[str, Outcome]) -> Iterator[Finding]:
    """What lessons do: a warp, a plot, a widget."""
    steps = ("warp", "plot", "widget")
    left = [step for step in steps if step not in outcomes]
    if left:
        text = f"Not tried, since packages are missing or broken: {', '.join(left)}."
        yield note("trials", text, "first the problems above; then run this again")
    for step in [step for step in steps if step in outcomes]:
        outcome = outcomes[step]
        if outcome.error:
            yield problem(step, outcome.error, "first the problems above, if any; then " + ASK)
        else:
            yield ok(step, outcome.value)


def check_kernel(outcome: Outcome) -> Iterator[Finding]:
    """Whether a notebook's kernel starts, answers, and is this Python with this course."""
    if outcome.error:
        text = f"A notebook's kernel does not start or answer: {outcome.error}"
        todo = (
            "if a folder is named that is not in .venv, rename it; if a firewall or virus scanner "
            "asks, let Python connect to this machine (127.0.0.1); otherwise: "
        )
        todo += here.reinstall_command("ipykernel jupyter-client pyzmq")
        yield problem("kernel", text, todo)
    elif outcome.value:
        python, spec = outcome.value
        if same_folder(python, sys.executable):
            yield ok("kernel", "a notebook's kernel starts and runs this Python")
            return
        text = f"Notebooks run another Python, {python}: so says {spec}."
        todo = (
            "rename that folder, which another installation left behind; or in JupyterLab, "
            "Kernel > Change Kernel"
        )
        yield problem("kernel", text, todo)


def same_folder(one: str, other: str) -> bool:
    """Whether two Pythons are of one environment; their links all lead to the system's."""
    folders = (os.path.normcase(os.path.dirname(os.path.abspath(path))) for path in (one, other))
    return len(set(folders)) == 1

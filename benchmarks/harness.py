"""How things are measured here, fairly: side by side, in turns, on the same arrays.

Time: after a warm-up call, competitors take turns round by round, each round starting with another
one, so that a busy moment of the machine hits all of them; the median counts. Memory: each
competitor in a process of its own, whose peak is set back after the inputs are made.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

Call = Callable[[], object]

ROUNDS = 7
FEWER = ((20.0, 1), (5.0, 3))  # a call of more than so many seconds is measured so often only
MB = 2**20
# What the system's count of a process's pages is good for: below it, two peaks are equal.
MEMORY_NOISE_MB, MEMORY_NOISE = 1.0, 0.02
MEMORY_LIMIT = 900.0  # seconds that a measurement of memory may take
PRELOAD = ("benchmarks.contenders", "monai.losses", "monai.networks.blocks", "voxelmorph")
PRELOAD += ("neurite", "SimpleITK", "ants", "scipy.ndimage")


@dataclass
class Measure:
    """What one competitor took for one case; ``error`` says why there are no numbers."""

    milliseconds: float | None = None
    runs: int = 0
    fastest: float | None = None
    slowest: float | None = None
    peak_mb: float | None = None
    result: float | None = None
    cosine: float | None = None
    counts: bool = True
    error: str = ""


@dataclass
class Outcome:
    """One primitive on one case: ours, the peers, and what was asked."""

    primitive: str
    case: str
    target: float | None
    lean: bool
    ours: Measure
    peers: dict[str, Measure] = field(default_factory=dict)
    others_busy: float = 0.0

    @property
    def fastest_peer(self) -> str | None:
        """The name of the fastest peer that counts for the target, or None if none ran."""
        times = {
            name: peer.milliseconds
            for name, peer in self.peers.items()
            if peer.milliseconds is not None and peer.counts
        }
        return min(times, key=lambda name: times[name]) if times else None

    @property
    def ratio(self) -> float | None:
        """The fastest peer's time over ours: above 1, we are faster."""
        if self.fastest_peer is None or not self.ours.milliseconds:
            return None
        return (self.peers[self.fastest_peer].milliseconds or 0.0) / self.ours.milliseconds

    @property
    def verdict(self) -> str:
        """``yes``, ``NO`` with what was missed, or ``-`` where nothing was asked."""
        if self.target is None:
            return "-"
        if self.ratio is None or self.fastest_peer is None:
            return "NO: ours failed" if not self.ours.milliseconds else "no peer ran"
        missed = [] if self.ratio >= self.target else ["time"]
        if self.lean:
            missed += memory_missed(self.ours.peak_mb, self.peers[self.fastest_peer].peak_mb)
        return f"NO: {', '.join(missed)}" if missed else "yes"


def memory_missed(ours: float | None, peer: float | None) -> list[str]:
    """What to write beside a target that asks for no more memory than the fastest peer takes."""
    if ours is None or peer is None:
        return ["memory not measured"]
    return ["memory"] if ours > peer * (1 + MEMORY_NOISE) + MEMORY_NOISE_MB else []


# ---------------------------------------------------------------------------------------- time


def take_turns(
    calls: Mapping[str, Call], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, Measure], dict[str, object]]:
    """Time each call after a warm-up, round by round; a call that fails is noted and left out.

    Returns:
        What each took, and what each returned.
    """
    results: dict[str, object] = {}
    seconds: dict[str, list[float]] = {}
    measures: dict[str, Measure] = {}
    for name, call in calls.items():
        try:
            results[name] = call()
            seconds[name] = []
        except Exception as error:  # another library's: reported in the table
            measures[name] = Measure(error=one_line(error))
    names = list(seconds)
    for turn in range(rounds):
        for name in in_turn(names, turn):
            if turn < affordable(max(seconds[name], default=0.0)):
                started = clock()
                calls[name]()
                seconds[name].append(clock() - started)
    for name, taken in seconds.items():
        measures[name] = Measure(
            milliseconds=1000 * statistics.median(taken),
            runs=len(taken),
            fastest=1000 * min(taken),
            slowest=1000 * max(taken),
        )
    return measures, results


def in_turn(names: Sequence[str], turn: int) -> list[str]:
    """The competitors of one round, each round starting with another one."""
    first = turn % max(len(names), 1)
    return [*names[first:], *names[:first]]


def affordable(seconds: float) -> int:
    """How many rounds a call gets that takes so many seconds."""
    return next((rounds for limit, rounds in FEWER if seconds > limit), ROUNDS)


def one_line(error: BaseException) -> str:
    """An error as a short line for the table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


class OthersWatch:
    """How many cores other processes kept busy between its making and :meth:`cores`."""

    def __init__(self) -> None:
        self._started, self._all, self._ours = time.monotonic(), self._busy(), self._own()

    @staticmethod
    def _busy() -> float:
        times = psutil.cpu_times()
        # Time given to guests is counted as the user's too.
        return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "steal"))

    @staticmethod
    def _own() -> float:
        times = psutil.Process().cpu_times()
        return times.user + times.system

    def cores(self) -> float:
        """Cores that others kept busy since, on average."""
        elapsed = max(time.monotonic() - self._started, 1e-6)
        return max(0.0, (self._busy() - self._all - self._own() + self._ours) / elapsed)


# -------------------------------------------------------------------------------------- memory


def peak_memory(work: Callable[..., Call], *arguments: object) -> tuple[float | None, str]:
    """The most memory that a call took beyond what stood before it, in MB, in its own process.

    Args:
        work: a function of a module that, given ``arguments`` (picklable), makes the inputs,
            warms up, and returns the call to measure.
        arguments: for it.

    Returns:
        MB and ``""``, or None and why it could not be measured.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None, "memory is only measured on Linux"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(MEMORY_LIMIT):
            return None, f"no answer in {MEMORY_LIMIT:.0f} s"
        return receiver.recv()
    except EOFError:
        return None, "the process died, perhaps for want of memory"
    finally:
        process.kill()
        process.join()


def _measure_peak(sender: Connection, work: Callable[..., Call], arguments: Sequence) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  warnings were seen while timing
    try:
        call = work(*arguments)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts if taken again
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is there now
        before = memory_now("VmRSS")
        result = call()
        sender.send((memory_now("VmHWM") - before, ""))
        del result
    except Exception as error:
        sender.send((None, one_line(error)))


def memory_now(what: str, status: Path = Path("/proc/self/status")) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the peak) of this process, in MB."""
    for line in status.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == what:
            return int(value.split()[0]) / 1024
    raise ValueError(f"what: {status} has no {what}")


# ------------------------------------------------------------------------------------- reports


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes, one line each: ours beside the fastest peer."""
    head = ("primitive", "case", "ours ms", "fastest peer ms", "ratio", "target", "MB", "met?")
    return columns([head, *(_cells(outcome) for outcome in outcomes)], numbers=(2, 4, 5))


def columns(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Cells under one another, a line below the first row; ``numbers`` stand to the right.

    A row may be shorter than the first: its last cell then runs on to the right.
    """
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[column]) for row in full) for column in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers and row in full else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(outcome: Outcome) -> tuple[str, ...]:
    name = outcome.fastest_peer
    peer = "none ran"
    if name is not None:
        peer = f"{milliseconds(outcome.peers[name])} ({name})"
    return (
        outcome.primitive,
        outcome.case,
        milliseconds(outcome.ours),
        peer,
        "-" if outcome.ratio is None else f"{outcome.ratio:.2f}",
        "-" if outcome.target is None else f"{outcome.target:g}",
        f"{megabytes(outcome.ours)} / {megabytes(outcome.peers[name]) if name else '-'}",
        outcome.verdict,
    )


def details(outcomes: Sequence[Outcome]) -> str:
    """Every competitor of every outcome, with those that failed."""
    lines = []
    for outcome in outcomes:
        lines.append(
            f"{outcome.primitive}, {outcome.case}"
            f" (others kept {outcome.others_busy:.1f} cores busy)"
        )
        for name, measure in {"ours": outcome.ours, **outcome.peers}.items():
            lines.append(f"    {name:<34}{_numbers(measure)}")
    return "\n".join(lines)


def _numbers(measure: Measure) -> str:
    if measure.milliseconds is None:
        return f"FAILED: {measure.error}"
    parts = [f"{milliseconds(measure):>10} ms", f"{measure.runs} runs"]
    parts += [f"{megabytes(measure):>6} MB"]
    parts += [f"value {measure.result:.4f}"] if measure.result is not None else []
    parts += [f"cosine to ours {measure.cosine:.4f}"] if measure.cosine is not None else []
    parts += [] if measure.counts else ["(does not count)"]
    parts += [measure.error] if measure.error else []
    return "  ".join(parts)


def milliseconds(measure: Measure) -> str:
    """A time with three digits that say something; a star where there were fewer runs."""
    if measure.milliseconds is None:
        return "failed"
    star = "*" if 0 < measure.runs < ROUNDS else ""
    return f"{measure.milliseconds:.{2 if measure.milliseconds < 10 else 0}f}{star}"


def megabytes(measure: Measure) -> str:
    """A peak of memory, or a question mark where it is not known."""
    return "?" if measure.peak_mb is None else f"{measure.peak_mb:.0f}"


def machine(packages: Sequence[str]) -> dict[str, object]:
    """What the numbers were measured on, and with."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": found,
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system tells."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load() -> list[float]:
    """The machine's load over the last 1, 5 and 15 minutes, where the system tells."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def write_json(path: Path, report: Mapping[str, object], outcomes: Sequence[Outcome]) -> None:
    """Write everything in one step, with the ratios and verdicts of the table."""
    rows = [
        {
            **_rounded(asdict(outcome)),
            "fastest_peer": outcome.fastest_peer,
            "ratio": None if outcome.ratio is None else round(outcome.ratio, 3),
            "met": outcome.verdict,
        }
        for outcome in outcomes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({**report, "outcomes": rows}, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def _rounded(value: object) -> dict:
    """Numbers with four digits, and nothing that says nothing."""

    def small(item: object) -> object:
        if isinstance(item, float):
            return float(f"{item:.4g}")
        if isinstance(item, dict):
            return {k: small(v) for k, v in item.items() if v is not None and v != ""}
        return item

    assert isinstance(value, dict)
    return {key: small(item) for key, item in value.items()}

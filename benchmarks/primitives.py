"""Ours beside MONAI, VoxelMorph (neurite), SimpleITK, ANTs, SciPy: the same arrays, in one run.

    make bench                                       # all of it: about twenty minutes
    python -m benchmarks.primitives --quick          # the two small cases, three rounds
    python -m benchmarks.primitives --only warp --only dice

Each line: the medians of ours and of the fastest peer, peer ÷ ours, what is asked, the peaks of
memory (ours / that peer's), and whether the target is met. A star: fewer than 7 runs, as of every
call that takes more than 5 s. Then every competitor, also those that failed, and the largest
difference of intensity that a saved field makes in SimpleITK and ANTs. On a busy machine the
numbers mean little: the load stands above and below, and what others took beside each line.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import contenders, harness, round_trip
from benchmarks.contenders import CASES, QUICK, Row
from benchmarks.harness import Measure, Outcome

ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"


@dataclass(frozen=True)
class Suite:
    """What one command measures, and where it writes it."""

    program: str
    description: str
    rows: Sequence[Row]
    cases: Mapping[str, tuple[int, ...]]
    quick: Sequence[str]  # the cases of a quick run
    ready: Callable[..., harness.Call]  # for measuring memory in a process of its own
    output: Path
    trips: Callable[[], list[round_trip.Trip]] = list


def primitives_suite() -> Suite:
    """The primitives, and fields that go through files."""
    return Suite(
        program="benchmarks.primitives",
        description=__doc__ or "",
        rows=contenders.ROWS,
        cases=CASES,
        quick=QUICK,
        ready=contenders.ready,
        output=RESULTS,
        trips=round_trip.all_trips,
    )


def measure(
    row: Row, case: str, rounds: int, *, memory: bool = True, suite: Suite | None = None
) -> Outcome:
    """Time everybody on one case, compare what they return, and measure their memory."""
    suite = suite or primitives_suite()
    shape = suite.cases[case]
    inputs = contenders.arrays(shape)
    calls: dict[str, harness.Call] = {}
    measures: dict[str, Measure] = {}
    competitors = {"ours": row.ours, **{name: peer.prepare for name, peer in row.peers.items()}}
    for name, prepare in competitors.items():
        try:
            calls[name] = prepare(inputs)
        except Exception as error:  # missing, or not for these arrays: reported in the table
            measures[name] = Measure(error=harness.one_line(error))
    watch = harness.OthersWatch()
    timed, results = harness.take_turns(calls, rounds)
    others_busy = watch.cores()
    measures |= timed
    for name, result in results.items():
        measures[name].result, measures[name].cosine = agreement(result, results.get("ours"))
    del calls, results, inputs
    gc.collect()
    for name, found in measures.items():
        found.counts = name == "ours" or row.peers[name].counts
        if memory and found.milliseconds is not None:
            found.peak_mb, problem = harness.peak_memory(suite.ready, row.name, name, shape)
            found.error = problem
    return Outcome(
        primitive=row.name,
        case=case,
        target=row.targets.get(case),
        lean=row.lean and memory,
        ours=measures["ours"],
        peers={name: measures[name] for name in row.peers},
        others_busy=others_busy,
    )


def measure_all(
    todo: Sequence[tuple[Row, str]],
    rounds: int,
    outcomes: list[Outcome],
    *,
    memory: bool,
    suite: Suite | None = None,
) -> None:
    """Measure one after the other into ``outcomes``, with a bar, so that Ctrl-C loses one only."""
    terminal = sys.stderr.isatty()
    with tqdm(todo, file=sys.stderr, mininterval=0.2 if terminal else 30, miniters=1) as bar:
        for row, case in bar:
            bar.set_description(f"{row.name}, {case}", refresh=terminal)
            outcomes.append(measure(row, case, rounds, memory=memory, suite=suite))


def agreement(result: object, ours: object) -> tuple[float | None, float | None]:
    """A number as it is; of a tensor, the cosine to ours in the interior (1: one direction)."""
    if not isinstance(result, Tensor):
        return float(result), None  # type: ignore[arg-type]
    if not isinstance(ours, Tensor) or result.shape != ours.shape:
        return None, None
    a, b = (contenders.interior(x).flatten().double() for x in (result, ours))
    return None, float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def chosen(only: Sequence[str], rows: Sequence[Row] | None = None) -> list[Row]:
    """The rows whose names hold one of the words, or all.

    Raises:
        SystemExit: if a word is in no name, with the names.
    """
    rows = contenders.ROWS if rows is None else rows
    for word in only:
        if not any(word.lower() in row.name.lower() for row in rows):
            names = "\n  ".join(row.name for row in rows)
            sys.exit(f"--only: nothing has {word!r} in its name; there are\n  {names}")
    return [
        row for row in rows if not only or any(word.lower() in row.name.lower() for word in only)
    ]


def limit_threads(threads: int) -> None:
    """Let PyTorch, ITK and OpenMP use so many threads, here and in the processes for memory."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = os.environ[ITK_THREADS] = str(threads)
    try:
        import SimpleITK as sitk
    except ImportError:
        return  # reported in the table
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def parser(suite: Suite) -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(
        prog=f"python -m {suite.program}",
        description=suite.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    described.add_argument("--quick", action="store_true", help="small cases only, three rounds")
    described.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="rows with this in a name"
    )
    described.add_argument(
        "--case", action="append", choices=tuple(suite.cases), help="this size of images only"
    )
    described.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="by default, all cores",
    )
    described.add_argument("--no-memory", action="store_true", help="measure time alone")
    described.add_argument(
        "--output",
        type=Path,
        default=suite.output,
        metavar="FILE",
        help=f"JSON, by default {suite.output}",
    )
    return described


def main(argv: Sequence[str] | None = None, suite: Suite | None = None) -> None:
    """Run the command line."""
    suite = suite or primitives_suite()
    options = parser(suite).parse_args(argv)
    rows = chosen(options.only, suite.rows)
    cases = options.case or (suite.quick if options.quick else tuple(suite.cases))
    rounds = 3 if options.quick else harness.ROUNDS
    limit_threads(options.threads)
    warnings.filterwarnings("ignore")  # of other libraries; what fails is in the table
    report: dict[str, object] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": harness.machine(contenders.PACKAGES),
        "threads": torch.get_num_threads(),
        "load_before": harness.load(),
    }
    print(f"{report['machine']}\nload before: {report['load_before']} (1, 5, 15 minutes)")
    outcomes: list[Outcome] = []
    todo = [(row, case) for row in rows for case in cases]
    try:
        measure_all(todo, rounds, outcomes, memory=not options.no_memory, suite=suite)
        trips = [] if options.only else suite.trips()
    except KeyboardInterrupt:
        trips = []
        print(f"Stopped after {len(outcomes)} of {len(todo)}.")
    report |= {"load_after": harness.load(), "round_trips": trips}
    print(f"load after: {report['load_after']}\n\n{harness.table(outcomes)}\n")
    print(f"{harness.details(outcomes)}\n")
    for trip in trips:
        print(round_trip.sentence(trip))
    harness.write_json(options.output, report, outcomes)
    print(f"Written to {options.output}.")


if __name__ == "__main__":
    main()

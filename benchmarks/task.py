"""Ours beside OpenCV, SimpleITK, elastix, ANTs, DIPY on the same pairs: who is right, and how soon.

    python -m benchmarks.task                   # pairs 100 to 109, which nothing was tuned on
    python -m benchmarks.task --seeds tuning    # pairs 0 to 9: all that settings may be chosen by
    python -m benchmarks.task --quick           # three tuning pairs and three real ones
    python -m benchmarks.task --record          # also writes what the lessons quote

The pairs are 224 × 192 slices of 1 mm with a known displacement (`course_lib.datasets.brains`).
Each line: the mean distance from the true displacement inside the fixed labels, Dice of the gray
matter and the mean of three tissues, foldings inside the labels, and the median of the seconds a
pair. After a warm-up each, methods take turns, each pair starting with another one; all with the
same number of threads. Turning arrays into a library's images is not timed, nor is reading its
answer: but every answer is read back and must warp the moving image as the library did, or its row
fails. Then the same methods on slices of real people, if `../shared/data` has them: nobody knows
the truth there, so there is the mean local correlation inside the head, and foldings everywhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import harness, primitives, registrars
from benchmarks.registrars import Registrar
from course_lib.datasets import Pair, brains
from course_lib.evaluation import table as evaluate
from course_lib.losses import lncc
from course_lib.metrics import folding_fraction
from course_lib.spatial import warp

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "task.json"
RECORD = ROOT / "course_lib" / "data" / "task2d.json"
OASIS = ROOT.parent / "shared" / "data" / "oasis2d_first30.npz"
SEEDS = {"reported": range(100, 110), "tuning": range(10)}
QUICK = 3  # pairs of each kind
DISAGREEMENT = 0.02  # of what warping changed; interpolation alone stays far below
PEERS = ("opencv-python-headless", "SimpleITK", "itk-elastix", "antspyx", "dipy")
PACKAGES = ("torch", "numpy", *PEERS)

Measures = dict[str, float]


@dataclass
class Result:
    """What one method did on each pair; ``problem`` says why there is nothing, or not all."""

    seconds: list[float] = field(default_factory=list)
    measures: list[Measures] = field(default_factory=list)
    disagreements: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def summary(self) -> Measures:
        """The means over the pairs and the median of the seconds; empty if anything failed."""
        if self.problem or not self.measures:
            return {}
        names = self.measures[0]
        means = {name: statistics.fmean(m[name] for m in self.measures) for name in names}
        return {**means, "seconds": statistics.median(self.seconds)}


@dataclass(frozen=True)
class Target:
    """What the issue asks of one of ours: error, time and, of some, foldings."""

    ours: str
    error_of: str
    time_of: str
    share: float  # of that method's seconds
    folding: float | None = None  # percent

    @property
    def asked(self) -> str:
        """The target in words."""
        share = "" if self.share == 1 else f"1/{round(1 / self.share)} of "
        words = f"error ≤ {self.error_of}; seconds ≤ {share}{self.time_of}"
        return words if self.folding is None else f"{words}; folding ≤ {self.folding:g} %"


TARGETS = (
    Target("refine", "DIPY SyN-CC", "DIPY SyN-CC", 1.0, folding=0.1),
    Target("network", "ANTs SyN", "DIPY SyN-CC", 1 / 20),
    Target("network + refine", "ANTs SyN-CC", "ANTs SyN-CC", 1 / 5),
)
# Not asked, but fair to know: beside the same methods with the smoothness that suits these pairs.
BEYOND = (
    Target("refine", "DIPY SyN-CC, tuned", "DIPY SyN-CC, tuned", 1.0, folding=0.1),
    Target("network + refine", "ANTs SyN-CC, tuned", "ANTs SyN-CC, tuned", 1 / 5),
)

# ---------------------------------------------------------------------------------------- pairs


def known_pairs(seeds: Sequence[int]) -> list[Pair]:
    """Pairs of the synthetic cohort."""
    return [brains.pair(seed) for seed in seeds]


def real_pairs(path: Path, seed: int = 0) -> list[Pair]:
    """Slices of real people in a seeded ring: everybody is once fixed and once moving."""
    images = torch.from_numpy(np.load(path)["images"]).float().div(255)[:, None, None]
    order = np.random.default_rng(seed).permutation(len(images))
    return [
        Pair(images[a], images[b]) for a, b in zip(order, np.roll(order, -1).tolist(), strict=True)
    ]


def measure_known(displacement: Tensor, pair: Pair) -> Measures:
    """Distance from the truth, overlaps and foldings, as the course's own table has them."""
    row = evaluate({"it": displacement}, pair, brains.TISSUES)["it"]
    overlaps = [row[f"Dice {tissue}"] for tissue in brains.TISSUES.values()]
    return {
        "error_mm": row["error (mm)"],
        "dice_gray": row["Dice gray matter"],
        "dice": statistics.fmean(overlaps),
        "folding_percent": row["folding (%)"],
    }


def measure_real(displacement: Tensor, pair: Pair) -> Measures:
    """Local correlation where the head is, the border's windows left out; foldings everywhere."""
    head = (pair.fixed > 0) & frame(pair.fixed.shape[2:])
    correlation = -lncc(warp(pair.moving, displacement), pair.fixed, mask=head.float())
    folding = 100 * folding_fraction(displacement)
    return {"lncc": float(correlation), "folding_percent": float(folding)}


def frame(shape: Sequence[int], width: int = 4) -> Tensor:
    """Where a window of ``2 · width + 1`` voxels lies inside the image: ``(1, 1, *shape)``."""
    where = torch.zeros(1, 1, *shape, dtype=torch.bool)
    inner = tuple(slice(width, -width) for _ in shape)
    where[(slice(None), slice(None), *inner)] = True
    return where


# -------------------------------------------------------------------------------------- measuring


def compete(
    methods: Sequence[Registrar],
    pairs: Sequence[Pair],
    measure: Callable[[Tensor, Pair], Measures],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Result]:
    """Every method on every pair, in turns after a warm-up on the first; who fails is left out."""
    results = {method.name: Result() for method in methods}
    by_name = {method.name: method for method in methods}
    every = 0.2 if sys.stderr.isatty() else 30
    for name in tqdm(list(results), "warm-up", file=sys.stderr, leave=False, mininterval=every):
        attempt(by_name[name], pairs[0], measure, results[name], clock)
        results[name].seconds.clear()
        results[name].measures.clear()
    bar = tqdm(pairs, "pairs", file=sys.stderr, leave=False, mininterval=every)
    for turn, pair in enumerate(bar):
        for name in harness.in_turn(list(results), turn):
            if not results[name].problem:
                attempt(by_name[name], pair, measure, results[name], clock)
    return results


def attempt(
    method: Registrar,
    pair: Pair,
    measure: Callable[[Tensor, Pair], Measures],
    result: Result,
    clock: Callable[[], float],
) -> None:
    """One method on one pair into its result; what goes wrong becomes its problem."""
    try:
        job = method.prepare(pair.moving, pair.fixed)
        started = clock()
        answer = job.run()
        seconds = clock() - started
        wrong = registrars.disagreement(job, answer, pair.moving)
        if wrong is not None:
            result.disagreements.append(wrong)
            if not wrong < DISAGREEMENT:
                raise ValueError(
                    f"its field, as read here, warps otherwise than it did: {wrong:.3f}"
                )
        result.measures.append(measure(job.field(answer), pair))
        result.seconds.append(seconds)
    except Exception as error:  # another library's, or weights that are not there: in the table
        result.problem = harness.one_line(error)


def verdict(target: Target, summaries: Mapping[str, Measures]) -> str:
    """``yes``, ``NO`` with what was missed, or who did not run."""
    needed = (target.ours, target.error_of, target.time_of)
    if lacking := [name for name in needed if not summaries.get(name)]:
        return f"NO: {', '.join(dict.fromkeys(lacking))} did not run"
    ours = summaries[target.ours]
    met = {
        "error": ours["error_mm"] <= summaries[target.error_of]["error_mm"],
        "time": ours["seconds"] <= target.share * summaries[target.time_of]["seconds"],
        "folding": target.folding is None or ours["folding_percent"] <= target.folding,
    }
    missed = [what for what, reached in met.items() if not reached]
    return f"NO: {', '.join(missed)}" if missed else "yes"


# ---------------------------------------------------------------------------------------- reports

COLUMNS = {
    "error_mm": ("error mm", 3),
    "dice_gray": ("Dice GM", 3),
    "dice": ("Dice mean", 3),
    "lncc": ("local NCC", 3),
    "folding_percent": ("folding %", 3),
    "seconds": ("s", 3),
}


def report(results: Mapping[str, Result]) -> str:
    """One line for each method; those that failed say why."""
    summaries = {name: result.summary for name, result in results.items()}
    known = next((summary for summary in summaries.values() if summary), {})
    shown = [name for name in COLUMNS if name in known]
    rows = [["method", *(COLUMNS[name][0] for name in shown)]]
    for name, summary in summaries.items():
        if summary:
            cells = [f"{summary[column]:.{COLUMNS[column][1]}f}" for column in shown]
        else:
            cells = [f"SKIPPED: {results[name].problem}"]
        rows.append([name, *cells])
    return harness.columns(rows, numbers=range(1, len(shown) + 1))


def verdicts(summaries: Mapping[str, Measures]) -> str:
    """The issue's targets, one line each, and what it does not ask."""
    rows = [["ours", "asked", "met?"]]
    rows += [[target.ours, target.asked, verdict(target, summaries)] for target in TARGETS]
    rows += [[t.ours, f"(not asked) {t.asked}", verdict(t, summaries)] for t in BEYOND]
    return harness.columns(rows)


def legend(methods: Sequence[Registrar]) -> str:
    """What each method was set to."""
    return "\n".join(f"    {method.name:<24}{method.settings}" for method in methods)


def readings(results: Mapping[str, Result]) -> str:
    """How well the fields that were read do what the libraries themselves did."""
    all_of_them = [d for result in results.values() for d in result.disagreements]
    if not all_of_them:
        return "No library's field was read."
    return (
        f"Warping by the {len(all_of_them)} fields read from the libraries differs from their own "
        f"warping by at most {max(all_of_them):.1e} of what warping changes (allowed: "
        f"{DISAGREEMENT:g})."
    )


def rounded(results: Mapping[str, Result]) -> dict[str, Measures]:
    """The table as numbers of four digits; methods that failed are not in it."""
    return {
        name: {key: float(f"{value:.4g}") for key, value in result.summary.items()}
        for name, result in results.items()
        if result.summary
    }


def write(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


# ----------------------------------------------------------------------------------- command line


def chosen(only: Sequence[str]) -> list[Registrar]:
    """The methods whose names hold one of the words, or all; the identity is always among them.

    Raises:
        SystemExit: if a word is in no name, with the names.
    """
    names = [method.name for method in registrars.REGISTRARS]
    for word in only:
        if not any(word.lower() in name.lower() for name in names):
            sys.exit(f"--only: no method has {word!r} in its name; there are\n  {', '.join(names)}")
    return [
        method
        for method in registrars.REGISTRARS
        if not only
        or method.name == "identity"
        or any(word.lower() in method.name.lower() for word in only)
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(
        prog="python -m benchmarks.task",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    described.add_argument(
        "--seeds", choices=tuple(SEEDS), default="reported", help="which pairs of the cohort"
    )
    described.add_argument(
        "--quick", action="store_true", help="a few pairs only, of those for tuning"
    )
    described.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="methods with this in a name"
    )
    described.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores"
    )
    described.add_argument(
        "--oasis", type=Path, default=OASIS, metavar="FILE", help="the slices of real people"
    )
    described.add_argument(
        "--output", type=Path, default=RESULTS, metavar="FILE", help=f"JSON, by default {RESULTS}"
    )
    described.add_argument(
        "--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)} too"
    )
    return described


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    described = parser()
    options = described.parse_args(argv)
    if options.record and (options.quick or options.only):
        described.error("--record: what lessons quote comes from all methods and all pairs")
    methods = chosen(options.only)
    seeds = list(SEEDS["tuning"])[:QUICK] if options.quick else list(SEEDS[options.seeds])
    primitives.limit_threads(options.threads)
    warnings.filterwarnings("ignore")  # of other libraries; what fails is in the table
    head: dict[str, object] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": harness.machine(PACKAGES),
        "threads": torch.get_num_threads(),
        "seeds": seeds,
    }
    print(f"{head['machine']}\nload before: {harness.load()} (1, 5, 15 minutes)")
    watch = harness.OthersWatch()
    known = compete(methods, known_pairs(seeds), measure_known)
    summaries = {name: result.summary for name, result in known.items()}
    print(f"\nPairs {seeds[0]} to {seeds[-1]}, true displacement known\n{report(known)}")
    print(f"{readings(known)}\n")
    if not options.only:
        print(f"{verdicts(summaries)}\n")
    real = compete_on_real(methods, options.oasis, QUICK if options.quick else None)
    print(f"settings\n{legend(methods)}\n")
    print(f"load after: {harness.load()}; others kept {watch.cores():.1f} cores busy")
    found = {**head, "rows": rounded(known), "oasis": rounded(real)}
    details = {
        "settings": {method.name: method.settings for method in methods},
        "verdicts": {target.ours: verdict(target, summaries) for target in TARGETS},
        "skipped": {name: result.problem for name, result in known.items() if result.problem},
    }
    write(options.output, {**found, **details})
    print(f"Written to {options.output}.")
    if options.record:
        write(RECORD, found)
        print(f"Recorded in {RECORD}.")


def compete_on_real(
    methods: Sequence[Registrar], path: Path, count: int | None
) -> dict[str, Result]:
    """The real slices, if they are here; aloud if not."""
    if not path.exists():
        print(f"SKIPPED: the slices of real people are not here ({path}).\n")
        return {}
    pairs = real_pairs(path)[:count]
    results = compete(methods, pairs, measure_real)
    print(f"{len(pairs)} pairs of real people (OASIS), truth unknown\n{report(results)}")
    print(f"{readings(results)}\n")
    return results


if __name__ == "__main__":
    main()

"""The benchmarks' arithmetic: who takes turns, what a ratio is, when a target is met, what is said.

How fast anything is, no test asserts: `make bench` measures it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from benchmarks import contenders, harness, primitives, round_trip
from benchmarks.contenders import CASES, ROWS, Peer, Row
from benchmarks.harness import Measure, Outcome


def outcome(
    ours: float | None, peers: dict[str, float | None], target: float | None = 2.0, **more: object
) -> Outcome:
    times = {name: Measure(milliseconds=value, runs=7) for name, value in peers.items()}
    made = Outcome("warp", "2D", target, False, Measure(milliseconds=ours, runs=7), times)
    for name, value in more.items():
        setattr(made, name, value)
    return made


# ------------------------------------------------------------------------- ratios and verdicts


def test_the_ratio_is_the_fastest_peers_time_over_ours():
    found = outcome(10.0, {"slow": 90.0, "fast": 30.0, "failed": None})
    assert found.fastest_peer == "fast" and found.ratio == 3.0 and found.verdict == "yes"


@pytest.mark.parametrize(
    ("ours", "target", "verdict"),
    [
        (10.0, 3.0, "yes"),
        (10.0, 3.01, "NO: time"),
        (20.0, 1.6, "NO: time"),
        (20.0, 1.5, "yes"),
        (10.0, None, "-"),
        (None, 3.0, "NO: ours failed"),
    ],
)
def test_a_target_is_met_from_its_value_on(ours, target, verdict):
    assert outcome(ours, {"fast": 30.0}, target).verdict == verdict


def test_without_a_peer_there_is_no_ratio_and_no_success():
    for peers in ({}, {"failed": None}):
        found = outcome(10.0, peers)
        assert found.fastest_peer is None and found.ratio is None
        assert found.verdict == "no peer ran"


def test_a_peer_that_does_not_count_is_no_yardstick():
    found = outcome(10.0, {"torch": 30.0, "other": 5.0})
    found.peers["other"].counts = False
    assert found.fastest_peer == "torch" and found.verdict == "yes"


@pytest.mark.parametrize(
    ("ours", "peer", "missed"),
    [
        (100.0, 100.0, []),
        (103.0, 100.0, []),  # 2 % and 1 MB are the noise of the measure
        (103.1, 100.0, ["memory"]),
        (0.9, 0.0, []),
        (1.1, 0.0, ["memory"]),
        (10.0, 100.0, []),
        (None, 100.0, ["memory not measured"]),
        (10.0, None, ["memory not measured"]),
    ],
)
def test_no_more_memory_than_the_fastest_peer(ours, peer, missed):
    assert harness.memory_missed(ours, peer) == missed
    found = outcome(10.0, {"fast": 30.0, "slow": 40.0}, lean=True)
    found.ours.peak_mb, found.peers["fast"].peak_mb = ours, peer
    found.peers["slow"].peak_mb = 1e9  # the fastest peer's memory counts, not the largest
    assert found.verdict == (f"NO: {missed[0]}" if missed else "yes")
    found.target = 4.0
    assert found.verdict == f"NO: {', '.join(['time', *missed])}"
    found.lean = False
    assert found.verdict == "NO: time"


# --------------------------------------------------------------------------------------- turns


class Clock:
    """A clock that stands still unless a call makes it go."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float) -> Callable[[], str]:
        left = list(seconds)

        def run() -> str:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return f"{name}'s result"

        return run


def test_competitors_take_turns_and_the_median_counts():
    clock = Clock()
    calls = {"a": clock.call("a", 3.0, 0.001, 0.1, 0.002), "b": clock.call("b", 0.5)}
    measures, results = harness.take_turns(calls, 3, clock)
    # A warm-up each, which does not count; then rounds that start with another one each time.
    assert clock.order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert measures["a"].milliseconds == pytest.approx(2) and measures["a"].runs == 3
    assert measures["a"].fastest == pytest.approx(1) and measures["a"].slowest == pytest.approx(100)
    assert measures["b"].milliseconds == pytest.approx(500)
    assert results == {"a": "a's result", "b": "b's result"}


def test_what_takes_long_runs_less_often_and_says_so():
    clock = Clock()
    seconds = {"a": 21.0, "b": 6.0, "c": 4.0}
    calls = {name: clock.call(name, value) for name, value in seconds.items()}
    measures, _ = harness.take_turns(calls, 7, clock)
    assert {name: measure.runs for name, measure in measures.items()} == {"a": 1, "b": 3, "c": 7}
    assert [clock.order.count(name) for name in "abc"] == [1 + 1, 1 + 3, 1 + 7]
    assert [harness.milliseconds(measures[name]) for name in "abc"] == ["21000*", "6000*", "4000"]
    assert harness.take_turns({"b": clock.call("b", 6.0)}, 2, clock)[0]["b"].runs == 2


def test_who_fails_is_noted_and_the_others_go_on():
    clock = Clock()

    def fails() -> object:
        raise NotImplementedError("not in\n2D")

    measures, results = harness.take_turns({"a": fails, "b": clock.call("b", 1.0)}, 2, clock)
    assert measures["a"].error == "NotImplementedError: not in 2D"
    assert measures["a"].milliseconds is None and measures["b"].runs == 2
    assert list(results) == ["b"]
    assert harness.take_turns({"a": fails}, 2, clock)[1] == {}


# --------------------------------------------------------------------------------------- memory


def status(path: Path) -> Path:
    path.write_text("Name:\tpython\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\n")
    return path


def test_memory_is_read_in_mb(tmp_path):
    assert harness.memory_now("VmHWM", status(tmp_path / "status")) == 200
    assert harness.memory_now("VmRSS", status(tmp_path / "status")) == 100
    with pytest.raises(ValueError, match="VmX"):
        harness.memory_now("VmX", status(tmp_path / "status"))


def takes_megabytes(megabytes: int, before: int) -> Callable[[], object]:
    held = torch.ones(before, 2**18)  # 1 MB each row; stands before, and does not count

    def call(rows: int = megabytes) -> object:
        made = torch.ones(rows, 2**18)
        return made.sum() + held[0, 0]  # `made` is gone before the call ends

    call(1)  # torch's own code comes into memory now
    return call


def refuses() -> Callable[[], object]:
    raise ModuleNotFoundError("No module named 'voxelmorph'")


NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is only measured on Linux"
)


@NEEDS_PROC
@pytest.mark.parametrize(("megabytes", "before"), [(64, 1), (64, 100), (8, 200)])
def test_the_peak_is_what_a_call_takes_beyond_what_was_there(monkeypatch, megabytes, before):
    monkeypatch.setattr(harness, "PRELOAD", ("torch",))
    peak, error = harness.peak_memory(takes_megabytes, megabytes, before)
    assert error == "" and peak == pytest.approx(megabytes, abs=3)


@NEEDS_PROC
def test_a_peak_that_cannot_be_measured_says_why(monkeypatch):
    monkeypatch.setattr(harness, "PRELOAD", ("torch",))
    assert harness.peak_memory(refuses) == (
        None,
        "ModuleNotFoundError: No module named 'voxelmorph'",
    )


# -------------------------------------------------------------------------------------- reports


def reported() -> list[Outcome]:
    first = outcome(8.125, {"MONAI": 30.0, "neurite": 20.0}, 2.0, lean=True, others_busy=0.4)
    first.ours.peak_mb, first.peers["neurite"].peak_mb = 12.3, 45.6
    first.ours.result, first.peers["MONAI"].cosine = -0.5, 0.99991
    second = outcome(1234.5, {"MONAI": None, "SciPy": 500.0}, None)
    second.primitive, second.ours.runs = "mutual information", 3
    second.peers["MONAI"].error = "ImportError: no module"
    second.peers["SciPy"].counts = False
    return [first, second]


def test_the_table_has_one_line_for_each_outcome():
    lines = harness.table(reported()).splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[0] == "primitive case ours ms fastest peer ms ratio target MB met?"
    assert words[2] == "warp 2D 8.12 20 (neurite) 2.46 2 12 / 46 yes"
    assert words[3] == "mutual information 2D 1234* none ran - - ? / - -"
    assert len({line.index("2D") for line in lines[2:]}) == 1, "columns stand below one another"


def test_the_details_hide_nobody():
    text = harness.details(reported())
    assert "warp, 2D (others kept 0.4 cores busy)" in text
    assert "FAILED: ImportError: no module" in text
    for part in ("value -0.5000", "cosine to ours 0.9999", "(does not count)", "3 runs"):
        assert part in text
    assert len(text.splitlines()) == 2 + 3 + 3


def test_the_json_says_the_same_as_the_table(tmp_path):
    path = tmp_path / "results" / "a.json"
    harness.write_json(path, {"date": "2026-11-22"}, reported())
    found = json.loads(path.read_text())
    assert found["date"] == "2026-11-22"
    first, second = found["outcomes"]
    assert first["ratio"] == 2.462 and first["met"] == "yes" and first["fastest_peer"] == "neurite"
    assert first["ours"]["milliseconds"] == 8.125 and first["peers"]["MONAI"]["cosine"] == 0.9999
    assert second["ratio"] is None and second["met"] == "-"
    assert second["peers"]["MONAI"]["error"] == "ImportError: no module"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"], "a draft is left behind"


def test_the_machine_is_described(tmp_path):
    found = harness.machine(("torch", "no-such-package"))
    assert found["packages"] == {
        "torch": torch.__version__,
        "no-such-package": "not installed",
    }
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: A Processor 3000\n")
    assert harness.processor(tmp_path / "cpuinfo") == "A Processor 3000"


# ----------------------------------------------------------------------------------- contenders

TARGETS = {  # the issue's table, by primitive: at 512², at 96³, at 160×192×224
    "local NCC 9, forward + backward": (5, 5, 2.5),
    "local NCC 9, forward": (None, None, None),
    "mutual information 32, forward + backward": (10, 10, 10),
    "mutual information 32, forward": (3, 3, 3),
    "Dice, 35 labels": (None, None, 2),
    "Jacobian determinant": (1.5, 1.5, 1.5),
    "warp linear, forward": (0.95, 0.95, 0.95),
    "warp linear, forward + backward": (0.95, 0.95, 0.95),
    "warp nearest, forward": (0.95, 0.95, 0.95),
    "warp nearest, forward + backward": (0.95, 0.95, 0.95),
    "scaling and squaring 7, forward": (0.95, 0.95, 0.95),
    "scaling and squaring 7, forward + backward": (0.95, 0.95, 0.95),
    "bending energy, forward + backward": (0.95, 0.95, 0.95),
    "diffusion, forward + backward": (0.95, 0.95, 0.95),
}


def test_the_rows_ask_for_what_the_issue_asks():
    assert {row.name: tuple(row.targets.get(case) for case in CASES) for row in ROWS} == TARGETS
    for row in ROWS:
        asked_lean = row.name.startswith(("local NCC 9, forward +", "warp", "scaling", "bending"))
        assert row.lean == (asked_lean or row.name.startswith("diffusion")), row.name
        assert any(peer.counts for peer in row.peers.values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("shape", [(40, 36), (20, 24, 18)])
def test_ours_and_monai_compute_the_same_thing(row, shape):
    # The peers that the test-suite has: MONAI, SimpleITK, SciPy. Mutual information is estimated
    # in another way by each of them.
    inputs = contenders.arrays(shape)
    ours = row.ours(inputs)()
    compared = 0
    for name, peer in row.peers.items():
        if not name.startswith(("MONAI", "SimpleITK", "SciPy")):
            continue
        value, cosine = primitives.agreement(peer.prepare(inputs)(), ours)
        compared += 1
        if cosine is not None:
            least = 0.9 if "b-spline" not in name and "diffusion" not in row.name else 0.1
            assert cosine > least, f"{name}: {cosine}"
        else:
            assert value is not None and isinstance(ours, float)
            close = 0.35 if "mutual" in row.name else 0.05
            assert value == pytest.approx(ours, rel=close), name
    assert compared


@pytest.mark.parametrize("shape", [(40, 36), (20, 24, 18)])
def test_the_arrays_are_alike_for_all_and_worth_measuring(shape):
    one, two = contenders.arrays(shape), contenders.arrays(shape)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for image in (one.fixed, one.moving):
        assert image.shape == (1, 1, *shape) and image.min() == 0 and image.max() == 1
    for labels in (one.fixed_labels, one.moving_labels):
        assert labels.dtype == torch.int64
        assert set(labels.unique().tolist()) == set(range(contenders.LABELS + 1))
    assert 0.5 < one.displacement.abs().max() < 12
    assert not torch.equal(one.fixed_labels, one.moving_labels)


def test_a_gradient_does_not_grow_from_call_to_call():
    inputs = contenders.arrays((20, 24))
    call = contenders.with_gradient(lambda x: x.square().sum(), "displacement")(inputs)
    first = call().clone()
    torch.testing.assert_close(first, 2 * inputs.displacement)
    torch.testing.assert_close(call(), first)
    assert not inputs.displacement.requires_grad, "the arrays are shared"


def test_the_interior_is_the_middle_of_each_axis():
    assert contenders.interior(torch.zeros(1, 2, 8, 12)).shape == (1, 2, 4, 6)
    assert contenders.interior(torch.zeros(1, 35)).shape == (1, 35)


# ---------------------------------------------------------------------------------- command line


def missing(_: contenders.Arrays) -> harness.Call:
    raise ModuleNotFoundError("No module named 'voxelmorph'")


def test_a_whole_run(monkeypatch, tmp_path, capsys):
    def half(a: contenders.Arrays) -> harness.Call:
        return lambda: a.fixed / 2

    row = Row("halving", half, {"twin": Peer(half), "gone": Peer(missing)}, {"tiny": 1e-9})
    monkeypatch.setattr(contenders, "ROWS", [row])
    monkeypatch.setitem(CASES, "tiny", (32, 32))
    monkeypatch.setattr(primitives, "QUICK", ("tiny",))
    monkeypatch.setattr(
        round_trip, "all_trips", lambda: [{"library": "X", "ndim": 2, "error": "E"}]
    )
    threads: list[int] = []
    monkeypatch.setattr(primitives, "limit_threads", threads.append)
    path = tmp_path / "a.json"
    options = ["--case", "tiny", "--quick", "--no-memory", "--threads", "3"]
    primitives.main([*options, "--output", str(path)])
    assert threads == [3]
    printed = capsys.readouterr().out
    assert "halving" in printed and "(twin)" in printed and "yes" in printed
    assert "FAILED: ModuleNotFoundError: No module named 'voxelmorph'" in printed
    assert "A 2D field saved by us and applied by X: FAILED: E" in printed
    assert "load before: [" in printed and "load after: [" in printed
    found = json.loads(path.read_text())
    assert found["outcomes"][0]["peers"]["twin"]["cosine"] == 1
    assert found["threads"] >= 1 and len(found["load_before"]) == len(found["load_after"])


def test_a_run_that_is_stopped_shows_what_it_has(monkeypatch, tmp_path, capsys):
    def stopped(a: contenders.Arrays) -> harness.Call:
        raise KeyboardInterrupt

    def half(a: contenders.Arrays) -> harness.Call:
        return lambda: a.fixed / 2

    rows = [Row("halving", half, {"twin": Peer(half)}), Row("endless", stopped, {})]
    monkeypatch.setattr(contenders, "ROWS", rows)
    monkeypatch.setitem(CASES, "tiny", (32, 32))
    monkeypatch.setattr(primitives, "QUICK", ("tiny",))
    monkeypatch.setattr(primitives, "limit_threads", lambda threads: None)
    primitives.main(["--quick", "--no-memory", "--output", str(tmp_path / "a.json")])
    printed = capsys.readouterr().out
    assert "Stopped after 1 of 2." in printed and "halving" in printed
    assert len(json.loads((tmp_path / "a.json").read_text())["outcomes"]) == 1


def test_threads_are_limited_here_and_in_processes_to_come(monkeypatch):
    for variable in ("OMP_NUM_THREADS", primitives.ITK_THREADS):
        monkeypatch.setenv(variable, "9")
    primitives.limit_threads(1)
    assert torch.get_num_threads() == 1 == sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    assert os.environ["OMP_NUM_THREADS"] == os.environ[primitives.ITK_THREADS] == "1"


def test_only_picks_by_a_part_of_the_name():
    assert {row.name for row in primitives.chosen(["DICE"])} == {"Dice, 35 labels"}
    assert len(primitives.chosen(["warp", "dice"])) == 5
    assert primitives.chosen([]) == ROWS
    with pytest.raises(SystemExit, match=r"(?s)'cubic'.*Dice, 35 labels"):
        primitives.chosen(["cubic"])


def test_help_says_what_the_numbers_mean(capsys):
    with pytest.raises(SystemExit) as caught:
        primitives.main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for word in (
        "--quick",
        "--only",
        "--threads",
        "--no-memory",
        "--output",
        "make bench",
        "A star",
    ):
        assert word in printed


def test_rows_shorter_than_the_first_run_on_to_the_right():
    rows = [["method", "s"], ["a", "10.5"], ["longest", "SKIPPED"]]
    lines = harness.columns(rows, numbers=[1]).splitlines()
    head, rule, first, last = lines
    assert first.endswith("10.5") and last == "longest  SKIPPED"
    assert set(rule) == {"-"} and len(rule) == max(map(len, lines)) and head.startswith("method ")


def test_each_round_starts_with_another_one():
    rounds = [harness.in_turn(["a", "b", "c"], turn) for turn in range(4)]
    assert ["".join(names) for names in rounds] == ["abc", "bca", "cab", "abc"]
    assert harness.in_turn([], 3) == []


# ------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_round_trip_by_simpleitk(ndim):
    found = round_trip.trip("SimpleITK", round_trip.by_simpleitk, ndim)
    assert found["largest_difference"] < 1e-5 < 0.1 < found["without_the_field"]
    assert found["voxels"] > 3000
    assert "e-0" in round_trip.sentence(found) and "SimpleITK" in round_trip.sentence(found)


def test_a_library_that_fails_on_the_way_is_reported():
    def fails(*_: Path) -> object:
        raise ImportError("no ants")

    found = round_trip.trip("ANTs", fails, 2)
    assert found == {"library": "ANTs", "ndim": 2, "error": "ImportError: no ants"}
    assert round_trip.sentence(found).endswith("applied by ANTs: FAILED: ImportError: no ants")

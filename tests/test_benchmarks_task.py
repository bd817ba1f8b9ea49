"""The 2D task's arithmetic, and whether each library's field is read in its own convention.

How right or how fast a method is, no test asserts: `make bench` measures it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import primitives, registrars, task
from benchmarks.registrars import Job, Registrar
from benchmarks.task import Result, Target
from course_lib.datasets import Pair, brains, halve
from course_lib.losses import lncc
from course_lib.spatial import warp


@pytest.fixture(scope="module")
def pair() -> Pair:
    return halve(brains.pair(1))


# ------------------------------------------------------------------------------- reading the fields

LIBRARIES = {
    "OpenCV DIS": "cv2",
    "SimpleITK Demons": "SimpleITK",
    "elastix B-spline": "itk",
    "ANTs SyN": "ants",
    "DIPY SyN-CC": "dipy",
}


def test_every_library_is_checked() -> None:
    others = {
        method.name.removesuffix("-CC").removesuffix(", tuned").removesuffix("-CC")
        for method in registrars.REGISTRARS
        if not method.name.startswith(("identity", "refine", "network"))
    }
    assert others == {name.removesuffix("-CC") for name in LIBRARIES}


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items(), ids=str)
def test_a_library_warps_as_we_do_by_the_field_that_we_read(
    name: str, library: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)  # all but SimpleITK come with the benchmarks
    monkeypatch.chdir(tmp_path)
    method = next(m for m in registrars.REGISTRARS if m.name == name)
    job = method.prepare(pair.moving, pair.fixed)
    answer = job.run()
    field = job.field(answer)
    assert field.shape == pair.displacement.shape and field.dtype == torch.float32
    agreed = registrars.disagreement(job, answer, pair.moving)
    assert agreed is not None and agreed < task.DISAGREEMENT
    for spoiled in (field.flip(1), -field, 2 * field):
        wrong = registrars.disagreement(job._replace(field=_always(spoiled)), answer, pair.moving)
        assert wrong is not None and wrong > 10 * task.DISAGREEMENT
    before, after = (
        task.measure_known(u, pair)["error_mm"] for u in (torch.zeros_like(field), field)
    )
    assert after < 0.8 * before
    assert list(tmp_path.iterdir()) == [], "it left files behind"


def _always(field: Tensor) -> Callable[[object], Tensor]:
    return lambda answer: field


def test_ours_need_no_reading(pair: Pair) -> None:
    job = registrars.nothing(pair.moving, pair.fixed)
    assert registrars.disagreement(job, job.run(), pair.moving) is None
    assert job.run().shape == pair.displacement.shape and not job.run().any()


# --------------------------------------------------------------------------------------- in turns


class Clock:
    """A clock that stands still unless a method makes it go."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def method(self, name: str, *seconds: float, reads_wrong: float = 0.0) -> Registrar:
        left = list(seconds)

        def prepare(moving: Tensor, fixed: Tensor) -> Job:
            self.now += 100  # preparing is not timed

            def run() -> Tensor:
                self.order.append(name)
                self.now += left.pop(0) if len(left) > 1 else left[0]
                return torch.ones(1, 2, *fixed.shape[2:])

            def field(answer: Tensor) -> Tensor:
                self.now += 1000  # nor is reading
                return answer + reads_wrong

            return Job(run, field, lambda answer: warp(moving, answer))

        return Registrar(name, prepare, "as it comes")


def constant(field: Tensor, pair: Pair) -> task.Measures:
    return {"error_mm": float(field.mean()) * float(pair.fixed.sum())}


def three_pairs() -> list[Pair]:
    noise = torch.rand(3, 1, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    return [Pair(noise[n], torch.full((1, 1, 20, 24), (n + 1) / 480)) for n in range(3)]


def test_methods_take_turns_after_a_warm_up_and_the_median_counts() -> None:
    clock = Clock()
    methods = [clock.method("a", 50.0, 3.0, 1.0, 2.0), clock.method("b", 0.5)]
    results = task.compete(methods, three_pairs(), constant, clock)
    assert clock.order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert results["a"].seconds == pytest.approx([3, 1, 2])
    assert results["a"].summary == pytest.approx({"error_mm": 2.0, "seconds": 2.0})
    assert results["b"].summary["seconds"] == pytest.approx(0.5)


def test_who_fails_is_left_out_and_the_others_go_on() -> None:
    clock = Clock()

    def fails(moving: Tensor, fixed: Tensor) -> Job:
        raise FileNotFoundError("no\nweights")

    methods = [Registrar("network", fails, ""), clock.method("b", 1.0)]
    results = task.compete(methods, three_pairs(), constant, clock)
    assert results["network"].problem == "FileNotFoundError: no weights"
    assert results["network"].summary == {} and len(results["b"].seconds) == 3
    printed = task.report(results)
    assert "SKIPPED: FileNotFoundError: no weights" in printed and "2.000" in printed
    assert list(task.rounded(results)) == ["b"]


def test_a_field_that_is_read_wrong_fails_its_row() -> None:
    clock = Clock()
    methods = [clock.method("right", 1.0), clock.method("wrong", 1.0, reads_wrong=0.5)]
    results = task.compete(methods, three_pairs(), constant, clock)
    assert "warps otherwise" in results["wrong"].problem and not results["right"].problem
    assert results["wrong"].summary == {}


# ---------------------------------------------------------------------------------------- verdicts

TARGET = Target("refine", "SyN", "demons", 1 / 5, folding=0.1)


@pytest.mark.parametrize(
    ("error", "seconds", "folding", "expected"),
    [
        (0.4, 0.2, 0.1, "yes"),
        (0.41, 0.2, 0.1, "NO: error"),
        (0.4, 0.21, 0.1, "NO: time"),
        (0.4, 0.2, 0.11, "NO: folding"),
        (0.5, 0.3, 0.2, "NO: error, time, folding"),
    ],
)
def test_a_target_is_error_and_a_share_of_time(error, seconds, folding, expected) -> None:
    rows = {
        "refine": {"error_mm": error, "seconds": seconds, "folding_percent": folding},
        "SyN": {"error_mm": 0.4, "seconds": 9.0, "folding_percent": 9.0},
        "demons": {"error_mm": 0.1, "seconds": 1.0, "folding_percent": 9.0},
    }
    assert task.verdict(TARGET, rows) == expected


def test_without_a_row_there_is_no_success() -> None:
    assert task.verdict(TARGET, {"SyN": {"error_mm": 1.0, "seconds": 1.0}, "refine": {}}) == (
        "NO: refine, demons did not run"
    )


def test_the_targets_are_the_issues() -> None:
    asked = [(t.ours, t.error_of, t.time_of, t.share, t.folding) for t in task.TARGETS]
    assert asked == [
        ("refine", "DIPY SyN-CC", "DIPY SyN-CC", 1, 0.1),
        ("network", "ANTs SyN", "DIPY SyN-CC", 0.05, None),
        ("network + refine", "ANTs SyN-CC", "ANTs SyN-CC", 0.2, None),
    ]
    names = {method.name for method in registrars.REGISTRARS}
    for target in (*task.TARGETS, *task.BEYOND):
        assert {target.ours, target.error_of, target.time_of} <= names
    assert task.TARGETS[1].asked == "error ≤ ANTs SyN; seconds ≤ 1/20 of DIPY SyN-CC"


# ---------------------------------------------------------------------------------------- measures


def test_known_pairs_are_measured_by_the_courses_table(pair: Pair) -> None:
    found = task.measure_known(pair.displacement, pair)
    assert found["error_mm"] == 0 and 0.6 < found["dice"] <= 1 and found["dice_gray"] > 0.6
    before = task.measure_known(torch.zeros_like(pair.displacement), pair)
    assert before["error_mm"] > 1 and before["dice"] < found["dice"]


def test_real_pairs_are_a_seeded_ring(tmp_path: Path) -> None:
    images = np.arange(6 * 32 * 32).reshape(6, 32, 32) // 1024 * 40
    np.savez(tmp_path / "a.npz", images=images.astype(np.uint8))
    pairs = task.real_pairs(tmp_path / "a.npz")
    moving, fixed = ([round(float(p[n].mean() * 255)) for p in pairs] for n in (0, 1))
    assert sorted(moving) == sorted(fixed) == [0, 40, 80, 120, 160, 200]
    assert fixed == [*moving[1:], moving[0]] and moving != sorted(moving)
    assert [p.moving.shape for p in pairs] == [(1, 1, 32, 32)] * 6
    assert pairs[0].fixed_labels is None


def test_real_pairs_are_measured_inside_the_head(pair: Pair) -> None:
    zero = torch.zeros_like(pair.displacement)
    head = pair.fixed * (pair.fixed_labels > 0)  # stripped of all around it, as the real ones are
    same = task.measure_real(zero, Pair(head, head))
    whole = -float(lncc(head, head))
    assert whole + 0.1 < same["lncc"] < 1, "the empty surroundings would count as disagreement"
    assert same["folding_percent"] == 0
    inner = task.frame(head.shape[2:]).float()  # no zeros in the noisy image: only the frame counts
    noisy = task.measure_real(zero, pair)["lncc"]
    assert noisy == -float(lncc(pair.moving, pair.fixed, mask=inner))
    assert noisy != -float(lncc(pair.moving, pair.fixed))
    folded = zero.clone()
    folded[:, 0, 50] = 9.0
    assert task.measure_real(folded, pair)["folding_percent"] > 0.5


def test_the_frame_leaves_out_windows_that_leave_the_image() -> None:
    where = task.frame((12, 20))
    assert where.shape == (1, 1, 12, 20) and where.sum() == 4 * 12
    assert where[0, 0, 4, 4] and not where[0, 0, 3, 4] and not where[0, 0, 4, 3]
    assert where[0, 0, 7, 15] and not where[0, 0, 8, 15] and not where[0, 0, 7, 16]


# ------------------------------------------------------------------------------------ command line


def whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> dict:
    clock = Clock()
    names = [method.name for method in registrars.REGISTRARS]
    monkeypatch.setattr(registrars, "REGISTRARS", [clock.method(name, 1.0) for name in names])
    monkeypatch.setattr(task, "SEEDS", {"reported": [0], "tuning": [1, 2]})
    monkeypatch.setattr(task, "RECORD", tmp_path / "task2d.json")
    monkeypatch.setattr(task, "known_pairs", lambda seeds: [halve(brains.pair(s)) for s in seeds])
    monkeypatch.setattr(primitives, "limit_threads", lambda threads: None)
    noise = np.random.default_rng(0).integers(1, 255, (2, 32, 32))
    np.savez(tmp_path / "oasis.npz", images=noise.astype(np.uint8))
    output = tmp_path / "out.json"
    oasis = [] if "--oasis" in options else ["--oasis", str(tmp_path / "oasis.npz")]
    task.main([*options, *oasis, "--output", str(output)])
    return json.loads(output.read_text())


def test_a_whole_run_prints_and_writes_the_same(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(task, "ROOT", tmp_path)
    found = whole_run(monkeypatch, tmp_path, "--seeds", "tuning", "--record")
    printed = capsys.readouterr().out
    assert "Pairs 1 to 2" in printed and "2 pairs of real people" in printed
    assert "differs from their own" in printed and "as it comes" in printed
    recorded = json.loads((tmp_path / "task2d.json").read_text())
    assert set(recorded) == {"date", "machine", "threads", "seeds", "rows", "oasis"}
    assert recorded["seeds"] == [1, 2] and recorded == {key: found[key] for key in recorded}
    keys = {"error_mm", "dice_gray", "dice", "folding_percent", "seconds"}
    assert set(recorded["rows"]["DIPY SyN-CC"]) == keys
    assert set(recorded["oasis"]["refine"]) == {"lncc", "folding_percent", "seconds"}
    error = recorded["rows"]["network"]["error_mm"]
    assert f"{error:.3f}" in printed
    assert f"refine            {task.TARGETS[0].asked}" in printed
    assert set(found["verdicts"]) == {target.ours for target in task.TARGETS}


def test_without_the_real_slices_that_is_said(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(task, "ROOT", tmp_path)
    found = whole_run(monkeypatch, tmp_path, "--quick", "--oasis", str(tmp_path / "none"))
    assert "SKIPPED: the slices of real people are not here" in capsys.readouterr().out
    assert found["oasis"] == {} and found["seeds"] == [1, 2]
    assert not (tmp_path / "task2d.json").exists()


@pytest.mark.parametrize("option", [["--quick"], ["--only", "DIS"]])
def test_what_lessons_quote_is_never_half_a_run(option, capsys) -> None:
    with pytest.raises(SystemExit):
        task.main(["--record", *option])
    assert "all methods and all pairs" in capsys.readouterr().err


def test_only_picks_by_a_part_of_the_name_and_keeps_the_identity() -> None:
    assert [m.name for m in task.chosen(["dis"])] == ["identity", "OpenCV DIS"]
    assert task.chosen([]) == registrars.REGISTRARS
    with pytest.raises(SystemExit, match=r"(?s)'cubic'.*OpenCV DIS"):
        task.chosen(["cubic"])


def test_seeds_for_tuning_are_never_those_reported() -> None:
    assert max(task.SEEDS["tuning"]) < 100 and list(task.SEEDS["reported"]) == [*range(100, 110)]


def test_a_result_without_pairs_is_no_result() -> None:
    assert Result().summary == {}
    assert task.readings({"a": Result()}) == "No library's field was read."

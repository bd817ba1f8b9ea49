"""The networks' benchmark and the agreement with voxelmorph 0.2: the parts that need neither.

How fast anything is, no test asserts; that the transcription is the same network, one does.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import benchmarks.__main__ as everything
from benchmarks import contenders, harness, networks, primitives, registrars
from benchmarks import voxelmorph_agreement as agreement
from course_lib import losses
from course_lib.models import VoxelMorph

SHAPES = [(64, 48), (32, 48, 32)]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# -------------------------------------------------------------------------------- the transcription


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
@pytest.mark.parametrize("version", ["", "vm2"])
def test_the_transcription_is_the_same_network(shape, version) -> None:
    a = contenders.arrays(shape)
    ours, plain = networks.ours(a, version), networks.plain(a, version)
    assert parameters(ours) == parameters(plain)
    with torch.no_grad():
        warped, displacement = networks.our_pass(ours)(a.moving, a.fixed)
        plain_warped, plain_displacement = plain(a.moving, a.fixed)
    assert displacement.abs().max() > 1, "fields that go nowhere sample nothing"
    # The velocity is resized by n′/n there, and leaves the image without its border value.
    close = 1e-4 if version else 0.05
    inner = (slice(None), slice(None), *(slice(8, -8) for _ in shape))
    assert (displacement - plain_displacement)[inner].abs().max() < close
    assert (warped - plain_warped)[inner].abs().max() < close


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_plain_losses_are_ours_up_to_rounding(shape) -> None:
    a = contenders.arrays(shape)
    ncc = networks.plain_ncc(a.moving, a.fixed), losses.lncc(a.moving, a.fixed)
    assert float(ncc[0]) == pytest.approx(float(ncc[1]), rel=1e-3)
    smoothness = networks.plain_diffusion(a.displacement), losses.diffusion(a.displacement)
    assert float(smoothness[0]) == pytest.approx(float(smoothness[1]), rel=1e-5)


def test_the_others_are_of_the_size_that_their_names_say() -> None:
    for ndim, shape in ((2, (64, 64)), (3, (32, 32, 32))):
        a = contenders.arrays(shape)
        for name, (make, _, _) in networks.OTHERS.items():
            pytest.importorskip(name.split()[0].lower())
            counts = name.partition("(")[2].rstrip(")").split(" / ")
            assert f"{parameters(make(a)):,}" == counts[ndim - 2], name


@pytest.mark.parametrize("name", ["MSE", "local NCC"])
def test_a_training_step_learns_and_returns_where_it_started(name) -> None:
    a = contenders.arrays((64, 48))
    models: list[nn.Module] = []

    def make(arrays: contenders.Arrays) -> nn.Module:
        models.append(networks.ours(arrays))
        return models[0]

    step = networks.training_step(make, networks.our_pass, networks.our_losses(name), 0.1)(a)
    before = models[0].flow.weight.detach().clone()
    first = step()
    assert step() == first, "the value is of the first step, which all start from"
    assert not torch.equal(models[0].flow.weight, before)
    plain = networks.training_step(
        networks.plain, networks.itself, networks.plain_losses(name), 0.1
    )(a)
    assert plain() == pytest.approx(first, abs=0.03)


def test_the_rows_ask_for_what_the_issue_asks() -> None:
    for row in networks.ROWS:
        asked = None if row.name.endswith("local NCC") else 1.0
        assert [row.targets.get(case) for case in networks.CASES] == [asked, asked], row.name
        assert [name for name, peer in row.peers.items() if peer.counts] == ["plain"]
    assert sum(len(row.peers) for row in networks.ROWS) == 11


def test_a_whole_run_of_the_small_networks(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(networks, "CASES", {"tiny": (32, 48)})
    monkeypatch.setattr(networks, "QUICK", ("tiny",))
    monkeypatch.setattr(primitives, "limit_threads", lambda threads: None)
    monkeypatch.setattr(harness, "ROUNDS", 1)
    output = str(tmp_path / "a.json")
    networks.main(["--quick", "--no-memory", "--only", "vm2", "--output", output])
    printed = capsys.readouterr().out
    assert "vm2, forward" in printed and "(plain)" in printed and "FAILED" not in printed
    assert "cosine to ours 1.0000" in printed and "Written to" in printed
    assert "SimpleITK and ANTs" not in printed and "saved by us" not in printed


def test_memory_is_measured_of_the_same_call() -> None:
    call = networks.ready("vm2, forward", "plain", (32, 48))
    assert isinstance(call(), torch.Tensor)


# ------------------------------------------------------------------------ agreement: names, weights


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("unet.down.0.0.weight", "unet_model.encoder.0.0.main.weight"),
        ("unet.down.3.0.bias", "unet_model.encoder.3.0.main.bias"),
        ("unet.up.0.0.0.weight", "unet_model.decoder.0.0.main.weight"),
        ("unet.up.3.0.0.bias", "unet_model.decoder.3.0.main.bias"),
        ("unet.up.4.0.0.weight", "unet_model.remaining.0.main.weight"),
        ("unet.up.4.2.0.bias", "unet_model.remaining.2.main.bias"),
        ("flow.weight", "flow.weight"),
    ],
)
def test_a_parameter_has_its_name_in_voxelmorph(ours, theirs) -> None:
    assert agreement.theirs_of(ours) == theirs


@pytest.mark.parametrize("name", ["unet.up.3.1.0.weight", "flow.0.weight", "head.weight", "x"])
def test_a_name_of_another_network_is_refused(name) -> None:
    with pytest.raises(ValueError, match="name: expected a parameter"):
        agreement.theirs_of(name)


@pytest.mark.parametrize("ndim", [2, 3])
def test_weights_go_there_and_back(ndim) -> None:
    state = VoxelMorph(ndim).state_dict()
    there = agreement.to_theirs(state)
    assert len(there) == len(state) == 24
    back = agreement.to_ours({**there, "transformer.grid": torch.zeros(1)}, list(state))
    assert list(back) == list(state)
    for name, value in state.items():
        assert back[name] is value


def test_the_head_is_turned_up_to_its_reach() -> None:
    a = contenders.arrays((64, 48))
    model = VoxelMorph(2)
    assert agreement.raw_field(model, a.moving, a.fixed).abs().max() < 0.1
    agreement.scale_head(model, a.moving, a.fixed, 5.0)
    field = agreement.raw_field(model, a.moving, a.fixed).detach()
    assert float(field.abs().max()) == pytest.approx(5.0)


def test_differences_inside_and_at_the_border() -> None:
    a, b = torch.zeros(1, 2, 10, 12), torch.zeros(1, 2, 10, 12)
    b[0, 1, 5, 5], b[0, 0, 1, 5] = 2.0, -4.0
    assert agreement.inside_and_border(a, b, 3) == (2.0, 4.0)
    assert agreement.relative(a, b) == 1.0
    assert agreement.relative(b + 1, b) == 0.25


def numbers(**changed: float) -> dict[str, float]:
    return {
        "raw field, relative difference": 1e-4,
        "no integration: displacement, relative difference": 0.0,
        "weights copied back: largest difference": 0.0,
        **changed,
    }


def test_what_must_agree_fails_the_run_if_it_does_not() -> None:
    assert agreement.failures({2: numbers(), 3: numbers()}) == []
    wrong = numbers(**{"raw field, relative difference": 1.1e-4})
    assert agreement.failures({2: numbers(), 3: wrong}) == [
        "3D raw field, relative difference: 0.00011 > 0.0001"
    ]
    nan = numbers(**{"weights copied back: largest difference": float("nan")})
    assert len(agreement.failures({2: nan})) == 1


def test_the_agreement_is_reported_side_by_side() -> None:
    lines = agreement.report({2: {"parameters": 109170, "x": 0.0123}, 3: {"parameters": 1, "x": 2}})
    assert [line.split() for line in lines.splitlines()[2:]] == [
        ["parameters", "109,170", "1"],
        ["x", "0.012", "2"],
    ]


def test_the_environment_is_made_once(monkeypatch, tmp_path) -> None:
    calls: list[list[str]] = []
    folder = tmp_path / "cache"

    def run(command, **options) -> subprocess.CompletedProcess:
        calls.append(command)
        folder.mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, stdout=f"{folder}\n")

    monkeypatch.setattr(subprocess, "run", run)
    python = agreement.prepare(folder)
    assert python.is_relative_to(folder) and len(calls) == 3
    assert calls[1][-3:] == list(agreement.PACKAGES) and "--no-deps" in calls[1]
    assert any("site-packages" in line for line in (folder / "others.pth").read_text().splitlines())
    assert agreement.prepare(folder) == python and len(calls) == 3
    monkeypatch.setattr(agreement, "PACKAGES", ("voxelmorph==0.1",))
    agreement.prepare(folder)
    assert len(calls) == 6, "other packages: made anew"


# ----------------------------------------------------------------------------------- all of them


def test_each_part_gets_the_words_that_it_knows() -> None:
    parts = list(everything.PARTS)
    assert [c[1] for c in everything.commands(parts, [], False)] == [
        "benchmarks.primitives",
        "benchmarks.networks",
        "benchmarks.task",
        "benchmarks.voxelmorph_agreement",
    ]
    assert [c[1] for c in everything.commands(parts, [], True)] == [
        f"benchmarks.{part}" for part in ("primitives", "networks", "task")
    ]
    assert everything.commands(parts, ["WARP"], True) == [
        ["-m", "benchmarks.primitives", "--quick", "--only", "WARP"]
    ]
    assert everything.commands(parts, ["vm2", "DIS"], False) == [
        ["-m", "benchmarks.networks", "--only", "vm2"],
        ["-m", "benchmarks.task", "--only", "DIS"],
    ]
    assert everything.commands(["task"], [], False) == [["-m", "benchmarks.task"]]
    with pytest.raises(SystemExit, match=r"(?s)'cubic'.*warp.*vm2.*OpenCV DIS"):
        everything.commands(parts, ["cubic"], False)
    with pytest.raises(SystemExit):
        everything.commands(["task"], ["vm2"], False)


def test_a_part_that_fails_does_not_stop_the_others(monkeypatch) -> None:
    ran: list[str] = []

    def run(command) -> subprocess.CompletedProcess:
        assert command[0] == sys.executable
        ran.append(command[2])
        return subprocess.CompletedProcess(command, int(command[2].endswith("networks")))

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"FAILED: benchmarks\.networks$"):
        everything.main([])
    assert len(ran) == 4
    everything.main(["task"])
    with pytest.raises(SystemExit, match="no part 'tasks'"):
        everything.main(["tasks"])
    assert {method.name for method in registrars.REGISTRARS} >= {"refine", "network"}

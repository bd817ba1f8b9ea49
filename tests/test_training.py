"""Training: the loop, its guard, its checkpoints, its scores."""

from __future__ import annotations

import math
import os
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from course_lib import training
from course_lib.datasets import Pair, brains, collate
from course_lib.losses import diffusion, lncc, mse, ncc
from course_lib.models import Prediction, VoxelMorph
from course_lib.spatial import integrate, resize_displacement, smooth, warp
from course_lib.training import History, TrainingStopped, cosine, fit, score, unsupervised

SHAPE = (16, 20)


class Tiny(nn.Module):
    """Two convolutions: a network of the kind that ``fit`` trains, and as small as can be."""

    def __init__(self, ndim: int = 2, seed: int = 0) -> None:
        super().__init__()
        layer = (nn.Conv2d, nn.Conv3d)[ndim - 2]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features = layer(2, 8, 3, padding=1)
            self.flow = layer(8, ndim, 3, padding=1)
        nn.init.zeros_(self.flow.bias)
        self.dropout = nn.Dropout(0.1)

    def forward(self, moving: Tensor, fixed: Tensor) -> Prediction:
        assert moving.device == fixed.device == self.flow.weight.device
        features = self.features(torch.cat([moving, fixed], dim=1)).relu()
        return Prediction(self.flow(self.dropout(features)))


class Constant(nn.Module):
    """The same displacement for every pair, whatever it is."""

    def __init__(self, *displacement: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(displacement))

    def forward(self, moving: Tensor, fixed: Tensor) -> Prediction:
        ndim = moving.ndim - 2
        shift = self.shift.view(1, ndim, *(1,) * ndim)
        return Prediction(shift.expand(len(moving), ndim, *moving.shape[2:]))


def make_pair(seed: int = 0, shape: tuple[int, ...] = SHAPE, shift: float = 1.0) -> Pair:
    """Smooth textures, the moving one ``shift`` voxels down the first axis, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    texture = smooth(torch.rand((1, 1, *shape), generator=generator), 1.5)
    fixed = (texture - texture.min()) / (texture.max() - texture.min())
    truth = torch.zeros(1, len(shape), *shape)
    truth[:, 0] = shift
    moving = warp(fixed, -truth, padding="border")
    labels = [(image > 0.5).long() + (image > 0.7).long() for image in (moving, fixed)]
    return Pair(moving, fixed, labels[0], labels[1], truth, (2.0,) * len(shape))


PAIRS = [make_pair(seed) for seed in range(3)]
quick = partial(fit, steps=6, every=3, progress=False)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def plain(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
    return {"mse": mse(warp(pair.moving, prediction.displacement, padding="border"), pair.fixed)}


# ------------------------------------------------------------------------------------ it learns


@pytest.mark.parametrize("shape", [SHAPE, (10, 12, 11)])
def test_the_loss_falls_to_less_than_half(shape):
    pair, model = make_pair(0, shape), Constant(*[0.0] * len(shape))
    history = fit(model, [pair], plain, steps=40, learning_rate=0.05, progress=False)
    assert history.losses["mse"][-1] < 0.5 * history.losses["mse"][0]
    assert 0.7 < float(model.shift.detach()[0]) < 1.3  # what makes them fit
    assert model.shift.detach()[1:].abs().max() < 0.3


def test_voxelmorph_learns_one_pair():
    torch.manual_seed(0)
    pair, model = make_pair(0, (32, 32), shift=2.0), VoxelMorph(2)
    loss = unsupervised(mse, 0.01)
    history = fit(model, [pair], loss, steps=60, validation=[pair], progress=False)
    total = [sum(parts) for parts in zip(*history.losses.values(), strict=True)]
    assert total[-1] < 0.5 * total[0]
    assert history.validation["error_mm"][-1] < 0.6 * history.validation["error_mm"][0]
    assert history.validation["dice"][-1] > history.validation["dice"][0] + 0.1


def test_the_parts_are_added_as_they_are():
    def loss(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        shift = prediction.displacement[0, :, 0, 0]
        return {"a": 3 * shift[0], "b": -2 * shift[1]}

    model = Constant(0.0, 0.0)
    history = fit(model, PAIRS, loss, steps=1, progress=False)
    assert history.gradients == pytest.approx([math.hypot(3, 2)])
    torch.testing.assert_close(model.shift.detach(), torch.tensor([-1e-3, 1e-3]))


# ------------------------------------------------------------------------------------ the order


def moving_seen(pairs, **settings) -> list[float]:
    """Which moving images came, in order, each known by its sum."""
    seen: list[float] = []
    fit(
        Constant(0.0, 0.0),
        pairs,
        plain,
        every=99,
        progress=False,
        watch=lambda step: seen.extend(round(float(m.sum()), 3) for m in step.pair.moving),
        **settings,
    )
    return seen


def test_every_pair_comes_once_before_any_comes_again():
    pairs = [make_pair(seed) for seed in range(7)]
    all_of_them = sorted(round(float(pair.moving.sum()), 3) for pair in pairs)
    seen = moving_seen(pairs, steps=7, batch=2)
    assert sorted(seen[:7]) == sorted(seen[7:]) == all_of_them
    assert seen[:7] != seen[7:]  # shuffled anew
    assert moving_seen(pairs, steps=14) == seen  # the same order one by one
    assert moving_seen(pairs, steps=14, seed=1) != seen


def test_a_dataset_is_as_good_as_a_list_and_is_only_asked_for_what_is_there():
    class Three(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Pair:
            assert 0 <= index < 3 and isinstance(index, int)
            return PAIRS[index]

    assert moving_seen(Three(), steps=6) == moving_seen(PAIRS, steps=6)


# ------------------------------------------------------------------------- seeds, modes, devices


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    models = [Tiny() for _ in range(3)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    quick(models[0], PAIRS, plain, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)  # what the caller seeded has no influence
    quick(models[1], PAIRS, plain, seed=3)
    quick(models[2], PAIRS, plain, seed=4)
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_randomness_in_the_model_follows_the_seed():
    class Noisy(Constant):
        drawn: list[float]

        def forward(self, moving: Tensor, fixed: Tensor) -> Prediction:
            self.drawn.append(float(torch.rand(())))
            return super().forward(moving, fixed)

    drawn = []
    for seed in (0, 0, 1):
        model = Noisy(0.0, 0.0)
        model.drawn = []
        quick(model, PAIRS, plain, seed=seed)
        drawn.append(model.drawn)
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]
    assert len(set(drawn[0])) == 6  # another number at every step


def test_modes_are_as_they_were_and_learning_happens_in_training_mode():
    model, modes = Tiny(), []
    model.eval()
    model.features.train()

    def note(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        modes.append((torch.is_grad_enabled(), model.dropout.training))
        return plain(prediction, pair)

    quick(model, PAIRS, note, steps=2, every=2, validation=PAIRS[:1])
    assert modes == [(False, False), (True, True), (True, True), (False, False)]
    assert (model.training, model.features.training, model.dropout.training) == (False, True, False)
    with pytest.raises(TrainingStopped):
        quick(
            model, PAIRS, lambda prediction, pair: {"nan": prediction.displacement.sum() * math.nan}
        )
    assert not model.training and model.features.training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_switched_off(mode):
    first, second = Tiny(), Tiny()
    quick(first, PAIRS, plain)
    with mode():
        quick(second, PAIRS, plain)
    assert torch.equal(weights(first), weights(second))


def test_gradients_and_images_are_left_clean():
    model, pair = Tiny(), make_pair()
    kept = pair.moving.clone()
    quick(model, [pair], plain)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(pair.moving, kept)


def test_frozen_parameters_stay():
    model = Tiny()
    model.features.requires_grad_(False)
    kept = model.features.weight.clone(), model.flow.weight.clone()
    quick(model, PAIRS, plain)
    assert torch.equal(model.features.weight, kept[0])
    assert not torch.equal(model.flow.weight, kept[1])


def test_pairs_and_model_go_to_the_device(monkeypatch):
    gone: list[str] = []
    to = Tensor.to

    def spy(tensor: Tensor, *arguments: object, **settings: object) -> Tensor:
        gone.extend(str(a) for a in arguments if isinstance(a, torch.device))
        return to(tensor, *arguments, **settings)

    monkeypatch.setattr(Tensor, "to", spy)
    first, second = Tiny(), Tiny()
    quick(first, PAIRS, plain, device="cpu")
    assert gone.count("cpu") >= 6 * 5  # each part of each pair
    quick(second, PAIRS, plain, device=torch.device("cpu"))
    assert torch.equal(weights(first), weights(second))
    # No kernel runs on "meta": that it is reached shows that model and pairs were both sent there.
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        quick(Tiny(), PAIRS, plain, device="meta")
    assert "meta" in gone
    for nowhere in ("no such device", "cuda:99"):
        with pytest.raises(ValueError, match="device: expected a device of this machine"):
            quick(Tiny(), PAIRS, plain, device=nowhere)


# ------------------------------------------------------------------------------ rate and schedule


def test_the_schedule_multiplies_the_learning_rate():
    def loss(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        return {"down": prediction.displacement[0, 0, 0, 0]}  # slope 1: Adam's step is the rate

    at: list[float] = []
    model = Constant(0.0, 0.0)
    fit(
        model,
        PAIRS,
        loss,
        steps=4,
        learning_rate=0.1,
        schedule=lambda share: 1 - share,
        watch=lambda step: at.append(float(model.shift[0])),
        progress=False,
    )
    taken = [a - b for a, b in zip([0.0, *at], at, strict=False)]
    assert taken == pytest.approx([0.1, 0.075, 0.05, 0.025], rel=1e-4)
    assert [cosine(0), cosine(0.5), cosine(1)] == pytest.approx([1, 0.5, 0])
    assert cosine(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


# --------------------------------------------------------------------- what is told on the way


def test_history_has_a_number_for_every_step_and_every_evaluation():
    history = fit(
        Tiny(), PAIRS, unsupervised(mse, 0.1), steps=7, validation=PAIRS, every=3, progress=False
    )
    assert history.steps == list(range(1, 8))
    assert set(history.losses) == {"mse", "diffusion"}
    assert {len(v) for v in history.losses.values()} == {7}
    assert len(history.folding) == len(history.gradients) == 7
    assert history.evaluated == [0, 3, 6, 7]
    assert set(history.validation) == {"loss", "folding", "dice", "error_mm"}
    assert {len(v) for v in history.validation.values()} == {4}
    text = repr(history)
    assert text.startswith("7 steps") and "validation: dice" in text
    assert repr(History()) == "0 steps"


def test_evaluating_changes_nothing():
    first, second = Tiny(), Tiny()
    quick(first, PAIRS, plain)
    quick(second, PAIRS, plain, validation=PAIRS, every=1)
    assert torch.equal(weights(first), weights(second))


def test_watch_sees_every_step_without_gradients():
    seen, model = [], Tiny()

    def look(step: training.Step) -> None:
        assert not torch.is_grad_enabled()
        assert not step.prediction.displacement.requires_grad
        seen.append((step, model(*PAIRS[0][:2]).displacement))

    history = quick(model, PAIRS, unsupervised(mse, 0.1), watch=look)
    assert [step.number for step, _ in seen] == history.steps
    assert [step.losses["mse"] for step, _ in seen] == history.losses["mse"]
    assert [step.gradient for step, _ in seen] == history.gradients
    assert not torch.equal(seen[0][1], seen[-1][1])
    step = seen[0][0]
    again = unsupervised(mse, 0.1)(step.prediction, step.pair)
    assert float(again["mse"]) == step.losses["mse"]


def test_every_part_of_a_prediction_loses_its_graph():
    part = torch.ones(1, 2, 4, 4, requires_grad=True) * 2
    full = Prediction(part, (part, part), part, part, part, part)
    free = training._detached(full)
    flat = [free.displacement, *free.stages, *free[2:]]
    assert len(flat) == 7 and not any(t.requires_grad for t in flat)
    assert all(torch.equal(t, part) for t in flat)


def test_folding_of_the_batch_is_reported():
    class Folded(Constant):
        def forward(self, moving: Tensor, fixed: Tensor) -> Prediction:
            field = super().forward(moving, fixed).displacement.clone()
            field[:, 0, 5, 5] = -4
            return Prediction(field)

    history = quick(Folded(0.0, 0.0), PAIRS, plain, steps=1)
    assert history.folding[0] > 0
    assert quick(Constant(0.0, 0.0), PAIRS, plain, steps=1).folding == [0]


def test_progress_is_shown_only_when_asked_for(capfd, monkeypatch):
    monkeypatch.setattr(training, "tqdm", partial(training.tqdm, mininterval=0))
    quick(Tiny(), PAIRS, plain)
    assert capfd.readouterr() == ("", "")
    fit(Tiny(), PAIRS, plain, steps=3)
    shown = capfd.readouterr()
    assert shown.out == "" and "mse 0." in shown.err and "folding 0.00%" in shown.err


# ------------------------------------------------------------------------------------ the guard


def stopped(model, loss, pairs=PAIRS, **settings) -> TrainingStopped:
    kept = []
    with pytest.raises(TrainingStopped) as caught:
        fit(
            model,
            pairs,
            loss,
            **{"steps": 30, "progress": False, "watch": lambda _: kept.append(weights(model))}
            | settings,
        )
    error = caught.value
    if kept:  # the step that the guard refused was not taken
        assert len(kept) == error.step - 1
        assert torch.equal(weights(model), kept[-1])
    assert isinstance(error, RuntimeError)
    lines = error._render_traceback_()
    assert len(lines) == 2 and lines == str(error).splitlines()
    assert lines[0].startswith(f"Training stopped at step {error.step}: ")
    assert lines[1].startswith("  Try: ")
    return error


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["similarity", "penalty"])
def test_the_guard_names_the_part_that_is_not_finite(bad, name):
    calls = []

    def loss(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        calls.append(1)
        parts = {key: prediction.displacement.square().mean() for key in ("similarity", "penalty")}
        if len(calls) == 4:
            parts[name] = parts[name] + bad
        return parts

    error = stopped(Tiny(), loss)
    assert (error.step, error.part) == (4, name)
    assert f"the part {name!r} of the loss is {bad}" in str(error)
    other = {"similarity": "penalty", "penalty": "similarity"}[name]
    assert f"({other} " in str(error) and "learning rate" in str(error)


def test_the_guard_finds_a_gradient_that_is_not_finite():
    def loss(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        return {"root": (0 * prediction.displacement).square().sum().sqrt()}  # 0, with slope NaN

    error = stopped(Tiny(), loss)
    assert (error.step, error.part) == (1, "gradient")
    assert "nan long" in str(error) and "square root" in str(error)


@pytest.mark.parametrize("factor, stops", [(90.0, False), (130.0, True)])
def test_the_guard_finds_a_gradient_a_hundred_times_as_long(factor, stops):
    calls = []

    def loss(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        calls.append(1)
        return {"slope": prediction.displacement[0, 0, 0, 0] * (factor if len(calls) == 15 else 1)}

    if not stops:
        assert len(quick(Constant(0.0, 0.0), PAIRS, loss, steps=30).steps) == 30
        return
    error = stopped(Constant(0.0, 0.0), loss)
    assert (error.step, error.part) == (15, "gradient")
    assert "130 times the median of the last 14 steps" in str(error)


def test_the_first_steps_may_be_of_any_length():
    calls = []

    def loss(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        calls.append(1)
        return {"slope": prediction.displacement[0, 0, 0, 0] * 10.0 ** min(len(calls), 6)}

    assert len(quick(Constant(0.0, 0.0), PAIRS, loss, steps=30).steps) == 30


def test_the_guard_finds_a_black_image():
    def away(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        return {"away": -prediction.displacement[:, 0].mean()}

    error = stopped(Constant(0.0, 0.0), away, learning_rate=2.0)
    assert error.part == "warped image" and error.step > 5
    assert "black" in str(error) and "border padding" in str(error)
    # One black image in a batch is enough.
    bright, far = make_pair(0), make_pair(1)
    far = far._replace(moving=far.moving * (torch.arange(16) < 2).view(-1, 1), fixed=far.fixed)
    error = stopped(Constant(5.0, 0.0), plain, [bright, far], batch=2)
    assert (error.step, error.part) == (1, "warped image")


def test_a_dark_image_is_not_black():
    pair = make_pair()
    dark = pair._replace(moving=0.05 * pair.moving, displacement=None)
    assert len(quick(Constant(0.0, 0.0), [dark], plain).steps) == 6
    dark = pair._replace(fixed=0.05 * pair.fixed, displacement=None)
    assert len(quick(Constant(0.0, 0.0), [dark], plain).steps) == 6


def test_what_the_fixed_image_does_not_show_may_leave():
    pair = make_pair()
    field = torch.zeros(1, 2, *SHAPE)
    field[:, 0] = 15.0  # only the last row is left, as in the fixed image
    fixed = warp(pair.moving, field)
    assert fixed.sum() < 0.1 * pair.moving.sum()
    found = quick(Constant(15.0, 0.0), [pair._replace(fixed=fixed)], plain, steps=1)
    assert found.steps == [1]


@pytest.mark.parametrize("name", ["moving", "fixed"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 0.4])
def test_images_that_teach_nothing_are_refused(name, value):
    pair = make_pair()
    image = pair.moving.clone()
    if math.isfinite(value):
        image.fill_(value)
    else:
        image[0, 0, 3, 4] = value
    words = "every voxel is" if math.isfinite(value) else "finite"
    for run in (lambda p: quick(Tiny(), p, plain), lambda p: score(Tiny(), p)):
        with pytest.raises(ValueError, match=rf"pairs\[0\]\.{name}: .*{words}"):
            run([pair._replace(**{name: image})])


# ------------------------------------------------------------------------------- the checkpoint


@pytest.mark.parametrize("loss", [plain, unsupervised(mse, 0.1)])
def test_twenty_steps_at_once_equal_ten_and_ten(tmp_path, loss):
    file = tmp_path / "new folder" / "training.pt"
    settings = {"batch": 2, "validation": PAIRS[:2], "every": 5, "progress": False}
    once, twice = Tiny(), Tiny()
    expected = fit(once, PAIRS, loss, steps=20, **settings)
    fit(twice, PAIRS, loss, steps=10, checkpoint=file, **settings)
    other = Tiny(seed=9)  # all that counts is in the file
    torch.rand(3)
    found = fit(other, PAIRS, loss, steps=20, checkpoint=str(file), **settings)
    assert torch.equal(weights(once), weights(other))
    assert found == expected
    assert not torch.equal(weights(twice), weights(once))
    # All the steps are in it: nothing is left to be done.
    again = Tiny(seed=8)
    assert fit(again, PAIRS, loss, steps=20, checkpoint=file, **settings) == expected
    assert torch.equal(weights(again), weights(once))
    assert [path.name for path in file.parent.iterdir()] == ["training.pt"]


def test_an_interrupted_training_goes_on_under_its_schedule(tmp_path):
    file = tmp_path / "training.pt"
    settings = {"steps": 12, "schedule": cosine, "every": 4, "progress": False}

    def interrupt(step: training.Step) -> None:
        if step.number == 6:
            raise KeyboardInterrupt

    once, twice = Tiny(), Tiny()
    expected = fit(once, PAIRS, plain, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(twice, PAIRS, plain, checkpoint=file, watch=interrupt, **settings)
    numbers = []
    found = fit(
        twice, PAIRS, plain, checkpoint=file, watch=lambda s: numbers.append(s.number), **settings
    )
    assert numbers == list(range(5, 13))
    assert found == expected and torch.equal(weights(once), weights(twice))


@pytest.mark.parametrize("where", ["save", "fsync", "replace"])
def test_a_kill_in_the_middle_of_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch, where):
    file = tmp_path / "training.pt"
    quick(Tiny(), PAIRS, plain, steps=3, checkpoint=file)
    before = file.read_bytes()

    class Killed(BaseException):
        pass

    def kill(*arguments: object, **_: object) -> None:
        if where == "save":
            arguments[1].write(b"half a file")  # type: ignore[attr-defined]
        raise Killed

    monkeypatch.setattr(torch if where == "save" else os, where, kill)
    with pytest.raises(Killed):
        quick(Tiny(), PAIRS, plain, steps=6, checkpoint=file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
    monkeypatch.undo()
    assert len(quick(Tiny(), PAIRS, plain, steps=6, checkpoint=file).steps) == 6


@pytest.mark.parametrize(
    "key, other",
    [
        ("learning_rate", {"learning_rate": 1e-2}),
        ("batch", {"batch": 2}),
        ("seed", {"seed": 7}),
        ("schedule", {"schedule": cosine}),
        ("loss", {"loss": unsupervised(mse, 0.2)}),
        ("loss", {"loss": unsupervised(ncc, 0.1)}),
        ("pairs", {"pairs": PAIRS[:2]}),
        ("model", {"model": Constant(0.0, 0.0)}),
        ("model", {"model": nn.Sequential(nn.Linear(2, 2))}),
    ],
)
def test_a_checkpoint_of_another_model_or_recipe_is_refused(tmp_path, key, other):
    file = tmp_path / "training.pt"
    usual = {"model": Tiny(), "pairs": PAIRS, "loss": unsupervised(mse, 0.1), "checkpoint": file}
    quick(**usual)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=f"made with another {key}: .*delete it"):
        quick(**(usual | other))
    assert file.read_bytes() == before


def test_steps_of_a_schedule_belong_to_the_recipe(tmp_path):
    file = tmp_path / "training.pt"
    quick(Tiny(), PAIRS, plain, checkpoint=file, schedule=cosine)
    with pytest.raises(ValueError, match="cosine over 8 steps, it has cosine over 6 steps"):
        quick(Tiny(), PAIRS, plain, checkpoint=file, schedule=cosine, steps=8)


def test_a_checkpoint_that_went_farther_is_refused(tmp_path):
    file = tmp_path / "training.pt"
    quick(Tiny(), PAIRS, plain, checkpoint=file)
    with pytest.raises(ValueError, match="holds 6 steps already, more than the 4"):
        quick(Tiny(), PAIRS, plain, checkpoint=file, steps=4)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "cut", "other"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "training.pt"
    quick(Tiny(), PAIRS, plain, checkpoint=file)
    if content == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif content == "other":
        torch.save({"weights": torch.ones(3)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint: .*training\.pt is none that fit wrote"):
        quick(Tiny(), PAIRS, plain, checkpoint=file)


def test_a_checkpoint_runs_no_code(tmp_path):
    file = tmp_path / "training.pt"
    quick(Tiny(), PAIRS, plain, checkpoint=file)
    content = torch.load(file, weights_only=True)
    assert set(content) == {"recipe", "model", "optimizer", "history"}

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save(content | {"harm": Harm()}, file)
    with pytest.raises(ValueError, match="none that fit wrote"):
        quick(Tiny(), PAIRS, plain, checkpoint=file)
    assert not (tmp_path / "harm").exists()


# ------------------------------------------------------------------------------------ the losses


def test_unsupervised_is_a_similarity_and_a_weighted_penalty():
    pair = make_pair()
    field = 0.5 * torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    parts = unsupervised(ncc, 3.0)(Prediction(field), pair)
    assert list(parts) == ["ncc", "diffusion"]
    warped = warp(pair.moving, field, padding="border")
    torch.testing.assert_close(parts["ncc"], ncc(warped, pair.fixed))
    torch.testing.assert_close(parts["diffusion"], 3 * diffusion(field))
    assert list(unsupervised()(Prediction(field), pair)) == ["lncc", "diffusion"]
    assert float(unsupervised()(Prediction(field), pair)["diffusion"]) == float(diffusion(field))


def test_the_penalty_is_that_of_the_velocity_where_there_is_one():
    velocity = torch.randn(1, 2, 8, 10, generator=torch.Generator().manual_seed(0))
    field = torch.zeros(1, 2, *SHAPE)
    parts = unsupervised(mse, 2.0)(Prediction(field, velocity=velocity), make_pair())
    torch.testing.assert_close(parts["diffusion"], 2 * diffusion(velocity))


def test_names_come_through_partial_and_from_classes():
    class Edges:
        def __call__(self, warped: Tensor, fixed: Tensor) -> Tensor:
            return mse(warped, fixed)

    prediction = Prediction(torch.zeros(1, 2, *SHAPE))
    loss = unsupervised(partial(lncc, window=5), 0.5)
    assert list(loss(prediction, make_pair())) == ["lncc", "diffusion"]
    assert training._name(loss) == "lncc + 0.5 diffusion"
    assert list(unsupervised(Edges())(prediction, make_pair())) == ["Edges", "diffusion"]


def test_outside_the_image_there_is_still_a_gradient():
    model = Constant(14.0, 0.0)  # most voxels look beyond the last row
    with torch.enable_grad():
        pair = make_pair()
        unsupervised(mse)(model(pair.moving, pair.fixed), pair)["mse"].backward()
    assert model.shift.grad is not None and float(model.shift.grad[0]) != 0
    far = Prediction(torch.full((1, 2, *SHAPE), 100.0))
    value = float(unsupervised(mse)(far, pair)["mse"])
    corner = (pair.moving[..., -1, -1] - pair.fixed).square().mean()
    assert value == pytest.approx(float(corner), rel=1e-5)


def test_what_the_docstring_says_of_the_weights_is_measured():
    gains: dict[str, list[float]] = {"lncc": [], "mse": [], "diffusion": []}
    for seed in range(4):
        pair = brains.pair(seed)
        assert pair.displacement is not None
        warped = warp(pair.moving, pair.displacement, padding="border")
        for function in (lncc, mse):
            gain = function(pair.moving, pair.fixed) - function(warped, pair.fixed)
            gains[function.__name__].append(float(gain))
        gains["diffusion"].append(float(diffusion(pair.displacement)))
    means = {name: sum(values) / 4 for name, values in gains.items()}
    assert means["lncc"] == pytest.approx(0.25, abs=0.01)
    assert means["mse"] == pytest.approx(0.016, abs=0.001)
    assert means["diffusion"] == pytest.approx(0.020, abs=0.001)
    assert means["lncc"] > 10 * means["diffusion"]  # λ = 1: worth its price
    assert means["mse"] < means["diffusion"]  # λ = 1: too dear
    assert means["mse"] > 10 * 0.01 * means["diffusion"]


def test_differences_of_a_velocity_are_slopes_at_any_resolution():
    generator = torch.Generator().manual_seed(0)
    velocity = 3 * smooth(torch.randn((1, 2, 96, 96), generator=generator), 8.0)
    half = resize_displacement(velocity, (48, 48))
    assert float(diffusion(half)) == pytest.approx(float(diffusion(velocity)), rel=0.05)


# ------------------------------------------------------------------------------------ the scores


def test_scores_of_the_truth_and_of_the_identity():
    pair = make_pair(shift=2.0)
    perfect, still = score(Constant(2.0, 0.0), [pair]), score(Constant(0.0, 0.0), [pair])
    assert perfect["error_mm"] == 0 and still["error_mm"] == pytest.approx(4.0)  # 2 mm a voxel
    assert perfect["dice"] > 0.95 > still["dice"]
    assert set(perfect) == {"folding", "dice", "error_mm"}
    assert "loss" in score(Constant(0.0, 0.0), [pair], plain)


def test_scores_are_means_over_the_pairs():
    pairs = [make_pair(0, shift=1.0), make_pair(1, shift=3.0)]
    model = Constant(0.0, 0.0)
    both, alone = score(model, pairs, plain), [score(model, [pair], plain) for pair in pairs]
    for name in both:
        assert both[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2)
    assert both["error_mm"] == pytest.approx(4.0)


def test_the_error_counts_inside_the_fixed_labels():
    pair = make_pair()
    labels = torch.zeros_like(pair.fixed_labels)
    labels[..., 4:8, 4:8] = 1
    truth = torch.zeros_like(pair.displacement)
    truth[:, 1, 4:8, 4:8] = 3.0
    inside = pair._replace(fixed_labels=labels, displacement=truth, spacing=None)
    assert score(Constant(0.0, 0.0), [inside])["error_voxels"] == pytest.approx(3.0)
    outside = inside._replace(fixed_labels=None)
    found = score(Constant(0.0, 0.0), [outside])
    assert found["error_voxels"] == pytest.approx(3 * 16 / 320)
    assert set(found) == {"folding", "error_voxels"}


def test_a_structure_that_one_item_of_a_batch_lacks_does_not_count_there():
    pair = make_pair()
    assert pair.fixed_labels is not None
    small = pair._replace(moving_labels=pair.fixed_labels, displacement=None)
    lacking = small._replace(
        moving_labels=pair.fixed_labels.clamp(max=1), fixed_labels=pair.fixed_labels.clamp(max=1)
    )
    assert score(Constant(0.0, 0.0), [collate([small, lacking])])["dice"] == 1


def test_only_what_all_pairs_know_is_scored():
    known, unknown = make_pair(), Pair(*make_pair()[:2])
    assert set(score(Constant(0.0, 0.0), [known, unknown])) == {"folding"}


def test_scoring_takes_functions_and_leaves_modes():
    def still(moving: Tensor, fixed: Tensor) -> Prediction:
        return Prediction(torch.zeros(1, 2, *SHAPE))

    assert score(still, PAIRS) == score(Constant(0.0, 0.0), PAIRS)
    model = Tiny().train()
    assert score(model, PAIRS) == score(model, PAIRS)  # no dropout: in eval mode
    assert model.training and model.dropout.training


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "changed, error, words",
    [
        ({"model": lambda m, f: None}, TypeError, "model: expected a torch.nn.Module"),
        ({"model": nn.ReLU()}, ValueError, "model: expected parameters"),
        ({"model": nn.Bilinear(20, 20, 2)}, TypeError, "model: expected to return a Prediction"),
        ({"pairs": PAIRS[0]}, TypeError, r"write \[pair\]"),
        ({"pairs": []}, ValueError, "pairs: expected at least one"),
        ({"pairs": iter(PAIRS)}, TypeError, "pairs: expected a list"),
        ({"pairs": [1]}, TypeError, r"pairs\[0\]: expected a Pair"),
        ({"validation": PAIRS[0]}, TypeError, "validation: .*one Pair"),
        ({"validation": []}, ValueError, "validation: expected at least one"),
        ({"loss": None}, TypeError, "loss: expected a function"),
        (
            {"loss": lambda p, q: p.displacement.mean()},
            TypeError,
            "loss: expected to return a dict",
        ),
        ({"loss": lambda p, q: {}}, TypeError, "loss: expected to return a dict"),
        ({"loss": lambda p, q: {"a": 1.0}}, TypeError, "'a' is float"),
        ({"loss": lambda p, q: {"a": p.displacement}}, TypeError, r"'a' is \(1, 2, 16, 20\)"),
        ({"loss": lambda p, q: {"a": p.displacement.mean().detach()}}, ValueError, "detached"),
        ({"steps": -1}, ValueError, "steps: "),
        ({"steps": 2.5}, ValueError, "steps: "),
        ({"batch": 0}, ValueError, "batch: "),
        ({"every": 0}, ValueError, "every: "),
        ({"seed": -1}, ValueError, "seed: "),
        ({"learning_rate": -1.0}, ValueError, "learning_rate: "),
        ({"learning_rate": "fast"}, TypeError, "learning_rate: "),
        ({"schedule": 0.5}, TypeError, "schedule: expected a function"),
        ({"watch": 3}, TypeError, "watch: expected a function"),
    ],
)
def test_wrong_arguments_are_named(changed, error, words):
    usual = {"model": Tiny(), "pairs": PAIRS, "loss": plain}
    with pytest.raises(error, match=words):
        quick(**(usual | changed))


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((None,), TypeError, "similarity: "),
        ((lncc, -1.0), ValueError, "weight: "),
        ((lncc, 1.0, "smooth"), TypeError, "regularizer: "),
        ((lambda a, b: a, 1.0, lambda u: u), ValueError, "regularizer: expected another name"),
    ],
)
def test_wrong_losses_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        unsupervised(*arguments)


def test_no_steps_are_no_steps():
    model = Tiny()
    before = weights(model).clone()
    history = fit(model, PAIRS, plain, steps=0, validation=PAIRS, progress=False)
    assert history.steps == [] and history.evaluated == [0]
    assert torch.equal(weights(model), before)


def test_velocities_are_integrated_by_the_model_not_by_the_loss():
    velocity = torch.full((1, 2, *SHAPE), 0.5)
    prediction = Prediction(integrate(velocity), velocity=velocity)
    pair = make_pair()
    direct = unsupervised(mse, 0.0)(Prediction(integrate(velocity)), pair)["mse"]
    assert float(unsupervised(mse, 0.0)(prediction, pair)["mse"]) == float(direct)

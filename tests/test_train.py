"""The script that makes the weights: a small recipe from the command line to the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from authoring import train
from authoring.train import Family, Phase, Recipe
from course_lib.datasets.cohort import Cohort
from course_lib.models import VoxelMorph
from course_lib.training import score

SMALL = Recipe("lncc", 0.5, (Phase(4, size=2, learning_rate=3e-3), Phase(3)), pairs=5)
RECIPES = {
    "small": SMALL,
    "small-mse": Recipe("mse", 0.01, (Phase(2),), pairs=5),
    "small-lambdas": Family(
        Recipe("lncc", 0.5, (Phase(2),), velocity=False, start="small"), weights=(0.1, 10.0)
    ),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs, made once."""
    folder = tmp_path_factory.mktemp("pairs")
    Cohort([0, 1, 80, 81, 100], folder=folder).prepare(progress=False)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, cohort):
    """Small recipes, few pairs, and folders of their own: ``run(*arguments)`` and those folders."""
    cache, weights = tmp_path / "cache", tmp_path / "weights"
    cache.mkdir()
    (cache / "cohort").symlink_to(cohort)
    monkeypatch.setattr(train, "RECIPES", RECIPES)
    monkeypatch.setattr(train, "TRAINING", range(2))
    monkeypatch.setattr(train, "VALIDATION", range(80, 82))
    monkeypatch.setattr(train, "EVERY", 2)

    def run(*arguments: str) -> int:
        return train.main([*arguments, "--cache", str(cache), "--weights", str(weights)])

    return run, cache, weights


def test_a_recipe_becomes_weights_with_a_card_and_a_page(here, capsys):
    run, cache, weights = here
    assert run("small") == 0
    card = json.loads((weights / "small.json").read_text("utf-8"))
    assert card["steps"] == [4, 3] and card["finished"]
    assert card["network"] == {"ndim": 2, "velocity": True} and card["parameters"] == 109_170
    assert [curve["step"] for curve in card["curves"]] == [[0, 2, 4], [0, 2, 3]]
    assert card["recipe"]["phases"][0] == {"steps": 4, "size": 2, "learning_rate": 3e-3}
    assert card["cpu_minutes"] > 0
    model = VoxelMorph(2)
    model.load_state_dict(load_file(weights / "small.safetensors"))
    pairs = Cohort(range(80, 82), folder=cache / "cohort")
    for name, value in score(model.eval(), pairs).items():
        assert card["scores"]["network"][name] == pytest.approx(value, abs=1e-3)
    for name, value in score(train.identity, pairs).items():
        assert card["scores"]["identity"][name] == pytest.approx(value, abs=1e-3)
    assert card["scores"]["identity"]["error_mm"] > 2
    assert card["probe"]["seed"] == 80
    page = (weights / "README.md").read_text("utf-8")
    assert page == train.readme(weights) and "Preliminary" not in page
    assert f"| network | {card['scores']['network']['error_mm']:.3f} |" in page
    assert sorted(p.name for p in weights.iterdir()) == [
        "README.md",
        "small.json",
        "small.safetensors",
    ]
    assert oct((weights / "small.safetensors").stat().st_mode)[-3:] != "600"
    assert '"error_mm"' in capsys.readouterr().out


def test_interrupted_twice_gives_the_same_weights(here):
    run, cache, weights = here
    assert run("small") == 0
    expected = load_file(weights / "small.safetensors")
    for path in [*weights.iterdir(), *cache.glob("small.*")]:
        path.unlink()
    assert run("small", "--minutes", "0") == 0  # stops after the first checkpoint
    assert not weights.exists() or not list(weights.glob("small*"))
    assert (cache / "small.1.pt").exists() and not (cache / "small.2.pt").exists()
    assert run("small", "--export") == 0  # as far as it went
    card = json.loads((weights / "small.json").read_text("utf-8"))
    assert card["steps"] == [2] and not card["finished"]
    assert "Preliminary" in (weights / "README.md").read_text("utf-8")
    assert run("small", "--resume", "--minutes", "0") == 0
    assert run("small", "--resume") == 0
    found = load_file(weights / "small.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    minutes = float((cache / "small.minutes").read_text())
    assert run("small", "--resume") == 0  # nothing is left to do, and nothing changes
    again = load_file(weights / "small.safetensors")
    assert all(torch.equal(again[key], expected[key]) for key in expected)
    assert float((cache / "small.minutes").read_text()) == minutes > 0


def test_finished_work_is_not_thrown_away(here, capsys):
    run, cache, _ = here
    assert run("small-mse") == 0
    before = (cache / "small-mse.1.pt").read_bytes()
    capsys.readouterr()
    assert run("small-mse") == 1
    said = capsys.readouterr().out
    assert "--resume goes on" in said and "small-mse.1.pt" in said
    assert (cache / "small-mse.1.pt").read_bytes() == before


def test_another_recipe_is_another_training(here, monkeypatch):
    run, _, _ = here
    assert run("small-mse") == 0
    other = RECIPES | {"small-mse": Recipe("mse", 0.02, (Phase(2),), pairs=5)}
    monkeypatch.setattr(train, "RECIPES", other)
    with pytest.raises(ValueError, match="made with another loss"):
        run("small-mse", "--resume")


def test_a_family_keeps_the_fields_of_one_pair_and_the_scores_of_others(here):
    run, cache, weights = here
    assert run("small") == 0
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run("small-lambdas", "--export")
    assert run("small-lambdas") == 0
    kept = load_file(weights / "small-lambdas.safetensors")
    assert kept["weights"].tolist() == pytest.approx([0.1, 10.0])
    assert kept["displacements"].shape == (2, 2, 224, 192)
    pairs, shown = (Cohort(seeds, folder=cache / "cohort") for seeds in (range(80, 82), [100]))
    for number, weight in enumerate(("0.1", "10")):
        model = VoxelMorph(2, velocity=False)
        content = torch.load(cache / f"small-lambdas-{weight}.1.pt", weights_only=True)
        model.load_state_dict(content["model"])
        with torch.no_grad():
            field = model.eval()(shown[0].moving, shown[0].fixed).displacement[0]
        torch.testing.assert_close(kept["displacements"][number].float(), field, atol=5e-3, rtol=0)
        for name, value in score(model, pairs).items():
            assert float(kept[name][number]) == pytest.approx(value, abs=1e-4)
    card = json.loads((weights / "small-lambdas.json").read_text("utf-8"))
    assert card["weights"] == [0.1, 10.0] and card["shown"] == 100 and card["scored"] == [80, 81]
    assert list(card["scores"]) == ["identity", "λ = 0.1", "λ = 10"]
    page = (weights / "README.md").read_text("utf-8")
    assert "starting from `small`" in page and "| λ = 10 |" in page
    # Unfinished members are not written.
    next(cache.glob("small-lambdas-10.1.pt")).unlink()
    with pytest.raises(FileNotFoundError, match=r"small-lambdas-10"):
        run("small-lambdas", "--export")


def test_recipes_are_listed(capsys):
    assert train.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in train.RECIPES)
    assert train.main([]) == 0 and capsys.readouterr().out == listed
    with pytest.raises(SystemExit):
        train.main(["no such recipe"])
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "--resume" in capsys.readouterr().out


def test_no_seed_that_is_reported_is_trained_on_or_scored():
    assert max(train.TRAINING) < min(train.VALIDATION) and max(train.VALIDATION) < 100
    for recipe in train.RECIPES.values():
        base = recipe.base if isinstance(recipe, Family) else recipe
        assert "seeds 0 to 79" in train.data_of(base) and "80 to 99" in train.data_of(base)
        assert base.similarity in train.SIMILARITIES
        assert base.start is None or base.start in train.RECIPES


def test_half_size_pairs_are_half_the_size(cohort):
    pairs = Cohort([0], folder=cohort)
    assert train.halved(pairs, 1) is pairs
    assert train.halved(pairs, 2)[0].fixed.shape == (1, 1, 112, 96)

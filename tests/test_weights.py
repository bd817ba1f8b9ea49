"""The weights that ship are small, have a card, and reach what it says."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import course_lib
from authoring import train
from course_lib.datasets import brains
from course_lib.losses import lncc
from course_lib.metrics import folding_fraction
from course_lib.models import VoxelMorph, pretrained
from course_lib.spatial import warp
from course_lib.training import score

FOLDER = Path(course_lib.__file__).parent / "weights"
FILES = sorted(FOLDER.glob("*.safetensors"))
CARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")}
NETWORKS = [name for name, card in CARDS.items() if "network" in card]
FAMILIES = [name for name, card in CARDS.items() if "shown" in card]


def test_every_file_is_small_and_has_a_card_and_a_recipe():
    assert {path.stem for path in FILES} == set(CARDS) == set(train.RECIPES)
    for path in FILES:
        assert path.stat().st_size < 2e6, path.name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == CARDS[path.stem]["sha256"]
    others = {
        path.name for path in FOLDER.iterdir() if path.suffix not in {".safetensors", ".json"}
    }
    assert others - {"__pycache__"} == {"__init__.py", "README.md"}


def test_the_wheel_takes_them_along():
    settings = tomllib.loads((FOLDER.parent.parent / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["course_lib.weights"]
    for path in FOLDER.iterdir():
        assert path.is_dir() or path.suffix == ".py" or any(map(path.match, patterns)), path.name


def test_the_page_about_them_is_the_one_that_is_made():
    assert (FOLDER / "README.md").read_text("utf-8") == train.readme(FOLDER)
    assert all(f"## {name}\n" in train.readme(FOLDER) for name in CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_the_recipe_is_the_one_that_was_followed(name):
    recipe, card = train.RECIPES[name], CARDS[name]
    family = isinstance(recipe, train.Family)
    base = recipe.base if isinstance(recipe, train.Family) else recipe
    kept = json.loads(json.dumps(train.recipe_of(base)))
    assert card["recipe"] == kept and card["seed"] == base.seed
    assert card["data"] == train.data_of(base)
    assert card["cpu_minutes"] > 0 and card["versions"]["torch"]
    if family:
        assert tuple(card["weights"]) == recipe.weights and card["shown"] == recipe.shown
    else:
        assert card["finished"], "preliminary weights: train them to the end"
        assert card["steps"] == [phase.steps for phase in base.phases]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_loads_and_reaches_what_its_card_says(name):
    model, card = pretrained(name), CARDS[name]
    assert isinstance(model, VoxelMorph) and model.card == card and not model.training
    assert sum(p.numel() for p in model.parameters()) == card["parameters"] == 109_170
    probe = score(model, [brains.pair(card["probe"]["seed"])])
    for metric, value in probe.items():
        assert value == pytest.approx(card["probe"][metric], abs=2e-3), metric
    # Not only there: the mean over all validation pairs is far from the identity's.
    before, after = card["scores"]["identity"], card["scores"]["network"]
    assert after["error_mm"] < 0.5 * before["error_mm"]
    assert after["dice"] > before["dice"] + 0.15
    assert after["folding"] < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_no_network_is_not_offered_as_one(name):
    with pytest.raises(
        ValueError, match=r"name: expected one of 'voxelmorph2d-brains', .*-mse', got"
    ):
        pretrained(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_training_had_nothing_left_to_gain(name):
    last = CARDS[name]["curves"][-1]
    tail = [error for step, error in zip(last["step"], last["error_mm"], strict=True)]
    early = tail[int(0.9 * len(tail)) - 1]
    assert abs(tail[-1] - early) < 0.03, "mm over the last tenth of the steps"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_shows_the_trade_off(name):
    card, kept = CARDS[name], load_file(FOLDER / f"{name}.safetensors")
    count = len(card["weights"])
    assert kept["weights"].tolist() == pytest.approx(card["weights"])
    assert sorted(card["weights"]) == card["weights"]
    pair = brains.pair(card["shown"])
    assert pair.displacement is not None
    assert kept["displacements"].shape == (count, *pair.displacement.shape[1:])
    assert kept["displacements"].dtype == torch.float16
    folding, dice, error = (kept[key] for key in ("folding", "dice", "error_mm"))
    assert len(folding) == len(dice) == len(error) == count
    best = int(error.argmin())
    assert 0 < best < count - 1  # between the extremes
    assert folding[0] > 2e-4 and folding[-1] < 1e-5  # folding, stiff
    assert error[0] > error[best] + 0.03 and error[-1] > error[best] + 0.3
    assert dice[-1] < dice.max() - 0.03
    assert (folding.diff() <= 1e-5).all()  # less and less
    own = folding_fraction(kept["displacements"].float())
    assert own[0] >= own[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fields_of_a_family_belong_to_the_pair(name):
    kept = load_file(FOLDER / f"{name}.safetensors")
    pair = brains.pair(CARDS[name]["shown"])
    agreement = [
        float(lncc(warp(pair.moving, field[None].float(), padding="border"), pair.fixed))
        for field in kept["displacements"]
    ]
    assert agreement[0] < lncc(pair.moving, pair.fixed) - 0.1
    # The smaller λ, the closer the images; the smallest ones are much alike.
    assert max(agreement[:3]) < min(agreement[4:])

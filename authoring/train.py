"""Train the networks of ``course_lib/weights/``; run by hand, never in CI.

    python -m authoring.train --list
    python -m authoring.train voxelmorph2d-brains
    python -m authoring.train voxelmorph2d-brains --resume --minutes 5
    python -m authoring.train voxelmorph2d-brains --export

Each recipe gives ``NAME.safetensors`` and ``NAME.json``, a card that says how the weights were made
and what they reach; the README beside them shows all cards. No training and no score uses a seed
that the course reports on (100 and above); ``voxelmorph2d-lambdas`` shows the fields of one.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from course_lib.datasets import Pair, halve
from course_lib.datasets.cohort import TRAINING, VALIDATION, Cohort, Recombined
from course_lib.losses import lncc, mse
from course_lib.models import Prediction, VoxelMorph
from course_lib.training import History, Step, cosine, fit, score, unsupervised

WEIGHTS = Path(__file__).resolve().parent.parent / "course_lib" / "weights"
CACHE = Path(pooch.os_cache("registration-course")) / "training"
EVERY = 500
SIMILARITIES = {"lncc": lncc, "mse": mse}


@dataclass(frozen=True)
class Phase:
    """A part of a training; Adam and its learning rate begin anew in each.

    Attributes:
        steps: of one batch each.
        size: 1 for the images as they are, 2 for half as many voxels along each axis.
        learning_rate: at the beginning; it falls to 0 along half a cosine.
    """

    steps: int
    size: int = 1
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights of one network.

    Attributes:
        similarity, weight: of the loss ``similarity + weight · diffusion``.
        phases: what is done in turn.
        batch: pairs in a step.
        seed: of the first weights, of the pairs and of their order.
        velocity: whether the network predicts a velocity or a displacement.
        start: name of the weights to begin with; random ones if None.
        pairs: how many are drawn from all scans of the training seeds.
    """

    similarity: str
    weight: float
    phases: tuple[Phase, ...]
    batch: int = 1
    seed: int = 0
    velocity: bool = True
    start: str | None = None
    pairs: int = 50_000


@dataclass(frozen=True)
class Family:
    """One network trained on at several weights λ: how Dice and folding depend on it.

    Attributes:
        base: the recipe of each, but for its weight.
        weights: the λ, rising.
        shown: the seed of the pair whose fields are kept.
    """

    base: Recipe
    weights: tuple[float, ...]
    shown: int = 100


# Half-size images first: a step costs a quarter, and the long way is short in their voxels.
_PHASES = (Phase(18_000, size=2, learning_rate=3e-3), Phase(8_000))

RECIPES: dict[str, Recipe | Family] = {
    "voxelmorph2d-brains": Recipe("lncc", 0.5, _PHASES),
    "voxelmorph2d-brains-mse": Recipe("mse", 0.01, _PHASES),
    # Displacements: a velocity hardly folds, whatever λ is, and would have no such story to tell.
    "voxelmorph2d-lambdas": Family(
        Recipe(
            "lncc",
            0.5,
            (Phase(600, learning_rate=5e-4),),
            velocity=False,
            start="voxelmorph2d-brains",
        ),
        weights=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    ),
}


class OutOfTime(Exception):
    """The minutes that were granted are over; the checkpoints hold everything."""


# ------------------------------------------------------------------------------------ training


class Clock:
    """Counts the CPU minutes of a training in a file, over all its interruptions."""

    def __init__(self, file: Path, limit: float, every: int) -> None:
        self.file, self.limit, self.every = file, limit, every
        self.start, self.taken = time.process_time(), 0
        self.before = float(file.read_text()) if file.exists() else 0.0

    def total(self) -> float:
        """Minutes of CPU time so far."""
        return self.before + (time.process_time() - self.start) / 60

    def __call__(self, step: Step) -> None:
        """Note the time before each checkpoint; stop right after one when it is up."""
        if step.number % self.every == 0:
            self.file.write_text(f"{self.total()}\n")
        self.taken += 1
        saved = (step.number - 1) % self.every == 0  # all steps but this one
        if saved and self.taken > self.every and self.total() - self.before > self.limit:
            raise OutOfTime


def network(recipe: Recipe, weights: Path) -> VoxelMorph:
    """The network at the beginning: random by its seed, or with the weights of ``start``."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = VoxelMorph(2, velocity=recipe.velocity)
    if recipe.start is not None:
        model.load_state_dict(load_file(weights / f"{recipe.start}.safetensors"))
    # Channels side by side in memory: the same numbers sooner, on a CPU.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def halved(pairs: Sequence[Pair] | Cohort, size: int) -> Sequence[Pair] | Cohort:
    """The pairs with ``size`` times fewer voxels along each axis (1 or 2)."""
    return pairs if size == 1 else [halve(pairs[i]) for i in range(len(pairs))]


def checkpoint(cache: Path, name: str, phase: int) -> Path:
    """The file of one phase, 0 for the first."""
    return cache / f"{name}.{phase + 1}.pt"


def train(
    recipe: Recipe,
    name: str,
    *,
    weights: Path = WEIGHTS,
    cache: Path = CACHE,
    minutes: float = float("inf"),
    every: int | None = None,
    progress: bool = True,
) -> None:
    """Follow a recipe, from its checkpoints where there are some.

    Args:
        recipe: what to do.
        name: of the checkpoints.
        weights: the folder with the weights of ``start``.
        cache: the folder of the checkpoints and of the cohort.
        minutes: of CPU time, after which :class:`OutOfTime` is raised.
        every: steps between two evaluations and checkpoints; :data:`EVERY` if None.
        progress: whether to show bars, and a line for each evaluation.
    """
    scans = Cohort(TRAINING, folder=cache / "cohort").prepare(progress)
    validation = Cohort(VALIDATION, folder=cache / "cohort").prepare(progress)
    model, every = network(recipe, weights), every or EVERY
    clock = Clock(cache / f"{name}.minutes", minutes, every)
    for number, phase in enumerate(recipe.phases):
        history = fit(
            model,
            Recombined(halved(scans, phase.size), recipe.pairs, recipe.seed),
            unsupervised(SIMILARITIES[recipe.similarity], recipe.weight),
            steps=phase.steps,
            learning_rate=phase.learning_rate,
            batch=recipe.batch,
            schedule=cosine,
            validation=validation,
            every=every,
            seed=recipe.seed + number,
            checkpoint=checkpoint(cache, name, number),
            watch=clock,
            progress=progress,
        )
        if progress:
            print(f"{name}, phase {number + 1}, {clock.total():.1f} CPU minutes: {history}")


def so_far(
    recipe: Recipe, name: str, weights: Path = WEIGHTS, cache: Path = CACHE
) -> tuple[VoxelMorph, list[History]]:
    """The network as its checkpoints have it, finished or not, and the history of each phase."""
    model, histories = network(recipe, weights), []
    for number in range(len(recipe.phases)):
        file = checkpoint(cache, name, number)
        if file.exists():
            content = torch.load(file, map_location="cpu", weights_only=True)
            model.load_state_dict(content["model"])
            histories.append(History(**content["history"]))
    if not histories:
        raise FileNotFoundError(f"{name}: there is no checkpoint in {cache}")
    return model.eval(), histories


# --------------------------------------------------------------------------------------- cards


def identity(moving: Tensor, fixed: Tensor) -> Prediction:
    """What every score is compared with: nothing moves."""
    return Prediction(moving.new_zeros(len(moving), moving.ndim - 2, *moving.shape[2:]))


def card(
    name: str,
    recipe: Recipe,
    model: VoxelMorph,
    histories: Sequence[History],
    validation: Sequence[Pair] | Cohort,
    minutes: float,
) -> dict[str, Any]:
    """All that is to be known about a network; scores are means over the validation pairs."""
    loss = unsupervised(SIMILARITIES[recipe.similarity], recipe.weight)
    return {
        "name": name,
        "network": {"ndim": 2, "velocity": recipe.velocity},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": recipe_of(recipe),
        "seed": recipe.seed,
        "data": data_of(recipe),
        "steps": [len(history.steps) for history in histories],
        "finished": is_finished(recipe, histories),
        "scores": {
            "identity": rounded(score(identity, validation, loss)),
            "network": rounded(score(model, validation, loss)),
        },
        "probe": {"seed": VALIDATION[0], **rounded(score(model, [validation[0]]))},
        "curves": [
            {
                "step": history.evaluated,
                **{k: rounded_list(v) for k, v in history.validation.items()},
            }
            for history in histories
        ],
        "cpu_minutes": round(minutes, 2),
        "versions": versions(),
    }


def is_finished(recipe: Recipe, histories: Sequence[History]) -> bool:
    """Whether every phase took all its steps."""
    return [len(h.steps) for h in histories] == [phase.steps for phase in recipe.phases]


def recipe_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as its card has it, with what all recipes share."""
    return asdict(recipe) | {"optimizer": "Adam", "schedule": "cosine"}


def data_of(recipe: Recipe) -> str:
    """What the network was trained on and scored on, in a sentence."""
    return (
        f"datasets.cohort, axial slices of 224 × 192 voxels of 1 mm: seeds {TRAINING[0]} to "
        f"{TRAINING[-1]} for training, any two of their scans, {recipe.pairs} pairs; seeds "
        f"{VALIDATION[0]} to {VALIDATION[-1]} for the scores"
    )


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Four digits after the point; the fractions of folded voxels are small and get six."""
    return {k: round(v, 6 if k == "folding" else 4) for k, v in scores.items()}


def rounded_list(values: Sequence[float]) -> list[float]:
    """The same for a curve."""
    return [round(value, 6) for value in values]


def write(
    name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], weights: Path
) -> None:
    """Weights, card and README, each put in its place whole."""
    weights.mkdir(parents=True, exist_ok=True)
    content = save({key: value.contiguous() for key, value in tensors.items()})
    about = {**about, "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    for end, data in ((".safetensors", content), (".json", text.encode())):
        draft = weights / f"{name}.tmp"
        draft.write_bytes(data)
        draft.replace(weights / f"{name}{end}")
    (weights / "README.md").write_text(readme(weights), encoding="utf-8")


def export(name: str, recipe: Recipe, weights: Path = WEIGHTS, cache: Path = CACHE) -> None:
    """Write a network as its checkpoints have it."""
    model, histories = so_far(recipe, name, weights, cache)
    clock = cache / f"{name}.minutes"
    minutes = float(clock.read_text()) if clock.exists() else 0.0
    validation = Cohort(VALIDATION, folder=cache / "cohort")
    about = card(name, recipe, model, histories, validation, minutes)
    write(name, model.state_dict(), about, weights)
    print(json.dumps(about["scores"], indent=1))


# ---------------------------------------------------------------------------------- the family


def export_family(name: str, family: Family, weights: Path = WEIGHTS, cache: Path = CACHE) -> None:
    """Write the fields of one pair by each network, and the mean scores of each."""
    shown = Cohort([family.shown], folder=cache / "cohort")[0]
    scored = Cohort(VALIDATION[:10], folder=cache / "cohort")
    fields, scores, minutes = [], [], 0.0
    for weight in family.weights:
        member, recipe = member_of(name, weight), replace(family.base, weight=weight)
        model, histories = so_far(recipe, member, weights, cache)
        if not is_finished(recipe, histories):
            raise FileNotFoundError(f"{member}: its training is not finished")
        with torch.no_grad():
            fields.append(model(shown.moving, shown.fixed).displacement.half())
        scores.append(score(model, scored))
        minutes += float((cache / f"{member}.minutes").read_text())
    tensors = {"weights": torch.tensor(family.weights), "displacements": torch.cat(fields)}
    for key in scores[0]:
        tensors[key] = torch.tensor([row[key] for row in scores])
    about = {
        "name": name,
        "recipe": recipe_of(family.base),
        "weights": family.weights,
        "seed": family.base.seed,
        "data": data_of(family.base),
        "shown": family.shown,
        "scored": [VALIDATION[0], VALIDATION[:10][-1]],
        "scores": {
            "identity": rounded(score(identity, scored)),
            **{f"λ = {w:g}": rounded(row) for w, row in zip(family.weights, scores, strict=True)},
        },
        "cpu_minutes": round(minutes, 2),
        "versions": versions(),
    }
    write(name, tensors, about, weights)
    print(json.dumps(about["scores"], indent=1, ensure_ascii=False))


def member_of(name: str, weight: float) -> str:
    """The name of one network of a family."""
    return f"{name}-{weight:g}"


# -------------------------------------------------------------------------------------- README


HEAD = """# Weights

Made by `python -m authoring.train NAME`, and so is this page. Each `NAME.safetensors` has a card
beside it, `NAME.json`: recipe, seed, data, versions, scores and, for networks, the curve of the
scores on the validation pairs during training. `course_lib.models.pretrained(NAME)` loads a network
with its card. Scores are means over pairs of the synthetic cohort that were not trained on; the
pairs that the course reports on (seeds 100 and above) are others again. The license is the
course's.
"""


def readme(weights: Path) -> str:
    """The page about all cards in a folder."""
    files = sorted(weights.glob("*.json"))
    return "\n".join([HEAD, *(about_one(json.loads(f.read_text("utf-8"))) for f in files)])


def about_one(about: Mapping[str, Any]) -> str:
    """One card as text and table."""
    recipe = about["recipe"]
    phases = ", then ".join(
        f"{phase['steps']} steps at {'full' if phase['size'] == 1 else 'half'} size from a "
        f"learning rate of {phase['learning_rate']:g}"
        for phase in recipe["phases"]
    )
    start = f", starting from `{recipe['start']}`" if recipe["start"] else ""
    what = "velocity" if recipe["velocity"] else "displacement"
    rows = [
        f"| {name} | {row['error_mm']:.3f} | {row['dice']:.4f} | {100 * row['folding']:.4f} |"
        for name, row in about["scores"].items()
    ]
    shares = ", ".join(f"{w:g}" for w in about.get("weights", [recipe["weight"]]))
    unfinished = "" if about.get("finished", True) else " **Preliminary: not trained to the end.**"
    pair = f" It holds the displacements of seed {about['shown']}." if "shown" in about else ""
    lines = [
        f"## {about['name']}",
        "",
        f"`VoxelMorph(2, velocity={recipe['velocity']})`, a {what}; loss `{recipe['similarity']} + "
        f"λ diffusion` with λ = {shares}; Adam, {phases}, falling to 0 along half a cosine, batch "
        f"{recipe['batch']}, seed {about['seed']}{start}; {about['cpu_minutes']:.1f} CPU minutes, "
        f"torch {about['versions']['torch']}.{unfinished}{pair}",
        "",
        f"Data: {about['data']}.",
        "",
        "| mean | endpoint error (mm) | Dice | folded voxels (%) |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------------------- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Recipes: " + ", ".join(RECIPES),
    )
    parser.add_argument("name", nargs="?", choices=list(RECIPES), help="what to train")
    parser.add_argument("--list", action="store_true", help="show the recipes")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--export", action="store_true", help="write what the checkpoints hold")
    parser.add_argument("--cache", type=Path, default=CACHE, help="checkpoints and cohort")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the results go")
    chosen = parser.parse_args(arguments)
    if chosen.list or chosen.name is None:
        for name, recipe in RECIPES.items():
            print(f"{name}\n  {recipe}")
        return 0
    return follow(chosen)


def follow(chosen: argparse.Namespace) -> int:
    """Train and write one recipe, as the command line says."""
    name, recipe = chosen.name, RECIPES[chosen.name]
    kept = sorted(chosen.cache.glob(f"{name}.*")) if chosen.cache.exists() else []
    if isinstance(recipe, Family):
        kept = sorted(chosen.cache.glob(f"{name}-*")) if chosen.cache.exists() else []
        recipes = {member_of(name, w): replace(recipe.base, weight=w) for w in recipe.weights}
    else:
        recipes = {name: recipe}
    if kept and not (chosen.resume or chosen.export):
        print(f"{chosen.cache} has checkpoints: --resume goes on; delete them to begin anew:")
        print("\n".join(f"  {path.name}" for path in kept))
        return 1
    if not chosen.export:
        chosen.cache.mkdir(parents=True, exist_ok=True)
        try:
            for member, one in recipes.items():
                train(
                    one, member, weights=chosen.weights, cache=chosen.cache, minutes=chosen.minutes
                )
        except OutOfTime:
            print(f"{chosen.minutes:g} CPU minutes are over: --resume goes on")
            return 0
    if isinstance(recipe, Family):
        export_family(name, recipe, chosen.weights, chosen.cache)
    else:
        export(name, recipe, chosen.weights, chosen.cache)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

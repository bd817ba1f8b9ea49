"""How a registration network learns: one loop, its losses, its guard and its checkpoints."""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import cos, isfinite, pi
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.datasets import Pair, collate
from course_lib.evaluation import warp_labels
from course_lib.losses import diffusion, lncc
from course_lib.metrics import dice, endpoint_error, folding_fraction
from course_lib.models import Prediction
from course_lib.spatial import warp
from course_lib.validation import (
    require_callable,
    require_image,
    require_number,
    require_same,
    require_whole,
)

Loss = Callable[[Prediction, Pair], Mapping[str, Tensor]]
"""``(prediction, pair) -> {part: weighted scalar}``: what :func:`fit` adds up and minimizes."""

_FAR = 100.0  # how many times the usual length of the gradient is an explosion
_RECENT, _ENOUGH = 50, 10  # steps that "usual" looks back to, and that it takes at least
_BLACK = 0.1  # the share of the images' intensity below which a warped image counts as black


class Pairs(Protocol):
    """What can be learned from: a list of pairs, or a torch ``Dataset`` of them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Pair: ...


# ------------------------------------------------------------------------------------- losses


def unsupervised(
    similarity: Callable[[Tensor, Tensor], Tensor] = lncc,
    weight: float = 1.0,
    regularizer: Callable[[Tensor], Tensor] = diffusion,
) -> Loss:
    """VoxelMorph's loss, which needs no truth: ``similarity(warped, fixed) + λ · regularizer``.

    The moving image is warped with its border extended, so that a voxel that looks outside still
    has a gradient. The regularizer sees the velocity, at its own resolution, where the model
    predicts one, and the displacement where it does not: what is penalized is what the network
    puts out. VoxelMorph 0.2 does the same and doubles the penalty of a velocity at half resolution;
    here it is not doubled, because differences between voxels are slopes at any resolution.

    λ is a rate of exchange between two units, so it belongs to its similarity: the usual choices
    are 1 for ``lncc`` and 0.01 for ``mse``. On the cohort (pairs 0 to 3, from the identity to the
    true displacement) ``lncc`` falls by 0.25, ``mse`` by 0.016, and ``diffusion`` rises by 0.020.
    With λ = 1, ``mse`` would pay more for the true field than it gains, and stays near the
    identity. ``mse`` also grows with the square of the intensities: for images from 0 to 255, the
    same λ is 65 000 times weaker.

    Args:
        similarity: a loss of ``(warped, fixed)``.
        weight: λ, 0 or more.
        regularizer: a penalty of the displacement or velocity, in voxels of its own grid.

    Returns:
        A loss for :func:`fit` with one part of each name: ``{"lncc": …, "diffusion": λ · …}``.

    Raises:
        TypeError, ValueError: on what is no function, or a negative weight.

    Source: Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, "VoxelMorph", TMI 38(8), 2019.
    Taught in lesson 30.
    """
    require_callable("similarity", similarity)
    require_callable("regularizer", regularizer)
    factor = require_number("weight", weight, 0)
    names = _name(similarity), _name(regularizer)
    if names[0] == names[1]:
        raise ValueError(f"regularizer: expected another name than the similarity's, {names[0]!r}")

    def loss(prediction: Prediction, pair: Pair) -> dict[str, Tensor]:
        warped = warp(pair.moving, prediction.displacement, padding="border")
        rough = prediction.displacement if prediction.velocity is None else prediction.velocity
        parts = similarity(warped, pair.fixed), factor * regularizer(rough)
        return dict(zip(names, parts, strict=True))

    loss.__name__ = f"{names[0]} + {factor:g} {names[1]}"
    return loss


def _name(function: object) -> str:
    """What a function is called, also through ``functools.partial``; otherwise its type."""
    function = getattr(function, "func", function)
    return str(getattr(function, "__name__", type(function).__name__))


def cosine(share: float) -> float:
    """A schedule for :func:`fit`: the learning rate falls from all of it to 0 along half a cosine.

    Args:
        share: of the training that lies behind, 0 to 1.

    Returns:
        The factor of the learning rate, from 1 to 0.

    Raises:
        TypeError, ValueError: on what is no finite number.

    Example:
        >>> [round(cosine(share), 2) for share in (0, 0.5, 1)]
        [1.0, 0.5, 0.0]

    Source: Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017,
    without the restarts. Used in lesson 30.
    """
    return (1 + cos(pi * require_number("share", share))) / 2


# ------------------------------------------------------------------------------------- history


@dataclass
class History:
    """What was measured during a training, in order.

    ``plotting.curves({"lncc": (history.steps, history.losses["lncc"])}, …)`` draws it.

    Attributes:
        steps: 1, 2, … one number a step; the next three have as many entries.
        losses: ``{part: values}``, weighted as they are added, on the batch of that step.
        folding: fraction of folded voxels, on the batch of that step.
        gradients: length of the gradient over all parameters.
        evaluated: the steps after which the validation pairs were looked at; the first is 0.
        validation: ``{metric: values}`` at those steps, as :func:`score` gives them.
    """

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    folding: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    validation: dict[str, list[float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """How far it went, and the first and last value of everything."""
        lines = [f"{len(self.steps)} steps"]
        for title, curves in (("", self.losses), ("validation: ", self.validation)):
            lines += [f"  {title}{k}  {v[0]:.4f} → {v[-1]:.4f}" for k, v in curves.items()]
        return "\n".join(lines)


class Step(NamedTuple):
    """What :func:`fit` tells ``watch`` after each step.

    Attributes:
        number: 1 for the first.
        losses: ``{part: value}``, weighted.
        folding: fraction of folded voxels of this batch.
        gradient: length of the gradient over all parameters.
        prediction: of the weights before this step, without gradient.
        pair: the batch that it is about, on the model's device.
    """

    number: int
    losses: dict[str, float]
    folding: float
    gradient: float
    prediction: Prediction
    pair: Pair


class TrainingStopped(RuntimeError):
    """The guard of :func:`fit` found that going on is of no use; the message says what to try.

    Attributes:
        step: the step that was not taken: the weights are those before it.
        part: the part of the loss that failed, or ``"gradient"`` or ``"warped image"``.
    """

    def __init__(self, step: int, part: str, what: str, remedy: str) -> None:
        super().__init__(f"Training stopped at step {step}: {what}\n  Try: {remedy}")
        self.step, self.part = step, part

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints in place of a traceback."""
        return str(self).splitlines()


# ------------------------------------------------------------------------------------- the loop


def fit(
    model: nn.Module,
    pairs: Pairs,
    loss: Loss,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    batch: int = 1,
    schedule: Callable[[float], float] | None = None,
    validation: Pairs | None = None,
    every: int = 100,
    seed: int = 0,
    device: torch.device | str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    watch: Callable[[Step], object] | None = None,
    progress: bool = True,
) -> History:
    """Train a model by Adam on pairs in random order; the model is changed in place.

    Every pair comes once before any comes again. All randomness of a step is drawn from generators
    seeded with ``seed`` and its number, so the same call gives the same weights, and PyTorch's
    global generator is afterwards as it was. The model's modes (train or eval) are too.

    A guard looks at every step before it is taken, and raises :class:`TrainingStopped` when a part
    of the loss or the gradient is NaN or infinite, when the gradient is 100 times as long as the
    median of the last 50, or when less than a tenth of the images' intensity is left in the warped
    image.

    With ``checkpoint``, everything is written there every ``every`` steps and at the end, and a
    call that finds the file goes on from it: to the same numbers as without the interruption, bit
    for bit on a CPU. A file is never half written.

    Args:
        model: ``model(moving, fixed)`` gives a :class:`~course_lib.models.Prediction`.
        pairs: a list or a torch ``Dataset`` of :class:`~course_lib.datasets.Pair`.
        loss: ``(prediction, pair) -> {part: weighted scalar}``, see :func:`unsupervised`. The parts
            are added.
        steps: how many from the very beginning, those in the checkpoint included.
        learning_rate: of Adam.
        batch: pairs in a step, joined along the batch axis.
        schedule: a factor of the learning rate by the share of the steps taken, such as
            :func:`cosine`; None keeps it.
        validation: pairs that are only looked at, see :func:`score`.
        every: steps between two evaluations, and two checkpoints.
        seed: of the order of the pairs, and of what the model draws.
        device: where to train; where the model is if None. The model stays there.
        checkpoint: a file to write to and to go on from.
        watch: called after each step with a :class:`Step`, without gradients: for figures.
        progress: whether to show a progress bar.

    Returns:
        The :class:`History`, the steps of the checkpoint included.

    Raises:
        TypeError, ValueError: on wrong arguments, on images that are constant or not finite, and
            on a checkpoint of another model or recipe. A recipe knows its loss by name only: a
            function that was changed but not renamed is not noticed.
        TrainingStopped: see above.

    Source: Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    Taught in lesson 30.
    """
    count = _require_pairs("pairs", pairs)
    if validation is not None:
        _require_pairs("validation", validation)
    require_callable("loss", loss)
    for name, function in (("schedule", schedule), ("watch", watch)):
        if function is not None:
            require_callable(name, function)
    steps, batch = require_whole("steps", steps, 0), require_whole("batch", batch, 1)
    every, seed = require_whole("every", every, 1), require_whole("seed", seed, 0)
    rate = require_number("learning_rate", learning_rate, 0)
    file = _require_file(checkpoint)
    place = _require_model(model, device)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    recipe = {
        "model": _architecture(model),
        "loss": _name(loss),
        "pairs": count,
        "learning_rate": rate,
        "batch": batch,
        "schedule": "none" if schedule is None else f"{_name(schedule)} over {steps} steps",
        "seed": seed,
    }
    history = History()
    if file is not None and file.exists():
        history = _resume(file, recipe, model, optimizer, steps)
    bar = tqdm(total=steps, initial=len(history.steps), disable=not progress, leave=False)
    with bar, _ready_to_learn(model, place):
        if validation is not None and not history.evaluated:
            _note(history, _mean_scores("validation", validation, model, loss))
        for number in range(len(history.steps) + 1, steps + 1):
            torch.manual_seed(_mixed(seed, number))
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 if schedule is None else schedule((number - 1) / steps))
            chosen = _chosen(number, batch, count, seed)
            pair = _to(collate([_require_pair("pairs", pairs, i) for i in chosen]), place)
            step = _step(model, optimizer, loss, pair, number, history.gradients)
            _record(history, step)
            bar.set_postfix_str(_in_short(step), refresh=False)
            bar.update()
            if watch is not None:
                with torch.no_grad():
                    watch(step)
            if number % every == 0 or number == steps:
                if validation is not None:
                    _note(history, _mean_scores("validation", validation, model, loss))
                if file is not None:
                    _save(file, recipe, model, optimizer, history)
    return history


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    pair: Pair,
    number: int,
    lengths: Sequence[float],
) -> Step:
    """Predict, measure, guard, descend; ``lengths`` are those of the gradients before."""
    prediction = _require_prediction(model(pair.moving, pair.fixed))
    parts = _require_parts(loss(prediction, pair))
    values = {name: float(part.detach()) for name, part in parts.items()}
    _guard_losses(values, number)
    _guard_image(prediction, pair, number)
    optimizer.zero_grad()
    total = torch.stack(list(parts.values())).sum()
    if not total.requires_grad:
        raise ValueError("loss: does not depend on the model's parameters; is something detached?")
    total.backward()
    length = _gradient(optimizer)
    _guard_gradient(length, lengths, number)
    optimizer.step()
    optimizer.zero_grad()
    seen = _detached(prediction)
    folding = float(folding_fraction(seen.displacement).mean())
    return Step(number, values, folding, length, seen, pair)


def _gradient(optimizer: torch.optim.Optimizer) -> float:
    """The length of the gradient over all parameters."""
    parameters = optimizer.param_groups[0]["params"]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    lengths = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(lengths)))


def _detached(prediction: Prediction) -> Prediction:
    """The same numbers without the graph that made them."""

    def free(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.detach()
        return tuple(free(one) for one in part) if isinstance(part, tuple | list) else part

    return Prediction(*(free(part) for part in prediction))


def _record(history: History, step: Step) -> None:
    history.steps.append(step.number)
    history.folding.append(step.folding)
    history.gradients.append(step.gradient)
    for name, value in step.losses.items():
        history.losses.setdefault(name, []).append(value)


def _note(history: History, scores: Mapping[str, float]) -> None:
    history.evaluated.append(len(history.steps))
    for name, value in scores.items():
        history.validation.setdefault(name, []).append(value)


def _in_short(step: Step) -> str:
    parts = [f"{name} {value:.4f}" for name, value in step.losses.items()]
    return ", ".join([*parts, f"folding {step.folding:.2%}"])


@contextmanager
def _ready_to_learn(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode, gradients and a random state of its own, and everything as it was after."""
    modes = {module: module.training for module in model.modules()}
    own = [device] if device.type == "cuda" else []
    # Also where gradients are switched off: training needs its own.
    with torch.random.fork_rng(own), torch.inference_mode(False), torch.enable_grad():
        try:
            model.train()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _mixed(seed: int, number: int) -> int:
    """A seed for one step: what is drawn there does not depend on where the training was resumed.

    PyTorch's generator on a CPU reads 32 bits of a seed only, so both numbers go into as many.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _chosen(step: int, batch: int, count: int, seed: int) -> list[int]:
    """The pairs of one step: their places in a sequence of shuffled passes over all of them."""
    places = range((step - 1) * batch, step * batch)
    passes = {place // count for place in places}
    orders = {
        number: torch.randperm(
            count, generator=torch.Generator().manual_seed(_mixed(seed + 1, number))
        )
        for number in passes
    }
    return [int(orders[place // count][place % count]) for place in places]


def _to(pair: Pair, device: torch.device) -> Pair:
    """The same pair on a device."""
    parts = {
        name: part.to(device, non_blocking=True)
        for name, part in pair._asdict().items()
        if isinstance(part, Tensor)
    }
    return Pair(**{**pair._asdict(), **parts})


# ------------------------------------------------------------------------------------- scores


def score(
    model: Callable[..., Prediction], pairs: Pairs, loss: Loss | None = None
) -> dict[str, float]:
    """What a model reaches on pairs, as means over them.

    Args:
        model: ``model(moving, fixed)`` gives a :class:`~course_lib.models.Prediction`; a module is
            put in eval mode meanwhile.
        pairs: as for :func:`fit`.
        loss: its total is reported if given.

    Returns:
        ``"loss"``; ``"folding"``, a fraction of the voxels; ``"dice"``, a mean over the structures
        but 0, where all pairs have labels; ``"error_mm"``, the endpoint error inside the fixed
        labels (everywhere without labels), where all pairs have a truth: ``"error_voxels"`` where
        there is no spacing.

    Raises:
        TypeError, ValueError: on what are no pairs.

    Taught in lesson 30.
    """
    _require_pairs("pairs", pairs)
    require_callable("model", model)
    if loss is not None:
        require_callable("loss", loss)
    return _mean_scores("pairs", pairs, model, loss)


def _mean_scores(
    name: str, pairs: Pairs, model: Callable[..., Prediction], loss: Loss | None
) -> dict[str, float]:
    """What all pairs have scores of, in eval mode and without gradients."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    rows = []
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            for i in range(len(pairs)):
                pair = _to(_require_pair(name, pairs, i), device)
                prediction = _require_prediction(model(pair.moving, pair.fixed))
                rows.append(_scores(prediction, pair, loss))
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    common = [key for key in rows[0] if all(key in row for row in rows)]
    return {key: float(np.mean([row[key] for row in rows])) for key in common}


def _scores(prediction: Prediction, pair: Pair, loss: Loss | None) -> dict[str, float]:
    displacement, scores = prediction.displacement, {}
    if loss is not None:
        parts = _require_parts(loss(prediction, pair))
        scores["loss"] = float(sum(float(part) for part in parts.values()))
    scores["folding"] = float(folding_fraction(displacement).mean())
    if pair.moving_labels is not None and pair.fixed_labels is not None:
        overlap = dice(warp_labels(pair.moving_labels, displacement), pair.fixed_labels)
        scores["dice"] = float(overlap.nanmean())
    if pair.displacement is not None:
        mask = None if pair.fixed_labels is None else pair.fixed_labels > 0
        unit = "error_voxels" if pair.spacing is None else "error_mm"
        error = endpoint_error(displacement, pair.displacement, pair.spacing, mask)
        scores[unit] = float(error.mean())
    return scores


# ------------------------------------------------------------------------------------- the guard


def _guard_losses(values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        if not isfinite(value):
            what = f"the part {name!r} of the loss is {value}"
            others = [f"{other} {v:.3g}" for other, v in values.items() if other != name]
            what += f" ({', '.join(others)})" if others else ""
            remedy = (
                "a learning rate ten times smaller. Does it stop at step 1? Then evaluate "
                f"{name!r} at zero displacement: it divides by 0, or takes the root or the "
                "logarithm of 0, for these images."
            )
            raise TrainingStopped(step, name, what, remedy)


def _guard_gradient(length: float, before: Sequence[float], step: int) -> None:
    usual = median(before[-_RECENT:]) if len(before) >= _ENOUGH else float("inf")
    if isfinite(length) and length <= _FAR * usual:
        return
    what = f"the gradient is {length:.3g} long"
    if isfinite(length):
        what += (
            f", {length / usual:.0f} times the median of the last {len(before[-_RECENT:])} steps"
        )
    remedy = (
        "a learning rate ten times smaller. Is the loss finite and the gradient not? Then look for "
        "a square root or a division at 0: sqrt(x + 1e-5) has a slope there, sqrt(x) has none."
    )
    raise TrainingStopped(step, "gradient", what, remedy)


def _guard_image(prediction: Prediction, pair: Pair, step: int) -> None:
    """Black is a trap: where every voxel looks outside, zero padding has no gradient back."""
    with torch.no_grad():
        mass = [
            image.abs().flatten(1).sum(1)
            for image in (warp(pair.moving, prediction.displacement), pair.moving, pair.fixed)
        ]
        left = float((mass[0] / torch.minimum(mass[1], mass[2])).min())
    if left < _BLACK:
        what = f"the warped image is black: {left:.0%} of the intensity is left inside"
        remedy = (
            "border padding in the loss, a smaller learning rate, a larger weight of the "
            "regularizer, and an affine registration first if the images lie far apart."
        )
        raise TrainingStopped(step, "warped image", what, remedy)


# ------------------------------------------------------------------------------- the checkpoint


def _save(
    file: Path,
    recipe: Mapping[str, object],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
) -> None:
    """Write everything beside the file, then put it in the file's place in one go."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "recipe": dict(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
    }
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _resume(
    file: Path,
    recipe: Mapping[str, object],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> History:
    """Put a checkpoint's numbers into model and optimizer, if it is of this model and recipe."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        found, history = content["recipe"], History(**content["history"])
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint: {file} is none that fit wrote, or is damaged; delete it or name another"
        ) from error
    for key, value in recipe.items():
        if found.get(key) != value:
            raise ValueError(
                f"checkpoint: {file} was made with another {key}: expected {value}, it has "
                f"{found.get(key)}; delete it to begin anew, or name another"
            )
    if len(history.steps) > steps:
        raise ValueError(
            f"steps: {file} holds {len(history.steps)} steps already, more than the {steps} "
            "asked for; delete it to begin anew, or name another"
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return history


def _architecture(model: nn.Module) -> str:
    """The model's class, and the shape of every number that it keeps."""
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    return f"{type(model).__name__}: {shapes}"


# ------------------------------------------------------------------------------------- refusals


def _require_pairs(name: str, pairs: Pairs) -> int:
    """How many pairs there are."""
    if isinstance(pairs, Pair):
        raise TypeError(f"{name}: expected a list of Pair, got one Pair: write [pair]")
    if not hasattr(pairs, "__len__") or not hasattr(pairs, "__getitem__"):
        raise TypeError(f"{name}: expected a list or Dataset of Pair, got {type(pairs).__name__}")
    if len(pairs) == 0:
        raise ValueError(f"{name}: expected at least one, got none")
    return len(pairs)


def _require_pair(name: str, pairs: Pairs, index: int) -> Pair:
    """One of the pairs, with images that are worth comparing."""
    pair = pairs[index]
    if not isinstance(pair, Pair):
        raise TypeError(f"{name}[{index}]: expected a Pair, got {type(pair).__name__}")
    for part, image in (("moving", pair.moving), ("fixed", pair.fixed)):
        what = f"{name}[{index}].{part}"
        require_image(what, image)
        low, high = (float(x) for x in image.aminmax())
        if not isfinite(low) or not isfinite(high):
            raise ValueError(f"{what}: expected finite values, got NaN or infinity")
        if low == high:
            raise ValueError(f"{what}: expected an image, every voxel is {low:g}")
    require_same(f"{name}[{index}].moving", pair.moving, f"{name}[{index}].fixed", pair.fixed)
    return pair


def _require_file(checkpoint: str | PathLike[str] | None) -> Path | None:
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, str | PathLike):
        raise TypeError(f"checkpoint: expected a path, got {type(checkpoint).__name__}")
    if Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint: expected a file, {checkpoint} is a folder")
    return Path(checkpoint)


def _require_model(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Where the model is, after it was moved to ``device``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: expected parameters that ask for a gradient, got none")
    if device is not None:
        try:
            model.to(torch.device(device))
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ValueError(
                f"device: expected a device of this machine, got {device!r}: "
                f"{str(error).splitlines()[0][:150]}"
            ) from None
    return next(model.parameters()).device


def _require_prediction(prediction: object) -> Prediction:
    if not isinstance(prediction, Prediction):
        raise TypeError(f"model: expected to return a Prediction, got {type(prediction).__name__}")
    return prediction


def _require_parts(parts: object) -> Mapping[str, Tensor]:
    expected = 'a dict of scalar tensors such as {"lncc": …, "diffusion": …}'
    if not isinstance(parts, Mapping) or not parts:
        raise TypeError(f"loss: expected to return {expected}, got {type(parts).__name__}")
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.ndim != 0:
            got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"loss: expected to return {expected}, but {name!r} is {got}")
    return parts

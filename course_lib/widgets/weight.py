"""A network's weight of smoothness to play with: seven trainings of one network, one slider."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture
from torch import Tensor

from course_lib.datasets import Pair
from course_lib.drawing import (
    BLACK,
    FOLD,
    GRAYS,
    WHITE,
    Page,
    diverging,
    gray,
    grid_lines,
    paint,
    png,
    write,
)
from course_lib.metrics import dice, folding_fraction
from course_lib.spatial import identity_grid, jacobian_determinant, warp
from course_lib.validation import (
    require_displacement,
    require_finite,
    require_number,
    require_same,
)
from course_lib.widgets.playground import (
    Playground,
    film_strip,
    intensity_range,
    make_playground,
    percent,
    quick,
    require_labeled_pair,
    slider,
)

SCORES = {"dice": "Dice", "folding": "folded (%)", "error_mm": "error (mm)"}
"""What is drawn over the weights, in this order: the key, and what stands above its curve."""

_ROOM = (252, 216)  # pixels of a panel: four stand in a row


class _Answer(NamedTuple):
    """What the network of one weight makes of the pair."""

    weight: float
    displacement: Tensor
    warped: Tensor
    overlap: float
    folded: float


def weight_explorer(
    pair: Pair, fields: Mapping[float, Tensor], scores: Mapping[float, Mapping[str, float]]
) -> Playground:
    """Turn the weight λ that a network was trained with, and see what its answers become.

    Side by side: the warped image of one pair; three curves over all weights, with a dot at the one
    that is shown; the grid lines at ``x + u(x)``; and the Jacobian determinant. What folds is
    magenta.

    Args:
        pair: one 2D pair with labels.
        fields: ``{weight: (1, 2, H, W)}``, the answers for this pair of networks trained with three
            weights or more, about evenly spaced on a logarithmic scale; in voxels.
        scores: ``{weight: {"dice": …, "folding": …, "error_mm": …}}``, means over pairs that no
            network was trained on: Dice and folding as fractions, the error in mm.

    Returns:
        A :class:`Playground` with ``render(log_weight)``, the decimal logarithm of the weight; the
        nearest weight is shown.

    Raises:
        TypeError, ValueError: on a pair without labels, a wrong rank, shape or dtype, weights that
            are few or unevenly spaced, scores of other weights, or values that are not finite.

    Used in lesson 30.
    """
    moving, fixed, labels = require_labeled_pair(pair)
    exponents = _require_weights(fields)
    curves = _require_scores(scores, sorted(fields))
    with quick():
        answers = [_answer(w, fields[w], moving, fixed, labels) for w in sorted(fields)]
    low, step = exponents[0], (exponents[-1] - exponents[0]) / (len(exponents) - 1)
    titles = ("warped image", "on unseen pairs", "grid at x + u(x)", "Jacobian det J")
    bar = [("≥ 2", 1.0), ("1.5", 0.75), ("1", 0.5), ("0.5", 0.25), ("0", 0.0)]
    page = Page((fixed.shape[2], fixed.shape[3]), titles, bar, lines=2, room=_ROOM)
    window = intensity_range(moving)

    def draw(page: Page, log_weight: float) -> Picture:
        place = (require_number("log_weight", log_weight) - low) / step
        if not -0.5 <= place <= len(exponents) - 0.5:
            raise ValueError(
                f"log_weight: expected {low:g} to {exponents[-1]:g}, got {log_weight!r}"
            )
        chosen = min(max(round(place), 0), len(exponents) - 1)
        return _draw_answer(answers[chosen], window, curves, chosen, page)

    def render(log_weight: float) -> bytes:
        return png(draw(page, log_weight))

    said = [0, len(answers) // 2, len(answers) - 1]
    caption = (
        "Three settings of the weight explorer, each as warped image, curves over all weights, "
        "deformed grid and Jacobian determinant: "
        + "; ".join(
            f"trained with λ = {_short(answers[k].weight)} the network reaches a Dice of "
            f"{answers[k].overlap:.3f} on this pair and folds {percent(answers[k].folded)} of the "
            "labeled voxels"
            for k in said
        )
        + "."
    )
    middle = low + step * (len(answers) // 2)
    sliders = {"log_weight": slider("log₁₀ of the weight λ", middle, low, exponents[-1], step)}
    settings = [(low + step * k,) for k in said]
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def _answer(
    weight: float, u: Tensor, moving: Tensor, fixed: Tensor, labels: tuple[Tensor, Tensor]
) -> _Answer:
    """What one displacement makes of the pair; ``labels`` are the moving and the fixed ones."""
    name = f"fields[{weight:g}]"
    require_displacement(name, u)
    field = u.detach().to("cpu", torch.float32).clone()
    require_same(name, field, "fixed", fixed, channels=False)
    require_finite(name, field)
    ours = warp(labels[0], field, mode="nearest")
    return _Answer(
        weight,
        field,
        warp(moving, field),
        overlap=float(dice(ours, labels[1]).nanmean()),
        folded=float(folding_fraction(field, labels[1] > 0)),
    )


def _short(weight: float) -> str:
    """A weight with two digits: 0.032, 3.2, 100."""
    return f"{float(f'{weight:.2g}'):g}"


def _draw_answer(
    answer: _Answer,
    window: tuple[float, float],
    curves: Sequence[Sequence[float]],
    chosen: int,
    page: Page,
) -> Picture:
    """The page of :func:`weight_explorer` for one weight."""
    with quick():
        determinant = jacobian_determinant(answer.displacement)[0]
        folded = determinant <= 0
        places = identity_grid(page.shape) + answer.displacement[0]
        volume = diverging(determinant, 0, 2, page.panel)
        paint(volume, folded, FOLD)
        warped = gray(answer.warped[0, 0], *window, page.panel)
        panels = [
            warped,
            _draw_curves(curves, chosen, page.panel),
            grid_lines(places, folded, page.panel),
            volume,
        ]
    lines = (
        f"trained with λ = {_short(answer.weight)}.  Unseen pairs, mean:  "
        + ",  ".join(
            f"{title} {_three(values[chosen])}"
            for title, values in zip(SCORES.values(), curves, strict=True)
        ),
        f"this pair:  Dice {answer.overlap:.3f},  folded {percent(answer.folded)} of labeled "
        f"voxels,  min det J {float(determinant.min()):.2f}",
    )
    text = [line.replace("-", "−") for line in lines]
    return page.draw(panels, text, alarm=bool(folded.any()))


def _draw_curves(curves: Sequence[Sequence[float]], chosen: int, panel: tuple[int, int]) -> Picture:
    """Each score over the weights, one below the other, and a dot where the slider stands."""
    height, width = panel
    paper = Image.new("L", (width, height), WHITE)
    pen = ImageDraw.Draw(paper)
    row = (height - 18) / len(curves)
    left, right = 14, width - 12
    for k, (title, values) in enumerate(zip(SCORES.values(), curves, strict=True)):
        top, bottom = k * row + 20, (k + 1) * row - 6
        write(pen, (6, k * row + 3), f"{title}  {_three(values[chosen])}")
        pen.line((left - 6, bottom + 3, right + 6, bottom + 3), fill=GRAYS // 2)
        low, high = min(values), max(values)
        places = [
            (
                left + (right - left) * n / (len(values) - 1),
                bottom - (bottom - top) * ((value - low) / (high - low) if high > low else 0.5),
            )
            for n, value in enumerate(values)
        ]
        pen.line(places, fill=BLACK, width=2)
        x, y = places[chosen]
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=BLACK)
    write(pen, (width / 2, height - 16), "λ grows →", anchor="ma")
    return paper


def _three(value: float) -> str:
    """A score with three digits after the point."""
    return f"{value:.3f}"


def _require_weights(fields: object) -> list[float]:
    """The decimal logarithms of the weights, in order."""
    if not isinstance(fields, Mapping):
        raise TypeError(f"fields: expected {{weight: field}}, got {type(fields).__name__}")
    if any(not require_number("fields", weight) > 0 for weight in fields):
        raise ValueError(f"fields: expected weights above 0, got {sorted(fields)}")
    exponents = [math.log10(weight) for weight in sorted(fields)]
    if len(exponents) < 3:
        raise ValueError(f"fields: expected three weights or more, got {sorted(fields)}")
    step = (exponents[-1] - exponents[0]) / (len(exponents) - 1)
    if any(abs(e - exponents[0] - k * step) > 0.4 * step for k, e in enumerate(exponents)):
        raise ValueError(
            "fields: expected weights about evenly spaced on a logarithmic scale, "
            f"got {sorted(fields)}"
        )
    # Up to rounding: exactly so, for the slider's ends to be weights.
    return [round(exponent, 6) for exponent in exponents]


def _require_scores(scores: object, weights: Sequence[float]) -> list[list[float]]:
    """Each score over the weights, from the smallest weight on; folding in percent."""
    if not isinstance(scores, Mapping):
        raise TypeError(f"scores: expected {{weight: {{name: number}}}}, got {scores!r:.80}")
    if set(scores) != set(weights):
        raise ValueError(f"scores: expected the fields' weights, {weights}, got {sorted(scores)}")
    for weight, row in scores.items():
        if not isinstance(row, Mapping) or not set(SCORES) <= set(row):
            raise ValueError(f"scores[{weight:g}]: expected {sorted(SCORES)}, got {row!r:.80}")
    return [
        [
            require_number(f"scores[{w:g}][{key!r}]", scores[w][key])
            * (100 if key == "folding" else 1)
            for w in weights
        ]
        for key in SCORES
    ]

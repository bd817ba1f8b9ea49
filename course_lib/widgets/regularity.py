"""A weight to play with: how stiff a registration is, how well it matches, and where it folds."""

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from course_lib.datasets import Pair
from course_lib.drawing import FOLD, Page, diverging, gray, grid_lines, paint, png
from course_lib.metrics import correlation, dice, folding_fraction
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
    require_fraction,
    require_labeled_pair,
    score_text,
    slider,
)

PENALTIES = ("diffusion", "bending energy")


class _Result(NamedTuple):
    """One registration, and what is written below its picture."""

    penalty: str
    weight: float
    displacement: Tensor
    warped: Tensor
    overlap: float
    likeness: float
    folded: float


def regularity_explorer(
    pair: Pair, diffusion: Mapping[float, Tensor], bending: Mapping[float, Tensor]
) -> Playground:
    """Turn the weight of the penalty, and see what the registration makes of it.

    Side by side: the warped image, the grid lines at ``x + u(x)``, and the Jacobian determinant;
    what folds is magenta. Below: the mean Dice of the labels, the correlation with the fixed image,
    and the fraction of the labeled voxels that fold. The registrations are computed before.

    Args:
        pair: one 2D pair with labels.
        diffusion: ``{weight: (1, 2, H, W)}``, the displacements found with the diffusion penalty,
            in voxels; at least three weights, each the same multiple of the one before.
        bending: the same weights, with the bending energy.

    Returns:
        A :class:`Playground` with ``render(log_weight, penalty)``: the decimal logarithm of the
        weight, and 0 for diffusion, 1 for bending; the nearest registration is shown.

    Raises:
        TypeError, ValueError: on a pair without labels, a wrong rank, shape or dtype, weights that
            are not evenly spaced, or values that are not finite.

    Used in lesson 14.
    """
    moving, fixed, labels = require_labeled_pair(pair)
    exponents = _require_weights(diffusion, bending)
    with quick():
        results = [
            [
                _result(name, weight, fields[weight], moving, fixed, labels)
                for weight in sorted(fields)
            ]
            for name, fields in zip(PENALTIES, (diffusion, bending), strict=True)
        ]
    low, step = exponents[0], exponents[1] - exponents[0]
    titles = ("warped image", "grid at x + u(x)", "Jacobian det J")
    bar = [("≥ 2", 1.0), ("1.5", 0.75), ("1", 0.5), ("0.5", 0.25), ("0", 0.0)]
    page = Page((fixed.shape[2], fixed.shape[3]), titles, bar, lines=2)
    window = intensity_range(moving)

    def draw(page: Page, log_weight: float, penalty: float) -> Picture:
        place = (require_number("log_weight", log_weight) - low) / step
        if not -0.5 <= place <= len(exponents) - 0.5:
            raise ValueError(
                f"log_weight: expected {low:g} to {exponents[-1]:g}, got {log_weight!r}"
            )
        kind = int(require_fraction("penalty", penalty) >= 0.5)
        nearest = min(max(round(place), 0), len(exponents) - 1)
        return _draw_result(results[kind][nearest], window, page)

    def render(log_weight: float, penalty: float) -> bytes:
        return png(draw(page, log_weight, penalty))

    middle = len(exponents) // 2
    chosen = [0, middle, len(exponents) - 1]
    said = [results[0][k] for k in chosen]
    caption = (
        "Three settings of the regularity explorer, each as warped image, deformed grid and "
        "Jacobian determinant: "
        + "; ".join(
            f"a weight of {_short(one.weight)} of the diffusion gives a Dice of {one.overlap:.3f} "
            f"and folds in {percent(one.folded)} of the labeled voxels"
            for one in said
        )
        + "."
    )
    sliders = {
        "log_weight": slider("log₁₀ of the weight λ", exponents[middle], low, exponents[-1], step),
        "penalty": slider("0 diffusion, 1 bending", 0.0, 0.0, 1.0, 1.0),
    }
    settings = [(exponents[k], 0.0) for k in chosen]
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def _result(
    penalty: str,
    weight: float,
    u: Tensor,
    moving: Tensor,
    fixed: Tensor,
    labels: tuple[Tensor, ...],
) -> _Result:
    """What one displacement makes of the pair; ``labels`` are the moving and the fixed ones."""
    require_displacement(f"{penalty}[{weight:g}]", u)
    field = u.detach().to("cpu", torch.float32).clone()
    require_same(f"{penalty}[{weight:g}]", field, "fixed", fixed, channels=False)
    require_finite(f"{penalty}[{weight:g}]", field)
    warped, ours = warp(moving, field), warp(labels[0], field, mode="nearest")
    return _Result(
        penalty,
        weight,
        field,
        warped,
        overlap=float(dice(ours, labels[1]).nanmean()),
        likeness=float(correlation(warped, fixed)),
        folded=float(folding_fraction(field, labels[1] > 0)),
    )


def _short(weight: float) -> str:
    """A weight with two digits: 0.032, 3.2, 100."""
    return f"{float(f'{weight:.2g}'):g}"


def _draw_result(result: _Result, window: tuple[float, float], page: Page) -> Picture:
    """The page of :func:`regularity_explorer` for one registration."""
    with quick():
        determinant = jacobian_determinant(result.displacement)[0]
        folded = determinant <= 0
        places = identity_grid(page.shape) + result.displacement[0]
        volume = diverging(determinant, 0, 2, page.panel)
        paint(volume, folded, FOLD)
        panels = [
            gray(result.warped[0, 0], *window, page.panel),
            grid_lines(places, folded, page.panel),
            volume,
        ]
    lines = (
        f"{result.penalty}, weight {_short(result.weight)}:  Dice {result.overlap:.3f},  "
        f"correlation {score_text(result.likeness)}",
        f"folded: {percent(result.folded)} of labeled voxels,  "
        f"min det J: {float(determinant.min()):.2f}",
    )
    text = [line.replace("-", "−") for line in lines]
    return page.draw(panels, text, alarm=bool(folded.any()))


def _require_weights(diffusion: object, bending: object) -> list[float]:
    """The decimal logarithms of the weights, in order."""
    for name, fields in (("diffusion", diffusion), ("bending", bending)):
        if not isinstance(fields, Mapping):
            raise TypeError(f"{name}: expected {{weight: field}}, got {type(fields).__name__}")
        if any(require_number(name, weight) <= 0 for weight in fields):
            raise ValueError(f"{name}: expected weights above 0, got {sorted(fields)}")
    assert isinstance(diffusion, Mapping) and isinstance(bending, Mapping)
    if set(diffusion) != set(bending):
        raise ValueError(
            f"bending: expected diffusion's weights, {sorted(diffusion)}, got {sorted(bending)}"
        )
    exponents = [math.log10(weight) for weight in sorted(diffusion)]
    steps = [b - a for a, b in pairwise(exponents)]
    if len(steps) < 2 or max(steps) - min(steps) > 1e-6:
        raise ValueError(
            "diffusion: expected three weights or more, each the same multiple of the one before, "
            f"got {sorted(diffusion)}"
        )
    # Evenly spaced up to rounding: exactly so, for the slider's ends to be weights.
    return [round(exponents[0] + k * steps[0], 6) for k in range(len(exponents))]

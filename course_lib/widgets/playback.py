"""A registration to play back: image, grid and loss after each step, level by level."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
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
from course_lib.metrics import endpoint_error
from course_lib.optimise import Step
from course_lib.spatial import (
    identity_grid,
    jacobian_determinant,
    pyramid,
    resize_displacement,
    warp,
)
from course_lib.validation import (
    require_displacement,
    require_finite,
    require_mask,
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
    require_slice,
    slider,
)

ROOM = (240, 206)  # pixels of a panel: four of them side by side
_FAINT = GRAYS * 3 // 4


class _Scene(NamedTuple):
    """What is the same for all steps: the images, and what is known about the truth."""

    moving: Tensor
    fixed: Tensor
    truth: Tensor | None
    mask: Tensor | None
    window: tuple[float, float]
    reach: float


def playback_explorer(pair: Pair, runs: Mapping[float, Sequence[Step]]) -> Playground:
    """Play a recorded registration step by step, for the weight of your choice.

    Side by side: the warped image in the voxels of the level, the grid lines at ``x + u(x)``, the
    loss with the borders between the levels, and ``warped − fixed`` on the level. What folds is
    magenta.

    Args:
        pair: one 2D pair; where its displacement is known, the error is written too (over the
            labeled voxels, where there are labels).
        runs: ``{weight: steps}``, what ``refine(…, watch=steps.append)`` recorded; at least two
            weights, each the same multiple of the one before.

    Returns:
        A :class:`Playground` with ``render(step, log_weight)``: the step, counted from 1 over all
        levels (a run that ended earlier stays at its last one), and the decimal logarithm of the
        weight; the nearest run is shown.

    Raises:
        TypeError, ValueError: on what is no pair of slices, weights that are not evenly spaced, no
            steps, or fields that do not fit.

    Used in lesson 20.
    """
    scene = _require_scene(pair)
    exponents, recorded = _require_runs(runs, scene.fixed)
    longest = max(len(steps) for steps in recorded)
    low, spacing = exponents[0], exponents[1] - exponents[0]
    titles = ("warped, on its level", "grid at x + u(x)", "loss", "warped − fixed")
    reach = scene.reach
    bar = [(f"≥ {reach:.1f}", 1.0), ("0", 0.5), (f"≤ −{reach:.1f}", 0.0)]
    page = Page((scene.fixed.shape[2], scene.fixed.shape[3]), titles, bar, lines=2, room=ROOM)

    def draw(page: Page, step: float, log_weight: float) -> Picture:
        place = (require_number("log_weight", log_weight) - low) / spacing
        if not -0.5 <= place <= len(exponents) - 0.5:
            raise ValueError(
                f"log_weight: expected {low:g} to {exponents[-1]:g}, got {log_weight!r}"
            )
        number = int(require_number("step", step, 1))
        if number > longest:
            raise ValueError(f"step: expected at most {longest}, got {step!r}")
        nearest = min(max(round(place), 0), len(exponents) - 1)
        steps = recorded[nearest]
        taken = min(number, len(steps)) - 1
        return _draw_step(scene, page, 10 ** exponents[nearest], steps, taken)

    def render(step: float, log_weight: float) -> bytes:
        return png(draw(page, step, log_weight))

    middle = len(exponents) // 2
    ends = _level_ends(recorded[middle])
    chosen = [1.0, ends[0] + 1.0, float(len(recorded[middle]))]
    settings = [(step, exponents[middle]) for step in chosen]
    caption = _caption(10 ** exponents[middle], [recorded[middle][int(s) - 1] for s in chosen])
    sliders = {
        "step": slider("step, over all levels", float(longest), 1.0, float(longest), 1.0),
        "log_weight": slider(
            "log₁₀ of the weight λ", exponents[middle], low, exponents[-1], spacing
        ),
    }
    return make_playground(render, sliders, partial(film_strip, draw, page, settings), caption)


def _caption(weight: float, steps: Sequence[Step]) -> str:
    """What the still picture shows."""
    said = "; ".join(
        f"step {step.number} on images {step.factor:g} times smaller, loss {step.loss:.3f}"
        for step in steps
    ).replace("-", "−")
    return (
        "Three moments of one registration, each as warped image in the voxels of its level, "
        f"deformed grid, loss, and difference to the fixed image, for a weight of {weight:.2g}: "
        f"{said}."
    )


def _draw_step(
    scene: _Scene, page: Page, weight: float, steps: Sequence[Step], taken: int
) -> Picture:
    """The page of :func:`playback_explorer` at the step of index ``taken``."""
    step = steps[taken]
    with quick():
        moving, fixed = pyramid(scene.moving, step.factor), pyramid(scene.fixed, step.factor)
        warped = warp(moving, step.displacement, padding="border")[0, 0]
        difference = warped - fixed[0, 0]
        u = resize_displacement(step.displacement, page.shape)
        folded = jacobian_determinant(u)[0] <= 0
        grid = grid_lines(identity_grid(page.shape) + u[0], folded, page.panel)
        error = None
        if scene.truth is not None:
            error = float(endpoint_error(u, scene.truth, mask=scene.mask))
        last = diverging(_in_blocks(difference, page), -scene.reach, scene.reach, page.panel)
        paint(last, folded, FOLD)
        panels = [
            gray(_in_blocks(warped, page), *scene.window, page.panel),
            grid,
            _loss_panel([one.loss for one in steps], taken, _level_ends(steps), page.panel),
            last,
        ]
    sizes = " × ".join(str(n) for n in warped.shape)
    known = "" if error is None else f",  off the truth by {error:.2f} voxels"
    end = f",  level ends: {step.stopped}" if step.stopped else ""
    lines = (
        f"λ = {weight:.2g},  level of {sizes} voxels,  step {step.number}{end}",
        f"loss {step.loss:.3f} = {step.similarity:.3f} + λ · {step.penalty:.4f},  "
        f"folded: {percent(float(folded.float().mean()))}{known}",
    )
    return page.draw(panels, [line.replace("-", "−") for line in lines], alarm=bool(folded.any()))


def _in_blocks(image: Tensor, page: Page) -> Tensor:
    """``image`` (h, w) with every voxel as a block of pixels: so the level can be seen."""
    rows, columns = (
        (torch.arange(pixels) * n) // pixels
        for pixels, n in zip(page.panel, image.shape, strict=True)
    )
    return image[rows][:, columns]


def _level_ends(steps: Sequence[Step]) -> list[int]:
    """How many steps are taken when each level ends; a level begins with its step 1."""
    begins = [n for n, step in enumerate(steps) if n > 0 and step.number <= steps[n - 1].number]
    return [*begins, len(steps)]


def _loss_panel(
    losses: Sequence[float], taken: int, ends: Sequence[int], panel: tuple[int, int]
) -> Picture:
    """The loss over the steps: black up to this one, faint after it, a line between levels."""
    height, width = panel
    paper = Image.new("L", (width, height), WHITE)
    pen = ImageDraw.Draw(paper)
    left, top, right, bottom = 46, 12, width - 8, height - 22
    low, high = min(losses), max(losses)
    span, room = max(1, len(losses) - 1), max(high - low, 1e-9)
    places = [
        (left + (right - left) * n / span, bottom - (bottom - top) * (loss - low) / room)
        for n, loss in enumerate(losses)
    ]
    for end in ends[:-1]:
        x = left + (right - left) * (end - 0.5) / span
        pen.line((x, top, x, bottom), fill=_FAINT)
    pen.line((left, top, left, bottom, right, bottom), fill=GRAYS // 2)
    if len(places) > 1:
        pen.line(places[taken:], fill=_FAINT, width=1)
    pen.line(places[: taken + 1], fill=BLACK, width=2)
    x, y = places[taken]
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=BLACK)
    for text, place, anchor in (
        (f"{high:.2f}".replace("-", "−"), (left - 4, top), "rm"),
        (f"{low:.2f}".replace("-", "−"), (left - 4, bottom), "rm"),
        ("step →", (left, bottom + 3), "la"),
        (str(len(losses)), (right, bottom + 3), "ra"),
    ):
        write(pen, place, text, anchor=anchor)
    return paper


def _require_scene(pair: object) -> _Scene:
    """The images of one 2D pair, and the truth where it is known."""
    if not isinstance(pair, Pair):
        raise TypeError(f"pair: expected a Pair, got {type(pair).__name__}")
    moving, fixed = require_slice("moving", pair.moving), require_slice("fixed", pair.fixed)
    require_same("moving", moving, "fixed", fixed)
    truth, mask = None, None
    if pair.displacement is not None:
        truth = _require_field("displacement", pair.displacement)
        require_same("displacement", truth, "fixed", fixed, channels=False)
        if pair.fixed_labels is not None:
            mask = require_mask("fixed_labels", pair.fixed_labels > 0, "fixed", fixed).clone()
    # The largest differences are few: colors for all but a hundredth of the voxels.
    apart = float((moving - fixed).abs().flatten().quantile(0.99))
    reach = max(0.1, math.ceil(10 * apart) / 10)
    return _Scene(moving, fixed, truth, mask, intensity_range(moving), reach)


def _require_field(name: str, field: Tensor) -> Tensor:
    """A copy of one finite 2D field."""
    spatial = require_displacement(name, field)
    if len(spatial) != 2 or len(field) != 1:
        raise ValueError(f"{name}: expected (1, 2, H, W), got {tuple(field.shape)}")
    require_finite(name, field)
    return field.detach().to("cpu", torch.float32).clone()


def _require_runs(runs: object, fixed: Tensor) -> tuple[list[float], list[list[Step]]]:
    """The decimal logarithms of the weights, in order, and the steps of each."""
    if not isinstance(runs, Mapping):
        raise TypeError(f"runs: expected {{weight: steps}}, got {type(runs).__name__}")
    for weight in runs:
        if require_number("runs", weight) <= 0:
            raise ValueError(f"runs: expected weights above 0, got {weight!r}")
    exponents = [math.log10(weight) for weight in sorted(runs)]
    gaps = [b - a for a, b in pairwise(exponents)]
    if not gaps or max(gaps) - min(gaps) > 1e-6:
        raise ValueError(
            "runs: expected two weights or more, each the same multiple of the one before, "
            f"got {sorted(runs)}"
        )
    recorded = [_require_steps(f"runs[{weight:g}]", runs[weight], fixed) for weight in sorted(runs)]
    # Evenly spaced up to rounding: exactly so, for the slider's ends to be weights.
    return [round(exponents[0] + k * gaps[0], 6) for k in range(len(exponents))], recorded


def _require_steps(name: str, steps: object, fixed: Tensor) -> list[Step]:
    """The steps of one run, each with a field of its level's size."""
    if not isinstance(steps, Sequence) or not all(isinstance(step, Step) for step in steps):
        raise TypeError(f"{name}: expected a list of Steps, got {type(steps).__name__}")
    if not steps:
        raise ValueError(f"{name}: expected at least one step, got none")
    shapes = {factor: pyramid(fixed, factor).shape[2:] for factor in {s.factor for s in steps}}
    kept = []
    for step in steps:
        field = _require_field(f"{name}, displacement", step.displacement)
        if field.shape[2:] != shapes[step.factor]:
            raise ValueError(
                f"{name}, displacement: expected {tuple(shapes[step.factor])} voxels "
                f"at factor {step.factor:g}, got {tuple(field.shape[2:])}"
            )
        kept.append(step._replace(displacement=field))
    return kept

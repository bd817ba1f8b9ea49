"""Demons: every voxel pushes towards agreement, and a blur makes the pushes one motion."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from course_lib.losses import mse
from course_lib.optimise import Step, Watch
from course_lib.spatial import (
    at_least_float32,
    compose,
    integrate,
    pyramid,
    resize_displacement,
    smooth,
    warp,
)
from course_lib.validation import (
    require_callable,
    require_displacement,
    require_finite,
    require_image,
    require_number,
    require_option,
    require_same,
    require_schedule,
    require_whole,
)

Gradient = Literal["fixed", "warped", "both"]

_GRADIENTS = ("fixed", "warped", "both")
_SQUARINGS = 2  # a step of half a voxel begins as an eighth


def demons_force(
    warped: Tensor, fixed: Tensor, *, gradient: Gradient = "fixed", longest: float = 0.5
) -> Tensor:
    """Where each voxel would look next, had it no neighbors: Thirion's step.

    ``du = (f − w) g / (|g|² + (f − w)² / (4 L²))``, with ``w`` the warped image, ``f`` the fixed
    one, ``g`` the gradient of one of them (central differences, one-sided at the border) and ``L``
    the longest step. Where ``|g|`` is large beside ``|f − w|`` this is Newton's step on the
    difference, and lands where a straight slope meets ``f``; where it is small, the second term
    keeps it from leaping. ``L = 0.5`` is Thirion's own formula. Where both are 0, as in flat
    background, so is the step.

    The pull-back decides on the sign: ``warped(x + du) ≈ w + g · du`` is to become ``f``. And it is
    a gradient step: ``(w − f) g`` is the gradient of ``(warped(x + du) − f)² / 2`` by ``du``, voxel
    by voxel, with ``g`` of the warped image. Thirion takes ``g`` of the fixed image: the gradient
    of ``(w − fixed(x − du))² / 2``, which pulls the fixed image the other way. At the goal the two
    are one; ``"both"`` is their mean.

    Several channels add up: ``Σ (f − w) g / Σ (|g|² + (f − w)² / (4 L²))``.

    Args:
        warped, fixed: ``(B, C, *spatial)``, floating, intensities that mean the same in both.
        gradient: of which image.
        longest: how far a step goes at most, in voxels, above 0.

    Returns:
        ``(B, D, *spatial)``, in voxels, float32 or better; no vector is longer than ``longest``.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or option.

    Source: Thirion, "Image matching as a diffusion process: an analogy with Maxwell's demons",
    Medical Image Analysis 2(3), 1998; the three gradients: Vercauteren, Pennec, Perchant, Ayache,
    "Diffeomorphic demons", NeuroImage 45(1), 2009. Taught in lesson 20.
    """
    require_image("warped", warped)
    ndim = len(require_image("fixed", fixed))
    require_same("warped", warped, "fixed", fixed)
    require_option("gradient", gradient, _GRADIENTS)
    if not require_number("longest", longest) > 0:
        raise ValueError(f"longest: expected a number above 0, got {longest!r}")
    w, f = at_least_float32(warped), at_least_float32(fixed)
    image = {"fixed": f, "warped": w, "both": (f + w) / 2}[gradient]
    slopes = torch.stack(torch.gradient(image, dim=tuple(range(2, 2 + ndim))), dim=2)
    difference = (f - w).unsqueeze(2)  # (B, C, 1, *spatial); slopes: (B, C, D, *spatial)
    push = (difference * slopes).sum(1)  # (B, D, *spatial)
    size = slopes.square().sum((1, 2)) + difference.square().sum((1, 2)) / (4 * longest**2)
    # 0/0: divided by infinity, a voxel that knows nothing stays.
    size = size.masked_fill(size < torch.finfo(size.dtype).tiny, torch.inf)
    return push / size.unsqueeze(1)


@torch.inference_mode(False)
@torch.no_grad()
def demons(
    moving: Tensor,
    fixed: Tensor,
    start: Tensor | None = None,
    *,
    diffeomorphic: bool = False,
    smoothness: float = 1.5,
    viscosity: float = 0.0,
    gradient: Gradient = "fixed",
    factors: Sequence[float] = (4, 2, 1),
    steps: int = 60,
    watch: Watch | None = None,
) -> Tensor:
    """The displacement to which the demons' pushes and a blur lead, coarse to fine.

    A gradient descent on the mean squared difference, unrolled: warp; let every voxel push
    (:func:`demons_force`); blur the pushes by ``viscosity``; add them; blur the field by
    ``smoothness``. The first blur makes each *step* smooth, as in a fluid, which forgets where it
    was; the second one makes the *sum* smooth, as diffusion does, and pulls it back as an elastic
    body would. There is no weight λ: the blurs say how stiff the field is.

    Added steps may fold. If ``diffeomorphic``, a step is followed instead, as a velocity: where
    the step ``du`` is smooth, ``exp(du)`` does not fold, and neither does a composition of such
    maps, ``u ← compose(u, exp(du))``: first by ``u``, as the moving image is warped already, then
    by the step. On an array that holds for steps that change little from voxel to voxel, so give
    it some ``viscosity``; and the blur of the field may undo it. Count the folds.

    A push is made for the image as it is warped, so it belongs *before* ``u`` on a point's way: to
    add it to ``u`` is right only where ``u`` hardly turns or stretches. After a large turn, warp by
    the affine map first and run demons on what is left, or compose.

    The pushes believe in intensities: tissue has to be equally bright in both images
    (:func:`match_histogram` helps), or the field chases the difference of contrast.

    Args:
        moving, fixed: ``(B, C, *spatial)``, floating.
        start: ``(B, D, *spatial)``, in voxels, where it begins; zero if None.
        diffeomorphic: whether steps are composed rather than added.
        smoothness: standard deviation of the field's blur, in voxels of the level's image.
        viscosity: standard deviation of the steps' blur, in voxels of the level's image.
        gradient: of which image the pushes take the gradient, see :func:`demons_force`.
        factors: how much smaller the images of each level are, coarse to fine.
        steps: on each level.
        watch: called after each step with the :class:`~course_lib.optimise.Step` that was taken;
            its loss is the mean squared difference, its ``penalty`` is 0.

    Returns:
        ``(B, D, *spatial)``, in voxels, float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device, option or negative blur.

    Source: Thirion, "Image matching as a diffusion process: an analogy with Maxwell's demons",
    Medical Image Analysis 2(3), 1998; Vercauteren, Pennec, Perchant, Ayache, "Diffeomorphic
    demons: efficient non-parametric image registration", NeuroImage 45(1), 2009. Taught in
    lesson 20.
    """
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    require_number("smoothness", smoothness, 0)
    require_number("viscosity", viscosity, 0)
    require_option("gradient", gradient, _GRADIENTS)
    require_schedule(factors, steps)
    if watch is not None:
        require_callable("watch", watch)
    moving, fixed = (at_least_float32(image.detach().clone()) for image in (moving, fixed))
    displacement = _start(start, fixed)
    for factor in factors:
        small_moving, small_fixed = pyramid(moving, factor), pyramid(fixed, factor)
        displacement = resize_displacement(displacement, small_fixed.shape[2:])
        for number in range(1, steps + 1):
            warped = warp(small_moving, displacement, padding="border")
            if watch is not None:
                loss, stopped = float(mse(warped, small_fixed)), "steps" if number == steps else ""
                watch(Step(factor, number, loss, loss, 0.0, displacement.clone(), stopped))
            step = smooth(demons_force(warped, small_fixed, gradient=gradient), viscosity)
            if diffeomorphic:
                displacement = compose(displacement, integrate(step, _SQUARINGS))
            else:
                displacement = displacement + step
            displacement = smooth(displacement, smoothness)
    return resize_displacement(displacement, spatial)


def _start(start: Tensor | None, fixed: Tensor) -> Tensor:
    """``start``, or zero, as ``(B, D, *spatial)``, float32 or better."""
    if start is None:
        return torch.zeros_like(fixed[:, :1]).repeat_interleave(fixed.ndim - 2, dim=1)
    require_displacement("start", start)
    require_same("start", start, "fixed", fixed, channels=False)
    return at_least_float32(start.detach().clone())


def match_histogram(image: Tensor, reference: Tensor, levels: int = 256) -> Tensor:
    """The image with the reference's distribution of intensities: ``F_r⁻¹(F_i(image))``.

    ``F`` is the fraction of voxels of at most an intensity. So the darkest tenth of the image gets
    the values of the reference's darkest tenth, and so on: what is brighter stays brighter, and any
    rising change of contrast is undone. Between ``levels`` evenly spaced fractions the map is
    linear. Each channel of each item by itself.

    It needs the same mixture of tissues in both images: it would turn a tumor, or more background,
    into another contrast. Falling contrasts, such as T1 to T2, it cannot undo.

    Args:
        image, reference: ``(B, C, *spatial)``, floating; the spatial shapes may differ.
        levels: how many pieces the map has, 1 or more.

    Returns:
        ``(B, C, *spatial of image)``, of the image's dtype.

    Raises:
        TypeError, ValueError: on a wrong rank, dtype, device, another batch or other channels, or
            values that are not finite.

    Source: Nyúl, Udupa, Zhang, "New variants of a method of MRI scale standardization", IEEE TMI
    19(2), 2000, with more landmarks. Taught in lesson 20.
    """
    require_image("image", image)
    require_image("reference", reference)
    if image.shape[:2] != reference.shape[:2] or image.device != reference.device:
        raise ValueError(
            f"reference: expected batch and channels {tuple(image.shape[:2])} on {image.device}, "
            f"got {tuple(reference.shape[:2])} on {reference.device}"
        )
    require_finite("image", image)
    require_finite("reference", reference)
    levels = require_whole("levels", levels, 1)
    own, wanted = _quantiles(image, levels), _quantiles(reference, levels)  # (B·C, levels + 1)
    values = at_least_float32(image).flatten(2).flatten(0, 1)  # (B·C, voxels)
    right = torch.searchsorted(own, values).clamp(1, levels)  # own[right - 1] < value <= own[right]
    low, high = own.gather(1, right - 1), own.gather(1, right)
    # Where many voxels share an intensity, several quantiles are one: they go to the lowest.
    share = (values - low) / (high - low).masked_fill(high == low, torch.inf)
    matched = torch.lerp(wanted.gather(1, right - 1), wanted.gather(1, right), share)
    return matched.view(image.shape).to(image.dtype)


def _quantiles(image: Tensor, levels: int) -> Tensor:
    """The intensities below which 0, 1/levels, …, 1 of the voxels lie: ``(B·C, levels + 1)``."""
    ordered = at_least_float32(image).flatten(2).flatten(0, 1).sort(dim=1).values
    last = ordered.shape[1] - 1
    places = torch.linspace(0, last, levels + 1, dtype=torch.float64, device=image.device)
    left = places.long().clamp(max=last - 1)
    return torch.lerp(ordered[:, left], ordered[:, left + 1], (places - left).to(ordered))

"""Registration of one pair by gradient descent on its displacement field."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.losses import diffusion, lncc
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
    require_image,
    require_number,
    require_same,
    require_schedule,
)

Similarity = Callable[[Tensor, Tensor], Tensor]
Regularizer = Callable[[Tensor], Tensor]


class Step(NamedTuple):
    """One step of :func:`refine`: what it was taken from.

    Attributes:
        factor: how much smaller the level's images are.
        number: of the step on its level, from 1.
        loss: ``similarity + weight · penalty``, of ``displacement``.
        similarity: of the images, warped by ``displacement``.
        penalty: the regularizer's value, without its weight.
        displacement: ``(B, D, *spatial)``, in voxels of the level's image, a copy: the field
            *before* the step. So step 1 shows where the level begins.
        stopped: why the level ended with this step, "" before its last one: "converged", or
            "steps" where it had taken as many as it was allowed.

    Taught in lesson 20.
    """

    factor: float
    number: int
    loss: float
    similarity: float
    penalty: float
    displacement: Tensor
    stopped: str


Watch = Callable[[Step], object]


def has_converged(losses: Sequence[float], tolerance: float, window: int = 10) -> bool:
    """Whether a descent has become flat: its last steps gained little of what it gained in all.

    ``best before the last steps − best ≤ tolerance · (first − best)``: a loss in any unit, with any
    gain and offset, gives the same answer.

    Args:
        losses: of the steps so far.
        tolerance: the part of the whole fall that still counts as one, 0 or more; 0 is never met.
        window: how many steps are the last ones.

    Returns:
        False before more than ``window`` steps are taken, or where a loss is NaN.

    Example:
        >>> has_converged([5.0, 3.0, 2.0, 1.9], 0.1, window=2)
        False
        >>> has_converged([5.0, 3.0, 2.0, 1.9, 1.8], 0.1, window=2)
        True

    Taught in lesson 20.
    """
    if tolerance == 0 or len(losses) <= window:
        return False
    best = min(losses)
    return min(losses[:-window]) - best <= tolerance * (losses[0] - best)


def descend(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    learning_rate: float,
    after_step: Callable[[], object] = lambda: None,
    until: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Adam's answer after so many steps: parameters with a lower loss.

    Args:
        loss: of the parameters; a scalar.
        start: the parameters at the beginning, floating; left as it is.
        steps: how many, at most.
        learning_rate: about how far one step goes.
        after_step: called after each step, for progress bars.
        until: asked after each step whether it was the last.

    Returns:
        Like ``start``, without gradient.

    Source: Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    Taught in lesson 00.
    """
    # Also where gradients are switched off: this function needs its own.
    with torch.inference_mode(False), torch.enable_grad():
        parameters = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([parameters], lr=learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(parameters).backward()
            optimizer.step()
            after_step()
            if until():
                break
    return parameters.detach()


@torch.inference_mode(False)
def refine(
    moving: Tensor,
    fixed: Tensor,
    start: Tensor | None = None,
    *,
    similarity: Similarity = lncc,
    regularizer: Regularizer = diffusion,
    weight: float = 1.0,
    smoothness: float = 4.0,
    factors: Sequence[float] = (4, 2, 1),
    steps: int = 60,
    tolerance: float = 0.05,
    velocity: bool = False,
    watch: Watch | None = None,
    progress: bool = False,
) -> Tensor:
    """The displacement that minimizes ``similarity(warped, fixed) + weight · regularizer(u)``.

    Adam, coarse to fine: each level resizes the field that it is given to its small images, and
    changes it. Samples outside the moving image take its border value.

    The change is a blurred field: Adam moves the nodes of a grid, and a Gaussian makes one smooth
    change of them, so that no voxel moves without its neighbors.

    A level ends when :func:`has_converged` says so of its losses, or after ``steps``. There is one
    loss for the batch, so its items end together: one that is refined alone may end earlier. With
    ``tolerance=0`` each finds what it finds alone.

    Args:
        moving, fixed: ``(B, C, *spatial)``, floating.
        start: ``(B, D, *spatial)``, in voxels, where the descent begins; zero if None.
        similarity: a loss of ``(warped, fixed)``.
        regularizer: a penalty of the displacement, in voxels of the level's image.
        weight: of the penalty, 0 or more: large is stiff, small folds.
        smoothness: of the change that a level makes: the Gaussian's standard deviation, in voxels
            of the level's image; 0 leaves every voxel to itself.
        factors: how much smaller the images of each level are, coarse to fine.
        steps: gradient steps on each level, at most.
        tolerance: a level ends when ten steps have gained no more than this part of what the level
            has gained in all; 0 takes all steps.
        velocity: whether the change is ``exp(v)`` of a stationary velocity, which does not fold,
            and is composed with the field: ``compose(before, exp(v))`` warps by ``before`` first.
            Otherwise it is added.
        watch: called with each :class:`Step`.
        progress: whether to show a progress bar.

    Returns:
        ``(B, D, *spatial)``, in voxels, float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device, or a negative ``weight``,
            ``smoothness`` or ``tolerance``.

    Source: Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, "VoxelMorph", TMI 38(8), 2019, where it is
    called instance optimization. Taught in lesson 00 and 20.
    """
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    require_number("weight", weight, 0)
    require_number("smoothness", smoothness, 0)
    require_number("tolerance", tolerance, 0)
    require_schedule(factors, steps)
    require_callable("similarity", similarity)
    require_callable("regularizer", regularizer)
    if watch is not None:
        require_callable("watch", watch)
    moving, fixed = (at_least_float32(image.detach().clone()) for image in (moving, fixed))
    if start is None:
        displacement = torch.zeros_like(fixed[:, :1]).repeat_interleave(len(spatial), dim=1)
    else:
        require_displacement("start", start)
        require_same("start", start, "fixed", fixed, channels=False)
        displacement = at_least_float32(start.detach().clone())
    changed = partial(_changed, smoothness=smoothness, velocity=velocity)

    def energy(nodes: Tensor, before: Tensor, images: tuple[Tensor, Tensor], log: _Log) -> Tensor:
        u, (small_moving, small_fixed) = changed(before, nodes), images
        similar = similarity(warp(small_moving, u, padding="border"), small_fixed)
        penalty = regularizer(u)
        total = similar + weight * penalty
        log.note(u, total, similar, penalty)
        # Adam's epsilon is made for gradients of about 1, whatever the number of voxels.
        return total * small_fixed.numel()

    with tqdm(total=steps * len(factors), disable=not progress, leave=False) as bar:
        for factor in factors:
            images = pyramid(moving, factor), pyramid(fixed, factor)
            before = resize_displacement(displacement, images[1].shape[2:])
            log = _Log(factor, steps, tolerance, watch)
            nodes = descend(
                partial(energy, before=before, images=images, log=log),
                _still_nodes(before, smoothness),
                steps=steps,
                learning_rate=0.1,
                after_step=bar.update,
                until=log.ends,
            )
            displacement = changed(before, nodes)
    return resize_displacement(displacement, spatial)


def _spacing(smoothness: float) -> float:
    """Voxels from node to node: two nodes in a standard deviation draw a Gaussian well."""
    return max(1.0, smoothness / 2)


def _still_nodes(before: Tensor, smoothness: float) -> Tensor:
    """The parameters of no change: the nodes lie over the voxels of ``before``, corner on corner.

    There are at least 3 along each axis (or one for each voxel, if that is fewer).
    """
    spacing = _spacing(smoothness)
    shape = [max(min(n, 3), math.ceil((n - 1) / spacing) + 1) for n in before.shape[2:]]
    return before.new_zeros(*before.shape[:2], *shape)


def _changed(before: Tensor, nodes: Tensor, smoothness: float, velocity: bool) -> Tensor:
    """The field after the change that the nodes describe, each in units of its own grid."""
    change = smooth(nodes, smoothness / _spacing(smoothness))
    if velocity:
        change = integrate(change)
    if change.shape != before.shape:
        change = resize_displacement(change, before.shape[2:])
    return compose(before, change) if velocity else before + change


@dataclass
class _Log:
    """The losses of one level: it passes each step on to ``watch``, and says when to end."""

    factor: float
    steps: int
    tolerance: float
    watch: Watch | None
    losses: list[float] = field(default_factory=list)
    latest: tuple[Tensor, ...] = ()

    def note(self, displacement: Tensor, *terms: Tensor) -> None:
        """Remember what the next step is taken from: a displacement and its three losses."""
        self.losses.append(float(terms[0].detach()))
        self.latest = (displacement.detach(), *(term.detach() for term in terms))

    def ends(self) -> bool:
        """Whether this step was the level's last."""
        stopped = ""
        if has_converged(self.losses, self.tolerance):
            stopped = "converged"
        elif len(self.losses) == self.steps:
            stopped = "steps"
        if self.watch is not None:
            displacement, loss, similarity, penalty = self.latest
            parts = float(loss), float(similarity), float(penalty)
            # A copy, for the watcher to keep or to write into.
            self.watch(Step(self.factor, len(self.losses), *parts, displacement.clone(), stopped))
        return stopped != ""

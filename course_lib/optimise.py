"""Registration of one pair by gradient descent on its displacement field."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.losses import diffusion, lncc
from course_lib.spatial import at_least_float32, pyramid, resize_displacement, warp
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


def descend(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    learning_rate: float,
    after_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Adam's answer after so many steps: parameters with a lower loss.

    Args:
        loss: of the parameters; a scalar.
        start: the parameters at the beginning, floating; left as it is.
        steps: how many.
        learning_rate: about how far one step goes.
        after_step: called after each step, for progress bars.

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
    return parameters.detach()


@torch.inference_mode(False)
def refine(
    moving: Tensor,
    fixed: Tensor,
    start: Tensor | None = None,
    *,
    similarity: Similarity = lncc,
    regularizer: Regularizer = diffusion,
    weight: float = 2.5,
    factors: Sequence[float] = (4, 2, 1),
    steps: int = 60,
    progress: bool = False,
) -> Tensor:
    """The displacement that minimizes ``similarity(warped, fixed) + weight · regularizer(u)``.

    Adam on every voxel's displacement, coarse to fine: the field found on a small image is resized
    and is the start on the next. Samples outside the moving image take its border value.

    Args:
        moving, fixed: ``(B, C, *spatial)``, floating.
        start: ``(B, D, *spatial)``, in voxels, where the descent begins; zero if None.
        similarity: a loss of ``(warped, fixed)``.
        regularizer: a penalty of the displacement, in voxels of the level's image.
        weight: of the penalty, 0 or more: large is stiff, small folds.
        factors: how much smaller the images of each level are, coarse to fine.
        steps: gradient steps on each level.
        progress: whether to show a progress bar.

    Returns:
        ``(B, D, *spatial)``, in voxels, float32 or better.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or a negative ``weight``.

    Source: Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, "VoxelMorph", TMI 38(8), 2019, where it is
    called instance optimization. Taught in lesson 00 and 20.
    """
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    require_number("weight", weight, 0)
    require_schedule(factors, steps)
    require_callable("similarity", similarity)
    require_callable("regularizer", regularizer)
    moving, fixed = (at_least_float32(image.detach().clone()) for image in (moving, fixed))
    if start is None:
        displacement = torch.zeros_like(fixed[:, :1]).repeat_interleave(len(spatial), dim=1)
    else:
        require_displacement("start", start)
        require_same("start", start, "fixed", fixed, channels=False)
        displacement = at_least_float32(start.detach().clone())

    def energy(displacement: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        warped = warp(moving, displacement, padding="border")
        total = similarity(warped, fixed) + weight * regularizer(displacement)
        # Adam's epsilon is made for gradients of about 1, whatever the number of voxels.
        return total * fixed.numel()

    with tqdm(total=steps * len(factors), disable=not progress, leave=False) as bar:
        for factor in factors:
            small_moving, small_fixed = pyramid(moving, factor), pyramid(fixed, factor)
            displacement = descend(
                partial(energy, moving=small_moving, fixed=small_fixed),
                resize_displacement(displacement, small_fixed.shape[2:]),
                steps=steps,
                learning_rate=0.1,
                after_step=bar.update,
            )
    return resize_displacement(displacement, spatial)

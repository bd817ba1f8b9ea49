"""Registration of one pair by gradient descent on its displacement field."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.classical.affine import pyramid, require_schedule
from course_lib.losses import diffusion, lncc
from course_lib.spatial import resize_displacement, warp
from course_lib.validation import (
    require_callable,
    require_displacement,
    require_image,
    require_number,
    require_same,
)


def refine(
    moving: Tensor,
    fixed: Tensor,
    start: Tensor | None = None,
    *,
    similarity: Callable[[Tensor, Tensor], Tensor] = lncc,
    weight: float = 2.5,
    factors: Sequence[int] = (4, 2, 1),
    steps: int = 60,
    progress: bool = False,
) -> Tensor:
    """The displacement that minimizes ``similarity(warped, fixed) + weight · diffusion(u)``.

    Adam on every voxel's displacement, coarse to fine: the field found on a small image is resized
    and is the start on the next. Samples outside the moving image take its border value.

    Args:
        moving, fixed: ``(B, C, *spatial)``, floating.
        start: ``(B, D, *spatial)``, in voxels, where the descent begins; zero if None.
        similarity: a loss of ``(warped, fixed)``.
        weight: of the smoothness, 0 or more: large is stiff, small folds.
        factors: how much smaller the images of each level are, coarse to fine.
        steps: gradient steps on each level.
        progress: whether to show a progress bar.

    Returns:
        ``(B, D, *spatial)``, in voxels.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype, device or a negative ``weight``.

    Taught in lesson 00 and 20.
    """
    require_image("moving", moving)
    spatial = require_image("fixed", fixed)
    require_same("moving", moving, "fixed", fixed)
    require_number("weight", weight, 0)
    require_schedule(factors, steps)
    require_callable("similarity", similarity)
    if start is None:
        displacement = torch.zeros_like(fixed[:, :1]).repeat(1, len(spatial), *(1,) * len(spatial))
    else:
        require_displacement("start", start)
        require_same("start", start, "fixed", fixed, channels=False)
        displacement = start.detach()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        tqdm(total=steps * len(factors), disable=not progress, leave=False) as bar,
    ):
        moving, fixed, displacement = (x.detach().clone() for x in (moving, fixed, displacement))
        for factor in factors:
            small_moving, small_fixed = pyramid(moving, factor), pyramid(fixed, factor)
            displacement = resize_displacement(displacement, small_fixed.shape[2:]).clone()
            optimizer = torch.optim.Adam([displacement.requires_grad_()], lr=0.1)
            for _ in range(steps):
                warped = warp(small_moving, displacement, padding="border")
                loss = similarity(warped, small_fixed) + weight * diffusion(displacement)
                optimizer.zero_grad()
                # Adam's epsilon is made for gradients of about 1, whatever the number of voxels.
                (loss * small_fixed.numel()).backward()
                optimizer.step()
                bar.update()
            displacement = displacement.detach()
    return resize_displacement(displacement, spatial)

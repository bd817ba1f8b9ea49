"""What every registration network returns."""

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """A network's answer for a pair of images; what it does not compute is None or empty.

    Attributes:
        displacement: ``(B, D, *spatial)``, in voxels, on the fixed grid.
        stages: displacements on the way to it, coarse to fine or first to last.
        velocity: ``(B, D, *grid)``, in voxels of its own grid, whose integral the displacement is.
        log_variance: like ``velocity``, of a network that predicts a distribution.
        inverse: ``(B, D, *spatial)``, from moving to fixed.
        matrix: ``(B, D, D+1)``, ``[A | t]`` of an affine network.
    """

    displacement: Tensor
    stages: tuple[Tensor, ...] = ()
    velocity: Tensor | None = None
    log_variance: Tensor | None = None
    inverse: Tensor | None = None
    matrix: Tensor | None = None

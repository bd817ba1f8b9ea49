"""Networks: one pass and one training step of ours, a plain transcription's, MONAI's, VoxelMorph's.

    python -m benchmarks.networks                    # 2D and 3D
    python -m benchmarks.networks --quick            # 2D, three rounds
    python -m benchmarks.networks --only "vm2"

What is timed and printed is as in `benchmarks.primitives`. "Forward" is the pass without gradients,
displacement and warped image. A training step is the pass, similarity + diffusion, the gradients
and Adam's step. "plain" is the same network written here with nothing but PyTorch, and the same
weights: that counts, with a target of 1. With local NCC everybody brings an NCC of their own
(plain: sums over windows by convolution, as voxelmorph 0.2 has it), and so do we: that ratio is
what the library's loss gains. MONAI and voxelmorph 0.3 have no such network: theirs are of the
nearest size, named with their parameters, and do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import contenders, primitives
from benchmarks.contenders import Arrays, Peer, Prepare, Row
from benchmarks.harness import Call
from course_lib import losses, spatial
from course_lib.models import VoxelMorph

CASES = {"2D 224×192": (224, 192), "3D 96×112×96": (96, 112, 96)}
SMALL, LARGE = CASES
QUICK = (SMALL,)
WEIGHT = {"MSE": 0.01, "local NCC": 1.0}  # of the diffusion
REACH = 3.0  # voxels: how far the untrained networks' fields go, so that they really sample

Similarity = Callable[[Tensor, Tensor], Tensor]
Penalty = Callable[[Tensor], Tensor]
# Moving and fixed image in; warped image and displacement out.
Pass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


# -------------------------------------------------------------------------- the plain transcription


class Plain(nn.Module):
    """VoxelMorph in plain PyTorch, for images of one size: max-pooling or strides, as given."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        encoder: Sequence[int] = (16, 32, 32, 32),
        decoder: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
        doubled: Sequence[int] = (1, 2, 3, 4),  # before these places of the decoder
        pooling: bool = True,
        velocity: bool = True,
    ) -> None:
        super().__init__()
        self.ndim, self.doubled, self.pooling = len(shape), tuple(doubled), pooling
        self.velocity = velocity
        convolution: Any = nn.Conv2d if self.ndim == 2 else nn.Conv3d
        stride, channels, bridges = 1 if pooling else 2, 2, []
        self.down = nn.ModuleList()
        for width in encoder:
            self.down.append(convolution(channels, width, 3, stride, 1))
            bridges.append(width if pooling else channels)
            channels = width
        self.up = nn.ModuleList()
        for place, width in enumerate(decoder):
            joined = bridges.pop() if place in self.doubled else 0
            self.up.append(convolution(channels + joined, width, 3, 1, 1))
            channels = width
        self.flow = convolution(channels, self.ndim, 3, 1, 1)
        for name, size in (("grid", shape), ("half_grid", [n // 2 for n in shape])):
            axes = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
            self.register_buffer(name, torch.stack(axes)[None])

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """The warped image and the displacement."""
        field = self.flow(self.features(torch.cat([moving, fixed], 1)))
        if self.velocity:
            field = self.resized(field, 0.5)
            field = field / 2**7
            for _ in range(7):
                field = field + self.sampled(field, field, self.half_grid)
            field = self.resized(field, 2.0)
        return self.sampled(moving, field, self.grid), field

    def features(self, x: Tensor) -> Tensor:
        bridges = []
        for convolution in self.down:
            bridges.append(x)
            x = F.leaky_relu(convolution(x), 0.2)
            if self.pooling:
                bridges[-1] = x
                x = F.max_pool2d(x, 2) if self.ndim == 2 else F.max_pool3d(x, 2)
        for place, convolution in enumerate(self.up):
            if place in self.doubled:
                x = torch.cat([F.interpolate(x, scale_factor=2), bridges.pop()], 1)
            x = F.leaky_relu(convolution(x), 0.2)
        return x

    def resized(self, field: Tensor, factor: float) -> Tensor:
        mode = "bilinear" if self.ndim == 2 else "trilinear"
        size = [int(n * factor) for n in field.shape[2:]]
        return factor * F.interpolate(field, size=size, mode=mode, align_corners=True)

    def sampled(self, image: Tensor, field: Tensor, grid: Tensor) -> Tensor:
        where = grid + field
        last = torch.tensor([n - 1 for n in field.shape[2:]]).view(1, -1, *(1,) * self.ndim)
        where = (2 * where / last - 1).movedim(1, -1).flip(-1)
        return F.grid_sample(image, where, align_corners=True)


def plain_ncc(a: Tensor, b: Tensor, window: int = 9) -> Tensor:
    """Local NCC with every sum over a window as a convolution with ones."""
    ndim = a.ndim - 2
    ones = torch.ones(1, 1, *(window,) * ndim)
    convolution = F.conv2d if ndim == 2 else F.conv3d
    n = float(window**ndim)

    def total(x: Tensor) -> Tensor:
        return convolution(x, ones, padding=window // 2)

    sum_a, sum_b = total(a), total(b)
    cross = total(a * b) - sum_a * sum_b / n
    var_a, var_b = total(a * a) - sum_a * sum_a / n, total(b * b) - sum_b * sum_b / n
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()


def plain_diffusion(field: Tensor) -> Tensor:
    """The mean over the axes of mean squared forward differences."""
    axes = range(2, field.ndim)
    return sum((field.diff(dim=axis).square().mean() for axis in axes), torch.zeros(())) / len(axes)


# ---------------------------------------------------------------------------------------- networks


def ours(a: Arrays, version: str = "") -> nn.Module:
    """Our network with seeded weights and a head that is turned up until fields go somewhere."""
    ndim = a.fixed.ndim - 2
    torch.manual_seed(0)
    model = VoxelMorph.vm2(ndim) if version == "vm2" else VoxelMorph(ndim)
    with torch.no_grad():
        field = model.flow(model.unet(torch.cat([a.moving, a.fixed], 1)))
        model.flow.weight *= REACH / field.abs().max()
    return model


def our_pass(model: nn.Module) -> Pass:
    """Displacement and warp, as the lessons write it."""

    def run(moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        displacement = model(moving, fixed).displacement
        return spatial.warp(moving, displacement), displacement

    return run


def plain(a: Arrays, version: str = "") -> nn.Module:
    """The transcription with our weights."""
    shape = a.fixed.shape[2:]
    strided: Any = {"pooling": False, "velocity": False, "doubled": (1, 2, 3, 5)}
    theirs = Plain(shape, **strided) if version == "vm2" else Plain(shape)
    copy_in_order(ours(a, version), theirs)
    return theirs


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters between two networks that have the same ones in the same order.

    Raises:
        ValueError: if they have not.
    """
    pairs = list(zip(source.parameters(), target.parameters(), strict=True))
    with torch.no_grad():
        for one, other in pairs:
            if one.shape != other.shape:
                raise ValueError(f"expected {tuple(other.shape)}, got {tuple(one.shape)}")
            other.copy_(one)


def monai(a: Arrays) -> nn.Module:
    """Its VoxelMorph; half resolution fails in 2D, so it integrates at full size there."""
    from monai.networks.nets import VoxelMorph as Theirs
    from monai.networks.nets import VoxelMorphUNet

    ndim = a.fixed.ndim - 2
    backbone = VoxelMorphUNet(ndim, 2, 32, (16, 32, 32, 32, 32, 32), (16, 16))
    return Theirs(backbone, integration_steps=7, half_res=ndim == 3, spatial_dims=ndim)


def voxelmorph(a: Arrays) -> nn.Module:
    """Its VxmPairwise, wider than by default so that it has our size; integrates at full size."""
    from voxelmorph.nn.models import VxmPairwise

    features = (16, 32, 32, 32, 32)
    return VxmPairwise(a.fixed.ndim - 2, 1, 1, nb_features=features, integration_steps=7)


def voxelmorph_pass(model: nn.Module) -> Pass:
    """Warped image and displacement, in the order of the others."""

    def run(moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        displacement, warped = model(moving, fixed, return_warped_source=True)
        return warped, displacement

    return run


# ---------------------------------------------------------------------------------- what is timed


def forward(make: Callable[[Arrays], nn.Module], use: Callable[[nn.Module], Pass]) -> Prepare:
    """One pass without gradients, to the displacement."""

    def prepare(a: Arrays) -> Call:
        run = use(make(a).eval())

        @torch.inference_mode()
        def call() -> Tensor:
            return run(a.moving, a.fixed)[1].clone()

        return call

    return prepare


def training_step(
    make: Callable[[Arrays], nn.Module],
    use: Callable[[nn.Module], Pass],
    losses_of: Callable[[int], tuple[Similarity, Penalty]],
    weight: float,
) -> Prepare:
    """One step of training; returns the loss of the first, which all networks start from."""

    def prepare(a: Arrays) -> Call:
        model = make(a).train()
        run = use(model)
        similarity, penalty = losses_of(a.fixed.ndim - 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        first: list[float] = []

        def call() -> float:
            optimizer.zero_grad()
            warped, displacement = run(a.moving, a.fixed)
            loss = similarity(warped, a.fixed) + weight * penalty(displacement)
            loss.backward()
            optimizer.step()
            first.append(float(loss.detach()))
            return first[0]

        return call

    return prepare


def itself(model: nn.Module) -> Pass:
    """A network that returns warped image and displacement as it is."""
    return model


def our_losses(name: str) -> Callable[[int], tuple[Similarity, Penalty]]:
    similarity = losses.mse if name == "MSE" else losses.lncc
    return lambda ndim: (similarity, losses.diffusion)


def plain_losses(name: str) -> Callable[[int], tuple[Similarity, Penalty]]:
    similarity = F.mse_loss if name == "MSE" else plain_ncc
    return lambda ndim: (similarity, plain_diffusion)


def monai_losses(name: str) -> Callable[[int], tuple[Similarity, Penalty]]:
    def make(ndim: int) -> tuple[Similarity, Penalty]:
        from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss

        ncc = LocalNormalizedCrossCorrelationLoss(spatial_dims=ndim, kernel_size=9)
        return (F.mse_loss if name == "MSE" else ncc), DiffusionLoss()

    return make


def neurite_losses(name: str) -> Callable[[int], tuple[Similarity, Penalty]]:
    def make(ndim: int) -> tuple[Similarity, Penalty]:
        from neurite.nn.modules import NCC, SpatialGradient

        ncc = NCC(window_size=9)
        penalty = SpatialGradient(penalty="l2")
        return (F.mse_loss if name == "MSE" else lambda a, b: -ncc(a, b).squeeze()), penalty

    return make


# -------------------------------------------------------------------------------------------- rows

OTHERS = {  # their parameters in 2D and 3D; a test counts them
    "MONAI (81,458 / 244,323)": (monai, itself, monai_losses),
    "voxelmorph 0.3 (111,256 / 333,241)": (voxelmorph, voxelmorph_pass, neurite_losses),
}


def _forward_row(name: str, version: str, others: bool) -> Row:
    peers = {"plain": Peer(forward(lambda a: plain(a, version), itself))}
    if others:
        peers |= {
            other: Peer(forward(make, use), counts=False)
            for other, (make, use, _) in OTHERS.items()
        }
    return Row(
        f"{name}, forward",
        forward(lambda a: ours(a, version), our_pass),
        peers,
        dict.fromkeys(CASES, 1.0),
    )


def _training_row(name: str, version: str, similarity: str, others: bool) -> Row:
    weight = WEIGHT[similarity]
    peers = {
        "plain": Peer(
            training_step(lambda a: plain(a, version), itself, plain_losses(similarity), weight)
        )
    }
    if others:
        peers |= {
            other: Peer(training_step(make, use, theirs(similarity), weight), counts=False)
            for other, (make, use, theirs) in OTHERS.items()
        }
    return Row(
        f"{name}, training step, {similarity}",
        training_step(lambda a: ours(a, version), our_pass, our_losses(similarity), weight),
        peers,
        dict.fromkeys(CASES, 1.0) if similarity == "MSE" else {},
    )


ROWS = [
    _forward_row("VoxelMorph", "", others=True),
    _training_row("VoxelMorph", "", "MSE", others=True),
    _training_row("VoxelMorph", "", "local NCC", others=True),
    _forward_row("vm2", "vm2", others=False),
    _training_row("vm2", "vm2", "MSE", others=False),
]


def ready(row_name: str, competitor: str, shape: tuple[int, ...]) -> Call:
    """For a process of its own: the call of one competitor, after a warm-up on small arrays."""
    return contenders.warmed(ROWS, row_name, competitor, shape)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    suite = primitives.Suite(
        program="benchmarks.networks",
        description=__doc__ or "",
        rows=ROWS,
        cases=CASES,
        quick=QUICK,
        ready=ready,
        output=primitives.RESULTS.with_name("networks.json"),
    )
    primitives.main(argv, suite)


if __name__ == "__main__":
    main()

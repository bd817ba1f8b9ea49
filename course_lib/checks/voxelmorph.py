"""Checks of exercise 30: sizes, U-Net, flow head, loss, training loop, what a network's look saves.

A flow head is drawn at random, so its check does not compare weights but what is known about them:
`HeadCheck` measures the layer that an answer returns.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.checks.core import Check, Goal, Law, Mistake, Outcome
from course_lib.checks.messages import kind
from course_lib.checks.task import Function
from course_lib.datasets import Pair, brains
from course_lib.losses import diffusion, lncc, mse
from course_lib.models import UNet, VoxelMorph, pretrained
from course_lib.optimise import refine
from course_lib.spatial import smooth, warp

SLUG = "30_voxelmorph"

Block = Callable[[Tensor], Tensor]
Images = list[tuple[Tensor, Tensor]]


# --- sizes ---------------------------------------------------------------------------------------


def _sizes() -> tuple[int, ...]:
    return 192, 224, 12, 14, 64


sizes_inside = Check(
    SLUG,
    "sizes_inside",
    _sizes,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (176, 208, 11, 13, 64),
            "these are the sizes after cropping.\n"
            "Padding adds: take the next multiple of 16 above 180, and above 218.",
        ),
        Mistake(
            lambda: (192, 224, 24, 28, 64),
            "the bottom is one halving too large.\n"
            "There are four: after each of the four blocks on the left.",
        ),
        Mistake(
            lambda: (192, 224, 6, 7, 64),
            "the bottom is one halving too small.\n"
            "There are four: 192 / 16 rows are left. The block at the bottom does not halve again.",
        ),
        Mistake(
            lambda: (192, 224, 12, 14, 32),
            "the sizes are right; the channels of the bridge are missing.\n"
            "The block after a doubling gets the features from below and those of the bridge.",
        ),
        Mistake(
            lambda: (192, 224, 12, 14, 48),
            "the sizes are right; 48 channels come together after the last doubling.\n"
            "The first doubling meets the bridge of the last block on the left. How many channels\n"
            "has that one?",
        ),
        Mistake(
            lambda: (192, 224, 12, 14, 16),
            "the sizes are right; 16 are the channels of the first block on the left.\n"
            "The block after the first doubling gets the features from below and those of the\n"
            "bridge at its own size, together.",
        ),
        Mistake(
            lambda: (256, 256, 16, 16, 64),
            "powers of two are more than is needed.\n"
            "Four halvings ask for a multiple of 2 · 2 · 2 · 2 = 16, no more.",
        ),
        Mistake(
            lambda: (192, 256, 12, 16, 64),
            "the columns are padded too far.\n"
            "218 lies between 13 · 16 and 14 · 16; the next power of two is not asked for.",
        ),
        Mistake(
            lambda: (224, 192, 14, 12, 64),
            "rows and columns are swapped: 180 rows become 192, and 218 columns 224.",
        ),
        Mistake(
            lambda: (192, 224, 14, 12, 64),
            "rows and columns of the bottom are exchanged.\n"
            "The 192 rows are halved to 12, the 224 columns to 14.",
        ),
    ],
    hints=[
        "Each halving asks for an even number. Four halvings ask for a multiple of 2⁴.",
        "The bottom has a sixteenth of the padded rows and columns. After a doubling, torch.cat "
        "adds up the channels of both.",
    ],
)


# --- U-Net ---------------------------------------------------------------------------------------


def _block(channels: int, out_channels: int, generator: torch.Generator) -> Block:
    """A convolution with LeakyReLU, in whatever precision the image comes."""
    weight = torch.randn(out_channels, channels, 3, 3, generator=generator)
    weight = weight * math.sqrt(2 / (9 * channels))
    bias = 0.3 * torch.randn(out_channels, generator=generator)

    def block(x: Tensor) -> Tensor:
        return F.leaky_relu(F.conv2d(x, weight.to(x), bias.to(x), padding=1), 0.2)

    return block


def _network(
    seed: int, shape: tuple[int, ...], down: Sequence[int], up: Sequence[int]
) -> tuple[Tensor, list[Block], list[Block]]:
    """An image, and blocks with these channels on both sides."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(shape, generator=generator)
    widths = [shape[1], *down]
    left = [_block(a, b, generator) for a, b in zip(widths, down, strict=False)]
    joined = [down[-1], *(a + b for a, b in zip(up, reversed(down), strict=False))]
    right = [_block(a, b, generator) for a, b in zip(joined, up, strict=True)]
    return image, left, right


def _wire(
    x: Tensor,
    down: Sequence[Block],
    up: Sequence[Block],
    halve: Block = lambda x: F.max_pool2d(x, 2),
    double: Block = lambda x: F.interpolate(x, scale_factor=2),
    join: Callable[[Tensor, Tensor], Tensor] = lambda below, left: torch.cat([below, left], dim=1),
    after: Block = lambda x: x,
) -> Tensor:
    """The U-Net, with parts to exchange."""
    bridges = []
    for block in down:
        bridges.append(after(block(x)))
        x = halve(bridges[-1])
    x = after(up[0](x))
    for block in up[1:]:
        x = after(block(join(double(x), bridges.pop())))
    return x


def _unet(x: Tensor, down: Sequence[Block], up: Sequence[Block]) -> Tensor:
    return _wire(x, down, up)


def _smoothly(x: Tensor, corners: bool | None = False) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=corners)


unet = Check(
    SLUG,
    "unet",
    _unet,
    [
        lambda: _network(31, (1, 2, 8, 12), (3, 4), (4, 4, 3)),
        lambda: _network(32, (2, 2, 24, 16), (4, 5, 5), (5, 5, 4, 6)),
    ],
    mistakes=[
        Mistake(
            lambda x, down, up: _wire(
                x, down, up, join=lambda below, left: torch.cat([left, below], dim=1)
            ),
            "the bridge comes first; asked for is what comes from below first.\n"
            "torch.cat([x, bridge], dim=1): weights belong to channels by their place.",
        ),
        Mistake(
            lambda x, down, up: _wire(x, down, up, halve=lambda x: F.avg_pool2d(x, 2)),
            "this halves by the mean of 2 × 2 voxels; asked for is the maximum.\n"
            "(Or by an interpolation to half the size, which is the same mean.)\n"
            "F.max_pool2d(x, 2)",
        ),
        Mistake(
            lambda x, down, up: _wire(x, down, up, halve=lambda x: x[:, :, ::2, ::2]),
            "this keeps every other voxel and drops the rest; asked for is the maximum of 2 × 2.\n"
            "F.max_pool2d(x, 2). (F.interpolate with scale_factor=0.5 drops voxels, too.)",
        ),
        Mistake(
            lambda x, down, up: _wire(x, down, up, double=_smoothly),
            "this doubles by a bilinear interpolation; asked for is each voxel repeated.\n"
            "F.interpolate(x, scale_factor=2) without a mode.",
        ),
        Mistake(
            lambda x, down, up: _wire(x, down, up, double=lambda x: _smoothly(x, True)),
            "this doubles by a bilinear interpolation with align_corners=True; asked for is each\n"
            "voxel repeated: F.interpolate(x, scale_factor=2) without a mode.",
        ),
        Mistake(
            lambda x, down, up: _wire(x, down, up, after=lambda x: F.leaky_relu(x, 0.2)),
            "there is a LeakyReLU after each block, which has one inside already.\n"
            "Call the blocks, and nothing else changes the features.",
        ),
        Mistake(
            lambda x, down, up: _wire(x, down, up, after=F.relu),
            "there is a ReLU after each block, which has its LeakyReLU inside already.\n"
            "Call the blocks, and nothing else changes the features.",
        ),
        Mistake(
            lambda x, down, up: _wire(
                x, down, up, join=lambda below, left: torch.cat([below, 0 * left], dim=1)
            ),
            "the bridges carry zeros.\nKeep each block's output before it is halved, and join it.",
        ),
        Mistake(
            lambda x, down, up: _wire(
                x, down, up, join=lambda below, left: torch.cat([0 * below, left], dim=1)
            ),
            "what comes from below is lost: the blocks on the right see the bridges alone.\n"
            "torch.cat([x, bridge], dim=1), with x the doubled output of the block before.",
        ),
        Mistake(
            lambda x, down, up: _wire(
                x, down, up, join=lambda below, left: torch.cat([below, _coarse(left)], dim=1)
            ),
            "the bridges carry halved features that were doubled again: their detail is gone.\n"
            "Keep the block's output *before* the halving; it has the right size as it is.",
        ),
        Mistake(
            lambda x, down, up: _wire(x[:1].expand_as(x), down, up),
            "every item of the batch gets the features of the first.\n"
            "Likely cause: x[0] or x[:1]; the blocks take whole batches.",
        ),
    ],
    gradient=True,
    hints=[
        "Make a list for the bridges. On the way down, append each block's output before halving.",
        "On the way up the bridges are needed in the reverse order: the smallest first. "
        "bridges.pop() takes the last one off the list.",
        "x = F.interpolate(x, scale_factor=2), then torch.cat([x, bridge], dim=1), then the block.",
    ],
)


def _coarse(x: Tensor) -> Tensor:
    """Halved and doubled again."""
    return F.interpolate(F.max_pool2d(x, 2), scale_factor=2)


# --- flow head -----------------------------------------------------------------------------------


class _Measured(tuple[int, ...]):
    """What is known about a flow head; a type of its own, since a learner may return a tuple."""


def _measure_head(head: nn.Conv2d, channels: int) -> _Measured:
    """What is known about a flow head, in steps that chance does not change.

    The logarithm of the weights' standard deviation, four steps to a factor of ten; whether their
    mean is further from 0 than chance makes it; whether they lack the tails of a normal
    distribution; whether the bias is 0, tiny or large, and there at all; whether all of it can
    learn; whether it is more than a plain convolution; the kernel's size and the shape that comes
    out.
    """
    weight, bias = head.weight.detach().double(), head.bias
    deviation = float(weight.std())
    if deviation < 1e-12:
        deviation = 0.0
    size = round(4 * math.log10(deviation)) if deviation > 0 else -999
    off = abs(float(weight.mean())) > 6 * deviation / math.sqrt(weight.numel()) + 1e-12
    flat = deviation > 0 and float((weight - weight.mean()).abs().max()) < 2.5 * deviation
    largest = 0.0 if bias is None else float(bias.detach().abs().max())
    shape = head(torch.zeros(2, channels, 7, 9)).shape
    learns = all(parameter.requires_grad for parameter in head.parameters())
    there = int(bias is not None)
    return _Measured(
        (
            *(size, int(off), int(flat), int(largest > 0) + int(largest > 2e-4), there),
            *(int(learns), int(bool(_extras(head))), *head.kernel_size, *shape),
        )
    )


def _extras(head: nn.Conv2d) -> str:
    """The settings that a plain convolution leaves alone, in words; "" where it does."""
    given = {"dilation": head.dilation, "groups": head.groups, "padding_mode": head.padding_mode}
    plain: dict[str, object] = {"dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    return ", ".join(f"{name} = {value}" for name, value in given.items() if value != plain[name])


def _head(
    channels: int,
    std: float = 1e-5,
    bias: float = 0.0,
    kernel: int = 3,
    padding: int = 1,
    out: int = 2,
) -> _Measured:
    """The measurements of a head that is made so."""
    layer = nn.Conv2d(channels, out, kernel, padding=padding)
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
    return _measure_head(layer, channels)


def _drawn_head(channels: int) -> nn.Conv2d:
    """The course's flow head, to go on with."""
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    nn.init.normal_(layer.weight, std=1e-5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _default_weights(channels: int, bias: bool) -> _Measured:
    """PyTorch's own weights, with its own bias or with 0."""
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    if not bias:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return _measure_head(layer, channels)


def _uniform(channels: int) -> _Measured:
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    nn.init.uniform_(layer.weight, -1e-5, 1e-5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return _measure_head(layer, channels)


def _constant(channels: int, value: float) -> _Measured:
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    nn.init.constant_(layer.weight, value)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return _measure_head(layer, channels)


def _all_small(channels: int) -> _Measured:
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=1e-5)
    return _measure_head(layer, channels)


def _own_bias(channels: int) -> _Measured:
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    nn.init.normal_(layer.weight, std=1e-5)
    return _measure_head(layer, channels)


def _no_bias(channels: int) -> _Measured:
    layer = nn.Conv2d(channels, 2, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight, std=1e-5)
    return _measure_head(layer, channels)


def _shifted(channels: int) -> _Measured:
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    nn.init.normal_(layer.weight, mean=1e-5, std=1e-5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return _measure_head(layer, channels)


def _frozen(channels: int) -> _Measured:
    layer = nn.Conv2d(channels, 2, 3, padding=1)
    nn.init.normal_(layer.weight, std=1e-5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return _measure_head(layer.requires_grad_(False), channels)


class HeadCheck(Check):
    """A check of a layer that is drawn at random: it measures the layer that an answer returns."""

    def or_reference(self, answer: Function) -> Function:
        """The learner's function, or one that makes a layer: the reference only measures one."""
        chosen = super().or_reference(answer)
        return _drawn_head if chosen is self.reference else chosen

    def _judge(self, answer: Function) -> Outcome:
        """First what kind of thing came, then its measurements, as any other result."""

        def measured(channels: int) -> object:
            head = answer(channels)
            return _measure_head(head, channels) if isinstance(head, nn.Conv2d) else head

        head = self._run(answer, (16,), "With channels = 16")
        if not isinstance(head, (nn.Conv2d, _Measured)):
            return _no_convolution(head)
        outcome = super()._judge(measured)
        if outcome.stage == "values" and isinstance(head, nn.Conv2d):
            return Outcome("wrong", "values", _said(head, 16))
        return outcome


def _no_convolution(head: object) -> Outcome:
    """What to say to something else than a convolution."""
    wanted = "expected one layer, a torch.nn.Conv2d"
    if head is None:
        return Outcome("wrong", "nothing", f"it returns nothing; {wanted}.\nIs a `return` missing?")
    if isinstance(head, type):
        text = f"it returns a class, {head.__name__}; {wanted}: call it."
    elif isinstance(head, nn.Module) and len(list(head.children())) > 1:
        parts = ", ".join(type(part).__name__ for part in head.children())
        text = (
            f"it returns {kind(head)} of {parts}; {wanted}, with nothing around it.\n"
            "A field needs both signs and any size: an activation behind the head takes that away."
        )
    else:
        text = f"it returns {kind(head)}; {wanted}."
    return Outcome("wrong", "type", text)


def _said(head: nn.Conv2d, channels: int) -> str:
    """What the measurements say, in words, where no known mistake fits."""
    weight, bias = head.weight.detach(), head.bias
    largest = 0.0 if bias is None else float(bias.detach().abs().max())
    shape = tuple(head(torch.zeros(2, channels, 7, 9)).shape)
    return (
        "a layer of another kind: its weights have a standard deviation of "
        f"{float(weight.std()):.2g} "
        f"and a mean of {float(weight.mean()):.2g},\n"
        f"its largest bias is {largest:.2g}, and it "
        f"turns (2, {channels}, 7, 9) into {shape}.\n"
        "Expected: a normal distribution with standard deviation 1e-5 and mean 0, a bias of 0,\n"
        "3 × 3, and (2, 2, 7, 9)."
    ) + (f"\nLeave away: {extras}." if (extras := _extras(head)) else "")


flow_head = HeadCheck(
    SLUG,
    "flow_head",
    _head,
    [lambda: (512,), lambda: (128,)],
    mistakes=[
        Mistake(
            lambda channels: _default_weights(channels, bias=True),
            "weights and bias are PyTorch's own; the first field would be random.\n"
            "Draw the weights again: nn.init.normal_(head.weight, std=1e-5); bias: zeros_.",
        ),
        Mistake(
            lambda channels: _default_weights(channels, bias=False),
            "the bias is right; the weights are still PyTorch's own.\n"
            "nn.init functions that end in _ change the tensor that they are given.",
        ),
        Mistake(
            _own_bias,
            "the weights are right; the bias is still PyTorch's own, up to a few hundredths of a\n"
            "voxel everywhere: nn.init.zeros_(head.bias).",
        ),
        Mistake(
            _all_small,
            "the bias is drawn, too; asked for is a bias of exactly 0.\nnn.init.zeros_(head.bias)",
        ),
        Mistake(
            _no_bias,
            "there is no bias; asked for is one that starts at 0 and can learn.\n"
            "Leave bias=False out, and put the bias to zero.",
        ),
        Mistake(
            lambda channels: _head(channels, std=math.sqrt(1e-5)),
            "the weights' standard deviation is 0.003: 1e-5 was taken for the variance.\n"
            "nn.init.normal_ takes the standard deviation.",
        ),
        Mistake(
            lambda channels: _head(channels, std=1.0),
            "the weights have a standard deviation of 1, the default of a normal distribution.\n"
            "nn.init.normal_(head.weight, std=1e-5)",
        ),
        Mistake(
            lambda channels: _head(channels, std=1e-4),
            "the weights have a standard deviation of 1e-4; asked for is 1e-5.",
        ),
        Mistake(
            lambda channels: _constant(channels, 0.0),
            "all weights are 0. The first field is right, but no gradient passes back through the\n"
            "head then: for one step nothing else learns. Draw them with std=1e-5.",
        ),
        Mistake(
            lambda channels: _constant(channels, 1e-5),
            "all weights are the same number; they are to be drawn at random.\n"
            "1e-5 is a standard deviation, not a value: nn.init.normal_(head.weight, std=1e-5)",
        ),
        Mistake(
            _uniform,
            "the weights are drawn evenly from −1e-5 to 1e-5; asked for is a normal distribution\n"
            "with standard deviation 1e-5: nn.init.normal_.",
        ),
        Mistake(
            _shifted,
            "the weights' mean is not 0.\n"
            "nn.init.normal_(weight, mean, std): the mean comes first.",
        ),
        Mistake(
            lambda channels: _head(channels, padding=0),
            "the field comes out two voxels smaller along each axis.\n"
            "A 3 × 3 convolution keeps the size with padding=1.",
        ),
        Mistake(
            lambda channels: _head(channels, kernel=1, padding=0),
            "this convolution is 1 × 1; asked for is 3 × 3: kernel_size=3, padding=1.",
        ),
        Mistake(
            lambda channels: _head(channels, out=channels),
            "it puts out as many channels as come in; a 2D field has two, one for each axis.",
        ),
        Mistake(
            lambda channels: _head(channels, out=1),
            "it puts out one channel; a 2D field has two, one for each axis.",
        ),
        Mistake(
            lambda channels: _head(channels, out=3),
            "it puts out three channels; a field of a 2D image has two, one for each axis.",
        ),
        Mistake(
            _frozen,
            "the head cannot learn: requires_grad is switched off.\n"
            "Likely cause: requires_grad_(False). torch.no_grad() around the drawing is fine.",
        ),
    ],
    hints=[
        "nn.Conv2d(channels, 2, kernel_size=3, padding=1) is the layer; its .weight and .bias are "
        "drawn by PyTorch at first.",
        "nn.init.normal_(head.weight, std=…) draws the weights again; nn.init.zeros_ is for the "
        "bias. Return the layer.",
    ],
)


# --- loss ----------------------------------------------------------------------------------------


def _loss_inputs(seed: int, batch: int, weight: float) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, 2, 24, 32, generator=generator)
    images = smooth(noise, 1.0)
    images = (images - images.amin()) / (images.amax() - images.amin())
    fields = torch.randn(batch, 2, 2, 24, 32, generator=generator)
    displacement, velocity = 6 * smooth(fields[:, 0], 3.0), 4 * smooth(fields[:, 1], 2.0)
    # Some arrows lead outside, so that the padding shows.
    displacement = displacement + torch.tensor([2.5, -3.0]).view(1, 2, 1, 1)
    return (
        images[:, :1].contiguous(),
        images[:, 1:].contiguous(),
        displacement,
        velocity[..., ::2, ::2].contiguous(),
        weight,
    )


def _registration_loss(
    moving: Tensor, fixed: Tensor, displacement: Tensor, velocity: Tensor, weight: float
) -> Tensor:
    return lncc(warp(moving, displacement, padding="border"), fixed) + weight * diffusion(velocity)


def _terms(
    moving: Tensor, fixed: Tensor, displacement: Tensor, velocity: Tensor
) -> tuple[Tensor, Tensor]:
    warped = warp(moving, displacement, padding="border")
    return lncc(warped, fixed), diffusion(velocity)


def _weighted(
    change: Callable[[Tensor, Tensor, float], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]:
    """A wrong way to put the right two terms together."""

    def wrong(
        moving: Tensor, fixed: Tensor, displacement: Tensor, velocity: Tensor, weight: float
    ) -> Tensor:
        return change(*_terms(moving, fixed, displacement, velocity), weight)

    return wrong


def _image_roughness(image: Tensor) -> Tensor:
    """Squared steps between neighbors of an image, averaged as diffusion does."""
    return (image.diff(dim=2).square().mean() + image.diff(dim=3).square().mean()) / 2


def _smooths_the_image(
    moving: Tensor, fixed: Tensor, displacement: Tensor, velocity: Tensor, weight: float
) -> Tensor:
    warped = warp(moving, displacement, padding="border")
    return lncc(warped, fixed) + weight * _image_roughness(warped)


registration_loss = Check(
    SLUG,
    "registration_loss",
    _registration_loss,
    [lambda: _loss_inputs(34, 1, 0.7), lambda: _loss_inputs(35, 2, 3.0)],
    mistakes=[
        Mistake(
            lambda m, f, u, v, weight: (
                lncc(warp(m, u, padding="border"), f) + weight * diffusion(u)
            ),
            "the roughness is that of the displacement; asked for is that of the velocity,\n"
            "what the network puts out.",
        ),
        Mistake(
            lambda m, f, u, v, weight: lncc(warp(m, u), f) + weight * diffusion(u),
            "two things: the warp reads zeros outside the image, and the roughness is that of the\n"
            'displacement. Asked for are padding="border" and the diffusion of the velocity.',
        ),
        Mistake(
            _smooths_the_image,
            "the roughness is that of the warped image; it has to be that of the network's field.\n"
            "A warped image is smooth or rough as the moving one is: this does not hold the field\n"
            "together. (A well-known repository has this mistake; see the lesson.)",
        ),
        Mistake(
            lambda m, f, u, v, weight: lncc(warp(m, u), f) + weight * diffusion(v),
            "outside the image this warp reads zeros; asked for is the border's value.\n"
            'warp(…, padding="border"): zeros have no gradient to come back by.',
        ),
        Mistake(
            _weighted(lambda s, r, weight: s + r),
            "the roughness is not weighted.\nMultiply it by weight.",
        ),
        Mistake(
            _weighted(lambda s, r, weight: weight * s + r),
            "the weight stands at the similarity; it belongs to the roughness.",
        ),
        Mistake(
            _weighted(lambda s, r, weight: weight * (s + r)),
            "the weight multiplies both parts; it belongs to the roughness alone.",
        ),
        Mistake(
            _weighted(lambda s, r, weight: s - weight * r),
            "the roughness is subtracted: this loss rewards rough fields.",
        ),
        Mistake(
            _weighted(lambda s, r, weight: -s + weight * r),
            "lncc is negative already where images agree: it is a loss. With a minus before it\n"
            "the training would look for the worst match.",
        ),
        Mistake(
            _weighted(lambda s, r, weight: 1 + s + weight * r),
            "this is 1 too large. 1 + lncc would be 0 for a perfect match; asked for is lncc\n"
            "as it is. (A constant changes no gradient, but the number is another.)",
        ),
        Mistake(
            _weighted(lambda s, r, weight: s),
            "the roughness is missing: weight and velocity are not used.\n"
            "Add weight · diffusion of the network's field.",
        ),
        Mistake(
            lambda m, f, u, v, weight: lncc(m, f) + weight * diffusion(v),
            "the moving image is compared as it is, without a warp.\n"
            "No gradient would reach the displacement: warp it first.",
        ),
        Mistake(
            lambda m, f, u, v, weight: (
                lncc(warp(f, u, padding="border"), m) + weight * diffusion(v)
            ),
            "the fixed image is warped; the moving one has to be.\n"
            "warped(x) = moving(x + u(x)) is compared with fixed.",
        ),
        Mistake(
            lambda m, f, u, v, weight: (
                lncc(warp(m, -u, padding="border"), f) + weight * diffusion(v)
            ),
            "the image is warped by −u.\nwarp(moving, displacement): it adds u itself.",
        ),
        Mistake(
            lambda m, f, u, v, weight: mse(warp(m, u, padding="border"), f) + weight * diffusion(v),
            "the similarity is the mean squared difference; asked for is lncc.",
        ),
        Mistake(
            lambda m, f, u, v, weight: (
                lncc(warp(m, u, padding="border"), f) + weight * diffusion(v) * v.numel()
            ),
            "the roughness is a sum over all numbers of the field; asked for is the mean.\n"
            "diffusion(velocity) is the mean already.",
        ),
        Mistake(
            lambda m, f, u, v, weight: (
                lncc(warp(m, u, padding="border"), f) + weight * (diffusion(v) + diffusion(u))
            ),
            "both fields are charged for their roughness; asked for is the velocity alone.",
        ),
    ],
    gradient=True,
    hints=[
        'warped = warp(moving, displacement, padding="border") comes first.',
        "Two terms: lncc(warped, fixed), and weight · diffusion(…) of the field that the network "
        "puts out.",
    ],
)


# --- training loop -------------------------------------------------------------------------------

STEPS = 10


@lru_cache(maxsize=2)
def _train_images(count: int) -> Images:
    generator = torch.Generator().manual_seed(40 + count)
    pairs = []
    for _ in range(count):
        texture = smooth(torch.rand(1, 1, 24, 20, generator=generator), 1.2)
        texture = (texture - texture.amin()) / (texture.amax() - texture.amin())
        push = 8 * smooth(torch.randn(1, 2, 24, 20, generator=generator), 4.0)
        pairs.append((texture, warp(texture, push, padding="border")))
    return pairs


def _train_inputs(count: int) -> tuple[nn.Module, Images, int]:
    with torch.random.fork_rng([]):
        torch.manual_seed(50)
        net = UNet(2, encoder=(8,), decoder=((8,), (8, 8)))
        model = VoxelMorph(2, unet=net)
        # Far enough from nothing that a few steps make a difference.
        nn.init.normal_(model.flow.weight, std=0.3)
    return model, [(m.clone(), f.clone()) for m, f in _train_images(count)], STEPS


def _loop(
    model: nn.Module,
    pairs: Images,
    steps: int,
    *,
    anew: bool = False,
    forget: str = "before",
    step: bool = True,
    swapped: bool = False,
    first_only: bool = False,
    learning_rate: float = 0.002,
    kind_of: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    weight: float = 1.0,
    late: bool = False,
    shift: int = 0,
    cut: bool = False,
    of_image: bool = False,
) -> list[float]:
    """A training loop, right unless told otherwise."""
    optimizer = kind_of(model.parameters(), lr=learning_rate)
    losses = []
    for n in range(steps):
        if anew:
            optimizer = kind_of(model.parameters(), lr=learning_rate)
        moving, fixed = pairs[0 if first_only else (n + shift) % len(pairs)]
        given = (fixed, moving) if swapped else (moving, fixed)

        def loss_now(
            given: tuple[Tensor, Tensor] = given, moving: Tensor = moving, fixed: Tensor = fixed
        ) -> Tensor:
            answer = model(*given)
            displacement = answer.displacement.detach() if cut else answer.displacement
            return _registration_loss(moving, fixed, displacement, answer.velocity, weight)

        loss = loss_now()
        if forget == "before":
            optimizer.zero_grad()
        loss.backward()
        if forget == "between":
            optimizer.zero_grad()
        if step:
            optimizer.step()
        losses.append(loss_now().item() if late else loss.item())
    return losses


def _train(model: nn.Module, pairs: Images, steps: int) -> list[float]:
    return _loop(model, pairs, steps)


def _changes_the_model(answer: Function) -> bool:
    model, pairs, _ = _train_inputs(1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    answer(model, pairs, 2)
    return any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def _gives_numbers(answer: Function) -> bool:
    return not any(isinstance(loss, Tensor) for loss in answer(*_train_inputs(1)[:2], 2))


def _wrong_loop(**settings: Any) -> Callable[[nn.Module, Images, int], list[float]]:
    def wrong(model: nn.Module, pairs: Images, steps: int) -> list[float]:
        return _loop(model, pairs, steps, **settings)

    return wrong


train = Check(
    SLUG,
    "train",
    _train,
    [lambda: _train_inputs(1), lambda: _train_inputs(3)],
    atol=2e-5,
    mistakes=[
        Mistake(
            _wrong_loop(forget="between"),
            "the loss of each pair stays what it is: nothing is learned.\n"
            "Likely cause: zero_grad() between backward() and step() throws away the gradient\n"
            "that step() needs; or step() is missing.",
        ),
        Mistake(
            _wrong_loop(anew=True),
            "the optimizer is made anew in each step, so it forgets the gradients before.\n"
            "Adam averages over past steps: make it once, before the loop.",
        ),
        Mistake(
            _wrong_loop(forget="never"),
            "gradients pile up: each step uses the sum of all gradients so far.\n"
            "backward() adds to .grad; call optimizer.zero_grad() before it, in each step.",
        ),
        Mistake(
            _wrong_loop(forget="never", anew=True),
            "two things: the optimizer is made anew in each step, and gradients pile up.\n"
            "Make it once, before the loop, and call zero_grad() before backward().",
        ),
        Mistake(
            _wrong_loop(swapped=True),
            "the network gets (fixed, moving).\n"
            "Its answer is then the way back, from moving to fixed: model(moving, fixed).",
        ),
        Mistake(
            _wrong_loop(first_only=True),
            "every step sees the first pair.\nStep n takes pairs[n % len(pairs)].",
        ),
        Mistake(
            _wrong_loop(shift=1),
            "the pairs are one step ahead: step 0 takes pair 1.\n"
            "Count n from 0: pairs[n % len(pairs)].",
        ),
        Mistake(
            _wrong_loop(learning_rate=0.001),
            "the learning rate is 0.001, Adam's default; asked for is lr=0.002.",
        ),
        Mistake(
            _wrong_loop(learning_rate=0.02),
            "the learning rate is 0.02; asked for is lr=0.002.",
        ),
        Mistake(
            _wrong_loop(kind_of=torch.optim.SGD),
            "this is plain gradient descent; asked for is Adam.\ntorch.optim.Adam(…, lr=0.002)",
        ),
        Mistake(
            _wrong_loop(late=True),
            "each loss is that after the weights changed; asked for is the one before.\n"
            "Keep the loss that backward() was called on.",
        ),
        Mistake(
            _wrong_loop(weight=0.0),
            "the loss lacks its roughness; the weight is 1.",
        ),
        Mistake(
            _wrong_loop(cut=True),
            "the similarity does not reach the weights: only the roughness is learned from.\n"
            "Likely cause: displacement.detach(), or a warp inside torch.no_grad().",
        ),
    ],
    laws=[
        Law(
            _gives_numbers,
            "right losses, but they are tensors; asked for are numbers.\n"
            "loss.item() keeps the number and lets the graph go.",
        ),
        Law(
            _changes_the_model,
            "right losses, but the model that was given is unchanged afterwards.\n"
            "Likely cause: a deep copy is trained. Train the model itself.",
        ),
    ],
    hints=[
        "Five things in each step, in this order: answer, loss, zero_grad, backward, step.",
        "Where is the optimizer made in the function with bugs: before the loop, or inside?",
    ],
)


# --- what a look is worth ------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _case() -> tuple[Pair, float]:
    """An unseen pair, and the energy of the network's answer for it."""
    pair = brains.pair(100)
    with torch.no_grad():
        answer = pretrained("voxelmorph2d-brains")(pair.moving, pair.fixed).displacement
    return pair, _energy(pair, answer)


def _energy(pair: Pair, u: Tensor) -> float:
    warped = warp(pair.moving, u, padding="border")
    return float(lncc(warped, pair.fixed) + diffusion(u))


@lru_cache(maxsize=64)
def _from_zero(steps: int) -> float:
    """The energy after so many steps of ``refine`` on each of its three sizes."""
    pair, _ = _case()
    if steps == 0:
        return _energy(pair, torch.zeros_like(pair.fixed).repeat(1, 2, 1, 1))
    return _energy(pair, refine(pair.moving, pair.fixed, steps=steps, tolerance=0))


def _steps_needed() -> int:
    return next(steps for steps in range(1, 61) if _from_zero(steps) <= _case()[1])


def _valid_steps(setting: object) -> str | None:
    if isinstance(setting, bool) or not isinstance(setting, (int, float)):
        return f"it returns {kind(setting)}; expected a number of steps."
    if not math.isfinite(setting) or setting != int(setting) or not 1 <= setting <= 60:
        return f"expected a whole number from 1 to 60, got {setting!r}."
    return None


def _measured_steps(setting: float) -> dict[str, float]:
    steps = int(setting)
    return {
        "energy": _from_zero(steps),
        "energy with one step less": _from_zero(steps - 1),
        "the network's look": _case()[1],
    }


def _just_enough(measured: dict[str, float]) -> bool:
    look = measured["the network's look"]
    return measured["energy"] <= look < measured["energy with one step less"]


steps_needed = Goal(
    SLUG,
    "steps_needed",
    _measured_steps,
    _just_enough,
    "the smallest number of steps on each size whose energy is at the network's or below: with "
    "one step less it is above. Too many steps miss that as too few do.",
    reference=_steps_needed,
    valid=_valid_steps,
    hints=[
        "Call from_zero(…) with a few numbers and compare with look; or let a loop do it.",
        "More steps, nearly always lower energy. Start with 2, 5, 10 and 20, then look between.",
    ],
)

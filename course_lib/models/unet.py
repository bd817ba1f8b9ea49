"""The U-Net of the VoxelMorph family: detail from the left, context from below."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.validation import require_whole

SLOPE = 0.2  # of LeakyReLU, below zero


Convolution = nn.Conv2d | nn.Conv3d


def convolution(ndim: int, channels: int, out_channels: int, stride: int = 1) -> Convolution:
    """A convolution of 3 voxels a side that keeps the size (or halves it, with a stride of 2).

    Args:
        ndim: 2 or 3.
        channels, out_channels: how many come in and go out.
        stride: 1 or 2.

    Returns:
        A layer of ``(B, channels, *spatial)``.

    Raises:
        ValueError: if ``ndim`` is not 2 or 3, or another number is not a whole one of 1 or more.

    Taught in lesson 30.
    """
    if ndim not in (2, 3):
        raise ValueError(f"ndim: expected 2 or 3, got {ndim!r}")
    require_whole("channels", channels, 1)
    require_whole("out_channels", out_channels, 1)
    require_whole("stride", stride, 1)
    layer = (nn.Conv2d, nn.Conv3d)[ndim - 2]
    return layer(channels, out_channels, kernel_size=3, stride=stride, padding=1)


def block(ndim: int, channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A convolution and a LeakyReLU, its weights drawn so that the signal keeps its size.

    Args:
        ndim: 2 or 3.
        channels, out_channels: how many come in and go out.
        stride: 1, or 2 to halve the size.

    Returns:
        A layer of ``(B, channels, *spatial)``.

    Raises:
        ValueError: as :func:`convolution`.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015. Taught in lesson 30.
    """
    layer = convolution(ndim, channels, out_channels, stride)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.LeakyReLU(SLOPE))


class UNet(nn.Module):
    """Convolutions down to a coarse grid and up again, with a bridge at every size.

    On the way down each block halves the size: by a maximum over neighbors after the convolution
    (``pooling``), or by the convolution's stride. On the way up the features are doubled in size
    (each voxel repeated) and joined with those of the same size on the left: with pooling these are
    the block's output before the maximum, with strides the block's input.

    Args:
        ndim: 2 or 3.
        channels: of the input.
        encoder: channels of each block on the way down.
        decoder: channels of the blocks at each size on the way up, from the coarsest; one group
            more than the encoder has blocks.
        pooling: how the size is halved.

    Attributes:
        out_channels: of the features that it returns.
        multiple: what every size of the input must be divisible by.

    Raises:
        ValueError: if the numbers do not fit one another.

    Source: Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015; with the channels of VoxelMorph.
    Taught in lesson 30.
    """

    def __init__(
        self,
        ndim: int = 2,
        channels: int = 2,
        *,
        encoder: Sequence[int] = (16, 32, 32, 32),
        decoder: Sequence[Sequence[int]] = ((32,), (32,), (32,), (32,), (32, 16, 16)),
        pooling: bool = True,
    ) -> None:
        super().__init__()
        if len(decoder) != len(encoder) + 1 or not all(decoder):
            raise ValueError(
                f"decoder: expected {len(encoder) + 1} groups of channels, one for each size from "
                f"the coarsest up, got {decoder!r}"
            )
        self.pooling = pooling
        self.multiple = 2 ** len(encoder)
        self.down, bridges = nn.ModuleList(), []
        for width in encoder:
            self.down.append(block(ndim, channels, width, stride=1 if pooling else 2))
            bridges.append(width if pooling else channels)
            channels = width
        self.up = nn.ModuleList()
        for group in decoder:
            joined = channels + (bridges.pop() if len(self.up) else 0)
            widths = [joined, *group]
            self.up.append(
                nn.Sequential(*(block(ndim, a, b) for a, b in zip(widths, group, strict=False)))
            )
            channels = widths[-1]
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Features of every voxel.

        Args:
            x: ``(B, channels, *spatial)``, sizes divisible by :attr:`multiple`.

        Returns:
            ``(B, out_channels, *spatial)``.
        """
        if x.ndim == 4:  # a voxel's channels side by side: on a CPU a sixth faster, in 2D only
            x = x.contiguous(memory_format=torch.channels_last)
        bridges = []
        for down in self.down:
            features = down(x)  # half the size already, if by a stride
            bridges.append(features if self.pooling else x)
            x = _halved(features) if self.pooling else features
        x = self.up[0](x)
        for up in self.up[1:]:
            x = up(torch.cat([F.interpolate(x, scale_factor=2), bridges.pop()], dim=1))
        return x


def _halved(features: Tensor) -> Tensor:
    """The largest of each 2 × 2 (× 2) voxels."""
    return F.max_pool2d(features, 2) if features.ndim == 4 else F.max_pool3d(features, 2)

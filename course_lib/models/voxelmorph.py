"""VoxelMorph: a U-Net that sees both images and answers with a displacement of every voxel."""

import torch
from torch import Tensor, nn

from course_lib.models.prediction import Prediction
from course_lib.models.unet import UNet, convolution
from course_lib.spatial import at_least_float32, integrate, resize_displacement
from course_lib.validation import require_image, require_same

HEAD = 1e-5  # standard deviation of the flow head's weights: the first answer is "do nothing"


class VoxelMorph(nn.Module):
    """``VoxelMorph(ndim)`` is the ``VxmDense`` of voxelmorph 0.2, what most people trained.

    Args:
        ndim: 2 or 3.
        velocity: whether the U-Net's field is a stationary velocity, resized to half the size and
            integrated in 7 steps (a field that hardly folds), or the displacement itself.
        unet: another U-Net; its input has 2 channels.

    Attributes:
        unet, flow: the two parts; ``flow`` is the convolution that turns features into a field.
        card: where the weights come from, if :func:`~course_lib.models.pretrained` loaded them.

    Source: Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, "VoxelMorph: a learning framework for
    deformable medical image registration", TMI 38(8), 2019; the velocity: Dalca, Balakrishnan,
    Guttag, Sabuncu, "Unsupervised learning for fast probabilistic diffeomorphic registration",
    MICCAI 2018. Taught in lesson 30.
    """

    card: dict[str, object] | None = None

    def __init__(self, ndim: int = 2, *, velocity: bool = True, unet: UNet | None = None) -> None:
        super().__init__()
        self.unet = UNet(ndim) if unet is None else unet
        self.flow = convolution(ndim, self.unet.out_channels, ndim)
        nn.init.normal_(self.flow.weight, std=HEAD)
        assert self.flow.bias is not None
        nn.init.zeros_(self.flow.bias)
        self.velocity = velocity

    @classmethod
    def vm1(cls, ndim: int = 2) -> "VoxelMorph":
        """The smaller network of the first paper: strides, and thin layers at full size.

        Args:
            ndim: 2 or 3.

        Source: Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, "An unsupervised learning model for
        deformable medical image registration", CVPR 2018. Taught in lesson 30.
        """
        decoder = ((32,), (32,), (32,), (32, 8), (8,))
        return cls(ndim, velocity=False, unet=UNet(ndim, decoder=decoder, pooling=False))

    @classmethod
    def vm2(cls, ndim: int = 2) -> "VoxelMorph":
        """The larger network of the first paper: as :meth:`vm1`, wider near the end.

        Args:
            ndim: 2 or 3.

        Source: as :meth:`vm1`. Taught in lesson 30.
        """
        decoder = ((32,), (32,), (32,), (32, 32), (16, 16))
        return cls(ndim, velocity=False, unet=UNet(ndim, decoder=decoder, pooling=False))

    def forward(self, moving: Tensor, fixed: Tensor) -> Prediction:
        """The field that warps ``moving`` onto ``fixed``.

        Args:
            moving, fixed: ``(B, 1, *spatial)``, of the dtype of the weights, 0 to 1; sizes
                divisible by 16.

        Returns:
            A :class:`Prediction` with the displacement and, if the network has one, the velocity
            at half the size, in voxels of that size.

        Raises:
            TypeError, ValueError: on a wrong rank, shape, dtype or device, or sizes that do not
                halve often enough.
        """
        _require_fit(moving, fixed, self)
        field = at_least_float32(self.flow(self.unet(torch.cat([moving, fixed], dim=1))))
        if not self.velocity:
            return Prediction(field)
        spatial = fixed.shape[2:]
        velocity = resize_displacement(field, [n // 2 for n in spatial])
        return Prediction(resize_displacement(integrate(velocity), spatial), velocity=velocity)


def _require_fit(moving: Tensor, fixed: Tensor, network: VoxelMorph) -> None:
    """Refuse images that the network's layers would refuse, or worse, take."""
    weight = network.flow.weight
    ndim, multiple = weight.ndim - 2, network.unet.multiple
    spatial = require_image("fixed", fixed)
    require_image("moving", moving)
    require_same("moving", moving, "fixed", fixed)
    if len(spatial) != ndim or fixed.shape[1] != 1:
        raise ValueError(
            f"fixed: expected (B, 1, *spatial) with {ndim} spatial axes, as the network was built "
            f"for, got {tuple(fixed.shape)}"
        )
    if weight.device != fixed.device:
        raise ValueError(
            f"fixed: expected it on {weight.device}, as the weights, got {fixed.device}"
        )
    mixed = torch.is_autocast_enabled(fixed.device.type)
    for name, image in (("moving", moving), ("fixed", fixed)):
        if image.dtype != weight.dtype and not mixed:
            raise TypeError(f"{name}: expected {weight.dtype}, as the weights, got {image.dtype}")
    if any(size % multiple for size in spatial):
        crop = tuple(size // multiple * multiple for size in spatial)
        pad = tuple(-(-size // multiple) * multiple for size in spatial)
        smaller = f"crop to {crop} or " if min(crop) > 0 else ""
        raise ValueError(
            f"fixed: expected sizes divisible by {multiple} (the network halves them "
            f"{multiple.bit_length() - 1} times), got {spatial}: {smaller}pad to {pad}, "
            "for example with course_lib.volumes.crop_or_pad"
        )

"""The same anatomy in other contrasts: inverted, remapped, and like a T2-weighted scan.

Whoever registers one person's scans of two kinds knows the truth only roughly. Here the truth is
exact: an image and its other contrast lie on each other voxel by voxel.
"""

import math

import torch
from torch import Tensor

from course_lib.spatial import smooth
from course_lib.validation import require_image, require_labels, require_number, require_whole

T2_INTENSITIES = {0: 0.0, 1: 1.0, 2: 0.6, 3: 0.35}
"""Mean intensity of each tissue of ``brains.TISSUES`` in :func:`t2_like`: fluid is brightest."""


def inverted(image: Tensor) -> Tensor:
    """The negative, ``1 − image``: dark becomes bright, background included.

    Args:
        image: ``(B, C, *spatial)``, floating, from 0 to 1.

    Returns:
        Like ``image``.

    Raises:
        TypeError, ValueError: on a wrong rank or dtype.

    Used in lesson 16.
    """
    require_image("image", image)
    return 1 - image


def remapped(image: Tensor) -> Tensor:
    """A smooth curve that falls, rises and falls again: ``(1 + cos(2.4π · image)) / 2``.

    0 and 5/6 become 1, 5/12 becomes 0, 1 becomes 0.65: what the image says is still there, for the
    most part, but "brighter" means nothing any more.

    Args:
        image: ``(B, C, *spatial)``, floating, from 0 to 1.

    Returns:
        Like ``image``, from 0 to 1.

    Raises:
        TypeError, ValueError: on a wrong rank or dtype.

    Example:
        >>> remapped(torch.tensor([[[[0, 5 / 24], [5 / 12, 5 / 6]]]])).flatten()
        tensor([1.0000, 0.5000, 0.0000, 1.0000])

    Used in lesson 16.
    """
    require_image("image", image)
    return (1 + torch.cos(2.4 * math.pi * image)) / 2


def t2_like(labels: Tensor, *, seed: int, blur: float = 0.7, noise: float = 0.03) -> Tensor:
    """A T2-weighted scan's contrast painted on tissue labels: fluid > gray > white matter.

    Each tissue gets its intensity (:data:`T2_INTENSITIES`), then come a little blur, as every
    scanner's, and noise. What the labels do not know, such as vessels, is not in it.

    Args:
        labels: ``(B, 1, *spatial)``, integers, the tissues of ``brains.TISSUES`` and 0 outside.
        seed: of the noise; the same seed always gives the same image.
        blur: standard deviation of the blur, in voxels; 0 for none.
        noise: standard deviation of the noise.

    Returns:
        ``(B, 1, *spatial)``, float32, from 0 to 1.

    Raises:
        TypeError, ValueError: on what are no tissue labels, or a negative number.

    Used in lesson 16.
    """
    require_labels("labels", labels)
    if int(labels.max()) > max(T2_INTENSITIES):
        raise ValueError(
            f"labels: expected tissues from 0 to {max(T2_INTENSITIES)}, got {int(labels.max())}"
        )
    generator = torch.Generator().manual_seed(require_whole("seed", seed, 0))
    sigma, spread = require_number("blur", blur, 0), require_number("noise", noise, 0)
    image = torch.tensor(list(T2_INTENSITIES.values()), device=labels.device)[labels.long()]
    if sigma > 0:
        image = smooth(image, sigma)
    grain = torch.randn(image.shape, generator=generator).to(image.device)
    return (image + spread * grain).clamp(0, 1)

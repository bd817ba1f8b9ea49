"""MIND: equal to the formula in plain loops, and unchanged by what it should not see."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from course_lib.losses import mse
from course_lib.mind import mind, mind_loss
from course_lib.spatial import smooth, warp


def textured(*spatial: int, seed: int = 0) -> Tensor:
    noise = torch.randn(2, 1, *spatial, generator=torch.Generator().manual_seed(seed))
    return 3 * smooth(noise, 0.8) + 1


def by_loops(image: np.ndarray, radius: int) -> np.ndarray:
    """The descriptor of one image ``(*spatial)``, as its definition reads: ``(2 D, *spatial)``."""
    ndim, shape = image.ndim, np.array(image.shape)

    def value(at):
        return image[tuple(np.clip(at, 0, shape - 1))]

    steps = [s * np.eye(ndim, dtype=int)[axis] for axis in range(ndim) for s in (-1, 1)]
    patch = list(itertools.product(range(-radius, radius + 1), repeat=ndim))
    distances = np.zeros((len(steps), *shape))
    for x in np.ndindex(*shape):
        for r, step in enumerate(steps):
            # Beyond the border, the squared difference of the border itself is repeated.
            inside = [np.clip(np.array(x) + p, 0, shape - 1) for p in patch]
            distances[(r, *x)] = np.mean([(value(y) - value(y + step)) ** 2 for y in inside])
    variance = distances.mean(0)
    variance = variance.clip(variance.mean() / 1000, variance.mean() * 1000)
    described = np.exp(-distances / variance)
    return described / described.max(0)


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("spatial", [(6, 9), (4, 5, 6)])
def test_equals_the_definition(spatial, radius):
    image = textured(*spatial).double()
    got = mind(image, radius)
    assert got.shape == (2, 2 * len(spatial), *spatial)
    for b in range(2):
        assert np.allclose(got[b].numpy(), by_loops(image[b, 0].numpy(), radius), atol=1e-10)


def test_unchanged_by_gain_offset_and_inversion():
    image = textured(12, 10)
    for gain, offset in ((2.5, 0), (1, 7), (-1, 1), (-0.3, 20)):
        assert torch.allclose(mind(gain * image + offset), mind(image), atol=2e-3)


def test_sees_structure():
    image = textured(20, 18)
    shift = torch.zeros(2, 2, 20, 18)
    shift[:, 1] = 2
    assert mind_loss(warp(image, shift, padding="border"), image) > 0.02
    assert mind_loss(1 - image, image) < 1e-5 < mse(1 - image, image)


def test_range_and_largest_channel():
    described = mind(textured(12, 10, 8))
    assert described.min() > 0 and torch.equal(described.amax(1), torch.ones(2, 12, 10, 8))


def test_constant_images_have_no_structure():
    image = torch.full((1, 1, 6, 7), 0.4, requires_grad=True)
    described = mind(image)
    assert torch.equal(described, torch.ones(1, 4, 6, 7))
    described.sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


def test_black_background_keeps_gradients_finite():
    image = torch.zeros(1, 1, 16, 14)
    image[..., 5:11, 4:9] = textured(6, 5)[:1]
    image.requires_grad_()
    mind_loss(image, textured(16, 14)[:1]).backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().max() > 0


def test_gradient():
    image = textured(5, 6)[:1].double().requires_grad_()
    fixed = textured(5, 6, seed=1)[:1].double()
    assert torch.autograd.gradcheck(lambda x: mind_loss(x, fixed), image)


def test_items_and_channels_stay_apart():
    a, b = textured(8, 9), 5 * textured(8, 9, seed=3)
    both = mind(torch.cat([a, b], dim=1))  # (2, 8, 8, 9), channels alternating
    assert torch.allclose(both[:, 0::2], mind(a), atol=1e-6)
    assert torch.allclose(both[:, 1::2], mind(b), atol=1e-6)
    assert torch.allclose(mind(a)[1:], mind(a[1:]), atol=1e-6)


def test_loss_is_the_mean_squared_difference():
    a, b = textured(8, 9), textured(8, 9, seed=3)
    assert mind_loss(a, b, 2) == pytest.approx(float((mind(a, 2) - mind(b, 2)).square().mean()))
    assert mind_loss(a, a) == 0 and 0 < mind_loss(a, b) < 1


def test_half_precision_is_computed_in_float32():
    assert mind(textured(8, 9).half()).dtype == torch.float32

"""Other contrasts of one anatomy: the same places, other intensities."""

import numpy as np
import pytest
import torch

from course_lib.datasets import brains, contrasts
from course_lib.losses import mutual_information
from course_lib.metrics import correlation


@pytest.fixture(scope="module")
def head():
    return brains.real_pair()


def test_inverted_is_its_own_inverse(head):
    assert torch.allclose(contrasts.inverted(contrasts.inverted(head.fixed)), head.fixed)
    assert correlation(contrasts.inverted(head.fixed), head.fixed).item() == pytest.approx(-1)


def test_remapped_is_the_curve_it_claims():
    values = np.linspace(0, 1, 50, dtype=np.float32)
    got = contrasts.remapped(torch.from_numpy(values).view(1, 1, 5, 10)).flatten().numpy()
    assert np.allclose(got, (1 + np.cos(2.4 * np.pi * values)) / 2, atol=1e-6)
    slopes = np.sign(np.diff(got))
    assert (slopes[:20] < 0).all() and (slopes[22:40] > 0).all() and (slopes[42:] < 0).all()
    assert got.min() >= 0 and got.max() <= 1


def test_remapped_hides_from_correlation_and_not_from_information(head):
    other = contrasts.remapped(head.fixed)
    assert correlation(other, head.fixed).square().item() < 0.2
    assert -mutual_information(other, head.fixed) > 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_t2_like_has_its_tissues_in_order(ndim):
    labels = brains.real_pair(ndim).fixed_labels
    image = contrasts.t2_like(labels, seed=0)
    assert image.shape == labels.shape and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    outside, fluid, gray, white = (float(image[labels == k].mean()) for k in range(4))
    assert fluid > gray + 0.1 > white + 0.2 > outside + 0.3


def test_t2_like_without_blur_and_noise_is_a_lookup(head):
    image = contrasts.t2_like(head.fixed_labels, seed=0, blur=0, noise=0)
    for tissue, intensity in contrasts.T2_INTENSITIES.items():
        assert torch.allclose(image[head.fixed_labels == tissue], torch.tensor(intensity))


def test_noise_is_seeded_and_as_large_as_asked():
    flat = torch.full((1, 1, 100, 90), 2)  # gray matter only
    one, again, other = (contrasts.t2_like(flat, seed=s, noise=0.05) for s in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.05, rel=0.05)
    assert float(one.mean()) == pytest.approx(0.6, abs=0.005)


def test_the_global_random_state_is_left_alone(head):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    contrasts.t2_like(head.fixed_labels, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_blur_softens_the_edges(head):
    sharp, soft = (
        contrasts.t2_like(head.fixed_labels, seed=0, blur=blur, noise=0) for blur in (0, 1.5)
    )
    assert soft.diff(dim=3).square().mean() < 0.5 * sharp.diff(dim=3).square().mean()


def test_inputs_are_left_alone(head):
    kept, labels = head.fixed.clone(), head.fixed_labels.clone()
    contrasts.inverted(head.fixed)
    contrasts.remapped(head.fixed)
    contrasts.t2_like(head.fixed_labels, seed=0)
    assert torch.equal(head.fixed, kept) and torch.equal(head.fixed_labels, labels)

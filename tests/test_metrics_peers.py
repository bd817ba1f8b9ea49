"""metrics beside MONAI, SimpleITK and SciPy, and hausdorff95 beside its own definition in loops."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from course_lib.metrics import dice, hausdorff95

CASES = [((26, 37), (0.7, 2.5)), ((18, 23, 28), (3.0, 0.8, 1.3))]


def blobs(shape, seed: int, batch=2, labels=3) -> Tensor:
    """Smooth random label maps, 0 to ``labels``, with 0 at the border."""
    noise = np.random.default_rng(seed).standard_normal((batch, 1, *shape))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 0, *(2.5,) * len(shape)))
    ranks = smooth.reshape(batch, -1).argsort(1).argsort(1).reshape(smooth.shape) / smooth[0].size
    maps = np.floor(ranks * (labels + 1)).astype(np.int64)
    for axis in range(2, 2 + len(shape)):
        for edge in (0, -1):
            np.moveaxis(maps, axis, 0)[edge] = 0
    return torch.from_numpy(maps)


def one_hot(labels: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(labels[:, 0], count + 1).movedim(-1, 1)


def surface(mask: np.ndarray) -> np.ndarray:
    cross = scipy.ndimage.generate_binary_structure(mask.ndim, 1)
    return mask & ~scipy.ndimage.binary_erosion(mask, cross, border_value=0)


def by_distance_transform(a: np.ndarray, b: np.ndarray, spacing) -> float:
    """The definition, by SciPy's exact distance transform of the whole image."""
    one, other = surface(a), surface(b)
    directed = [
        np.percentile(scipy.ndimage.distance_transform_edt(~to, sampling=spacing)[start], 95)
        for start, to in ((one, other), (other, one))
    ]
    return float(max(directed))


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("scaled", [True, False])
def test_hausdorff95_is_the_definition(shape, spacing, scaled):
    a, b = blobs(shape, 0), blobs(shape, 1)
    a[1, 0][(slice(0, 9),) * len(shape)] = 3  # into the corner: outside the image is outside
    used = spacing if scaled else None
    ours = hausdorff95(a, b, used, [3, 1, 2])
    for item in range(2):
        for column, label in enumerate([3, 1, 2]):
            masks = (a[item, 0].numpy() == label, b[item, 0].numpy() == label)
            expected = by_distance_transform(*masks, used or (1,) * len(shape))
            assert ours[item, column].item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(hausdorff95(b, a, used, [3, 1, 2]), ours)  # symmetric


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_hausdorff95_is_monais(shape, spacing):
    monai = pytest.importorskip("monai.metrics")
    warnings.filterwarnings("ignore", category=UserWarning, module="monai")
    a, b = blobs(shape, 2), blobs(shape, 3)
    theirs = monai.compute_hausdorff_distance(
        one_hot(a, 3), one_hot(b, 3), percentile=95, spacing=spacing
    )
    ours = hausdorff95(a, b, spacing)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.shape == (2, 3) and (ours > 0.5).all()


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_hausdorff95_is_that_of_simpleitks_contours_and_distances(shape, spacing):
    sitk = pytest.importorskip("SimpleITK")
    a, b = blobs(shape, 4, batch=1), blobs(shape, 5, batch=1)
    for column, label in enumerate([1, 2, 3]):
        contours = []
        for labels in (a, b):
            image = sitk.GetImageFromArray((labels[0, 0].numpy() == label).astype(np.uint8))
            image.SetSpacing(spacing[::-1])  # ITK counts the axes from the last one
            contours.append(sitk.LabelContour(image, fullyConnected=False))
        directed = []
        for start, to in (contours, contours[::-1]):
            distance = sitk.SignedMaurerDistanceMap(to, False, False, True)
            values = sitk.GetArrayFromImage(distance)[sitk.GetArrayFromImage(start) > 0]
            directed.append(np.percentile(values.clip(0), 95))
        ours = hausdorff95(a, b, spacing, [label])[0, 0].item()
        assert ours == pytest.approx(max(directed), rel=1e-5), column


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_dice_is_simpleitks_and_monais(shape, spacing):
    sitk, monai = pytest.importorskip("SimpleITK"), pytest.importorskip("monai.metrics")
    a, b = blobs(shape, 8), blobs(shape, 9)
    ours = dice(a, b)
    theirs = monai.compute_dice(one_hot(a, 3), one_hot(b, 3), include_background=False)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    for item in range(2):
        overlap = sitk.LabelOverlapMeasuresImageFilter()
        images = [sitk.GetImageFromArray(x[item, 0].numpy().astype(np.uint8)) for x in (a, b)]
        overlap.Execute(*images)
        expected = [overlap.GetDiceCoefficient(label) for label in (1, 2, 3)]
        np.testing.assert_allclose(ours[item].numpy(), expected, atol=1e-6)

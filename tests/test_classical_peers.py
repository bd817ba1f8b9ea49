"""Demons and centroids beside SimpleITK, on brains."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from course_lib.classical.affine import align_moments, moments, pose_matrix
from course_lib.classical.demons import demons, match_histogram
from course_lib.datasets import Pair, brains
from course_lib.metrics import endpoint_error, folding_fraction

sitk = pytest.importorskip("SimpleITK")
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def itk(image: Tensor):
    return sitk.GetImageFromArray(image[0, 0].double().numpy())


@cache
def cohort(seed: int) -> Pair:
    return brains.pair(seed)


def itk_demons(kind: str, moving: Tensor, fixed: Tensor) -> Tensor:
    """Their demons with our schedule: three levels, 60 steps each, a blur of 1.5 voxels."""
    f, m, field = itk(fixed), itk(moving), None
    for factor in (4, 2, 1):
        small_f, small_m = (
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(x, 0.5 * factor), [factor] * 2)
            if factor > 1
            else x
            for x in (f, m)
        )
        method = getattr(sitk, kind)()
        method.SetNumberOfIterations(60)
        method.SetStandardDeviations(1.5)
        if field is None:
            field = method.Execute(small_f, small_m)
        else:
            inside = sitk.Resample(
                field, small_f, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID()
            )
            field = method.Execute(small_f, small_m, inside)
    xy = sitk.GetArrayFromImage(field)  # (i, j, 2); spacing 1; component 0 is x, the last axis
    return torch.from_numpy(xy[..., ::-1].copy()).movedim(-1, 0)[None].float()


@pytest.mark.parametrize(
    ("diffeomorphic", "kind"),
    [(False, "DemonsRegistrationFilter"), (True, "DiffeomorphicDemonsRegistrationFilter")],
)
def test_demons_come_as_near_to_the_true_field_as_theirs(diffeomorphic, kind):
    ours, theirs, still, folds = [], [], [], []
    for seed in (0, 1):
        pair = cohort(seed)
        moving, brain = match_histogram(pair.moving, pair.fixed), pair.fixed_labels > 0
        found = demons(moving, pair.fixed, diffeomorphic=diffeomorphic)
        peer = itk_demons(kind, moving, pair.fixed)
        assert pair.displacement is not None
        for errors, u in ((ours, found), (theirs, peer), (still, torch.zeros_like(found))):
            errors.append(float(endpoint_error(u, pair.displacement, mask=brain)))
        folds.append(float(folding_fraction(found)))
    assert np.mean(theirs) < 0.5 * np.mean(still)  # so they are a fair opponent
    assert np.mean(ours) < 1.05 * np.mean(theirs)
    assert max(folds) < 1e-3


def test_centroids_are_theirs():
    pair = brains.real_pair(pose=pose_matrix(20, 1.1, (6, -5)))
    start = sitk.CenteredTransformInitializer(
        itk(pair.fixed),
        itk(pair.moving),
        sitk.Euler2DTransform(),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )
    here, there = moments(pair.fixed)[0][0], moments(pair.moving)[0][0]
    np.testing.assert_allclose(start.GetCenter(), here.flip(0).numpy(), atol=1e-3)
    np.testing.assert_allclose(start.GetTranslation(), (there - here).flip(0).numpy(), atol=1e-3)
    # And ours, which turns as well, takes the one centroid to the other.
    matrix = align_moments(pair.moving, pair.fixed)
    middle = (torch.tensor(pair.fixed.shape[2:]) - 1) / 2
    landed = matrix[0, :, :2] @ (here - middle) + matrix[0, :, 2] + middle
    np.testing.assert_allclose(landed.numpy(), there.numpy(), atol=1e-3)

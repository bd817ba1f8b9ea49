"""Who registers: the same two images for all, each library's answer turned into our displacement.

A preparation turns a pair into what its library eats (not timed) and returns a `Job`: `run`, which
is timed, then `field`, its answer in our convention (see `course_lib.spatial`), and `warped`, the
moving image as the library itself warps it: by that `disagreement` finds a field read with its axes
swapped, its sign turned or its units mistaken.

Libraries are imported in the preparations: one that is missing costs its row, not the run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.round_trip import inside
from course_lib import optimise
from course_lib.spatial import identity_grid, warp

WEIGHTS = "voxelmorph2d-brains"
SHORT: dict[str, Any] = {"factors": (2, 1), "steps": 10}


class Job(NamedTuple):
    """One registration: what is timed, and how to read what it returned."""

    run: Callable[[], Any]
    field: Callable[[Any], Tensor]  # (1, 2, *spatial), voxels
    warped: Callable[[Any], Tensor] | None = None  # (1, 1, *spatial), by the library itself


Prepare = Callable[[Tensor, Tensor], Job]


@dataclass(frozen=True)
class Registrar:
    """One row of the table; ``settings`` is the legend's line."""

    name: str
    prepare: Prepare
    settings: str


def disagreement(job: Job, answer: Any, moving: Tensor) -> float | None:
    """How far the library's warped image is from ours by the field that we read, inside.

    Returns:
        The mean absolute difference as a part of what the warping changed: 0 if the field is read
        right, about 1 or more if it is not. None for our own methods.
    """
    if job.warped is None:
        return None
    field, theirs = job.field(answer), job.warped(answer)
    where = torch.from_numpy(inside(field))[None, None]
    difference = (warp(moving, field) - theirs).abs()[where].mean()
    return float(difference / (moving - theirs).abs()[where].mean())


# ------------------------------------------------------------------------------------- classical


def nothing(moving: Tensor, fixed: Tensor) -> Job:
    """The identity: what every method starts from."""
    return Job(lambda: torch.zeros_like(fixed).repeat(1, fixed.ndim - 2, 1, 1), lambda field: field)


def opencv_dis(moving: Tensor, fixed: Tensor) -> Job:
    """Kroeger's dense inverse search, an optical flow; 8-bit images."""
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    a, b = (image[0, 0].mul(255).round().byte().numpy() for image in (fixed, moving))
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grid = identity_grid(fixed.shape[2:], dtype=torch.float32).movedim(0, -1).flip(-1).numpy()

    def warped(flow: np.ndarray) -> Tensor:
        # OpenCV's pixels are (x, y): its first coordinate is the array's last axis.
        return _image(cv2.remap(moving[0, 0].numpy(), grid + flow, None, cv2.INTER_LINEAR))

    return Job(
        lambda: method.calc(a, b, None),
        lambda flow: _field(flow[..., ::-1]),
        warped,
    )


def sitk_demons(moving: Tensor, fixed: Tensor) -> Job:
    """Vercauteren's demons with symmetric forces, over a pyramid."""
    import SimpleITK as sitk

    a, b = (sitk.GetImageFromArray(image[0, 0].numpy()) for image in (fixed, moving))

    def run() -> Any:
        match = sitk.HistogramMatchingImageFilter()
        match.SetNumberOfHistogramLevels(256)
        match.SetNumberOfMatchPoints(10)
        match.ThresholdAtMeanIntensityOn()
        matched = match.Execute(b, a)
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(2.5)
        found: list[Any] = []  # the field of the level before, if there is one
        for factor, iterations in ((4, 60), (2, 40), (1, 30)):
            small_a, small_b = _sitk_small(a, factor), _sitk_small(matched, factor)
            demons.SetNumberOfIterations(iterations)
            start = [sitk.Resample(field, small_a) for field in found]
            found = [demons.Execute(small_a, small_b, *start)]
        return found[0]

    def warped(field: Any) -> Tensor:
        transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
        return _image(sitk.GetArrayFromImage(sitk.Resample(b, a, transform, sitk.sitkLinear, 0.0)))

    # ITK's component 0 moves along x, which is the last axis of the array.
    return Job(run, lambda found: _field(sitk.GetArrayFromImage(found)[..., ::-1]), warped)


def _sitk_small(image: Any, factor: int) -> Any:
    import SimpleITK as sitk

    if factor == 1:
        return image
    blurred = sitk.SmoothingRecursiveGaussian(image, factor / 2)
    return sitk.Shrink(blurred, [factor] * image.GetDimension())


ELASTIX = {
    "Metric": ("AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"),
    "Metric0Weight": ("1",),
    "Metric1Weight": ("2",),
    "MaximumNumberOfIterations": ("150",),
    "NumberOfSpatialSamples": ("3000",),
    "Interpolator": ("LinearInterpolator",),
    "FinalBSplineInterpolationOrder": ("1",),  # of the image it returns: linear, as ours
    "ResultImagePixelType": ("float",),
    "RandomSeed": ("1",),
}


def elastix_bspline(moving: Tensor, fixed: Tensor) -> Job:
    """Elastix's B-splines: correlation at random samples, adaptive stochastic descent."""
    import itk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    a, b = (itk.image_from_array(image[0, 0].numpy()) for image in (fixed, moving))
    parameters = itk.ParameterObject.New()
    settings = parameters.GetDefaultParameterMap("bspline", 3, 8.0)
    for name, values in ELASTIX.items():
        settings[name] = values
    parameters.AddParameterMap(settings)

    def run() -> Any:
        # Its `number_of_threads` crashes the process: the global default stands for it.
        return itk.elastix_registration_method(
            a, b, parameter_object=parameters, log_to_console=False
        )

    def field(answer: Any) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:  # it also writes the field into a file
            found = itk.transformix_deformation_field(
                b, answer[1], log_to_console=False, output_directory=folder
            )
        return _field(itk.array_from_image(found)[..., ::-1])

    return Job(run, field, lambda answer: _image(itk.array_from_image(answer[0])))


def ants_syn(**settings: Any) -> Prepare:
    """ANTs' symmetric diffeomorphism, by itself: these pairs need no rigid or affine part."""

    def prepare(moving: Tensor, fixed: Tensor) -> Job:
        import ants

        a, b = (ants.from_numpy(image[0, 0].numpy()) for image in (fixed, moving))
        folder = tempfile.TemporaryDirectory(prefix="bench-ants-")

        def run() -> Any:
            return ants.registration(
                a, b, "SyNOnly", outprefix=f"{folder.name}/", random_seed=1, **settings
            )

        def field(found: Any) -> Tensor:
            composed = ants.apply_transforms(
                a, b, found["fwdtransforms"], compose=f"{folder.name}/all"
            )
            # No transpose, no axis turned: component k moves along the array's axis k.
            return _field(ants.image_read(composed).numpy())

        return Job(run, field, lambda found: _image(found["warpedmovout"].numpy()))

    return prepare


def dipy_syn(sigma: float) -> Prepare:
    """DIPY's symmetric diffeomorphism with cross-correlation."""

    def prepare(moving: Tensor, fixed: Tensor) -> Job:
        from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
        from dipy.align.metrics import CCMetric

        a, b = (image[0, 0].numpy().astype(np.float64) for image in (fixed, moving))

        def run() -> Any:
            metric = CCMetric(2, sigma_diff=sigma, radius=4)
            method = SymmetricDiffeomorphicRegistration(metric, level_iters=[50, 25, 10])
            method.verbosity = 0
            return method.optimize(a, b)

        return Job(
            run,
            lambda mapping: _field(np.asarray(mapping.get_forward_field())),
            lambda mapping: _image(np.asarray(mapping.transform(b))),
        )

    return prepare


# ------------------------------------------------------------------------------------------ ours


def ours_refine(moving: Tensor, fixed: Tensor) -> Job:
    """Our descent from zero, as it comes."""
    return Job(lambda: optimise.refine(moving, fixed), lambda field: field)


def ours_network(moving: Tensor, fixed: Tensor) -> Job:
    """One pass of the network that ships."""
    model = _pretrained()

    @torch.inference_mode()
    def run() -> Tensor:
        return model(moving, fixed).displacement

    return Job(run, lambda field: field.clone())


def ours_network_and_refine(moving: Tensor, fixed: Tensor) -> Job:
    """The network's answer as the start of a short descent."""
    network = ours_network(moving, fixed)
    return Job(lambda: optimise.refine(moving, fixed, network.run(), **SHORT), lambda field: field)


def _pretrained() -> Any:
    from course_lib.models import pretrained

    return pretrained(WEIGHTS)


def _field(channels_last: np.ndarray) -> Tensor:
    return torch.from_numpy(np.moveaxis(channels_last, -1, 0)[None].astype(np.float32))


def _image(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))[None, None]


_MI = {"syn_metric": "mattes", "syn_sampling": 32}
_CC = {"syn_metric": "CC", "syn_sampling": 4}

REGISTRARS = [
    Registrar("identity", nothing, "no displacement"),
    Registrar("OpenCV DIS", opencv_dis, "preset medium, on 8-bit images"),
    Registrar(
        "SimpleITK Demons",
        sitk_demons,
        "FastSymmetricForces, histograms matched, field smoothed by 2.5 voxels, 60/40/30 iterations"
        " at 1/4, 1/2, 1",
    ),
    Registrar(
        "elastix B-spline",
        elastix_bspline,
        "normalized correlation + 2 · bending energy, 3000 random samples, 150 iterations at each"
        " of 3 levels, knots every 8 mm",
    ),
    Registrar(
        "ANTs SyN",
        ants_syn(reg_iterations=(40, 20, 0), **_MI),
        "SyNOnly, mutual information of 32 bins, as it comes: 40/20/0 iterations, so none at full"
        " size",
    ),
    Registrar(
        "ANTs SyN-CC",
        ants_syn(reg_iterations=(70, 40, 10), flow_sigma=3, **_CC),
        "SyNOnly, cross-correlation of radius 4, 70/40/10 iterations, update smoothed as it comes"
        " (flow_sigma 3)",
    ),
    Registrar(
        "ANTs SyN-CC, tuned",
        ants_syn(reg_iterations=(70, 40, 10), flow_sigma=5, **_CC),
        "the same with flow_sigma 5, chosen on pairs 0 to 9",
    ),
    Registrar(
        "DIPY SyN-CC",
        dipy_syn(2.0),
        "cross-correlation of radius 4, 50/25/10 iterations, update smoothed as it comes"
        " (sigma_diff 2)",
    ),
    Registrar(
        "DIPY SyN-CC, tuned",
        dipy_syn(4.0),
        "the same with sigma_diff 4, chosen on pairs 0 to 9",
    ),
    Registrar("refine", ours_refine, "optimise.refine(moving, fixed) from zero, as it comes"),
    Registrar("network", ours_network, f"models.pretrained({WEIGHTS!r}), one pass"),
    Registrar(
        "network + refine",
        ours_network_and_refine,
        f"the same, then refine(…, {', '.join(f'{k}={v}' for k, v in SHORT.items())})",
    ),
]

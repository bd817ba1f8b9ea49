"""Who is compared: for each primitive, our function and every peer that computes the same thing.

A preparation gets the arrays, turns them into what its library eats (which is not timed), and
returns a call without arguments. The call returns a number, or a tensor of the layout of ours. With
"backward", it returns the gradient, with respect to what a training or a descent needs: the warped
image for a similarity, the displacement or velocity for the rest; the images for nearest.

Libraries are imported in the preparations: one that is missing costs its rows, not the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Call
from course_lib import losses, metrics, spatial

LABELS = 35
CASES: dict[str, tuple[int, ...]] = {
    "2D 512²": (512, 512),
    "3D 96³": (96, 96, 96),
    "3D 160×192×224": (160, 192, 224),
}
QUICK = ("2D 512²", "3D 96³")
SMALL, MIDDLE, LARGE = CASES
PACKAGES = ("torch", "numpy", "scipy", "monai", "voxelmorph", "neurite", "SimpleITK", "antspyx")


class Arrays(NamedTuple):
    """What all competitors of a case get: intensities of 0 to 1, fields of a few voxels."""

    fixed: Tensor
    moving: Tensor
    displacement: Tensor
    velocity: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor


Prepare = Callable[[Arrays], Call]


@dataclass(frozen=True)
class Peer:
    """One competitor; ``counts`` is whether the target is measured against it."""

    prepare: Prepare
    counts: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the issue's table: ours, the peers, the asked ratio for each case."""

    name: str
    ours: Prepare
    peers: Mapping[str, Peer]
    targets: Mapping[str, float] = field(default_factory=dict)
    lean: bool = False  # whether no more memory than the fastest peer's is asked


def arrays(shape: tuple[int, ...], seed: int = 0) -> Arrays:
    """Smooth random images, fields and label maps; the same for the same shape and seed."""
    generator = torch.Generator().manual_seed(seed)

    def noise(channels: int, every: int) -> Tensor:
        coarse = [max(4, n // every) for n in shape]
        return spatial.resize_image(torch.randn(1, channels, *coarse, generator=generator), shape)

    def image(values: Tensor) -> Tensor:
        low, high = values.aminmax()
        return ((values - low) / (high - low)).contiguous()

    both = image(noise(1, 8) + 0.3 * noise(1, 3))
    displacement, velocity = 2 * noise(len(shape), 24), 2 * noise(len(shape), 24)
    moving = image(spatial.warp(both, displacement, padding="border").sqrt() + 0.02 * noise(1, 2))
    # Equal bands of a smooth image's brightest two fifths: 35 structures on a large background.
    rank = noise(1, 16).flatten().argsort().argsort().double() / math.prod(shape)
    labels = ((rank - 0.6) / 0.4 * LABELS).ceil().clamp(0, LABELS).long().view(1, 1, *shape)
    moved = spatial.warp(labels, displacement, mode="nearest", padding="border")
    return Arrays(both, moving, displacement, velocity, labels, moved)


def of_two_images(function: Callable[..., Any]) -> Prepare:
    """A similarity's value."""
    return lambda a: lambda: float(function(a.moving, a.fixed))


def with_gradient(function: Callable[..., Tensor], *which: str) -> Prepare:
    """Forward and backward through ``function`` of some of the arrays, to the first of them."""

    def prepare(a: Arrays) -> Call:
        inputs = [getattr(a, name) for name in which]
        leaf = inputs[0].clone().requires_grad_()
        upstream: list[Tensor] = []

        def call() -> Tensor:
            leaf.grad = None
            out = function(leaf, *inputs[1:])
            if not upstream:  # of the result's shape, the same for every library
                generator = torch.Generator().manual_seed(1)
                upstream.append(torch.rand(out.shape, generator=generator).to(out.dtype))
            out.backward(upstream[0] if out.ndim else None)
            assert leaf.grad is not None
            return leaf.grad

        return call

    return prepare


def of_field(function: Callable[[Tensor], Tensor], name: str = "displacement") -> Prepare:
    """A field's value or field."""
    return lambda a: lambda: function(getattr(a, name))


def late(
    make: Callable[[], Callable[..., Any]], use: Callable[..., Prepare], *more: str
) -> Prepare:
    """``use(make(), …)``, but made only when its turn comes: the library may be missing."""
    return lambda a: use(make(), *more)(a)


# ------------------------------------------------------------------------------ local NCC, MI


def _monai_lncc() -> Callable[..., Tensor]:
    from monai.losses import LocalNormalizedCrossCorrelationLoss as Loss

    return lambda a, b: Loss(spatial_dims=a.ndim - 2, kernel_size=9)(a, b)


def _neurite_ncc() -> Callable[..., Tensor]:
    from neurite.nn.modules import NCC

    loss = NCC(window_size=9)
    return lambda a, b: -loss(a, b).squeeze()


def _sitk_mattes(a: Arrays) -> Call:
    import SimpleITK as sitk

    fixed, moving = _sitk_image(a.fixed), _sitk_image(a.moving)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.NONE)  # every voxel
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(sitk.TranslationTransform(fixed.GetDimension()))
    return lambda: method.MetricEvaluate(fixed, moving)


def _sitk_image(image: Tensor) -> Any:
    import SimpleITK as sitk

    return sitk.GetImageFromArray(image[0, 0].numpy())


def _monai_mi() -> Callable[..., Tensor]:
    from monai.losses import GlobalMutualInformationLoss

    # It needs intensities of 0 to 1, which these are. The other kernel, b-spline, is slower.
    return GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=32)


def _ants_mattes(a: Arrays) -> Call:
    import ants

    fixed, moving = (ants.from_numpy(image[0, 0].numpy()) for image in (a.fixed, a.moving))
    return lambda: ants.image_similarity(fixed, moving, metric_type="MattesMutualInformation")


# ------------------------------------------------------------------------------- Dice, Jacobian


def _sitk_dice(a: Arrays) -> Call:
    import SimpleITK as sitk

    one, two = (
        sitk.GetImageFromArray(labels[0, 0].numpy().astype(np.uint8))
        for labels in (a.fixed_labels, a.moving_labels)
    )

    def call() -> Tensor:
        measure = sitk.LabelOverlapMeasuresImageFilter()
        measure.Execute(one, two)
        return torch.tensor([[measure.GetDiceCoefficient(k) for k in range(1, LABELS + 1)]])

    return call


def _ants_dice(a: Arrays) -> Call:
    import ants

    one, two = (
        ants.from_numpy(labels[0, 0].numpy().astype(np.uint32))
        for labels in (a.fixed_labels, a.moving_labels)
    )

    def call() -> Tensor:
        found = ants.label_overlap_measures(one, two).set_index("Label")["MeanOverlap"]
        by_label = {int(k): v for k, v in found.items() if str(k).strip().isdigit()}
        return torch.tensor([[float(by_label[k]) for k in range(1, LABELS + 1)]])

    return call


def _monai_dice(a: Arrays) -> Call:
    from monai.metrics import compute_dice
    from monai.networks import one_hot

    def call() -> Tensor:
        one, two = (one_hot(x, LABELS + 1) for x in (a.fixed_labels, a.moving_labels))
        return compute_dice(one, two, include_background=False)

    return call


def _voxelmorph_dice(a: Arrays) -> Call:
    from voxelmorph.py.utils import dice

    one, two = a.fixed_labels[0, 0].numpy(), a.moving_labels[0, 0].numpy()
    return lambda: torch.from_numpy(dice(one, two, labels=list(range(1, LABELS + 1))))[None]


def _sitk_jacobian(a: Arrays) -> Call:
    import SimpleITK as sitk

    vectors = _sitk_vectors(a.displacement)
    return lambda: _from_sitk(sitk.DisplacementFieldJacobianDeterminant(vectors))


def _sitk_vectors(displacement: Tensor) -> Any:
    import SimpleITK as sitk

    # In ITK component 0 moves along x, which is the last axis of the array.
    array = displacement[0].flip(0).movedim(0, -1).contiguous().numpy()
    return sitk.GetImageFromArray(array, isVector=True)


def _from_sitk(image: Any) -> Tensor:
    import SimpleITK as sitk

    return torch.from_numpy(sitk.GetArrayFromImage(image))[None, None]


def _voxelmorph_jacobian(a: Arrays) -> Call:
    from voxelmorph.py.utils import jacobian_determinant

    channels_last = a.displacement[0].movedim(0, -1).contiguous().numpy()
    return lambda: torch.from_numpy(jacobian_determinant(channels_last))[None, None]


def _ants_jacobian(a: Arrays) -> Call:
    import ants

    domain = ants.from_numpy(a.fixed[0, 0].numpy())
    channels_last = a.displacement[0].movedim(0, -1).contiguous().numpy()
    vectors = ants.from_numpy(channels_last, has_components=True)
    return lambda: torch.from_numpy(
        ants.create_jacobian_determinant_image(domain, vectors).numpy()
    )[None, None]


# ---------------------------------------------------------------------------- warp, integration


def _ours_warp(mode: Any) -> Callable[..., Tensor]:
    return lambda image, u: spatial.warp(image, u, mode=mode)


def _monai_warp(mode: str) -> Callable[[], Callable[..., Tensor]]:
    def make() -> Callable[..., Tensor]:
        from monai.networks.blocks import Warp

        return Warp(mode=mode, padding_mode="zeros")

    return make


def _voxelmorph_warp(mode: str) -> Callable[[], Callable[..., Tensor]]:
    def make() -> Callable[..., Tensor]:
        from voxelmorph.nn.modules import SpatialTransformer

        return SpatialTransformer(mode)

    return make


def _sitk_warp(nearest: bool) -> Prepare:
    def prepare(a: Arrays) -> Call:
        import SimpleITK as sitk

        vectors = sitk.Cast(_sitk_vectors(a.displacement), sitk.sitkVectorFloat64)
        transform = sitk.DisplacementFieldTransform(vectors)
        moving = _sitk_image(a.moving)
        how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
        return lambda: _from_sitk(sitk.Resample(moving, moving, transform, how, 0.0))

    return prepare


def _scipy_warp(order: int) -> Prepare:
    def prepare(a: Arrays) -> Call:
        from scipy.ndimage import map_coordinates

        grid = spatial.identity_grid(a.fixed.shape[2:]).numpy()
        image, u = a.moving[0, 0].numpy(), a.displacement[0].numpy()
        return lambda: torch.from_numpy(map_coordinates(image, grid + u, order=order))[None, None]

    return prepare


def _forward_warp(function: Callable[..., Tensor]) -> Prepare:
    return lambda a: lambda: function(a.moving, a.displacement)


def _to_displacement(function: Callable[..., Tensor]) -> Prepare:
    return with_gradient(lambda u, image: function(image, u), "displacement", "moving")


def _to_image(function: Callable[..., Tensor]) -> Prepare:
    return with_gradient(function, "moving", "displacement")


def _monai_integrate() -> Callable[..., Tensor]:
    from monai.networks.blocks import DVF2DDF

    return DVF2DDF(num_steps=7, mode="bilinear", padding_mode="zeros")


def _voxelmorph_integrate() -> Callable[..., Tensor]:
    from voxelmorph.nn.modules import IntegrateVelocityField

    return IntegrateVelocityField(steps=7)


# ------------------------------------------------------------------------------------ smoothness


def _monai_loss(name: str) -> Callable[[], Callable[..., Tensor]]:
    def make() -> Callable[..., Tensor]:
        from monai import losses as theirs

        return getattr(theirs, name)()

    return make


def _neurite_gradient() -> Callable[..., Tensor]:
    from neurite.nn.modules import SpatialGradient

    return SpatialGradient(penalty="l2")


def _rows_of_similarities() -> list[Row]:
    images = ("moving", "fixed")
    all_mi = {
        "MONAI": Peer(late(_monai_mi, of_two_images)),
        "SimpleITK Mattes": Peer(_sitk_mattes),
        # With as many bins as it takes by itself: its Python does not let one choose.
        "ANTs Mattes": Peer(_ants_mattes),
    }
    return [
        Row(
            "local NCC 9, forward + backward",
            with_gradient(losses.lncc, *images),
            {
                "neurite": Peer(late(_neurite_ncc, with_gradient, *images)),
                "MONAI": Peer(late(_monai_lncc, with_gradient, *images)),
            },
            {SMALL: 5, MIDDLE: 5, LARGE: 2.5},
            lean=True,
        ),
        Row(
            "local NCC 9, forward",
            of_two_images(losses.lncc),
            {
                "neurite": Peer(late(_neurite_ncc, of_two_images)),
                "MONAI": Peer(late(_monai_lncc, of_two_images)),
            },
        ),
        Row(
            "mutual information 32, forward + backward",
            late(lambda: losses.mutual_information, with_gradient, *images),
            {"MONAI": Peer(late(_monai_mi, with_gradient, *images))},
            dict.fromkeys(CASES, 10),
        ),
        Row(
            "mutual information 32, forward",
            late(lambda: losses.mutual_information, of_two_images),
            all_mi,
            dict.fromkeys(CASES, 3),
        ),
    ]


def _rows_of_metrics() -> list[Row]:
    return [
        Row(
            "Dice, 35 labels",
            lambda a: lambda: metrics.dice(a.fixed_labels, a.moving_labels),
            {
                "SimpleITK": Peer(_sitk_dice),
                "ANTs": Peer(_ants_dice),
                "voxelmorph": Peer(_voxelmorph_dice),
                "MONAI": Peer(_monai_dice),
            },
            {LARGE: 2},
        ),
        Row(
            "Jacobian determinant",
            of_field(lambda u: spatial.jacobian_determinant(u).unsqueeze(1)),
            {
                "SimpleITK": Peer(_sitk_jacobian),
                "voxelmorph": Peer(_voxelmorph_jacobian),
                "ANTs": Peer(_ants_jacobian),
            },
            dict.fromkeys(CASES, 1.5),
        ),
    ]


def _rows_of_warp(
    mode: str, monai_mode: str, order: int, backward: Callable[..., Prepare]
) -> list[Row]:
    theirs = {"MONAI": _monai_warp(monai_mode), "voxelmorph": _voxelmorph_warp(mode)}
    others = {"SimpleITK": _sitk_warp(mode == "nearest"), "SciPy": _scipy_warp(order)}
    rows = [
        Row(
            f"warp {mode}, {way}",
            use(_ours_warp(mode)),
            {name: Peer(late(make, use)) for name, make in theirs.items()},
            dict.fromkeys(CASES, 0.95),
            lean=True,
        )
        for way, use in (("forward", _forward_warp), ("forward + backward", backward))
    ]
    outside = {name: Peer(prepare, counts=False) for name, prepare in others.items()}
    return [replace(rows[0], peers={**rows[0].peers, **outside}), rows[1]]


def _rows_of_integration() -> list[Row]:
    theirs = {"MONAI": _monai_integrate, "voxelmorph": _voxelmorph_integrate}
    return [
        Row(
            f"scaling and squaring 7, {way}",
            use(spatial.integrate, "velocity"),
            {name: Peer(late(make, use, "velocity")) for name, make in theirs.items()},
            dict.fromkeys(CASES, 0.95),
            lean=True,
        )
        for way, use in (("forward", of_field), ("forward + backward", with_gradient))
    ]


def _rows_of_smoothness() -> list[Row]:
    bending = {"MONAI": _monai_loss("BendingEnergyLoss")}
    diffusion = {"neurite": _neurite_gradient, "MONAI": _monai_loss("DiffusionLoss")}
    return [
        Row(
            f"{name}, forward + backward",
            late(ours, with_gradient, "displacement"),
            {
                peer: Peer(late(make, with_gradient, "displacement"))
                for peer, make in theirs.items()
            },
            dict.fromkeys(CASES, 0.95),
            lean=True,
        )
        for name, ours, theirs in (
            ("bending energy", lambda: losses.bending_energy, bending),
            ("diffusion", lambda: losses.diffusion, diffusion),
        )
    ]


ROWS: list[Row] = [
    *_rows_of_similarities(),
    *_rows_of_metrics(),
    *_rows_of_warp("linear", "bilinear", 1, _to_displacement),
    *_rows_of_warp("nearest", "nearest", 0, _to_image),
    *_rows_of_integration(),
    *_rows_of_smoothness(),
]


def ready(row_name: str, competitor: str, shape: tuple[int, ...]) -> Call:
    """For a process of its own: the call of one competitor, after a warm-up on small arrays."""
    return warmed(ROWS, row_name, competitor, shape)


def warmed(
    rows: Sequence[Row], row_name: str, competitor: str, shape: tuple[int, ...], small: int = 32
) -> Call:
    """The call of one competitor of one of the rows, after a warm-up on arrays of a small size."""
    row = next(row for row in rows if row.name == row_name)
    prepare = row.ours if competitor == "ours" else row.peers[competitor].prepare
    prepare(arrays((small,) * len(shape)))()
    return prepare(arrays(shape))


def interior(values: Tensor) -> Tensor:
    """The middle half along each spatial axis: borders are where libraries differ on purpose."""
    if values.ndim < 4:
        return values
    window = tuple(slice(n // 4, n - n // 4) for n in values.shape[2:])
    return values[(slice(None), slice(None), *window)]

"""Bad input: every public function names the argument, from its own code, never torch's.

One row is one call: what is asked, and the word that the refusal must hold. A good call of each
function stands beside its bad ones, so that a refusal cannot be the answer to everything.

    python -m tests.test_validation      # counts what is tried, function by function
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import Dataset

import course_lib
from course_lib import (
    landscapes,
    losses,
    metrics,
    plotting,
    spatial,
    training,
    validation,
    volumes,
)
from course_lib.classical import affine, demons
from course_lib.datasets import Pair, brains, collate, contrasts, halve
from course_lib.datasets.cohort import Cohort, Recombined
from course_lib.datasets.folder import Folder
from course_lib.datasets.oasis import OASIS, split_of
from course_lib.evaluation import over_cases, paired_comparison, recorded, table, warp_labels
from course_lib.io import Volume, load_displacement, load_nifti, save_displacement, save_nifti
from course_lib.mind import mind, mind_loss
from course_lib.models import Prediction, pretrained, unet
from course_lib.optimise import refine
from tests import test_floors, test_io, test_io_displacement

LIBRARY = Path(course_lib.__file__).parent
NAN, INF = float("nan"), float("inf")


def ramp(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).view(shape) / np.prod(shape)


IMAGE, FIELD = ramp(2, 1, 12, 10), ramp(2, 2, 12, 10)
VOLUME, FIELD3 = ramp(2, 1, 10, 11, 12), ramp(2, 3, 10, 11, 12)
LABELS = (IMAGE * 4).long()
TISSUES = LABELS.clamp(max=3)
MATRIX = torch.eye(2, 3).repeat(2, 1, 1)
POINTS = ramp(2, 5, 2)
ONE = FIELD[:1]
MASK = torch.ones(2, 1, 12, 10)
POSE = torch.eye(2, 3)[None]
PAIR = Pair(IMAGE, IMAGE.flip(2), LABELS, LABELS.flip(2), FIELD, (1.0, 2.0))
HEAD = Volume(VOLUME[:1], np.diag([3.0, 1, 1, 1]), (3.0, 1.0, 1.0))
FAST = {"factors": (1,), "steps": 1, "similarity": losses.mse}


def fixed_field(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return FIELD


def read_folder(folder: Path, options: dict[str, object]) -> None:
    """Two scans of one's own, read with one option or another."""
    for name in ("a.nii", "b.nii"):
        save_nifti(folder / name, VOLUME[:1], np.eye(4))
    Folder(**{"path": folder} | options)[0]  # type: ignore[arg-type]


def read_oasis(folder: Path) -> None:
    """Two people in the release's layout."""
    for person in ("OASIS_OAS1_0001_MR1", "OASIS_OAS1_0002_MR1"):
        (folder / person).mkdir()
        for file, image in (("slice_norm.nii.gz", IMAGE[:1]), ("slice_seg4.nii.gz", LABELS[:1])):
            save_nifti(folder / person / file, image, np.eye(4))
    OASIS("all", labels=4, folder=folder)[1]


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[(0,) * changed.ndim] = value
    return changed


def bad_images(good: torch.Tensor, *, floating: bool = True) -> dict[str, object]:
    """What is no ``(B, C, *spatial)``."""
    bad = {
        "a NumPy array": good.numpy(),
        "a list": good.tolist(),
        "None": None,
        "a number": 3.0,
        "rank 2": good[0, 0],
        "rank 3": good[0],
        "rank 6": good[None, None],
        "no items": good[:0],
        "no channels": good[:, :0],
        "an axis of one voxel": good[..., :1],
        "an axis of no voxels": good[..., :0],
    }
    return bad | ({"integers": good.long(), "booleans": good > 0} if floating else {})


def bad_fields(good: torch.Tensor) -> dict[str, object]:
    return bad_images(good) | {
        "one channel too few": good[:, :1],
        "one channel too many": torch.cat([good, good[:, :1]], dim=1),
        "channels last": good.movedim(1, -1),
        "complex": good.to(torch.complex64),
    }


def unlike(good: torch.Tensor) -> dict[str, object]:
    """What is no partner of ``good``: another batch, another size, another device."""
    return {
        "another batch": good[:1],
        "another size": good[:, :, :-1],
        "axes swapped": good.transpose(2, 3),
        "another device": good.to("meta"),
    }


BAD_SHAPES = {
    "one axis": (5,),
    "four axes": (2, 3, 4, 5),
    "an axis of one": (5, 1),
    "an axis of none": (0, 5),
    "a negative axis": (-4, 5),
    "fractions": (4.0, 5.0),
    "booleans": (True, 5),
    "words": "ab",
    "a number": 5,
    "None": None,
}
BAD_NUMBERS = {"NaN": NAN, "a word": "much", "None": None, "a list": [1.0, 2.0]}
BAD_WHOLE = {"negative": -1, "a fraction": 1.5, "a boolean": True, "a word": "x", "None": None}
BAD_SPACING = {
    "one number": (1.0,),
    "three numbers": (1.0, 1.0, 1.0),
    "zero": (0.0, 1.0),
    "negative": (-1.0, 1.0),
    "NaN": (NAN, 1.0),
    "infinite": (INF, 1.0),
    "a number": 2.0,
    "words": ("a", "b"),
}
BAD_MASKS = {
    "a NumPy array": MASK.numpy(),
    "another size": MASK[:, :, :-1],
    "two channels": MASK.repeat(1, 2, 1, 1),
    "another batch": MASK[:1],
    "no channel": MASK[:, 0],
    "another device": MASK.to("meta"),
    "a number": 1,
}
BAD_METRIC_MASKS = BAD_MASKS | {
    "empty": MASK * 0,
    "empty for one item": MASK * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1),
    "NaN": with_value(MASK, NAN),
    "negative": -MASK,
}
BAD_LABELS = bad_images(LABELS, floating=False) | {
    "floats": LABELS.float(),
    "booleans": LABELS > 0,
    "complex": LABELS.to(torch.complex64),
    "negative": LABELS - 1,
    "two channels": LABELS.repeat(1, 2, 1, 1),
}
BAD_MATRICES = {
    "a NumPy array": MATRIX.numpy(),
    "rank 2": MATRIX[0],
    "square": MATRIX[:, :, :2],
    "of 3D": torch.eye(3, 4)[None],
    "integers": MATRIX.long(),
    "None": None,
}
BAD_AFFINES = {
    "a word": "RAS",
    "a number": 1.0,
    "of 2D": np.eye(3),
    "without its last row": np.eye(4)[:3],
    "a batch": np.eye(4)[None],
    "complex words": [["a"] * 4] * 4,
    "ragged": [[1.0, 0.0], [0.0]],
    "NaN": np.diag([1.0, NAN, 1.0, 1.0]),
    "infinite": np.diag([1.0, INF, 1.0, 1.0]),
    "zero": np.zeros((4, 4)),
    "singular": np.diag([1.0, 0.0, 1.0, 1.0]),
    "another last row": np.diag([1.0, 1.0, 1.0, 2.0]),
    "transposed": (np.eye(4) + np.eye(4, k=3)).T,
    "None": None,
}
SHEARED = np.array([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
TILTED = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
BAD_PATHS = {"None": None, "a number": 3, "a list": ["a.nii"], "bytes": b"a.nii"}
NOT_FINITE = {"NaN": NAN, "infinite": INF, "minus infinite": -INF}
MASKED_ITEM = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
BAD_MM = {
    "a number": 5.0,
    "two coordinates": [1.0, 2.0],
    "four coordinates": np.zeros((5, 4)),
    "transposed": np.zeros((3, 5)),
    "words": ["a", "b", "c"],
    "unequal lengths": [[1, 2, 3], [4]],
    "complex": np.zeros(3, dtype=complex),
    "None": None,
}
BAD_VOLUMES = {
    "a tensor": VOLUME,
    "a tuple": (VOLUME, np.eye(4), (1.0, 1.0, 1.0)),
    "None": None,
    "a NumPy image": HEAD._replace(image=VOLUME.numpy()),
    "no batch": HEAD._replace(image=VOLUME[0, 0]),
    "a bad affine": HEAD._replace(affine=np.eye(3)),
    "a singular affine": HEAD._replace(affine=np.diag([1.0, 0, 1, 1])),
}


def rows() -> list[tuple[str, str, Callable[[], object], str]]:
    """``(function, what is wrong, the call, the word that the refusal holds)``."""
    found = []

    def add(function: str, wrong: dict[str, object], word: str, call: Callable) -> None:
        for what, value in wrong.items():
            found.append((function, f"{word}: {what}", lambda v=value: call(v), word))

    # spatial
    add("identity_grid", BAD_SHAPES, "shape", lambda v: spatial.identity_grid(v))
    bad_dtypes = {
        "integer": torch.long,
        "boolean": torch.bool,
        "a word": "float32",
        "NumPy's": np.float32,
        "complex": torch.complex64,
    }
    add("identity_grid", bad_dtypes, "dtype", lambda v: spatial.identity_grid((3, 4), dtype=v))
    bad_devices = {"unknown": "nowhere", "a list": [1]}
    add("identity_grid", bad_devices, "device", lambda v: spatial.identity_grid((3, 4), device=v))
    add("warp", bad_images(IMAGE), "image", lambda v: spatial.warp(v, FIELD))
    nearest = bad_images(LABELS, floating=False)
    add("warp", nearest, "image", lambda v: spatial.warp(v, FIELD, mode="nearest"))
    add(
        "warp",
        {"another batch": IMAGE[:1], "a volume": VOLUME, "elsewhere": IMAGE.to("meta")},
        "image",
        lambda v: spatial.warp(v, FIELD),
    )
    add("warp", bad_fields(FIELD), "displacement", lambda v: spatial.warp(IMAGE, v))
    add("warp", bad_fields(FIELD3), "displacement", lambda v: spatial.warp(VOLUME, v))
    add(
        "warp",
        {"another batch": FIELD[:1], "of 3D": FIELD3, "elsewhere": FIELD.to("meta")},
        "displacement",
        lambda v: spatial.warp(IMAGE, v),
    )
    options = {"unknown": "bilinear", "None": None, "a number": 1, "a list": ["linear"]}
    add("warp", options, "mode", lambda v: spatial.warp(IMAGE, FIELD, mode=v))
    options = {"unknown": "reflection", "None": None, "a number": 0, "a list": ["zeros"]}
    add("warp", options, "padding", lambda v: spatial.warp(IMAGE, FIELD, padding=v))
    bad_points = {
        "a NumPy array": POINTS.numpy(),
        "rank 2": POINTS[0],
        "another batch": POINTS[:1],
        "of 3D": ramp(2, 5, 3),
        "transposed": POINTS.mT,
        "integers": POINTS.long(),
        "elsewhere": POINTS.to("meta"),
        "None": None,
    }
    add("warp_points", bad_points, "points", lambda v: spatial.warp_points(v, FIELD))
    add("warp_points", bad_fields(FIELD), "displacement", lambda v: spatial.warp_points(POINTS, v))
    add("compose", bad_fields(FIELD), "first", lambda v: spatial.compose(v, FIELD))
    seconds = bad_fields(FIELD) | unlike(FIELD)
    add("compose", seconds, "second", lambda v: spatial.compose(FIELD, v))
    add("integrate", bad_fields(FIELD), "velocity", spatial.integrate)
    add("integrate", BAD_WHOLE, "steps", lambda v: spatial.integrate(FIELD, v))
    add("invert", bad_fields(FIELD), "displacement", spatial.invert)
    bad_tolerances = BAD_NUMBERS | {"negative": -1e-3, "infinite": INF, "a boolean": True}
    add("invert", bad_tolerances, "tolerance", lambda v: spatial.invert(FIELD, tolerance=v))
    bad_iterations = BAD_WHOLE | {"zero": 0}
    add("invert", bad_iterations, "iterations", lambda v: spatial.invert(FIELD, iterations=v))
    add("resize_image", bad_images(IMAGE), "image", lambda v: spatial.resize_image(v, (5, 6)))
    three = {"three axes": (4, 5, 6)}
    add("resize_image", BAD_SHAPES | three, "shape", lambda v: spatial.resize_image(IMAGE, v))
    add(
        "resize_displacement",
        bad_fields(FIELD),
        "displacement",
        lambda v: spatial.resize_displacement(v, (5, 6)),
    )
    add(
        "resize_displacement",
        BAD_SHAPES | three,
        "shape",
        lambda v: spatial.resize_displacement(FIELD, v),
    )
    add("smooth", bad_images(IMAGE), "image", lambda v: spatial.smooth(v, 1.0))
    add(
        "smooth",
        BAD_NUMBERS | {"negative": -1.0, "infinite": INF},
        "sigma",
        lambda v: spatial.smooth(IMAGE, v),
    )
    add(
        "affine_displacement",
        BAD_MATRICES,
        "matrix",
        lambda v: spatial.affine_displacement(v, (5, 6)),
    )
    add(
        "affine_displacement", BAD_SHAPES, "shape", lambda v: spatial.affine_displacement(MATRIX, v)
    )
    add("jacobian", bad_fields(FIELD), "displacement", spatial.jacobian)
    add("jacobian_determinant", bad_fields(FIELD3), "displacement", spatial.jacobian_determinant)

    # losses
    pairwise = (losses.mse, losses.ncc, losses.lncc, losses.mutual_information, losses.dice_loss)
    for loss in pairwise:
        name = loss.__name__
        add(name, bad_images(IMAGE), "warped", lambda v, f=loss: f(v, IMAGE))
        add(name, bad_images(IMAGE), "fixed", lambda v, f=loss: f(IMAGE, v))
        partners = unlike(IMAGE) | {"two channels": IMAGE.repeat(1, 2, 1, 1), "a volume": VOLUME}
        add(name, partners, "warped", lambda v, f=loss: f(v, IMAGE))
    windows = {
        "even": 4,
        "zero": 0,
        "negative": -3,
        "a fraction": 3.0,
        "a boolean": True,
        "larger than the image": 11,
        "a word": "9",
        "None": None,
        "a tuple": (3, 3),
    }
    add("lncc", windows, "window", lambda v: losses.lncc(IMAGE, IMAGE, v))
    add("lncc", BAD_MASKS, "mask", lambda v: losses.lncc(IMAGE, IMAGE, mask=v))
    bad_bins = BAD_WHOLE | {"none": 0, "one": 1, "a tuple": (32, 32), "NaN": NAN}
    add(
        "mutual_information", bad_bins, "bins", lambda v: losses.mutual_information(IMAGE, IMAGE, v)
    )
    for penalty in (losses.diffusion, losses.bending_energy):
        add(penalty.__name__, bad_fields(FIELD), "displacement", penalty)
        add(penalty.__name__, bad_fields(FIELD3), "displacement", penalty)
    two_voxels = {"two rows": FIELD[:, :, :2], "two slices": FIELD3[..., 4:6]}
    add("bending_energy", two_voxels, "displacement", losses.bending_energy)

    # metrics
    add("dice", BAD_LABELS, "a", lambda v: metrics.dice(v, LABELS))
    add("dice", BAD_LABELS | unlike(LABELS), "b", lambda v: metrics.dice(LABELS, v))
    bad_values = {
        "none": [],
        "a number": 3,
        "fractions": [1.5],
        "words": ["a"],
        "twice": [1, 1],
        "nested": [[1, 2]],
        "mixed": [1, None],
    }
    add("dice", bad_values, "values", lambda v: metrics.dice(LABELS, LABELS, v))
    add("hausdorff95", BAD_LABELS, "a", lambda v: metrics.hausdorff95(v, LABELS))
    add("hausdorff95", BAD_LABELS | unlike(LABELS), "b", lambda v: metrics.hausdorff95(LABELS, v))
    add(
        "hausdorff95",
        BAD_SPACING,
        "spacing",
        lambda v: metrics.hausdorff95(LABELS, LABELS, v),
    )
    add(
        "hausdorff95",
        bad_values,
        "values",
        lambda v: metrics.hausdorff95(LABELS, LABELS, values=v),
    )
    empty = {"nothing but background": LABELS * 0}
    add("dice", empty, "values", lambda v: metrics.dice(v, v))
    add("hausdorff95", empty, "values", lambda v: metrics.hausdorff95(v, v))
    not_finite = {what: with_value(FIELD, value) for what, value in NOT_FINITE.items()}
    add(
        "endpoint_error",
        bad_fields(FIELD) | not_finite,
        "displacement",
        lambda v: metrics.endpoint_error(v, FIELD),
    )
    add(
        "endpoint_error",
        bad_fields(FIELD) | not_finite | unlike(FIELD),
        "truth",
        lambda v: metrics.endpoint_error(FIELD, v),
    )
    add("endpoint_error", BAD_SPACING, "spacing", lambda v: metrics.endpoint_error(FIELD, FIELD, v))
    add(
        "endpoint_error",
        BAD_METRIC_MASKS,
        "mask",
        lambda v: metrics.endpoint_error(FIELD, FIELD, mask=v),
    )
    add(
        "folding_fraction", bad_fields(FIELD) | not_finite, "displacement", metrics.folding_fraction
    )
    add("folding_fraction", BAD_METRIC_MASKS, "mask", lambda v: metrics.folding_fraction(FIELD, v))
    add("sdlogj", bad_fields(FIELD) | not_finite, "displacement", metrics.sdlogj)
    add("sdlogj", BAD_METRIC_MASKS, "mask", lambda v: metrics.sdlogj(FIELD, v))
    lost = {what: with_value(POINTS, value) for what, value in NOT_FINITE.items()}
    add(
        "target_registration_error",
        bad_points | lost,
        "fixed_points",
        lambda v: metrics.target_registration_error(v, POINTS, FIELD),
    )
    fewer = {"fewer points": POINTS[:, 1:]}
    add(
        "target_registration_error",
        bad_points | lost | fewer,
        "moving_points",
        lambda v: metrics.target_registration_error(POINTS, v, FIELD),
    )
    add(
        "target_registration_error",
        bad_fields(FIELD) | not_finite,
        "displacement",
        lambda v: metrics.target_registration_error(POINTS, POINTS, v),
    )
    add(
        "target_registration_error",
        BAD_SPACING,
        "spacing",
        lambda v: metrics.target_registration_error(POINTS, POINTS, FIELD, v),
    )
    not_finite = {what: with_value(IMAGE, value) for what, value in NOT_FINITE.items()}
    add("correlation", bad_images(IMAGE) | not_finite, "a", lambda v: metrics.correlation(v, IMAGE))
    add(
        "correlation",
        bad_images(IMAGE) | not_finite | unlike(IMAGE),
        "b",
        lambda v: metrics.correlation(IMAGE, v),
    )

    # classical, optimise
    bad_scales = BAD_NUMBERS | {"zero": 0, "negative": -1.0, "infinite": INF}
    add("pose_matrix", BAD_NUMBERS | {"infinite": INF}, "degrees", affine.pose_matrix)
    add("pose_matrix", bad_scales, "scale", lambda v: affine.pose_matrix(3, v))
    bad_shifts = {
        "one number": (1.0,),
        "three numbers": (1.0, 2.0, 3.0),
        "a number": 5,
        "None": None,
        "NaN": (NAN, 0.0),
        "infinite": (INF, 0.0),
        "words": ("a", "b"),
    }
    add("pose_matrix", bad_shifts, "shift", lambda v: affine.pose_matrix(3, 1.0, v))
    bad_factor = {
        "zero": 0,
        "negative": -1,
        "below one": 0.5,
        "NaN": NAN,
        "a word": "x",
        "None": None,
    }
    add("pyramid", bad_factor, "factor", lambda v: affine.pyramid(IMAGE, v))
    for factor in (1, 2):
        add("pyramid", bad_images(IMAGE), "image", lambda v, f=factor: affine.pyramid(v, f))
    add("resize_matrix", BAD_MATRICES, "matrix", lambda v: affine.resize_matrix(v, (4, 5), (6, 7)))
    add("resize_matrix", BAD_SHAPES, "shape", lambda v: affine.resize_matrix(MATRIX, v, (6, 7)))
    add("resize_matrix", BAD_SHAPES, "new_shape", lambda v: affine.resize_matrix(MATRIX, (6, 7), v))
    bad_factors = {
        "zero": (0,),
        "negative": (-2,),
        "below one": (0.5,),
        "a number": 2,
        "words": ("x",),
        "None": None,
    }
    for function in (affine.register_affine, refine, demons.demons):
        name = function.__name__
        if name != "refine":
            bad_watches = {"a word": "steps", "a list": []}
            add(name, bad_watches, "watch", lambda v, f=function: f(IMAGE, IMAGE, watch=v))

        def call(moving=IMAGE, fixed=IMAGE, f=function, **options):
            fast = {key: FAST[key] for key in ("factors", "steps")}
            return f(moving, fixed, **{**fast, **options})

        add(name, bad_images(IMAGE), "fixed", lambda v, c=call: c(fixed=v))
        add(name, bad_images(IMAGE) | unlike(IMAGE), "moving", lambda v, c=call: c(moving=v))
        add(name, bad_factors, "factors", lambda v, c=call: c(factors=v))
        add(name, BAD_WHOLE, "steps", lambda v, c=call: c(steps=v))
        if name != "demons":
            words = {"a word": "ncc", "None": None}
            add(name, words, "similarity", lambda v, c=call: c(similarity=v))
    bad_motions = {"a word": "projective", "None": None, "a number": 6}
    bad_starts = BAD_MATRICES | {"another batch": MATRIX[:1], "another device": MATRIX.to("meta")}
    bad_starts.pop("None", None)  # which is the identity
    bad_mass = bad_images(IMAGE) | {
        "NaN": with_value(IMAGE, NAN),
        "infinite": with_value(IMAGE, INF),
        "negative": IMAGE - 0.5,
        "empty": IMAGE * 0,
    }
    a, m = partial(affine.register_affine, IMAGE, IMAGE, **FAST), affine.align_moments
    add("register_affine", bad_motions, "motion", lambda v: a(motion=v))
    add("register_affine", bad_starts, "start", lambda v: a(start=v))
    add("register_affine", BAD_SPACING, "spacing", lambda v: a(spacing=v))
    add("moments", bad_mass, "image", affine.moments)
    add("align_moments", bad_mass | unlike(IMAGE), "moving", lambda v: m(v, IMAGE))
    add("align_moments", bad_mass, "fixed", lambda v: m(IMAGE, v))
    add("align_moments", bad_motions, "motion", lambda v: m(IMAGE, IMAGE, v))
    add("align_moments", BAD_SPACING, "spacing", lambda v: m(IMAGE, IMAGE, spacing=v))
    words = {"a word": "ncc", "None": None}
    add("align_moments", words, "similarity", lambda v: m(IMAGE, IMAGE, similarity=v))

    # demons
    sides, blurs = (
        {"a word": "moving", "None": None},
        BAD_NUMBERS | {"negative": -1, "infinite": INF},
    )
    force = demons.demons_force
    add("demons_force", bad_images(IMAGE), "fixed", lambda v: force(IMAGE, v))
    add("demons_force", bad_images(IMAGE) | unlike(IMAGE), "warped", lambda v: force(v, IMAGE))
    add("demons_force", sides, "gradient", lambda v: force(IMAGE, IMAGE, gradient=v))
    bad_lengths = blurs | {"zero": 0}
    add("demons_force", bad_lengths, "longest", lambda v: force(IMAGE, IMAGE, longest=v))
    d = partial(demons.demons, IMAGE, IMAGE, factors=(1,), steps=1)
    add("demons", sides, "gradient", lambda v: d(gradient=v))
    add("demons", blurs, "smoothness", lambda v: d(smoothness=v))
    add("demons", blurs, "viscosity", lambda v: d(viscosity=v))
    fields = bad_fields(FIELD) | unlike(FIELD)
    del fields["None"]  # which is a start from zero
    add("demons", fields, "start", d)
    h, broken = demons.match_histogram, {"NaN": with_value(IMAGE, NAN), "no batch": IMAGE[0]}
    add("match_histogram", bad_images(IMAGE) | broken, "image", lambda v: h(v, IMAGE))
    others = {"another batch": IMAGE[:1], "another device": IMAGE.to("meta")}
    add(
        "match_histogram",
        bad_images(IMAGE) | broken | others | {"two channels": IMAGE.repeat(1, 2, 1, 1)},
        "reference",
        lambda v: h(IMAGE, v),
    )
    add("match_histogram", BAD_WHOLE | {"zero": 0}, "levels", lambda v: h(IMAGE, IMAGE, v))
    bad_penalties = {"a word": "bending", "None": None, "a number": 2.5}
    add(
        "refine",
        bad_penalties,
        "regularizer",
        lambda v: refine(IMAGE, IMAGE, regularizer=v, **FAST),
    )
    bad_weights = BAD_NUMBERS | {"negative": -1, "infinite": INF}
    add("refine", bad_weights, "weight", lambda v: refine(IMAGE, IMAGE, weight=v, **FAST))
    starts = bad_fields(FIELD) | unlike(FIELD)
    del starts["None"]  # which is a start from zero
    add("refine", starts, "start", lambda v: refine(IMAGE, IMAGE, v, **FAST))

    # landscapes
    poses = landscapes.translations([0, 1])

    def heights(loss=losses.mse, moving=IMAGE, fixed=IMAGE, poses=poses):
        return landscapes.landscape(loss, moving, fixed, poses)

    poor = {
        "a word": "mse",
        "None": None,
        "of many numbers": lambda a, b: a - b,
        "of nothing": lambda a, b: None,
        "of words": lambda a, b: "low",
    }
    add("landscape", poor, "loss", lambda v: heights(loss=v))
    add("landscape", bad_images(IMAGE), "fixed", lambda v: heights(fixed=v))
    add("landscape", bad_images(IMAGE) | unlike(IMAGE), "moving", lambda v: heights(moving=v))
    add("landscape", BAD_MATRICES | {"none": poses[:0]}, "poses", lambda v: heights(poses=v))
    bad_rows = {
        "a number": 1.0,
        "one number in a tensor": torch.tensor(1.0),
        "none": [],
        "a word": "ab",
        "words": ["a"],
        "NaN": [0.0, NAN],
        "infinite": [INF],
        "nested": [[1.0, 2.0]],
        "None": None,
    }
    axes_ = {"negative": -1, "too large": 2, "a fraction": 0.5, "a boolean": True, "None": None}
    ndims = {"one": 1, "four": 4, "a word": "2", "None": None, "a boolean": True}
    add("translations", bad_rows, "offsets", landscapes.translations)
    add("translations", axes_, "axis", lambda v: landscapes.translations([1.0], v))
    add("translations", ndims, "ndim", lambda v: landscapes.translations([1.0], 0, v))
    add("rotations", bad_rows, "degrees", landscapes.rotations)
    add("rotations", ndims, "ndim", lambda v: landscapes.rotations([1.0], v))

    # volumes
    for function in (volumes.to_world, volumes.to_voxel):
        name = function.__name__
        add(name, BAD_MM, "points", lambda v, f=function: f(v, np.eye(4)))
        add(name, BAD_AFFINES, "affine", lambda v, f=function: f([0, 0, 0], v))
    add("orientation", BAD_AFFINES, "affine", volumes.orientation)
    changes = {
        "reorient": volumes.reorient,
        "straighten": volumes.straighten,
        "crop_or_pad": lambda v: volumes.crop_or_pad(v, (12, 12, 12)),
        "resample": lambda v: volumes.resample(v, (1, 1, 1)),
        "resample_like": lambda v: volumes.resample_like(v, HEAD),
    }
    for name, change in changes.items():
        add(name, BAD_VOLUMES, "volume", change)
    flat = {"2D": HEAD._replace(image=IMAGE[:1])}
    for name in ("reorient", "straighten", "resample_like"):
        add(name, flat, "volume", changes[name])
    add("resample_like", BAD_VOLUMES | flat, "target", lambda v: volumes.resample_like(HEAD, v))
    bad_axes = {
        "two letters": "RA",
        "four letters": "RASI",
        "a direction twice": "RLS",
        "a letter twice": "RRA",
        "small letters": "ras",
        "another letter": "RAX",
        "None": None,
        "a list": ["R", "A", "S"],
    }
    add("reorient", bad_axes, "axes", lambda v: volumes.reorient(HEAD, v))
    sizes = BAD_SHAPES | {"two axes": (4, 5)}
    add("crop_or_pad", sizes, "shape", lambda v: volumes.crop_or_pad(HEAD, v))
    bad_fill = BAD_NUMBERS | {"infinite": INF}
    add("crop_or_pad", bad_fill, "value", lambda v: volumes.crop_or_pad(HEAD, (9, 9, 9), v))
    add("next_multiple", BAD_SHAPES, "shape", volumes.next_multiple)
    add(
        "next_multiple",
        BAD_WHOLE | {"zero": 0},
        "divisor",
        lambda v: volumes.next_multiple((4, 5), v),
    )
    bad_spacing = {**BAD_SPACING, "two numbers": (1.0, 1.0), "None": None}
    del bad_spacing["three numbers"]
    add("resample", bad_spacing, "spacing", lambda v: volumes.resample(HEAD, v))
    modes = {"unknown": "bilinear", "None": None, "a number": 1}
    add("resample", modes, "mode", lambda v: volumes.resample(HEAD, (1, 1, 1), v))
    add("resample_like", modes, "mode", lambda v: volumes.resample_like(HEAD, HEAD, v))
    add("straighten", modes, "mode", lambda v: volumes.straighten(HEAD, v))
    broken = {what: with_value(IMAGE, value) for what, value in NOT_FINITE.items()}
    dark = {"zeros": IMAGE * 0, "nothing above 0": -IMAGE, "one of two": IMAGE * MASKED_ITEM}
    add("normalize", bad_images(IMAGE) | broken | dark, "image", volumes.normalize)
    bad_upper = BAD_NUMBERS | {"zero": 0, "negative": -0.5, "percent": 99.5, "a boolean": True}
    add("normalize", bad_upper, "upper", lambda v: volumes.normalize(IMAGE, v))

    # io: the arguments, then files (what test_io.py and test_io_displacement.py make)
    add("load_nifti", BAD_PATHS, "path", load_nifti)
    add("load_displacement", BAD_PATHS, "path", load_displacement)
    add("save_nifti", BAD_PATHS, "path", lambda v: save_nifti(v, IMAGE[:1], np.eye(4)))
    add("save_displacement", BAD_PATHS, "path", lambda v: save_displacement(v, ONE, np.eye(4)))
    nowhere = {"another ending": "a.mha", "no ending": "a", "no such folder": "no/where/a.nii"}
    for what, value in (nowhere | {"a folder": "folder.nii"}).items():
        for save, good in ((save_nifti, IMAGE[:1]), (save_displacement, ONE)):
            call = in_folder(lambda f, v=value, s=save, g=good: s(made(f) / v, g, np.eye(4)))
            found.append((save.__name__, f"path: {what}", call, "path"))
    for load, broken in (
        (load_nifti, test_io.BROKEN),
        (load_displacement, {k: make for k, (make, _) in test_io_displacement.BROKEN.items()}),
    ):
        files = broken | {"no such file": lambda f: f / "a.nii", "a folder": lambda f: f}
        for what, make in files.items():
            call = in_folder(lambda f, m=make, load=load: load(m(f)))
            found.append((load.__name__, f"path: file: {what}", call, "path"))

    def saved(argument: str, wrong: dict[str, object], save: Callable, **good: object) -> None:
        for what, value in wrong.items():
            options = {**good, argument: value}
            call = in_folder(lambda f, o=options: save(f / "a.nii", **o))
            found.append((save.__name__, f"{argument}: {what}", call, argument))

    images = bad_images(IMAGE[:1], floating=False) | {
        "two items": IMAGE,
        "two channels": IMAGE[:1].repeat(1, 2, 1, 1),
        "NaN": with_value(IMAGE[:1], NAN),
        "infinite": with_value(IMAGE[:1], INF),
        "too large for float32": IMAGE[:1].double() * 1e300,
        "too large for int32": LABELS[:1] * 2**40,
        "complex": IMAGE[:1].to(torch.complex64),
        "constant": IMAGE[:1] * 0 + 7,
        "longer than NIfTI's axes": torch.ones(1).expand(1, 1, 40_000, 2),
    }
    saved("image", images, save_nifti, affine=np.eye(4))
    saved("affine", BAD_AFFINES, save_nifti, image=IMAGE[:1])
    displacements = bad_fields(ONE) | {
        "two items": FIELD,
        "NaN": with_value(ONE, NAN),
        "infinite": with_value(ONE, INF),
        "too large for float32": ONE.double() * 1e300,
        "longer than NIfTI's axes": torch.zeros(1).expand(1, 2, 40_000, 2),
    }
    saved("displacement", displacements, save_displacement, affine=np.eye(4))
    affines = BAD_AFFINES | {"sheared": SHEARED, "tilted": TILTED}
    saved("affine", affines, save_displacement, displacement=ONE)
    good_field = {"displacement": ONE, "affine": np.eye(4)}
    tilted = BAD_AFFINES | {"tilted": TILTED}
    del tilted["None"]  # which is the fixed image's
    saved("moving_affine", tilted, save_displacement, **good_field)
    for what, value in tilted.items():
        call = in_folder(lambda f, v=value: load_displacement(saved_field(f), v))
        found.append(("load_displacement", f"moving_affine: {what}", call, "moving_affine"))

    # datasets, evaluation
    bad_ndim = {"one": 1, "four": 4, "a word": "2", "None": None, "a list": [2], "a boolean": True}
    add("brains.pair", bad_ndim, "ndim", lambda v: brains.pair(0, v))
    add("brains.pair", BAD_WHOLE | {"a list": [0]}, "seed", brains.pair)
    bad_planes = {"a word": "oblique", "None": None, "a number": 0, "capitals": "Axial"}
    bad_mm = {"negative": -1, "zero": 0, "three": 3, "a word": "much", "NaN": NAN, "two": (1, 1)}
    add("brains.pair", bad_planes, "plane", lambda v: brains.pair(0, plane=v))
    add("brains.pair", bad_mm | {"2 mm": 2.0}, "spacing", lambda v: brains.pair(0, spacing=v))
    add("brains.pair", {"of 3D": 8.0}, "spacing", lambda v: brains.pair(0, 3, spacing=v))
    add("brains.kind_of", bad_ndim, "ndim", lambda v: brains.kind_of(v, "axial", None))
    add("brains.kind_of", bad_planes, "plane", lambda v: brains.kind_of(2, v, None))
    add("brains.kind_of", {"of a volume": "coronal"}, "plane", lambda v: brains.kind_of(3, v, None))
    add("brains.kind_of", bad_mm, "spacing", lambda v: brains.kind_of(2, "axial", v))
    bad_seeds = {"a number": 80, "none": [], "None": None, "a word": "80", "twice": [1, 2, 1]}
    bad_seeds |= {"negative": [-1], "fractions": [0.5], "booleans": [True]}
    add("Cohort", bad_seeds, "seeds", Cohort)
    add("Cohort", bad_ndim, "ndim", lambda v: Cohort([0], ndim=v))
    add("Cohort", bad_planes, "plane", lambda v: Cohort([0], plane=v))
    add("Cohort", bad_mm, "spacing", lambda v: Cohort([0], spacing=v))
    add("Cohort", {"a number": 3, "a list": ["a"]}, "folder", lambda v: Cohort([0], folder=v))
    bad_cohorts = {"a number": 3, "None": None, "a word": "train", "none": [], "a folder": Path()}
    add("Recombined", bad_cohorts, "cohort", lambda v: Recombined(v, 3))
    add("Recombined", BAD_WHOLE | {"zero": 0}, "length", lambda v: Recombined([PAIR], v))
    add("Recombined", BAD_WHOLE, "seed", lambda v: Recombined([PAIR], 3, v))
    scans = {"path": {"nowhere": "/nowhere", "a number": 3, "None": None}}
    scans["pairs"] = {"a word": "some", "None": None, "without names": "named"}
    scans["atlas"] = {"missing": "c.nii", "a number": 3}
    scans["images"] = {"a number": 3, "None": None}
    scans["labels"] = {"no name": "labels.nii", "a number": 3, "missing": "{name}_labels.nii"}
    scans["axes"] = {"a word": "up", "a number": 3, "twice": "RRS"}
    scans["spacing"] = {**BAD_SPACING, "three numbers": (1.0, 1.0)}
    scans["shape"] = {**BAD_SHAPES, "two axes": (16, 16)}
    scans["window"] = {"a word": "wide", "swapped": (5, 1), "three": (1, 2, 3), "NaN": (NAN, 1.0)}
    del scans["shape"]["None"]
    for word, values in scans.items():
        for what, value in values.items():
            call = in_folder(lambda f, w=word, v=value: read_folder(f, {w: v}))
            found.append(("Folder", f"{word}: {what}", call, word))
    refused = {"split": {"a word": "training", "None": None}, "ndim": bad_ndim}
    refused["labels"] = {"of 3D": 35, "a word": "24", "a boolean": True}
    for word, values in refused.items():
        add("OASIS", values, word, lambda v, w=word: OASIS(**{w: v}, folder="/nowhere"))
    add("OASIS", {"a number": 3, "a list": ["a"]}, "folder", lambda v: OASIS(folder=v))
    add("OASIS", {"a number": 3, "a list": ["a"]}, "url", lambda v: OASIS(url=v))
    bad_hashes = {"a number": 3, "a word": "right", "another kind": "crc:12", "too short": "md5:12"}
    add("OASIS", bad_hashes, "known_hash", lambda v: OASIS(known_hash=v))
    add("split_of", {"a number": 3, "None": None, "no number": "anna"}, "subject", split_of)
    add("brains.real_pair", bad_ndim, "ndim", brains.real_pair)
    singular = {"singular": torch.tensor([[[1.0, 2, 0], [2, 4, 0]]]), "zero": POSE * 0}
    bad_poses = (
        dict(BAD_MATRICES)
        | singular
        | {
            "two": POSE.repeat(2, 1, 1),
            "NaN": with_value(POSE, NAN),
            "infinite": with_value(POSE, INF),
        }
    )
    del bad_poses["None"]  # which leaves the head where it is
    add("brains.real_pair", bad_poses, "pose", lambda v: brains.real_pair(2, v))
    volume = Pair(VOLUME, VOLUME)
    add(
        "collate",
        {
            "none": [],
            "None": None,
            "tensors": [IMAGE],
            "other sizes": [PAIR, volume],
            "other spacing": [PAIR, PAIR._replace(spacing=(1.0, 1.0))],
            "other channels": [PAIR, PAIR._replace(moving=FIELD, fixed=FIELD)],
            "other moving": [PAIR, PAIR._replace(moving=IMAGE[..., :5])],
        },
        "pairs",
        collate,
    )
    add(
        "halve",
        {
            "None": None,
            "a tensor": IMAGE,
            "labels for images": Pair(LABELS, LABELS),
            "other moving": PAIR._replace(moving=IMAGE[..., :5]),
            "two voxels": Pair(IMAGE[..., :2], IMAGE[..., :2]),
        },
        "pair",
        halve,
    )
    add(
        "table",
        bad_fields(FIELD) | unlike(FIELD) | {"NaN": with_value(FIELD, NAN)},
        "displacements",
        lambda v: table({"mine": v}, PAIR),
    )
    add(
        "table",
        {"identity": {"identity": FIELD}, "a field": FIELD, "None": None},
        "displacements",
        lambda v: table(v, PAIR),
    )
    add("table", {"a field": FIELD, "None": None}, "pair", lambda v: table({"mine": FIELD}, v))
    add(
        "table",
        {"a list": [1, 2], "a word": "gray"},
        "structures",
        lambda v: table({"mine": FIELD}, PAIR, v),
    )
    add(
        "over_cases",
        {"a function": fixed_field, "None": None, "a field": {"mine": FIELD}, "words": {"a": "b"}},
        "methods",
        lambda v: over_cases(v, {"one": PAIR}),
    )
    add(
        "over_cases",
        {"a pair": PAIR, "a list": [PAIR], "none": {}, "None": None, "a field": {"one": FIELD}},
        "pairs",
        lambda v: over_cases({"mine": fixed_field}, v),
    )
    add(
        "over_cases",
        {"a list": [1, 2], "a word": "gray"},
        "structures",
        lambda v: over_cases({"mine": fixed_field}, {"one": PAIR}, v),
    )
    bad_scores = {
        "one case": [1.0],
        "no case": [],
        "a number": 1.0,
        "a matrix": [[1.0, 2.0, 3.0]],
        "NaN": [1.0, NAN, 2.0],
        "infinite": [1.0, INF, 2.0],
        "words": ["a", "b", "c"],
        "ragged": [[1.0], [2.0, 3.0]],
        "None": None,
    }
    scores = [1.0, 2.0, 3.0]
    add("paired_comparison", bad_scores, "first", lambda v: paired_comparison(v, scores))
    fewer = {"fewer": [1.0, 2.0]}
    add("paired_comparison", bad_scores | fewer, "second", lambda v: paired_comparison(scores, v))
    for argument, bad in (
        ("name", {"a number": 1, "None": None}),
        ("resamples", BAD_WHOLE | {"too few": 99}),
        ("seed", BAD_WHOLE),
    ):
        add(
            "paired_comparison",
            bad,
            argument,
            lambda v, argument=argument: paired_comparison(scores, scores, **{argument: v}),
        )
    add("warp_labels", BAD_LABELS, "labels", lambda v: warp_labels(v, FIELD))
    add("warp_labels", bad_fields(FIELD), "displacement", lambda v: warp_labels(LABELS, v))

    add("inverted", bad_images(IMAGE), "image", contrasts.inverted)
    add("remapped", bad_images(IMAGE), "image", contrasts.remapped)
    add("t2_like", BAD_LABELS, "labels", lambda v: contrasts.t2_like(v, seed=0))
    add(
        "t2_like",
        {"a fifth tissue": LABELS * 0 + 4},
        "labels",
        lambda v: contrasts.t2_like(v, seed=0),
    )
    add("t2_like", BAD_WHOLE, "seed", lambda v: contrasts.t2_like(TISSUES, seed=v))
    amounts = BAD_NUMBERS | {"negative": -1.0, "infinite": INF}
    add("t2_like", amounts, "blur", lambda v: contrasts.t2_like(TISSUES, seed=0, blur=v))
    add("t2_like", amounts, "noise", lambda v: contrasts.t2_like(TISSUES, seed=0, noise=v))

    # mind
    add("mind", bad_images(IMAGE), "image", mind)
    add("mind", BAD_WHOLE, "radius", lambda v: mind(IMAGE, v))
    add("mind_loss", bad_images(IMAGE), "fixed", lambda v: mind_loss(IMAGE, v))
    add("mind_loss", bad_images(IMAGE) | unlike(IMAGE), "warped", lambda v: mind_loss(v, IMAGE))
    add("mind_loss", BAD_WHOLE, "radius", lambda v: mind_loss(IMAGE, IMAGE, v))

    # plotting
    flat = {"a volume": VOLUME}
    pictures = bad_images(IMAGE, floating=False) | flat | {"complex": IMAGE.to(torch.complex64)}
    shown = {"a field": FIELD, "a list": [IMAGE], "None": None, "none": {}}
    flat_fields = bad_fields(FIELD) | {"of 3D": FIELD3}
    add("images", shown, "pictures", plotting.images)
    add("images", pictures, "pictures", lambda v: plotting.images({"a": IMAGE, "b": v}))
    limits = {"one": (0,), "equal": (1, 1), "NaN": (0, NAN), "words": ("a", "b"), "None": None}
    add("images", limits, "limits", lambda v: plotting.images({"a": IMAGE}, limits=v))
    words = {
        "one": ("i",),
        "three": ("i", "j", "k"),
        "numbers": (0, 1),
        "a text": "ij",
        "None": None,
    }
    add("images", words, "axes_labels", lambda v: plotting.images({"a": IMAGE}, axes_labels=v))
    add("comparison", shown, "warped", lambda v: plotting.comparison(v, IMAGE))
    add("sections", shown, "volumes", plotting.sections)
    solids = BAD_VOLUMES | {
        "2D": HEAD._replace(image=IMAGE[:1]),
        "complex": HEAD._replace(image=HEAD.image.to(torch.complex64)),
    }
    add("sections", solids, "volumes", lambda v: plotting.sections({"a": HEAD, "b": v}))
    places = BAD_MM | {"two points": np.zeros((2, 3)), "NaN": (0, 0, NAN), "infinite": (INF, 0, 0)}
    del places["None"]  # which is the middle
    add("sections", places, "point", lambda v: plotting.sections({"a": HEAD}, v))
    add("sections", limits, "limits", lambda v: plotting.sections({"a": HEAD}, limits=v))
    others = pictures | unlike(IMAGE)
    add("comparison", others, "warped", lambda v: plotting.comparison({"a": v}, IMAGE))
    add("comparison", pictures, "fixed", lambda v: plotting.comparison({"a": IMAGE}, v))
    add("overlay", others, "warped", lambda v: plotting.overlay(v, IMAGE))
    add("overlay", pictures, "fixed", lambda v: plotting.overlay(IMAGE, v))
    add("checkerboard", pictures, "a", lambda v: plotting.checkerboard(v, IMAGE))
    add("checkerboard", others, "b", lambda v: plotting.checkerboard(IMAGE, v))
    steps = BAD_WHOLE | {"zero": 0}
    add("checkerboard", steps, "tiles", lambda v: plotting.checkerboard(IMAGE, IMAGE, v))
    add("fields", shown, "displacements", plotting.fields)
    add("fields", flat_fields, "displacements", lambda v: plotting.fields({"a": v}))
    add("fields", steps, "step", lambda v: plotting.fields({"a": FIELD}, step=v))
    behind = {what: value for what, value in pictures.items() if what != "None"}
    add("fields", behind, "background", lambda v: plotting.fields({"a": FIELD}, background=v))
    add("arrows", flat_fields, "displacement", plotting.arrows)
    add("arrows", behind, "background", lambda v: plotting.arrows(FIELD, v))
    add("arrows", steps, "step", lambda v: plotting.arrows(FIELD, step=v))
    for draw in (plotting.draw_grid, plotting.draw_jacobian):
        no_axes = {"None": None, "a figure": Figure(), "a list": [1]}
        add(draw.__name__, no_axes, "ax", lambda v, draw=draw: draw(v, FIELD))
        add(draw.__name__, flat_fields, "displacement", lambda v, draw=draw: draw(axes(), v))
    add("draw_grid", steps, "step", lambda v: plotting.draw_grid(axes(), FIELD, v))
    labels = {"xlabel": "x", "ylabel": "y"}
    lines = {
        "a list": [1, 2],
        "None": None,
        "none": {},
        "numbers": {"a": [1, 2, 3]},
        "of two lengths": {"a": ([1, 2], [1, 2, 3])},
        "of two columns": {"a": (np.ones((3, 2)), np.ones((3, 2)))},
        "a column beside a row": {"a": (np.ones((3, 1)), np.ones(3))},
        "words": {"a": (["x"], ["y"])},
        "no points": {"a": ([], [])},
        "a number": {"a": 5},
    }
    add("curves", lines, "lines", lambda v: plotting.curves(v, **labels))
    good = {"a": ([0, 1], [2, 3])}
    for label in labels:
        wrong = {"None": None, "a number": 5}
        add("curves", wrong, label, lambda v, x=label: plotting.curves(good, **labels | {x: v}))
    add(
        "show",
        {"None": None, "axes": axes(), "a word": "a"},
        "figure",
        lambda v: plotting.show(v, "x"),
    )
    add(
        "show",
        {"None": None, "empty": " ", "a number": 5},
        "alt",
        lambda v: plotting.show(Figure(), v),
    )

    # training
    no_function = {"a word": "x", "a number": 2.5}
    add(
        "unsupervised",
        no_function | {"None": None},
        "similarity",
        lambda v: training.unsupervised(v),
    )
    add(
        "unsupervised", bad_weights, "weight", lambda v: training.unsupervised(losses.mse, weight=v)
    )
    add(
        "unsupervised",
        no_function | {"None": None, "of the same name": losses.mse},
        "regularizer",
        lambda v: training.unsupervised(losses.mse, regularizer=v),
    )
    add("cosine", BAD_NUMBERS | {"infinite": INF}, "share", training.cosine)
    bad_pairs = {
        "one pair": PAIR,
        "an iterator": iter([PAIR]),
        "None": None,
        "a number": 3,
        "none": [],
        "tuples": [tuple(PAIR)],
        "a NumPy image": [PAIR._replace(moving=IMAGE.numpy())],
        "labels for images": [PAIR._replace(fixed=LABELS)],
        "another size": [PAIR._replace(moving=IMAGE[..., 1:])],
        "NaN": [PAIR._replace(moving=with_value(IMAGE, NAN))],
        "infinite": [PAIR._replace(fixed=with_value(IMAGE, INF))],
        "black": [PAIR._replace(fixed=0 * IMAGE)],
        "constant": [PAIR._replace(moving=0 * IMAGE + 0.3)],
    }
    for_score = {"None": None, "a number": 2, "a word": "VoxelMorph", "no prediction": fixed_field}
    add("score", bad_pairs, "pairs", lambda v: training.score(StandIn(), v))
    add("score", for_score, "model", lambda v: training.score(v, [PAIR]))
    bad_losses = no_function | {
        "a tensor": lambda prediction, pair: prediction.displacement.mean(),
        "no parts": lambda prediction, pair: {},
        "numbers": lambda prediction, pair: {"a": 1.0},
        "maps": lambda prediction, pair: {"a": prediction.displacement},
    }
    add("score", bad_losses, "loss", lambda v: training.score(StandIn(), [PAIR], v))

    def train(**options):
        usual = {"model": StandIn(), "pairs": [PAIR], "loss": training.unsupervised(losses.mse)}
        return training.fit(**usual | {"steps": 1, "progress": False} | options)

    detached = {"detached": lambda p, pair: {"a": p.displacement.detach().mean()}}
    networks = for_score | {
        "without parameters": torch.nn.ReLU(),
        "frozen": StandIn().requires_grad_(False),
        "no prediction": torch.nn.Bilinear(10, 10, 10),
    }
    no_positive = BAD_WHOLE | {"zero": 0}
    for word, wrong in {
        "model": networks,
        "pairs": bad_pairs,
        "validation": {k: v for k, v in bad_pairs.items() if k != "None"},
        "loss": bad_losses | detached | {"None": None},
        "steps": BAD_WHOLE,
        "batch": no_positive,
        "every": no_positive,
        "seed": BAD_WHOLE,
        "learning_rate": BAD_NUMBERS | {"negative": -1e-3, "infinite": INF},
        "schedule": no_function,
        "watch": no_function,
        "device": {"unknown": "nowhere", "a list": [1], "not there": "cuda:99"},
        "checkpoint": {"a number": 3, "bytes": b"a.pt", "a folder": LIBRARY},
    }.items():
        add("fit", wrong, word, lambda v, word=word: train(**{word: v}))
    damaged = {"no checkpoint": LIBRARY / "py.typed", "an image": LIBRARY / "data" / "README.md"}
    add("fit", damaged, "checkpoint", lambda v: train(checkpoint=v))

    # models
    for layer in (unet.convolution, unet.block):
        name = layer.__name__
        for place, word in enumerate(("ndim", "channels", "out_channels", "stride")):
            usual = (2, 1, 1, 1)
            add(
                name,
                BAD_WHOLE | {"zero": 0},
                word,
                lambda v, f=layer, i=place, u=usual: f(*u[:i], v, *u[i + 1 :]),
            )
        add(name, {"one": 1, "four": 4, "a list": [2]}, "ndim", lambda v, f=layer: f(v, 1, 1))
    names = {"unknown": "voxelmorph5d", "None": None, "a number": 2, "a path": "../weights"}
    add("pretrained", names, "name", pretrained)
    add("recorded", names | {"a file": "task2d.json"}, "name", recorded)
    return found


class StandIn(torch.nn.Module):
    """The smallest network: it moves everything by the same amount."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(1, 2, 1, 1))

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> Prediction:
        return Prediction(self.shift.expand(len(moving), 2, *moving.shape[2:]))


def axes() -> object:
    return Figure().subplots()


def in_folder(use: Callable[[Path], object]) -> Callable[[], object]:
    """A call that gets a folder of its own, which is gone afterwards."""

    def call() -> object:
        with tempfile.TemporaryDirectory() as name:
            return use(Path(name))

    return call


def made(folder: Path) -> Path:
    (folder / "folder.nii").mkdir()
    return folder


def saved_field(folder: Path) -> Path:
    save_displacement(folder / "a.nii", ONE, np.eye(4))
    return folder / "a.nii"


ROWS = rows()


def objection(call: Callable[[], object], word: str) -> str:
    """What is wrong with how a bad call is refused; nothing if it is refused as it should be."""
    try:
        call()
    except (TypeError, ValueError, FileNotFoundError) as error:
        message, trace = str(error), error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = Path(trace.tb_frame.f_code.co_filename) if trace else Path()
        if not re.search(rf"\b{word}\b", message):
            return f"does not name {word!r}: {message}"
        if len(message) >= 400:
            return f"takes {len(message)} characters: {message}"
        if not where.is_relative_to(LIBRARY):
            return f"raised by {where}, not by us: {message}"
        return ""
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    return "accepted"


@pytest.mark.parametrize(
    ("call", "word"), [row[2:] for row in ROWS], ids=[f"{row[0]} {row[1]}" for row in ROWS]
)
def test_bad_input_is_refused_by_name(call, word):
    assert objection(call, word) == ""


def test_an_objection_is_made_to_every_poor_refusal():
    def refuse(error: Exception) -> Callable[[], object]:
        return lambda: (_ for _ in ()).throw(error)

    assert objection(lambda: None, "image") == "accepted"
    assert "does not name" in objection(lambda: spatial.warp(IMAGE[0], FIELD), "displacement")
    assert "not by us" in objection(refuse(ValueError("image: wrong")), "image")
    assert "takes 405" in objection(refuse(ValueError("image" + 400 * "!")), "image")
    assert objection(refuse(RuntimeError("image")), "image") == "raises RuntimeError: image"
    assert objection(lambda: spatial.warp(IMAGE[0], FIELD), "image") == ""


GOOD = {
    "identity_grid": lambda: spatial.identity_grid((3, 4)),
    "warp": lambda: spatial.warp(IMAGE, FIELD),
    "warp_points": lambda: spatial.warp_points(POINTS, FIELD),
    "compose": lambda: spatial.compose(FIELD, FIELD),
    "integrate": lambda: spatial.integrate(FIELD, 2),
    "invert": lambda: spatial.invert(FIELD, tolerance=1e-2, iterations=5),
    "resize_image": lambda: spatial.resize_image(IMAGE, (5, 6)),
    "resize_displacement": lambda: spatial.resize_displacement(FIELD, (5, 6)),
    "smooth": lambda: spatial.smooth(IMAGE, 1),
    "affine_displacement": lambda: spatial.affine_displacement(MATRIX, (5, 6)),
    "jacobian": lambda: spatial.jacobian(FIELD),
    "jacobian_determinant": lambda: spatial.jacobian_determinant(FIELD3),
    "mse": lambda: losses.mse(IMAGE, IMAGE),
    "ncc": lambda: losses.ncc(IMAGE, IMAGE),
    "lncc": lambda: losses.lncc(IMAGE, IMAGE, 9, mask=MASK),
    "mutual_information": lambda: losses.mutual_information(IMAGE, IMAGE, 2),
    "dice_loss": lambda: losses.dice_loss(IMAGE, IMAGE),
    "diffusion": lambda: losses.diffusion(FIELD),
    "bending_energy": lambda: losses.bending_energy(FIELD[:, :, :3, :3]),
    "dice": lambda: metrics.dice(LABELS, LABELS, [1, 2]),
    "endpoint_error": lambda: metrics.endpoint_error(FIELD, FIELD, (1.0, 2.0), MASK),
    "folding_fraction": lambda: metrics.folding_fraction(FIELD, MASK),
    "hausdorff95": lambda: metrics.hausdorff95(LABELS, LABELS, (1.0, 2.0), [1, 2]),
    "sdlogj": lambda: metrics.sdlogj(FIELD, MASK),
    "target_registration_error": lambda: metrics.target_registration_error(
        POINTS, POINTS, FIELD, (1.0, 2.0)
    ),
    "correlation": lambda: metrics.correlation(IMAGE, IMAGE),
    "pose_matrix": lambda: affine.pose_matrix(3, 1.1, (1, 2)),
    "pyramid": lambda: affine.pyramid(IMAGE, 2),
    "resize_matrix": lambda: affine.resize_matrix(MATRIX, (4, 5), (6, 7)),
    "register_affine": lambda: affine.register_affine(IMAGE, IMAGE, **FAST),
    "moments": lambda: affine.moments(VOLUME),
    "align_moments": lambda: affine.align_moments(IMAGE, IMAGE.flip(2), "similarity"),
    "demons_force": lambda: demons.demons_force(IMAGE, IMAGE.flip(2), gradient="both"),
    "demons": lambda: demons.demons(IMAGE, IMAGE, FIELD, factors=(1,), steps=1),
    "match_histogram": lambda: demons.match_histogram(IMAGE, IMAGE[..., :5], 3),
    "refine": lambda: refine(IMAGE, IMAGE, FIELD, **FAST),
    "landscape": lambda: landscapes.landscape(losses.mse, IMAGE, IMAGE, MATRIX),
    "translations": lambda: landscapes.translations([0.0, 1.5], 2, 3),
    "rotations": lambda: landscapes.rotations([0.0, 90.0], 3),
    "to_world": lambda: volumes.to_world([[1, 2, 3]], HEAD.affine),
    "to_voxel": lambda: volumes.to_voxel(np.zeros((2, 4, 3)), HEAD.affine),
    "orientation": lambda: volumes.orientation(HEAD.affine),
    "reorient": lambda: volumes.reorient(HEAD, "PIL"),
    "straighten": lambda: volumes.straighten(HEAD, "nearest"),
    "crop_or_pad": lambda: volumes.crop_or_pad(HEAD, (16, 9, 12), -1),
    "next_multiple": lambda: volumes.next_multiple((5, 6, 7), 4),
    "resample": lambda: volumes.resample(HEAD, (1, 2, 1)),
    "resample_like": lambda: volumes.resample_like(HEAD, HEAD),
    "normalize": lambda: volumes.normalize(IMAGE, 0.9),
    "load_nifti": lambda: load_nifti(LIBRARY / "data" / "mni152_tissues.nii.gz"),
    "save_nifti": in_folder(lambda f: save_nifti(f / "a.nii.gz", IMAGE[:1], np.eye(4))),
    "load_displacement": in_folder(lambda f: load_displacement(saved_field(f), SHEARED)),
    "save_displacement": in_folder(lambda f: save_displacement(f / "a.nii", ONE, np.eye(4))),
    "inverted": lambda: contrasts.inverted(IMAGE),
    "remapped": lambda: contrasts.remapped(VOLUME),
    "t2_like": lambda: contrasts.t2_like(TISSUES, seed=0, blur=0, noise=0),
    "mind": lambda: mind(VOLUME, 0),
    "mind_loss": lambda: mind_loss(IMAGE, IMAGE, 1),
    "brains.pair": lambda: brains.pair(0),
    "brains.real_pair": lambda: brains.real_pair(2, POSE),
    "brains.kind_of": lambda: brains.kind_of(3, "axial", 4),
    "Cohort": lambda: Cohort(range(3), plane="coronal"),
    "Recombined": lambda: Recombined([PAIR], 3)[2],
    "Folder": in_folder(lambda f: read_folder(f, {"spacing": (1, 2, 1), "window": (0, 3)})),
    "OASIS": in_folder(lambda f: read_oasis(f)),
    "split_of": lambda: split_of("OASIS_OAS1_0001_MR1"),
    "collate": lambda: collate([PAIR, PAIR]),
    "halve": lambda: halve(PAIR),
    "table": lambda: table({"mine": FIELD}, PAIR, {1: "one"}),
    "over_cases": lambda: over_cases({"mine": fixed_field}, {"one": PAIR}, {1: "one"}),
    "paired_comparison": lambda: paired_comparison([1, 2, 4], [1, 1, 2], name="a", seed=1),
    "warp_labels": lambda: warp_labels(LABELS, FIELD),
    "images": lambda: plotting.images({"a": IMAGE, "b": LABELS}, limits=(0, 4)),
    "comparison": lambda: plotting.comparison({"a": IMAGE}, IMAGE),
    "sections": lambda: plotting.sections({"a": HEAD}, (3, 4.5, 0), limits=(0, 2)),
    "overlay": lambda: plotting.overlay(IMAGE, IMAGE),
    "checkerboard": lambda: plotting.checkerboard(IMAGE, IMAGE, 4),
    "fields": lambda: plotting.fields({"a": FIELD}, step=4, background=IMAGE),
    "arrows": lambda: plotting.arrows(FIELD, IMAGE, step=4, title="u"),
    "draw_grid": lambda: plotting.draw_grid(axes(), FIELD, 4),
    "draw_jacobian": lambda: plotting.draw_jacobian(axes(), FIELD),
    "curves": lambda: plotting.curves({"a": ([0, 1], [2, 3])}, xlabel="x", ylabel="y"),
    "show": lambda: plotting.show(Figure(), "nothing yet"),
    "unsupervised": lambda: training.unsupervised(losses.mse, 0.01),
    "cosine": lambda: training.cosine(0.5),
    "score": lambda: training.score(StandIn(), [PAIR]),
    "convolution": lambda: unet.convolution(3, 1, 2, 2),
    "block": lambda: unet.block(2, 3, 4),
    "pretrained": lambda: pretrained("voxelmorph2d-brains"),
    "recorded": lambda: recorded("task2d"),
    "fit": lambda: training.fit(
        StandIn(), [PAIR], training.unsupervised(losses.mse), steps=1, progress=False
    ),
}


@pytest.mark.parametrize("call", GOOD.values(), ids=GOOD)
def test_the_good_call_beside_the_bad_ones_passes(call):
    call()


# Files of floors 1 to 4 without functions for people, and functions that only other files call.
NOT_FOR_PEOPLE = {"validation.py", "drawing.py"}
HELPERS = {"at_least_float32", "descend", "require_volume"}
HELPERS |= {"fetch", "missing_bytes", "extract", "require_space", "cache_folder"}  # of data sets
HELPERS |= {"correlation_map", "correlation_map_plain"}  # of lncc, which checks
# Yes or no, and a text: everything can be read as one.
TAKES_ANYTHING = {("lncc", "squared"), ("refine", "progress"), ("arrows", "title")}
TAKES_ANYTHING |= {("over_cases", "progress"), ("demons", "diffeomorphic"), ("fit", "progress")}


def is_for_people(thing: object) -> bool:
    """A function, or a data set, which is called like one."""
    return inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, Dataset))


def public_functions() -> dict[str, Callable]:
    """Every public function of floors 1 to 4, found in the files; those of brains with its name."""
    found: dict[str, Callable] = {}
    for module_name, file in test_floors.files_below(LIBRARY).items():
        if (test_floors.floor_of(file) or 9) > 4 or file in NOT_FOR_PEOPLE:
            continue
        module = import_module(module_name)
        for name, function in inspect.getmembers(module, is_for_people):
            if function.__module__ == module_name and not name.startswith("_"):
                key = f"brains.{name}" if file == "datasets/brains.py" else name
                assert key not in found, f"two functions are called {key}"
                found[key] = function
    return {key: function for key, function in found.items() if key not in HELPERS}


def test_the_table_knows_every_public_function():
    public = set(public_functions())
    assert public == set(GOOD), "a good call for each, and nothing that is gone"
    assert public == {row[0] for row in ROWS}, "bad calls for each, and nothing that is gone"
    assert {"warp", "lncc", "dice", "refine", "save_nifti", "brains.pair", "table"} <= public


@pytest.mark.parametrize("name", public_functions())
def test_each_argument_is_got_wrong(name):
    arguments = set(inspect.signature(public_functions()[name]).parameters)
    tried = {word for function, _, _, word in ROWS if function == name}
    untried = arguments - tried - {argument for f, argument in TAKES_ANYTHING if f == name}
    assert untried == set()
    assert tried <= arguments | {"displacements", "pictures"}, "a word that is no argument"


def report(objections: list[str]) -> str:
    """What is tried, function by function, and what became of it, as a table with its sum."""
    lines = [f"{'function':<26}{'arguments':>10}{'bad calls':>11}{'refused':>9}"]
    sums = [0, 0, 0]
    for name in GOOD:
        own = [k for k, row in enumerate(ROWS) if row[0] == name]
        counts = [len({ROWS[k][3] for k in own}), len(own), sum(not objections[k] for k in own)]
        lines.append(f"{name:<26}{counts[0]:>10}{counts[1]:>11}{counts[2]:>9}")
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
    files = sum(": file: " in row[1] for row in ROWS)
    lines.append(f"{f'{len(GOOD)} functions':<26}{sums[0]:>10}{sums[1]:>11}{sums[2]:>9}")
    return "\n".join([*lines, f"{files} of the bad calls are broken files."])


def test_the_count_is_of_what_is_tried():
    *_, last, files = report([""] * (len(ROWS) - 1) + ["accepted"]).splitlines()
    assert last.split()[0] == str(len(GOOD))
    assert last.split()[-2:] == [str(len(ROWS)), str(len(ROWS) - 1)]
    assert len(ROWS) >= 1200 and int(files.split()[0]) >= 50


def test_floors_one_and_two_do_not_look_at_values():
    # NaN passes through, so that they stay usable under autocast, torch.func and on every device.
    broken, field = with_value(IMAGE, NAN), with_value(FIELD, NAN)
    for value in (
        losses.mse(broken, IMAGE),
        losses.ncc(broken, IMAGE),
        losses.lncc(broken, IMAGE),
        losses.mutual_information(broken, IMAGE),
        losses.dice_loss(broken, IMAGE),
        losses.diffusion(field),
        losses.bending_energy(field),
        spatial.warp(broken, FIELD * 0).sum(),
        spatial.jacobian_determinant(field).sum(),
        spatial.smooth(broken, 1.0).sum(),
        spatial.invert(field).sum(),
    ):
        assert bool(value.isnan())


def test_refusals_say_what_was_expected_and_what_came():
    for call, parts in (
        (lambda: spatial.warp(IMAGE[0], FIELD), ["(B, C, *spatial)", "(1, 12, 10)"]),
        (lambda: spatial.warp(LABELS, FIELD), ["floating", "int64"]),
        (lambda: spatial.warp(IMAGE, FIELD[:, :1]), ["2 channels", "1"]),
        (lambda: spatial.warp(IMAGE, FIELD, mode="cubic"), ["'linear'", "'nearest'", "'cubic'"]),
        (lambda: losses.mse(IMAGE, IMAGE[:1]), ["(1, 1, 12, 10)", "(2, 1, 12, 10)"]),
        (lambda: losses.mse(IMAGE, IMAGE.to("meta")), ["cpu", "meta"]),
        (lambda: losses.lncc(IMAGE, IMAGE, 4), ["odd", "4", "(12, 10)"]),
        (lambda: losses.mutual_information(IMAGE, IMAGE, 1), ["bins", "2 or more", "1"]),
        (lambda: losses.dice_loss(LABELS, LABELS), ["floating", "int64"]),
        (lambda: losses.bending_energy(FIELD[..., :2]), ["at least 3", "(12, 2)"]),
        (lambda: metrics.dice(LABELS.float(), LABELS), ["integer", "float32"]),
        (lambda: metrics.correlation(with_value(IMAGE, NAN), IMAGE), ["finite", "1 NaN"]),
        (lambda: metrics.endpoint_error(FIELD, FIELD, (1.0,)), ["2 positive numbers", "(1.0,)"]),
        (lambda: spatial.identity_grid((5, 1)), ["at least 2", "(5, 1)"]),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        for part in parts:
            assert part in str(caught.value)


def test_the_requirements_give_back_what_they_promise():
    assert validation.require_tensor("x", IMAGE) is IMAGE
    assert validation.require_image("x", VOLUME) == (10, 11, 12)
    assert validation.require_displacement("x", FIELD) == (12, 10)
    assert validation.require_shape("x", [3, 4]) == (3, 4)
    assert validation.require_mask("x", MASK, "image", IMAGE) is MASK
    assert validation.require_spacing("x", None, 2) is None
    assert validation.require_spacing("x", (1, 2.5), 2).tolist() == [1, 2.5]
    assert validation.require_same("x", FIELD, "y", IMAGE, channels=False) is None
    assert validation.require_finite("x", LABELS) is None


def main() -> None:
    """Try everything, and say what was tried; exit with what was refused poorly."""
    logging.disable()  # nibabel comments on broken files, too
    objections = [objection(call, word) for _, _, call, word in ROWS]
    print(report(objections))
    poor = zip(ROWS, objections, strict=True)
    sys.exit("\n".join(f"{row[0]} {row[1]}: {why}" for row, why in poor if why))


if __name__ == "__main__":
    main()

"""Checks of exercise 00: where a center lies, and three settings to find by trying."""

from functools import lru_cache

from torch import Tensor

from course_lib.checks.core import Check, Goal, Mistake, finite_number
from course_lib.classical.affine import pose_matrix, register_affine
from course_lib.datasets import Pair, brains
from course_lib.losses import lncc
from course_lib.metrics import endpoint_error, folding_fraction
from course_lib.optimise import refine
from course_lib.spatial import affine_displacement, compose, warp

SLUG = "00_start_here"
SCALE, SHIFT = 1.12, (9.0, -7.0)

_DEFAULT_WEIGHT = 2.5
_STEP = 15  # degrees
_NEAR = 2.0  # voxels


# --- the center ----------------------------------------------------------------------------------


def _center() -> tuple[float, float]:
    return 116.5, 83.5


center_in_moving = Check(
    SLUG,
    "center_in_moving",
    _center,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (106.5, 107.5),
            "the shift was subtracted.\n"
            "The matrix goes from fixed to moving: t is added to the fixed image's center.",
        ),
        Mistake(
            lambda: (116.5, 107.5),
            "the row is right; along the columns the shift is −12, to the left.",
        ),
        Mistake(
            lambda: (99.5, 100.5),
            "the two parts of the shift are swapped.\n"
            "t = (5, −12): 5 voxels along axis 0 (down the rows i), −12 along axis 1 (columns j).",
        ),
        Mistake(
            lambda: (100.5, 99.5),
            "the two sizes are swapped.\n"
            "There are 224 rows and 192 columns: the center of the rows is 223/2.",
        ),
        Mistake(
            lambda: (117.0, 84.0),
            "the center is half a voxel off.\n"
            "Voxels are counted from 0: the center of n voxels is at (n − 1)/2, not at n/2.",
        ),
        Mistake(
            lambda: (116, 83),
            "the center is half a voxel off.\n"
            "It lies between two voxels here: (n − 1)/2 is no whole number, and // drops the half.",
        ),
        Mistake(
            lambda: (111.5, 95.5),
            "this is the center of the fixed image; the shift has still to be added.",
        ),
        Mistake(
            lambda: (5, -12),
            "this is only the shift; it is added to the center.",
        ),
        Mistake(
            lambda: (83.5, 116.5),
            "right numbers, in the order (column, row).\nReturn (row i, column j).",
        ),
    ],
    hints=[
        "A acts on x − c. What is x − c for the center itself?",
        "So neither the rotation nor the scaling matters: (n − 1)/2 for each axis, plus t.",
    ],
)


# --- three settings ------------------------------------------------------------------------------


def true_pose(degrees: float) -> Tensor:
    """``(1, 2, 3)``: the lesson's pose, turned by another angle."""
    return pose_matrix(degrees, SCALE, SHIFT)


@lru_cache(maxsize=1)
def _aligned_by_affine() -> tuple[Pair, Tensor]:
    """The lesson's pair, and the displacement of its affine registration."""
    pair = brains.real_pair(pose=true_pose(14))
    matrix = register_affine(pair.moving, pair.fixed)
    return pair, affine_displacement(matrix, pair.fixed.shape[2:])


@lru_cache(maxsize=8)
def _deformable(weight: float) -> Tensor:
    pair, affine = _aligned_by_affine()
    aligned = warp(pair.moving, affine)
    return compose(affine, refine(aligned, pair.fixed, smoothness=0, weight=weight))


def _brain(pair: Pair) -> Tensor:
    assert pair.fixed_labels is not None  # real_pair always has labels
    return pair.fixed_labels > 0


def _agreement(displacement: Tensor) -> float:
    """Mean squared local NCC, from 0 to 1."""
    pair, _ = _aligned_by_affine()
    return -float(lncc(warp(pair.moving, displacement), pair.fixed))


def _folding(weight: float) -> dict[str, float]:
    pair, _ = _aligned_by_affine()
    inside = folding_fraction(_deformable(float(weight)), _brain(pair))
    return {"folding (% of the brain)": 100 * float(inside)}


def _stiffness(weight: float) -> dict[str, float]:
    return {
        "local NCC": _agreement(_deformable(float(weight))),
        "the affine's": _agreement(_aligned_by_affine()[1]),
        "the default's": _agreement(_deformable(_DEFAULT_WEIGHT)),
    }


def _nearer_to_affine(measured: dict[str, float]) -> bool:
    ours, affine, default = measured.values()
    return abs(ours - affine) < abs(ours - default)


@lru_cache(maxsize=16)
def _distance_to_pose(degrees: int) -> float:
    """Voxels between where the affine ended and where it should, mean over the brain.

    The two heads differ in shape: even from the aligned position the best affine is not the
    identity. It should end at that one, moved along by the pose.
    """
    aligned, turned = brains.real_pair(), brains.real_pair(pose=true_pose(degrees))
    shape = aligned.fixed.shape[2:]
    own = affine_displacement(register_affine(aligned.moving, aligned.fixed), shape)
    should = compose(affine_displacement(true_pose(degrees), shape), own)
    found = affine_displacement(register_affine(turned.moving, turned.fixed), shape)
    return float(endpoint_error(found, should, mask=_brain(aligned)))


def _rotations(degrees: float) -> dict[str, float]:
    angle = int(degrees)
    return {
        f"distance at {angle}° (voxels)": _distance_to_pose(angle),
        f"distance at {angle + _STEP}°": _distance_to_pose(angle + _STEP),
    }


def _largest(measured: dict[str, float]) -> bool:
    here, further = measured.values()
    return here < _NEAR <= further


def _weight(setting: object) -> str | None:
    problem = finite_number(setting)
    if problem is None and not 0.1 <= setting <= 1000:  # type: ignore[operator]
        return f"expected a weight from 0.1 to 1000, got {setting}."
    return problem


def _angle(setting: object) -> str | None:
    problem = finite_number(setting)
    if problem is None and (setting % _STEP or not 0 <= setting <= 165):  # type: ignore[operator]
        return f"expected a multiple of 15 from 0 to 165, got {setting}."
    return problem


folding_weight = Goal(
    SLUG,
    "folding_weight",
    _folding,
    lambda measured: next(iter(measured.values())) > 0.5,
    "a field that folds in more than 0.5 % of the brain.",
    reference=lambda: 1.0,
    valid=_weight,
    hints=[
        "The default of 2.5 folds in about 0.01 %. Does a stiff field fold more, or a soft one?",
        "Halve the weight, and halve it again.",
    ],
)

stiff_weight = Goal(
    SLUG,
    "stiff_weight",
    _stiffness,
    _nearer_to_affine,
    "a local NCC that is nearer to the affine's than to the default's.",
    reference=lambda: 50.0,
    valid=_weight,
    hints=[
        "With an infinite weight the field could not bend at all, and nothing would be gained.",
        "Double the weight until the number is less than halfway between the two others.",
    ],
)

largest_rotation = Goal(
    SLUG,
    "largest_rotation",
    _rotations,
    _largest,
    "less than 2 voxels at your angle, and 2 or more at the next multiple of 15.",
    reference=lambda: 30,
    valid=_angle,
    hints=[
        "Each try shows two distances: at your angle and at the next. If both are small go up, if "
        "both are large go down.",
        "When it fails, it fails by dozens of voxels: the descent ends in another valley.",
    ],
)

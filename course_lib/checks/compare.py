"""Is a learner's result the expected one? Stage by stage, and in words if not.

The stages are in the order in which a person would look: does it return anything, the right
kind of thing, the right dtype, the right shape, finite numbers, the right numbers. Shapes are
compared before values, so that nothing passes by broadcasting.
"""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_lib.checks.messages import (
    SHOWN_IN_FULL,
    dtype_name,
    elements,
    kind,
    number,
    ordinal,
)

STAGES = ("nothing", "type", "dtype", "shape", "finite", "values")


class Problem(NamedTuple):
    """What is wrong with one result: the stage that found it, and sentences about it."""

    stage: str
    text: str


def tolerance(expected: Tensor, atol: float) -> float:
    """Largest difference that still counts as equal: ``atol``, scaled for values above 1.

    Scaled by the largest expected magnitude, not element by element: rounding in float32 goes
    with the largest number in a sum, also where the result is small.
    """
    finite = wide(expected)[wide(expected).isfinite()].abs()
    return atol * max(1.0, float(finite.max()) if finite.numel() else 1.0)


def wide(array: Tensor | np.ndarray) -> Tensor:
    """The array as a tensor in the widest precision there is."""
    # A copy in C order, because torch cannot take NumPy's negative strides (np.flip).
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array, order="C"))
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def snapshot(value: object) -> object:
    """A copy of a result, so that what happens later cannot change what is compared."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, (tuple, list)):
        items = [snapshot(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def recast(got: object, expected: object) -> object:
    """The result as the expected kind of array, dtype included, where no fraction is lost."""
    if isinstance(got, (tuple, list)) and isinstance(expected, (tuple, list)):
        alike = len(got) == len(expected)
        return tuple(map(recast, got, expected)) if alike else got
    arrays = (Tensor, np.ndarray)
    if not (isinstance(got, arrays) and isinstance(expected, arrays)):
        return got
    model = expected if isinstance(expected, Tensor) else torch.from_numpy(expected)
    if not (model.is_floating_point() or torch.equal(wide(got), wide(got).round())):
        return got
    tensor = wide(got).to(model.dtype)
    return tensor if isinstance(expected, Tensor) else tensor.numpy()


def plain(value: object) -> object:
    """0-d tensors, NumPy scalars and fractions as the Python numbers they stand for."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    other = isinstance(value, numbers.Real) and not isinstance(value, (int, float))
    return float(value) if other else value  # type: ignore[arg-type]


def same(one: object, other: object) -> bool:
    """Whether two arguments are identical, NaN included; used to see changes in place."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (bool, int, float, str)):
        return repr(one) == repr(other)  # == would find NaN different from itself
    return True  # functions, models: two fresh ones cannot be told apart, nor need they be


def compare(got: object, expected: object, atol: float) -> Problem | None:
    """The first problem with ``got``, or None when it agrees with ``expected``.

    Python numbers, NumPy scalars and 0-d tensors may stand for an expected Python number,
    lists for tuples. Everything else must have the expected type.
    """
    if expected is not None and got is None:
        return Problem("nothing", f"it returns nothing; expected {wanted(expected)}.")
    if isinstance(expected, (tuple, list)):
        return _compare_items(got, expected, atol)
    if isinstance(expected, (Tensor, np.ndarray)):
        return _compare_arrays(got, expected, atol)
    return _compare_plain(plain(got), plain(expected), atol)


def wanted(expected: object) -> str:
    """What is expected, without giving values away: ``a tensor, (1, 1, 4, 5) float32``."""
    if isinstance(expected, (Tensor, np.ndarray)):
        return f"{kind(expected)}, {tuple(expected.shape)} {dtype_name(expected)}"
    if isinstance(expected, (tuple, list)):
        return f"a tuple of {len(expected)}"
    return kind(plain(expected))


def _compare_items(
    got: object, expected: tuple[Any, ...] | list[Any], atol: float
) -> Problem | None:
    """Tuples and lists, item by item."""
    if not isinstance(got, (tuple, list)):
        return Problem("type", f"it returns {kind(got)}; expected {wanted(expected)}.")
    if len(got) != len(expected):
        items = "1 item" if len(got) == 1 else f"{len(got)} items"
        return Problem("shape", f"it returns {items}; expected {len(expected)}.")
    problems = [
        Problem(
            found.stage,
            f"the {ordinal(i)} item of the result: {found.text.replace('it returns', 'it is', 1)}",
        )
        for i, (one, other) in enumerate(zip(got, expected, strict=True))
        if (found := compare(one, other, atol))
    ]
    return min(problems, key=lambda problem: STAGES.index(problem.stage), default=None)


def _compare_plain(got: object, expected: object, atol: float) -> Problem | None:
    """Python values: numbers within the tolerance, anything else exactly."""
    if kind(got) != kind(expected):
        clue = ""
        if isinstance(got, Tensor):
            clue = f"\nIts shape is {tuple(got.shape)}: reduce it to one number."
        return Problem("type", f"it returns {kind(got)}; expected {kind(expected)}.{clue}")
    if isinstance(got, (int, float)) and isinstance(expected, (int, float)):
        if isinstance(expected, bool):
            equal = got == expected
        else:
            ours, theirs = torch.tensor(float(expected)).double(), torch.tensor(float(got)).double()
            return _finite_problem(theirs, ours) or _value_problem(theirs, ours, atol)
    else:
        equal = got == expected
    text = f"expected {number(expected)}, got {number(got)}."
    return None if equal else Problem("values", text)


def _compare_arrays(got: object, expected: Tensor | np.ndarray, atol: float) -> Problem | None:
    """Tensors and NumPy arrays, in the order of the stages."""
    tensor = isinstance(expected, Tensor)
    if not isinstance(got, Tensor if tensor else np.ndarray):
        text = f"it returns {kind(got)}; expected {wanted(expected)}.{_type_clue(got, expected)}"
        return Problem("type", text)
    if tensor and got.device != expected.device:
        return Problem("type", f"its result is on {got.device}; expected {expected.device}.")
    if got.dtype != expected.dtype:
        return Problem(
            "dtype",
            f"the dtype is {dtype_name(got)}; expected {dtype_name(expected)}.\n"
            f"{_dtype_clue(dtype_name(got), dtype_name(expected))}",
        )
    if tuple(got.shape) != tuple(expected.shape):
        text = f"the shape is {tuple(got.shape)}; expected {tuple(expected.shape)}."
        return Problem("shape", text + _shape_clue(tuple(got.shape), tuple(expected.shape)))
    theirs, ours = wide(got), wide(expected)
    return _finite_problem(theirs, ours) or _value_problem(theirs, ours, atol)


def _dtype_clue(got: str, expected: str) -> str:
    """Where a dtype that was not asked for usually comes from."""
    if "float" not in expected:
        if "float" in got:
            return (
                "Whole numbers are asked for. If these are whole: .long() of a tensor at the end,\n"
                ".astype(int) of an array. If not, it is not these numbers that are asked for."
            )
        return f"Convert it at the end, to {expected}."
    if got == "float64":
        return "NumPy counts in float64, and .double() makes it: convert back at the end, .float()."
    if "float" in got:
        return "Convert it at the end, to the dtype of the inputs."
    return (
        "Likely cause: what was made inside the function has whole numbers or True and False in\n"
        "it (arange, a comparison, a sum of these): an input's dtype, or .float(), there."
    )


def _type_clue(got: object, expected: Tensor | np.ndarray) -> str:
    """What usually turns the expected array into what came."""
    if isinstance(expected, Tensor) and isinstance(got, (float, int, np.generic)):
        return "\nLikely cause: .item() or float(), which also cut the gradient."
    if isinstance(expected, Tensor) and isinstance(got, np.ndarray):
        return "\nLikely cause: .numpy() or a NumPy function. torch.from_numpy leads back."
    if isinstance(got, list):
        return "\nReturn one array instead."
    if isinstance(got, tuple):
        return "\nReturn one array: stack joins several; a comma after `return x` makes a tuple."
    return ""


def _shape_clue(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What usually turns the expected shape into the one that came."""
    if sorted(got) == sorted(expected):
        return "\nThe same sizes in another order: look at the order of the axes."
    if len(got) > len(expected) >= 3:
        return (
            "\nToo many axes: stack makes a new one where cat makes none; a slice like 1: keeps\n"
            "its axis; x[:, :, i, j] with i, j of shape (B, …) pairs every item with every index."
        )
    if [n for n in got if n != 1] == [n for n in expected if n != 1]:
        return (
            "\nOnly axes of size 1 differ here. keepdim=True and unsqueeze put them in, squeeze\n"
            "takes them out; a mean or sum over too much drops axes of whatever size."
        )
    missing = len(expected) - len(got)
    if missing > 0:
        are = "1 axis is" if missing == 1 else f"{missing} axes are"
        return f"\n{are} missing: was a sum or mean taken over too much, or cat used for stack?"
    return ""


def _finite_problem(got: Tensor, expected: Tensor) -> Problem | None:
    """Values that are not finite although finite ones are expected."""
    bad = ~got.isfinite() & expected.isfinite()
    if not bad.any():
        return None
    index = tuple(int(i) for i in bad.nonzero()[0])
    name = "not a number (NaN)" if got[index].isnan() else "infinite"
    if bad.numel() == 1:
        what = f"the value is {name}."
    elif int(bad.sum()) == 1:
        what = f"1 of {bad.numel()} values is not finite: the one at index {index} is {name}."
    else:
        what = (
            f"{int(bad.sum())} of {bad.numel()} values are not finite; "
            f"the first of them, at index {index}, is {name}."
        )
    return Problem(
        "finite",
        f"{what}\n"
        "Likely cause: a division by zero (as in the mean of nothing), the logarithm of 0, or the\n"
        "root or logarithm of a number below zero.",
    )


def differences(got: Tensor, expected: Tensor) -> Tensor:
    """Absolute differences; 0 where both are the same NaN or infinity, infinite where one is."""
    difference = (got - expected).abs()
    equal = torch.isclose(got, expected, rtol=0, atol=0, equal_nan=True)
    return torch.where(equal, 0.0, difference).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _value_problem(got: Tensor, expected: Tensor, atol: float) -> Problem | None:
    """Values that differ: all of a few, the largest difference of many."""
    limit = tolerance(expected, atol)
    difference = differences(got, expected)
    wrong = difference > limit
    if not wrong.any():
        return None
    clue = _value_clue(got, expected, limit)
    if got.ndim == 0:
        return Problem(
            "values", f"expected {number(expected.item())}, got {number(got.item())}.{clue}"
        )
    head = f"{int(wrong.sum())} of {wrong.numel()} values differ.\n"
    if got.numel() <= SHOWN_IN_FULL:
        return Problem("values", f"{head}Expected {elements(expected)}, got {elements(got)}.{clue}")
    index = tuple(int(i) for i in (difference == difference.max()).nonzero()[0])
    return Problem(
        "values",
        f"{head}The largest difference is at index {index}: expected "
        f"{number(expected[index].item())}, got {number(got[index].item())}.{clue}",
    )


def _value_clue(got: Tensor, expected: Tensor, limit: float) -> str:
    """A regularity that holds for every element: a fact about the result, not a guess."""
    if not (got.isfinite().all() and expected.isfinite().all()) or got.is_complex():
        return ""
    if bool(((got + expected).abs() <= limit).all()):
        return "\nYours has the opposite sign, everywhere."
    if got.numel() < 4:
        return ""  # one number is always a multiple of another, and two nearly as often
    factor = float((got * expected).sum() / (expected * expected).sum().clamp_min(1e-30))
    # Only what explains the failure by itself: a factor of 1.0001 would fit any small error.
    explains = abs(factor - 1) * float(expected.abs().max()) > 10 * limit
    if abs(factor) > 1e-3 and explains and bool(((got - factor * expected).abs() <= limit).all()):
        return f"\nYours is {number(factor)} times what is expected, everywhere."
    offset = float((got - expected).mean())
    if abs(offset) > 10 * limit and bool((got - expected - offset).abs().max() <= limit):
        much = "large" if offset > 0 else "small"
        return f"\nYours is too {much} by {number(abs(offset))}, everywhere."
    return ""

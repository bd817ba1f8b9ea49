"""Each error that is explained, really raised: new words of torch or NumPy show here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_lib.checks.core import Check
from course_lib.checks.explanations import EXPLANATIONS, explanation
from tests.check_suite import ask

IMAGES = torch.rand(2, 3, 4, 5)
VECTOR = torch.rand(3)
WHOLE = torch.arange(6)
ARRAY = np.zeros((2, 3))
ROWS, OTHER = torch.zeros(2, 3), torch.zeros(4, 3)
DOUBLE = torch.zeros(3, 2, dtype=torch.float64)


def leaf() -> Any:
    return torch.ones(3, requires_grad=True)


def run(text: str, **names: Any) -> Callable[[], None]:
    """A statement, which a lambda cannot hold."""
    return lambda: exec(text, dict(names))


def overwritten() -> None:
    y = leaf().exp()
    y += 1
    y.sum().backward()


def twice() -> None:
    loss = leaf().square().sum()
    loss.backward()
    loss.backward()


CASES: list[tuple[str, Callable[[], Any]]] = [
    ("here an axis of 4 meets one of 3, and neither is 1", lambda: IMAGES - IMAGES.mean((0, 2))),
    ("If it is one number for each image", lambda: IMAGES * torch.ones(2)),
    ("keepdims=True, in NumPy", lambda: ARRAY + np.zeros((2, 4))),
    ("[3, 3] does not stretch to [2, 5]", run("a[:2] = b", a=torch.zeros(4, 5), b=ROWS[[0, 0, 0]])),
    ("[3] does not stretch to [2, 4]", lambda: VECTOR.expand(2, 4)),
    ("(3,3) does not stretch to (2,5)", run("a[:2] = b", a=np.zeros((4, 5)), b=np.eye(3))),
    ("in place cannot change a shape", lambda: torch.zeros(3).add_(ROWS)),
    ("as many values as the old one", lambda: IMAGES.reshape(7)),
    ("as many values as the old one", lambda: IMAGES.view(-1, 7)),
    ("as many values as the old one", lambda: ARRAY.reshape(7)),
    ("a product of matrices A @ B", lambda: ROWS @ ROWS),
    ("a product of matrices A @ B", lambda: ROWS @ torch.zeros(2)),
    ("a product of matrices A @ B", lambda: torch.zeros(2) @ VECTOR),
    ("a product of matrices A @ B", lambda: torch.zeros(2, 2, 3) @ torch.zeros(2, 4, 3)),
    ("a product of matrices A @ B", lambda: ARRAY @ ARRAY),
    ("one letter", lambda: torch.einsum("ij,jk->ik", ROWS, OTHER)),
    ("one letter", lambda: torch.einsum("i,jk->ik", ROWS, OTHER)),
    ("one letter", lambda: np.einsum("ij,jk->ik", ARRAY, ARRAY)),
    ("batch and channels too", lambda: torch.gradient(IMAGES[:1])),
    ("batch and channels too", lambda: np.gradient(np.ones((1, 4)))),
    ("cat joins along one axis that is there", lambda: torch.cat([ROWS, ROWS.T])),
    (
        "The components come last",
        lambda: F.grid_sample(IMAGES, IMAGES[:, :2], align_corners=True),
    ),
    ("The kernel of conv2d has four axes", lambda: F.conv2d(IMAGES, torch.ones(3, 3))),
    ("The kernel of conv2d has four axes", lambda: F.conv2d(IMAGES, torch.ones(3, 3, 3))),
    ("conv2d takes images as", lambda: F.conv2d(IMAGES[0, 0], torch.ones(1, 1, 3, 3))),
    ("the kernel times groups is how", lambda: F.conv2d(IMAGES, torch.ones(1, 1, 3, 3))),
    ("multiple of groups", lambda: F.conv2d(IMAGES, torch.ones(1, 1, 3, 3), groups=3)),
    ("multiple of groups", lambda: F.conv2d(IMAGES, torch.ones(4, 1, 3, 3), groups=3)),
    ("often padding is missing", lambda: F.conv2d(IMAGES, torch.ones(1, 3, 7, 7))),
    ("Nothing leads back", lambda: VECTOR.sum().backward()),
    ("Nothing leads back", lambda: torch.autograd.grad(VECTOR.sum(), VECTOR)),
    ("start.detach().clone().requires_grad_()", lambda: torch.optim.Adam([leaf().clone()])),
    ("a list, also of a single tensor", lambda: torch.optim.Adam(leaf())),
    ("a list of tensors that ask", lambda: torch.optim.Adam([ARRAY])),  # type: ignore[list-item]
    ("NumPy cannot pass gradients on", lambda: leaf().numpy()),
    ("NumPy cannot pass gradients on", lambda: np.sin(leaf())),
    ("with torch.no_grad():", lambda: leaf().add_(1)),
    ("with torch.no_grad():", run("a[0] = 1", a=leaf())),
    ("A value that the gradient needs was overwritten", overwritten),
    ("compute the loss anew", twice),
    (
        "index_add does the same with one",
        lambda: torch.bincount(WHOLE[:3], weights=leaf()).sum().backward(),
    ),
    ("backward() starts from one number", lambda: leaf().exp().backward()),
    ("does not depend on that tensor", lambda: torch.autograd.grad(leaf().sum(), leaf())),
    ("These are whole numbers", lambda: WHOLE.mean()),
    ("These are whole numbers", lambda: (WHOLE > 1).mean(0)),
    ("These are whole numbers", lambda: WHOLE.std()),
    ("These are whole numbers", lambda: WHOLE.norm()),
    ("These are whole numbers", lambda: WHOLE.requires_grad_()),
    ("A power is **", lambda: IMAGES ^ 2),
    ("A power is **", lambda: ARRAY ^ 2),
    ("A power is **", run("a ^ 2", a=1.5)),
    ("The dtypes do not fit", lambda: ROWS @ DOUBLE),
    ("The dtypes do not fit", lambda: VECTOR @ DOUBLE[:, 0]),
    ("The dtypes do not fit", lambda: torch.einsum("ij,jk->ik", ROWS, DOUBLE)),
    ("The dtypes do not fit", lambda: F.conv2d(IMAGES, torch.ones(1, 3, 3, 3).double())),
    ("The dtypes do not fit", run("a[[0]] = b", a=torch.zeros(3), b=DOUBLE[0, :1])),
    (
        "The dtypes do not fit",
        lambda: torch.zeros(3).scatter_(0, WHOLE[:1], DOUBLE[0]),
    ),
    ("one less than the size of that axis", lambda: VECTOR.index_add(0, WHOLE[3:], VECTOR)),
    ("Exactly one number belongs here", lambda: IMAGES.item()),
    ("Exactly one number belongs here", lambda: torch.zeros(0).item()),
    ("Exactly one number belongs here", lambda: math.sqrt(VECTOR)),
    ("Exactly one number belongs here", lambda: float(ARRAY)),  # type: ignore[arg-type]
    ("torch.stack joins them", lambda: torch.tensor([VECTOR, VECTOR])),
    ("one whole number here", lambda: range(VECTOR[0])),  # type: ignore[arg-type]
    ("one whole number here", lambda: [1, 2][WHOLE]),  # type: ignore[call-overload]
    ("one whole number here", lambda: VECTOR * [1, 2, 3]),  # type: ignore[operator]
    ("Numbers that index are whole", lambda: IMAGES[VECTOR]),
    ("Numbers that index are whole", lambda: ARRAY[np.array([0.5])]),
    ("Numbers that index are whole", lambda: torch.gather(VECTOR, 0, VECTOR)),
    ("Numbers that index are whole", lambda: ROWS.index_select(0, VECTOR)),
    ("Numbers that index are whole", lambda: IMAGES[0.5]),  # type: ignore[index]
    ("Numbers that index are whole", lambda: ARRAY[0.5]),  # type: ignore[index]
    ("on different devices", lambda: VECTOR + VECTOR.to("meta")),
    ("One True or False is needed", lambda: bool(VECTOR > 0)),
    ("One True or False is needed", lambda: max(ARRAY[0], ARRAY[1])),
    ("unpacked along its first axis", run("a, b, c = t", t=ROWS)),
    ("unpacked along its first axis", run("a, b = t", t=OTHER)),
    ("one number for each axis", run("a, b = t", t=IMAGES.shape)),
    ("This is one number, without axes", run("a, b = t", t=torch.tensor(1.0))),
    ("This is one number, without axes", lambda: torch.tensor(1.0)[0]),
    ("This is one number, without axes", lambda: np.float64(1)[0]),  # type: ignore[index]
    ("more indices than axes", lambda: IMAGES[0, 0, 0, 0, 0]),
    ("more indices than axes", lambda: ARRAY[0, 0, 0]),
    ("here n is 2", lambda: IMAGES[5]),
    ("here n is 3", lambda: IMAGES[:, torch.tensor([9])]),
    ("here n is 2", lambda: ARRAY[5]),
    ("There is no such axis", lambda: IMAGES.sum(5)),
    ("There is no such axis", lambda: ARRAY.sum(4)),
    ("round brackets are missing", lambda: IMAGES - IMAGES.mean),  # type: ignore[operator]
    ("round brackets are missing", lambda: IMAGES.sum.item()),  # type: ignore[attr-defined]
    ("round brackets are missing", lambda: leaf - 1),  # type: ignore[operator]
    ("round brackets are missing", lambda: leaf[0]),  # type: ignore[index]
    ("round brackets are missing", lambda: 2 * leaf),  # type: ignore[operator]
    ("This is a NumPy array", lambda: ARRAY.clone()),  # type: ignore[attr-defined]
    ("This is a NumPy array", lambda: ARRAY.view(-1, 1, 1, 1)),  # type: ignore[call-overload]
    ("NumPy says axis", lambda: ARRAY.sum(dim=0)),  # type: ignore[call-overload]
    ("NumPy says axis", lambda: ARRAY.sum(0, keepdim=True)),  # type: ignore[call-overload]
    ("A NumPy array meets a tensor", lambda: ARRAY * ROWS),
    (".clone() for copy", lambda: IMAGES.copy()),  # type: ignore[operator]
    (".to(dtype) stands for astype", lambda: IMAGES.astype(float)),  # type: ignore[operator]
    ("A tensor belongs here", lambda: torch.sqrt(ARRAY)),  # type: ignore[arg-type]
    ("A tensor belongs here", lambda: torch.sqrt(2.0)),  # type: ignore[arg-type]
    ("A tensor belongs here", lambda: torch.mean([1.0])),  # type: ignore[call-overload]
    ("take .values or .indices", lambda: IMAGES.max(dim=1) - 1),  # type: ignore[operator]
    ("This sort gives two", lambda: VECTOR.sort().float()),  # type: ignore[attr-defined]
    ("does no arithmetic", lambda: IMAGES.shape - 1),  # type: ignore[operator]
    ("does no arithmetic", lambda: (1, 2) * 0.5),  # type: ignore[operator]
    ("does no arithmetic", run("a - [1, 2]", a=VECTOR)),
    ("There is None", lambda: IMAGES + None),  # type: ignore[operator]
    ("There is None", run("a.sum()", a=None)),
    ("an element is x[0]", lambda: IMAGES(0)),  # type: ignore[operator]
    ("misspelled", run("a = troch.ones(3)")),
]


def raised(wrong: Callable[[], Any]) -> Exception:
    try:
        wrong()
    except Exception as error:
        return error
    raise AssertionError("it raises nothing")


@pytest.mark.parametrize(("words", "wrong"), CASES)
def test_errors_are_explained(words: str, wrong: Callable[[], Any]) -> None:
    error = raised(wrong)
    assert words in explanation(error), f"{type(error).__name__}: {error}"


def test_every_explanation_is_tried_and_short() -> None:
    """No pattern without an error of today that matches it, nor a line that is too long."""
    errors = [str(raised(wrong)) for _, wrong in CASES]
    for pattern, sentence in EXPLANATIONS:
        assert any(re.search(pattern, error) for error in errors), pattern
        assert all(len(line) <= 98 for line in sentence.splitlines()), sentence


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: np.ones(2, bool) - np.ones(2, bool),  # speaks of bitwise_xor: no power is meant
        lambda: np.zeros(0)[0],  # no index at all is in an empty array
        lambda: torch.linalg.inv(torch.zeros(2, 2)),
        lambda: 1 / 0,
        lambda: {}["a"],
    ],
)
def test_other_errors_are_not_explained(wrong: Callable[[], Any]) -> None:
    assert explanation(raised(wrong)) == ""


def test_the_explanation_stands_below_the_line() -> None:
    def without_its_axes(images: Any) -> Any:
        return images - images.mean((0, 2))

    check = Check("99_toys", "center", lambda images: images, [lambda: (IMAGES,)])
    lines = ask(check, without_its_axes)[0].splitlines()
    assert lines[0].startswith("✗ center: raised RuntimeError: The size of tensor a (4) must match")
    assert lines[1].endswith("`return images - images.mean((0, 2))`")
    assert lines[2].startswith("  Shapes are aligned from the right: here an axis of 4")
    assert lines[-1] == "  With images = (2, 3, 4, 5) float32"

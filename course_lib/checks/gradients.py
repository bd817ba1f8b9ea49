"""Gradients of a function of tensors, so that two functions can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable(arguments: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """The arguments with floating tensors in this dtype, as leaves that take a gradient."""
    return [
        value.detach().to(dtype).requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for value in arguments
    ]


def gradients(function: Callable[..., Any], arguments: Sequence[Any]) -> list[Tensor | None]:
    """The gradient for each argument; None where there is none to take, or none arrives.

    It is the gradient of a weighted sum of the results. The weights are random, so that errors
    in different places do not cancel, and fixed, so that two functions get the same ones.
    """
    result = function(*arguments)
    results = result if isinstance(result, (tuple, list)) else [result]
    chance = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    with torch.enable_grad():  # the function may have turned it off, for itself and for us
        for part in results:
            if isinstance(part, Tensor) and part.requires_grad:
                weights = torch.randn(part.shape, generator=chance, dtype=torch.float64)
                total = total + (part.double() * weights).sum()
    leaves = [i for i, value in enumerate(arguments) if getattr(value, "requires_grad", False)]
    found: list[Tensor | None] = [None] * len(arguments)
    if total.requires_grad and leaves:
        taken = torch.autograd.grad(total, [arguments[i] for i in leaves], allow_unused=True)
        for i, gradient in zip(leaves, taken, strict=True):
            found[i] = gradient
    return found

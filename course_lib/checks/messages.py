"""Words for values: what came, what was expected, and with which inputs."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

SHOWN_IN_FULL = 12
"""Arrays with more elements than this are described by shape and dtype only."""

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def dtype_name(array: Tensor | np.ndarray) -> str:
    """``float32``, whichever library the array comes from."""
    return str(array.dtype).removeprefix("torch.")


def number(value: object, digits: int = 6) -> str:
    """A number with six digits; anything else as Python writes it."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    return f"{value:.{digits}g}" if isinstance(value, (int, float, np.number)) else repr(value)


def ordinal(index: int) -> str:
    """``first`` for index 0: people count from one.

    >>> ordinal(1), ordinal(20)
    ('second', 'number 21')
    """
    return ORDINALS[index] if index < len(ORDINALS) else f"number {index + 1}"


def elements(array: Tensor | np.ndarray, digits: int = 6) -> str:
    """All elements in nested brackets: ``[[0, 0.5], [1, 2]]``."""

    def written(item: object) -> str:
        if isinstance(item, list):
            return "[" + ", ".join(written(part) for part in item) + "]"
        return number(item, digits)

    return written(array.tolist())


def kind(value: object) -> str:
    """What a value is, with its article: ``a tensor``, ``a number``, ``nothing``."""
    if value is None:
        return "nothing"
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, np.ndarray):
        return "a NumPy array"
    if isinstance(value, (bool, np.bool_)):
        return "True or False"
    if isinstance(value, (numbers.Real, np.number)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def describe(value: object) -> str:
    """One value in a few words; small arrays with their elements.

    >>> describe(np.zeros((1, 2, 4, 5))), describe(np.array([1.0, 2.0])), describe(3)
    ('(1, 2, 4, 5) float64', '[1, 2] (2,) float64', '3')
    """
    if isinstance(value, (Tensor, np.ndarray)):
        shape = f"{tuple(value.shape)} {dtype_name(value)}"
        few = 0 < int(np.prod(tuple(value.shape))) <= SHOWN_IN_FULL
        return f"{elements(value, digits=4)} {shape}" if few else shape
    if isinstance(value, (tuple, list)):
        inside = ", ".join(describe(item) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, (bool, np.bool_, int, float, np.number, str)):
        return number(value)
    if isinstance(value, numbers.Real):
        return str(value)  # a fraction, as 1/3
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return kind(value)


def parameter_names(function: Callable[..., object], count: int) -> list[str]:
    """Names of the first ``count`` parameters, for sentences about the inputs."""
    try:
        names = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):  # some built-in functions have no signature
        names = []
    return names[:count] + [f"argument {i + 1}" for i in range(len(names), count)]


def describe_inputs(names: Sequence[str], arguments: Sequence[object]) -> str:
    """``With image = (1, 1, 4, 5) float32, shift = 2``; empty without arguments."""
    if not arguments:
        return ""
    pairs = zip(names, arguments, strict=True)
    return "With " + ", ".join(f"{name} = {describe(value)}" for name, value in pairs)


def lay_out(mark: str, name: str, text: str, pointer: str = "") -> str:
    """A message: mark and name first, further lines indented, the next step at the end."""
    first, *others = text.strip().splitlines()
    lines = [f"{mark} {name}: {first}", *(f"  {line.strip()}" for line in others if line.strip())]
    return "\n".join(lines) + (f"   → {pointer}" if pointer else "")

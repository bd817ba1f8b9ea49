"""What a function's code tells without running it, for likelier guesses at a cause."""

from __future__ import annotations

import dis
from types import CodeType

from course_lib.checks.running import unwrapped


def returns_a_value(function: object) -> bool:
    """Whether there is a ``return`` with anything else than None written after it.

    False also where there is no code to read, as for objects that can be called.
    """
    code = getattr(unwrapped(function), "__code__", None)
    before = None
    for step in dis.get_instructions(code) if code else ():
        nothing = before is not None and before.opname == "LOAD_CONST" and before.argval is None
        if step.opname == "RETURN_VALUE" and not nothing:
            return True
        if step.opname == "RETURN_CONST" and step.argval is not None:  # Python 3.12 and 3.13
            return True
        before = step
    return False


def mentions(function: object, name: str) -> bool:
    """Whether a global, a method or an attribute of this name is used in the function."""
    code = getattr(unwrapped(function), "__code__", None)
    return code is not None and _mentions(code, name)


def _mentions(code: CodeType, name: str) -> bool:
    """The same for a piece of code, functions inside it included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return name in code.co_names or any(_mentions(one, name) for one in inner)

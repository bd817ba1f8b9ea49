"""The first line of every notebook: device, profile, seed."""

import os
import platform
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

import course_lib
from course_lib.validation import require_whole

Profile = Literal["quick", "full"]
T = TypeVar("T")


@dataclass(frozen=True)
class Course:
    """What :func:`setup` found and fixed.

    Attributes:
        device: a GPU where there is one, otherwise the CPU.
        profile: ``"quick"`` on a CPU, ``"full"`` on a GPU or with ``COURSE_PROFILE=full``.
        seed: what every random generator was seeded with.
        rng: a NumPy generator of that seed.
    """

    device: torch.device
    profile: Profile
    seed: int
    rng: np.random.Generator

    def steps(self, quick: T, full: T) -> T:
        """The first value in the quick profile, the second in the full one."""
        return quick if self.profile == "quick" else full


def setup(seed: int = 0) -> Course:
    """Seed everything and choose where to compute; calling it again seeds again.

    Args:
        seed: 0 and above.

    Returns:
        A :class:`Course`.

    Raises:
        ValueError: if ``seed`` is negative, or ``COURSE_PROFILE`` is neither quick nor full.

    Taught in lesson 00.
    """
    seed = require_whole("seed", seed, 0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    profile = _profile(device)
    torch.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)  # for libraries that draw from NumPy's global generator
    print(
        f"course_lib {course_lib.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}, on {_describe(device)}; profile: {profile}"
    )
    return Course(device, profile, seed, np.random.default_rng(seed))


def _profile(device: torch.device) -> Profile:
    match os.environ.get("COURSE_PROFILE", ""):
        case "":
            return "quick" if device.type == "cpu" else "full"
        case "quick":
            return "quick"
        case "full":
            return "full"
        case other:
            raise ValueError(f"COURSE_PROFILE: expected 'quick' or 'full', got {other!r}")


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"

"""The second process of the doctor, a script: steps that may fail in every way, even end Python.

It prints what came of each, a line of JSON, for ``trials``, which starts it with ``-P``, so that
this folder is not where Python looks for modules. It imports the standard library only, and the
rest inside the steps.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

END = "end"  # what is said at last: without it, the process died
# What is imported to see whether a package works: the part of it that holds compiled code.
IMPORTED = {
    "matplotlib": "matplotlib.figure",
    "pillow": "PIL.Image",
    "scikit-image": "skimage.filters",
    "scikit-learn": "sklearn.datasets",
    "scipy": "scipy.ndimage",
}
# What a step imports, and so cannot do without; most packages import numpy.
NEEDS = {
    "import matplotlib": {"numpy"},
    "import nibabel": {"numpy"},
    "import scipy": {"numpy"},
    "import scikit-image": {"numpy"},
    "import scikit-learn": {"numpy"},
    "import torch": {"numpy"},
    "threads": {"torch"},
    "device": {"torch", "numpy"},
    "warp": {"torch", "numpy"},
    "plot": {"torch", "numpy", "matplotlib", "nibabel", "pillow"},
    "widget": {"torch", "numpy", "matplotlib", "nibabel", "pillow", "ipywidgets"},
    "kernel": {"ipykernel"},
}


# Steps


def step_threads() -> int:
    """How many threads torch uses."""
    import torch

    return torch.get_num_threads()


def step_device() -> list[str]:
    """What ``setup()`` chooses."""
    import torch

    from course_lib.runtime import setup

    course = setup()
    gpu = course.device.type == "cuda"
    return [torch.cuda.get_device_name(course.device) if gpu else "the CPU", course.profile]


def step_warp() -> str:
    """Warp a random image and compare with what NumPy makes of the formula; then time a volume."""
    error = warp_error()
    if not error < 1e-4:
        raise ValueError(f"the course's warp is off from NumPy's by {error:.2g}")
    return f"agrees with NumPy; a volume of 96 x 112 x 96 voxels takes {warp_seconds():.2f} s"


def warp_error() -> float:
    """How far the course's warp is from the bilinear formula, for a random image and field."""
    import numpy as np
    import torch

    from course_lib.spatial import warp

    rng = np.random.default_rng(0)
    image = rng.random((40, 50))
    i, j = (grid + rng.uniform(-3, 3, (30, 40)) for grid in np.mgrid[4:34, 4:44])
    top, left = np.floor(i).astype(int), np.floor(j).astype(int)
    down, right = i - top, j - left  # how far each sample is from the voxel above and to the left
    expected = (
        image[top, left] * (1 - down) * (1 - right)
        + image[top + 1, left] * down * (1 - right)
        + image[top, left + 1] * (1 - down) * right
        + image[top + 1, left + 1] * down * right
    )
    arrays = image[None, None], (np.stack([i, j]) - np.mgrid[0:30, 0:40])[None]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moving, displacement = (torch.tensor(a, dtype=torch.float32, device=device) for a in arrays)
    return float(np.abs(warp(moving, displacement)[0, 0].cpu().numpy() - expected).max())


def warp_seconds() -> float:
    """How long the course's warp takes for a volume of a lesson's size."""
    import torch

    from course_lib.spatial import warp

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (96, 112, 96)
    volume = torch.rand(1, 1, *shape, device=device)
    displacement = 3 * torch.rand(1, 3, *shape, device=device)
    started = time.perf_counter()
    float(warp(volume, displacement).sum())
    return time.perf_counter() - started


def step_plot() -> str:
    """Draw a figure of the course's into memory."""
    import io

    import torch

    from course_lib import plotting

    file = io.BytesIO()
    plotting.images({"image": torch.rand(1, 1, 24, 30)}).savefig(file, format="png")
    if not file.getvalue().startswith(b"\x89PNG"):
        raise ValueError("Matplotlib did not draw a picture")
    return "Matplotlib draws"


def step_widget() -> str:
    """Move a slider and see whether the picture follows."""
    import torch

    from course_lib.widgets import deformation_explorer

    playground = deformation_explorer(torch.rand(1, 1, 48, 60))
    before = bytes(playground.picture.value)
    playground.sliders["amplitude"].value += 3
    after = bytes(playground.picture.value)
    if not after.startswith(b"\x89PNG") or before == after:
        raise ValueError("a slider was moved and its picture did not change")
    return "a slider moves, its picture follows"


def step_kernel() -> list[str]:
    """Start the kernel that notebooks ask for; return its Python and where that is laid down."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import start_new_kernel

    spec = KernelSpecManager().get_kernel_spec("python3")
    try:
        manager, client = start_new_kernel(startup_timeout=60, kernel_name="python3")
    except Exception as error:
        raise RuntimeError(f"{error} ({spec.argv[0]}, as {spec.resource_dir} says)") from None
    printed: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        printed.append(message["content"].get("text", ""))

    try:
        code = "import sys; print(sys.executable)"
        client.execute_interactive(code, output_hook=collect, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return ["".join(printed).strip(), spec.resource_dir]


STEPS: dict[str, Callable[[], Any]] = {
    "threads": step_threads,
    "device": step_device,
    "warp": step_warp,
    "plot": step_plot,
    "widget": step_widget,
    "kernel": step_kernel,
}


def module_of(package: str) -> str:
    """The module to import to see whether a package works."""
    return IMPORTED.get(package, package.replace("-", "_"))


def leans_on(step: str, failed: str) -> bool:
    """Whether a step cannot but fail like the import that did, perhaps after minutes."""
    return any(failed == f"import {package}" for package in NEEDS.get(step, ()))


# The process


def main(steps: list[str]) -> None:
    """Do each step and print what came of it; whatever the packages print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        course = course_folder()
        if not course:  # so that the other steps can be tried all the same
            sys.path.append(os.path.abspath(os.path.join(__file__, "..", "..", "..")))
        importlib.import_module("course_lib")  # before torch: see there
        for answer in answers(steps, course):
            print(json.dumps(answer), file=channel, flush=True)
        print(json.dumps([END, {}]), file=channel, flush=True)


def course_folder() -> str:
    """The folder of the library that notebooks of this Python import, or ``""``."""
    found = importlib.util.find_spec("course_lib")
    return os.path.dirname(found.origin) if found and found.origin else ""


def answers(steps: list[str], course: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What came of each step, a value or an error, without those that cannot but fail."""
    failed: list[str] = []
    for step in steps:
        if any(leans_on(step, other) for other in failed):
            continue
        try:
            answer = {"value": course if step == "course" else do_step(step)}
        except BaseException as error:  # SystemExit, too
            failed.append(step)
            answer = {"error": brief(f"{type(error).__name__}: {error}")}
        yield step, answer


def do_step(step: str) -> Any:
    """Do a step by its name."""
    if step.startswith("import "):
        return importlib.import_module(module_of(step[len("import ") :])).__name__
    return STEPS[step]()


def brief(error: str) -> str:
    """An error in one line, of a long one the beginning and the end, where its cause stands."""
    line = " ".join(error.split())
    return line if len(line) <= 300 else f"{line[:100]} [...] {line[-200:]}"


if __name__ == "__main__":
    main(sys.argv[1:])

"""setup(): seeds, profile, and one printed line."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import course_lib
from course_lib.runtime import setup


def test_calling_again_seeds_again() -> None:
    draws = []
    for _ in range(2):
        course = setup(seed=5)
        draws.append((torch.rand(3).tolist(), np.random.rand(), course.rng.random()))
    assert draws[0] == draws[1]
    setup(seed=6)
    assert torch.rand(3).tolist() != draws[0][0]


def test_profile_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    expected = "full" if torch.cuda.is_available() else "quick"
    assert setup().profile == expected
    for name, steps in (("quick", 10), ("full", 1000)):
        monkeypatch.setenv("COURSE_PROFILE", name)
        assert setup().profile == name and setup().steps(10, 1000) == steps
    monkeypatch.setenv("COURSE_PROFILE", "fast")
    with pytest.raises(ValueError, match=r"COURSE_PROFILE.*'fast'"):
        setup()


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ValueError, match="seed"):
        setup(seed)  # type: ignore[arg-type]


def test_setup_says_where_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    course = setup()
    (line,) = capsys.readouterr().out.splitlines()
    assert course_lib.__version__ in line and course.profile in line
    assert course.device.type in ("cpu", "cuda")


def test_the_package_imports_nothing_heavy_and_calms_the_threads() -> None:
    code = (
        "import course_lib, os, sys; assert 'torch' not in sys.modules; "
        "assert os.environ['GOMP_SPINCOUNT'] == '20000'; course_lib.setup; "
        "assert 'torch' in sys.modules"
    )
    environment = {"PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        course_lib.nonsense  # noqa: B018

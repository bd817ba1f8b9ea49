"""The doctor examines packages: what is missing, misfits or is broken, told once."""

import re
from importlib.metadata import PackageNotFoundError

import pytest

from course_lib.doctor import here
from course_lib.doctor import packages as examined
from course_lib.doctor.finding import Outcome
from course_lib.doctor.packages import Requirement
from tests.doctor_suite import kinds


def test_requirements_are_read_from_the_folder_and_from_pips_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from_folder = examined.requirements()
    assert Requirement("ipywidgets", ">=7.7,<9") in from_folder
    assert Requirement("jupyterlab", ">=4.2", "lab") in from_folder
    assert all(re.fullmatch(r"((>=|<)[\d.]+,?)+", wanted.ranges) for wanted in from_folder)
    assert not {"pytest", "nbgrader"} & {wanted.name for wanted in from_folder}
    monkeypatch.setattr(here, "has_source", lambda: False)
    by_name = {wanted.name: wanted for wanted in examined.requirements()}
    assert set(by_name) == {wanted.name for wanted in from_folder}
    assert examined.misfit("9", by_name["ipywidgets"].ranges) == "too new"
    assert by_name["jupyterlab"].extra == "lab" and by_name["torch"].extra == ""


@pytest.mark.parametrize(
    ("version", "ranges", "said"),
    [
        ("2.4", ">=2.4", ""),
        ("2.4.0+cu126", ">=2.4", ""),
        ("2.10.1", ">=2.4", ""),
        ("2.3.9", ">=2.4", "too old"),
        ("10", ">=9.1,<11", ""),
        ("9.0.0", "<9", "too new"),
        ("8.99", "<9", ""),
        ("1.0", ">1", "too old"),
        ("1.1", "<=1", "too new"),
        ("1.0", "==1", ""),
        ("2", "==1", "too new"),
        ("3.0.dev1", "", ""),
        ("what", ">=1", "too old"),
    ],
)
def test_versions_and_ranges(version: str, ranges: str, said: str) -> None:
    assert examined.misfit(version, ranges) == said


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is "installed", to be changed by a test."""
    versions = {"torch": "2.13.0", "numpy": "2.4.6", "scipy": "1.17.1", "ipykernel": "7.4.0"}
    wanted = [
        Requirement("torch", ">=2.4"),
        Requirement("numpy", ">=1.26"),
        Requirement("scipy", ">=1.11"),
        Requirement("ipykernel", ">=6.29", "lab"),
    ]
    monkeypatch.setattr(examined, "requirements", lambda: wanted)
    monkeypatch.setattr(examined, "installed_version", lambda name: versions.get(name, ""))
    monkeypatch.setattr(examined, "pinned_versions", dict)
    monkeypatch.setattr(here, "on_colab", lambda: False)
    return versions


def imported(**errors: str) -> dict[str, Outcome]:
    """All imports went well but those with an error."""
    names = ("torch", "numpy", "scipy", "ipykernel")
    return {f"import {name}": Outcome(name, errors.get(name, "")) for name in names}


def test_good_packages_are_listed_in_one_line(packages: dict[str, str]) -> None:
    (found,) = examined.check_packages(imported())
    assert found.kind == "ok"
    assert found.text == "torch 2.13.0, numpy 2.4.6, scipy 1.17.1, ipykernel 7.4.0"


def test_missing_packages_are_named_together(packages: dict[str, str]) -> None:
    for name in ("torch", "scipy", "ipykernel"):
        del packages[name]
    missing, lab, rest = examined.check_packages(imported())
    assert (missing.kind, missing.text) == ("problem", "Not installed: torch, scipy.")
    assert (lab.kind, lab.text) == ("note", "Not installed, for JupyterLab: ipykernel.")
    assert rest.text == "numpy 2.4.6" and missing.todo == here.install_command()


def test_colab_needs_no_jupyterlab(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "on_colab", lambda: True)
    del packages["ipykernel"], packages["scipy"]
    missing, _ = examined.check_packages(imported())
    assert missing.text == "Not installed: scipy."
    assert "Runtime > Restart session" in missing.todo


def test_a_version_out_of_range_is_a_problem_and_an_untested_one_a_note(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["numpy"] = "1.25.2"
    monkeypatch.setattr(examined, "pinned_versions", lambda: {"torch": "2.12.0", "scipy": "1.17.1"})
    old, _, untested = examined.check_packages(imported())
    assert old.kind == "problem" and "numpy 1.25.2 is too old: the course needs" in old.text
    assert untested.kind == "note" and untested.text.endswith("torch 2.13.0 (2.12.0)")


def test_a_broken_package_is_to_be_installed_again(packages: dict[str, str]) -> None:
    torch, good = examined.check_packages(imported(torch="it ends Python at once (SIGSEGV)"))
    assert torch.kind == "problem" and "ends Python at once (SIGSEGV)" in torch.text
    assert torch.todo.endswith("--force-reinstall --no-deps torch") or "make lab" in torch.todo
    assert "torch" not in good.text
    kernel, _ = examined.check_packages(imported(ipykernel="ImportError: no"))
    assert (kernel.kind, kernel.about) == ("note", "ipykernel")


def test_a_package_that_lacks_another_asks_for_all_of_them(packages: dict[str, str]) -> None:
    scipy, _ = examined.check_packages(imported(scipy="ModuleNotFoundError: No module named 'x'"))
    assert scipy.todo == here.install_command()


def test_what_fails_for_want_of_numpy_is_told_once(packages: dict[str, str]) -> None:
    outcomes = imported(numpy="ImportError: invalid ELF header")
    del outcomes["import scipy"]  # not tried, then
    found = list(examined.check_packages(outcomes))
    assert kinds(found) == [("problem", "numpy"), ("note", "packages"), ("ok", "packages")]
    lost = found[1]
    assert lost.text.endswith("imported either: scipy.")


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError: ",
        "OSError: [Errno 12] Cannot allocate memory: '/x'",
        "ImportError: x.so: failed to map segment from shared object",
        "ends (SIGKILL)",
    ],
)
def test_want_of_memory_is_not_blamed_on_packages(packages: dict[str, str], error: str) -> None:
    found = next(examined.check_packages(imported(torch=error, scipy=error)))
    assert (found.kind, found.about) == ("problem", "memory")
    assert "torch, scipy" in found.text and "pip" not in found.todo


def test_a_package_of_which_only_an_empty_folder_is_left_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", lambda name: None)
    assert examined.installed_version("torch") == ""
    monkeypatch.setattr("importlib.metadata.version", missing)
    assert examined.installed_version("torch") == ""

"""`make test` itself: it runs everything, times everything, and is red if anything is."""

import pytest

from authoring import test_all as runner

PASSES = ["timeit", "-n", "1", "-r", "1", "pass"]
FAILS = ["timeit", "-n", "1", "-r", "1", "import sys; sys.exit(3)"]


def test_all_parts_run_also_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.main([], {"first": FAILS, "second": PASSES}) == 1
    printed = capfd.readouterr().out.splitlines()
    assert [line.split()[::3] for line in printed[-3:-1]] == [
        ["first", "FAILED"],
        ["second", "passed"],
    ]
    assert printed[-1].startswith("in all")


def test_it_is_green_only_if_all_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.main([], {"first": PASSES, "second": PASSES}) == 0
    assert runner.main(["second"], {"first": FAILS, "second": PASSES}) == 0


def test_no_tests_found_is_no_success(
    tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = ["pytest", "-q", "-p", "no:cacheprovider", str(tmp_path_factory.mktemp("empty"))]
    assert runner.main([], {"pytest": empty}) == 1
    assert "FAILED (5)" in capfd.readouterr().out


def test_a_part_that_does_not_exist_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main(["nothing"])
    assert "there is no part 'nothing'" in capfd.readouterr().err


def test_the_parts_that_must_be_there() -> None:
    assert list(runner.PARTS) == ["ruff", "mypy", "build", "pytest", "nbval", "colab"]
    assert "--check" in runner.PARTS["build"]
    assert {"tests", "--doctest-modules", "course_lib"} <= set(runner.PARTS["pytest"])
    assert {"--nbval-lax", "notebooks", "solutions"} <= set(runner.PARTS["nbval"])

"""The build, on small trees made for the purpose: toy masters, a toy library, real kernels."""

from __future__ import annotations

import json
import os
import shutil
import stat
import textwrap
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from authoring import assembly, build, covers, execution
from authoring.layout import BuildError, Layout, write_atomically

Edit = Callable[[str], str]

FILES = {
    "pyproject.toml": """
        [project.urls]
        Repository = "https://example.invalid/course"
        """,
    "course_lib/__init__.py": '''
        """The toy library."""
        from importlib import import_module

        def __getattr__(name):
            if name == "setup":
                return import_module("course_lib.runtime").setup
            raise AttributeError(name)
        ''',
    "course_lib/runtime.py": '''
        """Loaded lazily."""
        from .numbers import ONE

        def setup():
            """Say hello."""
            return f"hello {ONE}"  # and nothing else
        ''',
    "course_lib/numbers.py": "ONE = 1\n",
    "course_lib/unused.py": "TWO = 2\n",
    "course_lib/datasets/__init__.py": "",
    "course_lib/datasets/brains.py": "LOADED = True\n",
    "course_lib/data/brain.bin": "voxels",
    "course_lib/data/README.md": "a notice",
    "course_lib/checks/__init__.py": "",
    "course_lib/checks/toy.py": '''
        """Checks as the real ones, as far as the build and nbgrader can tell."""

        class Verdict(Exception):
            def _render_traceback_(self):
                return [str(self)]

        class Check:
            def __init__(self, reference):
                self.reference, self.passed = reference, False

            def __call__(self, answer):
                try:
                    self.passed = answer(3) == self.reference(3)
                except NotImplementedError:
                    raise Verdict("○ not attempted yet")
                if not self.passed:
                    raise Verdict("✗ wrong")
                print("✓ right")

            def or_reference(self, answer):
                return answer if self.passed else self.reference

        double = Check(lambda x: 2 * x)
        square = Check(lambda x: x * x)
        ''',
    "authoring/lessons/11_toy.py": """
        # %% [markdown]
        # # A toy lesson
        #
        # Nothing to see.

        # %%
        import sys

        from course_lib import setup

        # %matplotlib inline
        print(setup())
        sys.stdout.flush()
        print("again")

        # %% tags=["play"]
        import ipywidgets

        ipywidgets.IntSlider()

        # %%
        1 + 1

        # %% tags=["cover"]
        from IPython.display import display
        import base64
        picture = {"image/png": base64.b64encode(b"voxels").decode(), "text/plain": "A toy"}
        display({"text/plain": "no picture"}, raw=True)
        display(picture, raw=True, metadata={"image/png": {"alt": "A [toy] brain"}})

        # %%
        assert 1 + 1 == 2
        """,
    "authoring/exercises/11_toy.py": '''
        # %% [markdown]
        # # A toy exercise

        # %%
        from course_lib.checks import toy as check

        # %%
        def double(x):
            """Twice `x`."""
            ### BEGIN SOLUTION
            return x + x
            ### END SOLUTION

        # %% points=2
        check.double(double)

        # %%
        double = check.double.or_reference(double)
        print(double(4))

        # %% [markdown]
        # Now the other one.

        # %%
        def square(x):
            """`x` times `x`."""
            ### BEGIN SOLUTION
            return x * x
            ### END SOLUTION

        # %% points=1.5
        check.square(square)
        ''',
}
LESSON, EXERCISE = "authoring/lessons/11_toy.py", "authoring/exercises/11_toy.py"
BUILT = [f"{folder}/11_toy.ipynb" for folder in build.FOLDERS]


def make_tree(root: Path) -> Path:
    """A course with one lesson that nobody has built yet."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), "utf-8")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of one's own, not built."""
    return make_tree(tmp_path / "course")


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built tree to read and to copy."""
    root = make_tree(tmp_path_factory.mktemp("built") / "course")
    assert build.main([], root) == 0
    return root


@pytest.fixture
def built(built_once: Path, tmp_path: Path) -> Path:
    """A built tree of one's own."""
    return Path(shutil.copytree(built_once, tmp_path / "course"))


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Executing only notes what was to be executed, and counts the cells."""
    ran: list[str] = []

    def pretend(target: assembly.Target, root: Path) -> NotebookNode:
        ran.append(target.path.relative_to(root).as_posix())
        node = deepcopy(target.node)
        if (index := covers.cover_index(node)) is not None:
            node.cells[index].outputs = [picture("dm94ZWxz", "A [toy] brain")]
        return execution.tidied(node, target)

    monkeypatch.setattr(build, "execute", pretend)
    return ran


def picture(png: str, alt: str) -> NotebookNode:
    """An output that is a picture, `png` being its content in base64."""
    data, metadata = {"image/png": png, "text/plain": "A toy"}, {"image/png": {"alt": alt}}
    return nbformat.v4.new_output("display_data", data=data, metadata=metadata)


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of `old`, which must be there."""
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder but bytecode."""
    files = (p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def notebook(root: Path, name: str) -> NotebookNode:
    """A built notebook."""
    return nbformat.read(root / name, as_version=4)


def line_of(path: Path, text: str) -> int:
    """The line on which a text first stands."""
    return path.read_text("utf-8")[: path.read_text("utf-8").index(text)].count("\n") + 1


# What comes out


def test_outputs_of_lesson_and_solution(built_once: Path) -> None:
    lesson = notebook(built_once, "notebooks/11_toy.ipynb")
    assert [cell.execution_count for cell in lesson.cells[1:]] == [1, 2, 3, 4, 5, 6]
    assert lesson.cells[2].outputs == [
        {"name": "stdout", "output_type": "stream", "text": "hello 1\nagain\n"}
    ]
    assert lesson.cells[4].outputs[0].execution_count == 4
    assert lesson.cells[3].metadata == {"tags": ["play"]}
    solution = notebook(built_once, "solutions/11_toy.ipynb")
    texts = [output.text for cell in solution.cells for output in cell.get("outputs", [])]
    assert texts == ["✓ right\n", "8\n", "✓ right\n"]
    assert "### BEGIN SOLUTION" in solution.cells[3].source


def test_nothing_random_is_stored(built_once: Path) -> None:
    for name in BUILT:
        text = (built_once / name).read_text("utf-8")
        assert "widget-view" not in text and "lines_to_next_cell" not in text
        node = nbformat.reads(text, as_version=4)
        assert node.metadata == assembly.NOTEBOOK_METADATA
        assert not any("execution" in cell.metadata for cell in node.cells)
        assert stat.S_IMODE((built_once / name).stat().st_mode) & 0o444 == 0o444


def test_blank_has_nbgrader_metadata_tags_and_no_outputs(built_once: Path) -> None:
    blank = notebook(built_once, "exercises/11_toy.ipynb")
    answer, check = blank.cells[3], blank.cells[4]
    assert "raise NotImplementedError()" in answer.source and "x + x" not in answer.source
    expected = {"grade_id": "double", "solution": True, "grade": False, "locked": False}
    assert expected.items() <= answer.metadata.nbgrader.items()
    expected = {"grade_id": "check_double", "solution": False, "grade": True, "locked": True}
    assert (
        expected | {"points": 2, "schema_version": 3}
    ).items() <= check.metadata.nbgrader.items()
    tagged = [
        cell.id for cell in blank.cells if "raises-exception" in cell.metadata.get("tags", [])
    ]
    assert tagged == ["check_double", "check_square"]
    assert not any(cell.get("outputs") for cell in blank.cells)
    for name in BUILT[:2]:
        assert "raises-exception" not in (built_once / name).read_text("utf-8")


def test_solution_texts(built_once: Path) -> None:
    texts = json.loads((built_once / "course_lib/checks/solutions.json").read_text("utf-8"))
    assert list(texts) == ["11_toy"] and sorted(texts["11_toy"]) == ["double", "square"]
    assert texts["11_toy"]["double"] == 'def double(x):\n    """Twice `x`."""\n    return x + x'


def test_task_points_in_the_order_of_the_exercise(built_once: Path) -> None:
    points = json.loads((built_once / "course_lib/checks/points.json").read_text("utf-8"))
    assert points == {"11_toy": [["double", 2], ["square", 1.5]]}


def test_building_twice_gives_the_same_bytes(built_once: Path, tmp_path: Path) -> None:
    again = make_tree(tmp_path / "elsewhere")
    assert build.main([], again) == 0
    assert snapshot(again) == snapshot(built_once)


def test_ids_do_not_depend_on_the_cells_above(tree: Path) -> None:
    def ids() -> dict[str, str]:
        lesson, solution, _ = assembly.targets(Layout(tree), "11_toy")
        return {cell.source: cell.id for node in (lesson, solution) for cell in node.node.cells}

    before = ids()
    for master in (LESSON, EXERCISE):
        edit(tree / master, "# %%\n", "# %%\nimport math\n\n# %%\n")
    after = ids()
    assert before.items() <= after.items() and len(after) == len(before) + 1


def test_equal_cells_get_different_ids(tree: Path) -> None:
    path = tree / LESSON
    path.write_text(path.read_text("utf-8") + "\n# %%\n1 + 1\n", "utf-8")
    ids = [cell.id for cell in assembly.targets(Layout(tree), "11_toy")[0].node.cells]
    assert len(set(ids)) == len(ids) and f"{ids[4]}-2" == ids[7]


# Masters that are refused


def replaced(old: str, new: str) -> Edit:
    """An edit of a master's text."""

    def apply(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return apply


# (master, what breaks it, the text whose line is named, cell, words of the message)
BROKEN: dict[str, tuple[str, Edit, str, int, str]] = {
    "two covers": (
        LESSON,
        replaced('["play"]', '["cover"]'),
        "from IPython.display",
        5,
        "is tagged cover, but so is line 17: choose one",
    ),
    "cover of prose": (
        LESSON,
        replaced("# %% [markdown]", '# %% [markdown] tags=["cover"]'),
        "# # A toy",
        1,
        "only a code cell makes a picture",
    ),
    "cover in an exercise": (
        EXERCISE,
        replaced("# %%\ndouble = ", '# %% tags=["cover"]\ndouble = '),
        "double = check",
        5,
        "only a lesson has a picture under its title",
    ),
    "syntax error": (LESSON, replaced("1 + 1\n", "x = 1\ny = = 2\n"), "y = =", 4, "syntax error"),
    "syntax error after a magic": (
        EXERCISE,
        replaced("print(double(4))", "!ls\n%time 1\nx = (1\n"),
        "x = (1",
        5,
        "syntax error",
    ),
    "no function in the answer": (
        EXERCISE,
        replaced('def double(x):\n    """Twice `x`."""\n', "if True:\n"),
        "if True",
        3,
        "one top-level function, this one: none",
    ),
    "two functions in the answer": (
        EXERCISE,
        replaced("def double(x):", "def helper():\n    pass\n\ndef double(x):"),
        "def helper",
        3,
        "helper, double",
    ),
    "BEGIN without END": (
        EXERCISE,
        replaced("    ### END SOLUTION\n", ""),
        "### BEGIN SOLUTION",
        3,
        "without END",
    ),
    "END without BEGIN": (
        EXERCISE,
        replaced("    ### BEGIN SOLUTION\n", ""),
        "### END SOLUTION",
        3,
        "without BEGIN",
    ),
    "BEGIN twice": (
        EXERCISE,
        replaced("    return x + x\n", "    y = x + x\n    # BEGIN SOLUTION\n    return y\n"),
        "# BEGIN SOLUTION\n    return y",
        3,
        "again before END",
    ),
    "marker at top level": (
        EXERCISE,
        replaced("def double(x):", "### BEGIN SOLUTION\n### END SOLUTION\ndef double(x):"),
        "### BEGIN SOLUTION",
        3,
        "inside the function",
    ),
    "marker in prose": (
        EXERCISE,
        replaced("# Now the", "# ### BEGIN SOLUTION\n# Now the"),
        "# ### BEGIN",
        6,
        "outside a code cell",
    ),
    "task twice": (
        EXERCISE,
        replaced("def square(x)", "def double(x)"),
        'def double(x):\n    """`x` times',
        7,
        "double was there already, on line 8",
    ),
    "answer without a check": (
        EXERCISE,
        replaced("# %% points=1.5\ncheck.square(square)\n", ""),
        "def square",
        7,
        "no check cell for square",
    ),
    "check of an unknown task": (
        EXERCISE,
        replaced("check.double(double)", "check.twice(twice)"),
        "check.twice",
        4,
        "no cell above answers",
    ),
    "check above its answer": (
        EXERCISE,
        replaced("# %%\ndef double", "# %% points=1\ncheck.square(square)\n\n# %%\ndef double"),
        "check.square",
        3,
        "no cell above answers",
    ),
    "task checked twice": (
        EXERCISE,
        replaced("check.square(square)", "check.double(double)  # again"),
        "check.double(double)  # again",
        8,
        "a second time",
    ),
    "check of another function": (
        EXERCISE,
        replaced("check.double(double)", "check.double(square)"),
        "check.double(square)",
        4,
        "`check.name(name)`",
    ),
    "points and no check": (
        EXERCISE,
        replaced("check.double(double)", "double(1)"),
        "double(1)",
        4,
        "`check.name(name)`",
    ),
    "points missing": (
        EXERCISE,
        replaced("# %% points=2", "# %%"),
        "check.double(double)",
        4,
        "has no points",
    ),
    "points zero": (EXERCISE, replaced("points=2", "points=0"), "check.double(d", 4, "positive"),
    "points negative": (
        EXERCISE,
        replaced("points=2", "points=-1"),
        "check.double(d",
        4,
        "positive",
    ),
    "points in words": (
        EXERCISE,
        replaced("points=2", "points=two"),
        "check.double(d",
        4,
        "points=two",
    ),
    "points on the answer": (
        EXERCISE,
        replaced("# %%\ndef double", "# %% points=1\ndef double"),
        "def double",
        3,
        "belong on the check",
    ),
    "misspelt key": (EXERCISE, replaced("points=2", "point=2"), "check.double(d", 4, "`point`"),
    "nbgrader by hand": (
        EXERCISE,
        replaced("points=2", 'nbgrader={"grade": true}'),
        "check.double(d",
        4,
        "`nbgrader`",
    ),
    "tag of the build": (
        LESSON,
        replaced('["play"]', '["raises-exception"]'),
        "import ipywidgets",
        3,
        "raises-exception",
    ),
    "solution in a lesson": (
        LESSON,
        replaced("1 + 1\n", "### BEGIN SOLUTION\n1 + 1\n### END SOLUTION\n"),
        "### BEGIN",
        4,
        "in a lesson",
    ),
    "points in a lesson": (
        LESSON,
        replaced("# %%\n1", "# %% points=1\n1"),
        "1 + 1",
        4,
        "in a lesson",
    ),
    "empty cell": (LESSON, replaced("# %%\n1 + 1\n", "# %%\n"), "# %%\n\n", 4, "is empty"),
    "no title": (LESSON, replaced("# # A toy", "# A toy"), "# %% [m", 1, "with the title"),
    "code first": (LESSON, replaced("# %% [markdown]\n", "# %%\n"), "# %%", 1, "with the title"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_master(name: str, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    master, spoil, place, cell, words = BROKEN[name]
    path = tree / master
    path.write_text(spoil(path.read_text("utf-8")), "utf-8")
    before = snapshot(tree)
    assert build.main([], tree) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{master}:{line_of(path, place)}: cell {cell}: ")
    assert words in captured.err and len(captured.err.splitlines()) == 1
    assert captured.out == "" and snapshot(tree) == before
    assert build.main(["--check"], tree) == 1
    assert captured.err in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: "import os\n\n" + text, "every cell needs such a line"),
        (lambda text: text + "\n# %%\nx = '''\n# %%\n'''\n", "no string may hold one"),
        (lambda text: "", "was expected"),
    ],
)
def test_master_without_cells_in_order(
    spoil: Edit, words: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tree / LESSON
    path.write_text(spoil(path.read_text("utf-8")), "utf-8")
    assert build.main([], tree) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"{LESSON}:1: ") and words in message


def test_master_that_is_not_text(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / LESSON).write_bytes(b"\xff\xfe\x00")
    assert build.main([], tree) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("gone", "kind"), [(LESSON, "lesson"), (EXERCISE, "exercise")])
def test_master_without_its_twin(
    gone: str, kind: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / gone).unlink()
    assert build.main([], tree) == 1
    assert capsys.readouterr().err == f"{gone}:1: 11_toy has no {kind} master\n"


def test_master_with_another_name(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / LESSON).rename(tree / "authoring/lessons/toy.py")
    assert build.main(["toy"], tree) == 1
    assert "NN_slug.py" in capsys.readouterr().err


def test_every_broken_master_is_told(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("lessons", "exercises"):
        source = tree / "authoring" / folder
        (source / "12_more.py").write_bytes((source / "11_toy.py").read_bytes() + b"\n# %%\nx =\n")
    edit(tree / LESSON, "1 + 1\n", "1 +\n")
    assert build.main([], tree) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [LESSON, "authoring/lessons/12_more.py"]


# Choosing


@pytest.mark.parametrize("text", ["11", "toy", "11_toy"])
def test_names_of_a_slug(text: str, tree: Path) -> None:
    assert build.choose(Layout(tree), [text]) == ["11_toy"]


def test_unknown_slug(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["12_more"], tree) == 1
    assert capsys.readouterr().err == "no master is called 12_more; there are: 11_toy\n"


def test_options_that_exclude_each_other(tree: Path) -> None:
    with pytest.raises(SystemExit):
        build.main(["--check", "--force"], tree)


# What runs, and when


def test_unchanged_notebooks_are_left_alone(built: Path, no_kernel: list[str]) -> None:
    before = snapshot(built)
    assert build.main([], built) == 0
    assert no_kernel == [] and snapshot(built) == before
    assert build.main(["--force"], built) == 0
    assert no_kernel == ["notebooks/11_toy.ipynb", "solutions/11_toy.ipynb"]


def test_prose_changes_without_running(built: Path, no_kernel: list[str]) -> None:
    edit(built / LESSON, "Nothing to see", "Something to see")
    assert build.main(["--check"], built) == 1
    assert build.main([], built) == 0
    lesson = notebook(built, "notebooks/11_toy.ipynb")
    assert no_kernel == [] and "Something to see" in lesson.cells[0].source
    assert lesson.cells[2].outputs and build.main(["--check"], built) == 0


def test_code_changes_run_that_notebook_only(built: Path, no_kernel: list[str]) -> None:
    edit(built / LESSON, "1 + 1\n", "1 + 2\n")
    assert build.main([], built) == 0
    assert no_kernel == ["notebooks/11_toy.ipynb"]


def test_no_execute_keeps_outputs_of_unchanged_cells(
    built: Path, no_kernel: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(built / LESSON, "1 + 1\n", "1 + 2\n")
    assert build.main(["--no-execute"], built) == 0
    lesson = notebook(built, "notebooks/11_toy.ipynb")
    assert no_kernel == [] and lesson.cells[2].outputs and not lesson.cells[4].outputs
    capsys.readouterr()
    assert build.main(["--check"], built) == 1  # it does not pretend to be up to date
    assert "another version of authoring/lessons/11_toy.py" in capsys.readouterr().out
    assert build.main([], built) == 0
    assert no_kernel == ["notebooks/11_toy.ipynb"]


def test_equal_cells_keep_their_own_outputs(tree: Path) -> None:
    path = tree / LESSON
    path.write_text(path.read_text("utf-8") + "\n# %%\n1 + 1\n", "utf-8")
    target = assembly.targets(Layout(tree), "11_toy")[0]
    existing = execution.tidied(target.node, target)
    kept = execution.with_outputs_of(target.node, existing)
    assert kept == existing and kept.cells[7].execution_count == 7


def test_last_cell_gone(built: Path, no_kernel: list[str]) -> None:
    edit(built / LESSON, "\n# %%\nassert 1 + 1 == 2\n", "")
    assert build.main(["--check"], built) == 1
    assert build.main([], built) == 0 and build.main(["--check"], built) == 0
    assert no_kernel == ["notebooks/11_toy.ipynb"]


def test_record_gone(built: Path, no_kernel: list[str]) -> None:
    before = snapshot(built)
    (built / "authoring/built.json").unlink()
    assert build.main(["--check"], built) == 1
    assert build.main([], built) == 0
    assert len(no_kernel) == 2 and (built / "authoring/built.json").exists()
    assert snapshot(built)["authoring/built.json"] == before["authoring/built.json"]


def test_no_execute_from_nothing(tree: Path, no_kernel: list[str]) -> None:
    assert build.main(["--no-execute"], tree) == 0
    assert no_kernel == [] and all((tree / name).exists() for name in BUILT)
    assert build.main(["--check"], tree) == 1


def test_stale_runs_what_the_library_outdated(built: Path, no_kernel: list[str]) -> None:
    assert build.main(["--stale"], built) == 0
    assert no_kernel == []
    edit(built / "course_lib/checks/toy.py", "2 * x", "x + x")
    assert build.main([], built) == 0
    assert no_kernel == []
    assert build.main(["--stale"], built) == 0
    assert no_kernel == ["solutions/11_toy.ipynb"]
    assert build.main(["--stale"], built) == 0
    assert len(no_kernel) == 1


@pytest.mark.parametrize(
    ("code", "words", "place"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero", "1 / 0"),
        ("import sys\nprint('no', file=sys.stderr)", "printed to stderr: no", "import sys\nprint"),
        ("import warnings\nwarnings.warn('old')", "printed to stderr", "import warnings"),
        ("import os\nos._exit(1)", "DeadKernelError", "import os"),
    ],
)
def test_failing_cell_leaves_the_notebook_untouched(
    code: str, words: str, place: str, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(built / LESSON, "1 + 1\n", f"{code}\n")
    before = snapshot(built)
    assert build.main([], built) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{LESSON}:{line_of(built / LESSON, place)}: cell 4: ")
    assert words in error and snapshot(built) == before


def test_cell_that_takes_too_long(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution, "CELL_SECONDS", 2)
    edit(built / LESSON, "import sys\n", "import time; time.sleep(60)\nimport sys\n")
    before = snapshot(built)
    assert build.main([], built) == 1
    assert "cell 2: CellTimeoutError" in capsys.readouterr().err and snapshot(built) == before


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"after")
    assert snapshot(tmp_path) == {"file": b"before"}


# Checking


def test_check_of_a_built_tree(built_once: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(built_once)
    assert build.main(["--check"], built_once) == 0
    assert capsys.readouterr().out == "every notebook agrees with its master\n"
    assert snapshot(built_once) == before


def test_check_of_a_tree_that_is_not_built(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--check"], tree) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"{name}: not built yet" for name in BUILT] and len(lines) == 5


def set_source(node: NotebookNode) -> None:
    node.cells[3].source += "  "


def set_id(node: NotebookNode) -> None:
    node.cells[3].id = "mine"


def set_cell_metadata(node: NotebookNode) -> None:
    node.cells[3].metadata["scrolled"] = True


def set_metadata(node: NotebookNode) -> None:
    node.metadata["widgets"] = {}


def drop_cell(node: NotebookNode) -> None:
    del node.cells[2]


def add_error(node: NotebookNode) -> None:
    node.cells[2].outputs.append(
        nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])
    )


HAND_EDITS = [set_source, set_id, set_cell_metadata, set_metadata, drop_cell, add_error]


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("change", HAND_EDITS)
def test_check_sees_hand_edits(
    change: Callable[[NotebookNode], None],
    name: str,
    built: Path,
    no_kernel: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = snapshot(built)
    node = notebook(built, name)
    change(node)
    (built / name).write_text(nbformat.v4.writes(node), "utf-8")
    assert build.main(["--check"], built) == 1
    assert capsys.readouterr().out.startswith(f"{name}: ")
    assert build.main([], built) == 0 and build.main(["--check"], built) == 0
    if name.startswith("exercises") or change in (set_id, set_cell_metadata, set_metadata):
        assert no_kernel == [] and snapshot(built) == before
    else:
        assert no_kernel == [name]  # its outputs cannot be trusted any more


def test_check_sees_outputs_in_a_blank(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = built / "exercises/11_toy.ipynb"
    node = nbformat.read(path, as_version=4)
    node.cells[2].execution_count = 1
    path.write_text(nbformat.v4.writes(node), "utf-8")
    assert build.main(["--check"], built) == 1
    assert "cell 3 (execution_count) differs" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cells": [{}]}'])
def test_check_sees_a_file_that_is_no_notebook(
    text: str, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / BUILT[0]).write_text(text)
    assert build.main(["--check"], built) == 1
    assert capsys.readouterr().out == f"{BUILT[0]}: is no notebook\n"


def test_check_sees_stripped_outputs(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = build.without_outputs(notebook(built, BUILT[0]))
    (built / BUILT[0]).write_text(nbformat.v4.writes(node), "utf-8")
    assert build.main(["--check"], built) == 1
    assert "not executed from top to bottom" in capsys.readouterr().out


def test_check_sees_other_solution_texts(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(built / "course_lib/checks/solutions.json", "x + x", "2 * x")
    assert build.main(["--check"], built) == 1
    assert "solutions.json: differs" in capsys.readouterr().out


def test_check_sees_other_points(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(built / "course_lib/checks/points.json", "2", "3")
    assert build.main(["--check"], built) == 1
    assert "points.json: differs" in capsys.readouterr().out


def test_masters_that_go_are_forgotten(
    built: Path, no_kernel: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("lessons", "exercises"):
        path = built / "authoring" / folder / "11_toy.py"
        path.rename(path.with_name("12_toy.py"))
    build.main(["--check"], built)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "no master" in line] == [
        f"{name}: no master, delete it" for name in sorted(BUILT)
    ]
    for name in BUILT:
        (built / name).unlink()
    assert build.main([], built) == 0 and build.main(["--check"], built) == 0
    assert "11_toy" not in (built / "authoring/built.json").read_text("utf-8")
    assert "11_toy" not in (built / "course_lib/checks/solutions.json").read_text("utf-8")


def test_drift_of_the_library_is_listed_only(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(built / "course_lib/numbers.py", "1", "2")
    assert build.main(["--check"], built) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"outputs older than the library: {name}" for name in BUILT[:2]
    ]


# The picture under the title

COVER_CELL = 5  # of the built lesson, from 0
NOT_THE_COVER = "the picture under its title is not that of its cell tagged cover: build it again"


def test_cover_stands_under_the_title(built_once: Path) -> None:
    title = notebook(built_once, BUILT[0]).cells[0]
    line = r"![A \[toy\] brain](attachment:cover.png)"
    assert title.source == f"# A toy lesson\n\n{line}\n\nNothing to see."
    assert title.attachments == {"cover.png": {"image/png": "dm94ZWxz"}}
    assert title.id == assembly.targets(Layout(built_once), "11_toy")[0].node.cells[0].id
    for name in BUILT[1:]:
        assert "attachment" not in (built_once / name).read_text("utf-8")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# T", "# T\n\n![a](attachment:cover.png)"),
        ("# T\nrest", "# T\n\n![a](attachment:cover.png)\n\nrest"),
        ("# T\n\nrest\n\nend", "# T\n\n![a](attachment:cover.png)\n\nrest\n\nend"),
    ],
)
def test_place_of_the_cover(source: str, expected: str) -> None:
    cell = nbformat.v4.new_code_cell("", metadata={"tags": ["cover"]})
    cell.outputs = [picture("Zmlyc3Q=", "a"), picture("c2Vjb25k", "b")]
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source), cell])
    result = covers.with_cover(node)
    assert result.cells[0].source == expected and node.cells[0].source == source
    assert result.cells[0].attachments["cover.png"]["image/png"] == "Zmlyc3Q="


def test_lesson_without_a_cover(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tree / LESSON, ' tags=["cover"]', "")
    before = snapshot(tree)
    for options in ([], ["--check"]):
        assert build.main(options, tree) == 1
        said = "".join(capsys.readouterr())
        assert said.startswith(f'{LESSON}:1: no cover: write `# %% tags=["cover"]` above')
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("display(picture, raw=True,", "dict(", "is tagged cover but shows no picture"),
        ('metadata={"image/png": {"alt": "A [toy] brain"}}', "metadata={}", "alternative text"),
        ('b"voxels"', 'b"voxels" * 30_000', "180000 bytes of picture, but a cover has at most"),
    ],
)
def test_cover_that_will_not_do(
    old: str, new: str, words: str, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(built)
    edit(built / LESSON, old, new)
    path = built / LESSON
    assert build.main([], built) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{LESSON}:{line_of(path, 'from IPython')}: cell 5: ")
    assert words in error and snapshot(built)[BUILT[0]] == before[BUILT[0]]


def test_cover_is_kept_when_prose_changes(built: Path, no_kernel: list[str]) -> None:
    attached = notebook(built, BUILT[0]).cells[0].attachments
    edit(built / LESSON, "Nothing to see", "Something to see")
    for options in (["--no-execute"], []):
        assert build.main(options, built) == 0
        title = notebook(built, BUILT[0]).cells[0]
        assert title.attachments == attached and title.source.endswith("Something to see.")
    assert no_kernel == [] and build.main(["--check"], built) == 0


def test_another_cell_becomes_the_cover_without_running(built: Path, no_kernel: list[str]) -> None:
    node = notebook(built, BUILT[0])
    node.cells[4].outputs.append(picture("b3RoZXI=", "Another"))
    (built / BUILT[0]).write_text(nbformat.v4.writes(node) + "\n", "utf-8")
    edit(built / LESSON, '# %% tags=["cover"]', "# %%")
    edit(built / LESSON, "# %%\n1 + 1", '# %% tags=["cover"]\n1 + 1')
    assert build.main(["--check"], built) == 1
    assert build.main([], built) == 0 and build.main(["--check"], built) == 0
    title = notebook(built, BUILT[0]).cells[0]
    assert "![Another](" in title.source and "b3RoZXI=" in str(title.attachments)
    assert no_kernel == []


def without_attachment(node: NotebookNode) -> None:
    del node.cells[0]["attachments"]


def with_another_picture(node: NotebookNode) -> None:
    node.cells[0].attachments["cover.png"]["image/png"] = "b3RoZXI="


def with_a_newer_output(node: NotebookNode) -> None:
    node.cells[COVER_CELL].outputs[1].data["image/png"] = "b3RoZXI="


@pytest.mark.parametrize("change", [without_attachment, with_another_picture, with_a_newer_output])
def test_check_sees_a_cover_that_is_not_the_cell_s(
    change: Callable[[NotebookNode], None],
    built: Path,
    no_kernel: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = notebook(built, BUILT[0])
    change(node)
    (built / BUILT[0]).write_text(nbformat.v4.writes(node) + "\n", "utf-8")
    assert build.main(["--check"], built) == 1
    assert capsys.readouterr().out == f"{BUILT[0]}: {NOT_THE_COVER}\n"
    assert build.main([], built) == 0 and build.main(["--check"], built) == 0 and no_kernel == []


def test_check_sees_another_line_for_the_cover(
    built: Path, no_kernel: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(built / BUILT[0], "brain](attachment", "head](attachment")
    assert build.main(["--check"], built) == 1
    assert f"cell 1 (source) differs from {LESSON}" in capsys.readouterr().out
    assert build.main([], built) == 0 and build.main(["--check"], built) == 0 and no_kernel == []


def test_check_sees_an_output_without_the_cover(
    built: Path, no_kernel: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    node = notebook(built, BUILT[0])
    node.cells[COVER_CELL].outputs.clear()
    (built / BUILT[0]).write_text(nbformat.v4.writes(node) + "\n", "utf-8")
    assert build.main(["--check"], built) == 1
    assert "cell 6 is tagged cover but shows no picture" in capsys.readouterr().out
    assert build.main([], built) == 0 and no_kernel == [BUILT[0]]
    assert build.main(["--check"], built) == 0


# Digests


def drifted(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The folders whose notebook is older than the library."""
    assert build.main(["--check"], root) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.split(": ")[1].split("/")[0] for line in lines if "older" in line]


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("runtime.py", '"""Say hello."""', '"""Greet."""', []),
        ("runtime.py", "  # and nothing else", "", []),
        ("runtime.py", '"""Loaded lazily."""\n', "", []),
        ("runtime.py", 'f"hello {ONE}"', "(f'hello {ONE}')", []),
        ("unused.py", "2", "3", []),
        ("data/brain.bin", "voxels", "others", []),
        ("runtime.py", 'f"hello', 'f"good day', ["notebooks", "solutions"]),
        ("numbers.py", "1", "2", ["notebooks", "solutions"]),
        ("checks/toy.py", "✗ wrong", "✗ no", ["solutions"]),
    ],
)
def test_library_digest(
    name: str, old: str, new: str, expected: list[str], built: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    edit(built / "course_lib" / name, old, new)
    assert drifted(built, capsys) == expected


def test_data_count_where_they_are_read(
    tree: Path, no_kernel: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(tree / LESSON, "import sys\n", "import sys\nfrom course_lib.datasets import brains\n")
    assert build.main([], tree) == 0
    edit(tree / "course_lib/data/README.md", "a notice", "another")
    assert drifted(tree, capsys) == []
    edit(tree / "course_lib/data/brain.bin", "voxels", "others")
    assert drifted(tree, capsys) == ["notebooks"]


# The address


def set_address(root: Path, address: str) -> None:
    edit(root / "pyproject.toml", "https://example.invalid/course", address)


def test_badges(tree: Path) -> None:
    for target in assembly.targets(Layout(tree), "11_toy"):
        assert "colab" not in target.node.cells[0].source.lower()
    ids = [cell.id for cell in target.node.cells]
    set_address(tree, "https://github.com/someone/course.git")
    for target, name in zip(assembly.targets(Layout(tree), "11_toy"), BUILT, strict=True):
        link = f"https://colab.research.google.com/github/someone/course/blob/main/{name}"
        assert f"]({link})" in target.node.cells[0].source
    assert [cell.id for cell in target.node.cells[2:]] == ids[2:]


def test_another_address_does_not_run_anything(built: Path, no_kernel: list[str]) -> None:
    set_address(built, "https://github.com/someone/course")
    assert build.main(["--check"], built) == 1
    assert build.main([], built) == 0
    assert no_kernel == [] and build.main(["--check"], built) == 0


def test_address_missing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "pyproject.toml").write_text("[project]\n")
    assert build.main([], tree) == 1
    assert "[project.urls] Repository" in capsys.readouterr().err


def test_layout_names(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert layout.name(layout.notebook("notebooks", "11_toy")) == BUILT[0]
    with pytest.raises(BuildError):
        layout.repository()

"""A wheelhouse: made once, refused in plain words where it cannot serve, installed from alone.

pip is replaced by a few lines of Python; nothing is downloaded.
"""

import ast
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from authoring import environment, wheelhouse
from authoring.environment import Trouble

HERE = f"{environment.platform_name()} {environment.python_version()}"
TORCH = "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
NUMPY = "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl"
Pip = Callable[..., list[str]]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """What a wheelhouse needs to know of a course."""
    root = tmp_path / "course"
    root.mkdir()
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\n[project]\ndependencies = ["torch>=2.4"]\n'
        '[project.optional-dependencies]\nlab = ["jupyterlab>=4.2"]\ndev = ["pytest>=8"]\n'
    )
    (root / "constraints.txt").write_text("# The versions\nnumpy==2.4.6\ntorch==2.13.0\n")
    return root


def wheel(path: Path, content: str = "") -> int:
    """Write a zip archive and return its size."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", content)
    return path.stat().st_size


@pytest.fixture
def pip(tmp_path: Path) -> Pip:
    """Make a stand-in for pip that notes its calls, puts wheels there and writes the report."""

    def command(*wheels: str, printed: str = "", code: int = 0) -> list[str]:
        script = tmp_path / "pip_stub.py"
        script.write_text(
            "import json, pathlib, sys, zipfile\n"
            f"open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
            f"wheels = {wheels!r}\n"
            "def option(name): return sys.argv[sys.argv.index(name) + 1]\n"
            "if sys.argv[1] == 'download':\n"
            "    for name in wheels:\n"
            "        path = pathlib.Path(option('--dest'), name)\n"
            "        if not path.exists():\n"
            "            zipfile.ZipFile(path, 'w').writestr('metadata', '')\n"
            f"    print({printed!r}); sys.exit({code})\n"
            "report = {'install': [{'download_info': {'url': 'file:///w%20h/' +"
            " name.replace('+', '%2B')}} for name in wheels]}\n"
            "pathlib.Path(option('--report')).write_text(json.dumps(report))\n"
        )
        return [sys.executable, str(script)]

    return command


def calls(tmp_path: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == option]


# Making one


def test_what_make_lab_needs_is_downloaded_as_wheels_for_that_machine(
    course: Path, pip: Pip, tmp_path: Path
) -> None:
    folder = tmp_path / "wheel house"
    files = wheelhouse.make_wheelhouse(
        course, folder, "windows", "3.12", "https://x/cpu", pip(TORCH, NUMPY)
    )
    download, check = calls(tmp_path)
    for arguments in (download, check):
        assert {"setuptools>=77", "torch>=2.4", "jupyterlab>=4.2"} <= set(arguments)
        assert "pytest>=8" not in arguments
        assert values(arguments, "--constraint") == ["constraints.txt"]
        assert values(arguments, "--only-binary") == [":all:"]
        assert values(arguments, "--platform") == ["win_amd64"]
        assert values(arguments, "--python-version") == ["3.12"]
    assert download[0] == "download" and values(download, "--extra-index-url") == ["https://x/cpu"]
    # The second run installs nothing and sees nothing but the wheelhouse.
    assert check[0] == "install" and {"--dry-run", "--no-index", "--ignore-installed"} <= set(check)
    assert values(check, "--find-links") == [str(folder)]
    assert files == {name: (folder / name).stat().st_size for name in (TORCH, NUMPY)}
    assert environment.read_manifest(str(folder)) == {"windows 3.12": files}
    assert sorted(path.name for path in folder.glob("*.tmp")) == []


def test_one_wheelhouse_serves_several_machines_and_sheds_what_none_needs(
    course: Path, pip: Pip, tmp_path: Path
) -> None:
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    wheel(folder / "mine-1-py3-none-any.whl")
    old = "old-1-py3-none-any.whl"
    make = functools.partial(wheelhouse.make_wheelhouse, course, folder)
    make("linux", "3.11", pip=pip(TORCH, old))
    make("windows", "3.12", pip=pip(NUMPY))
    assert set(environment.read_manifest(str(folder))) == {"linux 3.11", "windows 3.12"}
    make("linux", "3.11", pip=pip(TORCH))
    names = {path.name for path in folder.glob("*.whl")}
    assert names == {TORCH, NUMPY, "mine-1-py3-none-any.whl"}  # a stranger's file stays


def test_a_failed_download_leaves_no_manifest_that_promises_too_much(
    course: Path, pip: Pip, tmp_path: Path
) -> None:
    folder = tmp_path / "wheelhouse"
    make = functools.partial(wheelhouse.make_wheelhouse, course, folder)
    make("linux", "3.11", pip=pip(TORCH))
    make("windows", "3.12", pip=pip(NUMPY))
    with pytest.raises(Trouble, match=r"network connection\? \(what pip said is in .*log\)"):
        make("linux", "3.11", pip=pip(printed="NewConnectionError", code=1))
    assert set(environment.read_manifest(str(folder))) == {"windows 3.12"}
    assert (folder / TORCH).exists()  # the next run goes on from there
    make("windows", "3.12", pip=pip(NUMPY))
    with pytest.raises(Trouble):
        make("windows", "3.12", pip=pip(code=1))
    with pytest.raises(Trouble, match="not a finished wheelhouse"):
        environment.read_manifest(str(folder))


def test_a_wheel_cut_short_is_downloaded_again(course: Path, pip: Pip, tmp_path: Path) -> None:
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    wheel(folder / TORCH, "x" * 1000)
    (folder / TORCH).write_bytes((folder / TORCH).read_bytes()[:500])
    files = wheelhouse.make_wheelhouse(course, folder, "linux", "3.11", pip=pip(TORCH))
    assert zipfile.is_zipfile(folder / TORCH) and files[TORCH] == (folder / TORCH).stat().st_size


@pytest.mark.parametrize("platform", wheelhouse.PLATFORMS)
def test_each_platform_asks_for_its_own_requirements(platform: str) -> None:
    """The real pip reads conditions as the other machine does; Python here is another one."""
    machine = wheelhouse.marker_environment(platform, "3.12")
    code = (
        "from pip._vendor.packaging.markers import Marker\n"
        "for text in ('os_name == \"nt\"', 'sys_platform == \"darwin\"',"
        " 'platform_machine == \"aarch64\"', 'python_version == \"3.12\"',"
        " 'extra == \"lab\"'): print(int(Marker(text).evaluate({'extra': ''})))"
    )
    patched = wheelhouse.PIP_FOR_ANOTHER_MACHINE.partition('sys.argv[0] = "pip"')[0] + code
    done = subprocess.run(
        [sys.executable, "-c", patched, json.dumps(machine)], capture_output=True, text=True
    )
    assert done.stderr == ""
    expected = [platform == "windows", platform == "macos", platform == "linux-arm", True, False]
    assert [line == "1" for line in done.stdout.split()] == expected


def test_a_pip_that_cannot_do_that_is_not_trusted() -> None:
    machine = {**wheelhouse.marker_environment("linux", "3.11"), "platform_version": "other"}
    command = [sys.executable, "-c", wheelhouse.PIP_FOR_ANOTHER_MACHINE, json.dumps(machine)]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot choose packages for another machine" in done.stderr


def test_the_real_pip_understands_the_options(tmp_path: Path, course: Path) -> None:
    """Nothing is there, so nothing is found; but neither is any option unknown."""
    machine = wheelhouse.marker_environment("linux", "3.12")
    command = [sys.executable, "-c", wheelhouse.PIP_FOR_ANOTHER_MACHINE, json.dumps(machine)]
    command += ["download", "--dest", str(tmp_path), "--no-index", "--find-links", str(tmp_path)]
    command += ["nothing-at-all", *wheelhouse.target_options("linux 3.12")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=course)
    assert "No matching distribution found for nothing-at-all" in done.stderr
    assert done.returncode == 1


def test_the_course_itself_asks_for_its_build_back_end() -> None:
    wanted = wheelhouse.requirements(environment.ROOT)
    assert any(line.startswith("setuptools") for line in wanted)
    assert any(line.startswith("torch") for line in wanted)
    assert any(line.startswith("jupyterlab") for line in wanted)


def test_cuda_is_named_with_its_price(tmp_path: Path) -> None:
    files = {"nvidia_cublas-1-py3-none-manylinux_2_27_x86_64.whl": 400_000_000, TORCH: 100_000_000}
    said = wheelhouse.summary(tmp_path, "linux 3.11", files, 60)
    assert "2 wheels (500 MB)" in said and "400 MB of it" in said and "TORCH_INDEX=" in said
    assert "TORCH_INDEX" not in wheelhouse.summary(tmp_path, "linux 3.11", {TORCH: 1}, 60)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--platform", "amiga"], "PLATFORM is one of linux, "),
        (["--python", "2.7"], "PY is one of"),
    ],
)
def test_unknown_machines_are_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        wheelhouse.main(arguments)
    assert str(stopped.value).startswith(told)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (Trouble("A sentence."), "A sentence."),
        (KeyboardInterrupt(), "run this again to go on"),
        (OSError(28, "No space left on device", "/x"), "the disk is full"),
    ],
)
def test_the_command_line_ends_in_a_sentence(
    raised: BaseException, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: object) -> None:
        raise raised

    monkeypatch.setattr(wheelhouse, "make_wheelhouse", make)
    with pytest.raises(SystemExit) as stopped:
        wheelhouse.main(["--platform", "linux", "--python", "3.11", str(tmp_path)])
    assert told in str(stopped.value) and "\n" not in str(stopped.value)


def test_an_old_python_is_told_so_here_too() -> None:
    path = environment.ROOT / "authoring" / "wheelhouse.py"
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    pretend = (
        "import runpy, sys; sys.version_info = (3, 8, 18);"
        "runpy.run_module('authoring.wheelhouse', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", pretend], capture_output=True, text=True, cwd=environment.ROOT
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("This course needs Python 3.11 or newer")


# Installing from one


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A finished wheelhouse for this machine."""
    folder = tmp_path / "usb stick" / "wheelhouse"
    folder.mkdir(parents=True)
    files = {name: wheel(folder / name) for name in (TORCH, NUMPY)}
    (folder / environment.MANIFEST).write_text(json.dumps({"targets": {HERE: files}}))
    return folder


def check(root: Path, wheels: Path) -> None:
    environment.check_wheels(root, str(wheels), environment.read_manifest(str(wheels)))


def rename_target(house: Path, *targets: str) -> None:
    path = house / environment.MANIFEST
    files = json.loads(path.read_text())["targets"][HERE]
    path.write_text(json.dumps({"targets": dict.fromkeys(targets, files)}))


def test_a_finished_wheelhouse_passes(course: Path, house: Path) -> None:
    check(course, house)


def test_the_installation_sees_the_wheelhouse_and_nothing_else(
    course: Path, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "http://example.invalid")
    monkeypatch.setattr(environment, "broken_reason", lambda root: "")
    (course / ".venv").mkdir()
    script = tmp_path / "stub.py"
    script.write_text(
        "import json, os, sys\n"
        f"open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps([sys.argv, dict(os.environ)]))"
    )
    environment.prepare(course, "lab", "https://x/cpu", [sys.executable, str(script)], str(house))
    arguments, variables = json.loads((tmp_path / "seen").read_text())
    assert "--no-index" in arguments and "--extra-index-url" not in arguments
    assert values(arguments, "--find-links") == [str(house)]
    assert values(arguments, "--editable") == [".[lab]"]
    assert values(arguments, "--constraint") == ["constraints.txt"]
    assert "PIP_INDEX_URL" not in variables and "HTTPS_PROXY" not in variables
    assert variables["PIP_CONFIG_FILE"] == os.devnull


def test_without_a_wheelhouse_pip_runs_as_ever() -> None:
    assert environment.pip_environment("") is None


def test_an_address_is_trusted_and_a_folder_is_made_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wheelhouse").mkdir()
    assert environment.find_wheels("wheelhouse") == str(tmp_path / "wheelhouse")
    assert environment.find_wheels("http://teacher:8000") == "http://teacher:8000/"
    options = environment.wheels_options("http://teacher:8000/")
    assert values(options, "--trusted-host") == ["teacher:8000"]
    assert "--trusted-host" not in environment.wheels_options("https://teacher/")
    with pytest.raises(Trouble, match="there is no folder"):
        environment.find_wheels("nowhere")


def missing_manifest(house: Path, course: Path) -> None:
    (house / environment.MANIFEST).unlink()


def damaged_manifest(house: Path, course: Path) -> None:
    (house / environment.MANIFEST).write_text('{"targets": [1]}')


def missing_wheel(house: Path, course: Path) -> None:
    (house / NUMPY).unlink()


def wheel_cut_short(house: Path, course: Path) -> None:
    (house / TORCH).write_bytes(b"")


def newer_constraints(house: Path, course: Path) -> None:
    (course / "constraints.txt").write_text("numpy==2.5.0\ntorch==2.13.0\n")


def for_other_machines(house: Path, course: Path) -> None:
    rename_target(house, "amiga 3.11", "atari 3.12")


def for_another_python(house: Path, course: Path) -> None:
    rename_target(house, f"{environment.platform_name()} 3.99")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (missing_manifest, r"it has no wheelhouse\.json: run `make wheelhouse` again"),
        (damaged_manifest, r"wheelhouse\.json in .* is damaged: copy the wheelhouse again"),
        (missing_wheel, r"incomplete \(numpy-.*whl\): copy the whole folder again"),
        (wheel_cut_short, r"incomplete \(torch-.*whl\): copy the whole folder again"),
        (newer_constraints, "has numpy 2.4.6 and this copy of the course wants 2.5.0"),
        (for_other_machines, "made for Python 3.11 on amiga and Python 3.12 on atari, and this is"
         f" Python {environment.python_version()} on {environment.platform_name()}: run `make"
         f" wheelhouse PLATFORM={environment.platform_name()} PY={environment.python_version()}`"),
        (for_another_python, "Python 3.99 on .*: install Python 3.99 here, or run"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_pip_runs(
    course: Path, house: Path, spoil: Callable[[Path, Path], None], told: str
) -> None:
    spoil(house, course)
    with pytest.raises(Trouble, match=told) as trouble:
        check(course, house)
    assert "\n" not in str(trouble.value)


def test_a_fitting_python_that_is_installed_is_offered(
    course: Path, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename_target(house, f"{environment.platform_name()} 3.99", "amiga 3.11")
    monkeypatch.setattr(environment, "newer_python", lambda names: names[0])
    with pytest.raises(Trouble, match=r"add PYTHON=python3\.99 to the make command"):
        check(course, house)


@pytest.mark.parametrize(("level", "target"), [("dev", "make test"), ("bench", "make bench")])
def test_what_other_targets_need_is_not_in_a_wheelhouse(
    course: Path, house: Path, level: str, target: str
) -> None:
    told = f"A wheelhouse holds what `make lab` needs, and here goes `{target}`, too"
    with pytest.raises(Trouble, match=told):
        environment.prepare(course, level, pip=["false"], wheels=str(house))


@pytest.mark.parametrize(
    ("printed", "wheels", "told"),
    [
        ("No matching distribution found for numpy>=3; extra", "/w", "numpy>=3 is not in the"),
        ("ERROR: ResolutionImpossible", "/w", "does not fit this version of the course"),
        ("ConnectionResetError", "http://t/", "the connection to http://t/ broke off"),
        ("zipfile.BadZipFile: File is not a zip file", "/w", "a package's file is damaged"),
        ("ERROR: Wheel 'tqdm' located at /w is invalid.", "/w", "a package's file is damaged"),
        ("zlib.error: Error -3 while decompressing data", "/w", "a package's file is damaged"),
    ],
)
def test_pips_troubles_with_a_wheelhouse_in_plain_words(
    course: Path, printed: str, wheels: str, told: str
) -> None:
    (course / ".venv").mkdir()
    pip = [sys.executable, "-c", f"import sys; print({printed!r}); sys.exit(1)"]
    with pytest.raises(Trouble, match=told):
        environment.install(course, "lab", "", pip, wheels)


@pytest.fixture
def address(house: Path) -> Iterator[str]:
    """The wheelhouse as `python -m http.server` serves it."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Silent, directory=str(house))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_served_wheelhouse_is_read_whatever_the_proxy(
    course: Path, address: str, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    manifest = environment.read_manifest(address)
    environment.check_wheels(course, address, manifest)
    assert set(manifest[HERE]) == {TORCH, NUMPY}
    (house / environment.MANIFEST).unlink()
    with pytest.raises(Trouble, match="not a finished wheelhouse"):
        environment.read_manifest(address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/", "http://127.0.0.1:port/"])
def test_a_server_that_does_not_answer(address: str) -> None:
    with pytest.raises(Trouble, match=r"cannot be reached .*is the server running there"):
        environment.read_manifest(address)


@pytest.mark.parametrize(
    ("built", "machine", "name"),
    [
        ("linux-x86_64", "x86_64", "linux"),
        ("linux-aarch64", "aarch64", "linux-arm"),
        ("macosx-10.13-universal2", "arm64", "macos"),
        ("macosx-10.13-universal2", "x86_64", "macosx-x86_64"),
        ("win-amd64", "ARM64", "windows"),
        ("win-arm64", "ARM64", "win-arm64"),
    ],
)
def test_machines_by_name(
    built: str, machine: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.sysconfig, "get_platform", lambda: built)
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    assert environment.platform_name() == name


def test_wheels_are_known_by_the_names_that_constraints_use() -> None:
    assert environment.wheel_version(TORCH) == ("torch", "2.13.0")
    name = "jupyterlab_pygments-0.3.0-py3-none-any.whl"
    assert environment.wheel_version(name) == ("jupyterlab-pygments", "0.3.0")

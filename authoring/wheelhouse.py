"""Download once what `make lab` needs, as wheels, for machines without a network.

    python -m authoring.wheelhouse                                   # for machines like this one
    python -m authoring.wheelhouse --platform windows --python 3.12  # for others, as well

The wheels go into ``wheelhouse/``; ``make lab WHEELS=wheelhouse`` installs from it alone, and so
does pip with ``--no-index --find-links wheelhouse``. One wheelhouse can serve several kinds of
machine: each run adds one, and what stopped half-way goes on where it was. ``wheelhouse.json``
lists the files for each kind of machine, and only when all of them are there.

Like environment.py: standard library only, and an old Python is told so in a sentence.
"""

import argparse
import json
import sys
import time
import zipfile
from pathlib import Path

from authoring import environment  # stops here, with a sentence, if this Python is too old

Trouble = environment.Trouble

# What each platform's wheels may be called, the name of the newest one that all its machines can
# be expected to run, and what requirements such as `pywinpty; os_name == "nt"` ask for.
LINUX_TAGS = [f"manylinux_2_{minor}" for minor in range(28, 4, -1)]
LINUX_TAGS += ["manylinux2014", "manylinux2010", "manylinux1", "linux"]
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"}
WINDOWS = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"}
PLATFORMS = {
    "linux": ([f"{tag}_x86_64" for tag in LINUX_TAGS], {**LINUX, "platform_machine": "x86_64"}),
    "linux-arm": (
        [f"{tag}_aarch64" for tag in LINUX_TAGS],
        {**LINUX, "platform_machine": "aarch64"},
    ),
    "macos": (["macosx_14_0_arm64"], {**MACOS, "platform_machine": "arm64"}),
    "windows": (["win_amd64"], {**WINDOWS, "platform_machine": "AMD64"}),
}
PYTHONS = ("3.11", "3.12", "3.13")

# pip takes --platform for the choice of files, but reads the conditions of requirements as if for
# the machine that it runs on. This lets it read them as the other machine does.
SIGN = "read for another machine"
PIP_FOR_ANOTHER_MACHINE = f"""\
import json, runpy, sys
from pip._vendor.packaging import markers
machine = json.loads(sys.argv.pop(1))
markers.default_environment = lambda: dict(machine)
if not markers.Marker("platform_version == '{SIGN}'").evaluate():
    sys.exit("This pip cannot choose packages for another machine.")
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__")
"""


def make_wheelhouse(
    root: Path,
    folder: Path,
    platform: str,
    python: str,
    torch_index: str = "",
    pip: "list[str] | None" = None,
) -> "dict[str, int]":
    """Download what ``make lab`` needs on one kind of machine, and note it in the manifest.

    Args:
        root: The course's folder.
        folder: The wheelhouse; it is created if need be.
        platform: A key of `PLATFORMS`.
        python: The other machine's Python, ``"3.12"``.
        torch_index: An index to look for PyTorch in, besides the usual one.
        pip: The command to use as pip; by default that of the course's environment.

    Returns:
        ``{file name: bytes}`` of the wheels for that machine.

    Raises:
        Trouble: If it cannot be done, saying why. The next call goes on from there.
    """
    target = f"{platform} {python}"
    before = read_targets(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_targets(folder, {key: files for key, files in before.items() if key != target})
    remove_damaged(folder)
    pip = pip or own_pip(root, marker_environment(platform, python))
    log = folder / "wheelhouse.log"
    options = [*requirements(root), "--constraint", "constraints.txt", *target_options(target)]
    command = [*pip, "download", "--no-input", "--progress-bar", "off", "--dest", str(folder)]
    if torch_index:
        command += ["--extra-index-url", torch_index]
    run_pip([*command, *options], root, log)
    # Once more as the other machine will do it, without a network: what it takes is what it needs.
    report = folder / "report.tmp"
    command = [*pip, "install", "--no-input", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", str(report), "--target", str(folder / "nowhere.tmp")]
    command += ["--no-index", "--find-links", str(folder)]
    run_pip([*command, *options], root, log)
    files = {name: environment.file_size(folder / name) for name in chosen_files(report)}
    report.unlink()
    after = {**before, target: files}
    remove_unused(folder, before, after)
    write_targets(folder, after)
    return files


def requirements(root: Path) -> "list[str]":
    """Return what the course, its extra ``lab`` and its build back end ask for."""
    import tomllib

    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = declared["project"]
    extra: list[str] = project["optional-dependencies"]["lab"]
    return [*declared["build-system"]["requires"], *project["dependencies"], *extra]


def target_options(target: str) -> "list[str]":
    """Return pip's options for taking wheels, and only wheels, for another machine."""
    platform, python = target.split()
    options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    for tag in PLATFORMS[platform][0]:
        options += ["--platform", tag]
    return options


def marker_environment(platform: str, python: str) -> "dict[str, str]":
    """Return the variables that conditions of requirements may ask for, on the other machine."""
    oldest = f"{python}.0"  # what only the first releases of a series need does not harm others
    return {
        **PLATFORMS[platform][1],
        "implementation_name": "cpython",
        "implementation_version": oldest,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_version": SIGN,
        "python_full_version": oldest,
        "python_version": python,
    }


def own_pip(root: Path, machine: "dict[str, str]") -> "list[str]":
    """Return the course's own pip, made to choose for ``machine``; makes ``.venv`` if need be."""
    reason = environment.broken_reason(root)
    if reason:
        environment.make_venv(root, reason)
    python = str(environment.venv_python(root))
    return [python, "-c", PIP_FOR_ANOTHER_MACHINE, json.dumps(machine)]


def run_pip(command: "list[str]", root: Path, log: Path) -> None:
    """Run pip with a line of progress.

    Raises:
        Trouble: If it fails; the sentence names the cause where its log gives it away.
    """
    if environment.run_with_progress(command, root, log) != 0:
        why = environment.cause(log.read_text(encoding="utf-8", errors="replace")) or "pip failed"
        raise Trouble(
            f"The wheelhouse is not finished: {why} (what pip said is in {log}). Run this again"
            " to go on from here."
        )


def chosen_files(report: Path) -> "list[str]":
    """Return the names of the files that pip's report of an installation lists."""
    from urllib.parse import unquote, urlsplit

    chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    paths = [unquote(urlsplit(item["download_info"]["url"]).path) for item in chosen]
    return sorted(path.rpartition("/")[2] for path in paths)


def read_targets(folder: Path) -> "dict[str, dict[str, int]]":
    """Return what the manifest says, or nothing if there is none that can be read."""
    try:
        return environment.read_manifest(str(folder))
    except Trouble:
        return {}


def write_targets(folder: Path, targets: "dict[str, dict[str, int]]") -> None:
    """Write the manifest in one step, or remove it if the wheelhouse serves no machine."""
    path = folder / environment.MANIFEST
    if not targets:
        path.unlink(missing_ok=True)
        return
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"targets": targets}, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def remove_damaged(folder: Path) -> None:
    """Remove wheels that an interruption cut short: pip takes a file that is there for whole."""
    for wheel in folder.glob("*.whl"):
        if not zipfile.is_zipfile(wheel):
            wheel.unlink()


def remove_unused(
    folder: Path, before: "dict[str, dict[str, int]]", after: "dict[str, dict[str, int]]"
) -> None:
    """Remove the wheels that earlier runs noted and no machine needs any more; nothing else."""
    needed = {name for files in after.values() for name in files}
    for name in {name for files in before.values() for name in files} - needed:
        (folder / name).unlink(missing_ok=True)


def summary(folder: Path, target: str, files: "dict[str, int]", seconds: float) -> str:
    """Return what to tell the teacher."""
    size = sum(files.values())
    lines = [
        f"{folder} has the {len(files)} wheels ({size / 1e6:.0f} MB) that `make lab` needs with"
        f" Python {target.split()[1]} on {target.split()[0]}, after {seconds:.0f} s."
    ]
    cuda = sum(n for name, n in files.items() if name.startswith(("nvidia_", "triton", "cuda_")))
    if cuda:
        lines.append(
            f"{cuda / 1e6:.0f} MB of it, and most of torch, are for NVIDIA GPUs. Without them: make"
            " wheelhouse TORCH_INDEX=https://download.pytorch.org/whl/cpu"
        )
    return "\n".join(lines)


def main(argv: "list[str] | None" = None, root: Path = environment.ROOT) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Download once what `make lab` needs, as wheels.")
    parser.add_argument("--platform", default=environment.platform_name(), help="linux, windows …")
    parser.add_argument("--python", default=environment.python_version(), metavar="3.12")
    parser.add_argument("--torch-index", default="", metavar="URL", help="look for PyTorch there")
    parser.add_argument("folder", nargs="?", type=Path, default=root / "wheelhouse")
    options = parser.parse_args(argv)
    if options.platform not in PLATFORMS:
        sys.exit(f"PLATFORM is one of {', '.join(PLATFORMS)}, not {options.platform}.")
    if options.python not in PYTHONS:
        sys.exit(f"PY is one of {', '.join(PYTHONS)}, not {options.python}.")
    folder, started = options.folder.expanduser().absolute(), time.monotonic()
    environment.say(f"Downloading for Python {options.python} on {options.platform}.")
    try:
        files = make_wheelhouse(root, folder, options.platform, options.python, options.torch_index)
    except Trouble as trouble:
        sys.exit(str(trouble))
    except KeyboardInterrupt:
        sys.exit("The download was stopped; run this again to go on from here.")
    except OSError as error:
        why = environment.cause(str(error)) or f"{error.strerror or error} ({error.filename})"
        sys.exit(f"The wheelhouse is not finished: {why}.")
    target = f"{options.platform} {options.python}"
    environment.say(summary(folder, target, files, time.monotonic() - started))


if __name__ == "__main__":
    main()

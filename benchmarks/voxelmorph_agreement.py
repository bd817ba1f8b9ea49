"""Is `VoxelMorph(ndim)` what voxelmorph 0.2 calls `VxmDense`? Weights copied, fields compared.

    python -m benchmarks.voxelmorph_agreement

Makes an environment of its own in a cache folder, once (the bench level has voxelmorph 0.3, another
network), with voxelmorph 0.2, neurite 0.2 and pystrum, and everything else from the Python that
runs this. There both networks get the same weights, the head turned up until the field reaches 5
voxels, and the same non-square images. Ends with an error if the fields before the integration
differ by more than 1e-4 of their largest component, or the displacements of networks without an
integration do. What the two do otherwise afterwards is measured, piece by piece:

    resizing     they multiply vectors by n′/n, we by (n′ − 1)/(n − 1), which keeps affine fields
    padding      where a path leaves the image, they add no more to the field, we its border value
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import contenders, harness
from course_lib.models import VoxelMorph
from course_lib.spatial import integrate, resize_displacement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("voxelmorph==0.2", "neurite==0.2", "pystrum==0.4")
SHAPES = {2: (224, 160), 3: (64, 96, 80)}
REACH = 5.0  # voxels
TOLERANCE = 1e-4  # of the largest component
BORDER = 16  # voxels: what the interior is away from the border, more than any path goes

Numbers = dict[str, float]

# ------------------------------------------------------------------------------- pure parts, tested


def theirs_of(name: str) -> str:
    """What `VxmDense` calls a parameter of `VoxelMorph(ndim)`.

    Raises:
        ValueError: on a name that the default network does not have.
    """
    match name.split("."):
        case ["flow", kind]:
            return name
        case ["unet", "down", level, "0", kind]:
            return f"unet_model.encoder.{level}.0.main.{kind}"
        case ["unet", "up", "4", number, "0", kind]:  # at full size, where nothing is doubled after
            return f"unet_model.remaining.{number}.main.{kind}"
        case ["unet", "up", level, "0", "0", kind]:
            return f"unet_model.decoder.{level}.0.main.{kind}"
    raise ValueError(f"name: expected a parameter of VoxelMorph(ndim), got {name!r}")


def to_theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names."""
    return {theirs_of(name): value for name, value in state.items()}


def to_ours(state: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Their weights under our ``names``; what else they keep (grids) is left out."""
    return {name: state[theirs_of(name)] for name in names}


def scale_head(model: VoxelMorph, moving: Tensor, fixed: Tensor, reach: float) -> None:
    """Turn the head up until the raw field's largest component is ``reach`` voxels."""
    with torch.no_grad():
        largest = raw_field(model, moving, fixed).abs().max()
        model.flow.weight *= reach / largest


def raw_field(model: VoxelMorph, moving: Tensor, fixed: Tensor) -> Tensor:
    """What the head returns, before anything is resized or integrated."""
    return model.flow(model.unet(torch.cat([moving, fixed], 1)))


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a part of the largest component of ``b``."""
    return float((a - b).abs().max() / b.abs().max())


def inside_and_border(a: Tensor, b: Tensor, width: int) -> tuple[float, float]:
    """The largest difference of two fields ``width`` voxels or more from the border, and nearer."""
    difference = (a - b).abs()
    inner = (slice(None), slice(None), *(slice(width, -width) for _ in a.shape[2:]))
    inside = float(difference[inner].max())
    difference[inner] = 0
    return inside, float(difference.max())


def report(found: dict[int, Numbers]) -> str:
    """The numbers of 2D and 3D beside each other."""
    rows = [["", *(f"{ndim}D" for ndim in found)]]
    for name in next(iter(found.values())):
        values = [numbers[name] for numbers in found.values()]
        rows.append([name, *(f"{v:,.0f}" if v >= 1000 else f"{v:.2g}" for v in values)])
    return harness.columns(rows, numbers=range(1, len(found) + 1))


# -------------------------------------------------------------------- in the environment of its own


def compare(ndim: int, vxm: Any) -> Numbers:
    """Both networks with the same weights on the same images."""
    images = contenders.arrays(SHAPES[ndim])
    moving, fixed = images.moving, images.fixed
    torch.manual_seed(0)
    ours = VoxelMorph(ndim)
    scale_head(ours, moving, fixed, REACH)
    theirs = vxm.networks.VxmDense(SHAPES[ndim])  # int_steps 7, int_downsize 2: its defaults
    grids = {name: grid for name, grid in theirs.state_dict().items() if name.endswith("grid")}
    theirs.load_state_dict({**to_theirs(ours.state_dict()), **grids})
    back = VoxelMorph(ndim)
    back.load_state_dict(to_ours(theirs.state_dict(), list(ours.state_dict())))
    raw: list[Tensor] = []
    theirs.flow.register_forward_hook(lambda module, inputs, output: raw.append(output))
    with torch.no_grad():
        our_raw = raw_field(ours, moving, fixed)
        ours_found, back_found = ours(moving, fixed), back(moving, fixed)
        _, their_velocity = theirs(moving, fixed)
        _, their_final = theirs(moving, fixed, registration=True)
        direct = _without_integration(ours, vxm, moving, fixed)
        half = [n // 2 for n in SHAPES[ndim]]
        our_velocity = ours_found.velocity
        assert our_velocity is not None
        padded = vxm.layers.VecInt(half, 7)(our_velocity)
        rescaled = resize_displacement(integrate(their_velocity), SHAPES[ndim])
    padding = inside_and_border(integrate(our_velocity), padded, BORDER // 2)
    final = inside_and_border(ours_found.displacement, their_final, BORDER)
    return {
        "parameters": sum(p.numel() for p in theirs.parameters()),
        "raw field, largest component (voxels)": float(our_raw.abs().max()),
        "raw field, relative difference": relative(our_raw, raw[0]),
        "weights copied back: largest difference": float(
            (back_found.displacement - ours_found.displacement).abs().max()
        ),
        "no integration: displacement, relative difference": relative(*direct),
        "resizing: velocity at half size, relative difference": relative(
            our_velocity, their_velocity
        ),
        "resizing: what is left of it at the end (voxels)": inside_and_border(
            ours_found.displacement, rescaled, BORDER
        )[0],
        "padding: integral at half size, inside (voxels)": padding[0],
        "padding: integral at half size, border (voxels)": padding[1],
        f"displacement, {BORDER} voxels inside (voxels)": final[0],
        "displacement, nearer to the border (voxels)": final[1],
        "displacement, ours, longest component (voxels)": float(
            ours_found.displacement.abs().max()
        ),
    }


def _without_integration(
    ours: VoxelMorph, vxm: Any, moving: Tensor, fixed: Tensor
) -> tuple[Tensor, Tensor]:
    """Displacements of both networks when the head's field is the displacement."""
    shape = tuple(fixed.shape[2:])
    plain = VoxelMorph(len(shape), velocity=False)
    plain.load_state_dict(ours.state_dict())
    theirs: nn.Module = vxm.networks.VxmDense(shape, int_steps=0)
    kept = {name: grid for name, grid in theirs.state_dict().items() if name.endswith("grid")}
    theirs.load_state_dict({**to_theirs(ours.state_dict()), **kept})
    return plain(moving, fixed).displacement, theirs(moving, fixed, registration=True)[1]


def imported() -> Any:
    """voxelmorph 0.2 with its PyTorch half, on a Python that is newer than it."""
    os.environ["VXM_BACKEND"] = os.environ["NEURITE_BACKEND"] = "pytorch"
    if not hasattr(inspect, "getargspec"):  # gone since Python 3.11; four values are asked for
        inspect.getargspec = lambda function: inspect.getfullargspec(function)[:4]  # type: ignore[attr-defined]
    import voxelmorph

    if voxelmorph.__version__ != "0.2":
        sys.exit(f"Expected voxelmorph 0.2, got {voxelmorph.__version__}.")
    return voxelmorph


def inside() -> None:
    """Compare, print, and fail if the networks are not the same."""
    vxm = imported()
    found = {ndim: compare(ndim, vxm) for ndim in SHAPES}
    sizes = " and ".join("×".join(map(str, shape)) for shape in SHAPES.values())
    print(
        f"VoxelMorph(ndim) beside VxmDense of voxelmorph 0.2, {sizes} voxels\n\n{report(found)}\n"
    )
    missed = failures(found)
    if missed:
        sys.exit("NOT the same network: " + "; ".join(missed))
    print(f"The same network: before the integration all agrees to {TOLERANCE:g}.")


def failures(found: dict[int, Numbers]) -> list[str]:
    """What should agree and does not."""
    asked = {
        "raw field, relative difference": TOLERANCE,
        "no integration: displacement, relative difference": TOLERANCE,
        "weights copied back: largest difference": 1e-6,
    }
    return [
        f"{ndim}D {name}: {numbers[name]:.2g} > {limit:g}"
        for ndim, numbers in found.items()
        for name, limit in asked.items()
        if not numbers[name] <= limit
    ]


# --------------------------------------------------------------------------------- the environment


def prepare(folder: Path) -> Path:
    """Make the environment unless it is complete, and return its Python.

    Raises:
        subprocess.CalledProcessError: if it cannot be made.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    note = folder / "complete.json"
    wanted = {"packages": list(PACKAGES), "base": sys.prefix, "python": sys.version}
    if note.exists() and json.loads(note.read_text()) == wanted:
        return python
    print(f"Making an environment with {', '.join(PACKAGES)} in {folder}.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    subprocess.run([*command, *PACKAGES], check=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    library = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    # Its own packages come first; PyTorch and all they need come from the Python that runs this.
    others = dict.fromkeys([sysconfig.get_path("purelib"), *filter(_is_library, sys.path)])
    (Path(library) / "others.pth").write_text("".join(f"{path}\n" for path in others))
    note.write_text(json.dumps(wanted))
    return python


def _is_library(path: str) -> bool:
    return Path(path).name == "site-packages"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    import pooch

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.voxelmorph_agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cache = Path(pooch.os_cache("registration-course")) / "voxelmorph-0.2"
    parser.add_argument("--folder", type=Path, default=cache, help=f"by default {cache}")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.inside:
        inside()
        return
    try:
        python = prepare(options.folder)
    except subprocess.CalledProcessError as error:
        sys.exit(f"The environment could not be made: {error}. Is there a network connection?")
    command = [str(python), "-W", "ignore", "-m", "benchmarks.voxelmorph_agreement", "--inside"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()

"""Pictures of images and fields, with axes in voxels: ``show(images({...}), alt="…")``.

Each function but :func:`show` returns a Matplotlib figure and draws the first item of the batch in
2D. Colors are safe for color-blind readers: gray and viridis for amounts, blue to red around a
neutral value, magenta for folds.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from course_lib.drawing import FOLD_RGB, OUTLINE_RGB
from course_lib.io import Volume
from course_lib.spatial import identity_grid, jacobian_determinant
from course_lib.validation import (
    require_displacement,
    require_image,
    require_number,
    require_same,
    require_whole,
)
from course_lib.volumes import require_volume, straighten, to_voxel

VIEWS = (("sagittal", 1, 2), ("coronal", 0, 2), ("axial", 0, 1))
"""The three cuts through a body: name, the world axis to the right, the world axis up."""

_INDICES = ("i (voxels)", "j (voxels)")  # what runs down and to the right, unless said otherwise
_WORLD = ("x (mm): left → right", "y (mm): back → front", "z (mm): feet → head")
_FOLD_COLOR = tuple(value / 255 for value in FOLD_RGB)
_CROSS_COLOR = tuple(value / 255 for value in OUTLINE_RGB)
_GRID_COLOR = "#56b4e9"
_CURVE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#555555")
_PANEL = 3.2  # inches
_DPI = 72


def show(figure: Figure, alt: str) -> None:
    """Display a figure with a sentence for readers who cannot see it.

    Args:
        figure: what to show.
        alt: what the picture shows, for screen readers and text-only terminals.

    Raises:
        TypeError, ValueError: if that is no Matplotlib figure, or the sentence is missing.
    """
    if not isinstance(figure, Figure):
        raise TypeError(f"figure: expected a Matplotlib figure, got {type(figure).__name__}")
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt: expected a sentence that says what is seen, got {alt!r}")
    display(Still(_png(figure), alt))


def _png(figure: Figure) -> bytes:
    """The figure with a palette of 96 colors: a quarter of the bytes, and the eye sees the same."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    colors = Image.open(full).convert("RGB").quantize(96, kmeans=2, dither=Image.Dither.NONE)
    colors.save(small, format="png", optimize=True)
    return small.getvalue()


class Still(NamedTuple):
    """A picture that notebooks show with its alternative text, and terminals as that text."""

    png: bytes
    alt: str

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, object]]:
        picture = {"image/png": b64encode(self.png).decode(), "text/plain": self.alt}
        return picture, {"image/png": {"alt": self.alt}}


def images(
    pictures: Mapping[str, Tensor],
    *,
    limits: tuple[float, float] = (0, 1),
    axes_labels: tuple[str, str] = _INDICES,
) -> Figure:
    """Gray images side by side, each under its name.

    Args:
        pictures: ``{title: (B, C, H, W)}``; the first channel is drawn.
        limits: the intensities of black and white.
        axes_labels: what runs down and what runs to the right; slices of a body have better names
            for that than the indices.

    Raises:
        TypeError, ValueError: on no pictures, what is no 2D image, limits that are no two
            different numbers, or labels that are no two texts.
    """
    planes = {name: _plane(f"pictures[{name!r}]", x) for name, x in _named("pictures", pictures)}
    black, white = _require_limits(limits)
    figure, axes = _panels(list(planes), labels=_require_labels(axes_labels))
    for ax, plane in zip(axes, planes.values(), strict=True):
        drawn = ax.imshow(plane, cmap="gray", vmin=black, vmax=white)
    figure.colorbar(drawn, ax=axes, label="intensity", shrink=0.8, pad=0.02)
    return figure


def comparison(warped: Mapping[str, Tensor], fixed: Tensor) -> Figure:
    """For each result a row of three looks at how well it lies on the fixed image.

    The two in green and magenta (gray where they agree), a checkerboard of both, and their
    difference.

    Args:
        warped: ``{name: (1, 1, H, W)}``.
        fixed: ``(1, 1, H, W)``.

    Raises:
        TypeError, ValueError: on no results, or images that are not 2D and of one shape.
    """
    named = _named("warped", warped)
    for name, image in named:
        _require_planes(f"warped[{name!r}]", image, "fixed", fixed)
    rows = len(named)
    figure = Figure(figsize=(0.85 * _PANEL * 3 + 1, _PANEL * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    for row, (name, image) in zip(axes, named, strict=True):
        row[0].imshow(overlay(image, fixed))
        row[1].imshow(checkerboard(image, fixed), cmap="gray", vmin=0, vmax=1)
        drawn = row[2].imshow(_plane("warped", image - fixed), cmap="RdBu_r", vmin=-1, vmax=1)
        row[0].set_ylabel(f"{name}\ni (voxels)")
    titles = ("green: warped, magenta: fixed", "checkerboard", "warped − fixed")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title)
        axes[-1, column].set_xlabel("j (voxels)")
    figure.colorbar(drawn, ax=axes, label="difference of intensity", shrink=0.8, pad=0.02)
    return figure


def sections(
    volumes: Mapping[str, Volume],
    point: Sequence[float] | None = None,
    *,
    limits: tuple[float, float] = (0, 1),
) -> Figure:
    """Sagittal, coronal and axial cut through each volume, placed by its affine, in mm.

    Left is on the left: the head is seen from its right, from behind and from above. Oblique
    volumes are resampled first.

    Args:
        volumes: ``{name: 3D volume}``, a row each.
        point: (x, y, z) in mm, RAS, where the cuts meet, marked by a cross; None for the middle of
            each volume.
        limits: the intensities of black and white.

    Raises:
        TypeError, ValueError: on no volumes, what is no 3D volume of real numbers, a point that is
            no three numbers, or limits that are no two different numbers.
    """
    named = _named("volumes", volumes)
    for name, volume in named:
        require_volume(f"volumes[{name!r}]", volume, ndim=3)
        if volume.image.is_complex():
            raise TypeError(f"volumes[{name!r}]: expected real numbers, got {volume.image.dtype}")
    place = None if point is None else _require_point(point)
    black, white = _require_limits(limits)
    rows = len(named)
    figure = Figure(figsize=(0.85 * _PANEL * 3 + 1, 0.85 * _PANEL * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, (name, volume) in zip(axes, named, strict=True):
        upright = straighten(volume)
        for ax, (view, across, up) in zip(row, VIEWS, strict=True):
            drawn = _draw_section(ax, upright, place, across, up)
            drawn.set_clim(black, white)
            ax.set(title=view, xlabel=_WORLD[across], ylabel=_WORLD[up])
        row[0].set_ylabel(f"{name}\n{_WORLD[2]}")
    figure.colorbar(drawn, ax=axes, label="intensity", shrink=0.8, pad=0.02)
    return figure


def _draw_section(
    ax: Axes, upright: Volume, point: NDArray[np.float64] | None, across: int, up: int
) -> AxesImage:
    """Draw one cut of a volume along the world's axes, with a cross at the point."""
    cut = 3 - across - up
    shape, spacing = np.array(upright.image.shape[2:]), np.array(upright.spacing)
    index = (shape - 1) / 2 if point is None else to_voxel(point, upright.affine)
    k = int(np.floor(index[cut] + 0.5).clip(0, shape[cut] - 1))
    plane = upright.image[0, 0].select(cut, k).detach().cpu().numpy()
    start = upright.affine[:3, 3] - spacing / 2  # the edge of the first voxel, not its center
    end = start + spacing * shape
    edges = (start[across], end[across], start[up], end[up])
    if point is not None:
        ax.axvline(point[across], color=_CROSS_COLOR, linewidth=0.7)
        ax.axhline(point[up], color=_CROSS_COLOR, linewidth=0.7)
    return ax.imshow(plane.T, cmap="gray", origin="lower", extent=edges)


def overlay(warped: Tensor, fixed: Tensor) -> NDArray[np.float64]:
    """An RGB picture ``(H, W, 3)``: warped in green, fixed in magenta, gray where they agree."""
    _require_planes("warped", warped, "fixed", fixed)
    green, magenta = _plane("warped", warped).clip(0, 1), _plane("fixed", fixed).clip(0, 1)
    return np.stack([magenta, green, magenta], axis=-1)


def checkerboard(a: Tensor, b: Tensor, tiles: int = 8) -> NDArray[np.float64]:
    """A picture ``(H, W)`` of squares taken from ``a`` and ``b`` in turn."""
    _require_planes("b", b, "a", a)
    require_whole("tiles", tiles, 1)
    height, width = a.shape[2:]
    edge = max(1, max(height, width) // tiles)
    i, j = np.indices((height, width)) // edge
    return np.where((i + j) % 2 == 0, _plane("a", a), _plane("b", b))


def fields(
    displacements: Mapping[str, Tensor], *, step: int = 8, background: Tensor | None = None
) -> Figure:
    """What each displacement does to a grid, and its Jacobian determinant below.

    The upper row draws the positions ``x + u(x)`` of a regular grid: where each voxel of the fixed
    image is fetched from. Folds are magenta in both rows.

    Args:
        displacements: ``{title: (1, 2, H, W)}``, in voxels.
        step: distance between the grid lines in voxels.
        background: ``(1, 1, H, W)``, the moving image, drawn faintly behind the grid.

    Raises:
        TypeError, ValueError: on no displacements, what is no 2D field, or a wrong step.
    """
    named = _named("displacements", displacements)
    for name, displacement in named:
        _require_field(f"displacements[{name!r}]", displacement)
    columns = len(named)
    figure = Figure(figsize=(0.85 * _PANEL * columns + 1, 2 * _PANEL), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for column, (name, displacement) in enumerate(named):
        if background is not None:
            axes[0, column].imshow(_plane("background", background), cmap="gray", vmin=0, vmax=2)
        draw_grid(axes[0, column], displacement, step)
        axes[0, column].set_title(name)
        drawn = draw_jacobian(axes[1, column], displacement)
        axes[1, column].set_xlabel("j (voxels)")
    axes[0, 0].set_ylabel("grid x + u(x)\ni (voxels)")
    axes[1, 0].set_ylabel("Jacobian determinant\ni (voxels)")
    bar = figure.colorbar(drawn, ax=axes, label="det J (magenta: ≤ 0)", shrink=0.8, pad=0.02)
    bar.set_ticks([0, 0.5, 1, 1.5, 2])
    return figure


def draw_grid(ax: Axes, displacement: Tensor, step: int = 8) -> None:
    """Draw the lines of a regular grid at ``x + u(x)``, with folded voxels as dots."""
    _require_axes(ax)
    spatial = _require_field("displacement", displacement)
    require_whole("step", step, 1)
    u = displacement[:1].detach().cpu().double()
    i, j = (identity_grid(spatial, dtype=u.dtype) + u[0]).numpy()
    for row in range(0, spatial[0], step):
        ax.plot(j[row], i[row], color=_GRID_COLOR, linewidth=0.6)
    for column in range(0, spatial[1], step):
        ax.plot(j[:, column], i[:, column], color=_GRID_COLOR, linewidth=0.6)
    folded = (jacobian_determinant(u)[0] <= 0).numpy()
    ax.plot(j[folded], i[folded], ".", color=_FOLD_COLOR, markersize=2)
    ax.set_aspect("equal")
    ax.set_xlim(-0.5, spatial[1] - 0.5)
    ax.set_ylim(spatial[0] - 0.5, -0.5)


def draw_jacobian(ax: Axes, displacement: Tensor) -> AxesImage:
    """Draw det J: blue shrinks, red grows, magenta folds; returns what a color bar needs."""
    _require_axes(ax)
    _require_field("displacement", displacement)
    det = jacobian_determinant(displacement[:1].detach().cpu().double())[0].numpy()
    drawn = ax.imshow(det, cmap="RdBu_r", vmin=0, vmax=2)
    # Paler below the range would read as "shrinks a lot"; a fold is another thing altogether.
    ax.imshow(np.where(det <= 0, 1.0, np.nan), cmap=ListedColormap([_FOLD_COLOR]), vmin=0, vmax=1)
    return drawn


def arrows(
    displacement: Tensor, background: Tensor | None = None, *, step: int = 8, title: str = ""
) -> Figure:
    """The displacement as arrows from ``x`` (fixed grid) to ``x + u(x)`` (where it looks).

    Args:
        displacement: ``(1, 2, H, W)``, in voxels.
        background: ``(1, 1, H, W)``, drawn behind.
        step: distance between the arrows in voxels.
        title: above the picture.

    Raises:
        TypeError, ValueError: on what is no 2D field or no 2D image, or a wrong step.
    """
    spatial = _require_field("displacement", displacement)
    require_whole("step", step, 1)
    figure, (ax,) = _panels([title], size=1.5 * _PANEL)
    if background is not None:
        ax.imshow(_plane("background", background), cmap="gray", vmin=0, vmax=1.5)
    u = displacement[0].detach().cpu().numpy()
    i, j = (axis[::step, ::step] for axis in identity_grid(spatial).numpy())
    di, dj = u[:, ::step, ::step]  # quiver wants (x, y) = (j, i)
    # angles="xy", scale=1: the arrow ends exactly at x + u(x), also with i pointing down.
    ax.quiver(j, i, dj, di, angles="xy", scale_units="xy", scale=1, color="#d55e00", width=0.006)
    ax.set_xlim(-0.5, spatial[1] - 0.5)
    ax.set_ylim(spatial[0] - 0.5, -0.5)
    ax.set_aspect("equal")
    return figure


def curves(lines: Mapping[str, tuple[ArrayLike, ArrayLike]], *, xlabel: str, ylabel: str) -> Figure:
    """Curves in one pair of axes, told apart by color and by dashes.

    Args:
        lines: ``{name: (x, y)}``, each of shape ``(N,)`` or, as a column, ``(N, 1)``.
        xlabel, ylabel: what the axes show, with units.

    Raises:
        TypeError, ValueError: on no lines, or what is no pair of equally many numbers.
    """
    named = [
        (name, _require_line(f"lines[{name!r}]", line)) for name, line in _named("lines", lines)
    ]
    for what, label in (("xlabel", xlabel), ("ylabel", ylabel)):
        if not isinstance(label, str):
            raise TypeError(f"{what}: expected a text, got {label!r}")
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    ax = figure.subplots()
    styles = ("-", "--", "-.", ":")
    for number, (name, (x, y)) in enumerate(named):
        ax.plot(x, y, styles[number % len(styles)], color=_CURVE_COLORS[number % 4], label=name)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend()
    return figure


def _panels(
    titles: Sequence[str],
    size: float = _PANEL,
    labels: tuple[str, str] = _INDICES,
) -> tuple[Figure, list[Axes]]:
    """A row of axes, one for each title; the labels are for what runs down and to the right."""
    figure = Figure(figsize=(0.85 * size * len(titles) + 0.8, size), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.set_xlabel(labels[1])
    axes[0].set_ylabel(labels[0])
    return figure, axes


def _plane(name: str, image: Tensor) -> NDArray[np.float64]:
    """The first channel of the first item, as a float array that Matplotlib can draw."""
    _require_plane(name, image)
    return image[0, 0].detach().cpu().double().numpy()


def _require_plane(name: str, image: Tensor) -> None:
    if len(require_image(name, image, floating=False)) != 2:
        raise ValueError(f"{name}: expected two spatial axes, got shape {tuple(image.shape)}")
    if image.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {image.dtype}")


def _named(name: str, entries: object) -> list[tuple[str, Any]]:
    """The entries of a mapping from titles to what belongs under them."""
    if not isinstance(entries, Mapping):
        raise TypeError(f"{name}: expected a dict {{title: …}}, got {type(entries).__name__}")
    if not entries:
        raise ValueError(f"{name}: expected at least one entry, got none")
    return [(str(title), entry) for title, entry in entries.items()]


def _require_planes(name: str, image: Tensor, other_name: str, other: Tensor) -> None:
    """Check two images of one shape that can be drawn on each other."""
    _require_plane(other_name, other)
    _require_plane(name, image)
    require_same(name, image, other_name, other, channels=False)


def _require_field(name: str, displacement: Tensor) -> tuple[int, ...]:
    spatial = require_displacement(name, displacement)
    if len(spatial) != 2:
        raise ValueError(f"{name}: expected two spatial axes, got {tuple(displacement.shape)}")
    return spatial


def _require_axes(ax: object) -> None:
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected Matplotlib axes, got {type(ax).__name__}")


def _require_point(point: object) -> NDArray[np.float64]:
    try:
        place = np.asarray(point)
        if place.dtype.kind not in "iuf":
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"point: expected three numbers in mm, got {point!r:.80}") from None
    if place.shape != (3,) or not np.isfinite(place).all():
        raise ValueError(f"point: expected three finite numbers in mm, got {point!r:.80}")
    return place.astype(np.float64)


def _require_limits(limits: object) -> tuple[float, float]:
    if not isinstance(limits, Sequence) or isinstance(limits, str) or len(limits) != 2:
        raise TypeError(f"limits: expected two numbers, black and white, got {limits!r}")
    black, white = (require_number("limits", value) for value in limits)
    if black == white:
        raise ValueError(f"limits: expected two different intensities, got {limits!r}")
    return black, white


def _require_labels(labels: object) -> tuple[str, str]:
    match labels:
        case (str(down), str(right)):
            return down, right
    raise TypeError(f"axes_labels: expected two texts, (down, to the right), got {labels!r}")


def _require_line(name: str, line: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    try:
        x, y = (np.asarray(values, dtype=np.float64) for values in line)  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a pair (x, y) of numbers, got {line!r:.80}") from None
    if x.shape not in ((x.size,), (x.size, 1)) or x.shape != y.shape or x.size == 0:
        raise ValueError(f"{name}: expected as many x as y, got shapes {x.shape} and {y.shape}")
    return x.ravel(), y.ravel()

"""Pictures of images and fields, with axes in voxels: ``show(images({...}), alt="…")``.

Each function but :func:`show` returns a Matplotlib figure and draws the first item of the batch in
2D. Colors are safe for color-blind readers: gray and viridis for amounts, blue to red around a
neutral value, magenta for folds.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
from course_lib.validation import require_displacement, require_image
from course_lib.volumes import straighten, to_voxel

VIEWS = (("sagittal", 1, 2), ("coronal", 0, 2), ("axial", 0, 1))
"""The three cuts through a body: name, the world axis to the right, the world axis up."""

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
    """
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
    axes_labels: tuple[str, str] = ("i (voxels)", "j (voxels)"),
) -> Figure:
    """Gray images side by side, each under its name.

    Args:
        pictures: ``{title: (B, C, H, W)}``; the first channel is drawn.
        limits: the intensities of black and white.
        axes_labels: what runs down and what runs to the right; slices of a body have better names
            for that than the indices.
    """
    figure, axes = _panels(pictures, labels=axes_labels)
    for ax, image in zip(axes, pictures.values(), strict=True):
        drawn = ax.imshow(_plane(image), cmap="gray", vmin=limits[0], vmax=limits[1])
    figure.colorbar(drawn, ax=axes, label="intensity", shrink=0.8, pad=0.02)
    return figure


def comparison(warped: Mapping[str, Tensor], fixed: Tensor) -> Figure:
    """For each result a row of three looks at how well it lies on the fixed image.

    The two in green and magenta (gray where they agree), a checkerboard of both, and their
    difference.

    Args:
        warped: ``{name: (1, 1, H, W)}``.
        fixed: ``(1, 1, H, W)``.
    """
    rows = len(warped)
    figure = Figure(figsize=(0.85 * _PANEL * 3 + 1, _PANEL * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    for row, (name, image) in zip(axes, warped.items(), strict=True):
        row[0].imshow(overlay(image, fixed))
        row[1].imshow(checkerboard(image, fixed), cmap="gray", vmin=0, vmax=1)
        drawn = row[2].imshow(_plane(image - fixed), cmap="RdBu_r", vmin=-1, vmax=1)
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
    """
    rows = len(volumes)
    figure = Figure(figsize=(0.85 * _PANEL * 3 + 1, 0.85 * _PANEL * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, (name, volume) in zip(axes, volumes.items(), strict=True):
        upright = straighten(volume)
        for ax, (view, across, up) in zip(row, VIEWS, strict=True):
            drawn = _draw_section(ax, upright, point, across, up)
            drawn.set_clim(*limits)
            ax.set(title=view, xlabel=_WORLD[across], ylabel=_WORLD[up])
        row[0].set_ylabel(f"{name}\n{_WORLD[2]}")
    figure.colorbar(drawn, ax=axes, label="intensity", shrink=0.8, pad=0.02)
    return figure


def _draw_section(
    ax: Axes, upright: Volume, point: Sequence[float] | None, across: int, up: int
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
    green, magenta = _plane(warped).clip(0, 1), _plane(fixed).clip(0, 1)
    return np.stack([magenta, green, magenta], axis=-1)


def checkerboard(a: Tensor, b: Tensor, tiles: int = 8) -> NDArray[np.float64]:
    """A picture ``(H, W)`` of squares taken from ``a`` and ``b`` in turn."""
    height, width = _plane(a).shape
    edge = max(1, max(height, width) // tiles)
    i, j = np.indices((height, width)) // edge
    return np.where((i + j) % 2 == 0, _plane(a), _plane(b))


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
    """
    columns = len(displacements)
    figure = Figure(figsize=(0.85 * _PANEL * columns + 1, 2 * _PANEL), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for column, (name, displacement) in enumerate(displacements.items()):
        if background is not None:
            axes[0, column].imshow(_plane(background), cmap="gray", vmin=0, vmax=2)
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
    spatial = require_displacement("displacement", displacement)
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
    """
    spatial = require_displacement("displacement", displacement)
    figure, (ax,) = _panels([title], size=1.5 * _PANEL)
    if background is not None:
        ax.imshow(_plane(background), cmap="gray", vmin=0, vmax=1.5)
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
        lines: ``{name: (x, y)}``.
        xlabel, ylabel: what the axes show, with units.
    """
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    ax = figure.subplots()
    styles = ("-", "--", "-.", ":")
    for number, (name, (x, y)) in enumerate(lines.items()):
        ax.plot(x, y, styles[number % len(styles)], color=_CURVE_COLORS[number % 4], label=name)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend()
    return figure


def _panels(
    titles: Mapping[str, Tensor] | Sequence[str],
    size: float = _PANEL,
    labels: tuple[str, str] = ("i (voxels)", "j (voxels)"),
) -> tuple[Figure, list[Axes]]:
    """A row of axes, one for each title; the labels are for what runs down and to the right."""
    figure = Figure(figsize=(0.85 * size * len(titles) + 0.8, size), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.set_xlabel(labels[1])
    axes[0].set_ylabel(labels[0])
    return figure, axes


def _plane(image: Tensor) -> NDArray[np.float64]:
    """The first channel of the first item, as a float array that Matplotlib can draw."""
    if len(require_image("image", image, floating=False)) != 2:
        raise ValueError(f"image: expected two spatial axes, got shape {tuple(image.shape)}")
    return image[0, 0].detach().cpu().double().numpy()

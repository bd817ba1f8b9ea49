"""One table for every lesson: what each displacement does to a pair, the identity always in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.datasets import Pair
from course_lib.metrics import correlation, dice, endpoint_error, folding_fraction
from course_lib.spatial import warp
from course_lib.validation import (
    require_displacement,
    require_finite,
    require_labels,
    require_same,
)


@dataclass(frozen=True)
class Table:
    """Rows of numbers by name, shown as text in a terminal and as HTML in a notebook.

    Attributes:
        rows: ``{method: {column: value}}``, the same columns in every row; means over the batch.
    """

    rows: dict[str, dict[str, float]]

    def __getitem__(self, method: str) -> dict[str, float]:
        """The row of one method."""
        return self.rows[method]

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(next(iter(self.rows.values())))

    def _cells(self) -> list[list[str]]:
        head = ["", *self.columns]
        return [head] + [
            [name, *(f"{value:.3f}" for value in row.values())] for name, row in self.rows.items()
        ]

    def __repr__(self) -> str:
        """Columns under one another."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        name_width, *number_widths = widths
        return "\n".join(
            "  ".join([name.ljust(name_width), *map(str.rjust, numbers, number_widths)]).rstrip()
            for name, *numbers in cells
        )

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        rows = "".join(
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in values)}</tr>"
            for name, *values in body
        )
        return f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"


def table(
    displacements: Mapping[str, Tensor],
    pair: Pair,
    structures: Mapping[int, str] | None = None,
) -> Table:
    """Every metric that the pair allows, for each displacement and for doing nothing.

    Images are warped with zeros outside; labels one-hot, linearly, and then to the likeliest.
    The endpoint error and the folding count inside the fixed labels where these are known.

    Args:
        displacements: ``{method: (B, D, *spatial)}``, in voxels.
        pair: the images, and what is known about them.
        structures: ``{label: name}`` of the structures whose Dice is reported; all labels but 0 if
            None.

    Returns:
        A :class:`Table` with the columns correlation, Dice of each structure (labels known),
        endpoint error in mm (truth and spacing known) or voxels, and folding in percent.

    Raises:
        TypeError, ValueError: on fields that do not fit the pair, or a method called "identity".

    Taught in lesson 15.
    """
    if not isinstance(displacements, Mapping):
        raise TypeError(f"displacements: expected a dict, got {type(displacements).__name__}")
    if not isinstance(pair, Pair):
        raise TypeError(f"pair: expected a Pair, got {type(pair).__name__}")
    if structures is not None and not isinstance(structures, Mapping):
        raise TypeError(f"structures: expected a dict, got {type(structures).__name__}")
    for method, displacement in displacements.items():
        name = f"displacements[{method!r}]"
        require_displacement(name, displacement)
        require_same(name, displacement, "the fixed image", pair.fixed, channels=False)
        require_finite(name, displacement)
    if "identity" in displacements:
        raise ValueError('displacements: "identity" is always in the table; use another name')
    zero = torch.zeros_like(pair.fixed[:, :1]).repeat_interleave(pair.fixed.ndim - 2, dim=1)
    everything = {"identity": zero, **displacements}
    if structures is None and pair.fixed_labels is not None:
        values = pair.fixed_labels.unique().tolist()
        structures = {value: f"label {value}" for value in values if value != 0}
    return Table({name: _row(u, pair, structures or {}) for name, u in everything.items()})


def _row(displacement: Tensor, pair: Pair, structures: Mapping[int, str]) -> dict[str, float]:
    mask = None if pair.fixed_labels is None else pair.fixed_labels > 0
    row = {"correlation": correlation(warp(pair.moving, displacement), pair.fixed).mean()}
    if structures and pair.fixed_labels is not None and pair.moving_labels is not None:
        warped = warp_labels(pair.moving_labels, displacement)
        overlap = dice(warped, pair.fixed_labels, list(structures)).nanmean(0)
        row |= {f"Dice {name}": d for name, d in zip(structures.values(), overlap, strict=True)}
    if pair.displacement is not None:
        unit = "voxels" if pair.spacing is None else "mm"
        error = endpoint_error(displacement, pair.displacement, pair.spacing, mask)
        row[f"error ({unit})"] = error.mean()
    row["folding (%)"] = 100 * folding_fraction(displacement, mask).mean()
    return {name: float(value) for name, value in row.items()}


def warp_labels(labels: Tensor, displacement: Tensor) -> Tensor:
    """Labels pulled back one-hot: each structure warped linearly, the likeliest one wins.

    Args:
        labels: ``(B, 1, *spatial)``, an integer dtype, 0 and above.
        displacement: ``(B, D, *spatial)``, in voxels.

    Returns:
        ``(B, 1, *spatial)``, of the labels' dtype; 0 outside the moving image.

    Raises:
        TypeError, ValueError: on a wrong rank, shape, dtype or device, or negative labels.

    Taught in lesson 12.
    """
    require_labels("labels", labels)
    require_displacement("displacement", displacement)
    values = torch.cat([labels.new_zeros(1), labels.flatten()]).long().unique()
    index = torch.searchsorted(values, labels[:, 0].long().contiguous())
    one_hot = F.one_hot(index, len(values)).movedim(-1, 1).to(displacement.dtype)
    # Outside the image every structure is 0; then argmax takes the first, the background.
    return values[warp(one_hot, displacement).argmax(1, keepdim=True)].to(labels.dtype)

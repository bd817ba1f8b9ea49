"""One table for every lesson: what each displacement does to a pair, the identity always in it.

And what it takes to say that one method is better than another: the same table over many cases,
and the differences between two methods case by case.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wilcoxon
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from course_lib.datasets import Pair
from course_lib.metrics import (
    correlation,
    dice,
    endpoint_error,
    folding_fraction,
    hausdorff95,
    sdlogj,
)
from course_lib.spatial import warp
from course_lib.validation import (
    require_callable,
    require_displacement,
    require_finite,
    require_labels,
    require_numbers,
    require_option,
    require_same,
    require_whole,
)

RECORDED = ("task2d",)  # what :func:`recorded` knows, files of course_lib/data

Method = Callable[[Tensor, Tensor], Tensor]
"""What is evaluated: ``(moving, fixed) -> displacement``. It sees the images, never the labels."""


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
        return _as_text(self._cells())

    def _repr_html_(self) -> str:
        return _as_html(self._cells())


def _as_text(cells: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers to the right."""
    name_width, *widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(name_width), *map(str.rjust, numbers, widths)]).rstrip()
        for name, *numbers in cells
    )


def _as_html(cells: Sequence[Sequence[str]]) -> str:
    head, *body = cells
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in values)}</tr>"
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
    The endpoint error, SDlogJ and the folding count inside the fixed labels where these are known.

    Args:
        displacements: ``{method: (B, D, *spatial)}``, in voxels.
        pair: the images, and what is known about them.
        structures: ``{label: name}`` of the structures whose overlap is reported; all labels but 0
            if None.

    Returns:
        A :class:`Table` with the columns correlation, Dice of each structure and the mean of their
        Hausdorff distances (labels known; infinite if a structure was lost), endpoint error (truth
        known), SDlogJ, and folding in percent. Distances are in mm, or in voxels if the spacing is
        unknown.

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
    unit = "voxels" if pair.spacing is None else "mm"
    row = {"correlation": correlation(warp(pair.moving, displacement), pair.fixed).mean()}
    if structures and pair.fixed_labels is not None and pair.moving_labels is not None:
        both = warp_labels(pair.moving_labels, displacement), pair.fixed_labels
        overlap = dice(*both, list(structures)).nanmean(0)
        row |= {f"Dice {name}": d for name, d in zip(structures.values(), overlap, strict=True)}
        row[f"HD95 ({unit})"] = hausdorff95(*both, pair.spacing, list(structures)).nanmean()
    if pair.displacement is not None:
        error = endpoint_error(displacement, pair.displacement, pair.spacing, mask)
        row[f"error ({unit})"] = error.mean()
    row["SDlogJ"] = sdlogj(displacement, mask).mean()
    row["folding (%)"] = 100 * folding_fraction(displacement, mask).mean()
    return {name: float(value) for name, value in row.items()}


@dataclass(frozen=True)
class Cases:
    """One :class:`Table` for each case; shown as mean ± standard deviation over the cases.

    Attributes:
        tables: ``{case: table}``, all with the same rows and columns. Fields that took long to
            compute go in by hand: ``Cases({name: table(fields, pair), …})``.
    """

    tables: dict[str, Table]

    def __post_init__(self) -> None:
        """Refuse tables that do not belong together."""
        if not self.tables:
            raise ValueError("tables: expected at least one case, got none")
        for name, other in self.tables.items():
            if (list(other.rows), other.columns) != (self.methods, self.columns):
                raise ValueError(f"tables[{name!r}]: other methods or columns than the first case")

    @property
    def _first(self) -> Table:
        return next(iter(self.tables.values()))

    @property
    def methods(self) -> list[str]:
        """The names of the rows, in order; the identity first."""
        return list(self._first.rows)

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return self._first.columns

    def values(self, method: str, column: str) -> NDArray[np.float64]:
        """One number a case, in order: ``(N,)``."""
        for what, name, known in (
            ("method", method, self.methods),
            ("column", column, self.columns),
        ):
            if name not in known:
                raise ValueError(f"{what}: expected one of {known}, got {name!r}")
        return np.array([rows[method][column] for rows in self.tables.values()])

    def compare(self, first: str, second: str, column: str) -> "Comparison":
        """``first − second`` in one column, case by case: :func:`paired_comparison`."""
        pair = self.values(first, column), self.values(second, column)
        return paired_comparison(*pair, name=f"{first} minus {second}, {column}")

    def _cells(self) -> list[list[str]]:
        count = len(self.tables)
        head = [f"{count} cases, mean ± sd" if count > 1 else "1 case", *self.columns]
        return [head] + [
            [name, *(_mean_and_spread(self.values(name, column)) for column in self.columns)]
            for name in self.methods
        ]

    def __repr__(self) -> str:
        """Columns under one another."""
        return _as_text(self._cells())

    def _repr_html_(self) -> str:
        return _as_html(self._cells())


def _mean_and_spread(values: NDArray[np.float64]) -> str:
    """``0.912 ± 0.013``; NaN (nothing to measure) is left out and counted, infinity is not."""
    known = values[~np.isnan(values)]
    count = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    if len(known) < 2 or np.isinf(known).any():
        return f"{known.mean() if len(known) else np.nan:.3f}{count}"
    return f"{known.mean():.3f} ± {known.std(ddof=1):.3f}{count}"


def over_cases(
    methods: Mapping[str, Method],
    pairs: Mapping[str, Pair],
    structures: Mapping[int, str] | None = None,
    *,
    progress: bool = False,
) -> Cases:
    """Run every method on every pair and measure: the same table for each.

    Args:
        methods: ``{name: (moving, fixed) -> displacement}``. A method gets the two images and
            nothing else, so that it cannot look at labels or truth.
        pairs: ``{case: pair}``, not those that the methods were tuned on.
        structures: as for :func:`table`; every label of any pair but 0 if None.
        progress: whether to show a progress bar.

    Returns:
        The :class:`Cases`, the identity always in them.

    Raises:
        TypeError, ValueError: on what is no dict of functions or no dict of pairs, or as
            :func:`table` does.

    Taught in lesson 15.
    """
    if not isinstance(methods, Mapping):
        raise TypeError(f"methods: expected a dict, got {type(methods).__name__}")
    for name, method in methods.items():
        require_callable(f"methods[{name!r}]", method)
    if not isinstance(pairs, Mapping):
        raise TypeError(f"pairs: expected a dict {{case: Pair}}, got {type(pairs).__name__}")
    if not pairs:
        raise ValueError("pairs: expected at least one, got none")
    for case, pair in pairs.items():
        if not isinstance(pair, Pair):
            raise TypeError(f"pairs[{case!r}]: expected a Pair, got {type(pair).__name__}")
    if structures is None:
        structures = _all_structures(pairs.values())
    tables = {}
    for case, pair in tqdm(pairs.items(), disable=not progress, leave=False):
        fields = {name: method(pair.moving, pair.fixed) for name, method in methods.items()}
        tables[case] = table(fields, pair, structures)
    return Cases(tables)


def _all_structures(pairs: Iterable[Pair]) -> dict[int, str]:
    """Every label but 0 that the fixed image of any pair has."""
    found = {
        value
        for pair in pairs
        if pair.fixed_labels is not None
        for value in pair.fixed_labels.unique().tolist()
    }
    return {value: f"label {value}" for value in sorted(found - {0})}


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same cases, as differences; print it to read it.

    Attributes:
        differences: ``(N,)``, first − second, a case each.
        mean: their mean.
        low, high: 95 % bootstrap interval of the mean.
        p_value: of Wilcoxon's signed-rank test, two-sided. Cases without a difference do not count
            in it; with ``n`` cases that differ it is never below ``2 / 2**n``.
        name: what was subtracted from what.
    """

    differences: NDArray[np.float64]
    mean: float
    low: float
    high: float
    p_value: float
    name: str = "first minus second"

    def __repr__(self) -> str:
        """The numbers, how many cases they come from, and how small p could have been."""
        up, down = int((self.differences > 0).sum()), int((self.differences < 0).sum())
        count, differ = len(self.differences), up + down
        equal = f", {count - differ} equal" if differ < count else ""
        lines = [
            self.name,
            f"  mean difference  {self.mean:+.4f}",
            f"  95 % interval    {self.low:+.4f} to {self.high:+.4f}",
            f"  Wilcoxon         p = {self.p_value:.2g}, from {count} cases: "
            f"{up} up, {down} down{equal}",
        ]
        if 0 < differ < 6:
            cases = "1 case" if differ == 1 else f"{differ} cases"
            if equal:
                cases += " that differs" if differ == 1 else " that differ"
            lines.append(f"  {cases} cannot give p below {2 / 2**differ:.2g}, whatever happens")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def paired_comparison(
    first: ArrayLike,
    second: ArrayLike,
    *,
    name: str = "first minus second",
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Whether one method scores higher than another on the same cases, and by how much.

    Cases differ far more than methods do: what is looked at are the differences, case by case. The
    interval is the percentile bootstrap of their mean; with few cases it is too narrow (for five,
    it holds the true mean in some 83 of 100 studies, not in 95). The test takes the cases for
    independent: two scans of one person are one case.

    Args:
        first, second: ``(N,)``, a number a case, in the same order.
        name: what is compared, for the text.
        resamples: how many samples the bootstrap draws.
        seed: of its random numbers.

    Returns:
        The :class:`Comparison`; its p-value is 1 where all differences are 0. Cases that do not
        differ count for the mean and the interval, but not for the p-value.

    Raises:
        TypeError, ValueError: on what is no list of finite numbers, unequal or fewer than two.

    Example:
        >>> paired_comparison([0.90, 0.80, 0.86, 0.83], [0.89, 0.78, 0.83, 0.79]).p_value
        0.125

    Source: Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1(6), 1945;
    Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7(1), 1979.
    Taught in lesson 15.
    """
    ours, theirs = _require_scores("first", first), _require_scores("second", second)
    if len(ours) != len(theirs):
        raise ValueError(f"second: expected as many cases as first, {len(ours)}; got {len(theirs)}")
    if not isinstance(name, str):
        raise TypeError(f"name: expected a text, got {name!r}")
    require_whole("resamples", resamples, 100)
    differences = ours - theirs
    rng = np.random.default_rng(require_whole("seed", seed, 0))
    draws = rng.integers(len(differences), size=(resamples, len(differences)))
    low, high = np.percentile(differences[draws].mean(1), [2.5, 97.5])
    p_value = 1.0
    if differences.any():
        with warnings.catch_warnings():  # ties: SciPy says that it takes the normal distribution
            warnings.simplefilter("ignore")
            p_value = float(wilcoxon(differences).pvalue)
    return Comparison(
        differences, float(differences.mean()), float(low), float(high), p_value, name
    )


def _require_scores(name: str, scores: object) -> NDArray[np.float64]:
    """Numbers of at least two cases, finite: a lost structure is reported, not averaged."""
    values = require_numbers(name, scores, "numbers, one a case")
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name}: expected two cases or more, (N,), got shape {values.shape}")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name}: expected finite numbers, got {bad} NaN or infinite; name those")
    return values


def recorded(name: str) -> dict[str, Any]:
    """What a long benchmark measured, kept so that a lesson can quote it without running it.

    Args:
        name: ``"task2d"``, as ``python -m benchmarks.task --record`` wrote it: the 2D pairs of
            :mod:`course_lib.datasets.brains`, other libraries' methods beside ours.

    Returns:
        ``date``, ``machine`` and ``threads`` (on what it ran); ``seeds`` of the pairs; ``rows``:
        ``{method: {"error_mm", "dice_gray", "dice", "folding_percent", "seconds"}}``, means over
        the pairs, and the median of the seconds; and ``oasis``, the same methods on slices of real
        people, whose truth is unknown: ``{method: {"lncc", "folding_percent", "seconds"}}``. A
        method that did not run has no row.

    Raises:
        ValueError: if there is no such name.

    Taught in lesson 30.
    """
    require_option("name", name, RECORDED)
    path = files("course_lib.data") / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


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

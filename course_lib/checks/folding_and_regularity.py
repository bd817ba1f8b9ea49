"""Checks of exercise 14: determinants, folds, a 3D determinant to mend, diffusion, a weight."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from course_lib import losses, metrics, spatial
from course_lib.checks.compare import Problem, compare
from course_lib.checks.core import Check, Goal, Mistake, finite_number
from course_lib.checks.messages import ordinal
from course_lib.checks.reading import mentions
from course_lib.checks.running import call, unwrapped
from course_lib.checks.task import Function, Outcome
from course_lib.datasets import Pair, brains, halve
from course_lib.optimise import refine

SLUG = "14_folding_and_regularity"

Slopes = tuple[Tensor, ...]


# --- six numbers ---------------------------------------------------------------------------------


Clue = tuple[float, str]


class _Numbers(Check):
    """A prediction of several numbers, each judged by itself.

    ``known`` holds for each number the wrong values that are known, with what to say of them;
    ``otherwise`` what to say of any other.
    """

    known: Sequence[Sequence[Clue]] = ()
    otherwise: Mapping[int, str] = {}

    def _worded(self, problem: Problem, answer: Function, run: Any) -> str:
        if problem.stage != "values":
            return super()._worded(problem, answer, run)
        pairs = list(zip(run.got, run.expected, strict=True))
        wrong = [i for i, pair in enumerate(pairs) if compare(*pair, self.atol)]
        named = ", ".join(ordinal(i) for i in wrong)
        named = " and ".join(named.rsplit(", ", 1))
        rest = "" if len(wrong) == len(pairs) else "; the others are"
        are = "number is" if len(wrong) == 1 else "numbers are"
        clues = [
            f"{ordinal(i).capitalize()}: {clue}" for i in wrong if (clue := self._clue(i, run))
        ]
        return "\n".join([f"the {named} {are} not right{rest}.", *clues])

    def _clue(self, i: int, run: Any) -> str:
        """What is known of this wrong value."""
        got = float(run.got[i])
        close = (
            text for value, text in self.known[i] if abs(got - value) < 0.006 * abs(value) + 1e-6
        )
        return next(close, self.otherwise.get(i, ""))


def _six() -> tuple[float, ...]:
    return 0.5, -1, 0.75, 1, 0.125, 19


_AS_MAP = "it is given as φ itself: J is its derivative, with no identity to add."
_AS_FIELD = "it is given as a displacement: φ = x + u, so J = I + ∂u/∂x."

six_numbers = _Numbers(
    SLUG,
    "six_numbers",
    _six,
    [lambda: ()],
    hints=[
        "J has ∂φ_a/∂x_b in row a, column b. For a displacement add the identity to ∂u/∂x.",
        "det J = J_00·J_11 − J_01·J_10. In 3D, a scaling by s along all axes gives s³.",
        "The wave: ∂φ_1/∂j = 1 + a·k·cos(k j) with k = 2π over the wavelength. Its smallest value "
        "is 1 − a·k: for which wavelengths is that above 0?",
    ],
)
six_numbers.known = (
    [
        (3.75, _AS_MAP),
        (2.25, "the determinant multiplies the diagonal, 2 and 1/4; it does not add."),
        (8, "the determinant multiplies the diagonal, 2 and 1/4; it does not divide."),
        (2, "that is the determinant of the inverse. Asked is what φ makes of one voxel."),
    ],
    [
        (1, "right size; its sign is lost. (i, j) → (j, i) turns a voxel over."),
        (0, "J = [[0, 1], [1, 0]]. Was the identity added, or the diagonal taken alone?"),
    ],
    [
        (-0.25, _AS_FIELD),
        (0.25, _AS_FIELD),
        (1.25, "the two products are subtracted, J_00·J_11 − J_01·J_10."),
        (2.25, "u_0 depends on j: 0.5 stands beside the diagonal, not on it."),
        (1, "that is the diagonal alone; J_01·J_10 is to be subtracted."),
    ],
    [
        (4, _AS_FIELD),
        (-1, "J = −I has two entries of −1 on its diagonal; their product is positive."),
        (9, "1 − 2, not 1 + 2, stands on the diagonal."),
    ],
    [
        (0.25, "this one is in 3D: all three edges of a voxel become half as long."),
        (0.5, "that is one edge; all three edges of a voxel become half as long."),
        (8, "that is the determinant of the inverse. Asked is what φ makes of one voxel."),
        (3.375, _AS_MAP),
    ],
    [
        (18, "it folds a little: 3·2π/18 is above 1. Round the other way."),
        (18.85, "near the border itself, 6π; asked is the next whole number that does not fold."),
        (9.425, "k is 2π over the wavelength, not π over it."),
        (9, "k is 2π over the wavelength, not π over it."),
        (10, "k is 2π over the wavelength, not π over it."),
        (3, "that is the amplitude. The smallest determinant is 1 − a·k, k = 2π/wavelength."),
        (20, "it does not fold, but it is not the smallest such wavelength."),
    ],
)
six_numbers.otherwise = {
    5: "the smallest determinant is 1 − a·k, k = 2π/wavelength, in whole voxels."
}


# --- the determinant -----------------------------------------------------------------------------


_DOUBLE = (
    "Likely cause: NumPy, whose mean() and constants are float64, or .double(). End with .float()."
)
_WHOLE = "Whole numbers: `//`, or a sum or a comparison that was not divided. A fraction needs `/`."


class _Fields(Check):
    """A check of a function of fields, which knows what goes wrong with these."""

    space = "(2, 3)"  # the axes of space, as an argument
    scalar = ""  # what to say of a Python number

    def _worded(self, problem: Problem, answer: Function, run: Any) -> str:
        if problem.stage == "dtype":
            name = str(getattr(run.got, "dtype", ""))
            cause = _DOUBLE if "float64" in name else _WHOLE if self.scalar else ""
            if cause:
                problem = Problem("dtype", f"{problem.text.splitlines()[0]}\n{cause}")
        if problem.stage == "type" and isinstance(run.got, (int, float)) and self.scalar:
            problem = Problem("type", f"{problem.text.splitlines()[0]}\n{self.scalar}")
        return super()._worded(problem, answer, run)

    def _explain(self, error: Exception, answer: Function, inputs: str, note: str) -> Outcome:
        outcome = super()._explain(error, answer, inputs, note)
        if "torch.gradient expected each dimension size" not in str(error):
            return outcome
        clue = f"Here: torch.gradient(displacement, dim={self.space})."
        return outcome._replace(text=f"{outcome.text}\n{clue}")


def _field(seed: int, *shape: int, size: float = 1.5, sigma: float = 0.7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * spatial.smooth(torch.randn(*shape, generator=generator), sigma)


def _small_field() -> tuple[Tensor]:
    return (_field(141, 1, 2, 3, 4, size=3.0),)


def _two_fields() -> tuple[Tensor]:
    return (_field(142, 2, 2, 6, 9, size=3.0),)


def _slopes(u: Tensor) -> Slopes:
    """∂u_0/∂i, ∂u_0/∂j, ∂u_1/∂i, ∂u_1/∂j by the course's differences."""
    i, j = torch.gradient(u, dim=(2, 3))
    return i[:, 0], j[:, 0], i[:, 1], j[:, 1]


_EYE = (1.0, 0.0, 0.0, 1.0)


def _slopes_of_channels(u: Tensor) -> Slopes:
    """Slopes along axes 1 and 2 of the tensor."""
    c, i = torch.gradient(u, dim=(1, 2))
    return c[:, 0], i[:, 0], c[:, 1], i[:, 1]


def _second_order(u: Tensor) -> Slopes:
    i, j = torch.gradient(u, dim=(2, 3), edge_order=2)
    return i[:, 0], j[:, 0], i[:, 1], j[:, 1]


def _cut(displacement: Tensor) -> Tensor:
    """Forward differences where there are any along both axes."""
    i, j = displacement.diff(dim=2)[..., :-1], displacement.diff(dim=3)[:, :, :-1]
    return _det((i[:, 0], j[:, 0], i[:, 1], j[:, 1]))


def _det(slopes: Slopes) -> Tensor:
    a, b, c, d = slopes
    return (1 + a) * (1 + d) - b * c


def _differences(u: Tensor, mode: str) -> Slopes:
    """The four slopes with the border repeated (``same``), wrapped or zero, or by one side."""
    found = []
    for channel, dim in ((0, 1), (0, 2), (1, 1), (1, 2)):
        x = u[:, channel]
        n = x.shape[dim]
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, n - 1, 1)
        before, after = {
            "same": (first, last),
            "wrap": (last, first),
            "forward": (first, last),
            "backward": (first, last),
            "forward again": (first, 2 * last - x.narrow(dim, n - 2, 1)),
            "backward again": (2 * first - x.narrow(dim, 1, 1), last),
            "zeros": (0 * first, 0 * last),
        }[mode]
        later = torch.cat([x.narrow(dim, 1, n - 1), after], dim)
        earlier = torch.cat([before, x.narrow(dim, 0, n - 1)], dim)
        pairs = {"forward": later - x, "backward": x - earlier}
        found.append(pairs.get(mode.split()[0], (later - earlier) / 2))
    return tuple(found)


def _in_units(u: Tensor) -> Slopes:
    """Slopes over distances of grid_sample's units, the displacement in voxels."""
    spacing = tuple(2 / (n - 1) for n in u.shape[2:])
    i, j = torch.gradient(u, spacing=spacing, dim=(2, 3))
    return i[:, 0], j[:, 0], i[:, 1], j[:, 1]


def _without_border(u: Tensor) -> Slopes:
    """Slopes that stay 0 where a neighbor is missing."""
    found = []
    for slope, dim in zip(_slopes(u), (1, 2, 1, 2), strict=True):
        kept = slope.clone()
        kept.select(dim, 0).zero_()
        kept.select(dim, -1).zero_()
        found.append(kept)
    return tuple(found)


def _no_identity(displacement: Tensor) -> Tensor:
    a, b, c, d = _slopes(displacement)
    return a * d - b * c


def _plus(displacement: Tensor) -> Tensor:
    a, b, c, d = _slopes(displacement)
    return (1 + a) * (1 + d) + b * c


def _ones_everywhere(displacement: Tensor) -> Tensor:
    a, b, c, d = _slopes(displacement)
    return (1 + a) * (1 + d) - (1 + b) * (1 + c)


def _diagonal(displacement: Tensor) -> Tensor:
    a, _, _, d = _slopes(displacement)
    return (1 + a) * (1 + d)


def _one_plus_det(displacement: Tensor) -> Tensor:
    return 1 + _no_identity(displacement)


def _same_channel(displacement: Tensor) -> Tensor:
    a, _, c, d = _slopes(displacement)
    return (1 + a) * (1 + d) - c * d


def _divergence(displacement: Tensor) -> Tensor:
    a, _, _, d = _slopes(displacement)
    return 1 + a + d


def _not_halved(displacement: Tensor) -> Tensor:
    """Differences over two voxels, not divided by 2; the border is right."""
    found = []
    for slope, dim in zip(_slopes(displacement), (1, 2, 1, 2), strict=True):
        doubled = 2 * slope
        n = slope.shape[dim]
        for at in (0, n - 1):
            doubled.select(dim, at).div_(2)
        found.append(doubled)
    return _det(tuple(found))


jacobian_determinant = _Fields(
    SLUG,
    "jacobian_determinant",
    spatial.jacobian_determinant,
    [_small_field, _two_fields],
    mistakes=[
        Mistake(
            _no_identity,
            "this is the determinant of ∂u/∂x; the identity is missing.\n"
            "φ(x) = x + u(x), so the diagonal of J is 1 + ∂u_0/∂i and 1 + ∂u_1/∂j. Where u is\n"
            "constant nothing changes its area, and the result must be 1, not 0.",
        ),
        Mistake(
            _one_plus_det,
            "this adds 1 to the determinant of ∂u/∂x.\n"
            "The identity belongs inside: det(I + ∂u/∂x), with 1 on both diagonal entries.",
        ),
        Mistake(
            _ones_everywhere,
            "this adds 1 to all four entries of ∂u/∂x.\n"
            "The identity has ones on the diagonal only.",
        ),
        Mistake(
            lambda displacement: _det(
                tuple(s + e for s, e in zip(_slopes(displacement), _EYE, strict=True))
            ),
            "the identity is added twice.\n"
            "Either difference φ = x + u, or add 1 to the diagonal of the slopes of u; not both.",
        ),
        Mistake(
            lambda displacement: _det(_slopes_of_channels(displacement)),
            "these are differences between the channels, and along the rows.\n"
            "displacement is (B, 2, H, W): the axes of space are dim=(2, 3).",
        ),
        Mistake(
            lambda displacement: _det(_second_order(displacement)),
            "right inside; at the border this extrapolates from three voxels.\n"
            "Take the difference to the only neighbor there is: edge_order=1, the default.",
        ),
        Mistake(
            _cut,
            "forward differences, and the last row and column are missing.\n"
            "Inside take (u(i+1) − u(i−1))/2; at the border the difference to the only neighbor:\n"
            "so every voxel gets a value. torch.gradient does it.",
        ),
        Mistake(
            _plus,
            "the two products are added.\ndet J = J_00·J_11 − J_01·J_10.",
        ),
        Mistake(
            _diagonal,
            "this is the product of the diagonal alone.\n"
            "det J = J_00·J_11 − J_01·J_10: the second product counts where the field shears.",
        ),
        Mistake(
            _divergence,
            "this comes to 1 + ∂u_0/∂i + ∂u_1/∂j, right for small slopes only.\n"
            "det J = J_00·J_11 − J_01·J_10 has products of slopes too. If you have two products:\n"
            "the second one is ∂u_0/∂j·∂u_1/∂i, each component along the *other* axis.",
        ),
        Mistake(
            lambda displacement: _det(_slopes(displacement.flip(1))),
            "components and axes do not belong together.\n"
            "J_00 is 1 + ∂u_0/∂i: channel 0 along axis 2 of the tensor, the rows. Likely\n"
            "cause: channels taken as (x, y), or the two derivatives swapped.",
        ),
        Mistake(
            lambda displacement: _det(_slopes(-displacement)),
            "this is the determinant of I − ∂u/∂x.\n"
            "φ(x) = x + u(x). Likely cause: differences taken backwards, u(i−1) − u(i+1).",
        ),
        Mistake(
            lambda displacement: _det(_differences(displacement, "forward")),
            "these are forward differences, u(i+1) − u(i), with 0 in the last row and column.\n"
            "Inside take (u(i+1) − u(i−1))/2; at the border the difference to the only neighbor.",
        ),
        Mistake(
            lambda displacement: _det(_differences(displacement, "backward")),
            "these are backward differences, u(i) − u(i−1), with 0 in the first row and column.\n"
            "Inside take (u(i+1) − u(i−1))/2; at the border the difference to the only neighbor.",
        ),
        Mistake(
            lambda displacement: _det(_differences(displacement, "forward again")),
            "these are forward differences, u(i+1) − u(i), the last one repeated at the end.\n"
            "Inside take (u(i+1) − u(i−1))/2; at the border the difference to the only neighbor.",
        ),
        Mistake(
            lambda displacement: _det(_differences(displacement, "backward again")),
            "these are backward differences, u(i) − u(i−1), the first one repeated at the start.\n"
            "Inside take (u(i+1) − u(i−1))/2; at the border the difference to the only neighbor.",
        ),
        Mistake(
            lambda displacement: _det(_slopes(displacement / 2)),
            "all slopes are half of what they should be.\n"
            "torch.gradient has divided by the two voxels already: no further / 2, no spacing=2.",
        ),
        Mistake(
            lambda displacement: _det(_in_units(displacement)),
            "the distances are in units from −1 to 1, the displacement is in voxels.\n"
            "Both in voxels: torch.gradient without spacing.",
        ),
        Mistake(
            lambda displacement: -_no_identity(displacement),
            "the identity is missing, and the two products are in the wrong order.\n"
            "φ(x) = x + u(x), so the diagonal of J is 1 + ∂u_0/∂i and 1 + ∂u_1/∂j;\n"
            "det J = J_00·J_11 − J_01·J_10.",
        ),
        Mistake(
            _same_channel,
            "the second product holds ∂u_1/∂i·∂u_1/∂j, the same component twice.\n"
            "It is ∂u_0/∂j·∂u_1/∂i: one slope of each component, along the *other* axis.",
        ),
        Mistake(
            lambda displacement: displacement.new_zeros(displacement[:, 0].shape),
            "this is 0 everywhere.\n"
            "Without the identity, and with ∂u_0/∂i·∂u_1/∂j in both products, nothing is left.\n"
            "det J = (1 + ∂u_0/∂i)·(1 + ∂u_1/∂j) − ∂u_0/∂j·∂u_1/∂i.",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(displacement)[0],
            "right values for the first item, but the batch axis is gone.\n"
            "Likely cause: displacement[0], or [0] at the end. The result is (B, H, W).",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(displacement[:1]),
            "this is the first item only.\n"
            "Likely cause: displacement[0]; keep the batch axis: displacement[:, 0] is the first\n"
            "*component* of every item.",
        ),
        Mistake(
            _not_halved,
            "the differences over two voxels are not divided by 2.\n"
            "The slope is the difference per voxel: (u(i+1) − u(i−1))/2.",
        ),
        Mistake(
            lambda displacement: _det(_differences(displacement, "same")),
            "right inside; in the first and last row and column the slopes are halved.\n"
            "There is one neighbor only: its difference is over one voxel, not over two.\n"
            "Likely cause: padding with the border value.",
        ),
        Mistake(
            lambda displacement: _det(_differences(displacement, "wrap")),
            "right inside; at the border, the neighbor is taken from the opposite side.\n"
            "Likely cause: roll(). Take the difference to the only neighbor there is.",
        ),
        Mistake(
            lambda displacement: _det(_differences(displacement, "zeros")),
            "right inside; beyond the border this reads zeros.\n"
            "Likely cause: padding with 0, or a convolution that does. Take the difference to the\n"
            "only neighbor there is.",
        ),
        Mistake(
            lambda displacement: _det(_without_border(displacement)),
            "right inside; where a neighbor is missing the slope is left at 0.\n"
            "Take the difference to the only neighbor there is.",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(displacement).abs(),
            "this is the size of the determinant; its sign is gone.\n"
            "Negative is what a fold looks like: keep it.",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(displacement)[:, None],
            "right values, with a channel axis too many.\nThe result is (B, H, W).",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(
                displacement[:1].expand_as(displacement)
            ),
            "every item of the batch has the determinant of the first.\n"
            "Likely cause: displacement[0]; keep the batch axis.",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(displacement).clamp(min=0),
            "negative determinants are clipped to 0.\nThey tell how deep a fold is: keep them.",
        ),
    ],
    hints=[
        "Four slopes: ∂u_0/∂i, ∂u_0/∂j, ∂u_1/∂i, ∂u_1/∂j. torch.gradient(displacement, dim=(2, 3)) "
        "gives central differences, one-sided at the border, along both axes.",
        "It returns two tensors like displacement: slopes along i and slopes along j. "
        "along_j[:, 0] is ∂u_0/∂j, of shape (B, H, W).",
        "(1 + ∂u_0/∂i)·(1 + ∂u_1/∂j) − ∂u_0/∂j·∂u_1/∂i.",
    ],
)


# --- the fraction that folds ---------------------------------------------------------------------


def _folding_batch() -> tuple[Tensor, Tensor]:
    """Two fields: one with folds, one whose left columns collapse to determinant 0 exactly."""
    field = _field(143, 2, 2, 8, 11, size=4.0)
    field[1] = 0
    field[1, 1, :, :5] = -torch.arange(5.0)
    field[1, 1, :, 5:] = -4.0
    field[1, 1, 6:, 7:] = torch.tensor([-3.0, -6.0, -9.0, -12.0])
    generator = torch.Generator().manual_seed(144)
    mask = torch.rand(2, 1, 8, 11, generator=generator) < torch.tensor([0.7, 0.45]).view(2, 1, 1, 1)
    return field, mask


def _one_fold() -> tuple[Tensor, Tensor]:
    field = torch.zeros(1, 2, 3, 6)
    field[0, 1] = torch.tensor([0.0, 0, -1, -2, -2, -2])
    mask = torch.ones(1, 1, 3, 6, dtype=torch.bool)
    mask[..., 5] = False
    return field, mask


def _nearly_flat() -> tuple[Tensor, Tensor]:
    """Columns squeezed to 1/4096 of their width, which is no fold, before a real fold."""
    phi = torch.tensor([0.0, 1, 2, 3, 4]) / 4096
    phi = torch.cat([phi, torch.tensor([3.0, 2, 1])])
    field = torch.zeros(1, 2, 4, 8)
    field[0, 1] = phi - torch.arange(8.0)
    mask = torch.ones(1, 1, 4, 8, dtype=torch.bool)
    mask[..., 3, :3] = False
    return field, mask


class _Fraction(_Fields):
    """Sees whether the learner's own determinant, which the answer calls, is to blame."""

    scalar = "Return one number for each item of the batch: a tensor (B,), without float()."

    def _judge(self, answer: Function) -> Outcome:
        outcome = super()._judge(answer)
        if outcome.name == "wrong" and self._determinant_is_wrong(answer):
            text = (
                "it calls your jacobian_determinant, which gives wrong determinants here.\n"
                "Run the cell below its check (or mend it), then this check again."
            )
            return Outcome("wrong", "values", text)
        return outcome

    def _determinant_is_wrong(self, answer: Function) -> bool:
        """Whether a jacobian_determinant that the answer calls fails on this check's fields."""
        name = "jacobian_determinant"
        theirs = getattr(unwrapped(answer), "__globals__", {}).get(name)
        if not callable(theirs) or not mentions(answer, name):
            return False
        try:
            for make in self.inputs:
                field, _ = call(make)
                expected = spatial.jacobian_determinant(field)
                got = call(theirs, (field.clone(),))
                if not isinstance(got, Tensor) or got.shape != expected.shape:
                    return True
                if compare(got.detach().to(expected.dtype), expected, 100 * self.atol):
                    return True
        except Exception:  # whatever a learner's code may raise
            return True
        return False


def _folded(displacement: Tensor) -> Tensor:
    return spatial.jacobian_determinant(displacement) <= 0


def _strictly(displacement: Tensor, mask: Tensor) -> Tensor:
    below = (spatial.jacobian_determinant(displacement) < 0) & mask[:, 0]
    return below.sum((1, 2)) / mask.sum((1, 2, 3))


def _count(displacement: Tensor, mask: Tensor) -> Tensor:
    return (_folded(displacement) & mask[:, 0]).sum((1, 2)).float()


def _over_the_image(displacement: Tensor, mask: Tensor) -> Tensor:
    return (_folded(displacement) & mask[:, 0]).float().mean((1, 2))


def _zeroed(displacement: Tensor, mask: Tensor) -> Tensor:
    """Folds after the determinant was multiplied with the mask."""
    return (spatial.jacobian_determinant(displacement) * mask[:, 0] <= 0).float()


def _broadcast(displacement: Tensor, mask: Tensor) -> Tensor:
    """``folded & mask`` of (B, H, W) and (B, 1, H, W): every item's folds under every mask."""
    return (_folded(displacement) & mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def _below(limit: float) -> Function:
    def fraction(displacement: Tensor, mask: Tensor) -> Tensor:
        small = (spatial.jacobian_determinant(displacement) <= limit) & mask[:, 0]
        return small.sum((1, 2)) / mask.sum((1, 2, 3))

    return fraction


def _unmasked(displacement: Tensor, mask: Tensor) -> Tensor:
    return _folded(displacement).sum((1, 2)) / mask.sum((1, 2, 3))


def _joint(displacement: Tensor, mask: Tensor) -> Tensor:
    return _folded(displacement)[mask[:, 0]].float().mean()


folding_fraction = _Fraction(
    SLUG,
    "folding_fraction",
    metrics.folding_fraction,
    [_one_fold, _nearly_flat, _folding_batch],
    mistakes=[
        Mistake(
            _strictly,
            "a determinant of exactly 0 is not counted.\n"
            "There the voxel is flattened to a line: a fold too. Count det J ≤ 0.",
        ),
        Mistake(
            _below(1e-3),
            "small positive determinants are counted too.\n"
            "They shrink a voxel without folding it: the limit is 0 itself, det J ≤ 0.",
        ),
        Mistake(
            _unmasked,
            "the folds of the whole image are divided by the voxels of the mask.\n"
            "Two likely causes: the mask is missing above the fraction line; or it says\n"
            "`… <= 0 & mask[:, 0]`, where & comes before <=. Write (… <= 0) & mask[:, 0].",
        ),
        Mistake(
            lambda displacement, mask: (
                (_folded(displacement) & mask[:, 0]).sum((1, 2)) / mask.sum()
            ),
            "each item's folds are divided by the mask's voxels of the whole batch.\n"
            "Each item has a mask of its own: mask.sum((1, 2, 3)).",
        ),
        Mistake(
            lambda displacement, mask: (
                (_folded(displacement) & mask[0, 0]).sum((1, 2)) / mask[0, 0].sum()
            ),
            "the first item's mask is used for every item.\n"
            "mask[0, 0] is one mask; mask[:, 0] holds one for each item, (B, H, W).",
        ),
        Mistake(
            lambda displacement, mask: (_folded(displacement) & mask[:, 0]).float().mean(),
            "this is one number for the whole batch, over all voxels of all images.\n"
            "Return (B,): for each item the folds in its mask over the voxels of its mask.",
        ),
        Mistake(
            lambda displacement, mask: (
                (_folded(displacement * mask) & mask[:, 0]).sum((1, 2)) / mask.sum((1, 2, 3))
            ),
            "the field is set to 0 outside the mask before its slopes are taken.\n"
            "That tears it at the mask's edge. Take the determinant of the field as it is; the\n"
            "mask says which voxels count.",
        ),
        Mistake(
            lambda displacement, mask: (
                mask.sum((1, 2, 3)) / (_folded(displacement) & mask[:, 0]).sum((1, 2))
            ),
            "the fraction is upside down.\nFolds over the mask's voxels.",
        ),
        Mistake(
            lambda displacement, mask: 100 * metrics.folding_fraction(displacement, mask),
            "this is in percent.\nReturn a fraction, from 0 to 1.",
        ),
        Mistake(
            _count,
            "this is the number of folded voxels.\nDivide it by the number of the mask's voxels.",
        ),
        Mistake(
            _over_the_image,
            "the folds inside the mask are divided by all voxels of the image.\n"
            "Divide by the mask's voxels, mask.sum((1, 2, 3)); zeros outside dilute a mean.",
        ),
        Mistake(
            lambda displacement, mask: metrics.folding_fraction(displacement),
            "this counts over the whole image.\nOnly voxels where the mask is True count.",
        ),
        Mistake(
            lambda displacement, mask: metrics.folding_fraction(displacement, ~mask),
            "this counts where the mask is False.\nVoxels where it is True count.",
        ),
        Mistake(
            lambda displacement, mask: 1 - metrics.folding_fraction(displacement, mask),
            "this is the fraction that does not fold.\nCount det J ≤ 0.",
        ),
        Mistake(
            lambda displacement, mask: _zeroed(displacement, mask).mean((1, 2)),
            "outside the mask the determinant becomes 0, and 0 counts as folded.\n"
            "Likely cause: determinant * mask. First ask which voxels fold, then which of these\n"
            "lie in the mask: folded & mask[:, 0].",
        ),
        Mistake(
            lambda displacement, mask: (
                _zeroed(displacement, mask).sum((1, 2)) / mask.sum((1, 2, 3))
            ),
            "outside the mask the determinant becomes 0, and 0 counts as folded: the fraction may\n"
            "even exceed 1.\n"
            "Likely cause: determinant * mask. First ask which voxels fold, then which of these\n"
            "lie in the mask: folded & mask[:, 0].",
        ),
        Mistake(
            lambda displacement, mask: (
                _folded(displacement * mask).sum((1, 2)) / mask.sum((1, 2, 3))
            ),
            "the field is set to 0 outside the mask before its slopes are taken.\n"
            "That tears it at the mask's edge. Take the determinant of the field as it is; the\n"
            "mask says which voxels count.",
        ),
        Mistake(
            _broadcast,
            "each item's folds are counted under the masks of all items.\n"
            "The determinant is (B, H, W), the mask (B, 1, H, W): together they broadcast to\n"
            "(B, B, H, W), without an error. Use mask[:, 0].",
        ),
        Mistake(
            _joint,
            "this is one number for the whole batch.\n"
            "Return (B,): sums over the axes of space only, as in .sum((1, 2)).",
        ),
        Mistake(
            lambda displacement, mask: _joint(displacement, mask).expand(len(mask)),
            "every item has the fraction of the whole batch.\n"
            "Sum over the axes of space only, as in .sum((1, 2)).",
        ),
        Mistake(
            lambda displacement, mask: metrics.folding_fraction(displacement, mask)[:, None],
            "right values, with an axis too many.\nReturn (B,), one number for each item.",
        ),
    ],
    hints=[
        "folded = jacobian_determinant(displacement) <= 0 has shape (B, H, W), as has mask[:, 0].",
        "Count the voxels where both are True, for each item, and divide by the count of mask.",
    ],
)


# --- the determinant in 3D -----------------------------------------------------------------------


def _volume_field() -> tuple[Tensor]:
    return (_field(145, 2, 3, 5, 6, 7, size=4.0),)


def _little_volume() -> tuple[Tensor]:
    return (_field(148, 1, 3, 3, 4, 5, size=4.0),)


def _expanded(
    displacement: Tensor, *, order: str = "ijk", bug: bool = False, one: float = 1.0
) -> Tensor:
    """The expansion of the exercise, with its two bugs to choose and the identity to leave out."""
    along = dict(zip("ijk", torch.gradient(displacement, dim=(2, 3, 4)), strict=True))
    x, y, z = (along[axis] for axis in order)
    taken = x if bug else z
    first = (x[:, 0] + one) * ((y[:, 1] + one) * (z[:, 2] + one) - z[:, 1] * y[:, 2])
    second = x[:, 1] * (y[:, 0] * (z[:, 2] + one) - taken[:, 0] * y[:, 2])
    third = x[:, 2] * (y[:, 0] * z[:, 1] - (y[:, 1] + one) * z[:, 0])
    return first - second + third


def _entries(displacement: Tensor) -> list[list[Tensor]]:
    """J, row by row."""
    along = torch.gradient(displacement, dim=(2, 3, 4))
    return [[along[b][:, a] + (a == b) for b in range(3)] for a in range(3)]


def _with_a_sign_turned(turned: int) -> Function:
    """One of the six products of the rule of Sarrus with the other sign."""
    orders = ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0))

    def determinant(displacement: Tensor) -> Tensor:
        J = _entries(displacement)
        result = torch.zeros_like(displacement[:, 0])
        for n, (a, b, c) in enumerate(orders):
            sign = 1 if (n < 3) != (n == turned) else -1
            result = result + sign * J[0][a] * J[1][b] * J[2][c]
        return result

    return determinant


def _ones_in_all_nine(displacement: Tensor) -> Tensor:
    J = torch.stack(torch.gradient(displacement, dim=(2, 3, 4)), 2) + 1
    return torch.linalg.det(J.permute(0, 3, 4, 5, 1, 2))


def _diagonal_of_three(displacement: Tensor) -> Tensor:
    J = _entries(displacement)
    return J[0][0] * J[1][1] * J[2][2]


def _upper_left(displacement: Tensor) -> Tensor:
    J = _entries(displacement)
    return J[0][0] * J[1][1] - J[0][1] * J[1][0]


def _forward_3d(displacement: Tensor, again: bool) -> Tensor:
    """Forward differences, at the end 0 or the last one again."""
    slopes = []
    for dim in (2, 3, 4):
        rise = displacement.diff(dim=dim)
        last = rise.narrow(dim, rise.shape[dim] - 1, 1)
        slopes.append(torch.cat([rise, last if again else 0 * last], dim))
    J = torch.stack(slopes, 2) + torch.eye(3).view(1, 3, 3, 1, 1, 1)
    return torch.linalg.det(J.permute(0, 3, 4, 5, 1, 2))


def _other_index(displacement: Tensor) -> Tensor:
    """The third product with x[:, 1] where y[:, 1] belongs."""
    x, y, z = torch.gradient(displacement, dim=(2, 3, 4))
    first = (x[:, 0] + 1) * ((y[:, 1] + 1) * (z[:, 2] + 1) - z[:, 1] * y[:, 2])
    second = x[:, 1] * (y[:, 0] * (z[:, 2] + 1) - z[:, 0] * y[:, 2])
    third = x[:, 2] * (y[:, 0] * z[:, 1] - (x[:, 1] + 1) * z[:, 0])
    return first - second + third


def _wrong_signs(displacement: Tensor) -> Tensor:
    """All three products added."""
    x, y, z = torch.gradient(displacement, dim=(2, 3, 4))
    first = (x[:, 0] + 1) * ((y[:, 1] + 1) * (z[:, 2] + 1) - z[:, 1] * y[:, 2])
    second = x[:, 1] * (y[:, 0] * (z[:, 2] + 1) - z[:, 0] * y[:, 2])
    third = x[:, 2] * (y[:, 0] * z[:, 1] - (y[:, 1] + 1) * z[:, 0])
    return first + second + third


determinant_3d = _Fields(
    SLUG,
    "determinant_3d",
    spatial.jacobian_determinant,
    [_little_volume, _volume_field],
    mistakes=[
        Mistake(
            lambda displacement: _expanded(displacement, order="jik", bug=True),
            "this still has both bugs.\n"
            "Expand the determinant on paper, column by column: x, y, z are the columns of J, so\n"
            "each product holds one entry of x, one of y and one of z. Which one does not?\n"
            "And channel 0 moves along i: which of the slopes belongs to it?",
        ),
        Mistake(
            lambda displacement: _expanded(displacement, order="jik"),
            "the wrong index is mended; the order of the axes is not.\n"
            "Channel 0 moves along i, so the 1 of the identity stands beside the slope of channel\n"
            "0 along i. In the code it stands beside x[:, 0], and x is the slope along j.",
        ),
        Mistake(
            lambda displacement: _expanded(displacement, bug=True),
            "the order of the axes is mended; the wrong index is not.\n"
            "Each product holds one entry of x, one of y and one of z. One product holds two of x.",
        ),
        Mistake(
            lambda displacement: _expanded(displacement, order="kji"),
            "axes and channels are in opposite orders: slopes along k stand for channel 0.\n"
            "That is right for channels (x, y, z); here channel 0 moves along i, the first axis.",
        ),
        Mistake(
            lambda displacement: _expanded(displacement, order="kji", bug=True),
            "axes and channels are in opposite orders, and the wrong index is still there.\n"
            "Channel 0 moves along i, the first axis. And each product holds one entry of x, one\n"
            "of y and one of z: one of them holds two of x.",
        ),
        Mistake(
            lambda displacement: _expanded(displacement, one=0.0),
            "this is the determinant of ∂u/∂x; the identity is missing.\n"
            "The diagonal is x[:, 0] + 1, y[:, 1] + 1, z[:, 2] + 1.",
        ),
        *[
            Mistake(
                _with_a_sign_turned(n),
                "one of the six products has the wrong sign.\n"
                "Written out by rows: + 00·11·22 + 01·12·20 + 02·10·21\n"
                "− 00·12·21 − 01·10·22 − 02·11·20, where 01 is J_01.",
            )
            for n in range(6)
        ],
        Mistake(
            _ones_in_all_nine,
            "this adds 1 to all nine entries of ∂u/∂x.\n"
            "The identity has ones on the diagonal only, torch.eye(3).",
        ),
        Mistake(
            _diagonal_of_three,
            "this is the product of the diagonal alone.\n"
            "The other five products count where the field shears or turns.",
        ),
        Mistake(
            _upper_left,
            "this is the determinant in 2D, of the upper left 2 × 2 entries.\n"
            "The map also moves along k: all nine entries count.",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(displacement).abs(),
            "this is the size of the determinant; its sign is gone.\n"
            "Negative is what a fold looks like: keep it.",
        ),
        Mistake(
            lambda displacement: _forward_3d(displacement, again=False),
            "these are forward differences, with 0 at the end of each axis.\n"
            "Take those of torch.gradient: central inside, one-sided at the border.",
        ),
        Mistake(
            lambda displacement: _forward_3d(displacement, again=True),
            "these are forward differences, the last one repeated at the end of each axis.\n"
            "Take those of torch.gradient: central inside, one-sided at the border.",
        ),
        Mistake(
            _other_index,
            "the third product takes x[:, 1] + 1 where y[:, 1] + 1 belongs.\n"
            "Each product holds one entry of x, one of y and one of z; the bug is in another one.",
        ),
        Mistake(
            _wrong_signs,
            "the second of the three terms is added.\n"
            "The signs of an expansion alternate: first − second + third.",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(-displacement),
            "this is the determinant of I − ∂u/∂x.\nφ(x) = x + u(x): nothing has a minus.",
        ),
        Mistake(
            lambda displacement: spatial.jacobian_determinant(
                displacement[:1].expand_as(displacement)
            ),
            "every item of the batch has the determinant of the first.\n"
            "Likely cause: displacement[0]; keep the batch axis.",
        ),
    ],
    hints=[
        "x, y and z are the columns of J (without the identity): slopes along one axis each. In a "
        "determinant every product takes one entry from each column, from different rows.",
        "One product takes two entries from x. Which column is missing there?",
        "The 1 of the identity is added to x[:, 0], y[:, 1], z[:, 2]. So x must be the slopes "
        "along the axis that channel 0 moves along.",
    ],
)


determinant_3d.space = "(2, 3, 4)"


# --- diffusion -----------------------------------------------------------------------------------


def _rough_field() -> tuple[Tensor]:
    return (_field(146, 2, 2, 5, 9, size=2.0) * torch.tensor([1.0, 2.5]).view(1, 2, 1, 1),)


def _little_field() -> tuple[Tensor]:
    return (_field(147, 1, 2, 3, 4, size=3.0),)


def _pieces(u: Tensor) -> tuple[Tensor, Tensor]:
    return u.diff(dim=2), u.diff(dim=3)


def _each(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return (i.square().mean((1, 2, 3)) + j.square().mean((1, 2, 3))) / 2


def _padded(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return (i.square().sum() + j.square().sum()) / (2 * u.numel())


def _pooled(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return torch.cat([i.flatten(), j.flatten()]).square().mean()


def _own_axis(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return (i[:, 0].square().mean() + j[:, 1].square().mean()) / 2


def _central(u: Tensor) -> Tensor:
    i, j = torch.gradient(u, dim=(2, 3))
    return (i.square().mean() + j.square().mean()) / 2


def _of_phi(u: Tensor) -> Tensor:
    return losses.diffusion(u + spatial.identity_grid(u.shape[2:], dtype=u.dtype))


def _bent(u: Tensor) -> Tensor:
    return (u.diff(n=2, dim=2).square().mean() + u.diff(n=2, dim=3).square().mean()) / 2


def _absolute(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return (i.abs().mean() + j.abs().mean()) / 2


def _summed(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return i.square().sum() + j.square().sum()


def _mean_of_sums(u: Tensor) -> Tensor:
    return _summed(u) / 2


def _cropped(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return (i[..., :-1].square() + j[:, :, :-1].square()).mean() / 2


def _square_of_mean(u: Tensor) -> Tensor:
    i, j = _pieces(u)
    return (i.mean().square() + j.mean().square()) / 2


def _rolled(u: Tensor) -> Tensor:
    i, j = u.roll(-1, 2) - u, u.roll(-1, 3) - u
    return (i.square().mean() + j.square().mean()) / 2


def _along_the_batch(u: Tensor) -> Tensor:
    return (u.diff(dim=0).square().mean() + u.diff(dim=1).square().mean()) / 2


def _across_channels(u: Tensor) -> Tensor:
    return (u.diff(dim=1).square().mean() + u.diff(dim=2).square().mean()) / 2


diffusion = _Fields(
    SLUG,
    "diffusion",
    losses.diffusion,
    [_little_field, _rough_field],
    gradient=True,
    mistakes=[
        Mistake(
            _summed,
            "this is a sum.\n"
            "A sum grows with the image, and the weight that was right for one size is wrong for\n"
            "the next. Take means: over all differences along an axis, then over the two axes.",
        ),
        Mistake(
            _mean_of_sums,
            "the two axes are averaged, but along each of them the differences are summed.\n"
            "Take the mean there too.",
        ),
        Mistake(
            lambda displacement: 2 * losses.diffusion(displacement),
            "twice too large: a sum stands where a mean is asked.\n"
            "Over which two things do you add: the two axes, or the two components? Asked are\n"
            "means over both. (Some libraries add: a matter of definition, and half the weight\n"
            "makes up for it.)",
        ),
        Mistake(
            lambda displacement: losses.diffusion(displacement).sqrt(),
            "this is a root.\nThe penalty is the mean of the squares itself.",
        ),
        Mistake(
            _absolute,
            "these are absolute differences.\nSquare them.",
        ),
        Mistake(
            lambda displacement: losses.diffusion(displacement) / 2,
            "half of what is expected: something is divided by 2 once too often.\n"
            "The mean over the components is in .mean() already; divide the two axes' sum by 2.",
        ),
        Mistake(
            lambda displacement: displacement.diff(dim=2).square().mean(),
            "these are the differences along the rows i only.\n"
            "Take those along dim=3 too, then the mean of the two numbers.",
        ),
        Mistake(
            lambda displacement: displacement.diff(dim=3).square().mean(),
            "these are the differences along the columns j only.\n"
            "Take those along dim=2 too, then the mean of the two numbers.",
        ),
        Mistake(
            _cropped,
            "differences of both axes are added voxel by voxel, and the last row and column cut\n"
            "off so that they fit.\n"
            "The two axes have different numbers of differences: take each one's mean by itself.",
        ),
        Mistake(
            _square_of_mean,
            "the mean is squared, so that rises and falls cancel before they are punished.\n"
            "First square each difference, then take the mean.",
        ),
        Mistake(
            _central,
            "these are central differences.\n"
            "They are blind to fields that alternate from voxel to voxel. Asked are forward ones,\n"
            "u(x + e_b) − u(x): displacement.diff(dim=…).",
        ),
        Mistake(
            _bent,
            "these are second differences: a bending energy.\n"
            "Diffusion takes first differences, u(x + e_b) − u(x).",
        ),
        Mistake(
            _own_axis,
            "each component is differenced along its own axis only.\n"
            "All four slopes count: both components along both axes.",
        ),
        Mistake(
            _pooled,
            "the differences of both axes are thrown together before the mean.\n"
            "An image that is not square has more of the one kind. Take the mean for each axis,\n"
            "then the mean of the two numbers.",
        ),
        Mistake(
            _padded,
            "the sums are divided by the number of voxels; there are fewer differences.\n"
            "Along an axis of n voxels there are n − 1. Likely cause: a 0 put in at the end.",
        ),
        Mistake(
            _each,
            "this is one number for each item.\nA loss is one number: the mean over the items too.",
        ),
        Mistake(
            _of_phi,
            "this is the penalty of φ = x + u, which charges the identity too.\n"
            "Difference u: doing nothing must cost nothing.",
        ),
        Mistake(
            _rolled,
            "the last row and column are compared with the first: roll() wraps around.\n"
            "Only neighbors count: displacement.diff(dim=…) has one entry less along its axis.",
        ),
        Mistake(
            lambda displacement: losses.diffusion(displacement[:1]),
            "this is the first item's penalty.\n"
            "Likely cause: displacement[0]. The mean runs over all items of the batch.",
        ),
        Mistake(
            _along_the_batch,
            "these are differences between the items of the batch, and between the channels.\n"
            "The axes of space are dimensions 2 and 3 of the tensor.",
        ),
        Mistake(
            _across_channels,
            "these are differences between the channels, and along the rows.\n"
            "The axes of space are dimensions 2 and 3 of the tensor.",
        ),
    ],
    hints=[
        "displacement.diff(dim=2) holds all differences u(x + e_0) − u(x): (B, 2, H − 1, W).",
        "Square, mean; the same for dim=3; then the mean of both.",
    ],
)


# --- a weight ------------------------------------------------------------------------------------

_DICE, _FOLDS = 0.715, 0.15
_OVERLAP, _PERCENT = "mean Dice", "folding (% of the brain)"


@lru_cache(maxsize=1)
def _colin() -> Pair:
    return halve(brains.real_pair())


@lru_cache(maxsize=16)
def _registered(weight: float) -> dict[str, float]:
    pair = _colin()
    assert pair.moving_labels is not None and pair.fixed_labels is not None  # of real_pair
    u = refine(pair.moving, pair.fixed, smoothness=0, weight=weight)
    warped = spatial.warp(pair.moving_labels, u, mode="nearest")
    folded = metrics.folding_fraction(u, pair.fixed_labels > 0)
    return {
        _OVERLAP: float(metrics.dice(warped, pair.fixed_labels).mean()),
        _PERCENT: 100 * float(folded),
    }


def _as_shown(value: float) -> float:
    """With three digits, as the verdict prints it: what reads 0.715 is 0.715."""
    return float(f"{value:.3g}")


def _in_range(setting: object) -> str | None:
    problem = finite_number(setting)
    if problem is None and not 0.01 <= setting <= 100:  # type: ignore[operator]
        return f"expected a weight from 0.01 to 100, got {setting}."
    return problem


good_weight = Goal(
    SLUG,
    "good_weight",
    lambda weight: _registered(float(weight)),
    lambda measured: (
        _as_shown(measured[_OVERLAP]) >= _DICE and _as_shown(measured[_PERCENT]) <= _FOLDS
    ),
    f"a mean Dice of {_DICE} or more, and folds in {_FOLDS} % of the brain or less.",
    reference=lambda: 1.7,
    valid=_in_range,
    hints=[
        "The smaller the weight, the more Dice and the more folds. Which of the two fails?",
        "0.1 folds too much, 10 matches too little. Between powers of ten, the middle is a factor "
        "of three: try 1 and 3.",
    ],
)

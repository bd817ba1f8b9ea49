"""Checks of exercise 20: a map on another grid, rigid poses, a descent, coarse to fine, demons."""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib import spatial
from course_lib.checks.core import Check, Goal, Mistake
from course_lib.classical import demons
from course_lib.datasets import Pair, brains, halve
from course_lib.metrics import endpoint_error, folding_fraction
from course_lib.optimise import refine
from course_lib.widgets import random_velocity

SLUG = "20_register_one_pair"

Register = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor], Tensor]


# --- the same map on another grid ----------------------------------------------------------------


def _on_the_coarse_grid() -> tuple[float, float, float]:
    return 0.1, 4, -4


on_the_coarse_grid = Check(
    SLUG,
    "on_the_coarse_grid",
    _on_the_coarse_grid,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (0.2, 4, -4),
            "t is right; A₀₁ changes too, because the two axes shrink differently.\n"
            "A₀₁ says how many rows a step of one column adds. The new rows are twice as tall,\n"
            "the columns are as they were: how many new rows is that?",
        ),
        Mistake(
            lambda: (0.4, 4, -4),
            "t is right; A₀₁ went the wrong way.\n"
            "Moving one column to the right adds 0.2 old rows. A new row is as tall as two old.",
        ),
        Mistake(
            lambda: (0.4, 16, -4),
            "A₀₁ and t₀ went the wrong way.\n"
            "A new row is as tall as two old ones: the same length is fewer of them.",
        ),
        Mistake(
            lambda: (0.2, 8, -2),
            "this halves along the columns; it is the rows that get fewer: 201 become 101.\n"
            "101 columns stay 101. Each axis has its own ratio, (n′ − 1)/(n − 1).",
        ),
        Mistake(
            lambda: (0.2, 8, -4),
            "this is the map on the old grid: a shift of 8 old rows is not 8 new rows.\n"
            "Express each number in voxels of the new grid.",
        ),
        Mistake(
            lambda: (0.1, 4, -2),
            "the columns do not shrink: there are 101 before and after.\n"
            "Each axis has its own ratio, (n′ − 1)/(n − 1).",
        ),
        Mistake(
            lambda: (0.2, 4, -2),
            "this halves both shifts. Only the rows get fewer: 201 become 101; 101 columns stay.\n"
            "Each axis has its own ratio, (n′ − 1)/(n − 1); and A₀₁ joins two axes.",
        ),
        Mistake(
            lambda: (0.1, 16, -4),
            "A₀₁ is right; t₀ went the wrong way.\n"
            "A new row is as tall as two old ones, so the same shift is fewer of them.",
        ),
        Mistake(
            lambda: (0.2 * 101 / 201, 8 * 101 / 201, -4.0),
            "nearly: this multiplies by n′/n = 101/201.\n"
            "Corner voxels lie on corner voxels here, so lengths go with the gaps between voxels,\n"
            "(n′ − 1)/(n − 1) = 100/200 (lesson 12).",
        ),
    ],
    hints=[
        "Which length does a voxel of the new grid have, in old voxels: along the rows, and along "
        "the columns?",
        "The ratios are r = (100/200, 100/100). A shift along axis a is multiplied by r_a. A₀₁ "
        "takes columns and gives rows: it is multiplied by r₀ and divided by r₁.",
    ],
)


# --- a rigid pose from three numbers -------------------------------------------------------------


def _rigid(angle: Tensor, down: Tensor, right: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    rows = torch.stack([c, -s, down], dim=-1), torch.stack([s, c, right], dim=-1)
    return torch.stack(rows, dim=-2)


def _rigid_matrix(parameters: Tensor, radius: float) -> Tensor:
    arc, down, right = parameters.unbind(-1)
    return _rigid(arc / radius, down, right)


def _one_pose() -> tuple[Tensor, float]:
    return torch.tensor([[9.0, 5.0, -2.0]]), 20.0


def _three_poses() -> tuple[Tensor, float]:
    return torch.tensor([[-30.0, 1.5, 7.0], [12.0, 0.0, -3.0], [55.0, -4.0, 2.5]]), 45.0


def _with_angle(change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    def wrong(parameters: Tensor, radius: float) -> Tensor:
        arc, down, right = parameters.unbind(-1)
        return _rigid(change(arc, radius), down, right)

    return wrong


def _around_the_corner(parameters: Tensor, radius: float) -> Tensor:
    """The shift turned along with the image: R(x + t) instead of R x + t."""
    matrix = _rigid_matrix(parameters, radius)
    linear, shift = matrix[..., :2], matrix[..., 2:]
    return torch.cat([linear, linear @ shift], dim=-1)


rigid_matrix = Check(
    SLUG,
    "rigid_matrix",
    _rigid_matrix,
    [_one_pose, _three_poses],
    mistakes=[
        Mistake(
            _with_angle(lambda arc, radius: arc),
            "this takes the arc for the angle.\n"
            "The first number is a length in voxels, along the rim at this radius. An angle in\n"
            "radians is arc / radius.",
        ),
        Mistake(
            _with_angle(lambda arc, radius: arc * radius),
            "the angle is arc · radius here; it has to be arc / radius.\n"
            "The larger the radius, the smaller the angle that moves the rim by one voxel.",
        ),
        Mistake(
            _with_angle(lambda arc, radius: arc / radius * math.pi / 180),
            "this converts from degrees once too often.\n"
            "arc / radius is an angle in radians already, and cos and sin want radians.",
        ),
        Mistake(
            _with_angle(lambda arc, radius: arc / radius * 180 / math.pi),
            "cos and sin are given degrees here.\n"
            "arc / radius is an angle in radians, and that is what cos and sin want.",
        ),
        Mistake(
            _with_angle(lambda arc, radius: -arc / radius),
            "this turns the other way: the two sines have each other's sign.\n"
            "From axis i towards axis j: A sends (1, 0) to (cos, sin), so its first column is\n"
            "(cos, sin) and its first row (cos, −sin).",
        ),
        Mistake(
            _with_angle(lambda arc, radius: arc / (2 * math.pi * radius)),
            "this is the part of a full turn, not the angle in radians.\n"
            "A full turn is 2π radians, and its arc 2π · radius: the angle is arc / radius.",
        ),
        Mistake(
            lambda parameters, radius: torch.cat(
                [
                    _rigid_matrix(parameters, radius)[..., :2],
                    _rigid_matrix(parameters, radius)[..., 2:] / radius,
                ],
                dim=-1,
            ),
            "the turn is right; the shift is divided by the radius too.\n"
            "All three numbers are in voxels. A wants an angle, t wants voxels.",
        ),
        Mistake(
            lambda parameters, radius: _rigid_matrix(parameters, radius)[..., [2, 0, 1]],
            "this is [t | A]; the shift is the last column, [A | t].",
        ),
        Mistake(
            lambda parameters, radius: _rigid_matrix(parameters[:, [0, 2, 1]], radius),
            "the two shifts have changed places.\n"
            "The second number moves along axis 0, the rows; the third along axis 1.",
        ),
        Mistake(
            _around_the_corner,
            "the turn is right; the shift is turned along with the image.\n"
            "The map is A(x − c) + c + t: t comes after the turn, as it is.",
        ),
        Mistake(
            lambda parameters, radius: _rigid_matrix(parameters[:1].expand_as(parameters), radius),
            "every item of the batch gets the first pose.\n"
            "Likely cause: parameters[0]; take the columns, parameters[:, 0].",
        ),
        Mistake(
            lambda parameters, radius: _rigid_matrix(parameters, radius).mT.reshape(-1, 2, 3),
            "the numbers are right, in the wrong places.\n"
            "A (3, 2) block was made into (2, 3) by reshape or view, which keep the order of the\n"
            "numbers; stack whole rows, [cos, −sin, t₀] and [sin, cos, t₁].",
        ),
    ],
    gradient=True,
    hints=[
        "parameters[:, 0] / radius are the angles, one an item: (B,). Their .cos() and .sin() keep "
        "the gradient; math.cos and torch.tensor([...]) of results lose it.",
        "torch.stack([c, -s, down], dim=-1) makes the first rows, (B, 3). A second stack, along "
        "dim=1, puts the two rows together: (B, 2, 3).",
    ],
)


# --- a descent that says why it ended ------------------------------------------------------------


def bowl(x: Tensor) -> Tensor:
    """Lowest, 0, at (3, −1, 2); steep along the first number, flat along the last."""
    goal, steepness = x.new_tensor([3.0, -1.0, 2.0]), x.new_tensor([2.0, 1.0, 0.5])
    return (steepness * (x - goal).square()).sum()


def valley(x: Tensor) -> Tensor:
    """A V with a round bottom at 0: long steps leap from one side to the other."""
    return (x.square() + 0.01).sqrt().sum()


def shuttle(x: Tensor) -> Tensor:
    """A V along the first number, and hardly any slope along the second."""
    return (x[0].square() + 0.01).sqrt() + 0.001 * x[1].square()


def cliff(x: Tensor) -> Tensor:
    """x⁴: the steeper the further out, so that long steps end at infinity."""
    return (x**4).sum()


def _visit(loss: Loss, x: Tensor) -> tuple[float, Tensor]:
    """The loss at a place, and its gradient there."""
    with torch.enable_grad():
        place = x.detach().clone().requires_grad_()
        value = loss(place)
        (slope,) = torch.autograd.grad(value, place)
    return value.item(), slope


def _small_step(step: Tensor, tolerance: float) -> bool:
    return bool(step.abs().max() <= tolerance)


def _descend(
    loss: Loss,
    start: Tensor,
    rate: float,
    tolerance: float,
    most: int,
    *,
    direction: float = -1.0,
    inertia: float = 0.0,
    small: Callable[[Tensor, float], bool] = _small_step,
    last_counts: bool = True,
    give_last: bool = False,
    watch_loss: bool = True,
    watch_slope: bool = True,
    flat: bool = False,
    before_step: bool = False,
    give_bad: bool = False,
) -> tuple[Tensor, str]:
    """The right one; its options are the wrong ones."""
    x, why, gathered = start.detach().clone(), "steps", torch.zeros_like(start)
    best, lowest, before = x, math.inf, math.inf
    for _ in range(most):
        value, slope = _visit(loss, x)
        bad_loss, bad_slope = not math.isfinite(value), not bool(slope.isfinite().all())
        if (watch_loss and bad_loss) or (watch_slope and bad_slope):
            why = "diverged"
            break
        if value < lowest:
            best, lowest = x, value
        gathered = inertia * gathered + slope
        step = direction * rate * gathered
        if before_step and small(step, tolerance):
            why = "converged"
            break
        x = x + step
        if small(step, tolerance) if not flat else abs(before - value) <= tolerance:
            why = "converged"
            break
        before = value
    if last_counts and _visit(loss, x)[0] < lowest:
        best = x
    return (x if give_last or (give_bad and why == "diverged") else best), why


def _converging() -> tuple[Loss, Tensor, float, float, int]:
    return bowl, torch.tensor([0.0, 4.0, -1.0]), 0.2, 1e-6, 200


def _too_few_steps() -> tuple[Loss, Tensor, float, float, int]:
    return bowl, torch.tensor([0.0, -1.0, 8.0]), 0.2, 1e-6, 4


def _tiny_rate() -> tuple[Loss, Tensor, float, float, int]:
    return bowl, torch.tensor([0.0, 4.0, -1.0]), 1e-6, 1e-3, 50


def _leaping() -> tuple[Loss, Tensor, float, float, int]:
    return valley, torch.tensor([2.3, -1.3]), 1.0, 1e-3, 15


def _to_and_fro() -> tuple[Loss, Tensor, float, float, int]:
    """From 0.5 to −0.5 and back: the loss stands still, and x does not."""
    return shuttle, torch.tensor([0.5, 1.0]), 1.0198, 1e-4, 7


def _exploding() -> tuple[Loss, Tensor, float, float, int]:
    return cliff, torch.tensor([1.5, -0.5]), 0.6, 1e-6, 60


def edge(x: Tensor) -> Tensor:
    """Roots, and 10 below 0: there the loss is finite, and its gradient NaN."""
    return torch.where(x > 0, x.sqrt(), 10.0).sum()


def _over_the_edge() -> tuple[Loss, Tensor, float, float, int]:
    """The second place has no gradient, and a second step is the last one allowed."""
    return edge, torch.tensor([4.0, 9.0]), 20.0, 1e-6, 2


def _up_the_cliff() -> tuple[Loss, Tensor, float, float, int]:
    """The second place has a gradient of 4e33, and an infinite loss."""
    return cliff, torch.tensor([10.0, -5.0]), 2.5e7, 1e-6, 2


def _nearly_there() -> tuple[Loss, Tensor, float, float, int]:
    """Both numbers' last step is as small as asked; its length is not."""
    return bowl, torch.tensor([3.0, 1.5, 7.0]), 0.2, 0.7, 30


def _small_length(step: Tensor, tolerance: float) -> bool:
    return bool(step.norm() <= tolerance)


def _small_mean(step: Tensor, tolerance: float) -> bool:
    return bool(step.abs().mean() <= tolerance)


def square(x: Tensor) -> Tensor:
    """x²: the stub's example."""
    return x.square().sum()


def _by_hand() -> tuple[Loss, Tensor, float, float, int]:
    """8, 4, 2, 1: the last step is exactly the tolerance."""
    return square, torch.tensor([8.0]), 0.25, 1.0, 10


def _smaller(step: Tensor, tolerance: float) -> bool:
    return bool(step.abs().max() < tolerance)


def _small_sum(step: Tensor, tolerance: float) -> bool:
    return bool(step.abs().sum() <= tolerance)


def _any_small(step: Tensor, tolerance: float) -> bool:
    return bool(step.abs().min() <= tolerance)


def _small_slope(rate: float, step: Tensor, tolerance: float) -> bool:
    return bool((step / rate).abs().max() <= tolerance)


def _by_slope(
    loss: Loss, start: Tensor, rate: float, tolerance: float, most: int
) -> tuple[Tensor, str]:
    return _descend(loss, start, rate, tolerance, most, small=partial(_small_slope, rate))


def _always_converged(
    loss: Loss, start: Tensor, rate: float, tolerance: float, most: int
) -> tuple[Tensor, str]:
    best, why = _descend(loss, start, rate, tolerance, most)
    return best, "converged" if why == "steps" else why


def _signed_small(step: Tensor, tolerance: float) -> bool:
    return bool(step.max() <= tolerance)


descend = Check(
    SLUG,
    "descend",
    _descend,
    [
        _converging,
        _too_few_steps,
        _tiny_rate,
        _leaping,
        _to_and_fro,
        _exploding,
        _over_the_edge,
        _up_the_cliff,
        _nearly_there,
        _by_hand,
    ],
    atol=1e-4,
    mistakes=[
        Mistake(
            partial(_descend, give_last=True),
            "this returns the place where the descent ended, not the best one it visited.\n"
            "With long steps the loss rises again: keep the lowest loss so far, and where it was.\n"
            "If you do: x.detach() shares its numbers with x, and `x -= …` changes the kept place\n"
            "too. Keep x.detach().clone().",
        ),
        Mistake(
            partial(_descend, give_bad=True),
            "where it diverges, this returns the place of the infinite loss.\n"
            "The best one it visited is asked then too.",
        ),
        Mistake(
            partial(_descend, last_counts=False),
            "the last place is never looked at: the loss is computed, a step is taken, the loop\n"
            "ends.\n"
            "Compute the loss once more after the loop, and compare it with the lowest one.",
        ),
        Mistake(
            partial(_descend, inertia=1.0),
            "each gradient is added to all the ones before.\n"
            "Likely cause: backward() adds to x.grad, and nobody empties it. Set x.grad = None\n"
            "(or take torch.autograd.grad) before each gradient.",
        ),
        Mistake(
            partial(_descend, direction=1.0),
            "this goes uphill.\nThe gradient points to where the loss rises: x − rate · gradient.",
        ),
        Mistake(
            _by_slope,
            "the gradient is compared with the tolerance; asked is the step, rate · gradient.\n"
            "With a tiny rate the two differ a lot, which the lesson made happen: such a descent\n"
            "calls itself converged far from the goal.",
        ),
        Mistake(
            partial(_descend, flat=True),
            "this ends when the loss hardly changes; asked is that x hardly changes.\n"
            "Compare the largest change of any number, (rate · gradient).abs().max(), with the\n"
            "tolerance.",
        ),
        Mistake(
            partial(_descend, small=_any_small),
            "this ends as soon as one of the numbers stands still.\n"
            "All of them have to: compare the largest change with the tolerance, not the smallest.",
        ),
        Mistake(
            partial(_descend, small=_signed_small),
            "a step of −5 counts as small here: its sign is not taken off.\n"
            "Compare the size of the change, .abs().max(), with the tolerance.",
        ),
        Mistake(
            partial(_descend, watch_loss=False, watch_slope=False),
            "the way to infinity is not noticed: the loss is inf or NaN, and it goes on.\n"
            'Return "diverged" as soon as the loss or the gradient is not finite\n'
            "(math.isfinite, torch.isfinite).",
        ),
        Mistake(
            partial(_descend, watch_slope=False),
            "a gradient of NaN is not noticed where the loss is still finite.\n"
            "Ask both, the loss and every number of the gradient, for NaN as for infinity:\n"
            "torch.isfinite.",
        ),
        Mistake(
            partial(_descend, watch_loss=False),
            "an infinite loss is not noticed while its gradient is still finite.\n"
            "Ask both, the loss and every number of the gradient, for infinity as for NaN:\n"
            "torch.isfinite.",
        ),
        Mistake(
            partial(_descend, small=_small_length),
            "the length of the whole step is compared with the tolerance.\n"
            "Asked is its largest number, .abs().max(): no number of x changes by more.",
        ),
        Mistake(
            partial(_descend, small=_smaller),
            "a step of exactly the tolerance is small too: <=, not <.\n"
            "The example: 8, 4, 2, 1, and the last step is 1, the tolerance.",
        ),
        Mistake(
            partial(_descend, small=_small_sum),
            "the sum of the changes is compared with the tolerance.\n"
            "Asked is the largest one, .abs().max(): no number of x changes by more.",
        ),
        Mistake(
            partial(_descend, small=_small_mean),
            "the mean change is compared with the tolerance.\n"
            "Asked is the largest one, .abs().max(): no number of x changes by more.",
        ),
        Mistake(
            partial(_descend, before_step=True),
            "a small step is noticed before it is taken, and then it is not taken.\n"
            "First x = x − step, then ask whether it was small.",
        ),
        Mistake(
            _always_converged,
            'it says "converged" also where it ran out of steps.\n'
            '"converged" is earned by a small step; the end of the loop alone is "steps"\n'
            "(for … else: runs its else only without a break).",
        ),
    ],
    hints=[
        "Make a fresh leaf at each place, x = x.detach().requires_grad_(); then value = loss(x), "
        "and torch.autograd.grad(value, x) gives a tuple with one gradient.",
        "In the loop: not finite? end. Lower than the lowest? keep x and the loss. Then step, and "
        "only then ask whether the step was small.",
        "After the loop the last x has not been looked at yet: one more loss.",
    ],
)


# --- coarse to fine ------------------------------------------------------------------------------


def pushes(moving: Tensor, fixed: Tensor) -> Tensor:
    """One level's registration, as quick as can be: blurred demons, a few voxels far."""
    return spatial.smooth(6 * demons.demons_force(moving, fixed), 1.5)


def _coarse_to_fine(
    moving: Tensor,
    fixed: Tensor,
    factors: tuple[float, ...],
    register: Register,
    *,
    resize: Callable[[Tensor, tuple[int, ...]], Tensor] = spatial.resize_displacement,
    join: Callable[[Tensor, Tensor], Tensor] = spatial.compose,
    shrink: Callable[[Tensor, float], Tensor] = spatial.pyramid,
    enlarge: Callable[[Tensor, tuple[int, ...]], Tensor] = spatial.resize_displacement,
    warp_first: bool = True,
    padding: spatial.Padding = "border",
    swapped: bool = False,
) -> Tensor:
    """The right one; its options are the wrong ones."""
    u = torch.zeros_like(fixed).repeat(1, 2, 1, 1)
    for factor in factors:
        small_moving, small_fixed = shrink(moving, factor), shrink(fixed, factor)
        u = resize(u, tuple(small_fixed.shape[2:]))
        warped = small_moving
        if warp_first:
            warped = spatial.warp(small_moving, u, padding=padding)
        change = register(small_fixed, warped) if swapped else register(warped, small_fixed)
        u = join(u, change)
    return enlarge(u, tuple(fixed.shape[2:]))


def _add(before: Tensor, change: Tensor) -> Tensor:
    return before + change


def _other_order(before: Tensor, change: Tensor) -> Tensor:
    return spatial.compose(change, before)


def _unblurred(image: Tensor, factor: float) -> Tensor:
    shape = tuple(spatial.pyramid(image, factor).shape[2:])
    return spatial.resize_image(image, shape)


def _pooled(image: Tensor, factor: float) -> Tensor:
    height, width = spatial.pyramid(image, factor).shape[2:]
    return F.adaptive_avg_pool2d(image, (height, width))


def _as_it_is(u: Tensor, shape: tuple[int, ...]) -> Tensor:
    return u


def _times_ratio(u: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Vectors scaled by n′/n."""
    ratio = torch.tensor([new / old for new, old in zip(shape, u.shape[2:], strict=True)])
    return spatial.resize_image(u, shape) * ratio.view(1, 2, 1, 1)


@lru_cache(maxsize=1)
def _bumpy() -> tuple[Tensor, Tensor]:
    """Two pairs of smooth images that differ by a few voxels, 44 × 60."""
    generator = torch.Generator().manual_seed(20)
    fixed = spatial.smooth(torch.rand(2, 1, 44, 60, generator=generator), 2.5)
    fixed = (fixed - fixed.amin()) / (fixed.amax() - fixed.amin())
    u = 40 * spatial.smooth(torch.randn(2, 2, 44, 60, generator=generator), 6.0)
    return spatial.warp(fixed, u, padding="border"), fixed


def _down_to_full() -> tuple[Tensor, Tensor, tuple[float, ...], Register]:
    moving, fixed = _bumpy()
    return moving.clone(), fixed.clone(), (4, 2, 1), pushes


def _down_to_half() -> tuple[Tensor, Tensor, tuple[float, ...], Register]:
    moving, fixed = _bumpy()
    return moving[:1].clone(), fixed[:1].clone(), (4, 2), pushes


def _wrong_loop(**options: object) -> Callable[..., Tensor]:
    return partial(_coarse_to_fine, **options)  # type: ignore[arg-type]


_VECTORS = (
    "the field is resized as an image, and its vectors keep their old length.\n"
    "4 voxels of the small image are 8 of the one twice as large: resize_displacement\n"
)
_SUM = (
    "the two fields are added; the second one was found on the *warped* image.\n"
    "So first by u, then by the new one: compose(u, change) (lesson 11, section 5).\n"
)
_SMALL = (
    "the result stays on the grid of the last level.\n"
    "With factors (4, 2) that is half the size: resize_displacement to the shape of fixed, at the\n"
    "end.\n"
)

coarse_to_fine = Check(
    SLUG,
    "coarse_to_fine",
    _coarse_to_fine,
    [_down_to_full, _down_to_half],
    atol=1e-4,
    mistakes=[
        Mistake(
            _wrong_loop(resize=spatial.resize_image, join=_add, enlarge=_as_it_is),
            "all three bugs are still there.\n"
            "Ask of each line: in which voxels is u here, and on which image was the change found?",
        ),
        Mistake(
            _wrong_loop(join=_add, enlarge=_as_it_is),
            "one bug is gone, two are left.\n"
            "The change was found on the warped image; how do two warps in a row become one\n"
            "field? And which size has the result, if the last factor is 2?",
        ),
        Mistake(
            _wrong_loop(resize=spatial.resize_image, enlarge=_as_it_is),
            "one bug is gone, two are left.\n"
            "How long is a vector of 4 voxels on an image twice as large? And which size has the\n"
            "result, if the last factor is 2?",
        ),
        Mistake(
            _wrong_loop(resize=spatial.resize_image, join=_add),
            "one bug is gone, two are left.\n"
            "How long is a vector of 4 voxels on an image twice as large? And the change was\n"
            "found on the warped image: how do two warps in a row become one field?",
        ),
        Mistake(_wrong_loop(resize=spatial.resize_image), f"one bug is left: {_VECTORS}"),
        Mistake(_wrong_loop(join=_add), f"one bug is left: {_SUM}"),
        Mistake(_wrong_loop(enlarge=_as_it_is), f"one bug is left: {_SMALL}"),
        Mistake(
            _wrong_loop(enlarge=spatial.resize_image),
            "the last step resizes the field as an image: right size, vectors too short.\n"
            "resize_displacement also makes them longer.",
        ),
        Mistake(
            _wrong_loop(resize=spatial.resize_image, enlarge=spatial.resize_image),
            "the field is resized as an image, in the loop and at the end: its vectors keep their\n"
            "old length.\nresize_displacement makes them longer along with the grid.",
        ),
        Mistake(
            _wrong_loop(join=_other_order),
            "composed in the wrong order.\n"
            "The image was warped by u first, the change found on the result: compose(u, change).",
        ),
        Mistake(
            _wrong_loop(resize=_times_ratio, enlarge=_times_ratio),
            "nearly: the vectors are multiplied by n′/n.\n"
            "Corner voxels lie on corner voxels: (n′ − 1)/(n − 1), as resize_displacement does.",
        ),
        Mistake(
            _wrong_loop(padding="zeros"),
            "the rest is right, but the image is warped with zeros outside.\n"
            'A black rim is no anatomy, and register pushes against it: padding="border".',
        ),
        Mistake(
            _wrong_loop(swapped=True),
            "register is given the two images in the other order.\n"
            "It takes (moving, fixed): register(warped, small_fixed).",
        ),
        Mistake(
            _wrong_loop(shrink=_unblurred),
            "the small images are not blurred: fine detail turns into false coarse detail\n"
            "(aliasing, lesson 12).\nUse pyramid(image, factor).",
        ),
        Mistake(
            _wrong_loop(shrink=_pooled),
            "the small images are averages of blocks, which shifts the grid by part of a voxel\n"
            "(lesson 12).\nUse pyramid(image, factor), whose corners stay on the corners.",
        ),
        Mistake(
            _wrong_loop(warp_first=False, join=lambda before, change: change),
            "each level starts from nothing: what the coarse ones found is thrown away.\n"
            "Warp the level's moving image by u, register what is left, and compose.",
        ),
        Mistake(
            _wrong_loop(warp_first=False),
            "the moving image is not warped by u before it is registered: every level finds the\n"
            "whole displacement again, and adds it.\nRegister the warped image to small_fixed.",
        ),
    ],
    hints=[
        "There are three bugs: one where a level begins, one where it ends, one after the loop.",
        "A field is not an image: its values are lengths in voxels of its own grid. And "
        "`register` saw the image that was already warped by u.",
        "resize_displacement in place of resize_image; compose(u, change) in place of the sum; and "
        "resize_displacement to fixed.shape[2:] before the return.",
    ],
)


# --- demons --------------------------------------------------------------------------------------


def _slopes(image: Tensor) -> Tensor:
    return torch.cat(torch.gradient(image, dim=(2, 3)), dim=1)


def _force(
    warped: Tensor,
    fixed: Tensor,
    *,
    of: Callable[[Tensor, Tensor], Tensor] = lambda warped, fixed: fixed,
    size: Callable[[Tensor, Tensor], Tensor] = lambda g, d: g.square().sum(1, True) + d.square(),
    slopes: Callable[[Tensor], Tensor] = _slopes,
    sign: float = 1.0,
    guarded: bool = True,
) -> Tensor:
    g, difference = slopes(of(warped, fixed)), sign * (fixed - warped)
    below = size(g, difference)
    if not guarded:
        return difference * g / below
    return torch.where(below > 0, difference * g / below.clamp(min=1e-30), torch.zeros_like(g))


def _demons_force(warped: Tensor, fixed: Tensor) -> Tensor:
    return demons.demons_force(warped, fixed)


def _two_scans() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(21)
    # Of much contrast: a tiny number added below the line changes nothing here.
    images = 4 * spatial.smooth(torch.rand(4, 1, 9, 12, generator=generator), 1.2)
    return images[:2].clone(), images[2:].clone()


def _on_black() -> tuple[Tensor, Tensor]:
    """Black around the images, as scans have it: nothing to see, nothing to push."""
    warped, fixed = (F.pad(image, (3, 2, 2, 3)) for image in _two_scans())
    return warped, fixed


def _one_scan() -> tuple[Tensor, Tensor]:
    warped, fixed = _on_black()
    return warped[:1], fixed[:1]


def _swapped_force(warped: Tensor, fixed: Tensor, *, guarded: bool = True) -> Tensor:
    return _force(fixed, warped, guarded=guarded)


def _by_differences(image: Tensor) -> Tensor:
    """Forward differences, 0 at the far border."""
    down = F.pad(image.diff(dim=2), (0, 0, 0, 1))
    right = F.pad(image.diff(dim=3), (0, 1))
    return torch.cat([down, right], dim=1)


def _forward_force(warped: Tensor, fixed: Tensor, *, guarded: bool = True) -> Tensor:
    return _force(warped, fixed, slopes=_by_differences, guarded=guarded)


def _flipped_force(warped: Tensor, fixed: Tensor, *, guarded: bool = True) -> Tensor:
    return _force(warped, fixed, guarded=guarded).flip(1)


def _pushes(wrong: Callable[..., Tensor], hint: str) -> list[Mistake]:
    """A wrong push as it is, and with 0/0 on the black background."""
    more = "\nThen look at the black background too: 0/0 is NaN there, and 0 is asked."
    return [Mistake(wrong, hint), Mistake(partial(wrong, guarded=False), hint + more)]


demons_force = Check(
    SLUG,
    "demons_force",
    _demons_force,
    [_two_scans, _on_black, _one_scan],
    atol=1e-4,
    mistakes=[
        *_pushes(
            partial(_force, sign=-1.0),
            "these pushes point the wrong way: the images would move further apart.\n"
            "The pull-back looks at x + du, so where the warped image is too dark (f > w), look\n"
            "towards where it gets brighter: +(f − w) g.",
        ),
        *_pushes(
            _swapped_force,
            "the two images have changed places.\n"
            "f is the second argument, fixed: +(f − w), and the gradient of f.",
        ),
        *_pushes(
            partial(_force, of=lambda warped, fixed: warped),
            "this is the gradient of the warped image; the formula has that of the fixed one.\n"
            "(It would work too: that is another variant. But here it is Thirion's.)",
        ),
        *_pushes(
            partial(_force, size=lambda g, d: g.square().sum(1, True)),
            "(f − w)² is missing below: where the gradient is small the push is enormous.",
        ),
        *_pushes(
            partial(_force, size=lambda g, d: g.square() + d.square()),
            "each component is divided by its own square.\n"
            "|g|² is the squared length, both components together: .square().sum(1, keepdim=True).",
        ),
        *_pushes(
            partial(_force, size=lambda g, d: g.square().sum(1) + d.square()),
            "sum(1) drops the channels' axis, and the batch is taken for channels.\n"
            "Keep it: .square().sum(1, keepdim=True), (B, 1, H, W).",
        ),
        Mistake(
            partial(_force, size=lambda g, d: g.square().sum() + d.square()),
            "|g|² is one number for all voxels here: the sum over everything.\n"
            "Each voxel has its own: .square().sum(1, keepdim=True), over its two components.",
        ),
        *_pushes(
            partial(_force, size=lambda g, d: g.norm(dim=1, keepdim=True) + d.square()),
            "below stands |g|, not |g|².\nThe squared length: .square().sum(1, keepdim=True).",
        ),
        *_pushes(
            partial(_force, size=lambda g, d: g.square().sum(1, True) + d.abs()),
            "below stands |f − w|, not its square.",
        ),
        *_pushes(
            partial(_force, size=lambda g, d: g.sum(1, True).square() + d.square()),
            "this squares the sum of the two slopes; |g|² is the sum of their squares.",
        ),
        *_pushes(
            partial(_force, size=lambda g, d: (g.square().sum(1, True) + d.square()).sqrt()),
            "this divides by the root of |g|² + (f − w)².\nThe formula has no root below.",
        ),
        *_pushes(
            _flipped_force,
            "the channels are in the order (j, i).\n"
            "Channel 0 is the slope along axis 2 of the tensor, the rows.",
        ),
        Mistake(
            partial(_force, size=lambda g, d: torch.ones_like(d)),
            "this is (f − w) g without what stands below the line.\nDivide by |g|² + (f − w)².",
        ),
        *_pushes(
            _forward_force,
            "these are forward differences, 0 at the far border.\n"
            "Take central ones, one-sided at the border: torch.gradient(fixed, dim=(2, 3)).",
        ),
        Mistake(
            partial(_force, guarded=False),
            "right where there is something to see, and 0/0 where there is not: on the black\n"
            "background both g and f − w are 0.\n"
            "A voxel that knows nothing should stay: put 0 there, by torch.where, or by dividing\n"
            "by max(…, a tiny number).",
        ),
    ],
    hints=[
        "torch.gradient(fixed, dim=(2, 3)) gives a tuple, the slopes along the rows and along the "
        "columns, each (B, 1, H, W); torch.cat(…, dim=1) joins them to (B, 2, H, W).",
        "|g|² is g.square().sum(1, keepdim=True), (B, 1, H, W), and stands below both channels.",
        "0/0 on the background: .clamp(min=1e-12) on what stands below makes it 0/1e-12 = 0.",
    ],
)


# --- a weight and a schedule ---------------------------------------------------------------------

LEVELS = {1: (1,), 2: (2, 1), 4: (4, 2, 1), 8: (8, 4, 2, 1)}
STEPS = 120
"""For all levels together, whatever the schedule."""


@lru_cache(maxsize=1)
def stretched_pair() -> Pair:
    """The template against itself, bent by up to 10 voxels, with other contrast and noise."""
    half = halve(brains.real_pair())
    velocity = random_velocity(half.fixed.shape[2:], amplitude=10, smoothness=12, seed=3)
    noise = torch.randn(half.fixed.shape, generator=torch.Generator().manual_seed(0))
    moving = spatial.warp(half.fixed, spatial.integrate(-velocity)) ** 0.8 + 0.02 * noise
    truth = spatial.integrate(velocity)
    return half._replace(moving=moving.clamp(0, 1), moving_labels=None, displacement=truth)


def _measure(setting: tuple[float, int]) -> dict[str, float]:
    weight, coarsest = setting
    pair, factors = stretched_pair(), LEVELS[int(coarsest)]
    steps = STEPS // len(factors)
    u = refine(
        pair.moving,
        pair.fixed,
        weight=weight,
        factors=factors,
        steps=steps,
        smoothness=0,
        tolerance=0,
    )
    assert pair.fixed_labels is not None and pair.displacement is not None
    brain = pair.fixed_labels > 0
    error = endpoint_error(u, pair.displacement, mask=brain)
    return {
        "error in voxels": float(error),
        "folded, in percent of the brain": 100 * float(folding_fraction(u, mask=brain)),
    }


def _setting(setting: object) -> str | None:
    """What is wrong with a (weight, coarsest factor), or None."""
    if not isinstance(setting, (tuple, list)) or len(setting) != 2:
        return "expected two numbers, (weight, coarsest factor), as in (2.5, 1)."
    weight, coarsest = setting
    if isinstance(coarsest, bool) or coarsest not in LEVELS:
        return f"the second number is the coarsest factor: 1, 2, 4 or 8, not {coarsest!r}."
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 <= weight < math.inf:
        return f"the first number is the weight, 0 or more and finite, not {weight!r}."
    return None


weight_and_coarsest = Goal(
    SLUG,
    "weight_and_coarsest",
    _measure,
    lambda measured: (
        measured["error in voxels"] < 0.8 and measured["folded, in percent of the brain"] == 0
    ),
    "an error below 0.8 voxels, and no fold in the brain.",
    reference=lambda: (1.2, 4),
    valid=_setting,
    hints=[
        "First the schedule: keep the weight 2.5 and try the four coarsest factors. The arrows are "
        "up to 10 voxels long; how far does one size see?",
        "Then the weight: below which one do folds appear, and above which one does the field stay "
        "too stiff to bend by 10 voxels? Try 0.3, 1 and 3 with the coarsest factor 4.",
    ],
)

"""Checks of exercise 17: integrating velocities, half resolution, and inverses with a residual."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib import spatial
from course_lib.checks.core import Check, Goal, Inputs, Law, Mistake
from course_lib.checks.task import Function
from course_lib.widgets import bump_displacement, random_velocity

SLUG = "17_velocities_and_inverses"


# --- in the river --------------------------------------------------------------------------------


def _numbers() -> tuple[float, ...]:
    return 8, 4, 20, 5


in_the_river = Check(
    SLUG,
    "in_the_river",
    _numbers,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (256, 4, 20, 5),
            "the first number is that of the Euler steps; the other three are right.\n"
            "Composing a field with itself doubles the time: how many doublings make 256?",
        ),
        Mistake(
            lambda: (7, 4, 20, 5),
            "7 squarings make 128 pieces; the other three are right.\nHow many doublings make 256?",
        ),
        Mistake(
            lambda: (128, 4, 20, 5),
            "a composition doubles the time of *all* that was made so far, not of two pieces at a\n"
            "time: how many doublings make 256? The other three are right.",
        ),
        Mistake(
            lambda: (9, 4, 20, 5),
            "9 squarings make 512 pieces; the other three are right.\nHow many doublings make 256?",
        ),
        Mistake(
            lambda: (8, 0.5, 20, 5),
            "the second number is 4 divided by 2³: the scaling without the squaring.\n"
            "Three compositions double it three times. The other three are right.",
        ),
        Mistake(
            lambda: (8, 32, 20, 5),
            "the second number is 4 times 2³: the squaring without the scaling.\n"
            "First the velocity is divided by 2³. The other three are right.",
        ),
        Mistake(
            lambda: (8, 12, 20, 5),
            "the second number is 3 times 4: the 3 counts squarings, not units of time.\n"
            "The river is followed for one unit. The other three are right.",
        ),
        Mistake(
            lambda: (8, -3, 20, 5),
            "the second number is channel 0, the rows; channel 1 was asked.\n"
            "The other three are right.",
        ),
        Mistake(
            lambda: (8, -4, 20, 5),
            "the second number has the wrong sign: the displacement points where the velocity\n"
            "points. The other three are right.",
        ),
        Mistake(
            lambda: (8, 5, 20, 5),
            "the second number is the length of the arrow; channel 1 was asked.\n"
            "The other three are right.",
        ),
        Mistake(
            lambda: (8, 4, 10 + 10 * math.log(2), 10 - 10 * math.log(2)),
            "the third and the fourth number are one leap: 10 ± 10 ln 2.\n"
            "On the way the velocity changes, because the distance does. Which function\n"
            "grows at a rate of ln 2 times itself?",
        ),
        Mistake(
            lambda: (8, 4, 10 + 10 * math.log(2), 5),
            "the third number is one leap: 10 + 10 ln 2. The other three are right.\n"
            "On the way the velocity changes, because the distance does.",
        ),
        Mistake(
            lambda: (8, 4, 20, 10 - 10 * math.log(2)),
            "the fourth number is one leap: 10 − 10 ln 2. The other three are right.\n"
            "On the way the velocity changes, because the distance does.",
        ),
        Mistake(
            lambda: (8, 4, 10 * math.log(2), 5),
            "the third number is the velocity at the start, 10 ln 2, not a distance from c.\n"
            "The other three are right.",
        ),
        Mistake(
            lambda: (8, 4, 10 * math.e, 10 / math.e),
            "the third and the fourth number grow and shrink at a rate of 1; the rate is ln 2,\n"
            "so the distance is 10 · exp(± ln 2). The first two are right.",
        ),
        Mistake(
            lambda: (8, 4, 20, -5),
            "the fourth number has the right size, but a distance has no sign: the point is still\n"
            "on its side of c. The other three are right.",
        ),
        Mistake(
            lambda: (8, 4, 20, 0),
            "the fourth number takes back the 10 voxels of the third.\n"
            "The reversed river starts at 10 here, not at 20, and it is slower near c.\n"
            "The other three are right.",
        ),
        Mistake(
            lambda: (8, 4, 20, -20),
            "the fourth number turns the sign around; reversed time does not do that.\n"
            "The point moves toward c, and never gets past it: at c the velocity is 0.\n"
            "The other three are right.",
        ),
        Mistake(
            lambda: (8, 4, 20, 10),
            "the fourth number is where the point of the third came from: back from 20.\n"
            "Here it starts at 10 again. The other three are right.",
        ),
        Mistake(
            lambda: (8, 4, 10, -5),
            "the third and the fourth number are displacements; the distances from c were asked.\n"
            "The first two are right.",
        ),
    ],
    hints=[
        "n squarings follow the river for 2^n pieces of time.",
        "A constant velocity does not change along the way, so the steps do not matter.",
        "d(t) is the distance from c. The river says d' = ln 2 · d, so d(t) = 10 · exp(t · ln 2).",
    ],
    atol=1e-3,  # a wrong number of three digits is still recognized
)


# --- the midpoint rule ---------------------------------------------------------------------------


def _velocities(amplitude: float, seed: int) -> Tensor:
    """Two smooth rivers of different strength that do not rest at the border: (2, 2, 14, 11)."""
    generator = torch.Generator().manual_seed(seed)
    noise = spatial.smooth(torch.randn(2, 2, 14, 11, generator=generator), 2)
    noise = noise / noise.norm(dim=1).amax(dim=(1, 2)).view(2, 1, 1, 1)
    return noise * torch.tensor([amplitude, amplitude / 3]).view(2, 1, 1, 1)


def _growing() -> tuple[Tensor, int]:
    """The example: v(x) = (0, j)."""
    velocity = torch.zeros(1, 2, 3, 12)
    velocity[:, 1] = torch.arange(12.0)
    return velocity, 1


def _read(velocity: Tensor, u: Tensor) -> Tensor:
    return spatial.warp(velocity, u, padding="border")


def _steps(
    velocity: Tensor, pieces: int, step: Callable[[Tensor, Tensor, float], Tensor]
) -> Tensor:
    u = torch.zeros_like(velocity)
    for _ in range(pieces):
        u = step(velocity, u, 1 / pieces)
    return u


def _midpoint_step(v: Tensor, u: Tensor, h: float) -> Tensor:
    return u + h * _read(v, u + h / 2 * _read(v, u))


def _midpoint(velocity: Tensor, pieces: int) -> Tensor:
    return _steps(velocity, pieces, _midpoint_step)


def _midpoint_from(u: Tensor, velocity: Tensor, pieces: int, taken: int | None = None) -> Tensor:
    for _ in range(pieces if taken is None else taken):
        u = _midpoint_step(velocity, u, 1 / pieces)
    return u


def _grid(field: Tensor) -> Tensor:
    return spatial.identity_grid((field.shape[2], field.shape[3]))


def _one_step_composed(velocity: Tensor, pieces: int) -> Tensor:
    """The displacement of one piece, made once and composed with itself."""
    step = _midpoint_step(velocity, torch.zeros_like(velocity), 1 / pieces)
    u = torch.zeros_like(velocity)
    for _ in range(pieces):
        u = spatial.compose(step, u)
    return u


def _midpoint_by(step: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    return lambda velocity, pieces: _steps(velocity, pieces, step)


midpoint = Check(
    SLUG,
    "midpoint",
    _midpoint,
    [_growing, lambda: (_velocities(8, 1), 3), lambda: (_velocities(6, 2), 2)],
    mistakes=[
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * _read(v, u)),
            "this is Euler's rule: the arrow is read where the piece begins.\n"
            "Read it a second time at the halfway place u + v / (2N), and use that one.",
        ),
        Mistake(
            _midpoint_by(
                lambda v, u, h: u + h / 2 * _read(v, u) + h * _read(v, u + h / 2 * _read(v, u))
            ),
            "the whole piece starts at the halfway place: every piece is half a piece too long.\n"
            "The halfway place says only where to look: u ← u + v(there) / N, from the old u.",
        ),
        Mistake(
            _midpoint_by(
                lambda v, u, h: u + h / 2 * _read(v, u) + h / 2 * _read(v, u + h / 2 * _read(v, u))
            ),
            "these are two Euler steps of half the length.\n"
            "From the old u, take the whole piece along the arrow of the halfway place.",
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h / 2 * _read(v, u + h / 2 * _read(v, u))),
            "the piece is half as long as it should be.\n"
            "Only the look ahead takes half a piece, 1 / (2N); the step itself takes 1 / N.",
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * _read(v, u + h * _read(v, u))),
            "this looks a whole piece ahead, not half of one.\nThe halfway place is u + v / (2N).",
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * _read(v, h / 2 * _read(v, u))),
            "the halfway place forgets how far the voxel has come.\n"
            "It is u + v / (2N), not v / (2N).",
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * _read(v, u + h / 2 * v)),
            "the first reading takes the arrow of the start, velocity, in every piece.\n"
            "Read it where the voxel is now: warp(velocity, u, padding=…).",
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * spatial.warp(v, u + h / 2 * spatial.warp(v, u))),
            "right inside, wrong where the way leaves the grid: there the river stands still.\n"
            'Extend it by its border: warp(…, padding="border"), both times.',
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * spatial.warp(v, u + h / 2 * _read(v, u))),
            "right inside, wrong where the way leaves the grid: the reading at the halfway place\n"
            'lacks padding="border", so that the river stands still outside.',
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * _read(v, u + h / 2 * spatial.warp(v, u))),
            "right inside, wrong where the way leaves the grid: the first reading, at u, of each\n"
            'piece lacks padding="border", so that the river stands still outside.',
        ),
        Mistake(
            _one_step_composed,
            "this makes the displacement of one piece and composes it with itself. Then the piece\n"
            "is interpolated between the voxels, and another number comes out. In every piece,\n"
            "read velocity itself twice: at u, and at the halfway place.",
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h * _read(v, u + _read(v, u) / 2 / h)),
            "the halfway place is too far away: v / 2 * N is N times v / 2.\n"
            "Python divides first; write v / (2 * pieces).",
        ),
        Mistake(
            lambda velocity, pieces: _midpoint_from(0 * velocity, velocity, pieces, 1),
            "this is the first of the N pieces alone.\n"
            "Does the loop return too early (a return inside it), or is there none?",
        ),
        Mistake(
            _midpoint_by(
                lambda v, u, h: u + h * _read(v, _grid(v) + u + h / 2 * _read(v, _grid(v) + u))
            ),
            "warp is given places, x + u; it takes displacements, u, and adds x by itself.\n"
            "Start from u = 0, not from the grid.",
        ),
        Mistake(
            lambda velocity, pieces: _midpoint(velocity, pieces) + _grid(velocity),
            "this is where each voxel ends, x + u(x); return the displacement u alone.",
        ),
        Mistake(
            lambda velocity, pieces: _midpoint(-velocity, pieces),
            "this follows the river backwards: both the halfway place and the step go *along* the\n"
            "arrow, with a plus.",
        ),
        Mistake(
            _midpoint_by(lambda v, u, h: u + h / 2 * (_read(v, u) + _read(v, u + h * _read(v, u)))),
            "this averages the arrows of the two ends of a piece (Heun's rule, as good as the\n"
            "midpoint rule, but another one). Use the one arrow half a piece ahead.",
        ),
        Mistake(
            lambda velocity, pieces: _steps(velocity * pieces, pieces, _midpoint_step),
            "the pieces are not divided by their number: N of them take N units of time.",
        ),
        Mistake(
            lambda velocity, pieces: _midpoint_from(velocity / pieces, velocity, pieces),
            "this takes one piece too many: it starts from velocity / N, where the first Euler\n"
            "step ends. Start from u = 0.",
        ),
        Mistake(
            lambda velocity, pieces: _midpoint_from(0 * velocity, velocity, pieces, pieces - 1),
            "one piece is missing: with pieces = 1 nothing moves.\nrange(pieces) counts N of them.",
        ),
        Mistake(
            lambda velocity, pieces: _steps(
                velocity, pieces, lambda v, u, h: u + h * _read(v, u + _read(v, u) / 2)
            ),
            "the halfway place is half a unit of time ahead, v / 2; it is half a *piece* ahead,\n"
            "v / (2N).",
        ),
        Mistake(
            lambda velocity, pieces: _midpoint(velocity, 1),
            "this is one piece, whatever their number.\n"
            "Repeat for range(pieces), with 1 / pieces of the time each. Does the loop return too\n"
            "early, or start again from u = 0?",
        ),
    ],
    gradient=True,
    hints=[
        "Start from euler. In each piece there are two readings of the velocity.",
        "The first reading gives the halfway place: u + warp(velocity, u, …) / (2 * pieces).",
        "The second one reads the velocity there; the step goes from u, not from halfway.",
    ],
)


# --- the exponential -----------------------------------------------------------------------------


def _count(longest: float) -> int:
    return max(0, math.ceil(math.log2(longest / 0.5))) if longest > 0 else 0


def _squared(u: Tensor, times: int) -> Tensor:
    for _ in range(times):
        u = spatial.compose(u, u)
    return u


def _longest(velocity: Tensor) -> float:
    return float(velocity.detach().norm(dim=1).max())


def _exponential(velocity: Tensor) -> Tensor:
    n = _count(_longest(velocity))
    return _squared(velocity / 2**n, n)


def _with(n_of: Callable[[Tensor], int]) -> Callable[[Tensor], Tensor]:
    """The exponential with another choice of n."""
    return lambda velocity: _squared(velocity / 2 ** n_of(velocity), n_of(velocity))


def _one_more_piece(velocity: Tensor) -> Tensor:
    n = _count(_longest(velocity))
    u = small = velocity / 2**n
    for _ in range(n):
        u = spatial.compose(small, u)
    return u


def _zeros_outside(velocity: Tensor) -> Tensor:
    n = _count(_longest(velocity))
    u = velocity / 2**n
    for _ in range(n):
        u = u + spatial.warp(u, u)
    return u


def _warped_only(velocity: Tensor) -> Tensor:
    n = _count(_longest(velocity))
    u = velocity / 2**n
    for _ in range(n):
        u = spatial.warp(u, u, padding="border")
    return u


def _slanting(size: float) -> tuple[Tensor]:
    """All arrows slant by 45°: the longest are (size, size) and (size / 3, size / 3)."""
    velocity = _velocities(1, 5)[:, :1]
    longest = velocity.abs().amax(dim=(1, 2, 3), keepdim=True)
    sizes = torch.tensor([size, size / 3]).view(2, 1, 1, 1)
    return ((velocity / longest * sizes).expand(2, 2, 14, 11).clone(),)


def _diagonal() -> tuple[Tensor]:
    """Arrows of (7, 7): 7 / 16 is below a half, but their length 9.9 / 16 is not."""
    return _slanting(7)


def _nearly() -> tuple[Tensor]:
    """Arrows of (5, 5), of length 7.1 / 16 below a half; but 5 + 5 = 10 is not below 8."""
    return _slanting(5)


def _second_is_strong() -> tuple[Tensor]:
    return (_velocities(5, 3).flip(0),)


def _strong() -> Tensor:
    """The longest arrow has 100 voxels."""
    return _velocities(100, 4)


def _exactly_half() -> Tensor:
    """The longest arrow has half a voxel to the last bit, and its neighbors differ from it."""
    noise = torch.randn(1, 1, 9, 7, generator=torch.Generator().manual_seed(9)).clamp(-1, 1)
    return torch.cat([noise / 2, 0 * noise], dim=1)


def _same_as(answer: Callable[[Tensor], Tensor], velocity: Tensor) -> bool:
    """Whether an answer, which may raise, gives what the reference gives."""
    try:
        with torch.no_grad():
            got = answer(velocity.clone())
    except Exception:
        return False
    wanted = _exponential(velocity)
    return bool(((got - wanted).abs() <= 1e-3 * max(1.0, float(wanted.abs().max()))).all())


def _by_euler(velocity: Tensor) -> Tensor:
    return _steps(velocity, 2 ** _count(_longest(velocity)), lambda v, u, h: u + h * _read(v, u))


def _squared_length(velocity: Tensor) -> int:
    return _count(float(velocity.detach().square().sum(dim=1).max()))


exponential = Check(
    SLUG,
    "exponential",
    _exponential,
    [_second_is_strong, lambda: (_velocities(15, 4),), _diagonal, _nearly],
    mistakes=[
        Mistake(
            lambda velocity: velocity.clone(),
            "this gives velocity itself. Adding does that, u + u, where compose(u, u) belongs;\n"
            "or the loop does not run.\n"
            "Compose: the second half of the way starts where the first one ended.",
        ),
        Mistake(
            lambda velocity: _squared(
                velocity / _count(_longest(velocity)), _count(_longest(velocity))
            ),
            "the velocity is divided by n, not by 2^n.\n"
            "n compositions double the time n times: they make 2^n pieces.",
        ),
        Mistake(
            lambda velocity: _squared(
                velocity / (2 * _count(_longest(velocity))), _count(_longest(velocity))
            ),
            "the velocity is divided by 2 · n, not by 2^n.\n"
            "n compositions double the time n times: 2 to the power of n, 2**n.",
        ),
        Mistake(
            lambda velocity: _squared(velocity, _count(_longest(velocity))),
            "the velocity is not divided at all, so the river is followed for 2^n units of time.\n"
            "Start from velocity / 2**n.",
        ),
        Mistake(
            lambda velocity: velocity / 2 ** _count(_longest(velocity)),
            "this is the first small piece alone, velocity / 2^n.\n"
            "Is the result of compose kept, u = compose(u, u), and does the loop run n times?",
        ),
        Mistake(
            _one_more_piece,
            "each composition adds one small piece, so that n + 1 of 2^n are walked.\n"
            "Compose the result with itself: u = compose(u, u).",
        ),
        Mistake(
            _warped_only,
            "this reads u at x + u(x), but forgets the first half of the way: u itself.\n"
            'compose(u, u) is u + warp(u, u, padding="border").',
        ),
        Mistake(
            _zeros_outside,
            "right inside, wrong at the border: there the field falls to 0.\n"
            'compose extends a field by its border; in your own code, warp(…, padding="border").',
        ),
        Mistake(
            _with(lambda velocity: _count(_longest(velocity)) + 1),
            "one squaring too many: the smallest n was asked.\n"
            "With an arrow of 5 voxels n is 4: 5/16 is not longer than half a voxel.",
        ),
        Mistake(
            _with(lambda velocity: _count(_longest(velocity)) - 1),
            "one squaring too few: with this n the first piece is up to a voxel long.\n"
            "Likely causes: rounded down instead of up; a bound of 1 voxel instead of a half; or\n"
            "velocity.max(), which overlooks arrows with negative components.",
        ),
        Mistake(
            _with(lambda velocity: _count(float(velocity.detach().abs().max()))),
            "n is chosen by the largest component; an arrow can be longer than its components.\n"
            "Its length is velocity.norm(dim=1), the norm over the two channels.",
        ),
        Mistake(
            _with(lambda velocity: _count(float(velocity.detach().norm(dim=1).mean()))),
            "n is chosen by the mean length of the arrows; *no* arrow may be longer than half a\n"
            "voxel, so the longest decides.",
        ),
        Mistake(
            _with(lambda velocity: _count(float(velocity.detach().norm()))),
            "n is chosen by the norm of the whole tensor, which grows with the number of voxels.\n"
            "An arrow has two components: velocity.norm(dim=1), and the longest of those.",
        ),
        Mistake(
            _with(lambda velocity: _count(float(velocity.detach().abs().sum(dim=1).max()))),
            "n is chosen by the sum of the two components, |v₀| + |v₁|, which is longer than the\n"
            "arrow. Its length is √(v₀² + v₁²): velocity.norm(dim=1).",
        ),
        Mistake(
            _with(_squared_length),
            "n is chosen by the *squared* length of the arrows. Take its root:\n"
            "velocity.norm(dim=1).",
        ),
        Mistake(
            _with(lambda velocity: _count(_longest(velocity[:1]))),
            "n is chosen by the first item of the batch alone; no arrow of any item may be longer\n"
            "than half a voxel.",
        ),
        Mistake(
            lambda velocity: _squared(
                velocity / 2 ** _count(_longest(velocity)), _count(_longest(velocity)) - 1
            ),
            "the velocity is divided by 2^n, but composed n − 1 times: half the time is missing.\n"
            "range(n) counts n of them, range(1, n) one less.",
        ),
        Mistake(
            lambda velocity: spatial.integrate(
                velocity / 2 ** _count(_longest(velocity)), _count(_longest(velocity))
            ),
            "the velocity is divided by 2^n twice: integrate(v, n) divides v itself.",
        ),
        Mistake(
            _by_euler,
            "these are 2^n Euler steps. Scaling and squaring composes the *result* with itself,\n"
            "u = compose(u, u), n times.",
        ),
        Mistake(
            lambda velocity: torch.cat([_exponential(item[None]) for item in velocity]),
            "each item of the batch chooses its own n; one n serves the whole batch.",
        ),
        Mistake(
            lambda velocity: spatial.integrate(velocity, 7),
            "this takes 7 squarings whatever the velocity.\n"
            "Choose the smallest n with which no arrow of velocity / 2**n is longer than 0.5.",
        ),
        *(
            Mistake(
                _with(lambda velocity, n=n: n),  # type: ignore[misc]
                f"this takes {n} squarings whatever the velocity.\n"
                "Choose the smallest n with which no arrow of velocity / 2**n is longer than 0.5.",
            )
            for n in (4, 5, 12)
        ),
    ],
    laws=[
        Law(
            lambda answer: _same_as(answer, torch.zeros(1, 2, 5, 4)),
            "right for rivers that flow; where all arrows are 0 it fails or gives no zeros.\n"
            "Then n = 0. Likely cause: the logarithm of 0. A loop, while longest / 2**n > 0.5,\n"
            "needs no logarithm.",
        ),
        Law(
            lambda answer: all(
                _same_as(answer, size * 2 * _exactly_half()) for size in (0.05, 0.2, 0.4)
            ),
            "right for strong rivers. Where no arrow is longer than half a voxel to begin with, n\n"
            "is 0, and the displacement is the velocity: there it gives something else.\n"
            "Likely causes: n starts at 1; or n is a logarithm below 0: max(0, …).",
        ),
        Law(
            lambda answer: _same_as(answer, _exactly_half()),
            "one squaring too many where the longest arrow has exactly half a voxel: that is not\n"
            "*longer* than half a voxel. Use > 0.5, not >= 0.5; math.ceil, not int(…) + 1.",
        ),
        Law(
            lambda answer: _same_as(answer, _velocities(40, 4)) and _same_as(answer, _strong()),
            "too few squarings for a strong river: n is not bounded. Where the longest arrow has\n"
            "100 voxels, n is 8. Does a loop over n end too early?",
        ),
    ],
    gradient=True,
    hints=[
        "The longest arrow: velocity.norm(dim=1).max(). Count n up while it is longer than 0.5 "
        "after division by 2**n.",
        "Then u = velocity / 2**n, and n times u = compose(u, u).",
    ],
)


# --- half resolution -----------------------------------------------------------------------------


def _half(velocity: Tensor) -> list[int]:
    return [(size + 1) // 2 for size in velocity.shape[2:]]


def _via_half(
    velocity: Tensor,
    down: Callable[..., Tensor] = spatial.resize_displacement,
    up: Callable[..., Tensor] = spatial.resize_displacement,
) -> Tensor:
    return up(spatial.integrate(down(velocity, _half(velocity))), velocity.shape[2:])


def _half_inputs() -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(6)
    noise = spatial.smooth(torch.randn(2, 2, 22, 31, generator=generator), 3)
    return (noise / noise.norm(dim=1).max() * 9,)


def _half_constant() -> tuple[Tensor]:
    return (torch.tensor([-4.0, 10.0]).view(1, 2, 1, 1).expand(1, 2, 6, 9).clone(),)


def _scaled_twice(velocity: Tensor) -> Tensor:
    small = spatial.resize_displacement(velocity, _half(velocity)) / 2
    return 2 * spatial.resize_displacement(spatial.integrate(small), velocity.shape[2:])


def _by_two(velocity: Tensor) -> Tensor:
    small = spatial.resize_image(velocity, _half(velocity)) / 2
    return 2 * spatial.resize_image(spatial.integrate(small), velocity.shape[2:])


def _size_ratio(field: Tensor, shape: Any) -> Tensor:
    """Rescales by n' / n, axis by axis, where (n' − 1) / (n − 1) belongs."""
    factors = [new / old for new, old in zip(shape, field.shape[2:], strict=True)]
    return spatial.resize_image(field, shape) * torch.tensor(factors).to(field).view(1, -1, 1, 1)


def _halved(field: Tensor, shape: Any) -> Tensor:
    return spatial.resize_image(field, shape) / 2


def _resized_after(velocity: Tensor) -> Tensor:
    """Integrated at full size, then down and up: no work is saved."""
    full = spatial.integrate(velocity)
    return spatial.resize_displacement(
        spatial.resize_displacement(full, _half(velocity)), velocity.shape[2:]
    )


def _corners_not_aligned(velocity: Tensor) -> Tensor:
    def resize(field: Tensor, shape: Any) -> Tensor:
        resized = torch.nn.functional.interpolate(
            field, size=list(shape), mode="bilinear", align_corners=False
        )
        factors = [new / old for new, old in zip(shape, field.shape[2:], strict=True)]
        return resized * torch.tensor(factors).view(1, -1, 1, 1)

    return _via_half(velocity, resize, resize)


half_resolution = Check(
    SLUG,
    "half_resolution",
    _via_half,
    [_half_constant, _half_inputs],
    mistakes=[
        Mistake(
            lambda velocity: _via_half(velocity, down=spatial.resize_image),
            "the velocity comes to the half grid with its values unchanged: about twice too fast.\n"
            "A velocity is a distance per time. Ten voxels of the full grid are about five of the\n"
            "half grid: which function rescales the values too?",
        ),
        Mistake(
            lambda velocity: _via_half(velocity, up=spatial.resize_image),
            "the displacement comes back in voxels of the half grid: about half as long as it is.\n"
            "resize_displacement rescales the values too.",
        ),
        Mistake(
            lambda velocity: _via_half(velocity, spatial.resize_image, spatial.resize_image),
            "the values are rescaled neither on the way down nor on the way up.\n"
            "For a constant velocity the two errors cancel; for any other the points have taken\n"
            "leaps twice too long on the half grid, and met other arrows there.",
        ),
        Mistake(
            _scaled_twice,
            "the values are rescaled twice: resize_displacement does it already.\n"
            "Drop the division and the multiplication by 2.",
        ),
        *(
            Mistake(
                wrong,
                "nearly right, but the factor is not 2, nor the ratio of the sizes: it is\n"
                "(n' − 1) / (n − 1), axis by axis, because the corner voxels stay where they are:\n"
                "2/5 and 4/8 for the sizes 6 and 9. resize_displacement does it, both ways.",
            )
            for wrong in (
                _by_two,
                lambda velocity: _via_half(velocity, _halved),
                lambda velocity: _via_half(velocity, _size_ratio),
                lambda velocity: _via_half(velocity, _size_ratio, _size_ratio),
            )
        ),
        Mistake(
            lambda velocity: _via_half(velocity / 2),
            "the velocity is halved twice: resize_displacement does it already. Drop the / 2.",
        ),
        Mistake(
            lambda velocity: spatial.resize_displacement(
                spatial.resize_displacement(velocity, _half(velocity)), velocity.shape[2:]
            ),
            "this is the velocity, resized down and up: nothing is integrated.\n"
            "Between the two resizes belongs integrate.",
        ),
        Mistake(
            lambda velocity: spatial.resize_displacement(
                spatial.integrate(spatial.resize_displacement(velocity, _half(velocity)[::-1])),
                velocity.shape[2:],
            ),
            "the two sizes of the half grid are swapped: rows first, then columns, as in\n"
            "velocity.shape[2:].",
        ),
        Mistake(
            spatial.integrate,
            "this integrates on the full grid.\n"
            "Bring the velocity to the half grid, integrate there, and bring the result back.",
        ),
        Mistake(
            _resized_after,
            "this integrates on the full grid, and resizes the result down and up: no work is\n"
            "saved. The velocity goes to the half grid, before integrate.",
        ),
        Mistake(
            lambda velocity: spatial.integrate(
                spatial.resize_displacement(velocity, _half(velocity))
            ),
            "this is still on the half grid; bring the displacement back to velocity.shape[2:].",
        ),
        Mistake(
            lambda velocity: spatial.integrate(
                spatial.resize_displacement(
                    spatial.resize_displacement(velocity, _half(velocity)), velocity.shape[2:]
                )
            ),
            "this blurs the velocity and integrates it on the full grid.\n"
            "Integrate between the two resizes: there the grid is small, and the work too.",
        ),
        Mistake(
            lambda velocity: _via_half(velocity, down=spatial.resize_image) / 2,
            "the velocity comes to the half grid twice too fast, and the result is divided by 2.\n"
            "Too late: the points have taken leaps twice too long, and met other arrows there.\n"
            "Rescale the velocity before integrate; resize_displacement does.",
        ),
        Mistake(
            lambda velocity: spatial.resize_displacement(
                spatial.integrate(velocity[:, :, ::2, ::2] / 2), velocity.shape[2:]
            ),
            "every second voxel loses the last row or column where a size is even, and then the\n"
            "factor is not 2. resize_displacement keeps the corners, and knows the factor.",
        ),
        Mistake(
            lambda velocity: spatial.resize_displacement(
                spatial.integrate(
                    spatial.resize_displacement(velocity, [n // 2 for n in velocity.shape[2:]])
                ),
                velocity.shape[2:],
            ),
            "the half grid has n // 2 voxels here; (n + 1) // 2 was asked: 16 along an axis of 31.",
        ),
        Mistake(
            _corners_not_aligned,
            "this resizes with align_corners=False, which lays the half grid elsewhere.\n"
            "resize_displacement keeps the corner voxels on the corner voxels, as warp does.",
        ),
    ],
    gradient=True,
    hints=[
        "What happens to a constant velocity of (0, 10) in the function with the bug? Follow its "
        "value through the three calls.",
        "resize_image changes the grid, resize_displacement changes grid and values. Both resizes "
        "carry distances.",
    ],
)


# --- the inverse with its residual ---------------------------------------------------------------

_MOST = 100
_PATIENCE = 60_000  # operations: 100 steps take some thousands


class _Limit(TorchDispatchMode):
    """Ends what would never end: a loop without a bound, on a field that cannot be inverted."""

    left = _PATIENCE

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise TimeoutError(
                f"stopped after {_PATIENCE} operations: the loop does not end. "
                "Take at most 100 steps."
            )
        return function(*args, **(kwargs or {}))


class _Bounded(Check):
    """A check whose answers may loop forever: every run of theirs is cut off."""

    def _one_run(self, answer: Function, make: Inputs) -> Any:
        with _Limit():
            return super()._one_run(answer, make)


Residual = Callable[[Tensor, Tensor], Tensor]


def _residual(displacement: Tensor, w: Tensor) -> float:
    return float(spatial.compose(displacement, w).norm(dim=1).max())


def _invert_by(
    step: Callable[[Tensor, Tensor], Tensor], residual: Residual = spatial.compose
) -> Callable[..., tuple[Tensor, float]]:
    """The inverse by another step; ``residual`` is what decides when to stop, and is returned."""

    def answer(displacement: Tensor, tolerance: float) -> tuple[Tensor, float]:
        w = torch.zeros_like(displacement)
        for _ in range(_MOST):
            if _longest(residual(displacement, w)) <= tolerance:
                break
            w = step(displacement, w)
        return w, _longest(residual(displacement, w))

    return answer


def _invert_with(residual: Residual) -> Callable[..., tuple[Tensor, float]]:
    """The inverse with a wrong residual, wherever there is one."""
    return _invert_by(lambda u, w: w - residual(u, w), residual)


_invert = _invert_with(spatial.compose)


def _zeros_residual(u: Tensor, w: Tensor) -> Tensor:
    return w + spatial.warp(u, w)


def _swapped_residual(u: Tensor, w: Tensor) -> Tensor:
    return spatial.compose(w, u)


def _doubled_residual(u: Tensor, w: Tensor) -> Tensor:
    return w + spatial.compose(u, w)


def _residual_without_w(u: Tensor, w: Tensor) -> Tensor:
    return spatial.warp(u, w, padding="border")


def _invertible() -> tuple[Tensor, float]:
    """Two fields, of slopes that the iteration can take."""
    generator = torch.Generator().manual_seed(8)
    field = spatial.smooth(torch.randn(2, 2, 17, 13, generator=generator), 2.5)
    field = field / (spatial.jacobian(field) - torch.eye(2).view(1, 2, 2, 1, 1)).abs().max() * 0.42
    return field * torch.tensor([1.0, 0.6]).view(2, 1, 1, 1) + torch.tensor([1.5, -0.5]).view(
        1, 2, 1, 1
    ), 2e-5


def _push(amplitude: float) -> Tensor:
    """A bump of slope 0.121 · amplitude: it folds from 8.24 voxels on."""
    return bump_displacement((24, 30), amplitude, 5, 0.5)


def _bump() -> tuple[Tensor, float]:
    # A tolerance far below that of the values: who stops somewhat late or early still gets to
    # the laws, which say so.
    return _push(3), 2e-5


def _folded() -> tuple[Tensor, float]:
    """A push that is too steep, in a slanting direction: its arrows are longer than a component."""
    push = _push(15)
    return torch.cat([0.6 * push[:, 1:], 0.8 * push[:, 1:]], dim=1), 1e-3


def _two_bumps() -> Tensor:
    """Arrows that slant, with a slope that halves the residual in each step or less."""
    push = _push(3)
    return push + push.flip(1)


_TOLERANCES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)


def _ends(answer: Callable[..., Any]) -> bool:
    try:
        with _Limit():
            answer(*_folded())
    except TimeoutError:
        return False
    return True


def _returns_a_pair(answer: Callable[..., Any]) -> bool:
    """Also where the tolerance is never reached."""
    got = answer(*_folded())
    return isinstance(got, (tuple, list)) and len(got) == 2 and got[0] is not None


def _reaches_the_tolerance(answer: Callable[..., Any]) -> bool:
    u = _two_bumps()
    return all(_residual(u, answer(u, limit)[0]) <= 1.001 * limit for limit in _TOLERANCES)


def _number_is_right(answer: Callable[..., Any], u: Tensor, tolerance: float) -> bool:
    """The number is the longest residual of the very w that came with it."""
    w, longest = answer(u, tolerance)
    return abs(float(longest) - _residual(u, w)) <= 1e-3 * max(1.0, _residual(u, w))


def _right_where_reached(answer: Callable[..., Any]) -> bool:
    return all(_number_is_right(answer, _two_bumps(), limit) for limit in _TOLERANCES)


def _right_where_not_reached(answer: Callable[..., Any]) -> bool:
    # The second does not fold; its slope of 0.97 is too much for 100 steps.
    return all(_number_is_right(answer, u, 1e-3) for u in (_folded()[0], _push(8)))


def _stops(answer: Callable[..., Any]) -> bool:
    """With a loose tolerance the answer is rough: what goes on to the end is far better."""
    return _residual(_push(5), answer(_push(5), 0.5)[0]) > 0.02


def _after(steps: int) -> float:
    """The longest residual after so many steps, where 100 are not enough."""
    u = _push(8)
    w = torch.zeros_like(u)
    for _ in range(steps):
        w = w - spatial.compose(u, w)
    return _residual(u, w)


def _enough_steps(answer: Callable[..., Any]) -> bool:
    """The first needs 93 steps. In the second, some steps more or less are let pass."""
    reached = _residual(_push(7.6), answer(_push(7.6), 1e-3)[0]) < 1.5e-3
    return reached and _residual(_push(8), answer(_push(8), 1e-3)[0]) < _after(90)


def _not_too_many_steps(answer: Callable[..., Any]) -> bool:
    return _residual(_push(8), answer(_push(8), 1e-3)[0]) > _after(110)


def _shift() -> tuple[Tensor, float]:
    return torch.tensor([0.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 5, 7).clone(), 1e-3


def _with_number(
    change: Callable[[Tensor, Tensor, float], tuple[Tensor, float]],
) -> Callable[..., tuple[Tensor, float]]:
    """The right inverse, with something wrong about what is returned."""

    def answer(displacement: Tensor, tolerance: float) -> tuple[Tensor, float]:
        return change(displacement, *_invert(displacement, tolerance))

    return answer


_PADDING = (
    "outside the grid u falls to 0 here, so the inverse is wrong at the border.\n"
    'compose extends it by its border value; in your own code, warp(…, padding="border").'
)
_ORDER = (
    "the residual composes in the wrong order: w(y) + u(y + w(y)) reads u where w leads,\n"
    "which is compose(displacement, w)."
)

invert = _Bounded(
    SLUG,
    "invert",
    _invert,
    [_shift, _bump, _invertible],
    atol=1e-3,
    mistakes=[
        Mistake(
            lambda displacement, tolerance: (-displacement, _residual(displacement, -displacement)),
            "this w is −u, the first step of the iteration; it misses, and your number says so.\n"
            "Go on until no residual is longer than the tolerance. Does the loop end too early?",
        ),
        Mistake(
            lambda displacement, tolerance: (displacement * 0, _longest(displacement)),
            "this w is zero, the start of the iteration.\n"
            "Is the new w kept, w = w − residual, and does the loop not stop at once?\n"
            "It should stop when the longest residual is *below* the tolerance.",
        ),
        Mistake(
            _with_number(lambda u, w, r: (-w, _residual(u, -w))),
            "right size, opposite sign: the way back is w with w(y) = −u(y + w(y)).",
        ),
        Mistake(
            lambda displacement, tolerance: _invert(displacement, tolerance)[::-1],
            "right, in the wrong order: return w first, then the number.",
        ),
        Mistake(
            lambda displacement, tolerance: _invert(displacement, tolerance)[0],
            "this is w alone. Return the longest residual with it: return w, longest.",
        ),
        Mistake(
            _invert_by(lambda u, w: w + spatial.compose(u, w)),
            "the residual is added, so that every step doubles the error.\n"
            "A residual is what is too much: w ← w − r.",
        ),
        Mistake(
            _invert_by(lambda u, w: -spatial.compose(u, w)),
            "w is replaced by −r; a step takes the residual away from the old w: w ← w − r.",
        ),
        Mistake(
            lambda displacement, tolerance: (-_MOST * displacement, _longest(displacement)),
            "the residual is computed once, before the loop, so that every step subtracts the\n"
            "same u. Compute it anew from each new w.",
        ),
        Mistake(
            _with_number(lambda u, w, r: (w + _grid(u), r)),
            "this is the map y + w(y); return the displacement w alone.",
        ),
        *(
            Mistake(_invert_by(lambda u, w, r=r: w - r(u, w)), hint)  # type: ignore[misc]
            for r, hint in ((_zeros_residual, _PADDING), (_swapped_residual, _ORDER))
        ),
        Mistake(_invert_with(_zeros_residual), _PADDING),
        Mistake(_invert_with(_swapped_residual), _ORDER),
        Mistake(
            _invert_with(_doubled_residual),
            "the residual has w twice: compose(displacement, w) is w(y) + u(y + w(y)) already.",
        ),
        Mistake(
            _invert_with(_residual_without_w),
            "the residual lacks w: u(y + w(y)) alone is where u leads from there.\n"
            "How far y misses itself is w(y) + u(y + w(y)), which is compose(displacement, w).",
        ),
        Mistake(
            _with_number(lambda u, w, r: (w, _longest(w))),
            "w is right; the number is the longest arrow of w, or the residual of the very start,\n"
            "w = 0, which is as long. Asked is the longest *residual* of the w that you return:\n"
            "w(y) + u(y + w(y)), how far y misses itself.",
        ),
    ],
    laws=[
        Law(
            _ends,
            "on a field that folds it does not end.\n"
            "No tolerance is ever reached there: take at most 100 steps, for _ in range(100).",
        ),
        Law(
            _returns_a_pair,
            "right where the tolerance is reached; on a field that folds it never is, and there\n"
            "nothing is returned, or no pair. Is the return inside the if? Return w and the\n"
            "number after the loop too.",
        ),
        Law(
            _reaches_the_tolerance,
            "it stops too early: some residual is still longer than the tolerance.\n"
            "Likely causes: a mean or the largest component (.abs().max()) instead of the longest\n"
            "arrow, or components compared without their sign removed. The length is\n"
            "residual.norm(dim=1), and the longest of those decides.",
        ),
        Law(
            _right_where_reached,
            "w is right; the number is not the longest residual of that w.\n"
            "Likely causes: a mean, the largest component, the norm of the whole tensor, a fixed\n"
            "number, or the residual from before the last step. Compute it from the w that you\n"
            "return: compose(displacement, w).norm(dim=1).max().",
        ),
        Law(
            _right_where_not_reached,
            "right where the tolerance is reached. Where it is not (a field that folds, or one\n"
            "that needs more than 100 steps), the number is not the longest residual of the w\n"
            "that came with it: is it that from before the last step? Compute it once more after\n"
            "the loop, from the w that you return.",
        ),
        Law(
            _enough_steps,
            "it gives up early: a bump with a slope of 0.92 needs 93 steps to come below a\n"
            "residual of 0.001. Allow 100.",
        ),
        Law(
            _stops,
            "it does not stop at the tolerance: asked for 0.5 voxels, it goes on to a far smaller\n"
            "residual. Compare the longest residual with tolerance before each step, and break.",
        ),
        Law(
            _not_too_many_steps,
            "it goes on after 100 steps where the tolerance is not reached; stop then in any case.",
        ),
    ],
    hints=[
        "The residual of a guess w is compose(displacement, w): w(y) + u(y + w(y)).",
        "In each of at most 100 steps: compute the residual; if its longest arrow is not longer "
        "than tolerance, stop; else w = w − residual.",
        "After the loop, compute the residual once more, and return (w, its longest arrow).",
    ],
)


# --- the roughest river --------------------------------------------------------------------------

_BRAIN = (224, 192)


def _folds(smoothness: float) -> int:
    """Folded voxels of the river of the exercise, with 8 squarings."""
    there = spatial.integrate(random_velocity(_BRAIN, 20, max(0.0, smoothness), seed=1), 8)
    return int((spatial.jacobian_determinant(there) <= 0).sum())


def _river(smoothness: float) -> dict[str, float]:
    return {
        "folded voxels": _folds(float(smoothness)),
        "folded voxels at 0.1 less": _folds(float(smoothness) - 0.1),
    }


def _smoothness(setting: object) -> str | None:
    if isinstance(setting, bool) or not isinstance(setting, (int, float)):
        return "expected one number, the smoothness in voxels."
    if not 0 <= setting <= 50:
        return f"expected a smoothness from 0 to 50 voxels, got {setting}."
    return None


roughest = Goal(
    SLUG,
    "roughest",
    _river,
    lambda measured: measured["folded voxels"] == 0 < measured["folded voxels at 0.1 less"],
    "no voxel folds, and with a smoothness lower by 0.1 voxels some voxel does.",
    reference=lambda: 3.8,
    valid=_smoothness,
    hints=[
        "measure(8) has no folds and measure(2.5) has many: try values between, and halve the gap.",
        "The limit lies between 3.5 and 4. Go through that gap in steps of 0.1.",
    ],
)

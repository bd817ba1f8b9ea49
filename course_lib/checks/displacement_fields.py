"""Checks of exercise 11: identity grid, integer warps, points, composition, inversion in 1D."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_lib import spatial
from course_lib.checks.core import Check, Law, Mistake
from course_lib.checks.running import count_operations

SLUG = "11_displacement_fields"

Array = NDArray[np.float64]


# --- the dot -------------------------------------------------------------------------------------


def _dot() -> tuple[int, int]:
    return 3, 8


dot_after_warp = Check(
    SLUG,
    "dot_after_warp",
    _dot,
    [lambda: ()],
    mistakes=[
        Mistake(
            lambda: (5, 4),
            "this moves the dot along the arrow.\n"
            "The arrow starts at x, a voxel of the warped image, and ends where its value is\n"
            "fetched from. Which x has its arrow end at the dot: x + (1, −2) = (4, 6)?",
        ),
        Mistake(
            lambda: (6, 5),
            "this takes channel 0 of u for the columns.\n"
            "Channel 0 belongs to axis 0, the row i; channel 1 to the column j.",
        ),
        Mistake(
            lambda: (2, 7),
            "this moves the dot along the arrow, and takes channel 0 for the columns.\n"
            "Channel 0 belongs to the row i. Then ask which x has its arrow end at the dot.",
        ),
        Mistake(
            lambda: (4, 6),
            "this is where the dot was; u is not zero, so the picture changes.\n"
            "Which x has its arrow end at the dot: x + (1, −2) = (4, 6)?",
        ),
        Mistake(
            lambda: (3, 4),
            "the row is right; the column moves along its arrow.\n"
            "Channel 1 is −2: which column j has j − 2 = 6?",
        ),
        Mistake(
            lambda: (5, 8),
            "the column is right; the row moves along its arrow.\n"
            "Channel 0 is 1: which row i has i + 1 = 4?",
        ),
        Mistake(
            lambda: (8, 3),
            "right numbers, in the order (column, row).\nReturn (row i, column j).",
        ),
    ],
    hints=[
        "warped(x) = moving(x + u(x)). The dot appears at the x for which x + u(x) is the dot's "
        "place in the moving image.",
        "Solve x + (1, −2) = (4, 6).",
    ],
)


# --- identity grid -------------------------------------------------------------------------------


def _grid_xy(shape: tuple[int, ...]) -> Tensor:
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="xy"))


identity_grid = Check(
    SLUG,
    "identity_grid",
    spatial.identity_grid,
    [lambda: ((3, 5),), lambda: ((4, 2, 3),)],
    mistakes=[
        Mistake(
            _grid_xy,
            "this grid is indexed [j, i], as pictures are; its axes are transposed.\n"
            "For the shape (3, 5) the result has shape (2, 3, 5), in the order of the array.\n"
            'Likely cause: meshgrid with indexing="xy", which is also NumPy\'s default.',
        ),
        Mistake(
            lambda shape: spatial.identity_grid(shape).flip(0),
            "the channels are in the order (j, i).\n"
            "Channel 0 has to hold the row index i: grid[0, 2, 3] is 2, and grid[1, 2, 3] is 3.",
        ),
        Mistake(
            lambda shape: spatial.identity_grid(shape).movedim(0, -1),
            "the coordinates are in the last axis.\n"
            "Displacements keep their D channels first: the shape is (D, *shape), so that\n"
            "grid + u works. (grid_sample wants them last; lesson 12 tells how to get there.)\n"
            "Likely cause: stack(…, dim=-1).",
        ),
        Mistake(
            lambda shape: _normalized(spatial.identity_grid(shape)),
            "these coordinates run from −1 to 1.\n"
            "grid_sample counts so; our fields count in voxels, from 0 to n − 1.",
        ),
        Mistake(
            lambda shape: spatial.identity_grid(shape) + 1,
            "this counts from 1.\nThe first voxel is 0, as in indexing: arange(n), not 1 to n.",
        ),
        Mistake(
            lambda shape: spatial.identity_grid(shape[:2]),
            "this takes two axes only; volumes have three.\n"
            "Loop over shape: one arange for each size.",
        ),
        Mistake(
            lambda shape: spatial.identity_grid(shape)[None],
            "there is a batch axis too many.\nThe shape is (D, *shape): the same grid serves all.",
        ),
    ],
    hints=[
        "torch.arange(n) counts along one axis. torch.meshgrid spreads such counts over a grid.",
        'torch.meshgrid(*axes, indexing="ij") gives one array an axis; torch.stack joins them '
        "along a new first axis. Give arange a floating dtype.",
    ],
)


def _normalized(grid: Tensor) -> Tensor:
    sizes = torch.tensor(grid.shape[1:]).view(-1, *(1,) * (grid.ndim - 1))
    return 2 * grid / (sizes - 1) - 1


# --- warp by whole voxels ------------------------------------------------------------------------


def _whole_voxels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    image = 1 + torch.rand(2, 2, 6, 9, generator=generator)
    return image, torch.randint(-3, 4, (2, 2, 6, 9), generator=generator).float()


def _one_shift() -> tuple[Tensor, Tensor]:
    image = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    return image, torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4).clone()


def _warp_integer(image: Tensor, displacement: Tensor) -> Tensor:
    return spatial.warp(image, displacement, mode="nearest")


def _forward(image: Tensor, displacement: Tensor) -> Tensor:
    """Every voxel thrown along its arrow, the last one to arrive wins."""
    result = torch.zeros_like(image)
    for b in range(image.shape[0]):
        for i in range(image.shape[2]):
            for j in range(image.shape[3]):
                k, m = i + int(displacement[b, 0, i, j]), j + int(displacement[b, 1, i, j])
                if 0 <= k < image.shape[2] and 0 <= m < image.shape[3]:
                    result[b, :, k, m] = image[b, :, i, j]
    return result


def _wrapped(image: Tensor, displacement: Tensor) -> Tensor:
    """What indices below zero do in Python, and a modulo at the other end."""
    sizes = torch.tensor(image.shape[2:]).view(1, 2, 1, 1)
    grid = spatial.identity_grid(image.shape[2:])
    return _warp_integer(image, (grid + displacement) % sizes - grid)


def _negative_wraps(image: Tensor, displacement: Tensor) -> Tensor:
    """Zeros beyond the last row and column; before the first, Python counts from the end."""
    sizes = torch.tensor(image.shape[2:]).view(1, 2, 1, 1)
    grid = spatial.identity_grid(image.shape[2:])
    positions = grid + displacement
    return _warp_integer(image, torch.where(positions < 0, positions + sizes, positions) - grid)


def _rolled(image: Tensor, displacement: Tensor) -> Tensor:
    shifts = [(-int(u[0, 0, 0]), -int(u[1, 0, 0])) for u in displacement]
    return torch.stack([x.roll(s, (1, 2)) for x, s in zip(image, shifts, strict=True)])


def _first_item(image: Tensor, displacement: Tensor) -> Tensor:
    return _warp_integer(image, displacement[:1].expand_as(displacement))


def _few_operations(answer: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Far fewer than the 864 voxels: the number of operations must not grow with the image."""
    return count_operations(answer, torch.ones(2, 1, 18, 24), torch.ones(2, 2, 18, 24)) < 200


warp_integer = Check(
    SLUG,
    "warp_integer",
    _warp_integer,
    [_one_shift, _whole_voxels],
    mistakes=[
        Mistake(
            lambda image, displacement: _warp_integer(image, -displacement),
            "this fetches from x − u(x).\n"
            "warped(x) = moving(x + u(x)): with u = (1, −1), voxel (0, 1) shows the value of\n"
            "voxel (1, 0).",
        ),
        Mistake(
            _forward,
            "this throws each voxel along its arrow instead of fetching.\n"
            "Where arrows cross, one value is lost; where none ends, a hole stays. Loop over the\n"
            "voxels of the *result* and fetch: result[…, i, j] = image[…, i + u_0, j + u_1].",
        ),
        Mistake(
            lambda image, displacement: _warp_integer(image, displacement.flip(1)),
            "this moves along the wrong axis.\n"
            "With u = (1, −1), channel 0 (the 1) moves along rows, channel 1 along columns.",
        ),
        Mistake(
            lambda image, displacement: spatial.warp(
                image, displacement, mode="nearest", padding="border"
            ),
            "outside the image this repeats the border value.\n"
            "Here the outside is 0. Likely cause: clamp() without putting zeros where it acted.",
        ),
        Mistake(
            _wrapped,
            "what leaves the image on one side comes back on the other.\n"
            "Likely cause: roll(), % or an index below zero, which Python counts from the end.\n"
            "Outside the image the value is 0.",
        ),
        Mistake(
            _negative_wraps,
            "an index below zero counts from the end in Python: what leaves the image on top or\n"
            "left comes back at the bottom or right.\n"
            "Check both bounds: 0 <= i as well as i < height. Outside the image the value is 0.",
        ),
        Mistake(
            lambda image, displacement: _warp_integer(image, -displacement.flip(1)),
            "this moves along the wrong axis, and fetches from x − u(x).\n"
            "Channel 0 moves along rows, channel 1 along columns; fetch from x + u(x).",
        ),
        Mistake(
            lambda image, displacement: _warp_integer(
                image, displacement - spatial.identity_grid(image.shape[2:])
            ),
            "this fetches from u(x): the identity is missing.\nFetch from x + u(x).",
        ),
        Mistake(
            _rolled,
            "the whole image moves by the arrow of voxel (0, 0), what leaves it comes back.\n"
            "Likely cause: roll(). Each voxel has its own arrow; outside the image the value is 0.",
        ),
        Mistake(
            _first_item,
            "every item of the batch moves by the displacement of the first.\n"
            "Likely cause: displacement[0]; each image has its own field.",
        ),
        Mistake(
            lambda image, displacement: _warp_integer(image[:, :1].expand_as(image), displacement),
            "every channel shows the first one.\nLikely cause: image[:, 0]; keep the channel axis.",
        ),
    ],
    laws=[
        Law(
            _few_operations,
            "right, but with a loop inside: hundreds of operations for an image of 864 voxels.\n"
            "Compute all positions at once, identity_grid(shape) + displacement, and index the\n"
            "image with whole arrays of rows and columns. A loop over the batch is fine.",
        )
    ],
    hints=[
        "First the positions: identity_grid(shape) + displacement, as whole numbers: .long().",
        "Which positions are inside? Compare them with 0 and with the sizes, and clamp() them so "
        "that indexing works everywhere; put zeros outside afterwards.",
        "For item b of the batch, image[b][:, rows, columns] fetches all channels at once.",
    ],
)


# --- points --------------------------------------------------------------------------------------


def _points_and_field() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(12)
    points = torch.stack(
        [
            # Below 5 along both axes: swapped indices are wrong then, and not out of bounds.
            torch.randint(0, 5, (2, 6), generator=generator),
            torch.randint(0, 5, (2, 6), generator=generator),
        ],
        dim=-1,
    ).float()
    return points, 2 * torch.randn(2, 2, 7, 5, generator=generator)


def _one_point() -> tuple[Tensor, Tensor]:
    field = torch.zeros(1, 2, 4, 6)
    field[0, :, 1, 3] = torch.tensor([0.5, -1.0])
    field[0, :, 3, 1] = torch.tensor([-2.0, 0.25])
    return torch.tensor([[[1.0, 3.0]]]), field


def _moved(points: Tensor, displacement: Tensor) -> Tensor:
    """``u(p)`` alone."""
    return spatial.warp_points(points, displacement) - points


warp_points = Check(
    SLUG,
    "warp_points",
    spatial.warp_points,
    [_one_point, _points_and_field],
    mistakes=[
        Mistake(
            lambda points, displacement: points - _moved(points, displacement),
            "this moves the points against the arrows.\n"
            "An image is fetched (its content seems to move against u); a point of the fixed\n"
            "image goes along: it lies at p + u(p) in the moving image.",
        ),
        Mistake(
            _moved,
            "this is u(p); the point itself is missing.\nA point lies at p + u(p).",
        ),
        Mistake(
            lambda points, displacement: points + _moved(points, displacement).flip(-1),
            "the components of u(p) are added in the order (j, i).\n"
            "Channel 0 of u and component 0 of a point both belong to the row i.",
        ),
        Mistake(
            lambda points, displacement: points + _moved(points.flip(-1), displacement),
            "u is looked up at (j, i) instead of (i, j).\n"
            "For p = (1, 3) look at displacement[b, :, 1, 3].",
        ),
        Mistake(
            lambda points, displacement: (
                points + _moved(points, displacement).mT.reshape(points.shape)
            ),
            "the components of different points are mixed.\n"
            "Indexing gives (2, N), the points are (N, 2): transpose (.T), because reshape and\n"
            "view keep the order of the numbers.",
        ),
        Mistake(
            lambda points, displacement: (
                points + _moved(points, displacement[:1].expand_as(displacement))
            ),
            "every item of the batch uses the first field.\n"
            "Points of item b move by displacement[b].",
        ),
    ],
    hints=[
        "The points of item b are points[b], of shape (N, 2): rows are points[b, :, 0].",
        "displacement[b][:, rows, columns] has shape (2, N); its transpose has that of points[b].",
    ],
)


# --- composition ---------------------------------------------------------------------------------


def _two_fields() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(13)
    noise = torch.randn(2, 2, 2, 14, 11, generator=generator)
    first, second = (5 * spatial.smooth(field, 1.5) for field in noise)
    return first, second + 0.8


compose = Check(
    SLUG,
    "compose",
    spatial.compose,
    [_two_fields],
    mistakes=[
        Mistake(
            lambda first, second: first + second,
            "this adds the two fields voxel by voxel.\n"
            "second leads from x to x + second(x); first has to be read *there*, not at x.\n"
            "warp can read a field at such places, as it reads an image.",
        ),
        Mistake(
            lambda first, second: spatial.compose(second, first),
            "the order is swapped: this warps by second, then by first.\n"
            "The fetch goes backwards: the last warp, second, acts on x first.",
        ),
        Mistake(
            lambda first, second: second + spatial.warp(first, second),
            "right inside, wrong at the border: there the field falls to 0.\n"
            'A displacement does not end where the image ends: warp(…, padding="border").',
        ),
        Mistake(
            lambda first, second: spatial.warp(first, second, padding="border"),
            "this is first, read at x + second(x); the step by second itself is missing.",
        ),
        Mistake(
            lambda first, second: second + spatial.warp(second, first, padding="border"),
            "the roles inside are swapped: this reads second where first leads.\n"
            "warp(field, u) reads field at x + u(x). Which field is read, and who leads there?",
        ),
        Mistake(
            lambda first, second: second + spatial.warp(first, -second, padding="border"),
            "first is read at x − second(x).\nRead it where second has led: x + second(x).",
        ),
        Mistake(
            lambda first, second: first + spatial.warp(first, second, padding="border"),
            "this takes both steps from first; second only says where to look.\n"
            "One of the two steps is second's own.",
        ),
    ],
    gradient=True,
    hints=[
        "Write out the two pull-backs: once(y) = moving(y + first(y)); twice(x) = once(x + "
        "second(x)). Put the first into the second.",
        "first(x + second(x)) is first, warped by second: warp works on fields as on images. "
        'At the border, padding="border".',
    ],
)


# --- inversion in 1D -----------------------------------------------------------------------------


def _sample(values: Array, positions: Array) -> Array:
    return np.interp(positions, np.arange(len(values)), values)


def _iterate(u: Array, step: Callable[[Array, Array], Array], repetitions: int = 60) -> Array:
    x, w = np.arange(len(u), dtype=float), np.zeros_like(u)
    for _ in range(repetitions):
        w = step(x, w)
    return w


def _invert_1d(u: Array, repetitions: int = 60) -> Array:
    return _iterate(u, lambda x, w: -_sample(u, x + w), repetitions)


def _bump() -> tuple[Array]:
    x = np.arange(40.0)
    return (4 * np.exp(-((x - 18) ** 2) / 40),)


def _waves() -> tuple[Array]:
    x = np.arange(64.0)
    return (-3 * np.sin(x / 7) * np.exp(-((x - 30) ** 2) / 120),)


def _undoes(answer: object) -> bool:
    (u,) = _bump()
    w = answer(u.copy())  # type: ignore[operator]
    x = np.arange(len(u))
    there = x + w
    return bool(np.abs(there + _sample(u, there) - x).max() < 1e-2)


invert_1d = Check(
    SLUG,
    "invert_1d",
    _invert_1d,
    [_bump, _waves],
    atol=1e-3,
    mistakes=[
        Mistake(
            lambda u: -u,
            "−u is not the inverse.\n"
            "It undoes the step where it began, not where it ended: u has to be read at y + w(y).\n"
            "If that is what you wrote: does the loop end after its first repetition?",
        ),
        Mistake(
            lambda u: _invert_1d(u, repetitions=2),
            "one improvement of −u is not enough.\nRepeat w ← −u(y + w) until it stands still.",
        ),
        Mistake(
            lambda u: _iterate(u, lambda x, w: _sample(u, x + w)),
            "the minus is missing: φ(y + w(y)) = y gives w(y) = −u(y + w(y)).",
        ),
        Mistake(
            lambda u: _iterate(u, lambda x, w: -_sample(u, w)),
            "u is read at w(y); the place itself is missing.\nRead it at y + w(y).",
        ),
        Mistake(
            lambda u: _iterate(u, lambda x, w: -_sample(u, x - w)),
            "the sign inside is wrong: this looks u up at y − w(y).\n"
            "The inverse lands at y + w(y), so that is where u has to be read.",
        ),
        Mistake(
            lambda u: -_invert_1d(u),
            "right size, opposite sign.\nThe inverse goes back: w(y) = −u(y + w(y)).",
        ),
        Mistake(
            lambda u: np.arange(len(u)) + _invert_1d(u),
            "this is the map φ⁻¹(y) = y + w(y); return the displacement w alone.",
        ),
    ],
    laws=[
        Law(
            _undoes,
            "φ(φ⁻¹(y)) is not y.\nStart from w = 0 and repeat w ← −u(y + w(y)) 50 times or more.",
        )
    ],
    hints=[
        "φ⁻¹(y) = y + w(y) has to satisfy φ(y + w(y)) = y. Write φ out: "
        "y + w(y) + u(y + w(y)) = y.",
        "So w(y) = −u(y + w(y)): w stands on both sides. Start from w = 0, compute the right side, "
        "and put it back in, 50 times.",
        "sample_1d(u, y + w) reads u between the voxels.",
    ],
)

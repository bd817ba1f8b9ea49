"""Checks of exercise 01: broadcasting, normalization, filters, soft masks, a descent."""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.checks.core import Check, Goal, Law, Mistake, finite_number
from course_lib.checks.running import count_operations
from course_lib.datasets import brains
from course_lib.losses import mse
from course_lib.optimise import descend
from course_lib.widgets import fit_disc
from course_lib.widgets import soft_disc as draw_disc

SLUG = "01_torch_for_images"

EACH_IMAGE = (1, 2, 3)  # the axes of one item: channels, rows, columns


# --- broadcasting in a loss ----------------------------------------------------------------------


def _trapped() -> tuple[int, int, float]:
    return 3, 3, 28 / 9


trapped_loss = Check(
    SLUG,
    "trapped_loss",
    _trapped,
    [lambda: ()],
    atol=5e-3,  # 3.1 is near enough
    mistakes=[
        Mistake(
            lambda: (3, 1, 0),
            "this compares each prediction with its own true value only.\n"
            "(3, 1) and (3,) are aligned from the right: (3,) counts as (1, 3), and both stretch.",
        ),
        Mistake(
            lambda: (1, 3, 0),
            "(3,) counts as (1, 3), right; but (3, 1) has three rows, so both stretch.\n"
            "Write the table: row i is predicted[i] minus each of the true values.",
        ),
        Mistake(
            lambda: (3, 3, 0),
            "the shape is right, so the difference has nine entries; not all of them are 0.\n"
            "Write the table: row i is predicted[i] minus each of the true values.",
        ),
        Mistake(
            lambda: (3, 3, 28),
            "right table, but this is the sum of its squares; the loss is their mean.",
        ),
        Mistake(
            lambda: (3, 3, 28 / 3),
            "right sum, divided by 3.\nmean() divides by the number of entries of the table.",
        ),
        Mistake(
            lambda: (3, 1, 28 / 9),
            "the loss is right, and it is a mean over more than three entries.\n"
            "Which shape has the difference, then? (3,) counts as (1, 3), and both stretch.",
        ),
        Mistake(
            lambda: (3, 3, 12 / 9),
            "this is the mean of the absolute differences; the loss squares them.",
        ),
    ],
    hints=[
        "Shapes are aligned from the right, a missing axis counts as 1: (3, 1) and (1, 3).",
        "The difference is a table: row i, column j holds predicted[i] − true[j].",
    ],
)


# --- one mean for each image ---------------------------------------------------------------------


def _standardize(
    images: Tensor,
    mean_axes: tuple[int, ...] = EACH_IMAGE,
    scale_axes: tuple[int, ...] = EACH_IMAGE,
) -> Tensor:
    """Mean 0 and standard deviation 1 along these axes; all of them make it one for the batch."""
    centered = images - images.mean(mean_axes, keepdim=True)
    return centered / centered.square().mean(scale_axes, keepdim=True).sqrt()


def _along(*axes: int) -> Callable[[Tensor], Tensor]:
    return partial(_standardize, mean_axes=axes, scale_axes=axes)


def _own_mean_only(images: Tensor) -> Tensor:
    return images - images.mean(EACH_IMAGE, keepdim=True)


def _by_variance(images: Tensor) -> Tensor:
    return _own_mean_only(images) / images.var(EACH_IMAGE, correction=0, keepdim=True)


def _by_sum(images: Tensor) -> Tensor:
    centered = _own_mean_only(images)
    return centered / centered.square().sum(EACH_IMAGE, keepdim=True).sqrt()


def _by_uncentered(images: Tensor) -> Tensor:
    return _own_mean_only(images) / images.square().mean(EACH_IMAGE, keepdim=True).sqrt()


def _by_absolute(images: Tensor) -> Tensor:
    centered = _own_mean_only(images)
    return centered / centered.abs().mean(EACH_IMAGE, keepdim=True)


def _divided_first(images: Tensor, correction: int = 0) -> Tensor:
    deviation = images.std(EACH_IMAGE, correction=correction, keepdim=True)
    return images / deviation - images.mean(EACH_IMAGE, keepdim=True)


def _to_unit_range(images: Tensor) -> Tensor:
    low, high = images.amin(EACH_IMAGE, keepdim=True), images.amax(EACH_IMAGE, keepdim=True)
    return (images - low) / (high - low)


def _one_image() -> tuple[Tensor]:
    return (torch.tensor([[[[1.0, 3.0, 5.0, 2.0], [4.0, 0.0, 7.0, 2.0]]]]),)


def _bright_and_dark() -> tuple[Tensor]:
    """So bright that the 1e-5 which ready-made normalizations add to the variance is nothing."""
    images = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    gain = torch.tensor([10.0, 3.0, 20.0]).view(3, 1, 1, 1)
    return (gain * images + torch.tensor([0.0, 20.0, -10.0, 10.0, 5.0, 0.0]).view(3, 2, 1, 1),)


standardize = Check(
    SLUG,
    "standardize",
    _standardize,
    [_one_image, _bright_and_dark],
    atol=1e-4,  # a small number under the root, or added to it, is no mistake
    mistakes=[
        Mistake(
            _along(0, 1, 2, 3),
            "one mean and one deviation for the whole batch: a dark image stays dark.\n"
            "Axis 0 counts the images. Take the mean over the other three, axes 1, 2 and 3.",
        ),
        Mistake(
            partial(_standardize, scale_axes=(0, 1, 2, 3)),
            "each image has its own mean, but all are divided by the same number.\n"
            "Take the second mean over axes 1, 2 and 3 too.",
        ),
        Mistake(
            partial(_standardize, mean_axes=(0, 1, 2, 3)),
            "each image is divided by a number of its own, but one mean is taken from all.\n"
            "Take the first mean over axes 1, 2 and 3 too.",
        ),
        Mistake(
            lambda images: (images - images.mean()) / images.std(),
            "one mean and one deviation for the whole batch: a dark image stays dark.\n"
            "(And torch's std divides by n − 1.) Axis 0 counts the images: axes 1, 2 and 3.",
        ),
        Mistake(
            lambda images: _own_mean_only(images) / images.std(),
            "each image has its own mean, but all are divided by the batch's deviation.\n"
            "(And torch's std divides by n − 1.) Axis 0 counts the images: axes 1, 2 and 3.",
        ),
        Mistake(
            _along(2, 3),
            "each channel of each image is standardized by itself.\n"
            "An image's channels share one mean and one deviation here: axes 1, 2 and 3.",
        ),
        Mistake(
            _along(0, 2, 3),
            "each channel has one mean over the whole batch.\n"
            "Axis 0 counts the images, and each needs a mean of its own: axes 1, 2 and 3.",
        ),
        Mistake(
            _along(0),
            "this takes means over the batch, at each voxel.\n"
            "Axis 0 counts the images; the mean of an image is over the other three axes.",
        ),
        Mistake(
            _along(1),
            "this takes means over the channels, at each voxel.\n"
            "The mean of an image is over its channels, rows and columns: axes 1, 2 and 3.",
        ),
        Mistake(
            _along(3),
            "each row is standardized by itself: the mean is over the last axis only.\n"
            "The mean of an image is over its channels, rows and columns: axes 1, 2 and 3.",
        ),
        Mistake(
            lambda images: _own_mean_only(images) / images.std(EACH_IMAGE, keepdim=True),
            "nearly: this divides by a deviation with n − 1 in it, which is torch's default.\n"
            "Use the root of the mean of the squares, or std(…, correction=0).",
        ),
        Mistake(
            _own_mean_only,
            "the means are right; the division by the standard deviation is missing.",
        ),
        Mistake(
            _by_variance,
            "this divides by the variance, the mean of the squares.\nTake its root.",
        ),
        Mistake(
            _by_sum,
            "this divides by the root of the *sum* of the squares.\nTake their mean.",
        ),
        Mistake(
            _by_absolute,
            "this divides by the mean of the absolute values.\n"
            "The root comes after the mean: the root of the mean of the squares.",
        ),
        *(
            Mistake(
                partial(_divided_first, correction=correction),
                "the mean is subtracted from what was divided before, so they do not fit.\n"
                "Subtract the mean first; divide what is left.",
            )
            for correction in (0, 1)
        ),
        Mistake(
            _by_uncentered,
            "the squares are those of the image as it came.\n"
            "Square what is left after the mean was subtracted.",
        ),
        Mistake(
            _to_unit_range,
            "this brings each image to the range from 0 to 1.\n"
            "Asked is mean 0 and standard deviation 1.",
        ),
    ],
    hints=[
        "Which axes belong to one image of (B, C, H, W)? All but the first.",
        "images.mean((1, 2, 3), keepdim=True) has shape (B, 1, 1, 1): it meets axis 0 when it is "
        "subtracted. Without keepdim it would be (B,), and meet the columns.",
    ],
)


# --- a filter ------------------------------------------------------------------------------------


def _correlate(images: Tensor, kernel: Tensor, padding: str = "constant") -> Tensor:
    """Each channel of each image by itself; ``padding`` as in ``F.pad``."""
    padded = F.pad(images, (1, 1, 1, 1), mode=padding)
    single = padded.flatten(0, 1)[:, None]  # (B · C, 1, H + 2, W + 2)
    return F.conv2d(single, kernel[None, None]).view_as(images)


def _reference_correlate(images: Tensor, kernel: Tensor) -> Tensor:
    return _correlate(images, kernel)


def _row_of_three() -> tuple[Tensor, Tensor]:
    kernel = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [-2.0, 0.0, 0.0]])
    return torch.tensor([[[[1.0, 2.0, 4.0], [7.0, 3.0, 5.0]]]]), kernel


def _batch_and_kernel() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = 1 + torch.rand(2, 3, 5, 7, generator=generator)
    return images, torch.randn(3, 3, generator=generator)


def _operations(answer: Callable[[Tensor, Tensor], Tensor], *shape: int) -> int:
    return count_operations(answer, torch.ones(shape), torch.ones(3, 3))


def _operations_do_not_grow(answer: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Loops over weights, items and channels take as many for an image of any size."""
    return _operations(answer, 2, 1, 5, 6) == _operations(answer, 2, 1, 9, 11)


def _only_inside(images: Tensor, kernel: Tensor) -> Tensor:
    """The border is left at 0, where the window does not fit into the image."""
    return F.pad(_correlate(images, kernel)[..., 1:-1, 1:-1], (1, 1, 1, 1))


def _written_back(images: Tensor, kernel: Tensor) -> Tensor:
    """Each product spoils the padded image for the weights that follow."""
    height, width = images.shape[2:]
    padded, result = F.pad(images, (1, 1, 1, 1)), torch.zeros_like(images)
    for di in range(3):
        for dj in range(3):
            piece = padded[:, :, di : di + height, dj : dj + width]
            piece *= kernel[di, dj]
            result += piece
    return result


correlate = Check(
    SLUG,
    "correlate",
    _reference_correlate,
    [_row_of_three, _batch_and_kernel],
    mistakes=[
        Mistake(
            lambda images, kernel: _correlate(images, kernel.flip(0, 1)),
            "the kernel is flipped, or the image is shifted the other way.\n"
            "kernel[0, 0] belongs to the neighbor above and to the left: result[i, j] has\n"
            "kernel[di, dj] · image[i + di − 1, j + dj − 1] in its sum.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel.T),
            "the kernel's axes are exchanged.\n"
            "Its first axis goes along the rows of the image, its second along the columns.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel.flip(0)),
            "the kernel is flipped along the rows.\n"
            "kernel[0, 1] belongs to the neighbor above: image[i − 1, j].",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel.flip(1)),
            "the kernel is flipped along the columns.\n"
            "kernel[1, 0] belongs to the neighbor on the left: image[i, j − 1].",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel, "circular"),
            "what leaves the image on one side comes back on the other.\n"
            "Likely cause: roll(). Outside the image the value is 0: pad first, then slice.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel.flip(0, 1), "circular"),
            "what leaves the image on one side comes back on the other, and the image is shifted\n"
            "the other way. Likely cause: roll(). Pad with zeros first, then slice:\n"
            "result[i, j] has kernel[di, dj] · image[i + di − 1, j + dj − 1] in its sum.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel, "replicate"),
            "outside the image this repeats the border value; here the outside is 0.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel, "reflect"),
            "outside the image this mirrors the image; here the outside is 0.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, _only_last(kernel)),
            "this is the product with the last weight, kernel[2, 2], alone.\n"
            "Likely cause: `result = …` in the loop where `result = result + …` is meant.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel)[..., 1:-1, 1:-1],
            "the result is two voxels smaller than the image along each axis.\n"
            "Pad the image with one voxel of zeros on all sides first.",
        ),
        Mistake(
            _only_inside,
            "the voxels at the border are 0: the window was put only where it fits.\n"
            "Pad the image with zeros, and every voxel has its nine neighbors.",
        ),
        Mistake(
            _written_back,
            "each product is written into the padded image, and the next weight meets it there.\n"
            "Likely cause: `piece *= weight` on a slice, which is a view. Write\n"
            "`piece = piece * weight`, which makes a new tensor.",
        ),
        Mistake(
            lambda images, kernel: F.conv2d(F.pad(images, (0, 2, 0, 2)), _for_each(images, kernel)),
            "right numbers, one voxel too far up and to the left.\n"
            "The middle of the kernel belongs to the voxel itself: pad one voxel on *each* side.",
        ),
        Mistake(
            lambda images, kernel: F.conv2d(F.pad(images, (2, 0, 2, 0)), _for_each(images, kernel)),
            "right numbers, one voxel too far down and to the right.\n"
            "The middle of the kernel belongs to the voxel itself: pad one voxel on *each* side.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel).sum(1, keepdim=True),
            "the channels are added up, as networks do.\nHere each channel is filtered by itself.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel).sum(1, keepdim=True) + 0 * images,
            "every channel holds the sum over all channels.\n"
            "Here each channel is filtered by itself.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel)[:, :1] + 0 * images,
            "every channel shows the first one.\n"
            "Likely cause: images[:, 0]; keep the channel axis.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel)[:1] + 0 * images,
            "every item of the batch shows the first one.\n"
            "Likely cause: images[0]; keep the batch axis.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, torch.ones_like(kernel)),
            "this adds up the nine voxels; the weights of the kernel are missing.",
        ),
        Mistake(
            lambda images, kernel: _correlate(images, kernel) / 9,
            "right weights, divided by nine.\nA filter is the weighted sum, not the mean.",
        ),
    ],
    laws=[
        Law(
            _operations_do_not_grow,
            "right, but a larger image takes more operations: there is a loop over rows, columns\n"
            "or voxels inside.\n"
            "Loop over the nine weights: kernel[di, dj] times the whole image, shifted.",
        )
    ],
    gradient=True,
    hints=[
        "F.pad(images, (1, 1, 1, 1)) puts zeros around the last two axes; without it the nine "
        "shifted images would not have the size of the result.",
        "padded[:, :, di : di + height, dj : dj + width] is the whole image, shifted: it meets "
        "the weight kernel[di, dj].",
        "Add up nine products of a weight and a shifted image.",
        "Or with F.conv2d: it adds up channels, so make each channel an image of its own, "
        "images.reshape(B * C, 1, H, W); the kernel is kernel[None, None], (1, 1, 3, 3).",
    ],
)


def _only_last(kernel: Tensor) -> Tensor:
    mask = torch.zeros_like(kernel)
    mask[2, 2] = 1
    return kernel * mask


def _for_each(images: Tensor, kernel: Tensor) -> Tensor:
    """``(C, C, 3, 3)``: the weights of ``F.conv2d`` that filter each channel by itself."""
    channels = images.shape[1]
    return torch.eye(channels, dtype=kernel.dtype).view(channels, channels, 1, 1) * kernel


# --- a soft disc ---------------------------------------------------------------------------------


def _distance(shape: tuple[int, int], circles: Tensor) -> Tensor:
    """``(B, 1, H, W)``: from each disc's center."""
    rows, columns = torch.arange(shape[0]).view(-1, 1), torch.arange(shape[1])
    row, column = (circles[:, k].view(-1, 1, 1, 1) for k in range(2))
    return ((rows - row).square() + (columns - column).square() + 1e-6).sqrt()


def _steps_apart(shape: tuple[int, int], circles: Tensor) -> Tensor:
    """``(B, 1, H, W)``: rows plus columns between each voxel and the center."""
    rows, columns = torch.arange(shape[0]).view(-1, 1), torch.arange(shape[1])
    row, column = (circles[:, k].view(-1, 1, 1, 1) for k in range(2))
    return (rows - row).abs() + (columns - column).abs()


def _drawn_up_to(ends: tuple[int, int], shape: tuple[int, int], circles: Tensor) -> Tensor:
    """The right disc, but rows and columns run from 0 to these ends, not to H − 1 and W − 1."""
    rows, columns = (torch.linspace(0, end, n) for end, n in zip(ends, shape, strict=True))
    row, column, radius = (circles[:, k].view(-1, 1, 1, 1) for k in range(3))
    squared = (rows.view(-1, 1) - row).square() + (columns - column).square()
    return torch.sigmoid((radius - (squared + 1e-6).sqrt()) / 2)


def _radius(circles: Tensor) -> Tensor:
    return circles[:, 2].view(-1, 1, 1, 1)


def _off_the_voxels() -> tuple[tuple[int, int], Tensor]:
    return (3, 4), torch.tensor([[0.7, 1.6, 1.3]])


def _two_discs() -> tuple[tuple[int, int], Tensor]:
    return (9, 14), torch.tensor([[3.2, 8.7, 3.5], [6.4, 4.1, 2.2]])


def _finite_at_the_center(answer: Callable[[tuple[int, int], Tensor], Tensor]) -> bool:
    """A center on a voxel, as most people's first guess is."""
    return _has_finite_gradient(answer, (7, 8), (3.0, 4.0, 2.0))


def _finite_far_away(answer: Callable[[tuple[int, int], Tensor], Tensor]) -> bool:
    """A long image, as long as real ones: exp(150) is more than float32 holds."""
    return _has_finite_gradient(answer, (4, 310), (1.6, 2.7, 3.0))


def _has_finite_gradient(
    answer: Callable[[tuple[int, int], Tensor], Tensor],
    shape: tuple[int, int],
    circle: tuple[float, float, float],
) -> bool:
    circles = torch.tensor([circle], requires_grad=True)
    result = answer(shape, circles)
    if not result.requires_grad:  # a gradient that is cut is another message
        return True
    gradient = torch.autograd.grad(result.sum(), circles)[0]
    return bool(gradient.isfinite().all())


soft_disc = Check(
    SLUG,
    "soft_disc",
    draw_disc,
    [_off_the_voxels, _two_discs],
    mistakes=[
        Mistake(
            lambda shape, circles: (_distance(shape, circles) < _radius(circles)).float(),
            "this is a hard disc: its values are 0 and 1 only, and nothing can descend on it.\n"
            "Use torch.sigmoid((radius − distance) / 2) instead of a comparison.",
        ),
        Mistake(
            lambda shape, circles: 1 - draw_disc(shape, circles),
            "inside and outside are exchanged.\n"
            "The sigmoid is above 1/2 where its argument is above 0: radius − distance.",
        ),
        Mistake(
            lambda shape, circles: draw_disc(shape, circles[:, [1, 0, 2]]),
            "row and column of the center are exchanged.\n"
            "circles[:, 0] is the row, along axis 2 of the result; circles[:, 1] the column.",
        ),
        Mistake(
            lambda shape, circles: torch.sigmoid(_radius(circles) - _distance(shape, circles)),
            "the edge is too hard: radius − distance has to be divided by 2.",
        ),
        Mistake(
            lambda shape, circles: torch.sigmoid(
                2 * (_radius(circles) - _distance(shape, circles))
            ),
            "the edge is too hard: radius − distance is multiplied by 2, not divided.",
        ),
        Mistake(
            lambda shape, circles: torch.sigmoid(_radius(circles) - _distance(shape, circles) / 2),
            "only the distance is divided by 2.\nA bracket is missing: (radius − distance) / 2.",
        ),
        Mistake(
            lambda shape, circles: torch.sigmoid(
                (_radius(circles) - _distance(shape, circles).square()) / 2
            ),
            "this is the squared distance.\nTake the root of the sum of squares.",
        ),
        Mistake(
            lambda shape, circles: torch.sigmoid(
                (_radius(circles) - _steps_apart(shape, circles)) / 2
            ),
            "this adds the steps along rows and columns: a diamond, not a disc.\n"
            "The distance is the root of the sum of the two squares.",
        ),
        Mistake(
            lambda shape, circles: draw_disc(shape, circles[:1].expand_as(circles)),
            "every disc of the batch is the first one.\n"
            "Likely cause: circles[0]; take circles[:, 0].view(-1, 1, 1, 1) for the rows.",
        ),
        Mistake(
            lambda shape, circles: draw_disc(shape, circles)[:, 0],
            "the channel axis is missing: the shape is (B, 1, H, W).\n"
            "view(-1, 1, 1, 1) gives each number four axes, and everything keeps them.",
        ),
        Mistake(
            lambda shape, circles: draw_disc(shape, circles * torch.tensor([1.0, 1.0, 0.5])),
            "each disc has half its radius.\n"
            "The third number is the radius, not the diameter; all of radius − distance is halved.",
        ),
        Mistake(
            lambda shape, circles: torch.tanh((_radius(circles) - _distance(shape, circles)) / 2),
            "these values go from −1 to 1, and are 0 on the circle: that is tanh.\n"
            "The sigmoid goes from 0 to 1.",
        ),
        Mistake(
            lambda shape, circles: _drawn_up_to(shape, shape, circles),
            "the voxels are too far apart: linspace(0, n, n) ends at n.\n"
            "The last of n voxels is number n − 1: torch.arange(n).",
        ),
        Mistake(
            lambda shape, circles: _drawn_up_to((1, 1), shape, circles),
            "the voxels are counted from 0 to 1, but the circles are in voxels.\n"
            "Use torch.arange(n): 0, 1, 2, …",
        ),
        Mistake(
            lambda shape, circles: draw_disc(shape, circles + torch.tensor([-0.5, -0.5, 0.0])),
            "each disc is half a voxel too far up and to the left.\n"
            "Voxel i lies at i, not at i + ½: no half voxel is added here.",
        ),
        Mistake(
            lambda shape, circles: draw_disc(shape, circles + torch.tensor([-1.0, -1.0, 0.0])),
            "each disc is one voxel too far up and to the left.\n"
            "Voxels are counted from 0: torch.arange(n), not 1 to n.",
        ),
    ],
    laws=[
        Law(
            _finite_at_the_center,
            "right, but its gradient is not a number (NaN) when a center lies on a voxel.\n"
            "There the distance is the root of 0, whose slope is infinite.\n"
            "Add 1e-6 to the sum of squares, under the root.",
        ),
        Law(
            _finite_far_away,
            "right on small images, but its gradient is not a number (NaN) far from the disc,\n"
            "on an image of 310 columns.\n"
            "Likely cause: exp() of a large number is infinite in float32.\n"
            "torch.sigmoid computes 1 / (1 + exp(−x)) without that.",
        ),
    ],
    gradient=True,
    hints=[
        "torch.arange(shape[0]).view(-1, 1) holds the rows, (H, 1); torch.arange(shape[1]) the "
        "columns, (W,). Together they make (H, W).",
        "circles[:, 0].view(-1, 1, 1, 1) is the row of each disc's center, (B, 1, 1, 1): minus it, "
        "the rows become (B, 1, H, 1).",
        "`row, column, radius = circles` would take three circles apart, not three numbers. "
        "Slice the numbers: circles[:, 0], circles[:, 1], circles[:, 2], each (B,).",
    ],
)


# --- the descent ---------------------------------------------------------------------------------

Fit = Callable[[Tensor, Tensor, float, int], Tensor | None]


def _picked(choose: Callable[[list[float]], int | None]) -> Fit:
    """A descent that returns one of its circles, chosen by the losses of all of them.

    There is a loss more than steps: the last one is that of the circle after the last step, which
    a right answer never computes.
    """

    def fit(target: Tensor, start: Tensor, learning_rate: float, steps: int) -> Tensor | None:
        circles, losses = fit_disc(target, start, learning_rate=learning_rate, steps=steps)
        chosen = choose(losses)
        return None if chosen is None else circles[chosen : chosen + 1]

    return fit


def _lowest(losses: list[float]) -> int:
    return losses.index(min(losses))


def _best(losses: list[float]) -> int:
    """The lowest of those that were computed before a step."""
    return _lowest(losses[:-1])


def _best_but_for_the_last(losses: list[float]) -> int | None:
    """One step too few; nothing where that leaves no step."""
    return _lowest(losses[:-2]) if len(losses) > 2 else None


def _until_it_rises(losses: list[float]) -> int:
    computed = losses[:-1]
    rises = (i for i in range(1, len(computed)) if computed[i] >= computed[i - 1])
    return next(rises, len(computed)) - 1


def _latest_that_fell(losses: list[float]) -> int:
    return max(i for i in range(len(losses) - 1) if i == 0 or losses[i] < losses[i - 1])


def _highest(losses: list[float]) -> int:
    return losses.index(max(losses[:-1]))


def _below_half(losses: list[float]) -> int | None:
    """A lowest loss that begins at 0.5 or less, and no circle yet."""
    return _best(losses) if min(losses[:-1]) < 0.5 else None


def _mismatch(circle: Tensor, target: Tensor) -> Tensor:
    return mse(draw_disc(target.shape[2:], circle), target)


def _absolute(circle: Tensor, target: Tensor) -> Tensor:
    return (draw_disc(target.shape[2:], circle) - target).abs().mean()


def _one_voxel(circle: Tensor, target: Tensor) -> Tensor:
    """``soft_disc(target.shape, …)`` reads B and C as H and W; one number meets all voxels."""
    top_left = draw_disc((2, 2), circle)[..., :1, :1]  # (1, 1, 1, 1): row 0, column 0
    return (top_left - target).square().mean()


def _of_the_brain(circle: Tensor, target: Tensor) -> Tensor:
    return _mismatch(circle, _brain_mask())


@lru_cache(maxsize=1)
def _brain_mask() -> Tensor:
    """The notebook's ``inside``: 1 in the brain."""
    labels = brains.real_pair().fixed_labels
    assert labels is not None  # real_pair always has labels
    return (labels > 0).float()


def _descent(
    loss_of: Callable[[Tensor, Tensor], Tensor] = _mismatch,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    *,
    forget: bool = True,
    renew: bool = False,
) -> Fit:
    """The right loop with one thing changed."""

    def fit(target: Tensor, start: Tensor, learning_rate: float, steps: int) -> Tensor:
        circle = start.clone().requires_grad_()
        mover = optimizer([circle], lr=learning_rate)  # type: ignore[call-arg]
        best, lowest = start, float("inf")
        for _ in range(steps):
            mover = optimizer([circle], lr=learning_rate) if renew else mover  # type: ignore[call-arg]
            if forget:
                mover.zero_grad()
            loss = loss_of(circle, target)
            if loss.item() < lowest:
                best, lowest = circle.detach().clone(), loss.item()
            loss.backward()
            mover.step()
        return best

    return fit


def _disc_in(height: int, width: int, *circle: float) -> Tensor:
    return (draw_disc((height, width), torch.tensor([circle])) > 0.5).float()


def _too_slow() -> tuple[Tensor, Tensor, float, int]:
    """Every step is better than the one before, and no loss is below 0.5."""
    return _disc_in(12, 16, 6.0, 8.0, 8.0), torch.tensor([[5.2, 6.7, 1.0]]), 0.4, 4


def _one_step() -> tuple[Tensor, Tensor, float, int]:
    """One loss, that of the start."""
    target, start, learning_rate, _ = _too_slow()
    return target, start, learning_rate, 1


def _good_start() -> tuple[Tensor, Tensor, float, int]:
    """Nothing is as good as the start."""
    return _disc_in(16, 20, 8.0, 10.0, 5.0), torch.tensor([[8.2, 9.7, 5.2]]), 4.0, 3


def _better_later() -> tuple[Tensor, Tensor, float, int]:
    """The loss falls, rises, and falls again to its lowest."""
    return _disc_in(18, 22, 9.0, 11.0, 6.0), torch.tensor([[9.3, 10.8, 10.0]]), 4.0, 11


def _worse_later() -> tuple[Tensor, Tensor, float, int]:
    """The loss falls to its lowest, rises, and falls again, not as far."""
    return _disc_in(18, 22, 9.0, 11.0, 6.0), torch.tensor([[12.4, 7.6, 4.0]]), 2.0, 6


def _carries_no_gradient(answer: Callable[..., Tensor]) -> bool:
    return not answer(*_worse_later()).requires_grad


_KEEP_BEFORE_STEP = (
    "The loss belongs to the circle before step(): keep it before the optimizer moves it."
)
_ONE_TOO_FEW = (
    "one circle too few: the last loss is not compared.\n"
    "With steps=4 there are four losses, that of the start among them: range(steps)."
)
_LOW_FROM_THE_START = (
    "where the loss stays above a half, this keeps no circle of the descent.\n"
    'The lowest loss so far has to begin above every loss: float("inf"), not 0.1 or 0.5.'
)

fit = Check(
    SLUG,
    "fit",
    _picked(_best),
    [_one_step, _too_slow, _good_start, _worse_later, _better_later],
    atol=1e-4,
    mistakes=[
        Mistake(
            _picked(lambda losses: len(losses) - 1),
            "this is the last circle, not the best one.\n"
            "If you kept the best: detach() shows the memory that step() then changes, so keep a\n"
            "copy, circle.detach().clone().",
        ),
        Mistake(
            _picked(lambda losses: len(losses) - 2),
            "this is the last circle whose loss was computed, not the best one.\n"
            "Compare each loss with the lowest so far; where it is lower, keep the circle *and*\n"
            "the loss.",
        ),
        Mistake(
            _picked(lambda losses: _best(losses) + 1),
            f"this is the circle one step after the best one.\n{_KEEP_BEFORE_STEP}",
        ),
        Mistake(
            _picked(lambda losses: 1 + _lowest(losses[1:])),
            "the start is never considered, and the circle after the last step is.\n"
            "Compute the loss once in each step, before step(), and compare it there.",
        ),
        Mistake(
            _picked(_lowest),
            "one circle too many: the one after the last step is compared too.\n"
            "With steps=1 only the start's loss is computed: range(steps), and no loss after it.",
        ),
        Mistake(_picked(_best_but_for_the_last), _ONE_TOO_FEW),
        Mistake(_picked(lambda losses: _best_but_for_the_last(losses) or 0), _ONE_TOO_FEW),
        Mistake(
            _picked(_until_it_rises),
            "this stops where the loss rises for the first time.\n"
            "Later it may fall again, and lower: go through all the steps.",
        ),
        Mistake(
            _picked(_latest_that_fell),
            "each loss is compared with the one before it, not with the lowest so far.\n"
            "Change the lowest loss only where you keep the circle.",
        ),
        Mistake(
            _picked(_highest),
            "this is the circle with the highest loss.\n"
            'The best has the lowest: begin with float("inf"), and keep where the loss is lower.',
        ),
        Mistake(_picked(_below_half), _LOW_FROM_THE_START),
        Mistake(_picked(lambda losses: _below_half(losses) or 0), _LOW_FROM_THE_START),
        Mistake(
            _picked(lambda losses: 0),
            "this is the start: no later circle was kept.\n"
            "Does `return` stand after the loop, not in it? Are zero_grad(), backward() and\n"
            "step() there, in this order? Is a circle kept whenever its loss is *lower* than the\n"
            "lowest so far?",
        ),
        Mistake(
            _descent(forget=False),
            "the gradients of all steps are added up.\n"
            "backward() adds to .grad: call optimizer.zero_grad() in each step, before backward().",
        ),
        Mistake(
            _descent(lambda circle, target: -_mismatch(circle, target)),
            "this goes uphill: the loss has the wrong sign.\n"
            "A mean squared difference is small where the images agree: minimize it as it is.",
        ),
        Mistake(
            _descent(optimizer=torch.optim.SGD),
            "this is plain gradient descent: the circle has hardly moved.\n"
            "Use torch.optim.Adam, whose steps do not depend on the size of the gradient.",
        ),
        Mistake(
            _descent(optimizer=torch.optim.AdamW),
            "this is AdamW, which also pulls every number a little towards 0.\n"
            "Networks' weights may need that; a row has no reason to be 0. Use torch.optim.Adam.",
        ),
        Mistake(
            _descent(renew=True),
            "the optimizer is made anew in each step, so it forgets how far it went before.\n"
            "Make it once, before the loop.",
        ),
        Mistake(
            _descent(_absolute),
            "the loss is the mean of the absolute differences.\n"
            "Asked is the mean of their squares: square() in place of abs().",
        ),
        Mistake(
            _descent(_one_voxel),
            "the disc is one single number, and broadcasting compares it with every voxel.\n"
            "target.shape is (1, 1, H, W); soft_disc reads its first two numbers as H and W.\n"
            "Give it target.shape[2:].",
        ),
        Mistake(
            _descent(_of_the_brain),
            "this fits the brain of the notebook, whatever the target is.\n"
            "Use target, the function's argument, and not the global `inside`.",
        ),
        Mistake(
            lambda target, start, learning_rate, steps: _picked(_best)(target, start, 2.0, steps),
            "the learning rate is 2 here, whatever was asked for.\n"
            "Use the argument: lr=learning_rate.",
        ),
        Mistake(
            lambda target, start, learning_rate, steps: _picked(_best)(
                target, start, learning_rate, 60
            ),
            "this takes 60 steps, however many were asked for.\nUse the argument: range(steps).",
        ),
    ],
    laws=[
        Law(
            _carries_no_gradient,
            "the right circle, but it still carries its gradient.\n"
            "Return the numbers alone: circle.detach().clone(). Whoever computes with the result\n"
            "would otherwise keep recording.",
        )
    ],
    hints=[
        "Before the loop: circle = start.clone().requires_grad_(), the optimizer (it takes a list, "
        "[circle]), and a lowest loss of infinity.",
        "In the loop, in this order: zero_grad, loss, compare and keep, backward, step.",
        "Keep a copy, circle.detach().clone(): step() changes the circle in place.",
        "All of that is there, and the numbers still differ? Then look at soft_disc: run the cell "
        "under its check, which goes on with the course's one if yours is not right yet.",
    ],
)


# --- a learning rate -----------------------------------------------------------------------------

_STEPS, _LOW = 60, 0.07


@lru_cache(maxsize=16)
def _loss_in_heights(learning_rate: float) -> dict[str, float]:
    """Where the lesson's descent ends if row, column and radius are counted in image heights.

    Also how far a step goes, in voxels: whoever reads it knows whether the rate is too small.
    """
    inside = _brain_mask()
    shape, height = inside.shape[2:], inside.shape[2]

    def loss(circle: Tensor) -> Tensor:
        return mse(draw_disc(shape, height * circle), inside)

    start = torch.tensor([[60.0, 60.0, 20.0]]) / height
    end = descend(loss, start, steps=_STEPS, learning_rate=learning_rate)
    return {
        f"loss after {_STEPS} steps": loss(end).item(),
        "voxels in a step": height * learning_rate,
    }


def _rate(setting: object) -> str | None:
    problem = finite_number(setting)
    if problem is None and not 0 < setting <= 1000:  # type: ignore[operator]
        return f"expected a learning rate above 0 and up to 1000, got {setting}."
    return problem


learning_rate = Goal(
    SLUG,
    "learning_rate",
    lambda rate: _loss_in_heights(float(rate)),
    lambda measured: next(iter(measured.values())) < _LOW,
    f"a loss below {_LOW} after {_STEPS} steps. It is 0.44 at the start; a disc that is gone for "
    "good has 0.53 (larger than the image) or 0.47 (vanished).\n"
    "The radius has 60 voxels to go, in 60 steps; the image is 224 high and 192 wide.",
    reference=lambda: 2 / 224,
    valid=_rate,
    hints=[
        "In the lesson the numbers were voxels, and a step of 2 was good. How many image heights "
        "are 2 voxels?",
        "The radius has to go from 20 to 80 voxels: 0.27 image heights, in 60 steps.",
    ],
)

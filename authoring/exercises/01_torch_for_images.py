# %% [markdown]
# # Exercise 01 · Torch for images
#
# You write the idioms that every later lesson uses: axes, a filter, a soft mask, a descent. **Time**: about 60 minutes · **Points**: 12.
#
# Before this: lesson 01. Run every cell from top to bottom, the given ones too: later cells use them. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import torch
from torch.nn import functional as F

from course_lib import setup
from course_lib.checks import progress
from course_lib.checks import torch_for_images as check
from course_lib.datasets import brains
from course_lib.optimise import descend
from course_lib.plotting import curves, images, show

course = setup()
pair = brains.real_pair()
template, inside = pair.fixed, (pair.fixed_labels > 0).float()          # (1, 1, 224, 192) each

# %% [markdown]
# ## Task 1 · A perfect prediction (predict)
#
# ●○○ · 5 minutes · 1 point
#
# A model predicts `predicted = [[1.], [2.], [4.]]`, a tensor of shape (3, 1). The truth is `true = [1., 2., 4.]`, of shape (3,): every prediction is right. What is the shape of `predicted - true`, and what is the loss, `(predicted - true).square().mean()`? Work it out before you run anything.

# %%
def trapped_loss():
    """The shape of predicted − true, and the mean of its squares.

    Returns:
        a tuple of three numbers, (rows, columns, loss); the loss to two decimals, or as a fraction

    Example:
        with [[1.], [2.]] and [1., 2.] it would be (2, 2, 0.5)
    """
    ### BEGIN SOLUTION
    # Each prediction meets each true value: differences 0, ±1, ±2, ±3 in a table of 3 × 3.
    return 3, 3, (0 + 1 + 9 + 1 + 0 + 4 + 9 + 4 + 0) / 9
    ### END SOLUTION


# %% points=1
check.trapped_loss(trapped_loss)

# %% [markdown]
# ## Task 2 · One mean for each image (find the bug)
#
# ●○○ · 6 minutes · 2 points
#
# Two scanners, two brightnesses. To compare images, each is brought to mean 0 and standard deviation 1 *by itself*, over all its channels and voxels. The function below was meant to do that, but its picture still shows which image was the dark one. Find out why, and write it right in the cell that follows.

# %%
def standardize_with_a_bug(images):
    centered = images - images.mean()
    return centered / centered.square().mean().sqrt()


batch = torch.cat([pair.fixed, 0.4 * pair.moving])                      # (2, 1, 224, 192)
scaled = standardize_with_a_bug(batch)
show(
    images({"image 0": scaled[:1], "image 1": scaled[1:]}, limits=(-2, 2)),
    alt="After the wrong normalization one brain is still much brighter than the other.",
)

# %%
def standardize(images):
    """Each image of the batch with mean 0 and standard deviation 1.

    Args:
        images: float tensor (B, C, H, W); no image is constant

    Returns:
        tensor (B, C, H, W): from each image its mean over all its channels and voxels is
        subtracted; what is left is divided by the root of the mean of its squares
        (the standard deviation with division by n, not by n - 1)

    Example:
        the image [[1, 3]] has the mean 2; left are [[-1, 1]], whose squares have the mean 1,
        so the result is [[-1, 1]]
    """
    ### BEGIN SOLUTION
    centered = images - images.mean((1, 2, 3), keepdim=True)            # means: (B, 1, 1, 1)
    return centered / centered.square().mean((1, 2, 3), keepdim=True).sqrt()
    ### END SOLUTION


# %% points=2
check.standardize(standardize)

# %%
standardize = check.standardize.or_reference(standardize)
scaled = standardize(batch)
show(
    images({"image 0": scaled[:1], "image 1": scaled[1:]}, limits=(-2, 2)),
    alt="After the right normalization both brains are bright.",
)
assert (scaled.mean((1, 2, 3)).abs() < 1e-4).all()

# %% [markdown]
# Neither is the dark one any more; what still differs is that they show two people's heads. The bug was not in the formula but in the axes that it ran along. Both versions give the same shape, so only the numbers can tell.

# %% [markdown]
# ## Task 3 · A filter without a loop over the voxels
#
# ●●○ · 15 minutes · 3 points
#
# Below is the convolution of the lesson as its slow definition, for one plane. Write the same with tensors, for batches and channels. Loops over the nine weights, the batch or the channels are fine; loops over rows, columns or voxels are not: the check sees whether a larger image takes more operations. It also asks for the gradients of `images` and of `kernel`.

# %%
def filter_by_loop(image, kernel):
    """(H, W) and (3, 3) -> (H, W); zeros outside."""
    padded, result = F.pad(image, (1, 1, 1, 1)), torch.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            result[i, j] = (padded[i : i + 3, j : j + 3] * kernel).sum()
    return result


# %%
def correlate(images, kernel):
    """Filter each channel of each image by a kernel that is not flipped; zeros outside the image.

    Args:
        images: float tensor (B, C, H, W)
        kernel: float tensor (3, 3); its middle weight belongs to the voxel itself

    Returns:
        tensor (B, C, H, W)

    Example:
        with the image [[1, 2, 4]] and the kernel [[0, 0, 0],
                                                   [0, 0, 1],
                                                   [0, 0, 0]]
        each voxel gets the value of its right neighbor: [[2, 4, 0]]
    """
    ### BEGIN SOLUTION
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1))                                # (B, C, H + 2, W + 2)
    result = torch.zeros_like(images)
    for di in range(3):
        for dj in range(3):
            result = result + kernel[di, dj] * padded[:, :, di : di + height, dj : dj + width]
    return result
    ### END SOLUTION


# %% points=3
check.correlate(correlate)

# %%
correlate = check.correlate.or_reference(correlate)
across = torch.tensor([[0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]])
down = torch.tensor([[0, -0.5, 0], [0, 0, 0], [0, 0.5, 0]])
by_columns, by_rows = correlate(template, across), correlate(template, down)
show(
    images({"along columns j": by_columns, "along rows i": by_rows}, limits=(-0.3, 0.3)),
    alt="Two derivatives of the brain: one shows edges that run up and down, the other edges that "
    "run from left to right.",
)
left, right = by_columns[0, 0, 112, :40].sum(), by_columns[0, 0, 112, 150:].sum()
print(f"along row 112: {left:.2f} over the left edge, {right:.2f} over the right edge")
assert left > 0.1 and right < -0.1

# %% [markdown]
# The kernel $(-\tfrac12, 0, \tfrac12)$ takes the difference of a voxel's two neighbors: white where the image gets brighter to the right, black where it gets darker. With its weights one below the other it does so down the rows. Had the kernel been flipped, white and black would be exchanged.

# %% [markdown]
# ## Task 4 · A mask that passes gradients on
#
# ●●○ · 15 minutes · 2 points
#
# $$\text{disc}(x) = \text{sigmoid}\left(\frac{\text{radius} - |x - \text{center}|}{2}\right)$$
#
# The lesson's `disc` draws one circle, `(3,)`. Draw a whole batch of them at once, `(B, 3)`: broadcasting puts each disc into its own image if row, column and radius have the right axes. Let the distance be $\sqrt{\cdot + 10^{-6}}$ of the sum of squares, so that a center on a voxel does no harm.

# %%
def soft_disc(shape, circles):
    """Soft discs, 1 inside and 0 outside, 1/2 on the circle.

    Args:
        shape: a tuple (H, W)
        circles: float tensor (B, 3), a line for each disc: its row, column and radius, in
            voxels; so circles[:, 0] are the B rows

    Returns:
        tensor (B, 1, H, W)

    Example:
        for the circle (1, 2, 2), row 1 of the disc is [0.5, 0.62, 0.73, 0.62, 0.5]
    """
    ### BEGIN SOLUTION
    rows = torch.arange(shape[0]).view(-1, 1)                           # (H, 1)
    columns = torch.arange(shape[1])                                    # (W,)
    row, column, radius = (circles[:, k].view(-1, 1, 1, 1) for k in range(3))
    squared = (rows - row).square() + (columns - column).square()       # (B, 1, H, W)
    return torch.sigmoid((radius - (squared + 1e-6).sqrt()) / 2)
    ### END SOLUTION


# %% points=2
check.soft_disc(soft_disc)

# %%
soft_disc = check.soft_disc.or_reference(soft_disc)


def mismatch(circle):
    """How much the disc differs from the brain: a loss of (1, 3)."""
    return (soft_disc(inside.shape[2:], circle) - inside.to(circle.dtype)).square().mean()


circle = torch.tensor([[100.0, 90, 60]], dtype=torch.float64, requires_grad=True)
mismatch(circle).backward()
for k, name in enumerate(("row", "column", "radius")):
    step = torch.zeros(1, 3)
    step[0, k] = 0.01                                                   # one number, a little more
    with torch.no_grad():
        rise = mismatch(circle + step) - mismatch(circle - step)
    gradient, estimate = circle.grad[0, k], rise / 0.02
    print(f"{name:7} gradient {gradient:+.4f}, by two small steps {estimate:+.4f}")
    assert abs(gradient - estimate) < 2e-5 and gradient < 0

# %% [markdown]
# A gradient says how much the loss changes when a number changes a little; so change one a little, and see. (In float64: float32 rounds such small differences of a loss.) All three are below 0: a larger row, column or radius lowers the loss, so the disc has to go down, to the right, and grow. The radius has by far the largest number, because on its whole circle every voxel asks for the same.

# %% [markdown]
# ## Task 5 · The descent, and the best it found
#
# ●●● · 15 minutes · 3 points
#
# With a large learning rate the last circle need not be the best one. Write the loop of the lesson, with the mean squared difference of `soft_disc` and `target` as the loss, so that it returns the circle with the lowest loss that it has computed. Before anything is computed the lowest loss is infinite, `float("inf")`. Adam wants a list, `[circle]`, and the circle must be a leaf.

# %%
def fit(target, start, learning_rate, steps):
    """The best circle on the way downhill.

    Args:
        target: float tensor (1, 1, H, W), 1 inside the shape and 0 outside
        start: float tensor (1, 3): row, column, radius, in voxels; must stay as it is
        learning_rate: a number, for torch.optim.Adam
        steps: how many; in each, the circle's loss is computed, then Adam moves the circle (so
            the circle after the last step is never looked at)

    Returns:
        tensor (1, 3), without gradient: the circle with the lowest loss that was computed

    Example:
        with steps=1 it is the start
    """
    ### BEGIN SOLUTION
    circle = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([circle], lr=learning_rate)
    best, lowest = None, float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (soft_disc(target.shape[2:], circle) - target).square().mean()
        if loss.item() < lowest:
            best, lowest = circle.detach().clone(), loss.item()         # clone: step changes circle
        loss.backward()
        optimizer.step()
    return best
    ### END SOLUTION


# %% points=3
check.fit(fit)

# %%
fit = check.fit.or_reference(fit)
start = torch.tensor([[60.0, 60.0, 20.0]])
found = fit(inside, start, learning_rate=10, steps=12)
last = descend(mismatch, start, steps=11, learning_rate=10)             # the last of those circles
pictures = {"the best": found, "the last": last}
show(
    images({name: (soft_disc(inside.shape[2:], c) + template) / 2 for name, c in pictures.items()}),
    alt="The best disc nearly covers the brain; the last one is larger and hangs over its left side.",
)
print({name: f"loss {mismatch(c):.3f}" for name, c in pictures.items()})
assert mismatch(found) < 0.08 < 0.1 < mismatch(last), "run task 5's check and this cell again"

# %% [markdown]
# Twelve steps of 10 voxels: the disc was nearly right on the way, and Adam's momentum carried it on. It comes back if you give it more steps. Keep the best, or lower the learning rate towards the end: both are common.

# %% [markdown]
# ## Task 6 · Another unit (explore)
#
# ●○○ · 3 minutes · 1 point
#
# Now the three numbers are counted in *image heights*: the row 0.27 is 0.27 · 224 = 60 voxels. The loss sees the same disc; the learning rate does not mean the same any more. Find one with which 60 steps end **below a loss of 0.07**.

# %%
HEIGHT = 224


def loss_in_heights(circle):
    """The loss of a circle (1, 3) counted in image heights."""
    return mismatch(HEIGHT * circle)


with_two = descend(loss_in_heights, start / HEIGHT, steps=60, learning_rate=2)
print(f"with a learning rate of 2: loss {loss_in_heights(with_two):.3f}")

# %%
def learning_rate():
    """A learning rate, above 0, for numbers counted in image heights."""
    ### BEGIN SOLUTION
    return 2 / 224  # two voxels a step, as before
    ### END SOLUTION


# %% points=1
check.learning_rate(learning_rate)

# %%
learning_rate = check.learning_rate.or_reference(learning_rate)


def losses_with(rate):
    """The loss before each of 60 steps."""
    losses = []

    def watched(circle):
        loss = loss_in_heights(circle)
        losses.append(loss.item())
        return loss

    descend(watched, start / HEIGHT, steps=60, learning_rate=rate)
    return losses


slow, good, wild = (losses_with(rate) for rate in (0.001, learning_rate(), 1.0))
tried = {"0.001": slow, f"{learning_rate():.2g}": good, "1": wild}
show(
    curves({name: (range(60), losses) for name, losses in tried.items()}, xlabel="step", ylabel="loss"),
    alt="With 0.001 the loss hardly falls, with the rate that was found it falls below 0.07, with 1 "
    "it jumps up and stays there.",
)
assert slow[-1] > 0.3 and min(good) < 0.1 and wild[-1] > 0.5

# %% [markdown]
# A step of Adam is about one learning rate long, in the unit of the parameter. Two voxels are 2/224 = 0.009 image heights; a rate of 1 is a whole image a step, and the disc is gone before it could see anything. When somebody's learning rate does not work on your data, compare the units first.

# %% [markdown]
# ## Where you stand

# %%
progress()

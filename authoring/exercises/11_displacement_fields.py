# %% [markdown]
# # Exercise 11 · Displacement fields
#
# You write the four functions that everything later stands on, and invert a field in one dimension. **Time**: about 50 minutes · **Points**: 14.
#
# Before this: lesson 11. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import numpy as np
import torch

from course_lib import setup
from course_lib.checks import displacement_fields as check
from course_lib.checks import progress
from course_lib.datasets import brains
from course_lib.plotting import curves, images, show
from course_lib.spatial import smooth, warp

course = setup()

# %% [markdown]
# ## Task 1 · Where does the dot appear? (predict)
#
# ●○○ · 3 minutes · 1 point
#
# The moving image is black, with one bright dot at row 4, column 6. The displacement is $u(x) = (1, -2)$ at every voxel: channel 0 is 1, channel 1 is −2. At which (row, column) is the dot in `warp(moving, u)`? Work it out before you run anything.

# %%
def dot_after_warp():
    """Where the dot of (4, 6) appears after a warp by u = (1, -2).

    Returns:
        a tuple of two whole numbers, (row, column)
    """
    ### BEGIN SOLUTION
    # warped(x) = moving(x + u(x)): we look for the x with x + (1, −2) = (4, 6).
    return 3, 8
    ### END SOLUTION


# %% points=1
check.dot_after_warp(dot_after_warp)

# %% [markdown]
# ## Task 2 · The identity grid
#
# ●○○ · 5 minutes · 2 points
#
# Write the array of all voxel coordinates, for images of two or three dimensions.

# %%
def identity_grid(shape):
    """The coordinates of every voxel.

    Args:
        shape: a tuple of 2 or 3 sizes, such as (3, 5)

    Returns:
        float32 tensor (D, *shape) with D = len(shape), in voxels, counted from 0

    Example:
        identity_grid((2, 3)) is [[[0, 0, 0],
                                   [1, 1, 1]],     channel 0: the rows i
                                  [[0, 1, 2],
                                   [0, 1, 2]]]     channel 1: the columns j
    """
    ### BEGIN SOLUTION
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
    ### END SOLUTION


# %% points=2
check.identity_grid(identity_grid)

# %%
identity_grid = check.identity_grid.or_reference(identity_grid)

# %% [markdown]
# ## Task 3 · A warp by whole voxels, without a loop over the voxels
#
# ●●○ · 12 minutes · 3 points
#
# This is the slow definition from the lesson. Write the same with tensors, without a loop over rows, columns or voxels; a loop over the batch is fine. The check counts operations.

# %%
def warp_by_loop(image, displacement):
    """(B, C, H, W) and whole-voxel (B, 2, H, W) -> (B, C, H, W); 0 outside the image."""
    result = torch.zeros_like(image)
    batch, _, height, width = image.shape
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                k = i + int(displacement[b, 0, i, j])
                m = j + int(displacement[b, 1, i, j])
                if 0 <= k < height and 0 <= m < width:
                    result[b, :, i, j] = image[b, :, k, m]
    return result


# %%
def warp_integer(image, displacement):
    """Pull the image back by whole voxels: result(x) = image(x + u(x)), and 0 outside the image.

    Args:
        image: float tensor (B, C, H, W)
        displacement: float tensor (B, 2, H, W), whole numbers, in voxels

    Returns:
        tensor like image

    Example:
        image         [[1, 2, 3],    and u = (0, 1) at every voxel, one column to the right,
                       [4, 5, 6]]    give  [[2, 3, 0],
                                            [5, 6, 0]]
    """
    ### BEGIN SOLUTION
    height, width = image.shape[2:]
    positions = (identity_grid((height, width)) + displacement).long()  # (B, 2, H, W)
    i, j = positions[:, 0], positions[:, 1]                             # (B, H, W) each
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    i, j = i.clamp(0, height - 1), j.clamp(0, width - 1)
    fetched = torch.stack([image[b][:, i[b], j[b]] for b in range(len(image))])
    return fetched * inside[:, None]                                    # (B, C, H, W)
    ### END SOLUTION


# %% points=3
check.warp_integer(warp_integer)

# %%
warp_integer = check.warp_integer.or_reference(warp_integer)
brain = brains.real_pair().fixed                                        # (1, 1, 224, 192)
torch.manual_seed(3)
blocks = (20 * torch.randn(1, 2, 7, 6)).round().repeat_interleave(32, 2).repeat_interleave(32, 3)
show(
    images({"moving": brain, "warped by blocks": warp_integer(brain, blocks)}),
    alt="A brain slice, and the same slice cut into square blocks that were moved at random.",
)

# %% [markdown]
# Each of the 42 squares of the result shows the piece of the brain that its arrow points to. Some tissue appears twice, some nowhere: a displacement need not be one-to-one.

# %% [markdown]
# ## Task 4 · Points of the fixed image in the moving one
#
# ●●○ · 8 minutes · 3 points
#
# The points lie on voxels, so that you can look the displacement up without interpolation. They are floats: turn them into whole numbers with `.long()` for indexing.

# %%
def warp_points(points, displacement):
    """Where points of the fixed image lie in the moving image.

    Args:
        points: float tensor (B, N, 2), (row, column) in voxels, whole numbers inside the image
        displacement: float tensor (B, 2, H, W), in voxels

    Returns:
        float tensor (B, N, 2), in voxels of the moving image

    Example:
        with u = (0.5, -1) at row 1, column 3, the point (1, 3) lies at (1.5, 2)
    """
    ### BEGIN SOLUTION
    rows, columns = points.long().unbind(-1)                            # (B, N) each
    moved = torch.stack([u[:, i, j].T for u, i, j in zip(displacement, rows, columns)])
    return points + moved                                               # (B, N, 2)
    ### END SOLUTION


# %% points=3
check.warp_points(warp_points)

# %% [markdown]
# ## Task 5 · Two warps in one (find the bug)
#
# ●●○ · 8 minutes · 2 points
#
# The function below was meant to give one displacement that does what a warp by `first` and then one by `second` do. The picture shows that it does not. Write it right, for any two fields; the library's `warp` reads a field between the voxels just as it reads an image. Displacements do not end where the image ends, so read them with `padding="border"`.

# %%
def compose_with_a_bug(first, second):
    return first + second


torch.manual_seed(5)
first, second = (smooth(60 * torch.randn(1, 2, 224, 192), 9) + 6 for _ in range(2))
twice = warp(warp(brain, first), second)
wrong = warp(brain, compose_with_a_bug(first, second))
show(
    images({"warped twice": twice, "warped by the sum": wrong, "difference": (wrong - twice).abs()}),
    alt="The brain warped twice, the brain warped by the sum of the fields, and their difference, "
    "which is bright along all edges.",
)

# %%
def compose(first, second):
    """The displacement that warps by first, then by second.

    Args:
        first, second: float tensors (B, 2, H, W), in voxels

    Returns:
        float tensor (B, 2, H, W) with
        warp(warp(image, first), second) ≈ warp(image, compose(first, second))

    Example:
        where second is (0, 3) and, three columns further right, first is (1, 0), the result is (1, 3)
    """
    ### BEGIN SOLUTION
    # twice(x) = once(x + second(x)) = image(x + second(x) + first(x + second(x)))
    return second + warp(first, second, padding="border")
    ### END SOLUTION


# %% points=2
check.compose(compose)

# %%
compose = check.compose.or_reference(compose)
composed = warp(brain, compose(first, second))
print("mean difference to warping twice, by the sum: ", f"{(wrong - twice).abs().mean():.3f}")
print("mean difference to warping twice, composed:   ", f"{(composed - twice).abs().mean():.3f}")
assert (composed - twice).abs().mean() < 0.25 * (wrong - twice).abs().mean()

# %% [markdown]
# What is left is not an error of the formula: warping twice interpolates twice and is blurred twice, the composed field only once.

# %% [markdown]
# ## Task 6 · The inverse in one dimension
#
# ●●○ · 12 minutes · 3 points
#
# The map is $\varphi(x) = x + u(x)$. Find the displacement $w$ of its inverse, $\varphi^{-1}(y) = y + w(y)$, by repeating $w \leftarrow \ldots$ as in the lesson. `sample_1d` reads an array between the voxels.

# %%
def sample_1d(values, positions):
    """Values between the voxels, linearly; the border value outside."""
    return np.interp(positions, np.arange(len(values)), values)


# %%
def invert_1d(u):
    """The displacement w of the inverse map, on the same voxels.

    Args:
        u: float64 NumPy array (n,), in voxels, with a slope between -0.8 and 0.8

    Returns:
        float64 NumPy array (n,), in voxels, right to 0.001; 50 repetitions are enough

    Example:
        the inverse of a shift by u = [2, 2, 2, 2] is w = [-2, -2, -2, -2]
    """
    ### BEGIN SOLUTION
    y = np.arange(len(u), dtype=float)
    w = np.zeros_like(u)
    for _ in range(50):
        w = -sample_1d(u, y + w)  # from φ(y + w(y)) = y
    return w
    ### END SOLUTION


# %% points=3
check.invert_1d(invert_1d)

# %%
invert_1d = check.invert_1d.or_reference(invert_1d)
x = np.arange(60.0)
u = 8 * np.exp(-((x - 28) ** 2) / 128)
w = invert_1d(u)
show(
    curves({"u": (x, u), "w": (x, w), "−u": (x, -u)}, xlabel="voxel", ylabel="voxels"),
    alt="The inverse's displacement is a negative bump that stands further right than minus u.",
)
print("highest u at voxel", int(u.argmax()), "  lowest w at voxel", int(w.argmin()))
assert u.argmax() == 28 and w.argmin() == 36

# %% [markdown]
# The largest step, 8 voxels, is taken at voxel 28 and ends at voxel 36: there, and not at 28, the inverse takes its largest step back. A field and its inverse live on different grids, that of the fixed and that of the moving image; $-u$ mixes them up.

# %% [markdown]
# ## Where you stand

# %%
progress()

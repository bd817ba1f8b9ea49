# %% [markdown]
# # Exercise 12 · Grid sampling
#
# You write the sampler that every registration program stands on, repair one that invents values, and warp labels without inventing any. **Time**: about 65 minutes · **Points**: 14.
#
# Before this: lesson 12. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import torch
from torch.nn import functional as F

from course_lib import setup
from course_lib.checks import grid_sampling as check
from course_lib.checks import progress
from course_lib.datasets import brains
from course_lib.plotting import images, show
from course_lib.spatial import affine_displacement, identity_grid, warp

course = setup()
pair = brains.real_pair()
colin = pair.moving                                                     # (1, 1, 224, 192)

# %% [markdown]
# ## Task 1 · Where does it look? (predict)
#
# ●●○ · 7 minutes · 1 point
#
# Two half-voxel questions, to be worked out with pencil and paper.
#
# 1. An image has 9 columns. The coordinate $x$ of column 2 is computed for `align_corners=True`, and handed to `grid_sample` with `align_corners=False`. At which column does it look?
# 2. An image is pooled twice by `avg_pool2d(image, 2)`. In the small image a vessel runs through the center of column 10. At which column of the full image does it run?

# %%
def looks_at():
    """Two columns, counted from 0; they may be fractions.

    Returns:
        a tuple of two numbers: the answer to question 1, the answer to question 2
    """
    ### BEGIN SOLUTION
    # x = 2·2/8 − 1 = −0.5, and (2 p + 1)/9 − 1 = −0.5 gives p = 1.75.
    # Once pooled: 2·10 + 0.5 = 20.5; and again: 2·20.5 + 0.5 = 41.5.
    return 1.75, 41.5
    ### END SOLUTION


# %% points=1
check.looks_at(looks_at)

# %% [markdown]
# ## Task 2 · From voxels to the coordinates of grid_sample
#
# ●●○ · 6 minutes · 2 points
#
# `positions` are places in an image of the given `shape`. There may be more or fewer places than voxels: `h` and `w` are their own numbers.

# %%
def to_grid(positions, shape):
    """Positions in voxels as grid_sample wants them, for align_corners=True.

    Args:
        positions: float tensor (B, 2, h, w), (row i, column j) in voxels
        shape: (height, width) of the image that will be read

    Returns:
        tensor (B, h, w, 2): the last axis is (x, y), from -1 to 1 inside the image
        and beyond that outside of it;
        made with torch's own functions, so that gradients pass through

    Example:
        in an image of shape (5, 9), row 1 and column 6 become x = 0.5, y = -0.5
    """
    ### BEGIN SOLUTION
    height, width = shape
    i, j = positions[:, 0], positions[:, 1]                             # (B, h, w) each
    x, y = 2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1
    return torch.stack([x, y], dim=-1)                                  # (B, h, w, 2)
    ### END SOLUTION


# %% points=2
check.to_grid(to_grid)

# %%
to_grid = check.to_grid.or_reference(to_grid)
turn = affine_displacement(torch.tensor([[[0.4, -0.3, 0], [0.3, 0.4, 0]]]), (224, 192))
positions = identity_grid((224, 192)) + turn                            # (1, 2, 224, 192)
turned = F.grid_sample(colin, to_grid(positions, (224, 192)), align_corners=True)
show(
    images({"colin": colin, "grid_sample at your grid": turned}),
    alt="A brain slice, and the same slice turned and twice as large.",
)
assert torch.allclose(turned, warp(colin, turn), atol=1e-3)

# %% [markdown]
# The matrix makes the steps half as long and turns them: the sampler looks at fewer voxels, so the brain appears twice as large. In two lines you have what `warp` does.
#
# ## Task 3 · Bilinear sampling
#
# ●●● · 25 minutes · 4 points
#
# This is the sampler of the lesson for one place. Write it for a batch of images with channels, and for places outside: **each neighbor that lies outside the image counts as 0**. Loops are allowed; four indexings of all places at once are shorter and faster. A gradient has to reach image and positions, so compute with torch.
#
# Every registration starts with all places *on* voxels. There the slope has to be the one before the voxel, the one behind it, or one between the two: so the line `if weight > 0` has to go. A neighbor of weight 0 adds nothing to the value, but its share to the slope; leave out only what is outside the image.

# %%
def sample_one(image, i, j):
    """The value of (H, W) at one place inside, in voxels."""
    i0, j0 = int(i), int(j)                                             # rounded down, as i, j >= 0
    value = 0.0
    for di, row_weight in ((0, 1 - (i - i0)), (1, i - i0)):
        for dj, column_weight in ((0, 1 - (j - j0)), (1, j - j0)):
            weight = row_weight * column_weight
            if weight > 0:                                              # or we might leave the image
                value += weight * float(image[i0 + di, j0 + dj])
    return value


# %%
def bilinear(image, positions):
    """The values of images between their voxels, mixed from four neighbors.

    Args:
        image: float tensor (B, C, H, W)
        positions: float tensor (B, 2, N), (row i, column j) in voxels, inside or outside

    Returns:
        float tensor (B, C, N): item b is image[b] at positions[b]

    Example:
        image [[0, 4],     at (0.5, 0.25) gives 6
               [8, 20]]    at (0.25, 1.5) gives 4: at (0.25, 1) it is 8, and half of the
                           weight lies outside, in column 2
    """
    ### BEGIN SOLUTION
    height, width = image.shape[2:]
    i0, j0 = positions[:, 0].floor(), positions[:, 1].floor()           # (B, N) each
    a, b = positions[:, 0] - i0, positions[:, 1] - j0

    def neighbor(i, j):
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        rows, columns = i.long().clamp(0, height - 1), j.long().clamp(0, width - 1)
        found = torch.stack([x[:, r, c] for x, r, c in zip(image, rows, columns)])
        return found * inside[:, None]                                  # (B, C, N)

    upper = (1 - b)[:, None] * neighbor(i0, j0) + b[:, None] * neighbor(i0, j0 + 1)
    lower = (1 - b)[:, None] * neighbor(i0 + 1, j0) + b[:, None] * neighbor(i0 + 1, j0 + 1)
    return (1 - a)[:, None] * upper + a[:, None] * lower
    ### END SOLUTION


# %% points=4
check.bilinear(bilinear)

# %%
bilinear = check.bilinear.or_reference(bilinear)
mine = bilinear(colin, positions.flatten(2)).view(1, 1, 224, 192)
difference = (mine - turned).abs().max()
print(f"largest difference to grid_sample at 43,008 places: {float(difference):.0e}")
assert difference < 1e-3 and mine.numel() == 43_008

# %% [markdown]
# The difference is rounding: `grid_sample` goes through −1 … 1 and back. Everything that registration needs from PyTorch's sampler you have now written yourself, its gradient included.
#
# ## Task 4 · A sampler that invents values (find the bug)
#
# ●●○ · 7 minutes · 2 points
#
# This one was meant to have *border* padding: outside the image, the value of the nearest voxel of the edge. Inside it is right. The picture reads 40 rows and 40 columns beyond the edges of a piece of the brain, whose values lie between 0 and 1; whatever is above 1 is drawn white, whatever is below 0 black. Find out what it does at row −1.5, then write it right.

# %%
def border_with_a_bug(image, positions):
    height, width = image.shape[2:]
    i, j = positions[:, 0], positions[:, 1]                             # (B, N) each
    i0 = i.floor().long().clamp(0, height - 2)
    j0 = j.floor().long().clamp(0, width - 2)
    a, b = (i - i0)[:, None], (j - j0)[:, None]                         # (B, 1, N)

    def at(rows, columns):
        return torch.stack([x[:, r, c] for x, r, c in zip(image, rows, columns)])

    upper = (1 - b) * at(i0, j0) + b * at(i0, j0 + 1)
    lower = (1 - b) * at(i0 + 1, j0) + b * at(i0 + 1, j0 + 1)
    return (1 - a) * upper + a * lower                                  # (B, C, N)


piece = colin[:, :, 80:130, 60:110]                                     # (1, 1, 50, 50)
wide = (identity_grid((130, 130)) - 40)[None].flatten(2)                # (1, 2, 16900)
invented = border_with_a_bug(piece, wide).view(1, 1, 130, 130)
show(
    images({"the piece": piece, "read beyond its edges": invented}),
    alt="A piece of a brain; around it, black and white streaks that run outward.",
)
print(f"values from {float(invented.min()):.0f} to {float(invented.max()):.0f}")
assert invented.min() < -5 and invented.max() > 5

# %%
def bilinear_border(image, positions):
    """As bilinear, but outside the image the value of the edge goes on.

    Args:
        image: float tensor (B, C, H, W)
        positions: float tensor (B, 2, N), (row i, column j) in voxels, inside or outside

    Returns:
        float tensor (B, C, N)

    Example:
        image [[0, 4],     at (-1.5, 0.25) gives 1, the value at (0, 0.25)
               [8, 20]]    at (0.5, 2.75) gives 12, the value at (0.5, 1)
    """
    ### BEGIN SOLUTION
    # i0 was clamped, a = i − i0 was not: at row −1.5 the weights were 2.5 and −1.5.
    height, width = image.shape[2:]
    i, j = positions[:, 0].clamp(0, height - 1), positions[:, 1].clamp(0, width - 1)
    return bilinear(image, torch.stack([i, j], dim=1))
    ### END SOLUTION


# %% points=2
check.bilinear_border(bilinear_border)

# %%
bilinear_border = check.bilinear_border.or_reference(bilinear_border)
repaired = bilinear_border(piece, wide).view(1, 1, 130, 130)
show(
    images({"the piece": piece, "border padding": repaired}),
    alt="A piece of a brain; around it, its outermost rows and columns go on as even stripes.",
)
assert repaired.min() >= 0 and repaired.max() <= 1

# %% [markdown]
# Weights between 0 and 1 cannot make a value that is larger than all voxels. If a sampled image has values outside the range of the original, look for weights below 0 or above 1.
#
# ## Task 5 · The slope at the edge (predict)
#
# ●●○ · 8 minutes · 2 points
#
# The image has three rows:
#
# | | column 0 | 1 | 2 | 3 |
# |---|---|---|---|---|
# | **row 0** | 3 | 5 | 9 | 4 |
# | **row 1** | 6 | 8 | 2 | 7 |
# | **row 2** | 1 | 5 | 3 | 6 |
#
# A sample is taken at row 2.5, column 0.75: half a voxel beyond the last row. How fast does its value change, per voxel, if the place moves down ($i$), and if it moves to the right ($j$)? Answer for zeros padding and for border padding.

# %%
def edge_slopes():
    """Slopes at (2.5, 0.75), per voxel.

    Returns:
        a tuple of four numbers: along i and along j with zeros padding,
        then along i and along j with border padding
    """
    ### BEGIN SOLUTION
    # The last row has 0.25·1 + 0.75·5 = 4 at column 0.75, and the slope 5 − 1 = 4 along it.
    # Zeros: row 3 is 0, so 0 − 4 along i; half of the weight, so half of the slope along j.
    # Border: row 3 repeats row 2, so no slope along i, and the full one along j.
    return -4, 2, 0, 4
    ### END SOLUTION


# %% points=2
check.edge_slopes(edge_slopes)

# %% [markdown]
# An optimizer follows such slopes, whether they come from the anatomy or from the padding. How steep the edge with zeros is depends on how bright the image is there, not on what matches. More than a voxel outside, neither padding has a slope that leads back.
#
# ## Task 6 · Labels, without inventing any
#
# ●●○ · 10 minutes · 3 points
#
# Make an image of each label, 1 where it is and 0 elsewhere; warp all of them linearly, with zeros outside; let the largest share win. Use `warp(image, displacement)` for the warping. Where all shares are 0, outside the image, the result is background, 0.

# %%
def warp_labels(labels, displacement):
    """Labels pulled back one-hot: each label's image is warped linearly, the largest share wins.

    Args:
        labels: int64 tensor (B, 1, H, W); 0 is the background and occurs; the other labels are
            any numbers above 0, such as 2, 3 and 41
        displacement: float tensor (B, 2, H, W), in voxels

    Returns:
        int64 tensor (B, 1, H, W), with no label that labels has not

    Example:
        labels [[0, 0, 2, 2]] in each row, and u = (0, 0.6) at every voxel, give
        [[0, 2, 2, 2]]: column 1 looks at 1.6, where label 2 has a share of 0.6; column 3 looks
        at 3.6, where label 2 has 0.4 and all others have 0
    """
    ### BEGIN SOLUTION
    values = labels.unique()                                            # (L,), sorted: 0 first
    one_hot = torch.cat([(labels == value).float() for value in values], dim=1)  # (B, L, H, W)
    winner = warp(one_hot, displacement).argmax(1, keepdim=True)        # (B, 1, H, W): channels
    return values[winner]
    ### END SOLUTION


# %% points=3
check.warp_labels(warp_labels)

# %%
warp_labels = check.warp_labels.or_reference(warp_labels)
tissues = pair.moving_labels                                            # fluid 1, gray 2, white 3
ways = {
    "linear on numbers": warp(tissues.float(), turn).round().long(),
    "nearest": warp(tissues, turn, mode="nearest"),
    "one-hot": warp_labels(tissues, turn),
}
shown = ways | {"linear is not one-hot": 3 * (ways["linear on numbers"] != ways["one-hot"])}
figure = images({name: x[..., 10:70, 130:190] for name, x in shown.items()}, limits=(0, 3))
figure.axes[-1].set_ylabel("tissue; in the last picture, 3 is yes")
show(
    figure,
    alt="Dark fluid between gray and white matter, enlarged; nearest shows square stairs at the "
    "edges, one-hot smoother ones. In the last picture, dots along an edge of the fluid.",
)
for name in ("linear on numbers", "nearest"):
    differs = (ways[name] != ways["one-hot"]).float().mean()
    print(f"{name}: {float(differs):.1%} of the voxels differ from one-hot")
    assert differs > 0.002
linear, winner = ways["linear on numbers"], ways["one-hot"]
assert ((linear == 2)[linear != winner]).float().mean() > 0.55

# %% [markdown]
# Linear interpolation of the numbers looks innocent here, because in most places the tissues lie in the order of their numbers, from fluid over gray to white. Where it differs from one-hot, it mostly says gray matter (2), where one-hot says white (3) or fluid (1): mixed, these two give the number of the third. With structures numbered at random it would be wrong along most borders.
#
# ## Where you stand

# %%
progress()

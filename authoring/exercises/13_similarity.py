# %% [markdown]
# # Exercise 13 · Similarity
#
# You write the two losses that most registration programs rest on, make the slow part of one fast, and mend a loss that was really used and really lied. **Time**: about 60 minutes · **Points**: 14.
#
# Before this: lesson 13. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import skimage.data
import torch
from torch.nn import functional as F

from course_lib import setup
from course_lib.checks import progress
from course_lib.checks import similarity as check
from course_lib.checks.similarity import window_report
from course_lib.datasets import brains
from course_lib.landscapes import landscape, translations
from course_lib.plotting import curves, images, show
from course_lib.spatial import pyramid
from course_lib.widgets import corrupt

course = setup()

# %% [markdown]
# ## Task 1 · Two copies (predict)
#
# ●○○ · 4 minutes · 2 points
#
# Half of the voxels of an image are 0, the other half 1. Two copies lie exactly on it:
#
# - its **negative**, `1 - image`,
# - a **pale copy**, `0.25 + 0.5 * image`.
#
# For each copy, compared with the image: what is the mean squared difference (MSE), and what is Pearson's correlation $r$? (The correlation itself, not the loss $-r$.) Work it out before you run anything.

# %%
def scores_of_copies():
    """MSE and correlation of the negative, then of the pale copy.

    Returns:
        a tuple of four numbers: (MSE of the negative, r of the negative,
                                  MSE of the pale copy, r of the pale copy)
    """
    ### BEGIN SOLUTION
    # The negative differs by 1 at every voxel; the pale copy by 0.25, at 0 and at 1.
    # Both are a gain and an offset of the image: r is the sign of the gain.
    return 1, -1, 0.25**2, 1
    ### END SOLUTION


# %% points=2
check.scores_of_copies(scores_of_copies)

# %% [markdown]
# ## Task 2 · Correlation as a loss
#
# ●●○ · 8 minutes · 2 points
#
# For one item of the batch, with $a$ and $b$ running over all voxels of all its channels:
#
# $$r = \frac{\text{cov}(a, b)}{\sqrt{\text{var}(a)\,\text{var}(b) + 10^{-10}}}, \qquad \text{cov}(a, b) = \text{mean}\bigl((a - \bar a)(b - \bar b)\bigr), \quad \text{var}(a) = \text{mean}\bigl((a - \bar a)^2\bigr)$$
#
# Here $\bar a$ is the mean of $a$. The loss is the mean of $-r$ over the batch. A gradient has to pass through it, so use torch's functions; it has to stay finite for a constant image too, which is what the $10^{-10}$ under the root is for.

# %%
def ncc(warped, fixed):
    """Minus Pearson's correlation over each whole image, averaged over the batch.

    Args:
        warped, fixed: float tensors (B, C, H, W) or (B, C, H, W, K)

    Returns:
        a tensor with one number, from -1 to 1; -1 is best; 0 for a constant image

    Example:
        the image [[0, 1]] and the image [[0.5, 0.7]] give -1: the second is 0.5 + 0.2 · the first
    """
    ### BEGIN SOLUTION
    a, b = warped.flatten(1), fixed.flatten(1)                          # (B, voxels)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    covariance = (a * b).mean(1)                                        # (B,)
    variances = a.square().mean(1) * b.square().mean(1)
    return -(covariance / (variances + 1e-10).sqrt()).mean()
    ### END SOLUTION


# %% points=2
check.ncc(ncc)

# %%
ncc = check.ncc.or_reference(ncc)

# %% [markdown]
# ## Task 3 · Sums over windows that cost the same for any window
#
# ●●○ · 18 minutes · 3 points
#
# This is the slow definition. It visits every value of every window.

# %%
def box_sums_by_loop(image, window):
    """The sum over the window around each voxel; zeros outside the image."""
    radius, (height, width) = window // 2, image.shape[2:]
    padded = F.pad(image, (radius, radius, radius, radius))
    result = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            result[:, :, i, j] = padded[:, :, i : i + window, j : j + window].sum((2, 3))
    return result


# %% [markdown]
# Write the same with **cumulative sums** (`x.cumsum(axis)`) along axis 2 and then along axis 3, so that the work does not grow with the window. The check looks at the operations: no loop over the window or over the image, no convolution, pooling or `unfold`. A gradient has to pass.

# %%
def box_sums(image, window):
    """The sum over the window around each voxel; zeros outside the image.

    Args:
        image: float tensor (B, C, H, W)
        window: edge of the window in voxels, odd; the window of voxel (i, j) covers the rows
            i - window // 2 to i + window // 2, and the columns likewise

    Returns:
        tensor like image

    Example:
        image   [[1, 2, 3],    with window 3 gives  [[12, 21, 16],
                 [4, 5, 6]]                          [12, 21, 16]]
    """
    ### BEGIN SOLUTION
    radius = window // 2
    # One zero more in front: S[i − 1] of the first window.
    sums = F.pad(image, (radius + 1, radius, radius + 1, radius))
    sums = sums.cumsum(2)
    sums = sums[:, :, window:] - sums[:, :, :-window]
    sums = sums.cumsum(3)
    return sums[..., window:] - sums[..., :-window]
    ### END SOLUTION


# %% points=3
check.box_sums(box_sums)

# %%
box_sums = check.box_sums.or_reference(box_sums)
picture = torch.rand(1, 1, 20, 24)
difference = (box_sums(picture, 9) - box_sums_by_loop(picture, 9)).abs().max()
print("the same as the loop:", bool(difference < 1e-3))
assert difference < 1e-3

# %% [markdown]
# The loop adds 81 values for each voxel of a 9 × 9 window. Yours adds one value and subtracts one, along each axis: 4 operations, for a window of 9 or of 99.
#
# There is a price: a cumulative sum grows along the image, and float32 keeps about 7 digits of it. The library's `lncc` therefore sums in another way (`course_lib/local_ncc.py` tells how).

# %% [markdown]
# ## Task 4 · Local correlation
#
# ●●○ · 14 minutes · 3 points
#
# Now the loss of VoxelMorph and many others. With sums $\Sigma$ over the window of each voxel (zeros outside the image) and $n$ = `window * window`, the size of the *full* window:
#
# $$\text{cross} = \Sigma ab - \frac{\Sigma a\,\Sigma b}{n}, \qquad v_a = \Sigma a^2 - \frac{(\Sigma a)^2}{n}, \qquad v_b = \Sigma b^2 - \frac{(\Sigma b)^2}{n}, \qquad cc^2 = \frac{\text{cross}^2}{v_a v_b + 10^{-5}}$$
#
# The loss is minus the mean of $cc^2$ over all voxels, channels and items. Each channel has its own windows. Use `box_sums`.

# %%
def lncc(warped, fixed, window):
    """Minus the squared correlation in the window around each voxel, averaged.

    Args:
        warped, fixed: float tensors (B, C, H, W)
        window: edge of the window in voxels, odd

    Returns:
        a tensor with one number, from -1 to 0

    Example:
        in a window of 3 × 3 whose sums are Σa = 3, Σb = 3, Σa² = 2, Σb² = 3, Σab = 2:
        cross = 2 - 9/9 = 1, var_a = 1, var_b = 2, and cc² = 1/2
    """
    ### BEGIN SOLUTION
    n = window * window
    a, b = box_sums(warped, window), box_sums(fixed, window)
    cross = box_sums(warped * fixed, window) - a * b / n
    var_a = box_sums(warped * warped, window) - a * a / n
    var_b = box_sums(fixed * fixed, window) - b * b / n
    return -(cross * cross / (var_a * var_b + 1e-5)).mean()
    ### END SOLUTION


# %% points=3
check.lncc(lncc)

# %%
lncc = check.lncc.or_reference(lncc)
fixed = pyramid(brains.real_pair().fixed, 2)                            # (1, 1, 112, 96)
moving = corrupt(fixed, bias=3.0)
shifts = range(-12, 13)
heights = {
    "−r": landscape(ncc, moving, fixed, translations(shifts, axis=1)),
    "−mean cc², 9 × 9": landscape(lambda a, b: lncc(a, b, 9), moving, fixed, translations(shifts, axis=1)),
}
show(
    curves({name: (shifts, h) for name, h in heights.items()}, xlabel="shift (voxels)", ylabel="loss"),
    alt="The loss of the whole image is lowest at plus 2 voxels, the local one at 0.",
)
for name, h in heights.items():
    print(f"{name}: lowest at {shifts[int(h.argmin())]:+d}")
assert shifts[int(heights["−r"].argmin())] == 2
assert shifts[int(heights["−mean cc², 9 × 9"].argmin())] == 0

# %% [markdown]
# The right place is 0. The bias field, dark on the left and bright on the right, drags the correlation of the whole image away: with one gain for all voxels it cannot explain it. Within 9 voxels the field is nearly one gain, and the local loss stays.

# %% [markdown]
# ## Task 5 · A loss that lies (find the bug)
#
# ●●● · 12 minutes · 3 points
#
# A real project registered color photographs of the retina with a loss built like the one below. It ran without an error. First look at what it says. `other` is pure noise.

# %%
def color_loss_with_bugs(a, b):
    """(B, 3, H, W) twice -> one number, and the map of scores behind it."""
    size, eps = 9 * 9, 2e-16
    kernel = torch.ones(1, 3, 9, 9, dtype=a.dtype)

    def sums(image):
        return F.conv2d(image, kernel, padding=4)                       # (B, 1, H, W)

    cross = sums(a * b) - sums(a) * sums(b) / size
    var_a = sums(a * a) - sums(a) ** 2 / size
    var_b = sums(b * b) - sums(b) ** 2 / size
    scores = cross**2 / (var_a * var_b + eps)
    return -scores.mean(), scores, var_a


# %%
photo = torch.from_numpy(skimage.data.retina()).permute(2, 0, 1)[None] / 255  # (1, 3, 1411, 1411)
retina = pyramid(photo, 8)[..., 8:168, 8:152]                           # (1, 3, 160, 144)
other = torch.rand(retina.shape, generator=torch.Generator().manual_seed(0))
show(
    images({name: retina[:, c : c + 1] for c, name in enumerate(("red", "green", "blue"))}),
    alt="The three channels of a retina photograph: the red one is bright, the blue one dark, and "
    "vessels show best in the green one.",
)
for name, b in (("itself", retina), ("noise", other)):
    _, scores, var_a = color_loss_with_bugs(retina, b)
    below = float((var_a < 0).float().mean())
    print(f"with {name}: a score above 1: {bool(scores.max() > 1.01)}; 'variances' below 0: {below:.0%}")
    assert below > 0.5
assert scores.max() > 10  # the correlation with noise, squared

# %% [markdown]
# With itself all looks well: the same wrong number stands above and below the line. With noise there are squared correlations above 1, and the variances are below 0 in most windows: something is miscounted. Mend it. Asked for is one correlation for each 9 × 9 window, over the values of **all three channels together**, with zeros outside the image and the $10^{-5}$ of task 4 below the line. There are two bugs; you may keep the rest.

# %%
def color_lncc(a, b):
    """Minus the squared correlation in 9 × 9 windows over three channels together, averaged.

    cc² = cross² / (var_a · var_b + 1e-5), as in task 4.

    Args:
        a, b: float tensors (B, 3, H, W)

    Returns:
        a tensor with one number, from -1 to 0
    """
    ### BEGIN SOLUTION
    size, eps = 3 * 9 * 9, 1e-5  # the kernel adds up the channels too; eps mutes flat windows
    kernel = torch.ones(1, 3, 9, 9, dtype=a.dtype)

    def sums(image):
        return F.conv2d(image, kernel, padding=4)

    cross = sums(a * b) - sums(a) * sums(b) / size
    var_a = sums(a * a) - sums(a) ** 2 / size
    var_b = sums(b * b) - sums(b) ** 2 / size
    return -(cross**2 / (var_a * var_b + eps)).mean()
    ### END SOLUTION


# %% points=3
check.color_lncc(color_lncc)

# %%
color_lncc = check.color_lncc.or_reference(color_lncc)
same, unlike = -color_lncc(retina, retina), -color_lncc(retina, other)
print(f"mended: with itself {float(same):.2f}, with noise {float(unlike):.2f}")
assert 0.5 < same <= 1 + 1e-3 and unlike < 0.1

# %% [markdown]
# With $N = 243$ values summed and only 81 in the divisor, $\Sigma a^2 - (\Sigma a)^2 / 81$ subtracts three times too much: where $a$ is bright, what should be a variance is negative, and it crosses zero somewhere. Near that crossing the score has no bound, and neither has its gradient. An optimizer that follows it is thrown about, and the losses that it prints say nothing. No squared correlation exceeds 1: one `assert` in the program would have found this.

# %% [markdown]
# ## Task 6 · How large a window? (explore)
#
# ●●○ · 4 minutes · 1 point
#
# The moving image is spoiled twice: by a bias field and by noise. `window_report(window)` draws up the landscape of `lncc` with that window over shifts from −15 to 15 voxels (the right one is 0) and returns `error`, how far the lowest place is from the right one, and `drop`, how far the loss falls from the ends to there. Find a window with error 0 and a drop of at least 0.175.

# %%
window_report(5)

# %%
def good_window():
    """A window with error 0 and a drop of at least 0.175.

    Returns:
        an odd whole number from 3 to 95
    """
    ### BEGIN SOLUTION
    return 25
    ### END SOLUTION


# %% points=1
check.good_window(good_window)

# %%
good_window = check.good_window.or_reference(good_window)
chosen = good_window()
found = {window: window_report(window) for window in sorted({5, int(chosen), 75})}
for window, report in found.items():
    print(f"window {window:2d}: error {report['error']:.0f}, drop {report['drop']:.2f}")
assert found[75]["error"] > 0 and found[5]["drop"] < 0.1

# %% [markdown]
# A small window averages little noise: the valley is in the right place but shallow, and its slope is lost in the roughness around it. A large window is deep, but sees the bias change inside it, and its lowest place moves. In between both are tolerable. Which window that is depends on the images: on how fast the bias changes, how strong the noise is, and how large the structures are. The common 9 is a habit, not a law.

# %% [markdown]
# ## Where you stand

# %%
progress()

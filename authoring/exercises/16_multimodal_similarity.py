# %% [markdown]
# # Exercise 16 · Similarity across contrasts
#
# You write mutual information so that it can drive a registration, let it register T1 to T2, build the heart of MIND, and look for a contrast that makes correlation blind. **Time**: about 55 minutes · **Points**: 13.
#
# Before this: lesson 16. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import torch
from torch.nn import functional as F

from course_lib import losses, setup
from course_lib.checks import multimodal_similarity as check
from course_lib.checks import progress
from course_lib.datasets import brains, contrasts
from course_lib.evaluation import table
from course_lib.landscapes import landscape, translations
from course_lib.optimise import refine
from course_lib.plotting import curves, images, show

course = setup()
head = brains.real_pair()
t1, t2 = head.fixed, contrasts.t2_like(head.fixed_labels, seed=0)       # one head, two contrasts
pair = brains.pair(102)
pair = pair._replace(fixed=contrasts.t2_like(pair.fixed_labels, seed=102))

# %% [markdown]
# ## Task 1 · Four small tables (predict)
#
# ●○○ · 5 minutes · 2 points
#
# Four joint histograms of two bins each; rows belong to image $a$, columns to image $b$:
#
# $$A = \begin{pmatrix} \frac12 & 0 \\ 0 & \frac12 \end{pmatrix} \quad
# B = \begin{pmatrix} 0 & \frac12 \\ \frac12 & 0 \end{pmatrix} \quad
# C = \begin{pmatrix} \frac14 & \frac14 \\ \frac14 & \frac14 \end{pmatrix} \quad
# D = \begin{pmatrix} \frac12 & \frac12 \\ 0 & 0 \end{pmatrix}$$
#
# What is the mutual information of each, in **bits** (logarithm of base 2)? Work it out by hand.


# %%
def information_in_bits():
    """Mutual information of the tables A, B, C and D.

    Returns:
        a tuple of four numbers, in bits
    """
    ### BEGIN SOLUTION
    # I = H(a) + H(b) − H(a, b), in the order A, B, C, D:
    # 1 + 1 − 1, the same (bins renumbered), 1 + 1 − 2, and 0 + 1 − 1: a constant says nothing.
    return 1, 1, 0, 0
    ### END SOLUTION


# %% points=2
check.information_in_bits(information_in_bits)

# %% [markdown]
# ## Task 2 · A joint histogram with a gradient
#
# ●●● · 22 minutes · 3 points
#
# Each voxel is shared between four cells, with the hat window of the lesson. The voxel with $a = 3.2$ and $b = 5.5$ (in units of bins) gives row 3 a share of 0.8 and row 4 one of 0.2; column 5 gets 0.5 and column 6 gets 0.5; a cell gets the product, so cell (3, 5) gets 0.4.
#
# The lesson's `parzen` builds arrays of bins × voxels, which is too much memory for volumes. Do without: no array of bins × voxels, no loop over the voxels, and none over the bins (it would go through all voxels for each bin); a loop over the four cells is fine. The check looks at the sizes of your tensors and counts operations.
#
# The tool is `index_add`: it adds each value to the cell whose number stands beside it, and has a gradient. `torch.zeros(3).index_add(0, torch.tensor([0, 2, 2]), torch.tensor([0.5, 0.1, 0.3]))` gives `[0.5, 0, 0.4]`. And mind the brightest voxel: it lies exactly at bins − 1, where no bin is above.


# %%
def joint_histogram(a, b, bins):
    """The share of voxels in each pair of bins, each voxel shared linearly between neighbors.

    Args:
        a, b: float32 tensors (N,), positions in units of bins, from 0 to bins - 1 (both included),
            the two intensities of each of N voxels
        bins: of each axis, 2 or more

    Returns:
        float32 tensor (bins, bins), row i for a, column j for b; its sum is 1, and a gradient
        flows back to a and b

    Example:
        bins = 3 and one voxel with a = [0.5], b = [2.0] give  [[0, 0, 0.5],
                                                               [0, 0, 0.5],
                                                               [0, 0, 0  ]]
    """
    ### BEGIN SOLUTION
    i, j = (x.detach().floor().clamp(max=bins - 2) for x in (a, b))     # (N,) the lower bins
    s, t = a - i, b - j                                                 # (N,) the upper's shares
    corner = (i * bins + j).long()                                      # of the flat histogram
    counts = torch.zeros(bins * bins)
    counts = counts.index_add(0, corner, (1 - s) * (1 - t))
    counts = counts.index_add(0, corner + 1, (1 - s) * t)
    counts = counts.index_add(0, corner + bins, s * (1 - t))
    counts = counts.index_add(0, corner + bins + 1, s * t)
    return counts.view(bins, bins) / len(a)
    ### END SOLUTION


# %% points=3
check.joint_histogram(joint_histogram)

# %%
joint_histogram = check.joint_histogram.or_reference(joint_histogram)


def in_bins(image, bins):
    """An image as positions (N,), from 0 (its darkest voxel) to bins - 1 (its brightest)."""
    values = image.flatten()
    low, high = values.detach().min(), values.detach().max()
    return (values - low) / (high - low) * (bins - 1)


p = joint_histogram(in_bins(pair.moving, 16), in_bins(pair.fixed, 16), 16)
print("sum:", f"{float(p.sum()):.4f}", "  empty cells:", int((p == 0).sum()), "of", p.numel())
assert abs(float(p.sum()) - 1) < 1e-4 and int((p == 0).sum()) > 0

# %% [markdown]
# A few cells are empty. One is enough to spoil the formula of the next task.

# %% [markdown]
# ## Task 3 · From the table to a number (find the bugs)
#
# ●●○ · 9 minutes · 3 points
#
# This function was meant to give $I = \sum_{ij} p_{ij} \log \frac{p_{ij}}{p_i \, p_j}$. It has two bugs. One you see at once; the other shows only in the second number, which should be 0, since the table is a product of its marginals.


# %%
def information_with_bugs(p):
    p_a, p_b = p.sum(0), p.sum(1)
    return (p * (p / (p_a[:, None] * p_b[None, :])).log()).sum()


product = torch.tensor([[0.7], [0.3]]) * torch.tensor([[0.4, 0.6]])
print("of the two images:", float(information_with_bugs(p)))
print("of a product:", f"{float(information_with_bugs(product)):.3f}")


# %%
def mutual_information(p):
    """Mutual information of a joint histogram.

    Args:
        p: float tensor (bins, bins), 0 and above, with sum 1; row i for image a, column j for b

    Returns:
        a scalar tensor, in nats (natural logarithm), 0 or more; where cells are empty, it and its
        gradient are finite

    Example:
        [[0.5, 0], [0, 0.5]] gives log(2) = 0.693
    """
    ### BEGIN SOLUTION
    p_a, p_b = p.sum(1), p.sum(0)                                       # a has the rows: sum over the columns
    # A tiny number under the logarithm: p = 0 still gives 0, and the slope stays finite.
    ratio = p.clamp(min=1e-12).log() - (p_a[:, None] * p_b[None, :]).clamp(min=1e-12).log()
    return (p * ratio).sum()
    ### END SOLUTION


# %% points=3
check.mutual_information(mutual_information)

# %% [markdown]
# ### Your loss registers
#
# Your two functions are a loss now, with a minus. Nothing else is needed to bring a T1 image onto a T2-like one:

# %%
mutual_information = check.mutual_information.or_reference(mutual_information)


def information_loss(warped, fixed, bins=16):
    return -mutual_information(joint_histogram(in_bins(warped, bins), in_bins(fixed, bins), bins))


answers = {
    name: refine(
        pair.moving, pair.fixed, similarity=loss, smoothness=0, weight=weight, steps=30
    )
    for name, loss, weight in [("NCC", losses.ncc, 3), ("your MI", information_loss, 10)]
}
result = table(answers, pair, structures={2: "gray matter", 3: "white matter"})
result

# %%
assert result["your MI"]["error (mm)"] < 0.7 * result["identity"]["error (mm)"]
assert result["NCC"]["error (mm)"] > result["identity"]["error (mm)"]

# %% [markdown]
# NCC raises the correlation and moves the tissues apart; your loss brings them together. It never saw a label, and nobody told it which intensity of T1 goes with which of T2.

# %% [markdown]
# ## Task 4 · The heart of MIND
#
# ●●○ · 9 minutes · 3 points
#
# For each of the four direct neighbors $r$, the patch distance $D_r(x)$ is the mean of $\bigl(I(y) - I(y + r)\bigr)^2$ over the voxels $y$ of the 3 × 3 patch around $x$. `patch_mean` takes that mean; you supply what it is the mean of. Where $y + r$ lies outside the image, take the border value (as if the border were repeated).


# %%
def patch_mean(values):
    """(B, C, H, W) -> (B, C, H, W): the mean over 3 × 3 voxels, the border value repeated."""
    return F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


# %%
def patch_distances(image):
    """How much the patch around each voxel differs from those around its four neighbors.

    Args:
        image: float tensor (B, 1, H, W)

    Returns:
        float tensor (B, 4, H, W); channel 0: the neighbor (i - 1, j) above, 1: (i + 1, j) below,
        2: (i, j - 1) to the left, 3: (i, j + 1) to the right

    Example:
        an image that is 0 up to column 4 and 1 from column 5 on: at column 5, the voxel and its
        left neighbor differ in one of the patch's three columns, so channel 2 is 1/3 there
    """
    ### BEGIN SOLUTION
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")               # (B, 1, H + 2, W + 2)
    neighbors = torch.cat(
        [
            padded[..., :-2, 1:-1],
            padded[..., 2:, 1:-1],
            padded[..., 1:-1, :-2],
            padded[..., 1:-1, 2:],
        ],
        dim=1,
    )                                                                   # (B, 4, H, W)
    return patch_mean((image - neighbors).square())
    ### END SOLUTION


# %% points=3
check.patch_distances(patch_distances)

# %% [markdown]
# The rest of MIND is three lines. Here it describes T1 and the T2-like image of the *same* head:

# %%
patch_distances = check.patch_distances.or_reference(patch_distances)


def my_mind(image):
    distances = patch_distances(image)                                  # (B, 4, H, W)
    variance = distances.mean(1, keepdim=True)                          # V: (B, 1, H, W)
    variance = variance.clamp(min=float(variance.mean()) / 1000)
    nearest = distances.amin(1, keepdim=True)
    return torch.exp(-(distances - nearest) / variance)                 # the largest is 1


brain = (head.fixed_labels > 0)[:, 0]                                   # (1, H, W)
apart = {}
for name, image in {"T2-like, same head": t2, "T1, other head": head.moving}.items():
    by_intensity = (image - t1).square().mean(1)                        # (1, H, W)
    by_mind = (my_mind(image) - my_mind(t1)).square().mean(1)
    apart[name] = {
        "intensity": float(by_intensity[brain].mean()),
        "MIND": float(by_mind[brain].mean()),
        "MIND, background": float(by_mind[~brain].mean()),
    }
    print(name, {what: round(value, 3) for what, value in apart[name].items()})

# %%
figure = images({
    "T1": t1, "T1: to the left": my_mind(t1)[:, 2:3],
    "T2-like": t2, "T2-like: to the left": my_mind(t2)[:, 2:3],
})  # fmt: skip
figure.axes[-1].set_ylabel("intensity, or MIND")
show(
    figure,
    alt="T1 and T2-like image, each beside the channel of its MIND for the left neighbor: the same "
    "upright edges are dark in both.",
)

# %%
same, other = apart.values()
assert same["intensity"] > 2 * other["intensity"] and same["MIND"] < 0.9 * other["MIND"]
assert same["MIND, background"] > 1.2 * other["MIND, background"]

# %% [markdown]
# Inside the brain, by intensities another person in the same contrast is far closer than the same person in another contrast. By MIND it is the other way round: it sees the anatomy. Not in the background: T1 is constant there, the T2-like image has noise, and MIND describes the noise.

# %% [markdown]
# ## Task 5 · Make correlation blind (explore)
#
# ●●○ · 11 minutes · 2 points
#
# Here is a family of contrasts: a parabola that is brightest (1) where T1 has the intensity $m$, and darker on both sides. Find an $m$ between 0 and 1 for which the squared correlation $r^2$ is largest **at least 6 voxels away** from the truth, while mutual information still has its largest value at the truth. Use the cell below to look at an $m$: a place can beat the truth only where $r^2$ at the truth is small.


# %%
def parabola(image, m):
    return 1 - ((image - m) / max(m, 1 - m)) ** 2


def squared_ncc(a, b):
    return -losses.ncc(a, b).square()


m = 0.7                                                                 # try others
steps = list(range(-12, 13))
poses = translations(steps, axis=1)
r2 = -landscape(squared_ncc, parabola(t1, m), t1, poses)
info = -landscape(losses.mutual_information, parabola(t1, m), t1, poses)
show(
    curves(
        {"r²": (steps, r2), "I (nats)": (steps, info)}, xlabel="shift (voxels)", ylabel="similarity"
    ),
    alt="Squared correlation and mutual information of T1 and its parabola, against the shift.",
)
print(f"m = {m}: r² at the truth {float(r2[12]):.2f}; largest at a shift of {steps[r2.argmax()]}")


# %%
def blind_peak():
    """The intensity m at which the parabola peaks, so that r² misses the truth and I does not.

    Returns:
        a number from 0 to 1
    """
    ### BEGIN SOLUTION
    # The line rises from the background to the brain and falls within the brain: near 0.42 the
    # two cancel, r² at the truth is almost 0, and most shifts make it larger.
    return 0.44
    ### END SOLUTION


# %% points=2
check.blind_peak(blind_peak)

# %% [markdown]
# The background, half of the voxels, is one point at intensity 0; nearly all of the brain lies beyond the peak, where the parabola falls. From background to brain the best line rises, within the brain it falls, and near $m = 0.42$ the two cancel: $r^2$ at the truth is almost 0, and most shifts make it larger. From 0.47 on, and up to 0.41, $r^2$ is largest at the truth again: most contrasts are kind to it, and that is why this failure surprises people. Mutual information is largest at the truth for all of them.

# %% [markdown]
# ## Where you stand

# %%
progress()

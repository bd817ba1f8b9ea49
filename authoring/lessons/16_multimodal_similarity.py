# %% [markdown]
# # 16 · Similarity across contrasts: what one image says about the other
#
# At the end of this lesson you have built mutual information from counting, you know where its gradient comes from, and you have caught it giving wrong answers with great confidence.
#
# **Reading**: 42 minutes · **Running**: about 20 seconds on a laptop · **Before this**: lessons 11, 13 and 15.
#
# **You will be able to**
# - *predict* the mutual information of a small table by hand,
# - *implement* a joint histogram that has a gradient, and the patch distances of MIND,
# - *diagnose* a wrong computation of mutual information,
# - *find* a contrast that defeats correlation and not mutual information.

# %%
import numpy as np
import torch
from matplotlib.figure import Figure

from course_lib import setup
from course_lib.datasets import brains, contrasts
from course_lib.evaluation import table
from course_lib.landscapes import landscape, rotations, translations
from course_lib.losses import lncc, mutual_information, ncc
from course_lib.mind import mind, mind_loss
from course_lib.optimise import refine
from course_lib.plotting import curves, images, show
from course_lib.spatial import affine_displacement, smooth, warp
from course_lib.widgets import joint_histogram_explorer

course = setup()
head = brains.real_pair()
t1, shape = head.fixed, head.fixed.shape[2:]                            # (1, 1, 224, 192)
t2 = contrasts.t2_like(head.fixed_labels, seed=0)

# %% [markdown]
# Here is where we are going: for each pair of intensities, how many voxels have the one in the T2-like image and the other in the T1 image? On the left the heads lie on each other; then one is turned, and the picture smears out.


# %% tags=["cover"]
def draw_histograms(histograms, rows="T2-like intensity (bin)"):
    """{title: (bins, bins)} as pictures, dark where many voxels are."""
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    axes = figure.subplots(1, len(histograms), sharey=True)
    for ax, (title, p) in zip(axes, histograms.items()):
        drawn = ax.imshow(np.log10(p + 1e-5), origin="lower", cmap="gray_r", vmin=-5, vmax=-2)
        ax.set(title=title, xlabel="T1 intensity (bin)")
    axes[0].set_ylabel(rows)
    figure.colorbar(drawn, ax=axes, label="log10 of the share of voxels", shrink=0.8)
    return figure


turned = {f"turned by {d}°": affine_displacement(rotations([d]), shape) for d in (0, 2, 8)}
counted = {
    name: np.histogram2d(warp(t2, u).flatten(), t1.flatten(), bins=32)[0] / t1.numel()
    for name, u in turned.items()
}
show(
    draw_histograms(counted),
    alt="Three joint histograms. Aligned: a narrow band that falls to the right, with two dark "
    "clouds in it. Turned by 2 and by 8 degrees: the clouds smear out over the square.",
)

# %% [markdown]
# ## 1 · The contrast that breaks correlation
#
# A T1-weighted scan shows fluid dark and white matter bright; a T2-weighted scan shows the opposite. To register the two you need a loss that survives a change of contrast. We make three contrasts of one head, so the truth is known: no rotation, no shift.
#
# - **inverted**: $1 -$ intensity;
# - **remapped**: a smooth curve that falls, rises and falls again;
# - **T2-like**: painted on the tissue labels, with a little blur and noise. It is a model: no vessels, lesions or bias field.

# %%
others = {
    "inverted": contrasts.inverted(t1),
    "remapped": contrasts.remapped(t1),
    "T2-like": t2,
}
show(
    images({"T1": t1} | others),
    alt="One axial brain slice four times: T1, its negative, a remapped one with white background "
    "and dark fluid, and a T2-like one with bright fluid and dark white matter.",
)

# %% [markdown]
# Lesson 13 taught the correlation $r$. The loss `ncc`, $-r$, cannot survive the negative: at the truth $r = -1$. Its square can.
#
# **Predict**: we turn and shift each contrast against T1 and look at $r^2$. For which contrasts is it largest at the truth?


# %%
def squared_ncc(a, b):
    return -ncc(a, b).square()


degrees = list(range(-16, 17, 2))
steps = list(range(-16, 17, 2))
lines, best = {}, {}
for name, other in others.items():
    by_angle = -landscape(squared_ncc, other, t1, rotations(degrees))   # (17,)
    by_shift = -landscape(squared_ncc, other, t1, translations(steps, axis=1))
    lines[name] = (degrees, by_angle - by_angle[8])                     # less that at the truth
    best[name] = (abs(degrees[by_angle.argmax()]), abs(steps[by_shift.argmax()]))
    print(f"{name:9} r² is largest {best[name][0]}° and {best[name][1]} voxels from the truth")
figure = curves(lines, xlabel="rotation (degrees)", ylabel="r² less r² at the truth")
figure.axes[0].set_ylim(-0.06, 0.1)
figure.axes[0].legend(loc="lower right")
show(
    figure,
    alt="r² against rotation, less its value at the truth. Inverted: a sharp peak at 0. Remapped "
    "and T2-like: a dip at 0, higher on both sides.",
)
assert best["inverted"] == (0, 0) and best["remapped"][1] >= 4 and best["T2-like"][0] >= 4

# %% [markdown]
# Only for the negative. In the T2-like image a head turned by about 8° "fits" better than the right pose, and a remapped one fits better some voxels off.
#
# The survey this course grew from (lesson 13 reads its NCC) says that for multi-modal registration "NCC and MI are more suitable". For NCC that is not true in general, as you see. Correlation asks whether the pairs of intensities lie on a **straight line**.
#
# ## 2 · Count instead
#
# A better question: **if I know the intensity in one image, how well can I guess it in the other?** Count pairs: cut each intensity range into bins; for each voxel, look up bin $i$ of image $a$ and bin $j$ of image $b$, and add one to cell $(i, j)$. Divided by the number of voxels, this **joint histogram** $p_{ij}$ is the share of voxels with that pair. Its row sums $p_i = \sum_j p_{ij}$ are the histogram of $a$, its column sums $p_j = \sum_i p_{ij}$ that of $b$: the **marginals**.
#
# **Predict**: $a$ has the bins `0 0 1 1 2 2` and $b$ has `2 2 0 0 0 1`. Which cells are not empty?


# %% tags=["nbval-check-output"]
def count_pairs(a, b, bins):
    """Bins (N,) and (N,), whole numbers -> (bins, bins): the share of voxels with each pair."""
    p = torch.zeros(bins, bins)
    for i, j in zip(a, b):
        p[i, j] += 1
    return p / len(a)


small = count_pairs([0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 0, 1], bins=3)
print("pairs out of 6:\n", (6 * small).round().int().numpy(), sep="")
print("of a:", (6 * small.sum(1)).int().tolist(), "  of b:", (6 * small.sum(0)).int().tolist())
assert small.sum(1).allclose(torch.full((3,), 1 / 3))

# %% [markdown]
# In the first picture, with the heads aligned, each intensity of T1 meets few of T2. Turned, gray matter meets fluid, white matter and background as well, and the counts **disperse** over cells that were empty. We need a number for that.

# %% [markdown]
# ## 3 · From dispersed to a number
#
# The **entropy** is the mean surprise: what has probability $p$ surprises by $\log \frac1p$, so
#
# $$H = \sum_k p_k \log \frac{1}{p_k} = -\sum_k p_k \log p_k$$
#
# with $0 \log 0 = 0$. With the natural logarithm, as in this lesson and our library, it is counted in **nats**; in base 2, in **bits**. A fair coin has $\log 2 = 0.69$ nats, or 1 bit.
#
# **Mutual information** is what the pair would have if the images knew nothing of each other, less what it has:
#
# $$I(a, b) = H(a) + H(b) - H(a, b) = \sum_{ij} p_{ij} \log \frac{p_{ij}}{p_i \, p_j}$$
#
# Here $H(a)$ comes from the row sums, $H(b)$ from the column sums, $H(a, b)$ from the whole table. $I = 0$ if $p_{ij} = p_i p_j$ everywhere (independent); $I = H(a)$ if $b$ determines $a$.
#
# **Predict**: in the small table above, $b = 2$ and $b = 1$ each tell you $a$. What is $I$: more or less than half of $H(a)$?


# %%
def entropy(p):
    filled = p[p > 0]                                                   # 0 log 0 = 0
    return -(filled * filled.log()).sum()


def information(p):
    """Joint histogram (bins, bins) -> nats."""
    return entropy(p.sum(1)) + entropy(p.sum(0)) - entropy(p)


print(f"H(a) = {entropy(small.sum(1)):.2f} nats, I = {information(small):.2f} nats")
in_nats = {name: float(information(torch.tensor(p))) for name, p in counted.items()}
print("T2-like and T1, in nats: ", {name: round(value, 1) for name, value in in_nats.items()})
assert in_nats["turned by 0°"] > in_nats["turned by 2°"] + 0.1 > in_nats["turned by 8°"] + 0.3
assert information(small) > 0.5 * entropy(small.sum(1))

# %% [markdown]
# Nothing in these formulas says which bin is the brighter one. Renumber the bins in any order, and every sum has the same terms. The next cell tests it, and draws the landscapes: `mutual_information` is the library's loss, $-I$ with 32 bins.

# %%
p = torch.tensor(counted["turned by 0°"])
shuffled = p[torch.randperm(32)]
assert abs(information(shuffled) - information(p)) < 1e-9
lines = {}
for name, other in others.items():
    by_angle = -landscape(mutual_information, other, t1, rotations(degrees))
    by_shift = -landscape(mutual_information, other, t1, translations(steps, axis=1))
    lines[name] = (degrees, by_angle)
    assert degrees[by_angle.argmax()] == 0 and steps[by_shift.argmax()] == 0
show(
    curves(lines, xlabel="rotation (degrees)", ylabel="I (nats)"),
    alt="Mutual information against rotation: a sharp peak at 0 for all three contrasts, the truth.",
)

# %% [markdown]
# ## 4 · Counting has no gradient
#
# To register by descent we need to know how $I$ changes when a voxel's intensity changes a little. With counting it does nothing, until the voxel falls into the next bin; then it jumps. The slope is 0 nearly everywhere. So we let a voxel count a little in several bins, with a **window** $K$ around its position (Parzen's idea). With $a$ and $b$ in units of bins, from 0 to $B - 1$, and $N$ voxels $x$:
#
# $$p_{ij} = \frac{1}{N} \sum_x K\bigl(i - a(x)\bigr) \, K\bigl(j - b(x)\bigr)$$
#
# The **box** is counting. The **hat** shares a voxel linearly between two bins: one at 3.2 gives 0.8 to bin 3 and 0.2 to bin 4. The **cubic B-spline**, a bell, uses four bins.


# %%
def cubic(t):
    t = t.abs()
    inner, outer = 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6
    return torch.where(t < 1, inner, outer)


windows = {
    "box": lambda t: ((t > -0.5) & (t <= 0.5)).to(t.dtype),
    "hat": lambda t: (1 - t.abs()).clamp(min=0),
    "cubic B-spline": cubic,
}

# %% [markdown]
# **Predict**: we take one gray-matter voxel of the T2-like image and raise its intensity slowly from 0.4 to 0.6. What does the curve of $I$ look like with each window?


# %%
def parzen(a, b, K, bins=32):
    """Intensities (N,) and (N,) from 0 to 1 -> (bins, bins), whose sum is 1."""
    k = torch.arange(bins, dtype=a.dtype)[:, None]                      # (bins, 1)
    in_a, in_b = (K(k - values * (bins - 1)) for values in (a, b))      # (bins, N) each
    in_a, in_b = in_a / in_a.sum(0), in_b / in_b.sum(0)                 # each voxel counts once
    return in_a @ in_b.T / len(a)


a, b = (image[..., 60:160, 50:142].flatten().double() for image in (t2, t1))  # (9200,) each
chosen = int(((a - 0.5).abs() + (b - 0.7).abs()).argmin())              # a gray-matter voxel
levels, lines = torch.linspace(0.4, 0.6, 61).double(), {}
for name in ("box", "hat", "cubic B-spline"):
    heights = []
    for level in levels:
        changed = a.index_fill(0, torch.tensor(chosen), float(level))
        heights.append(float(information(parzen(changed, b, windows[name]))))
    lines[name] = (levels, 1e5 * (np.array(heights) - heights[0]))
show(
    curves(lines, xlabel="intensity of one voxel", ylabel="change of I (1e-5 nats)"),
    alt="The box gives a staircase, the hat a chain of slopes with kinks, the spline a smooth curve.",
)
flat = {name: float((np.abs(np.diff(y)) < 1e-6).mean()) for name, (_, y) in lines.items()}
print("steps without any change:", {name: f"{share:.0%}" for name, share in flat.items()})
assert flat["box"] > 0.8 and flat["hat"] < 0.05 and flat["cubic B-spline"] < 0.05

# %% [markdown]
# A staircase, a chain with kinks, a smooth curve. But `parzen` keeps an array of bins × voxels, for an image of 160 × 192 × 224 voxels and 32 bins 881 MB; people run out of memory with such losses ([voxelmorph#201](https://github.com/voxelmorph/voxelmorph/issues/201)). The library uses the hat, adds each voxel to four cells and never builds that array; you write it in the exercise.
#
# ## 5 · What the gradient pulls at
#
# Change $p_{ij}$ a little. The slope of $p \log p$ is $\log p + 1$; with $I = \sum p_{ij} \log p_{ij} - \sum p_i \log p_i - \sum p_j \log p_j$, that of $I$ is $\log p_{ij} - \log p_i - \log p_j - 1 = M_{ij} - 1$, where
#
# $$M_{ij} = \log \frac{p_{ij}}{p_i \, p_j}$$
#
# is above 0 for pairs that are **more frequent than chance**, below 0 for rarer ones. (The $-1$ cancels: what one cell gains, another loses.) Now take a voxel of the warped image, $a(x)$, between the bins $i$ and $i + 1$. Its partner $b(x)$ lies between $j$ and $j + 1$, a share $s$ of the way:
#
# | | column $j$: share $1 - s$ | column $j + 1$: share $s$ |
# |---|---|---|
# | row $i + 1$ | $M_{i+1,j}$ | $M_{i+1,j+1}$ |
# | row $i$ | $M_{i,j}$ | $M_{i,j+1}$ |
#
# A brighter voxel moves weight from the lower row to the upper one, so per bin
#
# $$\frac{\partial I}{\partial a(x)} = \frac{1}{N} \Bigl[ (1 - s) \, (M_{i+1,j} - M_{i,j}) + s \, (M_{i+1,j+1} - M_{i,j+1}) \Bigr]$$
#
# In a sentence: each voxel is pushed toward the intensity that usually goes with its partner's.
#
# **Predict**: we turn the head by 2°. Where in the image is the gradient large?

# %%
turned_t2 = warp(t2, turned["turned by 2°"], padding="border").double()
warped = turned_t2.clone().requires_grad_()
(-mutual_information(warped, t1.double())).backward()
gradient = warped.grad[0, 0]                                            # (224, 192)
scale = float(turned_t2.max() - turned_t2.min())
a, b = (turned_t2 - turned_t2.min()) / scale, t1.double()
p = parzen(a.flatten(), b.flatten(), windows["hat"])
M = (p.clamp(min=1e-12) / (p.sum(1, keepdim=True) * p.sum(0) + 1e-12)).log()
figure = Figure(figsize=(9.2, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
shown = left.imshow(np.where(p > 1e-6, M, np.nan), origin="lower", cmap="RdBu_r", vmin=-4, vmax=4)
left.set(xlabel="T1 (bin)", ylabel="T2-like, turned (bin)", title="M: more or less than by chance")
figure.colorbar(shown, ax=left, label="nats")
limit = float(gradient.abs().quantile(0.99))
zoom = (49.5, 141.5, 159.5, 59.5)                                       # left, right, bottom, top
shown = right.imshow(
    gradient[60:160, 50:142], cmap="RdBu_r", vmin=-limit, vmax=limit, extent=zoom
)
right.set(xlabel="j (voxels)", ylabel="i (voxels)", title="the gradient: red wants to be brighter")
figure.colorbar(shown, ax=right, label="nats per intensity")
show(
    figure,
    alt="Left, M: red clouds where tissues meet their partner, blue around. Right, the gradient: "
    "enlarged: strong at the ventricles and the folds, weak inside the tissues.",
)

# %% [markdown]
# Along the edges, where the turned head puts the wrong tissue, and hardly inside. Does the formula give the same number as autograd?

# %%
x, y = a[0, 0] * 31, b[0, 0] * 31                                       # positions in bins
s = y - y.floor()
middle = ((x % 1 - 0.5).abs() < 0.3) & ((y % 1 - 0.5).abs() < 0.3)      # away from the kinks
row, column = (middle & (gradient.abs() > limit / 3)).nonzero()[0].tolist()
i, j, share = int(x[row, column]), int(y[row, column]), s[row, column]
by_hand = (1 - share) * (M[i + 1, j] - M[i, j]) + share * (M[i + 1, j + 1] - M[i, j + 1])
by_hand = float(by_hand) * 31 / scale / t1.numel()                      # per intensity
slopes = by_hand, float(gradient[row, column])
print("formula, autograd:", [f"{1e5 * slope:.1f}e-5" for slope in slopes])
assert abs(slopes[0] - slopes[1]) < 1e-3 * abs(slopes[0])
wrong = warp(head.fixed_labels, turned["turned by 2°"], mode="nearest") != head.fixed_labels
ratio = float(gradient[wrong[0, 0]].abs().mean() / gradient[~wrong[0, 0]].abs().mean())
print(f"mean |gradient| where another tissue came, over elsewhere: {ratio:.1f}")
assert ratio > 3

# %% [markdown]
# ## 6 · When mutual information is confidently wrong
#
# **Few voxels.** Two images of independent noise share nothing: $I = 0$. But a table with more cells than voxels cannot know that. **Predict**: 2,000 voxels of noise, 64 bins. What does counting report?

# %%
torch.manual_seed(1)
reported = {}
for bins in (8, 16, 32, 64):
    noise = torch.rand(2, 2000, dtype=torch.float64)
    reported[bins] = float(information(parzen(*noise, windows["box"], bins)))
    print(
        f"{bins} bins: {reported[bins]:.2f} nats, (bins − 1)² / 2N = {(bins - 1) ** 2 / 4000:.2f}"
    )
assert reported[8] < 0.03 and 0.8 < reported[64] < 1.2

# %% [markdown]
# A whole nat out of nothing, about what aligned T1 and T2 have. For $B$ bins, statistics knows this **bias**: $2N \cdot I$ of independent images is a $\chi^2$ with $(B - 1)^2$ degrees of freedom, so $I$ is about $(B - 1)^2 / 2N$ while most cells are filled. A registration has few voxels when only the **overlap** is compared, and the overlap shrinks.
#
# **Predict**: we cut 92 columns out of T1 and the T2-like image, shift them by 0 to 90 columns, and compare what overlaps. Where is $I$ largest?

# %%
window_a, window_b = (image[..., 60:160, 50:142] for image in (t2, t1))
lines = {}
for bins in (16, 64):
    overlap = [(window_a[..., k:], window_b[..., : 92 - k]) for k in range(91)]
    lines[f"{bins} bins"] = (range(91), [-float(mutual_information(*o, bins)) for o in overlap])
show(
    curves(lines, xlabel="shift (voxels); 92 − shift columns overlap", ylabel="I (nats)"),
    alt="Both curves fall from their value at 0 and rise again at the far end; with 64 bins the far "
    "end is higher than the truth.",
)
peak = {name: int(np.argmax(values)) for name, (_, values) in lines.items()}
print("largest at a shift of", peak)
assert peak["16 bins"] == 0 and peak["64 bins"] >= 88
assert max(lines["64 bins"][1]) > 1.3 * lines["64 bins"][1][0]

# %% [markdown]
# With 64 bins the best "registration" leaves two columns in common, and by a wide margin. So take fewer bins, and do not let the number of voxels shrink: repeat the border value outside, or forbid small overlaps. *Normalized* mutual information, $(H(a) + H(b)) / H(a, b)$, was invented for a changing overlap (Studholme, below).

# %% [markdown]
# **Between the voxels.** Now both images are noisy, and the head has not moved. **Predict**: is $I$ largest at shift 0?

# %%
torch.manual_seed(2)
noisy_t1 = t1 + 0.1 * torch.randn_like(t1)
noisy_t2 = contrasts.t2_like(head.fixed_labels, seed=1, noise=0.1)
shifts, found = np.arange(-1.5, 1.51, 0.125), {}
for name, sigma in (("as it is", 0), ("both blurred first", 1)):
    pair = smooth(noisy_t2, sigma), smooth(noisy_t1, sigma)
    found[name] = -landscape(mutual_information, *pair, translations(shifts.tolist(), axis=1))
show(
    curves({name: (shifts, y) for name, y in found.items()}, xlabel="shift (voxels)",
           ylabel="I (nats)"),
    alt="Unblurred: two peaks within half a voxel of 0, a dip at 0. Blurred: one peak at 0.",
)  # fmt: skip
at = {name: abs(float(shifts[y.argmax()])) for name, y in found.items()}
print("largest at a shift of", at)
gain = float(found["as it is"].max() - found["as it is"][12])
assert 0.3 < at["as it is"] <= 0.5 and at["both blurred first"] < 0.2 and gain > 0.02

# %% [markdown]
# No: between a third and a half of a voxel off, on either side. There interpolation averages neighbors and removes noise, and a less noisy image says more. Blurring *both* images first takes the reward away.
#
# ## 7 · MIND: compare structure, not intensity
#
# Mutual information forgets where the voxels were. MIND (modality independent neighborhood descriptor) describes each voxel by its **surroundings**, and then takes plain squared differences: how much does the patch around $x$ resemble the patches one voxel to the left, to the right, above, below? With the patch distance $D_r(x)$, the mean over the patch of $\bigl(I(y) - I(y + r)\bigr)^2$, and $V(x)$, the mean of $D_r(x)$ over the neighbors $r$:
#
# $$\text{MIND}_r(x) = \frac{1}{n(x)} \exp\left(-\frac{D_r(x)}{V(x)}\right)$$
#
# where $n(x)$ makes the largest of the four equal to 1. (In a flat patch $V$ is 0; the library bounds it from below.) Squares do not care about a sign, and dividing by $V$ removes the gain. **Predict**: which of the three contrasts has *exactly* the MIND of T1?

# %%
described = {name: mind(other) for name, other in {"T1": t1, **others}.items()}  # (1, 4, 224, 192)
for name in others:
    print(f"{name:9} mean squared difference to T1: {float(mind_loss(others[name], t1)):.3f}")
figure = images({
    "T1": t1, "T1: to the left": described["T1"][:, 2:3], "T1: upward": described["T1"][:, :1],
    "T2-like: to the left": described["T2-like"][:, 2:3],
})  # fmt: skip
figure.axes[-1].set_ylabel("intensity, or MIND")
show(
    figure,
    alt="T1, two channels of its MIND, dark along edges that run across the direction, and a "
    "channel of the T2-like image with the same edges and a noisy background.",
)
assert mind_loss(others["inverted"], t1) < 1e-5 < 1e-3 < mind_loss(others["remapped"], t1)
for other in others.values():
    losses = landscape(mind_loss, other, t1, rotations(degrees))
    assert degrees[losses.argmin()] == 0

# %% [markdown]
# The negative's. The others' differ, but over the rotations the difference is smallest at 0 for all three. The price: MIND needs edges. In the background of the T2-like image it describes nothing but noise.
#
# ## 8 · Register T1 to T2
#
# A T1 image of one synthetic person, a T2-like image of another, the true displacement known (lesson 15 explains the table). The weights and the 16 bins were chosen on pairs 2, 3 and 5; this is pair 101. `lncc` is the squared local correlation of lesson 13, in windows of 9 voxels.
#
# **Predict**: rank the four losses, and doing nothing ("identity") among them.


# %%
def information_loss(warped, fixed):
    return mutual_information(warped, fixed, bins=16)


pair = brains.pair(101)
pair = pair._replace(fixed=contrasts.t2_like(pair.fixed_labels, seed=101))
methods = {
    "NCC": (ncc, 3),
    "MI": (information_loss, 10),
    "MIND": (mind_loss, 0.3),
    "LNCC²": (lncc, 3),
}
answers = {
    name: refine(pair.moving, pair.fixed, similarity=loss, smoothness=0, weight=weight)
    for name, (loss, weight) in methods.items()
}
result = table(answers, pair, structures={2: "gray matter", 3: "white matter"})
result

# %%
error = {name: row["error (mm)"] for name, row in result.rows.items()}
gray = {name: row["Dice gray matter"] for name, row in result.rows.items()}
assert result["NCC"]["correlation"] > result["identity"]["correlation"] + 0.05
assert error["NCC"] > error["identity"] + 1 and gray["NCC"] < gray["identity"] - 0.05
for name in ("MI", "MIND", "LNCC²"):
    assert error[name] < 0.65 * error["identity"] and gray[name] > gray["identity"] + 0.10
inside = head.fixed_labels > 0                                          # the same contrasts, one head
whole, brain_only = (np.corrcoef(t2[m], t1[m])[0, 1] for m in (inside | True, inside))
print(f"r of T2-like and T1: {whole:.2f}; in the brain alone: {brain_only:.2f}")
assert whole > 0.7 and brain_only < -0.7

# %%
figure = Figure(figsize=(9.2, 2.8), layout="constrained")
axes = figure.subplots(1, 5, sharey=True)
nothing = torch.zeros_like(pair.displacement)
for ax, (name, u) in zip(axes, {"identity": nothing, **answers}.items()):
    off = (u - pair.displacement).norm(dim=1)[0].where(pair.fixed_labels[0, 0] > 0, torch.nan)
    drawn = ax.imshow(off, cmap="viridis", vmin=0, vmax=10)
    ax.set(title=name, xlabel="j (voxels)")
axes[0].set_ylabel("i (voxels)")
figure.colorbar(drawn, ax=axes, label="error of the displacement (mm)", shrink=0.8)
show(
    figure,
    alt="Maps of the error inside the brain: some millimeters before registration, large nearly "
    "everywhere with NCC, small nearly everywhere with MI, MIND and LNCC².",
)

# %% [markdown]
# NCC **raises** the correlation and **ruins** the registration.
#
# The other three repair the pair, LNCC² among them. Why does a correlation work locally that fails globally? Two tissues in a window always lie on a line, rising or falling (lesson 13). Here even the whole brain lies near a falling one; the background, dark in both, bends it into an angle, and few windows in the brain see the background. So our pair is an easy test for LNCC². Do not take the order of the three for a law.

# %% [markdown]
# ## 9 · Play: the table under your hands
#
# The explorer shows the two images as tiles, their joint histogram, and $M$ in nats (red: more often than by chance). Contrast 0 is T1 itself, 1 inverted, 2 remapped, 3 T2-like.
#
# **Play**: set contrast 3 and 32 bins. How far, in whole voxels, must you shift until mutual information is below half of its value at 0? Then contrast 1: sooner or later? And what does $r^2$ do in the meantime?

# %%
explorer = joint_histogram_explorer(t1, [t1, *others.values()])
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# For contrast 3 at 7 voxels, for contrast 1 at 3. The negative has every detail of T1, and loses it at once; the T2-like image says little more than which tissue it is, and tissues are some voxels wide. At both places $r^2$ still has about 90 % of its value: it hardly notices.
#
# </details>

# %%
for name in ("T2-like", "inverted"):
    curve = -landscape(mutual_information, others[name], t1, translations(range(21), axis=1))
    half = int((curve < curve[0] / 2).nonzero()[0])
    kept = landscape(squared_ncc, others[name], t1, translations([0, half], axis=1))
    print(f"{name}: half at {half} voxels, where r² is {float(kept[1] / kept[0]):.0%} of its value")
    assert half == {"T2-like": 7, "inverted": 3}[name] and 0.85 < kept[1] / kept[0] < 0.95

# %% [markdown]
# ## Common mistakes
#
# **Mutual information as a loss, without the minus.** Check that your loss is *lower* for an image with itself than with another.
#
# **The logarithm of an empty bin.** $0 \log 0$ is 0 in the formula and NaN in the computer. Hiding the NaN afterwards mends the value but not the gradient:

# %% tags=["nbval-check-output"]
p = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
hidden = torch.where(p > 0, p * p.log(), torch.zeros(()))
hidden.sum().backward()
print("value:", round(hidden.sum().item(), 3), "  gradient:", p.grad[2].item())
assert torch.isfinite(hidden).all() and torch.isnan(p.grad[2])

# %% [markdown]
# **One bright voxel.** The bins reach from the darkest to the brightest voxel. A single vessel or artifact leaves a few bins for all the rest. Clipping the highest half percent first mends it:

# %%
bright = t1.clone()
bright[0, 0, 100, 100] = 20
clipped = bright.clamp(max=float(bright.quantile(0.995)))
told = [-float(mutual_information(t2, image)) for image in (t1, bright, clipped)]
print("T1, with one voxel at 20, clipped:", [f"{value:.2f} nats" for value in told])
assert told[1] < 0.75 * told[0] and told[2] > 0.97 * told[0]

# %% [markdown]
# **Comparing values between programs.** Bins, windows, logarithms and signs differ. Compare rankings, and judge by labels or landmarks (lesson 15).
#
# ## Check yourself
#
# <details><summary>1. An image has vertical stripes, black and white, each 8 voxels wide, far beyond the field of view. You shift it by 8 voxels. What does mutual information say?</summary>
#
# The same as at 0: black has become white and white black, a mere renumbering of the bins. A loss that accepts any contrast cannot tell a thing from its negative.
#
# </details>
#
# <details><summary>2. After registration, mutual information is higher than at the true pose. Is the optimizer broken?</summary>
#
# Perhaps it is excellent, and the loss has its optimum elsewhere: a fraction of a voxel away through interpolation, or far away through a small overlap.
#
# </details>
#
# <details><summary>3. The MIND of an image and of its negative are equal. Is the MIND of an image and of any one-to-one remapping equal?</summary>
#
# No. A remapping changes differences unevenly: where the curve is flat an edge vanishes, where it is steep it grows. Only a gain and an offset leave it untouched.
#
# </details>

# %%
stripes = torch.arange(64).div(8, rounding_mode="floor").remainder(2).float().expand(1, 1, 64, 64)
same, shifted = (-float(mutual_information(s, stripes)) for s in (stripes, stripes.roll(8, 3)))
assert abs(same - shifted) < 1e-6 and same > 0.6

# %% [markdown]
# ## Take away
#
# - Correlation looks for a line; across contrasts it can prefer a wrong pose, and a registration driven by it can be worse than none.
# - Mutual information measures how sharp the joint histogram is; it survives any renumbering of the bins.
# - Counting has no slope. Windows give it one: each voxel is pushed toward the intensity that usually goes with its partner's.
# - It lies where voxels are few, bins are many, the overlap changes, or interpolation removes noise.
# - MIND and LNCC² stay local: structure survives a change of contrast where intensity does not.
#
# **Go further**
# - P. Viola, W. M. Wells III, "Alignment by maximization of mutual information", International Journal of Computer Vision 24(2), 1997.
# - F. Maes, A. Collignon, D. Vandermeulen, G. Marchal, P. Suetens, "Multimodality image registration by maximization of mutual information", IEEE Transactions on Medical Imaging 16(2), 1997.
# - C. Studholme, D. L. G. Hill, D. J. Hawkes, "An overlap invariant entropy measure of 3D medical image alignment", Pattern Recognition 32(1), 1999.
# - J. P. W. Pluim, J. B. A. Maintz, M. A. Viergever, "Interpolation artefacts in mutual information-based image registration", Computer Vision and Image Understanding 77(2), 2000.
# - M. P. Heinrich, M. Jenkinson, M. Bhushan, T. Matin, F. V. Gleeson, Sir M. Brady, J. A. Schnabel, "MIND: modality independent neighbourhood descriptor for multi-modal deformable registration", Medical Image Analysis 16(7), 2012.
#
# Next: the exercise [exercises/16_multimodal_similarity.ipynb](../exercises/16_multimodal_similarity.ipynb).

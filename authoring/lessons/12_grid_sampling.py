# %% [markdown]
# # 12 · Grid sampling: what lies between the voxels
#
# At the end of this lesson you can write PyTorch's `grid_sample` yourself, know which slope an optimizer feels between the voxels, and see half-voxel errors that nobody else notices.
#
# **Reading**: 42 minutes · **Running**: about 10 seconds on a laptop · **Before this**: lessons 00, 01, 10 and 11.
#
# **You will be able to**
# - *implement* bilinear sampling, and the way from voxels to the coordinates of `grid_sample`,
# - *predict* where a sampler looks if `align_corners` does not match, or after a pooling,
# - *predict* the gradient at the edge of an image, with zeros and with border padding,
# - *diagnose* a sampler that invents values outside the image,
# - *implement* a warp of labels that invents none.

# %%
from functools import partial

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from course_lib import setup
from course_lib.datasets import brains
from course_lib.evaluation import warp_labels
from course_lib.metrics import dice
from course_lib.optimise import descend
from course_lib.plotting import curves, images, show
from course_lib.spatial import identity_grid, pyramid, resize_image, smooth, warp
from course_lib.widgets import sampling_explorer

course = setup()
colin = brains.real_pair().moving                                       # (1, 1, 224, 192)
piece = colin[..., 86:92, 94:100]                                       # (1, 1, 6, 6)

# %% [markdown]
# Here is where we are going: 36 voxels of Colin's brain, read at 14,641 places. `read` is the tool of this page. It takes positions in voxels, as `(B, 2, rows, columns)`, and hands them to `warp` as displacements. A displacement may have another size than the image: the result has the size of the displacement.

# %% tags=["cover"]
def read(image, positions, **options):
    """Values of (B, C, H, W) at positions (B, 2, h, w), in voxels -> (B, C, h, w)."""
    return warp(image, positions - identity_grid(positions.shape[2:]), **options)


fine = identity_grid((121, 121))[None] / 24                             # (1, 2, 121, 121), 0 to 5
between = {m: read(piece, fine, mode=m, padding="border") for m in ("nearest", "linear")}
show(
    images(between, axes_labels=("i (1/24 voxel)", "j (1/24 voxel)")),
    alt="Left, a piece of a brain as large gray squares; right, the same piece with gray that "
    "changes smoothly from voxel to voxel.",
)
along = fine[0, 1, 56].numpy()                                          # 56/24 = 2.33
show(
    curves({m: (along, image[0, 0, 56].numpy()) for m, image in between.items()},
           xlabel="j (voxels), at i = 2.33", ylabel="intensity"),
    alt="Along a row, nearest goes up and down in steps, linear in straight lines that "
    "bend at each whole number.",
)  # fmt: skip
assert 121 * 121 == 14_641 and piece.numel() == 36

# %% [markdown]
# The steps on the left have no slope that an optimizer could follow; the straight lines have one. That difference is why registration by gradient descent is possible at all.
#
# ## 1 · Three parts, of which registration needs two
#
# The sampler became famous as a part of the **spatial transformer** (Jaderberg and colleagues, 2015), which has three:
#
# 1. the **localization network** looks at the image and gives the numbers of a transformation, such as the six of an affine;
# 2. the **grid generator** turns them into positions, one for each pixel of the *output*;
# 3. the **sampler** reads the input at these positions.
#
# Deformable registration uses only 2 and 3. Something else proposes the displacement $u$: an optimizer, or a network that sees *both* images. In this course, `identity_grid(shape) + u` is the grid generator, and the inside of `warp` the sampler.
#
# The Chinese survey of learned registration that this course grew from calls the first part 本地网络, "local network", and says that it extracts features. *Localization* means: find where. It also says that a grid point's coordinates are a pixel's position in the *output* image. They are positions in the *input*.
#
# ## 2 · Four neighbors, four weights
#
# What is the value at row 2.25, column 3.6? **Lay a box as large as a voxel around that point. It covers parts of four voxels; mix their values in proportion to the areas.** As a formula, with $i_0 = \lfloor i \rfloor$, $j_0 = \lfloor j \rfloor$ and the fractions $a = i - i_0$, $b = j - j_0$:
#
# $$I(i, j) = (1-a)(1-b)\, I_{i_0, j_0} + (1-a)\,b\, I_{i_0, j_0+1} + a\,(1-b)\, I_{i_0+1, j_0} + a\,b\, I_{i_0+1, j_0+1}$$
#
# $I_{i_0, j_0}$ is the value of a voxel, $\lfloor i \rfloor$ is $i$ rounded down. The weights are never negative and add up to 1. This is **bilinear** interpolation; in 3D it has eight neighbors and is called trilinear.
#
# **Predict**, with pencil and paper: the voxels are [[0, 4], [8, 20]]. What is the value at $(0.5, 0.25)$?

# %% tags=["nbval-check-output"]
def sample_one(image, i, j):
    """The value of (H, W) at one place inside, in voxels."""
    i0, j0 = int(i), int(j)                                             # rounded down
    value = 0.0
    for di, row_weight in ((0, 1 - (i - i0)), (1, i - i0)):
        for dj, column_weight in ((0, 1 - (j - j0)), (1, j - j0)):
            weight = row_weight * column_weight
            if weight > 0:                                              # or we might leave the image
                value += weight * float(image[i0 + di, j0 + dj])
    return value


four = torch.tensor([[0.0, 4.0], [8.0, 20.0]])
print("value:", sample_one(four, 0.5, 0.25))
assert sample_one(four, 0.5, 0.25) == 6

# %% [markdown]
# 6: the upper two give 1 (a quarter of the way from 0 to 4), the lower two give 11, and half of the way between is 6. Now against PyTorch, at 500 random places:

# %%
torch.manual_seed(1)
places = torch.rand(500, 2) * torch.tensor([222.0, 190.0])              # (500, 2): i, j
by_hand = torch.tensor([sample_one(colin[0, 0], i, j) for i, j in places.tolist()])
by_torch = read(colin, places.T.reshape(1, 2, 20, 25)).flatten()        # warp calls grid_sample
print(f"largest difference: {(by_hand - by_torch).abs().max():.0e}")
assert (by_hand - by_torch).abs().max() < 1e-3

# %% [markdown]
# ## 3 · Play: the box and its slope
#
# The explorer shows the piece with the box, the box alone with its four weights, and the slope along $j$ at every place: how much the value changes for a step of one voxel to the right.
#
# **Play**: set the row to 2.50 and move the column through the whole piece. Where is the value largest? What does the slope do there? Can you find a place *between* columns where the value has a peak, in this row or any other? (Without sliders: the still pictures show the row 2.50. Small parts have no room for their weight; outside the outermost centers the map of the slope is left white.)

# %%
explorer = sampling_explorer(piece)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# The value is largest at column 2.00, exactly on a column of voxels, and every other row, too, has its largest value in a whole column. The slope jumps there: from +0.18 on the left of column 2 to −0.05 on its right. Between two columns it does not change, so a peak cannot lie there. A linear sampler has its peaks and valleys on the voxels only, with a **kink** at each of them.
#
# </details>

# %%
slider = identity_grid((101, 101))[None] / 20                           # every place on the sliders
peaks = read(piece, slider, padding="border")[0, 0].argmax(dim=1)       # the best column of each row
assert (peaks % 20 == 0).all() and peaks[50] == 40                      # whole; 2 in row 2.5
line = (piece[0, 0, 2] + piece[0, 0, 3]) / 2                            # row 2.5
left, right = line.diff()[1:3].tolist()
print(f"row 2.5: largest at column {int(line.argmax())}, slopes {left:+.2f} and {right:+.2f}")
assert line.argmax() == 2 and abs(left - 0.18) < 0.01 and abs(right + 0.05) < 0.01

# %% [markdown]
# ## 4 · What does −1 mean?
#
# `grid_sample` does not count in voxels. Its positions run from −1 to 1, so that they fit images of any size, and come as `(B, H, W, 2)` with the components last, in the order $(x, y)$: column first. And there are two opinions on what −1 is:
#
# - `align_corners=True`: the **center** of the first voxel; 1 is the center of the last. For $W$ columns, $x = 2j/(W-1) - 1$.
# - `align_corners=False`: the **outer edge** of the first voxel, half a voxel before its center; $x = (2j+1)/W - 1$.

# %%
figure = Figure(figsize=(7, 2.4), layout="constrained")
ax = figure.subplots()
for j, gray in enumerate(("0.35", "0.6", "0.5", "0.75")):
    ax.fill([j - 0.5, j + 0.5, j + 0.5, j - 0.5], [0, 0, 1, 1], facecolor=gray, edgecolor="white")
    ax.plot(j, 0.5, "o", color="white")
    ax.text(j, 1.15, f"{2 * j / 3 - 1:+.2f}".replace("-", "−"), ha="center", color="#0072b2")
    x = f"{(2 * j + 1) / 4 - 1:+.2f}".replace("-", "−")
    ax.text(j, -0.4, x, ha="center", color="#d55e00")
ax.text(-0.55, -0.4, "−1", ha="center", color="#d55e00", weight="bold")  # the outer edges
ax.text(3.55, -0.4, "+1", ha="center", color="#d55e00", weight="bold")
ax.text(3.95, 1.15, "align_corners=True", color="#0072b2")
ax.text(3.95, -0.4, "align_corners=False", color="#d55e00")
ax.set(xlim=(-0.9, 5.6), ylim=(-0.7, 1.6), xlabel="j (voxels)", yticks=[])
ax.set_xticks([-0.5, 0, 1, 2, 3, 3.5], ["−0.5", "0", "1", "2", "3", "3.5"])
show(
    figure,
    alt="Four voxels in a row. With align_corners=True their centers have the coordinates −1, "
    "−0.33, 0.33 and 1; with False −0.75, −0.25, 0.25 and 0.75, and the outer edges −1 and 1.",
)

# %% [markdown]
# Each is consistent in itself. This course uses `True`, as most registration code does: whole voxels stay whole numbers. PyTorch's default is `False`.
#
# **Predict**: build the identity grid by one opinion, read it by the other, and do that to Colin 20 times. What happens to him?

# %%
def do_nothing(image, times, align_corners):
    """The identity of align_corners=True, read with the setting given."""
    eye = torch.eye(2, 3)[None]
    # An affine's positions from −1 to 1, here those of the identity: (1, 224, 192, 2)
    grid = F.affine_grid(eye, image.shape, align_corners=True)
    for _ in range(times):
        image = F.grid_sample(image, grid, align_corners=align_corners)
    return image


def extent(image):
    rows = (image[0, 0] > 0.2).any(dim=1).nonzero()
    return int(rows.min()), int(rows.max())


same, shrunk = (do_nothing(colin, 20, setting) for setting in (True, False))
print("rows of the brain:", extent(colin), "  matched:", extent(same), "  mixed:", extent(shrunk))
show(
    images({"Colin": colin, "20 × nothing, matched": same, "20 × nothing, mixed": shrunk}),
    alt="Matched, the brain stays as it is; mixed, it is smaller and blurred.",
)
assert extent(same) == extent(colin) and (same - colin).abs().max() < 1e-2
assert extent(shrunk)[0] - extent(colin)[0] > 4 and extent(colin)[1] - extent(shrunk)[1] > 4

# %% [markdown]
# He shrinks. A grid made for `True` and read with `False` looks at $j\,W/(W-1) - \tfrac{1}{2}$: half a voxel too far left in the first column, half a voxel too far right in the last. Once, no eye sees it. But networks in a row, or the repeated compositions of lesson 17, do it again and again.
#
# **The pyramid is the same trap.** Coarse-to-fine registration needs smaller images. `avg_pool2d(image, 2)` makes one voxel of each 2 × 2: voxel 0 now stands where 0 and 1 were, so its center is at 0.5. **Predict**: after four poolings (the same as one by 16), a blob's center is found at coarse position $q$. Where is it in the full image: at $16q$?

# %%
def center_of_mass(image):
    positions = identity_grid(image.shape[2:])                          # (2, H, W)
    return (positions * image[0]).sum((1, 2)) / image.sum()             # (2,)


place = torch.tensor([40.0, 150.0])
away = (identity_grid((224, 192)) - place.view(2, 1, 1)).square().sum(0)
blob = torch.exp(-away / (2 * 8**2))[None, None]                        # (1, 1, 224, 192)
pooled, coarse = F.avg_pool2d(blob, 16), pyramid(blob, 16)              # (1, 1, 14, 12) each
found = {
    "16 q": 16 * center_of_mass(pooled),
    "16 q + 7.5": 16 * center_of_mass(pooled) + 7.5,
    "pooled, enlarged by corners": center_of_mass(resize_image(pooled, (224, 192))),
    "pooled, enlarged by edges": center_of_mass(F.interpolate(pooled, scale_factor=16.0, mode="bilinear")),
    "pyramid, enlarged by corners": center_of_mass(resize_image(coarse, (224, 192))),
}
for name, where in found.items():
    row, column = ((where - place).round(decimals=1) + 0.0).tolist()    # + 0.0: no "-0.0"
    print(f"{name:29} off by ({row:+.1f}, {column:+.1f}) voxels")
off = [(where - place).abs() for where in found.values()]
assert (off[0] - 7.5).abs().max() < 0.2 and max(off[k].max() for k in (1, 3, 4)) < 0.3
assert off[2].min() > 4

# %% [markdown]
# No: at $16q + 7.5$. One pooling shifts by half a voxel, four by $\tfrac12 + 1 + 2 + 4 = 7.5$. Enlarged with corners on corners, the error points outward and differs from place to place. Average pooling is not wrong, it belongs to the *other* opinion: **mixing is the mistake.** The course's `resize_image` keeps corner voxels on corner voxels; `pyramid` blurs, and then calls it.

# %% [markdown]
# ## 5 · At the edge
#
# A position outside has no four neighbors. `padding="zeros"` gives the missing ones the value 0, `"border"` repeats the voxel at the edge.
#
# **Predict**: follow a column of Colin over the last row of an image that ends in the middle of his brain. How does the value go on, and what slope does each padding show outside?

# %%
cut = colin[:, :, 70:150, 50:140]                                       # (1, 1, 80, 90), brain everywhere
steps = torch.linspace(76, 82.5, 131)
path = torch.stack([steps, torch.full_like(steps, 40.0)])[None, :, :, None].repeat(1, 1, 1, 2)
path.requires_grad_()                                                   # (1, 2, 131, 2): warp wants 2 columns
lines, slopes = {}, {}
for padding in ("zeros", "border"):
    values = read(cut, path, padding=padding)                           # (1, 1, 131, 2)
    (gradient,) = torch.autograd.grad(values.sum(), path)               # as backward(), but returned
    lines[padding] = (steps.numpy(), values[0, 0, :, 0].detach().numpy())
    slopes[padding] = gradient[0, 0, :, 0]                              # along i
show(
    curves(lines, xlabel="i (voxels); the last row is 79", ylabel="intensity"),
    alt="Up to row 79 both curves are one; then zeros falls to 0 within a voxel and stays, border "
    "stays at the last value.",
)
outside, cliff = steps > 80.1, (steps > 79.1) & (steps < 79.9)
assert not slopes["zeros"][outside].any() and not slopes["border"][outside].any()
assert slopes["zeros"][cliff].max() < -0.5 and not slopes["border"][cliff].any()

# %% [markdown]
# Zeros put a **cliff** of one voxel behind the last row: a false edge. Border has none. And further out the slope is 0 with *both*: nothing pulls a lost position back.
#
# What does the cliff do to a registration? Below, `fixed` is the same window as `cut`, 6 rows further down the brain. **Predict**: with which padding does a descent on the shift find 6?

# %%
fixed = colin[:, :, 76:156, 50:140]


def mismatch(shift, padding):
    """Mean squared difference after a shift (2,), in voxels, of the whole image."""
    u = shift.view(1, 2, 1, 1).expand(1, 2, 80, 90)                     # the same at each voxel
    return (warp(cut, u, padding=padding) - fixed).square().mean()


ends = {}
for padding in ("zeros", "border"):
    for start in (0.3, 85.0):
        begin = torch.tensor([start, 0.3])
        loss = partial(mismatch, padding=padding)                       # takes the shift alone
        end = descend(loss, begin, steps=60, learning_rate=0.5)
        ends[padding, start] = float(end[0])
        print(f"{padding:6} from {start:4.1f} rows: ends at {end[0]:5.1f}")
assert abs(ends["border", 0.3] - 6) < 0.3 and abs(ends["zeros", 0.3]) < 1
assert ends["zeros", 85.0] == ends["border", 85.0] == 85

# %%
rows = torch.arange(13.0)
losses = {p: [float(mismatch(torch.tensor([t, 0.0]), p)) for t in rows.tolist()]
          for p in ("zeros", "border")}                                 # fmt: skip
show(
    curves({p: (rows, loss) for p, loss in losses.items()}, xlabel="shift (rows)", ylabel="loss"),
    alt="With border the loss has a clear valley at 6 rows; with zeros it rises from 0 rows on.",
)
best = {padding: float(rows[loss.index(min(loss))]) for padding, loss in losses.items()}
assert best == {"zeros": 0, "border": 6} and losses["zeros"][6] > 1.3 * losses["zeros"][0]

# %% [markdown]
# With zeros the right answer is *worse* than doing nothing: each row that looks outside is fined. So: **border for what is optimized; zeros, where you like them, for what is shown.** (Where the background is black up to the edge, both are the same.)
#
# The start at 85, outside the image, stays there with both. With zeros the warped image is black, and a black image has no gradient: it cannot come back. (One hypothesis, untested, about a failed training whose log the survey prints.) What can pull a lost voxel back is its neighbors: smoothness, lesson 14.

# %% [markdown]
# ## 6 · The slope that the optimizer feels
#
# How does the sampled value change if the position moves down a little? Differentiate the formula of section 2 by $i$; only $a$ depends on it:
#
# $$\frac{\partial I}{\partial i} = (1-b)\,\bigl(I_{i_0+1, j_0} - I_{i_0, j_0}\bigr) + b\,\bigl(I_{i_0+1, j_0+1} - I_{i_0, j_0+1}\bigr)$$
#
# The lower two minus the upper two. **The sampler sees no further than the next voxel.** That is why lesson 00 began with a blurred image.
#
# Check a gradient that you have derived against numbers: move up and down by a small $h$, and divide the difference of the values by $2h$. Each output voxel depends on its own displacement only, so one pair of warps checks all. Float64, because $h$ is small:

# %%
torch.manual_seed(2)
image = colin.double()
field = torch.randint(-3, 3, (1, 2, 224, 192)) + 0.1 + 0.8 * torch.rand(1, 2, 224, 192).double()
field.requires_grad_()
(gradient,) = torch.autograd.grad(warp(image, field, padding="border").sum(), field)
h = 1e-4
for channel, name in enumerate("ij"):
    step = torch.zeros(field.shape).double()
    step[:, channel] = h
    up, down = (warp(image, field.detach() + s, padding="border") for s in (step, -step))
    difference = ((up - down)[:, 0] / (2 * h) - gradient[:, channel]).abs().max()
    print(f"along {name}: largest difference {float(difference):.0e}")
    assert difference < 1e-6

# %% [markdown]
# The fractions in this field lie between 0.1 and 0.9, away from the kinks. **On** a kink, which slope comes out: the left one, the right one, or their mean? Every registration starts with $u = 0$, where *every* position is on a kink. **Predict**:

# %%
start = torch.zeros(1, 2, 224, 192, requires_grad=True)
(gradient,) = torch.autograd.grad(warp(colin, start).sum(), start)
slope = colin.diff(dim=2)[0, 0]                                         # (223, 192)
above, below = slope[:-1], slope[1:]                                    # of rows 1 to 222
felt = gradient[0, 0, 1:-1]
kinked = (above - below).abs() > 0.02                                   # where it makes a difference
shares = {}
for name, candidate in {"below": below, "above": above, "mean": (above + below) / 2}.items():
    shares[name] = float(((felt - candidate).abs() < 1e-3)[kinked].float().mean())
    print(f"the slope is that of {name}: {shares[name]:.0%} of the voxels")
assert shares["below"] > 0.6 and shares["above"] > 0.01 and shares["mean"] < 0.001
assert shares["below"] + shares["above"] > 0.99

# %% [markdown]
# Mostly the slope to the next row, sometimes that to the one before: rounding on the way to −1 … 1 and back decides on which side of the voxel the position lands. The *value* hardly changes, the *slope* may change its sign. A central difference gives the mean there and disagrees with `backward`; neither is wrong. The first step leaves the kinks.

# %% [markdown]
# ## 7 · Labels: three ways, one of them wrong
#
# Lesson 10 showed linear interpolation of label *numbers* inventing structures. `nearest` invents nothing, but has stairs and no gradient. The third way makes an image of each label, 1 where it is and 0 elsewhere: **one-hot**. Warp these linearly, and each voxel gets shares, such as 0.7 of label 2 and 0.3 of background. The largest share wins (`argmax`).
#
# To judge them we need the truth. A flower drawn by a formula can be drawn at $x + u(x)$ directly, without interpolation. Its petals are 2, its heart is 1. **Predict** the order of the three ways, by the share of wrong voxels:

# %%
def flower(positions):
    """(B, 2, H, W), in voxels -> labels (B, 1, H, W): petals 2, heart 1, background 0."""
    i, j = positions[:, :1] - 47.5, positions[:, 1:] - 47.5
    radius, angle = (i**2 + j**2).sqrt(), torch.atan2(i, j)
    petals = radius < 28 + 9 * torch.cos(5 * angle)
    return torch.where(radius < 10, 1, 2 * petals.long())


torch.manual_seed(2)
positions = identity_grid((96, 96))[None]
u = smooth(40 * torch.randn(1, 2, 96, 96), 10)
labels, truth = flower(positions), flower(positions + u)
ways = {
    "linear on numbers": warp(labels.float(), u).round().long(),
    "nearest": warp(labels, u, mode="nearest"),
    "one-hot": warp_labels(labels, u),
}
wrong, overlap = {}, {}
for name, result in ways.items():
    wrong[name] = float((result != truth).float().mean())
    overlap[name] = dice(result, truth)[0].tolist()                     # of labels 1 and 2
    print(f"{name:18} wrong: {wrong[name]:.1%}   Dice: {[round(d, 3) for d in overlap[name]]}")
assert wrong["linear on numbers"] > 1.8 * wrong["nearest"] > 2.1 * wrong["one-hot"]
assert overlap["linear on numbers"][0] < 0.9
assert all(a - b > 0.002 for a, b in zip(overlap["one-hot"], overlap["nearest"]))

# %%
drawn = {"truth": truth / 2, "linear on numbers": ways["linear on numbers"] / 2}
missed = {f"wrong: {name}": (ways[name] != truth).float() for name in ("nearest", "one-hot")}
figure = images(drawn | missed)
figure.axes[-1].set_ylabel("label / 2, or wrong (1)")
show(
    figure,
    alt="A bent flower, drawn by its formula; the same warped as numbers, with a gray outline of "
    "heart around its petals; then the wrong voxels: with nearest scattered dots on the outline, "
    "with one-hot fewer dots.",
)

# %% [markdown]
# Linear on numbers draws an outline of *heart* around every petal: halfway from 0 to 2 is 1. One-hot is nearest to the truth, and before the `argmax` its shares have a gradient, which a loss on labels needs.
#
# With the *same* field, Dice depends on the way the labels were warped: two papers that differ by half a percent may differ in that only. (A thread in which Dice improves so: [LKU-Net#1](https://github.com/xi-jia/LKU-Net/issues/1).) `warp_labels` is one-hot, and the course's tables use it. **Say which you used.**

# %% [markdown]
# ## 8 · Resample once
#
# In lesson 11 four warps by half a voxel cost visible detail. How much, and of what? Halfway between two voxels the sampler returns their mean. Of a wave that repeats every $P$ voxels, these two lie an angle of $\pi/P$ before and behind, and the mean of $\cos(x - \pi/P)$ and $\cos(x + \pi/P)$ is $\cos(\pi/P) \cos x$. So it keeps the share
#
# $$g(P) = \cos(\pi / P)$$
#
# of its height, and $g(P)^n$ after $n$ times. **Predict**: a wave that repeats every 4 voxels, resampled four times. What is left?

# %%
def left_over(period, times):
    wave = torch.cos(2 * torch.pi * torch.arange(240.0) / period + 0.3).expand(1, 1, 4, 240)
    half = torch.zeros(1, 2, 4, 240)
    half[:, 1] = 0.5                                                    # half a voxel along j
    result = wave
    for _ in range(times):
        result = warp(result, half, padding="border")
    inside = slice(60, 180)                                             # whole periods
    return float(result[..., inside].std() / wave[..., inside].std())


periods = [2.5, 3, 4, 5, 6, 8, 10, 12, 15, 20]
kept = {n: [left_over(period, n) for period in periods] for n in (1, 2, 4)}
show(
    curves({f"{n} ×": (periods, line) for n, line in kept.items()},
           xlabel="period of the wave (voxels)", ylabel="share of its height that is left"),
    alt="Long waves survive; waves of 4 voxels keep 71 percent after one resampling and 25 percent "
    "after four.",
)  # fmt: skip
for n, line in kept.items():
    expected = torch.cos(torch.pi / torch.tensor(periods)) ** n
    assert (torch.tensor(line) - expected).abs().max() < 0.01
assert abs(kept[4][2] - 0.25) < 0.01 and abs(kept[1][2] - 0.71) < 0.01
assert left_over(2, 1) < 1e-4

# %% [markdown]
# A quarter. (A wave of 2 voxels, the finest that the grid can hold, is gone after *one*.) So gather all steps, the affine and those of networks in a row, into one displacement by `compose`, and read the image once. Displacements are smooth: interpolating *them* loses little. A library was asked for this: [MONAI#4604](https://github.com/Project-MONAI/MONAI/issues/4604).

# %% [markdown]
# ## Common mistakes
#
# **Grids in the wrong order, or by the wrong size.** `grid_sample` wants $(x, y)$, the column first, and $x$ belongs to the *width*. On square images the second mistake is invisible. Both, made in an identity:

# %%
i, j = identity_grid((224, 192))
grids = {
    "right": torch.stack([2 * j / 191 - 1, 2 * i / 223 - 1], dim=-1),   # (224, 192, 2)
    "(y, x)": torch.stack([2 * i / 223 - 1, 2 * j / 191 - 1], dim=-1),
    "by the other size": torch.stack([2 * j / 223 - 1, 2 * i / 191 - 1], dim=-1),
}
results = {name: F.grid_sample(colin, g[None], align_corners=True) for name, g in grids.items()}
show(
    images(results),
    alt="Right, the brain as it was; y before x, the brain mirrored at its diagonal and squeezed; by "
    "the other size, the brain wider, lower, and cut off on the right.",
)
assert (results["right"] - colin).abs().max() < 1e-3
assert all((results[name] - colin).abs().mean() > 0.05 for name in ("(y, x)", "by the other size"))

# %% [markdown]
# **`align_corners` left to its default.** Before version 1.3 PyTorch did what is now called `True`; old programs run under a newer one with another meaning. Threads: [DeepHistReg PR#12](https://github.com/MWod/DeepHistReg/pull/12), [MONAI#8690](https://github.com/Project-MONAI/MONAI/pull/8690). An optimizer bends the field until the images match *through the wrong sampler*: the picture is right, the field wrong by up to half a voxel:

# %%
columns = torch.arange(192.0)
truth = 3.0                                                             # every column looks 3 further
# The wrong sampler looks at p · 192/191 − ½. To see column j + 3, the optimizer must ask for:
asked = (columns + truth + 0.5) * 191 / 192
error = asked - columns - truth
print(f"error of the field: {error[0]:+.2f} voxels on the left, {error[-4]:+.2f} on the right")
assert error[0] > 0.45 and error[-4] < -0.45 and error.abs().max() < 0.53

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. Your registration uses zeros padding, and the warped image has gone black. You change to border padding and start from that same field. Does it recover?</summary>
#
# Not by itself. For a position outside, the slope across the edge is 0 with border padding, too. Only the slope *along* the edge is alive. A penalty that ties voxels to their neighbors (lesson 14) can pull them back, or a new start.
#
# </details>
#
# <details><summary>2. Two samplers agree in all values to 0.000001, and their gradients at u = 0 differ by 0.3. Is one of them wrong?</summary>
#
# Not necessarily. At $u = 0$ all positions lie on kinks, and which of the two slopes comes out is a matter of rounding. Compare them at positions with fractions between 0.1 and 0.9.
#
# </details>
#
# <details><summary>3. One-hot images of 35 structures and background, 160 × 192 × 224 voxels in float32: how much memory, and what would you do?</summary>
#
# 160 · 192 · 224 · 36 · 4 bytes: about 1 GB. Warp one structure at a time, and keep the largest share so far and its label.
#
# </details>

# %%
assert 0.98e9 < 160 * 192 * 224 * 36 * 4 < 1.0e9                        # bytes, question 3

# %% [markdown]
# ## Take away
#
# - Registration needs a grid and a sampler. The four weights are areas; the slope is a difference of neighbors, with kinks at the voxels.
# - −1 is a center or an edge: make and read grids, pyramids and fields by one convention.
# - Border padding for what is optimized; outside, no padding pulls anything back.
# - Labels: nearest or one-hot, never linear on numbers; say which.
# - Compose displacements, and read the image once.
#
# **Go further**
# - M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu, "Spatial Transformer Networks", NeurIPS 2015.
# - T. M. Lehmann, C. Gönner, K. Spitzer, "Survey: interpolation methods in medical image processing", IEEE Transactions on Medical Imaging 18(11), 1999.
# - P. Thévenaz, T. Blu, M. Unser, "Interpolation revisited", IEEE Transactions on Medical Imaging 19(7), 2000.
# - W. Jiang, W. Sun, A. Tagliasacchi, E. Trulls, K. M. Yi, "Linearized multi-sampling for differentiable image transformation", ICCV 2019: a sampler that sees further than two voxels.
#
# Next: the exercise [exercises/12_grid_sampling.ipynb](../exercises/12_grid_sampling.ipynb).

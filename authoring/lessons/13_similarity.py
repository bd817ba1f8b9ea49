# %% [markdown]
# # 13 · Similarity: which number says that two images fit?
#
# At the end of this lesson you have built the losses that registration minimizes, seen the landscapes that they make, and know for each one which scanner's habit makes it point to the wrong place.
#
# **Reading**: 40 minutes · **Running**: about 10 seconds on a laptop · **Before this**: lessons 01, 11 and 12.
#
# **You will be able to**
# - *predict* what each similarity says to a paler copy and to a negative,
# - *implement* the correlation loss, and local correlation with window sums that cost the same for any window,
# - *diagnose* a local correlation that returns impossible scores,
# - *find* a window that stands both a bias field and noise.

# %%
import time

import torch
from torch.nn import functional as F

from course_lib import setup
from course_lib.datasets import brains
from course_lib.landscapes import landscape, rotations, translations
from course_lib.local_ncc import correlation_map
from course_lib.losses import lncc, mse, ncc
from course_lib.plotting import curves, images, show
from course_lib.spatial import affine_displacement, pyramid, warp
from course_lib.widgets import corrupt, lowest_shifts, shift_losses, similarity_explorer

course = setup()
brain = brains.real_pair().fixed                                        # (1, 1, 224, 192)
shape = brain.shape[2:]

# %% [markdown]
# Here is where we are going: an image, the same image with brightness that drifts from left to right, and what three losses say about every shift between the two. The right shift is 0. One of the three finds it. (The drift of `corrupt(…, bias=3.0)` divides the left edge by 20 and multiplies the right one by 20: exaggerated, so that you see it.)

# %% tags=["cover"]
drifting = corrupt(brain, bias=3.0)
shifts = range(-12, 13)
cover = {
    "MSE": landscape(mse, drifting, brain, translations(shifts, axis=1)),
    "correlation": landscape(ncc, drifting, brain, translations(shifts, axis=1)),
    "local correlation²": landscape(lncc, drifting, brain, translations(shifts, axis=1)),
}
scaled = {name: (h - h.min()) / (h.max() - h.min()) for name, h in cover.items()}
lowest = {name: shifts[int(h.argmin())] for name, h in cover.items()}
figure = curves({name: (shifts, h) for name, h in scaled.items()}, xlabel="shift (voxels)", ylabel="loss (own range)")
figure.axes[0].lines[0].set_linewidth(5)                                # MSE, under the correlation
figure.axes[0].plot(list(lowest.values()), [0, 0, 0], "ko")             # the lowest places
show(
    figure,
    alt="Three curves over the shift. Local correlation has a narrow valley at 0; the two others "
    "lie on each other, a thick line and a dashed one, and are lowest at plus 2 voxels.",
)
show(
    images({"fixed": brain, "moving (above 1: white)": drifting}),
    alt="A brain slice, and the same one dark on the left and white on the right.",
)
print(lowest)
assert lowest == {"MSE": 2, "correlation": 2, "local correlation²": 0}

# %% [markdown]
# ## 1 · The obvious number
#
# A registration tries positions and keeps the one with the lowest **loss**. The obvious loss is the **mean squared error** (MSE): *square the difference at each voxel, and take the mean.*
#
# $$\text{MSE} = \frac{1}{N} \sum_x \bigl(w(x) - f(x)\bigr)^2$$
#
# $w$ is the warped image, $f$ the fixed one, $x$ runs over the $N$ voxels. In code, `(w - f).square().mean()`.
#
# Two answers compete. A lies exactly in place, but its scanner gave 60 % of the brightness. B has the right brightness and lies 5 voxels off.
#
# **Predict**: which one does MSE prefer?

# %%
def shifted(image, voxels):
    """The image whose content lies that many voxels further left."""
    field = affine_displacement(translations([voxels], axis=1), image.shape[2:])
    return warp(image, field, padding="border")


answers = {"A: in place, darker": 0.6 * brain, "B: 5 voxels off": shifted(brain, 5)}
show(images({"fixed": brain} | answers), alt="The fixed brain, a darker one in place, and a bright one 5 voxels further left.")
for name, image in answers.items():
    print(f"{name:20} MSE {float(mse(image, brain)):.3f}   −r {float(ncc(image, brain)):.2f}")
a, b = answers.values()
assert mse(a, brain) > 1.3 * mse(b, brain) and ncc(a, brain) < ncc(b, brain) - 0.05

# %% [markdown]
# It prefers B. MSE asks whether intensities are *equal*; we wanted to know whether the *same things lie on each other*. The second column gets it right. What does it do?

# %% [markdown]
# ## 2 · Correlation
#
# *Subtract from each image its mean, divide it by its spread, and multiply the two voxel by voxel.* That is Pearson's correlation $r$:
#
# $$r = \frac{\text{cov}(w, f)}{\sqrt{\text{var}(w)\,\text{var}(f)}}, \qquad \text{cov}(w, f) = \text{mean}\bigl((w - \bar w)(f - \bar f)\bigr), \quad \text{var}(w) = \text{cov}(w, w)$$
#
# $\bar w$ and $\bar f$ are the means. It is also called **normalized cross-correlation**, NCC. A gain and an offset, $g\,w + o$ with $g > 0$, drop out. Since $r$ grows with agreement, the loss is $-r$, from −1 (best) to 1.
#
# **Predict**: what is $r$ of an image and its negative, $1 - f$, lying exactly on each other: 1, 0 or −1?

# %% tags=["nbval-check-output"]
negative = 1 - brain
for name, image in (("0.5 w + 0.3", 0.5 * brain + 0.3), ("the negative", negative)):
    print(f"{name:12}  r = {-float(ncc(image, brain)):+.2f}")
assert ncc(negative, brain) > 0.999

# %% [markdown]
# −1. So **−1 does not mean "no match"**. It means a perfect match with the contrast upside down. No match is $r = 0$: then no straight line leads from one intensity to the other. A program that minimizes $-r$ flees from the right place of a negative.
#
# To see that, do not ask for one number, ask for many: move the image along a line of poses and compute the loss at each. This is the **landscape** that an optimizer has to walk down. `landscape(loss, moving, fixed, poses)` does it, `translations` and `rotations` make the poses.

# %%
degrees = range(-12, 13)
by_shift = landscape(ncc, negative, brain, translations(shifts, axis=1))
by_angle = landscape(ncc, negative, brain, rotations(degrees))
show(
    curves({"shift (voxels)": (shifts, by_shift), "rotation (degrees)": (degrees, by_angle)},
           xlabel="distance from the right pose", ylabel="−r of the negative"),
    alt="Both landscapes of the negative have their top, not their bottom, at the right pose.",
)  # fmt: skip
assert by_shift.argmax() == 12 and by_angle.argmax() == 12

# %% [markdown]
# On both roads the loss is *highest* at the right pose.
#
# **Does MSE find the right shift of the darker image?** Answer B won against A, but at another brightness. Now keep one image, and shift it. Write the square out: $\text{mean}(w^2) - 2\,\text{mean}(w f) + \text{mean}(f^2)$. Inside a black frame a shift moves the intensities of $w$ and loses none, so $\text{mean}(w^2)$, $\bar w$ and $\text{var}(w)$ stay. Only $\text{mean}(w f)$ changes, in MSE and in $r$ alike: both prefer the same shift.
#
# But a displacement *field* moves each voxel alone, along the gradient of the loss by that voxel's displacement. At the right place this **pull** should be next to nothing. **Predict**: for which of the two losses is it, with the darker image?

# %%
def pull(loss, moving, off=0.0):
    """Length of the gradient by the displacements u, where each voxel looks `off` voxels too far."""
    u = torch.zeros(1, 2, *shape)
    u[:, 1] = off
    u.requires_grad_()
    loss(warp(moving, u, padding="border"), brain).backward()
    return float(u.grad.norm())


dark = 0.6 * brain
places = landscape(mse, dark, brain, translations(shifts, axis=1))
for name, loss in (("MSE", mse), ("−r", ncc)):
    share = pull(loss, dark) / pull(loss, brain, 3.0)
    print(f"{name:4} pull on the darker image in place: {share:.0%} of that on the brain 3 voxels off")
assert shifts[int(places.argmin())] == 0
assert pull(mse, dark) > 0.3 * pull(mse, brain, 3.0) and pull(ncc, dark) < 0.01 * pull(ncc, brain, 3.0)

# %% [markdown]
# MSE pulls at an image that needs no registration, with almost half the force of a true error of 3 voxels: it would bend the brain to make up for the brightness. Correlation lets it rest.

# %% [markdown]
# ## 3 · One gain is not enough: local correlation
#
# MR scanners do not have one gain. Their sensitivity drifts over the image, smoothly: a **bias field**. Correlation allows one gain for all voxels, and the cover showed what becomes of that. (In real scans it is some tens of percent.)
#
# The remedy: *compute the correlation in a small window around each voxel, where the bias is nearly one gain, and average over all windows.* With sums $\Sigma$ over a window of $n$ voxels:
#
# $$\text{cross} = \Sigma w f - \frac{\Sigma w\, \Sigma f}{n}, \qquad v_w = \Sigma w^2 - \frac{(\Sigma w)^2}{n}, \qquad cc^2 = \frac{\text{cross}^2}{v_w v_f + \varepsilon}$$
#
# Divided by $n$, cross is the covariance and $v_w$ the variance, so $cc$ is $r$ of the window. The loss is $-\text{mean}(cc^2)$. VoxelMorph and ANTs square it; $\varepsilon = 10^{-5}$ prevents 0/0. As a loop it is plain to read:

# %%
def local_cc(w, f, i, j, window=9, eps=1e-5):
    """cc of the window around voxel (i, j) of (1, 1, H, W) images; zeros outside."""
    radius = window // 2
    padded = [F.pad(x[0, 0], (radius,) * 4) for x in (w, f)]
    w, f = (x[i : i + window, j : j + window] for x in padded)          # (9, 9) each
    n = window * window
    cross = (w * f).sum() - w.sum() * f.sum() / n
    v_w = (w * w).sum() - w.sum() ** 2 / n
    v_f = (f * f).sum() - f.sum() ** 2 / n
    return cross / (v_w * v_f + eps).sqrt()


small_w, small_f = pyramid(drifting, 6), pyramid(brain, 6)              # (1, 1, 37, 32)
height, width = small_f.shape[2:]
by_loop = torch.stack([local_cc(small_w, small_f, i, j) for i in range(height) for j in range(width)])
assert torch.allclose(-by_loop.square().mean(), lncc(small_w, small_f), atol=1e-4)

# %% [markdown]
# The loop equals `course_lib.losses.lncc`, which sums faster. **Predict**: what is the loss of the brain and *itself*: −1, −0.9 or −0.5? And what do the signed and the squared version say to the negative?

# %% tags=["nbval-check-output"]
def lncc_signed(w, f):
    return lncc(w, f, squared=False)


figure = images({"brain and itself": correlation_map(brain, brain, 9),
                 "brain and drifting": correlation_map(drifting, brain, 9)})  # fmt: skip
figure.axes[-1].set_ylabel("cc²")
show(
    figure,
    alt="Two maps of cc². With itself it is 1 in nearly all of the brain and 0 in the background; "
    "with the drifting image it stays near 1 along edges and falls inside the brain in patches.",
)
for name, image in (("itself", brain), ("its negative", negative)):
    signed, squared = (float(loss(image, brain)) for loss in (lncc_signed, lncc))
    print(f"the brain and {name:12}  signed {signed:+.2f}  squared {squared:+.2f}")
sums = F.avg_pool2d(brain, 9, 1, 4), F.avg_pool2d(brain**2, 9, 1, 4)
flat = float((81 * (sums[1] - sums[0] ** 2) < 1e-3).float().mean())
print(f"windows without contrast: {flat:.0%}")
assert -0.6 < lncc(brain, brain) < -0.5 and 0.4 < flat < 0.5
assert lncc_signed(negative, brain) > 0.5 and lncc(negative, brain) < -0.5

# %% [markdown]
# **A perfect match does not reach −1.** Nearly half of the windows lie in the black background, where $v_w v_f = 0$ and $\varepsilon$ makes $cc = 0$. The mean counts them. (The second map stays bright along edges, and falls where the drift within a window outweighs the contrast of the tissue.) So values of local correlation are comparable only between images with the same share of background.
#
# **What the square hides.** To the square, the negative is as good as the original. That helps where contrast is inverted. Where it is not, the square may match bright with dark. **Predict**: stripes repeat every 16 voxels. At which shifts from −12 to 12 does each version have a valley?

# %%
stripes = 0.5 + 0.5 * torch.sin(2 * torch.pi * torch.arange(192.0) / 16).expand(1, 1, 64, 192)
for name, loss in (("signed", lncc_signed), ("squared", lncc)):
    heights = landscape(loss, stripes, stripes, translations(shifts, axis=1))
    lower = (heights[1:-1] < heights[:-2]) & (heights[1:-1] < heights[2:])  # than both neighbors
    valleys = [shifts[k + 1] for k in lower.nonzero().flatten().tolist()]
    print(f"{name:8} valleys at {valleys}")
    assert valleys == ([0] if loss is lncc_signed else [-8, 0, 8])

# %% [markdown]
# Half a period off, every bright stripe lies on a dark one, and to the square that is a place to rest.

# %% [markdown]
# ## 4 · Who survives what?
#
# Now spoil the moving image in five ways and ask where each landscape is lowest. The last way *reorders* the tissues: the background stays dark, but fluid becomes brighter than white matter, as in T2-weighted MR. **Predict** before you look: which of the four losses has no wrong place in its row?

# %%
spoiled = {
    "nothing": brain,
    "60 % brightness": 0.6 * brain,
    "noise": corrupt(brain, noise=0.3),
    "bias field": drifting,
    "negative": negative,
    "reordered": (brain > 0) * negative,
}
show(
    images({name: image for name, image in spoiled.items() if name != "nothing"}),
    alt="The brain, darker; grainy; dark on the left and white on the right; as a negative with a "
    "white background; and as a negative with a black background.",
)
losses = {"MSE": mse, "−r": ncc, "local, signed": lncc_signed, "local, squared": lncc}
table = {}
print(f"{'lowest at':15}" + "".join(f"{what:>16}" for what in spoiled))
for name, loss in losses.items():
    heights = [landscape(loss, image, brain, translations(shifts, axis=1)) for image in spoiled.values()]
    lowest = [int(h.argmin()) for h in heights]
    tie = [h[24 - k] - h[k] < 5e-4 * (h.max() - h.min()) for h, k in zip(heights, lowest)]
    table[name] = [abs(k - 12) if tied else k - 12 for k, tied in zip(lowest, tie)]
    cells = [f"{'±' if tied and place else '+' if place else ''}{place}" for place, tied in zip(table[name], tie)]
    print(f"{name:15}" + "".join(f"{cell:>16}" for cell in cells))
assert table["MSE"][:3] == table["−r"][:3] == table["local, signed"][:3] == [0, 0, 0]
assert table["MSE"][3] == table["−r"][3] == 2 and table["local, signed"][3] == 0
assert all(abs(place) > 3 for name in ("MSE", "−r", "local, signed") for place in table[name][4:])
assert table["local, squared"] == [0, 0, 0, 0, 0, 0]

# %% [markdown]
# The squared local version. (± is a tie: two places, equally low. Section 2 explains why MSE and $-r$ agree.) It even stands the reordered tissues: where a window holds two tissues, their two brightnesses always lie on a line, rising or falling. Is it then the best loss? Look at the *shape* of its valley, which the table does not show:

# %%
windows = {f"window {n}": n for n in (5, 9, 31)}
valleys = {"−r": landscape(ncc, brain, brain, translations(shifts, axis=1))}
for name, n in windows.items():
    valleys[name] = landscape(lambda w, f, n=n: lncc(w, f, n), brain, brain, translations(shifts, axis=1))
scaled = {name: (h - h.min()) / (h.max() - h.min()) for name, h in valleys.items()}
show(
    curves({name: (shifts, h) for name, h in scaled.items()},
           xlabel="shift (voxels)", ylabel="loss (own range)"),
    alt="Four valleys at 0: that of the whole image is a wide V, those of windows of 5 and 9 are "
    "narrow, with flat plains beside them; that of a window of 31 lies between.",
)  # fmt: skip
fall = {name: float(h[0] - h[6]) for name, h in scaled.items()}         # from 12 to 6 voxels away
print("of the whole depth:", {name: f"{value:.0%}" for name, value in fall.items()})
assert fall["window 5"] < 0.1 and fall["window 9"] < 0.1 and fall["window 31"] > 0.14 and fall["−r"] > 0.4

# %% [markdown]
# Between 12 and 6 voxels from the right place, the valley of a window of 5 or 9 hardly falls: no slope says where to go. How far away a loss still leads home is its **capture range**. Local correlation pays with it for precision and robustness, which is why registrations start with a pose, or on coarse images. A window of 31 reaches further, and sees more of the bias. And where two scanners see different things altogether, as CT and MR do, no line connects them: that needs another idea (lesson 16).

# %% [markdown]
# ## 5 · The price of a window
#
# Each voxel of an $m \times m$ window takes $m^2 - 1$ additions in a loop: 80 for $m = 9$. Windows of neighbors overlap, so most of that work is repeated. Two ways to save it:
#
# - **Separable**: sum along the columns, then the sums along the rows: $2(m - 1) = 16$ additions.
# - **Cumulative**: with $S_i = x_0 + \dots + x_i$, any sum is a difference, $x_i + \dots + x_k = S_k - S_{i-1}$: 4 operations in 2D, for *any* $m$. You write it in the exercise.
#
# `lncc` needs five such sums, and some products. **Predict** for 31 × 31: which is faster, the loop for *one* of the sums, or the whole of `lncc`?

# %%
def add_windows(image, m):
    """One shifted image after the other: m² − 1 additions."""
    padded, (h, w) = F.pad(image, (m // 2,) * 4), image.shape[2:]
    return sum(padded[..., i : i + h, j : j + w] for i in range(m) for j in range(m))


def seconds(function, *arguments):
    """The best of three runs."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        function(*arguments)
        best = min(best, time.perf_counter() - start)
    return best


row = brain[0, 0, 112]                                                  # (192,)
S = row.cumsum(0)
assert torch.isclose(S[108] - S[99], row[100:109].sum(), atol=1e-4)     # 9 values, one subtraction
slower = seconds(add_windows, brain, 31) / seconds(lncc, brain, brain, 31)
print("31 × 31: the loop for one sum takes more than twice as long as the whole lncc:", slower > 2)
assert slower > 2

# %% [markdown]
# ## 6 · Play: who leaves first?
#
# The explorer shifts a brain by 4 voxels, spoils it, and draws four landscapes, each in its own range. The dashed line is the right place; a dot marks the lowest one and turns magenta where it is wrong. (Each picture runs from its own black to its own white, so a strong bias looks darker here than on the cover.)
#
# **Play**: leave the shift at +4. Raise the bias in steps of 0.5. At which bias does the first minimum leave +4? At which does one run to the edge? Then set the bias to 0: does any noise up to 1 move a minimum?

# %%
small = pyramid(brain, 2)                                               # (1, 1, 112, 96)
explorer = similarity_explorer(small)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# MSE and −r leave together at a bias of 1, to +5: they share the term that decides. At 4, MSE runs to the edge, −12, where the bright side leaves the picture; −r only drifts on. Both local losses stay at +4 up to 5. Noise alone moves none of the four: it falls on all shifts alike. But it makes the local valleys shallower.
#
# </details>

# %%
# Only for those who have played: this holds the folded answer to account.
def losses_with(**how):
    return shift_losses(corrupt(shifted(small, -4), **how), small)


def lowest_with(**how):
    return list(lowest_shifts(losses_with(**how)).values())


assert lowest_with(bias=0.5) == [4, 4, 4, 4] and lowest_with(bias=1.0) == [5, 5, 4, 4]
assert 4 < lowest_with(bias=3.5)[0] < 8
edge, drifted, *local = lowest_with(bias=4.0)
assert edge == -12 and 4 < drifted < 9 and local == lowest_with(bias=5.0)[2:] == [4, 4]
assert lowest_with(noise=1.0) == [4, 4, 4, 4]
clean, grainy = (losses_with(noise=n)["local squared"] for n in (0.0, 1.0))
assert grainy.max() - grainy.min() < 0.5 * (clean.max() - clean.min())

# %% [markdown]
# ## 7 · Reading a formula
#
# The survey that this course grew from prints NCC so (its $m$ and $n$ are the edges of the window, $\mu_f$ and $\mu_r$ means in it):
#
# $$\frac{\sum_{i=-m/2}^{m/2} \sum_{j=-n/2}^{n/2} f(x+i, y+j)\, r(x+i, y+j) - m\,n\,\mu_f\,\mu_r}{\sqrt{\bigl(\sum f^2 - m\,n\,\mu_f^2\bigr)\bigl(\sum r^2 - m\,n\,\mu_r^2\bigr)}}$$
#
# and says: as a loss it lies in [−1, 1]; 1 is a complete match, −1 no match at all; and it suits images of different modalities. **Find the errors** before you read on. There are four.

# %% [markdown]
# <details><summary>The four</summary>
#
# 1. From −m/2 to m/2 there are $m + 1$ whole numbers for an even $m$, and for an odd one the limits are not whole. But $m\,n$ is subtracted.
# 2. It is the value of *one* window, at $(x, y)$. How the windows become one number is not said.
# 3. A loss falls as images agree. This one would have to be negated. And −1 is a perfect match with inverted contrast, as you saw in section 2.
# 4. Signed, it is lost as soon as tissues swap their brightness: the column "reordered" of section 4. Only the square in small windows stood that, and the formula has no square.
#
# </details>
#
# The first looks pedantic. **Count what you sum, and divide by that count**: the exercise has a loss that was really used, and miscounts.

# %% [markdown]
# ## Common mistakes
#
# **NaN, infinite or huge values.** Flat windows give 0/0. An $\varepsilon$ of float64's resolution, 2e-16, avoids the NaN, but is nothing beside the $v_w v_f$ of a window that is *nearly* flat. Threads: [voxelmorph#127](https://github.com/voxelmorph/voxelmorph/issues/127), [#594](https://github.com/voxelmorph/voxelmorph/issues/594), [#414](https://github.com/voxelmorph/voxelmorph/issues/414), [PR#358](https://github.com/voxelmorph/voxelmorph/pull/358), [DeepReg#690](https://github.com/DeepRegNet/DeepReg/issues/690).
#
# **Intensities in another unit.** $\varepsilon$ stands beside a product of variances, so it has the unit intensity⁴. In images of a hundredth of the intensity it drowns everything (first line below). Scale to 0 to 1 first.
#
# **Borders.** Zeros outside are content too. An offset, which should not matter, does in windows that hang over the edge; and independent images seem to agree there. (`mask=` averages cc² over a part of the image only.)

# %%
dim = [float(lncc(gain * brain, gain * brain)) for gain in (1, 0.1, 0.01)]
print("the brain and itself, at 1, 1/10 and 1/100 of the intensity:", [f"{x:.2f}" for x in dim])
assert dim[0] < -0.5 and dim[1] > -0.45 and dim[2] > -0.05
generator = torch.Generator().manual_seed(0)
noise, other = (torch.rand(1, 1, 120, 100, generator=generator) for _ in range(2))
inside = torch.zeros(1, 1, 120, 100)
inside[..., 4:-4, 4:-4] = 1
rows = {"noise and noise + 0.5": (noise, noise + 0.5), "noise and other noise": (noise, other)}
for name, (w, f) in rows.items():
    score, edge = -float(lncc(w, f, mask=inside)), -float(lncc(w, f, mask=1 - inside))
    print(f"{name:22} cc² inside {score:.2f}, along the border {edge:.2f}")
assert -lncc(noise, noise + 0.5, mask=inside) > 0.99 and -lncc(noise, noise + 0.5, mask=1 - inside) < 0.95
assert -lncc(noise, other, mask=inside) < 0.03 and -lncc(noise, other, mask=1 - inside) > 0.1

# %% [markdown]
# **Range and sign unknown.** One library's documentation said neither: [MONAI#8350](https://github.com/Project-MONAI/MONAI/issues/8350), [PR#8639](https://github.com/Project-MONAI/MONAI/pull/8639). Find out with three calls: an image with itself, with its negative, with noise.

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. Your loss is −mean(cc²) and reads −0.54 after registration. Is that poor?</summary>
#
# One cannot tell. The brain slice of this lesson scores that with *itself*, because nearly half of its windows are background. Compare with the value before registration, on the same images.
#
# </details>
#
# <details><summary>2. MSE between two scans is lowest at the right pose. Is MSE then safe for a displacement field?</summary>
#
# No. Along poses a gain did not move the lowest place (section 2). But there MSE still pulled at the voxels, and a field is free to follow.
#
# </details>
#
# <details><summary>3. Why not take a huge window, and have both capture range and robustness?</summary>
#
# A window as large as the image is the correlation of the whole image: wide valley, one gain, helpless against a bias field.
#
# </details>

# %% [markdown]
# ## Take away
#
# - MSE wants equal intensities; correlation forgives one gain and one offset; local correlation forgives a drift of both.
# - The best value of $-r$ is −1. A correlation of −1 is a perfect match of a negative, not "no match".
# - Squaring accepts inverted contrast, wanted or not.
# - Narrow valleys are precise and have a small capture range. Look at landscapes, not at single values.
# - Know a loss's range, count what you sum, and assert both.
#
# **Go further**
# - B. B. Avants, C. L. Epstein, M. Grossman, J. C. Gee, "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 12(1), 2008.
# - G. Balakrishnan, A. Zhao, M. R. Sabuncu, J. Guttag, A. V. Dalca, "VoxelMorph: a learning framework for deformable medical image registration", IEEE Transactions on Medical Imaging 38(8), 2019.
# - J. P. Lewis, "Fast normalized cross-correlation", Vision Interface, 1995: correlation by running sums.
# - F. C. Crow, "Summed-area tables for texture mapping", SIGGRAPH 1984: cumulative sums in two dimensions.
#
# Next: the exercise [exercises/13_similarity.ipynb](../exercises/13_similarity.ipynb).

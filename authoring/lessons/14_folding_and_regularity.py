# %% [markdown]
# # 14 · Folding and regularity: when a perfect match is wrong
#
# At the end of this lesson you count the folds of any displacement, you know what that count misses, and you have turned the one knob that every registration has.
#
# **Reading**: 40 minutes · **Running**: about 30 seconds on a laptop · **Before this**: lessons 11, 12 and 13.
#
# **You will be able to**
# - *predict* the Jacobian determinant of a map from a drawing or a formula,
# - *implement* the determinant, the fraction of folded voxels and the diffusion penalty,
# - *diagnose* a wrong determinant in 3D,
# - *find* a weight that matches well and hardly folds, and say what the match alone would have chosen.

# %%
import numpy as np
import torch
from matplotlib.figure import Figure

from course_lib import setup
from course_lib.datasets import brains, halve
from course_lib.losses import bending_energy, diffusion
from course_lib.metrics import correlation, dice, endpoint_error, folding_fraction
from course_lib.optimise import refine
from course_lib.plotting import draw_grid, fields, show
from course_lib.spatial import affine_displacement, identity_grid
from course_lib.spatial import jacobian, jacobian_determinant, warp
from course_lib.widgets import regularity_explorer

course = setup()
pair = halve(brains.pair(2))  # two synthetic people, 112 × 96 voxels of 2 mm
moving, fixed, truth = pair.moving, pair.fixed, pair.displacement
brain = pair.fixed_labels > 0  # (1, 1, 112, 96)

# %% [markdown]
# Two registrations of the same pair by `refine` of lesson 00. It minimizes "difference of the images + λ · roughness of the field"; the first has λ = 0, the second λ = 3. On the right, a piece of the first one's grid, with lines through every voxel; a magenta dot means that the map folds there (section 2).

# %% tags=["cover"]
torn = refine(moving, fixed, smoothness=0, weight=0)  # (1, 2, 112, 96)
calm = refine(moving, fixed, smoothness=0, weight=3)
figure = Figure(figsize=(14, 4), layout="constrained")
axes = figure.subplots(1, 4)
looks = {"fixed": fixed, "warped, λ = 0": warp(moving, torn), "warped, λ = 3": warp(moving, calm)}
for ax, (name, image) in zip(axes, looks.items()):
    ax.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(name)
draw_grid(axes[3], torn, step=1)
axes[3].lines[-1].set_markersize(6)  # the dots
axes[3].set(xlim=(44, 56), ylim=(56, 44), title="part of the grid x + u(x), λ = 0")
for ax in axes:
    ax.set(xlabel="j (voxels)", ylabel="i (voxels)")
show(
    figure,
    alt="Three brain slices that look alike: the fixed image and two warped ones. The grid of the "
    "registration without a penalty, enlarged, is a tangle whose lines cross, full of magenta dots.",
)

# %% [markdown]
# ## 1 · A perfect match
#
# **Predict**: these people are synthetic, so the true displacement is known. "Doing nothing" is 1.4 voxels from it, averaged over the brain. Without a penalty nothing stands in the way of the match: how far off is it then: nearest to 0.2, to 0.7 or to 2.5 voxels?


# %%
def report(name, u, pair):
    """Correlation, mean Dice of the tissues, and distance to the truth over the brain."""
    ours = warp(pair.moving_labels, u, mode="nearest")
    r = float(correlation(warp(pair.moving, u), pair.fixed))
    overlap = float(dice(ours, pair.fixed_labels).mean())
    off = float(endpoint_error(u, pair.displacement, mask=pair.fixed_labels > 0))
    print(f"{name:12} correlation {r:.4f}   Dice {overlap:.2f}   off by {off:.1f} voxels")
    return r, overlap, off


nothing = report("identity", torch.zeros_like(truth), pair)
free = report("λ = 0", torn, pair)
kept = report("λ = 3", calm, pair)
assert free[0] > 0.998 and free[0] > kept[0] and free[1] > nothing[1] + 0.05
assert abs(nothing[2] - 1.4) < 0.1 and free[2] > 1.7 and kept[2] < 0.6

# %% [markdown]
# The best correlation of the three, a Dice well above the identity's, and **farther from the truth than doing nothing**. Each voxel has found a place that looks right, somewhere near. Only the grid gives it away. For a patient nobody knows the truth; so this lesson turns the look of the grid into a number, and asks how to keep it small.
#
# ## 2 · What becomes of one voxel
#
# Take the unit square between a voxel and its neighbors. Where does $\varphi(x) = x + u(x)$ put it? Its edge down the rows becomes $\partial \varphi / \partial i$, its edge along the columns $\partial \varphi / \partial j$: near $x$ the square becomes a parallelogram. These two edges are the columns of the **Jacobian**
#
# $$J = \begin{pmatrix} 1 + \partial u_0 / \partial i & \partial u_0 / \partial j \\ \partial u_1 / \partial i & 1 + \partial u_1 / \partial j \end{pmatrix}, \qquad J_{ab} = \delta_{ab} + \frac{\partial u_a}{\partial x_b},$$
#
# where $\delta_{ab}$ is 1 for $a = b$ and 0 otherwise: the derivative of the identity. The area of the parallelogram is the size of the **determinant**, $\det J = J_{00} J_{11} - J_{01} J_{10}$. Its sign says on which side of the first edge the second lies: negative means turned over.
#
# **Predict** the four determinants from the drawings: a rotation by 30°, a scaling by 1.5, a shear, a mirror.

# %%
c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
matrices = {
    "rotation": [[c, -s], [s, c]], "scaling": [[1.5, 0], [0, 1.5]],
    "shear": [[1, 0.6], [0, 1]], "mirror": [[1, 0], [0, -1]],
}  # fmt: skip
square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])  # corners (i, j)
figure = Figure(figsize=(12, 3.4), layout="constrained")
for ax, (name, J) in zip(figure.subplots(1, 4), matrices.items()):
    i, j = np.array(J) @ square.T  # where the corners go
    ax.fill(square[:, 1], square[:, 0], color="0.8")
    ax.fill(j, i, color="#56b4e9", alpha=0.5)
    ax.plot(j[:2], i[:2], color="#d55e00", linewidth=4, label="∂φ/∂i")
    ax.plot(j[[0, 3]], i[[0, 3]], "--", color="#0072b2", linewidth=4, label="∂φ/∂j")
    ax.set(title=name, xlabel="j (voxels)", aspect="equal")
    ax.set(xlim=(-1.2, 1.8), ylim=(1.8, -0.7), ylabel="i (voxels)")
ax.legend(loc="lower right")
show(
    figure,
    alt="A gray unit square and what becomes of it: turned, one and a half times as wide and high, "
    "slanted, and mirrored to the other side of its first edge.",
)

# %% tags=["nbval-check-output"]
shape = (24, 30)
for name, J in matrices.items():
    u = affine_displacement(torch.tensor([[[*J[0], 0], [*J[1], 0]]]).float(), shape)
    det = jacobian_determinant(u)  # (1, 24, 30)
    print(f"{name:9} {float(det.mean()):5.2f} at every voxel")
    assert torch.allclose(det, torch.tensor(float(np.linalg.det(J))), atol=1e-4)
cube = affine_displacement(1.5 * torch.eye(3, 4)[None], (6, 7, 8))
print(f"in 3D, scaling by 1.5: {float(jacobian_determinant(cube).mean()):.3f}")
assert torch.allclose(jacobian_determinant(cube), torch.tensor(1.5**3), atol=1e-3)

# %% [markdown]
# Rotations and shears keep the area; scaling by $s$ gives $s^D$ in $D$ dimensions. A determinant of 0 flattens the voxel to a line or a point, and a negative one turns it inside out: both are **folds**. No tissue does that. So report the fraction of voxels with $\det J \le 0$: `folding_fraction`.

# %%
for name, u in {"λ = 0": torn, "λ = 3": calm, "the true one": truth}.items():
    least = float(jacobian_determinant(u).min())
    folded = float(folding_fraction(u, mask=brain))
    print(f"{name:13} folded: {folded:4.0%} of the brain, smallest determinant {least:5.1f}")
assert folding_fraction(torn, mask=brain) > 0.15
assert folding_fraction(calm) == folding_fraction(truth) == 0

# %% [markdown]
# ## 3 · Fields whose folds are known
#
# A program that counts folds is tried on fields with a known answer. Let the columns move by a wave, $u_1 = a \sin(k j)$, with amplitude $a$ and wave number $k = 2\pi / \text{wavelength}$. Then $\det J = 1 + a k \cos(k j)$, at least $1 - a k$: as the amplitude grows, it first reaches 0 at $a k = 1$.
#
# **Predict**: a wavelength of 32 voxels. From which amplitude on does it fold?


# %%
def wave(amplitude, wavelength=32, shape=(48, 96)):
    """(1, 2, *shape): u_1 = amplitude · sin(2π j / wavelength), in voxels."""
    j = identity_grid(shape)[1]
    push = amplitude * torch.sin(2 * torch.pi * j / wavelength)
    return torch.stack([torch.zeros_like(push), push])[None]


k = 2 * np.pi / 32
print(f"1/k = {1 / k:.3f} voxels")
for a in (5.0, 5.11, 5.2):
    measured = float(jacobian_determinant(wave(a)).min())
    print(f"a = {a:.2f}: 1 − a k = {1 - a * k:+.4f}, smallest determinant found {measured:+.4f}")
assert (folding_fraction(wave(5.2)) > 0) and (folding_fraction(wave(5.0)) == 0)
assert 1 - 5.11 * k < 0 and folding_fraction(wave(5.11)) == 0

# %% [markdown]
# The amplitude may reach a wavelength over $2\pi$, 5.09 voxels. But at 5.11 the map folds and our program does not see it: a difference over two voxels is flatter than the steepest slope between them.
#
# **Predict**: which of the next two folds? On the left, each circle around the center turns by its own angle. On the right, the recipe of lesson 11's swirl, turned further and narrower: a rotation's displacement, multiplied by a bell.

# %%
grid = identity_grid((112, 96)) - torch.tensor([55.5, 47.5]).view(2, 1, 1)  # from the center
bell = torch.exp(-grid.square().sum(0) / (2 * 15**2))  # (112, 96)
angle = 2.8 * bell  # up to 2.8 rad, 160°
turned = torch.stack([
    angle.cos() * grid[0] - angle.sin() * grid[1],
    angle.sin() * grid[0] + angle.cos() * grid[1],
])  # fmt: skip
twist = (turned - grid)[None]  # (1, 2, 112, 96)
c, s = np.cos(2.8), np.sin(2.8)
faded = bell * affine_displacement(torch.tensor([[[c, -s, 0], [s, c, 0]]]).float(), (112, 96))
show(
    fields({"each circle turns": twist, "a rotation, faded out": faded}, step=4),
    alt="Left, a grid wound up like a whirlpool whose determinant is nearly white everywhere. "
    "Right, a grid pulled to its middle, and around the middle a magenta ring between blue ones.",
)
off_by = float((jacobian_determinant(twist) - 1).abs().max())
print(f"left: det within {off_by:.3f} of 1;  right: {float(folding_fraction(faded)):.0%} folded")
assert off_by < 0.1 and folding_fraction(faded) > 0.005

# %% [markdown]
# The wild one keeps all areas: circles slide along themselves. The other one has the same 160° at its center and folds.
#
# ## 4 · The count depends on who differences
#
# The library takes **central** differences, $\bigl(u(x + e_b) - u(x - e_b)\bigr) / 2$ with $e_b$ one step along axis $b$, and **one-sided** ones at the border, where a neighbor is missing: `torch.gradient(u, dim=(2, 3))` does both, and returns the slopes along the rows and those along the columns. Others take forward or backward differences everywhere.
#
# The grid's lines cut the image into cells, with a voxel at each corner. At each corner two edges of the cell meet, and give a determinant. At the upper left one they lead to the next voxel down and the next one to the right: that voxel's *forward* differences. At the lower right one they are *backward* differences.
#
# **Predict**: the arrows alternate like the fields of a checkerboard, $u_1 = \pm 0.8$. Neighbors overtake each other. What is the central determinant inside?


# %%
def corners(u):
    """(1, 2, H, W) -> (4, H − 1, W − 1): det J at each cell's corners, upper left one first."""
    phi = identity_grid(u.shape[2:]) + u[0]  # (2, H, W)
    down, right = phi.diff(dim=1), phi.diff(dim=2)  # a cell's edges
    return torch.stack([
        a[0] * b[1] - a[1] * b[0]
        for a in (down[:, :, :-1], down[:, :, 1:])                      # left edge, right edge
        for b in (right[:, :-1], right[:, 1:])                          # upper edge, lower edge
    ])  # fmt: skip


i, j = identity_grid((24, 30))
checkerboard = torch.stack([0 * i, 0.8 * (-1) ** (i + j)])[None]
softer = refine(moving, fixed, smoothness=0, weight=0.3)
for name, u in {"checkerboard": checkerboard, "λ = 0.3": softer}.items():
    det, four = jacobian_determinant(u)[0, 1:-1, 1:-1], corners(u)
    # the first counts voxels, the other two cells
    counts = {"central": det, "forward": four[0], "any corner": four.amin(0)}
    print(f"{name:13}", {how: f"{float((d <= 0).float().mean()):.1%}" for how, d in counts.items()})

# %%
# The sentences below about these counts, and that a cell's four corners lie in a plane:
assert torch.allclose(jacobian_determinant(checkerboard)[0, 1:-1, 1:-1], torch.ones(22, 28))
assert 0.45 < (corners(checkerboard)[0] <= 0).float().mean() < 0.55
four, central = corners(softer), folding_fraction(softer)
assert (four[0] <= 0).float().mean() > 1.3 * central  # forward counts more
assert (four.amin(0) <= 0).float().mean() > 1.7 * central  # and any corner the most
assert torch.allclose(four[0] + four[3], four[1] + four[2], atol=1e-3)

# %% [markdown]
# Central differences skip the voxel in the middle, so an alternating field is flat to them: determinant 1, while by forward differences half of it folds. On a real result the counts differ too. **A folding number without its differences cannot be compared** with another paper's.
#
# Which one is right? Between the voxels of a 2D field we interpolate linearly, and inside a cell the determinant then changes linearly too. So it is smallest at a corner, and a cell is free of folds exactly if its four corners are above 0: for the interpolated map the strictest count is the true one. (In 3D positive corners are necessary, and not quite enough.)
#
# **And no fold at all: is the map then invertible?** Bend a strip of 24 × 200 voxels into a ring; 160 columns go once around.

# %%
i, j = identity_grid((24, 200))
around, radius = 2 * torch.pi * j / 160, 44 - i
phi = torch.stack([radius * around.cos(), -radius * around.sin()]) + 50
ring = (phi - identity_grid((24, 200)))[None]  # (1, 2, 24, 200)
gap = float((phi[:, :, 0] - phi[:, :, 160]).norm(dim=0).max())
least = float(torch.minimum(jacobian_determinant(ring).min(), corners(ring).min()))
print(f"smallest determinant {least:.2f}; columns 0 and 160 land {gap:.4f} voxels apart")
assert least > 0.5 and gap < 1e-3
figure = Figure(figsize=(4, 4), layout="constrained")
ax = figure.subplots()
draw_grid(ax, ring, step=4)
ax.plot(*phi[:, ::4, 160:].flip(0).reshape(2, -1, 40).swapaxes(1, 2), color="#d55e00", linewidth=2)
ax.set(xlim=(0, 100), ylim=(100, 0), xlabel="j (voxels)", ylabel="i (voxels)")
show(
    figure,
    alt="A grid bent to a ring. The rows of its last 40 columns, in orange, lie on its first "
    "columns for a quarter of the circle. No fold is marked.",
)

# %% [markdown]
# Not one fold, by any count, and the last 40 columns (orange) lie on the first ones. The determinant is a **local** test: it does not see that two distant places meet.
#
# ## 5 · Asking for smoothness
#
# A count has no slope to descend. So registration adds one of two smooth relatives to its loss.
#
# **Diffusion** punishes slopes: the mean of all squared differences $(\partial u_a / \partial x_b)^2$ between neighbors. **Bending energy** punishes changes of slope: the squared second derivatives, summed over all pairs of axes, averaged over components and voxels. For the wave $a \sin(kj)$ the first is near $a^2 k^2 / 8$ in 2D, the second near $a^2 k^4 / 4$.
#
# **Predict**: which of these fields are free of charge? Two waves have the same slope: do they cost the same?


# %%
def linear(*rows):
    """The displacement of x → A x about the center, on 64 × 96 voxels."""
    return affine_displacement(torch.tensor([[[*row, 0] for row in rows]]).float(), (64, 96))


samples = {
    "shift by 50": torch.full((1, 2, 64, 96), 50.0),
    "scaling by 1.1": linear((1.1, 0), (0, 1.1)),
    "rotation by 30°": linear((0.866, -0.5), (0.5, 0.866)),
    "mirror": linear((1, 0), (0, -1)),
    "wave, 4 by 32": wave(4, 32, (64, 96)),
    "wave, 1 by 8": wave(1, 8, (64, 96)),
}
cost = {name: (float(diffusion(u)), float(bending_energy(u))) for name, u in samples.items()}
for name, (first, second) in cost.items():
    print(f"{name:16} diffusion {first:.4f}   bending {second:.5f}")

# %%
# What the formulas and the sentences below say of these costs:
assert cost["shift by 50"] == (0, 0)
assert abs(cost["scaling by 1.1"][0] - 2 * 0.1**2 / 4) < 1e-5
assert all(cost[name][1] < 1e-7 for name in ("scaling by 1.1", "rotation by 30°", "mirror"))
assert cost["rotation by 30°"][0] > 0.1 and folding_fraction(samples["mirror"]) == 1
for name, a, wavelength in (("wave, 4 by 32", 4, 32), ("wave, 1 by 8", 1, 8)):
    k = 2 * np.pi / wavelength
    expected = (a**2 * k**2 / 8, a**2 * k**4 / 4)
    assert all(0.85 < found / theory < 1.05 for found, theory in zip(cost[name], expected))
assert cost["wave, 1 by 8"][1] > 10 * cost["wave, 4 by 32"][1]

# %% [markdown]
# Diffusion leaves only **shifts** free, and charges a turned head for its turn. Bending leaves every **affine** map free, which is what you want after a poor affine step. But neither knows what a fold is: the mirror, which folds everywhere, has no bending at all. And short waves: with equal slopes diffusion hardly tells the two apart, while bending charges the short one sixteen times as much by the formula.
#
# **Sum or mean?** The weight λ has no meaning without the answer. Here is the same map on a grid twice as fine, where its displacements are twice as many voxels:

# %%
coarse, fine = wave(4, 32, (64, 96)), wave(8, 64, (128, 192))
ratios = {
    "diffusion, mean": diffusion(fine) / diffusion(coarse),
    "diffusion, sum": diffusion(fine) * fine.numel() / (diffusion(coarse) * coarse.numel()),
    "bending, mean": bending_energy(fine) / bending_energy(coarse),
}
print({name: round(float(ratio), 2) for name, ratio in ratios.items()})
for ratio, expected in zip(ratios.values(), (1, 4, 0.25)):
    assert abs(ratio - expected) < 0.05 * expected

# %% [markdown]
# A mean of slopes stays, a sum grows with the number of voxels, and bending shrinks with their size. A weight is right for its definition and its grid.
#
# ## 6 · Play: the knob
#
# Now real images: Colin against the template at half size, registered 18 times. Nobody knows the true displacement, as with any patient.
#
# **Play**: go from the largest weight (10² = 100) to the smallest (0.01). Which weight would you choose by Dice alone? Which is the smallest without any fold in the brain, and how much Dice does it cost? Does bending change the answer? (Without a slider: the two rows printed below the answer.)

# %%
weights = [10 ** (n / 2) for n in range(-4, 5)]  # 0.01, 0.032, … 100
colin = halve(brains.real_pair())


def sweep(pair, regularizer, weights):
    """{weight: the displacement found with it}"""
    found = {}
    for weight in weights:
        found[weight] = refine(
            pair.moving, pair.fixed, smoothness=0, regularizer=regularizer, weight=weight
        )
    return found


by_diffusion, by_bending = (
    sweep(colin, penalty, weights) for penalty in (diffusion, bending_energy)
)
explorer = regularity_explorer(colin, by_diffusion, by_bending)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# By Dice, one of the small weights: with diffusion it stays near 0.78 from 0.3 down, while the folds grow from 2 % to 11 % of the brain. The smallest weight without a fold in the brain is 3.2 (log₁₀ λ = 0.5); there Dice is 0.70. The last 0.08 of Dice are paid for with tissue turned inside out.
#
# Bending does not change the answer: most Dice and most folds at small weights, no folds from 3.2 on, where Dice is 0.69. (The same weight by chance: the two penalties count different things.)
#
# </details>


# %%
def overlap_and_folds(pair, u):
    ours = warp(pair.moving_labels, u, mode="nearest")
    folded = folding_fraction(u, mask=pair.fixed_labels > 0)
    return float(dice(ours, pair.fixed_labels).mean()), float(folded)


for found in (by_diffusion, by_bending):
    seen = {weight: overlap_and_folds(colin, u) for weight, u in found.items()}
    (most, torn_share), (left, folds_left) = seen[weights[0]], seen[weights[5]]
    assert max(seen, key=lambda weight: seen[weight][0]) < 0.4 and torn_share > 0.06
    assert folds_left < 0.0005 < 0.001 < seen[weights[4]][1] and most - left > 0.06
    print({round(w, 2): f"Dice {d:.2f}, folded {f:.1%}" for w, (d, f) in list(seen.items())[::2]})
    print(f"    without folds, {weights[5]:.2f}: Dice {left:.2f}")

# %% [markdown]
# Dice prefers the folds here. Colin's labels were made from intensities, so whatever matches intensities matches labels. But perhaps the folded result *is* nearer to the truth?
#
# ## 7 · Which weight was right?
#
# For the synthetic pair of the beginning we can ask.
#
# **Predict**: among the same nine weights, where does the best correlation lie? Where the best Dice? Where is the field nearest to the true one?

# %%
known = sweep(pair, diffusion, weights)
rows = []
for u in known.values():
    r = float(correlation(warp(moving, u), fixed))
    off = float(endpoint_error(u, truth, mask=brain))
    rows.append((r, *overlap_and_folds(pair, u), off))
match, overlap, folded, off = np.array(rows).T  # (9,) each
figure = Figure(figsize=(12, 3), layout="constrained")
panels = {"correlation": match, "mean Dice": overlap, "folded (% of the brain)": 100 * folded,
          "off the truth (voxels)": off}  # fmt: skip
for ax, (name, values) in zip(figure.subplots(1, 4), panels.items()):
    ax.semilogx(weights, values, "o-", color="#0072b2")
    best = values.argmin() if "truth" in name else values.argmax()
    if "folded" not in name:
        ax.plot(weights[best], values[best], "s", color="#d55e00", markersize=10)
    ax.set(xlabel="weight λ", ylabel=name)
show(
    figure,
    alt="Four curves over the weight. The correlation falls all the way; Dice has a summit near 1; "
    "folds fall to zero at 3; the distance to the truth has a valley between 1 and 3.",
)

# %%
# The same in numbers, and the sentences below:
for n in (0, 2, 4, 5, 6, 8):
    print(f"λ = {weights[n]:6.2f}: correlation {match[n]:.4f}, Dice {overlap[n]:.2f}, "
          f"folded {folded[n]:.2%}, off by {off[n]:.2f} voxels")  # fmt: skip
assert match.argmax() == 0 and off.argmin() in (4, 5) and overlap.argmax() in (3, 4, 5)
assert off[0] > 1.3 and off.min() < 0.45 and off[8] > 1
assert abs(overlap[2] - overlap[6]) < 0.02 and off[2] > 1.5 * off[6]
assert folded[2] > 0.005 and folded[6] == 0

# %% [markdown]
# Orange marks the best match, the best Dice and the nearest field. The field is nearest to the truth between 1 and 3: not at the best match (0.01), and not at the smoothest (100). Both ends are about as bad as doing nothing. Here Dice has its summit in the same region, since here the fixed labels are the moving ones, deformed by the true field: a good field brings them together again.
#
# But compare 0.1 with 10. **Their Dice is the same within 0.02; one is nearly twice as far from the truth**, and the folds say which. So report both, overlap and folds. And zero folds is no goal by itself: the weight 100 has none either.
#
# ## Common mistakes
#
# **The identity forgotten.** The determinant of $\partial u / \partial x$ instead of $I + \partial u / \partial x$: a shift, which changes nothing, counts as folded everywhere. Thread: [SYMNet#18](https://github.com/cwmok/Fast-Symmetric-Diffeomorphic-Image-Registration-with-Convolutional-Neural-Networks/issues/18); what to differentiate, and by which code, was asked in [voxelmorph#205](https://github.com/voxelmorph/voxelmorph/issues/205) and [#82](https://github.com/voxelmorph/voxelmorph/issues/82).
#
# **The logarithm taken for the determinant.** Where the area shrinks, $\log \det J$ is negative, and that is no fold: [ANTs#829](https://github.com/ANTsX/ANTs/issues/829) ("nearly half of the values are negative").
#
# **< for ≤.** A fold has $\det J \le 0$, "non-positive"; a caption that says "non-negative" tells the opposite: [voxelmorph#436](https://github.com/voxelmorph/voxelmorph/issues/436). Some programs set negative determinants to 0 (`create_jacobian_determinant_image` of ANTsPy 0.6.3 does); `<` then finds no fold at all.
#
# **Another unit.** Displacement and distance must be in the same unit. In mm, differenced by voxels, a wave that does not fold seems to; in `grid_sample`'s units from −1 to 1 the torn field seems not to (below). A count of exactly 0 deserves more suspicion than a small one.
#
# **Field and Jacobian confused.** The survey that this course follows divides the "deformation field" into the displacements and a *matrix at each voxel, "also called the Jacobian matrix"*. The Jacobian is the field's derivative. A shift tells them apart: it moves every voxel, and its Jacobian is the identity. The survey also lets $\varphi$ lead from moving to fixed, while its warp, $\text{moving}(\varphi(x))$, needs one from fixed to moving; and it counts folds by the determinant of $D\varphi^{-1}$, though where $\varphi$ folds there is no inverse. So say which map you differentiate. Ours is $\varphi$, from fixed to moving.
#
# **The penalty on the wrong thing.** The loss that the survey describes is given the warped image and the fixed one, and no field: smoothness is asked of the *image*. The two warped images of the first picture are about equally smooth; the two fields are not.

# %%
shift = torch.full((1, 2, 24, 30), 50.0)
print("J of a shift by 50 voxels:", jacobian(shift)[0, :, :, 5, 5].tolist())
only_slopes = jacobian(shift)[0] - torch.eye(2).view(2, 2, 1, 1)  # ∂u/∂x of a shift
share = only_slopes[0, 0] * only_slopes[1, 1] - only_slopes[0, 1] * only_slopes[1, 0] <= 0
logs = jacobian_determinant(calm).log()
print(f"a shift without the identity: {float(share.float().mean()):.0%} 'folded'")
print(f"log det J < 0 in a field without folds: {float((logs < 0).float().mean()):.0%}")
assert share.all() and 0.3 < (logs < 0).float().mean() < 0.7

# %%
in_mm = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)  # voxels of 1 × 3 mm
in_units = 2 / (torch.tensor([112.0, 96.0]).view(1, 2, 1, 1) - 1)
gentle = wave(3, 32, (112, 96))
folds = {
    "wave": gentle, "wave in mm": gentle * in_mm, "torn": torn, "torn in −1 … 1": torn * in_units,
}  # fmt: skip
folds = {name: float(folding_fraction(u)) for name, u in folds.items()}
print("folded, of the whole image:", {name: f"{share:.0%}" for name, share in folds.items()})
assert folds["wave"] == 0 and folds["wave in mm"] > 0.1 and folds["torn in −1 … 1"] < 0.001
assert folds["torn"] > folding_fraction(torn, mask=brain) + 0.02
roughness = [
    float(sum(warp(moving, u).diff(dim=d).square().mean() for d in (2, 3))) for u in (torn, calm)
]
print(f"roughness, torn over calm: image {roughness[0] / roughness[1]:.1f}, "
      f"field {float(diffusion(torn) / diffusion(calm)):.0f}")  # fmt: skip
assert roughness[0] < 2 * roughness[1] and diffusion(torn) > 100 * diffusion(calm)

# %% [markdown]
# **Another number under the same name.** A table's "Jacobian determinant" may be its standard deviation over the image: [RCN#15](https://github.com/microsoft/Recursive-Cascaded-Networks/issues/15), [#53](https://github.com/microsoft/Recursive-Cascaded-Networks/issues/53). It says how uneven the volumes are, not how many voxels fold.
#
# ## Check yourself
#
# <details><summary>1. At a voxel, det J = 0.5. Does the tissue there appear larger or smaller in the warped image than in the moving one?</summary>
#
# Larger, twice as large. $\varphi$ goes from fixed to moving: one voxel of the warped image covers half a voxel of the moving one, so what is there is spread over more voxels. It is pull-back again.
#
# </details>
#
# <details><summary>2. A paper reports 0 folded voxels. What do you ask?</summary>
#
# Which differences; whether ≤ or <; in which unit the field was when it was differenced; with the identity or without; over the whole image or a mask (the background changes the fraction: our torn field folds more of the image than of the brain); and which map, $\varphi$ or its inverse.
#
# </details>
#
# <details><summary>3. You add so much bending energy that it is nearly 0 in the result. Can the result still fold?</summary>
#
# Yes: zero bending leaves affine maps, and a mirror is one. A descent that starts from the identity will hardly get there, since it would have to take every voxel through a determinant of 0; but the penalty does not forbid it.
#
# </details>

# %%
# Answer 1, on a patch of 128 voxels:
half = linear((0.5, 0), (0, 1))  # det J = 0.5
assert torch.allclose(jacobian_determinant(half), torch.tensor(0.5), atol=1e-5)
dot = torch.zeros(1, 1, 64, 96)
dot[..., 28:36, 40:56] = 1
assert warp(dot, half).sum() > 1.8 * dot.sum()  # appears twice as large

# %% [markdown]
# ## Take away
#
# - $\det J$ of $J = I + \partial u / \partial x$ is the area (volume) that becomes of one voxel; at 0 and below the map folds.
# - A fraction of folds belongs to its differences, its unit, its mask. Zero folds is evidence, not proof: cells between the voxels and distant places escape.
# - The best match is at the smallest weight, with torn grids; Dice may go along with it.
# - Diffusion leaves shifts free, bending affine maps; neither knows folds, and both need "sum or mean" to be said.
# - The best weight lies between the best match and the smoothest field; overlap and folds together say where.
#
# **Go further**
# - D. Rueckert, L. I. Sonoda, C. Hayes, D. L. G. Hill, M. O. Leach, D. J. Hawkes, "Nonrigid registration using free-form deformations: application to breast MR images", IEEE Transactions on Medical Imaging 18(8), 1999: the bending energy in registration.
# - E. Haber, J. Modersitzki, "Image registration with guaranteed displacement regularity", International Journal of Computer Vision 71(3), 2007: folds forbidden by constraint.
# - Y. Liu, J. Chen, S. Wei, A. Carass, J. Prince, "On finite difference Jacobian computation in deformable image registration", International Journal of Computer Vision, 2024: section 4, with proofs and in 3D.
#
# Next: the exercise [exercises/14_folding_and_regularity.ipynb](../exercises/14_folding_and_regularity.ipynb).

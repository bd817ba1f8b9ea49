# %% [markdown]
# # 11 · Displacement fields: arrows that say where to look
#
# At the end of this lesson you read any deformation as an array of arrows, and you know with a slider in your hand how far one can push a brain before it folds.
#
# **Reading**: 35 minutes · **Running**: about 5 seconds on a laptop · **Before this**: lessons 00, 01 and 10.
#
# **You will be able to**
# - *predict* where a feature of the moving image appears after a warp,
# - *implement* the identity grid, a warp by whole voxels and the motion of points,
# - *diagnose* a wrong composition of two displacements,
# - *derive* the inverse of a displacement in one dimension.

# %%
import numpy as np
import torch

from course_lib import setup
from course_lib.datasets import brains
from course_lib.metrics import folding_fraction
from course_lib.plotting import arrows, curves, fields, images, show
from course_lib.spatial import affine_displacement, compose, identity_grid, jacobian_determinant
from course_lib.spatial import smooth, warp, warp_points
from course_lib.widgets import bump_displacement, deformation_explorer

course = setup()
brain = brains.real_pair().fixed

# %% [markdown]
# Here is where we are going: a field of arrows on a brain, and the brain that comes out when every voxel fetches its value from where its arrow ends.

# %% tags=["cover"]
shape = brain.shape[2:]                                                 # (224, 192)
center = torch.tensor([111.5, 95.5]).view(1, 2, 1, 1)
distance = (identity_grid(shape) - center).square().sum(1, keepdim=True)
swirl = affine_displacement(torch.tensor([[[0.6, -0.8, 0.0], [0.8, 0.6, 0.0]]]), shape)
swirl = swirl * torch.exp(-distance / (2 * 30**2))                      # (1, 2, 224, 192)
show(
    arrows(swirl, brain, step=12, title="a displacement field"),
    alt="Arrows on an axial brain slice turn around its middle.",
)
show(
    images({"moving": brain, "warped": warp(brain, swirl)}),
    alt="A brain slice, and the same slice twisted around its middle.",
)

# %% [markdown]
# ## 1 · Where is a voxel? The identity grid
#
# A voxel of a 2D image has two indices: the row $i$, counted downwards, and the column $j$, counted to the right. The **identity grid** is the array of all these coordinates: at voxel $x = (i, j)$ it holds $(i, j)$ itself. Channel 0 holds the rows, channel 1 the columns.
#
# **Predict**: an image has 3 rows and 5 columns. What is the shape of its identity grid, and what stands at `grid[:, 2, 3]`?

# %% tags=["nbval-check-output"]
grid = identity_grid((3, 5))                                            # (2, 3, 5)
print("shape:", tuple(grid.shape), "  at [:, 2, 3]:", grid[:, 2, 3].tolist())
print("rows:\n", grid[0].int().numpy(), "\ncolumns:\n", grid[1].int().numpy(), sep="")
assert grid.shape == (2, 3, 5) and grid[:, 2, 3].tolist() == [2, 3]

# %% [markdown]
# **Two habits collide here.** Arrays are indexed $(i, j)$: row first. Pictures and plotting functions speak of $(x, y)$: column first. Arrays and this course use the first order; `torch.nn.functional.grid_sample` uses the second, `numpy.meshgrid` too unless you ask for `indexing="ij"`. A displacement written by one program and read by another in the wrong order is a bug that everybody meets once; the picture of it is in "Common mistakes" below.

# %% [markdown]
# ## 2 · A displacement says where to look
#
# A **displacement field** $u$ gives each voxel $x$ of the *fixed* grid an arrow, in voxels. Its end is the position $\varphi(x) = x + u(x)$. The **warp** fills the voxel $x$ with the value that the moving image has there:
#
# $$\text{warped}(x) = \text{moving}\bigl(x + u(x)\bigr)$$
#
# In arrays: $u$ is `(B, D, *spatial)`, batch first, then $D$ = 2 or 3 channels; channel $d$ moves along axis $d$.
#
# **Predict**: the moving image is black, with a bright dot at row 5, column 3. Let $u(x) = (2, 0)$ everywhere. The arrows point down. Does the dot move down, or up?

# %% tags=["nbval-check-output"]
moving = torch.zeros(1, 1, 9, 7)
moving[0, 0, 5, 3] = 1
u = torch.zeros(1, 2, 9, 7)
u[:, 0] = 2                                                             # two voxels down the rows
warped = warp(moving, u)
row, column = (warped[0, 0] > 0.5).nonzero()[0].tolist()
print(f"the dot was at (5, 3) and is at ({row}, {column})")
assert (row, column) == (3, 3)

# %%
show(
    arrows(u, moving, step=3, title="moving, and where voxels look"),
    alt="A black image with one bright dot, and arrows two voxels long that point down; the one "
    "that starts at row 3 ends on the dot.",
)
show(
    images({"moving": moving, "warped": warped}),
    alt="The dot at row 5 in the moving image, and at row 3 in the warped image.",
)

# %% [markdown]
# It moved **up**, against the arrows. The voxel (3, 3) looks two rows further down, at (5, 3), and finds the dot there. An arrow does not say where a value *goes*, it says where it *comes from*. This is called **pull-back** (or backward warping).
#
# Why so roundabout? Because every voxel of the result gets exactly one value. If values were thrown along the arrows instead, some voxels would get two, and others none. The next cell throws them (you need not read its code), and beside it fetches along the opposite arrows, which moves the content nearly the same way:

# %%
torch.manual_seed(0)
u_random = smooth(150 * torch.randn(1, 2, *shape), 10)
landing = (identity_grid(shape) + u_random[0]).round().long()           # where each voxel is thrown
inside = (landing[0] >= 0) & (landing[0] < 224) & (landing[1] >= 0) & (landing[1] < 192)
i, j = landing[:, inside]
hits = torch.zeros(shape).index_put((i, j), torch.ones(len(i)), accumulate=True)
landed = torch.zeros(shape).index_put((i, j), brain[0, 0, inside], accumulate=True)
thrown = landed / hits.clamp(min=1)                                     # the mean of what landed
print(f"voxels that nothing lands on: {float((hits == 0).float().mean()):.0%}")
assert 0.10 < (hits == 0).float().mean() < 0.45
show(
    images({"thrown along u": thrown[None, None], "fetched along −u": warp(brain, -u_random)}),
    alt="Left, a deformed brain riddled with black holes; right, nearly the same deformation "
    "without holes.",
)

# %% [markdown]
# ## 3 · From a loop to tensors
#
# Here is the warp for displacements of whole voxels, as slow and as plain as it can be. Read it as a definition: it leaves no doubt about axes, signs and borders.

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


assert torch.allclose(warp_by_loop(moving, u), warp(moving, u), atol=1e-5)

# %% [markdown]
# The loop visits 43,008 voxels of a brain slice one by one. With tensors, all positions `identity_grid(shape) + u` are computed at once and the image is indexed with arrays of rows and columns. In the exercise you write that version. The library's `warp` also reads *between* voxels: it weighs the four neighbors (eight in 3D), which is lesson 12.
#
# **Predict**: after a warp by $u = (0.5, 0)$, how bright is the dot, and how many voxels does it cover?

# %% tags=["nbval-check-output"]
half = torch.zeros_like(u)
half[:, 0] = 0.5
print(warp(moving, half)[0, 0, 3:7, 3].numpy().round(2))  # rows 3 to 6 of the dot's column
assert torch.allclose(warp(moving, half)[0, 0, 4:6, 3], torch.tensor([0.5, 0.5]), atol=1e-5)

# %% [markdown]
# Half as bright, on two voxels: linear interpolation blurs. Every resampling costs some detail, a reason to warp once and not twice (section 5).

# %% [markdown]
# ## 4 · Points go the other way round
#
# Anatomists mark points, **landmarks**: the tip of a ventricle (the dark, fluid-filled chambers in the middle), a vessel fork. A point $p$ of the **fixed** image lies at $p + u(p)$ in the **moving** image. So a point follows its arrow, while the picture seems to move against it. Both are the same sentence: voxel $x$ of the warped image and position $x + u(x)$ of the moving image are the same place of the body.
#
# **Predict**: the fixed image is the warped one from above, its dot at (3, 3). Where does the point (3, 3) lie in the moving image?

# %% tags=["nbval-check-output"]
point = torch.tensor([[[3.0, 3.0]]])                                    # (B, N, D) = (1, 1, 2)
there = warp_points(point, u)[0, 0]
print("in the moving image:", there.round().tolist())
assert torch.allclose(there, torch.tensor([5.0, 3.0]), atol=1e-4)

# %% [markdown]
# | you have | you want it in | use |
# |---|---|---|
# | the moving **image** | the fixed grid | `warp(moving, u)` |
# | **points** of the fixed image | the moving image | `warp_points(points, u)`: $p + u(p)$ |
# | points of the moving image | the fixed image | the *inverse* of $\varphi$ (section 6) |
#
# If you warp landmarks with the field that warps the image and they go the wrong way, this table is what you need.

# %% [markdown]
# ## 5 · Two warps in a row
#
# First warp by $u_1$, then the result by $u_2$. Write out both pull-backs: the second looks into the first, which looks into the image,
#
# $$\text{twice}(x) = \text{once}\bigl(x + u_2(x)\bigr) = \text{moving}\bigl(x + u_2(x) + u_1(x + u_2(x))\bigr)$$
#
# so one displacement does the work of both: $u(x) = u_2(x) + u_1\bigl(x + u_2(x)\bigr)$. The field $u_1$ is read where $u_2$ has led. This is `compose(first, second)`, and its code is that formula: `second + warp(first, second, padding="border")`. The border value is used because a displacement does not stop where the image does.
#
# **Predict**: is the plain sum $u_1 + u_2$ close? Take a rotation by 40°, then a map that looks 1.3 times further out along the columns and 20.5 voxels to the right. By how much are the arrows of the sum off, on average: 1, 3 or 10 voxels?

# %%
c, s = np.cos(np.radians(40)), np.sin(np.radians(40))
rotation = affine_displacement(torch.tensor([[[c, -s, 0], [s, c, 0]]]).float(), shape)
squeeze = affine_displacement(torch.tensor([[[1, 0, 0], [0, 1.3, 20.5]]]), shape)
both = compose(rotation, squeeze)
off = (rotation + squeeze - both).norm(dim=1).mean()
print(f"the sum is off by {float(off):.0f} voxels on average")
assert off > 8

# %%
def detail(image):
    """Mean squared difference of neighboring voxels in the middle of the image."""
    middle = image[..., 50:170, 30:110]
    return float(middle.diff(dim=2).square().mean() + middle.diff(dim=3).square().mean())


twice = warp(warp(brain, rotation), squeeze)
results = {
    "warped twice": twice,
    "compose(rotation, squeeze)": warp(brain, both),
    "rotation + squeeze": warp(brain, rotation + squeeze),
    "compose(squeeze, rotation)": warp(brain, compose(squeeze, rotation)),
}
show(
    images(results),
    alt="Warping twice equals the composed field; the sum and the other order give two other "
    "pictures.",
)
errors = [float((image - twice).abs().mean()) for image in results.values()]
left = detail(twice) / detail(warp(brain, both))
print(f"detail left after two warps, compared with one: {left:.0%}")
assert errors[1] < 0.01 < 0.05 < min(errors[2:])
assert left < 0.97

# %% [markdown]
# The composed field gives the same picture as two warps, and a sharper one: it interpolates once. The sum is something else, and so is the other order: "first, then" matters.
#
# For small displacements the sum is nearly right, since $u_1$ hardly changes between $x$ and $x + u_2(x)$. That is why this bug survives so long in programs: on easy data it costs a little accuracy and raises no error.

# %% [markdown]
# ## 6 · The way back, in one dimension
#
# Where does a point $y$ of the *moving* image lie in the fixed one? We need $\varphi^{-1}$, again written as a displacement: $\varphi^{-1}(y) = y + w(y)$. The temptation is $w = -u$. In one dimension we can see what is wrong with that: $\varphi$ is a curve, and its inverse is the curve mirrored at the diagonal.

# %%
x = np.arange(60.0)
u_1d = 8 * np.exp(-((x - 28) ** 2) / (2 * 8**2))


def sample_1d(values, positions):
    """Values between the voxels, linearly; the border value outside."""
    return np.interp(positions, np.arange(len(values)), values)


show(
    curves(
        {"φ(x) = x + u(x)": (x, x + u_1d), "its mirror image, φ⁻¹": (x + u_1d, x),
         "y − u(y)": (x, x - u_1d), "diagonal": (x, x)},
        xlabel="position (voxels)", ylabel="position (voxels)",
    ),
    alt="The curve of a map bulges above the diagonal, its inverse below; y minus u of y bulges "
    "below too, but in another place.",
)  # fmt: skip

# %% [markdown]
# The mirror image's bulge sits further right: the inverse has to undo the step at the place where it *ended*, and $-u$ undoes it where it began. Put into a formula: $\varphi(y + w(y)) = y$ means $y + w(y) + u\bigl(y + w(y)\bigr) = y$, so
#
# $$w(y) = -u\bigl(y + w(y)\bigr)$$
#
# The unknown $w$ stands on both sides. Such an equation can be solved by repetition: put a guess into the right side, take what comes out as the next guess, and go on. This is a **fixed-point iteration**.
#
# **Predict**: how many repetitions until $\varphi(\varphi^{-1}(y))$ is right to a hundredth of a voxel: 3, 10 or 100?

# %% tags=["nbval-check-output"]
w, errors = np.zeros_like(u_1d), []
for _ in range(30):
    w = -sample_1d(u_1d, x + w)
    errors.append(np.abs(w + sample_1d(u_1d, x + w)).max())             # |φ(φ⁻¹(y)) − y|
needed = 1 + next(n for n, error in enumerate(errors) if error < 0.01)
steepest = np.abs(np.diff(u_1d)).max()
print(f"w = −u is off by {errors[0]:.1f} voxels; below 0.01 after {needed} repetitions")
print(f"steepest slope of u: {steepest:.2f}")
assert errors[0] > 2 and 10 <= needed <= 20 and 0.5 < steepest < 0.7

# %% [markdown]
# Each repetition shrinks the error by at least the factor of the steepest slope, $\max |u'|$, so the iteration needs that to stay below 1. Where it does not, two different things can be the matter. Let $u$ be a hill that is steep on one side:
#
# - If it **rises** faster than 1, $\varphi(x) = x + u(x)$ only stretches. The inverse exists, but *this iteration* does not find it.
# - If it **falls** faster than 1, $\varphi$ runs *backwards* there: several places of the fixed image look at the same spot, and there is no inverse to find. The map **folds**.

# %%
def hill(left, right):
    """A hill of 12 voxels at voxel 28, of width left on its left and right on its right."""
    return 12 * np.exp(-((x - 28) ** 2) / (2 * np.where(x < 28, left, right) ** 2))


rising, falling = hill(4, 15), hill(15, 4)
w = np.zeros_like(x)
for _ in range(200):
    w = -sample_1d(rising, x + w)
left_over = np.abs(w + sample_1d(rising, x + w)).max()
mirrored = np.interp(x, x + rising, x) - x                              # the curve, mirrored
left_by_mirror = np.abs(mirrored + sample_1d(rising, x + mirrored)).max()
print(f"steep rise: the iteration is off by {left_over:.0f} voxels, mirroring by {left_by_mirror:.2f}")
backwards = int((np.diff(x + falling) < 0).sum())
print(f"steep fall: φ runs backwards over {backwards} voxels")
assert left_over > 5 and left_by_mirror < 0.1
assert (np.diff(x + rising) > 0).all() and backwards > 3

# %%
show(
    curves(
        {"steep rise: stretches": (x, x + rising), "steep fall: folds": (x, x + falling),
         "diagonal": (x, x)},
        xlabel="x (voxels)", ylabel="φ(x) (voxels)",
    ),
    alt="Two curves: one rises steeply and then slowly; the other rises slowly, falls over some "
    "voxels, and rises again.",
)  # fmt: skip

# %% [markdown]
# ## 7 · Play: how far can you push before it folds?
#
# In 2D and 3D the slope becomes a matrix, the **Jacobian** $J = I + \partial u / \partial x$, estimated by differences between neighboring voxels. Its determinant says how much area or volume changes, and where it is 0 or less the map folds (lesson 14). The explorer adds a smooth bump to the columns, $u(x) = a \, e^{-|x - c|^2 / 2 s^2}$, with amplitude $a$ and smoothness $s$ in voxels; the position moves its center $c$ from left to right. It shows the warped image, the grid $x + u(x)$ and the determinant; folded voxels turn magenta. Where the grid bulges to the right, voxels *look* to the right, so the brain's content comes to the left.
#
# **Play**: set the smoothness to 10, then find the largest amplitude that does not fold. Do the same for 20. Which rule connects them?

# %%
explorer = deformation_explorer(brain)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# 16.5 for a smoothness of 10, and 33 for 20: the largest amplitude is 1.65 times the smoothness. The steepest slope of the bump is $a\,e^{-1/2}/s$, and the fold begins where that reaches 1: $a = e^{1/2} s \approx 1.65\, s$. Twice as smooth, twice as far.
#
# </details>

# %%
for smoothness, largest in ((10, 16.5), (20, 33.0)):
    for amplitude in (largest, largest + 0.5):
        folds = float(folding_fraction(bump_displacement(shape, amplitude, smoothness, 0.5)))
        print(f"smoothness {smoothness}, amplitude {amplitude}: folded {100 * folds:.3f} %")
        assert (folds > 0) == (amplitude > largest)

# %% [markdown]
# ## Common mistakes
#
# **Channels in the wrong order.** The program that wrote the field says $(x, y)$, yours reads $(i, j)$. Nothing crashes; the brain is deformed, in the wrong direction. Threads: [voxelmorph#120](https://github.com/voxelmorph/voxelmorph/issues/120), [#213](https://github.com/voxelmorph/voxelmorph/issues/213), [#473](https://github.com/voxelmorph/voxelmorph/issues/473).
#
# **The direction.** A field that carries the moving image to the fixed one in *another* program may be the map of points from moving to fixed: the inverse. (For a small field that is nearly $-u$, so the picture below shows the wrong sign.) Threads about points that go the wrong way: [voxelmorph#84](https://github.com/voxelmorph/voxelmorph/issues/84), [#86](https://github.com/voxelmorph/voxelmorph/issues/86), [#264](https://github.com/voxelmorph/voxelmorph/issues/264).
#
# **Units.** `grid_sample` counts from −1 to 1; ITK and ANTs count in mm; we count in voxels. A field in the wrong unit is nearly zero, or enormous. The three mistakes, made on purpose:

# %%
truth = bump_displacement(shape, 14, 12, 0.5)
normalized = truth * 2 / (torch.tensor(shape).view(1, 2, 1, 1) - 1)
mistakes = {
    "right": truth,
    "channels swapped": truth.flip(1),
    "wrong sign": -truth,
    "taken for voxels\nbut in −1 … 1": normalized,
}
show(
    images({"moving": brain} | {name: warp(brain, u) for name, u in mistakes.items()}),
    alt="The right warp pulls the middle of the brain to the left; swapped channels pull it up, the "
    "wrong sign to the right, and the wrong unit changes almost nothing.",
)
show(
    fields(mistakes, step=9),
    alt="The grids of the four fields and their Jacobian determinants: a bump to the right, down, "
    "to the left, and none.",
)
assert normalized.abs().max() < 0.2 and (jacobian_determinant(truth) > 0).all()

# %% [markdown]
# **Adding where composing is meant.** Section 5. Libraries were asked for it: [MONAI#4604](https://github.com/Project-MONAI/MONAI/issues/4604).
#
# **Warping twice what could be warped once.** Each interpolation blurs:

# %%
once = warp(brain, torch.full((1, 2, *shape), 2.0))                     # 4 × 0.5 voxels in one warp
fourfold = brain
for _ in range(4):
    fourfold = warp(fourfold, torch.full((1, 2, *shape), 0.5))
print(f"detail left after four warps by half a voxel: {detail(fourfold) / detail(once):.0%}")
assert detail(fourfold) < 0.85 * detail(once)

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. The displacement is (0, −4) everywhere. Does the brain move to the left or to the right?</summary>
#
# To the right. Each voxel looks four columns to its left and shows what it finds there, so the content appears four columns further right.
#
# </details>
#
# <details><summary>2. Your field has shape (1, 160, 192, 2) and comes from a TensorFlow program. What do you ask before using it?</summary>
#
# Four things: whether the last axis holds the components (then move it to position 1); in which order they are, $(i, j)$ or $(x, y)$; in which unit, voxels, mm or −1 to 1; and in which direction the map goes. The shape answers only the first.
#
# </details>
#
# <details><summary>3. A colleague inverts a field by its negative and finds an error of 0.05 voxels. Is the method right?</summary>
#
# No, the field is smooth and small. The error of $-u$ is about $|u| \cdot |\partial u/\partial x|$: for a displacement of 1 voxel that changes by 5 % from voxel to voxel it is 0.05. With 10 voxels and a slope of 0.5 it would be 5 voxels.
#
# </details>
#
# <details><summary>4. The determinant is above 0 at every voxel. Is the map invertible?</summary>
#
# Not necessarily. The determinant is estimated at the voxels, by differences between neighbors: in between, and at the border, the map may still fold. And it looks at one place at a time: two distant places may look at the same spot with no fold near either. It is good evidence, and the usual one, but no proof.
#
# </details>

# %% [markdown]
# ## Take away
#
# - `warped(x) = moving(x + u(x))`: arrows say where to look, so content moves against them.
# - Channel $d$ belongs to array axis $d$, in voxels, on the fixed grid. Everything else is a conversion.
# - Points of the fixed image go along the arrows: $p + u(p)$.
# - Fields are composed, not added; warp once.
# - $-u$ is not the inverse; $w(y) = -u(y + w(y))$ is, and repetition finds it while the slope of $u$ stays below 1.
#
# **Go further**
# - M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu, "Spatial Transformer Networks", NeurIPS 2015: the differentiable sampler.
# - T. Beier, S. Neely, "Feature-based image metamorphosis", SIGGRAPH 1992: pull-back warping, drawn by hand.
# - M. Chen, W. Lu, Q. Chen, K. J. Ruchala, G. H. Olivera, "A simple fixed-point approach to invert a deformation field", Medical Physics 35(1), 2008.
#
# Next: the exercise [exercises/11_displacement_fields.ipynb](../exercises/11_displacement_fields.ipynb).

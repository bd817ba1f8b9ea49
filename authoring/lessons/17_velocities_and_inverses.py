# %% [markdown]
# # 17 · Velocities and inverses: follow the river, and find the way back
#
# At the end of this lesson you turn any smooth array of arrows into a map that does not fold, get its inverse for free, and know where on a grid both promises end.
#
# **Reading**: 43 minutes · **Running**: about 15 seconds on a laptop · **Before this**: lessons 11, 12 and 14.
#
# **You will be able to**
# - *implement* a step better than Euler's, scaling and squaring, and an inverse that reports its own error,
# - *predict* how many compositions an integration needs, and where it carries a point,
# - *diagnose* a velocity at half resolution whose result is wrong by a factor,
# - *find* the roughest velocity that stays free of folds.

# %%
import numpy as np
import torch
from matplotlib.figure import Figure

from course_lib import setup
from course_lib.datasets import brains
from course_lib.metrics import folding_fraction
from course_lib.plotting import curves, fields, show
from course_lib.spatial import affine_displacement, compose, identity_grid, integrate, invert
from course_lib.spatial import jacobian_determinant, resize_displacement, resize_image, smooth
from course_lib.spatial import warp, warp_points
from course_lib.widgets import bump_displacement, random_velocity, velocity_explorer

course = setup()
brain = brains.real_pair().fixed
shape = (96, 80)                                                        # of the small experiments

# %% [markdown]
# Remember the bump of lesson 11: with a smoothness of 20 voxels it folds once it pushes further than 33. Here it pushes by 60, and its arrows are used in two ways. On the left each arrow is one leap. On the right it is a *velocity*: every point follows the arrow under it for a moment, then the arrow where it has come, and so on for a unit of time.

# %% tags=["cover"]
arrows = bump_displacement(brain.shape[2:], amplitude=60, smoothness=20, position=0.5)
flow = integrate(arrows)
show(
    fields({"one leap along each arrow": arrows, "following the arrows": flow}),
    alt="Two deformed grids. The left one folds over itself in a large magenta area; the "
    "right one is squeezed there but does not fold.",
)
print(f"folded: {float(folding_fraction(arrows)):.1%} and {float(folding_fraction(flow)):.1%}")
assert folding_fraction(arrows) > 0.015 and jacobian_determinant(flow).min() > 0.05

# %% [markdown]
# The folds are gone. How does one follow arrows, and how far can one trust the result?

# %% [markdown]
# ## 1 · Follow the river
#
# As a sentence: *a point drifts with the river's velocity at the place where it is now*. As a formula:
#
# $$\frac{dx}{dt} = v\bigl(x(t)\bigr), \qquad \exp(v)(x_0) = x(1) \quad\text{for}\quad x(0) = x_0$$
#
# $x(t)$ is the place at time $t$; $v$ is the **stationary velocity field**, an array like a displacement, in voxels per unit of time, that does not change with time. $\exp(v)$ maps the place at time 0 to that at time 1; its displacement is $u(x) = \exp(v)(x) - x$.
#
# It cannot fold. A fold, where the determinant is 0 or less, puts two neighbors on one place or lets them pass each other, so on the way they must meet. But at the meeting place there is one arrow, forwards and backwards in time: they would always have traveled together. (This needs a $v$ of bounded slope, and true time instead of steps.)
#
# A computer takes $N$ straight pieces, **Euler steps**: $x \leftarrow x + v(x)/N$. For points, `warp_points` does that.
#
# **Predict**: this river turns everything about the center, a quarter turn in a unit of time. A point starts 20 voxels from the center and goes in 4 straight pieces. How far from the center is it in the end?


# %%
def turning(degrees):
    """The velocity (1, 2, 96, 80) that turns everything about the center: v(x) = A (x − c)."""
    angle = np.radians(degrees)
    A = torch.tensor([[0, -angle], [angle, 0]]).float()
    return affine_displacement(torch.cat([A + torch.eye(2), torch.zeros(2, 1)], 1)[None], shape)


def walk(points, velocity, pieces):
    """The stops of points (B, N, D) in a river: (pieces + 1, B, N, D)."""
    stops = [points]
    for _ in range(pieces):
        stops.append(warp_points(stops[-1], velocity / pieces))         # x + v(x) / pieces
    return torch.stack(stops)


# %%
center = torch.tensor([47.5, 39.5])
start = (center + torch.tensor([20.0, 0.0])).view(1, 1, 2)
walks = {pieces: walk(start, turning(90), pieces)[:, 0, 0] for pieces in (1, 4, 32)}
for pieces, stops in walks.items():
    print(
        f"{pieces:2} pieces: ends {float((stops[-1] - center).norm()):.1f} voxels from the center"
    )
ends = [float((stops[-1] - center).norm()) for stops in walks.values()]
assert abs(ends[1] - 26.6) < 0.1 and ends[0] > 37 and ends[2] < 21

# %%
figure = Figure(figsize=(6, 4.8), layout="constrained")
ax = figure.subplots()
di, dj = turning(90)[0].numpy()
ax.streamplot(np.arange(80), np.arange(96), dj, di, color="#bbbbbb", density=0.7, linewidth=0.8)
for (pieces, stops), style in zip(walks.items(), ("s-", "o--", "-")):
    ax.plot(stops[:, 1], stops[:, 0], style, markersize=4, label=f"straight pieces: {pieces}")
ax.set(xlabel="j (voxels)", ylabel="i (voxels)", xlim=(-0.5, 79.5), ylim=(95.5, -0.5))
ax.set_aspect("equal")
ax.legend(loc="upper left")
show(
    figure,
    alt="Circular streamlines. One straight piece leaves the circle at a tangent, four pieces "
    "spiral outward, thirty-two nearly follow the circle.",
)

# %% [markdown]
# 26.6 instead of 20: each straight piece leaves the circle along its tangent. With more pieces the error shrinks. For a displacement field, walk from *every* voxel; each piece reads $v$ where the walk has led so far:


# %%
def euler(velocity, pieces):
    """(B, D, *spatial) in voxels per unit of time -> the displacement at time 1, in voxels."""
    u = torch.zeros_like(velocity)
    for _ in range(pieces):
        u = u + warp(velocity, u, padding="border") / pieces            # v at x + u(x)
    return u


end = warp_points(start, euler(turning(90), 32))[0, 0]                  # the same walk
assert torch.allclose(end, walks[32][-1], atol=0.05)

# %% [markdown]
# Compare with lesson 11: `u + warp(velocity / pieces, u, padding="border")` is `compose(velocity / pieces, u)`. An Euler step *is* a composition with a small displacement, and 128 pieces are 128 compositions. Can we do with fewer?

# %% [markdown]
# ## 2 · Twice as far in one step
#
# A river that does not change does the same in the second half of the time as in the first:
#
# $$\exp(v) = \exp(v/2) \circ \exp(v/2)$$
#
# and $\exp(v/2)$ is made of quarters, and so on. After $n$ halvings the piece is nearly straight, $\exp(v/2^n)(x) \approx x + v(x)/2^n$. This is **scaling and squaring**: divide by $2^n$, then compose with *itself* $n$ times.
#
# **Predict**: how many compositions replace 128 Euler steps?


# %% tags=["nbval-check-output"]
def scaling_and_squaring(velocity, steps):
    """Like euler(velocity, 2**steps), by `steps` compositions."""
    u = velocity / 2**steps
    for _ in range(steps):
        u = compose(u, u)                                               # twice as far in time
    return u


exact = affine_displacement(torch.tensor([[[0.0, -1, 0], [1, 0, 0]]]), shape)
near = (identity_grid(shape) - center.view(2, 1, 1)).norm(dim=0) < 20   # whose way stays inside
for name, u in (("euler, 128", euler(turning(90), 128)),
                ("squaring, 7", scaling_and_squaring(turning(90), 7))):  # fmt: skip
    print(f"{name:12} off by {float((u - exact)[0][:, near].norm(dim=0).max()):.2f} voxels")
assert torch.equal(scaling_and_squaring(turning(90), 7), integrate(turning(90), 7))

# %% [markdown]
# Seven: $2^7 = 128$. Both are off by the same: linear interpolation reads a linear field without error, so only the pieces of time count. The library's `integrate` is this function, with 7 squarings unless you say otherwise.
#
# **Closed forms** tell whether such code is right:
#
# | velocity | displacement at time 1 |
# |---|---|
# | constant, $v(x) = a$ | $u(x) = a$, with any number of steps |
# | linear, $v(x) = A(x - c)$ | $u(x) = (e^A - I)(x - c)$, where $e^A = I + A + \frac{A^2}{2} + \frac{A^3}{6} + \dots$ (`torch.linalg.matrix_exp`) |
# | whirlpool: circle $r = \lvert x - c\rvert$ turns by the angle $\alpha(r)$ | that rotation, of each circle by itself |
#
# The whirlpool is curved, so it also tests interpolation. We let $\alpha(r) = \alpha_0\, e^{-r^2 / 2 s^2}$: large $s$ is a calm whirlpool, small $s$ a tight one.
#
# **Predict**: twice as many pieces halve the error. Does that go on forever?


# %%
def whirlpool(shape, angle, radius):
    """Velocity and exact displacement, each (1, 2, H, W), of a whirlpool about the center."""
    middle = (torch.tensor(shape) - 1).view(2, 1, 1) / 2
    i, j = identity_grid(shape) - middle
    turn = angle * torch.exp(-(i**2 + j**2) / (2 * radius**2))          # α(r)
    there = torch.stack([turn.cos() * i - turn.sin() * j, turn.sin() * i + turn.cos() * j])
    return torch.stack([-turn * j, turn * i])[None], (there - torch.stack([i, j]))[None]


def worst(u, exact):
    """The longest difference between two displacements, in voxels."""
    return float((u - exact).norm(dim=1).max())


(calm, calm_exact), (tight, tight_exact) = (whirlpool(shape, 2, radius) for radius in (10, 3))
n = np.arange(10)
walked = [worst(euler(calm, 2**k), calm_exact) for k in n]
squared = [worst(integrate(calm, int(k)), calm_exact) for k in n]
squared_tight = [worst(integrate(tight, int(k)), tight_exact) for k in n]
assert torch.allclose(integrate(torch.full((1, 2, 9, 7), 3.0)), torch.tensor(3.0))
assert 11.5 < calm.norm(dim=1).max() < 12.5

# %%
figure = curves(
    {"Euler, s = 10": (2**n, walked), "squaring, s = 10": (2**n, squared),
     "squaring, s = 3": (2**n, squared_tight)},
    xlabel="pieces of time", ylabel="largest error (voxels)",
)  # fmt: skip
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_yscale("log")
show(
    figure,
    alt="On logarithmic axes the errors of Euler and squaring fall together with slope minus one; "
    "then squaring levels off, later and lower for the calm whirlpool than for the tight one.",
)
print(f"halved by doubling: {squared[2] / squared[3]:.2f} times smaller")
print(f"left after 9 squarings: {squared[9]:.2f} (calm) and {squared_tight[9]:.2f} (tight)")
print(f"left after 512 Euler steps: {walked[9]:.2f} (calm)")
assert 1.8 < squared[2] / squared[3] < 2.2 and 1.8 < walked[2] / walked[3] < 2.2
assert squared_tight[6] / squared_tight[9] < 1.1 and squared_tight[9] > 1.5 * squared[9]
assert walked[9] < 0.7 * squared[9]

# %% [markdown]
# First the error of *time* shrinks. What is left is the error of *space*: between the voxels, fields are read by linear interpolation. Squaring pays more of it than Euler, because it also interpolates its own half-way results. A tight whirlpool, whose arrows change much from voxel to voxel, reaches that floor earlier, and more steps do not lower it. For the calm whirlpool, whose longest arrow has 12 voxels, seven squarings are about where it begins: a good default for such rivers, not a magic number.

# %% [markdown]
# ## 3 · The way back is the river, reversed
#
# Follow $-v$ for the same time, and you are back: $\exp(-v) \circ \exp(v) = \mathrm{id}$. The inverse costs one more integration. It is not $-u$: lesson 11's mistake, which undoes $u$ where it began instead of where it ended.
#
# The **inverse-consistency error** is how far a point misses itself after the way there and back: the length of `compose(there, back)`.
#
# **Predict**: does it fall to 0 with more steps?


# %%
def round_trip(there, back):
    """How far each point misses itself, in voxels: (B, *spatial)."""
    return compose(there, back).norm(dim=1)


trips = {}
for name, velocity, u in (("calm", calm, calm_exact), ("tight", tight, tight_exact)):
    trips[name] = [float(round_trip(integrate(velocity, int(k)), integrate(-velocity, int(k))).max())
                   for k in n]  # fmt: skip
    print(f"{name}: −u misses by {float(round_trip(u, -u).max()):.1f} voxels, exp(−v) "
          f"by {trips[name][3]:.2f} after 3 squarings, {trips[name][9]:.2f} after 9")  # fmt: skip
    assert round_trip(u, -u).max() > 15 * trips[name][9] and trips[name][9] > 0.05
assert trips["tight"][3] < trips["calm"][3] and trips["tight"][9] > trips["calm"][9]

# %% [markdown]
# No: it levels off at the interpolation error, higher for the rougher field.
#
# **At the border there is no promise.** Where the river flows in, the arrows beyond the edge are made up. This course extends a field by its border value; VoxelMorph's layer reads zeros outside. **Predict**: how far apart are the two for a river of at most 10 voxels?

# %%
torch.manual_seed(0)
free = smooth(torch.randn(1, 2, *shape), 8)                             # flows across the border
free = free * 10 / free.norm(dim=1).max()
with_zeros = free / 2**7
for _ in range(7):
    with_zeros = with_zeros + warp(with_zeros, with_zeros, padding="zeros")
apart = (with_zeros - integrate(free)).norm(dim=1)[0]
inside = (slice(15, -15), slice(15, -15))
print(f"{float(apart.max()):.1f} voxels apart, {float(apart[inside].max()):.3f} inside")
assert apart.max() > 2 and apart[inside].max() < 0.01

# %% [markdown]
# Both are guesses, and so is the way back from there. Leave a margin around the anatomy, and measure inside.
#
# One use of the way back: symmetric methods warp the moving image by $\exp(v/2)$ and the fixed one by $\exp(-v/2)$. The two meet half-way and are compared there, so that neither is special.

# %% [markdown]
# ## 4 · Half the resolution
#
# A smooth velocity does not need every voxel. VoxelMorph integrates on a grid of half the size (its `int_downsize=2`) and enlarges the result: a quarter of the work in 2D, an eighth in 3D. Voxels of the half grid are twice as large, so the values must be about halved on the way down and doubled on the way up, by $(n' - 1)/(n - 1)$ to be exact: `resize_displacement` (lesson 12) does it.
#
# **Predict**: for which of these rivers does that cost more than a tenth of the mean displacement: blurred by 8, 4 or 2 voxels?


# %%
def integrate_at_half(velocity):
    """integrate(velocity), computed on a grid of half the size."""
    half = [(size + 1) // 2 for size in velocity.shape[2:]]
    return resize_displacement(integrate(resize_displacement(velocity, half)), velocity.shape[2:])


lost = {}
for smoothness in (8, 4, 2):
    v = random_velocity(shape, amplitude=10, smoothness=smoothness)
    error = (integrate_at_half(v) - integrate(v)).norm(dim=1)
    lost[smoothness] = float(error.mean() / integrate(v).norm(dim=1).mean())
    print(f"blurred by {smoothness}: mean error {lost[smoothness]:.0%} of the mean displacement, "
          f"worst {float(error.max()):.1f} voxels")  # fmt: skip
assert lost[8] < 0.03 and 0.05 < lost[4] < 0.1 < 0.15 < lost[2]

# %% [markdown]
# Only for the roughest one, on average; but look at the worst voxel. Half resolution flattens whatever changes within a few voxels, and a network that is trained this way hardly expresses it. A field from elsewhere should be measured first, as here.

# %% [markdown]
# ## 5 · And without a velocity?
#
# Many methods hand you a displacement only. Lesson 11 inverted one in one dimension by repetition, $w \leftarrow -u(y + w)$. Write it with the **residual** $r(y) = w(y) + u(y + w(y))$, which is how far $y$ misses itself: then a step is $w \leftarrow w - r$, and you know when to stop and whether to believe the result.


# %%
def invert_by_repetition(u, tolerance=0.001, most=60):
    """The inverse's displacement, and the largest residuals; the last one belongs to it."""
    w, sizes = torch.zeros_like(u), []
    for step in range(most + 1):
        residual = compose(u, w)                                        # w(y) + u(y + w(y))
        sizes.append(float(residual.norm(dim=1).max()))
        if sizes[-1] <= tolerance or step == most:
            break
        w = w - residual
    return w, sizes


# %% [markdown]
# Each step shrinks the residual if $u$ changes by less than one voxel from voxel to voxel, in any direction: its **Lipschitz constant** is below 1.
#
# **Predict** which of these it inverts: a bump with slope 0.75; a whirlpool that turns its middle by 90° and folds nowhere; a bump with slope 1.5, which folds.

# %%
gentle, folded = (bump_displacement(shape, push, 8, 0.5) for push in (9.9, 19.8))
quarter, backward = (whirlpool(shape, sign * np.pi / 2, 12)[1] for sign in (1, -1))
residuals = {}
for name, u in (("gentle bump", gentle), ("whirlpool", quarter), ("folded bump", folded)):
    w, residuals[name] = invert_by_repetition(u)
    print(f"{name:11} {len(residuals[name]):2} residuals, last {residuals[name][-1]:.4f} voxels, "
          f"det J at least {float(jacobian_determinant(u).min()):.2f}")  # fmt: skip
print(f"whirlpool reversed: off by {float(round_trip(quarter, backward).max()):.2f} voxels")

# %%
figure = curves(
    {name: (range(len(sizes)), sizes) for name, sizes in residuals.items()},
    xlabel="step", ylabel="largest residual (voxels)",
)  # fmt: skip
figure.axes[0].set_yscale("log")
show(
    figure,
    alt="The gentle bump's residual falls on a straight line to a thousandth of a voxel; those of "
    "the whirlpool and of the folded bump stay near ten voxels and near twenty.",
)
assert residuals["gentle bump"][-1] <= 0.001 and residuals["folded bump"][-1] > 5
assert residuals["whirlpool"][-1] > 5 and jacobian_determinant(quarter).min() > 0.5
assert round_trip(quarter, backward).max() < 0.3

# %% [markdown]
# Two failures that look alike. The folded bump has no inverse: several places look at the same spot. The whirlpool has one (itself, reversed), but the iteration overshoots. A rotation by an angle $\theta$ moves a point at distance $d$ from the center along a chord of length $2 \sin(\theta/2)\, d$. So from one voxel to the next, where $d$ grows by 1, the displacement grows by $2 \sin(\theta/2)$, which reaches 1 at 60°. So a failed iteration proves nothing about folds. A small residual does prove something: that $u$ brings $y + w(y)$ back to $y$.
#
# The library's `invert` takes shorter steps where the residual does not shrink. That saves a rotation by 70°, but not the whirlpool. Always ask for the residual, `compose(u, invert(u))`:

# %%
c, s = np.cos(np.radians(70)), np.sin(np.radians(70))
turned = affine_displacement(torch.tensor([[[c, -s, 0], [s, c, 0]]]).float(), shape)
middle = (identity_grid(shape) - center.view(2, 1, 1)).norm(dim=0) < 15
left = {}
for name, u in (("rotation by 70°", turned), ("whirlpool", quarter)):
    for how, w in (("w ← w − r", invert_by_repetition(u)[0]), ("invert", invert(u, iterations=200))):
        left[name, how] = float(compose(u, w)[0][:, middle].norm(dim=0).max())
        print(f"{name}, {how}: residual {left[name, how]:.2f} voxels near the center")
assert left["rotation by 70°", "w ← w − r"] > 5 and left["rotation by 70°", "invert"] < 0.1
assert left["whirlpool", "invert"] > 1

# %% [markdown]
# ## 6 · What "diffeomorphic" promises on a grid
#
# A **diffeomorphism** is a smooth map with a smooth inverse. $\exp(v)$ is one for every smooth $v$: that is mathematics. Your array is another thing. **Predict**: two rivers whose longest arrow has 20 voxels are blurred by 6 and by only 3. Do their folds vanish with enough squarings?

# %%
for smoothness in (6, 3):
    v = random_velocity(brain.shape[2:], amplitude=20, smoothness=smoothness)
    folds = {k: int((jacobian_determinant(integrate(v, k)) <= 0).sum()) for k in (0, 1, 2, 4, 8)}
    print(f"blurred by {smoothness}: folded voxels by squarings: {folds}")
    assert folds[0] > folds[1] > 100
    if smoothness == 6:
        assert folds[2] == 0 and folds[8] == 0                          # gone, and gone for good
    else:
        assert folds[8] > 15
        assert 0.0005 < folds[8] / v[0, 0].numel() < 0.0015             # about 0.1 %
slow = int((jacobian_determinant(euler(v, 400)) <= 0).sum())
print(f"blurred by 3, 400 Euler steps: {slow}")
assert slow > 15

# %% [markdown]
# With few steps even a fair river folds: where the first leap $v/2^n$ sends two places to one, nothing that follows takes them apart. More steps mend that. For the rough river they help only so far, and so do 400 Euler steps. So time is not the limit. What is?
#
# Here is a map *without any integration error*: the exact displacement of a very tight whirlpool. Turning circles keep every area: its true determinant is 1 everywhere. **Predict**: what does the grid say?

# %%
for finer in (1, 4, 8):                                                 # one map, sampled finer
    grid = tuple(finer * (size - 1) + 1 for size in shape)
    _, u = whirlpool(grid, angle=9, radius=2 * finer)
    det = jacobian_determinant(u)
    print(f"{finer} × finer: det J from {float(det.min()):.2f} to {float(det.max()):.2f}, "
          f"{int((det <= 0).sum())} voxels folded")  # fmt: skip
    assert (det.min() < -0.5) if finer == 1 else (det.min() > 0.3)
assert 0.8 < det.min() and det.max() < 1.2

# %% [markdown]
# The map is perfect, and its samples fold: between neighboring voxels it bends too much for a straight line. On a finer grid the folds vanish. But the samples are what you warp with, so for your image the folds are real.
#
# So say what you measured. For the rough river: *"$\exp(v)$ is a diffeomorphism; on our grid, with 8 squarings, about 0.1 % of the voxels have a determinant of 0 or less"*. The word alone is no measurement.

# %% [markdown]
# ## 7 · Play: which rivers can be saved?
#
# The explorer follows a random river for a time $t$; at $t < 0$ you see the inverse. Amplitude is its longest arrow, smoothness its blur. The lines below count folds and say how far a point misses itself there and back.
#
# (The still picture shows 1 squaring, 7 squarings, and 7 squarings backwards, $t = -1$.)
#
# **Play** with amplitude 20 and $t = 1$. At smoothness 6, how many squarings does it take until nothing is magenta? Then set 8 squarings and lower the smoothness: where does magenta come back for good?

# %%
explorer = velocity_explorer(brain)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# Two squarings at smoothness 6. With 8 squarings the river is clean down to a smoothness of 4.5; at 4 a few voxels fold, and no number of squarings takes them away. Meanwhile "at worst" grows beyond a voxel: before the folds appear, the way back fails at single places.
#
# </details>


# %%
def folds(smoothness, steps):
    """Folded voxels of the explorer's river of 20 voxels."""
    v = random_velocity(brain.shape[2:], 20, smoothness)
    return int((jacobian_determinant(integrate(v, steps)) <= 0).sum())


print("smoothness 6, by squarings: ", [folds(6, k) for k in range(4)])
print("8 squarings, by smoothness: ", {s: folds(s, 8) for s in (6, 5, 4.5, 4, 3)})
assert folds(6, 1) > 0 == folds(6, 2) and folds(4.5, 8) == 0 < min(folds(4, k) for k in range(9))
v = random_velocity(brain.shape[2:], 20, 5)
assert round_trip(integrate(v, 8), integrate(-v, 8)).max() > 1 and folds(5, 8) == 0

# %% [markdown]
# ## Common mistakes
#
# **Dividing by the number of squarings.** $v/7$, composed with itself seven times, is $2^7/7 \approx 18$ units of time. **Not dividing at all** is 128 units. **Not doubling**, seven compositions with the *first* small piece, is 8/128 of a unit: nearly nothing. None of them raises an error:


# %%
def unfinished(velocity, steps):
    u = small = velocity / 2**steps
    for _ in range(steps):
        u = compose(small, u)                                           # one more piece
    return u


# %%
v = random_velocity(shape, amplitude=10, smoothness=8)
wrong = {
    "right": integrate(v),
    "v / steps": integrate(v * 2**7 / 7),                               # which divides by 2**7
    "one piece at a time": unfinished(v, 7),
    "half grid, not halved": resize_displacement(integrate(resize_image(v, (48, 40))), shape),
}
show(
    fields(wrong, step=4),
    alt="Four grids: a smooth deformation; a tangle full of folds; a nearly straight grid; and a "
    "deformation about twice too strong.",
)
size = {
    name: float(u.norm(dim=1).mean() / wrong["right"].norm(dim=1).mean())
    for name, u in wrong.items()
}
print({name: round(value, 2) for name, value in size.items()})
assert size["v / steps"] > 3 and size["one piece at a time"] < 0.1
assert 1.7 < size["half grid, not halved"] < 2.1

# %% [markdown]
# The last one is **half resolution without halving the values**: a leap of 10 voxels on the fine grid was used as 10 on the half grid, which is 20. Resize velocities with `resize_displacement`, not with `resize_image`.
#
# **No inverse at hand.** People find out after training that they need the other direction: [voxelmorph#445](https://github.com/voxelmorph/voxelmorph/issues/445), [#560](https://github.com/voxelmorph/voxelmorph/issues/560), [FireANTs#25](https://github.com/rohitrango/FireANTs/issues/25). With a velocity it is one line.
#
# **Folds in a "diffeomorphic" result.** Asked in [ANTs#1022](https://github.com/ANTsX/ANTs/issues/1022); section 6 is the answer. Before you worry, check the counting: the determinant belongs to $x + u(x)$, so the identity must not be forgotten ([SYMNet#18](https://github.com/cwmok/Fast-Symmetric-Diffeomorphic-Image-Registration-with-Convolutional-Neural-Networks/issues/18)), and its *logarithm* is below 0 wherever the map shrinks ([ANTs#829](https://github.com/ANTsX/ANTs/issues/829)).

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. You have two velocities and want one map that does both. Is it exp(v₁ + v₂)?</summary>
#
# In general not, though exponentials of numbers suggest it. $\exp(v_1)$ and $\exp(v_2)$ give different maps in the two orders, and a sum has no order. Compose the two displacements. It does hold for $\exp(v/2)$ with itself, which is why squaring works: the cell below measures both.
#
# </details>
#
# <details><summary>2. A method reports an inverse-consistency error of 0.00 voxels. How good is its registration?</summary>
#
# Unknown. The identity has an error of exactly 0 and registers nothing. It says only that the two maps belong together; accuracy needs other measures (lesson 15).
#
# </details>
#
# <details><summary>3. The fixed-point iteration does not converge. Does the field fold?</summary>
#
# Perhaps, perhaps not: a rotation by 70° is enough to make it diverge. Count determinants for folds. A residual near 0, on the other hand, does prove that the way back ends where it should, at those voxels.
#
# </details>

# %%
one, two = (random_velocity(shape, 10, 8, seed) for seed in (0, 1))
sum_is_off = worst(integrate(one + two), compose(integrate(one), integrate(two)))
halves_are_off = worst(integrate(2 * one), compose(integrate(one), integrate(one)))
print(
    f"exp(v₁ + v₂) is off by up to {sum_is_off:.1f} voxels; exp(v)∘exp(v) by {halves_are_off:.2f}"
)
assert sum_is_off > 1 > 0.2 > halves_are_off

# %% [markdown]
# ## Take away
#
# - A displacement leaps; a velocity is followed. $\exp(v)$ of a smooth $v$ does not fold.
# - Scaling and squaring: divide by $2^n$, compose with itself $n$ times. Closed forms tell whether it is right.
# - The inverse is $\exp(-v)$, up to interpolation, and not at the border. Half resolution needs values halved.
# - Without a velocity: $w \leftarrow w - r$, and the residual says whether to believe it.
# - "Diffeomorphic" is a property of the formula. On the grid: count folds, measure the round trip.
#
# **Go further**
# - V. Arsigny, O. Commowick, X. Pennec, N. Ayache, "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006: scaling and squaring for fields.
# - J. Ashburner, "A fast diffeomorphic image registration algorithm", NeuroImage 38(1), 2007: DARTEL, one velocity for a registration.
# - B. B. Avants, C. L. Epstein, M. Grossman, J. C. Gee, "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 12(1), 2008: meeting in the middle.
# - A. V. Dalca, G. Balakrishnan, J. Guttag, M. R. Sabuncu, "Unsupervised learning for fast probabilistic diffeomorphic registration", MICCAI 2018: a network that predicts velocities.
# - M. Chen, W. Lu, Q. Chen, K. J. Ruchala, G. H. Olivera, "A simple fixed-point approach to invert a deformation field", Medical Physics 35(1), 2008.
#
# Next: the exercise [exercises/17_velocities_and_inverses.ipynb](../exercises/17_velocities_and_inverses.ipynb).

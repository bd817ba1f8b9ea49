# %% [markdown]
# # Exercise 17 · Velocities and inverses
#
# You follow a river better than the lesson did, let scaling and squaring choose its own number of steps, and write an inverse that says how far it can be trusted. **Time**: about 55 minutes · **Points**: 14.
#
# Before this: lesson 17. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import torch

from course_lib import setup
from course_lib.checks import progress
from course_lib.checks import velocities_and_inverses as check
from course_lib.datasets import brains
from course_lib.plotting import curves, fields, show
from course_lib.spatial import compose, identity_grid, integrate, jacobian_determinant
from course_lib.spatial import resize_displacement, resize_image, warp
from course_lib.widgets import bump_displacement, random_velocity

course = setup()
shape = (96, 80)

# %% [markdown]
# ## Task 1 · Where does the river carry it? (predict)
#
# ●○○ · 6 minutes · 2 points
#
# Work these four numbers out before you run anything.
#
# 1. How many compositions does scaling and squaring need to replace 256 Euler steps?
# 2. The velocity is $v(x) = (-3, 4)$ at every voxel. It is integrated with 3 squarings. What is channel 1 of the displacement, far from the border?
# 3. Along one axis, $v(x) = \ln 2 \cdot (x - c)$: the further from $c$, the faster away from it. A point starts 10 voxels from $c$. How far from $c$ is it at time 1, in exact time, without steps?
# 4. The same start, the same river reversed, $-v$. How far from $c$ is the point at time 1?

# %%
def in_the_river():
    """The four numbers.

    Returns:
        a tuple of four numbers: compositions, displacement in voxels, distance, distance
    """
    ### BEGIN SOLUTION
    # 256 = 2⁸. A constant velocity is its own displacement, whatever the steps. The distance d
    # obeys d' = d · ln 2, so it is 10 · exp(t · ln 2) = 10 · 2^t, with t = 1 and t = −1.
    return 8, 4, 20, 5
    ### END SOLUTION


# %% points=2
check.in_the_river(in_the_river)

# %% [markdown]
# ## Task 2 · A better straight piece
#
# ●●○ · 10 minutes · 3 points
#
# Euler looks at the arrow where a piece *begins*. The **midpoint rule** walks half a piece first, looks at the arrow *there*, and then takes the whole piece from the beginning along that arrow. For one point $p$ and $N$ pieces it repeats $N$ times:
#
# $$m = p + \frac{v(p)}{2N}, \qquad p \leftarrow p + \frac{v(m)}{N}$$
#
# Write it for all voxels at once. As in the lesson's `euler`, $u$ holds how far each voxel has come, and `warp(velocity, u, padding="border")` reads $v$ at $x + u(x)$.

# %%
def euler(velocity, pieces):
    """The lesson's function, for comparison."""
    u = torch.zeros_like(velocity)
    for _ in range(pieces):
        u = u + warp(velocity, u, padding="border") / pieces
    return u


# %%
def midpoint(velocity, pieces):
    """The displacement at time 1, by the midpoint rule.

    Args:
        velocity: float tensor (B, 2, H, W), in voxels per unit of time, extended by its border
        pieces: number of pieces of time, 1 or more

    Returns:
        float tensor (B, 2, H, W), in voxels; gradients pass through to velocity

    Example:
        with one piece, and v(x) = (0, j) in column j: from column 2 the half piece leads to
        column 3, where the arrow is 3 long, so the displacement of column 2 is (0, 3)
    """
    ### BEGIN SOLUTION
    u = torch.zeros_like(velocity)
    for _ in range(pieces):
        halfway = u + warp(velocity, u, padding="border") / (2 * pieces)
        u = u + warp(velocity, halfway, padding="border") / pieces
    return u
    ### END SOLUTION


# %% points=3
check.midpoint(midpoint)

# %%
midpoint = check.midpoint.or_reference(midpoint)


def whirlpool(shape, angle, radius):
    """Velocity and exact displacement of a whirlpool about the center, as in the lesson."""
    middle = (torch.tensor(shape) - 1).view(2, 1, 1) / 2
    i, j = identity_grid(shape) - middle
    turn = angle * torch.exp(-(i**2 + j**2) / (2 * radius**2))
    there = torch.stack([turn.cos() * i - turn.sin() * j, turn.sin() * i + turn.cos() * j])
    return torch.stack([-turn * j, turn * i])[None], (there - torch.stack([i, j]))[None]


velocity, exact = whirlpool(shape, 2, 10)
pieces = [1, 2, 4, 8, 16, 32]
rules = {"euler": euler, "midpoint": midpoint}
errors = {name: [float((rule(velocity, n) - exact).norm(dim=1).max()) for n in pieces]
          for name, rule in rules.items()}  # fmt: skip
figure = curves(
    {name: (pieces, values) for name, values in errors.items()},
    xlabel="pieces of time", ylabel="largest error (voxels)",
)  # fmt: skip
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_yscale("log")
show(
    figure,
    alt="On logarithmic axes the error of Euler falls slowly; that of the midpoint rule falls twice "
    "as steeply, until it levels off at a few hundredths of a voxel.",
)
print({name: [round(value, 2) for value in values] for name, values in errors.items()})
assert errors["midpoint"][2] < errors["midpoint"][1] / 3 and errors["midpoint"][3] < errors["euler"][5]

# %% [markdown]
# Twice as many pieces halve Euler's error and quarter that of the midpoint rule: 8 pieces (16 readings of $v$) are better than 32 Euler steps. Then the floor of the interpolation is reached. With squaring a better first piece gains little, since squarings are cheap; for moving a few *points* through a river it gains a lot.

# %% [markdown]
# ## Task 3 · Scaling and squaring that chooses its steps
#
# ●●○ · 10 minutes · 3 points
#
# A calm river needs few squarings, a strong one many. A common rule: divide by $2^n$ with the smallest $n \ge 0$ for which no arrow is **longer than half a voxel**, then compose $n$ times. The length of an arrow is that of the vector, $\sqrt{v_0^2 + v_1^2}$; one $n$ serves the whole batch.

# %%
def exponential(velocity):
    """The displacement of exp(velocity), with as many squarings as it needs.

    Args:
        velocity: float tensor (B, 2, H, W), in voxels per unit of time

    Returns:
        float tensor (B, 2, H, W), in voxels; gradients pass through to velocity (n has none)

    Example:
        the longest arrow has 5 voxels: 5 / 8 > 0.5 and 5 / 16 < 0.5, so n = 4; velocity / 16
        is composed with itself, the result with itself, and so on, four times. Where no arrow
        is longer than 0.5, n = 0 and the result is velocity; a river of zeros gives zeros
    """
    ### BEGIN SOLUTION
    longest, n = float(velocity.detach().norm(dim=1).max()), 0
    while longest / 2**n > 0.5:
        n += 1
    u = velocity / 2**n
    for _ in range(n):
        u = compose(u, u)
    return u
    ### END SOLUTION


# %% points=3
check.exponential(exponential)

# %%
exponential = check.exponential.or_reference(exponential)
errors, floors = [], []
for amplitude in (2, 8, 32):
    velocity, exact = whirlpool(shape, amplitude / 6.065, 10)             # longest arrow: amplitude
    for found, u in ((errors, exponential(velocity)), (floors, integrate(velocity, 12))):
        found.append(float((u - exact).norm(dim=1).max()))
    print(f"longest arrow {float(velocity.norm(dim=1).max()):4.1f}: error {errors[-1]:.2f} voxels, "
          f"with 12 squarings {floors[-1]:.2f}")  # fmt: skip
assert errors[0] < 0.1 and errors[2] > 4 * errors[1] and floors[2] < errors[2] / 3

# %% [markdown]
# The rule keeps the first piece short; it does not promise an accuracy. A strong river takes more pieces of half a voxel, and their errors add up; more squarings help until the interpolation is left. To know an error one has to measure it.

# %% [markdown]
# ## Task 4 · Half the resolution (find the bug)
#
# ●●○ · 6 minutes · 2 points
#
# This function was meant to integrate on a grid of half the size, as VoxelMorph does, and to bring the result back. The grid on the right shows that it does something else. Write it right.

# %%
def half_resolution_with_a_bug(velocity):
    small = [(size + 1) // 2 for size in velocity.shape[2:]]
    displacement = integrate(resize_image(velocity, small))
    return resize_displacement(displacement, velocity.shape[2:])


velocity = random_velocity(shape, amplitude=10, smoothness=8)
show(
    fields({"full grid": integrate(velocity), "half grid": half_resolution_with_a_bug(velocity)}, step=4),
    alt="Two deformed grids with the same pattern; the right one is deformed about twice as much.",
)
ratio = half_resolution_with_a_bug(velocity).norm(dim=1).mean() / integrate(velocity).norm(dim=1).mean()
print(f"{float(ratio):.1f} times as far, on average")
assert 1.7 < ratio < 2.1

# %%
def half_resolution(velocity):
    """integrate(velocity), computed on a grid of half the size.

    Args:
        velocity: float tensor (B, 2, H, W), in voxels of the full grid per unit of time

    Returns:
        float tensor (B, 2, H, W), in voxels of the full grid; gradients pass through. The half
        grid has (n + 1) // 2 voxels along an axis of n; integrate takes its 7 squarings.

    Example:
        a velocity of (0, 10) everywhere gives a displacement of (0, 10) everywhere
    """
    ### BEGIN SOLUTION
    small = [(size + 1) // 2 for size in velocity.shape[2:]]
    # In voxels of the half grid the arrows are about half as long: the values change too.
    displacement = integrate(resize_displacement(velocity, small))
    return resize_displacement(displacement, velocity.shape[2:])
    ### END SOLUTION


# %% points=2
check.half_resolution(half_resolution)

# %%
half_resolution = check.half_resolution.or_reference(half_resolution)
error = (half_resolution(velocity) - integrate(velocity)).norm(dim=1)
print(f"off by {float(error.mean()):.2f} voxels on average, {float(error.max()):.1f} at worst")
assert error.mean() < 0.1

# %% [markdown]
# The bug is quiet: the field is smooth, folds nowhere, and its first constant-velocity test fails only if somebody writes one. Units are part of a field. When a grid changes, ask of each array whether it holds intensities (resize only) or distances (resize and rescale).

# %% [markdown]
# ## Task 5 · An inverse that reports its error
#
# ●●● · 18 minutes · 3 points
#
# Repeat $w \leftarrow w - r$ with the residual $r(y) = w(y) + u(y + w(y))$, from $w = 0$. Stop as soon as no residual is longer than the tolerance, and after 100 steps in any case: on a map that folds it would never end. Return $w$ and the length of the longest residual *of the w that you return*; where 100 steps were taken, the residual last computed may be that of the $w$ before.

# %%
def invert(displacement, tolerance):
    """The displacement of the inverse map, and how far it can be trusted.

    Args:
        displacement: float tensor (B, 2, H, W), in voxels
        tolerance: in voxels, above 0

    Returns:
        a tuple of w, a float tensor (B, 2, H, W) in voxels, and a number: the longest residual
        of w over the whole batch, in voxels

    Example:
        for a shift by (0, 3) it returns a tensor of (0, -3) and the number 0
    """
    ### BEGIN SOLUTION
    w = torch.zeros_like(displacement)
    for _ in range(100):
        residual = compose(displacement, w)  # w(y) + u(y + w(y))
        if float(residual.norm(dim=1).max()) <= tolerance:
            break
        w = w - residual
    return w, float(compose(displacement, w).norm(dim=1).max())
    ### END SOLUTION


# %% points=3
check.invert(invert)

# %%
invert = check.invert.or_reference(invert)
for push in (5, 10, 12, 13, 20):
    field = bump_displacement(shape, push, 8, 0.5)
    w, longest = invert(field, 0.001)
    least = float(jacobian_determinant(field).min())
    print(f"bump of {push:2} voxels: det J at least {least:5.2f}, longest residual {longest:.4f} voxels")
    assert (longest <= 0.001) == (push <= 12), "the iteration reaches 0.001 for pushes up to 12 only"
    assert (least > 0) == (push <= 13), "the bump folds between 13 and 20"

# %% [markdown]
# A push of 20 folds (from 13.2 on, 1.65 times the smoothness of 8), and no inverse exists. A push of 13 does not fold, but its slope is 0.99: each step takes so little off the residual that 100 are not enough. Either way the number says *do not trust this w*; without it you would have a finite, smooth, wrong field in your hand. It does not say why: for that, count folds. It costs one composition. Report it with every inverse.

# %% [markdown]
# ## Task 6 · The roughest river (explore)
#
# ●○○ · 5 minutes · 1 point
#
# This river (another one than in the lesson) carries up to 20 voxels far. How rough may it be? Find the smoothness, to a tenth of a voxel, with which 8 squarings still give **no folded voxel**, while 0.1 less gives some. `measure` tells what a smoothness does; try as many as you like.

# %%
brain = brains.real_pair().fixed


def measure(smoothness):
    """Folded voxels, and the mean and largest error there and back."""
    velocity = random_velocity(brain.shape[2:], 20, smoothness, seed=1)
    there, back = integrate(velocity, 8), integrate(-velocity, 8)
    missed = compose(there, back).norm(dim=1)
    return int((jacobian_determinant(there) <= 0).sum()), float(missed.mean()), float(missed.max())


for smoothness in (8, 2.5):                                             # yours here
    print(f"smoothness {smoothness}: {{}} folded, there and back {{:.2f}} on average, {{:.1f}} at worst"
          .format(*measure(smoothness)))  # fmt: skip

# %%
def roughest():
    """The smoothness in voxels that leaves no fold, while 0.1 less leaves some."""
    ### BEGIN SOLUTION
    return 3.8
    ### END SOLUTION


# %% points=1
check.roughest(roughest)

# %%
roughest = check.roughest.or_reference(roughest)
folded, mean, largest = measure(roughest())
print(f"smoothness {roughest()}: {folded} folded, there and back off by {mean:.2f}, {largest:.1f} at worst")
assert folded == 0 and largest > 1

# %% [markdown]
# No fold, and yet the way back misses by more than a voxel somewhere. "No folds" and "the inverse is accurate" are two statements; measure both.

# %% [markdown]
# ## Where you stand

# %%
progress()

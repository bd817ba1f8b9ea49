# %% [markdown]
# # Exercise 20 · Register one pair
#
# You write what a registration program is made of: the numbers of a pose, a descent that says why it ended, the way from coarse to fine, and the push of a demon. **Time**: about 55 minutes · **Points**: 14.
#
# Before this: lesson 20. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import math

import torch

from course_lib import setup
from course_lib.checks import progress
from course_lib.checks import register_one_pair as check
from course_lib.classical.affine import pose_matrix
from course_lib.datasets import brains, halve
from course_lib.losses import mse, ncc
from course_lib.metrics import endpoint_error, folding_fraction
from course_lib.optimise import refine
from course_lib.plotting import fields, images, show
from course_lib.spatial import affine_displacement, compose, integrate, pyramid
from course_lib.spatial import resize_displacement, resize_image, smooth, warp
from course_lib.widgets import random_velocity

course = setup()

# %% [markdown]
# ## Task 1 · The same map on a coarser grid (predict)
#
# ●○○ · 6 minutes · 2 points
#
# A pyramid needs one map on grids of several sizes. On a grid of 201 rows and 101 columns, a map is
#
# $$x \mapsto A(x - c) + c + t, \qquad A = \begin{pmatrix} 1 & 0.2 \\ 0 & 1 \end{pmatrix}, \quad t = (8, -4)$$
#
# in voxels of that grid, $c$ its center. Now take a grid of 101 rows and 101 columns over the same image, corner voxels on corner voxels, as in all our pyramids. In voxels of *this* grid the same map has another $A$ and $t$. Work out $A_{01}$ (first row, second column), $t_0$ and $t_1$ before you run anything.


# %%
def on_the_coarse_grid():
    """Three numbers of the same map, in voxels of the grid of 101 x 101.

    Returns:
        a tuple of three numbers, (A_01, t_0, t_1)
    """
    ### BEGIN SOLUTION
    # One new row is (201 − 1)/(101 − 1) = 2 old ones; columns stay as they are. A_01 takes columns
    # and gives rows, so it is halved once; t_0 is a number of rows, t_1 one of columns.
    return 0.1, 4, -4
    ### END SOLUTION


# %% points=2
check.on_the_coarse_grid(on_the_coarse_grid)

# %% [markdown]
# ## Task 2 · A pose from three numbers, all of them in voxels
#
# ●●○ · 8 minutes · 2 points
#
# A rigid pose in 2D is an angle and a shift. For a descent, all its numbers should move the image about equally far. So the turn is given as an **arc**: how many voxels a point at the distance `radius` from the center moves along its circle. The angle in radians is arc / radius.


# %%
def rigid_matrix(parameters, radius):
    """The matrices [A | t] of rigid poses, for affine_displacement.

    A turns from axis i towards axis j: it sends (1, 0) to (cos, sin). t is the shift, as it is.
    A descent needs the gradient: stay with torch from the parameters to the result.

    Args:
        parameters: float tensor (B, 3): arc, shift along axis 0, shift along axis 1, in voxels
        radius: a number, in voxels

    Returns:
        float tensor (B, 2, 3)

    Example:
        parameters [[31.416, 5, -2]] and radius 20 are a quarter turn, 31.416 / 20 = π/2:
        [[[0, -1,  5],
          [1,  0, -2]]]     (up to rounding)
    """
    ### BEGIN SOLUTION
    arc, down, right = parameters.unbind(dim=1)  # (B,) each
    c, s = (arc / radius).cos(), (arc / radius).sin()
    first = torch.stack([c, -s, down], dim=1)  # (B, 3)
    second = torch.stack([s, c, right], dim=1)
    return torch.stack([first, second], dim=1)  # (B, 2, 3)
    ### END SOLUTION


# %% points=2
check.rigid_matrix(rigid_matrix)

# %%
rigid_matrix = check.rigid_matrix.or_reference(rigid_matrix)

# %% [markdown]
# ## Task 3 · A descent that says why it ended
#
# ●●● · 15 minutes · 3 points
#
# Write plain gradient descent, without an optimizer of torch's. It begins at $x$ = `start` and repeats
#
# $$x \leftarrow x - \text{rate} \cdot \nabla \text{loss}(x)$$
#
# and it ends for one of three reasons:
#
# - `"converged"`: the step that was just taken changed no number of $x$ by more than `tolerance`,
# - `"steps"`: `most` steps were taken, and none of them was that small,
# - `"diverged"`: the loss or its gradient at $x$ is infinite or NaN; then no step is taken any more.
#
# It returns the **best** place: of all that it visited, `start` and the last one included, the one with the lowest loss.
#
# Example: the loss $x^2$ from 8, with rate 0.25 and tolerance 1. The gradient is $2x$, so each step halves $x$: 8, 4, 2, 1. The last step is 1, no more than the tolerance: `(tensor([1.]), "converged")`. With `most` = 2 it is `(tensor([2.]), "steps")`.


# %%
def descend(loss, start, rate, tolerance, most):
    """Gradient descent with a memory.

    Args:
        loss: a function of a float tensor (N,), gives a scalar tensor
        start: float tensor (N,); is not changed
        rate: a number, the length of a step for a gradient of 1
        tolerance: a number: a step that changes every number by at most this much is small
        most: how many steps are taken at most

    Returns:
        a tuple: the best x, a float tensor (N,), and why it ended, a string
    """
    ### BEGIN SOLUTION
    x, best, lowest, why = start.detach(), start, math.inf, "steps"
    for _ in range(most):
        x = x.clone().requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)  # (N,)
        if not (torch.isfinite(value) and torch.isfinite(gradient).all()):
            why = "diverged"
            break
        if value < lowest:
            best, lowest = x.detach(), value.item()
        x = x.detach() - rate * gradient
        if (rate * gradient).abs().max() <= tolerance:
            why = "converged"
            break
    return (x.detach() if loss(x) < lowest else best), why  # the last place counts too
    ### END SOLUTION


# %% points=3
check.descend(descend)

# %%
descend = check.descend.or_reference(descend)

# %% [markdown]
# With your two functions, registration is a few lines. The same man, scanned again: turned by 30° and shifted. (`pyramid(image, 4)` is four times smaller; there the rim of the brain is some 15 voxels from the center.)

# %%
truth = pose_matrix(degrees=30, shift=(8, -6))
again = pyramid(brains.real_pair(pose=truth).moving, 4)  # (1, 1, 56, 48)
first = pyramid(brains.real_pair().moving, 4)


def misfit(parameters):
    """−correlation after a pose: a function of (3,) voxels."""
    u = affine_displacement(rigid_matrix(parameters[None], radius=15.0), first.shape[2:])
    return ncc(warp(again, u, padding="border"), first)


for rate, tolerance in ((10, 0.001), (60, 0.001), (0.01, 0.001)):
    found, why = descend(misfit, torch.zeros(3), rate, tolerance, 100)
    degrees = math.degrees(float(found[0]) / 15)
    print(f"rate {rate}: {why}, loss {float(misfit(found)):.3f}, turned by {degrees:.1f} degrees")
    if rate == 10:
        assert why == "converged" and abs(degrees - 30) < 1
    else:
        assert abs(degrees - 30) > 1 and why == ("steps" if rate == 60 else "converged")

# %% [markdown]
# The first rate finds the 30°. With the second, each step leaps across the valley: the steps never become small. With the third, the very first step is small, and the descent calls itself converged where it started. "Converged" says something about the last step, and nothing about the goal.

# %% [markdown]
# ## Task 4 · Coarse to fine (find the bugs)
#
# ●●○ · 10 minutes · 3 points
#
# This loop was meant to register coarse to fine: on each level it warps the small moving image by what is known so far, lets `register(warped, small_fixed)` find what is left, and joins the two. It has **three** bugs. No line raises an error, and the result looks almost right. Write it without them.


# %%
def coarse_to_fine_with_bugs(moving, fixed, factors, register):
    u = torch.zeros_like(fixed).repeat(1, 2, 1, 1)  # (B, 2, H, W)
    for factor in factors:
        small_moving, small_fixed = pyramid(moving, factor), pyramid(fixed, factor)
        u = resize_image(u, small_fixed.shape[2:])
        warped = warp(small_moving, u, padding="border")
        change = register(warped, small_fixed)  # on the level's grid
        u = u + change
    return u


# %%
def coarse_to_fine(moving, fixed, factors, register):
    """A displacement found on small images first.

    Args:
        moving, fixed: float tensors (B, 1, H, W)
        factors: how much smaller the images of each level are, as (4, 2, 1) or (4, 2)
        register: a function of two images of a level, (moving, fixed), that gives the displacement
            (B, 2, h, w) from the one to the other, in voxels of that level

    Returns:
        float tensor (B, 2, H, W), in voxels of the full images, whatever the factors

    Example:
        if u is (1, 0) everywhere at 12 x 12 voxels, it is (2.09, 0) at 24 x 24: 23/11 times longer
    """
    ### BEGIN SOLUTION
    u = torch.zeros_like(fixed).repeat(1, 2, 1, 1)
    for factor in factors:
        small_moving, small_fixed = pyramid(moving, factor), pyramid(fixed, factor)
        u = resize_displacement(u, small_fixed.shape[2:])  # vectors in new voxels
        warped = warp(small_moving, u, padding="border")
        u = compose(u, register(warped, small_fixed))  # first u, then the change
    return resize_displacement(u, fixed.shape[2:])  # factors may end with 2
    ### END SOLUTION


# %% points=3
check.coarse_to_fine(coarse_to_fine)

# %%
coarse_to_fine = check.coarse_to_fine.or_reference(coarse_to_fine)

# %% [markdown]
# ## Task 5 · The push of a demon
#
# ●●○ · 8 minutes · 3 points
#
# Thirion's demons push each voxel by itself: with $f$ the fixed image, $w$ the warped one and $g = \nabla f$ the gradient of the fixed one,
#
# $$du = \frac{(f - w)\, g}{|g|^2 + (f - w)^2}$$
#
# Where a voxel sees nothing, $g = 0$ and $f = w$, it stays: $du = 0$.


# %%
def demons_force(warped, fixed):
    """How each voxel would move, had it no neighbors.

    The gradient is made of central differences, one-sided at the border: torch.gradient.

    Args:
        warped, fixed: float tensors (B, 1, H, W)

    Returns:
        float tensor (B, 2, H, W), in voxels; 0 where gradient and difference both are 0

    Example:
        where f − w = 1 and g = (2, 0), du = (2, 0) / (4 + 1) = (0.4, 0)
    """
    ### BEGIN SOLUTION
    g = torch.cat(torch.gradient(fixed, dim=(2, 3)), dim=1)  # (B, 2, H, W)
    difference = fixed - warped  # (B, 1, H, W)
    size = g.square().sum(1, keepdim=True) + difference.square()  # (B, 1, H, W)
    return torch.where(size > 0, difference * g / size.clamp(min=1e-30), 0.0)
    ### END SOLUTION


# %% points=3
check.demons_force(demons_force)

# %%
demons_force = check.demons_force.or_reference(demons_force)

# %% [markdown]
# Pushes, a blur after each, and your loop from coarse to fine: that is a registration program. Here it brings a bent copy of the template back.

# %%
template = halve(brains.real_pair()).fixed  # (1, 1, 112, 96)
brain = halve(brains.real_pair()).fixed_labels > 0
river = random_velocity(template.shape[2:], amplitude=10, smoothness=12, seed=3)
bent, way_back = warp(template, integrate(-river)), integrate(river)


def push_and_blur(moving, fixed):
    """One level: 40 pushes, the field blurred after each."""
    u = torch.zeros_like(fixed).repeat(1, 2, 1, 1)
    for _ in range(40):
        u = smooth(u + demons_force(warp(moving, u, padding="border"), fixed), 1.5)
    return u


by_demons = coarse_to_fine(bent, template, (4, 2, 1), push_and_blur)
show(
    images({"bent": bent, "by demons": warp(bent, by_demons), "template": template}),
    alt="A bent brain slice, the same slice bent back by demons, and the template, which looks "
    "like the second one.",
)
off = {
    name: float(endpoint_error(u, way_back, mask=brain))
    for name, u in (("identity", 0 * way_back), ("demons", by_demons))
}
print({name: f"off by {value:.1f} voxels" for name, value in off.items()})
assert off["identity"] > 4 and off["demons"] < 1.5
assert mse(warp(bent, by_demons), template) < 0.1 * mse(bent, template)

# %% [markdown]
# ## Task 6 · A weight and a schedule (explore)
#
# ●●○ · 8 minutes · 1 point
#
# The same template, bent by up to 10 voxels, now with another contrast and noise. Choose two settings of `refine`: the weight $\lambda$ of the smoothness, and the coarsest factor of the pyramid (1, 2, 4 or 8). Every voxel moves for itself (`smoothness=0`), and there are 120 steps, shared equally by the levels. **Reach an error below 0.8 voxels, without a fold in the brain.** Try settings with `measure` in the cell below.

# %%
noise = torch.randn(template.shape, generator=torch.Generator().manual_seed(0))
scanned = (bent**0.8 + 0.02 * noise).clamp(0, 1)


def measure(weight, coarsest):
    """The error in voxels and the folded percent of the brain."""
    factors = [factor for factor in (8, 4, 2, 1) if factor <= coarsest]
    u = refine(scanned, template, weight=weight, factors=factors, steps=120 // len(factors),
               smoothness=0, tolerance=0)  # fmt: skip
    error = float(endpoint_error(u, way_back, mask=brain))
    return u, error, 100 * float(folding_fraction(u, mask=brain))


u, error, folded = measure(weight=2.5, coarsest=1)
print(f"error {error:.2f} voxels, folded {folded:.2f} %")


# %%
def weight_and_coarsest():
    """The two settings.

    Returns:
        a tuple of two numbers: the weight, and the coarsest factor (1, 2, 4 or 8)
    """
    ### BEGIN SOLUTION
    # One size sees a few voxels far: (2.5, 1) is off by nearly 3. From 4 on the whole bend is in
    # sight. A weight of 0.3 folds, one of 3 is too stiff for a bend of 10 voxels.
    return 1.2, 4
    ### END SOLUTION


# %% points=1
check.weight_and_coarsest(weight_and_coarsest)

# %%
weight_and_coarsest = check.weight_and_coarsest.or_reference(weight_and_coarsest)
chosen, error, folded = measure(*weight_and_coarsest())
show(
    fields({"the true field": way_back, "(2.5, 1)": u, "yours": chosen}, step=6),
    alt="Three deformed grids and their determinants: the true one; one that folds in "
    "places and lies elsewhere; and one that is near the true one, if less smooth.",
)
print(f"error {error:.2f} voxels, folded {folded:.2f} %")
assert error < 0.8 and folded == 0
blurred = float(endpoint_error(refine(scanned, template), way_back, mask=brain))
print(f"refine as it comes, in blurred changes: error {blurred:.2f} voxels")
assert blurred < 0.75 * error
assert all(measure(weight, 1)[1] > 2 for weight in (0.5, 10))  # one size, other weights

# %% [markdown]
# With one size, neither a smaller nor a larger weight helps: the descent does not see far enough, and ends in a wrong valley. With the pyramid, the weight decides. The schedule is for the *capture range*, the weight for the *smoothness*; a bad choice of the one cannot be mended by the other. The last line is `refine` as it comes: changes that are blurred before they are made come much nearer.

# %% [markdown]
# ## Where you stand

# %%
progress()

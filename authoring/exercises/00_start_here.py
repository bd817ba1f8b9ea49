# %% [markdown]
# # Exercise 00 · Start here
#
# You turn the three knobs of lesson 00 until something breaks, and learn where they break. **Time**: about 20 minutes · **Points**: 7.
#
# Before this: lesson 00. Each answer is a function that *returns* it: write it in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check runs your setting (a few seconds) and says what it measured. `check.name.hint()` opens hints one by one, and `progress()`, at the end of the page or in any cell, says what passed and what comes next.

# %%
from course_lib import setup
from course_lib.checks import start_here as check
from course_lib.checks import progress
from course_lib.classical.affine import register_affine, pose_matrix
from course_lib.datasets import brains
from course_lib.evaluation import table
from course_lib.losses import lncc
from course_lib.metrics import correlation, folding_fraction
from course_lib.optimise import refine
from course_lib.plotting import comparison, fields, show
from course_lib.spatial import affine_displacement, compose, jacobian_determinant, warp

course = setup()

# %% [markdown]
# This is the pair of the lesson, and its two steps as one function. Use it to look at what your settings do.

# %%
pair = brains.real_pair(pose=pose_matrix(degrees=14, scale=1.12, shift=(9, -7)))
shape = pair.fixed.shape[2:]                                            # (224, 192)
u_affine = affine_displacement(register_affine(pair.moving, pair.fixed), shape)


def register(weight):
    """The displacement of the affine step and the deformable one, smoothness weighted by weight."""
    bend = refine(warp(pair.moving, u_affine), pair.fixed, smoothness=0, weight=weight)
    return compose(u_affine, bend)                                      # (1, 2, 224, 192)


# %% [markdown]
# ## Task 1 · Where is the center? (predict)
#
# ●○○ · 3 minutes · 1 point
#
# A pose goes from fixed to moving, $x \mapsto A(x - c) + t + c$, with a rotation and a scaling in $A$, the center $c$ of the image and a shift $t$. Let the shift be $t = (5, -12)$ here. The images have 224 rows and 192 columns; voxels are counted from 0, so the center of an axis of $n$ voxels lies at $(n - 1)/2$. Where in the moving image lies the point that is at the center of the fixed image?

# %%
def center_in_moving():
    """Where the center of the fixed image lies in the moving image.

    Returns:
        a tuple of two numbers (row i, column j), in voxels

    Example:
        with 5 rows, 9 columns and a shift of (1, 0) it would be (3.0, 4.0)
    """
    ### BEGIN SOLUTION
    # At x = c the factor A(x − c) is zero: only the shift is left.
    return 111.5 + 5, 95.5 - 12
    ### END SOLUTION


# %% points=1
check.center_in_moving(center_in_moving)

# %% [markdown]
# ## Task 2 · Make it fold (explore)
#
# ●○○ · 5 minutes · 2 points
#
# The weight $\lambda$ of the smoothness is 2.5 in the lesson, and 0.01 % of the brain folds. Find a weight with which **more than 0.5 %** of the brain folds. The check registers with your weight and counts.

# %%
def folding_weight():
    """A weight, from 0.1 to 1000, whose field folds in more than 0.5 % of the brain."""
    ### BEGIN SOLUTION
    return 1.0
    ### END SOLUTION


# %% points=2
check.folding_weight(folding_weight)

# %%
folding_weight = check.folding_weight.or_reference(folding_weight)
weights = {"the default": 2.5, "one that folds": folding_weight()}
results = {name: register(weight) for name, weight in weights.items()}
show(
    fields(results),
    alt="Two grids and their determinants; with the other weight magenta folds appear.",
)
scores = table(results, pair, structures={2: "gray matter", 3: "white matter"})
scores

# %%
folded = jacobian_determinant(results["one that folds"])[:, None] <= 0
in_gray = float((pair.fixed_labels[folded & (pair.fixed_labels > 0)] == 2).float().mean())
print(f"folded voxels that lie in gray matter: {in_gray:.0%}")
assert in_gray > 0.5
assert scores["one that folds"]["Dice gray matter"] > scores["the default"]["Dice gray matter"]

# %% [markdown]
# Most folds lie in gray matter, where the two brains differ most and no smooth map matches them. A weaker smoothness lets the field match anyway, by turning tissue inside out. The Dice overlap *rises* meanwhile: without the folding column it would pass for progress.

# %% [markdown]
# ## Task 3 · Make it stiff (explore)
#
# ●○○ · 5 minutes · 2 points
#
# Now the other end. The local NCC tells how well the images agree, and here higher is better: the affine map alone has the lowest one, the default weight of 2.5 a much higher one. Find a weight with which it ends **nearer to the affine's than to the default's**.

# %%
def stiff_weight():
    """A weight, 0.1 to 1000, whose local NCC is nearer to the affine's than to the default's."""
    ### BEGIN SOLUTION
    return 50.0
    ### END SOLUTION


# %% points=2
check.stiff_weight(stiff_weight)

# %%
def agreement(displacement):
    """The local NCC: squared correlations in windows, from 0 to 1."""
    return -float(lncc(warp(pair.moving, displacement), pair.fixed))


at = {weight: agreement(register(weight)) for weight in (2.5, 8, 20)}
halfway = (agreement(u_affine) + at[2.5]) / 2
print({weight: round(value, 2) for weight, value in at.items()}, " halfway:", round(halfway, 2))
assert at[20] < halfway < at[8]
assert folding_fraction(register(1.25), pair.fixed_labels > 0) > 0.005

# %% [markdown]
# A weight of 1.25 already folds too much, and somewhere between 8 and 20 half of what bending gained is lost: everything useful lies in a narrow range. Nobody knows the right weight beforehand: it depends on the loss, its window, the images and the voxel size. Papers that compare methods at one weight each compare the weights as much as the methods.

# %% [markdown]
# ## Task 4 · How far can the affine look? (explore)
#
# ●●○ · 7 minutes · 2 points
#
# The head is turned by more and more: 0°, 15°, 30°, … up to 165°. The scale and the shift stay the same. Find the **largest multiple of 15°** at which `register_affine` still ends within 2 voxels of the true pose (with the heads' own difference counted in, as in section 5 of the lesson). The check shows the distance at your angle and at the next one.

# %%
def largest_rotation():
    """The largest multiple of 15 degrees at which the affine ends within 2 voxels of the pose."""
    ### BEGIN SOLUTION
    return 30
    ### END SOLUTION


# %% points=2
check.largest_rotation(largest_rotation)

# %%
largest_rotation = check.largest_rotation.or_reference(largest_rotation)
warped = {}
for name, degrees in (("found", largest_rotation()), ("15° further", largest_rotation() + 15)):
    turned = brains.real_pair(pose=pose_matrix(degrees, 1.12, (9, -7)))
    found = affine_displacement(register_affine(turned.moving, turned.fixed), shape)
    warped[name] = warp(turned.moving, found)
    print(f"{name}: correlation {float(correlation(warped[name], pair.fixed)):.2f}")
show(
    comparison(warped, pair.fixed),
    alt="At the largest angle the head lies on the template; 15 degrees further it is left turned "
    "and squeezed into the template's outline.",
)

# %% [markdown]
# Here there is no "nearly": within its **capture range** the descent ends at the pose, and beyond it dozens of voxels away, in another valley, with a correlation that still looks respectable. A single number would not have told you; the picture does. The cure is a better start: moments of the images, several starts, or features.

# %% [markdown]
# ## Where you stand

# %%
progress()

# %% [markdown]
# # Exercise 15 · Evaluation
#
# You write three measures that a results table of registration rests on and the comparison of two methods, and then a field that fools one of the measures completely. **Time**: about 45 minutes · **Points**: 14.
#
# Before this: lesson 15. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import numpy as np
import torch

from course_lib import setup
from course_lib.checks import evaluation as check
from course_lib.checks import progress
from course_lib.datasets import brains
from course_lib.evaluation import table, warp_labels
from course_lib.plotting import images, show
from course_lib.spatial import warp, warp_points

course = setup()
pair = brains.pair(7)                                                   # 1 fluid, 2 gray, 3 white

# %% [markdown]
# ## Task 1 · The same error, twice (predict)
#
# ●○○ · 4 minutes · 2 points
#
# A square of 4 × 4 voxels is registered one voxel too far to the right, and a square of 40 × 40 voxels as well. What is the Dice of each, and what is their Hausdorff 95 in voxels (it is the same for both)? Work it out on paper.


# %%
def shifted_squares():
    """Measures of two squares, each shifted by one voxel along the columns.

    Returns:
        a tuple of three numbers: Dice of the small square (4 × 4), Dice of the large one (40 × 40),
        and the Hausdorff 95 of either, in voxels
    """
    ### BEGIN SOLUTION
    # Small: 3 of 4 columns overlap, 2 · 12 / (16 + 16). Large: 39 of 40.
    return 0.75, 0.975, 1.0
    ### END SOLUTION


# %% points=2
check.shifted_squares(shifted_squares)

# %% [markdown]
# ## Task 2 · Dice
#
# ●●○ · 9 minutes · 3 points
#
# One number for each item of the batch and each structure that is asked for. Never an average: averages are made by the reader, who knows what to leave out.


# %%
def dice(a, b, values):
    """Overlap of each structure in each item of the batch: 2 |A ∩ B| / (|A| + |B|).

    Args:
        a, b: int64 tensors (B, 1, H, W), label maps
        values: a list of L labels, such as [2, 3]; column k of the result belongs to values[k]

    Returns:
        float32 tensor (B, L); 0 where only one of the two maps has the structure, NaN where
        neither has it

    Example:
        a = [[1, 1], [0, 2]] and b = [[1, 0], [0, 2]], as (1, 1, 2, 2), with values [1, 2, 5]
        give [[0.6667, 1, NaN]]
    """
    ### BEGIN SOLUTION
    columns = []
    for value in values:
        in_a, in_b = a == value, b == value                             # (B, 1, H, W)
        both = (in_a & in_b).sum((1, 2, 3))                             # (B,)
        columns.append(2 * both / (in_a.sum((1, 2, 3)) + in_b.sum((1, 2, 3))))
    return torch.stack(columns, dim=1)                                  # (B, L)
    ### END SOLUTION


# %% points=3
check.dice(dice)

# %%
dice = check.dice.or_reference(dice)
overlap = dice(pair.moving_labels, pair.fixed_labels, [1, 2, 3, 9])[0]
print(
    "before registration: fluid {:.2f}, gray {:.2f}, white {:.2f}, label 9 {:.2f}".format(*overlap)
)
fluid, gray, white = ((pair.fixed_labels == value).sum() for value in (1, 2, 3))
assert overlap[0] < overlap[1] < overlap[2] and overlap[3].isnan()
assert 0.2 < fluid / gray < 0.3 and 0.2 < fluid / white < 0.3

# %% [markdown]
# Fluid does worst: it has about a quarter of the other tissues' voxels, in thin pieces, and task 1 says what the same error costs a small thing. Label 9 does not exist; NaN keeps it out of a `nanmean`.

# %% [markdown]
# ## Task 3 · Landmarks in mm (find the bug)
#
# ●●○ · 6 minutes · 2 points
#
# The function below was meant to give the distance in mm between where each landmark lands and where it should. The test cell feeds it the *true* displacement, with landmarks that fit it exactly, on voxels of 3 × 1 mm. The answer should be 0. It has two bugs; write the function right.


# %%
def tre_with_bugs(fixed_points, moving_points, displacement, spacing):
    landed = warp_points(moving_points, displacement)
    miss = landed - fixed_points
    return miss.norm(dim=2) * sum(spacing) / len(spacing)


p = torch.tensor([[[60.0, 70.0], [90.0, 120.0], [150.0, 60.0], [170.0, 130.0]]])  # (1, 4, 2)
q = warp_points(p, pair.displacement)                                   # their true partners
print("error of the true displacement:", tre_with_bugs(p, q, pair.displacement, (3.0, 1.0)).round())


# %%
def tre_mm(fixed_points, moving_points, displacement, spacing):
    """The distance between where each fixed landmark lands and its partner.

    Args:
        fixed_points, moving_points: float tensors (B, N, 2), partners, in voxels of their image;
            they may lie between voxels
        displacement: float tensor (B, 2, H, W), in voxels, on the fixed grid
        spacing: a tuple of two numbers, mm per voxel along the rows and along the columns

    Returns:
        float tensor (B, N), in mm

    Example:
        with u = (1, -2) everywhere, the landmark (4, 5) lands at (5, 3). If its partner is
        (6, 4) and the spacing (2, 0.5), it misses by (-1, -1) voxels, that is (-2, -0.5) mm:
        2.0616 mm
    """
    ### BEGIN SOLUTION
    # u leads from the fixed image to the moving one; each axis has its own mm per voxel.
    miss = warp_points(fixed_points, displacement) - moving_points      # (B, N, 2), in voxels
    return (miss * torch.tensor(spacing)).norm(dim=2)
    ### END SOLUTION


# %% points=2
check.tre_mm(tre_mm)

# %%
tre_mm = check.tre_mm.or_reference(tre_mm)
errors = tre_mm(p, q, pair.displacement, (3.0, 1.0))
nothing = tre_mm(p, q, torch.zeros_like(pair.displacement), (3.0, 1.0))
backward = tre_with_bugs(p, q, pair.displacement, (1.0, 1.0)).mean()
print(f"true displacement {errors.mean():.1f} mm, doing nothing {nothing.mean():.1f} mm")
assert errors.max() < 0.01 < 5 < nothing.mean()
assert backward > 1.5 * tre_mm(p, q, torch.zeros_like(pair.displacement), (1.0, 1.0)).mean()

# %% [markdown]
# The last line is a rule to remember: used in the wrong direction, a displacement does not leave the error as it was, it nearly doubles it. A TRE that grows to twice that of the identity is a sign of a swapped direction, not of a bad registration.

# %% [markdown]
# ## Task 4 · Hausdorff 95
#
# ●●○ · 9 minutes · 3 points
#
# The outlines of two structures are given as points. All is in the definition: for each point of one outline, the distance to the nearest point of the other; the 95th percentile of these; the same from the other outline; the larger of both. No loop is needed, but one is allowed.


# %%
def hausdorff95(p, q, spacing):
    """The 95th percentile of the distance between two outlines, in mm.

    Args:
        p, q: float NumPy arrays (N, 2) and (M, 2), points of two outlines, in voxels
        spacing: a tuple of two numbers, mm per voxel along component 0 and along component 1

    Returns:
        a number in mm: the larger of np.percentile(distances p to q, 95) and
        np.percentile(distances q to p, 95)

    Example:
        p = [[0, 0]] and q = [[0, 3]] with spacing (1, 2) give 6
    """
    ### BEGIN SOLUTION
    p, q = p * np.array(spacing), q * np.array(spacing)                 # in mm
    distances = np.linalg.norm(p[:, None] - q[None], axis=2)            # (N, M): each to each
    there, back = distances.min(axis=1), distances.min(axis=0)          # (N,) and (M,)
    return max(np.percentile(there, 95), np.percentile(back, 95))
    ### END SOLUTION


# %% points=3
check.hausdorff95(hausdorff95)

# %%
hausdorff95 = check.hausdorff95.or_reference(hausdorff95)
angle = np.radians(np.arange(0, 360, 3))
ring = 20 * np.stack([np.sin(angle), np.cos(angle)], axis=1)            # 120 points, radius 20
for stray in (3, 12):
    spiked = ring.copy()
    spiked[:stray] *= 2                                                 # some points 20 voxels out
    d = hausdorff95(ring, spiked, (1.0, 1.0))
    print(f"{stray} of 120 points are 20 voxels away: Hausdorff 95 is {d:.1f} voxels")
    assert (d > 10) == (stray == 12)

# %% [markdown]
# Three of 120 points are 2.5 %: below the 5 % that the percentile ignores, so the measure says that nothing happened. Twelve are 10 %. Whether a spike matters depends on the use; that is why the plain Hausdorff distance, which sees a single voxel, is sometimes reported beside it.

# %% [markdown]
# ## Task 5 · Is it better, and how sure is that?
#
# ●●○ · 6 minutes · 2 points
#
# Two methods were run on the same N cases. Subtract case by case. How much would the *mean* of the differences vary if other cases had been scanned? The **bootstrap** asks the cases at hand: draw N of them with replacement, take the mean of their differences, many times. The draws are given, a row for each resample.


# %%
def paired(first, second, draws):
    """The mean difference of two methods, with its 95 % bootstrap interval.

    Args:
        first, second: float64 NumPy arrays (N,), the score of each method on the same N cases
        draws: int64 NumPy array (R, N): row r holds the indices of the cases of resample r

    Returns:
        a tuple of three numbers: the mean of first − second, and the percentiles 2.5 and 97.5 of
        the R resampled means (np.percentile)

    Example:
        first = [0.9, 0.7], second = [0.8, 0.7], draws = [[0, 0], [0, 1], [1, 1]]: the differences
        are 0.1 and 0, the resampled means 0.1, 0.05 and 0; the result is (0.05, 0.0025, 0.0975)
    """
    ### BEGIN SOLUTION
    differences = first - second                                        # (N,)
    means = differences[draws].mean(axis=1)                             # (R, N) -> (R,)
    low, high = np.percentile(means, [2.5, 97.5])
    return differences.mean(), low, high
    ### END SOLUTION


# %% points=2
check.paired(paired)

# %%
paired = check.paired.or_reference(paired)
rng = np.random.default_rng(0)
patients = rng.normal(0.80, 0.06, 12)                                   # patients differ a lot,
old, new = patients, patients + rng.normal(0.012, 0.008, 12)            # the methods only a little
mean, low, high = paired(new, old, rng.integers(12, size=(5000, 12)))
print(f"sd over the patients: {old.std(ddof=1):.3f}")
print(f"new − old: {mean:.3f}, 95 % interval {low:.3f} to {high:.3f}")
assert old.std(ddof=1) > 3 * mean and 0 < low < mean < high

# %% [markdown]
# The patients scatter by several times the difference of the methods: two columns "mean ± sd" would overlap almost completely and show nothing. Case by case the improvement is plain, and its interval does not hold 0. Plain is not large, though: whether a Dice of 0.01 matters is a question for the clinic, not for the bootstrap.

# %% [markdown]
# ## Task 6 · Cheat (explore)
#
# ●●● · 11 minutes · 2 points
#
# Make a displacement for `brains.pair(7)` that a table of Dice would praise and that is nonsense: Dice of at least 0.95 for each of the three tissues, a mean error of at least 20 mm, and at least 15 % of the brain folded. You may use the labels of both images, for this is a cheat, but no intensities: method B of the lesson sorts by brightness; find another recipe. (`inside` below is the mask of one tissue; a boolean mask indexes `u[0][:, inside]`, of shape (2, n), and `mask.nonzero()` lists its voxels as (n, 2).)

# %%
inside = pair.fixed_labels[0, 0] == 3
print("white matter of the fixed image:", tuple(inside.nonzero().shape), "voxels by (row, column)")


# %%
def cheat():
    """A field with a high Dice and no anatomy.

    Returns:
        float tensor (1, 2, 224, 192), in voxels
    """
    ### BEGIN SOLUTION
    # Each voxel fetches from some voxel of the same label: Dice asks for no more.
    generator = torch.Generator().manual_seed(0)
    u = torch.zeros(1, 2, 224, 192)
    for value in (0, 1, 2, 3):
        inside = pair.fixed_labels[0, 0] == value
        wanted = inside.nonzero()                                       # (n, 2): voxels to fill
        source = (pair.moving_labels[0, 0] == value).nonzero()          # (m, 2): where to fetch
        pick = torch.randint(len(source), (len(wanted),), generator=generator)
        u[0][:, inside] = (source[pick] - wanted).T.float()             # u(x) = y − x
    return u
    ### END SOLUTION


# %% points=2
check.cheat(cheat)

# %%
cheat = check.cheat.or_reference(cheat)
u = cheat()
result = table({"cheat": u, "true displacement": pair.displacement}, pair)
result

# %%
row, truth = result["cheat"], result["true displacement"]
assert row["Dice label 2"] >= 0.95 and row["error (mm)"] > 20 and row["folding (%)"] > 15
assert row["SDlogJ"] > 3 * truth["SDlogJ"]
show(
    images({"fixed": pair.fixed, "cheat": warp(pair.moving, u)}),
    alt="A brain slice, and the same slice filled with grains: every tissue is in its place, and "
    "nothing inside a tissue is.",
)
assert (warp_labels(pair.moving_labels, u) == pair.fixed_labels).float().mean() > 0.9

# %% [markdown]
# The tissues stand where they should, and inside each of them nothing does. Dice cannot see it, because Dice knows names and not places. The columns that see it are those of the *map*: error, SDlogJ and folding. A results table without any of these cannot tell a registration from this.

# %% [markdown]
# ## Where you stand

# %%
progress()

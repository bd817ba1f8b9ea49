# %% [markdown]
# # 15 · Evaluation: which numbers can be bought
#
# At the end of this lesson you have bought a perfect Dice with a field that is nonsense, you know which number would have caught you, and you can say from ten cases whether one method beats another.
#
# **Reading**: 40 minutes · **Running**: about 15 seconds on a laptop · **Before this**: lessons 11, 12, 13 and 14.
#
# **You will be able to**
# - *predict* what a given error costs in Dice and in Hausdorff distance,
# - *implement* Dice of each structure and the Hausdorff 95 in mm,
# - *diagnose* a target registration error that is computed the wrong way round,
# - *compare* two methods over cases, with an interval,
# - *build* a field that a table of Dice praises and that no table should accept.

# %%
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.interpolate import RBFInterpolator

from course_lib import setup
from course_lib.datasets import brains
from course_lib.evaluation import Table, over_cases, paired_comparison, table, warp_labels
from course_lib.metrics import dice, hausdorff95, sdlogj, target_registration_error
from course_lib.optimise import refine
from course_lib.plotting import fields, images, show
from course_lib.spatial import jacobian_determinant, warp, warp_points
from course_lib.widgets import disc_pair, evaluation_explorer

course = setup()
pair = brains.pair(100)  # two synthetic people, whose labels and true displacement are known

# %% [markdown]
# ## 1 · Which one would you take?
#
# Two methods registered the same pair. Method A is `refine` of lesson 00. How method B works, the next cell says in code; look at the pictures first, and come back to it when its trick is told.

# %%
def method_b(pair):
    """(1, 2, H, W); it uses the labels of both images, as no honest method may."""
    u = torch.zeros(1, 2, *pair.fixed.shape[2:])
    for value in pair.fixed_labels.unique():
        here = pair.fixed_labels[0, 0] == value                         # (H, W)
        there = pair.moving_labels[0, 0] == value
        source = there.nonzero()[pair.moving[0, 0][there].argsort()]    # dark to bright
        rank = pair.fixed[0, 0][here].argsort().argsort()               # 0 is the darkest
        pick = source[rank * len(source) // len(rank)]                  # (voxels, 2)
        u[0][:, here] = (pick - here.nonzero()).T.float()
    return u


# %%
quick = {"smoothness": 0, "factors": (4, 2), "steps": 20}
u_a, u_b = refine(pair.moving, pair.fixed, weight=2.5, **quick), method_b(pair)
show(
    images({
        "fixed": pair.fixed,
        "warped by method A": warp(pair.moving, u_a),
        "warped by method B": warp(pair.moving, u_b),
    }),
    alt="Three axial brain slices that look alike: the fixed image, and the moving one warped by "
    "method A and by method B.",
)  # fmt: skip

# %%
rows = {"A": u_a, "B": u_b, "true displacement": pair.displacement}
everything = table(rows, pair, structures={2: "gray", 3: "white"})
usual = ["correlation", "Dice gray", "Dice white", "HD95 (mm)"]
Table({name: {c: row[c] for c in usual} for name, row in everything.rows.items()})

# %%
a, b, truth = (everything[name] for name in ("A", "B", "true displacement"))
assert b["Dice gray"] == b["Dice white"] == 1 and b["HD95 (mm)"] == 0
assert b["correlation"] > truth["correlation"] and b["correlation"] > a["correlation"]

# %% [markdown]
# HD95, a distance between outlines, is the mean over both tissues here. B wins every column: perfect overlap of both tissues, a Hausdorff distance of 0, and a higher correlation than the *true* displacement reaches, because it fits the noise too.
#
# **Predict**: what do the two maps look like, drawn as grids?

# %%
corner = (..., slice(100, 120), slice(50, 70))                          # inside the brain
show(
    fields({"A": u_a, "B, 20 × 20 voxels": u_b[corner]}),
    alt="The grid of method A is gently bent and its determinant near 1 nearly everywhere. Of method "
    "B a corner is shown: its grid lines shoot across it and out of it, and half of its determinant "
    "is magenta, the color of folds.",
)
everything

# %%
assert b["error (mm)"] > 50 and b["folding (%)"] > 40 and a["error (mm)"] < 1.5 > a["folding (%)"]
assert b["SDlogJ"] > 100 * truth["SDlogJ"]

# %% [markdown]
# B (its cell above can be read now) sorted the voxels of each tissue by brightness, in both images, and sent the darkest to the darkest, and so on to the brightest. It sends neighbors to opposite ends of the brain, 70 mm off on average. T. Rohlfing published a "method" of this kind in 2012, as a warning. The columns that catch it, error, SDlogJ and folding, look at the **map**.
#
# So what is each column good for?

# %%
assert 65 < b["error (mm)"] < 75

# %% [markdown]
# ## 2 · Dice: overlap of names
#
# Let $A$ be the set of voxels that carry a structure's label in one map, $B$ the same in the other. Their **Dice** is the overlap, counted twice, over the sum of the sizes:
#
# $$\text{Dice}(A, B) = \frac{2\,|A \cap B|}{|A| + |B|}$$
#
# It is 1 if they are equal and 0 if they share nothing. Dice is computed on **labels**, one structure and one patient at a time. Where neither map has the structure, $0/0$ is not a success and not a failure: it is NaN, and stays out of every mean.

# %% tags=["nbval-check-output"]
first = torch.tensor([[1, 1, 0], [1, 2, 2]])[None, None]                # (B, 1, H, W)
second = torch.tensor([[1, 0, 0], [1, 2, 0]])[None, None]
print([round(float(d), 2) for d in dice(first, second, values=[1, 2, 3])[0]])

# %% [markdown]
# **On images it is something else.** The survey that this course grew from tells openly that its author first computed Dice between the warped and the fixed *image*, until others said that it belongs on labels. They are right. But the data of its own experiment, FIRE, are photographs of the retina *without* segmentations. So the "DICE score" in its log cannot be an overlap of labels. What a program can compute there is the formula on intensities, $2\sum ab / (\sum a + \sum b)$.
#
# **Predict**: what does that formula give for an image and itself?

# %%
def soft(a, b):
    return float(2 * (a * b).sum() / (a.sum() + b.sum()))


f = pair.fixed
scores = {"itself": f, "itself, half as bright": f / 2, "the moving image": pair.moving}
print({f"fixed and {name}": round(soft(f, image), 2) for name, image in scores.items()})
assert soft(f, f / 2) < 0.6 < 0.75 < soft(f, f) < 0.80 and soft(f, pair.moving) > soft(f, f) + 0.01

# %% [markdown]
# Not 1 but 0.78, since $ab < a$ wherever an intensity is below 1; and the *moving* image, another person's and a little brighter, scores more than the image itself. At half its brightness the same picture falls to 0.52. The test that tells: **a thing compared with itself must score 1**.

# %% [markdown]
# ## 3 · Hausdorff: how far apart are the outlines?
#
# Dice counts voxels; it does not say how far off a wrong one is. The **Hausdorff distance** does. From each voxel on the outline of $A$, measure the way to the nearest one on the outline of $B$; do the same from $B$ to $A$; take the largest, in mm. One stray voxel decides it, so one usually reports the 95th percentile of each direction, and the larger of both: **HD95**.

# %% [markdown]
# ### Play
#
# A disc was registered to a disc. Three sliders: how large it is, by how much it missed (shift), and how far off a single voxel strayed. In the middle are the distances between the outlines, sorted, at each percent those of the worse direction: HD95 is the height at the amber line, the largest distance is at the end. On the right, each outline voxel has the color of its distance, with a minus on the fixed outline. Four stills below give both answers.
#
# **Question 1**: shift 2, no stray voxel. From which radius on is Dice at least 0.90? What does HD95 say meanwhile?
# **Question 2**: shift 0, stray voxel at 30. From which radius on does HD95 not see it? And Dice?

# %%
explorer = evaluation_explorer()
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# 1. From radius 13 on. The same error of 2 voxels costs a disc of radius 3 nearly half of its Dice (0.59), while HD95 stays at 2 for both. So Dice must not be compared between structures.
# 2. From radius 4 on: then the stray voxel is less than 5 % of the outline, and HD95 falls from 6 to 0. Dice is above 0.98 either way. Only the largest distance always sees it.
#
# </details>

# %%
def measures(*setting):
    fixed, warped = disc_pair(*setting)
    return float(dice(fixed, warped)), float(hausdorff95(fixed, warped))


assert measures(12, 2, 0)[0] < 0.90 <= measures(13, 2, 0)[0]
assert 0.58 < measures(3, 2, 0)[0] < 0.60 and measures(3, 2, 0)[1] == measures(13, 2, 0)[1] == 2
assert measures(3, 0, 30)[1] > 5 and measures(4, 0, 30)[1] == 0
assert min(measures(r, 0, 30)[0] for r in (3, 4)) > 0.98

# %% [markdown]
# ## 4 · Landmarks: the error at a place
#
# An expert marks the same places in both images: $p$ in the fixed one, $q$ in the moving one. A fixed point $p$ lies at $p + u(p)$ in the moving image (lesson 11), so the **target registration error** is
#
# $$\text{TRE} = \bigl\| S\,\bigl(p + u(p) - q\bigr) \bigr\|$$
#
# with $S$ the voxel sizes on the diagonal: a miss of one voxel is 3 mm along an axis of 3 mm slices and 1 mm along the other. First scale each component, then take the length.
#
# **Predict**: swap the roles, move $q$ by $u$ and compare with $p$. By how much does the error of the *true* displacement grow: from 0 to about the error of doing nothing, or to more?

# %%
u = pair.displacement                                                   # (1, 2, 224, 192)
p = (pair.fixed_labels[0, 0] > 0).nonzero()[::500][None].float()        # (1, N, 2) fixed points
q = warp_points(p, u)                                                   # their true partners
mm = (3.0, 1.0)                                                         # rows are 3 mm apart
tre = {
    "true displacement": target_registration_error(p, q, u, mm),
    "doing nothing": target_registration_error(p, q, torch.zeros_like(u), mm),
    "true, wrong way round": target_registration_error(q, p, u, mm),
}
print({name: f"{float(error.mean()):.1f} mm" for name, error in tre.items()})
none, twice = (float(tre[name].mean()) for name in list(tre)[1:])
assert tre["true displacement"].max() < 1e-3 and 1.6 < twice / none < 2.1

# %% [markdown]
# To nearly twice as much: a good-looking registration whose TRE is *worse* than the identity's has most likely a direction wrong. In [voxelmorph#86](https://github.com/voxelmorph/voxelmorph/issues/86) somebody has a good-looking warp and a TRE no smaller than before.
#
# ### Not at the points you fitted
#
# Until now the map was given, and landmarks judged it. Landmarks can also be used to *find* a map: the map of a given kind that takes them nearest to their partners. Then the distance left at these same points is the **fiducial registration error**, FRE. It looks like a TRE, and it is not one. Let eight landmarks be marked with an error of 2 mm, the truth be affine, and fit ever more flexible maps: a shift, an affine map, a quadratic one, and a spline that passes through every point.
#
# **Predict**: which map has the smallest FRE? Which the smallest error at 100 other places?

# %%
def fit(kind, marks, seen):
    """A map fitted to landmarks marks -> seen, (N, 2) each: points (M, 2) -> (M, 2)."""
    if kind == "shift":
        return lambda points: points + (seen - marks).mean(0)
    if kind == "spline":
        return RBFInterpolator(marks, seen, kernel="thin_plate_spline")

    def terms(points):
        i, j = points.T / 100
        more = [i * i, i * j, j * j] if kind == "quadratic" else []
        return np.stack([np.ones_like(i), i, j, *more], axis=1)

    weights = np.linalg.lstsq(terms(marks), seen, rcond=None)[0]
    return lambda points: terms(points) @ weights


# %%
def trial(kind, rng):
    """FRE and TRE of one fit, in mm."""
    marks, targets = rng.uniform(-80, 80, (8, 2)), rng.uniform(-60, 60, (100, 2))
    true = np.array([[1.08, -0.22], [0.22, 1.08]])                      # turns and enlarges
    seen = marks @ true.T + rng.normal(0, 2, marks.shape)               # marked, not exactly
    found = fit(kind, marks, seen)
    fre = np.linalg.norm(found(marks) - seen, axis=1).mean()
    return fre, np.linalg.norm(found(targets) - targets @ true.T, axis=1).mean()


rng, kinds = np.random.default_rng(0), ("shift", "affine", "quadratic", "spline")
trials = {kind: np.array([trial(kind, rng) for _ in range(200)]) for kind in kinds}  # (200, 2)
fre, tre = (np.array([np.median(trials[kind][:, k]) for kind in kinds]) for k in (0, 1))
Table({kind: {"FRE (mm)": x, "TRE (mm)": y} for kind, x, y in zip(kinds, fre, tre)})

# %%
figure = Figure(figsize=(5.5, 3.2), layout="constrained")
ax = figure.subplots()
ax.plot(kinds, fre, "o-", color="#0072b2", label="FRE: at the fitted landmarks")
ax.plot(kinds, tre, "s--", color="#d55e00", label="TRE: elsewhere")
ax.set(xlabel="map, ever more flexible", ylabel="median error (mm)", ylim=(0, None))
ax.legend()
show(figure, alt="FRE falls with every more flexible map, to 0 for the spline; TRE is smallest for "
     "the affine map, and larger for the quadratic one and the spline.")  # fmt: skip
affine = trials["affine"]
r = np.corrcoef(affine.T)[0, 1]
print(f"affine fits: correlation of FRE and TRE over 200 trials {r:.2f}")
assert (np.diff(fre) < 0).all() and fre[3] < 1e-6 and tre.argmin() == 1
assert min(tre[2], tre[3]) > 1.4 * tre[1] and tre[0] > 5 * tre[1] and abs(r) < 0.2

# %% [markdown]
# FRE falls from map to map, to 0. TRE is smallest for the affine map, the right kind; both more flexible ones are worse, since they fit the expert's trembling hand. Even for the right kind of map, a small FRE does not announce a small TRE: over 200 trials the two are uncorrelated, as J. M. Fitzpatrick showed for rigid maps. **What was fitted cannot judge the fit.** The same holds for a network that was trained with a Dice loss and is then judged by Dice of the same structures.

# %% [markdown]
# ## 5 · Look at the map itself
#
# If the truth is known, as in a synthetic pair, the **endpoint error** is the TRE at every voxel: the mean of $\|u(x) - u_\text{true}(x)\|$ over the brain. Look at the first table once more: the true displacement's own Dice is 0.96 and 0.97, not 1, since labels are resampled on the way. No method can be expected to pass that by being right; B passed it by being wrong.
#
# On real patients there is no truth. What remains is to ask whether the map *could* be anatomy: does it fold (lesson 14), and how evenly does it change volume? **SDlogJ** is the standard deviation of $\log \det J$ over the voxels: 0 where all volumes change alike, large where they jump. The identity has 0: a low value is no proof of being right.

# %%
det = jacobian_determinant(u)[:, None]
brain = pair.fixed_labels > 0
plain, reported = float(det[brain].log().std()), float(sdlogj(u, brain))
print(f"sd of log det J: {plain:.3f}   SDlogJ as Learn2Reg computes it: {reported:.3f}")
assert 3.5 < plain / reported < 4.5
assert 0.95 < truth["Dice gray"] < 0.97 and 0.955 < truth["Dice white"] < 0.975
assert everything["identity"]["SDlogJ"] < 1e-6

# %% [markdown]
# A trap: the code of the Learn2Reg challenge, from which the name comes, adds 3 to the determinant before the logarithm. That keeps mild folds finite, and makes the number about four times smaller for gentle maps. Ours does the same. Before you compare two SDlogJ, ask which one.

# %% [markdown]
# ## 6 · One pair is no evidence
#
# Is a weight of $\lambda = 2.5$ better than $\lambda = 5$ in `refine`? Run both on ten pairs that nobody tuned on (in this course: seeds of 100 and above). `over_cases` runs functions `(moving, fixed) -> displacement`, which never see a label, and shows mean ± standard deviation over the cases.

# %%
pairs = {f"seed {seed}": brains.pair(seed) for seed in range(100, 110)}
methods = {f"λ = {weight:g}": partial(refine, weight=weight, **quick) for weight in (5, 2.5, 1)}
cases = over_cases(methods, pairs, {2: "gray", 3: "white"}, progress=True)
cases

# %% [markdown]
# **Predict**: Dice of gray matter is 0.905 ± 0.031 for $\lambda = 5$ and 0.917 ± 0.028 for $\lambda = 2.5$. The difference is two fifths of the scatter. Is it real? (Even seeds grew from one head, the template, drawn as circles; odd ones from another, Colin27, as squares.)

# %% tags=["cover"]
stiff, middle = (cases.values(f"λ = {weight}", "Dice gray") for weight in (5, 2.5))
figure = Figure(figsize=(7.5, 3.2), layout="constrained")
left, right = figure.subplots(1, 2)
for case, (one, other) in enumerate(zip(stiff, middle)):
    head = {"color": ("#0072b2", "#009e73")[case % 2], "marker": "os"[case % 2]}
    left.plot([0, 1], [one, other], markersize=4, **head)
    right.plot(other - one, case, **head)
left.set(xticks=[0, 1], xlim=(-0.3, 1.3), ylabel="Dice of gray matter")
left.set_xticklabels(["λ = 5", "λ = 2.5"])  # one line for each case
right.axvline(0, color="#555555", linestyle="--")
right.set(xlabel="difference of Dice, λ = 2.5 minus λ = 5", ylabel="case")
show(figure, alt="Left, ten lines from the Dice for λ = 5 to the Dice for λ = 2.5, five for each of "
     "two heads; the columns overlap, and every line rises. Right, the ten differences, all to the "
     "right of zero.")  # fmt: skip
assert abs(stiff.mean() - 0.905) < 0.004 and abs(middle.mean() - 0.917) < 0.004
assert 0.35 < (middle - stiff).mean() / middle.std(ddof=1) < 0.45 and (middle > stiff).all()

# %% [markdown]
# It is. The columns overlap since *cases* differ, the two heads most of all; every single line rises. Subtract case by case, and the case drops out. `compare` does so and says three things: the mean difference; a **bootstrap** interval, which asks how the mean would vary if the ten cases were drawn anew, with replacement, from themselves; and **Wilcoxon's** signed-rank test, which asks how often ranks and signs like these would arise if each sign were a coin toss.

# %%
cases.compare("λ = 2.5", "λ = 5", "Dice gray")

# %%
better = cases.compare("λ = 2.5", "λ = 5", "Dice gray")
assert better.low > 0.005 and better.high < 0.02 and better.p_value == 2 / 2**10

# %% [markdown]
# And $\lambda = 1$ against $\lambda = 2.5$? Look at what `refine` optimizes, and at the map:

# %%
print(cases.compare("λ = 1", "λ = 2.5", "correlation"))
print(cases.compare("λ = 1", "λ = 2.5", "error (mm)"))
print(cases.compare("λ = 1", "λ = 2.5", "folding (%)"))
similar, error, folds = (
    cases.compare("λ = 1", "λ = 2.5", c) for c in ("correlation", "error (mm)", "folding (%)")
)
assert similar.mean > 0 and similar.p_value < 0.05 and len(cases.columns) == 7
assert error.p_value > 0.2 and error.low < 0 < error.high and folds.mean > 0.05
assert (folds.differences >= 0).all() and (folds.differences == 0).any()

# %% [markdown]
# A higher correlation, "significantly"; no smaller error; more folds. (Wilcoxon's test leaves equal cases out.) The softer map bought similarity. Three more things to know before you write "p < 0.05":
#
# - **Few cases.** With $N$ cases that differ the smallest possible p is $2/2^N$: five cases cannot give p < 0.05, however good the method. And a bootstrap of few cases is too sure of itself, as the next cell counts.
# - **Dependent cases.** Our ten pairs come from two heads. The p-value speaks of more pairs of *this* kind, not of more people.
# - **Many columns.** Three comparisons in seven columns are 21 tests: one is expected below 0.05 by chance alone. Name yours *before* you look.

# %%
def coverage(n, rng):
    """How often a 95 % bootstrap interval of n cases holds the true mean, 0, in 600 studies."""
    studies = rng.normal(0, 1, (600, n))
    means = studies[:, rng.integers(n, size=(400, n))].mean(2)          # (600, 400)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    return float(((low <= 0) & (high >= 0)).mean())


rng = np.random.default_rng(0)
share = {n: coverage(n, rng) for n in (5, 10, 30)}
print({f"{n} cases": f"{x:.0%}" for n, x in share.items()})
print(paired_comparison(middle[:5], stiff[:5], name="the first five cases"))
assert share[5] < 0.88 < share[30] and share[5] < share[10]
even, odd = middle[::2], middle[1::2]
assert even.min() > odd.max()                                           # two heads, two clouds

# %% [markdown]
# ## Common mistakes
#
# **Counting the background.** It is the largest "structure" and always fits. In [medical-datasets#9](https://github.com/adalca/medical-datasets/issues/9) somebody finds a mean Dice of 0.86 between subjects that nobody had registered deformably; the maintainer's guess is the background label. Here is what both means say when the moving head is 20 voxels out of place:

# %%
shifted = pair.moving_labels.roll(20, 2)
without, zero = dice(shifted, pair.fixed_labels, [1, 2, 3]), dice(shifted, pair.fixed_labels, [0])
every_voxel = (shifted == pair.fixed_labels).float().mean()
with_it = (without.sum() + zero.sum()) / 4
print(f"mean Dice of the tissues {float(without.mean()):.2f}, with the background "
      f"{float(with_it):.2f}; share of equal voxels {float(every_voxel):.2f}")  # fmt: skip
assert without.mean() < 0.35 < 0.42 < with_it and every_voxel > 0.6 and zero > 0.8

# %% [markdown]
# **Warping labels another way than your competitor.** Nearest neighbor or one-hot and linear (lesson 12): the same field gets another Dice. The author of TransMorph suggests the linear way in [LKU-Net#1](https://github.com/xi-jia/LKU-Net/issues/1): with it, he writes, Dice improves. Here it raises fluid, gray and white matter by 0.012, 0.004 and 0.004. For gray matter, that is a third of what $\lambda$ did above:

# %%
nearest = warp(pair.moving_labels, u_a, mode="nearest")
ways = [dice(x, pair.fixed_labels)[0] for x in (nearest, warp_labels(pair.moving_labels, u_a))]
print("one-hot and linear, minus nearest:", [f"{float(d):+.3f}" for d in ways[1] - ways[0]])
fluid, gray, white = (ways[1] - ways[0]).tolist()
assert 0.009 < fluid < 0.015 and 0.002 < min(gray, white) and max(gray, white) < 0.006
assert 0.2 < gray / better.mean < 0.45

# %% [markdown]
# **Comparing with a number from a paper.** Other labels, other warps, other cases, other code: people ask how scores were computed because they cannot tell ([LapIRN#16](https://github.com/cwmok/LapIRN/issues/16)), and get far lower ones themselves ([LapIRN#21](https://github.com/cwmok/LapIRN/issues/21), [TransMorph#11](https://github.com/junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration/issues/11)). Run both methods yourself, on the same cases, in the same table.
#
# **A structure that got lost.** Its Dice is 0 and its Hausdorff distance infinite. A program that skips it reports a better mean *because* the method failed; `table` shows `inf`.

# %%
gone = torch.full_like(u, 1000.0)                                       # looks outside, everywhere
lost = table({"lost": gone}, pair, {2: "gray"})["lost"]
assert lost["Dice gray"] == 0 and np.isinf(lost["HD95 (mm)"])

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. A paper reports Dice 0.75 for the hippocampus and 0.95 for white matter. Which one is registered better?</summary>
#
# You cannot tell. The hippocampus is small: an error of one voxel costs it far more Dice (section 3). Compare methods within a structure; between structures, use a distance in mm.
#
# </details>
#
# <details><summary>2. Methods X and Y reach 0.80 ± 0.05 and 0.82 ± 0.05 on the same 30 patients. The intervals overlap. Is there a difference?</summary>
#
# These two numbers cannot answer it. The ± is the scatter of patients, which both methods share. Ask for the 30 differences: if all lie near +0.02, there is no doubt; if they scatter by 0.07, it may be nothing.
#
# </details>
#
# <details><summary>3. A study of four patients finds a new method better in all four. What is the p-value of Wilcoxon's test?</summary>
#
# 0.125, that is $2/2^4$: "all four" is what four coins do in one of eight cases, counting both directions. At least six cases are needed for p below 0.05.
#
# </details>
#
# <details><summary>4. Method B of section 1 used the labels. Could a method that never sees them do the same?</summary>
#
# In part. Gray and white matter differ in brightness: sorting *all* voxels by intensity, without any label, gives both tissues more overlap than the identity has, as the next cell shows. Overlap of small, *local* structures is much harder to buy.
#
# </details>

# %%
flat = torch.stack([pair.moving, pair.fixed]).flatten(1).argsort()      # no labels: (2, voxels)
grid = torch.stack(torch.meshgrid(torch.arange(224), torch.arange(192), indexing="ij")).flatten(1)
sorted_only = torch.zeros(2, 224 * 192)
sorted_only[:, flat[1]] = (grid[:, flat[0]] - grid[:, flat[1]]).float()
bought = table({"sorted": sorted_only.view(1, 2, 224, 192)}, pair, {2: "gray", 3: "white"})
bought
# %%
assert bought["sorted"]["Dice white"] > bought["identity"]["Dice white"] + 0.02
assert bought["sorted"]["Dice gray"] > bought["identity"]["Dice gray"] + 0.02
assert paired_comparison([2, 3, 4, 5], [1, 1, 1, 1]).p_value == 0.125

# %% [markdown]
# ## Take away
#
# - Similarity and overlap can be bought by nonsense. Always report something of the map: folding, SDlogJ, landmarks; the endpoint error where the truth is known.
# - Dice: on labels, per structure, per patient, without background; it punishes small structures.
# - TRE in mm, at points that were not used for fitting; $p + u(p)$ against $q$. FRE is not TRE.
# - Compare methods case by case: differences, an interval, the number of cases. The identity is always in the table.
# - Choose on some cases (seeds below 100), report on others, and name your main column first.
#
# **Go further**
# - T. Rohlfing, "Image similarity and tissue overlaps as surrogates for image registration accuracy: widely used but unreliable", IEEE Transactions on Medical Imaging 31(2), 2012: the idea of method B.
# - J. M. Fitzpatrick, "Fiducial registration error and target registration error are uncorrelated", Proceedings of SPIE 7261, 2009.
# - A. Hering and many others, "Learn2Reg: comprehensive multi-task medical image registration challenge, dataset and evaluation in the era of deep learning", IEEE Transactions on Medical Imaging 42(3), 2023.
# - L. Maier-Hein, A. Reinke and many others, "Metrics reloaded: recommendations for image analysis validation", Nature Methods 21, 2024.
#
# Next: the exercise [exercises/15_evaluation.ipynb](../exercises/15_evaluation.ipynb).

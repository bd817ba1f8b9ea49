# %% [markdown]
# # 20 · Register one pair: three numbers, six, then twenty thousand
#
# At the end of this lesson you have registered one pair with maps of every kind, up to a real head in 3D, and you can say of each descent how far it could see, how stiff it was, and why it stopped.
#
# **Reading**: 42 minutes · **Running**: about 30 seconds on a laptop · **Before this**: lessons 11 to 15, and 17.
#
# **You will be able to**
# - *implement* the numbers of a pose and a descent that says why it ended,
# - *predict* what a map becomes on a coarser grid, and *repair* a loop from coarse to fine,
# - *derive* and *implement* the push of a demon,
# - *find* a weight and a schedule that reach a large deformation without folding.

# %%
import math
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from course_lib import setup
from course_lib.classical.affine import align_moments, pose_matrix, register_affine
from course_lib.classical.demons import demons, demons_force, match_histogram
from course_lib.datasets import brains, halve
from course_lib.evaluation import table
from course_lib.losses import diffusion, lncc, mse, ncc
from course_lib.metrics import endpoint_error, folding_fraction
from course_lib.optimise import refine
from course_lib.plotting import curves, images, show
from course_lib.spatial import affine_displacement, compose, pyramid
from course_lib.spatial import resize_displacement, resize_image, warp
from course_lib.widgets import playback_explorer

course = setup()
home = brains.real_pair()  # Colin, and the template
alone = partial(refine, smoothness=0, tolerance=0)  # every voxel for itself, to the last step

# %% [markdown]
# Colin is scanned again: he has turned by 25° and moved a little, and the scanner shows other contrast and noise. Same head, so a **rigid** map, a turn and a shift, brings the second scan back. We register it twice, by the same method, from coarse to fine; only the start differs: it is 80° away from the truth, or 100°.


# %%
def rescan(degrees, shift=(8, -6)):
    """Colin in another pose and another contrast: (1, 1, 224, 192)."""
    posed = brains.real_pair(pose=pose_matrix(degrees, shift=shift)).moving
    noise = torch.randn(posed.shape, generator=torch.Generator().manual_seed(1))
    return (posed**1.3 + 0.03 * noise).clamp(0, 1)


fixed, again = pyramid(home.moving, 2), pyramid(rescan(25), 2)  # (1, 1, 112, 96) of 2 mm
shape = fixed.shape[2:]

# %% tags=["cover"]
ends, results = {}, {}
for away in (80, 100):
    ends[away] = register_affine(
        again, fixed, motion="rigid", start=pose_matrix(25 - away), factors=(4, 2), steps=160
    )
    results[f"start {away}° away"] = warp(again, affine_displacement(ends[away], shape))
show(
    images({"fixed": fixed, "second scan": again} | results),
    alt="Four brain slices: the fixed one; the second scan, turned; the result from 80 degrees, "
    "which looks like the fixed one; and the result from 100 degrees, which is upside down.",
)

# %%
likeness = {away: -float(ncc(warp(again, affine_displacement(m, shape)), fixed))
            for away, m in ends.items()}  # fmt: skip
turned = {away: math.degrees(math.atan2(m[0, 1, 0], m[0, 0, 0])) for away, m in ends.items()}
for away in ends:
    print(f"start {away}° away: ends at {turned[away]:.0f}°, correlation {likeness[away]:.2f}")
assert abs(turned[80] - 25) < 1 and abs(abs(turned[100] - 25) - 180) < 5
assert likeness[80] > 0.98 and 0.90 < likeness[100] < 0.92
small, turn, move = pyramid(fixed, 2), pose_matrix(3)[:, :, :2], torch.tensor([0, 0, 2.0])
for m in ends.values():  # every small step makes it worse
    here, *around = (float(ncc(pyramid(warp(again, affine_displacement(near, shape)), 2), small))
                     for near in (m, turn @ m, turn.mT @ m, m + move, m - move))  # fmt: skip
    assert min(around) > here

# %% [markdown]
# One of them lies **upside down**, with a correlation of 0.91; lesson 00's good affine map of two people had 0.95. Both descents came to rest: at both places every small step makes the loss worse. What decides where a registration ends?

# %% [markdown]
# ## 1 · Parametrize, measure, descend
#
# Every method of this lesson has the same three parts: a map $\varphi_p$ that depends on numbers $p$; a loss $L$ that measures how far the warped image is from the fixed one; and a descent that changes $p$:
#
# $$p \leftarrow p - \eta\, \nabla_p\, L\bigl(\text{moving} \circ \varphi_p,\ \text{fixed}\bigr)$$
#
# with $\eta$ the **rate**. Rigid in 2D means three numbers: an angle, in radians, and two shifts, in voxels. Gradients come from PyTorch, through the warp.
#
# **Predict**: with a rate of 0.06, how much of the 25° and of the shift by (4, −3) voxels is found after 300 steps?


# %%
def pose(p, radius):
    """(3,): arc at the radius, shift, shift -> (1, 2, 3), [A | t]. Radius 1: the arc is the angle."""
    c, s = (p[0] / radius).cos(), (p[0] / radius).sin()
    return torch.stack([torch.stack([c, -s, p[1]]), torch.stack([s, c, p[2]])])[None]


def misfit(p, radius, scan=again):
    u = affine_displacement(pose(p, radius), shape)  # (1, 2, 112, 96)
    return ncc(warp(scan, u, padding="border"), fixed)


def walk(radius, rate, steps=300, scan=again):
    """Plain gradient descent: the places (steps + 1, 3) and the losses of all but the last."""
    places, losses = [torch.zeros(3)], []
    for _ in range(steps):
        p = places[-1].clone().requires_grad_()
        loss = misfit(p, radius, scan)
        (gradient,) = torch.autograd.grad(loss, p)  # (3,)
        places.append((p - rate * gradient).detach())
        losses.append(loss.item())
    return torch.stack(places), losses


# %%
raw, raw_losses = walk(radius=1.0, rate=0.06)
print(f"angle {math.degrees(raw[-1, 0]):.1f}°, shift ({raw[-1, 1]:.1f}, {raw[-1, 2]:.1f}) voxels, "
      f"correlation {-raw_losses[-1]:.2f}")  # fmt: skip
assert 15 < math.degrees(raw[-1, 0]) < 23 and raw[-1, 1:].abs().max() < 1

# %% [markdown]
# The shift has hardly begun, and the angle cannot finish without it. The reason is **units**. A shift by 1 moves every voxel by 1; a turn by 1 radian throws the rim across the image. So along the angle the loss bends far more, about $30^2$ times for a brain of 30 voxels' radius. What tells is its **curvature**, the second derivative:


# %%
def curvature(p, radius, h):
    """Second differences of the loss along each of the three numbers: (3,)."""
    bends = []
    for step in torch.diag(torch.tensor(h)):
        sides = misfit(p + step, radius) + misfit(p - step, radius)
        bends.append((sides - 2 * misfit(p, radius)) / step.square().sum())
    return torch.stack(bends)


angle = math.radians(25)
by_angle = curvature(torch.tensor([angle, 4, -3]), 1.0, [0.02, 0.5, 0.5])
by_arc = curvature(torch.tensor([30 * angle, 4, -3]), 30.0, [0.5, 0.5, 0.5])
print(f"an angle is {float(by_angle[0] / by_angle[1:].min()):.0f} times as curved as a shift")
print(f"an arc at 30 voxels: at most {float(by_arc.max() / by_arc.min()):.1f} times")
assert 0.06 < 2 / by_angle[0] < 0.07  # the rate above is just below
assert by_angle[0] > 300 * by_angle[1:].min() and by_arc.max() < 3 * by_arc.min()

# %% [markdown]
# In one dimension, a step $\eta L'$ in a valley of curvature $k$ multiplies the distance to its bottom by $1 - \eta k$. So near the goal the rate must stay below $2/k$ for the most **curved** number (0.067 for the angle), or that one never settles; and the **flattest** one then needs hundreds of times more steps. The cure is a change of units: give the turn as an **arc**, in voxels at the rim of the brain (30 voxels from the middle), angle = arc / radius. Now a unit of each number moves the image about equally far.

# %%
found, losses = walk(radius=30.0, rate=20, steps=100)
show(
    curves(
        {"angle in radians": (range(100), raw_losses[:100]), "arc in voxels": (range(100), losses)},
        xlabel="step", ylabel="loss (−correlation)",
    ),
    alt="The loss with an angle falls a little and stays near −0.8; with an arc it reaches −1 "
    "within 60 steps.",
)  # fmt: skip
print(f"angle {math.degrees(found[-1, 0] / 30):.1f}°, shift ({found[-1, 1]:.1f}, "
      f"{found[-1, 2]:.1f}) voxels")  # fmt: skip
assert abs(math.degrees(found[-1, 0] / 30) - 25) < 0.5 and abs(found[-1, 1] - 4) < 0.2
assert losses[60] < -0.99 and 2 / by_arc.max() > 20

# %% [markdown]
# Adam scales each number by itself, so it forgives much of this; `register_affine` takes Adam, and good units all the same.

# %% [markdown]
# ## 2 · How far can it see?
#
# The **capture range** of a registration is how far away it may start and still arrive. Measure it: turn the head by more and more, start from no turn at all, and look at what is left.
#
# **Predict**: how far does one image size reach, and how far a pyramid, which begins on images 4 times smaller?

# %%
angles = [40, 60, 80, 100, 140, 180]
scans = {degrees: pyramid(rescan(degrees), 2) for degrees in angles}


def left_over(matrix, degrees):
    """By how many degrees a matrix misses the turn: 0 to 180."""
    found = math.degrees(math.atan2(matrix[0, 1, 0], matrix[0, 0, 0]))
    return abs((found - degrees + 180) % 360 - 180)


missed = {"one size": {}, "pyramid": {}, "moments": {}}
for degrees, scan in scans.items():
    one = pose(walk(30.0, 20, 120, scan)[0][-1], 30.0)  # section 1's descent
    many = register_affine(scan, fixed, motion="rigid", factors=(4, 2), steps=160)
    for name, matrix in (("one size", one), ("pyramid", many),
                         ("moments", align_moments(scan, fixed))):  # fmt: skip
        missed[name][degrees] = left_over(matrix, degrees)

# %%
show(
    curves(
        {name: (angles, list(left.values())) for name, left in missed.items()},
        xlabel="the head is turned by (degrees)", ylabel="off in the end (degrees)",
    ),
    alt="One size ends right for small turns only. The pyramid ends right up to 80 degrees and "
    "at 180 degrees off from 100 on. Moments are within a few degrees everywhere.",
)  # fmt: skip
for name, left in missed.items():
    print(f"{name:9}", {degrees: round(off) for degrees, off in left.items()})
half_turn = warp(fixed, affine_displacement(pose_matrix(180), shape))
upside = {f: round(-float(ncc(pyramid(half_turn, f), pyramid(fixed, f))), 2) for f in (1, 2, 4)}
print("correlation of the fixed image with itself upside down, by factor:", upside)
lost = {name: next((d for d in angles if left[d] > 20), 200) for name, left in missed.items()}
assert 40 <= lost["one size"] <= 60 and lost["pyramid"] == 100 and lost["moments"] == 200
assert all(missed["pyramid"][degrees] > 170 for degrees in angles[3:])
assert upside[1] < upside[2] < upside[4] and max(missed["moments"].values()) < 8

# %% [markdown]
# One size loses its way first: the folds of the cortex make a small valley wherever some fold meets another. Blurred away, they leave one wide valley, and the pyramid walks down from 80°. But beyond 90° it walks down **the other side**: a brain is nearly an ellipse, and an ellipse turned by half a turn fits itself. No blur removes that valley. The printed line says that it gets *deeper* on coarser images.
#
# **Moments** do not walk at all. The centroid (mean position of the brightness) gives the shift, and the longest axis of its spread the turn, up to half a turn; try both, keep the better one. That is a start, within some degrees, from anywhere. So: moments first, then a pyramid.

# %%
rough = align_moments(scans[140], fixed)
exact = register_affine(scans[140], fixed, motion="rigid", start=rough, factors=(4, 2))
print(
    f"140°: moments leave {left_over(rough, 140):.1f}°, then descent {left_over(exact, 140):.1f}°"
)
assert left_over(exact, 140) < 0.5

# %% [markdown]
# ## 3 · More numbers, shorter sight
#
# Rigid is 3 numbers; a **similarity** adds a scale, 4; an **affine** map also stretches and shears, 6; and a dense field has two for every voxel, 21,504 here. Is more always better?
#
# The library's `refine` descends on such a field in two ways: every voxel for itself (`smoothness=0`; we call it `alone`), or, unless told otherwise, in *blurred* changes, so that neighbors move together.
#
# **Predict**: the same head again, turned by 5° to 60°. All use a pyramid and start from nothing. Which gives up first, and at which turn?

# %%
turns = (5, 20, 40, 60)
inside = resize_image((home.moving_labels > 0).float(), shape) > 0.5  # (1, 1, 112, 96)
off = {name: [] for name in ("rigid", "affine", "dense, blurred", "dense, alone", "nothing")}
for degrees in turns:
    scan = pyramid(rescan(degrees, (0, 0)), 2)
    truth = affine_displacement(pose_matrix(degrees), shape)
    tried = {"dense, alone": alone(scan, fixed, weight=1, steps=40),
             "dense, blurred": refine(scan, fixed, steps=40), "nothing": 0 * truth}  # fmt: skip
    for motion in ("rigid", "affine"):
        matrix = register_affine(scan, fixed, motion=motion, factors=(4, 2), steps=160)
        tried[motion] = affine_displacement(matrix, shape)
    for name, u in tried.items():
        off[name].append(float(endpoint_error(u, truth, mask=inside)))  # voxels of 2 mm

# %%
show(
    curves({name: (turns, errors) for name, errors in off.items() if name != "nothing"},
           xlabel="the head is turned by (degrees)", ylabel="off in the end (voxels)"),
    alt="Rigid is right everywhere, affine up to 40 degrees, the dense field with blurred changes "
    "up to 20 degrees, and the one without up to 5 degrees. Beyond, all errors are large.",
)  # fmt: skip
for name, errors in off.items():
    print(f"{name:14}", [round(error, 1) for error in errors])
assert max(off["rigid"]) < 0.5 and off["affine"][2] < 1 < 10 < off["affine"][3]
assert off["dense, blurred"][1] < 1 and off["dense, blurred"][2] > 5
assert off["dense, alone"][0] < 0.6 and off["dense, alone"][1] > 0.4 * off["nothing"][1]

# %% [markdown]
# The map that can do least sees farthest. A dense field whose voxels move alone is right at 5°; at 20° it has bent the wrong folds onto each other and stopped. Blurred changes see to 20°, an affine map to 40°. With few numbers the whole head pulls in one direction; with many, each voxel follows its neighborhood into the nearest valley.
#
# This is why deformable methods want an affine step first. The survey that this course follows says so of VoxelMorph: without it results are poor, "perhaps" since large displacements are too much for the network. Here is no network, and the same failure: it lies in the descent on a dense field.

# %% [markdown]
# ## 4 · Twenty thousand numbers, and one more
#
# Now the dense field, every voxel for itself, for two synthetic people whose true displacement is known. The loss is `lncc` plus $\lambda$ times `diffusion` (lesson 14). There, $\lambda$ was judged by Dice and by the truth. With new data you have neither. What does the descent alone say?
#
# Each $\lambda$ ends with a similarity and a roughness. Draw one against the other, and you have the **L-curve**. On its steep arm, a little more roughness buys much similarity: structure. On its flat arm, much roughness buys a little: noise. The corner between them is the advice. $\lambda$ is the exchange rate: the descent ends where the curve has a slope of $-\lambda$, since there neither direction pays.
#
# **Predict**: is the corner where the field is nearest to the truth?

# %%
pair = halve(brains.pair(7))  # 112 × 96 voxels of 2 mm
brain = pair.fixed_labels > 0
weights = [10 ** (n / 2) for n in range(-3, 4)]  # 0.032, 0.1, … 32
found, runs = {}, {weight: [] for weight in weights}
for weight in weights:
    found[weight] = alone(pair.moving, pair.fixed, weight=weight, watch=runs[weight].append)
rows = [
    (float(lncc(warp(pair.moving, u, padding="border"), pair.fixed)), float(diffusion(u)),
     float(endpoint_error(u, pair.displacement, mask=brain)), float(folding_fraction(u, brain)))
    for u in found.values()
]  # fmt: skip
similarity, penalty, error, folded = np.array(rows).T  # (7,) each


# %%
def corner(x, y):
    """The index where a curve turns most: 1 over the radius of the circle through 3 points."""
    x, y = ((v - v.min()) / (v.max() - v.min()) for v in (x, y))  # a square picture
    turn = [0.0] * len(x)
    for k in range(1, len(x) - 1):
        a, b, c = (np.array([x[n], y[n]]) for n in (k - 1, k, k + 1))
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        sides = np.linalg.norm(b - a) * np.linalg.norm(c - b) * np.linalg.norm(c - a)
        turn[k] = 2 * abs(area) / sides
    return int(np.argmax(turn))


plain, logs = corner(penalty, similarity), corner(np.log(penalty), np.log(1 + similarity))
best = int(error.argmin())
for name, k in (("corner", plain), ("corner, log axes", logs), ("nearest to the truth", best),
                ("smallest", 0), ("largest", -1)):  # fmt: skip
    print(f"{name:21} λ = {weights[k]:5.2f}: off by {error[k]:.2f} voxels, folded {folded[k]:.2%}")

# %%
figure = Figure(figsize=(11, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot(penalty, similarity, "o-", color="#0072b2")
for k in range(len(weights)):
    left.annotate(f"λ = {weights[k]:.2g}", (penalty[k], similarity[k]), (9, 4),
                  textcoords="offset points")  # fmt: skip
left.plot(penalty[plain], similarity[plain], "s", color="#d55e00", markersize=11)
left.set(xlabel="penalty: diffusion(u)", ylabel="similarity: −local NCC²", xlim=(-0.02, 0.72),
         ylim=(-0.69, -0.5))  # fmt: skip
right.semilogx(weights, error, "o-", color="#0072b2")
right.plot(weights[plain], error[plain], "s", color="#d55e00", markersize=11)
right.set(xlabel="weight λ", ylabel="off the truth (voxels)", ylim=(0, None))
show(
    figure,
    alt="Left, similarity against penalty: an L whose corner, marked, is at a weight of 1. Right, "
    "the distance to the truth over the weight: a valley whose bottom is at the same weight.",
)
slopes = -np.diff(similarity) / np.diff(penalty)  # between neighbors
assert all(0.8 * w < slope < 1.25 * after for w, slope, after in zip(weights, slopes, weights[1:]))
assert abs(plain - best) <= 1 and abs(logs - best) <= 1
assert 3 < max(weights[plain] / weights[logs], weights[logs] / weights[plain]) < 3.5
assert error[plain] < 1.15 * error[best] and error[logs] < 1.4 * error[best]
assert folded[0] > 0.01 > 0 == folded[best:].max()
assert error[0] > 3 * error[best] and error[-1] > 2 * error[best]

# %% [markdown]
# It is near. But the corner depends on how the axes are drawn: plain and logarithmic ones (usual in the theory of inverse problems) disagree by a factor of three. Around the best $\lambda$ the error is flat, so both choices are good, and both ends of the range are several times worse. **The L-curve gives you the order of magnitude, without labels and without the truth, and not more.** Look at the folds too: they tell the side.

# %% [markdown]
# ## 5 · Demons: the push of one voxel
#
# Before there was automatic differentiation, Thirion (1998) let every voxel push by itself, like Maxwell's demons. As a sentence: *where the warped image is too dark, look towards where it gets brighter.* With $w$ the warped and $f$ the fixed intensity at one voxel, a small move $du$ makes $w + \nabla w \cdot du$ of $w$. Its squared difference:
#
# $$E(du) = \tfrac12 \bigl(w + \nabla w \cdot du - f\bigr)^2, \qquad -\nabla E(0) = (f - w)\,\nabla w$$
#
# $E$ is 0 after the step $du = (f - w) \nabla w / |\nabla w|^2$, which explodes where the image is flat. Thirion adds the difference below, and takes the fixed image's gradient, which is the same at the goal:
#
# $$du = \frac{(f - w)\,\nabla f}{|\nabla f|^2 + (f - w)^2}$$
#
# No push is longer than half a voxel. **Predict**: is $(f - w) \nabla w$ really the gradient of the loss of lesson 13, `mse`, by the displacement?

# %%
moving_like = match_histogram(pair.moving, pair.fixed)  # demons believe in intensity
u = torch.zeros(1, 2, *shape, requires_grad=True)
(slope,) = torch.autograd.grad(mse(warp(moving_like, u, padding="border"), pair.fixed), u)
g = torch.cat(torch.gradient(moving_like, dim=(2, 3)), dim=1)  # (1, 2, 112, 96)
by_hand = (pair.fixed - moving_like) * g
agree = torch.cosine_similarity((-slope).flatten(), by_hand.flatten(), dim=0)
longest = demons_force(moving_like, pair.fixed).norm(dim=1).max()
print(f"cosine of the two: {float(agree):.2f}; longest push: {float(longest):.2f} voxels")
assert agree > 0.7 and longest <= 0.5001

# %% [markdown]
# In direction, nearly. (The warp's own slope is one-sided, ours central.) So demons are a descent on `mse`, each voxel with a rate of its own. What makes the pushes one *motion* is a **blur**: after each push the field is smoothed by a Gaussian. There is no $\lambda$; the blur is the stiffness. The **diffeomorphic** variant (Vercauteren and others, 2009) *follows* the push instead of adding it, as lesson 17's river: $u \leftarrow$ `compose(u, exp(du))`.
#
# **Predict**: the blur, 0 to 3 voxels, does what $\lambda$ did. Where are the folds, and does following help?

# %%
blurs = (0, 0.5, 1, 2, 3)
scores = {}
for kind in ("added", "followed"):
    for blur in blurs:
        u = demons(moving_like, pair.fixed, smoothness=blur, diffeomorphic=kind == "followed")
        scores[kind, blur] = (float(endpoint_error(u, pair.displacement, mask=brain)),
                              float(folding_fraction(u, brain)))  # fmt: skip
for kind in ("added", "followed"):
    print(f"{kind:8}", {b: f"off {scores[kind, b][0]:.2f}, folded {scores[kind, b][1]:.1%}"
                        for b in blurs})  # fmt: skip
assert scores["added", 0][1] > 0.2 > 0.1 > scores["followed", 0][1]
assert scores["added", 2][0] < 0.5 * scores["added", 0][0] and scores["added", 2][1] == 0
assert all(abs(scores["added", b][0] - scores["followed", b][0]) < 0.1 for b in (1, 2, 3))
still = float(endpoint_error(0 * u, pair.displacement, mask=brain))  # nobody moves
assert min(scores["added", 0][0], scores["followed", 0][0]) > still
blurred = refine(pair.moving, pair.fixed)
print(f"no registration: off {still:.2f};  alone, λ = 1: {error[best]:.2f};  blurred changes, λ = 1: "
      f"{float(endpoint_error(blurred, pair.displacement, mask=brain)):.2f}")  # fmt: skip
assert error[best] < min(miss for miss, _ in scores.values())
assert endpoint_error(blurred, pair.displacement, mask=brain) < 0.8 * error[best]

# %% [markdown]
# Without a blur, the pushes tear the field apart; followed, they fold far less. Neither is nearer to the truth than no registration at all. With a blur of 1 or more it hardly matters. Descent on `lncc` comes nearer, and `refine`, which blurs its changes unless told otherwise, nearest. Two kinds of stiffness: a penalty says what a good *field* is, a blur says what a possible *step* is.
#
# The survey's citation for "optical flow" is about event cameras (Liu, Parra and Chin, CVPR 2021). Read Horn and Schunck instead: the same $(f - w)\nabla f$, with diffusion as the smoothness.

# %% [markdown]
# ## 6 · Why did it stop?
#
# A descent ends because it *converged* or because its *steps* ran out. Ask which. `refine` hands each step to `watch`, and the last one of each level says it: `stopped`. With `tolerance`, a level has converged when ten steps gained no more than that part of what it gained in all.

# %%
miss = {}
for allowed in (20, 200):
    seen = []
    u = refine(pair.moving, pair.fixed, steps=allowed, tolerance=0.005, watch=seen.append)
    ended = {f"1/{s.factor}": f"{s.stopped} at {s.number}" for s in seen if s.stopped}
    miss[allowed] = float(endpoint_error(u, pair.displacement, mask=brain))
    print(f"at most {allowed:3}: {ended}, off by {miss[allowed]:.2f}")
    assert {s.stopped for s in seen} - {""} == ({"steps"} if allowed == 20 else {"converged"})
assert abs(miss[20] - miss[200]) < 0.03

# %% [markdown]
# Here 20 steps are as good: "steps" is a reason to look, not yet a fault.
#
# **Predict** what the hand-written descent of section 1 says of itself with a rate that is too small, and with one that is too large (above $2/k$).

# %%
reports = {}
for name, rate in (("good", 20), ("tiny", 0.02), ("large", 80)):
    places, losses = walk(radius=30.0, rate=rate, steps=120)
    lengths = places.diff(dim=0).abs().amax(1)  # of each step, in voxels
    small = (lengths < 0.01).nonzero()
    when = f"converged at step {int(small[0]) + 1}" if len(small) else "steps ran out"
    reports[name] = (when, losses)
    print(f"rate {rate:5}: {when}; loss there {losses[int(small[0]) if len(small) else -1]:.3f}, "
          f"lowest {min(losses):.3f}")  # fmt: skip
show(
    curves({f"rate is {name}": (range(120), r[1]) for name, r in reports.items()},
           xlabel="step", ylabel="loss (−correlation)"),
    alt="With the good rate the loss falls to −1. With the tiny rate it is a flat line at the top. "
    "With the large rate it jumps up and down and never settles.",
)  # fmt: skip
assert reports["tiny"][0] == "converged at step 1" and reports["large"][0] == "steps ran out"
assert 20 < 2 / by_arc.max() < 2 / by_arc.min() < 80
assert reports["good"][0].startswith("converged") and min(reports["good"][1]) < -0.99
assert min(reports["large"][1]) < reports["large"][1][-1] - 0.02

# %% [markdown]
# The tiny rate "converged" at its first step, where it began: a small step was taken for arrival. The large one leaps from wall to wall, past a place that was much better than where it ended: keep the best one, not the last. And the upside-down brain of the beginning *had* converged. "Converged" is a statement about the last steps; it says nothing about the place.
#
# Nor does a low loss: what was fitted cannot judge the fit. The loss of a registration is its FRE (lesson 15); ask for an error elsewhere.

# %% [markdown]
# ## 7 · A real head, in 3D
#
# The library's functions take any number of axes. Colin's head, turned by 20° about one axis and shifted, against the template, with voxels of 4 mm: 12 numbers first, then 387,072.

# %%
c, s = math.cos(math.radians(20)), math.sin(math.radians(20))
turned_by = torch.tensor([[[c, -s, 0, 3], [s, c, 0, -6], [0, 0, 1, 6.0]]])  # voxels of 2 mm
head = halve(brains.real_pair(ndim=3, pose=turned_by))  # (1, 1, 48, 56, 48)
matrix = register_affine(head.moving, head.fixed, factors=(4, 2))  # (1, 3, 4)
u_affine = affine_displacement(matrix, head.fixed.shape[2:])  # (1, 3, 48, 56, 48)
bend = refine(warp(head.moving, u_affine), head.fixed, smoothness=2, steps=15)
both = compose(u_affine, bend)  # warped once in the end
names = {2: "gray matter", 3: "white matter"}
result = table({"affine": u_affine, "affine, then dense": both}, head, structures=names)
result

# %%
cut = head.fixed.shape[4] // 2
looks = {"moving": head.moving, "affine": warp(head.moving, u_affine),
         "then dense": warp(head.moving, both), "fixed": head.fixed}  # fmt: skip
show(
    images({name: volume[..., cut].flip(3).mT for name, volume in looks.items()},
           axes_labels=("front → back (voxels)", "left → right (voxels)")),
    alt="A cut through four volumes: the moving head, turned; affinely registered; then bent; and "
    "the template, which the third resembles most.",
)  # fmt: skip
steps_up = [result[name]["Dice white matter"] for name in result.rows]
assert steps_up[1] > steps_up[0] + 0.15 and steps_up[2] > steps_up[1] + 0.02
assert result["affine, then dense"]["folding (%)"] < 0.1

# %% [markdown]
# The affine step does the larger part; bending adds the rest. At 4 mm gray matter is hardly a voxel thick, which costs Dice: compare within a table, never across resolutions.

# %% [markdown]
# ## 8 · Play: a registration, step by step
#
# The seven descents of section 4, recorded step by step, each on its level's own voxels. The lines below say why a level ended, and how far the field is from the truth.
#
# **Play** with λ = 1 (log₁₀ λ = 0). The loss leaps up twice. Does the error leap too? And on which level is most of it removed?

# %%
explorer = playback_explorer(pair, runs)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# The loss leaps when a level begins, because the images change: finer ones show more that does not fit yet. The field is the same, so the error does not leap. Each level removes what its voxels can see: 0.4 voxels of error on the coarsest, 0.6 on the middle one, 0.25 on the finest, whose steps cost most. (Losses of different levels cannot be compared.)
#
# </details>

# %%
recorded = runs[weights[3]]
begins = [n for n, step in enumerate(recorded) if step.number == 1][1:]
losses = [recorded[n].loss for n in (begins[0] - 1, begins[0], begins[1] - 1, begins[1])]


def off_at(n):
    """The distance to the truth at a step, on the full grid."""
    u = resize_displacement(recorded[n].displacement, pair.fixed.shape[2:])
    return float(endpoint_error(u, pair.displacement, mask=brain))


errors = [off_at(n) for n in (0, begins[0] - 1, begins[0], begins[1] - 1, begins[1], -1)]
print("loss before and after each leap:", [round(loss, 2) for loss in losses])
print("error at the start, before and after each leap, at the end:", [f"{e:.2f}" for e in errors])
assert losses[1] > losses[0] + 0.1 and losses[3] > losses[2] + 0.05
assert abs(errors[2] - errors[1]) < 0.05 and abs(errors[4] - errors[3]) < 0.05
gains = [errors[0] - errors[1], errors[2] - errors[3], errors[4] - errors[5]]
assert all(abs(gain - said) < 0.1 for gain, said in zip(gains, (0.4, 0.6, 0.25)))

# %% [markdown]
# ## Common mistakes
#
# **Bending first.** "It does not work on my data" is often a missing affine step: [voxelmorph#480](https://github.com/voxelmorph/voxelmorph/issues/480), [#112](https://github.com/voxelmorph/voxelmorph/issues/112), [#471](https://github.com/voxelmorph/voxelmorph/issues/471), [TransMorph#23](https://github.com/junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration/issues/23). Section 3 is the reason.
#
# **Throwing a start away.** A field from a coarse level, from another method or from a network is where the next descent begins: `refine(moving, fixed, start=u)`. On a network's answer this is *instance optimization* ([voxelmorph#546](https://github.com/voxelmorph/voxelmorph/issues/546)). Below, ten fine steps from zero and from the coarse field.
#
# **Turning about the corner.** Each turn then carries the head away. The shift has to bring it back: the three numbers are no longer independent, the steepest and the flattest direction differ far more, and plain descent crawls.

# %%
coarse = alone(pair.moving, pair.fixed, weight=1, factors=(4, 2))
for name, start in (("from zero", None), ("from the coarse field", coarse)):
    u = alone(pair.moving, pair.fixed, start, weight=1, factors=(1,), steps=10)
    miss = float(endpoint_error(u, pair.displacement, mask=brain))
    print(f"ten fine steps {name}: off by {miss:.2f} voxels")
    assert miss > 0.6 if start is None else miss < 0.4


# %%
def spread(about):
    """Steepest over flattest curvature at the truth, turning about a point (voxels from c)."""

    def loss(p):
        matrix = pose(p, 30.0)  # (1, 2, 3)
        carried = (about - matrix[0, :, :2] @ about).view(1, 2, 1)  # R(x − a) + a = R x + …
        moved = torch.cat([matrix[:, :, :2], matrix[:, :, 2:] + carried], 2)
        u = affine_displacement(moved, shape)
        return ncc(warp(again, u, padding="border"), fixed)

    R = pose(torch.tensor([30 * angle, 0, 0]), 30.0)[0, :, :2]
    p = torch.cat([torch.tensor([30 * angle]), torch.tensor([4.0, -3.0]) - about + R @ about])
    e = 0.5 * torch.eye(3)
    H = torch.stack([torch.stack([loss(p + a + b) - loss(p + a - b) - loss(p - a + b)
                                  + loss(p - a - b) for a in e]) for b in e])  # fmt: skip
    bends = torch.linalg.eigvalsh(H)
    return float(bends[-1] / bends[0])


middle, edge = spread(torch.zeros(2)), spread(torch.tensor([-55.5, -47.5]))
print(f"steepest over flattest direction: {middle:.1f} about the middle, {edge:.0f} at the corner")
assert middle < 4 and edge > 5 * middle

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. Every rigid map is an affine map. So for two scans of one head, can the affine result be worse?</summary>
#
# Yes. It sees less far: at 60° the rigid descent arrived and the affine one did not. Containing the right answer is not finding it.
#
# </details>
#
# <details><summary>2. A descent reports "converged" and a loss of −0.91. What do you know?</summary>
#
# That its last steps were small. Ask where it started, with which rate, and whether another start ends lower. Then look: it may be upside down.
#
# </details>
#
# <details><summary>3. The fixed image is twice as bright as the warped one, and they lie exactly on each other. What do demons do?</summary>
#
# They push along every edge, some as hard as they can: they take the difference of brightness for a difference of place. Match the histograms first, or use a loss that does not mind (lessons 13 and 16).
#
# </details>

# %%
push = demons_force(0.5 * fixed, fixed).norm(dim=1)
print(f"pushes between an image and itself, half as bright: up to {float(push.max()):.2f} voxels")
assert push.max() > 0.45

# %% [markdown]
# ## Take away
#
# - Parametrize, measure, descend. Give all numbers units in which they move the image about equally far.
# - More numbers, shorter sight: moments, rigid or affine over a pyramid, then dense.
# - The weight λ is an exchange rate. The L-curve's corner gives its order of magnitude, without labels.
# - A demon's push is a gradient step; the blur makes it a motion.
# - "Converged" is about the last steps. Ask why it stopped, where it began, and look.
#
# **Go further**
# - J.-P. Thirion, "Image matching as a diffusion process: an analogy with Maxwell's demons", Medical Image Analysis 2(3), 1998.
# - T. Vercauteren, X. Pennec, A. Perchant, N. Ayache, "Diffeomorphic demons: efficient non-parametric image registration", NeuroImage 45(1), 2009.
# - M. Jenkinson, S. Smith, "A global optimisation method for robust affine registration of brain images", Medical Image Analysis 5(2), 2001: many starts, coarse to fine.
# - P. C. Hansen, "Analysis of discrete ill-posed problems by means of the L-curve", SIAM Review 34(4), 1992.
# - B. K. P. Horn, B. G. Schunck, "Determining optical flow", Artificial Intelligence 17, 1981.
#
# Next: the exercise [exercises/20_register_one_pair.ipynb](../exercises/20_register_one_pair.ipynb).

# %% [markdown]
# # 30 · VoxelMorph: learn to register
#
# At the end of this lesson you have trained a network that aligns two brains it has never seen, in one pass, and you know what that speed costs and where it ends.
#
# **Reading**: 42 minutes · **Running**: about 50 seconds on a laptop · **Before this**: lessons 13, 14, 17 and 20.
#
# **You will be able to**
# - *predict* the sizes inside a U-Net, and which images it refuses,
# - *implement* VoxelMorph: its U-Net, its flow head, its loss without labels,
# - *diagnose* a training step whose error message is silence,
# - *find* how many steps of refinement a network's answer saves.

# %%
import itertools
from importlib.resources import files

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from course_lib import setup
from course_lib.classical.affine import pose_matrix, register_affine
from course_lib.datasets import brains, halve
from course_lib.evaluation import recorded, table
from course_lib.losses import diffusion, lncc, mse
from course_lib.metrics import endpoint_error, folding_fraction
from course_lib.models import VoxelMorph, pretrained
from course_lib.optimise import refine
from course_lib.plotting import curves, draw_grid, images, show
from course_lib.spatial import affine_displacement, compose, warp
from course_lib.training import cosine, fit, unsupervised
from course_lib.widgets import weight_explorer

course = setup()
unseen = brains.pair(100)  # a pair that no network of this course was trained on
network = pretrained("voxelmorph2d-brains")

# %% [markdown]
# A network looks at two images at once and answers with a displacement field. It tries nothing out: about a billion multiplications, in one direction, and the field is there.

# %% tags=["cover"]
with torch.no_grad():
    answer = network(unseen.moving, unseen.fixed).displacement  # (1, 2, 224, 192)
figure = Figure(figsize=(14, 4), layout="constrained")
axes = figure.subplots(1, 4)
looks = {"moving": unseen.moving, "fixed": unseen.fixed, "warped": warp(unseen.moving, answer)}
for ax, (name, image) in zip(axes, looks.items()):
    ax.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
    ax.set(title=name, xlabel="j (voxels)", ylabel="i (voxels)")
draw_grid(axes[3], answer, step=6)
axes[3].set(title="the network's answer, x + u(x)", xlabel="j (voxels)", ylabel="i (voxels)")
show(
    figure,
    alt="Two brain slices of different shape; the first one warped, which now has the shape of the "
    "second; and the smoothly bent grid that the network put out.",
)


def off_truth(u, pair):
    """Distance to the true displacement, averaged over the brain, in mm."""
    return float(endpoint_error(u, pair.displacement, pair.spacing, pair.fixed_labels > 0))


nothing, off = off_truth(0 * answer, unseen), off_truth(answer, unseen)
print(f"off the truth: {nothing:.1f} mm before, {off:.1f} mm after one pass")
assert off < 0.65 * nothing

# %% [markdown]
# Nobody ever told it a true displacement. What does it look like inside, and how did it learn?
#
# (What "unseen" means here: every synthetic pair grows from the same two real heads, bent at random. A new seed is an unseen deformation, not an unseen person. Real people come in section 7.)
#
# ## 1 · Pay once, or pay each time
#
# In lesson 20 the unknown is the field, and every pair is a new problem: find the $u$ that makes a loss $\mathcal L$ small for *this* moving image $m$ and *this* fixed image $f$. Here the unknown is a function $g_\theta$ that turns two images into a field, with **weights** $\theta$. It is sought once, for all pairs together:
#
# $$\underbrace{\hat u = \arg\min_u \mathcal L(m, f, u)}_{\text{for each pair}} \qquad\qquad \underbrace{\hat\theta = \arg\min_\theta \; \operatorname*{mean}_{(m, f)} \, \mathcal L\bigl(m, f, g_\theta(m, f)\bigr)}_{\text{once}}$$
#
# The loss is the same. The search for $\theta$ is paid off over all future pairs: it is **amortized**. What you give up is a search that looks at *your* pair until it is content.
#
# **Predict**: how often does `refine` warp the moving image and measure, for one pair? The network does neither: how often does it see the images?

# %%
count = 0


def counted(warped, fixed):
    global count
    count += 1
    return lncc(warped, fixed)


pair = halve(brains.pair(2))  # 112 × 96 voxels of 2 mm: quick
searched = refine(pair.moving, pair.fixed, similarity=counted)
print(f"refine: {count} warps, each with its gradient; the network: 1 look at the pair")
assert count > 30

# %% [markdown]
# ## 2 · A U-Net, with its sizes
#
# The function $g_\theta$ has to see far, since a ventricle may lie ten voxels away, and to answer for every voxel. A **U-Net** does both. On the left it halves the image four times; down there, one step of a 3 × 3 convolution spans 16 voxels. On the right it doubles the size again. **Bridges** carry the detail across.
#
# The pair goes in as one image with two channels. Each block is a convolution, followed by LeakyReLU ($x$ for $x > 0$, else $0.2\,x$). Halving takes the largest of 2 × 2 voxels; doubling repeats each voxel. This is `VxmDense` of VoxelMorph 0.2.
#
# **Predict**: 112 × 96 voxels go in. Which size has the bottom? The last doubling brings 32 channels and meets a bridge of 16: how many channels enter the next block?

# %%
model = VoxelMorph(ndim=2)
seen, work = [], 0  # (channels in, channels out, height, width) of each block, as they run


def note(layer, inputs, output):
    global work
    seen.append((inputs[0].shape[1], *output.shape[1:]))
    work += sum(weights.numel() for weights in layer.parameters()) * output[0, 0].numel()


hooks = [b.register_forward_hook(note) for b in [*model.unet.down, *model.unet.up, model.flow]]
with torch.no_grad():
    fresh = model(pair.moving, pair.fixed)
for hook in hooks:
    hook.remove()
numbers = sum(weights.numel() for weights in model.parameters())
for came, went, height, width in seen:
    print(f"{came:3} → {went:2} channels   {height:3} × {width}")
print(
    f"{numbers:,} weights; {work / 1e9:.2f} billion multiplications, at full size 4 times as many"
)
assert 0.9 < 4 * work / 1e9 < 1.5
assert seen[4][2:] == (7, 6) and seen[8][:2] == (48, 16) and numbers == 109_170

# %%
figure = Figure(figsize=(11, 4), layout="constrained")
ax = figure.subplots()
for k, (_, went, height, width) in enumerate(seen):
    ax.bar(k, height, width=0.25 + went / 60, color="#0072b2" if k < 4 else "#d55e00")
    ax.text(k, 1.04 * height, f"{went} × {height} × {width}", ha="center", fontsize=8)
for k in range(4):  # bridges: from each block on the left to the block of its size on the right
    height = 0.8 * seen[k][2]
    ax.annotate("", (7.7 - k, height), (k + 0.3, height), arrowprops={"arrowstyle": "->"})
ax.set_xticks(
    range(10), ["in"] + ["↓"] * 3 + ["bottom"] + ["↑"] * 3 + ["last 3\nblocks", "flow\nhead"]
)
ax.set(xlabel="block, in the order of computing", ylabel="height (voxels), doubling at each line")
ax.set(yscale="log", ylim=(3.5, 160))
ax.set_yticks([7, 14, 28, 56, 112], [7, 14, 28, 56, 112], minor=False)
ax.set_yticks([], minor=True)
show(
    figure,
    alt="Ten bars. Their heights fall from 112 to 7 voxels and rise to 112 again; arrows lead from "
    "each bar on the left to the bar of the same height on the right.",
)

# %% [markdown]
# (The three last blocks work at full size, and a last convolution, the **flow head**, makes 2 channels of 16: one for each axis.)
#
# **Predict**: an image of 63 × 96. What happens?

# %%
try:
    model(pair.moving[:, :, :63], pair.fixed[:, :, :63])
    refused = ""
except ValueError as problem:
    refused = str(problem)
print(refused)
assert "63" in refused and "64" in refused

# %% [markdown]
# 63 halves to 31, and 31 doubles to 62. The bridge still has 63, and the two cannot be joined. All sizes must be multiples of 16. Crop or pad *both* images in the same way, and cut the field afterwards: displacements in voxels do not change by that. `F.pad(image, (0, 0, 0, 1))` adds one row at the bottom.
#
# ## 3 · A head that starts with nothing
#
# An untrained network answers at random. So VoxelMorph draws the head's weights from a normal distribution with standard deviation $10^{-5}$, and sets its bias to 0.
#
# **Predict**: how long is the longest arrow of the network above, which has learned nothing? And with a standard deviation of 1?


# %%
def with_head(deviation, seed=0):
    """A fresh VoxelMorph whose flow head is drawn with this standard deviation."""
    torch.manual_seed(seed)
    model = VoxelMorph(ndim=2)
    torch.nn.init.normal_(model.flow.weight, std=deviation)
    return model


starts = {}
for deviation in (1e-5, 1.0):
    with torch.no_grad():
        u = with_head(deviation)(pair.moving, pair.fixed).displacement
    starts[f"head drawn with {deviation:g}"] = warp(pair.moving, u)
    print(f"{deviation:g}: longest arrow {float(u.norm(dim=1).max()):.4f} voxels")
    assert (u.norm(dim=1).max() < 0.01) if deviation < 1 else (u.norm(dim=1).max() > 3)
show(
    images({"moving": pair.moving} | starts),
    alt="The moving brain; the same, unchanged; and a brain torn out of shape.",
)

# %% [markdown]
# The first answer is *do nothing*, which is never far off, and from there the loss has a slope to follow. Exactly 0 would start there too; then in the first step no gradient passes through the head, and all other weights wait for the second step.
#
# The field itself need not be the displacement. By default VoxelMorph 0.2 reads it as a **velocity**, resizes it to half the size and integrates it in 7 steps (lesson 17): hence `Prediction` has both.

# %%
print("displacement", tuple(fresh.displacement.shape), "  velocity", tuple(fresh.velocity.shape))
assert fresh.velocity.shape == (1, 2, 56, 48)

# %% [markdown]
# ## 4 · A loss that needs no teacher
#
# *The warped image shall look like the fixed one, and the network's field shall be smooth.* With the similarity $S$ of lesson 13 and the diffusion of lesson 14:
#
# $$\mathcal L = S\bigl(m \circ \varphi,\, f\bigr) + \lambda \cdot \operatorname{diffusion}(v), \qquad \varphi(x) = x + u(x)$$
#
# $m \circ \varphi$ is the *warped image*; the warp passes gradients back to $u$, and so to $\theta$. $v$ is what the *network* puts out: the velocity, or $u$ where there is none. No label and no true field appear: this is **unsupervised**.
#
# $\lambda$ is a rate of exchange between two units. VoxelMorph's authors recommend $\lambda = 1$ for local correlation and $\lambda = 0.01$ for the squared difference.
#
# **Predict**: why? Going from no displacement to the true one, by how much does each similarity fall?

# %%
gains = []
for seed in range(6):
    p = halve(brains.pair(seed))
    right = warp(p.moving, p.displacement, padding="border")
    gains.append([float(S(p.moving, p.fixed) - S(right, p.fixed)) for S in (lncc, mse)])
by_lncc, by_mse = np.mean(gains, axis=0)
print(f"lncc falls by {by_lncc:.3f}, mse by {by_mse:.4f}: {by_lncc / by_mse:.0f} times less")
assert 10 < by_lncc / by_mse < 40 and 0.15 < by_lncc < 0.35

# %% [markdown]
# The same $\lambda$ weighs about 20 times more in a loss that offers 20 times less. With $\lambda = 1$ for `mse` the smoothest answer wins: do nothing. The factor depends on the images, so a $\lambda$ from a paper is a first guess, no more.
#
# ## 5 · First, overfit one pair
#
# Before any long training: *can the network learn a single pair by heart?* If not, you have found a bug in a minute. Here is the loop that trains every network of this course.


# %%
def overfit(model, pair, steps=60, learning_rate=2e-3):
    """The loss before each step, of a model that sees one pair again and again."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        prediction = model(pair.moving, pair.fixed)  # 1. answer
        warped = warp(pair.moving, prediction.displacement, padding="border")
        loss = lncc(warped, pair.fixed) + 1.0 * diffusion(prediction.velocity)  # 2. judge
        optimizer.zero_grad()  # 3. forget the last gradient
        loss.backward()  # 4. how does the loss depend on each weight?
        optimizer.step()  # 5. change the weights a little
        losses.append(loss.item())
    return losses


# %% [markdown]
# **Predict**: which head learns faster, the one that starts with nothing or the one that starts with a leap?

# %%
quiet, wild = with_head(1e-5), with_head(1.0)
learned = {"10⁻⁵": overfit(quiet, pair), "1": overfit(wild, pair)}
steps = np.arange(60)
identity = float(lncc(pair.moving, pair.fixed))
lines = {f"head drawn with {name}": (steps, losses) for name, losses in learned.items()}
show(
    curves(lines | {"doing nothing": (steps, 0 * steps + identity)}, xlabel="step", ylabel="loss"),
    alt="Two falling curves. One starts at the loss of doing nothing and falls far below it; the "
    "other starts high above and is still behind after 60 steps.",
)
with torch.no_grad():
    u = quiet(pair.moving, pair.fixed).displacement
print(
    f"off the truth: identity {off_truth(0 * u, pair):.1f} mm, by heart {off_truth(u, pair):.1f} mm"
)
assert abs(learned["10⁻⁵"][0] - identity) < 1e-3 < 0.1 < learned["1"][0] - identity
assert learned["10⁻⁵"][-1] < identity - 0.12 and learned["10⁻⁵"][-1] < learned["1"][-1] - 0.03
assert off_truth(u, pair) < 0.4 * off_truth(0 * u, pair)

# %% [markdown]
# Learned by heart: a slow `refine` of this one pair, good at nothing else yet:

# %%
other = halve(unseen)
with torch.no_grad():
    by_habit = quiet(other.moving, other.fixed).displacement
print(f"another pair: identity {off_truth(0 * by_habit, other):.1f} mm, "
      f"the network {off_truth(by_habit, other):.1f} mm")  # fmt: skip
assert off_truth(by_habit, other) > 0.9 * off_truth(0 * by_habit, other)

# %% [markdown]
# ## 6 · Half a minute of training
#
# Now 24 pairs, in random order, a new one in each step. `fit` is the loop of section 5, with a guard that stops it when the loss is NaN or the image turns black. `watch` is called after each step; ours shows now and then what the network makes of the *unseen* pair. Watch the grid.
#
# **Predict**: after how many steps does the network beat *doing nothing* on pairs that it was not trained on: about 10, 50 or 250?

# %%
train = [halve(brains.pair(seed)) for seed in range(24)]
held_back = [halve(brains.pair(seed)) for seed in range(80, 84)]
last = course.steps(quick=500, full=5000)
grown = {}  # step: the field for the unseen pair


def watch(step):
    if step.number not in (10, last // 5, last // 2, last):
        return
    with torch.no_grad():
        u = grown[step.number] = learner(other.moving, other.fixed).displacement
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(warp(other.moving, u)[0, 0], cmap="gray", vmin=0, vmax=1)
    drawn = middle.imshow(
        (warp(other.moving, u) - other.fixed)[0, 0], cmap="RdBu_r", vmin=-1, vmax=1
    )
    figure.colorbar(drawn, ax=middle, label="difference of intensity")
    draw_grid(right, u, step=4)
    for ax, title in zip((left, middle, right), (f"step {step.number}: warped", "− fixed", "grid")):
        ax.set(title=title, xlabel="j (voxels)", ylabel="i (voxels)")
    show(figure, alt=f"After step {step.number}: the warped image, its difference to the fixed one, "
         "and the grid, which is more bent the later the step.")  # fmt: skip


# %%
torch.manual_seed(0)
learner = VoxelMorph(ndim=2)
history = fit(
    learner, train, unsupervised(lncc, 1.0), steps=last, learning_rate=2e-3, schedule=cosine,
    validation=held_back, every=last // 10, watch=watch, progress=False,
)  # fmt: skip

# %%
error = np.array(history.validation["error_mm"])
show(
    curves(
        {"pairs held back": (history.evaluated, error),
         "doing nothing": (history.evaluated, 0 * error + error[0])},
        xlabel="step", ylabel="off the truth (mm)",
    ),
    alt="For about 200 steps the distance to the truth stays near that of doing nothing; then it falls "
    "to about half of it.",
)  # fmt: skip
show(
    curves(
        {name: (history.steps, values) for name, values in history.losses.items()},
        xlabel="step", ylabel="part of the loss",
    ),
    alt="The similarity falls in a noisy band from step to step, the penalty stays near zero.",
)  # fmt: skip
beaten = next(step for step, e in zip(history.evaluated, error) if e < 0.95 * error[0])
print(f"better than nothing from step {beaten} on; in the end {error[-1] / error[0]:.0%} is left")
assert error[-1] < 0.7 * error[0] and 150 <= beaten <= 350

# %% [markdown]
# About 250. For half of this training the error hardly moves, and a training that is stopped there looks like a bug. Section 5 told you that it is none.
#
# **Predict**: how much better is it on the pairs that it was trained on?


# %%
def mean_error(model, pairs):
    """Distance to the truth over the brain, in mm, averaged over pairs."""
    with torch.no_grad():
        fields = [model(p.moving, p.fixed).displacement for p in pairs]
    return float(np.mean([off_truth(u, p) for u, p in zip(fields, pairs)]))


on_train, on_new = mean_error(learner, train[:8]), mean_error(learner, held_back)
print(f"pairs of the training: {on_train:.2f} mm, pairs held back: {on_new:.2f} mm")
assert abs(on_train - on_new) < 0.25 * on_new

# %% [markdown]
# Hardly: it has not learned its pairs by heart. The next thing to buy is steps.
#
# ## 7 · What the same network reaches when it has time
#
# `pretrained("voxelmorph2d-brains")` has the same layers and the same loss, with λ = 0.5. It took 26,000 steps, first at half size, then at full size. Its card says how, and what it reaches on pairs held back.

# %%
card = network.card
print(card["data"])
print("steps:", card["steps"], "  minutes of CPU:", card["cpu_minutes"], "  seed:", card["seed"])
for name, scores in card["scores"].items():
    print(f"{name:9}", scores)
assert card["recipe"]["weight"] == 0.5 and sum(card["steps"]) == 26_000

# %% [markdown]
# **Predict** the order, from the worst to the best: doing nothing, an affine map, `refine`, the network, and the network with a short `refine` on top (10 steps at half size, 10 at full size). (TMI 2019, the journal version of VoxelMorph, calls the last one *instance optimization*: [voxelmorph#546](https://github.com/voxelmorph/voxelmorph/issues/546).)

# %%
shape = unseen.fixed.shape[2:]
matrix = register_affine(unseen.moving, unseen.fixed)
methods = {
    "affine": affine_displacement(matrix, shape),
    "refine": refine(unseen.moving, unseen.fixed),
    "network": answer,
    "network + refine": refine(unseen.moving, unseen.fixed, answer, factors=(2, 1), steps=10),
}
results = table(methods, unseen)
results

# %% [markdown]
# Read the column "error (mm)": it compares with the true field, which synthetic pairs have.
#
# - The **affine** map hardly helps: these two heads differ by bends.
# - **`refine`** comes nearest. It has descended step by step on this very pair. The **network** has looked once.
# - **Both together**: a few steps on the pair itself improve the network's answer clearly. They do not reach the long search from zero. How many steps of that search is the look worth? The exercise measures it, and the answer is sobering.

# %%
mm = {name: row["error (mm)"] for name, row in results.rows.items()}
assert mm["affine"] > 0.6 * mm["identity"]
assert mm["refine"] < mm["network + refine"] < 0.8 * mm["network"] < 0.5 * mm["identity"]
assert mm["refine"] < mm["identity"] / 3

# %% [markdown]
# One pair is an anecdote. Here are ten, registered by others too, in one run on two cores. The table is recorded, since `make bench` takes longer than a lesson may.
#
# **Predict**: OpenCV's DIS is an optical flow made for video, and learned nothing. Where does it stand?

# %%
bench = recorded("task2d")
print(f"pairs {bench['seeds'][0]} to {bench['seeds'][-1]}, recorded {bench['date'][:10]}")
print(f"{'':24}error (mm)   Dice   folded (%)   seconds")
for name, row in sorted(bench["rows"].items(), key=lambda item: -item[1]["error_mm"]):
    print(f"{name:24}{row['error_mm']:10.2f}{row['dice']:7.3f}{row['folding_percent']:13.3f}"
          f"{row['seconds']:10.3f}")  # fmt: skip
video, careful = bench["rows"]["OpenCV DIS"], bench["rows"]["DIPY SyN-CC"]
assert video["error_mm"] < bench["rows"]["identity"]["error_mm"] / 3
assert video["seconds"] < 0.1 * careful["seconds"] and careful["error_mm"] < video["error_mm"]
ours = bench["rows"].get("network")  # its mean over these ten pairs is about 0.7 mm
assert ours is None or 0.8 < ours["error_mm"] / video["error_mm"] < 1.3

# %% [markdown]
# - **DIS** takes hundredths of a second at most, without any training, and comes about as near to the truth as our network. In 2D, speed alone is no argument for a network; a paper that leaves such a method out flatters its own. (DIS is made for flat images; volumes are another matter.)
# - **DIPY's SyN-CC** searches for each pair, with local correlation as we do. Who has a second for each pair needs no network.
# - The **seconds** of a network are those of its answer alone; its card, above, has the minutes of its training.
#
# And real people? The same methods on slices of OASIS, whose truth nobody knows. What can be measured is the match (the mean squared local correlation: 1 is perfect), and the folds.

# %%
real = bench["oasis"]
print(f"{'':24}  match   folded (%)" if real else "not recorded yet")
for name, row in sorted(real.items(), key=lambda item: item[1]["lncc"]):
    print(f"{name:24}{row['lncc']:7.3f}{row['folding_percent']:11.3f}")
if "network" in real:
    by_match = [real[n]["lncc"] for n in ("identity", "OpenCV DIS", "network", "refine")]
    assert by_match == sorted(by_match) and by_match[2] > by_match[1] + 0.1
    stiff, loose = (real[n]["lncc"] for n in ("DIPY SyN-CC, tuned", "DIPY SyN-CC"))
    assert bench["rows"]["DIPY SyN-CC, tuned"]["error_mm"] < 0.8 * careful["error_mm"]
    assert stiff < loose - 0.05 and loose > real["refine"]["lncc"] + 0.05

# %% [markdown]
# The order is another than above, and it asks for care.
#
# - The **network** was trained on deformations of *two* heads and still finds most of the match that `refine` finds. It passes DIS by far: but the match is local correlation, which `refine` and the network were made to raise, and DIS was not.
# - **DIPY's SyN-CC** matches far better than all of ours. Is it nearer to the truth? Look at its *tuned* row, which smooths twice as much: in the first table it is nearer to the truth than the other, here it matches less. Smoothness suits the first pairs, since their truth was made smooth. `refine` and our network are smooth, too. Real heads differ in finer ways, and a match can also be bought by bending (lesson 14).
#
# So the gap has two readings, detail that we miss or bends that DIPY invents, and without a truth this table cannot tell which.
#
# ## 8 · Play: the knob, seven trainings long
#
# In lesson 14 each turn of $\lambda$ cost one registration. Here it costs a training. Seven networks began with the weights of section 7 and trained on for 600 steps, each with its own $\lambda$. Their field is the displacement itself, since a velocity hardly folds. So their first weights were made for another reading of the field, and 600 steps do not bring all of them back to where section 7 ended: compare them with one another. The explorer shows their answers for the pair of the beginning, and their means over ten pairs held back.
#
# **Play**: which $\lambda$ has the best Dice on the held-back pairs? Which has the smallest error? And from which on does nothing fold there?

# %%
family = load_file(files("course_lib.weights") / "voxelmorph2d-lambdas.safetensors")
weights = [float(f"{w:.2g}") for w in family["weights"]]
fields = dict(zip(weights, family["displacements"].float().split(1)))
scores = {
    w: {key: float(family[key][k]) for key in ("dice", "folding", "error_mm")}
    for k, w in enumerate(weights)
}
explorer = weight_explorer(unseen, fields, scores)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# $\lambda = 1$, three times. Below it a few voxels in ten thousand fold: the intensities match better, and the fields get worse. Above it the fields are so stiff that the images no longer match. Here the best field is the first one that folds nowhere; that is not so everywhere. Each point is a training: this network cannot be re-tuned for a single patient, as `refine` can.
#
# </details>

# %%
for w, row in scores.items():
    here = float(folding_fraction(fields[w], mask=unseen.fixed_labels > 0))
    print(f"λ = {w:5}: Dice {row['dice']:.3f}, folded {row['folding']:.3%} (this pair {here:.3%}), "
          f"off by {row['error_mm']:.2f} mm")  # fmt: skip
figure = Figure(figsize=(11, 3), layout="constrained")
panels = {"dice": "mean Dice", "folding": "folded (fraction)", "error_mm": "off the truth (mm)"}
for ax, (key, label) in zip(figure.subplots(1, 3), panels.items()):
    ax.semilogx(weights, family[key], "o-", color="#0072b2")
    ax.set(xlabel="weight λ", ylabel=label)
show(
    figure,
    alt="Over the weight: Dice rises to a summit and falls, folding falls to zero, and the distance "
    "to the truth has a valley.",
)
off_by_weight = [row["error_mm"] for row in scores.values()]
best = int(np.argmin(off_by_weight)), int(np.argmax([row["dice"] for row in scores.values()]))
unfolded = next(k for k, row in enumerate(scores.values()) if row["folding"] < 1e-5)
assert [weights[k] for k in (*best, unfolded)] == [1, 1, 1]
assert 1e-4 < scores[weights[0]]["folding"] < 1e-3
match = {w: float(lncc(warp(unseen.moving, u), unseen.fixed)) for w, u in fields.items()}
assert match[weights[0]] < match[1]

# %% [markdown]
# ## 9 · Break it
#
# **A pose that it never saw.** All pairs of the training lie straight. Turn the moving head by 20°.
#
# **Predict**: how much of the 20 mm by which the voxels are off now does the network take back: most, half or next to nothing?


# %%
def pose_first(turned, u):
    """The field from fixed to turned: a turn by 20° undone, then u."""
    back = affine_displacement(pose_matrix(-20), shape)
    return compose(back, u)


turned = warp(unseen.moving, affine_displacement(pose_matrix(20), shape))
truth = unseen._replace(moving=turned, displacement=pose_first(turned, unseen.displacement))
first = affine_displacement(register_affine(turned, unseen.fixed), shape)
with torch.no_grad():
    alone = network(turned, unseen.fixed).displacement
    rest = network(warp(turned, first), unseen.fixed).displacement
poses = {
    "network alone": alone,
    "affine alone": first,
    "affine, then network": compose(first, rest),
}
looks = {name: warp(turned, u) for name, u in poses.items()}
show(
    images({"turned": turned, **looks, "fixed": unseen.fixed}),
    alt="The turned head; the network's answer, still turned and torn; the affine map's; affine and "
    "network, which looks like the fixed image; the fixed image.",
)
broken = {name: off_truth(u, truth) for name, u in {"nothing": 0 * alone, **poses}.items()}
print({name: f"{value:.1f} mm" for name, value in broken.items()})
assert broken["network alone"] > 0.8 * broken["nothing"]
assert broken["affine, then network"] < 0.8 * broken["affine alone"] and broken["affine alone"] < 6

# %% [markdown]
# Next to nothing: it tears the head. An affine search takes the turn away, and what is left looks like the training. Compose the two fields, and warp once.
#
# **A contrast that it never saw.** `pretrained("voxelmorph2d-brains-mse")` has the same layers, and was trained with the squared difference and $\lambda = 0.01$. Now the moving scanner shows everything half as bright, or inverted (bright fluid, dark tissue). A gain and an inversion do not matter to squared local correlation (lesson 13).
#
# **Predict**: then they do not matter to the network that was trained with it?

# %%
networks = {"lncc": network, "mse": pretrained("voxelmorph2d-brains-mse")}
contrasts = {
    "as trained": lambda m: m,
    "half as bright": lambda m: m / 2,
    "inverted": lambda m: torch.where(m > 0.08, 1 - m, m),  # the background stays black
}
three = [brains.pair(seed) for seed in (100, 101, 102)]
idle = np.mean([off_truth(0 * p.displacement, p) for p in three])
found = {}
for (name, model), (contrast, change) in itertools.product(networks.items(), contrasts.items()):
    with torch.no_grad():
        answers = [model(change(p.moving), p.fixed).displacement for p in three]
    found[name, contrast] = np.mean([off_truth(u, p) for u, p in zip(answers, three)])
    print(f"trained with {name:4}, {contrast:14}: off by {found[name, contrast]:.1f} mm")
print(f"doing nothing: {idle:.1f} mm")
gain = float(lncc(unseen.moving / 2, unseen.fixed) - lncc(unseen.moving, unseen.fixed))
assert abs(gain) < 0.03 and found["lncc", "inverted"] > 1.2 * idle
assert found["lncc", "half as bright"] > 1.2 * found["lncc", "as trained"]
assert found["mse", "inverted"] > 1.2 * idle
assert abs(networks["mse"].card["scores"]["network"]["error_mm"] - 1.3) < 0.05
assert all(found["mse", c] > 1.2 * found["lncc", c] for c in ("as trained", "half as bright"))

# %% [markdown]
# They do. The *loss* does not mind; the *network* has never seen such images, and its answers to the inverted ones are worse than doing nothing. When it answers there is no loss: what the loss forgives has to be in the training data, too. The network of the squared difference is worse already on these three pairs as they are: their two scans differ more in brightness than most, and its loss took that for a difference of place. (On the pairs of its card it is off by 1.3 mm.)
#
# ## Common mistakes
#
# **No affine step.** The most frequent trouble, told as "it works on your data and not on mine": [voxelmorph#28](https://github.com/voxelmorph/voxelmorph/issues/28), [#112](https://github.com/voxelmorph/voxelmorph/issues/112), [#151](https://github.com/voxelmorph/voxelmorph/issues/151), [#480](https://github.com/voxelmorph/voxelmorph/issues/480), [TransMorph#23](https://github.com/junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration/issues/23). The survey says that VoxelMorph copes with large deformations and is more robust than classical methods: section 9 shows where not.
#
# **Sizes that do not divide**: section 2; [voxelmorph#292](https://github.com/voxelmorph/voxelmorph/issues/292), [#487](https://github.com/voxelmorph/voxelmorph/issues/487), [#599](https://github.com/voxelmorph/voxelmorph/issues/599). **2D images in a 3D network**: a slice is `(B, 1, H, W)`, and the network is built with `ndim=2`; [#51](https://github.com/voxelmorph/voxelmorph/issues/51), [#315](https://github.com/voxelmorph/voxelmorph/issues/315), [#478](https://github.com/voxelmorph/voxelmorph/issues/478).
#
# **Moving and fixed exchanged.** The network takes both orders without complaint. Its answer is then the way back:

# %%
with torch.no_grad():
    swapped = network(unseen.fixed, unseen.moving).displacement
print(
    f"right order {off:.1f} mm, doing nothing {nothing:.1f} mm, exchanged {off_truth(swapped, unseen):.1f} mm"
)
assert off_truth(swapped, unseen) > 1.5 * nothing

# %% [markdown]
# **Something after the head.** A displacement needs both signs. The survey calls its network "vm2d", but VoxelMorph has none of that name. Its printed log (`After 1 epochs, the Average training loss is …`) and its functions `vox_morph_loss` and `dice_score` are those of another repository, [Hsankesara/VoxelMorph-PyTorch](https://github.com/Hsankesara/VoxelMorph-PyTorch): three halvings, not four, and a last layer of convolution, normalization and **ReLU**, which puts out nothing below 0. Let our network do that, and overfit one pair:

# %%
clipped, normalize = with_head(1e-5), torch.nn.BatchNorm2d(2)
clipped.flow.register_forward_hook(lambda layer, features, field: normalize(field).relu())
stuck = overfit(clipped, pair)
with torch.no_grad():
    u = clipped(pair.moving, pair.fixed).displacement
print(f"components from {float(u.min()):.2f} to {float(u.max()):.2f} voxels; the loss falls by "
      f"{identity - stuck[-1]:.2f}, without such a layer by {identity - learned['10⁻⁵'][-1]:.2f}")  # fmt: skip
assert u.min() > -0.01 and u.max() > 0.5
assert identity - stuck[-1] < 0.6 * (identity - learned["10⁻⁵"][-1])

# %% [markdown]
# "Overfit one pair" finds this in seconds. That repository also smooths the warped *image* instead of the field (its author: "I think the loss function is erroneous", [issue 3](https://github.com/Hsankesara/VoxelMorph-PyTorch/issues/3)), so no number of the survey's experiment says anything about VoxelMorph.
#
# **Black or blurred results**: [voxelmorph#43](https://github.com/voxelmorph/voxelmorph/issues/43), [#54](https://github.com/voxelmorph/voxelmorph/issues/54), [#300](https://github.com/voxelmorph/voxelmorph/issues/300), [#468](https://github.com/voxelmorph/voxelmorph/issues/468). Outside the image zero padding is black *and without a gradient*: what has left does not come back. Train with `padding="border"`.
#
# **Gains that are the protocol's.** The same TransMorph was reported with a Dice of 0.6 and of 0.744 ([TransMorph#11](https://github.com/junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration/issues/11)): compare methods in *one* table, made by one program.
#
# ## Check yourself
#
# <details><summary>1. Your images have 100 × 100 voxels. What do you do before and after the network?</summary>
#
# Pad both images in the same way to 112 × 112, and cut the field back to 100 × 100. Or crop both to 96 × 96, if nothing of interest lies at the border.
#
# </details>
#
# <details><summary>2. A colleague continues the training on the test pair itself, for 20 steps, without its labels. Is that cheating?</summary>
#
# No. The loss sees two images that every method is given, and no label: it is instance optimization, a kind of `refine`. Cheating would be to choose λ, or when to stop, by the labels of the test pairs. But report the time of those steps.
#
# </details>
#
# <details><summary>3. After 150 steps the network is as good as doing nothing. Which cheap experiment tells a bug from impatience?</summary>
#
# Overfitting one pair. If its loss falls clearly below that of doing nothing, the parts work together, and you wait. If not, waiting is of no use.
#
# </details>

# %% [markdown]
# ## Take away
#
# - Amortized: one search over θ for all pairs, with the loss that lesson 20 minimizes for each.
# - A U-Net sees far and answers for every voxel; sizes divide by 16; the head starts at *do nothing*.
# - λ is a rate of exchange, on the network's field: 1 for `lncc`, about a hundredth for `mse`.
# - Overfit one pair first; then be patient; then compare in one table, with the identity and a fast classical method in it.
# - A network knows what it was shown. Affine first, and a few steps of `refine` after.
#
# **Go further**
# - G. Balakrishnan, A. Zhao, M. R. Sabuncu, J. Guttag, A. V. Dalca, "VoxelMorph: A Learning Framework for Deformable Medical Image Registration", IEEE TMI 38(8), 2019; the first version: "An Unsupervised Learning Model for Deformable Medical Image Registration", CVPR 2018.
# - O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015. (Its last convolution is 1 × 1; the survey says 3 × 3.)
# - A. V. Dalca, G. Balakrishnan, J. Guttag, M. R. Sabuncu, "Unsupervised Learning for Fast Probabilistic Diffeomorphic Registration", MICCAI 2018: where the velocity comes from.
# - R. Jena, D. Sethi, P. Chaudhari, J. C. Gee, "Deep Learning in Medical Image Registration: Magic or Mirage?", NeurIPS 2024: without labels in the training, learned and classical methods are about equally accurate.
#
# Next: the exercise [exercises/30_voxelmorph.ipynb](../exercises/30_voxelmorph.ipynb).

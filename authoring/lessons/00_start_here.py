# %% [markdown]
# # 00 · Start here: register a real brain
#
# Two brains, one of them a real person's, lie on top of each other at the end of this page: first by a rotation, a scaling and a shift that the computer finds, then by a field of 43,008 arrows. You watch each step, and you can pull the brain across with a slider.
#
# **Reading**: 20 minutes · **Running**: about 15 seconds on a laptop · **Before this**: Python, arrays, and the idea of a gradient. Nothing of medicine.
#
# **You will be able to**
# - *predict* where a voxel of one image lies in the other,
# - *find* the weight at which a deformation begins to fold, and one at which it hardly bends,
# - *find* how far an affine registration can look before it gets lost.

# %%
import torch

from course_lib import setup
from course_lib.classical.affine import register_affine, pose_matrix
from course_lib.datasets import brains
from course_lib.evaluation import table
from course_lib.losses import ncc
from course_lib.metrics import endpoint_error
from course_lib.optimise import refine
from course_lib.plotting import comparison, curves, fields, images, show
from course_lib.spatial import affine_displacement, compose, warp
from course_lib.widgets import warp_slider

course = setup()

# %% [markdown]
# ## 1 · Two heads
#
# The **fixed** image is the MNI152 template, the average of 152 people's heads, in which researchers have agreed to give coordinates. The **moving** image is *Colin27*: one man, scanned 27 times. Both are slices across the head at the same height, the forehead at the top, the skull removed; each **voxel** (a pixel of a volume) is 1 mm wide. The folded gray rim is the **cortex**, the dark chambers in the middle are the **ventricles**, filled with fluid.
#
# Colin's images come aligned to such coordinates. That would be too easy, so we put him into another pose: turned by 14° (counterclockwise on the page), 1.12 times larger, and shifted by 9 voxels down and 7 to the left. We know this **pose**; the computer will have to find it.

# %%
pose = pose_matrix(degrees=14, scale=1.12, shift=(9, -7))         # (1, 2, 3): [A | t]
pair = brains.real_pair(pose=pose)
moving, fixed = pair.moving.to(course.device), pair.fixed.to(course.device)  # (1, 1, 224, 192)
shape, brain = fixed.shape[2:], pair.fixed_labels > 0
show(
    images({"fixed: MNI152 template": fixed, "moving: Colin27, in another pose": moving}),
    alt="Two axial brain slices with the forehead up; the right one is larger, turned and shifted.",
)

# %% [markdown]
# ## 2 · What is registration?
#
# Find, for every voxel $x$ of the fixed image, the place of the moving image that shows the same tissue. Written as a **displacement** $u(x)$, an arrow for each voxel, that place is $x + u(x)$; and fetching the values from there gives the **warped** image:
#
# $$\text{warped}(x) = \text{moving}\bigl(x + u(x)\bigr)$$
#
# A good $u$ makes `warped` look like `fixed`. Here is what happens if somebody tells us the pose: its matrix $[A \mid t]$ says where each fixed voxel lies in the moving image, $A(x - c) + t + c$ with the center $c$.
#
# The picture looks at a result as people in clinics do. Left, the warped image in green over the fixed one in magenta: where they agree, they give gray. In the middle a checkerboard of both: no edge should break where two squares meet. Right, their difference.
#
# **Predict**: will the two agree perfectly once the pose is undone?

# %%
u_pose = affine_displacement(pose.to(course.device), shape)             # (1, 2, 224, 192)
show(
    comparison({"moving": moving, "moved back by the known pose": warp(moving, u_pose)}, fixed),
    alt="Before, the heads overlap badly. Moved back by the known pose, their outlines nearly "
    "agree, but the folds of the cortex and the ventricles do not.",
)

# %% [markdown]
# They do not. Pose is only the easy part: these are different heads, and no rotation turns one person's brain into another's. That is the reason for *deformable* registration, and for this course.
#
# ## 3 · From looking to numbers
#
# "Looks like" has to become a number. We take the **correlation** $r$ of the two images' intensities, 1 for a perfect match; in this field it is called normalized cross-correlation, **NCC**. A **loss** is a number to be lowered, so the function `ncc` gives $-r$.
#
# A number of the images alone can be fooled. So we also keep something that the computer never sees while it searches: for each voxel, whether it is gray matter, white matter or fluid. With $S$ and $T$ the sets of voxels that bear a tissue's label in the two images, the **Dice** overlap is $2|S \cap T| / (|S| + |T|)$: 1 if they are equal, 0 if they have nothing in common.
#
# The first line of any results table is what you get for doing nothing, the **identity**. Two columns are for later: HD95, a distance between outlines in mm, and SDlogJ, how unevenly the map changes volume (lesson 15).

# %%
def score(displacements):
    """The table of this lesson: Dice of gray and white matter, correlation, folding."""
    on_cpu = {name: u.cpu() for name, u in displacements.items()}
    return table(on_cpu, pair, structures={2: "gray matter", 3: "white matter"})


before = score({"known pose": u_pose})
before

# %%
assert before["identity"]["Dice gray matter"] < 0.50
assert 0.90 < before["known pose"]["correlation"] < 0.97

# %% [markdown]
# ## 4 · Registration is a loop
#
# Now without being told the pose. An affine map has six numbers, $[A \mid t]$. Start from "no change"; warp; look at the loss; ask PyTorch in which direction each of the six numbers lowers it; take a small step; repeat. This is **gradient descent** (here in a variant called Adam, which adapts the size of the steps), and it is the whole idea of registration.

# %%
def descend(moving, fixed, steps=150):
    # A acts on distances of up to 100 voxels: counting t in hundreds makes their steps alike.
    unit = torch.tensor([1.0, 1.0, 100.0], device=fixed.device)
    change = torch.zeros(1, 2, 3, device=fixed.device, requires_grad=True)
    optimizer, losses = torch.optim.Adam([change], lr=0.004), []
    for _ in range(steps):
        matrix = torch.eye(2, 3, device=fixed.device) + change * unit   # (1, 2, 3)
        displacement = affine_displacement(matrix, fixed.shape[2:])     # (1, 2, 224, 192)
        loss = ncc(warp(moving, displacement, padding="border"), fixed) # outside: the border value
        optimizer.zero_grad()                                           # forget the last gradient
        loss.backward()                                                 # the gradient of the loss
        optimizer.step()                                                # one step downhill
        losses.append(loss.item())
    return matrix.detach(), losses


# %%
by_hand, losses = descend(moving, fixed)
show(
    curves({"−correlation": (range(len(losses)), losses)}, xlabel="step", ylabel="loss"),
    alt="The loss falls from −0.7 to −0.95 within 100 steps and then stays.",
)
assert losses[0] > -0.75 and losses[-1] < -0.94

# %% [markdown]
# It works, for 14°. For larger rotations it can end in a wrong **local minimum**, a valley of the loss that is not the deepest. The usual cure is an **image pyramid**: first register small, blurred copies of the images, where one step goes far and detail cannot distract; go on from there with finer ones. `register_affine` is the loop above inside a loop over three sizes, 8, 4 and 2 times smaller than the image (six numbers do not need every voxel), and you can read it in `course_lib/classical/affine.py`. A harder case shows the difference, the same head turned by 25°:

# %%
harder = brains.real_pair(pose=pose_matrix(25, 1.12, (9, -7)))
harder_moving = harder.moving.to(course.device)
results = {
    "one size only": affine_displacement(descend(harder_moving, fixed)[0], shape),
    "coarse to fine": affine_displacement(register_affine(harder_moving, fixed), shape),
}
print({name: round(float(-ncc(warp(harder_moving, u), fixed)), 2) for name, u in results.items()})
show(
    images({name: warp(harder_moving, u) for name, u in results.items()} | {"fixed": fixed}),
    alt="With one size only the head stays turned and is squeezed to fit; coarse to fine it looks "
    "like the template.",
)

# %%
single, pyramid = (float(-ncc(warp(harder_moving, u), fixed)) for u in results.values())
assert single < 0.92 and pyramid > 0.94

# %% [markdown]
# The two correlations, 0.90 and 0.95, look alike, and one of the results is plainly wrong. Numbers of this kind have no scale of their own: always look, and always compare.
#
# ## 5 · Was the pose found?
#
# Back to our 14°. Compare what was found with what we know: the **endpoint error** is the distance between the ends of two arrows, averaged over the brain.
#
# **Predict**: by how many voxels will the affine result differ from the true pose: 0, 2 or 20?

# %%
matrix = register_affine(moving, fixed)
u_affine = affine_displacement(matrix, shape)
off = float(endpoint_error(u_affine.cpu(), u_pose.cpu(), mask=brain))
print(f"distance to the known pose: {off:.1f} voxels")
assert 1.5 < off < 2.5

# %% [markdown]
# Two voxels. Is that an error of the method? Let it register the same two heads as they came, not turned at all; and then see how far the result for the turned head is from *that* map followed by the pose.

# %%
aligned = brains.real_pair()
own_matrix = register_affine(aligned.moving, aligned.fixed)
own = affine_displacement(own_matrix, shape)
from_own = float(endpoint_error(own, torch.zeros_like(own), mask=brain))
expected = compose(u_pose.cpu(), own)                                   # where own, then the pose lead
rest = float(endpoint_error(u_affine.cpu(), expected, mask=brain))
print(f"found when nothing is turned (not zero):     {from_own:.1f} voxels")
print(f"distance to the pose, with that counted in:  {rest:.1f} voxels")
assert 1.4 < from_own < 2.2 and rest < 1
assert (own_matrix[0, [0, 1], [0, 1]] < 1).all()                        # Colin is smaller both ways

# %% [markdown]
# Most of the two voxels is there without any turn as well: Colin's brain is a little smaller than the template's in this slice and sits slightly turned, so the best affine map is not the identity to begin with. With that counted in, the pose is met to better than a voxel. A general lesson for real data: be sure that your "truth" is one before you blame a method.
#
# ## 6 · Now bend it
#
# An affine map cannot match the folds of the cortex. So give every voxel its own arrow: 2 × 43,008 numbers instead of six. The descent is the same; only two things are new.
#
# - The similarity is an NCC in a small window around each voxel (**local NCC**, higher is better), so that every place finds its own match.
# - Neighboring arrows must not differ much, or the "best" field would tear the image apart voxel by voxel. The **diffusion** term, the mean of all squared derivatives $\partial u_a / \partial x_b$, asks for smoothness, and the weight $\lambda$ says how loudly.
#
# $$\text{loss}(u) = -\,\text{local NCC}\bigl(\text{moving}(x + u(x)), \text{fixed}\bigr) + \lambda \cdot \text{mean}\left(\frac{\partial u_a}{\partial x_b}\right)^2$$

# %%
# smoothness=0: each voxel moves by itself. Lesson 20 has the blurred moves that refine makes else.
aligned = warp(moving, u_affine)
bend = refine(aligned, fixed, smoothness=0, weight=2.5, progress=True)  # (1, 2, 224, 192)
u_total = compose(u_affine, bend)                                       # affine, then bend
result = score({"known pose": u_pose, "affine": u_affine, "deformable": u_total})
result

# %% [markdown]
# **Read the table.** Without bending there is little left to gain: the affine map is hardly better than the known pose. The bent field lifts the Dice overlap of both tissues by more than 0.10, though it never saw a label. The last column counts **folds**, voxels where the map turns inside out, which no real tissue does, in percent of the brain's voxels: there are next to none.

# %%
affine, deformable = result["affine"], result["deformable"]
assert deformable["Dice gray matter"] > 0.78 and deformable["Dice white matter"] > 0.82
assert deformable["Dice gray matter"] - affine["Dice gray matter"] > 0.10
assert deformable["Dice white matter"] - affine["Dice white matter"] > 0.10
assert deformable["correlation"] > 0.98 and deformable["folding (%)"] <= 0.1

# %% tags=["cover"]
show(
    comparison(
        {"identity": moving, "affine": warp(moving, u_affine), "deformable": warp(moving, u_total)},
        fixed,
    ),
    alt="Three rows. Identity: the heads are apart. Affine: outlines agree, inner structures do "
    "not. Deformable: hardly any difference is left.",
)
show(
    fields({"affine": u_affine, "deformable": u_total}, background=moving),
    alt="The affine grid is straight and turned, its determinant the same everywhere. The "
    "deformable grid is turned and wavy; its determinant varies from place to place, above zero all "
    "but everywhere.",
)
det = float(matrix[0, :, :2].det())
print(f"the affine map's determinant is {det:.2f} everywhere")
assert 1.15 < det < 1.25

# %% [markdown]
# The second picture shows the map itself: each grid is drawn at $x + u(x)$, over the moving image. The **Jacobian determinant** says how much area grows (red) or shrinks (blue) on the way from the fixed to the moving image. The affine part is 1.21 everywhere, since we enlarged Colin; the bending adds its own, place by place.

# %% [markdown]
# ## 7 · Play
#
# Pull the head from where it was (0) to where it belongs (1): the slider warps by a fraction of the displacement.
#
# **Question**: moving the head back by its known pose gave a correlation of 0.94. From which fraction on is the pulled head better than that?

# %%
slider = warp_slider(moving.cpu(), fixed.cpu(), u_total.cpu())
slider

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# From between 0.80 and 0.85 on. The correlation rises steadily up to there and slows down only at the very end: near its best value a similarity is flat, so the last voxel is the hardest one to find.
#
# </details>

# %%
at = {f: float(-ncc(warp(moving, f * u_total), fixed)) for f in (0.0, 0.5, 0.8, 0.85, 0.95, 1.0)}
print({fraction: round(r, 2) for fraction, r in at.items()})
assert at[0.8] < 0.94 < at[0.85] and at[1.0] - at[0.95] < 0.75 * (at[0.85] - at[0.8])

# %% [markdown]
# ## What was not shown
#
# - **A slice is not a head.** Tissue also moves out of the slice; real registration works on the volume. The warp, the losses, the metrics, `register_affine` and `refine` work there as well.
# - **Gray and white matter are easy.** A high tissue Dice does not prove that this fold of the cortex lies on *that* one. Colin's labels come from two intensity thresholds, so they share the images' own errors.
# - **We chose $\lambda = 2.5$ with the labels in view**, and report on the same pair. An honest study chooses on some pairs and reports on others.
# - **Nothing was learned.** Each new pair costs the same search again. Learned registration trains a network once that then answers at a glance; whether it answers *better* is another question, which this course does not leave open.
#
# ## Common mistakes
#
# **Bending first.** A deformable method looks a few voxels far. Without the affine step it starts too far away, and bends the wrong tissue onto the right place: 43,008 arrows end up with less overlap than six numbers did. People meet this when their own data "does not work": [voxelmorph#28](https://github.com/voxelmorph/voxelmorph/issues/28), [#589](https://github.com/voxelmorph/voxelmorph/issues/589).
#
# **The matrix of the other direction.** A pose goes from fixed to moving, or from moving to fixed: both are "the transformation", and programs differ. Applied in the wrong direction it doubles the error instead of removing it.

# %%
inverse = torch.linalg.inv(pose[:, :, :2])
backward = torch.cat([inverse, -inverse @ pose[:, :, 2:]], dim=2).to(course.device)
mistakes = {
    "bending first": refine(moving, fixed, smoothness=0, weight=2.5, progress=True),
    "wrong direction": affine_displacement(backward, shape),
}
wrong = score(mistakes)
show(
    comparison({name: warp(moving, u) for name, u in mistakes.items()}, fixed),
    alt="Bending without the affine step leaves a distorted brain; the pose applied in the wrong "
    "direction turns and enlarges the head even more.",
)
wrong

# %%
assert wrong["bending first"]["Dice white matter"] < affine["Dice white matter"]
assert wrong["bending first"]["Dice gray matter"] < affine["Dice gray matter"]
assert wrong["wrong direction"]["correlation"] < wrong["identity"]["correlation"]

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. Which image's voxels does the displacement have an arrow for: the fixed or the moving one's?</summary>
#
# The fixed one's. Each fixed voxel asks where in the moving image its tissue lies; the arrow is the answer.
#
# </details>
#
# <details><summary>2. A method reports a correlation of 0.999 between the warped and the fixed image. Is it a better registration than ours with 0.989?</summary>
#
# You cannot tell. With a small weight $\lambda$ our own descent reaches 0.998, by folding almost a tenth of the brain: similarity can always be bought with impossible deformations. Ask for the folding, and for an overlap of structures that the method did not see.
#
# </details>
#
# <details><summary>3. Why is the identity in the table?</summary>
#
# Because a number alone says little: a Dice of 0.85 is excellent if doing nothing gives 0.42 and useless if it gives 0.84.
#
# </details>

# %%
bend_soft = refine(aligned, fixed, smoothness=0, weight=0.1, progress=True)
u_soft = compose(u_affine, bend_soft)
soft = score({"λ = 0.1": u_soft})["λ = 0.1"]
print(f"λ = 0.1: correlation {soft['correlation']:.3f}, folding {soft['folding (%)']:.0f} %")
assert soft["correlation"] > 0.997 and 6 < soft["folding (%)"] < 12

# %% [markdown]
# ## Take away
#
# - Registration finds where each fixed voxel lies in the moving image: `warped(x) = moving(x + u(x))`.
# - The recipe is always a map, a similarity, a smoothness, and a descent.
# - Affine first, coarse to fine; then bend.
# - Similarity alone can be bought with folds: report overlap and folding, next to the identity.
# - All of it is a few pages of Python, and you are going to write them.
#
# **Go further**
# - V. Fonov, A. C. Evans, K. Botteron, C. R. Almli, R. C. McKinstry, D. L. Collins, "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54(1), 2011: how templates of this family are made.
# - C. J. Holmes, R. Hoge, L. Collins, R. Woods, A. W. Toga, A. C. Evans, "Enhancement of MR images using registration for signal averaging", Journal of Computer Assisted Tomography 22(2), 1998: Colin27.
# - A. Sotiras, C. Davatzikos, N. Paragios, "Deformable medical image registration: a survey", IEEE Transactions on Medical Imaging 32(7), 2013.
#
# Next: the exercise [exercises/00_start_here.ipynb](../exercises/00_start_here.ipynb), then lesson 01, the twenty minutes of PyTorch that everything after it is written in.

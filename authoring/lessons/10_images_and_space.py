# %% [markdown]
# # 10 · Images and space: where in the body is this voxel?
#
# At the end of this lesson you open a scan that looks squeezed, upside down and mirrored, put it right, and say of each voxel where in the body it lies, in millimeters.
#
# **Reading**: 42 minutes · **Running**: about 15 seconds on a laptop · **Before this**: lessons 00 and 01. Nothing of medicine.
#
# **You will be able to**
# - *predict* which voxel holds a given point of the body,
# - *implement* the way from millimeters to voxels, and a padding that keeps every voxel in its place,
# - *diagnose* a flip that loses left and right, and a normalization that one bright spot spoils,
# - *find* a structure of the brain by its coordinates.

# %%
import tempfile
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional as F

from course_lib import setup
from course_lib.io import Volume, load_nifti
from course_lib.metrics import correlation
from course_lib.plotting import images, sections, show
from course_lib.volumes import crop_or_pad, next_multiple, normalize, orientation, reorient
from course_lib.volumes import resample, resample_like, to_voxel, to_world
from course_lib.widgets import slice_viewer

course = setup()

# %% [markdown]
# The next cell takes Colin, the man of lesson 00, and writes a file such as a scanner might leave: cut into thick slices, the axes in an order of its own (you need not read the code yet). The upper row takes the array at its word; the lower row asks the file where its voxels lie. (A **sagittal** cut is seen from the side, a **coronal** one from behind, an **axial** one from above.)

# %% tags=["cover"]
head = load_nifti(files("course_lib.data") / "colin27_t1.nii.gz")       # voxels of 1 mm
thick = reorient(resample(head, (3, 1, 1)), "PIL")
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "clinical.nii.gz"
values = (4 * thick.image[0, 0].numpy()).round().astype(np.int16)
nib.save(nib.Nifti1Image(values, thick.affine), path)

scan = load_nifti(path)
ignored = Volume(scan.image, np.eye(4), (1.0, 1.0, 1.0))
show(
    sections({"affine ignored": ignored, "affine obeyed": scan}, limits=(0, 1000)),
    alt="Upper row: two views are flat and squeezed, the third shows a head from the side, upside "
    "down. Lower row: a brain from the side, from behind and from above, in its true shape.",
)

# %% [markdown]
# ## 1 · An array, and a matrix beside it
#
# This head is an **MR** image (magnetic resonance), *T1-weighted*: a setting in which fluid is dark and white matter bright. **CT** (computed tomography), made with X-rays, is the other common kind. Either way an image is two things: an **array** of intensities, one for each **voxel** (a small box of tissue), and a **matrix** that says where in the scanner those boxes stand. Files in the **NIfTI** format (`.nii`, `.nii.gz`) hold both.
#
# **Predict** from the upper row above, which draws $i$, $j$ and $k$ as if they were $x$, $y$ and $z$: which axis of the array has far fewer voxels than the two others?

# %% tags=["nbval-check-output"]
file = nib.load(path)
print("array:", file.shape, "  mm per voxel:", [float(n) for n in file.header.get_zooms()])
print("matrix:\n", file.affine.astype(float), sep="")
assert file.shape == (233, 189, 66)

# %% [markdown]
# $k$: 66 slices of 3 mm; along the other axes a voxel is 1 mm wide. That size, along each axis, is the **spacing**. Unequal spacing is called **anisotropic**: drawn as cubes, such voxels squeezed the first two pictures. The matrix is the **affine**.
#
# `load_nifti` gives a `Volume`: `.image`, a tensor `(1, 1, *spatial)`, `.affine`, and `.spacing`.

# %% [markdown]
# ## 2 · Reading the affine
#
# As a sentence: *start at the center of the first voxel, and for each index walk that many steps along that axis's arrow.* As a formula, for a voxel $v = (i, j, k)$:
#
# $$w = A\,v + t = i\,a_1 + j\,a_2 + k\,a_3 + t$$
#
# $w$ is the place in the world, in mm. The columns $a_1, a_2, a_3$ of the 3 × 3 matrix $A$ are the steps along the three array axes; the length of a column is the spacing there. $t$ is the place of voxel (0, 0, 0). The 4 × 4 affine holds $A$ and, as its last column, $t$; its last row is 0, 0, 0, 1.
#
# The world's axes belong to the patient: $x$ grows to the patient's **R**ight, $y$ to the front (**A**nterior), $z$ to the head (**S**uperior). In short: **RAS**, the convention of NIfTI. The opposites are **L**eft, back (**P**osterior) and feet (**I**nferior).
#
# **Predict** with the matrix above: if $k$ grows by 1, where does one go, and by how many mm? And $i$?

# %% tags=["nbval-check-output"]
A, t = scan.affine[:3, :3], scan.affine[:3, 3]
for name, step in zip("ijk", A.T):
    print(f"one step along {name}: {step} mm, length {np.linalg.norm(step):.0f} mm")
print("the array axes run toward:", orientation(scan.affine))
assert orientation(scan.affine) == "PIL"

# %% [markdown]
# A step along $k$ goes 3 mm to the left, along $i$ 1 mm to the back, along $j$ 1 mm toward the feet. So in the third picture of the upper row, which draws $i$ to the right and $j$ upward, the head stands on its crown and looks to the left. Three letters, `PIL`, say toward which side each array axis runs. (If the patient lay askew, the zeros here are other numbers, and the letters name the nearest direction: the volume is **oblique**.)
#
# The formula in code takes one line; the way back you write in the exercise. Points are rows, so the matrix is transposed:

# %% tags=["nbval-check-output"]
corner = np.array([0.0, 0.0, 65.0])                                     # the last slice
print("world:", corner @ A.T + t, "mm")
there = to_world(corner, scan.affine)                                   # the same, in the library
print("back: ", to_voxel(there, scan.affine).round(6) + 0.0)
assert np.allclose(there, corner @ A.T + t) and np.allclose(to_voxel(there, scan.affine), corner)

# %% [markdown]
# **Left and right.** Up and down you would notice. But a brain is nearly its own mirror image. The next cell flips Colin from left to right, and the MNI152 template, too.
#
# **Predict**: in how many of the template's 8.7 million voxels does the flip change the intensity?

# %%
template = load_nifti(files("course_lib.data") / "mni152_t1.nii.gz")
changed = int((template.image != template.image.flip(2)).sum())         # axis 2 runs to the right
print(f"changed voxels of the template: {changed}")
brain = (head.image > 0) | (head.image.flip(2) > 0)
changed_here = float((head.image != head.image.flip(2))[brain].float().mean())
print(f"changed voxels of Colin's brain: {changed_here:.0%}")
axial = reorient(head, "PRS").image[..., 88] / 255                      # z = 16 mm
down_and_right = ("front → back (voxels)", "column (voxels)")
show(
    images({"left is left": axial, "left is right": axial.flip(3)}, axes_labels=down_and_right),
    alt="Two axial slices of a brain, mirror images of each other; nothing says which is right.",
)
assert changed == 0 and changed_here > 0.9

# %% [markdown]
# In none: this template was *made* symmetric. In Colin it changes nearly every voxel of the brain, and you still cannot tell which picture is the true one. **Nothing in the array tells left from right; only the affine does.** Operations on the wrong side of the head have happened: treat a lost affine as lost data.
#
# **Radiologists** look from the patient's feet, so the patient's left is on the *right* of their pictures. This course draws left on the left. Both are correct: put the letters on your own pictures.

# %% [markdown]
# ## 3 · One place, two files
#
# Indices belong to a file, millimeters to the patient. Here is one point in the 1 mm file and in the clinical one. It lies in Colin's left **lateral ventricle**, a chamber of fluid, 13 mm to the left of the middle. **Predict**: in which of the two files does its *first* index tell you so?

# %%
point = [-13, -10, 22]                                                  # (x, y, z) in mm
for name, volume, white in (("1 mm file", head, 235), ("clinical file", scan, 940)):
    voxel = to_voxel(point, volume.affine)
    i, j, k = voxel.round().astype(int)
    value = float(volume.image[0, 0, i, j, k])
    print(f"{name}: voxel ({i}, {j}, {k}), exactly {voxel.round(1)}")
    print(f"    intensity {value:.0f}; white matter has about {white}")
    assert value < 0.6 * white                                          # dark: fluid
assert np.allclose(20 * np.array(scan.spacing), [20, 20, 60])           # what follows needs these
assert 32 < np.linalg.norm(np.array(point) * [2, 2, 0]) < 33            # x and y, there and back

# %% [markdown]
# In the 1 mm file: 85 is 13 below the middle index, 98. In the clinical file left and right are in the last index, 3 mm a step; the place lies between two slices, and fractions are no error. (That file holds four times Colin's intensities.)
#
# **Distances in voxels lie** when the spacing is anisotropic: 20 voxels along $i$ are 20 mm, 20 voxels along $k$ are 60 mm. An error of "2 voxels" says nothing until you know the spacing and the direction; report it in mm.
#
# **Two worlds.** DICOM (the format in which scanners deliver) and ITK (the library under SimpleITK, ANTs and 3D Slicer) let $x$ grow to the **L**eft and $y$ to the back (**P**osterior): **LPS**. The conversion changes the sign of $x$ and $y$. Forget it, and the point above is 33 mm off, on the other side of the brain.

# %% [markdown]
# ## 4 · Reorienting loses nothing, resampling does
#
# **Reorienting** permutes and flips the array's axes, and changes the affine so that every value keeps its place. The way back gives the same file. **Resampling** lays a new grid into the same world and computes values in between, as the warp of lesson 00 did.

# %%
upright = reorient(scan, "RAS")
again = reorient(upright, "PIL")
assert torch.equal(again.image, scan.image) and np.allclose(again.affine, scan.affine)
cubes = resample(upright, (1, 1, 1))
print("reoriented:", tuple(upright.image.shape[2:]), "  resampled:", tuple(cubes.image.shape[2:]))

# %% [markdown]
# The resampled volume has as many voxels as the 1 mm original, give or take a slice, but not its detail: what lay between the slices is guessed.
#
# The other way, to *larger* voxels, has a trap of its own. **Predict**: stripes repeat every 2.5 voxels. Keep every second voxel and throw the others away. What do you see: the same stripes, gray, or other stripes?

# %%
columns = torch.arange(120.0).expand(1, 1, 60, 120)
stripes = 0.5 + 0.5 * torch.cos(2 * torch.pi * columns / 2.5)
dropped = stripes[..., ::2]                                             # (1, 1, 60, 60)
blurred = resample(Volume(stripes, np.eye(4), (1.0, 1.0)), (1, 2)).image
wide = [image.repeat_interleave(2, dim=3) for image in (dropped, blurred)]  # in the old scale
show(
    images({"stripes": stripes, "every second column": wide[0], "blurred first": wide[1]}),
    alt="Fine stripes; after dropping every second column wide stripes of full contrast; after "
    "blurring first an even gray.",
)
assert torch.allclose(dropped[..., 5:], dropped[..., :-5], atol=1e-4)   # every 5th: 10 voxels
assert dropped.std() > 0.9 * stripes.std() > 6 * blurred[..., 5:-5].std()

# %% [markdown]
# Other stripes, that nobody drew: four times wider than the true ones, and as strong. This is **aliasing**: detail finer than two new voxels comes back disguised as something coarser, unless it is removed *before* sampling. So `resample` blurs along every axis that gets coarser (a convolution, as in lesson 01), and so must you before writing `image[::2]`.
#
# **Labels are names, not amounts.** In a label map each voxel holds the number of a structure: here fluid, gray and white matter are 1, 2, 3 on the left and 41, 42, 43 on the right. The next cell halves the voxels, by linear interpolation. **Predict**: what number comes out a quarter of the way from gray matter on the left (2) to gray matter on the right (42), and which structure is that?

# %%
file = load_nifti(files("course_lib.data") / "colin27_tissues.nii.gz")
tissues = reorient(file, "PRS").image[..., 60:160, 60:170, 88]          # (1, 1, 100, 110)
right = torch.arange(60, 170) > 98                                      # column 98 is x = 0
numbers = tissues + 40 * (right & (tissues > 0))
labels = Volume(numbers, np.eye(4), (1.0, 1.0))
nearest, linear = (resample(labels, (0.5, 0.5), m).image.round() for m in ("nearest", "linear"))
invented = ~torch.isin(linear, numbers.unique())                        # a number nobody gave
renamed = (linear != nearest) & ~invented                               # another structure's
show(
    images(
        {"tissues": (nearest % 40) / 3, "invented": invented.float(), "renamed": renamed.float()},
        axes_labels=("front → back (½ mm)", "left → right (½ mm)"),
    ),
    alt="A slice of fluid, gray and white matter; beside it the voxels with invented numbers, "
    "along the midline and around the right half; then scattered voxels with a wrong number.",
)
print(sorted(int(n) for n in linear.unique()))
print(f"{int(invented.sum())} voxels invented, {int(renamed.sum())} renamed")
assert 12 in linear.unique() and len(nearest.unique()) == 7 and renamed.sum() > 100

# %% [markdown]
# 12 (three quarters of 2, one of 42): a structure that nobody has seen, like every number between 3 and 41 in this list. They stand where the right half meets the left or the background. The third picture is worse: voxels with an *existing* number, but another structure's (from fluid, 1, to white matter, 3, the way leads over 2), so nobody notices. For labels use `mode="nearest"`, which copies the nearest voxel's number; for intensities linear interpolation is right.

# %% [markdown]
# ## 5 · Intensities have no unit
#
# CT measures: in Hounsfield units air is −1000 and water 0, on every scanner. MR does not; its numbers depend on the scanner and the day. A program that compares intensities needs them on one scale: **normalization**.
#
# The first idea is $(v - \min) / (\max - \min)$. **Predict**: a tiny block of 27 voxels is 20 times brighter than anything else, as an artifact may be. Which gray do the other three million voxels get?

# %%
spoiled = upright.image.clone()
spoiled[0, 0, 30:33, 160:163, 88:91] = 20 * upright.image.max()         # one bright spot
stretched = (spoiled - spoiled.min()) / (spoiled.max() - spoiled.min())
robust = normalize(spoiled)                                             # by a quantile, clipped
scaled = {"min–max": stretched, "99.5 % quantile": robust}
show(
    sections({name: upright._replace(image=image) for name, image in scaled.items()}),
    alt="Upper row, three black pictures; lower row, three cuts of a brain in full contrast.",
)
brain = upright.image > 0
medians = [float(image[brain].median()) for image in scaled.values()]
print(f"median of the brain: {medians[0]:.2f} by min–max, {medians[1]:.2f} by the quantile")
assert medians[0] < 0.05 and medians[1] > 0.7

# %% [markdown]
# All but black. The maximum is a single voxel's opinion. `normalize` divides by the 99.5 % **quantile** instead, the value that 99.5 % of the voxels stay below, and clips what is above to 1. It counts the voxels above 0 only: otherwise the amount of background around the head would decide.
#
# In a pair, normalize each MR image by its own quantile; in CT, where a value means something, take one fixed range for all. And no rescaling makes different *contrasts* alike: fluid is dark in T1-weighted MR and bright in T2-weighted MR, another of its settings. That is the business of the similarity (lesson 13).

# %% [markdown]
# ## 6 · Sizes that halve
#
# Many networks halve an image a few times, then double it again, and at each size join (concatenate) both. **Predict**: an image is 63 voxels long. What are the next two sizes, halved and doubled again, and what does PyTorch say to joining the last with the first?

# %%
features = torch.zeros(1, 8, 63, 48)
down = F.max_pool2d(features, 2)                                        # (1, 8, 31, 24)
up = F.interpolate(down, scale_factor=2)                                # (1, 8, 62, 48)
print(" → ".join(str(x.shape[2]) for x in (features, down, up)))
try:
    torch.cat([features, up], dim=1)
    raise AssertionError("these sizes cannot be joined")
except RuntimeError as error:
    print("RuntimeError:", error)
assert down.shape[2] == 31 and up.shape[2] == 62

# %% [markdown]
# Halving rounds down, and doubling cannot know. Every size has to be even at each halving: a network that halves four times, such as VoxelMorph (lesson 30), wants multiples of $2^4 = 16$.
#
# **Predict** the next multiples of 16 of the scan's sizes, 66 × 233 × 189. Then make room: `crop_or_pad` cuts or adds on both sides of each axis.

# %% tags=["nbval-check-output"]
sizes = next_multiple(upright.image.shape[2:], 16)
roomy = crop_or_pad(upright, sizes)
print("from", tuple(upright.image.shape[2:]), "to", tuple(roomy.image.shape[2:]))
print("first voxel at", upright.affine[:3, 3], "mm, then at", roomy.affine[:3, 3], "mm")
assert sizes == (80, 240, 192) and not np.allclose(roomy.affine, upright.affine)

# %% [markdown]
# **The affine has to follow**: the first voxel is another one now, so $t$ changes by as many steps as were added before it. If you pad the array and keep the old affine, every coordinate is wrong:

# %%
forgotten = Volume(roomy.image, upright.affine, upright.spacing)
for name, volume in {"affine updated": roomy, "affine forgotten": forgotten}.items():
    i, j, k = to_voxel(point, volume.affine).round().astype(int)
    print(f"{name:16} intensity at {point} mm: {float(volume.image[0, 0, i, j, k]):.0f}")
wrong = np.linalg.norm(to_world([0, 0, 0], roomy.affine) - to_world([0, 0, 0], forgotten.affine))
print(f"everything is {wrong:.0f} mm off")
assert 21 < wrong < 22 and volume.image[0, 0, i, j, k] > 500

# %% [markdown]
# The ventricle has become brain tissue, 21 mm off, and no program will complain.
#
# **Normalize first, pad afterwards.** Padded zeros that come earlier take part in every statistic that counts all voxels, and in CT 0 is not air but water.

# %% [markdown]
# ## 7 · Play: find your way around
#
# The viewer shows three cuts through one point, which you move in millimeters. It gets the clinical file as it is, and says in which voxel of the *file* the crosshair is.
#
# **Play**: set z to 16. The axial cut shows the lateral ventricles twice: two dark horns in front, and two slender ones further back, which bend outward. (The dark space between is no part of them.) Which of the two at the back reaches further back, the left or the right, and by about how many mm? (Without sliders: in the second and third still picture the crosshair stands on their ends.)

# %%
viewer = slice_viewer(scan, stills=[(0, -18, 16), (-27, -53, 16), (29, -48, 16)])
viewer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# The left one, by about 5 mm: it ends near y = −53 mm (at x = −27), the right one near y = −48 mm (at x = 29). Healthy brains are not symmetric; that is how you could have told Colin from his mirror image, had you known him.
#
# </details>

# %%
i, j = (upright.image[0, 0, :, :, 88] < 600).nonzero().T.numpy()        # dark, at z = 16 mm
x, y, z = to_world(np.stack([i, j, np.full_like(i, 88)], axis=1), upright.affine).T
back = (abs(x) > 20) & (abs(x) < 32) & (y > -60) & (y < -35)            # around the two horns
ends = {"left": y[back & (x < 0)].min(), "right": y[back & (x > 0)].min()}
print("the horns end at y (mm):", {side: float(end) for side, end in ends.items()})
assert z[0] == 16 and ends["left"] < -50 < ends["right"] and 3 <= ends["right"] - ends["left"] <= 8

# %% [markdown]
# ## Common mistakes
#
# **Arrays compared that lie elsewhere.** Two files go into a network as arrays, cut to one size, and "it does not work on my own data". Look at them on one grid first: `resample_like` lays one volume onto the other's grid:

# %%
by_index = crop_or_pad(scan, head.image.shape[2:])
by_place = resample_like(scan, head)
pictures = {"1 mm file": head, "clinical, by index": by_index, "clinical, by place": by_place}
slices = {n: normalize(v.image[..., 88]).flip(3).mT for n, v in pictures.items()}
show(
    images(slices, axes_labels=("second index, from its end", "first index")),
    alt="The 1 mm file's axial cut; by index, a head from the side, upside down; by place, the "
    "axial cut again.",
)
scores = {n: float(correlation(v.image, head.image)) for n, v in pictures.items()}
print({name: round(score, 2) for name, score in scores.items()})
assert scores["clinical, by index"] < 0.6 and scores["clinical, by place"] > 0.98
assert np.allclose(scan.affine[:3, :3] @ [0, 0, 5], [-15, 0, 0])        # 5 voxels along k, in mm
folder.cleanup()

# %% [markdown]
# Same man, same scan: no registration was needed, only the affine. Threads where preprocessing was what was missing: [voxelmorph#480](https://github.com/voxelmorph/voxelmorph/issues/480), [#151](https://github.com/voxelmorph/voxelmorph/issues/151), [#112](https://github.com/voxelmorph/voxelmorph/issues/112), [#589](https://github.com/voxelmorph/voxelmorph/issues/589).
#
# **Voxels taken for millimeters.** A network's displacement counts in voxels along array axes; ITK, ANTs and Slicer expect mm along the world's, and LPS at that. Five voxels along $k$ of our scan are 15 mm to the left. Threads: [voxelmorph#328](https://github.com/voxelmorph/voxelmorph/issues/328), [#438](https://github.com/voxelmorph/voxelmorph/issues/438), [ANTsPy#186](https://github.com/ANTsX/ANTsPy/issues/186).
#
# **Sizes that do not divide.** The error of section 6, met by many: [voxelmorph#487](https://github.com/voxelmorph/voxelmorph/issues/487), [#292](https://github.com/voxelmorph/voxelmorph/issues/292), [#599](https://github.com/voxelmorph/voxelmorph/issues/599).

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. Two files have the same shape and the same spacing. May you subtract their arrays?</summary>
#
# Not yet. Their axes may run in other directions, and they may begin elsewhere: compare the affines. If these agree too, the voxels lie on the same places of the *scanner*; whether the patient lay still is another question.
#
# </details>
#
# <details><summary>2. You flip an array from left to right <em>and</em> update the affine as reorient does. On which side does the tumor appear in a viewer that obeys the affine?</summary>
#
# On the same side as before. Every value kept its place in the world, so the picture does not change at all. Only flipping *without* the affine moves the tumor.
#
# </details>
#
# <details><summary>3. A method's error is 4 voxels, the spacing 3 × 1 × 1 mm. How many mm is that?</summary>
#
# Between 4 and 12, depending on the direction. It cannot be told from the length in voxels alone.
#
# </details>

# %% [markdown]
# ## Take away
#
# - An image is an array *and* an affine: `world = A · voxel + t`, in mm, RAS. The array alone does not know left from right.
# - Distances and errors are in mm; ITK and DICOM flip the signs of x and y (LPS).
# - Reorienting is lossless. Resampling interpolates: blur before going coarser, nearest for labels.
# - MR has no unit: scale by a quantile of the foreground; a maximum is one voxel's opinion.
# - Networks want sizes that halve evenly: normalize, then pad, and let the affine follow.
#
# **Go further**
# - R. W. Cox and colleagues, "A (sort of) new image data format standard: NIfTI-1", 10th Annual Meeting of the Organization for Human Brain Mapping, 2004.
# - X. Li, P. S. Morgan, J. Ashburner, J. Smith, C. Rorden, "The first step for neuroimaging data analysis: DICOM to NIfTI conversion", Journal of Neuroscience Methods 264, 2016.
# - L. G. Nyúl, J. K. Udupa, "On standardizing the MR image intensity scale", Magnetic Resonance in Medicine 42(6), 1999.
#
# Next: the exercise [exercises/10_images_and_space.ipynb](../exercises/10_images_and_space.ipynb).

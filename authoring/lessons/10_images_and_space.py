# %% [markdown]
# # 10 · Images and space: where in the body is this voxel?
#
# At the end of this lesson you open a scan that looks squeezed, upside down and mirrored, put it right, and say of each voxel where in the body it lies, in millimeters.
#
# **Reading**: 40 minutes · **Running**: about 15 seconds on a laptop · **Before this**: lessons 00 and 01. Nothing of medicine.
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
from course_lib.plotting import comparison, images, sections, show
from course_lib.volumes import crop_or_pad, next_multiple, normalize, orientation, reorient
from course_lib.volumes import resample, resample_like, to_voxel, to_world
from course_lib.widgets import slice_viewer

course = setup()

# %% [markdown]
# Hospitals do not store heads the way textbooks draw them. The next cell takes Colin, the man of lesson 00, and writes a file such as a scanner might leave: cut from one side to the other in slices 3 mm thick, the axes in the scanner's order (you need not read how yet). Then it draws the file twice. The upper row takes the array at its word; the lower row asks the file where its voxels lie. (A **sagittal** cut is seen from the side, a **coronal** one from behind, an **axial** one from above.)

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
# A medical image is two things: an **array** of intensities, one for each **voxel** (a small box of tissue), and a **matrix** that says where in the scanner those boxes stand. Files in the **NIfTI** format (`.nii`, or `.nii.gz` compressed) hold both, in the image data and in the **header**. The Python library nibabel reads them.
#
# **Predict** from the upper row above: one axis of the array has far fewer voxels than the others. Which one, and how thick are they?

# %% tags=["nbval-check-output"]
file = nib.load(path)
sizes = [float(n) for n in file.header.get_zooms()]
print("array:", file.get_fdata().shape, "  mm per voxel:", sizes)
print("matrix:\n", file.affine.astype(float), sep="")
assert file.shape == (233, 189, 66)

# %% [markdown]
# The last one: 66 slices of 3 mm, the other two axes have voxels of 1 mm. That size, in mm along each axis, is the **spacing**. Unequal spacing is called **anisotropic**, and drawing such voxels as cubes is what squeezed the first two pictures. The matrix is the **affine**. It did the rest, and it is worth learning to read.
#
# `load_nifti` gives both as a `Volume`: `.image` as a tensor `(1, 1, *spatial)`, `.affine`, and `.spacing`.

# %% [markdown]
# ## 2 · Reading the affine
#
# As a sentence: *start at the center of the first voxel, and for each index walk that many steps along that axis's arrow.* As a formula, for a voxel $v = (i, j, k)$:
#
# $$w = A\,v + t = i\,a_1 + j\,a_2 + k\,a_3 + t$$
#
# $w$ is the place in the world, in mm. The columns $a_1, a_2, a_3$ of the 3 × 3 matrix $A$ are the steps along the three array axes; the length of a column is the spacing there. $t$ is the place of voxel (0, 0, 0). The 4 × 4 affine holds $A$ and $t$, with a last row 0, 0, 0, 1, so that two of them can be multiplied.
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
# A step along $k$ goes 3 mm to the left, along $i$ 1 mm to the back, along $j$ 1 mm toward the feet. Hence the head upside down, its face where its back should be; and because the slices run from right to left, it is a mirror image as well, which you could not see. Three letters, `PIL`, say toward which side each array axis runs. If a patient lies askew, the numbers that are 0 here are not, and the letters name the nearest direction; such a volume is **oblique**.
#
# The formula in code takes one line, and so does the way back. Points are rows, so the matrix is transposed:

# %% tags=["nbval-check-output"]
corner = np.array([0.0, 0.0, 65.0])                                     # the last slice
print("world:", corner @ A.T + t, "mm")
there = to_world(corner, scan.affine)                                   # the same, in the library
print("back: ", to_voxel(there, scan.affine).round(6) + 0.0)
assert np.allclose(there, corner @ A.T + t) and np.allclose(to_voxel(there, scan.affine), corner)

# %% [markdown]
# **Left and right.** Up and down you would notice. Left and right you would not: from outside, a brain is nearly its own mirror image. The next cell flips the MNI152 template from left to right, and then Colin.
#
# **Predict**: in how many of the template's 8.7 million voxels does the flip change the intensity?

# %%
template = load_nifti(files("course_lib.data") / "mni152_t1.nii.gz")
changed = int((template.image != template.image.flip(2)).sum())
print(f"changed voxels of the template: {changed}")
alike = float(correlation(head.image, head.image.flip(2)))
print(f"correlation of Colin with his mirror image: {alike:.2f}")
axial = head.image[..., 88].flip(3).mT                                  # z = 16 mm, front at the top
show(
    images({"left is left": axial / 255, "left is right": axial.flip(3) / 255}),
    alt="Two axial slices of a brain, mirror images of each other; nothing says which is right.",
)
assert changed == 0 and 0.90 < alike < 0.97

# %% [markdown]
# In none: this template was *made* symmetric. For Colin it changes most voxels and you still cannot tell which picture is the true one. **Nothing in the array tells left from right; only the affine does.** Operations on the wrong side of the head have happened: treat a lost affine as lost data.
#
# There is one more trap, and it is only a habit of drawing. **Radiologists** look from the patient's feet, so the patient's left is on the *right* of the picture. This course draws left on the left. Both are correct: read the letters, and put them on your own pictures.

# %% [markdown]
# ## 3 · One place, two files
#
# Indices belong to a file, millimeters to the patient. The same point of Colin's brain, in the 1 mm file and in the clinical one:
#
# **Predict**: the point lies 13 mm to the left of the middle. In which of the two files does its first index tell you so?

# %%
point = [-13, -10, 22]                                                  # (x, y, z) in mm
for name, volume, gain in (("1 mm file", head, 4), ("clinical file", scan, 1)):
    voxel = to_voxel(point, volume.affine)
    i, j, k = voxel.round().astype(int)
    intensity = gain * float(volume.image[0, 0, i, j, k])
    print(f"{name:14} voxel ({i}, {j}, {k}), exactly {voxel.round(1)}: intensity {intensity:.0f}")
    assert intensity < 450                                              # dark: fluid of a ventricle

# %% [markdown]
# In the 1 mm file the first index, 85, is 13 below the middle one, 98; in the clinical file left and right are in the last index, three millimeters a step. Both find the dark fluid of the left lateral ventricle. (The factor 4 undoes what we did to the intensities when we wrote the file.) The place lies between two slices of the clinical file; fractions are no error.
#
# **Distances in voxels lie** when the spacing is anisotropic. **Predict**: from the voxel (100, 90, 30), one point lies 20 voxels further along $i$ and another 20 voxels further along $k$. How far are they in mm?

# %% tags=["nbval-check-output"]
start = np.array([100.0, 90.0, 30.0])
for axis, step in (("i", [20, 0, 0]), ("k", [0, 0, 20])):
    mm = np.linalg.norm(to_world(start + step, scan.affine) - to_world(start, scan.affine))
    print(f"20 voxels along {axis}: {mm:.0f} mm")
assert np.isclose(mm, 60)

# %% [markdown]
# So a registration error of "2 voxels" says nothing until you know the spacing and the direction. Errors are reported in mm.
#
# **Two worlds.** DICOM (the format of scanners) and ITK (the library under SimpleITK, ANTs and 3D Slicer) let $x$ grow to the **L**eft and $y$ to the back (**P**osterior): **LPS**. The conversion flips the sign of two coordinates. **Predict**: you forget it for the point above. By how many mm is it off?

# %% tags=["nbval-check-output"]
ras = np.array(point)
lps = ras * [-1, -1, 1]
print("RAS", ras, "  LPS", lps, f"  apart: {np.linalg.norm(lps - ras):.0f} mm")
assert 32 < np.linalg.norm(lps - ras) < 33

# %% [markdown]
# It lands on the other side of the brain. Because two axes flip at once, this is a half turn and not a mirror: the head still looks like a head, with its face at the back.

# %% [markdown]
# ## 4 · Reorienting loses nothing, resampling does
#
# To compare two volumes voxel by voxel, bring them onto one grid. There are two kinds of steps.
#
# **Reorienting** permutes and flips the array's axes, and changes the affine so that every value keeps its place. No value is computed anew, and the way back gives the same file. **Resampling** lays a new grid into the same world and computes values in between, as the warp of lesson 00 did.

# %%
upright = reorient(scan, "RAS")
again = reorient(upright, "PIL")
assert torch.equal(again.image, scan.image) and np.allclose(again.affine, scan.affine)
cubes = resample(upright, (1, 1, 1))
print("reoriented:", tuple(upright.image.shape[2:]), "  resampled:", tuple(cubes.image.shape[2:]))
assert np.allclose(upright.affine[:3, :3], np.diag([3, 1, 1]))

# %% [markdown]
# The resampled volume has as many voxels as the 1 mm original, give or take a slice, but not its detail: what lay between the slices is guessed. Small voxels are not yet high resolution.
#
# The other way, to *larger* voxels, has a trap of its own. **Predict**: stripes repeat every 2.5 voxels. Keep every second voxel and throw the others away. What do you see: the same stripes, gray, or other stripes?

# %%
columns = torch.arange(120.0).expand(1, 1, 60, 120)
stripes = 0.5 + 0.5 * torch.cos(2 * torch.pi * columns / 2.5)
flat = Volume(stripes, np.eye(4), (1.0, 1.0))
dropped = stripes[..., ::2]
blurred = resample(flat, (1, 2)).image
shown = {"stripes": stripes, "every second column": dropped, "blurred first": blurred}
wide = {name: image.repeat_interleave(120 // image.shape[3], 3) for name, image in shown.items()}
show(
    images(wide),
    alt="Fine stripes; after dropping every second column wide stripes of full contrast; after "
    "blurring first an even gray.",
)
waves = torch.fft.rfft(dropped[0, 0, 0] - dropped.mean()).abs()
period = 2 * dropped.shape[-1] / int(waves.argmax())
contrast = float(blurred[..., 5:-5].std() / stripes.std())
print(f"stripes of {period:.0f} voxels that nobody drew; blurred first, {contrast:.0%} is left")
assert period == 10 and dropped.std() > 0.9 * stripes.std() and contrast < 0.15

# %% [markdown]
# (Each remaining column is drawn twice, to keep the scale.) Stripes that do not exist, four times wider than the true ones and as strong: **aliasing**. Detail finer than two new voxels cannot be shown, and if it is not removed *before* sampling it comes back disguised as something coarser. In a brain it looks like noise. So `resample` blurs along every axis that gets coarser, and so must you before writing `image[::2]`. (Blurring is a convolution, as in lesson 01; lesson 12 comes back to it.)
#
# **Labels are names, not amounts.** A label map holds the number of a structure in each voxel. Number Colin's fluid, gray and white matter 1, 2, 3 on the left and 41, 42, 43 on the right, as brain atlases number left and right apart. **Predict**: halfway between gray matter on the left and on the right lies (2 + 42) / 2 = 22. What is 22? And how many different numbers will there be after linear interpolation?

# %%
tissues = load_nifti(files("course_lib.data") / "colin27_tissues.nii.gz").image[..., 88]
right = torch.arange(197).view(1, 1, 197, 1) > 98                       # x above 0
numbers = (tissues + 40 * (right & (tissues > 0))).flip(3).mT[..., 60:160, 60:170]
labels = Volume(numbers, np.eye(4), (1.0, 1.0))
resampled = {m: resample(labels, (0.5, 0.5), m).image.round() for m in ("nearest", "linear")}
invented = (~torch.isin(resampled["linear"], numbers.unique())).float()
show(
    images({"tissues": (resampled["nearest"] % 40) / 3, "linear: invented numbers": invented}),
    alt="A slice of fluid, gray and white matter; beside it the voxels with invented numbers, a "
    "line along the midline and another around the right half of the brain.",
)
found = {name: len(image.unique()) for name, image in resampled.items()}
print("different numbers:", found)
assert found["nearest"] == 7 and found["linear"] > 14

# %% [markdown]
# Structures that no anatomist has seen, wherever the right half meets the left or the background. For labels use `mode="nearest"`, which copies the nearest voxel's number; for intensities linear interpolation is right.

# %% [markdown]
# ## 5 · Intensities have no unit
#
# CT measures: in Hounsfield units air is −1000 and water 0, on every scanner. MR does not. Its numbers depend on the scanner, the coil and the day; Colin's white matter is about 235 in one of our files and 940 in the other. A program that compares intensities, or a network that was trained on 0 to 1, needs them on one scale: **normalization**.
#
# The first idea is $(v - \min) / (\max - \min)$. **Predict**: a tiny block of 27 voxels is 20 times brighter than anything else, as a vessel full of contrast agent or an artifact may be. Which gray do the other three million voxels get?

# %%
spoiled = upright.image.clone()
spoiled[0, 0, 30:33, 160:163, 88:91] = 20 * upright.image.max()         # one bright spot
stretched = (spoiled - spoiled.min()) / (spoiled.max() - spoiled.min())
robust = normalize(spoiled)                                             # by a quantile, clipped
cut = {"min–max": stretched, "99.5 % quantile": robust}
show(
    images({name: image[:, :, 33].flip(3).mT for name, image in cut.items()}),
    alt="Left, a black picture; right, a brain seen from the side.",
)
brain = upright.image > 0
medians = [float(image[brain].median()) for image in cut.values()]
print(f"median of the brain: {medians[0]:.2f} by min–max, {medians[1]:.2f} by the quantile")
assert medians[0] < 0.05 and medians[1] > 0.7

# %% [markdown]
# All but black. The maximum is a single voxel's opinion. `normalize` divides by the 99.5 % **quantile** instead, the value that 99.5 % of the voxels stay below, and clips what is above to 1. It counts the voxels above 0 only: otherwise the amount of background around the head would decide. The price: differences among the brightest 0.5 % are gone. If those are what you are after (vessels, contrast agent, metal), choose another scale.
#
# The other common choice is the **z-score**, $(v - \text{mean}) / \text{standard deviation}$, again of the foreground. It has no fixed range, and an outlier moves it less than it moves a maximum, but it does. **Predict**: 27 voxels among hundreds of thousands of brain voxels; does the standard deviation change by 0.1 %, 1 % or 10 %?

# %%
before, after = (float(image[brain].std()) for image in (upright.image, spoiled))
clipped = float((normalize(upright.image)[brain] == 1).float().mean())
print(f"standard deviation of {brain.sum()} voxels: {before:.0f}, with the spot {after:.0f}")
print(f"clipped by the quantile: {clipped:.1%} of the foreground")
assert 1.08 < after / before < 1.16 and 0.004 < clipped < 0.01

# %% [markdown]
# **The same for both images of a pair?** The same *recipe*, yes: each MR image by its own quantile, since each has its own scale. In CT do the opposite, one fixed window for all, because there a value means something. And no rescaling makes different *contrasts* alike: fluid is dark in T1-weighted MR and bright in T2-weighted MR. That is the business of the similarity (lesson 13).

# %% [markdown]
# ## 6 · Sizes that halve
#
# Many networks of this course look at an image at several sizes: they halve it a few times, then double it again, and at each size join (concatenate) the way up with what they saw on the way down. The survey text behind this course warns of an image 63 voxels long: 63 → 31 → 62. **Predict** what PyTorch does then.

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
# The survey is right: halving rounds down, doubling cannot know. Every size has to stay even at each halving. With four of them, as in VoxelMorph, sizes must be multiples of $2^4 = 16$; a network that halves five times wants multiples of 32.
#
# **Predict** the next multiples of 16 of the scan's sizes, 66 × 233 × 189. Then make room: `crop_or_pad` cuts or adds on both sides of each axis.

# %% tags=["nbval-check-output"]
sizes = next_multiple(upright.image.shape[2:], 16)
roomy = crop_or_pad(upright, sizes)
print("from", tuple(upright.image.shape[2:]), "to", tuple(roomy.image.shape[2:]))
print("first voxel at", upright.affine[:3, 3], "mm, then at", roomy.affine[:3, 3], "mm")
assert sizes == (80, 240, 192) and not np.allclose(roomy.affine, upright.affine)

# %% [markdown]
# **The affine has to follow**: the first voxel is another one now, so $t$ changes by as many steps as were added. If you pad the array and keep the old affine, every coordinate is wrong:

# %%
forgotten = Volume(roomy.image, upright.affine, upright.spacing)
for name, volume in {"affine updated": roomy, "affine forgotten": forgotten}.items():
    i, j, k = to_voxel(point, volume.affine).round().astype(int)
    print(f"{name:16} intensity at {point} mm: {float(volume.image[0, 0, i, j, k]):.0f}")
wrong = np.linalg.norm(to_world([0, 0, 0], roomy.affine) - to_world([0, 0, 0], forgotten.affine))
print(f"everything is {wrong:.0f} mm off")
assert 21 < wrong < 22 and volume.image[0, 0, i, j, k] > 500

# %% [markdown]
# The ventricle has become brain tissue, 21 mm off, and no program will complain. A registration would then find a shift that does not exist.
#
# **Normalize first, pad afterwards.** Then 0 is what it should be, background. Padded zeros that come earlier take part in every statistic, and in CT 0 is not air but water. **Predict**: does padding change the z-score of *all* voxels?

# %%
wide = crop_or_pad(upright, (128, 240, 192))
mean, padded_mean = float(upright.image.mean()), float(wide.image.mean())
print(f"mean of all voxels: {mean:.0f}, after padding {padded_mean:.0f}")
scaled = wide._replace(image=normalize(wide.image))
inner = crop_or_pad(scaled, upright.image.shape[2:])                    # without the padding
assert padded_mean < 0.6 * mean
assert torch.allclose(inner.image, normalize(upright.image))            # zeros are not counted

# %% [markdown]
# If its mean is taken over all voxels, yes. `normalize`, which counts what is above 0 only, gives the same brain either way: one more reason to count so.

# %% [markdown]
# ## 7 · Play: find your way around
#
# The viewer shows three cuts through one point, which you move in millimeters. It gets the clinical file as it is: the affine tells it how to draw, so the voxels stand upright in their true size, 3 mm wide. Below the cuts it says in which voxel of the *file* the crosshair is.
#
# **Play**: set z to 16. In the axial cut you see the two dark horns of the lateral ventricles; the ends of both bend toward the back. Which one reaches further back, the left or the right, and by about how many mm?

# %%
viewer = slice_viewer(scan)
viewer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# The left one, by about 5 mm: it ends near y = −53 mm (at x = −27), the right one near y = −48 mm (at x = 29). Healthy brains are not symmetric; that is how you could have told Colin from his mirror image, had you known him.
#
# </details>

# %%
k = int(to_voxel([0, 0, 16], upright.affine)[2].round())
ends = {}
for side, sign in (("left", -1), ("right", 1)):
    i, j = (upright.image[0, 0, :, :, k] < 600).nonzero().T.numpy()     # dark
    x, y, _ = to_world(np.stack([i, j, np.full_like(i, k)], axis=1), upright.affine).T
    horn = (sign * x > 20) & (sign * x < 32) & (y > -60) & (y < -35)
    ends[side] = float(y[horn].min())
print("the horns end at y (mm):", ends)
assert ends["left"] < -50 < ends["right"] and 3 <= ends["right"] - ends["left"] <= 8

# %% [markdown]
# ## Common mistakes
#
# **Arrays compared that lie elsewhere.** Two files go into a network as arrays, cut to one size, and "it does not work on my own data". Look at them on one grid first; `resample_like` lays one volume onto the other's grid:

# %%
by_index = crop_or_pad(scan, head.image.shape[2:])
by_place = resample_like(scan, head)
pictures = {"by index": by_index, "by place": by_place}
fixed = normalize(head.image)[..., 88].flip(3).mT
show(
    comparison({n: normalize(v.image)[..., 88].flip(3).mT for n, v in pictures.items()}, fixed),
    alt="By index, a sagittal cut lies across the axial one; by place, both agree.",
)
scores = {name: float(correlation(v.image, head.image)) for name, v in pictures.items()}
print({name: round(score, 2) for name, score in scores.items()})
assert scores["by index"] < 0.6 and scores["by place"] > 0.98

# %% [markdown]
# Same man, same scan: no registration was needed, only the affine. Threads where preprocessing was what was missing: [voxelmorph#480](https://github.com/voxelmorph/voxelmorph/issues/480), [#151](https://github.com/voxelmorph/voxelmorph/issues/151), [#112](https://github.com/voxelmorph/voxelmorph/issues/112), [#589](https://github.com/voxelmorph/voxelmorph/issues/589).
#
# **Voxels taken for millimeters.** A network's displacement counts in voxels along array axes; ITK, ANTs and Slicer expect mm along the world's, and LPS at that. Five voxels along $k$ of our scan are 15 mm to the left: $A\,(0, 0, 5)^T = (-15, 0, 0)^T$. Threads: [voxelmorph#328](https://github.com/voxelmorph/voxelmorph/issues/328), [#438](https://github.com/voxelmorph/voxelmorph/issues/438), [ANTsPy#186](https://github.com/ANTsX/ANTsPy/issues/186).

# %%
in_mm = scan.affine[:3, :3] @ [0, 0, 5]
print("5 voxels along k are", in_mm, "mm")
assert np.allclose(in_mm, [-15, 0, 0])
folder.cleanup()

# %% [markdown]
# **Sizes that do not divide.** The error of section 6, met by many: [voxelmorph#487](https://github.com/voxelmorph/voxelmorph/issues/487), [#292](https://github.com/voxelmorph/voxelmorph/issues/292), [#599](https://github.com/voxelmorph/voxelmorph/issues/599).
#
# **A flip for augmentation.** `image.flip(2)` on the array alone makes a *mirrored patient* under the old affine. As augmentation for training that may be what you want. In a file that somebody will read it is a catastrophe.

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
# On the same side as before. Every value kept its place in the world, so the picture does not change at all. Only flipping *without* the affine moves the tumor. Many answer the other way round, because they picture the array.
#
# </details>
#
# <details><summary>3. A method's error is 4 voxels, the spacing 3 × 1 × 1 mm. How many mm is that?</summary>
#
# Between 4 and 12, depending on the direction. It cannot be told from the length in voxels alone.
#
# </details>
#
# <details><summary>4. A colleague resamples a scan from 3 mm to 1 mm and reports that small lesions are now visible. What do you say?</summary>
#
# Interpolation adds voxels, not information. What two slices did not record, no resampling can show.
#
# </details>
#
# <details><summary>5. Why does a quantile over <em>all</em> voxels depend on how tightly the image is cropped?</summary>
#
# Background counts as voxels, too. Crop half of it away and the value that 99.5 % stay below rises, for the same head. Counting only voxels above 0 removes that.
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

# %% [markdown]
# # Exercise 10 · Images and space
#
# You write what keeps a voxel in its place: the way from millimeters to voxels, a flip, a padding; and a normalization that one bright spot does not spoil. Then you find a structure by its coordinates. **Time**: about 60 minutes · **Points**: 14.
#
# Before this: lesson 10. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
from importlib.resources import files

import numpy as np
import torch
from torch.nn import functional as F

from course_lib import setup
from course_lib.checks import images_and_space as check
from course_lib.checks import progress
from course_lib.io import Volume, load_nifti
from course_lib.plotting import images, sections, show
from course_lib.volumes import crop_or_pad, reorient, resample
from course_lib.widgets import slice_viewer

course = setup()

# %% [markdown]
# ## Task 1 · Which voxel? (predict)
#
# ●○○ · 4 minutes · 1 point
#
# A file has this affine:
#
# $$\begin{pmatrix} -2 & 0 & 0 & 90 \\ 0 & 1.5 & 0 & -120 \\ 0 & 0 & 3 & -60 \\ 0 & 0 & 0 & 1 \end{pmatrix}$$
#
# In which voxel $(i, j, k)$ lies the point $x = 30$, $y = -15$, $z = 45$ mm? Work it out with pencil and paper: each row of the matrix is an equation with one unknown.


# %%
def voxel_of_point():
    """The voxel of the point (30, -15, 45) mm.

    Returns:
        a tuple of three whole numbers, (i, j, k)
    """
    ### BEGIN SOLUTION
    # 30 = −2 i + 90,  −15 = 1.5 j − 120,  45 = 3 k − 60
    return 30, 70, 35
    ### END SOLUTION


# %% points=1
check.voxel_of_point(voxel_of_point)

# %% [markdown]
# ## Task 2 · From millimeters to voxels
#
# ●●○ · 10 minutes · 2 points
#
# The lesson's formula is $w = A v + t$. Solve it for $v$, for many points at once and for any affine, oblique ones included. NumPy has `np.linalg.inv`.


# %%
def to_voxel(points, affine):
    """Where points of the world lie in the array.

    Args:
        points: float64 NumPy array (N, 3), in mm
        affine: float64 NumPy array (4, 4), from voxels to mm

    Returns:
        float64 NumPy array (N, 3), in voxels, not rounded

    Example:
        with the affine of task 1, [[30, -15, 45], [31, -15, 45]] gives
        [[30, 70, 35], [29.5, 70, 35]]
    """
    ### BEGIN SOLUTION
    A, t = affine[:3, :3], affine[:3, 3]
    return (points - t) @ np.linalg.inv(A).T                            # (N, 3): a point is a row
    ### END SOLUTION


# %% points=2
check.to_voxel(to_voxel)

# %% [markdown]
# With it you can ask a file for its value at a place. This is Colin's head, in slices 3 mm thick and with axes in another order than in the lesson:

# %%
to_voxel = check.to_voxel.or_reference(to_voxel)
head = load_nifti(files("course_lib.data") / "colin27_t1.nii.gz")
scan = reorient(resample(head, (1, 1, 3)), "LSP")


def intensity_at(point, image, affine):
    """The value of the voxel nearest to a point (x, y, z) in mm."""
    i, j, k = to_voxel(np.array([point], dtype=float), affine)[0].round().astype(int)
    return float(image[0, 0, i, j, k])


ventricle = (-14, -10, 23)                                              # fluid is dark
print(f"left ventricle: {intensity_at(ventricle, scan.image, scan.affine):.0f}")
print(f"white matter:   {intensity_at((-28, -10, 30), scan.image, scan.affine):.0f}")

# %% [markdown]
# ## Task 3 · A flip that loses the patient (find the bug)
#
# ●●○ · 12 minutes · 3 points
#
# The function below flips an axis of the array. A tumor is painted on the patient's left, at x = −40 mm; the lower row shows where it appears after the flip. What has the function got wrong? Repair it in `flip_axis`.


# %%
def flip_with_a_bug(image, affine, axis):
    return image.flip(2 + axis), affine


sick = scan.image.clone()
sick[0, 0, 132:145, 36:41, 114:127] = 400                               # axis 0 runs to the left
wrong = Volume(*flip_with_a_bug(sick, scan.affine, 0), scan.spacing)
show(
    sections({"before": scan._replace(image=sick), "flipped": wrong}, (0, -22, 42), limits=(0, 400)),
    alt="Before, a white block in the left half of the brain; after the flip, in the right half.",
)


# %%
def flip_axis(image, affine, axis):
    """Flip one axis of the array, and let every value keep its place in the world.

    Args:
        image: float tensor (B, C, I, J, K)
        affine: float64 NumPy array (4, 4), from voxels to mm
        axis: 0, 1 or 2: the spatial axis to flip

    Returns:
        a tuple (image, affine): a tensor like image, and a float64 NumPy array (4, 4)

    Example:
        for I = 5, axis 0 and the affine [[2, 0, 0, 10],    the new affine is [[-2, 0, 0, 18],
                                          [0, 1, 0,  0],                       [ 0, 1, 0,  0],
                                          [0, 0, 1,  0],                       [ 0, 0, 1,  0],
                                          [0, 0, 0,  1]]                       [ 0, 0, 0,  1]]
    """
    ### BEGIN SOLUTION
    last = image.shape[2 + axis] - 1
    flipped = affine.copy()
    flipped[:3, 3] += last * affine[:3, axis]  # the first voxel is the one that was the last
    flipped[:3, axis] *= -1                                             # and steps go the other way
    return image.flip(2 + axis), flipped
    ### END SOLUTION


# %% points=3
check.flip_axis(flip_axis)

# %%
flip_axis = check.flip_axis.or_reference(flip_axis)
right = flip_axis(sick, scan.affine, 0)
tumor = (-40, -22, 42)
for name, (image, affine) in {"before": (sick, scan.affine), "after": right}.items():
    print(f"{name}: {intensity_at(tumor, image, affine):.0f} at the tumor's place")
assert intensity_at(tumor, *right) == 400 != intensity_at(tumor, wrong.image, wrong.affine)

# %% [markdown]
# The array is mirrored, and nothing has moved: two changes that undo each other. That is what "reorienting" means. A program that flips "because the picture is upside down" without touching the affine makes the mistake above, and for left and right nobody sees it.

# %% [markdown]
# ## Task 4 · One bright spot
#
# ●●○ · 12 minutes · 3 points
#
# This normalization gives a black picture, because a few voxels are very bright. Write one that does not mind: divide by the 99.5 % quantile of the voxels **above 0**, then clip to 0 … 1. Each image of the batch has a scale of its own. `np.quantile` and `torch.quantile` both do it.


# %%
def normalize_by_min_max(image):
    return (image - image.min()) / (image.max() - image.min())


coronal = reorient(scan, "IRP").image[..., 110].clone()                 # (1, 1, 63, 197)
coronal[0, 0, 30:32, 100:102] = 9000
down_and_right = ("head → feet (voxels)", "left → right (voxels)")
show(
    images({"min–max": normalize_by_min_max(coronal)}, axes_labels=down_and_right),
    alt="A black picture with one white dot.",
)


# %%
def normalize(image):
    """Intensities from 0 to 1, by a quantile of the foreground.

    Args:
        image: float tensor (B, 1, I, J); the background is 0, noise may lie below 0

    Returns:
        tensor like image, from 0 to 1

    Example:
        if 99.5 % of the voxels above 0 stay below 200, then [-3, 0, 50, 200, 9000]
        becomes [0, 0, 0.25, 1, 1]
    """
    ### BEGIN SOLUTION
    scaled = []
    for one in image:
        upper = torch.quantile(one[one > 0], 0.995)
        scaled.append((one / upper).clamp(0, 1))
    return torch.stack(scaled)
    ### END SOLUTION


# %% points=3
check.normalize(normalize)

# %%
normalize = check.normalize.or_reference(normalize)
show(
    images({"by the quantile": normalize(coronal)}, axes_labels=down_and_right),
    alt="A brain seen from behind, flattened, in full contrast.",
)
brain = coronal > 0
print(f"median of the brain: {normalize_by_min_max(coronal)[brain].median():.3f} by min–max,")
print(f"                     {normalize(coronal)[brain].median():.3f} by the quantile")
assert normalize(coronal)[brain].median() > 0.6

# %% [markdown]
# The flat shape is no business of a normalization: `images` draws voxels as squares, and these are 3 mm high and 1 mm wide.

# %% [markdown]
# ## Task 5 · Room to halve four times
#
# ●●● · 18 minutes · 3 points
#
# The scan has 197 × 63 × 233 voxels, the lesson's 63 among them. Pad a volume with zeros until `divisor` divides each of its sizes, with as few voxels as possible along each axis. Half of them come before the image and half behind it; if their number is odd, the extra one comes behind. The affine has to follow.
#
# `F.pad(image, (a, b, c, d, e, f))` adds voxels from the **last** axis to the first: `a` before and `b` behind along $k$, `c` and `d` along $j$, `e` and `f` along $i$.


# %%
def pad_to_multiple(image, affine, divisor):
    """Zeros around the image, until all sizes are multiples of divisor.

    Args:
        image: float tensor (B, C, I, J, K)
        affine: float64 NumPy array (4, 4), from voxels to mm
        divisor: a whole number

    Returns:
        a tuple (image, affine): the padded tensor, and a float64 NumPy array (4, 4)

    Example:
        sizes (5, 20, 11) and divisor 4 give (8, 20, 12): 1 before and 2 behind along i,
        none along j, 0 before and 1 behind along k. Voxel (1, 0, 0) of the result lies
        where voxel (0, 0, 0) of the image lay.
    """
    ### BEGIN SOLUTION
    more = [-n % divisor for n in image.shape[2:]]
    before = [n // 2 for n in more]
    (e, c, a), (f, d, b) = before, [n - n // 2 for n in more]
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ before                             # steps, turned into mm
    return F.pad(image, (a, b, c, d, e, f)), moved
    ### END SOLUTION


# %% points=3
check.pad_to_multiple(pad_to_multiple)

# %%
pad_to_multiple = check.pad_to_multiple.or_reference(pad_to_multiple)
padded, affine = pad_to_multiple(scan.image, scan.affine, 16)
print("from", tuple(scan.image.shape[2:]), "to", tuple(padded.shape[2:]))
print("ventricle before:", intensity_at(ventricle, scan.image, scan.affine))
print("ventricle after: ", intensity_at(ventricle, padded, affine))
assert tuple(padded.shape[2:]) == (208, 64, 240)
assert intensity_at(ventricle, padded, affine) == intensity_at(ventricle, scan.image, scan.affine)
halved = padded
for _ in range(4):
    halved = F.max_pool3d(halved, 2)
assert tuple(16 * n for n in halved.shape[2:]) == tuple(padded.shape[2:])
assert torch.equal(
    crop_or_pad(Volume(padded, affine, scan.spacing), scan.image.shape[2:]).image, scan.image
)

# %% [markdown]
# 197, 63 and 233 become 208, 64 and 240: each the next multiple of 16, so all of them halve four times. And the same value at the same place: that is the test of every function that touches an array and its affine. Write it down once for your own data, and run it whenever you change the pipeline.

# %% [markdown]
# ## Task 6 · Find the right ventricle (explore)
#
# ●○○ · 8 minutes · 2 points
#
# Each half of the brain has a **lateral ventricle**, a long chamber filled with fluid, dark in these images. Find a point inside the one on the **patient's right**, in the viewer, and give its coordinates in mm. Any point of it will do, its horns included. The check measures how far from it your point lies.

# %%
viewer = slice_viewer(scan)
viewer


# %%
def right_ventricle():
    """A point inside the right lateral ventricle.

    Returns:
        a tuple of three numbers, (x, y, z) in mm
    """
    ### BEGIN SOLUTION
    return 15, -24, 23
    ### END SOLUTION


# %% points=2
check.right_ventricle(right_ventricle)

# %%
right_ventricle = check.right_ventricle.or_reference(right_ventricle)
found = right_ventricle()
show(
    sections({"right ventricle": head}, point=found, limits=(0, 255)),
    alt="Three cuts through the right lateral ventricle.",
)
for name, volume in {"1 mm file": head, "scan": scan}.items():
    voxel = to_voxel(np.array([found], dtype=float), volume.affine)[0]
    print(f"voxel in the {name}: {voxel.round(1)}")

# %% [markdown]
# One place, two files, two triples of indices; only the millimeters are the patient's. If your first answer was on the wrong side, you are in good company: the viewer draws left on the left, radiologists draw it on the right, and the array says nothing. The sign of $x$ is what counts.

# %% [markdown]
# ## Where you stand

# %%
progress()

# %% [markdown]
# # 01 · Torch for images: the idioms of every later lesson
#
# At the end of this page a disc finds a brain: you write down what "wrong" means, PyTorch says which way is downhill for three numbers, and sixty steps later they fit. Registration is the same loop with more numbers.
#
# **Reading**: 30 minutes, with the guesses · **Running**: about 10 seconds on a laptop · **Before this**: lesson 00, Python and NumPy, the idea of a gradient.
#
# **You will be able to**
# - *predict* what broadcasting makes of two shapes, and what it does to a loss,
# - *diagnose* a normalization that works along the wrong axes,
# - *implement* a convolution with tensors, and a mask that passes gradients on,
# - *implement* the descent loop, and *find* a learning rate that arrives.

# %%
import numpy as np
import torch
from torch.nn import functional as F

from course_lib import setup
from course_lib.datasets import brains
from course_lib.optimise import descend
from course_lib.plotting import curves, images, show
from course_lib.widgets import descent_explorer, fit_disc

course = setup()

# %% [markdown]
# Here is where we are going: a circle that starts small and in the wrong place finds the brain by itself (skip the drawing code). `colin` is the moving image of lesson 00, not turned this time, `template` the fixed one; `inside` is 1 where the template shows brain.

# %% tags=["cover"]
pair = brains.real_pair()
colin, template = pair.moving, pair.fixed                               # (1, 1, 224, 192) each
inside = (pair.fixed_labels > 0).float()                                # (1, 1, 224, 192)
path, _ = fit_disc(inside, torch.tensor([[60.0, 60.0, 20.0]]), learning_rate=2, steps=60)
figure = images({f"after {n} steps": template for n in (0, 15, 60)})
turn = torch.linspace(0, 2 * torch.pi, 100)
for ax, (row, column, radius) in zip(figure.axes, path[[0, 15, 60]]):
    ax.plot(column + radius * turn.cos(), row + radius * turn.sin(), color="#d55e00", linewidth=3)
show(
    figure,
    alt="A small circle in the upper left of a brain slice; after 15 steps it is larger and nearer "
    "to the middle; after 60 steps it is about as large as the brain and lies on it.",
)

# %% [markdown]
# ## 1 · Tensors and axes
#
# A **tensor** is an array that can live on a graphics card and remember how it was computed. Images are `(B, C, H, W)`: items of the batch, channels, rows, columns. Ours is a batch of one, with one channel.

# %% tags=["nbval-check-output"]
print(tuple(template.shape), template.dtype)
plane = template[0, 0]                                                  # item 0, channel 0
print("plane:", tuple(plane.shape), "  with None:", tuple(plane[None, None].shape))
sums, kept = template.sum((2, 3)), template.sum((2, 3), keepdim=True)   # over rows and columns
print("sum:", tuple(sums.shape), "  with keepdim:", tuple(kept.shape))

# %% [markdown]
# `None` among the indices puts in an axis of size 1; `keepdim` keeps a summed axis, with size 1.
#
# The numbers have a type, the **dtype**: image files store whole numbers, NumPy computes in float64, PyTorch in float32.
#
# **Predict**: two voxels of 200 and 100, stored as 8-bit `uint8`. What is the mean of two such scans, `(a + a) / 2`?

# %% tags=["nbval-check-output"]
a = torch.tensor([200, 100], dtype=torch.uint8)
print("as uint8:  ", ((a + a) / 2).tolist())
print("as float32:", ((a.float() + a.float()) / 2).tolist())
print("float32 + NumPy's:", (torch.ones(2) + torch.from_numpy(np.ones(2))).dtype)
assert ((a + a) / 2).tolist() == [72, 100]

# %% [markdown]
# Above 255 the count begins again at 0, without a word: 400 becomes 144. So first make an image from a file `.float()`; an array of NumPy's too, for float64 spreads to all that it touches.
#
# **Order.** `permute` exchanges axes. `reshape` (and `view`, which never copies) keeps the numbers in their order and breaks the lines elsewhere. Both give the shape you want:

# %%
turned = template.permute(0, 1, 3, 2)                                   # (1, 1, 192, 224)
scrambled = template.reshape(1, 1, 192, 224)
show(
    images({"permute": turned, "reshape": scrambled}),
    alt="Permute shows the brain mirrored at its diagonal; reshape shows slanted stripes.",
)
assert turned.shape == scrambled.shape and (turned != scrambled).any()

# %% [markdown]
# **Views.** A slice, `permute`, `view` and `detach` copy nothing: they look at the same memory. Change one in place (`+=`, or a method whose name ends in `_`), and the other changes too. `.clone()` copies.

# %% tags=["nbval-check-output"]
small = torch.zeros(2, 3)
first_row, copied = small[0], small[0].clone()
first_row += 1                                                          # in place
print("small:", small.tolist(), "  copied:", copied.tolist())
assert small.sum() == 3 and copied.sum() == 0

# %% [markdown]
# ## 2 · Broadcasting and its traps
#
# Shapes are aligned **from the right**; a missing axis counts as 1, and a 1 stretches. So `(2, 1, 5, 3)` and `(3,)` meet at the *columns*.
#
# **Predict**: three images of 3 columns, and one number for each image, `means`. What does `batch - means` subtract from what?

# %% tags=["nbval-check-output"]
batch, means = torch.zeros(3, 1, 2, 3), torch.tensor([1.0, 2.0, 3.0])
print("means as (3,):          from image 0", (batch - means)[0, 0].tolist())
right = batch - means.view(-1, 1, 1, 1)                                 # (3, 1, 1, 1) meets axis 0
print("means as (3, 1, 1, 1):  from image 0", right[0, 0].tolist())
assert (right[1] == -2).all() and ((batch - means)[:, :, :, 1] == -2).all()

# %% [markdown]
# A number for each column, in every image. With 192 columns there would have been an error; with as many columns as images there is none. In `view(-1, 1, 1, 1)` the −1 stands for "as many as there are"; a mean taken with `keepdim=True` needs no `view`.
#
# The same in a loss is worse. A model returns `(N, 1)`, the data are `(N,)`: their difference is `(N, N)`, each prediction against *every* value.
#
# **Predict**: the data have slope 3. Of the slopes 0, 1.5 and 3, which has the lowest loss with either shape?

# %% tags=["nbval-check-output"]
x = torch.linspace(-1, 1, 20).view(-1, 1)                               # (20, 1)
y = 3 * x                                                               # (20, 1)
for slope in (0.0, 1.5, 3.0):
    trapped = (slope * x - y[:, 0]).square().mean()                     # the mean of (20, 20)
    right = (slope * x - y).square().mean()                             # the mean of (20, 1)
    print(f"slope {slope}: loss with (20,) {trapped:.2f}, with (20, 1) {right:.2f}")
assert trapped > 6 and right == 0

# %% [markdown]
# With the wrong shape the flat line wins, the right slope is worst, and nothing crashes. **Write the shape behind each line that changes it.**
#
# ## 3 · Autograd on a picture
#
# PyTorch can say how a number depends on all that went into it. Ask with `requires_grad_()`, compute, call `.backward()`: the gradient is in `.grad`, in the shape of what it belongs to. **The gradient of a loss with respect to an image is an image.**
#
# What you asked about is a **leaf**. What is computed from it keeps a note of how, its `grad_fn`; the error "does not have a grad_fn" means that nobody asked, or that the notes were lost on the way.
#
# **Predict**: the loss is the mean squared difference of Colin's brain and the template. Where is its gradient positive?

# %%
image = colin.clone().requires_grad_()                                  # a leaf; colin stays as it is
loss = (image - template).square().mean()
loss.backward()
per_voxel = image.grad * image.numel()                                  # numel: N, how many voxels
figure = images({"colin": colin, "template": template, "gradient × N": per_voxel}, limits=(-1, 1))
figure.axes[-1].set_ylabel("intensity, or gradient × N")
show(
    figure,
    alt="Two brain slices and the gradient: gray where they agree, white where Colin's image is "
    "brighter than the template, black where it is darker.",
)
assert torch.allclose(per_voxel, 2 * (colin - template), atol=1e-4)

# %% [markdown]
# Where Colin's image is too bright: there, less brightness lowers the loss. The gradient is $2(a - b)/N$, with $a$ Colin's image, $b$ the template, and $N$ the number of voxels.
#
# A **hard** decision gives no direction: move a value a little, and the answer stays what it was. `>` is not even noted; `round` is, but its gradient is zero. A **soft** one, the sigmoid, has a slope:

# %% tags=["nbval-check-output"]
value = torch.tensor(0.45, requires_grad=True)
print("value > 0.5: noted?", (value > 0.5).float().requires_grad)
for name, result in {"round": value.round(), "sigmoid": torch.sigmoid((value - 0.5) / 0.1)}.items():
    value.grad = None                                                   # forget the last gradient
    result.backward()
    print(f"{name}: {result.item():.2f}, gradient {value.grad.item():.2f}")
    assert (value.grad == 0) == (name == "round")

# %% [markdown]
# Ways out of autograd: `loss.item()` is a Python number, `x.detach()` the same numbers without notes, and within `with torch.no_grad():` nothing is noted. Each **cuts** the gradient: fine at the end of a computation, fatal in its middle.
#
# ## 4 · A convolution by hand
#
# Put a small window of weights, the **kernel**, on a voxel, multiply each weight with the voxel under it, add up, move on. Outside the image the values count as 0: the four numbers of `F.pad` say how many zeros to put left, right, above and below.
#
# A loop over all voxels would be slow. Take *one weight* and *all voxels* at once instead: a slice of the padded image is the whole image, shifted. Here with two weights of ½:

# %% tags=["nbval-check-output"]
tile = torch.rand(6, 7)
kernel = torch.tensor([[0, 0, 0], [0.5, 0, 0.5], [0, 0, 0]])
padded = F.pad(tile, (1, 1, 1, 1))                                      # (8, 9)
by_slices = 0.5 * padded[1:7, 0:7] + 0.5 * padded[1:7, 2:9]             # (6, 7): left and right
by_torch = F.conv2d(tile[None, None], kernel[None, None], padding=1)[0, 0]
print("the same?", torch.allclose(by_slices, by_torch, atol=1e-6))
assert torch.allclose(by_slices, by_torch, atol=1e-6)
assert torch.allclose(by_torch[2, 3], (tile[2, 2] + tile[2, 4]) / 2)    # the two neighbors

# %% [markdown]
# `F.conv2d` does it for batches; its kernel is `(channels out, channels in, 3, 3)`, and it adds up the channels that come in. Unlike convolution in mathematics, it does not flip the kernel. In such windows the local NCC of lesson 00 compares two images.
#
# ## 5 · A loop that fits three numbers
#
# Which disc lies best on the brain? It has three numbers: row, column, radius. A hard disc, `distance < radius`, has no gradient, so we draw a soft one, in between 1 and 0 over some voxels:
#
# $$\text{disc}(x) = \text{sigmoid}\left(\frac{\text{radius} - |x - \text{center}|}{2}\right)$$

# %%
rows, columns = torch.arange(224.0).view(-1, 1), torch.arange(192.0)    # (224, 1) and (192,)


def disc(circle):
    """(3,): row, column, radius, in voxels -> (224, 192)."""
    row, column, radius = circle
    squared = (rows - row).square() + (columns - column).square()       # (224, 192)
    return torch.sigmoid((radius - (squared + 1e-6).sqrt()) / 2)        # why 1e-6: see below


def mismatch(circle):
    return (disc(circle) - inside[0, 0]).square().mean()                # the loss: how wrong


# %%
def fit(start, learning_rate, steps):
    circle = start.clone().requires_grad_()                             # a leaf; start stays as it is
    optimizer, losses = torch.optim.Adam([circle], lr=learning_rate), []
    for _ in range(steps):
        optimizer.zero_grad()                                           # forget the last gradient
        loss = mismatch(circle)
        loss.backward()                                                 # gradient into circle.grad
        optimizer.step()                                                # changes circle, in place
        losses.append(loss.item())                                      # a number, without notes
    return circle.detach(), losses

# %% [markdown]
# The optimizer takes a *list* of leaves, `[circle]`, since a network has many. It refuses `start.requires_grad_().clone()`, which is no leaf but computed from one.
#
# `backward` *adds* to `.grad`. **Predict**: without `zero_grad`, each step follows the sum of all gradients so far. Will the disc be slower, overshoot, or stand still?

# %%
start = torch.tensor([60.0, 60.0, 20.0])
found, losses = fit(start, learning_rate=2, steps=60)
rolled_on = start.clone().requires_grad_()                              # the same without zero_grad
optimizer, losses_rolling = torch.optim.Adam([rolled_on], lr=2), []
for _ in range(60):
    loss = mismatch(rolled_on)
    loss.backward()
    optimizer.step()
    losses_rolling.append(loss.item())

# %%
show(
    curves({"with zero_grad": (range(60), losses), "without": (range(60), losses_rolling)},
           xlabel="step", ylabel="loss"),
    alt="With zero_grad the loss falls to 0.06, rises to 0.08 and falls to 0.06 again; without, it "
    "falls and then rises above 0.25.",
)
discs = {"with zero_grad": disc(found), "without": disc(rolled_on.detach())}
show(
    images({name: (drawn + template) / 2 for name, drawn in discs.items()}),
    alt="With zero_grad the disc lies on the brain; without, it hangs over the upper left corner.",
)
assert min(losses[:35]) < 0.067 < 0.075 < max(losses[30:45]) and losses[-1] < 0.067
assert min(losses_rolling) < 0.1 and losses_rolling[-1] > 0.25

# %% [markdown]
# It overshoots, like a ball that nothing slows down. Even with `zero_grad` the loss reaches 0.06, rises to 0.08 and comes back: Adam remembers the steps before, so the *last* circle need not be the *best*. **Look at both**, curve and picture: the curve does not end at 0, since a brain is no disc, and the picture shows where they differ.
#
# **The learning rate** of Adam is about how far each number moves in a step, *whatever the size of the gradient*: here 2 voxels.
#
# ## 6 · Play
#
# The white circle is the start, the orange line the way of the disc's center, a dot for each step.
#
# **Question**: on the slider, in steps of 0.5, which is the smallest learning rate that ends below a loss of 0.07 with 60 steps? With 30, and with 20? Which rule connects them? And what happens at 80? (Without a slider: the still pictures show three of the answers, and the rule gives the fourth.)

# %%
explorer = descent_explorer(template, inside)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# 1, 2 and 3. Rate times steps is about 60, the voxels that the radius has to go, from 20 to 80. At 80 the disc soon is larger than the image. Then all of its voxels are 1, no small change changes any, the gradient is 0, and it never comes back.
#
# </details>

# %%
begin = start[None]                                                     # (1, 3)
for steps, least in ((60, 1.0), (30, 2.0), (20, 3.0)):
    ends = [fit_disc(inside, begin, learning_rate=r, steps=steps).losses[-1] for r in (least - 0.5, least)]
    assert ends[1] < 0.07 < 0.08 < ends[0]
lost = fit_disc(inside, begin, learning_rate=80, steps=60).losses
assert abs(lost[-1] - (1 - inside).mean()) < 1e-3                       # as wrong as all ones

# %% [markdown]
# ## Common mistakes
#
# **Starting too far away.** A small disc in the corner shares no voxel with the brain. All of it is error, so downhill means: shrink, until it is gone. A descent sees only what it touches; hence the pyramid of lesson 00.
#
# **A gradient that is not a number.** The slope of $\sqrt{s}$ at $s = 0$ is infinite. When the center lies exactly on a voxel, its gradient is NaN ("not a number"), and one step later the center too, while the loss still looks healthy. A tiny number under the root is the cure. Losses that become NaN or enormous are a common question: [voxelmorph#127](https://github.com/voxelmorph/voxelmorph/issues/127), [#594](https://github.com/voxelmorph/voxelmorph/issues/594).

# %%
corner = torch.tensor([20.0, 20.0, 10.0])
assert not inside[0, 0][disc(corner) > 0.5].any()                       # no voxel is shared
gone, _ = fit(corner, learning_rate=2, steps=60)
print(f"from the corner: the largest value of the disc is {disc(gone).max():.3f}")
assert disc(gone).max() < 0.01

circle = torch.tensor([112.0, 96.0, 50.0], requires_grad=True)          # a center on a voxel
distance = ((rows - circle[0]).square() + (columns - circle[1]).square()).sqrt()
loss = (torch.sigmoid((circle[2] - distance) / 2) - inside[0, 0]).square().mean()
loss.backward()
print(f"without 1e-6: loss {loss.item():.2f}, gradient {circle.grad.tolist()}")
assert loss.isfinite() and circle.grad[:2].isnan().all()

# %% [markdown]
# ## Check yourself
#
# <details><summary>1. You multiply the loss by 10. What changes in the descent with Adam?</summary>
#
# Next to nothing but the printed losses. Adam divides each gradient by its own recent size, so the factor cancels. (Plain gradient descent would take steps ten times as long.)
#
# </details>
#
# <details><summary>2. <code>images</code> is (8, 3, 224, 192). What is the shape of <code>images.mean((2, 3))</code>, and can it be subtracted from <code>images</code>?</summary>
#
# (8, 3); no: 3 would meet the 192 columns. With `keepdim=True` it is (8, 3, 1, 1), and each channel of each image loses its own mean.
#
# </details>
#
# <details><summary>3. Dice counts voxels whose labels agree. Can you maximize it by gradient descent?</summary>
#
# Not as it is: a label is a hard decision, without a gradient. With soft masks in place of labels the same formula has one.
#
# </details>

# %%
# `descend(loss, start, …)` is the loop of section 5, in the course's library, for any loss.
ten_times = descend(lambda circle: 10 * mismatch(circle), start, steps=20, learning_rate=2)
assert (ten_times - fit(start, 2, 20)[0]).abs().max() < 0.05            # voxels

# %% [markdown]
# ## Take away
#
# - `(B, C, H, W)`, float32; write the shape behind a line that changes it.
# - Shapes meet from the right; `keepdim=True` and `view(-1, 1, 1, 1)` put a number for each image where it belongs.
# - The gradient with respect to an image is an image; hard decisions have none, soft ones have.
# - A convolution is a sum of shifted, weighted images, with zeros outside.
# - Loss, `zero_grad`, `backward`, `step`; then look at the curve *and* the picture.
#
# **Go further**
# - D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015.
# - A. G. Baydin, B. A. Pearlmutter, A. A. Radul, J. M. Siskind, "Automatic differentiation in machine learning: a survey", Journal of Machine Learning Research 18, 2018: what `backward` does.
#
# Next: the exercise [exercises/01_torch_for_images.ipynb](../exercises/01_torch_for_images.ipynb).

# %% [markdown]
# # 01 · Torch for images: the idioms of every later lesson
#
# At the end of this page a disc finds a brain: you write down what "wrong" means, PyTorch says which way is downhill for three numbers, and sixty steps later they fit. Registration is the same loop with more numbers.
#
# **Reading**: 20 minutes · **Running**: under 10 seconds on a laptop · **Before this**: lesson 00, Python and NumPy, the idea of a gradient.
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
# Here is where we are going: a circle that starts small and in the wrong place, and finds the brain by itself.

# %% tags=["cover"]
pair = brains.real_pair()
brain, inside = pair.fixed, (pair.fixed_labels > 0).float()             # (1, 1, 224, 192) each
path, _ = fit_disc(inside, torch.tensor([[60.0, 60.0, 20.0]]), learning_rate=2, steps=60)
figure = images({f"after {n} steps": brain for n in (0, 15, 60)})
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
print(tuple(brain.shape), brain.dtype)
plane = brain[0, 0]                                                     # item 0, channel 0
print("plane:", tuple(plane.shape), "  with None:", tuple(plane[None, None].shape))
sums, kept = brain.sum((2, 3)), brain.sum((2, 3), keepdim=True)         # over rows and columns
print("sum:", tuple(sums.shape), "  with keepdim:", tuple(kept.shape))
on_device = brain.to(course.device)                                     # where there is a GPU, there
assert on_device.device.type == course.device.type

# %% [markdown]
# `None` puts an axis in front, as `unsqueeze(0)` does. The numbers have a type, the **dtype**: image files store whole numbers, NumPy computes in float64, PyTorch in float32.
#
# **Predict**: two voxels of 200 and 100, stored as 8-bit `uint8`. What is the mean of two such scans, `(a + a) / 2`? And `a // 3 * 3`?

# %% tags=["nbval-check-output"]
a = torch.tensor([200, 100], dtype=torch.uint8)
print("(a + a) / 2 =", ((a + a) / 2).tolist(), "  a // 3 * 3 =", (a // 3 * 3).tolist())
print("as float32: ", ((a.float() + a.float()) / 2).tolist())
mixed = torch.ones(2) + torch.from_numpy(np.ones(2))                    # float32 + float64
print("float32 + NumPy's:", mixed.dtype)
assert ((a + a) / 2).tolist() == [72, 100] and mixed.dtype == torch.float64

# %% [markdown]
# Above 255 the count begins again at 0, and `//` drops the rest, both without a word. So the first thing to do with an image from a file is `.float()`; with a NumPy array too, for float64 spreads through all that it touches.
#
# **Order.** `permute` exchanges axes; `reshape` keeps the numbers in their order and breaks the lines elsewhere. Both give the shape you want.

# %%
turned = brain.permute(0, 1, 3, 2)                                      # (1, 1, 192, 224)
scrambled = brain.reshape(1, 1, 192, 224)
show(
    images({"permute": turned, "reshape": scrambled}),
    alt="Permute shows the brain mirrored at its diagonal; reshape shows slanted stripes.",
)
assert turned.shape == scrambled.shape and (turned != scrambled).any()

# %% [markdown]
# **Views.** A slice, `permute` and `detach` copy nothing: they look at the same memory. Change one in place, and the other changes too. `.clone()` copies.

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
assert (right[1] == -2).all() and ((batch - means)[..., 1] == -2).all()

# %% [markdown]
# A number for each column, in every image. With 192 columns there would have been an error; with as many columns as images there is none. The mean of each image, `batch.mean((1, 2, 3), keepdim=True)`, is `(3, 1, 1, 1)` from the start.
#
# The same in a loss is worse. A model returns `(N, 1)`, the data are `(N,)`: their difference is `(N, N)`, each prediction against *every* value. Here a line is fitted to 20 points with either shape. (`descend` is the loop of section 5.)

# %%
x = torch.linspace(0, 1, 20)[:, None]
y = 3 * x + 0.2 * torch.randn(20, 1)                                    # (20, 1)
lines, slopes = {"data": (x, y)}, []
for name, data in {"(20, 1) − (20,)": y[:, 0], "(20, 1) − (20, 1)": y}.items():
    def loss(line, data=data):
        return (line[0] * x + line[1] - data).square().mean()
    line = descend(loss, torch.zeros(2), steps=300, learning_rate=0.05)
    print(f"{name}: loss {loss(torch.zeros(2)):.1f} → {loss(line):.2f}, slope {line[0]:.2f}")
    assert loss(line) < 0.5 * loss(torch.zeros(2))
    lines[name] = x, line[0] * x + line[1]
    slopes.append(line[0])
show(
    curves(lines, xlabel="x", ylabel="y"),
    alt="The right shapes give a line through the data, the wrong ones a flat line at their mean.",
)
assert abs(slopes[0]) < 0.1 and abs(slopes[1] - 3) < 0.6

# %% [markdown]
# The loss fell, nothing crashed, and the model learned the mean. **Write the shape behind each line that changes it.**
#
# ## 3 · Autograd on a picture
#
# PyTorch can say how a number depends on all the numbers that went into it. Ask with `requires_grad_()`, compute, call `.backward()`: the gradient is in `.grad`, in the shape of what it belongs to. **The gradient of a loss with respect to an image is an image.**
#
# **Predict**: the loss is the mean squared difference of Colin's brain and the template. Where is its gradient positive?

# %%
image = pair.moving.clone().requires_grad_()                            # a leaf: a tensor to ask about
loss = (image - brain).square().mean()
loss.backward()
per_voxel = image.grad * image.numel()
show(
    images({"image": image, "template": brain, "gradient × number of voxels": per_voxel}, limits=(-1, 1)),
    alt="Two brain slices and the gradient: gray where they agree, white where the image is brighter "
    "than the template, black where it is darker.",
)
assert torch.allclose(per_voxel, 2 * (pair.moving - brain), atol=1e-4)

# %% [markdown]
# Where the image is too bright: there, less brightness lowers the loss. It is $2(a - b)/N$, voxel by voxel.
#
# A **hard threshold** gives no direction: move a value a little, and the answer stays what it was. A **soft** one, the sigmoid, does. Rounding only seems to: its gradient is zero everywhere.

# %% tags=["nbval-check-output"]
value = torch.tensor([0.45], requires_grad=True)
soft = torch.sigmoid((value - 0.5) / 0.1)
hard, rounded = (value > 0.5).float(), value.round()
for name, result in {"hard": hard, "rounded": rounded, "soft": soft}.items():
    gradient = torch.autograd.grad(result.sum(), value)[0].item() if result.requires_grad else None
    print(f"{name:8} {result.item():.2f}  gradient:", gradient and round(gradient, 2))
assert not hard.requires_grad and torch.autograd.grad(rounded.sum(), value)[0] == 0

# %% [markdown]
# Ways out of autograd: `loss.item()` is a Python number, `x.detach()` the same numbers without history, and within `with torch.no_grad():` nothing is recorded. Each **cuts** the gradient: fine at the end of a computation, fatal in its middle.
#
# **Check it.** A gradient says how much the loss changes when one voxel changes a little; so change one a little. **Predict**: does float32 do?

# %%
def mismatch(image):
    return (image - brain.to(image.dtype)).square().mean()

for dtype in (torch.float32, torch.float64):
    image = pair.moving.clone().to(dtype).requires_grad_()
    exact = torch.autograd.grad(mismatch(image), image)[0][0, 0, 100, 60].item()
    step = torch.zeros_like(image)
    step[0, 0, 100, 60] = 1e-4
    with torch.no_grad():
        estimate = (mismatch(image + step) - mismatch(image - step)).item() / 2e-4
    off = abs(estimate / exact - 1)
    print(f"{str(dtype)[6:]}: gradient {exact:.2e}, finite difference {estimate:.2e}, off by {off:.0%}")
    assert off > 0.5 if dtype == torch.float32 else off < 1e-4

# %% [markdown]
# One voxel of 43,008 changes the loss by less than a billionth; float32 holds seven digits of it. So check gradients in float64, and train in float32.

# %% [markdown]
# ## 4 · A convolution by hand
#
# Put a small window of weights, the **kernel**, on a voxel, multiply each weight with the voxel under it, add up, move on. Outside the image the values count as 0 (**zero padding**). First as a loop; then, for equal weights, with all voxels at once: the mean of nine shifted images.

# %%
def filter_by_loop(image, kernel):
    """(H, W) and (3, 3) -> (H, W); zeros outside."""
    padded, result = F.pad(image, (1, 1, 1, 1)), torch.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            result[i, j] = (padded[i : i + 3, j : j + 3] * kernel).sum()
    return result


def mean_by_slices(image):
    """(H, W) -> (H, W): the mean over 3 × 3 voxels, zeros outside."""
    height, width = image.shape
    padded = F.pad(image, (1, 1, 1, 1))                                 # (H + 2, W + 2)
    shifted = [padded[di : di + height, dj : dj + width] for di in range(3) for dj in range(3)]
    return torch.stack(shifted).mean(0)                                 # (9, H, W) -> (H, W)


tile, mean_kernel = torch.rand(6, 7), torch.full((3, 3), 1 / 9)
ready_made = F.conv2d(tile[None, None], mean_kernel[None, None], padding=1)[0, 0]
assert torch.allclose(filter_by_loop(tile, mean_kernel), mean_by_slices(tile), atol=1e-6)
assert torch.allclose(ready_made, mean_by_slices(tile), atol=1e-6)

# %% [markdown]
# `F.conv2d` does it for batches; its kernel is `(channels out, channels in, 3, 3)`. In such windows the local NCC of lesson 00 compares two images.
#
# **Predict**: a piece of brain, tissue up to its edges. What does a mean over 15 × 15 voxels do at the border?

# %%
piece = brain[..., 70:150, 55:135]                                      # (1, 1, 80, 80)
blurred = F.conv2d(piece, torch.full((1, 1, 15, 15), 1 / 225), padding=7)
counted = F.conv2d(torch.ones_like(piece), torch.full((1, 1, 15, 15), 1 / 225), padding=7)
show(
    images({"piece": piece, "mean, zeros outside": blurred, "over the share inside": blurred / counted}),
    alt="The mean with zeros outside has a dark rim; divided by the share of the window that lies "
    "inside, it has none.",
)
assert abs(counted[0, 0, 0, 0] - (8 / 15) ** 2) < 1e-4                  # the corner sees 8 × 8 voxels

# %% [markdown]
# A **dark rim**: the corner's window holds 64 voxels of tissue and 161 zeros. Dividing by the share inside repairs it.
#
# One more trap: what networks call convolution is *correlation*, with the kernel as it is; mathematics (and `np.convolve`) flips it first. A symmetric kernel does not care. A derivative does:

# %% tags=["nbval-check-output"]
rising, kernel = torch.tensor([0.0, 1, 2, 3, 4]), torch.tensor([-0.5, 0, 0.5])
by_torch = F.conv1d(rising[None, None], kernel[None, None])[0, 0]
by_numpy = np.convolve(rising.numpy(), kernel.numpy(), mode="valid")
print("torch:", by_torch.tolist(), "  numpy:", by_numpy.tolist())
assert (by_torch == 1).all() and (by_numpy == -1).all()

# %% [markdown]
# ## 5 · A loop that fits three numbers
#
# Which disc lies best on the brain? It has three numbers: row, column, radius. A hard disc, `distance < radius`, has no gradient (section 3), so we draw a soft one, 1 inside, 0 outside, in between over some voxels:
#
# $$\text{disc}(x) = \text{sigmoid}\left(\frac{\text{radius} - |x - \text{center}|}{2}\right)$$

# %%
rows, columns = torch.arange(224.0).view(-1, 1), torch.arange(192.0)    # (224, 1) and (192,)


def disc(circle):
    """(3,): row, column, radius, in voxels -> (224, 192)."""
    row, column, radius = circle
    squared = (rows - row).square() + (columns - column).square()       # (224, 192)
    return torch.sigmoid((radius - (squared + 1e-6).sqrt()) / 2)        # why 1e-6: see below


# %%
def fit(start, learning_rate, steps, forget=True):
    circle = start.clone().requires_grad_()                             # a leaf; start stays as it is
    optimizer, losses = torch.optim.Adam([circle], lr=learning_rate), []
    for _ in range(steps):
        if forget:
            optimizer.zero_grad()                                       # forget the last gradient
        loss = (disc(circle) - inside[0, 0]).square().mean()            # one number: how wrong
        loss.backward()                                                 # gradients into circle.grad
        optimizer.step()                                                # changes circle, in place
        losses.append(loss.item())                                      # a number, without history
    return circle.detach(), losses

# %% [markdown]
# `backward` *adds* to `.grad`. **Predict**: without `zero_grad`, each step follows the sum of all gradients so far. Will the disc be slower, overshoot, or stand still?

# %%
start = torch.tensor([60.0, 60.0, 20.0])
found, losses = fit(start, learning_rate=2, steps=60)
rolled_on, losses_rolling = fit(start, learning_rate=2, steps=60, forget=False)
show(
    curves({"with zero_grad": (range(60), losses), "without": (range(60), losses_rolling)},
           xlabel="step", ylabel="loss"),
    alt="With zero_grad the loss falls to 0.06 and stays; without, it falls and rises again.",
)
show(
    images({"with zero_grad": (disc(found) + brain) / 2, "without": (disc(rolled_on) + brain) / 2}),
    alt="With zero_grad the disc lies on the brain; without, it hangs over the upper left corner.",
)
print("row, column, radius:", [round(number) for number in found.tolist()])
assert losses[-1] < 0.07 and min(losses_rolling) < 0.1 and losses_rolling[-1] > 0.25

# %% [markdown]
# It overshoots, like a ball that nothing slows down. **Look at both**, curve and picture: the curve ends at 0.06 and not at 0, since a brain is no disc, and the picture shows where they differ.
#
# **The learning rate** of Adam is about how far each number moves in a step, *whatever the size of the gradient*: here 2 voxels. Were the row counted in image heights, 2 would be two heights. Choose units in which one step suits all numbers (`unit` in lesson 00 did that).
#
# ## 6 · Play
#
# The white circle is the start, the orange line the way of the disc's center, a dot for each step.
#
# **Question**: with 60 steps, which is the smallest learning rate that ends below a loss of 0.07? With 30 steps, and with 20? Which rule connects them? And what happens at 80?

# %%
explorer = descent_explorer(brain, inside)
explorer

# %% [markdown]
# <details><summary>What you should have found</summary>
#
# 1, 2 and 3. Rate times steps is 60, the voxels that the radius has to go, from 20 to 80. With a rate of 20 the disc jumps about and settles late; at 80 it soon is larger than the image. Then all of its voxels are 1, no small change changes any, the gradient is 0, and it never comes back.
#
# </details>

# %%
begin = torch.tensor([[60.0, 60.0, 20.0]])
for steps, least in ((60, 1.0), (30, 2.0), (20, 3.0)):
    ends = [fit_disc(inside, begin, learning_rate=r, steps=steps).losses[-1] for r in (least - 0.5, least)]
    print(f"{steps} steps: {ends[0]:.3f} at {least - 0.5}, {ends[1]:.3f} at {least}")
    assert ends[1] < 0.07 < 0.08 < ends[0]
wild, lost = (fit_disc(inside, begin, learning_rate=r, steps=60).losses for r in (20, 80))
assert min(wild[:5]) < 0.15 < 0.2 < wild[5] and wild[-1] < 0.07         # there, away, and back
assert abs(lost[-1] - float(1 - inside.mean())) < 1e-3                  # as wrong as all ones

# %% [markdown]
# ## Common mistakes
#
# **Starting too far away.** A small disc in the corner shares no voxel with the brain. All of it is error, so downhill means: shrink, until it is gone. A descent sees only what it touches; hence the pyramid of lesson 00.
#
# **A gradient that is not a number.** The slope of $\sqrt{s}$ at $s = 0$ is infinite. When the center lies exactly on a voxel, the center's gradient is NaN, and one step later the center itself; the loss looks healthy until then. A tiny number under the root is the cure. Losses that become NaN or enormous are a common question: [voxelmorph#127](https://github.com/voxelmorph/voxelmorph/issues/127), [#594](https://github.com/voxelmorph/voxelmorph/issues/594).

# %%
gone, _ = fit(torch.tensor([20.0, 20.0, 10.0]), learning_rate=2, steps=60)
print(f"from the corner: the largest value of the disc is {disc(gone).max():.3f}")
assert disc(gone).max() < 0.01

circle = torch.tensor([112.0, 96.0, 50.0], requires_grad=True)          # a center on a voxel
distance = ((rows - circle[0]).square() + (columns - circle[1]).square()).sqrt()
loss = (torch.sigmoid((circle[2] - distance) / 2) - inside[0, 0]).square().mean()
loss.backward()
print(f"without 1e-6: loss {loss.item():.2f}, gradient {circle.grad.tolist()}")
assert loss.isfinite() and circle.grad[:2].isnan().all() and fit(circle.detach(), 2, 1)[0].isfinite().all()

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
def ten_times(circle):
    return 10 * (disc(circle) - inside[0, 0]).square().mean()


difference = descend(ten_times, start, steps=20, learning_rate=2) - fit(start, 2, 20)[0]
print(f"ten times the loss: off by {difference.abs().max():.3f} voxels")
assert difference.abs().max() < 0.05

# %% [markdown]
# ## Take away
#
# - `(B, C, H, W)`, float32; write the shape behind a line that changes it.
# - Shapes meet from the right; `keepdim=True` and `view(-1, 1, 1, 1)` put a number for each image where it belongs.
# - The gradient with respect to an image is an image; hard decisions have none, soft ones have.
# - A convolution is a sum of shifted, weighted images; zeros outside darken the rim.
# - Loss, `zero_grad`, `backward`, `step`; then look at the curve *and* the picture.
#
# **Go further**
# - D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015.
# - A. G. Baydin, B. A. Pearlmutter, A. A. Radul, J. M. Siskind, "Automatic differentiation in machine learning: a survey", Journal of Machine Learning Research 18, 2018: what `backward` does.
#
# Next: the exercise [exercises/01_torch_for_images.ipynb](../exercises/01_torch_for_images.ipynb).

# %% [markdown]
# # Exercise 30 · VoxelMorph
#
# You build VoxelMorph from empty cells: the U-Net, the flow head, the loss, the training loop. Then you measure what its speed is worth. **Time**: about 50 minutes · **Points**: 14.
#
# Before this: lesson 30. Write your answers in place of the two lines `# YOUR CODE HERE` and `raise NotImplementedError()`, run the cell, then the check below it. A check tells you what is wrong, and `check.name.hint()` opens hints one by one. `progress()` says where you stand. If you are stuck, go on: after each check the next cell continues with the course's version.

# %%
import torch
from torch import nn
from torch.nn import functional as F

from course_lib import setup
from course_lib.checks import progress
from course_lib.checks import voxelmorph as check
from course_lib.datasets import brains, halve
from course_lib.losses import diffusion, lncc
from course_lib.metrics import endpoint_error
from course_lib.models import Prediction, UNet, VoxelMorph, pretrained
from course_lib.models.unet import block
from course_lib.optimise import refine
from course_lib.plotting import curves, show
from course_lib.spatial import integrate, resize_displacement, warp

course = setup()
pair = halve(brains.pair(2))  # 112 × 96 voxels of 2 mm

# %% [markdown]
# ## Task 1 · The sizes inside (predict)
#
# ●○○ · 5 minutes · 2 points
#
# The slices of a study have 180 × 218 voxels. You pad both images of a pair with zeros, as little as possible, so that the VoxelMorph of the lesson (2D, four halvings, 16, 32, 32 and 32 channels on the left, 32 at each size on the right) takes them. To which rows and columns? How many rows and columns are left at the bottom? And how many channels enter the block that comes right after the *first* doubling? Work it out before you run anything.


# %%
def sizes_inside():
    """Sizes of the padded image and of the bottom, and the channels after the first doubling.

    Returns:
        a tuple of five whole numbers:
        (rows padded, columns padded, rows at the bottom, columns at the bottom, channels)
    """
    ### BEGIN SOLUTION
    # Multiples of 16: 12 · 16 = 192 and 14 · 16 = 224. Four halvings leave 12 × 14.
    # 32 channels come from below, and the bridge brings the 32 of the last block on the left.
    return 192, 224, 12, 14, 32 + 32
    ### END SOLUTION


# %% points=2
check.sizes_inside(sizes_inside)

# %% [markdown]
# ## Task 2 · Wire the U-Net
#
# ●●● · 16 minutes · 4 points
#
# The blocks are given: each is a function (a convolution with LeakyReLU) that keeps the size of an image and changes its channels. You write the way through them.
#
# - **Down**: for each block of `down`: apply it, *keep* its output as the bridge of this size, and halve that output by the maximum of 2 × 2 voxels (`F.max_pool2d`).
# - **Bottom**: apply `up[0]`.
# - **Up**: for each further block of `up`: double the size by repeating each voxel (`F.interpolate(x, scale_factor=2)` does that unless told otherwise), join it with the bridge of the same size along the channels, **what comes from below first**, and apply the block.


# %%
def unet(x, down, up):
    """Features of every voxel: down to a coarse grid, and up again with a bridge at every size.

    Args:
        x: float tensor (B, C, H, W), sizes that halve len(down) times
        down: list of blocks on the left, from full size on; each takes (B, channels, H, W)
        up: list of blocks on the right, len(down) + 1 of them: the bottom first, full size last

    Returns:
        float tensor (B, channels of the last block, H, W)

    Example:
        With two blocks on the left and x of 12 × 8, up[0] gets 3 × 2, up[1] gets 6 × 4 with the
        channels of up[0] and of down[1], and up[2] gets 12 × 8 with those of up[1] and of down[0].
    """
    ### BEGIN SOLUTION
    bridges = []
    for left in down:
        x = left(x)
        bridges.append(x)
        x = F.max_pool2d(x, 2)
    x = up[0](x)
    for right in up[1:]:
        x = F.interpolate(x, scale_factor=2)  # each voxel repeated
        x = right(torch.cat([x, bridges.pop()], dim=1))  # the last bridge laid is the smallest
    return x
    ### END SOLUTION


# %% points=4
check.unet(unet)

# %% [markdown]
# Your wiring, with VoxelMorph's blocks and the weights of the library's `UNet`, must give the same features. The last item of `up` holds three blocks in a row.

# %%
unet = check.unet.or_reference(unet)
torch.manual_seed(0)
library = UNet(ndim=2)
down = nn.ModuleList([block(2, 2, 16), block(2, 16, 32), block(2, 32, 32), block(2, 32, 32)])
last_three = nn.Sequential(block(2, 32 + 16, 32), block(2, 32, 16), block(2, 16, 16))
middle = [block(2, 32 + 32, 32) for _ in range(3)]
up = nn.ModuleList([nn.Sequential(b) for b in (block(2, 32, 32), *middle)] + [last_three])
down.load_state_dict(library.down.state_dict())
up.load_state_dict(library.up.state_dict())
both = torch.cat([pair.moving, pair.fixed], dim=1)  # (1, 2, 112, 96)
with torch.no_grad():
    difference = (unet(both, down, up) - library(both)).abs().max()
print("the same features as the library's U-Net, to 0.0001:", bool(difference < 1e-4))
assert difference < 1e-4

# %% [markdown]
# ## Task 3 · The flow head
#
# ●●○ · 6 minutes · 2 points
#
# A 3 × 3 convolution that keeps the size and makes two channels, one for each axis. Its weights are drawn from a normal distribution with mean 0 and standard deviation $10^{-5}$, its bias is 0, and nothing comes after it.


# %%
def flow_head(channels):
    """The convolution that turns features into a field, and says "do nothing" at the beginning.

    Args:
        channels: how many features there are

    Returns:
        torch.nn.Conv2d that takes (B, channels, H, W) and gives (B, 2, H, W)

    Example:
        flow_head(16) has 2 · 16 · 3 · 3 = 288 weights and 2 biases
    """
    ### BEGIN SOLUTION
    head = nn.Conv2d(channels, 2, kernel_size=3, padding=1)
    nn.init.normal_(head.weight, mean=0, std=1e-5)
    nn.init.zeros_(head.bias)
    return head
    ### END SOLUTION


# %% points=2
check.flow_head(flow_head)

# %% [markdown]
# Now your VoxelMorph stands: U-Net, head, the field as a velocity at half the size, integrated.

# %%
flow_head = check.flow_head.or_reference(flow_head)


class MyVoxelMorph(nn.Module):
    """Wired by your unet, ended by your flow_head."""

    def __init__(self):
        super().__init__()
        fresh = UNet(ndim=2)  # for its blocks: `down` and `up` as above, freshly drawn
        self.down, self.up, self.flow = fresh.down, fresh.up, flow_head(16)

    def forward(self, moving, fixed):
        field = self.flow(unet(torch.cat([moving, fixed], dim=1), self.down, self.up))
        velocity = resize_displacement(field, [n // 2 for n in field.shape[2:]])
        return Prediction(
            resize_displacement(integrate(velocity), field.shape[2:]), velocity=velocity
        )


torch.manual_seed(0)
mine = MyVoxelMorph()
numbers = sum(weights.numel() for weights in mine.parameters())
with torch.no_grad():
    longest = float(mine(pair.moving, pair.fixed).displacement.abs().max())
print(f"{numbers:,} weights; longest arrow before any training: {longest:.4f} voxels")
assert numbers == sum(w.numel() for w in VoxelMorph(ndim=2).parameters()) == 109_170
assert longest < 0.01

# %% [markdown]
# ## Task 4 · A loss without a teacher
#
# ●●○ · 8 minutes · 2 points
#
# As in the lesson: `lncc` of the warped moving image and the fixed one, plus `weight` times the `diffusion` of the field that the *network* puts out, the velocity. Warp with `padding="border"`.


# %%
def registration_loss(moving, fixed, displacement, velocity, weight):
    """What VoxelMorph minimizes: dissimilarity plus weighted roughness.

    Args:
        moving, fixed: float tensors (B, 1, H, W)
        displacement: float tensor (B, 2, H, W), in voxels
        velocity: float tensor (B, 2, H / 2, W / 2), in voxels of its grid: the network's field
        weight: a number, λ

    Returns:
        float tensor without axes; gradients pass to all four tensors

    Example:
        With a displacement and a velocity of 0, it is lncc(moving, fixed)
    """
    ### BEGIN SOLUTION
    warped = warp(moving, displacement, padding="border")
    return lncc(warped, fixed) + weight * diffusion(velocity)
    ### END SOLUTION


# %% points=2
check.registration_loss(registration_loss)

# %% [markdown]
# ## Task 5 · A training that learns nothing (find the bug)
#
# ●●○ · 9 minutes · 2 points
#
# The function below raises no error, and the loss does not fall. It has **two** bugs. Write it right: Adam with a learning rate of 0.002, one optimizer for the whole training, and in step number $n$ (from 0) the pair number $n$ modulo the number of pairs. The loss is `registration_loss` with a weight of 1, computed before the weights change.

# %%
registration_loss = check.registration_loss.or_reference(registration_loss)


def train_with_two_bugs(model, pairs, steps):
    losses = []
    for n in range(steps):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
        moving, fixed = pairs[n % len(pairs)]
        prediction = model(moving, fixed)
        loss = registration_loss(
            moving, fixed, prediction.displacement, prediction.velocity, weight=1
        )
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(0)
silent = train_with_two_bugs(MyVoxelMorph(), [(pair.moving, pair.fixed)], steps=5)
print("loss of five steps:", [round(loss, 4) for loss in silent])


# %%
def train(model, pairs, steps):
    """Change the model's weights so that its answers become better.

    Args:
        model: a torch.nn.Module; model(moving, fixed) has .displacement and .velocity
        pairs: list of (moving, fixed), each (1, 1, H, W)
        steps: how many steps of Adam

    Returns:
        list of floats, the loss of each step before its change

    Example:
        with 2 pairs and 3 steps: the losses of pair 0, pair 1 and pair 0 again
    """
    ### BEGIN SOLUTION
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)  # once: it remembers past gradients
    losses = []
    for n in range(steps):
        moving, fixed = pairs[n % len(pairs)]
        prediction = model(moving, fixed)
        loss = registration_loss(
            moving, fixed, prediction.displacement, prediction.velocity, weight=1
        )
        optimizer.zero_grad()  # before backward, not between backward and step
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
    ### END SOLUTION


# %% points=2
check.train(train)

# %% [markdown]
# Overfit one pair, with everything that you wrote:

# %%
train = check.train.or_reference(train)
losses = train(mine, [(pair.moving, pair.fixed)], steps=60)
with torch.no_grad():
    u = mine(pair.moving, pair.fixed).displacement
brain = pair.fixed_labels > 0
errors = [float(endpoint_error(v, pair.displacement, mask=brain)) for v in (0 * u, u)]
show(
    curves({"your VoxelMorph": (range(60), losses)}, xlabel="step", ylabel="loss"),
    alt="The loss of one pair falls within 60 steps.",
)
print(f"off the truth: {errors[0]:.1f} voxels before, {errors[1]:.1f} after")
assert losses[-1] < float(lncc(pair.moving, pair.fixed)) - 0.1 and errors[1] < 0.5 * errors[0]

# %% [markdown]
# The loss falls from the first steps on, and the field comes nearer to a truth that nobody showed. Your VoxelMorph works; what is missing is time.

# %% [markdown]
# ## Task 6 · What is a look worth? (explore)
#
# ●●○ · 7 minutes · 2 points
#
# `energy` is what `refine` minimizes. The trained network looks once at an unseen pair, and its answer has a certain energy. `refine` starts from zero, with equally many steps on each of its three image sizes. What is the **smallest number of steps on each size** after which its energy is at most that of the network's answer?

# %%
network = pretrained("voxelmorph2d-brains")
unseen = brains.pair(100)


def energy(u):
    """lncc + diffusion, of the unseen pair: what refine minimizes."""
    warped = warp(unseen.moving, u, padding="border")
    return float(lncc(warped, unseen.fixed) + diffusion(u))


def from_zero(steps):
    """The energy after so many steps of refine on each of three sizes, none left out."""
    return energy(refine(unseen.moving, unseen.fixed, steps=steps, tolerance=0))


with torch.no_grad():
    answer = network(unseen.moving, unseen.fixed).displacement
look = energy(answer)
print(f"doing nothing: {energy(0 * answer):.3f}, the network's look: {look:.3f}")
print(f"refine, 1 step on each size: {from_zero(1):.3f}, 60 steps: {from_zero(60):.3f}")
assert from_zero(60) < look < from_zero(1)


# %%
def steps_needed():
    """The smallest number of steps after which `from_zero(steps)` is at `look` or below."""
    ### BEGIN SOLUTION
    steps = 1
    while from_zero(steps) > look:
        steps = steps + 1
    return steps
    ### END SOLUTION


# %% points=2
check.steps_needed(steps_needed)

# %% [markdown]
# Few steps, and most of them on small images: on these slices a search takes hardly longer than the look. A network pays where there are very many pairs, or where each step of a search is dear, as in large volumes. For a single pair, its training costs far more than it saves.
#
# And more steps? The energy goes on falling. Does the field come nearer to the truth?

# %%
errors = {}
for steps in (8, 60):
    u = refine(unseen.moving, unseen.fixed, steps=steps, tolerance=0)
    errors[steps] = float(endpoint_error(u, unseen.displacement, mask=unseen.fixed_labels > 0))
    print(f"{steps:2} steps on each size: energy {energy(u):.2f}, off by {errors[steps]:.2f} voxels")
assert errors[8] < errors[60]

# %% [markdown]
# On this pair it does not: the energy is what we can measure without a truth, and not what we want (lesson 14).

# %% [markdown]
# ## Where you stand

# %%
progress()

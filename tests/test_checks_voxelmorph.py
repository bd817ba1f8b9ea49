"""Exercise 30: right answers written other ways pass, wrong ones are named."""

import copy
import math
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from course_lib.checks import voxelmorph as checks
from course_lib.losses import diffusion, lncc, mse
from course_lib.models import UNet, VoxelMorph
from course_lib.spatial import warp
from tests.check_suite import Case, cases


def unet_by_recursion(x, down, up):
    if not down:
        return up[0](x)
    left = down[0](x)
    below = unet_by_recursion(F.max_pool2d(left, 2), down[1:], up[:-1])
    return up[-1](torch.cat((F.interpolate(below, scale_factor=2), left), 1))


def unet_with_other_layers(x, down, up):
    halve, double = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest")
    kept = deque()
    for one in down:
        x = one(x)
        kept.appendleft(x)
        x = halve(x)
    for k, one in enumerate(up):
        x = one(x if k == 0 else torch.concat([double(x), kept[k - 1]], dim=-3))
    return x


def unet_by_repeats(x, down, up):
    bridges = []
    for k in range(len(down)):
        bridges.append(down[k](x))
        height, width = bridges[k].shape[2:]
        tiles = bridges[k].unflatten(3, (width // 2, 2)).unflatten(2, (height // 2, 2))
        x = tiles.amax((3, 5))
    x = up[0](x)
    for k in range(1, len(up)):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = up[k](torch.cat([x, bridges[-k]], dim=1))
    return x


def head_of_normal(channels):
    head = nn.Conv2d(channels, 2, 3, padding="same")
    head.weight = nn.Parameter(Normal(0, 1e-5).sample(head.weight.shape))
    head.bias = nn.Parameter(torch.zeros(2))
    return head


def head_in_place(channels):
    head = nn.Conv2d(channels, 2, (3, 3), padding=(1, 1))
    with torch.no_grad():
        head.weight.copy_(1e-5 * torch.randn_like(head.weight))
        head.bias.zero_()
    return head


def head_by_data(channels):
    head = nn.Conv2d(channels, 2, 3, stride=1, padding=1)
    head.weight.data.normal_(0, 1e-5)
    head.bias.data.fill_(0)
    return head


def head_with_relu(channels):
    return nn.Sequential(head_by_data(channels), nn.ReLU())


def head_of_three_axes(channels):
    return nn.Conv3d(channels, 3, 3, padding=1)


def head_drawn_by_xavier(channels):
    head = nn.Conv2d(channels, 2, 5, padding=2)
    nn.init.constant_(head.bias, 3)
    return head


def head_with_gaps(channels):
    head = nn.Conv2d(channels, 2, 3, padding=2, dilation=2)
    head.weight.data.normal_(0, 1e-5)
    head.bias.data.fill_(0)
    return head


def head_in_groups(channels):
    head = nn.Conv2d(channels, 2, 3, padding=1, groups=2)
    head.weight.data.normal_(0, 1e-5)
    head.bias.data.fill_(0)
    return head


def loss_by_hand(moving, fixed, displacement, velocity, weight):
    slopes = [velocity.diff(dim=d).pow(2).mean() for d in (2, 3)]
    likeness = -lncc(warp(moving, displacement, padding="border"), fixed)
    return weight * sum(slopes) / 2 - likeness


def loss_with_extra_axis(*arguments):
    return loss_by_hand(*arguments)[None]


def train_by_enumerating(model, pairs, steps):
    adam, seen = torch.optim.Adam(list(model.parameters()), 2e-3), []
    model.train()
    for n, _ in enumerate(range(steps)):
        adam.zero_grad(set_to_none=False)
        answer = model(*pairs[n % len(pairs)])
        total = loss_by_hand(
            *pairs[n % len(pairs)], answer.displacement, answer.velocity, weight=1.0
        )
        total.backward()
        adam.step()
        seen.append(float(total.detach()))
    return seen


def train_in_a_while_loop(model, pairs, steps):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.002), []
    while len(losses) < steps:
        moving, fixed = pairs[len(losses) % len(pairs)]
        with torch.enable_grad():
            given = model(moving, fixed)
            loss = lncc(warp(moving, given[0], padding="border"), fixed)
            loss = loss + diffusion(given.velocity)
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        model.zero_grad()
    return losses


def train_keeping_tensors(model, pairs, steps):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.002), []
    for n in range(steps):
        moving, fixed = pairs[n % len(pairs)]
        answer = model(moving, fixed)
        losses.append(loss_by_hand(moving, fixed, answer.displacement, answer.velocity, 1))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return losses


def train_a_copy(model, pairs, steps):
    return train_by_enumerating(copy.deepcopy(model), pairs, steps)


def train_without_a_list(model, pairs, steps):
    return train_by_enumerating(model, pairs, steps)[-1]


RIGHT = {
    "sizes_inside": [lambda: [192, 224, 12, 14, 64], lambda: (192.0, 224, 12, 14, np.int64(64))],
    "unet": [unet_by_recursion, unet_with_other_layers, unet_by_repeats],
    "flow_head": [head_of_normal, head_in_place, head_by_data],
    "registration_loss": [loss_by_hand],
    "train": [train_by_enumerating, train_in_a_while_loop],
}
WRONG = {
    "sizes_inside": [(lambda: (192, 224), "shape"), (lambda: (180, 218, 11, 13, 64), "values")],
    "unet": [
        (lambda x, down, up: up[0](F.max_pool2d(x, 2)), "raised"),
        (lambda x, down, up: unet_by_recursion(x.detach(), down, up), "gradient"),
    ],
    "flow_head": [
        (head_with_relu, "type"),
        (head_of_three_axes, "type"),
        (lambda channels: nn.Conv2d, "type"),
        (lambda channels: torch.zeros(2, channels, 3, 3), "type"),
        (lambda channels: (1, 2), "type"),
        (head_drawn_by_xavier, "values"),
        (head_with_gaps, "values"),
        (head_in_groups, "values"),
    ],
    "registration_loss": [
        (loss_with_extra_axis, "shape"),
        (lambda *a: loss_by_hand(*a).item(), "type"),
    ],
    "train": [
        (train_keeping_tensors, "law"),
        (lambda *given: [x.detach() for x in train_keeping_tensors(*given)], "law"),
        (train_a_copy, "law"),
        (train_without_a_list, "type"),
        (lambda model, pairs, steps: [], "shape"),
    ],
    "steps_needed": [
        (lambda: 60, "goal"),
        (lambda: 7.5, "type"),
        (lambda: 0, "type"),
        (lambda: 1000, "type"),
        (lambda: True, "type"),
        (lambda: math.inf, "type"),
    ],
}


# Given in the notebook, where they stand on names of its cells.
GIVEN = {"from_zero": checks._from_zero, "look": checks._case()[1]}


@pytest.mark.parametrize("case", cases(checks, right=RIGHT, wrong=WRONG, namespace=GIVEN), ids=str)
def test_check(case: Case) -> None:
    case.run()


def test_the_blocks_of_the_check_are_wired_as_the_library_does() -> None:
    torch.manual_seed(0)
    library = UNet(ndim=2, encoder=(4, 6), decoder=((6,), (5,), (4, 3)))
    down, up = list(library.down), list(library.up)
    image = torch.rand(2, 2, 12, 20)
    with torch.no_grad():
        assert torch.allclose(checks.unet.reference(image, down, up), library(image), atol=1e-6)


def test_sizes_inside_are_those_of_the_network() -> None:
    rows, columns, *bottom, channels = checks.sizes_inside.reference()
    network, seen = UNet(ndim=2), []
    network.up[0].register_forward_hook(lambda layer, x, y: seen.append(tuple(y.shape[2:])))
    network.up[1].register_forward_hook(lambda layer, x, y: seen.append(x[0].shape[1]))
    with torch.no_grad():
        network(torch.zeros(1, 2, rows, columns))
    assert seen == [tuple(bottom), channels]
    multiple = network.multiple
    assert rows - 180 < multiple > columns - 218 and rows % multiple == columns % multiple == 0


def test_the_head_of_the_library_has_what_the_check_measures() -> None:
    head = VoxelMorph(ndim=2).flow
    assert checks._measure_head(head, 16)[3:] == checks._head(16)[3:]
    assert checks.flow_head.judge(
        lambda channels: VoxelMorph(2, unet=_wide(channels)).flow
    ).name == ("right")


def test_without_an_answer_the_exercise_goes_on_with_a_layer() -> None:
    def unfinished(channels):
        raise NotImplementedError()

    going_on = checks.flow_head.or_reference(unfinished)
    assert isinstance(going_on(16), nn.Conv2d)
    assert checks.flow_head.judge(lambda channels: going_on(channels)).name == "right"


def _wide(channels: int) -> UNet:
    return UNet(2, encoder=(4,), decoder=((4,), (channels,)))


def test_an_unknown_head_is_told_what_it_is() -> None:
    text = checks.flow_head.judge(head_drawn_by_xavier).text
    assert "largest bias is 3" in text and "(2, 16, 7, 9) into (2, 2, 7, 9)" in text
    assert "Leave away: dilation = (2, 2)." in checks.flow_head.judge(head_with_gaps).text
    assert "Sequential of Conv2d, ReLU" in checks.flow_head.judge(head_with_relu).text


def test_chance_does_not_change_what_is_measured() -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        assert all(checks.flow_head.judge(right).name == "right" for right in RIGHT["flow_head"])
        default = checks.flow_head.judge(lambda c: nn.Conv2d(c, 2, 3, padding=1))
        assert default.text.startswith("weights and bias are PyTorch's own")


def test_a_training_of_another_similarity_is_refused() -> None:
    def train(model, pairs, steps):
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.002), []
        for n in range(steps):
            moving, fixed = pairs[n % len(pairs)]
            u, v = model(moving, fixed).displacement, model(moving, fixed).velocity
            loss = mse(warp(moving, u, padding="border"), fixed) + diffusion(v)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert checks.train.judge(train).stage == "values"


def test_the_goal_is_reached_by_one_setting_only() -> None:
    right = checks.steps_needed.reference()
    assert 3 <= right <= 6
    assert checks.steps_needed.judge(lambda: right).name == "right"
    assert checks.steps_needed.judge(lambda: right + 1).stage == "goal"
    assert checks.steps_needed.judge(lambda: float(right)).name == "right"

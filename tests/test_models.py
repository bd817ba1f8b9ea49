"""Networks: the published architectures, the zero field at the start, and clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from course_lib.losses import diffusion, lncc
from course_lib.models import Prediction, UNet, VoxelMorph
from course_lib.models.unet import block, convolution
from course_lib.spatial import integrate, jacobian_determinant, resize_displacement, warp

SHAPES = {2: (32, 48), 3: (16, 32, 48)}
VARIANTS = {"VxmDense": VoxelMorph, "vm1": VoxelMorph.vm1, "vm2": VoxelMorph.vm2}
everyone = pytest.mark.parametrize("variant", VARIANTS)
both_dimensions = pytest.mark.parametrize("ndim", (2, 3))


def images(ndim: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(ndim)
    moving, fixed = torch.rand(2, batch, 1, *SHAPES[ndim], generator=generator)
    return moving, fixed


def network(variant: str, ndim: int = 2, *, head: float = 0.05) -> VoxelMorph:
    """A network whose fields are some voxels long, as after a training."""
    torch.manual_seed(7)
    model = VARIANTS[variant](ndim)
    nn.init.normal_(model.flow.weight, std=head)
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------ the architecture


@pytest.mark.parametrize(
    "variant, ndim, parameters",
    [
        ("vm1", 2, 86_658),
        ("vm1", 3, 259_675),
        ("vm2", 2, 100_242),
        ("vm2", 3, 300_547),
        ("VxmDense", 2, 109_170),
        ("VxmDense", 3, 327_331),
    ],
)
def test_parameters_are_as_many_as_published(variant: str, ndim: int, parameters: int) -> None:
    assert count(VARIANTS[variant](ndim)) == parameters


def test_every_convolution_of_the_default_network_and_where_it_stands() -> None:
    seen = []
    model = VoxelMorph(2)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, inputs, output: seen.append(
                    (inputs[0].shape[1], output.shape[1], tuple(output.shape[2:]))
                )
            )
    model(*images(2))
    full, half, quarter, eighth, least = ((32 // f, 48 // f) for f in (1, 2, 4, 8, 16))
    assert seen == [
        *((2, 16, full), (16, 32, half), (32, 32, quarter), (32, 32, eighth)),
        *((32, 32, least), (64, 32, eighth), (64, 32, quarter), (64, 32, half)),
        *((48, 32, full), (32, 16, full), (16, 16, full), (16, 2, full)),
    ]


@pytest.mark.parametrize(
    "variant, widths",
    [
        ("vm1", [(32, 8), (10, 8), (8, 2)]),
        ("vm2", [(32, 32), (34, 16), (16, 16), (16, 2)]),
    ],
)
def test_the_networks_of_2018_stride_down_and_join_the_input(variant: str, widths: list) -> None:
    layers = [m for m in VARIANTS[variant](2).modules() if isinstance(m, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in layers] == [
        *((2, 16), (16, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (48, 32)),
        *widths,
    ]
    assert [layer.stride[0] for layer in layers] == [2] * 4 + [1] * (len(layers) - 4)
    assert not any(layer.bias is None for layer in layers)


def test_pooling_keeps_the_largest_and_doubling_repeats() -> None:
    """One block down, two up, all weights 1 in the middle: what comes out can be told by hand."""
    net = UNet(2, channels=1, encoder=(1,), decoder=((1,), (1,)))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            layer.weight.data[:, :, 1, 1] = 1
    x = torch.arange(16.0).view(1, 1, 4, 4)
    largest = torch.tensor([[5.0, 7.0], [13.0, 15.0]]).repeat_interleave(2, 0)
    torch.testing.assert_close(net(x)[0, 0], largest.repeat_interleave(2, 1) + x[0, 0])


@both_dimensions
def test_a_block_keeps_the_size_of_the_signal(ndim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 32, *SHAPES[ndim])
    for _ in range(6):
        x = block(ndim, 32, 32)(x)
    # The border sees zeros, so a little is lost; with PyTorch's own weights it would be 1e-3.
    assert 0.4 < float(x.detach().pow(2).mean()) < 2.5
    assert not block(ndim, 3, 4)[0].bias.any()


def test_leaky_relu_lets_a_fifth_of_what_is_negative_pass() -> None:
    assert float(block(2, 1, 1)[1](torch.tensor(-5.0))) == -1.0


# ------------------------------------------------------------------------------------ behavior


@everyone
@both_dimensions
def test_the_first_answer_is_to_do_nothing(variant: str, ndim: int) -> None:
    torch.manual_seed(0)
    model = VARIANTS[variant](ndim)
    assert 0 < float(model.flow.weight.detach().std()) < 1.2e-5 and not model.flow.bias.any()
    moving, fixed = images(ndim)
    prediction = model(moving, fixed)
    assert isinstance(prediction, Prediction)
    assert prediction.displacement.shape == (2, ndim, *SHAPES[ndim])
    assert 0 < float(prediction.displacement.abs().max()) < 0.01


@everyone
@both_dimensions
def test_items_of_a_batch_do_not_see_each_other(variant: str, ndim: int) -> None:
    model = network(variant, ndim, head=0.5).eval()
    moving, fixed = images(ndim)
    together = model(moving, fixed).displacement
    assert float(together.abs().max()) > 1
    for item in range(2):
        alone = model(moving[item : item + 1], fixed[item : item + 1]).displacement
        torch.testing.assert_close(together[item : item + 1], alone, atol=1e-3, rtol=1e-3)
    backward = model(fixed, moving).displacement
    assert float((backward - together).abs().mean()) > 0.02, "moving and fixed are told apart"


@everyone
def test_every_weight_learns(variant: str) -> None:
    model = network(variant)
    moving, fixed = images(2)
    prediction = model(moving, fixed)
    loss = lncc(warp(moving, prediction.displacement), fixed) + diffusion(prediction.displacement)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@both_dimensions
def test_the_velocity_is_half_as_large_and_its_integral_is_the_answer(ndim: int) -> None:
    model = network("VxmDense", ndim)
    prediction = model(*images(ndim))
    velocity = prediction.velocity
    assert velocity is not None
    assert velocity.shape == (2, ndim, *(n // 2 for n in SHAPES[ndim]))
    expected = resize_displacement(integrate(velocity), SHAPES[ndim])
    torch.testing.assert_close(prediction.displacement, expected)
    raw = model.flow(model.unet(torch.cat(images(ndim), dim=1)))
    torch.testing.assert_close(velocity, resize_displacement(raw, velocity.shape[2:]))


def test_a_velocity_folds_less_than_the_same_field_as_a_displacement() -> None:
    torch.manual_seed(1)
    with_velocity, without = VoxelMorph(2), VoxelMorph(2, velocity=False)
    nn.init.normal_(with_velocity.flow.weight, std=0.2)
    without.load_state_dict(with_velocity.state_dict())
    answers = [model(*images(2)) for model in (with_velocity, without)]
    folds = [float((jacobian_determinant(p.displacement) <= 0).float().mean()) for p in answers]
    assert answers[1].velocity is None
    assert folds[0] < 0.5 * folds[1] and folds[1] > 0.01


@everyone
def test_bfloat16_by_autocast_still_integrates_in_full_precision(variant: str) -> None:
    model = network(variant)
    exact = model(*images(2)).displacement
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*images(2)).displacement
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().mean()) < 0.2 * float(exact.abs().mean())


def test_double_weights_take_double_images() -> None:
    model = network("VxmDense").double()
    moving, fixed = (image.double() for image in images(2))
    assert model(moving, fixed).displacement.dtype == torch.float64


def test_another_unet_may_be_given() -> None:
    shallow = UNet(2, encoder=(4, 8), decoder=((8,), (8,), (4,)))
    model = VoxelMorph(2, velocity=False, unet=shallow)
    assert shallow.multiple == 4 and shallow.out_channels == 4
    assert model(torch.rand(1, 1, 12, 20), torch.rand(1, 1, 12, 20)).displacement.shape[2:] == (
        12,
        20,
    )


def test_weights_are_saved_and_loaded_by_name() -> None:
    """The names are part of the shipped files: renaming a layer must not go unnoticed."""
    names = list(VoxelMorph(2).state_dict())
    assert names[:2] == ["unet.down.0.0.weight", "unet.down.0.0.bias"]
    assert names[-4:] == ["unet.up.4.2.0.weight", "unet.up.4.2.0.bias", "flow.weight", "flow.bias"]
    assert len(names) == 24


# ------------------------------------------------------------------------------------- refusals

GOOD = images(2)
REFUSED = {
    "a NumPy array": (GOOD[0].numpy(), GOOD[1], TypeError, "moving"),
    "three axes": (*images(3), ValueError, "2 spatial axes"),
    "other sizes": (GOOD[0][..., :32], GOOD[1], ValueError, "moving"),
    "another batch": (GOOD[0][:1], GOOD[1], ValueError, "moving"),
    "two channels": (*(x.repeat(1, 2, 1, 1) for x in GOOD), ValueError, r"\(B, 1, \*spatial\)"),
    "double": (*(x.double() for x in GOOD), TypeError, "float32"),
    "mixed": (GOOD[0].half(), GOOD[1], TypeError, "moving"),
    "integers": (*((x * 9).long() for x in GOOD), TypeError, "float"),
    "on another device": (*(x.to("meta") for x in GOOD), ValueError, "meta"),
    "63 voxels": (*(torch.rand(1, 1, 32, 63) for _ in "ab"), ValueError,
                  r"divisible by 16.*\(32, 63\): crop to \(32, 48\) or pad to \(32, 64\)"),
    "too small to crop": (*(torch.rand(1, 1, 32, 9) for _ in "ab"), ValueError,
                          r"\(32, 9\): pad to \(32, 16\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_images_that_do_not_fit_are_refused(case: str) -> None:
    moving, fixed, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        VoxelMorph(2)(moving, fixed)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"ndim": 4}, "ndim"),
        ({"ndim": "2"}, "ndim"),
        ({"channels": 0}, "channels"),
        ({"encoder": (8, 0), "decoder": ((8,), (8,), (8,))}, "out_channels"),
        ({"encoder": (8, 8)}, "decoder"),
        ({"encoder": (8,), "decoder": ((8,), ())}, "decoder"),
    ],
)
def test_unets_that_do_not_fit_together_are_refused(arguments: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        UNet(**arguments)


@pytest.mark.parametrize("make", (convolution, block))
def test_a_stride_of_nothing_is_refused(make) -> None:
    with pytest.raises(ValueError, match="stride"):
        make(2, 1, 1, 0)


def test_what_comes_from_below_stands_before_the_bridge() -> None:
    """VoxelMorph's order: weights trained elsewhere would find their channels swapped."""
    model, seen = network("VxmDense"), {}
    last = model.unet.up[4]  # joins 32 channels from below with 16 of the first block
    model.unet.up[3].register_forward_hook(lambda _, x, out: seen.update(below=out))
    last.register_forward_pre_hook(lambda _, x: seen.update(joined=x[0]))
    model(*images(2))
    below, joined = seen["below"], seen["joined"]
    assert joined.shape[1] == 48
    torch.testing.assert_close(joined[:, :32, ::2, ::2], below)

"""What holds for every public function of floors 1 and 2, as one table: function × condition.

Each row of ``CASES`` is a function with the kinds of its tensors. Each test below takes every row,
in 2D and in 3D: dtypes (halves too), autocast, memory layouts, batches, devices, functional
transforms, gradients, and arguments left alone. What the numbers should be is the business of
test_spatial, test_losses, test_metrics and of their peers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from course_lib import io, losses, metrics, spatial
from course_lib.io import load_displacement, load_nifti, save_displacement, save_nifti

SHAPES = {2: (11, 13), 3: (7, 10, 9)}  # non-square: a swapped axis never hides
NEW = {2: (8, 15), 3: (9, 7, 12)}
SPACING = {2: (0.5, 2.0), 3: (0.5, 2.0, 3.0)}
HALVES = [torch.float16, torch.bfloat16]
FLOATS = [torch.float32, torch.float64]

# The public contract, name by name: arguments, their order, what is keyword-only, defaults.
CONTRACT = {
    spatial: {
        "identity_grid": "(shape, *, dtype=None, device=None)",
        "warp": "(image, displacement, *, mode='linear', padding='zeros')",
        "warp_points": "(points, displacement)",
        "compose": "(first, second)",
        "integrate": "(velocity, steps=7)",
        "invert": "(displacement, *, tolerance=0.001, iterations=50)",
        "resize_displacement": "(displacement, shape)",
        "resize_image": "(image, shape)",
        "smooth": "(image, sigma)",
        "pyramid": "(image, factor)",
        "affine_displacement": "(matrix, shape)",
        "jacobian": "(displacement)",
        "jacobian_determinant": "(displacement)",
    },
    losses: {
        "mse": "(warped, fixed)",
        "ncc": "(warped, fixed)",
        "lncc": "(warped, fixed, window=9, *, squared=True, mask=None)",
        "mutual_information": "(warped, fixed, bins=32)",
        "dice_loss": "(warped, fixed)",
        "diffusion": "(displacement)",
        "bending_energy": "(displacement)",
    },
    metrics: {
        "dice": "(a, b, values=None)",
        "hausdorff95": "(a, b, spacing=None, values=None)",
        "target_registration_error": "(fixed_points, moving_points, displacement, spacing=None)",
        "endpoint_error": "(displacement, truth, spacing=None, mask=None)",
        "folding_fraction": "(displacement, mask=None)",
        "sdlogj": "(displacement, mask=None)",
        "correlation": "(a, b)",
    },
    io: {
        "load_nifti": "(path)",
        "save_nifti": "(path, image, affine)",
        "load_displacement": "(path, moving_affine=None)",
        "save_displacement": "(path, displacement, affine, moving_affine=None)",
    },
}
HELPERS = {"at_least_float32"}  # public to the files of the library, not to people


def bare(function: Callable) -> str:
    """A signature without its type hints."""
    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    plain = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("module", CONTRACT, ids=lambda module: module.__name__)
def test_signatures_are_those_of_the_contract(module):
    found = {
        name: bare(function)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert {n: s for n, s in found.items() if n not in HELPERS} == CONTRACT[module]


def test_what_io_hands_out_has_its_names_in_their_order():
    assert io.Volume._fields == ("image", "affine", "spacing")
    assert io.Field._fields == ("displacement", "affine", "spacing")


# ------------------------------------------------------------------------------------ the table


class Case(NamedTuple):
    """A function with its options, the kinds of its tensors, and how it treats their dtype."""

    function: Callable
    kinds: str
    dtype: str  # "kept", "float32 or better", "float32", or torch's "default"
    slopes: bool = True  # whether gradcheck applies to the floating arguments


def cases(ndim: int) -> dict[str, Case]:
    new, mm = NEW[ndim], SPACING[ndim]
    kept, better, default = "kept", "float32 or better", "default"
    return {
        "warp": Case(spatial.warp, "image field", kept),
        "warp border": Case(partial(spatial.warp, padding="border"), "image field", kept),
        "warp nearest": Case(partial(spatial.warp, mode="nearest"), "image field", kept),
        "warp_points": Case(spatial.warp_points, "points field", kept),
        "compose": Case(spatial.compose, "field other", kept),
        "integrate": Case(partial(spatial.integrate, steps=3), "field", kept),
        # No tolerance: under vmap nobody can look, and all iterations are taken.
        "invert": Case(partial(spatial.invert, tolerance=0.0, iterations=6), "field", kept),
        "resize_image": Case(partial(spatial.resize_image, shape=new), "image", kept),
        "resize_displacement": Case(partial(spatial.resize_displacement, shape=new), "field", kept),
        "smooth": Case(partial(spatial.smooth, sigma=1.2), "image", kept),
        "pyramid": Case(partial(spatial.pyramid, factor=1.3), "image", kept),
        "affine_displacement": Case(
            partial(spatial.affine_displacement, shape=new), "matrix", kept
        ),
        "jacobian": Case(spatial.jacobian, "field", kept),
        "jacobian_determinant": Case(spatial.jacobian_determinant, "field", kept),
        "mse": Case(losses.mse, "image fixed", better),
        "ncc": Case(losses.ncc, "image fixed", better),
        "lncc": Case(partial(losses.lncc, window=3), "image fixed", better),
        "lncc signed": Case(partial(losses.lncc, window=5, squared=False), "image fixed", better),
        "lncc masked": Case(
            lambda a, b, m: losses.lncc(a, b, 3, mask=m.detach()), "image fixed mask", better, False
        ),
        # The range has no gradient, on purpose: test_losses checks it with the ends held still.
        "mutual_information": Case(
            partial(losses.mutual_information, bins=6), "image fixed", better, False
        ),
        "dice_loss": Case(losses.dice_loss, "image fixed", better),
        "diffusion": Case(losses.diffusion, "field", better),
        "bending_energy": Case(losses.bending_energy, "field", better),
        "dice": Case(metrics.dice, "labels other_labels", default),
        "dice of values": Case(
            partial(metrics.dice, values=[3, 1]), "labels other_labels", default
        ),
        "hausdorff95": Case(
            partial(metrics.hausdorff95, spacing=mm), "labels other_labels", default
        ),
        "target_registration_error": Case(
            partial(metrics.target_registration_error, spacing=mm),
            "points other_points field",
            better,
        ),
        "endpoint_error": Case(
            lambda u, v, m: metrics.endpoint_error(u, v, mm, m), "field other mask", better
        ),
        # It counts voxels: no digit would be won.
        "folding_fraction": Case(metrics.folding_fraction, "torn mask", "float32", False),
        "sdlogj": Case(metrics.sdlogj, "field mask", better),
        "correlation": Case(metrics.correlation, "image fixed", better),
    }


def arguments(kinds: str, ndim: int, dtype=torch.float64, batch: int = 2) -> list[Tensor]:
    """Another tensor for each kind and each item; samples stay clear of whole voxels."""
    shape = SHAPES[ndim]
    generator = torch.Generator().manual_seed(ndim)

    def rand(*size: int) -> Tensor:
        return torch.rand((4, *size), generator=generator, dtype=torch.float64)[:batch]

    def field(strength: float) -> Tensor:
        whole = (3 * rand(ndim, *shape)).floor() - 1
        return strength * (whole + 0.25 + 0.5 * rand(ndim, *shape))

    extent = torch.tensor(shape, dtype=torch.float64) - 1
    eye = torch.eye(ndim, ndim + 1, dtype=torch.float64)
    image = rand(2, *shape)
    made = {
        "image": image,
        "fixed": 0.6 * image + 0.4 * rand(2, *shape),
        "field": field(1.0),
        "other": field(1.0).flip(2),
        "torn": field(3.0),
        "points": (extent * rand(5, ndim)).floor().clamp(max=extent - 1)
        + 0.2
        + 0.6 * rand(5, ndim),
        "other_points": extent * rand(5, ndim),
        "matrix": eye + 0.3 * (rand(ndim, ndim + 1) - 0.5),
        "mask": 0.1 + rand(1, *shape),
        "labels": (4 * rand(1, *shape)).long(),
        "other_labels": (4 * rand(1, *shape)).long(),
    }
    chosen = [made[kind] for kind in kinds.split()]
    return [x.to(dtype) if x.is_floating_point() else x for x in chosen]


ROWS = [(ndim, name) for ndim in (2, 3) for name in cases(ndim)]
FLOATING = [(n, name) for n, name in ROWS if "labels" not in cases(n)[name].kinds]
OF_METRICS = {
    *("dice", "dice of values", "hausdorff95", "target_registration_error", "endpoint_error"),
    *("folding_fraction", "sdlogj", "correlation"),
}
SLOPES = [(n, name) for n, name in FLOATING if cases(n)[name].slopes]
table = pytest.mark.parametrize(("ndim", "name"), ROWS)
floating_table = pytest.mark.parametrize(("ndim", "name"), FLOATING)
# Metrics look at the values that they report; floors below do not.
blind_table = pytest.mark.parametrize(
    ("ndim", "name"), [(n, name) for n, name in FLOATING if name not in OF_METRICS]
)


def close(found: Tensor, expected: Tensor, name: str = "") -> None:
    torch.testing.assert_close(found, expected, equal_nan=True, msg=lambda m: f"{name}: {m}")


def slopes(function: Callable, tensors: list[Tensor]) -> list[Tensor | None]:
    """The gradient by each floating argument, each number of the result pulled at differently."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]
    result = function(*leaves)
    if not result.requires_grad:
        return []
    weights = torch.linspace(0.5, 2, max(result.numel(), 2))[: result.numel()].view(result.shape)
    wanted = [x for x in leaves if x.requires_grad]
    return list(torch.autograd.grad((result * weights).sum(), wanted, allow_unused=True))


def test_the_table_has_every_function_of_the_contract():
    listed = {name.split()[0] for name in cases(2)}
    contract = {name for module in (spatial, losses, metrics) for name in CONTRACT[module]}
    assert listed == contract - {"identity_grid"}  # which takes no tensor
    assert set(cases(3)) == set(cases(2)) >= OF_METRICS


@pytest.mark.parametrize("ndim", [2, 3])
def test_shapes_are_those_of_the_contract(ndim):
    shape, new = SHAPES[ndim], NEW[ndim]
    expected = {
        **dict.fromkeys(("warp", "warp border", "warp nearest", "smooth"), (2, 2, *shape)),
        **dict.fromkeys(("compose", "integrate", "invert"), (2, ndim, *shape)),
        "warp_points": (2, 5, ndim),
        "resize_image": (2, 2, *new),
        **dict.fromkeys(("resize_displacement", "affine_displacement"), (2, ndim, *new)),
        "pyramid": (2, 2, *(max(min(n, 9), round(n / 1.3)) for n in shape)),
        "jacobian": (2, ndim, ndim, *shape),
        "jacobian_determinant": (2, *shape),
        "dice": (2, 3),
        "dice of values": (2, 2),
        "hausdorff95": (2, 3),
        **dict.fromkeys(OF_METRICS - {"dice", "dice of values", "hausdorff95"}, (2,)),
        "target_registration_error": (2, 5),
    }
    for name, (function, kinds, _, _) in cases(ndim).items():
        assert function(*arguments(kinds, ndim)).shape == expected.get(name, ()), name
    assert spatial.identity_grid(shape).shape == (ndim, *shape)


# ----------------------------------------------------------------------------------------- dtypes


@table
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_dtype_of_the_result_is_the_one_promised(ndim, name, dtype):
    function, kinds, rule, _ = cases(ndim)[name]
    result = function(*arguments(kinds, ndim, dtype))
    assert result.dtype == (torch.float32 if rule in ("default", "float32") else dtype)
    exact = function(*arguments(kinds, ndim)).double()
    torch.testing.assert_close(result.double(), exact, atol=3e-5, rtol=3e-5)


@floating_table
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_lose_no_more_than_the_rounding_of_the_result(ndim, name, dtype):
    function, kinds, rule, _ = cases(ndim)[name]
    halves = arguments(kinds, ndim, dtype)
    result, exact = function(*halves), function(*(x.double() for x in halves))
    assert result.dtype == (dtype if rule == "kept" else torch.float32)
    # Kept: rounded once at the end, of the size of the largest number; twice where u is added last.
    digits = 1.5 * torch.finfo(dtype).eps if rule == "kept" else 1e-5
    assert (result.double() - exact).abs().max() <= digits * exact.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
def test_on_large_grids_halves_are_rounded_once_at_the_end(dtype):
    # In half precision voxel 2049 is voxel 2048, and of bfloat16 voxel 257 is voxel 256.
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 2, 20, 900, generator=generator).to(dtype)
    matrix = torch.tensor([[[1.05, 0.02, 1], [0.03, 0.9, 2]]]).to(dtype)
    for function, argument in (
        (lambda m: spatial.affine_displacement(m, (20, 3000)), matrix),
        (lambda x: spatial.resize_image(x, (31, 700)), image),
        (lambda x: spatial.resize_displacement(x, (31, 700)), image),
        (lambda x: spatial.smooth(x, 4.0), image),
        (spatial.integrate, image),
    ):
        exact, found = function(argument.double()), function(argument)
        assert found.dtype == dtype
        limit = 0.51 * torch.finfo(dtype).eps * exact.abs().max()
        assert (found.double() - exact).abs().max() <= limit


@floating_table
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_have_gradients_of_their_own_dtype(ndim, name, dtype):
    function, kinds, _, _ = cases(ndim)[name]
    halves = arguments(kinds, ndim, dtype)
    for slope, leaf in zip(slopes(function, halves), halves, strict=False):
        assert slope is None or (slope.dtype == leaf.dtype and bool(slope.isfinite().all()))


@table
def test_torchs_default_dtype_changes_no_digit(ndim, name):
    function, kinds, rule, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim, torch.float32)
    expected = function(*tensors)
    torch.set_default_dtype(torch.float64)
    try:
        found = function(*tensors)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == (torch.float64 if rule == "default" else torch.float32)
    close(found.float(), expected, name)


@floating_table
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_changes_no_digit_and_no_gradient(ndim, name, dtype):
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim, torch.float32)
    results = []
    for enabled in (False, True):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in tensors]
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            found = function(*leaves)
        if found.requires_grad:
            found.square().sum().backward()  # outside, where torch wants it
        results.append([found, *(x.grad for x in leaves)])
    assert results[1][0].dtype == results[0][0].dtype
    torch.testing.assert_close(results[1], results[0], equal_nan=True)


# ----------------------------------------------------------------------------------------- devices


@table
def test_nothing_is_made_on_torchs_default_device(ndim, name):
    # A default device set by the caller is not that of the arguments: what is made without a word
    # about its device lands on "meta" here, where it has no numbers to give.
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim)
    expected, expected_slopes = function(*tensors), slopes(function, tensors)
    spatial._sampler_grid.cache_clear()
    with torch.device("meta"):
        found = function(*tensors)
    assert found.device.type == "cpu"
    close(found, expected, name)
    leaves = [x.requires_grad_(x.is_floating_point()) for x in tensors]
    with torch.device("meta"):
        result = function(*leaves)
        if result.requires_grad:
            result.sum().backward()
    spatial._sampler_grid.cache_clear()
    assert all(x.grad is None or x.grad.device.type == "cpu" for x in leaves)
    assert not expected_slopes or result.requires_grad


@blind_table
def test_results_lie_on_the_device_of_the_arguments_in_the_same_shape(ndim, name):
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim, torch.float32)
    expected = function(*tensors)
    found = function(*(x.to("meta") for x in tensors))
    assert found.device.type == "meta"
    assert found.shape == expected.shape and found.dtype == expected.dtype


@pytest.mark.parametrize("ndim", [2, 3])
def test_files_do_not_depend_on_torchs_defaults(tmp_path, ndim):
    image, field = arguments("image field", ndim, batch=1)
    image, affine = image[:, :1].float(), np.diag([0.5, 2.0, 3.0, 1.0])
    other = np.diag([0.7, 1.1, 1.3, 1.0])
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            save_nifti(tmp_path / "a.nii", image, affine)
            save_displacement(tmp_path / "u.nii", field, affine, other)
            volume = load_nifti(tmp_path / "a.nii")
            loaded = load_displacement(tmp_path / "u.nii", other)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(volume.image, image)
    assert loaded.displacement.dtype == torch.float32
    torch.testing.assert_close(loaded.displacement, field.float())


# ------------------------------------------------------------------------------- memory and batches


def transposed(x: Tensor) -> Tensor:
    """The same numbers, the last axis the slowest in memory."""
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 3 else transposed(x)


def part_of_larger(x: Tensor) -> Tensor:
    larger = x.new_zeros([n + 1 for n in x.shape])
    inner = larger[tuple(slice(1, None) for _ in x.shape)]
    return inner.copy_(x)


@table
@pytest.mark.parametrize("layout", [transposed, channels_last, part_of_larger])
def test_any_layout_in_memory_will_do(ndim, name, layout):
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim)
    laid = [layout(x) for x in tensors]
    single = layout is channels_last  # of one channel, first is last
    assert not any(x.is_contiguous() for x in laid if x.shape[1] > 1 or not single)
    close(function(*laid), function(*tensors), name)
    torch.testing.assert_close(slopes(function, laid), slopes(function, tensors))


@table
def test_one_item_repeated_without_a_copy_is_a_batch_like_any_other(ndim, name):
    function, kinds, _, _ = cases(ndim)[name]
    one = [x.expand(3, *x.shape[1:]) for x in arguments(kinds, ndim, batch=1)]
    close(function(*one), function(*(x.clone() for x in one)), name)


@table
def test_items_of_a_batch_do_not_know_of_each_other(ndim, name):
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim, batch=3)
    together = function(*tensors)
    apart = [function(*(x[i : i + 1] for x in tensors)) for i in range(3)]
    if name == "lncc masked":  # one mean under the mask, over all items
        weights = torch.stack([x.sum() for x in tensors[2]])
        close(together, (torch.stack(apart) * weights).sum() / weights.sum(), name)
    elif together.ndim == 0:
        close(together, torch.stack(apart).mean(), name)
    else:
        close(together, torch.cat(apart), name)


@table
def test_arguments_are_left_alone_and_results_are_the_callers_own(ndim, name):
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim)
    copies = [x.clone() for x in tensors]
    slopes(function, tensors)
    result = function(*tensors)
    expected = result.clone()
    result.fill_(77)  # neither an argument nor anything kept for the next call
    for x, copy in zip(tensors, copies, strict=True):
        assert torch.equal(x, copy) and x._version == 0
    close(function(*tensors), expected, name)


@table
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_numbers_are_the_same(ndim, name, mode):
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim)
    expected = function(*tensors)
    with mode():
        close(function(*tensors), expected, name)


# What autograd keeps beside the arguments, in images of one channel (or components of a field).
KEPT = {
    **dict.fromkeys(("warp", "warp border", "compose"), 3),  # the positions
    "integrate": 3 * (3 + 3),  # for each squaring the positions, and the field that was squared
    **dict.fromkeys(("resize_image", "jacobian", "mse", "diffusion", "dice_loss"), 0),
    "ncc": 2 * 2,  # of two channels: both images without their means
    "lncc": 2 * 5,  # two means, two variances and the cross term
    "mutual_information": 2 * 2,  # both images in bins
    "jacobian_determinant": 9 + 3,  # all slopes, and the cross product of two rows
}


@pytest.mark.parametrize("name", KEPT)
def test_no_needless_image_is_kept_for_the_gradient(name):
    function, kinds, _, _ = cases(3)[name]
    shape = (24, 27, 30)  # so large that the histograms do not count
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.rand((2, 3 if kind in ("field", "other") else 2, *shape), generator=generator)
        for kind in kinds.split()
    ]
    leaves = [x.requires_grad_() for x in leaves]
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function(*leaves)
    for leaf in leaves:
        kept.pop(leaf.untyped_storage().data_ptr(), None)
    image = 4 * 2 * torch.Size(shape).numel()
    assert result.requires_grad
    assert sum(kept.values()) / image == pytest.approx(KEPT[name], abs=0.5)


# -------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize(("ndim", "name"), SLOPES)
def test_gradients_are_right(ndim, name):
    function, kinds, _, _ = cases(ndim)[name]
    tensors = arguments(kinds, ndim)
    # The mask's weights and labels are given; everything else may be optimized.
    given = {"mask"} | ({"field"} if name == "warp nearest" else set())
    for x, kind in zip(tensors, kinds.split(), strict=True):
        x.requires_grad_(kind not in given)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@blind_table
def test_functional_transforms_do_what_loops_do(ndim, name):
    function, kinds, _, _ = cases(ndim)[name]
    # Three calls, each with a batch of its own: (3, B, …).
    batches = [torch.stack([x, 0.9 * x, x.flip(0)]) for x in arguments(kinds, ndim)]
    one_by_one = torch.stack([function(*x) for x in zip(*batches, strict=True)])
    close(torch.func.vmap(function)(*batches), one_by_one, name)
    first = [x[0] for x in batches]
    shared = (0, *(None,) * (len(batches) - 1))
    expected = torch.stack([function(x, *first[1:]) for x in batches[0]])
    close(torch.func.vmap(function, in_dims=shared)(batches[0], *first[1:]), expected, name)

    def total(*tensors: Tensor) -> Tensor:
        return function(*tensors).square().sum()

    leaves = [x.clone().requires_grad_() for x in first]
    wanted = range(1 if name in ("warp nearest", "lncc masked") else len(leaves))
    expected = torch.autograd.grad(total(*leaves), [leaves[k] for k in wanted])
    close(torch.func.grad(total, argnums=tuple(wanted))(*first), expected, name)
    slope = torch.func.grad(total)
    mapped = torch.func.vmap(slope)(*batches)
    close(mapped, torch.stack([slope(*x) for x in zip(*batches, strict=True)]), name)

"""The fast correlation map is the plain one: value, gradient, and under every transform."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_lib import local_ncc
from course_lib.local_ncc import correlation_map, correlation_map_plain
from course_lib.losses import lncc
from course_lib.spatial import smooth

SHAPES = [(12, 17), (9, 13, 11)]


def images(shape, batch=2, channels=2, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.rand((2, batch, channels, *shape), generator=generator, dtype=torch.float64)
    return a.to(dtype), (0.6 * a + 0.4 * noise).to(dtype)


def map_and_gradients(function, a, b, *options) -> tuple[Tensor, Tensor, Tensor]:
    """The map and both gradients, each voxel of the map pulled at with another weight."""
    a, b = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    cc = function(a, b, *options)
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(cc.shape, generator=generator, dtype=torch.float64)
    return cc.detach(), *torch.autograd.grad(cc, (a, b), upstream.to(cc.dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("window", [1, 3, 5, 7, 9])
def test_the_fast_map_and_its_gradients_are_the_plain_ones(shape, window, squared):
    a, b = images(shape)
    expected = map_and_gradients(correlation_map_plain, a, b, window, squared)
    found = map_and_gradients(correlation_map, a, b, window, squared)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    assert expected[1].abs().max() > 0.1 or window == 1  # there is something to compare


@pytest.mark.parametrize("shape", [(40, 33), (20, 18, 22)])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("sigma, tolerance", [(0, 1e-5), (1, 3e-4)])
def test_in_float32_they_differ_by_rounding_only(shape, squared, sigma, tolerance):
    # The smoother the image, the less of its variance is left after Σa² − (Σa)²/n.
    a, b = (smooth(x, sigma) for x in images(shape, dtype=torch.float32))
    expected = map_and_gradients(correlation_map_plain, a, b, 9, squared)
    found = map_and_gradients(correlation_map, a, b, 9, squared)
    exact = map_and_gradients(correlation_map_plain, a.double(), b.double(), 9, squared)
    for x, y, z in zip(found, expected, exact, strict=True):
        scale = z.abs().max()
        assert (x - y).abs().max() < tolerance * scale
        assert (x - z).abs().max() < 2 * (y - z).abs().max()  # as near to float64 as the plain one


@pytest.mark.parametrize("tile", [1, 50, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_do_not_show(monkeypatch, shape, tile):
    a, b = images(shape)
    whole = map_and_gradients(correlation_map, a, b, 5, True)
    monkeypatch.setattr(local_ncc, "_TILE", tile)
    for x, y in zip(map_and_gradients(correlation_map, a, b, 5, True), whole, strict=True):
        assert torch.equal(x, y)


@given(n=st.integers(2, 20), half=st.integers(0, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_sums_by_doubling_are_sums(n, half):
    window = 2 * min(half, (n - 1) // 2) + 1
    line = torch.arange(1.0, n + 1).square()
    found = torch.empty(1, n, 1)
    local_ncc._line_sums(line.view(1, n, 1), window, found)
    radius = window // 2
    expected = [line[max(0, i - radius) : i + radius + 1].sum() for i in range(n)]
    assert found.flatten().tolist() == expected


@pytest.mark.parametrize("window", [1, 3])
def test_images_are_left_as_they_are(window):
    a, b = (x.requires_grad_() for x in images((8, 9)))
    before = a.detach().clone(), b.detach().clone()
    cc = correlation_map(a, b, window)
    cc.sum().backward()
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_any_layout_in_memory_will_do():
    a, b = images((12, 17), channels=1)
    expected = correlation_map_plain(a, b, 5)
    flipped = a.mT.contiguous().mT, b.expand(2, 3, 12, 17)[:, 1:2]
    torch.testing.assert_close(correlation_map(*flipped, 5), expected)
    one = a[:1].expand(2, 1, 12, 17)
    torch.testing.assert_close(correlation_map(one, b, 5), correlation_map_plain(one, b, 5))


def test_only_the_gradient_that_is_asked_for_is_computed(monkeypatch):
    a, b = images((10, 12))
    sums = []
    original = local_ncc._box_sum
    monkeypatch.setattr(local_ncc, "_box_sum", lambda *x: sums.append(1) or original(*x))
    for wanted in ((True, False), (False, True), (True, True)):
        x, y = (t.clone().requires_grad_(w) for t, w in zip((a, b), wanted, strict=True))
        sums.clear()
        correlation_map(x, y, 5).sum().backward()
        assert len(sums) == 5 + 3 * sum(wanted)
        assert [t.grad is not None for t in (x, y)] == list(wanted)


@pytest.mark.parametrize("squared", [True, False])
def test_the_gradient_is_right(squared):
    for shape, window in (((5, 6), 3), ((3, 4, 3), 3)):
        a, b = (x.requires_grad_() for x in images(shape, batch=2 if len(shape) == 2 else 1))
        assert torch.autograd.gradcheck(
            lambda x, y, window=window: correlation_map(x, y, window, squared), (a, b)
        )


def test_second_derivatives_are_refused_and_the_plain_version_has_them():
    a, b = images((6, 7), batch=1, channels=1)
    total = lambda x: correlation_map(x, b, 3).sum()  # noqa: E731
    x = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*correlation_map_plain"):
        torch.autograd.grad(slope.sum(), x)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda x: torch.func.grad(total)(x).square().sum())(a)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.functional.hessian(total, a)
    y = b.clone().requires_grad_()  # also when it is the second image that both are taken by
    (slope,) = torch.autograd.grad(correlation_map(a, y, 3).sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.sum().backward()
    with pytest.raises(NotImplementedError, match="jvp"):  # torch's own word for forward mode
        torch.func.jvp(total, (a,), (a,))
    assert torch.autograd.gradgradcheck(lambda x: correlation_map_plain(x, b, 3).sum(), x)


def one_by_one(function, *batches) -> Tensor:
    return torch.stack([function(*x) for x in zip(*batches, strict=True)])


def test_it_works_under_functional_transforms():
    a, b = images((8, 9), batch=6)
    a, b = a.view(3, 2, 2, 8, 9), b.view(3, 2, 2, 8, 9)  # three, each a batch of two
    vmap, grad = torch.func.vmap, torch.func.grad

    def fast(x, y):
        return correlation_map(x, y, 3).square().mean()

    def plain(x, y):
        return correlation_map_plain(x, y, 3).square().mean()

    close = torch.testing.assert_close
    close(vmap(fast)(a, b), one_by_one(plain, a, b))
    close(vmap(fast, in_dims=(1, 0))(a.transpose(0, 1), b), one_by_one(plain, a, b))
    close(vmap(fast, in_dims=(0, None))(a, b[1]), one_by_one(lambda x: plain(x, b[1]), a))
    close(vmap(grad(fast, 1))(a, b), one_by_one(grad(plain, 1), a, b))
    close(
        vmap(grad(fast), in_dims=(None, 0))(a[0], b),
        one_by_one(lambda y: grad(plain)(a[0], y), b),
    )
    close(grad(lambda x: vmap(fast)(x, b).sum())(a), one_by_one(grad(plain), a, b))
    close(vmap(vmap(fast))(a[:, None], b[:, None])[:, 0], one_by_one(plain, a, b))
    # One map, pulled at in three ways.
    pulls = torch.randn(3, 2, 2, 8, 9, generator=torch.Generator().manual_seed(1)).double()
    _, pull = torch.func.vjp(lambda x: correlation_map(x, b[0], 3), a[0])
    _, plain_pull = torch.func.vjp(lambda x: correlation_map_plain(x, b[0], 3), a[0])
    close(vmap(pull)(pulls)[0], torch.stack([plain_pull(p)[0] for p in pulls]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_worked_on_in_float32_and_get_half_gradients(dtype):
    a, b = (smooth(x, 1).to(dtype) for x in images((20, 23)))
    cc, *slopes = map_and_gradients(correlation_map, a, b, 9)
    exact, *exact_slopes = map_and_gradients(correlation_map_plain, a.float(), b.float(), 9)
    assert cc.dtype == torch.float32
    torch.testing.assert_close(cc, exact, rtol=1e-4, atol=1e-5)
    for slope, wanted in zip(slopes, exact_slopes, strict=True):
        assert slope.dtype == dtype
        torch.testing.assert_close(slope.float(), wanted, rtol=1e-2, atol=1e-2)


def test_two_dtypes_meet_in_the_better_one():
    a, b = images((10, 11))
    x = a.float().requires_grad_()
    cc = correlation_map(x, b, 5)
    assert cc.dtype == torch.float64
    cc.sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(cc, correlation_map_plain(x, b, 5))


def test_autocast_changes_nothing():
    a, b = images((30, 31), dtype=torch.float32)
    expected = map_and_gradients(correlation_map, a, b, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = map_and_gradients(correlation_map, a, b, 9)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_voxel_breaks_the_windows_around_it_and_the_loss(shape, value):
    a, b = images(shape, dtype=torch.float32)
    middle = tuple(n // 2 for n in shape)
    a[(0, 1, *middle)] = value
    broken = torch.zeros(2, 2, *shape, dtype=torch.bool)
    broken[(0, 1, *(slice(m - 1, m + 2) for m in middle))] = True
    for function in (correlation_map, correlation_map_plain):
        assert torch.equal(function(a, b, 3).isnan(), broken)
    assert bool(lncc(a, b, 3).isnan())
    leaf = b.clone().requires_grad_()
    lncc(a, leaf, 3).backward()
    assert bool(leaf.grad[0, 1].isnan().any())  # the fault shows in the gradient too


def test_a_flat_window_gives_no_gradient_and_no_noise():
    a, b = images((16, 18), batch=1, channels=1, dtype=torch.float32)
    a[..., :9] = 0.7  # its variance is rounding only, and would divide by almost nothing
    for squared in (True, False):
        _, slope, other = map_and_gradients(correlation_map, a, b, 5, squared)
        exact = map_and_gradients(correlation_map_plain, a.double(), b.double(), 5, squared)
        assert bool(slope.isfinite().all() and other.isfinite().all())
        assert slope.abs().max() < 2 * exact[1].abs().max()
        assert other.abs().max() < 2 * exact[2].abs().max()


def test_where_rounding_breaks_the_bound_the_map_is_cut_and_has_no_slope():
    # Bright and almost flat: the window sums of squares keep nothing of the variance.
    noise = torch.randn(2, 1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    a, b = 200 + 0.01 * noise[0], 200 + 0.01 * noise[1]
    cc, slope, _ = map_and_gradients(correlation_map, a, b, 5, True)
    signed, signed_slope, _ = map_and_gradients(correlation_map, a, b, 5, False)
    assert cc.min() >= 0 and cc.max() == 1
    for squared, least in ((True, 0), (False, -1)):  # the plain one too, and without a NaN
        plain = correlation_map_plain(a, b, 9, squared)
        assert plain.min() >= least and plain.max() <= 1
    assert signed.min() >= -1 and signed.max() <= 1
    assert bool(slope.isfinite().all() and signed_slope.isfinite().all())

"""Squared correlation in a window around each voxel, twice: plain to read, and fast to train with.

Both give the same map and the same gradient (a test holds them to it):

* :func:`correlation_map_plain` is the formula, as lesson 13 writes it: torch averages the windows
  and keeps every intermediate image for the gradient.
* :func:`correlation_map` is what :func:`course_lib.losses.lncc` calls. It rests on two ideas.

**Sums by doubling.** The sum of 8 neighbors is the sum of 4 plus the sum of the next 4, and that of
4 comes from sums of 2. A window of 9 = 8 + 1 takes 4 additions of whole images along an axis, not 8
(:func:`_line_sums`); large images are cut into tiles that stay in the processor's cache.

**The gradient by hand.** Write ``c`` for cross, ``v_a``, ``v_b`` for the variances, ``μ_a``,
``μ_b`` for the means of a window, ``q = v_a v_b + ε`` and ``cc² = c²/q``. A voxel ``a(y)`` changes
``c`` by ``b(y) − μ_b`` and ``v_a`` by ``2 (a(y) − μ_a)`` in each window that holds ``y``: with
``s = 2c/q``, the slope by ``c``, and ``k = s c v_b/q``, minus twice the slope by ``v_a``,

    ``∂cc²/∂a(y) = Σ_windows s (b(y) − μ_b) − k (a(y) − μ_a) = b Σs − a Σk + Σ(k μ_a − s μ_b)``

where each Σ is a window sum again, for windows are symmetric: ``y`` is in the window around ``x``
when ``x`` is in the window around ``y``. Three window sums and a few products, nothing else kept.
For ``cc = c/√q``, without the square, only ``s = 1/√q`` differs.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from course_lib.spatial import at_least_float32

_EPSILON = 1e-5

# Values worked on at once: 4 MB of float32, which the caches of most processors hold.
_TILE = 2**20


def correlation_map_plain(a: Tensor, b: Tensor, window: int, squared: bool = True) -> Tensor:
    """The correlation in the window around each voxel, as its formula reads.

    With sums over the window (zeros outside the image, means by the full window size ``n``):
    ``cross = Σab − Σa Σb / n``, ``var_a = Σa² − (Σa)² / n``, and
    ``cc² = cross² / (var_a var_b + 1e-5)``. It checks nothing: ``lncc`` has done so.

    Args:
        a, b: ``(B, C, *spatial)``, floating.
        window: edge of the window in voxels, odd.
        squared: cc² if true, cc if not.

    Returns:
        ``(B, C, *spatial)``, in [0, 1] (squared) or [−1, 1], float32 or better.

    Taught in lesson 13.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    size = window ** (a.ndim - 2)
    sums = _window_sums(torch.cat([a, b, a * a, b * b, a * b], dim=1), window)
    a, b, aa, bb, ab = sums.chunk(5, dim=1)
    cross = ab - a * b / size
    # A flat window's variance is lost in rounding and may come out below zero: a quotient of noise.
    variances = (aa - a * a / size).clamp(min=0) * (bb - b * b / size).clamp(min=0) + _EPSILON
    cc = cross * cross / variances if squared else cross / variances.sqrt()
    return cc.clamp(-1, 1)


def _window_sums(images: Tensor, window: int) -> Tensor:
    """Sum over the window around each voxel, one axis after the other; zeros outside."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    ndim = images.ndim - 2
    for axis in range(ndim):
        kernel = [window if other == axis else 1 for other in range(ndim)]
        images = pool(images, kernel, stride=1, padding=[k // 2 for k in kernel])
    return images * window**ndim


def correlation_map(a: Tensor, b: Tensor, window: int, squared: bool = True) -> Tensor:
    """:func:`correlation_map_plain`, several times faster and with less memory.

    Made for gradient descent: it has first derivatives only. A second derivative is refused;
    :func:`correlation_map_plain` has them all. A window that is flat in an image has no gradient
    through its variance there.

    Args:
        a, b: ``(B, C, *spatial)``, floating.
        window: edge of the window in voxels, odd.
        squared: cc² if true, cc if not.

    Returns:
        ``(B, C, *spatial)``, in [0, 1] (squared) or [−1, 1], float32 or better.

    Raises:
        RuntimeError: from a second derivative.

    Its formula is taught in lesson 13.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return _Correlation.apply(a.to(dtype), b.to(dtype), window, squared)[0]


class _Correlation(Function):
    """The map, and beside it the five images that its gradient needs."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, window: int, squared: bool) -> tuple[Tensor, ...]:
        size = window ** (a.ndim - 2)
        mean_a, mean_b = _box_sum(a, window).div_(size), _box_sum(b, window).div_(size)
        # Σab − n μ_a μ_b, in the place of Σab: addcmul_ adds value · first · second.
        cross = _box_sum(a * b, window).addcmul_(mean_a, mean_b, value=-size)
        var_a = _box_sum(a * a, window).addcmul_(mean_a, mean_a, value=-size).clamp_(min=0)
        var_b = _box_sum(b * b, window).addcmul_(mean_b, mean_b, value=-size).clamp_(min=0)
        variances = (var_a * var_b).add_(_EPSILON)
        cc = (cross * cross).div_(variances) if squared else cross / variances.sqrt_()
        return cc.clamp_(-1, 1), mean_a, mean_b, var_a, var_b, cross

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        a, b, ctx.window, ctx.squared = inputs
        ctx.save_for_backward(a, b, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no images of zeros for the five others

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        a, b, mean_a, mean_b, var_a, var_b, cross = ctx.saved_tensors
        wanted_a, wanted_b = ctx.needs_input_grad[:2]
        if upstream[0] is None:
            return None, None, None, None
        options = (cross, upstream[0], ctx.window, ctx.squared)
        # The formula is symmetric: b's gradient is a's with the images exchanged.
        slope_a = _Slope.apply(a, b, mean_a, mean_b, var_a, var_b, *options) if wanted_a else None
        slope_b = _Slope.apply(b, a, mean_b, mean_a, var_b, var_a, *options) if wanted_b else None
        return slope_a, slope_b, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        outputs = _Correlation.apply(*_folded(info, in_dims, inputs))
        unfolded = tuple(x.unflatten(0, (info.batch_size, -1)) for x in outputs)
        return unfolded, (0,) * len(unfolded)


class _Slope(Function):
    """The gradient by the image ``a``, in closed form (see the top of the file).

    A function of its own, so that a second derivative meets a refusal, not a silent wrong number.
    """

    @staticmethod
    def forward(
        a: Tensor,
        b: Tensor,
        mean_a: Tensor,
        mean_b: Tensor,
        var_a: Tensor,
        var_b: Tensor,
        cross: Tensor,
        upstream: Tensor,
        window: int,
        squared: bool,
    ) -> Tensor:
        variances = (var_a * var_b).add_(_EPSILON)
        s = (2 * cross).div_(variances) if squared else variances.rsqrt()
        s.mul_(upstream).masked_fill_(cross * cross > variances, 0)  # where cc was clamped
        k = (s * cross).div_(variances).mul_(var_b).masked_fill_(var_a == 0, 0)
        del variances
        slope = _box_sum(s, window).mul_(b)
        slope.addcmul_(_box_sum(k, window), a, value=-1)
        return slope.add_(_box_sum(k.mul_(mean_a).addcmul_(s, mean_b, value=-1), window))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> NoReturn:
        raise RuntimeError(
            "lncc: the fast version has no second derivative; "
            "average course_lib.local_ncc.correlation_map_plain instead, which has"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        slope = _Slope.apply(*_folded(info, in_dims, inputs))
        return slope.unflatten(0, (info.batch_size, -1)), 0


def _folded(info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """What ``torch.func.vmap`` maps over becomes more items of the batch."""

    def fold(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        if dim is None:
            return value.expand(info.batch_size, *value.shape).flatten(0, 1)
        return value.movedim(dim, 0).flatten(0, 1)

    return [fold(value, dim) for value, dim in zip(inputs, in_dims, strict=True)]


def _box_sum(image: Tensor, window: int) -> Tensor:
    """Sum over the window around each voxel, zeros outside; a new tensor, never ``image`` itself.

    One axis after the other, in tiles: a tile is read from memory once, worked on in the cache,
    and written once.
    """
    for axis in range(2, image.ndim):
        lines = image.reshape(-1, image.shape[axis], image.shape[axis + 1 :].numel())
        sums = lines.new_empty(lines.shape)  # (before, axis, after)
        across = 0 if lines.shape[0] >= lines.shape[2] else 2
        step = max(1, _TILE * lines.shape[across] // lines.numel())
        for tile, result in zip(lines.split(step, across), sums.split(step, across), strict=True):
            _line_sums(tile, window, result)
        image = sums.view(image.shape)
    return image


def _line_sums(lines: Tensor, window: int, result: Tensor) -> None:
    """Write into ``result`` the sums over ``window`` (odd) neighbors along axis 1, by doubling.

    ``run[:, i]`` is the sum of ``length`` values from ``i`` on. The lengths 1, 2, 4 … whose bits
    are set in the window, one behind the other, make up the window: 9 = 1 + 8, 7 = 1 + 2 + 4.
    """
    radius, size = window // 2, lines.shape[1]
    run = F.pad(lines, (0, 0, radius, radius))
    result.copy_(run[:, :size])
    length, begin = 1, 1
    while 2 * length <= window:
        run = run[:, :-length] + run[:, length:]
        length *= 2
        if window & length:
            result.add_(run[:, begin : begin + size])
            begin += length

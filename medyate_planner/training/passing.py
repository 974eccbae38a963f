"""Lean operators without trained weights: what PyTorch keeps in full, kept in bits or bytes or not at all.

Each forward calls the same ATen kernel as the original; only what is kept and the backward differ. An in-place
operator stays in place, so that the activations need no more room than in the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medyate_planner.training.functions import backward_once, direct
from medyate_planner.training.layout import memory_format
from medyate_planner.training.masks import apply_mask, pack_between
from medyate_planner.training.straight import called_directly

_aten = torch.ops.aten


class PassingSite(nn.Module):
    """One call of an operator in the reach that trains nothing itself; `arguments` are its literals after x."""

    function: type[torch.autograd.Function]

    def __init__(self, target: Any, arguments: tuple[Any, ...], inplace: bool) -> None:
        super().__init__()
        self.operator, self.target, self.arguments, self.inplace = target, called_directly(target), arguments, inplace
        self._direct = direct(self.function)

    def forward(self, x: Tensor, *frozen: Tensor) -> Tensor:
        """The original operator."""
        result: Tensor = self.function.apply(x, self, *frozen)  # type: ignore[no-untyped-call]
        return result

    def uncompiled(self, x: Tensor, *frozen: Tensor) -> Tensor:
        """As `forward`, in a step that is not compiled."""
        result: Tensor = self._direct(x, self, *frozen)
        return result

    def call(self, x: Tensor, *frozen: Tensor) -> Any:
        return self.target(x, *frozen, *self.arguments)


class _Masked(torch.autograd.Function):
    """An operator whose derivative takes two values, told apart by one bit: is the input between `site.bounds`?"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: MaskedSite) -> Tensor:
        order = memory_format(x)
        ctx.site, ctx.order = site, order
        ctx.save_for_backward(pack_between(x, *site.bounds, order))
        if site.inplace:
            ctx.mark_dirty(x)
        result: Tensor = site.call(x)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        inside, outside = ctx.site.slopes
        return apply_mask(gradient, ctx.saved_tensors[0], ctx.order, inside=inside, outside=outside), None


class _Dropout(torch.autograd.Function):
    """Draws the same numbers as the original, keeps one bit per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite) -> Tensor:
        probability = float(site.arguments[0])
        ctx.order, ctx.scale = memory_format(x), 1.0 / (1.0 - probability) if probability < 1 else 0.0
        result: Tensor
        fused = x.is_cuda and 0 < probability < 1  # one kernel, which draws in its own way
        if fused:
            result, kept = torch.native_dropout(x, probability, True)
        elif 0 < probability < 1:
            kept = torch.empty_like(x).bernoulli_(1 - probability)
        else:  # nothing is drawn
            kept = torch.full_like(x, 1 - probability)
        ctx.save_for_backward(pack_between(kept, 0.0, math.inf, ctx.order))
        if not fused:
            result = x * (kept.div_(1 - probability) if probability < 1 else kept)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return apply_mask(gradient, ctx.saved_tensors[0], ctx.order, inside=ctx.scale), None


class _BatchNorm(torch.autograd.Function):
    """Frozen: y = (x - mean) * rstd * weight + bias with constants, so only parameters and buffers are needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite, *frozen: Tensor | None) -> Tensor:
        ctx.frozen, ctx.epsilon = frozen, float(site.arguments[2])
        result: Tensor = site.call(x, *frozen)  # type: ignore[arg-type]
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, _, _, variance = ctx.frozen
        below = batch_norm_input_gradient(gradient, weight, variance, ctx.epsilon)
        return below, None, None, None, None, None


def batch_norm_input_gradient(gradient: Tensor, weight: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """Gradient of a frozen BatchNorm's input: that of its result times weight and 1 / deviation, `(B, C, *)`."""
    wide = torch.promote_types(variance.dtype, torch.float32)
    scale = (variance.to(wide) + epsilon).rsqrt_()
    if weight is not None:
        scale.mul_(weight)
    scale = scale.view(1, -1, *[1] * (gradient.dim() - 2))
    if wide == gradient.dtype:
        return gradient * scale
    return torch.mul(gradient, scale, out=torch.empty_like(gradient))  # rounds once, as PyTorch does


class _MaxPool(torch.autograd.Function):
    """Keeps one byte per output element: which place in its window had the maximum, counted along its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: MaxPoolSite) -> Tensor:
        ctx.site, ctx.shape, ctx.layout = site, x.shape, memory_format(x)
        values, index = _aten.max_pool2d_with_indices.default(x, *site.window)
        distance = index.sub_(_window_origins(site, values.shape, x.shape[3], x.device))
        distances = _window_distances(site, x.shape[3], x.device)
        places = torch.arange(distances.numel(), dtype=torch.uint8, device=x.device)
        place_at = places.new_zeros(site.largest_distance(x.shape[3]) + 1).scatter_(0, distances, places)
        place = place_at.index_select(0, distance.as_strided((distance.numel(),), (1,)))
        ctx.save_for_backward(place.as_strided(index.shape, index.stride()))
        result: Tensor = values
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        batch, channels, height, width = ctx.shape
        place = ctx.saved_tensors[0]
        distances = _window_distances(ctx.site, width, gradient.device)
        distance = distances.index_select(0, place.as_strided((place.numel(),), (1,)).int())
        index = distance.as_strided(place.shape, place.stride())
        index.add_(_window_origins(ctx.site, gradient.shape, width, gradient.device))
        if ctx.layout == torch.channels_last:  # (B, positions, C): nothing has to be copied into another order
            below = gradient.new_zeros(batch, height * width, channels)
            positions = index.permute(0, 2, 3, 1).reshape(batch, -1, channels)
            below.scatter_add_(1, positions, gradient.permute(0, 2, 3, 1).reshape(batch, -1, channels))
            return below.view(batch, height, width, channels).permute(0, 3, 1, 2), None
        below = gradient.new_zeros(batch, channels, height * width)
        below.scatter_add_(2, index.view(batch, channels, -1), gradient.reshape(batch, channels, -1))
        return below.view(ctx.shape), None


class _AvgPool(torch.autograd.Function):
    """The backward needs the shape of the input, not the input that PyTorch keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: AvgPoolSite) -> Tensor:
        ctx.site, ctx.shape = site, x.shape
        result: Tensor = site.call(x)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        shape_only = gradient.new_empty(()).expand(ctx.shape)
        site = ctx.site
        result: Tensor = _aten.avg_pool2d_backward.default(gradient, shape_only, *site.window, site.divisor)
        return result, None


class _AdaptiveAvgPool(torch.autograd.Function):
    """As `_AvgPool`; to 1x1 it is a mean over the positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite) -> Tensor:
        ctx.shape, ctx.layout = x.shape, memory_format(x)
        result: Tensor = site.call(x)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if gradient.shape[2:] == (1, 1):
            share = gradient / math.prod(ctx.shape[2:])
            below = torch.empty(ctx.shape, dtype=share.dtype, device=share.device, memory_format=ctx.layout)
            return below.copy_(share.expand(ctx.shape)), None
        shape_only = gradient.new_empty(()).expand(ctx.shape)
        result: Tensor = _aten._adaptive_avg_pool2d_backward.default(gradient, shape_only)
        return result, None


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _window(
    given: tuple[Any, ...], *, average: bool = False
) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Kernel, stride, padding, dilation and ceil_mode of a pooling call, defaults filled in."""
    kernel = _pair(given[0])
    stride = _pair(given[1]) if len(given) > 1 and given[1] else kernel
    padding = _pair(given[2]) if len(given) > 2 else [0, 0]
    dilation = _pair(given[3]) if len(given) > 3 and not average else [1, 1]
    return kernel, stride, padding, dilation, bool(given[4]) if len(given) > 4 and not average else False


def _window_origins(site: MaxPoolSite, shape: torch.Size, width: int, device: torch.device) -> Tensor:
    """Where in its input plane each output's window begins, `(H', W')`: negative where that is in the padding."""
    (down, right), (above, left) = site.window[1:3]
    rows = torch.arange(shape[2], device=device).mul_(down).sub_(above).mul_(width).unsqueeze_(1)
    return rows + torch.arange(shape[3], device=device).mul_(right).sub_(left)


def _window_distances(site: MaxPoolSite, width: int, device: torch.device) -> Tensor:
    """How far behind its window's origin each place is in an input plane, row by row: increasing, `(places,)`."""
    (height, length), _, _, (down, right), _ = site.window
    rows = torch.arange(height, device=device).mul_(down * width).unsqueeze_(1)
    return (rows + torch.arange(length, device=device).mul_(right)).view(-1)


class MaskedSite(PassingSite):
    """`slopes` is the derivative inside and outside the open interval `bounds` of the input."""

    function = _Masked
    bounds: tuple[float, float] = (0.0, math.inf)
    slopes: tuple[float, float] = (1.0, 0.0)


class ReluSite(MaskedSite):
    pass


class ClampSite(MaskedSite):
    def __init__(self, target: Callable[..., Any], arguments: tuple[Any, ...], inplace: bool) -> None:
        super().__init__(target, arguments, inplace)
        low, high = (*arguments, *(-1.0, 1.0)[len(arguments) :])[:2]
        self.bounds = (0.0, 6.0) if "relu6" in str(target) else (float(low), float(high))


class LeakyReluSite(MaskedSite):
    def __init__(self, target: Callable[..., Any], arguments: tuple[Any, ...], inplace: bool) -> None:
        super().__init__(target, arguments, inplace)
        self.slopes = (1.0, float(arguments[0]) if arguments else 0.01)


class HardSigmoidSite(MaskedSite):
    bounds = (-3.0, 3.0)
    slopes = (1.0 / 6.0, 0.0)


class DropoutSite(PassingSite):
    function = _Dropout


class BatchNormSite(PassingSite):
    function = _BatchNorm


class MaxPoolSite(PassingSite):
    function = _MaxPool

    def __init__(self, target: Callable[..., Any], arguments: tuple[Any, ...], inplace: bool) -> None:
        super().__init__(target, arguments, inplace)
        self.window = _window(arguments)

    def largest_distance(self, width: int) -> int:
        """Of a window's last place from its first, in an input plane of that width."""
        (height, length), _, _, (down, right), _ = self.window
        return (height - 1) * down * width + (length - 1) * right


class AvgPoolSite(PassingSite):
    function = _AvgPool

    def __init__(self, target: Callable[..., Any], arguments: tuple[Any, ...], inplace: bool) -> None:
        super().__init__(target, arguments, inplace)
        self.window = (*_window(arguments, average=True)[:3], *arguments[3:5], *[False, True][len(arguments[3:5]) :])
        self.divisor = arguments[5] if len(arguments) > 5 else None


class AdaptiveAvgPoolSite(PassingSite):
    function = _AdaptiveAvgPool

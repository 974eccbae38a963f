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
from torch.autograd.function import once_differentiable

from medyate_planner.training.masks import apply_mask, pack_between

_aten = torch.ops.aten


class PassingSite(nn.Module):
    """One call of an operator in the reach that trains nothing itself; `arguments` are its literals after x."""

    function: type[torch.autograd.Function]

    def __init__(self, target: Callable[..., Any], arguments: tuple[Any, ...], inplace: bool) -> None:
        super().__init__()
        self.target, self.arguments, self.inplace = target, arguments, inplace

    def forward(self, x: Tensor, *frozen: Tensor) -> Tensor:
        """The original operator."""
        result: Tensor = self.function.apply(x, self, *frozen)  # type: ignore[no-untyped-call]
        return result

    def call(self, x: Tensor, *frozen: Tensor) -> Any:
        return self.target(x, *frozen, *self.arguments)


class _Masked(torch.autograd.Function):
    """An operator whose derivative takes two values, told apart by one bit: is the input between `site.bounds`?"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: MaskedSite) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(pack_between(x, *site.bounds))
        if site.inplace:
            ctx.mark_dirty(x)
        result: Tensor = site.call(x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        inside, outside = ctx.site.slopes
        return apply_mask(gradient, ctx.saved_tensors[0], inside=inside, outside=outside), None


class _Dropout(torch.autograd.Function):
    """Draws the same numbers as the original, keeps one bit per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite) -> Tensor:
        probability = float(site.arguments[0])
        noise = torch.empty_like(x).bernoulli_(1 - probability)
        ctx.save_for_backward(pack_between(noise, 0.0, math.inf))
        ctx.scale = 1.0 / (1.0 - probability) if probability < 1 else 0.0
        return x * noise.div_(1 - probability)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return apply_mask(gradient, ctx.saved_tensors[0], inside=ctx.scale), None


class _BatchNorm(torch.autograd.Function):
    """Frozen: y = (x - mean) * rstd * weight + bias with constants, so only parameters and buffers are needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite, *frozen: Tensor | None) -> Tensor:
        ctx.frozen, ctx.epsilon = frozen, float(site.arguments[2])
        result: Tensor = site.call(x, *frozen)  # type: ignore[arg-type]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, _, _, variance = ctx.frozen
        below = batch_norm_input_gradient(gradient, weight, variance, ctx.epsilon)
        return below, None, None, None, None, None


def batch_norm_input_gradient(gradient: Tensor, weight: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """Gradient of a frozen BatchNorm's input: that of its result times weight and 1 / deviation, `(B, C, *)`."""
    scale = (variance + epsilon).rsqrt_()
    if weight is not None:
        scale = scale * weight
    return gradient * scale.to(gradient.dtype).view([1, -1, *[1] * (gradient.dim() - 2)])


class _MaxPool(torch.autograd.Function):
    """Keeps one byte per output element: where in its window the maximum was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite) -> Tensor:
        kernel, stride, padding, dilation, _ = ctx.window = _window(site)
        values, index = _aten.max_pool2d_with_indices.default(x, *ctx.window)
        ctx.shape, ctx.layout = x.shape, memory_format(x)
        rows, columns = _window_origins(values.shape, stride, padding, x.device)
        offset = index.div(x.shape[3], rounding_mode="floor").sub_(rows)
        offset.div_(dilation[0], rounding_mode="floor").mul_(kernel[1])
        offset.add_(index.remainder_(x.shape[3]).sub_(columns).div_(dilation[1], rounding_mode="floor"))
        ctx.save_for_backward(offset.to(torch.uint8, memory_format=ctx.layout))
        result: Tensor = values
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        kernel, stride, padding, dilation, _ = ctx.window
        batch, channels, height, width = ctx.shape
        rows, columns = _window_origins(gradient.shape, stride, padding, gradient.device)
        column = ctx.saved_tensors[0].long()
        index = column.div(kernel[1], rounding_mode="floor").mul_(dilation[0]).add_(rows).mul_(width)
        index.add_(column.remainder_(kernel[1]).mul_(dilation[1])).add_(columns)
        del column
        if ctx.layout == torch.channels_last:  # (B, positions, C): nothing has to be copied into another order
            below = gradient.new_zeros(batch, height * width, channels)
            places = index.permute(0, 2, 3, 1).reshape(batch, -1, channels)
            below.scatter_add_(1, places, gradient.permute(0, 2, 3, 1).reshape(batch, -1, channels))
            return below.view(batch, height, width, channels).permute(0, 3, 1, 2), None
        below = gradient.new_zeros(batch, channels, height * width)
        below.scatter_add_(2, index.view(batch, channels, -1), gradient.reshape(batch, channels, -1))
        return below.view(ctx.shape), None


class _AvgPool(torch.autograd.Function):
    """The backward needs the shape of the input, not the input that PyTorch keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite) -> Tensor:
        ctx.shape = x.shape
        window = _window(site, average=True)
        ctx.window = (*window[:3], *site.arguments[3:5], *[False, True][len(site.arguments[3:5]) :])
        ctx.divisor = site.arguments[5] if len(site.arguments) > 5 else None
        result: Tensor = site.call(x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        shape_only = gradient.new_empty(()).expand(ctx.shape)
        result: Tensor = _aten.avg_pool2d_backward.default(gradient, shape_only, *ctx.window, ctx.divisor)
        return result, None


class _AdaptiveAvgPool(torch.autograd.Function):
    """As `_AvgPool`; to 1x1 it is a mean over the positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: PassingSite) -> Tensor:
        ctx.shape, ctx.layout = x.shape, memory_format(x)
        result: Tensor = site.call(x)
        return result

    @staticmethod
    @once_differentiable
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


def _window(site: PassingSite, *, average: bool = False) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Kernel, stride, padding, dilation and ceil_mode of a pooling call, defaults filled in."""
    given = list(site.arguments)
    kernel = _pair(given[0])
    stride = _pair(given[1]) if len(given) > 1 and given[1] else kernel
    padding = _pair(given[2]) if len(given) > 2 else [0, 0]
    dilation = _pair(given[3]) if len(given) > 3 and not average else [1, 1]
    return kernel, stride, padding, dilation, bool(given[4]) if len(given) > 4 and not average else False


def _window_origins(
    shape: torch.Size, stride: list[int], padding: list[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """First row of each output row's window, `(H', 1)`, and first column of each output column's, `(W',)`."""
    rows = torch.arange(shape[2], device=device).mul_(stride[0]).sub_(padding[0]).unsqueeze(1)
    return rows, torch.arange(shape[3], device=device).mul_(stride[1]).sub_(padding[1])


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last for an image batch that is stored so and only so, else contiguous."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class MaskedSite(PassingSite):
    """`slopes` is the derivative inside and outside the open interval `bounds` of the input."""

    function = _Masked
    slopes: tuple[float, float] = (1.0, 0.0)

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, math.inf


class ReluSite(MaskedSite):
    pass


class ClampSite(MaskedSite):
    @property
    def bounds(self) -> tuple[float, float]:
        if "relu6" in str(self.target):
            return 0.0, 6.0
        low, high = (*self.arguments, *(-1.0, 1.0)[len(self.arguments) :])[:2]
        return float(low), float(high)


class LeakyReluSite(MaskedSite):
    def __init__(self, target: Callable[..., Any], arguments: tuple[Any, ...], inplace: bool) -> None:
        super().__init__(target, arguments, inplace)
        self.slopes = (1.0, float(arguments[0]) if arguments else 0.01)


class HardSigmoidSite(MaskedSite):
    slopes = (1.0 / 6.0, 0.0)

    @property
    def bounds(self) -> tuple[float, float]:
        return -3.0, 3.0


class DropoutSite(PassingSite):
    function = _Dropout


class BatchNormSite(PassingSite):
    function = _BatchNorm


class MaxPoolSite(PassingSite):
    function = _MaxPool


class AvgPoolSite(PassingSite):
    function = _AvgPool


class AdaptiveAvgPoolSite(PassingSite):
    function = _AdaptiveAvgPool

"""Lean convolution and linear layers.

Frozen: keep nothing; the gradient of the input needs the weight and the shape alone. Selected: keep a compact copy
x[:, idx] and compute the gradient of the selected slice only. The forward calls the same ATen kernel as the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medyate_planner.training.slots import Slot

_aten = torch.ops.aten


class ConvSite(nn.Module):
    """One call of a convolution in the reach; `slot` is set when its layer is updated."""

    def __init__(self, target: Any, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> None:
        super().__init__()
        self.target = target
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.slot: Slot | None = None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The original convolution, `(N, C, *)` to `(N, C', *)`."""
        trained = () if self.slot is None else self.slot.trained
        result: Tensor = _Conv.apply(x, weight, bias, self, *trained)  # type: ignore[no-untyped-call]
        return result

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = self.target(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return result

    def is_pointwise(self, weight: Tensor) -> bool:
        """A 1x1 convolution, which is a matrix product over positions."""
        return (
            not isinstance(self, TransposedSite)
            and weight.dim() == 4
            and weight.shape[2:] == (1, 1)
            and self.groups == 1
            and set(self.stride) == {1}
            and set(self.padding) == {0}
        )


class LinearSite(nn.Module):
    """One call of a linear layer in the reach; any leading dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.slot: Slot | None = None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The original linear layer, `(*, in)` to `(*, out)`."""
        trained = () if self.slot is None else self.slot.trained
        result: Tensor = _Linear.apply(x, weight, bias, self, *trained)  # type: ignore[no-untyped-call]
        return result


class AddmmSite(nn.Module):
    """One call of a linear layer whose weight is `(in, out)`, on `(positions, in)`."""

    def __init__(self) -> None:
        super().__init__()
        self.slot: Slot | None = None

    def forward(self, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The original product, `(positions, in)` to `(positions, out)`."""
        trained = () if self.slot is None else self.slot.trained
        result: Tensor = _Addmm.apply(x, weight, bias, self, *trained)  # type: ignore[no-untyped-call]
        return result


class TransposedSite(ConvSite):
    """One call of a transposed convolution, of one group or of as many as input channels."""

    def __init__(self, target: Any, arguments: tuple[list[int], list[int], list[int], int, list[int]]) -> None:
        stride, padding, output_padding, groups, dilation = arguments
        super().__init__(target, stride, padding, dilation, groups)
        self.output_padding = output_padding

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = self.target(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return result


class EmbeddingSite(nn.Module):
    """One call of an embedding whose layer is updated; `arguments` are its literals after the indices."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.padding = int(arguments[0]) if arguments else -1
        self.slot: Slot | None = None

    def forward(self, weight: Tensor, indices: Tensor) -> Tensor:
        """The original embedding, `(*)` to `(*, D)`."""
        assert self.slot is not None
        result: Tensor = _Embedding.apply(weight, indices, self, *self.slot.trained)  # type: ignore[no-untyped-call]
        return result


class _Embedding(torch.autograd.Function):
    """Keeps the indices, as PyTorch does; the gradient is that of the selected feature dimensions alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor, site: EmbeddingSite, *_trained: Tensor) -> Tensor:
        ctx.site, ctx.rows = site, weight.shape[0]
        assert site.slot is not None
        ctx.version = site.slot.version()
        ctx.save_for_backward(indices)
        result: Tensor = _aten.embedding.default(weight, indices, site.padding)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        site, slot = ctx.site, ctx.site.slot
        slot.check(ctx.version)
        if slot.index is not None:
            gradient = gradient.index_select(gradient.dim() - 1, slot.index)
        indices = ctx.saved_tensors[0]
        of_weight, _, *of_trained = slot.receive(
            _aten.embedding_dense_backward.default(gradient, indices, ctx.rows, site.padding, False), None
        )
        return of_weight, None, None, *of_trained


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, site: ConvSite, *_trained: Tensor) -> Tensor:
        ctx.site, ctx.weight, ctx.shape = site, weight, x.shape
        slot = site.slot
        if slot is not None:
            ctx.version = slot.version()
            if slot.trains_weight:
                ctx.save_for_backward(slot.keep(_compact_channels(x, slot)))
        return site.call(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        site, weight = ctx.site, ctx.weight
        below = _conv_input_gradient(site, gradient, weight, ctx.shape) if ctx.needs_input_grad[0] else None
        slot = site.slot
        if slot is None:
            return below, None, None, None
        slot.check(ctx.version)
        of_weight, of_bias, *of_trained = slot.receive(
            _conv_weight_gradient(site, slot, gradient, ctx.shape, *ctx.saved_tensors) if slot.trains_weight else None,
            gradient.sum(dim=[d for d in range(gradient.dim()) if d != 1]) if slot.bias is not None else None,
        )
        return below, of_weight, of_bias, None, *of_trained


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, site: LinearSite, *_trained: Tensor
    ) -> Tensor:
        ctx.site, ctx.weight, ctx.shape = site, weight, x.shape
        slot = site.slot
        if slot is not None:
            ctx.version = slot.version()
            if slot.trains_weight:
                ctx.save_for_backward(slot.keep(_compact_features(x, slot)))
        result: Tensor = _aten.linear.default(x, weight, bias)
        if result.dim() > 2:  # made through a view, which nothing could then change in place
            result = _aten._unsafe_view.default(result, result.shape)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, slot = ctx.weight, ctx.site.slot
        rows = gradient.reshape(-1, gradient.shape[-1])
        below = (rows @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        if slot is None:
            return below, None, None, None
        slot.check(ctx.version)
        of_weight, of_bias, *of_trained = slot.receive(
            rows.t() @ ctx.saved_tensors[0] if slot.trains_weight else None,
            rows.sum(dim=0) if slot.bias is not None else None,
        )
        return below, of_weight, of_bias, None, *of_trained


class _Addmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, site: AddmmSite, *_trained: Tensor) -> Tensor:
        ctx.site, ctx.weight = site, weight
        slot = site.slot
        if slot is not None:
            ctx.version = slot.version()
            if slot.trains_weight:
                ctx.save_for_backward(slot.keep(_compact_features(x, slot)))
        result: Tensor = _aten.addmm.default(bias, x, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, slot = ctx.weight, ctx.site.slot
        below = gradient @ weight.t() if ctx.needs_input_grad[0] else None
        if slot is None:
            return below, None, None, None
        slot.check(ctx.version)
        of_weight, of_bias, *of_trained = slot.receive(
            ctx.saved_tensors[0].t() @ gradient if slot.trains_weight else None,
            gradient.sum(dim=0) if slot.bias is not None else None,
        )
        return below, of_weight, of_bias, None, *of_trained


def _compact_features(x: Tensor, slot: Slot) -> Tensor:
    """`(positions, n)`: the selected features of every position, in storage of their own."""
    rows = x.reshape(-1, x.shape[-1])
    if slot.index is None:
        return rows.clone(memory_format=torch.contiguous_format)
    return rows.index_select(1, slot.index)


def _compact_channels(x: Tensor, slot: Slot) -> Tensor:
    """The selected channels in storage of their own: `(B * H * W, n)` if x is channels_last, else `(B, n, *)`."""
    if _is_channels_last(x):
        return _compact_features(x.permute(0, 2, 3, 1), slot)
    if slot.index is None:
        return x.clone(memory_format=torch.contiguous_format)
    return x.index_select(1, slot.index)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _conv_input_gradient(site: ConvSite, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """The transposed convolution: needs neither the input nor a dummy of its size."""
    if isinstance(site, TransposedSite):
        down: Tensor = _aten.convolution.default(
            gradient, weight, None, site.stride, site.padding, site.dilation, False, [0] * len(site.stride), site.groups
        )
        return down
    if site.is_pointwise(weight) and _is_channels_last(gradient):
        batch, channels, height, width = shape
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0]) @ weight.view(weight.shape[:2])
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    output_padding = [
        size - ((out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
        for size, out, kernel, stride, pad, dilation in zip(
            shape[2:],
            gradient.shape[2:],
            weight.shape[2:],
            site.stride,
            site.padding,
            site.dilation,
            strict=True,
        )
    ]
    result: Tensor = _aten.convolution.default(
        gradient, weight, None, site.stride, site.padding, site.dilation, True, output_padding, site.groups
    )
    return result


def _conv_weight_gradient(site: ConvSite, slot: Slot, gradient: Tensor, shape: torch.Size, saved: Tensor) -> Tensor:
    """Gradient of the selected slice, in the form that the slot applies.

    `(C_out, n, *k)` ungrouped, `(rows, 1, *k)` depthwise, `(rows, *k)` grouped. A grouped convolution is treated as
    one group per selected channel, so that only the rows a channel owns are computed.
    """
    weight = slot.weight
    if site.is_pointwise(weight) and saved.dim() == 2 and _is_channels_last(gradient):
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
        return (rows.t() @ saved).view(weight.shape[0], -1, 1, 1)
    if saved.dim() == 2:
        batch, _, height, width = shape
        saved = saved.view(batch, height, width, -1).permute(0, 3, 1, 2)
    if isinstance(site, TransposedSite):
        return _transposed_slice_gradient(site, slot, gradient, saved)
    if slot.index is None:
        return _slice_gradient(site, gradient, saved, tuple(weight.shape), site.groups)
    if site.groups == 1:
        return _slice_gradient(site, gradient, saved, (weight.shape[0], saved.shape[1], *weight.shape[2:]), 1)
    rows_gradient = gradient.index_select(1, slot.rows())
    slice_shape = (rows_gradient.shape[1], 1, *weight.shape[2:])
    sliced = _slice_gradient(site, rows_gradient, saved, slice_shape, saved.shape[1])
    return sliced if slot.layer.kind == "depthwise" else sliced.squeeze(1)


def _transposed_slice_gradient(site: TransposedSite, slot: Slot, gradient: Tensor, saved: Tensor) -> Tensor:
    """`(n, C_out/G, *k)`: the rows of the selected channels; as many groups as channels if there is one for each."""
    groups = site.groups
    if groups > 1 and slot.index is not None:
        gradient, groups = gradient.index_select(1, slot.rows()), saved.shape[1]
    dummy = gradient.new_empty(()).expand(saved.shape[1], *slot.weight.shape[1:])
    result: Tensor = _aten.convolution_backward.default(
        gradient, saved, dummy, None, site.stride, site.padding, site.dilation, True, site.output_padding, groups,
        [False, True, False],
    )[1]  # fmt: skip
    return result


def _slice_gradient(site: ConvSite, gradient: Tensor, x: Tensor, shape: tuple[int, ...], groups: int) -> Tensor:
    stride = site.stride
    if set(shape[2:]) == {1} and set(site.padding) == {0} and set(stride) != {1}:
        # Reads every s-th position only. With few channels oneDNN (torch 2.13) crashes on it (1x1, stride 2).
        steps = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(gradient.shape[2:], stride, strict=True))
        index = (slice(None), slice(None), *steps)
        x, stride = x[index], [1] * len(stride)
    dummy = gradient.new_empty(()).expand(shape)
    result: Tensor = _aten.convolution_backward.default(
        gradient, x, dummy, None, stride, site.padding, site.dilation, False, [0] * len(stride), groups,
        [False, True, False],
    )[1]  # fmt: skip
    return result

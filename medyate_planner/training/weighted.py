"""Lean convolution and linear layers.

Frozen: keep nothing; the gradient of the input needs the weight and the shape alone. Selected: keep a compact copy
x[:, idx] and compute the gradient of the selected slice only. The forward calls the same ATen kernel as the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medyate_planner.training.functions import backward_once, direct
from medyate_planner.training.layout import as_image, as_rows, is_channels_last
from medyate_planner.training.masks import clear_outside_, pack_between
from medyate_planner.training.passing import MaskedSite
from medyate_planner.training.slots import Slot
from medyate_planner.training.straight import called_directly

_aten = torch.ops.aten
_convolution_backward = _aten.convolution_backward.default


class ConvSite(nn.Module):
    """One call of a convolution in the reach; `slot` is set when its layer is updated."""

    transposed = False

    def __init__(
        self,
        target: Any,
        kernel: tuple[int, ...],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        super().__init__()
        self.target = called_directly(target)
        self.kernel, self.stride, self.padding, self.dilation, self.groups = kernel, stride, padding, dilation, groups
        # a 1x1 convolution is a matrix product over positions
        plain = groups == 1 and set(stride) == {1} and set(padding) == {0}
        self.pointwise = not self.transposed and kernel == (1, 1) and plain
        self.slot: Slot | None = None
        self.cast: torch.dtype | None = None  # that autocast computes with, of weight and bias
        self.activation: MaskedSite | None = None  # that is applied to the input first, in place
        self.arguments: tuple[Any, ...] = (stride, padding, dilation, groups)
        self._added: dict[tuple[torch.Size, torch.Size], list[int]] = {}

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The original convolution, `(N, C, *)` to `(N, C', *)`."""
        trained = () if self.slot is None else self.slot.trained
        result: Tensor = _Conv.apply(x, (weight, bias), self, *trained)  # type: ignore[no-untyped-call]
        return result

    def uncompiled(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As `forward`, in a step that is not compiled."""
        slot = self.slot
        result: Tensor = _apply_conv(x, (weight, bias), self, *(() if slot is None else slot.trained))
        return result

    def output_padding(self, shape: torch.Size, out: torch.Size) -> list[int]:
        """What the transposed convolution adds to come back from `out` to `shape`; worked out once for each pair."""
        found = self._added.get((shape, out))
        if found is None:
            sizes = zip(shape[2:], out[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
            found = self._added[shape, out] = [
                size - ((result - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
                for size, result, kernel, stride, pad, dilation in sizes
            ]
        return found


class LinearSite(nn.Module):
    """One call of a linear layer in the reach; any leading dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.slot: Slot | None = None
        self.cast: torch.dtype | None = None

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
        self.cast: torch.dtype | None = None

    def forward(self, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The original product, `(positions, in)` to `(positions, out)`."""
        trained = () if self.slot is None else self.slot.trained
        result: Tensor = _Addmm.apply(x, weight, bias, self, *trained)  # type: ignore[no-untyped-call]
        return result


class TransposedSite(ConvSite):
    """One call of a transposed convolution, of one group or of as many as input channels."""

    transposed = True

    def __init__(
        self, target: Any, kernel: tuple[int, ...], arguments: tuple[list[int], list[int], list[int], int, list[int]]
    ) -> None:
        stride, padding, added, groups, dilation = arguments
        super().__init__(target, kernel, stride, padding, dilation, groups)
        self.added = added
        self.arguments = (stride, padding, added, groups, dilation)


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
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        site, slot = ctx.site, ctx.site.slot
        slot.check(ctx.version)
        if slot.index is not None:
            gradient = gradient.index_select(gradient.dim() - 1, slot.index)
        indices = ctx.saved_tensors[0]
        own = _aten.embedding_dense_backward.default(gradient, indices, ctx.rows, site.padding, False)
        return None, None, None, *slot.receive(own, None)


class _Conv(torch.autograd.Function):
    """Hot: what a call needs again stands in one attribute, and nothing is asked twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: tuple[Tensor, Tensor | None], site: ConvSite, *_trained: Tensor) -> Tensor:
        weight, bias = own  # in a tuple, past autograd
        slot, activation, last = site.slot, site.activation, is_channels_last(x)
        version = None if slot is None else slot.version()
        ctx.called = site, slot, weight, x.shape, last, version
        kept: tuple[Tensor, ...] = ()
        if activation is not None:
            order = torch.channels_last if last else torch.contiguous_format
            kept = (pack_between(x, *activation.bounds, order),)
            x = activation.target(x, *activation.arguments)
        if slot is not None and slot.quota:
            kept = (slot.keep(_compact_channels(x, slot, last=last)), *kept)
        if kept:
            ctx.save_for_backward(*kept)
        if site.cast is not None:
            weight, bias = _cast(weight, bias, site.cast)
        result: Tensor = site.target(x, weight, bias, *site.arguments)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        site, slot, weight, shape, last, version = ctx.called
        kept: tuple[Tensor, ...] = ctx.saved_tensors
        if site.cast is not None:
            weight = weight.to(site.cast)
        rows = as_rows(gradient) if site.pointwise and is_channels_last(gradient) else None
        below = own = None
        if ctx.needs_input_grad[0]:
            below = (
                _conv_input_gradient(site, gradient, weight, shape)
                if rows is None
                else as_image(torch.mm(rows, weight.view(weight.shape[:2])), shape)
            )
        of_trained: tuple[Tensor | None, ...] = ()
        if slot is not None:
            slot.check(version)
            if slot.quota:
                own = (
                    _conv_weight_gradient(site, slot, weight, gradient, shape, kept[0])
                    if rows is None or kept[0].dim() != 2
                    else torch.mm(rows.t(), kept[0]).view(weight.shape[0], -1, 1, 1)
                )
                if site.cast is not None:
                    own = own.to(slot.weight.dtype)
            of_trained = slot.receive(own, None if slot.bias is None else _over_channels(gradient, slot.bias.dtype))
            del own
        if below is not None and site.activation is not None:  # a tensor that nobody else has yet
            clear_outside_(below, kept[-1], torch.channels_last if last else torch.contiguous_format)
        return below, None, None, *of_trained


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
        if site.cast is not None:
            weight, bias = _cast(weight, bias, site.cast)
        result: Tensor = _aten.linear.default(x, weight, bias)
        if result.dim() > 2:  # made through a view, which nothing could then change in place
            result = _aten._unsafe_view.default(result, result.shape)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        site, weight, slot = ctx.site, ctx.weight, ctx.site.slot
        if site.cast is not None:
            weight = weight.to(site.cast)
        rows = gradient.reshape(-1, gradient.shape[-1])
        below = (rows @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        if slot is None:
            return below, None, None, None
        slot.check(ctx.version)
        of_trained = slot.receive(
            (rows.t() @ ctx.saved_tensors[0]).to(slot.weight.dtype) if slot.trains_weight else None,
            None if slot.bias is None else rows.sum(dim=0, dtype=slot.bias.dtype),
        )
        return below, None, None, None, *of_trained


class _Addmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, site: AddmmSite, *_trained: Tensor) -> Tensor:
        ctx.site, ctx.weight = site, weight
        slot = site.slot
        if slot is not None:
            ctx.version = slot.version()
            if slot.trains_weight:
                ctx.save_for_backward(slot.keep(_compact_features(x, slot)))
        if site.cast is not None:
            weight, bias = _cast(weight, bias, site.cast)
        result: Tensor = _aten.addmm.default(bias, x, weight)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        site, weight, slot = ctx.site, ctx.weight, ctx.site.slot
        if site.cast is not None:
            weight = weight.to(site.cast)
        below = gradient @ weight.t() if ctx.needs_input_grad[0] else None
        if slot is None:
            return below, None, None, None
        slot.check(ctx.version)
        of_trained = slot.receive(
            (ctx.saved_tensors[0].t() @ gradient).to(slot.weight.dtype) if slot.trains_weight else None,
            None if slot.bias is None else gradient.sum(dim=0, dtype=slot.bias.dtype),
        )
        return below, None, None, None, *of_trained


def _cast(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """As autocast does: for this call alone. What is kept for backward is the parameter, which is there anyway."""
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _compact_features(x: Tensor, slot: Slot) -> Tensor:
    """`(positions, n)`: the selected features of every position, in storage of their own."""
    rows = x.reshape(-1, x.shape[-1])
    if slot.index is None:
        return rows.clone(memory_format=torch.contiguous_format)
    return rows.index_select(1, slot.index)


def _compact_channels(x: Tensor, slot: Slot, *, last: bool) -> Tensor:
    """The selected channels in storage of their own: `(B * H * W, n)` if x is channels_last, else `(B, n, *)`."""
    if last:
        rows = as_rows(x)
        return rows.clone() if slot.index is None else rows.index_select(1, slot.index)
    if slot.index is None:
        return x.clone(memory_format=torch.contiguous_format)
    return x.index_select(1, slot.index)


def _over_channels(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over everything but channels, `(C,)`."""
    return gradient.sum(dim=[d for d in range(gradient.dim()) if d != 1], dtype=dtype)


def _conv_input_gradient(site: ConvSite, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """The transposed convolution: needs neither the input nor a dummy of its size."""
    added = [0] * len(site.stride) if site.transposed else site.output_padding(shape, gradient.shape)
    return torch.convolution(
        gradient, weight, None, site.stride, site.padding, site.dilation, not site.transposed, added, site.groups
    )


def _conv_weight_gradient(
    site: ConvSite, slot: Slot, weight: Tensor, gradient: Tensor, shape: torch.Size, saved: Tensor
) -> Tensor:
    """Gradient of the selected slice, in the form that the slot applies.

    `(C_out, n, *k)` ungrouped, `(rows, 1, *k)` depthwise, `(rows, *k)` grouped. A grouped convolution is treated as
    one group per selected channel, so that only the rows a channel owns are computed.
    """
    if saved.dim() == 2:
        saved = as_image(saved, shape)
    if isinstance(site, TransposedSite):
        return _transposed_slice_gradient(site, slot, weight, gradient, saved)
    if slot.index is None:
        return _slice_gradient(site, weight, gradient, saved, tuple(weight.shape), site.groups)
    if site.groups == 1:
        return _slice_gradient(site, weight, gradient, saved, (weight.shape[0], saved.shape[1], *weight.shape[2:]), 1)
    rows_gradient = _owned_rows(gradient, slot)
    slice_shape = (rows_gradient.shape[1], 1, *weight.shape[2:])
    sliced = _slice_gradient(site, weight, rows_gradient, saved, slice_shape, saved.shape[1])
    return sliced if slot.layer.kind == "depthwise" else sliced.squeeze(1)


def _owned_rows(gradient: Tensor, slot: Slot) -> Tensor:
    """The output channels that the selected channels own, `(B, rows, *)`, in the gradient's memory format."""
    if not is_channels_last(gradient):
        return gradient.index_select(1, slot.rows())
    return as_image(as_rows(gradient).index_select(1, slot.rows()), gradient.shape)


def _transposed_slice_gradient(
    site: TransposedSite, slot: Slot, weight: Tensor, gradient: Tensor, saved: Tensor
) -> Tensor:
    """`(n, C_out/G, *k)`: the rows of the selected channels; as many groups as channels if there is one for each."""
    groups = site.groups
    if groups > 1 and slot.index is not None:
        gradient, groups = _owned_rows(gradient, slot), saved.shape[1]
    weight = _stand_in(weight, (saved.shape[1], *weight.shape[1:]))
    result: Tensor = _convolution_backward(
        gradient, saved, weight, None, site.stride, site.padding, site.dilation, True, site.added, groups,
        [False, True, False],
    )[1]  # fmt: skip
    return result


def _slice_gradient(
    site: ConvSite, weight: Tensor, gradient: Tensor, x: Tensor, shape: tuple[int, ...], groups: int
) -> Tensor:
    stride = site.stride
    if set(shape[2:]) == {1} and set(site.padding) == {0} and set(stride) != {1}:
        # Reads every s-th position only. With few channels oneDNN (torch 2.13) crashes on it (1x1, stride 2).
        steps = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(gradient.shape[2:], stride, strict=True))
        index = (slice(None), slice(None), *steps)
        x, stride = x[index], [1] * len(stride)
    result: Tensor = _convolution_backward(
        gradient, x, _stand_in(weight, shape), None, stride, site.padding, site.dilation, False, [0] * len(stride),
        groups, [False, True, False],
    )[1]  # fmt: skip
    return result


def _stand_in(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A weight of this shape, of whose values nothing depends: memory that is there anyway, so that no kernel copies
    an expanded scalar into its own."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * shape[axis]
    return weight.as_strided(shape, strides)


_apply_conv = direct(_Conv)

"""Norms of which the scale, by channels, or the bias is trained.

Each forward calls the same ATen kernel as the original. Kept for the scale: a compact copy of the normalised input's
selected channels. Kept for the gradient of the input, if that needs one: what PyTorch keeps, of a frozen BatchNorm
nothing. A norm that trains nothing itself stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medyate_planner.training.functions import backward_once
from medyate_planner.training.layout import memory_format
from medyate_planner.training.passing import batch_norm_input_gradient
from medyate_planner.training.slots import Slot

_aten = torch.ops.aten
Constants = Sequence[Tensor | None]


class NormSite(nn.Module):
    """One call of a norm; `arguments` are its literals after x, channels run along `axis` of x."""

    axis = 1
    keeps_input = True

    def __init__(self, target: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.target, self.arguments = target, arguments
        self.slot: Slot | None = None

    def forward(self, x: Tensor, *constants: Tensor | None) -> Tensor:
        """The original norm; `constants` are its parameters and buffers, its scale and its shift first."""
        assert self.slot is not None
        result: Tensor = _Norm.apply(x, self, len(constants), *constants, *self.slot.trained)  # type: ignore[no-untyped-call]
        return result

    def run(self, x: Tensor, constants: Constants) -> tuple[Tensor, list[Tensor]]:
        """The result, and the statistics that x was normalised with."""
        raise NotImplementedError

    def keeps(self, x: Tensor, statistics: list[Tensor]) -> list[Tensor]:
        """What the gradient of the input needs, parameters and buffers aside."""
        return [x, *statistics]

    def normalise(self, part: Tensor, statistics: list[Tensor]) -> Tensor:
        """Turn the selected channels of x into those of the normalised x, in place."""
        raise NotImplementedError

    def input_gradient(self, gradient: Tensor, kept: Sequence[Tensor], constants: Constants) -> Tensor:
        """Gradient of x from that of the result and what `keeps` gave."""
        raise NotImplementedError

    def along_channels(self, values: Tensor, like: Tensor) -> Tensor:
        """View `(n,)`, or `(B, n)`, as a factor of a tensor with n channels."""
        lead = values.shape if values.dim() == 2 else (1, *values.shape)
        return values.view(*lead, *[1] * (like.dim() - 2))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, site: NormSite, count: int, *rest: Tensor | None) -> Tensor:
        slot = site.slot
        assert slot is not None
        ctx.site, ctx.constants, ctx.version = site, rest[:count], slot.version()
        result, statistics = site.run(x, ctx.constants)
        kept = site.keeps(x, statistics) if site.keeps_input and ctx.needs_input_grad[0] else []
        if slot.trains_weight:
            part = _selected(x, slot, site.axis)
            kept.append(slot.keep(site.normalise(part, statistics)))
        ctx.save_for_backward(*kept)
        return result

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        site, slot = ctx.site, ctx.site.slot
        kept = list(ctx.saved_tensors)
        normalised = kept.pop() if slot.trains_weight else None
        below = site.input_gradient(gradient, kept, ctx.constants) if ctx.needs_input_grad[0] else None
        slot.check(ctx.version)
        of_trained = slot.receive(
            _scale_gradient(gradient, normalised, slot, site.axis) if normalised is not None else None,
            _sum_but(gradient, site.axis, slot.bias.dtype) if slot.bias is not None else None,
        )
        return below, None, None, *[None] * len(ctx.constants), *of_trained


def _scale_gradient(gradient: Tensor, normalised: Tensor, slot: Slot, axis: int) -> Tensor:
    """`(n,)`: the sum of gradient times normalised input over everything but channels."""
    return _sum_but(_selected(gradient, slot, axis).mul_(normalised), axis, slot.weight.dtype)


def _sum_but(x: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    return x.sum(dim=[d for d in range(x.dim()) if d != axis % x.dim()], dtype=dtype)


def _selected(x: Tensor, slot: Slot, axis: int) -> Tensor:
    """The selected channels in storage of their own, in the memory format of x."""
    if slot.index is None:
        return x.clone()
    if axis == 1 and memory_format(x) == torch.channels_last:
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels).index_select(1, slot.index)
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)
    return x.index_select(axis % x.dim(), slot.index)


def _own_of(values: Tensor, slot: Slot) -> Tensor:
    """Those of `(C,)` that belong to the selected channels, in storage of their own, in float32 or wider."""
    own = values.clone() if slot.index is None else values.index_select(0, slot.index)
    return own.to(torch.promote_types(own.dtype, torch.float32))


class BatchNormSite(NormSite):
    """Evaluation mode: the statistics are constants, so the gradient of the input needs nothing that is not there."""

    keeps_input = False

    def run(self, x: Tensor, constants: Constants) -> tuple[Tensor, list[Tensor]]:
        _, _, mean, variance = constants
        assert mean is not None
        assert variance is not None
        return self.target(x, *constants, *self.arguments), [mean, variance]

    def normalise(self, part: Tensor, statistics: list[Tensor]) -> Tensor:
        mean, variance = statistics
        assert self.slot is not None
        part.sub_(self.along_channels(_own_of(mean, self.slot), part))
        scale = _own_of(variance, self.slot).add_(float(self.arguments[2])).rsqrt_()
        return part.mul_(self.along_channels(scale, part))

    def input_gradient(self, gradient: Tensor, _kept: Sequence[Tensor], constants: Constants) -> Tensor:
        weight, _, _, variance = constants
        assert variance is not None
        return batch_norm_input_gradient(gradient, weight, variance, float(self.arguments[2]))


class TrainingBatchNormSite(NormSite):
    """Training mode: statistics of the batch; the stored ones are brought up to date."""

    def run(self, x: Tensor, constants: Constants) -> tuple[Tensor, list[Tensor]]:
        _, momentum, epsilon, *_ = self.arguments
        result, *statistics = _aten.native_batch_norm.default(x, *constants, True, momentum, epsilon)
        return result, statistics

    def normalise(self, part: Tensor, statistics: list[Tensor]) -> Tensor:
        assert self.slot is not None
        mean, scale = (self.along_channels(_own_of(values, self.slot), part) for values in statistics)
        return part.sub_(mean).mul_(scale)

    def input_gradient(self, gradient: Tensor, kept: Sequence[Tensor], constants: Constants) -> Tensor:
        x, mean, scale = kept
        weight, _, stored_mean, stored_variance = constants
        result: Tensor = _aten.native_batch_norm_backward.default(
            gradient, x, weight, stored_mean, stored_variance, mean, scale, True, float(self.arguments[2]),
            [True, False, False],
        )[0]  # fmt: skip
        return result


class LayerNormSite(NormSite):
    """Channels are the last dimension."""

    axis = -1

    def __init__(self, target: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__(target, arguments)
        self.shape, self.epsilon = list(arguments[0]), float(arguments[1]) if len(arguments) > 1 else 1e-5

    def run(self, x: Tensor, constants: Constants) -> tuple[Tensor, list[Tensor]]:
        result, *statistics = _aten.native_layer_norm.default(x, self.shape, *constants, self.epsilon)
        return result, statistics

    def normalise(self, part: Tensor, statistics: list[Tensor]) -> Tensor:
        mean, scale = statistics
        return part.sub_(mean).mul_(scale)

    def input_gradient(self, gradient: Tensor, kept: Sequence[Tensor], constants: Constants) -> Tensor:
        x, mean, scale = kept
        result: Tensor = _aten.native_layer_norm_backward.default(
            gradient, x, self.shape, mean, scale, *constants, [True, False, False]
        )[0]
        return result


class GroupNormSite(NormSite):
    """Statistics belong to a sample and a group of neighbouring channels."""

    def __init__(self, target: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__(target, arguments)
        self.groups, self.epsilon = int(arguments[0]), float(arguments[1]) if len(arguments) > 1 else 1e-5

    def run(self, x: Tensor, constants: Constants) -> tuple[Tensor, list[Tensor]]:
        sizes = self._sizes(x)
        result, *statistics = _aten.native_group_norm.default(_plain(x, x), *constants, *sizes, self.epsilon)
        return result, statistics

    def normalise(self, part: Tensor, statistics: list[Tensor]) -> Tensor:
        mean, scale = (self.along_channels(self._of_channels(values), part) for values in statistics)
        return part.sub_(mean).mul_(scale)

    def input_gradient(self, gradient: Tensor, kept: Sequence[Tensor], constants: Constants) -> Tensor:
        x, mean, scale = kept
        result: Tensor = _aten.native_group_norm_backward.default(
            _plain(gradient, x), _plain(x, x), mean, scale, constants[0], *self._sizes(x), [True, False, False]
        )[0]
        return result

    def _sizes(self, x: Tensor) -> tuple[int, int, int, int]:
        batch, channels, *rest = x.shape
        return batch, channels, torch.Size(rest).numel(), self.groups

    def _of_channels(self, values: Tensor) -> Tensor:
        """`(B, groups)` to `(B, n)`: a statistic for each selected channel."""
        assert self.slot is not None
        share = self.slot.layer.channels // self.groups
        if self.slot.index is None:
            return values.repeat_interleave(share, dim=1)
        return values.index_select(1, self.slot.index.div(share, rounding_mode="floor"))


class RmsNormSite(NormSite):
    """Channels are the last dimension; where PyTorch keeps half precision as a float32 copy, so does this."""

    axis = -1

    def __init__(self, target: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__(target, arguments)
        self.shape, self.epsilon = list(arguments[0]), arguments[1] if len(arguments) > 1 else None
        self.keeps_copy = False

    def run(self, x: Tensor, constants: Constants) -> tuple[Tensor, list[Tensor]]:
        result, scale = _aten._fused_rms_norm.default(x, self.shape, *constants, self.epsilon)
        return result, [scale]

    def keeps(self, x: Tensor, statistics: list[Tensor]) -> list[Tensor]:
        return [x.to(torch.float32) if self.keeps_copy else x, *statistics]

    def normalise(self, part: Tensor, statistics: list[Tensor]) -> Tensor:
        return part.mul_(statistics[0])

    def input_gradient(self, gradient: Tensor, kept: Sequence[Tensor], constants: Constants) -> Tensor:
        x, scale = kept
        assert constants[0] is not None
        normalised = x * scale
        below = gradient * constants[0]
        share = (below * normalised).mean(dim=-1, keepdim=True, dtype=scale.dtype)
        return below.sub_(normalised.mul_(share)).mul_(scale)


def _plain(x: Tensor, like: Tensor) -> Tensor:
    """Without gaps, as the kernels of GroupNorm want it: in the memory format of `like` on a CPU, else contiguous."""
    return x.contiguous(memory_format=memory_format(like) if x.device.type == "cpu" else torch.contiguous_format)


SITES: dict[str, type[NormSite]] = {
    "batch_norm": BatchNormSite,
    "layer_norm": LayerNormSite,
    "group_norm": GroupNormSite,
    "rms_norm": RmsNormSite,
}

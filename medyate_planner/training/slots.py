"""One slot per updated layer: which channels are trained now, and where their gradient goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn

from medyate_planner.errors import InputError, StepOrderError
from medyate_planner.graph import Layer

GradientObserver = Callable[[Tensor, bool], None]  # the gradient, and whether it is its layer's first of the step
SelectionObserver = Callable[[Tensor], None]
Gradients = tuple[Tensor | None, ...]  # for autograd: of each of `Slot.trained`
GradientTap = Callable[["Slot", Tensor | None, Tensor | None], None]
WeightGradientTap = Callable[["Slot", Tensor | None], None]


@dataclass(slots=True, kw_only=True)
class UpdateRule:
    """Who sees each layer's gradient; and in mode `fused` the plain SGD that is applied to it during backward:
    w -= lr * min(1, clip / ||g||) * g + lr * weight_decay * w."""

    lr: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    observers: list[GradientObserver] = field(default_factory=list)
    selection_observers: list[SelectionObserver] = field(default_factory=list)
    tap: GradientTap | None = None  # sees each layer's gradient before clipping; must not keep it
    boost: WeightGradientTap | None = None  # the same for the sampler, if it learns from gradients


class Slot:
    """The trained part of one layer: a selection of `quota` input channels, or all of the head, and its bias.

    Buffers are allocated once; `select` overwrites the index in place, so shapes never change over a run. What becomes
    of a gradient is the update mode's: `FusedSlot`, `CompactSlot`.
    """

    def __init__(
        self,
        layer: Layer,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        quota: int,
        full: bool,
        rule: UpdateRule,
        sites: int,
    ) -> None:
        self.layer = layer
        self.weight = weight
        self.bias = bias
        self.full = full
        self.quota = layer.channels if full else quota
        self.rule = rule
        self.sites = sites
        self.index: Tensor | None = None
        if self.quota and not full:
            self.index = torch.arange(self.quota, dtype=torch.int32, device=weight.device)
        self.selection = 0  # how often the index was rewritten
        self.trained: tuple[Tensor, ...] = ()  # inputs of the layer's sites that autograd follows, beside x
        self._sum: tuple[Tensor | None, Tensor | None] = (None, None)
        self._arrived = 0

    @property
    def trains_weight(self) -> bool:
        return self.quota > 0

    @property
    def selects(self) -> bool:
        """Channels of the weight are trained, not all of it in place."""
        return self.index is not None

    def select(self, channels: Sequence[int]) -> None:
        """Train these input channels from now on.

        Raises:
            InputError: not exactly `quota` distinct channels in range.
        """
        if self.index is None:
            return
        distinct = sorted(set(channels))
        in_range = not distinct or (distinct[0] >= 0 and distinct[-1] < self.layer.channels)
        if len(distinct) != self.quota or len(channels) != self.quota or not in_range:
            raise InputError(
                f"layer {self.layer.name}: expected {self.quota} distinct channels below {self.layer.channels}, "
                f"got {list(channels)}"
            )
        self._take_over(distinct)
        self.selection += 1

    def _take_over(self, channels: list[int]) -> None:
        assert self.index is not None
        self.index.copy_(torch.tensor(channels, dtype=torch.int32))

    def keep(self, compact: Tensor) -> Tensor:
        """Announce the compact copy that is about to be saved for backward."""
        for observe in self.rule.selection_observers:
            observe(compact)
        return compact

    def begin_step(self) -> None:
        """Start a forward.

        Raises:
            StepOrderError: the last backward reached only some of this layer's call sites.
        """
        arrived, self._arrived, self._sum = self._arrived, 0, (None, None)
        if 0 < arrived < self.sites:
            raise StepOrderError(
                f"layer {self.layer.name}: backward reached {arrived} of its {self.sites} call sites, so it was not "
                "updated; the loss must depend on every output that the plan was made for"
            )

    def version(self) -> object:
        """What must be the same in forward and backward."""
        return self.selection

    def check(self, version: object) -> None:
        """Raise `StepOrderError` if the channels were redrawn between forward and backward."""
        if version != self.version():
            self._refuse_redrawn()

    def _refuse_redrawn(self) -> NoReturn:
        raise StepOrderError(
            f"layer {self.layer.name}: channels were redrawn between forward and backward; "
            "call resample() between steps"
        )

    def receive(self, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> Gradients:
        """Take the gradients of one call site; those of all sites are summed, and go where the update mode wants them
        after the last of them. Returns what autograd is told."""
        parts = (self._arranged(weight_gradient), bias_gradient)
        del weight_gradient
        for gradient in parts:
            if gradient is not None:
                for observe in self.rule.observers:
                    observe(gradient, self._arrived == 0)
        self._arrived += 1
        if self._arrived == 1:
            self._sum = parts
        else:
            for total, part in zip(self._sum, parts, strict=True):
                if total is not None and part is not None:
                    total.add_(part)
        del parts
        if self._arrived < self.sites:
            return (None,) * len(self.trained)
        gradients, self._sum, self._arrived = self._sum, (None, None), 0
        if self.rule.tap is not None:
            self.rule.tap(self, *gradients)
        if self.rule.boost is not None:
            self.rule.boost(self, gradients[0])
        return self._complete(*gradients)

    def _arranged(self, weight_gradient: Tensor | None) -> Tensor | None:
        """The gradient in the memory order that the update wants."""
        return weight_gradient

    def _complete(self, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> Gradients:
        """Use the layer's gradients, or hand them to autograd."""
        raise NotImplementedError

    def gather(self) -> Tensor:
        """The selected channels' weights, in the form their gradient has, in storage of their own."""
        assert self.index is not None
        if self.layer.kind == "grouped":
            return self.weight.detach()[self.rows(), self.columns()]
        index = self.rows() if self.layer.kind == "depthwise" else self.index
        return self.weight.detach().index_select(self.layer.channel_axis, index)

    @torch.no_grad()
    def scatter(self, values: Tensor) -> None:
        """Write the selected channels' weights: the inverse of `gather`."""
        assert self.index is not None
        if self.layer.kind == "grouped":
            self.weight.index_put_((self.rows(), self.columns()), values)
        else:
            index = self.rows() if self.layer.kind == "depthwise" else self.index
            self.weight.index_copy_(self.layer.channel_axis, index.long(), values)

    def rows(self) -> Tensor:
        """Weight rows (= output channels) that the selected channels own; grouped and depthwise, `(n * C_out/G,)`."""
        assert self.index is not None
        if self.layer.kind == "depthwise" and self.layer.out_channels == self.layer.groups:
            return self.index  # one row for each
        per_group = self.layer.out_channels // self.layer.groups
        group = self.index.long() // (self.layer.channels // self.layer.groups)
        within = torch.arange(per_group, device=group.device)
        return (group.unsqueeze(1) * per_group + within).view(-1)

    def columns(self) -> Tensor:
        """Position of each selected channel inside its group, once per owned row."""
        assert self.index is not None
        per_group = self.layer.out_channels // self.layer.groups
        return (self.index.long() % (self.layer.channels // self.layer.groups)).repeat_interleave(per_group)

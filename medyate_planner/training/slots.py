"""One slot per updated layer: which channels are trained now, and what happens to their gradient (mode `fused`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medyate_planner.errors import InputError, StepOrderError
from medyate_planner.graph import Layer

GradientObserver = Callable[[Tensor, bool], None]  # the gradient, and whether it is its layer's first of the step
SelectionObserver = Callable[[Tensor], None]
GradientTap = Callable[["Slot", Tensor | None, Tensor | None], None]
WeightGradientTap = Callable[["Slot", Tensor | None], None]


@dataclass(slots=True, kw_only=True)
class UpdateRule:
    """Plain SGD, applied to each slice during backward: w -= lr * min(1, clip / ||g||) * g + lr * weight_decay * w."""

    lr: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    observers: list[GradientObserver] = field(default_factory=list)
    selection_observers: list[SelectionObserver] = field(default_factory=list)
    tap: GradientTap | None = None  # sees each layer's gradient before clipping; must not keep it
    boost: WeightGradientTap | None = None  # the same for the sampler, if it learns from gradients


class Slot:
    """The trained part of one layer: a selection of `quota` input channels, or all of the head, and its bias.

    Buffers are allocated once; `select` overwrites the index in place, so shapes never change over a run.
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
        self._sum: tuple[Tensor | None, Tensor | None] = (None, None)
        self._arrived = 0
        self._applied = False

    @property
    def trains_weight(self) -> bool:
        return self.quota > 0

    def select(self, channels: list[int]) -> None:
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
                f"got {channels}"
            )
        self.index.copy_(torch.tensor(distinct, dtype=torch.int32))
        self.selection += 1

    def keep(self, compact: Tensor) -> Tensor:
        """Announce the compact copy that is about to be saved for backward."""
        for observe in self.rule.selection_observers:
            observe(compact)
        return compact

    def begin_step(self) -> None:
        """Start a step.

        Raises:
            StepOrderError: the last backward reached only some of this layer's call sites.
        """
        arrived, self._arrived, self._sum, self._applied = self._arrived, 0, (None, None), False
        if 0 < arrived < self.sites:
            raise StepOrderError(
                f"layer {self.layer.name}: backward reached {arrived} of its {self.sites} call sites, so it was not "
                "updated; the loss must depend on every output that the plan was made for"
            )

    def check_selection(self, selection: int) -> None:
        """Raise `StepOrderError` if the channels were redrawn between forward and backward."""
        if selection != self.selection:
            raise StepOrderError(
                f"layer {self.layer.name}: channels were redrawn between forward and backward; "
                "call resample() between steps"
            )

    def receive(self, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> None:
        """Take the gradient of one call site; after the last of them apply the update and drop it."""
        for gradient in (weight_gradient, bias_gradient):
            if gradient is not None:
                for observe in self.rule.observers:
                    observe(gradient, self._arrived == 0)
        if self._applied:
            raise StepOrderError(
                f"layer {self.layer.name}: a second backward through one forward; update mode `fused` has changed the "
                "weights since, so the gradients would be wrong"
            )
        self._arrived += 1
        if self._arrived == 1:
            self._sum = (weight_gradient, bias_gradient)
        else:
            for total, part in zip(self._sum, (weight_gradient, bias_gradient), strict=True):
                if total is not None and part is not None:
                    total.add_(part)
        if self._arrived == self.sites:
            gradients, self._sum, self._arrived, self._applied = self._sum, (None, None), 0, True
            self._apply(*gradients)

    @torch.no_grad()
    def _apply(self, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> None:
        rule = self.rule
        present = [g for g in (weight_gradient, bias_gradient) if g is not None]
        if rule.tap is not None:
            rule.tap(self, weight_gradient, bias_gradient)
        if rule.boost is not None:
            rule.boost(self, weight_gradient)
        if not present or rule.lr == 0.0:
            return
        if rule.clip is not None:
            norms = [torch.linalg.vector_norm(g) for g in present]
            total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
            factor = (rule.clip / (total + 1e-6)).clamp_(max=1.0)
            for gradient in present:
                gradient.mul_(factor)
        if weight_gradient is not None:
            self._step_weight(weight_gradient)
        if bias_gradient is not None and self.bias is not None:
            self.bias.add_(bias_gradient, alpha=-rule.lr)

    def _step_weight(self, gradient: Tensor) -> None:
        rule = self.rule
        if self.full or self.index is None:
            if rule.weight_decay:
                gradient.add_(self.weight, alpha=rule.weight_decay)
            self.weight.add_(gradient, alpha=-rule.lr)
        elif self.layer.kind == "grouped":
            self._step_grouped(gradient)
        else:
            axis = self.layer.channel_axis
            index = self.rows() if self.layer.kind == "depthwise" else self.index
            if rule.weight_decay:
                gradient.add_(self.weight.index_select(axis, index), alpha=rule.weight_decay)
            self.weight.index_add_(axis, index, gradient, alpha=-rule.lr)

    def _step_grouped(self, gradient: Tensor) -> None:
        """Channel c of group j owns weight[j * C_out/G : (j+1) * C_out/G, c mod (C_in/G)]."""
        rows, columns = self.rows(), self.columns()
        if self.rule.weight_decay:
            gradient.add_(self.weight[rows, columns], alpha=self.rule.weight_decay)
        self.weight.index_put_((rows, columns), gradient.mul_(-self.rule.lr), accumulate=True)

    def rows(self) -> Tensor:
        """Weight rows (= output channels) that the selected channels own; grouped and depthwise, `(n * C_out/G,)`."""
        assert self.index is not None
        per_group = self.layer.out_channels // self.layer.groups
        group = self.index.long() // (self.layer.channels // self.layer.groups)
        within = torch.arange(per_group, device=group.device)
        return (group.unsqueeze(1) * per_group + within).view(-1)

    def columns(self) -> Tensor:
        """Position of each selected channel inside its group, once per owned row."""
        assert self.index is not None
        per_group = self.layer.out_channels // self.layer.groups
        return (self.index.long() % (self.layer.channels // self.layer.groups)).repeat_interleave(per_group)

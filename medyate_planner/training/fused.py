"""Update mode `fused`: plain SGD in place during backward; no state, and a gradient is gone when it is applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medyate_planner.errors import StepOrderError
from medyate_planner.training.slots import Gradients, Slot


class FusedSlot(Slot):
    """Applies its layer's gradient as soon as it is complete. `anchor` makes the outputs of its sites require one."""

    def __init__(self, *args: Any, anchor: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trained = (anchor,)
        self._applied = False
        self._axis = self.layer.channel_axis
        owns_one_row = self.layer.out_channels == self.layer.groups
        self._by_index = self.layer.kind not in ("grouped", "depthwise") or (
            self.layer.kind == "depthwise" and owns_one_row
        )  # the index itself says where along the axis the gradient belongs

    def begin_step(self) -> None:
        """As `Slot.begin_step`."""
        self._applied = False
        super().begin_step()

    def receive(self, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> Gradients:
        """As `Slot.receive`.

        Raises:
            StepOrderError: a second backward through one forward.
        """
        if self._applied:
            raise StepOrderError(
                f"layer {self.layer.name}: a second backward through one forward; update mode `fused` has changed the "
                "weights since, so the gradients would be wrong"
            )
        rule = self.rule
        if self.sites == 1 and rule.tap is None and rule.boost is None and not rule.observers:
            return self._complete(weight_gradient, bias_gradient)
        return super().receive(weight_gradient, bias_gradient)

    def _complete(self, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> Gradients:
        self._applied = True
        rule = self.rule
        if rule.lr != 0.0:
            if rule.clip is not None:
                self._clip([g for g in (weight_gradient, bias_gradient) if g is not None], rule.clip)
            if weight_gradient is not None:
                self._step_weight(weight_gradient)
            if bias_gradient is not None and self.bias is not None:
                self.bias.add_(bias_gradient, alpha=-rule.lr)
        return (None,)

    @staticmethod
    def _clip(gradients: list[Tensor], clip: float) -> None:
        norms = [torch.linalg.vector_norm(g) for g in gradients]
        total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        factor = (clip / (total + 1e-6)).clamp_(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)

    def _step_weight(self, gradient: Tensor) -> None:
        rule = self.rule
        if self.index is None:
            if rule.weight_decay:
                gradient.add_(self.weight, alpha=rule.weight_decay)
            self.weight.add_(gradient, alpha=-rule.lr)
        elif self._by_index and not rule.weight_decay:
            self.weight.index_add_(self._axis, self.index, gradient, alpha=-rule.lr)
        elif self.layer.kind == "grouped":
            rows, columns = self.rows(), self.columns()
            if rule.weight_decay:
                gradient.add_(self.weight[rows, columns], alpha=rule.weight_decay)
            self.weight.index_put_((rows, columns), gradient.mul_(-rule.lr), accumulate=True)
        else:
            axis = self.layer.channel_axis
            index = self.rows() if self.layer.kind == "depthwise" else self.index
            if rule.weight_decay:
                gradient.add_(self.weight.index_select(axis, index), alpha=rule.weight_decay)
            self.weight.index_add_(axis, index, gradient, alpha=-rule.lr)

"""The oracle of update mode `optimizer`: plain PyTorch on the whole model, all masked to what is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from channels import mask_of, parameters_of
from torch import Tensor, nn

from medyate_planner.graph import ModelGraph
from medyate_planner.memory.model import Updates

MakeOptimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]


class MaskedModel:
    """A copy of a model that is trained by full gradients, all but the selected channels of which are zeroed.

    An optimizer with the same settings steps whole parameters; its state is masked likewise, and what it does to other
    weights (weight decay) is taken back.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, updates: Updates) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_()
        self.parameters = parameters_of(self.model)
        self.graph, self.updates = graph, updates
        self.masks: dict[str, Tensor] = {}
        self.optimizers: list[torch.optim.Optimizer] = []

    def select(self, drawn: Mapping[str, Sequence[int]]) -> None:
        """Train these channels from now on: state and gradients of all others are zero."""
        masks: dict[str, Tensor] = {}
        for layer in self.graph.units:
            if layer.name in drawn:
                masks[layer.weight] = mask_of(layer, drawn[layer.name])
            if layer.name in self.updates.full:
                masks[layer.weight] = torch.ones(layer.weight_shape, dtype=torch.bool)
            if layer.bias and layer.name in self.updates.biases | self.updates.full:
                masks[layer.bias] = torch.ones_like(self.parameters[layer.bias], dtype=torch.bool)
        self.masks = masks
        self._mask_gradients()
        self._mask_state()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Those of which anything is trained."""
        return {name: self.parameters[name] for name in self.masks}

    def make(self, optimizer: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """An optimizer over `named_parameters`, of which this object knows."""
        self.optimizers.append(optimizer())
        return self.optimizers[-1]

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        self._mask_gradients()

    def step(self, *, clip: float | None = None) -> None:
        """Clip all gradients together, step all optimizers, and keep to the masks."""
        parameters = self.named_parameters()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters.values(), clip)
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.where(self.masks[name], parameter, before[name]))
                parameter.grad = None
        self._mask_state()

    def _mask_gradients(self) -> None:
        for name, parameter in self.parameters.items():
            if name in self.masks and parameter.grad is not None:
                parameter.grad.mul_(self.masks[name])

    def _mask_state(self) -> None:
        by_parameter = {id(self.parameters[name]): mask for name, mask in self.masks.items()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for value in state.values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.mul_(by_parameter[id(parameter)])

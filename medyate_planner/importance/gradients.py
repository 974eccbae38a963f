"""Measure gradient energy per channel: one full backward per mini-batch, on a host with room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medyate_planner.errors import DivergenceError, InputError
from medyate_planner.graph import Layer, ModelGraph
from medyate_planner.importance.energy import Importance, Vector, squared_norm_per_channel

Batch = tuple[Any, Any]


def probe(
    model: nn.Module,
    graph: ModelGraph,
    batches: Iterable[Batch],
    loss_function: Callable[[Any, Any], Tensor],
    *,
    call: Callable[[nn.Module, Any], Any] = lambda model, x: model(x),
    on_batch: Callable[[], None] = lambda: None,
) -> Importance:
    """Mean of ||g_c||² and of ||g_c|| over mini-batches, for every channel of every layer and norm.

    The model runs in evaluation mode (norms frozen, dropout off) and is left as it was found.

    Raises:
        InputError: no batch.
        DivergenceError: a loss or gradient is not finite.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modes = [(module, module.training) for module in model.modules()]
    required = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    for parameter, _, _ in required:
        parameter.grad = None
    energy = {layer.name: np.zeros(layer.channels) for layer in graph.units}
    norms = {layer.name: np.zeros(layer.channels) for layer in graph.units}
    bias_energy = {layer.name: 0.0 for layer in graph.units if layer.bias}
    count = 0
    model.eval()
    try:
        wanted = {layer.weight for layer in graph.units} | {layer.bias for layer in graph.units}
        wanted_ids = {id(parameters[name]) for name in wanted if name}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in wanted_ids)
        for x, target in batches:
            loss = loss_function(call(model, x), target)
            if not torch.isfinite(loss):
                raise DivergenceError(
                    f"the loss of batch {count} is {loss.item()}; check the data and its normalisation"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            for layer in graph.units:
                squared = _take(layer, parameters)
                energy[layer.name] += squared
                norms[layer.name] += np.sqrt(squared)
                if layer.bias:
                    bias_energy[layer.name] += _squared_norm(parameters[layer.bias])
            model.zero_grad(set_to_none=True)
            count += 1
            on_batch()
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag, gradient in required:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
    if not count:
        raise InputError("no batch to measure importance on: the training set is smaller than one batch")
    return Importance(
        energy={name: values / count for name, values in energy.items()},
        norms={name: values / count for name, values in norms.items()},
        bias_energy={name: value / count for name, value in bias_energy.items()},
        fingerprint=graph.fingerprint,
        source=f"gradients of {count} mini-batches",
        facts={"batches": count, "batch_size": graph.batch_size},
    )


def _take(layer: Layer, parameters: dict[str, nn.Parameter]) -> Vector:
    gradient = parameters[layer.weight].grad
    if gradient is None:
        return np.zeros(layer.channels)
    squared = squared_norm_per_channel(layer, gradient)
    if not np.isfinite(squared).all():
        raise DivergenceError(f"layer {layer.name}: the gradient is not finite; check the data and its normalisation")
    return squared


def _squared_norm(parameter: nn.Parameter) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.double().square().sum())

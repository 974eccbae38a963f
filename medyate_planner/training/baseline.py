"""Ordinary full fine-tuning in PyTorch, measured with the same instruments: what a plan is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medyate_planner.losses import Loss
from medyate_planner.memory.moments import Category
from medyate_planner.training.kept import KeptTracker
from medyate_planner.training.live import LiveTracker
from medyate_planner.training.loop import Batches, Recipe, evaluate_model, invoke, tensors_of, to_model


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineResult:
    """Accuracy per epoch and measured bytes of one step (its second: the first lacks optimizer state)."""

    test_accuracy: tuple[float | None, ...]
    training_bytes: int
    live_peak_bytes: int


def fine_tune_fully(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    recipe: Recipe,
    *,
    momentum: float = 0.0,
    on_step: Callable[[int, int, float], None] = lambda _epoch, _step, _loss: None,
) -> BaselineResult:
    """Train every parameter with torch.optim.SGD in evaluation mode (norms frozen, dropout off), in place.

    The same schedule and per-layer clipping as a planned run. Training bytes: tensors saved for backward, weight
    gradients and optimizer state at their largest sum.
    """
    model.eval()
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=momentum, weight_decay=recipe.weight_decay)
    accuracies: list[float | None] = []
    training_bytes = live_peak_bytes = 0
    for epoch in range(recipe.epochs):
        for step, (x, target) in enumerate(batches.train(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch * batches.steps_per_epoch + step, batches.steps_per_epoch)
            x, target = to_model(model, x), to_model(model, target, cast=False)
            if (epoch, step) == (0, min(1, batches.steps_per_epoch - 1)):
                value, training_bytes, live_peak_bytes = _measured_step(model, x, target, loss, optimizer, recipe)
            else:
                value = _step(model, x, target, loss, optimizer, recipe)
            on_step(epoch, step, value)
        accuracies.append(evaluate_model(model, batches.test(), loss)[1])
    return BaselineResult(
        test_accuracy=tuple(accuracies), training_bytes=training_bytes, live_peak_bytes=live_peak_bytes
    )


def _step(
    model: nn.Module, x: object, target: object, loss: Loss, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> float:
    value = loss.function(invoke(model, x), target)
    value.backward()  # type: ignore[no-untyped-call]
    if recipe.clip is not None:
        for parameter in model.parameters():
            torch.nn.utils.clip_grad_norm_([parameter], recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(value.detach())


def _measured_step(
    model: nn.Module, x: object, target: object, loss: Loss, optimizer: torch.optim.SGD, recipe: Recipe
) -> tuple[float, int, int]:
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
    resident = [*model.parameters(), *model.buffers(), *state]
    kept = KeptTracker(resident, fixed_bytes=sum(t.nbytes for t in state), lean=False)

    def seen(parameter: Tensor) -> None:
        if parameter.grad is not None:
            kept.gradient(parameter.grad, True)

    handles = [
        p.register_post_accumulate_grad_hook(seen)  # type: ignore[no-untyped-call]
        for p in model.parameters()
        if p.requires_grad
    ]
    try:
        with LiveTracker({Category.WEIGHTS: resident, Category.INPUTS: tensors_of([x, target])}) as live, kept:
            value = _step(model, x, target, loss, optimizer, recipe)
    finally:
        for handle in handles:
            handle.remove()
    return value, kept.training_bytes, live.peak_bytes

"""Ordinary fine-tuning in PyTorch, measured with the same instruments: what a plan is compared with."""

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
    on_epoch: Callable[[int], None] = lambda _epoch: None,
) -> BaselineResult:
    """Train every parameter; see `fine_tune`."""
    model.requires_grad_()
    return fine_tune(model, batches, loss, recipe, momentum=momentum, on_step=on_step, on_epoch=on_epoch)


def fine_tune(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    recipe: Recipe,
    *,
    momentum: float = 0.0,
    further_bytes: int = 0,
    on_step: Callable[[int, int, float], None] = lambda _epoch, _step, _loss: None,
    on_epoch: Callable[[int], None] = lambda _epoch: None,
) -> BaselineResult:
    """Train the parameters that require gradients, in evaluation mode (norms frozen, dropout off), in place.

    torch.optim.SGD, with the same schedule and per-layer clipping as a planned run. Training bytes: tensors saved for
    backward, weight gradients and optimizer state at their largest sum, and `further_bytes`: what else is there because
    we train, such as adapters.
    """
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=momentum, weight_decay=recipe.weight_decay)
    accuracies: list[float | None] = []
    training_bytes = live_peak_bytes = 0
    for epoch in range(recipe.epochs):
        for step, (x, target) in enumerate(batches.train(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch * batches.steps_per_epoch + step, batches.steps_per_epoch)
            x, target = to_model(model, x), to_model(model, target, cast=False)
            if (epoch, step) == (0, min(1, batches.steps_per_epoch - 1)):
                value, training_bytes, live_peak_bytes = measured_step(model, x, target, loss, optimizer, recipe)
            else:
                value = _step(model, x, target, loss, optimizer, recipe)
            on_step(epoch, step, value)
        accuracies.append(evaluate_model(model, batches.test(), loss)[1])
        on_epoch(epoch)
    return BaselineResult(
        test_accuracy=tuple(accuracies),
        training_bytes=training_bytes + further_bytes,
        live_peak_bytes=live_peak_bytes,
    )


def measure_full_step(model: nn.Module, x: object, target: object, loss: Loss) -> tuple[int, int]:
    """Training bytes and live peak of one step of full fine-tuning. The model is put back as it was."""
    required = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_()
        return measure_one_step(model, x, target, loss)
    finally:
        for parameter, was in required:
            parameter.requires_grad_(was)


def measure_one_step(model: nn.Module, x: object, target: object, loss: Loss) -> tuple[int, int]:
    """Training bytes and live peak of one step of plain SGD on what requires gradients; weights are put back."""
    mode, before = model.training, {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        optimizer = torch.optim.SGD([p for p in model.eval().parameters() if p.requires_grad], lr=1e-6)
        placed = to_model(model, x), to_model(model, target, cast=False)
        return measured_step(model, *placed, loss, optimizer, Recipe(epochs=1))[1:]
    finally:
        model.load_state_dict(before)
        model.train(mode)


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


def measured_step(
    model: nn.Module, x: object, target: object, loss: Loss, optimizer: torch.optim.SGD, recipe: Recipe
) -> tuple[float, int, int]:
    """One training step: its loss, training bytes and live peak."""
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

"""Evaluation by the user's own model, without gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medyate_planner.losses import Loss, first_output
from medyate_planner.training.batches import invoke, tensors_of, to_model
from medyate_planner.training.session import Session


def evaluate(session: Session, batches: Iterable[tuple[Any, Any]], loss: Loss) -> tuple[float, float | None]:
    """Mean loss and, for class targets, the share of right answers, by the user's own model."""
    try:
        with session.autocast():
            return evaluate_model(session.eval().model, batches, loss)
    finally:
        session.train()


@torch.no_grad()
def evaluate_model(model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Loss) -> tuple[float, float | None]:
    """Mean loss and, for class targets, the share of right answers (NaN losses included, so that none is hidden)."""
    total = right = counted = 0.0
    samples = 0
    for x, target in batches:
        target = to_model(model, target, cast=False)
        outputs = invoke(model, to_model(model, x))
        size = int(tensors_of(target)[0].shape[0])
        total += float(loss.function(outputs, target)) * size
        samples += size
        if _is_classes(target):
            right += float((first_output(outputs).argmax(dim=1) == target).sum())
            counted += target.numel()
    return total / max(1, samples), right / counted if counted else None


def _is_classes(target: Any) -> bool:
    return isinstance(target, Tensor) and not target.is_floating_point()

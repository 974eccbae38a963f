"""One training step: forward, loss and backward of its batches, then the optimizer; measured, if asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from medyate_planner.errors import DivergenceError
from medyate_planner.losses import Loss
from medyate_planner.training.batches import invoke, tensors_of, to_model
from medyate_planner.training.guard import Guard
from medyate_planner.training.measure import StepMeasurement, StepMeter
from medyate_planner.training.session import Session
from medyate_planner.training.stepping import FusedStepper, Stepper

Fetch = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """Which step to make: epoch and step of it, learning rate, number of batches; whether to measure what is kept, and
    all that is live; whether to stop above a budget."""

    where: tuple[int, int]
    lr: float
    passes: int = 1
    measure: bool = False
    live: bool = False
    guard: Guard | None = None


def take_step(
    session: Session, stepper: Stepper, fetch: Fetch, loss: Loss, order: StepOrder
) -> tuple[float, StepMeasurement | None]:
    """Make a step on the batches that `fetch` gives; returns the sum of their losses and, if asked, what was held.

    Raises:
        DivergenceError: a loss is not finite, before anything was updated.
        BudgetExceededError: with a guard, the step held more than the budget.
    """
    batch = _on_device(session, fetch())
    meter = None
    if order.measure:
        meter = StepMeter(session, tensors_of(batch), live=order.live, state=stepper.tensors())
    with meter or nullcontext():
        stepper.begin(order.lr)
        total = _pass(session, batch, loss, order, meter, first=True)
        if not order.live:
            del batch  # a live measurement counts it in place of the later ones, which it does not see being made
        for _ in range(order.passes - 1):
            if meter is not None:
                meter.enter_phase("forward")
            with _disable_current_modes():
                following = _on_device(session, fetch())
            total += _pass(session, following, loss, order, meter, first=False)
            del following
        if meter is not None:
            meter.enter_phase("optimizer")
        stepper.finish()
    if meter is None:
        return total, None
    seen = meter.measurement(loss=total / order.passes)
    if order.guard is not None:
        order.guard.check(seen, order.where, undone=False)
    return total, seen


def train_step(
    session: Session, x: Any, target: Any, loss: Loss, *, measure: bool, where: tuple[int, int] = (0, 0)
) -> tuple[float, StepMeasurement | None]:
    """One step on one batch, of a session in update mode `fused` at the rate that it has; returns the loss and, if
    asked, what the step really held.

    Raises:
        DivergenceError: the loss is not finite, before anything was updated.
    """
    rule = session.rule
    order = StepOrder(where=where, lr=rule.lr, measure=measure, live=measure)
    stepper = FusedStepper(session, weight_decay=rule.weight_decay, clip=rule.clip)
    return take_step(session, stepper, lambda: (x, target), loss, order)


def _on_device(session: Session, batch: tuple[Any, Any]) -> tuple[Any, Any]:
    x, target = batch
    return to_model(session.model, x), to_model(session.model, target, cast=False)


def _pass(
    session: Session, batch: tuple[Any, Any], loss: Loss, order: StepOrder, meter: StepMeter | None, *, first: bool
) -> float:
    """Forward, loss and backward of one batch; returns the loss."""
    outputs = invoke(session, batch[0])
    if meter is not None:
        meter.enter_phase("loss")
    result = loss.function(outputs, batch[1])
    del outputs  # nothing but the graph holds them in backward
    value = float(result.detach())
    if not math.isfinite(value):
        epoch, step = order.where
        raise DivergenceError(
            f"the loss became {value} in epoch {epoch}, step {step} (lr {order.lr:g}); lower --lr, "
            "set --clip, or check the data",
            epoch=epoch,
            step=step,
            lr=order.lr,
        )
    if meter is not None:
        if order.guard is not None:
            order.guard.check(meter.measurement(loss=value), order.where, undone=first)
        meter.enter_phase("backward")
    # The mean over the passes: its backward begins with 1 / passes in place of 1.
    result.backward(torch.full_like(result, 1 / order.passes) if order.passes > 1 else None)  # type: ignore[no-untyped-call]
    return value

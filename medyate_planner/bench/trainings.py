"""How each kind of contender trains, and what is noted of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from medyate_planner.api import planned_draws, train
from medyate_planner.bench.matrix import Contender
from medyate_planner.bench.outside import adapt, checkpoint_blocks, lora_settings
from medyate_planner.bench.setting import Setting
from medyate_planner.bench.watching import Follower, Steps, measured_importance
from medyate_planner.importance.energy import Importance
from medyate_planner.planning.plan import Plan
from medyate_planner.training.baseline import fine_tune
from medyate_planner.training.loop import Watch, fit
from medyate_planner.training.progress import Epoch
from medyate_planner.training.recipe import Recipe
from medyate_planner.training.run import load_weights
from medyate_planner.training.session import Session

_ORACLE_BATCHES = 40  # of which full gradients are measured before every epoch


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training to be done: everything starts from the importance's warmed head."""

    setting: Setting
    contender: Contender
    importance: Importance
    recipe: Recipe


def fine_tuned(training: Training) -> dict[str, Any]:
    """Do it; accuracies of every epoch, measured bytes, time of a step, and what was trained.

    Raises:
        InfeasibleBudgetError, DivergenceError: results of a comparison.
        MedyateError: the matrix asks for what can not be done.
    """
    load_weights(training.setting.subject.model, training.importance.head)
    if training.contender.kind == "plan":
        return _by_plan(training)
    if training.contender.kind == "oracle":
        return _by_oracle(training)
    return _ordinarily(training)


def _by_plan(training: Training) -> dict[str, Any]:
    setting, contender, importance = training.setting, training.contender, training.importance
    plan = setting.plan(contender, importance)
    steps = Steps()
    follower = Follower(setting, contender.follow)
    epochs = train(
        setting.subject, plan, setting.batches, training.recipe,
        importance=importance, on_step=steps.step, on_epoch=lambda _epoch: follower.measure(),
    )  # fmt: skip
    return {
        **_measured(epochs),
        "train_losses": steps.train_losses,
        "step_seconds": steps.seconds,
        "budget_bytes": None if setting.job.budget is None else plan.budget_bytes,
        "layers": len([layer for layer in plan.layers if not layer.head]),
        "channels": sum(plan.quotas().values()),
        "biases": len(plan.biases),
        "coverage": _coverage(setting, plan, importance, training.recipe.epochs),
        **follower.summary(),
    }


def _by_oracle(training: Training) -> dict[str, Any]:
    """What the strategy would choose by gradients that it may see in full, chosen anew for every epoch."""
    setting = training.setting
    planned = setting.plan(training.contender, training.importance)

    def draw(_interval: int) -> dict[str, list[int]]:
        seen = measured_importance(setting, range(_ORACLE_BATCHES))
        return planned_draws(setting.plan(training.contender, seen), seen)(0)

    steps = Steps()
    subject = setting.subject
    with Session(subject.model, subject.traced, subject.graph, planned.updates(), draw) as session:
        epochs = list(fit(session, setting.batches, subject.loss, training.recipe, watch=Watch(on_step=steps.step)))
    return {
        **_measured(epochs),
        "train_losses": steps.train_losses,
        "step_seconds": steps.seconds,
        "budget_bytes": planned.budget_bytes,
    }


def _measured(epochs: Sequence[Epoch]) -> dict[str, Any]:
    metrics = [epoch.metrics for epoch in epochs]
    return {
        "accuracy": metrics[-1].test_accuracy,
        "accuracies": [m.test_accuracy for m in metrics],
        "losses": [m.test_loss for m in metrics],
        "training_bytes": max(m.measured_training_bytes for m in metrics),
        "live_peak_bytes": max(m.measured_live_peak_bytes for m in metrics),
    }


def _coverage(setting: Setting, plan: Plan, importance: Importance, epochs: int) -> float | None:
    """The share of the channels of the planned layers that were trained at some time; unknown with boosting, whose
    draws depend on the gradients."""
    if plan.sampling.boosted:
        return None
    draw = planned_draws(plan, importance)
    every = plan.sampling.interval_steps
    intervals = epochs if every is None else epochs * setting.batches.steps_per_epoch // every
    seen: dict[str, set[int]] = {}
    for interval in range(intervals):
        for name, channels in draw(interval).items():
            seen.setdefault(name, set()).update(channels)
    by_name = setting.subject.graph.layer_by_name
    of = sum(by_name[name].channels for name in seen)
    return sum(map(len, seen.values())) / of if of else None


def _ordinarily(training: Training) -> dict[str, Any]:
    """In PyTorch, from the same warmed head: all of it, with its blocks computed again, or adapters."""
    setting, contender = training.setting, training.contender
    model, further = setting.subject.model, 0
    facts: dict[str, Any] = {}
    if contender.kind.startswith("lora"):
        budget_bytes = setting.own_budget_bytes(training.importance)
        adapted = adapt(setting, lora_settings(contender.name, contender.settings), budget_bytes)
        model, further = adapted.model, adapted.adapter_bytes
        facts = {"layers": len(adapted.layers), "budget_bytes": budget_bytes}
    else:
        model.requires_grad_()
    if contender.kind == "checkpointed":
        model = copy.deepcopy(model)  # whose blocks are changed for good
        facts = {"blocks": checkpoint_blocks(model)}
    return {**_plainly(training, model, further), **facts}


def _plainly(training: Training, model: nn.Module, further_bytes: int) -> dict[str, Any]:
    setting = training.setting
    steps = Steps()
    follower = Follower(setting, training.contender.follow)
    result = fine_tune(
        model, setting.batches, setting.subject.loss, training.recipe,
        further_bytes=further_bytes, on_step=steps.step, on_epoch=lambda _epoch: follower.measure(),
    )  # fmt: skip
    return {
        "accuracy": result.test_accuracy[-1],
        "accuracies": list(result.test_accuracy),
        "training_bytes": result.training_bytes,
        "live_peak_bytes": result.live_peak_bytes,
        "train_losses": steps.train_losses,
        "step_seconds": steps.seconds,
        **follower.summary(),
    }

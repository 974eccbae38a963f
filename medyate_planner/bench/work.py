"""One job, from nothing to its record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medyate_planner.api import planned_draws, rank, train
from medyate_planner.bench.jobs import Job, digest_of
from medyate_planner.bench.matrix import Contender, Matrix
from medyate_planner.bench.setting import Setting, setting_of
from medyate_planner.errors import DivergenceError, InfeasibleBudgetError, MedyateError
from medyate_planner.importance.energy import Importance
from medyate_planner.planning.plan import Plan
from medyate_planner.training.baseline import fine_tune_fully
from medyate_planner.training.recipe import Recipe
from medyate_planner.training.run import load_weights


def perform(matrix: Matrix, job: Job, folder: Path, rate: float | None) -> dict[str, Any]:
    """Do a job; importance is kept below `folder`. What fails is a record too, with the reason.

    A budget that can not be met and a loss that becomes infinite are results of a comparison, any other error is not.

    Raises:
        MedyateError: the matrix asks for what can not be done.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    facts: dict[str, Any] = {
        "job": job.name, "digest": digest_of(matrix, job), "stage": job.stage, "network": job.network,
        "task": job.task, "contender": job.contender, "budget": job.budget, "seed": job.seed, "rate": rate,
    }  # fmt: skip
    setting = setting_of(matrix, job)
    try:
        found = _rank(setting, folder) if job.stage == "rank" else _fine_tune(setting, folder, rate)
    except (InfeasibleBudgetError, DivergenceError) as error:
        found = {"accuracy": None, "failure": error.message}
    return {**facts, **found, "seconds": round(time.perf_counter() - start, 3)}


def importance_file(folder: Path, job: Job) -> Path:
    """Where the importance of a network on a task is kept: of one seed, for all contenders."""
    return folder / "importance" / job.network / job.task / f"{job.seed}.safetensors"


def _rank(setting: Setting, folder: Path) -> dict[str, Any]:
    """Warm the head, and measure gradients on the training data. The tuning seed's sees its own training split."""
    matrix, job = setting.matrix, setting.job
    steps = setting.batches.steps_per_epoch
    importance = rank(
        setting.subject,
        setting.batches.train,
        setting.subject.loss,
        steps_per_epoch=steps,
        warm_head_epochs=matrix.warm_head_epochs,
        recipe=Recipe(epochs=max(1, matrix.warm_head_epochs), seed=job.seed),
    )
    importance.save(importance_file(folder, job), force=True)
    return {"steps": steps}


def _fine_tune(setting: Setting, folder: Path, rate: float | None) -> dict[str, Any]:
    matrix, job = setting.matrix, setting.job
    contender: Contender = matrix.named("contenders", str(job.contender))
    family = matrix.families[contender.family]
    importance = Importance.load(importance_file(folder, job))
    if rate is None:
        raise MedyateError(f"{job.name}: no learning rate")
    recipe = Recipe(epochs=setting.task.epochs, lr=rate, clip=family.clip, seed=job.seed)
    if contender.kind == "full":
        return _fully(setting, importance, recipe)
    plan = setting.plan(contender, importance)
    epochs = train(setting.subject, plan, setting.batches, recipe, importance=importance)
    metrics = [epoch.metrics for epoch in epochs]
    steps = setting.batches.steps_per_epoch
    return {
        "accuracy": metrics[-1].test_accuracy,
        "accuracies": [m.test_accuracy for m in metrics],
        "losses": [m.test_loss for m in metrics],
        "budget_bytes": None if job.budget is None else plan.budget_bytes,
        "training_bytes": max(m.measured_training_bytes for m in metrics),
        "live_peak_bytes": max(m.measured_live_peak_bytes for m in metrics),
        "step_seconds": min(m.seconds for m in metrics) / steps,
        "layers": len([layer for layer in plan.layers if not layer.head]),
        "channels": sum(plan.quotas().values()),
        "biases": len(plan.biases),
        **_coverage(setting, plan, importance, recipe.epochs),
    }


def _coverage(setting: Setting, plan: Plan, importance: Importance, epochs: int) -> Mapping[str, Any]:
    """The share of the channels of the planned layers that were trained at some time; unknown with boosting, whose
    draws depend on the gradients."""
    if plan.sampling.boosted:
        return {"coverage": None}
    draw = planned_draws(plan, importance)
    every = plan.sampling.interval_steps
    intervals = epochs if every is None else epochs * setting.batches.steps_per_epoch // every
    seen: dict[str, set[int]] = {}
    for interval in range(intervals):
        for name, channels in draw(interval).items():
            seen.setdefault(name, set()).update(channels)
    by_name = setting.subject.graph.layer_by_name
    of = sum(by_name[name].channels for name in seen)
    return {"coverage": sum(map(len, seen.values())) / of if of else None}


def _fully(setting: Setting, importance: Importance, recipe: Recipe) -> dict[str, Any]:
    """Ordinary full fine-tuning in PyTorch, from the same warmed head."""
    model, batches = setting.subject.model, setting.batches
    load_weights(model, importance.head)
    model.requires_grad_()
    start = time.perf_counter()
    result = fine_tune_fully(model, batches, setting.subject.loss, recipe)
    steps = recipe.epochs * batches.steps_per_epoch
    return {
        "accuracy": result.test_accuracy[-1],
        "accuracies": list(result.test_accuracy),
        "training_bytes": result.training_bytes,
        "live_peak_bytes": result.live_peak_bytes,
        "step_seconds": (time.perf_counter() - start) / steps,
    }

"""One job, from nothing to its record."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medyate_planner.api import rank
from medyate_planner.bench.jobs import Job, digest_of
from medyate_planner.bench.matrix import Contender, Matrix
from medyate_planner.bench.setting import Setting, setting_of
from medyate_planner.bench.trainings import Training, fine_tuned
from medyate_planner.errors import DivergenceError, InfeasibleBudgetError, MedyateError
from medyate_planner.importance.energy import Importance
from medyate_planner.importance.metrics import METRICS, rank_layers
from medyate_planner.training.recipe import Recipe

_OF_A_GUESS = 0.98


def perform(matrix: Matrix, job: Job, folder: Path, rate: float | None) -> dict[str, Any]:
    """Do a job; importance is kept below `folder`. What fails is a record too, with the reason.

    A budget that can not be met and a loss that becomes infinite are results of a comparison, any other error is not.
    A run that diverges is done again at the next lower rate of its family, as anybody would who saw its training loss.

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
    found = _done(setting, folder, rate)
    lower = _lower_rates(matrix, job, rate)
    while found.pop("diverged", False) and lower:
        facts["diverged_rates"] = [*facts.get("diverged_rates", []), facts["rate"]]
        facts["rate"] = lower.pop(0)
        found = _done(setting_of(matrix, job), folder, facts["rate"])
    return {**facts, **found, "seconds": round(time.perf_counter() - start, 3)}


def _done(setting: Setting, folder: Path, rate: float | None) -> dict[str, Any]:
    try:
        return _rank(setting, folder) if setting.job.stage == "rank" else _fine_tune(setting, folder, rate)
    except (InfeasibleBudgetError, DivergenceError) as error:
        return {"accuracy": None, "failure": error.message, "diverged": isinstance(error, DivergenceError)}


def is_diverged(train_losses: Sequence[float | None], num_classes: int | None) -> bool:
    """Whether a training ended no better than a guess: the mean loss of the last epoch is not finite, or not below 98 %
    of log(classes), the cross-entropy of equal probabilities."""
    if not train_losses:
        return False
    last = train_losses[-1]
    return last is None or (num_classes is not None and last >= _OF_A_GUESS * math.log(num_classes))


def _lower_rates(matrix: Matrix, job: Job, rate: float | None) -> list[float]:
    """Those of the family below this one, the highest first; none where rates are what is tried."""
    if job.stage != "run" or rate is None:
        return []
    family = matrix.families[matrix.named("contenders", str(job.contender)).family]
    return sorted((other for other in family.rates if other < rate), reverse=True)


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
    return {"steps": steps, "layers": _rankings(setting, importance)}


def _rankings(setting: Setting, importance: Importance) -> dict[str, Any]:
    """The score of every layer by each metric; a channel costs its gradient and its saved activation."""
    memory = setting.subject.memory
    costs = {layer.name: memory.costs[layer.name].update_bytes for layer in memory.graph.layers}
    weights = {layer.name: layer.elements_per_channel for layer in memory.graph.layers}
    return {
        metric: {entry.name: float(f"{entry.score:.6g}") for entry in rank_layers(importance, metric, costs, weights)}
        for metric in METRICS
    }


def _fine_tune(setting: Setting, folder: Path, rate: float | None) -> dict[str, Any]:
    matrix, job = setting.matrix, setting.job
    contender: Contender = matrix.named("contenders", str(job.contender))
    if rate is None:
        raise MedyateError(f"{job.name}: no learning rate")
    recipe = Recipe(epochs=setting.task.epochs, lr=rate, clip=matrix.families[contender.family].clip, seed=job.seed)
    importance = Importance.load(importance_file(folder, job))
    found = fine_tuned(Training(setting=setting, contender=contender, importance=importance, recipe=recipe))
    return {**found, "diverged": is_diverged(found["train_losses"], setting.num_classes)}

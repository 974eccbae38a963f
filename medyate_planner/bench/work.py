"""One job, from nothing to its record."""

from __future__ import annotations

import time
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
    return {"steps": steps, "layers": _rankings(setting, importance)}


def _rankings(setting: Setting, importance: Importance) -> dict[str, Any]:
    """The score of every layer by each metric; a channel costs its gradient and its saved activation."""
    memory = setting.subject.memory
    costs = {layer.name: memory.costs[layer.name].update_bytes for layer in memory.graph.layers}
    return {
        metric: {entry.name: float(f"{entry.score:.6g}") for entry in rank_layers(importance, metric, costs)}
        for metric in METRICS
    }


def _fine_tune(setting: Setting, folder: Path, rate: float | None) -> dict[str, Any]:
    matrix, job = setting.matrix, setting.job
    contender: Contender = matrix.named("contenders", str(job.contender))
    if rate is None:
        raise MedyateError(f"{job.name}: no learning rate")
    recipe = Recipe(epochs=setting.task.epochs, lr=rate, clip=matrix.families[contender.family].clip, seed=job.seed)
    importance = Importance.load(importance_file(folder, job))
    return fine_tuned(Training(setting=setting, contender=contender, importance=importance, recipe=recipe))

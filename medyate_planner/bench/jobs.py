"""The jobs of a matrix, in three stages: importance, learning rates, runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, Literal

from medyate_planner.bench.matrix import Contender, Matrix
from medyate_planner.planning.request import PlanRequest

Stage = Literal["rank", "tune", "run"]
STAGES: tuple[Stage, ...] = ("rank", "tune", "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training, or one measurement of importance. Names are those of the matrix.

    `rate` is the candidate that is tried when tuning; a run takes the best one. `validates`: it sees the training data
    alone, a share of them in the test data's place.
    """

    stage: Stage
    network: str
    task: str
    seed: int
    contender: str | None = None
    budget: str | None = None
    rate: float | None = None
    validates: bool = False

    @property
    def name(self) -> str:
        """Unique within a matrix; also a path."""
        parts = [self.stage, self.network, self.task, self.contender, self.budget]
        rate = [] if self.rate is None else [f"{self.rate:g}"]
        return "/".join([*(part for part in parts if part is not None), *rate, str(self.seed)])


def jobs_of(matrix: Matrix, stage: Stage) -> Iterator[Job]:
    """The jobs of a stage. Runs: all with the first seed, then with the next; contenders in the order of the matrix, so
    that each is soon known on all networks and tasks."""
    if stage == "tune":
        yield from _tuning(matrix)
    elif stage == "rank":
        yield from _ranking(matrix)
    else:
        for seed in matrix.seeds:
            for contender in matrix.contenders:
                for budget in _budgets(matrix, contender):
                    for network, task in product(matrix.networks, matrix.tasks):
                        if _takes_part(contender, network.name, seed):
                            yield Job(
                                stage="run", network=network.name, task=task.name, seed=seed,
                                contender=contender.name, budget=budget,
                            )  # fmt: skip


def _ranking(matrix: Matrix) -> Iterator[Job]:
    tunes = any(len(family.rates) > 1 for family in matrix.families.values())
    for seed in (*((matrix.tuning_seed,) if tunes else ()), *matrix.seeds):
        for network, task in product(matrix.networks, matrix.tasks):
            validates = seed == matrix.tuning_seed
            yield Job(stage="rank", network=network.name, task=task.name, seed=seed, validates=validates)


def _tuning(matrix: Matrix) -> Iterator[Job]:
    for network in matrix.networks:
        for task in matrix.tasks:
            for family in matrix.families.values():
                chooser: Contender = matrix.named("contenders", family.chosen_by)
                for rate in family.rates if len(family.rates) > 1 else ():
                    yield Job(
                        stage="tune", network=network.name, task=task.name, seed=matrix.tuning_seed,
                        contender=chooser.name, budget=family.budget if chooser.has_budget else None, rate=rate,
                        validates=True,
                    )  # fmt: skip


def _takes_part(contender: Contender, network: str, seed: int) -> bool:
    on_network = contender.networks is None or network in contender.networks
    return on_network and (contender.seeds is None or seed in contender.seeds)


def _budgets(matrix: Matrix, contender: Contender) -> tuple[str | None, ...]:
    names = tuple(budget.name for budget in matrix.budgets)
    of_contender = names if contender.budgets is None else tuple(n for n in names if n in contender.budgets)
    return of_contender if contender.has_budget else (None,)


def digest_of(matrix: Matrix, job: Job) -> str:
    """What the job's result depends on: a result with another digest is of another matrix."""
    network, task = matrix.named("networks", job.network), matrix.named("tasks", job.task)
    if job.contender is None:
        return matrix.digest(network, task, matrix.validation_fraction if job.validates else None)
    contender: Contender = matrix.named("contenders", job.contender)
    budget = None if job.budget is None else matrix.named("budgets", job.budget)
    family = matrix.families[contender.family]
    defaults = _defaults() if contender.strategy == "optimal" and contender.kind == "plan" else {}
    chosen = [{**defaults, **contender.request}] if defaults else []
    return matrix.digest(
        network, task, contender, budget, family, matrix.validation_fraction, matrix.tuning_seed, *chosen
    )


def _defaults() -> dict[str, Any]:
    """What a plan is made by where a contender asks for nothing: another default makes results old."""
    names = ("objective", "curve", "metric", "min_quota", "buy_biases")
    return {field.name: field.default for field in fields(PlanRequest) if field.name in names}

"""A network and a task made ready for one job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from medyate_planner.api import plan as make_plan
from medyate_planner.bench.jobs import Job
from medyate_planner.bench.matrix import Budget, Contender, Matrix, Network, Task
from medyate_planner.data import load_data
from medyate_planner.data.batches import batches_of
from medyate_planner.data.load import DataBundle
from medyate_planner.data.split import split_stratified
from medyate_planner.errors import InputError
from medyate_planner.importance.energy import Importance
from medyate_planner.memory.accounting import SparseUpdateScheme, read_scheme
from medyate_planner.models import LoadedModel, example_input, load_model
from medyate_planner.models.preprocessing import Preprocessing
from medyate_planner.planning.plan import Plan, Sampling
from medyate_planner.planning.request import StrategySettings
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.baseline import measure_full_step
from medyate_planner.training.batches import Batches
from medyate_planner.units import parse_bytes

_NO_LIMIT = 10**15


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model of a job, with fresh weights and a head for the task's classes, and its batches."""

    matrix: Matrix
    job: Job
    subject: Subject
    batches: Batches
    num_classes: int | None

    @property
    def task(self) -> Task:
        found: Task = self.matrix.named("tasks", self.job.task)
        return found

    def plan(self, contender: Contender, importance: Importance) -> Plan:
        """The contender's plan; one without a budget is given all it asks for.

        Raises:
            InfeasibleBudgetError: it does not fit the budget.
        """
        budget = None if self.job.budget is None else self.matrix.named("budgets", self.job.budget)
        budget_bytes = self.own_budget_bytes(importance) or _NO_LIMIT
        settings = {"intervals": self.task.epochs, **contender.settings}
        if contender.strategy == "sparse-update":
            settings["scheme"] = self._scheme(budget)
        request = {**contender.request, "seed": self.job.seed, "settings": StrategySettings(**settings)}
        sampling = Sampling(**{"seed": self.job.seed, **contender.sampling})
        return make_plan(
            self.subject, None, budget_bytes, importance,
            strategy=contender.strategy, sampling=sampling, request=request,
        )  # fmt: skip

    def own_budget_bytes(self, importance: Importance) -> int | None:
        """Bytes of the job's budget, if it has one."""
        budget = None if self.job.budget is None else self.matrix.named("budgets", self.job.budget)
        return None if budget is None else self.budget_bytes(budget, importance)

    def budget_bytes(self, budget: Budget, importance: Importance) -> int:
        """Bytes of training memory (scope `training`)."""
        if budget.amount is not None:
            return parse_bytes(budget.amount)
        if budget.of_full is not None:
            return int(budget.of_full * self.full_training_bytes())
        settings = StrategySettings(scheme=self._scheme(budget))
        of_scheme = make_plan(
            self.subject, None, _NO_LIMIT, importance, strategy="sparse-update", request={"settings": settings}
        )
        return of_scheme.predicted.training_bytes

    def full_training_bytes(self) -> int:
        """Measured training memory of one step of ordinary full fine-tuning. The model is put back as it was."""
        x, target = next(iter(self.batches.train(0)))
        return measure_full_step(self.subject.model, x, target, self.subject.loss)[0]

    def _scheme(self, budget: Budget | None) -> SparseUpdateScheme:
        network: Network = self.matrix.named("networks", self.job.network)
        if budget is None or budget.schemes is None or budget.scheme is None:
            raise InputError(f"{self.job.name}: strategy sparse-update needs a budget that names a scheme")
        schemes = _read_schemes(str(self.matrix.folder / budget.schemes))
        name = budget.scheme_of(network.name)
        try:
            found = schemes[network.spec][name]
        except KeyError:
            raise InputError(f"{budget.schemes}: no scheme {name!r} for {network.spec}") from None
        return read_scheme(found, self.subject.graph)


def setting_of(matrix: Matrix, job: Job) -> Setting:
    """Build the model and open the data.

    Raises:
        InputError: what the matrix names is not there, or does not go together.
    """
    network: Network = matrix.named("networks", job.network)
    task: Task = matrix.named("tasks", job.task)
    preprocessing = _preprocessing_of(network)
    bundle = _bundle_of(task, preprocessing)
    if job.validates:
        bundle = _validation(bundle, matrix)
    subject = _subject_of(network, bundle.num_classes, matrix.batch_size)
    fresh = _load(network, bundle.num_classes, job.seed).model.state_dict()
    subject.model.load_state_dict(fresh)
    return Setting(
        matrix=matrix,
        job=job,
        subject=subject,
        batches=batches_of(bundle, matrix.batch_size, seed=job.seed),
        num_classes=bundle.num_classes,
    )


def _load(network: Network, num_classes: int | None, seed: int) -> LoadedModel:
    return load_model(
        network.spec,
        weights=network.weights,
        num_classes=num_classes,
        input_shape=network.input_shape,
        seed=seed,
        require_weights=True,
    )


@lru_cache(maxsize=4)
def _subject_of(network: Network, num_classes: int | None, batch_size: int) -> Subject:
    """The same for all jobs of a process, which so capture each network once; its weights are those of the last job."""
    loaded = _load(network, num_classes, seed=0)
    return subject_of(loaded.model, example_input(loaded.model, loaded.input_shape, batch_size=batch_size))


@lru_cache(maxsize=4)
def _preprocessing_of(network: Network) -> Preprocessing | None:
    return load_model(network.spec, weights=network.weights, input_shape=network.input_shape).preprocessing


@lru_cache(maxsize=4)
def _bundle_of(task: Task, preprocessing: Preprocessing | None) -> DataBundle:
    """The same for all jobs of a process, which so decode each picture once; split and limited always alike."""
    return load_data(task.spec, preprocessing, augment=task.augment, limit=task.limit, seed=0)


def _validation(bundle: DataBundle, matrix: Matrix) -> DataBundle:
    """The training data alone, a share of each class in the test data's place."""
    targets = getattr(bundle.train, "targets", None)
    if targets is None:
        raise InputError(f"{bundle.description}: learning rates can not be chosen on data without `targets`")
    kept, held = split_stratified(
        [int(t) for t in targets], test_fraction=matrix.validation_fraction, seed=matrix.tuning_seed
    )
    return replace(bundle, train=Subset(bundle.train, kept), test=Subset(bundle.train, held))


@lru_cache(maxsize=4)
def _read_schemes(path: str) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"schemes: {path}: {error}") from error
    return found

"""What a benchmark compares, read from TOML."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from medyate_planner.errors import InputError
from medyate_planner.planning.strategies import STRATEGIES
from medyate_planner.units import parse_bytes

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]  # part of identifiers and file names


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Part):
    """A model that is fine-tuned, as for `medyate rank`."""

    name: Name
    spec: str
    weights: str | None = None
    input_shape: tuple[int, ...] | None = None


class Task(_Part):
    """A data set, and how long it is trained on. Environment variables in `data` are expanded."""

    name: Name
    data: str
    epochs: int = Field(ge=1)
    limit: int | None = Field(default=None, ge=1, description="samples of each set, evenly over the classes")
    augment: str = "none"


class Budget(_Part):
    """Training memory: an amount, or what a published Sparse Update scheme of the network needs at this batch size."""

    name: Name
    amount: str | None = Field(default=None, description="such as 512kB")
    schemes: str | None = Field(default=None, description="file of schemes by network spec and scheme name")
    scheme: str | dict[Name, str] | None = Field(default=None, description="its name there; or one for each network")

    def scheme_of(self, network: str) -> str | None:
        """Name of the network's scheme."""
        return self.scheme.get(network) if isinstance(self.scheme, dict) else self.scheme

    @model_validator(mode="after")
    def _complete(self) -> Budget:
        if (self.amount is None) == (self.scheme is None) or (self.scheme is None) != (self.schemes is None):
            raise ValueError(f"budget {self.name}: expected amount, or schemes and scheme")
        if self.amount is not None:
            try:
                parse_bytes(self.amount)
            except InputError as error:
                raise ValueError(f"budget {self.name}: {error}") from error
        return self


class Contender(_Part):
    """A way to train. `plan`: a strategy of the planner's; `full`: ordinary full fine-tuning, at what it costs.

    Learning rates are chosen once for all contenders of a family.
    """

    name: Name
    kind: Literal["plan", "full"] = "plan"
    family: Name = "planned"
    strategy: str = "optimal"
    request: dict[str, Any] = Field(default_factory=dict, description="further keys of a planning request")
    settings: dict[str, Any] = Field(default_factory=dict, description="what single strategies can be told")
    sampling: dict[str, Any] = Field(default_factory=dict, description="how channels are redrawn")
    networks: tuple[str, ...] | None = Field(default=None, description="only on these networks")

    @model_validator(mode="after")
    def _known(self) -> Contender:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"contender {self.name}: strategy {self.strategy!r} is unknown: {', '.join(STRATEGIES)}")
        return self

    @property
    def has_budget(self) -> bool:
        """Whether it is run once for each budget, or once in all."""
        return self.kind == "plan" and self.strategy not in ("full", "head-only")


class Family(_Part):
    """Contenders that share a learning rate: the candidates, and by whom and at which budget it is chosen."""

    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    chosen_by: Name
    budget: Name | None = None
    clip: float | None = Field(default=5.0, gt=0)


class Matrix(_Part):
    """A benchmark. Every combination is one run; `tuning_seed` and the validation split serve learning rates alone."""

    name: str
    batch_size: int = Field(default=8, ge=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    warm_head_epochs: int = Field(default=2, ge=0)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    tuning_seed: int = Field(default=1000, ge=0)
    networks: tuple[Network, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    budgets: tuple[Budget, ...] = Field(min_length=1)
    contenders: tuple[Contender, ...] = Field(min_length=1)
    families: dict[Name, Family] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Matrix:
        for what in ("networks", "tasks", "budgets", "contenders"):
            names = [entry.name for entry in getattr(self, what)]
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: a name is given twice")
        contenders = {contender.name: contender for contender in self.contenders}
        for contender in self.contenders:
            if contender.family not in self.families:
                raise ValueError(f"contender {contender.name}: family {contender.family!r} is not among [families]")
        if self.tuning_seed in self.seeds:
            raise ValueError("tuning_seed: expected a seed of its own, not one of seeds")
        for name, family in self.families.items():
            chooser = contenders.get(family.chosen_by)
            if chooser is None or chooser.family != name:
                raise ValueError(f"family {name}: chosen_by {family.chosen_by!r} is no contender of it")
            if chooser.has_budget and family.budget not in {budget.name for budget in self.budgets}:
                raise ValueError(f"family {name}: budget: expected the name of one, for {chooser.name}")
        return self

    def named(self, what: str, name: str) -> Any:
        """The entry of that name among networks, tasks, budgets or contenders."""
        return next(entry for entry in getattr(self, what) if entry.name == name)

    def digest(self, *parts: Any) -> str:
        """What the result of a job depends on, beside its identifier: these parts, and what holds for all."""
        facts = [self.batch_size, self.warm_head_epochs, *(_plain(part) for part in parts)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_matrix(path: Path) -> Matrix:
    """Read a matrix; paths in it are taken from the folder it lies in.

    Raises:
        InputError: the file is missing, is no TOML, or asks for something that is unknown or does not fit.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    try:
        matrix = Matrix.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "matrix"
        raise InputError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
    return _resolved(matrix, path.resolve().parent)


def _resolved(matrix: Matrix, folder: Path) -> Matrix:
    tasks = tuple(task.model_copy(update={"data": _expand(task)}) for task in matrix.tasks)
    budgets = tuple(
        budget.model_copy(update={"schemes": str(folder / budget.schemes)}) if budget.schemes else budget
        for budget in matrix.budgets
    )
    return matrix.model_copy(update={"tasks": tasks, "budgets": budgets})


def _expand(task: Task) -> str:
    expanded = os.path.expandvars(task.data)
    if "$" in expanded:
        raise InputError(f"task {task.name}: data {task.data!r}: the environment variable is not set")
    return expanded


def _plain(part: Any) -> Any:
    return part.model_dump(mode="json") if isinstance(part, BaseModel) else part

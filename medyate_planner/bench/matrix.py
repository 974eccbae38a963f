"""What a benchmark compares, read from TOML."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from medyate_planner.errors import InputError
from medyate_planner.planning.strategies import STRATEGIES
from medyate_planner.units import parse_bytes

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+%-]*$")]  # part of identifiers and file names


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Part):
    """A model that is fine-tuned, as for `medyate rank`."""

    name: Name = Field(description="what it is called here")
    spec: str = Field(description="MODEL, as for `medyate rank`: a name of the zoo, torchvision:NAME, file.py:factory")
    weights: str | None = Field(default=None, description="file of weights, where the spec does not bring its own")
    input_shape: tuple[int, ...] | None = Field(default=None, description="of one sample, such as [3, 128, 128]")


class Task(_Part):
    """A data set, and how long it is trained on. Environment variables in `data` are expanded when it is opened."""

    name: Name = Field(description="what it is called here")
    data: str = Field(description="DATA, as for `medyate rank`, such as imagefolder:DIR; $VARIABLES are expanded")
    epochs: int = Field(ge=1, description="of every training, also of those that choose a learning rate")
    limit: int | None = Field(default=None, ge=1, description="samples of each set, evenly over the classes")
    augment: str = Field(default="none", description="of the training pictures: none, flip, crop or flip+crop")

    @property
    def spec(self) -> str:
        """Where the data are on this machine.

        Raises:
            InputError: an environment variable is not set.
        """
        expanded = os.path.expandvars(self.data)
        if "$" in expanded:
            raise InputError(f"task {self.name}: data {self.data!r}: the environment variable is not set")
        return expanded


class Budget(_Part):
    """Training memory: an amount, a share of what full fine-tuning is measured to need, or what a published Sparse
    Update scheme of the network needs, at this batch size."""

    name: Name = Field(description="what it is called here")
    amount: str | None = Field(default=None, description="bytes of training memory with their unit, such as 512kB")
    of_full: float | None = Field(
        default=None, gt=0, le=1, description="share of full fine-tuning's measured training memory, such as 0.01"
    )
    schemes: str | None = Field(
        default=None, description="JSON file of schemes by network spec and scheme name, from the matrix's folder"
    )
    scheme: str | dict[Name, str] | None = Field(default=None, description="its name there; or one for each network")

    def scheme_of(self, network: str) -> str | None:
        """Name of the network's scheme."""
        return self.scheme.get(network) if isinstance(self.scheme, dict) else self.scheme

    @model_validator(mode="after")
    def _complete(self) -> Budget:
        given = [value for value in (self.amount, self.of_full, self.scheme) if value is not None]
        if len(given) != 1 or (self.scheme is None) != (self.schemes is None):
            raise ValueError(f"budget {self.name}: expected amount, or of_full, or schemes and scheme")
        if self.amount is not None:
            try:
                parse_bytes(self.amount)
            except InputError as error:
                raise ValueError(f"budget {self.name}: {error}") from error
        return self


class Contender(_Part):
    """A way to train. Learning rates are chosen once for all contenders of a family.

    `plan`: a strategy of the planner's. `oracle`: the same, planned anew at the start of every epoch by gradients that
    are then measured in full, beyond the budget. In PyTorch, at what it costs: `full` fine-tuning, the same
    `checkpointed` (blocks are computed again in backward), and `lora-everywhere`. `lora`: adapters in as many of the
    last layers as fit the budget.
    """

    name: Name = Field(description="what it is called here")
    kind: Literal["plan", "oracle", "full", "checkpointed", "lora", "lora-everywhere"] = Field(
        default="plan", description="how it trains"
    )
    family: Name = Field(default="planned", description="key of [families] from which it has its learning rate")
    strategy: str = Field(
        default="optimal",
        description="of kinds plan and oracle: what chooses layers and channels",
        json_schema_extra={"enum": list(STRATEGIES)},
    )
    request: dict[str, Any] = Field(
        default_factory=dict,
        description="further keys of a planning request, such as objective, curve, buy_biases, max_layers, granularity",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="what single strategies can be told, such as last_layers, top_layers, boost; or LoRA: rank, alpha",
    )
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="how channels are redrawn, as in a plan: method, interval, alpha, metric"
    )
    networks: tuple[Name, ...] | None = Field(default=None, description="only on these networks")
    budgets: tuple[Name, ...] | None = Field(default=None, description="only under these budgets")
    seeds: tuple[int, ...] | None = Field(default=None, description="only with these seeds")
    follow: int | None = Field(default=None, ge=1, description="batches on which importance is measured every epoch")

    @model_validator(mode="after")
    def _known(self) -> Contender:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"contender {self.name}: strategy {self.strategy!r} is unknown: {', '.join(STRATEGIES)}")
        return self

    @property
    def has_budget(self) -> bool:
        """Whether it is run once for each budget, or once in all."""
        if self.kind == "plan":
            return self.strategy not in ("full", "head-only")
        return self.kind in ("oracle", "lora")


class Family(_Part):
    """Contenders that share a learning rate: the candidates, and by whom and at which budget it is chosen."""

    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1, description="learning rates to choose from; one alone is not tried, but taken"
    )
    chosen_by: Name = Field(description="the contender of this family by whose validation accuracy it is chosen")
    budget: Name | None = Field(default=None, description="at which that contender is tried, if it has one")
    clip: float | None = Field(
        default=5.0, gt=0, description="largest norm of one layer's gradient; above, it is scaled"
    )


class Claim(_Part):
    """What somebody found, as pairs of contenders: the first of each is `better` than the second, or the `same` but for
    `margin`."""

    text: str = Field(description="what is claimed, as the report prints it")
    source: str = Field(default="", description="who found it")
    pairs: tuple[tuple[Name, Name], ...] = Field(
        min_length=1, description="names of contenders, compared where they share network, task, budget and seed"
    )
    expect: Literal["better", "same"] = Field(default="better", description="what the first of each pair should be")
    margin: float = Field(default=0.01, gt=0, lt=1, description="of accuracy: less is no difference that matters")


class Headline(_Part):
    """The share of full fine-tuning's accuracy that a contender should reach under a budget."""

    contender: Name = Field(description="name of a contender")
    budget: Name = Field(description="name of a budget")
    aim: float = Field(gt=0, description="share of full fine-tuning's accuracy, such as 0.99")


class Matrix(_Part):
    """A benchmark. Every combination is one run; `tuning_seed` and the validation split serve learning rates alone."""

    name: str = Field(description="title of the report")
    batch_size: int = Field(default=8, ge=1, description="samples of one step; budgets are for this many")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="every combination is trained once with each"
    )
    warm_head_epochs: int = Field(
        default=2, ge=0, description="epochs of the head alone, before importance is measured"
    )
    validation_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="share of the training data on which learning rates are judged"
    )
    tuning_seed: int = Field(default=1000, ge=0, description="with which learning rates are chosen; not one of `seeds`")
    networks: tuple[Network, ...] = Field(min_length=1, description="models that are fine-tuned")
    tasks: tuple[Task, ...] = Field(min_length=1, description="data sets they are fine-tuned on")
    budgets: tuple[Budget, ...] = Field(min_length=1, description="limits of training memory")
    contenders: tuple[Contender, ...] = Field(
        min_length=1,
        description="ways to train; the first is compared with all others, the first full one is the measure",
    )
    families: dict[Name, Family] = Field(min_length=1, description="learning rates, by name of the family")
    claims: tuple[Claim, ...] = Field(default=(), description="what the report should test")
    headlines: tuple[Headline, ...] = Field(default=(), description="what the report should say first")
    folder: SkipJsonSchema[Path] = Field(default=Path(), exclude=True, description="where it was read from")

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
            for what in ("networks", "budgets"):
                self._check_names(f"contender {contender.name}", what, getattr(contender, what) or ())
        if self.tuning_seed in self.seeds:
            raise ValueError("tuning_seed: expected a seed of its own, not one of seeds")
        for name, family in self.families.items():
            chooser = contenders.get(family.chosen_by)
            if chooser is None or chooser.family != name:
                raise ValueError(f"family {name}: chosen_by {family.chosen_by!r} is no contender of it")
            if chooser.has_budget and family.budget not in {budget.name for budget in self.budgets}:
                raise ValueError(f"family {name}: budget: expected the name of one, for {chooser.name}")
        for claim in self.claims:
            self._check_names(f"claim {claim.text!r}", "contenders", [name for pair in claim.pairs for name in pair])
        for headline in self.headlines:
            self._check_names("headlines", "contenders", [headline.contender])
            self._check_names("headlines", "budgets", [headline.budget])
        return self

    def _check_names(self, where: str, what: str, names: Sequence[str]) -> None:
        known = {entry.name for entry in getattr(self, what)}
        for name in names:
            if name not in known:
                raise ValueError(f"{where}: {name!r} is not among {what}")

    def named(self, what: str, name: str) -> Any:
        """The entry of that name among networks, tasks, budgets or contenders."""
        return next(entry for entry in getattr(self, what) if entry.name == name)

    def digest(self, *parts: Any) -> str:
        """What the result of a job depends on, beside its identifier: these parts, and what holds for all. What stands
        at its default is left out, so that a key of a later version does not make results old."""
        facts = [self.batch_size, self.warm_head_epochs, *(_plain(part) for part in parts)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_matrix(path: Path) -> Matrix:
    """Read a matrix. Files of schemes are looked for from the folder it lies in, everything else from where we are.

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
    for task in matrix.tasks:
        _ = task.spec
    return matrix.model_copy(update={"folder": path.resolve().parent})


def _plain(part: Any) -> Any:
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json", exclude_defaults=True, exclude={"networks", "budgets", "seeds"})
    return part

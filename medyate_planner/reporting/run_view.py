"""A training run as data: what its folder holds, read and checked; nothing is trained or built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medyate_planner.errors import InputError
from medyate_planner.planning.plan import Plan
from medyate_planner.training.run import RunFolder

_Entry = TypeVar("_Entry", bound="_Line")


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)  # later versions may write more


class RunEpoch(_Line):
    """A line of metrics.jsonl."""

    epoch: int = Field(ge=0)
    train_loss: float
    test_accuracy: float | None
    test_loss: float | None = None
    measured_training_bytes: int = Field(ge=0)
    measured_saved_bytes: int | None = Field(default=None, ge=0)
    measured_live_peak_bytes: int = Field(ge=0)
    lr: float | None = None
    seconds: float


class RunDraw(_Line):
    """A line of selections.jsonl: the channels that were drawn, by layer."""

    epoch: int = Field(ge=0)
    layers: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run: its plan, what was measured in each epoch, and what was drawn.

    `metrics` are the lines as they stand in the file; `settings` those of recipe.json, empty without it.
    """

    plan: Plan
    epochs: tuple[RunEpoch, ...]
    draws: tuple[RunDraw, ...]
    metrics: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] | None = None

    @property
    def kind(self) -> Literal["run"]:
        return "run"

    @property
    def planned_epochs(self) -> int | None:
        """Epochs that were asked for; None where that is not known."""
        recipe = (self.settings or {}).get("recipe")
        count = recipe.get("epochs") if isinstance(recipe, dict) else None
        return count if isinstance(count, int) and not isinstance(count, bool) else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `medyate show RUN --json`."""
        return {"kind": "run", "plan": self.plan.to_dict(), "metrics": [dict(line) for line in self.metrics]}


def read_run(folder: Path) -> RunView:
    """Read a run folder; what a kill cut off is left out.

    Raises:
        InputError: no run, or a wrong value; names the file, the line and the key.
    """
    run = RunFolder(folder)
    plan = Plan.load(folder / "plan.json")
    metrics = run.metrics()
    epochs = _checked(RunEpoch, metrics, run.metrics_file)
    draws = _checked(RunDraw, run.selections(), run.selections_file)
    _check_channels(plan, draws, run.selections_file)
    settings = run.settings() if (folder / "recipe.json").exists() else None
    return RunView(plan=plan, epochs=epochs, draws=draws, metrics=tuple(metrics), settings=settings)


def _checked(kind: type[_Entry], lines: list[dict[str, Any]], file: Path) -> tuple[_Entry, ...]:
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(kind.model_validate(line))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{file}: line {number}: {key}: {first['msg']}; it is not what a run writes") from error
    return tuple(found)


def _check_channels(plan: Plan, draws: tuple[RunDraw, ...], file: Path) -> None:
    channels = {layer.name: layer.channels for layer in plan.layers}
    for number, draw in enumerate(draws, start=1):
        for name, drawn in draw.layers.items():
            if name not in channels:
                raise InputError(f"{file}: line {number}: layer {name} is not in the plan beside it")
            if drawn and not 0 <= min(drawn) <= max(drawn) < channels[name]:
                raise InputError(
                    f"{file}: line {number}: {name}: expected channels of 0 to {channels[name] - 1}, got "
                    f"{min(drawn)} to {max(drawn)}"
                )

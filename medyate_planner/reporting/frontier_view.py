"""The frontier as data: value against budget, what `medyate plan --budgets` prints, and what frontier.json holds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medyate_planner.errors import InputError
from medyate_planner.planning.frontier import Frontier
from medyate_planner.planning.plan import ImportanceRef
from medyate_planner.reporting.view import ReportedModel

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class ReportedPoint(_Part):
    """The best plan found for one budget; every figure of an infeasible one is null."""

    budget_bytes: int = Field(ge=1)
    feasible: bool
    used_bytes: int | None = Field(description="what the budget limits; in scope peak the closed form")
    objective: float | None = Field(description="exact value of what is updated")
    interpolated_objective: float | None = Field(description="the same as the solver sees it")
    objective_bound: float | None = Field(default=None, description="no plan is worth more (interpolated)")
    marginal_per_kb: float | None = Field(description="value per kB of budget since the feasible point before")
    layers: int | None = Field(description="layers of which channels are updated, the head excepted")
    channels: int | None
    biases: int | None
    status: Literal["optimal", "feasible"] | None
    gap_ratio: float | None
    carried_from_bytes: int | None = Field(
        default=None, description="the plan is that of this smaller budget: what was found here was worth less"
    )

    @model_validator(mode="after")
    def _complete(self) -> ReportedPoint:
        figures = (self.used_bytes, self.objective, self.layers, self.channels, self.biases, self.gap_ratio)
        if any((figure is None) == self.feasible for figure in (*figures, self.status)):
            raise ValueError(f"budget {self.budget_bytes}: a feasible point has all figures, an infeasible one none")
        return self


class FrontierReport(_Part):
    """Value against budget for one model, by one strategy."""

    schema_version: Literal[1] = 1
    kind: Literal["frontier"] = "frontier"
    model: ReportedModel
    batch_size: int = Field(ge=1)
    dtype: str
    device: str
    loss: str
    scope: Literal["update", "training", "peak"]
    margin_ratio: float
    weights_in: Literal["ram", "flash"]
    strategy: str
    objective_name: str
    curve: str
    metric: str
    max_layers: int | None
    max_flops: int | None
    granularity: int
    importance: ImportanceRef
    minimum_bytes: int | None = Field(description="the smallest budget that can be met; null where it is not known")
    knee_bytes: int | None = Field(description="the point farthest above the chord; null where there is none")
    points: tuple[ReportedPoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> FrontierReport:
        if any(one.budget_bytes >= two.budget_bytes for one, two in pairwise(self.points)):
            raise ValueError("the budgets of a frontier rise from point to point")
        if self.knee_bytes is not None and self.knee_bytes not in {p.budget_bytes for p in self.feasible}:
            raise ValueError("the knee is one of the feasible points")
        return self

    @property
    def feasible(self) -> tuple[ReportedPoint, ...]:
        """The points that have a plan."""
        return tuple(point for point in self.points if point.feasible)

    @property
    def knee(self) -> ReportedPoint | None:
        """The point beyond which bytes buy less than on average."""
        return next((point for point in self.points if point.budget_bytes == self.knee_bytes), None)

    @property
    def best_objective(self) -> float:
        """The largest value of any point."""
        return max((point.objective or 0.0 for point in self.points), default=0.0)

    def share_of_best(self, point: ReportedPoint) -> float:
        """A point's value relative to the largest."""
        return (point.objective or 0.0) / self.best_objective if self.best_objective else 0.0

    def __str__(self) -> str:
        """The frontier as `medyate show` prints it, 120 columns wide."""
        from medyate_planner.reporting.frontier_text import frontier_as_text

        return frontier_as_text(self)

    def __repr__(self) -> str:
        """One line; `print` shows the whole frontier."""
        return f"<FrontierReport of {self.model.spec}: {len(self.points)} budgets, strategy {self.strategy}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from medyate_planner.reporting.summaries import summary_of_frontier

        return summary_of_frontier(self).html()

    def to_dict(self) -> dict[str, Any]:
        """JSON types, keys as in frontier.json."""
        return self.model_dump(mode="json")

    def save(self, path: Path | str, *, force: bool = True) -> Path:
        """Write the frontier, whole or not at all: .json, .csv, .html, .png or .svg by the file's ending."""
        from medyate_planner.reporting.frontier_export import write_frontier

        return write_frontier(self, Path(path), force=force)


def frontier_report(
    frontier: Frontier, *, spec: str | None, device: str, loss: str, reference: ImportanceRef
) -> FrontierReport:
    """A traced frontier as the artefact; the decisions stay behind."""
    asked, graph = frontier.request, frontier.request.memory.graph
    return FrontierReport(
        model=ReportedModel(spec=spec or "model", fingerprint=graph.fingerprint, num_parameters=graph.num_parameters),
        batch_size=graph.batch_size,
        dtype=graph.layers[0].dtype if graph.layers else "float32",
        device=device,
        loss=loss,
        scope=asked.scope,  # type: ignore[arg-type]
        margin_ratio=asked.margin_ratio,
        weights_in=asked.weights_in,  # type: ignore[arg-type]
        strategy=frontier.strategy,
        objective_name=asked.objective,
        curve=asked.curve,
        metric=asked.metric,
        max_layers=asked.max_layers,
        max_flops=asked.max_flops,
        granularity=asked.granularity,
        importance=reference,
        minimum_bytes=frontier.minimum_bytes,
        knee_bytes=frontier.knee_bytes,
        points=tuple(ReportedPoint.model_validate(point) for point in frontier.points),
    )


def read_frontier(data: Any, *, where: str) -> FrontierReport:
    """Validate the content of a frontier.json.

    Raises:
        InputError: another schema version, or a wrong value; names the key.
    """
    try:
        return FrontierReport.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "content"
        text = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {key}: {text}; make it again with `medyate plan --budgets`") from error

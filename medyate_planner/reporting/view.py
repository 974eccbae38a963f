"""The memory report as data: what `medyate report` prints, and what report.json holds.

Every sum a page shows is made here or in `gather`, never where it is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medyate_planner.errors import InputError
from medyate_planner.memory.moments import PHASES, Category

_KNOWN_CATEGORIES = frozenset(category.value for category in Category)
StepName = Literal["inference", "full", "lean_full", "plan"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportedModel(_Part):
    """Which model a report is about."""

    spec: str
    fingerprint: str | None = Field(description="SHA-256 of the captured graph; null where it can not be captured")
    num_parameters: int


class ReportedRegime(_Part):
    """How full fine-tuning is done: everything but the batch that changes its bytes."""

    optimizer: str
    norm: str
    autocast: str | None
    accumulation: int
    mode: Literal["eval", "train", "mixed"] = Field(
        description="mode the model was handed in with (dropout and the like)"
    )
    train: tuple[str, ...] = Field(
        description="patterns of the names of the parameters that are trained; none: those that require a gradient"
    )


class FullFineTuning(_Part):
    """Bytes of one step of full fine-tuning as PyTorch runs it (saved: for backward, without the loss)."""

    weights_bytes: int
    gradients_bytes: int
    saved_bytes: int
    loss_bytes: int
    optimizer: str
    optimizer_bytes: int
    training_bytes: int
    live_peak_bytes: int


class Inference(_Part):
    """Bytes of one forward without gradients, weights and inputs included."""

    live_peak_bytes: int


class ReportedTimeline(_Part):
    """Bytes live after each operator that made something, by category; column-wise, one entry per operator."""

    categories: tuple[str, ...]
    phase: tuple[str, ...]
    operator: tuple[str, ...]
    module: tuple[str, ...]
    source: tuple[str, ...]
    live_bytes: tuple[tuple[int, ...], ...] = Field(description="per operator, bytes in the order of `categories`")
    peak_index: int

    @model_validator(mode="after")
    def _columns_agree(self) -> ReportedTimeline:
        lengths = {len(self.phase), len(self.operator), len(self.module), len(self.source), len(self.live_bytes)}
        if len(lengths) > 1 or not 0 <= self.peak_index < len(self.phase):
            raise ValueError("the columns of a timeline have different lengths, or the peak is not one of its moments")
        if any(len(row) != len(self.categories) or min(row, default=0) < 0 for row in self.live_bytes):
            raise ValueError("every moment of a timeline has one number for each category, 0 or more")
        if len(set(self.categories)) < len(self.categories) or not set(self.categories) <= _KNOWN_CATEGORIES:
            raise ValueError(f"the categories of a timeline are distinct, and some of {sorted(_KNOWN_CATEGORIES)}")
        if not set(self.phase) <= set(PHASES):
            raise ValueError(f"the phases of a step are {', '.join(PHASES)}")
        if self.peak_bytes != max(sum(row) for row in self.live_bytes):
            raise ValueError("peak_index is not that of the largest moment")
        return self

    @property
    def peak_bytes(self) -> int:
        return sum(self.live_bytes[self.peak_index])

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes by category at the peak."""
        return dict(zip(self.categories, self.live_bytes[self.peak_index], strict=True))


class ReportedStep(_Part):
    """One way to run a step, by the three numbers, and what is live at each moment of it.

    saved: distinct storages kept for backward by the model's forward. training: the most that is kept because we
    train, at one moment (saved tensors, the loss's, gradients, optimizer state, indices). live peak: the most that is
    live at one moment, weights and inputs included. The allocator's peak is measured and never promised.
    """

    name: StepName
    title: str
    saved_bytes: int
    training_bytes: int
    live_peak_bytes: int
    live_peak_bound_bytes: int | None = Field(default=None, description="closed form: never below the live peak")
    allocator_peak_bytes: int | None = Field(default=None, description="measured on this machine, if asked for")
    timeline: ReportedTimeline


class ReportedModule(_Part):
    """What one module itself holds in full fine-tuning, its submodules not included; `path` is "" for the model."""

    path: str
    kind: str
    parameters: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    saved_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.saved_bytes


class ReportedLayer(_Part):
    """One layer: what a channel costs, and what its reach costs."""

    name: str
    kind: str
    channels: int
    weight_bytes: int
    gradient_bytes_per_channel: int
    saved_bytes_per_channel: int
    passthrough_bytes: int = Field(description="pass-through bytes kept when this layer is the earliest one updated")
    head: bool


class ReportedAccounting(_Part):
    """One figure in one accounting; only figures of the same accounting can be compared."""

    accounting: Literal["bytes", "elements", "sparse-update"]
    of: str = Field(description="what is accounted for")
    amount: int
    unit: str


class ReportedMeasurement(_Part):
    """A predicted figure and what a real step on this machine held."""

    step: StepName
    name: str
    predicted_bytes: int
    measured_bytes: int


class LargestBatch(_Part):
    """The largest batch whose live peak fits into a budget; 0 where not even one sample does."""

    step: StepName
    budget_bytes: int
    batch_size: int
    live_peak_bytes: int = Field(description="at that batch; at the smallest one where none fits")


class MemoryReport(_Part):
    """Where the memory of training goes, at one batch size."""

    schema_version: Literal[2] = 2
    kind: Literal["report"] = "report"
    model: ReportedModel
    batch_size: int
    dtype: str
    regime: ReportedRegime
    full: FullFineTuning
    inference: Inference
    steps: tuple[ReportedStep, ...]
    modules: tuple[ReportedModule, ...]
    layers: tuple[ReportedLayer, ...]
    accountings: tuple[ReportedAccounting, ...]
    measured: tuple[ReportedMeasurement, ...] = ()
    largest_batch: tuple[LargestBatch, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="what a reader must know about these figures")
    capture_error: str | None = Field(
        default=None, description="why the model can not be captured: then `layers` is empty and no plan can be made"
    )

    @model_validator(mode="after")
    def _steps_are_named_once(self) -> MemoryReport:
        names = [step.name for step in self.steps]
        if len(set(names)) < len(names) or not {"inference", "full"} <= set(names):
            raise ValueError("a report has the steps inference and full, and each step once")
        absent = {row.step for row in self.measured} | {row.step for row in self.largest_batch}
        absent -= set(names)
        if absent:
            raise ValueError(f"figures of steps that are not in the report: {', '.join(sorted(absent))}")
        if any(step.timeline.peak_bytes != step.live_peak_bytes for step in self.steps):
            raise ValueError("the live peak of a step is the largest moment of its timeline")
        return self

    @property
    def agrees(self) -> bool:
        """Whether every measured figure is the predicted one (true where nothing was measured)."""
        return all(row.predicted_bytes == row.measured_bytes for row in self.measured)

    def __str__(self) -> str:
        """The report as `medyate report` prints it, 120 columns wide."""
        from medyate_planner.reporting.report_text import report_as_text

        return report_as_text(self)

    def __repr__(self) -> str:
        """One line; `print` shows the whole report."""
        return (
            f"<MemoryReport of {self.model.spec}, batch {self.batch_size}: {self.full.live_peak_bytes:,} B live peak>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from medyate_planner.reporting.summaries import summary_of_report

        return summary_of_report(self).html()

    def to_dict(self) -> dict[str, Any]:
        """JSON types, keys as in report.json."""
        return self.model_dump(mode="json")

    def save(self, path: Path | str, *, force: bool = True) -> Path:
        """Write the report, whole or not at all: .json, .csv, .html, .png or .svg by the file's ending."""
        from medyate_planner.reporting.export import write_report

        return write_report(self, Path(path), force=force)


def read_report(data: Any, *, where: str) -> MemoryReport:
    """Validate the content of a report.json.

    Raises:
        InputError: another schema version, or a wrong value; names the key.
    """
    try:
        return MemoryReport.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {key}: {first['msg']}; make it again with `medyate report`") from error

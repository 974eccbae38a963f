"""The memory report as data: what `medyate report` prints, and what report.json holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medyate_planner.errors import InputError
from medyate_planner.files import write_text
from medyate_planner.memory.channels import STATE_SLOTS
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.training.dryrun import FullStep

_STEP_COUNTER_BYTES = 4


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportedModel(_Part):
    """Which model a report is about."""

    spec: str
    fingerprint: str
    num_parameters: int


class FullFineTuning(_Part):
    """Bytes of one step of full fine-tuning as PyTorch runs it (saved: for backward, without the loss)."""

    weights_bytes: int
    gradients_bytes: int
    saved_bytes: int
    loss_bytes: int
    optimizer: str
    optimizer_bytes: int
    live_peak_bytes: int


class Inference(_Part):
    """Bytes of one forward without gradients, weights and inputs included."""

    live_peak_bytes: int


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


class MemoryReport(_Part):
    """Where the memory of training goes, at one batch size."""

    schema_version: Literal[1] = 1
    kind: Literal["report"] = "report"
    model: ReportedModel
    batch_size: int
    dtype: str
    full: FullFineTuning
    inference: Inference
    layers: tuple[ReportedLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types, keys as in report.json."""
        return self.model_dump(mode="json")

    def save(self, path: Path | str, *, force: bool = True) -> Path:
        """Write report.json, whole or not at all."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=2) + "\n", force=force)


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


def build_report(memory: MemoryModel, full: FullStep, *, optimizer: str, spec: str) -> MemoryReport:
    """Gather the figures of a report.

    Raises:
        InputError: unknown optimizer.
    """
    if optimizer not in STATE_SLOTS:
        raise InputError(f"optimizer {optimizer!r} is unknown; choose one of {', '.join(STATE_SLOTS)}")
    graph = memory.graph
    gradients = graph.parameter_bytes
    state = STATE_SLOTS[optimizer] * gradients
    if STATE_SLOTS[optimizer] > 1:
        state += _STEP_COUNTER_BYTES * len(graph.parameters)
    head = frozenset(graph.head)
    layers = []
    for layer in graph.layers:
        cost = memory.costs[layer.name]
        only_this = Updates(quotas={} if layer.name in head else {layer.name: 1}, full=head)
        layers.append(
            ReportedLayer(
                name=layer.name,
                kind=layer.kind,
                channels=layer.channels,
                weight_bytes=layer.weight_elements * layer.element_bytes,
                gradient_bytes_per_channel=cost.gradient_bytes,
                saved_bytes_per_channel=cost.saved_bytes,
                passthrough_bytes=footprint(memory, only_this).passthrough_bytes,
                head=layer.name in head,
            )
        )
    return MemoryReport(
        model=ReportedModel(spec=spec, fingerprint=graph.fingerprint, num_parameters=graph.num_parameters),
        batch_size=graph.batch_size,
        dtype=graph.layers[0].dtype if graph.layers else "float32",
        full=FullFineTuning(
            weights_bytes=graph.parameter_bytes + graph.buffer_bytes,
            gradients_bytes=gradients,
            saved_bytes=full.saved_bytes,
            loss_bytes=full.loss_bytes,
            optimizer=optimizer,
            optimizer_bytes=state,
            live_peak_bytes=full.live_peak_bytes + state,
        ),
        inference=Inference(live_peak_bytes=full.inference_peak_bytes),
        layers=tuple(layers),
    )
